//! Real nodes on real networks, and what happens to them.
//!
//! Times are measured and printed, with what is promised, but none is asserted: a busy machine makes a
//! process wait, and that is no fault of the process. Nobody who lives may be shown dead; a run in
//! which the machine kept processes waiting for too long says nothing of that and is done again.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kumo_abi::HostId;
use kumo_abi::cluster::HostState;
use kumo_testbed::Pace;
use kumo_testbed::cluster::{Cluster, View};
use kumo_testbed::net::{Way, has_loss_for_tests, is_there_for_tests};
use serde_json::Value;

/// So often a test is done that cannot be judged. After that it has said nothing, and says so.
const TRIES_MAX: usize = 3;

/// A killed node is shown dead everywhere.
const KILLED_MAX: Duration = Duration::from_millis(100);

/// A frozen or unplugged one is.
const FROZEN_MAX: Duration = Duration::from_millis(1_500);

/// A data centre that is cut off is, on both sides; and after that both agree again.
const CUT_MAX: Duration = Duration::from_secs(2);

/// A cluster, or `None` with a message where none can be made.
fn cluster(dcs: usize, hosts: usize, gateways: usize) -> Option<Cluster> {
    if !is_there_for_tests() {
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

/// Waits until all of `observers` show `of` as one of `states`; prints how long that took.
fn until_shown(
    cluster: &Cluster,
    observers: &[HostId],
    of: &HostId,
    states: &[HostState],
    promise: Duration,
) {
    let names: Vec<&str> = states.iter().map(|state| state.name()).collect();
    let what = format!("{of} is shown {} by {} nodes", names.join(" or "), observers.len());
    let mut last = BTreeSet::new();
    let took = cluster.until(&what, |cluster| {
        let is_late =
            |at: &&HostId| !cluster.state(at, of).is_some_and(|now| states.contains(&now));
        let late: BTreeSet<HostId> = observers.iter().filter(is_late).cloned().collect();
        let is_done = late.is_empty();
        if !is_done {
            last = late;
        }
        is_done
    });
    let last: Vec<String> = last.iter().map(HostId::to_string).collect();
    println!("{what} after {took:?} (promised: {promise:?}); last by {}", last.join(", "));
}

fn until_all_alive(cluster: &Cluster, promise: Duration) {
    let what = "every node sees every other alive";
    let took = cluster.until(what, |cluster| cluster.ids().all(|at| cluster.sees_all_alive(at)));
    println!("{what} after {took:?} (promised: {promise:?})");
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
    // Nothing was sent to a host that is known to be dead, and nobody doubts it.
    let kill = words(&["kill", "osaka/c/4000000"]);
    let (status, _, errors) = cluster.kumo_status(&host("tokyo/b"), &kill).unwrap();
    assert_eq!(status.code(), Some(1), "{errors}");
    assert!(errors.contains("it was not asked") && !errors.contains("not known"), "{errors}");

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
    if !has_loss_for_tests() {
        return;
    }
    cluster.lose(&gone, Way::Out, 100).unwrap();
    until_shown(&cluster, &observers, &gone, DEAD, FROZEN_MAX);
    cluster.heal(&gone).unwrap();
    until_all_alive(&cluster, CUT_MAX);
}

/// Asks nodes the whole time whether they show anybody dead or cut off who is neither.
struct Watch {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<String>>>,
    pace: Pace,
}

impl Watch {
    fn start(cluster: &Cluster, observers: &[HostId], gone: &HostId) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let watch = |at: &HostId| {
            let (at, gone, stop) = (at.clone(), gone.clone(), Arc::clone(&stop));
            let socket = cluster.socket(&at).unwrap();
            std::thread::spawn(move || {
                let mut wrong = BTreeSet::new();
                while !stop.load(Ordering::Relaxed) {
                    let wait = Duration::from_secs(10);
                    let Ok(answer) = kumo_testbed::request(&socket, "GET", "/v2/hosts", "", wait)
                    else {
                        wrong.insert(format!("{at} does not answer"));
                        break;
                    };
                    let view: View = serde_json::from_slice(&answer.body).unwrap();
                    wrong.extend(not_alive(&at, &view, &gone));
                    // Not to wait for something, but to leave the machine to the nodes.
                    std::thread::sleep(Duration::from_millis(1));
                }
                wrong.into_iter().collect()
            })
        };
        let threads = observers.iter().map(watch).collect();
        Watch { stop, threads, pace: Pace::watch() }
    }

    /// What nobody should have been shown as; `None` when that says nothing.
    fn end(self) -> Option<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        let wrong = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        self.pace.can_judge().then_some(wrong)
    }
}

/// Who but `gone` is not alive in a view.
fn not_alive(at: &HostId, view: &View, gone: &HostId) -> Vec<String> {
    let others = view.hosts.iter().filter(|host| host.id != *gone);
    let wrong = others.filter(|host| host.state != HostState::Alive);
    wrong.map(|host| format!("{at} shows {} {}", host.id, host.state.name())).collect()
}

/// With whom a node has links.
fn peers(cluster: &Cluster, at: &HostId) -> Vec<String> {
    let links: Value = cluster.get_json(at, "/v2/links").unwrap();
    let links = links["links"].as_array().unwrap();
    let peer =
        |link: &Value| format!("{}/{}", text(&link["peer"]["dc"]), text(&link["peer"]["host"]));
    links.iter().map(peer).collect()
}

/// Does something until it can be judged; it returns what was wrong, or `None` when that says nothing.
fn judged(mut once: impl FnMut() -> Option<Vec<String>>) {
    match (0..TRIES_MAX).find_map(|_| once()) {
        Some(wrong) => assert_eq!(wrong, Vec::<String>::new()),
        None => println!("not judged: this machine is too busy"),
    }
}

