//! The collector ladder: `iter.s`, `iter`, `proc`.
//!
//! A rung is chosen by trying it, not by version numbers. Whatever rung runs, texts and links of
//! single rows come from `/proc`, so a collector always has an open one.

mod proc;

use std::io;

use crate::table::{Parts, Process};
pub(crate) use proc::ProcFs;

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
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    kind: CollectorKind,
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
                Some(better) => (false, format!("not needed: `{}` works", better.kind.name())),
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
        let _ = proc;
        match kind {
            CollectorKind::Proc => Ok(Collector { kind }),
            _ => Err("not built in".to_owned()),
        }
    }

    pub(crate) fn kind(&self) -> CollectorKind {
        self.kind
    }

    /// Whether a scan of numbers is so cheap that it may run while nobody asks.
    pub(crate) fn is_cheap(&self) -> bool {
        self.kind != CollectorKind::Proc
    }

    /// Reads the whole table with at least `parts`, but for [`Parts::LATE`].
    pub(crate) fn scan(&mut self, proc: &ProcFs, parts: Parts) -> io::Result<Scan> {
        let parts = parts.without(Parts::LATE);
        Ok(Scan { rows: proc.scan(parts)?, parts: parts | Parts::STAT })
    }
}
