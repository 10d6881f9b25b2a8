//! How this host answers what came from another, or from itself as one of many.
//!
//! What travels is an HTTP request in JSON; it goes through the same routes as one that came in over
//! a socket. So what one host learns to answer, it answers for many.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use k2i::http::{Asked, PROBLEM_JSON, QUERY_PARAMETERS, Via};
use kumo_abi::merge::{self, Answered, Listed, Plan};
use kumo_abi::rights::Asker;
use kumo_abi::{HostId, Problem, Relation};
use kumo_fabric::{Answerer, Answering};
use serde::{Deserialize, Serialize};
use tower::ServiceExt as _;

/// The form of a question. A host that speaks another refuses with both numbers: one that does not read
/// who asks would show secrets to everybody.
pub(crate) const QUESTION_VERSION: u32 = 2;

/// The form before: it does not say who asks, so whoever it is may look.
const QUESTION_VERSION_WITHOUT_ASKER: u32 = 1;

/// Largest answer of one host. Ten thousand processes with all columns take about 20 MiB.
pub const HOST_ANSWER_BYTES_MAX: usize = 64 << 20;

/// The only answers that are text: what a Prometheus scrapes.
pub(crate) const TEXT: &str = k2i::metrics::Form::OpenMetrics.content_type();

/// What is asked for where rows are not: JSON where there is any.
const DOCUMENTS: &str = "application/json, application/openmetrics-text;q=0.9";

/// A question to hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    pub(crate) version: u32,
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) body: Option<serde_json::Value>,
    /// Whether answers are rows, to be merged as such; else each is a document.
    pub(crate) rows: bool,
    /// For whom. The host that answers decides by this what it shows and does: a host of the cluster is
    /// believed for whom it asks, as it might ask for itself.
    #[serde(default)]
    pub(crate) asker: Asker,
}

#[derive(Deserialize)]
struct Form {
    version: u32,
}

impl Question {
    /// A question for documents, in the name of `asker`.
    pub(crate) fn get(target: String, asker: Asker) -> Question {
        let method = Method::GET.to_string();
        Question { version: QUESTION_VERSION, method, target, body: None, rows: false, asker }
    }

    pub(crate) fn encode(&self) -> Bytes {
        // Texts always are JSON.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    fn decode(bytes: &[u8]) -> Result<Question, String> {
        let unknown =
            |error: serde_json::Error| format!("it does not know such questions: {error}");
        match serde_json::from_slice::<Form>(bytes).map_err(unknown)? {
            Form { version: QUESTION_VERSION } => serde_json::from_slice(bytes).map_err(unknown),
            Form { version: QUESTION_VERSION_WITHOUT_ASKER } => {
                let question: Question = serde_json::from_slice(bytes).map_err(unknown)?;
                Ok(Question { asker: Asker::default(), ..question })
            }
            Form { version } => Err(format!(
                "the question is of form {version}, and its node reads form {QUESTION_VERSION}"
            )),
        }
    }

    /// How rows that answer it are merged.
    fn plan(&self) -> Result<Plan, String> {
        let uri: Uri = self.target.parse().map_err(|error| format!("no address: {error}"))?;
        let relation = Relation::at(uri.path())
            .ok_or_else(|| format!("`{}` has no rows", uri.path().escape_debug()))?;
        let asked = Asked::parse(&uri, QUERY_PARAMETERS).map_err(|refused| refused.to_string())?;
        Plan::of(relation, &asked.query).map_err(|error| k2i::http::chain(&error))
    }
}

/// Answers for this host.
#[derive(Debug)]
pub(crate) struct HostAnswerer {
    me: HostId,
    /// Its routes, but for those that ask others, while it serves. They know the fabric, and the
    /// fabric knows its answerer: [`HostAnswerer::close`] ends that circle.
    routes: Mutex<Option<Router>>,
}

impl HostAnswerer {
    /// One that refuses until it is opened.
    pub(crate) fn new(me: HostId) -> Arc<HostAnswerer> {
        Arc::new(HostAnswerer { me, routes: Mutex::new(None) })
    }

    /// From now on it answers with these routes.
    pub(crate) fn open(&self, routes: Router) {
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner) = Some(routes);
    }

    /// From now on it refuses.
    pub(crate) fn close(&self) {
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Answers one question with `routes`.
async fn answer(me: HostId, routes: Option<Router>, bytes: Bytes) -> Result<Bytes, String> {
    let routes = routes.ok_or("its node is starting or stopping")?;
    let question = Question::decode(&bytes)?;
    let mut request = Request::builder().method(question.method.as_str()).uri(&question.target);
    let accept = if question.rows { "application/x-ndjson" } else { DOCUMENTS };
    request = request.header(header::ACCEPT, accept);
    let body = question.body.as_ref().map_or_else(Body::empty, |body| body.to_string().into());
    let mut request = request.body(body).map_err(|error| format!("no request: {error}"))?;
    request.extensions_mut().insert(Via::Fabric);
    request.extensions_mut().insert(question.asker.clone());
    let response = match routes.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (head, body) = response.into_parts();
    let body = Limited::new(body, HOST_ANSWER_BYTES_MAX).collect().await.map_err(|_| {
        let mib = HOST_ANSWER_BYTES_MAX >> 20;
        format!("its answer has more than {mib} MiB, or broke off; ask for less")
    })?;
    let body = body.to_bytes();
    let HostId { dc, host } = me;
    if question.rows {
        if head.status != StatusCode::OK {
            return Err(detail(&head.headers, &body));
        }
        let plan = question.plan()?;
        let host = answered(dc, host, &head.headers).ok_or("its answer lacks its heads")?;
        // Checked and copied: a few milliseconds for a large table.
        return Ok(plan.part(host, &body).into());
    }
    let is_text = head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == TEXT);
    let body = if is_text { text_document(&body).into() } else { body };
    let part = merge::list_part(Listed { dc, host }, head.status.as_u16(), &body);
    part.map(Bytes::from).map_err(|error| format!("its answer is no JSON: {error}"))
}

