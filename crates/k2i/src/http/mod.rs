//! The HTTP API of one host's process table.
//!
//! [`router`] answers requests, [`serve`] brings them in. `/v1` answers as the original k2i of 2018
//! did, `/v2` is ours. Every refusal is an RFC 9457 problem document.
//!
//! Answers are made where blocking is fine, at most [`ANSWERS_MAX`] at once; the others wait in line
//! and cost next to nothing. A request that has waited takes a table that was read meanwhile: its
//! age counts from when the request came in.

mod accept;
mod access;
mod audit;
mod body;
mod certificate;
mod deltas;
mod events;
mod guard;
mod metrics;
mod open;
pub mod openapi;
mod pace;
mod payload;
mod problem;
pub mod serve;
mod signals;
pub mod sql;
mod stream;
pub mod sysctl;
mod taken;
pub mod tls;
mod v1;
mod v2;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{Extensions, HeaderMap, Method, StatusCode, Uri, Version, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{Predicate as _, SizeAbove};

use crate::delta::Remembered;
use crate::encode::document;
use crate::engine::Engine;
use stream::Endless;

pub use accept::choose;
pub use access::{Access, Anonymous, Listener, Peer, REDACT};
pub use audit::{AUDIT_BYTES_MAX, Audit, Audited, Did};
pub use body::of_channel;
pub use certificate::known_by;
pub use events::EVENT_COLUMNS_DEFAULT;
pub use guard::{TARGET_BYTES_MAX, Via, allow, asker};
pub use kumo_abi::chain;
pub use payload::{REQUEST_BODY_BYTES_MAX, bytes_of, json_of};
pub use problem::{PROBLEM_JSON, Refused};
pub use stream::{STREAM_QUIET_MAX, STREAMS_MAX};
pub use v2::{Asked, OPEN_PARAMETERS, QUERY_PARAMETERS, QueryParameters, parameters};

/// Most answers of one [`Api`] under way at once: being made, or being read by their client. Each
/// holds its table, its rows' numbers, two pieces of about 128 KiB, and up to 1 MiB where it is
/// compressed; more of them would not be faster.
pub const ANSWERS_MAX: usize = 32;

/// Longest wait for one of these places. Clients that read slowly may hold them all for a while, at
/// most for [`serve::ANSWER_WRITE_MAX`].
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);

/// An answer below this many bytes is not compressed: it fits into a packet or two anyway.
const COMPRESSED_BYTES_MIN: u16 = 2048;

/// What the routes share.
#[derive(Debug)]
pub struct Api {
    engine: Arc<Engine>,
    access: Arc<Access>,
    places: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    queries: sql::Places,
    /// Answers that somebody may want to know the changes since.
    remembered: Mutex<Remembered>,
    requests: AtomicU64,
}

impl Api {
    /// An API over an engine, with places of its own: clients of one cannot fill those of another.
    pub fn new(engine: Arc<Engine>) -> Arc<Api> {
        Api::open_to(engine, Arc::default())
    }

    /// The same for those that `access` lets in.
    pub fn open_to(engine: Arc<Engine>, access: Arc<Access>) -> Arc<Api> {
        let places = Arc::new(Semaphore::new(ANSWERS_MAX));
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        let (queries, remembered) = (sql::Places::new(), Mutex::default());
        let requests = AtomicU64::new(0);
        Arc::new(Api { engine, access, places, streams, queries, remembered, requests })
    }

    /// The engine that it asks.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Requests that came in so far, refused ones included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Runs `work` where blocking is fine, once there is a place for its answer. It is told how long
    /// it has waited, and owns its place.
    async fn answer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Engine>, Turn) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let came = Instant::now();
        let place = timeout(ANSWER_WAIT_MAX, Arc::clone(&self.places).acquire_owned());
        let place = place.await.map_err(|_| Refused::busy())?.map_err(|_| Refused::busy())?;
        let engine = Arc::clone(&self.engine);
        let work = move || work(&engine, Turn { place, came });
        spawn_blocking(work).await.unwrap_or_else(|error| {
            tracing::error!("an answer failed: {error}");
            Err(Refused::bug())
        })
    }
}

/// The turn of one request: its place among the answers, and when it came.
struct Turn {
    place: OwnedSemaphorePermit,
    came: Instant,
}

impl Turn {
    /// What a table's age may be now, if it might be `max_age` when the request came.
    fn age_max(&self, max_age: Duration) -> Duration {
        max_age + self.came.elapsed()
    }
}

/// Every route of this API, with its checks, compression and headers.
pub fn router(api: Arc<Api>) -> Router {
    router_with(api, Router::new(), openapi::own_text())
}

