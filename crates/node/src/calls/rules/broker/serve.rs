//! Who serves what.

use std::collections::BTreeSet;

use kumo_abi::call::{
    CALLS_IN_FLIGHT_MAX, CREDIT_MAX, Cause, InstanceId, SLOTS_MAX, ServiceName, Who,
};
use kumo_abi::control::{FromNode, SERVED_MAX, Serve, Serving};

use super::Broker;
use super::words::{Effect, Moment, Refusal};
use crate::calls::rules::Program;
use crate::calls::rules::limits::NAMES_OF_USER_MAX;
use crate::calls::rules::registry::Instance;

/// Whether a name says that it is that of a service of this user, which needs nobody's leave.
fn is_of_user(service: &ServiceName, uid: u32) -> bool {
    let rest = service.as_str().strip_prefix("user-");
    rest.and_then(|rest| rest.split_once('-')).is_some_and(|(user, _)| user == uid.to_string())
}

impl Broker {
    pub(super) fn serve(
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
            // A name that is free here may be that of a service elsewhere, whose callers on this host would come
            // to this program.
            (None, None) if uid != 0 && uid != self.owner && !is_of_user(service, uid) => {
                let message = format!(
                    "user {uid} may serve names that begin with `user-{uid}-`; for `{service}` its access list must \
                     allow it: kumo acl {service} --serve 'spiffe://*/dc/*/host/*/user/{uid}'"
                );
                Err(Refusal::new(Cause::Denied, message))
            }
            (Some(true) | None, _) => Ok(uid),
        }
    }

    pub(super) fn end_instance(&mut self, instance: InstanceId) {
        if let Some(ended) = self.registry.remove(instance) {
            if let Some(state) = self.programs.get_mut(&ended.program) {
                state.served.retain(|served| *served != instance);
            }
            self.changed.insert(ended.service);
        }
    }
}
