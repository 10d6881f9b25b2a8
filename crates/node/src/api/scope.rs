//! Which hosts are asked, and how long they are waited for.

use std::time::Duration;

use k2i::http::Refused;
use kumo_abi::cluster::{HostInfo, HostState};
use kumo_abi::hosts::{self, HOSTS};
use kumo_abi::limits::QUERY_TEXT_BYTES_MAX;
use kumo_abi::{DcName, Filter, HostId};

/// The parameters that say so.
pub(super) const PARAMETERS: &[&str] = &["dc", "where", "wait_ms"];

/// How long hosts are waited for unless said otherwise: a person at a terminal still waits. When most have
/// answered, the few others are given up before.
const WAIT_DEFAULT: Wait = Wait { most: Duration::from_secs(2), exact: false };

/// The shortest and longest wait, in milliseconds. Less than a round trip across the world makes no
/// sense, and neither does more than a client waits for a silent server.
const WAIT_MS: std::ops::RangeInclusive<u64> = 10..=60_000;

/// How long hosts are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    /// At most.
    pub(super) most: Duration,
    /// Whether each gets all of it, however many have answered.
    pub(super) exact: bool,
}

/// Whom a question is for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Chosen {
    /// They are asked.
    pub(super) hosts: Vec<HostId>,
    /// They may be meant: the condition is about what stands on their card, and that is not known.
    pub(super) undecided: Vec<HostId>,
}

/// Which hosts, and how long.
#[derive(Debug)]
pub(super) struct Scope {
    dcs: Option<Vec<DcName>>,
    condition: Option<Filter>,
    /// How long hosts are waited for.
    pub(super) wait: Wait,
}

impl Scope {
    /// Takes the parameters that are for us, and leaves the others.
    pub(super) fn take(pairs: &mut Vec<(String, String)>) -> Result<Scope, Refused> {
        let mut scope = Scope { dcs: None, condition: None, wait: WAIT_DEFAULT };
        let (ours, others): (Vec<_>, Vec<_>) =
            pairs.drain(..).partition(|(name, _)| PARAMETERS.contains(&name.as_str()));
        *pairs = others;
        for (name, value) in ours {
            match name.as_str() {
                "dc" => scope.dcs = Some(parse_dcs(&value)?),
                "where" => scope.condition = Some(parse_condition(&value)?),
                _ => scope.wait = parse_wait(&value)?,
            }
        }
        Ok(scope)
    }

    /// Those of `hosts` that are meant, also dead ones: who is asked for is answered for. Who said
    /// good-bye is no part of the cluster.
    pub(super) fn choose(&self, hosts: &[HostInfo]) -> Chosen {
        let is_there = |host: &&HostInfo| {
            host.state != HostState::Left
                && self.dcs.as_ref().is_none_or(|dcs| dcs.contains(&host.id.dc))
        };
        let mut chosen = Chosen::default();
        for host in hosts.iter().filter(is_there) {
            let fulfils = self
                .condition
                .as_ref()
                .map_or(Some(true), |condition| hosts::fulfils(host, condition));
            match fulfils {
                Some(true) => chosen.hosts.push(host.id.clone()),
                Some(false) => {}
                None => chosen.undecided.push(host.id.clone()),
            }
        }
        chosen
    }
}

fn parse_dcs(text: &str) -> Result<Vec<DcName>, Refused> {
    let parse = |name: &str| {
        name.trim().parse().map_err(|error| {
            let name = name.escape_debug();
            Refused::bad_request(format!("`{name}` is no data centre: {error}"))
        })
    };
    text.split(',').map(parse).collect()
}

fn parse_condition(text: &str) -> Result<Filter, Refused> {
    if text.len() > QUERY_TEXT_BYTES_MAX {
        let (len, max) = (text.len(), QUERY_TEXT_BYTES_MAX);
        return Err(Refused::bad_request(format!("where: {len} bytes, and {max} is the most")));
    }
    Filter::compile(text, &HOSTS).map_err(|error| Refused::bad_request(format!("where: {error}")))
}

fn parse_wait(text: &str) -> Result<Wait, Refused> {
    let number = text.parse::<u64>().ok().filter(|wait_ms| WAIT_MS.contains(wait_ms));
    let wait = number.map(|most| Wait { most: Duration::from_millis(most), exact: true });
    wait.ok_or_else(|| {
        let (least, most) = (WAIT_MS.start(), WAIT_MS.end());
        let text = text.escape_debug();
        Refused::bad_request(format!("wait_ms `{text}` is no number from {least} to {most}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(pairs: &[(&str, &str)]) -> Result<Scope, Refused> {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut pairs = pairs.iter().map(pair).collect();
        let scope = Scope::take(&mut pairs)?;
        assert!(pairs.iter().all(|(name, _)| name == "limit"), "the others stay");
        Ok(scope)
    }

    /// Parameters, who is asked, and who is undecided.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);

    #[test]
    fn hosts_are_chosen() {
        let host = |name: &str, state| HostInfo {
            id: name.parse().expect("a host"),
            state,
            state_ms: 0,
            incarnation: None,
            card: None,
        };
        let hosts = [
            host("osaka/a", HostState::Alive),
            host("osaka/b", HostState::Left),
            host("tokyo/a", HostState::Dead),
            host("tokyo/b", HostState::CutOff),
        ];
        let cases: [Case<'_>; 7] = [
            (&[], "osaka/a tokyo/a tokyo/b", ""),
            (&[("dc", "tokyo, nowhere"), ("limit", "3")], "tokyo/a tokyo/b", ""),
            (&[("where", "host == 'a'")], "osaka/a tokyo/a", ""),
            (&[("where", "host == 'a'"), ("dc", "tokyo")], "tokyo/a", ""),
            (&[("where", "state == 'alive'")], "osaka/a", ""),
            // Nobody's card is known.
            (&[("where", "cpus > 1")], "", "osaka/a tokyo/a tokyo/b"),
            (&[("where", "!('x' in labels)"), ("dc", "tokyo")], "", "tokyo/a tokyo/b"),
        ];
        for (pairs, hosts_want, undecided_want) in cases {
            let chosen = scope(pairs).expect("good parameters").choose(&hosts);
            let names = |hosts: &[HostId]| {
                hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            };
            assert_eq!(names(&chosen.hosts), hosts_want, "for {pairs:?}");
            assert_eq!(names(&chosen.undecided), undecided_want, "for {pairs:?}");
        }
    }

    #[test]
    fn what_is_refused_is_named() {
        let long = "x".repeat(QUERY_TEXT_BYTES_MAX + 1);
        let cases = [
            ("dc", "", "is no data centre"),
            ("dc", "a,/", "`/` is no data centre"),
            ("where", "hots == 'a'", "did you mean `host`?"),
            ("where", &long, "is the most"),
            ("wait_ms", "9", "from 10 to 60000"),
            ("wait_ms", "-1", "from 10 to 60000"),
        ];
        for (name, value, want) in cases {
            let refused = scope(&[(name, value)]).expect_err(want).to_string();
            assert!(refused.contains(want), "{refused:?} does not say {want:?}");
        }
    }
}
