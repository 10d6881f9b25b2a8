//! What the tests' node decides about programs: who serves, who is granted a connection, and who must be told
//! when something ends.
//!
//! The least that programs need of a node, without limits, lists and other hosts, so that the SDK is tested
//! against what is said between the two and not against one way to decide it. The real node's rules are in
//! `kumo-node`, `calls/rules`.

use std::collections::{BTreeMap, HashMap};

use kumo_abi::HostId;
use kumo_abi::call::{
    CALLS_IN_FLIGHT_MAX, CREDIT_MAX, Cause, GrantId, InstanceId, MethodPattern, Peer, SLOTS_MAX,
    ServiceName, Who,
};
use kumo_abi::control::{
    Carrier, Connection, End, Granted, Incoming, Open, Resume, SERVED_MAX, Serve, Serving,
};
use kumo_abi::page::notice::CONNECTIONS_MAX;

/// A program, by a number that its holder gives and never gives again.
pub type ProgramId = u64;

/// Why a program is told no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({cause})")]
pub struct Refusal {
    /// Why.
    pub cause: Cause,
    /// What happened and what to do.
    pub message: String,
    /// When trying again is worth it.
    pub retry_after_ms: Option<u32>,
}

fn refuse<T>(cause: Cause, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { cause, message: message.into(), retry_after_ms: None })
}

/// One end of a granted connection on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct At {
    /// Whose.
    pub program: ProgramId,
    /// Its index in that program's notice page.
    pub connection: Connection,
}

/// Both ends of a new connection between two programs of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// For the caller, beside one end of a socket pair.
    pub granted: Granted,
    /// Who is called.
    pub callee: ProgramId,
    /// For the callee, beside the other.
    pub incoming: Incoming,
}

/// A connection that is to be ended: write the cause into the notice pages of both ends that are here
/// (with the ids that the callee had taken, where they can be read), then shut the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Which.
    pub grant: GrantId,
    /// Why.
    pub cause: Cause,
    /// Its ends that are still here.
    pub ends: Vec<(End, At)>,
}

#[derive(Debug)]
struct Program {
    pid: u32,
    who: Who,
    connections: BTreeMap<Connection, GrantId>,
    next: Connection,
    back: Vec<Connection>,
}

#[derive(Debug)]
struct Server {
    program: ProgramId,
    serving: Serving,
    serve: Serve,
    draining: bool,
    connections: usize,
}

#[derive(Debug)]
struct Grant {
    instance: InstanceId,
    caller: Option<At>,
    callee: Option<At>,
}

/// Programs, servers and grants of one host.
#[derive(Debug)]
pub struct Broker {
    host: HostId,
    programs: BTreeMap<ProgramId, Program>,
    servers: HashMap<ServiceName, Vec<Server>>,
    incarnations: HashMap<ServiceName, u32>,
    grants: HashMap<GrantId, Grant>,
}

impl Broker {
    /// Of a host where nobody is yet. Incarnations begin at 1, or above those that programs resume.
    pub fn new(host: HostId) -> Broker {
        Broker {
            host,
            programs: BTreeMap::new(),
            servers: HashMap::new(),
            incarnations: HashMap::new(),
            grants: HashMap::new(),
        }
    }

    /// A program has come.
    pub fn hello(&mut self, program: ProgramId, pid: u32, who: Who) {
        let came = Program { pid, who, connections: BTreeMap::new(), next: 0, back: Vec::new() };
        self.programs.insert(program, came);
    }

    /// A program serves. `instance` is a fresh random id, used unless it was served before the node began.
    ///
    /// # Errors
    /// It serves too much, or says numbers that are out of range.
    pub fn serve(
        &mut self,
        program: ProgramId,
        serve: &Serve,
        instance: InstanceId,
    ) -> Result<Serving, Refusal> {
        let served = self.servers.values().flatten().filter(|server| server.program == program);
        if served.count() >= SERVED_MAX {
            return refuse(
                Cause::Exhausted,
                format!("a program serves at most {SERVED_MAX} services"),
            );
        }
        let concurrent = usize::from(serve.concurrent);
        if serve.slots > SLOTS_MAX
            || serve.credit > CREDIT_MAX
            || !(1..=CALLS_IN_FLIGHT_MAX).contains(&concurrent)
        {
            let message = format!(
                "at most {SLOTS_MAX} slots, {CREDIT_MAX} waiting calls, and 1 to {CALLS_IN_FLIGHT_MAX} calls on a connection"
            );
            return refuse(Cause::TooLarge, message);
        }
        let last = self.incarnations.entry(serve.service.clone()).or_insert(0);
        let serving = serve.resumes.unwrap_or(Serving { instance, incarnation: *last + 1 });
        *last = (*last).max(serving.incarnation);
        let servers = self.servers.entry(serve.service.clone()).or_default();
        if servers.iter().any(|server| server.serving.instance == serving.instance) {
            return refuse(Cause::Stale, "this instance serves already");
        }
        servers.push(Server {
            program,
            serving,
            serve: serve.clone(),
            draining: false,
            connections: self
                .grants
                .values()
                .filter(|grant| grant.instance == serving.instance && grant.callee.is_some())
                .count(),
        });
        Ok(serving)
    }

