//! Links that this host opens: who connects to one of its local sockets reaches the gateway behind it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use kumo_pki::trust::Wanted;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::socket::Tcp;
use super::tls::{ALPN_FABRIC, HandshakeError, Setup, explained, peer_of, why};
use super::{HANDSHAKE_MAX, How, LinkEnd, Shared, Welcome, Whom, is_gone, lock, run};
use crate::pki::Peer;

/// How long a connection may take: three round trips around the world, and one lost packet.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// When an address has not answered for so long, the next one is tried beside it.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(300);

/// When a gateway has not answered for so long, the next one is tried beside it.
const NEXT_GATEWAY_AFTER: Duration = Duration::from_millis(250);

/// Of two gateways without a link the one that comes first in their order dials at once, and the other
/// after so long: else each would take its own for the one to keep.
const YIELD_TIME: Duration = Duration::from_millis(500);

/// Who waits for the end of another link looks so often whether its local side still wants one.
const WAIT_LOOK: Duration = Duration::from_millis(250);

/// And so often where there is no gateway yet.
const SPARE_LOOK: Duration = Duration::from_secs(2);

/// Dials of one gateway at once; more wait. The control plane makes one at a time.
const DIALS_MAX: usize = 4;

/// Names that are looked up at once, over all gateways. A look-up occupies a thread for as long as the
/// name service pleases.
pub(crate) const LOOKUPS_MAX: usize = 8;

/// Who asks after a gateway does so a few times, for its kernel may be in the middle of ending it; a connection
/// that stays open for so long belongs to somebody who lives, and between two that were cut it rests.
const ASKS_MAX: usize = 5;
const ASK_TIME: Duration = Duration::from_millis(100);
const ASK_REST: Duration = Duration::from_millis(5);

