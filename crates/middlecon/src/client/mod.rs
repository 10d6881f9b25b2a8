//! Calling: what threads and tasks share.

pub(crate) mod gather;
pub(crate) mod stream;
pub(crate) mod tasks;
pub(crate) mod threads;

use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{
    BODY_BYTES_MAX, Cause, HOPS_MAX, Hop, Method, NOTICE_WAIT_MS_MAX, Reentrancy, ServiceName,
    Status,
};
use kumo_abi::control::{End, Granted, Open, Resume};
use kumo_abi::frame::{Extensions, Group, Header, Kind, flags};
use kumo_abi::page::{InFlight, Side, Span};

use crate::carrier::remote::Facts;
use crate::carrier::{Frame, Link, Stop};
use crate::context::Context;
use crate::error::CallError;
use crate::node::{Held, Shared};
use crate::program::Names;
use crate::rules::truth::{Event, Flight};
use crate::time::now_ns;

/// Attempts of one call that end on old connections, before the last failure is told.
const ATTEMPTS_MAX: usize = 4;

/// How long the cause of an end is waited for on one host: its node hears of a death in well below a
/// millisecond. The outcome itself does not depend on it.
const NOTICE_WAIT_NS: u64 = 2_000_000;

/// How a call is to be made.
#[derive(Clone, Copy, Debug, Default)]
struct How {
    budget: Option<Duration>,
    priority: Option<u8>,
    wait: bool,
    group: Option<Group>,
}

/// What all attempts of one call share.
struct Prepared {
    context: Context,
    method: Method,
    name: u16,
    ext: Vec<u8>,
    priority: u8,
    began_ns: u64,
    deadline_ns: u64,
    wait: bool,
    thread: u32,
}

impl Prepared {
    /// Refuses what need not be sent to be known as not executed.
    fn new(
        node: &Shared,
        names: &Names,
        method: &Method,
        how: How,
        body_len_bytes: usize,
    ) -> Result<Prepared, CallError> {
        let began_ns = now_ns();
        let context = Context::current_or_root(how.budget, began_ns);
        let inner = context.inner();
        let own_deadline_ns = how.budget.map_or(inner.deadline_ns, |budget| {
            began_ns.saturating_add(u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX))
        });
        let deadline_ns = own_deadline_ns.min(inner.deadline_ns);
        if inner.hop >= HOPS_MAX {
            return Err(CallError::NotExecuted {
                cause: Cause::Depth,
                message: format!("a chain of calls has at most {HOPS_MAX} hops"),
                path: context.chain().hops(),
                retry_after_ms: None,
            });
        }
        if began_ns >= deadline_ns {
            return Err(CallError::not_executed(Cause::Deadline, ""));
        }
        if context.upstream().is_some() && context.is_over() {
            return Err(CallError::not_executed(Cause::Cancelled, ""));
        }
        if body_len_bytes as u64 > BODY_BYTES_MAX {
            let message =
                format!("a body has at most {BODY_BYTES_MAX} bytes, and this has {body_len_bytes}");
            return Err(CallError::not_executed(Cause::TooLarge, message));
        }
        let mut ext = Vec::with_capacity(128);
        let extensions = Extensions {
            method: Some(method.as_str()),
            chain: context.chain(),
            baggage: inner.baggage.as_deref(),
            group: how.group,
            ..Extensions::default()
        };
        extensions
            .encode(&mut ext)
            .map_err(|error| CallError::not_executed(Cause::TooLarge, error.to_string()))?;
        let priority = how.priority.unwrap_or(inner.priority);
        let name = names.number(&node.program, method);
        let (method, wait, thread) = (method.clone(), how.wait, 0);
        Ok(Prepared { context, method, name, ext, priority, began_ns, deadline_ns, wait, thread })
    }

    fn open(&self, request: u64, service: &ServiceName) -> Open {
        Open {
            request,
            service: service.clone(),
            budget_ms: self.deadline_ns.saturating_sub(now_ns()).div_ceil(1_000_000),
            chain: self.context.chain().hops(),
            from: self.context.inner().instance,
            ring: true,
            wait: self.wait,
        }
    }

    fn header(&self, granted: &Granted, id: u64, now_ns: u64) -> Header {
        let inner = self.context.inner();
        Header {
            code: self.method.number(),
            priority: self.priority,
            hop: inner.hop + 1,
            budget_ns: self.deadline_ns.saturating_sub(now_ns),
            root: inner.root,
            parent: inner.call,
            incarnation: granted.serving.incarnation,
            ..Header::new(Kind::Call, id)
        }
    }

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
            thread: self.thread,
        }
    }

    /// Shows a call that is over.
    fn show(&self, node: &Shared, id: u64, start_ns: u64, result: &Result<Bytes, CallError>) {
        let inner = self.context.inner();
        node.program.span(Span {
            number: 0,
            root: inner.root,
            call: id,
            parent: inner.call,
            start_ns,
            took_ns: now_ns() - start_ns,
            status: status(result).number(),
            name: self.name,
            hop: inner.hop + 1,
            side: Side::Caller,
        });
    }
}

fn status(result: &Result<Bytes, CallError>) -> Status {
    result.as_ref().map_or_else(CallError::status, |_| Status::Done)
}

