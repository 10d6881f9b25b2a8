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
    self, FromNode, Incoming, PACKET_BYTES_MAX, Request, Resume, Serve, ServiceState, ToNode,
};
use kumo_abi::page::Notice;
use kumo_abi::page::notice::{LEN_BYTES, MAGIC, MAGIC_AT};
use kumo_abi::{ClusterName, HostId};
use kumo_sys::PeerPage;
use kumo_sys::packet::{self, Wait};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio::sync::oneshot;

use crate::carrier::local::wait;
use crate::carrier::{Link, Stop};
use crate::error::CallError;
use crate::notices::{ConnectionId, Notices};
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

/// What a node answered, with what it passed. Dropped, a connection that it granted goes back to it.
pub(crate) struct Answer {
    pub(crate) message: FromNode,
    pub(crate) fd: Option<OwnedFd>,
    /// The connection, if one was granted; after its descriptor, so that it is closed first.
    pub(crate) held: Option<Held>,
}

impl Answer {
    fn without(message: FromNode) -> Answer {
        Answer { message, fd: None, held: None }
    }
}

type Waiter = Box<dyn FnOnce(Answer) + Send>;
type Hear = Box<dyn Fn(ServiceState) + Send>;

/// Takes callers of one instance.
pub(crate) trait Accept: Send + Sync {
    /// A caller's connection. Called on the node's thread: it starts what serves it, and returns.
    fn accept(self: Arc<Self>, incoming: Incoming, socket: OwnedFd, held: Held);
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
    pub(crate) notices: Notices,
    outbox: Mutex<Outbox>,
    bell: OwnedFd,
    requests: AtomicU64,
    waiting: Mutex<HashMap<Request, Waiter>>,
    served: Mutex<HashMap<InstanceId, Served>>,
    connections: Mutex<Connections>,
    watches: Mutex<HashMap<Request, (ServiceName, Hear)>>,
    welcome: Mutex<Option<Welcome>>,
    pub(crate) secure: ArcSwapOption<Brought>,
    pub(crate) certificates: Certificates,
    over: AtomicBool,
}

#[derive(Default)]
struct Outbox {
    /// Which node this is, counted from our first.
    epoch: u64,
    socket: Option<Arc<OwnedFd>>,
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
}

/// Connections that a node granted. Their numbers are indices that the node gives out: one that has started
/// anew may give a number again unless it was told that it is in use.
#[derive(Default)]
struct Connections {
    /// As that of the outbox; both change under both locks.
    epoch: u64,
    last: u64,
    known: HashMap<u64, Known>,
}

