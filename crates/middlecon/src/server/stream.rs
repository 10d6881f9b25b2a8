//! Replies in pieces: what a handler sends while it runs, as fast as its caller takes it.
//!
//! A stream has credit: so many chunks may be on their way or wait at the caller, and a CREDIT for each that
//! was taken. So a slow reader holds up the handler of its own stream, and no other call of the connection. The
//! end is told like that of any call: the last chunk if the handler ran to its end, else an outcome.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use kumo_abi::call::{Cause, Method, Status};
use kumo_abi::frame::{Header, Kind, STREAM_CREDIT, flags};
use tokio::sync::Semaphore;

use super::tasks::{AsyncBuilder, AsyncCall, Conversation};
use super::{SLOW_NS_MAX, answer};
use crate::carrier::Stop;
use crate::carrier::tasks::send;
use crate::error::{CODE_NESTED, CODE_STREAMS, Failure};
use crate::rules::stream::{chunks, is_owed};

/// What is said of a caller that says it has taken more than it was sent.
pub(super) const TOO_MUCH_CREDIT: &str = "credit for more chunks than it was sent";

/// Says that a stream follows.
pub(super) fn begins(call: u64) -> Header {
    Header { flags: flags::STREAM, ..Header::new(Kind::Reply, call) }
}

/// How a call of which a stream was begun, or not, is told to be over.
pub(super) fn ends(call: u64, status: Status, begun: bool) -> Header {
    if begun && status == Status::Done {
        Header { flags: flags::LAST, ..Header::new(Kind::Chunk, call) }
    } else {
        answer(call, status)
    }
}

/// How long the end of a call may wait for room. That of a stream as long as the call: pieces that a caller
/// which reads with a thread has not taken yet are in its way.
pub(super) fn end_within_ns(begun: bool, deadline_ns: u64, now_ns: u64) -> u64 {
    if begun { deadline_ns.saturating_sub(now_ns).max(SLOW_NS_MAX) } else { SLOW_NS_MAX }
}

/// What is said to who calls for one reply what answers with a stream.
pub(super) fn not_one_reply() -> Failure {
    Failure::new(CODE_STREAMS, "it answers with a stream, and was called for one reply")
}

/// What the handler of a stream and the task that receives share.
#[derive(Clone, Debug)]
pub(super) struct Credit {
    /// Chunks that may be sent now; closed when the call is over.
    chunks: Arc<Semaphore>,
    /// Whether the caller was told that a stream follows.
    begun: Arc<AtomicBool>,
    /// Until when the call may last.
    pub(super) deadline_ns: u64,
}

impl Credit {
    pub(super) fn new(deadline_ns: u64) -> Credit {
        let chunks = Arc::new(Semaphore::new(STREAM_CREDIT as usize));
        Credit { chunks, begun: Arc::default(), deadline_ns }
    }

    /// The caller has taken so many chunks.
    pub(super) fn add(&self, taken: u32) -> Result<(), Stop> {
        // There never are more than were given first.
        if !is_owed(self.chunks.available_permits() as u32, taken) {
            return Err(Stop::Passed(TOO_MUCH_CREDIT));
        }
        self.chunks.add_permits(taken as usize);
        Ok(())
    }

    /// The call is over. Whether a stream was begun, so that its end must be told as one.
    pub(super) fn end(&self) -> bool {
        self.chunks.close();
        self.begun.load(Ordering::Acquire)
    }
}

/// Where a handler sends the pieces of its reply.
pub struct Outlet {
    conversation: Arc<Conversation>,
    call: u64,
    credit: Credit,
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outlet {{ call: {:016x} }}", self.call)
    }
}

impl Outlet {
    pub(super) fn new(conversation: Arc<Conversation>, call: u64, credit: Credit) -> Outlet {
        Outlet { conversation, call, credit }
    }

    /// Sends a piece, and waits while the caller has not taken enough of the former ones. What is above
    /// 64 KiB arrives as several pieces; nothing is sent for an empty one.
    ///
    /// # Errors
    /// Nobody hears it any more: the connection or the call is over. For the handler to pass on.
    pub async fn send(&mut self, piece: impl Into<Bytes>) -> Result<(), Failure> {
        let piece: Bytes = piece.into();
        for chunk in chunks(&piece) {
            let credit = self.credit.chunks.acquire().await.map_err(|_| gone())?;
            credit.forget();
            self.put(Header::new(Kind::Chunk, self.call), chunk).await?;
        }
        Ok(())
    }

    /// Says that a stream follows.
    async fn begin(&self) -> Result<(), Failure> {
        self.credit.begun.store(true, Ordering::Release);
        self.put(begins(self.call), &[]).await
    }

    async fn put(&self, header: Header, body: &[u8]) -> Result<(), Failure> {
        let alive = self.conversation.alive();
        // A caller that reads with a thread leaves pieces where they are until it takes them, and large ones fill
        // that. The handler is dropped at its deadline; this is for an outlet that went elsewhere.
        let until_ns = self.credit.deadline_ns.saturating_add(SLOW_NS_MAX);
        let sent = send(&alive.writer, header, &[], body, until_ns).await;
        sent.map_err(|stop| {
            if !matches!(stop, Stop::Deadline) {
                alive.link.end();
            }
            gone()
        })
    }
}

pub(super) fn gone() -> Failure {
    let words = format!("{}: the caller no longer takes the stream", Cause::Cancelled);
    Failure::new(CODE_NESTED, words)
}

impl AsyncBuilder {
    /// Handles a method whose reply is a stream: the handler sends its pieces, and its end is the stream's.
    /// Who calls it for one reply is told so with the code [`CODE_STREAMS`]; the handler does not run then.
    ///
    /// # Panics
    /// If two of a server's methods have the same number: rename one.
    pub fn stream<F>(
        self,
        method: &Method,
        handler: impl Fn(AsyncCall, Outlet) -> F + Send + Sync + 'static,
    ) -> AsyncBuilder
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.handler(
            method,
            Arc::new(move |call, outlet| {
                let handler = handler.clone();
                Box::pin(async move {
                    let outlet = outlet.ok_or_else(not_one_reply)?;
                    outlet.begin().await?;
                    handler(call, outlet).await?;
                    Ok(Bytes::new())
                })
            }),
        )
    }
}
