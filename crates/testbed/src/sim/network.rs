//! The network of a simulated world: links that carry messages in order, and the tokens on them.
//!
//! It behaves as the fabric's does where that matters to the rules: a killed process's links are ended
//! by its kernel at once, everything else is noticed after a lease; bytes that were sent into a broken
//! link arrive when it works again in time; a token is known through each gateway that tells of it, and
//! vanishes with the last.

use std::collections::BTreeSet;

use kumo_abi::cluster::Role;
use kumo_fabric::members::Seen;

use super::desired::News;
use super::{Event, Life, Nth, World};

/// So long a link may be silent before an end gives it up. Ends send signs of life four times in a
/// lease, so the silence began up to a quarter earlier than they can know.
pub(super) const LEASE_MS: u64 = 1_150;

/// Which start of which host a token is of.
pub(super) type Token = (Nth, u64);

/// One link, of two gateways or of a member (`ends[0]`) to a gateway.
#[derive(Debug)]
pub(super) struct Link {
    pub ends: [Nth; 2],
    /// Whether each end holds it.
    pub up: [bool; 2],
    /// Whether bytes pass.
    pub works: bool,
    /// When they last ceased to.
    broken_ms: u64,
    /// What was sent meanwhile, and to which end.
    waiting: Vec<(usize, Payload)>,
    /// Nothing arrives at each end before this: bytes do not overtake each other.
    arrived_ms: [u64; 2],
}

/// How an end learns that its link is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Nothing was heard for a lease, since it broke at this time.
    Silent(u64),
    /// The same, whatever happened to the link since.
    Lost,
    /// The kernel at the other end ended it.
    Ended,
    /// The process at the other end closed it, and said so.
    Closed,
}

/// What a link carries.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    /// The sender tells of a token, or that it no longer does.
    Token(Token, bool),
    /// All tokens that the sender tells of.
    Tokens(Vec<Token>),
    /// A gateway's kernel ended its connections.
    Ended(Token),
    /// A node leaves.
    Bye(Token),
    /// Of the desired state.
    News(News),
}

impl World {
    /// Whether packets pass between two hosts.
    pub(super) fn path(&self, a: Nth, b: Nth) -> bool {
        let (a, b) = (&self.hosts[a], &self.hosts[b]);
        !a.unplugged && !b.unplugged && (a.dc == b.dc || (!self.cut[a.dc] && !self.cut[b.dc]))
    }

    fn works(&self, a: Nth, b: Nth) -> bool {
        let running = |host: Nth| self.hosts[host].life == Life::Running;
        running(a) && running(b) && self.path(a, b)
    }

    /// One way between two hosts, in milliseconds.
    pub(super) fn delay_ms(&self, a: Nth, b: Nth) -> u64 {
        self.delays_ms[self.hosts[a].dc][self.hosts[b].dc]
    }

    /// Finds out which links a fault has broken or a repair has mended.
    pub(super) fn look_at_links(&mut self) {
        self.live.retain(|nth| self.links[*nth].up != [false, false]);
        for nth in self.live.clone() {
            let [a, b] = self.links[nth].ends;
            let (works, now_ms) = (self.works(a, b), self.now_ms);
            let link = &mut self.links[nth];
            if works && !link.works && link.up == [true, true] {
                link.works = true;
                for (to, payload) in std::mem::take(&mut link.waiting) {
                    self.carry(nth, to, payload);
                }
            } else if !works && link.works {
                (link.works, link.broken_ms) = (false, now_ms);
                for end in 0..2 {
                    let at_ms = now_ms + self.dice.within(LEASE_MS * 3 / 4..=LEASE_MS);
                    self.at(at_ms, Event::Gone { link: nth, end, how: How::Silent(now_ms) });
                }
            }
        }
    }

    /// Sends over a link.
    pub(super) fn send(&mut self, nth: usize, from: Nth, payload: Payload) {
        let link = &mut self.links[nth];
        let end = usize::from(link.ends[1] == from);
        if !link.up[end] {
        } else if link.works {
            self.carry(nth, 1 - end, payload);
        } else {
            link.waiting.push((1 - end, payload));
        }
    }

