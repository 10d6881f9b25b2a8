//! The desired state of the cluster: a small map, complete on every node, that survives them.
//!
//! [`lww`] holds the rules, [`disk`] the file; [`Store`] puts them together. What this host writes is
//! on its disk before it is acknowledged. What others wrote is in memory at once and on the disk
//! within a second (whoever owns the store calls [`Store::flush`]): it is on their disks already.
//!
//! Removals are remembered for a week. Who heard of nobody for longer starts over, when it is opened or,
//! if it runs, when the first of the others is back. There is a limit: a data centre whose nodes hear
//! each other and that is cut off for over a week brings back what the others have removed meanwhile,
//! when they meet again. What must hold in spite of it is only ever added: evictions, certificates, uses
//! of tokens.

mod disk;
pub mod lww;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kumo_abi::HostId;
use tokio::sync::broadcast;

use self::disk::{Batch, Disk, Loaded};
pub use self::lww::VALUE_BYTES_MAX;
pub use self::lww::{Digest, Entry};
use self::lww::{KEY_BYTES_MAX, Map};
use crate::clock::{AHEAD_MS_MAX, Clock, Stamp};
use kumo_sys::wall_ms;

/// All entries together. Every node holds them in memory; 10,000 hosts with their cards and
/// certificates take some 20 MB.
pub const STORE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// So many changes a slow listener may be behind. One that is further behind is told so, and reads
/// the state anew.
const CHANGES_MAX: usize = 1024;

/// The time others were last heard of is written with what they sent, else when it has moved by this:
/// it is compared with a week, and an idle node should leave its disk alone.
const HEARD_STEP_MS: u64 = 10 * 60 * 1000;

/// How often removals are looked through for those to forget.
const SWEEP_MS: u64 = 60 * 1000;

/// Keys under these prefixes are only ever added, so an old copy of them brings nothing back that
/// others have removed. They stay when a node starts over: an evicted certificate must not be good
/// again because hosts were switched off for a week.
const ADDED_ONLY: [&str; 5] = ["evicted/", "evicted-host/", "issued/", "token-use/", REVOKED];

/// What begins the keys of certificates that were taken back, of people and programs that ask over HTTP.
pub const REVOKED: &str = "right/revoked/";

/// Why the state was not opened or not changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the file.
    #[error("{} is in use by another process; is another node running?", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is of a newer version. It was left as it is.
    #[error(
        "{} was written by a newer version (its format is {format}); install that, or move the file away",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u64,
    },
    /// The file cannot be opened, for a reason that is not the file's.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: Box<redb::Error>,
    },
    /// A damaged file could not be moved out of the way.
    #[error("{} is damaged, and cannot be moved aside", path.display())]
    Aside {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The disk did not take it. The state in memory is as before; in the file the change may or may
    /// not be, so it may show after a restart. It is safe to try again.
    #[error("the disk did not take the change; it was not made")]
    Write {
        /// The reason.
        source: Box<redb::Error>,
    },
    /// A key that is empty, too long or has control characters.
    #[error("a key has 1 to {KEY_BYTES_MAX} printable characters")]
    Key,
    /// A value above [`VALUE_BYTES_MAX`].
    #[error("a value has at most {VALUE_BYTES_MAX} bytes, and this has {bytes}")]
    TooBig {
        /// Its size.
        bytes: usize,
    },
    /// Above [`STORE_BYTES_MAX`] in all. Removals free memory a week later.
    #[error("the desired state is full: it takes {STORE_BYTES_MAX} bytes at most")]
    Full,
    /// What is known here is stamped far ahead of this host's clock, so others would refuse whatever
    /// is written now. Either the clock is behind now, or it was ahead before.
    #[error(
        "this host's clock is {ahead_ms} ms behind what it has written before; set it by NTP (or, if it \
         was ahead then, move `store.redb` away: the state comes back from other hosts)"
    )]
    ClockBehind {
        /// By how much.
        ahead_ms: u64,
    },
}

impl StoreError {
    fn open(path: &Path, source: redb::Error) -> StoreError {
        StoreError::Open { path: path.to_owned(), source: Box::new(source) }
    }
}

/// A key holds something else now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which key.
    pub key: String,
    /// What it holds.
    pub entry: Entry,
    /// Whether this host wrote it: then others have yet to hear of it.
    pub own: bool,
}

