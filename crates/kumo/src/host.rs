//! `kumo host`: what the host says about itself.

use k2i::host::{HostReport, Stall};

use crate::error::CommandError;
use crate::exit::Exit;
use crate::json;
use crate::output::{Look, Output};
use crate::source::{Source, SourceArgs};
use crate::text;
use crate::units::{self, SizeStyle};

/// Show the host: kernel, CPUs, memory, load, pressure, and how its process table is read
#[derive(Clone, Debug, clap::Args)]
pub struct Host {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    /// Where to ask.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo host
  kumo host --json | jq .memory.available
  kumo host --node http://127.0.0.1:7080";

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Host, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let report = source.host()?;
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
    facts
}

fn stall(stall: Option<&Stall>) -> String {
    let Some(some) = stall.and_then(|stall| stall.some.as_ref()) else {
        return "not known: this kernel does not measure it, or psi=0 is set".to_owned();
    };
    let (avg10, avg60, avg300) = (some.avg10, some.avg60, some.avg300);
    format!("{avg10:>5.1} % of 10 s  {avg60:>5.1} % of 1 min  {avg300:>5.1} % of 5 min")
}
