//! `/v2/react…`: reactions, what they did, and what one would do.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put as put_route};
use k2i::http::{Listener, Refused, asker, chain, json_of, parameters};
use kumo_abi::react::{REACTIONS_MAX, Reaction, ReactionName};
use kumo_abi::rights::Lines;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::task::spawn_blocking;
use utoipa::OpenApi;

use super::calls::change;
use super::openapi::{ReactionForm, TestForm};
use super::{Reply, Shared, admin, did, json as document, manages};
use crate::react::shown::{Reactions, ShownJournal, Tested};
use crate::react::{PREFIX, key};

/// Entries that are shown where nobody says how many.
const ENTRIES_DEFAULT: usize = 100;

/// Most entries that are shown.
const ENTRIES_MAX: usize = 10_000;

#[derive(OpenApi)]
#[openapi(paths(all, journal))]
pub(super) struct OwnPaths;

#[derive(OpenApi)]
#[openapi(paths(test, put, delete))]
pub(super) struct LocalPaths;

/// About this host: others may ask for them over the fabric.
pub(super) fn own_routes() -> Router<Shared> {
    Router::new().route("/v2/react", get(all)).route("/v2/react/journal", get(journal))
}

/// What changes them, and what says what they would do: for who manages the cluster.
pub(super) fn local_routes() -> Router<Shared> {
    Router::new()
        .route("/v2/react/test", post(test))
        .route("/v2/react/{name}", put_route(put).delete(delete))
}

/// Reactions, and what they did here
#[utoipa::path(get, path = "/v2/react", responses((status = 200, body = Reactions)))]
async fn all(State(shared): State<Shared>, request: Request) -> Reply {
    Ok(document(StatusCode::OK, &shared.react.shown(lines(&request))))
}

/// How command lines are shown to who asks.
fn lines(request: &Request) -> Lines {
    let listener = request.extensions().get::<Listener>();
    listener.map_or_else(|| asker(request.extensions()).lines(Lines::Redacted), Listener::lines)
}

/// The last entries of this host's journal of reactions
#[utoipa::path(
    get, path = "/v2/react/journal",
    params(
        ("reaction" = Option<String>, Query, description = "Of this reaction only"),
        ("limit" = Option<u32>, Query, description = "How many at most", minimum = 1, maximum = 10_000),
    ),
    responses((status = 200, body = ShownJournal)),
)]
async fn journal(State(shared): State<Shared>, request: Request) -> Reply {
    let (mut reaction, mut most) = (None, ENTRIES_DEFAULT);
    for (name, text) in parameters(request.uri(), &["reaction", "limit"])? {
        if name == "reaction" {
            let bad =
                |error: kumo_abi::react::ReactionError| Refused::bad_request(error.to_string());
            reaction = Some(text.parse::<ReactionName>().map_err(bad)?);
        } else {
            let number = text.parse().ok().filter(|number| (1..=ENTRIES_MAX).contains(number));
            most = number.ok_or_else(|| {
                Refused::bad_request(format!("limit is a number from 1 to {ENTRIES_MAX}"))
            })?;
        }
    }
    let react = Arc::clone(&shared.react);
    let lines = lines(&request);
    let read = spawn_blocking(move || react.journal(reaction.as_ref(), most, lines)).await;
    let read = read.map_err(|error| {
        tracing::error!("an answer failed: {error}");
        Refused::bug()
    })?;
    let shown = read.map_err(|error| {
        let title = "The journal cannot be read";
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "no-journal", title, chain(&error))
    })?;
    Ok(document(StatusCode::OK, &shown))
}

fn named(name: Result<Path<String>, PathRejection>) -> Result<ReactionName, Refused> {
    let Path(text) = name.map_err(|error| Refused::bad_request(error.body_text()))?;
    text.parse().map_err(|error: kumo_abi::react::ReactionError| {
        Refused::bad_request(format!("`{}` is no name: {error}", text.escape_debug()))
    })
}

/// Sets a reaction; it takes the right `manage`
#[utoipa::path(
    put, path = "/v2/react/{name}",
    params(("name" = String, Path, description = "Its name")),
    request_body = ReactionForm,
    responses(
        (status = 200, body = Object),
        (status = 409, description = "There is no cluster, or there are too many"),
    ),
)]
async fn put(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Reply {
    manages(&request)?;
    let name = named(name)?;
    let reaction: Reaction = json_of(request, "a reaction").await?;
    reaction.compile().map_err(|error| Refused::bad_request(error.to_string()))?;
    let store = Arc::clone(admin::fabric(&shared)?.store());
    let known = store.with_prefix(PREFIX);
    if known.len() >= REACTIONS_MAX && !known.iter().any(|(known, _)| *known == key(&name)) {
        let detail = format!("there are {REACTIONS_MAX} reactions, and that is the most");
        let title = "There are too many reactions";
        return Err(Refused::new(StatusCode::CONFLICT, "too-many", title, detail));
    }
    let value = serde_json::to_vec(&reaction).unwrap_or_default();
    let key = key(&name);
    change("reaction", move || store.put(&key, value)).await?;
    let answer = document(StatusCode::OK, &json!({ "name": name, "reaction": reaction }));
    Ok(did(answer, format!("set reaction {name}")))
}

/// Removes a reaction; it takes the right `manage`
#[utoipa::path(
    delete, path = "/v2/react/{name}",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, body = Object),
        (status = 409, description = "There is no cluster"),
    ),
)]
async fn delete(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Reply {
    manages(&request)?;
    let name = named(name)?;
    let (store, key) = (Arc::clone(admin::fabric(&shared)?.store()), key(&name));
    let was = store.value(&key).is_some();
    if was {
        change("reaction", move || store.remove(&key)).await?;
    }
    let answer = document(StatusCode::OK, &json!({ "name": name, "removed": was }));
    Ok(did(answer, format!("removed reaction {name}")))
}

/// Says what a reaction would do; nothing is called. It takes the right `manage`
#[utoipa::path(
    post, path = "/v2/react/test", request_body = TestForm, responses((status = 200, body = Tested)),
)]
async fn test(State(shared): State<Shared>, request: Request) -> Reply {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Test {
        reaction: Reaction,
        /// What to try it on; without it what there is.
        #[serde(default)]
        event: Option<Map<String, Value>>,
    }
    manages(&request)?;
    let Test { reaction, event } = json_of(request, "a reaction and an event").await?;
    let react = Arc::clone(&shared.react);
    let tested = spawn_blocking(move || react.test(&reaction, event.as_ref())).await;
    let tested = tested.map_err(|error| {
        tracing::error!("an answer failed: {error}");
        Refused::bug()
    })?;
    let tested = tested.map_err(|error| Refused::bad_request(error.to_string()))?;
    Ok(document(StatusCode::OK, &tested))
}
