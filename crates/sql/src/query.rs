//! One query, from its text to its rows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Batch, Connection, Error, ErrorCode};

use crate::error::{Place, SqlError, explain};
use crate::rows::{CELL_BYTES_MAX, Ended, Stop};
use crate::table::{ScanError, Source};
use crate::vtab::{Session, fits};
use crate::{allow, functions};

/// Longest query. Those of packs have a few hundred bytes.
pub const SQL_BYTES_MAX: usize = 32 * 1024;

/// How long a query may take when nobody says: a table of many hosts is waited for two seconds.
pub const TIME_DEFAULT: Duration = Duration::from_secs(10);

/// The longest that may be asked for.
pub const TIME_MAX: Duration = Duration::from_secs(60);

/// Most memory of all of SQLite in this process: its limit is one for all connections. Rows of tables are
/// ours and counted apart; this is for sorting, grouping and what a statement makes.
pub const HEAP_BYTES_MAX: usize = 256 << 20;

/// After so many steps of SQLite's machine it is looked whether to go on: some tens of microseconds.
const STEPS_BETWEEN_LOOKS: i32 = 1_000;

/// Deepest nesting of an expression; it bounds the stack of the parser.
const EXPRESSION_DEPTH_MAX: i32 = 100;

/// Longest pattern of LIKE and GLOB: a match takes the product of text and pattern.
const PATTERN_BYTES_MAX: i32 = 1_000;

/// What a query may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From its beginning to its last row.
    pub time: Duration,
    /// For the rows of tables that it reads.
    pub read_bytes: usize,
    /// Most rows of its answer.
    pub rows: usize,
}

impl Limits {
    /// The time begins now.
    pub fn begin(&self) -> Arc<Stop> {
        Arc::new(Stop::new(Instant::now() + self.time, self.read_bytes))
    }
}

/// A value of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shown<'a> {
    /// None.
    Null,
    /// A whole number.
    Int(i64),
    /// A number.
    Real(f64),
    /// A text; UTF-8 as a rule, for a query may cut one in the middle.
    Text(&'a [u8]),
    /// Bytes.
    Blob(&'a [u8]),
}

/// Gets the names of the columns, and a row.
pub type Take<'a> = dyn FnMut(&[String], &[Shown<'_>]) -> Result<(), SqlError> + 'a;

/// What an answer says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The names of the columns, in order; each once.
    pub columns: Vec<String>,
    /// How many rows there were.
    pub rows: usize,
    /// How many values of tables were longer than [`CELL_BYTES_MAX`] and were cut.
    pub cut: u64,
    /// Tables with several keys whose rows were looked for by some of these only, again and again.
    pub loose: Vec<&'static str>,
}

/// What was said of a statement while it was compiled.
#[derive(Debug, Default)]
struct Judge {
    /// Why it is refused.
    denied: Mutex<Option<String>>,
    /// Whether it selects anything.
    selects: AtomicBool,
}

