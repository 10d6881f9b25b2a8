//! What groups of processes have used, as counters that never go backwards.
//!
//! Pure. The CPU time of a group is no sum over those who live: that shrinks when one of them ends. So
//! each look at the table adds what every process has used since the look before, and the end of a
//! process adds what it had used after it; one that began and ended in between is added whole. Counters
//! begin at 0 with the first look, not with what processes had used before: after a restart they would
//! jump.
//!
//! Only the groups that use most are shown. What the others use is added to one account, the *rest*,
//! in the moment in which it is used: so the rest never takes back what it told when a group begins to
//! be shown, and the sum of all rates is whole at any time.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use kumo_abi::{ProcessId, TICK_NS};

/// Most groups that are remembered beside those of living processes: those that have lately used most.
/// Whoever gives each of a million processes a name of its own fills no more than this.
const ENDED_GROUPS_MAX: usize = 1_024;

/// Most groups in all. More groups than this have no living processes on any host we know; what is above
/// goes to the rest.
const GROUPS_MAX: usize = 65_536;

/// After this while what a group has used counts half when groups are compared: a short burst does not
/// push aside who works steadily, and a group that stopped makes room within minutes.
const HALF_LIFE_S: f64 = 300.0;

/// A group of ended processes is forgotten when it has lately used less than this.
const USE_MIN_S: f64 = 0.01;

/// So long after its end a process may still stand in a table that was begun before: no scan takes as
/// long.
const SCAN_NS_MAX: u64 = 30_000_000_000;

/// What a process has used since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) cpu_ns: u64,
    pub(crate) read_bytes: u64,
    pub(crate) write_bytes: u64,
}

impl Used {
    fn since(self, earlier: Used) -> Used {
        // What a collector could not read this time looks like less than before, and is nothing.
        Used {
            cpu_ns: self.cpu_ns.saturating_sub(earlier.cpu_ns),
            read_bytes: self.read_bytes.saturating_sub(earlier.read_bytes),
            write_bytes: self.write_bytes.saturating_sub(earlier.write_bytes),
        }
    }

    /// The most that either knows.
    fn max(self, other: Used) -> Used {
        Used {
            cpu_ns: self.cpu_ns.max(other.cpu_ns),
            read_bytes: self.read_bytes.max(other.read_bytes),
            write_bytes: self.write_bytes.max(other.write_bytes),
        }
    }

    fn add(&mut self, more: Used) {
        self.cpu_ns = self.cpu_ns.saturating_add(more.cpu_ns);
        self.read_bytes = self.read_bytes.saturating_add(more.read_bytes);
        self.write_bytes = self.write_bytes.saturating_add(more.write_bytes);
    }
}

/// How much of a group is there now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Now {
    pub(crate) processes: u64,
    pub(crate) threads: u64,
    pub(crate) rss_bytes: u64,
}

impl Now {
    fn add(&mut self, more: Now) {
        self.processes += more.processes;
        self.threads += more.threads;
        self.rss_bytes = self.rss_bytes.saturating_add(more.rss_bytes);
    }
}

/// A process as a table shows it.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: ProcessId,
    pub(crate) used: Used,
    pub(crate) threads: u64,
    pub(crate) rss_bytes: u64,
}

/// What there is to tell of a group.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account {
    /// What was used while it was shown.
    pub(crate) total: Used,
    pub(crate) now: Now,
    /// What was used since the last look; that decides whose account it goes to.
    pending: Used,
    /// CPU seconds used lately.
    lately_s: f64,
    is_shown: bool,
}

/// The same process, also where its start was rounded down.
type Key = (i32, u64);

fn key(id: ProcessId) -> Key {
    (id.pid, id.start_ns / TICK_NS)
}

/// All groups of a host.
#[derive(Debug)]
pub(crate) struct Groups {
    /// How many are shown for the CPU time that they use, and again for their memory.
    top: usize,
    /// What processes had used at the last look, and the group that they were in.
    known: HashMap<Key, (Used, Option<Arc<str>>)>,
    accounts: HashMap<Arc<str>, Account>,
    rest: Account,
    /// Processes that ended lately, by the time of it: a table that was begun before shows them.
    ended: VecDeque<(u64, Key)>,
    ended_keys: HashSet<Key>,
    /// When the table of the last look was begun.
    looked_ns: Option<u64>,
    /// What ended before then is forgotten.
    forgotten_ns: u64,
}

