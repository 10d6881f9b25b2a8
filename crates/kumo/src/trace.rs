//! `kumo trace`: the calls that one call led to, as a tree with times.

use std::collections::HashMap;

use kumo_abi::HostId;
use serde_json::json;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::forest::{self, Lines};
use crate::grid::{self, Cell};
use crate::json;
use crate::output::{Look, Output};
use crate::scope::Scope;
use crate::shown::{Shown, Span, Trace as Document, millis};
use crate::source::{NodeArgs, Source};

/// Show the calls of a trace as a tree: what each hop took and how it ended
#[derive(Clone, Debug, clap::Args)]
pub struct Trace {
    /// The trace: 32 hexadecimal digits, as `kumo call --json` and `kumo blocked` tell it
    #[arg(value_name = "ROOT", value_parser = root)]
    root: String,
    /// Print what was seen as one JSON document
    #[arg(long)]
    json: bool,
    /// Draw the tree in ASCII
    #[arg(long)]
    ascii: bool,
    /// Which hosts.
    #[command(flatten)]
    scope: Scope,
    /// Which node.
    #[command(flatten)]
    pub at: NodeArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo trace 4bf92f3577b34da6a3ce929d0e0e4736
  kumo trace --all 4bf92f3577b34da6a3ce929d0e0e4736   also what other hosts saw

TOOK is what the caller waited, HANDLER what the callee worked: the difference is the way, and waiting for
a place. AT is the start, counted from the first. A program remembers its last 8192 calls, and what it saw
goes when it ends. Exit status: 0 shown, 1 failed or nothing is known of it, 2 wrong usage, 3 some hosts
are missing.";

fn root(text: &str) -> Result<String, String> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_zero = text.bytes().all(|byte| byte == b'0');
    if text.len() == 32 && text.bytes().all(is_hex) && !is_zero {
        Ok(text.to_owned())
    } else {
        Err("a trace has 32 hexadecimal digits, 0-9 and a-f, not all 0".to_owned())
    }
}

/// A call as both of its sides saw it.
#[derive(Debug, Default)]
struct Call<'a> {
    caller: Option<(&'a HostId, &'a Span)>,
    callee: Option<(&'a HostId, &'a Span)>,
}

impl<'a> Call<'a> {
    /// The side that knows most: who waits knows how it ended.
    fn best(&self) -> Option<&'a Span> {
        self.caller.or(self.callee).map(|(_, span)| span)
    }
}

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Trace, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let about = format!("calls/trace/{}", args.root);
    let shown: Shown<Document> = Shown::ask(source, &about, &args.scope, out)?;
    let calls = calls(&shown.of_hosts);
    if args.json {
        out.line(json::pretty(&json!({ "root": args.root, "answers": shown.document() }))?)?;
    } else if !calls.is_empty() {
        let lines = if args.ascii { Lines::Ascii } else { Lines::Unicode };
        for line in grid::lines(rows(&calls, lines), out.size().map(|(columns, _)| columns), out) {
            out.line(line)?;
        }
    }
    if calls.is_empty() {
        let more = if args.scope.is_many() { "" } else { "; --all asks other hosts too" };
        out.warn(format_args!("nothing is known of this trace (any more){more}"));
    }
    if shown.of_hosts.iter().any(|host| host.cut) {
        out.warn("there were more calls than a node shows");
    }
    let exit = if calls.is_empty() { Exit::Failed } else { Exit::Done };
    Ok(shown.tell(exit, out))
}

/// Each call once, by start.
fn calls(hosts: &[Document]) -> Vec<Call<'_>> {
    let mut index_of: HashMap<&str, usize> = HashMap::new();
    let mut calls: Vec<Call<'_>> = Vec::new();
    for host in hosts {
        for span in &host.spans {
            let index = *index_of.entry(&span.call).or_insert(calls.len());
            if index == calls.len() {
                calls.push(Call::default());
            }
            let side = if span.side == "callee" {
                &mut calls[index].callee
            } else {
                &mut calls[index].caller
            };
            // One that has ended says more than one that was seen at work.
            if side.is_none_or(|(_, known)| known.outcome == "running") {
                *side = Some((&host.at, span));
            }
        }
    }
    // RFC 3339 in UTC with as many digits stands in the order of time.
    calls.sort_by_key(|call| call.best().map(|span| &span.start));
    calls
}

