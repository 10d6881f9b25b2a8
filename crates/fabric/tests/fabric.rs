//! Whole nodes in one process, over real TLS on loopback.

#[expect(unreachable_pub, reason = "it is a part of kumo-testbed, which depends on this crate")]
#[path = "../../testbed/src/pace.rs"]
mod pace;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kumo_abi::HostId;
use kumo_abi::cluster::{Card, HostInfo, HostState, Outcome, Role};
use kumo_fabric::identity::{Gateway, Identity};
use kumo_fabric::peer::PeerAnswerer;
use kumo_fabric::pki::Authority;
use kumo_fabric::{Answerer, Answering, Ask, Fabric, FabricConfig, Part};

/// Long enough for a machine that does ten other things.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How long a question waits for everybody; nothing takes that long, except on a very busy machine.
const ASK_WAIT_MS: u64 = 60_000;

/// How long one waits for somebody who never answers: all others must have answered by then.
const HUNG_WAIT_MS: u64 = 4_000;

/// Answers with its name; refuses or hangs when it is asked to.
struct Parrot(HostId);

impl Answerer for Parrot {
    fn answer(&self, request: Bytes) -> Answering {
        let me = self.0.to_string();
        Box::pin(async move {
            let request = String::from_utf8_lossy(&request).into_owned();
            match request.split_once(' ') {
                Some(("refuse", who)) if who == me => Err("it does not want to".to_owned()),
                Some(("hang", who)) if who == me => std::future::pending().await,
                _ => Ok(Bytes::from(format!("{me}\n"))),
            }
        })
    }

    fn merge(&self, _request: &[u8], parts: Vec<Bytes>) -> Result<Bytes, String> {
        Ok(parts.concat().into())
    }
}

/// Answers other nodes with what they said.
struct Echo;

impl PeerAnswerer for Echo {
    fn answer(&self, from: HostId, request: Bytes) -> Answering {
        Box::pin(
            async move { Ok(format!("{from} said {}", String::from_utf8_lossy(&request)).into()) },
        )
    }

    fn note(&self, _from: HostId, _note: Bytes) {}
}

fn id(name: &str) -> HostId {
    name.parse().expect("a host")
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

/// Where a gateway can listen: an address of loopback that this process alone uses, so that nobody takes
/// the port between now and then, or after the gateway is gone. Numbers of processes have 22 bits.
fn own_address() -> String {
    static PORT: AtomicU16 = AtomicU16::new(7081);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{middle}.{low}:{port}", 128 | high)
}

/// A cluster in one directory.
struct World {
    dir: tempfile::TempDir,
    authority: Authority,
    gateways: Vec<Gateway>,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().expect("a directory");
        let cluster = "acme".parse().expect("a name");
        let authority = Authority::create(&cluster, now_ms()).expect("an authority");
        World { dir, authority, gateways: Vec::new() }
    }

    fn dir(&self, host: &HostId) -> PathBuf {
        let dir: &Path = self.dir.path();
        dir.join(host.to_string().replace('/', "-"))
    }

    async fn start(&self, host: &str, role: Role, listen: Option<&str>) -> Fabric {
        let host = id(host);
        let mut identity =
            Identity::issue(&self.authority, &host, role, now_ms()).expect("an identity");
        identity.listen = listen.map(|address| address.parse().expect("an address"));
        let calls = own_address();
        identity.call_listen = Some(calls.parse().expect("an address"));
        identity.gateways = self.gateways.clone();
        identity.gateways.retain(|gateway| gateway.host != host);
        let addresses = self.gateways.iter().find(|gateway| gateway.host == host);
        let card = Card {
            role,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: "6.1".to_owned(),
            architecture: "x86_64".to_owned(),
            cpus: 2,
            memory: 1 << 30,
            call_addresses: vec![calls],
            addresses: addresses.map(|known| known.addresses.clone()).unwrap_or_default(),
            labels: BTreeMap::new(),
        };
        let run_dir = self.dir(&host);
        let config =
            FabricConfig { identity, state_dir: None, run_dir, card, calls: true, lease: None };
        Fabric::open(config, Arc::new(Parrot(host))).await.expect("a fabric")
    }

    async fn gateway(&mut self, host: &str) -> Fabric {
        let address = own_address();
        self.gateways.push(Gateway { host: id(host), addresses: vec![address.clone()] });
        self.start(host, Role::Gateway, Some(&address)).await
    }

    async fn member(&self, host: &str) -> Fabric {
        self.start(host, Role::Member, None).await
    }
}

