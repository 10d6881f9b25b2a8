//! Calls within one process and between processes, while all is well.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{Cause, Method, Reentrancy, ServiceName, Who};
use middlecon::{CallError, Context, Failure, Node};
use support::TestNode;

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

#[test]
fn a_call_is_answered_with_and_without_rings() {
    let node = TestNode::start();
    for ring in [false, true] {
        let callee = Node::connect(node.run_dir()).unwrap();
        let server = callee
            .serve(&service("echo"))
            .ring(ring)
            .method(&method("echo"), |call| Ok(call.body.clone()))
            .method(&method("fail"), |_| Err(Failure::new(7, "no")))
            .method(&method("who"), |call| Ok(call.peer.to_string().into()))
            .start()
            .unwrap();
        let caller = Node::connect(node.run_dir()).unwrap();
        assert_eq!(caller.welcome().unwrap().who, Who::User(0));
        let echo = caller.service(&service("echo"));
        // Around a ring many times, and beyond one frame: through a slot, which grows, or sealed.
        let around = [0, 1, 7, 8, 1_000, 65_535, 65_536, 65_537];
        for len_bytes in around.into_iter().chain([300_001, 131_072, 4 << 20, (4 << 20) + 1]) {
            for _ in 0..8 {
                let body: Vec<u8> = (0..len_bytes).map(|n| n as u8).collect();
                assert_eq!(echo.call(&method("echo"), &body).unwrap(), body);
            }
        }
        assert_eq!(echo.idle(), 1, "one connection served them all");
        let failed = echo.call(&method("fail"), b"").unwrap_err();
        assert_eq!(failed, CallError::Failed { code: 7, message: "no".to_owned() });
        assert_eq!(echo.call(&method("who"), b"").unwrap(), "user 0 on dc/host");
        let missing = echo.call(&method("missing"), b"").unwrap_err();
        assert_eq!(missing.to_string(), "not executed: NO_SUCH (echo has no method `missing`)");
        assert_eq!(echo.idle(), 1, "errors of the callee cost no connection");
        drop(server);
        let gone = echo.call(&method("echo"), b"").unwrap_err();
        assert!(matches!(gone, CallError::NotExecuted { cause: Cause::NoSuch, .. }), "{gone}");
    }
    support::until("all grants are closed", || node.grants() == 0);
}

#[test]
fn a_connection_is_used_only_by_whom_it_was_granted_to() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let _inner =
        here.serve(&service("inner")).any(|call| Ok(call.peer.to_string().into())).start().unwrap();
    // The handler and who calls at the root share the service, and so its connections.
    let inner = here.service(&service("inner"));
    let shared = inner.clone();
    let _outer = here
        .serve(&service("outer"))
        .any(move |_| Ok(shared.call(&method("who"), b"")?))
        .start()
        .unwrap();
    let outer = here.service(&service("outer"));
    for _ in 0..2 {
        assert_eq!(outer.call(&method("who"), b"").unwrap(), "outer on dc/host");
        assert_eq!(inner.call(&method("who"), b"").unwrap(), "user 0 on dc/host");
    }
    assert_eq!(inner.idle(), 2, "one for each");
}

#[test]
fn a_budget_at_the_root_may_be_longer_than_the_default() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let left =
        |call: &mut middlecon::Call<'_>| Ok(call.context.left().as_secs().to_string().into());
    let _server = here.serve(&service("s")).any(left).start().unwrap();
    let request = here.service(&service("s"));
    let told = request.request(&method("m")).budget(Duration::from_secs(300)).call(b"").unwrap();
    let seconds: u64 = String::from_utf8(told.to_vec()).unwrap().parse().unwrap();
    assert!((200..=300).contains(&seconds), "{seconds}");
}

#[test]
fn a_panic_is_told_and_the_server_lives_on() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let _server = here
        .serve(&service("s"))
        .method(&method("panic"), |_| panic!("on purpose"))
        .method(&method("fine"), |_| Ok(Bytes::new()))
        .start()
        .unwrap();
    let s = here.service(&service("s"));
    let told = s.call(&method("panic"), b"").unwrap_err();
    let message = "on purpose".to_owned();
    assert_eq!(told, CallError::Unknown { cause: Cause::Panic, message });
    s.call(&method("fine"), b"").unwrap();
    assert_eq!(s.idle(), 1);
}

