//! Joining and renewing, against the real desk: over memory with messages of every kind, and over TLS
//! with the real client.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use data_encoding::BASE64;
use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use kumo_fabric::identity::{self, Identity, IdentityError};
use kumo_fabric::join::registry;
use kumo_fabric::join::{
    ALPN_JOIN, Desk, Grant, Hello, JoinAsk, JoinDesk as _, JoinError, JoinRequest, Joined,
    REQUEST_BYTES_MAX, Refusal, RefusalCode, RenewRequest, Reply, Request, join, renew,
};
use kumo_fabric::pki::{self, Authority, Peer};
use kumo_fabric::store::Store;
use kumo_fabric::token::{self, Token, TokenAsk};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

const HOUR: Duration = Duration::from_secs(3600);

/// Generous: it only ends tests that hang.
const PATIENCE: Duration = Duration::from_secs(30);

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

/// A gateway `tokyo/a` of the cluster `acme`, with its desk.
struct World {
    dir: tempfile::TempDir,
    desk: Arc<Desk>,
    identity: Arc<ArcSwap<Identity>>,
    store: Arc<Store>,
    /// What the desk believes of every host.
    alive: Arc<AtomicBool>,
}

impl World {
    fn new(addresses: &[String]) -> World {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&"acme".parse().unwrap(), now_ms()).unwrap();
        let made = Identity::issue(&authority, &host("tokyo/a"), Role::Gateway, now_ms()).unwrap();
        let identity = Identity { advertise: addresses.to_vec(), ..made };
        let files = dir.path().join("a");
        identity.save(&files, Some(&authority)).unwrap();
        let identity = Arc::new(ArcSwap::from_pointee(identity));
        let store = Arc::new(Store::in_memory(host("tokyo/a")));
        let alive = Arc::new(AtomicBool::new(false));
        let says = Arc::clone(&alive);
        let desk = Desk::new(
            files,
            Arc::clone(&identity),
            Arc::clone(&store),
            Some(authority),
            Box::new(move |_| says.load(Ordering::SeqCst)),
        );
        World { dir, desk: Arc::new(desk.unwrap()), identity, store, alive }
    }

    fn token_made_at(&self, made_ms: u64, change: impl FnOnce(&mut TokenAsk)) -> Token {
        let mut ask = TokenAsk { dc: None, ttl: HOUR, uses: 1, role: Role::Member };
        change(&mut ask);
        token::create(&self.store, &self.identity.load(), &ask, made_ms).unwrap()
    }

    fn token(&self, change: impl FnOnce(&mut TokenAsk)) -> Token {
        self.token_made_at(now_ms(), change)
    }

    /// A conversation over memory, after the hello.
    async fn talk(&self, peer: Option<Peer>) -> DuplexStream {
        let (mut ours, theirs) = tokio::io::duplex(4096);
        let desk = Arc::clone(&self.desk);
        tokio::spawn(async move {
            desk.serve(Box::new(theirs), peer, "192.0.2.9:40000".parse().unwrap()).await;
        });
        let hello: Hello = serde_json::from_slice(&receive(&mut ours).await.unwrap()).unwrap();
        assert_eq!((hello.cluster.as_str(), hello.host), ("acme", host("tokyo/a")));
        assert_eq!(hello.ca, BASE64.encode(&self.identity.load().ca));
        ours
    }

    async fn ask(&self, request: &Request) -> Result<Grant, Refusal> {
        self.ask_as(None, &serde_json::to_vec(request).unwrap()).await
    }

    async fn ask_as(&self, peer: Option<Peer>, request: &[u8]) -> Result<Grant, Refusal> {
        let mut stream = self.talk(peer).await;
        stream.write_u32(request.len() as u32).await.unwrap();
        stream.write_all(request).await.unwrap();
        match serde_json::from_slice(&receive(&mut stream).await.unwrap()).unwrap() {
            Reply::Granted(grant) => Ok(grant),
            Reply::Refused(refusal) => Err(refusal),
        }
    }
}

