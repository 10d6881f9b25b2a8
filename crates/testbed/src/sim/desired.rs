//! The desired state in a simulated world: every host has a copy and a disk.
//!
//! The rules are the fabric's own ([`Map`], [`Clock`]). Modelled is what carries entries: pushes, of
//! which some are lost, and comparisons by digest after a link was made and every now and then.

use std::collections::BTreeMap;

use kumo_abi::cluster::Role;
use kumo_fabric::clock::{AHEAD_MS_MAX, Clock, Stamp};
use kumo_fabric::store::lww::{Digest, Entry, Map, too_old};

use super::network::Payload;
use super::{Life, Nth, World};

/// How often a host compares its copy with a gateway's, in milliseconds. The fabric takes longer; what
/// matters here is that it happens several times after the world has healed.
pub(super) const COMPARE_MS: u64 = 2_000;

/// Keys that are written. Few, so that writers meet.
const KEYS: u64 = 8;

/// A host's copy.
#[derive(Debug)]
pub(super) struct Copy {
    pub map: Map,
    pub clock: Clock,
    /// What a start after a kill would find.
    disk: Map,
    /// Entries that were refused because of the clocks.
    pub refused: u64,
}

impl Copy {
    pub(super) fn begin(clock: Clock) -> Copy {
        Copy { map: Map::default(), clock, disk: Map::default(), refused: 0 }
    }
}

/// Messages about the desired state.
#[derive(Clone, Debug)]
pub(super) enum News {
    /// It was just written.
    Written(String, Entry),
    /// What the sender has; what has the receiver that differs?
    Compare(Digest),
    /// What differs, and what the answerer has.
    Compared(Vec<(String, Entry)>, Digest),
    /// The rest of an exchange.
    Rest(Vec<(String, Entry)>),
}

/// What was acknowledged, and all that may legitimately be found.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// By key, the greatest acknowledged stamp and its value.
    pub acknowledged: BTreeMap<String, Entry>,
    /// All writes that were ever begun.
    pub begun: BTreeMap<(String, Stamp), Entry>,
}

impl World {
    /// The wall clock of `host`.
    fn wall_ms(&self, host: Nth) -> u64 {
        (self.now_ms + super::EPOCH_MS).saturating_add_signed(self.hosts[host].skew_ms)
    }

    /// Somebody changes something at `host`, as `Store::put` does.
    pub(super) fn write(&mut self, host: Nth) {
        if self.hosts[host].life != Life::Running {
            return;
        }
        let key = format!("setting/{}", self.dice.within(1..=KEYS));
        let removes = self.dice.chance(20);
        let text = || format!("{} at {}", self.name(host), self.now_ms);
        let value = (!removes).then(|| text().into_bytes());
        let wall_ms = self.wall_ms(host);
        let copy = &mut self.hosts[host].copy;
        let stamp = copy.clock.stamp(wall_ms);
        if stamp.ms.saturating_sub(wall_ms) > AHEAD_MS_MAX {
            return; // It is told that its clock is behind.
        }
        let entry = Entry { value, stamp };
        copy.disk.merge(&key, entry.clone());
        self.written.begun.insert((key.clone(), entry.stamp.clone()), entry.clone());
        if self.now_ms > super::FAULTS_FROM_MS && self.dice.chance(5) {
            self.note(|world| format!("{} is killed while it writes {key}", world.name(host)));
            return self.kill(host);
        }
        let copy = &mut self.hosts[host].copy;
        let before = copy.map.entry(&key).map(|known| known.stamp.clone());
        if !copy.map.merge(&key, entry.clone()) {
            self.fail(&format!(
                "{} wrote {key} at {} and had known {before:?}",
                self.name(host),
                entry.stamp
            ));
        }
        self.note(|world| format!("{} wrote {key} at {}", world.name(host), entry.stamp));
        // Of a host whose clock is far off others take nothing in, so nothing is promised of it.
        if !self.hosts[host].is_far_off() {
            let greatest = self.written.acknowledged.entry(key.clone()).or_insert(entry.clone());
            if greatest.stamp < entry.stamp {
                *greatest = entry.clone();
            }
        }
        self.push(host, host, key, entry);
    }

    fn push(&mut self, host: Nth, from: Nth, key: String, entry: Entry) {
        let payload = Payload::News(News::Written(key, entry));
        if self.hosts[host].role == Role::Gateway {
            return self.pass_on(host, from, &payload);
        }
        for nth in self.links_of(host).into_iter().filter(|_| from == host) {
            self.send(nth, host, payload.clone());
        }
    }

