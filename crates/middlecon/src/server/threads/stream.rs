//! Replies in pieces: what a handler on a thread sends while it runs, as fast as its caller takes it.
//!
//! The thread that runs the handler owns its connection, and nobody else reads there. So it is the handler
//! that, where it waits for credit, hears what else its caller says: that it takes more, that it gave up, or
//! that it has gone.

use std::fmt;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use kumo_abi::call::{Cause, Method};
use kumo_abi::frame::{Header, Kind, check_method};

use super::super::Alive;
use super::super::stream::{TOO_MUCH_CREDIT, begins, gone, not_one_reply};
use super::{Builder, Call};
use crate::carrier::local::is_ended;
use crate::carrier::{Frame, Reader, Stop};
use crate::error::{CODE_NESTED, Failure};
use crate::rules::pulse::Pulses;
use crate::rules::stream::{Ahead, chunks};
use crate::time::now_ns;

/// How often a handler that need not wait looks whether its caller is still there: a look is a system call.
const LOOK_NS: u64 = 1_000_000;

/// Where a handler that runs on a thread sends the pieces of its reply.
pub struct PieceSender<'a> {
    reader: &'a mut Reader,
    alive: &'a Alive,
    call: u64,
    deadline_ns: u64,
    ahead: Ahead,
    looked_ns: u64,
    heard: Heard,
    cut_off: Option<Cause>,
}

/// What there is to do after the handler of a stream.
#[derive(Default)]
pub(super) struct Heard {
    /// Whether the caller was told that a stream follows, so that its end must be told as one.
    pub(super) begun: bool,
    /// Why the connection is of no use any more, if it is not.
    pub(super) stop: Option<Stop>,
    /// They came meanwhile; of each method the last.
    pulses: Pulses<Frame>,
}

impl Heard {
    /// The pulses that came meanwhile, in the order in which they are to be handled.
    pub(super) fn pulses(&mut self) -> impl Iterator<Item = Frame> {
        std::iter::from_fn(|| self.pulses.take().map(|(_, frame)| frame))
    }
}

impl fmt::Debug for PieceSender<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PieceSender {{ call: {:016x} }}", self.call)
    }
}

