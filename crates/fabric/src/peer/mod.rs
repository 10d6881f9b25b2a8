//! What two nodes need so that their programs can call each other: links between any two hosts, and ways
//! for the programs' own connections.
//!
//! Every node listens on a *call port*. The first byte tells what comes: TLS is a *peer link*, over which
//! nodes ask each other ([`PeerLinks::request`]); else it is a *data connection* with a ticket, which is
//! handed to who waits for it ([`PeerLinks::expect_data`], [`PeerLinks::dial_data`]) and in which two
//! programs prove to each other who they are. This module looks into neither.
//!
//! A host is dialed where its card says. Where that does not work, gateways help: every member keeps a link
//! to some of its own, over which questions are passed on; for a data connection the host that is meant
//! dials the gateway back, and the gateway passes bytes that it cannot read.
//!
//! Who holds a [`HostWatch`] is told within half a second when a host answers no more ([`beat`] has the
//! rule). Links are served by a thread of its own with a raised priority, so that a busy host neither
//! forgets to answer nor takes others for lost; handshakes and answers run elsewhere.

mod beat;
mod dial;
mod link;
mod port;
mod relay;
mod thread;
mod tickets;
mod watch;
mod wire;

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use kumo_abi::cluster::Role;
use kumo_abi::{DcName, HostId};
use kumo_pki::{Evicted, KeyId};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch as value};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

pub use self::beat::{BEAT_MS, HostLife};
pub use self::tickets::{TICKET_MS, Ticket};
pub use self::watch::HostWatch;
pub use self::wire::PAYLOAD_BYTES_MAX;
use crate::ask::Answering;
use crate::identity::Identity;
use crate::link::gate::Gate;
use crate::link::limits::Said;
use crate::link::tls::Setup;
use crate::link::{How, dial::LOOKUPS_MAX, lock};
use dial::Dials;
use link::{Link, Saying};
use relay::Splices;
use tickets::Tickets;
use watch::Watched;
use wire::{Failure, HOPS_MAX, What};

/// Where nodes listen for calls unless told otherwise.
pub const CALL_PORT_DEFAULT: u16 = 7082;

/// Links that others may open to this host.
pub const PEER_LINKS_MAX: usize = 4_096;

/// Ends and beginnings of links that a slow reader may be behind before it misses some.
const EVENTS_MAX: usize = 4_096;

/// A link that this host dialed and that nobody used for so long is closed.
const IDLE_MS: u64 = 60_000;

/// How often it is looked for such.
const IDLE_LOOK: Duration = Duration::from_secs(10);

/// So long [`PeerLinks::close`] waits for the good-byes.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// After the call port could not be had, it is tried again so much later: the node before this one may be
/// about to leave it.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// What is known of hosts by others of this node.
pub trait Book: Send + Sync + 'static {
    /// Where the call port of a host is, the best address first; none where that is not known.
    fn call_addresses(&self, host: &HostId) -> Vec<String>;

    /// The gateways of a data centre that live; where none is seen to, those that are known.
    fn gateways(&self, dc: &DcName) -> Vec<HostId>;
}

/// Answers what other nodes ask.
pub trait PeerAnswerer: Send + Sync + 'static {
    /// Answers a question of `from`, whose certificate said so, or a gateway that passed it on. An error
    /// says in words why this host does not answer it. Dropped when its time is over.
    fn answer(&self, from: HostId, request: Bytes) -> Answering;

    /// Takes note of what `from` says. Called in the order of a link, and must not wait.
    fn note(&self, from: HostId, note: Bytes);
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no way to the host: it was not asked, and may be asked again.
    #[error("there is no way to {host}: {why}")]
    NoRoute {
        /// Whom.
        host: HostId,
        /// What was tried.
        why: String,
    },
    /// The link ended after it was asked. It may have done what it was asked for.
    #[error("the link to {host} was lost before it answered")]
    Lost {
        /// Whom.
        host: HostId,
    },
    /// It was asked, and did not answer in time. It may still do what it was asked for.
    #[error("{host} did not answer within {wait_ms} ms")]
    Late {
        /// Whom.
        host: HostId,
        /// How long it was waited for.
        wait_ms: u64,
    },
    /// It answered that it does not answer this.
    #[error("{host} refused: {why}")]
    Refused {
        /// Whom.
        host: HostId,
        /// In its words, or a gateway's.
        why: String,
    },
    /// Larger than [`PAYLOAD_BYTES_MAX`]; nothing was sent.
    #[error("{0} bytes are too many for one message; {PAYLOAD_BYTES_MAX} are the most")]
    TooLarge(usize),
}

