//! `/metrics`: what a Prometheus scrapes. [`crate::metrics`] says what that is.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use axum::routing::get;
use utoipa::OpenApi;

use super::body::{Whole, begin};
use super::v2::respond;
use super::{Api, Asked, Refused, accept};
use crate::metrics::Form;

/// The older form stands first: who does not care reads it as plain text.
const FORMS: [Form; 2] = [Form::Classic, Form::OpenMetrics];
const MEDIA_TYPES: &[&str] = &[FORMS[0].media_type(), FORMS[1].media_type()];

pub(super) fn routes() -> Router<Arc<Api>> {
    // The second is for who asks through another node, where all addresses begin with `/v2`.
    Router::new().route("/metrics", get(metrics)).route("/v2/metrics", get(metrics))
}

#[derive(OpenApi)]
#[openapi(paths(metrics))]
pub(super) struct Paths;

/// The host, groups of its processes and this server for a Prometheus
///
/// In `OpenMetrics` where the client says that it reads it, as Prometheus does.
#[utoipa::path(get, path = "/metrics", responses((status = 200, content(
    (String = "text/plain"),
    (String = "application/openmetrics-text"),
))))]
async fn metrics(
    State(api): State<Arc<Api>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response<Body>, Refused> {
    let media_type = accept::choose(&headers, MEDIA_TYPES)?;
    let form = FORMS.into_iter().find(|form| form.media_type() == media_type);
    let form = form.unwrap_or(Form::Classic);
    Asked::parse(&uri, &[])?;
    api.answer(move |engine, turn| {
        let text = engine.scrape(form)?.into_bytes();
        Ok(respond(form.content_type(), HeaderMap::new(), begin(Whole(text), turn.place)))
    })
    .await
}
