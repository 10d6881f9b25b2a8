//! The side of hosts that want to join, and of nodes that want a new certificate.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use kumo_abi::cluster::Role;
use kumo_abi::{ClusterName, DcName, HostId, HostName};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::desk::clock_words;
use super::{
    ALPN_JOIN, BoxedStream, EXCHANGE_TIME_MAX, Grant, Hello, JoinRequest, REPLY_BYTES_MAX, Refusal,
    RefusalCode, RenewRequest, Reply, Request, VERSION, read_message, wall_ms, write_message,
};
use crate::clock::AHEAD_MS_MAX;
use crate::identity::{
    GATEWAYS_MAX, Gateway, Identity, IdentityError, check_address, save_certificate,
};
use crate::pki::{self, Authority, AuthorityError, Peer, PeerError, sha256};
use crate::token::Token;

/// How long one address may take to be connected, TLS included. Around the world and back four times
/// takes a second.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);

/// How often all addresses are tried, if all that is wrong is that gateways are busy or have not heard
/// of the token yet.
const ROUNDS_MAX: u32 = 4;

/// Pause between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(500);

/// What a host wants to be.
#[derive(Clone, Debug)]
pub struct JoinAsk {
    /// Its data centre; `None` for that of the token.
    pub dc: Option<DcName>,
    /// Its name there.
    pub host: HostName,
    /// What it is to the others.
    pub role: Role,
    /// What its owner says about it.
    pub labels: BTreeMap<String, String>,
    /// Whether it takes the place of a host of that name which is known and not alive.
    pub replace: bool,
    /// Where it will listen, if it is a gateway.
    pub listen: Option<SocketAddr>,
    /// Where others will reach it, if it is a gateway.
    pub advertise: Vec<String>,
    /// Where it will listen for calls, if it does.
    pub call_listen: Option<SocketAddr>,
    /// Where others will reach it for calls.
    pub call_advertise: Vec<String>,
}

/// How joining went.
#[derive(Debug)]
pub struct Joined {
    /// What the host is now; it is in its files.
    pub identity: Identity,
    /// The gateway that let it in.
    pub by: HostId,
    /// Addresses that were tried before, and what was wrong there.
    pub tried: Vec<Try>,
}

/// An address that did not let us in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    /// The address.
    pub address: String,
    /// What was wrong, in words that may be those of the other side.
    pub why: String,
}

impl fmt::Display for Try {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.address, self.why)
    }
}

/// Why a host did not join, or did not get a new certificate. Its files are as they were.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Its own files.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Neither the token nor the person says which.
    #[error("the token is for any data centre; say which this is with --dc")]
    NoDc,
    /// The token says another.
    #[error("the token is for the data centre `{token}`, not for `{asked}`")]
    Dc {
        /// That of the token.
        token: DcName,
        /// What was asked for.
        asked: DcName,
    },
    /// The token makes no gateways.
    #[error("the token is for members; make one for gateways with `kumo token --gateway`")]
    Role,
    /// The clocks are too far apart; nothing was asked for.
    #[error("{}", clock_words(*ahead_ms, by))]
    Clock {
        /// The gateway.
        by: HostId,
        /// How far our clock is ahead of its.
        ahead_ms: i64,
    },
    /// A gateway refused.
    #[error("{by} refused: {}", .refusal.words)]
    Refused {
        /// The gateway.
        by: HostId,
        /// Why.
        refusal: Refusal,
    },
    /// No gateway could be talked to.
    #[error("no gateway of `{cluster}` could be reached ({})", list(tried))]
    Unreachable {
        /// The cluster.
        cluster: ClusterName,
        /// Every address that was tried.
        tried: Vec<Try>,
    },
    /// A key could not be made.
    #[error("cannot make a key")]
    Make(#[from] AuthorityError),
    /// TLS does not take our certificate.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

fn list(tried: &[Try]) -> String {
    let mut texts: Vec<String> = tried.iter().map(Try::to_string).collect();
    texts.dedup();
    if texts.is_empty() { "none is known".to_owned() } else { texts.join("; ") }
}

impl JoinError {
    /// Whether the arguments were wrong, rather than the world.
    pub fn is_usage(&self) -> bool {
        matches!(self, JoinError::NoDc | JoinError::Dc { .. } | JoinError::Role)
    }
}

/// Why one gateway gave nothing. Others may.
#[derive(Debug, thiserror::Error)]
enum TalkError {
    #[error("it has no such address")]
    NoAddress,
    #[error("{0}")]
    Io(io::Error),
    #[error("it did not answer in {} s", .0.as_secs())]
    Silent(Duration),
    #[error("its TLS ends the handshake: {0}")]
    Tls(io::Error),
    #[error(
        "what listens there is no gateway: it does not speak `{}`",
        String::from_utf8_lossy(ALPN_JOIN)
    )]
    Protocol,
    #[error("it broke off, or what it says is not understood: {0}")]
    Message(String),
    #[error("it speaks version {0} of joining, and this kumo speaks {VERSION}")]
    Version(u32),
    #[error("it is not of the cluster: its authority is another")]
    Authority,
    #[error("its certificate is not good: {0}")]
    Peer(#[from] PeerError),
    #[error("it is {0}, which is no gateway")]
    Member(HostId),
    #[error("its certificate is good from {from} to {to}, and the clock of this host says {now}: set it", from = day(*.0), to = day(*.1), now = day(*.2))]
    Time(u64, u64, u64),
    #[error("what it granted is not what was asked for: {0}")]
    Grant(&'static str),
    /// Final, unless it is of this gateway alone.
    #[error("{}", .1.words)]
    Refused(HostId, Refusal),
    /// Final.
    #[error("{}", clock_words(*.1, .0))]
    Clock(HostId, i64),
}

fn day(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    match time::OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(time) => format!("{} {:02}:{:02} UTC", time.date(), time.hour(), time.minute()),
        Err(_) => "the end of time".to_owned(),
    }
}

