//! `kumo kill`: signals to processes that are named by number, identity or condition.
//!
//! It always looks at this host itself: what a node says may be of another moment or another host,
//! and a signal goes to exactly who was shown, or to nobody.

use std::ffi::OsString;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::str::FromStr;
use std::time::{Duration, Instant};

use k2i::signal::{Signal, SignalError, Target};
use k2i::{CollectorChoice, CollectorKind};
use kumo_abi::proc::{COLUMNS_DEFAULT, PROC};
use kumo_abi::{IdentityError, ProcessId, Query, QueryText, Row};
use kumo_sys::Ended;
use serde_json::Value;

use crate::cel;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::Output;
use crate::source::Source;
use crate::table::{self, Column, Style};
use crate::units::SizeStyle;

/// Send a signal to processes, never to the wrong one
#[derive(Clone, Debug, clap::Args)]
pub struct Kill {
    /// Processes, by number (4711) or by identity (4711@8172391234, as `kumo ps -o id` prints it)
    #[arg(value_name = "PID|PID@START", required_unless_present_any = ["list", "filter"])]
    targets: Vec<Named>,
    /// The signal, by name or number; also as -9 or -KILL
    #[arg(short, long, value_name = "SIGNAL", default_value = "TERM")]
    signal: Signal,
    /// All processes that fulfil this condition (CEL), after showing them and asking
    #[arg(long, value_name = "CEL", conflicts_with = "targets")]
    filter: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Wait until they have ended
    #[arg(short, long)]
    wait: bool,
    /// Wait at most this many seconds
    #[arg(long, value_name = "SECS", requires = "wait")]
    timeout: Option<u32>,
    /// Show who would be hit, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Allow process 1: the system, or the container, ends with it
    #[arg(long)]
    force: bool,
    /// List the signals
    #[arg(short, long, conflicts_with_all = ["targets", "filter"])]
    list: bool,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo kill 4711                        ask it to end (TERM)
  kumo kill -9 4711                     end it at once
  kumo kill 4711@8172391234000000       this process, even if 4711 has been given again
  kumo kill --wait --timeout 10 4711    and wait until it has ended
  kumo kill --filter 'user == \"bob\" && comm == \"yes\"'
  kumo kill $(kumo pgrep --id -x myapp)
  kumo kill --list

A PID is whatever process has the number now. PID@START is refused when the number has passed to
another process. Exit status: 0 all were hit (and with --wait ended), 1 none was or it failed,
2 wrong usage, 3 some were hit.";

/// A process as the user names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Number(i32),
    Id(ProcessId),
}

/// Why a text names no process that can be signalled.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum NamedError {
    #[error(
        "{0} names a group of processes or all of them; name the processes, or use --filter 'pgrp == …'"
    )]
    Group(i64),
    #[error("write a process number such as 4711, or an identity such as 4711@8172391234000000")]
    Number,
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl FromStr for Named {
    type Err = NamedError;
    fn from_str(text: &str) -> Result<Named, NamedError> {
        if text.contains('@') {
            return Ok(Named::Id(text.parse()?));
        }
        match text.parse::<i64>().map_err(|_| NamedError::Number)? {
            group if group <= 0 => Err(NamedError::Group(group)),
            pid => i32::try_from(pid).map(Named::Number).map_err(|_| NamedError::Number),
        }
    }
}

impl Named {
    fn pid(self) -> i32 {
        match self {
            Named::Number(pid) => pid,
            Named::Id(id) => id.pid,
        }
    }
}

/// What may not be signalled, and why.
fn refusal(pid: i32, own: i32, force: bool) -> Option<String> {
    if pid == own {
        return Some(format!("process {pid} is this command itself"));
    }
    let warning = "process 1 is the system (or the container): all ends with it; say --force";
    (pid == 1 && !force).then(|| warning.to_owned())
}

