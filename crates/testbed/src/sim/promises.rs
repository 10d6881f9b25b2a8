//! What is promised of membership, checked against what is true.

use kumo_abi::HostId;
use kumo_abi::cluster::HostState;
use kumo_fabric::members::Change;
use kumo_fabric::rendezvous;

use super::{Event, Life, Nth, World};

/// A killed host is shown dead within this, network delays apart.
const KILLED_MS: u64 = 100;

/// The same when a gateway was killed in the same moment.
const KILLED_WITH_GATEWAY_MS: u64 = 500;

/// A frozen host, or one that lost its network.
const FROZEN_MS: u64 = 1_500;

/// A data centre that is cut off. Also how long it takes until nothing is left of what befell a gateway.
const CUT_OFF_MS: u64 = 2_000;

/// Links are made anew within this, where they can be.
const LINKS_MADE_MS: u64 = 1_300;

/// Something that befell gateways of a data centre, and may hide what happened elsewhere meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disturbance {
    pub at_ms: u64,
    pub dc: usize,
    /// A gateway was killed, and nothing worse.
    pub is_kill: bool,
    /// It is where trouble begins; else where it ends.
    pub begins: bool,
}

impl World {
    pub(super) fn disturb(&mut self, dc: usize, is_kill: bool, begins: bool) {
        self.disturbances.push(Disturbance { at_ms: self.now_ms, dc, is_kill, begins });
    }

    fn is_well(&self, host: Nth) -> bool {
        self.hosts[host].life == Life::Running && !self.hosts[host].unplugged
    }

    /// By when `observer` must not show `host` alive any more; `None` when it may.
    fn overdue_ms(&self, observer: Nth, host: Nth) -> Option<u64> {
        let (o, h) = (&self.hosts[observer], &self.hosts[host]);
        let (since_ms, promised_ms) = if !self.is_well(host) {
            // Nobody sees how a host ends that has no network.
            let seen = h.life == Life::Dead && !h.unplugged;
            (h.changed_ms, if seen { KILLED_MS } else { FROZEN_MS })
        } else if !self.path(observer, host) {
            let cut_ms = |dc: usize| self.cut[dc].then_some(self.cut_ms[dc]);
            (cut_ms(o.dc).max(cut_ms(h.dc))?, CUT_OFF_MS)
        } else {
            return None;
        };
        // To the gateway, between gateways, to the observer; and a little for the machine.
        let far_ms = self.delays_ms.iter().flatten().max().copied().unwrap_or(0);
        let delay_ms = if o.away || h.away { far_ms } else { self.delays_ms[o.dc][h.dc] };
        let delays_ms = 3 * delay_ms + 20;
        let mut limit_ms = since_ms + promised_ms;
        let matters = |d: &&Disturbance| {
            let is_near = d.dc == o.dc || d.dc == h.dc || self.away;
            is_near && d.at_ms + CUT_OFF_MS + 500 >= since_ms
        };
        let disturbances: Vec<&Disturbance> = self.disturbances.iter().filter(matters).collect();
        for disturbance in &disturbances {
            // Of two gateways that are killed at once, nobody may have heard who ended the second.
            let is_one_kill = disturbance.is_kill && disturbances.len() == 1;
            let allowed_ms = if is_one_kill { KILLED_WITH_GATEWAY_MS } else { CUT_OFF_MS + 500 };
            limit_ms = limit_ms.max(disturbance.at_ms.max(since_ms) + allowed_ms);
        }
        if !self.path(observer, host) {
            limit_ms = limit_ms.max(self.cut_ms[o.dc].max(self.cut_ms[h.dc]) + CUT_OFF_MS);
        }
        if o.changed_ms + CUT_OFF_MS >= since_ms {
            limit_ms = limit_ms.max(o.changed_ms.max(since_ms) + CUT_OFF_MS + 500);
        }
        Some(limit_ms + delays_ms)
    }

    /// Looks whether anyone shows `host` alive for too long, and when to look again.
    pub(super) fn look_for_overdue(&mut self, host: Nth) {
        let mut again_ms: Option<u64> = None;
        for observer in self.observers.clone() {
            if observer == host || !self.is_well(observer) {
                continue;
            }
            let id = &self.hosts[host].id;
            let view = self.hosts[observer].view.as_ref();
            let shown = view.and_then(|view| view.members.find(id)).map(|member| member.state);
            if shown != Some(HostState::Alive) {
                continue;
            }
            let Some(limit_ms) = self.overdue_ms(observer, host) else { continue };
            if limit_ms >= self.now_ms {
                again_ms = Some(again_ms.map_or(limit_ms, |ms| ms.min(limit_ms)));
                continue;
            }
            let why = format!(
                "{} shows {} alive, and should not since {limit_ms} ms",
                self.name(observer),
                self.name(host)
            );
            return self.fail(&why);
        }
        if let Some(at_ms) = again_ms {
            self.at(at_ms + 1, Event::Overdue(host));
        }
    }

