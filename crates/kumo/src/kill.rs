//! `kumo kill`: signals to processes that are named by number, identity or condition.
//!
//! Processes of this host it looks at itself: what a node says may be of another moment, and a signal
//! goes to exactly who was shown, or to nobody. Those of other hosts are signalled by their own nodes,
//! by the same identities; what became of each is told as far as it is known.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use k2i::signal::{Signal, SignalError, Target};
use k2i::{CollectorChoice, CollectorKind};
use kumo_abi::proc::{COLUMNS_DEFAULT, PROC};
use kumo_abi::rights::Lines;
use kumo_abi::{HostId, IdentityError, NameError, ProcessId, Query, QueryText, Row, Rows};
use kumo_sys::Ended;
use serde_json::{Value, json};

use crate::cel;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::many::{self, Progress};
use crate::output::Output;
use crate::scope::{HostChoice, Scope};
use crate::source::{self, Ask, NodeArgs, Source, SourceError};
use crate::table::{self, Column, Style};
use crate::units::SizeStyle;

/// How long hosts are waited for when nobody says.
const HOSTS_WAIT_MS: u64 = 2_000;

/// Time between two looks at processes of other hosts that are waited for: short for a person, and a
/// few bytes for a wide link.
const LOOK_TIME: Duration = Duration::from_millis(200);

/// Most processes that were not hit and are named one by one; the rest is counted.
const NAMED_MAX: usize = 10;

/// Send a signal to processes, never to the wrong one
#[derive(Clone, Debug, clap::Args)]
pub struct Kill {
    /// Processes, by number (4711) or by identity (4711@8172391234, as `kumo ps -o id` prints it);
    /// those of another host with it in front (tokyo/a/4711)
    #[arg(value_name = "[DC/HOST/]PID[@START]", required_unless_present_any = ["list", "filter"])]
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
    /// Which hosts the condition looks at; this one alone without.
    #[command(flatten)]
    hosts: HostChoice,
    /// Wait this long for other hosts, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = HOSTS_WAIT_MS, help_heading = "Which hosts")]
    #[arg(value_parser = clap::value_parser!(u64).range(10..=60_000))]
    hosts_wait: u64,
    /// Which node to ask about other hosts.
    #[command(flatten)]
    pub at: NodeArgs,
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
  kumo kill tokyo/a/4711                a process of another host
  kumo kill --dc osaka --filter 'comm == \"yes\"'
  kumo kill --list

A PID is whatever process has the number now. PID@START is refused when the number has passed to
another process. Exit status: 0 all were hit (and with --wait ended), 1 none was or it failed,
2 wrong usage, 3 some were hit, or some hosts did not answer. Where a host fell silent it is said that
nobody knows whether the signal was sent.";

/// A process of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Whoever has this number now.
    Number(i32),
    /// This one or none.
    Id(ProcessId),
}

impl Which {
    fn pid(self) -> i32 {
        match self {
            Which::Number(pid) => pid,
            Which::Id(id) => id.pid,
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Number(pid) => write!(f, "{pid}"),
            Which::Id(id) => write!(f, "{id}"),
        }
    }
}

/// A process as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its host; this one without.
    pub host: Option<HostId>,
    /// Which of its processes.
    pub which: Which,
}

/// Why a text names no process that can be signalled.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamedError {
    #[error(
        "{0} names a group of processes or all of them; name the processes, or use --filter 'pgrp == …'"
    )]
    Group(i64),
    #[error(
        "write a process number such as 4711, an identity such as 4711@8172391234000000, or either of \
         another host: tokyo/a/4711"
    )]
    Number,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Host(#[from] NameError),
}

