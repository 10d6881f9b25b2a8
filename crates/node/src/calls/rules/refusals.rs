//! What was refused last, for who looks why a service cannot be called. Pure.

use std::collections::VecDeque;

use kumo_abi::call::{Cause, ServiceName};

/// Services of which that is remembered; beyond that, the one whose refusal is oldest is forgotten. Anybody may
/// ask for names that nobody serves.
pub(crate) const SERVICES_MAX: usize = 256;

/// A connection that was refused to a program of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// With whom.
    pub(crate) service: ServiceName,
    /// To which process,
    pub(crate) pid: u32,
    /// of which user.
    pub(crate) uid: u32,
    /// Why.
    pub(crate) cause: Cause,
    /// In words.
    pub(crate) message: String,
    /// When, milliseconds of the node's clock.
    pub(crate) at_ms: u64,
}

/// The last of each service, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Refusals(VecDeque<Refused>);

impl Refusals {
    /// Remembers one.
    pub(crate) fn note(&mut self, refused: Refused) {
        self.0.retain(|other| other.service != refused.service);
        if self.0.len() == SERVICES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(refused);
    }

    /// All, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Refused> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_each_service_is_remembered_and_not_of_more_than_may_be() {
        let refused = |name: &str, at_ms| Refused {
            service: name.parse().expect("a name"),
            pid: 1,
            uid: 0,
            cause: Cause::Busy,
            message: String::new(),
            at_ms,
        };
        let mut refusals = Refusals::default();
        for (name, at_ms) in [("a", 1), ("b", 2), ("a", 3)] {
            refusals.note(refused(name, at_ms));
        }
        let times: Vec<u64> = refusals.iter().map(|refused| refused.at_ms).collect();
        assert_eq!(times, [2, 3]);
        for n in 0..SERVICES_MAX {
            refusals.note(refused(&format!("s{n}"), 10));
        }
        assert_eq!(refusals.iter().count(), SERVICES_MAX);
        assert!(refusals.iter().all(|refused| refused.at_ms == 10));
    }
}
