//! What people see of calls on this host, as documents.
//!
//! All of it is read from what programs show on their pages, so it costs them nothing, and goes on to tell
//! of one that hangs. The field names are an interface: `kumo` and others read them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kumo_abi::call::{InstanceId, Method, Peer, Reentrancy, RootId, ServiceName, Status, Who};
use kumo_abi::control::{Carrier, End};
use kumo_abi::page::{InFlight, Side};
use kumo_abi::{DcName, HostId, HostName};
use kumo_sys::PeerPage;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use utoipa::ToSchema;

use super::rules::Program;
use super::rules::grants::Grant;
use super::rules::registry::Instance;
use super::{Shared, now, now_ns, pages};
use crate::react::rules::Load;

/// Most spans of a trace that one host shows.
pub(crate) const SPANS_SHOWN_MAX: usize = 10_000;

/// A host, in its own two fields.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct At {
    #[schema(value_type = String)]
    dc: DcName,
    #[schema(value_type = String)]
    host: HostName,
}

impl From<&HostId> for At {
    fn from(id: &HostId) -> At {
        At { dc: id.dc.clone(), host: id.host.clone() }
    }
}

/// `GET /v2/calls/services`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Services {
    /// This host.
    #[serde(flatten)]
    at: At,
    /// Programs that are connected with the node.
    programs: usize,
    /// Connections that it granted and that are open.
    connections: usize,
    /// The servers of this host, by service and then oldest first.
    instances: Vec<ShownInstance>,
    /// What other hosts say that they serve, as this host knows it.
    elsewhere: Vec<Elsewhere>,
    /// Connections that it refused to programs of this host: of each service the last, oldest first.
    refused: Vec<ShownRefusal>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ShownRefusal {
    #[schema(value_type = String)]
    service: ServiceName,
    pid: u32,
    uid: u32,
    cause: &'static str,
    message: String,
    ago_ms: u64,
}

#[derive(Debug, Serialize, ToSchema)]
struct ShownInstance {
    #[schema(value_type = String)]
    service: ServiceName,
    /// 16 hexadecimal digits.
    instance: String,
    incarnation: u32,
    /// `ready`, `draining` or `suspended`.
    state: &'static str,
    pid: u32,
    uid: u32,
    /// Handlers that run at once.
    slots: u16,
    /// Calls that may wait for one.
    credit: u16,
    /// Calls that one connection may carry at once.
    concurrent: u16,
    /// `reject`, `reenter` or `allow`.
    reentrancy: &'static str,
    /// Whether it can map rings.
    ring: bool,
    /// Connections of callers, from all hosts.
    connections: u32,
    /// Calls that callers on this host wait for.
    in_flight: u32,
    /// How long it has served.
    serves_ms: u64,
}

#[derive(Debug, Serialize, ToSchema)]
struct Elsewhere {
    #[serde(flatten)]
    at: At,
    #[schema(value_type = String)]
    service: ServiceName,
    ready: u32,
    asleep: u32,
    load_percent: u32,
    /// Whether it is believed: its host is there, and its node has said so since it began.
    current: bool,
}

/// `GET /v2/calls/blocked`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Blocked {
    #[serde(flatten)]
    at: At,
    /// Who waits for whom, longest first.
    edges: Vec<Edge>,
    /// Calls that had no room on the pages of their programs, since those began: they are not shown.
    unlisted: u64,
}

#[derive(Debug, Serialize, ToSchema)]
struct Edge {
    /// Who waits.
    caller: Party,
    /// For whom.
    callee: Party,
    /// The method; `null` where the page does not say.
    #[schema(value_type = Option<String>)]
    method: Option<Method>,
    /// The trace: 32 hexadecimal digits.
    root: String,
    /// The call: 16 hexadecimal digits.
    call: String,
    /// The call that it is part of; `null` at the root.
    parent: Option<String>,
    /// 1 for a call at the root.
    hop: u8,
    /// The thread that waits; `null` where a task does.
    thread: Option<u32>,
    /// How long it has waited.
    waits_ms: u64,
    /// How much of its budget is left.
    left_ms: u64,
    /// The connection: 16 hexadecimal digits.
    grant: String,
    /// `ring`, `socket`, `tls` or `spliced`.
    carrier: &'static str,
}

/// One end of a call.
#[derive(Debug, Serialize, ToSchema)]
struct Party {
    #[serde(flatten)]
    at: At,
    /// 0 where nobody knows it.
    pid: u32,
    /// As which service; `null` for a program that calls as its user.
    #[schema(value_type = Option<String>)]
    service: Option<ServiceName>,
    /// As which user; `null` for a service.
    uid: Option<u32>,
    /// The callee's instance; `null` for a caller.
    instance: Option<String>,
    /// Whether it stands still; of this host's programs only.
    suspended: bool,
}

