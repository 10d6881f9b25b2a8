//! `/v2/hosts`, `/v2/hosts/events`, `/v2/links`: who is there.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use k2i::http::Listener;
use serde_json::json;
use tokio::sync::{broadcast, mpsc};
use utoipa::OpenApi;

use super::openapi::{HostsShown, LinksShown};
use super::{NDJSON, Reply, Shared, body, json as document};

/// Events that wait for their client. One that is further behind loses the stream and asks anew.
const EVENTS_AHEAD: usize = 256;

#[derive(OpenApi)]
#[openapi(paths(hosts, links))]
pub(super) struct Paths;

#[derive(OpenApi)]
#[openapi(paths(events))]
pub(super) struct StreamPaths;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v2/hosts", get(hosts)).route("/v2/links", get(links))
}

pub(super) fn stream() -> Router<Shared> {
    Router::new().route("/v2/hosts/events", get(events))
}

/// The hosts of the cluster, as this node sees them; itself alone without one
#[utoipa::path(get, path = "/v2/hosts", responses((status = 200, body = HostsShown)))]
async fn hosts(State(Shared { web, .. }): State<Shared>) -> Reply {
    let me = web.me();
    let hosts = json!({
        "cluster": web.cluster(), "dc": me.dc, "host": me.host, "hosts": web.hosts(),
        "unreached": web.unreached(),
    });
    Ok(document(StatusCode::OK, &hosts))
}

/// The links of this node to others
#[utoipa::path(get, path = "/v2/links", responses((status = 200, body = LinksShown)))]
async fn links(State(Shared { web, .. }): State<Shared>) -> Reply {
    Ok(document(StatusCode::OK, &json!({ "links": web.links() })))
}

/// Changes of hosts as they happen, one a line
///
/// A stream that ends when the client goes or may listen no more, the node stops, or the client is too slow to
/// hear all.
#[utoipa::path(
    get, path = "/v2/hosts/events",
    responses((status = 200, body = String, content_type = "application/x-ndjson")),
)]
async fn events(State(shared): State<Shared>, request: Request) -> Reply {
    // Whoever brought the request in past the guard vouches for him.
    let listener = request.extensions().get::<Listener>().cloned();
    let mut events = shared.web.events();
    let mut stopping = shared.stopping.clone();
    let (tell, pieces) = mpsc::channel(EVENTS_AHEAD);
    // An empty line at once: the client knows that it misses nothing from now on.
    let _ = tell.try_send(Bytes::from_static(b"\n"));
    tokio::spawn(async move {
        let dismissed = async {
            match &listener {
                Some(listener) => listener.dismissed().await,
                None => std::future::pending().await,
            }
        };
        let mut dismissed = std::pin::pin!(dismissed);
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = tell.closed() => return,
                () = &mut dismissed => return,
                _ = stopping.wait_for(|stop| *stop) => return,
            };
            let event = match event {
                Ok(event) => event,
                Err(
                    broadcast::error::RecvError::Closed | broadcast::error::RecvError::Lagged(_),
                ) => {
                    return;
                }
            };
            let line = format!("{}\n", serde_json::to_string(&event).unwrap_or_default());
            if tell.try_send(line.into()).is_err() {
                return;
            }
        }
    });
    let body = body::of_channel(pieces);
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, NDJSON)], body).into_response())
}
