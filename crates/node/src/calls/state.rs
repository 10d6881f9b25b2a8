//! What a node holds for calls, and how it does what its rules decide.
//!
//! [`State`] is behind one lock, which nobody holds while waiting for anything: sockets are written to
//! without waiting, pages are memory. So what the rules decide is done in their order, also where it was
//! set off by many at once.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use kumo_abi::HostId;
use kumo_abi::call::{CALLS_IN_FLIGHT_MAX, Cause, GrantId, MethodPattern, Who};
use kumo_abi::control::{Connection, End, FromNode, Granted, Incoming, Request};
use kumo_abi::page::notice::{CONNECTIONS_MAX, LEN_BYTES, MAGIC, MAGIC_AT, state_at, taken_at};
use kumo_abi::page::{Notice, WORD_BYTES, receipt_at};
use kumo_sys::packet;
use kumo_sys::{OwnPage, PeerPage, PidFd};
use rustix::net::{Shutdown, shutdown};

use super::line::{Line, NotTold, no_descriptors};
use super::pages;
use super::rules::directory::Entry;
use super::rules::grants::Step;
use super::rules::publish::Publisher;
use super::rules::{Broker, Effect, Moment, Order, Program, Refusal};

/// A process that is watched: readable when it has ended.
#[derive(Debug)]
pub(super) struct Watched(pub(super) PidFd);

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// What is held for a program.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) line: Arc<Line>,
    pub(super) page: Arc<PeerPage>,
    notices: OwnPage,
}

impl Held {
    /// A notice page is made here.
    ///
    /// # Errors
    /// No descriptors, no memory.
    pub(super) fn new(line: Arc<Line>, page: PeerPage) -> io::Result<Held> {
        let notices = OwnPage::new("middlecon notices", LEN_BYTES)?;
        notices.store(MAGIC_AT, MAGIC, Ordering::Release);
        Ok(Held { line, page: Arc::new(page), notices })
    }

    /// A descriptor of the notice page, for the program.
    pub(super) fn notices_fd(&self) -> io::Result<Arc<OwnedFd>> {
        Ok(Arc::new(self.notices.as_fd().try_clone_to_owned()?))
    }

    /// Nothing is known of a connection: its index may have been that of another.
    fn clear(&self, connection: Connection) {
        if (connection as usize) < CONNECTIONS_MAX {
            self.notices.store(state_at(connection), 0, Ordering::Release);
        }
    }

    /// Writes why a connection ended. When this returns the program takes no call on it any more, or has
    /// its receipt where whoever looks now finds it.
    fn notice(&self, connection: Connection, cause: Cause, taken: Option<&[u64]>) {
        if connection as usize >= CONNECTIONS_MAX {
            return;
        }
        if let Some(taken) = taken {
            for nth in 0..CALLS_IN_FLIGHT_MAX {
                self.notices.store(taken_at(connection) + nth * WORD_BYTES, 0, Ordering::Relaxed);
            }
            // Another host's node may say zero for none, which would take the place of a call.
            for id in taken.iter().take(CALLS_IN_FLIGHT_MAX).filter(|id| **id != 0) {
                self.notices.store(taken_at(connection) + receipt_at(*id), *id, Ordering::Relaxed);
            }
        }
        let notice = Notice { cause, taken_known: taken.is_some() };
        self.notices.store(state_at(connection), notice.word(), Ordering::Release);
        fence(Ordering::SeqCst);
    }
}

/// Our duplicates of the ends of a connection: with both, neither end is heard to close before we say why.
#[derive(Debug, Default)]
struct Ends {
    caller: Option<Arc<OwnedFd>>,
    callee: Option<Arc<OwnedFd>>,
}

/// What cannot be done under the lock.
#[derive(Debug)]
pub(super) enum Later {
    /// Other hosts are asked.
    Ask(Order),
    /// A certificate is made.
    Certify { program: Program, request: Request, who: Who },
    /// Another node is told that a connection is no more.
    Obituary { host: HostId, grant: GrantId, cause: Cause, taken: Option<Vec<u64>> },
    /// There may be something to tell the cluster.
    Publish,
}

/// All that is held for calls.
#[derive(Debug)]
pub(super) struct State {
    pub(super) broker: Broker,
    pub(super) publisher: Publisher,
    held: HashMap<Program, Held>,
    ends: HashMap<GrantId, Ends>,
    /// Programs that have a certificate: they hear who is evicted.
    pub(super) certified: BTreeSet<Program>,
    last: Program,
}

/// A number that nobody can guess.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    // It fails only before the kernel has collected its first entropy, or is from before 2014: without
    // such numbers nothing here is safe.
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("the kernel gives random numbers");
    u64::from_ne_bytes(bytes)
}

impl State {
    pub(super) fn new(broker: Broker) -> State {
        State {
            broker,
            publisher: Publisher::default(),
            held: HashMap::new(),
            ends: HashMap::new(),
            certified: BTreeSet::new(),
            last: 0,
        }
    }

    /// The number of a new program.
    pub(super) fn next_program(&mut self) -> Program {
        self.last += 1;
        self.last
    }

    /// Holds this for a program from now on.
    pub(super) fn hold(&mut self, program: Program, held: Held) {
        self.held.insert(program, held);
    }

    /// Holds nothing for it any more.
    pub(super) fn let_go(&mut self, program: Program) {
        self.held.remove(&program);
        self.certified.remove(&program);
    }

    /// What is held, for those who show it.
    pub(super) fn pages(&self) -> impl Iterator<Item = (Program, &Arc<PeerPage>)> {
        self.held.iter().map(|(program, held)| (*program, &held.page))
    }

