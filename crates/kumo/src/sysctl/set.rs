//! `kumo sysctl set`: one host, or many in waves.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hyper::Method;
use kumo_abi::cluster::Outcome;
use kumo_abi::sysctl::{
    Change, ChangeId, ChangeState, ParameterName, SetAnswer, SetResult, check_value,
};
use kumo_abi::{DcName, HostId, HostName};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Journal, Set, end};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::grid::{self, Cell};
use crate::json;
use crate::many::AllAnswers;
use crate::output::{Look, Output};
use crate::source::{self, Ask, Sink, Source, SourceError};
use crate::text;

/// How long one request waits for the end of a change.
const END_WAIT: Duration = Duration::from_secs(20);

/// Between two attempts to reach a node that is away.
const AWAY_PERIOD: Duration = Duration::from_millis(100);

/// How long a node that does not answer is looked for after the change is due.
const AWAY_MAX: Duration = Duration::from_secs(10);

pub(super) fn run(args: &Set, node: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let (name, value) = parse(args)?;
    let mut body = json!({ "value": value });
    if let Some(old) = &args.if_match {
        body["if_match"] = old.as_str().into();
    }
    let mut parameters = String::new();
    if args.dry_run {
        source::push_parameter(&mut parameters, "dry_run", "1");
    }
    if let Some(within) = args.confirm_within {
        let within = format!("{}ms", within.as_millis());
        source::push_parameter(&mut parameters, "confirm_within", &within);
    }
    let many = [("canary", &args.canary), ("check", &args.check), ("watch", &args.watch)];
    if !args.scope.is_many() {
        if let Some((option, _)) = many.iter().find(|(_, value)| value.is_some()) {
            let what =
                format!("--{option} is about many hosts; say which with --all, --dc or --where");
            return Err(CommandError::Usage(what));
        }
        return of_one(args, &name, &parameters, &body, node, out);
    }
    args.scope.hosts.rule()?;
    args.scope.push(&mut parameters);
    if args.dry_run {
        return dry_run_of_many(args, &name, &parameters, &body, node, out);
    }
    for (option, value) in many {
        if let Some(value) = value {
            source::push_parameter(&mut parameters, option, value);
        }
    }
    of_many(args, &name, &parameters, &body, node, out)
}

/// The name and the value of `NAME=VALUE`, `NAME VALUE` or `NAME = VALUE`.
fn parse(args: &Set) -> Result<(ParameterName, String), CommandError> {
    let usage = |error: String| CommandError::Usage(error);
    let (value, behind) = (args.value.as_deref(), args.behind.as_deref());
    let (name, value) = match (args.what.split_once('='), value, behind) {
        (None, Some("="), Some(value)) | (None, Some(value), None) if value != "=" => {
            (args.what.as_str(), value)
        }
        (Some((name, value)), None, _) => (name, value),
        (None, None | Some("="), _) => {
            let name = text::visible(&args.what);
            return Err(usage(format!("what is `{name}` to be? Write {name}=VALUE")));
        }
        (Some(_), Some(value), _) if value.contains('=') => {
            let value = text::visible(value);
            return Err(usage(format!("a change is of one parameter; set `{value}` by itself")));
        }
        (_, Some(more), _) => {
            let more = text::visible(behind.unwrap_or(more));
            let what = format!(
                "what is `{more}` behind the value? Write NAME=VALUE, with quotes where the value has blanks: \
                 net.ipv4.tcp_rmem='4096 131072 8388608'"
            );
            return Err(usage(what));
        }
    };
    check_value(value).map_err(|error| usage(error.to_string()))?;
    let name = name
        .trim()
        .parse()
        .map_err(|error: kumo_abi::sysctl::ParameterNameError| usage(error.to_string()))?;
    Ok((name, value.to_owned()))
}