/// What became of entries from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakenIn {
    /// Newer than what was here, and kept.
    pub newer: usize,
    /// Known already, or older than what is known, or a removal that is forgotten by now.
    pub known: usize,
    /// Refused: stamped too far ahead of this host's clock. They are good when time has caught up.
    pub ahead: usize,
    /// Refused: a key or a value that is none, or no room.
    pub bad: usize,
    /// Why the first of the refused was refused.
    pub why: Option<String>,
}

/// Wall-clock milliseconds since the Unix epoch.
type Wall = Box<dyn Fn() -> u64 + Send + Sync>;

/// The desired state, as this host knows it. All methods may be called from any thread;
/// [`Store::put`], [`Store::remove`] and [`Store::flush`] wait for the disk.
pub struct Store {
    writer: HostId,
    wall: Wall,
    /// Of the file, where there is one.
    path: Option<PathBuf>,
    /// Taken before `state`, and held while the disk works: readers do not wait for it.
    disk: Mutex<Option<Disk>>,
    state: RwLock<State>,
    changes: broadcast::Sender<Change>,
}

struct State {
    map: Map,
    clock: Clock,
    /// Keys whose entry in the file is not that of `map`.
    unwritten: BTreeSet<String>,
    heard_ms: Option<u64>,
    heard_written_ms: Option<u64>,
    swept_ms: u64,
}

impl Store {
    /// Opens the state of `writer` in the file at `path`, or begins it. The directory must be there.
    ///
    /// A damaged file is moved to `<path>.damaged-<ms>` and an empty one begun. If others were last
    /// heard of so long ago that they may have forgotten removals, what they knew of then is dropped
    /// (after a copy to `<path>.away-<ms>`), and comes back from them.
    ///
    /// # Errors
    /// [`StoreError`] `InUse`, `Newer`, `Open` and `Aside`; nothing is changed then.
    pub fn open(path: &Path, writer: HostId) -> Result<Store, StoreError> {
        Store::open_with(path, writer, Box::new(wall_ms))
    }

    fn open_with(path: &Path, writer: HostId, wall: Wall) -> Result<Store, StoreError> {
        let now_ms = wall();
        let (mut disk, mut loaded) = Disk::open(path, now_ms)?;
        let dropped = start_over(&mut loaded.map, loaded.heard_ms, &writer, now_ms);
        if !dropped.is_empty() {
            let aside = disk::copy_aside(path, "away", now_ms)
                .map_err(|source| StoreError::Aside { path: path.to_owned(), source })?;
            say_start_over(dropped.len(), &aside);
        }
        let mut gone = dropped;
        gone.extend(loaded.map.forget_tombstones(now_ms));
        if !gone.is_empty() {
            let entries = gone.into_iter().map(|key| (key, None)).collect();
            disk.write(&Batch { entries, heard_ms: None })
                .map_err(|source| StoreError::open(path, source))?;
        }
        Ok(Store::with(writer, wall, Some((disk, path.to_owned())), loaded))
    }

    /// A state that is in memory only.
    pub fn in_memory(writer: HostId) -> Store {
        Store::with(writer, Box::new(wall_ms), None, Loaded::default())
    }

    fn with(writer: HostId, wall: Wall, file: Option<(Disk, PathBuf)>, loaded: Loaded) -> Store {
        let (disk, path) = file.unzip();
        let state = State {
            clock: Clock::new(writer.clone(), loaded.map.last_stamp()),
            map: loaded.map,
            unwritten: BTreeSet::new(),
            heard_ms: loaded.heard_ms,
            heard_written_ms: loaded.heard_ms,
            swept_ms: wall(),
        };
        Store {
            writer,
            wall,
            path,
            disk: Mutex::new(disk),
            state: RwLock::new(state),
            changes: broadcast::Sender::new(CHANGES_MAX),
        }
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<Vec<u8>> {
        self.read().map.value(key).map(<[u8]>::to_vec)
    }

    /// What is known of `key`, a removal included.
    pub fn entry(&self, key: &str) -> Option<Entry> {
        self.read().map.entry(key).cloned()
    }

    /// Keys that begin with `prefix`, with their values, in order.
    pub fn with_prefix(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let owned = |(key, value): (&str, &[u8])| (key.to_owned(), value.to_vec());
        self.read().map.with_prefix(prefix).map(owned).collect()
    }

    /// The same keys alone.
    pub fn keys_with_prefix(&self, prefix: &str) -> Vec<String> {
        self.read().map.with_prefix(prefix).map(|(key, _)| key.to_owned()).collect()
    }

    /// Writes `value`. When this returns it is on the disk: whatever happens to this host's processes,
    /// it is not lost.
    ///
    /// # Errors
    /// [`StoreError`] `Key`, `TooBig`, `Full`, `ClockBehind` and `Write`; the state is as before.
    pub fn put(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(StoreError::TooBig { bytes: value.len() });
        }
        self.change(key, Some(value))
    }

