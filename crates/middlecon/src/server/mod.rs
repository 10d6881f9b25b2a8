//! Serving calls: what threads and tasks share.
//!
//! A call is checked (grant, incarnation, method, cycle), waits for a slot, is *taken* (its receipt is in
//! a page before the handler runs), handled, answered. A handler that panics is told as PANIC and
//! harms nobody else. A peer that breaks the protocol loses its connection, and nobody else notices.

pub(crate) mod stream;
pub(crate) mod tasks;
pub(crate) mod threads;

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kumo_abi::call::{
    BODY_BYTES_MAX, CREDIT_MAX, Cause, ERROR_CODE_MAX, InstanceId, Method, MethodPattern,
    Reentrancy, SLOTS_MAX, ServiceName, Status,
};
use kumo_abi::control::{Carrier, End, FromNode, Incoming, Resume, Serve, Serving, ToNode};
use kumo_abi::frame::{Chain, Extensions, FrameError, Header, Kind, message_within};
use kumo_abi::page::{Side, Span};

use crate::carrier::remote::Facts;
use crate::carrier::{Link, Writer};
use crate::context::{Context, Inner};
use crate::error::Failure;
use crate::gate::{Closed, Gate};
use crate::node::{Accept, Node, NodeError, Shared};
use crate::notices::ConnectionId;
use crate::program::Names;
use crate::time::now_ns;

/// How long a new connection may take to say hello, and a caller to read its answers.
const SLOW_NS_MAX: u64 = 2_000_000_000;

/// How long the node may take to put a server into the directory.
const SERVE_NS_MAX: u64 = 5_000_000_000;

/// When a caller that was told BUSY should come again.
const RETRY_AFTER_MS: u32 = 10;

/// Most connections that one server has at once.
pub const CONNECTIONS_MAX: usize = 1_000;

/// What every server is set to.
struct Options {
    node: Node,
    service: ServiceName,
    slots: u16,
    credit: u16,
    concurrent: u16,
    reentrancy: Reentrancy,
    ring: bool,
}

impl Options {
    fn new(node: &Node, service: &ServiceName, concurrent: u16) -> Options {
        let (node, service) = (node.clone(), service.clone());
        let reentrancy = Reentrancy::Reject;
        Options { node, service, slots: 64, credit: 64, concurrent, reentrancy, ring: true }
    }

    /// Asks the node for a place in the directory, and serves from the moment that it says yes. `hear` is
    /// called on the node's thread.
    fn register<H: Send + Sync + 'static>(
        &self,
        core: &Arc<Core<H>>,
        accept: Arc<dyn Accept>,
        hear: impl FnOnce(FromNode) + Send + 'static,
    ) -> u64 {
        let node = &self.node.shared;
        let request = node.request();
        let serve = Serve {
            request,
            service: self.service.clone(),
            resumes: None,
            slots: self.slots.min(SLOTS_MAX),
            credit: self.credit.min(CREDIT_MAX),
            concurrent: self.concurrent,
            reentrancy: self.reentrancy,
            ring: self.ring,
        };
        let message = ToNode::Serve(serve.clone());
        let (core, register) = (core.clone(), node.clone());
        node.ask(
            request,
            &message,
            Box::new(move |answer| {
                // Registered on the node's thread: a caller may be its next message.
                if let FromNode::Serving { serving, .. } = &answer.message {
                    *core.serving() = Some(*serving);
                    let serve = Serve { resumes: Some(*serving), ..serve };
                    register.serves(serving.instance, serve, accept);
                }
                hear(answer.message);
            }),
        );
        request
    }

    fn registered(&self, answer: Option<FromNode>, request: u64) -> Result<Serving, NodeError> {
        match answer {
            Some(FromNode::Serving { serving, .. }) => Ok(serving),
            Some(FromNode::Refused { cause, message, .. }) => {
                Err(NodeError::Refused { cause, message })
            }
            _ => {
                self.node.shared.forget(request);
                let message = "the node did not answer".to_owned();
                Err(NodeError::Refused { cause: Cause::NoNode, message })
            }
        }
    }
}