fn put(place: &str, name: &ParameterName, parameters: &str, body: &Value) -> Ask {
    let mut path = format!("/v2/{place}/");
    source::push_escaped(&mut path, &name.to_string());
    if !parameters.is_empty() {
        path.push('?');
        path.push_str(parameters);
    }
    Ask { method: Method::PUT, ..Ask::post(path, body) }
}

fn of_one(
    args: &Set,
    name: &ParameterName,
    parameters: &str,
    body: &Value,
    node: &Source,
    out: &mut Output,
) -> Result<Exit, CommandError> {
    let answer: SetAnswer = node.json(&put("sysctl", name, parameters, body))?;
    if args.json {
        out.line(json::pretty(&answer)?)?;
    } else {
        out.line(told(&answer, out))?;
    }
    let Some(change) = answer.change.filter(|_| answer.result == SetResult::Pending) else {
        return Ok(Exit::Done);
    };
    let left = crate::units::span((change.left_ms.unwrap_or_default() as f64 / 1e3).ceil());
    if args.wait_for_end {
        out.flush()?;
        return wait(args, &change, node, out);
    }
    if !args.json {
        let at = place(args);
        out.line(format_args!(
            "kumo: the host takes it back in {left} unless it is confirmed: kumo sysctl confirm {}{at}",
            change.id
        ))?;
    }
    Ok(Exit::Done)
}

/// How the same node is named again.
fn place(args: &Set) -> String {
    match (&args.at.run_dir, &args.at.node) {
        (Some(dir), _) => format!(" --run-dir {}", text::visible(&dir.to_string_lossy())),
        (None, Some(node)) => format!(" --node {}", text::visible(&node.to_string())),
        (None, None) => String::new(),
    }
}

/// What a host answered, in a line.
fn told(answer: &SetAnswer, out: &Output) -> String {
    let name = answer.name.to_string();
    let name = text::visible(&name);
    let is_same = answer.old.is_some() && answer.old == answer.new;
    if is_same && answer.result != SetResult::Pending {
        let value = super::value(answer.new.as_deref());
        return format!("{name}  {value}  {}", out.styled(Look::Dim, "unchanged"));
    }
    let values = end::arrow(answer.old.as_deref(), answer.new.as_deref(), out);
    let (said, look) = match answer.result {
        SetResult::DryRun => ("would change", Look::Dim),
        SetResult::Unchanged => ("unchanged", Look::Dim),
        SetResult::Pending => ("waits to be confirmed", Look::Warn),
        SetResult::Made => ("made", Look::Good),
    };
    let why = answer.change.as_ref().and_then(|change| change.why.as_ref());
    let why = why.map_or_else(String::new, |why| format!(": {}", text::visible(why)));
    format!("{name}  {values}  {}{why}", out.styled(look, said))
}

/// Waits until a change has ended, and lets a person at a terminal confirm it.
fn wait(
    args: &Set,
    change: &Change,
    node: &Source,
    out: &mut Output,
) -> Result<Exit, CommandError> {
    let is_told = io::stderr().is_terminal();
    let keys = (is_told && io::stdin().is_terminal()).then(lines_of_stdin);
    if keys.is_some() {
        out.warn("press Enter to keep it");
    }
    let due = Instant::now() + Duration::from_millis(change.left_ms.unwrap_or_default());
    let mut last = Instant::now();
    loop {
        let mut waiting =
            Waiting { document: Vec::new(), keys: keys.as_ref(), is_kept: false, due, is_told };
        let end_wait_ms = END_WAIT.as_millis();
        let path = format!("/v2/sysctl-changes?id={}&end_wait_ms={end_wait_ms}", change.id);
        let fetched = node.fetch(&Ask::get(path).that_waits(END_WAIT), &mut waiting);
        let Waiting { document, is_kept, .. } = waiting;
        if is_kept {
            clear(is_told);
            let ended: Change = node.json(&end::ask(&change.id, end::How::Confirm))?;
            return finish(args, &ended, out);
        }
        if let Err(error) = fetched {
            if last.elapsed() > AWAY_MAX && Instant::now() > due {
                clear(is_told);
                out.warn("the node is away; it takes the value back when it is started again");
                return Err(error.into());
            }
            // It may be started again.
            thread::sleep(AWAY_PERIOD);
            continue;
        }
        last = Instant::now();
        let journal: Journal =
            serde_json::from_slice(&document).map_err(|error| node.unreadable(error))?;
        if let Some(now) = journal.entries.into_iter().next_back().filter(|now| now.state.is_end())
        {
            clear(is_told);
            return finish(args, &now, out);
        }
    }
}