impl Groups {
    pub(crate) fn new(top: usize) -> Groups {
        Groups {
            top,
            known: HashMap::new(),
            accounts: HashMap::new(),
            rest: Account::default(),
            ended: VecDeque::new(),
            ended_keys: HashSet::new(),
            looked_ns: None,
            forgotten_ns: 0,
        }
    }

    /// A process of `group` has ended at `at_ns`; `used` is all that it ever used. Where nobody knows its
    /// group any more, it was in that of the last look.
    pub(crate) fn ended(&mut self, id: ProcessId, at_ns: u64, group: Option<&str>, used: Used) {
        let key = key(id);
        if !self.ended_keys.insert(key) {
            return;
        }
        self.ended.push_back((at_ns, key));
        self.forget_ended(at_ns.saturating_sub(SCAN_NS_MAX));
        let (before, last_group) = match self.known.remove(&key) {
            Some(known) => known,
            None if self.began_since(id) => (Used::default(), None),
            None => return, // It was there before us, and no look has shown it.
        };
        match group.or(last_group.as_deref()) {
            Some(group) => drop(self.pend(group, used.since(before))),
            None => self.rest.pending.add(used.since(before)),
        }
    }

    /// Whether a process began after the last look, so that all it has used was used after it.
    fn began_since(&self, id: ProcessId) -> bool {
        self.looked_ns.is_some_and(|looked_ns| id.start_ns + TICK_NS >= looked_ns)
    }

    /// Notes what a group has used; its name, unless there are too many groups.
    fn pend(&mut self, group: &str, more: Used) -> Option<Arc<str>> {
        let name = match self.accounts.get_key_value(group) {
            Some((name, _)) => Arc::clone(name),
            None if self.accounts.len() < GROUPS_MAX => group.into(),
            None => {
                self.rest.pending.add(more);
                return None;
            }
        };
        self.accounts.entry(Arc::clone(&name)).or_default().pending.add(more);
        Some(name)
    }

    fn forget_ended(&mut self, before_ns: u64) {
        while let Some((at_ns, key)) = self.ended.front().copied() {
            if at_ns >= before_ns {
                return;
            }
            self.ended.pop_front();
            self.ended_keys.remove(&key);
            self.forgotten_ns = self.forgotten_ns.max(at_ns);
        }
    }

    /// Looks at a table that was begun at `began_ns` of boot time. One that is not newer than the last
    /// says nothing new.
    pub(crate) fn look(&mut self, began_ns: u64, rows: impl IntoIterator<Item = (Row, String)>) {
        // Of an older one nobody knows any more which of its rows have been counted to their end.
        if self.looked_ns.is_some_and(|looked_ns| began_ns <= looked_ns)
            || began_ns < self.forgotten_ns
        {
            return;
        }
        self.rest.now = Now::default();
        self.accounts.values_mut().for_each(|account| account.now = Now::default());
        let mut known = HashMap::with_capacity(self.known.len());
        for (row, group) in rows {
            let key = key(row.id);
            if self.ended_keys.contains(&key) {
                continue;
            }
            let before = self.known.get(&key).map(|(used, _)| *used);
            let used = row.used.max(before.unwrap_or_default());
            let base = match before {
                Some(before) => before,
                None if self.began_since(row.id) => Used::default(),
                None => used,
            };
            let name = self.pend(&group, used.since(base));
            let now = Now { processes: 1, threads: row.threads, rss_bytes: row.rss_bytes };
            let account = name.as_ref().and_then(|name| self.accounts.get_mut(name));
            account.unwrap_or(&mut self.rest).now.add(now);
            known.insert(key, (used, name));
        }
        self.known = known;
        let seconds = self.looked_ns.map_or(0, |looked_ns| began_ns - looked_ns) as f64 / 1e9;
        self.looked_ns = Some(began_ns);
        // What ended before this table was begun stands in no table that comes.
        self.forget_ended(began_ns);
        self.settle(seconds);
    }

