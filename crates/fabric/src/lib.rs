//! Hosts and data centres joined into one system.
//!
//! A [`Fabric`] is one node's part of it: who is there ([`members`]), what they say about themselves and
//! what shall be (the [`store`]), and questions to many at once ([`Fabric::gather`]). There is no
//! centre and no quorum: a site that is cut off goes on with what it knows.
//!
//! Between hosts runs TLS of our own ([`link`]), in which Zenoh's control plane travels; no other crate
//! names Zenoh.

pub mod ask;
pub mod clock;
mod gather;
pub mod identity;
pub mod join;
pub mod link;
pub mod members;
mod net;
pub mod peer;
pub mod rendezvous;
pub mod sealed;
mod shared;
pub mod store;
pub mod token;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use kumo_abi::cluster::{Card, HostInfo, LinkReport, Role, Unreached};
use kumo_abi::{DcName, HostId, chain};
use kumo_pki::KeyId;
use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{interval, timeout};

pub use self::ask::{Answerer, Answering, Ask, Part};
use self::identity::{Gateway, Identity};
use self::join::desk::RenewError;
use self::join::registry::{CARDS, card_key};
use self::join::{Desk, registry};
use self::link::{LinkError, Links};
pub use self::net::LEASE_DEFAULT;
use self::net::{Keys, sync, watch};
use self::peer::{PeerError, PeerLinks};
pub use self::shared::HostEvent;
use self::shared::{Shared, left_key};
use self::store::{Store, StoreError};
use self::token::{Token, TokenAsk, TokenError};
pub use kumo_pki as pki;
pub use kumo_sys::wall_ms;

/// How often what others wrote is put on the disk.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whether our certificate is due for renewal, and what the desired state may
/// forget of old certificates and tokens.
const RENEWAL_EVERY: Duration = Duration::from_secs(600);

/// How often a member that hangs on another data centre's gateway looks whether its own are back.
const HOME_EVERY: Duration = Duration::from_secs(20);

/// Saying good-bye takes no longer; who is not told sees the token go.
const BYE_TIME_MAX: Duration = Duration::from_millis(500);

/// The number of this node's last start, in its state directory.
const INCARNATION_FILE: &str = "incarnation";

/// Between two attempts to open a session.
const REOPEN_AFTER: Duration = Duration::from_millis(200);

/// How a node takes part.
#[derive(Debug)]
pub struct FabricConfig {
    /// Who it is.
    pub identity: Identity,
    /// Where its identity and its copy of the desired state are, `<state>/fabric`. Without one nothing
    /// is kept: for simulated hosts.
    pub state_dir: Option<PathBuf>,
    /// Where its sockets are, `<run>/fabric`; made if it is not there.
    pub run_dir: PathBuf,
    /// What it says about itself.
    pub card: Card,
    /// Whether it has links for calls ([`peer`]); simulated hosts have none.
    pub calls: bool,
    /// How long a silent connection lives; [`LEASE_DEFAULT`] where nothing is given. Deaths that no kernel
    /// tells of are seen so much later.
    pub lease: Option<Duration>,
}

/// Why a node does not take part. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The desired state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The links.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The links for calls.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The key of the authority, on a gateway; or a file of ours beside it.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
}