/// Waits for the end of a change, and for a person who does not.
struct Waiting<'a> {
    document: Vec<u8>,
    keys: Option<&'a mpsc::Receiver<()>>,
    /// Somebody says that it is to stay.
    is_kept: bool,
    due: Instant,
    is_told: bool,
}

impl Sink for Waiting<'_> {
    fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        source::bounded(self.document.len() + piece.len())?;
        self.document.extend_from_slice(piece);
        Ok(())
    }

    fn idle(&mut self, _waited: Duration) -> io::Result<()> {
        if self.keys.is_some_and(|keys| keys.try_recv().is_ok()) {
            self.is_kept = true;
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.is_told {
            let left = self.due.saturating_duration_since(Instant::now());
            // That standard error fails is told to nobody.
            write!(io::stderr(), "\r\x1b[Ktaken back in {:.0} s", left.as_secs_f64().ceil()).ok();
        }
        Ok(())
    }
}

fn clear(is_told: bool) {
    if is_told {
        write!(io::stderr(), "\r\x1b[K").ok();
    }
}

fn finish(args: &Set, change: &Change, out: &mut Output) -> Result<Exit, CommandError> {
    if args.json {
        out.line(json::pretty(change)?)?;
    } else {
        out.line(end::told(change, out))?;
    }
    Ok(if change.state == ChangeState::Confirmed { Exit::Done } else { Exit::Failed })
}

/// Lines that are typed.
fn lines_of_stdin() -> mpsc::Receiver<()> {
    let (typed, lines) = mpsc::channel();
    // It ends with the process: nothing else ends a read.
    thread::spawn(move || {
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line).is_ok_and(|len| len > 0) {
            typed.send(()).ok();
        }
    });
    lines
}

fn dry_run_of_many(
    args: &Set,
    name: &ParameterName,
    parameters: &str,
    body: &Value,
    node: &Source,
    out: &mut Output,
) -> Result<Exit, CommandError> {
    let ask = put("all/sysctl", name, parameters, body).that_waits(args.scope.wait());
    let answers: AllAnswers = node.json(&ask)?;
    if args.json {
        out.line(json::pretty(&answers)?)?;
    }
    let mut exit = Exit::Done;
    for answer in &answers.answers {
        let good = (answer.status == 200)
            .then(|| serde_json::from_value::<SetAnswer>(answer.body.clone()).ok())
            .flatten();
        let line = if let Some(answer) = good {
            told(&answer, out)
        } else {
            exit = Exit::Failed;
            let why = answer.body.get("detail").and_then(Value::as_str).unwrap_or("no reason");
            format!("{}: {}", out.styled(Look::Bad, "would refuse"), text::visible(why))
        };
        if !args.json {
            out.line(format_args!("{}  {line}", answer.id))?;
        }
    }
    if !answers.hosts.missing.is_empty() {
        // Of many hosts all get it or none.
        exit = Exit::Failed;
    }
    if exit == Exit::Failed && !args.json {
        let nothing = out.styled(Look::Bad, "nothing would be changed");
        out.line(format_args!("kumo: {nothing}: all hosts get it or none"))?;
    }
    answers.hosts.tell(Exit::Done, out);
    if answers.hosts.missing.iter().any(|one| !matches!(one.outcome, Outcome::Refused { .. })) {
        out.warn("--where 'state == \"alive\"' leaves out hosts that are away");
    }
    Ok(exit)
}

