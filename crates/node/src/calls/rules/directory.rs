//! Which hosts serve what, as far as this host knows.
//!
//! Each node says in the desired state what it serves; together with who is there that is the directory.
//! What a host said before it died or was started anew does not count.

use std::collections::{BTreeMap, BTreeSet};

use kumo_abi::HostId;
use kumo_abi::call::ServiceName;
use kumo_abi::cluster::{HostInfo, HostState};
use kumo_abi::control::ServiceState;
use serde::{Deserialize, Serialize};

/// What keys of these documents begin with: `serves/DC/HOST`. One document a host rather than one a
/// service and host: it is written when anything changes, and names that come and go leave no removals
/// behind, which all nodes would have to keep for a week.
pub(crate) const PREFIX: &str = "serves/";

/// Most services that a host tells others of; each takes at most 135 bytes of 64 KiB.
pub(crate) const SERVES_MAX: usize = 480;

/// What a host says about a service that it serves. Fields of newer nodes are passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Instances that answer.
    pub(crate) ready: u32,
    /// Instances that would answer after a wake-up.
    #[serde(default)]
    pub(crate) asleep: u32,
    /// Connections for each 100 slots, when this was written.
    #[serde(default)]
    pub(crate) load_percent: u32,
}

/// What a host serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Serves {
    /// Of which start of its node; what it said before an earlier one means nothing.
    pub(crate) incarnation: u64,
    /// The services.
    pub(crate) services: BTreeMap<ServiceName, Entry>,
}

/// The key of what `host` serves.
pub(crate) fn key(host: &HostId) -> String {
    format!("{PREFIX}{host}")
}

/// Whose document a key is for, if it is one of ours.
pub(crate) fn from_key(key: &str) -> Option<HostId> {
    key.strip_prefix(PREFIX)?.parse().ok()
}

/// The directory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    serves: BTreeMap<HostId, Serves>,
    by_service: BTreeMap<ServiceName, BTreeSet<HostId>>,
    hosts: BTreeMap<HostId, (HostState, Option<u64>)>,
}

impl Directory {
    /// Notes what a host serves now; nothing is that it says nothing any more. Returns the services for
    /// which that may have changed something.
    pub(crate) fn note(&mut self, host: &HostId, serves: Option<Serves>) -> BTreeSet<ServiceName> {
        let before = self.serves.remove(host).unwrap_or_default();
        let mut changed: BTreeSet<ServiceName> = before.services.keys().cloned().collect();
        for service in &changed {
            if let Some(hosts) = self.by_service.get_mut(service) {
                hosts.remove(host);
                if hosts.is_empty() {
                    self.by_service.remove(service);
                }
            }
        }
        if let Some(serves) = serves {
            for service in serves.services.keys() {
                self.by_service.entry(service.clone()).or_default().insert(host.clone());
            }
            changed.extend(serves.services.keys().cloned());
            self.serves.insert(host.clone(), serves);
        }
        changed
    }

    /// Notes who is there.
    pub(crate) fn note_hosts<'a>(&mut self, hosts: impl IntoIterator<Item = &'a HostInfo>) {
        let now = |host: &HostInfo| (host.id.clone(), (host.state, host.incarnation));
        self.hosts = hosts.into_iter().map(now).collect();
    }

    /// Services that any host says anything about.
    pub(crate) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.by_service.keys()
    }

    /// What hosts say, and whether that counts: they are there, and it is of this start of their node.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&HostId, &ServiceName, &Entry, bool)> {
        self.serves.iter().flat_map(|(host, serves)| {
            let counts = self.counts(host);
            serves.services.iter().map(move |(service, entry)| (host, service, entry, counts))
        })
    }

    fn of<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = (&'a HostId, &'a Entry)> {
        let hosts = self.by_service.get(service).into_iter().flatten();
        hosts.filter_map(|host| Some((host, self.serves.get(host)?.services.get(service)?)))
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
        let there = self.of(service).filter(|(host, entry)| {
            *host != me && self.counts(host) && entry.ready.saturating_add(entry.asleep) > 0
        });
        let there: BTreeMap<&HostId, &Entry> = there.collect();
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

    /// Whether what a host says is to be believed: it is there, and said so since its node began.
    fn counts(&self, host: &HostId) -> bool {
        let said = self.serves.get(host).map(|serves| serves.incarnation);
        said.is_some() && self.hosts.get(host) == Some(&(HostState::Alive, said))
    }

    /// How a service is on all other hosts than `me`.
    pub(crate) fn elsewhere(&self, service: &ServiceName, me: &HostId) -> ServiceState {
        let mut state = ServiceState { ready: 0, asleep: 0, silent_hosts: 0 };
        for (host, entry) in self.of(service) {
            if host == me {
                continue;
            }
            if self.counts(host) {
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

    fn serves(incarnation: u64, ready: u32, asleep: u32) -> Serves {
        let entry = Entry { ready, asleep, load_percent: 0 };
        let services = [("kv".parse().expect("a name"), entry)].into();
        Serves { incarnation, services }
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
            directory.note(&host(name), Some(serves(incarnation, ready, asleep)));
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
        let servers: Vec<HostInfo> =
            (0..4).map(|nth| info(&format!("tokyo/s{nth}"), HostState::Alive, Some(1))).collect();
        for server in &servers {
            directory.note(&server.id, Some(serves(1, 1, 0)));
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
            assert_eq!(directory.note(&host(name), None), [kv.clone()].into());
            assert_eq!(directory.elsewhere(&kv, &host("tokyo/a")).ready, left);
        }
    }

    #[test]
    fn a_host_that_serves_something_else_no_longer_serves_what_it_did() {
        let (mut directory, kv) = directory();
        let me = host("tokyo/b");
        let mut other = serves(1, 1, 0);
        other.services = [("web".parse().expect("a name"), Entry::default())].into();
        let changed = directory.note(&host("tokyo/a"), Some(other));
        assert_eq!(changed.iter().map(ServiceName::as_str).collect::<Vec<_>>(), ["kv", "web"]);
        assert_eq!(directory.elsewhere(&kv, &me).ready, 3);
        assert_eq!(directory.services().count(), 2);
        let counting = directory.iter().filter(|(.., counts)| *counts).count();
        assert_eq!((directory.iter().count(), counting), (10, 6));
    }

    #[test]
    fn keys_are_read_back() {
        let me = host("tokyo/a");
        assert_eq!(key(&me), "serves/tokyo/a");
        assert_eq!(from_key("serves/tokyo/a"), Some(me));
        for bad in ["serves/tokyo", "serves/tokyo/a/b", "card/tokyo/a", ""] {
            assert_eq!(from_key(bad), None, "for {bad:?}");
        }
        let json = serde_json::to_string(&serves(7, 1, 0)).expect("JSON");
        let want = r#"{"incarnation":7,"services":{"kv":{"ready":1,"asleep":0,"load_percent":0}}}"#;
        assert_eq!(json, want);
    }

    #[test]
    fn as_many_services_as_a_host_may_tell_of_fit_into_a_value() {
        let long = |nth: usize| format!("s{nth:062}").parse().expect("a name");
        let most = Entry { ready: u32::MAX, asleep: u32::MAX, load_percent: u32::MAX };
        let services = (0..SERVES_MAX).map(|nth| (long(nth), most)).collect();
        let serves = Serves { incarnation: u64::MAX, services };
        let bytes = serde_json::to_vec(&serves).expect("JSON").len();
        assert!(bytes <= kumo_fabric::store::VALUE_BYTES_MAX, "{bytes} bytes");
    }
}
