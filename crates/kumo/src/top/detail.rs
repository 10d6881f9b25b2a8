//! All about one process: every column, in sections, and its place in the tree.

use kumo_abi::Unit;
use kumo_abi::proc::Column;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use serde_json::Value;

use super::data::{Detail, Extra, Proc};
use super::help::fold;
use super::state::{Mode, State};
use super::theme::Theme;
use crate::text::{columns, visible, visible_within};
use crate::units::{self, SizeStyle};

/// Lines for the title above and the keys below.
const FRAME_LINES: usize = 2;

/// Columns that a name takes.
const NAME_WIDTH: usize = 18;

/// The longest text of one value that is shown; the rest of a command line of megabytes is for
/// `kumo ps --json`.
const VALUE_COLUMNS_MAX: usize = 16 * 1024;

/// The most arguments that are listed one by one.
const ARGUMENTS_MAX: usize = 64;

/// The most children that are listed.
const CHILDREN_MAX: usize = 200;

/// Titles, and the first and the last column below each, in the order shown: what people look for
/// first. The columns between are those of the schema.
const SECTIONS: &[(&str, Column, Column)] = &[
    ("Identity", Column::Id, Column::Tpgid),
    ("Program", Column::Comm, Column::Root),
    ("User", Column::User, Column::Loginuid),
    ("State", Column::State, Column::Flags),
    ("Time", Column::Start, Column::RunDelay),
    ("Memory", Column::Vsize, Column::Text),
    ("Faults and switches", Column::Minflt, Column::Ivcsw),
    ("Input and output", Column::ReadBytes, Column::Wchar),
    ("Container and unit", Column::Cgroup, Column::Slice),
    ("Namespaces", Column::NsMnt, Column::NsTime),
    ("Privileges", Column::CapEff, Column::NoNewPrivs),
    ("Out of memory, waiting", Column::OomAdj, Column::Wchan),
];

/// How many lines are shown at once.
pub(super) fn page(state: &State) -> usize {
    usize::from(state.size.1).saturating_sub(FRAME_LINES).max(1)
}

/// All lines, folded to the width of the terminal; empty unless a process is looked at.
pub(super) fn lines(state: &State) -> Vec<Line<'static>> {
    let theme = Theme::new(state.color);
    let id = match &state.mode {
        Mode::Detail { id, .. } => *id,
        Mode::Kill(kill) if kill.from_detail => kill.id,
        _ => return Vec::new(),
    };
    let extra = state.snapshot.as_ref().map(|snapshot| &snapshot.extra);
    match extra {
        Some(Extra::Detail(detail)) if detail.id.same(&id) => match &detail.proc {
            Some(proc) => page_of(detail, proc, theme, usize::from(state.size.0)),
            None => {
                vec![Line::styled(format!("process {} has ended", state.name(id)), theme.bad())]
            }
        },
        _ => vec![Line::from("reading…")],
    }
}

fn page_of(detail: &Detail, proc: &Proc, theme: Theme, width: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for (title, first, last) in SECTIONS {
        lines.push(Line::styled(*title, theme.strong()));
        for column in &Column::ALL[first.index()..=last.index()] {
            column_lines(&mut lines, *column, proc, theme, width);
        }
        lines.push(Line::default());
    }
    lines.push(Line::styled("Ancestors, the parent first", theme.strong()));
    lines.extend(detail.ancestors.iter().map(|one| relative(one, theme, width)));
    lines.push(Line::default());
    let count = detail.children.len();
    lines.push(Line::styled(format!("Children: {count}"), theme.strong()));
    lines.extend(detail.children.iter().take(CHILDREN_MAX).map(|one| relative(one, theme, width)));
    if count > CHILDREN_MAX {
        lines.push(Line::styled(format!("  … and {} more", count - CHILDREN_MAX), theme.dim()));
    }
    lines
}

