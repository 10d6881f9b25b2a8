//! `kumo up` as people and service managers run it: the built binary.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use kumo_abi::cluster::Role;
use kumo_fabric::identity::Identity;
use kumo_fabric::pki::Authority;
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

/// An address that nobody else takes the port of.
fn fabric_address() -> SocketAddr {
    static COUNT: AtomicU8 = AtomicU8::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, 100 + COUNT.fetch_add(1, Ordering::Relaxed), high, low);
    (ip, 7081).into()
}

/// Runs another subcommand on the files of `dir`.
fn kumo(dir: &Path, line: &str, dirs: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kumo"));
    command.args(line.split_whitespace());
    for which in dirs {
        command.arg(format!("--{which}-dir")).arg(dir.join(which));
    }
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

const BOTH: &[&str] = &["state", "run"];

#[test]
fn a_node_comes_into_a_cluster_and_out_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::spawn(dir.path(), &[]);
    let listen = fabric_address();
    let holder = TcpListener::bind(listen).unwrap();
    let init = format!("init --cluster acme --dc tokyo --host a --listen {listen}");
    let (code, said) = kumo(dir.path(), &init, BOTH);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("cannot listen for other hosts on {listen}")), "{said}");
    assert!(!dir.path().join("state/fabric/node.json").exists(), "nothing is written");
    drop(holder);
    let (code, said) = kumo(dir.path(), &init, BOTH);
    assert_eq!(code, Some(0), "{said}");
    let hosts = up.get("/v2/hosts");
    assert!(hosts.contains(r#""cluster":"acme","dc":"tokyo","host":"a""#), "{hosts}");

    // Who cannot tell the node must not pull its files away.
    let (code, said) = kumo(dir.path(), "leave", &["state"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("a node runs on") && said.contains("--run-dir"), "{said}");
    assert!(dir.path().join("state/fabric/node.json").exists(), "nothing is moved");
    let (code, said) = kumo(dir.path(), "leave", BOTH);
    assert_eq!(code, Some(0), "{said}");
    let hosts = up.get("/v2/hosts");
    assert!(hosts.contains(r#""cluster":null"#), "{hosts}");
}

#[test]
fn a_node_that_cannot_be_what_its_files_say_serves_on_and_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::spawn(dir.path(), &["--dc", "osaka", "--host", "x"]);
    let init = format!("init --cluster acme --dc tokyo --host a --listen {}", fabric_address());
    let (code, said) = kumo(dir.path(), &init, BOTH);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("did not start anew with them"), "{said}");
    assert!(said.contains("osaka/x without a cluster"), "{said}");
    assert!(up.get("/v2/host").contains(r#""dc":"osaka","host":"x""#));
    let (code, said) = kumo(dir.path(), "leave", BOTH);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_gateway_without_its_port_waits_for_it_as_a_host_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::spawn(dir.path(), &[]);
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let authority = Authority::create(&"acme".parse().unwrap(), now_ms).unwrap();
    let host = "tokyo/a".parse().unwrap();
    let issued = Identity::issue(&authority, &host, Role::Gateway, now_ms).unwrap();
    let listen = fabric_address();
    let identity = Identity { listen: Some(listen), advertise: vec![listen.to_string()], ..issued };
    identity.save(&dir.path().join("state/fabric"), Some(&authority)).unwrap();
    let holder = TcpListener::bind(listen).unwrap();
    let mut stream = UnixStream::connect(dir.path().join("run/api.sock")).unwrap();
    let request = "POST /v2/cluster/reopen HTTP/1.0\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut lines = up.lines.by_ref().map(Result::unwrap);
    let alone = lines.find(|line| line.starts_with("kumo: alone")).expect("it serves on");
    assert!(alone.contains(&format!("cannot listen for other hosts on {listen}")), "{alone}");
    drop(holder);
    assert!(lines.any(|line| line.contains("cluster acme")), "it is back");
}
