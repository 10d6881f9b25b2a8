//! `/v2`: queries over the process table, one process, its tree, the columns, the host.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query as UrlQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use kumo_abi::limits::MAX_AGE_MS_MAX;
use kumo_abi::proc::{COLUMNS_DEFAULT, Column, PROC};
use kumo_abi::relation::{PROCESSES, RELATIONS};
use kumo_abi::{Meta, Query, QueryText, Relation};
use serde::Deserialize;
use serde_json::json;
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::body::{Pieces, Whole, begin};
use super::guard::Shown;
use super::openapi::{ProcessRow, Rows};
use super::{Api, Refused, accept, deltas, parse_pid};
use crate::encode::document;
use crate::engine::{Answer, Format, Question};
use crate::host::HostReport;
use crate::table::Parts;

pub(super) const JSON: &str = "application/json";
pub(super) const NDJSON: &str = "application/x-ndjson";

/// Deepest nesting of a tree. A tree nests two levels of JSON a generation, and common readers stop
/// at 128 levels; real trees have a dozen generations.
pub(crate) const TREE_DEPTH_MAX: usize = 60;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v2/proc", get(table))
        .route("/v2/proc/{pid}", get(process))
        .route("/v2/proc/{pid}/tree", get(tree))
        .route("/v2/columns", get(columns))
        .route("/v2/columns/{table}", get(columns_of))
        .route("/v2/host", get(host))
        .route("/v2/history", get(history))
}

#[derive(OpenApi)]
#[openapi(paths(table, process, tree, columns, columns_of, host, history))]
pub(super) struct Paths;

/// The parameters of a query for rows: [`QUERY_PARAMETERS`], as the document shows them.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub struct QueryParameters {
    /// Columns with commas in between, or aggregates: `count()`, `sum(COLUMN)`, `max(COLUMN)`; with `+`
    /// in front they are added to the usual ones
    columns: Option<String>,
    /// A condition in CEL over the columns, such as `rss > 100*MiB && user == "root"`
    filter: Option<String>,
    /// Columns to sort by, each with `-` in front for the largest first
    sort: Option<String>,
    /// How many rows at most, of all hosts together where many are asked
    #[param(minimum = 1, maximum = 4_294_967_295_u32)]
    limit: Option<u64>,
    /// Columns to group by; others are aggregates then
    group: Option<String>,
    /// 1 for processes that have ended
    #[param(pattern = "^[01]$")]
    ended: Option<String>,
    /// The table as it was then: RFC 3339, milliseconds since the Unix epoch, or a span before now: -600s
    at: Option<String>,
    /// How old the table may be, in milliseconds
    #[param(minimum = 0, maximum = 60_000)]
    max_age_ms: Option<u64>,
}

/// What can be said of a question about one process.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it is its form that is shown")]
struct OneParameters {
    /// Columns with commas in between
    columns: Option<String>,
    /// How old the table may be, in milliseconds
    #[param(minimum = 0, maximum = 60_000)]
    max_age_ms: Option<u64>,
}

/// A process and its children, they with theirs.
#[derive(ToSchema)]
#[schema(no_recursion)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct ProcessTree {
    pid: i32,
    ppid: i32,
    children: Vec<ProcessTree>,
    /// How many descendants are too deep to be shown
    #[schema(required = false)]
    descendants_left_out: u64,
}

/// What can be asked of the process table.
#[derive(ToSchema)]
#[expect(dead_code, clippy::struct_field_names, reason = "it is its form that is shown")]
pub(super) struct Columns {
    table: String,
    /// Those that are shown where nobody says which
    default: Vec<String>,
    aggregates: Vec<String>,
    columns: Vec<ColumnShown>,
}

/// A column of a table.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is its form that is shown")]
pub(super) struct ColumnShown {
    name: String,
    aliases: Vec<String>,
    kind: String,
    unit: String,
    heading: String,
    about: String,
}

type Reply = Result<Response, Refused>;

