//! Calls by tasks: many on a connection, cancelled by being dropped.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kumo_abi::call::{Cause, Method, ServiceName};
use middlecon::{CallError, Context, Enough, Failure, Member, Node, Server, gather};
use support::TestNode;

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

/// Counts those that are inside; notes when one leaves, however it does.
#[derive(Clone, Default)]
struct Inside(Arc<(AtomicUsize, AtomicUsize)>);

struct Stay(Inside);

impl Inside {
    fn enter(&self) -> Stay {
        self.0.0.fetch_add(1, Ordering::SeqCst);
        Stay(self.clone())
    }

    fn entered(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }

    fn left(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.0.0.1.fetch_add(1, Ordering::SeqCst);
    }
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < Duration::from_secs(10), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn echo(node: &Node, ring: bool) -> Server {
    let server = node
        .serve_async(&service("echo"))
        .ring(ring)
        .slots(256)
        .method(&method("echo"), |call| async move { Ok(call.body) })
        .method(&method("panic"), |_| async { panic!("on purpose") })
        .method(&method("fail"), |_| async { Err(Failure::new(3, "no")) });
    server.start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_share_a_connection() {
    let node = TestNode::start();
    for ring in [false, true] {
        let (callee, caller) =
            (Node::connect(node.run_dir()).unwrap(), Node::connect(node.run_dir()).unwrap());
        let server = echo(&callee, ring).await;
        let calls = caller.service_async(&service("echo"));
        let tasks: Vec<_> = (0..200_u32)
            .map(|n| {
                let calls = calls.clone();
                tokio::spawn(async move {
                    for len_bytes in [0, 4, 1_000, 70_000] {
                        let body: Vec<u8> = n.to_le_bytes().repeat(len_bytes / 4);
                        assert_eq!(calls.call(&method("echo"), &body).await.unwrap(), body);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(calls.connections() <= 5, "{} connections", calls.connections());
        let told = calls.call(&method("panic"), b"").await.unwrap_err();
        assert!(matches!(told, CallError::Unknown { cause: Cause::Panic, .. }), "{told}");
        let told = calls.call(&method("fail"), b"").await.unwrap_err();
        assert_eq!(told, CallError::Failed { code: 3, message: "no".to_owned() });
        // And threads call tasks, tasks call threads.
        let blocking = caller.service(&service("echo"));
        let reply = tokio::task::spawn_blocking(move || blocking.call(&method("echo"), b"hi"));
        assert_eq!(reply.await.unwrap().unwrap(), "hi");
        tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    }
    until("all grants are closed", || node.grants() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_call_a_server_of_threads_one_call_a_connection() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let server = here
        .serve(&service("threads"))
        .method(&method("echo"), |call| Ok(call.body.clone()))
        .start()
        .unwrap();
    let calls = here.service_async(&service("threads"));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let calls = calls.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    assert_eq!(calls.call(&method("echo"), b"x").await.unwrap(), "x");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!((1..=8).contains(&calls.connections()));
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_call_ends_the_handlers_of_the_whole_chain_without_their_doing() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let inside = Inside::default();
    let mut servers = Vec::new();
    for hop in 0..10 {
        let (next, inside) =
            (here.service_async(&service(&format!("s{}", hop + 1))), inside.clone());
        let server =
            here.serve_async(&service(&format!("s{hop}"))).method(&method("go"), move |_| {
                let (next, inside) = (next.clone(), inside.clone());
                async move {
                    let _stay = inside.enter();
                    if hop == 9 {
                        std::future::pending::<()>().await;
                    }
                    Ok(next.call(&method("go"), b"").await?)
                }
            });
        servers.push(server.start().await.unwrap());
    }
    let first = here.service_async(&service("s0"));
    let root = tokio::spawn(async move { first.call(&method("go"), b"").await });
    until("all ten are inside", || inside.entered() == 10).await;
    let cancelled = Instant::now();
    root.abort();
    until("none is left", || inside.left() == 10).await;
    println!("ten hops were over {:?} after the cancel", cancelled.elapsed());
    tokio::task::spawn_blocking(move || drop(servers)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_calls_give_their_places_back() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let inside = Inside::default();
    let handler_inside = inside.clone();
    let server = here
        .serve_async(&service("s"))
        .slots(100)
        .method(&method("hang"), move |_| {
            let stay = handler_inside.enter();
            async move {
                let _stay = stay;
                std::future::pending::<Result<Bytes, Failure>>().await
            }
        })
        .method(&method("fine"), |_| async { Ok(Bytes::new()) });
    let server = server.start().await.unwrap();
    let calls = here.service_async(&service("s"));
    for round in 1..=20 {
        let hang = |calls: middlecon::AsyncService| async move {
            calls.request(&method("hang")).budget(Duration::from_millis(20)).call(b"").await
        };
        let tasks: Vec<_> = (0..10).map(|_| tokio::spawn(hang(calls.clone()))).collect();
        for (at, task) in tasks.into_iter().enumerate() {
            if at % 2 == 0 {
                tokio::task::yield_now().await;
                task.abort();
                continue;
            }
            let told = task.await.unwrap().unwrap_err();
            assert_eq!(told.cause(), Some(Cause::Deadline), "{told} in round {round}");
        }
    }
    until("all handlers were dropped", || inside.entered() == inside.left()).await;
    calls.call(&method("fine"), b"").await.unwrap();
    assert_eq!(calls.connections(), 1, "one connection is enough for ten at a time");
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_server_sends_its_callers_away_and_finishes_what_it_began() {
    let node = TestNode::start();
    let nodes = [(); 3].map(|()| Node::connect(node.run_dir()).unwrap());
    let go_on = Arc::new(tokio::sync::Notify::new());
    let inside = Inside::default();
    let serve = async |node: &Node, name: &'static str| {
        let (go_on, inside) = (go_on.clone(), inside.clone());
        let builder = node.serve_async(&service("s")).method(&method("slow"), move |_| {
            let (go_on, stay) = (go_on.clone(), inside.enter());
            async move {
                let _stay = stay;
                go_on.notified().await;
                Ok(name.into())
            }
        });
        let builder = builder.method(&method("who"), move |_| async move { Ok(name.into()) });
        builder.start().await.unwrap()
    };
    let first = serve(&nodes[0], "first").await;
    let s = nodes[2].service_async(&service("s"));
    let slow = tokio::spawn({
        let s = s.clone();
        async move { s.call(&method("slow"), b"").await }
    });
    until("it is inside", || inside.entered() == 1).await;
    let second = serve(&nodes[1], "second").await;
    let drained = tokio::task::spawn_blocking(move || first.drain(Duration::from_secs(10)));
    // Its connection is still there, with a call on it, but no new call is made there: also the number of
    // free places says so, without any call that was told DRAINING.
    until("no connection is left for new calls", || s.connections() == 0).await;
    assert_eq!(s.call(&method("who"), b"").await.unwrap(), "second");
    assert_eq!(inside.left(), 0);
    go_on.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), "first");
    assert!(drained.await.unwrap());
    tokio::task::spawn_blocking(move || drop(second)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_whose_budget_is_spent_is_dropped_and_calls_inherit_what_is_left() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let inside = Inside::default();
    let handler_inside = inside.clone();
    let inner = here.service_async(&service("b"));
    let b = here
        .serve_async(&service("b"))
        .method(&method("tell"), |call| async move {
            let context = Context::current().ok_or_else(|| Failure::new(1, "no context"))?;
            assert_eq!(context.trace(), call.context.trace());
            Ok(format!("{} {:?}", context.trace(), context.left() < Duration::from_secs(5)).into())
        })
        .start()
        .await
        .unwrap();
    let a = here
        .serve_async(&service("a"))
        .method(&method("pass"), move |_| {
            let inner = inner.clone();
            async move {
                // Also after the task has slept, perhaps on another thread.
                tokio::time::sleep(Duration::from_millis(2)).await;
                Ok(inner.call(&method("tell"), b"").await?)
            }
        })
        .method(&method("hang"), move |_| {
            let stay = handler_inside.enter();
            async move {
                let _stay = stay;
                std::future::pending::<Result<Bytes, Failure>>().await
            }
        })
        .start()
        .await
        .unwrap();
    let calls = here.service_async(&service("a"));
    let context = Context::root(Duration::from_secs(5));
    let told = context.run(calls.call(&method("pass"), b"")).await.unwrap();
    assert_eq!(told, format!("{} true", context.trace()));
    let began = Instant::now();
    let budget = Duration::from_millis(30);
    let told = calls.request(&method("hang")).budget(budget).call(b"").await.unwrap_err();
    assert!(matches!(told, CallError::Unknown { cause: Cause::Deadline, .. }), "{told}");
    println!("a deadline of {budget:?} was told after {:?}", began.elapsed());
    until("its handler was dropped", || inside.left() == 1).await;
    tokio::task::spawn_blocking(move || drop((a, b))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_has_one_outcome_for_each_and_cancels_who_is_not_needed() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let inside = Inside::default();
    let handler_inside = inside.clone();
    let server = here
        .serve_async(&service("s"))
        .method(&method("fine"), |call| async move { Ok(call.body) })
        .method(&method("fail"), |_| async { Err(Failure::new(1, "no")) })
        .method(&method("hang"), move |_| {
            let stay = handler_inside.enter();
            async move {
                let _stay = stay;
                std::future::pending::<Result<Bytes, Failure>>().await
            }
        })
        .start()
        .await
        .unwrap();
    let s = here.service_async(&service("s"));
    let member = |name: &str, body: &'static str| Member {
        service: s.clone(),
        method: method(name),
        body: body.into(),
    };
    let all = vec![member("fine", "1"), member("fail", "2"), member("fine", "3")];
    let outcomes = gather(all, None, Enough::All).await.unwrap();
    assert_eq!(outcomes[0].as_deref(), Ok(&b"1"[..]));
    assert!(matches!(outcomes[1], Err(CallError::Failed { code: 1, .. })));
    assert_eq!(outcomes[2].as_deref(), Ok(&b"3"[..]));
    for enough in [Enough::First, Enough::Quorum(1)] {
        let some = vec![member("hang", ""), member("fine", "x"), member("hang", "")];
        let outcomes = gather(some, None, enough).await.unwrap();
        assert_eq!(outcomes[1].as_deref(), Ok(&b"x"[..]));
        for at in [0, 2] {
            assert_eq!(outcomes[at].as_ref().unwrap_err().cause(), Some(Cause::Cancelled));
        }
    }
    until("those that were not needed are over", || inside.entered() == inside.left()).await;
    let many = vec![member("fine", ""); 1_025];
    let told = gather(many, None, Enough::All).await.unwrap_err();
    assert_eq!(told.cause(), Some(Cause::TooLarge));
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulses_never_wait_and_the_last_one_arrives() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let last = Arc::new(AtomicUsize::new(0));
    let seen = last.clone();
    let server = here
        .serve_async(&service("gauge"))
        .method(&method("level"), move |call| {
            let seen = seen.clone();
            async move {
                let level: usize = String::from_utf8_lossy(&call.body).parse().unwrap_or(0);
                // Slower than they come.
                tokio::time::sleep(Duration::from_millis(2)).await;
                seen.store(level, Ordering::SeqCst);
                Ok(Bytes::new())
            }
        })
        .start()
        .await
        .unwrap();
    let gauge = here.service_async(&service("gauge"));
    // More than a connection has places for calls: some at once, some as fast as each can leave.
    for level in 1..=1_000 {
        gauge.pulse(&method("level"), level.to_string().into());
        if level % 3 == 0 {
            gauge.pulses_sent().await;
        }
    }
    let began = Instant::now();
    while last.load(Ordering::SeqCst) != 1_000 {
        assert!(began.elapsed() < Duration::from_secs(10), "the last level is not known in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (_, dropped) = gauge.pulses_lost();
    assert_eq!(dropped, 0, "one method never takes more than one place");
    // To nobody: nothing happens, and nothing waits.
    here.service_async(&service("nobody")).pulse(&method("level"), "1".into());
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_service_is_told_and_again_by_a_new_node() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let server = here
        .serve_async(&service("s"))
        .method(&method("m"), |_| async { Ok(Bytes::new()) })
        .start()
        .await
        .unwrap();
    let mut watch = here.watch(&service("s"));
    assert_eq!(watch.changed().await.unwrap().ready, 1);
    let node = tokio::task::spawn_blocking(move || node.restart()).await.unwrap();
    assert_eq!(watch.changed().await.unwrap().ready, 1);
    assert_eq!(watch.state().unwrap().ready, 1);
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    drop(node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_for_which_there_was_no_room_leave_no_place_taken() {
    let node = TestNode::start();
    let (callee, caller) =
        (Node::connect(node.run_dir()).unwrap(), Node::connect(node.run_dir()).unwrap());
    let (began, has_begun) = std::sync::mpsc::channel();
    let (go_on, until) = std::sync::mpsc::channel::<()>();
    let until = Arc::new(std::sync::Mutex::new(until));
    // Its only thread is at work, so nothing is read.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ran = Inside::default();
    let counted = ran.clone();
    let server = callee
        .serve_async(&service("s"))
        .slots(256)
        .method(&method("block"), move |_| {
            let (began, until) = (began.clone(), until.clone());
            async move {
                began.send(()).unwrap();
                until.lock().unwrap().recv().ok();
                Ok(Bytes::new())
            }
        })
        .method(&method("take"), move |_| {
            counted.enter();
            async { Ok(Bytes::new()) }
        });
    let server = runtime.spawn(server.start()).await.unwrap().unwrap();
    let calls = caller.service_async(&service("s"));
    let blocks = tokio::spawn({
        let calls = calls.clone();
        async move { calls.call(&method("block"), b"").await }
    });
    tokio::task::spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
    // Of these hundred a few fit into the ring; more than there are places do not.
    let body = vec![7; 60_000];
    for _ in 0..5 {
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (calls, body) = (calls.clone(), body.clone());
                let budget = Duration::from_millis(30);
                tokio::spawn(async move {
                    calls.request(&method("take")).budget(budget).call(&body).await
                })
            })
            .collect();
        for task in tasks {
            match task.await.unwrap() {
                Err(CallError::NotExecuted { cause: Cause::Deadline, .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(calls.connections(), 1, "the connection is as good as it was");
    go_on.send(()).unwrap();
    blocks.await.unwrap().unwrap();
    let tasks: Vec<_> = (0..40)
        .map(|_| {
            let calls = calls.clone();
            tokio::spawn(async move { calls.call(&method("take"), b"").await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(
        (ran.entered(), calls.connections()),
        (40, 1),
        "none of those that were given up ran"
    );
    tokio::task::spawn_blocking(move || {
        drop(server);
        drop(runtime);
    })
    .await
    .unwrap();
}
