//! Finds links between gateways over which not all is told, and has them made anew.
//!
//! Zenoh's routers know their connection with another router by that router's name alone. Where a new one begins
//! before the end of the one before it is worked off, all that the other router declares over it is dropped for as
//! long as it lasts: its tokens, and who answers which questions there ("unknown routing context" in the log). That
//! was seen on gateways that were so busy that they could not send for 5 s, gave the connection up for that and
//! opened another. So gateways tell each other now and then with whom they have links. One that has lacked the same
//! host for several times in a row ends its link with the gateway that has it; [`crate::link`] lets a while pass
//! before the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use zenoh::query::{Query, Queryable};
use zenoh::{Session, Wait as _};

use super::question::bytes_of;
use crate::link::Links;
use crate::members::Members;
use crate::shared::Shared;

/// Gateways ask each other so often. A name of some ten bytes comes for each host.
const AUDIT_EVERY: Duration = Duration::from_secs(10);

/// Links that are younger are not spoken of, and not over them: tokens are on their way.
const LINK_AGE_MIN: Duration = Duration::from_secs(5);

/// One question takes no longer.
const AUDIT_TIME_MAX: Duration = Duration::from_secs(5);

/// A link is made anew when the same host was lacking so many times in a row.
const LACKING_MAX: usize = 3;

/// Tells other gateways with whom this one has links, from now on.
///
/// # Errors
/// Zenoh's words.
pub(crate) async fn declare(
    shared: &Arc<Shared>,
    session: &Session,
    links: &Arc<Links>,
) -> zenoh::Result<Queryable<()>> {
    let (at, links) = (Arc::downgrade(shared), Arc::downgrade(links));
    let answer = move |query: Query| {
        let (Some(shared), Some(links)) = (at.upgrade(), links.upgrade()) else { return };
        let linked: Vec<HostId> = {
            let members = shared.members();
            // Whom nobody hears of here others cannot hear of by us.
            let linked = links.linked(LINK_AGE_MIN).into_iter().map(|(id, _)| id);
            linked.filter(|id| members.is_present(id)).collect()
        };
        let Ok(bytes) = postcard::to_allocvec(&linked) else { return };
        // It needs no task: nothing waits here.
        if let Err(error) = query.reply(query.key_expr(), bytes).wait() {
            tracing::debug!("with whom this host has links could not be told: {error}");
        }
    };
    session.declare_queryable(shared.keys.audit(&shared.me)).callback(answer).await
}

