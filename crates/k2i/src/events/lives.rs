//! Puts records together: an exec and an exit become a row, and a reap completes it.
//!
//! [`Lives`] is a plain value: records in, events out. It knows who lives, as far as an exec told it,
//! and remembers those that ended, the last [`ENDED_MAX`]. A lost exec costs a row its command line, a
//! lost reap its times, a lost exit the row; nothing is made up for them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use kumo_abi::ProcessId;
use kumo_abi::events::EventKind;

use super::life::Life;
use super::records::{Key, Record, Told};

/// Most ended processes that are remembered: a quarter of a minute of the fastest starts of a large
/// host, hours of a quiet one. A question reads all of them, in some milliseconds.
pub const ENDED_MAX: usize = 16_384;

/// Most memory that they take, about. With command lines of usual length the number is met first.
pub const ENDED_BYTES_MAX: usize = 16 << 20;

/// Most memory for command lines of processes that live, about: some ten thousand of them. Beyond it
/// new lines are not kept, and rows will lack them.
pub const LIVING_BYTES_MAX: usize = 16 << 20;

/// A reap that has not come so long after the end is looked for. The kernel frees a task within some
/// hundredths of a second after it was waited for; where it puts that off to save power, ten seconds
/// later, and then what was counted as lost is not any more.
pub(crate) const LOOK_AFTER_NS: u64 = 3_000_000_000;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Which kind of event.
    pub kind: EventKind,
    /// When, nanoseconds of boot time.
    pub at_ns: u64,
    /// To whom, with what is known then. At [`EventKind::Exit`] times are not final, hence absent.
    pub life: Arc<Life>,
}

/// Who lives and who has ended.
#[derive(Debug)]
pub(crate) struct Lives {
    living: HashMap<i32, Living>,
    living_bytes: usize,
    ended: VecDeque<(Key, Arc<Life>)>,
    ended_bytes: usize,
    /// Number of the first of `ended` since the beginning.
    first: u64,
    /// Numbers of those that ended, to complete them.
    numbers: HashMap<Key, u64>,
    changes: u64,
    /// Of `ended`, those whose reap has not come; and when to look whether they are still there.
    waiting: HashSet<Key>,
    looks: VecDeque<(u64, Key, i32)>,
    /// Of `ended`, those that are gone without one.
    untold: HashSet<Key>,
    reaps_lost: u64,
    /// Whether the source tells reaps.
    expects_reaps: bool,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    ended: usize,
    ended_bytes: usize,
    living_bytes: usize,
}

/// A process that lives, by its number.
#[derive(Debug)]
struct Living {
    /// Rounded, where a look at `/proc` told it.
    id: ProcessId,
    told_ns: u64,
    life: Life,
}

impl Default for Lives {
    fn default() -> Lives {
        Lives::with(Limits {
            ended: ENDED_MAX,
            ended_bytes: ENDED_BYTES_MAX,
            living_bytes: LIVING_BYTES_MAX,
        })
    }
}

impl Lives {
    fn with(limits: Limits) -> Lives {
        Lives {
            living: HashMap::new(),
            living_bytes: 0,
            ended: VecDeque::new(),
            ended_bytes: 0,
            first: 0,
            numbers: HashMap::new(),
            changes: 0,
            waiting: HashSet::new(),
            looks: VecDeque::new(),
            untold: HashSet::new(),
            reaps_lost: 0,
            expects_reaps: true,
            limits,
        }
    }

    /// From a source that tells no reaps.
    pub(crate) fn without_reaps() -> Lives {
        Lives { expects_reaps: false, ..Lives::default() }
    }

    /// Takes one record; the event that it makes, if it makes one.
    pub(crate) fn take(&mut self, record: Record) -> Option<Event> {
        let Record { key, at_ns, told } = record;
        let (kind, life) = match told {
            Told::Exec(mut life) => {
                life.exec_ns = Some(at_ns);
                self.lives(key, at_ns, &life);
                (EventKind::Exec, Arc::new(life))
            }
            Told::Exit(life) => (EventKind::Exit, self.ends(key, life)?),
            Told::Fork => {
                self.forget(key.tgid);
                return None;
            }
            Told::Reap(used) => {
                let number = self.numbers.get(&key)?;
                self.waiting.remove(&key);
                // It is late, but not lost.
                self.reaps_lost -= u64::from(self.untold.remove(&key));
                let (_, life) = self.ended.get_mut((number - self.first) as usize)?;
                Arc::make_mut(life).used = Some(used);
                self.changes += 1;
                (EventKind::Reap, Arc::clone(life))
            }
        };
        Some(Event { kind, at_ns, life })
    }

