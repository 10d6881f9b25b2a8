//! The servers of this host: which instances serve which names, and which of them a caller gets.

use std::collections::{BTreeMap, HashMap};

use kumo_abi::call::{Cause, Hop, InstanceId, Reentrancy, ServiceName};
use kumo_abi::control::Serving;

use super::Program;

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    /// Which.
    pub(crate) id: InstanceId,
    /// What it serves.
    pub(crate) service: ServiceName,
    /// Greater than that of every instance of its service here before.
    pub(crate) incarnation: u32,
    /// Whose it is.
    pub(crate) program: Program,
    /// As which user that runs.
    pub(crate) uid: u32,
    /// Handlers that run at once.
    pub(crate) slots: u16,
    /// Calls that may wait for one.
    pub(crate) credit: u16,
    /// Calls that one of its connections may carry at once.
    pub(crate) concurrent: u16,
    /// What it does with a call that came through it.
    pub(crate) reentrancy: Reentrancy,
    /// Whether it can map rings.
    pub(crate) ring: bool,
    /// It takes no new connections.
    pub(crate) draining: bool,
    /// Its process stands still.
    pub(crate) suspended: bool,
    /// Connections to it that are open.
    pub(crate) connections: u32,
    /// Since when it serves, milliseconds of the node's clock.
    pub(crate) since_ms: u64,
}

impl Instance {
    /// Who it is, as callers are told.
    pub(crate) fn serving(&self) -> Serving {
        Serving { instance: self.id, incarnation: self.incarnation }
    }
}

/// Why no instance takes a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoPlace {
    /// Why.
    pub(crate) cause: Cause,
    /// For a cycle: the path.
    pub(crate) path: Vec<Hop>,
}

/// All servers of this host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registry {
    instances: HashMap<InstanceId, Instance>,
    services: BTreeMap<ServiceName, Vec<InstanceId>>,
    /// That of the newest instance of all. One number for all services: a number for each would have to
    /// be kept for ever.
    incarnation: u32,
}

impl Registry {
    /// The incarnation of an instance that begins at `wall_s`, seconds since 1970. It never goes back,
    /// and after a restart of the node only if the clock was set back by more than the node was away.
    pub(crate) fn next_incarnation(&mut self, wall_s: u32) -> u32 {
        self.incarnation = self.incarnation.saturating_add(1).max(wall_s);
        self.incarnation
    }

    /// Takes in an instance; those after it are newer.
    pub(crate) fn add(&mut self, instance: Instance) {
        self.incarnation = self.incarnation.max(instance.incarnation);
        self.services.entry(instance.service.clone()).or_default().push(instance.id);
        self.instances.insert(instance.id, instance);
    }

    /// Takes out an instance.
    pub(crate) fn remove(&mut self, id: InstanceId) -> Option<Instance> {
        let instance = self.instances.remove(&id)?;
        if let Some(all) = self.services.get_mut(&instance.service) {
            all.retain(|other| *other != id);
            if all.is_empty() {
                self.services.remove(&instance.service);
            }
        }
        Some(instance)
    }

    /// One instance.
    pub(crate) fn find(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.get(&id)
    }

    /// One instance, to be changed.
    pub(crate) fn find_mut(&mut self, id: InstanceId) -> Option<&mut Instance> {
        self.instances.get_mut(&id)
    }

    /// The instances of a service, oldest first.
    pub(crate) fn of(&self, service: &ServiceName) -> impl Iterator<Item = &Instance> {
        let ids = self.services.get(service).into_iter().flatten();
        ids.filter_map(|id| self.instances.get(id))
    }

    /// All instances, by service.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.services.values().flatten().filter_map(|id| self.instances.get(id))
    }

    /// Names that are served here.
    #[cfg(test)]
    fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// How many instances of a service take new callers.
    pub(crate) fn ready(&self, service: &ServiceName) -> u32 {
        self.of(service).filter(|instance| !instance.draining).count() as u32
    }

    /// The user that holds a name: the one whose programs serve it now.
    pub(crate) fn holder(&self, service: &ServiceName) -> Option<u32> {
        self.of(service).map(|instance| instance.uid).next()
    }

    /// The instance that a caller gets, whose call came through `chain`: of those that take callers, one
    /// that is not in the chain unless it lets calls come back to itself, that does not stand still, and
    /// that has the fewest connections for its slots. `has_room` says which can have one more.
    ///
    /// # Errors
    /// Why none of them takes it: there is none (NO SUCH), all drain, all are full (BUSY), all stand
    /// still, or the call would wait for itself.
    pub(crate) fn choose(
        &self,
        service: &ServiceName,
        chain: &[Hop],
        has_room: impl Fn(&Instance) -> bool,
    ) -> Result<&Instance, NoPlace> {
        let no = |cause| Err(NoPlace { cause, path: Vec::new() });
        let in_chain = |instance: &Instance| chain.iter().any(|hop| hop.instance == instance.id);
        let (mut any, mut taking, mut cycle, mut room) = (false, false, None, false);
        let mut best: Option<&Instance> = None;
        for instance in self.of(service) {
            any = true;
            if instance.draining {
                continue;
            }
            if in_chain(instance) && instance.reentrancy == Reentrancy::Reject {
                cycle = Some(instance);
                continue;
            }
            taking = true;
            if !has_room(instance) {
                continue;
            }
            room = true;
            if !instance.suspended && best.is_none_or(|best| is_before(instance, best, &in_chain)) {
                best = Some(instance);
            }
        }
        match (best, cycle) {
            (Some(best), _) => Ok(best),
            (None, _) if room => no(Cause::Suspended),
            (None, _) if taking => no(Cause::Busy),
            (None, Some(again)) => {
                let last = Hop { instance: again.id, service: again.service.clone() };
                Err(NoPlace { cause: Cause::Cycle, path: [chain, &[last]].concat() })
            }
            (None, None) if any => no(Cause::Draining),
            (None, None) => no(Cause::NoSuch),
        }
    }
}

