//! `kumo ps`: the processes, as a table, a tree or JSON.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k2i::Format;
use kumo_abi::proc::{COLUMNS_DEFAULT, Column as ProcColumn, PROC};
use kumo_abi::{Query, QueryText, Row, Select};
use kumo_sys::LocalTime;

use crate::cel;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::forest::{self, Lines};
use crate::listing;
use crate::many::{self, Asked, Progress};
use crate::output::{Look, Output};
use crate::scope::Scope;
use crate::source::{Reading, Source, SourceArgs};
use crate::table::{self, Branches, Column, Style};
use crate::text;
use crate::units::SizeStyle;
use crate::when::Moment;

/// The columns of the table when none are named: those of `ps auwx`.
const TABLE_COLUMNS: &str = "user,pid,cpu,mem,vsize,rss,tty,stat,start,time";

/// The same of processes that have ended.
const TABLE_ENDED_COLUMNS: &str =
    "user,pid,ppid,exit_code,exit_signal,lifetime,time,max_rss,ended_at,comm";

/// The column that ends it; it takes what is left of the line.
const TABLE_LAST: &str = "cmdline";

/// Columns of a table where the system does not know the time: never seen, but not our panic.
const EPOCH: LocalTime = LocalTime { year: 1970, month: 1, day: 1, hour: 0, minute: 0, second: 0 };

/// List processes, as `ps auwx` does, and far more
#[derive(Clone, Debug, clap::Args)]
pub struct Ps {
    /// Processes to show, by number, and columns to add: 4711, +exe. All processes without a number
    #[arg(value_name = "PID|+COLUMN")]
    what: Vec<What>,
    /// Columns to show, in order: pid,user,cpu or user,count(),sum(rss)
    #[arg(short = 'o', long = "format", value_name = "COLUMNS")]
    columns: Option<String>,
    /// Only processes that fulfil this condition (CEL): 'cpu > 50.0 && user == "www-data"'
    #[arg(short, long, value_name = "CEL")]
    filter: Option<String>,
    /// Sort by these columns; `-` in front for high to low: -cpu,pid
    #[arg(short, long, value_name = "COLUMNS", allow_hyphen_values = true)]
    sort: Option<String>,
    /// Show at most this many rows
    #[arg(short = 'n', long, value_name = "ROWS")]
    limit: Option<String>,
    /// One row for each value of these columns, with their number and what -o asks for
    #[arg(short, long, value_name = "COLUMNS")]
    group: Option<String>,
    /// Processes that have ended, as far as the node remembers them, the last one last. A node takes
    /// note of them while it runs
    #[arg(long, conflicts_with = "tree")]
    ended: bool,
    /// The processes of an earlier moment, as the node recorded them: '10 min ago', -10m, 12:30,
    /// 2026-11-28T12:30:00Z
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with_all = ["ended", "watch"])]
    at: Option<Moment>,
    /// Show who started whom
    #[arg(short, long, conflicts_with_all = ["group", "json", "ndjson"])]
    tree: bool,
    /// Draw trees with ASCII characters
    #[arg(long, requires = "tree")]
    ascii: bool,
    /// Print the whole answer as one JSON object
    #[arg(long)]
    json: bool,
    /// Print each row as a JSON object on a line of its own
    #[arg(long, conflicts_with = "json")]
    ndjson: bool,
    /// Show it again and again, every second or every SECS
    #[arg(short, long, value_name = "SECS", num_args = 0..=1, default_missing_value = "1")]
    watch: Option<Seconds>,
    /// List every column with its kind, its unit and its meaning
    #[arg(long = "columns", alias = "columns-list")]
    list_columns: bool,
    /// Print no line of headings
    #[arg(long)]
    no_header: bool,
    /// Cut no line to the width of the terminal
    #[arg(long, short = 'W')]
    wide: bool,
    /// How to write sizes: human (9.8K, 12.3M), kib (as `ps` does) or bytes. Without it: human on a
    /// terminal, kib into a pipe
    #[arg(long, value_name = "STYLE", hide_possible_values = true)]
    sizes: Option<SizeStyle>,
    /// Which hosts.
    #[command(flatten)]
    pub scope: Scope,
    /// Where to ask.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// A positional argument.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Pid(i32),
    Column(String),
}

