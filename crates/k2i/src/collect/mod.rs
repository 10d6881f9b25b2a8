//! The collector ladder: `iter.s`, `iter`, `proc`.
//!
//! A rung is chosen by trying it, not by version numbers. Whatever rung runs, texts and links of
//! single rows come from `/proc`, so a collector always has an open one.

pub(crate) mod bpf;
mod proc;
mod recorded;
pub(crate) mod records;

use std::io;
use std::sync::Arc;

use crate::events::EventSource;
use crate::table::{Parts, Process};
use bpf::BpfCollector;
pub(crate) use proc::ProcFs;
use recorded::Recorded;

/// Which collector to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CollectorChoice {
    /// The first rung of the ladder that works.
    #[default]
    Auto,
    /// This one or none.
    Only(CollectorKind),
}

/// A rung of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectorKind {
    /// Sleepable BPF task iterator: numbers and command lines in one pass.
    IterSleepable,
    /// BPF task iterator: numbers; command lines from `/proc`.
    Iter,
    /// A reader of `/proc`: works everywhere, with the reader's rights.
    Proc,
    /// No rung: processes that ended, as events told of them.
    Events(EventSource),
    /// No rung: a recorded table is played back, for simulated hosts.
    Recorded,
}

impl CollectorKind {
    /// The ladder from the top.
    pub const LADDER: [CollectorKind; 3] =
        [CollectorKind::IterSleepable, CollectorKind::Iter, CollectorKind::Proc];

    /// Its name in answers and options.
    pub fn name(self) -> &'static str {
        match self {
            CollectorKind::IterSleepable => "iter.s",
            CollectorKind::Iter => "iter",
            CollectorKind::Proc => "proc",
            CollectorKind::Events(source) => source.name(),
            CollectorKind::Recorded => "recorded",
        }
    }
}

impl std::str::FromStr for CollectorChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<CollectorChoice, String> {
        if text == "auto" {
            return Ok(CollectorChoice::Auto);
        }
        let kind = CollectorKind::LADDER.into_iter().find(|kind| kind.name() == text);
        kind.map(CollectorChoice::Only).ok_or_else(|| {
            format!("`{text}` is no collector; there are auto, iter.s, iter and proc")
        })
    }
}

/// What became of one rung when the ladder was tried.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Rung {
    /// `iter.s`, `iter` or `proc`.
    pub collector: String,
    /// Whether this one runs.
    pub chosen: bool,
    /// Why it was chosen, passed over or not tried, and what would help.
    pub why: String,
}

/// A collector that works.
#[derive(Debug)]
pub(crate) struct Collector {
    from: From,
}

#[derive(Debug)]
enum From {
    Bpf(Box<BpfCollector>),
    Proc,
    Recorded(Recorded),
}

/// What one scan brought.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Ascending by pid.
    pub(crate) rows: Vec<Process>,
    /// What was fetched for every row, if it could be read at all.
    pub(crate) parts: Parts,
}

impl Collector {
    /// Tries the ladder from the top, or the one rung that was asked for.
    pub(crate) fn open(choice: CollectorChoice, proc: &ProcFs) -> (Option<Collector>, Vec<Rung>) {
        let mut rungs = Vec::new();
        let mut opened: Option<Collector> = None;
        for kind in CollectorKind::LADDER {
            let wanted = choice == CollectorChoice::Auto || choice == CollectorChoice::Only(kind);
            let (chosen, why) = match &opened {
                _ if !wanted => (false, "another collector was asked for".to_owned()),
                Some(better) => (false, format!("not needed: `{}` works", better.kind().name())),
                None => match Collector::try_open(kind, proc) {
                    Ok(collector) => {
                        opened = Some(collector);
                        (true, "works here".to_owned())
                    }
                    Err(why) => (false, why),
                },
            };
            rungs.push(Rung { collector: kind.name().to_owned(), chosen, why });
        }
        (opened, rungs)
    }

    fn try_open(kind: CollectorKind, proc: &ProcFs) -> Result<Collector, String> {
        let from = match kind {
            CollectorKind::Proc => From::Proc,
            CollectorKind::Iter | CollectorKind::IterSleepable => {
                From::Bpf(Box::new(BpfCollector::open(kind, proc)?))
            }
            CollectorKind::Recorded | CollectorKind::Events(_) => {
                return Err("it is no rung of the ladder".to_owned());
            }
        };
        Ok(Collector { from })
    }

    /// Plays back a record.
    pub(crate) fn recorded(rows: Arc<[Process]>) -> Collector {
        Collector { from: From::Recorded(Recorded::new(rows)) }
    }

    /// The rung that it stands on now: it steps down by itself from `iter.s` to `iter`.
    pub(crate) fn kind(&self) -> CollectorKind {
        match &self.from {
            From::Bpf(bpf) if bpf.reads_lines() => CollectorKind::IterSleepable,
            From::Bpf(_) => CollectorKind::Iter,
            From::Proc => CollectorKind::Proc,
            From::Recorded(_) => CollectorKind::Recorded,
        }
    }

    /// Whether a scan of numbers is so cheap that it may run while nobody asks.
    pub(crate) fn is_cheap(&self) -> bool {
        !matches!(self.from, From::Proc)
    }

