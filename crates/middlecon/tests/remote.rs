//! Calls across hosts: TLS between the programs, and streams that nodes splice.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{CALLS_IN_FLIGHT_MAX, Cause, Method, Peer, ServiceName};
use kumo_abi::control::{Carrier, Certificate};
use middlecon::{CallError, Node, Secure, Server, Setup};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use support::secure::{One, connect};
use support::{Program, TestNode, tell};

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

fn serve(node: &Node) -> Server {
    node.serve(&service("echo"))
        .method(&method("echo"), |call| Ok(call.body.clone()))
        .start()
        .unwrap()
}

/// Not a test by itself: what this binary does where another test runs it again.
#[test]
fn role() {
    let Ok(role) = std::env::var("MIDDLECON_ROLE") else { return };
    assert_eq!(role, "callee");
    let dir = PathBuf::from(std::env::var("MIDDLECON_DIR").unwrap());
    let node = Node::connect(&dir).unwrap();
    node.secure_with(Arc::new(One::read(&dir)));
    let server = node
        .serve(&service("callee"))
        .slots(1)
        .credit(0)
        .method(&method("fine"), |_| Ok(Bytes::new()))
        .method(&method("hang"), |_| {
            tell("hangs");
            std::thread::sleep(Duration::from_secs(60));
            Ok(Bytes::new())
        })
        .start()
        .unwrap();
    tell("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    drop(server);
}

#[test]
fn threads_call_threads_with_bodies_of_all_sizes() {
    for carrier in [Carrier::Tls, Carrier::Spliced] {
        let (node, secure) = (TestNode::start_with(carrier), Arc::new(One::new()));
        let _server = serve(&connect(&node, &secure));
        let caller = connect(&node, &secure);
        let echo = caller.service(&service("echo"));
        for len_bytes in [0, 1, 1_000, 65_536, 65_537, 3_000_000] {
            let body: Vec<u8> = (0..len_bytes).map(|n| (n / 3) as u8).collect();
            assert_eq!(echo.call(&method("echo"), &body).unwrap(), body, "{carrier:?}");
        }
        assert_eq!(echo.idle(), 1);
        let told = echo.call(&method("missing"), b"").unwrap_err();
        assert_eq!(told.cause(), Some(Cause::NoSuch));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_call_tasks_with_bodies_of_all_sizes_at_once() {
    for carrier in [Carrier::Tls, Carrier::Spliced] {
        let (node, secure) = (TestNode::start_with(carrier), Arc::new(One::new()));
        let callee = connect(&node, &secure);
        let server = callee
            .serve_async(&service("echo"))
            .method(&method("echo"), |call| async move { Ok(call.body) })
            .start()
            .await
            .unwrap();
        let echo = connect(&node, &secure).service_async(&service("echo"));
        let tasks: Vec<_> = (0..24_u32)
            .map(|n| {
                let echo = echo.clone();
                tokio::spawn(async move {
                    for len_bytes in [0, 8, 65_536, 700_000] {
                        let body: Vec<u8> = n.to_le_bytes().repeat(len_bytes / 4);
                        assert_eq!(echo.call(&method("echo"), &body).await.unwrap(), body);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(echo.connections(), 1);
        tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_cut_off_leaves_neither_memory_nor_a_place_behind() {
    /// More than a connection has places, and so much that as many halves would be more than may arrive.
    const CUT: u32 = CALLS_IN_FLIGHT_MAX as u32 + 1;
    let body = vec![7; 64 << 20];
    for carrier in [Carrier::Tls, Carrier::Spliced] {
        let (node, secure) = (TestNode::start_with(carrier), Arc::new(One::new()));
        let sessions = Arc::new(AtomicU32::new(0));
        let count = sessions.clone();
        let server = connect(&node, &secure)
            .serve_async(&service("echo"))
            .session(move |_| count.fetch_add(1, Ordering::Relaxed))
            .method(&method("len"), |call| async move { Ok(call.body.len().to_string().into()) })
            .start()
            .await
            .unwrap();
        let echo = connect(&node, &secure).service_async(&service("echo"));
        let len = method("len");
        assert_eq!(echo.call(&len, b"12").await.unwrap(), "2");
        for nth in 0..CUT {
            let cut = Duration::from_millis(2);
            if nth % 2 == 0 {
                let told = echo.request(&len).budget(cut).call(&body).await.unwrap_err();
                assert_eq!(told.cause(), Some(Cause::Deadline), "{carrier:?}");
            } else {
                // Dropped, it is cancelled.
                assert!(tokio::time::timeout(cut, echo.call(&len, &body)).await.is_err());
            }
        }
        assert_eq!(echo.call(&len, &body).await.unwrap(), body.len().to_string());
        assert_eq!((echo.connections(), sessions.load(Ordering::Relaxed)), (1, 1));
        tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_come_whole_and_in_order_beside_other_calls_and_a_slow_reader_holds_up_only_its_own()
 {
    for carrier in [Carrier::Tls, Carrier::Spliced] {
        let (node, secure) = (TestNode::start_with(carrier), Arc::new(One::new()));
        let server = connect(&node, &secure)
            .serve_async(&service("echo"))
            .method(&method("echo"), |call| async move { Ok(call.body) })
            .stream(&method("count"), |call, mut out| async move {
                let to: u32 = std::str::from_utf8(&call.body).unwrap().parse().unwrap();
                for n in 0..to {
                    out.send(n.to_le_bytes().repeat(5_000)).await?;
                }
                Ok(())
            })
            .start()
            .await
            .unwrap();
        let echo = connect(&node, &secure).service_async(&service("echo"));
        let count = method("count");
        let mut slow = echo.request(&count).stream(b"100").await.unwrap();
        let mut quick = echo.request(&count).stream(b"200").await.unwrap();
        for n in 0..200_u32 {
            let piece = quick.next().await.unwrap().unwrap();
            assert_eq!(piece, n.to_le_bytes().repeat(5_000), "{carrier:?}");
            if n % 50 == 0 {
                let body = vec![n as u8; 100_000];
                assert_eq!(echo.call(&method("echo"), &body).await.unwrap(), body);
            }
        }
        assert!(quick.next().await.is_none());
        for n in 0..100_u32 {
            assert_eq!(slow.next().await.unwrap().unwrap(), n.to_le_bytes().repeat(5_000));
        }
        assert!(slow.next().await.is_none());
        assert_eq!(echo.connections(), 1);
        // Dropped before its end, its place is free again, and the connection is of use.
        let mut dropped = echo.request(&count).stream(b"1000000").await.unwrap();
        assert!(dropped.next().await.unwrap().is_ok());
        drop(dropped);
        assert_eq!(echo.call(&method("echo"), b"x").await.unwrap(), "x");
        tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    }
}

#[test]
fn who_is_not_believed_executes_nothing_and_is_told_why() {
    let node = TestNode::start_with(Carrier::Tls);
    let _server = serve(&connect(&node, &Arc::new(One::new())));
    let denied = |told: CallError, why: &str| {
        let CallError::NotExecuted { cause: Cause::Denied, message, .. } = &told else {
            panic!("{told}")
        };
        assert!(message.contains(why), "{message}");
    };
    let call =
        |node: &Node| node.service(&service("echo")).call(&method("echo"), b"x").unwrap_err();
    // It does not believe its callee.
    denied(call(&connect(&node, &Arc::new(One::new()))), "does not believe");
    let bare = Node::connect(node.run_dir()).unwrap();
    denied(call(&bare), "`Secure`");
    bare.secure_with(Arc::new(Unusable));
    denied(call(&bare), "the key is of another certificate");
}

#[test]
fn a_callee_that_does_not_believe_its_caller_says_so_also_after_the_handshake() {
    let node = TestNode::start_with(Carrier::Tls);
    let own = Arc::new(One::new());
    let _server = serve(&connect(&node, &own));
    // In TLS 1.3 the caller is done with the handshake, and has sent its call, before it is judged.
    let believes = Node::connect(node.run_dir()).unwrap();
    believes.secure_with(Arc::new(Shows { own: One::new(), believes: own }));
    for _ in 0..20 {
        let told = believes.service(&service("echo")).call(&method("echo"), b"x").unwrap_err();
        let CallError::NotExecuted { message, .. } = &told else { panic!("{told}") };
        // Where its end overtook its words, its node's word is there.
        let why = "does not believe this program";
        assert!(told.cause() != Some(Cause::Denied) || message.contains(why), "{message}");
    }
}

/// Cannot be used.
struct Unusable;

impl Secure for Unusable {
    fn client(
        &self,
        _: &Certificate,
        _: &ServiceName,
        _: &Peer,
    ) -> Result<(Setup<ClientConfig>, ServerName<'static>), rustls::Error> {
        Err(rustls::Error::General("the key is of another certificate".to_owned()))
    }

    fn server(&self, _: &Certificate, _: &Peer) -> Result<Setup<ServerConfig>, rustls::Error> {
        Err(rustls::Error::General("the key is of another certificate".to_owned()))
    }
}

/// Shows one certificate, and believes another.
struct Shows {
    own: One,
    believes: Arc<One>,
}

impl Secure for Shows {
    fn client(
        &self,
        _: &Certificate,
        _: &ServiceName,
        _: &Peer,
    ) -> Result<(Setup<ClientConfig>, ServerName<'static>), rustls::Error> {
        let (chain, key) = self.own.pair();
        let config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(self.believes.roots())
            .with_client_auth_cert(chain, key)?;
        Ok((Setup::plain(config), ServerName::try_from("program").unwrap()))
    }

    fn server(&self, _: &Certificate, _: &Peer) -> Result<Setup<ServerConfig>, rustls::Error> {
        Err(rustls::Error::General("it only calls".to_owned()))
    }
}

#[test]
fn a_callee_dies_and_its_node_tells_what_it_had_taken() {
    let (node, secure) = (TestNode::start_with(Carrier::Tls), Arc::new(One::new()));
    secure.write(node.run_dir());
    let caller = connect(&node, &secure);
    for _ in 0..5 {
        let mut callee = Program::spawn("callee", &node);
        let calls = caller.service(&service("callee"));
        calls.call(&method("fine"), b"").unwrap();
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| calls.call(&method("hang"), b""));
            assert_eq!(callee.line(), "hangs");
            callee.kill();
            let told = taken.join().unwrap().unwrap_err();
            assert!(matches!(told, CallError::Unknown { cause: Cause::Died, .. }), "{told}");
        });
        // One that stands still takes nothing, and its node can tell.
        let mut callee = Program::spawn("callee", &node);
        let calls = caller.service(&service("callee"));
        calls.call(&method("fine"), b"").unwrap();
        callee.signal(19);
        support::until("it stands still", || support::state(callee.pid()) == Some('T'));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| calls.call(&method("hang"), b""));
            std::thread::sleep(Duration::from_millis(20));
            callee.kill();
            let told = waits.join().unwrap().unwrap_err();
            assert!(matches!(told, CallError::NotExecuted { .. }), "{told}");
        });
    }
}
