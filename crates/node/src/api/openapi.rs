//! The `OpenAPI` document of a node: that of its process table, its own routes, and what one host answers,
//! of many hosts and of any other one.
//!
//! The last two are not written anywhere: as `/v2/all/…` and `/v2/hosts/{dc}/{host}/…` answer whatever
//! `/v2/…` does, their part of the document is made from the other.

use std::sync::OnceLock;

use bytes::Bytes;
use k2i::http::openapi::{complete, whole};
use k2i::metrics::Form;
use kumo_abi::call::BUDGET_MS_DEFAULT;
use kumo_abi::relation::RELATIONS;
use serde_json::{Value, json};
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::{
    JSON, admin, all, calls, gateway, hosts, one, prometheus, react, rights, rollout, sql, sysctl,
};

const TITLE: &str = "Kumonosu";
const ABOUT: &str = "The API of a node: the processes of its host and of all hosts, who is there, calls \
    and reactions. What changes something takes a right, by token, by certificate or on its Unix socket.";

/// The document as it is sent, made once.
pub(crate) fn document() -> Bytes {
    static TEXT: OnceLock<Bytes> = OnceLock::new();
    let make = || k2i::escaped_json(&node().to_string()).into();
    TEXT.get_or_init(make).clone()
}

fn node() -> Value {
    let own = [
        hosts::Paths::openapi(),
        calls::OwnPaths::openapi(),
        react::OwnPaths::openapi(),
        sysctl::OwnPaths::openapi(),
    ];
    let wide = [
        hosts::StreamPaths::openapi(),
        calls::LocalPaths::openapi(),
        react::LocalPaths::openapi(),
        admin::Paths::openapi(),
        gateway::Paths::openapi(),
        all::Paths::openapi(),
        one::Paths::openapi(),
        prometheus::Paths::openapi(),
        rights::Paths::openapi(),
        rollout::Paths::openapi(),
        sysctl::AskingPaths::openapi(),
        sql::Paths::openapi(),
        Shapes::openapi(),
    ];
    let of_one_host = whole(TITLE, ABOUT, own.to_vec());
    let mut document = whole(TITLE, ABOUT, own.into_iter().chain(wide).collect());
    for (path, item) in of_one_host["paths"].as_object().into_iter().flatten() {
        let Some(rest) = path.strip_prefix("/v2/") else { continue };
        let Some(operation) = item.get("get").filter(|operation| ends(operation)) else { continue };
        let of_all = format!("/v2/all/{rest}");
        if document["paths"][&of_all].get("get").is_none() {
            document["paths"][of_all]["get"] = of_many(operation);
        }
        let of_other = format!("/v2/hosts/{{dc}}/{{host}}/{rest}");
        document["paths"][of_other]["get"] = of_other_host(operation);
    }
    // Other tables are merged as that of processes is.
    for relation in RELATIONS.into_iter().filter(|relation| relation.path != "proc") {
        document["paths"][format!("/v2/all/{}", relation.path)] =
            document["paths"]["/v2/all/proc"].clone();
    }
    complete(&mut document);
    document
}

/// Whether an operation gives an answer that ends, which can be gathered.
fn ends(operation: &Value) -> bool {
    let content = &operation["responses"]["200"]["content"];
    [JSON, "text/plain"].iter().any(|kind| content.get(kind).is_some())
}

/// What an operation answers in its first form: text is a text in JSON.
fn schema_of(operation: &Value) -> Value {
    let content = &operation["responses"]["200"]["content"];
    content[JSON].get("schema").cloned().unwrap_or_else(|| json!({ "type": "string" }))
}

/// An operation of one host, of all.
fn of_many(operation: &Value) -> Value {
    let mut operation = operation.clone();
    let answer = json!({
        "type": "object",
        "required": ["dc", "host", "status", "body"],
        "properties": {
            "dc": { "type": "string" },
            "host": { "type": "string" },
            "status": { "type": "integer", "description": "What the host answered" },
            "body": { "anyOf": [schema_of(&operation), { "$ref": "#/components/schemas/Problem" }] },
        },
    });
    let schema = json!({
        "type": "object",
        "required": ["hosts", "answers"],
        "properties": {
            "hosts": { "$ref": "#/components/schemas/Gathered" },
            "answers": { "type": "array", "items": answer },
        },
    });
    add_parameters::<ScopeParameters>(&mut operation);
    say(&mut operation, ", of all hosts", JSON, &schema);
    operation["responses"]["504"] = json!({ "description": "No host answered" });
    operation
}

