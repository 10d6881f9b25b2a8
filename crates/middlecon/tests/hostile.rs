//! Peers that break the protocol on purpose: the other side gets an error, and nobody else notices.
//!
//! A hostile peer here speaks to the node as a program does, and then does what no program of ours does:
//! it has the raw socket and page of its connection.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kumo_abi::call::{Cause, Method, ServiceName};
use kumo_abi::control::{
    self, FromNode, Granted, Incoming, Open, PACKET_BYTES_MAX, SOCKET_NAME, Serve, ToNode,
};
use kumo_abi::frame::{
    Chain, Extensions, HEADER_BYTES, Header, Kind, POOL_SLOTS, Pooled, STREAM_CREDIT, flags,
};
use kumo_abi::page::connection::{
    MAGIC, MAGIC_AT, READ_AT, RETURNED_AT, RING_AT, RING_BYTES, WRITTEN_AT, len_bytes,
};
use kumo_abi::page::program;
use kumo_sys::packet::{self, Wait};
use kumo_sys::{OwnPage, PeerPage};
use middlecon::{CallError, Context, Node, Server};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use support::TestNode;

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

/// A program that speaks to the node by hand.
struct Hostile {
    control: OwnedFd,
    _page: OwnPage,
}

impl Hostile {
    fn connect(node: &TestNode) -> Hostile {
        let control = packet::connect_to(&node.run_dir().join(SOCKET_NAME)).unwrap();
        let page = OwnPage::new("hostile", program::LEN_BYTES).unwrap();
        let hello = control::encode(&ToNode::Hello { version: control::VERSION }).unwrap();
        packet::send(&control, &[IoSlice::new(&hello)], &[page.as_fd()], Wait::Yes).unwrap();
        let hostile = Hostile { control, _page: page };
        assert!(matches!(hostile.hear().0, FromNode::Welcome { .. }));
        hostile
    }

    fn say(&self, message: &ToNode) {
        let bytes = control::encode(message).unwrap();
        packet::send(&self.control, &[IoSlice::new(&bytes)], &[], Wait::Yes).unwrap();
    }

    fn hear(&self) -> (FromNode, Option<OwnedFd>) {
        let mut packet = vec![0; PACKET_BYTES_MAX];
        let (len_bytes, mut fds) =
            packet::receive(&self.control, &mut packet, 1, Wait::Yes).unwrap();
        (control::decode(&packet[..len_bytes]).unwrap(), fds.pop())
    }

    fn open(&self, name: &str, request: u64) -> (Granted, OwnedFd) {
        self.say(&ToNode::Open(Open {
            request,
            service: service(name),
            budget_ms: 1_000,
            chain: vec![],
            from: None,
            ring: true,
            wait: false,
        }));
        match self.hear() {
            (FromNode::Granted(granted), Some(socket)) => (granted, socket),
            other => panic!("{other:?}"),
        }
    }

    fn serve(&self, name: &str) {
        self.say(&ToNode::Serve(Serve {
            request: 1,
            service: service(name),
            resumes: None,
            slots: 1,
            credit: 0,
            concurrent: 1,
            reentrancy: kumo_abi::call::Reentrancy::Reject,
            ring: true,
        }));
        assert!(matches!(self.hear().0, FromNode::Serving { .. }));
    }

    fn incoming(&self) -> (Incoming, OwnedFd) {
        match self.hear() {
            (FromNode::Incoming(incoming), Some(socket)) => (incoming, socket),
            other => panic!("{other:?}"),
        }
    }
}

/// The hostile end of a connection: it has said hello as it should.
struct Line {
    socket: OwnedFd,
    page: OwnPage,
}

impl Line {
    fn new(socket: OwnedFd) -> Line {
        let page = OwnPage::new("hostile", len_bytes(true)).unwrap();
        page.store(MAGIC_AT, MAGIC, Ordering::Release);
        hello(&socket, Some(page.as_fd()));
        Line { socket, page }
    }

    /// Puts bytes at the beginning of the ring, says that `written` of them are there, rings the bell.
    fn write(&self, bytes: &[u8], written: u64) {
        self.page.copy_in(RING_AT, bytes);
        self.page.store(WRITTEN_AT, written, Ordering::SeqCst);
        packet::send(&self.socket, &[IoSlice::new(&[0])], &[], Wait::No).ok();
    }

    /// Whether the other side has ended the connection.
    fn is_ended(&self) -> bool {
        self.is_ended_within(5)
    }

