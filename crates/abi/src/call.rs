//! What a call is made of, and how it may end: names, identities, outcomes, limits.
//!
//! Plain values only. How frames carry them is in [`crate::frame`], what a program and its node say to
//! each other in [`crate::control`], and what they read of each other's memory in [`crate::page`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::names::HostId;

/// Longest name of a service or a method: what one label of a host name may have (RFC 1123).
pub const CALL_NAME_BYTES_MAX: usize = 63;

/// Most hops of a chain of calls. Each has a slot of its own at every callee, so this bounds them too.
pub const HOPS_MAX: u8 = 16;

/// Most calls in flight on one connection. Receipts are 64 words, found by a call's id modulo this.
pub const CALLS_IN_FLIGHT_MAX: usize = 64;

/// Most slots of a server: handlers that run at once. A thread each, if they block.
pub const SLOTS_MAX: u16 = 4_096;

/// Most calls that may wait for a slot of a server. A waiting call is a blocked caller.
pub const CREDIT_MAX: u16 = 4_096;

/// Longest budget of a call: one day. What takes longer is a job with a state, not a call.
pub const BUDGET_NS_MAX: u64 = 24 * 60 * 60 * 1_000_000_000;

/// The budget of a call that names none and has no caller above it.
pub const BUDGET_MS_DEFAULT: u64 = 30_000;

/// Largest body of a call or a reply. It is lent as sealed memory on one host, and cut across hosts.
pub const BODY_BYTES_MAX: u64 = 1 << 30;

/// Longest message in an error of a callee; the rest is cut.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// How long a caller whose connection to another host ended without a notice waits for one. The two
/// nodes need one way between them; a heartbeat that was missed three times takes 300 ms.
pub const NOTICE_WAIT_MS_MAX: u64 = 500;

/// Longest pattern of methods in a grant.
pub const PATTERN_BYTES_MAX: usize = CALL_NAME_BYTES_MAX + 1;

/// Most patterns of methods in a grant.
pub const PATTERNS_MAX: usize = 64;

/// Why a text is no name of a service or a method.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallNameError {
    /// Nothing.
    #[error("a name has at least one character")]
    Empty,
    /// Above [`CALL_NAME_BYTES_MAX`].
    #[error("a name has at most {CALL_NAME_BYTES_MAX} characters, and this has {0}")]
    Long(usize),
    /// A character that does not belong.
    #[error("`{}` does not belong in the name of a service (a-z, 0-9, `-`) or a method (also `_`, `.`)", .0.escape_default())]
    Char(char),
    /// A first character that is no letter.
    #[error("a name begins with a letter from a to z")]
    Start,
}

fn check(text: &str, more: &[char]) -> Result<(), CallNameError> {
    let belongs =
        |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-' || more.contains(c);
    match text.chars().find(|c| !belongs(c)) {
        _ if text.is_empty() => Err(CallNameError::Empty),
        Some(bad) => Err(CallNameError::Char(bad)),
        None if !text.starts_with(|c: char| c.is_ascii_lowercase()) => Err(CallNameError::Start),
        None if text.len() > CALL_NAME_BYTES_MAX => Err(CallNameError::Long(text.len())),
        None => Ok(()),
    }
}

