//! One kernel parameter of many hosts, in waves: all get it or none, whoever dies meanwhile. Each host is
//! a network namespace with parameters of its own.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kumo_abi::HostId;
use kumo_testbed::cluster::Cluster;
use kumo_testbed::net::is_there_for_tests;
use kumo_testbed::request;
use serde_json::Value;

/// A parameter of a network namespace that no other process reads: 1 to 255, and 64 in a new one.
const TTL: &str = "net.ipv4.ip_default_ttl";

/// A cluster, or `None` with a message where none can be made.
fn cluster(dcs: usize, hosts: usize, gateways: usize) -> Option<Cluster> {
    if !is_there_for_tests() {
        return None;
    }
    Some(Cluster::for_test(dcs, hosts, gateways).unwrap_or_else(|error| panic!("{error}")))
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

/// The value of [`TTL`] on a host, by its node; nothing where that does not answer.
fn ttl(cluster: &Cluster, at: &HostId) -> Option<String> {
    let one: Value = cluster.get_json(at, &format!("/v2/sysctl/{TTL}")).ok()?;
    Some(one["value"].as_str()?.to_owned())
}

/// The values of all hosts whose nodes run.
fn ttls(cluster: &Cluster) -> Vec<String> {
    let up = cluster.ids().filter(|id| cluster.is_up(id));
    up.map(|id| ttl(cluster, id).unwrap()).collect()
}

/// What the journal of a host says of the last change; null where there is none.
fn last(cluster: &Cluster, at: &HostId) -> Value {
    let journal: Value = cluster.get_json(at, "/v2/sysctl-changes").unwrap();
    journal["entries"].as_array().unwrap().last().cloned().unwrap_or_default()
}

/// `kumo sysctl set` on a host: how it ended, and what it said.
fn set(cluster: &Cluster, at: &HostId, args: &[&str]) -> (Option<i32>, String) {
    let words =
        [&["sysctl", "set"], args].concat().iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let (status, out, errors) = cluster.kumo_status(at, &words).unwrap();
    (status.code(), format!("{out}{errors}"))
}

/// A change of all hosts that is under way, asked for by a client that is this value: whoever drops it
/// kills the client.
fn begin(cluster: &Cluster, at: &HostId, value: &str, parameters: &str) -> UnixStream {
    let mut client = UnixStream::connect(cluster.socket(at).unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let body = format!(r#"{{"value":"{value}"}}"#);
    let head = format!(
        "PUT /v2/all/sysctl/{TTL}?{parameters} HTTP/1.0\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    client.write_all(format!("{head}{body}").as_bytes()).unwrap();
    client
}

/// What the node says: its lines up to the one that is looked for, or all of them.
fn events(client: &mut BufReader<UnixStream>, until: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut events = Vec::new();
    let mut line = String::new();
    while client.read_line(&mut line).unwrap() > 0 {
        // The head of the answer is none.
        if let Ok(event) = serde_json::from_str::<Value>(&line) {
            events.push(event);
            if events.last().is_some_and(&until) {
                break;
            }
        }
        line.clear();
    }
    events
}

#[test]
fn all_hosts_get_it_in_waves_or_none() {
    let Some(mut cluster) = cluster(2, 3, 1) else { return };
    let leader = host("tokyo/b");
    assert_eq!(ttls(&cluster), ["64"; 6]);

    // All is well.
    let args = [
        "net.ipv4.ip_default_ttl=100",
        "--all",
        "--canary",
        "10%,50%",
        "--check",
        "value == '100' && uptime > 0.0",
    ];
    let more = ["--watch", "1s", "--wait", "5000"];
    let (code, said) = set(&cluster, &leader, &[&args[..], &more].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("wave 3 of 3") && said.contains("confirmed on 6 hosts"), "{said}");
    assert_eq!(ttls(&cluster), ["100"; 6], "{said}");
    let entries: Vec<Value> = cluster.ids().map(|id| last(&cluster, id)).collect();
    for entry in &entries {
        assert_eq!(
            (&entry["state"], &entry["id"]),
            (&"confirmed".into(), &entries[0]["id"]),
            "{entry}"
        );
        assert!(entry["who"].as_str().unwrap().contains("through tokyo/b"), "{entry}");
    }

    // A check that fails on one host only, in the last wave.
    let check = "host != 'b' || dc != 'tokyo'";
    let args = ["net.ipv4.ip_default_ttl=101", "--all", "--canary", "1", "--check", check];
    let (code, said) =
        set(&cluster, &leader, &[&args[..], &["--watch", "1s", "--wait", "5000"]].concat());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the check fails on tokyo/b"), "{said}");
    assert!(said.contains("taken back on all hosts"), "{said}");
    assert_eq!(ttls(&cluster), ["100"; 6], "{said}");

    // One host that would not: nothing is begun.
    let odd = host("osaka/c");
    let (code, said) = set(&cluster, &odd, &["net.ipv4.ip_default_ttl=102"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) =
        set(&cluster, &leader, &["net.ipv4.ip_default_ttl=103", "--all", "--if", "100"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("osaka/c would not") && said.contains("nothing was changed"), "{said}");
    let (code, said) =
        set(&cluster, &leader, &["net.ipv4.ip_default_ttl=103", "--all", "--dry-run"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("osaka/c  net.ipv4.ip_default_ttl  102 → 103"), "{said}");
    let get = ["sysctl", "get", TTL, "--all"].map(str::to_owned);
    let shown = cluster.kumo(&leader, &get).unwrap();
    assert!(shown.contains("102") && shown.contains("osaka/c"), "{shown}");

    // One other host, by the node that is asked: changed, and taken back before its time.
    let ask = |method: &str, target: &str, body: &str| -> (u16, Value) {
        let target = format!("/v2/hosts/osaka/c/{target}");
        let socket = cluster.socket(&leader).unwrap();
        let answer = request(&socket, method, &target, body, Duration::from_secs(10)).unwrap();
        (answer.status, serde_json::from_slice(&answer.body).unwrap())
    };
    let target = format!("sysctl/{TTL}?confirm_within=1h&wait_ms=5000");
    let (status, answer) = ask("PUT", &target, r#"{"value":"105","if_match":"102"}"#);
    assert_eq!((status, &answer["result"]), (200, &"pending".into()), "{answer}");
    assert_eq!(ask("GET", &format!("sysctl/{TTL}"), "").1["value"], "105");
    let (status, problem) = ask("PUT", &target, r#"{"value":"106"}"#);
    assert_eq!((status, &problem["type"]), (409, &"urn:kumo:problem:change-pending".into()));
    let id = answer["change"]["id"].as_str().unwrap();
    let (status, change) = ask("POST", &format!("sysctl-changes/{id}/rollback?wait_ms=5000"), "{}");
    assert_eq!((status, &change["state"]), (200, &"rolled-back".into()), "{change}");
    assert_eq!(ttl(&cluster, &odd).as_deref(), Some("102"));
    assert_eq!(ask("POST", &format!("sysctl-changes/{id}/eat"), "{}").0, 400);

    // Who is dead cannot have it, and that is said before anything is done; the others can.
    let gone = host("osaka/b");
    cluster.kill(&gone).unwrap();
    cluster.until("it is known to be dead", |cluster| {
        cluster
            .view(&leader)
            .is_ok_and(|view| view.state(&gone).is_some_and(|state| state.name() == "dead"))
    });
    let (code, said) = set(&cluster, &leader, &["net.ipv4.ip_default_ttl=104", "--all"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("osaka/b is meant and is not there"), "{said}");
    let args = ["net.ipv4.ip_default_ttl=104", "--where", "state == 'alive'", "--wait", "5000"];
    let (code, said) = set(&cluster, &leader, &args);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ttls(&cluster), ["104"; 5], "{said}");
}

#[test]
fn when_who_leads_it_dies_all_hosts_take_it_back() {
    let Some(mut cluster) = cluster(2, 2, 1) else { return };
    let (leader, canary) = (host("tokyo/b"), host("osaka/a"));
    // The node that leads it is killed between the waves.
    let client =
        begin(&cluster, &leader, "110", "canary=1&watch=8s&confirm_within=30s&wait_ms=4000");
    let began = Instant::now();
    cluster
        .until("the first host has it", |cluster| ttl(cluster, &canary).as_deref() == Some("110"));
    cluster.kill(&leader).unwrap();
    drop(client);
    assert_eq!(ttl(&cluster, &canary).as_deref(), Some("110"), "it has its time");
    cluster.until("it is taken back", |cluster| ttl(cluster, &canary).as_deref() == Some("64"));
    println!(
        "taken back {:?} after it was asked for (promised: 30 s after it was made)",
        began.elapsed()
    );
    assert_eq!(ttls(&cluster), ["64"; 3]);
    cluster.until("it is written down", |cluster| last(cluster, &canary)["state"] == "rolled-back");
    let entry = last(&cluster, &canary);
    assert_eq!(entry["ended_by"], "the host itself", "{entry}");
    cluster.up(&leader).unwrap();
    cluster.until("it is back", |cluster| cluster.ids().all(|at| cluster.sees_all_alive(at)));
    assert_eq!(ttls(&cluster), ["64"; 4]);
    assert_eq!(last(&cluster, &leader), Value::Null, "it was to be the last, and was not asked");

    // The client dies: nobody waits for the time to be over.
    let client =
        begin(&cluster, &leader, "111", "canary=1&watch=30s&confirm_within=10m&wait_ms=4000");
    cluster
        .until("the first host has it", |cluster| ttl(cluster, &canary).as_deref() == Some("111"));
    drop(client);
    cluster.until("it is taken back", |cluster| ttl(cluster, &canary).as_deref() == Some("64"));
    cluster.until("it is written down", |cluster| last(cluster, &canary)["state"] == "rolled-back");
    let entry = last(&cluster, &canary);
    assert!(entry["ended_by"].as_str().unwrap().contains("through tokyo/b"), "{entry}");
    assert_eq!(ttls(&cluster), ["64"; 4]);
}

#[test]
fn a_host_that_does_not_hear_the_confirmation_is_named_and_takes_it_back() {
    let Some(cluster) = cluster(2, 2, 1) else { return };
    let (leader, deaf) = (host("tokyo/b"), host("osaka/b"));
    let client = begin(&cluster, &leader, "120", "watch=2s&confirm_within=10s&wait_ms=1000");
    let mut client = BufReader::new(client);
    // When all have said that they have it, and are watched.
    let mut left = 4;
    while left > 0 {
        let some = events(&mut client, |event| event["event"] == "applied");
        assert_eq!(some.last().map(|it| &it["event"]), Some(&"applied".into()), "{some:?}");
        left -= 1;
    }
    cluster.freeze(&deaf).unwrap();
    let events = events(&mut client, |_| false);
    let end = events.last().unwrap();
    cluster.thaw(&deaf).unwrap();
    assert_eq!((&end["event"], &end["outcome"]), (&"end".into(), &"partial".into()), "{events:?}");
    for one in end["hosts"].as_array().unwrap() {
        let is_deaf = one["host"] == "b" && one["dc"] == "osaka";
        let state = if is_deaf { "unknown" } else { "confirmed" };
        assert_eq!(one["state"], state, "{end}");
    }
    assert!(end["why"].as_str().unwrap().contains("only 3 of 4"), "{end}");
    cluster
        .until("it takes it back itself", |cluster| ttl(cluster, &deaf).as_deref() == Some("64"));
    // And the others can be asked to do the same.
    let id = end["id"].as_str().unwrap();
    let back = ["sysctl", "rollback", id, "--all", "--wait", "5000"].map(str::to_owned);
    cluster
        .until("it is alive again", |cluster| cluster.ids().all(|at| cluster.sees_all_alive(at)));
    let said = cluster.kumo(&leader, &back).unwrap();
    assert_eq!(said.matches("rolled-back").count(), 4, "{said}");
    assert_eq!(ttls(&cluster), ["64"; 4], "{said}");
}
