//! `kumo why`: why a call to a service does, or does not, come through.
//!
//! Each step looks at one thing that a call needs, in the order in which a call needs them. The step that
//! counts is a real connection with a real sign of life on it; the others say why it is as it is.

use std::time::Duration;

use kumo_abi::call::{Cause, MethodPattern, ServiceName, Who};
use kumo_abi::cluster::HostState;
use middlecon::{CallError, Node, Pong};
use serde_json::{Value, json};

use crate::callee::{self, ThroughArgs};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::many::Cluster;
use crate::output::{Look, Output};
use crate::shown::{Refused, Services, millis};
use crate::source::{Ask, NodeArgs, Source, SourceError};
use crate::{acl, json, outcome, ping, text};

/// Find out why calls to a service do not come through
#[derive(Clone, Debug, clap::Args)]
pub struct Why {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: ServiceName,
    /// Wait this long for a connection and a sign of life
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = callee::budget)]
    budget: Duration,
    /// Print the steps as one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    through: ThroughArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo why greeter
  sudo -u www-data kumo why greeter        as another user, who may have other rights
  kumo why greeter --json | jq '.steps[] | select(.verdict == \"bad\")'

It asks the node, looks who serves the name and who may call it, opens a connection as a call would, and
asks the callee for a sign of life; nothing is executed. Exit status: 0 calls come through, 1 they do not
(the first step that is not well says what to do), 2 wrong usage.";

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Worth,
    Bad,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::Worth => "worth a look",
            Verdict::Bad => "bad",
        }
    }

    fn look(self) -> Look {
        match self {
            Verdict::Good => Look::Good,
            Verdict::Worth => Look::Warn,
            Verdict::Bad => Look::Bad,
        }
    }
}

/// One thing that a call needs.
#[derive(Clone, Debug)]
struct Step {
    about: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do, where it is not well.
    advice: Option<String>,
}

fn good(about: &'static str, found: impl Into<String>) -> Step {
    Step { about, verdict: Verdict::Good, found: found.into(), advice: None }
}

fn not_good(
    about: &'static str,
    verdict: Verdict,
    found: impl Into<String>,
    advice: impl Into<String>,
) -> Step {
    Step { about, verdict, found: found.into(), advice: Some(advice.into()) }
}

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Why, out: &mut Output) -> Result<Exit, CommandError> {
    let steps = steps(args);
    let is_well = steps.iter().all(|step| step.verdict != Verdict::Bad);
    if args.json {
        let step = |step: &Step| {
            json!({ "about": step.about, "verdict": step.verdict.name(), "found": step.found,
                    "advice": step.advice })
        };
        let steps: Vec<Value> = steps.iter().map(step).collect();
        let document = json!({ "service": args.service, "comes_through": is_well, "steps": steps });
        out.line(json::pretty(&document)?)?;
    } else {
        let width = steps.iter().map(|step| step.about.len()).max().unwrap_or(0);
        for step in &steps {
            let verdict = out.styled(step.verdict.look(), &format!("{:<12}", step.verdict.name()));
            out.line(format!("{:<width$}  {verdict}  {}", step.about, text::visible(&step.found)))?;
            if let Some(advice) = &step.advice {
                let indent = width + 16;
                out.line(format!("{:indent$}{}", "", text::visible(advice)))?;
            }
        }
    }
    Ok(if is_well { Exit::Done } else { Exit::Failed })
}

