//! Answers of many as they come in, and who is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use k2i::http::Refused;
use kumo_abi::cluster::{HostOutcome, Outcome};
use kumo_abi::merge::Spoiled;
use kumo_abi::{DcName, HostId, HostName};
use kumo_fabric::{Ask, Part};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::scope::{Chosen, Wait};
use crate::web::{Web, millis};

/// Most bytes of answers that one gather holds: 300,000 processes with the columns of `ps` take about
/// 100 MiB. Hosts whose answers do not fit are refused by name. Rows that are streamed are not held.
pub const GATHER_BYTES_MAX: usize = 256 << 20;

/// When nine of ten have an outcome, the others get four times as long as that took, but at least this:
/// a reader of `/proc` measures CPU use for 200 ms at its first question.
const REST_TIME_MIN: Duration = Duration::from_millis(500);

/// Why the answer of a host is not used.
const FULL: &str = "the answers of the others fill the memory there is for one question; ask for \
    fewer columns, with a limit, or for NDJSON without an order";

/// Why the answer of a host is not used that came together with others'.
const FOREIGN: &str = "its answer came in one that speaks for hosts that gave none, so nobody knows \
    whose it is";

/// Why a host is not asked.
const UNDECIDED: &str = "its card is not known (yet), so the condition cannot be decided";

/// A question under way.
pub(super) struct Gather {
    /// Who is answered for.
    meant: Vec<HostId>,
    outcomes: BTreeMap<HostId, Outcome>,
    /// How many of `outcomes` nobody was asked for: they say nothing of how long an answer takes.
    settled: usize,
    /// Whether a part has come in.
    has_part: bool,
    parts: mpsc::Receiver<Part>,
    began: Instant,
    /// Whether those who are late are given up before their time.
    hurries: bool,
    /// When they are.
    until: Option<tokio::time::Instant>,
}

/// Who answered and who did not.
#[derive(Debug, PartialEq)]
pub(super) struct Tally {
    pub(super) asked: usize,
    pub(super) answered: usize,
    pub(super) missing: Vec<HostOutcome>,
}

impl Gather {
    pub(super) fn start(
        web: &Web,
        request: Bytes,
        chosen: Chosen,
        wait: Wait,
        changes: bool,
    ) -> Gather {
        let Chosen { hosts, undecided } = chosen;
        let mut meant = [hosts.as_slice(), undecided.as_slice()].concat();
        meant.sort_unstable();
        let settled = undecided.len();
        let refused = |id| (id, Outcome::Refused { why: UNDECIDED.to_owned() });
        let outcomes = undecided.into_iter().map(refused).collect();
        let deadline = wait.most;
        let ask = Ask { request, hosts, deadline, merge: !changes, idempotent: !changes };
        let parts = web.gather(ask);
        let hurries = !wait.exact && !changes;
        let (began, has_part) = (Instant::now(), false);
        Gather { meant, outcomes, settled, has_part, parts, began, hurries, until: None }
    }

    async fn part(&mut self) -> Option<Part> {
        if self.hurries && self.until.is_none() {
            let asked = self.meant.len() - self.settled;
            let rest = rest(asked, self.outcomes.len() - self.settled, self.began.elapsed());
            self.until = rest.map(|rest| tokio::time::Instant::now() + rest);
        }
        match self.until {
            None => self.parts.recv().await,
            Some(until) => timeout_at(until, self.parts.recv()).await.ok().flatten(),
        }
    }

    /// Takes in what became of some hosts, and lets their answer through if it can be used:
    /// `unused` says why not.
    fn take(&mut self, part: Part, unused: Option<&str>) -> Option<Bytes> {
        let Part { answer, outcomes } = part;
        // What is known without asking comes first, and in one piece.
        let is_known = answer.is_none() && !std::mem::replace(&mut self.has_part, true);
        let unused = unused.or_else(|| {
            let is_foreign = answer.as_ref().is_some_and(|answer| !speaks_for(answer, &outcomes));
            is_foreign.then_some(FOREIGN)
        });
        for HostOutcome { id, outcome } in outcomes {
            let outcome = match (outcome, unused) {
                (Outcome::Answered, Some(why)) => Outcome::Refused { why: why.to_owned() },
                (outcome, _) => outcome,
            };
            let is_gone = matches!(outcome, Outcome::Dead { .. } | Outcome::CutOff { .. });
            let is_meant = self.meant.binary_search(&id).is_ok();
            if is_meant && self.outcomes.insert(id, outcome).is_none() && (is_known || is_gone) {
                self.settled += 1;
            }
        }
        answer.filter(|_| unused.is_none())
    }

