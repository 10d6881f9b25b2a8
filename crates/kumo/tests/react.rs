//! Reactions, with real nodes, real services and processes that are really killed.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod host;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use host::{Host, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// The directory of the example that is shipped.
fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples/react-restart")
        .canonicalize()
        .unwrap()
}

/// Whether the host hears of processes; without rights it cannot, and says so.
fn hears_processes(host: &Host) -> bool {
    let list = host.run(&["react", "list", "--json"]).json();
    let hears = list["events"].is_string();
    if !hears {
        eprintln!("not tested: this kernel, or our rights, give no events of processes");
    }
    hears
}

fn journal(host: &Host, name: &str) -> Vec<Value> {
    let said = host.run(&["react", "log", name, "--json", "-n", "1000"]);
    said.json()["entries"].as_array().unwrap().clone()
}

fn outcomes(host: &Host, name: &str) -> Vec<String> {
    journal(host, name).iter().map(|it| it["outcome"].as_str().unwrap().to_owned()).collect()
}

/// A process that waits under a name of its own, so that no other test's is mistaken for it.
fn sleeper(name: &str) -> Child {
    let mut waits = Command::new("sh");
    // It has no children: they would have its command line until they execute something.
    waits.args(["-c", "read line", name]).stdin(Stdio::piped());
    waits.spawn().unwrap()
}

/// A name that is in no other command line of this machine.
fn unlike(host: &Host, what: &str) -> String {
    format!("{what}-{}", host.dir.path().file_name().unwrap().to_string_lossy().trim_matches('.'))
}

fn end(mut child: Child) -> u32 {
    child.kill().unwrap();
    child.wait().unwrap();
    child.id()
}

#[track_caller]
fn add(host: &Host, name: &str, when: &str, call: &str, more: &[&str]) {
    let args = ["react", "add", name, "--when", when, "--call", call];
    host.run(&[&args[..], more].concat()).with_code(0);
}

/// The worker of the example, by the file in which it says its number; killed on drop.
struct Worker<'a>(&'a Host);

impl Worker<'_> {
    fn pid(&self) -> Option<i32> {
        fs::read_to_string(self.0.path("worker.pid")).ok()?.trim().parse().ok()
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if let Some(pid) = self.pid().and_then(Pid::from_raw) {
            kill_process(pid, Signal::KILL).ok();
        }
    }
}