/// Rows of the process table, as a query asks for them
///
/// With `since` what has changed since that generation of the answer to the same question. As lines
/// (NDJSON) what an answer says about itself is in headers.
#[utoipa::path(
    get, path = "/v2/proc",
    params(QueryParameters, (
        "since" = Option<u64>, Query, description = "A generation, as an earlier answer gave it; 0 begins",
        minimum = 0,
    )),
    responses(
        (status = 200, content((Rows = "application/json"), (String = "application/x-ndjson"))),
        (status = 501, description = "Events are not taken here, so that ended processes are not known"),
    ),
)]
async fn table(
    State(api): State<Arc<Api>>,
    Shown(lines): Shown,
    uri: Uri,
    headers: HeaderMap,
) -> Reply {
    let (since, pairs) = deltas::take_since(parameters(&uri, &with("since"))?)?;
    if let Some(since) = since {
        return deltas::since(api, &headers, Asked::of(pairs)?, since, lines).await;
    }
    let form = accept::choose(&headers, &[JSON, NDJSON])?;
    let Asked { query, max_age } = Asked::of(pairs)?;
    let query = Query::parse(&query, &PROC, COLUMNS_DEFAULT)?;
    api.answer(move |engine, turn| {
        let max_age = turn.age_max(max_age);
        let answer = engine.ask(Question { query, pids: None, max_age, lines })?;
        let headers = meta_headers(&answer.meta);
        let format = if form == NDJSON { Format::NdJson } else { Format::Json };
        Ok(respond(form, headers, begin(Encoded { answer, format }, turn.place)))
    })
    .await
}

/// One process with all columns but costly ones, or those asked for
#[utoipa::path(
    get, path = "/v2/proc/{pid}",
    params(("pid" = i32, Path, description = "Process number", minimum = 1), OneParameters),
    responses((status = 200, body = ProcessRow)),
)]
async fn process(
    State(api): State<Arc<Api>>,
    Shown(lines): Shown,
    pid: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Reply {
    let (pid, query, max_age) =
        about_one(pid, &uri, &headers, |columns| columns.unwrap_or_else(all_columns))?;
    api.answer(move |engine, turn| {
        let max_age = turn.age_max(max_age);
        let pids = Some(vec![pid]);
        let mut answer = engine.ask(Question { query, pids, max_age, lines })?;
        let row = write_whole(&mut answer);
        if row.is_empty() {
            return Err(Refused::no_process(pid));
        }
        Ok(respond(JSON, meta_headers(&answer.meta), begin(Whole(row), turn.place)))
    })
    .await
}

/// One process with its `children`, they with theirs
#[utoipa::path(
    get, path = "/v2/proc/{pid}/tree",
    params(("pid" = i32, Path, description = "Process number", minimum = 1), OneParameters),
    responses((status = 200, body = ProcessTree)),
)]
async fn tree(
    State(api): State<Arc<Api>>,
    Shown(lines): Shown,
    pid: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Reply {
    if parameters(&uri, &["columns", "at", "max_age_ms"])?.iter().any(|(name, _)| name == "at") {
        let detail = "a tree is of now; /v2/proc?at= has every process with its ppid";
        return Err(Refused::bad_request(detail));
    }
    let (root, query, max_age) = about_one(pid, &uri, &headers, |columns| {
        // The rows must say whose children they are.
        let columns = columns.as_deref().unwrap_or(COLUMNS_DEFAULT);
        with_columns(columns, &[Column::Pid, Column::Ppid])
    })?;
    api.answer(move |engine, turn| {
        let seen = engine.table(turn.age_max(max_age), Parts::STAT)?;
        let parents: Vec<_> = seen.rows.iter().map(|row| (row.pid, row.ppid)).collect();
        let pids = family(root, &parents);
        let max_age = turn.age_max(max_age);
        let mut answer = engine.ask(Question { query, pids: Some(pids), max_age, lines })?;
        let body = write_tree(root, &write_whole(&mut answer));
        let body = body.ok_or_else(|| Refused::no_process(root))?;
        Ok(respond(JSON, meta_headers(&answer.meta), begin(Whole(body), turn.place)))
    })
    .await
}

/// What is asked of one process or its tree: which process, what, and how old it may be. `columns`
/// makes the list of columns from the one of the address.
fn about_one(
    pid: Result<Path<String>, PathRejection>,
    uri: &Uri,
    headers: &HeaderMap,
    columns: impl FnOnce(Option<String>) -> String,
) -> Result<(i32, Query, Duration), Refused> {
    accept::choose(headers, &[JSON])?;
    let pid = parse_pid(pid)?;
    let Asked { mut query, max_age } = Asked::parse(uri, &["columns", "at", "max_age_ms"])?;
    query.columns = Some(columns(query.columns.take()));
    let query = Query::parse(&query, &PROC, COLUMNS_DEFAULT)?;
    if query.is_grouped() {
        let detail = "one process and its tree have no aggregates; ask /v2/proc for them";
        return Err(Refused::bad_request(detail));
    }
    Ok((pid, query, max_age))
}

/// The columns of the process table
#[utoipa::path(get, path = "/v2/columns", responses((status = 200, body = Columns)))]
async fn columns(uri: Uri, headers: HeaderMap) -> Reply {
    describe(&PROCESSES, &uri, &headers)
}

/// The columns of another table
#[utoipa::path(
    get, path = "/v2/columns/{table}",
    params(("table" = String, Path, description = "proc, sockets or files")),
    responses((status = 200, body = Columns)),
)]
async fn columns_of(
    table: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Reply {
    let Path(table) = table.map_err(|error| Refused::bad_request(error.body_text()))?;
    let relation = RELATIONS.into_iter().find(|relation| relation.path == table);
    let relation = relation.ok_or_else(|| {
        let names: Vec<_> = RELATIONS.iter().map(|relation| relation.path).collect();
        let detail =
            format!("there is no table `{}`; there are {}", table.escape_debug(), names.join(", "));
        Refused::new(StatusCode::NOT_FOUND, "not-found", "There is no such address", detail)
    })?;
    describe(relation, &uri, &headers)
}

fn describe(relation: &Relation, uri: &Uri, headers: &HeaderMap) -> Reply {
    accept::choose(headers, &[JSON])?;
    Asked::parse(uri, &[])?;
    let columns: Vec<_> = relation
        .schema
        .columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "aliases": column.aliases,
                "kind": column.kind.name(),
                "unit": column.unit.name(),
                "heading": column.heading,
                "about": column.about,
            })
        })
        .collect();
    let default: Vec<_> = relation.columns_default.split(',').collect();
    let aggregates = ["count()", "sum(COLUMN)", "max(COLUMN)"];
    let described = json!({
        "table": relation.schema.name, "default": default, "aggregates": aggregates, "columns": columns,
    });
    Ok(Json(described).into_response())
}

