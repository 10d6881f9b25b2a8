//! How a call ended, as C is told.

use std::ffi::{CString, c_char};

use kumo_abi::call as abi;
use kumo_abi::chain;
use middlecon::{CallError, NodeError};

use crate::raw::{c_string, free, lent};

/// How something ended.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done; of a call, there is a reply.
    Done = 0,
    /// The callee ran and said no, with a code and words of its own. Trying again asks it again.
    Failed = 1,
    /// It did not run and will not. Trying again, also elsewhere, is safe.
    NotExecuted = 2,
    /// It may have run, or may run still. Look at what it changes before you try again.
    Unknown = 3,
    /// An argument is wrong: null, not UTF-8, no name. Nothing was done.
    Usage = 4,
}

/// Why a call was not executed, or nobody knows whether it was.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There is none: the callee said no, or an argument is wrong.
    None = 0,
    /// All places of the callee are taken.
    Busy = 1,
    /// No such service, or no such method.
    NoSuch = 2,
    /// The instance that was meant has been followed by another.
    Stale = 3,
    /// The caller may not.
    Denied = 4,
    /// The budget was spent.
    Deadline = 5,
    /// The caller, or somebody above it, gave up.
    Cancelled = 6,
    /// The callee's process ended.
    Died = 7,
    /// The callee's host fell silent.
    HostLost = 8,
    /// The callee's process stands still: stopped or frozen.
    Suspended = 9,
    /// The way between the two hosts is cut.
    Partition = 10,
    /// The call would wait for itself; the error has its path.
    Cycle = 11,
    /// The chain has more than 16 hops.
    Depth = 12,
    /// The callee's handler crashed.
    Panic = 13,
    /// Above a limit of size.
    TooLarge = 14,
    /// What was sent breaks the protocol.
    Malformed = 15,
    /// No node answers on this host.
    NoNode = 16,
    /// That instance ends and takes no new calls.
    Draining = 17,
    /// This program, its node or its host is at a limit.
    Exhausted = 18,
    /// The connection ended and nobody said why.
    Lost = 19,
}

impl From<abi::Cause> for Cause {
    fn from(cause: abi::Cause) -> Cause {
        match cause {
            abi::Cause::Busy => Cause::Busy,
            abi::Cause::NoSuch => Cause::NoSuch,
            abi::Cause::Stale => Cause::Stale,
            abi::Cause::Denied => Cause::Denied,
            abi::Cause::Deadline => Cause::Deadline,
            abi::Cause::Cancelled => Cause::Cancelled,
            abi::Cause::Died => Cause::Died,
            abi::Cause::HostLost => Cause::HostLost,
            abi::Cause::Suspended => Cause::Suspended,
            abi::Cause::Partition => Cause::Partition,
            abi::Cause::Cycle => Cause::Cycle,
            abi::Cause::Depth => Cause::Depth,
            abi::Cause::Panic => Cause::Panic,
            abi::Cause::TooLarge => Cause::TooLarge,
            abi::Cause::Malformed => Cause::Malformed,
            abi::Cause::NoNode => Cause::NoNode,
            abi::Cause::Draining => Cause::Draining,
            abi::Cause::Exhausted => Cause::Exhausted,
            abi::Cause::Lost => Cause::Lost,
        }
    }
}

/// Why something is not done.
#[derive(Debug)]
pub struct Error {
    pub(crate) outcome: Outcome,
    cause: Cause,
    code: u32,
    retry_after_ms: Option<u32>,
    text: CString,
    message: CString,
    path: CString,
}

impl Error {
    fn new(outcome: Outcome, cause: Cause, text: &str, message: &str) -> Error {
        let (text, message, path) = (c_string(text), c_string(message), CString::default());
        Error { outcome, cause, code: 0, retry_after_ms: None, text, message, path }
    }

    /// The program that calls us has it wrong.
    pub(crate) fn usage(what: impl AsRef<str>) -> Error {
        Error::new(Outcome::Usage, Cause::None, what.as_ref(), what.as_ref())
    }

    /// We panicked before anything was sent.
    pub(crate) fn bug() -> Error {
        let message = "libmiddlecon has a bug here; please report it";
        CallError::NotExecuted {
            cause: abi::Cause::Panic,
            message: message.to_owned(),
            path: Vec::new(),
            retry_after_ms: None,
        }
        .into()
    }

    /// We panicked when the call may have been sent.
    pub(crate) fn bug_in_a_call() -> Error {
        let message = "libmiddlecon has a bug here; please report it".to_owned();
        CallError::Unknown { cause: abi::Cause::Panic, message }.into()
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Error {
        let text = error.to_string();
        let cause = error.cause().map_or(Cause::None, Cause::from);
        match error {
            CallError::Failed { code, message } => {
                Error { code, ..Error::new(Outcome::Failed, cause, &text, &message) }
            }
            CallError::NotExecuted { message, path, retry_after_ms, .. } => {
                let path: Vec<&str> = path.iter().map(|hop| hop.service.as_str()).collect();
                let path = c_string(&path.join(" "));
                let error = Error::new(Outcome::NotExecuted, cause, &text, &message);
                Error { retry_after_ms, path, ..error }
            }
            CallError::Unknown { message, .. } => {
                Error::new(Outcome::Unknown, cause, &text, &message)
            }
        }
    }
}

impl From<NodeError> for Error {
    /// What there is no node for was not done, and trying again is safe.
    fn from(error: NodeError) -> Error {
        let cause = match &error {
            NodeError::Away { .. } | NodeError::Strange(_) => Cause::NoNode,
            NodeError::Exhausted(_) => Cause::Exhausted,
            NodeError::Refused { cause, .. } => (*cause).into(),
        };
        let text = chain(&error);
        Error::new(Outcome::NotExecuted, cause, &text, &text)
    }
}

/// How it ended; MC_OUTCOME_USAGE for null.
///
/// # Safety
/// `error` is null or was given by this library and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_outcome(error: *const Error) -> Outcome {
    // SAFETY: by this function's contract.
    unsafe { lent(error, "error") }.map_or(Outcome::Usage, |error| error.outcome)
}

