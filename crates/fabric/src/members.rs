//! Who is there: the rules of membership, as plain values.
//!
//! What comes in are liveness tokens that appear and vanish; what goes out is the state of each host.
//! Whoever saw a host's connection be ended by its own kernel says so to all (an obituary): where its
//! token is gone too, that host is dead at once. A token that vanishes without an obituary has a grace
//! to come back, for the cause may be another: a gateway's death kills nobody, and who was frozen or
//! without a network itself finds all others gone. If no gateway of the data centre is left, nothing
//! can be known of its hosts: they are cut off, not dead.
//!
//! Times are milliseconds of a monotonic clock, passed in.

use std::collections::{BTreeMap, BTreeSet};

use kumo_abi::cluster::{HostState, Role};
use kumo_abi::{DcName, HostId};

/// So long it may take until a token that vanished with its host's connection comes back, because that
/// connection was an old one.
pub const SETTLE_MS: u64 = 25;

/// So long a token that vanished without an obituary may take to come back, and gateways of one data
/// centre to be missed, each by its own lease. A host whose gateway was killed is back in about 15 ms;
/// a busy one takes longer.
pub const GRACE_MS: u64 = 300;

/// The same, when the gateway fell silent instead of being killed. Its hosts and the other gateways
/// notice that each by its own lease, up to a lease apart.
pub const SILENT_GRACE_MS: u64 = 1_000;

/// Hosts that are gone for longer than this are forgotten; their cards are kept elsewhere.
pub const FORGET_MS: u64 = 24 * 3600 * 1000;

/// It is looked so often who can be.
const SWEEP_MS: u64 = 60 * 1000;

/// What is known of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it is.
    pub role: Role,
    /// A number that grows with each start of its node.
    pub incarnation: u64,
    /// What is known of it. A host whose token vanished is alive until the verdict.
    pub state: HostState,
    /// Since when, milliseconds of the clock that is passed in.
    pub since_ms: u64,
    /// When its token last came.
    came_ms: u64,
    /// When its token vanished, while its fate is open.
    vanished_ms: Option<u64>,
    /// It said good-bye, and its token will vanish.
    leaving: bool,
    /// When its kernel was said to have ended a connection.
    ended_ms: Option<u64>,
}

impl Member {
    /// Whether its token is there.
    pub fn is_present(&self) -> bool {
        self.state == HostState::Alive && self.vanished_ms.is_none()
    }

    /// Whether there is an obituary. One that is older than the loss of the token was about an earlier
    /// connection.
    fn is_ended(&self) -> bool {
        let gone_ms = self.vanished_ms.unwrap_or(self.since_ms);
        self.ended_ms.is_some_and(|ended_ms| ended_ms + SILENT_GRACE_MS >= gone_ms)
    }
}

/// What happened to a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is there.
    Up {
        /// Whose it is.
        host: HostId,
        /// What that host is.
        role: Role,
        /// Of which start of its node.
        incarnation: u64,
    },
    /// It vanished.
    Down {
        /// Whose it was.
        host: HostId,
        /// Of which start of its node.
        incarnation: u64,
    },
    /// Its node said that it leaves.
    Bye {
        /// Who leaves.
        host: HostId,
        /// Which start of its node.
        incarnation: u64,
    },
    /// A host's kernel ended its connection to a gateway, or a gateway's refuses new ones.
    Ended {
        /// Whose connection it was.
        host: HostId,
        /// Of which start of its node.
        incarnation: u64,
    },
}

/// What will be said of a host, and from when on.
type Verdict = (HostState, u64);

/// A host's state has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which host.
    pub host: HostId,
    /// What it is.
    pub role: Role,
    /// What is known now.
    pub state: HostState,
}

/// All hosts of a cluster, as one node knows them.
#[derive(Clone, Debug, Default)]
pub struct Members {
    hosts: BTreeMap<HostId, Member>,
    /// The gateways among them, by data centre; those of whom something is still to be said, with what and
    /// from when on as far as it is known; and these by time. With them an event costs what it changes,
    /// not a look at all hosts.
    gateways: BTreeMap<DcName, BTreeSet<HostId>>,
    open: BTreeMap<HostId, Option<Verdict>>,
    due: BTreeSet<(u64, HostId)>,
    /// When it was last looked who can be forgotten.
    swept_ms: u64,
    /// When this host itself had last stood still.
    stood_still_ms: Option<u64>,
}