/// An operation of this host, of another one.
fn of_other_host(operation: &Value) -> Value {
    let mut operation = operation.clone();
    let schema = schema_of(&operation);
    let is_text = operation["responses"]["200"]["content"].get(JSON).is_none();
    let kind = if is_text { TEXT_TYPE } else { JSON };
    add_parameters::<WaitParameters>(&mut operation);
    add_parameters::<HostParameters>(&mut operation);
    say(&mut operation, ", of one host, asked through this node", kind, &schema);
    operation["responses"]["502"] = json!({ "description": "The host does not answer this" });
    operation["responses"]["504"] = json!({ "description": "The host gave no answer" });
    operation
}

/// Says whose answer it is, and in what form.
fn say(operation: &mut Value, whose: &str, kind: &str, schema: &Value) {
    let summary = operation["summary"].as_str().unwrap_or_default();
    operation["summary"] = format!("{summary}{whose}").into();
    operation["responses"]["200"]["content"] = json!({ kind: { "schema": schema } });
}

/// The type of text from another host, without its parameters: to a node it comes in one form.
const TEXT_TYPE: &str = Form::OpenMetrics.media_type();

/// Puts parameters in front of those that are there.
fn add_parameters<T: IntoParams>(operation: &mut Value) {
    let added = serde_json::to_value(T::into_params(|| None)).unwrap_or_default();
    let mut all = added.as_array().cloned().unwrap_or_default();
    let there = operation["parameters"].as_array().into_iter().flatten();
    all.extend(there.filter(|parameter| parameter["name"] != "since").cloned());
    operation["parameters"] = all.into();
}

/// Which hosts are asked, and how long they are waited for: [`super::scope::PARAMETERS`].
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct ScopeParameters {
    /// Data centres with commas in between; all without it
    dc: Option<String>,
    /// A condition in CEL over the columns of hosts, such as `cpus > 8 && labels["rack"] == "b"`
    r#where: Option<String>,
    /// How long each host is waited for, in milliseconds
    #[param(minimum = 10, maximum = 60_000)]
    wait_ms: Option<u64>,
}

/// Which host is asked.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct HostParameters {
    /// Data centre of the host
    dc: String,
    /// Its name
    host: String,
}

/// How long it is waited for.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct WaitParameters {
    /// How long the host is waited for, in milliseconds
    #[param(minimum = 10, maximum = 60_000)]
    wait_ms: Option<u64>,
}

/// Which kernel parameter.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct ParameterPath {
    /// As sysctl(8) writes it: `vm.swappiness` or `vm/swappiness`
    name: String,
}

/// How a kernel parameter is changed.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct SetParameters {
    /// 1: says what would change
    dry_run: Option<String>,
    /// Taken back after this time unless confirmed: 30s, 5m
    confirm_within: Option<String>,
}

/// Which change of kernel parameters.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct ChangePath {
    /// Number of the change
    id: String,
}

/// A host by its names.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(crate) struct HostNamed {
    dc: String,
    host: String,
}

/// A host, what is known of its life, and what it says about itself.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct HostShown {
    dc: String,
    host: String,
    /// `alive`, `dead`, `cut-off` or `left`
    state: String,
    state_ms: u64,
    incarnation: Option<u64>,
    #[schema(value_type = Option<Object>)]
    card: (),
}

/// The hosts of a cluster.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct HostsShown {
    /// Null without one
    cluster: Option<String>,
    /// Whose view this is
    dc: String,
    host: String,
    hosts: Vec<HostShown>,
    /// Gateways that could not be reached
    #[schema(value_type = Vec<Object>)]
    unreached: (),
}

/// The links of a node.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct LinksShown {
    links: Vec<LinkShown>,
}

/// A link to another host.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct LinkShown {
    peer: HostNamed,
    /// `gateway` or `member`
    role: String,
    dialed: bool,
    address: String,
    rtt_us: u32,
    age_ms: u64,
    received_bytes: u64,
    sent_bytes: u64,
}

/// Who was asked, and who did not answer.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct Gathered {
    asked: u64,
    answered: u64,
    /// Each with its `outcome`: `dead`, `cut-off`, `silent` or `refused`
    #[schema(value_type = Vec<Object>)]
    missing: (),
    /// Of rows: each with its collector, generation and time
    #[schema(value_type = Vec<Object>, required = false)]
    answered_by: (),
}

/// Rows of many hosts.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct RowsOfMany {
    hosts: Gathered,
    /// The earliest of all; absent where nobody was asked
    #[schema(required = false)]
    as_of: String,
    processes: u64,
    matched: u64,
    columns: Vec<String>,
    #[schema(required = false)]
    lost: u64,
    #[schema(value_type = Vec<Object>)]
    rows: (),
}

