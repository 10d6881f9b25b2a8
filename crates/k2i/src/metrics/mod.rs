//! What a Prometheus scrapes: the host, groups of its processes, and this server itself.
//!
//! A scrape costs one scan, shared with whoever asks in the same second, and some small files. What it
//! tells is bounded: groups by [`Grouping::top`], label values by [`LABEL_BYTES_MAX`]. Counters of
//! groups begin with the first scrape; from then on what processes had used when they ended is added,
//! where this host takes events. Before it nothing is kept and nothing is done.

mod agent;
mod groups;
mod histogram;
mod host;
mod text;

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use kumo_abi::events::EventKind;
use kumo_abi::proc::{Column, PROC};
use kumo_abi::rights::Lines;
use kumo_abi::{ColumnIndex, ProcessId, Value};

use crate::engine::Engine;
use crate::events::{Event, News};
use crate::host::{CpuSeconds, HostError, HostReport};
use crate::row;
use crate::select::parts_of;
use crate::table::{Parts, Process};
use groups::{Account, Groups, Row, Used};
use histogram::Histogram;
use text::push_label_text;
pub use text::{Family, Form, Kind, LABEL_BYTES_MAX, Text};

/// How many groups are shown for their CPU time, and again for their memory, unless said otherwise.
pub const TOP_DEFAULT: usize = 20;

/// Most of each. A group has up to six series: two thousand four hundred of one host are plenty.
pub const TOP_MAX: usize = 200;

/// Most columns that make a group.
pub const GROUP_COLUMNS_MAX: usize = 3;

/// Scrapes within this while share one scan.
const SCRAPE_AGE_MAX: Duration = Duration::from_secs(1);

/// Columns that groups can be made by: those that say where a process belongs. Others differ from
/// process to process, or change all the time.
const GROUP_COLUMNS: [Column; 14] = [
    Column::Comm,
    Column::User,
    Column::Ruser,
    Column::Uid,
    Column::Euid,
    Column::Group,
    Column::Gid,
    Column::Egid,
    Column::Cgroup,
    Column::Container,
    Column::ContainerRuntime,
    Column::Pod,
    Column::Unit,
    Column::Slice,
];

/// Which groups of processes are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// What makes a group.
    pub by: GroupBy,
    /// How many are shown for the CPU time that they use, and again for their memory, at most
    /// [`TOP_MAX`]. All others are told as one.
    pub top: usize,
}

impl Default for Grouping {
    fn default() -> Grouping {
        Grouping { by: GroupBy(vec![Column::Comm]), top: TOP_DEFAULT }
    }
}

/// The columns that make a group: one to [`GROUP_COLUMNS_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupBy(Vec<Column>);

impl GroupBy {
    fn columns(&self) -> Vec<ColumnIndex> {
        self.0.iter().map(|column| column.index()).collect()
    }
}

impl FromStr for GroupBy {
    type Err = String;
    fn from_str(text: &str) -> Result<GroupBy, String> {
        let mut columns = Vec::new();
        for name in text.split(',').map(str::trim) {
            let column = PROC.find(name).map(Column::at);
            let Some(column) = column.filter(|column| GROUP_COLUMNS.contains(column)) else {
                let names: Vec<_> = GROUP_COLUMNS.iter().map(|it| it.spec().name).collect();
                let (name, names) = (name.escape_debug(), names.join(", "));
                return Err(format!("metrics are not grouped by `{name}`; there are {names}"));
            };
            if columns.contains(&column) {
                return Err(format!("`{name}` stands twice"));
            }
            columns.push(column);
        }
        if columns.len() > GROUP_COLUMNS_MAX {
            return Err(format!("a group is made by at most {GROUP_COLUMNS_MAX} columns"));
        }
        Ok(GroupBy(columns))
    }
}

impl fmt::Display for GroupBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|column| column.spec().name).collect();
        f.write_str(&names.join(","))
    }
}

/// Who has more to tell.
type TellsMore = dyn Fn(&mut Text) + Send + Sync;

/// What an engine counts for scrapes.
#[derive(Default)]
pub(crate) struct Metrics {
    grouping: OnceLock<Grouping>,
    /// Made by the first scrape.
    told: OnceLock<Mutex<Told>>,
    more: OnceLock<Box<TellsMore>>,
    scans: Histogram,
    scans_failed: AtomicU64,
    requests: AtomicU64,
    /// By the first digit of their status.
    responses: [AtomicU64; 6],
    execs: AtomicU64,
    exits: AtomicU64,
    reaps: AtomicU64,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("grouping", &self.grouping).finish_non_exhaustive()
    }
}

/// What was told before, for counters must not go backwards.
#[derive(Debug)]
struct Told {
    groups: Groups,
    cpu: CpuSeconds,
}

impl Metrics {
    pub(crate) fn note_scan(&self, took: Duration) {
        self.scans.note(took);
    }

