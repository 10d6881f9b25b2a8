//! Answers questions: those to this host, and, on a gateway, those that others want asked for them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::HostId;
use kumo_abi::cluster::HostOutcome;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use zenoh::query::{Query, Queryable};
use zenoh::{Session, Wait as _};

use crate::ask::{Ask, Part};
use crate::net::question;
use crate::shared::Shared;

/// Answers of this host under way at once. The answerer has limits of its own for what is heavy.
pub(crate) const ANSWERS_MAX: usize = 256;

/// Questions that a gateway asks for others at once.
pub(crate) const RELAYS_MAX: usize = 64;

/// Longest time that a gateway waits for others, whatever it was asked.
const RELAY_TIME_MAX: Duration = Duration::from_secs(60);

/// Answers wait so long at a gateway for others to be merged with: at first, and at most. The first
/// rows leave soon; then fewer and larger parts do.
const MERGE_TIME: (Duration, Duration) = (Duration::from_millis(15), Duration::from_millis(240));

/// When no answer has come for so long, those who are quick have answered: what is there leaves.
const QUIET_TIME: Duration = Duration::from_millis(4);

/// What a gateway is asked to ask, beside the question itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RelayHead {
    /// Names of hosts of its data centre.
    pub(crate) hosts: Vec<kumo_abi::HostName>,
    /// How long they are waited for.
    pub(crate) deadline_ms: u64,
    /// See [`Ask::idempotent`].
    pub(crate) idempotent: bool,
}

/// The head of a part as a gateway sends it; the merged answer follows.
#[derive(Debug, Serialize, Deserialize)]
struct PartHead {
    answered: bool,
    outcomes: Vec<HostOutcome>,
}

