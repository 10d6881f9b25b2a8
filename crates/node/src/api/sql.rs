//! `/v2/all/sql`: queries over the tables of many hosts, in SQL.
//!
//! SQLite runs here; each read of a table is one question to all hosts that are meant, for the columns that
//! the query needs and with its conditions. Conditions on `dc` and `host` choose whom to ask. A host that
//! did not answer one of the questions is named beside the rows, so that nobody takes them for all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::post;
use k2i::http::sql::{Asked, ScanAnswer, ScanAsked};
use k2i::http::{Refused, asker, choose, parameters};
use k2i::sql::{ANSWER_ROWS_MAX, TABLES_OF_MANY, allow, answer};
use kumo_abi::HostId;
use kumo_abi::cluster::{HostOutcome, Outcome};
use kumo_abi::merge::{self, Listed};
use kumo_abi::rights::Asker;
use kumo_sql::{Cell, Ended, Limits, Rows, Scan, ScanError, Source, Stop, Table};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use utoipa::OpenApi;

use super::gather::{GATHER_BYTES_MAX, Gather, Tally};
use super::scope::{self, Chosen, Scope, Wait};
use super::{JSON, Reply, Shared};
use crate::answer::Question;
use crate::web::Web;

/// A query that waits for hosts looks so often whether anybody still waits for it.
const LOOK: Duration = Duration::from_millis(50);

/// Most notes of hosts that an answer repeats: a page of them helps nobody.
const NOTES_MAX: usize = 20;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v2/all/sql", post(query))
}

#[derive(OpenApi)]
#[openapi(paths(query))]
pub(super) struct Paths;

/// The answer to a query over many hosts
///
/// As of `/v2/sql`, with `dc` and `host` in each table; `hosts` says who is in it.
#[utoipa::path(
    post, path = "/v2/all/sql",
    params(
        ("dc" = Option<String>, Query, description = "Only hosts of these data centres"),
        ("where" = Option<String>, Query, description = "Only hosts that fulfil this condition (CEL)"),
        ("wait_ms" = Option<u64>, Query, description = "How long hosts are waited for"),
    ),
    request_body(content = Object),
    responses((status = 200, body = Object)),
)]
async fn query(
    State(shared): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Reply {
    choose(&headers, &[JSON])?;
    let scope = Scope::take(&mut parameters(&uri, scope::PARAMETERS)?)?;
    let asker = asker(request.extensions());
    let asked = Asked::of(request).await?;
    let limits =
        Limits { time: asked.time()?, read_bytes: GATHER_BYTES_MAX, rows: ANSWER_ROWS_MAX };
    let (chosen, wait) = (scope.choose(&shared.web.hosts()), scope.wait);
    if chosen.hosts.is_empty() && chosen.undecided.is_empty() {
        // No rows of nobody would be taken for a fact.
        let detail = "there is no host to ask with this dc and where; `kumo hosts` lists them";
        return Err(Refused::new(StatusCode::NOT_FOUND, "no-host", "Nobody is meant", detail));
    }
    let (web, runtime) = (shared.web.clone(), Handle::current());
    let work = move |stop: &Arc<Stop>| {
        let began = Instant::now();
        let said = Mutex::default();
        let hosts = Arc::new(Hosts { web, chosen, wait, asker, runtime, said });
        let source: Arc<dyn Source> = Arc::clone(&hosts) as Arc<dyn Source>;
        let mut answered = answer(&source, &asked.query, &limits, stop)?;
        let said = hosts.said();
        answered.notes.extend(said.notes.iter().take(NOTES_MAX).cloned());
        let missing: Vec<HostOutcome> = said
            .missing
            .iter()
            .map(|(id, outcome)| HostOutcome { id: id.clone(), outcome: outcome.clone() })
            .collect();
        let answered_by = said.asked.len() - missing.len();
        let mut about = json!({
            "hosts": { "asked": said.asked.len(), "answered": answered_by, "missing": missing },
        });
        if let Some(as_of) = &said.as_of {
            about["as_of"] = as_of.as_str().into();
        }
        Ok(answered.document(about, began.elapsed()))
    };
    // It holds as much as a gather.
    let _place = shared.place().await?;
    let body = shared.queries.run(limits, work).await?;
    Ok(([(header::CONTENT_TYPE, JSON)], body).into_response())
}

/// The tables of many hosts, for one query.
struct Hosts {
    web: Web,
    /// The same for all tables.
    chosen: Chosen,
    wait: Wait,
    asker: Asker,
    runtime: Handle,
    said: Mutex<Said>,
}

/// What is known of the hosts when the query is done.
#[derive(Default)]
struct Said {
    asked: BTreeSet<HostId>,
    /// The first that a host missed.
    missing: BTreeMap<HostId, Outcome>,
    /// When the first of them was read.
    as_of: Option<String>,
    /// What hosts could not see.
    notes: BTreeSet<String>,
}

/// What one host answered.
#[derive(Deserialize)]
struct One<'a> {
    #[serde(flatten)]
    id: HostId,
    status: u16,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// A refusal.
#[derive(Deserialize)]
struct Detail {
    detail: String,
}

impl Source for Hosts {
    fn tables(&self) -> &'static [Table] {
        TABLES_OF_MANY
    }

    fn scan(&self, scan: &Scan<'_>, rows: &mut Rows<'_>) -> Result<(), ScanError> {
        allow(scan.table, self.asker.rights)?;
        let Chosen { mut hosts, mut undecided } = self.chosen.clone();
        let is_meant = |id: &HostId| {
            let is = |name, text: &str| scan.text(name).is_none_or(|wanted| wanted == text);
            is("dc", id.dc.as_str()) && is("host", id.host.as_str())
        };
        hosts.retain(is_meant);
        undecided.retain(is_meant);
        self.said().asked.extend(hosts.iter().chain(&undecided).cloned());
        let time = rows.stop().deadline().saturating_duration_since(Instant::now());
        let question = question(scan, time, self.asker.clone()).encode();
        let (chosen, mut wait) = (Chosen { hosts, undecided }, self.wait);
        wait.most = wait.most.min(time);
        let (answers, gather) = self.runtime.block_on(async {
            let mut gather = Gather::start(&self.web, question, chosen, wait, false);
            let answers = tokio::select! {
                answers = gather.all() => answers,
                ended = ended(rows.stop()) => return Err(ended),
            };
            Ok((answers, gather))
        })?;
        let finished = merge::finish_lists(&answers);
        drop(answers);
        let heard = finished
            .hosts
            .iter()
            .map(|Listed { dc, host }| HostId { dc: dc.clone(), host: host.clone() });
        let mut tally = gather.tally(heard, finished.spoiled.iter());
        let given = self.take(scan, &finished.rows, rows, &mut tally);
        // Nobody at all is no answer: an empty one would be taken for a fact.
        tally.check().map_err(|refused| ScanError::failed(refused.to_string()))?;
        let mut said = self.said();
        for HostOutcome { id, outcome } in tally.missing {
            said.missing.entry(id).or_insert(outcome);
        }
        given
    }
}

