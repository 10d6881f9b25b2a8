//! `/v2/all/…`: what `/v2/…` answers for one host, of many.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query as UrlQuery, State};
use axum::http::{Extensions, HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use k2i::http::{Asked, QUERY_PARAMETERS, QueryParameters, Refused, asker, choose, parameters};
use kumo_abi::merge::{self, Answered, Finished, Listed, Plan};
use kumo_abi::relation::RELATIONS;
use kumo_abi::{HostId, QueryText, Relation};
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use utoipa::OpenApi;

use super::gather::{Gather, Tally};
use super::openapi::{RowsOfMany, ScopeParameters};
use super::scope::{self, Scope};
use super::{JSON, NDJSON, PLACE_WAIT_MAX, Reply, Shared, body};
use crate::answer::Question;

/// Pieces of a stream that wait for their client: more would be memory, less would make hosts wait.
const PIECES_AHEAD: usize = 2;

#[derive(OpenApi)]
#[openapi(paths(rows))]
pub(super) struct Paths;

pub(super) fn routes() -> Router<Shared> {
    let lists = Router::new().route("/v2/all/{*path}", get(list));
    RELATIONS.into_iter().fold(lists, |routes, relation| {
        let asked = move |shared: State<Shared>, uri: Uri, headers: HeaderMap, of: Extensions| {
            rows(relation, shared, uri, headers, of)
        };
        routes.route(&format!("/v2/all/{}", relation.path), get(asked))
    })
}

impl Shared {
    /// A place among the gathers.
    pub(super) async fn place(&self) -> Result<OwnedSemaphorePermit, Refused> {
        let place = timeout(PLACE_WAIT_MAX, Arc::clone(&self.places).acquire_owned()).await;
        place.map_err(|_| Refused::busy())?.map_err(|_| Refused::busy())
    }
}

/// Rows of many hosts, as a query asks for them
///
/// Every host that was asked is in it or named as missing. As lines (NDJSON) the last one says who is in it.
#[utoipa::path(
    get, path = "/v2/all/proc",
    params(QueryParameters, ScopeParameters),
    responses(
        (status = 200, content((RowsOfMany = "application/json"), (String = "application/x-ndjson"))),
        (status = 504, description = "No host answered"),
    ),
)]
async fn rows(
    relation: &'static Relation,
    State(shared): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
) -> Reply {
    let form = choose(&headers, &[JSON, NDJSON])?;
    let known: Vec<&str> = QUERY_PARAMETERS.iter().chain(scope::PARAMETERS).copied().collect();
    let mut pairs = parameters(&uri, &known)?;
    let scope = Scope::take(&mut pairs)?;
    let max_age_ms = pairs.iter().find(|(name, _)| name == "max_age_ms").cloned();
    let asked = Asked::of(pairs)?;
    let plan = Arc::new(Plan::of(relation, &asked.query)?);
    let mut target = format!("/v2/{}", relation.path);
    push_query(&mut target, &question_pairs(plan.for_hosts(), max_age_ms));
    let question = Question { rows: true, ..Question::get(target, asker(&extensions)) };
    let place = shared.place().await?;
    let chosen = scope.choose(&shared.web.hosts());
    let mut gather = Gather::start(&shared.web, question.encode(), chosen, scope.wait, false);
    if form == NDJSON && plan.streams() {
        return stream(plan, gather, place).await;
    }
    let answers = gather.all().await;
    let lines = form == NDJSON;
    let answer = move || -> Reply {
        let mut finished = plan.finish(&answers);
        drop(answers);
        let tally = tally_of_rows(&gather, &finished);
        tally.check()?;
        if plan.is_grouped() {
            // Their texts were written anew, and must be as safe for terminals as before.
            let text = String::from_utf8_lossy(&finished.rows);
            finished.rows = k2i::escaped_json(&text).into_bytes();
        }
        let about = about_rows(&plan, &tally, &finished.hosts);
        let rows = finished.rows;
        Ok(if lines {
            let last = format!("{}\n", k2i::escaped_json(&Value::Object(about).to_string()));
            respond(form, body::of_pieces(vec![rows.into(), last.into()], place))
        } else {
            document(about, "rows", rows, place)
        })
    };
    spawn_blocking(answer).await.map_err(|error| failed(&error))?
}

