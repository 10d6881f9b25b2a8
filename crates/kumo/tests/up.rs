//! `kumo up` as people and service managers run it: the built binary.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A node in directories of its own, on a free port; `Drop` kills and reaps it.
struct Up {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    url: String,
}

impl Up {
    fn spawn(dir: &Path, more: &[&str]) -> Up {
        let mut child = command(dir, more).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("the node says where it serves").unwrap();
        let url = first.split_whitespace().find(|word| word.starts_with("http://"));
        let url = url.unwrap_or_else(|| panic!("no address in {first:?}")).to_owned();
        Up { child, lines, url }
    }

    fn get(&self, target: &str) -> String {
        let mut stream = TcpStream::connect(self.url.strip_prefix("http://").unwrap()).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kumo"));
    command.args(["up", "--listen", "127.0.0.1:0", "--collector", "proc", "--state-dir"]);
    command.arg(dir.join("state")).arg("--run-dir").arg(dir.join("run")).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a node that must not start says.
fn refused(dir: &Path, more: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command(dir, more).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn it_serves_until_it_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let mut up = Up::spawn(dir.path(), &["--dc", "tokyo", "--host", "web-1"]);
        let answer = up.get("/v2/host");
        assert!(answer.contains(r#""dc":"tokyo","host":"web-1""#), "{answer}");
        up.signal(signal);
        assert_eq!(up.child.wait().unwrap().code(), Some(0), "after {signal:?}");
        let last = up.lines.by_ref().map(Result::unwrap).last();
        assert_eq!(last.as_deref(), Some("kumo: stopped"));
        assert!(!dir.path().join("run/api.sock").exists());
    }
}

#[test]
fn what_it_prints_works() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::spawn(dir.path(), &[]);
    let ps = format!("  kumo ps --run-dir {}", dir.path().join("run").display());
    let printed = up.lines.by_ref().map(Result::unwrap).find(|line| line.starts_with("  kumo ps"));
    assert_eq!(printed, Some(ps));
    let output = Command::new(env!("CARGO_BIN_EXE_kumo"))
        .args(["ps", "--json", "--run-dir"])
        .arg(dir.path().join("run"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = answer["rows"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["pid"] == up.child.id()), "the node is in its own table");
}

#[test]
fn a_second_one_says_who_is_first() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::spawn(dir.path(), &[]);
    let (code, said) = refused(dir.path(), &[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("a node already runs on"), "{said}");
    assert!(said.contains(&format!("(pid {})", up.child.id())), "{said}");
    assert!(up.get("/v1/hello").ends_with("hello!"));
}

#[test]
fn a_killed_one_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut up = Up::spawn(dir.path(), &[]);
        assert!(up.get("/v1/hello").ends_with("hello!"));
        up.signal(Signal::KILL);
        assert_eq!(up.child.wait().unwrap().code(), None);
        assert!(dir.path().join("run/api.sock").exists(), "it had no time to clean up");
    }
    let up = Up::spawn(dir.path(), &[]);
    assert!(up.get("/v1/hello").ends_with("hello!"));
}

#[test]
fn the_view_goes_on_until_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::spawn(dir.path(), &["--view", "always"]);
    let shown = up.lines.by_ref().map(Result::unwrap).find(|line| line.contains(" processes, "));
    assert!(shown.unwrap().contains("load "));
    up.signal(Signal::INT);
    assert_eq!(up.child.wait().unwrap().code(), Some(0));
}

#[test]
fn wrong_options_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&[&str], i32, &str); 5] = [
        (&["--dc", "a/b"], 2, "letters, digits"),
        (&["--listen", "nowhere"], 2, "is no address"),
        (&["--tls-cert", "x"], 2, "--tls-key"),
        (&["--tls-cert", "/nope/c", "--tls-key", "/nope/k"], 1, "cannot read certificate /nope/c"),
        (&["--log", "k2i=loud"], 2, "--log"),
    ];
    for (options, code, want) in cases {
        let arguments: Vec<_> = ["up"].iter().chain(options).collect();
        let output = Command::new(env!("CARGO_BIN_EXE_kumo"))
            .args(arguments)
            .arg("--state-dir")
            .arg(dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "for {options:?}: {said}");
        assert!(said.contains(want), "{said:?} does not say {want:?}");
    }
    let (code, said) = refused(dir.path(), &["--insecure=1"]);
    assert_eq!(code, Some(2), "{said}");
}
