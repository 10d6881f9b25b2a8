//! What the process table was: a ring of records on the disk, bounded in bytes and in age.
//!
//! A thread takes the table every few seconds and writes what of it has changed. `row` and `frame`
//! are the form of that, `segment` the bytes of a file, `ring` decides what is kept and which
//! record shows a moment: all of them are plain values and rules. Here are the thread, the files and
//! the clocks.
//!
//! A record that could not be written, because the disk is full or gone, stops nothing else: it is
//! said, and tried again. The next record then begins a new segment with a whole table, as changes mean
//! nothing without what they change.
//!
//! Command lines are recorded as they are, for files are of their owner alone (mode 0600). Who may see
//! them is decided where rows are read, as for the table of now.

mod frame;
pub mod options;
mod ring;
mod row;
mod segment;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use kumo_abi::At;
use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::collect::CollectorKind;
use crate::engine::{Engine, boot_ns, timespec_ns};
use crate::row::rfc3339;
use crate::table::{CommandLine, Parts, Process, Table};
use frame::{Encoder, FRAME_BYTES_MAX, Moment, Player, Seen};
pub use ring::Limits;
use ring::{Found, Now, Segment};
use segment::{Head, Mark, Scanned};

/// A moment so far ahead is still taken for now: the clocks of two hosts differ.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// A record that is younger than the moment by less than this shows it too: who asks for the `as_of` of
/// an answer, in milliseconds and by a clock that was slewed meanwhile, means that record.
pub const SLACK: Duration = Duration::from_millis(100);

/// How old a scan may be that is recorded, so that one that was just made for somebody serves too.
const SCAN_AGE_MAX: Duration = Duration::from_millis(500);

/// What has not been asked for in so long is forgotten: it is a copy of the whole table.
const REMEMBERED_MAX: Duration = Duration::from_secs(60);

/// Largest file that is looked into. Ours are far smaller, but for one record that needs more.
const FILE_BYTES_MAX: u64 = 2 * FRAME_BYTES_MAX as u64;

/// How the name of a segment ends.
const SEGMENT_NAME: &str = ".kumohis";

/// What is recorded of every process by a collector that has it at hand.
const PARTS_CHEAP: Parts = Parts::EVERY_ROW;

/// How history is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryConfig {
    /// The directory of its files; made where it is missing.
    pub dir: PathBuf,
    /// Time between two records, at least; see [`HistoryReport::period_ms`].
    pub period: Duration,
    /// How much is kept.
    pub limits: Limits,
}

/// What becomes of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryState {
    /// None are made here.
    #[default]
    Off,
    /// The first is about to be made.
    Starting,
    /// They are written.
    Recording,
    /// They cannot be written; the next may be.
    Stopped,
}

/// What there is to say about history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReport {
    /// What becomes of records.
    pub state: HistoryState,
    /// Why none can be written.
    #[serde(default)]
    pub why: Option<String>,
    /// The moment of the first record, RFC 3339.
    #[serde(default)]
    pub from: Option<String>,
    /// That of the last.
    #[serde(default)]
    pub to: Option<String>,
    /// How many there are.
    pub records: u64,
    /// In how many files.
    pub segments: u64,
    /// How many bytes those take.
    pub bytes: u64,
    /// How many they may take.
    pub bytes_max: u64,
    /// How far back it may reach.
    pub age_max_s: u64,
    /// Time between two records now. Where a record costs much it is longer than what was asked for, so
    /// that all of them stay below one percent of a CPU.
    pub period_ms: u64,
    /// CPU time that the last record took.
    #[serde(default)]
    pub record_cpu_us: u64,
    /// Records that could not be written since the start.
    #[serde(default)]
    pub missed: u64,
    /// The moments of all records in milliseconds since 1970, where they were asked for: `at` of one of
    /// them shows that record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moments: Option<Vec<i64>>,
}

/// Why there is no table of a moment.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// Nothing is recorded here.
    #[error("this host keeps no history: {0}")]
    None(String),
    /// Nothing of that moment is.
    #[error("nothing was recorded at {at}: {why}")]
    NotThere {
        /// The moment that was asked for.
        at: String,
        /// How far history reaches.
        why: String,
    },
    /// What was recorded cannot be read.
    #[error("cannot read what was recorded")]
    Read(#[source] io::Error),
}