    /// Chooses who is shown, and gives all that was used since the last look to its account.
    fn settle(&mut self, seconds: f64) {
        let fade = (-seconds / HALF_LIFE_S).exp2();
        for account in self.accounts.values_mut() {
            account.lately_s = account.lately_s * fade + account.pending.cpu_ns as f64 / 1e9;
            account.is_shown = false;
        }
        for name in self.first_by(|account| (account.lately_s * 1e6) as u64) {
            self.accounts.entry(name).or_default().is_shown = true;
        }
        for name in self.first_by(|account| account.now.rss_bytes) {
            self.accounts.entry(name).or_default().is_shown = true;
        }
        let mut rest = std::mem::take(&mut self.rest.pending);
        for account in self.accounts.values_mut() {
            let pending = std::mem::take(&mut account.pending);
            if account.is_shown {
                account.total.add(pending);
            } else {
                rest.add(pending);
                self.rest.now.add(account.now);
            }
        }
        self.rest.total.add(rest);
        self.forget_groups();
    }

    /// The names of the first by a measure that is above 0; equal ones by name, so that nothing changes
    /// where nothing has.
    fn first_by(&self, measure: impl Fn(&Account) -> u64) -> Vec<Arc<str>> {
        let measured =
            self.accounts.iter().map(|(name, account)| (Reverse(measure(account)), name));
        let mut measured: Vec<_> = measured.filter(|(Reverse(much), _)| *much > 0).collect();
        if self.top < measured.len() {
            measured.select_nth_unstable(self.top);
            measured.truncate(self.top);
        }
        measured.into_iter().map(|(_, name)| Arc::clone(name)).collect()
    }

    /// Forgets groups that nobody is in any more: all that use next to nothing, and of the others those
    /// that use least. Those that are shown stay.
    fn forget_groups(&mut self) {
        let is_over = |account: &Account| account.now.processes == 0 && !account.is_shown;
        self.accounts.retain(|_, account| !is_over(account) || account.lately_s >= USE_MIN_S);
        let mut over: Vec<f64> =
            self.accounts.values().filter(|it| is_over(it)).map(|it| it.lately_s).collect();
        if over.len() > ENDED_GROUPS_MAX {
            let at = over.len() - ENDED_GROUPS_MAX;
            let (_, least, _) = over.select_nth_unstable_by(at, f64::total_cmp);
            let least = *least;
            self.accounts.retain(|_, account| !is_over(account) || account.lately_s > least);
        }
    }

    /// The groups that are shown, by name.
    pub(crate) fn shown(&self) -> Vec<(&str, &Account)> {
        let shown = self.accounts.iter().filter(|(_, account)| account.is_shown);
        let mut shown: Vec<_> = shown.map(|(name, account)| (&**name, account)).collect();
        shown.sort_unstable_by_key(|(name, _)| *name);
        shown
    }

    /// All others together.
    pub(crate) fn rest(&self) -> &Account {
        &self.rest
    }

