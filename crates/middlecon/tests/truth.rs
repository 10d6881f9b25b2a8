//! What callers are told when processes die, stand still or lie: real processes, real signals.
//!
//! A handler that runs appends to a file before anything else, so each outcome is checked against what
//! truly happened. `MIDDLECON_ROUNDS` sets how many callees are killed (40; the issue says 1,000).
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kumo_abi::call::{Cause, Method, ServiceName};
use middlecon::{CallError, Node};
use support::{Program, TestNode, tell, until};

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

/// Not a test by itself: what this binary does where another test runs it again.
#[test]
fn role() {
    let Ok(role) = std::env::var("MIDDLECON_ROLE") else { return };
    let dir = PathBuf::from(std::env::var("MIDDLECON_DIR").unwrap());
    let node = Node::connect(&dir).unwrap();
    match role.as_str() {
        "callee" | "forking-callee" | "packet-callee" => callee(&node, &role, &dir),
        "caller" => caller(&node),
        "middle" => middle(&node),
        other => panic!("no role {other}"),
    }
}

/// Serves until its standard input ends.
fn callee(node: &Node, role: &str, dir: &Path) {
    let forks = role == "forking-callee";
    let log = dir.join("ran");
    let server = node
        .serve(&service("callee"))
        .ring(role != "packet-callee")
        .method(&method("note"), move |call| {
            let mut log = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
            log.write_all(&[&call.body[..], b"\n"].concat()).unwrap();
            if forks {
                keep_descriptors();
            }
            Ok(Bytes::from_static(b"noted"))
        })
        .method(&method("hang"), |call| {
            tell("hangs");
            while !call.context.is_over() {
                std::thread::sleep(Duration::from_millis(1));
            }
            tell("over");
            Ok(Bytes::new())
        })
        .start()
        .unwrap();
    tell("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    drop(server);
}

/// Starts, once, a child that holds duplicates of all our sockets and outlives us by a moment, as a
/// helper would that was forked and never closed them.
fn keep_descriptors() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let sockets: Vec<i32> = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                let link = std::fs::read_link(path);
                link.is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
            })
            .map(|path| path.file_name().unwrap().to_string_lossy().parse().unwrap())
            .collect();
        let own = rustix::process::Pid::from_raw(std::process::id() as i32).unwrap();
        let own = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
        let none = rustix::process::PidfdGetfdFlags::empty();
        let copies: Vec<_> = sockets
            .into_iter()
            .filter_map(|fd| rustix::process::pidfd_getfd(&own, fd, none).ok())
            .inspect(|copy| {
                rustix::io::fcntl_setfd(copy, rustix::io::FdFlags::empty()).unwrap();
            })
            .collect();
        assert!(!copies.is_empty());
        // Nobody waits for it: it outlives us on purpose.
        #[allow(clippy::zombie_processes)]
        Command::new("sleep")
            .arg("1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
    });
}

/// Calls as it is told: a line is a method.
fn caller(node: &Node) {
    tell("ready");
    let callee = node.service(&service("callee"));
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).unwrap() > 0 {
        let said = callee.call(&method(line.trim()), b"");
        tell(&format!("{said:?}"));
        line.clear();
    }
}

