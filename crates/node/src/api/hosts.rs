//! `/v2/hosts`, `/v2/hosts/events`, `/v2/links`: who is there.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use serde_json::json;
use tokio::sync::{broadcast, mpsc};

use super::{NDJSON, Reply, Shared, body, json as document};

/// Events that wait for their client. One that is further behind loses the stream and asks anew.
const EVENTS_AHEAD: usize = 256;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v2/hosts", get(hosts)).route("/v2/links", get(links))
}

pub(super) fn stream() -> Router<Shared> {
    Router::new().route("/v2/hosts/events", get(events))
}

async fn hosts(State(Shared { web, .. }): State<Shared>) -> Reply {
    let me = web.me();
    let hosts = json!({
        "cluster": web.cluster(), "dc": me.dc, "host": me.host, "hosts": web.hosts(),
        "unreached": web.unreached(),
    });
    Ok(document(StatusCode::OK, &hosts))
}

async fn links(State(Shared { web, .. }): State<Shared>) -> Reply {
    Ok(document(StatusCode::OK, &json!({ "links": web.links() })))
}

/// Changes as they happen, one a line, until the client goes, the node stops, or the client is too
/// slow to hear all.
async fn events(State(shared): State<Shared>) -> Reply {
    let mut events = shared.web.events();
    let mut stopping = shared.stopping.clone();
    let (tell, pieces) = mpsc::channel(EVENTS_AHEAD);
    // An empty line at once: the client knows that it misses nothing from now on.
    let _ = tell.try_send(Bytes::from_static(b"\n"));
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = tell.closed() => return,
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
