//! Links that this host opens: where, when, and not again too soon.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use kumo_pki::trust::Wanted;
use tokio::net::TcpStream;
use tokio::sync::{broadcast, watch};
use tokio::time::{sleep, timeout};

use super::link::{Link, move_and_run};
use super::{PeerEvent, Shared};
use crate::link::dial::{Failure, connect, open};
use crate::link::lock;
use crate::link::socket;
use crate::link::tls::ALPN_PEER;
use crate::rendezvous::rank;

/// A host that cannot be dialed is not tried again for so long: a firewall will not go away at once, and
/// meanwhile calls go through gateways.
const SHUT: Duration = Duration::from_secs(10);

/// A host whose kernel says that no node listens is tried again so soon, for it may be starting; and one whose
/// addresses are not known, for its card may be on its way.
const SOON_SHUT: Duration = Duration::from_millis(200);

/// Hosts of which such is remembered.
const REMEMBERED_MAX: usize = 10_000;

/// Gateways of its data centre to which a member keeps a link: one may die.
const KEPT_MAX: usize = 2;

/// It is looked so often whether these are there, where nothing happens.
const KEEP_LOOK: Duration = Duration::from_secs(2);

/// A kept link that ended is dialed again so much later.
const KEEP_AGAIN: Duration = Duration::from_millis(100);

/// What is known of dialing hosts.
#[derive(Default)]
pub(super) struct Dials {
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    /// Under way; becomes true when it is done.
    running: HashMap<HostId, watch::Receiver<bool>>,
    shut: HashMap<HostId, Shut>,
    /// Addresses behind which the host has proven to be.
    good: HashMap<HostId, SocketAddr>,
}

/// A host that could not be dialed.
#[derive(Clone, Debug)]
pub(super) struct Shut {
    at: std::time::Instant,
    lasts: Duration,
    /// A kernel answered that nobody listens, where its node did before.
    pub(super) is_refused: bool,
    why: String,
}

impl Shut {
    fn is_over(&self) -> bool {
        self.at.elapsed() >= self.lasts
    }

    /// For how long it has been so.
    pub(super) fn age(&self) -> Duration {
        self.at.elapsed()
    }
}

impl Dials {
    /// A link with a host is open; `address` is where it was dialed.
    pub(super) fn opened(&self, host: &HostId, address: Option<SocketAddr>) {
        let mut inside = lock(&self.inside);
        if let Some(address) = address {
            inside.shut.remove(host);
            inside.good.insert(host.clone(), address);
        }
    }

    /// Why a host cannot be dialed now, if that is known.
    pub(super) fn shut(&self, host: &HostId) -> Option<Shut> {
        lock(&self.inside).shut.get(host).cloned()
    }

    fn good(&self, host: &HostId) -> Option<SocketAddr> {
        lock(&self.inside).good.get(host).copied()
    }

    /// A connection to a good address failed: it is so no more.
    fn forget_good(&self, host: &HostId) {
        lock(&self.inside).good.remove(host);
    }
}

impl Shared {
    /// The gateways of a host's data centre, those first to which it keeps links if it is a member. All
    /// nodes that see the same gateways have them in the same order.
    pub(super) fn gateways_for(&self, host: &HostId) -> Vec<HostId> {
        let mut gateways = rank(&host.to_string(), self.book.gateways(&host.dc).iter());
        gateways.retain(|gateway| *gateway != self.me);
        gateways
    }

    /// The link with a host, dialed if there is none. Waits for that at most `wait`; the dial goes on.
    ///
    /// # Errors
    /// In words.
    pub(super) async fn linked(
        self: &Arc<Self>,
        host: &HostId,
        wait: Duration,
    ) -> Result<Arc<Link>, String> {
        if let Some(link) = self.link(host) {
            return Ok(link);
        }
        self.dial(host, wait).await?;
        self.link(host).ok_or_else(|| "its link has just ended".to_owned())
    }

    /// Dials a host, or waits with others for a dial that is under way.
    async fn dial(self: &Arc<Self>, host: &HostId, wait: Duration) -> Result<(), String> {
        let mut done = {
            let mut inside = lock(&self.dials.inside);
            if let Some(running) = inside.running.get(host) {
                running.clone()
            } else if let Some(shut) = inside.shut.get(host).filter(|shut| !shut.is_over()) {
                return Err(shut.why.clone());
            } else {
                let (tell, done) = watch::channel(false);
                inside.running.insert(host.clone(), done.clone());
                drop(inside);
                let (shared, host) = (Arc::clone(self), host.clone());
                let dialing = async move {
                    let dialing = Dialing { shared: Arc::clone(&shared), host, tell };
                    shared.unless_closing(dial(&shared, &dialing.host)).await;
                };
                if self.spawn(dialing).is_none() {
                    lock(&self.dials.inside).running.clear();
                    return Err("this node stops".to_owned());
                }
                done
            }
        };
        match timeout(wait, done.wait_for(|done| *done)).await {
            Err(_) => Err(format!("it has not answered within {} ms", wait.as_millis())),
            Ok(_) => match lock(&self.dials.inside).shut.get(host) {
                Some(shut) => Err(shut.why.clone()),
                None => Ok(()),
            },
        }
    }

