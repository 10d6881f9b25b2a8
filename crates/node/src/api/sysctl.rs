//! `/v2/sysctl…`: changes of kernel parameters, of this host and, through it, of others.
//!
//! How parameters are read is the business of `k2i`; the changes of many are led by [`super::rollout`].

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{Extensions, HeaderMap, Method, StatusCode, Uri, header};
use axum::routing::{get, post, put};
use k2i::http::sysctl::parse_name;
use k2i::http::{
    REQUEST_BODY_BYTES_MAX, Refused, Via, allow, asker, bytes_of, chain, json_of, parameters,
};
use kumo_abi::HostId;
use kumo_abi::rights::{Asker, Scope as Right, Who};
use kumo_abi::sysctl::{
    Change, ChangeId, ChangeIdError, ParameterNameError, Pattern, parse_within,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use utoipa::OpenApi;

use super::openapi::{ChangePath, HostParameters, ParameterPath, SetParameters, WaitParameters};
use super::scope::{self, Scope};
use super::{Reply, Shared, all, json as document, one, rollout};
use crate::answer::Question;
use crate::sysctl::{ChangeError, Ending, Set, Shared as Changes};

/// Changes that are shown where nobody says how many.
const ENTRIES_DEFAULT: usize = 100;

/// Longest wait for the end of a change; who wants to wait longer asks again.
const END_WAIT_MS_MAX: u64 = 20_000;

/// Most changes that are shown.
const ENTRIES_MAX: usize = 10_000;

/// What is asked for, as a body of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// The value to be.
    pub(super) value: String,
    /// The value that must be there now; also as the header `If-Match`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) if_match: Option<String>,
    /// Which change of many hosts it is a part of. Between nodes alone, as the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<ChangeId>,
    /// Through whom it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) through: Option<HostId>,
}

#[derive(OpenApi)]
#[openapi(paths(set, changes, confirm, rollback))]
pub(super) struct OwnPaths;

#[derive(OpenApi)]
#[openapi(paths(set_of_one, end_of_one))]
pub(super) struct AskingPaths;

/// About this host: others may ask for them over the fabric.
pub(super) fn own_routes() -> Router<Shared> {
    Router::new()
        .route("/v2/sysctl/{*name}", put(set))
        .route("/v2/sysctl-changes", get(changes))
        .route("/v2/sysctl-changes/{id}/confirm", post(confirm))
        .route("/v2/sysctl-changes/{id}/rollback", post(rollback))
}

/// Of one other host, and of many.
pub(super) fn asking_routes() -> Router<Shared> {
    const ONE: &str = "/v2/hosts/{dc}/{host}";
    Router::new()
        .route("/v2/all/sysctl/{*name}", get(all::list).put(rollout::set))
        .route("/v2/all/sysctl-changes/{id}/confirm", post(rollout::confirm))
        .route("/v2/all/sysctl-changes/{id}/rollback", post(rollout::rollback))
        .route(&format!("{ONE}/sysctl/{{*name}}"), get(one::read).put(set_of_one))
        .route(&format!("{ONE}/sysctl-changes/{{id}}/{{what}}"), post(end_of_one))
}

/// Whether who asks may change parameters. The only place that decides it.
pub(super) fn check_right(request: &Extensions) -> Result<(), Refused> {
    allow(request, Right::SysctlWrite)
}

/// Whether who asks may see values that the kernel shows to their owner alone.
fn may_see_private(request: &Extensions) -> bool {
    asker(request).rights.holds(Right::SysctlWrite)
}

/// Who asks, in words.
fn who(request: &Extensions, through: Option<&HostId>) -> String {
    let who = match (asker(request).who, request.get::<Via>()) {
        (Who::Nobody, Some(Via::Unix | Via::Fabric)) => "who may open the node's socket".to_owned(),
        (who, _) => who.to_string(),
    };
    match through {
        Some(through) => format!("{who}, through {through}"),
        None => who,
    }
}