/// Waits until it holds on all nodes; fails with what they see.
async fn until(nodes: &[&Fabric], what: &str, holds: impl Fn(&Fabric) -> bool) {
    let began = Instant::now();
    while !nodes.iter().all(|node| holds(node)) {
        if began.elapsed() > WAIT_MAX {
            for node in nodes {
                eprintln!("{} sees {:#?}", node.identity().host, node.hosts());
            }
            panic!("not within {WAIT_MAX:?}: {what}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn state(node: &Fabric, host: &str) -> Option<HostState> {
    let host = id(host);
    node.hosts().iter().find(|info| info.id == host).map(|info| info.state)
}

fn sees(node: &Fabric, count: usize) -> bool {
    let is_known = |info: &&HostInfo| info.state == HostState::Alive && info.card.is_some();
    node.hosts().iter().filter(is_known).count() == count
}

/// All parts of a question to all whom `node` knows.
async fn ask(node: &Fabric, request: &str, merge: bool, wait_ms: u64) -> Vec<Part> {
    let hosts = node.hosts().into_iter().map(|info| info.id).collect();
    let request = Bytes::from(request.to_owned());
    let deadline = Duration::from_millis(wait_ms);
    let mut receiver = node.gather(Ask { request, hosts, deadline, merge, idempotent: true });
    let mut parts = Vec::new();
    while let Some(part) = receiver.recv().await {
        parts.push(part);
    }
    parts
}

/// Who answered, by what the answers hold, and what is said of each host.
fn told(parts: &[Part]) -> (Vec<String>, BTreeMap<String, Outcome>) {
    let mut names: Vec<String> = parts
        .iter()
        .filter_map(|part| part.answer.as_ref())
        .flat_map(|answer| {
            String::from_utf8_lossy(answer).lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    names.sort();
    let mut outcomes = BTreeMap::new();
    for one in parts.iter().flat_map(|part| &part.outcomes) {
        let before = outcomes.insert(one.id.to_string(), one.outcome.clone());
        assert_eq!(before, None, "{} is in two parts", one.id);
    }
    (names, outcomes)
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_of_two_data_centres_are_one_cluster() {
    let mut world = World::new();
    let mut nodes = Vec::new();
    for name in ["tokyo/gw-1", "tokyo/gw-2", "osaka/gw-1"] {
        nodes.push(world.gateway(name).await);
    }
    for name in ["tokyo/a", "tokyo/b", "tokyo/c", "osaka/a", "osaka/b"] {
        nodes.push(world.member(name).await);
    }
    let all: Vec<&Fabric> = nodes.iter().collect();
    until(&all, "all see all, with their cards", |node| sees(node, 8)).await;
    // Gateways are joined to each other once, whoever dialed; members to one gateway.
    until(&all, "each has its links", |node| {
        let links = node.links();
        let gateways = links.iter().filter(|link| link.role == Role::Gateway).count();
        gateways == if node.identity().role == Role::Gateway { 2 } else { 1 }
    })
    .await;

    for (asker, merge) in [(0, true), (0, false), (3, true), (3, false), (7, true)] {
        let parts = ask(all[asker], "who", merge, ASK_WAIT_MS).await;
        let (names, outcomes) = told(&parts);
        assert_eq!(names.len(), 8, "{names:?} of {outcomes:?}");
        assert!(outcomes.values().all(|outcome| *outcome == Outcome::Answered), "{outcomes:?}");
        if !merge {
            assert!(parts.iter().all(|part| part.outcomes.len() == 1), "{parts:?}");
        }
    }

    // From another data centre: who refuses and who hangs is named, and nobody else suffers.
    let (names, outcomes) = told(&ask(all[7], "refuse tokyo/b", true, ASK_WAIT_MS).await);
    assert_eq!(names.len(), 7);
    let why = "it does not want to".to_owned();
    assert_eq!(outcomes["tokyo/b"], Outcome::Refused { why });
    let (names, outcomes) = told(&ask(all[7], "hang tokyo/b", true, HUNG_WAIT_MS).await);
    assert_eq!(names.len(), 7, "{outcomes:?}");
    assert!(matches!(outcomes["tokyo/b"], Outcome::Silent { .. }), "{outcomes:?}");

    // They ask each other where their cards say, and gateways hear of it nothing.
    all[4].peers().expect("it has calls").answer_by(Arc::new(Echo));
    let asked = all[7].peers().expect("it has calls");
    let host = all[4].identity().host.clone();
    let answer = asked.request(&host, Bytes::from("hello"), WAIT_MAX).await;
    assert_eq!(answer, Ok(Bytes::from("osaka/b said hello")));
    assert!(asked.linked().contains(&host));

    // What one writes all read.
    all[4].store().put("setting/x", b"1".to_vec()).expect("in memory");
    until(&all, "the setting is everywhere", |node| {
        node.store().value("setting/x").as_deref() == Some(b"1")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_and_who_dies_is_told_apart() {
    let mut world = World::new();
    let first = world.gateway("tokyo/gw-1").await;
    let second = world.gateway("tokyo/gw-2").await;
    let far = world.gateway("osaka/gw-1").await;
    let mut members = Vec::new();
    for name in ["tokyo/a", "tokyo/b", "tokyo/c", "tokyo/d"] {
        members.push(world.member(name).await);
    }
    let mut all: Vec<&Fabric> = vec![&first, &second, &far];
    all.extend(&members);
    until(&all, "all see all", |node| sees(node, 7)).await;

    let leaving = members.remove(0);
    leaving.close().await;
    let mut all: Vec<&Fabric> = vec![&first, &second, &far];
    all.extend(&members);
    until(&all, "it has left", |node| state(node, "tokyo/a") == Some(HostState::Left)).await;

    // Dropped without a word, as a killed one is.
    let dying = members.remove(0);
    let mut events = far.events();
    drop(dying);
    let mut all: Vec<&Fabric> = vec![&first, &second, &far];
    all.extend(&members);
    until(&all, "it is dead", |node| state(node, "tokyo/b") == Some(HostState::Dead)).await;
    let wanted = (id("tokyo/b"), HostState::Dead);
    loop {
        let event = tokio::time::timeout(WAIT_MAX, events.recv()).await.expect("in time");
        let event = event.expect("an event");
        if (event.id, event.state) == wanted {
            break;
        }
    }

    // A gateway goes, and nobody with it.
    let mut events = far.events();
    let pace = pace::Pace::watch();
    drop(first);
    let mut all: Vec<&Fabric> = vec![&second, &far];
    all.extend(&members);
    until(&all, "the gateway is dead", |node| {
        state(node, "tokyo/gw-1") == Some(HostState::Dead)
            && state(node, "tokyo/c") == Some(HostState::Alive)
            && state(node, "tokyo/d") == Some(HostState::Alive)
    })
    .await;
    let (names, outcomes) = told(&ask(&far, "who", true, ASK_WAIT_MS).await);
    assert_eq!(names, ["osaka/gw-1", "tokyo/c", "tokyo/d", "tokyo/gw-2"], "{outcomes:?}");
    assert!(matches!(outcomes["tokyo/b"], Outcome::Dead { .. }), "{outcomes:?}");
    // Living, dead and gone: one alone, and all without their cards, are what the list says.
    let (hosts, bare) = (second.hosts(), second.states());
    for (listed, bare) in hosts.iter().zip(&bare) {
        let one = second.host(&listed.id).expect("it is listed");
        let of = |info: &HostInfo| (info.id.clone(), info.state, info.incarnation);
        assert_eq!((of(&one), of(bare)), (of(listed), of(listed)));
        assert_eq!((&one.card, &bare.card), (&listed.card, &None));
    }
    assert_eq!((hosts.len(), bare.len()), (7, 7));
    assert_eq!(second.host(&id("tokyo/x")), None);
    if !pace.can_judge() {
        return;
    }
    while let Ok(event) = events.try_recv() {
        assert_eq!(event.id, id("tokyo/gw-1"), "nobody else's state has changed: {event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_host_is_cut_at_once_and_stays_out() {
    let mut world = World::new();
    let gateway = world.gateway("tokyo/gw-1").await;
    let member = world.member("tokyo/a").await;
    until(&[&gateway, &member], "they see each other", |node| sees(node, 2)).await;
    let linked = |node: &Fabric| !node.peers().expect("it has calls").linked().is_empty();
    until(&[&gateway, &member], "the member keeps a link for calls", linked).await;
    // Its certificate is remembered where it was issued; here the test stands for that.
    let peer = member.identity().peer().expect("a certificate");
    kumo_fabric::join::registry::record(gateway.store(), &peer).expect("in memory");
    assert_eq!(gateway.evict(&id("tokyo/a")).await.expect("a known host"), 1);
    until(&[&gateway], "it is gone", |node| {
        node.links().is_empty() && state(node, "tokyo/a").is_none() && !linked(node)
    })
    .await;
    until(&[&member], "it is cut off", |node| {
        state(node, "tokyo/gw-1") == Some(HostState::CutOff) && node.links().is_empty()
    })
    .await;
    let again = gateway.evict(&id("tokyo/x")).await.expect_err("no such host");
    assert!(again.to_string().contains("kumo hosts"), "{again}");
}