    fn carry(&mut self, nth: usize, to: usize, payload: Payload) {
        let [a, b] = self.links[nth].ends;
        let at_ms = self.now_ms + self.delay_ms(a, b) + self.dice.within(0..=3);
        let arrived_ms = &mut self.links[nth].arrived_ms[to];
        *arrived_ms = at_ms.max(*arrived_ms);
        let at_ms = *arrived_ms;
        self.at(at_ms, Event::Arrives { link: nth, to, payload });
    }

    pub(super) fn arrives(&mut self, nth: usize, to: usize, payload: Payload) {
        let link = &mut self.links[nth];
        if !link.up[to] {
            return;
        }
        let (host, from) = (link.ends[to], link.ends[1 - to]);
        // What somebody said before it ended arrives before the end does.
        let last_words = !link.up[1 - to];
        if !link.works && !last_words {
            link.waiting.push((to, payload));
            return;
        }
        if last_words && !self.path(host, from) {
            return;
        }
        // Members do not tell of tokens, and have one link only.
        let is_between_gateways = host.max(from) < self.gateways;
        let through = if is_between_gateways { 1 << from } else { 1 };
        match payload {
            Payload::Token(token, there) => self.tell(host, token, through, there),
            Payload::Tokens(tokens) => {
                let tokens: BTreeSet<Token> = tokens.into_iter().collect();
                let known = self.hosts[host].tokens.iter();
                let stale =
                    known.filter(|(token, by)| *by & through != 0 && !tokens.contains(token));
                for token in stale.map(|(token, _)| *token).collect::<Vec<_>>() {
                    self.tell(host, token, through, false);
                }
                for token in tokens {
                    self.tell(host, token, through, true);
                }
            }
            Payload::Ended(token) => self.relay(host, from, token, &Payload::Ended(token)),
            Payload::Bye(token) => self.relay(host, from, token, &Payload::Bye(token)),
            Payload::News(news) => self.news(nth, host, from, news),
        }
    }

    /// Takes in what concerns all, and passes it on to those who have it from nobody else.
    fn relay(&mut self, host: Nth, from: Nth, (whose, incarnation): Token, payload: &Payload) {
        let id = self.hosts[whose].id.clone();
        let seen = match payload {
            Payload::Bye(_) => Seen::Bye { host: id, incarnation },
            _ => Seen::Ended { host: id, incarnation },
        };
        self.see(host, whose, seen);
        self.pass_on(host, from, payload);
    }

    /// From a gateway to its members, and to other gateways what does not come from one.
    pub(super) fn pass_on(&mut self, host: Nth, from: Nth, payload: &Payload) {
        if self.hosts[host].role == Role::Member {
            return;
        }
        for nth in self.links_of(host) {
            let [a, b] = self.links[nth].ends;
            let other = if a == host { b } else { a };
            let is_new_to = |role| role == Role::Member || self.hosts[from].role == Role::Member;
            if other != from && (is_new_to(self.hosts[other].role) || from == host) {
                self.send(nth, host, payload.clone());
            }
        }
    }

    /// The links that `host` holds.
    pub(super) fn links_of(&self, host: Nth) -> Vec<usize> {
        let links = &self.hosts[host].links;
        links.iter().copied().filter(|nth| self.holds(*nth, host)).collect()
    }

    fn holds(&self, nth: usize, host: Nth) -> bool {
        let link = &self.links[nth];
        link.up[usize::from(link.ends[1] == host)]
    }

    /// `host` hears of a token `through` somebody, or no longer does.
    fn tell(&mut self, host: Nth, token: Token, through: u64, there: bool) {
        let tokens = &mut self.hosts[host].tokens;
        let before = tokens.get(&token).copied().unwrap_or(0);
        let after = if there { before | through } else { before & !through };
        if after == 0 {
            tokens.remove(&token)
        } else {
            tokens.insert(token, after)
        };
        if (before == 0) == (after == 0) {
            return;
        }
        let whose = &self.hosts[token.0];
        let (id, incarnation) = (whose.id.clone(), token.1);
        let seen = if there {
            Seen::Up { host: id, role: whose.role, incarnation }
        } else {
            Seen::Down { host: id, incarnation }
        };
        self.see(host, token.0, seen);
        if self.hosts[host].role == Role::Gateway {
            for nth in self.links_of(host) {
                let member = self.links[nth].ends[0];
                if self.hosts[member].view.is_some() && self.hosts[member].role == Role::Member {
                    self.send(nth, host, Payload::Token(token, there));
                }
            }
        }
    }

