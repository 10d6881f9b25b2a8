//! Watches the liveliness tokens, and lets the rules of [`crate::members`] decide.

use std::sync::Arc;
use std::time::Duration;

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use tokio::sync::{broadcast, mpsc};
use tokio::time::timeout;
use zenoh::Session;
use zenoh::liveliness::LivelinessToken;
use zenoh::pubsub::Subscriber;
use zenoh::sample::{Sample, SampleKind};

use crate::link::{How, LinkEnd};
use crate::members::{Members, Seen};
use crate::shared::Shared;

/// It is looked so often, where nothing happens, whether this host itself stood still.
const LOOK_MS: u64 = 1_000;

/// A look that is late by so much means that it did: others may have taken it for dead.
const STILL_MS: u64 = 700;

/// Sightings that are taken in before others may ask for the members.
const SIGHTINGS_MAX: usize = 1_000;

/// What was seen, on its way to the rules.
pub(crate) type Sightings = mpsc::UnboundedSender<Seen>;

/// What stays declared as long as it is held.
#[derive(Debug)]
pub(crate) struct Watching {
    _token: LivelinessToken,
    _subscribers: Vec<Subscriber<()>>,
}

/// Shows our token, and watches those of all.
///
/// # Errors
/// Zenoh's words.
pub(crate) async fn declare(
    shared: &Arc<Shared>,
    session: &Session,
    sightings: &Sightings,
) -> zenoh::Result<Watching> {
    let keys = &shared.keys;
    let to = |kind: &'static str| {
        let (keys, sightings) = (keys.clone(), sightings.clone());
        move |sample: Sample| {
            let key = sample.key_expr().as_str();
            let seen = match kind {
                "alive" => {
                    keys.parse_alive(key).map(|(host, role, incarnation)| match sample.kind() {
                        SampleKind::Put => Seen::Up { host, role, incarnation },
                        SampleKind::Delete => Seen::Down { host, incarnation },
                    })
                }
                "bye" => keys
                    .parse_start(key, kind)
                    .map(|(host, incarnation)| Seen::Bye { host, incarnation }),
                _ => keys
                    .parse_start(key, kind)
                    .map(|(host, incarnation)| Seen::Ended { host, incarnation }),
            };
            let Some(seen) = seen else {
                tracing::debug!("`{key}` is no key of ours");
                return;
            };
            // It fails when this node stops.
            let _ = sightings.send(seen);
        }
    };
    let alive = session
        .liveliness()
        .declare_subscriber(keys.all_alive())
        .history(true)
        .callback(to("alive"))
        .await?;
    let bye = session.declare_subscriber(keys.all("bye")).callback(to("bye")).await?;
    let ended = session.declare_subscriber(keys.all("ended")).callback(to("ended")).await?;
    let key = keys.alive(&shared.me, shared.role, shared.incarnation);
    let token = session.liveliness().declare_token(key).await?;
    Ok(Watching { _token: token, _subscribers: vec![alive, bye, ended] })
}

/// Lets the rules decide, for ever. Tells of each gateway whose token came, or came back: what was told
/// meanwhile may have been missed.
pub(crate) async fn decide(
    shared: Arc<Shared>,
    mut seen: mpsc::UnboundedReceiver<Seen>,
    gateways: mpsc::UnboundedSender<HostId>,
) {
    let mut looked_ms = shared.now_ms();
    loop {
        let next_ms = shared.members().next_ms();
        let look_ms = next_ms.unwrap_or(u64::MAX).min(looked_ms + LOOK_MS);
        let wait = Duration::from_millis(look_ms.saturating_sub(shared.now_ms()));
        let first = match timeout(wait, seen.recv()).await {
            Ok(Some(first)) => Some(first),
            Ok(None) => return,
            Err(_) => None,
        };
        let now_ms = shared.now_ms();
        let mut members = shared.members();
        if now_ms > looked_ms + LOOK_MS + STILL_MS {
            members.stood_still(now_ms);
        }
        looked_ms = now_ms;
        let mut changes = Vec::new();
        // All that has come at once: a lost data centre is judged once, not for each of its hosts.
        let more = std::iter::from_fn(|| seen.try_recv().ok());
        for sighting in first.into_iter().chain(more).take(SIGHTINGS_MAX) {
            if let Seen::Up { host, role: Role::Gateway, .. } = &sighting {
                // It fails when this node stops.
                let _ = gateways.send(host.clone());
            }
            changes.extend(see(&mut members, sighting, &shared.me, now_ms));
        }
        changes.extend(members.decide(now_ms));
        drop(members);
        shared.announce(changes);
    }
}

fn see(members: &mut Members, seen: Seen, me: &HostId, now_ms: u64) -> Vec<crate::members::Change> {
    match &seen {
        // Others may lose sight of us; we do not.
        Seen::Down { host, .. } | Seen::Bye { host, .. } | Seen::Ended { host, .. }
            if host == me =>
        {
            Vec::new()
        }
        _ => members.see(seen, now_ms),
    }
}

/// Tells of hosts whose kernel ended a connection to us: they are dead, where their token goes too.
pub(crate) async fn tell_ends(
    shared: Arc<Shared>,
    mut ends: broadcast::Receiver<LinkEnd>,
    sightings: Sightings,
) {
    loop {
        let end = match ends.recv().await {
            Ok(end) => end,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let is_proof = match end.how {
            How::Refused => true,
            // A member may have been cut because it was evicted.
            How::ByPeer => shared.role == Role::Gateway,
            _ => false,
        };
        if !is_proof {
            continue;
        }
        let Some(incarnation) = shared.members().may_have_ended(&end.peer) else { continue };
        let _ = sightings.send(Seen::Ended { host: end.peer.clone(), incarnation });
        if shared.role == Role::Gateway
            && let Some(session) = shared.session()
        {
            let key = shared.keys.ended(&end.peer, incarnation);
            if let Err(error) = session.put(key, Vec::new()).express(true).await {
                tracing::debug!("the end of {} could not be told: {error}", end.peer);
            }
        }
    }
}
