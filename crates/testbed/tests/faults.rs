//! What a caller is told, and how soon, when the host of its callee is lost, its data centre is cut off, or the
//! callee stands still. Times are printed with what is promised; only that nobody hangs is asserted.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kumo_abi::HostId;
use kumo_testbed::cluster::Cluster;
use kumo_testbed::kumo_for_tests;
use kumo_testbed::net::{Way, has_loss_for_tests, is_there_for_tests};
use serde_json::Value;

/// A lost host is told.
const HOST_LOST_MAX: Duration = Duration::from_millis(500);

/// Budget of a call here: who is told only when it is spent was not told.
const BUDGET: &str = "60s";
const BUDGET_TIME: Duration = Duration::from_secs(60);

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn cluster() -> Option<Cluster> {
    let there = is_there_for_tests();
    there.then(|| Cluster::for_test(2, 2, 1).unwrap_or_else(|error| panic!("{error}")))
}

/// A command of `kumo` on a host. Killed and reaped when dropped.
struct Running {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(cluster: &Cluster, at: &HostId, arguments: &[&str]) -> Running {
        let mut command = Command::new(kumo_for_tests());
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = cluster.spawn(at, command).unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Running { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }

    /// Waits for its end; the object that it wrote.
    fn outcome(mut self) -> Value {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.out, &mut text).unwrap();
        self.child.wait().unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A service of `at` whose handler makes `mark` and sleeps.
fn serve(cluster: &Cluster, at: &HostId) -> (Running, PathBuf) {
    let mark = cluster.dir(at).unwrap().join("began");
    let script = format!("touch {}; exec sleep 1000", mark.display());
    let arguments = ["serve", "sleeper", "--slots", "1", "--", "sh", "-c", &script];
    let mut served = Running::start(cluster, at, &arguments);
    assert!(served.line().contains("serves sleeper"));
    (served, mark)
}

/// A call from `from`, whose handler has begun.
fn call(cluster: &Cluster, from: &HostId, mark: &Path) -> Running {
    cluster.until("the service is known elsewhere", |cluster| {
        let words = ["ping", "sleeper", "-n", "1"].map(str::to_owned);
        cluster.kumo_status(from, &words).is_ok_and(|(status, ..)| status.success())
    });
    let called = Running::start(cluster, from, &["call", "sleeper", "--budget", BUDGET, "--json"]);
    cluster.until("the handler begins", |_| mark.exists());
    called
}

/// Waits for the end of a call whose handler had begun: of that nobody may say that it did not run.
fn told(called: Running, what: &str, since: Instant, causes: &[&str], promise: Duration) {
    let outcome = called.outcome();
    let took = since.elapsed();
    println!("{what}: {} after {took:?} (promised: {promise:?})", outcome["cause"]);
    assert_eq!(outcome["outcome"], "unknown", "{outcome}");
    assert!(causes.iter().any(|cause| outcome["cause"] == *cause), "{outcome}");
    assert!(took < BUDGET_TIME, "it was told, and did not wait for its budget");
}

#[test]
fn a_host_that_falls_silent_is_told_as_lost() {
    let Some(cluster) = cluster() else { return };
    let (from, at) = (host("tokyo/a"), host("tokyo/b"));
    let (_served, mark) = serve(&cluster, &at);
    let called = call(&cluster, &from, &mark);
    cluster.cut(&at).unwrap();
    told(called, "unplugged", Instant::now(), &["HOST_LOST"], HOST_LOST_MAX);
    cluster.heal(&at).unwrap();

    if !has_loss_for_tests() {
        return;
    }
    let began = cluster.until("the nodes see each other again", |cluster| {
        cluster.ids().all(|id| cluster.sees_all_alive(id))
    });
    println!("all alive after {began:?}");
    fs::remove_file(&mark).unwrap();
    let called = call(&cluster, &from, &mark);
    cluster.lose(&at, Way::In, 100).unwrap();
    cluster.lose(&at, Way::Out, 100).unwrap();
    told(called, "black hole", Instant::now(), &["HOST_LOST"], HOST_LOST_MAX);
}

#[test]
fn a_data_centre_that_is_cut_off_is_told() {
    let Some(cluster) = cluster() else { return };
    let (from, at) = (host("tokyo/a"), host("osaka/b"));
    let (_served, mark) = serve(&cluster, &at);
    let called = call(&cluster, &from, &mark);
    cluster.cut_dc(&at.dc).unwrap();
    // The first is what can be known before its gateways are missed, the second afterwards.
    told(called, "cut off", Instant::now(), &["HOST_LOST", "PARTITION"], HOST_LOST_MAX);
    // Once that is known, a new call is not even sent.
    cluster.until("osaka is seen as cut off", |cluster| {
        let state = cluster.state(&from, &at);
        state == Some(kumo_abi::cluster::HostState::CutOff)
    });
    let called = Running::start(&cluster, &from, &["call", "sleeper", "--budget", "2s", "--json"]);
    let outcome = called.outcome();
    assert_eq!(outcome["outcome"], "not-executed", "{outcome}");
    println!("a call afterwards: {}", outcome["cause"]);
}

#[test]
fn an_eviction_ends_what_is_open_with_that_host() {
    let Some(cluster) = cluster() else { return };
    let (from, at) = (host("tokyo/a"), host("osaka/b"));
    let (_served, mark) = serve(&cluster, &at);
    let called = call(&cluster, &from, &mark);
    let began = Instant::now();
    cluster.kumo(&from, &["evict", "osaka/b"].map(str::to_owned)).unwrap();
    told(called, "evicted", began, &["DENIED"], HOST_LOST_MAX);
}

/// A control group of our own, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    /// Nothing, with a message, where there is no freezer.
    fn new() -> Option<Cgroup> {
        // Beside those of version 1 the unified hierarchy is mounted below.
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let mount = mounts.into_iter().find(|mount| mount.join("cgroup.controllers").exists());
        let dir = mount.unwrap_or(mounts[0]).join(format!("kumo-test-{}", std::process::id()));
        let made = fs::create_dir(&dir).and_then(|()| fs::metadata(dir.join("cgroup.freeze")));
        if let Err(error) = made {
            eprintln!("skipped: no control group can be frozen here: {error}");
            fs::remove_dir(&dir).ok();
            return None;
        }
        Some(Cgroup(dir))
    }

