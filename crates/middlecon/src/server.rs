//! Serving calls with a thread for each connection, without a runtime.
//!
//! A call is checked (grant, incarnation, method, cycle), waits for a slot, is *taken* (its receipt is in
//! the page before the handler runs), handled, answered. A handler that panics is told as PANIC and
//! harms nobody else. A peer that breaks the protocol loses its connection, and nobody else notices.

use std::any::Any;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kumo_abi::call::{
    CREDIT_MAX, Cause, InstanceId, Method, MethodPattern, Peer, Reentrancy, SLOTS_MAX, ServiceName,
    Status,
};
use kumo_abi::control::{
    Carrier, Connection, End, FromNode, Incoming, Resume, Serve, Serving, ToNode,
};
use kumo_abi::frame::{Chain, Extensions, Header, Kind, check_method, message_within};
use kumo_abi::page::{Side, Span};

use crate::carrier::local::{Link, Reader, Writer};
use crate::carrier::{Frame, Stop};
use crate::context::{Context, Inner};
use crate::error::Failure;
use crate::gate::{Closed, Gate};
use crate::node::{Accept, Held, Node, NodeError, Shared};
use crate::time::{NEVER_NS, now_ns};

/// How long a new connection may take to say hello.
const HELLO_NS_MAX: u64 = 2_000_000_000;

/// How long the node may take to put a server into the directory.
const SERVE_NS_MAX: u64 = 5_000_000_000;

/// When a caller that was told BUSY should come again.
const RETRY_AFTER_MS: u32 = 10;

/// Most connections that one server has at once; a thread each.
pub const CONNECTIONS_MAX: usize = 1_000;

/// A call, as its handler sees it.
#[derive(Debug)]
pub struct Call<'a> {
    /// Which method.
    pub method: &'a str,
    /// What was sent.
    pub body: Bytes,
    /// Who calls, as the nodes say.
    pub peer: &'a Peer,
    /// What calls of the handler inherit; it is entered already.
    pub context: &'a Context,
    session: Option<&'a mut (dyn Any + Send)>,
}

impl Call<'_> {
    /// The state of this connection, as [`Serving::session`](Builder::session) made it.
    pub fn session<T: 'static>(&mut self) -> Option<&mut T> {
        self.session.as_mut()?.downcast_mut()
    }
}