/// `GET /v2/calls/trace/{root}`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Trace {
    #[serde(flatten)]
    at: At,
    root: String,
    /// What this host saw of it, by start. A call between two programs is seen twice.
    spans: Vec<ShownSpan>,
    /// Whether there were more than are shown.
    cut: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct ShownSpan {
    /// Who saw it: `caller` or `callee`.
    side: &'static str,
    pid: u32,
    uid: u32,
    #[schema(value_type = Option<String>)]
    service: Option<ServiceName>,
    #[schema(value_type = Option<String>)]
    method: Option<Method>,
    call: String,
    parent: Option<String>,
    hop: u8,
    /// RFC 3339, by this host's clock.
    start: String,
    /// When it began, nanoseconds since this host booted: within a host, spans compare to the nanosecond.
    start_ns: u64,
    /// How long it took, or has taken so far.
    took_ns: u64,
    /// `done`, `failed`, `not-executed`, `unknown`, or `running`.
    outcome: &'static str,
    /// Why, for the third and the fourth.
    cause: Option<&'static str>,
    /// The callee's code, for the second.
    code: Option<u32>,
}

fn hex_or_none(id: u64) -> Option<String> {
    (id != 0).then(|| format!("{id:016x}"))
}

fn who(who: &Who) -> (Option<ServiceName>, Option<u32>) {
    match who {
        Who::Service(service) => (Some(service.clone()), None),
        Who::User(uid) => (None, Some(*uid)),
    }
}

fn end(peer: &Peer, instance: Option<InstanceId>, suspended: bool) -> Party {
    let (service, uid) = who(&peer.who);
    let instance = instance.map(|instance| instance.to_string());
    Party { at: At::from(&peer.host), pid: peer.pid, service, uid, instance, suspended }
}

fn state_name(instance: &Instance) -> &'static str {
    match instance {
        Instance { draining: true, .. } => "draining",
        Instance { suspended: true, .. } => "suspended",
        _ => "ready",
    }
}