    /// Reads the whole table with at least `parts`, but for [`Parts::LATE`].
    pub(crate) fn scan(&mut self, proc: &ProcFs, parts: Parts) -> io::Result<Scan> {
        let parts = parts.without(Parts::LATE);
        match &mut self.from {
            From::Bpf(bpf) => bpf.scan(proc, parts),
            From::Proc => Ok(Scan { rows: proc.scan(parts)?, parts: parts | Parts::STAT }),
            From::Recorded(recorded) => Ok(recorded.scan()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Parts = Parts::EVERY_ROW;

    /// What must be the same from whatever collector, as text to show what differs.
    fn facts(row: &Process) -> Vec<(&'static str, String)> {
        // Some parts of some processes /proc hides even from root.
        let io = row.have.contains(Parts::IO).then_some(row.io);
        let ns = row.have.contains(Parts::NAMESPACES).then_some(row.ns);
        vec![
            ("ppid", row.ppid.to_string()),
            ("pgrp session tty tpgid", {
                format!("{} {} {} {}", row.pgrp, row.session, row.tty_nr, row.tpgid)
            }),
            ("nspid", row.nspid.to_string()),
            ("flags", format!("{:#x}", row.flags)),
            ("state", char::from(row.state).to_string()),
            ("threads", row.threads.to_string()),
            ("scheduling", {
                format!("{} {} {} {}", row.nice, row.priority, row.rtprio, row.policy)
            }),
            ("exit signal", row.exit_signal.to_string()),
            ("start tick", (row.start_ns / kumo_abi::TICK_NS).to_string()),
            ("children's time", {
                let tick = kumo_abi::TICK_NS;
                format!("{} {}", row.cutime_ns / tick, row.cstime_ns / tick)
            }),
            ("faults", {
                format!("{} {} {} {}", row.min_flt, row.maj_flt, row.cmin_flt, row.cmaj_flt)
            }),
            ("vsize", row.vsize.to_string()),
            ("rss limit", row.rss_limit.to_string()),
            ("comm", format!("{:?}", row.comm)),
            ("memory", format!("{:?}", row.memory)),
            ("swap locked stack", format!("{} {} {}", row.swap, row.locked, row.stack)),
            ("ids", format!("{:?} {:?}", row.uid, row.gid)),
            ("caps", format!("{:x?}", row.caps)),
            ("seccomp nnp", format!("{} {}", row.seccomp, row.no_new_privs)),
            ("io", io.map_or(String::new(), |io| format!("{io:?}"))),
            ("delay switches", format!("{} {} {}", row.run_delay_ns, row.vcsw, row.ivcsw)),
            ("ns", ns.map_or(String::new(), |ns| format!("{ns:?}"))),
            ("audit", format!("{} {}", row.loginuid, row.oom_score_adj)),
            ("cmdline", format!("{:?}", row.cmdline)),
            ("cgroup", format!("{:?}", row.cgroup.as_deref().map(String::from_utf8_lossy))),
        ]
    }

    /// What `/proc` shows the same before and after, a collector must have seen in between.
    fn agrees_with_proc(kind: CollectorKind) {
        let proc = ProcFs::open().expect("/proc");
        let (collector, rungs) = Collector::open(CollectorChoice::Only(kind), &proc);
        let Some(mut collector) = collector else {
            assert!(!rustix::process::geteuid().is_root(), "as root: {rungs:?}");
            eprintln!("skipped without the right to load BPF programs: {rungs:?}");
            return;
        };
        for round in ["cold", "warm"] {
            let before = proc.scan(ALL).expect("a scan of /proc");
            let rows = collector.scan(&proc, ALL).expect("a scan").rows;
            let after = proc.scan(ALL).expect("a scan of /proc");
            assert!(rows.windows(2).all(|pair| pair[0].pid < pair[1].pid), "ascending");
            let find = |rows: &[Process], pid: i32| {
                rows.binary_search_by_key(&pid, |row| row.pid).ok().map(|at| rows[at].clone())
            };
            let mut compared = 0;
            for old in &before {
                let Some(new) = find(&after, old.pid) else { continue };
                if new.start_ns != old.start_ns {
                    continue;
                }
                let row = find(&rows, old.pid).unwrap_or_else(|| panic!("{old:?} is missing"));
                assert!(row.have.contains(old.have), "{round} {kind:?}: {row:?} lacks parts");
                let tick = kumo_abi::TICK_NS;
                let (low, high) = (old.cpu_ns(), new.cpu_ns() + 2 * tick);
                assert!((low..=high).contains(&row.cpu_ns()), "{round} CPU time of {row:?}");
                assert!(row.utime_ns <= new.utime_ns + 2 * tick, "user time of {row:?}");
                let ran = |row: &Process| (row.vcsw, row.ivcsw, row.run_delay_ns, row.cpu_ns());
                if ran(old) != ran(&new) {
                    continue; // It may have changed anything, and back.
                }
                for ((name, old), ((_, new), (_, row_value))) in
                    facts(old).into_iter().zip(facts(&new).into_iter().zip(facts(&row)))
                {
                    if old == new && !old.is_empty() {
                        assert_eq!(row_value, old, "{round} {name} of {row:?}");
                        compared += 1;
                    }
                }
            }
            assert!(compared > 100, "only {compared} facts stood still");
        }
    }

    #[test]
    fn the_sleepable_iterator_agrees_with_proc() {
        agrees_with_proc(CollectorKind::IterSleepable);
    }

    #[test]
    fn the_iterator_agrees_with_proc() {
        agrees_with_proc(CollectorKind::Iter);
    }
}
