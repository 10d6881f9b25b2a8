//! Watches the liveliness tokens, and lets the rules of [`crate::members`] decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kumo_abi::HostId;
use kumo_abi::cluster::{HostInfo, HostState, Role};
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use zenoh::Session;
use zenoh::Wait as _;
use zenoh::liveliness::LivelinessToken;
use zenoh::pubsub::Subscriber;
use zenoh::query::{Query, Queryable};
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

/// So long after a token vanished it is looked for: one that moved to another gateway is back by then, and
/// the verdict is not spoken yet.
const FIRST_LOOK_MS: u64 = 60;

/// So long after an obituary it is looked whether the token is gone where it counts as there.
const OBITUARY_LOOK_MS: u64 = 1_000;

/// Between the two looks that find a token, or that find it gone.
const AGAIN_MS: u64 = 100;

/// So many of the hosts that are not there are looked for each so often, in turn. And as many of those that have
/// a card and were never seen by this node: they may be there.
const ROUND_MAX: usize = 4;
const ROUND_MS: u64 = 10_000;

/// Hosts that are looked for at the same time. All nodes look when many hosts are lost at once: where a gateway
/// is busy with that, its answers take longer, and fewer are asked for before the verdict.
const LOOKS_MAX: usize = 8;

/// One question takes no longer.
const LOOK_TIME_MAX: Duration = Duration::from_secs(2);

/// What was seen, on its way to the rules.
pub(crate) type Sightings = mpsc::UnboundedSender<Seen>;

/// What stays declared as long as it is held.
#[derive(Debug)]
pub(crate) struct Watching {
    _token: LivelinessToken,
    _subscribers: Vec<Subscriber<()>>,
    _here: Queryable<()>,
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
    let key = keys.here(&shared.me);
    let answer = move |query: Query| {
        // It needs no task: nothing waits here.
        if let Err(error) = query.reply(query.key_expr(), Vec::new()).wait() {
            tracing::debug!("that this host is here could not be told: {error}");
        }
    };
    let here = session.declare_queryable(key).callback(answer).await?;
    let key = keys.alive(&shared.me, shared.role, shared.incarnation);
    let token = session.liveliness().declare_token(key).await?;
    Ok(Watching { _token: token, _subscribers: vec![alive, bye, ended], _here: here })
}

/// Lets the rules decide, for ever. Tells of each gateway whose token came, or came back: what was told
/// meanwhile may have been missed. Tells of each host that may be gone: [`verify`] looks for it.
pub(crate) async fn decide(
    shared: Arc<Shared>,
    mut seen: mpsc::UnboundedReceiver<Seen>,
    gateways: mpsc::UnboundedSender<HostId>,
    doubtful: mpsc::UnboundedSender<(HostId, Cause)>,
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
            match &sighting {
                Seen::Down { host, .. } => drop(doubtful.send((host.clone(), Cause::Vanished))),
                Seen::Ended { host, .. } => drop(doubtful.send((host.clone(), Cause::Obituary))),
                _ => (),
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
        if shared.role == Role::Gateway {
            tell_end(&shared, &end.peer, incarnation).await;
        }
    }
}