/// Whether the first is the better choice: not in the chain; then fewer connections for its slots.
fn is_before(one: &Instance, best: &Instance, in_chain: &impl Fn(&Instance) -> bool) -> bool {
    // Of both as if they had the new one, multiplied crosswise.
    let load = |one: &Instance, slots: u16| (u64::from(one.connections) + 1) * u64::from(slots);
    let (one_in, best_in) = (in_chain(one), in_chain(best));
    if one_in != best_in { best_in } else { load(one, best.slots) < load(best, one.slots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServiceName {
        text.parse().expect("a name")
    }

    fn instance(id: u64) -> Instance {
        Instance {
            id: InstanceId(id),
            service: name("kv"),
            incarnation: id as u32,
            program: id,
            uid: 0,
            slots: 4,
            credit: 0,
            concurrent: 1,
            reentrancy: Reentrancy::Reject,
            ring: true,
            draining: false,
            suspended: false,
            connections: 0,
            since_ms: 0,
        }
    }

    fn hop(id: u64) -> Hop {
        Hop { instance: InstanceId(id), service: name("kv") }
    }

    #[test]
    fn a_caller_gets_the_instance_with_most_room() {
        let draining = Instance { draining: true, ..instance(1) };
        let suspended = Instance { suspended: true, ..instance(2) };
        let busy = Instance { connections: 3, ..instance(3) };
        let large = Instance { connections: 4, slots: 8, ..instance(4) };
        let idle = instance(5);
        let back = Instance { reentrancy: Reentrancy::Allow, ..instance(6) };
        let full = Instance { connections: 9, ..instance(7) };
        let all = [&draining, &suspended, &busy, &large, &idle, &back, &full];
        // Which are there, the chain, and what comes of it.
        let cases: [(&[u64], &[u64], Result<u64, Cause>); 15] = [
            (&[], &[], Err(Cause::NoSuch)),
            (&[1], &[], Err(Cause::Draining)),
            (&[1, 2], &[], Err(Cause::Suspended)),
            (&[7], &[], Err(Cause::Busy)),
            (&[7, 2], &[], Err(Cause::Suspended)),
            (&[2, 3], &[], Ok(3)),
            (&[3, 4], &[], Ok(4)),
            (&[3, 4, 5], &[], Ok(5)),
            (&[5, 3], &[5], Ok(3)),
            (&[5], &[9, 5], Err(Cause::Cycle)),
            (&[5, 1], &[5], Err(Cause::Cycle)),
            // There would be others than the one in the chain; they have no room now.
            (&[5, 7], &[5], Err(Cause::Busy)),
            (&[5, 2], &[5], Err(Cause::Suspended)),
            (&[6], &[6], Ok(6)),
            // Rather another than back to itself, even where that is fuller.
            (&[6, 3], &[6], Ok(3)),
        ];
        for (there, chain, want) in cases {
            let mut registry = Registry::default();
            all.iter().filter(|one| there.contains(&one.id.0)).for_each(|one| {
                registry.add((*one).clone());
            });
            let chain: Vec<Hop> = chain.iter().map(|id| hop(*id)).collect();
            let chosen = registry.choose(&name("kv"), &chain, |one| one.connections < 9);
            let chosen = chosen.map(|one| one.id.0).map_err(|no| {
                let path = (no.cause == Cause::Cycle).then(|| [&chain[..], &[hop(5)]].concat());
                assert_eq!(no.path, path.unwrap_or_default(), "of {there:?}");
                no.cause
            });
            assert_eq!(chosen, want, "of {there:?} after {chain:?}");
        }
    }

    #[test]
    fn incarnations_never_go_back() {
        let mut registry = Registry::default();
        let cases = [(1_000, 1_000), (1_000, 1_001), (5, 1_002), (2_000, 2_000)];
        for (wall_s, want) in cases {
            assert_eq!(registry.next_incarnation(wall_s), want);
        }
        // One that was there before the node started anew.
        registry.add(Instance { incarnation: 3_000, ..instance(1) });
        assert_eq!(registry.next_incarnation(2_001), 3_001);
    }

    #[test]
    fn names_come_and_go_with_their_instances() {
        let mut registry = Registry::default();
        registry.add(Instance { uid: 7, ..instance(1) });
        registry.add(Instance { draining: true, uid: 0, ..instance(2) });
        assert_eq!((registry.ready(&name("kv")), registry.holder(&name("kv"))), (1, Some(7)));
        assert_eq!(registry.services().count(), 1);
        assert!(registry.remove(InstanceId(1)).is_some());
        assert!(registry.remove(InstanceId(1)).is_none());
        assert_eq!((registry.ready(&name("kv")), registry.holder(&name("kv"))), (0, Some(0)));
        assert!(registry.remove(InstanceId(2)).is_some());
        assert_eq!((registry.services().count(), registry.holder(&name("kv"))), (0, None));
    }
}
