//! `kumo map`: data centres, their hosts, and the links between them with measured round trips.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kumo_abi::cluster::{HostInfo, HostState, LinkReport, Role};
use kumo_abi::{DcName, HostId};
use serde::{Deserialize, Serialize};

use crate::error::CommandError;
use crate::exit::Exit;
use crate::grid::{self, Cell};
use crate::json;
use crate::many::{self, Asked, Cluster, Progress};
use crate::output::{Look, Output};
use crate::scope::Scope;
use crate::source::{NodeArgs, Source};
use crate::units;

/// Round trips from here on are slow even between continents, or a sign of a full line.
const RTT_SLOW_US: u32 = 250_000;

/// Show the cluster as a tree: data centres, hosts, and links with their round trips
#[derive(Clone, Debug, clap::Args)]
pub struct Map {
    /// Print it as one JSON object
    #[arg(long)]
    json: bool,
    /// Print it for Graphviz: kumo map --dot | dot -Tsvg > map.svg
    #[arg(long, conflicts_with = "json")]
    dot: bool,
    /// Draw with ASCII characters
    #[arg(long)]
    ascii: bool,
    /// Wait this long for the nodes, in milliseconds; at most 2000 without it
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..=60_000))]
    wait: Option<u64>,
    /// Which node.
    #[command(flatten)]
    pub at: NodeArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo map
  kumo map --json | jq '.links[] | select(.rtt_us > 50000)'
  kumo map --dot | dot -Tsvg > map.svg

Round trips are those that TCP measures on the links, so nothing is sent for them. Exit status: 0 all
nodes told their links, 1 failed, 3 some did not.";

/// A link, told by one or both of its ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Link {
    /// Who opened it.
    from: HostId,
    /// The gateway that took it.
    to: HostId,
    /// The shorter of the round trips that the ends measured, in microseconds; null while neither knows.
    rtt_us: Option<u32>,
    /// Its age in milliseconds.
    age_ms: u64,
}

/// The body of `/v2/links`.
#[derive(Deserialize)]
struct Links {
    links: Vec<LinkReport>,
}

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Map, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let cluster = Cluster::ask(source)?;
    let mut scope = Scope { wait: args.wait, ..Scope::default() };
    scope.hosts.all = true;
    let progress = Progress::new(source, &scope, false, out);
    let answers = many::answers(source, "links", &scope, progress)?;
    let mut reports = Vec::new();
    let mut strange = Vec::new();
    for answer in answers.answers {
        match serde_json::from_value::<Links>(answer.body) {
            Ok(body) if answer.status == 200 => reports.push((answer.id, body.links)),
            _ => strange.push(answer.id),
        }
    }
    let links = links(reports);
    if args.json {
        out.line(json::pretty(&document(&cluster, &links, &answers.hosts))?)?;
    } else if args.dot {
        out.raw(&dot(&cluster, &links))?;
    } else {
        let strokes = if args.ascii { &ASCII } else { &UNICODE };
        let width_max = out.size().map(|(columns, _)| columns);
        for line in grid::lines(tree(&cluster, &links, strokes), width_max, out) {
            out.line(line)?;
        }
    }
    cluster.tell_unreached(out);
    for id in &strange {
        out.warn(format_args!("{id} does not tell its links; is it of another version?"));
    }
    let exit = if strange.is_empty() { Exit::Done } else { Exit::Partial };
    Ok(answers.hosts.tell(exit, out))
}

/// The links of all reports, each once, in order. Both ends tell of a link, and each measures it.
fn links(reports: Vec<(HostId, Vec<LinkReport>)>) -> Vec<Link> {
    let mut links: BTreeMap<(HostId, HostId), Link> = BTreeMap::new();
    for (reporter, reports) in reports {
        for report in reports {
            let (from, to) = if report.dialed {
                (reporter.clone(), report.peer)
            } else {
                (report.peer, reporter.clone())
            };
            let rtt_us = (report.rtt_us > 0).then_some(report.rtt_us);
            let new = Link { from: from.clone(), to: to.clone(), rtt_us, age_ms: report.age_ms };
            let known = links.entry((from, to)).or_insert_with(|| new.clone());
            known.rtt_us = match (known.rtt_us, rtt_us) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            known.age_ms = known.age_ms.max(new.age_ms);
        }
    }
    links.into_values().collect()
}

fn document(cluster: &Cluster, links: &[Link], hosts: &Asked) -> serde_json::Value {
    serde_json::json!({
        "cluster": cluster.cluster,
        "hosts": cluster.hosts,
        "links": links,
        "missing": hosts.missing,
    })
}

/// What the tree is drawn with.
struct Strokes {
    branch: &'static str,
    last: &'static str,
    through: &'static str,
    blank: &'static str,
    link: &'static str,
}

