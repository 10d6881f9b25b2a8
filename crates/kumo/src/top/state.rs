//! What the view knows and has chosen, and what follows from it: the next request, the lines of the
//! table, the place of the cursor. Plain values; [`super::update`] changes them.

use std::time::Duration;

use k2i::signal::Signal;
use kumo_abi::proc::Column;
use kumo_abi::{HostId, QueryText};

use super::columns::{self, Choice, Shown};
use super::data::{Key, Place, Proc, Request, Side, Snapshot, UserSum, host_sum, host_sums};
use super::header;
use super::replay::Replay;
use crate::cel;
use crate::forest;

/// The shortest time between two readings: faster only heats the machine that is looked at.
pub(super) const DELAY_MIN: Duration = Duration::from_millis(100);
/// The longest: an hour.
pub(super) const DELAY_MAX: Duration = Duration::from_secs(3600);

/// Rows are asked for in steps of so many, so that moving by one row is not a new question.
const LIMIT_STEP: usize = 16;

/// Everything.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch that a key turns, free of the others"
)]
pub(super) struct State {
    /// Columns and rows of the terminal.
    pub(super) size: (u16, u16),
    /// Between two readings.
    pub(super) delay: Duration,
    /// No new data is asked for.
    pub(super) paused: bool,
    /// The order.
    pub(super) sort: Sort,
    /// What the filter lets through.
    pub(super) filter: Option<Filter>,
    /// Only this user's.
    pub(super) user: Option<String>,
    /// The text that `n` goes to.
    pub(super) search: String,
    /// Whether many hosts are looked at.
    pub(super) many: bool,
    /// Whether each row is a host.
    pub(super) by_host: bool,
    /// Only this host's.
    pub(super) only_host: Option<HostId>,
    /// Whether children stand below their parents.
    pub(super) tree: bool,
    /// Whether the column of threads is there.
    pub(super) threads: bool,
    /// Whether command lines are shown, not names.
    pub(super) full_command: bool,
    /// Cells of the command that have left on the left side.
    pub(super) shift: usize,
    /// The selected process. It stays selected wherever it moves.
    pub(super) selected: Option<Key>,
    /// The line that the cursor was last on: where to go on when the selected process has ended.
    pub(super) cursor: usize,
    /// The first line that is shown.
    pub(super) offset: usize,
    /// All rows are asked for, because something beyond the last line is looked for.
    pub(super) whole: bool,
    /// What has the keyboard.
    pub(super) mode: Mode,
    /// The newest data.
    pub(super) snapshot: Option<Box<Snapshot>>,
    /// The lines of the table: rows of the snapshot in the order shown.
    pub(super) lines: Vec<Line>,
    /// Why there is nothing newer.
    pub(super) error: Option<String>,
    /// A word on what just happened, and until when it is shown.
    pub(super) notice: Option<Notice>,
    /// What the branches of the tree are drawn with.
    pub(super) branches: forest::Lines,
    /// Whether colours may be used.
    pub(super) color: bool,
    /// The boot of the machine that we run on: only its processes can be signalled.
    pub(super) boot_id_here: Option<String>,
    /// Where in the past this is; `None` now.
    pub(super) replay: Option<Replay>,
    /// The time of the last event.
    pub(super) now: Duration,
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Index of the row in the snapshot.
    pub(super) row: usize,
    /// What stands before the command: the branches of the tree.
    pub(super) prefix: String,
}

/// An order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sort {
    /// By this column.
    pub(super) column: Column,
    /// The large first.
    pub(super) descending: bool,
}

/// A filter as it was typed and as the source understands it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// As typed.
    pub(super) typed: String,
    /// In CEL.
    pub(super) cel: String,
}

/// What is said and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    /// Escaped.
    pub(super) text: String,
    /// Whether something went wrong.
    pub(super) is_error: bool,
    /// By the clock of the events.
    pub(super) until: Duration,
}

