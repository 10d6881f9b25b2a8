//! Calls from the shell: a real node, real servers, real signals. Every promise of an exit code is kept here.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod host;

use std::fs;
use std::process::{Command, Stdio};

use host::{Host, Running, Said, until};
use rustix::process::{Pid, Signal};

/// A command that says by a file that it runs, with its group's number in it, and then sleeps in a child
/// that ignores TERM.
const HANGS: &str =
    "echo $$ > running.new; mv running.new running; (trap '' TERM; sleep 1000) & wait";

#[test]
fn a_reply_goes_to_standard_output_as_it_is() {
    let host = Host::start();
    let _echo = host.serve(&["echo", "--", "cat"]);
    let large: Vec<u8> = (0_u32..1 << 20).map(|at| (at ^ at >> 8) as u8).collect();
    for payload in [&b""[..], b"hello\n", b"\0\xff\x1b]0;title\x07", &large] {
        let said = host.run_with(&["call", "echo", "-"], payload).with_code(0);
        assert!(said.out == payload, "{} bytes came back of {}", said.out.len(), payload.len());
        assert_eq!(said.err, "");
    }
    assert_eq!(host.run(&["call", "echo/any.method", "as an argument"]).text(), "as an argument");
    assert_eq!(host.run(&["call", "echo"]).with_code(0).text(), "");
    let document = host.run(&["call", "echo", "héllo", "--json"]).with_code(0).json();
    assert_eq!((&document["outcome"], &document["reply"]), (&"done".into(), &"héllo".into()));
    assert_eq!(document["safe_to_retry"], false);
    assert_eq!(document["trace"].as_str().unwrap().len(), 32);
    let document = host.run_with(&["call", "echo", "-", "--json"], b"\xff").with_code(0).json();
    assert_eq!(document["reply_base64"], "/w==");
}

#[test]
fn every_way_to_end_has_its_exit_code_and_its_words() {
    let host = Host::start();
    let script = "case $KUMO_METHOD in no) echo why not >&2; exit 7;; hang) exec sleep 1000;; esac";
    let methods = ["--method", "no", "--method", "hang"];
    let _server = host.serve(&[&["kv"], &methods[..], &["--", "sh", "-c", script]].concat());
    host.run(&["call", "kv/no"]).with_code(10).says("kv/no ran and failed with code 7: why not");
    let no_service = host.run(&["call", "nobody"]).with_code(11);
    no_service.says("nobody/call was not executed").says("(NO_SUCH)");
    host.run(&["call", "kv/other"]).with_code(11).says("(NO_SUCH)");
    let late = host.run(&["call", "kv/hang", "--budget", "300ms"]).with_code(12);
    late.says("nobody knows whether kv/hang was executed").says("(DEADLINE)").says("look at");
    let document = host.run(&["call", "kv/no", "--json"]).with_code(10).json();
    assert_eq!((&document["code"], &document["outcome"]), (&7.into(), &"failed".into()));
    let document = host.run(&["call", "nobody", "--json"]).with_code(11).json();
    assert_eq!((&document["cause"], &document["safe_to_retry"]), (&"NO_SUCH".into(), &true.into()));
    for name in ["", "Nobody", "no body", "a/b/c", "a/", "\x1b[31m", &"a".repeat(64)] {
        host.run(&["call", name]).with_code(2);
        host.run(&["serve", name, "--", "cat"]).with_code(2);
    }
    for budget in ["0s", "x", "25h"] {
        host.run(&["call", "kv/no", "--budget", budget]).with_code(2);
    }
}

#[test]
fn without_a_node_nothing_is_executed_and_nothing_served() {
    let dir = tempfile::tempdir().unwrap();
    let kumo = |args: &[&str]| {
        let mut kumo = Command::new(env!("CARGO_BIN_EXE_kumo"));
        kumo.args(&args[..1]).arg("--run-dir").arg(dir.path()).args(&args[1..]);
        Said::from(kumo.stdin(Stdio::null()).output().unwrap())
    };
    kumo(&["call", "kv"]).with_code(11).says("kumo up").says("(NO_NODE)");
    kumo(&["serve", "kv", "--", "cat"]).with_code(1).says("cannot serve `kv`").says("kumo up");
}

