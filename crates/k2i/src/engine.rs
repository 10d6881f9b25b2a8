//! Generations of the table, shared by all who ask.
//!
//! A scan holds the collector's lock. Who asks meanwhile waits for the lock and then finds a table
//! that began after the question: a thousand questions at once cost two scans. A table never changes;
//! an answer keeps the one it was made from until its last byte is written.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use kumo_abi::events::{EventColumn, EventKind};
use kumo_abi::files::FileColumn;
use kumo_abi::proc::{Column, PROC};
use kumo_abi::relation::OPEN_FILES;
use kumo_abi::rights::Lines;
use kumo_abi::sockets::SocketColumn;
use kumo_abi::{At, ColumnIndex, Meta, ProcessId, Query, Relation, Select, TICK_NS, Value};
use serde_json::json;
use tokio::sync::broadcast;

use crate::collect::{Collector, CollectorChoice, CollectorKind, ProcFs, Rung, Scan};
use crate::delta::{CellHash, Seen};
use crate::encode::{document, write_value};
use crate::events::{self, Attempt, Event, EventChoice, Events, EventsReport, News};
use crate::history::{History, HistoryConfig, HistoryError, HistoryReport, Recalled};
use crate::metrics::Metrics;
use crate::names::NameCache;
use crate::pieces::RowWriter;
use crate::row::{self, Context, rfc3339};
use crate::select::{Selected, View, parts_of};
use crate::sockets::{
    FileParts, FileRows, Joined, OpenFiles, Snapshot, SocketRows, Sockets, socket_lines,
};
use crate::table::{Parts, Process, Table};
use crate::tabular::TableAnswer;

/// CPU use is never measured over less than this: clock ticks of 10 ms would show.
const CPU_WINDOW_MIN: Duration = Duration::from_millis(500);

/// A reading of CPU times older than this says nothing about now.
const CPU_WINDOW_MAX: Duration = Duration::from_secs(15);

/// The first answer of all waits this long between its two readings.
const CPU_WINDOW_FIRST: Duration = Duration::from_millis(200);

/// [`Engine::tick`] takes a reading when the last one is this old.
const TICK_AGE: Duration = Duration::from_secs(4);

/// A costly collector is left alone when nobody has asked for this long.
const INTEREST: Duration = Duration::from_secs(60);

/// Questions that wait for each other bring along what was asked for in at least this long.
const INTEREST_PERIOD: Duration = Duration::from_secs(1);

/// How to open an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Which collector.
    pub collector: CollectorChoice,
    /// Name of this data centre, as answers give it.
    pub dc: String,
    /// Name of this host, as answers give it.
    pub host: String,
}

/// Why no engine could be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The collector that was asked for does not work here.
    #[error("collector `{0}` does not work here: {1}; `--collector auto` takes the best that does")]
    Collector(&'static str, String),
    /// `/proc` is not there or not ours to read.
    #[error("cannot read /proc; is it mounted?")]
    Proc(#[source] io::Error),
}

/// Why a question got no answer. A retry is safe.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The scan failed.
    #[error("cannot read the process table with collector `{collector}`")]
    Scan {
        /// The collector.
        collector: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nobody has taken note of those that ended.
    #[error("this host does not know which processes have ended: {0}")]
    NoEvents(String),
    /// The table of a moment.
    #[error(transparent)]
    History(#[from] HistoryError),
}

/// What to answer, of which processes, and how fresh.
#[derive(Debug)]
pub struct Question {
    /// The query.
    pub query: Query,
    /// Only these processes; all if `None`.
    pub pids: Option<Vec<i32>>,
    /// A scan that began this long before the question will do.
    pub max_age: Duration,
    /// How command lines are shown, and read by filters and orders.
    pub lines: Lines,
}

/// How to write an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object: what `kumo_abi::Rows` reads.
    Json,
    /// One JSON object a row and line; the `Meta` is not part of it.
    NdJson,
}

/// For processes, by number, what call they wait for, in words.
pub type BlockedOn = BTreeMap<u32, String>;

/// Who says what processes wait for.
type SaysBlockedOn = dyn Fn() -> BlockedOn + Send + Sync;

/// Where that is asked, once somebody says it.
#[derive(Default)]
struct Blocked(OnceLock<Box<SaysBlockedOn>>);

impl fmt::Debug for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blocked").field(&self.0.get().is_some()).finish()
    }
}

/// The process table of this host, ready to be asked. Shared by reference; it blocks while it scans.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    rungs: Vec<Rung>,
    cheap: bool,
    proc: Arc<ProcFs>,
    sockets: Sockets,
    scanner: Mutex<Scanner>,
    current: ArcSwapOption<Table>,
    users: NameCache,
    groups: NameCache,
    dc: Arc<str>,
    host: Arc<str>,
    boot_id: String,
    memory_bytes: u64,
    blocked: Blocked,
    metrics: Metrics,
    opened: Instant,
    /// Set once, by servers.
    events: OnceLock<Attempt>,
    /// Set once, by servers that keep it.
    history: OnceLock<History>,
    /// When somebody last asked, milliseconds after `opened`.
    asked_ms: AtomicU64,
}

#[derive(Debug)]
struct Scanner {
    collector: Collector,
    /// Of the last table. It begins with the time, for a server that is started anew must not use a number
    /// for another table than the one before it: clients ask what has changed `since` one.
    generation: u64,
    baselines: Baselines,
    interest: Interest,
    /// CPU times of the last scan, ascending by pid.
    times: Vec<Times>,
}

/// The CPU time of one process, small and in a row: looking at the last table for it would cost a
/// cache miss for each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    id: ProcessId,
    utime_ns: u64,
    stime_ns: u64,
}

/// Which parts were asked for lately. When questions wait for each other a scan brings them all, so
/// that those of different kinds share it too.
#[derive(Debug)]
struct Interest {
    since: Instant,
    now: Parts,
    before: Parts,
}

impl Interest {
    /// Adds `parts` at `now`; everything that was asked for in the last [`INTEREST_PERIOD`] at least.
    fn with(&mut self, parts: Parts, now: Instant) -> Parts {
        let age = now.saturating_duration_since(self.since);
        if age >= INTEREST_PERIOD {
            let before = if age < 2 * INTEREST_PERIOD { self.now } else { Parts::NONE };
            *self = Interest { since: now, now: Parts::NONE, before };
        }
        self.now |= parts.without(Parts::CPU);
        parts | self.now | self.before
    }
}

