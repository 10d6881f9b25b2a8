//! Serving with a thread for each connection, without a runtime.

pub(crate) mod stream;

use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{Cause, Method, MethodPattern, Peer, Reentrancy, ServiceName, Status};
use kumo_abi::control::{Incoming, Serving};
use kumo_abi::frame::{Extensions, Header, Kind, check_method, flags, message_within};

use self::stream::{Heard, PieceSender};
use super::stream::{end_within_ns, ends};
use super::{
    Alive, Core, Methods, No, Options, RETRY_AFTER_MS, SERVE_NS_MAX, SLOW_NS_MAX, Server, answer,
    no, outcome,
};
use crate::carrier::{Frame, Link, Reader, Stop, join};
use crate::context::{Context, random};
use crate::error::Failure;
use crate::node::{Accept, Held, Node, NodeError};
use crate::notices::ConnectionId;
use crate::secure::Other;
use crate::time::{NEVER_NS, now_ns};

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
    /// The state of this connection, as [`Builder::session`] made it.
    pub fn session<T: 'static>(&mut self) -> Option<&mut T> {
        self.session.as_mut()?.downcast_mut()
    }
}

/// With an outlet if the caller takes a stream.
type Handler =
    dyn Fn(&mut Call<'_>, Option<&mut PieceSender<'_>>) -> Result<Bytes, Failure> + Send + Sync;
type NewSession = dyn Fn(&Peer) -> Box<dyn Any + Send> + Send + Sync;

/// A server that is being put together.
#[must_use = "nothing is served before `start`"]
pub struct Builder {
    options: Options,
    methods: Methods<Arc<Handler>>,
    session: Option<Arc<NewSession>>,
}

impl Node {
    /// Begins a server of this service with a thread for each connection: 64 slots, as many calls that
    /// may wait, no reentrance.
    pub fn serve(&self, service: &ServiceName) -> Builder {
        let options = Options::new(self, service, 1);
        Builder { options, methods: Methods::default(), session: None }
    }
}

impl Builder {
    /// Handlers that run at once; at most 4,096. One more for each hop class is reserved.
    pub fn slots(mut self, slots: u16) -> Builder {
        self.options.slots = slots;
        self
    }

    /// Calls that may wait for a slot; more are BUSY. At most 4,096.
    pub fn credit(mut self, credit: u16) -> Builder {
        self.options.credit = credit;
        self
    }

    /// What is done with calls that came through this instance.
    pub fn reentrancy(mut self, reentrancy: Reentrancy) -> Builder {
        self.options.reentrancy = reentrancy;
        self
    }

    /// Whether connections on this host have rings (512 KiB each). Without, calls travel as packets.
    pub fn ring(mut self, ring: bool) -> Builder {
        self.options.ring = ring;
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
        self.methods.add(method, Arc::new(move |call, _| handler(call)));
        self
    }

    /// Handles every method that has no handler of its own.
    pub fn any(
        mut self,
        handler: impl Fn(&mut Call<'_>) -> Result<Bytes, Failure> + Send + Sync + 'static,
    ) -> Builder {
        self.methods.any = Some(Arc::new(move |call, _| handler(call)));
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
        let Builder { options, methods, session } = self;
        let core = Arc::new(Core::new(&options, methods));
        let threads = Arc::new(Threads { core: core.clone(), session });
        let (send, hear) = std::sync::mpsc::sync_channel(1);
        let request = options.register(&core, threads, move |answer| {
            let _ = send.send(answer);
        });
        let answer = hear.recv_timeout(Duration::from_nanos(SERVE_NS_MAX)).ok();
        let serving = options.registered(answer, request)?;
        Ok(Server { core, serving, node: options.node })
    }
}

/// Starts a thread for each connection.
struct Threads {
    core: Arc<Core<Arc<Handler>>>,
    session: Option<Arc<NewSession>>,
}

impl Accept for Threads {
    fn accept(self: Arc<Self>, incoming: Incoming, socket: OwnedFd, held: Held) {
        let connection = held.id;
        if self.core.admit(connection) {
            let serves = self.clone();
            let thread = std::thread::Builder::new().name(format!("serve {}", self.core.service));
            let started = thread.spawn(move || {
                let stop = serves.serve(incoming, socket, held);
                tracing::debug!(connection = connection.index, %stop, "a caller's connection has ended");
                serves.core.left(connection);
            });
            if started.is_ok() {
                return;
            }
            self.core.left(connection);
        }
    }
}

/// What one connection has.
struct Conversation<'a> {
    core: &'a Core<Arc<Handler>>,
    serving: Serving,
    alive: Arc<Alive>,
    link: Arc<Link>,
    peer: Peer,
    methods: Vec<MethodPattern>,
    connection: ConnectionId,
    session: Option<Box<dyn Any + Send>>,
}

