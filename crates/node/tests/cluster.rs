//! Nodes of a cluster in one process, over real TLS on loopback: two data centres with a gateway each,
//! and a member.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use kumo_fabric::identity::{Gateway, Identity};
use kumo_fabric::pki::Authority;
use kumo_node::{FABRIC_DIR, Node, NodeConfig, StartError};
use serde_json::{Value, json};
use support::{WAIT_MAX, ask, config, get, tcp, unix};

/// Long enough for hosts that live, however busy this machine is.
const WAIT: &str = "wait_ms=20000";

struct Cluster {
    dir: tempfile::TempDir,
    authority: Authority,
    gateways: Vec<Gateway>,
}

impl Cluster {
    fn new() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&"acme".parse().unwrap(), now_ms()).unwrap();
        Cluster { dir, authority, gateways: Vec::new() }
    }

    fn dir(&self, host: &HostId) -> PathBuf {
        let dir: &Path = self.dir.path();
        dir.join(host.to_string().replace('/', "-"))
    }

    /// Writes who `host` is, as joining does.
    fn certify(&self, host: &HostId, role: Role, label: &str) -> PathBuf {
        let mut identity = Identity::issue(&self.authority, host, role, now_ms()).unwrap();
        let own = self.gateways.iter().find(|gateway| gateway.host == *host);
        identity.advertise = own.map(|own| own.addresses.clone()).unwrap_or_default();
        identity.listen = identity.advertise.first().map(|address| address.parse().unwrap());
        identity.gateways.clone_from(&self.gateways);
        identity.gateways.retain(|gateway| gateway.host != *host);
        identity.labels = BTreeMap::from([("rack".to_owned(), label.to_owned())]);
        let dir = self.dir(host);
        let authority = (role == Role::Gateway).then_some(&self.authority);
        identity.save(&dir.join("state").join(FABRIC_DIR), authority).unwrap();
        dir
    }

    /// Names a gateway, so that others know where it will be.
    fn plan_gateway(&mut self, host: &HostId) {
        let addresses = vec![own_address()];
        self.gateways.push(Gateway { host: host.clone(), addresses });
    }
}

/// Where a gateway can listen: an address of loopback that this process alone uses, so that nobody takes
/// the port between now and then, or after the gateway is gone. Numbers of processes have 22 bits.
fn own_address() -> String {
    static PORT: AtomicU16 = AtomicU16::new(7081);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{middle}.{low}:{port}", 128 | high)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn id(name: &str) -> HostId {
    name.parse().unwrap()
}

