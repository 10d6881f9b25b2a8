//! `/v2/calls/…`: services, who waits for whom, traces, access lists.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::routing::get;
use k2i::http::{Refused, chain, json_of};
use kumo_abi::call::{RootId, ServiceName};
use kumo_fabric::Fabric;
use kumo_fabric::store::StoreError;
use serde_json::json;
use tokio::task::spawn_blocking;
use utoipa::OpenApi;

use super::{Reply, Shared, did, json as document, manages};
use crate::calls::Shared as Calls;
use crate::calls::rules::acl::Acl;
use crate::calls::shown::{Blocked, Services, Trace};
use crate::calls::{acl_key, read_acl};

#[derive(OpenApi)]
#[openapi(paths(services, blocked, trace))]
pub(super) struct OwnPaths;

#[derive(OpenApi)]
#[openapi(paths(acl, put_acl, delete_acl))]
pub(super) struct LocalPaths;

/// About this host: others may ask for them over the fabric.
pub(super) fn own_routes() -> Router<Shared> {
    Router::new()
        .route("/v2/calls/services", get(services))
        .route("/v2/calls/blocked", get(blocked))
        .route("/v2/calls/trace/{root}", get(trace))
}

/// What changes who may call what: for who manages the cluster.
pub(super) fn local_routes() -> Router<Shared> {
    Router::new().route("/v2/calls/acl/{service}", get(acl).put(put_acl).delete(delete_acl))
}

/// Runs what reads many pages where blocking is fine.
async fn show<T: serde::Serialize + Send + 'static>(
    shared: &Shared,
    read: impl FnOnce(&Calls) -> T + Send + 'static,
) -> Reply {
    let calls = Arc::clone(&shared.calls);
    let shown = spawn_blocking(move || read(&calls)).await.map_err(|error| {
        tracing::error!("an answer failed: {error}");
        Refused::bug()
    })?;
    Ok(document(StatusCode::OK, &shown))
}

/// Services that this host serves, and what it knows of others
#[utoipa::path(get, path = "/v2/calls/services", responses((status = 200, body = Services)))]
async fn services(State(shared): State<Shared>) -> Reply {
    show(&shared, Calls::services).await
}

/// Who waits for whom, longest first
#[utoipa::path(get, path = "/v2/calls/blocked", responses((status = 200, body = Blocked)))]
async fn blocked(State(shared): State<Shared>) -> Reply {
    show(&shared, Calls::blocked).await
}

/// What this host saw of a trace
#[utoipa::path(
    get, path = "/v2/calls/trace/{root}",
    params(("root" = String, Path, description = "32 hexadecimal digits", pattern = "^[0-9a-f]{32}$")),
    responses((status = 200, body = Trace)),
)]
async fn trace(State(shared): State<Shared>, root: Result<Path<String>, PathRejection>) -> Reply {
    let Path(text) = root.map_err(|error| Refused::bad_request(error.body_text()))?;
    let root = parse_root(&text).ok_or_else(|| {
        let text = text.escape_debug();
        Refused::bad_request(format!(
            "`{text}` is no trace: it has 32 hexadecimal digits, not all 0"
        ))
    })?;
    show(&shared, move |calls| calls.trace(root)).await
}

/// A trace as W3C writes it.
pub(super) fn parse_root(text: &str) -> Option<RootId> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != 32 || !text.bytes().all(is_hex) {
        return None;
    }
    let number = u128::from_str_radix(text, 16).ok().filter(|number| *number != 0)?;
    Some(RootId(number.to_be_bytes()))
}

fn service(name: Result<Path<String>, PathRejection>) -> Result<ServiceName, Refused> {
    let Path(text) = name.map_err(|error| Refused::bad_request(error.body_text()))?;
    text.parse().map_err(|error| {
        let text = text.escape_debug();
        Refused::bad_request(format!("`{text}` is no service: {error}"))
    })
}

/// The fabric, where access lists are kept.
fn fabric(shared: &Shared) -> Result<&Fabric, Refused> {
    super::admin::fabric(shared)
}

/// Who may call and serve a service; it takes the right `manage`
#[utoipa::path(
    get, path = "/v2/calls/acl/{service}",
    params(("service" = String, Path, description = "Its name")),
    responses(
        (status = 200, body = Object),
        (status = 409, description = "There is no cluster"),
    ),
)]
async fn acl(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Reply {
    manages(&request)?;
    let service = service(name)?;
    if let Some(value) = fabric(&shared)?.store().value(&acl_key(&service)) {
        let acl = read_acl(&service, &value);
        Ok(document(StatusCode::OK, &json!({ "service": service, "acl": acl })))
    } else {
        let detail = format!(
            "`{service}` has no access list: everybody in the cluster may call it, and root or the user that holds \
                 the name may serve it"
        );
        Err(Refused::new(StatusCode::NOT_FOUND, "no-acl", "There is no access list", detail))
    }
}

/// Sets who may call and serve a service; it takes the right `manage`
#[utoipa::path(
    put, path = "/v2/calls/acl/{service}",
    params(("service" = String, Path, description = "Its name")),
    request_body = Object,
    responses(
        (status = 200, body = Object),
        (status = 409, description = "There is no cluster"),
    ),
)]
async fn put_acl(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Reply {
    manages(&request)?;
    let service = service(name)?;
    let acl: Acl = json_of(request, "an access list").await?;
    acl.check().map_err(|error| Refused::bad_request(error.to_string()))?;
    let value = serde_json::to_vec(&acl).unwrap_or_default();
    let (store, key) = (Arc::clone(fabric(&shared)?.store()), acl_key(&service));
    change("access list", move || store.put(&key, value)).await?;
    let answer = document(StatusCode::OK, &json!({ "service": service, "acl": acl }));
    Ok(did(answer, format!("changed the access list of {service}")))
}

/// Removes a service's access list; it takes the right `manage`
#[utoipa::path(
    delete, path = "/v2/calls/acl/{service}",
    params(("service" = String, Path, description = "Its name")),
    responses(
        (status = 200, body = Object),
        (status = 409, description = "There is no cluster"),
    ),
)]
async fn delete_acl(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Reply {
    manages(&request)?;
    let service = service(name)?;
    let (store, key) = (Arc::clone(fabric(&shared)?.store()), acl_key(&service));
    let was = store.value(&key).is_some();
    if was {
        change("access list", move || store.remove(&key)).await?;
    }
    let answer = document(StatusCode::OK, &json!({ "service": service, "removed": was }));
    Ok(did(answer, format!("removed the access list of {service}")))
}

/// Writes to the desired state: when this returns, it is on the disk.
pub(super) async fn change(
    what: &str,
    write: impl FnOnce() -> Result<(), StoreError> + Send + 'static,
) -> Result<(), Refused> {
    let written = spawn_blocking(write).await.map_err(|error| {
        tracing::error!("a change failed: {error}");
        Refused::bug()
    })?;
    written.map_err(|error| {
        let title = format!("The {what} could not be written");
        let status = match error {
            StoreError::TooBig { .. } => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refused::new(status, "write-failed", &title, chain(&error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_written_as_w3c_does() {
        let good = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(parse_root(good).expect("a trace").to_string(), good);
        let zero = "0".repeat(32);
        for bad in
            ["", "4bf92f3577b34da6a3ce929d0e0e473", "4BF92F3577B34DA6A3CE929D0E0E4736", &zero]
        {
            assert_eq!(parse_root(bad), None, "for {bad:?}");
        }
        assert_eq!(parse_root(&"+".repeat(32)), None);
    }
}
