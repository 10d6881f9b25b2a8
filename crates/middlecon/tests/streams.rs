//! Replies in pieces: every piece once and in order, slow readers, and the truth about every end.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kumo_abi::call::{Cause, Method, ServiceName};
use kumo_abi::control::Carrier;
use kumo_abi::frame::STREAM_CREDIT;
use middlecon::{AsyncService, CODE_STREAMS, CallError, Failure, Node, Server};
use support::{Program, TestNode, tell};

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < Duration::from_secs(10), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
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
}

struct Over(Seen);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.0.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts up to the number that it is asked for, a piece each.
async fn serve(node: &Node, ring: bool) -> (Server, Seen) {
    let seen = Seen::default();
    let (counted, waits) = (seen.clone(), seen.clone());
    let builder = node
        .serve_async(&service("s"))
        .ring(ring)
        .stream(&method("count"), move |call, mut out| {
            let seen = counted.clone();
            async move {
                let _over = Over(seen.clone());
                let to: u32 = std::str::from_utf8(&call.body).unwrap().parse().unwrap();
                for n in 0..to {
                    out.send(n.to_string()).await?;
                    seen.0.0.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            }
        })
        .stream(&method("large"), |call, mut out| async move {
            out.send(call.body.slice(..0)).await?;
            out.send(call.body).await
        })
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
                out.send("one").await?;
                std::future::pending().await
            }
        })
        .method(&method("echo"), |call| async move { Ok(call.body) });
    (builder.start().await.unwrap(), seen)
}

async fn over(server: Server) {
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}

async fn counts(s: &AsyncService, to: usize) {
    let mut chunks = s.stream(&method("count"), to.to_string().as_bytes()).await.unwrap();
    for n in 0..to {
        assert_eq!(chunks.next().await.unwrap().unwrap(), n.to_string());
    }
    assert_eq!(chunks.next().await, None);
    assert_eq!(chunks.next().await, None, "an end stays one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_piece_arrives_once_and_in_order_on_every_carrier() {
    for (carrier, ring) in [(None, true), (None, false), (Some(Carrier::Spliced), false)] {
        let node = carrier.map_or_else(TestNode::start, TestNode::start_with);
        let (callee, caller) =
            (Node::connect(node.run_dir()).unwrap(), Node::connect(node.run_dir()).unwrap());
        let (server, _) = serve(&callee, ring).await;
        let s = caller.service_async(&service("s"));
        for to in [0, 1, 8, 9, 1_000] {
            counts(&s, to).await;
        }
        // Many at once, more bytes than the ring holds, and pieces that are larger than a frame.
        let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let (s, body) = (s.clone(), body.clone());
                tokio::spawn(async move {
                    let mut chunks = s.stream(&method("large"), &body).await.unwrap();
                    let first = chunks.next().await.unwrap().unwrap();
                    assert!(!first.is_empty() && first == body[..first.len()]);
                    assert_eq!(chunks.rest().await.unwrap(), body[first.len()..]);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(s.connections(), 1);
        over(server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_up_its_own_stream_only() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let (server, seen) = serve(&here, true).await;
    let s = here.service_async(&service("s"));
    let mut slow = s.stream(&method("count"), b"100").await.unwrap();
    until("its credit is spent", || seen.sent() == STREAM_CREDIT as usize).await;
    assert_eq!(s.call(&method("echo"), b"hi").await.unwrap(), "hi");
    counts(&s, 200).await;
    assert_eq!(s.connections(), 1, "all on one connection");
    let ahead = STREAM_CREDIT as usize + 200;
    assert_eq!((seen.sent(), seen.over()), (ahead, 1), "it waits still");
    for n in 0..100 {
        assert_eq!(slow.next().await.unwrap().unwrap(), n.to_string());
    }
    assert_eq!(slow.next().await, None);
    assert_eq!(seen.over(), 2);
    over(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_is_told_as_it_was() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let (server, seen) = serve(&here, true).await;
    let s = here.service_async(&service("s"));
    let failed = CallError::Failed { code: 5, message: "no more".to_owned() };
    let panicked = CallError::Unknown { cause: Cause::Panic, message: "on purpose".to_owned() };
    for (name, want) in [("fail", failed), ("panic", panicked)] {
        let mut chunks = s.stream(&method(name), b"").await.unwrap();
        assert_eq!(chunks.next().await.unwrap().unwrap(), "one");
        assert_eq!(chunks.next().await.unwrap().unwrap_err(), want);
        assert_eq!(chunks.next().await, None);
    }
    let name = method("hang");
    let hangs = s.request(&name).budget(Duration::from_millis(30));
    let mut chunks = hangs.stream(b"").await.unwrap();
    let told = chunks.rest().await.unwrap_err();
    assert!(matches!(told, CallError::Unknown { cause: Cause::Deadline, .. }), "{told}");
    until("its handler was dropped", || seen.over() == 1).await;
    // Who stops to read ends the handler, and gives the place back.
    for _ in 0..100 {
        let mut chunks = s.stream(&name, b"").await.unwrap();
        assert_eq!(chunks.next().await.unwrap().unwrap(), "one");
    }
    until("all handlers were dropped", || seen.over() == 101).await;
    counts(&s, 10).await;
    assert!(s.connections() <= 2, "{} connections", s.connections());
    let missing = s.stream(&method("missing"), b"").await.unwrap_err();
    assert!(matches!(missing, CallError::NotExecuted { cause: Cause::NoSuch, .. }), "{missing}");
    over(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_reply_is_a_stream_of_it_and_a_stream_is_no_reply() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let (server, _) = serve(&here, true).await;
    let threads = here.serve(&service("threads"));
    let threads = threads.method(&method("echo"), |call| Ok(call.body.clone())).start().unwrap();
    for name in ["s", "threads"] {
        let s = here.service_async(&service(name));
        let mut chunks = s.stream(&method("echo"), b"hi").await.unwrap();
        assert_eq!(chunks.next().await.unwrap().unwrap(), "hi");
        assert_eq!(chunks.next().await, None);
        let mut chunks = s.stream(&method("echo"), b"").await.unwrap();
        assert_eq!(chunks.next().await, None);
    }
    let told = here.service_async(&service("s")).call(&method("count"), b"1").await.unwrap_err();
    assert!(matches!(told, CallError::Failed { code: CODE_STREAMS, .. }), "{told}");
    over(server).await;
    over(threads).await;
}

/// Not a test by itself: what this binary does where the next test runs it again.
#[test]
fn role() {
    if std::env::var("MIDDLECON_ROLE").is_err() {
        return;
    }
    let dir = std::env::var("MIDDLECON_DIR").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(async {
        let node = Node::connect(dir.as_ref()).unwrap();
        serve(&node, true).await
    });
    tell("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callee_that_dies_in_the_middle_of_a_stream_is_no_good_end() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let s = here.service_async(&service("s"));
    for _ in 0..10 {
        let mut callee = Program::spawn("streamer", &node);
        let mut chunks = s.stream(&method("hang"), b"").await.unwrap();
        assert_eq!(chunks.next().await.unwrap().unwrap(), "one");
        callee.kill();
        let told = chunks.next().await.unwrap().unwrap_err();
        assert!(
            matches!(told, CallError::Unknown { cause: Cause::Died | Cause::Lost, .. }),
            "{told}"
        );
        assert_eq!(chunks.next().await, None::<Result<Bytes, CallError>>);
    }
}