/// A table that was recorded.
#[derive(Clone, Debug)]
pub(crate) struct Recalled {
    pub(crate) table: Arc<Table>,
    /// The boot that it is of.
    pub(crate) boot_id: Arc<str>,
}

/// The history of one host. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct History {
    shared: Arc<Shared>,
    /// Closed when this is dropped; the thread then ends.
    _stop: mpsc::Sender<()>,
}

#[derive(Debug)]
struct Shared {
    config: HistoryConfig,
    kept: Mutex<Kept>,
    played: Mutex<Option<Played>>,
}

/// What is on the disk, and how it goes.
#[derive(Debug, Default)]
struct Kept {
    segments: Vec<Segment>,
    state: HistoryState,
    why: Option<String>,
    period: Duration,
    record_cpu: Duration,
    missed: u64,
}

/// The last table that was asked for, and what makes the next one from it.
#[derive(Debug)]
struct Played {
    segment: u64,
    record: usize,
    player: Player,
    recalled: Recalled,
    asked: Instant,
}

impl History {
    /// Begins to record the tables of `engine`. That goes on until either is dropped.
    pub(crate) fn begin(config: HistoryConfig, engine: &Arc<Engine>) -> History {
        let (stop, stopped) = mpsc::channel();
        let kept = Mutex::new(Kept {
            state: HistoryState::Starting,
            period: config.period,
            ..Kept::default()
        });
        let shared = Arc::new(Shared { config, kept, played: Mutex::default() });
        let recorder = Recorder::new(Arc::clone(&shared), engine.boot_id().to_owned());
        let engine = Arc::downgrade(engine);
        let body = move || record(recorder, &engine, &stopped);
        let thread = std::thread::Builder::new().name("history".to_owned()).spawn(body);
        if let Err(error) = thread {
            shared.stop(&error);
        }
        History { shared, _stop: stop }
    }

    /// The table of a moment.
    ///
    /// # Errors
    /// See [`HistoryError`].
    pub(crate) fn recall(&self, at: At, boot_id: &str) -> Result<Recalled, HistoryError> {
        // Its segment may be deleted between the look at the list and the opening; not twice.
        match self.shared.recall(at, boot_id) {
            Err(HistoryError::Read(error)) if error.kind() == ErrorKind::NotFound => {
                self.shared.recall(at, boot_id)
            }
            result => result,
        }
    }

    pub(crate) fn report(&self, boot_id: &str) -> HistoryReport {
        self.shared.report(boot_id)
    }

    /// The same with the moments of all records.
    pub(crate) fn report_of_all(&self, boot_id: &str) -> HistoryReport {
        let moments = ring::moments(&self.shared.kept().segments, &now(boot_id));
        let in_ms = |ns: i128| i64::try_from(ns.div_euclid(1_000_000)).unwrap_or(i64::MAX);
        let moments = moments.into_iter().map(in_ms).collect();
        HistoryReport { moments: Some(moments), ..self.report(boot_id) }
    }
}

