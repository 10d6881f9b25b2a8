//! Who is there: the rules of membership, as plain values.
//!
//! What comes in are liveness tokens that appear and vanish; what goes out is the state of each host.
//! A token that vanishes alone is a death. One that vanishes together with a gateway of its data
//! centre gets a grace to come back through another, for a gateway's death kills nobody. If no gateway
//! of the data centre is left, nothing can be known of its hosts: they are cut off, not dead.
//!
//! Times are milliseconds of a monotonic clock, passed in.

use std::collections::BTreeMap;

use kumo_abi::cluster::{HostState, Role};
use kumo_abi::{DcName, HostId};

/// So long it may take until all tokens that vanish by one cause are seen to have vanished.
pub const SETTLE_MS: u64 = 25;

/// So long a token that vanished with its gateway may take to return through another. They take about
/// 15 ms; a busy host takes longer.
pub const GRACE_MS: u64 = 300;

/// Hosts that are gone for longer than this are forgotten.
pub const FORGET_MS: u64 = 24 * 3600 * 1000;

/// One host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it is.
    pub role: Role,
    /// A number that grows with each start of its node.
    pub incarnation: u64,
    /// What is known of it.
    pub state: HostState,
    /// Since when, milliseconds of the clock that is passed in.
    pub since_ms: u64,
    /// When its token vanished, while its fate is open.
    vanished_ms: Option<u64>,
    /// It said good-bye, and its token will vanish.
    leaving: bool,
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
}

/// A host's state has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which host.
    pub host: HostId,
    /// What is known now.
    pub state: HostState,
}

/// All hosts of a cluster, as one node knows them.
#[derive(Clone, Debug, Default)]
pub struct Members {
    hosts: BTreeMap<HostId, Member>,
}

