//! Which columns the table shows, how wide each is, and what a cell says.
//!
//! Plain values and rules. A cell's text is escaped here, once, so that nothing that a process
//! chose can reach the terminal as a control sequence.

use kumo_abi::Unit;
use kumo_abi::proc::Column;

use super::data::Proc;
use crate::text;
use crate::units::{self, SizeStyle};

/// A column of the table as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// The column.
    pub(super) column: Column,
    /// Its width in cells. The command takes what is left.
    pub(super) width: u16,
}

/// The columns of a wide terminal, in order; the command stands last.
pub(super) const TABLE: [Column; 13] = [
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
];

/// Columns that a narrow terminal does without, the least missed first. Never in here: the process
/// number, its CPU use and its command.
const DROPPED: [Column; 10] = [
    Column::Priority,
    Column::Nice,
    Column::Shared,
    Column::Vsize,
    Column::Threads,
    Column::Time,
    Column::User,
    Column::Mem,
    Column::State,
    Column::Rss,
];

/// The command gets at least this many cells before other columns are dropped for it: enough to tell
/// one program from another.
const COMMAND_WIDTH_MIN: u16 = 15;

/// The most process numbers have seven digits (`PID_MAX_LIMIT` is 2^22); the fewest worth a column
/// that does not change its width when the first long one appears, five.
const PID_WIDTH: std::ops::RangeInclusive<u16> = 5..=7;

/// What decides about columns besides the width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// The widest name of a host, where there are many.
    pub(super) host_width: Option<u16>,
    /// Each row is a host.
    pub(super) by_host: bool,
    /// Show the number of threads.
    pub(super) threads: bool,
    /// Show the command line, not the name alone.
    pub(super) full_command: bool,
    /// Digits of the longest process number.
    pub(super) pid_digits: u16,
    /// The column that the table is sorted by: it is shown while it is.
    pub(super) sorted_by: Column,
}

/// The columns of a table whose rows are hosts.
const BY_HOST: [Column; 6] =
    [Column::Pid, Column::Threads, Column::Cpu, Column::Rss, Column::Time, Column::Cmdline];

/// Names of hosts get so many cells: the shortest make no column that jumps, and a long one leaves
/// room for its processes.
const HOST_WIDTH: std::ops::RangeInclusive<u16> = 8..=24;

/// The columns that fit `width`, and their widths; one blank stands between two.
pub(super) fn fit(choice: Choice, width: u16) -> Vec<Shown> {
    let table: &[Column] = if choice.by_host { &BY_HOST } else { &TABLE };
    let host = choice.host_width.map(|_| Column::Host);
    let mut shown: Vec<Shown> = host
        .into_iter()
        .chain(table.iter().copied())
        .filter(|column| choice.threads || *column != Column::Threads)
        .map(|column| Shown { column, width: width_of(column, choice) })
        .collect();
    if !choice.by_host && !table.contains(&choice.sorted_by) && host != Some(choice.sorted_by) {
        let column = choice.sorted_by;
        shown.insert(shown.len() - 1, Shown { column, width: width_of(column, choice) });
    }
    let fixed = |shown: &[Shown]| {
        let cells = shown.iter().map(|one| one.width).sum::<u16>();
        cells + shown.len() as u16 - 1
    };
    for dropped in DROPPED {
        if fixed(&shown) + COMMAND_WIDTH_MIN <= width {
            break;
        }
        if dropped == choice.sorted_by {
            continue;
        }
        shown.retain(|one| one.column != dropped);
    }
    let left = width.saturating_sub(fixed(&shown)).max(1);
    if let Some(command) = shown.last_mut() {
        command.width = left;
        if !choice.full_command {
            command.column = Column::Comm;
        }
    }
    shown
}

fn width_of(column: Column, choice: Choice) -> u16 {
    match column {
        Column::Host => {
            let widest = choice.host_width.unwrap_or(0);
            widest.clamp(*HOST_WIDTH.start(), *HOST_WIDTH.end())
        }
        // Sums over a host are wider than any of their parts.
        Column::Threads | Column::Cpu if choice.by_host => 7,
        Column::Pid | Column::Ppid => choice.pid_digits.clamp(*PID_WIDTH.start(), *PID_WIDTH.end()),
        Column::User => 8,
        Column::Priority | Column::Nice => 3,
        Column::Vsize | Column::Rss | Column::Shared | Column::Cpu => 5,
        Column::State => 1,
        Column::Threads | Column::Mem => 4,
        Column::Time => 9,
        Column::Cmdline | Column::Comm => 0,
        _ => 6,
    }
}

/// The heading, as people know it from top.
pub(super) fn heading(column: Column, by_host: bool) -> &'static str {
    match column {
        Column::Pid if by_host => "PROCS",
        Column::Cmdline | Column::Comm if by_host => "LOAD AND MEMORY",
        Column::Priority => "PR",
        Column::Vsize => "VIRT",
        Column::Rss => "RES",
        Column::State => "S",
        Column::Time => "TIME+",
        _ => column.spec().heading,
    }
}

/// Whether a column's cells stand at its right edge.
pub(super) fn is_right_aligned(column: Column) -> bool {
    column.spec().kind.is_number()
}

/// Whether the first click on a column sorts it from high to low: what is large matters, names and
/// numbers of processes are read from the start.
pub(super) fn sorts_descending(column: Column) -> bool {
    let spec = column.spec();
    spec.kind.is_number() && (spec.unit != Unit::None || column == Column::Threads)
}