    /// Removes `key`, as durably as [`Store::put`] writes. A key that holds nothing stays as it is.
    ///
    /// # Errors
    /// As of [`Store::put`].
    pub fn remove(&self, key: &str) -> Result<(), StoreError> {
        self.change(key, None)
    }

    fn change(&self, key: &str, value: Option<Vec<u8>>) -> Result<(), StoreError> {
        if !is_key(key) {
            return Err(StoreError::Key);
        }
        let mut disk = self.lock_disk();
        let now_ms = (self.wall)();
        let entry = {
            let mut state = self.write();
            if value.is_none() && state.map.value(key).is_none() {
                return Ok(());
            }
            let stamp = state.clock.stamp(now_ms);
            let ahead_ms = stamp.ms.saturating_sub(now_ms);
            if ahead_ms > AHEAD_MS_MAX {
                return Err(StoreError::ClockBehind { ahead_ms });
            }
            let entry = Entry { value, stamp };
            let size_bytes = state.map.size_bytes() + lww::size_bytes(key, &entry);
            if entry.value.is_some() && size_bytes > STORE_BYTES_MAX {
                return Err(StoreError::Full);
            }
            entry
        };
        if let Some(disk) = disk.as_mut() {
            let entries = vec![(key.to_owned(), Some(entry.clone()))];
            disk.write(&Batch { entries, heard_ms: None })
                .map_err(|source| StoreError::Write { source: Box::new(source) })?;
        }
        // If a newer entry of another host came in meanwhile, the file holds ours now; that other's
        // key is in `unwritten`, so the next flush sets it right.
        self.write().take(key, entry, true, &self.changes);
        Ok(())
    }

    /// Takes in entries from others. What is newer is kept in memory, and written to the disk by the
    /// next [`Store::flush`].
    pub fn take_in(&self, entries: Vec<(String, Entry)>) -> TakenIn {
        self.start_over_after_long();
        let now_ms = (self.wall)();
        let mut state = self.write();
        state.heard_ms = Some(now_ms);
        let mut taken = TakenIn::default();
        for (key, entry) in entries {
            let value_bytes = entry.value.as_ref().map_or(0, Vec::len);
            if !is_key(&key) || value_bytes > VALUE_BYTES_MAX {
                let why =
                    || format!("a key or value that is none came from `{}`", entry.stamp.writer);
                taken.why.get_or_insert_with(why);
                taken.bad += 1;
            } else if state.map.entry(&key).is_some_and(|known| known.stamp >= entry.stamp)
                || lww::too_old(&entry, now_ms)
            {
                taken.known += 1;
            } else if state.map.size_bytes() + lww::size_bytes(&key, &entry) > STORE_BYTES_MAX {
                taken.why.get_or_insert_with(|| StoreError::Full.to_string());
                taken.bad += 1;
            } else if let Err(ahead) = state.clock.see(&entry.stamp, now_ms) {
                taken.why.get_or_insert_with(|| ahead.to_string());
                taken.ahead += 1;
            } else {
                state.unwritten.insert(key.clone());
                state.take(&key, entry, false, &self.changes);
                taken.newer += 1;
            }
        }
        taken
    }

    /// Notes that another host was heard of: an exchange that found no difference says as much as one
    /// that did. Without it a node would believe to have been alone, and start over.
    pub fn heard(&self) {
        self.start_over_after_long();
        self.write().heard_ms = Some((self.wall)());
    }

    /// A digest of all of it, for [`Store::differing`] of another host.
    pub fn digest(&self) -> Digest {
        self.start_over_after_long();
        self.read().map.digest()
    }

    /// What another host with the digest `theirs` may not have. The default digest asks for all.
    pub fn differing(&self, theirs: &Digest) -> Vec<(String, Entry)> {
        self.start_over_after_long();
        self.read().map.differing(theirs)
    }