impl Members {
    /// All hosts, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&HostId, &Member)> {
        self.hosts.iter()
    }

    /// One host.
    pub fn find(&self, host: &HostId) -> Option<&Member> {
        self.hosts.get(host)
    }

    /// The gateways of a data centre that are alive.
    pub fn gateways<'a>(&'a self, dc: &'a DcName) -> impl Iterator<Item = &'a HostId> {
        let alive = |member: &Member| {
            member.role == Role::Gateway
                && member.state == HostState::Alive
                && member.vanished_ms.is_none()
        };
        self.hosts.iter().filter(move |(id, m)| id.dc == *dc && alive(m)).map(|(id, _)| id)
    }

    /// Takes in what happened to a token at `now_ms`.
    pub fn see(&mut self, seen: Seen, now_ms: u64) -> Vec<Change> {
        match seen {
            Seen::Up { host, role, incarnation } => self.up(host, role, incarnation, now_ms),
            Seen::Down { host, incarnation } => {
                let member = self.hosts.get_mut(&host).filter(|m| m.incarnation == incarnation);
                let Some(member) = member.filter(|m| m.state == HostState::Alive) else {
                    return Vec::new(); // Of an earlier start, or known to be gone.
                };
                if member.leaving {
                    (member.state, member.since_ms) = (HostState::Left, now_ms);
                    return vec![Change { host, state: HostState::Left }];
                }
                member.vanished_ms.get_or_insert(now_ms);
                Vec::new()
            }
            Seen::Bye { host, incarnation } => {
                if let Some(member) = self.hosts.get_mut(&host)
                    && member.incarnation == incarnation
                {
                    member.leaving = true;
                }
                Vec::new()
            }
        }
    }

    fn up(&mut self, host: HostId, role: Role, incarnation: u64, now_ms: u64) -> Vec<Change> {
        let fresh = Member {
            role,
            incarnation,
            state: HostState::Alive,
            since_ms: now_ms,
            vanished_ms: None,
            leaving: false,
        };
        let Some(member) = self.hosts.get_mut(&host) else {
            self.hosts.insert(host.clone(), fresh);
            return vec![Change { host, state: HostState::Alive }];
        };
        if incarnation < member.incarnation {
            return Vec::new(); // Late news of an earlier start.
        }
        let was_alive = member.state == HostState::Alive && incarnation == member.incarnation;
        let since_ms = if was_alive { member.since_ms } else { now_ms };
        let leaving = member.leaving && was_alive;
        *member = Member { since_ms, leaving, ..fresh };
        if was_alive { Vec::new() } else { vec![Change { host, state: HostState::Alive }] }
    }

    /// Decides what can be decided at `now_ms`.
    pub fn decide(&mut self, now_ms: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        for host in self.open() {
            let (verdict, at_ms) = self.verdict(&host);
            if at_ms > now_ms {
                continue;
            }
            if let Some(member) = self.hosts.get_mut(&host) {
                (member.state, member.since_ms) = (verdict, now_ms);
                member.vanished_ms = None;
                changes.push(Change { host, state: verdict });
            }
        }
        changes.extend(self.gateways_back(now_ms));
        self.hosts.retain(|_, member| {
            member.state == HostState::Alive || member.since_ms.saturating_add(FORGET_MS) > now_ms
        });
        changes
    }

    /// When [`Members::decide`] should be called next, if nothing happens before.
    pub fn next_ms(&self) -> Option<u64> {
        self.open().iter().map(|host| self.verdict(host).1).min()
    }

    fn open(&self) -> Vec<HostId> {
        let open = self.hosts.iter().filter(|(_, member)| member.vanished_ms.is_some());
        open.map(|(host, _)| host.clone()).collect()
    }

    /// What a host whose token vanished is, and from when that can be said.
    fn verdict(&self, host: &HostId) -> (HostState, u64) {
        let vanished_ms = self.hosts.get(host).and_then(|m| m.vanished_ms).unwrap_or(0);
        let gateways =
            || self.hosts.iter().filter(|(id, m)| id.dc == host.dc && m.role == Role::Gateway);
        let one_left =
            gateways().any(|(_, m)| m.state == HostState::Alive && m.vanished_ms.is_none());
        if !one_left {
            return (HostState::CutOff, vanished_ms + GRACE_MS);
        }
        let near = |at_ms: u64| at_ms.abs_diff(vanished_ms) <= GRACE_MS;
        let with_gateway = gateways().filter(|(id, _)| *id != host).any(|(_, m)| {
            m.vanished_ms.is_some_and(near) || (m.state == HostState::Dead && near(m.since_ms))
        });
        let wait_ms = if with_gateway { GRACE_MS } else { SETTLE_MS };
        (HostState::Dead, vanished_ms + wait_ms)
    }

    /// Hosts of a data centre that can be reached again and that did not come back with it: they were
    /// cut off, and now they are dead.
    fn gateways_back(&mut self, now_ms: u64) -> Vec<Change> {
        let back = |member: &Member| {
            member.role == Role::Gateway
                && member.state == HostState::Alive
                && member.vanished_ms.is_none()
                && member.since_ms.saturating_add(GRACE_MS) <= now_ms
        };
        let reachable: Vec<DcName> =
            self.hosts.iter().filter(|(_, m)| back(m)).map(|(id, _)| id.dc.clone()).collect();
        let mut changes = Vec::new();
        for (host, member) in &mut self.hosts {
            if member.state == HostState::CutOff && reachable.contains(&host.dc) {
                (member.state, member.since_ms) = (HostState::Dead, now_ms);
                changes.push(Change { host: host.clone(), state: HostState::Dead });
            }
        }
        changes
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
    fn a_token_that_vanishes_alone_is_a_death_at_once() {
        let mut members = cluster();
        members.see(down("tokyo/a"), 1_000);
        assert_eq!(state(&members, "tokyo/a"), HostState::Alive, "it may not be alone");
        let want = [(1_000 + SETTLE_MS, "tokyo/a".to_owned(), HostState::Dead)];
        assert_eq!(run(&mut members, 5_000), want);
    }

    #[test]
    fn a_gateways_death_kills_nobody_else() {
        for order in [["tokyo/gw-1", "tokyo/a", "tokyo/b"], ["tokyo/a", "tokyo/gw-1", "tokyo/b"]] {
            let mut members = cluster();
            for (late, name) in order.iter().enumerate() {
                members.see(down(name), 1_000 + late as u64);
            }
            let early = run(&mut members, 1_100);
            assert_eq!(early.len(), 1, "{early:?}");
            assert_eq!(state(&members, "tokyo/gw-1"), HostState::Dead);
            // One returns through the other gateway; the other died in the same moment.
            members.see(up("tokyo/a"), 1_015);
            let late = run(&mut members, 1_500);
            assert_eq!(late.iter().map(|c| c.1.as_str()).collect::<Vec<_>>(), ["tokyo/b"]);
            assert_eq!(state(&members, "tokyo/a"), HostState::Alive);
        }
    }

    #[test]
    fn without_a_gateway_hosts_are_cut_off_and_not_dead() {
        let mut members = cluster();
        members.see(down("osaka/gw-1"), 1_000);
        members.see(down("osaka/a"), 1_000);
        let changes = run(&mut members, 5_000);
        assert!(
            changes.iter().all(|(at, _, s)| (*at, *s) == (1_000 + GRACE_MS, HostState::CutOff))
        );
        assert_eq!(changes.len(), 2);
        // The link heals; one host died behind it.
        assert_eq!(members.see(up("osaka/gw-1"), 9_000).len(), 1);
        assert!(members.decide(9_100).is_empty(), "its hosts get time to show");
        let dead = members.decide(9_000 + GRACE_MS);
        assert_eq!(dead, [Change { host: host("osaka/a"), state: HostState::Dead }]);
        assert_eq!(members.see(up("osaka/a"), 9_900).len(), 1);
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
    fn who_says_good_bye_has_left() {
        let mut members = cluster();
        members.see(Seen::Bye { host: host("tokyo/a"), incarnation: 1 }, 1_000);
        let changes = members.see(down("tokyo/a"), 1_001);
        assert_eq!(changes, [Change { host: host("tokyo/a"), state: HostState::Left }]);
        assert!(members.decide(1_001 + FORGET_MS).is_empty());
        assert!(members.find(&host("tokyo/a")).is_none(), "and is forgotten in time");
    }
}
