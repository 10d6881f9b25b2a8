//! What a node knows of calls on its host, and what it does about them.
//!
//! Here are the [`Broker`] and what it hears: programs that come, what they say, lists, hosts and times. What
//! follows is in its parts:
//!
//! | file | one idea |
//! |---|---|
//! | `words` | what is said to the rules, and by them |
//! | `program` | what a program and a user have |
//! | `serve` | who may serve what |
//! | `open` | who asks for a connection, and gets one, waits, or is refused |
//! | `end` | how connections end, and who is told |
//! | `elsewhere` | the same with programs of other hosts |

mod elsewhere;
mod end;
mod open;
mod program;
mod serve;
mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use kumo_abi::call::{Cause, GrantId, InstanceId, Peer, ServiceName, Who};
use kumo_abi::cluster::HostInfo;
use kumo_abi::control::{
    Connection, End, FromNode, Request, Resume, ServiceState, ToNode, WATCHED_MAX,
};
use kumo_abi::page::program as page;
use kumo_abi::{ClusterName, DcName, HostId};

use self::open::Parked;
use self::program::{ProgramState, User};
pub(crate) use self::words::{Admitted, Asked, Effect, Moment, Order, Refusal};
use super::Program;
use super::acl::Acl;
use super::directory::{Directory, Serves};
use super::grants::{Grant, Grants, Party};
use super::limits::{
    Bucket, CONNECTIONS_OF_PROGRAM_MAX, OPENS_OF_PROGRAM, OPENS_OF_USER, PROGRAMS_MAX,
    PROGRAMS_OF_USER_MAX,
};
use super::refusals::Refusals;
use super::registry::{Instance, Registry};

/// When a caller that was told BUSY may try again. A place becomes free with the next reply somewhere.
const RETRY_BUSY_MS: u32 = 50;

/// So long the other end of a connection that outlived its node may take to say so. The SDKs connect
/// again within some hundred milliseconds.
pub(crate) const RESUME_WAIT_MS: u64 = 3_000;

/// So long it may take until the socket of a connection from another host is there.
pub(crate) const ARRIVE_WAIT_MS: u64 = 10_000;

/// All that a node knows of calls.
#[derive(Debug)]
pub(crate) struct Broker {
    me: HostId,
    cluster: Option<ClusterName>,
    /// The user that the node runs as.
    owner: u32,
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
    /// Who watches what, and what each was told last.
    watchers: BTreeMap<ServiceName, BTreeMap<(Program, Request), ServiceState>>,
    /// Ends that are waited for, and until when.
    awaited: BTreeMap<GrantId, u64>,
    /// Services whose state may have changed since it was last told.
    changed: BTreeSet<ServiceName>,
    refusals: Refusals,
}

impl Broker {
    /// One that knows of nothing, and grants at most so many connections at once. `owner` is the user that
    /// the node runs as.
    pub(crate) fn new(
        me: HostId,
        cluster: Option<ClusterName>,
        owner: u32,
        grants_max: usize,
    ) -> Broker {
        Broker {
            me,
            cluster,
            owner,
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
            refusals: Refusals::default(),
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

    /// What was refused last.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
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
            receipts: BTreeMap::new(),
            watches: BTreeMap::new(),
            asking: BTreeSet::new(),
            opens: Bucket::new(OPENS_OF_PROGRAM, now.ms),
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
            let watchers = self.watchers.entry(service).or_default();
            watchers.insert((program, request), state.clone());
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
        let receipts = receipts.filter(|at| usize::from(*at) < page::REMOTE_MAX);
        // A program says this before all else, so neither was given to another meanwhile.
        let taken = receipts.is_some_and(|at| state.receipts.contains_key(&at));
        if index >= CONNECTIONS_OF_PROGRAM_MAX as usize
            || state.connection(connection).is_some()
            || taken
        {
            return;
        }
        if state.connections.len() <= index {
            state.connections.resize(index + 1, None);
        }
        state.connections[index] = Some(id);
        state.open += 1;
        state.receipts.extend(receipts.map(|at| (at, connection)));
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

    /// Notes whether a program stands still.
    pub(crate) fn stands_still(&mut self, program: Program, still: bool) {
        let Some(state) = self.programs.get(&program) else { return };
        for id in &state.served {
            if let Some(instance) = self.registry.find_mut(*id) {
                instance.suspended = still;
            }
        }
    }

    /// The list of a service is now this one. Connections that it no longer allows are ended.
    pub(crate) fn note_acl(
        &mut self,
        service: &ServiceName,
        acl: Option<Acl>,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.acls.get(service) == acl.as_ref() {
            return effects;
        }
        match acl {
            Some(acl) => drop(self.acls.insert(service.clone(), acl)),
            None => drop(self.acls.remove(service)),
        }
        let changed = |grant: &&Grant| {
            // What was agreed upon before this node began is not known, and stays.
            grant.service == *service
                && !grant.methods.is_empty()
                && self.methods(service, &grant.from).ok().as_ref() != Some(&grant.methods)
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
            self.refuse_or_park(parked, &refusal, now, &mut effects);
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
            for ((program, request), told) in self.watchers.get_mut(&service).into_iter().flatten()
            {
                if *told != state {
                    told.clone_from(&state);
                    let message = FromNode::Service { request: *request, state: state.clone() };
                    effects.push(Effect::Tell(*program, message));
                }
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
}

#[cfg(test)]
mod tests;