    fn freeze(&self, is: bool) {
        fs::write(self.0.join("cgroup.freeze"), if is { "1" } else { "0" }).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        fs::write(self.0.join("cgroup.freeze"), "0").ok();
        // Whoever is still in it ends here.
        fs::write(self.0.join("cgroup.kill"), "1").ok();
        let began = Instant::now();
        while fs::remove_dir(&self.0).is_err() && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_callee_in_a_frozen_control_group_is_told_as_suspended() {
    let Some(cluster) = cluster() else { return };
    let Some(group) = Cgroup::new() else { return };
    let at = host("tokyo/b");
    let (served, mark) = serve(&cluster, &at);
    for from in ["tokyo/b", "osaka/a"] {
        fs::remove_file(&mark).ok();
        let called = call(&cluster, &host(from), &mark);
        fs::write(group.0.join("cgroup.procs"), served.child.id().to_string()).unwrap();
        group.freeze(true);
        told(called, &format!("frozen, for {from}"), Instant::now(), &["SUSPENDED"], HOST_LOST_MAX);
        group.freeze(false);
    }
}

#[test]
fn nobody_is_told_as_lost_because_a_machine_is_busy() {
    let Some(cluster) = cluster() else { return };
    let (from, at) = (host("tokyo/a"), host("osaka/b"));
    let script = "cat";
    let arguments = ["serve", "echo", "--slots", "2", "--", script];
    let mut served = Running::start(&cluster, &at, &arguments);
    assert!(served.line().contains("serves echo"));
    cluster.until("the service is known elsewhere", |cluster| {
        let words = ["ping", "echo", "-n", "1"].map(str::to_owned);
        cluster.kumo_status(&from, &words).is_ok_and(|(status, ..)| status.success())
    });
    // More that want to run than there are processors, for as long as calls are made.
    let busy = 2 * std::thread::available_parallelism().map_or(2, usize::from);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..busy {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let began = Instant::now();
        let mut calls = 0;
        let mut wrong = Vec::new();
        while began.elapsed() < Duration::from_secs(15) {
            let words = ["call", "echo", "hello", "--budget", "30s", "--json"];
            let outcome = Running::start(&cluster, &from, &words).outcome();
            calls += 1;
            if outcome["outcome"] != "done" {
                wrong.push(outcome);
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        println!("{calls} calls beside {busy} busy threads");
        assert!(wrong.is_empty(), "{wrong:?}");
    });
}