/// Rewrites `-9` and `-KILL` behind `kill` to `--signal=…`, which the parser of options knows.
pub fn rewrite(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut is_kill = false;
    let mut is_over = false;
    let mut value_next = false;
    let rewrite = |(index, arg): (usize, OsString)| {
        let Some(text) = arg.to_str() else { return arg };
        if !is_kill {
            // The first word that is neither an option nor the value of one is the subcommand.
            let is_word = index > 0 && !text.starts_with('-') && !value_next;
            value_next = text == "--color";
            is_over |= is_word && text != "kill";
            is_kill = is_word && !is_over;
            return arg;
        }
        is_over |= text == "--";
        match text.strip_prefix('-') {
            Some(name) if !is_over && is_signal_flag(name) => format!("--signal={name}").into(),
            _ => arg,
        }
    };
    args.into_iter().enumerate().map(rewrite).collect()
}

/// A number, or a name in capitals: small letters are options of their own.
fn is_signal_flag(name: &str) -> bool {
    let number = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let capital = name.starts_with(|c: char| c.is_ascii_uppercase());
    number || (capital && name.parse::<Signal>().is_ok())
}

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Kill, out: &mut Output) -> Result<Exit, CommandError> {
    if args.list {
        for signal in Signal::all() {
            out.line(format_args!("{:>2} {signal:<9} {}", signal.number(), signal.about()))?;
        }
        return Ok(Exit::Done);
    }
    let own = std::process::id() as i32;
    let chosen: Vec<Named> = match &args.filter {
        Some(filter) => {
            let Some(chosen) = choose(args, filter, own, out)? else { return Ok(Exit::Failed) };
            chosen
        }
        None => args.targets.clone(),
    };
    let refused = |named: &Named| refusal(named.pid(), own, args.force);
    if let Some(refusal) = chosen.iter().find_map(refused) {
        // Nothing is sent at all: half of a mistaken command is not what anybody wants.
        return Err(CommandError::Usage(refusal));
    }
    let mut hit: Vec<ProcessId> = Vec::new();
    for named in &chosen {
        match send(args, *named) {
            Ok(id) => {
                if args.dry_run {
                    out.line(format_args!("would send {} to {id}", args.signal))?;
                }
                hit.push(id);
            }
            Err(error) => out.warn(crate::chain(&error)),
        }
    }
    let sent = hit.len();
    let ended = if args.wait && !args.dry_run { wait(args, &hit, out)? } else { true };
    Ok(match sent {
        _ if !ended => Exit::Failed,
        sent if sent == chosen.len() => Exit::Done,
        0 => Exit::Failed,
        _ => Exit::Partial,
    })
}

fn send(args: &Kill, named: Named) -> Result<ProcessId, SignalError> {
    let target = match named {
        Named::Number(pid) => Target::find(pid)?,
        Named::Id(id) => Target::open(id)?,
    };
    if !args.dry_run {
        target.send(args.signal)?;
    }
    Ok(target.id())
}

/// Waits for all of them; says who has not ended. Each is opened again by its identity, so that no
/// more than one descriptor is open however many there are.
fn wait(args: &Kill, hit: &[ProcessId], out: &mut Output) -> Result<bool, CommandError> {
    let began = Instant::now();
    let time_max = args.timeout.map(|seconds| Duration::from_secs(seconds.into()));
    let mut all = true;
    for id in hit {
        let left = time_max.map(|max| max.saturating_sub(began.elapsed()));
        let ended = match Target::open(*id) {
            Err(SignalError::Gone(_) | SignalError::Other { .. }) => Ended::Yes,
            opened => opened?.wait(left)?,
        };
        if ended == Ended::NotYet {
            all = false;
            out.warn(format_args!("process {id} still runs; `kumo kill -9 {id}` cannot be caught"));
        }
    }
    Ok(all)
}

