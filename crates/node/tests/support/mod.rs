//! Nodes in this process, and plain requests to them.

#![allow(dead_code, reason = "no test uses all of it")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k2i::http::serve::Listen;
use k2i::{CollectorChoice, CollectorKind};
use kumo_node::{AccessConfig, Dirs, Node, NodeConfig};
use serde_json::Value;

/// Longest wait for anything that is sure to come.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);

/// How to start a node in `dir`, on a free port, with the fastest collector to open.
pub(crate) fn config(dir: &Path) -> NodeConfig {
    NodeConfig {
        dirs: Dirs { state: dir.join("state"), run: dir.join("run") },
        listen: Listen::Tcp(([127, 0, 0, 1], 0).into()),
        tls: None,
        insecure: false,
        access: AccessConfig::default(),
        collector: CollectorChoice::Only(CollectorKind::Proc),
        events: k2i::EventChoice::Off,
        history: None,
        dc: None,
        host: None,
        calls: None,
        programs: None,
        lease: None,
        sysctl: kumo_abi::sysctl::AllowList::default(),
        metrics: k2i::metrics::Grouping::default(),
    }
}

/// A node without a cluster, called `tokyo/web-1`.
pub(crate) fn node(dir: &Path) -> Node {
    let (dc, host) = (Some("tokyo".to_owned()), Some("web-1".to_owned()));
    Node::start(&NodeConfig { dc, host, ..config(dir) }).unwrap()
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) kind: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

pub(crate) fn ask(
    mut stream: impl Read + Write,
    method: &str,
    target: &str,
    more: &str,
    body: &str,
) -> Reply {
    let length = body.len();
    let head = format!(
        "{method} {target} HTTP/1.0\r\nhost: localhost\r\ncontent-length: {length}\r\n{more}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: "));
    Reply { status, kind: kind.unwrap_or_default().to_owned(), body: body.to_owned() }
}

pub(crate) fn tcp(node: &Node) -> TcpStream {
    let stream = TcpStream::connect(node.address().unwrap()).unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    stream
}

pub(crate) fn unix(node: &Node) -> UnixStream {
    let stream = UnixStream::connect(node.socket()).unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    stream
}

pub(crate) fn get(node: &Node, target: &str) -> Value {
    let reply = ask(unix(node), "GET", target, "", "");
    assert_eq!(reply.status, 200, "for {target}: {}", reply.body);
    assert_eq!(reply.kind, "application/json");
    reply.json()
}

/// A program that tests need and people need not have: on the path, or where `scripts/install-deps test`
/// puts it. Where it is missing the test is skipped, unless `KUMO_REQUIRE_TOOLS` says that it must not.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home);
    let ours = cache.map(|cache| cache.join("kumonosu-test-tools/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).chain(ours).map(|dir| dir.join(name));
    let found = found.into_iter().find(|program| program.is_file());
    if found.is_none() {
        assert!(std::env::var_os("KUMO_REQUIRE_TOOLS").is_none(), "{name} is not there");
        eprintln!("skipped: {name} is not there; get it with: scripts/install-deps test");
    }
    found
}
