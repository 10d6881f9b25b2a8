//! `kumo sysctl get`: parameters as they are.

use std::collections::{BTreeMap, BTreeSet};

use kumo_abi::HostId;
use kumo_abi::sysctl::{Parameter, Pattern};
use serde::{Deserialize, Serialize};

use super::Get;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::grid::{self, Cell};
use crate::json;
use crate::output::{Look, Output};
use crate::shown::Shown;
use crate::source::{self, Source};

/// Most hosts that are named beside a value.
const HOSTS_NAMED_MAX: usize = 4;

/// The parameters of one host.
#[expect(clippy::struct_field_names, reason = "these are the names of the answer")]
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Parameters {
    #[serde(flatten)]
    at: HostId,
    as_of: String,
    network_namespace: u64,
    parameters: Vec<Parameter>,
}

pub(super) fn run(args: &Get, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let asked: Vec<Option<&Pattern>> = match args.patterns.as_slice() {
        [] => vec![None],
        patterns => patterns.iter().map(Some).collect(),
    };
    let mut all: Option<Shown<Parameters>> = None;
    let mut found_all = true;
    for pattern in asked {
        let shown = ask(args, source, pattern, out)?;
        let is_found = shown.of_hosts.iter().any(|host| !host.parameters.is_empty());
        if let (false, Some(pattern)) = (is_found, pattern) {
            out.warn(format_args!("no kernel parameter is or begins with `{pattern}`"));
        }
        found_all &= is_found;
        match &mut all {
            None => all = Some(shown),
            Some(all) => join(all, shown),
        }
    }
    let Some(mut all) = all else { return Ok(Exit::Failed) };
    for host in &mut all.of_hosts {
        // Patterns may mean the same.
        let mut seen = BTreeSet::new();
        host.parameters.retain(|one| seen.insert(one.name.clone()));
    }
    if args.json {
        out.line(json::pretty(&all.document())?)?;
    } else if args.values {
        for host in &all.of_hosts {
            for one in &host.parameters {
                out.line(super::value(one.value.as_deref()))?;
            }
        }
    } else {
        for line in lines(&all.of_hosts, args.scope.is_many(), out) {
            out.line(line)?;
        }
    }
    let exit = if found_all { Exit::Done } else { Exit::Failed };
    Ok(all.tell(exit, out))
}

fn ask(
    args: &Get,
    source: &Source,
    pattern: Option<&Pattern>,
    out: &Output,
) -> Result<Shown<Parameters>, CommandError> {
    if let Source::Direct(engine, _) = source {
        let read = k2i::sysctl::list(pattern, true);
        let parameters = read.map_err(|error| CommandError::Usage(crate::chain(&error)))?;
        let config = engine.config();
        let name = |text: &str| format!("{}/{text}", config.dc).parse::<HostId>();
        // A name that no host of a cluster has is one that nobody asks for.
        let at = name(&config.host).or_else(|_| name("this-host"));
        let at = at.map_err(|error| CommandError::Usage(error.to_string()))?;
        let network_namespace = k2i::sysctl::network_namespace();
        let as_of = k2i::host::now();
        let one = Parameters { at, as_of, network_namespace, parameters };
        return Ok(Shown::of_one(one));
    }
    let mut parameters = String::new();
    if let Some(pattern) = pattern {
        source::push_parameter(&mut parameters, "pattern", &pattern.to_string());
    }
    let about =
        if parameters.is_empty() { "sysctl".to_owned() } else { format!("sysctl?{parameters}") };
    Shown::ask(source, &about, &args.scope, out)
}

/// Adds what was asked next. A host that answered once and not again keeps what it said.
fn join(all: &mut Shown<Parameters>, next: Shown<Parameters>) {
    for host in next.of_hosts {
        match all.of_hosts.iter_mut().find(|known| known.at == host.at) {
            Some(known) => known.parameters.extend(host.parameters),
            None => all.of_hosts.push(host),
        }
    }
    if let (Some(before), Some(now)) = (&mut all.asked, next.asked) {
        // Who is missing from one of them is missing.
        if now.missing.len() > before.missing.len() {
            *before = now;
        }
    }
}

fn lines(hosts: &[Parameters], many: bool, out: &Output) -> Vec<String> {
    let width = out.size().map(|(columns, _)| columns);
    if !many {
        let row = |one: &Parameter| vec![Cell::new(&one.name), cell(one)];
        let rows = hosts.iter().flat_map(|host| &host.parameters).map(row);
        return grid::lines(rows.collect(), width, out);
    }
    // Of each name the values, and who has them: what most have comes first.
    let mut names: BTreeMap<&str, BTreeMap<String, (Cell, Vec<&HostId>)>> = BTreeMap::new();
    for host in hosts {
        for one in &host.parameters {
            let values = names.entry(&one.name).or_default();
            let key = format!("{:?} {:?}", one.value, one.unread);
            values.entry(key).or_insert_with(|| (cell(one), Vec::new())).1.push(&host.at);
        }
    }
    if names.is_empty() {
        return Vec::new();
    }
    let mut rows = vec![grid::headings(&["NAME", "VALUE", "HOSTS"])];
    for (name, values) in names {
        let mut values: Vec<_> = values.into_values().collect();
        values.sort_by_key(|(_, hosts)| std::cmp::Reverse(hosts.len()));
        let differs = values.len() > 1;
        for (index, (cell, of)) in values.into_iter().enumerate() {
            let cell = if differs && index > 0 { cell.look(Look::Warn) } else { cell };
            rows.push(vec![Cell::new(name), cell, Cell::new(named(&of, hosts.len()))]);
        }
    }
    grid::lines(rows, width, out)
}

/// `all 6`, `tokyo/a, tokyo/b`, `197 of 200`.
fn named(of: &[&HostId], count: usize) -> String {
    if of.len() == count {
        return format!("all {count}");
    }
    if of.len() <= HOSTS_NAMED_MAX {
        return of.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    }
    format!("{} of {count}", of.len())
}

fn cell(one: &Parameter) -> Cell {
    match (&one.value, &one.unread) {
        (None, Some(why)) => Cell::new(format!("({why})")).look(Look::Dim),
        (value, _) => Cell::new(super::value(value.as_deref())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ColorChoice;

    #[test]
    fn who_has_which_value() {
        let host = |name: &str, value: Option<&str>| Parameters {
            at: name.parse().expect("a host"),
            as_of: String::new(),
            network_namespace: 1,
            parameters: vec![
                Parameter {
                    name: "vm.swappiness".to_owned(),
                    value: value.map(str::to_owned),
                    writable: true,
                    unread: value.is_none().then(|| "it is secret".to_owned()),
                },
                Parameter {
                    name: "a\u{1b}.b".to_owned(),
                    value: Some("1\t2".to_owned()),
                    writable: true,
                    unread: None,
                },
            ],
        };
        let hosts = [
            host("x/a", Some("10")),
            host("x/b", Some("60")),
            host("x/c", Some("60")),
            host("x/d", None),
        ];
        let out = Output::stdout(ColorChoice::Never);
        let want = [
            "NAME           VALUE           HOSTS",
            "a\\x1b.b        1 2             all 4",
            "vm.swappiness  60              x/b, x/c",
            "vm.swappiness  (it is secret)  x/d",
            "vm.swappiness  10              x/a",
        ];
        let mut got = lines(&hosts, true, &out);
        got[3..].sort();
        let mut want = want.map(str::to_owned);
        want[3..].sort();
        assert_eq!(got, want);
        assert_eq!(lines(&hosts[..1], false, &out), ["vm.swappiness  10", "a\\x1b.b        1 2"]);
    }
}