impl FromStr for What {
    type Err = String;
    fn from_str(text: &str) -> Result<What, String> {
        if let Some(column) = text.strip_prefix('+').filter(|column| !column.is_empty()) {
            return Ok(What::Column(column.to_owned()));
        }
        let pid = text.parse().ok().filter(|pid| *pid > 0);
        pid.map(What::Pid).ok_or_else(|| {
            "write a process number such as 4711 or a column to add such as +exe; \
             to search by name there is `kumo pgrep`"
                .to_owned()
        })
    }
}

/// A span between two readings.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seconds(Duration);

impl FromStr for Seconds {
    type Err = String;
    fn from_str(text: &str) -> Result<Seconds, String> {
        let seconds = text.parse().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds));
        let duration = seconds.map(Duration::from_secs_f64);
        duration.map(Seconds).ok_or_else(|| "write seconds from 0.1 to 86400".to_owned())
    }
}

/// What to ask, and how the answer is shown.
struct Plan {
    text: QueryText,
    columns: Vec<Column>,
    pids: Vec<i32>,
    /// Each process that was named has a row, if it is there.
    row_each: bool,
    /// The rows are of many hosts, and the first column of the table is theirs: `tokyo/a`.
    host_first: bool,
    /// Rows come in no order of their own, so that they are put in that of their hosts.
    by_host: bool,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo ps                                        every process, as `ps auwx`
  kumo ps --sort -rss -n 10                      the ten largest
  kumo ps --filter 'cpu > 50.0'                  who is busy
  kumo ps --filter 'user == \"www-data\" && cmdline.contains(\"php\")'
  kumo ps -o pid,user,container,cmdline +exe     chosen columns; --columns names them
  kumo ps --group user -o 'user,count(),sum(rss)' --sort '-sum(rss)'
  kumo ps --tree                                 who started whom
  kumo ps --json | jq '.rows[].pid'              for programs
  kumo ps --watch --sort -cpu -n 20              again every second
  kumo ps --ended --filter 'exit_code != 0'      which processes failed
  kumo ps --at '10 min ago' --sort -cpu -n 10    who was busy then
  kumo ps --all --sort -cpu -n 20                the busiest of all hosts
  kumo ps --dc tokyo,osaka --group dc,host -o 'dc,host,count(),sum(rss)'
  kumo ps --where '\"rack=3\" in labels' --filter 'comm == \"nginx\"'

Exit status: 0 done, 1 failed or none of the PIDs found, 2 wrong usage, 3 some of them not found, or
some hosts missing from the answer; it is said which and why.
In a table `-` is a value that is not there or that you may not see. Control characters in names
are shown as \\n, \\x1b, \\u{202e}; JSON has the exact text.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Ps, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let plan = args.plan()?;
    let Some(Seconds(pause)) = args.watch else { return show(args, &plan, source, out) };
    loop {
        let shown = watch_once(args, &plan, source, out);
        match shown {
            Err(error) if error.is_broken_pipe() || error.exit() == Exit::Usage => {
                return Err(error);
            }
            // The next reading may succeed: a node restarts, a full table becomes smaller.
            Err(error) => out.warn(crate::chain(&error)),
            Ok(()) => {}
        }
        std::thread::sleep(pause);
    }
}

/// Whether it only lists columns, for which nothing is asked.
pub fn lists_columns(args: &Ps) -> bool {
    args.list_columns
}

/// How often it asks.
pub fn reading(args: &Ps) -> Reading {
    if args.watch.is_some() { Reading::Again } else { Reading::Once }
}

/// Lists every column.
///
/// # Errors
/// Standard output.
pub fn list_columns(out: &mut Output) -> Result<Exit, CommandError> {
    listing::list_columns(&PROC, out)
}

