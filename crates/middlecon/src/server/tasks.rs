//! Serving with tasks of a tokio runtime: many calls on a connection, and a handler that nobody waits
//! for any more is dropped.

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll};
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{
    CALLS_IN_FLIGHT_MAX, Cause, Method, MethodPattern, Peer, Reentrancy, ServiceName, Status,
};
use kumo_abi::control::{Incoming, Serving};
use kumo_abi::frame::{Header, Kind, check_method, flags, message_within};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::stream::{Credit, Outlet, end_within_ns, ends};
use super::{
    Alive, Core, Methods, No, Options, RETRY_AFTER_MS, SERVE_NS_MAX, SLOW_NS_MAX, Server, answer,
    no, outcome,
};
use crate::carrier::tasks::{join, send};
use crate::carrier::{Frame, Link, Stop};
use crate::context::{Context, Entered, random};
use crate::error::Failure;
use crate::node::{Accept, Held, Node, NodeError};
use crate::notices::ConnectionId;
use crate::rules::pulse::Pulses;
use crate::secure::Other;
use crate::time::{NEVER_NS, now_ns};

/// A call, as its handler sees it.
#[derive(Clone, Debug)]
pub struct AsyncCall {
    /// Which method.
    pub method: Method,
    /// What was sent.
    pub body: Bytes,
    /// Who calls, as the nodes say.
    pub peer: Arc<Peer>,
    /// What calls of the handler inherit; its future is polled in it.
    pub context: Context,
    session: Option<Arc<dyn Any + Send + Sync>>,
}

impl AsyncCall {
    /// The state of this connection, as [`AsyncBuilder::session`] made it.
    pub fn session<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.session.clone()?.downcast().ok()
    }
}

type Running = Pin<Box<dyn Future<Output = Result<Bytes, Failure>> + Send>>;
/// With an outlet if the caller takes a stream.
pub(super) type Handler = Arc<dyn Fn(AsyncCall, Option<Outlet>) -> Running + Send + Sync>;
type NewSession = dyn Fn(&Peer) -> Arc<dyn Any + Send + Sync> + Send + Sync;

/// A server that is being put together.
#[must_use = "nothing is served before `start` is awaited"]
pub struct AsyncBuilder {
    options: Options,
    methods: Methods<Handler>,
    session: Option<Arc<NewSession>>,
}

impl Node {
    /// Begins a server of this service whose handlers are tasks: 64 slots, as many calls that may wait, no
    /// reentrance.
    pub fn serve_async(&self, service: &ServiceName) -> AsyncBuilder {
        let options = Options::new(self, service, CALLS_IN_FLIGHT_MAX as u16);
        AsyncBuilder { options, methods: Methods::default(), session: None }
    }
}

impl AsyncBuilder {
    /// Handlers that run at once; at most 4,096. One more for each hop class is reserved.
    pub fn slots(mut self, slots: u16) -> AsyncBuilder {
        self.options.slots = slots;
        self
    }

    /// Calls that may wait for a slot; more are BUSY. At most 4,096.
    pub fn credit(mut self, credit: u16) -> AsyncBuilder {
        self.options.credit = credit;
        self
    }

    /// What is done with calls that came through this instance.
    pub fn reentrancy(mut self, reentrancy: Reentrancy) -> AsyncBuilder {
        self.options.reentrancy = reentrancy;
        self
    }

    /// Whether connections on this host have rings (512 KiB each). Without, calls travel as packets.
    pub fn ring(mut self, ring: bool) -> AsyncBuilder {
        self.options.ring = ring;
        self
    }

    /// Handles a method.
    ///
    /// # Panics
    /// If two of a server's methods have the same number, which is a hash of the name: rename one.
    pub fn method<F>(
        mut self,
        method: &Method,
        handler: impl Fn(AsyncCall) -> F + Send + Sync + 'static,
    ) -> AsyncBuilder
    where
        F: Future<Output = Result<Bytes, Failure>> + Send + 'static,
    {
        self.methods.add(method, Arc::new(move |call, _| Box::pin(handler(call))));
        self
    }

    pub(super) fn handler(mut self, method: &Method, handler: Handler) -> AsyncBuilder {
        self.methods.add(method, handler);
        self
    }

    /// Handles every method that has no handler of its own.
    pub fn any<F>(
        mut self,
        handler: impl Fn(AsyncCall) -> F + Send + Sync + 'static,
    ) -> AsyncBuilder
    where
        F: Future<Output = Result<Bytes, Failure>> + Send + 'static,
    {
        self.methods.any = Some(Arc::new(move |call, _| Box::pin(handler(call))));
        self
    }