/// Compares what the rules say with the tokens and the hosts themselves, and tells the rules of whom they
/// missed that he is there.
///
/// Zenoh decides under its lock what it tells whom, and tells it after that. Where a token goes at one
/// router and comes at another, or comes and goes at once, two threads may tell of it in the wrong order; then
/// it is gone for good as others see it while it is there. So who vanished is looked for before the verdict,
/// and of those that are not there a few at a time. A token counts only where its host answers, and when it is
/// found at two looks, for an answer may be overtaken too.
pub(crate) async fn verify(
    shared: Arc<Shared>,
    mut doubtful: mpsc::UnboundedReceiver<(HostId, Cause)>,
    sightings: Sightings,
) {
    let mut looks: BTreeMap<HostId, Look> = BTreeMap::new();
    let mut turns = Turns::default();
    let mut round_ms = shared.now_ms() + ROUND_MS;
    loop {
        let due_ms = looks.values().map(|look| look.at_ms).min();
        let next_ms = due_ms.unwrap_or(round_ms).min(round_ms);
        let wait = Duration::from_millis(next_ms.saturating_sub(shared.now_ms()));
        match timeout(wait, doubtful.recv()).await {
            Ok(Some((host, cause))) => {
                let wait_ms = match cause {
                    Cause::Obituary => OBITUARY_LOOK_MS,
                    _ => FIRST_LOOK_MS,
                };
                let look = Look::at(shared.now_ms() + wait_ms, cause);
                // An obituary is the last that is heard of most.
                if look.cause == Cause::Obituary {
                    looks.insert(host, look);
                } else {
                    looks.entry(host).or_insert(look);
                }
                continue;
            }
            Ok(None) => return,
            Err(_) => (),
        }
        let now_ms = shared.now_ms();
        if round_ms <= now_ms {
            round_ms = now_ms + ROUND_MS;
            for host in turns.next(&shared.states(), &shared.me) {
                looks.entry(host).or_insert_with(|| Look::at(now_ms, Cause::Turn));
            }
        }
        {
            let members = shared.members();
            looks.retain(|host, look| now_ms < look.at_ms || look.is_wanted(&members, host));
        }
        let due = looks.iter().filter(|(_, look)| look.at_ms <= now_ms);
        let due = due.map(|(host, look)| (host.clone(), look.expects_token()));
        let due: Vec<(HostId, bool)> = due.take(LOOKS_MAX).collect();
        let mut asked = JoinSet::new();
        for (host, expects_token) in due {
            let shared = Arc::clone(&shared);
            asked.spawn(async move {
                let missed = if expects_token {
                    gone(&shared, &host).await
                } else {
                    missed(&shared, &host).await
                };
                (host, missed)
            });
        }
        while let Some(done) = asked.join_next().await {
            let Ok((host, missed)) = done else { continue };
            let (Some(seen), Some(look)) = (missed, looks.get_mut(&host)) else {
                looks.remove(&host);
                continue;
            };
            if look.cause != Cause::Found(seen.clone()) {
                *look = Look::at(shared.now_ms() + AGAIN_MS, Cause::Found(seen));
                continue;
            }
            looks.remove(&host);
            tracing::debug!("nobody told of it: {seen:?}");
            // It fails when this node stops.
            let _ = sightings.send(seen);
        }
    }
}

/// When a host's token is looked for, and why.
struct Look {
    at_ms: u64,
    cause: Cause,
}

/// Why a host's token is looked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It vanished.
    Vanished,
    /// Its host's kernel ended a connection: where it counts as there, it came back, or that it went was
    /// overtaken by that it came.
    Obituary,
    /// It is not there, and it is this host's turn.
    Turn,
    /// The look before found what contradicts the rules.
    Found(Seen),
}

impl Look {
    fn at(at_ms: u64, cause: Cause) -> Look {
        Look { at_ms, cause }
    }

    /// Whether an answer could tell anything new. Of who vanished only until the verdict: a host whose kernel
    /// ended its connections is not looked for by a whole cluster at once, it has its turn.
    fn is_wanted(&self, members: &Members, host: &HostId) -> bool {
        match self.cause {
            Cause::Vanished => members.is_in_doubt(host),
            _ => members.is_present(host) == self.expects_token(),
        }
    }

    /// Whether it is looked for to see that it is gone.
    fn expects_token(&self) -> bool {
        matches!(self.cause, Cause::Obituary | Cause::Found(Seen::Down { .. }))
    }
}

/// Whose turn it was last: of all that are not there, and of those that were never seen.
#[derive(Default)]
struct Turns {
    absent: Option<HostId>,
    unseen: Option<HostId>,
}

impl Turns {
    /// The hosts whose turn it is. All but `me` that are not there follow each other, and so do those that were
    /// never seen.
    fn next(&mut self, hosts: &[HostInfo], me: &HostId) -> BTreeSet<HostId> {
        let absent = |info: &&HostInfo| info.id != *me && info.state != HostState::Alive;
        let absent = hosts.iter().filter(absent);
        let unseen = absent.clone().filter(|info| info.incarnation.is_none());
        let mut next: BTreeSet<HostId> = after(absent, &mut self.absent).collect();
        next.extend(after(unseen, &mut self.unseen));
        next
    }
}

/// The next [`ROUND_MAX`] after `last`, which the last of them becomes.
fn after<'a>(
    hosts: impl Iterator<Item = &'a HostInfo>,
    last: &mut Option<HostId>,
) -> impl Iterator<Item = HostId> {
    let mut ids: Vec<&HostId> = hosts.map(|info| &info.id).collect();
    let next = ids.partition_point(|host| last.as_ref().is_some_and(|last| *host <= last));
    ids.rotate_left(next);
    ids.truncate(ROUND_MAX);
    *last = ids.last().copied().cloned();
    ids.into_iter().cloned()
}

/// What the rules missed of a host: its token is there, and it answers. What was not heard is nothing.
async fn missed(shared: &Shared, host: &HostId) -> Option<Seen> {
    let session = shared.session()?;
    let token = newest_token(shared, &session, host).await;
    let seen = shared.members().contradiction(host, token)?;
    answers(shared, &session, host).await.then_some(seen)
}

