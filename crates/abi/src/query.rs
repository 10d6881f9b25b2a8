//! A query: which columns of which rows, in what order, how many, grouped by what.
//!
//! The command line and HTTP hand over the same [`QueryText`]; [`Query::parse`] is the one parser of
//! both. It is evaluated on the host that owns the table, so that only the answer travels.

use crate::filter::{Filter, FilterError};
use crate::limits::{
    QUERY_COLUMNS_MAX, QUERY_GROUP_COLUMNS_MAX, QUERY_SORT_KEYS_MAX, QUERY_TEXT_BYTES_MAX,
};
use crate::proc::COLUMNS_ENDED_DEFAULT;
use crate::schema::{ColumnIndex, Schema};
use crate::when::{At, WhenError};

/// A query as people and programs write it; every part may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryText {
    /// Columns and aggregates, separated by commas: `pid,user,cpu` or `user,count(),sum(rss)`. A
    /// first `+` adds to the default ones: `+cgroup,exe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<String>,
    /// A condition in CEL: `cpu > 50.0 && user == "www-data"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Sort keys, separated by commas; `-` before one sorts from high to low: `-cpu,pid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort: Option<String>,
    /// The most rows to return.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// Columns to group by, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The processes that have ended, as far as they are remembered, in place of those that live.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ended: bool,
    /// The processes of an earlier moment, as far as it was recorded, in place of those of now: `-600s`,
    /// RFC 3339, or milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// One column of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// A column of the table; under a grouping, one of those grouped by.
    Column(ColumnIndex),
    /// Something computed over the rows of a group.
    Aggregate(Aggregate),
}

/// Something computed over the rows of a group. All of them merge: parts from many hosts give the
/// same result as all rows at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    /// How many rows.
    Count,
    /// The sum of a numeric column; null values count as nothing.
    Sum(ColumnIndex),
    /// The greatest value of a numeric column; null if all are.
    Max(ColumnIndex),
}

impl Select {
    /// The name of this column in an answer: `rss`, `sum(rss)`, `count()`.
    pub fn name(&self, schema: &Schema) -> String {
        let column = |index: &ColumnIndex| schema.columns[*index].name;
        match self {
            Select::Column(index) => column(index).to_owned(),
            Select::Aggregate(Aggregate::Count) => "count()".to_owned(),
            Select::Aggregate(Aggregate::Sum(index)) => format!("sum({})", column(index)),
            Select::Aggregate(Aggregate::Max(index)) => format!("max({})", column(index)),
        }
    }
}

/// A key to sort by: for a plain query any column of the table, for a grouped one a column of the
/// answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SortKey {
    /// What to compare.
    pub select: Select,
    /// From high to low.
    pub descending: bool,
}

/// A query that has been checked against a schema.
#[derive(Debug)]
pub struct Query {
    /// The columns of the answer, in order; never empty.
    pub columns: Vec<Select>,
    /// Which rows take part; all of them without one.
    pub filter: Option<Filter>,
    /// The order of the answer; the table's own (by pid) after these keys.
    pub sort: Vec<SortKey>,
    /// The most rows of the answer.
    pub limit: Option<u32>,
    /// What to group by; empty together with aggregates in `columns` makes one group of all rows.
    pub group: Vec<ColumnIndex>,
    /// Of processes that have ended, in place of those that live.
    pub ended: bool,
    /// Of this moment, in place of now.
    pub at: Option<At>,
}