impl<'a> PieceSender<'a> {
    pub(super) fn new(
        reader: &'a mut Reader,
        alive: &'a Alive,
        call: u64,
        deadline_ns: u64,
    ) -> PieceSender<'a> {
        let (ahead, heard) = (Ahead::default(), Heard::default());
        PieceSender { reader, alive, call, deadline_ns, ahead, looked_ns: 0, heard, cut_off: None }
    }

    /// Sends a piece, and waits while the caller has not taken enough of the former ones. What is above
    /// 64 KiB arrives as several pieces; nothing is sent for an empty one.
    ///
    /// # Errors
    /// Nobody hears it any more: the caller has gone or given up, or the call's time is over. For the handler to
    /// pass on; from then on nothing is sent, and whatever it says is no good end.
    pub fn send(&mut self, piece: &[u8]) -> Result<(), Failure> {
        self.look()?;
        for chunk in chunks(piece) {
            while !self.ahead.spend() {
                self.hear()?;
            }
            self.put(Header::new(Kind::Chunk, self.call), chunk)?;
        }
        Ok(())
    }

    /// Says that a stream follows.
    fn begin(&mut self) -> Result<(), Failure> {
        self.heard.begun = true;
        self.put(begins(self.call), &[])
    }

    /// Why the stream was cut off, if it was.
    pub(super) fn cut_off(&self) -> Option<Cause> {
        self.cut_off
    }

    pub(super) fn end(self) -> Heard {
        self.heard
    }

    /// Whether somebody hears it still, as far as can be known without waiting.
    fn look(&mut self) -> Result<(), Failure> {
        let now_ns = now_ns();
        if self.cut_off.is_some() {
            return Err(self.failure());
        }
        if now_ns >= self.deadline_ns {
            return Err(self.cut(Stop::Deadline));
        }
        if now_ns.saturating_sub(self.looked_ns) >= LOOK_NS {
            self.looked_ns = now_ns;
            if is_ended(&*self.alive.link) {
                return Err(self.cut(Stop::Ended));
            }
        }
        Ok(())
    }

    /// Waits for what the caller says next.
    fn hear(&mut self) -> Result<(), Failure> {
        let heard = self.reader.next(None, self.deadline_ns).and_then(|frame| self.take(frame));
        heard.map_err(|stop| self.cut(stop))
    }

    fn take(&mut self, frame: Frame) -> Result<(), Stop> {
        let header = &frame.header;
        match header.kind {
            Kind::Credit if header.call == self.call => {
                let is_owed = self.ahead.add(header.code);
                is_owed.then_some(()).ok_or(Stop::Passed(TOO_MUCH_CREDIT))
            }
            Kind::Cancel if header.call == self.call => Err(Stop::Cancelled),
            Kind::Ping => {
                let pong = Header::new(Kind::Pong, header.call);
                let mut writer = self.alive.writer.lock().unwrap_or_else(PoisonError::into_inner);
                writer.send(pong, &[], &[], self.deadline_ns)
            }
            Kind::Pulse => {
                let extensions = frame.extensions()?;
                let method = check_method(header, &extensions)?;
                let method: Method =
                    method.parse().map_err(|_| Stop::Passed("a pulse to what is no method"))?;
                self.heard.pulses.put(&method, frame);
                Ok(())
            }
            // Of a call that is over already.
            Kind::Cancel | Kind::Credit | Kind::Hello | Kind::Pong => Ok(()),
            Kind::Call => Err(Stop::Passed("a call on a connection that is in one")),
            _ => Err(Stop::Passed("a frame that only callees send")),
        }
    }

    fn put(&mut self, header: Header, body: &[u8]) -> Result<(), Failure> {
        let sent = {
            let mut writer = self.alive.writer.lock().unwrap_or_else(PoisonError::into_inner);
            // A caller that reads with a thread leaves pieces where they are until it takes them, and large ones
            // fill that.
            writer.send(header, &[], body, self.deadline_ns)
        };
        sent.map_err(|stop| self.cut(stop))
    }

    /// Nothing is sent from here on. What the handler is told.
    fn cut(&mut self, stop: Stop) -> Failure {
        self.cut_off = Some(match stop {
            Stop::Deadline => Cause::Deadline,
            _ => Cause::Cancelled,
        });
        // After the others the connection is of no use; the caller that gave up waits for an answer on it.
        if !matches!(stop, Stop::Deadline | Stop::Cancelled) {
            self.heard.stop = Some(stop);
        }
        self.failure()
    }

    fn failure(&self) -> Failure {
        match self.cut_off {
            Some(Cause::Deadline) => {
                let words = format!("{}: the stream's time is over", Cause::Deadline);
                Failure::new(CODE_NESTED, words)
            }
            _ => gone(),
        }
    }
}

impl Builder {
    /// Handles a method whose reply is a stream: the handler sends its pieces, and its end is the stream's.
    /// Who calls it for one reply is told so with the code [`CODE_STREAMS`](crate::CODE_STREAMS); the handler
    /// does not run then.
    ///
    /// # Panics
    /// If two of a server's methods have the same number: rename one.
    pub fn stream(
        mut self,
        method: &Method,
        handler: impl Fn(&mut Call<'_>, &mut PieceSender<'_>) -> Result<(), Failure>
        + Send
        + Sync
        + 'static,
    ) -> Builder {
        self.methods.add(
            method,
            Arc::new(move |call, outlet| {
                let outlet = outlet.ok_or_else(not_one_reply)?;
                outlet.begin()?;
                handler(call, outlet)?;
                Ok(Bytes::new())
            }),
        );
        self
    }
}
