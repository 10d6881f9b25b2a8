//! Real nodes on real networks, and what happens to them.
//!
//! Times are measured and printed. What is asserted are ten times the promises: a busy machine makes
//! a process wait, and that is no fault of the process.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kumo_abi::HostId;
use kumo_abi::cluster::HostState;
use kumo_testbed::cluster::Cluster;
use kumo_testbed::net::{Way, unavailable};
use serde_json::Value;

/// How much longer than promised things may take here.
const SLACK: u32 = 10;

/// A killed node is shown dead everywhere.
const KILLED_MAX: Duration = Duration::from_millis(100);

/// A frozen or unplugged one is.
const FROZEN_MAX: Duration = Duration::from_millis(1_500);

/// A data centre that is cut off is, on both sides; and after that both agree again.
const CUT_MAX: Duration = Duration::from_secs(2);

/// A cluster, or `None` with a message where none can be made.
fn cluster(dcs: usize, hosts: usize, gateways: usize) -> Option<Cluster> {
    if let Some(why) = unavailable() {
        eprintln!("skipped: no network namespaces here: {why}");
        return None;
    }
    let began = Instant::now();
    let cluster = Cluster::for_test(dcs, hosts, gateways).unwrap_or_else(|error| panic!("{error}"));
    println!("a cluster of {dcs} x {hosts} is up after {:?}", began.elapsed());
    Some(cluster)
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// All hosts but these.
fn others(cluster: &Cluster, but: &[&HostId]) -> Vec<HostId> {
    cluster.ids().filter(|id| !but.contains(id)).cloned().collect()
}

/// Waits until all of `observers` show `of` as one of `states`; prints how long that took, and
/// asserts [`SLACK`] times the promise.
fn until_shown(
    cluster: &Cluster,
    observers: &[HostId],
    of: &HostId,
    states: &[HostState],
    promise: Duration,
) {
    let names: Vec<&str> = states.iter().map(|state| state.name()).collect();
    let what = format!("{of} is shown {} by {} nodes", names.join(" or "), observers.len());
    let took = cluster.until(&what, |cluster| {
        observers.iter().all(|at| cluster.state(at, of).is_some_and(|now| states.contains(&now)))
    });
    println!("{what} after {took:?} (promised: {promise:?})");
    assert!(took < promise * SLACK, "{what} after {took:?}\n{}", cluster.views());
}

fn until_all_alive(cluster: &Cluster, promise: Duration) {
    let what = "every node sees every other alive";
    let took = cluster.until(what, |cluster| cluster.ids().all(|at| cluster.sees_all_alive(at)));
    println!("{what} after {took:?} (promised: {promise:?})");
    assert!(took < promise * SLACK, "{what} after {took:?}");
}

const DEAD: &[HostState] = &[HostState::Dead];

#[test]
fn every_host_shows_its_own_processes_to_all() {
    let Some(cluster) = cluster(2, 2, 1) else { return };
    for at in cluster.ids() {
        // Each host has a process 1 of its own: no two show the same table.
        let target = "/v2/all/proc?columns=dc,host,pid&filter=pid%20%3D%3D%201&wait_ms=10000";
        let answer: Value = cluster.get_json(at, target).unwrap();
        assert_eq!(answer["hosts"]["missing"], Value::Array(Vec::new()), "{answer}");
        let rows = answer["rows"].as_array().unwrap();
        let seen: BTreeSet<String> = rows
            .iter()
            .map(|row| match row {
                Value::Array(cells) => format!("{}/{}", text(&cells[0]), text(&cells[1])),
                row => format!("{}/{}", text(&row["dc"]), text(&row["host"])),
            })
            .collect();
        let all: BTreeSet<String> = cluster.ids().map(HostId::to_string).collect();
        assert_eq!(seen, all, "at {at}: {answer}");
        assert_eq!(rows.len(), all.len(), "at {at}: {answer}");
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn a_killed_member_is_dead_everywhere_and_comes_back() {
    let Some(mut cluster) = cluster(2, 3, 1) else { return };
    let gone = host("osaka/c");
    cluster.kill(&gone).unwrap();
    until_shown(&cluster, &others(&cluster, &[&gone]), &gone, DEAD, KILLED_MAX);

    // Who asks for all is told who is missing.
    let ps = words(&["ps", "--all", "--json"]);
    let (status, out, errors) = cluster.kumo_status(&host("tokyo/b"), &ps).unwrap();
    assert_eq!(status.code(), Some(3), "{out}{errors}");
    assert!(errors.contains("osaka/c"), "{errors}");
    assert!(out.contains(r#""osaka""#) && out.contains(r#""tokyo""#), "{out}");

    cluster.up(&gone).unwrap();
    until_all_alive(&cluster, CUT_MAX);
    let (status, _, errors) = cluster.kumo_status(&host("tokyo/b"), &ps).unwrap();
    assert_eq!(status.code(), Some(0), "{errors}");
}

#[test]
fn a_frozen_or_unplugged_member_is_dead_until_it_is_back() {
    let Some(cluster) = cluster(2, 3, 1) else { return };
    let gone = host("osaka/b");
    let observers = others(&cluster, &[&gone]);
    cluster.freeze(&gone).unwrap();
    until_shown(&cluster, &observers, &gone, DEAD, FROZEN_MAX);
    cluster.thaw(&gone).unwrap();
    until_all_alive(&cluster, CUT_MAX);

    cluster.cut(&gone).unwrap();
    until_shown(&cluster, &observers, &gone, DEAD, FROZEN_MAX);
    cluster.heal(&gone).unwrap();
    until_all_alive(&cluster, CUT_MAX);

    // It still hears all others, and nobody hears it.
    cluster.lose(&gone, Way::Out, 100).unwrap();
    until_shown(&cluster, &observers, &gone, DEAD, FROZEN_MAX);
    cluster.heal(&gone).unwrap();
    until_all_alive(&cluster, CUT_MAX);
}

#[test]
fn a_killed_gateway_kills_nobody_else() {
    let Some(mut cluster) = cluster(2, 4, 2) else { return };
    let gone = host("osaka/a");
    let observers = others(&cluster, &[&gone]);
    let stop = AtomicBool::new(false);
    let mut killed = Duration::ZERO;
    // Every node is asked the whole time whether it shows anybody else dead.
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let sockets: Vec<_> =
            observers.iter().map(|at| (at.clone(), cluster.socket(at).unwrap())).collect();
        let (stop, gone) = (&stop, &gone);
        let watchers: Vec<_> = sockets
            .into_iter()
            .map(|(at, socket)| {
                scope.spawn(move || {
                    let mut wrong = Vec::new();
                    let wait = Duration::from_secs(10);
                    while !stop.load(Ordering::Relaxed) {
                        let answer = kumo_testbed::request(&socket, "GET", "/v2/hosts", "", wait);
                        let view: kumo_testbed::cluster::View =
                            serde_json::from_slice(&answer.unwrap().body).unwrap();
                        let dead = view
                            .hosts
                            .iter()
                            .filter(|host| host.id != *gone && host.state != HostState::Alive);
                        wrong.extend(
                            dead.map(|host| {
                                format!("{at} showed {} {}", host.id, host.state.name())
                            }),
                        );
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    wrong
                })
            })
            .collect();
        let began = Instant::now();
        cluster.kill(gone).unwrap();
        let what = "the killed gateway is shown dead by all";
        let shown = cluster.wait(what, |cluster| {
            observers.iter().all(|at| cluster.state(at, gone) == Some(HostState::Dead))
        });
        killed = began.elapsed();
        // Its hosts have moved to the other gateway when that has a link with each.
        let moved = shown.and_then(|_| {
            cluster.wait("its hosts have moved to the other gateway", |cluster| {
                let links: Value = cluster.get_json(&host("osaka/b"), "/v2/links").unwrap();
                let peers: Vec<&str> = links["links"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|link| link["dc"] == "osaka" || link["peer"]["dc"] == "osaka")
                    .map(|link| text(&link["peer"]["host"]))
                    .collect();
                ["c", "d"].iter().all(|member| peers.contains(member))
            })
        });
        stop.store(true, Ordering::Relaxed);
        let wrong = watchers.into_iter().flat_map(|watcher| watcher.join().unwrap()).collect();
        moved.unwrap_or_else(|error| panic!("{error}"));
        wrong
    });
    println!("the killed gateway is shown dead by all after {killed:?}");
    assert_eq!(wrong, Vec::<String>::new());
    // Who asks through the other gateway gets every living host.
    let answer: Value = cluster
        .get_json(&host("tokyo/c"), "/v2/all/proc?columns=pid&limit=1&wait_ms=10000")
        .unwrap();
    assert_eq!(answer["hosts"]["answered"], 7, "{answer}");
    assert_eq!(answer["hosts"]["missing"][0]["host"], "a", "{answer}");

    cluster.up(&gone).unwrap();
    until_all_alive(&cluster, CUT_MAX);
}

#[test]
fn a_data_centre_that_is_cut_off_goes_on_and_agrees_afterwards() {
    let Some(cluster) = cluster(2, 3, 1) else { return };
    let osaka = "osaka".parse().unwrap();
    let sides: [Vec<HostId>; 2] = ["tokyo", "osaka"]
        .map(|dc| cluster.ids().filter(|id| id.dc.as_str() == dc).cloned().collect());
    cluster.cut_dc(&osaka).unwrap();
    let what = "both sides say that the other is cut off";
    let cut_off = |cluster: &Cluster, at: &[HostId], of: &[HostId]| {
        let mut pairs = at.iter().flat_map(|at| of.iter().map(move |of| (at, of)));
        pairs.all(|(at, of)| cluster.state(at, of) == Some(HostState::CutOff))
    };
    let took = cluster.until(what, |cluster| {
        cut_off(cluster, &sides[0], &sides[1]) && cut_off(cluster, &sides[1], &sides[0])
    });
    println!("{what} after {took:?} (promised: {CUT_MAX:?})");
    assert!(took < CUT_MAX * SLACK, "{took:?}");
    // Each side goes on with what it has.
    for [here, there] in [[0, 1], [1, 0]] {
        let at = &sides[here][2];
        let answer: Value =
            cluster.get_json(at, "/v2/all/proc?columns=pid&limit=1&wait_ms=10000").unwrap();
        assert_eq!(answer["hosts"]["answered"], 3, "at {at}: {answer}");
        let missing = answer["hosts"]["missing"].as_array().unwrap();
        assert_eq!(missing.len(), sides[there].len(), "at {at}: {answer}");
        assert!(missing.iter().all(|host| host["outcome"] == "cut-off"), "at {at}: {answer}");
    }
    // What is decided on either side is known on both after they meet again.
    let token = words(&["token", "--ttl", "1h"]);
    cluster.kumo(&host("osaka/b"), &token).unwrap();
    cluster.heal_dc(&osaka).unwrap();
    until_all_alive(&cluster, CUT_MAX);
}

#[test]
fn an_evicted_host_is_out() {
    let Some(mut cluster) = cluster(1, 3, 1) else { return };
    let (gone, gateway) = (host("tokyo/c"), host("tokyo/a"));
    cluster.kumo(&gateway, &words(&["evict", "tokyo/c"])).unwrap();
    let observers = others(&cluster, &[&gone]);
    let out = |cluster: &Cluster| {
        observers.iter().all(|at| cluster.state(at, &gone) != Some(HostState::Alive))
    };
    let took = cluster.until("the evicted host is no longer alive for the others", out);
    println!("an evicted host is out after {took:?}");
    // A new start does not help it: it is refused, and says so.
    cluster.kill(&gone).unwrap();
    cluster.up(&gone).unwrap();
    let log = cluster.dir(&gateway).unwrap().join("log");
    cluster.until("its gateway refuses it", |_| {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("evicted"))
    });
    assert!(out(&cluster), "{}", cluster.views());
}
