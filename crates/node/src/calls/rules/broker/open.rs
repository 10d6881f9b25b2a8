//! Who asks for a connection, and gets one, waits, or is refused.

use kumo_abi::HostId;
use kumo_abi::call::{Cause, GrantId, Hop, MethodPattern, Peer, ServiceName, Who};
use kumo_abi::control::{Carrier, Granted, Incoming, Open, REQUESTS_MAX, Request};

use super::program::ProgramState;
use super::words::{Effect, Moment, Order, Refusal};
use super::{Broker, RETRY_BUSY_MS};
use crate::calls::rules::Program;
use crate::calls::rules::grants::{Grant, Party};
use crate::calls::rules::limits::{CONNECTIONS_OF_PROGRAM_MAX, CONNECTIONS_OF_USER_MAX};
use crate::calls::rules::refusals::Refused;
use crate::calls::rules::registry::{Instance, NoPlace};

/// A program that waits for a place.
#[derive(Clone, Debug)]
pub(super) struct Parked {
    pub(super) program: Program,
    pub(super) open: Open,
    pub(super) since_ms: u64,
    /// Other hosts are not asked again before.
    pub(super) after_ms: u64,
}

impl Parked {
    pub(super) fn until_ms(&self) -> u64 {
        self.since_ms.saturating_add(self.open.budget_ms)
    }
}

impl Broker {
    pub(super) fn open(
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
            Err(refusal) => {
                self.refuse(program, request, &open.service, &refusal, now, effects);
            }
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
    pub(super) fn methods(
        &self,
        service: &ServiceName,
        from: &Peer,
    ) -> Result<Vec<MethodPattern>, Refusal> {
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
        self.refuse_or_park(parked, &refusal, now, effects);
    }

    /// Tells a program no, and remembers it for those who ask why.
    fn refuse(
        &mut self,
        program: Program,
        request: Request,
        service: &ServiceName,
        refusal: &Refusal,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let Some(state) = self.programs.get(&program) else { return };
        effects.push(Effect::Tell(program, refusal.to_program(request)));
        self.refusals.note(Refused {
            service: service.clone(),
            pid: state.pid,
            uid: state.uid,
            cause: refusal.cause,
            message: refusal.message.clone(),
            at_ms: now.ms,
        });
    }

    pub(super) fn refuse_or_park(
        &mut self,
        parked: Parked,
        refusal: &Refusal,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let (program, request) = (parked.program, parked.open.request);
        if refusal.cause == Cause::Busy && parked.open.wait {
            self.asking(program, request);
            self.parked.push_back(parked);
        } else {
            self.answered(program, request);
            self.refuse(program, request, &parked.open.service, refusal, now, effects);
        }
    }

    fn asking(&mut self, program: Program, request: Request) {
        if let Some(state) = self.programs.get_mut(&program) {
            state.asking.insert(request);
        }
    }

    pub(super) fn answered(&mut self, program: Program, request: Request) {
        if let Some(state) = self.programs.get_mut(&program) {
            state.asking.remove(&request);
        }
    }

    pub(super) fn choose(
        &self,
        service: &ServiceName,
        chain: &[Hop],
    ) -> Result<&Instance, NoPlace> {
        self.registry.choose(service, chain, |instance| {
            self.programs.get(&instance.program).is_some_and(ProgramState::has_room)
        })
    }

    /// Takes an index for each end, and notes the grant.
    #[expect(clippy::too_many_arguments, reason = "all of what a grant is made of")]
    pub(super) fn join(
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

    pub(super) fn check_room(&self) -> Result<(), Refusal> {
        if self.grants.len() < self.grants_max {
            return Ok(());
        }
        let message = format!(
            "{} connections are open on {}; its node has no descriptors for more",
            self.grants_max, self.me
        );
        Err(Refusal::later(Cause::Exhausted, message, RETRY_BUSY_MS))
    }

    pub(super) fn unpark(
        &mut self,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
        effects: &mut Vec<Effect>,
    ) {
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
                Err(refusal) => self.refuse_or_park(parked, &refusal, now, effects),
            }
        }
    }
}

/// What who wants a service is told where it gets no instance.
pub(super) fn refusal(service: &ServiceName, no: NoPlace) -> Refusal {
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