/// Who fulfils the condition, after the user has agreed; `None` if there is nobody or they did not.
fn choose(
    args: &Kill,
    filter: &str,
    own: i32,
    out: &mut Output,
) -> Result<Option<Vec<Named>>, CommandError> {
    let text = QueryText {
        columns: Some("id,user,rss,start,cmdline".to_owned()),
        filter: Some(cel::all_of(&[format!("pid != {own}"), cel::typed(filter)?])?),
        ..QueryText::default()
    };
    let query = Query::parse(&text, &PROC, COLUMNS_DEFAULT)?;
    let columns = Column::of(&query);
    let source = Source::direct(CollectorChoice::Only(CollectorKind::Proc))?;
    let rows = source.proc(&text)?.rows;
    let id = |row: &Row| match row.get("id") {
        Some(Value::String(id)) => id.parse::<ProcessId>().ok(),
        _ => None,
    };
    let ids: Vec<ProcessId> = rows.iter().filter_map(id).collect();
    if ids.is_empty() {
        out.warn("no process fulfils the condition");
        return Ok(None);
    }
    if args.yes || args.dry_run {
        return Ok(Some(ids.into_iter().map(Named::Id).collect()));
    }
    let style = Style {
        sizes: SizeStyle::Human,
        now: crate::ps::local_now(),
        width_max: out.size().map(|(columns, _)| columns),
        header: true,
    };
    for line in table::lines(&columns, rows.iter(), None, &style, out) {
        out.line(line)?;
    }
    out.flush()?;
    if !io::stdin().is_terminal() {
        let what = "there is nobody to ask whether to signal these; say --yes if they are meant";
        return Err(CommandError::Usage(what.to_owned()));
    }
    let s = if ids.len() == 1 { "" } else { "es" };
    write!(io::stderr(), "Send {} to {} process{s}? [y/N] ", args.signal, ids.len())?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    let agreed = matches!(answer.trim(), "y" | "Y" | "yes");
    Ok(agreed.then(|| ids.into_iter().map(Named::Id).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes() {
        let cases = [
            ("4711", Ok(Named::Number(4711))),
            ("7@9", Ok(Named::Id(ProcessId { pid: 7, start_ns: 9 }))),
            ("0", Err(NamedError::Group(0))),
            ("-1", Err(NamedError::Group(-1))),
            ("-4711", Err(NamedError::Group(-4711))),
            ("99999999999", Err(NamedError::Number)),
            ("sshd", Err(NamedError::Number)),
            ("", Err(NamedError::Number)),
            ("0@5", Err(NamedError::Identity(IdentityError::Range(0)))),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse(), want, "for {text:?}");
        }
    }

    #[test]
    fn who_is_spared() {
        assert!(refusal(7, 7, true).is_some(), "itself, whatever is said");
        assert!(refusal(1, 7, false).is_some());
        assert!(refusal(1, 7, true).is_none());
        assert!(refusal(2, 7, false).is_none());
    }

    #[test]
    fn signals_as_options() {
        let cases = [
            ("kumo kill -9 5", "kumo kill --signal=9 5"),
            ("kumo kill -KILL 5", "kumo kill --signal=KILL 5"),
            ("kumo kill 5 -SIGHUP", "kumo kill 5 --signal=SIGHUP"),
            ("kumo -v kill -RTMIN+1 5", "kumo -v kill --signal=RTMIN+1 5"),
            ("kumo --color never kill -1 5", "kumo --color never kill --signal=1 5"),
            ("kumo kill -s 9 -w -y -l", "kumo kill -s 9 -w -y -l"),
            ("kumo kill -- -9", "kumo kill -- -9"),
            ("kumo kill -99 5", "kumo kill --signal=99 5"),
            ("kumo kill -NOPE 5", "kumo kill -NOPE 5"),
            ("kumo ps -9", "kumo ps -9"),
            ("kumo ps kill -9", "kumo ps kill -9"),
            ("kumo pgrep -u kill -9", "kumo pgrep -u kill -9"),
        ];
        for (line, want) in cases {
            let rewritten = rewrite(line.split(' ').map(OsString::from));
            let rewritten: Vec<_> = rewritten.iter().filter_map(|arg| arg.to_str()).collect();
            assert_eq!(rewritten.join(" "), want);
        }
    }
}
