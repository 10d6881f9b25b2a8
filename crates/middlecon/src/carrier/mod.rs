//! What carries frames between two programs, and what is known of a call when a carrier ends.

pub(crate) mod local;
pub(crate) mod tasks;

use std::io;

use bytes::Bytes;
use kumo_abi::frame::{Extensions, FrameError, Header};

/// A frame that arrived. Its bytes are a copy: nobody can change them any more.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) ext: Bytes,
    pub(crate) body: Bytes,
}

impl Frame {
    pub(crate) fn extensions(&self) -> Result<Extensions<'_>, FrameError> {
        Extensions::decode(&self.ext)
    }
}

/// Why a carrier gave no frame, or took none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// The connection has ended, and all that had arrived was read.
    #[error("the connection has ended")]
    Ended,
    /// The peer breaks the protocol; the connection is of no use any more.
    #[error("the peer breaks the protocol")]
    Hostile(#[from] FrameError),
    /// The peer passed memory or descriptors that are not what they should be.
    #[error("the peer passed what it may not: {0}")]
    Passed(&'static str),
    /// The time is over.
    #[error("the deadline has passed")]
    Deadline,
    /// Who waits above no longer does.
    #[error("the caller above no longer waits")]
    Cancelled,
    /// This process has no descriptors or memory left.
    #[error(transparent)]
    Io(#[from] io::Error),
}