#[test]
fn a_killed_server_is_told_as_unknown_at_once() {
    let host = Host::start();
    let mut server = host.serve(&["hang", "--", "sh", "-c", HANGS]);
    let call = host.spawn(&["call", "hang", "--budget", "10m"]);
    until("the command runs", || host.has("running"));
    server.child.kill().unwrap();
    call.ends().with_code(12).says("(DIED)");
    // Who has ended cannot clean up; its command does not outlive the test, though.
    let group = fs::read_to_string(host.path("running")).unwrap();
    let group = Pid::from_raw(group.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process_group(group, Signal::KILL).unwrap();
    host.run(&["call", "hang"]).with_code(11);
}

#[test]
fn an_interrupt_cancels_the_call_and_nothing_of_its_command_is_left() {
    let host = Host::start();
    let _server = host.serve(&["hang", "--", "sh", "-c", HANGS]);
    for signal in [Signal::INT, Signal::TERM] {
        let call = host.spawn(&["call", "hang"]);
        until("the command runs", || host.has("running"));
        call.signal(signal);
        call.ends().with_code(12).says("(CANCELLED)");
        until("its group is gone", || host.is_gone("running"));
        fs::remove_file(host.path("running")).unwrap();
    }
}

#[test]
fn a_killed_caller_and_a_spent_budget_leave_nothing_either() {
    let host = Host::start();
    let _server = host.serve(&["hang", "--", "sh", "-c", HANGS]);
    let call = host.spawn(&["call", "hang"]);
    until("the command runs", || host.has("running"));
    drop(call);
    until("its group is gone", || host.is_gone("running"));
    fs::remove_file(host.path("running")).unwrap();
    host.run(&["call", "hang", "--budget", "500ms"]).with_code(12).says("(DEADLINE)");
    until("its group is gone", || host.is_gone("running"));
}

#[test]
fn the_servers_own_time_is_told_as_its_failure() {
    let host = Host::start();
    let _server = host.serve(&["hang", "--timeout", "300ms", "--", "sh", "-c", HANGS]);
    host.run(&["call", "hang"]).with_code(10).says("ran for 300ms and was ended");
    until("its group is gone", || host.is_gone("running"));
}

#[test]
fn a_server_that_drains_finishes_what_it_began_and_takes_nothing_new() {
    let host = Host::start();
    let script = "touch running; until [ -e go ]; do sleep 0.01; done; echo finished";
    let server = host.serve(&["slow", "--", "sh", "-c", script]);
    let call = host.spawn(&["call", "slow"]);
    until("the command runs", || host.has("running"));
    server.signal(Signal::TERM);
    until("new calls are refused", || {
        host.run(&["call", "slow", "--budget", "2s"]).code == Some(11)
    });
    fs::write(host.path("go"), "").unwrap();
    assert_eq!(call.ends().with_code(0).text(), "finished\n");
    server.ends().with_code(0);
}

#[test]
fn a_drain_that_takes_too_long_cuts_off_and_says_so() {
    let host = Host::start();
    let server = host.serve(&["hang", "--drain", "200ms", "--", "sh", "-c", HANGS]);
    let call = host.spawn(&["call", "hang"]);
    until("the command runs", || host.has("running"));
    server.signal(Signal::TERM);
    // Either it hears that its command was ended, or that nobody is there any more; never that it did not run.
    let said = call.ends();
    assert!([Some(10), Some(12)].contains(&said.code), "{said:?}");
    server.ends().with_code(3).says("cut off");
    until("its group is gone", || host.is_gone("running"));
}

#[test]
fn a_server_that_is_killed_leaves_nothing_of_its_commands() {
    let host = Host::start();
    let server = host.serve(&["hang", "--", "sh", "-c", HANGS]);
    let call = host.spawn(&["call", "hang"]);
    until("the command runs", || host.has("running"));
    server.signal(Signal::KILL);
    call.ends().with_code(12).says("(DIED)");
    until("its group is gone", || host.is_gone("running"));
}

#[test]
fn more_than_its_places_is_busy_and_safe_to_try_again() {
    let host = Host::start();
    let script = "touch running.$$; until [ -e go ]; do sleep 0.01; done";
    let _server = host.serve(&["one", "--slots", "1", "--credit", "0", "--", "sh", "-c", script]);
    let calls: Vec<Running> = (0..6).map(|_| host.spawn(&["call", "one"])).collect();
    let run = |host: &Host| {
        let entries =
            fs::read_dir(host.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        entries.filter(|name| name.to_string_lossy().starts_with("running.")).count()
    };
    // One runs in the slot, and one in the place that is kept for calls at the root.
    until("two run", || run(&host) == 2);
    host.run(&["call", "one"]).with_code(11).says("(BUSY)").says("trying again is safe");
    fs::write(host.path("go"), "").unwrap();
    let codes: Vec<Option<i32>> = calls.into_iter().map(|call| call.ends().code).collect();
    assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 2, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == Some(11)).count(), 4, "{codes:?}");
    assert_eq!(run(&host), 2, "what was refused has not run");
}

