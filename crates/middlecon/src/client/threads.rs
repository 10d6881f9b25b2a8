//! Calls that block their thread, without a runtime: the fast path.
//!
//! A connection is used by one call at a time; idle ones wait in a pool of their service. Nothing but
//! the caller's own thread works on a call. A call that is not answered in time, or that nobody above
//! waits for any more, ends its connection: its callee learns by that, at once, that it need not go on.

pub(crate) mod ping;
pub(crate) mod stream;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{Cause, InstanceId, Method, ServiceName, Status};
use kumo_abi::control::{FromNode, Granted, ToNode};
use kumo_abi::frame::{Header, Kind};

use super::{
    ATTEMPTS_MAX, Heard, Hearing, How, NOTICE_WAIT_NS, Outcome, Prepared, cause_of, check_grant,
    facts, is_good_after, node_began_anew, notice_wait_ns, resume, status, words,
};
use crate::carrier::{Link, Reader, Stop, Writer, join};
use crate::context::random;
use crate::error::CallError;
use crate::node::{Answer, Held, Node, why_it_ended};
use crate::program::Names;
use crate::rules::truth::{Event, Taken, may_retry};
use crate::secure::Other;
use crate::time::now_ns;

/// Idle connections of a service that are kept. Above that they are closed.
const IDLE_MAX: usize = 64;

/// Frames that an idle connection may hold, late answers of former calls. Who sends more is not called again.
const LATE_FRAMES_MAX: usize = 64;

/// A service, to be called. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Service {
    node: Node,
    shared: Arc<ServiceShared>,
}

struct ServiceShared {
    names: Names,
    /// In boxes, so that one is taken out and put back by moving a pointer.
    #[expect(clippy::vec_box, reason = "they are moved in and out for each call")]
    idle: Mutex<Vec<Box<Connection>>>,
}

impl Node {
    /// A service by its name. Nothing is asked yet: the first call opens a connection.
    pub fn service(&self, name: &ServiceName) -> Service {
        let shared = ServiceShared { names: Names::new(name), idle: Mutex::default() };
        Service { node: self.clone(), shared: Arc::new(shared) }
    }
}

impl Service {
    /// Its name.
    pub fn name(&self) -> &ServiceName {
        self.shared.names.service()
    }

    /// Calls a method and waits for its reply, within the budget of the context (30 s at the root).
    ///
    /// # Errors
    /// See [`CallError`]: its kind says whether trying again is safe.
    pub fn call(&self, method: &Method, body: &[u8]) -> Result<Bytes, CallError> {
        self.request(method).call(body)
    }

    /// A call with options.
    pub fn request<'a>(&'a self, method: &'a Method) -> Request<'a> {
        Request { service: self, method, how: How::default() }
    }

    /// How many idle connections it has.
    pub fn idle(&self) -> usize {
        self.pool().len()
    }

    #[expect(clippy::vec_box, reason = "they are moved in and out for each call")]
    fn pool(&self) -> MutexGuard<'_, Vec<Box<Connection>>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is being put together.
#[must_use = "nothing is called before `call` or `stream`"]
#[derive(Clone)]
pub struct Request<'a> {
    service: &'a Service,
    method: &'a Method,
    how: How,
}

impl Request<'_> {
    /// It may take this long. The budget of the context above is never exceeded.
    pub fn budget(mut self, budget: Duration) -> Self {
        self.how.budget = Some(budget);
        self
    }

    /// How urgent it is, where it must wait for a slot: 0 is the least, and the default at the root.
    pub fn priority(mut self, priority: u8) -> Self {
        self.how.priority = Some(priority);
        self
    }

    /// Where all instances are taken, waits for one within the budget; else that is BUSY.
    pub fn wait_for_place(mut self) -> Self {
        self.how.wait = true;
        self
    }

    /// Calls, and waits for the reply.
    ///
    /// # Errors
    /// See [`CallError`]: its kind says whether trying again is safe.
    pub fn call(self, body: &[u8]) -> Result<Bytes, CallError> {
        let Request { service, method, how } = self;
        let node = &service.node.shared;
        let mut prepared = Prepared::new(node, &service.shared.names, method, how, body.len())?;
        prepared.thread = thread_id();
        for attempt in 1.. {
            let mut connection = service.attempt(attempt, &prepared)?;
            let used_before = connection.used;
            // An idle connection is found in no time; what else there is to do may take some.
            let at_once = attempt == 1 && used_before;
            let start_ns = if at_once { prepared.began_ns } else { now_ns() };
            let result = connection.call(&prepared, body, start_ns);
            service.put_back(connection);
            if attempt == ATTEMPTS_MAX || !may_retry(status(&result), used_before) {
                return result;
            }
        }
        unreachable!("the last attempt returns")
    }
}

