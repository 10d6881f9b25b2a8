//! The identity of a process: safe against the reuse of process numbers.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// A process of one boot of one host. Written `4711@81723912345678`: pid, `@`, start time.
///
/// Two processes never share both: the kernel gives a number again only after its owner is gone, and
/// the start time has moved on by then. The host and its boot id complete it across hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId {
    /// The process number in the PID namespace of the node.
    pub pid: i32,
    /// Start in nanoseconds of `CLOCK_BOOTTIME`. A reader of `/proc` knows it to a clock tick
    /// (10 ms) only and rounds down; see [`ProcessId::same`].
    pub start_ns: u64,
}

/// Nanoseconds in one clock tick of `/proc` (`USER_HZ` is 100 on every Linux architecture we build
/// for).
pub const TICK_NS: u64 = 10_000_000;

impl ProcessId {
    /// Whether both name the same process, where one may come from `/proc` and be rounded down.
    pub fn same(&self, other: &ProcessId) -> bool {
        self.pid == other.pid && self.start_ns / TICK_NS == other.start_ns / TICK_NS
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pid, self.start_ns)
    }
}

/// Why a text is no process identity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// There is no `@`.
    #[error("a process identity is written PID@START, as `kumo ps -o id` prints it")]
    Form,
    /// One side is no number.
    #[error("a process identity has a number on both sides of its `@`")]
    Number(#[from] ParseIntError),
    /// Process numbers start at 1.
    #[error("process number {0} is out of range; process numbers start at 1")]
    Range(i32),
}

impl FromStr for ProcessId {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<ProcessId, IdentityError> {
        let (pid, start_ns) = text.split_once('@').ok_or(IdentityError::Form)?;
        let (pid, start_ns) = (pid.parse()?, start_ns.parse()?);
        if pid < 1 { Err(IdentityError::Range(pid)) } else { Ok(ProcessId { pid, start_ns }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities() {
        let good = ProcessId { pid: 7, start_ns: 123 };
        assert_eq!("7@123".parse(), Ok(good));
        assert_eq!(good.to_string(), "7@123");
        assert_eq!("7".parse::<ProcessId>(), Err(IdentityError::Form));
        assert_eq!("0@5".parse::<ProcessId>(), Err(IdentityError::Range(0)));
        for bad in ["@", "x@1", "1@x", "1@-2", "1@2@3"] {
            assert!(matches!(bad.parse::<ProcessId>(), Err(IdentityError::Number(_))), "{bad}");
        }
    }

    #[test]
    fn a_rounded_start_is_the_same_process() {
        let exact = ProcessId { pid: 7, start_ns: 12_345_678_901 };
        let rounded = ProcessId { pid: 7, start_ns: 12_340_000_000 };
        assert!(exact.same(&rounded) && rounded.same(&exact));
        assert!(!exact.same(&ProcessId { pid: 7, start_ns: 12_350_000_000 }));
        assert!(!exact.same(&ProcessId { pid: 8, ..exact }));
    }
}
