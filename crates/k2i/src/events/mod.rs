//! Processes that begin and end, as it happens.
//!
//! A source tells records: the kernel's tracepoints, or where they do not work its proc connector. A
//! thread takes them, [`lives`] puts them together, and everybody who listens is told. Ended processes
//! are remembered within bounds; they are asked as rows of the process table are.
//!
//! What could not be kept is counted and said: by the kernel what found no room in the ring, by
//! each listener's own queue what it was too slow for. Only servers take events: for one question it
//! would not be worth their start.

mod connector;
mod life;
mod lives;
pub(crate) mod records;
mod tracepoints;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use kumo_abi::ProcessId;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use utoipa::ToSchema;

use crate::collect::Rung;
use crate::engine::{Engine, boot_ns};
use crate::table::Parts;
use connector::Connector;
pub use life::{Identity, LIFE_LINE_BYTES_MAX, Life, Line, Used};
use lives::Lives;
pub use lives::{ENDED_BYTES_MAX, ENDED_MAX, Event, LIVING_BYTES_MAX};
use records::{Key, Record};
use tracepoints::Tracepoints;

/// Events that a listener may be behind; beyond it the oldest are lost to it, and it is told how many.
/// A second and more of the fastest starts of two CPUs.
pub const EVENTS_AHEAD_MAX: usize = 8_192;

/// After a look at the ring the next one waits this long. Who starts a thousand processes a second
/// wakes us a hundred times, not three thousand; and nothing is known later than by this.
const PAUSE: Duration = Duration::from_millis(10);

/// So many records are taken before those who wait for the memory of ended processes get their turn.
const BATCH_MAX: usize = 1_024;

/// Where events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventSource {
    /// BPF programs at the kernel's tracepoints: everything, lost records counted exactly.
    Tracepoints,
    /// The kernel's proc connector: numbers, and what can still be read from `/proc`.
    Connector,
}

impl EventSource {
    /// The ladder from the top.
    pub const LADDER: [EventSource; 2] = [EventSource::Tracepoints, EventSource::Connector];

    /// Its name in answers and options.
    pub fn name(self) -> &'static str {
        match self {
            EventSource::Tracepoints => "tracepoints",
            EventSource::Connector => "connector",
        }
    }
}

/// Which source to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventChoice {
    /// The first that works; none if none does.
    #[default]
    Auto,
    /// This one or none.
    Only(EventSource),
    /// None.
    Off,
}

impl std::str::FromStr for EventChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<EventChoice, String> {
        match text {
            "auto" => return Ok(EventChoice::Auto),
            "off" => return Ok(EventChoice::Off),
            _ => {}
        }
        let source = EventSource::LADDER.into_iter().find(|source| source.name() == text);
        source.map(EventChoice::Only).ok_or_else(|| {
            let names: Vec<_> = EventSource::LADDER.iter().map(|source| source.name()).collect();
            format!("`{text}` is no source of events; there are auto, {} and off", names.join(", "))
        })
    }
}

/// How much was lost since events were taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Losses {
    /// Execs: as many command lines are missing.
    pub execs: u64,
    /// Exits: exactly as many rows are missing.
    pub exits: u64,
    /// Reaps: as many rows lack their CPU time for ever. Known some seconds later.
    pub reaps: u64,
    /// How often a source that cannot count lost an unknown number of each.
    pub overruns: u64,
}

/// What listeners are told.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// Something happened to a process.
    Event(Event),
    /// Something was lost: all of it since events were taken.
    Lost(Losses),
}

/// What a host says about its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventsReport {
    /// Where they come from; `None` if they are not taken.
    pub source: Option<String>,
    /// What became of each source, the best first.
    pub ladder: Vec<Rung>,
    /// Processes that have ended since events were taken.
    pub ended: u64,
    /// Of these, how many are remembered.
    pub remembered: u64,
    /// What was lost.
    pub lost: Losses,
}

/// Events that are being taken; no more when dropped.
#[derive(Debug)]
pub(crate) struct Events {
    shared: Arc<Shared>,
    ladder: Vec<Rung>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    source: EventSource,
    state: Mutex<State>,
    tell: broadcast::Sender<News>,
}

#[derive(Debug)]
struct State {
    lives: Lives,
    lost: Losses,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // What panicked left whole records behind: each is taken or not.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A source that works.
enum Opened {
    Tracepoints(Box<Tracepoints>),
    Connector(Connector),
}

/// What became of the ladder.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) events: Option<Events>,
    pub(crate) ladder: Vec<Rung>,
}

/// Begins to take events for `engine`, from the best source that works.
pub(crate) fn begin(choice: EventChoice, engine: &Arc<Engine>) -> Attempt {
    let (opened, ladder) = open(choice);
    let Some(opened) = opened else { return Attempt { events: None, ladder } };
    match Events::start(opened, ladder.clone(), engine) {
        Ok(events) => Attempt { events: Some(events), ladder },
        Err(error) => {
            let mut ladder = ladder;
            for rung in ladder.iter_mut().filter(|rung| rung.chosen) {
                rung.chosen = false;
                rung.why = format!("the system has no resources for it: {error}");
            }
            Attempt { events: None, ladder }
        }
    }
}

