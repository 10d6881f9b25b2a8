//! `kumo services`: what is served where.

use std::collections::BTreeSet;

use kumo_abi::HostId;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::grid::{self, Cell};
use crate::json;
use crate::output::{Look, Output};
use crate::scope::Scope;
use crate::shown::{Elsewhere, Instance, Services as Document, Shown};
use crate::source::{NodeArgs, Source};
use crate::units;

/// List services: who serves what, where, and how busy each is
#[derive(Clone, Debug, clap::Args)]
pub struct Services {
    /// Only these services
    #[arg(value_name = "SERVICE")]
    names: Vec<String>,
    /// Print it as one JSON document
    #[arg(long)]
    json: bool,
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
  kumo services                   of this host, and what it knows of others
  kumo services --all             every instance of the cluster, as its own host sees it
  kumo services kv --json | jq -r '.instances[].pid'

SLOTS is how many calls run at once, CALLS how many callers on its own host wait for a reply. Other
hosts are shown without --all as they last told of themselves, with how many of their slots are
connected. Exit status: 0 listed, 1 failed or none found, 2 wrong usage, 3 some hosts are missing.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Services, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let mut shown: Shown<Document> = Shown::ask(source, "calls/services", &args.scope, out)?;
    let is_meant = |service: &String| args.names.is_empty() || args.names.contains(service);
    let heard: BTreeSet<HostId> = shown.of_hosts.iter().map(|host| host.at.clone()).collect();
    for host in &mut shown.of_hosts {
        host.instances.retain(|instance| is_meant(&instance.service));
        // Who spoke for itself is believed before others.
        let is_new = |other: &Elsewhere| shown.asked.is_none() && !heard.contains(&other.at);
        host.elsewhere.retain(|other| is_meant(&other.service) && is_new(other));
    }
    let count: usize =
        shown.of_hosts.iter().map(|host| host.instances.len() + host.elsewhere.len()).sum();
    if args.json {
        out.line(json::pretty(&shown.document())?)?;
    } else {
        for line in lines(&shown.of_hosts, !args.no_header && count > 0, out) {
            out.line(line)?;
        }
    }
    if count == 0 {
        out.warn(match args.names.as_slice() {
            [] => "nothing is served there; `kumo serve` serves a command".to_owned(),
            [name] => format!("nobody serves `{name}` there; `kumo why {name}` looks further"),
            names => format!("nobody serves {} there", names.join(", ")),
        });
    }
    let exit = if count == 0 { Exit::Failed } else { Exit::Done };
    Ok(shown.tell(exit, out))
}

fn lines(hosts: &[Document], has_headings: bool, out: &Output) -> Vec<String> {
    const HEADINGS: [&str; 9] =
        ["SERVICE", "HOST", "STATE", "SLOTS", "CALLS", "CONNS", "FOR", "PID", "INSTANCE"];
    let mut rows = Vec::new();
    for host in hosts {
        rows.extend(host.instances.iter().map(|it| (&it.service, &host.at, instance(host, it))));
        rows.extend(host.elsewhere.iter().map(|it| (&it.service, &it.at, elsewhere(it))));
    }
    rows.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    let mut cells: Vec<Vec<Cell>> = Vec::with_capacity(rows.len() + 1);
    if has_headings {
        cells.push(grid::headings(&HEADINGS));
    }
    cells.extend(rows.into_iter().map(|(.., row)| row));
    grid::lines(cells, out.size().map(|(columns, _)| columns), out)
}

fn instance(host: &Document, it: &Instance) -> Vec<Cell> {
    let look = match it.state.as_str() {
        "ready" => Look::Good,
        "suspended" => Look::Bad,
        _ => Look::Warn,
    };
    vec![
        Cell::new(&it.service),
        Cell::new(host.at.to_string()),
        Cell::new(&it.state).look(look),
        Cell::new(it.slots.to_string()).right(),
        Cell::new(it.in_flight.to_string()).right(),
        Cell::new(it.connections.to_string()).right(),
        Cell::new(units::span(it.serves_ms as f64 / 1e3)).right(),
        Cell::new(it.pid.to_string()).right(),
        Cell::new(&it.instance).look(Look::Dim),
    ]
}

fn elsewhere(it: &Elsewhere) -> Vec<Cell> {
    let (text, look) = match (it.current, it.ready, it.asleep) {
        (false, ..) => ("not there".to_owned(), Look::Warn),
        (true, 0, 0) => ("none".to_owned(), Look::Warn),
        (true, 0, asleep) => (format!("{asleep} asleep"), Look::Dim),
        (true, ready, 0) => (format!("{ready} ready"), Look::Good),
        (true, ready, asleep) => (format!("{ready} ready, {asleep} asleep"), Look::Good),
    };
    vec![
        Cell::new(&it.service),
        Cell::new(it.at.to_string()),
        Cell::new(text).look(look),
        Cell::new(format!("{}%", it.load_percent)).right(),
        Cell::unknown().right(),
        Cell::unknown().right(),
        Cell::unknown().right(),
        Cell::unknown().right(),
        Cell::unknown(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ColorChoice;
    use serde_json::json;

    #[test]
    fn services_line_up_by_name_and_host() {
        let hosts: Vec<Document> = serde_json::from_value(json!([{
            "dc": "tokyo", "host": "a", "programs": 2, "connections": 3,
            "instances": [{
                "service": "kv", "instance": "00000000000000ff", "incarnation": 2, "state": "suspended",
                "pid": 4711, "uid": 0, "slots": 8, "credit": 64, "concurrent": 1,
                "reentrancy": "reject", "ring": true, "connections": 3, "in_flight": 1,
                "serves_ms": 3_500,
            }],
            "elsewhere": [
                {"dc": "osaka", "host": "b", "service": "kv", "ready": 2, "asleep": 1,
                 "load_percent": 50, "current": true},
                {"dc": "osaka", "host": "c", "service": "auth", "ready": 1, "asleep": 0,
                 "load_percent": 0, "current": false},
            ],
        }]))
        .expect("documents");
        let out = Output::stdout(ColorChoice::Never);
        let words = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = lines(&hosts, true, &out).iter().map(words).collect();
        let want = [
            "SERVICE HOST STATE SLOTS CALLS CONNS FOR PID INSTANCE",
            "auth osaka/c not there 0% - - - - -",
            "kv osaka/b 2 ready, 1 asleep 50% - - - - -",
            "kv tokyo/a suspended 8 1 3 3 s 4711 00000000000000ff",
        ];
        assert_eq!(lines, want);
    }
}
