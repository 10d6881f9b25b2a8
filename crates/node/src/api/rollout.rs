//! `PUT /v2/all/sysctl/{name}`: one kernel parameter of many hosts, in waves, all or none.
//!
//! Every host is given the change with a time in which it must be confirmed, and takes it back by
//! itself otherwise. So whoever leads the change may die at any moment: what is not confirmed everywhere
//! by then comes back everywhere. Only when all hosts have the value and passed the check they are told
//! to keep it. A confirmation that reaches only some is the one thing that can leave hosts different;
//! it is repeated, which does no harm, and then told host by host.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use bytes::Bytes;
use k2i::host::HostReport;
use k2i::http::sysctl::parse_name;
use k2i::http::{Refused, asker, parameters};
use kumo_abi::cluster::{HostInfo, HostOutcome, HostState, Outcome};
use kumo_abi::hosts::{HEALTH, Health, health_value};
use kumo_abi::limits::QUERY_TEXT_BYTES_MAX;
use kumo_abi::merge::{self, Listed};
use kumo_abi::rights::Asker;
use kumo_abi::sysctl::{Change, ChangeId, ParameterName, SetAnswer, SetResult};
use kumo_abi::{DcName, Filter, HostId, HostName, Problem, Value as Cell};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::sleep;
use utoipa::OpenApi;

use super::all::{document, id, respond, tally_json};
use super::gather::{Gather, Tally, in_words};
use super::openapi::{ChangePath, ParameterPath, ScopeParameters, SetParameters};
use super::scope::{self, Chosen, Scope, Wait};
use super::sysctl::{
    Asked, End, HOW, How, check_right, parse_id, question_of_end, question_of_set, read_body,
};
use super::{NDJSON, Reply, Shared, body};
use crate::answer::Question;
use crate::calls::random;
use crate::sysctl::waves::{Canary, fits, waves};

/// In which time hosts take the change back where nobody says: long enough for a few waves, short
/// enough for a mistake.
const CONFIRM_WITHIN_DEFAULT: Duration = Duration::from_secs(60);

/// How long each wave is watched where there is a check and nobody says.
const WATCH_DEFAULT: Duration = Duration::from_secs(2);

/// Longest watch of a wave.
const WATCH_MAX: Duration = Duration::from_secs(60 * 60);

/// Time between two checks of a wave.
const CHECK_PERIOD: Duration = Duration::from_millis(500);

/// Lines of progress that wait for who asked.
const LINES_AHEAD: usize = 64;

/// So often a host is told to keep or to take back a value, as long as it is silent.
const TELL_TRIES_MAX: usize = 3;

/// So often a host that is silent is given a change: a way that is lost is found again by then, and who
/// is asked waits.
const APPLY_TRIES_MAX: usize = 2;

/// Between two of these.
const TELL_PAUSE: Duration = Duration::from_millis(200);

/// What became of the question to a host.
#[derive(Clone, Debug)]
enum Heard {
    /// Its answer: status and document.
    Answer(u16, Value),
    /// None, and why.
    Nothing(Outcome),
}

impl Heard {
    fn why_not(&self) -> String {
        match self {
            Heard::Answer(status, body) => match serde_json::from_value::<Problem>(body.clone()) {
                Ok(problem) => problem.detail,
                Err(_) => format!("it answered with status {status}"),
            },
            Heard::Nothing(outcome) => in_words(outcome),
        }
    }

    /// Whether nobody knows if the host did what it was asked to.
    fn is_doubtful(&self) -> bool {
        match self {
            Heard::Answer(status, _) => *status == 500,
            // A node that is starting or stopping refuses before it does anything.
            Heard::Nothing(outcome) => !matches!(outcome, Outcome::Refused { .. }),
        }
    }
}

