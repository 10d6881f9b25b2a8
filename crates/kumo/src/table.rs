//! An answer as a table of text: cells, columns that line up, colours, and what fits the terminal.

use kumo_abi::proc::{Column as ProcColumn, PROC};
use kumo_abi::{Aggregate, Kind, Query, Row, Schema, Select, Unit};
use kumo_sys::LocalTime;
use serde_json::Value;

use crate::output::{Look, Output};
use crate::text;
use crate::units::{self, SizeStyle};

/// Widest that a column other than the last is padded to, and cut to on a terminal: one long path
/// must not push everything else away.
const COLUMN_WIDTH_MAX: usize = 40;

/// Narrowest that the last column is cut to; below that the whole line is cut.
const LAST_WIDTH_MIN: usize = 12;

/// How cells are written and lines laid out.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// How sizes are written.
    pub sizes: SizeStyle,
    /// The moment from which "today" and "this year" are told.
    pub now: LocalTime,
    /// Longest line in columns; `None` for no limit.
    pub width_max: Option<usize>,
    /// Whether a line of headings comes first.
    pub header: bool,
}

/// A column of a table on its way to the reader.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name in the answer.
    name: String,
    heading: String,
    kind: Kind,
    unit: Unit,
    /// The table column that the values are of, also under `sum` and `max`.
    base: Option<&'static str>,
}

impl Column {
    /// The columns of the answer to `query`.
    pub fn of(query: &Query) -> Vec<Column> {
        let column = |select: &Select| {
            let column = Column::new(select, &PROC);
            match column.base {
                // Minutes and seconds say nothing of a life of milliseconds.
                Some("time") if query.ended => Column { base: Some("lifetime"), ..column },
                _ => column,
            }
        };
        query.columns.iter().map(column).collect()
    }

    /// The columns of the answer to a query of another table.
    pub fn of_table(query: &Query, schema: &'static Schema) -> Vec<Column> {
        query.columns.iter().map(|select| Column::new(select, schema)).collect()
    }

    /// The column of the host, `tokyo/a`.
    pub fn host() -> Column {
        Column::new(&Select::Column(ProcColumn::Host.index()), &PROC)
    }

    fn new(select: &Select, schema: &'static Schema) -> Column {
        let name = select.name(schema);
        let (index, function) = match select {
            Select::Column(index) => (*index, None),
            Select::Aggregate(Aggregate::Sum(index)) => (*index, Some("SUM")),
            Select::Aggregate(Aggregate::Max(index)) => (*index, Some("MAX")),
            Select::Aggregate(Aggregate::Count) => {
                let heading = "COUNT".to_owned();
                return Column { name, heading, kind: Kind::Int, unit: Unit::None, base: None };
            }
        };
        let spec = &schema.columns[index];
        let heading = match function {
            None => spec.heading.to_owned(),
            Some(function) => format!("{function}({})", spec.heading),
        };
        Column { name, heading, kind: spec.kind, unit: spec.unit, base: Some(spec.name) }
    }

    fn is_right(&self) -> bool {
        self.kind.is_number()
    }

    /// The text of one cell, made visible; cut to `columns_max`.
    pub fn cell(&self, value: &Value, style: &Style, columns_max: usize) -> String {
        match (value, self.unit, self.base) {
            (Value::Null, _, Some("tty")) => "?".to_owned(),
            (Value::Null, ..) => "-".to_owned(),
            (Value::Bool(flag), ..) => if *flag { "yes" } else { "no" }.to_owned(),
            (Value::Number(number), Unit::Bytes, _) => match number.as_u64() {
                Some(bytes) => units::size(bytes, style.sizes),
                None => number.to_string(),
            },
            (Value::Number(number), unit, base) => {
                let float = number.as_f64().unwrap_or_default();
                match (unit, base) {
                    (Unit::Percent, _) => units::percent(float),
                    (Unit::Seconds, Some("time")) => units::cpu_time(float),
                    (Unit::Seconds, Some("elapsed")) => units::elapsed(float),
                    (Unit::Seconds, Some("lifetime")) => format!("{float:.3}"),
                    (Unit::Seconds, _) => format!("{float:.2}"),
                    _ => number.to_string(),
                }
            }
            (Value::String(text), _, Some("start" | "ended_at")) => {
                let at = units::unix_seconds(text).and_then(LocalTime::at);
                let short = at.map(|at| units::start(at, style.now));
                short.unwrap_or_else(|| text::visible_within(text, columns_max))
            }
            (Value::String(text), ..) => text::visible_within(text, columns_max),
            (Value::Array(items), ..) => text::visible_within(&shell_words(items), columns_max),
            (Value::Object(_), ..) => text::visible_within(&value.to_string(), columns_max),
        }
    }

