//! A question to many hosts, and what comes back.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::HostId;
use kumo_abi::cluster::HostOutcome;

/// A question to many hosts.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What is asked; the fabric does not look into it.
    pub request: Bytes,
    /// Who is asked. Hosts that are not known are refused at once.
    pub hosts: Vec<HostId>,
    /// How long hosts are waited for.
    pub deadline: Duration,
    /// Whether answers may be merged on the way, by [`Answerer::merge`]; else each comes as it is.
    pub merge: bool,
    /// Whether a host may be asked twice. A gateway that dies in the middle is replaced then; else
    /// hosts behind it that have not answered are given up as silent.
    pub idempotent: bool,
}

/// A part of the answer. Every host that was asked is in exactly one part.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The answer of these hosts together; `None` when none of them gave one.
    pub answer: Option<Bytes>,
    /// Which hosts it is about, and what became of each.
    pub outcomes: Vec<HostOutcome>,
}

/// What a host's answerer works on.
pub type Answering = Pin<Box<dyn Future<Output = Result<Bytes, String>> + Send>>;

/// Answers for this host.
pub trait Answerer: Send + Sync + 'static {
    /// Answers a question. An error says in words why this host does not answer it.
    fn answer(&self, request: Bytes) -> Answering;

    /// Merges answers of several hosts to `request`. Associative: parts may be merged already.
    ///
    /// # Errors
    /// In words, when a part is none that this host understands.
    fn merge(&self, request: &[u8], parts: Vec<Bytes>) -> Result<Bytes, String>;
}
