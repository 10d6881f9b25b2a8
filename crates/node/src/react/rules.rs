//! Whether a reaction may call now, and what of the cluster has changed. Pure: times are arguments.
//!
//! Nobody tells which process ended because of which call, so the loop guard goes by time. An event that
//! falls into a call of the same reaction, or shortly behind it, may have been caused by it, and is one
//! deeper than that call was. A chain that gets too deep is taken for a loop, and the reaction rests.
//! A storm of events looks the same, and rests as well: that is what a guard is for.

use std::collections::{BTreeMap, VecDeque};

use kumo_abi::HostId;
use kumo_abi::call::ServiceName;
use kumo_abi::cluster::HostState;

/// Calls that may come at once before the rate counts: as many as two seconds of the rate.
const BURST_S: u64 = 2;

/// Calls of one reaction that are under way at once. More would be a queue that nobody sees.
pub(crate) const CALLS_AT_ONCE_MAX: usize = 16;

/// So long behind the end of a call an event may have been caused by it: a process that was started by
/// it and ends at once has ended by then.
const SHADOW_NS: u64 = 200_000_000;

/// A reaction that went in circles rests for so long: people notice, and what it calls recovers.
const REST_NS: u64 = 10_000_000_000;

/// Ended calls that are remembered for the loop guard.
const CALLS_REMEMBERED_MAX: usize = 64;

/// A host that is seen for the first time has come only if this node has been there for longer: before,
/// it is this node that has come, and learns who is there.
pub(crate) const SETTLED_NS: u64 = 10_000_000_000;

/// Services of which it is remembered how many there were. Beyond it new ones are not watched.
const SERVICES_MAX: usize = 4_096;

/// What becomes of an event that fulfils the condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is called.
    Call {
        /// Which call, for [`Gate::ended`].
        number: u64,
        /// How many calls of the same reaction may have led to it.
        depth: u8,
        /// How many events were dropped since the last call.
        dropped: u64,
    },
    /// It is not.
    Drop {
        /// Why.
        why: Why,
        /// Whether the events before it were not dropped, or for another reason.
        first: bool,
    },
}

/// Why an event is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// There are too many calls a second.
    Rate,
    /// Too many calls are under way.
    Busy,
    /// Its own calls seem to cause it.
    Loop,
}

impl Why {
    /// As journals have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Why::Rate => "RATE",
            Why::Busy => "BUSY",
            Why::Loop => "LOOP",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Call {
    number: u64,
    depth: u8,
    began_ns: u64,
    ended_ns: Option<u64>,
}

/// What a reaction remembers of its calls on this host.
#[derive(Debug)]
pub(crate) struct Gate {
    rate: u64,
    depth_max: u8,
    /// What is left to call, in billionths of a call.
    tokens: u64,
    filled_ns: u64,
    calls: VecDeque<Call>,
    running: usize,
    last: u64,
    rests_until_ns: u64,
    dropping: Option<Why>,
    dropped: u64,
}

/// One call, in the unit of tokens.
const TOKEN: u64 = 1_000_000_000;

impl Gate {
    /// That of a reaction with these limits.
    pub(crate) fn new(calls_per_s: u32, depth_max: u8, now_ns: u64) -> Gate {
        let rate = u64::from(calls_per_s);
        Gate {
            rate,
            depth_max,
            tokens: rate * BURST_S * TOKEN,
            filled_ns: now_ns,
            calls: VecDeque::new(),
            running: 0,
            last: 0,
            rests_until_ns: 0,
            dropping: None,
            dropped: 0,
        }
    }

    /// How many calls are under way.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// Decides on an event of `at_ns` that fulfils the condition. A call has begun when this says so.
    pub(crate) fn ask(&mut self, now_ns: u64, at_ns: u64) -> Verdict {
        let added = now_ns.saturating_sub(self.filled_ns).saturating_mul(self.rate);
        self.tokens = self.tokens.saturating_add(added).min(self.rate * BURST_S * TOKEN);
        self.filled_ns = self.filled_ns.max(now_ns);
        let depth = self.depth(at_ns);
        let why = if now_ns < self.rests_until_ns {
            Some(Why::Loop)
        } else if depth > self.depth_max {
            self.rests_until_ns = now_ns + REST_NS;
            Some(Why::Loop)
        } else if self.tokens < TOKEN {
            Some(Why::Rate)
        } else if self.running == CALLS_AT_ONCE_MAX {
            Some(Why::Busy)
        } else {
            None
        };
        if let Some(why) = why {
            let first = self.dropping != Some(why);
            self.dropping = Some(why);
            self.dropped += 1;
            return Verdict::Drop { why, first };
        }
        self.tokens -= TOKEN;
        self.last += 1;
        self.running += 1;
        let call = Call { number: self.last, depth, began_ns: now_ns, ended_ns: None };
        self.calls.push_back(call);
        if self.calls.len() > CALLS_REMEMBERED_MAX
            && let Some(oldest) = self.calls.iter().position(|call| call.ended_ns.is_some())
        {
            self.calls.remove(oldest);
        }
        self.dropping = None;
        let dropped = std::mem::take(&mut self.dropped);
        Verdict::Call { number: self.last, depth, dropped }
    }

