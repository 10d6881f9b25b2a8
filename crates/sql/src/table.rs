//! What a table is, and how its rows are asked for.

use std::fmt;

use crate::rows::{Cell, Ended, Rows};

/// What a column holds, by the names that osquery gives them. Any value may also be null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number that fits into 32 bits, as a rule.
    Integer,
    /// A number.
    BigInt,
    /// A floating point number.
    Double,
    /// A text.
    Text,
}

impl Kind {
    /// As SQL has it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Integer => "INTEGER",
            Kind::BigInt => "BIGINT",
            Kind::Double => "DOUBLE",
            Kind::Text => "TEXT",
        }
    }

    pub(crate) fn is_integer(self) -> bool {
        matches!(self, Kind::Integer | Kind::BigInt)
    }
}

/// What a column is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One of many.
    Plain,
    /// It tells rows apart, together with the others of its kind.
    Identity,
    /// Rows are read for less where it is known; it tells them apart, too.
    Key,
    /// Rows are read for less where it is known, but many may have the same.
    Group,
}

impl Role {
    pub(crate) fn tells_apart(self) -> bool {
        matches!(self, Role::Identity | Role::Key)
    }

    /// Whether a condition on it is passed on to who reads the rows.
    pub fn is_pushed(self) -> bool {
        matches!(self, Role::Key | Role::Group)
    }
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What it is for.
    pub role: Role,
    /// Whether `SELECT *` leaves it out.
    pub is_hidden: bool,
    /// One line for people.
    pub about: &'static str,
}

/// Most columns of a table: SQLite tells which of the first 63 a query reads.
pub(crate) const COLUMNS_MAX: usize = 63;

/// A table.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Its columns, at most 63.
    pub columns: &'static [Column],
    /// About how many rows it has, where nobody knows better: the planner joins small tables first.
    pub rows_about: u32,
    /// How often it is read by single keys, in one query, before it is read as a whole.
    pub keyed_reads_max: u32,
}

impl Table {
    /// The place of a column.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// As one would create it.
    pub fn declaration(&self) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|column| {
                let hidden = if column.is_hidden { " HIDDEN" } else { "" };
                format!("\"{}\" {}{hidden}", column.name, column.kind.name())
            })
            .collect();
        format!("CREATE TABLE \"{}\" ({})", self.name, columns.join(", "))
    }
}

/// A condition that rows must fulfil: a column has this value.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The place of the column.
    pub column: usize,
    /// Its value, of the column's kind; never null.
    pub value: Cell,
}

/// What is asked of a table.
#[derive(Debug)]
pub struct Scan<'a> {
    /// Which.
    pub table: &'static Table,
    /// The places of the columns that rows shall have, ascending; there may be none.
    pub columns: &'a [usize],
    /// Conditions. Who reads may give rows that do not fulfil them, but for those of a scan with a limit.
    pub wanted: &'a [Wanted],
    /// So many rows are enough.
    pub limit: Option<u64>,
}

impl Scan<'_> {
    /// The value that a column shall have.
    pub fn value(&self, name: &str) -> Option<&Cell> {
        let column = self.table.column(name)?;
        self.wanted.iter().find(|wanted| wanted.column == column).map(|wanted| &wanted.value)
    }

    /// The number that a column shall have.
    pub fn integer(&self, name: &str) -> Option<i64> {
        match self.value(name)? {
            Cell::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The text that a column shall have.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.value(name)? {
            Cell::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether a column is read.
    pub fn reads(&self, name: &str) -> bool {
        self.table.column(name).is_some_and(|column| self.columns.contains(&column))
    }
}

/// Why a table could not be read.
#[derive(Debug)]
pub enum ScanError {
    /// It was ended: time, memory, or nobody waits any more.
    Ended(Ended),
    /// Whoever reads it failed.
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl ScanError {
    /// A failure of who reads.
    pub fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ScanError {
        ScanError::Failed(error.into())
    }
}

impl From<Ended> for ScanError {
    fn from(ended: Ended) -> ScanError {
        ScanError::Ended(ended)
    }
}

/// Who has tables.
pub trait Source: Send + Sync {
    /// All of them.
    fn tables(&self) -> &'static [Table];

    /// Reads rows of one. Blocks.
    ///
    /// # Errors
    /// See [`ScanError`]; the query fails with it.
    fn scan(&self, scan: &Scan<'_>, rows: &mut Rows<'_>) -> Result<(), ScanError>;

    /// How often a table is read by single keys in one query; see [`Table::keyed_reads_max`].
    fn keyed_reads_max(&self, table: &Table) -> u32 {
        table.keyed_reads_max
    }
}

impl fmt::Debug for dyn Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}
