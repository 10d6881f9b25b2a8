//! Connections: TCP, TLS and Unix sockets, each with its limits.
//!
//! What a client can hold is bounded: the number of connections, the time to say hello (TLS), to
//! send a request, to take the next piece of an answer. At the end connections in the middle of an
//! answer get [`SHUTDOWN_WAIT_MAX`] to finish.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::guard::Via;
use super::problem::chain;
use super::taken;

/// Most connections at once of one listener; more wait in the kernel's queue. An idle one costs
/// some KiB here and a descriptor.
pub const CONNECTIONS_MAX: usize = 2_048;

/// Descriptors that are not for connections: files under `/proc`, listeners, logs.
const DESCRIPTORS_KEPT: u64 = 128;

/// Connections that the kernel keeps for us until we take them.
const BACKLOG: u32 = 4_096;

/// Longest wait for a whole request head, on a new connection and between requests.
pub const REQUEST_WAIT_MAX: Duration = Duration::from_secs(30);

/// Longest TLS handshake.
pub const HANDSHAKE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Longest time that a client may take nothing of an answer.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);

/// Longest time that connections get to finish when the server stops.
pub const SHUTDOWN_WAIT_MAX: Duration = Duration::from_secs(5);

/// Most bytes of a request head; above the largest target that [`super::guard`] accepts.
const REQUEST_HEAD_BYTES_MAX: usize = 128 * 1024;

/// Pause after the kernel had no descriptor or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen: `127.0.0.1:8000`, `[::1]:8000`, `localhost:8000`, or `unix:/path/to/socket`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;
    fn from_str(text: &str) -> Result<Listen, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("`unix:` needs a path behind it".to_owned())
            } else {
                Ok(Listen::Unix(path.into()))
            };
        }
        let port = text.strip_prefix("localhost:");
        let numeric = port.map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
        numeric.parse().map(Listen::Tcp).map_err(|_| {
            format!("`{text}` is no address; write 127.0.0.1:8000, [::1]:8000 or unix:/path")
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An address that others can reach would be served without encryption.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} can be reached from other machines, and without TLS anybody on the way can read and change \
     what is sent; give --tls-cert and --tls-key, listen on 127.0.0.1, or say --insecure"
)]
pub struct Exposed(pub SocketAddr);

/// Refuses to serve an address that others can reach without TLS.
///
/// # Errors
/// See [`Exposed`].
pub fn check_exposure(address: SocketAddr, tls: bool) -> Result<(), Exposed> {
    if tls || address.ip().to_canonical().is_loopback() { Ok(()) } else { Err(Exposed(address)) }
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has the port.
    #[error("{address} is taken{}; stop that, or listen elsewhere with --listen", by(.holder.as_deref()))]
    Taken {
        /// The address.
        address: SocketAddr,
        /// Who listens there, if we may see it.
        holder: Option<String>,
    },
    /// Any other reason.
    #[error("cannot listen on {address}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Another server answers on this socket.
    #[error("another server listens on {}; stop it, or choose another path", .0.display())]
    SocketTaken(PathBuf),
    /// A file that we did not make.
    #[error("{} is there and is no socket; remove it, or choose another path", .0.display())]
    NotSocket(PathBuf),
    /// The path of a Unix socket.
    #[error("cannot listen on socket {}; its path may have at most 107 bytes", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn by(holder: Option<&str>) -> String {
    holder.map(|holder| format!(" by {holder}")).unwrap_or_default()
}

/// A listener, ready to be served.
#[derive(Debug)]
pub struct Bound {
    socket: Socket,
    url: String,
}

enum Socket {
    Tcp(TcpListener, Option<TlsAcceptor>),
    Unix { listener: UnixListener, _file: SocketFile },
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Socket::Tcp(..) => "Tcp",
            Socket::Unix { .. } => "Unix",
        })
    }
}

/// The file of a Unix socket; removed with its owner.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // When it is gone already, that is what we wanted.
        let _ = fs::remove_file(&self.0);
    }
}

