//! `/openapi.json`: what this API answers, for programs that read such documents.
//!
//! The document is made of the annotations beside the handlers; each module lists its own as `Paths`.
//! What is the same for all is added here: the refusals of [`super::guard`], the form of a refusal, the
//! columns of a row. [`missing`] tells what a router answers and its document does not say, or the other
//! way round; tests let nothing pass.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use kumo_abi::Kind;
use kumo_abi::proc::PROC;
use serde_json::{Map, Value, json};
use utoipa::{OpenApi, ToSchema};

use super::problem::PROBLEM_JSON;
use super::{Api, deltas, events, metrics, open, signals, sql, sysctl, v1, v2};

/// What any request may get before its route is asked, or instead of its answer.
const REFUSALS: [(&str, &str); 10] = [
    ("400", "The request makes no sense: the detail says why"),
    ("401", "Nobody knows who asks: the token or certificate is missing, unknown or over"),
    ("403", "Not on this address, not from this page, or not permitted"),
    ("404", "There is no such thing"),
    ("406", "The answer is not available in a form that the client accepts"),
    ("413", "The request body is too large"),
    ("414", "The address is too long"),
    ("429", "Too many requests come from this address"),
    ("500", "A bug of the server"),
    ("503", "The server is busy, or could not read what it was asked for; a retry is safe"),
];

/// Addresses that have the handler of another one.
const ALIASES: [(&str, &str); 5] = [
    ("/v1", "/v1/"),
    ("/v1/k2i", "/v1/proc/self"),
    ("/v1/proc/pid/{pid}", "/v1/proc/{pid}"),
    ("/v2/metrics", "/metrics"),
    ("/v2/openapi.json", "/openapi.json"),
];

/// Methods in documents and routers.
const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

#[derive(OpenApi)]
#[openapi(paths(super::index, super::rights, document))]
struct Paths;

pub(super) fn routes(document: Bytes) -> Router<Arc<Api>> {
    Router::new()
        .route("/openapi.json", get(self::document))
        .route("/v2/openapi.json", get(self::document))
        .with_state(Arc::new(document))
}

/// This document
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, body = Object)))]
async fn document(State(document): State<Arc<Bytes>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, v2::JSON)], Bytes::clone(&document))
}

/// The document of this API alone, as the stand-alone server gives it.
pub fn own() -> Value {
    whole("k2i", "The process table of one host.", Vec::new())
}

/// The same as it is sent, made once.
pub fn own_text() -> Bytes {
    static TEXT: OnceLock<Bytes> = OnceLock::new();
    TEXT.get_or_init(|| crate::encode::document(&own()).into()).clone()
}

/// The document of this API and `more`.
pub fn whole(title: &str, about: &str, more: Vec<utoipa::openapi::OpenApi>) -> Value {
    let mut all = Paths::openapi();
    for part in [
        v1::Paths::openapi(),
        v2::Paths::openapi(),
        deltas::Paths::openapi(),
        events::Paths::openapi(),
        signals::Paths::openapi(),
        sql::Paths::openapi(),
        metrics::Paths::openapi(),
        open::Paths::openapi(),
        sysctl::Paths::openapi(),
    ] {
        all.merge(part);
    }
    for part in more {
        all.merge(part);
    }
    let mut document = serde_json::to_value(all).unwrap_or_default();
    document["info"] = json!({
        "title": title,
        "description": about,
        "version": env!("CARGO_PKG_VERSION"),
        "license": { "name": env!("CARGO_PKG_LICENSE") },
    });
    document["components"]["schemas"]["Problem"] = problem();
    document["components"]["schemas"]["ProcessRow"] = process_row();
    let paths = &mut document["paths"];
    for (alias, path) in ALIASES {
        if paths.get(path).is_some() {
            paths[alias] = paths[path].clone();
        }
    }
    complete(&mut document);
    document
}

/// Adds to every operation what is the same for all; a second time it changes nothing.
pub fn complete(document: &mut Value) {
    let paths = document["paths"].as_object_mut();
    for (path, item) in paths.into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            operation["operationId"] = operation_id(method, path).into();
            operation["tags"] = json!([tag(path)]);
            let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
            parameters.into_iter().flatten().for_each(tidy);
            let responses = operation["responses"].as_object_mut();
            let Some(responses) = responses else { continue };
            for (status, about) in REFUSALS {
                let refusal = || json!({ "description": about });
                responses.entry(status).or_insert_with(refusal);
            }
            for (status, response) in responses {
                if status.starts_with(['4', '5']) && response.get("content").is_none() {
                    let problem = json!({ "$ref": "#/components/schemas/Problem" });
                    response["content"] = json!({ PROBLEM_JSON: { "schema": problem } });
                }
            }
        }
    }
}