    /// A call has ended.
    pub(crate) fn ended(&mut self, number: u64, now_ns: u64) {
        let call = self.calls.iter_mut().find(|call| call.number == number);
        if let Some(call) = call.filter(|call| call.ended_ns.is_none()) {
            call.ended_ns = Some(now_ns);
            self.running -= 1;
        }
    }

    /// How many calls may have led to an event, one after the other.
    fn depth(&self, at_ns: u64) -> u8 {
        let may_cause = |call: &&Call| {
            let end_ns = call.ended_ns.map_or(u64::MAX, |end_ns| end_ns.saturating_add(SHADOW_NS));
            (call.began_ns..=end_ns).contains(&at_ns)
        };
        let deepest = self.calls.iter().filter(may_cause).map(|call| call.depth).max();
        deepest.map_or(0, |depth| depth.saturating_add(1))
    }
}

/// What was last known of hosts: only what changes is an event.
#[derive(Debug, Default)]
pub(crate) struct Hosts(BTreeMap<HostId, HostState>);

impl Hosts {
    /// Those that are there, and no event.
    pub(crate) fn start(&mut self, hosts: impl Iterator<Item = (HostId, HostState)>) {
        self.0.extend(hosts);
    }

    /// Whether it is an event that a host is in this state now. `age_ns` is for how long this node has
    /// been there.
    pub(crate) fn changes(&mut self, host: &HostId, state: HostState, age_ns: u64) -> bool {
        match self.0.insert(host.clone(), state) {
            Some(before) => before != state,
            None => age_ns >= SETTLED_NS,
        }
    }
}

/// What is known of a service on all hosts.
#[expect(clippy::struct_field_names, reason = "these are the names of the columns")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) ready: u32,
    pub(crate) ready_before: u32,
    pub(crate) asleep: u32,
    pub(crate) hosts: u32,
    pub(crate) load_percent: u32,
}

/// Services as they were looked at last.
#[derive(Debug, Default)]
pub(crate) struct Services(BTreeMap<ServiceName, Load>);

impl Services {
    /// Takes in a look; all services with what was before. One that is gone has nobody ready.
    pub(crate) fn look(
        &mut self,
        now: &BTreeMap<ServiceName, Load>,
    ) -> &BTreeMap<ServiceName, Load> {
        for (service, known) in &mut self.0 {
            let load = now.get(service).copied().unwrap_or_default();
            *known = Load { ready_before: known.ready, ..load };
        }
        for (service, load) in now {
            if self.0.len() < SERVICES_MAX && !self.0.contains_key(service) {
                self.0.insert(service.clone(), *load);
            }
        }
        &self.0
    }
}

/// For which services a condition held at the last look: that it begins to hold is the event.
#[derive(Debug, Default)]
pub(crate) struct Held {
    looked: bool,
    holds: BTreeMap<ServiceName, bool>,
}