impl Hosts {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the rows that hosts answered, a line for each. Who did not give any as was asked is missing.
    fn take(
        &self,
        scan: &Scan<'_>,
        lines: &[u8],
        rows: &mut Rows<'_>,
        tally: &mut Tally,
    ) -> Result<(), ScanError> {
        let names: Vec<&str> =
            scan.columns.iter().map(|place| scan.table.columns[*place].name).collect();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            // Who cannot be read at all was left out before.
            let Ok(One { id, status, body }) = serde_json::from_slice::<One<'_>>(line) else {
                continue;
            };
            let answer = match serde_json::from_str::<ScanAnswer>(body.get()) {
                Ok(answer) if status == 200 => answer,
                _ => {
                    let why = serde_json::from_str::<Detail>(body.get());
                    let why = why.map_or_else(|error| error.to_string(), |why| why.detail);
                    tally.refused(id, why);
                    continue;
                }
            };
            let mut said = self.said();
            if said.as_of.as_ref().is_none_or(|first| *first > answer.as_of) {
                said.as_of = Some(answer.as_of);
            }
            said.notes.extend(answer.notes.iter().map(|note| format!("{id}: {note}")));
            drop(said);
            for row in answer.rows {
                let mut own = row.into_iter();
                let cell = |name: &&str| match *name {
                    "dc" => id.dc.as_str().into(),
                    "host" => id.host.as_str().into(),
                    _ => own.next().map(Cell::from).unwrap_or_default(),
                };
                rows.push(names.iter().map(cell))?;
            }
        }
        Ok(())
    }
}

/// What each host is asked: whose a row is, is known here.
fn question(scan: &Scan<'_>, time: Duration, asker: Asker) -> Question {
    let is_own = |place: &usize| !matches!(scan.table.columns[*place].name, "dc" | "host");
    let name = |place: usize| scan.table.columns[place].name.to_owned();
    let wanted = scan.wanted.iter().filter(|wanted| is_own(&wanted.column));
    let asked = ScanAsked {
        table: scan.table.name.to_owned(),
        columns: scan.columns.iter().copied().filter(is_own).map(name).collect(),
        wanted: wanted.map(|one| (name(one.column), one.value.clone().into())).collect(),
        limit: scan.limit,
        time_ms: time.as_millis() as u64,
    };
    Question {
        method: Method::POST.to_string(),
        // Names and numbers always are JSON.
        body: serde_json::to_value(asked).ok(),
        ..Question::get("/v2/sql/scan".to_owned(), asker)
    }
}

/// Waits until the query is to end.
async fn ended(stop: &Stop) -> Ended {
    loop {
        if let Err(ended) = stop.check() {
            return ended;
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumo_sql::Wanted;

    #[test]
    fn what_a_host_is_asked_leaves_out_whose_it_is() {
        let table = TABLES_OF_MANY.iter().find(|table| table.name == "processes").expect("a table");
        let place = |name| table.column(name).expect("a column");
        let mut columns = ["dc", "host", "pid", "name", "id"].map(place);
        columns.sort_unstable();
        let wanted = [
            Wanted { column: place("dc"), value: "tokyo".into() },
            Wanted { column: place("name"), value: "sh".into() },
        ];
        let scan = Scan { table, columns: &columns, wanted: &wanted, limit: Some(5) };
        let question = question(&scan, Duration::from_millis(70), Asker::default());
        let want = json!({
            "table": "processes", "columns": ["pid", "name", "id"], "wanted": [["name", "sh"]],
            "limit": 5, "time_ms": 70,
        });
        assert_eq!((question.method.as_str(), question.body), ("POST", Some(want)));
        assert_eq!(question.target, "/v2/sql/scan");
    }
}
