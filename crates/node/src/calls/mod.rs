//! Calls: the node's side of middlecon (decision 0005).
//!
//! Programs ask here for connections to services, and are told when one is no more. The node makes the
//! connections, watches who is at their ends, and is in no call's way. What it decides is in [`rules`];
//! here are the sockets, pages and processes:
//!
//! | file | one idea |
//! |---|---|
//! | `program` | one program, from its hello to its end |
//! | `line` | its control connection: nobody waits for who does not read |
//! | `state` | what is held for programs and connections; does what the rules decide, in order |
//! | `pages` | what programs show, as plain values |
//! | `look`, `still` | calls that wait for who stands still |
//! | `peers` | connections with programs of other hosts |
//! | `cluster` | what other hosts serve, and who may call what: from the desired state and into it |
//! | `shown` | what people see |
//!
//! A thread of its own serves programs, so that the death of one is told while other parts of the node
//! work on something large.

mod cluster;
mod line;
mod look;
mod pages;
mod peers;
mod program;
pub(crate) mod rules;
pub(crate) mod shown;
mod state;
mod still;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kumo_abi::control::{FromNode, SOCKET_NAME, ToNode};
use kumo_abi::{ClusterName, HostId};
use kumo_sys::packet;
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

pub(crate) use self::cluster::{acl_key, read_acl};
use self::rules::{Broker, Effect, Moment, Program};
pub(crate) use self::state::random;
use self::state::{Later, State};
use crate::web::Web;

/// Descriptors that the node wants, where it may have so many: for connections of programs, beside those
/// of its API and of the reader of `/proc`.
const DESCRIPTORS_WANTED: u64 = 65_536;

/// Of all descriptors, the part that connections of programs may take.
const DESCRIPTORS_PART: u64 = 4;

/// Descriptors of a connection: our duplicates of its two ends.
const DESCRIPTORS_OF_GRANT: u64 = 2;

/// Pause after the kernel had no descriptor or memory for a program.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the parts share.
pub(crate) struct Shared {
    state: Mutex<State>,
    web: Web,
    /// A program came.
    came: Notify,
    /// There may be something to tell the cluster.
    publish: Notify,
    /// Where work is done that waits: the node's own runtime.
    elsewhere: Handle,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn new(web: Web, elsewhere: Handle, grants_max: usize) -> Shared {
        let broker = Broker::new(web.me(), web.cluster(), geteuid().as_raw(), grants_max);
        let state = Mutex::new(State::new(broker));
        Shared { state, web, came: Notify::new(), publish: Notify::new(), elsewhere }
    }