/// What would become of each source now, the best first: each is tried, and let go.
pub fn event_ladder() -> Vec<Rung> {
    open(EventChoice::Auto).1
}

fn open(choice: EventChoice) -> (Option<Opened>, Vec<Rung>) {
    let mut opened = None;
    let mut ladder = Vec::new();
    let mut better = "";
    for source in EventSource::LADDER {
        let (chosen, why) = match choice {
            EventChoice::Off => (false, "events are switched off".to_owned()),
            EventChoice::Only(only) if only != source => {
                (false, "another source was asked for".to_owned())
            }
            _ if opened.is_some() => (false, format!("not needed: `{better}` works")),
            _ => match Opened::try_open(source) {
                Ok(source) => {
                    opened = Some(source);
                    (true, "works here".to_owned())
                }
                Err(why) => (false, why),
            },
        };
        if chosen {
            better = source.name();
        }
        ladder.push(Rung { collector: source.name().to_owned(), chosen, why });
    }
    (opened, ladder)
}

impl Opened {
    fn try_open(source: EventSource) -> Result<Opened, String> {
        match source {
            EventSource::Tracepoints => Ok(Opened::Tracepoints(Box::new(Tracepoints::open()?))),
            EventSource::Connector => Ok(Opened::Connector(Connector::open()?)),
        }
    }

    fn source(&self) -> EventSource {
        match self {
            Opened::Tracepoints(_) => EventSource::Tracepoints,
            Opened::Connector(_) => EventSource::Connector,
        }
    }

    /// Waits for records, or for `stop`; whether that came.
    fn wait(&self, stop: &OwnedFd, time_max: Option<Duration>) -> io::Result<bool> {
        let fd = match self {
            Opened::Tracepoints(tracepoints) => tracepoints.fd(),
            Opened::Connector(connector) => connector.fd(),
        };
        wait(&[&fd], stop, time_max)
    }

    /// Takes at most [`BATCH_MAX`] records; whether there may be more.
    fn take(&mut self, take: &mut dyn FnMut(Record)) -> bool {
        match self {
            Opened::Tracepoints(tracepoints) => {
                for _ in 0..BATCH_MAX {
                    match tracepoints.next() {
                        Some(Ok(record)) => take(record),
                        Some(Err(malformed)) => {
                            tracing::error!("a record of the ring: {malformed:?}");
                        }
                        None => return false,
                    }
                }
                true
            }
            Opened::Connector(connector) => {
                for _ in 0..BATCH_MAX {
                    match connector.next() {
                        Ok(record) => record.into_iter().for_each(&mut *take),
                        Err(connector::Quiet) => return false,
                    }
                }
                true
            }
        }
    }

    /// What it could not tell, but for reaps.
    fn lost(&self) -> io::Result<Losses> {
        match self {
            Opened::Tracepoints(tracepoints) => {
                let (execs, exits) = tracepoints.lost()?;
                Ok(Losses { execs, exits, ..Losses::default() })
            }
            Opened::Connector(connector) => {
                Ok(Losses { overruns: connector.overruns, ..Losses::default() })
            }
        }
    }

    /// Whether the process numbers of records are those of the table.
    fn shares_numbers(&self) -> bool {
        match self {
            Opened::Tracepoints(tracepoints) => tracepoints.sees_machine,
            // It tells nobody but who is in the first namespace.
            Opened::Connector(_) => true,
        }
    }
}

