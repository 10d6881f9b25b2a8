//! A host with a node of its own, for tests: a real `kumo up`, and commands that go through it.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, test_kill_process_group};
use serde_json::Value;

/// Long enough for what must happen on a busy machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something is so.
#[track_caller]
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A command that runs; killed and reaped on drop.
pub struct Running {
    pub child: Child,
}

impl Running {
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it has ended by itself.
    pub fn ends(mut self) -> Said {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut stderr = self.child.stderr.take().unwrap();
        let complaints = thread::spawn(move || {
            stderr.read_to_end(&mut err).unwrap();
            err
        });
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_end(&mut out).unwrap();
        }
        let status = self.child.wait().unwrap();
        let err = String::from_utf8(complaints.join().unwrap()).unwrap();
        Said { code: status.code(), out, err }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        let err = String::from_utf8(output.stderr).unwrap();
        Said { code: output.status.code(), out: output.stdout, err }
    }
}

impl Said {
    #[track_caller]
    pub fn with_code(self, code: i32) -> Said {
        let text = String::from_utf8_lossy(&self.out);
        assert_eq!(self.code, Some(code), "stdout: {text}\nstderr: {}", self.err);
        self
    }

    #[track_caller]
    pub fn says(self, want: &str) -> Said {
        assert!(self.err.contains(want), "{want:?} is not in {:?}", self.err);
        self
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap()
    }
}

/// An address that is free now; in the worst case a node says that it is taken, and the test fails.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A search path on which scripts find the command that is tested.
pub fn path_with_kumo() -> String {
    let dir = Path::new(env!("CARGO_BIN_EXE_kumo")).parent().unwrap();
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default())
}

/// A host with a node of its own.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub node: Running,
    /// How its node is started again.
    start: Start,
}

/// What starts a node, and with which options.
#[derive(Clone, Default)]
struct Start {
    by: Vec<String>,
    more: Vec<String>,
}

impl Host {
    pub fn start() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let node = Host::node(dir.path());
        Host { dir, node, start: Start::default() }
    }

    /// The same, with a node that `by` starts with these options, as it does after [`Host::restart`].
    pub fn start_by(by: &[String], more: &[&str]) -> Host {
        let dir = tempfile::tempdir().unwrap();
        let more = more.iter().map(|&word| word.to_owned()).collect();
        let start = Start { by: by.to_vec(), more };
        let node = Host::node_by(dir.path(), &start);
        Host { dir, node, start }
    }

    /// The same, as the first host of a cluster `acme`.
    pub fn start_cluster() -> Host {
        let listen = format!("--listen {} --call-listen {}", free_address(), free_address());
        let line = format!("init --cluster acme --dc tokyo --host a {listen}");
        Host::start_after(&line, "")
    }

    /// One more host of the cluster, in a data centre of its own.
    pub fn start_joined(&self, dc: &str) -> Host {
        let token = self.run(&["token"]).with_code(0).text().to_owned();
        let line = format!("join - --dc {dc} --host b --call-listen {}", free_address());
        Host::start_after(&line, &token)
    }

    /// A host whose node starts after this command has made it one of a cluster.
    fn start_after(line: &str, input: &str) -> Host {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("input"), input).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kumo"));
        command.args(line.split(' ')).arg("--state-dir").arg(dir.path().join("state"));
        command.arg("--run-dir").arg(dir.path().join("run"));
        command.stdin(fs::File::open(dir.path().join("input")).unwrap());
        Said::from(command.output().unwrap()).with_code(0);
        let start = Start::default();
        let node = Host::node_by(dir.path(), &start);
        Host { dir, node, start }
    }

    /// The node is killed, and another started in its place.
    pub fn restart(&mut self) {
        self.node.child.kill().unwrap();
        self.node.child.wait().unwrap();
        self.node = Host::node_by(self.dir.path(), &self.start);
    }

    pub fn node(dir: &Path) -> Running {
        let more = ["--dc", "tokyo", "--host", "a"].map(str::to_owned).to_vec();
        Host::node_by(dir, &Start { by: Vec::new(), more })
    }

    fn node_by(dir: &Path, start: &Start) -> Running {
        let kumo = env!("CARGO_BIN_EXE_kumo").to_owned();
        let words = [start.by.as_slice(), &[kumo]].concat();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["up", "--listen", "127.0.0.1:0", "--collector", "proc"])
            .args(&start.more)
            .args(["--view", "never", "--state-dir"])
            .arg(dir.join("state"))
            .arg("--run-dir")
            .arg(dir.join("run"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains("serves http://"), "{line:?}");
        // Nobody reads on, so that the pipe's end must not matter: it says one line more.
        thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Running { child }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// `kumo` with these arguments, for this host's node.
    pub fn kumo(&self, args: &[&str]) -> Command {
        // Options belong to the innermost command.
        let (command, rest) =
            args.split_at(if matches!(args[0], "react" | "sysctl") { 2 } else { 1 });
        let mut kumo = Command::new(env!("CARGO_BIN_EXE_kumo"));
        kumo.args(command).arg("--run-dir").arg(self.run_dir()).args(rest);
        kumo.env("PATH", path_with_kumo());
        kumo.current_dir(self.dir.path()).env_remove("KUMO_CONTEXT").env_remove("NO_COLOR");
        kumo.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        kumo
    }

    pub fn run(&self, args: &[&str]) -> Said {
        self.kumo(args).output().unwrap().into()
    }

    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Said {
        let mut child = self.kumo(args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writing = thread::spawn(move || {
            stdin.write_all(&input).ok();
        });
        let said = Running { child }.ends();
        writing.join().unwrap();
        said
    }

    pub fn spawn(&self, args: &[&str]) -> Running {
        Running { child: self.kumo(args).spawn().unwrap() }
    }

    /// A server that is ready; its standard error stays to be read.
    pub fn serve(&self, args: &[&str]) -> Running {
        let mut running = self.spawn(&[&["serve"], args].concat());
        let mut out = BufReader::new(running.child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        if line.starts_with("kumo: serves ") {
            return running;
        }
        panic!("it does not serve: {:?}", running.ends())
    }

    /// Whether this file is there: how a command says how far it is.
    pub fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Whether the process group, whose number a command wrote into this file, has nobody left.
    pub fn is_gone(&self, name: &str) -> bool {
        let number = fs::read_to_string(self.path(name)).unwrap();
        let pid = Pid::from_raw(number.trim().parse().unwrap()).unwrap();
        test_kill_process_group(pid) == Err(Errno::SRCH)
    }
}