/// The host: kernel, CPUs, memory, load, pressure
#[utoipa::path(get, path = "/v2/host", responses((status = 200, body = HostReport)))]
async fn host(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Reply {
    accept::choose(&headers, &[JSON])?;
    Asked::parse(&uri, &[])?;
    let report = api.answer(|engine, _turn| Ok(HostReport::read(engine)?)).await?;
    Ok(([(header::CONTENT_TYPE, JSON)], document(&report)).into_response())
}

/// How far back `at` reaches, and what that costs
#[utoipa::path(
    get,
    path = "/v2/history",
    params((
        "moments" = Option<u8>, Query, description = "1 lists of when each record is, in milliseconds since 1970",
        minimum = 0, maximum = 1,
    )),
    responses((status = 200, body = Object)),
)]
async fn history(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Reply {
    accept::choose(&headers, &[JSON])?;
    let mut asked = parameters(&uri, &["moments"])?;
    let each = match asked.pop() {
        Some((name, value)) => parse_flag(&name, &value)?,
        None => false,
    };
    let engine = api.engine();
    let report = if each { engine.history_of_all() } else { engine.history_report() };
    let report = document(&report);
    Ok(([(header::CONTENT_TYPE, JSON)], report).into_response())
}

/// What the query of an address asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// The query; not checked yet.
    pub query: QueryText,
    /// How old the table may be.
    pub max_age: Duration,
}

/// The parameters of a query for rows.
pub const QUERY_PARAMETERS: &[&str] =
    &["columns", "filter", "sort", "limit", "group", "ended", "at", "max_age_ms"];

/// The same for tables of what is there now.
pub const OPEN_PARAMETERS: &[&str] = &["columns", "filter", "sort", "limit", "group", "max_age_ms"];