/// The body, and the header that means the same.
pub(super) async fn read_body(request: Request, headers: &HeaderMap) -> Result<Asked, Refused> {
    let is_from_node = request.extensions().get::<Via>() == Some(&Via::Fabric);
    let mut asked: Asked = json_of(request, "{\"value\":\"10\"}").await?;
    if !is_from_node && (asked.id.is_some() || asked.through.is_some()) {
        return Err(Refused::bad_request("`id` and `through` are what nodes say to each other"));
    }
    if let Some(tag) = headers.get(header::IF_MATCH) {
        let text = tag.to_str().map_err(|_| Refused::bad_request("If-Match is no plain text"))?;
        let text = text.trim();
        let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        // `*` is whatever is there: a parameter without a value is not changed anyway.
        let tag = (text != "*").then(|| inner.unwrap_or(text).to_owned());
        if asked.if_match.is_some() && tag.is_some() && asked.if_match != tag {
            return Err(Refused::bad_request("If-Match and `if_match` of the body differ"));
        }
        asked.if_match = asked.if_match.or(tag);
    }
    Ok(asked)
}

/// What the parameters of a request for a change say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct How {
    pub(super) dry_run: bool,
    pub(super) confirm_within: Option<Duration>,
}

pub(super) const HOW: &[&str] = &["dry_run", "confirm_within"];

impl How {
    pub(super) fn take(&mut self, name: &str, text: &str) -> Result<(), Refused> {
        if name == "confirm_within" {
            let within = parse_within(text);
            let wrong = |error| Refused::bad_request(format!("confirm_within: {error}"));
            self.confirm_within = Some(within.map_err(wrong)?);
            return Ok(());
        }
        self.dry_run = match text {
            "1" => true,
            "0" => false,
            _ => return Err(Refused::bad_request("dry_run is 1 or 0")),
        };
        Ok(())
    }
}

/// Runs what waits for the disk and the kernel where blocking is fine.
async fn block<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce(&Changes) -> Result<T, ChangeError> + Send + 'static,
) -> Result<T, Refused> {
    let changes = Arc::clone(&shared.sysctl);
    let done = spawn_blocking(move || work(&changes)).await.map_err(|error| {
        tracing::error!("an answer failed: {error}");
        Refused::bug()
    })?;
    Ok(done?)
}

