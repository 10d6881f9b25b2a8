//! What carries frames between two programs, and what is known of a call when a carrier ends.

pub(crate) mod local;
mod pool;
pub(crate) mod remote;
pub(crate) mod tasks;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use kumo_abi::control::Carrier;
use kumo_abi::frame::{Extensions, FrameError, Header};

use self::remote::{Facts, Remote};
use crate::rules::truth::Taken;
use crate::secure::Tls;
use crate::time::now_ns;

/// A frame that arrived. Its bytes are a copy: nobody can change them any more.
#[derive(Clone, Debug)]
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
    /// One side does not believe the other's certificate, or has none itself. Then the callee has taken no
    /// call, nor will it.
    #[error("{0}")]
    Refused(String),
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

/// A connection, for both of its halves and for who only wants to end it.
pub(crate) enum Link {
    Local(Arc<local::Link>),
    Remote(Arc<Remote>),
}

impl Link {
    /// The callee takes a call: from here on its outcome is unknown to who only sees our end. False if it
    /// must not run: the caller has taken it back, or cannot be told that it runs.
    pub(crate) fn take(&self, id: u64) -> bool {
        match self {
            Link::Local(link) => link.take(id),
            Link::Remote(remote) => remote.take(id),
        }
    }

    /// The caller takes a call back, and learns whether it had been taken.
    pub(crate) fn take_back(&self, id: u64) -> Taken {
        match self {
            Link::Local(link) => link.take_back(id),
            Link::Remote(remote) => remote.take_back(id),
        }
    }

    /// Ends the connection for both sides, whoever else holds its descriptors.
    pub(crate) fn end(&self) {
        match self {
            Link::Local(link) => link.end(),
            Link::Remote(remote) => remote.end(),
        }
    }

    /// Whether its end is told by nodes of two hosts, which takes longer.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self, Link::Remote(_))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Link::Local(link) => link.as_fd(),
            Link::Remote(remote) => remote.as_fd(),
        }
    }
}

/// The half that sends.
pub(crate) enum Writer {
    Local(local::Writer),
    Remote(Arc<Remote>),
}

impl Writer {
    /// Sends a frame, waiting for room until the deadline. `header` has its lengths filled in here.
    pub(crate) fn send(
        &mut self,
        header: Header,
        ext: &[u8],
        body: &[u8],
        deadline_ns: u64,
    ) -> Result<(), Stop> {
        match self {
            Writer::Local(writer) => writer.send(header, ext, body, deadline_ns),
            Writer::Remote(remote) => remote.send(header, ext, body, deadline_ns),
        }
    }

    /// As [`Writer::send`], waiting for so long at most.
    #[inline]
    pub(crate) fn send_within(
        &mut self,
        header: Header,
        ext: &[u8],
        body: &[u8],
        within_ns: u64,
    ) -> Result<(), Stop> {
        if let Writer::Local(writer) = self
            && writer.try_send(header, ext, body)?
        {
            // There nearly always is room: the clock is not looked at for nothing.
            return Ok(());
        }
        self.send(header, ext, body, now_ns() + within_ns)
    }

    /// Sends a frame if there is room for it now.
    pub(crate) fn try_send(
        &mut self,
        header: Header,
        ext: &[u8],
        body: &[u8],
    ) -> Result<bool, Stop> {
        match self {
            Writer::Local(writer) => writer.try_send(header, ext, body),
            Writer::Remote(remote) => remote.try_send(header, ext, body),
        }
    }
}

/// The half that receives.
pub(crate) enum Reader {
    Local(local::Reader),
    Remote(Arc<Remote>),
}

impl Reader {
    /// The next frame; waits for it until the deadline, and while `upstream` has not ended.
    #[inline]
    pub(crate) fn next(
        &mut self,
        upstream: Option<BorrowedFd<'_>>,
        deadline_ns: u64,
    ) -> Result<Frame, Stop> {
        match self {
            Reader::Local(reader) => reader.next(upstream, deadline_ns),
            Reader::Remote(remote) => remote.next(upstream, deadline_ns),
        }
    }

    /// The next frame, if it is there; nothing if not.
    pub(crate) fn try_next(&mut self) -> Result<Option<Frame>, Stop> {
        match self {
            Reader::Local(reader) => reader.try_next(),
            Reader::Remote(remote) => remote.try_next(),
        }
    }
}

/// Begins to speak on a connection that was granted: passes pages, or shakes hands.
pub(crate) fn join(
    socket: OwnedFd,
    carrier: Carrier,
    tls: Option<Tls>,
    facts: Facts,
    deadline_ns: u64,
) -> Result<(Arc<Link>, Writer, Reader), Stop> {
    if let Carrier::Local { ring } = carrier {
        let (link, writer, reader) = local::Link::join(socket, ring, deadline_ns)?.split();
        let link = Arc::new(Link::Local(link));
        return Ok((link, Writer::Local(writer), Reader::Local(reader)));
    }
    let remote = remote(socket, carrier, tls, facts)?;
    remote.shake(deadline_ns)?;
    let link = Arc::new(Link::Remote(remote.clone()));
    Ok((link, Writer::Remote(remote.clone()), Reader::Remote(remote)))
}

fn remote(
    socket: OwnedFd,
    carrier: Carrier,
    tls: Option<Tls>,
    facts: Facts,
) -> Result<Arc<Remote>, Stop> {
    debug_assert_eq!(
        carrier == Carrier::Tls,
        tls.is_some(),
        "whoever joins brings TLS or had no need of it"
    );
    Ok(Arc::new(Remote::new(socket, tls, facts)?))
}
