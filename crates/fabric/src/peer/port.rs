//! The call port: what comes in, and what its first byte says that it is.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::tickets::{PREFACE, PREFACE_BYTES, Ticket};
use super::{Shared, link};
use crate::link::gate::Pass;
use crate::link::socket::{self, Tcp};
use crate::link::tls::{ALPN_PEER, HandshakeError, explained, peer_of};
use crate::link::{HANDSHAKE_MAX, Welcome, lock};

/// The first byte of TLS: a record of a handshake.
const TLS_FIRST: u8 = 0x16;

/// How long a preface may take: one round trip, on a network that loses a packet.
const PREFACE_MAX: Duration = Duration::from_secs(2);

/// After the kernel could not give us a connection, the next is asked for so much later.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// # Errors
/// What the system says of the address.
pub(super) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Accepts for ever.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => begin(&shared, stream, from),
            Err(error) => {
                shared.say("accept", format_args!("no call can be accepted: {error}"));
                sleep(ACCEPT_REST).await;
            }
        }
    }
}

fn begin(shared: &Arc<Shared>, stream: TcpStream, from: SocketAddr) {
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    let Some(pass) = shared.gate.admit(from.ip()) else {
        let whom = from.ip();
        shared.say(&whom.to_string(), format_args!("{whom} was refused: too many connections"));
        return;
    };
    let (ticket, serving) = (pass.ticket(), Arc::clone(shared));
    let task = async move {
        serving.unless_closing(serve(&serving, stream, from, pass)).await;
    };
    if let Some(task) = shared.spawn(task) {
        shared.gate.runs(ticket, task);
    }
}

/// One connection, until it is somebody's.
async fn serve(shared: &Arc<Shared>, stream: TcpStream, from: SocketAddr, pass: Pass) {
    let mut first = [0];
    let first = match timeout(HANDSHAKE_MAX, stream.peek(&mut first)).await {
        Ok(Ok(1)) => first[0],
        // Who just looks whether a port is open is worth no warning.
        _ => return,
    };
    if first == TLS_FIRST {
        peer(shared, stream, from, pass).await;
    } else if first == PREFACE[0] {
        data(shared, stream, from).await;
    } else {
        let whom = from.ip();
        shared.say(
            &whom.to_string(),
            format_args!("{whom} was refused: it does not speak the protocol of calls"),
        );
    }
}

/// Hands a data connection to who waits for it. Nothing behind the preface is read.
async fn data(shared: &Shared, mut stream: TcpStream, from: SocketAddr) {
    let mut preface = [0; PREFACE_BYTES];
    let read = timeout(PREFACE_MAX, stream.read_exact(&mut preface)).await;
    let ticket = match read {
        Ok(Ok(_)) => Ticket::of_preface(&preface),
        _ => None,
    };
    let waiter = ticket.and_then(|ticket| lock(&shared.tickets).take(ticket, shared.now_ms()));
    let Some(waiter) = waiter else {
        tracing::debug!("{from} was refused: its ticket is none, or was used, or is too old");
        return;
    };
    if socket::prepare(&stream).is_ok() {
        // Who waited may have given up; then the connection ends.
        let _ = waiter.send(stream);
    }
}

/// A link that another host opens.
async fn peer(shared: &Arc<Shared>, stream: TcpStream, from: SocketAddr, pass: Pass) {
    let Ok(tcp) = Tcp::new(stream) else { return }; // It is gone already.
    let config = Arc::clone(&shared.setup.load().peer);
    let accepting = TlsAcceptor::from(config).accept(tcp.clone()).into_fallible();
    let shaken = timeout(HANDSHAKE_MAX, explained(accepting)).await;
    let mut stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, tcp))) => {
            refuse(shared, from, &error);
            tcp.close_refused().await;
            return;
        }
        Err(_) => return refuse(shared, from, &HandshakeError::Slow(HANDSHAKE_MAX)),
    };
    let (_, tls) = stream.get_ref();
    let (alpn, peer) = (tls.alpn_protocol(), peer_of(tls.peer_certificates()));
    // TLS lets those pass who name no protocol at all.
    let (Some(ALPN_PEER), Some(peer)) = (alpn, peer) else {
        refuse(shared, from, &HandshakeError::Protocol("it named no protocol".to_owned()));
        return tcp.close_refused().await;
    };
    let welcome = shared.register(peer, false, from, &tcp);
    drop(pass); // From here the limit of links holds.
    let code = welcome.as_ref().err().copied().unwrap_or(Welcome::Come).code();
    let said = async {
        stream.write_u8(code).await?;
        stream.flush().await
    };
    let said = timeout(HANDSHAKE_MAX, said).await;
    let Ok(running) = welcome else {
        let _ = stream.shutdown().await;
        return tcp.close_refused().await;
    };
    if !matches!(said, Ok(Ok(()))) {
        return running.end(shared);
    }
    link::move_and_run(shared, running, stream, |stream| stream.get_mut().0);
}

fn refuse(shared: &Shared, from: SocketAddr, error: &HandshakeError) {
    let whom = from.ip();
    // Who just looks whether a port is open is worth no warning.
    if let HandshakeError::Broken(_) = error {
        tracing::debug!("{whom} {error}");
    } else {
        shared.say(&whom.to_string(), format_args!("{whom} {error}"));
    }
}