    /// Begins to find out where a host proves to be, if that is not known: later a kernel that refuses there
    /// says that its node is away.
    pub(super) async fn prove(self: &Arc<Self>, host: &HostId) {
        if self.dials.good(host).is_none() {
            // What comes of it is remembered.
            let _ = self.dial(host, Duration::ZERO).await;
        }
    }

    /// A connection to the call port of a host that has proven to be behind its address.
    ///
    /// # Errors
    /// In words.
    pub(super) async fn connect(
        self: &Arc<Self>,
        host: &HostId,
        wait: Duration,
    ) -> Result<TcpStream, String> {
        let address = if let Some(address) = self.dials.good(host) {
            address
        } else {
            // Who has a link by the other side's dial does not know yet whether there is a way back.
            self.dial(host, wait).await?;
            self.dials.good(host).ok_or_else(|| "its link has just ended".to_owned())?
        };
        match connect(&self.lookups, address.to_string()).await {
            Ok((stream, _)) => {
                socket::prepare(&stream).map_err(|error| error.to_string())?;
                Ok(stream)
            }
            Err(error) => {
                self.dials.forget_good(host);
                Err(format!("{address} {error}"))
            }
        }
    }
}

/// A dial that is under way, until this is dropped.
struct Dialing {
    shared: Arc<Shared>,
    host: HostId,
    tell: watch::Sender<bool>,
}

impl Drop for Dialing {
    fn drop(&mut self) {
        lock(&self.shared.dials.inside).running.remove(&self.host);
        self.tell.send_replace(true);
    }
}

async fn dial(shared: &Arc<Shared>, host: &HostId) {
    let addresses = shared.book.call_addresses(host);
    let setup = shared.setup.load_full();
    let wanted = Wanted::Host(host.clone());
    let opened = open(&setup, &shared.lookups, addresses, &wanted, ALPN_PEER).await;
    let dialed = match opened {
        Ok(dialed) => dialed,
        Err(failures) => return failed(shared, host, &failures),
    };
    let registered = shared.register(dialed.peer.clone(), true, dialed.address, &dialed.tcp);
    match registered {
        Ok(running) => move_and_run(shared, running, dialed.stream, |stream| stream.get_mut().0),
        Err(why) => {
            tracing::debug!("the call link to {host} is not used: {why:?}");
            dialed.close().await;
        }
    }
}

fn failed(shared: &Shared, host: &HostId, failures: &[Failure]) {
    let words: Vec<String> = failures.iter().map(ToString::to_string).collect();
    let why = if words.is_empty() {
        "where it listens for calls is not known".to_owned()
    } else {
        words.join("; ")
    };
    tracing::debug!("the call port of {host} cannot be reached: {why}");
    let mut inside = lock(&shared.dials.inside);
    let all_refused = !failures.is_empty() && failures.iter().all(Failure::is_refused);
    let is_refused = all_refused && inside.good.contains_key(host);
    if inside.shut.len() >= REMEMBERED_MAX {
        inside.shut.retain(|_, shut| !shut.is_over());
    }
    if inside.shut.len() < REMEMBERED_MAX {
        let lasts = if is_refused || failures.is_empty() { SOON_SHUT } else { SHUT };
        let shut = Shut { at: std::time::Instant::now(), lasts, is_refused, why };
        inside.shut.insert(host.clone(), shut);
    }
}

/// The gateways of its data centre to which a member keeps links: those that all who want to reach it
/// try first.
pub(super) fn kept(shared: &Shared) -> BTreeSet<HostId> {
    if shared.role != Role::Member {
        return BTreeSet::new();
    }
    let gateways = shared.gateways_for(&shared.me);
    gateways.into_iter().take(KEPT_MAX).collect()
}

/// Keeps these links, for ever.
pub(super) async fn keep(shared: &Arc<Shared>) {
    let mut events = shared.events.subscribe();
    loop {
        let gateways = kept(shared);
        for gateway in &gateways {
            // Why it failed is said where it matters.
            let _ = shared.linked(gateway, Duration::ZERO).await;
        }
        let is_over = async {
            loop {
                match events.recv().await {
                    Ok(PeerEvent { host, ended: Some(_) }) if gateways.contains(&host) => return,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                }
            }
        };
        if timeout(KEEP_LOOK, is_over).await.is_ok() {
            sleep(KEEP_AGAIN).await;
        }
    }
}
