//! `kumo watch`: processes that begin and end on the node's host, as it happens.

use std::io;

use kumo_abi::events::EVENTS;
use kumo_abi::{Filter, Row};
use kumo_sys::LocalTime;
use serde_json::Value;

use crate::cel;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{Look, Output};
use crate::source::{self, Ask, NodeArgs, Sink, Source};
use crate::text;
use crate::units;

/// What lines are made of.
const COLUMNS: &str = "event,at,pid,ppid,user,exit_code,exit_signal,lifetime,time,comm,cmdline";

/// Widest that the name of a user is written.
const USER_WIDTH: usize = 10;

/// Watch processes begin and end, as it happens
///
/// A line for each program that is executed and for each process that ends, with what it returned or
/// the signal that ended it, and how long it lived. The node takes note of them; what it or this
/// command was too slow for is counted and said. It watches one host: the ended processes of many are
/// listed by `kumo ps --all --ended`.
#[derive(Clone, Debug, clap::Args)]
pub struct Watch {
    /// Only events that fulfil this condition (CEL): 'event == "exit" && lifetime < 0.1'
    #[arg(short, long, value_name = "CEL")]
    filter: Option<String>,
    /// Also when they were waited for, with the CPU time that they had used
    #[arg(long)]
    reaps: bool,
    /// End after so many events
    #[arg(short = 'n', long, value_name = "EVENTS", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Print each event as a JSON object on a line of its own, with all that is known of it
    #[arg(long)]
    json: bool,
    /// Where to ask.
    #[command(flatten)]
    pub at: NodeArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo watch                                            who starts what, and how it ends
  kumo watch --filter 'event == \"exit\" && exit_code != 0'
  kumo watch --filter 'exit_signal in [\"SEGV\", \"KILL\"]'
  kumo watch --filter 'cmdline.contains(\"backup\")' --reaps
  kumo watch --filter 'unit == \"cron.service\"' --json | jq -r .cmdline
  kumo watch -n 1 --filter 'event == \"exit\" && pid == 4711'    wait for the end of a process

Exit status: 0 all events that were asked for, 1 failed or the node stopped, 2 wrong usage.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Watch, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let mut parameters = String::new();
    if let Some(filter) = args.condition()? {
        source::push_parameter(&mut parameters, "filter", &filter);
    }
    let columns = if args.json { all_columns() } else { COLUMNS.to_owned() };
    source::push_parameter(&mut parameters, "columns", &columns);
    let ask =
        Ask { accept: "application/x-ndjson", ..Ask::get(format!("/v2/events?{parameters}")) };
    if !args.json {
        let heading = out.styled(Look::Heading, &heading(args.reaps));
        out.line(heading)?;
    }
    out.flush()?;
    let left = args.limit.unwrap_or(u64::MAX);
    let mut events = Events { args, out, rest: Vec::new(), left };
    match source.fetch(&ask, &mut events) {
        Err(source::SourceError::Output(_)) if events.left == 0 => Ok(Exit::Done),
        Err(error) => Err(error.into()),
        Ok(()) => {
            events.out.warn("the node stopped, and with it its events");
            Ok(Exit::Failed)
        }
    }
}

impl Watch {
    fn condition(&self) -> Result<Option<String>, CommandError> {
        let mut conditions = Vec::new();
        if !self.reaps {
            conditions.push("event != \"reap\"".to_owned());
        }
        if let Some(filter) = &self.filter {
            let wrong = |error| CommandError::Usage(format!("--filter: {error}"));
            Filter::compile(filter, &EVENTS).map_err(wrong)?;
            conditions.push(cel::enclosed(filter));
        }
        if conditions.is_empty() { Ok(None) } else { cel::all_of(&conditions).map(Some) }
    }
}

fn all_columns() -> String {
    EVENTS.columns.iter().map(|column| column.name).collect::<Vec<_>>().join(",")
}

/// Takes the stream apart into lines.
struct Events<'a> {
    args: &'a Watch,
    out: &'a mut Output,
    rest: Vec<u8>,
    /// How many more are wanted.
    left: u64,
}

impl Events<'_> {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if line.is_empty() {
            return Ok(()); // The node says that it is there.
        }
        let row: Row = serde_json::from_slice(line)?;
        match row.get("event").and_then(Value::as_str) {
            Some("missed") => {
                let count = row.get("missed").and_then(Value::as_u64).unwrap_or(0);
                self.out.warn(format_args!("{count} events are missing: they came too fast"));
                return Ok(());
            }
            Some("lost") => {
                let count = |name| row.get("lost").and_then(|lost| lost.get(name)?.as_u64());
                let [execs, exits] = ["execs", "exits"].map(|name| count(name).unwrap_or(0));
                let overruns = count("overruns").unwrap_or(0);
                if execs + exits + overruns > 0 {
                    self.out.warn(format_args!(
                        "the node has lost events since it started: {execs} execs, {exits} exits"
                    ));
                }
                return Ok(());
            }
            _ => {}
        }
        if self.args.json {
            self.out.writer().write_all(line)?;
            self.out.raw("\n")?;
        } else {
            let width_max = self.out.size().map_or(usize::MAX, |(columns, _)| columns);
            let line = text::visible_within(&shown(&row, self.args.reaps), width_max);
            let line = self.out.styled(look(&row), &line);
            self.out.line(line)?;
        }
        self.left -= 1;
        if self.left == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }
}

