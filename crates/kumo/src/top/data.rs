//! What the view asks for and what it gets: plain values between the fetching thread and the rest.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k2i::host::{CpuSeconds, HostReport, Memory, OneCpu};
use kumo_abi::proc::Column;
use kumo_abi::{HostId, Meta, ProcessId, QueryText, Row};
use serde_json::Value;

use crate::many::Asked;

/// A host among those that this view has seen; of one host, always the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Place(u32);

/// The hosts that this view has seen. One keeps its place, also when it is gone.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Places {
    hosts: Vec<HostId>,
    places: HashMap<HostId, Place>,
}

impl Places {
    /// The place of a host, which is made if it has none.
    pub(super) fn of(places: &mut Arc<Places>, host: &HostId) -> Place {
        if let Some(place) = places.places.get(host) {
            return *place;
        }
        let places = Arc::make_mut(places);
        let place = Place(u32::try_from(places.hosts.len()).unwrap_or(u32::MAX));
        places.hosts.push(host.clone());
        places.places.insert(host.clone(), place);
        place
    }

    /// The host at a place; `None` where one host is looked at.
    pub(super) fn host(&self, place: Place) -> Option<&HostId> {
        self.hosts.get(place.0 as usize)
    }
}

/// Who a row is: a process of a host; or, where a row is a host, that host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Its host.
    pub(super) place: Place,
    /// Its number; 0 for a host.
    pub(super) pid: i32,
    start_ns: u64,
}

impl Key {
    /// A process of a host.
    pub(super) fn new(place: Place, id: ProcessId) -> Key {
        Key { place, pid: id.pid, start_ns: id.start_ns }
    }

    /// A host itself.
    fn host(place: Place) -> Key {
        Key { place, pid: 0, start_ns: 0 }
    }

    /// The process on its host.
    pub(super) fn process(self) -> ProcessId {
        ProcessId { pid: self.pid, start_ns: self.start_ns }
    }

    /// See [`ProcessId::same`]; on the same host.
    pub(super) fn same(&self, other: &Key) -> bool {
        self.place == other.place && self.process().same(&other.process())
    }

    /// Its number, as no process of another host has it.
    pub(super) fn number_of(self, pid: i32) -> i64 {
        i64::from(self.place.0) << 32 | i64::from(pid) & 0xffff_ffff
    }
}

/// Without the host.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.process().fmt(f)
    }
}

/// A process as a row of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Proc {
    /// Who it is; never taken from anything but its own row.
    pub(super) id: Key,
    row: Row,
}

impl Proc {
    /// Takes a row that has the column `id`; `None` if it has none that can be read.
    pub(super) fn new(row: Row) -> Option<Proc> {
        Proc::at(Place::default(), row)
    }

    /// The same of a host at a place.
    pub(super) fn at(place: Place, row: Row) -> Option<Proc> {
        let id = row.get(Column::Id.spec().name)?.as_str()?.parse().ok()?;
        Some(Proc { id: Key::new(place, id), row })
    }

    /// Takes a row of many hosts, which says whose it is.
    pub(super) fn of_many(mut row: Row, places: &mut Arc<Places>) -> Option<Proc> {
        let place = name_host(&mut row, places)?;
        Proc::at(place, row)
    }

    /// Takes a row of an answer to [`host_sums`]: sums stand in the columns that they are sums of,
    /// the number of processes in that of their numbers, and `about` in that of the command.
    pub(super) fn of_host(
        mut row: Row,
        places: &mut Arc<Places>,
        about: impl FnOnce(&HostId) -> String,
    ) -> Option<Proc> {
        let place = name_host(&mut row, places)?;
        for (sum, column) in HOST_SUMS {
            let value = row.remove(*sum).unwrap_or(Value::Null);
            row.insert(column.spec().name.to_owned(), value);
        }
        let about = places.host(place).map(about).unwrap_or_default();
        for column in [Column::Cmdline, Column::Comm] {
            row.insert(column.spec().name.to_owned(), about.clone().into());
        }
        Some(Proc { id: Key::host(place), row })
    }

