//! The file of the desired state.
//!
//! An embedded database (redb) holds one row an entry. A commit is one transaction that is on the
//! disk when it returns, so a kill at any moment leaves the state before it or after it. All reading
//! is done once, when the file is opened: afterwards the copy in memory answers.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::StoreError;
use super::lww::{Entry, Map};
use crate::clock::Stamp;

/// The form of the rows below. A file with a greater number is of a newer version, and left alone.
const FORMAT: u64 = 1;

/// Memory for pages of the file: it is read once, and written a few pages at a time.
const CACHE_BYTES: usize = 1024 * 1024;

/// A row: the stamp (milliseconds, count, writer) and the value; no value is a removal.
type Row<'a> = (u64, u32, &'a str, Option<&'a [u8]>);

/// Key → row.
const ENTRIES: TableDefinition<'_, &str, Row<'_>> = TableDefinition::new("entries");

/// What is known of the file as a whole: `format`, and `heard_ms`.
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");

/// What a file held.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// All entries.
    pub map: Map,
    /// When others were last heard of; `None` when they never were.
    pub heard_ms: Option<u64>,
}

/// What is written at once: all of it or nothing.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Keys with what they hold now; `None` when the key is forgotten.
    pub entries: Vec<(String, Option<Entry>)>,
    /// When others were last heard of, if that is to be written.
    pub heard_ms: Option<u64>,
}

/// Opens the database. A function of its own so that a test can put a bad disk under it.
type Opener = Box<dyn Fn() -> Result<Database, redb::Error> + Send>;

/// An open file.
pub(super) struct Disk {
    opener: Opener,
    /// `None` after an error of the disk: then redb wants the file to be opened anew.
    database: Option<Database>,
}

impl Disk {
    /// Opens the file at `path`, or makes it. One that is damaged is moved aside, and an empty one is
    /// begun.
    pub(super) fn open(path: &Path, now_ms: u64) -> Result<(Disk, Loaded), StoreError> {
        let owned = path.to_owned();
        let opener = move || open_file(&owned);
        match Disk::with_opener(Box::new(opener.clone())) {
            Ok((disk, found)) => {
                let loaded = found.or_else(|newer| newer.refuse(path))?;
                Ok((disk, loaded))
            }
            Err(error) if is_damage(&error) => {
                let aside = move_aside(path, "damaged", now_ms)?;
                tracing::error!(
                    "the desired state in {} is damaged ({error}); it was moved to {}, and what others \
                     know of it comes back from them",
                    path.display(),
                    aside.display()
                );
                let (disk, found) = Disk::with_opener(Box::new(opener))
                    .map_err(|source| StoreError::open(path, source))?;
                let loaded = found.or_else(|newer| newer.refuse(path))?;
                Ok((disk, loaded))
            }
            Err(redb::Error::DatabaseAlreadyOpen) => {
                Err(StoreError::InUse { path: path.to_owned() })
            }
            Err(source) => Err(StoreError::open(path, source)),
        }
    }

    fn with_opener(opener: Opener) -> Result<(Disk, Result<Loaded, Newer>), redb::Error> {
        // The checksums of a page are verified when the file is opened. Still a panic of the database
        // about what it finds in a file is damage of that file, and must not keep the node down.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = opener()?;
            let loaded = load(&database)?;
            Ok::<_, redb::Error>((database, loaded))
        }));
        let panicked = || Err(redb::Error::Corrupted("it cannot be read".to_owned()));
        let (database, loaded) = opened.unwrap_or_else(|_| panicked())?;
        Ok((Disk { opener, database: Some(database) }, loaded))
    }

    /// Writes a batch; it is on the disk when this returns.
    ///
    /// After an error it is in the file or not, as a whole; the next write opens the file anew.
    pub(super) fn write(&mut self, batch: &Batch) -> Result<(), redb::Error> {
        let database = match self.database.take() {
            Some(database) => database,
            None => (self.opener)()?,
        };
        write(&database, batch)?;
        self.database = Some(database);
        Ok(())
    }
}

/// The file's form is of a version that we do not know.
struct Newer(u64);

impl Newer {
    fn refuse(self, path: &Path) -> Result<Loaded, StoreError> {
        Err(StoreError::Newer { path: path.to_owned(), format: self.0 })
    }
}

fn open_file(path: &Path) -> Result<Database, redb::Error> {
    let begun = !path.exists();
    let mut options = fs::OpenOptions::new();
    let file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    let database = builder.create_with_backend(FileBackend::new(file)?)?;
    if begun && let Some(directory) = path.parent() {
        // Without this a power cut may take the file's name, and all that was acknowledged with it.
        fs::File::open(directory)?.sync_all()?;
    }
    Ok(database)
}

fn load(database: &Database) -> Result<Result<Loaded, Newer>, redb::Error> {
    let reading = database.begin_read()?;
    let about = match reading.open_table(ABOUT) {
        Ok(about) => about,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Ok(Loaded::default())),
        Err(error) => return Err(error.into()),
    };
    let number = |key: &str| Ok::<_, redb::Error>(about.get(key)?.map(|found| found.value()));
    let format = number("format")?.unwrap_or(FORMAT);
    if format > FORMAT {
        return Ok(Err(Newer(format)));
    }
    let mut loaded = Loaded { map: Map::default(), heard_ms: number("heard_ms")? };
    for row in reading.open_table(ENTRIES)?.iter()? {
        let (key, found) = row?;
        let (ms, count, writer, value) = found.value();
        let writer = writer.parse().map_err(|_| {
            redb::Error::Corrupted(format!("`{}` is no host", writer.escape_debug()))
        })?;
        let stamp = Stamp { ms, count, writer };
        loaded.map.merge(key.value(), Entry { value: value.map(<[u8]>::to_vec), stamp });
    }
    Ok(Ok(loaded))
}

