//! Replies in pieces, as a thread reads them.
//!
//! Nobody but the reader works on a stream: pieces stay on the connection until they are asked for, and the
//! callee sends ahead as far as its credit goes. A stream has its connection for itself. Read to its end, it
//! gives it back for other calls; given up before, it ends it, and its callee learns by that.

use std::fmt;
use std::iter::FusedIterator;

use bytes::Bytes;
use kumo_abi::call::Method;
use kumo_abi::frame::{Header, flags};

use super::super::{ATTEMPTS_MAX, Heard, Hearing, Outcome, Prepared, credit};
use super::{Connection, Request, Service, thread_id};
use crate::carrier::Stop;
use crate::error::CallError;
use crate::rules::stream::Owed;
use crate::rules::truth::may_retry;
use crate::time::now_ns;

/// A reply that comes in pieces, read by a thread. Dropped before its end, the call is cancelled, down to its
/// last hop.
///
/// An error comes once, in the place of the end: what became of the call. The pieces that were read before
/// are what the handler sent first; it may have sent more.
pub struct Pieces {
    service: Service,
    prepared: Prepared,
    /// Nothing once the call is over.
    open: Option<Open>,
    /// What the callee replied in the place of a stream.
    reply: Option<Bytes>,
    /// What is told once, in the place of the end.
    end: Option<CallError>,
}

/// A call whose stream has not ended.
struct Open {
    connection: Box<Connection>,
    hearing: Hearing,
    owed: Owed,
    id: u64,
    start_ns: u64,
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pieces {{ of: {}, is_over: {} }}", self.service.name(), self.open.is_none())
    }
}

impl Service {
    /// Calls a method whose reply is a stream. As [`Request::stream`], without options.
    ///
    /// # Errors
    /// See [`CallError`]: its kind says whether trying again is safe.
    pub fn stream(&self, method: &Method, body: &[u8]) -> Result<Pieces, CallError> {
        self.request(method).stream(body)
    }
}

impl Request<'_> {
    /// Calls, and waits until the reply begins. The budget is one for the whole stream. A method that has
    /// one reply gives a stream of that.
    ///
    /// # Errors
    /// See [`CallError`]: its kind says whether trying again is safe.
    pub fn stream(self, body: &[u8]) -> Result<Pieces, CallError> {
        let Request { service, method, how } = self;
        let (node, names) = (&service.node.shared, &service.shared.names);
        let mut prepared = Prepared::new(node, names, method, how, body.len())?;
        prepared.thread = thread_id();
        for attempt in 1.. {
            let mut connection = service.attempt(attempt, &prepared)?;
            let (used_before, start_ns) = (connection.used, now_ns());
            let header = match connection.take_off(&prepared, start_ns) {
                Ok(header) => Header { flags: flags::STREAM, ..header },
                Err(error) => {
                    // Nothing was sent on it.
                    service.put_back(connection);
                    return Err(error);
                }
            };
            let (hearing, owed) = (Hearing::of_stream(), Owed::default());
            let mut open = Open { connection, hearing, owed, id: header.call, start_ns };
            let service = service.clone();
            let Some(said) = open.begin(&prepared, header, body) else {
                return Ok(Pieces { service, prepared, open: Some(open), reply: None, end: None });
            };
            open.over(&service, &prepared, &said);
            match said {
                Ok(reply) => {
                    let reply = (!reply.is_empty()).then_some(reply);
                    return Ok(Pieces { service, prepared, open: None, reply, end: None });
                }
                Err(error)
                    if attempt == ATTEMPTS_MAX || !may_retry(error.status(), used_before) =>
                {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        unreachable!("the last attempt returns")
    }
}

impl Pieces {
    /// All that is left, as one; for streams that are known to be short.
    ///
    /// # Errors
    /// What became of the call, if it has no good end.
    pub fn rest(&mut self) -> Result<Bytes, CallError> {
        let mut all = Vec::new();
        for piece in self {
            all.extend_from_slice(&piece?);
        }
        Ok(all.into())
    }

    fn over(&mut self, said: &Outcome) {
        if let Some(open) = self.open.take() {
            open.over(&self.service, &self.prepared, said);
        }
    }
}

impl Iterator for Pieces {
    type Item = Result<Bytes, CallError>;

    /// Waits for the next piece; nothing once the handler has run to its end and all was read.
    fn next(&mut self) -> Option<Result<Bytes, CallError>> {
        if let Some(reply) = self.reply.take() {
            return Some(Ok(reply));
        }
        while let Some(open) = &mut self.open {
            let Heard { chunk, over } = open.hear(&self.prepared);
            if let Some(said) = over {
                self.over(&said);
                self.end = said.err();
            }
            if chunk.is_some() {
                return chunk.map(Ok);
            }
        }
        self.end.take().map(Err)
    }
}

/// An end stays one.
impl FusedIterator for Pieces {}

impl Drop for Pieces {
    fn drop(&mut self) {
        if let Some(open) = &mut self.open {
            let said = open.give_up(&self.prepared, &Stop::Cancelled);
            self.over(&said);
        }
    }
}

impl Open {
    /// Sends the call, and hears that a stream begins; or what became of it.
    fn begin(&mut self, prepared: &Prepared, header: Header, body: &[u8]) -> Option<Outcome> {
        let sent = self.connection.send(prepared, header, body);
        let mut said = sent.err().map(|stop| self.give_up(prepared, &stop));
        while said.is_none() && !self.hearing.begun {
            said = self.hear(prepared).over;
        }
        said
    }

    /// The call is over, and its connection free for others, if it is of use.
    fn over(mut self, service: &Service, prepared: &Prepared, said: &Outcome) {
        self.connection.land(prepared, self.id, self.start_ns, said);
        service.put_back(self.connection);
    }

    /// What is heard next, or that the time is over.
    fn hear(&mut self, prepared: &Prepared) -> Heard {
        let heard = self
            .pay(prepared)
            .and_then(|()| self.connection.hear(prepared, self.id, &mut self.hearing));
        match heard {
            Ok(heard) => {
                if heard.chunk.is_some() {
                    self.owed.take();
                }
                heard
            }
            Err(stop) => Heard { chunk: None, over: Some(self.give_up(prepared, &stop)) },
        }
    }

    /// Gives the callee credit for what was taken.
    fn pay(&mut self, prepared: &Prepared) -> Result<(), Stop> {
        let Some(taken) = self.owed.due() else { return Ok(()) };
        let credit = credit(self.id, taken);
        // A callee that goes on sending reads this; and no more of it waits than it has sent.
        match self.connection.writer.send(credit, &[], &[], prepared.deadline_ns) {
            Ok(()) => self.owed.paid(),
            Err(Stop::Deadline) => return Err(Stop::Deadline),
            // What had arrived before the end is read first.
            Err(_) => {}
        }
        Ok(())
    }

    fn give_up(&mut self, prepared: &Prepared, stop: &Stop) -> Outcome {
        self.connection.give_up(prepared, self.id, &mut self.hearing, stop)
    }
}
