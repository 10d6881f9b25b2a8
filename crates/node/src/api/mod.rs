//! The routes that a node adds to those of its process table.
//!
//! Some are about this node alone, and others may ask for them over the fabric: [`own_routes`]. Some
//! ask others, and are for people and their commands: [`wide_routes`].

mod admin;
mod all;
mod body;
mod calls;
mod gateway;
mod gather;
mod hosts;
mod one;
mod react;
mod scope;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use k2i::http::{Refused, Via};
use tokio::sync::{Semaphore, watch};

use crate::calls::Shared as Calls;
use crate::react::Shared as React;
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
    calls: Arc<Calls>,
    react: Arc<React>,
    gateway: gateway::Gateway,
    run_dir: Arc<Path>,
    places: Arc<Semaphore>,
    /// Says when the node stops: streams end then.
    stopping: watch::Receiver<bool>,
    reopen: Reopen,
}

impl Shared {
    /// One for each listener: clients of one cannot fill the places of another.
    pub(crate) fn new(
        web: Web,
        calls: Arc<Calls>,
        react: Arc<React>,
        run_dir: Arc<Path>,
        stopping: watch::Receiver<bool>,
        reopen: Reopen,
    ) -> Shared {
        let places = Arc::new(Semaphore::new(GATHERS_MAX));
        let gateway = gateway::Gateway::new();
        Shared { web, calls, react, gateway, run_dir, places, stopping, reopen }
    }
}

/// Routes about this node.
pub(crate) fn own_routes(shared: Shared) -> Router {
    hosts::routes().merge(calls::own_routes()).merge(react::own_routes()).with_state(shared)
}

/// Routes that ask others, or change what the node is.
pub(crate) fn wide_routes(shared: Shared) -> Router {
    let asking = all::routes().merge(one::routes()).route_layer(from_fn(near));
    let local = admin::routes().merge(calls::local_routes()).merge(gateway::routes());
    let local = local.merge(react::local_routes());
    asking.merge(hosts::stream()).merge(local).with_state(shared)
}

/// Lets through who is on this host. On an address that other machines reach nobody says who he is,
/// and through one node he would read all of them.
async fn near(request: Request, next: Next) -> Response {
    let is_near = match request.extensions().get::<Via>() {
        Some(Via::Unix) => true,
        Some(Via::Tcp { local, .. }) => local.ip().to_canonical().is_loopback(),
        Some(Via::Fabric) | None => false,
    };
    if is_near {
        return next.run(request).await;
    }
    let detail = "other hosts are asked through the node's Unix socket and its loopback address only, as \
        here nobody says who he is; run `kumo` on the node's host, or from elsewhere \
        `ssh -L 7080:/run/kumo/api.sock HOST` and ask http://127.0.0.1:7080";
    let title = "Other hosts are not asked on this address";
    Refused::new(StatusCode::FORBIDDEN, "not-for-others", title, detail).into_response()
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Instant;

    use axum::body::Body;
    use axum::http::Uri;
    use kumo_abi::HostId;
    use tower::ServiceExt as _;

    use super::*;
    use crate::answer::HostAnswerer;
    use crate::web::card;

    /// The status of a route for who comes this way.
    async fn status(target: &'static str, via: Option<Via>) -> StatusCode {
        let me: HostId = "tokyo/a".parse().expect("a host");
        let answerer = HostAnswerer::new(me.clone());
        let web = Web::lone(me, card(None), Instant::now(), answerer);
        let (_stop, stopping) = watch::channel(false);
        let calls = Calls::idle(web.clone());
        let react = React::idle(web.clone(), Arc::clone(&calls));
        let reopen = watch::Sender::new(false);
        let shared = Shared::new(web, calls, react, Path::new("/").into(), stopping, reopen);
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = Uri::from_static(target);
        if let Some(via) = via {
            request.extensions_mut().insert(via);
        }
        let Ok(response) = wide_routes(shared).oneshot(request).await;
        response.status()
    }

    #[tokio::test]
    async fn others_are_asked_from_this_host_only() {
        let tcp = |ip: &str, tls| {
            let ip: IpAddr = ip.parse().expect("an IP");
            Some(Via::Tcp { local: (ip, 7443).into(), tls })
        };
        let cases = [
            (Some(Via::Unix), true),
            (tcp("127.0.0.1", false), true),
            (tcp("::1", true), true),
            (tcp("::ffff:127.0.0.1", false), true),
            (tcp("192.0.2.7", true), false),
            (tcp("192.0.2.7", false), false),
            (tcp("2001:db8::7", true), false),
            (Some(Via::Fabric), false),
            (None, false),
        ];
        for (via, is_near) in cases {
            for target in ["/v2/all/proc", "/v2/all/host", "/v2/hosts/tokyo/a/host"] {
                let refused = status(target, via).await == StatusCode::FORBIDDEN;
                assert_eq!(!refused, is_near, "for {target} by {via:?}");
            }
            assert_eq!(status("/v2/hosts/events", via).await, StatusCode::OK);
        }
    }
}