/// One message; `None` when the other end hangs up.
async fn receive(stream: &mut DuplexStream) -> Option<Vec<u8>> {
    let receiving = async {
        let len = stream.read_u32().await.ok()?;
        let mut bytes = vec![0; len as usize];
        stream.read_exact(&mut bytes).await.ok()?;
        Some(bytes)
    };
    timeout(PATIENCE, receiving).await.expect("the desk answers or hangs up")
}

fn request(token: &Token, name: &str) -> JoinRequest {
    JoinRequest {
        cluster: token.cluster.clone(),
        token: token.id.clone(),
        secret: token.secret.clone(),
        host: host(name),
        role: Role::Member,
        replace: false,
        csr: BASE64.encode(&pki::new_request().unwrap().1),
        now_ms: now_ms(),
    }
}

async fn refused(world: &World, request: JoinRequest) -> Refusal {
    let before = world.store.with_prefix("");
    let refusal = world.ask(&Request::Join(request)).await.expect_err("refused");
    assert_eq!(world.store.with_prefix(""), before, "a refusal changes nothing");
    refusal
}

fn names(grant: &Grant) -> Peer {
    Peer::of(&BASE64.decode(grant.certificate.as_bytes()).unwrap().into()).unwrap()
}

#[tokio::test]
async fn a_token_lets_in_as_many_as_it_says() {
    let world = World::new(&["192.0.2.1:7081".to_owned()]);
    let token = world.token(|ask| ask.uses = 2);
    for name in ["osaka/b", "osaka/c"] {
        let grant = world.ask(&Request::Join(request(&token, name))).await.unwrap();
        let peer = names(&grant);
        assert_eq!((peer.host, peer.role), (host(name), Role::Member));
        assert!(grant.authority_key.is_none(), "a member gets no key of the authority");
        assert_eq!(grant.gateways, [world.identity.load().as_gateway().unwrap()]);
    }
    let refusal = refused(&world, request(&token, "osaka/d")).await;
    assert_eq!(refusal.code, RefusalCode::UsedUp);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn hosts_that_come_at_once_are_no_more_than_it_says() {
    let world = Arc::new(World::new(&["192.0.2.1:7081".to_owned()]));
    let token = world.token(|ask| ask.uses = 3);
    let asking = (0..12).map(|number| {
        let (world, request) = (Arc::clone(&world), request(&token, &format!("osaka/h{number}")));
        tokio::spawn(async move { world.ask(&Request::Join(request)).await })
    });
    let mut granted = 0;
    for asked in asking.collect::<Vec<_>>() {
        match asked.await.unwrap() {
            Ok(_) => granted += 1,
            Err(refusal) => assert_eq!(refusal.code, RefusalCode::UsedUp),
        }
    }
    assert_eq!(granted, 3);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let world = World::new(&["192.0.2.1:7081".to_owned()]);
    let good = world.token(|ask| ask.uses = 10);
    let case = async |request: JoinRequest, code: RefusalCode, words: &str| {
        let refusal = refused(&world, request).await;
        assert_eq!(refusal.code, code, "{refusal:?}");
        assert!(refusal.words.contains(words), "{refusal:?} does not say {words:?}");
    };
    let old = world.token_made_at(now_ms() - 7_200_000, |_| ());
    case(request(&old, "osaka/b"), RefusalCode::Expired, "kumo token").await;

    let other = World::new(&["192.0.2.1:7081".to_owned()]).token(|_| ());
    case(request(&other, "osaka/b"), RefusalCode::UnknownToken, "kumo token").await;
    let guess = JoinRequest { secret: other.secret.clone(), ..request(&good, "osaka/b") };
    case(guess, RefusalCode::UnknownToken, "kumo token").await;
    let beta = JoinRequest { cluster: "beta".parse().unwrap(), ..request(&good, "osaka/b") };
    case(beta, RefusalCode::WrongCluster, "`beta`").await;

    let ahead = JoinRequest { now_ms: now_ms() + 3_601_000, ..request(&good, "osaka/b") };
    case(ahead, RefusalCode::Clock, "60 minutes ahead of").await;
    let behind = JoinRequest { now_ms: now_ms() - 3_600_000, ..request(&good, "osaka/b") };
    case(behind, RefusalCode::Clock, "60 minutes behind").await;

    let gateway = JoinRequest { role: Role::Gateway, ..request(&good, "osaka/b") };
    case(gateway, RefusalCode::Role, "--gateway").await;
    let osaka = world.token(|ask| ask.dc = Some("osaka".parse().unwrap()));
    case(request(&osaka, "tokyo/b"), RefusalCode::Dc, "`osaka`").await;
    case(request(&good, "tokyo/a"), RefusalCode::NameAlive, "alive").await;

    let bad = JoinRequest { csr: "AAAA".to_owned(), ..request(&good, "osaka/b") };
    case(bad, RefusalCode::Malformed, "no request for a certificate").await;
    let bad = JoinRequest { csr: "*".to_owned(), ..request(&good, "osaka/b") };
    case(bad, RefusalCode::Malformed, "no base64").await;
}

#[tokio::test]
async fn a_recorded_request_is_good_once() {
    let world = World::new(&["192.0.2.1:7081".to_owned()]);
    let token = world.token(|ask| ask.uses = 10);
    let first = request(&token, "osaka/b");
    world.ask(&Request::Join(first.clone())).await.unwrap();
    assert_eq!(refused(&world, first.clone()).await.code, RefusalCode::Replayed);
    // Under another name, or in its own place, it is the same key.
    let other = JoinRequest { host: host("osaka/c"), replace: true, ..first.clone() };
    assert_eq!(refused(&world, other).await.code, RefusalCode::Replayed);
    let fresh = JoinRequest { csr: first.csr, ..request(&token, "osaka/d") };
    assert_eq!(refused(&world, fresh).await.code, RefusalCode::Replayed);
}

#[tokio::test]
async fn a_name_has_one_host() {
    let world = World::new(&["192.0.2.1:7081".to_owned()]);
    let token = world.token(|ask| ask.uses = 10);
    let first = names(&world.ask(&Request::Join(request(&token, "osaka/b"))).await.unwrap());
    assert_eq!(refused(&world, request(&token, "osaka/b")).await.code, RefusalCode::NameKnown);

    let replace = || JoinRequest { replace: true, ..request(&token, "osaka/b") };
    world.alive.store(true, Ordering::SeqCst);
    assert_eq!(refused(&world, replace()).await.code, RefusalCode::NameAlive);
    world.alive.store(false, Ordering::SeqCst);
    let second = names(&world.ask(&Request::Join(replace())).await.unwrap());
    assert!(registry::is_evicted(&world.store, &first.key_id), "the one before is nobody now");
    assert!(!registry::is_evicted(&world.store, &second.key_id));
}

#[tokio::test]
async fn a_request_for_other_names_gets_its_own() {
    let world = World::new(&["192.0.2.1:7081".to_owned()]);
    let token = world.token(|_| ());
    let mut params = CertificateParams::new(vec!["a.tokyo.acme.kumo".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::OrganizationalUnitName, "gateway");
    let evil = "spiffe://acme/dc/tokyo/host/a".to_owned().try_into().unwrap();
    params.subject_alt_names.push(SanType::URI(evil));
    let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let request = JoinRequest { csr: BASE64.encode(csr.der()), ..request(&token, "osaka/b") };
    let grant = world.ask(&Request::Join(request)).await.unwrap();
    let peer = names(&grant);
    assert_eq!((peer.host, peer.role), (host("osaka/b"), Role::Member));
    let der = BASE64.decode(grant.certificate.as_bytes()).unwrap();
    assert!(!String::from_utf8_lossy(&der).contains("a.tokyo.acme.kumo"));
}

#[tokio::test]
async fn what_is_no_request_harms_nobody() {
    let world = World::new(&["192.0.2.1:7081".to_owned()]);
    let token = world.token(|_| ());
    let good = serde_json::to_value(Request::Join(request(&token, "osaka/b"))).unwrap();
    let with = |field: &str, value: serde_json::Value| {
        let mut changed = good.clone();
        changed["join"][field] = value;
        changed.to_string()
    };
    let cases = [
        (with("more", 1.into()), "unknown field `more`"),
        (with("role", "king".into()), "unknown variant `king`"),
        (with("now_ms", (-1).into()), "invalid value: integer `-1`"),
        (with("token", "../x".into()), "its name is none"),
        (with("host", serde_json::json!({"dc": "*", "host": "b"})), "`*` is none of them"),
        (with("csr", serde_json::Value::Null), "null"),
        (r#"{"leave":{}}"#.to_owned(), "unknown variant `leave`"),
        ("[".repeat(REQUEST_BYTES_MAX), "not understood"),
        ("GET / HTTP/1.1".to_owned(), "not understood"),
        (String::new(), "not understood"),
    ];
    for (text, want) in cases {
        let refusal = world.ask_as(None, text.as_bytes()).await.expect_err("refused");
        assert_eq!(refusal.code, RefusalCode::Malformed);
        assert!(refusal.words.contains(want), "{refusal:?} does not say {want:?}");
    }
    // Too long: refused by its length alone.
    let mut stream = world.talk(None).await;
    stream.write_u32(REQUEST_BYTES_MAX as u32 + 1).await.unwrap();
    let reply = receive(&mut stream).await.unwrap();
    let Reply::Refused(refusal) = serde_json::from_slice(&reply).unwrap() else {
        panic!("granted")
    };
    assert!(refusal.words.contains("too many"), "{refusal:?}");
    // Cut off after each byte of a message: the desk hangs up, and has granted nothing.
    let whole = good.to_string();
    for len in [0, 1, whole.len() / 2, whole.len() - 1] {
        let mut stream = world.talk(None).await;
        stream.write_u32(whole.len() as u32).await.unwrap();
        stream.write_all(&whole.as_bytes()[..len]).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(receive(&mut stream).await, None);
    }
    assert!(world.ask_as(None, whole.as_bytes()).await.is_ok(), "the token was not used by any");
}

#[tokio::test]
async fn a_renewal_keeps_the_names_and_wants_a_good_certificate() {
    let world = World::new(&["192.0.2.1:7081".to_owned()]);
    let token = world.token(|_| ());
    let fresh = names(&world.ask(&Request::Join(request(&token, "osaka/b"))).await.unwrap());
    let peer = due(fresh.clone());
    let refused = async |peer: Option<Peer>, request: &[u8]| {
        world.ask_as(peer, request).await.expect_err("refused").code
    };
    let first = renewal();
    let renewed = names(&world.ask_as(Some(peer.clone()), &first).await.unwrap());
    assert_eq!((&renewed.host, renewed.role), (&peer.host, peer.role));
    assert_ne!(renewed.key_id, peer.key_id);
    assert_eq!(refused(Some(peer.clone()), &first).await, RefusalCode::Replayed);
    assert_eq!(refused(Some(fresh), &renewal()).await, RefusalCode::NotYet);
    assert_eq!(refused(Some(renewed.clone()), &renewal()).await, RefusalCode::NotYet);
    assert_eq!(refused(None, &renewal()).await, RefusalCode::NoCertificate);
    let beta = Peer { cluster: "beta".parse().unwrap(), ..peer.clone() };
    assert_eq!(refused(Some(beta), &renewal()).await, RefusalCode::WrongCluster);
    assert_eq!(registry::evict(&world.store, &peer.host, now_ms()).unwrap(), 2);
    for peer in [peer, renewed] {
        assert_eq!(refused(Some(peer), &renewal()).await, RefusalCode::Evicted);
    }
}

fn renewal() -> Vec<u8> {
    let csr = BASE64.encode(&pki::new_request().unwrap().1);
    serde_json::to_vec(&Request::Renew(RenewRequest { csr })).unwrap()
}

/// A certificate when most of its time is over.
fn due(peer: Peer) -> Peer {
    Peer { not_after_ms: now_ms() + pki::RENEW_LEFT_MS, ..peer }
}

#[tokio::test]
async fn a_renewal_does_not_outrun_an_eviction() {
    let world = World::new(&["192.0.2.1:7081".to_owned()]);
    let token = world.token(|_| ());
    let peer = due(names(&world.ask(&Request::Join(request(&token, "osaka/b"))).await.unwrap()));
    // It has a certificate too that this gateway was never told of.
    let old = Peer { key_id: pki::KeyId::of_public_key(b"another"), ..peer.clone() };
    registry::evict(&world.store, &peer.host, now_ms() + 1_000).unwrap();
    for peer in [&peer, &old] {
        let refusal = world.ask_as(Some(peer.clone()), &renewal()).await.expect_err("evicted");
        assert_eq!(refusal.code, RefusalCode::Evicted, "{refusal:?}");
    }
    // Who joins again, even by a clock that is behind, is somebody else, and stays so when renewed.
    let token = world.token(|_| ());
    let again = due(names(&world.ask(&Request::Join(request(&token, "osaka/b"))).await.unwrap()));
    let renewed = names(&world.ask_as(Some(again.clone()), &renewal()).await.unwrap());
    let evicted = registry::evicted(&world.store);
    assert!(evicted.contains(&peer.key_id), "{evicted:?}");
    assert!(!evicted.contains(&again.key_id) && !evicted.contains(&renewed.key_id), "{evicted:?}");
}

#[tokio::test]
async fn an_evicted_host_does_not_come_back_by_a_token_that_it_knows() {
    let world = World::new(&["192.0.2.1:7081".to_owned()]);
    let used = world.token(|ask| ask.uses = 3);
    let other = world.token(|ask| ask.uses = 3);
    let mut of_host = Identity::clone(&world.identity.load());
    of_host.host = host("osaka/b");
    let ask = TokenAsk { dc: None, ttl: HOUR, uses: 1, role: Role::Member };
    let made_there = token::create(&world.store, &of_host, &ask, now_ms()).unwrap();
    world.ask(&Request::Join(request(&used, "osaka/b"))).await.unwrap();
    registry::evict(&world.store, &host("osaka/b"), now_ms()).unwrap();
    for token in [&used, &made_there] {
        for name in ["osaka/b", "osaka/c"] {
            let refusal = refused(&world, request(token, name)).await;
            assert_eq!(refusal.code, RefusalCode::UsedUp);
            assert!(refusal.words.contains("evicted") && refusal.words.contains("kumo token"));
        }
    }
    assert!(world.ask(&Request::Join(request(&other, "osaka/b"))).await.is_ok());
}

#[tokio::test]
async fn those_without_a_certificate_keep_no_host_from_renewing() {
    let world = World::new(&["192.0.2.1:7081".to_owned()]);
    let token = world.token(|_| ());
    let peer = due(names(&world.ask(&Request::Join(request(&token, "osaka/b"))).await.unwrap()));
    let mut silent = Vec::new();
    while world.ask_as(None, b"").await.expect_err("no request").code != RefusalCode::Busy {
        silent.push(world.talk(None).await);
        assert!(silent.len() < 1_000, "there is no limit");
    }
    assert!(world.ask_as(Some(peer.clone()), &renewal()).await.is_ok(), "from the same address");
    registry::evict(&world.store, &peer.host, now_ms()).unwrap();
    let refusal =
        world.ask_as(Some(peer), &renewal()).await.expect_err("evicted, and so a stranger");
    assert_eq!(refusal.code, RefusalCode::Busy);
    drop(silent);
}

/// Serves a desk over TLS, as a gateway does, until the test ends.
fn serve(world: &World, listener: TcpListener) {
    let identity = world.identity.load_full();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca.clone()).unwrap();
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let desk = Arc::clone(&world.desk);
    tokio::spawn(async move {
        while let Ok((stream, from)) = listener.accept().await {
            let (acceptor, desk) = (acceptor.clone(), Arc::clone(&desk));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let shown = stream.get_ref().1.peer_certificates();
                let peer = shown.and_then(|shown| Peer::of(&shown[0]).ok());
                desk.serve(Box::new(stream), peer, from).await;
            });
        }
    });
}

