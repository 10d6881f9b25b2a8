//! The hosts that this node can ask: those of its cluster, or itself alone.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kumo_abi::cluster::{
    Card, HostInfo, HostOutcome, HostState, LinkReport, Outcome, Role, Unreached,
};
use kumo_abi::{ClusterName, HostId};
use kumo_fabric::identity::Identity;
use kumo_fabric::{Answerer, Ask, Fabric, HostEvent, Part};
use tokio::sync::{broadcast, mpsc};
use tokio::time::timeout;

use crate::answer::HostAnswerer;

/// What a node knows of others, and how it asks them.
#[derive(Clone)]
pub(crate) enum Web {
    /// It has no cluster: it is one of one.
    Lone(Arc<Lone>),
    /// It is part of one.
    Many(Fabric),
}

/// A node without a cluster.
pub(crate) struct Lone {
    pub(crate) me: HostId,
    pub(crate) card: Card,
    pub(crate) incarnation: u64,
    pub(crate) began: Instant,
    pub(crate) answerer: Arc<HostAnswerer>,
    /// Nothing ever happens to it.
    pub(crate) events: broadcast::Sender<HostEvent>,
}

impl std::fmt::Debug for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Web").field("me", &self.me()).finish_non_exhaustive()
    }
}

impl Web {
    /// A web of one host.
    pub(crate) fn lone(me: HostId, card: Card, began: Instant, answerer: Arc<HostAnswerer>) -> Web {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Web::Lone(Arc::new(Lone {
            me,
            card,
            incarnation: millis(since_epoch),
            began,
            answerer,
            events: broadcast::Sender::new(1),
        }))
    }

    /// Changes as they happen.
    pub(crate) fn events(&self) -> broadcast::Receiver<HostEvent> {
        match self {
            Web::Lone(lone) => lone.events.subscribe(),
            Web::Many(fabric) => fabric.events(),
        }
    }

    /// The name of the cluster.
    pub(crate) fn cluster(&self) -> Option<ClusterName> {
        match self {
            Web::Lone(_) => None,
            Web::Many(fabric) => Some(fabric.identity().cluster.clone()),
        }
    }

    /// This host.
    pub(crate) fn me(&self) -> HostId {
        match self {
            Web::Lone(lone) => lone.me.clone(),
            Web::Many(fabric) => fabric.identity().host.clone(),
        }
    }

    /// Of which start of this node.
    pub(crate) fn incarnation(&self) -> u64 {
        match self {
            Web::Lone(lone) => lone.incarnation,
            Web::Many(fabric) => fabric.incarnation(),
        }
    }

    /// All hosts that are known, also dead ones, in order.
    pub(crate) fn hosts(&self) -> Vec<HostInfo> {
        match self {
            Web::Lone(lone) => vec![HostInfo {
                id: lone.me.clone(),
                state: HostState::Alive,
                state_ms: millis(lone.began.elapsed()),
                incarnation: Some(lone.incarnation),
                card: Some(lone.card.clone()),
            }],
            Web::Many(fabric) => fabric.hosts(),
        }
    }

    /// The same without their cards, which need not be read then.
    pub(crate) fn states(&self) -> Vec<HostInfo> {
        match self {
            Web::Lone(_) => self.hosts(),
            Web::Many(fabric) => fabric.states(),
        }
    }

    /// One host of them, with its card.
    pub(crate) fn host(&self, host: &HostId) -> Option<HostInfo> {
        match self {
            Web::Lone(_) => self.hosts().into_iter().find(|info| info.id == *host),
            Web::Many(fabric) => fabric.host(host),
        }
    }

    /// The links of this node to others.
    pub(crate) fn links(&self) -> Vec<LinkReport> {
        match self {
            Web::Lone(_) => Vec::new(),
            Web::Many(fabric) => fabric.links(),
        }
    }

    /// Gateways that this node could not reach when it last tried.
    pub(crate) fn unreached(&self) -> Vec<Unreached> {
        match self {
            Web::Lone(_) => Vec::new(),
            Web::Many(fabric) => fabric.unreached(),
        }
    }

    /// Asks hosts. Dropping the receiver ends it.
    pub(crate) fn gather(&self, ask: Ask) -> mpsc::Receiver<Part> {
        match self {
            Web::Lone(lone) => {
                let (tell, parts) = mpsc::channel(1);
                let lone = Arc::clone(lone);
                tokio::spawn(async move {
                    tokio::select! {
                        part = lone.answer(ask) => drop(tell.send(part).await),
                        () = tell.closed() => {}
                    }
                });
                parts
            }
            Web::Many(fabric) => fabric.gather(ask),
        }
    }
}

impl Lone {
    async fn answer(&self, ask: Ask) -> Part {
        let Ask { request, hosts, deadline, .. } = ask;
        let is_asked = hosts.contains(&self.me);
        let mut outcomes: Vec<HostOutcome> = hosts
            .into_iter()
            .filter(|host| *host != self.me)
            .map(|id| {
                let why = "this node has no cluster; `kumo join` makes it part of one".to_owned();
                HostOutcome { id, outcome: Outcome::Refused { why } }
            })
            .collect();
        if !is_asked {
            return Part { answer: None, outcomes };
        }
        let answered: Result<Result<Bytes, String>, _> =
            timeout(deadline, self.answerer.answer(request)).await;
        let (answer, outcome) = match answered {
            Ok(Ok(answer)) => (Some(answer), Outcome::Answered),
            Ok(Err(why)) => (None, Outcome::Refused { why }),
            Err(_) => (None, Outcome::Silent { after_ms: millis(deadline) }),
        };
        outcomes.push(HostOutcome { id: self.me.clone(), outcome });
        Part { answer, outcomes }
    }
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What this host says about itself.
pub(crate) fn card(identity: Option<&Identity>) -> Card {
    let uname = rustix::system::uname();
    let cpus = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    Card {
        // A node without a cluster is its own gateway.
        role: identity.map_or(Role::Gateway, |identity| identity.role),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        architecture: uname.machine().to_string_lossy().into_owned(),
        cpus: cpus.lines().filter(is_cpu).count() as u32,
        memory: k2i::host::read_memory().map_or(0, |memory| memory.total),
        addresses: identity.map(|identity| identity.advertise.clone()).unwrap_or_default(),
        call_addresses: identity.map(|it| it.call_advertise.clone()).unwrap_or_default(),
        labels: identity.map(|identity| identity.labels.clone()).unwrap_or_default(),
    }
}