    /// All of it in one number: hosts with equal ones have equal states.
    pub fn root(&self) -> u64 {
        self.start_over_after_long();
        self.read().map.digest().root()
    }

    /// Every change from now on, in the order in which they were made here.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Writes to the disk what came from others since the last time, and forgets old removals. To be
    /// called every second; costs nothing when there is nothing to do.
    ///
    /// # Errors
    /// `Write`; everything stays in memory, and the next call tries again.
    pub fn flush(&self) -> Result<(), StoreError> {
        let mut disk = self.lock_disk();
        let now_ms = (self.wall)();
        let (batch, keys) = {
            let mut state = self.write();
            if now_ms.abs_diff(state.swept_ms) >= SWEEP_MS {
                state.swept_ms = now_ms;
                let forgotten = state.map.forget_tombstones(now_ms);
                state.unwritten.extend(forgotten);
            }
            let keys = std::mem::take(&mut state.unwritten);
            let entry = |key: &String| (key.clone(), state.map.entry(key).cloned());
            let entries = keys.iter().map(entry).collect();
            let heard_ms = state.heard_ms.filter(|_| !keys.is_empty() || state.heard_has_moved());
            (Batch { entries, heard_ms }, keys)
        };
        let Some(disk) = disk.as_mut().filter(|_| !keys.is_empty() || batch.heard_ms.is_some())
        else {
            return Ok(());
        };
        if let Err(source) = disk.write(&batch) {
            self.write().unwritten.extend(keys);
            return Err(StoreError::Write { source: Box::new(source) });
        }
        if batch.heard_ms.is_some() {
            self.write().heard_written_ms = batch.heard_ms;
        }
        Ok(())
    }

    /// Before this host tells others what it knows, or hears of them: if they were last heard of so long
    /// ago that they may have forgotten removals, drops what they knew of then, as [`Store::open`] does.
    /// A node that runs and is cut off notices it here, when the first of the others is back.
    fn start_over_after_long(&self) {
        let now_ms = (self.wall)();
        let is_due =
            |state: &State| state.heard_ms.is_some_and(|at| lww::must_start_over(at, now_ms));
        if !is_due(&self.read()) {
            return;
        }
        let _disk = self.lock_disk(); // Nobody writes the file while it is copied.
        let mut state = self.write();
        if !is_due(&state) {
            return;
        }
        let heard_ms = state.heard_ms.replace(now_ms);
        let dropped = start_over(&mut state.map, heard_ms, &self.writer, now_ms);
        if dropped.is_empty() {
            return;
        }
        match self.path.as_ref().map(|path| disk::copy_aside(path, "away", now_ms)) {
            Some(Ok(aside)) => say_start_over(dropped.len(), &aside),
            // What is dropped comes back from others; keeping it would bring back what they removed.
            Some(Err(error)) => tracing::error!(
                "{} entries of over a week ago were dropped, and no copy of them could be made: {error}",
                dropped.len()
            ),
            None => (),
        }
        state.unwritten.extend(dropped);
    }

    fn lock_disk(&self) -> MutexGuard<'_, Option<Disk>> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::warn!("the last changes of other hosts were not written: {error}");
        }
    }
}

impl State {
    fn take(&mut self, key: &str, entry: Entry, own: bool, changes: &broadcast::Sender<Change>) {
        if self.map.merge(key, entry.clone()) {
            // An error says that nobody listens.
            let _ = changes.send(Change { key: key.to_owned(), entry, own });
        }
    }

    fn heard_has_moved(&self) -> bool {
        let moved = |heard_ms: u64, written_ms: u64| heard_ms.abs_diff(written_ms) >= HEARD_STEP_MS;
        match (self.heard_ms, self.heard_written_ms) {
            (Some(heard_ms), Some(written_ms)) => moved(heard_ms, written_ms),
            (heard_ms, _) => heard_ms.is_some(),
        }
    }
}

fn say_start_over(dropped: usize, aside: &Path) {
    tracing::warn!(
        "this host has not heard of others for over a week, and they may have forgotten what was \
         removed meanwhile: {dropped} entries were dropped and come back from them; a copy of the state \
         before is {}",
        aside.display()
    );
}

