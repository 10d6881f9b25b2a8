//! The tables of this host for SQL, by osquery's names.
//!
//! Rows come from where all other answers come from: processes from the shared generations of
//! [`Engine`], events from what is remembered of them, the rest from small files. What who asks has no
//! right to see is not read.

mod controls;
mod envs;
mod events;
mod host;
mod processes;
mod schema;
mod sockets;
mod users;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kumo_abi::rights::{Lines, Rights, Scope};
pub use kumo_sql::SqlError;
use kumo_sql::{
    CELL_BYTES_MAX, Cell, Limits, Rows, Scan, ScanError, Shown, Source, Stop, Table, run,
};
use serde_json::json;

pub use schema::{TABLES, TABLES_OF_MANY};

use crate::encode::write_value;
use crate::engine::Engine;

/// Most memory for the rows that one query reads of one host.
pub const READ_BYTES_MAX: usize = 128 << 20;

/// Most rows of an answer.
pub const ANSWER_ROWS_MAX: usize = 1_000_000;

/// Largest answer. A hundred thousand processes with the columns of `ps` fit.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What who asks may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// What he may.
    pub rights: Rights,
    /// How command lines are shown to him.
    pub lines: Lines,
}

impl Sight {
    /// Everything that can be read.
    pub const ALL: Sight = Sight { rights: Rights::ADMIN, lines: Lines::Whole };
}

/// The tables of one host, for one query.
#[derive(Debug)]
pub struct HostTables {
    engine: Arc<Engine>,
    sight: Sight,
    began: Instant,
    notes: Mutex<Vec<String>>,
}

impl HostTables {
    /// For a query that begins now, of somebody who may see this.
    pub fn new(engine: Arc<Engine>, sight: Sight) -> HostTables {
        HostTables { engine, sight, began: Instant::now(), notes: Mutex::default() }
    }
}

impl HostTables {
    /// Keeps what could not be seen, for the answer to say it.
    fn note(&self, unseen: Option<String>) {
        let mut notes = self.notes();
        notes.extend(unseen.map(|unseen| format!("not seen: {unseen}")));
        notes.dedup();
    }

    /// What was said of the rows that were read so far.
    pub fn notes(&self) -> MutexGuard<'_, Vec<String>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for HostTables {
    fn tables(&self) -> &'static [Table] {
        TABLES
    }

    fn scan(&self, scan: &Scan<'_>, rows: &mut Rows<'_>) -> Result<(), ScanError> {
        allow(scan.table, self.sight.rights)?;
        let read = match scan.table.name {
            "processes" | "process_namespaces" => processes::scan,
            "process_events" => events::scan,
            "process_envs" => envs::scan,
            "process_open_sockets" => sockets::open_sockets,
            "listening_ports" => sockets::listening_ports,
            "process_open_files" => sockets::open_files,
            "system_info" => host::system_info,
            "kernel_info" => host::kernel_info,
            "os_version" => host::os_version,
            "uptime" => host::uptime,
            "load_average" => host::load_average,
            "memory_info" => host::memory_info,
            "system_controls" => controls::scan,
            "users" => users::scan,
            unknown => {
                return Err(ScanError::failed(format!("nobody reads the table `{unknown}`")));
            }
        };
        read(self, scan, rows)
    }
}

/// Refuses a table that is not for somebody with these rights.
///
/// # Errors
/// What it takes.
pub fn allow(table: &Table, rights: Rights) -> Result<(), ScanError> {
    if table.name != "process_envs" || rights.holds(Scope::Environment) {
        return Ok(());
    }
    let why = "environments hold secrets, and who asks has no right to them; ask on the node's Unix \
        socket, or as one who has the scope `environment`";
    Err(ScanError::failed(why))
}

/// Gives a row that has all columns of its table but the last two, which say whose it is.
fn push(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
    mut row: Vec<Cell>,
) -> Result<(), ScanError> {
    debug_assert_eq!(row.len() + 2, scan.table.columns.len(), "a row of `{}`", scan.table.name);
    let config = host.engine.config();
    row.extend([config.dc.as_str().into(), config.host.as_str().into()]);
    let cell = |place: &usize| row.get_mut(*place).map(std::mem::take).unwrap_or_default();
    Ok(rows.push(scan.columns.iter().map(cell))?)
}