impl Engine {
    /// Opens the best collector that works, or the one that was asked for.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: EngineConfig) -> Result<Engine, OpenError> {
        let proc = Arc::new(ProcFs::open().map_err(OpenError::Proc)?);
        let (collector, rungs) = Collector::open(config.collector, &proc);
        let Some(collector) = collector else {
            let asked = match config.collector {
                CollectorChoice::Only(kind) => kind.name(),
                CollectorChoice::Auto => "auto",
            };
            let why = rungs.iter().find(|rung| rung.collector == asked);
            let why = why.map_or_else(String::new, |rung| rung.why.clone());
            return Err(OpenError::Collector(asked, why));
        };
        Engine::with(config, proc, collector, rungs)
    }

    /// Plays a record back as if it were this host's table, for simulated hosts: `rows`, ascending by
    /// pid, with all that an answer shall show. Engines that play the same record share it.
    ///
    /// # Errors
    /// [`OpenError::Proc`].
    pub fn replay(config: EngineConfig, rows: Arc<[Process]>) -> Result<Engine, OpenError> {
        let proc = Arc::new(ProcFs::open().map_err(OpenError::Proc)?);
        Engine::with(config, proc, Collector::recorded(rows), Vec::new())
    }

    fn with(
        config: EngineConfig,
        proc: Arc<ProcFs>,
        collector: Collector,
        rungs: Vec<Rung>,
    ) -> Result<Engine, OpenError> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let system = rustix::system::sysinfo();
        let sockets = match collector.kind() {
            CollectorKind::Recorded => Sockets::nothing(),
            _ => Sockets::new(config.collector),
        };
        Ok(Engine {
            sockets,
            rungs,
            cheap: collector.is_cheap(),
            proc,
            scanner: Mutex::new(Scanner {
                collector,
                generation: kumo_sys::wall_ms(),
                baselines: Baselines::default(),
                times: Vec::new(),
                interest: Interest { since: Instant::now(), now: Parts::NONE, before: Parts::NONE },
            }),
            current: ArcSwapOption::empty(),
            users: NameCache::users(),
            groups: NameCache::groups(),
            dc: config.dc.as_str().into(),
            host: config.host.as_str().into(),
            boot_id: boot_id.map_err(OpenError::Proc)?.trim().to_owned(),
            memory_bytes: system.totalram as u64 * u64::from(system.mem_unit),
            blocked: Blocked::default(),
            metrics: Metrics::default(),
            opened: Instant::now(),
            events: OnceLock::new(),
            history: OnceLock::new(),
            asked_ms: AtomicU64::new(0),
            config,
        })
    }

    /// Answers one question. Blocks for one scan, or none where a generation is fresh enough; call
    /// it where blocking is fine.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn ask(&self, question: Question) -> Result<Answer, AskError> {
        if question.query.ended {
            return self.ask_ended(&question.query, question.lines);
        }
        if let Some(at) = question.query.at {
            return self.ask_at(&question.query, at, question.pids.as_deref(), question.lines);
        }
        let Question { query, pids, max_age, lines } = question;
        let read = query.columns_read();
        let shown = parts_of(&read);
        // Who wants a few rows pays for the texts of those alone.
        let mut parts =
            if self.picks_few(&query, pids.as_deref()) { early_parts(&query) } else { shown };
        if read.contains(&Column::Cpu.index()) {
            parts |= Parts::CPU;
        }
        let table = match &pids {
            Some(pids) if !self.cheap => self.few(pids, shown | (parts & Parts::CPU))?,
            _ => self.table(max_age, parts)?,
        };
        let candidates = match &pids {
            None => (0..table.rows.len()).collect(),
            Some(pids) => pids.iter().filter_map(|pid| table.position(*pid)).collect(),
        };
        let processes = match &pids {
            Some(_) if !self.cheap => self.current.load().as_ref().map_or(0, |t| t.rows.len()),
            _ => table.rows.len(),
        };
        let completer = Completer(Some(self.proc.clone()));
        let mut context = self.context(table, &read, lines);
        if Column::COSTLY.iter().any(|column| read.contains(&column.index())) {
            context.open = Some(self.sockets(max_age)?);
        }
        let mut view = View::new(context, completer);
        let (selected, matched) = view.select(&query, candidates);
        let mut meta = self.meta(&query, &view.context.table, processes, matched);
        meta.unseen = view.context.open.as_ref().and_then(|open| open.unseen.in_words());
        let (writer, sorted) = (Writer::new(&meta, &query, shown), !query.sort.is_empty());
        Ok(Answer { meta, view, selected, writer, sorted })
    }

    /// Who holds which sockets, and how many open files everybody has: a snapshot that began at most
    /// `max_age` ago, shared by all who ask. Blocks while it is made; the first one takes a third of a
    /// second where the kernel has a program to check.
    ///
    /// # Errors
    /// [`AskError::Scan`].
    pub fn sockets(&self, max_age: Duration) -> Result<Arc<Snapshot>, AskError> {
        let made = self.sockets.snapshot(&self.proc, max_age);
        made.map_err(|(collector, source)| AskError::Scan { collector, source })
    }

    /// The open files of `pids`, or of all processes, one by one, as they are now. Blocks for some 10 µs for
    /// each of them.
    ///
    /// # Errors
    /// [`AskError::Scan`] where `/proc` cannot be read.
    pub fn files(&self, pids: Option<&[i32]>, parts: FileParts) -> Result<OpenFiles, AskError> {
        if self.sockets.is_nothing() {
            return Ok(OpenFiles::of_nobody());
        }
        let all;
        let pids = if let Some(pids) = pids {
            pids
        } else {
            let failed = |source| AskError::Scan { collector: "proc", source };
            all = self.proc.pids().map_err(failed)?;
            &all
        };
        Ok(OpenFiles::read(&self.proc, pids, parts))
    }

    /// Answers a question of one of the tables of [`kumo_abi::relation`] other than that of processes; its
    /// query is of that table. With `pids`, of these processes only.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn ask_open(
        &self,
        relation: &Relation,
        question: &Question,
    ) -> Result<TableAnswer, AskError> {
        if relation.schema.name == OPEN_FILES.schema.name {
            self.ask_files(question)
        } else {
            self.ask_sockets(question)
        }
    }

    fn ask_sockets(&self, question: &Question) -> Result<TableAnswer, AskError> {
        let Question { query, pids, max_age, lines } = question;
        let read = query.columns_read();
        let of = |column: &ColumnIndex| match SocketColumn::at(*column) {
            SocketColumn::Of(column) => Some(column),
            _ => None,
        };
        let joined = self.join(read.iter().filter_map(of), *max_age, *lines)?;
        let mut snapshot = self.sockets(*max_age)?;
        if let Some(pids) = pids {
            snapshot = Arc::new(snapshot.of(pids));
        }
        let meta = self.open_meta(&snapshot, snapshot.holders.len());
        let names_users = read.iter().any(|c| SocketColumn::at(*c) == SocketColumn::User);
        let users = if names_users {
            self.users.of(snapshot.sockets.iter().filter_map(|held| held.socket.uid))
        } else {
            Arc::default()
        };
        let rows = SocketRows { snapshot, users, joined };
        Ok(TableAnswer::new(Box::new(rows), query, meta))
    }

    fn ask_files(&self, question: &Question) -> Result<TableAnswer, AskError> {
        let Question { query, pids, max_age, lines } = question;
        let read = query.columns_read();
        let of = |column: &ColumnIndex| match FileColumn::at(*column) {
            FileColumn::Of(column) => Some(column),
            _ => None,
        };
        let joined = self.join(read.iter().filter_map(of), *max_age, *lines)?;
        let began = Clock::now();
        let files = self.files(pids.as_deref(), FileParts::of(&read))?;
        let mut meta = Meta {
            generation: 0,
            as_of: rfc3339(i128::from(began.unix_ns)),
            scan_us: began.began.elapsed().as_micros() as u64,
            processes: files.holders.len() as u64,
            ..self.about("proc")
        };
        let mut unseen = files.unseen;
        let sockets = if read.iter().any(|c| FileColumn::at(*c) == FileColumn::Socket) {
            let snapshot = self.sockets(*max_age)?;
            unseen.namespaces = snapshot.unseen.namespaces;
            socket_lines(&files, &snapshot)
        } else {
            HashMap::new()
        };
        meta.unseen = unseen.in_words();
        let rows = FileRows { files, sockets, joined };
        Ok(TableAnswer::new(Box::new(rows), query, meta))
    }

    /// What rows that belong to processes show of them. The table is read only if they show more than
    /// they know themselves.
    fn join(
        &self,
        columns: impl Iterator<Item = Column>,
        max_age: Duration,
        lines: Lines,
    ) -> Result<Joined, AskError> {
        let known = [Column::Dc, Column::Host, Column::Id, Column::Pid, Column::Comm];
        let columns: Vec<_> =
            columns.filter(|column| !known.contains(column)).map(Column::index).collect();
        let table = if columns.is_empty() {
            let nobody =
                Clock::now().table(0, CollectorKind::Recorded, Vec::new(), Parts::ALL, None);
            Arc::new(nobody)
        } else {
            self.table(max_age, parts_of(&columns))?
        };
        Ok(Joined(self.context(table, &columns, lines)))
    }

    fn open_meta(&self, snapshot: &Snapshot, processes: usize) -> Meta {
        Meta {
            generation: snapshot.generation,
            as_of: rfc3339(i128::from(snapshot.began_unix_ns)),
            scan_us: snapshot.scan_us,
            processes: processes as u64,
            unseen: snapshot.unseen.in_words(),
            ..self.about(snapshot.by.name())
        }
    }

    /// What every answer says of this host.
    fn about(&self, collector: &str) -> Meta {
        Meta {
            dc: self.config.dc.clone(),
            host: self.config.host.clone(),
            boot_id: self.boot_id.clone(),
            collector: collector.to_owned(),
            generation: 0,
            as_of: String::new(),
            scan_us: 0,
            processes: 0,
            matched: 0,
            columns: Vec::new(),
            lost: 0,
            unseen: None,
        }
    }

    fn meta(&self, query: &Query, table: &Table, processes: usize, matched: usize) -> Meta {
        Meta {
            generation: table.generation,
            as_of: rfc3339(i128::from(table.began_unix_ns)),
            scan_us: table.scan_us,
            processes: processes.max(matched) as u64,
            matched: matched as u64,
            columns: query.columns.iter().map(|select| select.name(&PROC)).collect(),
            ..self.about(table.collector.name())
        }
    }

    /// The same of processes that have ended, as far as they are remembered.
    fn ask_ended(&self, query: &Query, lines: Lines) -> Result<Answer, AskError> {
        let events = self.taken().map_err(AskError::NoEvents)?;
        let clock = Clock::now();
        let (lives, changes, lost) = events.ended();
        let rows: Vec<_> = lives.iter().map(|life| life.row()).collect();
        let collector = CollectorKind::Events(events.source());
        // What a row lacks nobody can tell any more.
        let table = Arc::new(clock.table(changes, collector, rows, Parts::ALL, None));
        let read = query.columns_read();
        let count = table.rows.len();
        let mut view = View::new(self.context(table, &read, lines), Completer(None));
        let (selected, matched) = view.select(query, (0..count).collect());
        let meta = self.meta(query, &view.context.table, count, matched);
        let meta = Meta { lost: lost.exits + lost.overruns, ..meta };
        let writer = Writer::new(&meta, query, parts_of(&read));
        Ok(Answer { meta, view, selected, writer, sorted: !query.sort.is_empty() })
    }

    /// The same of a moment that was recorded.
    fn ask_at(
        &self,
        query: &Query,
        at: At,
        pids: Option<&[i32]>,
        lines: Lines,
    ) -> Result<Answer, AskError> {
        let Some(history) = self.history.get() else {
            let why = "only a server does: `kumo up` unless it is told --no-history, `k2i` if it is told \
                       --history-dir DIR";
            return Err(HistoryError::None(why.to_owned()).into());
        };
        let Recalled { table, boot_id } = history.recall(at, &self.boot_id)?;
        let mut read = query.columns_read();
        let parts = parts_of(&read);
        // What processes waited for is known of now alone.
        read.retain(|column| *column != Column::BlockedOn.index());
        let candidates = match pids {
            None => (0..table.rows.len()).collect(),
            Some(pids) => pids.iter().filter_map(|pid| table.position(*pid)).collect(),
        };
        let count = table.rows.len();
        let mut view = View::new(self.context(table, &read, lines), Completer(None));
        let (selected, matched) = view.select(query, candidates);
        let meta = self.meta(query, &view.context.table, count, matched);
        let meta = Meta { boot_id: boot_id.to_string(), ..meta };
        let writer = Writer::new(&meta, query, parts);
        Ok(Answer { meta, view, selected, writer, sorted: !query.sort.is_empty() })
    }

    /// From now on the table is recorded every now and then. For servers: it starts a thread. Once; what
    /// is asked for later changes nothing.
    pub fn keep_history(self: &Arc<Engine>, config: HistoryConfig) {
        self.history.get_or_init(|| History::begin(config, self));
    }

    /// What there is to say about what was recorded.
    pub fn history_report(&self) -> HistoryReport {
        self.history.get().map_or_else(HistoryReport::default, |kept| kept.report(&self.boot_id))
    }

    /// The same, and of when each record is.
    pub fn history_of_all(&self) -> HistoryReport {
        let all = |kept: &History| kept.report_of_all(&self.boot_id);
        self.history.get().map_or_else(HistoryReport::default, all)
    }

    /// From now on it takes note of processes that begin and end. For servers: it starts a thread, and
    /// takes a third of a second. Once; what is asked for later changes nothing.
    pub fn take_events(self: &Arc<Engine>, choice: EventChoice) {
        self.events.get_or_init(|| events::begin(choice, self));
    }

    /// Events from now on, for whoever wants to react to them: bounded by
    /// [`EVENTS_AHEAD_MAX`](crate::EVENTS_AHEAD_MAX), and who is slower learns how many he missed.
    ///
    /// # Errors
    /// [`AskError::NoEvents`].
    pub fn events(&self) -> Result<broadcast::Receiver<News>, AskError> {
        self.taken().map(Events::listen).map_err(AskError::NoEvents)
    }

    /// What there is to say about events.
    pub fn events_report(&self) -> EventsReport {
        match self.events.get() {
            Some(Attempt { events: Some(events), .. }) => events.report(),
            Some(Attempt { ladder, .. }) => {
                EventsReport { ladder: ladder.clone(), ..EventsReport::default() }
            }
            None => EventsReport::default(),
        }
    }

    fn taken(&self) -> Result<&Events, String> {
        let attempt =
            self.events.get().ok_or("only a server takes note of it; `kumo up` starts one")?;
        attempt.events.as_ref().ok_or_else(|| {
            let why: Vec<_> = attempt
                .ladder
                .iter()
                .map(|rung| format!("{}: {}", rung.collector, rung.why))
                .collect();
            why.join("; ")
        })
    }

    /// Reads an event as a row of [`EVENTS`](kumo_abi::events::EVENTS): `read` gets what tells a column's
    /// value, for `columns` only. Command lines are whole.
    pub fn read_event<T>(
        &self,
        event: &Event,
        columns: &[ColumnIndex],
        read: impl FnOnce(&dyn Fn(ColumnIndex) -> Value<'static>) -> T,
    ) -> T {
        let of = |column: &ColumnIndex| match EventColumn::at(*column) {
            EventColumn::Of(column) => Some(column),
            EventColumn::Event | EventColumn::At => None,
        };
        let columns: Vec<Column> = columns.iter().filter_map(of).collect();
        let context = self.event_context(&columns, event.life.row(), Lines::Whole);
        let row = &context.table.rows[0];
        let value = |column: ColumnIndex| match EventColumn::at(column) {
            EventColumn::Event => Value::text(event.kind.name()),
            EventColumn::At => row::moment(event.at_ns, &context.table),
            EventColumn::Of(column) => row::value(column, row, 0, &context).into_owned(),
        };
        read(&value)
    }

    /// The last exec of each process that lives or is remembered, from the first on, as rows of a table; and
    /// for each row when it was, nanoseconds of boot time.
    pub(crate) fn executed(
        &self,
        columns: &[Column],
        lines: Lines,
    ) -> Result<(Context, Vec<u64>), AskError> {
        let (lives, _lost) = self.taken().map_err(AskError::NoEvents)?.executed();
        let at_ns = lives.iter().filter_map(|life| life.exec_ns).collect();
        let rows: Vec<_> = lives.iter().map(|life| life.row()).collect();
        let table = Clock::now().table(0, CollectorKind::Recorded, rows, Parts::ALL, None);
        let columns: Vec<_> = columns.iter().map(|column| column.index()).collect();
        Ok((self.context(Arc::new(table), &columns, lines), at_ns))
    }

    /// The ends of processes that are remembered, the last `most` of them, the newest first.
    ///
    /// # Errors
    /// [`AskError::NoEvents`].
    pub fn last_ends(&self, most: usize) -> Result<Vec<Event>, AskError> {
        let (ended, ..) = self.taken().map_err(AskError::NoEvents)?.ended();
        let event = |life: Arc<crate::events::Life>| {
            let at_ns = life.end.map_or(0, |end| end.at_ns);
            Event { kind: EventKind::Exit, at_ns, life }
        };
        Ok(ended.into_iter().rev().take(most).map(event).collect())
    }

    /// What an event's values are made from beside its process.
    pub(crate) fn event_context(&self, columns: &[Column], life: Process, lines: Lines) -> Context {
        let clock = Clock::now();
        let collector = CollectorKind::Recorded;
        let table = clock.table(0, collector, vec![life], Parts::ALL, None);
        let columns: Vec<_> = columns.iter().map(|column| column.index()).collect();
        self.context(Arc::new(table), &columns, lines)
    }

    /// A table that is fresh enough and has at least `parts` (where they can be read), but for
    /// [`Parts::LATE`]; see [`Engine::complete`].
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn table(&self, max_age: Duration, parts: Parts) -> Result<Arc<Table>, AskError> {
        let asked = self.note_question();
        self.table_since(asked, max_age, parts)
    }

    /// A table to be recorded. Nobody has asked for it: what is done while somebody does, is not.
    pub(crate) fn recorded_table(
        &self,
        max_age: Duration,
        parts: Parts,
    ) -> Result<Arc<Table>, AskError> {
        self.table_since(Instant::now(), max_age, parts)
    }

    /// Whether all parts of a row cost little.
    pub(crate) fn is_cheap(&self) -> bool {
        self.cheap
    }

    fn table_since(
        &self,
        asked: Instant,
        max_age: Duration,
        parts: Parts,
    ) -> Result<Arc<Table>, AskError> {
        let parts = parts.without(Parts::LATE) | Parts::STAT;
        let fresh =
            |table: &Arc<Table>| table.began + max_age >= asked && table.parts.contains(parts);
        if let Some(table) = self.current.load_full().filter(fresh) {
            return Ok(table);
        }
        let free = match self.scanner.try_lock() {
            Ok(scanner) => Some(scanner),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let waited = free.is_none();
        let mut scanner = free.unwrap_or_else(|| self.scanner());
        if let Some(table) = self.current.load_full().filter(fresh) {
            return Ok(table); // Made while we waited.
        }
        if parts.contains(Parts::CPU) && self.begin_cpu_window(&mut scanner)? {
            drop(scanner); // Others need not wait with us.
            std::thread::sleep(CPU_WINDOW_FIRST);
            scanner = self.scanner();
        }
        let all = scanner.interest.with(parts, Instant::now());
        // Who had to wait is not alone: those behind may want other parts, and shall share this scan.
        self.scan(&mut scanner, if waited { all } else { parts })
    }

    /// Takes the first of two readings, if there is none to measure CPU use from; whether it did.
    fn begin_cpu_window(&self, scanner: &mut Scanner) -> Result<bool, AskError> {
        let missing = scanner.baselines.usable(boot_ns()).is_none();
        if missing {
            self.read_times(scanner)?;
        }
        Ok(missing)
    }

    fn note_question(&self) -> Instant {
        let now = Instant::now();
        self.asked_ms.store((now - self.opened).as_millis() as u64, Ordering::Relaxed);
        now
    }

    /// Whether a query shows so few rows that their texts are better fetched one by one.
    fn picks_few(&self, query: &Query, pids: Option<&[i32]>) -> bool {
        let few = |limit: usize| {
            // Before the first scan nothing is known, and a limit is a promise of few.
            self.current.load().as_ref().is_none_or(|table| limit < table.rows.len() / 4)
        };
        let limited = query.limit.is_some_and(|limit| few(limit as usize));
        // What a filter lets through cannot be known. A cheap collector knows most lines anyhow.
        let filtered = query.filter.is_some() && !self.cheap;
        !query.is_grouped() && (limited || filtered || pids.is_some())
    }

    /// Fetches `parts` that `row` lacks from `/proc`. What cannot be read stays absent.
    pub fn complete(&self, row: &mut Process, parts: Parts) {
        self.proc.complete(row, parts);
    }

    /// Who has this number now; `None` for nobody.
    ///
    /// # Errors
    /// [`AskError::Scan`].
    pub fn identity_of(&self, pid: i32) -> Result<Option<ProcessId>, AskError> {
        if self.sockets.is_nothing() {
            let table = self.table(INTEREST, Parts::IDENTITY)?;
            return Ok(table.position(pid).map(|at| table.rows[at].id()));
        }
        Ok(self.proc.one(pid, Parts::IDENTITY).map(|row| row.id()))
    }

    /// Whether this process is there, be it as a zombie.
    pub(crate) fn is_there(&self, id: ProcessId) -> bool {
        self.proc.one(id.pid, Parts::STAT).is_some_and(|row| row.id().same(&id))
    }

    /// The name of a user id; its number if it has none.
    pub fn user_name(&self, uid: u32) -> Arc<str> {
        self.users.one(uid)
    }

    /// The name of a group id; its number if it has none.
    pub fn group_name(&self, gid: u32) -> Arc<str> {
        self.groups.one(gid)
    }

    /// Which collector runs, and what became of each rung of the ladder above it.
    pub fn rungs(&self) -> Vec<Rung> {
        let mut rungs = self.rungs.clone();
        let runs = self.current.load().as_ref().map(|table| table.collector.name());
        let opened = rungs.iter().position(|rung| rung.chosen);
        let now = rungs.iter().position(|rung| Some(rung.collector.as_str()) == runs);
        if let (Some(opened), Some(now)) = (opened, now)
            && opened != now
        {
            rungs[opened].chosen = false;
            rungs[opened].why = String::from("a pass with command lines failed; the log says how");
            rungs[now].chosen = true;
            rungs[now].why = format!("took over from `{}`", rungs[opened].collector);
        }
        rungs
    }

    /// The boot id of this host: a process identity holds within one boot.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// What is counted for scrapes.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What this engine was opened with.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Takes a reading of CPU times now, if the last one is older than a few seconds, so that the
    /// next answer's CPU use is of a recent while. The node calls it from time to time. With a
    /// costly collector it does nothing while nobody asks.
    pub fn tick(&self) {
        let idle = self
            .opened
            .elapsed()
            .saturating_sub(Duration::from_millis(self.asked_ms.load(Ordering::Relaxed)));
        if !self.cheap && idle > INTEREST {
            return;
        }
        let mut scanner = self.scanner();
        if scanner.baselines.newest_age(boot_ns()).is_none_or(|age| age >= TICK_AGE) {
            // A failure shows at the next question, to somebody who can act on it.
            let _ = self.read_times(&mut scanner);
        }
    }

    fn scanner(&self) -> MutexGuard<'_, Scanner> {
        // A scan that panicked left no half table behind: `current` is set last.
        self.scanner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, scanner: &mut Scanner, parts: Parts) -> Result<(Clock, Scan), AskError> {
        let clock = Clock::now();
        let scan = scanner.collector.scan(&self.proc, parts);
        let collector = scanner.collector.kind();
        let mut scan = scan.map_err(|source| {
            self.metrics.note_failed_scan();
            AskError::Scan { collector: collector.name(), source }
        })?;
        self.metrics.note_scan(clock.began.elapsed());
        keep_times(&mut scan.rows, &mut scanner.times);
        if let Some(before) = self.current.load_full().filter(|_| !self.cheap) {
            keep_lines(&mut scan.rows, &before.rows);
        }
        Ok((clock, scan))
    }

    /// Takes a reading of CPU times; the newest table stays, it may have more than these.
    fn read_times(&self, scanner: &mut Scanner) -> Result<(), AskError> {
        let (clock, scan) = self.collect(scanner, Parts::STAT)?;
        scanner.baselines.record(clock.boot_ns, &scan.rows);
        Ok(())
    }

    fn scan(&self, scanner: &mut Scanner, parts: Parts) -> Result<Arc<Table>, AskError> {
        let (clock, scan) = self.collect(scanner, parts)?;
        let percents = scanner.baselines.percents(clock.boot_ns, &scan.rows);
        scanner.baselines.record(clock.boot_ns, &scan.rows);
        scanner.generation += 1;
        let collector = scanner.collector.kind();
        let table = clock.table(scanner.generation, collector, scan.rows, scan.parts, percents);
        let table = Arc::new(table);
        self.current.store(Some(table.clone()));
        Ok(table)
    }

    /// A table of a few processes, for a collector whose whole table is costly.
    fn few(&self, pids: &[i32], parts: Parts) -> Result<Arc<Table>, AskError> {
        self.note_question();
        if parts.contains(Parts::CPU) && self.begin_cpu_window(&mut self.scanner())? {
            std::thread::sleep(CPU_WINDOW_FIRST);
        }
        let clock = Clock::now();
        let mut pids = pids.to_vec();
        pids.sort_unstable();
        pids.dedup();
        let rows: Vec<_> = pids.iter().filter_map(|pid| self.proc.one(*pid, parts)).collect();
        let mut scanner = self.scanner();
        let percents = scanner.baselines.percents(clock.boot_ns, &rows);
        scanner.generation += 1;
        let collector = CollectorKind::Proc;
        Ok(Arc::new(clock.table(scanner.generation, collector, rows, parts, percents)))
    }

    /// From now on the column `blocked_on` shows what `says` says when a question reads that column: a
    /// little later than the rows were read. Who comes second is not asked.
    pub fn show_blocked_on(&self, says: impl Fn() -> BlockedOn + Send + Sync + 'static) {
        let _ = self.blocked.0.set(Box::new(says));
    }

    /// What the values of rows of `table` are made from beside them, as far as `columns` need it.
    pub(crate) fn context(
        &self,
        table: Arc<Table>,
        columns: &[ColumnIndex],
        lines: Lines,
    ) -> Context {
        let reads = |wanted: &[Column]| wanted.iter().any(|c| columns.contains(&c.index()));
        // Rows that were read without their ids are completed later: the names of all ids are rare
        // enough to be looked up for what the table has.
        let users = if reads(&[Column::User, Column::Ruser]) {
            self.users.of(table.rows.iter().flat_map(|row| [row.uid.effective, row.uid.real]))
        } else {
            Arc::default()
        };
        let groups = if reads(&[Column::Group, Column::Rgroup]) {
            self.groups.of(table.rows.iter().flat_map(|row| [row.gid.effective, row.gid.real]))
        } else {
            Arc::default()
        };
        let blocked_on = match self.blocked.0.get() {
            Some(says) if reads(&[Column::BlockedOn]) => Arc::new(says()),
            _ => Arc::default(),
        };
        Context {
            table,
            open: None,
            blocked_on,
            dc: self.dc.clone(),
            host: self.host.clone(),
            users,
            groups,
            memory_bytes: self.memory_bytes,
            lines,
        }
    }
}