    fn is_ended_within(&self, tv_sec: i64) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        poll(&mut fds, Some(&Timespec { tv_sec, tv_nsec: 0 })).unwrap() > 0
    }
}

fn hello(socket: &OwnedFd, page: Option<std::os::fd::BorrowedFd<'_>>) {
    let hello = Header::new(Kind::Hello, 0).encode();
    packet::send(socket, &[IoSlice::new(&hello)], page.as_slice(), Wait::Yes).unwrap();
}

fn call_frame(granted: &Granted) -> (Header, Vec<u8>) {
    let mut ext = Vec::new();
    Extensions { method: Some("echo"), ..Extensions::default() }.encode(&mut ext).unwrap();
    let header = Header {
        len_bytes: ext.len() as u32,
        ext_len_bytes: ext.len() as u16,
        code: method("echo").number(),
        hop: 1,
        budget_ns: 1_000_000_000,
        incarnation: granted.serving.incarnation,
        ..Header::new(Kind::Call, 65)
    };
    (header, ext)
}

fn serve(node: &TestNode) -> (Node, Server) {
    let here = Node::connect(node.run_dir()).unwrap();
    let server = here
        .serve(&service("echo"))
        .method(&method("echo"), |call| Ok(call.body.clone()))
        .start()
        .unwrap();
    (here, server)
}

#[test]
fn a_caller_hears_that_its_callee_goes_away_before_the_connection_ends() {
    let node = TestNode::start();
    let (_here, server) = serve(&node);
    let caller = Hostile::connect(&node);
    let (_, socket) = caller.open("echo", 1);
    let line = Line::new(socket);
    let mut packet = [0; 256];
    let (_, fds) = packet::receive(&line.socket, &mut packet, 1, Wait::Yes).unwrap();
    let page = PeerPage::new(&fds[0], len_bytes(true)).unwrap();
    // It says hello before it is one of those that are drained: it answers a ping only after that.
    let ping = Header::new(Kind::Ping, 1).encode_summed();
    line.write(&ping, HEADER_BYTES as u64);
    support::until("it answers", || page.load(WRITTEN_AT, Ordering::Acquire) > 0);
    assert!(server.drain(Duration::from_secs(10)));
    assert!(line.is_ended());
    let mut frames = [0; 2 * HEADER_BYTES];
    page.copy_out(RING_AT, &mut frames);
    assert_eq!(page.load(WRITTEN_AT, Ordering::Acquire), frames.len() as u64);
    let kinds = frames
        .chunks(HEADER_BYTES)
        .map(|frame| Header::decode_summed(frame.first_chunk().unwrap()).unwrap().kind);
    assert_eq!(kinds.collect::<Vec<_>>(), [Kind::Pong, Kind::Goaway]);
}

#[test]
fn a_caller_that_lies_loses_its_connection_and_nobody_else_notices() {
    let node = TestNode::start();
    let (here, _server) = serve(&node);
    let good = here.service(&service("echo"));
    good.call(&method("echo"), b"before").unwrap();
    let hostile = Hostile::connect(&node);
    let (granted, socket) = hostile.open("echo", 1);
    drop(Line::new(socket));
    let (header, ext) = call_frame(&granted);
    let whole = [&header.encode_summed()[..], &ext].concat();
    let written = whole.len().next_multiple_of(8) as u64;
    let unsummed = [&header.encode()[..], &ext].concat();
    let without_method = Header { code: 7, ..header };
    let without_method = [&without_method.encode_summed()[..], &ext].concat();
    let longer = Header { len_bytes: 60_000, ..header }.encode_summed();
    let reply = Header::new(Kind::Reply, 65).encode_summed();
    let lent = Header { flags: flags::LENT, len_bytes: 8, ext_len_bytes: 0, ..header };
    let lent = [&lent.encode_summed()[..], &8_u64.to_le_bytes()].concat();
    let cases: [(&str, &[u8], u64); 9] = [
        ("noise", &[0xa5; 256], 256),
        ("no checksum", &unsummed, written),
        ("a method that does not fit its number", &without_method, written),
        ("more than was written", &longer, 64),
        ("less than a header", &whole, 8),
        ("more than the ring holds", &whole, RING_BYTES as u64 + 8),
        ("as much as a number holds", &whole, u64::MAX - 7),
        ("a frame that only callees send", &reply, 64),
        ("memory that was not passed", &lent, 72),
    ];
    for (at, (what, bytes, written)) in cases.into_iter().enumerate() {
        let (_, socket) = hostile.open("echo", at as u64 + 2);
        let line = Line::new(socket);
        line.write(bytes, written);
        assert!(line.is_ended(), "{what}");
        good.call(&method("echo"), what.as_bytes()).unwrap();
    }
    assert_eq!(good.idle(), 1, "the good connection is the same");
    // And the honest frame of this very peer is answered.
    let (_, socket) = hostile.open("echo", 100);
    let line = Line::new(socket);
    line.write(&whole, written);
    let mut fds = [PollFd::new(&line.socket, PollFlags::RDHUP)];
    let moment = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    assert_eq!(poll(&mut fds, Some(&moment)).unwrap(), 0, "it is still there");
}

