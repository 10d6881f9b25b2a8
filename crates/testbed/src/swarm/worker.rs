//! The worker of one data centre: it holds hosts, and does what its owner says, one line of JSON each.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, Error, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k2i::http::serve::Bound;
use k2i::http::{Api, router};
use kumo_abi::HostId;
use kumo_fabric::identity::{Gateway, load_authority};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::host::{Common, SwarmHost};
use super::record::record;
use crate::chain;

/// Hosts that join at once. Each that comes is told to all that are there, so a thousand make a million
/// messages, all on the few cores of this machine: with more at once, signs of life come too late.
const JOINING_MAX: usize = 4;

/// Longest wait until each host sees all others.
const SETTLE_MAX: Duration = Duration::from_secs(300);

/// Between two looks at the tables of hosts.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// The first one.
    Start(Start),
    /// Report when each host sees so many alive.
    Settle(usize),
    /// These die without a word.
    Drop(Vec<HostId>),
    /// These never answer again.
    Hang(Vec<HostId>),
    /// Report what went over the links of all.
    Totals,
}

/// What the hosts of a worker are.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) hosts: Vec<HostId>,
    /// A directory with the key of the authority.
    pub(super) authority: PathBuf,
    pub(super) gateways: Vec<Gateway>,
    pub(super) dir: PathBuf,
    /// The parent of the processes to record.
    pub(super) keeper: i32,
    pub(super) processes: usize,
    /// Whether each serves HTTP, too.
    pub(super) http: bool,
    /// See [`super::World::start`].
    pub(super) lease: Option<Duration>,
}

/// What it says when it has done so.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Done {
    /// Of `Start` with `http`: where each host serves.
    pub(super) ports: Vec<u16>,
    /// Of `Totals`.
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    /// Why it could not.
    pub(super) error: Option<String>,
}

/// Does what standard input says, until it ends.
///
/// # Errors
/// Standard input or output are broken, or no runtime can be started.
pub fn run() -> io::Result<()> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut hosts = BTreeMap::new();
    let (stop, stopping) = watch::channel(false);
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let done = obey(&runtime, &mut hosts, order, &stopping)
            .unwrap_or_else(|error| Done { error: Some(chain(&error)), ..Done::default() });
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&done)?)?;
        out.flush()?;
    }
    stop.send_replace(true);
    // Their owner is done with them; there is nothing to save.
    std::process::exit(0)
}

fn obey(
    runtime: &Runtime,
    hosts: &mut BTreeMap<HostId, SwarmHost>,
    order: Order,
    stopping: &watch::Receiver<bool>,
) -> io::Result<Done> {
    match order {
        Order::Start(start) => {
            let http = start.http;
            *hosts = runtime.block_on(open_all(start))?;
            let mut ports = Vec::new();
            let _within = runtime.enter();
            for host in hosts.values().take(if http { usize::MAX } else { 0 }) {
                let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
                let bound = Bound::tcp(any, None).map_err(Error::other)?;
                let port = bound.url().rsplit_once(':').and_then(|(_, port)| port.parse().ok());
                ports.push(port.ok_or_else(|| Error::other("an address without a port"))?);
                let api = Api::new(Arc::clone(&host.engine));
                runtime.spawn(bound.serve(router(api), stopping.clone()));
            }
            Ok(Done { ports, ..Done::default() })
        }
        Order::Settle(count) => {
            let began = Instant::now();
            for (id, host) in hosts.iter() {
                while host.seen() != count {
                    if began.elapsed() > SETTLE_MAX {
                        let seen = host.seen();
                        return Err(Error::other(format!("{id} sees {seen} of {count} hosts")));
                    }
                    std::thread::sleep(LOOK_PERIOD);
                }
            }
            Ok(Done::default())
        }
        Order::Drop(ids) => {
            let _within = runtime.enter();
            for id in ids {
                drop(hosts.remove(&id));
            }
            Ok(Done::default())
        }
        Order::Hang(ids) => {
            ids.iter().filter_map(|id| hosts.get(id)).for_each(|host| host.hang(true));
            Ok(Done::default())
        }
        Order::Totals => {
            let links = hosts.values().flat_map(|host| host.fabric.links());
            let add = |done: Done, link: kumo_abi::cluster::LinkReport| Done {
                received_bytes: done.received_bytes + link.received_bytes,
                sent_bytes: done.sent_bytes + link.sent_bytes,
                ..done
            };
            Ok(links.fold(Done::default(), add))
        }
    }
}

async fn open_all(start: Start) -> io::Result<BTreeMap<HostId, SwarmHost>> {
    let authority = load_authority(&start.authority).map_err(Error::other)?;
    let authority = authority.ok_or_else(|| Error::other("no key of an authority is there"))?;
    let common = Common {
        authority: Arc::new(authority),
        gateways: start.gateways,
        dir: start.dir,
        rows: record(start.keeper, start.processes)?,
        lease: start.lease,
    };
    let mut hosts = BTreeMap::new();
    for some in start.hosts.chunks(JOINING_MAX) {
        let mut joining = JoinSet::new();
        for id in some.iter().cloned() {
            let common = common.clone();
            joining.spawn(async move { Ok((id.clone(), SwarmHost::open(common, id).await?)) });
        }
        let mut joined = Vec::new();
        while let Some(one) = joining.join_next().await {
            joined.push(one.map_err(Error::other)?.map_err(|error: Error| error)?);
        }
        // Who has heard of all that came before has worked off what their coming made to do. Without that
        // wait it piles up, signs of life come too late, and those who are lost for it come anew.
        let count = hosts.len() + joined.len();
        let began = Instant::now();
        while joined.iter().any(|(_, host)| host.seen() < count) {
            if began.elapsed() > SETTLE_MAX {
                return Err(Error::other("hosts that joined do not hear of those before them"));
            }
            sleep(LOOK_PERIOD).await;
        }
        hosts.extend(joined);
    }
    Ok(hosts)
}
