//! How long to look before sleeping: only where looking has paid.
//!
//! A hot pair on two cores answers within a microsecond, and sleeping costs many. But who shares a core
//! with its peer looks in vain, for the peer cannot run meanwhile; and who waits for a slow handler
//! burns a core for nothing.

/// Longest time of looking, and what is tried now and then: twice what waking an idle core of a virtual
/// machine costs. A peer that sleeps must be woken once before two can be hot.
pub const SPIN_NS_MAX: u32 = 100_000;

/// Shortest time while looking pays, so that a single slow reply does not end it.
const SPIN_NS_MIN: u32 = 20_000;

/// Below this looking is given up: three misses after it last paid.
const GIVE_UP_NS: u32 = 4_000;

/// After so many waits without looking, looking is tried again: at first, and at most. Each time in vain
/// doubles it, so that many callers on few cores pay 3 microseconds a wait for a moment only, then a tenth of one.
const TRY_EVERY: (u32, u32) = (32, 1_024);

/// What one end of a connection has learned.
#[derive(Clone, Copy, Debug)]
pub struct Spin {
    limit_ns: u32,
    waits_asleep: u32,
    try_every: u32,
    hot: bool,
}

impl Default for Spin {
    fn default() -> Spin {
        Spin { limit_ns: SPIN_NS_MAX, waits_asleep: 0, try_every: TRY_EVERY.0, hot: false }
    }
}

impl Spin {
    /// Whether the last wait was over within a few looks. Then the next may begin with as many, without a
    /// look at the clock or the CPU: a peer that was so quick runs on another one.
    pub fn is_hot(&self) -> bool {
        self.hot
    }

    /// Whether a wait was over within a few looks.
    pub fn was_quick(&mut self, quick: bool) {
        self.hot = quick;
    }

    /// How long to look this time. `cpu` is ours, `peer_cpu` is where the peer was seen, if it says.
    pub fn limit_ns(&mut self, cpu: usize, peer_cpu: Option<usize>) -> u32 {
        if peer_cpu == Some(cpu) {
            return 0;
        }
        if self.limit_ns >= GIVE_UP_NS {
            return self.limit_ns;
        }
        self.waits_asleep += 1;
        if self.waits_asleep < self.try_every {
            return 0;
        }
        self.waits_asleep = 0;
        SPIN_NS_MAX
    }

    /// What came of looking for `limit_ns`: something after so many nanoseconds, or nothing.
    pub fn learn(&mut self, limit_ns: u32, came_after_ns: Option<u64>) {
        match came_after_ns {
            _ if limit_ns == 0 => {}
            Some(ns) => {
                // Room for what takes a few times as long; a limit that fits forgets slowly.
                let fits = ns.saturating_mul(4).min(SPIN_NS_MAX.into()).max(SPIN_NS_MIN.into());
                self.limit_ns = (self.limit_ns - self.limit_ns / 8).max(fits as u32);
                self.try_every = TRY_EVERY.0;
            }
            None if self.limit_ns < GIVE_UP_NS => {
                self.try_every = (2 * self.try_every).min(TRY_EVERY.1);
            }
            None => self.limit_ns /= 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_one_core_nobody_looks() {
        let mut spin = Spin::default();
        assert_eq!(spin.limit_ns(3, Some(3)), 0);
        assert!(spin.limit_ns(3, Some(4)) > 0 && spin.limit_ns(3, None) > 0);
    }

    #[test]
    fn what_does_not_pay_ends_and_is_tried_again_seldom() {
        let mut spin = Spin::default();
        let mut looked = |waits: u32| {
            let mut looked = 0;
            for _ in 0..waits {
                let limit_ns = spin.limit_ns(0, Some(1));
                looked += u32::from(limit_ns > 0);
                spin.learn(limit_ns, None);
            }
            looked
        };
        assert!((5..15).contains(&looked(1_000)));
        looked(5_000);
        assert_eq!(looked(10 * TRY_EVERY.1), 10, "seldom, and not never");
        // And what pays again is believed at once.
        spin.learn(SPIN_NS_MAX, Some(500));
        assert_eq!(spin.limit_ns(0, Some(1)), SPIN_NS_MIN);
    }

    #[test]
    fn what_pays_keeps_a_limit_that_fits() {
        let mut spin = Spin::default();
        for _ in 0..100 {
            spin.learn(spin.limit_ns, Some(10_000));
        }
        assert_eq!(spin.limit_ns, 40_000);
        spin.learn(spin.limit_ns, None);
        assert_eq!(spin.limit_ns(0, None), 20_000, "one slow reply ends nothing");
        spin.learn(spin.limit_ns, Some(1_000_000));
        assert_eq!(spin.limit_ns, SPIN_NS_MAX);
    }
}
