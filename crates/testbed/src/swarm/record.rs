//! The table that all hosts of a swarm play back.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use k2i::{CollectorChoice, Engine, EngineConfig, Parts, Process};

use crate::chain;

/// Reads the children of `keeper` with all their parts, ascending by process number.
///
/// # Errors
/// The table cannot be read, or does not hold `count` of them.
pub(super) fn record(keeper: i32, count: usize) -> io::Result<Arc<[Process]>> {
    let config = EngineConfig {
        collector: CollectorChoice::Auto,
        dc: "swarm".to_owned(),
        host: "record".to_owned(),
    };
    let engine = Engine::open(config).map_err(|error| io::Error::other(chain(&error)))?;
    let table = engine.table(Duration::ZERO, Parts::EVERY_ROW);
    let table = table.map_err(|error| io::Error::other(chain(&error)))?;
    let children = table.rows.iter().filter(|row| row.ppid == keeper);
    let mut rows: Vec<Process> = children.cloned().collect();
    if rows.len() != count {
        return Err(io::Error::other(format!("{} processes of {count} were seen", rows.len())));
    }
    for row in &mut rows {
        engine.complete(row, Parts::EVERY_ROW | Parts::LATE);
    }
    Ok(rows.into())
}