/// What has the keyboard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The table.
    Table,
    /// A line of text.
    Prompt(Prompt),
    /// The keys.
    Help {
        /// The first line that is shown.
        scroll: usize,
    },
    /// A list of columns to sort by.
    SortList {
        /// The chosen one.
        cursor: usize,
    },
    /// A list of users.
    UserList {
        /// What was typed to narrow it.
        typed: String,
        /// The chosen one among those that are left; 0 is everybody.
        cursor: usize,
    },
    /// All about one process.
    Detail {
        /// Which.
        id: Key,
        /// The first line that is shown.
        scroll: usize,
    },
    /// A signal to a process.
    Kill(Kill),
}

/// A line of text that is being typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prompt {
    /// What for.
    pub(super) kind: PromptKind,
    /// So far.
    pub(super) text: String,
    /// Why it was refused.
    pub(super) error: Option<String>,
}

/// What a text is typed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PromptKind {
    /// To go to a process.
    Search,
    /// To show only some.
    Filter,
}

/// A signal that may be sent, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kill {
    /// Who: taken from the row when it was selected, and never looked up again.
    pub(super) id: Key,
    /// The host that is asked to send it; this one without.
    pub(super) host: Option<HostId>,
    /// Whose it is, escaped.
    pub(super) user: String,
    /// What it is, escaped.
    pub(super) command: String,
    /// Which signal is chosen, an index into [`signals`].
    pub(super) cursor: usize,
    /// Whether the signal is chosen and only the confirmation is missing.
    pub(super) confirming: bool,
    /// It has ended meanwhile.
    pub(super) gone: bool,
    /// Whether to return to the detail page.
    pub(super) from_detail: bool,
}

/// The signals to choose from: those that people send by hand first.
pub(super) fn signals() -> Vec<Signal> {
    let first = [15, 2, 1, 9, 19, 18, 10, 12, 3].into_iter().filter_map(Signal::from_number);
    let mut signals: Vec<Signal> = first.collect();
    let rest = Signal::all().filter(|signal| !signals.contains(signal) && signal.number() < 32);
    let rest: Vec<Signal> = rest.collect();
    signals.extend(rest);
    signals
}

/// Columns that can be sorted by; those that the table does not have appear while they are.
pub(super) const SORTABLE: [Column; 20] = [
    Column::Pid,
    Column::User,
    Column::Priority,
    Column::Nice,
    Column::Vsize,
    Column::Rss,
    Column::Shared,
    Column::State,
    Column::Threads,
    Column::Cpu,
    Column::Mem,
    Column::Time,
    Column::Cmdline,
    Column::Ppid,
    Column::Swap,
    Column::Elapsed,
    Column::Majflt,
    Column::ReadBytes,
    Column::WriteBytes,
    // The last, as it is left out where there is one host.
    Column::Host,
];

impl State {
    /// The state at the start: the busiest first.
    pub(super) fn new(size: (u16, u16), delay: Duration) -> State {
        State {
            size,
            delay: delay.clamp(DELAY_MIN, DELAY_MAX),
            paused: false,
            sort: Sort { column: Column::Cpu, descending: true },
            filter: None,
            user: None,
            search: String::new(),
            many: false,
            by_host: false,
            only_host: None,
            tree: false,
            threads: true,
            full_command: true,
            shift: 0,
            selected: None,
            cursor: 0,
            offset: 0,
            whole: false,
            mode: Mode::Table,
            snapshot: None,
            lines: Vec::new(),
            error: None,
            notice: None,
            branches: forest::Lines::Unicode,
            color: true,
            boot_id_here: None,
            replay: None,
            now: Duration::ZERO,
        }
    }