/// Asks these hosts the same.
async fn hear(
    shared: &Shared,
    question: &Question,
    hosts: Vec<HostId>,
    wait: Wait,
    changes: bool,
) -> (BTreeMap<HostId, Heard>, Tally, Vec<u8>) {
    #[derive(Deserialize)]
    struct Row {
        dc: DcName,
        host: HostName,
        status: u16,
        body: Value,
    }
    let chosen = Chosen { hosts, undecided: Vec::new() };
    let mut gather = Gather::start(&shared.web, question.encode(), chosen, wait, changes);
    let answers = gather.all().await;
    let finished = merge::finish_lists(&answers);
    let heard_of = finished.hosts.iter().map(|Listed { dc, host }| id(dc, host));
    let tally = gather.tally(heard_of, finished.spoiled.iter());
    let mut heard = BTreeMap::new();
    for line in finished.rows.split(|byte| *byte == b'\n') {
        if let Ok(Row { dc, host, status, body }) = serde_json::from_slice(line) {
            heard.insert(id(&dc, &host), Heard::Answer(status, body));
        }
    }
    for HostOutcome { id, outcome } in &tally.missing {
        heard.insert(id.clone(), Heard::Nothing(outcome.clone()));
    }
    (heard, tally, finished.rows)
}

/// The documents of many hosts, as `/v2/all/…` gives them.
fn listed(tally: &Tally, rows: &[u8], place: OwnedSemaphorePermit) -> Reply {
    tally.check()?;
    let mut about = Map::new();
    about.insert("hosts".to_owned(), tally_json(tally, None));
    let rows = k2i::escaped_json(&String::from_utf8_lossy(rows)).into_bytes();
    Ok(document(about, "answers", rows, place))
}

/// The hosts that are meant, where that is certain.
fn choose(shared: &Shared, scope: &Scope) -> Result<Vec<HostId>, Refused> {
    let Chosen { hosts, undecided } = scope.choose(&shared.web.hosts());
    if let Some(unknown) = undecided.first() {
        let detail = format!(
            "nobody knows whether {unknown} is meant, as its card has not arrived; ask again, or name \
             hosts by dc, host or state"
        );
        return Err(refused("undecided", "It is not known who is meant", detail));
    }
    if hosts.is_empty() {
        let detail = "there is no host to ask with this dc and where; `kumo hosts` lists them";
        let title = "There is no such host";
        return Err(Refused::new(StatusCode::NOT_FOUND, "no-such-host", title, detail));
    }
    Ok(hosts)
}

fn refused(name: &str, title: &str, detail: String) -> Refused {
    Refused::new(StatusCode::CONFLICT, name, title, detail)
}

#[derive(OpenApi)]
#[openapi(paths(confirm, rollback, set))]
pub(super) struct Paths;

/// What was changed stays, on many hosts
#[utoipa::path(
    post, path = "/v2/all/sysctl-changes/{id}/confirm", params(ChangePath, ScopeParameters),
    responses(
        (status = 200, body = Object), (status = 409, description = "It is not known who is meant"),
        (status = 504, description = "No host answered"),
    ),
)]
pub(super) async fn confirm(
    state: State<Shared>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    request: Request,
) -> Reply {
    end(state, id, &uri, request, End::Confirm).await
}

/// The old values come back, on many hosts
#[utoipa::path(
    post, path = "/v2/all/sysctl-changes/{id}/rollback", params(ChangePath, ScopeParameters),
    responses(
        (status = 200, body = Object), (status = 409, description = "It is not known who is meant"),
        (status = 504, description = "No host answered"),
    ),
)]
pub(super) async fn rollback(
    state: State<Shared>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    request: Request,
) -> Reply {
    end(state, id, &uri, request, End::Rollback).await
}

