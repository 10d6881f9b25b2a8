//! Connections between programs of two hosts, as far as nodes have to do with them: two nodes in one
//! process, over real TLS on loopback. What the programs say to each other is theirs.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use kumo_abi::HostId;
use kumo_abi::call::{Cause, Reentrancy, ServiceName, Who};
use kumo_abi::cluster::Role;
use kumo_abi::control::{
    self, Carrier, FromNode, Granted, Incoming, Open, PACKET_BYTES_MAX, SOCKET_NAME, Serve, ToNode,
    VERSION,
};
use kumo_abi::page::program::{LEN_BYTES, MAGIC, MAGIC_AT, receipts_at};
use kumo_abi::page::{Notice, notice, receipt_at};
use kumo_fabric::identity::{Gateway, Identity};
use kumo_fabric::pki::Authority;
use kumo_node::{FABRIC_DIR, Node};
use kumo_pki::ProgramPeer;
use kumo_sys::packet::{self, Wait};
use kumo_sys::{OwnPage, PeerPage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use support::{WAIT_MAX, ask, config, get, unix};

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_millis() as u64
}

/// An address of loopback that this process alone uses, with a port that it gives once.
fn own_address() -> SocketAddr {
    static PORT: AtomicU16 = AtomicU16::new(7_100);
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    format!("127.{}.{middle}.{low}:{port}", 128 | high).parse().unwrap()
}

/// Two data centres of one host each.
struct Cluster {
    nodes: [Node; 2],
    dir: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&"acme".parse().unwrap(), now_ms()).unwrap();
        let hosts: [HostId; 2] = ["osaka/a", "tokyo/b"].map(|host| host.parse().unwrap());
        let gateways: Vec<Gateway> = hosts
            .iter()
            .map(|host| Gateway { host: host.clone(), addresses: vec![own_address().to_string()] })
            .collect();
        let start = |nth: usize| {
            let host = &hosts[nth];
            let mut identity = Identity::issue(&authority, host, Role::Gateway, now_ms()).unwrap();
            identity.advertise.clone_from(&gateways[nth].addresses);
            identity.listen = identity.advertise.first().map(|address| address.parse().unwrap());
            identity.gateways = vec![gateways[1 - nth].clone()];
            let calls = own_address();
            identity.call_listen = Some(calls);
            identity.call_advertise = vec![calls.to_string()];
            let own = dir.path().join(nth.to_string());
            identity.save(&own.join("state").join(FABRIC_DIR), Some(&authority)).unwrap();
            Node::start(&config(&own)).unwrap()
        };
        Cluster { nodes: [start(0), start(1)], dir }
    }

    fn program(&self, nth: usize) -> Program {
        let run_dir = self.dir.path().join(nth.to_string()).join("run");
        let socket = packet::connect_to(&run_dir.join(SOCKET_NAME)).unwrap();
        let page = OwnPage::new("test", LEN_BYTES).unwrap();
        page.store(MAGIC_AT, MAGIC, Ordering::Release);
        let hello = control::encode(&ToNode::Hello { version: VERSION }).unwrap();
        packet::send(&socket, &[IoSlice::new(&hello)], &[page.as_fd()], Wait::No).unwrap();
        let Some((FromNode::Welcome { .. }, Some(notices))) = hear(&socket) else {
            panic!("no welcome")
        };
        let notices = PeerPage::new(&notices, notice::LEN_BYTES).unwrap();
        Program { socket, page, notices }
    }
}

/// A program that speaks for itself.
struct Program {
    socket: OwnedFd,
    page: OwnPage,
    notices: PeerPage,
}

fn hear(socket: &OwnedFd) -> Option<(FromNode, Option<OwnedFd>)> {
    let wait = Timespec { tv_sec: WAIT_MAX.as_secs() as i64, tv_nsec: 0 };
    let came = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&wait)).unwrap();
    assert_eq!(came, 1, "the node says nothing");
    let mut packet = vec![0; PACKET_BYTES_MAX];
    match packet::receive(socket, &mut packet, 1, Wait::No).unwrap() {
        (0, _) => None,
        (len_bytes, mut fds) => Some((control::decode(&packet[..len_bytes]).unwrap(), fds.pop())),
    }
}

fn kv() -> ServiceName {
    "kv".parse().unwrap()
}

impl Program {
    fn say(&self, message: &ToNode) {
        let bytes = control::encode(message).unwrap();
        packet::send(&self.socket, &[IoSlice::new(&bytes)], &[], Wait::Yes).unwrap();
    }