/// A world that listens, after an address at which nobody does.
async fn listening() -> World {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let world = World::new(&[address(&gone), address(&listener)]);
    drop(gone);
    serve(&world, listener);
    world
}

fn join_ask(name: &str, role: Role) -> JoinAsk {
    let HostId { dc, host } = host(name);
    let listen = (role == Role::Gateway).then(|| SocketAddr::from(([127, 0, 0, 1], 7081)));
    JoinAsk {
        dc: Some(dc),
        host,
        role,
        labels: BTreeMap::from([("rack".to_owned(), "3".to_owned())]),
        replace: false,
        listen,
        advertise: listen.iter().map(SocketAddr::to_string).collect(),
        call_listen: None,
        call_advertise: Vec::new(),
    }
}

fn files(world: &World, name: &str) -> PathBuf {
    world.dir.path().join(name)
}

async fn joined(world: &World, token: &Token, name: &str, role: Role) -> Joined {
    let dir = files(world, name.split_once('/').unwrap().1);
    join(token, join_ask(name, role), &dir).await.unwrap()
}

#[tokio::test]
async fn a_host_joins_over_tls_and_its_files_load() {
    let world = listening().await;
    let token = world.token(|ask| (ask.uses, ask.role) = (2, Role::Gateway));
    let member = joined(&world, &token, "osaka/b", Role::Member).await;
    assert_eq!(member.by, host("tokyo/a"));
    assert_eq!(member.tried.len(), 1, "the first address is dead: {:?}", member.tried);
    let loaded = Identity::load(&files(&world, "b")).unwrap().unwrap();
    assert_eq!(format!("{loaded:?}"), format!("{:?}", member.identity));
    assert_eq!(loaded.labels["rack"], "3");
    assert_eq!(loaded.gateways, [world.identity.load().as_gateway().unwrap()]);
    assert!(identity::load_authority(&files(&world, "b")).unwrap().is_none());

    let gateway = joined(&world, &token, "osaka/c", Role::Gateway).await;
    assert_eq!(gateway.identity.role, Role::Gateway);
    let authority = identity::load_authority(&files(&world, "c")).unwrap().expect("a gateway's");
    assert_eq!(authority.hash(), token.ca);

    let again = join(&token, join_ask("osaka/d", Role::Member), &files(&world, "b")).await;
    let again = again.expect_err("it is in a cluster");
    assert!(matches!(again, JoinError::Identity(IdentityError::Member { .. })), "{again:?}");
}