async fn end(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    uri: &Uri,
    request: Request,
    end: End,
) -> Reply {
    check_right(request.extensions())?;
    let asker = asker(request.extensions());
    // Its body says nothing.
    drop(request);
    let Path(text) = id.map_err(|error| Refused::bad_request(error.body_text()))?;
    let id = parse_id(&text)?;
    let scope = Scope::take(&mut parameters(uri, scope::PARAMETERS)?)?;
    let place = shared.place().await?;
    let hosts = choose(&shared, &scope)?;
    let question = question_of_end(&id, end, shared.web.me(), None, asker);
    let (_, tally, rows) = hear(&shared, &question, hosts, scope.wait, true).await;
    listed(&tally, &rows, place)
}

/// Changes a kernel parameter of many hosts, in waves, all or none
///
/// The answer is a line for each thing that happens; the last says how it ended, host by host.
#[utoipa::path(
    put, path = "/v2/all/sysctl/{name}",
    params(
        ParameterPath, SetParameters, ScopeParameters,
        ("canary" = Option<String>, Query, description = "Who gets it first: 10%, 1, or waves: 1,10%,50%"),
        ("check" = Option<String>, Query, description = "What must hold of each host meanwhile (CEL)"),
        ("watch" = Option<String>, Query, description = "How long each wave is watched"),
    ),
    request_body(content = Object),
    responses(
        (status = 200, content((Object = "application/json"), (String = "application/x-ndjson"))),
        (status = 409, description = "Not all hosts are there"),
        (status = 504, description = "No host answered"),
    ),
)]
pub(super) async fn set(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Reply {
    check_right(request.extensions())?;
    let name = parse_name(name)?;
    let known = [scope::PARAMETERS, HOW, &["canary", "check", "watch"]].concat();
    let mut pairs = parameters(&uri, &known)?;
    let scope = Scope::take(&mut pairs)?;
    let (mut how, mut canary, mut check, mut watch) = (How::default(), None, None, None);
    for (parameter, text) in pairs {
        match parameter.as_str() {
            "canary" => canary = Some(text.parse::<Canary>().map_err(Refused::bad_request)?),
            "check" => check = Some(parse_check(&text)?),
            "watch" => watch = Some(parse_watch(&text)?),
            _ => how.take(&parameter, &text)?,
        }
    }
    let asker = asker(request.extensions());
    let mut asked = read_body(request, &headers).await?;
    let me = shared.web.me();
    asked.through = Some(me.clone());
    let place = shared.place().await?;
    let hosts = choose(&shared, &scope)?;
    if how.dry_run {
        let question = dry_run(&name, &asked, asker);
        let (_, tally, rows) = hear(&shared, &question, hosts, scope.wait, false).await;
        return listed(&tally, &rows, place);
    }
    let infos = shared.web.hosts();
    let is_there =
        |id: &&HostId| infos.iter().any(|host| host.id == **id && host.state == HostState::Alive);
    if let Some(away) = hosts.iter().find(|id| !is_there(id)) {
        let detail = format!(
            "{away} is meant and is not there, so not all hosts can have the change; to leave out \
             those that are away, ask for hosts where state == \"alive\""
        );
        return Err(refused("not-all-there", "Not all hosts are there", detail));
    }
    let watch = watch.unwrap_or(if check.is_some() { WATCH_DEFAULT } else { Duration::ZERO });
    let within = how.confirm_within.unwrap_or(CONFIRM_WITHIN_DEFAULT);
    let waves = waves(&hosts, &me, &canary.unwrap_or_default());
    if !fits(waves.len(), scope.wait.most, watch, within) {
        let detail = format!(
            "{} wave(s), each with {} s to reach its hosts and {} s of watching, take longer than {} s, \
             after which the first hosts take the value back; confirm within a longer time, or watch for \
             a shorter one",
            waves.len(),
            scope.wait.most.as_secs_f32(),
            watch.as_secs_f32(),
            within.as_secs_f32()
        );
        return Err(Refused::bad_request(detail));
    }
    let (tell, lines) = mpsc::channel(LINES_AHEAD);
    let change = ChangeId::new(random());
    asked.id = Some(change.clone());
    // Each gets all its time: one that is given up for the sake of the others would end it for all.
    let wait = Wait { exact: true, ..scope.wait };
    let ends = BTreeMap::new();
    let rollout = Rollout {
        shared,
        asker,
        name,
        asked,
        change,
        within,
        check,
        watch,
        wait,
        waves,
        tell,
        ends,
    };
    // It goes on when nobody listens any more: then it has to take back what is done.
    tokio::spawn(async move {
        rollout.run().await;
        drop(place);
    });
    Ok(respond(NDJSON, body::of_channel(lines)))
}

fn parse_check(text: &str) -> Result<Filter, Refused> {
    if text.len() > QUERY_TEXT_BYTES_MAX {
        let (len, max) = (text.len(), QUERY_TEXT_BYTES_MAX);
        return Err(Refused::bad_request(format!("check: {len} bytes, and {max} is the most")));
    }
    Filter::compile(text, &HEALTH).map_err(|error| Refused::bad_request(format!("check: {error}")))
}

fn parse_watch(text: &str) -> Result<Duration, Refused> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let watch = kumo_abi::sysctl::parse_within(text).ok().filter(|watch| *watch <= WATCH_MAX);
    watch.ok_or_else(|| Refused::bad_request("watch is 0, or a time from 1s to 1h, such as 5s"))
}

