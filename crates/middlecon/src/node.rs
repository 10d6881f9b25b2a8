//! This program's connection to its node: who asks for connections, and who is told of callers.
//!
//! One plain thread keeps it. A node that goes away takes no call with it: the thread connects again
//! with growing pauses, and tells the new node everything anew. Meanwhile what needs the node
//! (a first call to a service, a new server) is `NO_NODE` at once.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use kumo_abi::call::{Cause, InstanceId, ServiceName, Who};
use kumo_abi::control::{
    self, Connection, FromNode, Incoming, PACKET_BYTES_MAX, Request, Resume, Serve, ServiceState,
    ToNode,
};
use kumo_abi::page::notice::{LEN_BYTES, MAGIC, MAGIC_AT, state_at, taken_at};
use kumo_abi::page::{Notice, receipt_at};
use kumo_abi::{ClusterName, HostId};
use kumo_sys::PeerPage;
use kumo_sys::packet::{self, Wait};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::carrier::local::wait;
use crate::carrier::{Link, Stop};
use crate::error::CallError;
use crate::program::Program;
use crate::secure::{Brought, Certificates, Secure};
use crate::time::now_ns;

/// How long a node may take to answer a hello.
const WELCOME_MS_MAX: u64 = 2_000;

/// First and longest pause before the node is looked for again.
const PAUSE_MS: (u64, u64) = (10, 1_000);

/// Most messages that wait until the node reads on: every connection closed at once, and more.
const OUTBOX_MAX: usize = 8 * 1024;

/// Why there is no connection to the node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Nobody listens there.
    #[error("no node answers at `{}`; start one with `kumo up`", path.display())]
    Away {
        /// Where it should.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// It answered something else than a welcome.
    #[error("the node at `{}` does not speak as this program does; are both of one version?", .0.display())]
    Strange(PathBuf),
    /// This process cannot have what it needs.
    #[error("this program cannot have a descriptor, memory or thread that it needs")]
    Exhausted(#[from] io::Error),
    /// The node said no.
    #[error("the node refuses: {message} ({cause})")]
    Refused {
        /// Why.
        cause: Cause,
        /// Its words.
        message: String,
    },
}

/// What a node answered, with what it passed.
pub(crate) struct Answer {
    pub(crate) message: FromNode,
    pub(crate) fd: Option<OwnedFd>,
}

type Waiter = Box<dyn FnOnce(Answer) + Send>;
type Hear = Box<dyn Fn(ServiceState) + Send>;

/// Takes callers of one instance.
pub(crate) trait Accept: Send + Sync {
    /// A caller's connection. Called on the node's thread: it starts what serves it, and returns.
    fn accept(self: Arc<Self>, incoming: Incoming, socket: OwnedFd);
}

struct Served {
    serve: Serve,
    accept: Arc<dyn Accept>,
}

/// A connection to the node. Cheap to clone; when the last clone and all that was made with it are gone,
/// the connection ends.
#[derive(Clone)]
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    _alive: Arc<Alive>,
}

/// Ends the thread when nobody needs the node any more.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
        self.0.wake();
    }
}

/// Who this program is, as its node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The cluster; nothing on a host that is in none.
    pub cluster: Option<ClusterName>,
    /// This host.
    pub host: HostId,
    /// As whom the program calls where it does not serve.
    pub who: Who,
}

pub(crate) struct Shared {
    path: PathBuf,
    pub(crate) program: Program,
    notices: ArcSwapOption<PeerPage>,
    outbox: Mutex<Outbox>,
    bell: OwnedFd,
    requests: AtomicU64,
    waiting: Mutex<HashMap<Request, Waiter>>,
    served: Mutex<HashMap<InstanceId, Served>>,
    connections: Mutex<HashMap<Connection, (Weak<Link>, Resume)>>,
    watches: Mutex<HashMap<Request, (ServiceName, Hear)>>,
    welcome: Mutex<Option<Welcome>>,
    pub(crate) secure: ArcSwapOption<Brought>,
    pub(crate) certificates: Certificates,
    over: AtomicBool,
}

