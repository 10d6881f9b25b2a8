//! How each contender carries a call: its callee, and its callers, as threads or as tasks.
//!
//! A callee is a process that answers what it is asked with the same bytes. A caller is another one; each
//! of its callers makes one call after the other and looks at every byte of the answer.

mod bare;
mod http;
mod memory;
pub(crate) mod ours;
#[cfg(feature = "peers")]
mod peers;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use bytes::Bytes;

use crate::clock::Question;

/// What a process of the benchmark is told about where it is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The contender.
    pub(crate) id: String,
    /// A directory of the two ends, for sockets.
    pub(crate) dir: PathBuf,
    /// The node's, of this end.
    pub(crate) run_dir: PathBuf,
    /// The address to listen at, for those who have one.
    pub(crate) ip: std::net::IpAddr,
    /// What the callee said: an address, perhaps.
    pub(crate) said: String,
    /// The cores of both ends, for who starts a third process.
    #[cfg_attr(not(feature = "peers"), expect(dead_code, reason = "peers alone start one"))]
    pub(crate) cpus: Vec<usize>,
    /// The core of this end.
    #[cfg_attr(
        not(feature = "peers"),
        expect(dead_code, reason = "peers alone have threads of their own")
    )]
    pub(crate) cpu: usize,
}

impl Place {
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.sock", self.id))
    }

    /// The service's name, where ours are called by it.
    pub(crate) fn service(&self) -> io::Result<kumo_abi::call::ServiceName> {
        format!("bench-{}", self.id).parse().map_err(io::Error::other)
    }

    fn base(&self) -> &str {
        self.id.strip_suffix("-again").unwrap_or(&self.id)
    }

    fn dir(&self) -> &Path {
        &self.dir
    }
}

/// A caller that blocks its thread.
pub(crate) trait Ask {
    /// Asks, and says whether the answer was the question.
    fn ask(&mut self, question: &Question) -> io::Result<bool>;

    /// Whether it stays connected between two rounds.
    fn is_kept(&self) -> bool {
        true
    }
}

/// A task's question; whoever asks shares what is behind it.
pub(crate) trait AskTask {
    fn ask(&self, question: Bytes) -> Answer<'_>;
}

/// An answer that is not there yet.
pub(crate) type Answer<'a> = Pin<Box<dyn Future<Output = io::Result<Bytes>> + 'a>>;

/// Makes a caller; on the thread that will use it.
pub(crate) type Connect = dyn Fn() -> io::Result<Box<dyn Ask>> + Send + Sync;

/// How a contender's callers wait.
pub(crate) enum Callers {
    Threads(std::sync::Arc<Connect>),
    /// On one runtime of one thread.
    Tasks(tokio::runtime::Runtime, std::rc::Rc<dyn AskTask>),
}

/// Answers until the process is ended. `ready` is called when it can be asked.
pub(crate) fn answer(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    match place.base() {
        "ring" | "packets" | "across" | "relayed" => ours::answer_by_threads(place, ready),
        "ring-tasks" | "packets-tasks" | "across-tasks" | "http" => {
            ours::answer_by_tasks(place, ready)
        }
        "memory" | "futex" => memory::answer(place, ready),
        "unix" => bare::answer_unix(place, ready),
        "tcp" => bare::answer_tcp(place, ready),
        "tls" => bare::answer_tls(place, ready),
        _ => answer_as_a_peer(place, ready),
    }
}

/// What asks.
pub(crate) fn callers(place: &Place) -> io::Result<Callers> {
    match place.base() {
        "ring" | "packets" | "across" | "relayed" => ours::by_threads(place),
        "ring-tasks" | "packets-tasks" | "across-tasks" => ours::by_tasks(place),
        "http" => Ok(http::callers(place)),
        "memory" | "futex" => Ok(memory::callers(place)),
        "unix" => Ok(bare::unix(place)),
        "tcp" => bare::tcp(place),
        "tls" => bare::tls(place),
        _ => callers_of_a_peer(place),
    }
}

#[cfg(feature = "peers")]
use peers::{answer as answer_as_a_peer, callers as callers_of_a_peer};

#[cfg(not(feature = "peers"))]
fn answer_as_a_peer(place: &Place, _: &dyn Fn(&str)) -> io::Result<()> {
    Err(not_built(place))
}

#[cfg(not(feature = "peers"))]
fn callers_of_a_peer(place: &Place) -> io::Result<Callers> {
    Err(not_built(place))
}

#[cfg(not(feature = "peers"))]
fn not_built(place: &Place) -> io::Error {
    io::Error::other(format!("`{}` is not in a build without the feature `peers`", place.id))
}

/// A runtime as small as it can be: what a pinned process has use for.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Waits until the process is ended.
fn for_ever() -> ! {
    loop {
        std::thread::park();
    }
}