/// Refuses what this callee would refuse, before anything is sent.
fn check_grant(
    granted: &Granted,
    service: &ServiceName,
    prepared: &Prepared,
) -> Result<(), CallError> {
    let method = &prepared.method;
    if !granted.methods.iter().any(|pattern| pattern.allows(method.as_str())) {
        let message = format!("no grant for `{method}` of {service}");
        return Err(CallError::not_executed(Cause::Denied, message));
    }
    let (chain, instance) = (prepared.context.chain(), granted.serving.instance);
    if granted.reentrancy == Reentrancy::Reject && chain.contains(instance) {
        let mut path = chain.hops();
        path.push(Hop { instance, service: service.clone() });
        let message = format!("the call would wait for {service} itself");
        let cause = Cause::Cycle;
        return Err(CallError::NotExecuted { cause, message, path, retry_after_ms: None });
    }
    Ok(())
}

fn resume(granted: &Granted, service: &ServiceName) -> Resume {
    Resume {
        connection: granted.connection,
        grant: granted.grant,
        end: End::Caller,
        service: service.clone(),
        instance: granted.serving.instance,
        peer: granted.peer.clone(),
        carrier: granted.carrier,
        receipts: None,
    }
}

/// A connection was joined when the node that had granted it was no more.
fn node_began_anew() -> CallError {
    CallError::not_executed(Cause::Lost, "the node of this host has begun anew meanwhile")
}

fn facts(held: &Held) -> Facts {
    let (node, connection) = (held.shared.clone(), held.id);
    Facts { node, connection, receipts: None, says_received: false }
}

/// How long to wait for the node to say why a connection ended. Across hosts the outcome depends on it.
fn notice_wait_ns(link: &Link, deadline_ns: u64) -> u64 {
    if link.is_remote() {
        (NOTICE_WAIT_MS_MAX * 1_000_000).min(deadline_ns.saturating_sub(now_ns()))
    } else {
        NOTICE_WAIT_NS
    }
}

/// How a call ended.
type Outcome = Result<Bytes, CallError>;

/// What was heard of a call that was sent: its outcome, and before that a stream if it asked for one.
#[derive(Clone, Copy, Debug, Default)]
struct Hearing {
    flight: Flight,
    /// Whether the callee may send a stream, and whether it has begun to.
    streams: bool,
    begun: bool,
}

/// What a frame of a call says. The last of a stream may say both.
#[derive(Debug, Default)]
struct Heard {
    chunk: Option<Bytes>,
    over: Option<Outcome>,
}

impl Hearing {
    fn of_stream() -> Hearing {
        Hearing { streams: true, ..Hearing::default() }
    }

    /// Takes a frame of the call. What a callee may not say is an error.
    fn hear(&mut self, frame: Frame) -> Result<Heard, Stop> {
        let header = &frame.header;
        let event = match header.kind {
            Kind::Received => Event::Received,
            Kind::Reply if header.flags & flags::STREAM != 0 => {
                if !self.streams || self.begun {
                    return Err(Stop::Passed("a stream that nobody asked for"));
                }
                self.begun = true;
                // A handler that sends is one that runs.
                Event::Received
            }
            Kind::Chunk if !self.begun => {
                return Err(Stop::Passed("a chunk of a stream that has not begun"));
            }
            Kind::Chunk => {
                let is_last = header.flags & flags::LAST != 0;
                let over = is_last.then(|| self.flight.step(Event::Answer(Status::Done)));
                let over = over.flatten().map(|_| Ok(Bytes::new()));
                let chunk = (!frame.body.is_empty()).then_some(frame.body);
                return Ok(Heard { chunk, over });
            }
            Kind::Reply => Event::Answer(Status::Done),
            Kind::Error => match Status::from_number(header.code) {
                Some(Status::Done) | None => return Err(Stop::Passed("an error without a status")),
                Some(status) => Event::Answer(status),
            },
            _ => return Ok(Heard::default()),
        };
        let Some(status) = self.flight.step(event) else { return Ok(Heard::default()) };
        if status == Status::Done {
            return Ok(Heard { over: Some(Ok(frame.body)), chunk: None });
        }
        let extensions = frame.extensions()?;
        let message = String::from_utf8_lossy(&frame.body).into_owned();
        let mut error = CallError::from_status(status, message);
        if let CallError::NotExecuted { path, retry_after_ms, .. } = &mut error {
            path.extend(extensions.chain.hops());
            *retry_after_ms = extensions.retry_after_ms;
        }
        Ok(Heard { over: Some(Err(error)), chunk: None })
    }
}

/// Credit for pieces of a stream that were taken.
fn credit(call: u64, taken: u32) -> Header {
    Header { code: taken, ..Header::new(Kind::Credit, call) }
}

/// Whether a connection is of use after this result: its callee goes on taking calls.
fn is_good_after(result: &Result<Bytes, CallError>) -> bool {
    !matches!(result, Err(CallError::NotExecuted { cause: Cause::Draining | Cause::Stale, .. }))
}

/// The cause that a stop has by itself.
fn cause_of(stop: &Stop) -> Cause {
    match stop {
        Stop::Ended => Cause::Lost,
        Stop::Hostile(_) | Stop::Passed(_) => Cause::Malformed,
        Stop::Refused(_) => Cause::Denied,
        Stop::Deadline => Cause::Deadline,
        Stop::Cancelled => Cause::Cancelled,
        Stop::Io(_) => Cause::Exhausted,
    }
}

/// What is said beside a cause.
fn words(stop: &Stop) -> String {
    match stop {
        Stop::Hostile(_) | Stop::Passed(_) | Stop::Refused(_) | Stop::Io(_) => stop.to_string(),
        Stop::Ended | Stop::Deadline | Stop::Cancelled => String::new(),
    }
}