/// After the kernel could not give us a connection, the next is asked for so much later.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Takes the connections to a local socket for ever.
pub(super) async fn door(shared: Arc<Shared>, whom: Whom, listener: UnixListener) {
    let dials = Arc::new(Semaphore::new(DIALS_MAX));
    while let Ok(dial) = Arc::clone(&dials).acquire_owned().await {
        match listener.accept().await {
            Ok((local, _)) => {
                shared.spawn(link(Arc::clone(&shared), whom.clone(), local, dial));
            }
            Err(error) => {
                shared.say("door", format_args!("no local connection can be accepted: {error}"));
                sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// One connection, from the dial to its end.
async fn link(shared: Arc<Shared>, whom: Whom, local: UnixStream, dialing: OwnedSemaphorePermit) {
    let dialed = async {
        match &whom {
            Whom::Any => dial_any(&shared).await,
            Whom::One(behind) => {
                let gateway = is_turn(&shared, behind.clone(), &local).await?;
                let said = dial(&shared, &gateway).await;
                tell_failures(&shared, &gateway, said.as_ref().err());
                said.ok()
            }
        }
    };
    let dialed = shared.unless_closing(dialed).await;
    drop(dialing);
    let Some(Some(dialed)) = dialed else { return };
    let Dialed { peer, address, tcp, .. } = &dialed;
    match shared.register(peer.clone(), true, *address, tcp.clone()) {
        Ok(registered) => run(registered, dialed.stream, local).await,
        Err(why) => {
            tracing::debug!("the link to {} is not used: {why:?}", peer.host);
            dialed.close().await;
        }
    }
}

/// Waits until there is a gateway behind the socket, and no link with it that the other side keeps up;
/// then says which. `None` when the local side does not want a link any more.
async fn is_turn(
    shared: &Arc<Shared>,
    mut behind: watch::Receiver<Option<HostId>>,
    local: &UnixStream,
) -> Option<HostId> {
    let mut changes = shared.changes.subscribe();
    let me = shared.setup().identity.host.clone();
    let mut dials_at: Option<Instant> = None;
    loop {
        let gateway = behind.borrow_and_update().clone();
        if is_gone(local) {
            return None;
        }
        let now = Instant::now();
        let wait = match gateway {
            None => {
                dials_at = None;
                SPARE_LOOK
            }
            // Who has kept it up shall do so again, if it can: it dials at once then.
            Some(gateway) if shared.is_linked(&gateway) => {
                dials_at = None;
                WAIT_LOOK
            }
            Some(gateway) => {
                let yields = if me > gateway { YIELD_TIME } else { Duration::ZERO };
                let at = *dials_at.get_or_insert(now + yields.max(shared.rest(&gateway)));
                if at <= now {
                    return Some(gateway);
                }
                at - now
            }
        };
        tokio::select! {
            changed = changes.changed() => changed.ok()?,
            changed = behind.changed() => changed.ok()?,
            () = sleep(wait) => {}
        }
    }
}

/// Dials the gateways in the order of this host, the next one when one failed or keeps us waiting.
/// Whichever welcomes us first is taken.
async fn dial_any(shared: &Arc<Shared>) -> Option<Dialed> {
    let mut gateways = order(shared).into_iter();
    let mut dials = JoinSet::new();
    let mut next = gateways.next();
    let mut next_at = Instant::now();
    loop {
        tokio::select! {
            biased;
            Some(dialed) = dials.join_next() => {
                // A task of ours that panicked has said so.
                let Ok((gateway, said)) = dialed else { continue };
                let said: Result<Dialed, Vec<Failure>> = said;
                tell_failures(shared, &gateway, said.as_ref().err());
                if let Ok(dialed) = said {
                    // The others are let finish: a link that ends in the middle looks like a death.
                    shared.spawn(async move {
                        while let Some(late) = dials.join_next().await {
                            if let Ok((_, Ok(late))) = late {
                                late.close().await;
                            }
                        }
                    });
                    return Some(dialed);
                }
                next_at = Instant::now();
            }
            () = sleep_until(next_at), if next.is_some() => {
                let Some(gateway) = next.take() else { continue };
                let shared = Arc::clone(shared);
                dials.spawn(async move {
                    let said = dial(&shared, &gateway).await;
                    (gateway, said)
                });
                next = gateways.next();
                next_at = Instant::now() + NEXT_GATEWAY_AFTER;
            }
            else => return None,
        }
    }
}

/// Whether a gateway welcomes us now; the link is closed at once.
pub(super) async fn answers(shared: &Arc<Shared>, gateway: &HostId) -> bool {
    match dial(shared, gateway).await {
        Ok(dialed) => {
            dialed.close().await;
            true
        }
        Err(_) => false,
    }
}

/// Finds out whether anybody listens where a gateway was whose kernel has just ended our link. A member
/// cannot tell its gateway's death from having been evicted by it, and is without a session at the very
/// moment in which others publish the obituary: so it looks for itself, and a port that refuses is proof.
pub(super) async fn ask_after(shared: &Arc<Shared>, gateway: &HostId) {
    let setup = shared.setup();
    let known = setup.identity.gateways.iter().find(|known| known.host == *gateway);
    let addresses = known.map(|known| known.addresses.clone()).unwrap_or_default();
    for _ in 0..ASKS_MAX {
        let mut failures = Vec::new();
        for address in addresses.clone() {
            match connect(&shared.lookups, address.clone()).await {
                // A kernel that ends a process may close its links before its port: then this one is cut, too.
                Ok((mut stream, _)) => match timeout(ASK_TIME, stream.read_u8()).await {
                    Ok(_) => break,
                    Err(_) => return,
                },
                Err(why) => failures.push(Failure { address, why }),
            }
        }
        if failures.len() == addresses.len() {
            tell_refusal(shared, gateway, &failures);
            return;
        }
        sleep(ASK_REST).await;
    }
}

/// The gateways in the order in which this host tries them: those of its own data centre first, the one
/// that was lost last among them, and else each host has an order of its own, so that members are spread
/// over gateways.
fn order(shared: &Shared) -> Vec<HostId> {
    let setup = shared.setup();
    let me = &setup.identity.host;
    let lost = lock(&shared.lost).clone();
    let place = |gateway: &HostId| {
        let mut hasher = DefaultHasher::new();
        (me, gateway).hash(&mut hasher);
        (gateway.dc != me.dc, lost.as_ref() == Some(gateway), hasher.finish())
    };
    let others = setup.identity.gateways.iter().map(|known| &known.host);
    let mut gateways: Vec<HostId> = others.filter(|host| *host != me).cloned().collect();
    gateways.sort_by_key(place);
    gateways
}

/// Says why a gateway could not be dialed, and tells when nothing listens there.
fn tell_failures(shared: &Shared, gateway: &HostId, failures: Option<&Vec<Failure>>) {
    let whom = format!("gateway {gateway}");
    let Some(failures) = failures else {
        shared.forget_said(&whom);
        lock(&shared.unreached).remove(gateway);
        return;
    };
    let words: Vec<String> = failures.iter().map(ToString::to_string).collect();
    let words = words.join("; ");
    shared.say(&whom, format_args!("cannot reach the {whom}: {words}"));
    lock(&shared.unreached).insert(gateway.clone(), words);
    tell_refusal(shared, gateway, failures);
}

/// Tells when nothing listens where a gateway was.
fn tell_refusal(shared: &Shared, gateway: &HostId, failures: &[Failure]) {
    // All of them: a firewall before one address says nothing about the host.
    if !failures.is_empty() && failures.iter().all(Failure::is_refused) {
        let end = LinkEnd { peer: gateway.clone(), role: Role::Gateway, how: How::Refused };
        shared.tell(end);
    }
}

/// An open link, welcomed by the host at its other end.
pub(crate) struct Dialed {
    pub(crate) peer: Peer,
    pub(crate) address: SocketAddr,
    pub(crate) tcp: Tcp,
    pub(crate) stream: TlsStream<Tcp>,
}

impl Dialed {
    /// Closes what is not needed with a good-bye: without one it would look like a death of this host.
    pub(crate) async fn close(mut self) {
        // Whether it arrives: it has a second.
        let _ = timeout(CONNECT_MAX, self.stream.shutdown()).await;
    }
}

/// What came of one address.
#[derive(Debug, thiserror::Error)]
#[error("{address} {why}")]
pub(crate) struct Failure {
    address: String,
    why: DialError,
}

impl Failure {
    /// Whether a kernel answered that nobody listens there.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(&self.why, DialError::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("has no address that can be found: {0}")]
    Lookup(io::Error),
    #[error("cannot be connected to: {0}")]
    Connect(io::Error),
    #[error("did not answer within {} s", CONNECT_MAX.as_secs())]
    Silent,
    #[error("{0}")]
    Handshake(HandshakeError),
    #[error("has no room for more links")]
    Busy,
    #[error("is still starting, or stopping")]
    NotReady,
    #[error("cannot be dialed with this host's certificate: {0}")]
    Setup(rustls::Error),
}

/// Dials a gateway.
///
/// # Errors
/// What came of each address. None at all when the gateway is not known any more.
async fn dial(shared: &Arc<Shared>, gateway: &HostId) -> Result<Dialed, Vec<Failure>> {
    let setup = shared.setup();
    let known = setup.identity.gateways.iter().find(|known| known.host == *gateway);
    let addresses = known.map(|known| known.addresses.clone()).unwrap_or_default();
    open(&setup, &shared.lookups, addresses, &Wanted::Gateway(gateway.clone()), ALPN_FABRIC).await
}

/// Tries the addresses of a host in their order, the next one when one failed or keeps us waiting.
///
/// # Errors
/// What came of each address.
pub(crate) async fn open(
    setup: &Setup,
    lookups: &Arc<Semaphore>,
    addresses: Vec<String>,
    wanted: &Wanted,
    alpn: &'static [u8],
) -> Result<Dialed, Vec<Failure>> {
    let mut addresses = addresses.into_iter();
    let mut failures = Vec::new();
    let mut connects = JoinSet::new();
    let mut next_at = Instant::now();
    let mut next = addresses.next();
    loop {
        tokio::select! {
            biased;
            Some(connected) = connects.join_next() => {
                // A task of ours that panicked has said so.
                let Ok((address, connected)) = connected else { continue };
                let why = match connected {
                    Ok((tcp, at)) => match shake(setup, wanted, alpn, tcp, at).await {
                        Ok(dialed) => return Ok(dialed),
                        Err(why) => why,
                    },
                    Err(why) => why,
                };
                failures.push(Failure { address, why });
                next_at = Instant::now();
            }
            () = sleep_until(next_at), if next.is_some() => {
                let Some(address) = next.take() else { continue };
                let lookups = Arc::clone(lookups);
                connects.spawn(async move {
                    let connected = connect(&lookups, address.clone()).await;
                    (address, connected)
                });
                next = addresses.next();
                next_at = Instant::now() + NEXT_ADDRESS_AFTER;
            }
            else => return Err(failures),
        }
    }
}

/// Connects to an address, or to the first that a name stands for.
///
/// # Errors
/// What came of it, within [`CONNECT_MAX`].
pub(crate) async fn connect(
    lookups: &Arc<Semaphore>,
    address: String,
) -> Result<(TcpStream, SocketAddr), DialError> {
    let connecting = async {
        let found = match address.parse() {
            Ok(address) => vec![address],
            Err(_) => look_up(lookups, address).await.map_err(DialError::Lookup)?,
        };
        let mut last = io::ErrorKind::NotFound.into();
        for address in found {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok((stream, address)),
                Err(error) => last = error,
            }
        }
        Err(DialError::Connect(last))
    };
    timeout(CONNECT_MAX, connecting).await.unwrap_or(Err(DialError::Silent))
}

async fn look_up(lookups: &Arc<Semaphore>, address: String) -> io::Result<Vec<SocketAddr>> {
    let place = Arc::clone(lookups).acquire_owned().await.map_err(io::Error::other)?;
    let look = spawn_blocking(move || {
        let _place = place; // Held until the name service has answered, also when nobody waits.
        address.to_socket_addrs().map(Iterator::collect)
    });
    look.await.map_err(io::Error::other)?
}

async fn shake(
    setup: &Setup,
    wanted: &Wanted,
    alpn: &'static [u8],
    stream: TcpStream,
    address: SocketAddr,
) -> Result<Dialed, DialError> {
    let shaking = timeout(HANDSHAKE_MAX, async {
        let tcp = Tcp::new(stream).map_err(DialError::Connect)?;
        let config = setup.client(wanted.clone(), alpn).map_err(DialError::Setup)?;
        let name = ServerName::from(address.ip());
        let connecting = TlsConnector::from(config).connect(name, tcp.clone()).into_fallible();
        let stream = match explained(connecting).await {
            Ok(stream) => stream,
            Err((error, tcp)) => {
                tokio::spawn(tcp.close_refused()); // Bounded, and nobody waits for it.
                return Err(DialError::Handshake(error));
            }
        };
        welcomed(stream, alpn, tcp, address).await
    });
    shaking.await.unwrap_or(Err(DialError::Handshake(HandshakeError::Slow(HANDSHAKE_MAX))))
}

/// Waits until the other side lets us begin. Only here it turns out that it does not accept our
/// certificate: in TLS 1.3 the side that dials is done first.
async fn welcomed(
    mut stream: TlsStream<Tcp>,
    alpn: &[u8],
    tcp: Tcp,
    address: SocketAddr,
) -> Result<Dialed, DialError> {
    let (_, tls) = stream.get_ref();
    let other = || {
        let words = "it named no protocol, or another".to_owned();
        DialError::Handshake(HandshakeError::Protocol(words))
    };
    if tls.alpn_protocol() != Some(alpn) {
        return Err(other());
    }
    let peer = peer_of(tls.peer_certificates()).ok_or_else(other)?;
    let code = stream.read_u8().await.map_err(|error| DialError::Handshake(why(error)))?;
    match Welcome::of_code(code) {
        Some(Welcome::Come) => Ok(Dialed { peer, address, tcp, stream }),
        Some(Welcome::Busy) => Err(DialError::Busy),
        Some(Welcome::NotReady) => Err(DialError::NotReady),
        None => Err(other()),
    }
}
