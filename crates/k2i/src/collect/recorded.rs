//! Plays a recorded table back, so that one machine can stand for many hosts.
//!
//! What is the same at every scan is shared between all who play the same record. CPU time goes on, by
//! an amount that differs from process to process, so that an order by CPU use means something.

use std::sync::Arc;
use std::time::Instant;

use super::Scan;
use crate::table::{Parts, Process};

/// Nanoseconds of CPU time in each second, for the busiest of the recorded processes.
const BUSIEST_NS: u64 = 900_000_000;

/// A record that is played back.
#[derive(Debug)]
pub(super) struct Recorded {
    rows: Arc<[Process]>,
    began: Instant,
}

impl Recorded {
    /// Plays `rows` back, ascending by pid.
    pub(super) fn new(rows: Arc<[Process]>) -> Recorded {
        Recorded { rows, began: Instant::now() }
    }

    pub(super) fn scan(&self) -> Scan {
        let seconds = self.began.elapsed().as_secs_f64();
        let mut rows = self.rows.to_vec();
        for (index, row) in rows.iter_mut().enumerate() {
            // A harmonic row: one busy process, some less so, many that hardly run.
            let rate = BUSIEST_NS as f64 / (index + 1) as f64;
            row.utime_ns += (rate * seconds) as u64;
        }
        // What a row lacks could not be read when it was recorded, and cannot be now.
        Scan { rows, parts: Parts::EVERY_ROW }
    }
}