#[test]
fn a_peer_that_passes_bad_pages_or_memory_is_refused() {
    let node = TestNode::start();
    let (here, _server) = serve(&node);
    let hostile = Hostile::connect(&node);
    let plain = || {
        let memory = rustix::fs::memfd_create("plain", rustix::fs::MemfdFlags::ALLOW_SEALING);
        let memory = memory.unwrap();
        rustix::fs::ftruncate(&memory, len_bytes(true) as u64).unwrap();
        memory
    };
    let small = OwnPage::new("small", len_bytes(false)).unwrap();
    let empty = OwnPage::new("empty", len_bytes(true)).unwrap();
    let (could_shrink, null) = (plain(), std::fs::File::open("/dev/null").unwrap());
    let pages = [
        None,
        Some(small.as_fd()),
        Some(empty.as_fd()),
        Some(could_shrink.as_fd()),
        Some(null.as_fd()),
    ];
    for (at, page) in pages.into_iter().enumerate() {
        let (_, socket) = hostile.open("echo", at as u64);
        hello(&socket, page);
        let line = Line { socket, page: OwnPage::new("unused", 4096).unwrap() };
        assert!(line.is_ended(), "page {at}");
    }
    // Memory for a body that its owner could still change.
    let (granted, socket) = hostile.open("echo", 50);
    let line = Line::new(socket);
    let memory = plain();
    let id = 65_u64.to_le_bytes();
    packet::send(&line.socket, &[IoSlice::new(&id)], &[memory.as_fd()], Wait::Yes).unwrap();
    let (header, ext) = call_frame(&granted);
    let header = Header { flags: flags::LENT, len_bytes: ext.len() as u32 + 8, ..header };
    let length = (len_bytes(true) as u64).to_le_bytes();
    let whole = [&header.encode_summed()[..], &ext, &length].concat();
    line.write(&whole, whole.len().next_multiple_of(8) as u64);
    assert!(line.is_ended());
    here.service(&service("echo")).call(&method("echo"), b"fine").unwrap();
}

