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

/// The most children that are listed.
const CHILDREN_MAX: usize = 200;

/// A title and the first column below it; a section ends where the next begins.
const SECTIONS: &[(&str, Column)] = &[
    ("Identity", Column::Id),
    ("User", Column::User),
    ("State", Column::State),
    ("Time", Column::Start),
    ("Faults and switches", Column::Minflt),
    ("Memory", Column::Vsize),
    ("Input and output", Column::ReadBytes),
    ("Program", Column::Comm),
    ("Container and unit", Column::Cgroup),
    ("Namespaces", Column::NsMnt),
    ("Privileges", Column::CapEff),
    ("Out of memory, waiting", Column::OomAdj),
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
            None => vec![Line::styled(format!("process {} has ended", id.pid), theme.bad())],
        },
        _ => vec![Line::from("reading…")],
    }
}

fn page_of(detail: &Detail, proc: &Proc, theme: Theme, width: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let mut section = 0;
    for column in Column::ALL.iter().copied().skip(Column::Id.index()) {
        if SECTIONS.get(section).is_some_and(|(_, first)| *first == column) {
            if section > 0 {
                lines.push(Line::default());
            }
            lines.push(Line::styled(SECTIONS[section].0, theme.strong()));
            section += 1;
        }
        let name = column.spec().name;
        match proc.value(column) {
            // The list says more than the line: which argument a blank belongs to.
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let text = visible_within(item.as_str().unwrap_or("?"), VALUE_COLUMNS_MAX);
                    let quoted = if text.is_empty() { "''".to_owned() } else { text };
                    value(&mut lines, &format!("{name}[{index}]"), &quoted, theme, width);
                }
            }
            one => value(&mut lines, name, &value_text(column, one), theme, width),
        }
    }
    lines.push(Line::default());
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
    fn sections_stand_in_the_order_of_the_columns() {
        let firsts: Vec<usize> = SECTIONS.iter().map(|(_, first)| first.index()).collect();
        assert!(firsts.is_sorted(), "a section that comes too early would never be shown");
    }
}