impl Answerer for HostAnswerer {
    fn answer(&self, request: Bytes) -> Answering {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(answer(self.me.clone(), routes, request))
    }

    fn merge(&self, request: &[u8], parts: Vec<Bytes>) -> Result<Bytes, String> {
        let question = Question::decode(request)?;
        let merged =
            if question.rows { question.plan()?.merge(&parts) } else { merge::merge_lists(&parts) };
        Ok(merged.into())
    }
}

/// Text as a JSON document, as answers of hosts are. [`document_text`] is the way back.
fn text_document(text: &[u8]) -> Vec<u8> {
    serde_json::to_vec(&String::from_utf8_lossy(text)).unwrap_or_default()
}

/// The text that a document is; `None` for one that is something else.
pub(crate) fn document_text(document: &str) -> Option<String> {
    serde_json::from_str(document).ok()
}

/// What a refusal says.
fn detail(headers: &HeaderMap, body: &[u8]) -> String {
    let is_problem = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM_JSON);
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) if is_problem => problem.detail,
        _ => "it refused without a reason".to_owned(),
    }
}

/// What an answer in lines says about itself, in its headers.
fn answered(
    dc: kumo_abi::DcName,
    host: kumo_abi::HostName,
    headers: &HeaderMap,
) -> Option<Answered> {
    let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
    let number = |name: &str| text(name)?.parse().ok();
    Some(Answered {
        dc,
        host,
        boot_id: text("kumo-boot-id")?,
        collector: text("kumo-collector")?,
        generation: number("kumo-generation")?,
        as_of: text("kumo-as-of")?,
        processes: number("kumo-processes")?,
        matched: number("kumo-matched")?,
        lost: number("kumo-lost").unwrap_or(0),
        unseen: text("kumo-unseen"),
    })
}

#[cfg(test)]
mod tests {
    use kumo_abi::rights::{Rights, Scope, Who};

    use super::*;

    #[test]
    fn text_comes_back() {
        for text in ["", "a\n\"b\" \u{1b}é\\"] {
            let document = String::from_utf8(text_document(text.as_bytes())).expect("JSON");
            assert_eq!(document_text(&document).as_deref(), Some(text));
        }
        assert_eq!(document_text("{}"), None);
    }

    #[test]
    fn questions_of_others() {
        let who = Who::Token("ci".to_owned());
        let asker = Asker { who, rights: Rights::VIEW.with(Scope::Signal), ..Asker::default() };
        let question = Question::get("/v2/host".to_owned(), asker.clone());
        let json = question.encode();
        assert_eq!(Question::decode(&json), Ok(question));
        let text = String::from_utf8(json.to_vec()).expect("UTF-8");
        let cases = [
            (text.replace("\"version\":2", "\"version\":9"), "form 9, and its node reads form 2"),
            (text.replace("\"rows\":false", "\"rows\":false,\"x\":1"), "unknown field `x`"),
            ("GET /".to_owned(), "does not know such questions"),
        ];
        for (text, want) in cases {
            let error = Question::decode(text.as_bytes()).expect_err(want);
            assert!(error.contains(want), "{error:?} does not say {want:?}");
        }
        // Who does not say for whom he asks asks for somebody who may look, whatever he writes.
        let old = text.replace("\"version\":2", "\"version\":1");
        assert_eq!(Question::decode(old.as_bytes()).expect("as before").asker, Asker::default());
        let silent = r#"{"version":2,"method":"GET","target":"/","rows":false}"#;
        let silent = Question::decode(silent.as_bytes()).expect("a question");
        assert_eq!(silent.asker.rights, Rights::VIEW);
        let rows = |target: &str| {
            let asker = Asker::default();
            Question { rows: true, ..Question::get(target.to_owned(), asker) }
        };
        for good in ["/v2/proc?columns=pid", "/v2/sockets?sort=local_port", "/v2/files?columns=fd"]
        {
            assert!(rows(good).plan().is_ok(), "for {good:?}");
        }
        for bad in [
            "/v2/host",
            "/v2/sockets?columns=rss",
            "/v2/sockets?ended=1",
            "/v2/proc?columns=nonsense",
            "/v2/proc?x=1",
            "\u{1}",
        ] {
            assert!(rows(bad).plan().is_err(), "for {bad:?}");
        }
    }
}