#[test]
fn a_peer_that_lies_about_bodies_in_slots_is_refused() {
    let node = TestNode::start();
    let (here, _server) = serve(&node);
    let hostile = Hostile::connect(&node);
    let slot = || OwnPage::new("slot", 131_072).unwrap();
    let fine = Pooled { len_bytes: 70_000, slot: 3, turn: 1, slot_bytes: 131_072 };
    let plain = rustix::fs::memfd_create("plain", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&plain, 131_072).unwrap();
    let write = |line: &Line, granted: &Granted, pooled: &Pooled, more_flags: u16| {
        let (header, ext) = call_frame(granted);
        let place = pooled.encode();
        let len_bytes = (ext.len() + place.len()) as u32;
        let header = Header { flags: flags::POOLED | more_flags, len_bytes, ..header };
        let whole = [&header.encode_summed()[..], &ext, &place].concat();
        line.write(&whole, whole.len().next_multiple_of(8) as u64);
    };
    let cases: [(&str, Pooled, Option<OwnedFd>, u16); 8] = [
        ("a slot that never came", Pooled { slot_bytes: 0, ..fine }, None, 0),
        ("memory that was not passed", fine, None, 0),
        ("memory that its owner could shrink", fine, Some(plain), 0),
        (
            "another size",
            Pooled { slot_bytes: 262_144, ..fine },
            Some(slot().as_fd().try_clone_to_owned().unwrap()),
            0,
        ),
        (
            "beyond the slot",
            Pooled { len_bytes: 131_073, ..fine },
            Some(slot().as_fd().try_clone_to_owned().unwrap()),
            0,
        ),
        (
            "no such slot",
            Pooled { slot: 4, ..fine },
            Some(slot().as_fd().try_clone_to_owned().unwrap()),
            0,
        ),
        (
            "as large as a number",
            Pooled { len_bytes: u64::MAX, ..fine },
            Some(slot().as_fd().try_clone_to_owned().unwrap()),
            0,
        ),
        ("in two places", fine, Some(slot().as_fd().try_clone_to_owned().unwrap()), flags::LENT),
    ];
    for (at, (what, pooled, memory, more_flags)) in cases.into_iter().enumerate() {
        let (granted, socket) = hostile.open("echo", at as u64);
        let line = Line::new(socket);
        if let Some(memory) = &memory {
            let id = 65_u64.to_le_bytes();
            packet::send(&line.socket, &[IoSlice::new(&id)], &[memory.as_fd()], Wait::Yes).unwrap();
        }
        write(&line, &granted, &pooled, more_flags);
        assert!(line.is_ended(), "{what}");
    }
    // Who says too early, or of turns that never were, that it has copied gets its replies all the same.
    let (granted, socket) = hostile.open("echo", 100);
    let line = Line::new(socket);
    let memory = slot();
    for at in 0..POOL_SLOTS {
        line.page.store(RETURNED_AT + 8 * at, 77, Ordering::Release);
    }
    let id = 65_u64.to_le_bytes();
    packet::send(&line.socket, &[IoSlice::new(&id)], &[memory.as_fd()], Wait::Yes).unwrap();
    write(&line, &granted, &fine, 0);
    // Its hello, perhaps doorbells, and then what is asked for.
    let mut packet = [0; HEADER_BYTES];
    let lent = loop {
        match packet::receive(&line.socket, &mut packet, 1, Wait::Yes).unwrap() {
            (8, lent) => break lent,
            (1 | HEADER_BYTES, _) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(lent.len(), 1, "no slot is free, so it is sealed");
    here.service(&service("echo")).call(&method("echo"), b"fine").unwrap();
}

#[test]
fn a_peer_that_never_reads_its_replies_or_floods_opens_holds_up_nobody() {
    let node = TestNode::start();
    let (here, _server) = serve(&node);
    let hostile = Hostile::connect(&node);
    let (granted, socket) = hostile.open("echo", 1);
    let line = Line::new(socket);
    // As many calls as the ring holds, with replies that fill the other.
    let (header, ext) = call_frame(&granted);
    let body = vec![1_u8; 60_000];
    let header = Header { len_bytes: (ext.len() + body.len()) as u32, ..header };
    let mut at = 0_usize;
    for n in 0..20 {
        let head = Header { call: 65 + n, ..header }.encode_summed();
        let whole = [&head[..], &ext, &body].concat();
        for chunk in whole.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            line.page.copy_in(RING_AT + at % RING_BYTES, &word);
            at += 8;
        }
        line.page.store(WRITTEN_AT, at as u64, Ordering::SeqCst);
        packet::send(&line.socket, &[IoSlice::new(&[0])], &[], Wait::No).ok();
        if n >= 3 {
            std::thread::sleep(Duration::from_millis(5));
        }
        // `READ_AT` of our page stays 0: we never read.
        assert_eq!(line.page.load(READ_AT, Ordering::Relaxed), 0);
    }
    for request in 2..200 {
        hostile.say(&ToNode::Open(Open {
            request,
            service: service("echo"),
            budget_ms: 1_000,
            chain: vec![],
            from: None,
            ring: true,
            wait: false,
        }));
    }
    let began = Instant::now();
    let good = here.service(&service("echo"));
    good.call(&method("echo"), b"fine").unwrap();
    println!("a good caller was answered after {:?}", began.elapsed());
    assert!(line.is_ended(), "a thread is not held by who does not read");
    drop(hostile);
    support::until("what it had is gone", || node.grants() <= 1);
    good.call(&method("echo"), b"fine").unwrap();
}

#[test]
fn a_callee_that_lies_is_told_to_its_caller_as_malformed() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let hostile = Hostile::connect(&node);
    hostile.serve("liar");
    let noise: &[u8] = &[0xff; 128];
    for (what, bytes, written) in
        [("noise", noise, 128), ("too much", noise, u64::MAX), ("unaligned", noise, 12)]
    {
        std::thread::scope(|scope| {
            let call = scope.spawn(|| here.service(&service("liar")).call(&method("m"), b""));
            let (_, socket) = hostile.incoming();
            let line = Line::new(socket);
            line.write(bytes, written);
            let told = call.join().unwrap().unwrap_err();
            // Its page says that it took nothing, and it would be to blame itself if that were a lie.
            assert!(
                matches!(told, CallError::NotExecuted { cause: Cause::Malformed, .. }),
                "{what}: {told}"
            );
        });
    }
    // One that never says hello costs the budget and no more.
    std::thread::scope(|scope| {
        let began = Instant::now();
        let liar = here.service(&service("liar"));
        let call = scope
            .spawn(move || liar.request(&method("m")).budget(Duration::from_millis(100)).call(b""));
        let (_, _socket) = hostile.incoming();
        let told = call.join().unwrap().unwrap_err();
        assert!(matches!(told, CallError::NotExecuted { cause: Cause::Deadline, .. }), "{told}");
        println!("a deadline of 100 ms was told after {:?}", began.elapsed());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callee_that_sends_more_of_a_stream_than_it_may_is_believed_no_more() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let hostile = Hostile::connect(&node);
    let begin = |call| Header { flags: flags::STREAM, ..Header::new(Kind::Reply, call) };
    let chunk = |call| Header { len_bytes: 8, ..Header::new(Kind::Chunk, call) };
    let put = |headers: &[Header]| {
        let mut bytes = Vec::new();
        for header in headers {
            bytes.extend_from_slice(&header.encode_summed());
            bytes.resize(bytes.len() + header.len_bytes as usize, 7);
        }
        bytes
    };
    hostile.serve("stream");
    for case in ["too many chunks", "a chunk before it begins", "two beginnings", "unasked"] {
        let s = here.service_async(&service("stream"));
        let calls = tokio::spawn(async move {
            match case {
                "unasked" => s.call(&method("go"), b"").await.unwrap_err(),
                _ => match s.stream(&method("go"), b"").await {
                    Ok(mut chunks) => chunks.rest().await.unwrap_err(),
                    Err(error) => error,
                },
            }
        });
        let page = tokio::task::block_in_place(|| {
            let (_, socket) = hostile.incoming();
            let line = Line::new(socket);
            let mut packet = [0; 256];
            let (_, fds) = packet::receive(&line.socket, &mut packet, 1, Wait::Yes).unwrap();
            let peer = PeerPage::new(&fds[0], len_bytes(true)).unwrap();
            support::until("it calls", || peer.load(WRITTEN_AT, Ordering::Acquire) > 0);
            let mut head = [0; HEADER_BYTES];
            peer.copy_out(RING_AT, &mut head);
            let call = Header::decode_summed(&head).unwrap().call;
            let bytes = match case {
                "too many chunks" => put(&[vec![begin(call)], vec![chunk(call); 200]].concat()),
                "a chunk before it begins" => put(&[chunk(call)]),
                "two beginnings" => put(&[begin(call), begin(call)]),
                _ => put(&[begin(call)]),
            };
            line.write(&bytes, bytes.len() as u64);
            line
        });
        let told = calls.await.unwrap();
        // It has no receipt, so nothing ran; or it had begun, and nobody knows what else.
        assert_eq!(told.cause(), Some(Cause::Malformed), "{case}: {told}");
        assert!(page.is_ended(), "{case}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_gives_more_credit_than_it_took_chunks_loses_its_connection() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let server = here
        .serve_async(&service("stream"))
        .method(&method("echo"), |_| std::future::pending())
        .start()
        .await
        .unwrap();
    let hostile = Hostile::connect(&node);
    for stream in [true, false] {
        let (granted, socket) = tokio::task::block_in_place(|| hostile.open("stream", 1));
        let line = Line::new(socket);
        let (header, ext) = call_frame(&granted);
        let header = Header { flags: if stream { flags::STREAM } else { 0 }, ..header };
        let mut bytes = [&header.encode_summed()[..], &ext].concat();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let code = STREAM_CREDIT + 1;
        let credit = Header { code, ..Header::new(Kind::Credit, header.call) };
        bytes.extend_from_slice(&credit.encode_summed());
        line.write(&bytes, bytes.len() as u64);
        assert!(tokio::task::block_in_place(|| line.is_ended()));
    }
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}

#[test]
fn a_call_that_would_wait_for_itself_is_not_even_sent() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let callee = Hostile::connect(&node);
    callee.serve("self");
    let s = here.service(&service("self"));
    std::thread::scope(|scope| {
        let learns =
            scope.spawn(|| s.request(&method("go")).budget(Duration::from_secs(5)).call(b""));
        let (incoming, socket) = callee.incoming();
        let line = Line::new(socket);
        let mut packet = [0; 256];
        let (_, fds) = packet::receive(&line.socket, &mut packet, 1, Wait::Yes).unwrap();
        let page = PeerPage::new(&fds[0], len_bytes(true)).unwrap();
        support::until("it calls", || page.load(WRITTEN_AT, Ordering::Acquire) > 0);
        let written = page.load(WRITTEN_AT, Ordering::Acquire);
        let mut head = [0; HEADER_BYTES];
        page.copy_out(RING_AT, &mut head);
        let call = Header::decode_summed(&head).unwrap().call;
        let reply = Header::new(Kind::Reply, call).encode_summed();
        line.write(&reply, HEADER_BYTES as u64);
        assert_eq!(learns.join().unwrap().unwrap(), "");

        // The same connection, in the context of a call that came through this callee.
        let mut chain = Vec::new();
        Chain::push(&mut chain, incoming.instance, &service("self"));
        let chain: Vec<String> = chain.iter().map(|byte| format!("{byte:02x}")).collect();
        let root = Context::root(Duration::from_secs(5)).export();
        let context =
            Context::import(&root.replace("..", &format!(".{}.", chain.concat()))).unwrap();
        let told = context.enter(|| s.call(&method("go"), b"")).unwrap_err();
        let CallError::NotExecuted { cause: Cause::Cycle, path, .. } = &told else {
            panic!("{told}")
        };
        let path: Vec<&str> = path.iter().map(|hop| hop.service.as_str()).collect();
        assert_eq!(path, ["self", "self"]);
        assert_eq!(page.load(WRITTEN_AT, Ordering::Acquire), written, "nothing was sent");
    });
}

#[test]
fn a_thread_that_sends_a_stream_hears_what_its_caller_says_meanwhile() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let (pulsed, pulses) = std::sync::mpsc::channel();
    let _server = here
        .serve(&service("stream"))
        .stream(&method("echo"), |_, out| {
            loop {
                out.send(b"12345678")?;
            }
        })
        .method(&method("pulse"), move |call| {
            pulsed.send(call.body.clone()).unwrap();
            Ok(call.body.clone())
        })
        .start()
        .unwrap();
    let hostile = Hostile::connect(&node);
    for case in ["too much credit", "a second call", "another's frame", "pulses, and its end"] {
        let (granted, socket) = hostile.open("stream", 1);
        let line = Line::new(socket);
        let (call, ext) = call_frame(&granted);
        let call = Header { flags: flags::STREAM, ..call };
        let mut bytes = Vec::new();
        let mut put = |header: Header, ext: &[u8]| {
            bytes.extend_from_slice(&header.encode_summed());
            bytes.extend_from_slice(ext);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        };
        put(call, &ext);
        let credit = |code| Header { code, ..Header::new(Kind::Credit, call.call) };
        // That of another call says nothing here.
        put(Header { call: call.call + 1, ..credit(1_000) }, &[]);
        match case {
            "too much credit" => put(credit(STREAM_CREDIT + 1), &[]),
            "a second call" => put(Header { call: call.call + 1, ..call }, &ext),
            "another's frame" => put(Header::new(Kind::Reply, call.call), &[]),
            _ => {
                let mut ext = Vec::new();
                let name = Some("pulse");
                let extensions = Extensions { method: name, ..Extensions::default() };
                extensions.encode(&mut ext).unwrap();
                let pulse = Header {
                    code: method("pulse").number(),
                    len_bytes: ext.len() as u32,
                    ext_len_bytes: ext.len() as u16,
                    flags: 0,
                    ..Header { kind: Kind::Pulse, ..call }
                };
                put(pulse, &ext);
                put(pulse, &ext);
                put(Header::new(Kind::Cancel, call.call), &[]);
            }
        }
        line.write(&bytes, bytes.len() as u64);
        if case == "pulses, and its end" {
            assert_eq!(pulses.recv_timeout(Duration::from_secs(10)).unwrap(), "");
            assert!(!line.is_ended_within(0), "who cancels a call may make another");
        } else {
            assert!(line.is_ended(), "{case}");
        }
    }
}
