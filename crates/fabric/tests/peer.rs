//! Hosts that ask each other over peer links, and open data connections: real sockets on loopback, in one
//! process.

mod link_support;

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::cluster::Role;
use kumo_abi::{DcName, HostId};
use kumo_fabric::Answering;
use kumo_fabric::identity::Identity;
use kumo_fabric::link::How;
use kumo_fabric::peer::{
    Book, HostLife, PAYLOAD_BYTES_MAX, PeerAnswerer, PeerEvent, PeerLinks, RequestError, Ticket,
};
use kumo_fabric::pki::{Authority, Peer};
use link_support::{authority, connect_from, identity, identity_at, now_ms, soon, stranger, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

/// Longer than anything takes here.
const WAIT: Duration = Duration::from_secs(20);

fn id(text: &str) -> HostId {
    text.parse().expect("a host")
}

/// What all hosts of a test know of each other.
#[derive(Default)]
struct Map {
    addresses: Mutex<HashMap<HostId, Vec<String>>>,
    gateways: Mutex<Vec<HostId>>,
}

impl Map {
    fn place(&self, host: &str, address: SocketAddr) {
        self.addresses
            .lock()
            .expect("no test panicked")
            .insert(id(host), vec![address.to_string()]);
    }
}

impl Book for Map {
    fn call_addresses(&self, host: &HostId) -> Vec<String> {
        self.addresses.lock().expect("no test panicked").get(host).cloned().unwrap_or_default()
    }

    fn gateways(&self, dc: &DcName) -> Vec<HostId> {
        let gateways = self.gateways.lock().expect("no test panicked");
        gateways.iter().filter(|gateway| gateway.dc == *dc).cloned().collect()
    }
}

/// Answers with who asked and what; hangs or refuses when it is asked to.
struct Parrot(mpsc::UnboundedSender<(HostId, Bytes)>);

impl PeerAnswerer for Parrot {
    fn answer(&self, from: HostId, request: Bytes) -> Answering {
        Box::pin(async move {
            match &request[..] {
                b"hang" => std::future::pending().await,
                b"refuse" => Err("it does not want to".to_owned()),
                b"huge" => Ok(vec![0; PAYLOAD_BYTES_MAX + 1].into()),
                _ => Ok([from.to_string().as_bytes(), b" said ", &request].concat().into()),
            }
        })
    }

    fn note(&self, from: HostId, note: Bytes) {
        self.0.send((from, note)).expect("the test listens");
    }
}

struct Node {
    links: PeerLinks,
    identity: Identity,
    notes: mpsc::UnboundedReceiver<(HostId, Bytes)>,
    events: broadcast::Receiver<PeerEvent>,
}

impl Node {
    async fn with(map: &Arc<Map>, identity: Identity) -> Node {
        let links = PeerLinks::open(Arc::new(identity.clone()), Arc::clone(map) as _).await;
        let links = links.expect("links");
        let (said, notes) = mpsc::unbounded_channel();
        links.answer_by(Arc::new(Parrot(said)));
        Node { events: links.events(), links, identity, notes }
    }

    /// One that others can dial.
    async fn open(world: &World, name: &str, role: Role) -> Node {
        let mut identity = identity(&world.authority, name, role);
        identity.call_listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let node = Node::with(&world.map, identity).await;
        until("the call port", || node.links.local_addr().is_some()).await;
        world.map.place(name, node.address());
        if role == Role::Gateway {
            world.map.gateways.lock().expect("no test panicked").push(id(name));
        }
        node
    }

    /// One that nobody can dial.
    async fn hidden(world: &World, name: &str) -> Node {
        Node::with(&world.map, identity(&world.authority, name, Role::Member)).await
    }

    fn address(&self) -> SocketAddr {
        self.links.local_addr().expect("it listens")
    }

    async fn ask(&self, host: &str, what: &'static str) -> Result<String, RequestError> {
        let asked = self.links.request(&id(host), Bytes::from(what), WAIT).await;
        asked.map(|answer| String::from_utf8(answer.to_vec()).expect("words"))
    }

    async fn ended(&mut self, host: &str) -> How {
        loop {
            let event = soon("an end", self.events.recv()).await.expect("it is open");
            if let PeerEvent { host: of, ended: Some(how) } = event
                && of == id(host)
            {
                return how;
            }
        }
    }
}

struct World {
    authority: Authority,
    map: Arc<Map>,
}

impl World {
    fn new() -> World {
        World { authority: authority("acme"), map: Arc::default() }
    }
}

/// Bytes go both ways.
async fn passes(near: &mut TcpStream, far: &mut TcpStream) {
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut *near, &mut *far];
        ends[from].write_all(b"are you there?").await.expect("it is open");
        let mut heard = [0; 14];
        soon("bytes", ends[to].read_exact(&mut heard)).await.expect("it is open");
        assert_eq!(&heard, b"are you there?");
    }
}

