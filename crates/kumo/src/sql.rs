//! `kumo sql`: queries over the tables of a host, or of many, in SQL.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use k2i::sql::{Sight, TABLES, limits};
use kumo_abi::Row;
use kumo_abi::closest;
use kumo_sql::{SQL_BYTES_MAX, TIME_DEFAULT, TIME_MAX, Table};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::callee;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::grid::{self, Cell};
use crate::many::Asked;
use crate::output::{Look, Output};
use crate::scope::Scope;
use crate::source::{Ask, Source, SourceArgs, SourceError};
use crate::text;

/// Ask in SQL, over tables with the names and columns of osquery
#[derive(Clone, Debug, clap::Args)]
pub struct Sql {
    /// The query: one SELECT, in the dialect of SQLite. Without it, standard input
    #[arg(value_name = "QUERY", conflicts_with = "file")]
    query: Option<String>,
    /// Read the query from this file
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print the rows as CSV, with a line of names first
    #[arg(long)]
    csv: bool,
    /// Give it at most this long: 500ms, 30s, up to 60s; 10s without
    #[arg(long, value_name = "TIME", value_parser = time)]
    time: Option<Duration>,
    /// List the tables
    #[arg(long, conflicts_with_all = ["query", "file", "schema"])]
    tables: bool,
    /// List the columns of a table, or of all; `SELECT *` leaves out those that are hidden
    #[arg(long, value_name = "TABLE", num_args = 0..=1, conflicts_with_all = ["query", "file"])]
    #[expect(clippy::option_option, reason = "with a table or without: clap tells them apart so")]
    schema: Option<Option<String>>,
    /// Which hosts.
    #[command(flatten)]
    pub scope: Scope,
    /// Where to ask.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo sql 'SELECT pid, name, resident_size FROM processes ORDER BY resident_size DESC LIMIT 5'
  kumo sql 'SELECT * FROM processes WHERE on_disk = 0'        programs whose file was deleted
  kumo sql --all 'SELECT dc, host, count(*) FROM processes GROUP BY dc, host'
  kumo sql \"SELECT name, current_value FROM system_controls WHERE name LIKE 'net.ipv4.%'\" --csv
  kumo sql -f query.sql --json
  kumo sql --tables; kumo sql --schema processes

Nothing is written, whatever the query says. Over many hosts, join by dc and host, too. Exit status: 0 done,
1 failed, 2 the query is wrong, 3 some hosts did not answer.";

/// How long a query may take, as budgets of calls are written.
fn time(text: &str) -> Result<Duration, String> {
    match callee::budget(text)? {
        time if time > TIME_MAX => Err(format!("{}s is the most", TIME_MAX.as_secs())),
        time => Ok(time),
    }
}

/// Whether the tables are asked for, which needs nobody.
pub fn lists_tables(args: &Sql) -> bool {
    args.tables || args.schema.is_some()
}

/// Lists the tables, or the columns of one.
///
/// # Errors
/// See [`CommandError`].
pub fn list_tables(args: &Sql, out: &mut Output) -> Result<Exit, CommandError> {
    let Some(schema) = &args.schema else {
        let row = |table: &Table| vec![Cell::new(table.name), Cell::new(table.about)];
        let rows = std::iter::once(grid::headings(&["TABLE", "ABOUT"]));
        return print(rows.chain(TABLES.iter().map(row)).collect(), out);
    };
    let meant =
        |table: &&Table| schema.as_ref().is_none_or(|name| table.name.eq_ignore_ascii_case(name));
    let tables: Vec<&Table> = TABLES.iter().filter(meant).collect();
    if let (Some(name), true) = (schema, tables.is_empty()) {
        let near = closest(name, TABLES.iter().map(|table| table.name));
        let hint = near.map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
        let what = format!("there is no table `{name}`{hint}; `kumo sql --tables` lists them");
        return Err(CommandError::Usage(what));
    }
    let mut rows = vec![grid::headings(&["TABLE", "COLUMN", "TYPE", "HIDDEN", "ABOUT"])];
    for table in tables {
        for column in table.columns {
            // Names that `SELECT *` leaves out.
            let (hidden, look) =
                if column.is_hidden { ("yes", Look::Dim) } else { ("", Look::Plain) };
            let cells = [table.name, column.name, column.kind.name(), hidden, column.about];
            rows.push(cells.map(|text| Cell::new(text).look(look)).to_vec());
        }
    }
    print(rows, out)
}

fn print(rows: Vec<Vec<Cell>>, out: &mut Output) -> Result<Exit, CommandError> {
    for line in grid::lines(rows, out.size().map(|(columns, _)| columns), out) {
        out.line(line)?;
    }
    Ok(Exit::Done)
}

/// What an answer says.
#[derive(Debug, Deserialize)]
struct Answer {
    /// Who is in it, where many were asked.
    #[serde(default)]
    hosts: Option<Asked>,
    #[serde(default)]
    notes: Vec<String>,
    columns: Vec<String>,
    rows: Vec<Row>,
}

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Sql, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let query = query(args)?;
    let time = args.time.unwrap_or(TIME_DEFAULT);
    let document = ask(args, source, &query, time)?;
    let answer: Answer =
        serde_json::from_slice(&document).map_err(|error| source.unreadable(error))?;
    if args.json {
        out.writer().write_all(&document)?;
        out.line("")?;
    } else if args.csv {
        let is_terminal = out.is_terminal();
        out.line(line_of_csv(
            answer.columns.iter().map(|name| Value::from(name.as_str())),
            is_terminal,
        ))?;
        for row in &answer.rows {
            out.line(line_of_csv(
                answer.columns.iter().map(|name| row[name].clone()),
                is_terminal,
            ))?;
        }
    } else {
        let names: Vec<&str> = answer.columns.iter().map(String::as_str).collect();
        let row = |row: &Row| names.iter().map(|name| cell(&row[*name])).collect::<Vec<Cell>>();
        let mut rows = vec![grid::headings(&names)];
        rows.extend(answer.rows.iter().map(row));
        print(rows, out)?;
    }
    for note in &answer.notes {
        out.warn(note);
    }
    match answer.hosts {
        Some(hosts) => Ok(hosts.tell(Exit::Done, out)),
        None => Ok(Exit::Done),
    }
}