#[test]
fn a_killed_gateway_kills_nobody_else() {
    let Some(mut cluster) = cluster(2, 4, 2) else { return };
    let gone = host("osaka/a");
    let observers = others(&cluster, &[&gone]);
    judged(|| {
        let watch = Watch::start(&cluster, &observers, &gone);
        cluster.kill(&gone).unwrap();
        until_shown(&cluster, &observers, &gone, DEAD, KILLED_MAX);
        // Its hosts have moved to the other gateway when that has a link with each.
        cluster.until("its hosts have moved to the other gateway", |cluster| {
            let peers = peers(cluster, &host("osaka/b"));
            ["osaka/c", "osaka/d"].iter().all(|member| peers.iter().any(|peer| peer == member))
        });
        let wrong = watch.end();
        // Who asks through the other gateway gets every living host.
        let target = "/v2/all/proc?columns=pid&limit=1&wait_ms=10000";
        let answer: Value = cluster.get_json(&host("tokyo/c"), target).unwrap();
        assert_eq!(answer["hosts"]["answered"], 7, "{answer}");
        assert_eq!(answer["hosts"]["missing"][0]["host"], "a", "{answer}");

        cluster.up(&gone).unwrap();
        until_all_alive(&cluster, CUT_MAX);
        wrong
    });
}

#[test]
fn gateways_that_joined_before_any_of_them_ran_need_no_first_one() {
    // All but the first gateway join with one token before they are started: they are told of the
    // first, not of each other.
    let Some(mut cluster) = cluster(1, 5, 3) else { return };
    let gone = host("tokyo/a");
    let (second, third) = (host("tokyo/b"), host("tokyo/c"));
    cluster.until("all gateways are linked with each other", |cluster| {
        peers(cluster, &second).contains(&third.to_string())
    });
    cluster.kill(&gone).unwrap();
    let observers = others(&cluster, &[&gone]);
    until_shown(&cluster, &observers, &gone, DEAD, KILLED_MAX);
    let sees_others = |cluster: &Cluster, at: &HostId| {
        let alive = |of| cluster.state(at, of) == Some(HostState::Alive);
        observers.iter().all(alive)
    };
    cluster.until("the others see each other alive", |cluster| {
        observers.iter().all(|at| sees_others(cluster, at))
    });
    for at in &observers {
        let target = "/v2/all/proc?columns=pid&limit=1&wait_ms=10000";
        let answer: Value = cluster.get_json(at, target).unwrap();
        assert_eq!(answer["hosts"]["answered"], 4, "at {at}: {answer}");
    }
}

#[test]
fn a_restarted_node_shows_nobody_dead_who_lives() {
    let Some(mut cluster) = cluster(2, 3, 1) else { return };
    for restarted in ["osaka/b", "osaka/a"].map(host) {
        judged(|| {
            cluster.kill(&restarted).unwrap();
            let pace = Pace::watch();
            cluster.up(&restarted).unwrap();
            let mut wrong = BTreeSet::new();
            cluster.until("the restarted node sees all alive", |cluster| {
                let Ok(view) = cluster.view(&restarted) else { return false };
                // Before it has found a gateway, it says that it is cut off.
                let dead = view.hosts.iter().filter(|host| host.state == HostState::Dead);
                wrong.extend(dead.map(|host| format!("{restarted} shows {} dead", host.id)));
                cluster.ids().all(|id| view.state(id) == Some(HostState::Alive))
            });
            let can_judge = pace.can_judge();
            until_all_alive(&cluster, CUT_MAX);
            can_judge.then(|| wrong.into_iter().collect())
        });
    }
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
    // What is decided on either side is known on both after they meet again: each evicts a host.
    let evicted = ["tokyo/c", "osaka/c"].map(host);
    for (gateway, gone) in ["tokyo/a", "osaka/a"].iter().zip(&evicted) {
        cluster.kumo(&host(gateway), &words(&["evict", &gone.to_string()])).unwrap();
    }
    cluster.heal_dc(&osaka).unwrap();
    let rest = others(&cluster, &evicted.each_ref());
    let what = "all others see each other alive, and neither of the evicted ones";
    let took = cluster.until(what, |cluster| {
        rest.iter().all(|at| {
            cluster.view(at).is_ok_and(|view| {
                let mut alive = rest.iter().map(|of| view.state(of));
                let mut gone = evicted.iter().map(|of| view.state(of));
                alive.all(|state| state == Some(HostState::Alive)) && gone.all(|it| it.is_none())
            })
        })
    });
    println!("{what} after {took:?} (promised: {CUT_MAX:?})");
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
    let log = cluster.dir(&gone).unwrap().join("log");
    let before = std::fs::read(&log).unwrap().len();
    cluster.up(&gone).unwrap();
    cluster.until("it says that it is refused, and is cut off", |cluster| {
        let log = std::fs::read(&log).unwrap();
        let since = String::from_utf8_lossy(log.get(before..).unwrap_or_default());
        since.contains("evicted") && cluster.state(&gone, &gateway) == Some(HostState::CutOff)
    });
    assert!(out(&cluster), "{}", cluster.views());
    let (status, _, errors) = cluster.kumo_status(&gone, &words(&["hosts"])).unwrap();
    assert_eq!(status.code(), Some(0), "{errors}");
    assert!(errors.contains("cannot reach the gateway tokyo/a"), "{errors}");
    assert!(errors.contains("evicted"), "{errors}");
}