    /// The value of a column; null where it was not asked for.
    pub(super) fn value(&self, column: Column) -> &Value {
        self.row.get(column.spec().name).unwrap_or(&Value::Null)
    }

    /// The value of a numeric column.
    pub(super) fn number(&self, column: Column) -> Option<f64> {
        self.value(column).as_f64()
    }

    /// The parent's process number; 0 where it is not known.
    pub(super) fn ppid(&self) -> i32 {
        let ppid = self.value(Column::Ppid).as_i64().unwrap_or(0);
        i32::try_from(ppid).unwrap_or(0)
    }

    /// The whole row.
    pub(super) fn row(&self) -> &Row {
        &self.row
    }
}

/// Writes the host of a row as `tokyo/a`, and says its place.
fn name_host(row: &mut Row, places: &mut Arc<Places>) -> Option<Place> {
    let host: HostId = crate::many::host_of(row)?.parse().ok()?;
    row.insert(Column::Host.spec().name.to_owned(), host.to_string().into());
    Some(Places::of(places, &host))
}

/// What is added up over the processes of a host, and the column that shows it.
const HOST_SUMS: &[(&str, Column)] = &[
    ("count()", Column::Pid),
    ("sum(threads)", Column::Threads),
    ("sum(cpu)", Column::Cpu),
    ("sum(rss)", Column::Rss),
    ("sum(time)", Column::Time),
];

/// The name of the sum that stands in this column of a row that is a host.
pub(super) fn host_sum(column: Column) -> Option<&'static str> {
    HOST_SUMS.iter().find(|(_, shown)| *shown == column).map(|(sum, _)| *sum)
}

/// The query whose rows [`Proc::of_host`] reads, in no order.
pub(super) fn host_sums() -> QueryText {
    let sums: Vec<&str> = HOST_SUMS.iter().map(|(sum, _)| *sum).collect();
    QueryText {
        columns: Some(format!("dc,host,{}", sums.join(","))),
        group: Some("dc,host".to_owned()),
        ..QueryText::default()
    }
}

/// What the view needs next. Two equal requests get answers to the same question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    /// The table.
    pub(super) table: QueryText,
    /// Say whether this process lives, if it is not among the rows.
    pub(super) watched: Option<Key>,
    /// What an open dialog needs besides.
    pub(super) side: Side,
}

/// What an open dialog needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Side {
    /// Nothing.
    #[default]
    Nothing,
    /// Every user and how much they run.
    Users,
    /// One process with all its columns and its relatives.
    Detail(Key),
}

/// All that was known at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Snapshot {
    /// The request that it answers.
    pub(super) request: Request,
    /// What the answer says about itself.
    pub(super) meta: Meta,
    /// The rows, in the order of the source.
    pub(super) rows: Vec<Proc>,
    /// Counts over all processes, whatever the filter.
    pub(super) tasks: Tasks,
    /// The host, if the source could say.
    pub(super) host: Option<Host>,
    /// All hosts together, where many are looked at.
    pub(super) fleet: Option<Fleet>,
    /// The hosts that rows are of.
    pub(super) places: Arc<Places>,
    /// Whether the watched process lives; `None` when none was watched.
    pub(super) watched_lives: Option<bool>,
    /// What the dialog asked for.
    pub(super) extra: Extra,
    /// When it was complete, by the clock that the view is given.
    pub(super) at: Duration,
}

impl Snapshot {
    /// What the CPUs do and how full the memory is, of the host or of all together.
    pub(super) fn meters(&self) -> Option<Meters> {
        let of_host = |host: &Host| Meters { cpu: host.cpu_total, memory: host.report.memory };
        let of_fleet = |fleet: &Fleet| Meters { cpu: fleet.cpu, memory: fleet.memory };
        let fleet = self.fleet.as_ref().map(of_fleet);
        fleet.or_else(|| self.host.as_ref().map(of_host))
    }
}

