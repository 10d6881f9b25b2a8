//! What is asked in a call: which call it is, and what its handler shall do.

use middlecon::{CODE_QUESTION_UNREADABLE, Failure};

use super::ledger::Key;
use crate::sim::Dice;

/// Bytes of a question without what fills it up.
const HEAD_BYTES: usize = 16;

/// What a handler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Replies.
    Now,
    /// Sleeps for so many milliseconds first.
    Slow(u32),
    /// Says no.
    No,
    /// Calls somebody else first.
    Nest,
}

/// A call's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) key: Key,
    pub(super) work: Work,
    /// What follows, and comes back with the reply.
    pub(super) len_bytes: usize,
}

impl Question {
    /// Most are short, as most calls are; some are lent memory, or cut into parts.
    pub(super) fn roll(key: Key, dice: &mut Dice) -> Question {
        let work = match dice.within(0..=99) {
            0..=4 => Work::Slow(dice.within(1..=60) as u32),
            5..=7 => Work::No,
            8..=15 => Work::Nest,
            _ => Work::Now,
        };
        let len_bytes = match dice.within(0..=999) {
            0..=2 => dice.within(65_000..=400_000),
            3..=49 => dice.within(0..=4_000),
            _ => 0,
        };
        Question { key, work, len_bytes: len_bytes as usize }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, ms) = match self.work {
            Work::Now => (0_u32, 0),
            Work::Slow(ms) => (1, ms),
            Work::No => (2, 0),
            Work::Nest => (3, 0),
        };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.len_bytes);
        bytes.extend_from_slice(&self.key.0.to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&ms.to_le_bytes());
        // Of the call alone, so that a part of another's would be noticed.
        bytes.resize(HEAD_BYTES + self.len_bytes, self.key.0 as u8);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Question, Failure> {
        let no = || Failure::new(CODE_QUESTION_UNREADABLE, "no question");
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or_else(no)?;
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let key = Key(u64::from(word(0)) | u64::from(word(4)) << 32);
        let work = match word(8) {
            0 => Work::Now,
            1 => Work::Slow(word(12)),
            2 => Work::No,
            3 => Work::Nest,
            _ => return Err(no()),
        };
        if rest.iter().any(|byte| *byte != key.0 as u8) {
            return Err(no());
        }
        Ok(Question { key, work, len_bytes: rest.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_as_it_was_written_and_no_other() {
        let mut dice = Dice::new(5);
        for number in 0..1_000 {
            let question = Question::roll(Key::new(9, number), &mut dice);
            let bytes = question.encode();
            assert_eq!(Question::decode(&bytes).ok(), Some(question));
            assert!(Question::decode(&bytes[..10]).is_err());
        }
        let mut spoiled = Question { key: Key(1), work: Work::Now, len_bytes: 3 }.encode();
        spoiled[HEAD_BYTES + 1] = 2;
        assert!(Question::decode(&spoiled).is_err());
    }
}
