//! Links over real sockets: who gets in, who does not, and how they end.

mod link_support;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use kumo_abi::cluster::{LinkReport, Role};
use kumo_fabric::identity::Identity;
use kumo_fabric::join::{BoxedStream, JoinDesk};
use kumo_fabric::link::{How, LinkError, Links};
use kumo_fabric::pki::{NODE_MS, Peer};
use link_support::{
    DAY_MS, Host, authority, connect_from, identity, identity_at, is_over, knowing, log, now_ms,
    pair, passes, soon, stranger, until,
};
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const FABRIC: &str = "kumo-fabric/1";
const JOIN: &str = "kumo-join/1";

/// One of the addresses of the loopback: what is said about one is not said again for a while.
fn from(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

/// Bytes without a pattern, by xorshift.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_both_ways_at_once() {
    let (_, gateway, member) = pair().await;
    let (near, far) = member.link_to(&gateway).await;
    let sent = noise(1 << 20);
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let mut there = vec![0; sent.len()];
    let mut back = vec![0; sent.len()];
    soon("a MiB each way", async {
        let all = tokio::try_join!(
            near_write.write_all(&sent),
            far_write.write_all(&sent),
            async { far_read.read_exact(&mut there).await.map(|_| ()) },
            async { near_read.read_exact(&mut back).await.map(|_| ()) },
        );
        all.expect("it is open");
    })
    .await;
    assert!(there == sent && back == sent, "what arrives is what was sent");
    let only = |reports: Vec<LinkReport>| {
        assert_eq!(reports.len(), 1, "{reports:?}");
        reports.into_iter().next().expect("one")
    };
    let (ours, theirs) = (only(member.links.reports()), only(gateway.links.reports()));
    assert_eq!((ours.peer.to_string().as_str(), ours.role), ("tokyo/gw", Role::Gateway));
    assert_eq!((theirs.peer.to_string().as_str(), theirs.role), ("tokyo/a", Role::Member));
    assert_eq!((ours.dialed, theirs.dialed), (true, false));
    assert_eq!(ours.address, gateway.address().to_string());
    assert!(ours.rtt_us > 0 && theirs.rtt_us > 0, "TCP measured the handshake");
    // Bytes may arrive before they are counted.
    let counted = |host: &Host| {
        let report = only(host.links.reports());
        (report.received_bytes, report.sent_bytes) == (1 << 20, 1 << 20)
    };
    until("all bytes are counted", || counted(&member) && counted(&gateway)).await;
}

