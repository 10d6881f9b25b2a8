//! What a node answers for many hosts, over its socket and its address: a node without a cluster is a
//! cluster of one.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use kumo_node::{Node, NodeConfig, Waited};
use serde_json::{Value, json};
use support::{WAIT_MAX, ask, get, node, tcp, unix};

/// What does not change between two questions.
const STEADY: &str = "pid,ppid,user,nice,comm,argv";

fn own_filter() -> String {
    format!("pid%3D%3D{}%20%7C%7C%20pid%3D%3D1", std::process::id())
}

#[test]
fn one_of_one_answers_as_itself() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    for more in ["", "&sort=-pid", "&sort=nice,-ppid&limit=1", "&limit=1"] {
        let query = format!("filter={}{more}", own_filter());
        let one = get(&node, &format!("/v2/proc?columns=dc,host,{STEADY}&{query}"));
        let all = get(&node, &format!("/v2/all/proc?columns={STEADY}&{query}"));
        assert_eq!(all["rows"], one["rows"], "for {query}");
        assert_eq!(all["columns"], one["columns"]);
        assert_eq!(all["matched"], one["matched"]);
        assert_eq!(all["rows"][0]["dc"], "tokyo");
        let hosts = &all["hosts"];
        assert_eq!((&hosts["asked"], &hosts["answered"]), (&json!(1), &json!(1)));
        assert_eq!(hosts["missing"], json!([]));
        let by = &hosts["answered_by"][0];
        assert_eq!(by["host"], "web-1");
        assert_eq!(by["boot_id"], one["boot_id"]);
        assert!(all["as_of"] == by["as_of"] && by["as_of"].is_string());
        assert_eq!(all["processes"], by["processes"]);
    }
    for query in ["group=user&columns=count(),sum(nice)&sort=-count()", "columns=count()"] {
        let query = format!("{query}&filter={}", own_filter());
        let one = get(&node, &format!("/v2/proc?{query}"));
        let all = get(&node, &format!("/v2/all/proc?{query}"));
        assert_eq!(all["rows"], one["rows"], "for {query}");
        assert_eq!(all["columns"], one["columns"]);
    }
    let default = get(&node, "/v2/all/proc?limit=1&max_age_ms=1000");
    let columns: Vec<_> = default["columns"].as_array().unwrap().iter().take(3).collect();
    assert_eq!(columns, ["dc", "host", "pid"]);
    assert_eq!(default["rows"][0].as_object().unwrap().len(), 15);
}

#[test]
fn processes_that_ended_are_asked_of_many_by_the_same_path() {
    let dir = tempfile::tempdir().unwrap();
    let (dc, host) = (Some("tokyo".to_owned()), Some("web-1".to_owned()));
    let events = k2i::EventChoice::Auto;
    let node =
        Node::start(&NodeConfig { dc, host, events, ..support::config(dir.path()) }).unwrap();
    let target = |all: &str, pid: u32| {
        format!("/v2{all}/proc?ended=1&columns=dc,host,pid,exit_code&filter=pid%3D%3D{pid}")
    };
    if get(&node, "/v2/host")["events"]["source"].is_null() {
        let reply = ask(unix(&node), "GET", &target("/all", 1), "", "");
        assert!(reply.body.contains("does not know which processes have ended"), "{}", reply.body);
        return eprintln!("skipped without the right to take events");
    }
    let mut child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let began = Instant::now();
    let one = loop {
        let one = get(&node, &target("", pid));
        if one["rows"][0].is_object() {
            break one;
        }
        assert!(began.elapsed() < WAIT_MAX, "its end is not told");
    };
    assert_eq!(one["rows"][0]["exit_code"], 3);
    let all = get(&node, &target("/all", pid));
    assert_eq!((&all["rows"], &all["columns"]), (&one["rows"], &one["columns"]));
    let grouped = get(&node, "/v2/all/proc?ended=1&group=exit_code&limit=3");
    assert_eq!(grouped["columns"], json!(["exit_code", "count()"]));
    // A stream has no end, and what is gathered must have one.
    let reply = ask(unix(&node), "GET", "/v2/hosts/tokyo/web-1/events", "", "");
    assert_eq!(reply.status, 406, "{}", reply.body);
}

