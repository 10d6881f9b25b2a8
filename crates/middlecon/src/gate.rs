//! The slots of a server in use: who may run, and who waits for its turn.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use tokio::sync::oneshot;

use crate::carrier::Stop;
use crate::carrier::local::wait;
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
    Thread(Arc<Bell>),
    Task(oneshot::Sender<Slot>),
}

/// Where a thread that waits finds its slot: a descriptor, so that it can wait for its caller's end, too.
struct Bell {
    rings: OwnedFd,
    place: Mutex<Place>,
}

enum Place {
    Empty,
    Slot(Slot),
    /// Nobody waits any more.
    Left,
}

impl Bell {
    fn new() -> rustix::io::Result<Bell> {
        let rings = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Bell { rings, place: Mutex::new(Place::Empty) })
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn come(&self, slot: Slot) -> Result<(), Slot> {
        let mut place = self.place();
        if matches!(*place, Place::Left) {
            return Err(slot);
        }
        *place = Place::Slot(slot);
        // It takes one number, once: there is room.
        let _ = rustix::io::write(&self.rings, &1_u64.to_ne_bytes());
        Ok(())
    }

    /// The slot, if its turn has come; after this none will.
    fn leave(&self) -> Option<Slot> {
        match std::mem::replace(&mut *self.place(), Place::Left) {
            Place::Slot(slot) => Some(slot),
            Place::Empty | Place::Left => None,
        }
    }
}

impl Turn {
    /// Hands the slot over; it comes back if nobody waits any more.
    fn come(self, slot: Slot) -> Result<(), Slot> {
        match self {
            Turn::Thread(bell) => bell.come(slot),
            Turn::Task(task) => task.send(slot),
        }
    }
}

/// A slot that is given back when its handler is over, however it ends.
pub(crate) struct Pass {
    gate: Arc<Gate>,
    slot: Option<Slot>,
    has_waited: bool,
}

impl Pass {
    /// Whether time has passed since it was asked for.
    pub(crate) fn has_waited(&self) -> bool {
        self.has_waited
    }

    fn after_waiting(mut self) -> Pass {
        self.has_waited = true;
        self
    }
}

/// Why a call did not get a slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// More wait than may.
    Busy,
    /// Its budget was spent waiting.
    Deadline,
    /// Its caller gave up waiting.
    Cancelled,
    /// This process has no descriptor to wait with.
    Exhausted,
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
        Pass { gate: self.clone(), slot: Some(slot), has_waited: false }
    }

    /// A slot for a call at this hop; blocks the thread for it until the deadline, and while `upstream`, the
    /// connection of its caller, has not ended.
    pub(crate) fn wait(
        self: &Arc<Gate>,
        hop: u8,
        priority: u8,
        upstream: Option<BorrowedFd<'_>>,
        deadline_ns: u64,
    ) -> Result<Pass, Closed> {
        let mut state = self.state();
        let ticket = match state.slots.ask(hop, priority) {
            Asked::Run(slot) => return Ok(self.pass(slot)),
            Asked::Busy => return Err(Closed::Busy),
            Asked::Wait(ticket) => ticket,
        };
        let Ok(bell) = Bell::new() else {
            state.slots.leave(ticket);
            return Err(Closed::Exhausted);
        };
        let bell = Arc::new(bell);
        state.turns.insert(ticket, Turn::Thread(bell.clone()));
        drop(state);
        let waited = wait(&bell.rings, PollFlags::IN, upstream, deadline_ns);
        self.leave(ticket);
        let closed = match (waited, bell.leave()) {
            (Ok(()) | Err(Stop::Deadline), Some(slot)) => {
                return Ok(self.pass(slot).after_waiting());
            }
            (waited, slot) => {
                // Its turn came in the last moment: the slot goes to the next.
                if let Some(slot) = slot {
                    self.free(slot);
                }
                match waited {
                    Err(Stop::Cancelled) => Closed::Cancelled,
                    Err(Stop::Io(_)) => Closed::Exhausted,
                    _ => Closed::Deadline,
                }
            }
        };
        Err(closed)
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
    use std::os::fd::AsFd;
    use std::sync::Barrier;

    #[test]
    fn a_turn_comes_and_a_spent_budget_leaves_no_slot_lost() {
        let gate = Gate::new(0, 1);
        let first = gate.wait(1, 0, None, NEVER_NS).map_err(drop).expect("the reserved one");
        assert_eq!(gate.wait(1, 0, None, now_ns() + 1_000_000).err(), Some(Closed::Deadline));
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                barrier.wait();
                gate.wait(1, 0, None, NEVER_NS).is_ok()
            });
            barrier.wait();
            while gate.state().slots.waiting() == 0 {
                std::thread::yield_now();
            }
            assert_eq!(gate.wait(1, 0, None, NEVER_NS).err(), Some(Closed::Busy));
            drop(first);
            assert!(waiter.join().expect("no panic"));
        });
        assert!(gate.wait(1, 0, None, NEVER_NS).is_ok(), "the waiter has given it back");
    }

    #[test]
    fn who_gives_up_leaves_the_queue_at_once_and_another_has_the_place() {
        let gate = Gate::new(0, 1);
        let first = gate.wait(1, 0, None, NEVER_NS).map_err(drop).expect("the reserved one");
        let (upstream, caller) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let queued = || {
            while gate.state().slots.waiting() == 0 {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.wait(1, 0, Some(upstream.as_fd()), NEVER_NS).err());
            queued();
            drop(caller);
            assert_eq!(waiter.join().expect("no panic"), Some(Closed::Cancelled));
            assert!(gate.state().turns.is_empty(), "nothing of it is left");
            let next = scope.spawn(|| gate.wait(1, 0, None, NEVER_NS).is_ok());
            queued();
            drop(first);
            assert!(next.join().expect("no panic"));
        });
    }
}
