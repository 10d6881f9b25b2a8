//! Which hosts serve what, as far as this host knows.
//!
//! Each node says in the desired state which services it serves; together with who is there that is the
//! directory. What a host said before it died or was started anew does not count.

use std::collections::BTreeMap;

use kumo_abi::HostId;
use kumo_abi::call::ServiceName;
use kumo_abi::cluster::{HostInfo, HostState};
use kumo_abi::control::ServiceState;
use serde::{Deserialize, Serialize};

/// What keys of these entries begin with: `service/SERVICE/DC/HOST`.
pub(crate) const PREFIX: &str = "service/";

/// What a host says about a service that it serves. Fields of newer nodes are passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Of which start of its node; an entry of an earlier one means nothing.
    pub(crate) incarnation: u64,
    /// Instances that answer.
    pub(crate) ready: u32,
    /// Instances that would answer after a wake-up.
    #[serde(default)]
    pub(crate) asleep: u32,
    /// Connections for each 100 slots, when this was written.
    #[serde(default)]
    pub(crate) load_percent: u32,
}

/// The key of what `host` says about `service`.
pub(crate) fn key(service: &ServiceName, host: &HostId) -> String {
    format!("{PREFIX}{service}/{}/{}", host.dc, host.host)
}

/// What a key is about, if it is one of ours.
pub(crate) fn from_key(key: &str) -> Option<(ServiceName, HostId)> {
    let (service, host) = key.strip_prefix(PREFIX)?.split_once('/')?;
    Some((service.parse().ok()?, host.parse().ok()?))
}

/// The directory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    entries: BTreeMap<ServiceName, BTreeMap<HostId, Entry>>,
    hosts: BTreeMap<HostId, (HostState, Option<u64>)>,
}

impl Directory {
    /// Notes what a host says about a service now; nothing is that it does not serve it.
    pub(crate) fn note(&mut self, service: ServiceName, host: HostId, entry: Option<Entry>) {
        match entry {
            Some(entry) => {
                self.entries.entry(service).or_default().insert(host, entry);
            }
            None => {
                if let Some(hosts) = self.entries.get_mut(&service) {
                    hosts.remove(&host);
                    if hosts.is_empty() {
                        self.entries.remove(&service);
                    }
                }
            }
        }
    }