    /// Makes a state for each connection; it is dropped when the connection and its calls have ended.
    pub fn session<T: Any + Send + Sync>(
        mut self,
        make: impl Fn(&Peer) -> T + Send + Sync + 'static,
    ) -> AsyncBuilder {
        self.session = Some(Arc::new(move |peer| Arc::new(make(peer))));
        self
    }

    /// Tells the node, and serves from now on, on the runtime that this is awaited on.
    ///
    /// # Errors
    /// The node refuses or does not answer; nothing is served then.
    pub async fn start(self) -> Result<Server, NodeError> {
        let AsyncBuilder { options, methods, session } = self;
        let core = Arc::new(Core::new(&options, methods));
        let runtime = Handle::current();
        let tasks = Arc::new(Tasks { core: core.clone(), session, runtime });
        let (send, hear) = oneshot::channel();
        let request = options.register(&core, tasks, move |answer| {
            let _ = send.send(answer);
        });
        let answer = tokio::time::timeout(Duration::from_nanos(SERVE_NS_MAX), hear).await;
        let serving = options.registered(answer.ok().and_then(Result::ok), request)?;
        Ok(Server { core, serving, node: options.node })
    }
}

/// Starts a task for each connection.
struct Tasks {
    core: Arc<Core<Handler>>,
    session: Option<Arc<NewSession>>,
    runtime: Handle,
}

impl Accept for Tasks {
    fn accept(self: Arc<Self>, incoming: Incoming, socket: OwnedFd, held: Held) {
        let connection = held.id;
        if !self.core.admit(connection) {
            return;
        }
        let serves = self.clone();
        self.runtime.spawn(async move {
            let stop = serves.serve(incoming, socket, held).await;
            tracing::debug!(connection = connection.index, %stop, "a caller's connection has ended");
            serves.core.left(connection);
        });
    }
}

/// A call whose handler runs, or waits for its slot.
struct AtWork {
    task: AbortHandle,
    /// There if the caller takes a stream.
    credit: Option<Credit>,
}

impl AtWork {
    /// Drops the handler. Its outlet may be elsewhere, and is told.
    fn stop(&self) {
        self.task.abort();
        if let Some(credit) = &self.credit {
            credit.end();
        }
    }
}

/// What the calls of one connection share. The order of fields is that of their end.
pub(super) struct Conversation {
    core: Arc<Core<Handler>>,
    serving: Serving,
    alive: Arc<Alive>,
    peer: Arc<Peer>,
    methods: Vec<MethodPattern>,
    connection: ConnectionId,
    session: Option<Arc<dyn Any + Send + Sync>>,
    running: Mutex<HashMap<u64, AtWork>>,
    pulses: Mutex<Waiting>,
    _held: Held,
}

/// Pulses that wait, and whether a task handles them. They take none of the places of calls: a caller may send
/// as many as it likes, and of each method the last is handled, also when its sender has gone.
#[derive(Default)]
struct Waiting {
    pulses: Pulses<Frame>,
    is_handling: bool,
}

impl Tasks {
    /// Serves one connection until it ends; why it did.
    async fn serve(&self, incoming: Incoming, socket: OwnedFd, held: Held) -> Stop {
        let (core, connection) = (&self.core, held.id);
        let until_ns = now_ns() + SLOW_NS_MAX;
        let (own, other) = (Some(incoming.instance), Other::Caller(&incoming.peer));
        let tls = match core.node.tls_async(incoming.carrier, own, other, until_ns).await {
            Ok(tls) => tls,
            Err(error) => return Stop::Refused(error.to_string()),
        };
        let facts = core.facts(&incoming, connection);
        let joined = join(socket, incoming.carrier, tls, facts, now_ns() + SLOW_NS_MAX).await;
        let (link, writer, mut inbox) = match joined {
            Ok(joined) => joined,
            Err(stop) => return stop,
        };
        let alive = Alive::new(&link, writer);
        core.connections().insert(connection, Arc::downgrade(&alive));
        let Some(serving) = *core.serving() else { return Stop::Ended };
        if !held.joined(&link, core.resume(&incoming)) {
            return Stop::Ended;
        }
        let conversation = Arc::new(Conversation {
            core: core.clone(),
            serving,
            alive,
            session: self.session.as_ref().map(|make| make(&incoming.peer)),
            peer: Arc::new(incoming.peer),
            methods: incoming.methods,
            connection,
            running: Mutex::default(),
            pulses: Mutex::default(),
            _held: held,
        });
        let stop = loop {
            match inbox.next().await {
                Ok(frame) => {
                    if let Err(stop) = conversation.take_frame(frame) {
                        break stop;
                    }
                }
                Err(stop) => break stop,
            }
        };
        link.end();
        for (_, running) in conversation.running().drain() {
            running.stop();
        }
        stop
    }
}