    /// One that nobody reaches. Call it within a runtime.
    #[cfg(test)]
    pub(crate) fn idle(web: Web) -> Arc<Shared> {
        Arc::new(Shared::new(web, Handle::current(), 0))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What panicked under it is a bug of ours; what it left is no worse than a crash.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn who(&self) -> (Option<ClusterName>, HostId) {
        let state = self.state();
        (state.broker.cluster().cloned(), state.broker.me().clone())
    }

    /// Has the rules decide, and does it.
    fn act(
        self: &Arc<Self>,
        decide: impl FnOnce(&mut Broker, Moment, &mut dyn FnMut() -> u64) -> Vec<Effect>,
    ) {
        self.act_with(None, decide);
    }

    fn act_with(
        self: &Arc<Self>,
        passed: Option<OwnedFd>,
        decide: impl FnOnce(&mut Broker, Moment, &mut dyn FnMut() -> u64) -> Vec<Effect>,
    ) {
        let mut state = self.state();
        let now = now();
        let effects = decide(&mut state.broker, now, &mut random);
        let later = state.carry_out(effects, passed, now);
        drop(state);
        for later in later {
            self.later(later);
        }
    }

    /// A program said something.
    fn hear(self: &Arc<Self>, program: Program, message: ToNode, fd: Option<OwnedFd>) {
        // Only a connection that outlived a node comes with a descriptor; any other is closed here.
        let fd = fd.filter(|_| matches!(message, ToNode::Resume(_)));
        if matches!(message, ToNode::Resume(_)) && fd.is_none() {
            return;
        }
        self.act_with(fd, |broker, now, fresh| broker.hear(program, message, now, fresh));
    }

    /// Does what waits for others.
    fn later(self: &Arc<Self>, later: Later) {
        match later {
            Later::Publish => self.publish.notify_one(),
            Later::Ask(order) => drop(self.elsewhere.spawn(peers::ask(Arc::clone(self), order))),
            Later::Certify { program, request, who } => {
                let shared = Arc::clone(self);
                self.elsewhere
                    .spawn_blocking(move || peers::certify(&shared, program, request, who));
            }
            Later::Obituary { host, grant, cause, taken } => {
                peers::tell_end(self, host, grant, cause, taken);
            }
        }
    }
}

/// When it is, on the clock that programs stamp their calls with.
fn now() -> Moment {
    let wall = clock_gettime(ClockId::Realtime);
    Moment { ms: now_ns() / 1_000_000, wall_s: u32::try_from(wall.tv_sec).unwrap_or(u32::MAX) }
}

/// Waits for a descriptor. What is given owns or borrows it as long as it lives ([`AsFd`]).
#[expect(deprecated, reason = "its successor is unsafe, and asks for no more than `AsFd` promises")]
fn readiness<T: AsFd + AsRawFd>(of: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(of, interest)
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The node's side of middlecon; ends when dropped.
#[derive(Debug)]
pub(crate) struct Calls {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Calls {
    /// Begins to serve programs on `<run>/middlecon.sock`. `elsewhere` does what waits.
    ///
    /// # Errors
    /// The socket cannot be made, or no thread.
    pub(crate) fn start(
        web: Web,
        run_dir: &Path,
        programs: Programs,
        elsewhere: &Handle,
    ) -> io::Result<Calls> {
        let grants_max = raise_descriptors() / DESCRIPTORS_PART / DESCRIPTORS_OF_GRANT;
        let shared = Arc::new(Shared::new(web, elsewhere.clone(), grants_max as usize));
        let (listening, file) = listen(&run_dir.join(SOCKET_NAME), programs)?;
        let (stop, stopping) = watch::channel(false);
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let serving = Arc::clone(&shared);
        let ends = stopping.clone();
        let thread =
            std::thread::Builder::new().name("kumo-calls".to_owned()).spawn(move || {
                runtime.block_on(serve(&serving, &listening, ends));
                // Those who find nobody there look for the next node.
                drop(file);
                for line in serving.state().lines() {
                    let _ = line.tell(&FromNode::Leaving, None);
                }
            })?;
        peers::answer(&shared);
        elsewhere.spawn(look::keep(Arc::clone(&shared), stopping.clone()));
        elsewhere.spawn(cluster::keep(Arc::clone(&shared), stopping));
        Ok(Calls { shared, stop, thread: Some(thread) })
    }

    /// What others are shown of it.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Ends it: programs are told to look for the next node. Their connections stay.
    pub(crate) fn stop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // One that panicked has logged it, and is as good as stopped.
            let _ = thread.join();
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(shared: &Arc<Shared>, listening: &OwnedFd, mut stopping: watch::Receiver<bool>) {
    let listening = match readiness(listening.as_fd(), Interest::READABLE) {
        Ok(listening) => listening,
        Err(error) => {
            tracing::error!("programs cannot be served: {error}");
            return;
        }
    };
    let accept = async {
        loop {
            // An error is that the runtime stops.
            let Ok(mut ready) = listening.readable().await else { return };
            match packet::accept(listening.get_ref()) {
                Ok(socket) => {
                    let serving = program::serve(Arc::clone(shared), socket);
                    tokio::spawn(serving);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    tracing::warn!("cannot accept a program: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        // An error means that the node is gone.
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}

/// The file of the socket; removed with its owner.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // When it is gone already, that is what we wanted.
        let _ = fs::remove_file(&self.0);
    }
}

/// Whose programs may call and serve through a node. Who each is, the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programs {
    /// Those of all users of this host; which names they may serve is another matter.
    All,
    /// Those of the user that the node runs as, and root's.
    Own,
}

impl Programs {
    /// As a node of this user has it where nobody says otherwise: root's is there for all.
    pub fn of_node(uid: u32) -> Programs {
        if uid == 0 { Programs::All } else { Programs::Own }
    }
}

/// Listens. The run directory is ours alone, by its lock: what is there is of a node that has gone.
fn listen(path: &Path, programs: Programs) -> io::Result<(OwnedFd, SocketFile)> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listening = packet::listen_at(path)?;
    let file = SocketFile(path.to_owned());
    rustix::io::ioctl_fionbio(&listening, true)?;
    let mode = match programs {
        Programs::All => 0o666,
        Programs::Own => 0o600,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok((listening, file))
}

/// Raises the limit of open descriptors as far as we may and want to, and says how many there may be.
fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(DESCRIPTORS_WANTED);
    let possible = limit.maximum.unwrap_or(u64::MAX).min(DESCRIPTORS_WANTED);
    let raised = Rlimit { current: Some(possible), maximum: limit.maximum };
    if current < possible && setrlimit(Resource::Nofile, raised).is_ok() {
        possible
    } else {
        current
    }
}
