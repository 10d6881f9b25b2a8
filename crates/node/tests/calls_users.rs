//! Ordinary users call and serve through root's node. Needs root: a thread of the test becomes another user,
//! which the kernel tells the node.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::Bytes;
use kumo_abi::call::{Cause, Method, ServiceName, Who};
use kumo_node::{Node, NodeConfig, Programs};
use middlecon::NodeError;
use rustix::process::{Uid, geteuid};

/// `nobody`.
const USER: u32 = 65_534;

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

/// Whether this can be tested; it prints why not.
fn is_root() -> bool {
    let is = geteuid().is_root();
    if !is {
        eprintln!("skipped: only root can become another user");
    }
    is
}

fn start(dir: &Path, programs: Option<Programs>) -> Node {
    // Directories of tests are closed to others.
    fs::set_permissions(dir, Permissions::from_mode(0o711)).unwrap();
    let (dc, host) = (Some("tokyo".to_owned()), Some("web-1".to_owned()));
    Node::start(&NodeConfig { dc, host, programs, ..support::config(dir) }).unwrap()
}

/// Runs something as another user: only this thread, and those that it starts, become one.
fn as_user<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_thread_uid(Uid::from_raw(USER)).unwrap();
            run()
        });
        thread.join().unwrap()
    })
}

fn who(call: &middlecon::Call<'_>) -> Bytes {
    match &call.peer.who {
        Who::User(uid) => uid.to_string().into(),
        Who::Service(service) => service.to_string().into(),
    }
}

#[test]
fn another_user_calls_through_roots_node_and_is_named_as_itself() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), None);
    let run = dir.path().join("run");
    let own = middlecon::Node::connect(&run).unwrap();
    let served = own.serve(&service("kv")).method(&method("who"), |call| Ok(who(call)));
    let _served = served.start().unwrap();
    let told = as_user(|| {
        let user = middlecon::Node::connect(&run).unwrap();
        user.service(&service("kv")).call(&method("who"), b"")
    });
    assert_eq!(told.unwrap(), USER.to_string());
    // It reaches nothing else that is there.
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&run), mode(&run.join("middlecon.sock"))), (0o711, 0o666));
    assert_eq!((mode(node.socket()), mode(&dir.path().join("state"))), (0o600, 0o700));
    as_user(|| {
        assert!(std::os::unix::net::UnixStream::connect(node.socket()).is_err());
        assert!(fs::read_dir(&run).is_err() && fs::read_dir(dir.path().join("state")).is_err());
    });
}

#[test]
fn another_user_serves_names_of_its_own_and_no_others() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _node = start(dir.path(), None);
    let run = dir.path().join("run");
    let own = middlecon::Node::connect(&run).unwrap();
    as_user(|| {
        let user = middlecon::Node::connect(&run).unwrap();
        let serve = |name: &str| {
            user.serve(&service(name)).method(&method("who"), |call| Ok(who(call))).start()
        };
        // Free on this host, but perhaps somebody's elsewhere.
        match serve("bank") {
            Err(NodeError::Refused { cause: Cause::Denied, message }) => {
                assert!(message.contains("user-65534-"), "{message}");
            }
            other => panic!("{:?}", other.map(|server| server.instance())),
        }
        let _served = serve("user-65534-bank").unwrap();
        let told = own.service(&service("user-65534-bank")).call(&method("who"), b"");
        assert_eq!(told.unwrap(), "0");
    });
}

#[test]
fn a_node_may_be_closed_to_other_users() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _node = start(dir.path(), Some(Programs::Own));
    let run = dir.path().join("run");
    let refused = as_user(|| middlecon::Node::connect(&run).err());
    assert!(matches!(refused, Some(NodeError::Away { .. })), "{refused:?}");
    assert!(middlecon::Node::connect(&run).is_ok());
}
