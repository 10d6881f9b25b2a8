//! `/v2/proc?since=` and `/v2/proc/stream`: what of an answer has changed.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use kumo_abi::proc::{COLUMNS_DEFAULT, COLUMNS_ENDED_DEFAULT, Column, PROC};
use kumo_abi::rights::Lines;
use kumo_abi::{Query, QueryText};
use tokio::time::{MissedTickBehavior, interval};
use utoipa::OpenApi;

use super::body::{Whole, begin};
use super::guard::Shown;
use super::stream::{self, Form, Teller};
use super::v2::{JSON, QueryParameters, meta_headers, respond, with, with_columns};
use super::{Api, Asked, Refused, accept, parameters};
use crate::delta::{CellHash, Seen};
use crate::encode::document;
use crate::engine::Question;

/// The shortest and the longest pause of a stream.
const INTERVAL_MS: (u64, u64) = (100, 60_000);

/// The usual one.
const INTERVAL_MS_DEFAULT: u64 = 1_000;

/// Parameters of an address.
type Pairs = Vec<(String, String)>;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/v2/proc/stream", get(stream))
}

/// Takes the generation that the client has from its parameters.
pub(super) fn take_since(pairs: Pairs) -> Result<(Option<u64>, Pairs), Refused> {
    take_number(pairs, "since", (0, u64::MAX), "a generation, as an answer gives it; 0 begins")
}

/// Takes the parameter `name`, a number within `bounds`, from others.
fn take_number(
    mut pairs: Pairs,
    name: &str,
    bounds: (u64, u64),
    what: &str,
) -> Result<(Option<u64>, Pairs), Refused> {
    let Some(at) = pairs.iter().position(|(given, _)| given == name) else {
        return Ok((None, pairs));
    };
    let (_, text) = pairs.remove(at);
    let good = |number: &u64| (bounds.0..=bounds.1).contains(number);
    let number = text.parse().ok().filter(good).ok_or_else(|| {
        let text = text.escape_debug();
        Refused::bad_request(format!("{name} `{text}` is wrong; it is {what}"))
    })?;
    Ok((Some(number), pairs))
}

/// A query whose rows say who they are.
fn with_identity(text: QueryText) -> Result<QueryText, Refused> {
    if text.at.is_some() {
        let detail = "a moment does not change; ask for `at` without what follows it";
        return Err(Refused::bad_request(detail));
    }
    let usual = if text.ended { COLUMNS_ENDED_DEFAULT } else { COLUMNS_DEFAULT };
    let columns = match text.columns.as_deref().map(str::trim) {
        None | Some("") => usual.to_owned(),
        Some(columns) => match columns.strip_prefix('+') {
            Some(added) => format!("{usual},{added}"),
            None => columns.to_owned(),
        },
    };
    let columns = Some(with_columns(&columns, &[Column::Id]));
    let text = QueryText { columns, ..text };
    if Query::parse(&text, &PROC, COLUMNS_DEFAULT)?.is_grouped() {
        let detail = "groups have no identity by which changes could be told; ask for them whole";
        return Err(Refused::bad_request(detail));
    }
    Ok(text)
}

/// `GET /v2/proc?since=`: what has changed since the client's generation of the same question. Where
/// that is not known any more, everything, and it says so: `"full": true`.
pub(super) async fn since(
    api: Arc<Api>,
    headers: &HeaderMap,
    asked: Asked,
    since: u64,
    lines: Lines,
) -> Result<Response, Refused> {
    accept::choose(headers, &[JSON])?;
    let Asked { query, max_age } = asked;
    let text = with_identity(query)?;
    let query = Query::parse(&text, &PROC, COLUMNS_DEFAULT)?;
    // Who sees other lines has another answer.
    let key = format!("{lines} {}", serde_json::to_string(&text).unwrap_or_default());
    let memory = Arc::clone(&api);
    api.answer(move |engine, turn| {
        let max_age = turn.age_max(max_age);
        let answer = engine.ask(Question { query, pids: None, max_age, lines })?;
        let headers = meta_headers(&answer.meta);
        let generation = answer.meta.generation;
        let remembered = || memory.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, hash) = {
            let remembered = remembered();
            (remembered.find(&key, since), remembered.hash.clone())
        };
        let (body, seen) = answer.into_delta(before.as_ref(), &hash);
        remembered().put(key, generation, seen);
        Ok(respond(JSON, headers, begin(Whole(body), turn.place)))
    })
    .await
}