impl Ps {
    fn plan(&self) -> Result<Plan, CommandError> {
        let mut pids: Vec<i32> = Vec::new();
        let mut added: Vec<&str> = Vec::new();
        for what in &self.what {
            match what {
                What::Pid(pid) if !pids.contains(pid) => pids.push(*pid),
                What::Pid(_) => {}
                What::Column(column) => added.push(column),
            }
        }
        let is_json = self.json || self.ndjson;
        let mut text = QueryText {
            columns: self.select(&added, is_json),
            filter: self.condition(&pids)?,
            sort: self.sort.clone(),
            limit: self.limit.clone(),
            group: self.group.clone(),
            ended: self.ended,
            at: self.at.map(|Moment(at)| at.to_string()),
        };
        // A host that is asked for what it does not know would say so too, but this way nothing is
        // sent, and the units are known here.
        let query = Query::parse(&text, &PROC, COLUMNS_DEFAULT)?;
        let mut columns = Column::of(&query);
        let is_many = self.scope.is_many();
        let is_of_host = |select: &Select| {
            let of_host = [ProcColumn::Dc, ProcColumn::Host].map(ProcColumn::index);
            matches!(select, Select::Column(index) if of_host.contains(index))
        };
        let plain_many = is_many && !query.is_grouped();
        let host_first = plain_many && !query.columns.iter().any(is_of_host);
        let mut needed: Vec<&str> = Vec::new();
        if self.tree {
            if query.is_grouped() {
                let what = "a tree is made of processes, not of groups; leave out the aggregates";
                return Err(CommandError::Usage(what.to_owned()));
            }
            needed.extend(["pid", "ppid"]);
        }
        if !pids.is_empty() && !query.is_grouped() {
            needed.push("pid");
        }
        if !is_json || (plain_many && text.columns.is_some()) {
            // Rows of many hosts have their host in front, whether it is asked for or not.
            let names = query.columns.iter().filter(|select| !(plain_many && is_of_host(select)));
            let mut names: Vec<String> = names.map(|select| select.name(&PROC)).collect();
            if plain_many && names.is_empty() {
                needed.push("pid");
            }
            for name in needed.into_iter().filter(|_| !is_json || plain_many) {
                if !names.iter().any(|known| known == name) {
                    names.push(name.to_owned());
                }
            }
            text.columns = Some(names.join(","));
        }
        if host_first {
            columns.insert(0, Column::host());
        }
        let narrowed = self.filter.is_some() || self.limit.is_some();
        let row_each = !pids.is_empty() && !narrowed && !query.is_grouped();
        let by_host = plain_many && (self.sort.is_none() || self.tree);
        Ok(Plan { text, columns, pids, row_each, host_first, by_host })
    }

    /// The columns to ask for; `None` leaves the choice to the one parser.
    fn select(&self, added: &[&str], is_json: bool) -> Option<String> {
        let given = self.columns.as_deref().map(str::trim);
        // `-o +exe` adds to the default, as `+exe` does.
        let (given, added) = match given.and_then(|given| given.strip_prefix('+')) {
            Some(first) => (None, [&[first], added].concat()),
            None => (given, added.to_vec()),
        };
        match (given, is_json || self.group.is_some()) {
            (Some(given), _) => Some([&[given], added.as_slice()].concat().join(",")),
            (None, true) if added.is_empty() => None,
            (None, true) => Some(format!("+{}", added.join(","))),
            (None, false) => {
                // The command line stays at the end, where it has room.
                let names = || added.iter().flat_map(|names| names.split(','));
                let usual = if self.ended { TABLE_ENDED_COLUMNS } else { TABLE_COLUMNS };
                let mut columns = vec![usual];
                let known = |name: &&str| {
                    let name = name.trim();
                    !usual.split(',').any(|column| column == name)
                };
                columns.extend(names().filter(known));
                if !names().any(|name| name.trim() == TABLE_LAST) {
                    columns.push(TABLE_LAST);
                }
                Some(columns.join(","))
            }
        }
    }

    fn condition(&self, pids: &[i32]) -> Result<Option<String>, CommandError> {
        if pids.is_empty() {
            return Ok(self.filter.clone());
        }
        let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
        let mut conditions = vec![format!("pid in [{}]", pids.join(","))];
        if let Some(filter) = &self.filter {
            conditions.push(cel::typed(filter)?);
        }
        Ok(Some(cel::all_of(&conditions)?))
    }

    fn style(&self, out: &Output) -> Style {
        let width = out.size().map(|(columns, _)| columns);
        let for_people = if out.is_terminal() { SizeStyle::Human } else { SizeStyle::Kib };
        Style {
            sizes: self.sizes.unwrap_or(for_people),
            now: local_now(),
            width_max: width.filter(|_| !self.wide),
            header: !self.no_header,
        }
    }