    /// The next answer; `None` when there are no more.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        while let Some(part) = self.part().await {
            let answer = self.take(part, None);
            if answer.is_some() {
                return answer;
            }
        }
        None
    }

    /// All answers that fit.
    pub(super) async fn all(&mut self) -> Vec<Bytes> {
        let mut answers = Vec::new();
        let mut bytes = 0;
        while let Some(part) = self.part().await {
            let len = part.answer.as_ref().map_or(0, Bytes::len);
            let is_full = bytes + len > GATHER_BYTES_MAX;
            if let Some(answer) = self.take(part, is_full.then_some(FULL)) {
                bytes += answer.len();
                answers.push(answer);
            }
        }
        answers
    }

    /// Compares who is meant with who was heard: nobody is forgotten.
    pub(super) fn tally<'a>(
        &self,
        heard: impl Iterator<Item = HostId>,
        spoiled: impl Iterator<Item = &'a Spoiled>,
    ) -> Tally {
        let heard: BTreeSet<HostId> = heard.collect();
        let mut unnamed = None;
        let mut named: BTreeMap<HostId, &str> = BTreeMap::new();
        for Spoiled { dc, host, why } in spoiled {
            match (dc, host) {
                (Some(dc), Some(host)) => {
                    named.insert(HostId { dc: dc.clone(), host: host.clone() }, why);
                }
                _ => unnamed = Some(why.as_str()),
            }
        }
        let outcome = |id: &HostId| match self.outcomes.get(id) {
            Some(Outcome::Answered) => {
                let why = named.get(id).copied().or(unnamed);
                let why = why.unwrap_or("its answer was lost on the way").to_owned();
                Outcome::Refused { why }
            }
            Some(other) => other.clone(),
            None => Outcome::Silent { after_ms: millis(self.began.elapsed()) },
        };
        let is_heard =
            |id: &HostId| heard.contains(id) && self.outcomes.get(id) == Some(&Outcome::Answered);
        let missing = self.meant.iter().filter(|id| !is_heard(id));
        let missing: Vec<HostOutcome> =
            missing.map(|id| HostOutcome { id: id.clone(), outcome: outcome(id) }).collect();
        let asked = self.meant.len();
        Tally { asked, answered: asked - missing.len(), missing }
    }
}

/// How much longer those are waited for who have no outcome yet, when `told` of those who were `asked`
/// have one after `elapsed`; `None` when they have all their time.
fn rest(asked: usize, told: usize, elapsed: Duration) -> Option<Duration> {
    let is_most = asked > 0 && asked.saturating_sub(told) * 10 <= asked;
    is_most.then(|| (elapsed * 4).max(REST_TIME_MIN))
}

/// Whether an answer speaks only for hosts that gave one. One that does not read is told apart when it
/// is merged, and the others stay.
fn speaks_for(answer: &[u8], outcomes: &[HostOutcome]) -> bool {
    #[derive(Deserialize)]
    struct Names {
        hosts: Vec<Name>,
    }
    #[derive(Deserialize)]
    struct Name {
        dc: DcName,
        host: HostName,
    }
    let header = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Ok(Names { hosts }) = serde_json::from_slice(header) else { return true };
    let answered: BTreeSet<&HostId> =
        outcomes.iter().filter(|one| one.outcome == Outcome::Answered).map(|one| &one.id).collect();
    hosts.into_iter().all(|Name { dc, host }| answered.contains(&HostId { dc, host }))
}

impl Tally {
    /// One that had answered did not answer what was asked.
    pub(super) fn refused(&mut self, id: HostId, why: String) {
        self.answered = self.answered.saturating_sub(1);
        self.missing.push(HostOutcome { id, outcome: Outcome::Refused { why } });
    }

    /// Refuses an answer of nobody. That nobody was meant is an answer.
    pub(super) fn check(&self) -> Result<(), Refused> {
        /// So many are named; a page of names helps nobody.
        const NAMED_MAX: usize = 5;
        if self.answered > 0 || self.asked == 0 {
            return Ok(());
        }
        let one = |one: &HostOutcome| format!("{} {}", one.id, in_words(&one.outcome));
        let mut said: Vec<_> = self.missing.iter().take(NAMED_MAX).map(one).collect();
        if self.missing.len() > NAMED_MAX {
            said.push(format!("and {} more", self.missing.len() - NAMED_MAX));
        }
        let detail = format!("no host answered: {}", said.join("; "));
        let title = "Nobody answered";
        let status = axum::http::StatusCode::GATEWAY_TIMEOUT;
        Err(Refused::new(status, "nobody-answered", title, detail))
    }
}