/// Why a query was refused. Nothing was read.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum QueryError {
    /// No such column.
    #[error("there is no column `{name}`{}; the option `--columns` lists them", hint(*.closest))]
    Column {
        /// What was written.
        name: String,
        /// A column that is spelt nearly so.
        closest: Option<&'static str>,
    },
    /// An empty name in a list.
    #[error("`{part}` has an empty name in `{text}`; write names separated by single commas")]
    Empty {
        /// The part of the query.
        part: &'static str,
        /// The list.
        text: String,
    },
    /// The same column twice: a JSON object cannot hold both.
    #[error("column `{0}` is selected twice; name it once")]
    Twice(String),
    /// Not `count()`, `sum(column)` or `max(column)`.
    #[error("`{0}` is no aggregate; there are count(), sum(COLUMN) and max(COLUMN)")]
    Aggregate(String),
    /// A sum of names.
    #[error("`{column}` holds {kind}, so it has no {aggregate}; numbers have")]
    NotNumber {
        /// The column.
        column: &'static str,
        /// What it holds.
        kind: &'static str,
        /// `sum` or `max`.
        aggregate: &'static str,
    },
    /// A plain column beside aggregates that is not grouped by.
    #[error(
        "column `{0}` is neither grouped by nor in an aggregate; add it to the grouping, or take its sum() or max()"
    )]
    NotGrouped(String),
    /// A sort key of a grouped query that its answer does not have.
    #[error("a grouped answer is sorted by its own columns; add `{0}` to the columns")]
    SortNotSelected(String),
    /// Not a positive number.
    #[error("limit `{0}` is no number from 1 to 4294967295")]
    Limit(String),
    /// Too long or too many.
    #[error("{part} is too large: {len} {what}, and {max} is the most")]
    TooLarge {
        /// The part of the query.
        part: &'static str,
        /// How large it is.
        len: usize,
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// Processes that have ended hold nothing.
    #[error("the table `{0}` is of what is there; `ended` is for the table of processes")]
    Ended(&'static str),
    /// The condition.
    #[error("filter: {0}")]
    Filter(#[from] FilterError),
    /// The moment.
    #[error("at: {0}")]
    At(#[from] WhenError),
    /// Two answers at once.
    #[error(
        "processes that have ended are remembered as they ended, not as of a moment; ask for one of both"
    )]
    EndedAt,
}

fn hint(closest: Option<&'static str>) -> String {
    closest.map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default()
}

impl Query {
    /// Checks `text` against `schema`; `default_columns` are those of a query that names none, but for
    /// one of ended processes, which has [`COLUMNS_ENDED_DEFAULT`].
    ///
    /// # Errors
    /// What is wrong and how to write it; see [`QueryError`].
    pub fn parse(
        text: &QueryText,
        schema: &'static Schema,
        default_columns: &str,
    ) -> Result<Query, QueryError> {
        let default_columns = if text.ended { COLUMNS_ENDED_DEFAULT } else { default_columns };
        let group = parse_group(text.group.as_deref(), schema)?;
        let columns = parse_columns(text, schema, &group, default_columns)?;
        let aggregated = columns.iter().any(|select| matches!(select, Select::Aggregate(_)));
        if aggregated || !group.is_empty() {
            let stray =
                columns.iter().find(|s| matches!(s, Select::Column(i) if !group.contains(i)));
            if let Some(select) = stray {
                return Err(QueryError::NotGrouped(select.name(schema)));
            }
        }
        let at = text.at.as_deref().map(str::parse).transpose()?;
        if text.ended && at.is_some() {
            return Err(QueryError::EndedAt);
        }
        let (filter, sort, limit, ended) = (None, Vec::new(), None, text.ended);
        let mut query = Query { columns, filter, sort, limit, group, ended, at };
        query.sort = parse_sort(text.sort.as_deref(), schema, &query)?;
        query.limit = text.limit.as_deref().map(parse_limit).transpose()?;
        if let Some(filter) = text.filter.as_deref().filter(|filter| !filter.trim().is_empty()) {
            check_size("filter", filter)?;
            query.filter = Some(Filter::compile(filter, schema)?);
        }
        Ok(query)
    }

    /// Whether rows are gathered into groups.
    pub fn is_grouped(&self) -> bool {
        !self.group.is_empty()
            || self.columns.iter().any(|select| matches!(select, Select::Aggregate(_)))
    }

    /// Every table column that evaluating this query reads, each once, in ascending order.
    pub fn columns_read(&self) -> Vec<ColumnIndex> {
        let mut read: Vec<ColumnIndex> = self.group.clone();
        let selected = self.columns.iter().chain(self.sort.iter().map(|key| &key.select));
        read.extend(selected.filter_map(|select| match select {
            Select::Column(index)
            | Select::Aggregate(Aggregate::Sum(index) | Aggregate::Max(index)) => Some(*index),
            Select::Aggregate(Aggregate::Count) => None,
        }));
        read.extend(self.filter.iter().flat_map(Filter::columns).copied());
        read.sort_unstable();
        read.dedup();
        read
    }
}

fn parse_columns(
    text: &QueryText,
    schema: &Schema,
    group: &[ColumnIndex],
    default_columns: &str,
) -> Result<Vec<Select>, QueryError> {
    let given = text.columns.as_deref().map(str::trim).filter(|columns| !columns.is_empty());
    let mut columns: Vec<Select> = Vec::new();
    let added = match given {
        None if !group.is_empty() => {
            columns.extend(group.iter().map(|index| Select::Column(*index)));
            columns.push(Select::Aggregate(Aggregate::Count));
            return Ok(columns);
        }
        None => default_columns,
        Some(given) => match given.strip_prefix('+') {
            None => given,
            Some(added) => {
                columns =
                    parse_list("columns", default_columns, |name| parse_select(name, schema))?;
                added
            }
        },
    };
    let extends = !columns.is_empty();
    for select in parse_list("columns", added, |name| parse_select(name, schema))? {
        if !columns.contains(&select) {
            columns.push(select);
        } else if !extends {
            return Err(QueryError::Twice(select.name(schema)));
        }
    }
    check_count("columns", columns.len(), QUERY_COLUMNS_MAX)?;
    Ok(columns)
}

fn parse_select(text: &str, schema: &Schema) -> Result<Select, QueryError> {
    let Some((function, rest)) = text.split_once('(') else {
        return Ok(Select::Column(find(text, schema)?));
    };
    let wrong = || QueryError::Aggregate(text.to_owned());
    let argument = rest.strip_suffix(')').ok_or_else(wrong)?.trim();
    let number = |aggregate: &'static str| {
        let index = find(argument, schema)?;
        let spec = &schema.columns[index];
        if spec.kind.is_number() {
            Ok(index)
        } else {
            Err(QueryError::NotNumber { column: spec.name, kind: spec.kind.name(), aggregate })
        }
    };
    Ok(Select::Aggregate(match function.trim() {
        "count" if argument.is_empty() => Aggregate::Count,
        "sum" => Aggregate::Sum(number("sum")?),
        "max" => Aggregate::Max(number("max")?),
        _ => return Err(wrong()),
    }))
}

