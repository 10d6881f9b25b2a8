//! Connections: TCP, TLS and Unix sockets, each with its limits.
//!
//! What a client can hold is bounded: the number of connections, the time to say hello (TLS), to
//! send a request, to take the next piece of an answer, to take all of it. At the end connections in
//! the middle of an answer get [`SHUTDOWN_WAIT_MAX`] to finish.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kumo_abi::chain;
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::access::Peer;
use super::certificate::Presented;
use super::guard::Via;
use super::stream::{Endless, Stopping};
use super::taken;
use crate::engine::Engine;

/// Most connections at once of one listener; more wait in the kernel's queue. An idle one costs
/// some KiB here and a descriptor.
pub const CONNECTIONS_MAX: usize = 2_048;

/// Most listeners in one process: a node has its address and its socket.
const LISTENERS_MAX: u64 = 2;

/// Descriptors that are not for connections: files under `/proc`, listeners, logs. The directories
/// of processes that the reader of `/proc` keeps open are not among them: they have half of all.
const DESCRIPTORS_KEPT: u64 = 128;

/// Longest path of a Unix socket, as the kernel takes it.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Connections that the kernel keeps for us until we take them.
const BACKLOG: u32 = 4_096;

/// Longest wait for a whole request head, on a new connection and between requests.
pub const REQUEST_WAIT_MAX: Duration = Duration::from_secs(30);

/// Longest TLS handshake.
pub const HANDSHAKE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Longest time that a client may take nothing of an answer.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);

/// Longest time that a client may take for an answer. One that reads a few bytes now and then would
/// else keep a place among the answers, and its table, for days; within this time a table of ten
/// thousand processes gets through 200 kbit/s.
pub const ANSWER_WRITE_MAX: Duration = Duration::from_secs(300);

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

/// Who may open a Unix socket, as its permissions say it: its owner, and its group or everybody if they are
/// let in. What they may do there is another question: the kernel says who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// Its owner alone, and root.
    pub const OWN: SocketMode = SocketMode(0o600);

    /// Whether anybody but its owner may open it.
    pub fn lets_others_in(self) -> bool {
        self != SocketMode::OWN
    }

    fn permissions(self) -> fs::Permissions {
        fs::Permissions::from_mode(self.0)
    }
}

impl Default for SocketMode {
    fn default() -> SocketMode {
        SocketMode::OWN
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// The text is no mode of a socket.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is no mode of a socket; it is 0600 (its owner), 0660 (its group too) or 0666 (all users of \
     this host)", .0.escape_debug()
)]
pub struct SocketModeError(String);

impl FromStr for SocketMode {
    type Err = SocketModeError;
    fn from_str(text: &str) -> Result<SocketMode, SocketModeError> {
        // Of a socket only these mean something: who connects must be able to write, and a server whose
        // owner cannot is of no use. Anything else is a mistake, such as 666 in decimal, or worse.
        match text.strip_prefix('0').unwrap_or(text) {
            "600" => Ok(SocketMode::OWN),
            "660" => Ok(SocketMode(0o660)),
            "666" => Ok(SocketMode(0o666)),
            _ => Err(SocketModeError(text.to_owned())),
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
    /// The kernel has no room for the path.
    #[error(
        "the path of socket {} is too long: {SOCKET_PATH_BYTES_MAX} bytes are the most; choose another",
        .0.display()
    )]
    PathLong(PathBuf),
    /// The path of a Unix socket, for any other reason.
    #[error("cannot listen on socket {}", path.display())]
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

    /// Listens on a Unix socket that those may open whom `mode` lets in. A socket that nobody serves any
    /// more is replaced. Call it within a tokio runtime.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn unix(path: &Path, mode: SocketMode) -> Result<Bound, BindError> {
        let failed = |source| BindError::Path { path: path.to_owned(), source };
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(BindError::PathLong(path.to_owned()));
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(BindError::NotSocket(path.to_owned()));
            }
            Ok(_) if is_served(path).map_err(failed)? => {
                return Err(BindError::SocketTaken(path.to_owned()));
            }
            _ => {}
        }
        let (listener, file) = listen_unix(path, mode).map_err(failed)?;
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
                Socket::Tcp(listener, tls) => listener.accept().await.map(|(stream, peer)| {
                    serving.clone().start_tcp(stream, peer, tls.clone(), place);
                }),
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