/// CPUs and memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Meters {
    /// `None` in the first answer.
    pub(super) cpu: Option<CpuShare>,
    /// In bytes.
    pub(super) memory: Memory,
}

/// Many hosts as one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fleet {
    /// Who is in the table and who is missing.
    pub(super) asked: Asked,
    /// CPUs of the hosts that told of themselves.
    pub(super) cpus: u64,
    /// Their load averages over one minute, added up.
    pub(super) load: f64,
    /// Their memory and swap; only totals and what is available.
    pub(super) memory: Memory,
    /// What all their CPUs did; `None` in the first answer.
    pub(super) cpu: Option<CpuShare>,
}

impl Fleet {
    /// Adds reports up; CPU use is measured from `earlier` ones, of hosts that have not been booted
    /// since.
    pub(super) fn new(
        asked: Asked,
        reports: &BTreeMap<HostId, HostReport>,
        earlier: &BTreeMap<HostId, HostReport>,
    ) -> Fleet {
        let mut fleet = Fleet { asked, ..Fleet::default() };
        let (mut before, mut now) = (CpuSeconds::default(), CpuSeconds::default());
        for (id, report) in reports {
            fleet.cpus += u64::from(report.cpu.online);
            fleet.load += report.load.avg1;
            let Memory { total, available, swap_total, swap_free, .. } = report.memory;
            let sum = &mut fleet.memory;
            sum.total = sum.total.saturating_add(total);
            sum.available = sum.available.saturating_add(available);
            sum.swap_total = sum.swap_total.saturating_add(swap_total);
            sum.swap_free = sum.swap_free.saturating_add(swap_free);
            let old = earlier.get(id).filter(|old| old.boot.boot_id == report.boot.boot_id);
            if let Some(old) = old {
                before = added(before, old.cpu.seconds);
                now = added(now, report.cpu.seconds);
            }
        }
        fleet.cpu = CpuShare::between(&before, &now);
        fleet
    }
}

fn added(a: CpuSeconds, b: CpuSeconds) -> CpuSeconds {
    CpuSeconds {
        user: a.user + b.user,
        nice: a.nice + b.nice,
        system: a.system + b.system,
        idle: a.idle + b.idle,
        iowait: a.iowait + b.iowait,
        irq: a.irq + b.irq,
        softirq: a.softirq + b.softirq,
        steal: a.steal + b.steal,
    }
}

/// What a dialog asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Extra {
    /// Nothing.
    #[default]
    Nothing,
    /// Every user, the busiest first.
    Users(Vec<UserSum>),
    /// One process.
    Detail(Box<Detail>),
}

/// What one user runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct UserSum {
    /// The name, not escaped.
    pub(super) name: String,
    /// Processes.
    pub(super) processes: u64,
    /// CPU use in percent of one CPU.
    pub(super) cpu: f64,
    /// Resident memory in bytes; shared pages count once for each process.
    pub(super) rss: f64,
}

/// One process with its relatives.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Detail {
    /// Who was asked about.
    pub(super) id: Key,
    /// All its columns; `None` when it has ended.
    pub(super) proc: Option<Proc>,
    /// Its ancestors, the parent first.
    pub(super) ancestors: Vec<Proc>,
    /// Its children, by process number.
    pub(super) children: Vec<Proc>,
}

/// Counts over all processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tasks {
    /// Processes by the letter of their state.
    pub(super) by_state: BTreeMap<String, u64>,
    /// Threads of all processes; `None` when not known.
    pub(super) threads: Option<u64>,
}

impl Tasks {
    /// The query whose rows [`Tasks::from_rows`] reads.
    pub(super) fn query() -> QueryText {
        QueryText {
            columns: Some("state,count(),sum(threads)".to_owned()),
            group: Some("state".to_owned()),
            ..QueryText::default()
        }
    }