impl Threads {
    /// Serves one connection until it ends; why it did.
    fn serve(&self, incoming: Incoming, socket: OwnedFd, held: Held) -> Stop {
        let connection = held.id;
        let until_ns = now_ns() + SLOW_NS_MAX;
        let (own, other) = (Some(incoming.instance), Other::Caller(&incoming.peer));
        let tls = match self.core.node.tls(incoming.carrier, own, other, until_ns) {
            Ok(tls) => tls,
            Err(error) => return Stop::Refused(error.to_string()),
        };
        let facts = self.core.facts(&incoming, connection);
        let joined = join(socket, incoming.carrier, tls, facts, now_ns() + SLOW_NS_MAX);
        let (link, writer, mut reader) = match joined {
            Ok(joined) => joined,
            Err(stop) => return stop,
        };
        let alive = Alive::new(&link, writer);
        self.core.connections().insert(connection, Arc::downgrade(&alive));
        let Some(serving) = *self.core.serving() else { return Stop::Ended };
        if !held.joined(&link, self.core.resume(&incoming)) {
            return Stop::Ended;
        }
        let session = self.session.as_ref().map(|make| make(&incoming.peer));
        let mut conversation = Conversation {
            core: &self.core,
            serving,
            alive: alive.clone(),
            link: link.clone(),
            peer: incoming.peer,
            methods: incoming.methods,
            connection,
            session,
        };
        let stop = conversation.until_it_ends(&mut reader);
        link.end();
        drop((conversation, reader, alive, link, held));
        stop
    }
}

