//! `kumo react`: when something happens, call a service.

use std::fmt::Write as _;
use std::time::Duration;

use hyper::Method as Http;
use kumo_abi::HostId;
use kumo_abi::react::{
    BUDGET_MS_DEFAULT, BUDGET_MS_MAX, CALLS_PER_S_DEFAULT, CALLS_PER_S_MAX, DEPTH_DEFAULT,
    Reaction, ReactionName, Watched,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::callee::{self, Callee};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::grid::{self, Cell};
use crate::json;
use crate::output::{Look, Output};
use crate::scope::Scope;
use crate::shown::{Shown, millis};
use crate::source::{self, Ask, NodeArgs, Source};
use crate::text;

/// Make nodes call a service when something happens, and see what came of it
///
/// A reaction is a condition on events and a call. All hosts of the cluster have it: each watches its own
/// processes, and for what is about hosts and services one of them acts. An event is acted upon at
/// most once.
#[derive(Clone, Debug, clap::Args)]
pub struct React {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Set a reaction; one with this name is replaced
    #[command(after_help = ADD_EXAMPLES)]
    Add(Box<Add>),
    /// List reactions, and how often each did what on the host that is asked
    List(List),
    /// Remove a reaction
    Remove(Named),
    /// Let a reaction act again
    Enable(Named),
    /// Keep a reaction, but let it do nothing
    Disable(Named),
    /// Show what reactions did: the journal of the host that is asked, or of many
    Log(Box<Log>),
    /// Say what a reaction would call, and call nothing
    #[command(after_help = TEST_EXAMPLES)]
    Test(Box<Test>),
}

/// What a reaction is.
#[derive(Clone, Debug, clap::Args)]
struct Is {
    /// What is watched: process (programs that begin and end), host (that come and go) or service (how
    /// many answer, how busy they are)
    #[arg(long, value_name = "WHAT", default_value = "process")]
    on: Watched,
    /// The condition (CEL): 'event == "exit" && comm == "nginx"', 'state == "dead"', 'ready == 0'
    #[arg(long, value_name = "CEL")]
    when: String,
    /// What is called (`call` where no method is named)
    #[arg(long, value_name = "SERVICE[/METHOD]")]
    call: Callee,
    /// What is sent: JSON, in which ${column} stands for a value of the event. Without: the event in short
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
    /// A call may take this long, waits and a second attempt included: 250ms, 2s, up to 5m
    #[arg(long, value_name = "TIME", value_parser = callee::budget)]
    budget: Option<Duration>,
    /// Most calls a second, on each host; twice as many at once
    #[arg(long, value_name = "N", default_value_t = CALLS_PER_S_DEFAULT)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(CALLS_PER_S_MAX)))]
    rate: u32,
    /// How often in a row its own calls may have led to it, before it is taken for a loop and rests
    #[arg(long, value_name = "N", default_value_t = DEPTH_DEFAULT)]
    depth: u8,
}

impl Is {
    fn reaction(&self, enabled: bool) -> Result<Reaction, CommandError> {
        let budget_ms = self.budget.map_or(BUDGET_MS_DEFAULT, |budget| {
            u64::try_from(budget.as_millis()).unwrap_or(BUDGET_MS_MAX + 1)
        });
        let reaction = Reaction {
            on: self.on,
            when: self.when.clone(),
            service: self.call.service.clone(),
            method: self.call.method.clone(),
            data: self.data.clone(),
            budget_ms,
            calls_per_s: self.rate,
            depth_max: self.depth,
            enabled,
        };
        // Before anybody is asked: what is wrong is told with what to do about it.
        reaction.compile().map_err(|error| CommandError::Usage(error.to_string()))?;
        Ok(reaction)
    }
}

#[derive(Clone, Debug, clap::Args)]
struct Add {
    /// Its name: a-z, 0-9 and -
    #[arg(value_name = "NAME")]
    name: ReactionName,
    #[command(flatten)]
    is: Is,
    /// Set it, but let it do nothing yet
    #[arg(long)]
    disabled: bool,
    /// Print it as one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: NodeArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct List {
    /// Print them as one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    at: NodeArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct Named {
    /// Which
    #[arg(value_name = "NAME")]
    name: ReactionName,
    #[command(flatten)]
    at: NodeArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct Log {
    /// Of this reaction only
    #[arg(value_name = "NAME")]
    name: Option<ReactionName>,
    /// The last so many entries of each host
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    /// Print them as one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    at: NodeArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct Test {
    #[command(flatten)]
    is: Is,
    /// Try it on this event, an object of columns: '{"event": "exit", "comm": "nginx"}'
    #[arg(long, value_name = "JSON")]
    event: Option<String>,
    /// Print it as one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: NodeArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo react add web --when 'event == \"exit\" && comm == \"nginx\"' --call keeper/restart
  kumo react test --when 'event == \"exit\" && exit_code != 0' --call keeper/restart
  kumo react log --all
  kumo react disable web

Exit status: 0 done, 1 failed or none found, 2 wrong usage, 3 some hosts are missing.";

const ADD_EXAMPLES: &str = "\
Examples:
  kumo react add web --when 'event == \"exit\" && comm == \"nginx\"' --call keeper/restart
  kumo react add web --when 'event == \"exit\" && comm == \"nginx\"' --call keeper/restart \\
      --data '{\"host\": ${host}, \"code\": ${exit_code}, \"signal\": ${exit_signal}}'
  kumo react add page --on host --when 'state == \"dead\" && role == \"gateway\"' --call pager/page
  kumo react add grow --on service --when 'service == \"kv\" && load_percent > 80' --call scaler/add

Columns of processes are those of `kumo watch --json`, of hosts those of --where. A service has service,
ready, ready_before (a second ago), asleep, hosts and load_percent; its condition is an event when it
begins to hold. Values bring their own quotes. Exit status: 0 set, 1 failed, 2 wrong usage.";

const TEST_EXAMPLES: &str = "\
Examples:
  kumo react test --when 'event == \"exit\" && comm == \"nginx\"' --call keeper/restart
  kumo react test --when 'comm == \"nginx\"' --call keeper/restart --event '{\"comm\": \"nginx\"}'

Without --event it is tried on what there is: the processes that have ended and are remembered by the
node, the hosts, or the services as they are now. Exit status: 0 it would call, 1 it would not or
failed, 2 wrong usage.";

impl React {
    /// Which node is asked.
    pub fn at(&mut self) -> &mut NodeArgs {
        match &mut self.what {
            What::Add(args) => &mut args.at,
            What::List(args) => &mut args.at,
            What::Remove(args) | What::Enable(args) | What::Disable(args) => &mut args.at,
            What::Log(args) => &mut args.at,
            What::Test(args) => &mut args.at,
        }
    }
}

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &React, node: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    match &args.what {
        What::Add(args) => add(args, node, out),
        What::List(args) => list(args, node, out),
        What::Remove(args) => remove(args, node, out),
        What::Enable(args) => switch(args, true, node, out),
        What::Disable(args) => switch(args, false, node, out),
        What::Log(args) => log(args, node, out),
        What::Test(args) => test(args, node, out),
    }
}

fn path(name: &ReactionName) -> String {
    format!("/v2/react/{name}")
}

fn set(name: &ReactionName, reaction: &Reaction, node: &Source) -> Result<Value, CommandError> {
    let ask = Ask { method: Http::PUT, ..Ask::post(path(name), &json!(reaction)) };
    Ok(node.json(&ask)?)
}

fn add(args: &Add, node: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let reaction = args.is.reaction(!args.disabled)?;
    let answer = set(&args.name, &reaction, node)?;
    if args.json {
        out.line(json::pretty(&answer)?)?;
    } else {
        let state = if args.disabled { ", and does nothing yet" } else { "" };
        out.line(format_args!(
            "kumo: {} calls {} on all hosts of the cluster{state}",
            args.name, args.is.call
        ))?;
    }
    Ok(Exit::Done)
}

fn remove(args: &Named, node: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let ask = Ask { method: Http::DELETE, ..Ask::get(path(&args.name)) };
    let answer: Value = node.json(&ask)?;
    if answer.get("removed").and_then(Value::as_bool) == Some(true) {
        out.line(format_args!("kumo: {} is removed", args.name))?;
        return Ok(Exit::Done);
    }
    out.warn(none(&args.name));
    Ok(Exit::Failed)
}

fn none(name: &ReactionName) -> String {
    format!("there is no reaction `{name}`; `kumo react list` lists those there are")
}

fn switch(
    args: &Named,
    enabled: bool,
    node: &Source,
    out: &mut Output,
) -> Result<Exit, CommandError> {
    let known: Reactions = node.json(&Ask::get("/v2/react".to_owned()))?;
    let Some(known) = known.reactions.into_iter().find(|known| known.name == args.name) else {
        out.warn(none(&args.name));
        return Ok(Exit::Failed);
    };
    let Some(reaction) = known.reaction() else {
        let problem = known.problem.unwrap_or_default();
        out.warn(text::visible(&format!("this node cannot read {}: {problem}", args.name)));
        return Ok(Exit::Failed);
    };
    set(&args.name, &Reaction { enabled, ..reaction }, node)?;
    out.line(format_args!(
        "kumo: {} {}",
        args.name,
        if enabled { "acts" } else { "does nothing" }
    ))?;
    Ok(Exit::Done)
}

/// The reactions of one host.
#[expect(clippy::struct_field_names, reason = "these are the names of the answer")]
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Reactions {
    #[serde(flatten)]
    at: HostId,
    reactions: Vec<Known>,
    events: Option<String>,
    missed: u64,
    unwritten: u64,
}

/// A reaction, as a host works with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    name: ReactionName,
    problem: Option<String>,
    acts_here: bool,
    running: u64,
    done: u64,
    failed: u64,
    not_executed: u64,
    unknown: u64,
    dropped: u64,
    /// What it is, field by field.
    #[serde(flatten)]
    is: Map<String, Value>,
}

impl Known {
    fn reaction(&self) -> Option<Reaction> {
        serde_json::from_value(Value::Object(self.is.clone())).ok()
    }
}

fn list(args: &List, node: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let shown: Shown<Reactions> = Shown::ask(node, "react", &args.scope, out)?;
    if args.json {
        out.line(json::pretty(&shown.document())?)?;
    } else {
        for line in listed(&shown.of_hosts, args.scope.is_many(), out) {
            out.line(line)?;
        }
    }
    for host in &shown.of_hosts {
        for known in &host.reactions {
            if let Some(problem) = &known.problem {
                let said = format!("{} does nothing on {}: {problem}", known.name, host.at);
                out.warn(text::visible(&said));
            }
        }
        if host.missed > 0 {
            out.warn(format_args!("{}: {} events came too fast", host.at, host.missed));
        }
        if host.unwritten > 0 {
            let count = host.unwritten;
            out.warn(format_args!(
                "{}: {count} entries of its journal could not be written",
                host.at
            ));
        }
    }
    let exit = if shown.of_hosts.iter().all(|host| host.reactions.is_empty()) {
        out.warn("there are no reactions; `kumo react add` makes one");
        Exit::Failed
    } else {
        Exit::Done
    };
    Ok(shown.tell(exit, out))
}

fn listed(hosts: &[Reactions], many: bool, out: &Output) -> Vec<String> {
    const HEADINGS: [&str; 11] = [
        "NAME", "HOST", "STATE", "ON", "CALLS", "DONE", "FAILED", "NOT-EXEC", "UNKNOWN", "DROPPED",
        "WHEN",
    ];
    let mut cells = vec![];
    for host in hosts {
        for known in &host.reactions {
            let field = |name: &str| known.is.get(name).and_then(Value::as_str).unwrap_or("-");
            let (state, look) = match (known.is.get("enabled"), known.acts_here) {
                _ if known.problem.is_some() => ("broken", Look::Bad),
                (Some(Value::Bool(false)), _) => ("disabled", Look::Dim),
                (_, true) => ("acts", Look::Good),
                (_, false) => ("elsewhere", Look::Dim),
            };
            let count = |count: u64| Cell::new(count.to_string()).right();
            cells.push(vec![
                Cell::new(known.name.as_str()),
                Cell::new(host.at.to_string()),
                Cell::new(state).look(look),
                Cell::new(field("on")),
                Cell::new(format!("{}/{}", field("service"), field("method"))),
                count(known.done),
                count(known.failed),
                count(known.not_executed),
                count(known.unknown),
                count(known.dropped),
                Cell::new(field("when")),
            ]);
        }
    }
    if cells.is_empty() {
        return Vec::new();
    }
    cells.insert(0, grid::headings(&HEADINGS));
    if !many {
        for row in &mut cells {
            row.remove(1);
        }
    }
    grid::lines(cells, out.size().map(|(columns, _)| columns), out)
}

/// The journal of one host.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Journal {
    #[serde(flatten)]
    at: HostId,
    entries: Vec<Value>,
    unreadable: u64,
}