/// The clocks now.
fn now(boot_id: &str) -> Now {
    let unix_ns = timespec_ns(clock_gettime(ClockId::Realtime));
    Now { boot_id: boot_id.to_owned(), boot_ns: boot_ns(), unix_ns }
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.config.dir.join(format!("{number:012}{SEGMENT_NAME}"))
    }

    fn report(&self, boot_id: &str) -> HistoryReport {
        let kept = self.kept();
        let reach = ring::reach(&kept.segments, &now(boot_id));
        let limits = &self.config.limits;
        HistoryReport {
            state: kept.state,
            why: kept.why.clone(),
            from: reach.map(|(from, _)| rfc3339(from)),
            to: reach.map(|(_, to)| rfc3339(to)),
            records: kept.segments.iter().map(|segment| segment.marks.len() as u64).sum(),
            segments: kept.segments.len() as u64,
            bytes: kept.segments.iter().map(|segment| segment.len_bytes).sum(),
            bytes_max: limits.size_bytes,
            age_max_s: limits.age.as_secs(),
            period_ms: kept.period.as_millis() as u64,
            record_cpu_us: kept.record_cpu.as_micros() as u64,
            missed: kept.missed,
            moments: None,
        }
    }

    /// Says that a record could not be written, once for each time that this begins.
    fn stop(&self, error: &dyn std::error::Error) {
        let why = crate::chain(error);
        let mut kept = self.kept();
        if kept.state != HistoryState::Stopped {
            let dir = self.config.dir.display();
            tracing::warn!("history is not recorded until this is over: {dir}: {why}");
        }
        kept.missed += 1;
        kept.state = HistoryState::Stopped;
        kept.why = Some(why);
    }

    fn recall(&self, at: At, boot_id: &str) -> Result<Recalled, HistoryError> {
        let now = now(boot_id);
        let at_ns = at.unix_ns(i128::from(now.unix_ns));
        let (found, segment) = {
            let kept = self.kept();
            let not_there = |why| HistoryError::NotThere { at: rfc3339(at_ns), why };
            if at_ns > i128::from(now.unix_ns) + AHEAD_MAX.as_nanos() as i128 {
                return Err(not_there("that is in the future".to_owned()));
            }
            let latest_ns = at_ns + SLACK.as_nanos() as i128;
            let Some(found) = ring::find(&kept.segments, &now, latest_ns) else {
                return Err(not_there(match ring::reach(&kept.segments, &now) {
                    Some((from, _)) => format!("history begins at {}", rfc3339(from)),
                    None => "history has no record yet".to_owned(),
                }));
            };
            let segment = kept.segments[found.segment].clone();
            (found, segment)
        };
        self.play(&found, &segment).map_err(HistoryError::Read)
    }

    /// Makes the table of a record: on from the last one that was made, where that is before it in the
    /// same segment.
    fn play(&self, found: &Found, segment: &Segment) -> io::Result<Recalled> {
        let mut played = self.played.lock().unwrap_or_else(PoisonError::into_inner);
        let before = played
            .take()
            .filter(|played| played.segment == segment.number && played.record <= found.record);
        let (mut player, next) = match before {
            Some(same) if same.record == found.record => {
                let recalled = same.recalled.clone();
                // Meanwhile the clock may have been put right.
                let recalled = match at_moment(&recalled.table, found.unix_ns) {
                    None => recalled,
                    Some(table) => Recalled { table: Arc::new(table), ..recalled },
                };
                *played =
                    Some(Played { recalled: recalled.clone(), asked: Instant::now(), ..same });
                return Ok(recalled);
            }
            Some(before) => (before.player, before.record + 1),
            None => (Player::default(), 0),
        };
        let file = File::open(self.path(segment.number))?;
        let mut frame = Vec::new();
        for mark in &segment.marks[next..=found.record] {
            frame.resize(mark.len as usize, 0);
            file.read_exact_at(&mut frame, mark.offset)?;
            player
                .take(&frame, mark.raw_len as usize)
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
        let table = Arc::new(table(&mut player, found.unix_ns)?);
        let recalled = Recalled { table, boot_id: segment.boot_id.as_str().into() };
        *played = Some(Played {
            segment: segment.number,
            record: found.record,
            player,
            recalled: recalled.clone(),
            asked: Instant::now(),
        });
        Ok(recalled)
    }

    /// Forgets what nobody has asked for lately.
    fn forget(&self) {
        let mut played = self.played.lock().unwrap_or_else(PoisonError::into_inner);
        if played.as_ref().is_some_and(|played| played.asked.elapsed() > REMEMBERED_MAX) {
            *played = None;
        }
    }
}

/// The same table, if its moment is another now.
fn at_moment(table: &Table, unix_ns: i128) -> Option<Table> {
    let began_unix_ns = u64::try_from(unix_ns).unwrap_or(0);
    // Both clocks tick, and are not read at once: a millisecond is no correction.
    (began_unix_ns.abs_diff(table.began_unix_ns) > 1_000_000).then(|| Table {
        began_unix_ns,
        rows: table.rows.clone(),
        cpu_percent: table.cpu_percent.clone(),
        ..*table
    })
}

fn table(player: &mut Player, unix_ns: i128) -> io::Result<Table> {
    let Some(moment) = player.moment().cloned() else {
        return Err(io::Error::new(ErrorKind::InvalidData, "the segment has no record"));
    };
    let (rows, percents) = player.rows();
    let named = |kind: &CollectorKind| kind.name() == moment.collector;
    let collector = CollectorKind::LADDER.into_iter().find(named);
    Ok(Table {
        generation: moment.generation,
        collector: collector.unwrap_or(CollectorKind::Recorded),
        began: Instant::now(),
        began_unix_ns: u64::try_from(unix_ns).unwrap_or(0),
        began_boot_ns: moment.boot_ns,
        scan_us: moment.scan_us,
        // What a row lacks nobody can tell any more.
        parts: Parts::ALL,
        rows,
        cpu_percent: Some(percents),
    })
}

