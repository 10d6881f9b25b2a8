//! One host of a swarm.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::{self, Error};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use k2i::{CollectorChoice, Engine, EngineConfig, Process};
use kumo_abi::HostId;
use kumo_abi::cluster::{Card, HostInfo, HostState, Role};
use kumo_fabric::identity::{Gateway, Identity};
use kumo_fabric::pki::Authority;
use kumo_fabric::{Answerer, Answering, Fabric, FabricConfig, wall_ms};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::chain;

/// Longest wait for a link to a gateway: many members dial at once.
const LINK_WAIT_MAX: Duration = Duration::from_secs(60);

/// Between two looks at whether it is there.
const LOOK_PERIOD: Duration = Duration::from_millis(10);

/// What the hosts of a swarm have in common.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) authority: Arc<Authority>,
    pub(super) gateways: Vec<Gateway>,
    /// Holds a run directory for each; a short name.
    pub(super) dir: PathBuf,
    pub(super) rows: Arc<[Process]>,
    pub(super) lease: Option<Duration>,
}

/// A member of the fabric that answers from a recorded table. It is gone without a word when it is
/// dropped.
pub struct SwarmHost {
    /// Its part of the fabric.
    pub fabric: Fabric,
    pub(super) engine: Arc<Engine>,
    hangs: Arc<AtomicBool>,
    ticking: JoinHandle<()>,
}

/// Answers, or never does.
struct Hangable {
    answerer: Arc<dyn Answerer>,
    hangs: Arc<AtomicBool>,
}

impl Answerer for Hangable {
    fn answer(&self, request: Bytes) -> Answering {
        if self.hangs.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        self.answerer.answer(request)
    }

    fn merge(&self, request: &[u8], parts: Vec<Bytes>) -> Result<Bytes, String> {
        self.answerer.merge(request, parts)
    }
}

impl SwarmHost {
    /// Joins it to the fabric; returns when it has a link to a gateway.
    pub(super) async fn open(common: Common, id: HostId) -> io::Result<SwarmHost> {
        let failed =
            |error: &dyn std::error::Error| Error::other(format!("{id}: {}", chain(error)));
        let config = EngineConfig {
            collector: CollectorChoice::Auto, // Not looked at: it plays a record.
            dc: id.dc.to_string(),
            host: id.host.to_string(),
        };
        let engine = Engine::replay(config, common.rows).map_err(|error| failed(&error))?;
        let engine = Arc::new(engine);
        let mut identity = Identity::issue(&common.authority, &id, Role::Member, wall_ms())
            .map_err(|error| failed(&error))?;
        identity.gateways = common.gateways;
        let run_dir = common.dir.join(format!("{}-{}", id.dc, id.host));
        DirBuilder::new().mode(0o700).recursive(true).create(&run_dir)?;
        let card = Card {
            role: Role::Member,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: "6.1.0".to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            cpus: 4,
            memory: 8 << 30,
            addresses: Vec::new(),
            call_addresses: Vec::new(),
            labels: BTreeMap::new(),
        };
        let hangs = Arc::new(AtomicBool::new(false));
        let answerer = kumo_node::simulated::answerer(id.clone(), Arc::clone(&engine));
        let answerer = Arc::new(Hangable { answerer, hangs: Arc::clone(&hangs) });
        let config = FabricConfig {
            identity,
            state_dir: None,
            run_dir,
            card,
            calls: false,
            lease: common.lease,
        };
        let fabric = Fabric::open(config, answerer).await.map_err(|error| failed(&error))?;
        let ticking = tokio::spawn(k2i::http::serve::tick(Arc::clone(&engine)));
        let host = SwarmHost { fabric, engine, hangs, ticking };
        let began = Instant::now();
        while host.fabric.links().is_empty() {
            if began.elapsed() > LINK_WAIT_MAX {
                return Err(Error::other(format!("{id} has no link to a gateway")));
            }
            sleep(LOOK_PERIOD).await;
        }
        Ok(host)
    }

    /// From now on it never answers, or does again.
    pub(super) fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::Relaxed);
    }

    /// How many hosts it sees alive.
    pub(super) fn seen(&self) -> usize {
        self.fabric.states().iter().filter(|host| host.state == HostState::Alive).count()
    }

    /// How many hosts it sees alive with their cards, and the others.
    pub fn alive(&self) -> (usize, Vec<HostInfo>) {
        alive(self.fabric.hosts())
    }
}

/// How many of these are alive with their cards, and the others.
pub(super) fn alive(hosts: Vec<HostInfo>) -> (usize, Vec<HostInfo>) {
    let is_alive = |host: &HostInfo| host.state == HostState::Alive && host.card.is_some();
    let (alive, others): (Vec<_>, Vec<_>) = hosts.into_iter().partition(is_alive);
    (alive.len(), others)
}

impl Drop for SwarmHost {
    fn drop(&mut self) {
        self.ticking.abort();
    }
}