fn steps(args: &Why) -> Vec<Step> {
    let mut steps = Vec::new();
    let node = match args.through.connect() {
        Ok(node) => node,
        Err(error) => {
            let advice = "start it with `kumo up`, or name another with --run-dir";
            steps.push(not_good("node", Verdict::Bad, crate::chain(&error), advice));
            return steps;
        }
    };
    let me = node.welcome();
    if let Some(welcome) = &me {
        let who = match &welcome.who {
            Who::User(uid) => format!("user {uid}"),
            Who::Service(service) => service.to_string(),
        };
        let cluster = welcome.cluster.as_ref().map(|name| format!(" of the cluster {name}"));
        let cluster = cluster.unwrap_or_else(|| ", in no cluster".to_owned());
        steps.push(good("node", format!("{}{cluster}; it knows you as {who}", welcome.host)));
    }
    let at = NodeArgs { run_dir: args.through.run_dir.clone(), ..NodeArgs::default() };
    let source = Source::open_node(&at).map(|(source, _)| source);
    match &source {
        Ok(source) => {
            steps.extend(name(args, source));
            steps.extend(rights(args, source));
        }
        Err(error) => steps.push(not_good(
            "name",
            Verdict::Worth,
            format!("the node does not say: {}", crate::chain(error)),
            "look at its log",
        )),
    }
    if me.as_ref().is_some_and(|me| me.cluster.is_some()) {
        steps.push(proof(&node, args.budget));
    }
    let pong = node.service(&args.service).ping(args.budget);
    match &pong {
        Ok(pong) => steps.extend(way(pong)),
        Err(error) => steps.push(no_way(args, error)),
    }
    if let (Ok(source), Ok(pong)) = (&source, &pong)
        && me.is_none_or(|me| me.host != pong.from.peer.host)
    {
        steps.extend(host(source, pong));
    }
    steps
}

/// Who serves it.
fn name(args: &Why, source: &Source) -> Vec<Step> {
    let name = args.service.as_str();
    let services: Services = match source.json(&Ask::get("/v2/calls/services".to_owned())) {
        Ok(services) => services,
        Err(error) => {
            let found = format!("the node does not say: {}", crate::chain(&error));
            return vec![not_good("name", Verdict::Worth, found, "is it of another version?")];
        }
    };
    let here: Vec<_> = services.instances.iter().filter(|it| it.service == name).collect();
    let there: Vec<_> = services.elsewhere.iter().filter(|it| it.service == name).collect();
    let mut found: Vec<String> = Vec::new();
    for it in &here {
        let (pid, slots, calls) = (it.pid, it.slots, it.in_flight);
        found.push(format!("process {pid} here, {}, {calls} calls for {slots} slots", it.state));
    }
    for it in &there {
        let (at, ready, asleep) = (&it.at, it.ready, it.asleep);
        let gone = if it.current { "" } else { ", but that host is not there" };
        found.push(format!("{at}, {ready} ready and {asleep} asleep{gone}"));
    }
    let is_ready = here.iter().any(|it| it.state == "ready")
        || there.iter().any(|it| it.current && it.ready + it.asleep > 0);
    let refused = services.refused.iter().find(|refused| refused.service == name).map(last_refusal);
    let step = match (found.is_empty(), is_ready) {
        (true, _) => not_good(
            "name",
            Verdict::Bad,
            format!("nobody serves {name}, on no host that this one knows of"),
            format!(
                "is it spelt so? `kumo services --all` lists what is served; `kumo serve {name} -- …` serves it"
            ),
        ),
        (false, true) => good("name", format!("served by {}", found.join("; "))),
        (false, false) => not_good(
            "name",
            Verdict::Bad,
            format!("none that serves it is ready: {}", found.join("; ")),
            "a process that is suspended wants `kumo kill -CONT`; one that drains ends soon, and another must follow",
        ),
    };
    std::iter::once(step).chain(refused).collect()
}

/// What came of an attempt before this one: it may be over since.
fn last_refusal(refused: &Refused) -> Step {
    let Refused { pid, uid, cause, message, ago_ms, .. } = refused;
    let ago = crate::units::span(*ago_ms as f64 / 1e3);
    good(
        "before",
        format!("{ago} ago process {pid} of user {uid} was refused: {message} ({cause})"),
    )
}

/// Who may call it.
fn rights(args: &Why, source: &Source) -> Option<Step> {
    let path = format!("/v2/calls/acl/{}", args.service);
    match source.json::<Value>(&Ask::get(path)) {
        Ok(answer) => {
            let list = answer.get("acl").map(acl::lines).unwrap_or_default();
            let calls: Vec<&String> = list.iter().filter(|line| line.starts_with("call")).collect();
            let calls: Vec<String> = calls
                .into_iter()
                .map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
                .collect();
            Some(good("list", format!("may be called by {}", calls.join(", "))))
        }
        Err(SourceError::Refused(problem)) if problem.status == 404 => {
            Some(good("list", "there is none: everybody in the cluster may call it"))
        }
        // Without a cluster there are no lists.
        Err(SourceError::Refused(_)) => None,
        Err(error) => Some(not_good(
            "list",
            Verdict::Worth,
            format!("the node does not say: {}", crate::chain(&error)),
            "look at its log",
        )),
    }
}