/// Passes every call on to the next of a chain, and notes when it is over.
fn middle(node: &Node) {
    let own = std::env::var("MIDDLECON_OWN").unwrap();
    let next = service(&std::env::var("MIDDLECON_NEXT").unwrap());
    let next = node.service(&next);
    let server = node
        .serve(&service(&own))
        .method(&method("hang"), move |_| {
            let outcome = next.call(&method("hang"), b"");
            tell("over");
            Ok(outcome?)
        })
        .start()
        .unwrap();
    tell("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    drop(server);
}

fn rounds() -> usize {
    std::env::var("MIDDLECON_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40)
}

/// Kills callees while calls are on their way, and compares what callers were told with what ran.
fn kill_in_the_middle(role: &str) {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let log = node.run_dir().join("ran");
    let (mut told_ms, mut unknown, mut not_executed, mut done) = (Vec::new(), 0, 0, 0);
    for round in 0..rounds() {
        let mut callee = Program::spawn(role, &node);
        let calls = here.service(&service("callee"));
        calls.call(&method("note"), b"first").unwrap();
        let (outcomes, killed) = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|thread| {
                    let calls = calls.clone();
                    scope.spawn(move || {
                        let mut outcomes = Vec::new();
                        for n in 0.. {
                            let body = format!("{round}-{thread}-{n}");
                            let outcome = calls.call(&method("note"), body.as_bytes());
                            let ended = outcome.is_err();
                            outcomes.push((body, outcome));
                            if ended {
                                break;
                            }
                        }
                        (outcomes, Instant::now())
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_micros(3_000 + 137 * (round as u64 % 29)));
            let killed = Instant::now();
            callee.kill();
            let outcomes: Vec<_> =
                threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            (outcomes, killed)
        });
        let ran = std::fs::read_to_string(&log).unwrap();
        let ran: Vec<&str> = ran.lines().collect();
        for (outcomes, over) in outcomes {
            told_ms.push(over.saturating_duration_since(killed).as_secs_f64() * 1e3);
            for (body, outcome) in outcomes {
                let times = ran.iter().filter(|line| **line == body).count();
                assert!(times <= 1, "{body} ran {times} times");
                match outcome {
                    Ok(_) => {
                        done += 1;
                        assert_eq!(times, 1, "{body} was answered, so it ran");
                    }
                    Err(CallError::NotExecuted { cause, .. }) => {
                        not_executed += 1;
                        assert_eq!(times, 0, "{body} did not run, says {cause}");
                    }
                    Err(CallError::Unknown { cause, .. }) => {
                        unknown += 1;
                        assert!(matches!(cause, Cause::Died | Cause::Lost), "{cause}");
                    }
                    Err(failed) => panic!("{failed}"),
                }
            }
        }
        std::fs::remove_file(&log).unwrap();
    }
    told_ms.sort_by(f64::total_cmp);
    println!(
        "{role}: {done} done, {not_executed} not executed, {unknown} unknown; told after the kill: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        told_ms[told_ms.len() / 2],
        told_ms[told_ms.len() * 99 / 100],
        told_ms[told_ms.len() - 1],
    );
    until("nothing is left", || node.grants() == 0);
}

#[test]
fn a_callee_is_killed_and_every_caller_has_the_right_outcome() {
    kill_in_the_middle("callee");
}

#[test]
fn a_callee_without_rings_is_killed_and_every_caller_has_the_right_outcome() {
    kill_in_the_middle("packet-callee");
}

#[test]
fn a_callee_is_killed_while_its_child_holds_the_descriptors() {
    kill_in_the_middle("forking-callee");
}

#[test]
fn a_call_that_was_taken_is_unknown_and_one_that_was_not_is_not_executed() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let calls = here.service(&service("callee"));
    let mut callee = Program::spawn("callee", &node);
    std::thread::scope(|scope| {
        let taken = scope.spawn(|| calls.call(&method("hang"), b""));
        assert_eq!(callee.line(), "hangs");
        callee.kill();
        let told = taken.join().unwrap().unwrap_err();
        assert!(matches!(told, CallError::Unknown { cause: Cause::Died, .. }), "{told}");
    });
    // A callee that stands still takes nothing.
    let mut callee = Program::spawn("callee", &node);
    calls.call(&method("note"), b"one").unwrap();
    callee.signal(19);
    until("it stands still", || support::state(callee.pid()) == Some('T'));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| calls.call(&method("note"), b"two"));
        // Long enough to be sent, too short to be called suspended; if it was not sent yet, the outcome
        // is the same.
        std::thread::sleep(Duration::from_millis(20));
        callee.kill();
        let told = waits.join().unwrap().unwrap_err();
        // The connection was old, so the call was tried again, and then nobody served.
        assert!(matches!(told, CallError::NotExecuted { .. }), "{told}");
    });
    let ran = std::fs::read_to_string(node.run_dir().join("ran")).unwrap();
    assert_eq!(ran, "one\n");
}