/// What happens to a change of many hosts, as the node that leads it tells it.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event {
    Plan {
        id: ChangeId,
        waves: Vec<Vec<HostId>>,
        confirm_within_ms: u64,
    },
    Wave {
        wave: usize,
        of: usize,
        hosts: Vec<HostId>,
    },
    Applied {
        dc: DcName,
        host: HostName,
        result: SetResult,
        old: Option<String>,
        new: Option<String>,
    },
    Failed {
        dc: DcName,
        host: HostName,
        why: String,
    },
    Check {
        holds: bool,
        #[serde(default)]
        hosts: usize,
        #[serde(default)]
        dc: Option<DcName>,
        #[serde(default)]
        host: Option<HostName>,
        #[serde(default)]
        why: Option<String>,
    },
    Confirming {
        hosts: usize,
    },
    RollingBack {
        why: String,
    },
    End {
        outcome: String,
        #[serde(default)]
        why: Option<String>,
        hosts: Vec<HostEnd>,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct HostEnd {
    #[serde(flatten)]
    id: HostId,
    state: String,
    why: Option<String>,
}

/// Shows the lines as they come.
struct Events<'a> {
    out: &'a mut Output,
    json: bool,
    rest: Vec<u8>,
    /// Shown while nothing comes, with when it began.
    doing: String,
    due: Option<Instant>,
    /// Checks that held in a row are told once.
    holds: bool,
    is_told: bool,
    end: Option<(String, Option<String>, Vec<HostEnd>)>,
    broken: bool,
}

impl Events<'_> {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.json {
            self.out.writer().write_all(line)?;
            self.out.raw("\n")?;
            self.out.flush()?;
        }
        if let Ok(event) = serde_json::from_slice::<Event>(line) {
            return self.show(event);
        }
        self.broken = true;
        Ok(())
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        clear(std::mem::take(&mut self.is_told));
        self.out.line(line)?;
        self.out.flush()
    }

    fn show(&mut self, event: Event) -> io::Result<()> {
        if !matches!(event, Event::Check { holds: true, .. }) {
            self.holds = false;
        }
        match event {
            Event::Plan { id, waves, confirm_within_ms } => {
                let hosts: usize = waves.iter().map(Vec::len).sum();
                let within = Duration::from_millis(confirm_within_ms);
                self.due = Some(Instant::now() + within);
                "trying it on all".clone_into(&mut self.doing);
                let (s, es) = (plural(hosts), plural(waves.len()));
                self.say(&format!(
                    "kumo: change {id} of {hosts} host{s} in {} wave{es}; what is not confirmed within {} is taken \
                     back",
                    waves.len(),
                    crate::units::span(confirm_within_ms as f64 / 1e3)
                ))
            }
            Event::Wave { wave, of, hosts } => {
                self.doing = format!("wave {wave} of {of}");
                let named: Vec<String> = hosts.iter().take(8).map(HostId::to_string).collect();
                let more = match hosts.len().saturating_sub(8) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                let title = format!("wave {wave} of {of}: {}{more}", named.join(", "));
                let title = self.out.styled(Look::Heading, &title);
                self.say(&title)
            }
            Event::Applied { dc, host, result, old, new } => {
                let values = match result {
                    SetResult::Unchanged => {
                        let value = super::value(new.as_deref());
                        format!("{value}  {}", self.out.styled(Look::Dim, "unchanged"))
                    }
                    _ => end::arrow(old.as_deref(), new.as_deref(), self.out),
                };
                self.say(&format!("  {dc}/{host}  {values}"))
            }
            Event::Failed { dc, host, why } => {
                let failed = self.out.styled(Look::Bad, "failed");
                self.say(&format!("  {dc}/{host}  {failed}: {}", text::visible(&why)))
            }
            Event::Check { holds: true, hosts, .. } => {
                if std::mem::replace(&mut self.holds, true) {
                    return Ok(());
                }
                let holds = self.out.styled(Look::Good, "the check holds");
                self.say(&format!("  {holds} on {hosts} host{}", plural(hosts)))
            }
            Event::Check { dc, host, why, .. } => {
                let fails = self.out.styled(Look::Bad, "the check fails");
                let at =
                    dc.zip(host).map_or_else(String::new, |(dc, host)| format!(" on {dc}/{host}"));
                let why = why.unwrap_or_default();
                self.say(&format!("  {fails}{at}: {}", text::visible(&why)))
            }
            Event::Confirming { hosts } => {
                self.doing = format!("confirming on {hosts} host{}", plural(hosts));
                Ok(())
            }
            Event::RollingBack { why } => {
                "taking it back".clone_into(&mut self.doing);
                let taking = self.out.styled(Look::Warn, "taking it back");
                self.say(&format!("{taking}: {}", text::visible(&why)))
            }
            Event::End { outcome, why, hosts } => {
                self.end = Some((outcome, why, hosts));
                Ok(())
            }
            Event::Other => Ok(()),
        }
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

impl Sink for Events<'_> {
    fn take(&mut self, mut piece: &[u8]) -> io::Result<()> {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            let mut line = std::mem::take(&mut self.rest);
            line.extend_from_slice(&piece[..end]);
            piece = &piece[end + 1..];
            self.line(&line)?;
        }
        source::bounded(self.rest.len() + piece.len())?;
        self.rest.extend_from_slice(piece);
        Ok(())
    }

    fn idle(&mut self, _waited: Duration) -> io::Result<()> {
        if self.json || !io::stderr().is_terminal() {
            return Ok(());
        }
        let left = self.due.map(|due| due.saturating_duration_since(Instant::now()));
        let left = left.map_or_else(String::new, |left| {
            format!("; hosts take it back in {:.0} s", left.as_secs_f64().ceil())
        });
        self.is_told = true;
        write!(io::stderr(), "\r\x1b[K{}{left}", self.doing).ok();
        Ok(())
    }
}