#[test]
fn a_chain_of_commands_has_one_trace_one_budget_and_no_circles() {
    let host = Host::start();
    let kumo =
        format!("{} call --run-dir {}", env!("CARGO_BIN_EXE_kumo"), host.run_dir().display());
    let says = "echo $KUMO_TRACE $KUMO_BUDGET_MS $KUMO_PEER";
    let _inner = host.serve(&["inner", "--", "sh", "-c", says]);
    let outer = format!("{says}; {kumo} inner --budget 1h");
    let _outer = host.serve(&["outer", "--", "sh", "-c", &outer]);
    let said = host.run(&["call", "outer", "--budget", "20s", "--json"]).with_code(0).json();
    let reply = said["reply"].as_str().unwrap().to_owned();
    let lines: Vec<Vec<&str>> = reply.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(
        (lines.len(), lines[0][0], lines[1][0]),
        (2, said["trace"].as_str().unwrap(), lines[0][0])
    );
    let left_ms: Vec<u64> = lines.iter().map(|line| line[1].parse().unwrap()).collect();
    assert!(left_ms[1] <= left_ms[0] && left_ms[0] <= 20_000, "{left_ms:?}");
    let uid = rustix::process::getuid().as_raw();
    assert_eq!(lines[0][2], format!("tokyo/a/user/{uid}"));
    let trace = said["trace"].as_str().unwrap();
    let tree = host.run(&["trace", trace, "--ascii"]).with_code(0);
    let tree: Vec<&str> = tree.text().lines().collect();
    assert_eq!(tree.len(), 3, "{tree:?}");
    assert!(tree[1].starts_with("outer/call") && tree[2].starts_with("`- inner/call"), "{tree:?}");
    // One that calls itself is told so, and does not hang until the budget is spent.
    let circle = format!("exec {kumo} circle");
    let _circle = host.serve(&["circle", "--", "sh", "-c", &circle]);
    let said = host.run(&["call", "circle", "--budget", "10m"]).with_code(10);
    said.says("failed with code 11").says("(CYCLE)").says("circle -> circle");
}

