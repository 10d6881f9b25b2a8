//! Programs that call and are called: this test binary again, in a role of its own.

#![allow(dead_code, reason = "no test uses all of it")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kumo_abi::call::{Method, ServiceName};
use middlecon::Node;

use crate::support::WAIT_MAX;

const ROLE: &str = "KUMO_TEST_ROLE";
const DIR: &str = "KUMO_TEST_RUN_DIR";

pub(crate) fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

pub(crate) fn method(name: &str) -> Method {
    name.parse().unwrap()
}

/// Waits until something is so; fails after [`WAIT_MAX`].
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < WAIT_MAX, "not within {WAIT_MAX:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A program in a role; killed and reaped on drop.
pub(crate) struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Program {
    /// Starts one. Returns when it has written `ready`.
    pub(crate) fn start(role: &str, run_dir: &Path) -> Program {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "role", "--nocapture", "--quiet"])
            .env(ROLE, role)
            .env(DIR, run_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut program = Program { child, stdin, stdout };
        assert_eq!(program.line(), "ready", "the role {role} begins");
        program
    }

    /// The next line that it writes, without what the test harness writes.
    pub(crate) fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "the program has ended");
            if let Some((_, line)) = line.split_once("> ") {
                return line.trim_end().to_owned();
            }
        }
    }

    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Writes a line that [`Program::line`] reads.
pub(crate) fn tell(line: &str) {
    println!("> {line}");
    std::io::stdout().flush().unwrap();
}

/// What this process does if it was started for a role; whether it was.
pub(crate) fn play() -> bool {
    let Ok(role) = std::env::var(ROLE) else { return false };
    let dir = std::env::var(DIR).unwrap();
    let node = Node::connect(dir.as_ref()).unwrap();
    match role.split_once(' ') {
        Some(("serve", name)) => serve(&node, name),
        Some(("call", name)) => call(&node, name),
        _ => panic!("no role {role}"),
    }
    true
}

/// Serves until its standard input ends: `echo` replies, `hang` says so and does not.
fn serve(node: &Node, name: &str) {
    let server = node
        .serve(&service(name))
        .method(&method("echo"), |call| Ok(call.body.clone()))
        .method(&method("hang"), |call| {
            tell("hangs");
            while !call.context.is_over() {
                std::thread::sleep(Duration::from_millis(1));
            }
            tell("over");
            // A reply that is written in the very moment in which the budget ends is a reply: this one
            // comes when nobody can be in doubt.
            std::thread::sleep(Duration::from_millis(500));
            Ok(call.body.clone())
        })
        .start()
        .unwrap();
    tell("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    drop(server);
}

/// Calls as it is told: a line is a method. It writes what came of it.
fn call(node: &Node, name: &str) {
    let callee = node.service(&service(name));
    tell("ready");
    for line in std::io::stdin().lines() {
        match callee.call(&method(line.unwrap().trim()), b"") {
            Ok(_) => tell("done"),
            Err(error) => tell(&error.status().to_string()),
        }
    }
}
