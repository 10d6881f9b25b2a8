//! The process table of one host: a library, and the stand-alone HTTP(S) server `k2i`.
//!
//! [`Engine`] owns a collector and the newest [`Table`]; it answers queries and shares one scan
//! between all that ask at the same time. [`http`] puts it on the network. Nothing here knows of
//! other hosts.

mod cgroup;
mod collect;
mod encode;
mod engine;
pub mod host;
pub mod http;
mod names;
pub mod options;
mod row;
mod select;
pub mod signal;
mod table;

pub use collect::{CollectorChoice, CollectorKind, Rung};
pub use encode::escaped_json;
pub use engine::{Answer, AskError, BlockedOn, Engine, EngineConfig, Format, OpenError, Question};
pub use http::chain;
pub use row::rfc3339;
pub use table::{CommandLine, Parts, Process, Table};
