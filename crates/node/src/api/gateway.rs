//! `POST /v2/call/{service}/{method}`: a call over HTTP, for who has no SDK.
//!
//! The body is the payload. The outcome is in the header `kumo-outcome`, and why in `kumo-cause`; the status
//! says as much of it as HTTP can:
//!
//! | `kumo-outcome` | status |
//! |---|---|
//! | `done` | 200, and the reply as body |
//! | `failed` (the callee said no; its code is in `kumo-code`) | 422 |
//! | `not-executed` (trying again is safe) | 404 `NO_SUCH`, 403 `DENIED`, 413 `TOO_LARGE`, 429 `EXHAUSTED`, 504 `DEADLINE`, 508 `CYCLE` and `DEPTH`, else 503 |
//! | `unknown` (it may have been executed) | 500 `PANIC`, 504 `DEADLINE`, else 502 |
//!
//! `kumo-budget-ms` is the budget, 30 s without it. A `traceparent` (W3C) is taken up; the answer has the trace,
//! and the span that the call is part of. Where trying again is worth it, `retry-after` says when.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use k2i::http::{PROBLEM_JSON, Refused, allow, bytes_of, chain};
use kumo_abi::Problem;
use kumo_abi::call::{
    BUDGET_MS_DEFAULT, BUDGET_NS_MAX, Cause, Method, RootId, ServiceName, Status,
};
use kumo_abi::rights::Scope as Right;
use middlecon::{CallError, Context};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use utoipa::OpenApi;

use super::{PLACE_WAIT_MAX, Reply, Shared, calls::parse_root};
use crate::calls::random;
use crate::calls::shown::outcome;

/// Calls of one listener that are under way at once. Each has a thread while it waits.
pub(crate) const GATEWAY_CALLS_MAX: usize = 32;

/// Largest payload of a call over HTTP. Each that is under way is held in memory.
pub(crate) const CALL_BODY_BYTES_MAX: usize = 8 << 20;

const OUTCOME: HeaderName = HeaderName::from_static("kumo-outcome");
const CAUSE: HeaderName = HeaderName::from_static("kumo-cause");
const CODE: HeaderName = HeaderName::from_static("kumo-code");
const BUDGET: HeaderName = HeaderName::from_static("kumo-budget-ms");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The node as a program of its own: made at the first call.
#[derive(Clone)]
pub(super) struct Gateway {
    client: Arc<Mutex<Option<middlecon::Node>>>,
    places: Arc<Semaphore>,
}

impl Gateway {
    pub(super) fn new() -> Gateway {
        let places = Arc::new(Semaphore::new(GATEWAY_CALLS_MAX));
        Gateway { client: Arc::default(), places }
    }

    fn client(&self, run_dir: &std::path::Path) -> Result<middlecon::Node, Refused> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let made = middlecon::Node::connect(run_dir).map_err(|error| {
            let title = "The node cannot call";
            Refused::new(StatusCode::SERVICE_UNAVAILABLE, "no-calls", title, chain(&error))
        })?;
        made.secure_with(Arc::new(middlecon::OfCluster));
        Ok(client.insert(made).clone())
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").finish_non_exhaustive()
    }
}

#[derive(OpenApi)]
#[openapi(paths(call))]
pub(super) struct Paths;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v2/call/{service}/{method}", post(call))
}

/// Calls a service; it takes the right `call`
///
/// The outcome is in the header `kumo-outcome`, and why in `kumo-cause`.
#[utoipa::path(
    post, path = "/v2/call/{service}/{method}",
    params(
        ("service" = String, Path, description = "Its name"),
        ("method" = String, Path, description = "Which of its methods"),
        ("kumo-budget-ms" = Option<u64>, Header, description = "How long it may take", minimum = 1),
        ("traceparent" = Option<String>, Header, description = "The trace that it is part of (W3C)"),
    ),
    request_body(content(("application/octet-stream"))),
    responses(
        (status = 200, content(("application/octet-stream"))),
        (status = 422, description = "The callee said no; its code is in `kumo-code`"),
        (status = 429, description = "Not executed: the callee's or this host's means are exhausted"),
        (status = 502, description = "Unknown: it may have been executed"),
        (status = 504, description = "Its budget was over"),
        (status = 508, description = "Not executed: it would have come back to where it began"),
    ),
)]
async fn call(
    State(shared): State<Shared>,
    names: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Reply {
    // Whoever calls here calls as the user of the node.
    allow(request.extensions(), Right::Call)?;
    let Path((service, method)) = names.map_err(|error| Refused::bad_request(error.body_text()))?;
    let bad = |what: &str, text: &str, error: &dyn std::fmt::Display| {
        Refused::bad_request(format!("`{}` is no {what}: {error}", text.escape_debug()))
    };
    let service: ServiceName = service.parse().map_err(|error| bad("service", &service, &error))?;
    let method: Method = method.parse().map_err(|error| bad("method", &method, &error))?;
    let budget = budget(request.headers())?;
    let parent = trace(request.headers())?;
    let gateway = shared.gateway.clone();
    let place = timeout(PLACE_WAIT_MAX, Arc::clone(&gateway.places).acquire_owned()).await;
    let place = place.map_err(|_| Refused::busy())?.map_err(|_| Refused::busy())?;
    let began = Instant::now();
    // Who names no span above the call is that span itself.
    let (root, parent) = parent.unwrap_or_else(|| (Context::root(budget).trace(), random().max(1)));
    let Ok(body) = timeout(budget, bytes_of(request, CALL_BODY_BYTES_MAX)).await else {
        let message = "its payload had not arrived".to_owned();
        let (cause, path, retry_after_ms) = (Cause::Deadline, Vec::new(), None);
        let late = CallError::NotExecuted { cause, message, path, retry_after_ms };
        return Ok(answer(root, parent, &Err(late)));
    };
    let (body, budget) = (body?, budget.saturating_sub(began.elapsed()));
    let run_dir = shared.run_dir.clone();
    let calling = spawn_blocking(move || -> Result<_, Refused> {
        let client = gateway.client(&run_dir)?;
        let context = Context::traced(root, parent, budget);
        let result = context.enter(|| client.service(&service).call(&method, &body));
        drop(place);
        Ok(result)
    });
    let result = calling.await.map_err(|error| {
        tracing::error!("a call failed: {error}");
        Refused::bug()
    })??;
    Ok(answer(root, parent, &result))
}

fn budget(headers: &HeaderMap) -> Result<Duration, Refused> {
    let Some(text) = headers.get(BUDGET) else {
        return Ok(Duration::from_millis(BUDGET_MS_DEFAULT));
    };
    let most_ms = BUDGET_NS_MAX / 1_000_000;
    let number = text.to_str().ok().and_then(|text| text.parse().ok());
    let number = number.filter(|ms: &u64| (1..=most_ms).contains(ms));
    number.map(Duration::from_millis).ok_or_else(|| {
        Refused::bad_request(format!("kumo-budget-ms is a number from 1 to {most_ms}"))
    })
}

/// The trace and the span that the call is part of: `00-TRACE-SPAN-FLAGS`.
fn trace(headers: &HeaderMap) -> Result<Option<(RootId, u64)>, Refused> {
    let Some(text) = headers.get(TRACEPARENT) else { return Ok(None) };
    let parsed = text.to_str().ok().and_then(parse_traceparent);
    parsed.map(Some).ok_or_else(|| {
        Refused::bad_request("traceparent is written 00-TRACE-SPAN-FLAGS, as W3C says")
    })
}

fn parse_traceparent(text: &str) -> Option<(RootId, u64)> {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, root, span, flags, ..] = parts[..] else { return None };
    let is_hex = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    // A later version may have more behind it; `ff` is none.
    let fits = is_hex(version, 2) && version != "ff" && (version != "00" || parts.len() == 4);
    if !fits || !is_hex(span, 16) || !is_hex(flags, 2) {
        return None;
    }
    let span = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
    Some((parse_root(root)?, span))
}