type Handler = dyn Fn(&mut Call<'_>) -> Result<Bytes, Failure> + Send + Sync;
type NewSession = dyn Fn(&Peer) -> Box<dyn Any + Send> + Send + Sync;

/// A server that is being put together.
#[must_use = "nothing is served before `start`"]
pub struct Builder {
    node: Node,
    service: ServiceName,
    slots: u16,
    credit: u16,
    reentrancy: Reentrancy,
    ring: bool,
    methods: HashMap<u32, (Method, Arc<Handler>)>,
    any: Option<Arc<Handler>>,
    session: Option<Arc<NewSession>>,
}

impl Node {
    /// Begins a server of this service: 64 slots, as many calls that may wait, no reentrance.
    pub fn serve(&self, service: &ServiceName) -> Builder {
        Builder {
            node: self.clone(),
            service: service.clone(),
            slots: 64,
            credit: 64,
            reentrancy: Reentrancy::Reject,
            ring: true,
            methods: HashMap::new(),
            any: None,
            session: None,
        }
    }
}

impl Builder {
    /// Handlers that run at once; at most 4,096. One more for each hop class is reserved.
    pub fn slots(mut self, slots: u16) -> Builder {
        self.slots = slots.min(SLOTS_MAX);
        self
    }

    /// Calls that may wait for a slot; more are BUSY. At most 4,096.
    pub fn credit(mut self, credit: u16) -> Builder {
        self.credit = credit.min(CREDIT_MAX);
        self
    }

    /// What is done with calls that came through this instance.
    pub fn reentrancy(mut self, reentrancy: Reentrancy) -> Builder {
        self.reentrancy = reentrancy;
        self
    }

    /// Whether connections on this host have rings (512 KiB each). Without, calls travel as packets.
    pub fn ring(mut self, ring: bool) -> Builder {
        self.ring = ring;
        self
    }

    /// Handles a method.
    ///
    /// # Panics
    /// If two of a server's methods have the same number, which is a hash of the name: rename one.
    pub fn method(
        mut self,
        method: &Method,
        handler: impl Fn(&mut Call<'_>) -> Result<Bytes, Failure> + Send + Sync + 'static,
    ) -> Builder {
        let former = self.methods.insert(method.number(), (method.clone(), Arc::new(handler)));
        assert!(
            former.is_none(),
            "{method} and {former:?} have one number",
            former = former.map(|f| f.0)
        );
        self
    }

    /// Handles every method that has no handler of its own.
    pub fn any(
        mut self,
        handler: impl Fn(&mut Call<'_>) -> Result<Bytes, Failure> + Send + Sync + 'static,
    ) -> Builder {
        self.any = Some(Arc::new(handler));
        self
    }

    /// Makes a state for each connection; it is dropped when the connection ends.
    pub fn session<T: Any + Send>(
        mut self,
        make: impl Fn(&Peer) -> T + Send + Sync + 'static,
    ) -> Builder {
        self.session = Some(Arc::new(move |peer| Box::new(make(peer))));
        self
    }

    /// Tells the node, and serves from now on.
    ///
    /// # Errors
    /// The node refuses or does not answer; nothing is served then.
    pub fn start(self) -> Result<Server, NodeError> {
        let node = self.node.shared.clone();
        let request = node.request();
        let serve = Serve {
            request,
            service: self.service.clone(),
            resumes: None,
            slots: self.slots,
            credit: self.credit,
            concurrent: 1,
            reentrancy: self.reentrancy,
            ring: self.ring,
        };
        let core = Arc::new(Core {
            node: node.clone(),
            service: self.service,
            serving: Mutex::new(None),
            gate: Gate::new(self.slots, self.credit),
            reentrancy: self.reentrancy,
            methods: self.methods,
            any: self.any,
            session: self.session,
            draining: AtomicBool::new(false),
            connections: Mutex::default(),
            changed: Condvar::new(),
        });
        let message = ToNode::Serve(serve.clone());
        let (send, answer) = std::sync::mpsc::sync_channel(1);
        let (accept, register) = (core.clone(), node.clone());
        node.ask(
            request,
            &message,
            Box::new(move |answer| {
                // Registered on the node's thread: a caller may be its next message.
                if let FromNode::Serving { serving, .. } = &answer.message {
                    *accept.serving() = Some(*serving);
                    let serve = Serve { resumes: Some(*serving), ..serve };
                    register.serves(serving.instance, serve, accept.clone());
                }
                let _ = send.send(answer.message);
            }),
        );
        match answer.recv_timeout(Duration::from_nanos(SERVE_NS_MAX)) {
            Ok(FromNode::Serving { serving, .. }) => Ok(Server { core, serving, node: self.node }),
            Ok(FromNode::Refused { cause, message, .. }) => {
                Err(NodeError::Refused { cause, message })
            }
            _ => {
                node.forget(request);
                let message = "the node did not answer".to_owned();
                Err(NodeError::Refused { cause: Cause::NoNode, message })
            }
        }
    }
}

/// A server at work. When it is dropped, its calls are finished for at most a second.
pub struct Server {
    core: Arc<Core>,
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
    /// connections are ended, so that their callers learn of it.
    pub fn drain(&self, within: Duration) -> bool {
        let core = &self.core;
        core.draining.store(true, Ordering::SeqCst);
        core.node.tell(&ToNode::Drain { instance: self.serving.instance }, None);
        let until = Instant::now() + within;
        let mut connections = core.connections();
        for connection in connections.values().filter_map(Weak::upgrade) {
            if !connection.busy.load(Ordering::SeqCst) {
                connection.link.end();
            }
        }
        while !connections.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = core.changed.wait_timeout(connections, left);
            connections = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        connections.values().filter_map(Weak::upgrade).for_each(|left| left.link.end());
        connections.is_empty()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.drain(Duration::from_secs(1));
        self.core.node.serves_no_more(self.serving.instance);
    }
}

struct Core {
    node: Arc<Shared>,
    service: ServiceName,
    serving: Mutex<Option<Serving>>,
    gate: Gate,
    reentrancy: Reentrancy,
    methods: HashMap<u32, (Method, Arc<Handler>)>,
    any: Option<Arc<Handler>>,
    session: Option<Arc<NewSession>>,
    draining: AtomicBool,
    connections: Mutex<HashMap<Connection, Weak<Alive>>>,
    changed: Condvar,
}

/// A connection that a thread serves, for who ends it from outside.
struct Alive {
    link: Arc<Link>,
    busy: AtomicBool,
}

impl Core {
    fn serving(&self) -> MutexGuard<'_, Option<Serving>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<Connection, Weak<Alive>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accept for Core {
    fn accept(self: Arc<Self>, incoming: Incoming, socket: OwnedFd) {
        let connection = incoming.connection;
        let mut connections = self.connections();
        // The place is taken here, so that a crowd of callers does not become a crowd of threads.
        let room = connections.len() < CONNECTIONS_MAX && !self.draining.load(Ordering::SeqCst);
        let core = self.clone();
        let started = room.then(|| {
            connections.insert(connection, Weak::new());
            let thread = std::thread::Builder::new().name(format!("serve {}", self.service));
            thread.spawn(move || {
                let stop = core.serve(incoming, socket);
                tracing::debug!(connection, %stop, "a caller's connection has ended");
                core.connections().remove(&connection);
                core.changed.notify_all();
            })
        });
        if let Some(Ok(_)) = started {
            return;
        }
        connections.remove(&connection);
        drop(connections);
        self.node.tell(&ToNode::Closed { connection }, None);
    }
}

/// What one connection has.
struct Conversation<'a> {
    core: &'a Core,
    serving: Serving,
    writer: Writer,
    link: Arc<Link>,
    peer: Peer,
    methods: Vec<MethodPattern>,
    connection: Connection,
    session: Option<Box<dyn Any + Send>>,
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

impl Core {
    /// Serves one connection until it ends; why it did.
    fn serve(&self, incoming: Incoming, socket: OwnedFd) -> Stop {
        let connection = incoming.connection;
        let Carrier::Local { ring } = incoming.carrier else {
            self.node.tell(&ToNode::Closed { connection }, None);
            return Stop::Passed("a carrier that this program does not have");
        };
        let link = match Link::join(socket, ring, now_ns() + HELLO_NS_MAX) {
            Ok(link) => link,
            Err(stop) => {
                self.node.tell(&ToNode::Closed { connection }, None);
                return stop;
            }
        };
        let (link, writer, mut reader) = link.split();
        let alive = Arc::new(Alive { link: link.clone(), busy: AtomicBool::new(false) });
        self.connections().insert(connection, Arc::downgrade(&alive));
        let Some(serving) = *self.serving() else { return Stop::Ended };
        let resume = Resume {
            connection,
            grant: incoming.grant,
            end: End::Callee,
            service: self.service.clone(),
            instance: incoming.instance,
            peer: incoming.peer.clone(),
            carrier: incoming.carrier,
            receipts: incoming.receipts,
        };
        let held = Held::new(&self.node, &link, resume);
        let session = self.session.as_ref().map(|make| make(&incoming.peer));
        let mut conversation = Conversation {
            core: self,
            serving,
            writer,
            link: link.clone(),
            peer: incoming.peer,
            methods: incoming.methods,
            connection,
            session,
        };
        let stop = conversation.until_it_ends(&mut reader, &alive);
        link.end();
        drop((conversation, reader, alive, link, held));
        stop
    }
}

impl Conversation<'_> {
    fn until_it_ends(&mut self, reader: &mut Reader, alive: &Alive) -> Stop {
        loop {
            let frame = match reader.next(None, NEVER_NS) {
                Ok(frame) => frame,
                Err(stop) => return stop,
            };
            // Either whoever drains sees that we are busy, or we see that they drain.
            alive.busy.store(true, Ordering::SeqCst);
            let answered = match frame.header.kind {
                Kind::Call => self.call(&frame),
                Kind::Pulse => self.pulse(&frame),
                // A cancel of a call that is over already: a connection is in one call at a time.
                Kind::Cancel | Kind::Hello | Kind::Pong => Ok(()),
                Kind::Ping => self.send(Header::new(Kind::Pong, frame.header.call), &[], &[]),
                _ => Err(Stop::Passed("a frame that only callees send")),
            };
            alive.busy.store(false, Ordering::SeqCst);
            match answered {
                Ok(()) if self.core.draining.load(Ordering::SeqCst) => return Stop::Ended,
                Ok(()) => {}
                Err(stop) => return stop,
            }
        }
    }

    fn send(&mut self, header: Header, ext: &[u8], body: &[u8]) -> Result<(), Stop> {
        // A caller that does not read its answers does not hold a thread for long.
        self.writer.send(header, ext, body, now_ns() + HELLO_NS_MAX)
    }

    fn call(&mut self, frame: &Frame) -> Result<(), Stop> {
        let arrived_ns = now_ns();
        let deadline_ns = arrived_ns.saturating_add(frame.header.budget_ns);
        let extensions = frame.extensions()?;
        let method = check_method(&frame.header, &extensions)?;
        match self.run(frame, &extensions, method, deadline_ns) {
            Ok(None) => Ok(()),
            Ok(Some((status, body))) => {
                let kind = if status == Status::Done { Kind::Reply } else { Kind::Error };
                let header =
                    Header { code: status.number(), ..Header::new(kind, frame.header.call) };
                self.send(header, &[], &body)
            }
            Err(no) => {
                let mut ext = Vec::new();
                let chain = Chain::decode(&no.path).unwrap_or_default();
                let said = Extensions {
                    chain,
                    retry_after_ms: no.retry_after_ms,
                    ..Extensions::default()
                };
                said.encode(&mut ext)?;
                let code = Status::NotExecuted(no.cause).number();
                let header = Header { code, ..Header::new(Kind::Error, frame.header.call) };
                self.send(header, &ext, message_within(&no.message).as_bytes())
            }
        }
    }

    /// Runs a call, or says why not. Nothing is said to a caller that has taken its call back.
    fn run(
        &mut self,
        frame: &Frame,
        extensions: &Extensions<'_>,
        method: &str,
        deadline_ns: u64,
    ) -> Result<Option<(Status, Bytes)>, No> {
        let (core, header) = (self.core, &frame.header);
        if core.draining.load(Ordering::SeqCst) {
            return Err(no(Cause::Draining, "the callee takes no new calls"));
        }
        if header.incarnation != self.serving.incarnation {
            return Err(no(Cause::Stale, "another instance has followed the one that was meant"));
        }
        if !self.methods.iter().any(|pattern| pattern.allows(method)) {
            return Err(no(Cause::Denied, format!("no grant for `{method}` of {}", core.service)));
        }
        let handler = core.methods.get(&header.code).filter(|(known, _)| known.as_str() == method);
        let Some(handler) = handler.map(|(_, handler)| handler).or(core.any.as_ref()) else {
            return Err(no(Cause::NoSuch, format!("{} has no method `{method}`", core.service)));
        };
        let comes_again = extensions.chain.contains(self.serving.instance);
        if comes_again && core.reentrancy == Reentrancy::Reject {
            let mut path = extensions.chain.bytes().to_vec();
            Chain::push(&mut path, self.serving.instance, &core.service);
            // A path of 17 is one more than a chain may have; its beginning is not part of the circle.
            let message = format!("the call would wait for {} itself", core.service);
            return Err(No { path: within_a_chain(path), ..no(Cause::Cycle, message) });
        }
        let pass = if comes_again && core.reentrancy == Reentrancy::Reenter {
            core.gate.lent()
        } else {
            core.gate.pass(header.hop, header.priority, deadline_ns).map_err(
                |closed| match closed {
                    Closed::Busy => No {
                        retry_after_ms: Some(RETRY_AFTER_MS),
                        ..no(Cause::Busy, "all slots are taken, and as many wait as may")
                    },
                    Closed::Deadline => no(Cause::Deadline, "while waiting for a slot"),
                },
            )?
        };
        let start_ns = now_ns();
        if start_ns >= deadline_ns {
            return Err(no(Cause::Deadline, "before the handler began"));
        }
        let mut chain = extensions.chain.bytes().to_vec();
        Chain::push(&mut chain, self.serving.instance, &core.service);
        let context = Context::new(Inner {
            root: header.root,
            call: header.call,
            hop: header.hop,
            priority: header.priority,
            deadline_ns,
            chain: chain.into(),
            baggage: extensions.baggage.map(Bytes::copy_from_slice),
            instance: Some(self.serving.instance),
            upstream: Some(self.link.clone()),
        });
        // From here on the call is taken. A node that ended the connection meanwhile has read receipts,
        // or will find this one; and a caller that took it back is told that it did not run.
        if !self.link.take(header.call) || core.node.notice(self.connection).is_some() {
            return Ok(None);
        }
        let mut call = Call {
            method,
            body: frame.body.clone(),
            peer: &self.peer,
            context: &context,
            session: self.session.as_deref_mut(),
        };
        let ran = context.enter(|| catch_unwind(AssertUnwindSafe(|| handler(&mut call))));
        drop(pass);
        let (status, body) = match ran {
            Ok(Ok(body)) => (Status::Done, body),
            Ok(Err(failure)) => {
                let message = message_within(&failure.message).to_owned();
                (Status::Failed(failure.code.min(kumo_abi::call::ERROR_CODE_MAX)), message.into())
            }
            Err(panic) => (Status::Unknown(Cause::Panic), panic_message(&*panic).into()),
        };
        let (status, body) = if body.len() as u64 > kumo_abi::call::BODY_BYTES_MAX {
            (Status::Unknown(Cause::TooLarge), Bytes::from_static(b"the reply is above 1 GiB"))
        } else {
            (status, body)
        };
        if let Ok(method) = method.parse() {
            core.node.program.span(Span {
                number: 0,
                root: header.root,
                call: header.call,
                parent: header.parent,
                start_ns,
                took_ns: now_ns() - start_ns,
                status: status.number(),
                name: core.node.program.name(&core.service, &method),
                hop: header.hop,
                side: Side::Callee,
            });
        }
        Ok(Some((status, body)))
    }

    /// Runs a pulse: as a call of which nobody hears.
    fn pulse(&mut self, frame: &Frame) -> Result<(), Stop> {
        let extensions = frame.extensions()?;
        let method = check_method(&frame.header, &extensions)?;
        let header = Header { call: crate::context::random(), ..frame.header };
        let frame = Frame { header, ext: frame.ext.clone(), body: frame.body.clone() };
        if let Err(no) = self.run(&frame, &extensions, method, NEVER_NS) {
            tracing::debug!(cause = %no.cause, method, "a pulse was dropped");
        }
        Ok(())
    }
}

/// A path that is within what a chain may hold: without its beginning, if it is too long.
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