fn parse_group(text: Option<&str>, schema: &Schema) -> Result<Vec<ColumnIndex>, QueryError> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(Vec::new());
    };
    let mut group = parse_list("group", text, |name| find(name, schema))?;
    check_count("group", group.len(), QUERY_GROUP_COLUMNS_MAX)?;
    let mut seen = Vec::new();
    group.retain(|index| {
        !seen.contains(index) && {
            seen.push(*index);
            true
        }
    });
    Ok(group)
}

fn parse_sort(
    text: Option<&str>,
    schema: &Schema,
    query: &Query,
) -> Result<Vec<SortKey>, QueryError> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(Vec::new());
    };
    let keys = parse_list("sort", text, |key| {
        let (name, descending) = match key.strip_prefix(['-', '+']) {
            Some(name) => (name, key.starts_with('-')),
            None => (key, false),
        };
        let select = parse_select(name, schema)?;
        let in_answer = query.columns.contains(&select);
        match select {
            Select::Aggregate(_) if !in_answer => Err(QueryError::SortNotSelected(name.to_owned())),
            Select::Column(_) if query.is_grouped() && !in_answer => {
                Err(QueryError::SortNotSelected(name.to_owned()))
            }
            _ => Ok(SortKey { select, descending }),
        }
    })?;
    check_count("sort", keys.len(), QUERY_SORT_KEYS_MAX)?;
    Ok(keys)
}

fn parse_limit(text: &str) -> Result<u32, QueryError> {
    let limit = text.trim().parse::<u32>().ok().filter(|limit| *limit > 0);
    limit.ok_or_else(|| QueryError::Limit(text.to_owned()))
}