/// A part as bytes: the length of its head in four bytes, little end first, the head as JSON, the
/// answer.
pub(crate) fn encode_part(part: &Part) -> Vec<u8> {
    let answered = part.answer.is_some();
    let head = PartHead { answered, outcomes: part.outcomes.clone() };
    // Names and numbers: it cannot fail.
    let head = serde_json::to_vec(&head).unwrap_or_default();
    let answer = part.answer.as_deref().unwrap_or_default();
    let mut bytes = Vec::with_capacity(4 + head.len() + answer.len());
    bytes.extend(u32::try_from(head.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(head);
    bytes.extend(answer);
    bytes
}

/// The part that [`encode_part`] wrote; `None` when it is none.
pub(crate) fn decode_part(bytes: &Bytes) -> Option<Part> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let head_end = 4usize.checked_add(usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
    let head: PartHead = serde_json::from_slice(rest.get(..head_end - 4)?).ok()?;
    let answer = head.answered.then(|| bytes.slice(head_end..));
    Some(Part { answer, outcomes: head.outcomes })
}

/// Answers what this host is asked, from now on.
///
/// # Errors
/// Zenoh's words.
pub(crate) async fn answer_asks(
    shared: &Arc<Shared>,
    session: &Session,
) -> zenoh::Result<Queryable<()>> {
    let key = shared.keys.ask(&shared.me);
    let at = Arc::downgrade(shared);
    let callback = move |query: Query| {
        let Some(shared) = at.upgrade() else { return };
        let listed = query.attachment().map(|hosts| hosts.to_bytes().into_owned());
        if listed.is_some_and(|listed| !is_listed(&listed, shared.me.host.as_str())) {
            return; // Others of our data centre are asked.
        }
        shared.handle.clone().spawn(answer(shared, query));
    };
    session.declare_queryable(key).callback(callback).await
}

/// Sends an answer. Zenoh blocks where the other side is slower than we: that must not keep other tasks
/// of this thread from running.
fn send(reply: impl FnOnce() -> zenoh::Result<()>) -> zenoh::Result<()> {
    tokio::task::block_in_place(reply)
}

/// Names are listed with a line each: no name holds a line's end.
pub(crate) fn list_hosts<'h>(hosts: impl Iterator<Item = &'h HostId>) -> Vec<u8> {
    let names: Vec<&str> = hosts.map(|id| id.host.as_str()).collect();
    names.join("\n").into_bytes()
}

fn is_listed(listed: &[u8], host: &str) -> bool {
    listed.split(|byte| *byte == b'\n').any(|name| name == host.as_bytes())
}

async fn answer(shared: Arc<Shared>, query: Query) {
    let key = shared.keys.ask(&shared.me);
    let said = match shared.answers.try_acquire() {
        Ok(_place) => {
            let request = query.payload().map(question::bytes_of).unwrap_or_default();
            shared.answerer.answer(request).await
        }
        Err(_) => Err("it answers too many questions already; ask again".to_owned()),
    };
    let sent = match said {
        Ok(answer) => send(|| query.reply(key, answer.as_ref()).wait()),
        // A refusal has no key: its first line says whose it is.
        Err(why) => send(|| query.reply_err(format!("{}\n{why}", shared.me)).wait()),
    };
    if let Err(error) = sent {
        tracing::debug!("an answer could not be sent: {error}");
    }
}

/// Asks for others, from now on.
///
/// # Errors
/// Zenoh's words.
pub(crate) async fn relay_asks(
    shared: &Arc<Shared>,
    session: &Session,
) -> zenoh::Result<Queryable<()>> {
    let at = Arc::downgrade(shared);
    let callback = move |query: Query| {
        let Some(shared) = at.upgrade() else { return };
        shared.handle.clone().spawn(relay(shared, query));
    };
    session.declare_queryable(shared.keys.relay(&shared.me)).callback(callback).await
}

async fn relay(shared: Arc<Shared>, query: Query) {
    let Ok(_place) = shared.relays.try_acquire() else {
        let _ = query.reply_err("it asks for too many others already").await;
        return;
    };
    let head = query.attachment().map(|head| head.to_bytes().into_owned()).unwrap_or_default();
    let head: RelayHead = match serde_json::from_slice(&head) {
        Ok(head) => head,
        Err(error) => {
            let why = format!("it does not understand what to ask: {error}");
            let _ = query.reply_err(why).await;
            return;
        }
    };
    let key = shared.keys.relay(&shared.me);
    let dc = &shared.me.dc;
    let request = query.payload().map(question::bytes_of).unwrap_or_default();
    let hosts = head.hosts.into_iter().map(|host| HostId { dc: dc.clone(), host }).collect();
    let ask = Ask {
        request: request.clone(),
        hosts,
        deadline: Duration::from_millis(head.deadline_ms).min(RELAY_TIME_MAX),
        merge: false,
        idempotent: head.idempotent,
    };
    // An empty part says that it was heard: silence would mean that this gateway hangs.
    let heard = Part { answer: None, outcomes: Vec::new() };
    if query.reply(&key, encode_part(&heard)).await.is_err() {
        return;
    }
    let mut parts = question::gather(&shared, ask);
    let mut batch = Batch::default();
    let mut merge_time = MERGE_TIME.0;
    loop {
        let next = match batch.due(merge_time) {
            None => parts.recv().await.map_or(Next::Over, Next::Part),
            Some(due) => match timeout_at(due, parts.recv()).await {
                Ok(Some(part)) => Next::Part(part),
                Ok(None) => Next::Over,
                Err(_) => Next::Due,
            },
        };
        let is_over = matches!(next, Next::Over);
        if let Next::Part(part) = next {
            batch.add(part);
            continue;
        }
        merge_time = (merge_time * 2).min(MERGE_TIME.1);
        for part in std::mem::take(&mut batch).merged(&shared, &request).await {
            if send(|| query.reply(&key, encode_part(&part)).wait()).is_err() {
                return; // Nobody listens any more.
            }
        }
        if is_over {
            return;
        }
    }
}

/// What happens next to a [`Batch`].
enum Next {
    Part(Part),
    /// It shall leave.
    Due,
    /// Nothing comes any more.
    Over,
}

/// Parts that wait to be merged.
#[derive(Default)]
struct Batch {
    /// When its first part came, and its last.
    came: Option<(Instant, Instant)>,
    parts: Vec<Part>,
}

impl Batch {
    fn add(&mut self, part: Part) {
        let now = Instant::now();
        let first = self.came.map_or(now, |(first, _)| first);
        self.came = Some((first, now));
        self.parts.push(part);
    }

    /// When it shall leave; `None` while there is nothing.
    fn due(&self, merge_time: Duration) -> Option<Instant> {
        self.came.map(|(first, last)| (first + merge_time).min(last + QUIET_TIME))
    }

    /// All in one part; or as they are, where one of them is none that this host can merge: the
    /// asking node may be newer, and will say whose it is.
    async fn merged(self, shared: &Arc<Shared>, request: &Bytes) -> Vec<Part> {
        let answers: Vec<Bytes> =
            self.parts.iter().filter_map(|part| part.answer.clone()).collect();
        if self.parts.len() <= 1 {
            return self.parts;
        }
        let answer = if answers.len() <= 1 {
            answers.into_iter().next()
        } else {
            let (answerer, request) = (Arc::clone(&shared.answerer), request.clone());
            let merging = tokio::task::spawn_blocking(move || answerer.merge(&request, answers));
            match merging.await {
                Ok(Ok(answer)) => Some(answer),
                Ok(Err(why)) => {
                    tracing::debug!("answers are passed on unmerged: {why}");
                    return self.parts;
                }
                Err(error) => {
                    tracing::error!("merging failed: {error}");
                    return self.parts;
                }
            }
        };
        let outcomes = self.parts.into_iter().flat_map(|part| part.outcomes).collect();
        vec![Part { answer, outcomes }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumo_abi::cluster::Outcome;

    #[test]
    fn parts_survive_the_way() {
        let id: HostId = "tokyo/a".parse().expect("a host");
        let outcomes = vec![
            HostOutcome { id: id.clone(), outcome: Outcome::Answered },
            HostOutcome { id, outcome: Outcome::Refused { why: "\"\n{".to_owned() } },
        ];
        for answer in [None, Some(Bytes::new()), Some(Bytes::from_static(b"\0{}"))] {
            let part = Part { answer, outcomes: outcomes.clone() };
            let bytes = Bytes::from(encode_part(&part));
            assert_eq!(decode_part(&bytes), Some(part));
            for end in 0..bytes.len() - 2 {
                let cut = decode_part(&bytes.slice(..end));
                assert!(cut.is_none_or(|cut| cut.answer.is_some_and(|answer| answer.len() < 3)));
            }
        }
        assert_eq!(decode_part(&Bytes::from_static(&[255, 255, 255, 255, b'{'])), None);
    }

    #[test]
    fn only_who_is_listed_answers() {
        let hosts = ["tokyo/web-1", "tokyo/web-12"].map(|id| id.parse().expect("a host"));
        let listed = list_hosts(hosts.iter());
        assert!(is_listed(&listed, "web-1") && is_listed(&listed, "web-12"));
        assert!(!is_listed(&listed, "web") && !is_listed(b"", "web"));
    }
}