/// These, and one more.
pub(super) fn with(more: &'static str) -> Vec<&'static str> {
    QUERY_PARAMETERS.iter().copied().chain([more]).collect()
}

impl Asked {
    /// Reads the parameters of an address; others than those `known` here are refused.
    ///
    /// # Errors
    /// 400, with what is wrong.
    pub fn parse(uri: &Uri, known: &[&str]) -> Result<Asked, Refused> {
        Asked::of(parameters(uri, known)?)
    }

    /// Reads parameters that stand in [`QUERY_PARAMETERS`].
    ///
    /// # Errors
    /// As [`Asked::parse`].
    pub fn of(pairs: Vec<(String, String)>) -> Result<Asked, Refused> {
        let mut asked = Asked::default();
        for (name, value) in pairs {
            match name.as_str() {
                "columns" => asked.query.columns = Some(plus(value)),
                "filter" => asked.query.filter = Some(value),
                "sort" => asked.query.sort = Some(value),
                "limit" => asked.query.limit = Some(value),
                "group" => asked.query.group = Some(value),
                "at" => asked.query.at = Some(value),
                "ended" => asked.query.ended = parse_flag(&name, &value)?,
                _ => asked.max_age = parse_max_age(&value)?,
            }
        }
        Ok(asked)
    }
}

/// The parameters of an address, each once; others than those `known` are refused.
///
/// # Errors
/// 400, with what is wrong.
pub fn parameters(uri: &Uri, known: &[&str]) -> Result<Vec<(String, String)>, Refused> {
    let pairs = UrlQuery::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|error| Refused::bad_request(error.body_text()))?;
    for (index, (name, _)) in pairs.0.iter().enumerate() {
        if !known.contains(&name.as_str()) {
            return Err(unknown_parameter(name, known));
        }
        if pairs.0[..index].iter().any(|(earlier, _)| earlier == name) {
            return Err(Refused::bad_request(format!("parameter `{name}` stands twice")));
        }
    }
    Ok(pairs.0)
}

/// A `+` in an address is read as a blank, as forms write it. In front of a list of columns only the
/// plus makes sense, and `?columns=+exe` is what people write.
pub(super) fn plus(columns: String) -> String {
    match columns.strip_prefix(' ') {
        Some(rest) => format!("+{rest}"),
        None => columns,
    }
}

fn parse_flag(name: &str, text: &str) -> Result<bool, Refused> {
    match text {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => Err(Refused::bad_request(format!(
            "{name} `{}` is neither 1 nor 0",
            text.escape_debug()
        ))),
    }
}

fn parse_max_age(text: &str) -> Result<Duration, Refused> {
    let number = text.parse::<u64>().ok().filter(|age_ms| *age_ms <= MAX_AGE_MS_MAX);
    number.map(Duration::from_millis).ok_or_else(|| {
        let detail =
            format!("max_age_ms `{text}` is no number of milliseconds from 0 to {MAX_AGE_MS_MAX}");
        Refused::bad_request(detail)
    })
}

fn unknown_parameter(name: &str, known: &[&str]) -> Refused {
    let known = match known {
        [] => "it takes none".to_owned(),
        known => format!("there are {}", known.join(", ")),
    };
    Refused::bad_request(format!("unknown parameter `{name}`; {known}"))
}

/// Every column that is not too costly, for an answer about one process.
fn all_columns() -> String {
    let all = Column::ALL.iter().filter(|column| !Column::COSTLY.contains(column));
    let names: Vec<_> = all.map(|column| column.spec().name).collect();
    names.join(",")
}

/// The list of columns with `needed` ones in front, where it lacks them.
pub(super) fn with_columns(columns: &str, needed: &[Column]) -> String {
    let columns = match columns.strip_prefix('+') {
        Some(added) => format!("{COLUMNS_DEFAULT},{added}"),
        None => columns.to_owned(),
    };
    let has = |column: &Column| {
        columns.split(',').any(|name| PROC.find(name.trim()) == Some(column.index()))
    };
    let mut names: Vec<_> = needed.iter().filter(|c| !has(c)).map(|c| c.spec().name).collect();
    names.push(&columns);
    names.join(",")
}

/// An answer and the form that it is written in.
struct Encoded {
    answer: Answer,
    format: Format,
}

impl Pieces for Encoded {
    fn write_next(&mut self, out: &mut Vec<u8>) -> bool {
        self.answer.write_next(self.format, out)
    }
}

/// All rows of an answer, one a line.
fn write_whole(answer: &mut Answer) -> Vec<u8> {
    let mut out = Vec::new();
    while answer.write_next(Format::NdJson, &mut out) {}
    out
}

pub(super) fn respond(form: &'static str, headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(form));
    response
}

