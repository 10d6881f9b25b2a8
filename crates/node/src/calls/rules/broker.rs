//! What a node knows of calls on its host, and what it does about them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use kumo_abi::call::{
    CALLS_IN_FLIGHT_MAX, CREDIT_MAX, Cause, GrantId, Hop, InstanceId, MethodPattern, Peer,
    Reentrancy, SLOTS_MAX, ServiceName, Who,
};
use kumo_abi::cluster::HostInfo;
use kumo_abi::control::{
    Carrier, Connection, End, FromNode, Granted, Incoming, Open, REQUESTS_MAX, Request, Resume,
    SERVED_MAX, Serve, ServiceState, Serving, ToNode, WATCHED_MAX,
};
use kumo_abi::page::program;
use kumo_abi::{ClusterName, DcName, HostId};
use serde::{Deserialize, Serialize};

use super::Program;
use super::acl::Acl;
use super::directory::{Directory, Serves};
use super::grants::{Grant, Grants, Party, Step, closed_by, steps};
use super::limits::{
    Bucket, CONNECTIONS_OF_PROGRAM_MAX, CONNECTIONS_OF_USER_MAX, NAMES_OF_USER_MAX,
    OPENS_OF_PROGRAM, OPENS_OF_USER, PROGRAMS_MAX, PROGRAMS_OF_USER_MAX,
};
use super::registry::{Instance, NoPlace, Registry};

/// When a caller that was told BUSY may try again. A place becomes free with the next reply somewhere.
const RETRY_BUSY_MS: u32 = 50;

/// So long the other end of a connection that outlived its node may take to say so. The SDKs connect
/// again within some hundred milliseconds.
pub(crate) const RESUME_WAIT_MS: u64 = 3_000;

/// So long it may take until the socket of a connection from another host is there.
pub(crate) const ARRIVE_WAIT_MS: u64 = 10_000;

/// When it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Milliseconds of a clock that never goes back.
    pub(crate) ms: u64,
    /// Seconds since 1970.
    pub(crate) wall_s: u32,
}

/// No.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// Why.
    pub(crate) cause: Cause,
    /// What happened and what to do.
    pub(crate) message: String,
    /// When trying again is worth it.
    pub(crate) retry_after_ms: Option<u32>,
    /// For a cycle: the path.
    pub(crate) path: Vec<Hop>,
}

impl Refusal {
    pub(crate) fn new(cause: Cause, message: impl Into<String>) -> Refusal {
        Refusal { cause, message: message.into(), retry_after_ms: None, path: Vec::new() }
    }

    fn later(cause: Cause, message: impl Into<String>, retry_after_ms: u32) -> Refusal {
        Refusal { retry_after_ms: Some(retry_after_ms), ..Refusal::new(cause, message) }
    }

    /// As a program is told.
    pub(crate) fn to_program(&self, request: Request) -> FromNode {
        let Refusal { cause, message, retry_after_ms, path } = self.clone();
        FromNode::Refused { request, cause, message, retry_after_ms, path }
    }
}

/// What the shell does, in the order in which it is returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// A program is told something.
    Tell(Program, FromNode),
    /// A socket pair is made, each program gets its end, and duplicates are kept under the grant. Where
    /// that fails, [`Broker::undo`].
    Connect {
        /// The caller and what it is told.
        granted: (Program, Granted),
        /// The callee and what it is told.
        incoming: (Program, Incoming),
    },
    /// The descriptor that came with the message is kept under the grant.
    Keep {
        /// Of which connection.
        grant: GrantId,
        /// Which end it is.
        end: End,
    },
    /// A connection is no more.
    End(Step),
    /// A certificate is made for this program.
    Certify {
        /// For whom.
        program: Program,
        /// Of which question.
        request: Request,
        /// In whose name.
        who: Who,
    },
    /// Other hosts are asked, one after the other, until one has it; then [`Broker::granted`], else
    /// [`Broker::nowhere`].
    AskOthers(Order),
    /// What others know of a service on this host has changed.
    Publish {
        /// Which.
        service: ServiceName,
        /// Instances that take callers.
        ready: u32,
        /// Connections for each 100 slots.
        load_percent: u32,
    },
    /// Somebody got a connection, for the audit log.
    Audit(GrantId),
}

/// A question of a program that other hosts are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// Whose it is.
    pub(crate) program: Program,
    /// What it wants.
    pub(crate) open: Open,
    /// As whom.
    pub(crate) from: Peer,
    /// Whom to ask, in this order.
    pub(crate) hosts: Vec<HostId>,
    /// What it is told where none of them has it.
    pub(crate) otherwise: Refusal,
    /// When it was asked, milliseconds of the node's clock.
    pub(crate) since_ms: u64,
}

/// A question from another host.
#[derive(Clone, Debug)]
pub(crate) struct Asked<'a> {
    /// For which service.
    pub(crate) service: &'a ServiceName,
    /// Who wants it, as its node says.
    pub(crate) from: Peer,
    /// The instances that the call came through.
    pub(crate) chain: &'a [Hop],
    /// How it would be carried.
    pub(crate) carrier: Carrier,
}

/// A caller from another host that is let in: its socket arrives by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Admitted {
    /// The connection.
    pub(crate) grant: GrantId,
    /// Who answers.
    pub(crate) serving: Serving,
    /// As whom.
    pub(crate) to: Peer,
    /// Which methods may be called.
    pub(crate) methods: Vec<MethodPattern>,
    /// What it does with calls that came through it.
    pub(crate) reentrancy: Reentrancy,
    /// Calls that may be in flight on it at once.
    pub(crate) concurrent: u16,
}