fn dry_run(name: &ParameterName, asked: &Asked, asker: Asker) -> Question {
    let pairs = [("dry_run".to_owned(), "1".to_owned())];
    question_of_set(name, &pairs, asked, asker)
}

/// How the change stands on one host.
#[derive(Clone, Debug)]
struct HostEnd {
    /// A state of a change, or `unchanged`, `not-asked`.
    state: &'static str,
    why: Option<String>,
    /// The value that the host told last.
    value: Option<String>,
}

impl HostEnd {
    fn new(state: &'static str, why: Option<String>) -> HostEnd {
        HostEnd { state, why, value: None }
    }
}

/// A change of many hosts under way.
struct Rollout {
    shared: Shared,
    /// In whose name hosts are asked.
    asker: Asker,
    name: ParameterName,
    asked: Asked,
    change: ChangeId,
    within: Duration,
    check: Option<Filter>,
    watch: Duration,
    wait: Wait,
    waves: Vec<Vec<HostId>>,
    tell: mpsc::Sender<Bytes>,
    /// Of those that were asked for the change.
    ends: BTreeMap<HostId, HostEnd>,
}

impl Rollout {
    async fn run(mut self) {
        let began = Instant::now();
        self.say(json!({
            "event": "plan", "id": self.change, "name": self.name, "value": self.asked.value,
            "waves": self.waves, "confirm_within_ms": crate::web::millis(self.within),
        }))
        .await;
        let (outcome, why) = self.lead(began).await;
        self.finish(outcome, why.as_deref()).await;
    }

    /// All of it; how it ended.
    async fn lead(&mut self, began: Instant) -> (&'static str, Option<String>) {
        let all: Vec<HostId> = self.waves.concat();
        // What would be refused is refused before anything is changed.
        let question = dry_run(&self.name, &self.asked, self.asker.clone());
        let (heard, ..) = hear(&self.shared, &question, all.clone(), self.wait, false).await;
        let mut refusals = heard.iter().filter(|(_, it)| !matches!(it, Heard::Answer(200, _)));
        if let Some((host, heard)) = refusals.next() {
            let more = match refusals.count() {
                0 => String::new(),
                more => format!(", and {more} more would not"),
            };
            return ("refused", Some(format!("{host} would not: {}{more}", heard.why_not())));
        }
        let count = self.waves.len();
        for (index, wave) in self.waves.clone().into_iter().enumerate() {
            if let Some(why) = self.is_over(began) {
                return self.take_back(why).await;
            }
            let number = index + 1;
            self.say(json!({ "event": "wave", "wave": number, "of": count, "hosts": wave })).await;
            if let Some(why) = self.apply(wave).await {
                return self.take_back(why).await;
            }
            if let Some(why) = self.watch(began).await {
                return self.take_back(why).await;
            }
        }
        if let Some(why) = self.is_over(began) {
            return self.take_back(why).await;
        }
        if self.ends.values().all(|end| end.state == "unchanged") {
            return ("unchanged", Some("all hosts have this value".to_owned()));
        }
        self.keep().await
    }

