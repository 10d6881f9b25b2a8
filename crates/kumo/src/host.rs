//! `kumo host`: what a host says about itself, or a line from each of many.

use std::collections::BTreeMap;

use k2i::host::{HostReport, Pressure, Stall};
use k2i::{EventsReport, Losses};
use kumo_abi::HostId;
use kumo_abi::cluster::Outcome;
use serde::Deserialize as _;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::grid::{self, Cell};
use crate::json;
use crate::many::{self, AllAnswers, Progress};
use crate::output::{Look, Output};
use crate::scope::Scope;
use crate::source::{Ask, Source, SourceArgs};
use crate::text;
use crate::units::{self, SizeStyle};

/// Show the host: kernel, CPUs, memory, load, pressure, and how its process table is read
#[derive(Clone, Debug, clap::Args)]
pub struct Host {
    /// Which host of the cluster, as `kumo hosts` lists it; without it the one that is asked
    #[arg(value_name = "DC/HOST", conflicts_with_all = ["all", "dcs", "condition", "collector"])]
    pub which: Option<HostId>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    /// Which hosts: a line for each.
    #[command(flatten)]
    pub scope: Scope,
    /// Where to ask.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo host
  kumo host --json | jq .memory.available
  kumo host --node http://127.0.0.1:7080
  kumo host --all                          a line for each host of the cluster
  kumo host --where 'cpus >= 32'
  kumo host tokyo/web-1                    that one in full

Exit status: 0 done, 1 failed, 2 wrong usage, 3 some hosts did not answer.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Host, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    if args.scope.is_many() {
        return run_many(args, source, out);
    }
    let report = match &args.which {
        None => source.host()?,
        Some(HostId { dc, host }) => {
            source.json(&Ask::get(format!("/v2/hosts/{dc}/{host}/host")))?
        }
    };
    if args.json {
        out.line(json::pretty(&report)?)?;
        return Ok(Exit::Done);
    }
    let width_max = out.size().map_or(usize::MAX, |(columns, _)| columns);
    for (name, value) in facts(&report) {
        let name = format!("{name:<11}");
        let room = width_max.saturating_sub(name.len() + 1);
        let value = text::visible_within(&value, room);
        let name = out.styled(Look::Heading, &name);
        out.line(format_args!("{name} {value}"))?;
    }
    Ok(Exit::Done)
}

fn run_many(args: &Host, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let progress = Progress::new(source, &args.scope, false, out);
    let answers = many::answers(source, "host", &args.scope, progress)?;
    if args.json {
        out.line(json::pretty(&answers)?)?;
    } else {
        for line in grid::lines(rows(&answers), out.size().map(|(columns, _)| columns), out) {
            out.line(line)?;
        }
    }
    let mut exit = Exit::Done;
    for answer in answers.answers.iter().filter(|answer| answer.status != 200) {
        let why = answer.body.get("detail").and_then(|detail| detail.as_str()).unwrap_or("?");
        out.warn(format_args!("{} answers with status {}: {why}", answer.id, answer.status));
        exit = Exit::Partial;
    }
    Ok(answers.hosts.tell(exit, out))
}

/// A line for each host, also for those that did not answer.
fn rows(answers: &AllAnswers) -> Vec<Vec<Cell>> {
    const HEADINGS: [&str; 11] = [
        "HOST",
        "STATE",
        "UP",
        "LOAD",
        "CPUS",
        "MEM",
        "USED",
        "SWAP",
        "PRESSURE",
        "COLLECTOR",
        "KERNEL",
    ];
    let mut rows: BTreeMap<&HostId, Vec<Cell>> = BTreeMap::new();
    for answer in &answers.answers {
        let cells = match HostReport::deserialize(&answer.body) {
            Ok(report) if answer.status == 200 => cells(&report),
            _ => vec![Cell::new("unreadable").look(Look::Warn)],
        };
        rows.insert(&answer.id, cells);
    }
    for missing in &answers.hosts.missing {
        let (state, look) = match &missing.outcome {
            Outcome::Answered => ("alive", Look::Good),
            Outcome::Dead { .. } => ("dead", Look::Bad),
            Outcome::CutOff { .. } => ("cut-off", Look::Warn),
            Outcome::Silent { .. } => ("silent", Look::Warn),
            Outcome::Refused { .. } => ("refused", Look::Warn),
        };
        rows.insert(&missing.id, vec![Cell::new(state).look(look)]);
    }
    let line = |(id, cells): (&HostId, Vec<Cell>)| {
        let mut row = vec![Cell::new(id.to_string())];
        row.extend(cells);
        row
    };
    std::iter::once(grid::headings(&HEADINGS)).chain(rows.into_iter().map(line)).collect()
}

fn cells(report: &HostReport) -> Vec<Cell> {
    let HostReport { boot, load, cpu, memory, .. } = report;
    let number = |text: String| Cell::new(text).right();
    let share = |used: u64, total: u64| match total {
        0 => Cell::unknown().right(),
        total => {
            let percent = 100.0 * used as f64 / total as f64;
            number(format!("{percent:.0}%")).look(look(percent, 85.0, 95.0))
        }
    };
    let busy = 100.0 * load.avg1 / f64::from(cpu.online.max(1));
    vec![
        Cell::new("alive").look(Look::Good),
        number(units::span(boot.uptime_seconds)),
        number(format!("{:.2}", load.avg1)).look(look(busy, 80.0, 150.0)),
        number(cpu.online.to_string()),
        number(units::size(memory.total, SizeStyle::Human)),
        share(memory.total.saturating_sub(memory.available), memory.total),
        share(memory.swap_total.saturating_sub(memory.swap_free), memory.swap_total),
        worst(&report.pressure),
        Cell::new(&report.collector),
        Cell::new(&report.kernel.release),
    ]
}

