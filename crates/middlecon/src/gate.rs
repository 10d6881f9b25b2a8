//! The slots of a server in use: who may run, and who waits for its turn.

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::rules::slots::{Asked, Slot, Slots, Ticket};
use crate::time::now_ns;

pub(crate) struct Gate {
    state: Mutex<State>,
}

struct State {
    slots: Slots,
    turns: HashMap<Ticket, SyncSender<Slot>>,
}

/// A slot that is given back when its handler is over, however it ends.
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    slot: Option<Slot>,
}

/// Why a call did not get a slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// More wait than may.
    Busy,
    /// Its budget was spent waiting.
    Deadline,
}

impl Gate {
    pub(crate) fn new(slots: u16, credit: u16) -> Gate {
        let state = State { slots: Slots::new(slots, credit), turns: HashMap::new() };
        Gate { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for a call at this hop, waiting for it until the deadline.
    pub(crate) fn pass(&self, hop: u8, priority: u8, deadline_ns: u64) -> Result<Pass<'_>, Closed> {
        let mut state = self.state();
        let ticket = match state.slots.ask(hop, priority) {
            Asked::Run(slot) => return Ok(Pass { gate: self, slot: Some(slot) }),
            Asked::Busy => return Err(Closed::Busy),
            Asked::Wait(ticket) => ticket,
        };
        let (turn, wait) = sync_channel(1);
        state.turns.insert(ticket, turn);
        drop(state);
        let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns()));
        match wait.recv_timeout(left) {
            Ok(slot) => Ok(Pass { gate: self, slot: Some(slot) }),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let mut state = self.state();
                state.turns.remove(&ticket);
                let left = state.slots.leave(ticket);
                drop(state);
                // Its turn came in the last moment: the slot goes to the next.
                if !left && let Ok(slot) = wait.try_recv() {
                    self.free(slot);
                }
                Err(Closed::Deadline)
            }
        }
    }

    /// The slot of the call above, which waits for this one.
    pub(crate) fn lent(&self) -> Pass<'_> {
        Pass { gate: self, slot: Some(Slot::Lent) }
    }

    fn free(&self, slot: Slot) {
        let mut state = self.state();
        let mut slot = slot;
        while let Some((ticket, next)) = state.slots.free(slot) {
            let Some(turn) = state.turns.remove(&ticket) else {
                slot = next;
                continue;
            };
            // There is room for the one slot it is sent, and the waiter looks once more as it leaves.
            match turn.try_send(next) {
                Ok(()) => return,
                Err(error) => {
                    let (std::sync::mpsc::TrySendError::Full(back)
                    | std::sync::mpsc::TrySendError::Disconnected(back)) = error;
                    slot = back;
                }
            }
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.gate.free(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::NEVER_NS;
    use std::sync::Barrier;

    #[test]
    fn a_turn_comes_and_a_spent_budget_leaves_no_slot_lost() {
        let gate = Gate::new(0, 1);
        let first = gate.pass(1, 0, NEVER_NS).ok().expect("the reserved one");
        assert_eq!(gate.pass(1, 0, now_ns() + 1_000_000).err(), Some(Closed::Deadline));
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                barrier.wait();
                gate.pass(1, 0, NEVER_NS).is_ok()
            });
            barrier.wait();
            while gate.state().slots.waiting() == 0 {
                std::thread::yield_now();
            }
            assert_eq!(gate.pass(1, 0, NEVER_NS).err(), Some(Closed::Busy));
            drop(first);
            assert!(waiter.join().expect("no panic"));
        });
        assert!(gate.pass(1, 0, NEVER_NS).is_ok(), "the waiter has given it back");
    }
}