    /// Why it must not go on.
    fn is_over(&self, began: Instant) -> Option<String> {
        if self.tell.is_closed() {
            return Some("who asked for it has gone away".to_owned());
        }
        if *self.shared.stopping.borrow() {
            return Some("the node that leads it is being stopped".to_owned());
        }
        // One step must be left, for the confirmation.
        let is_late = began.elapsed() + self.wait.most >= self.within;
        is_late.then(|| "it took longer than hosts wait to be told to keep the value".to_owned())
    }

    /// Gives the change to a wave; why it is over then.
    async fn apply(&mut self, wave: Vec<HostId>) -> Option<String> {
        let within = format!("{}ms", self.within.as_millis());
        let pairs = [("confirm_within".to_owned(), within)];
        let question = question_of_set(&self.name, &pairs, &self.asked, self.asker.clone());
        // Before the answers: whoever is asked may have it.
        for host in &wave {
            self.ends.insert(host.clone(), HostEnd::new("unknown", None));
        }
        let mut heard = BTreeMap::new();
        let mut open = wave;
        for attempt in 0..APPLY_TRIES_MAX {
            if attempt > 0 {
                sleep(TELL_PAUSE).await;
            }
            let (some, ..) = hear(&self.shared, &question, open, self.wait, true).await;
            heard.extend(some);
            // An answer that was lost on its way comes when it is asked for again; made it is once.
            let is_silent = |it: &Heard| matches!(it, Heard::Nothing(Outcome::Silent { .. }));
            let silent = heard.iter().filter(|(_, it)| is_silent(it));
            open = silent.map(|(host, _)| host.clone()).collect();
            if open.is_empty() {
                break;
            }
        }
        let mut failed = None;
        for (host, heard) in heard {
            let answer = match &heard {
                Heard::Answer(200, body) => serde_json::from_value::<SetAnswer>(body.clone()).ok(),
                _ => None,
            };
            let end = if let Some(answer) = answer {
                self.say(json!({
                    "event": "applied", "dc": host.dc, "host": host.host, "result": answer.result,
                    "old": answer.old, "new": answer.new,
                }))
                .await;
                let is_same = answer.result == SetResult::Unchanged;
                let state = if is_same { "unchanged" } else { "pending" };
                HostEnd { state, why: None, value: answer.new }
            } else {
                let why = heard.why_not();
                self.say(json!({
                    "event": "failed", "dc": host.dc, "host": host.host, "why": why,
                }))
                .await;
                failed.get_or_insert_with(|| format!("{host} did not take it: {why}"));
                HostEnd::new(if heard.is_doubtful() { "unknown" } else { "not-made" }, Some(why))
            };
            self.ends.insert(host, end);
        }
        failed
    }

    /// Watches all hosts that have the change so far; why it is over then.
    async fn watch(&self, began: Instant) -> Option<String> {
        let watched = Instant::now();
        loop {
            if let Some(why) = self.check().await {
                return Some(why);
            }
            if let Some(why) = self.is_over(began) {
                return Some(why);
            }
            let left = self.watch.saturating_sub(watched.elapsed());
            if left.is_zero() {
                return None;
            }
            tokio::select! {
                () = sleep(left.min(CHECK_PERIOD)) => {}
                () = self.tell.closed() => {}
            }
        }
    }