/// The reverse: the rules say that it is there, but there is no token, and it does not answer.
async fn gone(shared: &Shared, host: &HostId) -> Option<Seen> {
    let session = shared.session()?;
    let incarnation = shared.members().find(host)?.incarnation;
    if newest_token(shared, &session, host).await.is_some() || answers(shared, &session, host).await
    {
        return None;
    }
    Some(Seen::Down { host: host.clone(), incarnation })
}

/// Whether a host says that it is there.
async fn answers(shared: &Shared, session: &Session, host: &HostId) -> bool {
    let Ok(replies) = session.get(shared.keys.here(host)).timeout(LOOK_TIME_MAX).await else {
        return false;
    };
    replies.recv_async().await.is_ok_and(|reply| reply.result().is_ok())
}

/// The newest token of a host that Zenoh knows of: its role and incarnation.
async fn newest_token(shared: &Shared, session: &Session, host: &HostId) -> Option<(Role, u64)> {
    let asked = session.liveliness().get(shared.keys.alive_of(host));
    let replies = asked.timeout(LOOK_TIME_MAX).await.ok()?;
    let mut newest: Option<(Role, u64)> = None;
    while let Ok(reply) = replies.recv_async().await {
        let sample = reply.result().ok()?;
        let Some((_, role, incarnation)) = shared.keys.parse_alive(sample.key_expr().as_str())
        else {
            continue;
        };
        if newest.is_none_or(|(_, known)| known < incarnation) {
            newest = Some((role, incarnation));
        }
    }
    newest
}

