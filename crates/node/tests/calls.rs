//! Calls between processes of one host, with a real node between them.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::io::{Read as _, Write as _};

use kumo_abi::call::{Cause, Status};
use kumo_node::Node;
use middlecon::CallError;
use programs::{Program, method, service, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{ask, get, node, unix};

/// Not a test by itself: what this binary does where another test runs it again.
#[test]
fn role() {
    programs::play();
}

fn run_dir(dir: &tempfile::TempDir) -> std::path::PathBuf {
    dir.path().join("run")
}

fn caller(dir: &tempfile::TempDir) -> middlecon::Node {
    middlecon::Node::connect(&run_dir(dir)).unwrap()
}

/// The instances that a node shows.
fn instances(node: &Node) -> Vec<Value> {
    get(node, "/v2/calls/services")["instances"].as_array().unwrap().clone()
}

fn status(result: Result<bytes::Bytes, CallError>) -> Status {
    result.map_or_else(|error| error.status(), |_| Status::Done)
}

#[test]
fn a_call_is_answered_and_the_death_of_its_callee_told() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let here = caller(&dir);
    let welcome = here.welcome().unwrap();
    assert_eq!((welcome.cluster, welcome.host.to_string()), (None, "tokyo/web-1".to_owned()));
    let kv = here.service(&service("kv"));
    let nobody = kv.call(&method("echo"), b"").unwrap_err();
    assert_eq!(nobody.status(), Status::NotExecuted(Cause::NoSuch));
    assert!(nobody.to_string().contains("nobody serves `kv`"), "{nobody}");

    let mut server = Program::start("serve kv", &run_dir(&dir));
    assert_eq!(kv.call(&method("echo"), b"hello").unwrap(), "hello");
    let shown = instances(&node);
    assert_eq!(shown[0]["service"], "kv");
    assert_eq!((&shown[0]["pid"], &shown[0]["state"]), (&json!(server.pid()), &json!("ready")));
    assert_eq!((&shown[0]["connections"], &shown[0]["in_flight"]), (&json!(1), &json!(0)));

    // Taken when it dies: nobody knows what it did.
    let hanging = std::thread::spawn(move || {
        let outcome = status(kv.call(&method("hang"), b""));
        (kv, outcome)
    });
    assert_eq!(server.line(), "hangs");
    server.kill();
    let (kv, outcome) = hanging.join().unwrap();
    assert_eq!(outcome, Status::Unknown(Cause::Died));
    let nobody = status(kv.call(&method("echo"), b""));
    assert_eq!(nobody, Status::NotExecuted(Cause::NoSuch));
    assert!(instances(&node).is_empty());
    until("nothing is left of it", || get(&node, "/v2/calls/services")["connections"] == json!(0));
}

#[test]
fn the_death_of_a_caller_is_told_to_its_callee() {
    let dir = tempfile::tempdir().unwrap();
    let _node = node(dir.path());
    let mut server = Program::start("serve kv", &run_dir(&dir));
    let mut caller = Program::start("call kv", &run_dir(&dir));
    caller.say("hang");
    assert_eq!(server.line(), "hangs");
    caller.kill();
    assert_eq!(server.line(), "over");
}

#[test]
fn who_stands_still_is_suspended_until_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let mut server = Program::start("serve kv", &run_dir(&dir));
    let here = caller(&dir);
    let kv = here.service(&service("kv"));
    kv.call(&method("echo"), b"").unwrap();
    // One that it had begun with, and one that it had not.
    let taken = std::thread::spawn({
        let kv = kv.clone();
        move || status(kv.call(&method("hang"), b""))
    });
    assert_eq!(server.line(), "hangs");
    server.signal(Signal::STOP);
    let not_taken = status(kv.call(&method("echo"), b""));
    assert_eq!(not_taken, Status::NotExecuted(Cause::Suspended));
    assert_eq!(taken.join().unwrap(), Status::Unknown(Cause::Suspended));
    assert_eq!(instances(&node)[0]["state"], "suspended");
    let refused = status(kv.call(&method("echo"), b""));
    assert_eq!(refused, Status::NotExecuted(Cause::Suspended));

    server.signal(Signal::CONT);
    assert_eq!(server.line(), "over", "it learns that nobody waits");
    until("it is ready again", || instances(&node)[0]["state"] == "ready");
    assert_eq!(kv.call(&method("echo"), b"again").unwrap(), "again");
}

