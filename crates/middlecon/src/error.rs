//! How a call that has no reply ended, as its caller is told.

use std::fmt;

use kumo_abi::call::{Cause, Hop, Status};

/// Why there is no reply. The three kinds differ in what may have happened, which is what decides
/// whether it is safe to try again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The handler ran to its end and said no. Trying again asks it again.
    #[error("the callee failed with code {code}: {message}")]
    Failed {
        /// The callee's own code.
        code: u32,
        /// Its words.
        message: String,
    },
    /// The handler did not run and will not. Trying again, also elsewhere, is safe.
    #[error("not executed: {cause}{}", detail(message, path))]
    NotExecuted {
        /// Why.
        cause: Cause,
        /// What happened and what to do, where somebody said so.
        message: String,
        /// For CYCLE: the way it came, ending where it would have begun again.
        path: Vec<Hop>,
        /// When trying again is worth it, in milliseconds.
        retry_after_ms: Option<u32>,
    },
    /// The handler may have run, or may run still. Only the callee's state can tell; trying again may
    /// do it twice.
    #[error("unknown whether it was executed: {cause}{}", detail(message, &[]))]
    Unknown {
        /// Why nobody knows.
        cause: Cause,
        /// What happened and what to do, where somebody said so.
        message: String,
    },
}

fn detail(message: &str, path: &[Hop]) -> impl fmt::Display {
    let mut text = String::new();
    if !message.is_empty() {
        text = format!(" ({message})");
    }
    if !path.is_empty() {
        let services: Vec<&str> = path.iter().map(|hop| hop.service.as_str()).collect();
        text.push_str(", by ");
        text.push_str(&services.join(" -> "));
    }
    text
}

impl CallError {
    /// Not executed, for this cause.
    pub(crate) fn not_executed(cause: Cause, message: impl Into<String>) -> CallError {
        let message = message.into();
        CallError::NotExecuted { cause, message, path: Vec::new(), retry_after_ms: None }
    }

    /// From a status that is no success, and what was said with it.
    pub(crate) fn from_status(status: Status, message: impl Into<String>) -> CallError {
        match status {
            Status::NotExecuted(cause) => CallError::not_executed(cause, message),
            Status::Unknown(cause) => CallError::Unknown { cause, message: message.into() },
            Status::Failed(code) => CallError::Failed { code, message: message.into() },
            // A reply without one: the callee says it is done and says nothing.
            Status::Done => CallError::Unknown { cause: Cause::Malformed, message: message.into() },
        }
    }

    /// How it ended, as one value.
    pub fn status(&self) -> Status {
        match self {
            CallError::Failed { code, .. } => Status::Failed(*code),
            CallError::NotExecuted { cause, .. } => Status::NotExecuted(*cause),
            CallError::Unknown { cause, .. } => Status::Unknown(*cause),
        }
    }

    /// Why, if it is not the callee that said no.
    pub fn cause(&self) -> Option<Cause> {
        match self {
            CallError::Failed { .. } => None,
            CallError::NotExecuted { cause, .. } | CallError::Unknown { cause, .. } => Some(*cause),
        }
    }
}

/// The code of a [`Failure`] that a handler passed on from a call of its own.
pub const CODE_NESTED: u32 = 0xff_fffe;

/// The code of a [`Failure`] whose question is not what the handler takes; it did not run.
pub const CODE_QUESTION_UNREADABLE: u32 = 0xff_fffd;

/// The code of a [`Failure`] of a handler that ran, and whose reply cannot be written.
pub const CODE_REPLY_UNWRITABLE: u32 = 0xff_fffc;

/// The code of [`CallError::Failed`] for a handler that ran, and whose reply its caller cannot read.
pub const CODE_REPLY_UNREADABLE: u32 = 0xff_fffb;

/// The code of a [`Failure`] of a method that answers with a stream, and was called for one reply. Its
/// handler did not run.
pub const CODE_STREAMS: u32 = 0xff_fffa;

/// A handler's no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A code of its own, below 2^24.
    pub code: u32,
    /// For people. At most 4 KiB travel.
    pub message: String,
}

impl Failure {
    /// With a code and words.
    pub fn new(code: u32, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

impl From<CallError> for Failure {
    /// A handler that could not do its work because a call of its own did not succeed.
    fn from(error: CallError) -> Failure {
        Failure::new(CODE_NESTED, error.to_string())
    }
}