/// What an answer says about itself, as headers: lines of rows have no other place for it.
pub(super) fn meta_headers(meta: &Meta) -> HeaderMap {
    let texts = [
        (HeaderName::from_static("kumo-dc"), &meta.dc),
        (HeaderName::from_static("kumo-host"), &meta.host),
        (HeaderName::from_static("kumo-boot-id"), &meta.boot_id),
        (HeaderName::from_static("kumo-collector"), &meta.collector),
        (HeaderName::from_static("kumo-as-of"), &meta.as_of),
    ];
    let numbers = [
        (HeaderName::from_static("kumo-generation"), meta.generation),
        (HeaderName::from_static("kumo-scan-us"), meta.scan_us),
        (HeaderName::from_static("kumo-processes"), meta.processes),
        (HeaderName::from_static("kumo-matched"), meta.matched),
    ];
    let mut headers = HeaderMap::with_capacity(16);
    for (name, text) in texts {
        // A name that no header can hold is left out here; a JSON body still has it.
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    }
    headers.extend(numbers.map(|(name, number)| (name, HeaderValue::from(number))));
    if meta.lost > 0 {
        headers.insert(HeaderName::from_static("kumo-lost"), HeaderValue::from(meta.lost));
    }
    if let Some(unseen) = meta.unseen.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
        headers.insert(HeaderName::from_static("kumo-unseen"), unseen);
    }
    headers
}

/// A process and all its descendants, given who is whose parent. Parents that form a ring, as no
/// kernel makes them but two moments of one table might, are visited once.
fn family(root: i32, parents: &[(i32, i32)]) -> Vec<i32> {
    let children = children_of(parents);
    let mut family = vec![root];
    let mut next = 0;
    let mut seen: std::collections::HashSet<i32> = [root].into();
    while let Some(parent) = family.get(next) {
        let new = children.get(parent).into_iter().flatten().filter(|pid| seen.insert(**pid));
        let new: Vec<i32> = new.copied().collect();
        family.extend(new);
        next += 1;
    }
    family
}

fn children_of(parents: &[(i32, i32)]) -> HashMap<i32, Vec<i32>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (pid, ppid) in parents {
        children.entry(*ppid).or_default().push(*pid);
    }
    children
}

/// How many descendants each process of the family of `root` has. A ring ends where it began.
fn descendants(root: i32, parents: &[(i32, i32)]) -> HashMap<i32, usize> {
    let parent_of: HashMap<i32, i32> = parents.iter().copied().collect();
    let mut counts: HashMap<i32, usize> = HashMap::new();
    // Children stand behind their parents, so that each is complete before it is added.
    for pid in family(root, parents).into_iter().skip(1).rev() {
        let below = counts.get(&pid).copied().unwrap_or(0);
        if let Some(parent) = parent_of.get(&pid) {
            *counts.entry(*parent).or_default() += below + 1;
        }
    }
    counts
}

/// What the writer of a tree must know of a row.
#[derive(Deserialize)]
struct Link {
    pid: i32,
    ppid: i32,
}

/// A step of writing a tree: a process begins, or one ends.
enum Step {
    Open(i32),
    Close,
}

