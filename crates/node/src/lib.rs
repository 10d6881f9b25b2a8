//! One node of Kumonosu: it wires the parts together and serves their API.
//!
//! A [`Node`] owns its state directory by a lock that the kernel takes back when the node dies, so
//! that what a killed node leaves behind stops nobody. Beside its TCP address it serves a Unix
//! socket, for the commands of the user it runs as.

mod dirs;
mod lock;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k2i::http::serve::{
    BindError, Bound, Exposed, Listen, StopSignals, check_exposure, runtime, tick,
};
use k2i::http::tls::{TlsError, TlsFiles, load};
use k2i::http::{Api, router};
use k2i::{CollectorChoice, Engine, EngineConfig, OpenError};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use dirs::{DirError, Dirs, SYSTEM_RUN_DIR, SYSTEM_STATE_DIR, default_dirs, socket_path};
pub use k2i::options::DC_DEFAULT;
use lock::Lock;
pub use lock::LockError;

/// Where a node listens unless told otherwise. The stand-alone `k2i` has 8000, as the original.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:7080";

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
    /// Name of this data centre.
    pub dc: String,
    /// Name of this host.
    pub host: String,
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
    /// The process table.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The address or the socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Threads or descriptors.
    #[error("the system lets us start no threads or open no descriptors")]
    Runtime(#[source] io::Error),
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
    pub fn start(config: NodeConfig) -> Result<Node, StartError> {
        if let (Listen::Tcp(address), false) = (&config.listen, config.insecure) {
            check_exposure(*address, config.tls.is_some())?;
        }
        let tls = config.tls.as_ref().map(load).transpose()?;
        let locks = take(&config.dirs)?;
        let engine = Arc::new(Engine::open(EngineConfig {
            collector: config.collector,
            dc: config.dc,
            host: config.host,
        })?);
        let apis = [Api::new(Arc::clone(&engine)), Api::new(Arc::clone(&engine))];
        let runtime = runtime(apis.len()).map_err(StartError::Runtime)?;
        let (stop, stopping) = watch::channel(false);
        let socket = socket_path(&config.dirs.run);
        let (serving, url) = {
            let _within = runtime.enter();
            // The address first: where it is taken, no socket of ours appears and goes again.
            let open = match &config.listen {
                Listen::Tcp(address) => Bound::tcp(*address, tls)?,
                Listen::Unix(path) => Bound::unix(path)?,
            };
            let local = Bound::unix(&socket)?;
            let url = open.url().to_owned();
            let serve = |bound: Bound, api: &Arc<Api>| {
                runtime.spawn(bound.serve(router(Arc::clone(api)), stopping.clone()))
            };
            runtime.spawn(tick(engine));
            (vec![serve(open, &apis[0]), serve(local, &apis[1])], url)
        };
        let runtime = Some(runtime);
        let started = Instant::now();
        Ok(Node { runtime, stop, serving, apis, url, socket, started, _locks: locks })
    }

    /// The address of its API, with the real port: `http://127.0.0.1:7080`.
    pub fn url(&self) -> &str {
        &self.url
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

    /// From now on SIGINT and SIGTERM end [`Node::wait`], not the process.
    ///
    /// # Errors
    /// When the system lets us not listen for them.
    pub fn stop_on_signals(&self) -> io::Result<()> {
        let Some(runtime) = &self.runtime else { return Ok(()) };
        let stop = self.stop.clone();
        let mut signals = {
            let _within = runtime.enter();
            StopSignals::listen()?
        };
        runtime.spawn(async move {
            // Not within the macro: it would wait only where the line is logged.
            let name = signals.next().await;
            tracing::info!("{name}: stopping");
            stop.send_replace(true);
        });
        Ok(())
    }

    /// Waits until the node is told to stop, at most `longest`; whether it was.
    pub fn wait(&self, longest: Duration) -> bool {
        let Some(runtime) = &self.runtime else { return true };
        let mut stopping = self.stop.subscribe();
        let told = async { timeout(longest, stopping.wait_for(|stop| *stop)).await.is_ok() };
        runtime.block_on(told)
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
        let serving = std::mem::take(&mut self.serving);
        runtime.block_on(async {
            for task in serving {
                // One that panicked has logged it, and is as good as stopped.
                let _ = task.await;
            }
        });
        runtime.shutdown_timeout(RUNTIME_STOP_MAX);
    }
}

/// Makes the directories and takes both: two nodes with one run directory would take each other's
/// socket even if their states were apart.
fn take(dirs: &Dirs) -> Result<Vec<Lock>, StartError> {
    // The run directory first: the state may lie in it, and what is made above a directory has no
    // mode of ours.
    dirs::create_private(&dirs.run)?;
    dirs::create_private(&dirs.state)?;
    let state = Lock::take(&dirs.state.join("lock"), &dirs.state)?;
    let run = Lock::take(&dirs.run.join("run.lock"), &dirs.run)?;
    Ok(vec![state, run])
}
