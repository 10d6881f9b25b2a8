//! The rules of a question to many: who is asked how, and what is said of those who do not answer.
//!
//! Every host that was asked gets exactly one outcome. An answer that does not come is never success:
//! it is told apart whether the host is dead, cut off, refuses, or lives and is silent.

use std::collections::{BTreeMap, BTreeSet};

use kumo_abi::cluster::{HostOutcome, HostState, Outcome};
use kumo_abi::{DcName, HostId};

/// What the asking node knows of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its token is there.
    Present,
    /// It is in this state for so many milliseconds.
    Gone(HostState, u64),
    /// No such host.
    Unknown,
}

/// Who is asked how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Whose outcome is known without asking.
    pub(crate) settled: Vec<HostOutcome>,
    /// Whether this node is asked itself.
    pub(crate) own: bool,
    /// Hosts that are asked directly, by data centre.
    pub(crate) direct: BTreeMap<DcName, Vec<HostId>>,
    /// Hosts that a gateway of their data centre asks and whose answers it merges.
    pub(crate) relayed: Vec<Relayed>,
}

/// Hosts behind a gateway that asks them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relayed {
    /// Which gateway.
    pub(crate) gateway: HostId,
    /// Which hosts; it may be one of them.
    pub(crate) hosts: Vec<HostId>,
}

/// Decides who is asked how. `gateway` chooses a gateway that answers may be merged by; there is none
/// when this node is one of that data centre, or when merging is not wanted.
pub(crate) fn plan(
    hosts: &[HostId],
    me: &HostId,
    standing: impl Fn(&HostId) -> Standing,
    gateway: impl Fn(&DcName) -> Option<HostId>,
) -> Plan {
    let mut plan = Plan::default();
    let hosts: BTreeSet<&HostId> = hosts.iter().collect();
    for host in hosts {
        if host == me {
            plan.own = true;
            continue;
        }
        match standing(host) {
            Standing::Present => {
                plan.direct.entry(host.dc.clone()).or_default().push(host.clone());
            }
            Standing::Gone(state, for_ms) => {
                plan.settled.push(HostOutcome { id: host.clone(), outcome: gone(state, for_ms) });
            }
            Standing::Unknown => plan.settled.push(HostOutcome {
                id: host.clone(),
                outcome: Outcome::Refused {
                    why: "there is no such host in the cluster".to_owned(),
                },
            }),
        }
    }
    // One host needs no merging.
    let many: Vec<DcName> =
        plan.direct.iter().filter(|(_, hosts)| hosts.len() > 1).map(|(dc, _)| dc.clone()).collect();
    for dc in many {
        if let Some(gateway) = gateway(&dc) {
            let hosts = plan.direct.remove(&dc).unwrap_or_default();
            plan.relayed.push(Relayed { gateway, hosts });
        }
    }
    plan
}

/// What is said of a host in `state` that was not asked, or that got into it before it answered.
pub(crate) fn gone(state: HostState, for_ms: u64) -> Outcome {
    match state {
        HostState::CutOff => Outcome::CutOff { for_ms },
        HostState::Dead => Outcome::Dead { for_ms },
        HostState::Left => Outcome::Refused { why: "it has left the cluster".to_owned() },
        // Nobody calls it for those; they would be silent.
        HostState::Alive => Outcome::Silent { after_ms: for_ms },
    }
}

/// Hosts whose outcome is open.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    hosts: BTreeSet<HostId>,
}

impl Waiting {
    /// Waits for these.
    pub(crate) fn new(hosts: impl IntoIterator<Item = HostId>) -> Waiting {
        Waiting { hosts: hosts.into_iter().collect() }
    }

    /// Whether all have an outcome.
    pub(crate) fn is_over(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Takes the outcome of `host`; whether it is its first. Only that counts.
    pub(crate) fn settle(&mut self, host: &HostId) -> bool {
        self.hosts.remove(host)
    }

    /// Whether all of `hosts` are open, and none is named twice.
    pub(crate) fn may_settle<'h>(&self, hosts: impl Iterator<Item = &'h HostId>) -> bool {
        let mut named = BTreeSet::new();
        hosts.into_iter().all(|host| self.hosts.contains(host) && named.insert(host))
    }

    /// Those who are open.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &HostId> {
        self.hosts.iter()
    }

    /// Gives up all who are open, after `after_ms`.
    pub(crate) fn silent(&mut self, after_ms: u64) -> Vec<HostOutcome> {
        let hosts = std::mem::take(&mut self.hosts).into_iter();
        hosts.map(|id| HostOutcome { id, outcome: Outcome::Silent { after_ms } }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostId {
        name.parse().expect("a host")
    }

    fn standing(id: &HostId) -> Standing {
        match id.host.as_str() {
            "dead" => Standing::Gone(HostState::Dead, 5),
            "far" => Standing::Gone(HostState::CutOff, 7),
            "left" => Standing::Gone(HostState::Left, 9),
            "x" => Standing::Unknown,
            _ => Standing::Present,
        }
    }

    #[test]
    fn everyone_is_in_one_place() {
        let names = [
            "tokyo/a",
            "tokyo/b",
            "tokyo/me",
            "tokyo/dead",
            "osaka/a",
            "osaka/far",
            "nara/a",
            "nara/b",
            "nara/x",
            "nara/left",
            "nara/a",
        ];
        let hosts = names.map(host);
        let gateway = |dc: &DcName| (dc.as_str() != "tokyo").then(|| host(&format!("{dc}/gw")));
        let plan = plan(&hosts, &host("tokyo/me"), standing, gateway);
        assert!(plan.own);
        let direct: Vec<String> = plan.direct.values().flatten().map(HostId::to_string).collect();
        assert_eq!(direct, ["osaka/a", "tokyo/a", "tokyo/b"], "one host needs no gateway");
        let nara =
            Relayed { gateway: host("nara/gw"), hosts: vec![host("nara/a"), host("nara/b")] };
        assert_eq!(plan.relayed, [nara]);
        let settled: Vec<String> = plan.settled.iter().map(|one| one.id.to_string()).collect();
        assert_eq!(settled, ["nara/left", "nara/x", "osaka/far", "tokyo/dead"]);
        assert_eq!(plan.settled[2].outcome, Outcome::CutOff { for_ms: 7 });
        assert_eq!(plan.settled[3].outcome, Outcome::Dead { for_ms: 5 });
    }

    #[test]
    fn only_the_first_outcome_counts() {
        let mut waiting = Waiting::new([host("tokyo/a"), host("tokyo/b")]);
        let (a, b, c) = (host("tokyo/a"), host("tokyo/b"), host("tokyo/c"));
        assert!(waiting.may_settle([&a, &b].into_iter()));
        assert!(!waiting.may_settle([&a, &c].into_iter()), "nobody asked it");
        assert!(!waiting.may_settle([&a, &a].into_iter()), "twice");
        assert!(waiting.settle(&host("tokyo/a")));
        assert!(!waiting.settle(&host("tokyo/a")));
        assert!(!waiting.settle(&host("tokyo/c")), "nobody asked it");
        let silent = waiting.silent(20);
        let outcome = Outcome::Silent { after_ms: 20 };
        assert_eq!(silent, [HostOutcome { id: host("tokyo/b"), outcome }]);
        assert!(waiting.is_over() && waiting.silent(30).is_empty());
    }
}
