//! Replies in pieces without a runtime: callers and callees on threads, with each other and with tasks, on every
//! carrier.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kumo_abi::call::{Cause, Method, ServiceName};
use kumo_abi::control::Carrier;
use kumo_abi::frame::STREAM_CREDIT;
use middlecon::{CODE_STREAMS, CallError, Context, Failure, Node, Pieces, Server};
use support::secure::{One, connect};
use support::{Program, TestNode, tell, until};

/// Longer than anybody may wait for room who has no credit to wait for.
const SLOW: Duration = Duration::from_millis(2_300);

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

/// A node that gives all pairs one carrier, and what its programs have in common.
struct World {
    node: TestNode,
    ring: bool,
    secure: Arc<One>,
    runtime: tokio::runtime::Runtime,
}

impl World {
    /// One of each carrier.
    fn each() -> impl Iterator<Item = (&'static str, World)> {
        let carriers = [
            ("ring", None, true),
            ("packets", None, false),
            ("TLS", Some(Carrier::Tls), false),
            ("spliced", Some(Carrier::Spliced), false),
        ];
        carriers.into_iter().map(|(name, carrier, ring)| {
            let node = carrier.map_or_else(TestNode::start, TestNode::start_with);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let secure = Arc::new(One::new());
            secure.write(node.run_dir());
            (name, World { node, ring, secure, runtime })
        })
    }

    fn connect(&self) -> Node {
        connect(&self.node, &self.secure)
    }

    /// Both servers of [`serve`] and [`serve_async`], as `threads` and `tasks`.
    fn serve(&self) -> (Server, Server, Seen) {
        let (seen, here) = (Seen::default(), self.connect());
        let threads = serve(&here, self.ring, &seen);
        let tasks = self.runtime.block_on(serve_async(&here, self.ring, &seen));
        (threads, tasks, seen)
    }
}

/// Counts pieces that were sent, and handlers that are over however they ended.
#[derive(Clone, Default)]
struct Seen(Arc<(AtomicUsize, AtomicUsize)>);

impl Seen {
    fn sent(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }

    fn over(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }

    fn one(&self) {
        self.0.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Over(Seen);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.0.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// What is asked for: so many pieces of so many bytes.
fn asked(body: &[u8]) -> (u32, usize) {
    let text = std::str::from_utf8(body).unwrap();
    let (count, words) = text.split_once(' ').unwrap();
    (count.parse().unwrap(), words.parse().unwrap())
}

fn piece(nth: u32, words: usize) -> Vec<u8> {
    nth.to_le_bytes().repeat(words)
}

fn serve(node: &Node, ring: bool, seen: &Seen) -> Server {
    let (counts, waits) = (seen.clone(), seen.clone());
    let builder = node
        .serve(&service("threads"))
        .ring(ring)
        .stream(&method("count"), move |call, out| {
            let _over = Over(counts.clone());
            let (count, words) = asked(&call.body);
            for nth in 0..count {
                out.send(&piece(nth, words))?;
                counts.one();
            }
            Ok(())
        })
        .stream(&method("large"), |call, out| {
            out.send(b"")?;
            out.send(&call.body)
        })
        .stream(&method("fail"), |_, out| {
            out.send(b"one")?;
            Err(Failure::new(5, "no more"))
        })
        .stream(&method("panic"), |_, out| {
            out.send(b"one")?;
            panic!("on purpose")
        })
        // Sends as long as somebody hears it, and then says that all is well.
        .stream(&method("hang"), move |_, out| {
            let _over = Over(waits.clone());
            while out.send(b"one").is_ok() {
                std::thread::sleep(Duration::from_micros(100));
            }
            assert!(out.send(b"one").is_err() && out.send(b"").is_err(), "nobody hears it");
            Ok(())
        })
        .method(&method("echo"), |call| Ok(call.body.clone()));
    builder.start().unwrap()
}

async fn serve_async(node: &Node, ring: bool, seen: &Seen) -> Server {
    let (counts, waits) = (seen.clone(), seen.clone());
    let builder = node
        .serve_async(&service("tasks"))
        .ring(ring)
        .stream(&method("count"), move |call, mut out| {
            let seen = counts.clone();
            async move {
                let _over = Over(seen.clone());
                let (count, words) = asked(&call.body);
                for nth in 0..count {
                    out.send(piece(nth, words)).await?;
                    seen.one();
                }
                Ok(())
            }
        })
        .stream(&method("large"), |call, mut out| async move { out.send(call.body).await })
        .stream(&method("fail"), |_, mut out| async move {
            out.send("one").await?;
            Err(Failure::new(5, "no more"))
        })
        .stream(&method("panic"), |_, mut out| async move {
            out.send("one").await?;
            panic!("on purpose")
        })
        .stream(&method("hang"), move |_, mut out| {
            let over = Over(waits.clone());
            async move {
                let _over = over;
                loop {
                    out.send("one").await?;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        })
        .method(&method("echo"), |call| async move { Ok(call.body) });
    builder.start().await.unwrap()
}

fn count(caller: &middlecon::Service, count: u32, words: usize) -> Pieces {
    caller.stream(&method("count"), format!("{count} {words}").as_bytes()).unwrap()
}

fn is_whole(mut pieces: Pieces, count: u32, words: usize) {
    for nth in 0..count {
        assert_eq!(pieces.next().unwrap().unwrap(), piece(nth, words));
    }
    assert_eq!(pieces.next(), None);
    assert_eq!(pieces.next(), None, "an end stays one");
}

#[test]
fn every_piece_arrives_once_and_in_order_on_every_carrier() {
    for (carrier, world) in World::each() {
        let (_threads, _tasks, _) = world.serve();
        let caller = world.connect();
        let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
        for name in ["threads", "tasks"] {
            let s = caller.service(&service(name));
            for to in [0, 1, 8, 9, 1_000] {
                is_whole(count(&s, to, 2), to, 2);
            }
            // More bytes than any carrier holds, and pieces that are larger than a frame.
            is_whole(count(&s, 100, 5_000), 100, 5_000);
            let mut pieces = s.stream(&method("large"), &body).unwrap();
            let first = pieces.next().unwrap().unwrap();
            assert!(!first.is_empty() && first == body[..first.len()]);
            assert_eq!(pieces.rest().unwrap(), body[first.len()..], "{carrier} {name}");
            drop(pieces);
            // An idle connection has nothing unread.
            assert_eq!(s.call(&method("echo"), b"hi").unwrap(), "hi");
            assert_eq!(s.idle(), 1, "{carrier} {name}");
            // Two at once have a connection each.
            let (one, other) = (count(&s, 20, 1), count(&s, 30, 1));
            std::thread::scope(|scope| scope.spawn(|| is_whole(other, 30, 1)).join().unwrap());
            is_whole(one, 20, 1);
            assert_eq!(s.idle(), 2, "{carrier} {name}");
        }
        // A task calls a server of threads.
        world.runtime.block_on(async {
            let s = caller.service_async(&service("threads"));
            for to in [0, 1, 8, 9, 1_000] {
                let asks = format!("{to} 2");
                let mut chunks = s.stream(&method("count"), asks.as_bytes()).await.unwrap();
                for nth in 0..to {
                    assert_eq!(chunks.next().await.unwrap().unwrap(), piece(nth, 2));
                }
                assert_eq!(chunks.next().await, None);
            }
            let mut chunks = s.stream(&method("large"), &body).await.unwrap();
            assert_eq!(chunks.rest().await.unwrap(), body, "{carrier}");
            assert_eq!(s.connections(), 1, "{carrier}");
        });
    }
}

#[test]
fn a_slow_reader_holds_up_the_handler_and_loses_nothing() {
    for (carrier, world) in World::each() {
        let (_threads, _tasks, seen) = world.serve();
        let caller = world.connect();
        for name in ["threads", "tasks"] {
            let before = seen.sent();
            let s = caller.service(&service(name));
            let slow = count(&s, 100, 1);
            until("its credit is spent", || seen.sent() - before == STREAM_CREDIT as usize);
            // Nobody else is held up by it.
            is_whole(count(&s, 50, 1), 50, 1);
            assert_eq!(seen.sent() - before, STREAM_CREDIT as usize + 50, "{carrier} {name}");
            is_whole(slow, 100, 1);
        }
        // Large pieces fill what is between the two before the credit is spent: that is no end either.
        std::thread::scope(|scope| {
            for name in ["threads", "tasks"] {
                for to in [STREAM_CREDIT, 20] {
                    let s = caller.service(&service(name));
                    scope.spawn(move || {
                        let slow = count(&s, to, 16 * 1_024);
                        std::thread::sleep(SLOW);
                        is_whole(slow, to, 16 * 1_024);
                        assert_eq!(s.idle(), 1, "{carrier} {name} {to}");
                    });
                }
            }
        });
    }
}

#[test]
fn the_end_is_told_as_it_was() {
    for (carrier, world) in World::each() {
        let (_threads, _tasks, seen) = world.serve();
        let caller = world.connect();
        for name in ["threads", "tasks"] {
            let (s, before) = (caller.service(&service(name)), seen.over());
            let failed = CallError::Failed { code: 5, message: "no more".to_owned() };
            let panicked =
                CallError::Unknown { cause: Cause::Panic, message: "on purpose".to_owned() };
            for (how, want) in [("fail", failed), ("panic", panicked)] {
                let mut pieces = s.stream(&method(how), b"").unwrap();
                assert_eq!(pieces.next().unwrap().unwrap(), "one");
                assert_eq!(pieces.next().unwrap().unwrap_err(), want);
                assert_eq!(pieces.next(), None);
            }
            assert_eq!(s.idle(), 1, "{carrier} {name}: it is of use after that");
            // The budget ends in the middle, for who reads and for who waits.
            let hang = method("hang");
            for reads in [true, false] {
                let began = Instant::now();
                let mut pieces =
                    s.request(&hang).budget(Duration::from_millis(50)).stream(b"").unwrap();
                if !reads {
                    std::thread::sleep(Duration::from_millis(80));
                }
                let told = pieces.rest().unwrap_err();
                assert!(
                    matches!(told, CallError::Unknown { cause: Cause::Deadline, .. }),
                    "{carrier} {name}: {told}"
                );
                assert!(began.elapsed() < Duration::from_secs(2));
                assert_eq!(pieces.next(), None);
            }
            until("its handlers are over", || seen.over() - before == 2);
            // Who stops to read ends the handler, and the service is still of use.
            for _ in 0..20 {
                let mut pieces = s.stream(&hang, b"").unwrap();
                assert_eq!(pieces.next().unwrap().unwrap(), "one");
            }
            drop(s.stream(&hang, b"").unwrap());
            until("all handlers are over", || seen.over() - before == 23);
            is_whole(count(&s, 10, 1), 10, 1);
            assert_eq!(s.call(&method("echo"), b"hi").unwrap(), "hi", "{carrier} {name}");
            let missing = s.stream(&method("missing"), b"").unwrap_err();
            assert!(
                matches!(missing, CallError::NotExecuted { cause: Cause::NoSuch, .. }),
                "{missing}"
            );
            // Who waits above may give up.
            let (reader, writer) = std::io::pipe().unwrap();
            let above = Context::root(Duration::from_secs(60)).given_up_with(reader.into());
            let mut pieces = above.enter(|| s.stream(&hang, b"")).unwrap();
            assert_eq!(pieces.next().unwrap().unwrap(), "one");
            drop(writer);
            let told = pieces.rest().unwrap_err();
            assert!(
                matches!(told, CallError::Unknown { cause: Cause::Cancelled, .. }),
                "{carrier} {name}: {told}"
            );
            // Those, and the one that counted.
            until("its handler is over, too", || seen.over() - before == 25);
        }
        // A task that no longer reads from a thread.
        world.runtime.block_on(async {
            let (s, before) = (caller.service_async(&service("threads")), seen.over());
            for _ in 0..20 {
                let mut chunks = s.stream(&method("hang"), b"").await.unwrap();
                assert_eq!(chunks.next().await.unwrap().unwrap(), "one");
            }
            let hang = method("hang");
            let hangs = s.request(&hang).budget(Duration::from_millis(50));
            let told = hangs.stream(b"").await.unwrap().rest().await.unwrap_err();
            assert!(matches!(told, CallError::Unknown { cause: Cause::Deadline, .. }), "{told}");
            tokio::task::block_in_place(|| {
                until("all handlers are over", || seen.over() - before >= 21);
            });
            assert_eq!(s.call(&method("echo"), b"hi").await.unwrap(), "hi", "{carrier}");
        });
    }
}

#[test]
fn one_reply_is_a_stream_of_it_and_a_stream_is_no_reply() {
    for (carrier, world) in World::each() {
        let (_threads, _tasks, seen) = world.serve();
        let caller = world.connect();
        for name in ["threads", "tasks"] {
            let s = caller.service(&service(name));
            let body = vec![7; 100_000];
            let mut pieces = s.stream(&method("echo"), &body).unwrap();
            assert_eq!(s.idle(), 1, "its call is over");
            assert_eq!(pieces.next().unwrap().unwrap(), body);
            assert_eq!(pieces.next(), None);
            assert_eq!(s.stream(&method("echo"), b"").unwrap().next(), None);
            let told = s.call(&method("count"), b"1 1").unwrap_err();
            assert!(matches!(told, CallError::Failed { code: CODE_STREAMS, .. }), "{told}");
            assert_eq!((s.idle(), seen.over()), (1, 0), "{carrier} {name}");
        }
    }
}

/// Not a test by itself: what this binary does where another test runs it again.
#[test]
fn role() {
    let Ok(role) = std::env::var("MIDDLECON_ROLE") else { return };
    let dir = PathBuf::from(std::env::var("MIDDLECON_DIR").unwrap());
    let node = Node::connect(&dir).unwrap();
    node.secure_with(Arc::new(One::read(&dir)));
    let server = serve(&node, role == "ring", &Seen::default());
    tell("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    drop(server);
}

#[test]
fn a_callee_that_dies_in_the_middle_of_a_stream_is_no_good_end() {
    for (carrier, world) in World::each() {
        let s = world.connect().service(&service("threads"));
        for reads in [true, false, true, false] {
            let mut callee = Program::spawn(carrier, &world.node);
            let mut pieces = s.stream(&method("hang"), b"").unwrap();
            assert_eq!(pieces.next().unwrap().unwrap(), "one");
            if reads {
                // It is killed while it sends; else while it waits for credit.
                pieces.by_ref().take(50).for_each(|piece| assert_eq!(piece.unwrap(), "one"));
            }
            callee.kill();
            let told = pieces.rest().unwrap_err();
            assert!(
                matches!(told, CallError::Unknown { cause: Cause::Died | Cause::Lost, .. }),
                "{carrier}: {told}"
            );
            assert_eq!((pieces.next(), s.idle()), (None, 0));
        }
    }
}

#[test]
fn who_drains_ends_streams_that_do_not_end() {
    for (carrier, world) in World::each() {
        let (threads, _tasks, _) = world.serve();
        let s = world.connect().service(&service("threads"));
        let (mut pieces, whole) = (s.stream(&method("hang"), b"").unwrap(), count(&s, 100, 1));
        std::thread::scope(|scope| {
            let drains = scope.spawn(|| threads.drain(Duration::from_millis(300)));
            // One that is read to its end in time has that end.
            is_whole(whole, 100, 1);
            let told = pieces.rest().unwrap_err();
            assert!(matches!(told, CallError::Unknown { .. }), "{carrier}: {told}");
            assert!(!drains.join().unwrap());
        });
    }
}
