//! `GET /v2/sysctl`: kernel parameters, as the kernel shows them. Changes are the node's business.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use kumo_abi::rights::Scope;
use kumo_abi::sysctl::{Parameter, ParameterName, ParameterNameError, Pattern};
use serde_json::json;
use utoipa::OpenApi;

use super::guard::asker;
use super::v2::{JSON, parameters};
use super::{Api, Refused, accept, chain};
use crate::encode::document;
use crate::host::now;
use crate::sysctl::{self, SysctlError};

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/v2/sysctl", get(list)).route("/v2/sysctl/{*name}", get(one))
}

#[derive(OpenApi)]
#[openapi(paths(list, one))]
pub(super) struct Paths;

/// Kernel parameters with their values
#[utoipa::path(
    get, path = "/v2/sysctl",
    params((
        "pattern" = Option<String>, Query,
        description = "A name, the beginning of one up to a dot, or with `*` for any text",
    )),
    responses((status = 200, body = Object)),
)]
async fn list(
    State(api): State<Arc<Api>>,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Refused> {
    accept::choose(&headers, &[JSON])?;
    let pattern = parameters(&uri, &["pattern"])?.pop().map(|(_, text)| text.parse::<Pattern>());
    let pattern =
        pattern.transpose().map_err(|error| Refused::bad_request(format!("pattern: {error}")))?;
    let with_private = may_see_private(&request);
    let body = api
        .answer(move |engine, _turn| {
            let parameters = sysctl::list(pattern.as_ref(), with_private)?;
            let config = engine.config();
            Ok(document(&json!({
                "dc": config.dc, "host": config.host, "as_of": now(),
                "network_namespace": sysctl::network_namespace(), "parameters": parameters,
            })))
        })
        .await?;
    Ok(([(header::CONTENT_TYPE, JSON)], body).into_response())
}

/// One kernel parameter, its value also as an entity tag
///
/// Who changes it says by `If-Match` what he has seen.
#[utoipa::path(
    get, path = "/v2/sysctl/{name}",
    params(("name" = String, Path, description = "As sysctl(8) writes it: vm.swappiness or vm/swappiness")),
    responses((status = 200, body = Object)),
)]
async fn one(
    State(api): State<Arc<Api>>,
    name: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Refused> {
    accept::choose(&headers, &[JSON])?;
    parameters(&uri, &[])?;
    let name = parse_name(name)?;
    let with_private = may_see_private(&request);
    let (body, tag) = api
        .answer(move |engine, _turn| {
            let value = sysctl::read(&name)?;
            let config = engine.config();
            let is_shown = with_private || !value.private;
            let unread = "it is shown only to who may write kernel parameters";
            let parameter = Parameter {
                name: name.to_string(),
                value: is_shown.then(|| value.text.clone()),
                writable: value.writable,
                unread: (!is_shown).then(|| unread.to_owned()),
            };
            let mut answer = json!({
                "dc": config.dc, "host": config.host, "as_of": now(),
                "network_namespace": sysctl::network_namespace(),
            });
            if let (Some(answer), Ok(serde_json::Value::Object(parameter))) =
                (answer.as_object_mut(), serde_json::to_value(&parameter))
            {
                answer.extend(parameter);
            }
            Ok((document(&answer), parameter.value.and_then(|value| tag(&value))))
        })
        .await?;
    let mut response = ([(header::CONTENT_TYPE, JSON)], body).into_response();
    if let Some(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

/// A name from a piece of a path, in either form.
///
/// # Errors
/// 400, with what is wrong.
pub fn parse_name(piece: Result<Path<String>, PathRejection>) -> Result<ParameterName, Refused> {
    let Path(text) = piece.map_err(|error| Refused::bad_request(error.body_text()))?;
    text.parse().map_err(|error: ParameterNameError| Refused::bad_request(error.to_string()))
}

/// Values that the kernel shows to their owner alone are for who may change them.
fn may_see_private(request: &Request) -> bool {
    asker(request.extensions()).rights.holds(Scope::SysctlWrite)
}

/// A value between quotes, where a header can hold it.
fn tag(value: &str) -> Option<HeaderValue> {
    let is_plain = value.bytes().all(|byte| matches!(byte, b'\t' | b' ' | b'!' | b'#'..=b'~'));
    HeaderValue::from_str(&format!("\"{value}\"")).ok().filter(|_| is_plain)
}

impl From<SysctlError> for Refused {
    fn from(error: SysctlError) -> Refused {
        let (status, name, title) = match error {
            SysctlError::NoSuch(_) => {
                (StatusCode::NOT_FOUND, "no-such-parameter", "There is no such kernel parameter")
            }
            SysctlError::Group(_) | SysctlError::Mounted(_) => {
                (StatusCode::BAD_REQUEST, "no-parameter", "That is no kernel parameter")
            }
            SysctlError::WriteOnly(_) | SysctlError::Strange { .. } => {
                (StatusCode::CONFLICT, "no-value", "The kernel parameter has no value to show")
            }
            SysctlError::Denied { .. } | SysctlError::ReadOnly => {
                (StatusCode::FORBIDDEN, "not-permitted", "The kernel does not permit it")
            }
            SysctlError::Invalid { .. } => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid-value",
                "The kernel does not take this value",
            ),
            SysctlError::TooMany => {
                (StatusCode::BAD_REQUEST, "too-many", "There are too many kernel parameters")
            }
            SysctlError::Cut { .. } | SysctlError::Kernel { .. } | SysctlError::Tree(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "sysctl-failed",
                "The kernel parameter could not be read or written",
            ),
        };
        Refused::new(status, name, title, chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http_body_util::BodyExt as _;
    use serde_json::Value;
    use tower::ServiceExt as _;

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

    async fn ask(via: Via, target: &str) -> (u16, Option<String>, Value) {
        let mut request = Request::get(target).header("host", "localhost");
        request = request.header("accept", "application/json");
        let mut request = request.body(Body::empty()).expect("a request");
        request.extensions_mut().insert(via);
        let answer = app().oneshot(request).await.expect("it always answers");
        let status = answer.status().as_u16();
        let tag = answer.headers().get("etag").map(|tag| tag.to_str().expect("text").to_owned());
        let body = answer.into_body().collect().await.expect("the body").to_bytes();
        (status, tag, serde_json::from_slice(&body).expect("JSON"))
    }

    #[tokio::test]
    async fn one_parameter_and_its_tag() {
        let names = ["net.ipv4.tcp_rmem", "net/ipv4/tcp_rmem", "net%2Fipv4%2Ftcp_rmem"];
        for name in names {
            let (status, tag, body) = ask(Via::Unix, &format!("/v2/sysctl/{name}")).await;
            let value = sysctl::read(&"net.ipv4.tcp_rmem".parse().expect("a name")).expect("there");
            assert_eq!((status, &body["value"]), (200, &value.text.as_str().into()), "for {name}");
            assert_eq!((&body["name"], &body["host"]), (&"net.ipv4.tcp_rmem".into(), &"a".into()));
            assert_eq!(tag, Some(format!("\"{}\"", value.text)), "for {name}");
            assert_eq!(body["network_namespace"], sysctl::network_namespace());
        }
        let cases = [
            ("/v2/sysctl/vm.nonsense", 404, "no-such-parameter"),
            ("/v2/sysctl/net.ipv4", 400, "no-parameter"),
            ("/v2/sysctl/vm..x", 400, "bad-request"),
            ("/v2/sysctl/..%2F..%2Fetc%2Fpasswd", 400, "bad-request"),
            ("/v2/sysctl/vm.swappiness?x=1", 400, "bad-request"),
            ("/v2/sysctl?pattern=", 400, "bad-request"),
        ];
        for (target, want, kind) in cases {
            let (status, _, body) = ask(Via::Unix, target).await;
            assert_eq!(status, want, "for {target}: {body}");
            assert_eq!(body["type"], format!("urn:kumo:problem:{kind}"), "for {target}");
        }
    }

    #[tokio::test]
    async fn private_values_are_for_who_may_change_them() {
        let private = sysctl::list(None, true).expect("the tree").into_iter().find(|one| {
            one.value.is_some()
                && sysctl::read(&one.name.parse().expect("a name")).is_ok_and(|it| it.private)
        });
        let Some(private) = private else {
            eprintln!("not tested: no value here is shown to its owner alone");
            return;
        };
        let tcp = Via::Tcp { local: ([127, 0, 0, 1], 80).into(), tls: false };
        for (via, is_shown) in [(Via::Unix, true), (tcp, false)] {
            let (status, tag, body) = ask(via, &format!("/v2/sysctl/{}", private.name)).await;
            assert_eq!((status, body["value"].is_string()), (200, is_shown), "{body}");
            assert_eq!(tag.is_some(), is_shown);
            let target = format!("/v2/sysctl?pattern={}", private.name);
            let (_, _, listed) = ask(via, &target).await;
            let row = &listed["parameters"][0];
            assert_eq!((row["value"].is_string(), row["unread"].is_null()), (is_shown, is_shown));
        }
    }
}
