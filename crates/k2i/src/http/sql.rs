//! `/v2/sql`: queries over the tables of this host, in SQL.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use kumo_sql::{
    Cell, Ended, Limits, Rows, Scan, ScanError, Source, SqlError, Stop, TIME_DEFAULT, TIME_MAX,
    Table, Wanted,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use utoipa::{OpenApi, ToSchema};

use super::v2::{Asked as Parameters, JSON};
use super::{ANSWER_WAIT_MAX, Api, Refused, accept, asker, chain, json_of};
use crate::encode::document;
use crate::host::now;
use crate::sql::{self, HostTables, Sight, TABLES};

/// Most queries of one [`Api`] under way at once. Each may hold
/// [`READ_BYTES_MAX`](crate::sql::READ_BYTES_MAX) and a thread; more of them would not be faster.
pub const QUERIES_MAX: usize = 4;

/// Paths of queries: they are posted, as they do not fit into an address, and change nothing.
pub(super) const PATHS: [&str; 3] = ["/v2/sql", "/v2/sql/scan", "/v2/all/sql"];

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v2/sql", post(query))
        .route("/v2/sql/schema", get(schema))
        .route("/v2/sql/scan", post(scan))
}

#[derive(OpenApi)]
#[openapi(paths(query, schema, scan))]
pub(super) struct Paths;

/// Places for queries.
#[derive(Clone, Debug)]
pub struct Places(Arc<Semaphore>);

impl Places {
    /// As many as there may be.
    #[expect(clippy::new_without_default, reason = "it is no value like others")]
    pub fn new() -> Places {
        Places(Arc::new(Semaphore::new(QUERIES_MAX)))
    }

    async fn one(&self) -> Result<OwnedSemaphorePermit, Refused> {
        let place = timeout(ANSWER_WAIT_MAX, Arc::clone(&self.0).acquire_owned()).await;
        place.map_err(|_| Refused::busy())?.map_err(|_| Refused::busy())
    }

    /// Runs a query where blocking is fine, once there is a place; it ends when nobody waits for it.
    ///
    /// # Errors
    /// What `work` says, or that the server is busy.
    pub async fn run<T: Send + 'static>(
        &self,
        limits: Limits,
        work: impl FnOnce(&Arc<Stop>) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let place = self.one().await?;
        let stop = limits.begin();
        let _ends = EndsIt(Arc::clone(&stop));
        let work = move || {
            let done = work(&stop);
            drop(place);
            done
        };
        spawn_blocking(work).await.unwrap_or_else(|error| {
            tracing::error!("a query failed: {error}");
            Err(Refused::bug())
        })
    }
}

/// Ends a query when its request is dropped, as it is when the client goes.
struct EndsIt(Arc<Stop>);

impl Drop for EndsIt {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A query, as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SqlAsked)]
pub struct Asked {
    /// The SQL.
    pub query: String,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
}

impl Asked {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// 400, with what is wrong.
    pub async fn of(request: Request) -> Result<Asked, Refused> {
        let form = "{\"query\":\"SELECT …\"}, perhaps with \"time_ms\"";
        json_of(request, form).await
    }

    /// How long it may take.
    ///
    /// # Errors
    /// 400 for more than there is.
    pub fn time(&self) -> Result<Duration, Refused> {
        let Some(time_ms) = self.time_ms else { return Ok(TIME_DEFAULT) };
        let time = Duration::from_millis(time_ms);
        if time.is_zero() || time > TIME_MAX {
            let most = TIME_MAX.as_millis();
            return Err(Refused::bad_request(format!("time_ms {time_ms} is not from 1 to {most}")));
        }
        Ok(time)
    }
}

/// What who makes a request may see.
fn sight(api: &Api, request: &Request) -> Sight {
    let asker = asker(request.extensions());
    Sight { rights: asker.rights, lines: api.access.lines(&asker) }
}

/// The answer to a query
///
/// Rows are objects whose values are numbers, texts and nulls; `/v2/sql/schema` lists the tables.
#[utoipa::path(
    post, path = "/v2/sql",
    request_body = Asked,
    responses((status = 200, body = Object)),
)]
async fn query(
    State(api): State<Arc<Api>>,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Refused> {
    accept::choose(&headers, &[JSON])?;
    Parameters::parse(&uri, &[])?;
    let sight = sight(&api, &request);
    let asked = Asked::of(request).await?;
    let (limits, engine) = (sql::limits(asked.time()?), Arc::clone(&api.engine));
    let work =
        move |stop: &Arc<Stop>| Ok(sql::document(engine, sight, &asked.query, &limits, stop)?);
    let body = api.queries.run(limits, work).await?;
    Ok(([(header::CONTENT_TYPE, JSON)], body).into_response())
}

/// The tables for queries in SQL, and their columns
#[utoipa::path(get, path = "/v2/sql/schema", responses((status = 200, body = Object)))]
async fn schema(uri: Uri, headers: HeaderMap) -> Result<Response, Refused> {
    accept::choose(&headers, &[JSON])?;
    Parameters::parse(&uri, &[])?;
    Ok(Json(schema_document(TABLES)).into_response())
}

/// Tables as a document.
pub fn schema_document(tables: &[Table]) -> serde_json::Value {
    let table = |table: &Table| {
        let column = |column: &kumo_sql::Column| {
            json!({
                "name": column.name, "type": column.kind.name(), "hidden": column.is_hidden,
                "key": column.role.is_pushed(), "about": column.about,
            })
        };
        let columns: Vec<_> = table.columns.iter().map(column).collect();
        json!({ "name": table.name, "about": table.about, "columns": columns })
    };
    json!({ "tables": tables.iter().map(table).collect::<Vec<_>>() })
}

/// What one node asks another for a table of many hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanAsked {
    /// The table.
    pub table: String,
    /// Names of the columns; there may be none, for rows that are only counted.
    pub columns: Vec<String>,
    /// Conditions: columns and their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wanted: Vec<(String, Value)>,
    /// So many rows are enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// How long it may take.
    pub time_ms: u64,
}

