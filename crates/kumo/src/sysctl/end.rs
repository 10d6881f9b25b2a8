//! `kumo sysctl confirm` and `rollback`: how a change ends.

use std::collections::BTreeSet;

use kumo_abi::sysctl::{Change, ChangeId, ChangeState, Pattern};
use kumo_abi::{HostId, Problem};
use serde_json::json;

use super::{End, Journal};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::json;
use crate::many::AllAnswers;
use crate::output::{Look, Output};
use crate::shown::Shown;
use crate::source::{Ask, Source};
use crate::text;

/// Changes that wait are looked for among so many of each host: more never wait.
const LOOKED_AT_MAX: usize = 1_000;

/// How a change ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Confirm,
    Rollback,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Confirm => "confirm",
            How::Rollback => "rollback",
        }
    }

    fn state(self) -> ChangeState {
        match self {
            How::Confirm => ChangeState::Confirmed,
            How::Rollback => ChangeState::RolledBack,
        }
    }
}

pub(super) fn run(
    args: &End,
    how: How,
    node: &Source,
    out: &mut Output,
) -> Result<Exit, CommandError> {
    let Some(id) = which(args, node, out)? else { return Ok(Exit::Failed) };
    if args.scope.is_many() {
        return of_many(args, how, &id, node, out);
    }
    let change: Change = node.json(&ask(&id, how))?;
    if args.json {
        out.line(json::pretty(&change)?)?;
    } else {
        out.line(told(&change, out))?;
    }
    Ok(if change.state == how.state() { Exit::Done } else { Exit::Failed })
}

/// The request to the node to end a change.
pub(super) fn ask(id: &ChangeId, how: How) -> Ask {
    Ask::post(format!("/v2/sysctl-changes/{id}/{}", how.name()), &json!({}))
}

/// Which change is meant; `None` when that was said to be none.
fn which(args: &End, node: &Source, out: &mut Output) -> Result<Option<ChangeId>, CommandError> {
    if let Some(id) = args.which.as_ref().and_then(|text| text.parse().ok()) {
        return Ok(Some(id));
    }
    let pattern = args.which.as_ref().map(|text| text.parse::<Pattern>()).transpose();
    let pattern = pattern.map_err(|error| CommandError::Usage(error.to_string()))?;
    let about = format!("sysctl-changes?limit={LOOKED_AT_MAX}");
    let shown: Shown<Journal> = Shown::ask(node, &about, &args.scope, out)?;
    let waits = |change: &&Change| {
        change.state == ChangeState::Pending
            && pattern.as_ref().is_none_or(|pattern| pattern.matches(&change.name))
    };
    let all = shown.of_hosts.iter().flat_map(|host| &host.entries).filter(waits);
    let changes: BTreeSet<(&ChangeId, String)> =
        all.map(|change| (&change.id, change.name.to_string())).collect();
    let mut changes = changes.into_iter();
    match (changes.next(), changes.next()) {
        (None, _) => {
            let which = match &args.which {
                None => "no change waits".to_owned(),
                Some(which) => {
                    let which = text::visible(which);
                    format!(
                        "`{which}` is no id of a change, and no change of such a parameter waits"
                    )
                }
            };
            out.warn(format_args!(
                "{which} to be confirmed; `kumo sysctl log` lists all with their ids, by which also one that \
                 was made before is taken back"
            ));
            Ok(None)
        }
        (Some((id, _)), None) => Ok(Some(id.clone())),
        (Some(first), Some(second)) => {
            let named = [first, second].into_iter().chain(changes);
            let named: Vec<String> = named.map(|(id, name)| format!("{name} ({id})")).collect();
            Err(CommandError::Usage(format!(
                "several changes wait; say which: {}",
                named.join(", ")
            )))
        }
    }
}

/// What became of a change on this host, in a line.
pub(super) fn told(change: &Change, out: &Output) -> String {
    let state = out.styled(super::look(change.state), change.state.name());
    let new = change.became.as_deref().or(change.wanted.as_deref());
    let values = match change.state {
        ChangeState::RolledBack => arrow(new, change.old.as_deref(), out),
        _ => arrow(change.old.as_deref(), new, out),
    };
    let name = change.name.to_string();
    let name = text::visible(&name);
    match &change.why {
        Some(why) => format!("{name}  {values}  {state}: {}", text::visible(why)),
        None => format!("{name}  {values}  {state}"),
    }
}

/// What was, and what is.
pub(super) fn arrow(old: Option<&str>, new: Option<&str>, out: &Output) -> String {
    let old = out.styled(Look::Bad, &super::value(old));
    format!("{old} → {}", out.styled(Look::Good, &super::value(new)))
}

fn of_many(
    args: &End,
    how: How,
    id: &ChangeId,
    node: &Source,
    out: &mut Output,
) -> Result<Exit, CommandError> {
    let mut parameters = String::new();
    args.scope.push(&mut parameters);
    let Ask { path, .. } = ask(id, how);
    let path = path.replacen("/v2/", "/v2/all/", 1);
    let ask = Ask::post(format!("{path}?{parameters}"), &json!({})).that_waits(args.scope.wait());
    let answers: AllAnswers = node.json(&ask)?;
    if args.json {
        out.line(json::pretty(&answers)?)?;
    }
    let (mut done, mut other) = (0, 0);
    for answer in &answers.answers {
        // It has no such change: it was not meant.
        if answer.status == 404 {
            continue;
        }
        let change: Option<Change> = serde_json::from_value(answer.body.clone()).ok();
        let is_done = change.as_ref().is_some_and(|change| change.state == how.state());
        if is_done {
            done += 1;
        } else {
            other += 1;
        }
        if !args.json {
            let line = match &change {
                Some(change) => told(change, out),
                None => refusal(&answer.body),
            };
            out.line(format_args!("{}  {line}", host(&answer.id)))?;
        }
    }
    let exit = match (done, other) {
        (0, _) => Exit::Failed,
        (_, 0) => Exit::Done,
        _ => Exit::Partial,
    };
    if done + other == 0 {
        out.warn(format_args!("none of the hosts that answered has a change {id}"));
    }
    Ok(answers.hosts.tell(exit, out))
}

fn host(id: &HostId) -> String {
    id.to_string()
}

fn refusal(body: &serde_json::Value) -> String {
    let problem: Option<Problem> = serde_json::from_value(body.clone()).ok();
    let said = problem.map_or_else(|| "it answers as ours do not".to_owned(), |it| it.detail);
    text::visible(&said).into_owned()
}