/// Changes a kernel parameter of this host
#[utoipa::path(
    put, path = "/v2/sysctl/{name}",
    params(ParameterPath, SetParameters),
    request_body(content = Object),
    responses(
        (status = 200, body = Object), (status = 409, description = "It is being changed already"),
        (status = 412, description = "It has another value"),
        (status = 422, description = "The kernel does not take the value"),
        (status = 507, description = "The disk does not take the change"),
    ),
)]
async fn set(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Reply {
    check_right(request.extensions())?;
    let name = parse_name(name)?;
    let mut how = How::default();
    for (parameter, text) in parameters(&uri, HOW)? {
        how.take(&parameter, &text)?;
    }
    let extensions = request.extensions().clone();
    let Asked { value, if_match, id, through } = read_body(request, &headers).await?;
    let who = who(&extensions, through.as_ref());
    let How { dry_run, confirm_within } = how;
    let ask = Set { name, value, if_match, dry_run, confirm_within, id, who };
    let answer = block(&shared, move |changes| changes.set(ask)).await?;
    // Who may write values may see them.
    Ok(document(StatusCode::OK, &answer))
}

/// Changes of kernel parameters, with those under way
#[utoipa::path(
    get, path = "/v2/sysctl-changes",
    params(
        ("pattern" = Option<String>, Query, description = "Only of these parameters"),
        ("id" = Option<String>, Query, description = "Only this change"),
        ("limit" = Option<u64>, Query, description = "How many at most"),
        ("end_wait_ms" = Option<u64>, Query, description = "With id: waits so long for its end", maximum = 20_000),
    ),
    responses((status = 200, body = Object)),
)]
async fn changes(State(shared): State<Shared>, uri: Uri, request: Request) -> Reply {
    let (mut pattern, mut id, mut most, mut wait) = (None, None, ENTRIES_DEFAULT, None);
    for (name, text) in parameters(&uri, &["pattern", "id", "limit", "end_wait_ms"])? {
        match name.as_str() {
            "pattern" => {
                let parsed = text.parse::<Pattern>();
                pattern = Some(parsed.map_err(|it| Refused::bad_request(it.to_string()))?);
            }
            "id" => id = Some(parse_id(&text)?),
            "end_wait_ms" => {
                let number = text.parse().ok().filter(|ms| *ms <= END_WAIT_MS_MAX);
                wait = Some(number.map(Duration::from_millis).ok_or_else(|| {
                    let detail = format!("end_wait_ms is a number from 0 to {END_WAIT_MS_MAX}");
                    Refused::bad_request(detail)
                })?);
            }
            _ => {
                let number = text.parse().ok().filter(|number| (1..=ENTRIES_MAX).contains(number));
                most = number.ok_or_else(|| {
                    Refused::bad_request(format!("limit is a number from 1 to {ENTRIES_MAX}"))
                })?;
            }
        }
    }
    let with_private = may_see_private(request.extensions());
    match (wait, &id) {
        (None, _) => {}
        (Some(_), None) => {
            return Err(Refused::bad_request("end_wait_ms is about one change; say which by id"));
        }
        (Some(wait), Some(id)) => {
            let mut stopping = shared.stopping.clone();
            // Whichever comes first, the answer says how it is then. An error means that the node is gone.
            tokio::select! {
                () = shared.sysctl.end_of(id) => {}
                () = sleep(wait) => {}
                _ = stopping.wait_for(|stop| *stop) => {}
            }
        }
    }
    let journal = block(&shared, move |changes| {
        changes.journal(most, &|change| {
            pattern.as_ref().is_none_or(|pattern| pattern.matches(&change.name))
                && id.as_ref().is_none_or(|id| *id == change.id)
        })
    })
    .await?;
    let shown = |change: Change| if with_private { change } else { change.without_secrets() };
    let (unwritten, unreadable_changes) = shared.sysctl.lost();
    let me = shared.web.me();
    Ok(document(
        StatusCode::OK,
        &json!({
            "dc": me.dc, "host": me.host, "allowed": shared.sysctl.allowed().to_string(),
            "entries": journal.entries.into_iter().map(shown).collect::<Vec<_>>(),
            "unreadable": journal.unreadable + unreadable_changes, "unwritten": unwritten,
        }),
    ))
}

pub(super) fn parse_id(text: &str) -> Result<ChangeId, Refused> {
    text.parse().map_err(|error: ChangeIdError| Refused::bad_request(error.to_string()))
}

/// What is said with a confirmation, by nodes to each other.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Through {
    #[serde(default)]
    pub(super) through: Option<HostId>,
    /// Why it is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
}

/// Most characters of a reason that a journal gets from another node.
const WHY_CHARS_MAX: usize = 500;