/// What must be known of every row before it is decided which rows leave.
fn early_parts(query: &Query) -> Parts {
    let sort = query.sort.iter().filter_map(|key| match key.select {
        Select::Column(column) => Some(column),
        Select::Aggregate(_) => None,
    });
    let filter = query.filter.iter().flat_map(kumo_abi::Filter::columns).copied();
    let mut parts = parts_of(&sort.chain(filter).collect::<Vec<_>>());
    // Names of users are looked up once for the whole table, so their ids must be known.
    parts |= parts_of(&query.columns_read()) & (Parts::OWNER | Parts::STATUS);
    parts
}

/// A process's CPU time never shrinks. A collector that adds up threads one by one may miss one that
/// ends in between; then the last reading holds.
fn keep_times(rows: &mut [Process], times: &mut Vec<Times>) {
    let mut now = Vec::with_capacity(rows.len());
    let mut last = times.iter().peekable();
    for row in rows {
        while last.next_if(|before| before.id.pid < row.pid).is_some() {}
        if let Some(before) = last.peek().filter(|before| before.id.same(&row.id()))
            && before.utime_ns + before.stime_ns > row.cpu_ns()
        {
            (row.utime_ns, row.stime_ns) = (before.utime_ns, before.stime_ns);
        }
        now.push(Times { id: row.id(), utime_ns: row.utime_ns, stime_ns: row.stime_ns });
    }
    *times = now;
}

