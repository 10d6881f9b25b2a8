//! Who may wait for a handshake, and what is said how often. Plain values; times are milliseconds of a
//! monotonic clock.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Handshakes at once. One takes about 2 ms of CPU time, so this is a second's work of one core.
pub(crate) const HANDSHAKES_MAX: usize = 512;

/// Handshakes at once from one address: a data centre behind one address, after its gateway restarted.
pub(crate) const HANDSHAKES_PER_ADDRESS_MAX: usize = 256;

/// A handshake older than this makes room for a new one when there is no room. Honest ones are done
/// earlier, unless this host is overloaded; then it is better to finish what was begun.
pub(crate) const HANDSHAKE_OLD_MS: u64 = 1_000;

/// The same is said of an address so often at most: a refused host tries again every second.
pub(crate) const SAY_EVERY_MS: u64 = 60_000;

/// Addresses that are remembered for that. Of more nothing is said: there are 2^64 addresses in
/// everybody's hand.
const SAID_MAX: usize = 1_024;

/// The connections whose handshake is not done.
#[derive(Debug, Default)]
pub(crate) struct HalfOpen {
    next: u64,
    open: BTreeMap<u64, (IpAddr, u64)>,
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may begin; this is its number.
    Go(u64),
    /// It may begin, and an older one ends for it.
    Instead {
        /// Its number.
        ticket: u64,
        /// Who ends.
        of: u64,
    },
    /// There is no room.
    Full,
}

impl HalfOpen {
    /// A connection came from `address`.
    pub(crate) fn admit(&mut self, address: IpAddr, now_ms: u64) -> Admission {
        let of_address = || self.open.iter().filter(|(_, (from, _))| *from == address);
        // Numbers grow with time, so the first is the oldest.
        let oldest = if of_address().count() >= HANDSHAKES_PER_ADDRESS_MAX {
            of_address().next()
        } else if self.open.len() >= HANDSHAKES_MAX {
            self.open.iter().next()
        } else {
            None
        };
        let oldest = oldest.map(|(ticket, (_, began_ms))| (*ticket, *began_ms));
        match oldest {
            Some((_, began_ms)) if now_ms.saturating_sub(began_ms) < HANDSHAKE_OLD_MS => {
                Admission::Full
            }
            Some((of, _)) => {
                self.open.remove(&of);
                Admission::Instead { ticket: self.begin(address, now_ms), of }
            }
            None => Admission::Go(self.begin(address, now_ms)),
        }
    }

    fn begin(&mut self, address: IpAddr, now_ms: u64) -> u64 {
        self.next += 1;
        self.open.insert(self.next, (address, now_ms));
        self.next
    }

    /// Whether a handshake is not over.
    pub(crate) fn contains(&self, ticket: u64) -> bool {
        self.open.contains_key(&ticket)
    }

    /// A handshake is over, one way or the other.
    pub(crate) fn done(&mut self, ticket: u64) {
        self.open.remove(&ticket);
    }
}

/// What was said about whom lately.
#[derive(Debug, Default)]
pub(crate) struct Said(HashMap<String, u64>);

impl Said {
    /// Whether something may be said about `whom` now; then it counts as said.
    pub(crate) fn may_say(&mut self, whom: &str, now_ms: u64) -> bool {
        let is_recent = |said_ms: &u64| now_ms.saturating_sub(*said_ms) < SAY_EVERY_MS;
        if self.0.get(whom).is_some_and(is_recent) {
            return false;
        }
        if self.0.len() >= SAID_MAX {
            self.0.retain(|_, said_ms| is_recent(said_ms));
        }
        if self.0.len() >= SAID_MAX {
            return false;
        }
        self.0.insert(whom.to_owned(), now_ms);
        true
    }

    /// It can be said again: what was wrong has gone.
    pub(crate) fn forget(&mut self, whom: &str) {
        self.0.remove(whom);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn one_address_does_not_take_all_room() {
        let mut half_open = HalfOpen::default();
        for _ in 0..HANDSHAKES_PER_ADDRESS_MAX {
            assert!(matches!(half_open.admit(address(1), 0), Admission::Go(_)));
        }
        assert_eq!(half_open.admit(address(1), 10), Admission::Full);
        assert!(matches!(half_open.admit(address(2), 10), Admission::Go(_)));
        half_open.done(7);
        assert!(matches!(half_open.admit(address(1), 10), Admission::Go(_)));
    }

    #[test]
    fn slow_handshakes_make_room_and_fresh_ones_do_not() {
        let mut half_open = HalfOpen::default();
        for turn in 0..HANDSHAKES_MAX {
            let from = address((turn % 200) as u8);
            assert!(matches!(half_open.admit(from, turn as u64), Admission::Go(_)));
        }
        assert_eq!(half_open.admit(address(250), HANDSHAKE_OLD_MS - 1), Admission::Full);
        let want = Admission::Instead { ticket: HANDSHAKES_MAX as u64 + 1, of: 1 };
        assert_eq!(half_open.admit(address(250), HANDSHAKE_OLD_MS), want);
        assert_eq!(half_open.admit(address(250), HANDSHAKE_OLD_MS), Admission::Full);
    }

    #[test]
    fn the_same_is_not_said_every_second() {
        let mut said = Said::default();
        let at = [0, 1_000, SAY_EVERY_MS - 1, SAY_EVERY_MS, SAY_EVERY_MS + 1];
        assert_eq!(at.map(|now_ms| said.may_say("a", now_ms)), [true, false, false, true, false]);
        said.forget("a");
        assert!(said.may_say("a", SAY_EVERY_MS + 2));
        for n in 0..SAID_MAX * 2 {
            said.may_say(&n.to_string(), SAY_EVERY_MS);
        }
        assert!(said.0.len() <= SAID_MAX);
        assert!(said.may_say("b", SAY_EVERY_MS * 3), "old ones make room");
    }
}