/// What was changed stays
#[utoipa::path(
    post, path = "/v2/sysctl-changes/{id}/confirm", params(ChangePath),
    responses((status = 200, body = Object), (status = 409, description = "The change has ended")),
)]
async fn confirm(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Reply {
    end(shared, id, request, Changes::confirm).await
}

/// The old value comes back, at once
#[utoipa::path(
    post, path = "/v2/sysctl-changes/{id}/rollback", params(ChangePath),
    responses((status = 200, body = Object), (status = 409, description = "The change has ended")),
)]
async fn rollback(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Reply {
    end(shared, id, request, Changes::rollback).await
}

async fn end(
    shared: Shared,
    id: Result<Path<String>, PathRejection>,
    request: Request,
    end: fn(&Changes, &ChangeId, &Ending) -> Result<Change, ChangeError>,
) -> Reply {
    check_right(request.extensions())?;
    let Path(text) = id.map_err(|error| Refused::bad_request(error.body_text()))?;
    let id = parse_id(&text)?;
    let is_from_node = request.extensions().get::<Via>() == Some(&Via::Fabric);
    let extensions = request.extensions().clone();
    let body = bytes_of(request, REQUEST_BODY_BYTES_MAX).await?;
    let Through { through, why } = if is_from_node && !body.is_empty() {
        let read: Result<Through, _> = serde_json::from_slice(&body);
        read.map_err(|error| Refused::bad_request(error.to_string()))?
    } else {
        Through::default()
    };
    let who = who(&extensions, through.as_ref());
    let why = why.map(|why| why.chars().take(WHY_CHARS_MAX).collect());
    let by = Ending { who, why };
    let change = block(&shared, move |changes| end(changes, &id, &by)).await?;
    Ok(document(StatusCode::OK, &change))
}

/// Changes a kernel parameter of one host, asked through this node
#[utoipa::path(
    put, path = "/v2/hosts/{dc}/{host}/sysctl/{name}",
    params(HostParameters, ParameterPath, SetParameters, WaitParameters),
    request_body(content = Object),
    responses(
        (status = 200, body = Object), (status = 409, description = "It is being changed already"),
        (status = 412, description = "It has another value"),
        (status = 422, description = "The kernel does not take the value"),
        (status = 502, description = "The host does not answer this"),
        (status = 504, description = "The host gave no answer"),
        (status = 507, description = "The disk does not take the change"),
    ),
)]
async fn set_of_one(
    State(shared): State<Shared>,
    names: Result<Path<(String, String, String)>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Reply {
    check_right(request.extensions())?;
    let Path((dc, host, name)) = names.map_err(|error| Refused::bad_request(error.body_text()))?;
    let id = one::host_id(&dc, &host)?;
    let name = name
        .parse()
        .map_err(|error: ParameterNameError| Refused::bad_request(error.to_string()))?;
    let known = [HOW, &scope::PARAMETERS[2..]].concat();
    let mut pairs = parameters(&uri, &known)?;
    let scope = Scope::take(&mut pairs)?;
    let asker = asker(request.extensions());
    let mut asked = read_body(request, &headers).await?;
    asked.through = Some(shared.web.me());
    let question = question_of_set(&name, &pairs, &asked, asker);
    one::ask(&shared, id, question, &scope, true).await
}

/// Ends a change on one host, asked through this node
#[utoipa::path(
    post, path = "/v2/hosts/{dc}/{host}/sysctl-changes/{id}/{what}",
    params(
        HostParameters, ChangePath, WaitParameters,
        ("what" = String, Path, description = "confirm or rollback"),
    ),
    responses(
        (status = 200, body = Object), (status = 409, description = "The change has ended"),
        (status = 502, description = "The host does not answer this"),
        (status = 504, description = "The host gave no answer"),
    ),
)]
async fn end_of_one(
    State(shared): State<Shared>,
    names: Result<Path<(String, String, String, String)>, PathRejection>,
    uri: Uri,
    request: Request,
) -> Reply {
    check_right(request.extensions())?;
    let Path((dc, host, change, what)) =
        names.map_err(|error| Refused::bad_request(error.body_text()))?;
    let host = one::host_id(&dc, &host)?;
    let scope = Scope::take(&mut parameters(&uri, &scope::PARAMETERS[2..])?)?;
    let end = match what.as_str() {
        "confirm" => End::Confirm,
        "rollback" => End::Rollback,
        _ => return Err(Refused::bad_request("a change is ended by `confirm` or `rollback`")),
    };
    let asker = asker(request.extensions());
    let question = question_of_end(&parse_id(&change)?, end, shared.web.me(), None, asker);
    one::ask(&shared, host, question, &scope, true).await
}

/// How a change ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Confirm,
    Rollback,
}

impl End {
    pub(super) fn name(self) -> &'static str {
        match self {
            End::Confirm => "confirm",
            End::Rollback => "rollback",
        }
    }
}

/// The question to a host for a change.
pub(super) fn question_of_set(
    name: &kumo_abi::sysctl::ParameterName,
    pairs: &[(String, String)],
    asked: &Asked,
    asker: Asker,
) -> Question {
    let mut target = "/v2/sysctl/".to_owned();
    all::push_encoded(&mut target, &name.to_string());
    all::push_query(&mut target, pairs);
    let body = serde_json::to_value(asked).ok();
    Question { method: Method::PUT.to_string(), body, ..Question::get(target, asker) }
}