#[test]
fn a_session_lives_as_long_as_its_connection() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let _server = here
        .serve(&service("count"))
        .session(|_| 0_u32)
        .method(&method("next"), |call| {
            let count = call.session::<u32>().ok_or_else(|| Failure::new(1, "no session"))?;
            *count += 1;
            Ok(count.to_string().into())
        })
        .start()
        .unwrap();
    let count = here.service(&service("count"));
    for want in ["1", "2", "3"] {
        assert_eq!(count.call(&method("next"), b"").unwrap(), want);
    }
    let other = here.service(&service("count"));
    assert_eq!(other.call(&method("next"), b"").unwrap(), "1");
}

#[test]
fn nested_calls_inherit_the_budget_the_trace_and_the_hop() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let inner = here.clone();
    let _b = here
        .serve(&service("b"))
        .method(&method("tell"), |call| {
            let left = call.context.left() <= Duration::from_secs(5);
            Ok(format!("{} {left} {:?}", call.context.trace(), call.context).into())
        })
        .start()
        .unwrap();
    let _a = here
        .serve(&service("a"))
        .method(&method("pass"), move |_| {
            Ok(inner.service(&service("b")).call(&method("tell"), b"")?)
        })
        .start()
        .unwrap();
    let context = Context::root(Duration::from_secs(5));
    let told = context.enter(|| here.service(&service("a")).call(&method("pass"), b"")).unwrap();
    let told = String::from_utf8(told.to_vec()).unwrap();
    assert!(told.starts_with(&format!("{} true", context.trace())), "{told}");
    assert!(told.ends_with("hop: 2 }"), "{told}");
}

#[test]
fn a_circle_is_told_with_its_path_in_one_hop() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let ring = ["a", "b", "c"];
    let errors = Arc::new(std::sync::Mutex::new(Vec::new()));
    let servers: Vec<_> = (0..3)
        .map(|at| {
            let (node, next, errors) = (here.clone(), service(ring[(at + 1) % 3]), errors.clone());
            here.serve(&service(ring[at]))
                .slots(1)
                .method(&method("go"), move |_| {
                    node.service(&next).call(&method("go"), b"").map_err(|error| {
                        errors.lock().unwrap().push(error.clone());
                        error.into()
                    })
                })
                .start()
                .unwrap()
        })
        .collect();
    let error = here.service(&service("a")).call(&method("go"), b"").unwrap_err();
    assert!(matches!(error, CallError::Failed { .. }), "{error}");
    let errors = errors.lock().unwrap();
    let CallError::NotExecuted { cause: Cause::Cycle, path, .. } = &errors[0] else {
        panic!("{errors:?}")
    };
    let path: Vec<&str> = path.iter().map(|hop| hop.service.as_str()).collect();
    assert_eq!(path, ["a", "b", "c", "a"]);
    drop(servers);
}

#[test]
fn who_allows_reentrance_is_entered_again_until_the_chain_is_too_deep() {
    for (reentrancy, slots) in [(Reentrancy::Reenter, 1), (Reentrancy::Allow, 4)] {
        let node = TestNode::start();
        let here = Node::connect(node.run_dir()).unwrap();
        let (inner, runs) = (here.clone(), Arc::new(AtomicUsize::new(0)));
        let counted = runs.clone();
        let _server = here
            .serve(&service("self"))
            .slots(slots)
            .reentrancy(reentrancy)
            .method(&method("go"), move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
                match inner.service(&service("self")).call(&method("go"), b"") {
                    Err(CallError::NotExecuted { cause: Cause::Depth, .. }) => Ok("deep".into()),
                    other => Ok(other?),
                }
            })
            .start()
            .unwrap();
        let reply = here.service(&service("self")).call(&method("go"), b"").unwrap();
        assert_eq!((reply.as_ref(), runs.load(Ordering::SeqCst)), (&b"deep"[..], 16));
    }
}