    /// Whether the check holds on all hosts that have the change so far; why not.
    async fn check(&self) -> Option<String> {
        let Some(check) = &self.check else { return None };
        let hosts: Vec<HostId> = self.ends.keys().cloned().collect();
        let question = Question::get("/v2/host".to_owned(), self.asker.clone());
        let (heard, ..) = hear(&self.shared, &question, hosts, self.wait, false).await;
        let infos = self.shared.web.hosts();
        let mut failed: Option<String> = None;
        for (host, heard) in &heard {
            let why = match (heard, infos.iter().find(|info| info.id == *host)) {
                (Heard::Answer(200, body), Some(info)) => {
                    let value = self.ends.get(host).and_then(|end| end.value.clone());
                    fails(check, info, body, value)
                }
                (heard, _) => Some(heard.why_not()),
            };
            if let Some(why) = why {
                self.say(json!({
                    "event": "check", "dc": host.dc, "host": host.host, "holds": false, "why": why,
                }))
                .await;
                failed.get_or_insert_with(|| format!("the check fails on {host}: {why}"));
            }
        }
        if failed.is_none() {
            self.say(json!({ "event": "check", "holds": true, "hosts": heard.len() })).await;
        }
        failed
    }

    /// Tells those that have it, or may, how it ends, until each has said that it knows.
    async fn tell_all(&mut self, end: End, why: Option<&str>) {
        let (me, asker) = (self.shared.web.me(), self.asker.clone());
        let question = question_of_end(&self.change, end, me, why, asker);
        let is_open = |end: &HostEnd| matches!(end.state, "pending" | "unknown");
        let mut other = Vec::new();
        let mut open: BTreeSet<HostId> = self
            .ends
            .iter()
            .filter(|(_, end)| is_open(end))
            .map(|(host, _)| host.clone())
            .collect();
        for attempt in 0..TELL_TRIES_MAX {
            if open.is_empty() {
                break;
            }
            if attempt > 0 {
                sleep(TELL_PAUSE).await;
            }
            let hosts = open.iter().cloned().collect();
            let (heard, ..) = hear(&self.shared, &question, hosts, self.wait, true).await;
            for (host, heard) in heard {
                let known = match &heard {
                    Heard::Answer(200, body) => {
                        let change = serde_json::from_value::<Change>(body.clone()).ok();
                        change.map(|it| HostEnd::new(it.state.name(), it.why))
                    }
                    // It never had it.
                    Heard::Answer(404, _) => Some(HostEnd::new("not-made", None)),
                    // It has ended in another way.
                    Heard::Answer(409, _) => {
                        other.push(host.clone());
                        Some(HostEnd::new("unknown", Some(heard.why_not())))
                    }
                    _ => None,
                };
                if let Some(known) = known {
                    open.remove(&host);
                    self.ends.insert(host, known);
                } else {
                    let said = heard.why_not();
                    let then = "unless it heard us, it takes the value back by itself";
                    let why = match end {
                        End::Confirm => format!("it was to keep the value, and {said}; {then}"),
                        End::Rollback => format!("{said}; it takes the value back by itself"),
                    };
                    self.ends.insert(host, HostEnd::new("unknown", Some(why)));
                }
            }
        }
        self.look_up(other).await;
    }

    /// Asks the journals of these hosts what became of it.
    async fn look_up(&mut self, hosts: Vec<HostId>) {
        #[derive(Deserialize)]
        struct Journal {
            entries: Vec<Change>,
        }
        if hosts.is_empty() {
            return;
        }
        let target = format!("/v2/sysctl-changes?id={}", self.change);
        let question = Question::get(target, self.asker.clone());
        let (heard, ..) = hear(&self.shared, &question, hosts, self.wait, false).await;
        for (host, heard) in heard {
            let Heard::Answer(200, body) = heard else { continue };
            let journal = serde_json::from_value::<Journal>(body).ok();
            if let Some(change) =
                journal.and_then(|journal| journal.entries.into_iter().next_back())
            {
                self.ends.insert(host, HostEnd::new(change.state.name(), change.why));
            }
        }
    }

