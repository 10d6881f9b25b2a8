//! Looks after calls that take long: a callee that stands still will not answer.
//!
//! Nobody looks while no program is connected. Looked at are those for whom a call of this host has waited for a
//! while, those who have callers on other hosts, whose pages are there, and those who stood still when they were
//! looked at last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kumo_abi::HostId;
use kumo_abi::call::{Cause, GrantId};
use kumo_abi::control::{Connection, End};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::peers::Watches;
use super::rules::Program;
use super::rules::grants::Party;
use super::still::Freezers;
use super::{Shared, now_ns, pages};

/// Between two looks, and how long a call has waited before its callee is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Looks, as long as programs are there, until the node stops.
pub(super) async fn keep(shared: Arc<Shared>, mut stopping: watch::Receiver<bool>) {
    let freezers = Freezers::mounted();
    let looking = async {
        let mut watches = Watches::default();
        loop {
            let came = shared.came.notified();
            if shared.state().broker.programs().next().is_none() {
                came.await;
            }
            let mut ticks = interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while shared.state().broker.programs().next().is_some() {
                ticks.tick().await;
                let (shared, freezers) = (Arc::clone(&shared), freezers.clone());
                let looking = Arc::clone(&shared);
                // A look that panicked has logged it; the next may do better.
                let hosts = spawn_blocking(move || look(&looking, &freezers)).await;
                watches.watch(&shared, hosts.unwrap_or_default());
            }
        }
    };
    tokio::select! {
        () = looking => {}
        // An error means that the node is gone.
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}

/// Looks once. Returns the hosts for whose programs a call waits, for however long.
fn look(shared: &Arc<Shared>, freezers: &Freezers) -> BTreeSet<HostId> {
    let (slow, hosts) = waiting_calls(shared);
    let (waited_for, suspended) = callees(shared, &slow);
    let mut ended: Vec<GrantId> = Vec::new();
    let mut found: Vec<(Program, bool)> = Vec::new();
    for (program, Callee { pid, near, far }) in waited_for {
        let still = freezers.stands_still(pid);
        if still {
            ended.extend(near);
            if suspended.contains(&program) {
                ended.extend(far);
            }
        }
        if still || suspended.contains(&program) {
            found.push((program, still));
        }
    }
    shared.act(|broker, now, fresh| {
        for (program, still) in found {
            broker.stands_still(program, still);
        }
        let mut effects = broker.end_all(&ended, Cause::Suspended, now, fresh);
        effects.extend(broker.tick(now, fresh));
        effects
    });
    hosts
}

/// The connections on which a call has waited for long, and the other hosts for which any waits.
fn waiting_calls(shared: &Shared) -> (Vec<(Program, Connection)>, BTreeSet<HostId>) {
    let pages: Vec<_> =
        shared.state().pages().map(|(program, page)| (program, Arc::clone(page))).collect();
    let before_ns = now_ns().saturating_sub(TICK.as_nanos() as u64);
    let (mut slow, mut all) = (Vec::new(), BTreeSet::new());
    for (program, page) in pages {
        for call in pages::in_flight(&page) {
            all.insert((program, call.connection));
            if call.since_ns <= before_ns {
                slow.push((program, call.connection));
            }
        }
    }
    let state = shared.state();
    let host = |(program, connection): (Program, Connection)| {
        let grant = state.broker.program(program)?.connection(connection)?;
        match &state.broker.grants().get(&grant)?.callee {
            Party::There(host) => Some(host.clone()),
            Party::Here { .. } | Party::Unheard => None,
        }
    };
    let hosts = all.into_iter().filter_map(host).collect();
    (slow, hosts)
}

/// A program of this host that is, or may be, waited for.
struct Callee {
    pid: u32,
    /// The connections on which callers of this host wait.
    near: BTreeSet<GrantId>,
    /// Those of callers of other hosts, whose pages are there: whether they wait is not known here. So they are
    /// ended when it is seen standing still for the second time.
    far: BTreeSet<GrantId>,
}

/// Those programs, and those that stood still, which are looked at too, for they may go on. And which these
/// are.
type WaitedFor = BTreeMap<Program, Callee>;

fn callees(shared: &Shared, slow: &[(Program, Connection)]) -> (WaitedFor, BTreeSet<Program>) {
    let state = shared.state();
    let broker = &state.broker;
    let suspended: BTreeSet<Program> = broker
        .registry()
        .iter()
        .filter(|instance| instance.suspended)
        .map(|instance| instance.program)
        .collect();
    let mut waited_for = WaitedFor::new();
    let mut add = |program: Program, near: Option<GrantId>, far: Option<GrantId>| {
        if let Some(found) = broker.program(program).filter(|found| found.pid != 0) {
            let none = Callee { pid: found.pid, near: BTreeSet::new(), far: BTreeSet::new() };
            let callee = waited_for.entry(program).or_insert(none);
            callee.near.extend(near);
            callee.far.extend(far);
        }
    };
    for program in &suspended {
        add(*program, None, None);
    }
    for grant in broker.grants().values() {
        if let (Party::There(_), Party::Here { program, .. }) = (&grant.caller, &grant.callee) {
            add(*program, None, Some(grant.id));
        }
    }
    for (program, connection) in slow {
        // What a page says of a connection is believed of its own program's connections only.
        let grant = broker.program(*program).and_then(|found| found.connection(*connection));
        let Some(grant) = grant.and_then(|grant| broker.grants().get(&grant)) else { continue };
        if !grant.is_of(End::Caller, *program) {
            continue;
        }
        if let Party::Here { program: callee, .. } = grant.callee {
            add(callee, Some(grant.id), None);
        }
    }
    (waited_for, suspended)
}