/// One node's part of the cluster. Clones are the same one; it ends when [`Fabric::close`] is called or
/// the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Fabric {
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    shared: Arc<Shared>,
    identity: Arc<ArcSwap<Identity>>,
    /// None after the end.
    links: ArcSwapOption<Links>,
    peers: Option<Arc<PeerLinks>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Fabric {
    /// Takes part. Returns when this node answers and listens; the others appear when they are reached,
    /// if that takes for ever.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(
        config: FabricConfig,
        answerer: Arc<dyn Answerer>,
    ) -> Result<Fabric, OpenError> {
        let FabricConfig { identity, state_dir, run_dir, card, calls, lease } = config;
        let (me, role) = (identity.host.clone(), identity.role);
        let keys = Keys::new(&identity.cluster);
        let (store, incarnation) = match &state_dir {
            Some(dir) => {
                (Store::open(&dir.join("store.redb"), me.clone())?, next_incarnation(dir)?)
            }
            None => (Store::in_memory(me.clone()), wall_ms()),
        };
        let store = Arc::new(store);
        let identity = Arc::new(ArcSwap::from_pointee(identity));
        let shared = Arc::new(Shared::new(
            me.clone(),
            role,
            incarnation,
            keys,
            Arc::clone(&store),
            answerer,
        ));
        let desk = match &state_dir {
            Some(dir) if role == Role::Gateway => Some(desk(dir, &identity, &shared)?),
            _ => None,
        };
        let serving = desk.clone().map(|desk| desk as Arc<dyn join::JoinDesk>);
        let links = Arc::new(Links::open(identity.load_full(), &run_dir, serving).await?);
        let peers = if calls {
            let book =
                Arc::new(CardBook { shared: Arc::clone(&shared), identity: Arc::clone(&identity) });
            Some(Arc::new(PeerLinks::open(identity.load_full(), book).await?))
        } else {
            None
        };
        let mut tasks = JoinSet::new();
        let (sightings, seen) = mpsc::unbounded_channel();
        let (incoming, taking) = sync::start(&shared);
        let (came, coming) = mpsc::unbounded_channel();
        tasks.spawn(part(taking));
        let (doubtful, looking) = mpsc::unbounded_channel();
        tasks.spawn(part(watch::decide(Arc::clone(&shared), seen, came, doubtful)));
        tasks.spawn(part(watch::verify(Arc::clone(&shared), looking, sightings.clone())));
        tasks.spawn(part(watch::tell_ends(Arc::clone(&shared), links.ends(), sightings.clone())));
        tasks.spawn(part(sync::tell_changes(Arc::clone(&shared), store.changes())));
        tasks.spawn(part(sync::compare(Arc::clone(&shared), incoming.clone(), coming)));
        tasks.spawn(part(flush(Arc::clone(&store))));
        let told_of_gateways = Arc::new(Notify::new());
        tasks.spawn(part(follow(
            Arc::clone(&shared),
            Arc::clone(&identity),
            Arc::clone(&links),
            peers.clone(),
            state_dir.clone(),
            Arc::clone(&told_of_gateways),
        )));
        match role {
            Role::Member => tasks.spawn(part(go_home(Arc::clone(&links), told_of_gateways))),
            Role::Gateway => {
                tasks.spawn(part(net::audit::audit(Arc::clone(&shared), Arc::clone(&links))))
            }
        };
        if let Some(dir) = state_dir {
            let (identity, links) = (Arc::clone(&identity), Arc::clone(&links));
            tasks.spawn(part(renew(identity, links, peers.clone(), dir, desk)));
        }
        // After `tell_changes` listens: what is put now, others hear of when there is a session.
        let putting = spawn_blocking(move || put_card(&store, &me, &card));
        // A panic of ours goes on here.
        putting.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        let lease = lease.unwrap_or(LEASE_DEFAULT);
        let connecting =
            connect(Arc::clone(&shared), Arc::clone(&links), sightings, incoming, lease);
        tasks.spawn(part(connecting));
        let tasks = Mutex::new(tasks);
        let links = ArcSwapOption::from(Some(links));
        Ok(Fabric { parts: Arc::new(Parts { shared, identity, links, peers, tasks }) })
    }

    /// Who this node is.
    pub fn identity(&self) -> Arc<Identity> {
        self.parts.identity.load_full()
    }

    /// A number for this start of its node, greater than that of every start before.
    pub fn incarnation(&self) -> u64 {
        self.parts.shared.incarnation
    }

    /// All hosts of the cluster, the dead ones too, in order.
    pub fn hosts(&self) -> Vec<HostInfo> {
        self.parts.shared.hosts()
    }

    /// The same without their cards, which need not be read then.
    pub fn states(&self) -> Vec<HostInfo> {
        self.parts.shared.states()
    }

    /// One host of them, with its card.
    pub fn host(&self, host: &HostId) -> Option<HostInfo> {
        self.parts.shared.host(host)
    }

    /// Changes of hosts' states from now on. Who lags behind misses some, is told so, and looks at
    /// [`Fabric::hosts`].
    pub fn events(&self) -> broadcast::Receiver<HostEvent> {
        self.parts.shared.events.subscribe()
    }

    /// The links of this node.
    pub fn links(&self) -> Vec<LinkReport> {
        self.parts.links.load().as_ref().map_or_else(Vec::new, |links| links.reports())
    }

    /// Gateways that this node could not reach when it last tried, and why.
    pub fn unreached(&self) -> Vec<Unreached> {
        self.parts.links.load().as_ref().map_or_else(Vec::new, |links| links.unreached())
    }

    /// Where this node listens, with the real port; members do not.
    pub fn local_addr(&self) -> Option<std::net::SocketAddr> {
        self.parts.links.load().as_ref().and_then(|links| links.local_addr())
    }

    /// The links for calls, where this node has them.
    pub fn peers(&self) -> Option<&Arc<PeerLinks>> {
        self.parts.peers.as_ref()
    }

    /// Asks many hosts. Parts come as they are known; every host is in exactly one of them. Dropping the
    /// receiver ends it.
    pub fn gather(&self, ask: Ask) -> mpsc::Receiver<Part> {
        net::question::gather(&self.parts.shared, ask)
    }

    /// The desired state.
    pub fn store(&self) -> &Arc<Store> {
        &self.parts.shared.store
    }

    /// Takes back the certificates of a host: its links are cut, and it gets no others. Returns how
    /// many there were.
    ///
    /// # Errors
    /// See [`EvictError`].
    pub async fn evict(&self, host: &HostId) -> Result<usize, EvictError> {
        if *host == self.parts.shared.me {
            return Err(EvictError::Myself);
        }
        if self.host(host).is_none() && !registry::is_known(self.store(), host, wall_ms()) {
            return Err(EvictError::Unknown(host.clone()));
        }
        let (host, store) = (host.clone(), Arc::clone(self.store()));
        let evicting = spawn_blocking(move || registry::evict(&store, &host, wall_ms()));
        Ok(evicting.await.map_err(EvictError::Ended)??)
    }

    /// The keys that are not believed any more.
    pub fn evicted(&self) -> BTreeSet<KeyId> {
        registry::evicted(self.store())
    }

    /// Makes a token that lets hosts into the cluster.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn token(&self, ask: TokenAsk) -> Result<Token, TokenError> {
        let (store, identity) = (Arc::clone(self.store()), self.identity());
        let making = spawn_blocking(move || token::create(&store, &identity, &ask, wall_ms()));
        // A panic of ours goes on here.
        making.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Says good-bye and stops taking part.
    pub async fn close(&self) {
        let shared = &self.parts.shared;
        if timeout(BYE_TIME_MAX, note_leaving(shared)).await.is_err() {
            tracing::debug!("the others could not be told in time that this node stops");
        }
        if let Some(session) = shared.session() {
            let bye = session.put(shared.keys.bye(&shared.me, shared.incarnation), Vec::new());
            if timeout(BYE_TIME_MAX, async { bye.express(true).await }).await.is_err() {
                tracing::debug!("the others could not be told that this node stops");
            }
            // In any case the token goes with the session.
            let _ = timeout(BYE_TIME_MAX, async { session.close().await }).await;
        }
        let mut tasks =
            std::mem::take(&mut *self.parts.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        if let Some(peers) = &self.parts.peers {
            peers.close().await;
        }
        shared.set_session(None);
        // The tasks are gone, and nobody else keeps it.
        if let Some(links) = self.parts.links.swap(None).and_then(Arc::into_inner) {
            links.close().await;
        }
        let store = Arc::clone(&shared.store);
        let _ = spawn_blocking(move || store.flush()).await;
    }
}

