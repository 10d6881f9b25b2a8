//! Evaluates a query over a table: filter, sort, limit, group.
//!
//! Rows are named by their index until they are written. A part that the table lacks is fetched for
//! the rows that get that far, and kept for the rows that pass; but for command lines that are too
//! long for a table, which are fetched again where they are written: a filter that reads a thousand
//! lines of megabytes holds one at a time.

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::HashMap;

use kumo_abi::proc::{Column, PROC};
use kumo_abi::rights::Lines;
use kumo_abi::{Aggregate, ColumnIndex, Kind, Query, Schema, Select, SortKey, Value};

use crate::encode::write_value;
use crate::row::{self, Context};
use crate::table::{CMDLINE_KEPT_BYTES_MAX, CommandLine, Parts, Process};

/// Fetches what rows lack.
pub(crate) trait Complete {
    /// Fetches those of `parts` that `row` lacks; what cannot be read stays absent.
    fn complete(&self, row: &mut Process, parts: Parts);
}

/// Rows of a table with what was fetched for some of them later.
#[derive(Debug)]
pub(crate) struct View<F> {
    pub(crate) context: Context,
    complete: F,
    completed: HashMap<usize, Process>,
}

/// The result of a query.
#[derive(Debug)]
pub(crate) enum Selected {
    /// Indices of rows, in order.
    Rows(Vec<usize>),
    /// Rows of values, in order, as the query's columns say.
    Groups(Vec<Vec<Value<'static>>>),
}

impl<F: Complete> View<F> {
    pub(crate) fn new(context: Context, complete: F) -> View<F> {
        View { context, complete, completed: HashMap::new() }
    }

    /// The row at `index`, with what was fetched for it.
    fn row(&self, index: usize) -> &Process {
        self.completed.get(&index).unwrap_or(&self.context.table.rows[index])
    }

    fn value(&self, column: ColumnIndex, index: usize) -> Value<'_> {
        row::value(Column::at(column), self.row(index), index, &self.context)
    }

    /// What of `parts` a fetch could still bring to `row`.
    fn missing(&self, row: &Process, parts: Parts) -> Parts {
        // What the scan fetched and this row lacks is not readable for us; but long command lines
        // are left out of the table on purpose.
        let hopeless = self.context.table.parts;
        let hopeless = if row.cmdline_long { hopeless.without(Parts::CMDLINE) } else { hopeless };
        parts.without(row.have).without(hopeless)
    }

    fn completed_copy(&self, row: &Process, parts: Parts) -> Process {
        let mut copy = row.clone();
        self.complete.complete(&mut copy, parts);
        if copy.cmdline_long && parts.contains(Parts::CMDLINE) {
            // The first look at a line tells no more of it than that it is long.
            self.complete.complete(&mut copy, parts);
        }
        copy
    }

