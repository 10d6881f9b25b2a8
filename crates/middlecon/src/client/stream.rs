//! Replies in pieces, as a task reads them. For threads see `threads::stream`.
//!
//! The callee sends ahead as far as its credit goes; each piece that is taken gives it more. A piece is only
//! ever followed by more pieces or by one end, and an end that nobody told is never taken for a good one.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{Cause, Method, Status};
use kumo_abi::frame::{STREAM_CREDIT, flags};
use tokio::sync::mpsc;

use super::tasks::{AsyncRequest, AsyncService, Flying, Wake};
use super::{ATTEMPTS_MAX, Outcome, Prepared, cause_of, credit, words};
use crate::error::CallError;
use crate::rules::stream::Owed;
use crate::rules::truth::{Event, may_retry};
use crate::time::now_ns;

/// How long to wait before a credit that found no room is sent again.
const AGAIN: Duration = Duration::from_millis(1);

/// What arrives of a stream.
pub(super) enum Piece {
    Begun,
    Chunk(Bytes),
    /// With a body if the callee sent one reply in the place of a stream.
    End(Outcome),
}

/// A reply that comes in pieces. Dropped before its end, the call is cancelled, down to its last hop.
pub struct Chunks {
    flying: Flying,
    prepared: Prepared,
    pieces: mpsc::Receiver<Piece>,
    owed: Owed,
    begun: bool,
    /// What the callee replied in the place of a stream.
    reply: Option<Bytes>,
}

impl std::fmt::Debug for Chunks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chunks {{ call: {:016x}, is_over: {} }}", self.flying.id, self.flying.over)
    }
}

impl AsyncService {
    /// Calls a method whose reply is a stream. As [`AsyncRequest::stream`], without options.
    ///
    /// # Errors
    /// See [`CallError`]: its kind says whether trying again is safe.
    pub async fn stream(&self, method: &Method, body: &[u8]) -> Result<Chunks, CallError> {
        self.request(method).stream(body).await
    }
}

impl AsyncRequest<'_> {
    /// Calls, and waits until the reply begins. The budget is one for the whole stream. A method that has
    /// one reply gives a stream of that.
    ///
    /// # Errors
    /// See [`CallError`]: its kind says whether trying again is safe.
    pub async fn stream(self, body: &[u8]) -> Result<Chunks, CallError> {
        let AsyncRequest { service, method, how } = self;
        let (node, names) = (&service.node.shared, &service.shared.names);
        let mut prepared = Prepared::new(node, names, method, how, body.len())?;
        for attempt in 1.. {
            let (line, seat) = service.seat(&prepared).await?;
            let used_before = line.wires.used.swap(true, Ordering::Relaxed);
            // Beside what may be sent ahead: that it begins, and that it ends.
            let (send, pieces) = mpsc::channel(STREAM_CREDIT as usize + 2);
            let flying = line.take_off(&seat, &prepared, Wake::Stream(send));
            let mut chunks = Chunks {
                flying,
                prepared,
                pieces,
                owed: Owed::default(),
                begun: false,
                reply: None,
            };
            match chunks.begin(body).await {
                Ok(()) => return Ok(chunks),
                Err(error)
                    if attempt == ATTEMPTS_MAX || !may_retry(error.status(), used_before) =>
                {
                    return Err(error);
                }
                Err(_) => prepared = chunks.prepared,
            }
        }
        unreachable!("the last attempt returns")
    }
}

impl Chunks {
    async fn begin(&mut self, body: &[u8]) -> Result<(), CallError> {
        self.flying.check(&self.prepared)?;
        let said = match self.flying.send(&self.prepared, flags::STREAM, body).await {
            Ok(()) => match self.hear().await {
                Piece::Begun | Piece::Chunk(_) => {
                    self.begun = true;
                    return Ok(());
                }
                Piece::End(said) => said,
            },
            Err(stop) => self.stop(cause_of(&stop), words(&stop)),
        };
        self.over(&said);
        self.reply = Some(said?).filter(|reply| !reply.is_empty());
        Ok(())
    }

    /// The next piece; nothing once the handler has run to its end and all was read. Dropped while it
    /// waits, it has taken nothing.
    ///
    /// # Errors
    /// Once, in the place of the end: what became of the call. The pieces that were read before are what
    /// the handler sent first; it may have sent more.
    pub async fn next(&mut self) -> Option<Result<Bytes, CallError>> {
        if let Some(reply) = self.reply.take() {
            return Some(Ok(reply));
        }
        while !self.flying.over {
            match self.hear().await {
                Piece::Begun => {}
                Piece::Chunk(chunk) => {
                    self.owed.take();
                    return Some(Ok(chunk));
                }
                Piece::End(said) => {
                    self.over(&said);
                    return said.err().map(Err);
                }
            }
        }
        None
    }

    /// All that is left, as one; for streams that are known to be short.
    ///
    /// # Errors
    /// As [`Chunks::next`].
    pub async fn rest(&mut self) -> Result<Bytes, CallError> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all.into())
    }

    /// What comes next, or that the time is over.
    async fn hear(&mut self) -> Piece {
        loop {
            let paid = self.pay();
            let left_ns = self.prepared.deadline_ns.saturating_sub(now_ns());
            let left = Duration::from_nanos(left_ns);
            let wait = if paid { left } else { left.min(AGAIN) };
            match tokio::time::timeout(wait, self.pieces.recv()).await {
                Ok(Some(piece)) => return piece,
                // An end that nobody told.
                Ok(None) => return Piece::End(self.stop(Cause::Lost, String::new())),
                Err(_) if now_ns() < self.prepared.deadline_ns => {}
                Err(_) => return Piece::End(self.stop(Cause::Deadline, String::new())),
            }
        }
    }

    /// Gives the callee credit for what was taken. False if there was no room for the frame.
    fn pay(&mut self) -> bool {
        let Some(taken) = self.owed.due() else { return true };
        let writer = &self.flying.line.wires.writer;
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        match writer.try_send(credit(self.flying.id, taken), &[], &[]) {
            Ok(true) => self.owed.paid(),
            Ok(false) => return false,
            // The task that receives tells the end.
            Err(_) => {}
        }
        true
    }

    /// Takes the call back, and says what became of it.
    fn stop(&mut self, cause: Cause, message: String) -> Outcome {
        let (mut flight, taken) = self.flying.give_up();
        // An end that came in the last moment is the end; a good one only if nothing is missing before it.
        let mut is_whole = true;
        while let Ok(piece) = self.pieces.try_recv() {
            match piece {
                Piece::End(said) if is_whole || said.is_err() => return said,
                Piece::End(_) => {}
                Piece::Begun => self.begun = true,
                Piece::Chunk(_) => is_whole = false,
            }
        }
        if self.begun {
            // Also where the connection's end has taken what was heard.
            flight.step(Event::Received);
        }
        let status = flight.step(Event::Stop(cause, taken)).unwrap_or(Status::Unknown(cause));
        Err(CallError::from_status(status, message))
    }

    fn over(&mut self, said: &Outcome) {
        self.flying.over = true;
        let Flying { line, id, start_ns, .. } = &self.flying;
        self.prepared.show(&line.held.shared, *id, *start_ns, said);
    }
}