impl Judge {
    fn denied(&self) -> MutexGuard<'_, Option<String>> {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers `sql` from the tables of `source`; `take` gets the names of the columns and each row as it
/// comes. Blocks.
///
/// # Errors
/// See [`SqlError`]; rows may have been given before.
pub fn run(
    source: &Arc<dyn Source>,
    sql: &str,
    limits: &Limits,
    stop: &Arc<Stop>,
    take: &mut Take<'_>,
) -> Result<Answer, SqlError> {
    let wrong = |what: String| Err(SqlError::Wrong { what, place: None });
    if sql.len() > SQL_BYTES_MAX {
        return wrong(format!(
            "the query has {} bytes, and {SQL_BYTES_MAX} is the most",
            sql.len()
        ));
    }
    if let Some(at) = sql.find('\0') {
        let place = Some(Place::of(sql, at));
        return Err(SqlError::Wrong { what: "a query has no NUL bytes".to_owned(), place });
    }
    debug_assert!(source.tables().iter().all(fits), "a table has too many columns");
    let session = Session::new(Arc::clone(source), Arc::clone(stop));
    let judge: Arc<Judge> = Arc::default();
    let connection = connect(&session, &judge).map_err(|error| {
        // There is nothing of the query in it yet.
        SqlError::Failed(error.to_string())
    })?;
    let told = |error: Error| told(error, sql, limits, &session, &judge);
    let mut statements = Batch::new(&connection, sql);
    let Some(mut statement) = statements.next().map_err(told)? else {
        return wrong("there is no query; write SELECT … FROM a table".to_owned());
    };
    if statements.next().map_err(told)?.is_some() {
        return wrong("there is more than one statement; ask one after the other".to_owned());
    }
    // Some statements do so little that nothing of them is judged.
    if !statement.readonly() || !judge.selects.load(Ordering::Relaxed) {
        return Err(SqlError::Denied(allow::SELECT_ONLY.to_owned()));
    }
    if statement.parameter_count() > 0 {
        return wrong("the query has a parameter (? or :name); write the value itself".to_owned());
    }
    let columns = names(&statement.column_names());
    let mut answer = Answer { columns, rows: 0, cut: 0, loose: Vec::new() };
    let count = answer.columns.len();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().map_err(told)? {
        if answer.rows == limits.rows {
            return Err(SqlError::TooLarge { max: limits.rows, what: "rows" });
        }
        let mut shown = Vec::with_capacity(count);
        for place in 0..count {
            shown.push(match row.get_ref(place).map_err(told)? {
                ValueRef::Null => Shown::Null,
                ValueRef::Integer(number) => Shown::Int(number),
                ValueRef::Real(number) => Shown::Real(number),
                ValueRef::Text(text) => Shown::Text(text),
                ValueRef::Blob(bytes) => Shown::Blob(bytes),
            });
        }
        take(&answer.columns, &shown)?;
        answer.rows += 1;
    }
    answer.cut = stop.cut();
    answer.loose = session.loose();
    Ok(answer)
}

/// A connection to an empty database in memory that can only read the tables of a session.
fn connect(session: &Arc<Session>, judge: &Arc<Judge>) -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    // What does not fit into memory fails; it goes to no file.
    connection.query_row(&format!("PRAGMA hard_heap_limit = {HEAP_BYTES_MAX}"), [], |_| Ok(()))?;
    connection.execute_batch("PRAGMA temp_store = MEMORY")?;
    for (limit, value) in [
        (Limit::SQLITE_LIMIT_LENGTH, CELL_BYTES_MAX as i32),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, SQL_BYTES_MAX as i32),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, EXPRESSION_DEPTH_MAX),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, PATTERN_BYTES_MAX),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        connection.set_limit(limit, value)?;
    }
    for (setting, value) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        // Queries of osquery write texts in double quotes, too.
        (DbConfig::SQLITE_DBCONFIG_DQS_DML, true),
    ] {
        connection.set_db_config(setting, value)?;
    }
    functions::add(&connection)?;
    session.attach(&connection)?;
    let (tables, judge) = (session.tables(), Arc::clone(judge));
    connection.authorizer(Some(move |context: AuthContext<'_>| {
        let is_ours = |name: &str| tables.iter().any(|table| table.name.eq_ignore_ascii_case(name));
        if context.action == AuthAction::Select {
            judge.selects.store(true, Ordering::Relaxed);
        }
        match allow::check(context.action, is_ours) {
            Ok(()) => Authorization::Allow,
            Err(why) => {
                judge.denied().get_or_insert(why);
                Authorization::Deny
            }
        }
    }));
    let stop = Arc::clone(&session.stop);
    connection.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || stop.check().is_err()));
    Ok(connection)
}

/// Names that stand once each: a second `pid` is `pid:1`, as SQLite itself has it where it must.
fn names(given: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(given.len());
    for name in given {
        let taken = |name: &String| names.contains(name) || given.contains(&name.as_str());
        let mut unique = (*name).to_owned();
        if names.contains(&unique) {
            let numbered = (1..).map(|number| format!("{name}:{number}"));
            unique = numbered.into_iter().find(|name| !taken(name)).unwrap_or(unique);
        }
        names.push(unique);
    }
    names
}

/// What a failure of SQLite means here.
fn told(error: Error, sql: &str, limits: &Limits, session: &Session, judge: &Judge) -> SqlError {
    match session.failure() {
        Some((_, ScanError::Ended(ended))) => return ended_with(ended, limits),
        Some((table, ScanError::Failed(source))) => return SqlError::Table { table, source },
        None => {}
    }
    if let Err(ended) = session.stop.check()
        && error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted)
    {
        return ended_with(ended, limits);
    }
    if let Some(why) = judge.denied().take() {
        return SqlError::Denied(why);
    }
    match error {
        Error::SqlInputError { msg, offset, .. } => SqlError::Wrong {
            what: explain(&msg, sql, session.tables()),
            place: usize::try_from(offset).ok().map(|offset| Place::of(sql, offset)),
        },
        Error::SqliteFailure(failure, said) => match (failure.code, said) {
            (ErrorCode::Unknown, Some(said)) if said.starts_with("no such table: ") => {
                let place = said.rsplit(": ").next().and_then(|name| Place::of_word(sql, name));
                SqlError::Wrong { what: explain(&said, sql, session.tables()), place }
            }
            (ErrorCode::OutOfMemory, _) => SqlError::Memory,
            (ErrorCode::TooBig, _) => {
                SqlError::TooLarge { max: CELL_BYTES_MAX, what: "bytes in one value" }
            }
            (ErrorCode::Unknown | ErrorCode::ConstraintViolation, Some(said)) => {
                SqlError::Wrong { what: explain(&said, sql, session.tables()), place: None }
            }
            (_, said) => SqlError::Failed(said.unwrap_or_else(|| failure.to_string())),
        },
        error => SqlError::Failed(error.to_string()),
    }
}

fn ended_with(ended: Ended, limits: &Limits) -> SqlError {
    match ended {
        Ended::Time => SqlError::Time(limits.time),
        Ended::Memory => SqlError::Memory,
        Ended::Stopped | Ended::Enough => SqlError::Stopped,
    }
}
