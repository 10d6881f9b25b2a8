//! Links that other hosts open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::gate::Pass;
use super::socket::Tcp;
use super::tls::{ALPN_FABRIC, HandshakeError, explained, peer_of, why};
use super::{HANDSHAKE_MAX, Shared, Welcome, run};
use crate::join::{ALPN_JOIN, EXCHANGE_TIME_MAX};
use crate::pki::Peer;

/// After the kernel could not give us a connection (no descriptors are left), the next is asked for
/// so much later.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Accepts for ever.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => begin(&shared, stream, from),
            Err(error) => {
                shared.say("accept", format_args!("no connection can be accepted: {error}"));
                sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// Begins a handshake, if there is room for it.
fn begin(shared: &Arc<Shared>, stream: TcpStream, from: SocketAddr) {
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    let Some(half_open) = shared.gate.admit(from.ip()) else {
        let whom = from.ip();
        shared.say(&whom.to_string(), format_args!("{whom} was refused: too many handshakes"));
        return;
    };
    let ticket = half_open.ticket();
    if let Some(task) = shared.spawn(serve(Arc::clone(shared), stream, from, half_open)) {
        shared.gate.runs(ticket, task);
    }
}

/// One connection, from its first byte to its end.
async fn serve(shared: Arc<Shared>, stream: TcpStream, from: SocketAddr, half_open: Pass) {
    let Ok(tcp) = Tcp::new(stream) else { return }; // It is gone already.
    let opening = timeout(HANDSHAKE_MAX, open(&shared, tcp.clone(), from));
    let Some(opened) = shared.unless_closing(opening).await else { return };
    let opened = opened.unwrap_or(Err((HandshakeError::Slow(HANDSHAKE_MAX), None)));
    match opened {
        Ok(Opened::Link { peer, mut stream, local }) => {
            match shared.register(peer, false, from, tcp) {
                Ok(registered) => {
                    drop(half_open); // From here the limit of links holds.
                    // What follows shows whether that arrived.
                    let _ = stream.write_u8(Welcome::Come.code()).await;
                    let _ = stream.flush().await;
                    run(registered, stream, local).await;
                }
                Err(why) => turn_away(stream, why).await,
            }
        }
        Ok(Opened::NotReady { stream }) => turn_away(stream, Welcome::NotReady).await,
        Ok(Opened::Join { peer, stream }) => {
            drop(half_open); // From here the limit of joins holds.
            join(&shared, peer, stream, from).await;
        }
        Err((error, tcp)) => {
            let whom = from.ip();
            // Who just looks whether a port is open is worth no warning.
            if let HandshakeError::Broken(_) = error {
                tracing::debug!("{whom} {error}");
            } else {
                shared.say(&whom.to_string(), format_args!("{whom} {error}"));
            }
            if let Some(tcp) = tcp {
                shared.unless_closing(tcp.close_refused()).await;
            }
        }
    }
}

/// What a finished handshake was for.
enum Opened {
    /// A link, and the control plane waits for it.
    Link { peer: Peer, stream: TlsStream<Tcp>, local: UnixStream },
    /// A link, but the control plane does not listen yet.
    NotReady { stream: TlsStream<Tcp> },
    /// A certificate.
    Join { peer: Option<Peer>, stream: TlsStream<Tcp> },
}

async fn open(
    shared: &Shared,
    tcp: Tcp,
    from: SocketAddr,
) -> Result<Opened, (HandshakeError, Option<Tcp>)> {
    let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), tcp);
    let start = match (&mut acceptor).await {
        Ok(start) => start,
        Err(error) => return Err((why(error), acceptor.take_io())),
    };
    let config = {
        let hello = start.client_hello();
        let offered: Vec<&[u8]> = hello.alpn().into_iter().flatten().collect();
        shared.setup().server(&offered)
    };
    let stream = explained(start.into_stream(config).into_fallible()).await;
    let stream = stream.map_err(|(error, tcp)| (error, Some(tcp)))?;
    let (_, tls) = stream.get_ref();
    let peer = peer_of(tls.peer_certificates());
    match (tls.alpn_protocol(), peer) {
        (Some(ALPN_FABRIC), Some(peer)) => {
            let Some(path) = &shared.local else { return Ok(Opened::NotReady { stream }) };
            match UnixStream::connect(path).await {
                Ok(local) => Ok(Opened::Link { peer, stream, local }),
                Err(error) => {
                    tracing::debug!("{from} came too early or too late: {error}");
                    Ok(Opened::NotReady { stream })
                }
            }
        }
        (Some(ALPN_JOIN), peer) => Ok(Opened::Join { peer, stream }),
        // TLS lets those pass who name no protocol at all.
        _ => {
            let (tcp, _) = stream.into_inner();
            Err((HandshakeError::Protocol("it named no protocol".to_owned()), Some(tcp)))
        }
    }
}

/// Closes a link that cannot be used, and says why.
async fn turn_away(mut stream: TlsStream<Tcp>, why: Welcome) {
    let say = async {
        stream.write_u8(why.code()).await?;
        stream.shutdown().await
    };
    let _ = timeout(HANDSHAKE_MAX, say).await; // It is turned away in any case.
    stream.into_inner().0.close_refused().await;
}

async fn join(shared: &Arc<Shared>, peer: Option<Peer>, stream: TlsStream<Tcp>, from: SocketAddr) {
    let whom = from.ip();
    let Some(desk) = &shared.desk else {
        shared.say(
            &whom.to_string(),
            format_args!("{whom} was refused: it wants to join, and this host lets nobody in"),
        );
        return;
    };
    let places = if peer.is_some() { &shared.renewals } else { &shared.joins };
    let Ok(_place) = places.try_acquire() else {
        shared.say(&whom.to_string(), format_args!("{whom} was refused: too many join at once"));
        return;
    };
    let serving = timeout(EXCHANGE_TIME_MAX, desk.serve(Box::new(stream), peer, from));
    let _ = shared.unless_closing(serving).await; // The desk has said what was to be said.
}