impl Held {
    /// Those for which it holds now and did not before. At the first look nothing is known of before.
    pub(crate) fn look<'a>(
        &mut self,
        now: impl Iterator<Item = (&'a ServiceName, bool)>,
    ) -> Vec<ServiceName> {
        let mut begin = Vec::new();
        for (service, holds) in now {
            let before = self.holds.insert(service.clone(), holds);
            if holds && self.looked && before != Some(true) {
                begin.push(service.clone());
            }
        }
        self.looked = true;
        begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const S: u64 = 1_000 * MS;

    fn gate(calls_per_s: u32, depth_max: u8) -> Gate {
        Gate::new(calls_per_s, depth_max, 0)
    }

    fn calls(gate: &mut Gate, now_ns: u64) -> Option<(u64, u8)> {
        match gate.ask(now_ns, now_ns) {
            Verdict::Call { number, depth, .. } => Some((number, depth)),
            Verdict::Drop { .. } => None,
        }
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_counts() {
        let mut gate = gate(2, 255);
        for at in 0..4 {
            let (number, _) = calls(&mut gate, at).expect("within the burst");
            gate.ended(number, at);
        }
        assert_eq!(gate.ask(5, 5), Verdict::Drop { why: Why::Rate, first: true });
        assert_eq!(gate.ask(6, 6), Verdict::Drop { why: Why::Rate, first: false });
        let Verdict::Call { dropped, .. } = gate.ask(S, S) else { panic!("a second has passed") };
        assert_eq!(dropped, 2, "what was dropped is told once");
        assert!(calls(&mut gate, S + 1).is_some());
        assert!(calls(&mut gate, S + 2).is_none(), "two a second");
    }

    #[test]
    fn calls_at_once_are_bounded() {
        let mut gate = gate(100, 255);
        // Events of before the first call: none was caused by it.
        let numbers: Vec<u64> = (0..CALLS_AT_ONCE_MAX)
            .map(|_| match gate.ask(S, 0) {
                Verdict::Call { number, depth: 0, .. } => number,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(gate.ask(S, 0), Verdict::Drop { why: Why::Busy, first: true });
        gate.ended(numbers[3], S);
        gate.ended(numbers[3], S);
        assert_eq!(gate.running(), CALLS_AT_ONCE_MAX - 1, "an end counts once");
        assert!(matches!(gate.ask(S, 0), Verdict::Call { .. }));
    }

    #[test]
    fn a_reaction_that_causes_itself_rests() {
        let mut gate = gate(100, 3);
        let mut now_ns = 0;
        for want in 0..=3 {
            let (number, depth) = calls(&mut gate, now_ns).expect("not yet too deep");
            assert_eq!(depth, want);
            gate.ended(number, now_ns + 10 * MS);
            now_ns += 20 * MS;
        }
        assert_eq!(gate.ask(now_ns, now_ns), Verdict::Drop { why: Why::Loop, first: true });
        let later = now_ns + 5 * S;
        assert_eq!(gate.ask(later, later), Verdict::Drop { why: Why::Loop, first: false });
        assert_eq!(calls(&mut gate, now_ns + REST_NS).map(|(_, depth)| depth), Some(0));
    }

    #[test]
    fn what_comes_later_or_before_was_not_caused() {
        let mut gate = gate(100, 0);
        for at in 0..50 {
            let at_ns = at * (SHADOW_NS + 2 * MS);
            let (number, depth) = calls(&mut gate, at_ns).expect("each by itself");
            assert_eq!(depth, 0);
            gate.ended(number, at_ns + MS);
        }
        assert!(gate.calls.len() <= CALLS_REMEMBERED_MAX);
    }

    #[test]
    fn a_host_that_was_there_is_no_event() {
        let id = |text: &str| -> HostId { text.parse().expect("a host") };
        let (a, b, c) = (id("tokyo/a"), id("tokyo/b"), id("tokyo/c"));
        let mut hosts = Hosts::default();
        hosts.start([(a.clone(), HostState::Alive)].into_iter());
        assert!(!hosts.changes(&a, HostState::Alive, 0));
        assert!(hosts.changes(&a, HostState::Dead, 1));
        assert!(!hosts.changes(&a, HostState::Dead, 2), "told again");
        assert!(!hosts.changes(&b, HostState::Alive, 3), "this node has just come itself");
        assert!(hosts.changes(&c, HostState::Alive, SETTLED_NS));
    }

    #[test]
    fn a_service_that_goes_is_remembered() {
        let kv: ServiceName = "kv".parse().expect("a service");
        let of = |ready| {
            let load = Load { ready, ready_before: ready, hosts: 1, ..Load::default() };
            BTreeMap::from([(kv.clone(), load)])
        };
        let mut services = Services::default();
        services.look(&of(2));
        assert_eq!(services.look(&of(1))[&kv].ready_before, 2);
        let gone = services.look(&BTreeMap::new())[&kv];
        assert_eq!((gone.ready, gone.ready_before, gone.hosts), (0, 1, 0));
        assert_eq!(services.look(&of(3))[&kv].ready_before, 0);
    }

    #[test]
    fn a_condition_that_begins_to_hold_is_an_event_once() {
        let kv: ServiceName = "kv".parse().expect("a service");
        let mut held = Held::default();
        let mut look = |holds| held.look([(&kv, holds)].into_iter()).len();
        let counts = [look(true), look(true), look(false), look(true), look(true)];
        assert_eq!(counts, [0, 0, 0, 1, 0]);
    }
}