    /// Reads the answer to [`Tasks::query`].
    pub(super) fn from_rows(rows: &[Row]) -> Tasks {
        let mut tasks = Tasks::default();
        for row in rows {
            let state = row.get("state").and_then(Value::as_str).unwrap_or("?");
            let count = row.get("count()").and_then(Value::as_u64).unwrap_or(0);
            *tasks.by_state.entry(state.to_owned()).or_default() += count;
            if let Some(threads) = row.get("sum(threads)").and_then(Value::as_u64) {
                *tasks.threads.get_or_insert_default() += threads;
            }
        }
        tasks
    }

    /// All processes.
    pub(super) fn total(&self) -> u64 {
        self.by_state.values().sum()
    }

    /// Processes in any of the states whose letters are in `states`.
    pub(super) fn in_states(&self, states: &str) -> u64 {
        let wanted = |state: &str| states.contains(state);
        self.by_state.iter().filter(|(state, _)| wanted(state)).map(|(_, count)| count).sum()
    }
}

impl UserSum {
    /// The query whose rows [`UserSum::from_rows`] reads.
    pub(super) fn query() -> QueryText {
        QueryText {
            columns: Some("user,count(),sum(cpu),sum(rss)".to_owned()),
            group: Some("user".to_owned()),
            sort: Some("-sum(cpu),-count(),user".to_owned()),
            ..QueryText::default()
        }
    }

    /// Reads the answer to [`UserSum::query`].
    pub(super) fn from_rows(rows: &[Row]) -> Vec<UserSum> {
        let number = |row: &Row, name| row.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        let user = |row: &Row| {
            Some(UserSum {
                name: row.get("user")?.as_str()?.to_owned(),
                processes: row.get("count()").and_then(Value::as_u64).unwrap_or(0),
                cpu: number(row, "sum(cpu)"),
                rss: number(row, "sum(rss)"),
            })
        };
        rows.iter().filter_map(user).collect()
    }
}

impl Detail {
    /// The query for the process itself: every column that is its own, and cheap enough to be read again
    /// and again.
    pub(super) fn query(id: Key) -> QueryText {
        let is_left_out = |column: &&Column| {
            matches!(column, Column::Dc | Column::Host) || Column::COSTLY.contains(column)
        };
        let own = Column::ALL.iter().filter(|column| !is_left_out(column));
        let names: Vec<&str> = own.map(|column| column.spec().name).collect();
        QueryText { columns: Some(names.join(",")), ..only(id.pid) }
    }

    /// The query for everybody's place in the tree.
    pub(super) fn relatives_query() -> QueryText {
        QueryText { columns: Some("id,pid,ppid,user,comm".to_owned()), ..QueryText::default() }
    }

    /// Puts both answers together. A process number that was given to another process since is not
    /// taken for the one that was asked about.
    pub(super) fn new(id: Key, own: Vec<Proc>, everybody: &[Proc]) -> Detail {
        let proc = own.into_iter().find(|proc| proc.id.same(&id));
        let mut ancestors: Vec<Proc> = Vec::new();
        let mut next = proc.as_ref().map_or(0, Proc::ppid);
        // The bound is for a table that changed while it was read: it may hold a ring.
        while ancestors.len() < ANCESTORS_MAX {
            let Some(parent) = everybody.iter().find(|other| other.id.pid == next && next != 0)
            else {
                break;
            };
            next = parent.ppid();
            ancestors.push(parent.clone());
        }
        let is_child = |other: &&Proc| proc.is_some() && other.ppid() == id.pid;
        let mut children: Vec<Proc> = everybody.iter().filter(is_child).cloned().collect();
        children.sort_by_key(|child| child.id.pid);
        Detail { id, proc, ancestors, children }
    }
}

/// The deepest chain of ancestors that is shown. Real ones have a dozen; deeper is a fork chain.
const ANCESTORS_MAX: usize = 64;

/// A query for one process number.
pub(super) fn only(pid: i32) -> QueryText {
    QueryText {
        columns: Some("id".to_owned()),
        filter: Some(format!("pid == {pid}")),
        ..QueryText::default()
    }
}

