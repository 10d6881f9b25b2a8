//! Answers of many as they come in, and who is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use k2i::http::Refused;
use kumo_abi::HostId;
use kumo_abi::cluster::{HostOutcome, Outcome};
use kumo_abi::merge::Spoiled;
use kumo_fabric::{Ask, Part};
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::scope::Wait;
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

/// A question under way.
pub(super) struct Gather {
    asked: Vec<HostId>,
    outcomes: BTreeMap<HostId, Outcome>,
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
        hosts: Vec<HostId>,
        wait: Wait,
        changes: bool,
    ) -> Gather {
        let asked = hosts.clone();
        let deadline = wait.most;
        let ask = Ask { request, hosts, deadline, merge: !changes, idempotent: !changes };
        let parts = web.gather(ask);
        let hurries = !wait.exact && !changes;
        let (outcomes, began) = (BTreeMap::new(), Instant::now());
        Gather { asked, outcomes, parts, began, hurries, until: None }
    }

    async fn part(&mut self) -> Option<Part> {
        if self.hurries && self.until.is_none() {
            let rest = rest(self.asked.len(), self.outcomes.len(), self.began.elapsed());
            self.until = rest.map(|rest| tokio::time::Instant::now() + rest);
        }
        match self.until {
            None => self.parts.recv().await,
            Some(until) => timeout_at(until, self.parts.recv()).await.ok().flatten(),
        }
    }

    /// The next answer; `None` when there are no more.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        while let Some(Part { answer, outcomes }) = self.part().await {
            self.outcomes.extend(outcomes.into_iter().map(|one| (one.id, one.outcome)));
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
        while let Some(Part { answer, outcomes }) = self.part().await {
            let fits =
                answer.as_ref().is_none_or(|answer| bytes + answer.len() <= GATHER_BYTES_MAX);
            for HostOutcome { id, outcome } in outcomes {
                let full = !fits && outcome == Outcome::Answered;
                let outcome =
                    if full { Outcome::Refused { why: FULL.to_owned() } } else { outcome };
                self.outcomes.insert(id, outcome);
            }
            if let Some(answer) = answer.filter(|_| fits) {
                bytes += answer.len();
                answers.push(answer);
            }
        }
        answers
    }

    /// Compares who was asked with who was heard: nobody is forgotten.
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
        let missing = self.asked.iter().filter(|id| !heard.contains(id));
        let missing: Vec<HostOutcome> =
            missing.map(|id| HostOutcome { id: id.clone(), outcome: outcome(id) }).collect();
        let asked = self.asked.len();
        Tally { asked, answered: asked - missing.len(), missing }
    }
}

/// How much longer those are waited for who have no outcome yet, when `told` of `asked` have one after
/// `elapsed`; `None` when they have all their time.
fn rest(asked: usize, told: usize, elapsed: Duration) -> Option<Duration> {
    let is_most = asked.saturating_sub(told) * 10 <= asked;
    is_most.then(|| (elapsed * 4).max(REST_TIME_MIN))
}

impl Tally {
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

    #[test]
    fn one_of_many_does_not_keep_all_waiting() {
        let ms = Duration::from_millis;
        let cases = [
            ((1_000, 899, ms(90)), None),
            ((1_000, 900, ms(90)), Some(REST_TIME_MIN)),
            ((1_000, 950, ms(200)), Some(ms(800))),
            ((3, 2, ms(5)), None),
            ((10, 9, ms(5)), Some(REST_TIME_MIN)),
        ];
        for ((asked, told, elapsed), want) in cases {
            assert_eq!(rest(asked, told, elapsed), want, "{told} of {asked} after {elapsed:?}");
        }
    }

    #[test]
    fn nobody_is_forgotten() {
        let id = |name: &str| -> HostId { format!("tokyo/{name}").parse().expect("a host") };
        let (_tell, parts) = mpsc::channel(1);
        let dead = Outcome::Dead { for_ms: 7 };
        let answered = |name| (id(name), Outcome::Answered);
        let gather = Gather {
            asked: ["a", "b", "c", "d", "e"].map(id).into(),
            outcomes: [answered("a"), answered("b"), answered("c"), (id("d"), dead.clone())].into(),
            parts,
            began: Instant::now(),
            hurries: true,
            until: None,
        };
        let spoiled = Spoiled {
            dc: Some(id("b").dc),
            host: Some(id("b").host),
            why: "its answer was cut".to_owned(),
        };
        let tally = gather.tally([id("a")].into_iter(), [&spoiled].into_iter());
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
