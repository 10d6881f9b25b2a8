//! SQL over tables that are computed when they are read.
//!
//! Whoever has tables says what they are ([`Table`]) and reads their rows ([`Source`]); [`run`] answers
//! one `SELECT` over them. SQLite parses, plans and evaluates; nothing is stored, and nothing can be
//! written. This crate knows SQLite and no table: processes are the business of `k2i`, other hosts that
//! of `node`.
//!
//! A table is read as seldom as can be: once for all of a query, but for the few times that a condition
//! makes reading cheaper ([`cache`]). So a join of two tables costs two reads, whatever it joins by.
//!
//! A query is bounded in everything: time, rows, bytes read and bytes answered, memory of SQLite, length
//! of a value; and each function that it may call takes a time that grows with its arguments, not with
//! their product ([`functions`]).

mod allow;
mod cache;
mod error;
mod functions;
mod plan;
mod query;
mod rows;
mod table;
mod vtab;

pub use error::{Place, SqlError};
pub use query::{
    Answer, HEAP_BYTES_MAX, Limits, SQL_BYTES_MAX, Shown, TIME_DEFAULT, TIME_MAX, Take, run,
};
pub use rows::{CELL_BYTES_MAX, Cell, Ended, Rows, Stop};
pub use table::{Column, Kind, Role, Scan, ScanError, Source, Table, Wanted};
