//! `kumo top`: the processes of a host, live.
//!
//! [`state`], [`update`] and what they use are plain values and rules: keys, data and times in,
//! requests and effects out. [`view`] draws a state. Terminal, threads and clock are the business of
//! [`screen`]; [`batch`] writes the same without a screen.

mod batch;
mod changes;
mod columns;
mod data;
mod detail;
mod fetch;
mod header;
mod help;
mod keys;
mod pace;
mod replay;
mod screen;
mod state;
mod theme;
mod update;
mod view;

use std::str::FromStr;
use std::time::Duration;

use k2i::history::HistoryReport;
use k2i::rfc3339;
use kumo_abi::proc::{COLUMNS_DEFAULT, Column, PROC};
use kumo_abi::{At, Query, QueryError, QueryText};
use serde::Deserialize as _;

use self::batch::Batch;
use self::fetch::Fetcher;
use self::replay::Replay;
use self::screen::Far;
use self::state::{DELAY_MAX, DELAY_MIN, Filter, Sort, State};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::forest::Lines;
use crate::many::{self, OneAnswer, Progress};
use crate::output::Output;
use crate::scope::Scope;
use crate::source::{BOOT_ID, Source, SourceArgs};
use crate::when::{Moment, now_ms};

/// Show the busiest processes, live
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "options of a command line are switches")]
pub struct Top {
    /// Time between two readings, in seconds
    #[arg(short, long, value_name = "SECONDS", default_value = "1")]
    delay: Delay,
    /// Sort by this column; `-` in front for high to low, `+` for low to high
    #[arg(short, long, value_name = "COLUMN", allow_hyphen_values = true, default_value = "-cpu")]
    sort: SortArg,
    /// Only processes that fulfil this condition (CEL): 'cpu > 5.0 && user == "www-data"'
    #[arg(short, long, value_name = "CEL")]
    filter: Option<String>,
    /// Only processes of this user
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
    /// Show who started whom
    #[arg(short, long)]
    tree: bool,
    /// Draw trees with ASCII characters
    #[arg(long)]
    ascii: bool,
    /// Print text instead of taking the screen; so it does when standard output is no terminal
    #[arg(short, long)]
    batch: bool,
    /// Print one reading and end, the same as --batch -n 1
    #[arg(long, conflicts_with = "iterations")]
    once: bool,
    /// End after so many readings. Without it: as long as you like, or one where standard output is
    /// no terminal and neither --batch nor --json is given
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,
    /// Print at most so many processes a reading; for --batch, --once and --json
    #[arg(short, long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Print each reading as one JSON object on a line of its own
    #[arg(long)]
    json: bool,
    /// Show what was recorded, in place of what is: Space stops, brackets step
    #[arg(long)]
    replay: bool,
    /// Where a replay begins; by default ten minutes ago, or where history does
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, requires = "replay")]
    from: Option<Moment>,
    /// How much faster than it was. Text and JSON have every record once, however fast
    #[arg(long, value_name = "TIMES", default_value = "10", requires = "replay")]
    speed: Speed,
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
  kumo top                                 the busiest, every second; h shows the keys
  kumo top -d 0.5 --sort -rss              the largest, twice a second
  kumo top --filter 'container != null'    only those in containers
  kumo top --once -l 10                    the ten busiest as text, once
  kumo top -b -n 60 > log.txt              a minute of readings into a file
  kumo top --json -n 5 | jq '.rows[0]'     for programs
  kumo top --all                           of all hosts of the cluster; g shows a row for each
  kumo top --dc osaka --where 'cpus >= 8'
  kumo top --replay --from '30 min ago'    what was, ten times as fast
  kumo top --replay --json > was.ndjson    the same as lines of JSON

Text that processes chose is shown with control characters escaped (\\n, \\x1b, \\u{202e}). A signal
(key k) goes to exactly the process that was selected, or to nobody. NO_COLOR turns colours off.";

/// The time between two readings.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Delay(Duration);

impl FromStr for Delay {
    type Err = String;
    fn from_str(text: &str) -> Result<Delay, String> {
        let range = DELAY_MIN.as_secs_f64()..=DELAY_MAX.as_secs_f64();
        let seconds = text.parse().ok().filter(|seconds| range.contains(seconds));
        let delay = seconds.map(|seconds| Delay(Duration::from_secs_f64(seconds)));
        delay.ok_or_else(|| format!("write seconds from {} to {}", range.start(), range.end()))
    }
}

/// How fast a replay is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Speed(f64);

impl FromStr for Speed {
    type Err = String;
    fn from_str(text: &str) -> Result<Speed, String> {
        let speed = text.parse().ok().filter(|speed| (0.1..=1_000.0).contains(speed));
        speed.map(Speed).ok_or_else(|| "write a number from 0.1 to 1000".to_owned())
    }
}

/// A column to sort by, and from which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SortArg(Sort);

impl FromStr for SortArg {
    type Err = String;
    fn from_str(text: &str) -> Result<SortArg, String> {
        let name = text.strip_prefix(['-', '+']).unwrap_or(text);
        let index = PROC.find(name).ok_or_else(|| {
            let name = name.to_owned();
            let closest = PROC.closest(&name);
            QueryError::Column { name, closest }.to_string()
        })?;
        let column = match Column::at(index) {
            Column::Comm => Column::Cmdline,
            column => column,
        };
        let descending = match text.chars().next() {
            Some('-') => true,
            Some('+') => false,
            _ => columns::sorts_descending(column),
        };
        Ok(SortArg(Sort { column, descending }))
    }
}