/// Why, if it is not the callee that said no.
///
/// # Safety
/// `error` is null or was given by this library and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_cause(error: *const Error) -> Cause {
    // SAFETY: by this function's contract.
    unsafe { lent(error, "error") }.map_or(Cause::None, |error| error.cause)
}

/// The callee's own code, of MC_OUTCOME_FAILED; else 0.
///
/// # Safety
/// `error` is null or was given by this library and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_code(error: *const Error) -> u32 {
    // SAFETY: by this function's contract.
    unsafe { lent(error, "error") }.map_or(0, |error| error.code)
}

/// After how many milliseconds trying again is worth it; -1 where nobody said.
///
/// # Safety
/// `error` is null or was given by this library and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_retry_after_ms(error: *const Error) -> i64 {
    // SAFETY: by this function's contract.
    let error = unsafe { lent(error, "error") };
    error.ok().and_then(|error| error.retry_after_ms).map_or(-1, i64::from)
}

/// The callee's words, or what is said beside the cause; may be empty. It lives as long as the error.
///
/// # Safety
/// `error` is null or was given by this library and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_message(error: *const Error) -> *const c_char {
    // SAFETY: by this function's contract.
    unsafe { lent(error, "error") }.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// All of it as a sentence for people. It lives as long as the error.
///
/// # Safety
/// `error` is null or was given by this library and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_text(error: *const Error) -> *const c_char {
    // SAFETY: by this function's contract.
    unsafe { lent(error, "error") }.map_or(c"".as_ptr(), |error| error.text.as_ptr())
}

/// Of MC_CAUSE_CYCLE, the services that the call came through, with blanks between them, ending where it
/// would have begun again; else empty. It lives as long as the error.
///
/// # Safety
/// `error` is null or was given by this library and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_path(error: *const Error) -> *const c_char {
    // SAFETY: by this function's contract.
    unsafe { lent(error, "error") }.map_or(c"".as_ptr(), |error| error.path.as_ptr())
}

/// Frees an error. Null is allowed.
///
/// # Safety
/// `error` is null or was given by this library, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_free(error: *mut Error) {
    // SAFETY: by this function's contract.
    unsafe { free(error) };
}

/// A cause as people write it: `NO_SUCH`. Empty for none and for numbers that are no cause. It lives for
/// ever.
#[unsafe(no_mangle)]
pub extern "C" fn mc_cause_name(cause: u32) -> *const c_char {
    const NAMES: [&std::ffi::CStr; 20] = [
        c"",
        c"BUSY",
        c"NO_SUCH",
        c"STALE",
        c"DENIED",
        c"DEADLINE",
        c"CANCELLED",
        c"DIED",
        c"HOST_LOST",
        c"SUSPENDED",
        c"PARTITION",
        c"CYCLE",
        c"DEPTH",
        c"PANIC",
        c"TOO_LARGE",
        c"MALFORMED",
        c"NO_NODE",
        c"DRAINING",
        c"EXHAUSTED",
        c"LOST",
    ];
    NAMES.get(cause as usize).unwrap_or(&NAMES[0]).as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_the_number_and_the_name_that_it_has_elsewhere() {
        for cause in abi::CAUSES {
            assert_eq!(Cause::from(cause) as u32, cause as u32, "{cause}");
            // SAFETY: the text is one of this file's, with a NUL at its end, and lives for ever.
            let name = unsafe { std::ffi::CStr::from_ptr(mc_cause_name(cause as u32)) };
            assert_eq!(name.to_str(), Ok(cause.name()));
        }
        for none in [0, 20, u32::MAX] {
            // SAFETY: as above.
            let name = unsafe { std::ffi::CStr::from_ptr(mc_cause_name(none)) };
            assert!(name.is_empty(), "for {none}");
        }
    }

    #[test]
    fn an_outcome_has_the_number_that_it_has_in_frames() {
        let statuses = [
            (Outcome::Done, abi::Status::Done),
            (Outcome::Failed, abi::Status::Failed(7)),
            (Outcome::NotExecuted, abi::Status::NotExecuted(abi::Cause::Busy)),
            (Outcome::Unknown, abi::Status::Unknown(abi::Cause::Lost)),
        ];
        for (outcome, status) in statuses {
            assert_eq!(outcome as u32, status.number() >> 24, "{status}");
        }
    }

    #[test]
    fn a_nul_in_words_of_a_callee_does_not_cut_them() {
        let error = CallError::Failed { code: 7, message: "a\0b".to_owned() };
        let error = Error::from(error);
        assert_eq!(error.message.to_str(), Ok("a\u{fffd}b"));
        assert_eq!(error.text.to_str(), Ok("the callee failed with code 7: a\u{fffd}b"));
    }
}