/// The text of a cell, escaped and cut to `width` columns of a terminal. `-` stands for what is not
/// there or not ours to read. A number that is wider than its column keeps all its digits.
pub(super) fn cell(column: Column, proc: &Proc, width: usize) -> String {
    let value = proc.value(column);
    let number = value.as_f64();
    match (column, column.spec().unit, number) {
        _ if value.is_null() => "-".to_owned(),
        (Column::Priority, _, Some(number)) if number <= -100.0 => "rt".to_owned(),
        (Column::Time, _, Some(seconds)) => clock(seconds),
        (_, Unit::Bytes, Some(bytes)) => units::size(bytes as u64, SizeStyle::Human),
        // From 1000 on, the digit behind the point would make the column overflow.
        (_, Unit::Percent, Some(percent)) if percent >= 999.95 => format!("{percent:.0}"),
        (_, Unit::Percent, Some(percent)) => units::percent(percent),
        (_, Unit::Seconds, Some(seconds)) => short_span(seconds),
        (_, _, Some(_)) => value.to_string(),
        _ => match value.as_str() {
            Some(text) => text::visible_within(text, width),
            None => text::visible_within(&value.to_string(), width),
        },
    }
}

/// CPU time as top writes it, but never wider than nine columns: from a thousand minutes on without
/// hundredths, from a thousand hours on in days.
fn clock(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    let (hours, minutes) = (whole / 3_600, whole / 60 % 60);
    match hours {
        _ if whole < 60_000 => units::cpu_time_exact(seconds),
        0..=999 => format!("{hours}:{minutes:02}:{:02}", whole % 60),
        _ => format!("{}d{:02}h", hours / 24, hours % 24),
    }
}

/// A span of time in at most six columns: `59s`, `59m59s`, `23h59m`, `999d`.
fn short_span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..=59 => format!("{whole}s"),
        60..=3_599 => format!("{}m{:02}s", whole / 60, whole % 60),
        3_600..=86_399 => format!("{}h{:02}m", whole / 3_600, whole / 60 % 60),
        _ => format!("{}d", whole / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::super::data::tests::proc;
    use super::*;
    use serde_json::json;

    const CHOICE: Choice = Choice {
        host_width: None,
        by_host: false,
        threads: true,
        full_command: true,
        pid_digits: 4,
        sorted_by: Column::Cpu,
    };

    fn headings(choice: Choice, width: u16) -> String {
        let by_host = choice.by_host;
        let headings = fit(choice, width).into_iter().map(|shown| heading(shown.column, by_host));
        headings.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn columns_fit_the_width() {
        let all = "PID USER PR NI VIRT RES SHR S THR %CPU %MEM TIME+ COMMAND";
        assert_eq!(headings(CHOICE, 200), all);
        assert_eq!(headings(CHOICE, 80), all.replace("PR ", ""));
        assert_eq!(headings(CHOICE, 60), "PID USER RES S %CPU %MEM TIME+ COMMAND");
        assert_eq!(headings(CHOICE, 40), "PID RES S %CPU %MEM COMMAND");
        assert_eq!(headings(CHOICE, 1), "PID %CPU COMMAND");
        let without = Choice { threads: false, sorted_by: Column::Swap, ..CHOICE };
        assert_eq!(
            headings(without, 100),
            "PID USER PR NI VIRT RES SHR S %CPU %MEM TIME+ SWAP COMMAND"
        );
        let many = Choice { host_width: Some(12), ..CHOICE };
        assert_eq!(headings(many, 200), format!("HOST {all}"));
        assert_eq!(headings(many, 80), "HOST PID USER RES S THR %CPU %MEM TIME+ COMMAND");
        let sorted = Choice { sorted_by: Column::Host, ..many };
        assert_eq!(headings(sorted, 200), format!("HOST {all}"));
        let by_host = Choice { by_host: true, ..many };
        assert_eq!(headings(by_host, 100), "HOST PROCS THR %CPU RES TIME+ LOAD AND MEMORY");
        for width in 0..300 {
            let shown = fit(CHOICE, width);
            let cells: u16 = shown.iter().map(|one| one.width + 1).sum();
            assert!(width < 24 || cells - 1 == width, "{cells} cells in {width}");
        }
    }

    #[test]
    fn cells() {
        let row = proc(
            42,
            1,
            &json!({
                "priority": -100, "vsize": 12_900_000, "rss": 0, "cpu": 3.149, "mem": 1600.0,
                "time": 75.5, "elapsed": 100_000.0, "user": "a\u{202e}b", "cmdline": "sh -c 'x\n'",
                "tty": null, "nice": -20,
            }),
        );
        let cases = [
            (Column::Pid, "42"),
            (Column::Priority, "rt"),
            (Column::Nice, "-20"),
            (Column::Vsize, "12.3M"),
            (Column::Rss, "0"),
            (Column::Cpu, "3.1"),
            (Column::Mem, "1600"),
            (Column::Time, "1:15.50"),
            (Column::Elapsed, "1d"),
            (Column::User, "a\\u{202e}b"),
            (Column::Cmdline, "sh -c 'x\\n'"),
            (Column::Tty, "-"),
            (Column::Swap, "-"),
        ];
        for (column, want) in cases {
            assert_eq!(cell(column, &row, 20), want, "for {column:?}");
        }
        assert_eq!(cell(Column::Cmdline, &row, 5), "sh -…");
    }

    #[test]
    fn cpu_time_stays_in_its_column() {
        let cases = [
            (0.0, "0:00.00"),
            (59_999.99, "999:59.99"),
            (60_000.0, "16:40:00"),
            (3_599_999.0, "999:59:59"),
            (3_600_000.0, "41d16h"),
        ];
        for (seconds, want) in cases {
            assert_eq!(clock(seconds), want, "for {seconds}");
        }
    }
}