impl FromStr for Named {
    type Err = NamedError;
    fn from_str(text: &str) -> Result<Named, NamedError> {
        let (host, which) = match text.rsplit_once('/') {
            Some((host, which)) => (Some(host.parse()?), which),
            None => (None, text),
        };
        if which.contains('@') {
            return Ok(Named { host, which: Which::Id(which.parse()?) });
        }
        match which.parse::<i64>().map_err(|_| NamedError::Number)? {
            group if group <= 0 => Err(NamedError::Group(group)),
            pid => {
                let pid = i32::try_from(pid).map_err(|_| NamedError::Number)?;
                Ok(Named { host, which: Which::Number(pid) })
            }
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host}/{}", self.which),
            None => write!(f, "{}", self.which),
        }
    }
}

/// What may not be signalled, and why.
fn refusal(pid: i32, own: Option<i32>, force: bool) -> Option<String> {
    if Some(pid) == own {
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
            value_next = ["--color", "--node", "--run-dir", "--token-file"].contains(&text);
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
    if args.hosts.is_many() && args.filter.is_none() {
        let what = "--all, --dc and --where say where --filter looks; a process of another host is \
                    named as tokyo/a/4711";
        return Err(CommandError::Usage(what.to_owned()));
    }
    let is_far = |named: &Named| named.host.is_some();
    let names_node = args.at.node.is_some() || args.at.run_dir.is_some();
    if names_node
        && !args.hosts.is_many()
        && !(args.filter.is_none() && args.targets.iter().all(is_far))
    {
        // Else a number that was meant for a process there would hit one here.
        let what = "--node and --run-dir say whom to ask about other hosts; name the host of each \
                    process, as in tokyo/a/4711, or leave them out to signal processes of this host";
        return Err(CommandError::Usage(what.to_owned()));
    }
    let own = std::process::id() as i32;
    let mut exit = Exit::Done;
    let chosen: Vec<Named> = match &args.filter {
        Some(filter) => {
            let found = if args.hosts.is_many() {
                let (found, missing) = find_many(args, filter, out)?;
                exit = missing;
                found
            } else {
                find(filter, own)?
            };
            match choose(args, found, out)? {
                Some(chosen) => chosen,
                None if exit == Exit::Partial => return Ok(exit),
                None => return Ok(Exit::Failed),
            }
        }
        None => args.targets.clone(),
    };
    let refused = |named: &Named| {
        refusal(named.which.pid(), Some(own).filter(|_| named.host.is_none()), args.force)
    };
    if let Some(refusal) = chosen.iter().find_map(refused) {
        // Nothing is sent at all: half of a mistaken command is not what anybody wants.
        return Err(CommandError::Usage(refusal));
    }
    let (there, here): (Vec<Named>, Vec<Named>) =
        chosen.iter().cloned().partition(|named| named.host.is_some());
    // Before anything is sent here it is certain that there is a node to ask about the others.
    let node = if there.is_empty() { None } else { Some(Source::open_node(&args.at)?.0) };
    let mut hit: Vec<ProcessId> = Vec::new();
    for named in &here {
        match send(args, named.which) {
            Ok(id) => {
                if args.dry_run {
                    out.line(format_args!("would send {} to {id}", args.signal))?;
                }
                hit.push(id);
            }
            Err(error) => out.warn(crate::chain(&error)),
        }
    }
    let hit_there = match &node {
        Some(node) => send_there(args, node, &there, out)?,
        None => Vec::new(),
    };
    let sent = hit.len() + hit_there.len();
    let mut ended = true;
    if args.wait && !args.dry_run {
        let began = Instant::now();
        ended = wait(args, began, &hit, out)?;
        if let Some(node) = &node {
            ended &= wait_there(args, node, began, hit_there, out);
        }
    }
    Ok(match sent {
        _ if !ended => Exit::Failed,
        sent if sent == chosen.len() => exit,
        0 if exit == Exit::Done => Exit::Failed,
        _ => Exit::Partial,
    })
}

fn send(args: &Kill, which: Which) -> Result<ProcessId, SignalError> {
    let target = match which {
        Which::Number(pid) => Target::find(pid)?,
        Which::Id(id) => Target::open(id)?,
    };
    if !args.dry_run {
        target.send(args.signal)?;
    }
    Ok(target.id())
}

/// What became of a signal to a process of another host.
#[derive(Debug, PartialEq)]
enum Fate {
    /// It was sent, to exactly this process; or would be.
    Sent(ProcessId),
    /// There was no such process any more; nothing was sent.
    Ended(String),
    /// Its host did not send it.
    Refused(String),
    /// Nobody can tell.
    Unknown(String),
}

/// What a node's answer to the request for a signal means.
fn fate(answer: Result<Vec<u8>, SourceError>) -> Fate {
    let error = match answer {
        Ok(body) => {
            let id = serde_json::from_slice::<Value>(&body).ok();
            let id = id.as_ref().and_then(|sent| sent.get("id")?.as_str()?.parse().ok());
            return match id {
                Some(id) => Fate::Sent(id),
                None => Fate::Unknown("its host answers as ours do not".to_owned()),
            };
        }
        Err(error) => error,
    };
    let said = crate::chain(&error);
    match error {
        SourceError::Refused(problem) => match (problem.status, problem.kind.rsplit(':').next()) {
            (404, Some("no-such-process")) | (409, _) => Fate::Ended(said),
            // The host was asked, and then nothing came, or nothing that can be understood.
            (500 | 502 | 504, _) => Fate::Unknown(said),
            _ => Fate::Refused(said),
        },
        // It was asked; the way back is what failed.
        SourceError::Broken { .. } | SourceError::Silent { .. } | SourceError::Foreign { .. } => {
            Fate::Unknown(said)
        }
        _ => Fate::Refused(said),
    }
}

/// Sends a signal to exactly this process of a host, by that host's node.
///
/// # Errors
/// In words: why it was not sent, or that nobody knows whether it was.
pub fn send_to(
    node: &Source,
    host: &HostId,
    id: ProcessId,
    signal: Signal,
    wait: Duration,
) -> Result<(), String> {
    let mut answer = Vec::new();
    let asked = node.fetch(&signal_request(host, Which::Id(id), signal, false, wait), &mut answer);
    match fate(asked.map(|()| answer)) {
        Fate::Sent(_) => Ok(()),
        Fate::Ended(said) | Fate::Refused(said) => Err(said),
        Fate::Unknown(said) => Err(format!("it is not known whether it was sent: {said}")),
    }
}

/// The request that a host's node sends a signal.
fn signal_request(host: &HostId, which: Which, signal: Signal, force: bool, wait: Duration) -> Ask {
    let HostId { dc, host } = host;
    let wait_ms = wait.as_millis();
    let path = format!("/v2/hosts/{dc}/{host}/proc/{which}/signal?wait_ms={wait_ms}");
    let mut body = json!({ "signal": signal.to_string() });
    if force {
        body["force"] = true.into();
    }
    Ask::post(path, &body).that_waits(wait)
}

/// Signals each by its host's node, or with `--dry-run` looks whether it is there; says what became
/// of those that were not hit.
fn send_there(
    args: &Kill,
    node: &Source,
    there: &[Named],
    out: &mut Output,
) -> Result<Vec<(HostId, ProcessId)>, CommandError> {
    let asks =
        there.iter().filter_map(|named| Some(request(args, named.host.as_ref()?, named.which)));
    let mut fates: Vec<Option<Fate>> = there.iter().map(|_| None).collect();
    node.each(asks.collect(), |index, answer| {
        fates[index] = Some(if args.dry_run {
            fate_of_look(answer, there[index].which)
        } else {
            fate(answer)
        });
    });
    let mut hit = Vec::new();
    let mut missed = Missed::default();
    for (named, fate) in there.iter().zip(fates) {
        match (fate, &named.host) {
            (Some(Fate::Sent(id)), Some(host)) => {
                if args.dry_run {
                    out.line(format_args!("would send {} to {host}/{id}", args.signal))?;
                }
                hit.push((host.clone(), id));
            }
            (fate, _) => missed.note(named, fate, out),
        }
    }
    missed.tell(hit.len(), args, out);
    Ok(hit)
}

/// Counts of those that were not hit.
#[derive(Default)]
struct Missed {
    ended: usize,
    refused: usize,
    unknown: usize,
}

impl Missed {
    fn count(&self) -> usize {
        self.ended + self.refused + self.unknown
    }

    fn note(&mut self, named: &Named, fate: Option<Fate>, out: &mut Output) {
        let (count, said) = match fate {
            Some(Fate::Ended(said)) => (&mut self.ended, said),
            Some(Fate::Refused(said)) => (&mut self.refused, said),
            Some(Fate::Unknown(said)) => {
                (&mut self.unknown, format!("it is not known whether it was sent: {said}"))
            }
            Some(Fate::Sent(_)) | None => (&mut self.unknown, "nothing is known of it".to_owned()),
        };
        *count += 1;
        if self.count() <= NAMED_MAX {
            out.warn(format_args!("{named}: {said}"));
        }
    }

    /// One line for all, where it says more than the lines before.
    fn tell(&self, sent: usize, args: &Kill, out: &mut Output) {
        if sent + self.count() > 1 && !args.dry_run {
            out.warn(self.summary(sent, args.signal));
        }
    }

    fn summary(&self, sent: usize, signal: Signal) -> String {
        let s = if sent == 1 { "" } else { "es" };
        let mut text = format!("sent {signal} to {sent} process{s} of other hosts");
        for (count, what) in [
            (self.ended, "had ended meanwhile"),
            (self.refused, "refused"),
            (self.unknown, "unknown whether it was sent"),
        ] {
            if count > 0 {
                // A string takes whatever is written to it.
                write!(text, "; {count} {what}").ok();
            }
        }
        text
    }
}

/// What a node is asked: to send the signal, or with `--dry-run` whether the process is there.
fn request(args: &Kill, host: &HostId, which: Which) -> Ask {
    let wait = Duration::from_millis(args.hosts_wait);
    if args.dry_run {
        let HostId { dc, host } = host;
        let parameters = format!("wait_ms={}", args.hosts_wait);
        return look(dc.as_str(), host.as_str(), &[which.pid()], parameters).that_waits(wait);
    }
    signal_request(host, which, args.signal, args.force, wait)
}

/// The question which of these processes a host has.
fn look(dc: &str, host: &str, pids: &[i32], mut parameters: String) -> Ask {
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    source::push_parameter(&mut parameters, "columns", "id,state");
    source::push_parameter(&mut parameters, "filter", &format!("pid in [{}]", pids.join(",")));
    Ask::get(format!("/v2/hosts/{dc}/{host}/proc?{parameters}"))
}

/// What a node's answer to [`look`] means for this process.
fn fate_of_look(answer: Result<Vec<u8>, SourceError>, which: Which) -> Fate {
    let body = match answer {
        Ok(body) => body,
        Err(error) => return Fate::Refused(crate::chain(&error)),
    };
    let Some(ids) = living(&body) else {
        return Fate::Refused("its host answers as ours do not".to_owned());
    };
    let is_meant = |id: &&ProcessId| match which {
        Which::Number(pid) => id.pid == pid,
        Which::Id(wanted) => id.same(&wanted),
    };
    match ids.iter().find(is_meant) {
        Some(id) => Fate::Sent(*id),
        None => Fate::Ended("it is gone".to_owned()),
    }
}

/// Those of an answer to [`look`] that have not ended; `None` if it is no such answer. A zombie has.
fn living(body: &[u8]) -> Option<Vec<ProcessId>> {
    let rows: Rows = serde_json::from_slice(body).ok()?;
    let has_ended =
        |row: &&Row| !matches!(row.get("state").and_then(Value::as_str), Some("Z" | "X"));
    Some(rows.rows.iter().filter(has_ended).filter_map(id_of).collect())
}

fn id_of(row: &Row) -> Option<ProcessId> {
    row.get("id")?.as_str()?.parse().ok()
}

/// Waits for all of them; says who has not ended. Each is opened again by its identity, so that no
/// more than one descriptor is open however many there are.
fn wait(
    args: &Kill,
    began: Instant,
    hit: &[ProcessId],
    out: &mut Output,
) -> Result<bool, CommandError> {
    let time_max = args.time_max();
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

/// As [`wait`], of processes of other hosts: their nodes are asked again and again.
fn wait_there(
    args: &Kill,
    node: &Source,
    began: Instant,
    hit: Vec<(HostId, ProcessId)>,
    out: &mut Output,
) -> bool {
    let mut left: BTreeMap<HostId, BTreeSet<ProcessId>> = BTreeMap::new();
    for (host, id) in hit {
        left.entry(host).or_default().insert(id);
    }
    let mut all = true;
    loop {
        let hosts: Vec<HostId> = left.keys().cloned().collect();
        let ask = |host: &HostId| {
            let pids: Vec<i32> = left[host].iter().map(|id| id.pid).collect();
            let parameters = format!("wait_ms={}", args.hosts_wait);
            let ask = look(host.dc.as_str(), host.host.as_str(), &pids, parameters);
            ask.that_waits(Duration::from_millis(args.hosts_wait))
        };
        let asks = hosts.iter().map(ask).collect();
        node.each(asks, |index, answer| {
            let host = &hosts[index];
            let why = match answer.map(|body| living(&body)) {
                Ok(Some(living)) => {
                    if let Some(ids) = left.get_mut(host) {
                        ids.retain(|id| living.iter().any(|other| other.same(id)));
                    }
                    return;
                }
                Ok(None) => "its host answers as ours do not".to_owned(),
                Err(error) => crate::chain(&error),
            };
            let ids = left.remove(host).unwrap_or_default();
            all = false;
            out.warn(format_args!(
                "{host}: not known of {} whether it has ended: {why}",
                ids.len()
            ));
        });
        left.retain(|_, ids| !ids.is_empty());
        if left.is_empty() {
            return all;
        }
        if args.time_max().is_some_and(|max| began.elapsed() >= max) {
            for (host, id) in
                left.iter().flat_map(|(host, ids)| ids.iter().map(move |id| (host, id)))
            {
                out.warn(format_args!("process {host}/{id} still runs; -9 cannot be caught"));
            }
            return false;
        }
        thread::sleep(LOOK_TIME);
    }
}

impl Kill {
    fn time_max(&self) -> Option<Duration> {
        self.timeout.map(|seconds| Duration::from_secs(seconds.into()))
    }

    fn scope(&self) -> Scope {
        Scope { hosts: self.hosts.clone(), wait: Some(self.hosts_wait) }
    }
}

/// Who fulfils a condition.
struct Found {
    columns: Vec<Column>,
    rows: Vec<Row>,
    /// For each row.
    named: Vec<Named>,
}

/// The question who fulfils a condition and is not this command itself.
fn question(filter: &str, not_itself: String) -> Result<(QueryText, Vec<Column>), CommandError> {
    let text = QueryText {
        columns: Some("id,user,rss,start,cmdline".to_owned()),
        filter: Some(cel::all_of(&[not_itself, cel::typed(filter)?])?),
        ..QueryText::default()
    };
    let columns = Column::of(&Query::parse(&text, &PROC, COLUMNS_DEFAULT)?);
    Ok((text, columns))
}

/// Who fulfils the condition on this host.
fn find(filter: &str, own: i32) -> Result<Found, CommandError> {
    let (text, columns) = question(filter, format!("pid != {own}"))?;
    let source = Source::direct(CollectorChoice::Only(CollectorKind::Proc), Lines::Whole)?;
    let mut rows = source.proc(&text)?.rows;
    rows.retain(|row| id_of(row).is_some());
    let named = |row: &Row| Some(Named { host: None, which: Which::Id(id_of(row)?) });
    let named = rows.iter().filter_map(named).collect();
    Ok(Found { columns, rows, named })
}

/// Who fulfils it on many hosts; those that did not answer are named.
fn find_many(args: &Kill, filter: &str, out: &mut Output) -> Result<(Found, Exit), CommandError> {
    args.hosts.rule()?;
    // What is wrong with it is told before anybody is asked.
    question(filter, "true".to_owned())?;
    let (source, _) = Source::open_node(&args.at)?;
    let not_itself = many::not_itself(&source)?.unwrap_or_else(|| "true".to_owned());
    let (text, mut columns) = question(filter, not_itself)?;
    let scope = args.scope();
    let progress = Progress::new(&source, &scope, false, out);
    let mut rows: Vec<Row> = Vec::new();
    let mut take = |line: &[u8]| {
        rows.push(serde_json::from_slice(line)?);
        Ok(())
    };
    let asked = many::each_row(&source, &text, &scope, progress, &mut take)?;
    let exit = asked.tell(Exit::Done, out);
    rows.sort_by_cached_key(many::host_of);
    let mut found = Vec::with_capacity(rows.len());
    rows.retain_mut(|row| {
        let host: Option<HostId> = many::host_of(row).and_then(|host| host.parse().ok());
        let (Some(host), Some(id)) = (host, id_of(row)) else { return false };
        row.insert("host".to_owned(), host.to_string().into());
        found.push(Named { host: Some(host), which: Which::Id(id) });
        true
    });
    columns.insert(0, Column::host());
    Ok((Found { columns, rows, named: found }, exit))
}

/// Who was found, after the user has agreed; `None` if there is nobody or they did not.
fn choose(args: &Kill, found: Found, out: &mut Output) -> Result<Option<Vec<Named>>, CommandError> {
    let Found { columns, rows, named } = found;
    if named.is_empty() {
        out.warn("no process fulfils the condition");
        return Ok(None);
    }
    if args.yes || args.dry_run {
        return Ok(Some(named));
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
    let s = if named.len() == 1 { "" } else { "es" };
    let hosts: BTreeSet<&HostId> = named.iter().filter_map(|named| named.host.as_ref()).collect();
    let place = match hosts.len() {
        0 => String::new(),
        1 => " on 1 host".to_owned(),
        count => format!(" on {count} hosts"),
    };
    write!(io::stderr(), "Send {} to {} process{s}{place}? [y/N] ", args.signal, named.len())?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    let agreed = matches!(answer.trim(), "y" | "Y" | "yes");
    Ok(agreed.then_some(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes() {
        let id = ProcessId { pid: 7, start_ns: 9 };
        let here = |which| Ok(Named { host: None, which });
        let there =
            |host: &str, which| Ok(Named { host: Some(host.parse().expect("a host")), which });
        let cases = [
            ("4711", here(Which::Number(4711))),
            ("7@9", here(Which::Id(id))),
            ("tokyo/a/4711", there("tokyo/a", Which::Number(4711))),
            ("tokyo/web-1.x/7@9", there("tokyo/web-1.x", Which::Id(id))),
            ("0", Err(NamedError::Group(0))),
            ("-1", Err(NamedError::Group(-1))),
            ("-4711", Err(NamedError::Group(-4711))),
            ("tokyo/a/-1", Err(NamedError::Group(-1))),
            ("99999999999", Err(NamedError::Number)),
            ("sshd", Err(NamedError::Number)),
            ("", Err(NamedError::Number)),
            ("tokyo/a/", Err(NamedError::Number)),
            ("tokyo/a", Err(NamedError::Host(NameError::Form))),
            ("a/7", Err(NamedError::Host(NameError::Form))),
            ("Tokyo/a/7", Err(NamedError::Host(NameError::Char('T')))),
            ("x/tokyo/a/7", Err(NamedError::Host(NameError::Char('/')))),
            ("tokyo/../7", Err(NamedError::Host(NameError::Edge))),
            ("0@5", Err(NamedError::Identity(IdentityError::Range(0)))),
        ];
        for (text, want) in cases {
            let named = text.parse::<Named>();
            if let Ok(named) = &named {
                assert_eq!(named.to_string(), text);
            }
            assert_eq!(named, want, "for {text:?}");
        }
    }

    #[test]
    fn who_is_spared() {
        assert!(refusal(7, Some(7), true).is_some(), "itself, whatever is said");
        assert!(refusal(7, None, false).is_none(), "the same number elsewhere");
        assert!(refusal(1, Some(7), false).is_some());
        assert!(refusal(1, None, false).is_some());
        assert!(refusal(1, Some(7), true).is_none());
        assert!(refusal(2, Some(7), false).is_none());
    }

    #[test]
    fn what_became_of_a_signal_is_never_guessed() {
        let refused = |status, name| {
            let problem = kumo_abi::Problem::new(status, name, "", "said");
            Err(SourceError::Refused(problem))
        };
        let node = || source::NodeAddress::Http("a:1".to_owned());
        let foreign = SourceError::Foreign { node: node(), what: "said".to_owned() };
        let silent = SourceError::Silent { node: node(), after: Duration::from_secs(1) };
        let gone = io::Error::from(io::ErrorKind::ConnectionRefused);
        let unreachable = SourceError::Unreachable { node: node(), source: gone };
        let sent = br#"{"id":"7@9","signal":"TERM","sent":true}"#.to_vec();
        let kind = |answer| match fate(answer) {
            Fate::Sent(id) => id.to_string(),
            Fate::Ended(_) => "ended".to_owned(),
            Fate::Refused(_) => "refused".to_owned(),
            Fate::Unknown(_) => "unknown".to_owned(),
        };
        let cases = [
            (Ok(sent), "7@9"),
            (Ok(b"{}".to_vec()), "unknown"),
            (refused(404, "no-such-process"), "ended"),
            (refused(404, "no-such-host"), "refused"),
            (refused(409, "other-process"), "ended"),
            (refused(403, "not-permitted"), "refused"),
            (refused(403, "protected"), "refused"),
            (refused(503, "busy"), "refused"),
            (refused(503, "not-asked"), "refused"),
            (refused(504, "no-answer"), "unknown"),
            (refused(502, "no-answer"), "unknown"),
            (refused(500, "internal"), "unknown"),
            (Err(foreign), "unknown"),
            (Err(silent), "unknown"),
            (Err(unreachable), "refused"),
        ];
        for (index, (answer, want)) in cases.into_iter().enumerate() {
            assert_eq!(kind(answer), want, "in case {index}");
        }
        let missed = Missed { ended: 2, refused: 0, unknown: 1 };
        let want = "sent TERM to 9 processes of other hosts; 2 had ended meanwhile; \
                    1 unknown whether it was sent";
        assert_eq!(missed.summary(9, Signal::TERM), want);
    }

    #[test]
    fn a_zombie_does_not_live() {
        let body = json!({
            "dc": "t", "host": "a", "boot_id": "", "collector": "proc", "generation": 1, "as_of": "",
            "scan_us": 1, "processes": 3, "matched": 3, "columns": ["id", "state"],
            "rows": [{"id": "7@90000000", "state": "S"}, {"id": "8@90000000", "state": "Z"}],
        });
        let body = body.to_string().into_bytes();
        let found = |which| fate_of_look(Ok(body.clone()), which);
        let id = ProcessId { pid: 7, start_ns: 90_000_000 };
        assert_eq!(living(&body), Some(vec![id]));
        assert_eq!(found(Which::Number(7)), Fate::Sent(id));
        assert_eq!(found(Which::Id(id)), Fate::Sent(id));
        let other = Which::Id(ProcessId { pid: 7, start_ns: 10_000_000 });
        for gone in [Which::Number(8), Which::Number(9), other] {
            assert_eq!(found(gone), Fate::Ended("it is gone".to_owned()));
        }
        assert_eq!(living(b"[]"), None);
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