    /// An instance takes no new connections. Only its own program may say so.
    pub fn drain(&mut self, program: ProgramId, instance: InstanceId) {
        let own =
            |server: &&mut Server| server.program == program && server.serving.instance == instance;
        self.servers.values_mut().flatten().filter(own).for_each(|server| server.draining = true);
    }

    /// An instance serves no more. Its connections end by themselves.
    pub fn ended(&mut self, program: ProgramId, instance: InstanceId) {
        self.servers.retain(|_, servers| {
            servers
                .retain(|server| server.program != program || server.serving.instance != instance);
            !servers.is_empty()
        });
    }

    /// Services and how many instances of each take connections.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceName, usize)> {
        self.servers.iter().map(|(service, servers)| {
            (service, servers.iter().filter(|server| !server.draining).count())
        })
    }

    /// Connects a program with an instance on this host: the one with the fewest connections, and none that
    /// the call came through if there is another.
    ///
    /// # Errors
    /// Nobody serves here, or a program is at its limit. Nothing is changed then.
    pub fn open(
        &mut self,
        caller: ProgramId,
        open: &Open,
        grant: GrantId,
        methods: Vec<MethodPattern>,
    ) -> Result<Pair, Refusal> {
        let servers = self.servers.get(&open.service).into_iter().flatten();
        let came_through =
            |server: &Server| open.chain.iter().any(|hop| hop.instance == server.serving.instance);
        let chosen = servers
            .filter(|server| !server.draining)
            .min_by_key(|server| (came_through(server), server.connections));
        let Some(server) = chosen else {
            let message = format!("no instance of `{}` takes calls on this host", open.service);
            return refuse(Cause::NoSuch, message);
        };
        let (callee, serving, serve) = (server.program, server.serving, server.serve.clone());
        let carrier = Carrier::Local { ring: open.ring && serve.ring };
        let caller_peer = self.peer(caller, open.from)?;
        let callee_peer = self.peer(callee, Some(serving.instance))?;
        let caller_at = self.grant_one(caller, grant, serving.instance, End::Caller)?;
        let callee_at = match self.grant_one(callee, grant, serving.instance, End::Callee) {
            Ok(at) => at,
            Err(refusal) => {
                self.closed(caller_at);
                return Err(refusal);
            }
        };
        let granted = Granted {
            request: open.request,
            connection: caller_at.connection,
            grant,
            serving,
            peer: callee_peer,
            carrier,
            methods: methods.clone(),
            reentrancy: serve.reentrancy,
            concurrent: serve.concurrent,
        };
        let incoming = Incoming {
            connection: callee_at.connection,
            grant,
            instance: serving.instance,
            peer: caller_peer,
            carrier,
            methods,
            receipts: None,
        };
        Ok(Pair { granted, callee, incoming })
    }

    /// As whom a program is known: as the service whose instance it says it is, if it serves that.
    ///
    /// # Errors
    /// It serves no such instance, or is not here.
    pub fn peer(&self, program: ProgramId, from: Option<InstanceId>) -> Result<Peer, Refusal> {
        let Some(known) = self.programs.get(&program) else {
            return refuse(Cause::Malformed, "no hello came before");
        };
        let who = match from {
            None => known.who.clone(),
            Some(instance) => {
                let mut servers = self.servers.iter().flat_map(|(service, servers)| {
                    servers.iter().map(move |server| (service, server))
                });
                let own = servers.find(|(_, server)| {
                    server.program == program && server.serving.instance == instance
                });
                match own {
                    Some((service, _)) => Who::Service(service.clone()),
                    None => return refuse(Cause::Denied, "a program asks as itself only"),
                }
            }
        };
        Ok(Peer { host: self.host.clone(), pid: known.pid, who })
    }

    /// Notes one end of a connection on this host, and gives it an index. The other end is noted by a
    /// second call, or is on another host.
    ///
    /// # Errors
    /// The program is at its limit; nothing is changed then.
    pub fn grant_one(
        &mut self,
        program: ProgramId,
        grant: GrantId,
        instance: InstanceId,
        end: End,
    ) -> Result<At, Refusal> {
        let Some(known) = self.programs.get_mut(&program) else {
            return refuse(Cause::Died, "the program has ended");
        };
        let connection = match known.back.pop() {
            Some(connection) => connection,
            None if (known.next as usize) < CONNECTIONS_MAX => {
                known.next += 1;
                known.next - 1
            }
            None => {
                let message = format!("a program has at most {CONNECTIONS_MAX} connections");
                return refuse(Cause::Exhausted, message);
            }
        };
        known.connections.insert(connection, grant);
        let at = At { program, connection };
        self.note(at, grant, instance, end);
        Ok(at)
    }

    fn note(&mut self, at: At, grant: GrantId, instance: InstanceId, end: End) {
        let grant =
            self.grants.entry(grant).or_insert(Grant { instance, caller: None, callee: None });
        match end {
            End::Caller => grant.caller = Some(at),
            End::Callee => {
                grant.callee = Some(at);
                self.count(instance, 1);
            }
        }
    }

    fn count(&mut self, instance: InstanceId, change: isize) {
        let mut servers = self.servers.values_mut().flatten();
        if let Some(server) = servers.find(|server| server.serving.instance == instance) {
            server.connections = server.connections.saturating_add_signed(change);
        }
    }

    /// A program had this connection before the node began.
    ///
    /// # Errors
    /// Its index is taken or out of range: the program is not to be believed.
    pub fn resume(&mut self, program: ProgramId, resume: &Resume) -> Result<(), Refusal> {
        let Some(known) = self.programs.get_mut(&program) else {
            return refuse(Cause::Malformed, "no hello came before");
        };
        let connection = resume.connection;
        if connection as usize >= CONNECTIONS_MAX || known.connections.contains_key(&connection) {
            return refuse(Cause::Malformed, format!("connection {connection} cannot be resumed"));
        }
        known.back.retain(|back| *back != connection);
        // Those in between are free.
        known.back.extend(known.next..connection);
        known.next = known.next.max(connection + 1);
        known.connections.insert(connection, resume.grant);
        self.note(At { program, connection }, resume.grant, resume.instance, resume.end);
        Ok(())
    }

    /// A program no longer has this connection: its index is free. The other end, if it is still there, is
    /// to be ended; nothing is to be done if both are gone, but to let go of the socket.
    pub fn closed(&mut self, at: At) -> Option<Ending> {
        let known = self.programs.get_mut(&at.program)?;
        let grant = known.connections.remove(&at.connection)?;
        known.back.push(at.connection);
        self.leave(at, grant, Cause::Lost)
    }

    /// A program has ended. What is to be ended with it, for this cause.
    pub fn gone(&mut self, program: ProgramId, cause: Cause) -> Vec<Ending> {
        let Some(known) = self.programs.remove(&program) else { return Vec::new() };
        self.servers.retain(|_, servers| {
            servers.retain(|server| server.program != program);
            !servers.is_empty()
        });
        let leave = known
            .connections
            .into_iter()
            .filter_map(|(connection, grant)| self.leave(At { program, connection }, grant, cause));
        leave.collect()
    }

    /// The connections of callers to a program that is to be ended for a cause of its own, such as
    /// SUSPENDED; both sides still have them.
    pub fn of_callee(&self, program: ProgramId, cause: Cause) -> Vec<Ending> {
        let calls_it = |grant: &&Grant| grant.callee.is_some_and(|at| at.program == program);
        let grants = self.grants.iter().filter(|(_, grant)| calls_it(grant));
        grants.map(|(id, grant)| Ending { grant: *id, cause, ends: grant.ends() }).collect()
    }

    /// Who is at the other end of this connection, if it is on this host.
    pub fn other_end(&self, at: At) -> Option<At> {
        let grant =
            self.grants.get(self.programs.get(&at.program)?.connections.get(&at.connection)?)?;
        [grant.caller, grant.callee].into_iter().flatten().find(|other| *other != at)
    }

    fn leave(&mut self, at: At, id: GrantId, cause: Cause) -> Option<Ending> {
        let grant = self.grants.get_mut(&id)?;
        let instance = grant.instance;
        let was_callee = grant.callee == Some(at);
        if was_callee {
            grant.callee = None;
        } else if grant.caller == Some(at) {
            grant.caller = None;
        }
        let ends = grant.ends();
        if ends.is_empty() {
            self.grants.remove(&id);
        }
        if was_callee {
            self.count(instance, -1);
        }
        (!ends.is_empty()).then_some(Ending { grant: id, cause, ends })
    }

    /// Grants that are open, for who shows them.
    pub fn grants(&self) -> usize {
        self.grants.len()
    }
}

impl Grant {
    fn ends(&self) -> Vec<(End, At)> {
        let caller = self.caller.map(|at| (End::Caller, at));
        caller.into_iter().chain(self.callee.map(|at| (End::Callee, at))).collect()
    }
}