struct Known {
    id: ConnectionId,
    /// The last node that knows it.
    epoch: u64,
    /// Once both programs have joined it.
    link: Option<(Weak<Link>, Resume)>,
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
            notices: Notices::default(),
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
    /// Connects, is welcomed, and tells a node that has started anew what its predecessor knew.
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
        let page = Arc::new(page.ok_or_else(strange)?);
        *lock(&self.welcome) = Some(Welcome { cluster, host, who });
        let socket = Arc::new(socket);
        // Whoever asks for something from now on does so behind all this.
        let mut outbox = lock(&self.outbox);
        outbox.epoch += 1;
        outbox.socket = Some(socket.clone());
        outbox.waiting.clear();
        self.tell_all_again(&mut outbox, page);
        outbox.flush();
        Ok(socket)
    }

    /// The thread's life.
    fn keep(self: &Arc<Shared>, socket: Arc<OwnedFd>) {
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
                Ok(node) => socket = Some(node),
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

    fn serve_until_it_ends(self: &Arc<Shared>, socket: &OwnedFd) -> Result<(), NodeError> {
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
                    Ok(message) => {
                        let held = self.granted(&message);
                        self.hear(Answer { message, fd: fds.pop(), held });
                    }
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
        // Where who asked no longer waits, the connection goes back.
        if let Some(waiter) = waiter {
            waiter(answer);
        }
    }

    /// Holds the connection of a message that grants one, from this moment on.
    fn granted(self: &Arc<Shared>, message: &FromNode) -> Option<Held> {
        let connection = match message {
            FromNode::Granted(granted) => granted.connection,
            FromNode::Incoming(incoming) => incoming.connection,
            _ => return None,
        };
        let mut connections = lock(&self.connections);
        connections.last += 1;
        let (id, epoch) =
            (ConnectionId { index: connection, number: connections.last }, connections.epoch);
        connections.known.insert(id.number, Known { id, epoch, link: None });
        Some(Held { shared: self.clone(), id })
    }

    fn incoming(&self, answer: Answer) {
        let Answer { message: FromNode::Incoming(incoming), fd: Some(socket), held: Some(held) } =
            answer
        else {
            return;
        };
        let accept = lock(&self.served).get(&incoming.instance).map(|served| served.accept.clone());
        match accept {
            Some(accept) => accept.accept(incoming, socket, held),
            None => drop((socket, held)),
        }
    }

    /// The node is gone: whoever waits for it is told.
    fn away(&self) {
        let mut outbox = lock(&self.outbox);
        outbox.socket = None;
        outbox.waiting.clear();
        drop(outbox);
        let waiting: Vec<(Request, Waiter)> = lock(&self.waiting).drain().collect();
        for (request, waiter) in waiting {
            let message = no_node(request);
            waiter(Answer::without(message));
        }
    }

    /// A node that has started anew is told what its predecessor knew: first which connections there are, so
    /// that it gives none of their numbers, nor places of their receipts, to another.
    fn tell_all_again(&self, outbox: &mut Outbox, page: Arc<PeerPage>) {
        let mut connections = lock(&self.connections);
        let epoch = outbox.epoch;
        let former = std::mem::replace(&mut connections.epoch, epoch);
        for known in connections.known.values_mut() {
            let link =
                known.link.as_ref().and_then(|(link, resume)| Some((link.upgrade()?, resume)));
            // What the former node did not know stays unknown: its index may be that of another by now.
            let is_told = known.epoch == former
                && link.as_ref().is_some_and(|(link, resume)| {
                    // Without a duplicate a node does not take it: it could not end it.
                    let duplicate = link.as_fd().try_clone_to_owned();
                    let resume = ToNode::Resume((*resume).clone());
                    duplicate.is_ok_and(|duplicate| outbox.push(&resume, Some(duplicate)))
                });
            self.notices.carry(known.id, is_told);
            match link {
                _ if is_told => known.epoch = epoch,
                Some((link, _)) => link.end(),
                None => {}
            }
        }
        self.notices.begin(page);
        drop(connections);
        for served in lock(&self.served).values() {
            outbox.push(&ToNode::Serve(served.serve.clone()), None);
        }
        for (request, (service, _)) in lock(&self.watches).iter() {
            outbox.push(&ToNode::Watch { request: *request, service: service.clone() }, None);
        }
    }

    /// Tells the node something. Never blocks: what it does not read yet waits.
    pub(crate) fn tell(&self, message: &ToNode, fd: Option<OwnedFd>) -> bool {
        let mut outbox = lock(&self.outbox);
        if !outbox.push(message, fd) {
            return false;
        }
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
            hear(Answer::without(no_node(request)));
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
                Err(_) => Err(CallError::not_executed(Cause::Cancelled, "")),
            };
        }
        let cause = match waited {
            Err(Stop::Deadline) => Cause::Deadline,
            Err(Stop::Cancelled) => Cause::Cancelled,
            _ => Cause::Exhausted,
        };
        Err(CallError::not_executed(cause, "while waiting for the node"))
    }

    /// As [`Shared::ask_and_wait`], for tasks. Dropped, it no longer waits, and what comes goes back.
    pub(crate) async fn ask_and_await(
        self: &Arc<Shared>,
        request: Request,
        message: &ToNode,
        deadline_ns: u64,
    ) -> Result<Answer, CallError> {
        let _asking = Asking { node: self, request };
        let (send, answer) = oneshot::channel();
        self.ask(
            request,
            message,
            Box::new(move |answer| {
                let _ = send.send(answer);
            }),
        );
        let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns()));
        match tokio::time::timeout(left, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            _ => Err(CallError::not_executed(Cause::Deadline, "while waiting for the node")),
        }
    }

    pub(crate) fn serves(&self, instance: InstanceId, serve: Serve, accept: Arc<dyn Accept>) {
        lock(&self.served).insert(instance, Served { serve, accept });
    }

    pub(crate) fn serves_no_more(&self, instance: InstanceId) {
        lock(&self.served).remove(&instance);
        self.tell(&ToNode::Ended { instance }, None);
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

/// A question that is forgotten when nobody waits for its answer any more.
struct Asking<'a> {
    node: &'a Shared,
    request: Request,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.node.forget(self.request);
    }
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
    /// Adds a message; false if there is no node, or it has not read for long.
    fn push(&mut self, message: &ToNode, fd: Option<OwnedFd>) -> bool {
        if self.socket.is_none() || self.waiting.len() >= OUTBOX_MAX {
            return false;
        }
        match control::encode(message) {
            Ok(bytes) => {
                self.waiting.push_back((bytes, fd));
                true
            }
            Err(error) => {
                tracing::warn!(%error, "a message to the node was not sent");
                false
            }
        }
    }

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

/// A connection that a node granted. It is told when this is dropped, which is to be after the socket.
pub(crate) struct Held {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: ConnectionId,
}

impl Held {
    /// Both programs have joined it: a node that starts anew is told of it. False if one has done so since it
    /// was granted, does not know it, and may give its number to another: then it must not be used.
    #[must_use]
    pub(crate) fn joined(&self, link: &Arc<Link>, resume: Resume) -> bool {
        let mut connections = lock(&self.shared.connections);
        let epoch = connections.epoch;
        let known = connections.known.get_mut(&self.id.number);
        let Some(known) = known.filter(|known| known.epoch == epoch) else { return false };
        known.link = Some((Arc::downgrade(link), resume));
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let known = lock(&self.shared.connections).known.remove(&self.id.number);
        self.shared.notices.let_go(self.id);
        let mut outbox = lock(&self.shared.outbox);
        // To another node this number is that of another connection.
        let is_its = known.is_some_and(|known| known.epoch == outbox.epoch);
        if is_its
            && outbox.push(&ToNode::Closed { connection: self.id.index }, None)
            && !outbox.flush()
        {
            self.shared.wake();
        }
    }
}

/// Why a connection ended, waiting a little for its node to say so.
///
/// The kernel closes the sockets of a process that ends before it tells who watches it, so the end is
/// often seen before the notice.
pub(crate) fn why_it_ended(shared: &Shared, id: ConnectionId, wait_ns: u64) -> Option<Notice> {
    let until_ns = now_ns().saturating_add(wait_ns);
    loop {
        let notice = shared.notices.notice(id);
        if notice.is_some() || now_ns() >= until_ns {
            return notice;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}