/// Nests rows, one JSON object a line, below the one of `root`; `None` if that is not among them.
/// Below [`TREE_DEPTH_MAX`] generations descendants are only counted, as `descendants_left_out`.
fn write_tree(root: i32, rows: &[u8]) -> Option<Vec<u8>> {
    let lines = rows.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut by_pid: HashMap<i32, &[u8]> = HashMap::new();
    let mut parents = Vec::new();
    for line in lines {
        let link: Link = serde_json::from_slice(line).ok()?;
        by_pid.insert(link.pid, line);
        parents.push((link.pid, link.ppid));
    }
    let mut children = children_of(&parents);
    // Needed for few trees, and then for all of it at once.
    let counts = OnceCell::new();
    let mut out = Vec::with_capacity(rows.len() + 32 * by_pid.len());
    by_pid.get(&root)?;
    let mut steps = vec![Step::Open(root)];
    let mut depth = 0;
    while let Some(step) = steps.pop() {
        let Step::Open(pid) = step else {
            out.extend_from_slice(b"]}");
            depth -= 1;
            continue;
        };
        // A row is written once, so that a ring ends.
        let Some(row) = by_pid.remove(&pid) else { continue };
        if out.last() == Some(&b'}') {
            out.push(b',');
        }
        out.extend_from_slice(row.strip_suffix(b"}")?);
        let below = children.remove(&pid).unwrap_or_default();
        if depth + 1 == TREE_DEPTH_MAX && !below.is_empty() {
            let counts = counts.get_or_init(|| descendants(root, &parents));
            let left_out = counts.get(&pid).copied().unwrap_or(0);
            out.extend_from_slice(format!(",\"descendants_left_out\":{left_out}").as_bytes());
            out.extend_from_slice(b",\"children\":[]}");
            continue;
        }
        out.extend_from_slice(b",\"children\":[");
        depth += 1;
        steps.push(Step::Close);
        steps.extend(below.into_iter().rev().map(Step::Open));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;

    fn parse(query: &str) -> Result<Asked, String> {
        let uri = format!("/v2/proc?{query}").parse().expect("an address");
        Asked::parse(&uri, QUERY_PARAMETERS)
            .map_err(|refused| format!("{:?}", refused.into_response().status()))
    }

    #[test]
    fn addresses() {
        let asked = parse("columns=pid,cpu&filter=cpu%20%3E%201.0%20%26%26%20pid%20%2B%201%20%3E%203&sort=-cpu&limit=20&max_age_ms=500")
            .expect("a good query");
        let some = |text: &str| Some(text.to_owned());
        let query = QueryText {
            columns: some("pid,cpu"),
            filter: some("cpu > 1.0 && pid + 1 > 3"),
            sort: some("-cpu"),
            limit: some("20"),
            group: None,
            ended: false,
            at: None,
        };
        assert_eq!(asked, Asked { query, max_age: Duration::from_millis(500) });
        for columns in ["columns=+exe", "columns=%2Bexe"] {
            let asked = parse(columns).expect(columns);
            assert_eq!(asked.query.columns.as_deref(), Some("+exe"), "for {columns}");
        }
        for bad in ["colums=pid", "limit=1&limit=2", "max_age_ms=-1", "max_age_ms=60001", "=", "a"]
        {
            assert_eq!(parse(bad), Err("400".to_owned()), "for {bad}");
        }
    }

    #[test]
    fn a_tree_lists_what_it_nests_by() {
        let cases = [
            ("comm", "pid,ppid,comm"),
            ("comm, PID", "ppid,comm, PID"),
            ("parent,tgid", "parent,tgid"),
        ];
        for (columns, want) in cases {
            assert_eq!(with_columns(columns, &[Column::Pid, Column::Ppid]), want);
        }
        let added = with_columns("+exe", &[Column::Pid]);
        assert_eq!(added, format!("{COLUMNS_DEFAULT},exe"));
    }

    fn rows(links: &[(i32, i32)]) -> Vec<u8> {
        let row = |(pid, ppid): &(i32, i32)| format!("{{\"pid\":{pid},\"ppid\":{ppid}}}\n");
        links.iter().map(row).collect::<String>().into_bytes()
    }

    #[test]
    fn trees() {
        let links = [(1, 0), (2, 1), (3, 1), (4, 2), (5, 9)];
        let tree = write_tree(1, &rows(&links)).expect("the root is there");
        let want = r#"{"pid":1,"ppid":0,"children":[{"pid":2,"ppid":1,"children":[{"pid":4,"ppid":2,"children":[]}]},{"pid":3,"ppid":1,"children":[]}]}"#;
        assert_eq!(String::from_utf8_lossy(&tree), want);
        assert_eq!(family(1, &links), [1, 2, 3, 4]);
        assert_eq!(write_tree(7, &rows(&links)), None);

        let ring = [(1, 3), (2, 1), (3, 2)];
        assert_eq!(family(2, &ring), [2, 3, 1]);
        let tree = write_tree(1, &rows(&ring)).expect("the root is there");
        serde_json::from_slice::<serde_json::Value>(&tree).expect("a ring is cut");
    }

    #[test]
    fn a_tree_deeper_than_readers_can_read_is_cut() {
        let links: Vec<_> = (1..=100_000).map(|pid| (pid, pid - 1)).collect();
        let tree = write_tree(1, &rows(&links)).expect("the root is there");
        let tree: serde_json::Value = serde_json::from_slice(&tree).expect("a reader's depth");
        let mut deepest = &tree;
        while let Some(child) = deepest["children"].get(0) {
            deepest = child;
        }
        assert_eq!(deepest["pid"], TREE_DEPTH_MAX);
        assert_eq!(deepest["descendants_left_out"], 100_000 - TREE_DEPTH_MAX);
    }

    #[test]
    fn descendants_are_counted_once() {
        let links = [(1, 0), (2, 1), (3, 1), (4, 2), (5, 4), (6, 9)];
        assert_eq!(descendants(1, &links), [(1, 4), (2, 2), (4, 1)].into());
        let ring = [(1, 3), (2, 1), (3, 2)];
        assert_eq!(descendants(2, &ring), [(2, 2), (3, 1)].into());
        assert_eq!(descendants(7, &links), [].into());
    }
}