    fn look(&self, value: &Value) -> Look {
        match (self.base, value) {
            (_, Value::Null) => Look::Dim,
            (Some("cpu" | "pcpu" | "mem"), Value::Number(number)) => {
                match number.as_f64().unwrap_or_default() {
                    share if share >= 80.0 => Look::Bad,
                    share if share >= 20.0 => Look::Warn,
                    0.0 => Look::Dim,
                    _ => Look::Plain,
                }
            }
            (Some("state" | "stat"), Value::String(state)) => match state.bytes().next() {
                Some(b'R') => Look::Good,
                Some(b'D' | b'T' | b't') => Look::Warn,
                Some(b'Z' | b'X') => Look::Bad,
                _ => Look::Plain,
            },
            (Some("cmdline"), Value::String(line)) if is_bracketed(line) => Look::Dim,
            _ => Look::Plain,
        }
    }
}

/// A kernel thread or a zombie: there is no command line, so the name stands in brackets.
fn is_bracketed(line: &str) -> bool {
    line.starts_with('[') && line.ends_with(']')
}

/// Arguments as a shell would read them back, but for what [`text::visible`] escapes later.
fn shell_words(items: &[Value]) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:=,+@%^".contains(c);
    let word = |item: &Value| match item {
        Value::String(word) if !word.is_empty() && word.chars().all(is_plain) => word.clone(),
        Value::String(word) => format!("'{}'", word.replace('\'', "'\\''")),
        other => other.to_string(),
    };
    items.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// The lines in front of each row of a tree, and the column that they stand in.
#[derive(Clone, Debug)]
pub struct Branches {
    /// Index of the column.
    pub column: usize,
    /// One for each row.
    pub prefixes: Vec<String>,
}

impl Branches {
    /// The column that shows best what a process is: its command line, else its name, else the last.
    pub fn column_of(columns: &[Column]) -> usize {
        let find = |name| columns.iter().position(|column| column.base == Some(name));
        find(ProcColumn::Cmdline.spec().name)
            .or_else(|| find(ProcColumn::Comm.spec().name))
            .unwrap_or(columns.len().saturating_sub(1))
    }
}