/// The status of an outcome.
fn http_status(status: Status) -> StatusCode {
    match status {
        Status::Done => StatusCode::OK,
        Status::Failed(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Status::NotExecuted(cause) => match cause {
            Cause::NoSuch => StatusCode::NOT_FOUND,
            Cause::Denied => StatusCode::FORBIDDEN,
            Cause::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Cause::Exhausted => StatusCode::TOO_MANY_REQUESTS,
            Cause::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Cause::Cycle | Cause::Depth => StatusCode::LOOP_DETECTED,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        },
        Status::Unknown(Cause::Panic) => StatusCode::INTERNAL_SERVER_ERROR,
        Status::Unknown(Cause::Deadline) => StatusCode::GATEWAY_TIMEOUT,
        Status::Unknown(_) => StatusCode::BAD_GATEWAY,
    }
}

fn answer(root: RootId, parent: u64, result: &Result<bytes::Bytes, CallError>) -> Response {
    let status = result.as_ref().map_or_else(CallError::status, |_| Status::Done);
    let (said, cause, code) = outcome(status.number());
    let http = http_status(status);
    let mut response = match result {
        Ok(reply) => {
            let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
            (http, kind, reply.clone()).into_response()
        }
        Err(error) => {
            let title = "The call has no reply";
            let problem =
                Problem::new(http.as_u16(), &format!("call-{said}"), title, error.to_string());
            let text = serde_json::to_string(&problem).unwrap_or_default();
            let body = k2i::escaped_json(&text);
            (http, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response()
        }
    };
    let headers = response.headers_mut();
    let mut say = |name: HeaderName, text: String| {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    };
    say(OUTCOME, said.to_owned());
    if let Some(cause) = cause {
        say(CAUSE, cause.to_owned());
    }
    if let Some(code) = code {
        say(CODE, code.to_string());
    }
    say(TRACEPARENT, format!("00-{root}-{parent:016x}-01"));
    if let Err(CallError::NotExecuted { retry_after_ms: Some(after_ms), .. }) = result {
        say(header::RETRY_AFTER, after_ms.div_ceil(1_000).max(1).to_string());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparents() {
        let root = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = format!("00-{root}-00f067aa0ba902b7-01");
        let (trace, span) = parse_traceparent(&good).expect("a traceparent");
        assert_eq!((trace.to_string().as_str(), span), (root, 0x00f0_67aa_0ba9_02b7));
        assert!(parse_traceparent(&format!("01-{root}-00f067aa0ba902b7-01-more")).is_some());
        for bad in [
            String::new(),
            root.to_owned(),
            format!("00-{root}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{root}-00f067aa0ba902b7-01-more"),
            format!("ff-{root}-00f067aa0ba902b7-01"),
            format!("00-{root}-00F067AA0BA902B7-01"),
        ] {
            assert_eq!(parse_traceparent(&bad), None, "for {bad:?}");
        }
    }

    #[test]
    fn statuses_say_what_http_can() {
        let cases = [
            (Status::Done, 200),
            (Status::Failed(7), 422),
            (Status::NotExecuted(Cause::NoSuch), 404),
            (Status::NotExecuted(Cause::Busy), 503),
            (Status::NotExecuted(Cause::Cycle), 508),
            (Status::NotExecuted(Cause::Deadline), 504),
            (Status::Unknown(Cause::Died), 502),
            (Status::Unknown(Cause::Panic), 500),
        ];
        for (status, want) in cases {
            assert_eq!(http_status(status).as_u16(), want, "for {status}");
        }
    }
}
