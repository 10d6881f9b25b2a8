//! Changes of kernel parameters, with real nodes that are really killed, in network namespaces of their
//! own: what is changed there is nobody else's.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod host;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use host::{Host, Said, until};
use rustix::process::{Signal, geteuid};
use serde_json::Value;

/// A parameter of a network namespace that no other process reads: 1 to 255, and 64 in a new one.
const TTL: &str = "net.ipv4.ip_default_ttl";

/// A network namespace, kept by a process that waits in it.
struct Namespace {
    keeper: Child,
}

impl Namespace {
    /// `None`, with a message, where we may not make one.
    fn new() -> Option<Namespace> {
        if !geteuid().is_root() {
            eprintln!("not tested: only root makes network namespaces");
            return None;
        }
        let mut keeper = Command::new("unshare");
        keeper.args(["-n", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut namespace = Namespace { keeper: keeper.spawn().unwrap() };
        let number = |path: String| fs::metadata(path).map(|found| found.ino()).ok();
        let ours = number("/proc/self/ns/net".to_owned()).unwrap();
        until("it is in a namespace of its own", || {
            assert_eq!(namespace.keeper.try_wait().unwrap(), None, "we may make none");
            number(format!("/proc/{}/ns/net", namespace.keeper.id())).is_some_and(|it| it != ours)
        });
        Some(namespace)
    }

    /// What a command in it is started by; it becomes the command.
    fn enter(&self) -> Vec<String> {
        let pid = self.keeper.id().to_string();
        ["nsenter", "-t", &pid, "-n", "--"].map(str::to_owned).to_vec()
    }

    fn run(&self, args: &[&str]) -> String {
        let enter = self.enter();
        let output = Command::new(&enter[0]).args(&enter[1..]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The value of [`TTL`] as the kernel has it.
    fn ttl(&self) -> String {
        self.run(&["cat", "/proc/sys/net/ipv4/ip_default_ttl"]).trim().to_owned()
    }

    /// Somebody else writes it.
    fn write_ttl(&self, value: &str) {
        let script = format!("echo {value} > /proc/sys/net/ipv4/ip_default_ttl");
        self.run(&["sh", "-c", &script]);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.keeper.kill().ok();
        self.keeper.wait().ok();
    }
}

/// A host in a namespace of its own; `None` where we may make none.
fn host_in_namespace() -> Option<(Namespace, Host)> {
    let namespace = Namespace::new()?;
    let host = Host::start_by(&namespace.enter(), &["--dc", "tokyo", "--host", "a"]);
    assert_eq!(namespace.ttl(), "64");
    Some((namespace, host))
}

fn set(host: &Host, args: &[&str]) -> Said {
    host.run(&[&["sysctl", "set"], args].concat())
}

fn journal(host: &Host) -> Vec<Value> {
    let said = host.run(&["sysctl", "log", "--json"]);
    said.json()["entries"].as_array().unwrap().clone()
}

/// What the journal says of the last change.
fn last(host: &Host) -> Value {
    journal(host).pop().unwrap()
}

#[test]
fn what_is_not_confirmed_is_back_after_kill_9_of_node_and_client() {
    let Some((namespace, mut host)) = host_in_namespace() else { return };
    let began = Instant::now();
    let mut client = host.spawn(&[
        "sysctl",
        "set",
        "net.ipv4.ip_default_ttl=99",
        "--confirm-within",
        "2s",
        "--wait-for-end",
    ]);
    until("it is changed", || {
        journal(&host).last().is_some_and(|it| it["state"] == "pending") && namespace.ttl() == "99"
    });
    host.node.child.kill().unwrap();
    client.child.kill().unwrap();
    host.node.child.wait().unwrap();
    client.child.wait().unwrap();
    // While nobody is there, nothing happens; a moment later it is due.
    until("its time is over", || began.elapsed() > Duration::from_millis(2_500));
    assert_eq!(namespace.ttl(), "99");
    host.restart();
    // When the node serves, it is done.
    assert_eq!(namespace.ttl(), "64");
    let entry = last(&host);
    assert_eq!(
        [&entry["state"], &entry["old"], &entry["wanted"], &entry["became"], &entry["ended_by"]],
        ["rolled-back", "64", "99", "99", "the host itself"],
        "{entry}"
    );
    assert_eq!(entry["why"], "it was not confirmed in time");
    let log = host.run(&["sysctl", "log"]).with_code(0);
    assert!(log.text().contains("rolled-back by the host itself"), "{}", log.text());
    // Once more, and nothing is done twice.
    host.restart();
    assert_eq!((namespace.ttl().as_str(), journal(&host).len()), ("64", 1));
}

/// Asks the node for a change as a client would that is killed then: it does not wait for an answer.
fn ask_and_go(host: &Host) -> UnixStream {
    let mut client = UnixStream::connect(host.run_dir().join("api.sock")).unwrap();
    let body = r#"{"value":"99"}"#;
    let head = format!(
        "PUT /v2/sysctl/{TTL}?confirm_within=1s HTTP/1.0\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    client.write_all(format!("{head}{body}").as_bytes()).unwrap();
    client
}

#[test]
fn a_kill_at_any_moment_leaves_the_old_value() {
    if Namespace::new().is_none() {
        return;
    }
    // What the node is in the middle of when it is killed: that it was asked, that it writes down what it
    // is about to do, that this is there, that the value is, and that the journal has it.
    let moments =
        ["", "state/sysctl", "state/sysctl/pending/*.json", "value", "state/sysctl/journal.ndjson"];
    thread::scope(|scope| {
        for moment in moments {
            scope.spawn(move || {
                let Some((namespace, mut host)) = host_in_namespace() else { return };
                let client = ask_and_go(&host);
                let began = Instant::now();
                until("it is that far", || match moment.split_once('*') {
                    Some((dir, kind)) => fs::read_dir(host.path(dir)).is_ok_and(|mut files| {
                        files.any(|file| {
                            file.is_ok_and(|it| it.file_name().to_string_lossy().ends_with(kind))
                        })
                    }),
                    None if moment == "value" => namespace.ttl() == "99",
                    None => moment.is_empty() || host.path(moment).exists(),
                });
                host.node.child.kill().unwrap();
                host.node.child.wait().unwrap();
                drop(client);
                let was = namespace.ttl();
                until("its time is over", || began.elapsed() > Duration::from_millis(1_500));
                host.restart();
                let state = journal(&host).pop().map(|entry| entry["state"].clone());
                println!("killed at `{moment}`: {was}, then {state:?}");
                assert_eq!(namespace.ttl(), "64", "killed at `{moment}`: {state:?}");
                let is_known =
                    state.as_ref().is_none_or(|it| *it == "rolled-back" || *it == "not-made");
                assert!(is_known, "{state:?}");
                assert!(was == "64" || state == Some("rolled-back".into()), "{was}: {state:?}");
            });
        }
    });
}

#[test]
fn of_two_at_once_one_is_made() {
    let Some((namespace, host)) = host_in_namespace() else { return };
    let values = ["81", "82", "83", "84"];
    let clients = values.map(|value| {
        let what = format!("net.ipv4.ip_default_ttl={value}");
        host.spawn(&["sysctl", "set", &what, "--confirm-within", "1h"])
    });
    let said = clients.map(host::Running::ends);
    let made: Vec<_> = (0..4).filter(|at| said[*at].code == Some(0)).collect();
    assert_eq!(made.len(), 1, "{said:?}");
    assert_eq!(namespace.ttl(), values[made[0]]);
    host.run(&["sysctl", "rollback"]).with_code(0);
    assert_eq!(namespace.ttl(), "64", "what was there before all of them");
}

#[test]
fn a_node_that_is_back_in_time_takes_back_in_time_or_is_told_to_keep() {
    let Some((namespace, mut host)) = host_in_namespace() else { return };
    set(&host, &["net.ipv4.ip_default_ttl=98", "--confirm-within", "4s"]).with_code(0);
    host.restart();
    let waits = last(&host);
    assert_eq!((namespace.ttl().as_str(), &waits["state"]), ("98", &"pending".into()), "{waits}");
    assert!(waits["left_ms"].as_u64().unwrap() <= 4_000, "{waits}");
    until("it is taken back", || namespace.ttl() == "64");
    until("it is written down", || last(&host)["state"] == "rolled-back");

    set(&host, &["net.ipv4.ip_default_ttl=97", "--confirm-within", "1h"]).with_code(0);
    host.restart();
    host.run(&["sysctl", "confirm"]).with_code(0);
    host.restart();
    assert_eq!((namespace.ttl().as_str(), &last(&host)["state"]), ("97", &"confirmed".into()));
    // What was confirmed is taken back on demand.
    let id = last(&host)["id"].as_str().unwrap().to_owned();
    host.run(&["sysctl", "confirm", &id]).with_code(0);
    host.run(&["sysctl", "rollback", &id]).with_code(0);
    assert_eq!((namespace.ttl().as_str(), &last(&host)["state"]), ("64", &"rolled-back".into()));
    host.run(&["sysctl", "rollback", &id]).with_code(0);
    host.run(&["sysctl", "confirm", &id]).with_code(1).says("rolled-back already");
    host.run(&["sysctl", "confirm", "00000000000000aa"]).with_code(1).says("no change");
    host.run(&["sysctl", "confirm"]).with_code(1).says("kumo: no change waits to be confirmed");
    let unknown = "`nosuchid` is no id of a change, and no change of such a parameter waits";
    host.run(&["sysctl", "confirm", "nosuchid"]).with_code(1).says(unknown);
    host.run(&["sysctl", "log", "vm.nosuch"]).with_code(1).says("no change of `vm.nosuch` stands");
    let log = host.run(&["sysctl", "log"]).with_code(0);
    assert!(log.text().contains("user 0; rolled-back by user 0"), "{}", log.text());
}

#[test]
fn who_waits_for_the_end_is_told_it_by_one_request() {
    let Some((_namespace, host)) = host_in_namespace() else { return };
    let wait = |within: &str| {
        let args = ["sysctl", "set", "net.ipv4.ip_default_ttl=99", "--confirm-within", within];
        host.spawn(&[&args[..], &["--wait-for-end"]].concat())
    };
    let waits = wait("1h");
    until("it waits", || journal(&host).last().is_some_and(|it| it["state"] == "pending"));
    host.run(&["sysctl", "confirm"]).with_code(0);
    let said = waits.ends().with_code(0);
    assert!(said.text().contains("64 → 99  confirmed"), "{}", said.text());
    host.run(&["sysctl", "rollback", last(&host)["id"].as_str().unwrap()]).with_code(0);
    let said = wait("1s").ends().with_code(1);
    assert!(said.text().contains("it was not confirmed in time"), "{}", said.text());
}

#[test]
fn what_somebody_else_has_written_is_left_alone() {
    let Some((namespace, mut host)) = host_in_namespace() else { return };
    set(&host, &["net.ipv4.ip_default_ttl=96", "--confirm-within", "1h"]).with_code(0);
    namespace.write_ttl("50");
    host.run(&["sysctl", "rollback", TTL]).with_code(1);
    let entry = last(&host);
    assert_eq!((namespace.ttl().as_str(), &entry["state"]), ("50", &"overtaken".into()), "{entry}");
    assert!(entry["why"].as_str().unwrap().contains("somebody else"), "{entry}");
    // The same by a node that starts.
    set(&host, &["net.ipv4.ip_default_ttl=95", "--confirm-within", "1s"]).with_code(0);
    host.node.child.kill().unwrap();
    host.node.child.wait().unwrap();
    namespace.write_ttl("51");
    let began = Instant::now();
    until("its time is over", || began.elapsed() > Duration::from_secs(1));
    host.restart();
    assert_eq!((namespace.ttl().as_str(), &last(&host)["state"]), ("51", &"overtaken".into()));
}

#[test]
fn a_node_that_is_stopped_leaves_nothing_that_nobody_watches() {
    let Some((namespace, mut host)) = host_in_namespace() else { return };
    set(&host, &["net.ipv4.ip_default_ttl=94", "--confirm-within", "1h"]).with_code(0);
    host.node.signal(Signal::TERM);
    host.node.child.wait().unwrap();
    assert_eq!(namespace.ttl(), "64");
    host.restart();
    let entry = last(&host);
    assert_eq!(entry["state"], "rolled-back", "{entry}");
    assert!(entry["ended_by"].as_str().unwrap().contains("stopped"), "{entry}");
}

#[test]
fn a_value_that_went_with_its_kernel_or_namespace_is_not_put_anywhere() {
    for (field, wrong, said) in [
        ("boot_id", Value::from("another"), "has booted since"),
        ("network_namespace", Value::from(1), "another network namespace"),
    ] {
        let Some((namespace, mut host)) = host_in_namespace() else { return };
        set(&host, &["net.ipv4.ip_default_ttl=93", "--confirm-within", "1h"]).with_code(0);
        host.node.child.kill().unwrap();
        host.node.child.wait().unwrap();
        let id = fs::read_dir(host.path("state/sysctl/pending")).unwrap().next().unwrap().unwrap();
        let mut kept: Value = serde_json::from_slice(&fs::read(id.path()).unwrap()).unwrap();
        kept["kernel"][field] = wrong;
        fs::write(id.path(), kept.to_string()).unwrap();
        host.restart();
        let entry = last(&host);
        assert_eq!((namespace.ttl().as_str(), &entry["state"]), ("93", &"gone".into()), "{entry}");
        assert!(entry["why"].as_str().unwrap().contains(said), "{entry}");
    }
}

#[test]
fn what_a_killed_node_was_about_to_do_is_found_out() {
    // The disk says that it shall be made; whether it was, says the value.
    for (now, state, ttl) in
        [("92", "rolled-back", "64"), ("64", "not-made", "64"), ("7", "overtaken", "7")]
    {
        let Some((namespace, mut host)) = host_in_namespace() else { return };
        set(&host, &["net.ipv4.ip_default_ttl=92", "--confirm-within", "1s"]).with_code(0);
        host.node.child.kill().unwrap();
        host.node.child.wait().unwrap();
        let began = Instant::now();
        let id = fs::read_dir(host.path("state/sysctl/pending")).unwrap().next().unwrap().unwrap();
        let mut kept: Value = serde_json::from_slice(&fs::read(id.path()).unwrap()).unwrap();
        (kept["state"], kept["became"]) = ("intended".into(), Value::Null);
        fs::write(id.path(), kept.to_string()).unwrap();
        namespace.write_ttl(now);
        until("its time is over", || began.elapsed() > Duration::from_secs(1));
        host.restart();
        let entry = last(&host);
        assert_eq!((namespace.ttl().as_str(), &entry["state"]), (ttl, &state.into()), "{entry}");
    }
}

#[test]
fn what_is_refused_says_why_and_changes_nothing() {
    let Some((namespace, host)) = host_in_namespace() else { return };
    let cases = [
        (&["kernel.core_pattern=|/bin/sh"][..], 1, "never written"),
        (&["kernel.sysrq=1"], 1, "--sysctl-allow"),
        (&["net.ipv4.ip_default_ttl=65", "--if", "63"], 1, "is `64`"),
        (&["net.ipv4.ip_default_ttl=256"], 1, "does not take this value"),
        (&["net.ipv4.ip_default_ttl=x"], 1, "does not take this value"),
        (&["net.ipv4.ip_default_ttl=1\n2"], 2, "one line"),
        (&["net.ipv4.nonsense=1"], 1, "no kernel parameter"),
        (&["net.ipv4.conf=1"], 2, "group of parameters"),
        (&["net/../kernel/sysrq=1"], 2, "no piece of it"),
        (&["vm.drop_caches=1"], 1, "written only"),
        (&["net.ipv4.ip_default_ttl=65", "--canary", "1"], 2, "many hosts"),
        (&["net.ipv4.ip_default_ttl"], 2, "Write net.ipv4.ip_default_ttl=VALUE"),
        (&["net.ipv4.ip_default_ttl", "="], 2, "Write net.ipv4.ip_default_ttl=VALUE"),
        (&["net.ipv4.ip_default_ttl=1", "vm.swappiness=2"], 2, "set `vm.swappiness=2` by itself"),
        (&["net.ipv4.ip_default_ttl=1", "2"], 2, "`2` behind the value"),
        (&["net.ipv4.tcp_rmem", "4096", "131072"], 2, "with quotes where the value has blanks"),
    ];
    for (args, code, want) in cases {
        set(&host, args).with_code(code).says(want);
        assert_eq!(namespace.ttl(), "64", "after {args:?}");
    }
    // What the kernel refused stands in the journal; what we refused did not come so far.
    assert!(journal(&host).iter().all(|entry| entry["state"] == "not-made"));
    let dry = set(&host, &["net.ipv4.ip_default_ttl=65", "--dry-run", "--if", "0x40"]).with_code(0);
    assert!(dry.text().contains("64 → 65  would change"), "{}", dry.text());
    let spaced = set(&host, &["net.ipv4.ip_default_ttl", "=", "65", "--dry-run"]).with_code(0);
    assert_eq!(spaced.text(), dry.text());
    let same = set(&host, &["net.ipv4.ip_default_ttl=0x40"]).with_code(0);
    assert!(same.text().contains("unchanged"), "{}", same.text());
    assert_eq!(namespace.ttl(), "64");

    set(&host, &["net.ipv4.ip_default_ttl=65", "--confirm-within", "1h"]).with_code(0);
    set(&host, &["net.ipv4.ip_default_ttl=66"]).with_code(1).says("waits to be confirmed");
    assert_eq!(namespace.ttl(), "65");
    host.run(&["sysctl", "rollback", TTL]).with_code(0);
    // A vector of which the kernel takes the first numbers before it refuses the last.
    let before = namespace.run(&["cat", "/proc/sys/net/ipv4/tcp_rmem"]);
    set(&host, &["net.ipv4.tcp_rmem=5000 x"]).with_code(1);
    assert_eq!(namespace.run(&["cat", "/proc/sys/net/ipv4/tcp_rmem"]), before);
}

#[test]
fn what_cannot_be_written_down_is_not_done() {
    let Some((namespace, host)) = host_in_namespace() else { return };
    fs::write(host.path("state/sysctl"), "a file where a directory should be").unwrap();
    set(&host, &["net.ipv4.ip_default_ttl=91", "--confirm-within", "1s"]).with_code(1).says("disk");
    assert_eq!(namespace.ttl(), "64");
}

#[test]
fn parameters_are_shown_by_a_node_and_without_one() {
    let Some((namespace, host)) = host_in_namespace() else { return };
    let get = |args: &[&str]| host.run(&[&["sysctl", "get"], args].concat());
    assert_eq!(get(&["-n", TTL]).with_code(0).text(), "64\n");
    let some = get(&["net/ipv4/ip_default_ttl", "vm.swap*"]).with_code(0);
    assert!(some.text().contains("net.ipv4.ip_default_ttl  64\n"), "{}", some.text());
    assert!(some.text().contains("vm.swappiness"), "{}", some.text());
    get(&["no.such.thing"]).with_code(1).says("no kernel parameter");
    let all = get(&["net.ipv4.*", "--all"]).with_code(0);
    assert!(all.text().contains("all 1"), "{}", all.text());
    // What it is of is told: another namespace has other values.
    let numbers = namespace.run(&["stat", "-L", "-c", "%i", "/proc/self/ns/net"]);
    let document = get(&[TTL, "--json"]).json();
    assert_eq!(document["network_namespace"].to_string(), numbers.trim());
    // Each value is the kernel's, and each name is understood again.
    let document = get(&["net", "--json"]).json();
    let parameters = document["parameters"].as_array().unwrap();
    assert!(parameters.len() > 100);
    for parameter in parameters.iter().filter(|it| it["value"].is_string()).step_by(50) {
        let name = parameter["name"].as_str().unwrap();
        let again = get(&[name, "--json"]).json();
        assert_eq!(again["parameters"][0]["name"], name);
    }
}

#[test]
fn of_many_that_are_one() {
    let Some((namespace, host)) = host_in_namespace() else { return };
    let made = set(
        &host,
        &["net.ipv4.ip_default_ttl=90", "--all", "--check", "value == '90'", "--watch", "0"],
    );
    let made = made.with_code(0);
    assert!(made.text().contains("tokyo/a  64 → 90"), "{}", made.text());
    assert!(made.text().contains("confirmed on 1 host"), "{}", made.text());
    assert_eq!((namespace.ttl().as_str(), &last(&host)["state"]), ("90", &"confirmed".into()));
    let fails = set(&host, &["net.ipv4.ip_default_ttl=89", "--all", "--check", "load1 < 0.0"]);
    let fails = fails.with_code(1);
    assert!(fails.text().contains("the check fails on tokyo/a: load1 is"), "{}", fails.text());
    assert!(fails.text().contains("taken back on all hosts"), "{}", fails.text());
    let taken_back = last(&host);
    assert_eq!((namespace.ttl().as_str(), &taken_back["state"]), ("90", &"rolled-back".into()));
    let why = taken_back["why"].as_str().unwrap_or_default();
    assert!(why.starts_with("the check fails on tokyo/a: load1 is"), "{taken_back}");
    for (args, want) in [
        (&["--check", "nonsense < 1"][..], "nonsense"),
        (&["--canary", "0%"], "no share"),
        (&["--confirm-within", "3s", "--watch", "1m"], "longer than 3 s"),
    ] {
        set(&host, &[&["net.ipv4.ip_default_ttl=88", "--all"], args].concat())
            .with_code(2)
            .says(want);
    }
    let refused = set(&host, &["kernel.sysrq=1", "--all"]).with_code(1);
    assert!(refused.text().contains("nothing was changed"), "{}", refused.text());
    assert_eq!(namespace.ttl(), "90");
}