#[test]
fn a_process_that_ends_is_started_again_by_services_as_another_host_has_set_it() {
    let a = Host::start_cluster();
    if !hears_processes(&a) {
        return;
    }
    let b = a.start_joined("tokyo");
    let (file, ended) = (a.path("worker.pid"), a.path("ended.json"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let script = |name: &str| text(&example().join(name));
    let starter = a.serve(&["starter", "--", &script("start"), &text(&file)]);
    let keep = [&script("keep"), &text(&ended), &text(&a.run_dir())];
    let keeper = a.serve(&["keeper", "--", keep[0], keep[1], keep[2]]);
    let worker = Worker(&a);
    a.run(&["call", "starter"]).with_code(0);
    until("the worker runs", || worker.pid().is_some());
    let mut react = Command::new(script("react"));
    react.args([&text(&file), "a", &text(&b.run_dir())]).env("PATH", host::path_with_kumo());
    // It is set on one host, and known on the other.
    host::Said::from(react.output().unwrap()).with_code(0);
    until("the reaction is known", || a.run(&["react", "list"]).code == Some(0));
    for times in 1..=2 {
        let before = worker.pid().unwrap();
        kill_process(Pid::from_raw(before).unwrap(), Signal::KILL).unwrap();
        until("another worker runs", || worker.pid().is_some_and(|pid| pid != before));
        until("it is told", || {
            outcomes(&a, "restart-worker").iter().filter(|it| *it == "done").count() == times
        });
        let entries = journal(&a, "restart-worker");
        assert_eq!(entries.len(), times, "once for each: {entries:?}");
        assert_eq!(entries[times - 1]["event"]["pid"], before);
        let written = fs::read_to_string(&ended).unwrap();
        let written: Value = serde_json::from_str(written.lines().last().unwrap()).unwrap();
        assert_eq!(written, json!({"host": "a", "pid": before, "code": null, "signal": "KILL"}));
    }
    // The chain is one trace: the reaction's call, and the keeper's.
    let trace = journal(&a, "restart-worker")[0]["trace"].as_str().unwrap().to_owned();
    let tree = a.run(&["trace", &trace, "--all", "--ascii"]).with_code(0);
    assert!(
        tree.text().contains("keeper/call") && tree.text().contains("`- starter/call"),
        "{tree:?}"
    );
    assert_eq!(
        journal(&b, "restart-worker").len(),
        0,
        "b has the same processes, and is not meant"
    );
    // And where nobody decides, nothing is started, and the truth is told.
    drop(keeper);
    until("the keeper is gone", || a.run(&["services", "keeper"]).code == Some(1));
    let before = worker.pid().unwrap();
    kill_process(Pid::from_raw(before).unwrap(), Signal::KILL).unwrap();
    until("it is told", || outcomes(&a, "restart-worker").last().unwrap() == "not-executed");
    let last = journal(&a, "restart-worker").pop().unwrap();
    assert_eq!((&last["attempts"], &last["cause"]), (&2.into(), &"NO_SUCH".into()));
    assert_eq!(worker.pid(), Some(before));
    drop(starter);
}

#[test]
fn a_host_that_dies_and_a_service_that_goes_are_told_once_by_one_host() {
    let a = Host::start_cluster();
    let mut b = a.start_joined("tokyo");
    let log = a.path("told");
    let script = format!("cat >> {}", log.display());
    let _pager = a.serve(&["pager", "--", "sh", "-c", &script]);
    let kv = a.serve(&["kv", "--", "cat"]);
    add(
        &a,
        "gone",
        "state == 'dead' && host == 'b'",
        "pager",
        &["--on", "host", "--data", "${state}"],
    );
    add(
        &a,
        "none",
        "service == 'kv' && ready == 0",
        "pager",
        &["--on", "service", "--data", "${ready_before}"],
    );
    until("b is there", || {
        a.run(&["hosts"]).text().lines().filter(|line| line.contains("alive")).count() == 2
    });
    until("both know both", || {
        let reactions = |host: &Host| host.run(&["react", "list", "--json"]).json();
        let count = |list: Value| list["reactions"].as_array().map_or(0, Vec::len);
        count(reactions(&a)) == 2 && count(reactions(&b)) == 2
    });
    // One of the two acts for what is about all.
    let acts = |host: &Host| {
        let list = host.run(&["react", "list", "--json"]).json();
        list["reactions"].as_array().unwrap().iter().filter(|it| it["acts_here"] == true).count()
    };
    assert_eq!(acts(&a) + acts(&b), 2);
    b.node.child.kill().unwrap();
    until("its death is told", || outcomes(&a, "gone") == ["done"]);
    until("one host is left to act", || acts(&a) == 2);
    // The condition did not hold when a looked first; that it does now is the event.
    until("a has looked", || {
        add(
            &a,
            "seen",
            "service == 'kv' && ready == 1 && ready_before == 1",
            "pager",
            &["--on", "service"],
        );
        a.run(&["services", "kv"]).code == Some(0)
    });
    drop(kv);
    until("that it goes is told", || outcomes(&a, "none") == ["done"]);
    let told = fs::read_to_string(&log).unwrap();
    assert!(told.contains("\"dead\"") && told.trim_end().ends_with('1'), "{told:?}");
}

#[test]
fn reactions_are_set_switched_tried_and_removed() {
    let host = Host::start_cluster();
    let name = unlike(&host, "once");
    // Commands that have the condition in their own command line end, too.
    let when = format!("event == 'exit' && comm == 'sh' && cmdline.endsWith('{name}')");
    host.run(&["react", "list"]).with_code(1).says("kumo react add");
    host.run(&["react", "log"]).with_code(1);
    host.run(&["react", "remove", "web"]).with_code(1).says("no reaction `web`");
    let wrong = |more: &[&str], says: &str| {
        let args = ["react", "add", "web", "--call", "echo"];
        host.run(&[&args[..], more].concat()).with_code(2).says(says);
    };
    wrong(&["--when", "comn == 'x'"], "did you mean `comm`?");
    wrong(&["--when", "true", "--data", "{\"a\": \"${comm}\"}"], "quotes");
    wrong(&["--when", "true", "--on", "weather"], "not watched");
    host.run(&["react", "add", "journal", "--when", "true", "--call", "echo"]).with_code(2);
    let given =
        format!("{{\"event\": \"exit\", \"comm\": \"sh\", \"cmdline\": \"x {name}\", \"pid\": 7}}");
    let test = ["react", "test", "--when", &when, "--call", "echo", "--data", "[${pid}]"];
    let said = host.run(&[&test[..], &["--event", &given]].concat()).with_code(0);
    assert!(said.text().contains("1 of 1 would call") && said.text().contains("echo/call [ 7 ]"));
    host.run(&[&test[..], &["--event", "{\"pid\": 7}"]].concat()).with_code(1);
    host.run(&[&test[..], &["--event", "{\"pit\": 7}"]].concat())
        .with_code(2)
        .says("did you mean `pid`?");
    if !hears_processes(&host) {
        return;
    }
    let log = host.path("calls");
    let _echo = host.serve(&["echo", "--", "sh", "-c", &format!("cat >> {}", log.display())]);
    add(&host, "web", &when, "echo", &["--data", "{\"pid\": ${pid}}", "--disabled"]);
    let ended = end(sleeper(&name));
    until("its end is remembered", || host.run(&test).code == Some(0));
    assert!(host.run(&test).text().contains(&format!("[ {ended} ]")));
    host.run(&["react", "enable", "web"]).with_code(0);
    until("it acts", || host.run(&["react", "list"]).text().contains(" acts "));
    let pids = [end(sleeper(&name)), end(sleeper(&name))];
    until("both are told", || outcomes(&host, "web") == ["done", "done"]);
    let called = fs::read_to_string(&log).unwrap();
    let mut called: Vec<&str> = called.split_terminator('}').collect();
    called.sort_unstable();
    let mut want = pids.map(|pid| format!("{{\"pid\":  {pid} "));
    want.sort_unstable();
    assert_eq!(called, want, "each was told once, and none while it was disabled");
    let line = host.run(&["react", "log", "web"]).with_code(0);
    assert!(
        line.text().contains(" done echo/call in ") && line.text().contains("exit_signal=KILL")
    );
    assert!(host.run(&["react", "log", "--all"]).with_code(0).text().contains("tokyo/a web done"));
    host.run(&["react", "remove", "web"]).with_code(0);
    until("it is gone", || host.run(&["react", "list"]).code == Some(1));
    end(sleeper(&name));
    assert_eq!(outcomes(&host, "web").len(), 2);
}

#[test]
fn a_reaction_that_causes_itself_is_stopped_and_says_so() {
    let host = Host::start_cluster();
    if !hears_processes(&host) {
        return;
    }
    // Each call starts what ends, and so leads to the next.
    let name = unlike(&host, "circle");
    let _circle = host.serve(&["circle", "--", "sh", "-c", "exit 0", &name]);
    let when = format!("event == 'exit' && cmdline.contains('exit 0 {name}') && comm == 'sh'");
    add(&host, "circle", &when, "circle", &["--rate", "100", "--depth", "3"]);
    host.run(&["call", "circle"]).with_code(0);
    until("it is stopped", || outcomes(&host, "circle").iter().any(|it| it == "dropped"));
    until("the last call has ended", || {
        outcomes(&host, "circle").iter().filter(|it| *it == "done").count() == 4
    });
    let entries = journal(&host, "circle");
    let dropped: Vec<_> = entries.iter().filter(|it| it["outcome"] == "dropped").collect();
    assert_eq!((dropped.len(), &dropped[0]["cause"]), (1, &"LOOP".into()));
    let deepest = entries.iter().filter_map(|it| it["depth"].as_u64()).max();
    assert_eq!(deepest, Some(3));
}

#[test]
fn what_a_killed_node_was_doing_is_unknown_and_not_done_again() {
    let mut host = Host::start_cluster();
    if !hears_processes(&host) {
        return;
    }
    let name = unlike(&host, "hangs");
    let script = "echo called >> calls; until [ -e go ]; do sleep 0.01; done";
    let _slow = host.serve(&["slow", "--", "sh", "-c", script]);
    // Commands that have the condition in their own command line end, too.
    let when = format!("event == 'exit' && comm == 'sh' && cmdline.endsWith('{name}')");
    add(&host, "slow", &when, "slow", &["--budget", "1m"]);
    end(sleeper(&name));
    until("it is called", || host.has("calls"));
    assert_eq!(outcomes(&host, "slow"), ["running"]);
    host.restart();
    let entries = journal(&host, "slow");
    assert_eq!((entries.len(), &entries[0]["outcome"]), (1, &"unknown".into()));
    assert_eq!(entries[0]["cause"], "NODE_ENDED");
    fs::write(host.path("go"), "").unwrap();
    until("the service is known again", || host.run(&["services", "slow"]).code == Some(0));
    end(sleeper(&name));
    until("the next is done", || outcomes(&host, "slow") == ["unknown", "done"]);
    assert_eq!(fs::read_to_string(host.path("calls")).unwrap().lines().count(), 2);
}