fn rows(calls: &[Call<'_>], lines: Lines) -> Vec<Vec<Cell>> {
    let numbers: HashMap<&str, i64> = calls
        .iter()
        .enumerate()
        .filter_map(|(index, call)| Some((call.best()?.call.as_str(), index as i64 + 1)))
        .collect();
    let number = |call: Option<&str>| call.and_then(|call| numbers.get(call)).copied().unwrap_or(0);
    let pairs: Vec<(i64, i64)> = calls
        .iter()
        .filter_map(Call::best)
        .map(|span| (number(Some(&span.call)), number(span.parent.as_deref())))
        .collect();
    let first_us = calls.iter().filter_map(Call::best).filter_map(start_us).min().unwrap_or(0);
    let mut rows =
        vec![grid::headings(&["CALL", "OUTCOME", "TOOK", "HANDLER", "AT", "FROM", "TO"])];
    for leaf in forest::order(&pairs) {
        let call = &calls[leaf.index];
        let Some(span) = call.best() else { continue };
        let text = |text: &Option<String>| text.as_deref().unwrap_or("?").to_owned();
        let name = format!("{}{}/{}", leaf.prefix(lines), text(&span.service), text(&span.method));
        let took = |side: Option<(&HostId, &Span)>| match side {
            Some((_, span)) => Cell::new(millis(span.took_ns as f64 / 1e6)).right(),
            None => Cell::unknown().right(),
        };
        let place = |side: Option<(&HostId, &Span)>| match side {
            Some((host, span)) => Cell::new(format!("{host}/{}", span.pid)),
            None => Cell::unknown(),
        };
        let at = start_us(span).map_or_else(Cell::unknown, |us| {
            Cell::new(format!("+{}", millis((us - first_us) as f64 / 1e3)))
        });
        rows.push(vec![
            Cell::new(name),
            outcome(span),
            took(call.caller),
            took(call.callee),
            at.right(),
            place(call.caller),
            place(call.callee),
        ]);
    }
    rows
}

fn outcome(span: &Span) -> Cell {
    let look = match span.outcome.as_str() {
        "done" => Look::Good,
        "running" => Look::Plain,
        "not-executed" => Look::Warn,
        _ => Look::Bad,
    };
    Cell::new(match (&span.cause, span.code) {
        (Some(cause), _) => format!("{} {cause}", span.outcome),
        (None, Some(code)) => format!("{} {code}", span.outcome),
        (None, None) => span.outcome.clone(),
    })
    .look(look)
}

fn start_us(span: &Span) -> Option<i128> {
    let format = &time::format_description::well_known::Rfc3339;
    let start = time::OffsetDateTime::parse(&span.start, format).ok()?;
    Some(start.unix_timestamp_nanos() / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ColorChoice;

    #[test]
    fn a_trace_is_a_tree_of_calls_that_both_sides_saw() {
        let span = |side: &str,
                    call: &str,
                    parent: Option<&str>,
                    at_us: u32,
                    took_ns: u64,
                    outcome: &str| {
            json!({"side": side, "pid": 7, "uid": 0, "service": "kv", "method": call, "call": call,
                   "parent": parent, "hop": 1, "start": format!("2026-11-22T20:50:51.{at_us:06}Z"),
                   "start_ns": 0, "took_ns": took_ns, "outcome": outcome,
                   "cause": (outcome == "unknown").then_some("DIED"), "code": null})
        };
        let hosts: Vec<Document> = serde_json::from_value(json!([
            {"dc": "tokyo", "host": "a", "root": "ab", "cut": false, "spans": [
                span("caller", "top", None, 0, 9_000_000, "done"),
                span("callee", "top", None, 500, 8_000_000, "done"),
                span("caller", "two", Some("top"), 5_000, 1_000_000, "unknown"),
                span("caller", "one", Some("top"), 1_000, 2_000_000, "done"),
            ]},
            {"dc": "osaka", "host": "b", "root": "ab", "spans": [
                span("callee", "one", Some("top"), 1_500, 1_000_000, "done"),
                // Of a call above it nobody tells.
                span("callee", "alone", Some("gone"), 9_000, 1_000_000, "done"),
            ]},
        ]))
        .expect("documents");
        let out = Output::stdout(ColorChoice::Never);
        let lines = grid::lines(rows(&calls(&hosts), Lines::Ascii), None, &out);
        let words = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let want = [
            "CALL OUTCOME TOOK HANDLER AT FROM TO",
            "kv/top done 9.00 ms 8.00 ms +0.00 ms tokyo/a/7 tokyo/a/7",
            "|- kv/one done 2.00 ms 1.00 ms +1.00 ms tokyo/a/7 osaka/b/7",
            "`- kv/two unknown DIED 1.00 ms - +5.00 ms tokyo/a/7 -",
            "kv/alone done - 1.00 ms +9.00 ms - osaka/b/7",
        ];
        assert_eq!(lines.iter().map(words).collect::<Vec<_>>(), want);
    }

    #[test]
    fn traces_are_32_digits() {
        assert!(root("4bf92f3577b34da6a3ce929d0e0e4736").is_ok());
        for bad in [
            "",
            "4bf9",
            "4BF92F3577B34DA6A3CE929D0E0E4736",
            &"0".repeat(32),
            "../../../../host?a=b&cccccccccccc",
        ] {
            assert!(root(bad).is_err(), "for {bad:?}");
        }
    }
}
