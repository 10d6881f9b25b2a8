//! `/v2/cluster/…`: what changes who belongs to the cluster. For the commands of this host alone.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::json;
use tokio::sync::watch;

use super::{Reply, Shared, check_local, json as document};

/// Told when the node shall start anew in place, with what its files say then.
pub(crate) type Reopen = watch::Sender<bool>;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v2/cluster/reopen", post(reopen))
}

/// Starts the node anew once this is answered. Who asked finds it again on its socket.
async fn reopen(State(shared): State<Shared>, request: Request) -> Reply {
    check_local(&request)?;
    shared.reopen.send_replace(true);
    Ok(document(StatusCode::ACCEPTED, &json!({ "reopens": true })))
}
