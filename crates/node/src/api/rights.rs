//! `/v2/rights/tokens…`: tokens are made, listed and taken back. `/v2/rights/certificates`: certificates are
//! taken back. Who one is oneself says `/v2/rights`.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::routing::{delete, get};
use k2i::http::{Refused, asker, chain, json_of, known_by};
use k2i::token::{Kept, KeyHash, Revoked, TTL_DEFAULT, TTL_MAX, Token};
use kumo_abi::TokenName;
use kumo_abi::rights::{Rights, Role, Scope};
use serde::Deserialize;
use serde_json::json;
use tokio::task::spawn_blocking;
use utoipa::OpenApi;

use super::{Reply, Shared, did, json as document, manages};
use crate::tokens::{NodeTokens, TokensError};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v2/rights/tokens", get(list).post(add))
        .route("/v2/rights/tokens/{name}", delete(remove))
        .route("/v2/rights/certificates", get(revoked).post(revoke))
}

/// Runs what reads or writes a disk where blocking is fine.
async fn with_tokens<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce(&NodeTokens) -> Result<T, TokensError> + Send + 'static,
) -> Result<T, Refused> {
    let tokens = Arc::clone(&shared.tokens);
    let done = spawn_blocking(move || work(&tokens)).await.map_err(|error| {
        tracing::error!("an answer failed: {error}");
        Refused::bug()
    })?;
    done.map_err(|error| {
        let title = "The tokens could not be read or written";
        let status = match error {
            TokensError::Full | TokensError::FullOfRevoked => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refused::new(status, "tokens-failed", title, chain(&error))
    })
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    crate::web::millis(since_epoch)
}

fn time(ms: u64) -> String {
    k2i::rfc3339(i128::from(ms) * 1_000_000)
}

#[derive(OpenApi)]
#[openapi(paths(list, add, remove, revoked, revoke))]
pub(super) struct Paths;

/// Tokens, without what proves them
#[utoipa::path(get, path = "/v2/rights/tokens", responses((status = 200, body = Object)))]
async fn list(State(shared): State<Shared>, request: Request) -> Reply {
    manages(&request)?;
    let now_ms = now_ms();
    let all = with_tokens(&shared, NodeTokens::all).await?;
    let shown = |(name, kept): (TokenName, Kept)| {
        json!({
            "name": name,
            "role": kept.rights.role(),
            "scopes": kept.rights.beyond_role().collect::<Vec<_>>(),
            "created": time(kept.created_ms),
            "by": kept.by,
            "expires": kept.expires_ms.map(time),
            "over": kept.is_over(now_ms),
        })
    };
    let tokens: Vec<_> = all.into_iter().map(shown).collect();
    Ok(document(StatusCode::OK, &json!({ "tokens": tokens })))
}

/// What a token is to be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    name: TokenName,
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    scopes: Vec<String>,
    /// Without an end if it is `null`.
    #[serde(default = "ttl_default")]
    ttl_s: Option<u64>,
    /// Whether it may take the place of one that has its name.
    #[serde(default)]
    replace: bool,
}

#[expect(clippy::unnecessary_wraps, reason = "as the field is")]
fn ttl_default() -> Option<u64> {
    Some(TTL_DEFAULT.as_secs())
}

impl NewToken {
    /// What it gives. What is not known is an error here: who makes it meant something by it.
    fn rights(&self) -> Result<Rights, Refused> {
        let bad = |error: kumo_abi::rights::RightsError| Refused::bad_request(error.to_string());
        let role = self.role.as_deref().map_or(Ok(Role::View), str::parse).map_err(bad)?;
        self.scopes.iter().try_fold(Rights::of(role), |rights, scope| {
            Ok(rights.with(scope.parse::<Scope>().map_err(bad)?))
        })
    }
}