impl Conversation<'_> {
    fn until_it_ends(&mut self, reader: &mut Reader) -> Stop {
        loop {
            let frame = match reader.next(None, NEVER_NS) {
                Ok(frame) => frame,
                Err(stop) => return stop,
            };
            // Either whoever drains sees that we are busy, or we see that they drain.
            self.alive.busy.store(true, Ordering::SeqCst);
            let answered = match frame.header.kind {
                Kind::Call => self.call(frame, reader),
                Kind::Pulse => self.pulse(frame),
                // Of a call that is over already: a connection is in one call at a time.
                Kind::Cancel | Kind::Credit | Kind::Hello | Kind::Pong => Ok(()),
                Kind::Ping => self.send(Header::new(Kind::Pong, frame.header.call), &[], &[]),
                _ => Err(Stop::Passed("a frame that only callees send")),
            };
            self.alive.busy.store(false, Ordering::SeqCst);
            match answered {
                Ok(()) if self.core.draining.load(Ordering::SeqCst) => return Stop::Ended,
                Ok(()) => {}
                Err(stop) => return stop,
            }
        }
    }

    fn send(&mut self, header: Header, ext: &[u8], body: &[u8]) -> Result<(), Stop> {
        // A caller that does not read its answers does not hold a thread for long.
        self.send_within(header, ext, body, SLOW_NS_MAX)
    }

    fn send_within(
        &mut self,
        header: Header,
        ext: &[u8],
        body: &[u8],
        within_ns: u64,
    ) -> Result<(), Stop> {
        if self.core.draining.load(Ordering::SeqCst) {
            self.alive.send_away();
        }
        let mut writer = self.alive.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.send_within(header, ext, body, within_ns)
    }

    fn call(&mut self, frame: Frame, reader: &mut Reader) -> Result<(), Stop> {
        let came_ns = now_ns();
        let Frame { header, ext, body } = frame;
        let deadline_ns = came_ns.saturating_add(header.budget_ns);
        let extensions = Extensions::decode(&ext)?;
        let method = check_method(&header, &extensions)?;
        let times = (came_ns, deadline_ns);
        let said = if header.flags & flags::STREAM == 0 {
            self.run(&header, body, &extensions, method, times, None)
        } else {
            let alive = self.alive.clone();
            let mut outlet = PieceSender::new(reader, &alive, header.call, deadline_ns);
            let said = self.run(&header, body, &extensions, method, times, Some(&mut outlet));
            return self.end_stream(header.call, said, outlet.end(), deadline_ns);
        };
        self.answer(header.call, said)
    }

    fn answer(&mut self, call: u64, said: Result<(Status, Bytes), No>) -> Result<(), Stop> {
        match said {
            Ok((status, body)) => self.send(answer(call, status), &[], &body),
            Err(no) => {
                let (header, ext) = no.frame(call)?;
                self.send(header, &ext, message_within(&no.message).as_bytes())
            }
        }
    }

    /// Answers a call whose caller takes a stream, and does what was left undone meanwhile.
    fn end_stream(
        &mut self,
        call: u64,
        said: Result<(Status, Bytes), No>,
        mut heard: Heard,
        deadline_ns: u64,
    ) -> Result<(), Stop> {
        let answered = match (heard.stop.take(), said) {
            (Some(stop), _) => Err(stop),
            (None, Ok((status, body))) if heard.begun => {
                let within_ns = end_within_ns(true, deadline_ns, now_ns());
                self.send_within(ends(call, status, true), &[], &body, within_ns)
            }
            (None, said) => self.answer(call, said),
        };
        // Also when its sender has gone, like any pulse.
        heard.pulses().try_for_each(|pulse| self.pulse(pulse))?;
        answered
    }

    /// Runs a call, or says why not. `times` are when it came, and its deadline.
    fn run(
        &mut self,
        header: &Header,
        body: Bytes,
        extensions: &Extensions<'_>,
        method: &str,
        times: (u64, u64),
        mut outlet: Option<&mut PieceSender<'_>>,
    ) -> Result<(Status, Bytes), No> {
        let (core, (came_ns, deadline_ns)) = (self.core, times);
        let (handler, lent) =
            core.check(header, extensions, method, &self.methods, self.serving)?;
        let is_call = header.kind != Kind::Pulse;
        let pass = if lent {
            core.gate.lent()
        } else {
            // Who sends a pulse does not wait for it, and may be gone by now.
            let upstream = is_call.then(|| self.link.as_fd());
            core.gate.wait(header.hop, header.priority, upstream, deadline_ns)?
        };
        let start_ns = if pass.has_waited() { now_ns() } else { came_ns };
        if start_ns >= deadline_ns {
            return Err(no(Cause::Deadline, "before the handler began"));
        }
        let context = core.context(header, extensions, self.serving, &self.link, deadline_ns);
        // From here on the call is taken. A node that ended the connection meanwhile has read receipts,
        // or will find this one; and a caller that took it back is told that it did not run.
        // Of a pulse nobody is told anything, and who sent it may be gone by now.
        if is_call
            && (!self.link.take(header.call) || core.node.notices.notice(self.connection).is_some())
        {
            return Err(no(Cause::Cancelled, "its caller has taken it back"));
        }
        let mut call = Call {
            method,
            body,
            peer: &self.peer,
            context: &context,
            session: self.session.as_deref_mut(),
        };
        let handle = || handler(&mut call, outlet.as_deref_mut());
        let ran = context.enter(|| catch_unwind(AssertUnwindSafe(handle)));
        drop(pass);
        let (mut status, mut body) = outcome(ran);
        if let Some(cause) = outlet.and_then(|outlet| outlet.cut_off()) {
            // Whatever the handler made of it: its stream lacks what it could not send.
            (status, body) = (Status::Unknown(cause), Bytes::new());
        }
        core.show(header, method, start_ns, status);
        Ok((status, body))
    }

    /// Runs a pulse: as a call of which nobody hears.
    fn pulse(&mut self, frame: Frame) -> Result<(), Stop> {
        let Frame { header, ext, body } = frame;
        let extensions = Extensions::decode(&ext)?;
        let method = check_method(&header, &extensions)?;
        let header = Header { call: random(), ..header };
        let times = (now_ns(), NEVER_NS);
        while let Err(no) = self.run(&header, body.clone(), &extensions, method, times, None) {
            // Nobody says it again, so it waits for a place; later ones wait behind it, where they came.
            if no.cause != Cause::Busy {
                tracing::debug!(cause = %no.cause, method, "a pulse was dropped");
                break;
            }
            std::thread::sleep(Duration::from_millis(RETRY_AFTER_MS.into()));
        }
        Ok(())
    }
}