/// A program.
#[derive(Clone, Debug)]
pub(crate) struct ProgramState {
    /// As whom it runs.
    pub(crate) uid: u32,
    /// Its process.
    pub(crate) pid: u32,
    /// What it serves.
    pub(crate) served: Vec<InstanceId>,
    /// By index; one is free when the program has closed it, not when the connection has ended.
    connections: Vec<Option<GrantId>>,
    open: u32,
    receipts: BTreeSet<u16>,
    watches: BTreeMap<Request, ServiceName>,
    /// Questions without an answer yet.
    asking: BTreeSet<Request>,
    opens: Bucket,
    /// Since when, milliseconds of the node's clock.
    pub(crate) since_ms: u64,
}

impl ProgramState {
    /// The connection at this index: also one that has ended and was not closed yet.
    pub(crate) fn connection(&self, connection: Connection) -> Option<GrantId> {
        self.connections.get(connection as usize).copied().flatten()
    }

    /// Its connections.
    pub(crate) fn connections(&self) -> impl Iterator<Item = GrantId> + '_ {
        self.connections.iter().flatten().copied()
    }

    fn take_connection(&mut self, grant: GrantId) -> Option<Connection> {
        let free = self.connections.iter().position(Option::is_none);
        let index = free.unwrap_or(self.connections.len());
        if index >= CONNECTIONS_OF_PROGRAM_MAX as usize {
            return None;
        }
        if index == self.connections.len() {
            self.connections.push(None);
        }
        self.connections[index] = Some(grant);
        self.open += 1;
        Some(index as Connection)
    }

    fn free_connection(&mut self, connection: Connection) {
        if let Some(slot) = self.connections.get_mut(connection as usize)
            && slot.take().is_some()
        {
            self.open -= 1;
        }
    }

    fn take_receipts(&mut self) -> Option<u16> {
        let free = (0..program::REMOTE_MAX as u16).find(|at| !self.receipts.contains(at))?;
        self.receipts.insert(free);
        Some(free)
    }

    fn has_room(&self) -> bool {
        self.open < CONNECTIONS_OF_PROGRAM_MAX
    }
}

#[derive(Clone, Debug)]
struct User {
    programs: u32,
    connections: u32,
    opens: Bucket,
}

/// A program that waits for a place.
#[derive(Clone, Debug)]
struct Parked {
    program: Program,
    open: Open,
    since_ms: u64,
    /// Other hosts are not asked again before.
    after_ms: u64,
}

impl Parked {
    fn until_ms(&self) -> u64 {
        self.since_ms.saturating_add(self.open.budget_ms)
    }
}

/// All that a node knows of calls.
#[derive(Debug)]
pub(crate) struct Broker {
    me: HostId,
    cluster: Option<ClusterName>,
    /// Each has two descriptors here.
    grants_max: usize,
    programs: BTreeMap<Program, ProgramState>,
    users: HashMap<u32, User>,
    registry: Registry,
    grants: Grants,
    directory: Directory,
    acls: BTreeMap<ServiceName, Acl>,
    /// The time to other data centres and back.
    far_us: BTreeMap<DcName, u32>,
    parked: VecDeque<Parked>,
    /// Who watches what.
    watchers: BTreeMap<ServiceName, BTreeSet<(Program, Request)>>,
    /// Ends that are waited for, and until when.
    awaited: BTreeMap<GrantId, u64>,
    /// Services whose state may have changed since it was last told.
    changed: BTreeSet<ServiceName>,
}

