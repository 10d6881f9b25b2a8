//! What one program, and all programs of one user, may have: whoever floods the node harms itself.
//!
//! A program's own limits are below those of its user, so that one program that runs wild leaves room
//! for the others of its user, and a user that starts many harms no other user.

use kumo_abi::page::notice;

/// Opens that a program may ask for in a second, and at once. A program keeps its connections: even a
/// gateway to hundreds of services opens each once.
pub(crate) const OPENS_OF_PROGRAM: Rate = Rate { per_second: 500, burst: 1_024 };

/// The same for all programs of one user.
pub(crate) const OPENS_OF_USER: Rate = Rate { per_second: 4_000, burst: 8_192 };

/// Messages of any kind that are read from one program in a second, and at once. Above that its node
/// reads slower, so that the program waits in its own `send`.
pub(crate) const MESSAGES_OF_PROGRAM: Rate = Rate { per_second: 4_000, burst: 4_096 };

/// Programs of one user that are connected at once.
pub(crate) const PROGRAMS_OF_USER_MAX: u32 = 1_024;

/// Programs that are connected at once, of all users. Each has three descriptors here.
pub(crate) const PROGRAMS_MAX: u32 = 4_096;

/// Ends of connections of one program: as many as its notice page has.
pub(crate) const CONNECTIONS_OF_PROGRAM_MAX: u32 = notice::CONNECTIONS_MAX as u32;

/// Ends of connections of one user's programs.
pub(crate) const CONNECTIONS_OF_USER_MAX: u32 = 16 * CONNECTIONS_OF_PROGRAM_MAX;

/// Names that programs of one user serve at once on a host: four users that want all there are leave
/// room for others among those that a host tells the cluster of.
pub(crate) const NAMES_OF_USER_MAX: usize = 100;

/// How fast something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// For long.
    pub(crate) per_second: u32,
    /// At once, after a while without.
    pub(crate) burst: u32,
}

/// A bucket of tokens. Times are milliseconds of a clock that never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    rate: Rate,
    /// Thousandths of a token, as many as `per_second` a millisecond.
    milli: u64,
    at_ms: u64,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(rate: Rate, now_ms: u64) -> Bucket {
        Bucket { rate, milli: u64::from(rate.burst) * 1_000, at_ms: now_ms }
    }

    /// Takes a token. Without one: after how many milliseconds there is one; nothing was taken.
    pub(crate) fn take(&mut self, now_ms: u64) -> Result<(), u32> {
        let passed_ms = now_ms.saturating_sub(self.at_ms);
        let came = passed_ms.saturating_mul(u64::from(self.rate.per_second));
        self.milli = self.milli.saturating_add(came).min(u64::from(self.rate.burst) * 1_000);
        self.at_ms = self.at_ms.max(now_ms);
        match self.milli.checked_sub(1_000) {
            Some(left) => {
                self.milli = left;
                Ok(())
            }
            None => Err((1_000 - self.milli).div_ceil(u64::from(self.rate.per_second)) as u32),
        }
    }

    /// Whether it is as full as if nothing had ever happened, so that it need not be kept.
    pub(crate) fn is_full(&self, now_ms: u64) -> bool {
        let passed_ms = now_ms.saturating_sub(self.at_ms);
        let came = passed_ms.saturating_mul(u64::from(self.rate.per_second));
        self.milli.saturating_add(came) >= u64::from(self.rate.burst) * 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let rate = Rate { per_second: 2, burst: 3 };
        let mut bucket = Bucket::new(rate, 100);
        // When, and what comes of it.
        let cases = [
            (100, Ok(())),
            (100, Ok(())),
            (100, Ok(())),
            (100, Err(500)),
            (350, Err(250)),
            (600, Ok(())),
            (500, Err(500)), // A clock that goes back gives nothing.
            (100_000, Ok(())),
            (100_000, Ok(())),
            (100_000, Ok(())),
            (100_000, Err(500)),
        ];
        for (step, (now_ms, want)) in cases.into_iter().enumerate() {
            assert_eq!(bucket.take(now_ms), want, "step {step}");
        }
        assert!(!bucket.is_full(101_499));
        assert!(bucket.is_full(101_500));
    }
}
