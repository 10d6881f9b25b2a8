//! Changes of kernel parameters on the disk: those under way, a file each, and the journal of all.
//!
//! A file is replaced by one rename, after what is in it has reached the disk; so a kill at any moment
//! leaves what it said before, or what it says then. A change ends by its file saying how; then the
//! journal gets its line, and then the file goes. Who is killed in between does the rest when it starts.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use kumo_abi::sysctl::{Change, ChangeId, PENDING_MAX};

use super::rules::Kept;

/// Where they are, below the state directory.
const DIR: &str = "sysctl";

/// A journal that is longer is put aside, and replaces the one that was put aside before. With values
/// of usual length that keeps some 10,000 changes at least.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Longest line, and longest file of a change: three values of 64 KiB, each byte of which JSON may
/// write as six, and a few hundred bytes.
const LINE_BYTES_MAX: u64 = 2 << 20;

/// What there is of changes that were under way.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    /// Those that could be read.
    pub(crate) kept: Vec<Kept>,
    /// Files that could not, and why.
    pub(crate) unreadable: Vec<String>,
}

/// Entries of the journal.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// One of each change, as it last was; the oldest first.
    pub(crate) entries: Vec<Change>,
    /// Lines that could not be read: torn, or not ours.
    pub(crate) unreadable: u64,
}

/// The directory of one node.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    file_bytes_max: u64,
}

impl Disk {
    /// That of the node with this state directory. Nothing is made before something is written.
    pub(crate) fn of(state_dir: &Path) -> Disk {
        Disk { dir: state_dir.join(DIR), file_bytes_max: FILE_BYTES_MAX }
    }

    fn pending_dir(&self) -> PathBuf {
        self.dir.join("pending")
    }

    /// Its journal, the older file first.
    fn journals(&self) -> [PathBuf; 2] {
        ["journal.1.ndjson", "journal.ndjson"].map(|name| self.dir.join(name))
    }

    fn make_dirs(&self) -> io::Result<()> {
        let pending = self.pending_dir();
        if pending.is_dir() {
            return Ok(());
        }
        DirBuilder::new().mode(0o700).recursive(true).create(&pending)?;
        for dir in [Some(self.dir.as_path()), self.dir.parent()].into_iter().flatten() {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    }

    /// Writes what is known of a change. When this returns, it is on the disk.
    ///
    /// # Errors
    /// It is not; what was there before still is.
    pub(crate) fn keep(&self, kept: &Kept) -> io::Result<()> {
        self.make_dirs()?;
        let dir = self.pending_dir();
        let path = dir.join(format!("{}.json", kept.change.id));
        let new = dir.join(format!("{}.new", kept.change.id));
        let mut file = OpenOptions::new();
        let mut file = file.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&dir)?.sync_all()
    }