impl Service {
    /// A connection for an attempt of a call. Where all old ones had ended, the last attempt is not made on one
    /// more of them.
    fn attempt(&self, attempt: usize, prepared: &Prepared) -> Result<Box<Connection>, CallError> {
        match attempt {
            ATTEMPTS_MAX => self.open(prepared),
            _ => self.connection(prepared),
        }
    }

    /// An idle connection that nobody has said has ended, or a new one.
    fn connection(&self, prepared: &Prepared) -> Result<Box<Connection>, CallError> {
        // A grant is for who asked for it: a handler's calls go out as its service, others as the user.
        let from = prepared.context.inner().instance;
        loop {
            let idle = {
                let mut pool = self.pool();
                let at = pool.iter().rposition(|idle| idle.from == from);
                at.map(|at| pool.remove(at))
            };
            let Some(mut idle) = idle else { return self.open(prepared) };
            if self.node.shared.notices.notice(idle.held.id).is_none() && idle.is_still_good() {
                return Ok(idle);
            }
        }
    }

    /// A connection whose call is over: for the next one, if it is of use.
    fn put_back(&self, mut connection: Box<Connection>) {
        connection.used = true;
        if connection.good {
            let mut idle = self.pool();
            if idle.len() < IDLE_MAX {
                idle.push(connection);
            }
        }
    }

    fn open(&self, prepared: &Prepared) -> Result<Box<Connection>, CallError> {
        let node = &self.node.shared;
        let request = node.request();
        let open = prepared.open(request, self.name());
        let upstream = prepared.context.upstream();
        let answer =
            node.ask_and_wait(request, &ToNode::Open(open), upstream, prepared.deadline_ns)?;
        match answer {
            Answer { message: FromNode::Granted(granted), fd: Some(socket), held: Some(held) } => {
                Connection::new(self.name().clone(), granted, socket, held, prepared).map(Box::new)
            }
            Answer {
                message: FromNode::Refused { cause, message, retry_after_ms, path, .. },
                ..
            } => Err(CallError::NotExecuted { cause, message, path, retry_after_ms }),
            _ => Err(CallError::not_executed(Cause::Malformed, "the node answered something else")),
        }
    }
}

/// A connection to a callee, used by one call at a time. The order of fields is that of their end.
struct Connection {
    writer: Writer,
    reader: Reader,
    link: Arc<Link>,
    held: Held,
    granted: Granted,
    /// As whom it was asked for.
    from: Option<InstanceId>,
    service: ServiceName,
    place: u32,
    next_id: u64,
    used: bool,
    /// Whether the next call may use it.
    good: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.link.end();
        self.held.shared.program.leave(self.place);
    }
}

impl Connection {
    /// Dropped in any way but as a connection, `held` gives the grant back.
    fn new(
        service: ServiceName,
        granted: Granted,
        socket: OwnedFd,
        held: Held,
        prepared: &Prepared,
    ) -> Result<Connection, CallError> {
        let node = &held.shared;
        let Some(place) = node.program.place() else {
            let message = "this program has too many connections";
            return Err(CallError::not_executed(Cause::Exhausted, message));
        };
        // Before both have the other's page no call is sent, so none can be executed. It is in flight
        // already, though: its node shall see who waits for whom, and whether the callee stands still.
        let next_id = random();
        let shown = prepared.in_flight(next_id, granted.connection, now_ns());
        node.program.show(place, &shown);
        let own = prepared.context.inner().instance;
        let other = Other::Callee(&service, &granted.peer);
        let tls = node.tls(granted.carrier, own, other, prepared.deadline_ns);
        let tls = tls.inspect_err(|_| {
            node.program.clear(place);
            node.program.leave(place);
        })?;
        let facts = facts(&held);
        let joined = join(socket, granted.carrier, tls, facts, prepared.deadline_ns);
        node.program.clear(place);
        let (link, writer, reader) = joined.map_err(|stop| {
            node.program.leave(place);
            let notice = match stop {
                Stop::Ended => why_it_ended(node, held.id, NOTICE_WAIT_NS),
                _ => None,
            };
            let cause = notice.map_or(cause_of(&stop), |notice| notice.cause);
            CallError::not_executed(cause, words(&stop))
        })?;
        if !held.joined(&link, resume(&granted, &service)) {
            node.program.leave(place);
            return Err(node_began_anew());
        }
        Ok(Connection {
            writer,
            reader,
            link,
            held,
            granted,
            from: prepared.context.inner().instance,
            service,
            place,
            next_id,
            used: false,
            good: true,
        })
    }