/// Why a host was not evicted.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// This node.
    #[error("a host does not evict itself; on it, `kumo leave` leaves the cluster")]
    Myself,
    /// Nobody has that name.
    #[error("there is no host `{0}` in the cluster; `kumo hosts` lists them")]
    Unknown(HostId),
    /// The disk.
    #[error("the eviction could not be written")]
    Store(#[from] StoreError),
    /// A bug of ours.
    #[error("evicting failed")]
    Ended(#[source] tokio::task::JoinError),
}

/// Where those who want to join are served.
fn desk(
    dir: &Path,
    identity: &Arc<ArcSwap<Identity>>,
    shared: &Arc<Shared>,
) -> Result<Arc<Desk>, OpenError> {
    let at = Arc::downgrade(shared);
    let is_alive = move |host: &HostId| {
        at.upgrade().is_some_and(|shared| shared.standing(host) == gather::Standing::Present)
    };
    let (identity, store) = (Arc::clone(identity), Arc::clone(&shared.store));
    let authority = identity::load_authority(dir)?;
    let desk = Desk::new(dir.to_owned(), identity, store, authority, Box::new(is_alive))?;
    Ok(Arc::new(desk))
}

/// What cards and tokens tell of hosts, for calls.
struct CardBook {
    shared: Arc<Shared>,
    identity: Arc<ArcSwap<Identity>>,
}

impl peer::Book for CardBook {
    fn call_addresses(&self, host: &HostId) -> Vec<String> {
        let card = self.shared.store.value(&card_key(host));
        let card = card.and_then(|card| serde_json::from_slice::<Card>(&card).ok());
        card.map(|card| Gateway::of_card(host.clone(), &card.call_addresses).addresses)
            .unwrap_or_default()
    }

    fn gateways(&self, dc: &DcName) -> Vec<HostId> {
        let alive: Vec<HostId> = self.shared.members().gateways(dc).cloned().collect();
        if !alive.is_empty() {
            return alive;
        }
        let identity = self.identity.load();
        let known = identity.gateways.iter().map(|gateway| &gateway.host);
        known.filter(|host| host.dc == *dc).cloned().collect()
    }
}

/// A number for this start that is greater than that of every start before, also when the clock was
/// set back meanwhile.
fn next_incarnation(dir: &Path) -> Result<u64, OpenError> {
    let last = std::fs::read_to_string(dir.join(INCARNATION_FILE)).ok();
    let last = last.and_then(|text| text.trim().parse::<u64>().ok());
    let next = wall_ms().max(last.map_or(0, |last| last.saturating_add(1)));
    identity::write(dir, INCARNATION_FILE, &format!("{next}\n"))?;
    Ok(next)
}

/// A part of the fabric that runs until the end. If it panics that is a bug of ours, and what this node
/// believes of the others grows old: it is said loudly.
async fn part(work: impl Future<Output = ()>) {
    struct Running;
    impl Drop for Running {
        fn drop(&mut self) {
            if std::thread::panicking() {
                tracing::error!(
                    "a part of the fabric failed: what this node knows of others grows old; restart it"
                );
            }
        }
    }
    let _running = Running;
    work.await;
}

/// Writes down for all that this node says good-bye, for those who start later.
async fn note_leaving(shared: &Arc<Shared>) {
    let (store, key) = (Arc::clone(&shared.store), left_key(&shared.me));
    let noting = spawn_blocking(move || {
        let noted = store.put(&key, wall_ms().to_string().into_bytes());
        (store.entry(&key).map(|entry| (key, entry)), noted)
    });
    match noting.await {
        Ok((Some(entry), Ok(()))) => sync::tell(shared, vec![entry]).await,
        Ok((_, Err(error))) => tracing::warn!("that this node stops could not be noted: {error}"),
        Ok((None, Ok(()))) | Err(_) => (),
    }
}

/// Puts our card where all can see it, if it is not there already, and takes back that we have left.
fn put_card(store: &Store, me: &HostId, card: &Card) -> Result<(), StoreError> {
    if store.value(&left_key(me)).is_some() {
        store.remove(&left_key(me))?;
    }
    let key = card_key(me);
    let bytes = serde_json::to_vec(card).unwrap_or_default();
    if store.value(&key).as_ref() == Some(&bytes) {
        return Ok(());
    }
    store.put(&key, bytes)
}

/// Opens the session, however long that takes, and declares what stays.
async fn connect(
    shared: Arc<Shared>,
    links: Arc<Links>,
    sightings: watch::Sightings,
    incoming: sync::Incoming,
    lease: Duration,
) {
    for attempt in 0.. {
        let (listen, connect) = (links.zenoh_listen(), links.zenoh_connect());
        let opened = net::open(shared.role, listen.as_deref(), &connect, attempt, lease).await;
        let declared = match opened {
            Ok(session) => {
                // Before others are seen: whatever that sets off needs a session.
                shared.set_session(Some(session.clone()));
                declare(&shared, &links, &session, &sightings, &incoming).await
            }
            Err(error) => Err(error),
        };
        match declared {
            Ok(held) => {
                // Ends with its task; until then Zenoh connects again by itself.
                let _held = held;
                return std::future::pending().await;
            }
            Err(error) => {
                shared.set_session(None);
                match shared.role {
                    Role::Gateway => {
                        tracing::error!("the fabric's session cannot be opened: {error}");
                    }
                    // The links say why no gateway can be reached, and not at every attempt.
                    Role::Member => tracing::debug!("no session: {error}"),
                }
                tokio::time::sleep(REOPEN_AFTER).await;
            }
        }
    }
}

type Held = (watch::Watching, sync::Syncing, Vec<zenoh::query::Queryable<()>>);

async fn declare(
    shared: &Arc<Shared>,
    links: &Arc<Links>,
    session: &zenoh::Session,
    sightings: &watch::Sightings,
    incoming: &sync::Incoming,
) -> zenoh::Result<Held> {
    let mut queryables = vec![net::answer::answer_asks(shared, session).await?];
    if shared.role == Role::Gateway {
        queryables.push(net::answer::relay_asks(shared, session).await?);
        queryables.push(net::audit::declare(shared, session, links).await?);
    }
    let syncing = sync::declare(shared, session, incoming).await?;
    // Last: whoever sees the token may ask.
    let watching = watch::declare(shared, session, sightings).await?;
    Ok((watching, syncing, queryables))
}

async fn flush(store: Arc<Store>) {
    let mut every = interval(FLUSH_EVERY);
    let mut failed = false;
    loop {
        every.tick().await;
        let store = Arc::clone(&store);
        let flushed = spawn_blocking(move || store.flush()).await;
        match flushed {
            Ok(Ok(())) => failed = false,
            Ok(Err(error)) if !failed => {
                tracing::error!("{error}; it is tried again each second");
                failed = true;
            }
            Ok(Err(_)) | Err(_) => (),
        }
    }
}

/// Acts on what the desired state says of links: who is evicted, and who is a gateway.
async fn follow(
    shared: Arc<Shared>,
    identity: Arc<ArcSwap<Identity>>,
    links: Arc<Links>,
    peers: Option<Arc<PeerLinks>>,
    state_dir: Option<PathBuf>,
    told_of_gateways: Arc<Notify>,
) {
    let mut changes = shared.store.changes();
    loop {
        let evicted = registry::evicted(&shared.store);
        if let Some(peers) = &peers {
            peers.set_evicted(evicted.clone());
        }
        links.set_evicted(evicted);
        let now = identity.load_full();
        let gateways = gateways(&shared, &now);
        if gateways != now.gateways {
            if let Some(dir) = state_dir.clone() {
                let (whose, gateways) = (Arc::clone(&now), gateways.clone());
                let saving =
                    spawn_blocking(move || identity::save_gateways(&dir, &whose, &gateways));
                if let Ok(Err(error)) = saving.await {
                    let error = chain(&error);
                    tracing::error!("the list of gateways could not be written: {error}");
                }
            }
            // The certificate may have been renewed meanwhile: only these change.
            identity.rcu(|now| Identity { gateways: gateways.clone(), ..Identity::clone(now) });
            if let Err(error) = links.set_identity(identity.load_full()) {
                tracing::error!("the list of gateways could not be used: {error}");
            }
            told_of_gateways.notify_one();
        }
        loop {
            match changes.recv().await {
                Ok(change) if concerns_links(&shared, &identity.load(), &change.key) => break,
                Ok(_) => (),
                Err(broadcast::error::RecvError::Lagged(_)) => break,
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

/// Whether a change is one of who is evicted, or may be one of who is a gateway. Cards of members come by
/// the thousand, and looking at all cards for each of them would cost the square of that.
fn concerns_links(shared: &Shared, identity: &Identity, key: &str) -> bool {
    let Some(host) = key.strip_prefix(CARDS) else {
        return registry::changes_evicted(&shared.store, key);
    };
    let card = || serde_json::from_slice::<Card>(&shared.store.value(key)?).ok();
    identity.gateways.iter().any(|gateway| gateway.host.to_string() == host)
        || card().is_some_and(|card| card.role == Role::Gateway)
}

/// The gateways that cards tell of. One that has no card yet is kept: we were told of it when we joined.
/// One that had a card and has none any more was evicted.
fn gateways(shared: &Shared, identity: &Identity) -> Vec<Gateway> {
    let hosts = shared.hosts();
    let of_cards = hosts.iter().filter(|info| info.id != shared.me).filter_map(|info| {
        let card = info.card.as_ref().filter(|card| card.role == Role::Gateway)?;
        Some(Gateway::of_card(info.id.clone(), &card.addresses))
    });
    let mut gateways: Vec<Gateway> = of_cards.collect();
    for known in &identity.gateways {
        let told = gateways.iter().any(|gateway| gateway.host == known.host);
        if !told && shared.store.entry(&card_key(&known.host)).is_none() {
            gateways.push(known.clone());
        }
    }
    identity::limited(gateways, &shared.me.dc)
}

/// Brings a member back to its own data centre's gateways, also when it has just been told of them: who
/// joins knows only the one that let it in. Its token goes and returns meanwhile, within the grace that
/// tokens have.
async fn go_home(links: Arc<Links>, told_of_gateways: Arc<Notify>) {
    let mut every = interval(HOME_EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => (),
            () = told_of_gateways.notified() => (),
        }
        if links.is_away().await {
            links.go_home();
        }
    }
}

/// Renews our certificate when two thirds of its life are over: a gateway by itself where it can, else
/// by a gateway.
async fn renew(
    identity: Arc<ArcSwap<Identity>>,
    links: Arc<Links>,
    peers: Option<Arc<PeerLinks>>,
    dir: PathBuf,
    desk: Option<Arc<Desk>>,
) {
    let mut every = interval(RENEWAL_EVERY);
    loop {
        every.tick().await;
        if let Some(desk) = desk.clone() {
            // A failure is one of the disk, which the next write tells of.
            let _ = spawn_blocking(move || desk.sweep()).await;
        }
        let now = identity.load_full();
        if !now.peer().is_ok_and(|own| own.wants_renewal(wall_ms())) {
            continue;
        }
        let renewed = match renew_by(desk.as_ref(), &now, &dir).await {
            Ok(renewed) => renewed,
            Err(error) => {
                let error = chain(&*error);
                tracing::warn!("the certificate of this host was not renewed: {error}");
                continue;
            }
        };
        tracing::info!("the certificate of this host was renewed");
        // Gateways may have become known meanwhile: only these two change.
        identity.rcu(|now| Identity {
            certificate: renewed.certificate.clone(),
            key: renewed.key.clone_key(),
            ..Identity::clone(now)
        });
        if let Err(error) = links.set_identity(identity.load_full()) {
            tracing::error!("the new certificate of this host could not be used: {error}");
        }
        if let Some(Err(error)) =
            peers.as_ref().map(|peers| peers.set_identity(identity.load_full()))
        {
            tracing::error!(
                "the new certificate of this host could not be used for calls: {error}"
            );
        }
    }
}

async fn renew_by(
    desk: Option<&Arc<Desk>>,
    now: &Identity,
    dir: &Path,
) -> Result<Arc<Identity>, Box<dyn std::error::Error + Send + Sync>> {
    if let Some(desk) = desk.cloned() {
        match spawn_blocking(move || desk.renew_own()).await? {
            Err(RenewError::NoAuthority) => (),
            renewed => return Ok(renewed?),
        }
    }
    // It writes files: on a thread that may block.
    let (now, dir, runtime) = (now.clone(), dir.to_owned(), Handle::current());
    let renewing = spawn_blocking(move || runtime.block_on(join::renew(&now, &dir)));
    Ok(Arc::new(renewing.await??))
}