/// A data connection from `near` to `far`.
async fn data(near: &Node, far: &Node, name: &str) -> (TcpStream, TcpStream) {
    let expected = far.links.expect_data().expect("a ticket");
    let ticket = expected.ticket();
    let host = id(name);
    let dialed = near.links.dial_data(&host, ticket, WAIT);
    let (dialed, come) = tokio::join!(dialed, expected.stream());
    (dialed.expect("a way"), come.expect("it comes"))
}

/// Something comes to an end without a byte.
async fn is_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset says the same as an end.
    let _ = soon("an end", stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_ask_each_other_over_one_link() {
    let world = World::new();
    let a = Node::open(&world, "tokyo/a", Role::Member).await;
    let mut b = Node::open(&world, "osaka/b", Role::Member).await;
    let mut asks = tokio::task::JoinSet::new();
    let links = Arc::new(a.links);
    for number in 0..200 {
        let links = Arc::clone(&links);
        asks.spawn(async move {
            let asked = Bytes::from(format!("{number}"));
            let answer = links.request(&id("osaka/b"), asked, WAIT).await.expect("an answer");
            assert_eq!(answer, format!("tokyo/a said {number}"));
        });
    }
    while let Some(done) = asks.join_next().await {
        done.expect("no panic");
    }
    assert_eq!(b.ask("tokyo/a", "and you?").await, Ok("osaka/b said and you?".to_owned()));
    assert_eq!(b.ask("osaka/b", "me?").await, Ok("osaka/b said me?".to_owned()), "itself");
    let begun = std::iter::from_fn(|| b.events.try_recv().ok()).filter(|e| e.ended.is_none());
    assert_eq!(begun.count(), 1, "one link for all of it");
    for number in 0..100_u8 {
        let note = Bytes::from(vec![number]);
        links.notify(&id("osaka/b"), note.clone(), WAIT).await.expect("a way");
        assert_eq!(soon("a note", b.notes.recv()).await, Some((id("tokyo/a"), note)));
    }
    links.close().await;
    assert_eq!(b.ended("tokyo/a").await, How::Closed, "it said good-bye");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_question_has_an_outcome() {
    let world = World::new();
    let a = Node::open(&world, "tokyo/a", Role::Member).await;
    let b = Node::open(&world, "tokyo/b", Role::Member).await;
    let host = id("tokyo/b");
    let refused = a.ask("tokyo/b", "refuse").await.expect_err("it refuses");
    assert_eq!(refused.to_string(), "tokyo/b refused: it does not want to");
    let huge = a.ask("tokyo/b", "huge").await.expect_err("it is too large");
    assert!(matches!(huge, RequestError::Refused { .. }), "{huge}");
    let largest = Bytes::from(vec![0; PAYLOAD_BYTES_MAX]);
    a.links.request(&host, largest, WAIT).await.expect_err("an answer is longer, so it is refused");
    let larger = Bytes::from(vec![0; PAYLOAD_BYTES_MAX + 1]);
    let larger = a.links.request(&host, larger, WAIT).await.expect_err("it is not sent");
    assert!(larger.is_not_asked(), "{larger}");
    let late = a.links.request(&host, "hang".into(), Duration::from_millis(50)).await;
    assert_eq!(late, Err(RequestError::Late { host: host.clone(), wait_ms: 50 }));
    let unknown = a.ask("tokyo/nobody", "hello").await.expect_err("nobody");
    assert!(unknown.is_not_asked(), "{unknown}");

    let (hanging, ()) = tokio::join!(a.ask("tokyo/b", "hang"), async {
        until("the question", || b.links.linked().contains(&id("tokyo/a"))).await;
        b.links.close().await;
    });
    let lost = hanging.expect_err("the link is gone");
    assert!(matches!(lost, RequestError::Lost { .. }), "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_lets_one_connection_in() {
    let world = World::new();
    let a = Node::open(&world, "tokyo/a", Role::Member).await;
    let b = Node::open(&world, "tokyo/b", Role::Member).await;
    let expected = b.links.expect_data().expect("a ticket");
    let ticket = expected.ticket();
    let host = id("tokyo/b");
    let dialed = a.links.dial_data(&host, ticket, WAIT);
    let (dialed, come) = tokio::join!(dialed, expected.stream());
    let (mut near, mut far) = (dialed.expect("a way"), come.expect("it comes"));
    assert!(near.nodelay().expect("a socket") && far.nodelay().expect("a socket"));
    passes(&mut near, &mut far).await;

    let again = a.links.dial_data(&id("tokyo/b"), ticket, WAIT).await;
    is_closed(&mut again.expect("it listens")).await;
    let withdrawn = b.links.expect_data().expect("a ticket");
    let ticket = withdrawn.ticket();
    drop(withdrawn);
    let late = a.links.dial_data(&id("tokyo/b"), ticket, WAIT).await;
    is_closed(&mut late.expect("it listens")).await;

    let (mut near, mut far) = data(&b, &b, "tokyo/b").await;
    passes(&mut near, &mut far).await;
    for first in [&b"GET / HTTP/1.1\r\n"[..], b"KUMOcall", b"\0"] {
        let mut other = TcpStream::connect(b.address()).await.expect("it listens");
        other.write_all(&[first, &[b'x'; 64]].concat()).await.expect("it is open");
        is_closed(&mut other).await;
    }
    b.ask("tokyo/a", "still").await.expect("it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_belong_gets_no_link() {
    let world = World::new();
    let mut gateway = Node::open(&world, "tokyo/gw", Role::Gateway).await;
    let month_ms = 31 * link_support::DAY_MS;
    let strangers = [
        Some(identity(&authority("acme"), "tokyo/a", Role::Member)),
        Some(identity(&authority("beta"), "tokyo/a", Role::Member)),
        Some(identity_at(&world.authority, "tokyo/a", Role::Member, now_ms() - month_ms)),
        None,
    ];
    for who in strangers {
        let tcp = TcpStream::connect(gateway.address()).await.expect("it listens");
        let versions = [&rustls::version::TLS13];
        let mut bytes = Vec::new();
        // In TLS 1.3 the side that dials is done before the other has looked at its certificate.
        if let Ok(mut tls) = stranger(tcp, who.as_ref(), &["kumo-peer/1"], &versions).await {
            let _ = soon("an end", tls.read_to_end(&mut bytes)).await;
        }
        assert_eq!(bytes, b"", "{who:?} is not welcome");
    }
    assert_eq!(gateway.links.linked(), BTreeSet::new());

    // Somebody else answers where a host is dialed.
    let a = Node::open(&world, "tokyo/a", Role::Member).await;
    world.map.place("tokyo/other", a.address());
    let wrong = gateway.ask("tokyo/other", "hello").await.expect_err("it is not there");
    assert!(
        wrong.is_not_asked() && wrong.to_string().contains("tokyo/other` was dialed"),
        "{wrong}"
    );

    // Only gateways speak for others, and only gateways are asked to.
    a.ask("tokyo/gw", "hello").await.expect("it belongs");
    let key_id = Peer::of(&a.identity.certificate).expect("a host").key_id;
    let (mut near, mut far) = data(&a, &gateway, "tokyo/gw").await;
    passes(&mut near, &mut far).await;
    gateway.links.set_evicted(BTreeSet::from([key_id]));
    assert_eq!(gateway.ended("tokyo/a").await, How::Evicted);
    let out = gateway.ask("tokyo/a", "hello").await.expect_err("it is out");
    assert!(out.is_not_asked() && out.to_string().contains("evicted"), "{out}");
    let out = soon("an end", async {
        loop {
            match a.ask("tokyo/gw", "hello").await {
                Err(error) if error.is_not_asked() => break error,
                // Its link has not noticed yet.
                Err(RequestError::Lost { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    let out = out.await;
    assert!(out.to_string().contains("this host was evicted"), "{out}");
}

/// A question as it is on the wire, `way` being the number of a kind and its fields.
fn question(way: &[u8], what: &[u8]) -> Vec<u8> {
    let frame = [&[0, 7, 100][..], way, what].concat();
    [&(frame.len() as u32).to_le_bytes()[..], &frame].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_speak_for_nobody_and_nonsense_ends_a_link() {
    let world = World::new();
    let b = Node::open(&world, "tokyo/b", Role::Member).await;
    let hello = [&[0, 5][..], b"hello"].concat();
    let for_gw = [&[2, 5][..], b"tokyo", &[2], b"gw"].concat();
    let on_to_gw = [&[1, 5][..], b"tokyo", &[2], b"gw", &[0, 2]].concat();
    let call_back = [&[3][..], &[1; 64]].concat();
    let cases = [
        (question(&[0], &hello), "tokyo/a said hello"),
        (question(&for_gw, &hello), "only gateways speak for others"),
        (question(&on_to_gw, &hello), "this host is no gateway"),
        (question(&[0], &call_back), "only gateways are called back"),
        (question(&[0], &[&[2][..], &[1; 32]].concat()), "there is nothing to splice here"),
        (question(&[9], &hello), ""),
        (question(&[0], &[&hello[..], b"!"].concat()), ""),
        (u32::MAX.to_le_bytes().to_vec(), ""),
    ];
    let who = identity(&world.authority, "tokyo/a", Role::Member);
    for (bytes, want) in cases {
        let tcp = TcpStream::connect(b.address()).await.expect("it listens");
        let versions = [&rustls::version::TLS13];
        let tls = stranger(tcp, Some(&who), &["kumo-peer/1"], &versions).await;
        let mut tls = tls.expect("it belongs");
        assert_eq!(soon("a welcome", tls.read_u8()).await.expect("it is open"), 0);
        tls.write_all(&bytes).await.expect("it is open");
        if want.is_empty() {
            let mut rest = Vec::new();
            let _ = soon("an end", tls.read_to_end(&mut rest)).await;
            assert_eq!(rest, b"");
            continue;
        }
        let len_bytes = soon("an answer", tls.read_u32_le()).await.expect("it is open");
        let mut answer = vec![0; len_bytes as usize];
        soon("an answer", tls.read_exact(&mut answer)).await.expect("it is open");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("\u{1}\u{7}") && answer.ends_with(want), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_come_before_other_threads_where_the_system_lets_us() {
    let world = World::new();
    let _node = Node::open(&world, "tokyo/a", Role::Member).await;
    let nice = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted");
        let stats =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
        let of_links = stats.filter(|stat| stat.contains("(kumo-peers)"));
        of_links
            .filter_map(|stat| stat.rsplit_once(") ")?.1.split(' ').nth(16)?.parse().ok())
            .next()
    };
    let usual: i32 = rustix::process::getpriority_process(None).expect("our own");
    let is_allowed = rustix::process::geteuid().is_root();
    until("the priority", || nice().is_some_and(|nice: i32| !is_allowed || nice < usual)).await;
}

/// Two data centres whose members nobody can dial.
async fn hidden_members(world: &World) -> (Vec<Node>, Node, Node) {
    let mut gateways = Vec::new();
    for name in ["tokyo/gw", "osaka/gw-1", "osaka/gw-2", "osaka/gw-3"] {
        gateways.push(Node::open(world, name, Role::Gateway).await);
    }
    let a = Node::hidden(world, "tokyo/a").await;
    let b = Node::hidden(world, "osaka/b").await;
    until("the members' links to gateways", || {
        a.links.linked().len() == 1 && b.links.linked().len() == 2
    })
    .await;
    (gateways, a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_help_where_no_host_can_be_dialed() {
    let world = World::new();
    let (gateways, a, mut b) = hidden_members(&world).await;
    // A gateway has no link with `b`; whichever of them is asked, the question arrives.
    let linked = b.links.linked();
    let far = gateways.iter().find(|node| {
        node.identity.host.dc == id("osaka/b").dc && !linked.contains(&node.identity.host)
    });
    let far = far.expect("two of three are linked");
    for node in [&a, &gateways[0], far] {
        let me = node.identity.host.to_string();
        assert_eq!(node.ask("osaka/b", "hello").await, Ok(format!("{me} said hello")));
        node.links.notify(&id("osaka/b"), "psst".into(), WAIT).await.expect("a way");
        let note = soon("a note", b.notes.recv()).await;
        assert_eq!(note, Some((node.identity.host.clone(), "psst".into())));
        let (mut near, mut far) = data(node, &b, "osaka/b").await;
        passes(&mut near, &mut far).await;
        drop(near);
        is_closed(&mut far).await;
    }
    let refused = a.ask("osaka/b", "refuse").await.expect_err("it refuses");
    assert_eq!(refused.to_string(), "osaka/b refused: it does not want to");
    let wrong = Ticket::from_bytes([3; 32]);
    let wrong = a.links.dial_data(&id("osaka/b"), wrong, WAIT).await.expect_err("nobody waits");
    assert!(wrong.to_string().contains("nobody waits for this ticket"), "{wrong}");
    let nobody = a.ask("osaka/nobody", "hello").await.expect_err("nobody");
    assert!(nobody.is_not_asked(), "{nobody}");

    let mut watch = a.links.watch_host(&id("osaka/b"));
    assert_eq!(watch.life(), HostLife::Answers);
    b.links.close().await;
    assert_eq!(soon("its loss", watch.changed()).await, HostLife::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_spliced_for_an_evicted_host_is_cut() {
    let world = World::new();
    let (gateways, a, b) = hidden_members(&world).await;
    let (mut near, mut far) = data(&a, &b, "osaka/b").await;
    passes(&mut near, &mut far).await;
    let key_id = Peer::of(&a.identity.certificate).expect("a host").key_id;
    for gateway in &gateways {
        gateway.links.set_evicted(BTreeSet::from([key_id]));
    }
    is_closed(&mut near).await;
    is_closed(&mut far).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_comes_back_to_its_gateway() {
    let world = World::new();
    let gateway = Node::open(&world, "tokyo/gw", Role::Gateway).await;
    let mut a = Node::hidden(&world, "tokyo/a").await;
    until("its link", || gateway.links.linked().contains(&id("tokyo/a"))).await;
    let identity = gateway.identity.clone();
    gateway.links.close().await;
    assert_eq!(a.ended("tokyo/gw").await, How::Closed);
    let gateway = Node::with(&world.map, identity).await;
    until("the call port", || gateway.links.local_addr().is_some()).await;
    world.map.place("tokyo/gw", gateway.address());
    until("its link again", || gateway.links.linked().contains(&id("tokyo/a"))).await;
    assert_eq!(gateway.ask("tokyo/a", "back?").await, Ok("tokyo/gw said back?".to_owned()));
}

/// Forwards TCP to `to` while `open` is true; then takes and answers nothing.
async fn proxy(to: SocketAddr, open: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("a port");
    tokio::spawn(async move {
        loop {
            let Ok((near, _)) = listener.accept().await else { return };
            let Ok(far) = TcpStream::connect(to).await else { return };
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            for (mut from, mut to) in [(near_in, far_out), (far_in, near_out)] {
                let mut open = open.clone();
                tokio::spawn(async move {
                    let mut bytes = vec![0; 64 * 1024];
                    loop {
                        let Ok(read) = from.read(&mut bytes).await else { return };
                        if open.wait_for(|open| *open).await.is_err() || read == 0 {
                            return;
                        }
                        if to.write_all(&bytes[..read]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_is_told_and_so_is_who_comes_back() {
    let world = World::new();
    let a = Node::open(&world, "tokyo/a", Role::Member).await;
    let b = Node::open(&world, "tokyo/b", Role::Member).await;
    let (valve, open) = watch::channel(true);
    world.map.place("tokyo/b", proxy(b.address(), open).await);
    a.ask("tokyo/b", "hello").await.expect("an answer");
    let mut watches = [(); 2].map(|()| a.links.watch_host(&id("tokyo/b")));
    let hanging = a.ask("tokyo/b", "hang");
    tokio::pin!(hanging);
    // Long enough for beats to have been answered.
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut hanging).await.is_err());
    assert_eq!(watches[0].life(), HostLife::Answers);
    let closed = Instant::now();
    valve.send_replace(false);
    let lost = hanging.await.expect_err("its link is cut");
    println!("lost after {:?}", closed.elapsed());
    assert!(matches!(lost, RequestError::Lost { .. }), "{lost}");
    for watch in &mut watches {
        assert_eq!(soon("its loss", watch.changed()).await, HostLife::Lost);
    }
    valve.send_replace(true);
    for watch in &mut watches {
        assert_eq!(soon("its return", watch.changed()).await, HostLife::Answers);
    }
    a.ask("tokyo/b", "hello again").await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_restarts_is_told_from_a_host_that_is_lost() {
    let world = World::new();
    let a = Node::open(&world, "tokyo/a", Role::Member).await;
    let b = Node::open(&world, "tokyo/b", Role::Member).await;
    a.ask("tokyo/b", "hello").await.expect("an answer");
    let mut watch = a.links.watch_host(&id("tokyo/b"));
    let (mut identity, address) = (b.identity.clone(), b.address());
    b.links.close().await;
    assert_eq!(soon("its end", watch.changed()).await, HostLife::NodeDown);
    identity.call_listen = Some(address);
    let _b = Node::with(&world.map, identity).await;
    assert_eq!(soon("its return", watch.changed()).await, HostLife::Answers);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_do_not_keep_others_out() {
    let world = World::new();
    let a = Node::open(&world, "tokyo/a", Role::Member).await;
    let b = Node::open(&world, "tokyo/b", Role::Member).await;
    let mut held = Vec::new();
    for turn in 0..600_u16 {
        let from = Ipv4Addr::new(127, 0, 1, (turn % 3) as u8 + 1);
        let mut tcp = connect_from(from.into(), b.address()).await;
        let bytes: &[u8] = if turn % 2 == 0 { b"KUMOCALL" } else { b"\x16\x03\x01" };
        // Those that found no room are closed already.
        let _ = tcp.write_all(bytes).await;
        held.push(tcp);
    }
    let mut answer = a.ask("tokyo/b", "hello").await;
    // While all places are taken by young ones it may be refused; they grow old within a second.
    while let Err(error) = &answer {
        assert!(error.is_not_asked(), "{error}");
        answer = soon("an answer", a.ask("tokyo/b", "hello")).await;
        tokio::task::yield_now().await;
    }
    let (mut near, mut far) = data(&a, &b, "tokyo/b").await;
    passes(&mut near, &mut far).await;
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_had_later() {
    let world = World::new();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let mut identity = identity(&world.authority, "tokyo/a", Role::Member);
    identity.call_listen = taken.local_addr().ok();
    let node = Node::with(&world.map, identity).await;
    assert_eq!(node.links.local_addr(), None);
    drop(taken);
    until("the call port", || node.links.local_addr().is_some()).await;
}
