//! `/v2/cluster/…`: what changes who belongs to the cluster. For the commands of this host alone.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{RequestExt as _, Router};
use k2i::http::{Refused, chain};
use kumo_abi::cluster::Role;
use kumo_abi::{DcName, HostId, HostName};
use kumo_fabric::token::{TokenAsk, TokenError};
use kumo_fabric::{EvictError, Fabric};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;

use super::{Reply, Shared, check_local, json as document};
use crate::web::Web;

/// Told when the node shall start anew in place, with what its files say then.
pub(crate) type Reopen = watch::Sender<bool>;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v2/cluster/tokens", post(token))
        .route("/v2/cluster/evictions", post(evict))
        .route("/v2/cluster/reopen", post(reopen))
}

/// What a token is to be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// The only data centre that it lets into.
    #[serde(default)]
    dc: Option<DcName>,
    ttl_s: u64,
    uses: u32,
    /// Whether hosts may become gateways.
    #[serde(default)]
    gateway: bool,
}

/// A token that lets hosts into the cluster.
async fn token(State(shared): State<Shared>, request: Request) -> Reply {
    let NewToken { dc, ttl_s, uses, gateway } = read(request).await?;
    let role = if gateway { Role::Gateway } else { Role::Member };
    let ask = TokenAsk { dc, ttl: Duration::from_secs(ttl_s), uses, role };
    let fabric = fabric(&shared)?;
    if gateway && fabric.identity().role == Role::Member {
        // Who makes it vouches for it: with a gateway's token comes the key of the authority.
        let detail = "tokens for gateways are made on a gateway; this host is a member";
        let title = "A member makes no tokens for gateways";
        return Err(Refused::new(StatusCode::FORBIDDEN, "not-a-gateway", title, detail));
    }
    let token = fabric.token(ask).await.map_err(|error| {
        let (status, name, title) = match error {
            TokenError::NoAddress => {
                (StatusCode::CONFLICT, "no-address", "Nobody could use the token")
            }
            TokenError::Random | TokenError::Store(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "token-failed", "The token could not be made")
            }
            _ => (StatusCode::BAD_REQUEST, "bad-request", "The request makes no sense"),
        };
        Refused::new(status, name, title, chain(&error))
    })?;
    let expires = k2i::rfc3339(i128::from(token.expires_ms) * 1_000_000);
    Ok(document(StatusCode::OK, &json!({ "token": token.to_string(), "expires": expires })))
}

/// Takes back the certificates of a host.
async fn evict(State(shared): State<Shared>, request: Request) -> Reply {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Who {
        dc: DcName,
        host: HostName,
    }
    let Who { dc, host } = read(request).await?;
    let keys = fabric(&shared)?.evict(&HostId { dc, host }).await.map_err(|error| {
        let (status, name, title) = match error {
            EvictError::Myself => (StatusCode::CONFLICT, "myself", "A host does not evict itself"),
            EvictError::Unknown(_) => {
                (StatusCode::NOT_FOUND, "no-such-host", "There is no such host")
            }
            EvictError::Store(_) | EvictError::Ended(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "eviction-failed",
                "The eviction could not be written",
            ),
        };
        Refused::new(status, name, title, chain(&error))
    })?;
    Ok(document(StatusCode::OK, &json!({ "keys": keys })))
}

/// The body of a request that only commands of this host may make.
async fn read<T: DeserializeOwned>(request: Request) -> Result<T, Refused> {
    check_local(&request)?;
    let body: Result<Bytes, BytesRejection> = request.extract().await;
    let body = body.map_err(|error| Refused::bad_request(error.body_text()))?;
    serde_json::from_slice(&body)
        .map_err(|error| Refused::bad_request(format!("the body makes no sense: {error}")))
}

/// The fabric, where there is one.
pub(super) fn fabric(shared: &Shared) -> Result<&Fabric, Refused> {
    match &shared.web {
        Web::Many(fabric) => Ok(fabric),
        Web::Lone(_) => {
            let detail = "this node has no cluster; `kumo init` makes one, `kumo join` joins one";
            let title = "There is no cluster";
            Err(Refused::new(StatusCode::CONFLICT, "no-cluster", title, detail))
        }
    }
}

/// Starts the node anew once this is answered. Who asked finds it again on its socket.
async fn reopen(State(shared): State<Shared>, request: Request) -> Reply {
    check_local(&request)?;
    shared.reopen.send_replace(true);
    Ok(document(StatusCode::ACCEPTED, &json!({ "reopens": true })))
}
