//! What of an answer has changed since another one to the same question.
//!
//! Rows are known by their identity, cells by a hash of what is written of them, keyed anew in each
//! process: nobody can make a change that is not noticed. A delta holds rows that are new, whole; of
//! rows that changed, the cells that did; and who is not in the answer any more.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

use kumo_abi::ProcessId;

/// Most answers that are remembered for who asks `since`.
pub(crate) const SEEN_MAX: usize = 64;

/// Most memory that they take, about.
pub(crate) const SEEN_BYTES_MAX: usize = 16 << 20;

/// An answer as somebody has it: its rows in order, each with the hashes of its cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    rows: Vec<(ProcessId, Box<[u64]>)>,
}

impl Seen {
    pub(crate) fn push(&mut self, id: ProcessId, cells: Box<[u64]>) {
        self.rows.push((id, cells));
    }

    /// The hashes of each row's cells.
    pub(crate) fn by_id(&self) -> HashMap<ProcessId, &[u64]> {
        self.rows.iter().map(|(id, cells)| (*id, &**cells)).collect()
    }

    /// Who is in here and not in `later`, in order.
    pub(crate) fn gone(&self, later: &Seen) -> Vec<ProcessId> {
        let there: HashSet<ProcessId> = later.ids().collect();
        self.ids().filter(|id| !there.contains(id)).collect()
    }

    /// Who is in here, in order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ProcessId> {
        self.rows.iter().map(|(id, _)| *id)
    }

    fn len_bytes(&self) -> usize {
        let row =
            |(id, cells): &(ProcessId, Box<[u64]>)| size_of_val(id) + 16 + size_of_val(&**cells);
        self.rows.iter().map(row).sum()
    }
}

/// Hashes cells.
#[derive(Clone, Debug, Default)]
pub(crate) struct CellHash(RandomState);

impl CellHash {
    pub(crate) fn of(&self, written: &[u8]) -> u64 {
        self.0.hash_one(written)
    }
}

/// Answers that were given to who may ask what changed since: the newest, within bounds.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// By question and generation. `None` where two answers of one generation differ, as what is fetched
    /// late may: whoever asks has one of them, and nobody knows which.
    answers: VecDeque<(String, u64, Option<Seen>)>,
    len_bytes: usize,
    pub(crate) hash: CellHash,
}

impl Remembered {
    /// The answer of `generation` to `question`.
    pub(crate) fn find(&self, question: &str, generation: u64) -> Option<Seen> {
        self.answers
            .iter()
            .find(|(asked, of, _)| *of == generation && asked == question)
            .and_then(|(.., seen)| seen.clone())
    }

    pub(crate) fn put(&mut self, question: String, generation: u64, seen: Seen) {
        let same = |(asked, of, _): &&mut (String, u64, Option<Seen>)| {
            *of == generation && *asked == question
        };
        if let Some((.., before)) = self.answers.iter_mut().find(same) {
            if before.as_ref() != Some(&seen) {
                self.len_bytes -= before.take().map_or(0, |seen| seen.len_bytes());
            }
            return;
        }
        self.len_bytes += question.len() + seen.len_bytes();
        self.answers.push_back((question, generation, Some(seen)));
        while self.answers.len() > SEEN_MAX || self.len_bytes > SEEN_BYTES_MAX {
            let Some((asked, _, seen)) = self.answers.pop_front() else { break };
            self.len_bytes -= asked.len() + seen.map_or(0, |seen| seen.len_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(pid: i32) -> ProcessId {
        ProcessId { pid, start_ns: 5 }
    }

    fn seen(rows: &[(i32, u64)]) -> Seen {
        let mut seen = Seen::default();
        for (pid, cell) in rows {
            seen.push(id(*pid), [*cell].into());
        }
        seen
    }

    #[test]
    fn who_is_gone() {
        let (before, after) = (seen(&[(3, 1), (1, 1), (2, 1)]), seen(&[(2, 9), (4, 1)]));
        assert_eq!(before.gone(&after), [id(3), id(1)]);
        assert_eq!(after.gone(&before), [id(4)]);
        assert_eq!(before.by_id()[&id(3)], [1]);
    }

    #[test]
    fn answers_are_remembered_within_bounds() {
        let mut remembered = Remembered::default();
        for generation in 0..200 {
            remembered.put("q".to_owned(), generation, seen(&[(1, generation)]));
        }
        assert_eq!(remembered.find("q", 199), Some(seen(&[(1, 199)])));
        assert_eq!(remembered.find("q", 199 - SEEN_MAX as u64), None, "too old");
        assert_eq!(remembered.find("other", 199), None);
        let rows: Vec<(i32, u64)> = (0..100_000).map(|pid| (pid, 1)).collect();
        for generation in 200..220 {
            remembered.put("q".to_owned(), generation, seen(&rows));
            assert!(remembered.len_bytes <= SEEN_BYTES_MAX);
        }
        assert!(remembered.find("q", 219).is_some() && remembered.answers.len() < 20);
    }

    #[test]
    fn two_answers_of_one_generation_are_not_taken_for_each_other() {
        let mut remembered = Remembered::default();
        remembered.put("q".to_owned(), 7, seen(&[(1, 1)]));
        remembered.put("q".to_owned(), 7, seen(&[(1, 1)]));
        assert!(remembered.find("q", 7).is_some(), "they are the same");
        remembered.put("q".to_owned(), 7, seen(&[(1, 2)]));
        assert_eq!(remembered.find("q", 7), None);
        remembered.put("q".to_owned(), 7, seen(&[(1, 2)]));
        assert_eq!(remembered.find("q", 7), None, "still one of two");
    }
}