#[test]
fn a_cancel_reaches_the_command_behind_the_command() {
    let host = Host::start();
    let kumo =
        format!("{} call --run-dir {}", env!("CARGO_BIN_EXE_kumo"), host.run_dir().display());
    let _inner = host.serve(&["inner", "--", "sh", "-c", HANGS]);
    let _outer = host.serve(&["outer", "--", "sh", "-c", &format!("{kumo} inner; true")]);
    let call = host.spawn(&["call", "outer"]);
    until("the inner command runs", || host.has("running"));
    let blocked = host.run(&["blocked", "--json"]).with_code(0).json();
    let edges = blocked["edges"].as_array().unwrap();
    assert_eq!(edges.len(), 2, "{edges:?}");
    let dot = host.run(&["blocked", "--dot"]).with_code(0);
    assert!(
        dot.text().starts_with("digraph blocked {") && dot.text().contains("inner on tokyo/a/")
    );
    let table = host.run(&["blocked"]).with_code(0);
    assert!(table.text().contains("outer/call on tokyo/a/"), "{}", table.text());
    let services = host.run(&["services", "inner", "--json"]).with_code(0).json();
    assert_eq!(services["instances"][0]["in_flight"], 1, "{services}");
    call.signal(Signal::INT);
    call.ends().with_code(12);
    until("the inner group is gone", || host.is_gone("running"));
    until("nobody waits", || host.run(&["blocked"]).text() == "nobody waits\n");
}

#[test]
fn services_come_and_go() {
    let host = Host::start();
    host.run(&["services"]).with_code(1).says("kumo serve");
    let echo = host.serve(&["echo", "--", "cat"]);
    let said = host.run(&["services"]).with_code(0);
    let lines: Vec<Vec<&str>> =
        said.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..3], ["SERVICE", "HOST", "STATE"]);
    assert_eq!(lines[1][..3], ["echo", "tokyo/a", "ready"]);
    assert!(lines[1].contains(&echo.child.id().to_string().as_str()), "{lines:?}");
    let all = host.run(&["services", "--all", "--no-header"]).with_code(0);
    assert!(all.text().starts_with("echo"), "{}", all.text());
    host.run(&["services", "other"]).with_code(1).says("kumo why other");
    drop(echo);
    until("it is gone", || host.run(&["services"]).code == Some(1));
}

#[test]
fn running_calls_outlive_a_node_that_is_killed() {
    let mut host = Host::start();
    let script = "touch running; until [ -e go ]; do sleep 0.01; done; cat";
    let _server = host.serve(&["slow", "--", "sh", "-c", script]);
    let call = host.spawn(&["call", "slow", "kept"]);
    until("the command runs", || host.has("running"));
    host.node.child.kill().unwrap();
    host.node.child.wait().unwrap();
    host.run(&["call", "slow"]).with_code(11).says("(NO_NODE)");
    host.node = Host::node(host.dir.path());
    until("the server is known again", || host.run(&["services", "slow"]).code == Some(0));
    fs::write(host.path("go"), "").unwrap();
    assert_eq!(call.ends().with_code(0).text(), "kept");
}

#[test]
fn pings_go_to_the_callee_and_back_and_take_no_slot() {
    let host = Host::start();
    let said = host.run(&["ping", "echo", "-n", "3", "-i", "1ms"]).with_code(11);
    let lines: Vec<&str> = said.text().lines().collect();
    let first = "1: no answer from echo: nobody serves `echo`; `kumo services` lists what is served (NO_SUCH)";
    assert_eq!(lines[..3], [first, "2: the same", "3: the same"], "{said:?}");
    let server = host.serve(&["echo", "--slots", "1", "--credit", "0", "--", "cat"]);
    let said = host.run(&["ping", "echo", "-n", "3", "-i", "1ms"]).with_code(0);
    assert!(
        said.text().contains("on tokyo/a") && said.text().contains("3 of 3 answered"),
        "{said:?}"
    );
    let summary =
        host.run(&["ping", "echo", "-n", "20", "-i", "1ms", "--json"]).with_code(0).json();
    let took_us = &summary["took_us"];
    let of = |name: &str| took_us[name].as_f64().unwrap();
    assert!(0.0 < of("min") && of("min") <= of("median") && of("median") <= of("p99"), "{summary}");
    // Until somebody has had enough.
    let ping = host.spawn(&["ping", "echo", "-i", "10m"]);
    until("it waits for the next", || {
        host.run(&["services", "echo", "--json"]).json()["instances"][0]["connections"] == 1
    });
    ping.signal(Signal::INT);
    assert!(ping.ends().with_code(0).text().contains("1 of 1 answered"));
    // One that stands still does not answer, and the node says why.
    server.signal(Signal::STOP);
    let said = host.run(&["ping", "echo", "-n", "1", "--budget", "20s"]).with_code(11);
    assert!(said.text().contains("SUSPENDED"), "{said:?}");
    server.signal(Signal::CONT);
    until("it answers again", || host.run(&["ping", "echo", "-n", "1"]).code == Some(0));
}