/// `GET /v2/all/…`: the documents of many hosts.
pub(super) async fn list(
    State(shared): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
) -> Reply {
    choose(&headers, &[JSON])?;
    let pairs = UrlQuery::<Vec<(String, String)>>::try_from_uri(&uri)
        .map_err(|error| Refused::bad_request(error.body_text()))?;
    let mut pairs = pairs.0;
    let scope = Scope::take(&mut pairs)?;
    let path = uri.path().strip_prefix("/v2/all/").unwrap_or_default();
    let mut target = format!("/v2/{path}");
    push_query(&mut target, &pairs);
    let place = shared.place().await?;
    let chosen = scope.choose(&shared.web.hosts());
    let request = Question::get(target, asker(&extensions)).encode();
    let mut gather = Gather::start(&shared.web, request, chosen, scope.wait, false);
    let answers = gather.all().await;
    let answer = move || -> Reply {
        let finished = merge::finish_lists(&answers);
        drop(answers);
        let heard = finished.hosts.iter().map(|Listed { dc, host }| id(dc, host));
        let tally = gather.tally(heard, finished.spoiled.iter());
        tally.check()?;
        let mut about = Map::new();
        about.insert("hosts".to_owned(), tally_json(&tally, None));
        let rows = k2i::escaped_json(&String::from_utf8_lossy(&finished.rows)).into_bytes();
        Ok(document(about, "answers", rows, place))
    };
    spawn_blocking(answer).await.map_err(|error| failed(&error))?
}

/// Rows as they come in, then the line that says who is in it.
async fn stream(plan: Arc<Plan>, mut gather: Gather, place: OwnedSemaphorePermit) -> Reply {
    let mut hosts: Vec<Answered> = Vec::new();
    let mut spoiled = Vec::new();
    // With the first rows it is certain that somebody answers.
    let mut first = Vec::new();
    while hosts.is_empty() {
        let Some(answer) = gather.next().await else { break };
        let finished = finish(&plan, answer).await.map_err(|error| failed(&error))?;
        hosts.extend(finished.hosts);
        spoiled.extend(finished.spoiled);
        first = finished.rows;
    }
    if hosts.is_empty() {
        gather.tally(std::iter::empty(), spoiled.iter()).check()?;
    }
    let (tell, pieces) = mpsc::channel(PIECES_AHEAD);
    tokio::spawn(async move {
        // A client that is gone ends it here, and the gather with it.
        let _ = tell.send(Bytes::from(first)).await;
        loop {
            let answer = tokio::select! {
                answer = gather.next() => answer,
                () = tell.closed() => return,
            };
            let Some(answer) = answer else { break };
            let Ok(finished) = finish(&plan, answer).await else { return };
            hosts.extend(finished.hosts);
            spoiled.extend(finished.spoiled);
            if tell.send(finished.rows.into()).await.is_err() {
                return;
            }
        }
        hosts.sort_by(|a, b| (&a.dc, &a.host).cmp(&(&b.dc, &b.host)));
        let finished = Finished { hosts, rows: Vec::new(), spoiled };
        let tally = tally_of_rows(&gather, &finished);
        let about = Value::Object(about_rows(&plan, &tally, &finished.hosts));
        let last = format!("{}\n", k2i::escaped_json(&about.to_string()));
        let _ = tell.send(last.into()).await;
        drop(place);
    });
    Ok(respond(NDJSON, body::of_channel(pieces)))
}

async fn finish(
    plan: &Arc<Plan>,
    answer: Bytes,
) -> Result<Finished<Answered>, tokio::task::JoinError> {
    let plan = Arc::clone(plan);
    spawn_blocking(move || plan.finish(&[answer])).await
}

fn failed(error: &tokio::task::JoinError) -> Refused {
    tracing::error!("an answer failed: {error}");
    Refused::bug()
}

pub(super) fn id(dc: &kumo_abi::DcName, host: &kumo_abi::HostName) -> HostId {
    HostId { dc: dc.clone(), host: host.clone() }
}

fn tally_of_rows(gather: &Gather, finished: &Finished<Answered>) -> Tally {
    let heard = finished.hosts.iter().map(|Answered { dc, host, .. }| id(dc, host));
    gather.tally(heard, finished.spoiled.iter())
}