fn column_lines(
    lines: &mut Vec<Line<'static>>,
    column: Column,
    proc: &Proc,
    theme: Theme,
    width: usize,
) {
    let name = column.spec().name;
    let Value::Array(items) = proc.value(column) else {
        let text = value_text(column, proc.value(column));
        return value(lines, name, &text, theme, width);
    };
    // The list says more than the line: which argument a blank belongs to.
    for (index, item) in items.iter().enumerate().take(ARGUMENTS_MAX) {
        let text = visible_within(item.as_str().unwrap_or("?"), VALUE_COLUMNS_MAX);
        let shown = if text.is_empty() { "''" } else { &text };
        value(lines, &format!("{name}[{index}]"), shown, theme, width);
    }
    if items.len() > ARGUMENTS_MAX {
        let more = format!("… and {} more", items.len() - ARGUMENTS_MAX);
        value(lines, "", &more, theme, width);
    }
}

fn value(lines: &mut Vec<Line<'static>>, name: &str, text: &str, theme: Theme, width: usize) {
    let name_width = NAME_WIDTH.min(width / 2);
    let mut label = format!("  {:<1$}", visible_within(name, name_width), name_width);
    for part in fold(text, width.saturating_sub(name_width + 2)) {
        let blank = " ".repeat(columns(&label));
        let label = std::mem::replace(&mut label, blank);
        let style = if text == "-" { theme.dim() } else { Style::new() };
        lines.push(Line::from(vec![Span::styled(label, theme.label()), Span::styled(part, style)]));
    }
}

fn relative(proc: &Proc, theme: Theme, width: usize) -> Line<'static> {
    let user = visible(proc.value(Column::User).as_str().unwrap_or("?")).into_owned();
    let comm = visible(proc.value(Column::Comm).as_str().unwrap_or("?")).into_owned();
    let pid = format!("  {:>7}  ", proc.id.pid);
    let text = visible_within(&format!("{user:<10} {comm}"), width.saturating_sub(pid.len()));
    Line::from(vec![Span::styled(pid, theme.label()), Span::raw(text)])
}

/// A value with its unit, for reading, and exact behind it where rounding hides something.
fn value_text(column: Column, value: &Value) -> String {
    match (column.spec().unit, value) {
        (_, Value::Null) => "-".to_owned(),
        (_, Value::String(text)) => visible_within(text, VALUE_COLUMNS_MAX),
        (Unit::Bytes, Value::Number(number)) => {
            let bytes = number.as_u64().unwrap_or(0);
            let size = units::size(bytes, SizeStyle::Human);
            if bytes < 1024 { format!("{bytes} bytes") } else { format!("{size} ({bytes} bytes)") }
        }
        (Unit::Seconds, Value::Number(number)) => {
            let seconds = number.as_f64().unwrap_or(0.0);
            let span = units::span(seconds);
            if seconds < 60.0 {
                format!("{seconds:.3} s")
            } else {
                format!("{span} ({seconds:.3} s)")
            }
        }
        (Unit::Percent, Value::Number(number)) => {
            format!("{:.2} %", number.as_f64().unwrap_or(0.0))
        }
        (_, Value::Bool(flag)) => if *flag { "yes" } else { "no" }.to_owned(),
        (_, other) => visible_within(&other.to_string(), VALUE_COLUMNS_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_have_units() {
        let cases = [
            (Column::Rss, json!(12_900_000), "12.3M (12900000 bytes)"),
            (Column::Rss, json!(17), "17 bytes"),
            (Column::Time, json!(3.25), "3.250 s"),
            (Column::Elapsed, json!(75.5), "1 min 15 s (75.500 s)"),
            (Column::Cpu, json!(12.345), "12.35 %"),
            (Column::Kernel, json!(true), "yes"),
            (Column::Exe, json!("/tmp/\u{1b}[2J"), "/tmp/\\x1b[2J"),
            (Column::Tty, json!(null), "-"),
            (Column::Pid, json!(7), "7"),
        ];
        for (column, value, want) in cases {
            assert_eq!(value_text(column, &value), want, "for {column:?}");
        }
    }

    #[test]
    fn every_column_of_a_process_stands_in_one_section() {
        let mut seen: Vec<usize> =
            SECTIONS.iter().flat_map(|(_, first, last)| first.index()..=last.index()).collect();
        seen.sort_unstable();
        // The last columns are about how a process ended, and these live.
        let wanted: Vec<usize> = (Column::Id.index()..Column::EndedAt.index()).collect();
        assert_eq!(seen, wanted);
    }
}