    /// Learns of a process that lives, from its exec or from a look at `told_ns`. What an exec told is
    /// not replaced by an older look.
    pub(crate) fn lives(&mut self, key: Key, told_ns: u64, life: &Life) {
        let newer = |living: &Living| key.is_of(living.id) && living.told_ns > told_ns;
        if self.living.get(&key.tgid).is_some_and(newer) {
            return;
        }
        self.forget(key.tgid);
        let len_bytes = life.len_bytes();
        if self.living_bytes + len_bytes > self.limits.living_bytes {
            return;
        }
        self.living_bytes += len_bytes;
        let living = Living { id: key.id(), told_ns, life: life.clone() };
        self.living.insert(key.tgid, living);
    }

    /// Forgets whoever was said to live before `looked_ns` and was not seen then: records were lost.
    pub(crate) fn saw(&mut self, looked_ns: u64, seen: impl Fn(Key) -> bool) {
        let gone = |(tgid, living): (&i32, &Living)| {
            let key = Key { tgid: *tgid, start_ns: living.id.start_ns };
            (living.told_ns < looked_ns && !seen(key)).then_some(*tgid)
        };
        for tgid in self.living.iter().filter_map(gone).collect::<Vec<_>>() {
            self.forget(tgid);
        }
    }

    fn forget(&mut self, tgid: i32) -> Option<Living> {
        let living = self.living.remove(&tgid)?;
        self.living_bytes -= living.life.len_bytes();
        Some(living)
    }

    /// The life as a row; `None` if that was told before.
    fn ends(&mut self, mut key: Key, mut life: Life) -> Option<Arc<Life>> {
        if key.start_ns != 0 && self.numbers.contains_key(&key) {
            return None;
        }
        // Under the same number there may be an older process, whose exit was lost.
        let living = self.forget(key.tgid).filter(|living| key.is_of(living.id));
        if key.start_ns == 0 {
            // Its end is as good to tell it from others.
            let start_ns = living.as_ref().map_or(0, |living| living.id.start_ns);
            let ended_ns = life.end.map_or(0, |end| end.at_ns);
            key.start_ns = if start_ns == 0 { ended_ns } else { start_ns };
        }
        if let Some(Living { life: before, .. }) = living {
            life.identity = life.identity.or(before.identity);
            life.ids = life.ids.or(before.ids);
            life.line = life.line.or(before.line);
            life.cgroup = life.cgroup.or(before.cgroup);
            life.exec_ns = life.exec_ns.or(before.exec_ns);
        }
        let life = Arc::new(life);
        self.ended_bytes += life.len_bytes();
        self.numbers.insert(key, self.first + self.ended.len() as u64);
        self.ended.push_back((key, Arc::clone(&life)));
        self.changes += 1;
        if self.expects_reaps {
            self.waiting.insert(key);
            let ended_ns = life.end.map_or(0, |end| end.at_ns);
            self.looks.push_back((ended_ns + LOOK_AFTER_NS, key, life.pid));
        }
        while self.ended.len() > self.limits.ended || self.ended_bytes > self.limits.ended_bytes {
            let Some((key, oldest)) = self.ended.pop_front() else { break };
            self.ended_bytes -= oldest.len_bytes();
            self.numbers.remove(&key);
            self.waiting.remove(&key);
            self.untold.remove(&key);
            self.first += 1;
        }
        Some(life)
    }

    /// Ended processes that should have been reaped by now, with their numbers: whoever asks looks
    /// whether they are still there, as zombies, and says so by [`Lives::looked`].
    pub(crate) fn overdue(&mut self, now_ns: u64) -> Vec<(Key, i32)> {
        let mut overdue = Vec::new();
        while let Some((due_ns, key, pid)) = self.looks.front().copied() {
            if due_ns > now_ns && self.waiting.contains(&key) {
                break;
            }
            self.looks.pop_front();
            if self.waiting.contains(&key) {
                overdue.push((key, pid));
            }
        }
        overdue
    }

