//! Whether what callers were told is true, by what servers wrote down. Pure.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use kumo_abi::call::Status;

use super::ledger::{Entry, Key, Late, Way};

/// What is promised and was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A handler ran twice for one call.
    Twice(Key, u32),
    /// A reply came, and no handler had run to its end.
    Invented(Key),
    /// A caller was told that its call did not run, and it did.
    Lied(Key, Status, Way),
    /// A call ended in two ways.
    ToldTwice(Key),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Twice(key, times) => write!(f, "call {key:x?} ran {times} times"),
            Broken::Invented(key) => write!(f, "call {key:x?} has a reply and did not run"),
            Broken::Lied(key, status, Way { service, by_task }) => {
                let by = if *by_task { "a task" } else { "a thread" };
                write!(
                    f,
                    "call {key:x?} to service {service} ran, and its caller, {by}, heard {status}"
                )
            }
            Broken::ToldTwice(key) => write!(f, "the caller of {key:x?} was told twice"),
        }
    }
}

/// A call that ended after its deadline, what its caller was told, and how it was made.
pub type LateCall = (Late, Status, Way);

/// What became of all calls.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// How many callers were told what.
    pub told: BTreeMap<String, u64>,
    /// Handlers that began.
    pub began: u64,
    /// Handlers that began, and of whose call nobody was told: the caller was killed.
    pub untold: u64,
    /// Of calls whose outcome nobody knew, those that had run.
    pub unknown_and_ran: u64,
    /// Calls that ended after their deadline, with what their callers were told.
    pub late: Vec<LateCall>,
    /// What was not kept.
    pub broken: Vec<Broken>,
}

impl Verdict {
    /// How many calls ended.
    pub fn calls(&self) -> u64 {
        self.told.values().sum()
    }
}

#[derive(Clone, Copy, Default)]
struct Call {
    began: u32,
    did: bool,
    told: Option<(Status, Way)>,
}

/// Compares what callers were told with what handlers did.
pub fn check(entries: impl IntoIterator<Item = Entry>) -> Verdict {
    let mut verdict = Verdict::default();
    let mut calls: HashMap<Key, Call> = HashMap::new();
    let mut late = Vec::new();
    for entry in entries {
        match entry {
            Entry::Began(key) => calls.entry(key).or_default().began += 1,
            Entry::Did(key) => calls.entry(key).or_default().did = true,
            Entry::Told(key, status, way) => {
                if calls.entry(key).or_default().told.replace((status, way)).is_some() {
                    verdict.broken.push(Broken::ToldTwice(key));
                }
            }
            Entry::Late(one) => late.push(one),
        }
    }
    let told = |late: Late| calls.get(&late.key)?.told.map(|(status, way)| (late, status, way));
    verdict.late = late.into_iter().filter_map(told).collect();
    for (key, Call { began, did, told }) in calls {
        verdict.began += u64::from(began);
        verdict.untold += u64::from(told.is_none());
        if began > 1 {
            verdict.broken.push(Broken::Twice(key, began));
        }
        let Some((status, way)) = told else { continue };
        *verdict.told.entry(status.to_string()).or_default() += 1;
        match status {
            Status::Done | Status::Failed(_) if !did => verdict.broken.push(Broken::Invented(key)),
            Status::NotExecuted(_) if began > 0 => {
                verdict.broken.push(Broken::Lied(key, status, way));
            }
            Status::Unknown(_) => verdict.unknown_and_ran += u64::from(began > 0),
            Status::Done | Status::Failed(_) | Status::NotExecuted(_) => {}
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumo_abi::call::Cause;

    #[test]
    fn what_is_true_and_what_is_not() {
        let key = Key::new(1, 2);
        let (began, did) = (Entry::Began(key), Entry::Did(key));
        let told = |status| Entry::Told(key, status, Way::default());
        let (died, unknown) = (Status::NotExecuted(Cause::Died), Status::Unknown(Cause::Died));
        let cases: [(&[Entry], &[Broken]); 11] = [
            (&[began, did, told(Status::Done)], &[]),
            (&[began, did, told(Status::Failed(7))], &[]),
            (&[told(died)], &[]),
            (&[told(unknown)], &[]),
            (&[began, told(unknown)], &[]),
            // Its caller was killed.
            (&[began, did], &[]),
            (&[told(Status::Done)], &[Broken::Invented(key)]),
            (&[began, told(Status::Done)], &[Broken::Invented(key)]),
            (&[began, told(died)], &[Broken::Lied(key, died, Way::default())]),
            (&[began, began, told(unknown)], &[Broken::Twice(key, 2)]),
            (&[told(died), told(died)], &[Broken::ToldTwice(key)]),
        ];
        for (entries, want) in cases {
            // In whatever order files are read.
            let reversed = check(entries.iter().rev().copied());
            assert_eq!(check(entries.iter().copied()).broken, want, "for {entries:?}");
            assert_eq!(reversed.broken, want, "for {entries:?}, reversed");
        }
    }

    #[test]
    fn calls_are_counted_by_what_was_told() {
        let entries = (0..10).flat_map(|number| {
            let key = Key::new(3, number);
            [Entry::Began(key), Entry::Told(key, Status::Unknown(Cause::HostLost), Way::default())]
        });
        let verdict = check(entries.chain([Entry::Began(Key::new(4, 0))]));
        assert_eq!((verdict.calls(), verdict.began, verdict.untold), (10, 11, 1));
        assert_eq!((verdict.unknown_and_ran, verdict.told.len()), (10, 1));
    }
}
