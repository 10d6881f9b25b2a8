//! Keeps copies of the desired state equal: a change is told to all at once, and what was missed is
//! found by comparing digests with a gateway.

use std::sync::Arc;
use std::time::Duration;

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use zenoh::Session;
use zenoh::pubsub::Subscriber;
use zenoh::query::{Query, Queryable};

use crate::net::question::bytes_of;
use crate::shared::Shared;
use crate::store::{Change, Digest, Entry, Store};

/// Copies are compared so often. A change is pushed; this only repairs what a push has missed. With
/// equal copies it costs two messages of some ten bytes.
const COMPARE_EVERY: Duration = Duration::from_secs(20);

/// A comparison takes no longer, or is made again.
const COMPARE_TIME_MAX: Duration = Duration::from_secs(5);

/// A comparison that failed is made again so much later, as long as the gateway is there.
const COMPARE_AGAIN: Duration = Duration::from_millis(500);

/// That entries are refused is said so often at most: what is refused is sent again with every
/// comparison.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Entries of one message when many are told at once.
const ENTRIES_MAX: usize = 1_000;

/// What is asked of a gateway's copy.
#[derive(Debug, Serialize, Deserialize)]
enum Compare {
    /// Is the root of all entries this?
    Root(u64),
    /// Here is what we have where you differ; what do you have where we do?
    Exchange { digest: Digest, entries: Vec<(String, Entry)> },
}

/// What a gateway answers.
#[derive(Debug, Serialize, Deserialize)]
enum Compared {
    /// The copies are equal.
    Same,
    /// They are not.
    Differs(Digest),
    /// Entries that differ.
    Entries(Vec<(String, Entry)>),
}

/// Who told of entries.
enum Told {
    /// A push that reached everybody who is connected.
    All(Vec<(String, Entry)>),
    /// A comparison: others on our side may not have them.
    Us(Vec<(String, Entry)>),
}

/// What stays declared as long as it is held.
#[derive(Debug)]
pub(crate) struct Syncing {
    _pushes: Subscriber<()>,
    _comparer: Option<Queryable<()>>,
}

/// Where entries of others go.
#[derive(Clone, Debug)]
pub(crate) struct Incoming(mpsc::UnboundedSender<Told>);

/// Takes in what others tell, in order, away from Zenoh's threads.
pub(crate) fn start(shared: &Arc<Shared>) -> (Incoming, impl Future<Output = ()> + Send + use<>) {
    let (incoming, mut told) = mpsc::unbounded_channel();
    let shared = Arc::clone(shared);
    let taking = async move {
        let mut said: Option<Instant> = None;
        while let Some(told) = told.recv().await {
            let (entries, pass_on) = match told {
                Told::All(entries) => (entries, false),
                Told::Us(entries) => (entries, shared.role == Role::Gateway),
            };
            // What a comparison brought is passed on to those who were not part of it.
            let news = if pass_on { news(&shared.store, &entries) } else { Vec::new() };
            let taken = shared.store.take_in(entries);
            if let Some(why) = taken.why
                && said.is_none_or(|at| at.elapsed() >= SAY_EVERY)
            {
                said = Some(Instant::now());
                let refused = taken.ahead + taken.bad;
                tracing::warn!("{refused} entries of the desired state were refused: {why}");
            }
            let is_kept =
                |(key, entry): &(String, Entry)| shared.store.entry(key).as_ref() == Some(entry);
            tell(&shared, news.into_iter().filter(is_kept).collect()).await;
        }
    };
    (Incoming(incoming), taking)
}

/// Those of `entries` that are newer than what the store holds.
fn news(store: &Store, entries: &[(String, Entry)]) -> Vec<(String, Entry)> {
    let is_newer = |(key, entry): &&(String, Entry)| {
        store.entry(key).is_none_or(|known| known.stamp < entry.stamp)
    };
    entries.iter().filter(is_newer).cloned().collect()
}

/// Listens to changes of others, and, on a gateway, compares.
///
/// # Errors
/// Zenoh's words.
pub(crate) async fn declare(
    shared: &Arc<Shared>,
    session: &Session,
    incoming: &Incoming,
) -> zenoh::Result<Syncing> {
    let to = incoming.0.clone();
    let pushes = session
        .declare_subscriber(shared.keys.put())
        .callback(move |sample| match postcard::from_bytes(&sample.payload().to_bytes()) {
            // It fails when this node stops.
            Ok(entries) => drop(to.send(Told::All(entries))),
            Err(error) => tracing::warn!("what was told of the desired state is broken: {error}"),
        })
        .await?;
    let comparer = match shared.role {
        Role::Member => None,
        Role::Gateway => {
            let (at, to) = (Arc::downgrade(shared), incoming.0.clone());
            let callback = move |query: Query| {
                let Some(shared) = at.upgrade() else { return };
                let to = to.clone();
                shared.handle.clone().spawn(compare_for(shared, query, to));
            };
            let key = shared.keys.sync(&shared.me);
            Some(session.declare_queryable(key).callback(callback).await?)
        }
    };
    Ok(Syncing { _pushes: pushes, _comparer: comparer })
}