/// A parameter that is absent is not null; and no format says how many bits a number has that is not
/// negative, only `minimum` and `maximum` do.
fn tidy(parameter: &mut Value) {
    if let Some(schema) =
        parameter["schema"].as_object_mut().filter(|it| it.contains_key("minimum"))
    {
        schema.remove("format");
    }
    if let Some(Value::Array(types)) = parameter["schema"].get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = &mut types[..] {
            parameter["schema"]["type"] = only.take();
        }
    }
}

fn operation_id(method: &str, path: &str) -> String {
    let words = path.split(|char: char| !char.is_ascii_alphanumeric());
    let words = words.filter(|word| !word.is_empty());
    // `/v1/` is not `/v1`.
    let root = path.ends_with('/').then_some("root");
    [method].into_iter().chain(words).chain(root).collect::<Vec<_>>().join("_")
}

fn tag(path: &str) -> &str {
    let mut pieces = path.split('/').filter(|piece| !piece.is_empty());
    match (pieces.next(), pieces.next()) {
        (Some("v1"), _) => "v1",
        (Some("v2"), Some("all")) => "all hosts",
        (Some("v2"), Some("hosts")) => "hosts",
        (Some("v2"), Some("cluster")) => "cluster",
        (Some("v2"), Some("call" | "calls")) => "calls",
        (Some("v2"), Some("react")) => "reactions",
        (Some("v2"), Some("prometheus" | "metrics")) | (Some("metrics"), _) => "metrics",
        (Some("v2"), Some(_)) => "v2",
        _ => "server",
    }
}

/// A refusal, RFC 9457.
fn problem() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    json!({
        "type": "object",
        "description": "A request that is not answered, and why (RFC 9457)",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": text("A stable name of this kind of problem, such as `urn:kumo:problem:bad-query`"),
            "title": text("The kind in a few words; the same for every occurrence"),
            "status": { "type": "integer", "description": "The HTTP status, repeated" },
            "detail": text("What happened here and what to do"),
        },
    })
}

/// A row of the process table: those of its columns that were asked for. Aggregates have names of their
/// own, such as `sum(rss)`.
fn process_row() -> Value {
    let property = |spec: &kumo_abi::ColumnSpec| {
        let schema = match spec.kind {
            Kind::Bool => json!({ "type": ["boolean", "null"], "description": spec.about }),
            Kind::Int => json!({ "type": ["integer", "null"], "description": spec.about }),
            Kind::Float => json!({ "type": ["number", "null"], "description": spec.about }),
            Kind::Text => json!({ "type": ["string", "null"], "description": spec.about }),
            Kind::TextList => json!({
                "type": ["array", "null"],
                "items": { "type": "string" },
                "description": spec.about,
            }),
        };
        (spec.name.to_owned(), schema)
    };
    let properties: Map<String, Value> = PROC.columns.iter().map(property).collect();
    json!({
        "type": "object",
        "description": "A row of the process table: the columns that were asked for, and what was \
            computed of them, such as `sum(rss)`. Null is what cannot be read or is not there.",
        "properties": properties,
    })
}

/// What `router` answers and `document` does not say, and the other way round, as `method path`. For
/// tests: it reads what axum shows for debugging, and panics where that is of another form.
pub fn missing(router: &Router, document: &Value) -> Vec<String> {
    let mut said = BTreeSet::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        let methods = item.as_object().into_iter().flatten();
        said.extend(methods.map(|(method, _)| format!("{method} {path}")));
    }
    let answered = routes_of(&format!("{router:?}"));
    let covered = |route: &str| {
        // A document has no paths with an open end; what stands for one begins like it.
        let begin = route.find("{*").map(|at| &route[..at]);
        begin.map_or_else(
            || said.contains(route),
            |begin| said.iter().any(|it| it.starts_with(begin)),
        )
    };
    let begins: Vec<&str> =
        answered.iter().filter_map(|route| Some(&route[..route.find("{*")?])).collect();
    let undocumented = answered.iter().filter(|route| !covered(route));
    let undocumented = undocumented.map(|route| format!("undocumented: {route}"));
    let is_there = |said: &&String| {
        answered.contains(*said) || begins.iter().any(|begin| said.starts_with(begin))
    };
    let invented = said.iter().filter(|said| !is_there(said));
    undocumented.chain(invented.map(|said| format!("not there: {said}"))).collect()
}

