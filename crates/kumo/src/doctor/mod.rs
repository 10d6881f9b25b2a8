//! `kumo doctor`: what this kernel offers, why it matters, and how to get what is missing.
//!
//! [`probe`] reads; the rules in [`kernel`] and [`runtimes`] turn what was read into [`Check`]s.

mod kernel;
mod probe;
mod runtimes;

use serde::Serialize;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{Look, Output};
use crate::text;

/// Width of a report on something that is no terminal.
const WIDTH_DEFAULT: usize = 100;

/// Widest that text is set, however wide the terminal: longer lines read badly.
const WIDTH_MAX: usize = 110;

/// Show what this kernel and this host offer, and how to get what is missing
#[derive(Clone, Debug, clap::Args)]
pub struct Doctor {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo doctor
  sudo kumo doctor               with root's rights: what a node of root would have
  kumo doctor --json | jq '.checks[] | select(.state != \"ok\") | .name'

It changes nothing. It runs `--version` of the runtimes that it finds in PATH. Exit status 0,
whatever it finds.";

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It is there.
    Ok,
    /// It is there in part, or for others only.
    Limited,
    /// It is not there.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    /// What it belongs to.
    area: &'static str,
    /// What it is.
    name: &'static str,
    /// How it stands.
    state: State,
    /// What was found.
    found: String,
    /// Why it matters.
    why: &'static str,
    /// How to get it; null when nothing is missing.
    fix: Option<String>,
}

#[derive(Serialize)]
struct Report {
    checks: Vec<Check>,
}

/// Runs it.
///
/// # Errors
/// Standard output.
pub fn run(args: &Doctor, out: &mut Output) -> Result<Exit, CommandError> {
    let mut checks = kernel::checks(&probe::kernel());
    checks.extend(runtimes::checks(&probe::runtimes()));
    let report = Report { checks };
    if args.json {
        let json = crate::json::pretty(&report)?;
        out.line(json)?;
        return Ok(Exit::Done);
    }
    print(&report.checks, out)?;
    Ok(Exit::Done)
}

fn print(checks: &[Check], out: &mut Output) -> Result<(), CommandError> {
    let width = out.size().map_or(WIDTH_DEFAULT, |(columns, _)| columns.min(WIDTH_MAX));
    let name_width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let indent = 2 + 8 + name_width + 1;
    let mut area = "";
    for check in checks {
        if check.area != area {
            let gap = if area.is_empty() { "" } else { "\n" };
            area = check.area;
            let heading = out.styled(Look::Heading, area);
            out.line(format_args!("{gap}{heading}"))?;
        }
        let (word, look) = match check.state {
            State::Ok => ("ok", Look::Good),
            State::Limited => ("limited", Look::Warn),
            State::Missing => ("missing", Look::Dim),
        };
        let state = out.styled(look, &format!("{word:<8}"));
        let found = text::visible(&check.found);
        let lines = text::wrap(&found, width.saturating_sub(indent));
        let mut lines = lines.iter();
        let first = lines.next().map_or("", String::as_str);
        out.line(format_args!("  {state}{:<name_width$} {first}", check.name))?;
        let mut more: Vec<String> = lines.cloned().collect();
        if let Some(fix) = &check.fix {
            let why = format!("For: {}", check.why);
            let fix = format!("To get it: {}", text::visible(fix));
            for text in [why, fix] {
                let lines = text::wrap(&text, width.saturating_sub(indent));
                more.extend(lines.iter().map(|line| out.styled(Look::Dim, line)));
            }
        }
        for line in more {
            out.line(format_args!("{:indent$}{line}", ""))?;
        }
    }
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    out.line(format_args!(
        "\n{} ok, {} limited, {} missing",
        count(State::Ok),
        count(State::Limited),
        count(State::Missing)
    ))?;
    Ok(())
}
