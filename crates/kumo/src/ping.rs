//! `kumo ping`: the way to a service and back, on a connection as calls have it.

use std::io::{PipeReader, pipe};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use kumo_abi::call::ServiceName;
use kumo_abi::control::Carrier;
use middlecon::{CallError, Context, Pong};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::callee::{self, ThroughArgs};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{Look, Output};
use crate::shown::millis;
use crate::{json, outcome, stop, text};

/// The longest series. A person stops much earlier, and a script says how many it wants.
const COUNT_MAX: u64 = 100_000;

/// Measure the way to a service and back
///
/// Each ping goes to the callee's process, on a connection as calls have it, and does nothing there.
#[derive(Clone, Debug, clap::Args)]
pub struct Ping {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: ServiceName,
    /// Stop after so many; until Ctrl-C without
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    count: Option<u64>,
    /// Wait this long between two: 10ms, 1s
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = callee::budget)]
    interval: Duration,
    /// Wait this long for each answer
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = callee::budget)]
    budget: Duration,
    /// Print only the summary
    #[arg(short, long)]
    quiet: bool,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    through: ThroughArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo ping greeter
  kumo ping greeter -n 1000 -i 1ms --quiet
  kumo ping greeter -n 1 --quiet && echo there

Ctrl-C ends with the summary. Exit status: 0 all were answered, 3 some, 11 none, 1 failed, 2 wrong usage.";

/// What carries frames, in words.
pub fn carrier(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Local { ring: true } => "by a ring in shared memory",
        Carrier::Local { ring: false } => "by a socket of this host",
        Carrier::Tls => "directly, by TLS",
        Carrier::Spliced => "relayed by nodes",
    }
}

/// What was measured.
#[derive(Debug, Default)]
struct Series {
    sent: u64,
    took_us: Vec<f64>,
}

impl Series {
    /// The smallest value that at least this share of all is not above; of none, nothing.
    fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
        let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
        sorted.get(rank - 1).copied()
    }

    /// Least, median, 99th percentile, most.
    fn summary(&self) -> Option<[f64; 4]> {
        let mut sorted = self.took_us.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share| Series::quantile(&sorted, share);
        Some([at(0.0)?, at(0.5)?, at(0.99)?, at(1.0)?])
    }
}

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Ping, out: &mut Output) -> Result<Exit, CommandError> {
    let (stopped, stop) = pipe()?;
    stop::on_first(move || drop(stop))?;
    let node = match args.through.connect() {
        Ok(node) => node,
        Err(error) => {
            out.warn(crate::chain(&error));
            return Ok(Exit::NotExecuted);
        }
    };
    let service = node.service(&args.service);
    let mut series = Series::default();
    // What was said last, so that it is not said again and again.
    let mut before = None;
    let began = Instant::now();
    while args.count.is_none_or(|count| series.sent < count) {
        if series.sent > 0 && is_over(&stopped, due(began, series.sent, args.interval)) {
            break;
        }
        series.sent += 1;
        // One context for each: a signal gives up the ping that is under way.
        let context = Context::root(args.budget).given_up_with(stopped.try_clone()?.into());
        let result = context.enter(|| service.ping(args.budget));
        if let Ok(pong) = &result {
            series.took_us.push(pong.took.as_nanos() as f64 / 1e3);
        } else if context.is_over() && is_over(&stopped, Duration::ZERO) {
            // It was not given the time to be answered.
            series.sent -= 1;
            break;
        }
        if !args.quiet && !args.json {
            let failed = result.as_ref().err().map(why);
            if failed.is_some() && failed == before {
                out.line(format_args!("{}: the same", series.sent))?;
            } else {
                let line = line(args, series.sent, &result, out);
                out.line(line)?;
            }
            before = failed;
            out.flush()?;
        }
    }
    finish(args, &series, out)
}

fn due(began: Instant, sent: u64, interval: Duration) -> Duration {
    let due = interval.saturating_mul(u32::try_from(sent).unwrap_or(u32::MAX));
    due.saturating_sub(began.elapsed())
}

/// Waits so long; whether a signal came.
fn is_over(stopped: &PipeReader, wait: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::RDHUP)];
    matches!(poll(&mut fds, Timespec::try_from(wait).ok().as_ref()), Ok(1..))
}

fn line(args: &Ping, number: u64, result: &Result<Pong, CallError>, out: &Output) -> String {
    match result {
        Ok(pong) => {
            let opened = if number == 1 {
                format!(", connected in {}", micros(pong.opened.as_nanos() as f64 / 1e3))
            } else {
                String::new()
            };
            let took = micros(pong.took.as_nanos() as f64 / 1e3);
            let way = carrier(pong.from.carrier);
            format!("{number}: {} ({}) {way}: {took}{opened}", pong.from.peer, pong.from.instance)
        }
        Err(error) => {
            let line = format!("{number}: no answer from {}: {}", args.service, why(error));
            out.styled(Look::Bad, &text::visible(&line))
        }
    }
}

/// Why there is no answer.
fn why(error: &CallError) -> String {
    match error {
        CallError::NotExecuted { cause, message, .. } | CallError::Unknown { cause, message } => {
            outcome::because(*cause, message)
        }
        CallError::Failed { .. } => error.to_string(),
    }
}

fn finish(args: &Ping, series: &Series, out: &mut Output) -> Result<Exit, CommandError> {
    let answered = series.took_us.len() as u64;
    let summary = series.summary();
    if args.json {
        let summary = summary.map(|[min, median, p99, max]| {
            json!({ "min": min, "median": median, "p99": p99, "max": max })
        });
        let document = json!({
            "service": args.service, "sent": series.sent, "answered": answered, "took_us": summary,
        });
        out.line(json::pretty(&document)?)?;
    } else {
        out.line(format_args!("{}: {answered} of {} answered", args.service, series.sent))?;
        if let Some([min, median, p99, max]) = summary.map(|all| all.map(micros)) {
            out.line(format_args!("min {min}, median {median}, p99 {p99}, max {max}"))?;
        }
    }
    Ok(match answered {
        0 => Exit::NotExecuted,
        some if some < series.sent => Exit::Partial,
        _ => Exit::Done,
    })
}

/// Microseconds for people: `0.4 µs`, `38 µs`, `1.24 ms`.
fn micros(us: f64) -> String {
    match us {
        _ if us < 10.0 => format!("{us:.1} µs"),
        _ if us < 1_000.0 => format!("{us:.0} µs"),
        _ => millis(us / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries() {
        let of = |took_us: &[f64]| Series { sent: 0, took_us: took_us.to_vec() }.summary();
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3.0]), Some([3.0; 4]));
        assert_eq!(of(&[4.0, 1.0, 3.0, 2.0]), Some([1.0, 2.0, 4.0, 4.0]));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(of(&hundred), Some([1.0, 50.0, 99.0, 100.0]));
    }

    #[test]
    fn microseconds_for_people() {
        for (us, want) in [(0.42, "0.4 µs"), (37.6, "38 µs"), (1_236.0, "1.24 ms")] {
            assert_eq!(micros(us), want);
        }
    }
}
