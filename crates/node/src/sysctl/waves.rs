//! In which order the hosts of a change get it. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::str::FromStr;
use std::time::Duration;

use kumo_abi::HostId;

/// Most waves before the last.
const SHARES_MAX: usize = 8;

/// How large the waves before the last are, each with those before it: `10%`, or `1,10%,50%`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Canary {
    shares: Vec<Share>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    Percent(u32),
    Hosts(usize),
}

impl FromStr for Canary {
    type Err = String;
    fn from_str(text: &str) -> Result<Canary, String> {
        let wrong = || {
            format!(
                "canary `{}` is no share such as 10%, or number of hosts such as 1, or up to \
                 {SHARES_MAX} of them that grow",
                text.escape_debug()
            )
        };
        let share = |piece: &str| {
            let piece = piece.trim();
            match piece.strip_suffix('%') {
                Some(percent) => {
                    let percent = percent.parse().ok().filter(|it| (1..=100).contains(it));
                    percent.map(Share::Percent)
                }
                None => piece.parse().ok().filter(|hosts| *hosts > 0).map(Share::Hosts),
            }
        };
        let shares: Option<Vec<Share>> = text.split(',').map(share).collect();
        let shares = shares.filter(|shares| shares.len() <= SHARES_MAX).ok_or_else(wrong)?;
        Ok(Canary { shares })
    }
}

impl Share {
    /// So many of all; at least one where there is one.
    fn of(self, count: usize) -> usize {
        let hosts = match self {
            Share::Percent(percent) => (count * percent as usize).div_ceil(100),
            Share::Hosts(hosts) => hosts,
        };
        hosts.max(1).min(count)
    }
}

/// The waves: each data centre has its part in the first, and the host that leads the change is the
/// last of all, so that one that a change cuts off has led the others until then. No wave is empty.
pub(crate) fn waves(hosts: &[HostId], leader: &HostId, canary: &Canary) -> Vec<Vec<HostId>> {
    let mut order = spread(hosts.iter().filter(|host| *host != leader));
    order.extend(hosts.iter().find(|host| *host == leader).cloned());
    let count = order.len();
    let mut ends: Vec<usize> = canary.shares.iter().map(|share| share.of(count)).collect();
    ends.push(count);
    let mut waves = Vec::new();
    let mut begin = 0;
    for end in ends {
        if end > begin {
            waves.push(order[begin..end].to_vec());
            begin = end;
        }
    }
    waves
}

/// One of each data centre in turn.
fn spread<'a>(hosts: impl Iterator<Item = &'a HostId>) -> Vec<HostId> {
    let mut of_dcs: BTreeMap<&str, VecDeque<&HostId>> = BTreeMap::new();
    for host in hosts {
        of_dcs.entry(host.dc.as_str()).or_default().push_back(host);
    }
    let mut order = Vec::new();
    while !of_dcs.is_empty() {
        order.extend(of_dcs.values_mut().filter_map(VecDeque::pop_front).cloned());
        of_dcs.retain(|_, hosts| !hosts.is_empty());
    }
    order
}

/// Whether all waves can be over before the hosts of the first take it back: each is given `step` to
/// apply, and is watched for `watch`; one step more is for the confirmation.
pub(crate) fn fits(waves: usize, step: Duration, watch: Duration, within: Duration) -> bool {
    let waves = u32::try_from(waves).unwrap_or(u32::MAX);
    (step + watch).saturating_mul(waves).saturating_add(step) < within
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(names: &str) -> Vec<HostId> {
        names.split(' ').filter(|it| !it.is_empty()).map(|it| it.parse().expect(it)).collect()
    }

    #[test]
    fn waves_of_hosts() {
        let four = "osaka/a osaka/b tokyo/a tokyo/b";
        let cases = [
            ("tokyo/a", "", "50%", vec![]),
            ("tokyo/a", "tokyo/a", "10%", vec!["tokyo/a"]),
            ("tokyo/a", four, "10%", vec!["osaka/a", "tokyo/b osaka/b tokyo/a"]),
            ("tokyo/a", four, "50%", vec!["osaka/a tokyo/b", "osaka/b tokyo/a"]),
            ("tokyo/a", four, "100%", vec!["osaka/a tokyo/b osaka/b tokyo/a"]),
            ("sapporo/a", four, "1", vec!["osaka/a", "tokyo/a osaka/b tokyo/b"]),
            ("osaka/a", four, "1,2", vec!["osaka/b", "tokyo/a", "tokyo/b osaka/a"]),
            ("osaka/a", four, "1,1,9", vec!["osaka/b", "tokyo/a tokyo/b osaka/a"]),
            ("osaka/a", four, "3,1", vec!["osaka/b tokyo/a tokyo/b", "osaka/a"]),
        ];
        for (leader, names, canary, want) in cases {
            let canary: Canary = canary.parse().expect(canary);
            let waves = waves(&hosts(names), &leader.parse().expect(leader), &canary);
            let want: Vec<_> = want.into_iter().map(hosts).collect();
            assert_eq!(waves, want, "{names}, {canary:?} by {leader}");
        }
        let all = waves(&hosts(four), &"tokyo/a".parse().expect("a host"), &Canary::default());
        assert_eq!(all.len(), 1, "without canaries");
    }

    #[test]
    fn shares() {
        for bad in ["", "0", "0%", "101%", "x", "-1", "10%,", "1,1,1,1,1,1,1,1,1"] {
            assert!(bad.parse::<Canary>().is_err(), "{bad:?}");
        }
        assert_eq!(Share::Percent(10).of(1_000), 100);
        assert_eq!(Share::Percent(10).of(11), 2);
        assert_eq!(Share::Percent(1).of(3), 1);
        assert_eq!(Share::Hosts(7).of(3), 3);
    }

    #[test]
    fn what_would_be_taken_back_before_it_is_confirmed_is_not_begun() {
        let s = Duration::from_secs;
        assert!(fits(2, s(2), s(5), s(60)));
        assert!(!fits(2, s(2), s(30), s(60)));
        assert!(!fits(1, s(2), s(0), s(4)));
        assert!(fits(1, s(2), s(0), s(5)));
    }
}