impl RequestError {
    /// Whether the host has certainly not been asked.
    pub fn is_not_asked(&self) -> bool {
        matches!(self, RequestError::NoRoute { .. } | RequestError::TooLarge(_))
    }

    fn of(failure: Failure, host: &HostId, wait: Duration) -> RequestError {
        let host = host.clone();
        match failure {
            Failure::NoRoute(why) => RequestError::NoRoute { host, why },
            Failure::Lost => RequestError::Lost { host },
            Failure::Late => RequestError::Late { host, wait_ms: millis(wait) },
            Failure::Refused(why) => RequestError::Refused { host, why },
        }
    }
}

/// Why there are no peer links.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The certificate, the key or the authority.
    #[error("TLS cannot use this host's certificate; was it changed by hand?")]
    Certificate(#[source] rustls::Error),
    /// Threads or descriptors.
    #[error("the system lets us start no thread for the links of calls")]
    Thread(#[source] io::Error),
}

/// A link with a host began or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerEvent {
    /// The host at the other end.
    pub host: HostId,
    /// How it ended; `None` where it began. There may be another link with the same host.
    pub ended: Option<How>,
}

/// The peer links of this host. Dropping it cuts them; [`PeerLinks::close`] says good-bye.
pub struct PeerLinks {
    shared: Arc<Shared>,
    done: Mutex<mpsc::Receiver<Infallible>>,
}

impl fmt::Debug for PeerLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerLinks").finish_non_exhaustive()
    }
}

/// A data connection that somebody was told to open.
pub struct Expected {
    shared: Arc<Shared>,
    ticket: Ticket,
    stream: oneshot::Receiver<TcpStream>,
}

/// Nobody came with the ticket in its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody opened the data connection within {} s", TICKET_MS / 1000)]
pub struct TicketExpired;

impl fmt::Debug for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expected").finish_non_exhaustive()
    }
}

impl Expected {
    /// To be told to who shall dial, and to nobody else.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// The connection, right behind its preface, when somebody shows the ticket. Dropping this takes the
    /// ticket back.
    ///
    /// # Errors
    /// [`TicketExpired`]; the ticket is good no more.
    pub async fn stream(mut self) -> Result<TcpStream, TicketExpired> {
        let come = timeout(Duration::from_millis(TICKET_MS), &mut self.stream).await;
        come.ok().and_then(Result::ok).ok_or(TicketExpired)
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        lock(&self.shared.tickets).withdraw(self.ticket);
    }
}