    /// The row at `index` with `parts`, fetched now if need be and then not kept: `scratch` holds it.
    pub(crate) fn row_with<'a>(
        &'a self,
        index: usize,
        parts: Parts,
        scratch: &'a mut Option<Process>,
    ) -> &'a Process {
        let row = self.row(index);
        let missing = self.missing(row, parts);
        if missing.is_empty() { row } else { scratch.insert(self.completed_copy(row, missing)) }
    }

    /// Fetches and keeps `parts` for all `rows`; of long command lines their beginning.
    fn complete_all(&mut self, rows: &[usize], parts: Parts) {
        for index in rows {
            let row = self.row(*index);
            let missing = self.missing(row, parts);
            if !missing.is_empty() {
                let mut copy = self.completed_copy(row, missing);
                cut_line(&mut copy, self.context.lines);
                self.completed.insert(*index, copy);
            }
        }
    }

    /// Evaluates `query` over `candidates`. Returns the result and how many rows passed the filter.
    pub(crate) fn select(&mut self, query: &Query, candidates: Vec<usize>) -> (Selected, usize) {
        let mut rows = self.filter(query, candidates);
        let matched = rows.len();
        if query.is_grouped() {
            let groups = self.group(query, &rows);
            return (Selected::Groups(groups), matched);
        }
        let keys: Vec<ColumnIndex> = query.sort.iter().filter_map(sort_column).collect();
        self.complete_all(&rows, parts_of(&keys));
        self.sort(query, &mut rows);
        self.completed.values_mut().for_each(forget_line);
        (Selected::Rows(rows), matched)
    }

    fn filter(&mut self, query: &Query, candidates: Vec<usize>) -> Vec<usize> {
        let Some(filter) = &query.filter else { return candidates };
        let parts = parts_of(filter.columns());
        let mut passed = Vec::new();
        let mut kept = Vec::new();
        for index in candidates {
            let row = self.row(index);
            let missing = self.missing(row, parts);
            let completed = OnceCell::new();
            let matches = filter.matches(&|column| {
                let column = Column::at(column);
                let source = if missing.intersects(row::parts(column)) {
                    completed.get_or_init(|| self.completed_copy(row, missing))
                } else {
                    row
                };
                row::value(column, source, index, &self.context)
            });
            if matches {
                passed.push(index);
                kept.extend(completed.into_inner().map(|mut row| {
                    cut_line(&mut row, self.context.lines);
                    forget_line(&mut row);
                    (index, row)
                }));
            }
        }
        self.completed.extend(kept);
        passed
    }

    /// Sorts and cuts to the limit. Equal rows keep the order of the table, which is by pid.
    fn sort(&self, query: &Query, rows: &mut Vec<usize>) {
        sort_rows(query, rows, |column, index| self.value(column, index));
    }

    fn group(&self, query: &Query, rows: &[usize]) -> Vec<Vec<Value<'static>>> {
        let parts = parts_of(&query.columns_read());
        group_rows(query, &PROC, rows, |index, take| {
            let mut scratch = None;
            let row = self.row_with(index, parts, &mut scratch);
            take(&|column| row::value(Column::at(column), row, index, &self.context));
        })
    }
}

impl Selected {
    /// How many rows the answer has.
    pub(crate) fn len(&self) -> usize {
        match self {
            Selected::Rows(rows) => rows.len(),
            Selected::Groups(groups) => groups.len(),
        }
    }
}

/// Sorts rows, which are numbers, and cuts them to the limit. Equal ones keep the order of their numbers.
pub(crate) fn sort_rows<'t>(
    query: &Query,
    rows: &mut Vec<usize>,
    value: impl Fn(ColumnIndex, usize) -> Value<'t>,
) {
    let limit = query.limit.map_or(usize::MAX, |limit| limit as usize);
    if !query.sort.is_empty() {
        let columns: Vec<ColumnIndex> = query.sort.iter().filter_map(sort_column).collect();
        // The keys of all rows, one after the other: one for each would be an allocation for each.
        let mut keys: Vec<Value<'t>> = Vec::with_capacity(rows.len() * columns.len());
        for index in &*rows {
            keys.extend(columns.iter().map(|column| value(*column, *index)));
        }
        let key = |nth: usize| &keys[nth * columns.len()..(nth + 1) * columns.len()];
        let order = |a: &usize, b: &usize| {
            compare(&query.sort, key(*a), key(*b)).then(rows[*a].cmp(&rows[*b]))
        };
        let mut sorted: Vec<usize> = (0..rows.len()).collect();
        if limit < sorted.len() {
            // Only the first rows are wanted: the rest need no order among themselves.
            sorted.select_nth_unstable_by(limit, order);
            sorted.truncate(limit);
        }
        sorted.sort_unstable_by(order);
        *rows = sorted.into_iter().map(|nth| rows[nth]).collect();
    }
    rows.truncate(limit);
}

/// What tells the values of one row.
type RowValue<'r> = dyn Fn(ColumnIndex) -> Value<'r> + 'r;

