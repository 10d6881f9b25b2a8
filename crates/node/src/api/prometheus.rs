//! `GET /v2/prometheus/targets`: all hosts, as the HTTP service discovery of Prometheus reads them.
//!
//! Every host is scraped through this node, at the address on which Prometheus asks for the list: no
//! other host needs an open port, and what they answer travels encrypted and is told apart by
//! certificates. A host that is dead is listed as long as it is one of the cluster, so that its scrapes
//! fail and `up` says so.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use k2i::http::{Refused, Via, parameters};
use kumo_abi::cluster::{HostInfo, HostState};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::{Reply, Shared, json as document};

#[derive(OpenApi)]
#[openapi(paths(targets))]
pub(super) struct Paths;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v2/prometheus/targets", get(targets))
}

/// Hosts as targets for the HTTP service discovery of Prometheus
#[utoipa::path(get, path = "/v2/prometheus/targets", responses((status = 200, body = Vec<Object>)))]
async fn targets(State(shared): State<Shared>, request: Request) -> Reply {
    parameters(request.uri(), &[])?;
    let via = request.extensions().get::<Via>().copied();
    let address = address(request.headers(), via).ok_or_else(|| {
        let detail = "Prometheus scrapes hosts where it asks for this list, which is the node's TCP address; \
            on its Unix socket name that address in the Host header";
        Refused::bad_request(detail)
    })?;
    let scheme = if matches!(via, Some(Via::Tcp { tls: true, .. })) { "https" } else { "http" };
    let hosts = shared.web.hosts();
    let is_there = |host: &&HostInfo| host.state != HostState::Left;
    let targets: Vec<Value> =
        hosts.iter().filter(is_there).map(|host| target(host, &address, scheme)).collect();
    Ok(document(StatusCode::OK, &targets))
}

/// Where who asks has reached us: by the name that it used, for there may be a tunnel in between.
fn address(headers: &HeaderMap, via: Option<Via>) -> Option<String> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let named = host.and_then(|host| host.parse::<Authority>().ok());
    let local = match via {
        Some(Via::Tcp { local, .. }) => Some(local),
        _ => None,
    };
    match (named, local) {
        (Some(named), _) if named.port_u16().is_some() => Some(named.to_string()),
        // The usual port of the scheme is left out.
        (Some(named), Some(local)) => Some(format!("{}:{}", named.host(), local.port())),
        (None, Some(local)) => Some(local.to_string()),
        (_, None) => None,
    }
}

/// One target with one group of labels: those of two underscores are for relabelling alone.
fn target(host: &HostInfo, address: &str, scheme: &str) -> Value {
    let (dc, name) = (&host.id.dc, &host.id.host);
    let mut labels = Map::new();
    let mut label = |name: &str, value: String| labels.insert(name.to_owned(), value.into());
    label("__metrics_path__", format!("/v2/hosts/{dc}/{name}/metrics"));
    label("__scheme__", scheme.to_owned());
    label("instance", host.id.to_string());
    label("dc", dc.to_string());
    label("host", name.to_string());
    label("__meta_kumo_state", host.state.name().to_owned());
    if let Some(card) = &host.card {
        label("__meta_kumo_role", card.role.name().to_owned());
        label("__meta_kumo_version", card.version.clone());
        for (key, value) in &card.labels {
            label(&format!("__meta_kumo_label_{}", label_name(key)), value.clone());
        }
    }
    json!({ "targets": [address], "labels": labels })
}

/// What of a name Prometheus takes, the rest as underscores.
fn label_name(key: &str) -> String {
    key.chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn where_we_were_reached() {
        let tcp = Some(Via::Tcp { local: ([127, 0, 0, 1], 7080).into(), tls: false });
        let cases = [
            (Some("localhost:9000"), tcp, Some("localhost:9000")),
            (Some("[::1]:9000"), tcp, Some("[::1]:9000")),
            (Some("localhost"), tcp, Some("localhost:7080")),
            (None, tcp, Some("127.0.0.1:7080")),
            (Some("127.0.0.1:7080"), Some(Via::Unix), Some("127.0.0.1:7080")),
            (Some("localhost"), Some(Via::Unix), None),
            (None, Some(Via::Unix), None),
        ];
        for (host, via, want) in cases {
            let host = host.map(|host| (header::HOST, HeaderValue::from_static(host)));
            assert_eq!(address(&host.into_iter().collect(), via).as_deref(), want);
        }
    }

    #[test]
    fn a_host_is_a_target() {
        let host = HostInfo {
            id: "tokyo/web-1".parse().expect("a host"),
            state: HostState::Dead,
            state_ms: 5,
            incarnation: None,
            card: None,
        };
        let want = json!({
            "targets": ["127.0.0.1:7080"],
            "labels": {
                "__metrics_path__": "/v2/hosts/tokyo/web-1/metrics",
                "__scheme__": "http",
                "instance": "tokyo/web-1",
                "dc": "tokyo",
                "host": "web-1",
                "__meta_kumo_state": "dead",
            },
        });
        assert_eq!(target(&host, "127.0.0.1:7080", "http"), want);
        assert_eq!(label_name("rack.row-7é"), "rack_row_7_");
    }
}