fn ask(args: &Sql, source: &Source, query: &str, time: Duration) -> Result<Vec<u8>, CommandError> {
    if let Source::Direct(engine, lines) = source {
        let limits = limits(time);
        let engine = std::sync::Arc::clone(engine);
        // Who runs this command reads what the kernel lets him read.
        let sight = Sight { lines: *lines, ..Sight::ALL };
        let answer = k2i::sql::document(engine, sight, query, &limits, &limits.begin());
        return Ok(answer.map_err(SourceError::Sql)?);
    }
    let mut parameters = String::new();
    args.scope.push(&mut parameters);
    let path = if args.scope.is_many() { "/v2/all/sql" } else { "/v2/sql" };
    let path = if parameters.is_empty() { path.to_owned() } else { format!("{path}?{parameters}") };
    let document = json!({ "query": query, "time_ms": time.as_millis() as u64 });
    let ask = Ask::post(path, &document).that_waits(time);
    Ok(source.bytes(&ask)?)
}

/// The query, from wherever it comes.
fn query(args: &Sql) -> Result<String, CommandError> {
    let read = |what: &str, from: &mut dyn io::Read| -> Result<String, CommandError> {
        let mut text = String::new();
        // One byte more shows that it is too long.
        let read = from.take(SQL_BYTES_MAX as u64 + 1).read_to_string(&mut text);
        read.map_err(|error| CommandError::Input(what.to_owned(), error))?;
        Ok(text)
    };
    match (&args.query, &args.file) {
        (Some(query), _) if query != "-" => Ok(query.clone()),
        (_, Some(file)) => {
            let name = file.display().to_string();
            let opened = fs::File::open(file);
            read(&name, &mut opened.map_err(|error| CommandError::Input(name.clone(), error))?)
        }
        (None, None) if io::stdin().is_terminal() => {
            let what =
                "which query? `kumo sql --help` has examples, `kumo sql --tables` the tables";
            Err(CommandError::Usage(what.to_owned()))
        }
        _ => read("standard input", &mut io::stdin().lock()),
    }
}

fn cell(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::unknown(),
        Value::String(text) => Cell::new(text),
        number => Cell::new(number.to_string()).right(),
    }
}

/// A line as RFC 4180 has it; null is an empty field. On a terminal, texts are made visible.
fn line_of_csv(values: impl Iterator<Item = Value>, is_terminal: bool) -> String {
    let field = |value: Value| {
        let plain = match value {
            Value::Null => return String::new(),
            Value::String(text) => text,
            other => other.to_string(),
        };
        let plain = if is_terminal { text::visible(&plain).into_owned() } else { plain };
        if plain.contains([',', '"', '\n', '\r']) || plain.is_empty() {
            format!("\"{}\"", plain.replace('"', "\"\""))
        } else {
            plain
        }
    };
    values.map(field).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_csv() {
        let values =
            [json!(null), json!(""), json!("a,b"), json!("x\"y\nz"), json!(1.5), json!("p")];
        let want = ",\"\",\"a,b\",\"x\"\"y\nz\",1.5,p";
        assert_eq!(line_of_csv(values.into_iter(), false), want);
        // A terminal gets nothing that it would obey.
        let hostile = [json!("a\u{1b}[2J")];
        assert!(!line_of_csv(hostile.into_iter(), true).contains('\u{1b}'));
    }
}
