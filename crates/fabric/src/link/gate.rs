//! The door of a port: counts those who have not shown yet who they are, and ends slow ones for new ones.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::task::AbortHandle;

use super::limits::{Admission, HalfOpen};
use super::lock;

/// See [`HalfOpen`] for the rules.
#[derive(Debug)]
pub(crate) struct Gate {
    inside: Mutex<Inside>,
    began: Instant,
}

#[derive(Debug, Default)]
struct Inside {
    half_open: HalfOpen,
    tasks: HashMap<u64, AbortHandle>,
}

/// Counts as one of them until it is dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    ticket: u64,
}

impl Gate {
    pub(crate) fn new() -> Arc<Gate> {
        Arc::new(Gate { inside: Mutex::default(), began: Instant::now() })
    }

    /// A connection came from `from`; `None` where there is no room for it.
    pub(crate) fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Pass> {
        let now_ms = self.began.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        let mut inside = lock(&self.inside);
        let ticket = match inside.half_open.admit(from, now_ms) {
            Admission::Go(ticket) => ticket,
            Admission::Instead { ticket, of } => {
                inside.tasks.remove(&of).inspect(AbortHandle::abort);
                ticket
            }
            Admission::Full => return None,
        };
        Some(Pass { gate: Arc::clone(self), ticket })
    }

    /// The task that a pass went into; it is aborted when it makes room for another.
    pub(crate) fn runs(&self, ticket: u64, task: AbortHandle) {
        let mut inside = lock(&self.inside);
        if inside.half_open.contains(ticket) {
            inside.tasks.insert(ticket, task);
        }
    }
}

impl Pass {
    /// What [`Gate::runs`] knows it by.
    pub(crate) fn ticket(&self) -> u64 {
        self.ticket
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = lock(&self.gate.inside);
        inside.half_open.done(self.ticket);
        inside.tasks.remove(&self.ticket);
    }
}