/// Handlers in the order of the numbers of their methods, and one for all others.
struct Methods<H> {
    own: Vec<(u32, Method, H)>,
    any: Option<H>,
}

impl<H> Default for Methods<H> {
    fn default() -> Methods<H> {
        Methods { own: Vec::new(), any: None }
    }
}

impl<H> Methods<H> {
    fn add(&mut self, method: &Method, handler: H) {
        let number = method.number();
        match self.own.binary_search_by_key(&number, |(number, ..)| *number) {
            Ok(at) => panic!("{method} and {} have one number; rename one", self.own[at].1),
            Err(at) => self.own.insert(at, (number, method.clone(), handler)),
        }
    }

    fn find(&self, number: u32, method: &str) -> Option<&H> {
        let at = self.own.binary_search_by_key(&number, |(number, ..)| *number).ok();
        let own = at.map(|at| &self.own[at]).filter(|(_, known, _)| known.as_str() == method);
        own.map(|(.., handler)| handler).or(self.any.as_ref())
    }
}

/// A server at work. When it is dropped, its calls are finished for at most a second.
pub struct Server {
    core: Arc<dyn Drains>,
    serving: Serving,
    node: Node,
}

impl Server {
    /// Who it is.
    pub fn instance(&self) -> InstanceId {
        self.serving.instance
    }

    /// The node it serves through.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Takes no new calls, finishes those at work, and ends. False if some were not over in time: their
    /// connections are ended, so that their callers learn of it. Blocks.
    pub fn drain(&self, within: Duration) -> bool {
        self.node.shared.tell(&ToNode::Drain { instance: self.serving.instance }, None);
        self.core.drain(within)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.drain(Duration::from_secs(1));
        self.node.shared.serves_no_more(self.serving.instance);
    }
}

trait Drains: Send + Sync {
    fn drain(&self, within: Duration) -> bool;
}

/// What the connections of one server share.
struct Core<H> {
    node: Arc<Shared>,
    service: ServiceName,
    names: Names,
    /// The chain of a call that began at its caller: this server alone.
    chain: OnceLock<Bytes>,
    serving: Mutex<Option<Serving>>,
    gate: Arc<Gate>,
    reentrancy: Reentrancy,
    methods: Methods<H>,
    draining: AtomicBool,
    connections: Mutex<HashMap<ConnectionId, Weak<Alive>>>,
    changed: Condvar,
}

/// A connection that is served, for who ends it from outside.
struct Alive {
    link: Arc<Link>,
    writer: Mutex<Writer>,
    busy: AtomicBool,
    /// Whether its caller was told to make its next calls elsewhere.
    sent_away: AtomicBool,
}

impl Alive {
    fn new(link: &Arc<Link>, writer: Writer) -> Arc<Alive> {
        Arc::new(Alive {
            link: link.clone(),
            writer: Mutex::new(writer),
            busy: AtomicBool::new(false),
            sent_away: AtomicBool::new(false),
        })
    }

    /// Tells the caller, once, to make its next calls elsewhere. Never waits: where somebody is sending at
    /// this moment, or there is no room, the next answer is preceded by it. Whom it does not reach is told
    /// DRAINING by every call.
    fn send_away(&self) {
        let Ok(mut writer) = self.writer.try_lock() else { return };
        if !self.sent_away.load(Ordering::Relaxed)
            && let Ok(true) = writer.try_send(Header::new(Kind::Goaway, 0), &[], &[])
        {
            self.sent_away.store(true, Ordering::Relaxed);
        }
    }
}

/// Why a call is not run, and what is said beside it.
struct No {
    cause: Cause,
    message: String,
    path: Vec<u8>,
    retry_after_ms: Option<u32>,
}

fn no(cause: Cause, message: impl Into<String>) -> No {
    No { cause, message: message.into(), path: Vec::new(), retry_after_ms: None }
}