    /// Notes who is there.
    pub(crate) fn note_hosts<'a>(&mut self, hosts: impl IntoIterator<Item = &'a HostInfo>) {
        let now = |host: &HostInfo| (host.id.clone(), (host.state, host.incarnation));
        self.hosts = hosts.into_iter().map(now).collect();
    }

    /// Services that any host says anything about.
    pub(crate) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.entries.keys()
    }

    /// The hosts to ask for a service, the nearest first: those of this data centre, then others by the
    /// time to them and back where that is known. Those that are equally near stand in an order that is
    /// another one for each host that asks, so that not all ask the same; those with none that is awake
    /// stand behind.
    pub(crate) fn candidates(
        &self,
        service: &ServiceName,
        me: &HostId,
        rtt_us: impl Fn(&HostId) -> Option<u32>,
    ) -> Vec<HostId> {
        let serves = |(host, entry): &(&HostId, &Entry)| {
            *host != me && self.counts(host, entry) && entry.ready + entry.asleep > 0
        };
        let there: BTreeMap<&HostId, &Entry> =
            self.entries.get(service).into_iter().flatten().filter(serves).collect();
        let mut hosts =
            kumo_fabric::rendezvous::rank(&format!("{service} {me}"), there.keys().copied());
        // Equal ones stay as they are.
        hosts.sort_by_key(|host| {
            let asleep = there.get(host).is_none_or(|entry| entry.ready == 0);
            let far = host.dc != me.dc;
            (asleep, far, if far { rtt_us(host).unwrap_or(u32::MAX) } else { 0 })
        });
        hosts
    }

    fn counts(&self, host: &HostId, entry: &Entry) -> bool {
        self.hosts.get(host) == Some(&(HostState::Alive, Some(entry.incarnation)))
    }

    /// How a service is on all other hosts than `me`.
    pub(crate) fn elsewhere(&self, service: &ServiceName, me: &HostId) -> ServiceState {
        let mut state = ServiceState { ready: 0, asleep: 0, silent_hosts: 0 };
        for (host, entry) in self.entries.get(service).into_iter().flatten() {
            if host == me {
                continue;
            }
            if self.counts(host, entry) {
                state.ready = state.ready.saturating_add(entry.ready);
                state.asleep = state.asleep.saturating_add(entry.asleep);
            } else if matches!(self.hosts.get(host), Some((HostState::CutOff, _))) {
                state.silent_hosts += 1;
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostId {
        name.parse().expect("a host")
    }

    fn info(name: &str, state: HostState, incarnation: Option<u64>) -> HostInfo {
        HostInfo { id: host(name), state, state_ms: 0, incarnation, card: None }
    }

    fn directory() -> (Directory, ServiceName) {
        let kv: ServiceName = "kv".parse().expect("a name");
        let mut directory = Directory::default();
        let entries = [
            ("tokyo/a", 1, 1, 0),
            ("tokyo/b", 1, 1, 0),
            ("osaka/a", 1, 2, 1),
            ("paris/a", 1, 1, 0),
            ("paris/old", 1, 1, 0),
            ("paris/dead", 1, 1, 0),
            ("lima/cut", 1, 1, 0),
            ("tokyo/asleep", 1, 0, 1),
            ("tokyo/none", 1, 0, 0),
            ("tokyo/unknown", 1, 1, 0),
        ];
        for (name, incarnation, ready, asleep) in entries {
            let entry = Entry { incarnation, ready, asleep, load_percent: 0 };
            directory.note(kv.clone(), host(name), Some(entry));
        }
        directory.note_hosts(&[
            info("tokyo/a", HostState::Alive, Some(1)),
            info("tokyo/b", HostState::Alive, Some(1)),
            info("osaka/a", HostState::Alive, Some(1)),
            info("paris/a", HostState::Alive, Some(1)),
            info("paris/old", HostState::Alive, Some(2)),
            info("paris/dead", HostState::Dead, Some(1)),
            info("lima/cut", HostState::CutOff, Some(1)),
            info("tokyo/asleep", HostState::Alive, Some(1)),
            info("tokyo/none", HostState::Alive, Some(1)),
        ]);
        (directory, kv)
    }

    #[test]
    fn the_nearest_that_is_there_is_asked_first() {
        let (directory, kv) = directory();
        let near_paris = |host: &HostId| (host.dc.as_str() == "paris").then_some(9_000);
        let near_osaka = |host: &HostId| Some(if host.dc.as_str() == "osaka" { 1 } else { 9 });
        let names = |hosts: Vec<HostId>| {
            hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let me = host("tokyo/a");
        let want = "tokyo/b paris/a osaka/a tokyo/asleep";
        assert_eq!(names(directory.candidates(&kv, &me, near_paris)), want);
        let want = "tokyo/b osaka/a paris/a tokyo/asleep";
        assert_eq!(names(directory.candidates(&kv, &me, near_osaka)), want);
        let other = "other".parse().expect("a name");
        assert!(directory.candidates(&other, &me, near_paris).is_empty());
    }

    #[test]
    fn hosts_that_ask_do_not_all_ask_the_same() {
        let kv: ServiceName = "kv".parse().expect("a name");
        let mut directory = Directory::default();
        let servers: Vec<HostInfo> = (0..4)
            .map(|nth| info(&format!("tokyo/s{nth}"), HostState::Alive, Some(1)))
            .collect();
        for server in &servers {
            let entry = Entry { incarnation: 1, ready: 1, asleep: 0, load_percent: 0 };
            directory.note(kv.clone(), server.id.clone(), Some(entry));
        }
        directory.note_hosts(&servers);
        let mut asked: BTreeMap<HostId, usize> = BTreeMap::new();
        for nth in 0..400 {
            let me = host(&format!("tokyo/c{nth}"));
            let first = directory.candidates(&kv, &me, |_| None).swap_remove(0);
            *asked.entry(first).or_default() += 1;
        }
        assert_eq!(asked.len(), 4);
        assert!(asked.values().all(|count| (60..=140).contains(count)), "{asked:?}");
    }

    #[test]
    fn what_is_elsewhere_is_counted_and_who_is_silent_is_said() {
        let (mut directory, kv) = directory();
        let want = ServiceState { ready: 4, asleep: 2, silent_hosts: 1 };
        assert_eq!(directory.elsewhere(&kv, &host("tokyo/a")), want);
        for (name, left) in [("osaka/a", 2), ("tokyo/b", 1)] {
            directory.note(kv.clone(), host(name), None);
            assert_eq!(directory.elsewhere(&kv, &host("tokyo/a")).ready, left);
        }
    }

    #[test]
    fn keys_are_read_back() {
        let (kv, me): (ServiceName, _) = ("kv".parse().expect("a name"), host("tokyo/a"));
        assert_eq!(key(&kv, &me), "service/kv/tokyo/a");
        assert_eq!(from_key("service/kv/tokyo/a"), Some((kv, me)));
        for bad in ["service/kv", "service/kv/tokyo", "service/KV/tokyo/a", "card/kv/tokyo/a", ""] {
            assert_eq!(from_key(bad), None, "for {bad:?}");
        }
    }
}