/// Whom a gateway must be certified by.
#[derive(Clone, Debug)]
enum Trust {
    /// By an authority with a certificate of this hash.
    Pinned([u8; 32]),
    /// By this authority.
    Known(CertificateDer<'static>),
}

/// A gateway that has shown who it is.
struct Talk {
    stream: BoxedStream,
    peer: Peer,
    hello: Hello,
    ca: CertificateDer<'static>,
}

/// Joins the cluster of `token`: asks its addresses in their order, and writes what was granted to
/// `dir`, where no identity may be.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(token: &Token, ask: JoinAsk, dir: &Path) -> Result<Joined, JoinError> {
    join_and_tell(token, ask, dir, &mut |_| ()).await
}

/// As [`join`], and calls `tell` with each address before it is tried.
///
/// # Errors
/// See [`JoinError`].
pub async fn join_and_tell(
    token: &Token,
    ask: JoinAsk,
    dir: &Path,
    tell: &mut (dyn FnMut(&str) + Send),
) -> Result<Joined, JoinError> {
    if let Some(Identity { host, cluster, .. }) = Identity::load(dir)? {
        return Err(IdentityError::Member { host, cluster }.into());
    }
    let dc = match (&token.dc, &ask.dc) {
        (Some(token), Some(asked)) if token != asked => {
            return Err(JoinError::Dc { token: token.clone(), asked: asked.clone() });
        }
        (Some(dc), _) | (None, Some(dc)) => dc.clone(),
        (None, None) => return Err(JoinError::NoDc),
    };
    if ask.role == Role::Gateway && token.role != Role::Gateway {
        return Err(JoinError::Role);
    }
    let host = HostId { dc, host: ask.host.clone() };
    let (key, csr) = pki::new_request()?;
    let request = JoinRequest {
        cluster: token.cluster.clone(),
        token: token.id.clone(),
        secret: token.secret.clone(),
        host: host.clone(),
        role: ask.role,
        replace: ask.replace,
        csr: BASE64.encode(&csr),
        now_ms: 0,
    };
    let tls = tls(None)?;
    let trust = Trust::Pinned(token.ca);
    let ask_one = async |address: String| {
        let talk = connect(&address, &tls, &trust, &token.cluster).await?;
        let (by, ca) = (talk.peer.host.clone(), talk.ca.clone());
        // The clock is read for each: a round of dead addresses takes a while.
        let request = Request::Join(JoinRequest { now_ms: wall_ms(), ..request.clone() });
        let grant = ask_for(talk, &request).await?;
        let (identity, authority) = accept(grant, &host, ask.role, &token.cluster, &ca, &key)?;
        Ok((identity, authority, by))
    };
    let (done, tried) = ask_all(&token.addresses, &token.cluster, ask_one, tell).await?;
    let (identity, authority, by) = done;
    let identity = Identity {
        listen: ask.listen,
        advertise: ask.advertise,
        call_listen: ask.call_listen,
        call_advertise: ask.call_advertise,
        labels: ask.labels,
        ..identity
    };
    identity.save(dir, authority.as_ref())?;
    Ok(Joined { identity, by, tried })
}

