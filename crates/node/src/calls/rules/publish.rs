//! When this host tells the others what it serves.
//!
//! At once when the first instance of a service comes or the last goes, and now and then for numbers that
//! only help to choose. Whoever lets a name come and go all the time delays that name alone.

use std::collections::BTreeMap;

use kumo_abi::call::ServiceName;

use super::directory::{Entry, SERVES_MAX, Serves};

/// After others were told of a name, they hear no more of it for so long. Who asks this host meanwhile
/// hears how it is.
pub(crate) const SAME_NAME_MS: u64 = 2_000;

/// Between two documents.
pub(crate) const BETWEEN_MS: u64 = 100;

/// Numbers are told when they are this old.
pub(crate) const NUMBERS_MS: u64 = 15_000;

/// What others were told, and what is so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Publisher {
    now: BTreeMap<ServiceName, Entry>,
    told: BTreeMap<ServiceName, Entry>,
    /// When others were last told that a name came or went.
    changed_ms: BTreeMap<ServiceName, u64>,
    told_ms: Option<u64>,
    numbers_ms: u64,
}

impl Publisher {
    /// Notes how a service is now; without instances it is not served.
    pub(crate) fn note(&mut self, service: ServiceName, entry: Entry) {
        if entry.ready == 0 && entry.asleep == 0 {
            self.now.remove(&service);
        } else {
            self.now.insert(service, entry);
        }
    }

    /// The document to write now, if it is time for one; then others have been told.
    pub(crate) fn due(&mut self, now_ms: u64, incarnation: u64) -> Option<Serves> {
        self.changed_ms.retain(|_, at_ms| *at_ms + SAME_NAME_MS > now_ms);
        if self.told_ms.is_some_and(|at_ms| at_ms + BETWEEN_MS > now_ms) {
            return None;
        }
        let may = |name: &&ServiceName| !self.changed_ms.contains_key(*name);
        let went = self.told.keys().filter(|name| !self.now.contains_key(*name)).filter(may);
        let went: Vec<ServiceName> = went.cloned().collect();
        let room = SERVES_MAX + went.len() - self.told.len();
        let came = self.now.keys().filter(|name| !self.told.contains_key(*name)).filter(may);
        let came: Vec<ServiceName> = came.take(room).cloned().collect();
        let others = |(name, told): (&ServiceName, &Entry)| {
            self.now.get(name).is_some_and(|now| now != told)
        };
        let numbers = now_ms >= self.numbers_ms && self.told.iter().any(others);
        // A first document, also an empty one, replaces that of the node before.
        if went.is_empty() && came.is_empty() && !numbers && self.told_ms.is_some() {
            return None;
        }
        for (name, told) in &mut self.told {
            if let Some(now) = self.now.get(name) {
                *told = *now;
            }
        }
        for name in went {
            self.told.remove(&name);
            self.changed_ms.insert(name, now_ms);
        }
        for name in came {
            self.told.insert(name.clone(), self.now.get(&name).copied().unwrap_or_default());
            self.changed_ms.insert(name, now_ms);
        }
        self.told_ms = Some(now_ms);
        self.numbers_ms = now_ms + NUMBERS_MS;
        Some(Serves { incarnation, services: self.told.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServiceName {
        text.parse().expect("a name")
    }

    fn entry(ready: u32) -> Entry {
        Entry { ready, asleep: 0, load_percent: 0 }
    }

    fn due(publisher: &mut Publisher, now_ms: u64) -> Option<String> {
        let serves = publisher.due(now_ms, 1)?;
        let text = |(name, entry): (&ServiceName, &Entry)| format!("{name}:{}", entry.ready);
        Some(serves.services.iter().map(text).collect::<Vec<_>>().join(" "))
    }

    /// When, what is noted before, and what others are told.
    type Case<'a> = (u64, &'a [(&'a str, u32)], Option<&'a str>);

    #[test]
    fn first_and_last_are_told_at_once_and_numbers_now_and_then() {
        let mut publisher = Publisher::default();
        let cases: [Case<'_>; 15] = [
            (0, &[], Some("")),
            (0, &[], None),
            (0, &[("a", 1)], None),
            (BETWEEN_MS, &[], Some("a:1")),
            (300, &[("a", 2)], None),
            (301, &[("b", 1)], Some("a:2 b:1")),
            // One that comes and goes is told of at most every two seconds; another is not held up.
            (500, &[("b", 0)], None),
            (600, &[("b", 1)], None),
            (700, &[("b", 0), ("c", 1)], Some("a:2 b:1 c:1")),
            (2_300, &[], None),
            (2_301, &[], Some("a:2 c:1")),
            (2_500, &[("a", 3)], None),
            (2_301 + NUMBERS_MS - 1, &[], None),
            (2_301 + NUMBERS_MS, &[], Some("a:3 c:1")),
            (90_000, &[], None),
        ];
        for (now_ms, notes, want) in cases {
            for (service, ready) in notes {
                publisher.note(name(service), entry(*ready));
            }
            assert_eq!(due(&mut publisher, now_ms).as_deref(), want, "at {now_ms}");
        }
    }

    #[test]
    fn there_is_room_for_so_many_and_who_goes_makes_room() {
        let mut publisher = Publisher::default();
        for nth in 0..=SERVES_MAX {
            publisher.note(name(&format!("s{nth:04}")), entry(1));
        }
        let first = publisher.due(0, 1).expect("the first");
        assert_eq!(first.services.len(), SERVES_MAX);
        assert_eq!(publisher.due(SAME_NAME_MS, 1), None);
        publisher.note(name("s0000"), entry(0));
        let next = publisher.due(2 * SAME_NAME_MS, 1).expect("a change");
        let last = name(&format!("s{SERVES_MAX:04}"));
        assert!(next.services.contains_key(&last) && !next.services.contains_key(&name("s0000")));
    }
}