/// A command line that is as it was is the same one again, with what was made of it. Cheap collectors
/// see to that themselves.
fn keep_lines(rows: &mut [Process], before: &[Process]) {
    let mut before = before.iter().peekable();
    for row in rows {
        let Some(line) = &mut row.cmdline else { continue };
        while before.next_if(|one| one.pid < row.pid).is_some() {}
        let last = before.peek().filter(|one| one.pid == row.pid);
        if let Some(last) = last.and_then(|one| one.cmdline.as_ref())
            && last == line
        {
            *line = last.clone();
        }
    }
}

/// The clocks at the beginning of a scan.
pub(crate) struct Clock {
    pub(crate) began: Instant,
    pub(crate) boot_ns: u64,
    pub(crate) unix_ns: u64,
}

impl Clock {
    pub(crate) fn now() -> Clock {
        let unix = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Clock { began: Instant::now(), boot_ns: boot_ns(), unix_ns: timespec_ns(unix) }
    }

    fn table(
        self,
        generation: u64,
        collector: CollectorKind,
        rows: Vec<Process>,
        parts: Parts,
        cpu_percent: Option<Vec<f32>>,
    ) -> Table {
        Table {
            generation,
            collector,
            began: self.began,
            began_unix_ns: self.unix_ns,
            began_boot_ns: self.boot_ns,
            scan_us: self.began.elapsed().as_micros() as u64,
            // How a process that lives ended need not be looked for anywhere.
            parts: if cpu_percent.is_some() { parts | Parts::CPU } else { parts } | Parts::END,
            rows,
            cpu_percent,
        }
    }
}