    /// How many groups have living processes.
    pub(crate) fn living(&self) -> usize {
        self.accounts.values().filter(|account| account.now.processes > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    fn used(cpu_ns: u64) -> Used {
        Used { cpu_ns, read_bytes: 10 * cpu_ns, write_bytes: 0 }
    }

    /// A process: its number, start and CPU time in seconds, its group; it has `pid` bytes.
    fn row(pid: i32, start_s: u64, cpu_s: u64, group: &str) -> (Row, String) {
        let id = ProcessId { pid, start_ns: start_s * S };
        let row = Row { id, used: used(cpu_s * S), threads: 2, rss_bytes: pid as u64 };
        (row, group.to_owned())
    }

    fn end(groups: &mut Groups, pid: i32, (start_s, at_s): (u64, u64), cpu_s: u64, group: &str) {
        let id = ProcessId { pid, start_ns: start_s * S };
        let group = Some(group).filter(|group| !group.is_empty());
        groups.ended(id, at_s * S, group, used(cpu_s * S));
    }

    /// Name, CPU seconds and processes of those shown, then of the rest.
    fn told(groups: &Groups) -> String {
        let account = |name: &str, account: &Account| {
            assert_eq!(account.total.read_bytes, 10 * account.total.cpu_ns, "all counters alike");
            format!("{name}:{}:{}", account.total.cpu_ns / S, account.now.processes)
        };
        let mut told: Vec<_> = groups.shown().iter().map(|(name, it)| account(name, it)).collect();
        told.push(account("rest", groups.rest()));
        told.join(" ")
    }

    #[test]
    fn what_was_used_before_the_first_look_is_not_counted() {
        let mut groups = Groups::new(5);
        groups.look(100 * S, [row(1, 0, 50, "a"), row(2, 0, 9, "a"), row(3, 99, 1, "b")]);
        assert_eq!(told(&groups), "a:0:2 b:0:1 rest:0:0");
        groups.look(110 * S, [row(1, 0, 53, "a"), row(2, 0, 9, "a"), row(3, 99, 2, "b")]);
        assert_eq!(told(&groups), "a:3:2 b:1:1 rest:0:0");
    }

    #[test]
    fn who_began_since_is_counted_whole_and_who_was_hidden_is_not() {
        let mut groups = Groups::new(5);
        groups.look(100 * S, [row(1, 0, 0, "a")]);
        groups.look(110 * S, [row(1, 0, 0, "a"), row(2, 105, 4, "b"), row(3, 50, 7, "c")]);
        assert_eq!(told(&groups), "a:0:1 b:4:1 c:0:1 rest:0:0");
    }

    #[test]
    fn an_end_takes_nothing_back() {
        let mut groups = Groups::new(5);
        groups.look(100 * S, [row(1, 0, 50, "a"), row(2, 0, 9, "a")]);
        // One that was known, and one that no look has seen, of a group that is there and of one not.
        end(&mut groups, 2, (0, 104), 12, "a");
        end(&mut groups, 3, (101, 105), 2, "a");
        end(&mut groups, 4, (101, 105), 1, "b");
        groups.look(110 * S, [row(1, 0, 50, "a")]);
        assert_eq!(told(&groups), "a:5:1 b:1:0 rest:0:0");
        // The number is used again.
        groups.look(120 * S, [row(1, 0, 50, "a"), row(2, 115, 3, "b")]);
        assert_eq!(told(&groups), "a:5:1 b:4:1 rest:0:0");
    }

    #[test]
    fn who_ended_without_a_group_was_in_that_of_the_last_look() {
        let mut groups = Groups::new(5);
        groups.look(100 * S, [row(1, 0, 50, "a")]);
        end(&mut groups, 1, (0, 104), 52, "");
        end(&mut groups, 2, (101, 104), 3, "");
        groups.look(110 * S, []);
        assert_eq!(told(&groups), "a:2:0 rest:3:0");
    }

    #[test]
    fn an_end_that_nobody_told_costs_what_was_used_since_the_last_look() {
        let mut groups = Groups::new(5);
        groups.look(100 * S, [row(1, 0, 50, "a"), row(2, 0, 9, "b")]);
        groups.look(110 * S, [row(1, 0, 51, "a"), row(2, 0, 10, "b")]);
        groups.look(120 * S, [row(1, 0, 52, "a")]);
        assert_eq!(told(&groups), "a:2:1 b:1:0 rest:0:0");
    }

    #[test]
    fn who_ended_during_a_scan_is_counted_once() {
        let mut groups = Groups::new(5);
        groups.look(100 * S, [row(1, 0, 0, "a")]);
        // The scan began at 110, and saw it; before the table came it was freed.
        end(&mut groups, 2, (105, 111), 4, "a");
        end(&mut groups, 2, (105, 111), 4, "a");
        groups.look(110 * S, [row(1, 0, 0, "a"), row(2, 105, 4, "a")]);
        assert_eq!(told(&groups), "a:4:1 rest:0:0");
        groups.look(120 * S, [row(1, 0, 0, "a"), row(2, 112, 1, "a")]);
        assert_eq!(told(&groups), "a:5:2 rest:0:0", "the next of that number is another");
        // A table that is not newer, and one from before what was forgotten.
        groups.look(120 * S, [row(1, 0, 99, "a")]);
        end(&mut groups, 3, (121, 122), 1, "a");
        end(&mut groups, 4, (121, 500), 1, "a");
        groups.look(121 * S, [row(3, 121, 1, "a")]);
        assert_eq!(told(&groups), "a:5:2 rest:0:0");
        groups.look(501 * S, [row(1, 0, 0, "a")]);
        assert_eq!(told(&groups), "a:7:1 rest:0:0");
    }

    #[test]
    fn a_process_that_changes_its_group_takes_nothing_along() {
        let mut groups = Groups::new(5);
        groups.look(100 * S, [row(1, 0, 50, "sh")]);
        groups.look(110 * S, [row(1, 0, 52, "sh")]);
        groups.look(120 * S, [row(1, 0, 55, "cc1")]);
        assert_eq!(told(&groups), "cc1:3:1 sh:2:0 rest:0:0");
    }

    #[test]
    fn the_rest_takes_nothing_back_when_others_are_shown() {
        let mut groups = Groups::new(1);
        // By memory `z` is shown, as its process has the highest number.
        let look = |groups: &mut Groups, at_s: u64, a: u64, b: u64, z: u64| {
            groups.look(at_s * S, [row(1, 0, a, "a"), row(2, 0, b, "b"), row(9, 0, z, "z")]);
        };
        look(&mut groups, 100, 0, 0, 0);
        assert_eq!(told(&groups), "z:0:1 rest:0:2");
        look(&mut groups, 110, 5, 1, 0);
        assert_eq!(told(&groups), "a:5:1 z:0:1 rest:1:1");
        look(&mut groups, 120, 6, 40, 0);
        assert_eq!(told(&groups), "b:39:1 z:0:1 rest:2:1", "what `a` used now is the rest's");
        // Long after, `a` is shown again, and goes on where it was.
        look(&mut groups, 4_000, 16, 40, 0);
        assert_eq!(told(&groups), "a:15:1 z:0:1 rest:2:1");
    }

    #[test]
    fn a_million_names_fill_no_memory() {
        let mut groups = Groups::new(2);
        groups.look(100 * S, [row(1, 0, 0, "a")]);
        for pid in 10..70_010 {
            end(&mut groups, pid, (101, 102), 1, &format!("n{pid}"));
        }
        assert!(groups.accounts.len() <= GROUPS_MAX);
        groups.look(110 * S, [row(1, 0, 0, "a")]);
        assert!(groups.accounts.len() <= ENDED_GROUPS_MAX + 2, "{}", groups.accounts.len());
        assert_eq!(told(&groups), "a:0:1 n10:1:0 n100:1:0 rest:69998:0");
        assert!(groups.ended.is_empty() && groups.ended_keys.is_empty());
        // Without looks as well.
        for pid in 10..1_000 {
            end(&mut groups, pid, (111, 111 + pid as u64), 1, "a");
        }
        assert!(groups.ended.len() <= 31 && groups.ended_keys.len() == groups.ended.len());
    }

    proptest! {
        /// Whatever happens, no counter goes backwards, and all that was used since the first look is
        /// in the sum of what was added.
        #[test]
        fn sums_are_whole(top in 0_usize..3, looks in prop::collection::vec(
            prop::collection::vec((0_usize..6, 0_u64..5, any::<bool>()), 0..6), 1..12,
        )) {
            let mut groups = Groups::new(top);
            let names = ["a", "b", "c", "d"];
            let mut cpu_s = [0_u64; 6];
            let mut start_s = [0_u64; 6];
            let mut at_s = 100;
            let (mut want, mut added) = (0, 0);
            let mut before: HashMap<String, u64> = HashMap::new();
            let rows = |cpu_s: &[u64; 6], start_s: &[u64; 6]| -> Vec<_> {
                (0..6).map(|p| row(p as i32 + 1, start_s[p], cpu_s[p], names[p % 4])).collect()
            };
            groups.look(at_s * S, rows(&cpu_s, &start_s));
            for steps in looks {
                for (process, more, ends) in steps {
                    at_s += 1;
                    cpu_s[process] += more;
                    want += more;
                    if ends {
                        let times = (start_s[process], at_s);
                        let name = names[process % 4];
                        end(&mut groups, process as i32 + 1, times, cpu_s[process], name);
                        (cpu_s[process], start_s[process]) = (0, at_s);
                    }
                }
                at_s += 1;
                groups.look(at_s * S, rows(&cpu_s, &start_s));
                let shown = groups.shown();
                let all = shown.iter().map(|(name, account)| (*name, **account));
                let all: Vec<_> = all.chain([("", *groups.rest())]).collect();
                let processes: u64 = all.iter().map(|(_, account)| account.now.processes).sum();
                prop_assert_eq!(processes, 6);
                prop_assert!(shown.len() <= 2 * top);
                for (name, account) in all {
                    let now = account.total.cpu_ns / S;
                    let earlier = before.insert(name.to_owned(), now).unwrap_or(0);
                    // A group that was forgotten begins anew, at 0.
                    added += if now >= earlier { now - earlier } else { now };
                }
            }
            prop_assert_eq!(added, want);
        }
    }
}