/// Puts rows into groups, sorts those and cuts them to the limit. `with_row` hands over what tells the
/// values of a row.
pub(crate) fn group_rows(
    query: &Query,
    schema: &Schema,
    rows: &[usize],
    with_row: impl Fn(usize, &mut dyn FnMut(&RowValue<'_>)),
) -> Vec<Vec<Value<'static>>> {
    let mut index_of: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut groups: Vec<Vec<Value<'static>>> = Vec::new();
    let mut key = Vec::new();
    if query.group.is_empty() {
        // All rows are one group, even when there are none: their count is 0.
        groups.push(query.columns.iter().map(|select| initial(*select, schema)).collect());
        index_of.insert(Vec::new(), 0);
    }
    let mut take = |value: &RowValue<'_>| {
        // Values are compared as they are written: a key that looks the same is the same.
        key.clear();
        for column in &query.group {
            write_value(&mut key, &value(*column));
            key.push(0);
        }
        let group = *index_of.entry(key.clone()).or_insert_with(|| {
            let start = |select: &Select| match select {
                Select::Column(column) => value(*column).into_owned(),
                Select::Aggregate(_) => initial(*select, schema),
            };
            groups.push(query.columns.iter().map(start).collect());
            groups.len() - 1
        });
        for (cell, select) in groups[group].iter_mut().zip(&query.columns) {
            match select {
                Select::Column(_) => {}
                Select::Aggregate(Aggregate::Count) => add(cell, &Value::Int(1)),
                Select::Aggregate(Aggregate::Sum(column)) => {
                    add(cell, &value(*column));
                }
                Select::Aggregate(Aggregate::Max(column)) => {
                    let value = value(*column);
                    if value.order(cell) == Ordering::Greater {
                        *cell = value.into_owned();
                    }
                }
            }
        }
    };
    for index in rows {
        with_row(*index, &mut take);
    }
    for cell in groups.iter_mut().flatten() {
        if let Value::Float(sum) = cell {
            // A sum of rounded values has no more than their places.
            *sum = (*sum * 1e6).round() / 1e6;
        }
    }
    let sort_cells: Vec<usize> = query
        .sort
        .iter()
        .filter_map(|key| query.columns.iter().position(|select| *select == key.select))
        .collect();
    let keys = |group: &Vec<Value<'static>>| -> Vec<Value<'static>> {
        sort_cells.iter().map(|cell| group[*cell].clone()).collect()
    };
    groups.sort_by(|a, b| compare(&query.sort, &keys(a), &keys(b)));
    groups.truncate(query.limit.map_or(usize::MAX, |limit| limit as usize));
    groups
}

/// Cuts a command line that is too long for a table: the beginning of what is shown of it is enough to
/// sort by. Such a row has the part and says that the line is long; [`forget_line`] ends that.
fn cut_line(row: &mut Process, lines: Lines) {
    let line = row.cmdline.as_ref().filter(|line| line.argv().len() > CMDLINE_KEPT_BYTES_MAX);
    if let Some(line) = line {
        let shown = line.shown(lines).argv();
        row.cmdline = Some(CommandLine::new(&shown[..shown.len().min(CMDLINE_KEPT_BYTES_MAX)]));
        row.cmdline_long = true;
    }
}

/// Makes a cut line one that has to be fetched, as it was in the table.
fn forget_line(row: &mut Process) {
    if row.cmdline_long {
        row.cmdline = None;
        row.have = row.have.without(Parts::CMDLINE);
    }
}

/// The parts that `columns` are made from.
pub(crate) fn parts_of(columns: &[ColumnIndex]) -> Parts {
    columns.iter().fold(Parts::NONE, |all, column| all | row::parts(Column::at(*column)))
}