/// The same with `more` routes, which get the same checks, and a `document` that tells of all.
pub fn router_with(api: Arc<Api>, more: Router, document: Bytes) -> Router {
    let compression = CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(SizeAbove::new(COMPRESSED_BYTES_MIN).and(ends));
    let guard = axum::middleware::from_fn_with_state(Arc::clone(&api), guard::guard);
    Router::new()
        .route("/", get(index))
        .route("/v2/rights", get(rights))
        .merge(v1::routes())
        .merge(v2::routes())
        .merge(deltas::routes())
        .merge(events::routes())
        .merge(open::routes())
        .merge(signals::routes())
        .merge(sql::routes())
        .merge(sysctl::routes())
        .merge(metrics::routes())
        .merge(openapi::routes(document))
        .merge(more.with_state(()))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(guard)
        .layer(compression)
        .with_state(api)
}

/// A compressor keeps what it gets until it has more; of an answer without an end nobody would hear.
fn ends(_: StatusCode, _: Version, _: &HeaderMap, extensions: &Extensions) -> bool {
    extensions.get::<Endless>().is_none()
}

/// What there is to ask for
#[utoipa::path(get, path = "/", responses((status = 200, body = Object)))]
async fn index() -> Json<serde_json::Value> {
    Json(json!({
        "name": "k2i",
        "version": env!("CARGO_PKG_VERSION"),
        "routes": {
            "/v2/proc": "the process table: ?columns=&filter=&sort=&limit=&group=&max_age_ms=; with ended=1 the processes that have ended; with since=GENERATION what has changed; with at=-600s or RFC 3339 what was recorded then",
            "/v2/proc/stream": "the same again and again, each time what has changed: ?interval_ms= and those of /v2/proc",
            "/v2/events": "processes that begin and end, as it happens: ?columns=&filter=",
            "/v2/proc/{pid}": "one process: all columns but the costly `listen` and `open_files`",
            "/v2/proc/{pid}/tree": "one process and its descendants",
            "/v2/proc/{id}/signal": "POST {\"signal\":\"TERM\"}: sends it, for who may; {id} is PID or PID@START",
            "/v2/proc/{pid}/files": "what a process has open: ?columns=&filter=&sort=&limit=&group=; also /v2/proc/{pid}/sockets",
            "/v2/sockets": "every socket of every process, in all network namespaces: ?columns=&filter=&sort=&limit=&group=&max_age_ms=",
            "/v2/files": "every open file of every process, likewise",
            "/v2/rights": "who you are and what you may",
            "/v2/sql": "POST {\"query\":\"SELECT …\"}: a query over the tables of /v2/sql/schema",
            "/v2/columns": "the columns of the process table; /v2/columns/sockets and /v2/columns/files of the others",
            "/v2/sysctl": "kernel parameters: ?pattern=net.ipv4.*; one with its value as /v2/sysctl/vm.swappiness",
            "/v2/history": "how far back at= reaches",
            "/v2/host": "the host: kernel, CPUs, memory, load, pressure",
            "/openapi.json": "what there is to ask for, as OpenAPI 3.1 describes it",
            "/metrics": "the host, groups of its processes and this server for a Prometheus; also /v2/metrics",
            "/v1/proc": "the process table as k2i 0.2 gave it, with its /v1/proc/{pid}, /v1/proc/cmd/{text}, /v1/proc/self",
        },
    }))
}

/// Who you are here, and what you may
#[utoipa::path(get, path = "/v2/rights", responses((status = 200, body = Object)))]
async fn rights(State(api): State<Arc<Api>>, request: Request) -> Response {
    let asker = asker(request.extensions());
    let rights = json!({
        "who": asker.who,
        "in_words": asker.who.to_string(),
        "role": asker.rights.role(),
        "scopes": asker.rights.scopes().collect::<Vec<_>>(),
        "command_lines": api.access.lines(&asker),
    });
    ([(header::CONTENT_TYPE, v2::JSON)], document(&rights)).into_response()
}

async fn no_route(uri: Uri) -> Refused {
    let detail = format!("there is nothing at `{}`; / lists what there is", uri.path());
    Refused::new(StatusCode::NOT_FOUND, "not-found", "There is no such address", detail)
}

async fn no_method(method: Method, uri: Uri) -> Refused {
    let detail = format!("`{}` does not take {method}; / lists what there is", uri.path());
    let title = "The method is not allowed here";
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", title, detail)
}

/// A process number from a piece of a path.
fn parse_pid(piece: Result<Path<String>, PathRejection>) -> Result<i32, Refused> {
    let Path(text) = piece.map_err(|error| Refused::bad_request(error.body_text()))?;
    let pid = text.parse::<i32>().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| {
        let detail = format!("`{}` is no process number", text.escape_debug());
        Refused::bad_request(detail)
    })
}