/// Records until there is no engine or nobody wants it any more.
fn record(mut recorder: Recorder, engine: &Weak<Engine>, stopped: &mpsc::Receiver<()>) {
    loop {
        let pause = match engine.upgrade() {
            Some(engine) => recorder.turn(&engine),
            None => return,
        };
        match stopped.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return,
        }
    }
}

/// What the thread that records has.
struct Recorder {
    shared: Arc<Shared>,
    boot_id: String,
    /// The directory, locked: two that write the same ring would delete each other's files.
    dir: Option<File>,
    next_number: u64,
    writer: Option<Writer>,
    known: HashMap<i32, Known>,
    /// CPU times at the last record, and when that was.
    before: Option<Times>,
}

/// CPU times by pid, with the start of the process, at a moment of boot time.
type Times = (u64, HashMap<i32, (u64, u64)>);

/// The segment that is being written: the last of those kept.
struct Writer {
    file: File,
    encoder: Encoder,
}

/// What a scan does not tell of a process, and what it looked like when it was fetched.
struct Known {
    start_ns: u64,
    comm: Vec<u8>,
    /// What the scan told; and the arguments, where they are too long for a table.
    scanned: Option<CommandLine>,
    long: Option<CommandLine>,
    exe: Option<Box<[u8]>>,
}

impl Recorder {
    fn new(shared: Arc<Shared>, boot_id: String) -> Recorder {
        let (dir, writer, before) = (None, None, None);
        Recorder { shared, boot_id, dir, next_number: 0, writer, known: HashMap::new(), before }
    }

    /// Makes a record; how long to wait for the next turn.
    fn turn(&mut self, engine: &Engine) -> Duration {
        let began = cpu_time();
        let result = self.record(engine);
        let cost = cpu_time().saturating_sub(began);
        let pause = ring::pause(self.shared.config.period, cost);
        match result {
            Ok(()) => {
                let mut kept = self.shared.kept();
                if kept.state == HistoryState::Stopped {
                    tracing::info!("history is recorded again");
                }
                kept.state = HistoryState::Recording;
                kept.why = None;
                kept.record_cpu = cost;
                kept.period = pause;
            }
            Err(error) => {
                // The next record builds upon nothing that may not be there.
                self.writer = None;
                self.shared.stop(&error);
            }
        }
        self.shared.forget();
        pause
    }

    fn record(&mut self, engine: &Engine) -> io::Result<()> {
        if self.dir.is_none() {
            self.open()?;
        }
        let parts = if engine.is_cheap() { PARTS_CHEAP } else { parts_costly() };
        let table = engine.recorded_table(SCAN_AGE_MAX, parts).map_err(io::Error::other)?;
        self.learn(engine, &table);
        let percents = self.percents(&table);
        let moment = Moment {
            boot_ns: table.began_boot_ns,
            generation: table.generation,
            scan_us: table.scan_us,
            collector: table.collector.name().to_owned(),
        };
        let rows = table.rows.iter().zip(&percents);
        let rows: Vec<Seen<'_>> =
            rows.map(|(row, percent)| seen(&self.known, row, *percent)).collect();
        let times = (moment.boot_ns, table.began_unix_ns);
        let now = now(&self.boot_id);
        // Whether the segment has room is known when it is clear how much is needed.
        if let Some(mut writer) = self.writer.take() {
            let (frame, raw_len) = writer.encoder.encode(moment.clone(), &rows)?;
            if self.shared.has_room(&frame, &now) {
                self.shared.append(&writer.file, &frame, raw_len, times, &now)?;
                self.writer = Some(writer);
                self.before = Some(times_of(&table));
                return Ok(());
            }
        }
        let mut encoder = Encoder::default();
        let (frame, raw_len) = encoder.encode(moment, &rows)?;
        if raw_len > FRAME_BYTES_MAX {
            return Err(io::Error::new(ErrorKind::FileTooLarge, "there are too many processes"));
        }
        let file = self.shared.begin_segment(self.next_number, &frame, raw_len, times, &now)?;
        self.next_number += 1;
        self.writer = Some(Writer { file, encoder });
        self.before = Some(times_of(&table));
        Ok(())
    }