/// A signal to send.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct SignalForm {
    /// A name or number
    signal: String,
    /// Whether process 1 may be hit
    #[schema(default = false)]
    force: Option<bool>,
}

/// A reaction.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct ReactionForm {
    /// `process`, `host` or `service`
    on: Option<String>,
    /// A condition in CEL over the columns of that
    when: String,
    service: String,
    method: String,
    /// What is sent: JSON, in which `${column}` stands for a value
    data: Option<String>,
    #[schema(default = json!(BUDGET_MS_DEFAULT))]
    budget_ms: Option<u64>,
    calls_per_s: Option<u32>,
    depth_max: Option<u8>,
    enabled: Option<bool>,
}

/// A reaction to try.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct TestForm {
    reaction: ReactionForm,
    /// What to try it on; without it what there is
    #[schema(value_type = Option<Object>)]
    event: (),
}

/// What only documents that are made from others refer to.
#[derive(OpenApi)]
#[openapi(components(schemas(Gathered)))]
struct Shapes;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Instant;

    use k2i::http::{Api, openapi::missing, router_with};
    use k2i::{CollectorChoice, CollectorKind, Engine, EngineConfig};
    use kumo_abi::sysctl::AllowList;
    use tokio::sync::watch;

    use super::*;
    use crate::answer::HostAnswerer;
    use crate::api::{Shared, own_routes, wide_routes};
    use crate::calls::Shared as Calls;
    use crate::react::Shared as React;
    use crate::sysctl::Shared as Sysctl;
    use crate::tokens::NodeTokens;
    use crate::web::{Web, card};

    #[tokio::test]
    async fn the_document_says_what_the_router_answers() {
        let me: kumo_abi::HostId = "tokyo/a".parse().expect("a host");
        let web = Web::lone(me.clone(), card(None), Instant::now(), HostAnswerer::new(me));
        let (_stop, stopping) = watch::channel(false);
        let calls = Calls::idle(web.clone());
        let react = React::idle(web.clone(), Arc::clone(&calls));
        let reopen = watch::Sender::new(false);
        // Nothing is there, and nothing is written.
        let sysctl = Sysctl::open(Path::new("/nonexistent"), "", AllowList::default());
        let tokens = Arc::new(NodeTokens::in_file(Path::new("/nowhere")));
        let run_dir = Path::new("/").into();
        let shared = Shared::new(web, calls, react, sysctl, tokens, run_dir, stopping, reopen);
        let config = EngineConfig {
            collector: CollectorChoice::Only(CollectorKind::Proc),
            dc: "tokyo".to_owned(),
            host: "a".to_owned(),
        };
        let api = Api::new(Arc::new(Engine::open(config).expect("/proc is there")));
        let more = own_routes(shared.clone()).merge(wide_routes(shared));
        let routes = router_with(api, more, document());
        assert_eq!(missing(&routes, &node()), [] as [String; 0]);
    }

    #[test]
    fn what_one_host_answers_is_answered_of_many() {
        let document = node();
        let paths = &document["paths"];
        for path in ["/v2/all/host", "/v2/all/calls/trace/{root}", "/v2/hosts/{dc}/{host}/metrics"]
        {
            assert!(paths[path]["get"]["responses"]["504"]["content"].is_object(), "no {path}");
        }
        let names = |path: &str| {
            let parameters = paths[path]["get"]["parameters"].as_array().cloned();
            let names = parameters.into_iter().flatten().map(|it| it["name"].clone());
            names.filter_map(|name| name.as_str().map(ToOwned::to_owned)).collect::<Vec<_>>()
        };
        let query = k2i::http::QUERY_PARAMETERS;
        assert_eq!(names("/v2/all/proc"), [query, crate::api::scope::PARAMETERS].concat());
        assert_eq!(names("/v2/all/host"), crate::api::scope::PARAMETERS);
        let of_one = [&["dc", "host", "wait_ms"], query].concat();
        assert_eq!(names("/v2/hosts/{dc}/{host}/proc"), of_one);
        assert!(paths["/v2/all/events"].is_null(), "a stream is told by its own host");
        let rows = &paths["/v2/all/proc"]["get"];
        assert!(
            rows["responses"]["200"]["content"][crate::api::NDJSON].is_object(),
            "its own words"
        );
        let text = document.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap_or_default();
            assert!(document["components"]["schemas"][name].is_object(), "no schema {name}");
        }
    }
}