/// What an aggregate of no rows is.
fn initial(select: Select, schema: &Schema) -> Value<'static> {
    match select {
        Select::Aggregate(Aggregate::Count) => Value::Int(0),
        Select::Aggregate(Aggregate::Sum(column)) => match schema.columns[column].kind {
            Kind::Float => Value::Float(0.0),
            _ => Value::Int(0),
        },
        Select::Column(_) | Select::Aggregate(Aggregate::Max(_)) => Value::Null,
    }
}

fn sort_column(key: &SortKey) -> Option<ColumnIndex> {
    match key.select {
        Select::Column(column) => Some(column),
        Select::Aggregate(_) => None,
    }
}

fn compare(keys: &[SortKey], a: &[Value<'_>], b: &[Value<'_>]) -> Ordering {
    let ordered = keys.iter().zip(a.iter().zip(b)).map(|(key, (a, b))| {
        let order = a.order(b);
        if key.descending { order.reverse() } else { order }
    });
    ordered.into_iter().find(|order| *order != Ordering::Equal).unwrap_or(Ordering::Equal)
}

fn add(sum: &mut Value<'static>, value: &Value<'_>) {
    match (sum, value) {
        (Value::Int(sum), Value::Int(value)) => *sum = sum.saturating_add(*value),
        (Value::Float(sum), Value::Float(value)) => *sum += value,
        _ => {} // Null counts as nothing.
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use kumo_abi::QueryText;
    use kumo_abi::proc::COLUMNS_DEFAULT;

    use super::*;
    use crate::row::Names;
    use crate::table::{Ids, Late, Memory, Table};

    /// Knows the executable of every process, and long command lines.
    struct Links;

    /// The command line of process `pid`: they differ at the start.
    fn long_line(pid: i32) -> CommandLine {
        CommandLine::new(format!("{pid}{}\0", "x".repeat(3 * CMDLINE_KEPT_BYTES_MAX)).as_bytes())
    }

    impl Complete for Links {
        fn complete(&self, row: &mut Process, parts: Parts) {
            row.have |= parts;
            if parts.contains(Parts::CMDLINE) {
                assert!(row.cmdline_long, "a table has short ones");
                row.cmdline = Some(long_line(row.pid));
                row.cmdline_long = false;
            }
            let exe = format!("/bin/{}", row.pid).into_bytes();
            row.late = Some(Arc::new(Late { exe: Some(exe.into()), ..Late::default() }));
        }
    }

    fn view() -> View<Links> {
        let row = |pid: i32, uid: u32, anon: u64| Process {
            have: Parts::STAT | Parts::STATUS | Parts::MEMORY,
            pid,
            uid: Ids { real: uid, effective: uid, saved: uid, fs: uid },
            memory: Memory { anon, ..Memory::default() },
            state: b'S',
            cmdline_long: true,
            ..Process::default()
        };
        let table = Table {
            generation: 1,
            collector: crate::CollectorKind::Proc,
            began: Instant::now(),
            began_unix_ns: 0,
            began_boot_ns: 0,
            scan_us: 0,
            parts: Parts::STAT | Parts::STATUS | Parts::MEMORY | Parts::CMDLINE,
            rows: vec![row(1, 0, 10), row(2, 33, 30), row(3, 33, 20), row(4, 7, 30)],
            cpu_percent: None,
        };
        let users: Names =
            [(0, "root"), (33, "www")].map(|(id, name)| (id, Arc::from(name))).into();
        let context = Context {
            blocked_on: Arc::default(),
            table: Arc::new(table),
            dc: "dc".into(),
            host: "host".into(),
            users: Arc::new(users),
            groups: Arc::default(),
            open: None,
            memory_bytes: 1000,
            lines: Lines::Whole,
        };
        View::new(context, Links)
    }

    fn run(columns: &str, filter: &str, sort: &str, limit: &str, group: &str) -> String {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let text = QueryText {
            columns: some(columns),
            filter: some(filter),
            sort: some(sort),
            limit: some(limit),
            group: some(group),
            ended: false,
            at: None,
        };
        let query = Query::parse(&text, &PROC, COLUMNS_DEFAULT).expect("a good query");
        let mut view = view();
        let (selected, _) = view.select(&query, (0..4).collect());
        let mut out = Vec::new();
        let mut write = |values: Vec<Value<'_>>| {
            for value in values {
                write_value(&mut out, &value);
                out.push(b' ');
            }
            out.push(b'|');
        };
        match selected {
            Selected::Groups(groups) => groups.into_iter().for_each(&mut write),
            Selected::Rows(rows) => {
                for index in rows {
                    let mut scratch = None;
                    let row = view.row_with(index, parts_of(&query.columns_read()), &mut scratch);
                    let value = |select: &Select| match select {
                        Select::Column(column) => {
                            row::value(Column::at(*column), row, index, &view.context)
                        }
                        Select::Aggregate(_) => unreachable!("no group"),
                    };
                    write(query.columns.iter().map(value).collect());
                }
            }
        }
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    #[test]
    fn sort_limit_and_filter() {
        let cases = [
            (run("pid", "", "", "", ""), "1 |2 |3 |4 |"),
            (run("pid", "", "-rss", "", ""), "2 |4 |3 |1 |"),
            (run("pid", "", "-rss,-pid", "3", ""), "4 |2 |3 |"),
            (run("pid", "", "user,-pid", "", ""), "4 |1 |3 |2 |"),
            (run("pid,user", "rss > 10", "", "2", ""), r#"2 "www" |3 "www" |"#),
            (run("exe", "pid == 2", "", "", ""), r#""/bin/2" |"#),
            (run("pid", r#"exe.endsWith("3")"#, "", "", ""), "3 |"),
            (run("pid", "", "-exe", "1", ""), "4 |"),
        ];
        for (got, want) in cases {
            assert_eq!(got, want);
        }
    }

    #[test]
    fn long_command_lines_are_whole_and_not_kept() {
        let text = |text: &str| Some(text.to_owned());
        for (filter, sort, want) in [
            ("cmdline.contains('x')", "pid", [1, 2, 3, 4]),
            ("cmdline.contains('x')", "-argv", [4, 3, 2, 1]),
            ("exe != ''", "-cmdline", [4, 3, 2, 1]),
        ] {
            let texts = QueryText {
                columns: text("cmdline"),
                filter: text(filter),
                sort: text(sort),
                ..QueryText::default()
            };
            let query = Query::parse(&texts, &PROC, COLUMNS_DEFAULT).expect("a good query");
            let mut view = view();
            let (Selected::Rows(rows), 4) = view.select(&query, (0..4).collect()) else {
                panic!("four rows for {filter:?}");
            };
            assert!(view.completed.len() == 4, "they were read");
            assert!(view.completed.values().all(|row| row.cmdline.is_none()), "for {filter:?}");
            let pids: Vec<_> = rows.iter().map(|index| view.row(*index).pid).collect();
            assert_eq!(pids, want, "for {filter:?} by {sort}");
            for (index, pid) in rows.into_iter().zip(pids) {
                let mut scratch = None;
                let written = view.row_with(index, Parts::CMDLINE, &mut scratch);
                assert!(written.cmdline == Some(long_line(pid)), "whole where it is written");
            }
        }
    }

    #[test]
    fn groups() {
        let cases = [
            (
                run("user,count(),sum(rss),max(pid)", "", "-count()", "", "user"),
                r#""www" 2 50 3 |"root" 1 10 1 |"7" 1 30 4 |"#,
            ),
            (run("count(),sum(rss)", "pid > 1", "", "", ""), "3 80 |"),
            (run("user", "", "-user", "1", "user"), r#""www" |"#),
            (run("max(oom_score)", "", "", "", ""), "null |"),
            (run("count(),max(rss)", "pid > 100", "", "", ""), "0 null |"),
            (run("user,count()", "pid > 100", "", "", "user"), ""),
        ];
        for (got, want) in cases {
            assert_eq!(got, want);
        }
    }
}