    fn hear(&self) -> (FromNode, Option<OwnedFd>) {
        hear(&self.socket).expect("the node is there")
    }

    fn serve(&self) {
        self.say(&ToNode::Serve(Serve {
            request: 1,
            service: kv(),
            resumes: None,
            slots: 1,
            credit: 0,
            concurrent: 1,
            reentrancy: Reentrancy::Reject,
            ring: true,
        }));
        assert!(matches!(self.hear(), (FromNode::Serving { .. }, None)));
    }

    fn open(&self) -> (FromNode, Option<OwnedFd>) {
        self.say(&ToNode::Open(Open {
            request: 7,
            service: kv(),
            budget_ms: 20_000,
            chain: vec![],
            from: None,
            ring: true,
            wait: false,
        }));
        loop {
            match self.hear() {
                // Of a watch; the directory may have changed meanwhile.
                (FromNode::Service { .. }, None) => {}
                answer => return answer,
            }
        }
    }

    /// Waits for what the node says of a connection.
    fn notice(&self, connection: u32) -> Notice {
        let began = Instant::now();
        loop {
            let word = self.notices.load(notice::state_at(connection), Ordering::Acquire);
            if let Some(notice) = Notice::from_word(word) {
                return notice;
            }
            assert!(began.elapsed() < WAIT_MAX, "no notice of connection {connection}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

fn until(node: &Node, target: &str, what: &str, holds: impl Fn(&Value) -> bool) {
    let began = Instant::now();
    loop {
        let document = get(node, target);
        if holds(&document) {
            return;
        }
        assert!(began.elapsed() < WAIT_MAX, "not within {WAIT_MAX:?}: {what}; {document:#}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// A caller of `osaka/a` and its callee of `tokyo/b`, connected.
fn connect(caller: &Program, callee: &Program) -> (Granted, TcpStream, Incoming, TcpStream) {
    let (granted, near) = match caller.open() {
        (FromNode::Granted(granted), Some(socket)) => (granted, TcpStream::from(socket)),
        other => panic!("{other:?}"),
    };
    let (incoming, far) = match callee.hear() {
        (FromNode::Incoming(incoming), Some(socket)) => (incoming, TcpStream::from(socket)),
        other => panic!("{other:?}"),
    };
    near.set_read_timeout(Some(WAIT_MAX)).unwrap();
    far.set_read_timeout(Some(WAIT_MAX)).unwrap();
    (granted, near, incoming, far)
}

#[test]
fn programs_of_two_hosts_are_connected_and_the_end_of_one_is_told_with_what_it_had_taken() {
    let cluster = Cluster::new();
    let [osaka, tokyo] = &cluster.nodes;
    let (callee, caller) = (cluster.program(1), cluster.program(0));
    callee.serve();
    until(osaka, "/v2/calls/services", "osaka knows of tokyo's", |document| {
        document["elsewhere"][0]["current"] == json!(true)
    });
    caller.say(&ToNode::Watch { request: 3, service: kv() });
    match caller.hear() {
        (FromNode::Service { state, .. }, None) => {
            assert_eq!((state.ready, state.silent_hosts), (1, 0));
        }
        other => panic!("{other:?}"),
    }

    let (granted, mut near, incoming, mut far) = connect(&caller, &callee);
    assert_eq!((granted.grant, granted.carrier), (incoming.grant, Carrier::Tls));
    assert_eq!(
        (granted.peer.host.to_string(), &granted.peer.who),
        ("tokyo/b".to_owned(), &Who::Service(kv()))
    );
    let uid = rustix::process::getuid().as_raw();
    let (from, pid) = (&incoming.peer, std::process::id());
    assert_eq!(
        (from.host.to_string(), from.pid, &from.who),
        ("osaka/a".to_owned(), pid, &Who::User(uid))
    );
    let mut heard = [0; 5];
    near.write_all(b"hello").unwrap();
    far.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    far.write_all(b"world").unwrap();
    near.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"world");
    for (node, of) in [(osaka, "osaka"), (tokyo, "tokyo")] {
        let shown = get(node, "/v2/calls/services");
        assert_eq!(shown["connections"], json!(1), "of {of}: {shown:#}");
    }

    // It had taken two calls when it ends; one has the first place, where nothing else must end up.
    let receipts = incoming.receipts.expect("its caller is elsewhere");
    let (id, first) = (1_000_077, 1_000_064);
    assert_eq!(receipt_at(first), 0);
    for id in [id, first] {
        callee.page.store(receipts_at(receipts) + receipt_at(id), id, Ordering::Release);
    }
    drop(callee);
    let told = caller.notice(granted.connection);
    assert_eq!(told, Notice { cause: Cause::Lost, taken_known: true });
    let taken = |id| {
        let at = notice::taken_at(granted.connection) + receipt_at(id);
        caller.notices.load(at, Ordering::Acquire)
    };
    assert_eq!((taken(id), taken(id + 1)), (id, 0));
    assert_eq!(taken(first), first);
    assert_eq!(near.read(&mut heard).unwrap(), 0, "and the connection is shut");
    until(osaka, "/v2/calls/services", "nothing is left of it", |document| {
        document["connections"] == json!(0) && document["elsewhere"] == json!([])
    });
}

#[test]
fn the_end_of_a_caller_is_told_to_its_callee_on_another_host() {
    let cluster = Cluster::new();
    let (callee, caller) = (cluster.program(1), cluster.program(0));
    callee.serve();
    until(&cluster.nodes[0], "/v2/calls/services", "osaka knows of tokyo's", |document| {
        document["elsewhere"][0]["current"] == json!(true)
    });
    let (_, _near, incoming, mut far) = connect(&caller, &callee);
    drop(caller);
    assert_eq!(callee.notice(incoming.connection).cause, Cause::Cancelled);
    assert_eq!(far.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_list_is_checked_and_changed_at_both_ends() {
    let cluster = Cluster::new();
    let [osaka, tokyo] = &cluster.nodes;
    let (callee, caller) = (cluster.program(1), cluster.program(0));
    callee.serve();
    until(osaka, "/v2/calls/services", "osaka knows of tokyo's", |document| {
        document["elsewhere"][0]["current"] == json!(true)
    });
    let (granted, ..) = connect(&caller, &callee);
    let acl = |method: &str, body: &str| ask(unix(tokyo), method, "/v2/calls/acl/kv", "", body);
    assert_eq!(acl("GET", "").status, 404);
    assert_eq!(acl("PUT", r#"{"call":[{"from":["*"]}]}"#).status, 400);
    let list = r#"{"call":[{"from":["spiffe://acme/dc/tokyo/host/*"],"methods":["read*"]}]}"#;
    let put = acl("PUT", list);
    assert_eq!(put.status, 200, "{}", put.body);
    // What it no longer allows is ended, and not granted again.
    assert_eq!(caller.notice(granted.connection).cause, Cause::Denied);
    match caller.open() {
        (FromNode::Refused { cause, message, .. }, None) => {
            assert_eq!(cause, Cause::Denied, "{message}");
        }
        other => panic!("{other:?}"),
    }
    let got = acl("GET", "").json();
    assert_eq!(got["acl"]["call"][0]["from"][0], "spiffe://acme/dc/tokyo/host/*");
    assert_eq!(acl("DELETE", "").json()["removed"], json!(true));
    let by_tcp = ask(support::tcp(tokyo), "PUT", "/v2/calls/acl/kv", "", list);
    assert_eq!(by_tcp.status, 401);
    let began = Instant::now();
    loop {
        match caller.open() {
            (FromNode::Granted(_), Some(_)) => break,
            (FromNode::Refused { cause: Cause::Denied, .. }, None) => {}
            other => panic!("{other:?}"),
        }
        assert!(began.elapsed() < WAIT_MAX, "osaka does not learn that the list is gone");
    }
}

#[test]
fn a_program_gets_a_certificate_below_that_of_its_host() {
    let cluster = Cluster::new();
    let program = cluster.program(0);
    program.say(&ToNode::Certificate { request: 9, instance: None });
    let (FromNode::Certificate { request: 9, certificate }, None) = program.hear() else {
        panic!("no certificate")
    };
    let [own, host] = &certificate.chain[..] else { panic!("not two") };
    let uid = rustix::process::getuid().as_raw();
    let peer = ProgramPeer::of(&own.clone().into()).unwrap();
    assert_eq!(peer.id.to_string(), format!("spiffe://acme/dc/osaka/host/a/user/{uid}"));
    assert_eq!(peer.not_after_ms, certificate.not_after_ms);
    let named = kumo_pki::Peer::of(&host.clone().into()).unwrap();
    assert_eq!(named.host.to_string(), "osaka/a");
    assert!(!certificate.key.is_empty() && certificate.evicted.is_empty());
}