/// Gets a new certificate for a new key from a gateway, in place of that of `identity`, and writes both
/// to `dir`. The other gateways learn of it from the desired state.
///
/// # Errors
/// See [`JoinError`].
pub async fn renew(identity: &Identity, dir: &Path) -> Result<Identity, JoinError> {
    let (key, csr) = pki::new_request()?;
    let request = Request::Renew(RenewRequest { csr: BASE64.encode(&csr) });
    let tls = tls(Some(identity))?;
    let trust = Trust::Known(identity.ca.clone());
    let (host, role) = (&identity.host, identity.role);
    // Those of our own data centre are nearest.
    let near = |gateway: &&Gateway| gateway.host.dc == host.dc;
    let (mut first, second): (Vec<_>, Vec<_>) = identity.gateways.iter().partition(near);
    first.extend(second);
    let addresses: Vec<String> =
        first.into_iter().flat_map(|gateway| gateway.addresses.clone()).collect();
    let ask_one = async |address: String| {
        let talk = connect(&address, &tls, &trust, &identity.cluster).await?;
        let grant = ask_for(talk, &request).await?;
        Ok(accept(grant, host, role, &identity.cluster, &identity.ca, &key)?.0)
    };
    let (renewed, _) = ask_all(&addresses, &identity.cluster, ask_one, &mut |_| ()).await?;
    save_certificate(dir, &renewed.certificate, &renewed.key)?;
    Ok(Identity { certificate: renewed.certificate, key: renewed.key, ..identity.clone() })
}

/// Asks one address after the other until one grants, or refuses for all.
async fn ask_all<T>(
    addresses: &[String],
    cluster: &ClusterName,
    ask_one: impl AsyncFn(String) -> Result<T, TalkError>,
    tell: &mut (dyn FnMut(&str) + Send),
) -> Result<(T, Vec<Try>), JoinError> {
    let mut tried = Vec::new();
    for round in 1.. {
        let mut refused = None;
        for address in addresses {
            tell(address);
            let error = match ask_one(address.clone()).await {
                Ok(granted) => return Ok((granted, tried)),
                Err(error) => error,
            };
            let why = error.to_string();
            match error {
                TalkError::Clock(by, ahead_ms) => return Err(JoinError::Clock { by, ahead_ms }),
                TalkError::Refused(by, refusal) if !refusal.code.is_of_this_gateway() => {
                    return Err(JoinError::Refused { by, refusal });
                }
                TalkError::Refused(by, refusal) => refused = Some((by, refusal)),
                _ => {}
            }
            tried.push(Try { address: address.clone(), why });
        }
        // What goes by itself in a moment.
        let soon = |code| matches!(code, RefusalCode::Busy | RefusalCode::UnknownToken);
        match refused {
            Some((_, refusal)) if soon(refusal.code) && round < ROUNDS_MAX => {}
            Some((by, refusal)) => return Err(JoinError::Refused { by, refusal }),
            None => break,
        }
        sleep(ROUND_PAUSE).await;
    }
    Err(JoinError::Unreachable { cluster: cluster.clone(), tried })
}

/// Connects to a gateway and checks who it is.
async fn connect(
    address: &str,
    tls: &TlsConnector,
    trust: &Trust,
    cluster: &ClusterName,
) -> Result<Talk, TalkError> {
    let deadline = Instant::now() + CONNECT_TIME_MAX;
    let silent = |_| TalkError::Silent(CONNECT_TIME_MAX);
    let found = timeout_at(deadline, lookup_host(address)).await.map_err(silent)?;
    let mut found: Vec<SocketAddr> = found.map_err(TalkError::Io)?.collect();
    found.dedup();
    let stream = timeout_at(deadline, connect_any(&found)).await.map_err(silent)??;
    // That it stays as it is costs a round trip, and is no reason to give up.
    stream.set_nodelay(true).ok();
    // The name is not what is checked: the certificate names a host of the cluster.
    let name = ServerName::try_from("gateway.kumo").expect("a DNS name");
    let stream = timeout_at(deadline, tls.connect(name, stream)).await.map_err(silent)?;
    let stream = stream.map_err(TalkError::Tls)?;
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(ALPN_JOIN) {
        return Err(TalkError::Protocol);
    }
    let shown = session.peer_certificates().and_then(|shown| shown.first());
    let shown = shown.ok_or(TalkError::Authority)?.clone().into_owned();
    greet(Box::new(stream), &shown, trust, cluster, wall_ms()).await
}

async fn connect_any(addresses: &[SocketAddr]) -> Result<TcpStream, TalkError> {
    let mut failed = TalkError::NoAddress;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = TalkError::Io(error),
        }
    }
    Err(failed)
}

