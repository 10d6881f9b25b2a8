//! `process_events`: programs that were executed, from what is remembered of processes that live and of
//! those that have ended.

use kumo_abi::Value;
use kumo_abi::proc::Column;
use kumo_sql::{Cell, Rows, Scan, ScanError};

use super::processes::cell;
use super::{HostTables, push};
use crate::engine::SeenRow;

pub(super) fn scan(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let (context, at_ns) =
        host.engine.executed(&[], host.sight.lines).map_err(ScanError::failed)?;
    for (index, (row, at_ns)) in context.table.rows.iter().zip(at_ns).enumerate() {
        let seen = SeenRow { row, index, context: &context };
        push(host, scan, rows, values(&seen, at_ns))?;
    }
    Ok(())
}

fn values(seen: &SeenRow<'_>, at_ns: u64) -> Vec<Cell> {
    let value = |column| cell(seen.value(column));
    let table = &seen.context.table;
    let unix_seconds = |boot_ns: u64| {
        let age_ns = i128::from(table.began_boot_ns) - i128::from(boot_ns);
        Cell::Int((i128::from(table.began_unix_ns) - age_ns).div_euclid(1_000_000_000) as i64)
    };
    // Its size too is that of what is shown: more would tell how long a secret is.
    let line = seen.row.cmdline.as_ref().map(|line| line.shown(seen.context.lines));
    let size = line.filter(|_| !seen.row.cmdline_cut);
    let nulls = || std::iter::repeat_n(Cell::Null, 4);
    let parent = if seen.row.ppid == 0 { -1 } else { seen.row.ppid };
    let id = value(Column::Id);
    let cpu_time = match seen.value(Column::Time) {
        Value::Float(seconds) => Cell::Real(seconds),
        _ => Cell::Null,
    };
    let mut cells = vec![seen.row.pid.into(), Cell::Null, Cell::Null];
    cells.push(if line.is_some() { value(Column::Cmdline) } else { Cell::Null });
    cells.extend([Cell::Null, Cell::Null]);
    cells.extend([Column::Uid, Column::Euid, Column::Gid, Column::Egid].map(value));
    // Owner and times of the file.
    cells.extend(nulls().chain(nulls()).take(6));
    cells.extend([parent.into(), unix_seconds(at_ns), Cell::count(at_ns / 1_000_000_000)]);
    cells.extend([Column::Fsuid, Column::Suid, Column::Fsgid, Column::Sgid].map(value));
    cells.push(Cell::Null);
    // Those that `SELECT *` leaves out.
    cells.push(size.map_or(Cell::Null, |line| Cell::count(line.argv().len() as u64)));
    cells.extend(nulls());
    cells.push(if seen.row.cmdline_cut { "cmdline" } else { "" }.into());
    cells.extend([id, value(Column::Comm), value(Column::ContainerId), value(Column::Unit)]);
    cells.push(seen.row.end.as_ref().map_or(Cell::Null, |end| unix_seconds(end.at_ns)));
    cells.extend([value(Column::ExitCode), value(Column::ExitSignal), cpu_time]);
    cells
}
