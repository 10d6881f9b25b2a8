//! What of a table has changed since the one before, in a few bytes; and tables from such changes.
//!
//! An [`Encoder`] and a [`Player`] begin with nothing, so that the first frame of both holds all. A text
//! is written once, and from then on is a number. No clock and no file is touched here.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{self, NUMBERS, Numbers, TEXTS};
use crate::table::{CommandLine, Process};

/// Longest text of a process that is recorded: most command lines are far shorter, and a few long ones
/// must not drive out an hour of all others.
pub(super) const TEXT_BYTES_MAX: usize = 4 * 1024;

/// All texts of a table are cut so that they take about this much at most.
const TEXTS_BYTES_MAX: usize = 16 << 20;

/// But for this beginning, which is always kept.
const TEXT_BYTES_MIN: usize = 64;

/// Largest frame before it is compressed: a hundred thousand processes with long command lines.
pub(super) const FRAME_BYTES_MAX: usize = 128 << 20;

/// zstd's fastest common level: a second one makes frames 3 % smaller and takes twice the time.
const COMPRESSION: i32 = 1;

/// When a table was read, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moment {
    /// Nanoseconds of boot time when the scan began.
    pub(super) boot_ns: u64,
    /// The generation of the table.
    pub(super) generation: u64,
    /// How long the scan took.
    pub(super) scan_us: u64,
    /// The collector.
    pub(super) collector: String,
}

/// What changed.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Frame {
    moment: Moment,
    /// Texts that were not there yet; they get the next numbers.
    texts: Vec<Vec<u8>>,
    gone: Vec<i32>,
    changed: Vec<Change>,
}

/// Which numbers of a process changed, and by how much.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Change {
    pid: i32,
    which: u128,
    by: Vec<i64>,
}

/// A process to be recorded.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    pub(super) row: &'a Process,
    /// NaN where it is not known.
    pub(super) cpu_percent: f32,
    /// The arguments; they may be there where the row lacks them.
    pub(super) line: Option<&'a CommandLine>,
    pub(super) exe: Option<&'a [u8]>,
}

/// A frame that makes no sense; its sum was right, so another program wrote it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    /// It cannot be unpacked.
    #[error("it cannot be unpacked")]
    Packed,
    /// Its values contradict each other.
    #[error("it holds {0}")]
    Wrong(&'static str),
}

/// Makes frames of tables. Where one of them is not written, begin with a new encoder: the next frame
/// builds upon it.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    before: BTreeMap<i32, Numbers>,
    texts: HashMap<Arc<[u8]>, u64>,
    new_texts: Vec<Vec<u8>>,
}

impl Encoder {
    /// What has changed since the last table, compressed; and how long it is when it is not.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn encode(
        &mut self,
        moment: Moment,
        rows: &[Seen<'_>],
    ) -> io::Result<(Vec<u8>, usize)> {
        let limit = (TEXTS_BYTES_MAX / rows.len().max(1)).clamp(TEXT_BYTES_MIN, TEXT_BYTES_MAX);
        let mut changed = Vec::new();
        let mut now = BTreeMap::new();
        for seen in rows {
            let mut numbers = row::numbers(seen.row, seen.cpu_percent);
            let argv = seen.line.map(CommandLine::argv);
            let is_cut = seen.row.cmdline_cut || argv.is_some_and(|argv| argv.len() > limit);
            let texts =
                [Some(seen.row.comm.as_bytes()), argv, seen.row.cgroup.as_deref(), seen.exe];
            let texts = texts.map(|text| text.map_or(0, |text| self.text(text, limit)));
            row::put_texts(&mut numbers, texts, is_cut);
            let pid = seen.row.pid;
            let before = self.before.remove(&pid);
            if before.as_ref() != Some(&numbers) {
                changed.push(Change::between(pid, &before.unwrap_or([0; NUMBERS]), &numbers));
            }
            now.insert(pid, numbers);
        }
        let gone = std::mem::replace(&mut self.before, now).into_keys().collect();
        let texts = std::mem::take(&mut self.new_texts);
        let frame = Frame { moment, texts, gone, changed };
        let raw = postcard::to_stdvec(&frame).map_err(io::Error::other)?;
        Ok((zstd::bulk::compress(&raw, COMPRESSION)?, raw.len()))
    }

    /// The number of a text, of which at most `limit` bytes are kept.
    fn text(&mut self, text: &[u8], limit: usize) -> u64 {
        let text = &text[..text.len().min(limit)];
        if let Some(number) = self.texts.get(text) {
            return *number;
        }
        let number = self.texts.len() as u64 + 1;
        self.texts.insert(text.into(), number);
        self.new_texts.push(text.to_vec());
        number
    }
}