/// The lines of a table: one for each row, after one of headings if the style has them.
pub fn lines<'r>(
    columns: &[Column],
    rows: impl ExactSizeIterator<Item = &'r Row>,
    branches: Option<&Branches>,
    style: &Style,
    output: &Output,
) -> Vec<String> {
    let last = columns.len().saturating_sub(1);
    let mut grid: Vec<Vec<Cell>> = Vec::with_capacity(rows.len() + 1);
    if style.header {
        let heading = |column: &Column| Cell::new(column.heading.clone(), Look::Heading);
        grid.push(columns.iter().map(heading).collect());
    }
    for (index, row) in rows.enumerate() {
        let cells = columns.iter().enumerate().map(|(place, column)| {
            let columns_max = match style.width_max {
                None => usize::MAX,
                Some(max) if place == last => max,
                Some(_) => COLUMN_WIDTH_MAX,
            };
            let value = row.get(&column.name).unwrap_or(&Value::Null);
            let text = column.cell(value, style, columns_max);
            let branches = branches.filter(|branches| branches.column == place);
            let text = match branches.and_then(|branches| branches.prefixes.get(index)) {
                Some(prefix) => format!("{prefix}{text}"),
                None => text,
            };
            Cell::new(text, column.look(value))
        });
        grid.push(cells.collect());
    }
    let width = |place: usize| {
        let widest = grid.iter().map(|cells| cells[place].columns).max().unwrap_or(0);
        if columns[place].is_right() { widest } else { widest.min(COLUMN_WIDTH_MAX) }
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let before_last: usize = widths[..last].iter().map(|width| width + 1).sum();
    let fits = style.width_max.is_none_or(|max| before_last + LAST_WIDTH_MIN <= max);
    let line = |cells: Vec<Cell>| {
        let mut line = String::new();
        let mut at = 0;
        for (place, cell) in cells.into_iter().enumerate() {
            let is_last = place == last;
            let room = style.width_max.map(|max| max.saturating_sub(at));
            if room == Some(0) {
                break;
            }
            let cell_max = match (room, is_last) {
                (None, _) => None,
                (Some(room), true) => Some(room),
                // A line that cannot fit ends where the terminal does.
                (Some(room), false) if !fits => Some(room.min(widths[place])),
                (Some(_), false) => Some(widths[place]),
            };
            let cell = cell.cut(cell_max);
            let width = widths[place].min(room.unwrap_or(usize::MAX));
            let pad = " ".repeat(width.saturating_sub(cell.columns));
            let styled = output.styled(cell.look, &cell.text);
            match (columns[place].is_right(), is_last) {
                (true, _) => line.extend([pad.as_str(), &styled]),
                (false, false) => line.extend([styled.as_str(), &pad]),
                (false, true) => line.push_str(&styled),
            }
            at += cell.columns + pad.len();
            if !is_last && style.width_max.is_none_or(|max| at < max) {
                line.push(' ');
                at += 1;
            }
        }
        line
    };
    grid.into_iter().map(line).collect()
}

struct Cell {
    text: String,
    columns: usize,
    look: Look,
}

impl Cell {
    fn new(text: String, look: Look) -> Cell {
        Cell { columns: text::columns(&text), text, look }
    }

    fn cut(self, columns_max: Option<usize>) -> Cell {
        match columns_max {
            Some(max) if self.columns > max => {
                Cell::new(text::visible_within(&self.text, max), self.look)
            }
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ColorChoice;
    use kumo_abi::QueryText;
    use serde_json::json;

    const NOW: LocalTime =
        LocalTime { year: 2025, month: 3, day: 9, hour: 12, minute: 30, second: 1 };

    fn style(width_max: Option<usize>) -> Style {
        Style { sizes: SizeStyle::Human, now: NOW, width_max, header: true }
    }

    fn columns(names: &str) -> Vec<Column> {
        let text = QueryText { columns: Some(names.to_owned()), ..QueryText::default() };
        Column::of(&Query::parse(&text, &PROC, "").expect("known columns"))
    }

    fn rows(rows: Value) -> Vec<Row> {
        serde_json::from_value(rows).expect("an array of objects")
    }

    fn drawn(names: &str, value: Value, width_max: Option<usize>) -> String {
        let output = Output::stdout(ColorChoice::Never);
        let rows = rows(value);
        lines(&columns(names), rows.iter(), None, &style(width_max), &output).join("\n")
    }

    #[test]
    fn cells() {
        let cases = [
            ("rss", json!(12_900_000), "12.3M"),
            ("sum(rss)", json!(12_900_000), "12.3M"),
            ("count()", json!(7), "7"),
            ("cpu", json!(12.34), "12.3"),
            ("cpu", json!(3), "3.0"),
            ("time", json!(61.5), "1:01"),
            ("max(time)", json!(61.5), "1:01"),
            ("utime", json!(61.5), "61.50"),
            ("elapsed", json!(61.5), "01:01"),
            ("tty", Value::Null, "?"),
            ("exe", Value::Null, "-"),
            ("kernel", json!(true), "yes"),
            ("nice", json!(-5), "-5"),
            ("user", json!("ro\not"), "ro\\not"),
            ("start", json!("not a time"), "not a time"),
            (
                "argv",
                json!(["sh", "-c", "", "a b", "it's", "\n"]),
                "sh -c '' 'a b' 'it'\\''s' '\\n'",
            ),
        ];
        for (name, value, want) in cases {
            let columns = columns(name);
            assert_eq!(columns[0].cell(&value, &style(None), 200), want, "for {name} {value}");
        }
    }

    #[test]
    fn a_table_lines_up_and_fits() {
        let processes = json!([
            {"pid": 1, "user": "root", "rss": 1024, "cmdline": "/sbin/init splash"},
            {"pid": 4711, "user": "日本", "rss": null, "cmdline": "x\u{1b}[2Jy"},
        ]);
        let names = "pid,user,rss,cmdline";
        let whole = " PID USER  RSS COMMAND\n   1 root 1.0K /sbin/init splash\n\
                     4711 日本    - x\\x1b[2Jy";
        assert_eq!(drawn(names, processes.clone(), None), whole);
        let narrow = " PID USER  RSS COMMAND\n   1 root 1.0K /sbin/init …\n\
                      4711 日本    - x\\x1b[2Jy";
        assert_eq!(drawn(names, processes.clone(), Some(27)), narrow);
        for width in 1..40 {
            for line in drawn(names, processes.clone(), Some(width)).lines() {
                assert!(text::columns(line) <= width, "{line:?} in {width}");
            }
        }
    }

    #[test]
    fn a_long_cell_that_is_not_the_last_is_cut_on_a_terminal_only() {
        let processes = json!([{"cmdline": "y".repeat(50), "pid": 7}]);
        let wide = drawn("cmdline,pid", processes.clone(), None);
        assert!(wide.ends_with(&format!("{}   7", "y".repeat(50))), "{wide}");
        let cut = drawn("cmdline,pid", processes, Some(80));
        assert!(cut.ends_with(&format!("{}…   7", "y".repeat(39))), "{cut}");
    }

    #[test]
    fn a_tree_stands_in_the_command() {
        let output = Output::stdout(ColorChoice::Never);
        let columns = columns("cmdline,pid");
        let branches = Branches {
            column: Branches::column_of(&columns),
            prefixes: vec![String::new(), "`- ".to_owned()],
        };
        let rows = rows(json!([{"pid": 1, "cmdline": "a"}, {"pid": 2, "cmdline": "b"}]));
        let style = Style { header: false, ..style(None) };
        let drawn = lines(&columns, rows.iter(), Some(&branches), &style, &output);
        assert_eq!(drawn, ["a    1", "`- b 2"]);
    }

    #[test]
    fn no_rows_leave_the_headings() {
        assert_eq!(drawn("pid,cmdline", json!([]), None), "PID COMMAND");
    }
}
