//! `/v2/cluster/…`: what changes who belongs to the cluster. For who manages the cluster.

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::post;
use k2i::http::{Refused, chain, json_of};
use kumo_abi::cluster::Role;
use kumo_abi::{DcName, HostId, HostName};
use kumo_fabric::token::{TokenAsk, TokenError};
use kumo_fabric::{EvictError, Fabric};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use utoipa::{OpenApi, ToSchema};

use super::openapi::HostNamed;
use super::{Reply, Shared, did, json as document, manages};
use crate::web::Web;

/// Told when the node shall start anew in place, with what its files say then.
pub(crate) type Reopen = watch::Sender<bool>;

#[derive(OpenApi)]
#[openapi(paths(token, evict, reopen))]
pub(super) struct Paths;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v2/cluster/tokens", post(token))
        .route("/v2/cluster/evictions", post(evict))
        .route("/v2/cluster/reopen", post(reopen))
}

/// A token, and until when it is good.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
struct TokenMade {
    token: String,
    /// RFC 3339, UTC
    expires: String,
}

/// How many certificates were taken back.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
struct Evicted {
    keys: u64,
}

/// That the node starts anew.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
struct Reopens {
    reopens: bool,
}

/// What a token is to be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// The only data centre that it lets into.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    dc: Option<DcName>,
    ttl_s: u64,
    uses: u32,
    /// Whether hosts may become gateways.
    #[serde(default)]
    gateway: bool,
}

/// Makes a token that lets hosts into the cluster; it takes the right `manage`
#[utoipa::path(
    post, path = "/v2/cluster/tokens", request_body = NewToken,
    responses(
        (status = 200, body = TokenMade),
        (status = 409, description = "There is no cluster, or nobody could use the token"),
    ),
)]
async fn token(State(shared): State<Shared>, request: Request) -> Reply {
    let asked: NewToken = read(request, "{\"ttl_s\":3600,\"uses\":1}").await?;
    let NewToken { dc, ttl_s, uses, gateway } = asked;
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
    let answer = json!({ "token": token.to_string(), "expires": expires });
    let did_what = format!("made a token that lets hosts join until {expires}");
    Ok(did(document(StatusCode::OK, &answer), did_what))
}

/// Takes back the certificates of a host; it takes the right `manage`
#[utoipa::path(
    post, path = "/v2/cluster/evictions", request_body = HostNamed,
    responses(
        (status = 200, body = Evicted),
        (status = 409, description = "There is no cluster, or it is this host"),
    ),
)]
async fn evict(State(shared): State<Shared>, request: Request) -> Reply {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Who {
        dc: DcName,
        host: HostName,
    }
    let Who { dc, host } = read(request, "{\"dc\":\"tokyo\",\"host\":\"web-1\"}").await?;
    let host = HostId { dc, host };
    let keys = fabric(&shared)?.evict(&host).await.map_err(|error| {
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
    Ok(did(document(StatusCode::OK, &json!({ "keys": keys })), format!("evicted {host}")))
}

/// The body of a request that only those may make who manage the cluster; it is like `form`.
async fn read<T: DeserializeOwned>(request: Request, form: &str) -> Result<T, Refused> {
    manages(&request)?;
    json_of(request, form).await
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

/// Starts the node anew once this is answered; it takes the right `manage`
///
/// Who asked finds it again on its socket.
#[utoipa::path(post, path = "/v2/cluster/reopen", responses((status = 202, body = Reopens)))]
async fn reopen(State(shared): State<Shared>, request: Request) -> Reply {
    manages(&request)?;
    shared.reopen.send_replace(true);
    Ok(document(StatusCode::ACCEPTED, &json!({ "reopens": true })))
}