    fn lines(&self, plan: &Plan, rows: &[Row], style: &Style, out: &Output) -> Vec<String> {
        let mut in_order: Vec<&Row> = rows.iter().collect();
        let branches = self.tree.then(|| {
            let leaves = forest::order(&family(rows));
            in_order = leaves.iter().map(|leaf| &rows[leaf.index]).collect();
            let drawn = if self.ascii { Lines::Ascii } else { Lines::Unicode };
            let prefixes = leaves.iter().map(|leaf| leaf.prefix(drawn)).collect();
            Branches { column: Branches::column_of(&plan.columns), prefixes }
        });
        table::lines(&plan.columns, in_order.into_iter(), branches.as_ref(), style, out)
    }

    /// The rows, and who they are of where many hosts were asked.
    fn rows(
        &self,
        plan: &Plan,
        source: &Source,
        out: &mut Output,
    ) -> Result<(Vec<Row>, Option<Asked>), CommandError> {
        if !self.scope.is_many() {
            let answer = source.proc(&plan.text)?;
            tell_lost(answer.meta.lost, out);
            if self.at.is_some() {
                out.warn(format_args!("as of {}", answer.meta.as_of));
            }
            return Ok((answer.rows, None));
        }
        // Every host has processes, but maybe none that a condition lets through.
        let each = plan.text.filter.is_none() && !plan.is_merged();
        let progress = Progress::new(source, &self.scope, each, out);
        let mut rows: Vec<Row> = Vec::new();
        let mut take = |line: &[u8]| {
            rows.push(serde_json::from_slice(line)?);
            Ok(())
        };
        let asked = many::each_row(source, &plan.text, &self.scope, progress, &mut take)?;
        plan.arrange(&mut rows);
        if let (Some(_), Some((first, last))) = (self.at, asked.as_of()) {
            out.warn(format_args!("as of {first} to {last}, each host by its own records"));
        }
        Ok((rows, Some(asked)))
    }
}

impl Plan {
    /// Whether no row is there before all are.
    fn is_merged(&self) -> bool {
        let QueryText { sort, limit, group, .. } = &self.text;
        sort.is_some() || limit.is_some() || group.is_some()
    }

    /// Puts rows of many hosts in order, and their hosts in one column.
    fn arrange(&self, rows: &mut [Row]) {
        if self.by_host {
            rows.sort_by_cached_key(many::host_of);
        }
        if !self.host_first {
            return;
        }
        for row in rows {
            if let Some(host) = many::host_of(row) {
                row.insert("host".to_owned(), host.into());
            }
        }
    }
}

/// Who is whose child, as numbers that no two hosts share; rows of a host stand together.
fn family(rows: &[Row]) -> Vec<(i64, i64)> {
    let mut before = None;
    let mut host = -1;
    let pair = |row: &Row| {
        let place = ["dc", "host"].map(|name| row.get(name).cloned());
        if before.as_ref() != Some(&place) {
            host += 1;
            before = Some(place);
        }
        let number = |name| {
            let number = row.get(name).and_then(serde_json::Value::as_i64).unwrap_or(-1);
            host << 32 | number & 0xffff_ffff
        };
        (number("pid"), number("ppid"))
    };
    rows.iter().map(pair).collect()
}

fn show(args: &Ps, plan: &Plan, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let (rows, asked) = if args.json {
        let (rows, asked) = json(args, plan, source, out)?;
        out.line("")?;
        (rows, asked)
    } else if args.ndjson {
        ndjson(args, plan, source, out)?
    } else {
        let (rows, asked) = args.rows(plan, source, out)?;
        let style = args.style(out);
        for line in args.lines(plan, &rows, &style, out) {
            out.line(line)?;
        }
        (Some(rows), asked)
    };
    let exit = match rows.filter(|_| plan.row_each) {
        Some(rows) if asked.is_some() => tell_missing_of_many(plan, &rows, out),
        Some(rows) => tell_missing(plan, &rows, out),
        None => Exit::Done,
    };
    if let Some(asked) = &asked {
        tell_lost(asked.lost(), out);
    }
    Ok(asked.map_or(exit, |asked| asked.tell(exit, out)))
}

/// Says how many processes are missing from those that ended.
fn tell_lost(lost: u64, out: &mut Output) {
    if lost > 0 {
        let s = if lost == 1 { "" } else { "es" };
        out.warn(format_args!(
            "{lost} process{s} that ended are missing: their events were lost; `kumo host` counts them"
        ));
    }
}