/// The question to a host to end a change.
pub(super) fn question_of_end(
    id: &ChangeId,
    end: End,
    through: HostId,
    why: Option<&str>,
    asker: Asker,
) -> Question {
    let target = format!("/v2/sysctl-changes/{id}/{}", end.name());
    let why = why.map(str::to_owned);
    let body = serde_json::to_value(Through { through: Some(through), why }).ok();
    Question { method: Method::POST.to_string(), body, ..Question::get(target, asker) }
}

impl From<ChangeError> for Refused {
    fn from(error: ChangeError) -> Refused {
        let (status, name, title) = match error {
            ChangeError::Kernel(error) => return error.into(),
            ChangeError::NotAllowed(_) => (
                StatusCode::FORBIDDEN,
                "parameter-not-allowed",
                "This node does not write that kernel parameter",
            ),
            ChangeError::Value(_) | ChangeError::Within => {
                (StatusCode::BAD_REQUEST, "bad-request", "The request makes no sense")
            }
            ChangeError::ReadOnly(_) => (
                StatusCode::FORBIDDEN,
                "read-only-parameter",
                "The kernel parameter cannot be written",
            ),
            ChangeError::Mismatch { .. } => (
                StatusCode::PRECONDITION_FAILED,
                "other-value",
                "The kernel parameter has another value",
            ),
            ChangeError::Pending { .. } => (
                StatusCode::CONFLICT,
                "change-pending",
                "The kernel parameter is being changed already",
            ),
            ChangeError::Busy(_) | ChangeError::TooMany | ChangeError::Twice(_) => {
                (StatusCode::CONFLICT, "change-refused", "The change cannot be made now")
            }
            ChangeError::NoSuch(_) => {
                (StatusCode::NOT_FOUND, "no-such-change", "There is no such change")
            }
            ChangeError::Ended(_) | ChangeError::Late(_) => {
                (StatusCode::CONFLICT, "change-ended", "The change has ended already")
            }
            ChangeError::Stuck { .. } => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "rollback-failed",
                "The old value could not be written",
            ),
            ChangeError::Disk(_) => {
                (StatusCode::INSUFFICIENT_STORAGE, "no-disk", "The disk does not take the change")
            }
        };
        Refused::new(status, name, title, chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::HeaderValue;

    async fn body(text: &str, tag: Option<&'static str>) -> Result<Asked, String> {
        let mut headers = HeaderMap::new();
        if let Some(tag) = tag {
            headers.insert(header::IF_MATCH, HeaderValue::from_static(tag));
        }
        let request = Request::new(Body::from(text.to_owned()));
        read_body(request, &headers).await.map_err(|refused| refused.to_string())
    }

    #[tokio::test]
    async fn the_old_value_stands_in_the_header_or_in_the_body() {
        let plain = r#"{"value":"1"}"#;
        let both = r#"{"value":"1","if_match":"0"}"#;
        let cases = [
            (plain, None, Some(None)),
            (plain, Some("\"0\""), Some(Some("0"))),
            (plain, Some("4096\t8192"), Some(Some("4096\t8192"))),
            (plain, Some("*"), Some(None)),
            (both, None, Some(Some("0"))),
            (both, Some("\"0\""), Some(Some("0"))),
            (both, Some("\"2\""), None),
            ("{}", None, None),
            (r#"{"value":1}"#, None, None),
            (r#"{"value":"1","x":1}"#, None, None),
        ];
        for (text, tag, want) in cases {
            let got = body(text, tag).await.ok().map(|asked| asked.if_match);
            let want = want.map(|it| it.map(str::to_owned));
            assert_eq!(got, want, "for {text} with {tag:?}");
        }
    }

    #[test]
    fn questions_to_hosts() {
        let asked = Asked { value: "1".to_owned(), ..Asked::default() };
        let name = "net.ipv4.conf.eth0/100.rp_filter".parse().expect("a name");
        let pairs = [("confirm_within".to_owned(), "5s".to_owned())];
        let question = question_of_set(&name, &pairs, &asked, Asker::default());
        assert_eq!(
            question.target,
            "/v2/sysctl/net.ipv4.conf.eth0%2F100.rp_filter?confirm_within=5s"
        );
        assert_eq!(question.body, Some(json!({"value": "1"})));
    }
}