/// What a query may take of this host.
pub fn limits(time: Duration) -> Limits {
    Limits { time, read_bytes: READ_BYTES_MAX, rows: ANSWER_ROWS_MAX }
}

/// An answer as JSON.
#[derive(Clone, Debug, Default)]
pub struct Answered {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// One object a row, separated by commas.
    pub rows: Vec<u8>,
    /// What of the answer is not as it was, in words.
    pub notes: Vec<String>,
}

/// Answers a query from `source`. Blocks.
///
/// # Errors
/// See [`SqlError`].
pub fn answer(
    source: &Arc<dyn Source>,
    query: &str,
    limits: &Limits,
    stop: &Arc<Stop>,
) -> Result<Answered, SqlError> {
    let (mut keys, mut rows): (Vec<Vec<u8>>, Vec<u8>) = (Vec::new(), Vec::new());
    let mut take = |names: &[String], shown: &[Shown<'_>]| {
        if keys.is_empty() {
            keys = names.iter().enumerate().map(key).collect();
        }
        if !rows.is_empty() {
            rows.push(b',');
        }
        for (key, shown) in keys.iter().zip(shown) {
            rows.extend_from_slice(key);
            write_shown(&mut rows, *shown);
        }
        rows.push(b'}');
        if rows.len() > ANSWER_BYTES_MAX {
            return Err(SqlError::TooLarge { max: ANSWER_BYTES_MAX, what: "bytes" });
        }
        Ok(())
    };
    let answer = run(source, query, limits, stop, &mut take)?;
    let mut notes = Vec::new();
    if answer.cut > 0 {
        let (cut, mib) = (answer.cut, CELL_BYTES_MAX >> 20);
        notes.push(format!("{cut} values that were read are longer than {mib} MiB and were cut"));
    }
    notes.extend(answer.loose.iter().map(|table| {
        format!(
            "rows of `{table}` were looked for in all hosts by a key that only one host knows; where \
             that is a join, join by dc and host, too"
        )
    }));
    Ok(Answered { columns: answer.columns, rows, notes })
}

/// Answers a query about this host, as one document of JSON. Blocks.
///
/// # Errors
/// See [`SqlError`].
pub fn document(
    engine: Arc<Engine>,
    sight: Sight,
    query: &str,
    limits: &Limits,
    stop: &Arc<Stop>,
) -> Result<Vec<u8>, SqlError> {
    let (as_of, began) = (crate::host::now(), Instant::now());
    let config = engine.config().clone();
    let tables = Arc::new(HostTables::new(engine, sight));
    let source = Arc::clone(&tables) as Arc<dyn Source>;
    let mut answered = answer(&source, query, limits, stop)?;
    answered.notes.append(&mut tables.notes());
    let about = json!({ "dc": config.dc, "host": config.host, "as_of": as_of });
    Ok(answered.document(about, began.elapsed()))
}

impl Answered {
    /// The document of an answer, which begins with what `about` says.
    pub fn document(self, mut about: serde_json::Value, took: Duration) -> Vec<u8> {
        about["query_us"] = (took.as_micros() as u64).into();
        if !self.notes.is_empty() {
            about["notes"] = json!(self.notes);
        }
        about["columns"] = json!(self.columns);
        let mut body = crate::encode::document(&about);
        body.pop();
        body.reserve(self.rows.len() + 16);
        body.extend_from_slice(b",\"rows\":[");
        body.extend_from_slice(&self.rows);
        body.extend_from_slice(b"]}");
        body
    }
}

/// `{"pid":`, `,"name":` and so on.
fn key((index, name): (usize, &String)) -> Vec<u8> {
    let mut key = vec![if index == 0 { b'{' } else { b',' }];
    write_value(&mut key, &kumo_abi::Value::text(name));
    key.push(b':');
    key
}

fn write_shown(out: &mut Vec<u8>, shown: Shown<'_>) {
    use kumo_abi::Value;
    let value = match shown {
        Shown::Null => Value::Null,
        Shown::Int(number) => Value::Int(number),
        Shown::Real(number) => Value::Float(number),
        Shown::Text(text) => Value::text(text),
        // JSON has no bytes: as SQL's hex() shows them.
        Shown::Blob(bytes) => Value::owned_text(data_encoding::HEXUPPER.encode(bytes)),
    };
    write_value(out, &value);
}
