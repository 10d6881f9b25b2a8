//! Who is responsible for what, without asking anyone: rendezvous hashing.
//!
//! After Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998). Each host
//! has a weight for each service, a hash of both names; the hosts are ranked by it. Nodes that see the
//! same hosts rank them equally. When a host goes, only what it was first for moves, to the second of
//! each; when one comes, it takes an equal share from all.
//!
//! The weight is a part of the protocol: all nodes of a cluster must compute the same one. Changing it
//! moves everything.

use kumo_abi::HostId;

/// `hosts` by their weight for `service`, the responsible one first. Their order does not matter.
pub fn rank<'a>(service: &str, hosts: impl Iterator<Item = &'a HostId>) -> Vec<HostId> {
    let mut weighed: Vec<(u64, &HostId)> =
        hosts.map(|host| (weight(service, host), host)).collect();
    // Equal weights, if ever, are ranked by name.
    weighed.sort_unstable_by(|left, right| right.0.cmp(&left.0).then(left.1.cmp(right.1)));
    weighed.into_iter().map(|(_, host)| host.clone()).collect()
}

/// The first of [`rank`], without ranking the others.
pub fn first<'a>(service: &str, hosts: impl Iterator<Item = &'a HostId>) -> Option<&'a HostId> {
    hosts.max_by(|left, right| {
        weight(service, left).cmp(&weight(service, right)).then(right.cmp(left))
    })
}

/// The weight of `host` for `service`: 64-bit FNV-1a over the bytes of `service`, 0xff, data centre,
/// 0xff, host (0xff is in no name), and then `SplitMix64`'s finalizer, for FNV alone leaves names that
/// differ in their last letter too near to each other.
fn weight(service: &str, host: &HostId) -> u64 {
    const END: &[u8] = &[0xff];
    let parts =
        [service.as_bytes(), END, host.dc.as_str().as_bytes(), END, host.host.as_str().as_bytes()];
    let bytes = parts.iter().flat_map(|part| part.iter());
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325, fnv);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn hosts(count: usize) -> Vec<HostId> {
        let name = |nth: usize| format!("dc-{}/host-{nth}", nth % 3).parse().expect("a host");
        (0..count).map(name).collect()
    }

    fn services(count: usize) -> impl Iterator<Item = String> {
        (0..count).map(|nth| format!("service-{nth}"))
    }

    #[test]
    fn weights_are_a_part_of_the_protocol() {
        let cases = [
            ("web", "tokyo/a", 0xa904_880f_8d04_7e73),
            ("web", "tokyo/b", 0xe587_b85e_b5c6_1468),
            ("", "a/b", 0x7fae_4f37_1ad8_e833),
        ];
        for (service, host, want) in cases {
            let host: HostId = host.parse().expect("a host");
            assert_eq!(weight(service, &host), want, "for {service:?} on {host}");
        }
        let (left, right) = ("a/bc".parse().expect("a host"), "ab/c".parse().expect("a host"));
        assert_ne!(weight("s", &left), weight("s", &right), "the names are told apart");
    }

    #[test]
    fn the_order_in_which_hosts_come_does_not_matter() {
        let hosts = hosts(20);
        for service in services(50) {
            let ranked = rank(&service, hosts.iter());
            assert_eq!(ranked, rank(&service, hosts.iter().rev()));
            assert_eq!(first(&service, hosts.iter()), ranked.first());
            let mut sorted = ranked;
            sorted.sort();
            let mut all = hosts.clone();
            all.sort();
            assert_eq!(sorted, all, "each host is ranked once");
        }
        assert_eq!(rank("s", [].iter()), []);
        assert_eq!(first("s", [].iter()), None);
    }

    #[test]
    fn who_goes_takes_nothing_of_others_along() {
        let hosts = hosts(20);
        for gone in &hosts {
            for service in services(50) {
                let mut want = rank(&service, hosts.iter());
                want.retain(|host| host != gone);
                let left = rank(&service, hosts.iter().filter(|host| *host != gone));
                assert_eq!(left, want, "{service} without {gone}");
            }
        }
    }

    #[test]
    fn hosts_get_equal_shares() {
        const SERVICES: usize = 20_000;
        for count in [2, 7, 50] {
            let hosts = hosts(count);
            let mut shares: BTreeMap<&HostId, usize> = BTreeMap::new();
            for service in services(SERVICES) {
                let responsible = first(&service, hosts.iter()).expect("a host");
                *shares.entry(responsible).or_default() += 1;
            }
            // Five standard deviations of a fair draw; the names are fixed, so this never varies.
            let fair = SERVICES as f64 / count as f64;
            let bound = 5.0 * (fair * (1.0 - 1.0 / count as f64)).sqrt();
            for (host, share) in &shares {
                let off = (*share as f64 - fair).abs();
                assert!(off < bound, "{host} of {count} has {share}, and {fair} would be fair");
            }
            assert_eq!(shares.len(), count);
        }
    }
}
