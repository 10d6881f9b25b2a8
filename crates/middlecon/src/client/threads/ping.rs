//! A look at the connection to a callee, without a call: nothing is executed, and no slot is taken.

use std::time::{Duration, Instant};

use kumo_abi::call::{Cause, InstanceId, Method, MethodPattern, Peer};
use kumo_abi::control::Carrier;
use kumo_abi::frame::{Header, Kind};

use super::super::{How, Prepared, cause_of, notice_wait_ns, words};
use super::{Connection, IDLE_MAX, Service};
use crate::carrier::Stop;
use crate::error::CallError;
use crate::node::why_it_ended;
use crate::time::now_ns;

/// Under this name a ping is shown while it waits. No method is called.
const SHOWN_AS: &str = "ping";

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answerer {
    /// As the nodes say.
    pub peer: Peer,
    /// Which instance.
    pub instance: InstanceId,
    /// What carries frames to it.
    pub carrier: Carrier,
    /// Which methods the caller may call.
    pub methods: Vec<MethodPattern>,
}

/// What a ping found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pong {
    /// Who answered.
    pub from: Answerer,
    /// The way there and back.
    pub took: Duration,
    /// How long it took before that to get the connection; next to nothing where there was one.
    pub opened: Duration,
}

impl Service {
    /// Asks a callee for a sign of life, on a connection as a call would have it.
    ///
    /// # Errors
    /// Always [`CallError::NotExecuted`]: there is nothing to execute.
    pub fn ping(&self, budget: Duration) -> Result<Pong, CallError> {
        let node = &self.node.shared;
        let method: Method = SHOWN_AS
            .parse()
            .map_err(|_| CallError::not_executed(Cause::Malformed, "a ping has a bad name"))?;
        let how = How { budget: Some(budget), ..How::default() };
        let mut prepared = Prepared::new(node, &self.shared.names, &method, how, 0)?;
        prepared.thread = super::thread_id();
        let began = Instant::now();
        let mut connection = self.connection(&prepared)?;
        let opened = began.elapsed();
        let took = connection.ping(&prepared)?;
        let from = connection.answerer();
        connection.used = true;
        let mut idle = self.pool();
        if connection.good && idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        Ok(Pong { from, took, opened })
    }

    /// Who answered last, while the connection to it is kept.
    pub fn answerer(&self) -> Option<Answerer> {
        self.pool().last().map(|connection| connection.answerer())
    }
}

impl Connection {
    fn answerer(&self) -> Answerer {
        let granted = &self.granted;
        Answerer {
            peer: granted.peer.clone(),
            instance: granted.serving.instance,
            carrier: granted.carrier,
            methods: granted.methods.clone(),
        }
    }

    fn ping(&mut self, prepared: &Prepared) -> Result<Duration, CallError> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1).max(1);
        // Shown as a call that waits, so that a callee that stands still is noticed.
        let shown = prepared.in_flight(id, self.granted.connection, now_ns());
        self.held.shared.program.show(self.place, &shown);
        let began = Instant::now();
        let answered = self.exchange_ping(prepared, id);
        self.held.shared.program.clear(self.place);
        answered.map_err(|stop| {
            self.good = false;
            self.link.end();
            let cause = match stop {
                Stop::Ended => {
                    let wait_ns = notice_wait_ns(&self.link, prepared.deadline_ns);
                    let notice = why_it_ended(&self.held.shared, self.held.id, wait_ns);
                    notice.map_or(Cause::Lost, |notice| notice.cause)
                }
                ref other => cause_of(other),
            };
            CallError::not_executed(cause, words(&stop))
        })?;
        Ok(began.elapsed())
    }

    fn exchange_ping(&mut self, prepared: &Prepared, id: u64) -> Result<(), Stop> {
        let header = Header::new(Kind::Ping, id);
        self.writer.send(header, &[], &[], prepared.deadline_ns)?;
        loop {
            let frame = self.reader.next(prepared.context.upstream(), prepared.deadline_ns)?;
            match frame.header.kind {
                Kind::Pong if frame.header.call == id => return Ok(()),
                Kind::Goaway => self.good = false,
                // Late answers of calls that nobody waits for any more.
                _ => {}
            }
        }
    }
}
