//! One node of Kumonosu: it wires the parts together and serves their API.
//!
//! A [`Node`] owns its state directory by a lock that the kernel takes back when the node dies, so
//! that what a killed node leaves behind stops nobody. Beside its TCP address it serves a Unix
//! socket, for the commands of the user it runs as.

mod answer;
mod api;
mod calls;
mod dirs;
mod lock;
mod metrics;
mod names;
mod react;
mod signals;
pub mod simulated;
mod sysctl;
mod tokens;
mod web;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k2i::history::HistoryConfig;
use k2i::http::serve::{
    BindError, Bound, Exposed, Listen, SocketMode, check_exposure, runtime, tick,
};
use k2i::http::tls::{TlsError, TlsFiles, load};
use k2i::http::{Access, Anonymous, Api, router_with};
use k2i::metrics::Grouping;
use k2i::options::ShownLines;
use k2i::{CollectorChoice, Engine, EngineConfig, EventChoice, OpenError};
use kumo_abi::cluster::HostInfo;
use kumo_abi::control::SOCKET_NAME as CALLS_SOCKET;
use kumo_abi::rights::Rights;
use kumo_abi::sysctl::AllowList;
use kumo_abi::{ClusterName, HostId};
use kumo_fabric::identity::{Identity, IdentityError};
use kumo_fabric::link::LinkError;
use kumo_fabric::store::StoreError;
use kumo_fabric::{Fabric, FabricConfig};
use rustix::process::geteuid;
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use answer::HOST_ANSWER_BYTES_MAX;
use answer::HostAnswerer;
pub use api::{GATHER_BYTES_MAX, GATHERS_MAX};
use calls::Calls;
pub use calls::Programs;
pub use dirs::{DirError, Dirs, SYSTEM_RUN_DIR, SYSTEM_STATE_DIR, default_dirs, socket_path};
pub use k2i::options::DC_DEFAULT;
pub use lock::{Lock, LockError};
pub use names::{NameError, host_id};
pub use signals::Signals;
use tokens::NodeTokens;
use web::{Web, card};

/// Where a node listens unless told otherwise. The stand-alone `k2i` has 8000, as the original.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:7080";

/// Below the state directory: who this host is, and its copy of the desired state. Below the run
/// directory: the sockets of its links.
pub const FABRIC_DIR: &str = "fabric";

/// Below the state directory: who changed what through this node.
pub const AUDIT_FILE: &str = "audit.ndjson";

/// Below the state directory: what the process table was.
pub const HISTORY_DIR: &str = "history";

/// What the runtime gets to end threads that are in the middle of a scan.
const RUNTIME_STOP_MAX: Duration = Duration::from_secs(1);

/// How to start a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its directories; made where they are missing.
    pub dirs: Dirs,
    /// Where to listen, beside the socket in the run directory.
    pub listen: Listen,
    /// Serve HTTPS on a TCP address.
    pub tls: Option<TlsFiles>,
    /// Let other machines ask without TLS.
    pub insecure: bool,
    /// How to read the process table.
    pub collector: CollectorChoice,
    /// Where to learn of processes that begin and end.
    pub events: EventChoice,
    /// How to record what the process table was; not at all without.
    pub history: Option<HistoryConfig>,
    /// Name of this data centre. Without one it is that of the node's certificate, else
    /// [`DC_DEFAULT`]. One that contradicts the certificate is an error.
    pub dc: Option<String>,
    /// Name of this host, likewise; else the kernel's.
    pub host: Option<String>,
    /// Where it listens for calls of other hosts, instead of what its identity says.
    pub calls: Option<CallPort>,
    /// Who may ask, and what, beside those with a token.
    pub access: AccessConfig,
    /// Whose programs may call and serve through it; by default [`Programs::of_node`].
    pub programs: Option<Programs>,
    /// How long a silent connection to another host lives; by default [`kumo_fabric::LEASE_DEFAULT`].
    pub lease: Option<Duration>,
    /// Which kernel parameters it may write.
    pub sysctl: AllowList,
    /// Which groups of processes `/metrics` tells of.
    pub metrics: Grouping,
}

/// Who may ask a node what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessConfig {
    /// Where who shows nothing may look.
    pub anonymous: Anonymous,
    /// How command lines are shown to who has no right to see them whole.
    pub lines: ShownLines,
    /// What users of this host may do on the node's socket, beside root and the node's own.
    pub users: BTreeMap<u32, Rights>,
    /// Who may open that socket, and the one it listens on if that is one.
    pub socket_mode: SocketMode,
}

