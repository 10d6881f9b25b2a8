//! Tickets: who shows one on the call port is handed to who waits for it. Plain values; times are
//! milliseconds of a monotonic clock.
//!
//! A ticket is 32 random bytes: it cannot be guessed, is good once and not for long, and says nothing of
//! who shows it. The two programs prove that to each other.

use std::collections::HashMap;
use std::fmt;

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

/// So long a ticket is good: a dial around the world, on hosts that are busy.
pub const TICKET_MS: u64 = 10_000;

/// Tickets that a host has given out and not seen yet. More are refused.
pub(super) const TICKETS_MAX: usize = 16_384;

/// What a data connection begins with, before its ticket.
pub(super) const PREFACE: [u8; 8] = *b"KUMOCALL";

/// All that a data connection begins with.
pub(super) const PREFACE_BYTES: usize = PREFACE.len() + 32;

/// Lets one data connection in, once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ticket([u8; 32]);

impl Ticket {
    /// The system has no randomness where it is `None`.
    pub(super) fn random() -> Option<Ticket> {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).ok()?;
        Some(Ticket(bytes))
    }

    /// One that another host gave.
    pub fn from_bytes(bytes: [u8; 32]) -> Ticket {
        Ticket(bytes)
    }

    /// To be told to whom it is for, and to nobody else.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    pub(super) fn preface(self) -> [u8; PREFACE_BYTES] {
        let mut bytes = [0; PREFACE_BYTES];
        bytes[..PREFACE.len()].copy_from_slice(&PREFACE);
        bytes[PREFACE.len()..].copy_from_slice(&self.0);
        bytes
    }

    /// The ticket in a preface; `None` if it is none.
    pub(super) fn of_preface(bytes: &[u8; PREFACE_BYTES]) -> Option<Ticket> {
        let ticket = bytes.strip_prefix(&PREFACE)?;
        ticket.try_into().ok().map(Ticket)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(…)") // Whoever reads a log must not be able to use it.
    }
}

/// The tickets that are out, and who waits for each.
#[derive(Debug)]
pub(super) struct Tickets<W> {
    out: HashMap<Ticket, (u64, W)>,
}

impl<W> Default for Tickets<W> {
    fn default() -> Tickets<W> {
        Tickets { out: HashMap::new() }
    }
}

impl<W> Tickets<W> {
    /// Gives one out at `now_ms`; whether there was room.
    pub(super) fn give(&mut self, ticket: Ticket, waiter: W, now_ms: u64) -> bool {
        if self.out.len() >= TICKETS_MAX {
            self.out.retain(|_, (until_ms, _)| now_ms < *until_ms);
        }
        if self.out.len() >= TICKETS_MAX {
            return false;
        }
        self.out.insert(ticket, (now_ms.saturating_add(TICKET_MS), waiter));
        true
    }

    /// Who waits for it. It is good no more.
    pub(super) fn take(&mut self, ticket: Ticket, now_ms: u64) -> Option<W> {
        let (until_ms, waiter) = self.out.remove(&ticket)?;
        (now_ms < until_ms).then_some(waiter)
    }

    /// Nobody waits for it any more.
    pub(super) fn withdraw(&mut self, ticket: Ticket) {
        self.out.remove(&ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_once_and_for_a_while() {
        let mut tickets = Tickets::default();
        let [a, b, c] = [1, 2, 3].map(|byte| Ticket::from_bytes([byte; 32]));
        assert!(tickets.give(a, "a", 0) && tickets.give(b, "b", 0) && tickets.give(c, "c", 0));
        assert_eq!(tickets.take(a, TICKET_MS - 1), Some("a"));
        assert_eq!(tickets.take(a, TICKET_MS - 1), None, "used");
        assert_eq!(tickets.take(b, TICKET_MS), None, "too late");
        tickets.withdraw(c);
        assert_eq!(tickets.take(c, 1), None, "withdrawn");
    }

    #[test]
    fn tickets_have_a_limit_and_old_ones_make_room() {
        let mut tickets = Tickets::default();
        let random = || Ticket::random().expect("randomness");
        for _ in 0..TICKETS_MAX {
            assert!(tickets.give(random(), (), 0));
        }
        assert!(!tickets.give(random(), (), TICKET_MS - 1));
        assert!(tickets.give(random(), (), TICKET_MS));
    }

    #[test]
    fn prefaces() {
        let ticket = Ticket::from_bytes([9; 32]);
        let mut preface = ticket.preface();
        assert_eq!(Ticket::of_preface(&preface), Some(ticket));
        assert_eq!(ticket.to_bytes(), [9; 32]);
        preface[7] = b'l';
        assert_eq!(Ticket::of_preface(&preface), None);
        assert_eq!(format!("{ticket:?}"), "Ticket(…)");
    }
}