    pub(crate) fn note_failed_scan(&self) {
        self.scans_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// A request came in.
    pub(crate) fn note_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was answered with this status.
    pub(crate) fn note_response(&self, status: u16) {
        if let Some(count) = self.responses.get(usize::from(status / 100)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn grouping(&self) -> &Grouping {
        self.grouping.get_or_init(Grouping::default)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        let make = || {
            let groups = Groups::new(self.grouping().top.min(TOP_MAX));
            Mutex::new(Told { groups, cpu: CpuSeconds::default() })
        };
        // What panicked under it left numbers behind, none of them half.
        self.told.get_or_init(make).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// From now on scrapes tell of these groups. Once, before the first scrape; what comes later changes
    /// nothing.
    pub fn group_metrics(&self, grouping: Grouping) {
        let _ = self.metrics().grouping.set(grouping);
    }

    /// From now on scrapes end with what `tells` writes: families whose names are not ours. Who comes
    /// second is not asked.
    pub fn show_metrics(&self, tells: impl Fn(&mut Text) + Send + Sync + 'static) {
        let _ = self.metrics().more.set(Box::new(tells));
    }

    /// What a scrape answers. Blocks for a scan, or none where somebody has asked in the last second, and
    /// for some small files.
    ///
    /// # Errors
    /// See [`HostError`]. A retry is safe.
    pub fn scrape(&self, form: Form) -> Result<String, HostError> {
        let metrics = self.metrics();
        let grouping = metrics.grouping();
        // Who ends from now on is counted, be it during the scan.
        drop(metrics.told());
        let columns = grouping.by.columns();
        let has_io = self.is_cheap();
        let mut parts = Parts::STAT | Parts::MEMORY | parts_of(&columns);
        if has_io {
            parts |= Parts::IO;
        }
        let table = self.table(SCRAPE_AGE_MAX, parts).map_err(HostError::Table)?;
        let report = HostReport::read(self)?;
        let mut text = Text::new(form);
        let context = self.context(Arc::clone(&table), &columns, Lines::Stripped);
        let group_of = |(index, row): (usize, &Process)| {
            let value = |column: ColumnIndex| row::value(Column::at(column), row, index, &context);
            (shown_row(row), label_of(&columns, &value))
        };
        {
            let mut told = metrics.told();
            told.groups.look(table.began_boot_ns, table.rows.iter().enumerate().map(group_of));
            told.cpu = told.cpu.max(&report.cpu.seconds);
            host::write(&mut text, &report, &told.cpu, &table);
            write_groups(&mut text, &told.groups, &grouping.by, has_io);
        }
        agent::write(&mut text, self, &report, &table);
        if let Some(more) = metrics.more.get() {
            more(&mut text);
        }
        Ok(text.finish())
    }

    /// Takes note of what events told: how many, and what was used by processes that ended.
    pub(crate) fn note_news(&self, news: &[News]) {
        let metrics = self.metrics();
        for one in news {
            let News::Event(event) = one else { continue };
            let count = match event.kind {
                EventKind::Exec => &metrics.execs,
                EventKind::Exit => &metrics.exits,
                EventKind::Reap => &metrics.reaps,
            };
            count.fetch_add(1, Ordering::Relaxed);
            // Nobody has scraped: there is nothing to add to.
            if metrics.told.get().is_some() {
                self.note_end(event);
            }
        }
    }

    fn note_end(&self, event: &Event) {
        let (Some(id), Some(used)) = (event.life.id(), event.life.used) else { return };
        let by = &self.metrics().grouping().by;
        let (columns, life) = (by.columns(), event.life.row());
        let group = life.have.contains(parts_of(&columns)).then(|| {
            let context = self.event_context(&by.0, life, Lines::Stripped);
            let life = &context.table.rows[0];
            label_of(&columns, &|column| row::value(Column::at(column), life, 0, &context))
        });
        let io = used.io.unwrap_or_default();
        let used = Used {
            cpu_ns: used.utime_ns + used.stime_ns,
            read_bytes: io.read_bytes,
            write_bytes: io.write_bytes,
        };
        self.metrics().told().groups.ended(id, event.at_ns, group.as_deref(), used);
    }
}

impl CpuSeconds {
    /// The most of either: the kernel lets some of them run backwards now and then.
    fn max(&self, other: &CpuSeconds) -> CpuSeconds {
        CpuSeconds {
            user: self.user.max(other.user),
            nice: self.nice.max(other.nice),
            system: self.system.max(other.system),
            idle: self.idle.max(other.idle),
            iowait: self.iowait.max(other.iowait),
            irq: self.irq.max(other.irq),
            softirq: self.softirq.max(other.softirq),
            steal: self.steal.max(other.steal),
        }
    }
}

fn shown_row(row: &Process) -> Row {
    Row {
        id: ProcessId { pid: row.pid, start_ns: row.start_ns },
        used: Used {
            cpu_ns: row.cpu_ns(),
            read_bytes: row.io.read_bytes,
            write_bytes: row.io.write_bytes,
        },
        threads: row.threads.into(),
        rss_bytes: row.rss(),
    }
}

/// The name of a group: the values of its columns as label text, each ended by NUL, which no such text
/// has. What a process lacks is empty.
fn label_of<'a>(columns: &[ColumnIndex], value: &dyn Fn(ColumnIndex) -> Value<'a>) -> String {
    let mut name = String::new();
    for column in columns {
        match value(*column) {
            Value::Text(text) => push_label_text(&mut name, &text),
            Value::Int(number) => name.push_str(itoa::Buffer::new().format(number)),
            _ => {}
        }
        name.push('\0');
    }
    name
}

fn write_groups(text: &mut Text, groups: &Groups, by: &GroupBy, has_io: bool) {
    let names: Vec<&str> = by.0.iter().map(|column| column.spec().name).collect();
    let shown = groups.shown();
    let mut family =
        |kind: Kind, name: &'static str, unit: &str, help: &str, of: fn(&Account) -> f64| {
            let mut family = text.family(kind, name, unit, help);
            for (group, account) in &shown {
                // Nothing follows the last NUL.
                let labels: Vec<_> = names.iter().copied().zip(group.split('\0')).collect();
                family.sample(&labels, of(account));
            }
            // A process may be called `other`; it has no label `rest`.
            let labels: Vec<_> = names.iter().map(|name| (*name, "other")).collect();
            family.sample(&[&labels[..], &[("rest", "true")]].concat(), of(groups.rest()));
        };
    let seconds = |account: &Account| account.total.cpu_ns as f64 / 1e9;
    let help = "CPU time that the processes of a group have used, those that ended included";
    family(Kind::Counter, "kumo_group_cpu_seconds", "seconds", help, seconds);
    let help = "Resident memory of the processes of a group; what they share counts for each";
    family(Kind::Gauge, "kumo_group_resident_bytes", "bytes", help, |it| it.now.rss_bytes as f64);
    let help = "Processes of a group";
    family(Kind::Gauge, "kumo_group_processes", "", help, |it| it.now.processes as f64);
    let help = "Threads of the processes of a group";
    family(Kind::Gauge, "kumo_group_threads", "", help, |it| it.now.threads as f64);
    if has_io {
        let help = "Bytes that a group fetched from storage";
        let read = |account: &Account| account.total.read_bytes as f64;
        family(Kind::Counter, "kumo_group_read_bytes", "bytes", help, read);
        let help = "Bytes that a group sent to storage, those cancelled later included";
        let written = |account: &Account| account.total.write_bytes as f64;
        family(Kind::Counter, "kumo_group_written_bytes", "bytes", help, written);
    }
    let help = "Groups with processes, shown by themselves or not";
    text.single(Kind::Gauge, "kumo_groups", "", help, groups.living() as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_groups_are_made_by() {
        let cases = [
            ("comm", Ok("comm")),
            ("USER, name", Ok("user,comm")),
            ("container", Ok("container")),
            ("pid", Err("not grouped by `pid`; there are comm, user")),
            ("", Err("not grouped by ``")),
            ("comm,comm", Err("stands twice")),
            ("comm,user,unit,slice", Err("at most 3 columns")),
            ("cmdline\x1b", Err("`cmdline\\u{1b}`")),
        ];
        for (text, want) in cases {
            match (text.parse::<GroupBy>(), want) {
                (Ok(by), Ok(want)) => assert_eq!(by.to_string(), want),
                (Err(error), Err(want)) => assert!(error.contains(want), "{error:?} for {text:?}"),
                (got, want) => panic!("{got:?} is not {want:?} for {text:?}"),
            }
        }
        assert_eq!(Grouping::default().by.to_string(), "comm");
    }

    #[test]
    fn groups_as_text() {
        let columns: GroupBy = "user,comm".parse().expect("good");
        let mut groups = Groups::new(1);
        let row = |pid: i32, cpu_ns: u64| Row {
            id: ProcessId { pid, start_ns: 0 },
            used: Used { cpu_ns, read_bytes: 3, write_bytes: 4 },
            threads: 2,
            rss_bytes: 100 - pid as u64,
        };
        let name = |user: &str, comm: &str| {
            let value = |column: ColumnIndex| match column {
                0 => Value::owned_text(user),
                _ => Value::owned_text(comm),
            };
            label_of(&[0, 1], &value)
        };
        let look = |groups: &mut Groups, at_ns: u64, cpu_ns: u64| {
            let a = (row(1, cpu_ns), name("root", "a\"\n"));
            groups.look(at_ns, [a, (row(2, 0), name("", "b"))]);
        };
        look(&mut groups, 1, 0);
        look(&mut groups, 2, 1_500_000_000);
        let mut text = Text::new(Form::OpenMetrics);
        write_groups(&mut text, &groups, &columns, false);
        let text = text.finish();
        for line in [
            "kumo_group_cpu_seconds_total{user=\"root\",comm=\"a\\\"\u{fffd}\"} 1.5\n",
            "kumo_group_cpu_seconds_total{user=\"other\",comm=\"other\",rest=\"true\"} 0\n",
            "kumo_group_resident_bytes{user=\"other\",comm=\"other\",rest=\"true\"} 98\n",
            "kumo_group_processes{user=\"root\",comm=\"a\\\"\u{fffd}\"} 1\n",
            "kumo_group_threads{user=\"other\",comm=\"other\",rest=\"true\"} 2\n",
            "kumo_groups 2\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
        assert!(!text.contains("read_bytes"), "{text}");
    }
}