    /// Looks at what the callee said while nobody called: that it goes away, perhaps. In a ring this is one
    /// look into memory.
    fn is_still_good(&mut self) -> bool {
        for _ in 0..LATE_FRAMES_MAX {
            match self.reader.try_next() {
                Ok(None) => return self.good,
                // Others are late answers of calls that nobody waits for any more.
                Ok(Some(frame)) => self.good &= frame.header.kind != Kind::Goaway,
                Err(_) => break,
            }
        }
        self.good = false;
        false
    }

    fn call(
        &mut self,
        prepared: &Prepared,
        body: &[u8],
        start_ns: u64,
    ) -> Result<Bytes, CallError> {
        let header = self.take_off(prepared, start_ns)?;
        let result = self.exchange(prepared, header, body);
        self.land(prepared, header.call, start_ns, &result);
        result
    }

    /// The header of a call that is in flight from now on, and soon sent.
    fn take_off(&mut self, prepared: &Prepared, start_ns: u64) -> Result<Header, CallError> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1).max(1);
        check_grant(&self.granted, &self.service, prepared)?;
        let program = &self.held.shared.program;
        program.show(self.place, &prepared.in_flight(id, self.granted.connection, start_ns));
        Ok(prepared.header(&self.granted, id, start_ns))
    }

    /// A call is over.
    fn land(&mut self, prepared: &Prepared, id: u64, start_ns: u64, result: &Outcome) {
        self.held.shared.program.clear(self.place);
        prepared.show(&self.held.shared, id, start_ns, result);
        self.good &= is_good_after(result);
    }

    /// Sends the call and hears how it ended.
    fn exchange(&mut self, prepared: &Prepared, header: Header, body: &[u8]) -> Outcome {
        let mut hearing = Hearing::default();
        let mut stop = self.send(prepared, header, body).err();
        while stop.is_none() {
            match self.hear(prepared, header.call, &mut hearing) {
                Ok(Heard { over: Some(result), .. }) => return result,
                Ok(_) => {}
                Err(error) => stop = Some(error),
            }
        }
        let stop = stop.unwrap_or(Stop::Ended);
        self.give_up(prepared, header.call, &mut hearing, &stop)
    }

    fn send(&mut self, prepared: &Prepared, header: Header, body: &[u8]) -> Result<(), Stop> {
        match self.writer.send(header, &prepared.ext, body, prepared.deadline_ns) {
            // What the callee's side said before it ended is read first: perhaps that it does not believe us.
            Err(Stop::Ended) if self.link.is_remote() => Ok(()),
            sent => sent,
        }
    }

    /// Waits for the next frame, and hears what it says of this call.
    fn hear(&mut self, prepared: &Prepared, id: u64, hearing: &mut Hearing) -> Result<Heard, Stop> {
        let frame = self.reader.next(prepared.context.upstream(), prepared.deadline_ns)?;
        if frame.header.call == id {
            return hearing.hear(frame);
        }
        // Others are late answers of calls that nobody waits for any more.
        self.good &= frame.header.kind != Kind::Goaway;
        Ok(Heard::default())
    }

    /// Nobody waits for a call any more: takes it back, ends the connection, and says what became of it.
    fn give_up(
        &mut self,
        prepared: &Prepared,
        id: u64,
        hearing: &mut Hearing,
        stop: &Stop,
    ) -> Outcome {
        self.good = false;
        // Across hosts the notice is what tells whether it was taken; here it only tells the cause.
        let cause = match stop {
            Stop::Ended => {
                let wait_ns = notice_wait_ns(&self.link, prepared.deadline_ns);
                let notice = why_it_ended(&self.held.shared, self.held.id, wait_ns);
                notice.map_or(Cause::Lost, |notice| notice.cause)
            }
            other => cause_of(other),
        };
        let taken = self.link.take_back(id);
        // What came while we took it back counts, too: a reply that was written is a reply. A stream that
        // nobody reads any more has a good end only if nothing is missing before that.
        let mut is_whole = true;
        if taken != Taken::No && matches!(stop, Stop::Ended | Stop::Deadline) {
            while let Ok(Some(frame)) = self.reader.try_next() {
                if frame.header.call != id {
                    continue;
                }
                let Ok(heard) = hearing.hear(frame) else { break };
                is_whole &= heard.chunk.is_none();
                match heard.over {
                    Some(Ok(_)) if !is_whole => break,
                    Some(result) => return result,
                    None => {}
                }
            }
        }
        self.link.end();
        let flight = &mut hearing.flight;
        let status = flight.step(Event::Stop(cause, taken)).unwrap_or(Status::Unknown(cause));
        Err(CallError::from_status(status, words(stop)))
    }
}

fn thread_id() -> u32 {
    thread_local! {
        static ID: u32 = rustix::thread::gettid().as_raw_pid().unsigned_abs();
    }
    ID.with(|id| *id)
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Service({})", self.name())
    }
}