/// Hears who is at the other end, and checks it against what was `shown` in TLS: the certificate whose
/// key the other end has.
async fn greet(
    mut stream: BoxedStream,
    shown: &CertificateDer<'_>,
    trust: &Trust,
    cluster: &ClusterName,
    now_ms: u64,
) -> Result<Talk, TalkError> {
    let hearing = timeout(EXCHANGE_TIME_MAX, read_message::<Hello>(&mut stream, REPLY_BYTES_MAX));
    let hello = hearing.await.map_err(|_| TalkError::Silent(EXCHANGE_TIME_MAX))?;
    let hello = hello.map_err(|error| TalkError::Message(error.to_string()))?;
    if hello.version != VERSION {
        return Err(TalkError::Version(hello.version));
    }
    let ca = BASE64.decode(hello.ca.as_bytes()).map_err(|_| TalkError::Authority)?;
    let ca = CertificateDer::from(ca);
    let is_ours = match trust {
        Trust::Pinned(hash) => sha256(&ca) == *hash,
        Trust::Known(known) => ca == *known,
    };
    let names_us = pki::cluster_of(&ca).is_ok_and(|name| name == *cluster);
    if !is_ours || !names_us || !pki::is_signed_by(shown, &ca) {
        return Err(TalkError::Authority);
    }
    let peer = Peer::of(shown)?;
    if peer.cluster != *cluster {
        return Err(TalkError::Authority);
    }
    if peer.role != Role::Gateway {
        return Err(TalkError::Member(peer.host));
    }
    if !(peer.not_before_ms..=peer.not_after_ms).contains(&now_ms) {
        return Err(TalkError::Time(peer.not_before_ms, peer.not_after_ms, now_ms));
    }
    Ok(Talk { stream, peer, hello, ca })
}

/// Asks for one thing.
async fn ask_for(mut talk: Talk, request: &Request) -> Result<Grant, TalkError> {
    let by = talk.peer.host.clone();
    if let Request::Join(join) = request {
        let ahead_ms = join.now_ms.wrapping_sub(talk.hello.now_ms).cast_signed();
        if ahead_ms.unsigned_abs() > AHEAD_MS_MAX {
            return Err(TalkError::Clock(by, ahead_ms));
        }
    }
    let asking = async {
        write_message(&mut talk.stream, request).await.map_err(TalkError::Io)?;
        let reply = read_message::<Reply>(&mut talk.stream, REPLY_BYTES_MAX).await;
        reply.map_err(|error| TalkError::Message(error.to_string()))
    };
    match timeout(EXCHANGE_TIME_MAX, asking).await {
        Ok(Ok(Reply::Granted(grant))) => Ok(grant),
        Ok(Ok(Reply::Refused(refusal))) => {
            Err(TalkError::Refused(by, Refusal::new(refusal.code, refusal.words)))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(TalkError::Silent(EXCHANGE_TIME_MAX)),
    }
}

/// Checks that what was granted is what was asked for.
fn accept(
    grant: Grant,
    host: &HostId,
    role: Role,
    cluster: &ClusterName,
    ca: &CertificateDer<'static>,
    key: &PrivateKeyDer<'static>,
) -> Result<(Identity, Option<Authority>), TalkError> {
    let der = |text: &str| {
        BASE64.decode(text.as_bytes()).map_err(|_| TalkError::Grant("it is no base64"))
    };
    let certificate = CertificateDer::from(der(&grant.certificate)?);
    let peer = Peer::of(&certificate)?;
    if (&peer.cluster, &peer.host, peer.role) != (cluster, host, role) {
        return Err(TalkError::Grant("the certificate has other names"));
    }
    if !pki::is_signed_by(&certificate, ca) || !pki::is_pair(&certificate, key) {
        return Err(TalkError::Grant(
            "the certificate is not for our key, or of another authority",
        ));
    }
    let authority = match &grant.authority_key {
        Some(text) if role == Role::Gateway => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der(text)?));
            let authority = Authority::load(ca.clone(), &key);
            Some(authority.map_err(|_| TalkError::Grant("the authority's key is another"))?)
        }
        _ => None,
    };
    let listens = |address: &String| check_address(address).is_ok();
    // The one that answers, and those that it knows.
    if grant.gateways.len() > GATEWAYS_MAX + 1
        || !grant.gateways.iter().flat_map(|gateway| &gateway.addresses).all(listens)
    {
        return Err(TalkError::Grant("its gateways are too many, or have addresses that are none"));
    }
    let others = grant.gateways.into_iter().filter(|gateway| gateway.host != *host);
    let identity = Identity {
        cluster: cluster.clone(),
        host: host.clone(),
        role,
        ca: ca.clone(),
        certificate,
        key: key.clone_key(),
        listen: None,
        advertise: Vec::new(),
        call_listen: None,
        call_advertise: Vec::new(),
        gateways: others.collect(),
        labels: BTreeMap::new(),
    };
    Ok((identity, authority))
}

fn tls(identity: Option<&Identity>) -> Result<TlsConnector, JoinError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(JoinError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Later { provider }));
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(identity) => {
            let chain = vec![identity.certificate.clone()];
            config.with_client_auth_cert(chain, identity.key.clone_key()).map_err(JoinError::Tls)?
        }
    };
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes any certificate whose key the other end has: who that is, is checked by [`greet`] before
/// anything is said, when the authority's certificate is known, of which a token has only the hash.
#[derive(Debug)]
struct Later {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Later {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
