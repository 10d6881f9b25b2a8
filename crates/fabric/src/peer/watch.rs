//! Who wants to know whether a host answers, and the beats for them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kumo_abi::HostId;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::beat::{BEAT_MS, Beats, HostLife};
use super::link::Saying;
use super::wire::{HOPS_MAX, What};
use super::{How, Shared, millis};
use crate::link::lock;

/// How long an answer to a beat is waited for: one that is late still says that the host is back.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What a first answer may take longer where there is no link yet: a dial, or the way through gateways.
const UNLINKED_MS: u64 = 600;

/// A host that is watched.
pub(super) struct Watched {
    watchers: usize,
    life: watch::Sender<HostLife>,
    task: Option<AbortHandle>,
}

/// Whether a host answers, kept up to date as long as this is held.
pub struct HostWatch {
    shared: Arc<Shared>,
    host: HostId,
    life: watch::Receiver<HostLife>,
}

impl fmt::Debug for HostWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostWatch").field("host", &self.host).finish_non_exhaustive()
    }
}

impl HostWatch {
    /// The host.
    pub fn host(&self) -> &HostId {
        &self.host
    }

    /// What is known of it now.
    pub fn life(&self) -> HostLife {
        *self.life.borrow()
    }

    /// Waits until something else is known than what this last returned, or was at first; then says what.
    pub async fn changed(&mut self) -> HostLife {
        if self.life.changed().await.is_err() {
            // It is kept by the list as long as this is held; when all is closed nothing is known any more.
            return std::future::pending().await;
        }
        *self.life.borrow_and_update()
    }
}

impl Drop for HostWatch {
    fn drop(&mut self) {
        let mut watched = lock(&self.shared.watched);
        let Some(of_host) = watched.get_mut(&self.host) else { return };
        of_host.watchers -= 1;
        if of_host.watchers == 0 {
            of_host.task.iter().for_each(AbortHandle::abort);
            watched.remove(&self.host);
        }
    }
}

pub(super) fn watch(shared: &Arc<Shared>, host: &HostId) -> HostWatch {
    // This host answers itself.
    let is_other = *host != shared.me;
    let mut watched = lock(&shared.watched);
    let of_host = watched.entry(host.clone()).or_insert_with(|| {
        let life = watch::Sender::new(HostLife::Answers);
        let (beating, host, told) = (Arc::clone(shared), host.clone(), life.clone());
        let beats = async move {
            beating.unless_closing(beat(&beating, &host, &told)).await.unwrap_or(());
        };
        let task = is_other.then(|| shared.spawn_on(&shared.links_runtime, beats));
        Watched { watchers: 0, life, task: task.flatten() }
    });
    of_host.watchers += 1;
    let life = of_host.life.subscribe();
    HostWatch { shared: Arc::clone(shared), host: host.clone(), life }
}

/// Asks a host again and again, for ever, and tells what becomes of it.
async fn beat(shared: &Arc<Shared>, host: &HostId, life: &watch::Sender<HostLife>) {
    let link = shared.link(host);
    let way_ms = link.map_or(UNLINKED_MS, |link| u64::from(link.tcp.rtt_us()).div_ceil(1000));
    shared.prove(host).await;
    let mut beats = Beats::new(shared.now_ms(), way_ms);
    let period = Duration::from_millis(BEAT_MS);
    let mut every = interval_at(Instant::now(), period);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (answered, mut answers) = mpsc::channel::<()>(64);
    loop {
        let news = tokio::select! {
            // What has come counts before what is missing.
            biased;
            Some(()) = answers.recv() => beats.heard(shared.now_ms()),
            _ = every.tick() => {
                let refused = shared.dials.shut(host).filter(|shut| {
                    shut.is_refused && shut.age() <= period * 4
                });
                let now_ms = shared.now_ms();
                let ago_ms = refused.map(|shut| millis(shut.age()));
                let down = ago_ms.and_then(|ago_ms| beats.refused(now_ms.saturating_sub(ago_ms)));
                if let Some(down) = down {
                    tell(shared, host, life, down);
                }
                let (shared, host) = (Arc::clone(shared), host.clone());
                let answered = answered.clone();
                let asking = async move {
                    let beat = Saying::Ask(What::Beat);
                    let asked = shared.reach(None, &host, HOPS_MAX, beat, ANSWER_MAX, None);
                    if asked.await.is_ok() {
                        let _ = answered.try_send(()); // A full channel says the same.
                    }
                };
                tokio::spawn(asking);
                beats.ask(now_ms)
            }
        };
        if let Some(news) = news {
            tell(shared, host, life, news);
        }
    }
}

fn tell(shared: &Shared, host: &HostId, life: &watch::Sender<HostLife>, news: HostLife) {
    match news {
        HostLife::Answers => tracing::info!("{host} answers again"),
        HostLife::NodeDown => tracing::warn!("no node runs on {host}, which itself answers"),
        HostLife::Lost => tracing::warn!("{host} does not answer any more"),
    }
    life.send_replace(news);
    if news == HostLife::Lost
        && let Some(link) = shared.link(host)
    {
        // Who waits for an answer over it is told now; what comes next finds another way, if there is one.
        link.cut(How::Lost);
    }
}