fn write(database: &Database, batch: &Batch) -> Result<(), redb::Error> {
    let mut writing = database.begin_write()?;
    writing.set_durability(Durability::Immediate)?;
    {
        let mut about = writing.open_table(ABOUT)?;
        about.insert("format", FORMAT)?;
        if let Some(heard_ms) = batch.heard_ms {
            about.insert("heard_ms", heard_ms)?;
        }
        let mut entries = writing.open_table(ENTRIES)?;
        for (key, entry) in &batch.entries {
            let Some(Entry { value, stamp }) = entry else {
                entries.remove(key.as_str())?;
                continue;
            };
            let writer = stamp.writer.to_string();
            let row = (stamp.ms, stamp.count, writer.as_str(), value.as_deref());
            entries.insert(key.as_str(), row)?;
        }
    }
    Ok(writing.commit()?)
}

/// Whether the file itself is bad, rather than the disk, the permissions or another process.
fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TypeDefinitionChanged { .. } => true,
        redb::Error::Io(error) => {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}

/// Renames a file to `<file>.<why>-<ms>`, and says the new name.
fn move_aside(path: &Path, why: &str, now_ms: u64) -> Result<PathBuf, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{why}-{now_ms}"));
    let aside = PathBuf::from(name);
    let error = |source| StoreError::Aside { path: path.to_owned(), source };
    fs::rename(path, &aside).map_err(error)?;
    Ok(aside)
}

/// Copies a file to `<file>.<why>-<ms>` before much of it is dropped, and says the new name.
pub(super) fn copy_aside(path: &Path, why: &str, now_ms: u64) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{why}-{now_ms}"));
    let aside = PathBuf::from(name);
    fs::copy(path, &aside)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::StorageBackend;

    use super::*;

    /// A file on a disk that is full while `full` says so.
    #[derive(Debug)]
    struct Flawed {
        file: FileBackend,
        full: Arc<AtomicBool>,
    }

    impl Flawed {
        fn check(&self) -> Result<(), io::Error> {
            if self.full.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }
    }

    impl StorageBackend for Flawed {
        fn len(&self) -> Result<u64, io::Error> {
            self.file.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
            self.file.read(offset, out)
        }
        fn set_len(&self, len: u64) -> Result<(), io::Error> {
            self.check()?;
            self.file.set_len(len)
        }
        fn sync_data(&self) -> Result<(), io::Error> {
            self.check()?;
            self.file.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
            self.check()?;
            self.file.write(offset, data)
        }
        fn close(&self) -> Result<(), io::Error> {
            self.file.close()
        }
    }

    fn batch(key: &str, ms: u64) -> Batch {
        let stamp = Stamp { ms, count: 0, writer: "tokyo/a".parse().expect("a host") };
        let entry = Entry { value: Some(b"v".to_vec()), stamp };
        Batch { entries: vec![(key.to_owned(), Some(entry))], heard_ms: None }
    }

    #[test]
    fn a_disk_that_was_full_works_again_when_it_has_room() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.redb");
        let full = Arc::new(AtomicBool::new(false));
        let opener = {
            let (path, full) = (path.clone(), full.clone());
            move || {
                let mut options = fs::OpenOptions::new();
                let file =
                    options.read(true).write(true).create(true).truncate(false).open(&path)?;
                let file = FileBackend::new(file)?;
                let flawed = Flawed { file, full: full.clone() };
                Ok(Database::builder().create_with_backend(flawed)?)
            }
        };
        let (mut disk, _) = Disk::with_opener(Box::new(opener)).expect("a file");
        disk.write(&batch("before", 1)).expect("room");
        full.store(true, Ordering::SeqCst);
        disk.write(&batch("meanwhile", 2)).expect_err("no room");
        disk.write(&batch("meanwhile", 3)).expect_err("still no room");
        full.store(false, Ordering::SeqCst);
        disk.write(&batch("after", 4)).expect("room again");
        drop(disk);
        let (_disk, loaded) = Disk::open(&path, 5).expect("the file");
        assert!(loaded.map.value("before").is_some() && loaded.map.value("after").is_some());
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 1, "not damaged");
    }

    #[test]
    fn a_file_of_a_newer_version_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.redb");
        let database = open_file(&path).expect("a file");
        write(&database, &batch("k", 1)).expect("a write");
        let writing = database.begin_write().expect("a transaction");
        writing.open_table(ABOUT).expect("a table").insert("format", FORMAT + 1).expect("a row");
        writing.commit().expect("a commit");
        drop(database);
        let refused = Disk::open(&path, 5).err();
        let newer =
            |e: &StoreError| matches!(e, StoreError::Newer { format, .. } if *format == FORMAT + 1);
        assert!(refused.as_ref().is_some_and(newer), "{refused:?}");
        assert!(path.exists());
    }
}