async fn join_error(world: &World, token: &Token, ask: JoinAsk) -> JoinError {
    let dir = files(world, "nobody");
    let error = join(token, ask, &dir).await.expect_err("refused");
    assert!(Identity::load(&dir).unwrap().is_none(), "nothing is left of it");
    error
}

#[tokio::test]
async fn refusals_reach_the_host() {
    let world = listening().await;
    let token = world.token(|ask| ask.dc = Some("osaka".parse().unwrap()));
    let member = |name| join_ask(name, Role::Member);
    let error = join_error(&world, &token, member("tokyo/b")).await;
    assert!(matches!(error, JoinError::Dc { .. }) && error.is_usage(), "{error:?}");
    let error = join_error(&world, &token, join_ask("osaka/b", Role::Gateway)).await;
    assert!(matches!(error, JoinError::Role), "{error:?}");
    let anywhere = Token { dc: None, ..token.clone() };
    let error = join_error(&world, &anywhere, JoinAsk { dc: None, ..member("osaka/b") }).await;
    assert!(matches!(error, JoinError::NoDc), "{error:?}");
    // What the token says about itself is only a help; the gateway knows.
    let error = join_error(&world, &anywhere, member("tokyo/b")).await;
    let JoinError::Refused { by, refusal } = &error else { panic!("{error:?}") };
    assert_eq!((by, refusal.code), (&host("tokyo/a"), RefusalCode::Dc));
    assert!(error.to_string().contains("`osaka`"), "{error}");

    let closed = Token { addresses: vec![token.addresses[0].clone()], ..token.clone() };
    let error = join_error(&world, &closed, member("osaka/b")).await;
    let JoinError::Unreachable { tried, .. } = &error else { panic!("{error:?}") };
    assert_eq!(tried.len(), 1);
    assert!(error.to_string().contains(&token.addresses[0]), "{error}");
}

