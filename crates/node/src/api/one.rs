//! `/v2/hosts/{dc}/{host}/…`: one host, asked through this node.

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query as UrlQuery, Request, State};
use axum::http::{Extensions, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use k2i::http::{PROBLEM_JSON, Refused, allow, asker, json_of, parameters};
use kumo_abi::HostId;
use kumo_abi::cluster::{HostState, Outcome};
use kumo_abi::merge;
use kumo_abi::rights::Scope as Right;
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::OpenApi;

use super::all::push_query;
use super::gather::{Gather, in_words};
use super::openapi::{HostParameters, SignalForm, WaitParameters};
use super::scope::{self, Chosen, Scope};
use super::{JSON, Reply, Shared};
use crate::answer::{Question, TEXT, document_text};

#[derive(OpenApi)]
#[openapi(paths(signal))]
pub(super) struct Paths;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v2/hosts/{dc}/{host}/{*path}", get(read))
        .route("/v2/hosts/{dc}/{host}/proc/{id}/signal", post(signal))
}

/// Any document of one host.
pub(super) async fn read(
    State(shared): State<Shared>,
    names: Result<Path<(String, String, String)>, PathRejection>,
    uri: Uri,
    extensions: Extensions,
) -> Reply {
    let Path((dc, host, _)) = names.map_err(|error| Refused::bad_request(error.body_text()))?;
    let id = host_id(&dc, &host)?;
    let pairs = UrlQuery::<Vec<(String, String)>>::try_from_uri(&uri)
        .map_err(|error| Refused::bad_request(error.body_text()))?;
    // Which host is said by the path; how long it is waited for, by the only parameter of ours.
    let (mut wait, pairs): (Vec<_>, Vec<_>) =
        pairs.0.into_iter().partition(|(name, _)| name == "wait_ms");
    let scope = Scope::take(&mut wait)?;
    // As it was written: pieces of the path may be encoded.
    let path: Vec<&str> = uri.path().splitn(6, '/').collect();
    let mut target = format!("/v2/{}", path.last().copied().unwrap_or_default());
    push_query(&mut target, &pairs);
    ask(&shared, id, Question::get(target, asker(&extensions)), &scope, false).await
}

/// Sends a signal to a process of one host; it takes the right `signal`
#[utoipa::path(
    post, path = "/v2/hosts/{dc}/{host}/proc/{id}/signal",
    params(
        HostParameters,
        ("id" = String, Path, description = "PID or PID@START, as column `id` shows it"),
        WaitParameters,
    ),
    request_body = SignalForm,
    responses(
        (status = 200, body = Object),
        (status = 409, description = "The number belongs to another process"),
        (status = 501, description = "The kernel is too old for it"),
        (status = 502, description = "The host does not answer this"),
        (status = 504, description = "The host gave no answer; it may still do what it was asked to"),
    ),
)]
async fn signal(
    State(shared): State<Shared>,
    names: Result<Path<(String, String, String)>, PathRejection>,
    uri: Uri,
    request: Request,
) -> Reply {
    allow(request.extensions(), Right::Signal)?;
    let asker = asker(request.extensions());
    let Path((dc, host, process)) =
        names.map_err(|error| Refused::bad_request(error.body_text()))?;
    let id = host_id(&dc, &host)?;
    let scope = Scope::take(&mut parameters(&uri, &scope::PARAMETERS[2..])?)?;
    let body = json_of(request, "JSON").await?;
    if !process.bytes().all(|byte| byte.is_ascii_digit() || byte == b'@') {
        return Err(Refused::bad_request("the process is neither PID nor PID@START"));
    }
    let target = format!("/v2/proc/{process}/signal");
    let method = Method::POST.to_string();
    let question = Question { method, body: Some(body), ..Question::get(target, asker) };
    ask(&shared, id, question, &scope, true).await
}

pub(super) fn host_id(dc: &str, host: &str) -> Result<HostId, Refused> {
    format!("{dc}/{host}").parse().map_err(|error| {
        let (dc, host) = (dc.escape_debug(), host.escape_debug());
        Refused::bad_request(format!("`{dc}/{host}` is no host: {error}"))
    })
}

/// What one host answered, with its body as it stands.
#[derive(Deserialize)]
struct One<'a> {
    status: u16,
    #[serde(borrow)]
    body: &'a RawValue,
}

pub(super) async fn ask(
    shared: &Shared,
    id: HostId,
    question: Question,
    scope: &Scope,
    changes: bool,
) -> Reply {
    let Some(host) = shared.web.host(&id) else {
        let detail = format!("there is no host {id}; `kumo hosts` lists them");
        let title = "There is no such host";
        return Err(Refused::new(StatusCode::NOT_FOUND, "no-such-host", title, detail));
    };
    // A change that was never sent was not made: that is worth more than waiting for a doubt.
    if changes && host.state != HostState::Alive {
        let (state, for_ms) = (host.state.name(), host.state_ms);
        let detail = format!("{id} has been {state} for {for_ms} ms, so it was not asked");
        let title = "The host is not there";
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "not-asked", title, detail));
    }
    let _place = shared.place().await?;
    let asked = Chosen { hosts: vec![id.clone()], undecided: Vec::new() };
    let mut gather = Gather::start(&shared.web, question.encode(), asked, scope.wait, changes);
    let answers = gather.all().await;
    let finished = merge::finish_lists(&answers);
    let one: Option<One<'_>> = serde_json::from_slice(&finished.rows).ok();
    if let Some(One { status, body }) = one {
        return Ok(passed_on(status, body.get()));
    }
    let tally = gather.tally(std::iter::empty(), finished.spoiled.iter());
    let outcome = tally.missing.first().map(|one| &one.outcome);
    let said = outcome.map_or_else(|| "said nothing".to_owned(), in_words);
    let doubt = match outcome {
        Some(Outcome::Silent { .. }) if changes => "; it may still do what it was asked to",
        _ => "",
    };
    let status = match outcome {
        Some(Outcome::Refused { .. }) => StatusCode::BAD_GATEWAY,
        _ => StatusCode::GATEWAY_TIMEOUT,
    };
    let title = "The host gave no answer";
    Err(Refused::new(status, "no-answer", title, format!("{id} {said}{doubt}")))
}

fn passed_on(status: u16, body: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    if let Some(text) = document_text(body).filter(|_| status.is_success()) {
        return (status, [(header::CONTENT_TYPE, TEXT)], text).into_response();
    }
    let kind = if status.is_success() { JSON } else { PROBLEM_JSON };
    (status, [(header::CONTENT_TYPE, kind)], k2i::escaped_json(body)).into_response()
}