/// Rows where they had to be read, and who was asked.
type Seen = (Option<Vec<Row>>, Option<Asked>);

fn json(args: &Ps, plan: &Plan, source: &Source, out: &mut Output) -> Result<Seen, CommandError> {
    if args.scope.is_many() {
        let progress = Progress::new(source, &args.scope, false, out);
        let (asked, rows) = many::rows_to(source, &plan.text, &args.scope, progress, out.writer())?;
        return Ok((Some(rows), Some(asked)));
    }
    if plan.row_each {
        return Ok((Some(source.proc_to_and_rows(&plan.text, Format::Json, out.writer())?), None));
    }
    source.proc_to(&plan.text, Format::Json, out.writer())?;
    Ok((None, None))
}

fn ndjson(args: &Ps, plan: &Plan, source: &Source, out: &mut Output) -> Result<Seen, CommandError> {
    if args.scope.is_many() {
        // A line about who is waited for would stand between rows.
        let progress = if out.is_terminal() {
            Progress::silent()
        } else {
            let each = plan.text.filter.is_none() && !plan.is_merged();
            Progress::new(source, &args.scope, each, out)
        };
        let mut rows = plan.row_each.then(Vec::new);
        let writer = out.writer();
        let mut take = |line: &[u8]| {
            if let Some(rows) = &mut rows {
                rows.push(serde_json::from_slice(line)?);
            }
            writer.write_all(line)?;
            writer.write_all(b"\n")
        };
        let asked = many::each_row(source, &plan.text, &args.scope, progress, &mut take)?;
        return Ok((rows, Some(asked)));
    }
    if plan.row_each {
        let format = Format::NdJson;
        return Ok((Some(source.proc_to_and_rows(&plan.text, format, out.writer())?), None));
    }
    source.proc_to(&plan.text, Format::NdJson, out.writer())?;
    Ok((None, None))
}

/// As [`tell_missing`] of rows of many hosts: a number may stand on none of them or on several.
fn tell_missing_of_many(plan: &Plan, rows: &[Row], out: &mut Output) -> Exit {
    let shown = |pid: &&i32| rows.iter().any(|row| row.get("pid") == Some(&(**pid).into()));
    let (found, missing): (Vec<&i32>, Vec<&i32>) = plan.pids.iter().partition(shown);
    for pid in &missing {
        out.warn(format_args!("there is no process {pid} on any host that answered"));
    }
    match (found.is_empty(), missing.is_empty()) {
        (_, true) => Exit::Done,
        (true, false) => Exit::Failed,
        (false, false) => Exit::Partial,
    }
}

/// Says which of the processes that were named have no row, as far as the rows tell.
fn tell_missing(plan: &Plan, rows: &[Row], out: &mut Output) -> Exit {
    let named = plan.pids.len();
    let missing = named.saturating_sub(rows.len());
    if rows.iter().all(|row| row.contains_key("pid")) {
        let shown = |pid: i32| rows.iter().any(|row| row["pid"] == i64::from(pid));
        for pid in plan.pids.iter().filter(|pid| !shown(**pid)) {
            out.warn(format_args!("there is no process {pid}"));
        }
    } else if missing > 0 {
        out.warn(format_args!("{missing} of these {named} processes are not there"));
    }
    match missing {
        0 => Exit::Done,
        missing if missing == named => Exit::Failed,
        _ => Exit::Partial,
    }
}

