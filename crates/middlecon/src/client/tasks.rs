//! Calls that a task awaits. Many share a connection; dropping a call cancels it.
//!
//! A call that nobody waits for any more keeps its place on the connection until its callee has answered
//! it, so that no later call can take over its receipt and its revocation.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{CALLS_IN_FLIGHT_MAX, Cause, InstanceId, Method, ServiceName, Status};
use kumo_abi::control::{FromNode, Granted, ToNode};
use kumo_abi::frame::{Group, Header, Kind};
use kumo_abi::page::Notice;
use tokio::sync::{mpsc, oneshot};

use super::stream::Piece;
use super::{
    ATTEMPTS_MAX, Hearing, How, NOTICE_WAIT_NS, Outcome, Prepared, cause_of, check_grant, facts,
    is_good_after, node_began_anew, notice_wait_ns, resume, status, words,
};
use crate::carrier::tasks::{Inbox, join, send, send_noting};
use crate::carrier::{Frame, Link, Stop, Writer};
use crate::context::random;
use crate::error::CallError;
use crate::node::{Answer, Held, Node, Shared};
use crate::notices::ConnectionId;
use crate::program::{Names, Program};
use crate::rules::pulse::Pulses;
use crate::rules::truth::{Event, Flight, Taken, may_retry};
use crate::secure::Other;
use crate::time::now_ns;

/// Most connections to one service: as many calls on servers that take one at a time.
const LINES_MAX: usize = 256;

/// Largest pulse: one frame.
pub const PULSE_BYTES_MAX: usize = kumo_abi::frame::BODY_BYTES_MAX;

/// How long a pulse waits to be sent, at most.
const PULSE_WAIT_MAX: Duration = Duration::from_secs(1);

/// A service, to be called by tasks of a tokio runtime. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct AsyncService {
    pub(super) node: Node,
    pub(super) shared: Arc<ServiceShared>,
}

pub(super) struct ServiceShared {
    pub(super) names: Names,
    lines: Mutex<Vec<Arc<Line>>>,
    pulses: Mutex<Waiting>,
    /// Told when no pulse is on its way out any more.
    all_sent: tokio::sync::Notify,
    /// One opens at a time: who waited for another's line finds room on it.
    opening: tokio::sync::Mutex<()>,
}

impl Node {
    /// A service by its name, for tasks. Nothing is asked yet: the first call opens a connection.
    pub fn service_async(&self, name: &ServiceName) -> AsyncService {
        let shared = ServiceShared {
            names: Names::new(name),
            lines: Mutex::default(),
            pulses: Mutex::default(),
            all_sent: tokio::sync::Notify::new(),
            opening: tokio::sync::Mutex::default(),
        };
        AsyncService { node: self.clone(), shared: Arc::new(shared) }
    }
}

/// Pulses that wait, and whether a task is sending them.
#[derive(Default)]
struct Waiting {
    pulses: Pulses,
    is_sending: bool,
    /// Why the last that could not leave did not.
    not_sent: Option<CallError>,
}

/// A call that is being put together.
#[must_use = "nothing is called before `call` is awaited"]
#[derive(Clone)]
pub struct AsyncRequest<'a> {
    pub(super) service: &'a AsyncService,
    pub(super) method: &'a Method,
    pub(super) how: How,
}

impl AsyncRequest<'_> {
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

    /// It is one of a group.
    pub(crate) fn in_group(mut self, group: Group) -> Self {
        self.how.group = Some(group);
        self
    }

    /// Calls, and waits for the reply. Dropped, the call is cancelled, down to its last hop.
    ///
    /// # Errors
    /// See [`CallError`]: its kind says whether trying again is safe.
    pub async fn call(self, body: &[u8]) -> Result<Bytes, CallError> {
        let AsyncRequest { service, method, how } = self;
        let shared = &service.shared;
        let prepared = Prepared::new(&service.node.shared, &shared.names, method, how, body.len())?;
        for attempt in 1.. {
            let (line, seat) = service.seat(&prepared).await?;
            let used_before = line.wires.used.swap(true, Ordering::Relaxed);
            let result = line.call(seat, &prepared, body).await;
            if attempt == ATTEMPTS_MAX || !may_retry(status(&result), used_before) {
                return result;
            }
        }
        unreachable!("the last attempt returns")
    }
}