    /// When to ask for [`Lives::overdue`] again, nanoseconds of boot time.
    pub(crate) fn look_ns(&self) -> Option<u64> {
        self.looks.front().map(|(due_ns, ..)| *due_ns)
    }

    /// One that is overdue is still a zombie, or it is gone and its times were never told.
    pub(crate) fn looked(&mut self, now_ns: u64, (key, pid): (Key, i32), is_there: bool) {
        if !self.waiting.contains(&key) {
            return; // Its reap has come meanwhile.
        }
        if is_there {
            self.looks.push_back((now_ns + LOOK_AFTER_NS, key, pid));
        } else {
            self.waiting.remove(&key);
            self.untold.insert(key);
            self.reaps_lost += 1;
        }
    }

    /// How many are gone without their times.
    pub(crate) fn reaps_lost(&self) -> u64 {
        self.reaps_lost
    }

    /// Those that ended, from the first to the last.
    pub(crate) fn ended(&self) -> impl ExactSizeIterator<Item = &Arc<Life>> {
        self.ended.iter().map(|(_, life)| life)
    }

    /// Those whose last exec was told, from the first exec to the last: those that live, as far as they
    /// are remembered, and those that have ended.
    pub(crate) fn executed(&self) -> Vec<Arc<Life>> {
        let living = self.living.values().map(|living| &living.life);
        let living = living.filter(|life| life.exec_ns.is_some()).cloned().map(Arc::new);
        let ended = self.ended().filter(|life| life.exec_ns.is_some()).cloned();
        let mut executed: Vec<_> = ended.chain(living).collect();
        executed.sort_by_key(|life| life.exec_ns);
        executed
    }

    /// How many have ended since the beginning, also those that are not remembered any more.
    pub(crate) fn ended_ever(&self) -> u64 {
        self.first + self.ended.len() as u64
    }

    /// Grows with each change of what [`Lives::ended`] shows.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::life::{Identity, Line, Used};
    use crate::table::End;

    const SMALL: Limits = Limits { ended: 3, ended_bytes: 1 << 20, living_bytes: 4 << 10 };

    fn life(pid: i32, start_ns: u64) -> Life {
        let identity = Some(Identity { start_ns, ..Identity::default() });
        Life { pid, identity, ..Life::default() }
    }

    fn record(pid: i32, start_ns: u64, at_ns: u64, told: Told) -> Record {
        Record { key: Key { tgid: pid, start_ns }, at_ns, told }
    }

    fn exec(pid: i32, start_ns: u64, at_ns: u64, line: &str) -> Record {
        let line = Some(Line::new(line.as_bytes(), line.len() as u64));
        record(pid, start_ns, at_ns, Told::Exec(Life { line, ..life(pid, start_ns) }))
    }

    fn exit(pid: i32, start_ns: u64, at_ns: u64, code: u32) -> Record {
        let end = Some(End { at_ns, status: code << 8, max_rss: None });
        record(pid, start_ns, at_ns, Told::Exit(Life { end, ..life(pid, start_ns) }))
    }

    fn reap(pid: i32, start_ns: u64, at_ns: u64, utime_ns: u64) -> Record {
        let used = Used { utime_ns, ..Used::default() };
        record(pid, start_ns, at_ns, Told::Reap(used))
    }