    async fn keep(&mut self) -> (&'static str, Option<String>) {
        self.say(json!({ "event": "confirming", "hosts": self.ends.len() })).await;
        self.tell_all(End::Confirm, None).await;
        let is_kept = |end: &HostEnd| matches!(end.state, "confirmed" | "unchanged");
        if self.ends.values().all(is_kept) {
            return ("confirmed", None);
        }
        let kept = self.ends.values().filter(|end| is_kept(end)).count();
        let why = format!(
            "only {kept} of {} hosts are known to keep it; `kumo sysctl rollback {} --all` takes it back on \
             those, and setting it again gives it to the others",
            self.ends.len(),
            self.change
        );
        ("partial", Some(why))
    }

    async fn take_back(&mut self, why: String) -> (&'static str, Option<String>) {
        self.say(json!({ "event": "rolling-back", "why": why })).await;
        self.tell_all(End::Rollback, Some(&why)).await;
        let is_back =
            |end: &HostEnd| matches!(end.state, "rolled-back" | "not-made" | "unchanged" | "gone");
        let all = self.ends.values().all(is_back);
        (if all { "rolled-back" } else { "partial" }, Some(why))
    }

    async fn finish(&self, outcome: &'static str, why: Option<&str>) {
        let hosts: Vec<Value> = self
            .waves
            .iter()
            .flatten()
            .map(|host| {
                let not_asked = HostEnd::new("not-asked", None);
                let HostEnd { state, why, .. } = self.ends.get(host).unwrap_or(&not_asked);
                json!({ "dc": host.dc, "host": host.host, "state": state, "why": why })
            })
            .collect();
        tracing::info!(target: "audit", parameter = %self.name, id = %self.change, outcome,
            why, hosts = hosts.len(), "change of a kernel parameter of many hosts");
        self.say(json!({
            "event": "end", "id": self.change, "outcome": outcome, "why": why, "hosts": hosts,
        }))
        .await;
    }

    /// A line for who asked. One that does not read is not waited for longer than anybody else.
    async fn say(&self, line: Value) {
        let line = format!("{}\n", k2i::escaped_json(&line.to_string()));
        let _: Result<_, _> = self.tell.send_timeout(line.into(), self.wait.most).await;
    }
}

/// Why a check fails on a host; `None` where it holds.
fn fails(check: &Filter, info: &HostInfo, report: &Value, value: Option<String>) -> Option<String> {
    let Ok(report) = serde_json::from_value::<HostReport>(report.clone()) else {
        return Some("it does not say how it is; is it of another version?".to_owned());
    };
    let now = health(&report, value);
    if check.matches(&|column| health_value(info, &now, column)) {
        return None;
    }
    let read = check.columns().iter().map(|column| {
        let name = HEALTH.columns[*column].name;
        let value = match health_value(info, &now, *column) {
            Cell::Null => "not known".to_owned(),
            Cell::Bool(flag) => flag.to_string(),
            Cell::Int(number) => number.to_string(),
            Cell::Float(number) => format!("{number:.2}"),
            Cell::Text(text) => format!("`{}`", String::from_utf8_lossy(&text).escape_debug()),
            Cell::TextList(_) => "a list".to_owned(),
        };
        format!("{name} is {value}")
    });
    Some(read.collect::<Vec<_>>().join(", "))
}

fn health(report: &HostReport, value: Option<String>) -> Health {
    let (load, memory, tasks) = (&report.load, &report.memory, &report.tasks);
    let some = |stall: &Option<k2i::host::Stall>| Some(stall.as_ref()?.some.as_ref()?.avg10);
    let pressure = &report.pressure;
    Health {
        load: Some([load.avg1, load.avg5, load.avg15]),
        memory: Some([memory.total, memory.available, memory.swap_free]),
        pressure: [some(&pressure.cpu), some(&pressure.memory), some(&pressure.io)],
        tasks: Some([tasks.processes, tasks.threads, tasks.running]),
        uptime: Some(report.boot.uptime_seconds),
        value,
    }
}