impl Change {
    fn between(pid: i32, before: &Numbers, now: &Numbers) -> Change {
        let mut change = Change { pid, which: 0, by: Vec::new() };
        for (at, (before, now)) in before.iter().zip(now).enumerate() {
            if before != now {
                change.which |= 1 << at;
                change.by.push(now.wrapping_sub(*before) as i64);
            }
        }
        change
    }

    fn apply(&self, numbers: &mut Numbers) -> Result<(), FrameError> {
        let mut by = self.by.iter();
        for (at, number) in numbers.iter_mut().enumerate() {
            if self.which & (1 << at) != 0 {
                let by = by.next().ok_or(FrameError::Wrong("fewer numbers than it says"))?;
                *number = number.wrapping_add(*by as u64);
            }
        }
        let is_whole = by.next().is_none() && self.which >> NUMBERS == 0;
        is_whole.then_some(()).ok_or(FrameError::Wrong("more numbers than a process has"))
    }
}

/// A text as rows share it.
#[derive(Debug)]
struct Text {
    bytes: Arc<[u8]>,
    /// The same as a command line, once a row has it as that.
    line: Option<CommandLine>,
}

/// Makes tables of frames, one after the other.
#[derive(Debug, Default)]
pub(super) struct Player {
    rows: BTreeMap<i32, Numbers>,
    texts: Vec<Text>,
    moment: Option<Moment>,
}