#[derive(Default)]
struct Outbox {
    socket: Option<Arc<OwnedFd>>,
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Connects to the node whose run directory this is.
    ///
    /// # Errors
    /// There is no node, or it speaks another version.
    pub fn connect(run_dir: &Path) -> Result<Node, NodeError> {
        let shared = Arc::new(Shared {
            path: run_dir.join(control::SOCKET_NAME),
            program: Program::new()?,
            notices: ArcSwapOption::empty(),
            outbox: Mutex::default(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(io::Error::from)?,
            requests: AtomicU64::new(1),
            waiting: Mutex::default(),
            served: Mutex::default(),
            connections: Mutex::default(),
            watches: Mutex::default(),
            welcome: Mutex::default(),
            secure: ArcSwapOption::empty(),
            certificates: Certificates::default(),
            over: AtomicBool::new(false),
        });
        let socket = shared.connect()?;
        let keeper = shared.clone();
        let thread = std::thread::Builder::new().name("middlecon".to_owned());
        thread.spawn(move || keeper.keep(socket))?;
        Ok(Node { _alive: Arc::new(Alive(shared.clone())), shared })
    }

    /// Brings what decides whom to believe on other hosts. Without it, calls to and from other hosts that
    /// no node splices are not executed.
    pub fn secure_with(&self, secure: Arc<dyn Secure>) {
        self.shared.secure.store(Some(Arc::new(Brought(secure))));
    }

    /// Who this program is, as its node says.
    pub fn welcome(&self) -> Option<Welcome> {
        lock(&self.shared.welcome).clone()
    }
}

impl Shared {
    /// Connects, and is welcomed.
    fn connect(&self) -> Result<Arc<OwnedFd>, NodeError> {
        let away = |source| NodeError::Away { path: self.path.clone(), source };
        let strange = || NodeError::Strange(self.path.clone());
        let socket = packet::connect_to(&self.path).map_err(away)?;
        let hello = ToNode::Hello { version: control::VERSION };
        let hello = control::encode(&hello).map_err(|_| strange())?;
        packet::send(&socket, &[IoSlice::new(&hello)], &[self.program.as_fd()], Wait::No)
            .map_err(away)?;
        let deadline_ns = now_ns() + WELCOME_MS_MAX * 1_000_000;
        wait(&socket, PollFlags::IN, None, deadline_ns).map_err(|_| strange())?;
        let mut packet = vec![0; PACKET_BYTES_MAX];
        let (len_bytes, fds) = packet::receive(&socket, &mut packet, 1, Wait::No).map_err(away)?;
        let message = control::decode(&packet[..len_bytes]);
        let Ok(FromNode::Welcome { cluster, host, who }) = message else { return Err(strange()) };
        let page = fds.first().and_then(|page| PeerPage::new(page, LEN_BYTES).ok());
        let page = page.filter(|page| page.load(MAGIC_AT, Ordering::Acquire) == MAGIC);
        self.notices.store(Some(Arc::new(page.ok_or_else(strange)?)));
        *lock(&self.welcome) = Some(Welcome { cluster, host, who });
        let socket = Arc::new(socket);
        *lock(&self.outbox) = Outbox { socket: Some(socket.clone()), waiting: VecDeque::new() };
        Ok(socket)
    }

    /// The thread's life.
    fn keep(&self, socket: Arc<OwnedFd>) {
        let mut socket = Some(socket);
        let mut pause_ms = PAUSE_MS.0;
        while !self.over.load(Ordering::Acquire) {
            if let Some(node) = socket.take() {
                pause_ms = PAUSE_MS.0;
                let ended = self.serve_until_it_ends(&node);
                tracing::debug!(?ended, "the connection to the node has ended");
                self.away();
                continue;
            }
            match self.connect() {
                Ok(node) => {
                    self.tell_all_again();
                    socket = Some(node);
                }
                Err(error) => {
                    tracing::debug!(%error, "the node is still away");
                    self.sleep(pause_ms);
                    pause_ms = (pause_ms * 2).min(PAUSE_MS.1);
                }
            }
        }
        self.away();
    }

    fn sleep(&self, pause_ms: u64) {
        let time = Timespec { tv_sec: 0, tv_nsec: (pause_ms * 1_000_000) as i64 };
        let time = if pause_ms < 1_000 { time } else { Timespec { tv_sec: 1, tv_nsec: 0 } };
        let _ = poll(&mut [PollFd::new(&self.bell, PollFlags::IN)], Some(&time));
    }

