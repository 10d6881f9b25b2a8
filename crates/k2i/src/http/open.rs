//! `/v2/sockets`, `/v2/files` and `/v2/proc/{pid}/files`: what processes hold open.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use axum::routing::get;
use kumo_abi::relation::{OPEN_FILES, OPEN_SOCKETS};
use kumo_abi::{ProcessId, Relation};
use utoipa::{IntoParams, OpenApi};

use super::body::{Pieces, begin};
use super::guard::Shown;
use super::openapi::Rows;
use super::v2::{JSON, NDJSON, meta_headers, respond};
use super::{Api, Asked, OPEN_PARAMETERS, Refused, accept, chain, parse_pid};
use crate::engine::{Format, Question};
use crate::tabular::TableAnswer;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v2/sockets", get(sockets))
        .route("/v2/files", get(files))
        .route("/v2/proc/{pid}/sockets", get(sockets_of))
        .route("/v2/proc/{pid}/files", get(files_of))
}

type Reply = Result<Response, Refused>;
type Piece = Result<Path<String>, PathRejection>;

#[derive(OpenApi)]
#[openapi(paths(sockets, files, sockets_of, files_of))]
pub(super) struct Paths;

/// The parameters of a query for what is open: [`OPEN_PARAMETERS`], as the document shows them.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(crate) struct OpenParameters {
    /// Columns with commas in between, or aggregates: `count()`, `sum(COLUMN)`, `max(COLUMN)`; with `+`
    /// in front they are added to the usual ones
    columns: Option<String>,
    /// A condition in CEL over the columns
    filter: Option<String>,
    /// Columns to sort by, each with `-` in front for the largest first
    sort: Option<String>,
    /// How many rows at most
    #[param(minimum = 1, maximum = 4_294_967_295_u32)]
    limit: Option<u64>,
    /// Columns to group by; others are aggregates then
    group: Option<String>,
    /// How old what is shown may be, in milliseconds
    #[param(minimum = 0, maximum = 60_000)]
    max_age_ms: Option<u64>,
}

/// Every socket of every process, in all network namespaces
#[utoipa::path(get, path = "/v2/sockets", params(OpenParameters), responses((status = 200, content((Rows = "application/json"), (String = "application/x-ndjson")))))]
async fn sockets(State(api): State<Arc<Api>>, shown: Shown, uri: Uri, headers: HeaderMap) -> Reply {
    rows(api, shown, &OPEN_SOCKETS, None, uri, headers).await
}

/// Every open file of every process
#[utoipa::path(get, path = "/v2/files", params(OpenParameters), responses((status = 200, content((Rows = "application/json"), (String = "application/x-ndjson")))))]
async fn files(State(api): State<Arc<Api>>, shown: Shown, uri: Uri, headers: HeaderMap) -> Reply {
    rows(api, shown, &OPEN_FILES, None, uri, headers).await
}

/// The sockets of a process
#[utoipa::path(get, path = "/v2/proc/{pid}/sockets", params(OpenParameters, ("pid" = String, Path, description = "Process number, or PID@START")), responses((status = 200, content((Rows = "application/json"), (String = "application/x-ndjson")))))]
async fn sockets_of(
    State(api): State<Arc<Api>>,
    shown: Shown,
    pid: Piece,
    uri: Uri,
    headers: HeaderMap,
) -> Reply {
    rows(api, shown, &OPEN_SOCKETS, Some(Which::parse(pid)?), uri, headers).await
}

/// What a process has open
#[utoipa::path(get, path = "/v2/proc/{pid}/files", params(OpenParameters, ("pid" = String, Path, description = "Process number, or PID@START")), responses((status = 200, content((Rows = "application/json"), (String = "application/x-ndjson")))))]
async fn files_of(
    State(api): State<Arc<Api>>,
    shown: Shown,
    pid: Piece,
    uri: Uri,
    headers: HeaderMap,
) -> Reply {
    rows(api, shown, &OPEN_FILES, Some(Which::parse(pid)?), uri, headers).await
}

/// A process, by its number or by its identity.
#[derive(Clone, Copy, Debug)]
struct Which {
    pid: i32,
    id: Option<ProcessId>,
}

impl Which {
    fn parse(piece: Piece) -> Result<Which, Refused> {
        match &piece {
            Ok(Path(text)) if text.contains('@') => {
                let id: ProcessId =
                    text.parse().map_err(|error| Refused::bad_request(chain(&error)))?;
                Ok(Which { pid: id.pid, id: Some(id) })
            }
            _ => Ok(Which { pid: parse_pid(piece)?, id: None }),
        }
    }
}

async fn rows(
    api: Arc<Api>,
    Shown(lines): Shown,
    relation: &'static Relation,
    which: Option<Which>,
    uri: Uri,
    headers: HeaderMap,
) -> Reply {
    let form = accept::choose(&headers, &[JSON, NDJSON])?;
    let Asked { query, max_age } = Asked::parse(&uri, OPEN_PARAMETERS)?;
    let query = relation.parse(&query)?;
    api.answer(move |engine, turn| {
        let max_age = turn.age_max(max_age);
        if let Some(Which { pid, id }) = which {
            let now = engine.identity_of(pid)?.ok_or_else(|| Refused::no_process(pid))?;
            if id.is_some_and(|id| !id.same(&now)) {
                let detail = format!("{pid} is the number of {now} now; who you mean has ended");
                let title = "The number belongs to another process";
                return Err(Refused::new(StatusCode::CONFLICT, "other-process", title, detail));
            }
        }
        let pids = which.map(|which| vec![which.pid]);
        let answer = engine.ask_open(relation, &Question { query, pids, max_age, lines })?;
        let headers = meta_headers(&answer.meta);
        let format = if form == NDJSON { Format::NdJson } else { Format::Json };
        Ok(respond(form, headers, begin(Encoded { answer, format }, turn.place)))
    })
    .await
}

/// An answer and the form that it is written in.
struct Encoded {
    answer: TableAnswer,
    format: Format,
}

impl Pieces for Encoded {
    fn write_next(&mut self, out: &mut Vec<u8>) -> bool {
        self.answer.write_next(self.format, out)
    }
}