impl Player {
    /// Takes the next frame, which is `raw_len` bytes long when it is unpacked. After an error it is of
    /// no use any more.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub(super) fn take(&mut self, packed: &[u8], raw_len: usize) -> Result<(), FrameError> {
        if raw_len > FRAME_BYTES_MAX {
            return Err(FrameError::Packed);
        }
        let raw = zstd::bulk::decompress(packed, raw_len).map_err(|_| FrameError::Packed)?;
        let frame: Frame = postcard::from_bytes(&raw).map_err(|_| FrameError::Packed)?;
        for text in frame.texts {
            self.texts.push(Text { bytes: text.into(), line: None });
        }
        for pid in frame.gone {
            self.rows.remove(&pid).ok_or(FrameError::Wrong("the end of a process it has not"))?;
        }
        for change in &frame.changed {
            let numbers = self.rows.entry(change.pid).or_insert([0; NUMBERS]);
            change.apply(numbers)?;
            if row::texts(numbers).iter().any(|text| *text > self.texts.len() as u64) {
                return Err(FrameError::Wrong("a text that is not there"));
            }
        }
        self.moment = Some(frame.moment);
        Ok(())
    }

    /// When the last frame was of; `None` before the first.
    pub(super) fn moment(&self) -> Option<&Moment> {
        self.moment.as_ref()
    }

    /// The processes, ascending by pid, and their CPU use.
    pub(super) fn rows(&mut self) -> (Vec<Process>, Vec<f32>) {
        let mut rows = Vec::with_capacity(self.rows.len());
        let mut percents = Vec::with_capacity(self.rows.len());
        for (pid, numbers) in &self.rows {
            let numbers_of = row::texts(numbers);
            let at = |number: u64| usize::try_from(number).ok().and_then(|at| at.checked_sub(1));
            let line = at(numbers_of[1])
                .and_then(|at| self.texts.get_mut(at))
                .map(|text| text.line.get_or_insert_with(|| CommandLine::new(&text.bytes)).clone());
            let texts: [Option<&Arc<[u8]>>; TEXTS] = numbers_of
                .map(|number| at(number).and_then(|at| self.texts.get(at)).map(|text| &text.bytes));
            let (row, percent) = row::row(*pid, numbers, texts, line);
            rows.push(row);
            percents.push(percent);
        }
        (rows, percents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Comm, Parts};

    fn moment(boot_ns: u64) -> Moment {
        Moment { boot_ns, generation: boot_ns, scan_us: 7, collector: "proc".to_owned() }
    }

    fn process(pid: i32, utime_ns: u64, line: &[u8]) -> Process {
        Process {
            pid,
            start_ns: 1_000 + pid as u64,
            utime_ns,
            comm: Comm::new(b"worker"),
            cmdline: Some(CommandLine::new(line)),
            cgroup: Some(Arc::from(&b"0::/system.slice\n"[..])),
            have: Parts::STAT | Parts::CMDLINE | Parts::CGROUP,
            ..Process::default()
        }
    }

    fn seen(row: &Process) -> Seen<'_> {
        Seen { row, cpu_percent: 1.5, line: row.cmdline.as_ref(), exe: Some(b"/bin/worker") }
    }

    const MEMORY: &str = "memory for a few rows";

    /// What is compared of a row.
    fn shown(row: &Process) -> String {
        format!("{row:?}")
    }

    fn played(frames: &[(Vec<u8>, usize)]) -> Vec<String> {
        let mut player = Player::default();
        for (packed, raw_len) in frames {
            player.take(packed, *raw_len).expect("a good frame");
        }
        player.rows().0.iter().map(shown).collect()
    }

    fn recorded(row: &Process) -> String {
        let mut encoder = Encoder::default();
        played(&[encoder.encode(moment(1), &[seen(row)]).expect(MEMORY)]).remove(0)
    }

    #[test]
    fn a_table_is_what_its_changes_make() {
        let tables = [
            vec![process(1, 0, b"init\0"), process(7, 5, b"a\0b\0")],
            vec![process(1, 9, b"init\0"), process(7, 5, b"a\0b\0")],
            vec![process(1, 9, b"init\0"), process(8, 1, b"a\0b\0")],
            vec![],
            vec![process(7, 1, b"title\0"), process(9, u64::MAX, b"")],
        ];
        let mut encoder = Encoder::default();
        let mut frames = Vec::new();
        for (at, table) in tables.iter().enumerate() {
            let rows: Vec<_> = table.iter().map(seen).collect();
            frames.push(encoder.encode(moment(at as u64), &rows).expect(MEMORY));
            let want: Vec<_> = table.iter().map(recorded).collect();
            assert_eq!(played(&frames), want, "table {at}");
        }
    }

    #[test]
    fn who_does_nothing_takes_no_room() {
        let table: Vec<_> =
            (1..=3_000).map(|pid| process(pid, 5, b"/usr/bin/idle\0--quiet\0")).collect();
        let rows = || table.iter().map(seen).collect::<Vec<_>>();
        let mut encoder = Encoder::default();
        let (first, _) = encoder.encode(moment(1), &rows()).expect(MEMORY);
        let (second, _) = encoder.encode(moment(2), &rows()).expect(MEMORY);
        assert!(first.len() < 60_000, "{} bytes for 3,000 rows", first.len());
        assert!(second.len() < 64, "{} bytes for nothing", second.len());
    }

    #[test]
    fn a_pid_that_is_used_again_is_another_process() {
        let (before, mut after) = (process(7, 900, b"old\0"), process(7, 1, b"new\0"));
        after.start_ns = 99_999;
        let mut encoder = Encoder::default();
        let frames =
            [&before, &after].map(|row| encoder.encode(moment(1), &[seen(row)]).expect(MEMORY));
        assert_eq!(played(&frames), [recorded(&after)]);
    }

    #[test]
    fn long_lines_are_cut_and_say_so() {
        let long = process(1, 0, &[b'x'; 3 * TEXT_BYTES_MAX]);
        let mut encoder = Encoder::default();
        let (packed, raw_len) = encoder.encode(moment(1), &[seen(&long)]).expect(MEMORY);
        let mut player = Player::default();
        player.take(&packed, raw_len).expect("a good frame");
        let (rows, percents) = player.rows();
        let line = rows[0].cmdline.as_ref().expect("a line");
        assert!(line.argv().len() == TEXT_BYTES_MAX && rows[0].cmdline_cut);
        assert!((percents[0] - 1.5).abs() < 1e-4);
        assert_eq!(player.moment(), Some(&moment(1)));
    }

    #[test]
    fn frames_that_make_no_sense_are_refused() {
        let frame = |gone: Vec<i32>, changed: Vec<Change>| {
            let frame = Frame { moment: moment(1), texts: vec![b"x".to_vec()], gone, changed };
            let raw = postcard::to_stdvec(&frame).expect("plain values");
            (zstd::bulk::compress(&raw, 1).expect("it packs"), raw.len())
        };
        let change = |which, by| vec![Change { pid: 1, which, by }];
        let wrong = [
            frame(vec![5], vec![]),
            frame(vec![], change(3, vec![1])),
            frame(vec![], change(1, vec![1, 2])),
            frame(vec![], change(1 << 100, vec![1])),
            frame(vec![], change(1 << 2, vec![2])),
            (vec![1, 2, 3], 10),
            (frame(vec![], vec![]).0, 3),
            (frame(vec![], vec![]).0, FRAME_BYTES_MAX + 1),
        ];
        for (at, (packed, raw_len)) in wrong.iter().enumerate() {
            assert!(Player::default().take(packed, *raw_len).is_err(), "frame {at}");
        }
        let (packed, raw_len) = frame(vec![], change(1 << 2, vec![1]));
        assert_eq!(Player::default().take(&packed, raw_len), Ok(()));
    }
}