/// Runs it. It takes the source: a thread that is still waiting for an answer keeps it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Top, source: Source, out: &mut Output) -> Result<Exit, CommandError> {
    if let Some(filter) = &args.filter {
        let text = QueryText { filter: Some(filter.clone()), ..QueryText::default() };
        Query::parse(&text, &PROC, COLUMNS_DEFAULT)?;
    }
    let is_batch = args.batch || args.once || args.json || !out.is_terminal();
    let size = match (is_batch, out.size()) {
        (true, None) => (u16::MAX, BATCH_ROWS),
        (true, Some((columns, _))) => (u16::try_from(columns).unwrap_or(u16::MAX), BATCH_ROWS),
        (false, _) => screen::terminal_size()?,
    };
    let Delay(delay) = args.delay;
    let mut state = State::new(size, delay);
    let SortArg(sort) = args.sort;
    state.sort = sort;
    state.tree = args.tree;
    state.user.clone_from(&args.user);
    state.filter = args.filter.as_ref().map(|typed| {
        let typed = typed.clone();
        Filter { cel: typed.clone(), typed }
    });
    if args.ascii {
        state.branches = Lines::Ascii;
    }
    state.color = out.has_color() && !is_batch;
    state.many = args.scope.is_many();
    let mut moments = Vec::new();
    if args.replay {
        let (replay, records) = args.replay(&source, out)?;
        if is_batch {
            moments = replay::readings(&records, replay.from_ms, replay.to_ms);
        }
        state.replay = Some(replay);
    }
    // Its processes, and only they, can be signalled from here.
    let local = source.is_this_host().then(|| std::fs::read_to_string(BOOT_ID).ok()).flatten();
    state.boot_id_here = local.map(|boot_id| boot_id.trim().to_owned());
    let another = if state.many { source.another()? } else { None };
    let far = another.map(|source| Far { source, wait: args.scope.wait() });
    let fetcher = Fetcher::new(source, state.many.then(|| args.scope.clone()));
    if is_batch {
        let is_plain = !args.batch && !args.json && !args.replay;
        let only_one = args.once || (is_plain && args.iterations.is_none());
        let readings = if only_one { Some(1) } else { args.iterations };
        let batch = Batch { readings, rows_max: args.limit, json: args.json, moments };
        return batch::run(batch, state, fetcher, out);
    }
    screen::run(state, fetcher, far.as_ref(), args.iterations)?;
    Ok(Exit::Done)
}

impl Top {
    /// What is to be replayed, and of when the records of each host are.
    fn replay(
        &self,
        source: &Source,
        out: &mut Output,
    ) -> Result<(Replay, Vec<Vec<i64>>), CommandError> {
        let (now_ms, Speed(speed)) = (now_ms(), self.speed);
        let wanted = self.from.map_or(At::Ago(REPLAY_DEFAULT), |Moment(at)| at);
        let wanted_ms = (wanted.unix_ns(i128::from(now_ms) * 1_000_000) / 1_000_000) as i64;
        let reports = if self.scope.is_many() {
            // Who does not answer now is named as missing by each reading.
            let about = "history?moments=1";
            let answers = many::answers(source, about, &self.scope, Progress::silent())?.answers;
            let report = |answer: OneAnswer| HistoryReport::deserialize(answer.body).ok();
            answers.into_iter().filter_map(report).collect()
        } else {
            vec![source.history()?]
        };
        let records: Vec<_> = reports.into_iter().filter_map(|report| report.moments).collect();
        // Each of many hosts has a beginning of its own; before the first of them there is nothing.
        let begins_ms = records.iter().filter_map(|records| records.first().copied()).min();
        let from_ms = begins_ms.map_or(wanted_ms, |begins_ms| wanted_ms.max(begins_ms));
        if self.from.is_some() && from_ms > wanted_ms {
            let begins = rfc3339(i128::from(from_ms) * 1_000_000);
            out.warn(format_args!("nothing was recorded before {begins}; the replay begins there"));
        }
        Ok((Replay::new(from_ms, now_ms, speed), records))
    }
}

/// What is replayed where nobody says since when.
const REPLAY_DEFAULT: Duration = Duration::from_secs(600);

/// Rows of the screen that a header without a screen is made for.
const BATCH_ROWS: u16 = 50;

/// A host with two CPUs, for tests.
#[cfg(test)]
pub fn made_up_report() -> k2i::host::HostReport {
    data::tests::host(2).report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays() {
        let cases =
            [("1", Some(1_000)), ("0.1", Some(100)), ("0.01", None), ("x", None), ("nan", None)];
        for (text, want) in cases {
            let want = want.map(|ms| Delay(Duration::from_millis(ms)));
            assert_eq!(text.parse().ok(), want, "for {text:?}");
        }
    }

    #[test]
    fn sort_keys() {
        let cases = [
            ("-cpu", Column::Cpu, true),
            ("cpu", Column::Cpu, true),
            ("+cpu", Column::Cpu, false),
            ("pid", Column::Pid, false),
            ("-user", Column::User, true),
            ("res", Column::Rss, true),
            ("comm", Column::Cmdline, false),
        ];
        for (text, column, descending) in cases {
            assert_eq!(text.parse(), Ok(SortArg(Sort { column, descending })), "for {text:?}");
        }
        let wrong = "cpi".parse::<SortArg>().expect_err("no such column");
        assert!(wrong.contains("did you mean"), "{wrong}");
    }
}