    fn serve_until_it_ends(&self, socket: &OwnedFd) -> Result<(), NodeError> {
        let mut packet = vec![0; PACKET_BYTES_MAX];
        loop {
            let full = !self.flush();
            let wanted = if full { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            let mut fds = [PollFd::new(socket, wanted), PollFd::new(&self.bell, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(NodeError::Exhausted(errno.into())),
            }
            if self.over.load(Ordering::Acquire) {
                return Ok(());
            }
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
            match packet::receive(socket, &mut packet, 1, Wait::No) {
                Ok((0, _)) => return Ok(()),
                Ok((len_bytes, mut fds)) => match control::decode(&packet[..len_bytes]) {
                    Ok(message) => self.hear(Answer { message, fd: fds.pop() }),
                    Err(error) => {
                        tracing::warn!(%error, "the node said what this program does not know");
                        return Err(NodeError::Strange(self.path.clone()));
                    }
                },
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    _ => return Err(NodeError::Exhausted(error)),
                },
            }
        }
    }

    fn hear(&self, answer: Answer) {
        let request = match &answer.message {
            FromNode::Granted(granted) => granted.request,
            FromNode::Serving { request, .. }
            | FromNode::Refused { request, .. }
            | FromNode::Certificate { request, .. } => *request,
            FromNode::Service { request, state } => {
                if let Some((_, hear)) = lock(&self.watches).get(request) {
                    hear(state.clone());
                }
                return;
            }
            FromNode::Incoming(_) => return self.incoming(answer),
            FromNode::Evicted { serials } => return self.certificates.evicted(serials),
            FromNode::Leaving | FromNode::Welcome { .. } => return,
        };
        let waiter = lock(&self.waiting).remove(&request);
        match (waiter, &answer.message) {
            (Some(waiter), _) => waiter(answer),
            // Who asked no longer waits: the connection goes back.
            (None, FromNode::Granted(granted)) => {
                let connection = granted.connection;
                drop(answer);
                self.tell(&ToNode::Closed { connection }, None);
            }
            (None, _) => {}
        }
    }

    fn incoming(&self, answer: Answer) {
        let Answer { message: FromNode::Incoming(incoming), fd: Some(socket) } = answer else {
            return;
        };
        let accept = lock(&self.served).get(&incoming.instance).map(|served| served.accept.clone());
        if let Some(accept) = accept {
            return accept.accept(incoming, socket);
        }
        drop(socket);
        self.tell(&ToNode::Closed { connection: incoming.connection }, None);
    }

    /// The node is gone: whoever waits for it is told.
    fn away(&self) {
        *lock(&self.outbox) = Outbox::default();
        let waiting: Vec<(Request, Waiter)> = lock(&self.waiting).drain().collect();
        for (request, waiter) in waiting {
            let message = no_node(request);
            waiter(Answer { message, fd: None });
        }
    }

    /// A node that has started anew is told what its predecessor knew.
    fn tell_all_again(&self) {
        let served: Vec<Serve> =
            lock(&self.served).values().map(|served| served.serve.clone()).collect();
        for serve in served {
            self.tell(&ToNode::Serve(serve), None);
        }
        let watched: Vec<(Request, ServiceName)> = lock(&self.watches)
            .iter()
            .map(|(request, (service, _))| (*request, service.clone()))
            .collect();
        for (request, service) in watched {
            self.tell(&ToNode::Watch { request, service }, None);
        }
        let connections: Vec<(Arc<Link>, Resume)> = lock(&self.connections)
            .values()
            .filter_map(|(link, resume)| Some((link.upgrade()?, resume.clone())))
            .collect();
        for (link, resume) in connections {
            if let Ok(duplicate) = link.as_fd().try_clone_to_owned() {
                self.tell(&ToNode::Resume(resume), Some(duplicate));
            }
        }
    }

    /// Tells the node something. Never blocks: what it does not read yet waits.
    pub(crate) fn tell(&self, message: &ToNode, fd: Option<OwnedFd>) -> bool {
        let bytes = match control::encode(message) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%error, "a message to the node was not sent");
                return false;
            }
        };
        let mut outbox = lock(&self.outbox);
        if outbox.socket.is_none() || outbox.waiting.len() >= OUTBOX_MAX {
            return false;
        }
        outbox.waiting.push_back((bytes, fd));
        let sent = outbox.flush();
        drop(outbox);
        if !sent {
            self.wake();
        }
        true
    }

    /// Sends what waits; whether all was sent.
    fn flush(&self) -> bool {
        lock(&self.outbox).flush()
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// A number for a question.
    pub(crate) fn request(&self) -> Request {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// Asks the node; `hear` is called once, on the node's thread, unless [`Shared::forget`] comes first.
    pub(crate) fn ask(&self, request: Request, message: &ToNode, hear: Waiter) {
        lock(&self.waiting).insert(request, hear);
        if !self.tell(message, None)
            && let Some(hear) = lock(&self.waiting).remove(&request)
        {
            hear(Answer { message: no_node(request), fd: None });
        }
    }

    /// Nobody waits for this answer any more.
    pub(crate) fn forget(&self, request: Request) {
        lock(&self.waiting).remove(&request);
    }

    /// Asks the node and waits for its answer.
    pub(crate) fn ask_and_wait(
        &self,
        request: Request,
        message: &ToNode,
        upstream: Option<BorrowedFd<'_>>,
        deadline_ns: u64,
    ) -> Result<Answer, CallError> {
        let exhausted =
            |_| CallError::not_executed(Cause::Exhausted, "this program has no descriptor left");
        let bell = eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from);
        let bell = Arc::new(bell.map_err(exhausted)?);
        let place = Arc::new(Mutex::new(None));
        let (there, ring) = (place.clone(), bell.clone());
        self.ask(
            request,
            message,
            Box::new(move |answer| {
                *lock(&there) = Some(answer);
                let _ = rustix::io::write(&*ring, &1_u64.to_ne_bytes());
            }),
        );
        let waited = wait(&*bell, PollFlags::IN, upstream, deadline_ns);
        self.forget(request);
        if let Some(answer) = lock(&place).take() {
            return match waited {
                Ok(()) | Err(Stop::Deadline) => Ok(answer),
                Err(_) => {
                    self.give_back(answer);
                    Err(CallError::not_executed(Cause::Cancelled, ""))
                }
            };
        }
        let cause = match waited {
            Err(Stop::Deadline) => Cause::Deadline,
            Err(Stop::Cancelled) => Cause::Cancelled,
            _ => Cause::Exhausted,
        };
        Err(CallError::not_executed(cause, "while waiting for the node"))
    }

    /// Nobody wants what the node granted.
    pub(crate) fn give_back(&self, answer: Answer) {
        if let FromNode::Granted(granted) = &answer.message {
            let connection = granted.connection;
            drop(answer);
            self.tell(&ToNode::Closed { connection }, None);
        }
    }

    pub(crate) fn serves(&self, instance: InstanceId, serve: Serve, accept: Arc<dyn Accept>) {
        lock(&self.served).insert(instance, Served { serve, accept });
    }

    pub(crate) fn serves_no_more(&self, instance: InstanceId) {
        lock(&self.served).remove(&instance);
        self.tell(&ToNode::Ended { instance }, None);
    }

    /// What the node says of a connection that ended, if it said something.
    pub(crate) fn notice(&self, connection: Connection) -> Option<Notice> {
        let page = self.notices.load();
        Notice::from_word(page.as_ref()?.load(checked(state_at(connection))?, Ordering::Acquire))
    }

    /// Whether the callee had taken this call, as its node says. Only with [`Notice::taken_known`].
    pub(crate) fn taken(&self, connection: Connection, id: u64) -> bool {
        let page = self.notices.load();
        let at_bytes = checked(taken_at(connection) + receipt_at(id));
        let (Some(page), Some(at_bytes)) = (page.as_ref(), at_bytes) else { return true };
        page.load(at_bytes, Ordering::Acquire) == id
    }

    /// Has `hear` called, on the node's thread, with every state of a service.
    pub(crate) fn watch(&self, service: ServiceName, hear: Hear) -> Request {
        let request = self.request();
        lock(&self.watches).insert(request, (service.clone(), hear));
        self.tell(&ToNode::Watch { request, service }, None);
        request
    }

    pub(crate) fn unwatch(&self, request: Request) {
        lock(&self.watches).remove(&request);
        self.tell(&ToNode::Unwatch { request }, None);
    }
}