    /// `host` begins a comparison with the other end of a link.
    pub(super) fn compare(&mut self, nth: usize, host: Nth) {
        let digest = self.hosts[host].copy.map.digest();
        self.send(nth, host, Payload::News(News::Compare(digest)));
    }

    /// What a host does about its copy regularly.
    pub(super) fn tick(&mut self, host: Nth) {
        if self.hosts[host].life != Life::Running {
            return;
        }
        let copy = &mut self.hosts[host].copy;
        copy.disk.clone_from(&copy.map);
        if let Some(nth) = self.dice.pick(&self.links_of(host)) {
            self.compare(nth, host);
        }
    }

    pub(super) fn news(&mut self, nth: usize, host: Nth, from: Nth, news: News) {
        if self.dice.chance(self.loss_percent) {
            return;
        }
        match news {
            News::Written(key, entry) => {
                if self.take_in(host, &key, &entry) {
                    self.push(host, from, key, entry);
                }
            }
            News::Compare(theirs) => {
                let map = &self.hosts[host].copy.map;
                if map.digest() != theirs {
                    let compared = News::Compared(map.differing(&theirs), map.digest());
                    self.send(nth, host, Payload::News(compared));
                }
            }
            News::Compared(entries, theirs) => {
                let rest = self.hosts[host].copy.map.differing(&theirs);
                self.send(nth, host, Payload::News(News::Rest(rest)));
                self.compared(host, entries);
            }
            News::Rest(entries) => self.compared(host, entries),
        }
    }

    fn compared(&mut self, host: Nth, entries: Vec<(String, Entry)>) {
        for (key, entry) in entries {
            if self.take_in(host, &key, &entry) && self.hosts[host].role == Role::Gateway {
                // Those who were not part of the comparison hear of it too.
                self.push(host, host, key, entry);
            }
        }
    }

    /// As `Store::take_in` does; whether it was news.
    fn take_in(&mut self, host: Nth, key: &str, entry: &Entry) -> bool {
        let wall_ms = self.wall_ms(host);
        let copy = &mut self.hosts[host].copy;
        if too_old(entry, wall_ms)
            || copy.map.entry(key).is_some_and(|known| known.stamp >= entry.stamp)
        {
            return false;
        }
        if copy.clock.see(&entry.stamp, wall_ms).is_err() {
            copy.refused += 1;
            return false;
        }
        copy.map.merge(key, entry.clone())
    }

    /// After a kill a host has what was on its disk.
    pub(super) fn read_disk(&mut self, host: Nth) {
        let id = self.hosts[host].id.clone();
        let copy = &mut self.hosts[host].copy;
        copy.map.clone_from(&copy.disk);
        copy.clock = Clock::new(id, copy.map.last_stamp());
    }

    /// That copies are equal and nothing acknowledged is lost.
    pub(super) fn check_copies(&mut self) {
        let holds =
            |host: &Nth| self.hosts[*host].life == Life::Running && !self.hosts[*host].is_far_off();
        let hosts: Vec<Nth> = (0..self.hosts.len()).filter(holds).collect();
        let Some(first) = hosts.first().copied() else { return };
        let copy = self.hosts[first].copy.map.clone();
        for host in hosts {
            let other = &self.hosts[host].copy.map;
            if *other != copy {
                let differing: Vec<_> =
                    other.differing(&copy.digest()).into_iter().map(|e| e.0).collect();
                let why =
                    format!("{} and {} differ: {differing:?}", self.name(first), self.name(host));
                return self.fail(&why);
            }
        }
        for (key, acknowledged) in &self.written.acknowledged {
            let writer = &self.hosts[self.by_id[&acknowledged.stamp.writer]];
            let on_disk = writer.copy.disk.entry(key);
            if writer.life == Life::Dead && on_disk.is_some_and(|e| e.stamp >= acknowledged.stamp) {
                continue; // It may have been killed before others heard of it, and brings it along.
            }
            let found = copy.entry(key);
            let last = found.is_some_and(|found| found.stamp >= acknowledged.stamp);
            let begun =
                found.and_then(|it| self.written.begun.get(&(key.clone(), it.stamp.clone())));
            if !last || found != begun {
                let why =
                    format!("of {key} {acknowledged:?} was acknowledged and {found:?} is there");
                return self.fail(&why);
            }
        }
    }
}