impl AsyncService {
    /// Its name.
    pub fn name(&self) -> &ServiceName {
        self.shared.names.service()
    }

    /// Calls a method and waits for its reply, within the budget of the context (30 s at the root).
    ///
    /// # Errors
    /// See [`CallError`]: its kind says whether trying again is safe.
    pub async fn call(&self, method: &Method, body: &[u8]) -> Result<Bytes, CallError> {
        self.request(method).call(body).await
    }

    /// A call with options.
    pub fn request<'a>(&'a self, method: &'a Method) -> AsyncRequest<'a> {
        AsyncRequest { service: self, method, how: How::default() }
    }

    /// Sends a message without a reply, and never waits: what cannot leave at once is replaced by a later
    /// pulse of its method. Nobody says whether it arrived. To be called on a tokio runtime.
    pub fn pulse(&self, method: &Method, body: Bytes) {
        let mut waiting = self.waiting();
        waiting.pulses.put(method, body);
        if !waiting.is_sending {
            waiting.is_sending = true;
            let service = self.clone();
            tokio::spawn(async move { service.send_pulses().await });
        }
    }

    /// How many pulses were replaced by later ones, and how many were dropped for want of room.
    pub fn pulses_lost(&self) -> (u64, u64) {
        self.waiting().pulses.lost()
    }