/// Makes a token; it is shown this once
#[utoipa::path(
    post, path = "/v2/rights/tokens", request_body(content = Object),
    responses((status = 200, body = Object), (status = 409, description = "There is one of that name")),
)]
async fn add(State(shared): State<Shared>, request: Request) -> Reply {
    manages(&request)?;
    let maker = asker(request.extensions());
    let asked: NewToken = json_of(request, "{\"name\":\"alice\"}").await?;
    let rights = asked.rights()?;
    if !maker.rights.include(rights) {
        let detail =
            format!("`{rights}` is more than {} has himself: `{}`", maker.who, maker.rights);
        let title = "Nobody gives more than he has";
        return Err(Refused::new(StatusCode::FORBIDDEN, "more-than-own", title, detail));
    }
    let ttl = asked.ttl_s.map(Duration::from_secs);
    if ttl.is_some_and(|ttl| ttl.is_zero() || ttl > TTL_MAX) {
        let most = TTL_MAX.as_secs();
        return Err(Refused::bad_request(format!("ttl_s is a number from 1 to {most}, or null")));
    }
    let (name, replace) = (asked.name.clone(), asked.replace);
    let made = with_tokens(&shared, move |tokens| {
        if !replace && tokens.all()?.contains_key(&asked.name) {
            return Ok(None);
        }
        let token = match Token::new(asked.name.clone()) {
            Ok(token) => token,
            Err(source) => {
                let path = "the system's random bits".into();
                return Err(k2i::token::TokenFileError::Io { path, source }.into());
            }
        };
        let kept = Kept::of(&token, rights, ttl, now_ms(), maker.who.to_string());
        let expires_ms = kept.expires_ms;
        tokens.put(asked.name, kept)?;
        Ok(Some((token.text(), expires_ms)))
    });
    let Some((token, expires_ms)) = made.await? else {
        let detail = format!(
            "there is a token `{name}`; take it back with `kumo rights token remove {name}`, or say \
             --replace, and who holds it has to get the new one"
        );
        let title = "There is such a token";
        return Err(Refused::new(StatusCode::CONFLICT, "token-exists", title, detail));
    };
    let made = json!({
        "name": name, "token": token, "role": rights.role(),
        "scopes": rights.beyond_role().collect::<Vec<_>>(), "expires": expires_ms.map(time),
    });
    Ok(did(document(StatusCode::OK, &made), format!("made token {name} with {rights}")))
}

/// Takes a token back, at once
#[utoipa::path(
    delete, path = "/v2/rights/tokens/{name}",
    params(("name" = String, Path, description = "Name of the token")),
    responses((status = 200, body = Object)),
)]
async fn remove(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Reply {
    manages(&request)?;
    let Path(text) = name.map_err(|error| Refused::bad_request(error.body_text()))?;
    let name: TokenName = text.parse().map_err(|error| {
        Refused::bad_request(format!("`{}` is no name of a token: {error}", text.escape_debug()))
    })?;
    let gone = name.clone();
    let was = with_tokens(&shared, move |tokens| tokens.remove(&gone)).await?;
    let answer = document(StatusCode::OK, &json!({ "name": name, "removed": was }));
    Ok(if was { did(answer, format!("took back token {name}")) } else { answer })
}

/// Certificates that were taken back
#[utoipa::path(get, path = "/v2/rights/certificates", responses((status = 200, body = Object)))]
async fn revoked(State(shared): State<Shared>, request: Request) -> Reply {
    manages(&request)?;
    let all = with_tokens(&shared, NodeTokens::revoked).await?;
    let shown = |(key, kept): (KeyHash, Revoked)| json!({ "key": key, "name": kept.name, "revoked": time(kept.at_ms), "by": kept.by });
    let certificates: Vec<_> = all.into_iter().map(shown).collect();
    Ok(document(StatusCode::OK, &json!({ "certificates": certificates })))
}

/// A certificate that is to be good no more: itself, or the key that it is known by.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToRevoke {
    /// In PEM.
    #[serde(default)]
    certificate: Option<String>,
    #[serde(default)]
    key: Option<String>,
}

/// Takes a certificate back, at once: it opens nothing more, and streams that it has opened end
#[utoipa::path(
    post, path = "/v2/rights/certificates", request_body(content = Object),
    responses((status = 200, body = Object), (status = 409, description = "There are too many")),
)]
async fn revoke(State(shared): State<Shared>, request: Request) -> Reply {
    manages(&request)?;
    let by = asker(request.extensions()).who.to_string();
    let asked: ToRevoke = json_of(request, "{\"key\":\"…\"} or {\"certificate\":\"…\"}").await?;
    let (key, name) = match (asked.certificate, asked.key) {
        (Some(pem), None) => known_by(pem.as_bytes())
            .ok_or_else(|| Refused::bad_request("`certificate` is no certificate in PEM"))?,
        (None, Some(key)) => (key.parse().map_err(Refused::bad_request)?, String::new()),
        _ => return Err(Refused::bad_request("give either `certificate`, in PEM, or `key`")),
    };
    let revoked = Revoked { name: name.clone(), at_ms: now_ms(), by };
    with_tokens(&shared, move |tokens| tokens.revoke(key, revoked)).await?;
    let answer = document(StatusCode::OK, &json!({ "key": key, "name": name }));
    Ok(did(answer, format!("took back the certificate with key {key}")))
}
