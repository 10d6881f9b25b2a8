//! How often each peer may do something. Pure: time is an argument.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Most peers that are remembered. When there are more, those are forgotten that have been quiet for
/// longest, which have their whole allowance again or nearly so.
const PEERS_MAX: usize = 4_096;

/// Something that each peer may do so often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// How often at once, after a pause.
    pub(crate) at_once: u32,
    /// After how long one more.
    pub(crate) every: Duration,
}

/// How much each peer has done.
#[derive(Debug)]
pub(crate) struct Paces {
    pace: Pace,
    /// When a peer's allowance is whole again.
    whole_at: HashMap<IpAddr, Instant>,
}

/// An address as one peer: in IPv6 who has one address has 2^64.
fn peer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

impl Paces {
    pub(crate) fn new(pace: Pace) -> Paces {
        Paces { pace, whole_at: HashMap::new() }
    }

    /// Takes one from what `address` may do.
    ///
    /// # Errors
    /// It has none left, and gets one after this long. Nothing is taken then.
    pub(crate) fn take(&mut self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let whole = self.pace.every * self.pace.at_once;
        let address = peer(address);
        let whole_at = self.whole_at.get(&address).map_or(now, |at| (*at).max(now));
        let then = whole_at + self.pace.every;
        if then > now + whole {
            return Err(then.duration_since(now).saturating_sub(whole));
        }
        if self.whole_at.len() >= PEERS_MAX && !self.whole_at.contains_key(&address) {
            self.forget(now);
        }
        self.whole_at.insert(address, then);
        Ok(())
    }

    /// Makes room: those that may do everything again are as good as new.
    fn forget(&mut self, now: Instant) {
        self.whole_at.retain(|_, at| *at > now);
        if self.whole_at.len() >= PEERS_MAX {
            let mut all: Vec<Instant> = self.whole_at.values().copied().collect();
            let (_, median, _) = all.select_nth_unstable(PEERS_MAX / 2);
            let median = *median;
            self.whole_at.retain(|_, at| *at > median);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn some_at_once_then_one_after_another() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut paces = Paces::new(Pace { at_once: 3, every: second });
        for _ in 0..3 {
            assert_eq!(paces.take(ip("10.0.0.1"), now), Ok(()));
        }
        assert_eq!(paces.take(ip("10.0.0.1"), now), Err(second));
        assert_eq!(paces.take(ip("10.0.0.2"), now), Ok(()), "another is another");
        assert_eq!(paces.take(ip("::ffff:10.0.0.1"), now + second / 2), Err(second / 2));
        assert_eq!(paces.take(ip("10.0.0.1"), now + second), Ok(()));
        assert_eq!(paces.take(ip("10.0.0.1"), now + second), Err(second));
        for _ in 0..3 {
            assert_eq!(paces.take(ip("10.0.0.1"), now + 10 * second), Ok(()));
        }
        assert!(paces.take(ip("10.0.0.1"), now + 10 * second).is_err(), "never more than at once");
    }

    #[test]
    fn a_network_is_one_peer_and_many_are_forgotten() {
        let now = Instant::now();
        let mut paces = Paces::new(Pace { at_once: 1, every: Duration::from_secs(1) });
        assert!(paces.take(ip("2001:db8::1"), now).is_ok());
        assert!(paces.take(ip("2001:db8::ffff:2"), now).is_err());
        assert!(paces.take(ip("2001:db8:0:1::1"), now).is_ok());
        for number in 0..3 * PEERS_MAX as u32 {
            assert!(paces.take(std::net::Ipv4Addr::from(number).into(), now).is_ok());
            assert!(paces.whole_at.len() <= PEERS_MAX);
        }
    }
}