fn log(args: &Log, node: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let mut parameters = String::new();
    if let Some(name) = &args.name {
        source::push_parameter(&mut parameters, "reaction", name.as_str());
    }
    source::push_parameter(&mut parameters, "limit", &args.limit.to_string());
    let about = format!("react/journal?{parameters}");
    let shown: Shown<Journal> = Shown::ask(node, &about, &args.scope, out)?;
    if args.json {
        out.line(json::pretty(&shown.document())?)?;
    } else {
        let all = shown.of_hosts.iter();
        let mut entries: Vec<(&HostId, &Value)> =
            all.flat_map(|host| host.entries.iter().map(|entry| (&host.at, entry))).collect();
        entries.sort_by_key(|(_, entry)| entry.get("at").and_then(Value::as_str));
        for (at, entry) in entries {
            let line = out.styled(look(entry), &text::visible(&told(at, entry)));
            out.line(line)?;
        }
    }
    for host in shown.of_hosts.iter().filter(|host| host.unreadable > 0) {
        let count = host.unreadable;
        out.warn(format_args!("{}: {count} lines of its journal cannot be read", host.at));
    }
    let exit = if shown.of_hosts.iter().all(|host| host.entries.is_empty()) {
        out.warn("nothing has been reacted to there");
        Exit::Failed
    } else {
        Exit::Done
    };
    Ok(shown.tell(exit, out))
}

