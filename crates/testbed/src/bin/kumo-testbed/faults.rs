//! What can happen to hosts and data centres.

use std::fmt;
use std::str::FromStr;

use clap::Subcommand;
use kumo_abi::{DcName, HostId, NameError};
use kumo_testbed::cluster::{Cluster, ClusterError};
use kumo_testbed::net::Way;
use serde::{Deserialize, Serialize};

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Subcommand)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Fault {
    /// Kill the node of a host, as kill -9 does
    Kill {
        /// As DC/HOST
        host: HostId,
    },
    /// Start the node of a host again after it was killed
    Start {
        /// As DC/HOST
        host: HostId,
    },
    /// Freeze the node of a host, as SIGSTOP does
    Stop {
        /// As DC/HOST
        host: HostId,
    },
    /// Let a frozen node go on, as SIGCONT does
    Cont {
        /// As DC/HOST
        host: HostId,
    },
    /// Pull the plug of a host, or of a data centre
    Cut {
        /// As DC/HOST, or DC
        target: Target,
    },
    /// Lose all packets without a sign, as a broken router does
    BlackHole {
        /// As DC/HOST, or DC
        target: Target,
        /// Only those to it (in) or from it (out)
        #[arg(long, value_name = "WAY", default_value = "both")]
        way: Ways,
    },
    /// Lose a share of the packets
    Lose {
        /// As DC/HOST, or DC
        target: Target,
        /// In percent
        #[arg(value_parser = clap::value_parser!(u8).range(1..=100))]
        percent: u8,
        /// Only of those to it (in) or from it (out)
        #[arg(long, value_name = "WAY", default_value = "both")]
        way: Ways,
    },
    /// Make cables whole: of a host, of a data centre, or all
    Heal {
        /// As DC/HOST, or DC; none for all
        target: Option<Target>,
    },
}

/// What a cable belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Target {
    /// A host.
    Host(HostId),
    /// A whole data centre.
    Dc(DcName),
}

impl FromStr for Target {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Target, NameError> {
        if text.contains('/') {
            Ok(Target::Host(text.parse()?))
        } else {
            Ok(Target::Dc(text.parse()?))
        }
    }
}

impl TryFrom<String> for Target {
    type Error = NameError;
    fn try_from(text: String) -> Result<Target, NameError> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> String {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Host(id) => id.fmt(f),
            Target::Dc(dc) => dc.fmt(f),
        }
    }
}

/// Which ways of a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ways {
    /// To it
    In,
    /// From it
    Out,
    /// Both
    Both,
}

impl Ways {
    fn all(self) -> &'static [Way] {
        match self {
            Ways::In => &[Way::In],
            Ways::Out => &[Way::Out],
            Ways::Both => &[Way::In, Way::Out],
        }
    }

    fn words(self) -> &'static str {
        match self {
            Ways::In => "to it",
            Ways::Out => "from it",
            Ways::Both => "both ways",
        }
    }
}

/// What a cable suffers from after a fault; `None` when that is about no cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CableChange {
    /// This cable, in words.
    Broken(Target, String),
    /// This is whole; all are when it is `None`.
    Whole(Option<Target>),
}

impl Fault {
    /// Lets it happen.
    pub(crate) fn happen(&self, cluster: &mut Cluster) -> Result<(), ClusterError> {
        match self {
            Fault::Kill { host } => cluster.kill(host),
            Fault::Start { host } => cluster.up(host),
            Fault::Stop { host } => cluster.freeze(host),
            Fault::Cont { host } => cluster.thaw(host),
            Fault::Cut { target: Target::Host(id) } => cluster.cut(id),
            Fault::Cut { target: Target::Dc(dc) } => cluster.cut_dc(dc),
            Fault::BlackHole { target, way } => lose(cluster, target, *way, 100),
            Fault::Lose { target, percent, way } => lose(cluster, target, *way, *percent),
            Fault::Heal { target: Some(Target::Host(id)) } => cluster.heal(id),
            Fault::Heal { target: Some(Target::Dc(dc)) } => cluster.heal_dc(dc),
            Fault::Heal { target: None } => cluster.heal_all(),
        }
    }

    /// What became of cables.
    pub(crate) fn cable(&self) -> Option<CableChange> {
        let broken = |target: &Target, how: String| Some(CableChange::Broken(target.clone(), how));
        match self {
            Fault::Cut { target } => broken(target, "cut".to_owned()),
            Fault::BlackHole { target, way } => {
                broken(target, format!("black hole, {}", way.words()))
            }
            Fault::Lose { target, percent, way } => {
                broken(target, format!("loses {percent} %, {}", way.words()))
            }
            Fault::Heal { target } => Some(CableChange::Whole(target.clone())),
            Fault::Kill { .. } | Fault::Start { .. } | Fault::Stop { .. } | Fault::Cont { .. } => {
                None
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill { host } => write!(f, "the node of {host} is killed"),
            Fault::Start { host } => write!(f, "the node of {host} is started"),
            Fault::Stop { host } => write!(f, "the node of {host} is frozen"),
            Fault::Cont { host } => write!(f, "the node of {host} goes on"),
            Fault::Cut { target } => write!(f, "{target} is cut off"),
            Fault::BlackHole { target, way } => {
                write!(f, "packets of {target} vanish, {}", way.words())
            }
            Fault::Lose { target, percent, way } => {
                write!(f, "{target} loses {percent} % of its packets, {}", way.words())
            }
            Fault::Heal { target: Some(target) } => write!(f, "the cable of {target} is whole"),
            Fault::Heal { target: None } => f.write_str("all cables are whole"),
        }
    }
}

fn lose(cluster: &Cluster, target: &Target, ways: Ways, percent: u8) -> Result<(), ClusterError> {
    ways.all().iter().try_for_each(|way| match target {
        Target::Host(id) => cluster.lose(id, *way, percent),
        Target::Dc(dc) => cluster.lose_dc(dc, *way, percent),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_survives_the_socket() {
        let host: HostId = "tokyo/a".parse().expect("a host");
        let target: Target = "osaka".parse().expect("a data centre");
        let faults = [
            Fault::Kill { host: host.clone() },
            Fault::Cut { target: Target::Host(host) },
            Fault::BlackHole { target: target.clone(), way: Ways::In },
            Fault::Lose { target: target.clone(), percent: 7, way: Ways::Both },
            Fault::Heal { target: Some(target) },
            Fault::Heal { target: None },
        ];
        for fault in faults {
            let json = serde_json::to_string(&fault).expect("JSON");
            assert_eq!(serde_json::from_str::<Fault>(&json).expect("a fault"), fault, "{json}");
        }
    }

    #[test]
    fn targets() {
        assert!(matches!("tokyo/a".parse(), Ok(Target::Host(_))));
        assert!(matches!("tokyo".parse(), Ok(Target::Dc(_))));
        assert_eq!("tokyo/".parse::<Target>(), Err(NameError::Empty));
        assert_eq!("../x".parse::<Target>(), Err(NameError::Edge));
    }
}