/// Waits until a document is as wanted; fails with the last one.
fn until(node: &Node, target: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let document = get(node, target);
        if holds(&document) {
            return document;
        }
        assert!(began.elapsed() < WAIT_MAX, "not within {WAIT_MAX:?}: {what}; {document:#}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn states(hosts: &Value) -> Vec<String> {
    let one = |host: &Value| {
        let text = |name: &str| host[name].as_str().unwrap().to_owned();
        format!("{}/{} {}", text("dc"), text("host"), text("state"))
    };
    hosts["hosts"].as_array().unwrap().iter().map(one).collect()
}

fn names(rows: &Value) -> Vec<String> {
    let name =
        |row: &Value| format!("{}/{}", row["dc"].as_str().unwrap(), row["host"].as_str().unwrap());
    rows.as_array().unwrap().iter().map(name).collect()
}

#[test]
fn hosts_of_a_cluster_answer_as_one() {
    let mut cluster = Cluster::new();
    let all = ["osaka/gw", "tokyo/a", "tokyo/gw"].map(id);
    let [osaka, member, tokyo] = &all;
    cluster.plan_gateway(osaka);
    cluster.plan_gateway(tokyo);
    let start = |host: &HostId, role, label| {
        Node::start(&config(&cluster.certify(host, role, label))).unwrap()
    };
    let nodes = [
        start(osaka, Role::Gateway, "1"),
        start(member, Role::Member, "3"),
        start(tokyo, Role::Gateway, "2"),
    ];
    for (node, id) in nodes.iter().zip(&all) {
        assert_eq!((node.id(), node.cluster().unwrap().to_string()), (id.clone(), "acme".into()));
        let alive = ["osaka/gw alive", "tokyo/a alive", "tokyo/gw alive"];
        until(node, "/v2/hosts", "all see all", |hosts| states(hosts) == alive);
        until(node, "/v2/hosts", "all have cards", |hosts| {
            hosts["hosts"].as_array().unwrap().iter().all(|host| !host["card"].is_null())
        });
    }
    let own = std::process::id();
    let filter = format!("filter=pid%3D%3D{own}");
    for node in &nodes {
        // All of them are this process.
        for more in ["", "&sort=-pid", "&sort=-host", "&sort=-rss&limit=3"] {
            let rows = get(node, &format!("/v2/all/proc?columns=pid&{filter}{more}&{WAIT}"));
            let mut from = names(&rows["rows"]);
            if more == "&sort=-host" {
                assert_eq!(from, ["osaka/gw", "tokyo/gw", "tokyo/a"]);
            }
            from.sort();
            assert_eq!(from, ["osaka/gw", "tokyo/a", "tokyo/gw"], "{rows:#}");
            assert_eq!((&rows["hosts"]["answered"], &rows["matched"]), (&json!(3), &json!(3)));
            let row = &rows["rows"][0];
            assert_eq!(row.as_object().unwrap().len(), 3, "{row}");
        }
        let groups = get(
            node,
            &format!("/v2/all/proc?columns=dc,count()&group=dc&sort=-count()&{filter}&{WAIT}"),
        );
        let want = json!([{ "dc": "tokyo", "count()": 2 }, { "dc": "osaka", "count()": 1 }]);
        assert_eq!(groups["rows"], want);
        let target = format!("/v2/all/proc?columns=pid&{filter}&{WAIT}");
        let lines = ask(unix(node), "GET", &target, "accept: application/x-ndjson\r\n", "");
        assert_eq!((lines.status, lines.body.lines().count()), (200, 4), "{}", lines.body);
        let some = get(node, &format!("/v2/all/host?where=%27rack%3D3%27%20in%20labels&{WAIT}"));
        assert_eq!(names(&some["answers"]), ["tokyo/a"]);
        let one = get(node, &format!("/v2/hosts/tokyo/a/proc/{own}?columns=host,pid&{WAIT}"));
        assert_eq!(one, json!({ "host": "a", "pid": own }));
        let links = get(node, &format!("/v2/all/links?{WAIT}"));
        assert_eq!(names(&links["answers"]).len(), 3);
    }

    // A signal to a process of another host, which is this one, too.
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let target = format!("/v2/hosts/tokyo/a/proc/{}/signal?{WAIT}", child.id());
    let signal = r#"{"signal":"KILL"}"#;
    assert_eq!(ask(tcp(&nodes[0]), "POST", &target, "", signal).status, 401);
    assert!(child.try_wait().unwrap().is_none(), "nothing was sent");
    let sent = ask(unix(&nodes[0]), "POST", &target, "", signal);
    assert_eq!((sent.status, &sent.json()["sent"]), (200, &json!(true)), "{}", sent.body);
    assert!(!child.wait().unwrap().success());

    let body = r#"{"dc":"osaka","ttl_s":60,"uses":2}"#;
    let token = ask(unix(&nodes[2]), "POST", "/v2/cluster/tokens", "", body);
    let token = token.json();
    let parsed: kumo_fabric::token::Token = token["token"].as_str().unwrap().parse().unwrap();
    assert_eq!(parsed.dc.unwrap().as_str(), "osaka");
    assert!(token["expires"].as_str().unwrap().ends_with('Z'));
    let refused = ask(unix(&nodes[2]), "POST", "/v2/cluster/tokens", "", r#"{"ttl_s":0,"uses":2}"#);
    assert_eq!(refused.status, 400, "{}", refused.body);

    // Who stops says good-bye, and is asked no more.
    let [gateway, member, tokyo] = nodes;
    member.stop();
    let left = ["osaka/gw alive", "tokyo/a left", "tokyo/gw alive"];
    until(&gateway, "/v2/hosts", "it has left", |hosts| states(hosts) == left);
    let rest = get(&gateway, &format!("/v2/all/host?{WAIT}"));
    assert_eq!(names(&rest["answers"]), ["osaka/gw", "tokyo/gw"]);
    tokyo.stop();
    gateway.stop();
}

#[test]
fn a_certificate_decides_what_a_node_is_called() {
    let mut cluster = Cluster::new();
    let host = id("tokyo/gw");
    cluster.plan_gateway(&host);
    let dir = cluster.certify(&host, Role::Gateway, "1");
    let wrong = NodeConfig { host: Some("other".to_owned()), ..config(&dir) };
    let error = Node::start(&wrong).expect_err("it is called otherwise");
    assert!(matches!(error, StartError::Name(_)), "{error:?}");
    assert!(error.to_string().contains("tokyo/gw"), "{error}");
    // Twice in one process: nothing of the first is left.
    for _ in 0..2 {
        let right = NodeConfig { dc: Some("tokyo".to_owned()), ..config(&dir) };
        let node = Node::start(&right).unwrap();
        assert_eq!(node.id(), host);
        let rows = get(&node, &format!("/v2/all/proc?columns=pid&limit=1&{WAIT}"));
        assert_eq!(names(&rows["rows"]), ["tokyo/gw"]);
        node.stop();
    }
}