/// Tells all that the connections of a start of a host were ended.
async fn tell_end(shared: &Shared, host: &HostId, incarnation: u64) {
    let Some(session) = shared.session() else { return };
    let key = shared.keys.ended(host, incarnation);
    if let Err(error) = session.put(key, Vec::new()).express(true).await {
        tracing::debug!("the end of {host} could not be told: {error}");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use bytes::Bytes;
    use kumo_abi::cluster::Card;
    use kumo_pki::Authority;

    use super::*;
    use crate::identity::{Gateway, Identity};
    use crate::{Answerer, Answering, Fabric, FabricConfig, wall_ms};

    /// Nobody asks here.
    struct Mute;

    impl Answerer for Mute {
        fn answer(&self, _request: Bytes) -> Answering {
            Box::pin(std::future::pending())
        }

        fn merge(&self, _request: &[u8], parts: Vec<Bytes>) -> Result<Bytes, String> {
            Ok(parts.concat().into())
        }
    }

    /// A node of a cluster with these gateways, of which it may be one.
    pub(crate) async fn node(
        authority: &Authority,
        dir: &std::path::Path,
        host: &str,
        gateways: &[Gateway],
    ) -> Fabric {
        let host: HostId = host.parse().expect("a host");
        let own = gateways.iter().find(|gateway| gateway.host == host);
        let role = if own.is_some() { Role::Gateway } else { Role::Member };
        let mut identity = Identity::issue(authority, &host, role, wall_ms()).expect("an identity");
        identity.listen = own.map(|own| own.addresses[0].parse().expect("an address"));
        identity.gateways =
            gateways.iter().filter(|gateway| gateway.host != host).cloned().collect();
        let card = Card {
            role,
            version: String::new(),
            kernel: String::new(),
            architecture: String::new(),
            cpus: 1,
            memory: 1,
            addresses: own.map(|own| own.addresses.clone()).unwrap_or_default(),
            call_addresses: Vec::new(),
            labels: BTreeMap::new(),
        };
        let run_dir = dir.join(format!("{}-{}", host.dc, host.host));
        let config =
            FabricConfig { identity, state_dir: None, run_dir, card, calls: false, lease: None };
        Fabric::open(config, Arc::new(Mute)).await.expect("a fabric")
    }

    /// One with an address that is its own until it listens there.
    pub(crate) fn gateway(host: &str) -> Gateway {
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let address = port.expect("a free port").to_string();
        Gateway { host: host.parse().expect("a host"), addresses: vec![address] }
    }

    pub(crate) async fn until(fabric: &Fabric, host: &HostId, state: HostState) {
        let began = Instant::now();
        loop {
            let hosts = fabric.hosts();
            if hosts.iter().any(|info| info.id == *host && info.state == state) {
                return;
            }
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{host} is not {state:?}: {hosts:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[test]
    fn who_is_not_there_has_its_turn_and_who_was_never_seen_has_it_soon() {
        let info = |nth: usize| HostInfo {
            id: format!("tokyo/h-{nth:02}").parse().expect("a host"),
            state: [HostState::CutOff, HostState::Dead, HostState::Alive][nth % 3],
            state_ms: 0,
            incarnation: (!nth.is_multiple_of(6)).then_some(1),
            card: None,
        };
        let hosts: Vec<HostInfo> = (0..60).map(info).collect();
        let (me, mut turns) = (&hosts[7].id, Turns::default());
        let count = |next: &BTreeSet<HostId>, is_meant: &dyn Fn(&HostInfo) -> bool| {
            let meant = hosts.iter().filter(|info| is_meant(info));
            meant.filter(|info| next.contains(&info.id)).count()
        };
        let mut seen = BTreeSet::new();
        for round in 0..10 {
            let next = turns.next(&hosts, me);
            assert!(next.len() <= 2 * ROUND_MAX && !next.contains(me), "{next:?}");
            let unseen = count(&next, &|info| info.incarnation.is_none());
            assert!(unseen >= ROUND_MAX, "in round {round}: {next:?}");
            seen.extend(next);
        }
        assert_eq!(count(&seen, &|info| info.state != HostState::Alive), 39, "all but `me`");
        assert_eq!(count(&seen, &|info| info.state == HostState::Alive), 0);
        assert_eq!(turns.next(&[], me), BTreeSet::new());
    }

    #[test]
    fn who_is_back_or_known_to_be_dead_is_not_looked_for() {
        let mut members = Members::default();
        let (host, gateway) = ("tokyo/a", "tokyo/gw");
        let id = |name: &str| -> HostId { name.parse().expect("a host") };
        let up = |name: &str, role| Seen::Up { host: id(name), role, incarnation: 1 };
        let down = |name: &str| Seen::Down { host: id(name), incarnation: 1 };
        let wanted = |members: &Members| {
            let found = [up(host, Role::Member), down(host)].map(Cause::Found);
            let causes = [Cause::Vanished, Cause::Turn, Cause::Obituary].into_iter().chain(found);
            causes.map(|cause| Look::at(0, cause).is_wanted(members, &id(host))).collect::<Vec<_>>()
        };
        // Never seen: there is nothing that could vanish.
        assert_eq!(wanted(&members), [false, true, false, true, false]);
        members.see(up(gateway, Role::Gateway), 0);
        members.see(up(host, Role::Member), 0);
        assert_eq!(wanted(&members), [false, false, true, false, true]);
        members.see(down(host), 1_000);
        assert_eq!(wanted(&members), [true, true, false, true, false]);
        // Without any gateway of its data centre nobody knows.
        members.see(down(gateway), 1_010);
        assert_eq!(wanted(&members), [false, true, false, true, false]);
        members.see(up(gateway, Role::Gateway), 1_020);
        assert_eq!(wanted(&members), [true, true, false, true, false]);
        members.see(Seen::Ended { host: id(host), incarnation: 1 }, 1_030);
        assert_eq!(members.decide(1_040).len(), 1);
        assert_eq!(wanted(&members), [false, true, false, true, false]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_is_there_is_found_whatever_was_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let cluster = "acme".parse().expect("a name");
        let authority = Authority::create(&cluster, wall_ms()).expect("an authority");
        let gateways = [gateway("tokyo/gw")];
        let gateway = node(&authority, dir.path(), "tokyo/gw", &gateways).await;
        let member = node(&authority, dir.path(), "tokyo/a", &gateways).await;
        for (of, host) in [(&gateway, &member), (&member, &gateway)] {
            let (host, incarnation) = (host.identity().host.clone(), host.incarnation());
            until(of, &host, HostState::Alive).await;
            // As if that came last, whatever came before.
            let shared = &of.parts.shared;
            shared.members().see(Seen::Down { host: host.clone(), incarnation }, shared.now_ms());
            until(of, &host, HostState::Alive).await;
            let mut changes = of.events();
            let both = async {
                assert_ne!(changes.recv().await.expect("a change").state, HostState::Alive);
                assert_eq!(changes.recv().await.expect("a change").state, HostState::Alive);
            };
            timeout(Duration::from_secs(60), both).await.expect("it is found");
        }
        // As if the news that it came had overtaken that it went; and an obituary of one that is back.
        let (ghost, here) = ("tokyo/ghost".parse().expect("a host"), &member.identity().host);
        let shared = &gateway.parts.shared;
        let up = Seen::Up { host: HostId::clone(&ghost), role: Role::Member, incarnation: 1 };
        shared.members().see(up, shared.now_ms());
        let mut changes = gateway.events();
        tell_end(shared, here, member.incarnation()).await;
        tell_end(&member.parts.shared, &ghost, 1).await;
        until(&gateway, &ghost, HostState::Dead).await;
        until(&gateway, here, HostState::Alive).await;
        while let Ok(change) = changes.try_recv() {
            assert_eq!(change.id, ghost, "{change:?}");
        }
    }
}