    /// Waits until every pulse has left or was given up, for who ends then. Why the last that was given up
    /// did not leave, if there was one since this was last asked; that one left does not say that it arrived.
    pub async fn pulses_sent(&self) -> Option<CallError> {
        loop {
            let all_sent = self.shared.all_sent.notified();
            {
                let mut waiting = self.waiting();
                if !waiting.is_sending {
                    return waiting.not_sent.take();
                }
            }
            all_sent.await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.shared.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send_pulses(&self) {
        let budget = Some(PULSE_WAIT_MAX);
        loop {
            let next = {
                let mut waiting = self.waiting();
                let next = waiting.pulses.take();
                waiting.is_sending = next.is_some();
                next
            };
            let Some((method, body)) = next else {
                self.shared.all_sent.notify_waiters();
                return;
            };
            let how = How { budget, ..How::default() };
            let names = &self.shared.names;
            let sent = async {
                let len_bytes = body.len();
                let prepared = Prepared::new(&self.node.shared, names, &method, how, len_bytes)?;
                let (line, seat) = self.seat(&prepared).await?;
                line.wires.leave(&seat);
                line.pulse(&prepared, &body).await
            };
            if let Err(error) = sent.await {
                tracing::debug!(%error, service = %self.name(), "a pulse was not sent");
                self.waiting().not_sent = Some(error);
            }
        }
    }

    /// How many connections it has that take new calls.
    pub fn connections(&self) -> usize {
        self.lines().iter().filter(|line| line.wires.is_good()).count()
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Arc<Line>>> {
        self.shared.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on a connection that has one, if there is such a connection. A grant is for who asked for
    /// it: a handler's calls go out as its service, others as the user.
    fn free_seat(&self, from: Option<InstanceId>) -> Option<(Arc<Line>, Seat)> {
        let mut lines = self.lines();
        lines.retain(|line| line.wires.is_good());
        let mut own = lines.iter().filter(|line| line.from == from);
        own.find_map(|line| Some((line.clone(), line.wires.seat()?)))
    }

    pub(super) async fn seat(&self, prepared: &Prepared) -> Result<(Arc<Line>, Seat), CallError> {
        let from = prepared.context.inner().instance;
        if let Some(seat) = self.free_seat(from) {
            return Ok(seat);
        }
        let left = Duration::from_nanos(prepared.deadline_ns.saturating_sub(now_ns()));
        let deadline = |_| CallError::not_executed(Cause::Deadline, "while waiting for the node");
        let _opens =
            tokio::time::timeout(left, self.shared.opening.lock()).await.map_err(deadline)?;
        if let Some(seat) = self.free_seat(from) {
            return Ok(seat);
        }
        if self.lines().len() >= LINES_MAX {
            let message = format!("a service has at most {LINES_MAX} connections of one program");
            return Err(CallError::not_executed(Cause::Exhausted, message));
        }
        let line = Arc::new(self.open(prepared).await?);
        // Nobody else has seen it yet, and it has one place at least.
        let seat = line.wires.seat();
        let seat = seat.ok_or_else(|| CallError::not_executed(Cause::Exhausted, "no place"))?;
        self.lines().push(line.clone());
        Ok((line, seat))
    }

    async fn open(&self, prepared: &Prepared) -> Result<Line, CallError> {
        let node = &self.node.shared;
        let request = node.request();
        let open = ToNode::Open(prepared.open(request, self.name()));
        let answer = node.ask_and_await(request, &open, prepared.deadline_ns).await?;
        match answer {
            Answer { message: FromNode::Granted(granted), fd: Some(socket), held: Some(held) } => {
                Line::new(self.name(), granted, socket, held, prepared).await
            }
            Answer {
                message: FromNode::Refused { cause, message, retry_after_ms, path, .. },
                ..
            } => Err(CallError::NotExecuted { cause, message, path, retry_after_ms }),
            _ => Err(CallError::not_executed(Cause::Malformed, "the node answered something else")),
        }
    }
}

/// Places that are free again unless they became those of a connection.
struct Places<'a> {
    program: &'a Program,
    taken: Vec<u32>,
}

impl Drop for Places<'_> {
    fn drop(&mut self) {
        for place in &self.taken {
            self.program.clear(*place);
            self.program.leave(*place);
        }
    }
}

/// A connection that many calls share. Dropped by the last, it ends. The order of fields is that of their
/// end.
pub(super) struct Line {
    pub(super) wires: Arc<Wires>,
    /// As whom it was asked for.
    from: Option<InstanceId>,
    service: ServiceName,
    places: Vec<u32>,
    pub(super) held: Held,
}

/// What calls and the task that receives share.
pub(super) struct Wires {
    link: Arc<Link>,
    pub(super) writer: Mutex<Writer>,
    granted: Granted,
    id: ConnectionId,
    state: Mutex<State>,
    ended: AtomicBool,
    draining: AtomicBool,
    pub(super) used: AtomicBool,
}

struct State {
    /// A bit for each place that is free.
    free: u64,
    /// How many calls were made, from a random number: ids are never used again.
    count: u64,
    pending: HashMap<u64, Pending>,
}

/// A call that was sent, or soon will be.
struct Pending {
    hearing: Hearing,
    /// Nothing once nobody waits any more.
    wake: Option<Wake>,
}

/// Who waits for a call.
pub(super) enum Wake {
    Reply(oneshot::Sender<Outcome>),
    Stream(mpsc::Sender<Piece>),
}

impl Wake {
    /// Says how the call ended. Who waited may have gone in this moment.
    fn end(self, result: Outcome) {
        match self {
            Wake::Reply(reply) => {
                let _ = reply.send(result);
            }
            // There is room: a callee that sent more than it may has lost its connection.
            Wake::Stream(stream) => {
                let _ = stream.try_send(Piece::End(result));
            }
        }
    }
}

/// A place of a call on a connection.
pub(super) struct Seat {
    id: u64,
}

impl Seat {
    fn index(&self) -> usize {
        (self.id % CALLS_IN_FLIGHT_MAX as u64) as usize
    }
}

impl Pending {
    /// Takes a frame of the call, and passes on what is a part of a stream; the result if it decides one.
    fn hear(&mut self, frame: Frame) -> Result<Option<Outcome>, Stop> {
        let had_begun = self.hearing.begun;
        let heard = self.hearing.hear(frame)?;
        if let Some(Wake::Stream(stream)) = &self.wake {
            if self.hearing.begun && !had_begun {
                let _ = stream.try_send(Piece::Begun);
            }
            if let Some(chunk) = heard.chunk {
                // One place is left for the end. Who reads may have gone in this moment.
                if stream.capacity() <= 1 {
                    return Err(Stop::Passed("more of a stream than it may send"));
                }
                let _ = stream.try_send(Piece::Chunk(chunk));
            }
        }
        Ok(heard.over)
    }
}

impl Wires {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_good(&self) -> bool {
        !self.ended.load(Ordering::Acquire) && !self.draining.load(Ordering::Relaxed)
    }

    fn seat(&self) -> Option<Seat> {
        let mut state = self.state();
        let index = state.free.trailing_zeros();
        if index as usize >= CALLS_IN_FLIGHT_MAX {
            return None;
        }
        state.free &= !(1 << index);
        state.count += 1;
        Some(Seat { id: state.count << 6 | u64::from(index) })
    }

    /// A place that was not used.
    fn leave(&self, seat: &Seat) {
        self.state().free |= 1 << seat.index();
    }

    /// The callee has said how this call ended: its place is free.
    fn over(state: &mut State, id: u64) -> Option<Pending> {
        let pending = state.pending.remove(&id)?;
        state.free |= 1 << (id % CALLS_IN_FLIGHT_MAX as u64);
        Some(pending)
    }

    fn take_frame(&self, frame: Frame) -> Result<(), Stop> {
        if frame.header.kind == Kind::Goaway {
            self.draining.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let id = frame.header.call;
        let mut state = self.state();
        let Some(pending) = state.pending.get_mut(&id) else { return Ok(()) };
        let Some(result) = pending.hear(frame)? else { return Ok(()) };
        let pending = Wires::over(&mut state, id);
        drop(state);
        if !is_good_after(&result) {
            self.draining.store(true, Ordering::Relaxed);
        }
        if let Some(wake) = pending.and_then(|pending| pending.wake) {
            wake.end(result);
        }
        Ok(())
    }

    /// The task that receives, until the connection ends.
    async fn receive(self: Arc<Wires>, mut inbox: Inbox, node: Arc<Shared>) {
        let stop = loop {
            match inbox.next().await {
                Ok(frame) => {
                    if let Err(stop) = self.take_frame(frame) {
                        break stop;
                    }
                }
                Err(stop) => break stop,
            }
        };
        self.ended.store(true, Ordering::Release);
        self.link.end();
        let pending: Vec<(u64, Pending)> = self.state().pending.drain().collect();
        if pending.is_empty() {
            return;
        }
        let cause = match stop {
            Stop::Ended => {
                let wait_ns = notice_wait_ns(&self.link, u64::MAX);
                let notice = why_it_ended(&node, self.id, wait_ns).await;
                notice.map_or(Cause::Lost, |notice| notice.cause)
            }
            ref other => cause_of(other),
        };
        for (id, mut pending) in pending {
            let taken = self.link.take_back(id);
            let status = pending.hearing.flight.step(Event::Stop(cause, taken));
            let status = status.unwrap_or(Status::Unknown(cause));
            if let Some(wake) = pending.wake {
                wake.end(Err(CallError::from_status(status, words(&stop))));
            }
        }
    }
}

/// As [`crate::node::why_it_ended`], without blocking.
async fn why_it_ended(node: &Shared, id: ConnectionId, wait_ns: u64) -> Option<Notice> {
    let until_ns = now_ns() + wait_ns;
    loop {
        let notice = node.notices.notice(id);
        if notice.is_some() || now_ns() >= until_ns {
            return notice;
        }
        // A moment on one host, longer across hosts: not worth a thread that looks all the time.
        tokio::time::sleep(Duration::from_micros(wait_ns / 20_000)).await;
    }
}

impl Line {
    /// Dropped in any way but as a line, `held` gives the grant back.
    async fn new(
        service: &ServiceName,
        granted: Granted,
        socket: OwnedFd,
        held: Held,
        prepared: &Prepared,
    ) -> Result<Line, CallError> {
        let (node, connection) = (held.shared.clone(), granted.connection);
        let node = &node;
        let mut places = Places { program: &node.program, taken: Vec::new() };
        let concurrent = usize::from(granted.concurrent).clamp(1, CALLS_IN_FLIGHT_MAX);
        for _ in 0..concurrent {
            let message = "this program has too many connections";
            let place = node.program.place();
            let place = place.ok_or_else(|| CallError::not_executed(Cause::Exhausted, message))?;
            places.taken.push(place);
        }
        // In flight already: see the client for threads.
        let count = random() >> 7;
        let shown = prepared.in_flight(count << 6, connection, now_ns());
        node.program.show(places.taken[0], &shown);
        let (own, other) =
            (prepared.context.inner().instance, Other::Callee(service, &granted.peer));
        let tls = node.tls_async(granted.carrier, own, other, prepared.deadline_ns).await?;
        let facts = facts(&held);
        let joined = join(socket, granted.carrier, tls, facts, prepared.deadline_ns).await;
        node.program.clear(places.taken[0]);
        let (link, writer, inbox) = match joined {
            Ok(joined) => joined,
            Err(stop) => {
                let notice = match stop {
                    Stop::Ended => why_it_ended(node, held.id, NOTICE_WAIT_NS).await,
                    _ => None,
                };
                let cause = notice.map_or(cause_of(&stop), |notice| notice.cause);
                return Err(CallError::not_executed(cause, words(&stop)));
            }
        };
        if !held.joined(&link, resume(&granted, service)) {
            return Err(node_began_anew());
        }
        let free = if concurrent == CALLS_IN_FLIGHT_MAX { u64::MAX } else { (1 << concurrent) - 1 };
        let wires = Arc::new(Wires {
            link,
            writer: Mutex::new(writer),
            granted,
            id: held.id,
            state: Mutex::new(State { free, count, pending: HashMap::new() }),
            ended: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            used: AtomicBool::new(false),
        });
        tokio::spawn(wires.clone().receive(inbox, node.clone()));
        let places = std::mem::take(&mut places.taken);
        let from = prepared.context.inner().instance;
        Ok(Line { wires, from, service: service.clone(), places, held })
    }

    async fn pulse(&self, prepared: &Prepared, body: &[u8]) -> Result<(), CallError> {
        check_grant(&self.wires.granted, &self.service, prepared)?;
        let call = prepared.header(&self.wires.granted, 0, now_ns());
        let header = Header { kind: Kind::Pulse, ..call };
        if body.len() > PULSE_BYTES_MAX {
            let message = format!("a pulse has at most {PULSE_BYTES_MAX} bytes");
            return Err(CallError::not_executed(Cause::TooLarge, message));
        }
        send(&self.wires.writer, header, &prepared.ext, body, prepared.deadline_ns)
            .await
            .map_err(|stop| CallError::not_executed(cause_of(&stop), words(&stop)))
    }

    async fn call(self: &Arc<Line>, seat: Seat, prepared: &Prepared, body: &[u8]) -> Outcome {
        let (wake, answer) = oneshot::channel();
        let flying = self.take_off(&seat, prepared, Wake::Reply(wake));
        let (id, start_ns) = (flying.id, flying.start_ns);
        let result = flying.fly(prepared, body, answer).await;
        prepared.show(&self.held.shared, id, start_ns, &result);
        result
    }

    /// A call that is in flight from now on, and soon sent.
    pub(super) fn take_off(
        self: &Arc<Line>,
        seat: &Seat,
        prepared: &Prepared,
        wake: Wake,
    ) -> Flying {
        let hearing = match wake {
            Wake::Reply(_) => Hearing::default(),
            Wake::Stream(_) => Hearing::of_stream(),
        };
        let pending = Pending { hearing, wake: Some(wake) };
        self.wires.state().pending.insert(seat.id, pending);
        let (start_ns, place) = (now_ns(), self.places[seat.index()]);
        let shown = prepared.in_flight(seat.id, self.wires.granted.connection, start_ns);
        self.held.shared.program.show(place, &shown);
        Flying { line: self.clone(), id: seat.id, place, start_ns, sent: false, over: false }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.wires.link.end();
        self.places.iter().for_each(|place| self.held.shared.program.leave(*place));
    }
}

/// A call that somebody waits for. Dropped before it is over, it is cancelled.
pub(super) struct Flying {
    pub(super) line: Arc<Line>,
    pub(super) id: u64,
    place: u32,
    pub(super) start_ns: u64,
    /// Whether anything of it has left, or may have.
    sent: bool,
    pub(super) over: bool,
}

impl Flying {
    /// Sends it; why it is over already, if it is. An end of the connection is told by the task that
    /// receives, which says what became of all.
    pub(super) async fn send(
        &mut self,
        prepared: &Prepared,
        flags: u16,
        body: &[u8],
    ) -> Result<(), Stop> {
        let wires = &self.line.wires;
        if wires.ended.load(Ordering::Acquire) {
            // That task may have gone through those that wait before we came.
            return Err(Stop::Ended);
        }
        let header = Header { flags, ..prepared.header(&wires.granted, self.id, self.start_ns) };
        let (writer, ext, deadline_ns) = (&wires.writer, &prepared.ext, prepared.deadline_ns);
        match send_noting(writer, header, ext, body, deadline_ns, &mut self.sent).await {
            Ok(()) | Err(Stop::Ended) => Ok(()),
            Err(stop) => Err(stop),
        }
    }

    pub(super) fn check(&self, prepared: &Prepared) -> Result<(), CallError> {
        check_grant(&self.line.wires.granted, &self.line.service, prepared)
    }

    async fn fly(
        mut self,
        prepared: &Prepared,
        body: &[u8],
        mut answer: oneshot::Receiver<Outcome>,
    ) -> Outcome {
        self.check(prepared)?;
        if let Err(stop) = self.send(prepared, 0, body).await {
            return self.stop(cause_of(&stop), words(&stop), &mut answer);
        }
        let left = Duration::from_nanos(prepared.deadline_ns.saturating_sub(now_ns()));
        match tokio::time::timeout(left, &mut answer).await {
            Ok(Ok(result)) => {
                self.over = true;
                result
            }
            Ok(Err(_)) => self.stop(Cause::Lost, String::new(), &mut answer),
            Err(_) => self.stop(Cause::Deadline, String::new(), &mut answer),
        }
    }

    /// Takes the call back, and says what became of it.
    fn stop(
        &mut self,
        cause: Cause,
        message: String,
        answer: &mut oneshot::Receiver<Outcome>,
    ) -> Outcome {
        let (mut flight, taken) = self.give_up();
        // A reply that came in the last moment is a reply.
        if let Ok(result) = answer.try_recv() {
            return result;
        }
        let status = flight.step(Event::Stop(cause, taken)).unwrap_or(Status::Unknown(cause));
        Err(CallError::from_status(status, message))
    }

    /// Nobody waits any more. What was heard of it, and whether it was taken. Its place stays taken until the
    /// callee has answered, unless nothing was sent.
    pub(super) fn give_up(&mut self) -> (Flight, Taken) {
        self.over = true;
        let wires = &self.line.wires;
        if !self.sent {
            Wires::over(&mut wires.state(), self.id);
            return (Flight::default(), Taken::No);
        }
        let taken = wires.link.take_back(self.id);
        let mut flight = Flight::default();
        if let Some(pending) = wires.state().pending.get_mut(&self.id) {
            pending.wake = None;
            flight = pending.hearing.flight;
        }
        if wires.granted.concurrent <= 1 {
            // A thread serves it, and sees that we are gone by the end of the connection.
            wires.ended.store(true, Ordering::Release);
            wires.link.end();
        } else {
            let cancel = Header::new(Kind::Cancel, self.id);
            let mut writer = wires.writer.lock().unwrap_or_else(PoisonError::into_inner);
            if !matches!(writer.try_send(cancel, &[], &[]), Ok(true)) {
                // A callee that reads nothing cannot be told otherwise.
                drop(writer);
                wires.ended.store(true, Ordering::Release);
                wires.link.end();
            }
        }
        (flight, taken)
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        if !self.over {
            self.give_up();
        }
        self.line.held.shared.program.clear(self.place);
    }
}

impl std::fmt::Debug for AsyncService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AsyncService({})", self.name())
    }
}