    /// All lines, for what all are told.
    pub(super) fn lines(&self) -> impl Iterator<Item = &Arc<Line>> {
        self.held.values().map(|held| &held.line)
    }

    /// Tells a program something. One that is gone hears nothing.
    pub(super) fn tell(&self, program: Program, message: &FromNode) {
        if let Some(held) = self.held.get(&program) {
            // One that does not read is let go by its own task.
            let _ = held.line.tell(message, None);
        }
    }

    /// Does what was decided. `passed` is the descriptor that came with the message, if one did.
    pub(super) fn carry_out(
        &mut self,
        effects: Vec<Effect>,
        passed: Option<OwnedFd>,
        now: Moment,
    ) -> Vec<Later> {
        let mut later = Vec::new();
        let mut passed = passed.map(Arc::new);
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Tell(program, message) => self.tell(program, &message),
                Effect::Connect { granted, incoming } => {
                    let caller = (granted.0, granted.1.request);
                    let grant = granted.1.grant;
                    if let Err((refusal, told)) = self.connect(&granted, &incoming) {
                        let broker = &mut self.broker;
                        let more = broker.undo(grant, told, caller, &refusal, now, &mut random);
                        // Nobody got anything: there is nothing to audit.
                        effects.retain(|effect| *effect != Effect::Audit(grant));
                        more.into_iter().rev().for_each(|effect| effects.push_front(effect));
                    }
                }
                Effect::Keep { grant, end } => {
                    let ends = self.ends.entry(grant).or_default();
                    match end {
                        End::Caller => ends.caller = passed.take(),
                        End::Callee => ends.callee = passed.take(),
                    }
                }
                Effect::End(step) => later.extend(self.step(step)),
                Effect::Certify { program, request, who } => {
                    later.push(Later::Certify { program, request, who });
                }
                Effect::AskOthers(order) => later.push(Later::Ask(order)),
                Effect::Publish { service, ready, load_percent } => {
                    self.publisher.note(service, Entry { ready, asleep: 0, load_percent });
                    later.push(Later::Publish);
                }
                Effect::Audit(grant) => self.audit(grant),
            }
        }
        later
    }

    /// Makes a pair and gives each program its end: the callee first, which the caller cannot reach before
    /// it has its own.
    ///
    /// # Errors
    /// Why not, and whether the callee has been told already.
    fn connect(
        &mut self,
        (caller, granted): &(Program, Granted),
        (callee, incoming): &(Program, Incoming),
    ) -> Result<(), (Refusal, bool)> {
        let gone = || Refusal::new(Cause::Died, "the server's process has ended");
        let (near, far) = packet::pair().map_err(|error| (no_descriptors(&error), false))?;
        let (near, far) = (Arc::new(near), Arc::new(far));
        let from = self.held.get(caller).ok_or_else(|| (gone(), false))?;
        let to = self.held.get(callee).ok_or_else(|| (gone(), false))?;
        from.clear(granted.connection);
        to.clear(incoming.connection);
        let told = to.line.tell(&FromNode::Incoming(incoming.clone()), Some(&far));
        told.map_err(|not| (not.refusal(), false))?;
        let told = from.line.tell(&FromNode::Granted(granted.clone()), Some(&near));
        told.map_err(|not| (not.refusal(), true))?;
        self.ends.insert(granted.grant, Ends { caller: Some(near), callee: Some(far) });
        Ok(())
    }

    /// Gives a program its end of a connection with another host.
    ///
    /// # Errors
    /// It could not be told.
    pub(super) fn hand_over(
        &mut self,
        program: Program,
        message: &FromNode,
        connection: Connection,
        grant: GrantId,
        end: End,
        socket: OwnedFd,
    ) -> Result<(), NotTold> {
        let Some(held) = self.held.get(&program) else { return Err(NotTold::Full) };
        let socket = Arc::new(socket);
        held.clear(connection);
        held.line.tell(message, Some(&socket))?;
        let ends = self.ends.entry(grant).or_default();
        match end {
            End::Caller => ends.caller = Some(socket),
            End::Callee => ends.callee = Some(socket),
        }
        self.audit(grant);
        Ok(())
    }

    fn step(&mut self, step: Step) -> Option<Later> {
        match step {
            Step::Notice { program, connection, cause, taken } => {
                if let Some(held) = self.held.get(&program) {
                    held.notice(connection, cause, taken.as_deref());
                }
                None
            }
            Step::Obituary { host, grant, cause, receipts } => {
                let taken = receipts
                    .and_then(|(program, at)| pages::receipts(&self.held.get(&program)?.page, at));
                Some(Later::Obituary { host, grant, cause, taken })
            }
            Step::Shut(grant) => {
                let ends = self.ends.remove(&grant).unwrap_or_default();
                for end in [ends.caller, ends.callee].into_iter().flatten() {
                    // One that the peer has shut already says so, and is as good.
                    let _ = shutdown(&end, Shutdown::Both);
                }
                None
            }
        }
    }

    fn audit(&self, grant: GrantId) {
        let Some(grant) = self.broker.grants().get(&grant) else { return };
        let methods: Vec<&str> = grant.methods.iter().map(MethodPattern::as_str).collect();
        tracing::info!(
            target: "audit",
            grant = %grant.id,
            service = %grant.service,
            instance = %grant.instance,
            caller = %grant.from,
            caller_pid = grant.from.pid,
            callee = %grant.to,
            callee_pid = grant.to.pid,
            methods = methods.join(" "),
            "connection granted"
        );
    }
}
