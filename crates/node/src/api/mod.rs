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
mod openapi;
mod prometheus;
mod react;
mod rights;
mod rollout;
mod scope;
mod sql;
mod sysctl;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use k2i::http::{Did, Refused, Via, allow, asker};
use kumo_abi::rights::{Scope as Right, Who};
use tokio::sync::{Semaphore, watch};

use crate::calls::Shared as Calls;
use crate::react::Shared as React;
use crate::sysctl::Shared as Sysctl;
use crate::tokens::NodeTokens;
use crate::web::Web;

pub(crate) use admin::Reopen;
pub use gather::GATHER_BYTES_MAX;
pub(crate) use openapi::{HostNamed, document};

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
    sysctl: Arc<Sysctl>,
    tokens: Arc<NodeTokens>,
    gateway: gateway::Gateway,
    run_dir: Arc<Path>,
    places: Arc<Semaphore>,
    queries: k2i::http::sql::Places,
    /// Says when the node stops: streams end then.
    stopping: watch::Receiver<bool>,
    reopen: Reopen,
}

impl Shared {
    /// One for each listener: clients of one cannot fill the places of another.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the node, once")]
    pub(crate) fn new(
        web: Web,
        calls: Arc<Calls>,
        react: Arc<React>,
        sysctl: Arc<Sysctl>,
        tokens: Arc<NodeTokens>,
        run_dir: Arc<Path>,
        stopping: watch::Receiver<bool>,
        reopen: Reopen,
    ) -> Shared {
        let places = Arc::new(Semaphore::new(GATHERS_MAX));
        let queries = k2i::http::sql::Places::new();
        let gateway = gateway::Gateway::new();
        Shared {
            web,
            calls,
            react,
            sysctl,
            tokens,
            gateway,
            run_dir,
            places,
            queries,
            stopping,
            reopen,
        }
    }
}

/// Routes about this node.
pub(crate) fn own_routes(shared: Shared) -> Router {
    let routes = hosts::routes().merge(calls::own_routes()).merge(react::own_routes());
    routes.merge(sysctl::own_routes()).with_state(shared)
}

/// Routes that ask others, or change what the node is.
pub(crate) fn wide_routes(shared: Shared) -> Router {
    let asking = all::routes()
        .merge(one::routes())
        .merge(sysctl::asking_routes())
        .merge(prometheus::routes())
        .merge(sql::routes());
    let asking = asking.route_layer(from_fn(near));
    let local = admin::routes()
        .merge(calls::local_routes())
        .merge(gateway::routes())
        .merge(rights::routes());
    let local = local.merge(react::local_routes());
    asking.merge(hosts::stream()).merge(local).with_state(shared)
}

/// Lets through who is on this host, and who has said who he is: through one node he reads all of them.
async fn near(request: Request, next: Next) -> Response {
    let is_near = match request.extensions().get::<Via>() {
        Some(Via::Unix) => true,
        Some(Via::Tcp { local, .. }) => {
            local.ip().to_canonical().is_loopback()
                || asker(request.extensions()).who != Who::Nobody
        }
        Some(Via::Fabric) | None => false,
    };
    if is_near {
        return next.run(request).await;
    }
    let detail = "other hosts are asked on this address by those who say who they are: send `Authorization: \
        Bearer TOKEN` with a token that `kumo rights token add NAME` makes; or run `kumo` on the node's \
        host, or from elsewhere `ssh -L 7080:/run/kumo/api.sock HOST` and ask http://127.0.0.1:7080";
    let title = "Other hosts are not asked on this address by everybody";
    Refused::new(StatusCode::FORBIDDEN, "not-for-others", title, detail).into_response()
}

/// A JSON document, made safe for terminals.
fn json(status: StatusCode, document: &impl serde::Serialize) -> Response {
    let text = serde_json::to_string(document).unwrap_or_default();
    let body = k2i::escaped_json(&text);
    (status, [(header::CONTENT_TYPE, JSON)], body).into_response()
}

/// The answer with what was done, for the audit log.
fn did(mut answer: Response, what: String) -> Response {
    answer.extensions_mut().insert(Did(what));
    answer
}

/// Refuses who may not change what the cluster is.
fn manages(request: &Request) -> Result<(), Refused> {
    allow(request.extensions(), Right::Manage)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Instant;

    use axum::body::Body;
    use axum::http::Uri;
    use kumo_abi::HostId;
    use kumo_abi::rights::Asker;
    use kumo_abi::sysctl::AllowList;
    use tower::ServiceExt as _;

    use super::*;
    use crate::answer::HostAnswerer;
    use crate::web::card;

    /// The status of a route for who comes this way.
    async fn status(target: &'static str, via: Option<Via>, who: Who) -> StatusCode {
        let me: HostId = "tokyo/a".parse().expect("a host");
        let answerer = HostAnswerer::new(me.clone());
        let web = Web::lone(me, card(None), Instant::now(), answerer);
        let (_stop, stopping) = watch::channel(false);
        let calls = Calls::idle(web.clone());
        let react = React::idle(web.clone(), Arc::clone(&calls));
        let reopen = watch::Sender::new(false);
        // Nothing is there, and nothing is written.
        let sysctl = Sysctl::open(Path::new("/nonexistent"), "", AllowList::default());
        let tokens = Arc::new(NodeTokens::in_file(Path::new("/nowhere")));
        let run_dir = Path::new("/").into();
        let shared = Shared::new(web, calls, react, sysctl, tokens, run_dir, stopping, reopen);
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = Uri::from_static(target);
        if let Some(via) = via {
            request.extensions_mut().insert(via);
        }
        request.extensions_mut().insert(Asker { who, ..Asker::default() });
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
                let refused = status(target, via, Who::Nobody).await == StatusCode::FORBIDDEN;
                assert_eq!(!refused, is_near, "for {target} by {via:?}");
            }
            let token = Who::Token("ci".to_owned());
            let refused = status("/v2/all/host", via, token).await == StatusCode::FORBIDDEN;
            assert_eq!(refused, !matches!(via, Some(Via::Unix | Via::Tcp { .. })), "by {via:?}");
            assert_eq!(status("/v2/hosts/events", via, Who::Nobody).await, StatusCode::OK);
        }
    }
}
