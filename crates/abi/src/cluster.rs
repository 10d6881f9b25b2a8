//! A cluster as its nodes and clients speak of it: hosts, their cards, what became of a question.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::names::HostId;

/// What a host is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It listens for others, joins data centres, and holds the key of the cluster's authority.
    Gateway,
    /// It reaches the others through gateways of its data centre.
    Member,
}

impl Role {
    /// As it is written: `gateway` or `member`.
    pub fn name(self) -> &'static str {
        match self {
            Role::Gateway => "gateway",
            Role::Member => "member",
        }
    }
}

/// What is known of a host's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// Its token is there.
    Alive,
    /// Its token went while a gateway of its data centre could be reached: it died, froze or lost its
    /// network.
    Dead,
    /// No gateway of its data centre can be reached, so nothing can be known of it.
    CutOff,
    /// It said good-bye.
    Left,
}

impl HostState {
    /// As it is written: `alive`, `dead`, `cut-off` or `left`.
    pub fn name(self) -> &'static str {
        match self {
            HostState::Alive => "alive",
            HostState::Dead => "dead",
            HostState::CutOff => "cut-off",
            HostState::Left => "left",
        }
    }
}

/// What a host says about itself, seldom changed and known to all, also after its death.
///
/// A newer version may say more; who does not know it reads the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// What it is to the others.
    pub role: Role,
    /// The version of its node.
    pub version: String,
    /// Release of its kernel.
    pub kernel: String,
    /// Its machine architecture.
    pub architecture: String,
    /// CPUs online.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Where others reach it, as `address:port`; empty for members.
    pub addresses: Vec<String>,
    /// Where others reach it for calls; empty where they come through gateways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub call_addresses: Vec<String>,
    /// What its owner says about it: `rack=3`.
    pub labels: BTreeMap<String, String>,
}

/// A host as `/v2/hosts` lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Its name.
    #[serde(flatten)]
    pub id: HostId,
    /// What is known of its life.
    pub state: HostState,
    /// For how long that has been so, in milliseconds; as long as this node knows.
    pub state_ms: u64,
    /// Its present start: milliseconds since the Unix epoch, by its own clock. `None` when it has not
    /// been seen alive by this node.
    pub incarnation: Option<u64>,
    /// What it says about itself; `None` while that has not arrived.
    pub card: Option<Card>,
}

/// One TLS link of a node as `/v2/links` lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkReport {
    /// The host at the other end.
    pub peer: HostId,
    /// What that host is to the others.
    pub role: Role,
    /// Whether this node opened it.
    pub dialed: bool,
    /// Address of the other end.
    pub address: String,
    /// Round trip as the kernel's TCP measures it, in microseconds; 0 when it does not know yet.
    pub rtt_us: u32,
    /// Age in milliseconds.
    pub age_ms: u64,
    /// Bytes that came in, as TLS carried them.
    pub received_bytes: u64,
    /// Bytes that went out.
    pub sent_bytes: u64,
}

/// A gateway to which a node could not connect when it last tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreached {
    /// Which.
    #[serde(flatten)]
    pub id: HostId,
    /// What became of each of its addresses, in words.
    pub why: String,
}

/// What became of a question to one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// Its answer is in.
    Answered,
    /// It was known to be dead, or died meanwhile.
    Dead {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// Its data centre cannot be reached.
    CutOff {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// It lives, and did not answer in time. It may still do what it was asked to.
    Silent {
        /// How long it was waited for, in milliseconds.
        after_ms: u64,
    },
    /// It answered that it does not answer this.
    Refused {
        /// In its words.
        why: String,
    },
}

/// A host and what became of the question to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostOutcome {
    /// The host.
    #[serde(flatten)]
    pub id: HostId,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_of_a_newer_version_is_read() {
        let card = serde_json::json!({
            "role": "member", "version": "9.0.0", "kernel": "9.1.0", "architecture": "riscv64",
            "cpus": 2, "memory": 3, "addresses": [], "labels": {"rack": "3"},
            "gpus": [{"name": "of the future"}],
        });
        let card: Card = serde_json::from_value(card).expect("the rest is known");
        assert_eq!((card.role, card.cpus, card.labels["rack"].as_str()), (Role::Member, 2, "3"));
    }
}