/// Where a node listens for calls of other hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallPort {
    /// `None` where calls come through gateways only.
    pub listen: Option<SocketAddr>,
    /// Where others reach it, the best address first.
    pub advertise: Vec<String>,
}

/// Why a node did not start. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Other machines could ask without TLS.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// Another node is there.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What the node shall be called.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Who this host is in its cluster.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The way to the others of its cluster.
    #[error("this host cannot take part in its cluster")]
    Fabric(#[from] kumo_fabric::OpenError),
    /// The process table.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The address or the socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The socket for calls.
    #[error("cannot serve calls on {}", path.display())]
    Calls {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Threads or descriptors.
    #[error("the system lets us start no threads or open no descriptors")]
    Runtime(#[source] io::Error),
}

impl StartError {
    /// Whether it may be over in a moment, without anybody doing something: what is there is in use, as
    /// by threads of a node that has just stopped.
    pub fn may_pass(&self) -> bool {
        match self {
            StartError::Lock(LockError::Held { .. })
            | StartError::Bind(BindError::Taken { .. } | BindError::SocketTaken(_))
            | StartError::Fabric(kumo_fabric::OpenError::Store(StoreError::InUse { .. })) => true,
            StartError::Fabric(kumo_fabric::OpenError::Link(LinkError::Listen {
                source, ..
            })) => source.kind() == io::ErrorKind::AddrInUse,
            _ => false,
        }
    }
}

/// Whether a gateway could listen there for other hosts. It takes nothing from who asks at the same
/// time: the port is bound for a moment, and nobody listens.
///
/// # Errors
/// What the system says: somebody listens there, it is no address of this host, or not for us.
pub fn check_free(address: SocketAddr) -> io::Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}

/// What ended a wait for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Nothing: the time is over.
    Longest,
    /// The node was told to stop.
    Stop,
    /// The node was told to start anew, with what its files say now: stop it and start another.
    Reopen,
}

/// A node that runs; stopped when dropped.
#[derive(Debug)]
pub struct Node {
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
    serving: Vec<JoinHandle<()>>,
    /// That of the address, and that of the socket: other machines cannot keep the commands of this
    /// one from their answers.
    apis: [Arc<Api>; 2],
    web: Web,
    calls: Calls,
    answerer: Arc<HostAnswerer>,
    sysctl: Arc<sysctl::Shared>,
    reopen: watch::Sender<bool>,
    url: String,
    socket: PathBuf,
    started: Instant,
    /// Given back last: the next node may start only when this one is gone.
    _locks: Vec<Lock>,
}

