//! Nodes in this process: their directories, their locks, their socket.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use k2i::http::serve::{BindError, Listen};
use k2i::{CollectorChoice, CollectorKind};
use kumo_node::{
    AccessConfig, Dirs, LockError, Node, NodeConfig, Programs, StartError, Waited, socket_path,
};

/// A node on a free port, with the fastest collector to open.
fn config(state: &Path, run: &Path) -> NodeConfig {
    NodeConfig {
        dirs: Dirs { state: state.to_owned(), run: run.to_owned() },
        listen: Listen::Tcp(([127, 0, 0, 1], 0).into()),
        tls: None,
        insecure: false,
        access: AccessConfig::default(),
        collector: CollectorChoice::Only(CollectorKind::Proc),
        events: k2i::EventChoice::Off,
        history: None,
        dc: Some("tokyo".to_owned()),
        host: Some("web-1".to_owned()),
        calls: None,
        // Root's node lets others through its run directory, unless it is told not to.
        programs: Some(Programs::Own),
        lease: None,
        sysctl: kumo_abi::sysctl::AllowList::default(),
        metrics: k2i::metrics::Grouping::default(),
    }
}

/// The whole answer to a GET, head and body.
fn get(mut stream: impl Read + Write, target: &str) -> String {
    let head = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_node_serves_its_address_and_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (state, run) = (dir.path().join("state"), dir.path().join("run"));
    let node = Node::start(&config(&state, &run)).unwrap();
    assert_eq!(node.socket(), socket_path(&run));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&state), mode(&run), mode(node.socket())), (0o700, 0o700, 0o600));

    let address = node.url().strip_prefix("http://").unwrap();
    let by_address = get(TcpStream::connect(address).unwrap(), "/v2/proc?columns=pid&limit=1");
    let by_socket =
        get(UnixStream::connect(node.socket()).unwrap(), "/v2/proc?columns=pid&limit=1");
    for answer in [by_address, by_socket] {
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(r#""dc":"tokyo","host":"web-1""#), "{answer}");
    }
    assert_eq!(node.requests(), 2);
    assert_eq!(node.wait(Duration::ZERO), Waited::Longest, "nobody told it to stop");

    let socket = node.socket().to_owned();
    node.stop();
    assert!(!socket.exists());
    Node::start(&config(&state, &run)).expect("nothing is left that stops the next");
}

#[test]
fn one_node_on_a_state() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let _first = Node::start(&config(&at("state"), &at("run"))).unwrap();
    let cases = [("state", "run"), ("state", "other"), ("other", "run")];
    for (state, run) in cases {
        let error = Node::start(&config(&at(state), &at(run))).expect_err("the first one runs");
        let message = error.to_string();
        assert!(matches!(error, StartError::Lock(LockError::Held { .. })), "{message}");
        assert!(message.contains(&format!("(pid {})", std::process::id())), "{message}");
    }
    // They did no harm to the first, and none to those that go elsewhere.
    let socket = UnixStream::connect(socket_path(&at("run"))).unwrap();
    assert!(get(socket, "/v1/hello").ends_with("hello!"));
    Node::start(&config(&at("state-2"), &at("run-2"))).expect("a place of its own");
}

#[test]
fn one_directory_for_both_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("kumo");
    let node = Node::start(&config(&place, &place)).unwrap();
    assert!(node.socket().exists());
}

#[test]
fn a_state_within_the_run_directory_leaves_that_private() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let _node = Node::start(&config(&run.join("state"), &run)).unwrap();
    assert_eq!(fs::metadata(&run).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_dead_nodes_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    fs::create_dir(&run).unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).unwrap();
    // A listener that goes leaves its file, as a killed node does.
    drop(UnixListener::bind(socket_path(&run)).unwrap());
    fs::write(run.join("run.lock"), "1\n").unwrap();
    let node = Node::start(&config(&dir.path().join("state"), &run)).unwrap();
    assert!(get(UnixStream::connect(node.socket()).unwrap(), "/v1/hello").ends_with("hello!"));
}

#[test]
fn what_cannot_be_served_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let first = Node::start(&config(&at("state"), &at("run"))).unwrap();
    let mut second = config(&at("state-2"), &at("run-2"));
    second.listen = first.url().strip_prefix("http://").unwrap().parse().unwrap();
    let error = Node::start(&second).expect_err("the address is the first one's");
    assert!(matches!(error, StartError::Bind(BindError::Taken { .. })), "{error}");
    assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
    assert!(!socket_path(&at("run-2")).exists());

    second.listen = "0.0.0.0:0".parse().unwrap();
    let error = Node::start(&second).expect_err("others could ask");
    assert!(matches!(error, StartError::Exposed(_)), "{error}");

    fs::create_dir(at("open")).unwrap();
    fs::set_permissions(at("open"), fs::Permissions::from_mode(0o777)).unwrap();
    second.listen = "127.0.0.1:0".parse().unwrap();
    second.dirs.run = at("open");
    let error = Node::start(&second).expect_err("others could put their socket there");
    assert!(error.to_string().contains("mode 777"), "{error}");
}