fn look(entry: &Value) -> Look {
    match entry.get("outcome").and_then(Value::as_str) {
        Some("done" | "running") => Look::Plain,
        Some("failed" | "unknown" | "missed") => Look::Bad,
        _ => Look::Warn,
    }
}

/// An entry in one line, not yet made visible.
fn told(at: &HostId, entry: &Value) -> String {
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    let mut line = format!(
        "{} {at} {} {}",
        text("at").unwrap_or("?"),
        text("reaction").unwrap_or("?"),
        text("outcome").unwrap_or("?"),
    );
    if let Some(cause) = text("cause") {
        let _ = write!(line, " ({cause})");
    }
    if let Some(code) = entry.get("code").and_then(Value::as_u64) {
        let _ = write!(line, " with code {code}");
    }
    let _ = write!(line, " {}", text("call").unwrap_or("?"));
    if let Some(took_ms) = entry.get("took_ms").and_then(Value::as_f64) {
        let _ = write!(line, " in {}", millis(took_ms));
    }
    if let Some(Value::Object(event)) = entry.get("event") {
        let known = event.iter().filter(|(_, value)| !value.is_null());
        let words: Vec<String> = known
            .filter(|(name, _)| !matches!(name.as_str(), "at" | "dc" | "host"))
            .map(|(name, value)| match value {
                Value::String(text) => format!("{name}={text}"),
                other => format!("{name}={other}"),
            })
            .collect();
        let _ = write!(line, " on {}", words.join(" "));
    }
    match entry.get("dropped").and_then(Value::as_u64) {
        Some(dropped) if dropped > 0 && text("outcome") != Some("missed") => {
            let _ = write!(line, ", {dropped} dropped before it");
        }
        _ => {}
    }
    if let Some(message) = text("message") {
        let _ = write!(line, ": {message}");
    }
    line
}