#[tokio::test]
async fn a_secret_is_told_to_the_pinned_authority_only() {
    let world = listening().await;
    let (same_name, token) = (listening().await, world.token(|_| ()));
    let lured = Token { addresses: same_name.identity.load().advertise.clone(), ..token.clone() };
    let error = join_error(&world, &lured, join_ask("osaka/b", Role::Member)).await;
    assert!(error.to_string().contains("its authority is another"), "{error}");

    // A gateway of another kind: whoever has a hello to show, but not the key.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thief = World::new(std::slice::from_ref(&address));
    let stolen = Identity {
        ca: world.identity.load().ca.clone(),
        ..Identity::clone(&thief.identity.load())
    };
    thief.identity.store(Arc::new(stolen));
    serve(&thief, listener);
    let lured = Token { addresses: vec![address], ..token.clone() };
    let error = join_error(&world, &lured, join_ask("osaka/b", Role::Member)).await;
    assert!(error.to_string().contains("its authority is another"), "{error}");

    // A member's certificate does not make a gateway.
    let member = joined(&world, &token, "osaka/m", Role::Member).await.identity;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    world.identity.store(Arc::new(member));
    serve(&world, listener);
    let lured = Token { addresses: vec![address], ..token };
    let error = join_error(&world, &lured, join_ask("osaka/b", Role::Member)).await;
    assert!(error.to_string().contains("osaka/m, which is no gateway"), "{error}");
}