/// What became of a question to a host.
pub(super) fn in_words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answered => "answered".to_owned(),
        Outcome::Dead { for_ms } => format!("has been dead for {for_ms} ms"),
        Outcome::CutOff { for_ms } => format!("has been cut off for {for_ms} ms"),
        Outcome::Silent { after_ms } => format!("was silent for {after_ms} ms"),
        Outcome::Refused { why } => format!("refused: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> HostId {
        format!("tokyo/{name}").parse().expect("a host")
    }

    /// A question to these, of which nothing has come in.
    fn gather(names: &[&str]) -> Gather {
        Gather {
            meant: names.iter().map(|name| id(name)).collect(),
            outcomes: BTreeMap::new(),
            settled: 0,
            has_part: false,
            parts: mpsc::channel(1).1,
            began: Instant::now(),
            hurries: true,
            until: None,
        }
    }

    fn part(answer: Option<Bytes>, outcomes: &[(&str, Outcome)]) -> Part {
        let one = |(name, outcome): &(&str, Outcome)| HostOutcome {
            id: id(name),
            outcome: outcome.clone(),
        };
        Part { answer, outcomes: outcomes.iter().map(one).collect() }
    }

    #[test]
    fn who_was_never_asked_hurries_nobody() {
        let refused = || Outcome::Refused { why: "no".to_owned() };
        let (dead, cut_off) = (Outcome::Dead { for_ms: 1 }, Outcome::CutOff { for_ms: 1 });
        let mut gather = gather(&["a", "b", "c", "d", "e", "f"]);
        let steps = [
            // Known at once: no such host, dead, cut off.
            (part(None, &[("a", refused()), ("b", dead.clone()), ("c", cut_off)]), (3, 0)),
            (part(None, &[("d", refused())]), (3, 1)),
            (part(None, &[("e", dead)]), (2, 1)),
            (part(None, &[("x", refused()), ("e", refused())]), (2, 1)),
            (part(None, &[("f", Outcome::Silent { after_ms: 5 })]), (2, 2)),
        ];
        for (step, (part, want)) in steps.into_iter().enumerate() {
            gather.take(part, None);
            let (asked, told) = (gather.meant.len(), gather.outcomes.len());
            assert_eq!((asked - gather.settled, told - gather.settled), want, "step {step}");
        }
    }

    #[test]
    fn nobody_speaks_for_another() {
        let says = |names: &[&str]| -> Bytes {
            let hosts: Vec<_> = names.iter().map(|name| id(name)).collect();
            format!("{}\n", serde_json::json!({ "hosts": hosts, "more": 1 })).into()
        };
        let dead = Outcome::Dead { for_ms: 1 };
        let answered = [("a", Outcome::Answered), ("b", Outcome::Answered), ("c", dead)];
        let cases: [(&[&str], bool); 5] = [
            (&["a", "b"], true),
            (&["b"], true),
            (&["a", "c"], false),
            (&["a", "b", "x"], false),
            (&[], true),
        ];
        for (names, is_good) in cases {
            let mut gather = gather(&["a", "b", "c", "x"]);
            let answer = gather.take(part(Some(says(names)), &answered), None);
            assert_eq!(answer.is_some(), is_good, "for {names:?}");
            let tally = gather.tally(names.iter().map(|name| id(name)), [].into_iter());
            let refused = Outcome::Refused { why: FOREIGN.to_owned() };
            let is_refused = tally.missing.iter().any(|one| one.outcome == refused);
            assert_eq!(is_refused, !is_good, "for {names:?}: {tally:?}");
        }
        assert!(speaks_for(b"no header", &[]), "it spoils itself when it is read");
    }

    #[test]
    fn one_of_many_does_not_keep_all_waiting() {
        let ms = Duration::from_millis;
        let cases = [
            ((1_000, 899, ms(90)), None),
            ((1_000, 900, ms(90)), Some(REST_TIME_MIN)),
            ((1_000, 950, ms(200)), Some(ms(800))),
            ((3, 2, ms(5)), None),
            ((10, 9, ms(5)), Some(REST_TIME_MIN)),
            ((2, 0, ms(5)), None),
            ((0, 0, ms(5)), None),
        ];
        for ((asked, told, elapsed), want) in cases {
            assert_eq!(rest(asked, told, elapsed), want, "{told} of {asked} after {elapsed:?}");
        }
    }

    #[test]
    fn nobody_is_forgotten() {
        let dead = Outcome::Dead { for_ms: 7 };
        let answered = |name| (id(name), Outcome::Answered);
        let gather = Gather {
            outcomes: [answered("a"), answered("b"), answered("c"), (id("d"), dead.clone())].into(),
            ..gather(&["a", "b", "c", "d", "e"])
        };
        let spoiled = Spoiled {
            dc: Some(id("b").dc),
            host: Some(id("b").host),
            why: "its answer was cut".to_owned(),
        };
        // That somebody speaks for a dead host does not bring it back.
        let tally = gather.tally(["a", "d"].map(id).into_iter(), [&spoiled].into_iter());
        assert_eq!((tally.asked, tally.answered), (5, 1));
        let outcomes: Vec<_> = tally.missing.iter().map(|one| in_words(&one.outcome)).collect();
        assert_eq!(outcomes[0], "refused: its answer was cut");
        assert_eq!(outcomes[1], "refused: its answer was lost on the way");
        assert_eq!(tally.missing[2].outcome, dead);
        assert!(matches!(tally.missing[3].outcome, Outcome::Silent { .. }));
        assert!(tally.check().is_ok());
        let nobody = gather.tally(std::iter::empty(), [].into_iter());
        let refused = nobody.check().expect_err("nobody answered").to_string();
        assert!(refused.contains("tokyo/d has been dead for 7 ms"), "{refused}");
    }
}