/// By what this program proves to other hosts who it is.
fn proof(node: &Node, within: Duration) -> Step {
    match node.certificate_good_for(within) {
        Ok(left) if !left.is_zero() => {
            let left = crate::units::span(left.as_secs_f64());
            good(
                "proof",
                format!("a certificate of this host, good for {left}; it is renewed before"),
            )
        }
        Ok(_) => not_good(
            "proof",
            Verdict::Worth,
            "the certificate that this host gives is good no more",
            "other hosts will not believe it: compare the clocks, and see whether `kumo hosts` still lists this host",
        ),
        Err(error) => not_good(
            "proof",
            Verdict::Worth,
            format!("no certificate for calls to other hosts: {error}"),
            "calls on this host need none; for others, look at the log of the node",
        ),
    }
}

/// A connection that was opened.
fn way(pong: &Pong) -> Vec<Step> {
    let from = &pong.from;
    let methods: Vec<&str> = from.methods.iter().map(MethodPattern::as_str).collect();
    let methods = match methods.as_slice() {
        ["*"] => "every method".to_owned(),
        methods => methods.join(" "),
    };
    let opened = millis(pong.opened.as_nanos() as f64 / 1e6);
    let took = millis(pong.took.as_nanos() as f64 / 1e6);
    vec![
        good("grant", format!("given in {opened}, for {methods}")),
        good("way", format!("{}, there and back in {took}", ping::carrier(from.carrier))),
        good("callee", format!("{} answers (instance {})", from.peer, from.instance)),
    ]
}

/// One that was not, or that nobody answered on.
fn no_way(args: &Why, error: &CallError) -> Step {
    let service = &args.service;
    let cause = error.cause();
    let (about, advice) = match cause {
        Some(Cause::Denied) => (
            "grant",
            format!(
                "if its list does not name you, `kumo acl {service}` shows it, and --add --allow adds to it; if one side \
                 does not believe the other's certificate, the words above say why"
            ),
        ),
        Some(Cause::NoSuch) => ("grant", "somebody must serve it first".to_owned()),
        Some(Cause::Busy) => (
            "grant",
            "all its places are taken: wait for one (`kumo call --wait`), give it more --slots, or start another \
             instance"
                .to_owned(),
        ),
        Some(Cause::Draining) => ("grant", "it ends soon: start another instance".to_owned()),
        Some(Cause::Suspended) => (
            "callee",
            format!("let it go on: `kumo services {service}` tells its process, `kumo kill -CONT PID` wakes it"),
        ),
        Some(Cause::Died | Cause::Lost) => {
            ("callee", "it ended just now: look at its log, and start it again".to_owned())
        }
        Some(Cause::HostLost | Cause::Partition) => (
            "way",
            "`kumo hosts` and `kumo map` show which hosts are there and how they are linked".to_owned(),
        ),
        Some(Cause::Deadline) => (
            "callee",
            "it gave no sign of life: `kumo ps` shows what its process does; --budget waits longer".to_owned(),
        ),
        Some(Cause::Exhausted) => (
            "grant",
            "too many connections or descriptors: `kumo services` counts connections".to_owned(),
        ),
        _ => ("grant", "look at the log of the node".to_owned()),
    };
    let found = match (error, cause) {
        (
            CallError::NotExecuted { message, .. } | CallError::Unknown { message, .. },
            Some(cause),
        ) => outcome::because(cause, message),
        _ => error.to_string(),
    };
    not_good(about, Verdict::Bad, found, advice)
}

/// The host of a callee that is not here.
fn host(source: &Source, pong: &Pong) -> Option<Step> {
    let id = &pong.from.peer.host;
    let cluster = Cluster::ask(source).ok()?;
    let host = cluster.hosts.iter().find(|host| host.id == *id)?;
    let for_s = crate::units::span(host.state_ms as f64 / 1e3);
    let found = format!("{id} is {} for {for_s}", host.state.name());
    Some(if host.state == HostState::Alive {
        good("host", found)
    } else {
        let advice = "the callee answers although the fabric does not see its host: `kumo map` shows the links";
        not_good("host", Verdict::Worth, found, advice)
    })
}
