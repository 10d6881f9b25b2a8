//! Rights through the nodes of a cluster: who asks one node is who he is for all of them.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use kumo_fabric::identity::{Gateway, Identity};
use kumo_fabric::pki::Authority;
use kumo_node::{AUDIT_FILE, FABRIC_DIR, Node};
use serde_json::{Value, json};
use support::{WAIT_MAX, ask, config, get, node, tcp, unix};

const WAIT: &str = "wait_ms=20000";

const SECRET: &str = "hunter2-4712";

/// A process with a secret on its command line; killed and reaped on drop.
struct Sleeper(Child);

impl Sleeper {
    fn spawn() -> Sleeper {
        // It waits for its standard input, which we hold.
        let mut command = Command::new("sh");
        command.args(["-c", "read line", "app", &format!("--token={SECRET}")]);
        let child = command.stdin(Stdio::piped()).spawn().unwrap();
        let sleeper = Sleeper(child);
        let began = Instant::now();
        let line = || std::fs::read(format!("/proc/{}/cmdline", sleeper.pid())).unwrap();
        while !line().starts_with(b"sh\0-c\0") {
            assert!(began.elapsed() < WAIT_MAX, "it does not begin");
            std::thread::yield_now();
        }
        sleeper
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn token(node: &Node, body: &Value) -> String {
    let made = ask(unix(node), "POST", "/v2/rights/tokens", "", &body.to_string());
    assert_eq!(made.status, 200, "{}", made.body);
    format!("authorization: Bearer {}\r\n", made.json()["token"].as_str().unwrap())
}

/// Two hosts of a cluster, each its own gateway.
fn two(dir: &std::path::Path) -> [Node; 2] {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let authority = Authority::create(&"acme".parse().unwrap(), now_ms).unwrap();
    let ids: [HostId; 2] = ["osaka/a", "tokyo/b"].map(|name| name.parse().unwrap());
    let gateways = ids.clone().map(|host| {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Gateway { host, addresses: vec![free.to_string()] }
    });
    let start = |own: usize| {
        let mut identity = Identity::issue(&authority, &ids[own], Role::Gateway, now_ms).unwrap();
        identity.advertise.clone_from(&gateways[own].addresses);
        identity.listen = Some(identity.advertise[0].parse().unwrap());
        identity.gateways = vec![gateways[1 - own].clone()];
        let dir = dir.join(own.to_string());
        identity.save(&dir.join("state").join(FABRIC_DIR), Some(&authority)).unwrap();
        Node::start(&config(&dir)).unwrap()
    };
    let nodes = [start(0), start(1)];
    for node in &nodes {
        let began = Instant::now();
        let is_alive = |host: &Value| host["state"] == "alive" && !host["card"].is_null();
        loop {
            let hosts = get(node, "/v2/hosts");
            if hosts["hosts"].as_array().unwrap().iter().filter(|host| is_alive(host)).count() == 2
            {
                break;
            }
            assert!(began.elapsed() < WAIT_MAX, "they do not see each other: {hosts:#}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    nodes
}

#[test]
fn another_host_shows_what_who_asks_may_see() {
    let dir = tempfile::tempdir().unwrap();
    let [near, far] = two(dir.path());
    let sleeper = Sleeper::spawn();
    let pid = sleeper.pid();
    let view = token(&near, &json!({ "name": "view", "ttl_s": 600 }));
    let lines =
        token(&near, &json!({ "name": "lines", "scopes": ["command-line"], "ttl_s": null }));
    let operate = token(&near, &json!({ "name": "operate", "role": "operate", "ttl_s": 600 }));
    // It is good on the other host as soon as that has heard of it.
    let began = Instant::now();
    while ask(tcp(&far), "GET", "/v2/rights", &operate, "").status != 200 {
        assert!(began.elapsed() < WAIT_MAX, "the token does not come to the other host");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }

    let ways = [
        format!("/v2/all/proc?columns=cmdline,argv&filter=pid%3D%3D{pid}&{WAIT}"),
        format!("/v2/all/proc?columns=cmdline,count()&group=cmdline&filter=pid%3D%3D{pid}&{WAIT}"),
        format!("/v2/all/proc/{pid}?{WAIT}"),
        format!("/v2/hosts/tokyo/b/proc/{pid}?{WAIT}"),
        format!("/v2/hosts/tokyo/b/proc?columns=cmdline&filter=pid%3D%3D{pid}&{WAIT}"),
    ];
    for way in &ways {
        for token in ["", &view, &operate] {
            let reply = ask(tcp(&near), "GET", way, token, "");
            assert_eq!(reply.status, 200, "{}", reply.body);
            assert!(!reply.body.contains(SECRET), "for {way} with {token:?}: {}", reply.body);
            assert!(reply.body.contains("--token=*****"), "for {way}: {}", reply.body);
        }
        let reply = ask(tcp(&near), "GET", way, &lines, "");
        assert!(reply.body.contains(SECRET), "for {way}: {}", reply.body);
        let root = ask(unix(&near), "GET", way, "", "");
        assert!(root.body.contains(SECRET), "for {way}: {}", root.body);
        let less = ask(unix(&near), "GET", way, "kumo-redact: secrets\r\n", "");
        assert!(!less.body.contains(SECRET), "for {way}: {}", less.body);
    }
    let guess = format!(
        "/v2/all/proc?columns=pid&filter=pid%3D%3D{pid}%26%26cmdline.contains(%27{SECRET}%27)&{WAIT}"
    );
    assert_eq!(ask(tcp(&near), "GET", &guess, &view, "").json()["matched"], 0);
    assert_eq!(ask(tcp(&near), "GET", &guess, &lines, "").json()["matched"], 2, "on two hosts");

    // A signal to the other host: its node looks at who asks, too.
    let target = format!("/v2/hosts/tokyo/b/proc/{pid}/signal?{WAIT}");
    let kill = r#"{"signal":"KILL"}"#;
    assert_eq!(ask(tcp(&near), "POST", &target, "", kill).status, 401);
    assert_eq!(ask(tcp(&near), "POST", &target, &view, kill).status, 403);
    let sent = ask(tcp(&near), "POST", &target, &operate, kill);
    assert_eq!((sent.status, &sent.json()["sent"]), (200, &json!(true)), "{}", sent.body);
    let audited = |host: &str| -> Vec<Value> {
        let path = dir.path().join(host).join("state").join(AUDIT_FILE);
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let last = audited("1").pop().unwrap();
    assert_eq!((&last["who"], &last["via"]), (&json!("token `operate`"), &json!("fabric")));
    assert!(last["did"].as_str().unwrap().starts_with("sent KILL to process"), "{last}");
    let near_said: Vec<_> = audited("0").iter().map(|line| line["status"].clone()).collect();
    assert_eq!(near_said, [200, 200, 200, 401, 403, 200]);

    // Taken back here, it is none there.
    let gone = ask(unix(&near), "DELETE", "/v2/rights/tokens/operate", "", "");
    assert_eq!(gone.json()["removed"], true);
    assert_eq!(ask(tcp(&near), "GET", "/v2/rights", &operate, "").status, 401);
    let began = Instant::now();
    while ask(tcp(&far), "GET", "/v2/rights", &operate, "").status != 401 {
        assert!(began.elapsed() < WAIT_MAX, "the other host still takes it");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn tokens_of_a_node_without_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let own = get(&node, "/v2/rights");
    assert_eq!((&own["role"], &own["command_lines"]), (&json!("admin"), &json!("whole")));
    let over_tcp = ask(tcp(&node), "GET", "/v2/rights", "", "").json();
    assert_eq!((&over_tcp["role"], &over_tcp["who"]), (&json!("view"), &json!("nobody")));

    let admin = token(&node, &json!({ "name": "admin", "role": "admin", "ttl_s": 600 }));
    let manage = token(&node, &json!({ "name": "m", "scopes": ["manage"], "ttl_s": 600 }));
    let list = ask(tcp(&node), "GET", "/v2/rights/tokens", &manage, "").json();
    let names: Vec<_> = list["tokens"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["admin", "m"]);
    assert!(!list.to_string().contains("hash"), "{list}");
    let cases = [
        ("", r#"{"name":"x","ttl_s":1}"#, 401),
        (&manage, r#"{"name":"x","ttl_s":60}"#, 200),
        (&manage, r#"{"name":"x2","role":"operate","ttl_s":60}"#, 403),
        (&admin, r#"{"name":"x","ttl_s":60}"#, 409),
        (&admin, r#"{"name":"x","ttl_s":60,"replace":true}"#, 200),
        (&admin, r#"{"name":"X\u001b","ttl_s":60}"#, 400),
        (&admin, r#"{"name":"y","role":"king","ttl_s":60}"#, 400),
        (&admin, r#"{"name":"y","scopes":["fly"],"ttl_s":60}"#, 400),
        (&admin, r#"{"name":"y","ttl_s":0}"#, 400),
        (&admin, r#"{"name":"y","ttl_s":60,"more":1}"#, 400),
    ];
    for (who, body, want) in cases {
        let reply = ask(tcp(&node), "POST", "/v2/rights/tokens", who, body);
        assert_eq!(reply.status, want, "for {body}: {}", reply.body);
    }
    // It lives on in a file that is the node's alone.
    node.stop();
    let node = support::node(dir.path());
    assert_eq!(ask(tcp(&node), "GET", "/v2/rights", &admin, "").json()["role"], "admin");
    // Through an address nobody changes what the cluster is without the right.
    for (target, body) in [("/v2/cluster/reopen", ""), ("/v2/cluster/tokens", "{}")] {
        assert_eq!(ask(tcp(&node), "POST", target, "", body).status, 401, "for {target}");
    }
    assert_eq!(
        ask(tcp(&node), "POST", "/v2/call/a/b", &manage, "").status,
        403,
        "no right to call"
    );
}