    /// The change is over, and the journal has it.
    ///
    /// # Errors
    /// Its file is still there: the next node sees that it had ended.
    pub(crate) fn forget(&self, id: &ChangeId) -> io::Result<()> {
        match fs::remove_file(self.pending_dir().join(format!("{id}.json"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Changes that were under way when the last node ended.
    ///
    /// # Errors
    /// The directory is there and cannot be read.
    pub(crate) fn under_way(&self) -> io::Result<UnderWay> {
        let mut found = UnderWay::default();
        let entries = match fs::read_dir(self.pending_dir()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        // Ours are never more; what somebody put there does not keep us for ever.
        for entry in entries.take(4 * PENDING_MAX) {
            let path = entry?.path();
            if path.extension().is_none_or(|kind| kind != "json") {
                // The beginning of a file whose writer was killed: what it was to say was not done.
                fs::remove_file(&path).ok();
                continue;
            }
            let mut bytes = Vec::new();
            let read = File::open(&path)
                .and_then(|file| file.take(LINE_BYTES_MAX).read_to_end(&mut bytes));
            let kept = read.map_err(|error| error.to_string()).and_then(|_| {
                serde_json::from_slice::<Kept>(&bytes).map_err(|error| error.to_string())
            });
            match kept {
                Ok(kept) => found.kept.push(kept),
                Err(error) => found.unreadable.push(format!("{}: {error}", path.display())),
            }
        }
        found.kept.sort_by_key(|kept| kept.began_ns);
        Ok(found)
    }

    /// Adds a line to the journal. When this returns, it is on the disk.
    ///
    /// # Errors
    /// It is not, or only a part of it, which readers skip.
    pub(crate) fn file(&self, change: &Change) -> io::Result<()> {
        self.make_dirs()?;
        let [aside, current] = self.journals();
        let mut line = serde_json::to_vec(change)?;
        line.push(b'\n');
        let mut open = OpenOptions::new();
        open.read(true).append(true).create(true).mode(0o600);
        let mut file = open.open(&current)?;
        let len_bytes = file.metadata()?.len();
        if len_bytes > 0 && len_bytes + line.len() as u64 > self.file_bytes_max {
            fs::rename(&current, aside)?;
            file = open.open(&current)?;
        } else if len_bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                // A torn line: it must not take the next one with it.
                line.insert(0, b'\n');
            }
        }
        file.write_all(&line)?;
        file.sync_all()?;
        if len_bytes == 0 {
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(())
    }

    /// The last `most` changes that are `wanted`.
    ///
    /// # Errors
    /// A file that is there cannot be read.
    pub(crate) fn journal(
        &self,
        most: usize,
        wanted: &dyn Fn(&Change) -> bool,
    ) -> io::Result<Journal> {
        let mut shown = Journal::default();
        // By number, in the order of their beginnings; only the last ones are kept.
        let mut entries: BTreeMap<u64, Change> = BTreeMap::new();
        let mut numbers: BTreeMap<ChangeId, u64> = BTreeMap::new();
        let mut next = 0;
        for path in self.journals() {
            let file = match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            let mut reader = BufReader::new(file);
            let mut line = Vec::new();
            loop {
                line.clear();
                if (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
                    break;
                }
                let Ok(change) = serde_json::from_slice::<Change>(&line) else {
                    shown.unreadable += u64::from(line != b"\n");
                    continue;
                };
                if !wanted(&change) {
                    continue;
                }
                let number = *numbers.entry(change.id.clone()).or_insert_with(|| {
                    next += 1;
                    next
                });
                entries.insert(number, change);
                if entries.len() > most
                    && let Some((_, oldest)) = entries.pop_first()
                {
                    numbers.remove(&oldest.id);
                }
            }
        }
        shown.entries = entries.into_values().collect();
        Ok(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysctl::rules::Kernel;
    use kumo_abi::sysctl::ChangeState;

    fn kept(number: u64, state: ChangeState) -> Kept {
        let change = Change {
            id: ChangeId::new(number),
            name: "vm.swappiness".parse().expect("a name"),
            at: "2026-11-28T09:00:00.000000Z".to_owned(),
            who: "user 0".to_owned(),
            old: Some("60".to_owned()),
            wanted: Some("10".to_owned()),
            became: None,
            state,
            why: None,
            confirm_within_ms: None,
            left_ms: None,
            ended_at: None,
            ended_by: None,
            private: false,
        };
        let kernel = Kernel { boot_id: "b".to_owned(), network_namespace: 7 };
        Kept { change, kernel, began_ns: number, due_ns: Some(9) }
    }

    fn states(disk: &Disk, most: usize) -> Vec<(u64, ChangeState)> {
        let number = |id: &ChangeId| u64::from_str_radix(id.as_str(), 16).expect("digits");
        let entries = disk.journal(most, &|_| true).expect("it is readable").entries;
        entries.iter().map(|one| (number(&one.id), one.state)).collect()
    }

    #[test]
    fn what_was_kept_is_there_until_it_is_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk::of(dir.path());
        assert!(disk.under_way().expect("none yet").kept.is_empty());
        let (a, b) = (kept(1, ChangeState::Intended), kept(2, ChangeState::Intended));
        disk.keep(&b).expect("kept");
        disk.keep(&a).expect("kept");
        assert_eq!(disk.under_way().expect("readable").kept, [a.clone(), b.clone()]);
        let ended = kept(1, ChangeState::RolledBack);
        disk.keep(&ended).expect("kept");
        assert_eq!(disk.under_way().expect("readable").kept, [ended, b.clone()]);
        disk.forget(&a.change.id).expect("forgotten");
        disk.forget(&a.change.id).expect("it was already");
        assert_eq!(disk.under_way().expect("readable").kept, [b]);
    }

    #[test]
    fn what_a_kill_leaves_half_written_harms_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk::of(dir.path());
        let a = kept(1, ChangeState::Pending);
        disk.keep(&a).expect("kept");
        let half = disk.pending_dir().join("00000000000000ff.new");
        fs::write(&half, "{\"id\":\"0000").expect("written");
        fs::write(disk.pending_dir().join("x.json"), "{}").expect("written");
        let found = disk.under_way().expect("readable");
        assert_eq!((found.kept, found.unreadable.len()), (vec![a], 1));
        assert!(!half.exists());
        // A torn line of the journal takes no other with it.
        disk.file(&kept(1, ChangeState::Pending).change).expect("written");
        let [_, current] = disk.journals();
        let whole = fs::read(&current).expect("it was written");
        fs::write(&current, [&whole[..], &whole[..20]].concat()).expect("written");
        disk.file(&kept(2, ChangeState::Made).change).expect("written");
        let journal = disk.journal(9, &|_| true).expect("readable");
        assert_eq!((journal.entries.len(), journal.unreadable), (2, 1));
    }

    #[test]
    fn the_last_that_was_said_of_a_change_is_shown() {
        use ChangeState::{Confirmed, Made, Pending};
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk { file_bytes_max: 2_000, ..Disk::of(dir.path()) };
        for (number, state) in [(1, Pending), (2, Made), (1, Confirmed)] {
            disk.file(&kept(number, state).change).expect("written");
        }
        assert_eq!(states(&disk, 9), [(1, Confirmed), (2, Made)]);
        assert_eq!(states(&disk, 1), [(1, Confirmed)]);
        for number in 3..100 {
            disk.file(&kept(number, Made).change).expect("written");
        }
        assert_eq!(states(&disk, 2), [(98, Made), (99, Made)]);
        for path in disk.journals() {
            assert!(fs::metadata(path).expect("both are there").len() <= 2_000);
        }
    }

    #[test]
    fn a_disk_that_takes_nothing_says_so() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(DIR), "a file where a directory should be").expect("written");
        let disk = Disk::of(dir.path());
        assert!(disk.keep(&kept(1, ChangeState::Intended)).is_err());
        assert!(disk.file(&kept(1, ChangeState::Made).change).is_err());
    }
}