/// Waits until one of `fds` is readable or `stop` is, or `time_max` is over; whether `stop` is.
fn wait(
    fds: &[&dyn std::os::fd::AsFd],
    stop: &OwnedFd,
    time_max: Option<Duration>,
) -> io::Result<bool> {
    let timeout = time_max.map(|time| Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: i64::from(time.subsec_nanos()),
    });
    let mut polled = vec![PollFd::new(stop, PollFlags::IN)];
    polled.extend(fds.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) => Ok(!polled[0].revents().is_empty()),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Events {
    fn start(opened: Opened, ladder: Vec<Rung>, engine: &Arc<Engine>) -> io::Result<Events> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let lives = match opened.source() {
            EventSource::Tracepoints => Lives::default(),
            EventSource::Connector => Lives::without_reaps(),
        };
        let shared = Arc::new(Shared {
            source: opened.source(),
            state: Mutex::new(State { lives, lost: Losses::default() }),
            tell: broadcast::Sender::new(EVENTS_AHEAD_MAX),
        });
        look(&shared, &opened, engine);
        let (sharing, stopping) = (Arc::clone(&shared), Arc::clone(&stop));
        let engine = Arc::downgrade(engine);
        let thread = std::thread::Builder::new()
            .name("k2i-events".to_owned())
            .spawn(move || run(opened, &sharing, &stopping, &engine))?;
        Ok(Events { shared, ladder, stop, thread: Some(thread) })
    }

    pub(crate) fn source(&self) -> EventSource {
        self.shared.source
    }

    /// From now on. Who is more than [`EVENTS_AHEAD_MAX`] behind loses the oldest, and learns how many.
    pub(crate) fn listen(&self) -> broadcast::Receiver<News> {
        self.shared.tell.subscribe()
    }

    pub(crate) fn report(&self) -> EventsReport {
        let state = self.shared.state();
        EventsReport {
            source: Some(self.shared.source.name().to_owned()),
            ladder: self.ladder.clone(),
            ended: state.lives.ended_ever(),
            remembered: state.lives.ended().len() as u64,
            lost: state.lost,
        }
    }

    /// See [`Lives::executed`]; and what was lost.
    pub(crate) fn executed(&self) -> (Vec<Arc<Life>>, Losses) {
        let state = self.shared.state();
        (state.lives.executed(), state.lost)
    }

    /// Those that ended, from the first to the last; how often that has changed; what was lost.
    pub(crate) fn ended(&self) -> (Vec<Arc<Life>>, u64, Losses) {
        let state = self.shared.state();
        (state.lives.ended().cloned().collect(), state.lives.changes(), state.lost)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // A counter that is full is as good.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        let thread = self.thread.take();
        // The thread itself may be the last that holds the engine: it cannot wait for itself.
        if let Some(thread) = thread.filter(|it| it.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

/// Takes records until `stop`.
fn run(mut opened: Opened, shared: &Shared, stop: &OwnedFd, engine: &Weak<Engine>) {
    let result = loop {
        let look_ns = shared.state().lives.look_ns();
        let look_in = look_ns.map(|at| Duration::from_nanos(at.saturating_sub(boot_ns())));
        match opened.wait(stop, look_in) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => break error,
        }
        let mut news = Vec::new();
        let mut more = true;
        while more {
            {
                let mut state = shared.state();
                let lives = &mut state.lives;
                more = opened.take(&mut |record| news.extend(lives.take(record).map(News::Event)));
            }
            if let Some(engine) = engine.upgrade() {
                engine.note_news(&news);
            }
            for one in news.drain(..) {
                // That nobody listens is no error.
                let _ = shared.tell.send(one);
            }
        }
        if let Some(engine) = engine.upgrade() {
            look_for_overdue(shared, &engine);
        }
        let before = shared.state().lost;
        let lost = match opened.lost() {
            Ok(lost) => Losses { reaps: shared.state().lives.reaps_lost(), ..lost },
            Err(error) => break error,
        };
        if lost != before {
            shared.state().lost = lost;
            let _ = shared.tell.send(News::Lost(lost));
            tracing::debug!("events were lost, in all {lost:?}");
        }
        if (lost.execs, lost.exits, lost.overruns) != (before.execs, before.exits, before.overruns)
            && let Some(engine) = engine.upgrade()
        {
            look(shared, &opened, &engine);
        }
        match wait(&[], stop, Some(PAUSE)) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => break error,
        }
    };
    tracing::error!("no more events are taken: {result}");
}

/// Looks whether those that ended, and should be gone, are.
fn look_for_overdue(shared: &Shared, engine: &Engine) {
    let now_ns = boot_ns();
    let overdue = shared.state().lives.overdue(now_ns);
    for one in overdue {
        let (key, pid) = one;
        let id = ProcessId { pid, start_ns: key.start_ns };
        let is_there = engine.is_there(id);
        shared.state().lives.looked(now_ns, one, is_there);
    }
}

/// Looks who lives: those who were there before us, and those whose events were lost.
fn look(shared: &Shared, opened: &Opened, engine: &Engine) {
    if !opened.shares_numbers() {
        return; // Who is who cannot be told from the table.
    }
    let parts = Parts::STAT | Parts::IDS | Parts::CMDLINE | Parts::CGROUP;
    let table = match engine.table(Duration::ZERO, parts) {
        Ok(table) => table,
        Err(error) => return tracing::warn!("nobody is known by name: {error}"),
    };
    let mut state = shared.state();
    for row in &table.rows {
        let key = Key { tgid: row.pid, start_ns: row.start_ns };
        if row.cmdline.is_some() {
            state.lives.lives(key, table.began_boot_ns, &Life::of_row(row));
        }
    }
    state.lives.saw(table.began_boot_ns, |key| {
        table.position(key.tgid).is_some_and(|at| key.id().same(&table.rows[at].id()))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        let cases = [
            ("auto", Some(EventChoice::Auto)),
            ("off", Some(EventChoice::Off)),
            ("tracepoints", Some(EventChoice::Only(EventSource::Tracepoints))),
            ("connector", Some(EventChoice::Only(EventSource::Connector))),
            ("", None),
            ("bpf", None),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse().ok(), want, "for {text:?}");
        }
    }
}
