//! Whether a doorbell that was rung will still make the peer look.
//!
//! A doorbell costs a system call, so a writer does not ring again for a peer that is about to look anyway. What
//! says so is the frame that it rang for: until the peer has read that, the doorbell lies in its socket, or it
//! was taken out and the peer looks at the ring before it sleeps. How far the peer had read when it was rung
//! says nothing: it may have read that very frame between our write and our look, because it was awake after
//! all, and then sleep again.

/// What a writer remembers of the doorbell that it rang last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bell {
    /// Where the last frame ended that it was rung for.
    rung_for: Option<u64>,
}

impl Bell {
    /// Whether a peer that sleeps, and has read so far, must be rung for.
    pub fn must_ring(&self, read: u64) -> bool {
        // Positions count bytes for ever and may wrap: what was read is before what was rung for, or not.
        self.rung_for.is_none_or(|rung_for| rung_for.wrapping_sub(read).cast_signed() <= 0)
    }

    /// It was rung, when so much had been written.
    pub fn rung(&mut self, written: u64) {
        self.rung_for = Some(written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_doorbell_is_enough_until_its_frame_is_read() {
        for start in [0, u64::MAX - 100] {
            let at = |bytes: u64| start.wrapping_add(bytes);
            let mut bell = Bell::default();
            assert!(bell.must_ring(at(0)), "nobody has rung");
            bell.rung(at(64));
            assert!(!bell.must_ring(at(0)), "it will wake, and read what is there");
            bell.rung(at(64));
            // 128 were written meanwhile; it has read the first and sleeps.
            assert!(bell.must_ring(at(64)));
            bell.rung(at(128));
            assert!(!bell.must_ring(at(64)));
            assert!(bell.must_ring(at(128)));
        }
    }

    #[test]
    fn a_peer_that_had_read_the_frame_before_the_doorbell_came_is_rung_for_the_next() {
        let mut bell = Bell::default();
        // It was seen asleep, woke by itself, and has read the frame by the time we look.
        assert!(bell.must_ring(64));
        bell.rung(64);
        // The next frame finds it asleep, and no further than then.
        assert!(bell.must_ring(64));
    }
}