#[tokio::test]
async fn what_is_no_gateway_is_passed_over() {
    let world = listening().await;
    let mut token = world.token(|_| ());
    // Plain text, and one that accepts and hangs up.
    for greeting in ["HTTP/1.1 400 Bad Request\r\n\r\n", ""] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        token.addresses.insert(0, listener.local_addr().unwrap().to_string());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(greeting.as_bytes()).await.ok();
            }
        });
    }
    let joined = joined(&world, &token, "osaka/b", Role::Member).await;
    assert_eq!(joined.tried.len(), 3, "{:?}", joined.tried);
}

#[tokio::test]
async fn a_member_renews_over_tls_until_it_is_evicted() {
    let world = listening().await;
    let token = world.token(|_| ());
    let fresh = joined(&world, &token, "osaka/b", Role::Member).await.identity;
    let dir = files(&world, "b");
    let error = renew(&fresh, &dir).await.expect_err("not yet");
    let JoinError::Refused { refusal, .. } = &error else { panic!("{error:?}") };
    assert_eq!(refusal.code, RefusalCode::NotYet);
    // The one that it would have if it had joined 25 days ago.
    let authority = identity::load_authority(&files(&world, "a")).unwrap().unwrap();
    let then_ms = now_ms() - 25 * 24 * 3_600_000;
    let old = Identity::issue(&authority, &fresh.host, Role::Member, then_ms).unwrap();
    registry::record(&world.store, &old.peer().unwrap()).unwrap();
    let before = Identity { certificate: old.certificate, key: old.key, ..fresh };
    let renewed = renew(&before, &dir).await.unwrap();
    assert_eq!(renewed.host, before.host);
    assert_ne!(renewed.peer().unwrap().key_id, before.peer().unwrap().key_id);
    let loaded = Identity::load(&dir).unwrap().unwrap();
    assert_eq!(loaded.certificate, renewed.certificate);
    assert_eq!((loaded.labels, loaded.gateways), (before.labels.clone(), before.gateways.clone()));

    registry::evict(&world.store, &before.host, now_ms()).unwrap();
    let error = renew(&renewed, &dir).await.expect_err("evicted");
    let JoinError::Refused { refusal, .. } = &error else { panic!("{error:?}") };
    assert_eq!(refusal.code, RefusalCode::Evicted);
    assert_eq!(Identity::load(&dir).unwrap().unwrap().certificate, renewed.certificate);
}

#[tokio::test]
async fn a_gateway_renews_its_own() {
    let world = World::new(&["192.0.2.1:7081".to_owned()]);
    let before = world.identity.load().peer().unwrap();
    assert!(registry::is_issued(&world.store, &before.key_id), "known from the start");
    let after = world.desk.renew_own().unwrap().peer().unwrap();
    assert_eq!((&after.host, after.role), (&before.host, before.role));
    assert_ne!(after.key_id, before.key_id);
    assert_eq!(world.identity.load().peer().unwrap().key_id, after.key_id);
    let loaded = Identity::load(Path::new(&files(&world, "a"))).unwrap().unwrap();
    assert_eq!(loaded.peer().unwrap().key_id, after.key_id);
    assert!(registry::is_issued(&world.store, &after.key_id));
}