#[test]
fn why_says_what_is_wrong_and_what_to_do() {
    let host = Host::start();
    let steps = |said: &Said| -> Vec<(String, String)> {
        let steps = said.json()["steps"].as_array().unwrap().clone();
        let text = |step: &serde_json::Value, name: &str| step[name].as_str().unwrap().to_owned();
        steps.iter().map(|step| (text(step, "about"), text(step, "verdict"))).collect()
    };
    let said = host.run(&["why", "echo", "--json"]).with_code(1);
    assert!(steps(&said).contains(&("name".to_owned(), "bad".to_owned())), "{said:?}");
    let server = host.serve(&["echo", "--", "cat"]);
    let said = host.run(&["why", "echo", "--json"]).with_code(0);
    let abouts: Vec<String> = steps(&said).into_iter().map(|(about, _)| about).collect();
    // What was refused when nobody served it is remembered.
    assert_eq!(abouts, ["node", "name", "before", "grant", "way", "callee"]);
    assert!(said.json()["steps"][2]["found"].as_str().unwrap().contains("(NO_SUCH)"), "{said:?}");
    assert!(host.run(&["why", "echo"]).text().contains("by a ring in shared memory"));
    server.signal(Signal::STOP);
    let said = host.run(&["why", "echo", "--budget", "20s"]).with_code(1);
    assert!(said.text().contains("kumo kill -CONT"), "{said:?}");
    server.signal(Signal::CONT);
    let nowhere = tempfile::tempdir().unwrap();
    let mut kumo = Command::new(env!("CARGO_BIN_EXE_kumo"));
    kumo.args(["why", "echo", "--run-dir"]).arg(nowhere.path()).stdin(Stdio::null());
    let said = Said::from(kumo.output().unwrap()).with_code(1);
    assert!(said.text().contains("kumo up"), "{said:?}");
}

#[test]
fn a_host_without_a_cluster_has_no_lists() {
    let host = Host::start();
    host.run(&["acl", "kv"]).with_code(1).says("kumo init");
    let all = "spiffe://acme/dc/*/host/*";
    host.run(&["acl", "kv", "--allow", all]).with_code(1).says("kumo init");
}

#[test]
fn a_list_decides_who_may_call_what() {
    let host = Host::start_cluster();
    let _server = host.serve(&["kv", "--", "cat"]);
    host.run(&["acl", "kv"]).with_code(1).says("everybody");
    host.run(&["call", "kv/read", "a"]).with_code(0);
    host.run(&["acl", "kv", "--deny-all"]).with_code(0);
    host.run(&["call", "kv/read", "a"]).with_code(11).says("(DENIED)");
    let said = host.run(&["why", "kv"]).with_code(1);
    assert!(said.text().contains("kumo acl kv"), "{said:?}");
    let me = format!("spiffe://acme/dc/*/host/*/user/{}", rustix::process::getuid().as_raw());
    host.run(&["acl", "kv", "--allow", &me, "--method", "re*"]).with_code(0);
    assert_eq!(host.run(&["call", "kv/read", "a"]).with_code(0).text(), "a");
    host.run(&["call", "kv/write", "a"]).with_code(11).says("(DENIED)");
    host.run(&["acl", "kv", "--add", "--allow", &me, "--method", "write"]).with_code(0);
    host.run(&["call", "kv/write", "a"]).with_code(0);
    let shown = host.run(&["acl", "kv"]).with_code(0);
    let want = format!("call   {me}  re*\ncall   {me}  write\n");
    assert!(shown.text().starts_with(&want), "{}", shown.text());
    host.run(&["acl", "kv", "--allow", "everybody"]).with_code(2).says("spiffe://");
    host.run(&["acl", "kv", "--serve", "spiffe://acme/dc/*/host/*/user/4294967294"]).with_code(0);
    host.run(&["serve", "kv", "--", "cat"]).with_code(1).says("DENIED");
    host.run(&["acl", "kv", "--remove"]).with_code(0);
    host.run(&["call", "kv/other", "a"]).with_code(0);
}