async fn compare_for(shared: Arc<Shared>, query: Query, to: mpsc::UnboundedSender<Told>) {
    let asked = query.payload().map(bytes_of).unwrap_or_default();
    let compared = match postcard::from_bytes(&asked) {
        Ok(Compare::Root(root)) if root == shared.store.root() => {
            shared.store.heard();
            Compared::Same
        }
        Ok(Compare::Root(_)) => Compared::Differs(shared.store.digest()),
        Ok(Compare::Exchange { digest, entries }) => {
            let ours = shared.store.differing(&digest);
            let _ = to.send(Told::Us(entries));
            Compared::Entries(ours)
        }
        Err(error) => {
            let _ = query.reply_err(format!("it does not understand this: {error}")).await;
            return;
        }
    };
    let Ok(bytes) = postcard::to_allocvec(&compared) else { return };
    if let Err(error) = query.reply(shared.keys.sync(&shared.me), bytes).await {
        tracing::debug!("a comparison could not be answered: {error}");
    }
}

/// Tells all of our own changes, for ever.
pub(crate) async fn tell_changes(shared: Arc<Shared>, mut changes: broadcast::Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(change) if change.own => tell(&shared, vec![(change.key, change.entry)]).await,
            // Those that were missed are found by the next comparison.
            Ok(_) | Err(RecvError::Lagged(_)) => (),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Tells all of these entries.
pub(crate) async fn tell(shared: &Arc<Shared>, entries: Vec<(String, Entry)>) {
    let Some(session) = shared.session() else { return };
    for entries in entries.chunks(ENTRIES_MAX) {
        let Ok(bytes) = postcard::to_allocvec(entries) else { return };
        if let Err(error) = session.put(shared.keys.put(), bytes).await {
            tracing::debug!("a change could not be told: {error}");
        }
    }
}

/// Compares our copy with gateways', for ever: with each that comes, and with one now and then.
pub(crate) async fn compare(
    shared: Arc<Shared>,
    incoming: Incoming,
    mut coming: mpsc::UnboundedReceiver<HostId>,
) {
    let mut regularly = interval(COMPARE_EVERY);
    regularly.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turn = 0;
    let mut again: Option<HostId> = None;
    loop {
        let gateway = tokio::select! {
            gateway = coming.recv() => match gateway {
                // A member hears from its own data centre what the others have told that.
                Some(gateway) => {
                    let near = gateway.dc == shared.me.dc || shared.role == Role::Gateway;
                    near.then_some(gateway)
                }
                None => return,
            },
            () = sleep(COMPARE_AGAIN), if again.is_some() => again.take(),
            _ = regularly.tick() => {
                turn += 1;
                next_gateway(&shared, turn)
            }
        };
        let Some(gateway) = gateway.filter(|gateway| *gateway != shared.me) else { continue };
        if let Err(error) = compare_with(&shared, &incoming, &gateway).await {
            tracing::debug!("the desired state was not compared with {gateway}'s: {error}");
            let is_there = shared.members().is_present(&gateway);
            again = is_there.then_some(gateway);
        }
    }
}

/// The gateway whose turn it is: a member's own data centre's first, for a gateway any.
fn next_gateway(shared: &Shared, turn: usize) -> Option<HostId> {
    let members = shared.members();
    let of = |near: bool| -> Vec<&HostId> {
        let gateways = members.iter().filter(|(id, member)| {
            member.role == Role::Gateway && member.is_present() && **id != shared.me
        });
        gateways.filter(|(id, _)| !near || id.dc == shared.me.dc).map(|(id, _)| id).collect()
    };
    let near = if shared.role == Role::Member { of(true) } else { Vec::new() };
    let gateways = if near.is_empty() { of(false) } else { near };
    gateways.get(turn % gateways.len().max(1)).map(|id| (*id).clone())
}

async fn compare_with(
    shared: &Arc<Shared>,
    incoming: &Incoming,
    gateway: &HostId,
) -> Result<(), String> {
    let said = ask(shared, gateway, &Compare::Root(shared.store.root())).await?;
    let theirs = match said {
        Compared::Same => {
            shared.store.heard();
            return Ok(());
        }
        Compared::Differs(theirs) => theirs,
        Compared::Entries(_) => return Err("it answered what was not asked".to_owned()),
    };
    let entries = shared.store.differing(&theirs);
    let exchange = Compare::Exchange { digest: shared.store.digest(), entries };
    match ask(shared, gateway, &exchange).await? {
        Compared::Entries(entries) => {
            let _ = incoming.0.send(Told::Us(entries));
            shared.store.heard();
            Ok(())
        }
        Compared::Same | Compared::Differs(_) => Err("it answered what was not asked".to_owned()),
    }
}

async fn ask(shared: &Shared, gateway: &HostId, what: &Compare) -> Result<Compared, String> {
    let session = shared.session().ok_or("there is no session")?;
    let payload = postcard::to_allocvec(what).map_err(|error| error.to_string())?;
    let replies = session
        .get(shared.keys.sync(gateway))
        .timeout(COMPARE_TIME_MAX)
        .payload(payload)
        .await
        .map_err(|error| error.to_string())?;
    let reply = replies.recv_async().await.map_err(|_| "it did not answer".to_owned())?;
    let sample = reply
        .into_result()
        .map_err(|error| String::from_utf8_lossy(&error.payload().to_bytes()).into_owned())?;
    postcard::from_bytes(&sample.payload().to_bytes()).map_err(|error| error.to_string())
}