impl From<Closed> for No {
    fn from(closed: Closed) -> No {
        match closed {
            Closed::Busy => No {
                retry_after_ms: Some(RETRY_AFTER_MS),
                ..no(Cause::Busy, "all slots are taken, and as many wait as may")
            },
            Closed::Deadline => no(Cause::Deadline, "while waiting for a slot"),
            Closed::Cancelled => no(Cause::Cancelled, "while waiting for a slot"),
            Closed::Exhausted => no(Cause::Exhausted, "the callee has no descriptor left"),
        }
    }
}

impl No {
    /// The frame that says it, and its extensions.
    fn frame(&self, call: u64) -> Result<(Header, Vec<u8>), FrameError> {
        let mut ext = Vec::new();
        let chain = Chain::decode(&self.path).unwrap_or_default();
        let retry_after_ms = self.retry_after_ms;
        Extensions { chain, retry_after_ms, ..Extensions::default() }.encode(&mut ext)?;
        let code = Status::NotExecuted(self.cause).number();
        Ok((Header { code, ..Header::new(Kind::Error, call) }, ext))
    }
}

/// What is sent when a call that was taken is over.
fn answer(call: u64, status: Status) -> Header {
    let kind = if status == Status::Done { Kind::Reply } else { Kind::Error };
    Header { code: status.number(), ..Header::new(kind, call) }
}

/// How a handler ended: its result, or its panic.
fn outcome(ran: std::thread::Result<Result<Bytes, Failure>>) -> (Status, Bytes) {
    match ran {
        Ok(Ok(body)) if body.len() as u64 > BODY_BYTES_MAX => {
            (Status::Unknown(Cause::TooLarge), Bytes::from_static(b"the reply is above 1 GiB"))
        }
        Ok(Ok(body)) => (Status::Done, body),
        Ok(Err(failure)) => {
            let message = message_within(&failure.message).to_owned();
            (Status::Failed(failure.code.min(ERROR_CODE_MAX)), message.into())
        }
        Err(panic) => (Status::Unknown(Cause::Panic), panic_message(&*panic).into()),
    }
}