    /// Takes the directory, and a look at what is in it.
    fn open(&mut self) -> io::Result<()> {
        let path = &self.shared.config.dir;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let dir = File::open(path)?;
        if !dir.metadata()?.is_dir() {
            return Err(io::Error::from(ErrorKind::NotADirectory));
        }
        flock(&dir, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            let what = "another k2i records there; give this one its own --history-dir";
            match error.kind() {
                ErrorKind::WouldBlock => io::Error::new(ErrorKind::WouldBlock, what),
                _ => error.into(),
            }
        })?;
        let segments = read_segments(path)?;
        self.next_number = segments.iter().map(|segment| segment.number + 1).max().unwrap_or(0);
        self.shared.kept().segments = segments;
        self.dir = Some(dir);
        Ok(())
    }

    /// Fetches what the scan does not tell, of processes that are new or run another program.
    fn learn(&mut self, engine: &Engine, table: &Table) {
        let mut known = std::mem::take(&mut self.known);
        for row in &table.rows {
            let before = known.remove(&row.pid).filter(|known| {
                known.start_ns == row.start_ns
                    && known.comm == row.comm.as_bytes()
                    && known.scanned == row.cmdline
            });
            let known = before.unwrap_or_else(|| {
                let mut copy = row.clone();
                if row.is_kernel() {
                    return Known::of(row, &copy);
                }
                engine.complete(&mut copy, Parts::EXE);
                if row.cmdline_long {
                    engine.complete(&mut copy, Parts::CMDLINE);
                }
                Known::of(row, &copy)
            });
            self.known.insert(row.pid, known);
        }
    }

    /// The CPU use of each row since the last record; before the second one, since the engine's own
    /// earlier reading.
    fn percents(&self, table: &Table) -> Vec<f32> {
        let Some((before_ns, times)) = &self.before else {
            let unknown = || vec![f32::NAN; table.rows.len()];
            return table.cpu_percent.clone().unwrap_or_else(unknown);
        };
        let percent = |row: &Process| {
            let (since_ns, cpu_ns) = match times.get(&row.pid) {
                Some((start_ns, cpu_ns)) if *start_ns == row.start_ns => (*before_ns, *cpu_ns),
                _ => (row.start_ns.max(*before_ns), 0),
            };
            // Below a millisecond it would show noise.
            let window_ns = table.began_boot_ns.saturating_sub(since_ns).max(1_000_000);
            row.cpu_ns().saturating_sub(cpu_ns) as f32 * 100.0 / window_ns as f32
        };
        table.rows.iter().map(percent).collect()
    }
}

fn seen<'a>(known: &'a HashMap<i32, Known>, row: &'a Process, cpu_percent: f32) -> Seen<'a> {
    let known = known.get(&row.pid);
    let long = known.and_then(|known| known.long.as_ref());
    let exe = known.and_then(|known| known.exe.as_deref());
    Seen { row, cpu_percent, line: row.cmdline.as_ref().or(long), exe }
}

impl Known {
    fn of(row: &Process, completed: &Process) -> Known {
        let long = completed.cmdline.as_ref().filter(|_| row.cmdline.is_none());
        // A line of megabytes is not kept to record its beginning.
        let cut = |line: &CommandLine| {
            let argv = line.argv();
            CommandLine::new(&argv[..argv.len().min(frame::TEXT_BYTES_MAX + 1)])
        };
        Known {
            start_ns: row.start_ns,
            comm: row.comm.as_bytes().to_vec(),
            scanned: row.cmdline.clone(),
            long: long.map(cut),
            exe: completed.late.as_ref().and_then(|late| late.exe.clone()),
        }
    }
}

impl Shared {
    /// Whether the segment that is being written takes this record too.
    fn has_room(&self, frame: &[u8], now: &Now) -> bool {
        let len_bytes = (frame.len() + segment::RECORD_HEAD_BYTES) as u64;
        let kept = self.kept();
        kept.segments.last().is_some_and(|current| {
            !ring::begins_anew(current, len_bytes, now.boot_ns, &self.config.limits)
        })
    }