impl Broker {
    /// One that knows of nothing, and grants at most so many connections at once.
    pub(crate) fn new(me: HostId, cluster: Option<ClusterName>, grants_max: usize) -> Broker {
        Broker {
            me,
            cluster,
            grants_max,
            programs: BTreeMap::new(),
            users: HashMap::new(),
            registry: Registry::default(),
            grants: Grants::new(),
            directory: Directory::default(),
            acls: BTreeMap::new(),
            far_us: BTreeMap::new(),
            parked: VecDeque::new(),
            watchers: BTreeMap::new(),
            awaited: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// This host.
    pub(crate) fn me(&self) -> &HostId {
        &self.me
    }

    /// Its cluster.
    pub(crate) fn cluster(&self) -> Option<&ClusterName> {
        self.cluster.as_ref()
    }

    /// The servers.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The connections.
    pub(crate) fn grants(&self) -> &Grants {
        &self.grants
    }

    /// One program.
    pub(crate) fn program(&self, program: Program) -> Option<&ProgramState> {
        self.programs.get(&program)
    }

    /// All programs.
    pub(crate) fn programs(&self) -> impl Iterator<Item = (Program, &ProgramState)> {
        self.programs.iter().map(|(program, state)| (*program, state))
    }

    /// What hosts say about services.
    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// A program has connected.
    ///
    /// # Errors
    /// There are too many, of its user or of all.
    pub(crate) fn connect(
        &mut self,
        program: Program,
        uid: u32,
        pid: u32,
        now: Moment,
    ) -> Result<(), Refusal> {
        if self.programs.len() as u32 >= PROGRAMS_MAX {
            let message =
                format!("{PROGRAMS_MAX} programs are connected to this node; that is all it takes");
            return Err(Refusal::new(Cause::Exhausted, message));
        }
        self.users.retain(|_, user| {
            user.programs > 0 || user.connections > 0 || !user.opens.is_full(now.ms)
        });
        let user = self.users.entry(uid).or_insert_with(|| User {
            programs: 0,
            connections: 0,
            opens: Bucket::new(OPENS_OF_USER, now.ms),
        });
        if user.programs >= PROGRAMS_OF_USER_MAX {
            let message = format!(
                "{PROGRAMS_OF_USER_MAX} programs of user {uid} are connected; that is all that one user may have"
            );
            return Err(Refusal::new(Cause::Exhausted, message));
        }
        user.programs += 1;
        let state = ProgramState {
            uid,
            pid,
            served: Vec::new(),
            connections: Vec::new(),
            open: 0,
            receipts: BTreeSet::new(),
            watches: BTreeMap::new(),
            asking: BTreeSet::new(),
            opens: Bucket::new(OPENS_OF_PROGRAM, now.ms),
            since_ms: now.ms,
        };
        self.programs.insert(program, state);
        Ok(())
    }

    /// A program said something. `fresh` gives numbers that nobody can guess.
    pub(crate) fn hear(
        &mut self,
        program: Program,
        message: ToNode,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(state) = self.programs.get(&program) else { return effects };
        match message {
            ToNode::Open(open) => self.open(program, open, now, fresh, &mut effects),
            ToNode::Serve(serve) => self.serve(program, serve, now, fresh, &mut effects),
            ToNode::Drain { instance } if state.served.contains(&instance) => {
                if let Some(found) = self.registry.find_mut(instance) {
                    found.draining = true;
                    self.changed.insert(found.service.clone());
                }
            }
            ToNode::Ended { instance } if state.served.contains(&instance) => {
                self.end_instance(instance);
            }
            ToNode::Certificate { request, instance } => match self.certify(program, instance, now)
            {
                Ok(who) => effects.push(Effect::Certify { program, request, who }),
                Err(refusal) => effects.push(Effect::Tell(program, refusal.to_program(request))),
            },
            ToNode::Watch { request, service } => {
                self.watch(program, request, service, &mut effects);
            }
            ToNode::Unwatch { request } => self.unwatch(program, request),
            ToNode::Closed { connection } => self.closed(program, connection, &mut effects),
            ToNode::Resume(resume) => self.resume(program, resume, now, &mut effects),
            // An instance of somebody else, or one that has ended already; and a second hello, which
            // the shell does not let through.
            ToNode::Drain { .. } | ToNode::Ended { .. } | ToNode::Hello { .. } => {}
        }
        self.settle(now, fresh, &mut effects);
        effects
    }

    /// In whose name a program gets a certificate. Making one takes time, so they count as opens.
    fn certify(
        &mut self,
        program: Program,
        instance: Option<InstanceId>,
        now: Moment,
    ) -> Result<Who, Refusal> {
        if let Some(state) = self.programs.get_mut(&program) {
            state.opens.take(now.ms).map_err(|after_ms| {
                let message = "this program asks for certificates too often; one lasts for an hour";
                Refusal::later(Cause::Exhausted, message, after_ms)
            })?;
        }
        self.who(program, instance)
    }

    /// As whom a program speaks.
    fn who(&self, program: Program, instance: Option<InstanceId>) -> Result<Who, Refusal> {
        let state = self.programs.get(&program);
        let state = state.ok_or_else(|| Refusal::new(Cause::Lost, "this program has ended"))?;
        let Some(instance) = instance else { return Ok(Who::User(state.uid)) };
        match self.registry.find(instance) {
            Some(found) if found.program == program => Ok(Who::Service(found.service.clone())),
            _ => {
                let message = format!("this program does not serve as instance {instance}");
                Err(Refusal::new(Cause::Denied, message))
            }
        }
    }

    fn peer(&self, program: Program, who: Who) -> Peer {
        let pid = self.programs.get(&program).map_or(0, |state| state.pid);
        Peer { host: self.me.clone(), pid, who }
    }

    fn serve(
        &mut self,
        program: Program,
        serve: Serve,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
        effects: &mut Vec<Effect>,
    ) {
        let request = serve.request;
        match self.check_serve(program, &serve) {
            Err(refusal) => effects.push(Effect::Tell(program, refusal.to_program(request))),
            Ok(uid) => {
                // One that somebody else has is not believed.
                let resumed = serve.resumes.filter(|was| {
                    was.instance.0 != 0 && self.registry.find(was.instance).is_none()
                });
                let serving = resumed.unwrap_or_else(|| Serving {
                    instance: InstanceId(fresh().max(1)),
                    incarnation: self.registry.next_incarnation(now.wall_s),
                });
                let connections =
                    self.grants.values().filter(|grant| grant.instance == serving.instance);
                let connections = connections.count() as u32;
                self.registry.add(Instance {
                    id: serving.instance,
                    service: serve.service.clone(),
                    incarnation: serving.incarnation,
                    program,
                    uid,
                    slots: serve.slots,
                    credit: serve.credit,
                    concurrent: serve.concurrent,
                    reentrancy: serve.reentrancy,
                    ring: serve.ring,
                    draining: false,
                    suspended: false,
                    connections,
                    since_ms: now.ms,
                });
                if let Some(state) = self.programs.get_mut(&program) {
                    state.served.push(serving.instance);
                }
                self.changed.insert(serve.service);
                effects.push(Effect::Tell(program, FromNode::Serving { request, serving }));
            }
        }
    }

    /// Whether a program may serve what it wants to; as which user it runs.
    fn check_serve(&self, program: Program, serve: &Serve) -> Result<u32, Refusal> {
        let service = &serve.service;
        let state = self.programs.get(&program);
        let state = state.ok_or_else(|| Refusal::new(Cause::Lost, "this program has ended"))?;
        if state.served.len() >= SERVED_MAX {
            let message = format!("one program serves at most {SERVED_MAX} services");
            return Err(Refusal::new(Cause::Exhausted, message));
        }
        let concurrent = 1..=CALLS_IN_FLIGHT_MAX as u16;
        if !(1..=SLOTS_MAX).contains(&serve.slots)
            || serve.credit > CREDIT_MAX
            || !concurrent.contains(&serve.concurrent)
        {
            let message = format!(
                "a server has 1 to {SLOTS_MAX} slots, a credit of at most {CREDIT_MAX} and 1 to {CALLS_IN_FLIGHT_MAX} calls on a \
                 connection; this one says {}, {} and {}",
                serve.slots, serve.credit, serve.concurrent
            );
            return Err(Refusal::new(Cause::Malformed, message));
        }
        let uid = state.uid;
        let peer = self.peer(program, Who::User(uid));
        let names: BTreeSet<&ServiceName> =
            self.registry.iter().filter(|one| one.uid == uid).map(|one| &one.service).collect();
        if names.len() >= NAMES_OF_USER_MAX && !names.contains(service) {
            let message = format!(
                "the programs of user {uid} serve {NAMES_OF_USER_MAX} services; that is all that one user may"
            );
            return Err(Refusal::new(Cause::Exhausted, message));
        }
        let listed = self.acls.get(service);
        let listed = listed.and_then(|acl| acl.may_serve(self.cluster.as_ref(), &peer));
        let holder = self.registry.holder(service);
        match (listed, holder) {
            (Some(true), _) => Ok(uid),
            (Some(false), _) => {
                let message =
                    format!("user {uid} may not serve `{service}`: its access list names others");
                Err(Refusal::new(Cause::Denied, message))
            }
            (None, Some(holder)) if uid != 0 && holder != uid => {
                let message = format!(
                    "`{service}` is served by user {holder} on this host; user {uid} needs an access list that allows it"
                );
                Err(Refusal::new(Cause::Denied, message))
            }
            (None, _) => Ok(uid),
        }
    }

    fn end_instance(&mut self, instance: InstanceId) {
        if let Some(ended) = self.registry.remove(instance) {
            if let Some(state) = self.programs.get_mut(&ended.program) {
                state.served.retain(|served| *served != instance);
            }
            self.changed.insert(ended.service);
        }
    }

    fn open(
        &mut self,
        program: Program,
        open: Open,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
        effects: &mut Vec<Effect>,
    ) {
        let request = open.request;
        let refused = self.count_open(program, request, now).and_then(|()| {
            let who = self.who(program, open.from)?;
            let from = self.peer(program, who);
            Ok((self.methods(&open.service, &from)?, from))
        });
        match refused {
            Err(refusal) => effects.push(Effect::Tell(program, refusal.to_program(request))),
            Ok((methods, from)) => {
                let parked = Parked { program, open, since_ms: now.ms, after_ms: 0 };
                self.place(parked, from, methods, now, fresh, effects);
            }
        }
    }

    /// Counts an open against what its program and its user may have.
    fn count_open(
        &mut self,
        program: Program,
        request: Request,
        now: Moment,
    ) -> Result<(), Refusal> {
        let state = self.programs.get_mut(&program);
        let state = state.ok_or_else(|| Refusal::new(Cause::Lost, "this program has ended"))?;
        if state.asking.contains(&request) {
            let message = format!(
                "question {request} has no answer yet; a new one needs a number of its own"
            );
            return Err(Refusal::new(Cause::Malformed, message));
        }
        if state.asking.len() >= REQUESTS_MAX {
            let message =
                format!("{REQUESTS_MAX} questions of this program wait for their answers");
            return Err(Refusal::new(Cause::Exhausted, message));
        }
        let often = |whose: &str, retry_after_ms: u32| {
            let message = format!("{whose} opens connections too often; keep those that you have");
            Refusal::later(Cause::Exhausted, message, retry_after_ms)
        };
        state.opens.take(now.ms).map_err(|after_ms| often("this program", after_ms))?;
        let most = CONNECTIONS_OF_PROGRAM_MAX;
        if !state.has_room() {
            let message =
                format!("this program has {most} connections; that is all that one may have");
            return Err(Refusal::new(Cause::Exhausted, message));
        }
        let uid = state.uid;
        let Some(user) = self.users.get_mut(&uid) else { return Ok(()) };
        user.opens.take(now.ms).map_err(|after_ms| often("this user", after_ms))?;
        if user.connections >= CONNECTIONS_OF_USER_MAX {
            let message =
                format!("the programs of user {uid} have {CONNECTIONS_OF_USER_MAX} connections");
            return Err(Refusal::new(Cause::Exhausted, message));
        }
        Ok(())
    }

    /// The methods of a service that a caller may call.
    fn methods(&self, service: &ServiceName, from: &Peer) -> Result<Vec<MethodPattern>, Refusal> {
        let Some(acl) = self.acls.get(service) else { return Ok(vec![MethodPattern::any()]) };
        acl.methods(self.cluster.as_ref(), from).ok_or_else(|| {
            let message =
                format!("{from} may not call `{service}`: its access list does not name it");
            Refusal::new(Cause::Denied, message)
        })
    }

    /// Finds a callee for who may have one.
    fn place(
        &mut self,
        parked: Parked,
        from: Peer,
        methods: Vec<MethodPattern>,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
        effects: &mut Vec<Effect>,
    ) {
        let Parked { program, open, since_ms, .. } = parked;
        let request = open.request;
        let chosen = self.choose(&open.service, &open.chain).cloned();
        let refusal = match chosen {
            Ok(instance) => match self.join(program, &open, from, methods, &instance, now, fresh) {
                Ok(connect) => {
                    effects.extend(connect);
                    return;
                }
                Err(refusal) => refusal,
            },
            Err(no) => {
                let refusal = refusal(&open.service, no);
                let rtt_us = |host: &HostId| self.far_us.get(&host.dc).copied();
                let hosts = self.directory.candidates(&open.service, &self.me, rtt_us);
                if !hosts.is_empty() {
                    self.asking(program, request);
                    let otherwise = refusal;
                    let order = Order { program, open, from, hosts, otherwise, since_ms };
                    effects.push(Effect::AskOthers(order));
                    return;
                }
                refusal
            }
        };
        let parked = Parked { program, open, since_ms, after_ms: 0 };
        self.refuse_or_park(parked, &refusal, effects);
    }

    fn refuse_or_park(&mut self, parked: Parked, refusal: &Refusal, effects: &mut Vec<Effect>) {
        let (program, request) = (parked.program, parked.open.request);
        if refusal.cause == Cause::Busy && parked.open.wait {
            self.asking(program, request);
            self.parked.push_back(parked);
        } else {
            self.answered(program, request);
            effects.push(Effect::Tell(program, refusal.to_program(request)));
        }
    }

    fn asking(&mut self, program: Program, request: Request) {
        if let Some(state) = self.programs.get_mut(&program) {
            state.asking.insert(request);
        }
    }

    fn answered(&mut self, program: Program, request: Request) {
        if let Some(state) = self.programs.get_mut(&program) {
            state.asking.remove(&request);
        }
    }

    fn choose(&self, service: &ServiceName, chain: &[Hop]) -> Result<&Instance, NoPlace> {
        self.registry.choose(service, chain, |instance| {
            self.programs.get(&instance.program).is_some_and(ProgramState::has_room)
        })
    }

    /// Takes an index for each end, and notes the grant.
    #[expect(clippy::too_many_arguments, reason = "all of what a grant is made of")]
    fn join(
        &mut self,
        program: Program,
        open: &Open,
        from: Peer,
        methods: Vec<MethodPattern>,
        instance: &Instance,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Result<[Effect; 2], Refusal> {
        self.check_room()?;
        let grant = GrantId(fresh().max(1));
        let callee = instance.program;
        let full = || Refusal::new(Cause::Exhausted, "there is no place for another connection");
        let here = self.take_connection(program, grant).ok_or_else(full)?;
        let Some(there) = self.take_connection(callee, grant) else {
            self.free_connection(program, here);
            return Err(refusal(&open.service, NoPlace { cause: Cause::Busy, path: vec![] }));
        };
        let to = self.peer(callee, Who::Service(instance.service.clone()));
        let carrier = Carrier::Local { ring: open.ring && instance.ring };
        let party = |program, connection| Party::Here { program, connection, told: true };
        self.add(Grant {
            id: grant,
            service: instance.service.clone(),
            instance: instance.id,
            caller: party(program, here),
            callee: party(callee, there),
            from: from.clone(),
            to: to.clone(),
            carrier,
            methods: methods.clone(),
            receipts: None,
            since_ms: now.ms,
        });
        self.answered(program, open.request);
        let granted = Granted {
            request: open.request,
            connection: here,
            grant,
            serving: instance.serving(),
            peer: to,
            carrier,
            methods: methods.clone(),
            reentrancy: instance.reentrancy,
            concurrent: instance.concurrent,
        };
        let incoming = Incoming {
            connection: there,
            grant,
            instance: instance.id,
            peer: from,
            carrier,
            methods,
            receipts: None,
        };
        let connect = Effect::Connect { granted: (program, granted), incoming: (callee, incoming) };
        Ok([connect, Effect::Audit(grant)])
    }

    fn check_room(&self) -> Result<(), Refusal> {
        if self.grants.len() < self.grants_max {
            return Ok(());
        }
        let message = format!(
            "{} connections are open on {}; its node has no descriptors for more",
            self.grants_max, self.me
        );
        Err(Refusal::later(Cause::Exhausted, message, RETRY_BUSY_MS))
    }

    fn take_connection(&mut self, program: Program, grant: GrantId) -> Option<Connection> {
        let state = self.programs.get_mut(&program)?;
        let connection = state.take_connection(grant)?;
        if let Some(user) = self.users.get_mut(&state.uid) {
            user.connections += 1;
        }
        Some(connection)
    }

    fn free_connection(&mut self, program: Program, connection: Connection) {
        let Some(state) = self.programs.get_mut(&program) else { return };
        let before = state.open;
        state.free_connection(connection);
        if let Some(user) = self.users.get_mut(&state.uid) {
            user.connections = user.connections.saturating_sub(before - state.open);
        }
    }

    fn add(&mut self, grant: Grant) {
        if let Some(instance) = self.registry.find_mut(grant.instance) {
            instance.connections += 1;
        }
        self.grants.insert(grant.id, grant);
    }

    /// Ends a grant; see [`steps`].
    fn end(
        &mut self,
        id: GrantId,
        cause: Cause,
        gone: Option<End>,
        taken: Option<Vec<u64>>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(grant) = self.grants.remove(&id) else { return };
        self.awaited.remove(&id);
        if let Some(instance) = self.registry.find_mut(grant.instance) {
            instance.connections = instance.connections.saturating_sub(1);
        }
        effects.extend(steps(&grant, cause, gone, taken).into_iter().map(Effect::End));
        for party in [&grant.caller, &grant.callee] {
            if let Party::Here { program, connection, told: false } = *party {
                self.free_connection(program, connection);
            }
        }
        if let (Party::Here { program, .. }, Some(at)) = (&grant.callee, grant.receipts)
            && let Some(state) = self.programs.get_mut(program)
        {
            state.receipts.remove(&at);
        }
    }

    /// A local connection could not be made: the caller is told so, and nothing is left of it. Where the
    /// callee was told of it already, its index stays until it has closed it.
    pub(crate) fn undo(
        &mut self,
        id: GrantId,
        callee_told: bool,
        caller: (Program, Request),
        refusal: &Refusal,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some(grant) = self.grants.get_mut(&id) {
            for (end, was) in [(End::Caller, false), (End::Callee, callee_told)] {
                if let Party::Here { told, .. } = grant.party_mut(end) {
                    *told = was;
                }
            }
        }
        self.end(id, refusal.cause, None, None, &mut effects);
        let (program, request) = caller;
        effects.push(Effect::Tell(program, refusal.to_program(request)));
        self.settle(now, fresh, &mut effects);
        effects
    }

    fn closed(&mut self, program: Program, connection: Connection, effects: &mut Vec<Effect>) {
        let Some(id) = self.programs.get(&program).and_then(|state| state.connection(connection))
        else {
            return;
        };
        let end = self.grants.get(&id).and_then(|grant| {
            [End::Caller, End::Callee].into_iter().find(|end| {
                matches!(grant.party(*end), Party::Here { program: of, connection: at, .. }
                    if (*of, *at) == (program, connection))
            })
        });
        if let Some(end) = end {
            self.end(id, closed_by(end), Some(end), None, effects);
        }
        self.free_connection(program, connection);
    }

    fn watch(
        &mut self,
        program: Program,
        request: Request,
        service: ServiceName,
        effects: &mut Vec<Effect>,
    ) {
        let state = self.state_of(&service);
        let Some(found) = self.programs.get_mut(&program) else { return };
        let refusal = if found.watches.contains_key(&request) {
            Refusal::new(Cause::Malformed, format!("watch {request} is there already"))
        } else if found.watches.len() >= WATCHED_MAX {
            let message = format!("one program watches at most {WATCHED_MAX} services");
            Refusal::new(Cause::Exhausted, message)
        } else {
            found.watches.insert(request, service.clone());
            self.watchers.entry(service).or_default().insert((program, request));
            effects.push(Effect::Tell(program, FromNode::Service { request, state }));
            return;
        };
        effects.push(Effect::Tell(program, refusal.to_program(request)));
    }

    fn unwatch(&mut self, program: Program, request: Request) {
        let Some(state) = self.programs.get_mut(&program) else { return };
        let Some(service) = state.watches.remove(&request) else { return };
        if let Some(watchers) = self.watchers.get_mut(&service) {
            watchers.remove(&(program, request));
            if watchers.is_empty() {
                self.watchers.remove(&service);
            }
        }
    }

    /// How a service is on all hosts.
    pub(crate) fn state_of(&self, service: &ServiceName) -> ServiceState {
        let mut state = self.directory.elsewhere(service, &self.me);
        state.ready = state.ready.saturating_add(self.registry.ready(service));
        state
    }

    /// A program has a connection since before this node began.
    fn resume(&mut self, program: Program, resume: Resume, now: Moment, effects: &mut Vec<Effect>) {
        let Resume { connection, grant: id, end, service, instance, peer, carrier, receipts } =
            resume;
        let own_end = |grant: &Grant| *grant.party(end) == Party::Unheard;
        if self.grants.get(&id).is_some_and(|grant| !own_end(grant)) {
            // Somebody has this end already. What it is told is its own affair.
            return;
        }
        let who = match end {
            End::Callee => Who::Service(service.clone()),
            End::Caller => self.programs.get(&program).map_or(Who::User(0), |s| Who::User(s.uid)),
        };
        let own = self.peer(program, who);
        let Some(state) = self.programs.get_mut(&program) else { return };
        let index = connection as usize;
        if index >= CONNECTIONS_OF_PROGRAM_MAX as usize || state.connection(connection).is_some() {
            return;
        }
        if state.connections.len() <= index {
            state.connections.resize(index + 1, None);
        }
        state.connections[index] = Some(id);
        state.open += 1;
        let receipts = receipts.filter(|at| usize::from(*at) < program::REMOTE_MAX);
        state.receipts.extend(receipts);
        if let Some(user) = self.users.get_mut(&state.uid) {
            user.connections += 1;
        }
        let party = Party::Here { program, connection, told: true };
        effects.push(Effect::Keep { grant: id, end });
        if let Some(grant) = self.grants.get_mut(&id) {
            *grant.party_mut(end) = party;
            self.awaited.remove(&id);
            return;
        }
        let other = if peer.host == self.me {
            self.awaited.insert(id, now.ms + RESUME_WAIT_MS);
            Party::Unheard
        } else {
            Party::There(peer.host.clone())
        };
        let (caller, callee, from, to) = match end {
            End::Caller => (party, other, own, peer),
            End::Callee => (other, party, peer, own),
        };
        self.add(Grant {
            id,
            service,
            instance,
            caller,
            callee,
            from,
            to,
            carrier,
            methods: Vec::new(),
            receipts,
            since_ms: now.ms,
        });
    }

    /// A program is no more, because of `cause`: its process ended (DIED), or it closed its connection
    /// with this node (LOST). Its own pages are still there.
    pub(crate) fn gone(
        &mut self,
        program: Program,
        cause: Cause,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(state) = self.programs.get(&program).cloned() else { return effects };
        // First its servers: nobody gets a connection to them any more.
        for instance in &state.served {
            self.end_instance(*instance);
        }
        let grants: Vec<GrantId> = state.connections().collect();
        for id in grants {
            let Some(grant) = self.grants.get(&id) else { continue };
            let end = if grant.is_of(End::Callee, program) { End::Callee } else { End::Caller };
            let both = grant.is_of(End::Caller, program) && grant.is_of(End::Callee, program);
            let cause = if cause == Cause::Lost { closed_by(end) } else { cause };
            if both && let Some(grant) = self.grants.get_mut(&id) {
                // It called itself: nobody is left to be told.
                grant.caller = Party::Unheard;
            }
            self.end(id, cause, Some(end), None, &mut effects);
        }
        for request in state.watches.into_keys() {
            self.unwatch(program, request);
        }
        self.parked.retain(|parked| parked.program != program);
        let left = self.programs.remove(&program).map_or(0, |state| state.open);
        if let Some(user) = self.users.get_mut(&state.uid) {
            user.programs = user.programs.saturating_sub(1);
            user.connections = user.connections.saturating_sub(left);
        }
        self.settle(now, fresh, &mut effects);
        effects
    }

    /// A host is lost, or the way to it: those who are connected with its programs are told.
    pub(crate) fn host_lost(
        &mut self,
        host: &HostId,
        cause: Cause,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let with = self.grants.values().filter(|grant| grant.is_with(host));
        let with: Vec<(GrantId, End)> = with
            .map(|grant| {
                let is_callee = matches!(&grant.callee, Party::There(_));
                (grant.id, if is_callee { End::Callee } else { End::Caller })
            })
            .collect();
        for (id, end) in with {
            self.end(id, cause, Some(end), None, &mut effects);
        }
        self.settle(now, fresh, &mut effects);
        effects
    }

    /// The node of the program at the other end says that a connection is no more, and which calls had
    /// been taken. It is believed about connections with its own programs only.
    pub(crate) fn obituary(
        &mut self,
        from: &HostId,
        grant: GrantId,
        cause: Cause,
        taken: Option<Vec<u64>>,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let end = self.grants.get(&grant).and_then(|grant| {
            [End::Callee, End::Caller]
                .into_iter()
                .find(|end| matches!(grant.party(*end), Party::There(host) if host == from))
        });
        if let Some(end) = end {
            self.end(grant, cause, Some(end), taken, &mut effects);
            self.settle(now, fresh, &mut effects);
        }
        effects
    }

    /// Ends connections whose callee stands still while calls wait for it, or whose way is cut.
    pub(crate) fn end_all(
        &mut self,
        grants: &[GrantId],
        cause: Cause,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        for grant in grants {
            self.end(*grant, cause, None, None, &mut effects);
        }
        self.settle(now, fresh, &mut effects);
        effects
    }

    /// Notes whether a program stands still.
    pub(crate) fn stands_still(&mut self, program: Program, still: bool) {
        let Some(state) = self.programs.get(&program) else { return };
        for id in &state.served {
            if let Some(instance) = self.registry.find_mut(*id) {
                instance.suspended = still;
            }
        }
    }

    /// A caller on another host wants a connection. Its socket is waited for afterwards, for
    /// [`ARRIVE_WAIT_MS`]; see [`Broker::arrived`].
    ///
    /// # Errors
    /// Why it gets none.
    pub(crate) fn admit(
        &mut self,
        asked: Asked<'_>,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Result<Admitted, Refusal> {
        let Asked { service, from, chain, carrier } = asked;
        let methods = self.methods(service, &from)?;
        let instance = self.choose(service, chain).map_err(|no| refusal(service, no))?.clone();
        self.check_room()?;
        let busy = || refusal(service, NoPlace { cause: Cause::Busy, path: Vec::new() });
        let grant = GrantId(fresh().max(1));
        let program = instance.program;
        let state = self.programs.get_mut(&program).ok_or_else(busy)?;
        let receipts = state.take_receipts().ok_or_else(busy)?;
        let Some(connection) = self.take_connection(program, grant) else {
            if let Some(state) = self.programs.get_mut(&program) {
                state.receipts.remove(&receipts);
            }
            return Err(busy());
        };
        let to = self.peer(program, Who::Service(service.clone()));
        self.awaited.insert(grant, now.ms + ARRIVE_WAIT_MS);
        self.add(Grant {
            id: grant,
            service: service.clone(),
            instance: instance.id,
            caller: Party::There(from.host.clone()),
            callee: Party::Here { program, connection, told: false },
            from,
            to: to.clone(),
            carrier,
            methods: methods.clone(),
            receipts: Some(receipts),
            since_ms: now.ms,
        });
        let Instance { reentrancy, concurrent, .. } = instance;
        Ok(Admitted { grant, serving: instance.serving(), to, methods, reentrancy, concurrent })
    }

    /// The socket of a caller from another host is there: the program that gets it, and what it is told.
    /// Nothing if it came too late.
    pub(crate) fn arrived(&mut self, grant: GrantId) -> Option<(Program, Incoming)> {
        self.awaited.remove(&grant);
        let grant = self.grants.get_mut(&grant)?;
        let Party::Here { program, connection, told } = &mut grant.callee else { return None };
        if *told {
            return None;
        }
        *told = true;
        let incoming = Incoming {
            connection: *connection,
            grant: grant.id,
            instance: grant.instance,
            peer: grant.from.clone(),
            carrier: grant.carrier,
            methods: grant.methods.clone(),
            receipts: grant.receipts,
        };
        Some((*program, incoming))
    }

    /// A program of this host gets a connection to one of `host`: what it is told, beside the socket.
    ///
    /// # Errors
    /// It has ended, or has no room for it: then the other node is told that it is no more.
    pub(crate) fn granted(
        &mut self,
        order: &Order,
        host: &HostId,
        admitted: Admitted,
        carrier: Carrier,
        now: Moment,
    ) -> Result<Granted, Refusal> {
        let Order { program, open, from, .. } = order;
        let (program, request) = (*program, open.request);
        self.answered(program, request);
        let Admitted { grant, serving, to, methods, reentrancy, concurrent } = admitted;
        if self.grants.contains_key(&grant) {
            let message = format!("{host} gave a connection that is there already");
            return Err(Refusal::new(Cause::Malformed, message));
        }
        self.check_room()?;
        let connection = self.take_connection(program, grant).ok_or_else(|| {
            Refusal::new(Cause::Exhausted, "there is no place for another connection")
        })?;
        self.add(Grant {
            id: grant,
            service: open.service.clone(),
            instance: serving.instance,
            caller: Party::Here { program, connection, told: true },
            callee: Party::There(host.clone()),
            from: from.clone(),
            to: to.clone(),
            carrier,
            methods: methods.clone(),
            receipts: None,
            since_ms: now.ms,
        });
        let peer = to;
        Ok(Granted {
            request,
            connection,
            grant,
            serving,
            peer,
            carrier,
            methods,
            reentrancy,
            concurrent,
        })
    }

    /// No other host had what a program wants, `why` from the last that was asked.
    pub(crate) fn nowhere(
        &mut self,
        order: Order,
        why: Option<Refusal>,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Vec<Effect> {
        let Order { program, open, otherwise, since_ms, .. } = order;
        let mut effects = Vec::new();
        // What is the matter here is of more use, unless it is that there is nothing here.
        let refusal = match why {
            Some(why) if otherwise.cause == Cause::NoSuch => why,
            _ => otherwise,
        };
        if self.programs.contains_key(&program) {
            let after_ms = now.ms + u64::from(RETRY_BUSY_MS);
            let parked = Parked { program, open, since_ms, after_ms };
            self.refuse_or_park(parked, &refusal, &mut effects);
        }
        self.settle(now, fresh, &mut effects);
        effects
    }

    /// The list of a service is now this one. Connections that it no longer allows are ended.
    pub(crate) fn note_acl(
        &mut self,
        service: ServiceName,
        acl: Option<Acl>,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.acls.get(&service) == acl.as_ref() {
            return effects;
        }
        match acl {
            Some(acl) => drop(self.acls.insert(service.clone(), acl)),
            None => drop(self.acls.remove(&service)),
        }
        let changed = |grant: &&Grant| {
            // What was agreed upon before this node began is not known, and stays.
            grant.service == service
                && !grant.methods.is_empty()
                && self.methods(&service, &grant.from).ok().as_ref() != Some(&grant.methods)
        };
        let ended: Vec<GrantId> =
            self.grants.values().filter(changed).map(|grant| grant.id).collect();
        for id in ended {
            self.end(id, Cause::Denied, None, None, &mut effects);
        }
        self.settle(now, fresh, &mut effects);
        effects
    }

    /// What a host says that it serves.
    pub(crate) fn note_serves(&mut self, host: &HostId, serves: Option<Serves>) {
        let changed = self.directory.note(host, serves);
        self.changed.extend(changed);
    }

    /// Who is there. Those who were, and are not any more, are lost to their peers by
    /// [`Broker::host_lost`].
    pub(crate) fn note_hosts(&mut self, hosts: &[HostInfo]) {
        self.directory.note_hosts(hosts);
        let services: Vec<ServiceName> = self.directory.services().cloned().collect();
        self.changed.extend(services);
    }

    /// How long it takes to other data centres and back, where that is known.
    pub(crate) fn note_far(&mut self, far_us: BTreeMap<DcName, u32>) {
        self.far_us = far_us;
    }

    /// What is due: places that are waited for, ends that did not come back.
    pub(crate) fn tick(&mut self, now: Moment, fresh: &mut dyn FnMut() -> u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        let late = self.awaited.iter().filter(|(_, until_ms)| **until_ms <= now.ms);
        let late: Vec<GrantId> = late.map(|(grant, _)| *grant).collect();
        for id in late {
            self.end(id, Cause::Lost, None, None, &mut effects);
        }
        self.settle(now, fresh, &mut effects);
        let (due, still): (VecDeque<Parked>, _) =
            self.parked.drain(..).partition(|parked| parked.until_ms() <= now.ms);
        self.parked = still;
        for parked in due {
            let message = format!(
                "no place at `{}` became free within {} ms",
                parked.open.service, parked.open.budget_ms
            );
            let refusal = Refusal::new(Cause::Deadline, message);
            self.refuse_or_park(parked, &refusal, &mut effects);
        }
        effects
    }

    /// Whether [`Broker::tick`] has anything to wait for.
    #[cfg(test)]
    fn is_waiting(&self) -> bool {
        !self.parked.is_empty() || !self.awaited.is_empty()
    }

    /// Tells who watches what has changed, and lets in who waits for a place, until nothing changes.
    fn settle(&mut self, now: Moment, fresh: &mut dyn FnMut() -> u64, effects: &mut Vec<Effect>) {
        self.unpark(now, fresh, effects);
        for service in std::mem::take(&mut self.changed) {
            let state = self.state_of(&service);
            for (program, request) in self.watchers.get(&service).into_iter().flatten() {
                let told = FromNode::Service { request: *request, state: state.clone() };
                effects.push(Effect::Tell(*program, told));
            }
            let (ready, load_percent) = (self.registry.ready(&service), self.load(&service));
            effects.push(Effect::Publish { service, ready, load_percent });
        }
    }

    /// Connections for each 100 slots of a service's instances here.
    fn load(&self, service: &ServiceName) -> u32 {
        let sum = |(connections, slots), instance: &Instance| {
            (connections + u64::from(instance.connections), slots + u64::from(instance.slots))
        };
        let (connections, slots) = self.registry.of(service).fold((0, 0), sum);
        (connections * 100).checked_div(slots).unwrap_or(0).min(u64::from(u32::MAX)) as u32
    }

    fn unpark(&mut self, now: Moment, fresh: &mut dyn FnMut() -> u64, effects: &mut Vec<Effect>) {
        for _ in 0..self.parked.len() {
            let Some(parked) = self.parked.pop_front() else { return };
            let (program, open) = (parked.program, &parked.open);
            let busy = matches!(
                self.choose(&open.service, &open.chain),
                Err(NoPlace { cause: Cause::Busy, .. })
            );
            if busy || parked.after_ms > now.ms {
                self.parked.push_back(parked);
                continue;
            }
            // Looked at again: its instance may have ended, and lists change.
            let allowed = self.who(program, open.from).and_then(|who| {
                let from = self.peer(program, who);
                Ok((self.methods(&open.service, &from)?, from))
            });
            match allowed {
                Ok((methods, from)) => self.place(parked, from, methods, now, fresh, effects),
                Err(refusal) => {
                    let request = open.request;
                    self.answered(program, request);
                    effects.push(Effect::Tell(program, refusal.to_program(request)));
                }
            }
        }
    }
}

/// What who wants a service is told where it gets no instance.
fn refusal(service: &ServiceName, no: NoPlace) -> Refusal {
    let NoPlace { cause, path } = no;
    let (message, retry_after_ms) = match cause {
        Cause::Busy => (
            format!(
                "every instance of `{service}` has all the connections that it takes; wait and try again"
            ),
            Some(RETRY_BUSY_MS),
        ),
        Cause::Suspended => (
            format!("every instance of `{service}` stands still: its process is stopped or frozen"),
            None,
        ),
        Cause::Draining => (
            format!(
                "every instance of `{service}` drains and takes no new callers; try again soon"
            ),
            Some(RETRY_BUSY_MS),
        ),
        Cause::Cycle => {
            let names: Vec<&str> = path.iter().map(|hop| hop.service.as_str()).collect();
            let path = names.join(" → ");
            (format!("the call would wait for itself: {path}"), None)
        }
        _ => (format!("nobody serves `{service}`; `kumo services` lists what is served"), None),
    };
    Refusal { cause, message, retry_after_ms, path }
}

#[cfg(test)]
mod tests;
