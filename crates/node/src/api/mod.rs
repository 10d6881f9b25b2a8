//! The routes that a node adds to those of its process table.
//!
//! Some are about this node alone, and others may ask for them over the fabric: [`own_routes`]. Some
//! ask others, and are for people and their commands: [`wide_routes`].

mod admin;
mod all;
mod body;
mod gather;
mod hosts;
mod one;
mod scope;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use k2i::http::{Refused, Via};
use tokio::sync::{Semaphore, watch};

use crate::web::Web;

pub(crate) use admin::Reopen;
pub use gather::GATHER_BYTES_MAX;

/// Most gathers of one listener under way at once, until their client has read the answer. Each may
/// hold [`gather::GATHER_BYTES_MAX`].
pub const GATHERS_MAX: usize = 8;

/// Longest wait for one of these places.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(10);

pub(crate) const JSON: &str = "application/json";
pub(crate) const NDJSON: &str = "application/x-ndjson";

type Reply = Result<Response, Refused>;

/// What the routes share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) web: Web,
    places: Arc<Semaphore>,
    /// Says when the node stops: streams end then.
    stopping: watch::Receiver<bool>,
    reopen: Reopen,
}

impl Shared {
    /// One for each listener: clients of one cannot fill the places of another.
    pub(crate) fn new(web: Web, stopping: watch::Receiver<bool>, reopen: Reopen) -> Shared {
        Shared { web, places: Arc::new(Semaphore::new(GATHERS_MAX)), stopping, reopen }
    }
}

/// Routes about this node.
pub(crate) fn own_routes(shared: Shared) -> Router {
    hosts::routes().with_state(shared)
}

/// Routes that ask others, or change what the node is.
pub(crate) fn wide_routes(shared: Shared) -> Router {
    let routes = all::routes().merge(one::routes()).merge(hosts::stream()).merge(admin::routes());
    routes.with_state(shared)
}

/// A JSON document, made safe for terminals.
fn json(status: StatusCode, document: &impl serde::Serialize) -> Response {
    let text = serde_json::to_string(document).unwrap_or_default();
    let body = k2i::escaped_json(&text);
    (status, [(header::CONTENT_TYPE, JSON)], body).into_response()
}

/// Refuses what is for the commands of this host alone.
fn check_local(request: &Request) -> Result<(), Refused> {
    if request.extensions().get::<Via>() == Some(&Via::Unix) {
        return Ok(());
    }
    let detail = "this is taken on the node's Unix socket only, where `kumo` asks";
    let title = "Not on this address";
    Err(Refused::new(StatusCode::FORBIDDEN, "local-only", title, detail))
}
