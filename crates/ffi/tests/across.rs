//! Programs in C and Python that call and serve across hosts: two data centres, each a network of its own.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::process::{Command, Stdio};

use kumo_abi::HostId;
use kumo_testbed::cluster::Cluster;
use kumo_testbed::net::is_there_for_tests;
use support::{Running, compile, has, library, root};

/// Serves, calls the greeter of the other host, and is told the truth of a callee that is killed.
const PROGRAM: &str = r#"
import sys, middlecon

with middlecon.connect(sys.argv[1]) as node:
    node.serve("py", {"double": lambda call: call.body * 2})
    print("serves", flush=True)
    for line in sys.stdin:
        service, method, body = line.split()
        try:
            print(node.service(service).call(method, body.encode(), budget=20.0).decode(), flush=True)
        except middlecon.CallError as error:
            print(type(error).__name__, error.cause, flush=True)
"#;

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

/// Starts a program on a host; its first line.
fn start(cluster: &Cluster, at: &HostId, mut command: Command) -> (Running, String) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    Running::of(cluster.spawn(at, command).unwrap())
}

fn is_reached(cluster: &Cluster, from: &HostId, service: &str) {
    cluster.until(&format!("{service} is known on {from}"), |cluster| {
        let words = ["ping", service, "-n", "1"].map(str::to_owned);
        cluster.kumo_status(from, &words).is_ok_and(|(status, ..)| status.success())
    });
}

#[test]
fn programs_in_c_and_python_call_each_other_across_hosts_and_are_told_the_truth() {
    if !is_there_for_tests() {
        return;
    }
    let cluster = Cluster::for_test(2, 1, 1).unwrap_or_else(|error| panic!("{error}"));
    let (near, far) = (host("tokyo/a"), host("osaka/a"));
    let run_dir = |at: &HostId| cluster.dir(at).unwrap().join("run");
    let dir = tempfile::tempdir().unwrap();
    let [server, caller, hangs] = ["serve.c", "call.c", "hang.c"].map(|name| {
        let source = match name {
            "hang.c" => root().join("crates/ffi/tests/c").join(name),
            _ => root().join("examples/c").join(name),
        };
        compile(dir.path(), &source, "cc", "-std=c11")
    });
    let serve = |program| {
        let mut command = Command::new(program);
        command.arg(run_dir(&near));
        command
    };
    let (_greeter, line) = start(&cluster, &near, serve(server));
    assert_eq!(line, "serves greeter\n");
    is_reached(&cluster, &far, "greeter");

    // From C to C.
    let mut call = Command::new(caller);
    call.arg(run_dir(&far)).arg("world");
    let (mut called, said) = start(&cluster, &far, call);
    assert_eq!(said, "hello world\n");
    assert!(called.child.wait().unwrap().success());

    if !has("python3") {
        eprintln!("skipped: python3 is not installed; get it with apt: python3");
        return;
    }
    // From Python to C, and to Python from elsewhere.
    let mut python = Command::new("python3");
    python.arg("-c").arg(PROGRAM).arg(run_dir(&far));
    python.env("PYTHONPATH", root().join("python")).env("MIDDLECON_LIBRARY", library());
    let (mut python, line) = start(&cluster, &far, python);
    assert_eq!(line, "serves\n");
    assert_eq!(python.ask("greeter greet you"), "hello you\n");
    assert_eq!(python.ask("nobody greet you"), "NotExecuted NO_SUCH\n");
    is_reached(&cluster, &near, "py");
    let (status, said, _) =
        cluster.kumo_status(&near, &["call", "py/double", "ab"].map(str::to_owned)).unwrap();
    assert!(status.success());
    assert_eq!(said, "abab");

    // A callee in C that is killed at work: it had begun, so nobody says that it did not run.
    let (mut hanging, line) = start(&cluster, &near, serve(hangs));
    assert_eq!(line, "serves hanger\n");
    is_reached(&cluster, &far, "hanger");
    python.tell("hanger hang x");
    assert_eq!(hanging.line(), "hangs\n");
    hanging.child.kill().unwrap();
    assert_eq!(python.line(), "OutcomeUnknown DIED\n");
}