fn of_many(
    args: &Set,
    name: &ParameterName,
    parameters: &str,
    body: &Value,
    node: &Source,
    out: &mut Output,
) -> Result<Exit, CommandError> {
    let mut ask = put("all/sysctl", name, parameters, body);
    // Between two lines there is at most one watch of a wave, or one wait for hosts.
    let watch = args.watch.as_deref().and_then(|text| kumo_abi::sysctl::parse_within(text).ok());
    ask = ask.that_waits(args.scope.wait() + watch.unwrap_or_default());
    ask.accept = "application/x-ndjson";
    let mut events = Events {
        out: &mut *out,
        json: args.json,
        rest: Vec::new(),
        doing: "asking".to_owned(),
        due: None,
        holds: false,
        is_told: false,
        end: None,
        broken: false,
    };
    let fetched = node.fetch(&ask, &mut events);
    clear(events.is_told);
    let (ended, broken) = (events.end.take(), events.broken);
    let lost = "the node that led the change is gone, or broke off; what is not confirmed is taken back by \
                the hosts themselves: `kumo sysctl log --all` tells";
    if let Err(error) = fetched {
        let is_refusal = matches!(error, SourceError::Refused(_) | SourceError::Unreachable { .. });
        if !is_refusal {
            out.warn(lost);
        }
        return Err(error.into());
    }
    let Some((outcome, why, hosts)) = ended.filter(|_| !broken) else {
        out.warn(lost);
        return Ok(Exit::Failed);
    };
    finish_many(args, &outcome, why.as_deref(), &hosts, out)
}

