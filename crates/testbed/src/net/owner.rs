//! Whose a namespace is: its name says it, so that what a killed owner leaves behind can be removed.

use std::fmt;
use std::fs;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

/// What the names of all our namespaces begin with.
const PREFIX: &str = "kumo-";

/// One world of one process: what the names of its namespaces begin with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pid: u32,
    /// When the process began, in clock ticks since boot: its number may be given out again.
    started: u64,
    /// Which of its worlds.
    world: u32,
}

impl Owner {
    /// A new world of this process.
    pub(crate) fn next() -> Owner {
        static WORLDS: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        // A process can always read when it began; were it not so, nothing would ever be stale.
        let started = started(pid).unwrap_or(0);
        Owner { pid, started, world: WORLDS.fetch_add(1, Ordering::Relaxed) }
    }

    /// Whether the process is there.
    pub(crate) fn is_alive(&self) -> bool {
        started(self.pid).is_some_and(|started| self.started == 0 || started == self.started)
    }

    /// The owner of a namespace with this name; `None` when it is none of ours.
    pub(crate) fn of(namespace: &str) -> Option<Owner> {
        namespace.split_once(':')?.0.parse().ok()
    }

    /// The name of a namespace. `_` is in no name of a data centre or host.
    pub(crate) fn namespace(&self, place: &super::Place) -> String {
        match place {
            super::Place::Backbone => format!("{self}:_backbone"),
            super::Place::Dc(dc) => format!("{self}:{dc}"),
            super::Place::Host(id) => format!("{self}:{}_{}", id.dc, id.host),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}-{}", self.pid, self.started, self.world)
    }
}

impl FromStr for Owner {
    type Err = ();
    fn from_str(text: &str) -> Result<Owner, ()> {
        let mut numbers = text.strip_prefix(PREFIX).ok_or(())?.split('-');
        let mut next = || numbers.next().ok_or(());
        let pid = next()?.parse().map_err(drop)?;
        let started = next()?.parse().map_err(drop)?;
        let world = next()?.parse().map_err(drop)?;
        if numbers.next().is_some() { Err(()) } else { Ok(Owner { pid, started, world }) }
    }
}

/// When a process began, in clock ticks since boot; `None` when it is not there, or ended and is not
/// yet waited for.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so fields count from its end; man 5 proc_pid_stat
    // numbers them from 1, and the one after the name is the third.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(22 - 4)?.parse().ok()
}

/// Whether there is a process with this number that has not ended.
#[cfg(test)]
pub(crate) fn is_alive(pid: u32) -> bool {
    started(pid).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Place;

    #[test]
    fn a_name_says_whose_it_is() {
        let owner = Owner { pid: 12, started: 345, world: 6 };
        let id = "tokyo/a".parse().expect("a host");
        let cases = [
            (Place::Backbone, "kumo-12-345-6:_backbone"),
            (Place::Dc("tokyo".parse().expect("a name")), "kumo-12-345-6:tokyo"),
            (Place::Host(id), "kumo-12-345-6:tokyo_a"),
        ];
        for (place, want) in cases {
            let name = owner.namespace(&place);
            assert_eq!(name, want);
            assert_eq!(Owner::of(&name), Some(owner.clone()));
        }
        for strange in ["", "kumo-", "kumo-1-2:a", "kumo-1-2-3-4:a", "kumo-1-2-3", "cni-1-2-3:a"] {
            assert_eq!(Owner::of(strange), None, "for {strange:?}");
        }
    }

    #[test]
    fn an_owner_is_its_number_and_its_beginning() {
        let ours = Owner::next();
        assert!(ours.is_alive());
        assert_ne!(ours, Owner::next());
        assert!(!Owner { started: ours.started + 1, ..ours.clone() }.is_alive());
        // Above any process number the kernel gives out.
        assert!(!Owner { pid: 1 << 30, ..ours }.is_alive());
    }
}
