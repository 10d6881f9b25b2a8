//! Time as the pages show it: nanoseconds of `CLOCK_MONOTONIC`.

use rustix::event::Timespec;
use rustix::time::{ClockId, clock_gettime};

/// No deadline.
pub(crate) const NEVER_NS: u64 = u64::MAX;

/// Now.
#[inline]
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What is left until a deadline, for `poll`; nothing for no deadline.
pub(crate) fn left(deadline_ns: u64) -> Option<Timespec> {
    (deadline_ns != NEVER_NS).then(|| {
        let ns = deadline_ns.saturating_sub(now_ns());
        Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
    })
}