impl Sink for Events<'_> {
    fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        source::bounded(self.rest.len() + piece.len())?;
        self.rest.extend_from_slice(piece);
        let mut lines = std::mem::take(&mut self.rest);
        let end = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.rest = lines.split_off(end);
        for line in lines.split(|byte| *byte == b'\n') {
            self.line(line)?;
        }
        // Whoever watches wants to see it now.
        self.out.flush()
    }
}

fn heading(reaps: bool) -> String {
    let cpu = if reaps { format!("{:>9} ", "CPU") } else { String::new() };
    format!(
        "{:<12} {:<5} {:>7} {:>7} {:<USER_WIDTH$} {:>7} {:>9} {cpu}{}",
        "TIME", "EVENT", "PID", "PPID", "USER", "RESULT", "LIFETIME", "COMMAND"
    )
}

/// One event, not yet made visible.
fn shown(row: &Row, reaps: bool) -> String {
    let text = |name: &str| row.get(name).and_then(Value::as_str);
    let number =
        |name: &str| row.get(name).and_then(Value::as_i64).map(|number| number.to_string());
    let seconds = |name: &str| {
        let seconds = row.get(name).and_then(Value::as_f64);
        seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.3}"))
    };
    let result = number("exit_code").or_else(|| text("exit_signal").map(ToOwned::to_owned));
    let cpu = if reaps { format!("{:>9} ", seconds("time")) } else { String::new() };
    format!(
        "{:<12} {:<5} {:>7} {:>7} {:<USER_WIDTH$} {:>7} {:>9} {cpu}{}",
        text("at").map(clock).unwrap_or_default(),
        text("event").unwrap_or("?"),
        number("pid").unwrap_or_default(),
        number("ppid").unwrap_or_default(),
        text::visible_within(text("user").unwrap_or("-"), USER_WIDTH),
        result.unwrap_or_else(|| "-".to_owned()),
        seconds("lifetime"),
        text("cmdline").or(text("comm")).unwrap_or("-"),
    )
}

/// A moment as the local time of day, with milliseconds.
fn clock(rfc3339: &str) -> String {
    let local = units::unix_seconds(rfc3339).and_then(LocalTime::at);
    let milliseconds = rfc3339.split_once('.').and_then(|(_, rest)| rest.get(..3)).unwrap_or("000");
    local.map_or_else(
        || rfc3339.to_owned(),
        |LocalTime { hour, minute, second, .. }| {
            format!("{hour:02}:{minute:02}:{second:02}.{milliseconds}")
        },
    )
}

fn look(row: &Row) -> Look {
    match row.get("event").and_then(Value::as_str) {
        Some("exec") => Look::Plain,
        _ if row.get("exit_code") == Some(&0.into()) => Look::Dim,
        _ if row.get("exit_signal").is_some_and(Value::is_string) => Look::Bad,
        _ => Look::Warn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use serde_json::json;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        watch: Watch,
    }

    fn condition(words: &[&str]) -> Result<Option<String>, CommandError> {
        let words = std::iter::once("watch").chain(words.iter().copied());
        Cli::try_parse_from(words).expect("good usage").watch.condition()
    }

    #[test]
    fn conditions() {
        let said = |words: &[&str]| condition(words).expect("a condition");
        assert_eq!(said(&[]).as_deref(), Some("event != \"reap\""));
        assert_eq!(said(&["--reaps"]), None);
        let both = said(&["--filter", "pid == 1 // x"]).expect("a condition");
        assert_eq!(both, "event != \"reap\" && (\npid == 1 // x\n)");
        Filter::compile(&both, &EVENTS).expect("it is one");
        for wrong in ["cpu > 1.0", "pid"] {
            assert!(condition(&["--filter", wrong]).is_err(), "for {wrong}");
        }
    }

    #[test]
    fn lines_of_events() {
        let row = |value: Value| value.as_object().expect("an object").clone();
        let exec = row(json!({"event": "exec", "at": "2026-11-28T08:00:00.123456Z", "pid": 7,
            "ppid": 1, "user": "root", "comm": "sh", "cmdline": "sh -c x"}));
        let exit = row(json!({"event": "exit", "at": "2026-11-28T08:00:00.223456Z", "pid": 7,
            "ppid": 1, "user": "root", "exit_code": 3, "lifetime": 0.1, "comm": "sh", "cmdline": null}));
        let killed = row(json!({"event": "reap", "pid": 7, "exit_signal": "KILL", "time": 0.25}));
        let tail = |line: String| line.split_once(' ').expect("a time").1.to_owned();
        assert_eq!(
            tail(shown(&exec, false)),
            "exec        7       1 root             -         - sh -c x"
        );
        assert_eq!(
            tail(shown(&exit, false)),
            "exit        7       1 root             3     0.100 sh"
        );
        assert!(shown(&exec, false).contains(".123 exec"));
        assert!(shown(&killed, true).ends_with("KILL         -     0.250 -"));
        assert_eq!((look(&exec), look(&exit), look(&killed)), (Look::Plain, Look::Warn, Look::Bad));
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let args = Cli::try_parse_from(["watch", "--json", "-n", "2"]).expect("good usage").watch;
        let text = b"\n{\"event\":\"exec\",\"pid\":1}\n\n{\"event\":\"exit\",\"pid\":1}\n";
        for size in 1..text.len() {
            let mut out = Output::stdout(crate::output::ColorChoice::Never);
            let mut events = Events { args: &args, out: &mut out, rest: Vec::new(), left: 2 };
            let all = text.chunks(size).try_for_each(|piece| events.take(piece));
            assert_eq!((events.left, all.is_err()), (0, true), "in pieces of {size}");
        }
    }
}