#[test]
fn lines_end_with_who_is_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    for more in ["", "&sort=pid", "&limit=1"] {
        let target = format!("/v2/all/proc?columns=pid&filter={}{more}", own_filter());
        let reply = ask(tcp(&node), "GET", &target, "accept: application/x-ndjson\r\n", "");
        assert_eq!((reply.status, reply.kind.as_str()), (200, "application/x-ndjson"));
        let lines: Vec<&str> = reply.body.lines().collect();
        let (last, rows) = lines.split_last().unwrap();
        assert!(!rows.is_empty(), "{}", reply.body);
        for row in rows {
            assert!(row.starts_with(r#"{"dc":"tokyo","host":"web-1","pid":"#), "{row}");
        }
        assert!(last.starts_with(r#"{"hosts":{"asked":1,"answered":1,"missing":[],"#), "{last}");
        serde_json::from_str::<Value>(last).unwrap();
    }
}

#[test]
fn documents_of_many_and_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let all = get(&node, "/v2/all/host");
    let answer = &all["answers"][0];
    assert_eq!((&answer["dc"], &answer["status"]), (&json!("tokyo"), &json!(200)));
    assert_eq!(answer["body"]["host"], "web-1");
    assert_eq!(all["hosts"]["answered"], 1);
    let nothing = get(&node, "/v2/all/nonsense?x=1");
    assert_eq!(nothing["answers"][0]["status"], 404);
    assert_eq!(nothing["answers"][0]["body"]["type"], "urn:kumo:problem:not-found");

    let pid = std::process::id();
    let one = get(&node, &format!("/v2/hosts/tokyo/web-1/proc/{pid}?columns=pid,host"));
    assert_eq!(one, json!({ "pid": pid, "host": "web-1" }));
    let table =
        get(&node, &format!("/v2/hosts/tokyo/web-1/proc?columns=pid&filter={}", own_filter()));
    assert!(table["rows"].as_array().unwrap().contains(&json!({ "pid": pid })));
    let wrong = ask(unix(&node), "GET", "/v2/hosts/tokyo/web-1/proc?x=1", "", "");
    assert_eq!((wrong.status, wrong.kind.as_str()), (400, "application/problem+json"));

    let hosts = get(&node, "/v2/hosts");
    assert_eq!(hosts["cluster"], Value::Null);
    assert_eq!((&hosts["dc"], &hosts["host"]), (&json!("tokyo"), &json!("web-1")));
    let host = &hosts["hosts"][0];
    assert_eq!((&host["state"], &host["host"]), (&json!("alive"), &json!("web-1")));
    assert!(host["card"]["cpus"].as_u64().unwrap() > 0);
    assert!(host["card"]["memory"].as_u64().unwrap() > 0);
    assert_eq!(get(&node, "/v2/links"), json!({ "links": [] }));
    assert_eq!(get(&node, "/v2/all/links")["answers"][0]["body"], json!({ "links": [] }));
}

#[test]
fn hosts_are_chosen_by_name_and_condition() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let cases: [(&str, usize); 5] = [
        ("dc=tokyo", 1),
        ("dc=osaka", 0),
        ("dc=osaka,tokyo&where=cpus%20%3E%200", 1),
        ("where=role%20%3D%3D%20%27member%27", 0),
        ("where=%27rack%3D3%27%20in%20labels", 0),
    ];
    for (scope, want) in cases {
        for what in ["proc?columns=pid&limit=1&", "host?"] {
            let all = get(&node, &format!("/v2/all/{what}{scope}&wait_ms=20000"));
            assert_eq!(all["hosts"]["asked"], want, "for {scope}");
            assert_eq!(all["hosts"]["answered"], want, "for {scope}");
            let said = all.get("rows").or(all.get("answers")).and_then(Value::as_array).unwrap();
            assert_eq!(said.len(), want, "for {what} with {scope}: who is not meant says nothing");
            let by = all["hosts"].get("answered_by").and_then(Value::as_array);
            assert!(by.is_none_or(|by| by.len() == want), "for {scope}: {all}");
        }
    }
}

#[test]
fn what_is_refused_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let cases = [
        ("GET", "/v2/all/proc?where=hots%3D%3D1", 400, "did you mean `host`?"),
        ("GET", "/v2/all/proc?dc=", 400, "is no data centre"),
        ("GET", "/v2/all/proc?wait_ms=1", 400, "from 10 to 60000"),
        ("GET", "/v2/all/proc?columns=nonsense", 400, "no column `nonsense`"),
        ("GET", "/v2/all/proc?dc=a&dc=b", 400, "stands twice"),
        ("GET", "/v2/all/proc?x=1", 400, "unknown parameter `x`"),
        ("GET", "/v2/all/proc?max_age_ms=x", 400, "max_age_ms"),
        ("GET", "/v2/hosts/tokyo/web-2/host", 404, "there is no host tokyo/web-2"),
        ("GET", "/v2/hosts/tokyo/..%2Fx/host", 400, "is no host"),
        ("POST", "/v2/hosts/tokyo/web-1/proc/x/signal", 400, "the body is not JSON"),
        ("POST", "/v2/cluster/tokens", 400, r#"the body is not {"ttl_s":3600,"uses":1}"#),
        ("POST", "/v2/all/proc", 405, "does not take POST"),
        ("GET", "/v2/cluster/reopen", 405, "does not take GET"),
    ];
    for (method, target, status, want) in cases {
        let reply = ask(unix(&node), method, target, "", "");
        assert_eq!(reply.status, status, "for {target}: {}", reply.body);
        assert_eq!(reply.kind, "application/problem+json", "for {target}");
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(want), "for {target}: {detail:?} does not say {want:?}");
    }
    for (target, body) in [
        ("/v2/cluster/tokens", r#"{"ttl_s":3600,"uses":1}"#),
        ("/v2/cluster/evictions", r#"{"dc":"tokyo","host":"a"}"#),
    ] {
        let reply = ask(unix(&node), "POST", target, "", body);
        assert_eq!(
            (reply.status, reply.json()["type"].as_str()),
            (409, Some("urn:kumo:problem:no-cluster"))
        );
        assert_eq!(ask(tcp(&node), "POST", target, "", body).status, 401);
    }
    // A page from elsewhere gets nothing of these routes, either.
    for more in ["origin: http://evil.example\r\n", "sec-fetch-site: cross-site\r\n"] {
        let reply = ask(tcp(&node), "GET", "/v2/all/proc", more, "");
        assert_eq!(reply.status, 403, "{}", reply.body);
    }
}

#[test]
fn changes_are_taken_on_the_socket_only() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let body = r#"{"signal":"KILL"}"#;
    let own = format!("/v2/proc/{}/signal", child.id());
    let one = format!("/v2/hosts/tokyo/web-1/proc/{}/signal", child.id());
    for target in [&own, &one, "/v2/cluster/reopen"] {
        let reply = ask(tcp(&node), "POST", target, "", body);
        assert_eq!(reply.status, 401, "for {target}: {}", reply.body);
        assert!(reply.body.contains("socket"), "for {target}: {}", reply.body);
    }
    assert!(child.try_wait().unwrap().is_none(), "nothing was sent");
    let wrong = format!("/v2/hosts/tokyo/web-1/proc/{}@5/signal", child.id());
    assert_eq!(ask(unix(&node), "POST", &wrong, "", body).status, 409);
    assert!(child.try_wait().unwrap().is_none(), "nothing was sent");

    let reply = ask(unix(&node), "POST", &one, "", body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!((&reply.json()["signal"], &reply.json()["sent"]), (&json!("KILL"), &json!(true)));
    assert!(!child.wait().unwrap().success());
    let reply = ask(unix(&node), "POST", &one, "", body);
    assert_eq!(reply.status, 404, "it is gone: {}", reply.body);
}

#[test]
fn a_node_reopens_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let first = node(dir.path());
    assert_eq!(first.wait(Duration::ZERO), Waited::Longest);
    // An open stream of events ends, and holds up nothing.
    let mut events = unix(&first);
    events.write_all(b"GET /v2/hosts/events HTTP/1.0\r\n\r\n").unwrap();
    let mut head = [0; 12];
    events.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.0 200");
    let reply = ask(unix(&first), "POST", "/v2/cluster/reopen", "", "");
    assert_eq!(reply.status, 202, "{}", reply.body);
    assert_eq!(first.wait(WAIT_MAX), Waited::Reopen);
    first.stop();
    let mut rest = Vec::new();
    events.read_to_end(&mut rest).unwrap();
    let second = node(dir.path());
    assert_eq!(get(&second, "/v2/all/host")["hosts"]["answered"], 1);
}
