//! What reactions did, on the disk of the host that did it.
//!
//! Lines of JSON, one that a call begins and one that it has ended. Each is written as a whole by one
//! system call, so a killed node leaves whole lines, or a torn last one that readers skip. A call whose
//! end is missing, and that no longer runs, may have been executed: it is shown as unknown. A lost
//! machine may lose the last lines, as nothing waits for the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use kumo_abi::react::ReactionName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where it is, below the state directory.
pub(crate) const JOURNAL_DIR: &str = "react";

/// A file that is longer is put aside, and replaces the one that was put aside before: some 20,000
/// entries are kept at least.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Longest line that is read. Ours have some hundred bytes; the rest is the event in short and words.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Most of what a callee says that is kept.
pub(crate) const MESSAGE_CHARS_MAX: usize = 300;

/// An entry: what came of one event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct Entry {
    /// Which: 16 hexadecimal digits.
    pub(crate) id: String,
    /// When the event was acted upon, RFC 3339 with microseconds, UTC.
    pub(crate) at: String,
    /// Which reaction.
    #[schema(value_type = String)]
    pub(crate) reaction: ReactionName,
    /// `began`, then one of `done`, `failed`, `not-executed`, `unknown`; or `dropped`, or `missed`.
    pub(crate) outcome: String,
    /// Why, where it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<String>,
    /// The callee's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<u32>,
    /// What was said about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// What was called: `service/method`.
    pub(crate) call: String,
    /// Its trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trace: Option<String>,
    /// The event in short.
    #[schema(value_type = Object)]
    pub(crate) event: Value,
    /// How many calls of the same reaction may have led to it.
    #[serde(default)]
    pub(crate) depth: u8,
    /// How often it was tried; the second time after it was certainly not executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) attempts: Option<u32>,
    /// How long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) took_ms: Option<f64>,
    /// How many events were dropped since the call before; how many were missed.
    #[serde(default)]
    pub(crate) dropped: u64,
}

/// Entries as they are shown.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub(crate) struct Shown {
    /// The oldest first.
    pub(crate) entries: Vec<Entry>,
    /// Lines that could not be read: torn, or not ours.
    pub(crate) unreadable: u64,
}

/// The journal, to be written.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    file: Option<(File, u64)>,
    /// Entries that could not be written since the node began.
    unwritten: u64,
    file_bytes_max: u64,
}

impl Journal {
    /// That of the node with this state directory. Nothing is opened before something is written.
    pub(crate) fn of(state_dir: &Path) -> Journal {
        let dir = state_dir.join(JOURNAL_DIR);
        Journal { dir, file: None, unwritten: 0, file_bytes_max: FILE_BYTES_MAX }
    }

    /// Entries that could not be written since the node began.
    pub(crate) fn unwritten(&self) -> u64 {
        self.unwritten
    }

    /// Its files, the older first.
    pub(crate) fn files(&self) -> [PathBuf; 2] {
        ["journal.1.ndjson", "journal.ndjson"].map(|name| self.dir.join(name))
    }

    /// Appends an entry. One that cannot be written is counted and logged: what it is about has happened
    /// all the same.
    pub(crate) fn write(&mut self, entry: &Entry) {
        if let Err(error) = self.try_write(entry) {
            self.unwritten += 1;
            // What was written of the line is ended by the next opening.
            self.file = None;
            let dir = self.dir.display();
            tracing::error!("the journal of reactions in {dir} cannot be written: {error}");
        }
    }

    fn try_write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let len_bytes = line.len() as u64;
        if self.file.as_ref().is_some_and(|(_, at)| at + len_bytes > self.file_bytes_max) {
            self.file = None;
            let [aside, current] = self.files();
            fs::rename(current, aside)?;
        }
        if self.file.is_none() {
            self.file = Some(self.open()?);
        }
        if let Some((file, at)) = &mut self.file {
            file.write_all(&line)?;
            *at += len_bytes;
        }
        Ok(())
    }

    fn open(&self) -> io::Result<(File, u64)> {
        fs::create_dir_all(&self.dir)?;
        let [_, current] = self.files();
        let mut open = OpenOptions::new();
        let mut file = open.read(true).append(true).create(true).mode(0o600).open(current)?;
        let mut len_bytes = file.metadata()?.len();
        if len_bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                // A torn line: it must not take the next one with it.
                file.write_all(b"\n")?;
                len_bytes += 1;
            }
        }
        Ok((file, len_bytes))
    }
}