impl Conversation {
    fn running(&self) -> MutexGuard<'_, HashMap<u64, AtWork>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self) -> &Arc<Link> {
        &self.alive.link
    }

    pub(super) fn alive(&self) -> &Alive {
        &self.alive
    }

    fn take_frame(self: &Arc<Conversation>, frame: Frame) -> Result<(), Stop> {
        match frame.header.kind {
            Kind::Call => self.begin(frame),
            Kind::Pulse => self.pulse(frame),
            Kind::Cancel => {
                self.cancel(frame.header.call);
                Ok(())
            }
            // Of a call that is over already it says nothing any more.
            Kind::Credit => match self.running().get(&frame.header.call) {
                Some(AtWork { credit: Some(credit), .. }) => credit.add(frame.header.code),
                Some(_) => Err(Stop::Passed("credit for a call without a stream")),
                None => Ok(()),
            },
            Kind::Ping => {
                self.say(Header::new(Kind::Pong, frame.header.call), Vec::new(), Bytes::new());
                Ok(())
            }
            Kind::Hello | Kind::Pong => Ok(()),
            _ => Err(Stop::Passed("a frame that only callees send")),
        }
    }

    /// Starts the task of a call. What is malformed ends the connection.
    fn begin(self: &Arc<Conversation>, frame: Frame) -> Result<(), Stop> {
        let extensions = frame.extensions()?;
        check_method(&frame.header, &extensions)?;
        let id = frame.header.call;
        let mut running = self.running();
        if running.len() >= CALLS_IN_FLIGHT_MAX || running.contains_key(&id) {
            return Err(Stop::Passed("more calls than a connection may have, or one id twice"));
        }
        self.alive.busy.store(true, Ordering::SeqCst);
        let is_stream = frame.header.flags & flags::STREAM != 0;
        let deadline_ns = now_ns().saturating_add(frame.header.budget_ns);
        let credit = is_stream.then(|| Credit::new(deadline_ns));
        let (conversation, handlers) = (self.clone(), credit.clone());
        // It cannot be over before it is noted: it takes this lock.
        let task = tokio::spawn(async move {
            let said = conversation.run(&frame, handlers).await;
            conversation.end(id, said).await;
        });
        running.insert(id, AtWork { task: task.abort_handle(), credit });
        Ok(())
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles a pulse, after those that came before it.
    fn pulse(self: &Arc<Conversation>, frame: Frame) -> Result<(), Stop> {
        let extensions = frame.extensions()?;
        let method = check_method(&frame.header, &extensions)?;
        let method: Method =
            method.parse().map_err(|_| Stop::Passed("a pulse to what is no method"))?;
        let header = Header { call: random(), budget_ns: 0, ..frame.header };
        let mut waiting = self.waiting();
        waiting.pulses.put(&method, Frame { header, ..frame });
        if !waiting.is_handling {
            waiting.is_handling = true;
            let conversation = self.clone();
            tokio::spawn(async move { conversation.handle_pulses().await });
        }
        Ok(())
    }

    async fn handle_pulses(self: Arc<Conversation>) {
        loop {
            let next = {
                let mut waiting = self.waiting();
                let next = waiting.pulses.take();
                waiting.is_handling = next.is_some();
                next
            };
            let Some((method, frame)) = next else { return };
            while let Err(no) = self.run(&frame, None).await {
                // Nobody says it again, so it waits for a place where it costs none, unless there is a newer.
                let is_newest = !self.waiting().pulses.has(&method);
                if no.cause != Cause::Busy || !is_newest {
                    tracing::debug!(cause = %no.cause, %method, "a pulse was dropped");
                    break;
                }
                tokio::time::sleep(Duration::from_millis(RETRY_AFTER_MS.into())).await;
            }
        }
    }

    /// Answers a call, unless it was cancelled: then somebody else has.
    async fn end(&self, id: u64, said: Result<(Status, Bytes), No>) {
        let Some(was) = self.leave(id) else { return };
        let begun = was.credit.as_ref().is_some_and(Credit::end);
        let (header, ext, body) = match said {
            Ok((status, body)) => (ends(id, status, begun), Vec::new(), body),
            Err(no) => match no.frame(id) {
                Ok((header, ext)) => {
                    (header, ext, Bytes::copy_from_slice(message_within(&no.message).as_bytes()))
                }
                Err(_) => return self.link().end(),
            },
        };
        let drains = || self.core.draining.load(Ordering::SeqCst);
        if drains() {
            self.alive.send_away();
        }
        // A caller that does not read its answers does not hold a task for long.
        let (now_ns, until_ns) = (now_ns(), was.credit.map_or(0, |credit| credit.deadline_ns));
        let deadline_ns = now_ns + end_within_ns(begun, until_ns, now_ns);
        if send(&self.alive.writer, header, &ext, &body, deadline_ns).await.is_err() {
            self.link().end();
        }
        if drains() && self.running().is_empty() {
            self.link().end();
        }
    }

    /// A call is over; nothing if it was already.
    fn leave(&self, id: u64) -> Option<AtWork> {
        let mut running = self.running();
        let was = running.remove(&id);
        self.alive.busy.store(!running.is_empty(), Ordering::SeqCst);
        was
    }

    /// Its caller no longer waits: the handler is dropped, and with it what it calls. It is answered, so
    /// that the caller may use its place again.
    fn cancel(self: &Arc<Conversation>, id: u64) {
        let status = match self.leave(id) {
            Some(was) => {
                was.stop();
                // The handler may have begun.
                Status::Unknown(Cause::Cancelled)
            }
            // Its body was cut off. Or it is over and has its answer: then nobody hears a second one.
            None => Status::NotExecuted(Cause::Cancelled),
        };
        self.say(answer(id, status), Vec::new(), Bytes::new());
    }

    /// Sends a short frame, now or when there is room.
    fn say(self: &Arc<Conversation>, header: Header, ext: Vec<u8>, body: Bytes) {
        let now = self
            .alive
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .try_send(header, &ext, &body);
        match now {
            Ok(true) => {}
            Ok(false) => {
                let conversation = self.clone();
                tokio::spawn(async move {
                    let deadline_ns = now_ns() + SLOW_NS_MAX;
                    let sent =
                        send(&conversation.alive.writer, header, &ext, &body, deadline_ns).await;
                    if sent.is_err() {
                        conversation.link().end();
                    }
                });
            }
            Err(_) => self.link().end(),
        }
    }

    /// Runs a call, or says why not.
    async fn run(
        self: &Arc<Conversation>,
        frame: &Frame,
        credit: Option<Credit>,
    ) -> Result<(Status, Bytes), No> {
        let (core, header) = (&self.core, &frame.header);
        let deadline_ns = match header.kind {
            Kind::Pulse => NEVER_NS,
            _ => now_ns().saturating_add(header.budget_ns),
        };
        let malformed = || no(Cause::Malformed, "its extensions cannot be read");
        let extensions = frame.extensions().map_err(|_| malformed())?;
        let method = extensions.method.ok_or_else(malformed)?;
        let (handler, lent) =
            core.check(header, &extensions, method, &self.methods, self.serving)?;
        let pass = if lent {
            core.gate.lent()
        } else {
            core.gate.wait_async(header.hop, header.priority, deadline_ns).await?
        };
        let start_ns = now_ns();
        if start_ns >= deadline_ns {
            return Err(no(Cause::Deadline, "before the handler began"));
        }
        let context = core.context(header, &extensions, self.serving, self.link(), deadline_ns);
        // See the server for threads.
        let is_call = header.kind != Kind::Pulse;
        if is_call
            && (!self.link().take(header.call)
                || core.node.notices.notice(self.connection).is_some())
        {
            return Err(no(Cause::Cancelled, "its caller has taken it back"));
        }
        let call = AsyncCall {
            method: method.parse().map_err(|_| malformed())?,
            body: frame.body.clone(),
            peer: self.peer.clone(),
            context: context.clone(),
            session: self.session.clone(),
        };
        let outlet = credit.map(|credit| Outlet::new(self.clone(), header.call, credit));
        let handling =
            Handling { context, running: Start::Ready(handler.clone(), Some((call, outlet))) };
        let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns()));
        let (status, body) = match tokio::time::timeout(left, handling).await {
            Ok(ran) => outcome(ran),
            Err(_) => (Status::Unknown(Cause::Deadline), Bytes::new()),
        };
        drop(pass);
        core.show(header, method, start_ns, status);
        Ok((status, body))
    }
}

/// A handler at work: polled in its context, its panics caught.
struct Handling {
    context: Context,
    running: Start,
}

enum Start {
    /// The handler's own function is called in the first poll, where its panic is caught, too.
    Ready(Handler, Option<(AsyncCall, Option<Outlet>)>),
    Running(Running),
}

impl Future for Handling {
    type Output = std::thread::Result<Result<Bytes, Failure>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let _back = Entered::new(self.context.clone());
        let running = &mut self.running;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            if let Start::Ready(handler, call) = running
                && let Some((call, outlet)) = call.take()
            {
                *running = Start::Running(handler(call, outlet));
            }
            match running {
                Start::Running(running) => running.as_mut().poll(cx),
                Start::Ready(..) => Poll::Pending,
            }
        }));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        // What the handler drops may call, too.
        let _back = Entered::new(self.context.clone());
        let _ = catch_unwind(AssertUnwindSafe(|| {
            self.running = Start::Running(Box::pin(std::future::pending()));
        }));
    }
}
