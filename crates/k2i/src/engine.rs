//! Generations of the table, shared by all who ask.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kumo_abi::{Meta, Query};

use crate::collect::{CollectorChoice, Rung};
use crate::table::{Parts, Table};

/// How to open an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Which collector.
    pub collector: CollectorChoice,
    /// Name of this data centre, as answers give it.
    pub dc: String,
    /// Name of this host, as answers give it.
    pub host: String,
}

/// Why no engine could be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The collector that was asked for does not work here.
    #[error("collector `{0}` does not work here: {1}; `--collector auto` takes the best that does")]
    Collector(&'static str, String),
    /// `/proc` is not there or not ours to read.
    #[error("cannot read /proc; is it mounted?")]
    Proc(#[source] io::Error),
}

/// Why a question got no answer. A retry is safe.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The scan failed.
    #[error("cannot read the process table with collector `{collector}`")]
    Scan {
        /// The collector.
        collector: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What to answer, of which processes, and how fresh.
#[derive(Debug)]
pub struct Question {
    /// The query.
    pub query: Query,
    /// Only these processes; all if `None`.
    pub pids: Option<Vec<i32>>,
    /// A scan that began this long before the question will do.
    pub max_age: Duration,
}

/// How to write an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object: what `kumo_abi::Rows` reads.
    Json,
    /// One JSON object a row and line; the `Meta` is not part of it.
    NdJson,
}

/// The process table of this host, ready to be asked. Shared by reference; it blocks while it scans.
#[derive(Debug)]
pub struct Engine {}

impl Engine {
    /// Opens the best collector that works, or the one that was asked for.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: EngineConfig) -> Result<Engine, OpenError> {
        let _ = config;
        Ok(Engine {})
    }

    /// Answers one question. Blocks for one scan, or none where a generation is fresh enough; call
    /// it where blocking is fine.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn ask(&self, question: Question) -> Result<Answer, AskError> {
        let _ = question;
        unimplemented!()
    }

    /// A table that is fresh enough and has at least `parts` (where they can be read). The rows'
    /// late parts are not in it; see [`Engine::complete`].
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn table(&self, max_age: Duration, parts: Parts) -> Result<Arc<Table>, AskError> {
        let _ = (max_age, parts);
        unimplemented!()
    }

    /// Fetches `parts` that `row` lacks from `/proc`. What cannot be read stays absent.
    pub fn complete(&self, row: &mut crate::Process, parts: Parts) {
        let _ = (row, parts);
    }

    /// The name of a user id, if it has one.
    pub fn user_name(&self, uid: u32) -> Option<Arc<str>> {
        let _ = uid;
        None
    }

    /// The name of a group id, if it has one.
    pub fn group_name(&self, gid: u32) -> Option<Arc<str>> {
        let _ = gid;
        None
    }

    /// Which collector runs, and what became of each rung of the ladder above it.
    pub fn rungs(&self) -> &[Rung] {
        &[]
    }

    /// What this engine was opened with.
    pub fn config(&self) -> &EngineConfig {
        unimplemented!()
    }

    /// Takes a reading of CPU times now, if the last one is older than a few seconds, so that the
    /// next answer's CPU use is of a recent while. The node calls it from time to time.
    pub fn tick(&self) {}
}

/// An answer, written bit by bit so that a large one needs no large buffer.
#[derive(Debug)]
pub struct Answer {
    /// What it says about itself.
    pub meta: Meta,
}

impl Answer {
    /// Rows of the answer.
    pub fn len(&self) -> usize {
        0
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the next piece (tens of KiB) to `out`; `false` when that was the last one.
    pub fn write_next(&mut self, format: Format, out: &mut Vec<u8>) -> bool {
        let _ = (format, out);
        false
    }
}
