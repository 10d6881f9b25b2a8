//! `processes` and `process_namespaces`: the process table by osquery's names.

use std::time::Duration;

use kumo_abi::proc::{Column, PROC};
use kumo_abi::{Filter, Query, Select, Value};
use kumo_sql::{Cell, Rows, Scan, ScanError};

use super::HostTables;
use crate::engine::{Question, SeenRow};
use crate::table::Parts;

/// Where the value of a column comes from.
#[derive(Clone, Copy)]
enum Origin {
    /// A column of ours that has the same value.
    Same(Column),
    /// What osquery makes of it.
    Made(Column, fn(&SeenRow<'_>) -> Cell),
    /// The name of the data centre or the host.
    Dc,
    Host,
}

fn source(name: &str) -> Option<Origin> {
    use Column as C;
    Some(match name {
        "dc" => Origin::Dc,
        "host" => Origin::Host,
        "pid" => Origin::Same(C::Pid),
        "name" => Origin::Same(C::Comm),
        "path" => Origin::Made(C::Exe, path),
        "cmdline" => Origin::Made(C::Cmdline, cmdline),
        "state" => Origin::Same(C::State),
        "cwd" => Origin::Made(C::Cwd, |seen| of_program(seen, C::Cwd)),
        "root" => Origin::Made(C::Root, |seen| of_program(seen, C::Root)),
        "uid" => Origin::Same(C::Uid),
        "gid" => Origin::Same(C::Gid),
        "euid" => Origin::Same(C::Euid),
        "egid" => Origin::Same(C::Egid),
        "suid" => Origin::Same(C::Suid),
        "sgid" => Origin::Same(C::Sgid),
        "on_disk" => Origin::Made(C::Exe, on_disk),
        "wired_size" => Origin::Made(C::Pid, |_| Cell::Int(0)),
        "resident_size" => Origin::Same(C::Rss),
        "total_size" => Origin::Same(C::Vsize),
        "user_time" => Origin::Made(C::Utime, |seen| millis(seen, seen.row.utime_ns)),
        "system_time" => Origin::Made(C::Stime, |seen| millis(seen, seen.row.stime_ns)),
        "disk_bytes_read" => Origin::Same(C::ReadBytes),
        "disk_bytes_written" => Origin::Same(C::WriteBytes),
        "start_time" => {
            Origin::Made(C::Start, |seen| Cell::Int(unix_seconds(seen, seen.row.start_ns)))
        }
        "parent" => Origin::Same(C::Ppid),
        "pgroup" => Origin::Same(C::Pgrp),
        "threads" => Origin::Same(C::Threads),
        "nice" => Origin::Same(C::Nice),
        "cgroup_path" => Origin::Same(C::Cgroup),
        "elapsed_time" => Origin::Made(C::Elapsed, |seen| {
            let age_ns = seen.context.table.began_boot_ns.saturating_sub(seen.row.start_ns);
            Cell::count(age_ns / 1_000_000_000)
        }),
        "cgroup_namespace" => Origin::Made(C::NsCgroup, |seen| inode(seen, C::NsCgroup)),
        "ipc_namespace" => Origin::Made(C::NsIpc, |seen| inode(seen, C::NsIpc)),
        "mnt_namespace" => Origin::Made(C::NsMnt, |seen| inode(seen, C::NsMnt)),
        "net_namespace" => Origin::Made(C::NsNet, |seen| inode(seen, C::NsNet)),
        "pid_namespace" => Origin::Made(C::NsPid, |seen| inode(seen, C::NsPid)),
        "user_namespace" => Origin::Made(C::NsUser, |seen| inode(seen, C::NsUser)),
        "uts_namespace" => Origin::Made(C::NsUts, |seen| inode(seen, C::NsUts)),
        // Ours, by their own names.
        _ => Origin::Same(Column::at(PROC.find(name)?)),
    })
}

/// Reads rows for either table.
pub(super) fn scan(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let name = |place: &usize| scan.table.columns[*place].name;
    let sources: Vec<Origin> = scan
        .columns
        .iter()
        .map(|place| source(name(place)).unwrap_or(Origin::Same(Column::Pid)))
        .collect();
    let mut columns = vec![Column::Pid];
    for source in &sources {
        let column = match source {
            Origin::Same(column) | Origin::Made(column, _) => *column,
            Origin::Dc | Origin::Host => continue,
        };
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    let question = question(host, scan, &columns)?;
    let answer = host.engine.ask(question).map_err(ScanError::failed)?;
    let config = host.engine.config();
    answer.each_row(|seen| {
        rows.push(sources.iter().map(|source| match source {
            Origin::Same(column) => cell(seen.value(*column)),
            Origin::Made(_, make) => make(seen),
            Origin::Dc => config.dc.as_str().into(),
            Origin::Host => config.host.as_str().into(),
        }))
    })?;
    Ok(())
}

fn question(host: &HostTables, scan: &Scan<'_>, columns: &[Column]) -> Result<Question, ScanError> {
    let pids = scan.integer("pid").map(|pid| i32::try_from(pid).into_iter().collect::<Vec<i32>>());
    let mut conditions = Vec::new();
    if let Some(name) = scan.text("name") {
        // A text of JSON is one of CEL.
        conditions.push(format!("comm == {}", serde_json::Value::from(name)));
    }
    if let Some(uid) = scan.integer("uid") {
        conditions.push(format!("uid == {uid}"));
    }
    let known = usize::from(pids.is_some()) + conditions.len();
    let filter = match conditions.join(" && ") {
        none if none.is_empty() => None,
        text => Some(Filter::compile(&text, &PROC).map_err(ScanError::failed)?),
    };
    // A limit counts rows that fulfil all conditions; those that are not ours to decide may drop some.
    let limit = scan.limit.filter(|_| known == scan.wanted.len());
    let query = Query {
        columns: columns.iter().map(|column| Select::Column(column.index())).collect(),
        filter,
        sort: Vec::new(),
        limit: limit.and_then(|limit| u32::try_from(limit).ok()).filter(|limit| *limit > 0),
        group: Vec::new(),
        ended: false,
        at: None,
    };
    Ok(Question { query, pids, max_age: host.age_max(), lines: host.sight.lines })
}

/// The parts of a query see one moment: what was read since it began will do.
impl HostTables {
    pub(super) fn age_max(&self) -> Duration {
        self.began.elapsed()
    }
}

/// A value of ours as one of SQL.
pub(super) fn cell(value: Value<'_>) -> Cell {
    match value {
        Value::Float(number) if !number.is_finite() => Cell::Null,
        Value::Null | Value::TextList(_) => Cell::Null,
        Value::Bool(flag) => Cell::Int(flag.into()),
        Value::Int(number) => Cell::Int(number),
        Value::Float(number) => Cell::Real(number),
        Value::Text(text) => Cell::text(text),
    }
}

/// Whether it has no program of its own: files of `/proc` that tell of one are empty then.
fn is_without_program(seen: &SeenRow<'_>) -> bool {
    seen.row.is_kernel() || seen.row.state == b'Z'
}

fn of_program(seen: &SeenRow<'_>, column: Column) -> Cell {
    match seen.value(column) {
        Value::Null if is_without_program(seen) => "".into(),
        value => cell(value),
    }
}

/// What the kernel puts behind the name of a file that is gone.
const DELETED: &[u8] = b" (deleted)";

fn path(seen: &SeenRow<'_>) -> Cell {
    match seen.value(Column::Exe) {
        Value::Text(path) => Cell::text(path.strip_suffix(DELETED).unwrap_or(&path)),
        _ => of_program(seen, Column::Exe),
    }
}

fn on_disk(seen: &SeenRow<'_>) -> Cell {
    Cell::Int(match seen.value(Column::Exe) {
        Value::Text(path) if path.ends_with(DELETED) => 0,
        Value::Text(_) => 1,
        _ => -1,
    })
}

fn cmdline(seen: &SeenRow<'_>) -> Cell {
    // We show their names in brackets; osquery shows what the file says.
    if seen.row.have.contains(Parts::CMDLINE)
        && seen.row.cmdline.is_none()
        && !seen.row.cmdline_long
    {
        return "".into();
    }
    cell(seen.value(Column::Cmdline))
}

fn millis(seen: &SeenRow<'_>, ns: u64) -> Cell {
    if seen.row.have.contains(Parts::TIMES) { Cell::count(ns / 1_000_000) } else { Cell::Null }
}

/// A moment of boot time, in seconds since the epoch.
fn unix_seconds(seen: &SeenRow<'_>, boot_ns: u64) -> i64 {
    let table = &seen.context.table;
    let age_ns = i128::from(table.began_boot_ns) - i128::from(boot_ns);
    (i128::from(table.began_unix_ns) - age_ns).div_euclid(1_000_000_000) as i64
}

fn inode(seen: &SeenRow<'_>, column: Column) -> Cell {
    match seen.value(column) {
        Value::Int(inode) => inode.to_string().into(),
        _ => Cell::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::schema::TABLES;

    #[test]
    fn every_column_has_a_source() {
        for name in ["processes", "process_namespaces"] {
            let table = TABLES.iter().find(|table| table.name == name).expect("a table");
            for column in table.columns {
                assert!(source(column.name).is_some(), "{name}.{} has none", column.name);
            }
        }
    }
}