#[test]
fn pools_that_call_each_other_complete() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let servers: Vec<_> = [("a", "b"), ("b", "a")]
        .map(|(own, other)| {
            let (node, other) = (here.clone(), service(other));
            here.serve(&service(own))
                .slots(4)
                .method(&method("leaf"), |_| Ok(Bytes::new()))
                .method(&method("pass"), move |_| {
                    Ok(node.service(&other).call(&method("leaf"), b"")?)
                })
                .start()
                .unwrap()
        })
        .into();
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for at in 0..8 {
            let (here, barrier) = (&here, &barrier);
            scope.spawn(move || {
                let own = here.service(&service(if at % 2 == 0 { "a" } else { "b" }));
                barrier.wait();
                for _ in 0..50 {
                    own.request(&method("pass")).budget(Duration::from_secs(10)).call(b"").unwrap();
                }
            });
        }
    });
    drop(servers);
}

#[test]
fn above_slots_and_credit_a_call_is_busy_at_once_and_not_executed() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let (open, ran) = (Arc::new(Barrier::new(3)), Arc::new(AtomicUsize::new(0)));
    let (handler_open, counted) = (open.clone(), ran.clone());
    let _server = here
        .serve(&service("s"))
        .slots(1)
        .credit(0)
        .method(&method("wait"), move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            handler_open.wait();
            Ok(Bytes::new())
        })
        .start()
        .unwrap();
    let s = here.service(&service("s"));
    std::thread::scope(|scope| {
        // One in the slot, one in that of the first hop.
        let calls = [(); 2].map(|()| scope.spawn(|| s.call(&method("wait"), b"")));
        support::until("both run", || ran.load(Ordering::SeqCst) == 2);
        let busy = s.call(&method("wait"), b"").unwrap_err();
        let CallError::NotExecuted { cause: Cause::Busy, retry_after_ms: Some(_), .. } = busy
        else {
            panic!("{busy}")
        };
        open.wait();
        for call in calls {
            call.join().unwrap().unwrap();
        }
    });
    assert_eq!(ran.load(Ordering::SeqCst), 2);
}

#[test]
fn a_drained_server_finishes_what_it_began_if_it_has_the_time() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let (began, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (handler_began, handler_go_on) = (began.clone(), go_on.clone());
    let server = here
        .serve(&service("s"))
        .method(&method("slow"), move |_| {
            handler_began.wait();
            handler_go_on.wait();
            Ok("done".into())
        })
        .start()
        .unwrap();
    let s = here.service(&service("s"));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| s.call(&method("slow"), b""));
        began.wait();
        let drained = scope.spawn(|| server.drain(Duration::from_secs(10)));
        go_on.wait();
        assert_eq!(slow.join().unwrap().unwrap(), "done");
        assert!(drained.join().unwrap());
    });
}

#[test]
fn callers_of_a_drained_server_go_to_another_with_their_next_call() {
    let node = TestNode::start();
    for ring in [true, false] {
        let nodes = [(); 3].map(|()| Node::connect(node.run_dir()).unwrap());
        let serve = |node: &Node, inside: &Arc<Barrier>| {
            let inside = inside.clone();
            let builder = node.serve(&service("s")).ring(ring).method(&method("meet"), move |_| {
                inside.wait();
                Ok(Bytes::new())
            });
            builder.method(&method("fine"), |_| Ok(Bytes::new())).start().unwrap()
        };
        // More idle connections than attempts are made.
        let inside = Arc::new(Barrier::new(8));
        let first = serve(&nodes[0], &inside);
        let s = nodes[2].service(&service("s"));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| s.call(&method("meet"), b"").unwrap());
            }
        });
        assert_eq!(s.idle(), 8);
        let second = serve(&nodes[1], &inside);
        assert!(first.drain(Duration::from_secs(10)));
        s.call(&method("fine"), b"").unwrap();
        assert_eq!(s.idle(), 1, "those that were sent away are closed");
        drop((first, second));
    }
}