/// Reads the last `most` entries from `files`, of one reaction if one is named. `running` are the calls
/// that are under way.
///
/// # Errors
/// A file that is there cannot be read.
pub(crate) fn read(
    files: &[PathBuf],
    reaction: Option<&ReactionName>,
    most: usize,
    running: &BTreeSet<String>,
) -> io::Result<Shown> {
    let mut shown = Shown::default();
    // By number, in the order of their beginnings; only the last ones are kept.
    let mut entries: BTreeMap<u64, Entry> = BTreeMap::new();
    let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
    let mut next = 0;
    for path in files {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            if (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let Ok(entry) = serde_json::from_slice::<Entry>(&line) else {
                shown.unreadable += u64::from(line != b"\n");
                continue;
            };
            if reaction.is_some_and(|wanted| *wanted != entry.reaction) {
                continue;
            }
            let number = numbers.get(&entry.id).copied().unwrap_or(next);
            if number == next {
                next += 1;
                numbers.insert(entry.id.clone(), number);
            }
            entries.insert(number, entry);
            if entries.len() > most
                && let Some((_, oldest)) = entries.pop_first()
            {
                // Its end may still come: then it is one of the last that were told, and shown again.
                numbers.remove(&oldest.id);
            }
        }
    }
    for mut entry in entries.into_values() {
        if entry.outcome == "began" && !running.contains(&entry.id) {
            "unknown".clone_into(&mut entry.outcome);
            entry.cause = Some("NODE_ENDED".to_owned());
            let said = "the node ended, or could not write, before this call's end was told";
            entry.message = Some(said.to_owned());
        } else if entry.outcome == "began" {
            "running".clone_into(&mut entry.outcome);
        }
        shown.entries.push(entry);
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, reaction: &str, outcome: &str) -> Entry {
        Entry {
            id: id.to_owned(),
            at: "2026-11-28T09:00:00.000000Z".to_owned(),
            reaction: reaction.parse().expect("a name"),
            outcome: outcome.to_owned(),
            cause: None,
            code: None,
            message: None,
            call: "kv/call".to_owned(),
            trace: None,
            event: serde_json::json!({"pid": 7}),
            depth: 0,
            attempts: None,
            took_ms: Some(1.5),
            dropped: 0,
        }
    }

    fn shown(journal: &Journal, most: usize, running: &[&str]) -> (Vec<(String, String)>, u64) {
        let running = running.iter().map(|id| (*id).to_owned()).collect();
        let shown = read(&journal.files(), None, most, &running).expect("it is readable");
        let pairs = shown.entries.into_iter().map(|entry| (entry.id, entry.outcome)).collect();
        (pairs, shown.unreadable)
    }

    fn pair(id: &str, outcome: &str) -> (String, String) {
        (id.to_owned(), outcome.to_owned())
    }

    #[test]
    fn what_began_and_has_no_end_is_unknown_unless_it_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = Journal::of(dir.path());
        assert_eq!(shown(&journal, 9, &[]), (vec![], 0), "there is none yet");
        for (id, outcome) in [("a", "began"), ("b", "began"), ("a", "done"), ("c", "began")] {
            journal.write(&entry(id, "x", outcome));
        }
        let want = vec![pair("a", "done"), pair("b", "unknown"), pair("c", "running")];
        assert_eq!(shown(&journal, 9, &["c"]), (want, 0));
        assert_eq!(shown(&journal, 1, &["c"]).0, [pair("c", "running")]);
        let y = "y".parse().expect("a name");
        let of_y = read(&journal.files(), Some(&y), 9, &BTreeSet::new()).expect("readable");
        assert!(of_y.entries.is_empty());
    }

    #[test]
    fn a_torn_line_is_skipped_and_takes_no_other_with_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = Journal::of(dir.path());
        journal.write(&entry("a", "x", "done"));
        let [_, current] = journal.files();
        let mut bytes = fs::read(&current).expect("it was written");
        let whole = bytes.clone();
        bytes.extend_from_slice(&whole[..whole.len() / 2]);
        fs::write(&current, &bytes).expect("written");
        assert_eq!(shown(&journal, 9, &[]), (vec![pair("a", "done")], 1));
        // The next node goes on behind it.
        Journal::of(dir.path()).write(&entry("b", "x", "done"));
        assert_eq!(shown(&journal, 9, &[]), (vec![pair("a", "done"), pair("b", "done")], 1));
        fs::write(&current, [b"\0\xff\n[]\n".to_vec(), vec![b'x'; 200_000]].concat())
            .expect("written");
        let (entries, unreadable) = shown(&journal, 9, &[]);
        assert!(entries.is_empty() && unreadable > 2);
    }

    #[test]
    fn files_are_bounded_and_the_last_entries_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = Journal { file_bytes_max: 2_000, ..Journal::of(dir.path()) };
        for number in 0..100 {
            journal.write(&entry(&format!("{number}"), "x", "done"));
        }
        for path in journal.files() {
            assert!(fs::metadata(path).expect("both are there").len() <= 2_000);
        }
        let (entries, _) = shown(&journal, 5, &[]);
        let want: Vec<_> = (95..100).map(|number| pair(&number.to_string(), "done")).collect();
        assert_eq!(entries, want);
        assert_eq!(journal.unwritten(), 0);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(JOURNAL_DIR), "a file where a directory should be")
            .expect("written");
        let mut journal = Journal::of(dir.path());
        journal.write(&entry("a", "x", "done"));
        journal.write(&entry("b", "x", "done"));
        assert_eq!(journal.unwritten(), 2);
    }
}
