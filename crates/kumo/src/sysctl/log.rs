//! `kumo sysctl log`: who changed what, and what became of it.

use kumo_abi::HostId;
use kumo_abi::sysctl::{Change, ChangeState};

use super::{Journal, Log};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::grid::{self, Cell};
use crate::json;
use crate::output::{Look, Output};
use crate::shown::{Shown, millis};
use crate::source::{self, Source};

pub(super) fn run(args: &Log, node: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let mut parameters = String::new();
    source::push_parameter(&mut parameters, "limit", &args.limit.to_string());
    if let Some(pattern) = &args.pattern {
        source::push_parameter(&mut parameters, "pattern", &pattern.to_string());
    }
    let about = format!("sysctl-changes?{parameters}");
    let shown: Shown<Journal> = Shown::ask(node, &about, &args.scope, out)?;
    if args.json {
        out.line(json::pretty(&shown.document())?)?;
    } else if args.allowed {
        allowed(&shown.of_hosts, out)?;
    } else {
        for line in lines(&shown.of_hosts, args.scope.is_many(), out) {
            out.line(line)?;
        }
    }
    for host in &shown.of_hosts {
        if host.unreadable > 0 {
            let count = host.unreadable;
            out.warn(format_args!("{}: {count} entries of its journal cannot be read", host.at));
        }
        if host.unwritten > 0 {
            let count = host.unwritten;
            out.warn(format_args!("{}: {count} entries could not be written", host.at));
        }
    }
    let exit = if args.allowed || shown.of_hosts.iter().any(|host| !host.entries.is_empty()) {
        Exit::Done
    } else {
        match &args.pattern {
            None => out.warn("no kernel parameter was changed"),
            Some(pattern) => {
                let pattern = pattern.to_string();
                let pattern = crate::text::visible(&pattern);
                out.warn(format_args!("no change of `{pattern}` stands in the journal"));
            }
        }
        Exit::Failed
    };
    Ok(shown.tell(exit, out))
}

fn allowed(hosts: &[Journal], out: &mut Output) -> Result<(), CommandError> {
    let mut lists: Vec<(&str, Vec<String>)> = Vec::new();
    for host in hosts {
        match lists.iter_mut().find(|(list, _)| *list == host.allowed) {
            Some((_, of)) => of.push(host.at.to_string()),
            None => lists.push((&host.allowed, vec![host.at.to_string()])),
        }
    }
    for (list, of) in lists {
        out.line(crate::text::visible(&format!("{}:", of.join(", "))))?;
        for pattern in list.split(',') {
            out.line(crate::text::visible(&format!("  {pattern}")))?;
        }
    }
    Ok(())
}

fn lines(hosts: &[Journal], many: bool, out: &Output) -> Vec<String> {
    const HEADINGS: [&str; 8] = ["AT", "HOST", "ID", "NAME", "OLD", "NEW", "STATE", "WHO AND WHY"];
    let mut entries: Vec<(&HostId, &Change)> =
        hosts.iter().flat_map(|host| host.entries.iter().map(|entry| (&host.at, entry))).collect();
    if entries.is_empty() {
        return Vec::new();
    }
    entries.sort_by(|a, b| (&a.1.at, a.0).cmp(&(&b.1.at, b.0)));
    let mut rows = vec![grid::headings(&HEADINGS)];
    rows.extend(entries.into_iter().map(|(at, change)| row(at, change)));
    if !many {
        for row in &mut rows {
            row.remove(1);
        }
    }
    grid::lines(rows, out.size().map(|(columns, _)| columns), out)
}

fn row(host: &HostId, change: &Change) -> Vec<Cell> {
    let new = change.became.as_deref().or(change.wanted.as_deref());
    // To the second; the rest is in the JSON.
    let at = change.at.split_once('.').map_or(change.at.as_str(), |(second, _)| second);
    vec![
        Cell::new(at.replace('T', " ")).look(Look::Dim),
        Cell::new(host.to_string()),
        Cell::new(change.id.as_str()).look(Look::Dim),
        Cell::new(change.name.to_string()),
        Cell::new(super::value(change.old.as_deref())),
        Cell::new(super::value(new)),
        Cell::new(change.state.name()).look(super::look(change.state)),
        Cell::new(told(change)),
    ]
}

fn told(change: &Change) -> String {
    let mut text = change.who.clone();
    // That a change was confirmed by who made it is what one expects; that it was taken back is not.
    let is_told = |by: &&String| **by != change.who || change.state != ChangeState::Confirmed;
    if let Some(by) = change.ended_by.as_ref().filter(is_told) {
        text = format!("{text}; {} by {by}", change.state.name());
    }
    if let (ChangeState::Pending, Some(left_ms)) = (change.state, change.left_ms) {
        text = format!("{text}; taken back in {} unless confirmed", millis(left_ms as f64));
    }
    if let Some(why) = &change.why {
        text = format!("{text}: {why}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_in_words() {
        let change = Change {
            id: "00000000000000aa".parse().expect("an id"),
            name: "vm.swappiness".parse().expect("a name"),
            at: "2026-11-28T09:00:00.000000Z".to_owned(),
            who: "user 0".to_owned(),
            old: Some("60".to_owned()),
            wanted: Some("10".to_owned()),
            became: Some("10".to_owned()),
            state: ChangeState::Pending,
            why: None,
            confirm_within_ms: Some(30_000),
            left_ms: Some(12_000),
            ended_at: None,
            ended_by: None,
            private: false,
        };
        assert_eq!(told(&change), "user 0; taken back in 12.00 s unless confirmed");
        let back = Change {
            state: ChangeState::RolledBack,
            ended_by: Some("the host itself".to_owned()),
            why: Some("it was not confirmed in time".to_owned()),
            ..change
        };
        assert_eq!(
            told(&back),
            "user 0; rolled-back by the host itself: it was not confirmed in time"
        );
        let by = |state| Change {
            state,
            ended_by: Some("user 0".to_owned()),
            why: None,
            ..back.clone()
        };
        assert_eq!(told(&by(ChangeState::RolledBack)), "user 0; rolled-back by user 0");
        assert_eq!(told(&by(ChangeState::Confirmed)), "user 0");
    }
}