#[test]
fn who_waits_for_whom_is_shown_and_a_trace_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let mut server = Program::start("serve kv", &run_dir(&dir));
    let mut waiting = Program::start("call kv", &run_dir(&dir));
    waiting.say("hang");
    assert_eq!(server.line(), "hangs");

    let blocked = get(&node, "/v2/calls/blocked");
    assert_eq!((&blocked["dc"], &blocked["unlisted"]), (&json!("tokyo"), &json!(0)));
    let edge = &blocked["edges"][0];
    assert_eq!(edge["caller"]["pid"], json!(waiting.pid()));
    assert_eq!(edge["caller"]["uid"], json!(rustix::process::getuid().as_raw()));
    let callee = &edge["callee"];
    assert_eq!((&callee["pid"], &callee["service"]), (&json!(server.pid()), &json!("kv")));
    assert_eq!((&callee["host"], &callee["suspended"]), (&json!("web-1"), &json!(false)));
    assert_eq!((&edge["method"], &edge["hop"]), (&json!("hang"), &json!(1)));
    assert_eq!((&edge["carrier"], &edge["parent"]), (&json!("ring"), &Value::Null));
    let shown = instances(&node);
    assert_eq!((&shown[0]["in_flight"], &shown[0]["instance"]), (&json!(1), &callee["instance"]));

    // The same for many hosts, and as a column of the process table.
    let all = get(&node, "/v2/all/calls/blocked");
    assert_eq!(all["answers"][0]["body"]["edges"][0]["root"], edge["root"]);
    let pid = waiting.pid();
    let rows = get(&node, &format!("/v2/all/proc?columns=pid,blocked_on&filter=pid%3D%3D{pid}"));
    assert_eq!(rows["rows"][0]["blocked_on"], "kv/hang on tokyo/web-1");
    let others = "blocked_on%20%21%3D%20null%20%26%26%20pid%20%21%3D%20";
    let rows = get(&node, &format!("/v2/proc?columns=pid,blocked_on&filter={others}{pid}"));
    assert_eq!(rows["rows"], json!([]));

    let root = edge["root"].as_str().unwrap();
    let trace = get(&node, &format!("/v2/calls/trace/{root}"));
    let span = &trace["spans"][0];
    assert_eq!((&span["outcome"], &span["side"]), (&json!("running"), &json!("caller")));
    server.kill();
    assert_eq!(waiting.line(), "unknown: DIED");
    let trace = get(&node, &format!("/v2/all/calls/trace/{root}"));
    let spans = trace["answers"][0]["body"]["spans"].as_array().unwrap().clone();
    assert_eq!(spans.len(), 1, "the callee is gone, and its page with it: {spans:?}");
    let span = &spans[0];
    assert_eq!((&span["outcome"], &span["cause"]), (&json!("unknown"), &json!("DIED")));
    assert_eq!((&span["service"], &span["method"]), (&json!("kv"), &json!("hang")));
    assert_eq!((&span["pid"], &span["hop"]), (&json!(pid), &json!(1)));
    assert_eq!(get(&node, "/v2/calls/blocked")["edges"], json!([]));
    let wrong = ask(unix(&node), "GET", "/v2/calls/trace/nonsense", "", "");
    assert_eq!((wrong.status, wrong.kind.as_str()), (400, "application/problem+json"));
}