impl PeerLinks {
    /// Listens for calls where `identity` says so, and keeps the links that a member needs. Within a
    /// runtime of tokio. Where the port is taken, it is tried again: meanwhile calls come through
    /// gateways.
    ///
    /// # Errors
    /// See [`PeerError`]; then nothing runs.
    pub async fn open(
        identity: Arc<Identity>,
        book: Arc<dyn Book>,
    ) -> Result<PeerLinks, PeerError> {
        let evicted = Evicted::default();
        let setup = Setup::new(Arc::clone(&identity), Arc::clone(&evicted));
        let setup = setup.map_err(PeerError::Certificate)?;
        let links_runtime = thread::runtime().map_err(PeerError::Thread)?;
        let (tasks, done) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            me: identity.host.clone(),
            role: identity.role,
            setup: ArcSwap::from_pointee(setup),
            evicted,
            book,
            answerer: ArcSwapOption::empty(),
            live: Mutex::default(),
            dials: Dials::default(),
            tickets: Mutex::default(),
            splices: Splices::new(),
            watched: Mutex::default(),
            gate: Gate::new(),
            said: Mutex::default(),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            events: broadcast::Sender::new(EVENTS_MAX),
            local_addr: value::Sender::new(None),
            closing: value::Sender::new(false),
            tasks: Mutex::new(Some(tasks)),
            runtime: Handle::current(),
            links_runtime,
            began: Instant::now(),
        });
        if let Some(address) = identity.call_listen {
            let first = port::bind(address).await;
            let listening = Arc::clone(&shared);
            shared.spawn(async move {
                listening.unless_closing(listen(Arc::clone(&listening), address, first)).await;
            });
        }
        let idle = Arc::clone(&shared);
        shared.spawn(async move { idle.unless_closing(close_idle(&idle)).await.unwrap_or(()) });
        if shared.role == Role::Member {
            let keeping = Arc::clone(&shared);
            shared.spawn(async move {
                keeping.unless_closing(dial::keep(&keeping)).await.unwrap_or(());
            });
        }
        Ok(PeerLinks { shared, done: Mutex::new(done) })
    }

    /// From now on `answerer` answers what others ask; until then they are refused.
    pub fn answer_by(&self, answerer: Arc<dyn PeerAnswerer>) {
        self.shared.answerer.store(Some(Arc::new(answerer)));
    }

    /// Where this host listens for calls, with the real port; `None` where it does not.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        *self.shared.local_addr.borrow()
    }

    /// Asks a host, over its link or through gateways, and waits for at most `wait`. Never asked twice.
    ///
    /// # Errors
    /// See [`RequestError`], which says whether the host may have acted.
    pub async fn request(
        &self,
        host: &HostId,
        request: Bytes,
        wait: Duration,
    ) -> Result<Bytes, RequestError> {
        if request.len() > PAYLOAD_BYTES_MAX {
            return Err(RequestError::TooLarge(request.len()));
        }
        if *host == self.shared.me {
            let (me, what) = (host.clone(), What::Bytes(request.to_vec()));
            let answer = self.shared.answer(me, what, wait).await;
            return answer.map(Bytes::from).map_err(|why| RequestError::of(why, host, wait));
        }
        let what = What::Bytes(request.to_vec());
        let asked = self.shared.reach(None, host, HOPS_MAX, Saying::Ask(what), wait, None).await;
        asked.map(Bytes::from).map_err(|failure| RequestError::of(failure, host, wait))
    }

    /// Tells a host something that needs no answer. That it was sent does not mean that it arrived.
    ///
    /// # Errors
    /// [`RequestError::NoRoute`], [`RequestError::TooLarge`].
    pub async fn notify(
        &self,
        host: &HostId,
        note: Bytes,
        wait: Duration,
    ) -> Result<(), RequestError> {
        if note.len() > PAYLOAD_BYTES_MAX {
            return Err(RequestError::TooLarge(note.len()));
        }
        if *host == self.shared.me {
            link::take_note(&self.shared, host.clone(), note.to_vec());
            return Ok(());
        }
        let saying = Saying::Note(note.to_vec());
        let told = self.shared.reach(None, host, HOPS_MAX, saying, wait, None).await;
        told.map(|_| ()).map_err(|failure| RequestError::of(failure, host, wait))
    }

    /// A ticket for one data connection to this host, good for [`TICKET_MS`]. `None` where too many are
    /// out, or the system has no randomness.
    pub fn expect_data(&self) -> Option<Expected> {
        self.shared.expect()
    }

    /// Opens a data connection to who waits for `ticket` on `host`, or the way there through gateways. It
    /// has no delay set, and what is written to it next is the programs'.
    ///
    /// # Errors
    /// [`RequestError::NoRoute`] where there is no way.
    pub async fn dial_data(
        &self,
        host: &HostId,
        ticket: Ticket,
        wait: Duration,
    ) -> Result<TcpStream, RequestError> {
        let dialed = timeout(wait, relay::dial_data(&self.shared, host, ticket, wait)).await;
        let dialed = dialed.unwrap_or_else(|_| {
            Err(Failure::NoRoute(format!("no connection within {} ms", millis(wait))))
        });
        dialed.map_err(|failure| RequestError::of(failure, host, wait))
    }

    /// Watches whether a host answers, as long as what is returned is held. Many may watch one host.
    pub fn watch_host(&self, host: &HostId) -> HostWatch {
        watch::watch(&self.shared, host)
    }

    /// Links that begin and end, from now on.
    pub fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.shared.events.subscribe()
    }

    /// The hosts with which there is a link, in order.
    pub fn linked(&self) -> BTreeSet<HostId> {
        lock(&self.shared.live).links.values().map(|link| link.peer.host.clone()).collect()
    }

    /// Handshakes from now on use `identity`; links that are open stay. Where this host listens is not
    /// changed.
    ///
    /// # Errors
    /// [`PeerError::Certificate`], and nothing has changed.
    pub fn set_identity(&self, identity: Arc<Identity>) -> Result<(), PeerError> {
        let setup = Setup::new(identity, Arc::clone(&self.shared.evicted));
        self.shared.setup.store(Arc::new(setup.map_err(PeerError::Certificate)?));
        Ok(())
    }

    /// Refuses these keys from now on, and no others. Links with one of them, and what is spliced for
    /// their hosts here, are cut when this returns.
    pub fn set_evicted(&self, evicted: BTreeSet<KeyId>) {
        self.shared.evicted.store(Arc::new(evicted));
        // Whoever is being registered looks at the set under this lock.
        let live = lock(&self.shared.live);
        let evicted = self.shared.evicted.load();
        for link in live.links.values().filter(|link| evicted.contains(&link.peer.key_id)) {
            link.cut(How::Evicted);
            link.tcp.cut();
        }
        drop(live);
        self.shared.splices.cut(&evicted);
    }

    /// Closes all links with a good-bye, and the port.
    pub async fn close(&self) {
        self.shared.stop();
        let all = std::future::poll_fn(|cx| lock(&self.done).poll_recv(cx));
        let all = async {
            let _: Option<Infallible> = all.await; // `None` when the last task has ended.
        };
        if timeout(CLOSE_MAX, all).await.is_err() {
            tracing::debug!("some links of calls did not end in time; they are cut");
        }
    }
}

