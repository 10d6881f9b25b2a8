//! What happens next to a world, from a seed. Pure.

use std::fmt;

use crate::sim::Dice;

/// Whom a fault is done to, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A program that serves.
    Server(usize),
    /// A program that calls.
    Client(usize),
    /// The node of a host.
    Node(usize),
    /// The cable of a host.
    Host(usize),
    /// The cable of a data centre.
    Dc(usize),
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// `kill -9`; started anew later.
    Kill,
    /// Asked to end in the regular way; started anew later.
    Drain,
    /// Stopped, and let go on later.
    Freeze,
    /// Unplugged, and plugged in later.
    Unplug,
    /// All that it sends or is sent is lost, until later.
    Swallow,
}

impl Deed {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Deed::Kill => "kill -9",
            Deed::Drain => "drain",
            Deed::Freeze => "freeze",
            Deed::Unplug => "unplug",
            Deed::Swallow => "black hole",
        }
    }
}

impl Target {
    /// What it is one of, for people.
    pub fn kind(self) -> &'static str {
        match self {
            Target::Server(_) => "a server",
            Target::Client(_) => "a client",
            Target::Node(_) => "a node",
            Target::Host(_) => "a host",
            Target::Dc(_) => "a data centre",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Target::Server(n)
        | Target::Client(n)
        | Target::Node(n)
        | Target::Host(n)
        | Target::Dc(n)) = self;
        write!(f, "{} ({n})", self.kind())
    }
}

/// A fault: it begins, and is mended after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// To whom.
    pub target: Target,
    /// What.
    pub deed: Deed,
    /// For how long.
    pub lasts_ms: u64,
    /// Time until the next fault begins.
    pub pause_ms: u64,
}

/// How many there are of whom faults are done to.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Programs that serve.
    pub servers: usize,
    /// Programs that call.
    pub clients: usize,
    /// Hosts, each with a node.
    pub hosts: usize,
    /// Data centres.
    pub dcs: usize,
    /// Whether packets can be lost here.
    pub can_lose: bool,
}

/// The next fault.
pub fn next(dice: &mut Dice, counts: &Counts) -> Fault {
    let one = |dice: &mut Dice, count: usize| dice.within(0..=count.max(1) as u64 - 1) as usize;
    let (target, deed) = match dice.within(0..=99) {
        0..=27 => (Target::Server(one(dice, counts.servers)), Deed::Kill),
        28..=35 => (Target::Server(one(dice, counts.servers)), Deed::Drain),
        36..=47 => (Target::Server(one(dice, counts.servers)), Deed::Freeze),
        48..=59 => (Target::Client(one(dice, counts.clients)), Deed::Kill),
        60..=65 => (Target::Client(one(dice, counts.clients)), Deed::Freeze),
        66..=75 => (Target::Node(one(dice, counts.hosts)), Deed::Kill),
        76..=81 => (Target::Node(one(dice, counts.hosts)), Deed::Freeze),
        // What cannot be lost is unplugged.
        88..=93 if counts.can_lose => (Target::Host(one(dice, counts.hosts)), Deed::Swallow),
        82..=93 => (Target::Host(one(dice, counts.hosts)), Deed::Unplug),
        _ => (Target::Dc(one(dice, counts.dcs)), Deed::Unplug),
    };
    let lasts_ms = match deed {
        // Started anew at once, or with others waiting for it.
        Deed::Kill | Deed::Drain => dice.within(0..=400),
        Deed::Freeze | Deed::Unplug | Deed::Swallow => dice.within(20..=1_500),
    };
    Fault { target, deed, lasts_ms, pause_ms: dice.within(10..=250) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_gives_one_story_and_everybody_has_a_part_in_it() {
        let counts = Counts { servers: 6, clients: 6, hosts: 3, dcs: 2, can_lose: true };
        let story = |seed| {
            let mut dice = Dice::new(seed);
            std::iter::repeat_with(move || next(&mut dice, &counts)).take(3_000)
        };
        assert!(story(1).eq(story(1)));
        assert!(!story(1).eq(story(2)));
        let parts: BTreeSet<(Target, Deed)> =
            story(1).map(|fault| (fault.target, fault.deed)).collect();
        // Three deeds of servers, two of clients and of nodes, of cables two and one.
        assert_eq!(parts.len(), 6 * 3 + 6 * 2 + 3 * 2 + 3 * 2 + 2);
        let none = Counts { servers: 0, clients: 0, hosts: 1, dcs: 1, can_lose: false };
        let mut dice = Dice::new(3);
        assert!((0..1_000).all(|_| next(&mut dice, &none).deed != Deed::Swallow));
    }
}