/// The host, and what its CPUs did since the reading before.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Host {
    /// What it says about itself.
    pub(super) report: HostReport,
    /// All CPUs; `None` in the first answer.
    pub(super) cpu_total: Option<CpuShare>,
    /// Each CPU that was there at both readings, with its number.
    pub(super) cpu_each: Vec<(u32, CpuShare)>,
}

impl Host {
    /// Compares a reading with the one `earlier`.
    pub(super) fn new(report: HostReport, earlier: Option<&HostReport>) -> Host {
        let same_boot = |old: &&HostReport| old.boot.boot_id == report.boot.boot_id;
        let old = earlier.filter(same_boot).map(|earlier| &earlier.cpu);
        let cpu_total = old.and_then(|old| CpuShare::between(&old.seconds, &report.cpu.seconds));
        let share = |now: &OneCpu| {
            let before = old?.each.iter().find(|before| before.cpu == now.cpu)?;
            Some((now.cpu, CpuShare::between(&before.seconds, &now.seconds)?))
        };
        let cpu_each = report.cpu.each.iter().filter_map(share).collect();
        Host { report, cpu_total, cpu_each }
    }
}

/// What a CPU did in a while, in percent of that while; the rest was idle.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct CpuShare {
    /// In programs.
    pub(super) user: f64,
    /// In the kernel, with interrupts.
    pub(super) system: f64,
    /// Idle while something waited for storage.
    pub(super) iowait: f64,
    /// Taken by the hypervisor for others.
    pub(super) steal: f64,
}

impl CpuShare {
    /// What happened between two readings; `None` when no time has passed.
    fn between(earlier: &CpuSeconds, now: &CpuSeconds) -> Option<CpuShare> {
        let total = now.total() - earlier.total();
        // The kernel lets idle and iowait run backwards now and then.
        let share = |part: fn(&CpuSeconds) -> f64| {
            (100.0 * (part(now) - part(earlier)) / total).clamp(0.0, 100.0)
        };
        (total > 0.0).then(|| CpuShare {
            user: share(|cpu| cpu.user + cpu.nice),
            system: share(|cpu| cpu.system + cpu.irq + cpu.softirq),
            iowait: share(|cpu| cpu.iowait),
            steal: share(|cpu| cpu.steal),
        })
    }