impl Drop for PeerLinks {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

#[derive(Default)]
struct Live {
    next: u64,
    accepted: usize,
    links: HashMap<u64, Arc<Link>>,
}

/// What the tasks of all links share.
struct Shared {
    me: HostId,
    role: Role,
    setup: ArcSwap<Setup>,
    evicted: Evicted,
    book: Arc<dyn Book>,
    answerer: ArcSwapOption<Arc<dyn PeerAnswerer>>,
    live: Mutex<Live>,
    dials: Dials,
    tickets: Mutex<Tickets<oneshot::Sender<TcpStream>>>,
    splices: Arc<Splices>,
    watched: Mutex<HashMap<HostId, Watched>>,
    gate: Arc<Gate>,
    said: Mutex<Said>,
    lookups: Arc<Semaphore>,
    events: broadcast::Sender<PeerEvent>,
    local_addr: value::Sender<Option<SocketAddr>>,
    closing: value::Sender<bool>,
    /// Each task has a clone; when all are gone, so are the tasks. `None` once it is closed.
    tasks: Mutex<Option<mpsc::Sender<Infallible>>>,
    /// Where handshakes and answers run.
    runtime: Handle,
    /// Where links run.
    links_runtime: Handle,
    began: Instant,
}

impl Shared {
    fn now_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }

    /// Runs a task that [`PeerLinks::close`] waits for; none any more once that was called.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        self.spawn_on(&self.runtime, task)
    }

    fn spawn_on(
        &self,
        runtime: &Handle,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Option<AbortHandle> {
        let running = lock(&self.tasks).clone()?;
        let task = async move {
            let _running = running;
            task.await;
        };
        Some(runtime.spawn(task).abort_handle())
    }

    /// What comes of `work`, unless the links are closed before.
    async fn unless_closing<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut closing = self.closing.subscribe();
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => None,
            done = work => Some(done),
        }
    }

    fn stop(&self) {
        self.closing.send_replace(true);
        lock(&self.tasks).take();
        for link in lock(&self.live).links.values() {
            link.cut(How::ByUs);
        }
        self.splices.cut_all();
    }

    /// A warning about `whom`, not again before a while.
    fn say(&self, whom: &str, words: fmt::Arguments<'_>) {
        if lock(&self.said).may_say(whom, self.now_ms()) {
            tracing::warn!("{words}");
        }
    }

    /// The link with a host. Where there are two, for both dialed at once, both sides take the one that
    /// the first in their order dialed; the other falls idle.
    fn link(&self, host: &HostId) -> Option<Arc<Link>> {
        let live = lock(&self.live);
        let of_host = live.links.values().filter(|link| link.peer.host == *host);
        let by_first = |link: &&Arc<Link>| (link.dialed == (self.me < *host), link.number);
        of_host.max_by_key(by_first).cloned()
    }

    fn expect(self: &Arc<Self>) -> Option<Expected> {
        let ticket = Ticket::random()?;
        let (waiter, stream) = oneshot::channel();
        let given = lock(&self.tickets).give(ticket, waiter, self.now_ms());
        given.then(|| Expected { shared: Arc::clone(self), ticket, stream })
    }

    /// Answers a question that is meant for this host.
    async fn answer(&self, from: HostId, what: What, wait: Duration) -> Result<Vec<u8>, Failure> {
        let What::Bytes(request) = what else { return Ok(Vec::new()) };
        let Some(answerer) = self.answerer.load_full() else {
            return Err(Failure::Refused("its node is still starting".to_owned()));
        };
        match timeout(wait, answerer.answer(from, request.into())).await {
            Ok(Ok(answer)) if answer.len() <= PAYLOAD_BYTES_MAX => Ok(answer.into()),
            Ok(Ok(answer)) => {
                let len_bytes = answer.len();
                Err(Failure::Refused(format!("its answer of {len_bytes} bytes is too large")))
            }
            Ok(Err(why)) => Err(Failure::Refused(why)),
            Err(_) => Err(Failure::Late),
        }
    }
}

/// Listens for calls, as soon as the port can be had.
async fn listen(
    shared: Arc<Shared>,
    address: SocketAddr,
    first: io::Result<tokio::net::TcpListener>,
) {
    let mut bound = first;
    let listener = loop {
        match bound {
            Ok(listener) => break listener,
            Err(error) => shared.say(
                "the call port",
                format_args!(
                    "cannot listen for calls on {address} ({error}): others reach programs of this \
                     host through gateways until it can; is another node running?"
                ),
            ),
        }
        sleep(LISTEN_AGAIN).await;
        bound = port::bind(address).await;
    };
    shared.local_addr.send_replace(listener.local_addr().ok());
    port::accept(shared, listener).await;
}

/// Closes links that nobody uses, for ever.
async fn close_idle(shared: &Arc<Shared>) {
    loop {
        sleep(IDLE_LOOK).await;
        let kept = dial::kept(shared);
        let links: Vec<_> = lock(&shared.live).links.values().cloned().collect();
        for link in links {
            let is_idle = shared.now_ms().saturating_sub(link.used_ms()) >= IDLE_MS;
            let is_needed = kept.contains(&link.peer.host)
                && shared.link(&link.peer.host).is_some_and(|best| best.number == link.number);
            if link.dialed && is_idle && !is_needed {
                link.cut(How::ByUs);
            }
        }
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}