/// The routes of a router as `method path`, from its debugging text: `RouteId(3): MethodRouter(MethodRouter
/// { get: Route, head: None, …` for each, then `RouteId(3): "/v2/proc"`.
fn routes_of(shown: &str) -> BTreeSet<String> {
    let shown = shown.split("fallback_router").next().unwrap_or_default();
    let (methods, paths) = shown.split_once("node: Node").expect("axum shows routes, then paths");
    let entries = |text: &str| -> BTreeMap<u32, String> {
        let read = |entry: &str| {
            let (id, rest) = entry.split_once("): ")?;
            Some((id.parse().ok()?, rest.to_owned()))
        };
        text.split("RouteId(").skip(1).filter_map(read).collect()
    };
    let paths = entries(paths);
    let mut routes = BTreeSet::new();
    for (id, shown) in entries(methods) {
        let path = paths.get(&id).and_then(|path| path.split('"').nth(1));
        let path = path.expect("axum shows the path of a route");
        for method in METHODS {
            let begin = format!("{method}: ");
            let endpoint = shown.split(&begin).nth(1).expect("axum shows each method");
            if !endpoint.starts_with("None") {
                routes.insert(format!("{method} {path}"));
            }
        }
    }
    assert!(!routes.is_empty(), "axum shows routes in another form: {shown}");
    routes
}

/// An answer of rows, and what it says about itself.
#[derive(ToSchema)]
#[expect(dead_code, clippy::struct_field_names, reason = "it is its form that is shown")]
pub(super) struct Rows {
    /// The data centre of the host that answered; this and the next are not repeated in a delta
    #[schema(required = false)]
    dc: String,
    /// The host that answered
    #[schema(required = false)]
    host: String,
    /// Its boot: a process identity holds within one boot
    #[schema(required = false)]
    boot_id: String,
    /// The collector that read the table, or the source of events
    #[schema(required = false)]
    collector: String,
    /// The generation of the table; it grows by one with each scan
    generation: u64,
    /// When the scan began, RFC 3339 with microseconds, UTC
    as_of: String,
    /// How long the scan took, in microseconds
    scan_us: u64,
    /// Processes in the table
    processes: u64,
    /// Processes that the filter let through, before the limit
    matched: u64,
    /// The names of the columns, in order
    #[schema(required = false)]
    columns: Vec<String>,
    /// How many rows are missing at least, of processes that ended: their events were lost
    #[schema(required = false)]
    lost: u64,
    /// With `since`: whether these are all rows, or those that have changed
    #[schema(required = false)]
    full: bool,
    /// With `since`: identities of rows that are no more
    #[schema(required = false)]
    gone: Vec<String>,
    /// With `since`, where rows are sorted: all identities in their order
    #[schema(required = false)]
    order: Vec<String>,
    /// The rows
    rows: Vec<ProcessRow>,
}

/// A row; [`process_row`] says its form.
#[derive(ToSchema)]
pub(super) struct ProcessRow {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{QUERY_PARAMETERS, router};
    use crate::{CollectorChoice, CollectorKind, Engine, EngineConfig};

    fn app() -> Router {
        let config = EngineConfig {
            collector: CollectorChoice::Only(CollectorKind::Proc),
            dc: "tokyo".to_owned(),
            host: "a".to_owned(),
        };
        router(Api::new(Arc::new(Engine::open(config).expect("/proc is there"))))
    }

    #[test]
    fn the_document_says_what_the_router_answers() {
        assert_eq!(missing(&app(), &own()), [] as [String; 0]);
        // What would be missing is found.
        let more = app().route("/v2/more", get(async || ""));
        assert_eq!(missing(&more, &own()), ["undocumented: get /v2/more"]);
        let mut document = own();
        document["paths"]["/v2/never"] = json!({ "put": {} });
        assert_eq!(missing(&app(), &document), ["not there: put /v2/never"]);
    }

    #[test]
    fn the_parameters_of_a_query_are_those_that_are_read() {
        let document = own();
        let parameters = document["paths"]["/v2/proc"]["get"]["parameters"].as_array();
        let names = parameters.expect("parameters").iter().map(|it| it["name"].as_str());
        let names: Option<Vec<_>> = names.collect();
        assert_eq!(names.expect("names"), [QUERY_PARAMETERS, &["since"]].concat());
    }

    #[test]
    fn operations_are_told_apart_and_their_references_lead_somewhere() {
        let document = own();
        assert_eq!(document["openapi"], "3.1.0");
        let mut ids = BTreeSet::new();
        for item in document["paths"].as_object().expect("paths").values() {
            for operation in item.as_object().expect("operations").values() {
                let id = operation["operationId"].as_str().expect("an id");
                assert!(ids.insert(id), "{id} stands twice");
                assert!(operation["summary"].is_string(), "{id} has no summary");
            }
        }
        let text = document.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap_or_default();
            assert!(document["components"]["schemas"][name].is_object(), "no schema {name}");
        }
        assert_eq!(
            document["components"]["schemas"]["ProcessRow"]["properties"]["rss"]["type"][0],
            "integer"
        );
        let mut again = document.clone();
        complete(&mut again);
        assert_eq!(again, document);
    }
}