/// Nanoseconds of boot time.
pub(crate) fn boot_ns() -> u64 {
    timespec_ns(rustix::time::clock_gettime(rustix::time::ClockId::Boottime))
}

/// A time as nanoseconds.
pub(crate) fn timespec_ns(time: rustix::time::Timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU times of all processes at one moment.
#[derive(Debug)]
struct Baseline {
    boot_ns: u64,
    /// Ascending by pid.
    times: Vec<(i32, u64, u64)>,
}

/// The two readings that CPU use is measured from. However often scans come, the one in use is at
/// least [`CPU_WINDOW_MIN`] old.
#[derive(Debug, Default)]
struct Baselines {
    older: Option<Baseline>,
    newer: Option<Baseline>,
}

impl Baselines {
    /// The newest reading that is old enough and not too old at `now_ns`.
    fn usable(&self, now_ns: u64) -> Option<&Baseline> {
        let age =
            |baseline: &&Baseline| Duration::from_nanos(now_ns.saturating_sub(baseline.boot_ns));
        let ready = |baseline: &&Baseline| {
            // The very first answer has only the reading that was made for it.
            let min = if self.older.is_some() { CPU_WINDOW_MIN } else { CPU_WINDOW_FIRST };
            age(baseline) >= min && age(baseline) <= CPU_WINDOW_MAX
        };
        let newer = self.newer.as_ref().filter(ready);
        newer.or_else(|| self.older.as_ref().filter(ready))
    }

    fn newest_age(&self, now_ns: u64) -> Option<Duration> {
        let newest = self.newer.as_ref()?;
        Some(Duration::from_nanos(now_ns.saturating_sub(newest.boot_ns)))
    }

    /// CPU use of each of `rows` (ascending by pid) at `now_ns`, in percent of one CPU; NaN where it is
    /// not known.
    fn percents(&self, now_ns: u64, rows: &[Process]) -> Option<Vec<f32>> {
        let baseline = self.usable(now_ns)?;
        let mut times = baseline.times.iter().peekable();
        let percent = |row: &Process| {
            while times.next_if(|(pid, ..)| *pid < row.pid).is_some() {}
            let before = times
                .peek()
                .filter(|(pid, start_ns, _)| *pid == row.pid && *start_ns == row.start_ns);
            let (since_ns, cpu_ns) = match before {
                Some((.., cpu_ns)) => (baseline.boot_ns, *cpu_ns),
                // The start may be rounded down to a tick.
                None if row.start_ns + TICK_NS >= baseline.boot_ns => (row.start_ns, 0),
                None => return f32::NAN, // It was there, and that reading did not show it.
            };
            // A process of this very moment: a window below a millisecond would show noise.
            let window_ns = now_ns.saturating_sub(since_ns).max(1_000_000);
            row.cpu_ns().saturating_sub(cpu_ns) as f32 * 100.0 / window_ns as f32
        };
        Some(rows.iter().map(percent).collect())
    }

    /// Keeps this reading if the last one is old enough to be measured from.
    fn record(&mut self, now_ns: u64, rows: &[Process]) {
        if self.newest_age(now_ns).is_some_and(|age| age < CPU_WINDOW_MIN) {
            return;
        }
        let times = rows.iter().map(|row| (row.pid, row.start_ns, row.cpu_ns())).collect();
        // After a pause both begin anew, as at the start.
        let of_now = |age: Duration| age <= CPU_WINDOW_MAX;
        let pause = !self.newest_age(now_ns).is_some_and(of_now);
        let before = self.newer.replace(Baseline { boot_ns: now_ns, times });
        self.older = before.filter(|_| !pause);
    }
}

/// Fetches what a row lacks; outlives the engine if an answer does.
#[derive(Debug)]
struct Completer(Option<Arc<ProcFs>>);

/// An answer, written bit by bit so that a large one needs no large buffer.
pub struct Answer {
    /// What it says about itself.
    pub meta: Meta,
    view: View<Completer>,
    selected: Selected,
    writer: Writer,
    /// Whether the query gives an order.
    sorted: bool,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("meta", &self.meta)
            .field("rows", &self.len())
            .finish_non_exhaustive()
    }
}

