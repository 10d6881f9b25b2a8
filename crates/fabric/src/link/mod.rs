//! Links between hosts: mutually authenticated TLS connections, each joined to a local socket of the
//! control plane.
//!
//! The control plane speaks over Unix sockets in a private directory and knows nothing of
//! certificates. A gateway listens on one TCP port; what comes in there and proves to be of the cluster
//! is joined to the socket `z`, where the control plane listens. On a gateway there is a socket `g<n>` for
//! every other gateway that is known, and some spare ones for those that become known: the control plane
//! connects to all of them, from its start on. Who connects to one is joined to the gateway behind it,
//! dialed anew, whose certificate must name it; it waits while there is none, or while the two gateways
//! have a link already. A member has one such socket, behind which is the gateway that answers first. If
//! none can be dialed the local connection ends, and the control plane tries again.
//!
//! A link ends when either side does, when the certificate at its other end expires, and within the
//! call of [`Links::set_evicted`] when its key is evicted. [`Links::ends`] tells how, truthfully: a
//! connection that a kernel ended is told from one that was closed with TLS's good-bye.
//!
//! After the handshake the side that was dialed sends one byte, [`Welcome`]: only then the other side
//! knows that its certificate was accepted. All that follows is the control plane's.

mod accept;
pub(crate) mod dial;
pub(crate) mod gate;
pub(crate) mod limits;
pub(crate) mod socket;
mod splice;
pub(crate) mod tls;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::fmt;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use kumo_abi::HostId;
use kumo_abi::cluster::{LinkReport, Role, Unreached};
use kumo_pki::Evicted;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::identity::Identity;
use crate::join::JoinDesk;
use crate::pki::{KeyId, Peer};
use gate::Gate;
use limits::Said;
use socket::Tcp;
use splice::{Ended, Splice, Traffic};
use tls::Setup;

/// Links that others may open to this host: all hosts of its data centre, and all other gateways.
pub const LINKS_MAX: usize = 2_000;

/// Sockets of a gateway for gateways that become known after it was started. The control plane is told
/// its sockets once. Gateways that join later know this one and dial it; only those that were started
/// before they knew of each other need these.
const DOORS_SPARE: usize = 8;

/// How long a handshake may take, up to the welcome: five round trips around the world on a host that is
/// busy.
pub(crate) const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Who asks for a certificate at once and has none: more than the desk talks with, for it refuses the
/// rest in words.
const JOINS_MAX: usize = 512;

/// Who asks for a certificate at once and shows one: a place that nobody can take who has none.
const RENEWALS_MAX: usize = 128;

/// Between two links of the same gateways: the control plane on both sides works off the end of the first before
/// the next begins, or drops what is told over that ([`crate::net::audit`]). Hosts whose tokens go with a link have
/// 300 ms to come back.
const REST: Duration = Duration::from_millis(120);

/// Ends that a slow reader may be behind before it misses some.
const ENDS_MAX: usize = 4_096;

/// Whether a certificate has expired is looked at so often at least: clocks are set.
const EXPIRY_LOOK: Duration = Duration::from_secs(60);

/// So long [`Links::close`] waits for the good-byes.
const CLOSE_MAX: Duration = Duration::from_secs(3);

/// Longest path of a Unix socket: `sun_path` holds 108 bytes, with the zero at the end.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Longest name of ours in the directory, with the slash: `/g9999999`.
const SOCKET_NAME_BYTES_MAX: usize = 9;

/// Where the control plane of a gateway listens, in the directory.
const LISTEN_NAME: &str = "z";

/// Why there are no links.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A path of a Unix socket has its limit.
    #[error(
        "`{}` is too long for sockets in it: {} bytes, and {} are the most; choose another by --run-dir",
        dir.display(), dir.as_os_str().len(), SOCKET_PATH_BYTES_MAX - SOCKET_NAME_BYTES_MAX
    )]
    DirTooLong {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory, or a socket in it.
    #[error("cannot use `{}`", path.display())]
    Local {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The port for other hosts.
    #[error("cannot listen for other hosts on {address}; is another node running?")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The certificate, the key or the authority.
    #[error("TLS cannot use this host's certificate; was it changed by hand?")]
    Certificate(#[source] rustls::Error),
}

/// How a link ended, or a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The kernel at the other end ended it, and nobody there said good-bye: the process died.
    ByPeer,
    /// The process at the other end closed it and said so; it lives.
    Closed,
    /// This host closed it.
    ByUs,
    /// Nothing listens at any of the gateway's addresses; there was no link.
    Refused,
    /// The key at the other end was evicted.
    Evicted,
    /// The certificate at the other end expired.
    Expired,
    /// The other end's TCP did not answer any more.
    Lost,
}

/// A link, or a dial, has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEnd {
    /// The host at the other end.
    pub peer: HostId,
    /// What it is to the others.
    pub role: Role,
    /// How.
    pub how: How,
}