const UNICODE: Strokes =
    Strokes { branch: "├─ ", last: "└─ ", through: "│  ", blank: "   ", link: "→" };
const ASCII: Strokes =
    Strokes { branch: "|- ", last: "`- ", through: "|  ", blank: "   ", link: "->" };

fn is_gateway(host: &HostInfo) -> bool {
    host.card.as_ref().is_some_and(|card| card.role == Role::Gateway)
}

/// The lines: the cluster, below it the data centres, below them their hosts with the links that each
/// opened, which end at gateways.
fn tree(cluster: &Cluster, links: &[Link], strokes: &Strokes) -> Vec<Vec<Cell>> {
    let mut dcs: BTreeMap<&DcName, Vec<&HostInfo>> = BTreeMap::new();
    for host in &cluster.hosts {
        dcs.entry(&host.id.dc).or_default().push(host);
    }
    let name = cluster.cluster.as_deref().unwrap_or("no cluster: this node is its own");
    let mut rows = vec![vec![Cell::new(name).look(Look::Heading)]];
    let dc_count = dcs.len();
    for (index, (dc, hosts)) in dcs.into_iter().enumerate() {
        let is_last_dc = index + 1 == dc_count;
        let branch = if is_last_dc { strokes.last } else { strokes.branch };
        let alive = hosts.iter().filter(|host| host.state == HostState::Alive).count();
        let counts = format!("{alive} of {} alive", hosts.len());
        let counts_look = if alive == hosts.len() { Look::Dim } else { Look::Warn };
        rows.push(vec![Cell::new(format!("{branch}{dc}")), Cell::new(counts).look(counts_look)]);
        let before_host = if is_last_dc { strokes.blank } else { strokes.through };
        for (place, host) in hosts.iter().enumerate() {
            let is_last = place + 1 == hosts.len();
            let branch = if is_last { strokes.last } else { strokes.branch };
            let mut row = vec![Cell::new(format!("{before_host}{branch}{}", host.id.host))];
            row.push(match &host.card {
                Some(card) if card.role == Role::Gateway => Cell::new(card.role.name()),
                Some(card) => Cell::new(card.role.name()).look(Look::Dim),
                None => Cell::unknown(),
            });
            row.push(state(host));
            let own: Vec<&Link> = links.iter().filter(|link| link.from == host.id).collect();
            let below = if is_last { strokes.blank } else { strokes.through };
            let empty = format!("{before_host}{below}");
            for (nth, link) in own.into_iter().enumerate() {
                if nth > 0 {
                    rows.push(std::mem::replace(
                        &mut row,
                        vec![Cell::new(&empty), Cell::new(""), Cell::new("")],
                    ));
                }
                // Within a data centre its name says nothing new.
                let to = if link.to.dc == host.id.dc {
                    link.to.host.to_string()
                } else {
                    link.to.to_string()
                };
                row.push(Cell::new(format!("{} {to}", strokes.link)));
                row.push(round_trip(link.rtt_us));
            }
            rows.push(row);
        }
    }
    rows
}

fn state(host: &HostInfo) -> Cell {
    let look = crate::hosts::look(host.state);
    match host.state {
        HostState::Alive => Cell::new(host.state.name()).look(look),
        state => {
            let span = units::span(host.state_ms as f64 / 1e3);
            Cell::new(format!("{} for {span}", state.name())).look(look)
        }
    }
}

fn round_trip(rtt_us: Option<u32>) -> Cell {
    match rtt_us {
        None => Cell::new("not measured yet").look(Look::Dim),
        Some(us) => {
            let look = if us >= RTT_SLOW_US { Look::Warn } else { Look::Plain };
            Cell::new(milliseconds(us)).look(look).right()
        }
    }
}

/// A round trip for people: `0.21 ms`, `12.3 ms`, `250 ms`.
fn milliseconds(us: u32) -> String {
    match us {
        0..10_000 => format!("{:.2} ms", f64::from(us) / 1e3),
        10_000..100_000 => format!("{:.1} ms", f64::from(us) / 1e3),
        _ => format!("{} ms", us / 1_000),
    }
}