#[test]
fn several_are_called_at_once_and_each_has_its_outcome() {
    let host = Host::start();
    let _a = host.serve(&["kv-a", "--", "cat"]);
    let _b = host.serve(&["kv-b", "--", "sh", "-c", "exit 9"]);
    let _c = host.serve(&["kv-c", "--", "sh", "-c", HANGS]);
    let said =
        host.run(&["gather", "kv-a", "kv-b", "nobody", "--data", "x", "--json"]).with_code(10);
    let document = said.json();
    let outcomes: Vec<&str> = document["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["done", "failed", "not-executed"]);
    assert_eq!(document["members"][0]["reply"], "x");
    host.run(&["gather", "kv-a", "nobody"]).with_code(11);
    // One that hangs is no hindrance where others are enough, and it is cancelled.
    let said = host.run(&["gather", "kv-a", "kv-c", "--first", "--budget", "10m"]).with_code(0);
    assert!(said.text().contains("unknown CANCELLED") || said.text().contains("not-executed"));
    until("nobody waits", || host.run(&["blocked"]).text() == "nobody waits\n");
    host.run(&["gather", "kv-a", "--quorum", "2"]).with_code(2).says("--quorum is from 1 to 1");
}

#[test]
fn a_pulse_leaves_or_it_is_said_that_it_did_not() {
    let host = Host::start();
    let _server = host.serve(&["news", "--", "sh", "-c", "cat > heard.new; mv heard.new heard"]);
    host.run(&["pulse", "news/load", "0.5"]).with_code(0);
    until("it is heard", || host.has("heard"));
    assert_eq!(std::fs::read_to_string(host.path("heard")).unwrap(), "0.5");
    host.run(&["pulse", "nobody"]).with_code(11).says("(NO_SUCH)");
    host.run_with(&["pulse", "news", "-"], &vec![0; 100_000]).with_code(2).says("kumo call");
}

#[test]
fn a_call_to_another_data_centre_is_as_one_at_home() {
    let tokyo = Host::start_cluster();
    let osaka = tokyo.start_joined("osaka");
    let server = osaka.serve(&["far", "--", "sh", "-c", "echo $KUMO_PEER; cat"]);
    until("tokyo knows of it, and the way", || tokyo.run(&["why", "far"]).code == Some(0));
    let said = tokyo.run(&["call", "far", "hello", "--json"]).with_code(0).json();
    let uid = rustix::process::getuid().as_raw();
    assert_eq!(said["reply"], format!("tokyo/a/user/{uid}\nhello"));
    assert_eq!(said["peer"], "osaka/b/service/far");
    let large = vec![7; 1 << 20];
    let said = tokyo.run_with(&["call", "far", "-"], &large).with_code(0);
    assert!(said.out.ends_with(&large));
    let why = tokyo.run(&["why", "far"]).with_code(0);
    assert!(
        why.text().contains("directly, by TLS") && why.text().contains("osaka/b is alive"),
        "{why:?}"
    );
    let trace = tokyo.run(&["services", "--all"]).with_code(0);
    assert!(trace.text().contains("osaka/b"), "{}", trace.text());
    let hang = osaka.serve(&["hang", "--", "sh", "-c", HANGS]);
    until("tokyo knows of it", || tokyo.run(&["services", "hang"]).code == Some(0));
    let call = tokyo.spawn(&["call", "hang", "--budget", "10m"]);
    until("the command runs", || osaka.has("running"));
    call.signal(Signal::INT);
    call.ends().with_code(12).says("(CANCELLED)");
    until("its group is gone", || osaka.is_gone("running"));
    drop((server, hang));
    until("it is gone", || tokyo.run(&["call", "far", "--budget", "5s"]).code == Some(11));
}
