//! Which call may run, which waits and which is BUSY, so that exhausted pools never wait for each other.
//!
//! Beside the common slots there is one for each hop class. A call at hop h waits for calls at hop h+1
//! only, and the last class calls nobody: some call of the deepest class that has any always runs, so
//! every class moves.

use std::collections::VecDeque;

use kumo_abi::call::HOPS_MAX;

/// A place to run in. It is given back with [`Slots::free`], once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a slot that is not given back is lost"]
pub enum Slot {
    /// Of those that any call may have.
    Common,
    /// The one of a hop class.
    Reserved(u8),
    /// That of a call above, which waits for this one.
    Lent,
}

/// Who waits, by number.
pub type Ticket = u64;

/// What becomes of a call that asks.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// It runs.
    Run(Slot),
    /// It waits; [`Slots::free`] or [`Slots::leave`] will name its ticket.
    Wait(Ticket),
    /// More wait than the credit allows.
    Busy,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    hop: u8,
    priority: u8,
}

/// The slots of one server.
#[derive(Debug)]
pub struct Slots {
    free: u16,
    reserved_taken: u32,
    credit: u16,
    waiting: VecDeque<Waiting>,
    tickets: Ticket,
}

impl Slots {
    /// `slots` common ones, and `credit` calls that may wait.
    pub fn new(slots: u16, credit: u16) -> Slots {
        Slots { free: slots, reserved_taken: 0, credit, waiting: VecDeque::new(), tickets: 0 }
    }

    /// A call at this hop, 1 to [`HOPS_MAX`], wants to run.
    pub fn ask(&mut self, hop: u8, priority: u8) -> Asked {
        let hop = hop.clamp(1, HOPS_MAX);
        if self.free > 0 {
            self.free -= 1;
            return Asked::Run(Slot::Common);
        }
        if self.reserved_taken & (1 << hop) == 0 {
            self.reserved_taken |= 1 << hop;
            return Asked::Run(Slot::Reserved(hop));
        }
        if self.waiting.len() >= usize::from(self.credit) {
            return Asked::Busy;
        }
        self.tickets += 1;
        // The more urgent first; among equals, who came first.
        let at = self.waiting.partition_point(|other| other.priority >= priority);
        self.waiting.insert(at, Waiting { ticket: self.tickets, hop, priority });
        Asked::Wait(self.tickets)
    }

    /// A call has run. Whoever is named has its slot now.
    pub fn free(&mut self, slot: Slot) -> Option<(Ticket, Slot)> {
        let next = match slot {
            Slot::Common => self.waiting.pop_front(),
            Slot::Reserved(hop) => {
                let at = self.waiting.iter().position(|waiting| waiting.hop == hop);
                at.and_then(|at| self.waiting.remove(at))
            }
            Slot::Lent => return None,
        };
        match (next, slot) {
            (Some(next), slot) => Some((next.ticket, slot)),
            (None, Slot::Common) => {
                self.free += 1;
                None
            }
            (None, Slot::Reserved(hop)) => {
                self.reserved_taken &= !(1 << hop);
                None
            }
            (None, Slot::Lent) => None,
        }
    }

    /// A call no longer waits. False if it has been given a slot already, which must be freed then.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.ticket != ticket);
        self.waiting.len() < before
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn common_slots_then_that_of_the_hop_then_credit_then_busy() {
        let mut slots = Slots::new(1, 1);
        assert_eq!(slots.ask(1, 0), Asked::Run(Slot::Common));
        assert_eq!(slots.ask(1, 0), Asked::Run(Slot::Reserved(1)));
        assert_eq!(slots.ask(2, 0), Asked::Run(Slot::Reserved(2)));
        assert_eq!(slots.ask(1, 0), Asked::Wait(1));
        assert_eq!(slots.ask(1, 0), Asked::Busy);
        assert_eq!(slots.ask(3, 0), Asked::Run(Slot::Reserved(3)));
        assert_eq!(slots.free(Slot::Reserved(2)), None);
        assert_eq!(slots.free(Slot::Reserved(1)), Some((1, Slot::Reserved(1))));
        assert!(!slots.leave(1), "it has its slot");
        assert_eq!(slots.free(Slot::Lent), None);
        assert_eq!(slots.free(Slot::Common), None);
        assert_eq!(slots.ask(16, 0), Asked::Run(Slot::Common));
    }

    #[test]
    fn the_urgent_go_first_and_equals_in_their_order() {
        let mut slots = Slots::new(0, 4);
        assert_eq!(slots.ask(1, 0), Asked::Run(Slot::Reserved(1)));
        for (priority, ticket) in [(0, 1), (5, 2), (0, 3), (5, 4)] {
            assert_eq!(slots.ask(1, priority), Asked::Wait(ticket));
        }
        assert!(slots.leave(3));
        for ticket in [2, 4, 1] {
            assert_eq!(slots.free(Slot::Reserved(1)), Some((ticket, Slot::Reserved(1))));
        }
        assert_eq!(slots.free(Slot::Reserved(1)), None);
    }

    /// Services that call each other at random, a few slots each: every chain of calls comes to its end.
    /// A call at hop h holds its slot until its own call at hop h+1 is over.
    fn all_complete(slots: &[u16], paths: &[Vec<usize>]) -> bool {
        let mut services: Vec<Slots> = slots.iter().map(|n| Slots::new(*n, 1_000)).collect();
        let mut waits = std::collections::HashMap::new();
        let mut held: Vec<Vec<Slot>> = paths.iter().map(|_| Vec::new()).collect();
        let mut ready: VecDeque<usize> = (0..paths.len()).collect();
        let mut done = 0;
        while let Some(chain) = ready.pop_front() {
            let hop = held[chain].len();
            if hop < paths[chain].len() {
                let service = paths[chain][hop];
                match services[service].ask(hop as u8 + 1, 0) {
                    Asked::Run(slot) => {
                        held[chain].push(slot);
                        ready.push_back(chain);
                    }
                    Asked::Wait(ticket) => {
                        waits.insert((service, ticket), chain);
                    }
                    Asked::Busy => unreachable!("the credit is above the number of chains"),
                }
                continue;
            }
            done += 1;
            while let Some(slot) = held[chain].pop() {
                let service = paths[chain][held[chain].len()];
                if let Some((ticket, slot)) = services[service].free(slot) {
                    let next = waits.remove(&(service, ticket)).expect("it waits");
                    held[next].push(slot);
                    ready.push_back(next);
                }
            }
        }
        done == paths.len()
    }

    #[test]
    fn two_pools_that_call_each_other_complete() {
        let paths: Vec<Vec<usize>> =
            (0..64).map(|n| if n % 2 == 0 { vec![0, 1] } else { vec![1, 0] }).collect();
        assert!(all_complete(&[4, 4], &paths));
        assert!(all_complete(&[0, 0], &paths), "the reserved slots alone are enough");
    }

    proptest! {
        #[test]
        fn no_pools_wait_for_each_other(
            slots in prop::collection::vec(0_u16..3, 4),
            paths in prop::collection::vec(prop::collection::vec(0_usize..4, 1..=16), 1..64),
        ) {
            prop_assert!(all_complete(&slots, &paths));
        }
    }
}