fn parse_list<T>(
    part: &'static str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, QueryError>,
) -> Result<Vec<T>, QueryError> {
    check_size(part, text)?;
    let parse = |name: &str| match name.trim() {
        "" => Err(QueryError::Empty { part, text: text.to_owned() }),
        name => parse(name),
    };
    text.split(',').map(parse).collect()
}

fn find(name: &str, schema: &Schema) -> Result<ColumnIndex, QueryError> {
    schema
        .find(name)
        .ok_or_else(|| QueryError::Column { name: name.to_owned(), closest: schema.closest(name) })
}

fn check_size(part: &'static str, text: &str) -> Result<(), QueryError> {
    let (len, max) = (text.len(), QUERY_TEXT_BYTES_MAX);
    if len > max { Err(QueryError::TooLarge { part, len, what: "bytes", max }) } else { Ok(()) }
}

fn check_count(part: &'static str, len: usize, max: usize) -> Result<(), QueryError> {
    if len > max { Err(QueryError::TooLarge { part, len, what: "names", max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::{COLUMNS_DEFAULT, Column, PROC};

    fn parse(columns: &str, group: &str, sort: &str, limit: &str) -> Result<Query, QueryError> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let text = QueryText {
            columns: some(columns),
            filter: None,
            sort: some(sort),
            limit: some(limit),
            group: some(group),
            ended: false,
            at: None,
        };
        Query::parse(&text, &PROC, COLUMNS_DEFAULT)
    }

    fn names(query: &Query) -> String {
        let names: Vec<_> = query.columns.iter().map(|select| select.name(&PROC)).collect();
        names.join(",")
    }

    #[test]
    fn columns() {
        let cases = [
            ("", "", COLUMNS_DEFAULT),
            ("pid, %CPU", "", "pid,cpu"),
            ("user, sum( rss ),max(cpu)", "user", "user,sum(rss),max(cpu)"),
            ("count()", "", "count()"),
            ("", "user,tty", "user,tty,count()"),
        ];
        for (columns, group, want) in cases {
            let query = parse(columns, group, "", "").expect(columns);
            assert_eq!(names(&query), want, "for {columns:?} by {group:?}");
        }
        let added = parse("+exe,pid", "", "", "").expect("the defaults with one more");
        assert_eq!(names(&added), format!("{COLUMNS_DEFAULT},exe"));
    }

    #[test]
    fn what_is_refused_is_named() {
        let cases = [
            (parse("pid,cmdlin", "", "", ""), "did you mean `cmdline`?"),
            (parse("pid,,cpu", "", "", ""), "`columns` has an empty name"),
            (parse("pid,PID", "", "", ""), "column `pid` is selected twice"),
            (parse("sum(user)", "", "", ""), "`user` holds text, so it has no sum"),
            (parse("avg(rss)", "", "", ""), "`avg(rss)` is no aggregate"),
            (parse("count(", "", "", ""), "`count(` is no aggregate"),
            (parse("pid,count()", "user", "", ""), "column `pid` is neither grouped by"),
            (parse("count()", "user", "-rss", ""), "add `rss` to the columns"),
            (parse("pid", "", "-sum(rss)", ""), "add `sum(rss)` to the columns"),
            (parse("", "", "", "0"), "limit `0` is no number"),
            (parse("", "", "", "-3"), "limit `-3` is no number"),
        ];
        for (result, want) in cases {
            let message = result.map(|_| ()).expect_err(want).to_string();
            assert!(message.contains(want), "{message:?} does not say {want:?}");
        }
        let huge = "a".repeat(QUERY_TEXT_BYTES_MAX + 1);
        assert!(matches!(parse(&huge, "", "", ""), Err(QueryError::TooLarge { .. })));
    }

    #[test]
    fn sort_and_limit() {
        let query = parse("pid", "", "-cpu,+pid", "20").expect("a plain query");
        let cpu = SortKey { select: Select::Column(Column::Cpu.index()), descending: true };
        let pid = SortKey { select: Select::Column(Column::Pid.index()), descending: false };
        assert_eq!((query.sort.as_slice(), query.limit), ([cpu, pid].as_slice(), Some(20)));
        assert_eq!(query.columns_read(), [Column::Pid.index(), Column::Cpu.index()]);
    }
}
