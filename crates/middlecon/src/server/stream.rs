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
use kumo_abi::call::{Cause, Method};
use kumo_abi::frame::{BODY_BYTES_MAX, Header, Kind, STREAM_CREDIT, flags};
use tokio::sync::Semaphore;

use super::SLOW_NS_MAX;
use super::tasks::{AsyncBuilder, AsyncCall, Conversation};
use crate::carrier::Stop;
use crate::carrier::tasks::send;
use crate::error::{CODE_NESTED, CODE_STREAMS, Failure};
use crate::time::now_ns;

/// What the handler of a stream and the task that receives share.
#[derive(Clone, Debug)]
pub(super) struct Credit {
    /// Chunks that may be sent now; closed when the call is over.
    chunks: Arc<Semaphore>,
    /// Whether the caller was told that a stream follows.
    begun: Arc<AtomicBool>,
}

impl Credit {
    pub(super) fn new() -> Credit {
        let chunks = Arc::new(Semaphore::new(STREAM_CREDIT as usize));
        Credit { chunks, begun: Arc::default() }
    }

    /// The caller has taken so many chunks. It cannot have taken more than it was sent.
    pub(super) fn add(&self, taken: u32) -> Result<(), Stop> {
        let taken = taken as usize;
        if taken > (STREAM_CREDIT as usize).saturating_sub(self.chunks.available_permits()) {
            return Err(Stop::Passed("credit for more chunks than it was sent"));
        }
        self.chunks.add_permits(taken);
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
        for chunk in piece.chunks(BODY_BYTES_MAX) {
            let credit = self.credit.chunks.acquire().await.map_err(|_| gone())?;
            credit.forget();
            self.put(Header::new(Kind::Chunk, self.call), chunk).await?;
        }
        Ok(())
    }

    /// Says that a stream follows.
    async fn begin(&self) -> Result<(), Failure> {
        self.credit.begun.store(true, Ordering::Release);
        let header = Header { flags: flags::STREAM, ..Header::new(Kind::Reply, self.call) };
        self.put(header, &[]).await
    }

    async fn put(&self, header: Header, body: &[u8]) -> Result<(), Failure> {
        let alive = self.conversation.alive();
        // Its reader has credit, so only a caller that reads nothing at all makes us wait here.
        let sent = send(&alive.writer, header, &[], body, now_ns() + SLOW_NS_MAX).await;
        sent.map_err(|_| {
            alive.link.end();
            gone()
        })
    }
}

fn gone() -> Failure {
    Failure::new(
        CODE_NESTED,
        format!("{}: the caller no longer takes the stream", Cause::Cancelled),
    )
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
                    let words = "it answers with a stream, and was called for one reply";
                    let outlet = outlet.ok_or_else(|| Failure::new(CODE_STREAMS, words))?;
                    outlet.begin().await?;
                    handler(call, outlet).await?;
                    Ok(Bytes::new())
                })
            }),
        )
    }
}
