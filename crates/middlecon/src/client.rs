//! Calls that block their thread, without a runtime: the fast path.
//!
//! A connection is used by one call at a time; idle ones wait in a pool of their service. Nothing but
//! the caller's own thread works on a call. A call that is not answered in time, or that nobody above
//! waits for any more, ends its connection: its callee learns by that, at once, that it need not go on.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{BODY_BYTES_MAX, Cause, HOPS_MAX, Method, ServiceName, Status};
use kumo_abi::control::{Carrier, End, FromNode, Granted, Open, Resume, ToNode};
use kumo_abi::frame::{Extensions, Header, Kind};
use kumo_abi::page::{InFlight, Side, Span};

use crate::carrier::local::{Link, Reader, Writer};
use crate::carrier::{Frame, Stop};
use crate::context::{Context, random};
use crate::error::CallError;
use crate::node::{Held, Node, Shared, why_it_ended};
use crate::rules::truth::{Event, Flight, Taken, may_retry};
use crate::time::now_ns;

/// Idle connections of a service that are kept. Above that they are closed.
const IDLE_MAX: usize = 64;

/// Attempts of one call that end on old connections, before the last failure is told.
const ATTEMPTS_MAX: usize = 4;

/// How long the cause of an end is waited for on one host: its node hears of a death in well below a
/// millisecond. The outcome itself does not depend on it.
const NOTICE_WAIT_NS: u64 = 2_000_000;

/// A service, to be called. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Service {
    node: Node,
    shared: Arc<ServiceShared>,
}

struct ServiceShared {
    name: ServiceName,
    idle: Mutex<Vec<Box<Connection>>>,
}

impl Node {
    /// A service by its name. Nothing is asked yet: the first call opens a connection.
    pub fn service(&self, name: &ServiceName) -> Service {
        let shared = ServiceShared { name: name.clone(), idle: Mutex::default() };
        Service { node: self.clone(), shared: Arc::new(shared) }
    }
}

impl Service {
    /// Its name.
    pub fn name(&self) -> &ServiceName {
        &self.shared.name
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
        Request { service: self, method, budget: None, priority: None, wait: false }
    }

    /// How many idle connections it has.
    pub fn idle(&self) -> usize {
        self.pool().len()
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Vec<Box<Connection>>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is being put together.
#[must_use = "nothing is called before `call`"]
#[derive(Clone)]
pub struct Request<'a> {
    service: &'a Service,
    method: &'a Method,
    budget: Option<Duration>,
    priority: Option<u8>,
    wait: bool,
}

/// What all attempts of one call share.
struct Prepared<'a> {
    context: &'a Context,
    method: &'a Method,
    name: u16,
    ext: Vec<u8>,
    priority: u8,
    deadline_ns: u64,
    wait: bool,
}

impl Prepared<'_> {
    fn in_flight(&self, call: u64, connection: u32, since_ns: u64) -> InFlight {
        let inner = self.context.inner();
        InFlight {
            call,
            root: inner.root,
            parent: inner.call,
            since_ns,
            budget_ns: self.deadline_ns.saturating_sub(since_ns),
            connection,
            name: self.name,
            hop: inner.hop + 1,
            thread: thread_id(),
        }
    }
}

impl Request<'_> {
    /// It may take this long. The budget of the context above is never exceeded.
    pub fn budget(mut self, budget: Duration) -> Self {
        self.budget = Some(budget);
        self
    }

    /// How urgent it is, where it must wait for a slot: 0 is the least, and the default at the root.
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Where all instances are taken, waits for one within the budget; else that is BUSY.
    pub fn wait_for_place(mut self) -> Self {
        self.wait = true;
        self
    }

    /// Calls, and waits for the reply.
    ///
    /// # Errors
    /// See [`CallError`]: its kind says whether trying again is safe.
    pub fn call(self, body: &[u8]) -> Result<Bytes, CallError> {
        let context = Context::current_or_root();
        let inner = context.inner();
        let now_ns_at_start = now_ns();
        let own_deadline_ns = self.budget.map_or(inner.deadline_ns, |budget| {
            now_ns_at_start.saturating_add(u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX))
        });
        let deadline_ns = own_deadline_ns.min(inner.deadline_ns);
        if inner.hop >= HOPS_MAX {
            let message = format!("a chain of calls has at most {HOPS_MAX} hops");
            return Err(CallError::NotExecuted {
                cause: Cause::Depth,
                message,
                path: context.chain().hops(),
                retry_after_ms: None,
            });
        }
        if now_ns_at_start >= deadline_ns {
            return Err(CallError::not_executed(Cause::Deadline, ""));
        }
        if context.upstream().is_some() && context.is_over() {
            return Err(CallError::not_executed(Cause::Cancelled, ""));
        }
        if body.len() as u64 > BODY_BYTES_MAX {
            let message =
                format!("a body has at most {BODY_BYTES_MAX} bytes, and this has {}", body.len());
            return Err(CallError::not_executed(Cause::TooLarge, message));
        }
        let mut ext = Vec::with_capacity(128);
        let extensions = Extensions {
            method: Some(self.method.as_str()),
            chain: context.chain(),
            baggage: inner.baggage.as_deref(),
            ..Extensions::default()
        };
        extensions
            .encode(&mut ext)
            .map_err(|error| CallError::not_executed(Cause::TooLarge, error.to_string()))?;
        let node = &self.service.node.shared;
        let prepared = Prepared {
            context: &context,
            method: self.method,
            name: node.program.name(&self.service.shared.name, self.method),
            ext,
            priority: self.priority.unwrap_or(inner.priority),
            deadline_ns,
            wait: self.wait,
        };
        for attempt in 1.. {
            let mut connection = self.service.connection(&prepared)?;
            let used_before = connection.used;
            let result = connection.call(&prepared, body);
            connection.used = true;
            let status = result.as_ref().map_or_else(CallError::status, |_| Status::Done);
            if connection.good {
                let mut idle = self.service.pool();
                if idle.len() < IDLE_MAX {
                    idle.push(connection);
                }
            }
            if attempt == ATTEMPTS_MAX || !may_retry(status, used_before) {
                return result;
            }
        }
        unreachable!("the last attempt returns")
    }
}