    /// Adds a record to the segment that is being written. After an error that ends where it did before.
    fn append(
        &self,
        file: &File,
        frame: &[u8],
        raw_len: usize,
        times: (u64, u64),
        now: &Now,
    ) -> io::Result<()> {
        let end = self.kept().segments.last().map_or(0, |current| current.len_bytes);
        let (record, mark) = record_of(end, times, frame, raw_len)?;
        self.make_room(true, record.len() as u64, now)?;
        if let Err(error) = file.write_all_at(&record, end) {
            // That it stays longer does no harm: what is not whole does not count.
            let _ = file.set_len(end);
            return Err(error);
        }
        if let Some(current) = self.kept().segments.last_mut() {
            current.len_bytes += record.len() as u64;
            current.marks.push(mark);
        }
        Ok(())
    }

    /// Begins a segment with a record. After an error there is no such file.
    fn begin_segment(
        &self,
        number: u64,
        frame: &[u8],
        raw_len: usize,
        times: (u64, u64),
        now: &Now,
    ) -> io::Result<File> {
        let boot_id = now.boot_id.clone();
        let mut bytes = segment::write_head(&Head { boot_id: boot_id.clone() });
        let (record, mark) = record_of(bytes.len() as u64, times, frame, raw_len)?;
        bytes.extend(record);
        self.make_room(false, bytes.len() as u64, now)?;
        let path = self.path(number);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        if let Err(error) = file.write_all_at(&bytes, 0) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        let len_bytes = bytes.len() as u64;
        self.kept().segments.push(Segment { number, boot_id, marks: vec![mark], len_bytes });
        Ok(file)
    }

    /// Deletes the oldest segments for a record.
    fn make_room(&self, writing: bool, more_bytes: u64, now: &Now) -> io::Result<()> {
        let limits = &self.config.limits;
        if more_bytes > limits.size_bytes {
            let (need, max) = (more_bytes >> 10, limits.size_bytes >> 10);
            let what = format!("one record takes {need} KiB and --history-size is {max} KiB");
            return Err(io::Error::new(ErrorKind::FileTooLarge, what));
        }
        let mut kept = self.kept();
        let count = ring::surplus(&kept.segments, writing, more_bytes, now, limits);
        for _ in 0..count {
            match fs::remove_file(self.path(kept.segments[0].number)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => kept.segments.remove(0),
            };
        }
        Ok(())
    }
}

fn record_of(
    offset: u64,
    times: (u64, u64),
    frame: &[u8],
    raw_len: usize,
) -> io::Result<(Vec<u8>, Mark)> {
    let too_large = || io::Error::new(ErrorKind::FileTooLarge, "there are too many processes");
    segment::write_record(offset, times, frame, raw_len).ok_or_else(too_large)
}

fn times_of(table: &Table) -> Times {
    let times = table.rows.iter().map(|row| (row.pid, (row.start_ns, row.cpu_ns())));
    (table.began_boot_ns, times.collect())
}

/// What is recorded where each part costs a file of each process.
fn parts_costly() -> Parts {
    Parts::STAT | Parts::OWNER | Parts::MEMORY | Parts::CMDLINE | Parts::CGROUP
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    Duration::from_nanos(timespec_ns(clock_gettime(ClockId::ThreadCPUTime)))
}

/// The segments of a directory, the oldest first, as far as they are whole. Files of which nothing is
/// are deleted; what has another name is not ours.
fn read_segments(dir: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(SEGMENT_NAME));
        let Some(number) = name.and_then(|name| name.parse::<u64>().ok()) else { continue };
        let metadata = entry.metadata()?;
        if !metadata.is_file() {
            continue;
        }
        let scanned = if metadata.len() > FILE_BYTES_MAX {
            None
        } else {
            segment::scan(&fs::read(entry.path())?)
        };
        match scanned {
            Some(Scanned { head, marks, .. }) if !marks.is_empty() => {
                let len_bytes = metadata.len();
                segments.push(Segment { number, boot_id: head.boot_id, marks, len_bytes });
            }
            // A kill came before its first record was whole, or it is of another version.
            _ => fs::remove_file(entry.path())?,
        }
    }
    segments.sort_by_key(|segment| segment.number);
    Ok(segments)
}

#[cfg(test)]
mod tests;