    /// Events as letters, then a row for each that ended: pid, line, code, time.
    fn play(lives: &mut Lives, records: impl IntoIterator<Item = Record>) -> (String, String) {
        let letter = |event: Option<Event>| match event.map(|event| event.kind) {
            None => '-',
            Some(EventKind::Exec) => 'x',
            Some(EventKind::Exit) => 'e',
            Some(EventKind::Reap) => 'r',
        };
        let letters = records.into_iter().map(|record| letter(lives.take(record))).collect();
        let row = |life: &Arc<Life>| {
            let line = life.line.as_ref().map_or("?".into(), |line| {
                String::from_utf8_lossy(line.text.joined()).into_owned()
            });
            let code = life.end.and_then(|end| end.code()).expect("it ended by itself");
            let time = life.used.map_or("?".to_owned(), |used| used.utime_ns.to_string());
            format!("{}:{line}:{code}:{time}", life.pid)
        };
        (letters, lives.ended().map(row).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn who_has_executed_a_program_is_known_until_it_is_forgotten() {
        let mut lives = Lives::with(SMALL);
        let seen = life(9, 1);
        lives.lives(Key { tgid: 9, start_ns: 1 }, 4, &seen);
        play(&mut lives, [exec(1, 5, 6, "a"), exec(2, 5, 8, "b"), exec(1, 5, 9, "c")]);
        play(&mut lives, [exit(2, 5, 10, 0), exit(9, 1, 11, 0)]);
        let executed: Vec<_> = lives
            .executed()
            .iter()
            .map(|life| (life.pid, life.exec_ns, life.end.is_some()))
            .collect();
        assert_eq!(executed, [(2, Some(8), true), (1, Some(9), false)]);
    }

    #[test]
    fn records_become_rows() {
        let cases = [
            (
                "a whole life",
                vec![exec(1, 5, 6, "a"), exit(1, 5, 7, 3), reap(1, 5, 8, 9)],
                "xer",
                "1:a:3:9",
            ),
            ("the exec is lost", vec![exit(1, 5, 7, 3), reap(1, 5, 8, 9)], "er", "1:?:3:9"),
            ("the exit is lost", vec![exec(1, 5, 6, "a"), reap(1, 5, 8, 9)], "x-", ""),
            ("the reap is lost", vec![exec(1, 5, 6, "a"), exit(1, 5, 7, 0)], "xe", "1:a:0:?"),
            (
                "it executes twice",
                vec![exec(1, 5, 6, "sh"), exec(1, 5, 7, "b"), exit(1, 5, 8, 0)],
                "xxe",
                "1:b:0:?",
            ),
            (
                "the number is used again",
                vec![
                    exec(1, 5, 6, "a"),
                    exit(1, 5, 7, 0),
                    exec(1, 9, 10, "b"),
                    reap(1, 5, 11, 4),
                    exit(1, 9, 12, 1),
                ],
                "xexre",
                "1:a:0:4 1:b:1:?",
            ),
            (
                "so, and the first exit is lost",
                vec![exec(1, 5, 6, "a"), exit(1, 9, 12, 1), reap(1, 5, 13, 7)],
                "xe-",
                "1:?:1:?",
            ),
            (
                "two threads were the last",
                vec![exec(1, 5, 6, "a"), exit(1, 5, 7, 0), exit(1, 5, 7, 0)],
                "xe-",
                "1:a:0:?",
            ),
            ("it had ended before we looked", vec![reap(1, 5, 8, 9)], "-", ""),
            (
                "there is no room for all",
                (1..=5)
                    .map(|pid| exit(pid, 5, 6, 0))
                    .chain([reap(1, 5, 9, 1), reap(5, 5, 9, 2)])
                    .collect(),
                "eeeee-r",
                "3:?:0:? 4:?:0:? 5:?:0:2",
            ),
        ];
        for (name, records, events, rows) in cases {
            let mut lives = Lives::with(SMALL);
            let got = play(&mut lives, records);
            assert_eq!(got, (events.to_owned(), rows.to_owned()), "{name}");
        }
    }

    #[test]
    fn a_source_that_knows_no_starts() {
        let mut lives = Lives { expects_reaps: false, ..Lives::with(SMALL) };
        let unknown = |pid, at_ns, told| record(pid, 0, at_ns, told);
        let end = |at_ns| {
            let end = Some(End { at_ns, status: 0, max_rss: None });
            Told::Exit(Life { pid: 1, end, ..Life::default() })
        };
        // Its exec was read in time, its exit was not; then the number is used again, twice.
        let first = [exec(1, 50, 60, "a"), unknown(1, 70, end(70))];
        let more = [unknown(1, 80, Told::Fork), unknown(1, 90, end(90))];
        let last = [exec(1, 95, 96, "lost"), unknown(1, 97, Told::Fork), unknown(1, 99, end(99))];
        let (letters, rows) = play(&mut lives, first.into_iter().chain(more).chain(last));
        assert_eq!(letters, "xe-ex-e");
        assert_eq!(rows, "1:a:0:? 1:?:0:? 1:?:0:?");
        let starts: Vec<_> = lives.ended().map(|life| life.identity.map(|i| i.start_ns)).collect();
        assert_eq!(starts, [Some(50), None, None], "nothing is made up");
        assert_eq!(lives.look_ns(), None, "no reap is waited for");
    }

    #[test]
    fn a_reap_that_does_not_come_is_counted_once_the_process_is_gone() {
        let mut lives = Lives::with(SMALL);
        play(&mut lives, [exit(1, 5, 10, 0), exit(2, 5, 10, 0), exit(3, 5, 20, 0)]);
        assert_eq!(lives.overdue(LOOK_AFTER_NS + 9), []);
        play(&mut lives, [reap(2, 5, 11, 1)]);
        let (first, third) = ((Key { tgid: 1, start_ns: 5 }, 1), (Key { tgid: 3, start_ns: 5 }, 3));
        assert_eq!(lives.overdue(LOOK_AFTER_NS + 15), [first]);
        assert_eq!(lives.look_ns(), Some(LOOK_AFTER_NS + 20));
        lives.looked(LOOK_AFTER_NS + 16, first, false);
        assert_eq!(lives.overdue(LOOK_AFTER_NS + 20), [third]);
        lives.looked(LOOK_AFTER_NS + 20, third, true);
        assert_eq!(lives.reaps_lost(), 1, "a zombie is not lost");
        assert_eq!(lives.overdue(2 * LOOK_AFTER_NS + 20), [third], "it is looked at again");
        // The one comes late; the other while somebody looks.
        let (letters, rows) = play(&mut lives, [reap(1, 5, 30, 2), reap(3, 5, 30, 3)]);
        lives.looked(0, third, false);
        assert_eq!((letters.as_str(), rows.as_str()), ("rr", "1:?:0:2 2:?:0:1 3:?:0:3"));
        assert_eq!((lives.reaps_lost(), lives.look_ns()), (0, None));
    }

    #[test]
    fn who_lived_before_has_its_line() {
        let mut lives = Lives::with(SMALL);
        let seen = |line: &str| Life { line: Some(Line::new(line.as_bytes(), 9)), ..life(1, 5) };
        lives.lives(Key { tgid: 1, start_ns: 5 }, 10, &seen("seen"));
        let (_, rows) = play(&mut lives, [exit(1, 5, 20, 0)]);
        assert_eq!(rows, "1:seen:0:?");
        // A look that began before an exec does not know better.
        lives.take(exec(2, 5, 30, "new"));
        lives.lives(Key { tgid: 2, start_ns: 5 }, 29, &seen("old"));
        let (_, rows) = play(&mut lives, [exit(2, 5, 40, 0)]);
        assert_eq!(rows, "1:seen:0:? 2:new:0:?");
    }

    #[test]
    fn who_was_not_seen_is_forgotten() {
        let mut lives = Lives::with(SMALL);
        play(&mut lives, [exec(1, 5, 6, "a"), exec(2, 5, 6, "b"), exec(3, 5, 9, "c")]);
        lives.saw(8, |key| key.tgid == 1);
        assert_eq!(lives.living.len(), 2, "one was seen, one began after the look");
        let (_, rows) = play(&mut lives, [exit(2, 5, 10, 0), exit(1, 5, 10, 0), exit(3, 5, 10, 0)]);
        assert_eq!(rows, "2:?:0:? 1:a:0:? 3:c:0:?");
        assert_eq!((lives.living_bytes, lives.ended_ever()), (0, 3));
    }

    #[test]
    fn memory_is_bounded() {
        let limits = Limits { ended: 1_000, ended_bytes: 10_000, living_bytes: 10_000 };
        let mut lives = Lives::with(limits);
        let line = "x".repeat(500);
        for pid in 1..100 {
            lives.take(exec(pid, 5, 6, &line));
            assert!(lives.living_bytes <= limits.living_bytes);
        }
        for pid in 1..100 {
            lives.take(exit(pid, 5, 7, 0));
            assert!(lives.ended_bytes <= limits.ended_bytes);
            assert_eq!(lives.numbers.len(), lives.ended.len());
        }
        let with_line = |life: &&Arc<Life>| life.line.is_some();
        assert_eq!((lives.living_bytes, lives.ended_ever()), (0, 99));
        assert!(lives.ended().len() > 3 && lives.ended().filter(with_line).count() == 0);
    }
}