impl Service {
    /// An idle connection that nobody has said has ended, or a new one.
    fn connection(&self, prepared: &Prepared<'_>) -> Result<Box<Connection>, CallError> {
        loop {
            let idle = self.pool().pop();
            match idle {
                Some(idle) if self.node.shared.notice(idle.granted.connection).is_some() => {}
                Some(idle) => return Ok(idle),
                None => return self.open(prepared),
            }
        }
    }

    fn open(&self, prepared: &Prepared<'_>) -> Result<Box<Connection>, CallError> {
        let node = &self.node.shared;
        let request = node.request();
        let inner = prepared.context.inner();
        let open = Open {
            request,
            service: self.shared.name.clone(),
            budget_ms: prepared.deadline_ns.saturating_sub(now_ns()).div_ceil(1_000_000),
            chain: prepared.context.chain().hops(),
            from: inner.instance,
            ring: true,
            wait: prepared.wait,
        };
        let upstream = prepared.context.upstream();
        let answer =
            node.ask_and_wait(request, &ToNode::Open(open), upstream, prepared.deadline_ns)?;
        match (answer.message, answer.fd) {
            (FromNode::Granted(granted), Some(socket)) => {
                let name = self.shared.name.clone();
                Connection::new(node, name, granted, socket, prepared).map(Box::new)
            }
            (FromNode::Refused { cause, message, retry_after_ms, path, .. }, _) => {
                Err(CallError::NotExecuted { cause, message, path, retry_after_ms })
            }
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
    fn new(
        node: &Arc<Shared>,
        service: ServiceName,
        granted: Granted,
        socket: OwnedFd,
        prepared: &Prepared<'_>,
    ) -> Result<Connection, CallError> {
        let closed = |error: CallError| {
            node.tell(&ToNode::Closed { connection: granted.connection }, None);
            error
        };
        let Carrier::Local { ring } = granted.carrier else {
            let message = "this program has no carrier to other hosts";
            return Err(closed(CallError::not_executed(Cause::NoSuch, message)));
        };
        let Some(place) = node.program.place() else {
            let message = "this program has too many connections";
            return Err(closed(CallError::not_executed(Cause::Exhausted, message)));
        };
        // Before both have the other's page no call is sent, so none can be executed. It is in flight
        // already, though: its node shall see who waits for whom, and whether the callee stands still.
        let next_id = random();
        let shown = prepared.in_flight(next_id, granted.connection, now_ns());
        node.program.show(place, &shown);
        let joined = Link::join(socket, ring, prepared.deadline_ns);
        node.program.clear(place);
        let link = joined.map_err(|stop| {
            node.program.leave(place);
            let notice = match stop {
                Stop::Ended => why_it_ended(node, granted.connection, NOTICE_WAIT_NS),
                _ => None,
            };
            let cause = notice.map_or(cause_of(&stop), |notice| notice.cause);
            closed(CallError::not_executed(cause, stop.to_string()))
        })?;
        let (link, writer, reader) = link.split();
        let resume = Resume {
            connection: granted.connection,
            grant: granted.grant,
            end: End::Caller,
            service: service.clone(),
            instance: granted.serving.instance,
            peer: granted.peer.clone(),
            carrier: granted.carrier,
            receipts: None,
        };
        let held = Held::new(node, &link, resume);
        Ok(Connection {
            writer,
            reader,
            link,
            held,
            granted,
            service,
            place,
            next_id,
            used: false,
            good: true,
        })
    }

    fn call(&mut self, prepared: &Prepared<'_>, body: &[u8]) -> Result<Bytes, CallError> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1).max(1);
        if !self.granted.methods.iter().any(|pattern| pattern.allows(prepared.method.as_str())) {
            let message = format!("no grant for `{}` of {}", prepared.method, self.service);
            return Err(CallError::not_executed(Cause::Denied, message));
        }
        let inner = prepared.context.inner();
        let start_ns = now_ns();
        let budget_ns = prepared.deadline_ns.saturating_sub(start_ns);
        let header = Header {
            code: prepared.method.number(),
            priority: prepared.priority,
            hop: inner.hop + 1,
            budget_ns,
            root: inner.root,
            parent: inner.call,
            incarnation: self.granted.serving.incarnation,
            ..Header::new(Kind::Call, id)
        };
        let program = &self.held.shared.program;
        program.show(self.place, &prepared.in_flight(id, self.granted.connection, start_ns));
        let result = self.exchange(prepared, header, body);
        let program = &self.held.shared.program;
        program.clear(self.place);
        program.span(Span {
            number: 0,
            root: inner.root,
            call: id,
            parent: inner.call,
            start_ns,
            took_ns: now_ns() - start_ns,
            status: result.as_ref().map_or_else(CallError::status, |_| Status::Done).number(),
            name: prepared.name,
            hop: header.hop,
            side: Side::Caller,
        });
        result
    }

    /// Sends the call and hears how it ended.
    fn exchange(
        &mut self,
        prepared: &Prepared<'_>,
        header: Header,
        body: &[u8],
    ) -> Result<Bytes, CallError> {
        let mut flight = Flight::default();
        let sent = self.writer.send(header, &prepared.ext, body, prepared.deadline_ns);
        let mut stop = sent.err();
        while stop.is_none() {
            let next = self.reader.next(prepared.context.upstream(), prepared.deadline_ns);
            match next {
                Ok(frame) => match self.hear(&mut flight, header.call, frame) {
                    Ok(None) => {}
                    Ok(Some(result)) => return result,
                    Err(error) => stop = Some(error),
                },
                Err(error) => stop = Some(error),
            }
        }
        self.good = false;
        let stop = stop.unwrap_or(Stop::Ended);
        let taken = self.link.take_back(header.call);
        // What came while we took it back counts, too: a reply that was written is a reply.
        if taken == Taken::Yes && matches!(stop, Stop::Ended | Stop::Deadline) {
            while let Ok(Some(frame)) = self.reader.try_next() {
                if let Ok(Some(result)) = self.hear(&mut flight, header.call, frame) {
                    return result;
                }
            }
        }
        self.link.end();
        let cause = match stop {
            Stop::Ended => {
                let connection = self.granted.connection;
                let notice = why_it_ended(&self.held.shared, connection, NOTICE_WAIT_NS);
                notice.map_or(Cause::Lost, |notice| notice.cause)
            }
            ref other => cause_of(other),
        };
        let status = flight.step(Event::Stop(cause, taken)).unwrap_or(Status::Unknown(cause));
        let message = match stop {
            Stop::Hostile(_) | Stop::Passed(_) | Stop::Io(_) => stop.to_string(),
            _ => String::new(),
        };
        Err(CallError::from_status(status, message))
    }

    /// Takes a frame; the result if it decides one.
    fn hear(
        &mut self,
        flight: &mut Flight,
        id: u64,
        frame: Frame,
    ) -> Result<Option<Result<Bytes, CallError>>, Stop> {
        if frame.header.kind == Kind::Goaway {
            self.good = false;
        }
        // Others are late answers of calls that nobody waits for any more.
        if frame.header.call != id {
            return Ok(None);
        }
        let event = match frame.header.kind {
            Kind::Received => Event::Received,
            Kind::Reply => Event::Answer(Status::Done),
            Kind::Error => match Status::from_number(frame.header.code) {
                Some(Status::Done) | None => return Err(Stop::Passed("an error without a status")),
                Some(status) => Event::Answer(status),
            },
            _ => return Ok(None),
        };
        let Some(status) = flight.step(event) else { return Ok(None) };
        if status == Status::Done {
            return Ok(Some(Ok(frame.body)));
        }
        let extensions = frame.extensions()?;
        let mut error =
            CallError::from_status(status, String::from_utf8_lossy(&frame.body).into_owned());
        if let CallError::NotExecuted { cause, path, retry_after_ms, .. } = &mut error {
            path.extend(extensions.chain.hops());
            *retry_after_ms = extensions.retry_after_ms;
            self.good &= !matches!(cause, Cause::Draining | Cause::Stale);
        }
        Ok(Some(Err(error)))
    }
}

/// The cause that a stop has by itself.
fn cause_of(stop: &Stop) -> Cause {
    match stop {
        Stop::Ended => Cause::Lost,
        Stop::Hostile(_) | Stop::Passed(_) => Cause::Malformed,
        Stop::Deadline => Cause::Deadline,
        Stop::Cancelled => Cause::Cancelled,
        Stop::Io(_) => Cause::Exhausted,
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
        write!(f, "Service({})", self.shared.name)
    }
}