impl Node {
    /// Starts a node and returns when it serves.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: &NodeConfig) -> Result<Node, StartError> {
        Node::begin(config, true)
    }

    /// Starts a node that takes no part in its cluster: better this host alone than nothing, where the
    /// way to the others is not there.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start_alone(config: &NodeConfig) -> Result<Node, StartError> {
        Node::begin(config, false)
    }

    /// Whether a node of a cluster could start where one is alone, as far as that is known without
    /// trying.
    pub fn may_take_part(config: &NodeConfig) -> bool {
        let (dc, host) = (config.dc.as_deref(), config.host.as_deref());
        match Identity::load(&config.dirs.state.join(FABRIC_DIR)) {
            Ok(Some(identity)) => {
                names::certified(&identity.host, dc, host).is_ok()
                    && identity.listen.is_none_or(|listen| check_free(listen).is_ok())
            }
            Ok(None) => true,
            Err(_) => false,
        }
    }

    fn begin(config: &NodeConfig, takes_part: bool) -> Result<Node, StartError> {
        if let (Listen::Tcp(address), false) = (&config.listen, config.insecure) {
            check_exposure(*address, config.tls.is_some())?;
        }
        let tls = config.tls.as_ref().map(load).transpose()?;
        let programs = config.programs;
        let programs = programs.unwrap_or_else(|| Programs::of_node(geteuid().as_raw()));
        let is_open = programs == Programs::All || config.access.socket_mode.lets_others_in();
        let locks = take(&config.dirs, is_open)?;
        let fabric_dir = config.dirs.state.join(FABRIC_DIR);
        let (dc, host) = (config.dc.as_deref(), config.host.as_deref());
        let (identity, me) = match Identity::load(&fabric_dir) {
            Ok(Some(identity)) if takes_part => {
                let me = names::certified(&identity.host, dc, host)?;
                (Some(identity), me)
            }
            // It keeps its name, where nobody says that it has another.
            Ok(Some(Identity { host, .. })) if config.dc.is_none() && config.host.is_none() => {
                (None, host)
            }
            Err(error) if takes_part => return Err(error.into()),
            Ok(_) | Err(_) => (None, host_id(dc, host)?),
        };
        let engine = Arc::new(Engine::open(EngineConfig {
            collector: config.collector,
            dc: me.dc.to_string(),
            host: me.host.to_string(),
        })?);
        engine.group_metrics(config.metrics.clone());
        engine.take_events(config.events);
        if let Some(history) = &config.history {
            engine.keep_history(history.clone());
        }
        // One for what others ask, too: nobody's questions keep those of another from their answers.
        let tokens = Arc::new(NodeTokens::in_file(&config.dirs.state));
        let access = Access::default()
            .with_tokens(Arc::clone(&tokens) as _)
            .with_users(config.access.users.clone())
            .with_anonymous(config.access.anonymous)
            .with_lines(config.access.lines.lines())
            .with_audit(&config.dirs.state.join(AUDIT_FILE));
        let access = Arc::new(access);
        let [open, local, others] =
            [(); 3].map(|()| Api::open_to(Arc::clone(&engine), Arc::clone(&access)));
        // And calls that come over HTTP have a thread each.
        let runtime = runtime(4).map_err(StartError::Runtime)?;
        let (stop, stopping) = watch::channel(false);
        let (reopen, _) = watch::channel(false);
        let started = Instant::now();
        let answerer = HostAnswerer::new(me.clone());
        let socket = socket_path(&config.dirs.run);
        // The address first: where it is taken, no socket of ours appears and goes again.
        let (open_bound, local_bound) = {
            let _within = runtime.enter();
            let open = match &config.listen {
                Listen::Tcp(address) => Bound::tcp(*address, tls)?,
                Listen::Unix(path) => Bound::unix(path, config.access.socket_mode)?,
            };
            (open, Bound::unix(&socket, config.access.socket_mode)?)
        };
        let url = open_bound.url().to_owned();
        let web = match identity {
            None => Web::lone(me, card(None), started, Arc::clone(&answerer)),
            Some(mut identity) => {
                if let Some(calls) = &config.calls {
                    identity.call_listen = calls.listen;
                    identity.call_advertise.clone_from(&calls.advertise);
                }
                let config = FabricConfig {
                    card: card(Some(&identity)),
                    identity,
                    state_dir: Some(fabric_dir),
                    run_dir: config.dirs.run.join(FABRIC_DIR),
                    calls: true,
                    lease: config.lease,
                };
                let answerer = Arc::clone(&answerer);
                Web::Many(runtime.block_on(Fabric::open(config, answerer))?)
            }
        };
        if let Web::Many(fabric) = &web {
            tokens.of_cluster(Arc::clone(fabric.store()));
        }
        let calls = Calls::start(web.clone(), &config.dirs.run, programs, runtime.handle());
        let calls = calls.map_err(|source| StartError::Calls {
            path: config.dirs.run.join(CALLS_SOCKET),
            source,
        })?;
        let waiting = Arc::clone(calls.shared());
        engine.show_blocked_on(move || waiting.blocked_on());
        let (told_web, told_calls) = (web.clone(), Arc::clone(calls.shared()));
        engine.show_metrics(move |text| metrics::write(text, &told_web, &told_calls));
        let run_dir: Arc<Path> = config.dirs.run.as_path().into();
        let react = {
            let (engine, calls) = (Arc::clone(&engine), Arc::clone(calls.shared()));
            let run_dir = Arc::clone(&run_dir);
            react::Shared::new(web.clone(), engine, calls, run_dir, &config.dirs.state)
        };
        // What the last node left is seen to before anybody is answered.
        let sysctl =
            sysctl::Shared::open(&config.dirs.state, engine.boot_id(), config.sysctl.clone());
        let shared = || {
            let calls = Arc::clone(calls.shared());
            let run_dir = Arc::clone(&run_dir);
            let (react, sysctl, tokens) =
                (Arc::clone(&react), Arc::clone(&sysctl), Arc::clone(&tokens));
            let (stopping, reopen) = (stopping.clone(), reopen.clone());
            api::Shared::new(web.clone(), calls, react, sysctl, tokens, run_dir, stopping, reopen)
        };
        answerer.open(router_with(others, api::own_routes(shared()), api::document()));
        let apis = [open, local];
        let serve = |bound: Bound, api: &Arc<Api>| {
            let shared = shared();
            let more = api::own_routes(shared.clone()).merge(api::wide_routes(shared));
            let routes = router_with(Arc::clone(api), more, api::document());
            runtime.spawn(bound.serve(routes, stopping.clone()))
        };
        let serving = vec![serve(open_bound, &apis[0]), serve(local_bound, &apis[1])];
        runtime.spawn(tick(engine));
        runtime.spawn(react::keep(Arc::clone(&react), stopping.clone()));
        runtime.spawn(sysctl::keep(Arc::clone(&sysctl), stopping.clone()));
        Ok(Node {
            runtime: Some(runtime),
            stop,
            serving,
            apis,
            web,
            calls,
            answerer,
            sysctl,
            reopen,
            url,
            socket,
            started,
            _locks: locks,
        })
    }

    /// The cluster that it is part of.
    pub fn cluster(&self) -> Option<ClusterName> {
        self.web.cluster()
    }

    /// Its data centre and its name.
    pub fn id(&self) -> HostId {
        self.web.me()
    }

    /// The hosts of its cluster, in order; itself alone without one.
    pub fn hosts(&self) -> Vec<HostInfo> {
        self.web.hosts()
    }

    /// The address of its API, with the real port: `http://127.0.0.1:7080`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The TCP address of its API, with the real port; `None` where that is a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        self.url.split_once("://")?.1.parse().ok()
    }

    /// The socket that it serves for commands.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process table.
    pub fn engine(&self) -> &Engine {
        self.apis[0].engine()
    }

    /// Requests that came in so far, on all its listeners.
    pub fn requests(&self) -> u64 {
        self.apis.iter().map(|api| api.requests()).sum()
    }

    /// How long it has run.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// From now on these signals end [`Node::wait`].
    pub fn stop_on(&self, signals: &Signals) {
        let Some(runtime) = &self.runtime else { return };
        let stop = self.stop.clone();
        let mut told = signals.told();
        runtime.spawn(async move {
            // An error means that nobody can tell any more; then nobody has.
            if told.wait_for(|told| *told).await.is_ok() {
                stop.send_replace(true);
            }
        });
    }

    /// Waits until the node is told to stop or to reopen, at most `longest`.
    pub fn wait(&self, longest: Duration) -> Waited {
        let Some(runtime) = &self.runtime else { return Waited::Stop };
        let mut stopping = self.stop.subscribe();
        let mut reopening = self.reopen.subscribe();
        let told = async {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => Waited::Stop,
                _ = reopening.wait_for(|reopen| *reopen) => Waited::Reopen,
            }
        };
        runtime.block_on(async { timeout(longest, told).await.unwrap_or(Waited::Longest) })
    }

    /// Stops: no more connections, then a few seconds for those in the middle of an answer, then the
    /// socket and the locks are gone.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        self.stop.send_replace(true);
        self.calls.stop();
        let serving = std::mem::take(&mut self.serving);
        runtime.block_on(async {
            for task in serving {
                // One that panicked has logged it, and is as good as stopped.
                let _ = task.await;
            }
        });
        if let Web::Many(fabric) = &self.web {
            runtime.block_on(fabric.close());
        }
        self.answerer.close();
        // Nobody asks any more; and nobody will be there when it is due.
        self.sysctl.close();
        runtime.shutdown_timeout(RUNTIME_STOP_MAX);
    }
}

/// Makes the directories and takes both: two nodes with one run directory would take each other's
/// socket even if their states were apart.
fn take(dirs: &Dirs, is_open: bool) -> Result<Vec<Lock>, StartError> {
    // The run directory first: the state may lie in it, and what is made above a directory has no
    // mode of ours.
    dirs::create_private(&dirs.run)?;
    if is_open {
        dirs::let_through(&dirs.run)?;
    }
    dirs::create_private(&dirs.state)?;
    let state = Lock::of_state(&dirs.state)?;
    let run = Lock::take(&dirs.run.join("run.lock"), &dirs.run)?;
    Ok(vec![state, run])
}
