//! How connections end, and who is told.

use kumo_abi::HostId;
use kumo_abi::call::{Cause, GrantId};
use kumo_abi::control::{Connection, End, Request};

use super::Broker;
use super::words::{Effect, Moment, Refusal};
use crate::calls::rules::Program;
use crate::calls::rules::grants::{Party, closed_by, steps};

impl Broker {
    /// Ends a grant; see [`steps`].
    pub(super) fn end(
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
        self.was_told(id, End::Caller, false);
        self.was_told(id, End::Callee, callee_told);
        self.end(id, refusal.cause, None, None, &mut effects);
        let (program, request) = caller;
        effects.push(Effect::Tell(program, refusal.to_program(request)));
        self.settle(now, fresh, &mut effects);
        effects
    }

    /// The program at this end could not be given its socket of a connection with another host: nothing is left
    /// of it here, and the node at the other end is told.
    pub(crate) fn not_handed(
        &mut self,
        id: GrantId,
        end: End,
        cause: Cause,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.was_told(id, end, false);
        self.end(id, cause, None, None, &mut effects);
        self.settle(now, fresh, &mut effects);
        effects
    }

    /// Whether the program at this end was told of a connection.
    fn was_told(&mut self, id: GrantId, end: End, was: bool) {
        if let Some(grant) = self.grants.get_mut(&id)
            && let Party::Here { told, .. } = grant.party_mut(end)
        {
            *told = was;
        }
    }

    pub(super) fn closed(
        &mut self,
        program: Program,
        connection: Connection,
        effects: &mut Vec<Effect>,
    ) {
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

    /// A program is no more, because of `cause`: its process ended (DIED), or it closed its connection
    /// with this node (LOST). Its own pages are still there. One that is lost may still run, and takes no call
    /// of which its caller hears that it did not run: so it is told as a callee.
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
            let may_run = cause == Cause::Lost && end == End::Callee;
            let cause = if cause == Cause::Lost { closed_by(end) } else { cause };
            if both && let Some(grant) = self.grants.get_mut(&id) {
                // It called itself: nobody is left to be told.
                grant.caller = Party::Unheard;
            }
            self.end(id, cause, (!may_run).then_some(end), None, &mut effects);
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
}
