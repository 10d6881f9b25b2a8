//! The shipped example of a reaction, across two data centres: a process ends on one host, and a service on the
//! other has it started again.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kumo_abi::HostId;
use kumo_testbed::cluster::Cluster;
use kumo_testbed::kumo_for_tests;
use kumo_testbed::net::is_there_for_tests;
use serde_json::Value;

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn script(name: &str) -> String {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/react-restart");
    example.canonicalize().unwrap().join(name).to_str().unwrap().to_owned()
}

/// `kumo serve` on a host. Killed and reaped when dropped.
struct Served(Child);

impl Served {
    fn start(cluster: &Cluster, at: &HostId, words: &[&str]) -> Served {
        // The scripts of the example call `kumo`.
        let beside = kumo_for_tests().parent().unwrap().to_str().unwrap().to_owned();
        let path = format!("{beside}:{}", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(kumo_for_tests());
        command.arg("serve").args(words).env("PATH", path);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = cluster.spawn(at, command).unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        let served = Served(child);
        BufReader::new(out).read_line(&mut line).unwrap();
        assert!(line.contains(&format!("serves {}", words[0])), "{line}");
        served
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The number of the example's worker, by the file in which it says it: one of its host's, whose processes end
/// with the host.
fn worker(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

fn kill(cluster: &Cluster, at: &HostId, pid: &str) {
    let mut kill = Command::new("sh");
    kill.args(["-c", "kill -9 $0", pid]);
    assert!(cluster.spawn(at, kill).unwrap().wait().unwrap().success());
}

fn kumo(cluster: &Cluster, at: &HostId, words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    cluster.kumo(at, &words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// What a command writes that also says by its status whether there is anything.
fn said(cluster: &Cluster, at: &HostId, words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    cluster.kumo_status(at, &words).unwrap_or_else(|error| panic!("{words:?}: {error}")).1
}

fn journal(cluster: &Cluster, at: &HostId) -> Vec<Value> {
    let log = said(cluster, at, &["react", "log", "restart-worker", "--json"]);
    let log: Value = serde_json::from_str(&log).unwrap();
    log["entries"].as_array().unwrap().clone()
}

#[test]
fn a_process_that_ends_on_one_host_is_started_again_by_a_service_on_another() {
    if !is_there_for_tests() {
        return;
    }
    let cluster = Cluster::for_test(2, 1, 1).unwrap_or_else(|error| panic!("{error}"));
    let (works, decides) = (host("tokyo/a"), host("osaka/a"));
    let list = said(&cluster, &works, &["react", "list", "--json"]);
    if !serde_json::from_str::<Value>(&list).unwrap()["events"].is_string() {
        eprintln!("not tested: this kernel, or our rights, give no events of processes");
        return;
    }
    let file = cluster.dir(&works).unwrap().join("worker.pid");
    let ended = cluster.dir(&decides).unwrap().join("ended.json");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let _starter =
        Served::start(&cluster, &works, &["starter", "--", &script("start"), &text(&file)]);
    let _keeper =
        Served::start(&cluster, &decides, &["keeper", "--", &script("keep"), &text(&ended)]);
    for (at, service) in [(&works, "keeper"), (&decides, "starter")] {
        cluster.until(&format!("{at} reaches {service}"), |cluster| {
            let words = ["ping", service, "-n", "1"].map(str::to_owned);
            cluster.kumo_status(at, &words).is_ok_and(|(status, ..)| status.success())
        });
    }
    kumo(&cluster, &works, &["call", "starter"]);
    cluster.until("the worker runs", |_| worker(&file).is_some());
    // Both hosts share this machine's kernel and see its processes: the event is that of the worker's host.
    let when = format!(
        "event == 'exit' && dc == 'tokyo' && cmdline.endsWith('{} {}')",
        script("worker"),
        text(&file)
    );
    let data = r#"{"host": ${host}, "signal": ${exit_signal}}"#;
    let words = ["react", "add", "restart-worker", "--call", "keeper", "--when", &when, "--data"];
    kumo(&cluster, &decides, &[&words[..], &[data]].concat());
    cluster.until("the reaction is known where the worker is", |cluster| {
        said(cluster, &works, &["react", "list"]).contains("restart-worker")
    });
    let before = worker(&file).unwrap();
    kill(&cluster, &works, &before);
    cluster.until("another worker runs", |_| worker(&file).is_some_and(|pid| pid != before));
    cluster.until("it is told that the call is done", |cluster| {
        journal(cluster, &works).last().is_some_and(|entry| entry["outcome"] == "done")
    });
    let entries = journal(&cluster, &works);
    assert_eq!(entries.len(), 1, "once: {entries:?}");
    assert_eq!(journal(&cluster, &decides).len(), 0, "the other host was not meant");
    let written = fs::read_to_string(&ended).unwrap();
    let written: Value = serde_json::from_str(written.trim()).unwrap();
    assert_eq!((&written["host"], &written["signal"]), (&"a".into(), &"KILL".into()));
    // One trace over both data centres: the reaction's call, and the keeper's back to where the worker is.
    let trace = entries[0]["trace"].as_str().unwrap();
    let tree = kumo(&cluster, &decides, &["trace", trace, "--all", "--ascii"]);
    assert!(tree.contains("keeper/call") && tree.contains("starter/call"), "{tree}");
}