    /// The columns that are shown.
    pub(super) fn columns(&self) -> Vec<Shown> {
        let digits = |proc: &Proc| proc.id.pid.checked_ilog10().unwrap_or(0) as u16 + 1;
        let longest = self.rows().iter().map(digits).max();
        let host = |proc: &Proc| match proc.value(Column::Host).as_str() {
            Some(host) => u16::try_from(crate::text::columns(host)).unwrap_or(u16::MAX),
            None => 0,
        };
        let widest = self.rows().iter().map(host).max();
        let choice = Choice {
            host_width: self.many.then(|| widest.unwrap_or(0)),
            by_host: self.by_host,
            threads: self.threads,
            full_command: self.full_command,
            pid_digits: longest.unwrap_or(0),
            sorted_by: self.sort.column,
        };
        columns::fit(choice, self.size.0)
    }

    /// Lines of the terminal that are left for processes: the header, the headings of the columns
    /// and the line of keys take the others.
    pub(super) fn table_rows(&self) -> usize {
        usize::from(self.size.1).saturating_sub(header::lines(self).len() + 2)
    }

    /// The rows of the newest data.
    pub(super) fn rows(&self) -> &[Proc] {
        self.snapshot.as_ref().map_or(&[], |snapshot| &snapshot.rows)
    }