/// Drops what others knew of when they were last heard of, if that is too long ago; says which keys.
fn start_over(map: &mut Map, heard_ms: Option<u64>, writer: &HostId, now_ms: u64) -> Vec<String> {
    // A node that never heard of others is alone: nobody could have removed anything.
    let Some(heard_ms) = heard_ms.filter(|at| lww::must_start_over(*at, now_ms)) else {
        return Vec::new();
    };
    // What this host wrote after that is new to everybody.
    let known = |stamp: &Stamp| stamp.writer != *writer || stamp.ms <= heard_ms;
    let added_only = |key: &str| ADDED_ONLY.iter().any(|prefix| key.starts_with(prefix));
    let dropped = map.entries().filter(|(key, entry)| known(&entry.stamp) && !added_only(key));
    let dropped: Vec<String> = dropped.map(|(key, _)| key.clone()).collect();
    for key in &dropped {
        map.forget(key);
    }
    dropped
}

fn is_key(key: &str) -> bool {
    (1..=KEY_BYTES_MAX).contains(&key.len()) && !key.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::lww::TOMBSTONE_MS;
    use super::*;

    /// A wall clock that a test sets.
    #[derive(Clone)]
    struct Time(Arc<AtomicU64>);

    impl Time {
        fn at(ms: u64) -> Time {
            Time(Arc::new(AtomicU64::new(ms)))
        }
        fn add(&self, ms: u64) {
            self.0.fetch_add(ms, Ordering::SeqCst);
        }
        fn wall(&self) -> Wall {
            let time = self.clone();
            Box::new(move || time.0.load(Ordering::SeqCst))
        }
    }

    const START_MS: u64 = 1_800_000_000_000;

    fn host(name: &str) -> HostId {
        format!("tokyo/{name}").parse().expect("a host")
    }

    fn entry(ms: u64, writer: &str, value: Option<&str>) -> Entry {
        let stamp = Stamp { ms, count: 0, writer: host(writer) };
        Entry { value: value.map(|value| value.as_bytes().to_vec()), stamp }
    }

    fn in_memory(time: &Time) -> Store {
        Store::with(host("a"), time.wall(), None, Loaded::default())
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).expect("a directory");
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.expect("an entry").file_name().into_string().expect("a name")
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let time = Time::at(START_MS);
        let store = in_memory(&time);
        store.put("k", b"v".to_vec()).expect("a put");
        let root = store.root();
        assert!(matches!(store.put("", Vec::new()), Err(StoreError::Key)));
        assert!(matches!(store.put("a\nb", Vec::new()), Err(StoreError::Key)));
        assert!(matches!(
            store.put(&"k".repeat(KEY_BYTES_MAX + 1), Vec::new()),
            Err(StoreError::Key)
        ));
        let long = vec![0; VALUE_BYTES_MAX + 1];
        assert!(matches!(store.put("k", long.clone()), Err(StoreError::TooBig { .. })));
        let long = Entry { value: Some(long), ..entry(START_MS, "b", None) };
        let ahead = entry(START_MS + AHEAD_MS_MAX + 1, "c", Some("from the future"));
        let taken = store.take_in(vec![
            ("k".to_owned(), long),
            ("k".to_owned(), ahead),
            ("k".to_owned(), entry(1, "b", Some("old"))),
            ("\u{1b}[2J".to_owned(), entry(START_MS, "b", Some("hostile"))),
            ("gone".to_owned(), entry(START_MS - TOMBSTONE_MS - 1, "b", None)),
        ]);
        let counts = (taken.newer, taken.known, taken.ahead, taken.bad);
        assert_eq!(counts, (0, 2, 1, 2), "{taken:?}");
        assert_eq!(taken.why.as_deref(), Some("a key or value that is none came from `tokyo/b`"));
        assert_eq!(store.root(), root);
    }

    #[test]
    fn a_clock_that_was_set_back_far_is_an_error_and_not_a_lost_write() {
        let time = Time::at(START_MS);
        let store = in_memory(&time);
        store.put("k", b"ahead".to_vec()).expect("a put");
        time.0.store(START_MS - AHEAD_MS_MAX - 1, Ordering::SeqCst);
        let refused = store.put("k", b"behind".to_vec());
        assert!(matches!(refused, Err(StoreError::ClockBehind { .. })), "{refused:?}");
        assert_eq!(store.value("k").as_deref(), Some(&b"ahead"[..]));
        time.add(2);
        store.put("k", b"in time".to_vec()).expect("a put");
        assert_eq!(store.value("k").as_deref(), Some(&b"in time"[..]));
    }

    #[test]
    fn removals_leave_memory_and_file_in_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.redb");
        let time = Time::at(START_MS);
        let open = || Store::open_with(&path, host("a"), time.wall()).expect("a store");
        let store = open();
        store.put("k", b"v".to_vec()).expect("a put");
        store.remove("k").expect("a removal");
        store.remove("never there").expect("nothing to do");
        assert!(store.entry("never there").is_none());
        time.add(TOMBSTONE_MS);
        store.flush().expect("a flush");
        assert!(store.entry("k").is_some_and(|entry| entry.value.is_none()));
        time.add(SWEEP_MS);
        store.flush().expect("a flush");
        assert_eq!(store.entry("k"), None);
        drop(store);
        time.0.store(START_MS, Ordering::SeqCst); // Else opening it would forget by itself.
        assert_eq!(open().entry("k"), None);
    }

    #[test]
    fn who_was_away_for_too_long_starts_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.redb");
        let time = Time::at(START_MS);
        let open = || Store::open_with(&path, host("a"), time.wall()).expect("a store");
        let store = open();
        store.put("alone", b"v".to_vec()).expect("a put");
        drop(store);
        time.add(TOMBSTONE_MS * 2);
        let store = open();
        assert!(store.value("alone").is_some(), "nobody else could have removed it");
        let at_ms = (store.wall)();
        let theirs = |key: &str| (key.to_owned(), entry(at_ms, "b", Some("theirs")));
        let told = ["spec/x", "evicted/1", "evicted-host/x/y"].map(theirs);
        assert_eq!(store.take_in(told.to_vec()).newer, 3);
        time.add(1);
        store.put("since", b"mine".to_vec()).expect("a put");
        drop(store);
        time.add(TOMBSTONE_MS - 2);
        assert_eq!(open().with_prefix("").len(), 5, "not yet");
        time.add(1);
        let store = open();
        let keys: Vec<_> = store.with_prefix("").into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["evicted-host/x/y", "evicted/1", "since"]);
        drop(store);
        assert_eq!(open().with_prefix("").len(), 3, "and it is so in the file");
        let names = names(directory.path());
        assert!(names.len() == 2 && names[1].starts_with("store.redb.away-"), "{names:?}");
    }

    #[test]
    fn who_runs_and_was_cut_off_for_too_long_starts_over_when_others_are_back() {
        type Meeting = fn(&Store);
        let meetings: [Meeting; 4] = [
            |store| assert_ne!(store.root(), 0),
            |store| drop(store.differing(&Digest::default())),
            |store| drop(store.take_in(Vec::new())),
            Store::heard,
        ];
        for meeting in meetings {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("store.redb");
            let time = Time::at(START_MS);
            let store = Store::open_with(&path, host("a"), time.wall()).expect("a store");
            let theirs = |key: &str| (key.to_owned(), entry(START_MS, "b", Some("theirs")));
            store.take_in(["spec/x", "evicted/1"].map(theirs).to_vec());
            time.add(TOMBSTONE_MS - 1);
            meeting(&store);
            store.flush().expect("a flush");
            assert!(store.value("spec/x").is_some(), "not yet");
            time.add(TOMBSTONE_MS);
            meeting(&store);
            let has = |store: &Store| ["spec/x", "evicted/1"].map(|k| store.value(k).is_some());
            assert_eq!(has(&store), [false, true]);
            store.flush().expect("a flush");
            drop(store);
            let store = Store::open_with(&path, host("a"), time.wall()).expect("a store");
            assert_eq!(has(&store), [false, true], "and it is so in the file");
            let names = names(directory.path());
            assert!(names.iter().any(|name| name.starts_with("store.redb.away-")), "{names:?}");
        }
    }

    #[test]
    fn who_hears_of_others_does_not_start_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.redb");
        let time = Time::at(START_MS);
        let open = || Store::open_with(&path, host("a"), time.wall()).expect("a store");
        let store = open();
        store.take_in(vec![("spec/x".to_owned(), entry(START_MS, "b", Some("v")))]);
        store.flush().expect("a flush");
        for _ in 0..8 {
            time.add(TOMBSTONE_MS / 4);
            store.heard();
            store.flush().expect("a flush");
        }
        drop(store);
        assert!(open().value("spec/x").is_some());
    }
}
