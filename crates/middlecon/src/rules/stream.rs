//! How far the sender of a stream may be ahead of its reader: counted on both sides, by tasks and by threads.

use kumo_abi::frame::{BODY_BYTES_MAX, STREAM_CREDIT};

/// Pieces that are taken before their credit is sent: few frames, and the sender never waits for the last.
const CREDIT_AT_ONCE: u32 = STREAM_CREDIT / 2;

/// What a handler sends at once, as the chunks that a frame can hold; none of nothing.
pub fn chunks(piece: &[u8]) -> impl Iterator<Item = &[u8]> {
    piece.chunks(BODY_BYTES_MAX)
}

/// Whether a reader may say that it has taken so many chunks, where the sender may still send `left`: it
/// cannot have taken more than it was sent.
pub fn is_owed(left: u32, taken: u32) -> bool {
    taken <= STREAM_CREDIT.saturating_sub(left)
}

/// Chunks that a sender may send now.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    left: u32,
}

impl Default for Ahead {
    fn default() -> Ahead {
        Ahead { left: STREAM_CREDIT }
    }
}

impl Ahead {
    /// Takes the credit of one chunk; false if there is none.
    pub fn spend(&mut self) -> bool {
        let has = self.left > 0;
        self.left -= u32::from(has);
        has
    }

    /// The reader has taken so many. False, and without effect, if it says more than it was sent.
    pub fn add(&mut self, taken: u32) -> bool {
        let is_owed = is_owed(self.left, taken);
        if is_owed {
            self.left += taken;
        }
        is_owed
    }
}

/// Pieces that a reader took, and for which the sender has no new credit yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Owed {
    taken: u32,
}

impl Owed {
    /// One more was taken.
    pub fn take(&mut self) {
        self.taken += 1;
    }

    /// The credit that is to be sent now, if it is worth a frame.
    pub fn due(self) -> Option<u32> {
        (self.taken >= CREDIT_AT_ONCE).then_some(self.taken)
    }

    /// All of it was sent.
    pub fn paid(&mut self) {
        self.taken = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_cut_into_nothing_and_what_is_large_into_frames() {
        for (len_bytes, want) in [
            (0, vec![]),
            (1, vec![1]),
            (BODY_BYTES_MAX, vec![BODY_BYTES_MAX]),
            (BODY_BYTES_MAX + 1, vec![BODY_BYTES_MAX, 1]),
        ] {
            let piece = vec![7; len_bytes];
            assert_eq!(chunks(&piece).map(<[u8]>::len).collect::<Vec<_>>(), want);
        }
    }

    #[test]
    fn credit_for_what_was_never_sent_is_refused() {
        let mut ahead = Ahead::default();
        assert!(!ahead.add(1) && ahead.add(0));
        assert!(ahead.spend() && !ahead.add(2) && ahead.add(1));
        assert!(!ahead.add(u32::MAX));
    }

    proptest! {
        /// Whoever is quicker, a sender never is further ahead than it may, and never waits for good.
        #[test]
        fn a_sender_is_ahead_as_far_as_it_may_and_never_waits_for_good(sends in prop::collection::vec(any::<bool>(), 0..200)) {
            let (mut ahead, mut owed, mut on_their_way) = (Ahead::default(), Owed::default(), 0);
            for sends in sends {
                if sends && ahead.spend() {
                    on_their_way += 1;
                } else if on_their_way > 0 {
                    on_their_way -= 1;
                    owed.take();
                    if let Some(credit) = owed.due() {
                        prop_assert!(ahead.add(credit));
                        owed.paid();
                    }
                }
                prop_assert!(on_their_way <= STREAM_CREDIT);
                prop_assert!(on_their_way > 0 || ahead.spend() && ahead.add(1), "both wait");
            }
        }
    }
}