    /// Looks at what an observer says has changed.
    pub(super) fn check_change(&mut self, observer: Nth, change: &Change) {
        let host = self.by_id[&change.host];
        self.note(|world| {
            format!("{}: {} is {}", world.name(observer), change.host, change.state.name())
        });
        // A little of what has befallen a host may still be on its way.
        let settled_ms = self.now_ms.saturating_sub(CUT_OFF_MS + 500);
        let (o, h) = (&self.hosts[observer], &self.hosts[host]);
        let lives = self.is_well(host) && h.changed_ms < settled_ms;
        // Of a host behind a gateway of another data centre its own one's gateways say nothing.
        let lives = lives && !h.away && !o.away;
        // Who was frozen or without a network finds all others gone, and may be wrong for a second.
        let lives = lives && o.changed_ms < settled_ms;
        // One fault of gateways at a time is promised to kill nobody; a second one hides whether hosts
        // have overcome the first.
        let matters =
            |d: &&Disturbance| d.begins && d.at_ms >= settled_ms && (d.dc == o.dc || d.dc == h.dc);
        let lives = lives && self.disturbances.iter().filter(matters).count() < 2;
        // After trouble links are made anew one by one, and here tokens take no way around.
        let is_near = |d: &Disturbance| d.dc == o.dc || d.dc == h.dc;
        let is_linking = |d: &Disturbance| {
            let until_ms = d.at_ms + LINKS_MADE_MS;
            let is_hindered =
                |b: &Disturbance| b.begins && is_near(b) && (d.at_ms..=until_ms).contains(&b.at_ms);
            let is_hindered = self.disturbances.iter().any(is_hindered);
            !d.begins
                && is_near(d)
                && (self.now_ms <= until_ms || is_hindered && d.at_ms >= settled_ms)
        };
        let lives = lives && !self.disturbances.iter().any(is_linking);
        match change.state {
            HostState::Dead if lives => {
                let why =
                    format!("{} shows {} dead, and it lives", self.name(observer), change.host);
                self.fail(&why);
            }
            HostState::CutOff if lives && self.is_well(observer) && o.changed_ms < settled_ms => {
                let quiet = !self.disturbances.iter().any(|d| d.at_ms >= settled_ms);
                if quiet && self.path(observer, host) {
                    let why = format!(
                        "{} shows {} cut off, and nothing is",
                        self.name(observer),
                        change.host
                    );
                    self.fail(&why);
                }
            }
            _ => {}
        }
    }

    /// What each observer shows as alive.
    fn alive(&self, observer: Nth) -> Vec<&HostId> {
        let members = self.hosts[observer].view.iter().flat_map(|view| view.members.iter());
        members.filter(|(_, member)| member.state == HostState::Alive).map(|(id, _)| id).collect()
    }

    /// That all views are true, when the world has been healed for long enough.
    pub(super) fn check_views(&mut self) {
        let truth: Vec<Nth> = (0..self.hosts.len()).filter(|host| self.is_well(*host)).collect();
        let mut truth: Vec<&HostId> = truth.into_iter().map(|host| &self.hosts[host].id).collect();
        truth.sort();
        for observer in self.observers.clone() {
            if !self.is_well(observer) {
                continue;
            }
            let alive = self.alive(observer);
            if alive != truth {
                let missing: Vec<_> =
                    truth.iter().filter(|id| !alive.contains(id)).take(5).collect();
                let extra: Vec<_> = alive.iter().filter(|id| !truth.contains(id)).take(5).collect();
                let why = format!(
                    "{} does not show {missing:?} as alive, and shows {extra:?}",
                    self.name(observer)
                );
                return self.fail(&why);
            }
            // What is dead and can be known to be so is not called cut off.
            let members = self.hosts[observer].view.iter().flat_map(|view| view.members.iter());
            let has_gateway = |id: &HostId| {
                (0..self.gateways).any(|g| self.hosts[g].id.dc == id.dc && self.is_well(g))
            };
            let is_wrong =
                |state, id| self.is_late && state == HostState::CutOff && has_gateway(id);
            let wrong: Vec<HostId> = members
                .filter(|(id, member)| is_wrong(member.state, id))
                .map(|(id, _)| id.clone())
                .collect();
            if let Some(id) = wrong.first() {
                return self.fail(&format!("{} still shows {id} as cut off", self.name(observer)));
            }
        }
    }

    /// That observers who see the same hosts hold the same one responsible, at any time.
    pub(super) fn check_rendezvous(&mut self) {
        let observers: Vec<Nth> =
            self.observers.iter().copied().filter(|host| self.is_well(*host)).collect();
        for pair in observers.windows(2) {
            let (left, right) = (self.alive(pair[0]), self.alive(pair[1]));
            if left != right {
                continue;
            }
            for service in ["web", "queue", "index"] {
                let first = rendezvous::first(service, left.iter().copied());
                if first != rendezvous::first(service, right.iter().rev().copied()) {
                    return self.fail(&format!("{pair:?} disagree about {service}"));
                }
            }
        }
    }
}