/// Calls on this host in numbers, for scrapes.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Programs that are connected with the node.
    pub(crate) programs: usize,
    /// Connections that it granted and that are open.
    pub(crate) connections: usize,
    /// Calls that wait for their reply.
    pub(crate) waiting: usize,
    /// Instances by state.
    pub(crate) instances: [(&'static str, usize); 3],
}

/// A call that waits, with the connection that it waits on.
struct Waiting {
    page: Arc<PeerPage>,
    call: InFlight,
    grant: Grant,
    suspended: bool,
}

impl Shared {
    /// All calls of this host's programs that wait, as far as they are on connections of ours.
    fn waiting(&self) -> (Vec<Waiting>, u64) {
        self.waiting_as(|page, call, grant, suspended| {
            let grant = grant.clone();
            Waiting { page, call, grant, suspended }
        })
    }

    /// The same, of each what is made of its page, its entry there, its connection, and whether its callee stands
    /// still. Under the lock.
    fn waiting_as<T>(
        &self,
        make: impl Fn(Arc<PeerPage>, InFlight, &Grant, bool) -> T,
    ) -> (Vec<T>, u64) {
        let pages: Vec<(Program, Arc<PeerPage>)> =
            self.state().pages().map(|(program, page)| (program, Arc::clone(page))).collect();
        // Pages are read without the lock: there may be many.
        let calls: Vec<(Program, Arc<PeerPage>, InFlight)> = pages
            .iter()
            .flat_map(|(program, page)| {
                pages::in_flight(page).map(|call| (*program, Arc::clone(page), call))
            })
            .collect();
        let unlisted = pages.iter().map(|(_, page)| pages::unlisted(page)).sum();
        let state = self.state();
        let broker = &state.broker;
        let waiting = calls.into_iter().filter_map(|(program, page, call)| {
            let grant = broker.program(program)?.connection(call.connection)?;
            let grant = broker.grants().get(&grant)?;
            let callee = broker.registry().find(grant.instance);
            let suspended = callee.is_some_and(|instance| instance.suspended);
            grant.is_of(End::Caller, program).then(|| make(page, call, grant, suspended))
        });
        (waiting.collect(), unlisted)
    }

    /// `GET /v2/calls/services`.
    pub(crate) fn services(&self) -> Services {
        let mut in_flight: HashMap<InstanceId, u32> = HashMap::new();
        for instance in self.waiting_as(|_, _, grant, _| grant.instance).0 {
            *in_flight.entry(instance).or_default() += 1;
        }
        let now_ms = now().ms;
        let state = self.state();
        let broker = &state.broker;
        let shown = |instance: &Instance| ShownInstance {
            service: instance.service.clone(),
            instance: instance.id.to_string(),
            incarnation: instance.incarnation,
            state: state_name(instance),
            pid: broker.program(instance.program).map_or(0, |program| program.pid),
            uid: instance.uid,
            slots: instance.slots,
            credit: instance.credit,
            concurrent: instance.concurrent,
            reentrancy: match instance.reentrancy {
                Reentrancy::Reject => "reject",
                Reentrancy::Reenter => "reenter",
                Reentrancy::Allow => "allow",
            },
            ring: instance.ring,
            connections: instance.connections,
            in_flight: in_flight.get(&instance.id).copied().unwrap_or(0),
            serves_ms: now_ms.saturating_sub(instance.since_ms),
        };
        let elsewhere = broker.directory().iter().filter(|(host, ..)| *host != broker.me());
        Services {
            at: At::from(broker.me()),
            programs: broker.programs().count(),
            connections: broker.grants().len(),
            instances: broker.registry().iter().map(shown).collect(),
            elsewhere: elsewhere
                .map(|(host, service, entry, current)| Elsewhere {
                    at: At::from(host),
                    service: service.clone(),
                    ready: entry.ready,
                    asleep: entry.asleep,
                    load_percent: entry.load_percent,
                    current,
                })
                .collect(),
            refused: broker
                .refusals()
                .iter()
                .map(|refused| ShownRefusal {
                    service: refused.service.clone(),
                    pid: refused.pid,
                    uid: refused.uid,
                    cause: refused.cause.name(),
                    message: refused.message.clone(),
                    ago_ms: now_ms.saturating_sub(refused.at_ms),
                })
                .collect(),
        }
    }

    /// What there is in numbers.
    pub(crate) fn counts(&self) -> Counts {
        let waiting = self.waiting_as(|_, _, _, _| ()).0.len();
        let state = self.state();
        let broker = &state.broker;
        let mut instances = [("ready", 0), ("draining", 0), ("suspended", 0)];
        for instance in broker.registry().iter() {
            let name = state_name(instance);
            if let Some((_, count)) = instances.iter_mut().find(|(state, _)| *state == name) {
                *count += 1;
            }
        }
        Counts {
            programs: broker.programs().count(),
            connections: broker.grants().len(),
            waiting,
            instances,
        }
    }

    /// How much of each service there is, on this host and on others that are believed.
    pub(crate) fn loads(&self) -> BTreeMap<ServiceName, Load> {
        // Connections and slots of this host's own instances.
        let mut own: BTreeMap<ServiceName, (u32, u32)> = BTreeMap::new();
        let mut loads: BTreeMap<ServiceName, Load> = BTreeMap::new();
        let state = self.state();
        let broker = &state.broker;
        for instance in broker.registry().iter() {
            // One that drains or stands still is there, and answers nobody new.
            let load = loads.entry(instance.service.clone()).or_default();
            if !instance.draining && !instance.suspended {
                (load.ready, load.hosts) = (load.ready + 1, 1);
                let (connections, slots) = own.entry(instance.service.clone()).or_default();
                *connections = connections.saturating_add(instance.connections);
                *slots = slots.saturating_add(instance.slots.into());
            }
        }
        for (service, (connections, slots)) in own {
            let load = loads.entry(service).or_default();
            load.load_percent = connections.saturating_mul(100) / slots.max(1);
        }
        let others = broker.directory().iter().filter(|(host, ..)| *host != broker.me());
        for (_, service, entry, _) in others.filter(|(.., current)| *current) {
            let load = loads.entry(service.clone()).or_default();
            load.ready = load.ready.saturating_add(entry.ready);
            load.asleep = load.asleep.saturating_add(entry.asleep);
            load.hosts += u32::from(entry.ready > 0);
            load.load_percent = load.load_percent.max(entry.load_percent);
        }
        for load in loads.values_mut() {
            load.ready_before = load.ready;
        }
        loads
    }

    /// `GET /v2/calls/blocked`.
    pub(crate) fn blocked(&self) -> Blocked {
        let (waiting, unlisted) = self.waiting();
        let now_ns = now_ns();
        let edge = |waiting: Waiting| {
            let Waiting { page, call, grant, suspended } = waiting;
            let waits_ns = now_ns.saturating_sub(call.since_ns);
            Edge {
                caller: end(&grant.from, None, false),
                callee: Party {
                    service: Some(grant.service.clone()),
                    uid: None,
                    ..end(&grant.to, Some(grant.instance), suspended)
                },
                method: pages::name(&page, call.name).map(|(_, method)| method),
                root: call.root.to_string(),
                call: format!("{:016x}", call.call),
                parent: hex_or_none(call.parent),
                hop: call.hop,
                thread: (call.thread != 0).then_some(call.thread),
                waits_ms: waits_ns / 1_000_000,
                left_ms: call.budget_ns.saturating_sub(waits_ns) / 1_000_000,
                grant: grant.id.to_string(),
                carrier: carrier(grant.carrier),
            }
        };
        let mut edges: Vec<Edge> = waiting.into_iter().map(edge).collect();
        edges.sort_by_key(|edge| std::cmp::Reverse(edge.waits_ms));
        Blocked { at: At::from(&self.who().1), edges, unlisted }
    }

    /// For each process that waits: what for. Of several calls the one that has waited longest.
    pub(crate) fn blocked_on(&self) -> BTreeMap<u32, String> {
        let mut longest: BTreeMap<u32, (u64, String, u32)> = BTreeMap::new();
        for Waiting { page, call, grant, .. } in self.waiting().0 {
            let method = pages::name(&page, call.name).map(|(_, method)| method);
            let method = method.as_ref().map_or("?", |method| method.as_str());
            let text = format!("{}/{method} on {}", grant.service, grant.to.host);
            let entry = longest.entry(grant.from.pid).or_insert((u64::MAX, String::new(), 0));
            if call.since_ns < entry.0 {
                (entry.0, entry.1) = (call.since_ns, text);
            }
            entry.2 += 1;
        }
        let text = |(pid, (_, text, calls)): (u32, (u64, String, u32))| match calls {
            1 => (pid, text),
            more => (pid, format!("{text} (+{})", more - 1)),
        };
        longest.into_iter().map(text).collect()
    }

    /// `GET /v2/calls/trace/{root}`.
    pub(crate) fn trace(&self, root: RootId) -> Trace {
        let programs: Vec<(u32, u32, Arc<PeerPage>)> = {
            let state = self.state();
            let of = |(program, page): (Program, &Arc<PeerPage>)| {
                let found = state.broker.program(program)?;
                Some((found.pid, found.uid, Arc::clone(page)))
            };
            state.pages().filter_map(of).collect()
        };
        let now_ns = now_ns();
        let wall = clock_gettime(ClockId::Realtime);
        let wall_ns = i128::from(wall.tv_sec) * 1_000_000_000 + i128::from(wall.tv_nsec);
        let start = |start_ns: u64| {
            let ago_ns = i128::from(now_ns) - i128::from(start_ns);
            k2i::rfc3339(wall_ns - ago_ns)
        };
        let mut spans = Vec::new();
        for (pid, uid, page) in programs {
            for span in pages::spans(&page, root) {
                let name = pages::name(&page, span.name);
                let (outcome, cause, code) = outcome(span.status);
                spans.push(ShownSpan {
                    side: if span.side == Side::Caller { "caller" } else { "callee" },
                    pid,
                    uid,
                    service: name.as_ref().map(|(service, _)| service.clone()),
                    method: name.map(|(_, method)| method),
                    call: format!("{:016x}", span.call),
                    parent: hex_or_none(span.parent),
                    hop: span.hop,
                    start: start(span.start_ns),
                    start_ns: span.start_ns,
                    took_ns: span.took_ns,
                    outcome,
                    cause,
                    code,
                });
            }
            for call in pages::in_flight(&page).filter(|call| call.root == root) {
                let name = pages::name(&page, call.name);
                spans.push(ShownSpan {
                    side: "caller",
                    pid,
                    uid,
                    service: name.as_ref().map(|(service, _)| service.clone()),
                    method: name.map(|(_, method)| method),
                    call: format!("{:016x}", call.call),
                    parent: hex_or_none(call.parent),
                    hop: call.hop,
                    start: start(call.since_ns),
                    start_ns: call.since_ns,
                    took_ns: now_ns.saturating_sub(call.since_ns),
                    outcome: "running",
                    cause: None,
                    code: None,
                });
            }
        }
        spans.sort_by_key(|span| span.start_ns);
        let cut = spans.len() > SPANS_SHOWN_MAX;
        spans.truncate(SPANS_SHOWN_MAX);
        Trace { at: At::from(&self.who().1), root: root.to_string(), spans, cut }
    }
}

fn carrier(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Local { ring: true } => "ring",
        Carrier::Local { ring: false } => "socket",
        Carrier::Tls => "tls",
        Carrier::Spliced => "spliced",
    }
}

/// Outcome, cause and code of a status, as documents and headers have them. A number that is none is
/// what a program wrote there that does not play by the rules.
pub(crate) fn outcome(status: u32) -> (&'static str, Option<&'static str>, Option<u32>) {
    match Status::from_number(status) {
        Some(Status::Done) => ("done", None, None),
        Some(Status::Failed(code)) => ("failed", None, Some(code)),
        Some(Status::NotExecuted(cause)) => ("not-executed", Some(cause.name()), None),
        Some(Status::Unknown(cause)) => ("unknown", Some(cause.name()), None),
        None => ("unknown", Some("MALFORMED"), None),
    }
}
