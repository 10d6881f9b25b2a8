//! `POST /v2/proc/{id}/signal`: a signal to the process that is meant, or to nobody.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use kumo_abi::ProcessId;
use serde::Deserialize;
use serde_json::json;
use tokio::task::spawn_blocking;
use utoipa::{OpenApi, ToSchema};

use super::guard::allow;
use super::payload::json_of;
use super::{Api, Did, Refused, chain};
use crate::encode::document;
use crate::signal::{Signal, SignalError, Target};
use kumo_abi::rights::Scope;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/v2/proc/{id}/signal", post(signal))
}

#[derive(OpenApi)]
#[openapi(paths(signal))]
pub(super) struct Paths;

/// What is sent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SignalAsked)]
struct Asked {
    /// A name or number.
    signal: String,
    /// Whether process 1 may be hit.
    #[serde(default)]
    force: bool,
}

/// A signal that was sent.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct SignalSent {
    id: String,
    signal: String,
    sent: bool,
}

/// Sends a signal to a process, and to nobody else; it takes the right `signal`
#[utoipa::path(
    post, path = "/v2/proc/{id}/signal",
    params(("id" = String, Path, description = "PID or PID@START, as column `id` shows it")),
    request_body = Asked,
    responses(
        (status = 200, body = SignalSent),
        (status = 409, description = "The number belongs to another process"),
        (status = 501, description = "The kernel is too old for it"),
    ),
)]
async fn signal(
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Refused> {
    allow(request.extensions(), Scope::Signal)?;
    let Path(id) = id.map_err(|error| Refused::bad_request(error.body_text()))?;
    let asked: Asked = json_of(request, "{\"signal\":\"TERM\"}").await?;
    let signal: Signal =
        asked.signal.parse().map_err(|error| Refused::bad_request(chain(&error)))?;
    let wanted = Wanted::parse(&id)?;
    let sent = spawn_blocking(move || wanted.send(signal, asked.force)).await;
    let id = sent.map_err(|error| {
        tracing::error!("a signal failed: {error}");
        Refused::bug()
    })??;
    let sent = json!({ "id": id.to_string(), "signal": signal.to_string(), "sent": true });
    let did = Extension(Did(format!("sent {signal} to process {id}")));
    Ok((did, [(header::CONTENT_TYPE, "application/json")], document(&sent)).into_response())
}

/// Who is meant.
enum Wanted {
    Number(i32),
    Id(ProcessId),
}

impl Wanted {
    fn parse(text: &str) -> Result<Wanted, Refused> {
        if text.contains('@') {
            let id = text.parse().map(Wanted::Id);
            return id.map_err(|error| Refused::bad_request(chain(&error)));
        }
        let pid = text.parse::<i32>().ok().filter(|pid| *pid > 0).map(Wanted::Number);
        pid.ok_or_else(|| {
            let text = text.escape_debug();
            Refused::bad_request(format!("`{text}` is neither PID nor PID@START"))
        })
    }

    fn send(self, signal: Signal, force: bool) -> Result<ProcessId, Refused> {
        let (Wanted::Number(pid) | Wanted::Id(ProcessId { pid, .. })) = self;
        if pid == 1 && !force {
            let detail = "process 1 is the system (or the container): all ends with it; say \
                `\"force\":true`";
            let title = "The process is protected";
            return Err(Refused::new(StatusCode::FORBIDDEN, "protected", title, detail));
        }
        let target = match self {
            Wanted::Number(pid) => Target::find(pid)?,
            Wanted::Id(id) => Target::open(id)?,
        };
        target.send(signal)?;
        Ok(target.id())
    }
}

impl From<SignalError> for Refused {
    fn from(error: SignalError) -> Refused {
        let (status, name, title) = match error {
            SignalError::Gone(_) => {
                (StatusCode::NOT_FOUND, "no-such-process", "There is no such process")
            }
            SignalError::Thread(_) => {
                (StatusCode::BAD_REQUEST, "thread", "A thread gets no signals from here")
            }
            SignalError::Other { .. } => {
                (StatusCode::CONFLICT, "other-process", "The number belongs to another process")
            }
            SignalError::Denied(_) => {
                (StatusCode::FORBIDDEN, "not-permitted", "The kernel does not permit it")
            }
            SignalError::NoPidFd => {
                (StatusCode::NOT_IMPLEMENTED, "old-kernel", "The kernel is too old for it")
            }
            SignalError::Kernel { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "signal-failed", "The signal could not be sent")
            }
        };
        Refused::new(status, name, title, chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http_body_util::BodyExt;
    use kumo_abi::rights::{Asker, Rights, Who};
    use kumo_sys::Ended;
    use kumo_testbed::Zoo;
    use serde_json::Value;
    use tower::ServiceExt;

    use crate::http::{Via, router};
    use crate::{CollectorChoice, CollectorKind, Engine, EngineConfig};

    fn app() -> Router {
        let config = EngineConfig {
            collector: CollectorChoice::Only(CollectorKind::Proc),
            dc: "tokyo".to_owned(),
            host: "a".to_owned(),
        };
        router(Api::new(Arc::new(Engine::open(config).expect("/proc is there"))))
    }

    async fn ask(via: Via, id: &str, body: impl Into<Body>) -> (u16, Value) {
        ask_as(via, None, id, body).await
    }

    async fn ask_as(
        via: Via,
        rights: Option<Rights>,
        id: &str,
        body: impl Into<Body>,
    ) -> (u16, Value) {
        let request = Request::post(format!("/v2/proc/{id}/signal")).header("host", "localhost");
        let mut request = request.body(body.into()).expect("a request");
        request.extensions_mut().insert(via);
        if let Some(rights) = rights {
            let who = Who::User(1000);
            request.extensions_mut().insert(Asker { who, rights, ..Asker::default() });
        }
        let answer = app().oneshot(request).await.expect("it always answers");
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.expect("the body").to_bytes();
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    #[tokio::test]
    async fn who_is_meant_is_hit_and_nobody_else() {
        let sleeper = Zoo::sleeper(&[b"sleeper"]);
        let target = Target::find(sleeper.pid()).expect("it lives");
        let id = target.id();
        let tcp = Via::Tcp { local: ([127, 0, 0, 1], 80).into(), tls: true };
        let wrong = ProcessId { start_ns: id.start_ns + 50_000_000, ..id };
        let term = r#"{"signal":"TERM"}"#;
        let cases = [
            (tcp, id.to_string(), term, 401, "unauthorized"),
            (Via::Unix, wrong.to_string(), term, 409, "other-process"),
            (Via::Unix, "1".to_owned(), term, 403, "protected"),
            (Via::Unix, "1@5".to_owned(), term, 403, "protected"),
            (Via::Unix, "2147483647".to_owned(), term, 404, "no-such-process"),
            (Via::Unix, "0".to_owned(), term, 400, "bad-request"),
            (Via::Unix, "-1".to_owned(), term, 400, "bad-request"),
            (Via::Unix, "x@y".to_owned(), term, 400, "bad-request"),
            (Via::Unix, id.to_string(), r#"{"signal":"NONE"}"#, 400, "bad-request"),
            (Via::Unix, id.to_string(), r#"{"signal":"TERM","x":1}"#, 400, "bad-request"),
            (Via::Unix, id.to_string(), "", 400, "bad-request"),
        ];
        for (via, id, body, want, kind) in cases {
            let (status, problem) = ask(via, &id, body).await;
            assert_eq!(status, want, "for {id} with {body}: {problem}");
            assert_eq!(problem["type"], format!("urn:kumo:problem:{kind}"), "for {id}");
        }
        let long = " ".repeat(crate::http::REQUEST_BODY_BYTES_MAX + 1);
        assert_eq!(ask(Via::Unix, &id.to_string(), long).await.0, 413);
        assert_eq!(target.wait(Some(std::time::Duration::ZERO)).expect("poll"), Ended::NotYet);

        // Another node says for whom it asks, and that counts.
        let kill = r#"{"signal":"9"}"#;
        for (rights, want) in [(None, 401), (Some(Rights::VIEW), 403)] {
            let (status, _) = ask_as(Via::Fabric, rights, &id.to_string(), kill).await;
            assert_eq!(status, want, "for {rights:?}");
        }
        assert_eq!(target.wait(Some(std::time::Duration::ZERO)).expect("poll"), Ended::NotYet);
        let may = Some(Rights::VIEW.with(Scope::Signal));
        let (status, sent) = ask_as(Via::Fabric, may, &id.to_string(), kill).await;
        assert_eq!(status, 200, "{sent}");
        assert_eq!(sent, json!({ "id": id.to_string(), "signal": "KILL", "sent": true }));
        assert_eq!(target.wait(None).expect("poll"), Ended::Yes);
    }
}