    /// An end learns that its link is gone.
    pub(super) fn gone(&mut self, nth: usize, end: usize, how: How) {
        let link = &self.links[nth];
        let [host, peer] = [link.ends[end], link.ends[1 - end]];
        let outlived = matches!(how, How::Silent(at_ms) if link.works || at_ms != link.broken_ms);
        if !link.up[end] || outlived || self.hosts[host].life == Life::Dead {
            return;
        }
        if matches!(how, How::Ended | How::Closed) && !self.path(host, peer) {
            // The packet that says so was lost.
            let at_ms = self.now_ms + self.dice.within(LEASE_MS * 3 / 4..=LEASE_MS);
            self.at(at_ms, Event::Gone { link: nth, end, how: How::Lost });
            return;
        }
        self.note(|world| {
            format!("{} gives up its link to {}: {how:?}", world.name(host), world.name(peer))
        });
        self.links[nth].up[end] = false;
        self.links[nth].works = false;
        if self.links[nth].up[1 - end] {
            let at_ms = self.now_ms + self.delay_ms(host, peer);
            self.at(at_ms, Event::Gone { link: nth, end: 1 - end, how: How::Closed });
        }
        self.hosts[host].links.retain(|held| *held != nth);
        let ended = (peer, self.hosts[peer].incarnation);
        let is_obituary = how == How::Ended;
        let again_ms = self.now_ms + self.dice.within(5..=100);
        if self.hosts[host].role == Role::Member {
            let tokens: Vec<Token> = self.hosts[host].tokens.keys().copied().collect();
            for token in tokens {
                self.tell(host, token, u64::MAX, false);
            }
            if is_obituary {
                self.relay(host, peer, ended, &Payload::Ended(ended));
            }
            self.at(again_ms, Event::Dials { host, to: None });
            return;
        }
        if self.hosts[peer].role == Role::Member {
            // It may have come back over a newer link.
            let back = self.hosts[host].links.iter().any(|held| self.links[*held].ends[0] == peer);
            if is_obituary && !back {
                self.relay(host, host, ended, &Payload::Ended(ended));
            }
            let known = self.hosts[host].tokens.keys().filter(|token| token.0 == peer);
            let stale: Vec<Token> = known.copied().filter(|_| !back).collect();
            for token in stale {
                self.tell_of_mine(host, token, false);
            }
            return;
        }
        if is_obituary {
            self.relay(host, host, ended, &Payload::Ended(ended));
        }
        let tokens: Vec<Token> = self.hosts[host].tokens.keys().copied().collect();
        for token in tokens {
            self.tell(host, token, 1 << peer, false);
        }
        self.at(again_ms, Event::Dials { host, to: Some(peer) });
    }

    /// A gateway tells all others of a token of its own or of one of its members.
    fn tell_of_mine(&mut self, gateway: Nth, token: Token, there: bool) {
        self.tell(gateway, token, 1 << gateway, there);
        for nth in self.links_of(gateway) {
            let [a, b] = self.links[nth].ends;
            let other = if a == gateway { b } else { a };
            if self.hosts[other].role == Role::Gateway {
                self.send(nth, gateway, Payload::Token(token, there));
            }
        }
    }