impl crate::select::Complete for Completer {
    fn complete(&self, row: &mut Process, parts: Parts) {
        if let Some(proc) = &self.0 {
            proc.complete(row, parts);
        }
    }
}

/// A row of an answer, for a reader in this process.
pub(crate) struct SeenRow<'a> {
    pub(crate) row: &'a Process,
    pub(crate) index: usize,
    pub(crate) context: &'a Context,
}

impl SeenRow<'_> {
    /// What a column shows.
    pub(crate) fn value(&self, column: Column) -> Value<'_> {
        row::value(column, self.row, self.index, self.context)
    }
}

/// Where the writing of an answer is.
struct Writer {
    rows: RowWriter,
    columns: Vec<Select>,
    parts: Parts,
}

impl Writer {
    fn new(meta: &Meta, query: &Query, parts: Parts) -> Writer {
        Writer { rows: RowWriter::new(meta), columns: query.columns.clone(), parts }
    }
}

impl Answer {
    /// How many rows it has.
    pub fn len(&self) -> usize {
        self.selected.len()
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the next piece (tens of KiB) to `out`; `false` when that was the last one.
    pub fn write_next(&mut self, format: Format, out: &mut Vec<u8>) -> bool {
        let Answer { view, selected, writer: Writer { rows, columns, parts }, .. } = self;
        rows.write_next(format, selected.len(), out, |position, keys, out| {
            write_row(view, selected, columns, *parts, position, keys, out);
        })
    }

    /// Gives each row of a query that is not grouped to `take`, with what its values are made from.
    pub(crate) fn each_row<E>(
        &self,
        mut take: impl FnMut(&SeenRow<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Selected::Rows(rows) = &self.selected else { return Ok(()) };
        for index in rows {
            let mut scratch = None;
            let row = self.view.row_with(*index, self.writer.parts, &mut scratch);
            take(&SeenRow { row, index: *index, context: &self.view.context })?;
        }
        Ok(())
    }

    /// The whole answer at once, for a reader in this process.
    pub fn into_bytes(mut self, format: Format) -> Vec<u8> {
        let mut out = Vec::new();
        while self.write_next(format, &mut out) {}
        out
    }

    /// The answer as a delta: what has changed since `before`, or without it everything. With it comes
    /// what to compare the next answer with. Its query must have plain rows.
    pub(crate) fn into_delta(self, before: Option<&Seen>, hash: &CellHash) -> (Vec<u8>, Seen) {
        let mut seen = Seen::default();
        let known = before.map(Seen::by_id).unwrap_or_default();
        let Selected::Rows(rows) = &self.selected else { return (Vec::new(), seen) };
        let (mut written, mut cell) = (Vec::new(), Vec::new());
        for index in rows {
            let mut scratch = None;
            let row = self.view.row_with(*index, self.writer.parts, &mut scratch);
            let cells_before = known.get(&row.id());
            let mut cells = Vec::with_capacity(self.writer.columns.len());
            let began = written.len();
            written.extend_from_slice(format!("{{\"id\":\"{}\"", row.id()).as_bytes());
            let with_identity = written.len();
            for (place, select) in self.writer.columns.iter().enumerate() {
                let Select::Column(column) = select else { continue };
                cell.clear();
                let value = row::value(Column::at(*column), row, *index, &self.view.context);
                write_value(&mut cell, &value);
                cells.push(hash.of(&cell));
                let is_same = cells_before.is_some_and(|before| before.get(place) == cells.last());
                if is_same || *column == Column::Id.index() {
                    continue;
                }
                // Behind the identity every key follows another.
                written.push(b',');
                written.extend_from_slice(&self.writer.rows.keys()[place][1..]);
                written.extend_from_slice(&cell);
            }
            if written.len() > with_identity || cells_before.is_none() {
                written.extend_from_slice(b"},");
            } else {
                written.truncate(began);
            }
            seen.push(row.id(), cells.into());
        }
        written.pop();
        let Some(before) = before else {
            let mut head = document(&self.meta);
            head.pop();
            let out = [&head, &br#","full":true,"rows":["#[..], &written, b"]}"].concat();
            return (out, seen);
        };
        let texts = |ids: &[ProcessId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        let Meta { generation, as_of, scan_us, processes, matched, .. } = &self.meta;
        let mut head = json!({
            "generation": generation, "as_of": as_of, "scan_us": scan_us, "processes": processes,
            "matched": matched, "full": false, "gone": texts(&before.gone(&seen)),
        });
        // Rows that are not sorted stand in the order of their numbers.
        if self.sorted && !before.ids().eq(seen.ids()) {
            head["order"] = json!(texts(&seen.ids().collect::<Vec<_>>()));
        }
        let mut head = document(&head);
        head.pop();
        ([&head, &br#","rows":["#[..], &written, b"]}"].concat(), seen)
    }
}

/// Writes one row, but for its last brace.
fn write_row(
    view: &View<Completer>,
    selected: &Selected,
    columns: &[Select],
    parts: Parts,
    position: usize,
    keys: &[Vec<u8>],
    out: &mut Vec<u8>,
) {
    match selected {
        Selected::Groups(groups) => {
            for (key, value) in keys.iter().zip(&groups[position]) {
                out.extend_from_slice(key);
                write_value(out, value);
            }
        }
        Selected::Rows(rows) => {
            let index = rows[position];
            let mut scratch = None;
            let row = view.row_with(index, parts, &mut scratch);
            for (key, select) in keys.iter().zip(columns) {
                let Select::Column(column) = select else { continue };
                out.extend_from_slice(key);
                let value = row::value(Column::at(*column), row, index, &view.context);
                write_value(out, &value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn row(pid: i32, start_ns: u64, cpu_ns: u64) -> Process {
        Process { pid, start_ns, utime_ns: cpu_ns, ..Process::default() }
    }

    #[test]
    fn cpu_use_is_of_a_recent_while() {
        let mut baselines = Baselines::default();
        assert_eq!(baselines.percents(SECOND, &[row(1, 0, 5)]), None, "nothing to measure from");
        baselines.record(10 * SECOND, &[row(1, 0, 0), row(2, 0, 7 * SECOND), row(3, 0, 0)]);
        let now = [
            row(1, 0, SECOND / 2),                        // half a CPU
            row(2, 10 * SECOND, SECOND / 4), // a new process under an old number, as old as the window
            row(4, 10 * SECOND + SECOND / 2, SECOND / 2), // born in between, always running
            row(5, SECOND, SECOND),          // old, but that reading did not have it
        ];
        let percents = baselines.percents(11 * SECOND, &now).expect("a baseline");
        assert_eq!(percents[..3], [50.0, 25.0, 100.0]);
        assert!(percents[3].is_nan());
        assert_eq!(baselines.percents(60 * SECOND, &now), None, "too long ago");
    }

    #[test]
    fn after_a_pause_two_readings_are_enough_again() {
        let mut baselines = Baselines::default();
        for second in 10..20 {
            baselines.record(second * SECOND, &[row(1, 0, 0)]);
        }
        let now_ns = 120 * SECOND;
        assert!(baselines.usable(now_ns).is_none(), "all of it is old");
        baselines.record(now_ns, &[row(1, 0, 0)]);
        let now_ns = now_ns + CPU_WINDOW_FIRST.as_nanos() as u64;
        let percents = baselines.percents(now_ns, &[row(1, 0, SECOND / 10)]);
        assert_eq!(percents, Some(vec![50.0]));
    }

    #[test]
    fn cpu_time_does_not_shrink() {
        let mut times = Vec::new();
        keep_times(&mut [row(1, 5, 100), row(2, 0, 100), row(4, 0, 100)], &mut times);
        let mut now = [row(1, 7_000_000_000, 3), row(2, 0, 90), row(3, 0, 1), row(4, 0, 110)];
        keep_times(&mut now, &mut times);
        assert_eq!(now.map(|row| row.cpu_ns()), [3, 100, 1, 110]);
        assert_eq!(times.iter().map(|t| t.utime_ns).collect::<Vec<_>>(), [3, 100, 1, 110]);
    }

    #[test]
    fn what_was_asked_for_lately_comes_along() {
        let begin = Instant::now();
        let mut interest = Interest { since: begin, now: Parts::NONE, before: Parts::NONE };
        let after = |ms: u64| begin + Duration::from_millis(ms);
        assert_eq!(interest.with(Parts::IO | Parts::CPU, begin), Parts::IO | Parts::CPU);
        assert_eq!(interest.with(Parts::MEMORY, after(900)), Parts::IO | Parts::MEMORY);
        assert_eq!(
            interest.with(Parts::STAT, after(1_500)),
            Parts::IO | Parts::MEMORY | Parts::STAT
        );
        assert_eq!(interest.with(Parts::NONE, after(2_600)), Parts::STAT);
        assert_eq!(interest.with(Parts::NONE, after(9_000)), Parts::NONE);
    }

    #[test]
    fn frequent_scans_do_not_shorten_the_window() {
        let mut baselines = Baselines::default();
        for step in 0..400 {
            let now_ns = 10 * SECOND + step * SECOND / 100;
            if step > 60 {
                let used = baselines.usable(now_ns).expect("a baseline").boot_ns;
                let age = Duration::from_nanos(now_ns - used);
                assert!(age >= CPU_WINDOW_MIN && age < 3 * CPU_WINDOW_MIN, "{age:?} at {step}");
            }
            baselines.record(now_ns, &[]);
        }
    }

    fn engine() -> Engine {
        let config = EngineConfig {
            collector: CollectorChoice::Only(CollectorKind::Proc),
            dc: "dc".to_owned(),
            host: "host".to_owned(),
        };
        Engine::open(config).expect("/proc is there")
    }

    #[test]
    fn a_line_that_was_read_again_is_the_same_one() {
        for collector in CollectorKind::LADDER.map(CollectorChoice::Only) {
            let config = EngineConfig { collector, ..engine().config().clone() };
            // What does not work here is not tried.
            let Ok(engine) = Engine::open(config) else { continue };
            let own = || {
                let table = engine.table(Duration::ZERO, Parts::CMDLINE).expect("a table");
                let row = table.position(std::process::id() as i32).expect("we live");
                table.rows[row].cmdline.clone().expect("we have one")
            };
            // We run, so that ours is read again.
            let (before, after) = (own(), own());
            assert_eq!(before.argv().as_ptr(), after.argv().as_ptr(), "with {collector:?}");
        }
    }

    #[test]
    fn a_record_is_played_back() {
        let live = engine();
        let table = live.table(Duration::ZERO, Parts::EVERY_ROW).expect("a table");
        let rows: Arc<[Process]> = table.rows.clone().into();
        let config = EngineConfig { host: "other".to_owned(), ..live.config().clone() };
        let played = Engine::replay(config, Arc::clone(&rows)).expect("/proc is there");
        let again = played.table(Duration::ZERO, Parts::EVERY_ROW).expect("a table");
        let names = |rows: &[Process]| rows.iter().map(|row| row.pid).collect::<Vec<_>>();
        assert_eq!(names(&again.rows), names(&rows));
        assert_eq!(
            (again.collector, again.parts),
            (CollectorKind::Recorded, Parts::EVERY_ROW | Parts::END)
        );
        assert!(again.rows[0].utime_ns >= rows[0].utime_ns);
    }

    #[test]
    fn questions_at_the_same_time_share_a_scan() {
        let engine = engine();
        let first = engine.table(Duration::ZERO, Parts::STAT).expect("a table");
        let again = engine.table(Duration::from_secs(60), Parts::STAT).expect("a table");
        assert_eq!(first.generation, again.generation, "young enough");
        let more = engine.table(Duration::from_secs(60), Parts::MEMORY).expect("a table");
        assert_eq!(more.generation, first.generation + 1, "the first had no memory");
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| engine.table(Duration::ZERO, Parts::STAT).expect("a table"));
            }
        });
        let after = engine.table(Duration::from_secs(60), Parts::STAT).expect("a table");
        let scans = after.generation - more.generation;
        assert!(scans < 62, "{scans} scans for 64 at once");
    }

    #[test]
    fn the_first_answer_knows_cpu_use() {
        let engine = engine();
        let busy = std::thread::spawn(|| {
            let until = Instant::now() + Duration::from_secs(1);
            while Instant::now() < until {}
        });
        let text = kumo_abi::QueryText { columns: Some("pid,cpu".into()), ..Default::default() };
        let query = Query::parse(&text, &PROC, "pid").expect("a query");
        let pids = Some(vec![std::process::id() as i32]);
        let question = Question { query, pids, max_age: Duration::ZERO, lines: Lines::Whole };
        let answer = engine.ask(question).expect("an answer").into_bytes(Format::Json);
        let rows: kumo_abi::Rows = serde_json::from_slice(&answer).expect("what clients read");
        let cpu = rows.rows[0]["cpu"].as_f64().expect("a number in the first answer");
        assert!(cpu > 0.0, "we were busy, and {cpu} % is not");
        busy.join().expect("it ends by itself");
    }
}