#[test]
fn who_gives_up_waiting_for_a_slot_leaves_the_queue_at_once() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let (inside, ran) = (Arc::new(Barrier::new(3)), Arc::new(AtomicUsize::new(0)));
    let (handler_inside, counted) = (inside.clone(), ran.clone());
    let _server = here
        .serve(&service("s"))
        .slots(1)
        .credit(1)
        .method(&method("wait"), move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            handler_inside.wait();
            Ok(Bytes::new())
        })
        .start()
        .unwrap();
    let s = here.service(&service("s"));
    let budget = Duration::from_millis(20);
    let is_full = || {
        let told = s.request(&method("wait")).budget(budget).call(b"").unwrap_err();
        assert!(matches!(told, CallError::NotExecuted { .. }), "{told}");
        told.cause() == Some(Cause::Busy)
    };
    std::thread::scope(|scope| {
        let calls = [(); 2].map(|()| scope.spawn(|| s.call(&method("wait"), b"")));
        support::until("both run", || ran.load(Ordering::SeqCst) == 2);
        let (reader, writer) = std::io::pipe().unwrap();
        let context = Context::root(Duration::from_secs(60)).given_up_with(reader.into());
        let s = &s;
        // Those that look whether the place is taken may have it for a moment.
        let waits = scope.spawn(move || {
            loop {
                match context.enter(|| s.call(&method("wait"), b"")) {
                    Err(CallError::NotExecuted { cause: Cause::Busy, .. }) => {}
                    told => return told,
                }
            }
        });
        support::until("the only place in the queue is taken", is_full);
        drop(writer);
        let told = waits.join().unwrap().unwrap_err();
        assert!(matches!(told, CallError::NotExecuted { cause: Cause::Cancelled, .. }), "{told}");
        support::until("the place is free, long before its budget is spent", || !is_full());
        inside.wait();
        for call in calls {
            call.join().unwrap().unwrap();
        }
    });
    assert_eq!(ran.load(Ordering::SeqCst), 2);
}

#[test]
fn a_server_without_time_to_drain_ends_its_calls() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let (began, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (handler_began, handler_go_on) = (began.clone(), go_on.clone());
    let server = here
        .serve(&service("s"))
        .method(&method("slow"), move |_| {
            handler_began.wait();
            handler_go_on.wait();
            Ok("done".into())
        })
        .start()
        .unwrap();
    let s = here.service(&service("s"));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| s.call(&method("slow"), b""));
        began.wait();
        assert!(!server.drain(Duration::ZERO), "one is not over");
        // Its connection was ended, and its caller is told at once that nobody knows.
        let outcome = slow.join().unwrap();
        assert!(matches!(outcome, Err(CallError::Unknown { .. })), "{outcome:?}");
        go_on.wait();
    });
    let refused = s.call(&method("slow"), b"").unwrap_err();
    assert!(matches!(refused, CallError::NotExecuted { .. }), "{refused}");
}

#[test]
fn calls_go_on_while_the_node_starts_anew_and_it_learns_all_again() {
    let node = TestNode::start();
    let callee = Node::connect(node.run_dir()).unwrap();
    let _server = callee
        .serve(&service("echo"))
        .method(&method("echo"), |call| Ok(call.body.clone()))
        .start()
        .unwrap();
    let caller = Node::connect(node.run_dir()).unwrap();
    let echo = caller.service(&service("echo"));
    echo.call(&method("echo"), b"1").unwrap();
    let node = node.restart();
    echo.call(&method("echo"), b"2").unwrap();
    support::until("it knows the connection again", || node.grants() == 1);
    // And a new one is granted to a server that it was told of.
    let other = caller.service(&service("echo"));
    support::until("new callers find it", || other.call(&method("echo"), b"3").is_ok());
    assert_eq!((echo.idle(), other.idle()), (1, 1));
}

#[test]
fn without_a_node_nothing_is_executed() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    drop(node);
    let nobody = here.service(&service("s"));
    support::until("its end is seen", || {
        let error = nobody.request(&method("m")).budget(Duration::from_secs(1)).call(b"");
        matches!(error, Err(CallError::NotExecuted { cause: Cause::NoNode, .. }))
    });
    let dir = tempfile::tempdir().unwrap();
    let error = Node::connect(dir.path()).err().unwrap();
    assert!(error.to_string().starts_with("no node answers at"), "{error}");
}
