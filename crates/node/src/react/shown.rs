//! What people see of reactions, as documents. The field names are an interface: `kumo` reads them.

use std::io;
use std::sync::Arc;

use k2i::redact;
use kumo_abi::HostId;
use kumo_abi::react::{Compiled, Reaction, ReactionError, ReactionName, Watched};
use kumo_abi::rights::Lines;
use kumo_abi::{ColumnIndex, Value};
use serde::Serialize;
use serde_json::{Map, Value as Json};
use utoipa::ToSchema;

use super::journal::{self, Shown};
use super::rules::Services;
use super::{Counts, Shared, lock, service_value};
use crate::api::HostNamed;

/// Ends of processes that a test looks through, the newest first.
const TESTED_MAX: usize = 16_384;

/// Most of those that fulfil the condition that a test shows.
const MATCHES_SHOWN_MAX: usize = 20;

/// `GET /v2/react`.
#[expect(clippy::struct_field_names, reason = "these are the names of the answer")]
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Reactions {
    /// This host.
    #[serde(flatten)]
    #[schema(value_type = HostNamed)]
    at: HostId,
    /// By name.
    #[schema(value_type = Vec<Object>)]
    reactions: Vec<ShownReaction>,
    /// Where events of processes come from; `null` where this host does not take them.
    events: Option<String>,
    /// Events of processes that came too fast, since the node began.
    missed: u64,
    /// Entries of the journal that could not be written, since the node began.
    unwritten: u64,
}

#[derive(Debug, Serialize)]
struct ShownReaction {
    name: ReactionName,
    /// What it is; `null` where this node cannot read it.
    #[serde(flatten)]
    reaction: Option<Reaction>,
    /// Why it does nothing here.
    problem: Option<String>,
    /// Whether this host acts: for its own processes each does, else one for all.
    acts_here: bool,
    /// Calls that are under way.
    running: usize,
    #[serde(flatten)]
    counts: Counts,
}

/// `GET /v2/react/journal`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ShownJournal {
    #[serde(flatten)]
    #[schema(value_type = HostNamed)]
    at: HostId,
    #[serde(flatten)]
    shown: Shown,
}

/// `POST /v2/react/test`: what would be called.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Tested {
    #[serde(flatten)]
    #[schema(value_type = HostNamed)]
    at: HostId,
    /// What the condition was tried on.
    tried_on: &'static str,
    /// How many of them there were.
    looked_at: usize,
    /// How many fulfil it.
    matching: usize,
    /// Some of those, the newest first.
    matches: Vec<Match>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Match {
    /// The event in short.
    #[schema(value_type = Object)]
    event: Json,
    /// What would be sent.
    data: String,
}

/// A text for who sees command lines so.
fn text_to(lines: Lines, text: String) -> String {
    match lines {
        Lines::Whole => text,
        Lines::Redacted | Lines::Stripped => redact::prose(&text).into_owned(),
    }
}

impl Shared {
    /// `GET /v2/react`, for who sees command lines so: what is sent may hold a secret as they do.
    pub(crate) fn shown(&self, lines: Lines) -> Reactions {
        let shown = |kept: Arc<super::Kept>| {
            let reaction = kept.reaction.as_ref().ok().map(|(reaction, _)| reaction.clone());
            let reaction = reaction.map(|reaction| Reaction {
                when: text_to(lines, reaction.when),
                data: reaction.data.map(|data| text_to(lines, data)),
                ..reaction
            });
            let is_own = reaction.as_ref().is_some_and(|it| it.on == Watched::Process);
            let acts_here = reaction.as_ref().is_some_and(|reaction| reaction.enabled)
                && (is_own || self.is_responsible(&kept.name));
            let no_events = || self.engine.events().err().map(|error| k2i::chain(&error));
            let problem = match &kept.reaction {
                Err(error) => Some(error.clone()),
                Ok(_) if is_own => no_events(),
                Ok(_) => None,
            };
            let running = lock(&kept.gate).running();
            let counts = *lock(&kept.counts);
            ShownReaction { name: kept.name.clone(), reaction, problem, acts_here, running, counts }
        };
        Reactions {
            at: self.web.me(),
            reactions: self.kept().into_iter().map(shown).collect(),
            events: self.engine.events_report().source,
            missed: *lock(&self.missed),
            unwritten: lock(&self.journal).unwritten(),
        }
    }

