//! `kumo blocked`: who waits for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::forest::{self, Lines};
use crate::grid::{self, Cell};
use crate::json;
use crate::output::{Look, Output};
use crate::scope::Scope;
use crate::shown::{Blocked as Document, Edge, Party, Shown, millis};
use crate::source::{NodeArgs, Source};

/// Show which calls wait for a reply: who waits for whom, for how long, and how long still
#[derive(Clone, Debug, clap::Args)]
pub struct Blocked {
    /// Print it as one JSON document
    #[arg(long)]
    json: bool,
    /// Print it as a graph for Graphviz
    #[arg(long, conflicts_with = "json")]
    dot: bool,
    /// Draw the tree in ASCII
    #[arg(long)]
    ascii: bool,
    /// Print no line of headings
    #[arg(long)]
    no_header: bool,
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
  kumo blocked                     the calls of this host's programs: the longest first, and below
                                   each those that wait on its behalf
  kumo blocked --all               of all hosts
  kumo blocked --all --dot | dot -Tsvg > blocked.svg
  kumo trace $(kumo blocked --json | jq -r '.edges[0].root')

It is read from what programs show their node, so it also tells of one that hangs. LEFT is what remains of
the budget: no call waits for ever. A callee that stands still is marked. Exit status: 0 shown, also if
nobody waits, 1 failed, 2 wrong usage, 3 some hosts are missing.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Blocked, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let shown: Shown<Document> = Shown::ask(source, "calls/blocked", &args.scope, out)?;
    let mut edges: Vec<&Edge> = shown.of_hosts.iter().flat_map(|host| &host.edges).collect();
    edges.sort_by_key(|edge| std::cmp::Reverse(edge.waits_ms));
    if args.json {
        out.line(json::pretty(&shown.document())?)?;
    } else if args.dot {
        out.raw(&dot(&edges))?;
    } else if edges.is_empty() {
        out.line("nobody waits")?;
    } else {
        let mut rows = Vec::new();
        if !args.no_header {
            rows.push(grid::headings(&[
                "CALLER",
                "WAITS FOR",
                "FOR",
                "LEFT",
                "HOP",
                "VIA",
                "TRACE",
            ]));
        }
        rows.extend(tree(&edges, if args.ascii { Lines::Ascii } else { Lines::Unicode }));
        for line in grid::lines(rows, out.size().map(|(columns, _)| columns), out) {
            out.line(line)?;
        }
    }
    let unlisted: u64 = shown.of_hosts.iter().map(|host| host.unlisted).sum();
    if unlisted > 0 {
        out.warn(format_args!(
            "{unlisted} calls had no room on the pages of their programs and may be missing here"
        ));
    }
    Ok(shown.tell(Exit::Done, out))
}

/// Calls, and below each those that are waited for on its behalf.
fn tree(edges: &[&Edge], lines: Lines) -> Vec<Vec<Cell>> {
    let numbers: BTreeMap<&str, i64> = edges
        .iter()
        .enumerate()
        .map(|(index, edge)| (edge.call.as_str(), index as i64 + 1))
        .collect();
    let number = |call: Option<&str>| call.and_then(|call| numbers.get(call)).copied().unwrap_or(0);
    let pairs: Vec<(i64, i64)> = edges
        .iter()
        .map(|edge| (number(Some(&edge.call)), number(edge.parent.as_deref())))
        .collect();
    forest::order(&pairs).iter().map(|leaf| cells(edges[leaf.index], &leaf.prefix(lines))).collect()
}

fn cells(edge: &Edge, prefix: &str) -> Vec<Cell> {
    let method = edge.method.as_deref().unwrap_or("?");
    let still = if edge.callee.suspended { " (stands still)" } else { "" };
    let callee = match &edge.callee.service {
        Some(service) => {
            let party = edge.callee.to_string();
            format!("{service}/{method}{}{still}", &party[service.len()..])
        }
        None => format!("{}{still}", edge.callee),
    };
    let look = if edge.callee.suspended { Look::Bad } else { Look::Plain };
    vec![
        Cell::new(format!("{prefix}{}", edge.caller)),
        Cell::new(callee).look(look),
        Cell::new(millis(edge.waits_ms as f64)).right(),
        Cell::new(millis(edge.left_ms as f64)).right(),
        Cell::new(edge.hop.to_string()).right(),
        Cell::new(&edge.carrier),
        Cell::new(&edge.root).look(Look::Dim),
    ]
}