#[derive(OpenApi)]
#[openapi(paths(stream))]
pub(super) struct Paths;

/// The process table, then every `interval_ms` what of it has changed, as lines or server-sent events
///
/// A stream that does not end.
#[utoipa::path(
    get, path = "/v2/proc/stream",
    params(QueryParameters, (
        "interval_ms" = Option<u64>, Query, description = "Time between two looks, in milliseconds",
        minimum = 100, maximum = 60_000,
    )),
    responses(
        (status = 200, content((String = "application/x-ndjson"), (String = "text/event-stream"))),
        (status = 501, description = "Events are not taken here"),
    ),
)]
async fn stream(
    State(api): State<Arc<Api>>,
    Shown(lines): Shown,
    request: Request,
) -> Result<Response, Refused> {
    let form = Form::choose(request.headers())?;
    let pairs = parameters(request.uri(), &with("interval_ms"))?;
    let (least, most) = INTERVAL_MS;
    let what = format!("a number of milliseconds from {least} to {most}");
    let (interval_ms, pairs) = take_number(pairs, "interval_ms", INTERVAL_MS, &what)?;
    let Asked { query, .. } = Asked::of(pairs)?;
    let text = with_identity(query)?;
    let pause = Duration::from_millis(interval_ms.unwrap_or(INTERVAL_MS_DEFAULT));
    let (response, teller) = stream::begin(&api, request.extensions(), form)?;
    tokio::spawn(tell(api, text, lines, pause, teller));
    Ok(response)
}

/// Tells until nobody listens. A client that is slow gets fewer deltas, each of a longer while: none of
/// what changed is left out.
async fn tell(api: Arc<Api>, text: QueryText, lines: Lines, pause: Duration, mut teller: Teller) {
    let hash = CellHash::default();
    let mut before: Option<Seen> = None;
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if teller.next(ticks.tick()).await.is_err() {
            return;
        }
        let Ok(query) = Query::parse(&text, &PROC, COLUMNS_DEFAULT) else { return };
        let (hash, known) = (hash.clone(), before.take());
        let answer = api.answer(move |engine, _turn| {
            // Streams at the same time share scans.
            let question = Question { query, pids: None, max_age: pause / 2, lines };
            Ok((engine.ask(question)?.into_delta(known.as_ref(), &hash), known.is_some()))
        });
        let mut out = Vec::new();
        match teller.next(answer).await {
            Err(_) => return,
            Ok(Ok(((body, seen), is_delta))) => {
                before = Some(seen);
                teller.form().write(&mut out, if is_delta { "delta" } else { "full" }, &body);
            }
            // The next answer is whole again.
            Ok(Err(refused)) => {
                let told = serde_json::json!({ "problem": refused.to_string() });
                teller.form().write(&mut out, "problem", &document(&told));
            }
        }
        if teller.tell(out).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_who_they_are() {
        let columns = |columns: Option<&str>, ended: bool| {
            let columns = columns.map(ToOwned::to_owned);
            let text = QueryText { columns, ended, ..QueryText::default() };
            with_identity(text).map(|text| text.columns.expect("columns")).ok()
        };
        let cases = [
            (Some("pid,cpu"), false, Some("id,pid,cpu".to_owned())),
            (Some("pid,upid"), false, Some("pid,upid".to_owned())),
            (None, false, Some(format!("id,{COLUMNS_DEFAULT}"))),
            (Some("+exe"), true, Some(format!("id,{COLUMNS_ENDED_DEFAULT},exe"))),
            (Some("count()"), false, None),
        ];
        for (given, ended, want) in cases {
            assert_eq!(columns(given, ended), want, "for {given:?}");
        }
    }

    #[test]
    fn parameters_are_taken_out() {
        let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let (since, rest) = take_since(vec![pair("since", "7"), pair("x", "")]).expect("a number");
        assert_eq!((since, rest), (Some(7), vec![pair("x", "")]));
        for bad in ["", "-1", "x", "1.5"] {
            assert!(take_since(vec![pair("since", bad)]).is_err(), "for {bad:?}");
        }
    }
}