#[test]
fn a_callee_that_stands_still_is_told_and_does_not_run_the_call_later() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let calls = here.service(&service("callee"));
    let callee = Program::spawn("callee", &node);
    calls.call(&method("note"), b"one").unwrap();
    callee.signal(19);
    until("it stands still", || support::state(callee.pid()) == Some('T'));
    let began = Instant::now();
    // A first call on an old connection is tried again on a new one, whose callee never says hello.
    let told =
        calls.request(&method("note")).budget(Duration::from_secs(3)).call(b"two").unwrap_err();
    println!("suspended: {told} after {:?}", began.elapsed());
    assert!(matches!(told, CallError::NotExecuted { .. }), "{told}");
    callee.signal(18);
    // It has gone through all that was sent to it once it answers again.
    until("it answers again", || calls.call(&method("note"), b"three").is_ok());
    let ran = std::fs::read_to_string(node.run_dir().join("ran")).unwrap();
    assert_eq!(ran, "one\nthree\n");
}

#[test]
fn a_deadline_is_kept_and_what_was_not_taken_never_runs() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let calls = here.service(&service("callee"));
    let mut callee = Program::spawn("callee", &node);
    let budget = Duration::from_millis(50);
    let began = Instant::now();
    let told = calls.request(&method("hang")).budget(budget).call(b"").unwrap_err();
    let took = began.elapsed();
    assert!(matches!(told, CallError::Unknown { cause: Cause::Deadline, .. }), "{told}");
    println!("a deadline of {budget:?} was told after {took:?}");
    assert!(took >= budget);
    // Its handler sees that nobody waits any more.
    assert_eq!((callee.line(), callee.line()), ("hangs".to_owned(), "over".to_owned()));
    calls.call(&method("note"), b"one").unwrap();
    callee.signal(19);
    until("it stands still", || support::state(callee.pid()) == Some('T'));
    let told = calls.request(&method("note")).budget(budget).call(b"two").unwrap_err();
    assert!(matches!(told, CallError::NotExecuted { cause: Cause::Deadline, .. }), "{told}");
    callee.signal(18);
    until("it answers again", || calls.call(&method("note"), b"three").is_ok());
    let ran = std::fs::read_to_string(node.run_dir().join("ran")).unwrap();
    assert_eq!(ran, "one\nthree\n");
}

#[test]
fn a_caller_that_is_killed_ends_the_work_of_the_whole_chain() {
    let node = TestNode::start();
    let mut last = Program::spawn("callee", &node);
    let names = ["m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"];
    let mut chain: Vec<Program> = (0..names.len())
        .map(|at| {
            let next = names.get(at + 1).copied().unwrap_or("callee");
            let mut program = Program::spawn_with(
                "middle",
                node.run_dir().to_owned(),
                &[("MIDDLECON_OWN", names[at]), ("MIDDLECON_NEXT", next)],
            );
            assert_eq!(program.line(), "ready");
            program
        })
        .collect();
    let mut caller = Program::spawn_with(
        "middle",
        node.run_dir().to_owned(),
        &[("MIDDLECON_OWN", "root"), ("MIDDLECON_NEXT", "m1")],
    );
    assert_eq!(caller.line(), "ready");
    let here = Node::connect(node.run_dir()).unwrap();
    std::thread::scope(|scope| {
        let root = scope.spawn(|| here.service(&service("root")).call(&method("hang"), b""));
        assert_eq!(last.line(), "hangs");
        let killed = Instant::now();
        caller.kill();
        let mut after = Vec::new();
        for program in &mut chain {
            assert_eq!(program.line(), "over");
            after.push(killed.elapsed());
        }
        assert_eq!(last.line(), "over");
        println!(
            "the chain was over after {after:?}, its last handler after {:?}",
            killed.elapsed()
        );
        assert!(root.join().unwrap().is_err());
    });
}
