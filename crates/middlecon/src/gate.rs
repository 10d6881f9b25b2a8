//! The slots of a server in use: who may run, and who waits for its turn.

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::rules::slots::{Asked, Slot, Slots, Ticket};
use crate::time::now_ns;

pub(crate) struct Gate {
    state: Mutex<State>,
}

struct State {
    slots: Slots,
    turns: HashMap<Ticket, Turn>,
}

/// Whom to tell that it is its turn.
enum Turn {
    Thread(SyncSender<Slot>),
    Task(oneshot::Sender<Slot>),
}

impl Turn {
    /// Hands the slot over; it comes back if nobody waits any more.
    fn come(self, slot: Slot) -> Result<(), Slot> {
        match self {
            // There is room for the one slot it is sent, and the waiter looks once more as it leaves.
            Turn::Thread(thread) => thread.try_send(slot).map_err(|error| match error {
                TrySendError::Full(slot) | TrySendError::Disconnected(slot) => slot,
            }),
            Turn::Task(task) => task.send(slot),
        }
    }
}

/// A slot that is given back when its handler is over, however it ends.
pub(crate) struct Pass {
    gate: Arc<Gate>,
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
    pub(crate) fn new(slots: u16, credit: u16) -> Arc<Gate> {
        let state = State { slots: Slots::new(slots, credit), turns: HashMap::new() };
        Arc::new(Gate { state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(self: &Arc<Gate>, slot: Slot) -> Pass {
        Pass { gate: self.clone(), slot: Some(slot) }
    }

    /// A slot for a call at this hop; blocks the thread for it until the deadline.
    pub(crate) fn wait(
        self: &Arc<Gate>,
        hop: u8,
        priority: u8,
        deadline_ns: u64,
    ) -> Result<Pass, Closed> {
        let mut state = self.state();
        let ticket = match state.slots.ask(hop, priority) {
            Asked::Run(slot) => return Ok(self.pass(slot)),
            Asked::Busy => return Err(Closed::Busy),
            Asked::Wait(ticket) => ticket,
        };
        let (turn, wait) = sync_channel(1);
        state.turns.insert(ticket, Turn::Thread(turn));
        drop(state);
        let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns()));
        match wait.recv_timeout(left) {
            Ok(slot) => Ok(self.pass(slot)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                self.leave(ticket);
                // Its turn came in the last moment: the slot goes to the next.
                wait.try_recv().into_iter().for_each(|slot| self.free(slot));
                Err(Closed::Deadline)
            }
        }
    }

    /// As [`Gate::wait`], for a task. Dropped, it no longer waits.
    pub(crate) async fn wait_async(
        self: &Arc<Gate>,
        hop: u8,
        priority: u8,
        deadline_ns: u64,
    ) -> Result<Pass, Closed> {
        let mut waiting = {
            let mut state = self.state();
            match state.slots.ask(hop, priority) {
                Asked::Run(slot) => return Ok(self.pass(slot)),
                Asked::Busy => return Err(Closed::Busy),
                Asked::Wait(ticket) => {
                    let (turn, wait) = oneshot::channel();
                    state.turns.insert(ticket, Turn::Task(turn));
                    Waiting { gate: self, ticket, wait }
                }
            }
        };
        let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns()));
        match tokio::time::timeout(left, &mut waiting.wait).await {
            Ok(Ok(slot)) => Ok(self.pass(slot)),
            Ok(Err(_)) | Err(_) => Err(Closed::Deadline),
        }
    }

    /// The slot of the call above, which waits for this one.
    pub(crate) fn lent(self: &Arc<Gate>) -> Pass {
        self.pass(Slot::Lent)
    }

    fn leave(&self, ticket: Ticket) {
        let mut state = self.state();
        state.turns.remove(&ticket);
        state.slots.leave(ticket);
    }

    fn free(&self, slot: Slot) {
        let mut state = self.state();
        let mut slot = slot;
        while let Some((ticket, next)) = state.slots.free(slot) {
            let Some(turn) = state.turns.remove(&ticket) else {
                slot = next;
                continue;
            };
            match turn.come(next) {
                Ok(()) => return,
                Err(back) => slot = back,
            }
        }
    }
}

/// A task that waits for its turn.
struct Waiting<'a> {
    gate: &'a Gate,
    ticket: Ticket,
    wait: oneshot::Receiver<Slot>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.gate.leave(self.ticket);
        // Its turn came in the last moment: the slot goes to the next.
        self.wait.close();
        self.wait.try_recv().into_iter().for_each(|slot| self.gate.free(slot));
    }
}

impl Drop for Pass {
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
        let first = gate.wait(1, 0, NEVER_NS).map_err(drop).expect("the reserved one");
        assert_eq!(gate.wait(1, 0, now_ns() + 1_000_000).err(), Some(Closed::Deadline));
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                barrier.wait();
                gate.wait(1, 0, NEVER_NS).is_ok()
            });
            barrier.wait();
            while gate.state().slots.waiting() == 0 {
                std::thread::yield_now();
            }
            assert_eq!(gate.wait(1, 0, NEVER_NS).err(), Some(Closed::Busy));
            drop(first);
            assert!(waiter.join().expect("no panic"));
        });
        assert!(gate.wait(1, 0, NEVER_NS).is_ok(), "the waiter has given it back");
    }
}