/// Listens on a Unix socket in the place of what a killed server left there. It is made under its own name,
/// which is the one that the kernel shows of it, and is nobody else's before it has its mode: the file of a
/// socket is made with the mode that the socket had before it was bound.
fn listen_unix(path: &Path, mode: SocketMode) -> io::Result<(UnixListener, SocketFile)> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::from_raw_mode(0o600))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    let file = SocketFile(path.to_owned());
    listen(&socket, BACKLOG as i32)?;
    fs::set_permissions(path, mode.permissions())?;
    Ok((UnixListener::from_std(socket.into())?, file))
}

/// Whether somebody listens on a socket. It does not wait: a listener that is busy, or stopped, with
/// its queue full is one, too.
fn is_served(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Ok(true),
        Err(_) => Ok(false),
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
    // Half of them are for the directories of processes.
    let wanted = (CONNECTIONS_MAX as u64 * LISTENERS_MAX + DESCRIPTORS_KEPT) * 2;
    let current = limit.current.unwrap_or(u64::MAX);
    let possible = limit.maximum.unwrap_or(u64::MAX).min(wanted);
    let raised = Rlimit { current: Some(possible), maximum: limit.maximum };
    let current = if current < possible && setrlimit(Resource::Nofile, raised).is_ok() {
        possible
    } else {
        current
    };
    let fit = (current / 2).saturating_sub(DESCRIPTORS_KEPT) / LISTENERS_MAX;
    usize::try_from(fit).unwrap_or(usize::MAX).clamp(16, CONNECTIONS_MAX)
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it whoever wanted us to serve.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Connections of all listeners of this process.
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// How many connections are open, of all listeners of this process.
pub fn connections() -> usize {
    CONNECTIONS.load(Ordering::Relaxed)
}

/// A connection that is open.
struct Open;

impl Open {
    fn count() -> Open {
        CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        Open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What every connection of a listener needs.
#[derive(Clone)]
struct Serving {
    app: Router,
    stop: watch::Receiver<bool>,
}

impl Serving {
    fn start_tcp(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<TlsAcceptor>,
        place: OwnedSemaphorePermit,
    ) {
        // An answer's last packet must not wait for the client's acknowledgement.
        let _ = stream.set_nodelay(true);
        // Without an address of its own the connection is dead already.
        let Ok(local) = stream.local_addr() else { return };
        let via = Via::Tcp { local, tls: tls.is_some() };
        let peer = Peer { address: Some(peer), ..Peer::default() };
        let open = Open::count();
        tokio::spawn(async move {
            let _open = open;
            match tls {
                None => self.run(stream, via, peer).await,
                Some(tls) => match timeout(HANDSHAKE_WAIT_MAX, tls.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let certificates = stream.get_ref().1.peer_certificates();
                        let certificate = certificates.and_then(Presented::of);
                        self.run(stream, via, Peer { certificate, ..peer }).await;
                    }
                    Ok(Err(error)) => tracing::debug!("a TLS handshake failed: {error}"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                },
            }
            drop(place);
        });
    }

    fn start_unix(self, stream: UnixStream, place: OwnedSemaphorePermit) {
        // Who opened it, whoever has it now; without that nobody is let in.
        let Ok(user) = stream.peer_cred().map(|of| of.uid()) else { return };
        let peer = Peer { user: Some(user), ..Peer::default() };
        let open = Open::count();
        tokio::spawn(async move {
            let _open = open;
            self.run(stream, Via::Unix, peer).await;
            drop(place);
        });
    }

    async fn run(mut self, stream: impl AsyncRead + AsyncWrite + Unpin, via: Via, peer: Peer) {
        let app = self.app;
        let stream = Impatient::new(stream);
        let due = Arc::clone(&stream.due);
        let stop = self.stop.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(via);
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(Stopping(stop.clone()));
            let answer = app.clone().oneshot(request);
            let due = Arc::clone(&due);
            async move {
                let answer = answer.await;
                let ends =
                    |response: &Response<Body>| response.extensions().get::<Endless>().is_none();
                due.begin(answer.as_ref().map_or(true, ends));
                answer
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_WAIT_MAX)
            .max_buf_size(REQUEST_HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
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

/// When the answer that is being written must be through.
#[derive(Debug, Default)]
struct Due(Mutex<Option<Instant>>);

impl Due {
    /// An answer begins; one that never `ends` need not be through at any time.
    fn begin(&self, ends: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            ends.then(|| Instant::now() + ANSWER_WRITE_MAX);
    }

    /// By when a write that begins to wait now must go on.
    fn of_write(&self) -> Instant {
        let stalled = Instant::now() + WRITE_STALL_MAX;
        let due = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        due.map_or(stalled, |due| due.min(stalled))
    }
}

/// A stream that fails when a write makes no progress for [`WRITE_STALL_MAX`], or has to wait when
/// its answer is older than [`ANSWER_WRITE_MAX`].
struct Impatient<S> {
    stream: S,
    due: Arc<Due>,
    /// Runs out when the present write has waited too long; made at the first one that waits.
    deadline: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<S> Impatient<S> {
    fn new(stream: S) -> Impatient<S> {
        Impatient { stream, due: Arc::default(), deadline: None, waiting: false }
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
        let until = self.due.of_write();
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if !self.waiting {
            self.waiting = true;
            deadline.as_mut().reset(until);
        }
        ready!(deadline.as_mut().poll(context));
        let error = "the client reads too slowly, or not at all";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, error)))
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

/// Threads where blocking is fine that are not for answers: the regular tick, and some to spare.
const BLOCKING_THREADS_MORE: usize = 8;

/// A runtime to serve `apis` [`super::Api`]s in: it has a thread for each answer that they may make
/// at once, so that those of one never wait for those of another. Idle ones end after seconds.
///
/// # Errors
/// When the system lets us start no threads or open no descriptors.
pub fn runtime(apis: usize) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name("k2i-serve")
        .max_blocking_threads(apis * super::ANSWERS_MAX + BLOCKING_THREADS_MORE)
        .enable_all()
        .build()
}

/// Time between two readings of CPU times, so that the first answer's CPU use is of a recent while.
const TICK: Duration = Duration::from_secs(5);

/// Has the engine take its regular readings, for as long as it is polled.
pub async fn tick(engine: Arc<Engine>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let engine = Arc::clone(&engine);
        // A tick that panicked has logged it; the next may do better.
        let _ = spawn_blocking(move || engine.tick()).await;
    }
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
    fn modes_of_sockets() {
        let cases = [
            ("0600", Some(0o600)),
            ("600", Some(0o600)),
            ("0660", Some(0o660)),
            ("0666", Some(0o666)),
            ("666", Some(0o666)),
            // Nobody of its own, programs, sticky bits, reading alone; what is no number.
            ("0066", None),
            ("0000", None),
            ("0777", None),
            ("4666", None),
            ("0644", None),
            ("0o666", None),
            ("00666", None),
            ("-666", None),
            ("+666", None),
            ("99999999999999999999", None),
            ("rw-rw-rw-", None),
            ("", None),
        ];
        for (text, want) in cases {
            let got = text.parse::<SocketMode>().ok();
            assert_eq!(got.map(|mode| mode.0), want, "for {text:?}");
        }
        assert_eq!(SocketMode::default().to_string(), "0600");
        assert!(!SocketMode::OWN.lets_others_in() && SocketMode(0o660).lets_others_in());
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_too_slowly_is_cut() {
        // A client that reads a little every so often; whether it is cut within some time.
        let cases =
            [(1, 299, false), (1, 301, true), (29, 299, false), (29, 301, true), (31, 31, true)];
        for (pause_s, for_s, cut) in cases {
            let (server, mut client) = tokio::io::duplex(1024);
            let mut server = Impatient::new(server);
            server.due.begin(true);
            let reader = tokio::spawn(async move {
                loop {
                    sleep(Duration::from_secs(pause_s)).await;
                    let _ = client.read(&mut [0; 8]).await;
                }
            });
            let write = async { while server.write_all(&[0; 64]).await.is_ok() {} };
            let ended = timeout(Duration::from_secs(for_s), write).await;
            assert_eq!(ended.is_ok(), cut, "a read each {pause_s} s, after {for_s} s");
            reader.abort();
        }
    }

    #[test]
    fn a_socket_that_nobody_serves_is_free() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        // Whoever listens and takes no connections is there all the same, with a full queue too.
        rustix::net::listen(&listener, 0).expect("a short queue");
        for _ in 0..3 {
            assert!(is_served(&path).expect("a socket"));
        }
        drop(listener);
        assert!(!is_served(&path).expect("a socket"));
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