/// What the side that was dialed says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Welcome {
    /// The link is open.
    Come,
    /// There are too many.
    Busy,
    /// The control plane does not listen.
    NotReady,
}

impl Welcome {
    const ALL: [Welcome; 3] = [Welcome::Come, Welcome::Busy, Welcome::NotReady];

    pub(crate) fn code(self) -> u8 {
        match self {
            Welcome::Come => 0,
            Welcome::Busy => 1,
            Welcome::NotReady => 2,
        }
    }

    fn of_code(code: u8) -> Option<Welcome> {
        Welcome::ALL.into_iter().find(|welcome| welcome.code() == code)
    }
}

/// The links of this host. Dropping it cuts them all; [`Links::close`] says good-bye.
pub struct Links {
    shared: Arc<Shared>,
    local_addr: Option<SocketAddr>,
    done: mpsc::Receiver<Infallible>,
}

impl Links {
    /// Opens the sockets of `identity` in `dir`, which is made with mode 0700, and listens for other
    /// hosts where it says so. Sockets of a node that was killed are removed; that none lives is the
    /// business of the node's lock.
    ///
    /// `desk` serves those who ask for a certificate; without one they are refused.
    ///
    /// # Errors
    /// See [`LinkError`]; then nothing listens.
    pub async fn open(
        identity: Arc<Identity>,
        dir: &Path,
        desk: Option<Arc<dyn JoinDesk>>,
    ) -> Result<Links, LinkError> {
        prepare(dir)?;
        let evicted: Evicted = Arc::default();
        let setup = Setup::new(Arc::clone(&identity), Arc::clone(&evicted));
        let setup = setup.map_err(LinkError::Certificate)?;
        let listener = match identity.listen {
            Some(address) => {
                let listen = |source| LinkError::Listen { address, source };
                let listener = TcpListener::bind(address).await.map_err(listen)?;
                let local_addr = listener.local_addr().map_err(listen)?;
                Some((listener, local_addr))
            }
            None => None,
        };
        let (tasks, done) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            setup: ArcSwap::from_pointee(setup),
            evicted,
            desk,
            local: listener.is_some().then(|| dir.join(LISTEN_NAME)),
            dir: dir.to_owned(),
            live: Mutex::default(),
            doors: Mutex::default(),
            changes: watch::Sender::new(0),
            lost: Mutex::default(),
            ended: Mutex::default(),
            said: Mutex::default(),
            unreached: Mutex::default(),
            gate: Gate::new(),
            joins: Semaphore::new(JOINS_MAX),
            renewals: Semaphore::new(RENEWALS_MAX),
            lookups: Arc::new(Semaphore::new(dial::LOOKUPS_MAX)),
            ends: broadcast::Sender::new(ENDS_MAX),
            closing: watch::Sender::new(false),
            tasks: Mutex::new(Some(tasks)),
            runtime: Handle::current(),
            began: Instant::now(),
        });
        let local_addr = listener.as_ref().map(|(_, local_addr)| *local_addr);
        let links = Links { shared, local_addr, done };
        links.shared.set_doors(&identity)?;
        if let Some((listener, _)) = listener {
            let accepting = Arc::clone(&links.shared);
            links.shared.spawn(async move {
                accepting.unless_closing(accept::accept(Arc::clone(&accepting), listener)).await;
            });
        }
        Ok(links)
    }

    /// Where the control plane of a gateway shall listen; `None` on members.
    pub fn zenoh_listen(&self) -> Option<PathBuf> {
        self.shared.local.clone()
    }

    /// Where the control plane shall connect to: on a gateway a socket for each other gateway and some
    /// spare ones, on a member a single one.
    pub fn zenoh_connect(&self) -> Vec<PathBuf> {
        lock(&self.shared.doors).open.iter().map(|door| door.path.clone()).collect()
    }

    /// Where other hosts reach this one; `None` on members.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// Handshakes from now on use `identity`; links that are open stay. Gateways that are new get a
    /// socket, those that are gone lose theirs. Where this host listens is not changed.
    ///
    /// # Errors
    /// [`LinkError::Certificate`], and nothing has changed; [`LinkError::Local`] when a socket cannot be
    /// made for a new gateway, and all else has changed.
    pub fn set_identity(&self, identity: Arc<Identity>) -> Result<(), LinkError> {
        let setup = Setup::new(identity, Arc::clone(&self.shared.evicted));
        let setup = Arc::new(setup.map_err(LinkError::Certificate)?);
        self.shared.setup.store(Arc::clone(&setup));
        self.shared.set_doors(&setup.identity)
    }

    /// Refuses these keys from now on, and no others. Links with one of them are cut when this returns.
    pub fn set_evicted(&self, evicted: BTreeSet<KeyId>) {
        self.shared.evicted.store(Arc::new(evicted));
        // Whoever is being registered looks at the set under this lock.
        let live = lock(&self.shared.live);
        let evicted = self.shared.evicted.load();
        for link in live.links.values().filter(|link| evicted.contains(&link.peer.key_id)) {
            link.cut.send_replace(Some(How::Evicted));
            link.tcp.cut();
        }
    }

    /// Whether this member is linked to another data centre while a gateway of its own answers. Takes as
    /// long as dialing does.
    pub async fn is_away(&self) -> bool {
        let setup = self.shared.setup();
        let home = &setup.identity.host.dc;
        let is_away = {
            let live = lock(&self.shared.live);
            let mut dialed = live.links.values().filter(|link| link.dialed).peekable();
            dialed.peek().is_some() && dialed.all(|link| link.peer.host.dc != *home)
        };
        if setup.identity.role != Role::Member || !is_away {
            return false;
        }
        let known = setup.identity.gateways.iter().map(|known| &known.host);
        for gateway in known.filter(|gateway| gateway.dc == *home) {
            if dial::answers(&self.shared, gateway).await {
                return true;
            }
        }
        false
    }

    /// Closes the links that this member has opened to other data centres: the control plane connects
    /// again, and that begins at home.
    pub fn go_home(&self) {
        let setup = self.shared.setup();
        let home = &setup.identity.host.dc;
        for link in lock(&self.shared.live).links.values() {
            if link.dialed && link.peer.host.dc != *home {
                link.end_by_us();
            }
        }
    }

    /// Ends the link with a gateway, if there is one: it is made anew.
    pub(crate) fn end_link(&self, gateway: &HostId) {
        let live = lock(&self.shared.live);
        for link in live.links.values().filter(|link| link.peer.host == *gateway) {
            link.end_by_us();
        }
    }

    /// With whom there are links that have been open for so long, and what they are.
    pub(crate) fn linked(&self, age_min: Duration) -> Vec<(HostId, Role)> {
        let live = lock(&self.shared.live);
        let old = live.links.values().filter(|link| link.since.elapsed() >= age_min);
        old.map(|link| (link.peer.host.clone(), link.peer.role)).collect()
    }

    /// The links that are open, in the order of their hosts.
    pub fn reports(&self) -> Vec<LinkReport> {
        let live = lock(&self.shared.live);
        let report = |link: &Link| LinkReport {
            peer: link.peer.host.clone(),
            role: link.peer.role,
            dialed: link.dialed,
            address: link.address.to_string(),
            rtt_us: link.tcp.rtt_us(),
            age_ms: link.since.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
            received_bytes: link.traffic.received_bytes.load(Ordering::Relaxed),
            sent_bytes: link.traffic.sent_bytes.load(Ordering::Relaxed),
        };
        let mut reports: Vec<LinkReport> = live.links.values().map(report).collect();
        reports
            .sort_by(|a, b| (&a.peer, a.dialed, &a.address).cmp(&(&b.peer, b.dialed, &b.address)));
        reports
    }

    /// Gateways that could not be dialed when they last were, and why, in their order. One with which
    /// there is a link is not among them.
    pub fn unreached(&self) -> Vec<Unreached> {
        let setup = self.shared.setup();
        let is_known = |id: &HostId| setup.identity.gateways.iter().any(|known| known.host == *id);
        let mut unreached = lock(&self.shared.unreached);
        unreached.retain(|id, _| is_known(id));
        let without_link = unreached.iter().filter(|(id, _)| !self.shared.is_linked(id));
        without_link.map(|(id, why)| Unreached { id: id.clone(), why: why.clone() }).collect()
    }

    /// The ends of links, and dials that were refused, from now on.
    pub fn ends(&self) -> broadcast::Receiver<LinkEnd> {
        self.shared.ends.subscribe()
    }

    /// Closes all links with a good-bye, and the sockets.
    pub async fn close(mut self) {
        self.shared.stop();
        let all = async { while self.done.recv().await.is_some() {} };
        if timeout(CLOSE_MAX, all).await.is_err() {
            tracing::debug!("some links did not end in time; they are cut");
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

/// Makes the directory, private, and removes sockets of ours that nobody listens on.
fn prepare(dir: &Path) -> Result<(), LinkError> {
    if dir.as_os_str().len() > SOCKET_PATH_BYTES_MAX - SOCKET_NAME_BYTES_MAX {
        return Err(LinkError::DirTooLong { dir: dir.to_owned() });
    }
    let clean = || {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_ours = name.to_str().is_some_and(|name| {
                let number = name.strip_prefix('g').unwrap_or("");
                name == LISTEN_NAME
                    || (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
            });
            if is_ours && entry.file_type()?.is_socket() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    clean().map_err(|source| LinkError::Local { path: dir.to_owned(), source })
}

/// Data under a lock stays right when a thread panics: nothing is done under these that can.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One open link.
struct Link {
    peer: Peer,
    dialed: bool,
    address: SocketAddr,
    since: Instant,
    tcp: Tcp,
    traffic: Arc<Traffic>,
    cut: watch::Sender<Option<How>>,
}

impl Link {
    fn end_by_us(&self) {
        self.cut.send_if_modified(|cut| cut.is_none() && cut.replace(How::ByUs).is_none());
    }
}

#[derive(Default)]
struct Live {
    next: u64,
    accepted: usize,
    links: HashMap<u64, Link>,
}

/// Who is behind a local socket.
#[derive(Clone, Debug)]
enum Whom {
    /// This gateway, while there is one.
    One(watch::Receiver<Option<HostId>>),
    /// Whichever gateway answers first.
    Any,
}

/// A local socket that leads to a gateway.
struct Door {
    path: PathBuf,
    task: AbortHandle,
    /// Who is behind it; `None` for a member's door to any.
    gateway: Option<watch::Sender<Option<HostId>>>,
}

impl Door {
    /// Whether this gateway is behind it.
    fn leads_to(&self, gateway: Option<&HostId>) -> bool {
        self.gateway.as_ref().is_some_and(|behind| behind.borrow().as_ref() == gateway)
    }
}

#[derive(Default)]
struct Doors {
    next: u64,
    open: Vec<Door>,
}

/// What the tasks of all links share.
struct Shared {
    setup: ArcSwap<Setup>,
    evicted: Evicted,
    desk: Option<Arc<dyn JoinDesk>>,
    /// Where accepted links go.
    local: Option<PathBuf>,
    dir: PathBuf,
    live: Mutex<Live>,
    doors: Mutex<Doors>,
    /// Grows with every link that begins or ends.
    changes: watch::Sender<u64>,
    /// The gateway whose link, dialed by us, ended last: it is the last to be tried again.
    lost: Mutex<Option<HostId>>,
    /// When the links of gateways ended, as long as [`REST`] is not over.
    ended: Mutex<BTreeMap<HostId, Instant>>,
    said: Mutex<Said>,
    /// Why each gateway that could not be dialed when it last was could not; no more than are known.
    unreached: Mutex<BTreeMap<HostId, String>>,
    gate: Arc<Gate>,
    joins: Semaphore,
    renewals: Semaphore,
    lookups: Arc<Semaphore>,
    ends: broadcast::Sender<LinkEnd>,
    closing: watch::Sender<bool>,
    /// Each task has a clone; when all are gone, so are the tasks. `None` once it is closed.
    tasks: Mutex<Option<mpsc::Sender<Infallible>>>,
    runtime: Handle,
    began: Instant,
}

impl Shared {
    fn setup(&self) -> Arc<Setup> {
        self.setup.load_full()
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis().try_into().unwrap_or(u64::MAX)
    }

    /// Runs a task that [`Links::close`] waits for; none any more once that was called.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        let running = lock(&self.tasks).clone()?;
        let task = async move {
            let _running = running;
            task.await;
        };
        Some(self.runtime.spawn(task).abort_handle())
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
        for door in std::mem::take(&mut lock(&self.doors).open) {
            door.close();
        }
        for link in lock(&self.live).links.values() {
            link.end_by_us();
        }
    }

    /// A warning about `whom`, not again before a while.
    fn say(&self, whom: &str, words: fmt::Arguments<'_>) {
        if lock(&self.said).may_say(whom, self.now_ms()) {
            tracing::warn!("{words}");
        }
    }

    fn forget_said(&self, whom: &str) {
        lock(&self.said).forget(whom);
    }

    fn tell(&self, end: LinkEnd) {
        let _ = self.ends.send(end); // It fails when nobody listens.
    }

    /// Lets the sockets lead to the gateways that are known, each to its own, and to no others.
    fn set_doors(self: &Arc<Self>, identity: &Identity) -> Result<(), LinkError> {
        let _runtime = self.runtime.enter(); // Sockets are bound to it, whoever calls.
        let mut doors = lock(&self.doors);
        if identity.role == Role::Member {
            return if doors.open.is_empty() { self.add_door(&mut doors, None) } else { Ok(()) };
        }
        let others = identity.gateways.iter().map(|known| &known.host);
        let wanted: BTreeSet<&HostId> = others.filter(|host| **host != identity.host).collect();
        for behind in doors.open.iter().filter_map(|door| door.gateway.as_ref()) {
            behind.send_if_modified(|gateway| {
                let is_over = gateway.as_ref().is_some_and(|gateway| !wanted.contains(gateway));
                is_over && gateway.take().is_some()
            });
        }
        let is_first = doors.open.is_empty();
        for gateway in wanted {
            if doors.open.iter().any(|door| door.leads_to(Some(gateway))) {
                continue;
            }
            if !doors.open.iter().any(|door| door.leads_to(None)) {
                if !is_first {
                    tracing::warn!(
                        "no socket is spare for the gateway {gateway}; it dials this host, or restart this node"
                    );
                }
                self.add_door(&mut doors, Some(watch::Sender::new(None)))?;
            }
            let spare = doors.open.iter().find(|door| door.leads_to(None));
            if let Some(behind) = spare.and_then(|door| door.gateway.as_ref()) {
                behind.send_replace(Some(gateway.clone()));
            }
        }
        if is_first {
            for _ in 0..DOORS_SPARE {
                self.add_door(&mut doors, Some(watch::Sender::new(None)))?;
            }
        }
        Ok(())
    }

    fn add_door(
        self: &Arc<Self>,
        doors: &mut Doors,
        gateway: Option<watch::Sender<Option<HostId>>>,
    ) -> Result<(), LinkError> {
        let path = self.dir.join(format!("g{}", doors.next));
        doors.next += 1;
        let listener = listen_locally(&path);
        let listener =
            listener.map_err(|source| LinkError::Local { path: path.clone(), source })?;
        let whom = gateway.as_ref().map_or(Whom::Any, |behind| Whom::One(behind.subscribe()));
        let shared = Arc::clone(self);
        let task = self.spawn(async move {
            shared.unless_closing(dial::door(Arc::clone(&shared), whom, listener)).await;
        });
        if let Some(task) = task {
            doors.open.push(Door { path, task, gateway });
        } // Else it is being closed.
        Ok(())
    }

    /// How long this gateway is not to be dialed yet.
    fn rest(&self, gateway: &HostId) -> Duration {
        let ended = lock(&self.ended).get(gateway).copied();
        ended.map_or(Duration::ZERO, |at| REST.saturating_sub(at.elapsed()))
    }

    /// Whether there is a link with this host.
    fn is_linked(&self, host: &HostId) -> bool {
        lock(&self.live).links.values().any(|link| link.peer.host == *host)
    }

    /// Puts a link on the list, where it is until what is returned is ended or dropped.
    ///
    /// # Errors
    /// What is to be said to the other end: there are too many, or its key was evicted or all is closed
    /// meanwhile.
    fn register(
        self: &Arc<Self>,
        peer: Peer,
        dialed: bool,
        address: SocketAddr,
        tcp: Tcp,
    ) -> Result<Registered, Welcome> {
        let mut live = lock(&self.live);
        if !dialed && live.accepted >= LINKS_MAX {
            drop(live);
            let whom = address.ip();
            let words = format_args!("{whom} was refused: {LINKS_MAX} links are open already");
            self.say(&whom.to_string(), words);
            return Err(Welcome::Busy);
        }
        if self.evicted.load().contains(&peer.key_id) || *self.closing.borrow() {
            return Err(Welcome::NotReady);
        }
        let (number, traffic) = (live.next, Arc::<Traffic>::default());
        let (cut, is_cut) = watch::channel(None);
        let registered = Registered {
            shared: Arc::clone(self),
            number,
            traffic: Arc::clone(&traffic),
            is_cut,
            expires_ms: peer.not_after_ms,
        };
        live.next += 1;
        live.accepted += usize::from(!dialed);
        let link = Link { peer, dialed, address, since: Instant::now(), tcp, traffic, cut };
        tracing::debug!("link {number} with {} at {address} is open", link.peer.host);
        live.links.insert(number, link);
        drop(live);
        self.changes.send_modify(|changes| *changes += 1);
        Ok(registered)
    }
}

impl Door {
    fn close(&self) {
        self.task.abort();
        let _ = fs::remove_file(&self.path); // If it cannot be removed, the next node does it.
    }
}

fn listen_locally(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A link that is on the list.
struct Registered {
    shared: Arc<Shared>,
    number: u64,
    traffic: Arc<Traffic>,
    is_cut: watch::Receiver<Option<How>>,
    expires_ms: u64,
}

impl Registered {
    /// The gateway at the other end, if we are the side that dialed.
    fn dialed_gateway(&self) -> Option<HostId> {
        let live = lock(&self.shared.live);
        let link = live.links.get(&self.number).filter(|link| link.dialed)?;
        Some(link.peer.host.clone())
    }

    /// Takes the link from the list and tells that it ended.
    fn end(&self, how: How) {
        let link = {
            let mut live = lock(&self.shared.live);
            let link = live.links.remove(&self.number);
            live.accepted -= usize::from(link.as_ref().is_some_and(|link| !link.dialed));
            link
        };
        if let Some(Link { peer, address, dialed, .. }) = link {
            self.shared.changes.send_modify(|changes| *changes += 1);
            if dialed {
                *lock(&self.shared.lost) = Some(peer.host.clone());
            }
            if peer.role == Role::Gateway {
                let mut ended = lock(&self.shared.ended);
                ended.retain(|_, at| at.elapsed() < REST);
                ended.insert(peer.host.clone(), Instant::now());
            }
            tracing::debug!("link {} with {} at {address} ended: {how:?}", self.number, peer.host);
            self.shared.tell(LinkEnd { peer: peer.host, role: peer.role, how });
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.end(How::ByUs); // Nothing if it has ended.
    }
}

/// Passes bytes of a link until it ends.
async fn run<S>(registered: Registered, stream: S, local: UnixStream)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let traffic = Arc::clone(&registered.traffic);
    let gateway = registered.dialed_gateway();
    let mut is_cut = registered.is_cut.clone();
    let mut splice = Splice::new(stream, local, &traffic);
    let ended = tokio::select! {
        biased;
        _ = is_cut.wait_for(Option::is_some) => None,
        () = expiry(registered.expires_ms) => None,
        ended = splice.until_one_ends(is_gone) => Some(ended),
    };
    // What was cut also looks as if one side ended it.
    let cut = *registered.is_cut.borrow();
    let (how, ended) = match (cut, ended) {
        (Some(How::Evicted), _) => (How::Evicted, Ended::RemoteAbrupt),
        (Some(how), _) => (how, Ended::Local),
        (None, None) => (How::Expired, Ended::Local),
        (None, Some(Ended::Local)) => (How::ByUs, Ended::Local),
        (None, Some(Ended::Remote)) => (How::Closed, Ended::Remote),
        (None, Some(Ended::RemoteAbrupt)) => (How::ByPeer, Ended::RemoteAbrupt),
        (None, Some(Ended::RemoteLost)) => (How::Lost, Ended::RemoteLost),
    };
    registered.end(how);
    if let (How::ByPeer, Some(gateway)) = (how, gateway) {
        let asking = Arc::clone(&registered.shared);
        registered.shared.spawn(async move { dial::ask_after(&asking, &gateway).await });
    }
    splice.finish(ended).await;
}

/// Returns when the wall clock shows `at_ms`, milliseconds since the Unix epoch.
pub(crate) async fn expiry(at_ms: u64) {
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = Duration::from_millis(at_ms).saturating_sub(now);
        if left.is_zero() {
            return;
        }
        sleep(left.min(EXPIRY_LOOK)).await;
    }
}

/// Whether the other side of a local connection was closed.
fn is_gone(local: &UnixStream) -> bool {
    let mut fds = [PollFd::new(local, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let polled = poll(&mut fds, Some(&at_once));
    polled.is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}