    /// The columns that can be sorted by.
    pub(super) fn sortable(&self) -> &'static [Column] {
        if self.many { &SORTABLE } else { &SORTABLE[..SORTABLE.len() - 1] }
    }

    /// The host at a place; `None` where one host is looked at.
    pub(super) fn host(&self, place: Place) -> Option<&HostId> {
        self.snapshot.as_ref()?.places.host(place)
    }

    /// A process as it is named: `4711`, `tokyo/a/4711`.
    pub(super) fn name(&self, id: Key) -> String {
        match self.host(id.place) {
            Some(host) => format!("{host}/{}", id.pid),
            None => id.pid.to_string(),
        }
    }

    /// The process on a line.
    pub(super) fn proc_at(&self, line: usize) -> Option<&Proc> {
        self.rows().get(self.lines.get(line)?.row)
    }

    /// The line that a process is on.
    pub(super) fn line_of(&self, id: Key) -> Option<usize> {
        self.lines.iter().position(|line| self.rows()[line.row].id.same(&id))
    }

    /// The selected process, if it is in the table.
    pub(super) fn selected_proc(&self) -> Option<&Proc> {
        self.proc_at(self.line_of(self.selected?)?)
    }

    /// The question that the source has to answer for this state.
    pub(super) fn request(&self) -> Request {
        let mut names: Vec<&str> = vec!["id", "user"];
        if self.tree {
            names.push("ppid");
        }
        // Rows of many hosts have their host in front without being asked.
        let shown = self.columns().into_iter().filter(|shown| shown.column != Column::Host);
        let shown = shown.map(|shown| shown.column.spec().name);
        names.extend(shown.filter(|name| *name != "user"));
        let columns = QueryText { columns: Some(names.join(",")), ..QueryText::default() };
        let whole = self.whole || self.tree || !self.search.is_empty() || self.is_searching();
        let rows = self.table_rows().max(1);
        let wanted = (self.offset + 2 * rows).next_multiple_of(LIMIT_STEP);
        Request {
            table: QueryText {
                filter: self.condition(),
                sort: Some(self.order()),
                limit: (!whole).then(|| wanted.to_string()),
                at: self.replay.map(|replay| replay.at_ms.to_string()),
                ..if self.by_host { host_sums() } else { columns }
            },
            watched: match &self.mode {
                // What ends in the past is seen in the past.
                _ if self.replay.is_some() => None,
                Mode::Kill(kill) => Some(kill.id),
                // A host is no process that could end.
                _ => self.selected.filter(|id| id.pid > 0),
            },
            side: match &self.mode {
                Mode::Detail { id, .. } => Side::Detail(*id),
                Mode::Kill(kill) if kill.from_detail => Side::Detail(kill.id),
                Mode::UserList { .. } => Side::Users,
                _ => Side::Nothing,
            },
        }
    }

    fn is_searching(&self) -> bool {
        matches!(&self.mode, Mode::Prompt(prompt) if prompt.kind == PromptKind::Search)
    }

    fn condition(&self) -> Option<String> {
        let mut conditions = Vec::new();
        if let Some(HostId { dc, host }) = &self.only_host {
            let (dc, host) = (cel::literal(dc.as_str()), cel::literal(host.as_str()));
            conditions.push(format!("dc == {dc} && host == {host}"));
        }
        if let Some(user) = &self.user {
            conditions.push(format!("user == {}", cel::literal(user)));
        }
        match &self.filter {
            // What stands alone is sent as it was typed, and told so when it is wrong.
            Some(filter) if conditions.is_empty() => conditions.push(filter.cel.clone()),
            Some(filter) => conditions.push(cel::enclosed(&filter.cel)),
            None => {}
        }
        (!conditions.is_empty()).then(|| conditions.join(" && "))
    }

    fn order(&self) -> String {
        let sign = if self.sort.descending { "-" } else { "" };
        if self.by_host {
            return match (self.sort.column, host_sum(self.sort.column)) {
                (Column::Host, _) => format!("{sign}dc,{sign}host"),
                // A share of memory adds up to one as memory does.
                (Column::Mem, _) => format!("{sign}sum(rss),dc,host"),
                (_, Some(sum)) => format!("{sign}{sum},dc,host"),
                (_, None) => format!("{sign}sum(cpu),dc,host"),
            };
        }
        let name = match self.sort.column {
            Column::Cmdline if !self.full_command => Column::Comm.spec().name,
            column => column.spec().name,
        };
        // What is equal is told apart by CPU time used, then stays by process number.
        match self.sort.column {
            Column::Pid | Column::Time => format!("{sign}{name}"),
            Column::Cpu => format!("{sign}{name},{sign}time"),
            Column::Host => format!("{sign}dc,{sign}host,pid"),
            _ => format!("{sign}{name},pid"),
        }
    }

    /// Takes new rows over: orders them and finds the selected process again.
    pub(super) fn arrange(&mut self) {
        self.lines = if self.tree && !self.by_host {
            let place =
                |proc: &Proc| (proc.id.number_of(proc.id.pid), proc.id.number_of(proc.ppid()));
            let places = self.rows().iter().map(place);
            let leaves = forest::order(&places.collect::<Vec<_>>());
            let line =
                |leaf: &forest::Leaf| Line { row: leaf.index, prefix: leaf.prefix(self.branches) };
            leaves.iter().map(line).collect()
        } else {
            (0..self.rows().len()).map(|row| Line { row, prefix: String::new() }).collect()
        };
        if let Some(line) = self.selected.and_then(|id| self.line_of(id)) {
            self.cursor = line;
        }
        self.keep_in_view();
    }

    /// Scrolls so that the selected line is shown, and no empty lines stand below the last.
    pub(super) fn keep_in_view(&mut self) {
        let rows = self.table_rows().max(1);
        let last = self.lines.len().saturating_sub(1);
        self.cursor = self.cursor.min(last);
        if self.selected.is_some_and(|id| self.line_of(id).is_some()) {
            let lowest = (self.cursor + 1).saturating_sub(rows);
            self.offset = self.offset.clamp(lowest, self.cursor);
        }
        self.offset = self.offset.min(self.lines.len().saturating_sub(rows));
    }

    /// The users of the list that are left by what was typed. The first entry, everybody, is not
    /// among them.
    pub(super) fn users_left(&self, typed: &str) -> Vec<&UserSum> {
        let typed = typed.to_lowercase();
        let fits = |user: &&UserSum| user.name.to_lowercase().contains(&typed);
        match self.snapshot.as_ref().map(|snapshot| &snapshot.extra) {
            Some(super::data::Extra::Users(users)) => users.iter().filter(fits).collect(),
            _ => Vec::new(),
        }
    }

    /// How old the data is; `None` without any.
    pub(super) fn age(&self) -> Option<Duration> {
        let snapshot = self.snapshot.as_ref()?;
        Some(self.now.saturating_sub(snapshot.at))
    }
}