/// An index comes from the node, which is trusted, but a mistake of it must not end this program.
fn checked(at_bytes: usize) -> Option<usize> {
    (at_bytes < LEN_BYTES).then_some(at_bytes)
}

fn no_node(request: Request) -> FromNode {
    FromNode::Refused {
        request,
        cause: Cause::NoNode,
        message: "no node answers on this host; start one with `kumo up`".to_owned(),
        retry_after_ms: Some(PAUSE_MS.1 as u32),
        path: Vec::new(),
    }
}

impl Outbox {
    fn flush(&mut self) -> bool {
        while let (Some(socket), Some((bytes, fd))) = (&self.socket, self.waiting.front()) {
            let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
            match packet::send(socket, &[IoSlice::new(bytes)], &fds, Wait::No) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // A node that is gone is noticed where it is read from.
                Ok(()) | Err(_) => self.waiting.pop_front(),
            };
        }
        true
    }
}

/// A connection that the node knows of. Told when it is gone; to be dropped after its socket.
pub(crate) struct Held {
    pub(crate) shared: Arc<Shared>,
    pub(crate) connection: Connection,
}

impl Held {
    pub(crate) fn new(shared: &Arc<Shared>, link: &Arc<Link>, resume: Resume) -> Held {
        let connection = resume.connection;
        lock(&shared.connections).insert(connection, (Arc::downgrade(link), resume));
        Held { shared: shared.clone(), connection }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.shared.connections).remove(&self.connection);
        self.shared.tell(&ToNode::Closed { connection: self.connection }, None);
    }
}

/// Why a connection ended, waiting a little for its node to say so.
///
/// The kernel closes the sockets of a process that ends before it tells who watches it, so the end is
/// often seen before the notice.
pub(crate) fn why_it_ended(
    shared: &Shared,
    connection: Connection,
    wait_ns: u64,
) -> Option<Notice> {
    let until_ns = now_ns().saturating_add(wait_ns);
    loop {
        let notice = shared.notice(connection);
        if notice.is_some() || now_ns() >= until_ns {
            return notice;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}