    /// All that was not idle; waiting for storage is idle.
    pub(super) fn busy(&self) -> f64 {
        self.user + self.system + self.steal
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use k2i::host::{Boot, Cpu, Kernel, Pressure, Stall, StallShare};
    use serde_json::json;

    /// A made-up row with the given columns beside `id`, `pid` and `ppid`.
    pub(in super::super) fn proc(pid: i32, ppid: i32, columns: &Value) -> Proc {
        let mut row = Row::new();
        row.insert("id".to_owned(), json!(format!("{pid}@{}000", i64::from(pid) * 1_000_000)));
        row.insert("pid".to_owned(), json!(pid));
        row.insert("ppid".to_owned(), json!(ppid));
        for (name, value) in columns.as_object().expect("an object of columns") {
            row.insert(name.clone(), value.clone());
        }
        Proc::new(row).expect("a row with an identity")
    }

    /// A host with this many CPUs, of which the first is half busy.
    pub(in super::super) fn host(cpus: u32) -> Host {
        let gib = 1 << 30;
        let idle = CpuSeconds { idle: 1.0, ..CpuSeconds::default() };
        let busy = CpuSeconds { user: 0.25, system: 0.25, idle: 0.5, ..CpuSeconds::default() };
        let of = |cpu: u32| OneCpu { cpu, seconds: if cpu == 0 { busy } else { idle } };
        let some = Some(StallShare { avg10: 12.5, ..StallShare::default() });
        let report = HostReport {
            dc: "local".to_owned(),
            host: "web-1".to_owned(),
            as_of: "2025-01-02T03:04:05.678901Z".to_owned(),
            kernel: Kernel { release: "6.1.0".to_owned(), ..Kernel::default() },
            boot: Boot { boot_id: BOOT.to_owned(), uptime_seconds: 273_600.0, ..Boot::default() },
            cpu: Cpu {
                online: cpus,
                model: None,
                seconds: busy,
                each: (0..cpus).map(of).collect(),
            },
            memory: Memory { total: 16 * gib, available: 12 * gib, ..Memory::default() },
            load: k2i::host::Load { avg1: 0.52, avg5: 0.58, avg15: 0.59 },
            pressure: Pressure { cpu: Some(Stall { some, full: None }), ..Pressure::default() },
            tasks: k2i::host::Tasks::default(),
            collector: "proc".to_owned(),
            ladder: Vec::new(),
            events: k2i::EventsReport::default(),
        };
        let mut earlier = report.clone();
        earlier.cpu.seconds = CpuSeconds::default();
        earlier.cpu.each.iter_mut().for_each(|one| one.seconds = CpuSeconds::default());
        Host::new(report, Some(&earlier))
    }

    /// The boot of the made-up host.
    pub(in super::super) const BOOT: &str = "4f7a0000-0000-4000-8000-000000000000";

    /// An answer to `request` with these rows; nothing is watched or asked besides.
    pub(in super::super) fn snapshot(request: Request, rows: Vec<Proc>) -> Box<Snapshot> {
        let count = rows.len() as u64;
        let meta = Meta {
            dc: "local".to_owned(),
            host: "web-1".to_owned(),
            boot_id: BOOT.to_owned(),
            collector: "proc".to_owned(),
            generation: 1,
            as_of: "2025-01-02T03:04:05.678901Z".to_owned(),
            scan_us: 3_200,
            processes: 312,
            matched: count,
            columns: Vec::new(),
            lost: 0,
            unseen: None,
        };
        let tasks = Tasks {
            by_state: BTreeMap::from([
                ("R".to_owned(), 2),
                ("S".to_owned(), 309),
                ("Z".to_owned(), 1),
            ]),
            threads: Some(840),
        };
        Box::new(Snapshot {
            request,
            meta,
            rows,
            tasks,
            host: Some(host(2)),
            fleet: None,
            places: Arc::default(),
            watched_lives: None,
            extra: Extra::Nothing,
            at: Duration::ZERO,
        })
    }

    #[test]
    fn a_row_without_an_identity_is_no_process() {
        assert_eq!(Proc::new(Row::new()), None);
        let mut row = Row::new();
        row.insert("id".to_owned(), json!("not one"));
        assert_eq!(Proc::new(row), None);
    }

    #[test]
    fn tasks_are_counted_by_state() {
        let rows = [
            json!({"state": "S", "count()": 5, "sum(threads)": 9}),
            json!({"state": "R", "count()": 1, "sum(threads)": 2}),
            json!({"state": "I", "count()": 4, "sum(threads)": null}),
        ]
        .map(|row| row.as_object().expect("an object").clone());
        let tasks = Tasks::from_rows(&rows);
        assert_eq!((tasks.total(), tasks.in_states("SI"), tasks.threads), (10, 9, Some(11)));
    }

    #[test]
    fn relatives_are_found_and_a_ring_ends() {
        let none = json!({});
        let all = [proc(1, 0, &none), proc(5, 1, &none), proc(9, 5, &none), proc(7, 5, &none)];
        let detail = Detail::new(all[1].id, vec![all[1].clone()], &all);
        assert_eq!(detail.ancestors.iter().map(|p| p.id.pid).collect::<Vec<_>>(), [1]);
        assert_eq!(detail.children.iter().map(|p| p.id.pid).collect::<Vec<_>>(), [7, 9]);
        let ring = [proc(2, 3, &none), proc(3, 2, &none)];
        let detail = Detail::new(ring[0].id, vec![ring[0].clone()], &ring);
        assert_eq!(detail.ancestors.len(), ANCESTORS_MAX);
    }

    #[test]
    fn cpu_shares_come_from_two_readings() {
        let earlier = CpuSeconds { user: 10.0, idle: 90.0, ..CpuSeconds::default() };
        let now = CpuSeconds { user: 11.0, system: 1.0, idle: 92.0, ..earlier };
        let share = CpuShare::between(&earlier, &now).expect("four seconds have passed");
        assert_eq!((share.user, share.system, share.busy()), (25.0, 25.0, 50.0));
        assert_eq!(CpuShare::between(&now, &now), None);
        let backwards = CpuSeconds { idle: 95.0, iowait: -1.0, ..now };
        let share = CpuShare::between(&now, &backwards).expect("two seconds have passed");
        assert!(share.iowait.abs() < 1e-9, "{share:?}");
    }

    #[test]
    fn a_successor_with_the_same_number_is_not_shown_as_the_process() {
        let old = Key::new(Place::default(), ProcessId { pid: 5, start_ns: 1 });
        let successor = proc(5, 1, &json!({}));
        let detail = Detail::new(old, vec![successor.clone()], &[successor]);
        assert_eq!((detail.proc, detail.children.len()), (None, 0));
    }

    fn id(text: &str) -> HostId {
        text.parse().expect("a host")
    }

    #[test]
    fn the_same_number_on_two_hosts_is_two_processes() {
        let mut places = Arc::default();
        let mut row = |host: &str| {
            let row = json!({"dc": "tokyo", "host": host, "id": "7@10000000", "pid": 7, "ppid": 1});
            let row = row.as_object().expect("an object").clone();
            Proc::of_many(row, &mut places).expect("a process")
        };
        let (a, b, again) = (row("a"), row("b"), row("a"));
        assert!(a.id.same(&again.id) && !a.id.same(&b.id));
        assert_ne!(a.id.number_of(7), b.id.number_of(7));
        assert_eq!(a.value(Column::Host), "tokyo/a");
        assert_eq!(places.host(b.id.place), Some(&id("tokyo/b")));
        assert_eq!(Proc::of_many(Row::new(), &mut places), None);
    }

    #[test]
    fn a_host_is_a_row_of_sums() {
        let mut places = Arc::default();
        let row = json!({"dc": "tokyo", "host": "a", "count()": 12, "sum(threads)": 30,
                         "sum(cpu)": 155.5, "sum(rss)": 4096, "sum(time)": null});
        let row = row.as_object().expect("an object").clone();
        let host = Proc::of_host(row, &mut places, |id| format!("of {id}")).expect("a host");
        let shown = [Column::Host, Column::Pid, Column::Cpu, Column::Cmdline, Column::Time];
        let shown = shown.map(|column| host.value(column).clone());
        assert_eq!(
            shown,
            [json!("tokyo/a"), json!(12), json!(155.5), json!("of tokyo/a"), json!(null)]
        );
        let query =
            kumo_abi::Query::parse(&host_sums(), &kumo_abi::proc::PROC, "pid").expect("a query");
        assert!(query.is_grouped());
    }

    #[test]
    fn hosts_add_up_and_a_new_boot_is_left_out_of_cpu_use() {
        let Host { report, .. } = host(4);
        let mut later = report.clone();
        later.cpu.seconds.user += 3.0;
        later.cpu.seconds.idle += 1.0;
        let mut booted = later.clone();
        booted.boot.boot_id = "another".to_owned();
        let earlier = BTreeMap::from([(id("t/a"), report.clone()), (id("t/b"), report)]);
        let reports = BTreeMap::from([(id("t/a"), later), (id("t/b"), booted)]);
        let fleet = Fleet::new(Asked::default(), &reports, &earlier);
        assert_eq!((fleet.cpus, fleet.memory.total >> 30), (8, 32));
        assert!((fleet.load - 1.04).abs() < 1e-9, "{}", fleet.load);
        assert_eq!(fleet.cpu.map(|cpu| cpu.busy()), Some(75.0));
        let first = Fleet::new(Asked::default(), &reports, &BTreeMap::new());
        assert_eq!(first.cpu, None);
    }
}