impl Bound {
    /// Listens on a TCP address. Call it within a tokio runtime.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn tcp(
        address: SocketAddr,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Result<Bound, BindError> {
        let listen = || -> io::Result<(TcpListener, SocketAddr)> {
            let socket =
                if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let listener = socket.listen(BACKLOG)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, local) = listen().map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => {
                BindError::Taken { address, holder: taken::holder(address) }
            }
            _ => BindError::Address { address, source },
        })?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{local}");
        Ok(Bound { socket: Socket::Tcp(listener, tls.map(TlsAcceptor::from)), url })
    }

    /// Listens on a Unix socket that only its owner may open. A socket that nobody serves any more
    /// is replaced. Call it within a tokio runtime.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn unix(path: &Path) -> Result<Bound, BindError> {
        let failed = |source| BindError::Path { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(BindError::NotSocket(path.to_owned()));
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(BindError::SocketTaken(path.to_owned()));
            }
            _ => {}
        }
        // It gets its mode under another name, so that nobody opens it meanwhile; the rename then
        // replaces what a killed server left.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        let mut file = SocketFile(fresh.clone());
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        fs::rename(&fresh, path).map_err(failed)?;
        path.clone_into(&mut file.0);
        Ok(Bound {
            socket: Socket::Unix { listener, _file: file },
            url: format!("unix:{}", path.display()),
        })
    }

    /// Its address: `http://127.0.0.1:8000`, `https://…` or `unix:/path`. The port is the real one.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Serves until `stop` says so, then lets connections finish for at most [`SHUTDOWN_WAIT_MAX`].
    pub async fn serve(self, app: Router, mut stop: watch::Receiver<bool>) {
        let connections_max = connections_max();
        let places = Arc::new(Semaphore::new(connections_max));
        let serving = Serving { app, stop: stop.clone() };
        tokio::select! {
            () = self.accept(&places, &serving) => {}
            () = stopped(&mut stop) => {}
        }
        // From here on new connections are refused, and the socket's file is gone.
        drop(self);
        let all = places.acquire_many(connections_max as u32);
        if timeout(SHUTDOWN_WAIT_MAX, all).await.is_err() {
            tracing::warn!("some connections did not finish in time and are cut");
        }
    }

    async fn accept(&self, places: &Arc<Semaphore>, serving: &Serving) {
        loop {
            let Ok(place) = Arc::clone(places).acquire_owned().await else { return };
            let accepted = match &self.socket {
                Socket::Tcp(listener, tls) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| serving.clone().start_tcp(stream, tls.clone(), place)),
                Socket::Unix { listener, .. } => listener
                    .accept()
                    .await
                    .map(|(stream, _)| serving.clone().start_unix(stream, place)),
            };
            if let Err(error) = accepted {
                if gone_already(&error) {
                    continue;
                }
                tracing::warn!("cannot accept a connection on {}: {error}", self.url);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether only this one connection failed, before we took it.
fn gone_already(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Raises the limit of open descriptors as far as we may, and says how many connections of one
/// listener fit below it.
fn connections_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = CONNECTIONS_MAX as u64 * 2 + DESCRIPTORS_KEPT;
    let current = limit.current.unwrap_or(u64::MAX);
    let possible = limit.maximum.unwrap_or(u64::MAX).min(wanted);
    let raised = Rlimit { current: Some(possible), maximum: limit.maximum };
    let current = if current < possible && setrlimit(Resource::Nofile, raised).is_ok() {
        possible
    } else {
        current
    };
    let fit = current.saturating_sub(DESCRIPTORS_KEPT) / 2;
    usize::try_from(fit).unwrap_or(usize::MAX).clamp(16, CONNECTIONS_MAX)
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it whoever wanted us to serve.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// What every connection of a listener needs.
#[derive(Clone)]
struct Serving {
    app: Router,
    stop: watch::Receiver<bool>,
}

impl Serving {
    fn start_tcp(self, stream: TcpStream, tls: Option<TlsAcceptor>, place: OwnedSemaphorePermit) {
        // An answer's last packet must not wait for the client's acknowledgement.
        let _ = stream.set_nodelay(true);
        // Without an address of its own the connection is dead already.
        let Ok(local) = stream.local_addr() else { return };
        let via = Via::Tcp { local, tls: tls.is_some() };
        tokio::spawn(async move {
            match tls {
                None => self.run(stream, via).await,
                Some(tls) => match timeout(HANDSHAKE_WAIT_MAX, tls.accept(stream)).await {
                    Ok(Ok(stream)) => self.run(stream, via).await,
                    Ok(Err(error)) => tracing::debug!("a TLS handshake failed: {error}"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                },
            }
            drop(place);
        });
    }

    fn start_unix(self, stream: UnixStream, place: OwnedSemaphorePermit) {
        tokio::spawn(async move {
            self.run(stream, Via::Unix).await;
            drop(place);
        });
    }

    async fn run(mut self, stream: impl AsyncRead + AsyncWrite + Unpin, via: Via) {
        let app = self.app;
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(via);
            app.clone().oneshot(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_WAIT_MAX)
            .max_buf_size(REQUEST_HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(Impatient::new(stream)), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut self.stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!("a connection ended: {}", chain(&error));
        }
    }
}

/// A stream that fails when a write makes no progress for [`WRITE_STALL_MAX`].
struct Impatient<S> {
    stream: S,
    /// Runs out when the present write has stalled too long; made at the first one that waits.
    deadline: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<S> Impatient<S> {
    fn new(stream: S) -> Impatient<S> {
        Impatient { stream, deadline: None, waiting: false }
    }

    fn judge<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.waiting = false;
            return outcome;
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL_MAX)));
        if !self.waiting {
            self.waiting = true;
            deadline.as_mut().reset(Instant::now() + WRITE_STALL_MAX);
        }
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.judge(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(outcome, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(outcome, context)
    }
}

/// Threads where blocking is fine: one for each answer under way, and some for the rest.
const BLOCKING_THREADS_MAX: usize = super::ANSWERS_MAX + 8;

/// A runtime to serve in, with as many threads as there are answers at once and no more.
///
/// # Errors
/// When the system lets us start no threads or open no descriptors.
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name("k2i-serve")
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
}

/// SIGINT and SIGTERM, which end a server instead of its process from now on.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Begins to listen for them. Call it within a tokio runtime.
    ///
    /// # Errors
    /// When the system lets us not.
    pub fn listen() -> io::Result<StopSignals> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        Ok(StopSignals { interrupt, terminate })
    }

    /// Waits for the next one and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |text: &str| Ok(Listen::Tcp(text.parse().expect("an address")));
        let cases = [
            ("127.0.0.1:8000", tcp("127.0.0.1:8000")),
            ("localhost:1", tcp("127.0.0.1:1")),
            ("[::1]:8000", tcp("[::1]:8000")),
            ("unix:/run/x", Ok(Listen::Unix("/run/x".into()))),
            ("unix:", Err(())),
            ("127.0.0.1", Err(())),
            (":8000", Err(())),
            ("localhost:x", Err(())),
            ("example.org:80", Err(())),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<Listen>().map_err(|_| ()), want, "for {text:?}");
        }
    }

    #[test]
    fn exposure() {
        let cases = [
            ("127.0.0.1:1", false, true),
            ("127.8.8.8:1", false, true),
            ("[::1]:1", false, true),
            ("[::ffff:127.0.0.1]:1", false, true),
            ("0.0.0.0:1", false, false),
            ("[::]:1", false, false),
            ("10.0.0.1:1", false, false),
            ("0.0.0.0:1", true, true),
        ];
        for (address, tls, want) in cases {
            let address = address.parse().expect("an address");
            assert_eq!(check_exposure(address, tls).is_ok(), want, "for {address} with {tls}");
        }
    }
}