#[test]
fn calls_go_on_while_their_node_starts_anew_and_it_learns_of_them_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = node(dir.path());
    let mut server = Program::start("serve kv", &run_dir(&dir));
    let mut waiting = Program::start("call kv", &run_dir(&dir));
    let here = caller(&dir);
    let kv = here.service(&service("kv"));
    kv.call(&method("echo"), b"").unwrap();
    waiting.say("hang");
    assert_eq!(server.line(), "hangs");
    let before = instances(&first).swap_remove(0);
    first.stop();
    // On a connection that is there, no node is needed.
    assert_eq!(kv.call(&method("echo"), b"alone").unwrap(), "alone");

    let second = node(dir.path());
    until("the programs are back", || {
        let shown = get(&second, "/v2/calls/services");
        shown["connections"] == json!(2) && shown["instances"][0]["connections"] == json!(2)
    });
    let after = instances(&second).swap_remove(0);
    for same in ["service", "instance", "incarnation", "pid"] {
        assert_eq!(after[same], before[same], "its {same}");
    }
    let edge = get(&second, "/v2/calls/blocked")["edges"][0].clone();
    assert_eq!(edge["caller"]["pid"], json!(waiting.pid()));
    assert_eq!(edge["callee"]["pid"], json!(server.pid()));
    assert_eq!(kv.call(&method("echo"), b"still").unwrap(), "still");
    server.kill();
    assert_eq!(waiting.line(), "unknown: DIED");
    assert_eq!(status(kv.call(&method("echo"), b"")), Status::NotExecuted(Cause::NoSuch));
}

#[test]
fn a_call_over_http_has_its_outcome_in_its_headers() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let sent = |target: &str, length: usize, more: &str, body: &str| {
        let mut stream = unix(&node);
        let head = format!(
            "POST {target} HTTP/1.0\r\nhost: localhost\r\ncontent-length: {length}\r\n{more}\r\n{body}"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let raw = |target: &str, more: &str, body: &str| sent(target, body.len(), more, body);
    let nobody = raw("/v2/call/kv/echo", "", "x");
    assert!(nobody.starts_with("HTTP/1.0 404"), "{nobody}");
    assert!(
        nobody.contains("kumo-outcome: not-executed") && nobody.contains("NO_SUCH"),
        "{nobody}"
    );

    let mut server = Program::start("serve kv", &run_dir(&dir));
    let root = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("traceparent: 00-{root}-00f067aa0ba902b7-01\r\n");
    let done = raw("/v2/call/kv/echo", &parent, "hello");
    assert!(done.starts_with("HTTP/1.0 200") && done.ends_with("\r\n\r\nhello"), "{done}");
    assert!(done.contains("kumo-outcome: done"), "{done}");
    assert!(done.contains(&format!("traceparent: 00-{root}-")), "{done}");
    let trace = get(&node, &format!("/v2/calls/trace/{root}"));
    let sides: Vec<&Value> =
        trace["spans"].as_array().unwrap().iter().map(|span| &span["side"]).collect();
    assert_eq!(sides, ["caller", "callee"], "{trace:#}");
    assert_eq!(trace["spans"][0]["parent"], "00f067aa0ba902b7");

    let late = raw("/v2/call/kv/hang", "kumo-budget-ms: 50\r\n", "");
    assert!(late.starts_with("HTTP/1.0 504"), "{late}");
    assert!(late.contains("kumo-outcome: unknown") && late.contains("DEADLINE"), "{late}");
    assert_eq!((server.line(), server.line()), ("hangs".to_owned(), "over".to_owned()));
    for bad in ["kumo-budget-ms: 0\r\n", "traceparent: x\r\n"] {
        assert!(raw("/v2/call/kv/echo", bad, "").starts_with("HTTP/1.0 400"), "for {bad:?}");
    }
    let large = "large".repeat(1 << 20);
    assert!(raw("/v2/call/kv/echo", "", &large).ends_with(&format!("\r\n\r\n{large}")));
    let more = sent("/v2/call/kv/echo", (8 << 20) + 1, "", "");
    assert!(more.starts_with("HTTP/1.0 413") && more.contains("body-too-large"), "{more}");
    let slow = sent("/v2/call/kv/echo", 9, "kumo-budget-ms: 50\r\n", "half");
    assert!(slow.starts_with("HTTP/1.0 504") && slow.contains("not-executed"), "{slow}");
    let other = ask(support::tcp(&node), "POST", "/v2/call/kv/echo", "", "");
    assert_eq!(other.status, 401, "who comes by TCP does not say who he is");
}
