//! The process table of one host: a library, and the stand-alone HTTP(S) server `k2i`.
//!
//! [`Engine`] owns a collector and the newest [`Table`]; it answers queries and shares one scan
//! between all that ask at the same time. [`http`] puts it on the network. Nothing here knows of
//! other hosts.

mod cgroup;
mod collect;
mod delta;
mod encode;
mod engine;
mod events;
pub mod history;
pub mod host;
pub mod http;
pub mod metrics;
mod names;
pub mod options;
mod pieces;
pub mod redact;
mod row;
mod select;
pub mod signal;
pub mod sockets;
pub mod sql;
pub mod sysctl;
mod table;
mod tabular;
pub mod token;

pub use collect::{CollectorChoice, CollectorKind, Rung};
pub use encode::escaped_json;
pub use engine::{Answer, AskError, BlockedOn, Engine, EngineConfig, Format, OpenError, Question};
pub use events::{
    ENDED_BYTES_MAX, ENDED_MAX, EVENTS_AHEAD_MAX, Event, EventChoice, EventSource, EventsReport,
    Identity, LIFE_LINE_BYTES_MAX, LIVING_BYTES_MAX, Life, Line, Losses, News, Used, event_ladder,
};
pub use http::chain;
pub use row::rfc3339;
pub use sockets::{Snapshot, Socket, SocketsBy};
pub use table::{Comm, CommandLine, End, Ids, Io, Parts, Process, Table};
pub use tabular::TableAnswer;