fn watch_once(
    args: &Ps,
    plan: &Plan,
    source: &Source,
    out: &mut Output,
) -> Result<(), CommandError> {
    if args.json || args.ndjson {
        let (_, asked) = if args.json {
            let seen = json(args, plan, source, out)?;
            out.line("")?;
            seen
        } else {
            ndjson(args, plan, source, out)?
        };
        if let Some(asked) = asked {
            asked.tell(Exit::Done, out);
        }
        return Ok(out.flush()?);
    }
    let style = args.style(out);
    let LocalTime { hour, minute, second, .. } = style.now;
    let clock = format!("{hour:02}:{minute:02}:{second:02}");
    let (rows, title, missing) = if args.scope.is_many() {
        let mut answer = many::rows(source, &plan.text, Duration::ZERO, &args.scope)?;
        plan.arrange(&mut answer.rows);
        let title = format!(
            "{clock}  {}  {} processes, {} matched  Ctrl-C ends",
            answer.hosts.count(),
            answer.processes,
            answer.matched,
        );
        (answer.rows, title, answer.hosts.lines())
    } else {
        let answer = source.proc(&plan.text)?;
        let meta = &answer.meta;
        let title = format!(
            "{clock}  {}  {} processes, {} matched  {} {:.1} ms  Ctrl-C ends",
            meta.host,
            meta.processes,
            meta.matched,
            meta.collector,
            meta.scan_us as f64 / 1e3,
        );
        (answer.rows, title, Vec::new())
    };
    let lines = args.lines(plan, &rows, &style, out);
    let Some((_, height)) = out.size() else {
        for line in lines {
            out.line(line)?;
        }
        out.line("")?;
        for line in &missing {
            out.warn(line);
        }
        return Ok(out.flush()?);
    };
    let width_max = style.width_max.unwrap_or(usize::MAX);
    let title = out.styled(Look::Dim, &text::visible_within(&title, width_max));
    let bad = |line: &String| out.styled(Look::Bad, &text::visible_within(line, width_max));
    let missing: Vec<String> = missing.iter().map(bad).collect();
    // Home, then each line and the end of it: no clearing first, so nothing flickers.
    out.raw("\x1b[H")?;
    let frame = std::iter::once(title).chain(missing).chain(lines).take(height.saturating_sub(1));
    for line in frame {
        out.raw(&line)?;
        out.raw("\x1b[K\n")?;
    }
    out.raw("\x1b[J")?;
    Ok(out.flush()?)
}

/// The time in the local zone, now.
pub fn local_now() -> LocalTime {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LocalTime::at(since_1970.as_secs() as i64).unwrap_or(EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use serde_json::json;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        ps: Ps,
    }

    fn ps(line: &str) -> Ps {
        let words = std::iter::once("ps").chain(line.split(' ').filter(|word| !word.is_empty()));
        Cli::try_parse_from(words).expect("good usage").ps
    }

    #[test]
    fn questions_to_many_hosts() {
        let usual = format!("{TABLE_COLUMNS},{TABLE_LAST}");
        let cases = [
            ("--all", Some(usual.as_str()), true, true),
            ("--all --sort -cpu", Some(usual.as_str()), true, false),
            ("--all -o pid,comm", Some("pid,comm"), true, true),
            ("--all -o dc,pid,host", Some("pid"), false, true),
            ("--all -o host", Some("pid"), false, true),
            ("--all --tree -o comm --sort -cpu", Some("comm,pid,ppid"), true, true),
            ("--all --json", None, true, true),
            ("--all --json -o pid,host", Some("pid"), false, true),
            ("--all --group dc,host", Some("dc,host,count()"), false, false),
            ("--all 7 -o comm", Some("comm,pid"), true, true),
            ("-o host,pid", Some("host,pid"), false, false),
        ];
        for (line, columns, host_first, by_host) in cases {
            let plan = ps(line).plan().expect(line);
            assert_eq!(plan.text.columns.as_deref(), columns, "for {line:?}");
            assert_eq!((plan.host_first, plan.by_host), (host_first, by_host), "for {line:?}");
        }
    }

    #[test]
    fn rows_of_many_hosts_get_a_host_and_an_order() {
        let row = |dc: &str, host: &str, pid: i32, ppid: i32| {
            let row = json!({"dc": dc, "host": host, "pid": pid, "ppid": ppid, "cmdline": "x"});
            row.as_object().expect("an object").clone()
        };
        let mut rows = vec![
            row("tokyo", "b", 1, 0),
            row("tokyo", "b", 2, 1),
            row("osaka", "a", 1, 0),
            row("tokyo", "a", 9, 1),
            row("osaka", "a", 3, 1),
        ];
        let args = ps("--all --tree --ascii --no-header -o cmdline");
        let plan = args.plan().expect("a plan");
        plan.arrange(&mut rows);
        let out = Output::stdout(crate::output::ColorChoice::Never);
        let style = Style { width_max: None, ..args.style(&out) };
        let lines = args.lines(&plan, &rows, &style, &out);
        let want = ["osaka/a x", "osaka/a `- x", "tokyo/a x", "tokyo/b x", "tokyo/b `- x"];
        assert_eq!(lines, want);
    }
}