macro_rules! call_name {
    ($(#[$about:meta])* $name:ident, $more:expr) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = CallNameError;
            fn from_str(text: &str) -> Result<$name, CallNameError> {
                check(text, $more)?;
                Ok($name(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = CallNameError;
            fn try_from(text: String) -> Result<$name, CallNameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

call_name! {
    /// A service name: 1 to 63 of `a-z`, `0-9` and `-`, starting with a letter. Cheap to clone.
    ServiceName, &[]
}

call_name! {
    /// A method name: 1 to 63 of `a-z`, `0-9`, `-`, `_` and `.`, starting with a letter. Cheap to clone.
    Method, &['_', '.']
}

impl Method {
    /// The number of this method in a frame's header: the FNV-1a hash of its name. A server finds its
    /// handler by it without looking at text; that the name beside it fits is checked.
    pub fn number(&self) -> u32 {
        method_number(&self.0)
    }
}

/// The FNV-1a hash of a method's name.
pub const fn method_number(name: &str) -> u32 {
    let (mut hash, mut at) = (0x811c_9dc5_u32, 0);
    while at < name.len() {
        hash = (hash ^ name.as_bytes()[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    hash
}

/// Which methods a grant allows: a name, a beginning with `*` behind it, or `*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MethodPattern(String);

impl MethodPattern {
    /// Every method.
    pub fn any() -> MethodPattern {
        MethodPattern("*".to_owned())
    }

    /// Whether a method with this name is among them.
    pub fn allows(&self, method: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => method.starts_with(beginning),
            None => method == self.0,
        }
    }

    /// The pattern.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for MethodPattern {
    type Error = CallNameError;
    fn try_from(text: String) -> Result<MethodPattern, CallNameError> {
        let name = text.strip_suffix('*').unwrap_or(&text);
        if name.is_empty() && text == "*" {
            return Ok(MethodPattern(text));
        }
        check(name, &['_', '.'])?;
        Ok(MethodPattern(text))
    }
}

impl FromStr for MethodPattern {
    type Err = CallNameError;
    fn from_str(text: &str) -> Result<MethodPattern, CallNameError> {
        MethodPattern::try_from(text.to_owned())
    }
}

impl From<MethodPattern> for String {
    fn from(pattern: MethodPattern) -> String {
        pattern.0
    }
}

macro_rules! number {
    ($(#[$about:meta])* $name:ident, $width:literal) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $width, self.0)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<$name, std::num::ParseIntError> {
                u64::from_str_radix(text, 16).map($name)
            }
        }
    };
}

number! {
    /// One run of one service on one host: random, never 0, never used again. Written as 16 hex digits.
    InstanceId, "{:016x}"
}

number! {
    /// One connection that nodes granted: random, the same at both ends. Written as 16 hex digits.
    GrantId, "{:016x}"
}

/// The id of a trace (W3C): the same for all calls that one call at the root led to.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct RootId(pub [u8; 16]);

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Who is at the other end, as the nodes say; never what it says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// Its host.
    pub host: HostId,
    /// Its process number on its host; 0 where nobody knows it.
    pub pid: u32,
    /// As whom it was let in.
    pub who: Who,
}

/// As whom a program calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Who {
    /// As an instance of a service.
    Service(ServiceName),
    /// As a user of its host, by number.
    User(u32),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Service(service) => write!(f, "{service} on {}", self.host),
            Who::User(uid) => write!(f, "user {uid} on {}", self.host),
        }
    }
}

/// Why a call had no reply, or may have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Cause {
    /// More calls than the callee's credit, or its slots are taken. Try again, or elsewhere.
    Busy = 1,
    /// No such service, or no such method.
    NoSuch = 2,
    /// The instance that was meant has been followed by another. Open the service again.
    Stale = 3,
    /// The caller may not.
    Denied = 4,
    /// The budget was spent.
    Deadline = 5,
    /// The caller, or somebody above it, no longer wants it.
    Cancelled = 6,
    /// The callee's process ended.
    Died = 7,
    /// The callee's host fell silent.
    HostLost = 8,
    /// The callee's process stands still: stopped or frozen.
    Suspended = 9,
    /// The way between the two hosts is cut.
    Partition = 10,
    /// The call would wait for itself.
    Cycle = 11,
    /// More than [`HOPS_MAX`] hops.
    Depth = 12,
    /// The handler panicked.
    Panic = 13,
    /// A body, an extension or a set of descriptors above a limit.
    TooLarge = 14,
    /// What was sent breaks the protocol.
    Malformed = 15,
    /// No node answers on this host.
    NoNode = 16,
    /// The callee drains: it ends soon and takes no new calls. Open the service again.
    Draining = 17,
    /// This program, its node or its host is at a limit of its own.
    Exhausted = 18,
    /// The connection ended and nobody said why.
    Lost = 19,
}

/// Every cause, by number.
pub const CAUSES: [Cause; 19] = [
    Cause::Busy,
    Cause::NoSuch,
    Cause::Stale,
    Cause::Denied,
    Cause::Deadline,
    Cause::Cancelled,
    Cause::Died,
    Cause::HostLost,
    Cause::Suspended,
    Cause::Partition,
    Cause::Cycle,
    Cause::Depth,
    Cause::Panic,
    Cause::TooLarge,
    Cause::Malformed,
    Cause::NoNode,
    Cause::Draining,
    Cause::Exhausted,
    Cause::Lost,
];

impl Cause {
    /// The cause with this number.
    pub fn from_number(number: u32) -> Option<Cause> {
        CAUSES.get((number as usize).checked_sub(1)?).copied()
    }

    /// As it is written for people and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Busy => "BUSY",
            Cause::NoSuch => "NO_SUCH",
            Cause::Stale => "STALE",
            Cause::Denied => "DENIED",
            Cause::Deadline => "DEADLINE",
            Cause::Cancelled => "CANCELLED",
            Cause::Died => "DIED",
            Cause::HostLost => "HOST_LOST",
            Cause::Suspended => "SUSPENDED",
            Cause::Partition => "PARTITION",
            Cause::Cycle => "CYCLE",
            Cause::Depth => "DEPTH",
            Cause::Panic => "PANIC",
            Cause::TooLarge => "TOO_LARGE",
            Cause::Malformed => "MALFORMED",
            Cause::NoNode => "NO_NODE",
            Cause::Draining => "DRAINING",
            Cause::Exhausted => "EXHAUSTED",
            Cause::Lost => "LOST",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a call ended, as one number: in frames, in spans. The upper byte says which of the four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// The handler ran and replied.
    Done,
    /// The handler ran and said no, with a code of its own, below 2^24.
    Failed(u32),
    /// The handler did not run, and will not.
    NotExecuted(Cause),
    /// The handler may have run, or may run still.
    Unknown(Cause),
}

/// Largest code of an error of a callee.
pub const ERROR_CODE_MAX: u32 = (1 << 24) - 1;

impl Status {
    /// As one number.
    pub fn number(self) -> u32 {
        match self {
            Status::Done => 0,
            Status::Failed(code) => 1 << 24 | code.min(ERROR_CODE_MAX),
            Status::NotExecuted(cause) => 2 << 24 | cause as u32,
            Status::Unknown(cause) => 3 << 24 | cause as u32,
        }
    }

    /// The status with this number.
    pub fn from_number(number: u32) -> Option<Status> {
        let low = number & ERROR_CODE_MAX;
        match number >> 24 {
            0 if low == 0 => Some(Status::Done),
            1 => Some(Status::Failed(low)),
            2 => Cause::from_number(low).map(Status::NotExecuted),
            3 => Cause::from_number(low).map(Status::Unknown),
            _ => None,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Done => f.write_str("done"),
            Status::Failed(code) => write!(f, "failed with code {code}"),
            Status::NotExecuted(cause) => write!(f, "not executed: {cause}"),
            Status::Unknown(cause) => write!(f, "unknown: {cause}"),
        }
    }
}

/// What a server does with a call that has come through itself before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reentrancy {
    /// It is a CYCLE, with its path. The right answer for a service with one slot or with locks.
    #[default]
    Reject,
    /// It runs at once, in the slot of the call that it came through, which is waiting for it.
    Reenter,
    /// It is a call as any other, and takes a slot.
    Allow,
}

/// An instance that a call came through.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hop {
    /// Which.
    pub instance: InstanceId,
    /// Of which service, for people who read the path.
    pub service: ServiceName,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_and_method_names() {
        let cases = [
            ("b-2", None),
            ("", Some(CallNameError::Empty)),
            ("a_b", Some(CallNameError::Char('_'))),
            ("a.b", Some(CallNameError::Char('.'))),
            ("A", Some(CallNameError::Char('A'))),
            ("-a", Some(CallNameError::Start)),
            ("2b", Some(CallNameError::Start)),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<ServiceName>().err(), want, "for {text:?}");
        }
        assert_eq!("a".repeat(64).parse::<ServiceName>(), Err(CallNameError::Long(64)));
        assert!("kv.read_all".parse::<Method>().is_ok());
        let method: Method = "a".parse().expect("a method");
        assert_eq!(method.number(), 0xe40c_292c, "as FNV-1a is published");
    }

    #[test]
    fn patterns_of_methods() {
        let cases = [
            ("*", "read", true),
            ("read", "read", true),
            ("read", "read-all", false),
            ("read*", "read-all", true),
            ("read-*", "read", false),
        ];
        for (pattern, method, want) in cases {
            let parsed: MethodPattern = pattern.parse().expect("a pattern");
            assert_eq!(parsed.allows(method), want, "{pattern} and {method}");
        }
        for bad in ["", "a*b", "**", "*a"] {
            assert!(bad.parse::<MethodPattern>().is_err(), "for {bad:?}");
        }
    }

    #[test]
    fn every_status_has_its_own_number() {
        let mut all = vec![Status::Done, Status::Failed(0), Status::Failed(ERROR_CODE_MAX)];
        for (at, cause) in CAUSES.into_iter().enumerate() {
            assert_eq!(cause as usize, at + 1, "{cause} stands where its number says");
            all.extend([Status::NotExecuted(cause), Status::Unknown(cause)]);
        }
        for status in all {
            assert_eq!(Status::from_number(status.number()), Some(status));
        }
        for bad in [1, 2 << 24, 0x0300_0014, 4 << 24, u32::MAX] {
            assert_eq!(Status::from_number(bad), None, "for {bad:#x}");
        }
    }

    #[test]
    fn ids_are_written_in_hex() {
        let id = InstanceId(0x1f);
        assert_eq!(id.to_string(), "000000000000001f");
        assert_eq!("000000000000001f".parse(), Ok(id));
        assert_eq!(RootId([1; 16]).to_string(), "01".repeat(16));
    }
}