impl Members {
    /// Notes at `now_ms` that this host had stood still, frozen or without a processor: others lost it,
    /// and it will find theirs gone. They get the time to show that those who fell silent have.
    pub fn stood_still(&mut self, now_ms: u64) {
        self.stood_still_ms = Some(now_ms);
        for host in self.open.keys().cloned().collect::<Vec<_>>() {
            self.judge(&host);
        }
    }

    /// All hosts, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&HostId, &Member)> {
        self.hosts.iter()
    }

    /// One host.
    pub fn find(&self, host: &HostId) -> Option<&Member> {
        self.hosts.get(host)
    }

    /// The gateways of a data centre whose tokens are there.
    pub fn gateways<'a>(&'a self, dc: &'a DcName) -> impl Iterator<Item = &'a HostId> {
        self.gateway_members(dc).filter(|(_, member)| member.is_present()).map(|(id, _)| id)
    }

    /// Since when the data centre can be reached as it can now: when the last of its gateways came.
    pub fn reachable_since_ms(&self, dc: &DcName) -> Option<u64> {
        let came = self.gateways(dc).filter_map(|id| Some(self.hosts.get(id)?.came_ms));
        came.max()
    }

    fn gateway_members<'a>(
        &'a self,
        dc: &'a DcName,
    ) -> impl Iterator<Item = (&'a HostId, &'a Member)> {
        let gateways = self.gateways.get(dc).into_iter().flatten();
        gateways.filter_map(|id| Some((id, self.hosts.get(id)?)))
    }

    /// Of which start of a host it would be news that its connections were ended.
    pub fn may_have_ended(&self, host: &HostId) -> Option<u64> {
        let member = self.hosts.get(host)?;
        let is_news = member.is_present() || !member.is_ended();
        (is_news && member.state != HostState::Dead).then_some(member.incarnation)
    }

    /// Whether a host's token is there.
    pub fn is_present(&self, host: &HostId) -> bool {
        self.hosts.get(host).is_some_and(Member::is_present)
    }

    /// Whether a host's token vanished, it is open what will be said of it, and somebody could know: a gateway
    /// of its data centre is there.
    pub fn is_in_doubt(&self, host: &HostId) -> bool {
        let vanished = self.hosts.get(host).is_some_and(|member| member.vanished_ms.is_some());
        vanished && self.gateways(&host.dc).next().is_some()
    }

    /// What must have happened to a host's token, where it is there as `token` says, its role and incarnation,
    /// and that is not known.
    pub fn contradiction(&self, host: &HostId, token: Option<(Role, u64)>) -> Option<Seen> {
        let (role, incarnation) = token?;
        let member = self.hosts.get(host);
        let is_late = member.is_some_and(|known| known.incarnation > incarnation);
        let is_known =
            member.is_some_and(|known| known.incarnation == incarnation && known.is_present());
        let host = host.clone();
        (!is_late && !is_known).then_some(Seen::Up { host, role, incarnation })
    }

    /// Takes in what happened to a token at `now_ms`.
    pub fn see(&mut self, seen: Seen, now_ms: u64) -> Vec<Change> {
        let (Seen::Up { host, .. }
        | Seen::Down { host, .. }
        | Seen::Bye { host, .. }
        | Seen::Ended { host, .. }) = &seen;
        let host = host.clone();
        let changes = self.take_in(seen, now_ms);
        self.index(&host);
        changes
    }

    /// Sets right what is kept beside `hosts`, after a change of one.
    fn index(&mut self, host: &HostId) {
        let is_gateway = self.hosts.get(host).is_some_and(|m| m.role == Role::Gateway);
        let was_gateway = if is_gateway {
            !self.gateways.entry(host.dc.clone()).or_default().insert(host.clone())
        } else {
            self.gateways.get_mut(&host.dc).is_some_and(|gateways| gateways.remove(host))
        };
        self.judge(host);
        // What is said of a host depends on itself and on the gateways of its data centre.
        if is_gateway || was_gateway {
            let others = self.open.keys().filter(|open| open.dc == host.dc && *open != host);
            for other in others.cloned().collect::<Vec<_>>() {
                self.judge(&other);
            }
        }
    }

    /// Works out anew what will be said of a host.
    fn judge(&mut self, host: &HostId) {
        if let Some(Some((_, at_ms))) = self.open.remove(host) {
            self.due.remove(&(at_ms, host.clone()));
        }
        let Some(member) = self.hosts.get(host) else { return };
        let verdict = match member.vanished_ms {
            Some(vanished_ms) => Some(self.vanished(host, member, vanished_ms)),
            None if member.state == HostState::CutOff => self.returned(host),
            None => return,
        };
        if let Some((_, at_ms)) = verdict {
            self.due.insert((at_ms, host.clone()));
        }
        self.open.insert(host.clone(), verdict);
    }

    fn take_in(&mut self, seen: Seen, now_ms: u64) -> Vec<Change> {
        match seen {
            Seen::Up { host, role, incarnation } => self.up(host, role, incarnation, now_ms),
            Seen::Down { host, incarnation } => {
                let Some(member) = self.of_start(&host, incarnation) else { return Vec::new() };
                if member.state != HostState::Alive {
                    return Vec::new(); // Known to be gone.
                }
                member.vanished_ms.get_or_insert(now_ms);
                if member.leaving { self.settle(host, HostState::Left, now_ms) } else { Vec::new() }
            }
            Seen::Bye { host, incarnation } => {
                let Some(member) = self.of_start(&host, incarnation) else { return Vec::new() };
                member.leaving = true;
                if member.is_present() || member.state == HostState::Left {
                    return Vec::new();
                }
                self.settle(host, HostState::Left, now_ms)
            }
            Seen::Ended { host, incarnation } => {
                let Some(member) = self.of_start(&host, incarnation) else { return Vec::new() };
                member.ended_ms = Some(now_ms);
                // It overrules that nothing can be known of its data centre.
                if member.state == HostState::CutOff {
                    return self.settle(host, HostState::Dead, now_ms);
                }
                Vec::new()
            }
        }
    }

    /// A data centre was lost. Whoever of it was called dead just before, for nobody saw it killed, may
    /// have hung on another's gateway and be cut off with it.
    fn doubt(&mut self, dc: &DcName, now_ms: u64) -> Vec<Change> {
        let is_doubtful = |(id, member): &(&HostId, &Member)| {
            let was_just_now = now_ms.saturating_sub(member.since_ms) <= SILENT_GRACE_MS;
            id.dc == *dc && member.state == HostState::Dead && was_just_now && !member.is_ended()
        };
        let hosts: Vec<HostId> =
            self.hosts.iter().filter(is_doubtful).map(|(id, _)| id.clone()).collect();
        let mut changes = Vec::new();
        for host in hosts {
            changes.extend(self.settle(host.clone(), HostState::CutOff, now_ms));
            self.index(&host);
        }
        changes
    }

    fn of_start(&mut self, host: &HostId, incarnation: u64) -> Option<&mut Member> {
        self.hosts.get_mut(host).filter(|member| member.incarnation == incarnation)
    }

    fn settle(&mut self, host: HostId, state: HostState, now_ms: u64) -> Vec<Change> {
        let Some(member) = self.hosts.get_mut(&host) else { return Vec::new() };
        (member.state, member.since_ms, member.vanished_ms) = (state, now_ms, None);
        vec![Change { host, role: member.role, state }]
    }

    fn up(&mut self, host: HostId, role: Role, incarnation: u64, now_ms: u64) -> Vec<Change> {
        let fresh = Member {
            role,
            incarnation,
            state: HostState::Alive,
            since_ms: now_ms,
            came_ms: now_ms,
            vanished_ms: None,
            leaving: false,
            ended_ms: None,
        };
        let change = |host| vec![Change { host, role, state: HostState::Alive }];
        let Some(member) = self.hosts.get_mut(&host) else {
            self.hosts.insert(host.clone(), fresh);
            return change(host);
        };
        if incarnation < member.incarnation {
            return Vec::new(); // Late news of an earlier start.
        }
        let was_alive = member.state == HostState::Alive && incarnation == member.incarnation;
        let since_ms = if was_alive { member.since_ms } else { now_ms };
        let leaving = member.leaving && was_alive;
        *member = Member { since_ms, leaving, ..fresh };
        if was_alive { Vec::new() } else { change(host) }
    }

    /// Decides what can be decided at `now_ms`.
    pub fn decide(&mut self, now_ms: u64) -> Vec<Change> {
        let due = self.due.iter().take_while(|(at_ms, _)| *at_ms <= now_ms);
        let verdict = |(_, host): &(u64, HostId)| Some((host.clone(), (*self.open.get(host)?)?));
        let verdicts: Vec<(HostId, Verdict)> = due.filter_map(verdict).collect();
        let mut changes = Vec::new();
        let mut lost: BTreeSet<DcName> = BTreeSet::new();
        for (host, (state, _)) in verdicts {
            changes.extend(self.settle(host.clone(), state, now_ms));
            self.index(&host);
            if state == HostState::CutOff {
                lost.insert(host.dc);
            }
        }
        for dc in lost {
            changes.extend(self.doubt(&dc, now_ms));
        }
        if now_ms.saturating_sub(self.swept_ms) < SWEEP_MS {
            return changes;
        }
        self.swept_ms = now_ms;
        let is_forgotten = |member: &Member| {
            member.state != HostState::Alive && member.since_ms.saturating_add(FORGET_MS) <= now_ms
        };
        let hosts = self.hosts.iter().filter(|(_, member)| is_forgotten(member));
        for host in hosts.map(|(host, _)| host.clone()).collect::<Vec<_>>() {
            self.hosts.remove(&host);
            self.index(&host);
        }
        changes
    }

    /// When [`Members::decide`] should be called next, if nothing happens before.
    pub fn next_ms(&self) -> Option<u64> {
        self.due.first().map(|(at_ms, _)| *at_ms)
    }

    /// Of a host whose token vanished.
    fn vanished(&self, host: &HostId, member: &Member, vanished_ms: u64) -> Verdict {
        if member.is_ended() {
            return (HostState::Dead, vanished_ms + SETTLE_MS);
        }
        if self.gateways(&host.dc).next().is_none() {
            return (HostState::CutOff, vanished_ms + GRACE_MS);
        }
        // Long ago and long after are other causes; what is near may be the same.
        let near = |at_ms: u64| at_ms.abs_diff(vanished_ms) < SILENT_GRACE_MS;
        let gone = |m: &&Member| match m.vanished_ms {
            Some(at_ms) => near(at_ms),
            None if m.state == HostState::Alive => near(m.since_ms), // It is back just now.
            None => m.state == HostState::Dead && near(m.since_ms),
        };
        let others = self.gateway_members(&host.dc).filter(|(id, _)| *id != host);
        let wait_ms = others
            .map(|(_, gateway)| gateway)
            .filter(gone)
            .map(|gateway| if gateway.is_ended() { GRACE_MS } else { SILENT_GRACE_MS })
            .max();
        let ours_ms = self.stood_still_ms.filter(|at_ms| near(*at_ms)).map(|_| SILENT_GRACE_MS);
        (HostState::Dead, vanished_ms + wait_ms.max(ours_ms).unwrap_or(GRACE_MS))
    }

    /// Of a host that was cut off and whose data centre can be reached again: it has time to show
    /// itself, and is dead then.
    fn returned(&self, host: &HostId) -> Option<Verdict> {
        let back =
            self.gateways(&host.dc).filter_map(|id| Some(self.hosts.get(id)?.came_ms)).min()?;
        Some((HostState::Dead, back + SILENT_GRACE_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostId {
        name.parse().expect("a host")
    }

    fn up(name: &str) -> Seen {
        let role = if name.contains("gw") { Role::Gateway } else { Role::Member };
        Seen::Up { host: host(name), role, incarnation: 1 }
    }

    fn down(name: &str) -> Seen {
        Seen::Down { host: host(name), incarnation: 1 }
    }

    fn ended(name: &str) -> Seen {
        Seen::Ended { host: host(name), incarnation: 1 }
    }

    /// Two data centres: tokyo with two gateways, osaka with one.
    fn cluster() -> Members {
        let mut members = Members::default();
        for name in ["tokyo/gw-1", "tokyo/gw-2", "tokyo/a", "tokyo/b", "osaka/gw-1", "osaka/a"] {
            members.see(up(name), 0);
        }
        members
    }

    fn state(members: &Members, name: &str) -> HostState {
        members.find(&host(name)).expect("a known host").state
    }

    /// All changes up to `end_ms`, as a shell that waits for `next_ms` sees them.
    fn run(members: &mut Members, end_ms: u64) -> Vec<(u64, String, HostState)> {
        let mut seen = Vec::new();
        while let Some(at_ms) = members.next_ms().filter(|at_ms| *at_ms <= end_ms) {
            let changes = members.decide(at_ms);
            assert!(!changes.is_empty(), "it was called for nothing at {at_ms}");
            seen.extend(changes.into_iter().map(|c| (at_ms, c.host.to_string(), c.state)));
        }
        seen
    }

    #[test]
    fn a_token_that_vanishes_with_an_obituary_is_a_death_at_once() {
        let dead = |at_ms: u64| [(at_ms, "tokyo/a".to_owned(), HostState::Dead)];
        for order in [[down("tokyo/a"), ended("tokyo/a")], [ended("tokyo/a"), down("tokyo/a")]] {
            let mut members = cluster();
            for (late, seen) in order.into_iter().enumerate() {
                members.see(seen, 1_000 + late as u64);
            }
            assert_eq!(state(&members, "tokyo/a"), HostState::Alive, "it may be an old connection");
            let seen = run(&mut members, 5_000);
            assert!(seen == dead(1_000 + SETTLE_MS) || seen == dead(1_001 + SETTLE_MS), "{seen:?}");
        }
        // Without one, and with one of long ago.
        for seen in [vec![], vec![ended("tokyo/a")]] {
            let mut members = cluster();
            for seen in seen {
                members.see(seen, 1_000);
            }
            members.see(down("tokyo/a"), 9_000);
            assert_eq!(run(&mut members, 20_000), dead(9_000 + GRACE_MS));
        }
    }

    #[test]
    fn who_was_frozen_finds_nobody_dead() {
        let mut members = cluster();
        for name in ["tokyo/a", "tokyo/b", "osaka/gw-1", "osaka/a"] {
            members.see(down(name), 5_000);
        }
        assert_eq!(run(&mut members, 5_100), []);
        for name in ["tokyo/a", "osaka/gw-1", "osaka/a", "tokyo/b"] {
            members.see(up(name), 5_110);
        }
        assert_eq!(run(&mut members, 9_000), []);
    }

    #[test]
    fn a_gateways_death_kills_nobody_else() {
        let ended = Seen::Ended { host: host("tokyo/gw-1"), incarnation: 1 };
        let orders = [["tokyo/gw-1", "tokyo/a", "tokyo/b"], ["tokyo/a", "tokyo/b", "tokyo/gw-1"]];
        for (order, obituary) in orders.iter().flat_map(|order| [(order, true), (order, false)]) {
            let mut members = cluster();
            for (late, name) in order.iter().enumerate() {
                members.see(down(name), 1_000 + late as u64);
            }
            if obituary {
                members.see(ended.clone(), 1_004);
            }
            let early_ms = if obituary { 1_100 } else { 1_000 + GRACE_MS + 10 };
            let early = run(&mut members, early_ms);
            assert_eq!(early.len(), 1, "{early:?}");
            assert_eq!(state(&members, "tokyo/gw-1"), HostState::Dead);
            // One returns through the other gateway; the other died in the same moment.
            members.see(up("tokyo/a"), early_ms + 15);
            let late = run(&mut members, 5_000);
            assert_eq!(late.iter().map(|c| c.1.as_str()).collect::<Vec<_>>(), ["tokyo/b"]);
            let grace_ms = if obituary { GRACE_MS } else { SILENT_GRACE_MS };
            assert!(late[0].0 <= 1_002 + grace_ms && late[0].0 >= 1_000 + grace_ms, "{late:?}");
            assert_eq!(state(&members, "tokyo/a"), HostState::Alive);
        }
    }

    #[test]
    fn who_hung_on_another_data_centre_is_cut_off_with_its_own() {
        let mut members = cluster();
        members.see(down("osaka/a"), 1_000);
        let mut changes = run(&mut members, 1_349);
        members.see(down("osaka/gw-1"), 1_350);
        changes.extend(run(&mut members, 5_000));
        let states: Vec<_> =
            changes.iter().map(|(_, name, state)| (name.as_str(), *state)).collect();
        let [a, gateway] = ["osaka/a", "osaka/gw-1"];
        let want = [(a, HostState::Dead), (gateway, HostState::CutOff), (a, HostState::CutOff)];
        assert_eq!(states, want);
        // Whom somebody saw killed stays dead.
        let mut members = cluster();
        members.see(ended("osaka/a"), 1_000);
        members.see(down("osaka/a"), 1_001);
        members.see(down("osaka/gw-1"), 1_350);
        run(&mut members, 5_000);
        assert_eq!(state(&members, "osaka/a"), HostState::Dead);
    }

    #[test]
    fn who_stood_still_himself_gives_others_time() {
        for stood_still in [false, true] {
            let mut members = cluster();
            if stood_still {
                members.stood_still(990);
            }
            members.see(down("tokyo/a"), 1_000);
            let grace_ms = if stood_still { SILENT_GRACE_MS } else { GRACE_MS };
            let want = [(1_000 + grace_ms, "tokyo/a".to_owned(), HostState::Dead)];
            assert_eq!(run(&mut members, 5_000), want);
        }
    }

    #[test]
    fn without_a_gateway_hosts_are_cut_off_and_not_dead() {
        let mut members = cluster();
        members.see(down("osaka/gw-1"), 1_000);
        members.see(down("osaka/a"), 1_000);
        let changes = run(&mut members, 5_000);
        let cut_off = |(at, _, state): &(u64, String, HostState)| {
            (*at, *state) == (1_000 + GRACE_MS, HostState::CutOff)
        };
        assert!(changes.iter().all(cut_off), "{changes:?}");
        assert_eq!(changes.len(), 2);
        // The link heals; one host died behind it.
        assert_eq!(members.see(up("osaka/gw-1"), 9_000).len(), 1);
        assert!(members.decide(9_100).is_empty(), "its hosts get time to show");
        let dead = run(&mut members, 20_000);
        let at_ms = 9_000 + SILENT_GRACE_MS;
        assert_eq!(dead, [(at_ms, "osaka/a".to_owned(), HostState::Dead)]);
        assert_eq!(members.see(up("osaka/a"), 20_900).len(), 1);
    }

    #[test]
    fn an_only_gateway_that_was_killed_is_dead_and_its_hosts_are_cut_off() {
        let ended = Seen::Ended { host: host("osaka/gw-1"), incarnation: 1 };
        for late_ms in [5, 2_000] {
            let mut members = cluster();
            members.see(down("osaka/gw-1"), 1_000);
            members.see(down("osaka/a"), 1_000);
            run(&mut members, 1_000 + late_ms);
            members.see(ended.clone(), 1_000 + late_ms);
            run(&mut members, 5_000);
            assert_eq!(state(&members, "osaka/gw-1"), HostState::Dead);
            assert_eq!(state(&members, "osaka/a"), HostState::CutOff);
        }
        // Said of a gateway that is there, it means an old connection.
        let mut members = cluster();
        members.see(ended, 1_000);
        assert_eq!((state(&members, "osaka/gw-1"), members.next_ms()), (HostState::Alive, None));
    }

    #[test]
    fn news_of_an_earlier_start_changes_nothing() {
        let mut members = cluster();
        let again = Seen::Up { host: host("tokyo/a"), role: Role::Member, incarnation: 2 };
        assert_eq!(members.see(again, 500).len(), 1, "a restart is news");
        members.see(down("tokyo/a"), 600);
        members.see(up("tokyo/a"), 601);
        assert_eq!(run(&mut members, 5_000), []);
        assert_eq!(members.find(&host("tokyo/a")).map(|m| m.incarnation), Some(2));
    }

    #[test]
    fn a_token_that_is_not_as_it_was_told_is_a_contradiction() {
        let (a, member) = (host("tokyo/a"), Role::Member);
        let again = |incarnation| Seen::Up { host: host("tokyo/a"), role: member, incarnation };
        let mut members = cluster();
        assert_eq!(members.contradiction(&a, Some((member, 1))), None);
        assert_eq!(
            members.contradiction(&a, Some((member, 2))),
            Some(again(2)),
            "it was restarted"
        );
        // It went at one gateway and came at another, and the first was told last.
        members.see(down("tokyo/a"), 1_000);
        assert_eq!(members.contradiction(&a, None), None);
        assert_eq!(members.contradiction(&a, Some((member, 1))), Some(again(1)));
        members.see(again(1), 1_160);
        assert_eq!(run(&mut members, 5_000), [], "before the verdict");
        members.see(again(2), 6_000);
        assert_eq!(members.contradiction(&a, Some((member, 1))), None, "an earlier start");
        let new = host("tokyo/new");
        assert_eq!(members.contradiction(&new, None), None);
        let up = Seen::Up { host: new.clone(), role: member, incarnation: 1 };
        assert_eq!(members.contradiction(&new, Some((member, 1))), Some(up));
    }

    #[test]
    fn who_says_good_bye_has_left() {
        let mut members = cluster();
        members.see(Seen::Bye { host: host("tokyo/a"), incarnation: 1 }, 1_000);
        let changes = members.see(down("tokyo/a"), 1_001);
        let left = Change { host: host("tokyo/a"), role: Role::Member, state: HostState::Left };
        assert_eq!(changes, [left]);
        assert!(members.decide(1_001 + FORGET_MS).is_empty());
        assert!(members.find(&host("tokyo/a")).is_none(), "and is forgotten in time");
    }
}