/// What the holder of `who` reads from the gateway before the end, and the error that ends it.
async fn refused(
    gateway: &Host,
    address: IpAddr,
    who: Option<&Identity>,
    protocols: &[&str],
) -> String {
    let tcp = connect_from(address, gateway.address()).await;
    let outcome = soon("a handshake", stranger(tcp, who, protocols, &[&TLS13])).await;
    let mut stream = match outcome {
        Ok(stream) => stream,
        Err(error) => return error.to_string(),
    };
    let mut heard = Vec::new();
    let read = soon("the refusal", stream.read_to_end(&mut heard)).await;
    assert_eq!(heard, b"", "nothing is said to who is refused");
    read.map_or_else(|error| error.to_string(), |_| "closed".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_belong_is_refused_and_told_why() {
    let ours = authority("acme");
    let gateway = Host::open(identity(&ours, "tokyo/gw", Role::Gateway)).await;
    let member = |authority, at_ms| Some(identity_at(authority, "tokyo/a", Role::Member, at_ms));
    let evicted = identity(&ours, "tokyo/evil", Role::Member);
    gateway.links.set_evicted(BTreeSet::from([evicted.peer().expect("a node").key_id]));
    let (beta, fake) = (authority("beta"), authority("acme"));
    let now = now_ms();
    let fabric: &[&str] = &[FABRIC];
    #[rustfmt::skip]
    let cases = [
        (2, member(&beta, now), fabric, "UnknownCA", "was refused: its certificate is of cluster `beta`, and this is `acme`"),
        (3, member(&fake, now), fabric, "UnknownCA", "was refused: its certificate names cluster `acme`, but was not issued by its authority"),
        (4, None, fabric, "CertificateRequired", "was refused: it does not speak the protocol of this port (peer sent no certificates)"),
        (5, member(&ours, now - NODE_MS - DAY_MS), fabric, "CertificateExpired", "was refused: the certificate of `tokyo/a` expired 86"),
        (6, member(&ours, now + 3 * DAY_MS), fabric, "CertificateExpired", "was refused: the certificate of `tokyo/a` begins in 172"),
        (7, Some(evicted), fabric, "CertificateRevoked", "was refused: `tokyo/evil` was evicted from the cluster with this key"),
        (8, member(&ours, now), &["http/1.1"], "NoApplicationProtocol", "was refused: it does not speak the protocol of this port"),
        (9, member(&ours, now), &[], "closed", "was refused: it does not speak the protocol of this port (it named no protocol)"),
        (10, None, &[JOIN], "closed", "was refused: it wants to join, and this host lets nobody in"),
    ];
    for (last, who, protocols, told, said) in cases {
        let heard = refused(&gateway, from(last), who.as_ref(), protocols).await;
        assert!(heard.contains(told), "127.0.0.{last} heard `{heard}`, not `{told}`");
        let line = format!("127.0.0.{last} {said}");
        until(&line, || log().contains(&line)).await;
    }
    assert!(gateway.links.reports().is_empty());
    let listener = gateway.listener.as_ref().expect("a gateway");
    let nobody = tokio::time::timeout(std::time::Duration::ZERO, listener.accept()).await;
    assert!(nobody.is_err(), "the control plane heard of none of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_tls_of_today_is_refused() {
    let (authority, gateway, member) = pair().await;
    let mut plain = connect_from(from(20), gateway.address()).await;
    plain.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("it is open");
    let mut heard = Vec::new();
    let _ = soon("the end", plain.read_to_end(&mut heard)).await;
    assert!(heard.len() <= 7, "an alert of TLS at most, and not {heard:?}");
    let line = "127.0.0.20 was refused: it does not speak the protocol of this port";
    until(line, || log().contains(line)).await;
    let tcp = connect_from(from(21), gateway.address()).await;
    let who = identity(&authority, "tokyo/old", Role::Member);
    let old = soon("a handshake", stranger(tcp, Some(&who), &[FABRIC], &[&TLS12])).await;
    assert!(old.is_err(), "TLS 1.2 is over");
    let (mut near, mut far) = member.link_to(&gateway).await;
    passes(&mut near, &mut far).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_not_the_one_that_was_dialed_is_refused() {
    let ours = authority("acme");
    let gateway = Host::open(identity(&ours, "tokyo/gw", Role::Gateway)).await;
    let beta = Host::open(identity(&authority("beta"), "tokyo/gw-beta", Role::Gateway)).await;
    let mut listening = identity(&ours, "tokyo/listens", Role::Member);
    listening.listen = Some(SocketAddr::new(from(1), 0));
    let listening = Host::open(listening).await;
    #[rustfmt::skip]
    let cases = [
        ("tokyo/wanted", &gateway, "its certificate is that of `tokyo/gw`, and `tokyo/wanted` was dialed", "refused this host: it looked for another host"),
        ("tokyo/gw-beta", &beta, "its certificate is of cluster `beta`, and this is `acme`", "refused this host: this host's certificate is not of its cluster"),
        ("tokyo/listens", &listening, "`tokyo/listens` is no gateway by its certificate", "refused this host: it looked for another host, or for a gateway"),
    ];
    for (name, found, said, theirs) in cases {
        let dialing = identity(&ours, "osaka/b", Role::Member);
        let mut dialing = Host::open(knowing(dialing, name, found.address())).await;
        let mut near = dialing.dial().await;
        let _ = near.write_all(b"a secret").await; // It may be refused before that.
        is_over(&mut near).await;
        let address = found.address();
        let line = format!("cannot reach the gateway {name}: {address} was refused: {said}");
        until(&line, || log().contains(&line)).await;
        until(theirs, || log().contains(theirs)).await;
        assert!(dialing.ends.try_recv().is_err(), "there was no link, and no death");
        assert!(found.links.reports().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_key_is_cut_and_stays_out() {
    let (authority, mut gateway, mut member) = pair().await;
    let other = identity(&authority, "tokyo/b", Role::Member);
    let other = Host::open(knowing(other, "tokyo/gw", gateway.address())).await;
    let (mut near, mut far) = member.link_to(&gateway).await;
    passes(&mut near, &mut far).await;
    let (mut other_near, mut other_far) = other.link_to(&gateway).await;
    passes(&mut other_near, &mut other_far).await;
    let reports = gateway.links.reports();
    assert_eq!(reports.len(), 2, "{reports:?}");
    let key_id = Peer::of(&member.certificate).expect("a node").key_id;
    gateway.links.set_evicted(BTreeSet::from([key_id]));
    let _ = near.write_all(b"too late").await;
    is_over(&mut far).await;
    is_over(&mut near).await;
    let end = gateway.end().await;
    assert_eq!((end.peer.to_string().as_str(), end.how), ("tokyo/a", How::Evicted));
    assert_eq!(member.end().await.peer.to_string(), "tokyo/gw");
    is_over(&mut member.dial().await).await;
    let line = "refused this host: this host was evicted from the cluster";
    until(line, || log().contains(line)).await;
    passes(&mut other_near, &mut other_far).await;
    assert_eq!(gateway.links.reports().len(), 1, "the other host stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_are_told_truthfully() {
    let (authority, mut gateway, mut member) = pair().await;
    // A process that dies says no good-bye.
    let who = identity(&authority, "tokyo/c", Role::Member);
    let tcp = connect_from(from(30), gateway.address()).await;
    let mut dying = stranger(tcp, Some(&who), &[FABRIC], &[&TLS13]).await.expect("it belongs");
    assert_eq!(dying.read_u8().await.expect("a welcome"), 0);
    let mut far = gateway.accepted().await;
    drop(dying);
    is_over(&mut far).await;
    assert_eq!(gateway.end().await.how, How::ByPeer);
    // One that resets does not either.
    let tcp = connect_from(from(30), gateway.address()).await;
    rustix::net::sockopt::set_socket_linger(&tcp, Some(std::time::Duration::ZERO)).expect("TCP");
    let mut dying = stranger(tcp, Some(&who), &[FABRIC], &[&TLS13]).await.expect("it belongs");
    assert_eq!(dying.read_u8().await.expect("a welcome"), 0);
    let mut far = gateway.accepted().await;
    drop(dying);
    is_over(&mut far).await;
    assert_eq!(gateway.end().await.how, How::ByPeer);
    // Who closes says so, and the other end knows that it lives.
    let (near, mut far) = member.link_to(&gateway).await;
    passes(&mut far, &mut { near }).await;
    is_over(&mut far).await;
    assert_eq!((member.end().await.how, gateway.end().await.how), (How::ByUs, How::Closed));
    let (mut near, far) = member.link_to(&gateway).await;
    drop(far);
    is_over(&mut near).await;
    assert_eq!((member.end().await.how, gateway.end().await.how), (How::Closed, How::ByUs));
    // A node that stops says good-bye too, and then nobody listens.
    let (mut near, mut far) = member.link_to(&gateway).await;
    passes(&mut near, &mut far).await;
    let address = gateway.address();
    gateway.links.close().await;
    is_over(&mut near).await;
    assert_eq!(member.end().await.how, How::Closed);
    assert!(TcpStream::connect(address).await.is_err(), "the port is free");
    is_over(&mut member.dial().await).await;
    let end = member.end().await;
    assert_eq!((end.peer.to_string().as_str(), end.role), ("tokyo/gw", Role::Gateway));
    assert_eq!(end.how, How::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_ends_when_the_certificate_expires() {
    let (authority, mut gateway, _) = pair().await;
    // On a busy host the handshake may take longer than the certificate lives: then one that lives
    // longer is tried.
    for left_ms in [2_000, 4_000, 8_000, 16_000] {
        let at_ms = now_ms() - NODE_MS + left_ms;
        let who = identity_at(&authority, "tokyo/c", Role::Member, at_ms);
        let tcp = connect_from(from(40), gateway.address()).await;
        let Ok(mut stream) = stranger(tcp, Some(&who), &[FABRIC], &[&TLS13]).await else {
            continue;
        };
        let Ok(0) = stream.read_u8().await else { continue };
        let mut far = gateway.accepted().await;
        is_over(&mut far).await;
        assert!(now_ms() + 1_000 > at_ms + NODE_MS, "it ended before its time");
        assert_eq!(gateway.end().await.how, How::Expired);
        return;
    }
    panic!("no handshake within 16 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_handshakes_do_not_keep_others_out() {
    let (_, gateway, member) = pair().await;
    let mut silent = Vec::new();
    // More than one address may have: some are refused, or make room for others.
    for turn in 0..300_u32 {
        let mut tcp = connect_from(from(50), gateway.address()).await;
        if turn % 2 == 0 {
            let _ = tcp.write_all(&[0x16, 0x03]).await; // The first bytes of a handshake.
        }
        silent.push(tcp);
    }
    let (mut near, mut far) = member.link_to(&gateway).await;
    passes(&mut near, &mut far).await;
    // They are closed in time, all of them.
    for mut tcp in silent {
        let _ = soon("the end of a silent one", tcp.read_to_end(&mut Vec::new())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_rotate_and_gateways_come_and_go() {
    let (authority, gateway, member) = pair().await;
    let (mut near, mut far) = member.link_to(&gateway).await;
    let shown = async || {
        let tcp = connect_from(from(60), gateway.address()).await;
        let stream = stranger(tcp, None, &[JOIN], &[&TLS13]).await.expect("it may ask");
        let (_, tls) = stream.get_ref();
        tls.peer_certificates().expect("a certificate")[0].clone().into_owned()
    };
    let renewed = identity(&authority, "tokyo/gw", Role::Gateway);
    assert_ne!(shown().await, renewed.certificate);
    gateway.links.set_identity(Arc::new(renewed.clone())).expect("it is good");
    assert_eq!(shown().await, renewed.certificate);
    passes(&mut near, &mut far).await;
    // The member learns of a second gateway, and forgets the first.
    let second = Host::open(identity(&authority, "osaka/gw", Role::Gateway)).await;
    let mut knows = identity(&authority, "tokyo/a", Role::Member);
    knows = knowing(knows, "osaka/gw", second.address());
    let both = knowing(knows.clone(), "tokyo/gw", gateway.address());
    let door = member.links.zenoh_connect();
    assert_eq!(door.len(), 1, "whichever gateway there is");
    member.links.set_identity(Arc::new(both)).expect("it is good");
    assert_eq!(member.links.zenoh_connect(), door);
    // That of its own data centre is asked first.
    let (mut near_1, mut far_1) = member.link_to(&gateway).await;
    passes(&mut near_1, &mut far_1).await;
    member.links.set_identity(Arc::new(knows)).expect("it is good");
    let (mut near_2, mut far_2) = member.link_to(&second).await;
    passes(&mut near_2, &mut far_2).await;
    passes(&mut near, &mut far).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_address_is_tried() {
    let authority = authority("acme");
    let gateway = Host::open(identity(&authority, "tokyo/gw", Role::Gateway)).await;
    // One that accepts and says nothing of TLS, one where nobody listens, one that is no address.
    let mute = TcpListener::bind((from(1), 0)).await.expect("a free port");
    let mute_address = mute.local_addr().expect("bound");
    let closes = tokio::spawn(async move {
        while let Ok((tcp, _)) = mute.accept().await {
            drop(tcp);
        }
    });
    let free = TcpListener::bind((from(1), 0)).await.expect("a free port");
    let free_address = free.local_addr().expect("bound");
    drop(free);
    let member = identity(&authority, "tokyo/a", Role::Member);
    let mut member = knowing(member, "tokyo/gw", free_address);
    member.gateways[0].addresses.extend([
        mute_address.to_string(),
        "no-such-host.invalid:1".to_owned(),
        format!("localhost:{}", gateway.address().port()),
    ]);
    let member = Host::open(member).await;
    let (mut near, mut far) = member.link_to(&gateway).await;
    passes(&mut near, &mut far).await;
    closes.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_control_plane_does_not_listen_says_so() {
    let (_, mut gateway, mut member) = pair().await;
    gateway.listener = None;
    is_over(&mut member.dial().await).await;
    let line = "is still starting, or stopping";
    until(line, || log().contains(line)).await;
    assert!(member.ends.try_recv().is_err(), "there was no link, and no death");
}

/// Says who comes.
struct Porter;

impl JoinDesk for Porter {
    fn serve<'a>(
        &'a self,
        mut stream: BoxedStream,
        peer: Option<Peer>,
        _: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            let who = peer.map_or("a stranger".to_owned(), |peer| peer.host.to_string());
            stream.write_all(who.as_bytes()).await.expect("it is open");
            stream.shutdown().await.expect("it is open");
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_certificate_is_sent_to_the_desk() {
    let authority = authority("acme");
    let gateway = identity(&authority, "tokyo/gw", Role::Gateway);
    let gateway = Host::with_desk(gateway, Some(Arc::new(Porter))).await;
    let known = identity(&authority, "tokyo/a", Role::Member);
    for (who, want) in [(None, "a stranger"), (Some(&known), "tokyo/a")] {
        let tcp = connect_from(from(70), gateway.address()).await;
        let mut stream = stranger(tcp, who, &[JOIN], &[&TLS13]).await.expect("it may ask");
        let mut heard = String::new();
        soon("an answer", stream.read_to_string(&mut heard)).await.expect("a good-bye");
        assert_eq!(heard, want);
    }
    let evicted = BTreeSet::from([known.peer().expect("a node").key_id]);
    gateway.links.set_evicted(evicted);
    let told = refused(&gateway, from(71), Some(&known), &[JOIN]).await;
    assert!(told.contains("CertificateRevoked"), "{told}");
    assert!(gateway.links.reports().is_empty(), "none of them is a link");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_private_and_what_a_killed_node_left_is_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = dir.path().join("fabric");
    fs::create_dir(&run).expect("a new directory");
    for name in ["z", "g0", "g17"] {
        drop(StdUnixListener::bind(run.join(name)).expect("a new socket"));
    }
    fs::write(run.join("g99"), "no socket").expect("a new file");
    let authority = authority("acme");
    let gateway = identity(&authority, "tokyo/gw", Role::Gateway);
    let gateway = knowing(gateway, "osaka/gw", SocketAddr::new(from(1), 9));
    let gateway = knowing(gateway, "tokyo/gw", SocketAddr::new(from(1), 9));
    let links = Links::open(Arc::new(gateway), &run, None).await.expect("links");
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    let doors = links.zenoh_connect();
    assert_eq!(doors[0], run.join("g0"), "it does not dial itself");
    assert!(doors.len() > 1, "some are for gateways that become known later");
    assert_eq!((mode(&run), mode(&doors[0])), (0o700, 0o600));
    assert!(!run.join("g17").exists() && !run.join("z").exists() && run.join("g99").exists());
    drop(links);
    assert!(!run.join("g0").exists());
    let long = dir.path().join("x".repeat(120));
    let member = identity(&authority, "tokyo/a", Role::Member);
    let error = Links::open(Arc::new(member), &long, None).await.expect_err("sun_path is full");
    assert!(matches!(error, LinkError::DirTooLong { .. }), "{error:?}");
    assert!(error.to_string().contains("--run-dir"), "{error}");
}