/// What the other answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScanAnswer {
    /// When it was read, RFC 3339.
    pub as_of: String,
    /// What could not be seen, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The rows, with the columns in the order that was asked for.
    pub rows: Vec<Vec<Value>>,
}

/// A value on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// None.
    Null,
    /// A whole number.
    Int(i64),
    /// A number.
    Real(f64),
    /// A text.
    Text(String),
}

impl From<Cell> for Value {
    fn from(cell: Cell) -> Value {
        match cell {
            Cell::Null => Value::Null,
            Cell::Int(number) => Value::Int(number),
            Cell::Real(number) => Value::Real(number),
            Cell::Text(text) => Value::Text(text.into()),
        }
    }
}

impl From<Value> for Cell {
    fn from(value: Value) -> Cell {
        match value {
            Value::Null => Cell::Null,
            Value::Int(number) => Cell::Int(number),
            Value::Real(number) => Cell::Real(number),
            Value::Text(text) => Cell::Text(text.into()),
        }
    }
}

/// Rows of one table, for a node that puts those of many hosts together
#[utoipa::path(
    post, path = "/v2/sql/scan",
    request_body(content = Object),
    responses((status = 200, body = Object)),
)]
async fn scan(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Refused> {
    let sight = sight(&api, &request);
    let asked: ScanAsked = json_of(request, "a scan of a table").await?;
    let time = Duration::from_millis(asked.time_ms).min(TIME_MAX);
    let (limits, engine) = (sql::limits(time), Arc::clone(&api.engine));
    let work = move |stop: &Arc<Stop>| {
        let as_of = now();
        let tables = HostTables::new(engine, sight);
        let rows = read(&tables, &asked, &limits, stop)?;
        let notes = std::mem::take(&mut *tables.notes());
        Ok(document(&ScanAnswer { as_of, notes, rows }))
    };
    let body = api.queries.run(limits, work).await?;
    Ok(([(header::CONTENT_TYPE, JSON)], body).into_response())
}

fn read(
    source: &HostTables,
    asked: &ScanAsked,
    limits: &Limits,
    stop: &Arc<Stop>,
) -> Result<Vec<Vec<Value>>, Refused> {
    let table = TABLES.iter().find(|table| table.name == asked.table).ok_or_else(|| {
        let name = asked.table.escape_debug();
        Refused::bad_request(format!("this host has no table `{name}`; its version may be older"))
    })?;
    let place = |name: &String| {
        table.column(name).ok_or_else(|| {
            let (name, table) = (name.escape_debug(), table.name);
            let detail =
                format!("this host has no column `{table}.{name}`; its version may be older");
            Refused::bad_request(detail)
        })
    };
    let asked_for: Vec<usize> = asked.columns.iter().map(place).collect::<Result<_, _>>()?;
    let mut wanted = Vec::new();
    for (name, value) in &asked.wanted {
        wanted.push(Wanted { column: place(name)?, value: value.clone().into() });
    }
    let mut columns: Vec<usize> =
        asked_for.iter().copied().chain(wanted.iter().map(|wanted| wanted.column)).collect();
    columns.sort_unstable();
    columns.dedup();
    let scan = Scan { table, columns: &columns, wanted: &wanted, limit: asked.limit };
    let mut rows = Rows::of(&scan, stop);
    match source.scan(&scan, &mut rows) {
        Ok(()) | Err(ScanError::Ended(Ended::Enough)) => {}
        Err(ScanError::Ended(Ended::Time)) => return Err(SqlError::Time(limits.time).into()),
        Err(ScanError::Ended(Ended::Memory)) => return Err(SqlError::Memory.into()),
        Err(ScanError::Ended(Ended::Stopped)) => return Err(SqlError::Stopped.into()),
        Err(ScanError::Failed(source)) => {
            return Err(SqlError::Table { table: table.name, source }.into());
        }
    }
    let order: Vec<usize> =
        asked_for.iter().filter_map(|column| columns.binary_search(column).ok()).collect();
    Ok(rows.iter().map(|row| order.iter().map(|at| row[*at].clone().into()).collect()).collect())
}

impl From<SqlError> for Refused {
    fn from(error: SqlError) -> Refused {
        let (status, name, title) = match &error {
            SqlError::Wrong { .. } => {
                (StatusCode::BAD_REQUEST, "bad-sql", "The query makes no sense")
            }
            SqlError::Denied(_) => {
                (StatusCode::BAD_REQUEST, "sql-denied", "The query does what none may")
            }
            SqlError::TooLarge { .. } => {
                (StatusCode::BAD_REQUEST, "sql-large", "The answer is too large")
            }
            SqlError::Time(_) | SqlError::Stopped => {
                (StatusCode::SERVICE_UNAVAILABLE, "sql-slow", "The query took too long")
            }
            SqlError::Memory => {
                (StatusCode::SERVICE_UNAVAILABLE, "sql-memory", "The query takes too much memory")
            }
            SqlError::Table { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "sql-table", "A table could not be read")
            }
            SqlError::Failed(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "sql-failed", "The query failed")
            }
        };
        Refused::new(status, name, title, chain(&error))
    }
}
