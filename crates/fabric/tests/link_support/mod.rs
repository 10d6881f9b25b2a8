//! Hosts of a cluster in one process, real TCP and Unix sockets between them, and strangers.
#![allow(dead_code)] // Each test file uses its part.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use kumo_fabric::identity::{Gateway, Identity};
use kumo_fabric::join::JoinDesk;
use kumo_fabric::link::{LinkEnd, Links};
use kumo_fabric::pki::{Authority, new_request};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What is waited for comes long before, unless it does not come at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const DAY_MS: u64 = 24 * 3600 * 1000;

pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_millis().try_into().expect("before the year 500 million")
}

/// Waits until `check` is true.
pub(crate) async fn until(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}; the log is\n{}", log());
        sleep(Duration::from_millis(10)).await;
    }
}

/// What comes of `work`, within reason.
pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}; the log is\n{}", log()))
}

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct LogWriter;

impl io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All that was logged in this process.
pub(crate) fn log() -> String {
    String::from_utf8_lossy(&LOG.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

fn watch_log() {
    static WATCHED: OnceLock<()> = OnceLock::new();
    WATCHED.get_or_init(|| {
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(|| LogWriter);
        log.with_env_filter("warn,kumo_fabric=debug").init();
    });
}

pub(crate) fn authority(cluster: &str) -> Authority {
    Authority::create(&cluster.parse().expect("a name"), now_ms()).expect("randomness")
}

/// An identity whose certificate was made at `at_ms`.
pub(crate) fn identity_at(authority: &Authority, host: &str, role: Role, at_ms: u64) -> Identity {
    let host: HostId = host.parse().expect("a name");
    let (key, csr) = new_request().expect("randomness");
    Identity {
        cluster: authority.cluster().clone(),
        ca: authority.certificate().clone(),
        certificate: authority.issue(&csr, &host, role, at_ms).expect("a good request"),
        key,
        listen: (role == Role::Gateway).then(|| SocketAddr::from(([127, 0, 0, 1], 0))),
        advertise: Vec::new(),
        call_listen: None,
        call_advertise: Vec::new(),
        gateways: Vec::new(),
        labels: BTreeMap::new(),
        host,
        role,
    }
}

pub(crate) fn identity(authority: &Authority, host: &str, role: Role) -> Identity {
    identity_at(authority, host, role, now_ms())
}

/// `identity`, which knows `host` at `address`.
pub(crate) fn knowing(mut identity: Identity, host: &str, address: SocketAddr) -> Identity {
    let host = host.parse().expect("a name");
    identity.gateways.push(Gateway { host, addresses: vec![address.to_string()] });
    identity
}

/// A host with links, and its control plane: sockets.
pub(crate) struct Host {
    pub(crate) links: Links,
    pub(crate) ends: broadcast::Receiver<LinkEnd>,
    /// Where its control plane listens.
    pub(crate) listener: Option<UnixListener>,
    /// What it shows others.
    pub(crate) certificate: CertificateDer<'static>,
    dir: TempDir,
}

impl Host {
    pub(crate) async fn open(identity: Identity) -> Host {
        Host::with_desk(identity, None).await
    }

    pub(crate) async fn with_desk(identity: Identity, desk: Option<Arc<dyn JoinDesk>>) -> Host {
        watch_log();
        let dir = tempfile::tempdir().expect("a directory");
        let certificate = identity.certificate.clone();
        let links = Links::open(Arc::new(identity), dir.path(), desk).await.expect("links");
        let bind = |path| UnixListener::bind(path).expect("the directory is there");
        let listener = links.zenoh_listen().map(bind);
        Host { ends: links.ends(), links, listener, certificate, dir }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.links.local_addr().expect("it listens")
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// The local end of the next link that somebody opens.
    pub(crate) async fn accepted(&self) -> UnixStream {
        let listener = self.listener.as_ref().expect("it listens");
        soon("a link that is accepted", listener.accept()).await.expect("a working socket").0
    }

    /// The local end of a new link to the first gateway.
    pub(crate) async fn dial(&self) -> UnixStream {
        let door = self.links.zenoh_connect().into_iter().next().expect("a gateway");
        UnixStream::connect(door).await.expect("it listens")
    }

    /// Both ends of a new link to `gateway`.
    pub(crate) async fn link_to(&self, gateway: &Host) -> (UnixStream, UnixStream) {
        let near = self.dial().await;
        (near, gateway.accepted().await)
    }

    pub(crate) async fn end(&mut self) -> LinkEnd {
        soon("the end of a link", self.ends.recv()).await.expect("the links are open")
    }
}

/// A gateway `tokyo/gw` and a member `tokyo/a` that knows it, of the cluster `acme`.
pub(crate) async fn pair() -> (Authority, Host, Host) {
    let authority = authority("acme");
    let gateway = Host::open(identity(&authority, "tokyo/gw", Role::Gateway)).await;
    let member = identity(&authority, "tokyo/a", Role::Member);
    let member = Host::open(knowing(member, "tokyo/gw", gateway.address())).await;
    (authority, gateway, member)
}

/// Bytes go from `near` to `far`.
pub(crate) async fn passes(near: &mut UnixStream, far: &mut UnixStream) {
    near.write_all(b"are you there?").await.expect("it is open");
    let mut heard = [0; 14];
    soon("bytes", far.read_exact(&mut heard)).await.expect("it is open");
    assert_eq!(&heard, b"are you there?");
}

/// Nothing comes from `stream` any more, and nothing came since.
pub(crate) async fn is_over(stream: &mut UnixStream) {
    let mut rest = Vec::new();
    // A reset says the same as an end.
    let _ = soon("the end of a local connection", stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}

#[derive(Debug)]
struct BelievesAll;

impl ServerCertVerifier for BelievesAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A TCP connection from one of the addresses of the loopback.
pub(crate) async fn connect_from(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("descriptors are left");
    socket.bind(SocketAddr::new(from, 0)).expect("an address of the loopback");
    socket.connect(to).await.expect("it listens")
}

/// TLS over `tcp` by somebody who believes every server, with the certificate of `who`, or none.
pub(crate) async fn stranger(
    tcp: TcpStream,
    who: Option<&Identity>,
    protocols: &[&str],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> io::Result<TlsStream<TcpStream>> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("TLS")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BelievesAll));
    let mut config = match who {
        Some(who) => config
            .with_client_auth_cert(vec![who.certificate.clone()], who.key.clone_key())
            .expect("a pair"),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("somebody.invalid").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

/// Descriptors that this process has open.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc is mounted").count()
}