/// The same for Graphviz. Names hold nothing that would have to be escaped there.
fn dot(cluster: &Cluster, links: &[Link]) -> String {
    let mut text = String::from("graph kumonosu {\n  layout=fdp;\n  node [shape=box];\n");
    let mut dcs: BTreeMap<&DcName, Vec<&HostInfo>> = BTreeMap::new();
    for host in &cluster.hosts {
        dcs.entry(&host.id.dc).or_default().push(host);
    }
    for (dc, hosts) in dcs {
        // A string takes whatever is written to it.
        writeln!(text, "  subgraph \"cluster_{dc}\" {{\n    label=\"{dc}\";").ok();
        for host in hosts {
            let color = match host.state {
                HostState::Alive => "green4",
                HostState::Dead => "red3",
                HostState::CutOff => "orange3",
                HostState::Left => "gray60",
            };
            let style = if is_gateway(host) { "bold" } else { "solid" };
            let (id, name, state) = (&host.id, &host.id.host, host.state.name());
            writeln!(
                text,
                "    \"{id}\" [label=\"{name}\\n{state}\" color={color} style={style}];"
            )
            .ok();
        }
        text.push_str("  }\n");
    }
    for Link { from, to, rtt_us, .. } in links {
        let label = rtt_us.map(milliseconds).unwrap_or_default();
        writeln!(text, "  \"{from}\" -- \"{to}\" [label=\"{label}\"];").ok();
    }
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ColorChoice;
    use serde_json::json;

    fn id(text: &str) -> HostId {
        text.parse().expect("a host")
    }

    fn report(peer: &str, dialed: bool, rtt_us: u32) -> LinkReport {
        LinkReport {
            peer: id(peer),
            role: Role::Gateway,
            dialed,
            address: "10.0.0.1:7081".to_owned(),
            rtt_us,
            age_ms: 5_000,
            received_bytes: 1,
            sent_bytes: 1,
        }
    }

    fn world() -> (Cluster, Vec<Link>) {
        let card = |role: &str| {
            json!({"role": role, "version": "0.1.0", "kernel": "6.1", "architecture": "x86_64",
                   "cpus": 2, "memory": 1, "addresses": [], "labels": {}})
        };
        let host = |dc: &str, host: &str, state: &str, role: &str| {
            json!({"dc": dc, "host": host, "state": state, "state_ms": 12_000, "incarnation": 1,
                   "card": if role.is_empty() { json!(null) } else { card(role) }})
        };
        let cluster = serde_json::from_value(json!({"cluster": "acme", "dc": "tokyo", "host": "a",
            "hosts": [host("osaka", "x", "alive", "gateway"), host("tokyo", "a", "alive", "gateway"),
                      host("tokyo", "b", "alive", "member"), host("tokyo", "c", "dead", "")]}))
        .expect("a cluster");
        let reports = vec![
            (id("tokyo/a"), vec![report("osaka/x", true, 12_345), report("tokyo/b", false, 230)]),
            (id("osaka/x"), vec![report("tokyo/a", false, 12_000), report("tokyo/b", false, 0)]),
            (id("tokyo/b"), vec![report("tokyo/a", true, 210), report("osaka/x", true, 0)]),
        ];
        (cluster, links(reports))
    }

    #[test]
    fn a_link_that_both_ends_tell_of_is_one() {
        let (_, links) = world();
        let seen: Vec<(String, String, Option<u32>)> = links
            .iter()
            .map(|link| (link.from.to_string(), link.to.to_string(), link.rtt_us))
            .collect();
        let link = |from: &str, to: &str, rtt| (from.to_owned(), to.to_owned(), rtt);
        let want = [
            link("tokyo/a", "osaka/x", Some(12_000)),
            link("tokyo/b", "osaka/x", None),
            link("tokyo/b", "tokyo/a", Some(210)),
        ];
        assert_eq!(seen, want);
    }

    #[test]
    fn the_tree_has_every_host_and_link_once() {
        let (cluster, links) = world();
        let out = Output::stdout(ColorChoice::Never);
        let drawn = grid::lines(tree(&cluster, &links, &UNICODE), None, &out).join("\n");
        let want = "\
acme
├─ osaka  1 of 1 alive
│  └─ x   gateway  alive
└─ tokyo  2 of 3 alive
   ├─ a   gateway  alive  → osaka/x  12.0 ms
   ├─ b   member   alive  → osaka/x  not measured yet
   │                      → a        0.21 ms
   └─ c   -        dead for 12 s";
        assert_eq!(drawn, want);
        let ascii = grid::lines(tree(&cluster, &links, &ASCII), None, &out).join("\n");
        assert!(ascii.is_ascii() && ascii.contains("|- a"), "{ascii}");
    }

    #[test]
    fn graphviz_gets_every_host_and_link() {
        let (cluster, links) = world();
        let text = dot(&cluster, &links);
        for part in [
            "subgraph \"cluster_tokyo\" {",
            "\"tokyo/c\" [label=\"c\\ndead\" color=red3 style=solid];",
            "\"osaka/x\" [label=\"x\\nalive\" color=green4 style=bold];",
            "\"tokyo/a\" -- \"osaka/x\" [label=\"12.0 ms\"];",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        assert_eq!(text.matches(" -- ").count(), 3);
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }

    #[test]
    fn round_trips() {
        let cases = [
            (1, "0.00 ms"),
            (210, "0.21 ms"),
            (9_999, "10.00 ms"),
            (12_345, "12.3 ms"),
            (250_000, "250 ms"),
        ];
        for (us, want) in cases {
            assert_eq!(milliseconds(us), want, "for {us}");
        }
    }
}
