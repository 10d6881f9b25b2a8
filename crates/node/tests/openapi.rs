//! The node's API is asked whatever its document allows, and some of what it does not, by schemathesis.
//!
//! It asks on the Unix socket, through a relay, where everything is taken. Signals, the node's own
//! new start, changes of kernel parameters and tokens are left out, as they do what they say; so are streams,
//! which do not end.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use k2i::{CollectorChoice, EventChoice};
use kumo_node::{Node, NodeConfig};
use support::{ask, tcp, tool, unix};

/// Requests to each operation with values made at random; each edge of its schemas comes beside them.
const EXAMPLES: &str = "15";

/// What is checked of each answer, and where that is another matter: a host that is waited for ten
/// milliseconds may be silent (504); of many hosts each says by itself what it does not take; and no schema
/// says which conditions make sense, so that a request that fits it may be refused all the same.
const CHECKS: &str = r#"
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 501, 504]
positive_data_acceptance.enabled = false
missing_required_header.enabled = false
use_after_free.enabled = false
ensure_resource_availability.enabled = false
ignored_auth.enabled = false
object_level_authorization.enabled = false

[[operations]]
include-path-regex = "^/v2/all/"
checks.negative_data_rejection.enabled = false
"#;

/// A TCP port behind which a Unix socket answers, until it is dropped.
struct Relay {
    port: u16,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    fn to(socket: PathBuf) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if told.load(Ordering::SeqCst) {
                    return;
                }
                if let (Ok(client), Ok(server)) = (client, UnixStream::connect(&socket)) {
                    relay(client, server);
                }
            }
        });
        Relay { port, over, thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes it, so that it looks.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Copies both ways on threads of their own; when one end closes, so does the other.
fn relay(client: TcpStream, server: UnixStream) {
    let (mut from_client, mut to_client) = (client.try_clone().unwrap(), client);
    let (mut from_server, mut to_server) = (server.try_clone().unwrap(), server);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
}

fn node(dir: &Path) -> Node {
    let (dc, host) = (Some("tokyo".to_owned()), Some("web-1".to_owned()));
    let (collector, events) = (CollectorChoice::Auto, EventChoice::Auto);
    Node::start(&NodeConfig { dc, host, collector, events, ..support::config(dir) }).unwrap()
}

#[test]
fn the_document_is_served_and_tells_of_all_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let node = support::node(dir.path());
    let reply = ask(tcp(&node), "GET", "/openapi.json", "", "");
    assert_eq!((reply.status, reply.kind.as_str()), (200, "application/json"));
    let document = reply.json();
    assert_eq!(
        (&document["openapi"], &document["info"]["title"]),
        (&"3.1.0".into(), &"Kumonosu".into())
    );
    for path in ["/v2/proc", "/v2/hosts", "/v2/all/proc", "/v2/all/host", "/metrics"] {
        assert!(document["paths"][path]["get"].is_object(), "no {path}");
    }
    assert_eq!(ask(unix(&node), "GET", "/v2/openapi.json", "", "").body, reply.body);
}

#[test]
fn answers_are_as_the_document_says() {
    let Some(program) = tool("schemathesis") else { return };
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir.path().join("node"));
    let relay = Relay::to(node.socket().to_owned());
    let config = dir.path().join("schemathesis.toml");
    std::fs::write(&config, CHECKS).unwrap();
    let asked = Command::new(program)
        .arg("--config-file")
        .arg(&config)
        .args(["run", &format!("http://127.0.0.1:{}/openapi.json", relay.port)])
        .args(["--max-examples", EXAMPLES, "--seed", "1"])
        .args(["--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all"])
        .args([
            "--exclude-path-regex",
            "(/(signal|reopen|stream|events|scan)$)|/sysctl/|/sysctl-changes/|/rights/tokens",
        ])
        .args(["--request-timeout", "30", "--continue-on-failure", "--warnings", "off"])
        .env("HOME", dir.path())
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[asked.stdout, asked.stderr].concat()).into_owned();
    assert!(asked.status.success(), "{said}");
    // It did ask: with nothing that it understands it would be content as well.
    assert!(node.requests() > 500, "{} requests: {said}", node.requests());
}
