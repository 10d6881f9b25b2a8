//! Programs that break the rules: nobody else notices, and nothing of them is left.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kumo_abi::call::{Cause, Reentrancy, Status};
use kumo_abi::control::{
    self, FromNode, Open, PACKET_BYTES_MAX, SOCKET_NAME, Serve, ToNode, VERSION,
};
use kumo_abi::page::program::{LEN_BYTES, MAGIC, MAGIC_AT};
use kumo_node::Node;
use kumo_sys::OwnPage;
use kumo_sys::packet::{self, Wait};
use programs::{method, service, until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serde_json::json;
use support::{WAIT_MAX, get, node};

/// One test at a time: they count the descriptors of this process.
static ALONE: Mutex<()> = Mutex::new(());

/// A node, an honest server and an honest caller in this process, and how many descriptors there are.
struct World {
    node: Node,
    kv: middlecon::Service,
    _server: middlecon::Server,
    descriptors: Vec<String>,
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    fn new() -> World {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let node = node(dir.path());
        let honest = middlecon::Node::connect(&dir.path().join("run")).unwrap();
        let server = honest
            .serve(&service("kv"))
            .method(&method("echo"), |call| Ok(call.body.clone()))
            .start()
            .unwrap();
        let kv = honest.service(&service("kv"));
        kv.call(&method("echo"), b"").unwrap();
        // What is made once, at the first request.
        get(&node, "/v2/calls/services");
        World { node, kv, _server: server, descriptors: descriptors(), dir, _alone: alone }
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Others notice nothing.
    fn assert_well(&self) {
        assert_eq!(self.kv.call(&method("echo"), b"well").unwrap(), "well");
        let other = middlecon::Node::connect(&self.run_dir()).unwrap();
        assert_eq!(other.service(&service("kv")).call(&method("echo"), b"new").unwrap(), "new");
    }

    /// Nothing is left but what was there.
    fn assert_clean(&self) {
        self.assert_well();
        let began = Instant::now();
        while descriptors().len() > self.descriptors.len() {
            let (before, now) = (&self.descriptors, descriptors());
            assert!(began.elapsed() < WAIT_MAX, "not only {before:?}, but {now:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        let shown = get(&self.node, "/v2/calls/services");
        assert_eq!((&shown["programs"], &shown["connections"]), (&json!(1), &json!(1)));
        assert_eq!(shown["instances"].as_array().unwrap().len(), 1);
    }
}

/// What this process has open, but for the directories of processes that the process table keeps.
fn descriptors() -> Vec<String> {
    let names = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    // One may be gone before its name is read.
    let target = |path: PathBuf| std::fs::read_link(path).map(|to| to.display().to_string());
    let targets = names.filter_map(|path| target(path).ok());
    targets.filter(|target| !target.starts_with("/proc/")).collect()
}

/// A program that speaks for itself.
struct Raw {
    socket: OwnedFd,
    _page: OwnPage,
}

fn page() -> OwnPage {
    let page = OwnPage::new("test", LEN_BYTES).unwrap();
    page.store(MAGIC_AT, MAGIC, Ordering::Release);
    page
}

fn connect(run_dir: &Path) -> OwnedFd {
    packet::connect_to(&run_dir.join(SOCKET_NAME)).unwrap()
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    packet::send(socket, &[IoSlice::new(bytes)], fds, Wait::No)
}

/// The next message; nothing at the end. It fails if neither comes.
fn hear(socket: &OwnedFd) -> Option<FromNode> {
    let wait = Timespec { tv_sec: WAIT_MAX.as_secs() as i64, tv_nsec: 0 };
    let came = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&wait)).unwrap();
    assert_eq!(came, 1, "the node says nothing");
    let mut packet = vec![0; PACKET_BYTES_MAX];
    match packet::receive(socket, &mut packet, 4, Wait::No) {
        Ok((0, _)) => None,
        Ok((len_bytes, _)) => Some(control::decode(&packet[..len_bytes]).unwrap()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
        Err(error) => panic!("{error}"),
    }
}

impl Raw {
    fn new(run_dir: &Path) -> Raw {
        let (socket, page) = (connect(run_dir), page());
        let hello = control::encode(&ToNode::Hello { version: VERSION }).unwrap();
        send(&socket, &hello, &[page.as_fd()]).unwrap();
        let raw = Raw { socket, _page: page };
        assert!(matches!(raw.hear(), Some(FromNode::Welcome { .. })));
        raw
    }

    fn say(&self, message: &ToNode) -> std::io::Result<()> {
        send(&self.socket, &control::encode(message).unwrap(), &[])
    }

    fn hear(&self) -> Option<FromNode> {
        hear(&self.socket)
    }

    fn serve(&self, name: &str) {
        self.say(&ToNode::Serve(Serve {
            request: 1,
            service: service(name),
            resumes: None,
            slots: 1,
            credit: 0,
            concurrent: 1,
            reentrancy: Reentrancy::Reject,
            ring: false,
        }))
        .unwrap();
        assert!(matches!(self.hear(), Some(FromNode::Serving { .. })));
    }
}

fn open(request: u64, name: &str) -> ToNode {
    ToNode::Open(Open {
        request,
        service: service(name),
        budget_ms: 1_000,
        chain: vec![],
        from: None,
        ring: false,
        wait: false,
    })
}

#[test]
fn what_is_no_message_ends_its_program_alone() {
    let world = World::new();
    let good = control::encode(&open(1, "kv")).unwrap();
    let mut longer = good.clone();
    longer.push(0);
    let long = vec![0xff; PACKET_BYTES_MAX + 1];
    for bad in [&[0xff; 9][..], &good[..good.len() - 1], &longer, &long] {
        // Instead of a hello, and after one. The end may come before the reason can be read.
        let socket = connect(&world.run_dir());
        send(&socket, bad, &[]).unwrap();
        let first = hear(&socket);
        assert!(matches!(first, None | Some(FromNode::Refused { cause: Cause::Malformed, .. })));
        let raw = Raw::new(&world.run_dir());
        raw.serve("bad");
        send(&raw.socket, bad, &[]).unwrap();
        assert_eq!(raw.hear(), None);
        let shown = get(&world.node, "/v2/calls/services");
        assert_eq!(shown["instances"].as_array().unwrap().len(), 1, "its servers went with it");
    }
    world.assert_clean();
}

#[test]
fn pages_that_could_harm_and_other_versions_are_refused() {
    let world = World::new();
    let unsealed = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&unsealed, LEN_BYTES as u64).unwrap();
    let small = OwnPage::new("test", 4096).unwrap();
    let silent = OwnPage::new("test", LEN_BYTES).unwrap();
    let good = page();
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let cases: [(u16, &[BorrowedFd<'_>], &str); 6] = [
        (VERSION, &[], "without the program's page"),
        (VERSION, &[unsealed.as_fd()], "not sealed"),
        (VERSION, &[small.as_fd()], "of another size"),
        (VERSION, &[silent.as_fd()], "does not say that it is one"),
        (VERSION, &[null.as_fd()], "not sealed"),
        (VERSION + 1, &[good.as_fd()], "speaks version 2"),
    ];
    for (version, fds, want) in cases {
        let socket = connect(&world.run_dir());
        send(&socket, &control::encode(&ToNode::Hello { version }).unwrap(), fds).unwrap();
        match hear(&socket) {
            Some(FromNode::Refused { cause: Cause::Malformed, message, .. }) => {
                assert!(message.contains(want), "{message:?} does not say {want:?}");
            }
            other => panic!("{other:?} instead of {want:?}"),
        }
        assert_eq!(hear(&socket), None);
    }
    drop((unsealed, small, silent, good, null));
    world.assert_clean();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let world = World::new();
    // As many as fit beside a packet: that ends it.
    let raw = Raw::new(&world.run_dir());
    let (kept, passed) = packet::pair().unwrap();
    let watch = ToNode::Watch { request: 1, service: service("kv") };
    send(&raw.socket, &control::encode(&watch).unwrap(), &[passed.as_fd(); 4]).unwrap();
    assert_eq!(raw.hear(), None);
    drop(raw);
    // One beside a message that has none is closed, and the message counts.
    let raw = Raw::new(&world.run_dir());
    send(&raw.socket, &control::encode(&watch).unwrap(), &[passed.as_fd()]).unwrap();
    assert!(matches!(raw.hear(), Some(FromNode::Service { .. })));
    drop(passed);
    assert_eq!(hear(&kept), None, "no copy of it is left");
    drop((raw, kept));
    world.assert_clean();
}

#[test]
fn a_flood_is_answered_as_far_as_it_may_go_and_others_are_served() {
    let world = World::new();
    let raw = Raw::new(&world.run_dir());
    let (mut busy, mut exhausted) = (0, 0);
    for request in 0..3_000 {
        raw.say(&open(request, "kv")).unwrap();
        match raw.hear() {
            Some(FromNode::Granted(_)) => busy += 1,
            Some(FromNode::Refused { cause: Cause::Exhausted, .. }) => exhausted += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(busy <= 1024 && exhausted >= 1_976, "{busy} granted, {exhausted} refused");
    // The server has no place left; those who have theirs keep it.
    assert_eq!(world.kv.call(&method("echo"), b"mine").unwrap(), "mine");
    drop(raw);
    until("its connections are gone", || {
        get(&world.node, "/v2/calls/services")["connections"] == json!(1)
    });
    world.assert_clean();
}

#[test]
fn who_never_reads_waits_alone() {
    let world = World::new();
    // A caller that asks and does not read what it is told: at last its own sends would block.
    let deaf = Raw::new(&world.run_dir());
    let mut request = 0;
    let stuck = loop {
        match deaf.say(&open(request, "nobody")) {
            Ok(()) => request += 1,
            Err(error) => break error.kind(),
        }
        assert!(request < 100_000, "the node hears all of it");
    };
    assert_eq!(stuck, std::io::ErrorKind::WouldBlock);
    world.assert_well();
    // A server that does not read who calls it: its callers are told, and nobody else.
    let server = Raw::new(&world.run_dir());
    server.serve("deaf");
    let caller = Raw::new(&world.run_dir());
    let refused = (0..1_000).find_map(|request| {
        caller.say(&open(request, "deaf")).unwrap();
        match caller.hear() {
            Some(FromNode::Granted(_)) => None,
            Some(FromNode::Refused { cause, .. }) => Some(cause),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(refused, Some(Cause::Busy));
    world.assert_well();
    drop((deaf, server, caller));
    world.assert_clean();
}

#[test]
fn who_says_nothing_costs_little_and_goes_when_it_goes() {
    let world = World::new();
    let silent: Vec<OwnedFd> = (0..100).map(|_| connect(&world.run_dir())).collect();
    world.assert_well();
    drop(silent);
    until("they are forgotten", || get(&world.node, "/v2/calls/services")["programs"] == json!(1));
    world.assert_clean();
    let nobody = world.kv.call(&method("other"), b"").unwrap_err();
    assert_eq!(nobody.status(), Status::NotExecuted(Cause::NoSuch));
}

#[test]
fn pages_full_of_lies_are_read_without_harm() {
    let world = World::new();
    let (socket, page) = (connect(&world.run_dir()), page());
    // Every word: calls on connections that are not there, names that are none, numbers beyond all.
    for at_bytes in (8..LEN_BYTES).step_by(8) {
        page.store(at_bytes, u64::MAX - at_bytes as u64, Ordering::Relaxed);
    }
    let hello = control::encode(&ToNode::Hello { version: VERSION }).unwrap();
    send(&socket, &hello, &[page.as_fd()]).unwrap();
    assert!(matches!(hear(&socket), Some(FromNode::Welcome { .. })));
    for document in ["services", "blocked", "trace/4bf92f3577b34da6a3ce929d0e0e4736"] {
        get(&world.node, &format!("/v2/calls/{document}"));
    }
    assert_eq!(get(&world.node, "/v2/calls/blocked")["edges"], json!([]));
    world.assert_well();
    drop((socket, page));
    world.assert_clean();
}