fn finish_many(
    args: &Set,
    outcome: &str,
    why: Option<&str>,
    hosts: &[HostEnd],
    out: &mut Output,
) -> Result<Exit, CommandError> {
    let exit = match outcome {
        "confirmed" | "unchanged" => Exit::Done,
        "partial" => Exit::Partial,
        _ => Exit::Failed,
    };
    if args.json {
        return Ok(exit);
    }
    let count = hosts.len();
    // Why it is taken back was said when that began.
    let why = why.filter(|_| outcome != "rolled-back");
    let why = why.map_or_else(String::new, |why| format!(": {}", text::visible(why)));
    let (said, look) = match outcome {
        "confirmed" => (format!("confirmed on {count} host{}", plural(count)), Look::Good),
        "unchanged" => ("nothing to do".to_owned(), Look::Good),
        "refused" => ("nothing was changed".to_owned(), Look::Bad),
        "rolled-back" => ("taken back on all hosts".to_owned(), Look::Warn),
        _ => ("the hosts differ now".to_owned(), Look::Bad),
    };
    out.line(format_args!("kumo: {}{why}", out.styled(look, &said)))?;
    if exit == Exit::Partial {
        let row = |end: &HostEnd| {
            let state = match end.state.as_str() {
                "confirmed" | "unchanged" => Look::Good,
                "unknown" | "overtaken" => Look::Bad,
                _ => Look::Warn,
            };
            vec![
                Cell::new(format!("  {}", end.id)),
                Cell::new(&end.state).look(state),
                Cell::new(end.why.as_deref().unwrap_or_default()),
            ]
        };
        let rows = hosts.iter().map(row).collect();
        for line in grid::lines(rows, out.size().map(|(columns, _)| columns), out) {
            out.line(line)?;
        }
    }
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ColorChoice;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        set: Set,
    }

    fn parsed(words: &[&str]) -> Option<Result<(String, String), String>> {
        let args = Cli::try_parse_from(["set"].iter().chain(words)).ok()?.set;
        let pair = parse(&args).map(|(name, value)| (name.to_string(), value));
        Some(pair.map_err(|error| error.to_string()))
    }

    #[test]
    fn what_is_to_be_what() {
        let good = [
            (&["vm.swappiness=10"][..], "vm.swappiness", "10"),
            (&["vm.swappiness", "10"], "vm.swappiness", "10"),
            (&["vm/swappiness", "-1"], "vm.swappiness", "-1"),
            (&["kernel.x=a=b c"], "kernel.x", "a=b c"),
            (&["kernel.x="], "kernel.x", ""),
        ];
        for (words, name, value) in good {
            let want = (name.to_owned(), value.to_owned());
            assert_eq!(parsed(words), Some(Ok(want)), "for {words:?}");
        }
        for bad in [&["vm.swappiness"][..], &["a=b", "c"], &["a..b=1"], &["a=1\n2"], &["=1"]] {
            assert!(matches!(parsed(bad), Some(Err(_))), "for {bad:?}");
        }
        for bad in [&[][..], &["a=1", "--confirm-within", "0s"], &["a=1", "--wait-for-end"]] {
            assert_eq!(parsed(bad), None, "for {bad:?}");
        }
    }

    #[test]
    fn what_was_and_what_is() {
        let out = Output::stdout(ColorChoice::Never);
        let answer = |old: Option<&str>, new: Option<&str>, result| SetAnswer {
            name: "net.ipv4.tcp_rmem".parse().expect("a name"),
            old: old.map(str::to_owned),
            new: new.map(str::to_owned),
            result,
            change: None,
            private: false,
        };
        let cases = [
            (answer(Some("1\t2"), Some("3"), SetResult::DryRun), "1 2 → 3  would change"),
            (answer(Some("1"), Some("1"), SetResult::Unchanged), "1  unchanged"),
            (answer(Some(""), Some("\x1b"), SetResult::Made), "\"\" → \\x1b  made"),
            (
                answer(None, None, SetResult::Pending),
                "(not shown) → (not shown)  waits to be confirmed",
            ),
        ];
        for (answer, want) in cases {
            assert_eq!(told(&answer, &out), format!("net.ipv4.tcp_rmem  {want}"));
        }
    }

    #[test]
    fn events_of_a_newer_node_are_passed_over() {
        let line = br#"{"event":"of-the-future","x":1}"#;
        assert!(matches!(serde_json::from_slice(line), Ok(Event::Other)));
    }
}