fn test(args: &Test, node: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let reaction = args.is.reaction(true)?;
    let event: Option<Map<String, Value>> = match args.event.as_deref().map(serde_json::from_str) {
        None => None,
        Some(Ok(event)) => Some(event),
        Some(Err(error)) => {
            return Err(CommandError::Usage(format!("--event is no JSON object: {error}")));
        }
    };
    let body = json!({ "reaction": reaction, "event": event });
    let answer: Value = node.json(&Ask::post("/v2/react/test".to_owned(), &body))?;
    let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    let (matching, looked_at) = (number("matching"), number("looked_at"));
    if args.json {
        out.line(json::pretty(&answer)?)?;
    } else {
        let tried_on = answer.get("tried_on").and_then(Value::as_str).unwrap_or("?");
        out.line(text::visible(&format!(
            "tried on {tried_on}: {matching} of {looked_at} would call"
        )))?;
        let matches = answer.get("matches").and_then(Value::as_array);
        for one in matches.into_iter().flatten() {
            let data = one.get("data").and_then(Value::as_str).unwrap_or("?");
            out.line(text::visible(&format!("  {} {data}", args.is.call)))?;
        }
    }
    Ok(if matching > 0 { Exit::Done } else { Exit::Failed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        react: React,
    }

    fn parsed(words: &[&str]) -> Option<Result<Reaction, CommandError>> {
        let words = ["react", "add", "web"].iter().chain(words);
        match Cli::try_parse_from(words).ok()?.react.what {
            What::Add(add) => Some(add.is.reaction(!add.disabled)),
            _ => None,
        }
    }

    #[test]
    fn what_is_added() {
        let good = parsed(&["--when", "pid == 1", "--call", "kv", "--budget", "2s", "--disabled"]);
        let good = good.expect("good usage").expect("a reaction");
        assert_eq!((good.on, good.method.as_str()), (Watched::Process, "call"));
        assert_eq!((good.budget_ms, good.enabled), (2_000, false));
        let host = parsed(&["--on", "host", "--when", "state == 'dead'", "--call", "a/b"]);
        assert!(host.expect("good usage").is_ok());
        for bad in [
            &["--when", "pid == 1"][..],
            &["--call", "kv"],
            &["--when", "true", "--call", "kv", "--on", "nothing"],
            &["--when", "true", "--call", "kv", "--rate", "0"],
        ] {
            assert!(parsed(bad).is_none(), "for {bad:?}");
        }
        for bad in [
            &["--when", "state == 'dead'", "--call", "kv"][..],
            &["--when", "true", "--call", "kv", "--data", "x"],
            &["--when", "true", "--call", "kv", "--budget", "6m"],
        ] {
            assert!(parsed(bad).expect("good usage").is_err(), "for {bad:?}");
        }
    }

    #[test]
    fn entries_in_words() {
        let at: HostId = "tokyo/a".parse().expect("a host");
        let entry = json!({"at": "T", "reaction": "web", "outcome": "not-executed", "cause": "NO_SUCH",
            "call": "kv/call", "took_ms": 1.5, "event": {"pid": 7, "comm": "a b", "user": null, "dc": "x"},
            "dropped": 2, "message": "nobody serves it"});
        assert_eq!(
            told(&at, &entry),
            "T tokyo/a web not-executed (NO_SUCH) kv/call in 1.50 ms on pid=7 comm=a b, 2 dropped before \
             it: nobody serves it"
        );
        assert_eq!((look(&entry), look(&json!({"outcome": "done"}))), (Look::Warn, Look::Plain));
    }
}