pub(super) fn tally_json(tally: &Tally, answered_by: Option<&[Answered]>) -> Value {
    let mut hosts = json!({
        "asked": tally.asked, "answered": tally.answered, "missing": tally.missing,
    });
    if let Some(answered_by) = answered_by {
        hosts["answered_by"] = json!(answered_by);
    }
    hosts
}

/// What an answer of rows says about itself. It begins with `hosts`: so the last line of a stream is
/// told from a row.
fn about_rows(plan: &Plan, tally: &Tally, hosts: &[Answered]) -> Map<String, Value> {
    let mut about = Map::new();
    about.insert("hosts".to_owned(), tally_json(tally, Some(hosts)));
    // All of these times are of one form, so that the least text is the earliest.
    if let Some(as_of) = hosts.iter().map(|host| host.as_of.as_str()).min() {
        about.insert("as_of".to_owned(), as_of.into());
    }
    let sum = |of: fn(&Answered) -> u64| -> Value {
        hosts.iter().map(of).fold(0, u64::saturating_add).into()
    };
    about.insert("processes".to_owned(), sum(|host| host.processes));
    about.insert("matched".to_owned(), sum(|host| host.matched));
    about.insert("columns".to_owned(), plan.columns().into());
    if hosts.iter().any(|host| host.lost > 0) {
        about.insert("lost".to_owned(), sum(|host| host.lost));
    }
    about
}

/// A document of what is said about an answer, and its rows as they are under `name`.
pub(super) fn document(
    about: Map<String, Value>,
    name: &str,
    mut rows: Vec<u8>,
    place: OwnedSemaphorePermit,
) -> Response {
    let mut head = k2i::escaped_json(&Value::Object(about).to_string());
    head.pop();
    let _: Result<(), _> = write!(head, ",\"{name}\":[");
    rows.pop();
    // A line end stands between rows and nowhere else.
    for byte in &mut rows {
        if *byte == b'\n' {
            *byte = b',';
        }
    }
    let pieces = vec![head.into(), rows.into(), Bytes::from_static(b"]}")];
    respond(JSON, body::of_pieces(pieces, place))
}

pub(super) fn respond(form: &'static str, body: Body) -> Response {
    let response: Result<Response, Infallible> =
        Ok((StatusCode::OK, [(header::CONTENT_TYPE, form)], body).into_response());
    match response {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The parameters of a query to hosts.
fn question_pairs(
    query: &QueryText,
    max_age_ms: Option<(String, String)>,
) -> Vec<(String, String)> {
    let parts = [
        ("columns", &query.columns),
        ("filter", &query.filter),
        ("sort", &query.sort),
        ("limit", &query.limit),
        ("group", &query.group),
        ("at", &query.at),
    ];
    let parts =
        parts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
    let ended = query.ended.then(|| ("ended".to_owned(), "1".to_owned()));
    parts.chain(ended).chain(max_age_ms).collect()
}

/// Appends parameters to an address.
pub(super) fn push_query(target: &mut String, pairs: &[(String, String)]) {
    for (index, (name, value)) in pairs.iter().enumerate() {
        target.push(if index == 0 { '?' } else { '&' });
        push_encoded(target, name);
        target.push('=');
        push_encoded(target, value);
    }
}

pub(super) fn push_encoded(target: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b',' => {
                target.push(char::from(byte));
            }
            _ => {
                let _: Result<(), _> = write!(target, "%{byte:02X}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_reads_back() {
        let query = QueryText {
            columns: Some("dc,host,pid".to_owned()),
            filter: Some("user == \"é&=+ %\" && pid > 1".to_owned()),
            sort: Some("-cpu,+pid".to_owned()),
            limit: Some("20".to_owned()),
            group: None,
            ended: true,
            at: None,
        };
        let age = Some(("max_age_ms".to_owned(), "500".to_owned()));
        let mut target = "/v2/proc".to_owned();
        push_query(&mut target, &question_pairs(&query, age));
        let uri: Uri = target.parse().expect("an address");
        let asked = Asked::parse(&uri, QUERY_PARAMETERS).expect("good parameters");
        assert_eq!((asked.query, asked.max_age.as_millis()), (query, 500));
    }
}