impl<H> Core<H> {
    fn new(options: &Options, methods: Methods<H>) -> Core<H> {
        Core {
            node: options.node.shared.clone(),
            service: options.service.clone(),
            names: Names::new(&options.service),
            chain: OnceLock::new(),
            serving: Mutex::new(None),
            gate: Gate::new(options.slots.min(SLOTS_MAX), options.credit.min(CREDIT_MAX)),
            reentrancy: options.reentrancy,
            methods,
            draining: AtomicBool::new(false),
            connections: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn serving(&self) -> MutexGuard<'_, Option<Serving>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<ConnectionId, Weak<Alive>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a connection, so that a crowd of callers does not become a crowd of threads.
    fn admit(&self, connection: ConnectionId) -> bool {
        let mut connections = self.connections();
        let room = connections.len() < CONNECTIONS_MAX && !self.draining.load(Ordering::SeqCst);
        if room {
            connections.insert(connection, Weak::new());
        }
        room
    }

    fn left(&self, connection: ConnectionId) {
        self.connections().remove(&connection);
        self.changed.notify_all();
    }

    fn facts(&self, incoming: &Incoming, connection: ConnectionId) -> Facts {
        Facts {
            node: self.node.clone(),
            connection,
            receipts: incoming.receipts,
            says_received: incoming.carrier == Carrier::Spliced,
        }
    }

    fn resume(&self, incoming: &Incoming) -> Resume {
        Resume {
            connection: incoming.connection,
            grant: incoming.grant,
            end: End::Callee,
            service: self.service.clone(),
            instance: incoming.instance,
            peer: incoming.peer.clone(),
            carrier: incoming.carrier,
            receipts: incoming.receipts,
        }
    }

    /// Whether a call may run, before it waits for a slot: its handler, and whether it has come through
    /// this instance before and runs in the slot of the call above.
    fn check(
        &self,
        header: &Header,
        extensions: &Extensions<'_>,
        method: &str,
        methods: &[MethodPattern],
        serving: Serving,
    ) -> Result<(&H, bool), No> {
        if self.draining.load(Ordering::SeqCst) {
            return Err(no(Cause::Draining, "the callee takes no new calls"));
        }
        if header.incarnation != serving.incarnation {
            return Err(no(Cause::Stale, "another instance has followed the one that was meant"));
        }
        if !methods.iter().any(|pattern| pattern.allows(method)) {
            return Err(no(Cause::Denied, format!("no grant for `{method}` of {}", self.service)));
        }
        let Some(handler) = self.methods.find(header.code, method) else {
            return Err(no(Cause::NoSuch, format!("{} has no method `{method}`", self.service)));
        };
        let comes_again = extensions.chain.contains(serving.instance);
        if comes_again && self.reentrancy == Reentrancy::Reject {
            let mut path = extensions.chain.bytes().to_vec();
            Chain::push(&mut path, serving.instance, &self.service);
            let message = format!("the call would wait for {} itself", self.service);
            return Err(No { path: within_a_chain(path), ..no(Cause::Cycle, message) });
        }
        Ok((handler, comes_again && self.reentrancy == Reentrancy::Reenter))
    }

    /// What calls of the handler inherit.
    fn context(
        &self,
        header: &Header,
        extensions: &Extensions<'_>,
        serving: Serving,
        link: &Arc<Link>,
        deadline_ns: u64,
    ) -> Context {
        let lengthened = || {
            let before = extensions.chain.bytes();
            let mut chain = Vec::with_capacity(before.len() + 64);
            chain.extend_from_slice(before);
            Chain::push(&mut chain, serving.instance, &self.service);
            Bytes::from(chain)
        };
        let chain = if extensions.chain.bytes().is_empty() {
            self.chain.get_or_init(lengthened).clone()
        } else {
            lengthened()
        };
        Context::new(Inner {
            root: header.root,
            call: header.call,
            hop: header.hop,
            priority: header.priority,
            deadline_ns,
            chain,
            baggage: extensions.baggage.map(Bytes::copy_from_slice),
            instance: Some(serving.instance),
            // Who sends a pulse does not wait for it, and may be gone by now.
            upstream: (header.kind != Kind::Pulse).then(|| link.clone() as _),
        })
    }

    /// Shows a call that is over.
    fn show(&self, header: &Header, method: &str, start_ns: u64, status: Status) {
        let Some(name) = self.names.number_of(&self.node.program, method) else { return };
        self.node.program.span(Span {
            number: 0,
            root: header.root,
            call: header.call,
            parent: header.parent,
            start_ns,
            took_ns: now_ns() - start_ns,
            status: status.number(),
            name,
            hop: header.hop,
            side: Side::Callee,
        });
    }
}

impl<H: Send + Sync> Drains for Core<H> {
    fn drain(&self, within: Duration) -> bool {
        // Either a connection that begins a call sees this, or we see that it is busy.
        self.draining.store(true, Ordering::SeqCst);
        let until = Instant::now() + within;
        let mut connections = self.connections();
        for connection in connections.values().filter_map(Weak::upgrade) {
            connection.send_away();
            if !connection.busy.load(Ordering::SeqCst) {
                connection.link.end();
            }
        }
        while !connections.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(connections, left);
            connections = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        connections.values().filter_map(Weak::upgrade).for_each(|left| left.link.end());
        connections.is_empty()
    }
}

/// A path that is within what a chain may hold: without its beginning, if it is too long. The beginning
/// is no part of the circle.
fn within_a_chain(path: Vec<u8>) -> Vec<u8> {
    if Chain::decode(&path).is_ok() {
        return path;
    }
    let first = 9 + path.get(8).map_or(0, |len_bytes| usize::from(*len_bytes));
    path.get(first..).map(<[u8]>::to_vec).unwrap_or_default()
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    message_within(text.unwrap_or("the handler panicked")).to_owned()
}