    /// `GET /v2/react/journal`: the last `most` entries, for who sees command lines so.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn journal(
        &self,
        reaction: Option<&ReactionName>,
        most: usize,
        lines: Lines,
    ) -> io::Result<ShownJournal> {
        let files = lock(&self.journal).files();
        // Before the files: what ends meanwhile is told by them.
        let running = lock(&self.running).clone();
        let mut shown = journal::read(&files, reaction, most, &running)?;
        for entry in &mut shown.entries {
            entry.message = entry.message.take().map(|message| text_to(lines, message));
        }
        Ok(ShownJournal { at: self.web.me(), shown })
    }

    /// Tries a reaction on an event that somebody wrote down, or on what there is: the ends of processes
    /// that are remembered, the hosts and the services as they are now. Nothing is called.
    ///
    /// # Errors
    /// The reaction or the event makes no sense, or this host takes no events.
    pub(crate) fn test(
        &self,
        reaction: &Reaction,
        event: Option<&Map<String, Json>>,
    ) -> Result<Tested, TestError> {
        let compiled = reaction.compile()?;
        let mut tested = Tested {
            at: self.web.me(),
            tried_on: "the event that was given",
            looked_at: 0,
            matching: 0,
            matches: Vec::new(),
        };
        if let Some(event) = event {
            let values = compiled.given(event)?;
            tested.look(&compiled, &|column| values[column].clone());
            return Ok(tested);
        }
        match reaction.on {
            Watched::Process => {
                tested.tried_on = "the ends of processes that this host remembers";
                for event in self
                    .engine
                    .last_ends(TESTED_MAX)
                    .map_err(|error| TestError::NoEvents(k2i::chain(&error)))?
                {
                    self.engine.read_event(&event, compiled.columns(), |value| {
                        tested.look(&compiled, value);
                    });
                }
            }
            Watched::Host => {
                tested.tried_on = "the hosts as they are now";
                for host in self.web.hosts() {
                    tested.look(&compiled, &|at| kumo_abi::hosts::value(&host, at).into_owned());
                }
            }
            Watched::Service => {
                tested.tried_on = "the services as they are now";
                for (service, load) in Services::default().look(&self.calls.loads()) {
                    tested.look(&compiled, &|column| service_value(service, *load, column));
                }
            }
        }
        Ok(tested)
    }
}

/// Why nothing could be tried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TestError {
    #[error(transparent)]
    Reaction(#[from] ReactionError),
    #[error("{0}; give an event to try it on")]
    NoEvents(String),
}

impl Tested {
    fn look(&mut self, compiled: &Compiled, value: &dyn Fn(ColumnIndex) -> Value<'static>) {
        self.looked_at += 1;
        if !compiled.matches(value) {
            return;
        }
        self.matching += 1;
        if self.matches.len() < MATCHES_SHOWN_MAX {
            let (event, data) = (compiled.summary(value), compiled.data(value));
            self.matches.push(Match { event, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_see_command_lines_sees_no_secrets_of_reactions() {
        let data = r#"{"apiKey":"hunter2hunter2","pid":${pid}}"#;
        let clean = r#"{"apiKey":"*****","pid":${pid}}"#;
        let cases = [(Lines::Whole, data), (Lines::Redacted, clean), (Lines::Stripped, clean)];
        for (lines, want) in cases {
            assert_eq!(text_to(lines, data.to_owned()), want, "for {lines}");
        }
    }
}
