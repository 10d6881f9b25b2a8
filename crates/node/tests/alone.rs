//! A node whose cluster is out of reach, for itself or for what it may do there.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use kumo_fabric::identity::Identity;
use kumo_fabric::pki::Authority;
use kumo_node::{FABRIC_DIR, Lock, LockError, Node};
use support::{ask, config, get, unix};

/// Makes the host of `dir` one of a cluster of its own.
fn certify(dir: &Path, role: Role, listen: Option<SocketAddr>) {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let authority = Authority::create(&"acme".parse().unwrap(), now_ms).unwrap();
    let host: HostId = "tokyo/a".parse().unwrap();
    let issued = Identity::issue(&authority, &host, role, now_ms).unwrap();
    let advertise = listen.iter().map(ToString::to_string).collect();
    let identity = Identity { listen, advertise, ..issued };
    let authority = (role == Role::Gateway).then_some(&authority);
    identity.save(&dir.join("state").join(FABRIC_DIR), authority).unwrap();
}

#[test]
fn without_its_port_a_gateway_can_still_serve_its_own_table() {
    let dir = tempfile::tempdir().unwrap();
    // At an address that nobody else takes a port of.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let holder = TcpListener::bind((Ipv4Addr::new(127, 91, high, low), 7081)).unwrap();
    certify(dir.path(), Role::Gateway, Some(holder.local_addr().unwrap()));
    let config = config(dir.path());
    let error = Node::start(&config).expect_err("the port is taken");
    assert!(error.may_pass(), "{error:?}");
    assert!(!Node::may_take_part(&config));
    let node = Node::start_alone(&config).unwrap();
    assert_eq!((node.id().to_string().as_str(), node.cluster()), ("tokyo/a", None));
    assert_eq!(get(&node, "/v2/all/host")["answers"][0]["body"]["host"], "a");
    let held = Lock::of_state(&config.dirs.state).expect_err("the node has it");
    assert!(matches!(held, LockError::Held { .. }), "{held:?}");
    node.stop();
    drop(holder);
    assert!(Node::may_take_part(&config));
}

#[test]
fn a_member_makes_no_tokens_for_gateways() {
    let dir = tempfile::tempdir().unwrap();
    certify(dir.path(), Role::Member, None);
    let node = Node::start(&config(dir.path())).unwrap();
    let body = r#"{"dc":"osaka","ttl_s":60,"uses":1,"gateway":true}"#;
    let refused = ask(unix(&node), "POST", "/v2/cluster/tokens", "", body);
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert!(refused.body.contains("made on a gateway"), "{}", refused.body);
}