/// The edges for Graphviz: a node for each process, an edge for each pair and method that waits.
fn dot(edges: &[&Edge]) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut dot = "digraph blocked {\n  rankdir=LR; node [shape=box];\n".to_owned();
    // A process that serves is the same box where it waits itself.
    let place = |party: &Party| {
        (
            party.at.clone(),
            party.pid,
            if party.pid == 0 { party.to_string() } else { String::new() },
        )
    };
    let mut boxes = BTreeMap::new();
    for edge in edges {
        for (party, is_callee) in [(&edge.caller, false), (&edge.callee, true)] {
            let known = boxes.entry(place(party)).or_insert((party, false));
            if is_callee {
                known.0 = party;
            }
            known.1 |= party.suspended;
        }
    }
    let numbers: BTreeMap<_, usize> =
        boxes.keys().enumerate().map(|(number, place)| (place.clone(), number)).collect();
    for (place, (party, suspended)) in &boxes {
        let number = numbers.get(place).copied().unwrap_or_default();
        let red = if *suspended { ", color=red" } else { "" };
        let label = quoted(&crate::text::visible(&party.to_string()));
        writeln!(dot, "  n{number} [label={label}{red}];").ok();
    }
    // A program that a handler started waits on the handler's behalf, and is another box.
    let mut behalf: BTreeSet<(usize, usize)> = BTreeSet::new();
    let number = |party: &Party| numbers.get(&place(party)).copied().unwrap_or_default();
    for above in edges {
        let below = edges.iter().filter(|edge| edge.parent.as_ref() == Some(&above.call));
        behalf.extend(below.map(|edge| (number(&above.callee), number(&edge.caller))));
    }
    for (from, to) in behalf.into_iter().filter(|(from, to)| from != to) {
        writeln!(dot, "  n{from} -> n{to} [style=dashed];").ok();
    }
    let mut pairs: BTreeMap<(usize, usize, &str), (u64, u64)> = BTreeMap::new();
    for edge in edges {
        let method = edge.method.as_deref().unwrap_or("?");
        let pair = pairs.entry((number(&edge.caller), number(&edge.callee), method)).or_default();
        *pair = (pair.0 + 1, pair.1.max(edge.waits_ms));
    }
    for ((from, to, method), (calls, waits_ms)) in pairs {
        let times = if calls == 1 { String::new() } else { format!(" ×{calls}") };
        let label = format!("{method}{times} {}", millis(waits_ms as f64));
        writeln!(dot, "  n{from} -> n{to} [label={}];", quoted(&crate::text::visible(&label))).ok();
    }
    dot + "}\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ColorChoice;
    use serde_json::json;

    fn edge(call: &str, parent: Option<&str>, caller: (&str, u32), callee: (&str, u32)) -> Edge {
        let party = |(service, pid): (&str, u32)| {
            json!({"dc": "tokyo", "host": "a", "pid": pid, "service": service, "uid": null,
                   "instance": null, "suspended": service == "still"})
        };
        serde_json::from_value(json!({
            "caller": party(caller), "callee": party(callee), "method": "read", "root": "ab",
            "call": call, "parent": parent, "hop": 1, "thread": null, "waits_ms": 7,
            "left_ms": 5, "grant": "2", "carrier": "ring",
        }))
        .expect("an edge")
    }

    fn edges() -> [Edge; 4] {
        [
            edge("1", None, ("we\"b", 1), ("kv", 2)),
            edge("2", None, ("we\"b", 1), ("kv", 2)),
            edge("3", Some("1"), ("kv", 2), ("still", 3)),
            edge("4", Some("1"), ("helper", 4), ("still", 3)),
        ]
    }

    #[test]
    fn a_chain_is_one_graph_and_hostile_names_are_quoted() {
        let want = "digraph blocked {\n  rankdir=LR; node [shape=box];\n  \
                    n0 [label=\"we\\\"b on tokyo/a/1\"];\n  n1 [label=\"kv on tokyo/a/2\"];\n  \
                    n2 [label=\"still on tokyo/a/3\", color=red];\n  \
                    n3 [label=\"helper on tokyo/a/4\"];\n  n1 -> n3 [style=dashed];\n  \
                    n0 -> n1 [label=\"read ×2 7.00 ms\"];\n  n1 -> n2 [label=\"read 7.00 ms\"];\n  \
                    n3 -> n2 [label=\"read 7.00 ms\"];\n}\n";
        assert_eq!(dot(&edges().iter().collect::<Vec<_>>()), want);
    }

    #[test]
    fn calls_stand_below_those_that_they_are_made_for() {
        let out = Output::stdout(ColorChoice::Never);
        let edges = edges();
        let rows = tree(&edges.iter().collect::<Vec<_>>(), Lines::Ascii);
        let words = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = grid::lines(rows, None, &out).iter().map(words).collect();
        let want = [
            "we\"b on tokyo/a/1 kv/read on tokyo/a/2 7.00 ms 5.00 ms 1 ring ab",
            "|- kv on tokyo/a/2 still/read on tokyo/a/3 (stands still) 7.00 ms 5.00 ms 1 ring ab",
            "`- helper on tokyo/a/4 still/read on tokyo/a/3 (stands still) 7.00 ms 5.00 ms 1 ring ab",
            "we\"b on tokyo/a/1 kv/read on tokyo/a/2 7.00 ms 5.00 ms 1 ring ab",
        ];
        assert_eq!(lines, want);
    }
}