fn look(value: f64, warn: f64, bad: f64) -> Look {
    match value {
        value if value >= bad => Look::Bad,
        value if value >= warn => Look::Warn,
        _ => Look::Plain,
    }
}

/// What tasks waited for most in the last ten seconds: `io 12.5%`.
fn worst(pressure: &Pressure) -> Cell {
    let known = [("cpu", pressure.cpu), ("mem", pressure.memory), ("io", pressure.io)];
    let share = |stall: Option<Stall>| stall?.some.map(|some| some.avg10);
    let known = known.into_iter().filter_map(|(name, stall)| Some((name, share(stall)?)));
    match known.max_by(|(_, a), (_, b)| a.total_cmp(b)) {
        None => Cell::unknown(),
        Some((_, share)) if share < 0.05 => Cell::new("0%").look(Look::Dim),
        Some((name, share)) => {
            Cell::new(format!("{name} {share:.1}%")).look(look(share, 5.0, 20.0))
        }
    }
}

/// The report as lines of name and value; a second line of the same has no name.
fn facts(report: &HostReport) -> Vec<(&'static str, String)> {
    let size = |bytes| units::size(bytes, SizeStyle::Human);
    let HostReport { kernel, boot, cpu, memory, load, tasks, .. } = report;
    let model = cpu.model.as_deref().unwrap_or("of unknown model");
    let used = memory.total.saturating_sub(memory.available);
    let swap_used = memory.swap_total.saturating_sub(memory.swap_free);
    let swap = match memory.swap_total {
        0 => "none".to_owned(),
        total => format!("{} of {} used", size(swap_used), size(total)),
    };
    let mut facts = vec![
        ("Host", format!("{}/{}", report.dc, report.host)),
        ("Kernel", format!("{} {} {}", kernel.name, kernel.release, kernel.architecture)),
        ("Boot", format!("{}, up {}", boot.boot_time, units::span(boot.uptime_seconds))),
        ("", boot.boot_id.clone()),
        ("CPUs", format!("{} × {model}", cpu.online)),
        ("Load", format!("{:.2} {:.2} {:.2}", load.avg1, load.avg5, load.avg15)),
        (
            "Memory",
            format!(
                "{} of {} used, {} available",
                size(used),
                size(memory.total),
                size(memory.available)
            ),
        ),
        ("Swap", swap),
        (
            "Tasks",
            format!(
                "{} processes, {} threads, {} running, {} blocked, {} started since boot",
                tasks.processes, tasks.threads, tasks.running, tasks.blocked, tasks.forks
            ),
        ),
        ("Pressure", format!("cpu     {}", stall(report.pressure.cpu.as_ref()))),
        ("", format!("memory  {}", stall(report.pressure.memory.as_ref()))),
        ("", format!("io      {}", stall(report.pressure.io.as_ref()))),
    ];
    for (index, rung) in report.ladder.iter().enumerate() {
        let sign = if rung.chosen { "*" } else { " " };
        let name = if index == 0 { "Collector" } else { "" };
        facts.push((name, format!("{sign} {:<7} {}", rung.collector, rung.why)));
    }
    let EventsReport { source, ladder, ended, remembered, lost } = &report.events;
    if let Some(source) = source {
        facts.push((
            "Events",
            format!("{source}: {ended} processes have ended, {remembered} are remembered"),
        ));
        let Losses { execs, exits, reaps, overruns } = lost;
        if *lost != Losses::default() {
            let unknown =
                if *overruns > 0 { format!(", {overruns} overruns") } else { String::new() };
            facts.push(("", format!("lost: {execs} execs, {exits} exits, {reaps} reaps{unknown}")));
        }
    } else {
        for (index, rung) in ladder.iter().enumerate() {
            let name = if index == 0 { "Events" } else { "" };
            facts.push((name, format!("none: {}: {}", rung.collector, rung.why)));
        }
    }
    facts
}

fn stall(stall: Option<&Stall>) -> String {
    let Some(some) = stall.and_then(|stall| stall.some.as_ref()) else {
        return "not known: this kernel does not measure it, or psi=0 is set".to_owned();
    };
    let (avg10, avg60, avg300) = (some.avg10, some.avg60, some.avg300);
    format!("{avg10:>5.1} % of 10 s  {avg60:>5.1} % of 1 min  {avg300:>5.1} % of 5 min")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ColorChoice;
    use crate::top::made_up_report;
    use serde_json::json;

    #[test]
    fn every_host_has_a_line() {
        let body = serde_json::to_value(made_up_report()).expect("JSON");
        let answers: AllAnswers = serde_json::from_value(json!({
            "hosts": {"asked": 4, "answered": 2, "missing": [
                {"dc": "osaka", "host": "c", "outcome": "dead", "for_ms": 5},
                {"dc": "tokyo", "host": "d", "outcome": "silent", "after_ms": 5},
            ]},
            "answers": [
                {"dc": "tokyo", "host": "b", "status": 200, "body": body},
                {"dc": "tokyo", "host": "e", "status": 500, "body": {"detail": "no"}},
            ],
        }))
        .expect("an answer");
        let out = Output::stdout(ColorChoice::Never);
        let lines = grid::lines(rows(&answers), None, &out);
        let words = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let want = [
            "HOST STATE UP LOAD CPUS MEM USED SWAP PRESSURE COLLECTOR KERNEL",
            "osaka/c dead",
            "tokyo/b alive 3 days 4 h 0.52 2 16.0G 25% - cpu 12.5% proc 6.1.0",
            "tokyo/d silent",
            "tokyo/e unreadable",
        ];
        assert_eq!(lines.iter().map(words).collect::<Vec<_>>(), want);
    }
}