    /// `host` dials a gateway: `to`, or (a member) whichever of its data centre answers, else any.
    pub(super) fn dials(&mut self, host: Nth, to: Option<Nth>) {
        if self.hosts[host].life == Life::Dead {
            return;
        }
        let held = self.links_of(host);
        let has = |peer: Nth| held.iter().any(|nth| self.links[*nth].ends.contains(&peer));
        if to.map_or(!held.is_empty(), has) {
            return;
        }
        let target = to.filter(|to| self.works(host, *to)).or_else(|| {
            let gateways = (0..self.gateways).filter(|_| to.is_none());
            let reachable: Vec<Nth> = gateways.filter(|to| self.works(host, *to)).collect();
            let near = |to: &Nth| self.hosts[*to].dc == self.hosts[host].dc;
            let near: Vec<Nth> = reachable.iter().copied().filter(near).collect();
            self.dice.pick(if near.is_empty() { &reachable } else { &near })
        });
        if let Some(target) = target {
            return self.connect(host, target);
        }
        if let Some(to) = to.filter(|to| self.hosts[*to].life == Life::Dead && self.path(host, *to))
        {
            // Nothing listens there: that is an obituary too.
            let view = self.hosts[host].view.as_ref();
            let id = &self.hosts[to].id;
            if let Some(incarnation) = view.and_then(|view| view.members.may_have_ended(id)) {
                let ended = (to, incarnation);
                self.relay(host, host, ended, &Payload::Ended(ended));
            }
        }
        let again_ms = self.now_ms + self.dice.within(200..=1_000);
        self.at(again_ms, Event::Dials { host, to });
    }

    fn connect(&mut self, host: Nth, gateway: Nth) {
        // What either end still holds of an earlier link is replaced.
        for nth in self.links_of(gateway) {
            if self.links[nth].ends.contains(&host) {
                self.links[nth].up = [false, false];
            }
        }
        let nth = self.links.len();
        self.links.push(Link {
            ends: [host, gateway],
            up: [true, true],
            works: true,
            broken_ms: 0,
            waiting: Vec::new(),
            arrived_ms: [0, 0],
        });
        self.live.push(nth);
        for end in [host, gateway] {
            self.hosts[end].links.retain(|held| self.links[*held].up != [false, false]);
            self.hosts[end].links.push(nth);
        }
        self.note(|world| format!("{} is linked to {}", world.name(host), world.name(gateway)));
        if self.hosts[host].role == Role::Member {
            self.hosts[host].away = self.hosts[host].dc != self.hosts[gateway].dc;
            let token = (host, self.hosts[host].incarnation);
            let stale =
                self.hosts[gateway].tokens.keys().find(|known| known.0 == host && **known != token);
            if let Some(stale) = stale.copied() {
                self.tell_of_mine(gateway, stale, false);
            }
            self.tell_of_mine(gateway, token, true);
            if self.hosts[host].view.is_some() {
                let tokens = self.hosts[gateway].tokens.keys().copied().collect();
                self.send(nth, gateway, Payload::Tokens(tokens));
            }
        } else {
            for end in [host, gateway] {
                let tokens = self.hosts[end].tokens.iter();
                let mine = tokens.filter(|(_, by)| *by & (1 << end) != 0).map(|(token, _)| *token);
                let mine = mine.collect();
                self.send(nth, end, Payload::Tokens(mine));
            }
        }
        self.compare(nth, host);
    }

    /// A host's process begins: its own token, and its dials.
    pub(super) fn joins(&mut self, host: Nth) {
        let token = (host, self.hosts[host].incarnation);
        if self.hosts[host].role == Role::Gateway {
            self.tell(host, token, 1 << host, true);
            for to in (0..self.gateways).filter(|to| *to != host) {
                let at_ms = self.now_ms + self.dice.within(1..=50);
                self.at(at_ms, Event::Dials { host, to: Some(to) });
            }
        } else {
            let id = self.hosts[host].id.clone();
            let role = Role::Member;
            self.see(host, host, Seen::Up { host: id, role, incarnation: token.1 });
            let at_ms = self.now_ms + self.dice.within(1..=100);
            self.at(at_ms, Event::Dials { host, to: None });
        }
    }

    /// A host's process has ended, and its kernel ends its links.
    pub(super) fn ends(&mut self, host: Nth, said_so: bool) {
        for nth in self.links_of(host) {
            let link = &mut self.links[nth];
            let end = usize::from(link.ends[1] == host);
            let peer = link.ends[1 - end];
            link.up[end] = false;
            link.works = false;
            if link.up[1 - end] {
                let how = if said_so { How::Closed } else { How::Ended };
                let said_ms = link.arrived_ms[1 - end];
                let at_ms = self.now_ms + self.delay_ms(host, peer) + self.dice.within(0..=5);
                self.at(at_ms.max(said_ms), Event::Gone { link: nth, end: 1 - end, how });
            }
        }
        self.hosts[host].links.clear();
        self.hosts[host].tokens.clear();
    }
}
