//! A hybrid logical clock: stamps that grow with every event and stay near the wall clock.
//!
//! After Kulkarni et al., "Logical Physical Clocks" (2014). A stamp is greater than every stamp that
//! its writer had seen, so "last" in last-writer-wins never contradicts what a writer knew; and it is
//! a time that people can read.

use std::fmt;

use kumo_abi::HostId;
use serde::{Deserialize, Serialize};

/// A stamp further ahead of our own clock than this is refused: one host whose clock is years ahead
/// would else win against everyone for years.
pub const AHEAD_MS_MAX: u64 = 5 * 60 * 1000;

/// When something was written, and by whom. Stamps are totally ordered; two writers never make the
/// same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// Milliseconds since the Unix epoch, by the wall clock of the writer or of whom it had heard.
    pub ms: u64,
    /// Tells apart what happened within one millisecond.
    pub count: u32,
    /// The writer.
    pub writer: HostId,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}", self.ms, self.count, self.writer)
    }
}

/// The stamp is too far ahead of our clock; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the clock of `{writer}` is {ahead_ms} ms ahead of this host's, and {AHEAD_MS_MAX} ms is the most; set both by NTP"
)]
pub struct TooFarAhead {
    /// Whose stamp it was.
    pub writer: HostId,
    /// How far it is ahead.
    pub ahead_ms: u64,
}

/// The clock of one writer.
#[derive(Clone, Debug)]
pub struct Clock {
    writer: HostId,
    ms: u64,
    count: u32,
}

impl Clock {
    /// The clock of `writer`, which has stamped nothing greater than `last` so far.
    pub fn new(writer: HostId, last: Option<&Stamp>) -> Clock {
        let (ms, count) = last.map_or((0, 0), |stamp| (stamp.ms, stamp.count));
        Clock { writer, ms, count }
    }

    /// A stamp for something that is written at wall-clock time `now_ms`: greater than all that this
    /// clock has made or seen.
    pub fn stamp(&mut self, now_ms: u64) -> Stamp {
        if now_ms > self.ms {
            (self.ms, self.count) = (now_ms, 0);
        } else if let Some(count) = self.count.checked_add(1) {
            self.count = count;
        } else {
            (self.ms, self.count) = (self.ms + 1, 0);
        }
        Stamp { ms: self.ms, count: self.count, writer: self.writer.clone() }
    }

    /// Learns of a stamp that somebody else made.
    ///
    /// # Errors
    /// [`TooFarAhead`]; then the stamp must not be used.
    pub fn see(&mut self, stamp: &Stamp, now_ms: u64) -> Result<(), TooFarAhead> {
        let ahead_ms = stamp.ms.saturating_sub(now_ms);
        if ahead_ms > AHEAD_MS_MAX {
            return Err(TooFarAhead { writer: stamp.writer.clone(), ahead_ms });
        }
        (self.ms, self.count) = (self.ms, self.count).max((stamp.ms, stamp.count));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostId {
        format!("dc/{name}").parse().expect("a host")
    }

    #[test]
    fn stamps_grow_when_the_wall_clock_does_not() {
        let mut clock = Clock::new(host("a"), None);
        let times = [100, 100, 90, 101, 5, u64::from(u32::MAX)];
        let stamps: Vec<_> = times.iter().map(|now_ms| clock.stamp(*now_ms)).collect();
        assert!(stamps.windows(2).all(|pair| pair[0] < pair[1]), "{stamps:?}");
        let mut again = Clock::new(host("a"), stamps.last());
        assert!(again.stamp(0) > stamps[5], "after a restart with a clock set back");
    }

    #[test]
    fn a_full_counter_borrows_from_time() {
        let last = Stamp { ms: 7, count: u32::MAX, writer: host("a") };
        let mut clock = Clock::new(host("a"), Some(&last));
        assert!(clock.stamp(0) > last);
    }

    #[test]
    fn what_was_seen_is_older_than_what_is_written_after() {
        let (mut a, mut b) = (Clock::new(host("a"), None), Clock::new(host("b"), None));
        let from_a = a.stamp(5_000);
        b.see(&from_a, 1_000).expect("four seconds ahead");
        assert!(b.stamp(1_000) > from_a);
    }

    #[test]
    fn a_clock_years_ahead_is_refused() {
        let mut clock = Clock::new(host("a"), None);
        let ahead = Stamp { ms: 10_000_000, count: 0, writer: host("b") };
        let refused = clock.see(&ahead, 1_000).expect_err("hours ahead");
        assert_eq!(refused.ahead_ms, 9_999_000);
        assert!(clock.stamp(1_000).ms < 2_000, "nothing was learned from it");
    }
}