/// Asks all gateways that this one has a link with, for ever, and has links made anew.
pub(crate) async fn audit(shared: Arc<Shared>, links: Arc<Links>) {
    let mut every = interval(AUDIT_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut evidence = Evidence::default();
    loop {
        every.tick().await;
        let linked = links.linked(LINK_AGE_MIN);
        let gateways = linked.into_iter().filter(|(_, role)| *role == Role::Gateway);
        let mut asked = JoinSet::new();
        for (gateway, _) in gateways {
            let shared = Arc::clone(&shared);
            asked.spawn(async move {
                let told = ask(&shared, &gateway).await;
                (gateway, told)
            });
        }
        let mut round = BTreeMap::new();
        while let Some(done) = asked.join_next().await {
            if let Ok((gateway, told)) = done {
                round.insert(gateway, told);
            }
        }
        let lasting = evidence.add(round, &shared.members());
        for (gateway, lacking) in lasting {
            let (count, first) =
                (lacking.len(), lacking.first().map_or_else(String::new, HostId::to_string));
            tracing::warn!(
                "nothing is heard here of {first} ({count} in all), with which {gateway} has a link: \
                 the link with {gateway} is made anew"
            );
            links.end_link(&gateway);
        }
    }
}

/// With whom a gateway has links; `None` where it does not say.
async fn ask(shared: &Shared, gateway: &HostId) -> Option<Vec<HostId>> {
    let session = shared.session()?;
    let replies = session.get(shared.keys.audit(gateway)).timeout(AUDIT_TIME_MAX).await.ok()?;
    let reply = replies.recv_async().await.ok()?.into_result().ok()?;
    let mut linked: Vec<HostId> = postcard::from_bytes(&bytes_of(reply.payload())).ok()?;
    linked.retain(|host| *host != shared.me);
    Some(linked)
}

/// What gateways lacked, time after time.
#[derive(Default)]
struct Evidence {
    /// Of each gateway: who was lacking each time, and how many times.
    lacking: BTreeMap<HostId, (BTreeSet<HostId>, usize)>,
    /// Who has ever answered. An older node does not know the question.
    answered: BTreeSet<HostId>,
}

impl Evidence {
    /// Takes in one round: what each gateway said, if it said anything. Returns with which gateways the links are to
    /// be made anew, and for whom; of these there is no evidence any more.
    fn add(
        &mut self,
        round: BTreeMap<HostId, Option<Vec<HostId>>>,
        members: &Members,
    ) -> Vec<(HostId, BTreeSet<HostId>)> {
        self.lacking.retain(|gateway, _| round.contains_key(gateway));
        let mut lasting = Vec::new();
        for (gateway, told) in round {
            let is_absent = |host: &HostId| !members.is_present(host);
            let now: BTreeSet<HostId> = match told {
                Some(linked) => {
                    self.answered.insert(gateway.clone());
                    linked.into_iter().chain([gateway.clone()]).filter(is_absent).collect()
                }
                // It is linked with us, so it lives: it should answer, or its token be there at least.
                None if self.answered.contains(&gateway) || is_absent(&gateway) => {
                    BTreeSet::from([gateway.clone()])
                }
                None => BTreeSet::new(),
            };
            let (before, times) = self.lacking.remove(&gateway).unwrap_or_default();
            let still: BTreeSet<HostId> = before.intersection(&now).cloned().collect();
            let (lacking, times) = if still.is_empty() { (now, 1) } else { (still, times + 1) };
            if lacking.is_empty() {
                continue;
            }
            if times < LACKING_MAX {
                self.lacking.insert(gateway, (lacking, times));
            } else {
                lasting.push((gateway, lacking));
            }
        }
        lasting
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use kumo_abi::cluster::HostState;
    use kumo_pki::Authority;
    use tokio::time::sleep;

    use super::*;
    use crate::members::{SILENT_GRACE_MS, Seen};
    use crate::net::watch::tests::{gateway, node, until};
    use crate::wall_ms;

    fn id(name: &str) -> HostId {
        name.parse().expect("a host")
    }

    fn members(names: &[&str]) -> Members {
        let mut members = Members::default();
        for name in names {
            let role = if name.contains("gw") { Role::Gateway } else { Role::Member };
            members.see(Seen::Up { host: id(name), role, incarnation: 1 }, 0);
        }
        members
    }

    /// What a round with one gateway leads to: whose links are made anew, for whom.
    fn add(evidence: &mut Evidence, told: Option<&[&str]>, members: &Members) -> Vec<String> {
        let told = told.map(|told| told.iter().map(|name| id(name)).collect());
        let lasting = evidence.add(BTreeMap::from([(id("osaka/gw"), told)]), members);
        lasting.into_iter().flat_map(|(_, hosts)| hosts).map(|host| host.to_string()).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn gateways_tell_with_whom_they_have_links_and_a_new_link_kills_nobody() {
        let dir = tempfile::tempdir().expect("a directory");
        let cluster = "acme".parse().expect("a name");
        let authority = Authority::create(&cluster, wall_ms()).expect("an authority");
        let gateways = [gateway("tokyo/gw"), gateway("osaka/gw")];
        let tokyo = node(&authority, dir.path(), "tokyo/gw", &gateways).await;
        let osaka = node(&authority, dir.path(), "osaka/gw", &gateways).await;
        let member = node(&authority, dir.path(), "osaka/a", &gateways).await;
        let hosts = ["tokyo/gw", "osaka/gw", "osaka/a"].map(id);
        for of in [&tokyo, &osaka, &member] {
            for host in &hosts {
                until(of, host, HostState::Alive).await;
            }
        }
        let shared = &tokyo.parts.shared;
        let began = Instant::now();
        // Links that are young are not spoken of.
        while ask(shared, &hosts[1]).await.is_none_or(|linked| !linked.contains(&hosts[2])) {
            assert!(began.elapsed() < Duration::from_secs(60), "osaka/gw does not tell of osaka/a");
            sleep(Duration::from_millis(50)).await;
        }
        let mut changes = tokyo.events();
        let links = tokyo.parts.links.load_full().expect("links");
        let ended = Instant::now();
        links.end_link(&hosts[1]);
        let is_new = |age_ms: u64| age_ms < 5_000;
        while !tokyo.links().iter().any(|link| link.peer == hosts[1] && is_new(link.age_ms)) {
            assert!(began.elapsed() < Duration::from_secs(60), "the link is not made anew");
            sleep(Duration::from_millis(5)).await;
        }
        while ask(shared, &hosts[1]).await.is_none_or(|linked| !linked.contains(&hosts[2])) {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "nothing is heard over the new link"
            );
            sleep(Duration::from_millis(50)).await;
        }
        for host in &hosts {
            until(&tokyo, host, HostState::Alive).await;
        }
        // On a machine that is busier than hosts have time to come back nothing can be said.
        let is_prompt = ended.elapsed() < Duration::from_millis(SILENT_GRACE_MS / 2);
        while let Ok(change) = changes.try_recv() {
            assert!(change.state != HostState::Dead || !is_prompt, "{change:?}");
        }
    }

    #[test]
    fn who_is_lacking_each_time_costs_the_link() {
        let (all, some) =
            (members(&["osaka/gw", "osaka/a", "osaka/b"]), members(&["osaka/gw", "osaka/a"]));
        let told: Option<&[&str]> = Some(&["osaka/a", "osaka/b"]);
        let mut evidence = Evidence::default();
        assert!((0..5).all(|_| add(&mut evidence, told, &all).is_empty()), "nobody lacks");
        assert!((1..LACKING_MAX).all(|_| add(&mut evidence, told, &some).is_empty()), "not yet");
        assert_eq!(add(&mut evidence, told, &some), ["osaka/b"]);
        assert!(
            (1..LACKING_MAX).all(|_| add(&mut evidence, told, &some).is_empty()),
            "from the start"
        );
        assert!(add(&mut evidence, told, &all).is_empty(), "it came");
        assert!(
            (1..LACKING_MAX).all(|_| add(&mut evidence, told, &some).is_empty()),
            "from the start"
        );
    }

    #[test]
    fn who_comes_and_goes_costs_nothing() {
        let mut evidence = Evidence::default();
        let none = members(&["osaka/gw"]);
        for round in 0..3 * LACKING_MAX {
            let name = format!("osaka/{round}");
            assert!(add(&mut evidence, Some(&[&name]), &none).is_empty(), "in round {round}");
        }
    }

    #[test]
    fn a_gateway_that_says_nothing_is_known_to_be_there_or_to_have_answered() {
        let (there, nobody) = (members(&["osaka/gw"]), members(&[]));
        let mut evidence = Evidence::default();
        assert!((0..5).all(|_| add(&mut evidence, None, &there).is_empty()), "it is an older one");
        assert!((1..LACKING_MAX).all(|_| add(&mut evidence, None, &nobody).is_empty()), "not yet");
        assert_eq!(add(&mut evidence, None, &nobody), ["osaka/gw"]);
        assert!(add(&mut evidence, Some(&[]), &there).is_empty());
        assert!((1..LACKING_MAX).all(|_| add(&mut evidence, None, &there).is_empty()), "not yet");
        assert_eq!(add(&mut evidence, None, &there), ["osaka/gw"]);
        // Without a link there is nothing to be made anew, and what was is forgotten.
        assert!((1..LACKING_MAX).all(|_| add(&mut evidence, None, &there).is_empty()), "not yet");
        assert!(evidence.add(BTreeMap::new(), &there).is_empty());
        assert!(add(&mut evidence, None, &there).is_empty(), "from the start");
    }
}
