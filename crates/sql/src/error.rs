//! Why a query has no answer, in words that say what to do.

use std::fmt;
use std::time::Duration;

use kumo_abi::closest;

use crate::allow::SELECT_ONLY;
use crate::table::Table;

/// Where in a query something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl Place {
    /// The place of a byte.
    pub(crate) fn of(sql: &str, offset: usize) -> Place {
        let is_boundary = |at: &usize| sql.is_char_boundary(*at);
        let offset = (0..=offset.min(sql.len())).rev().find(is_boundary).unwrap_or(0);
        let before = &sql[..offset];
        let line_begin = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        Place { line, column: before[line_begin..].chars().count() + 1 }
    }

    /// The place of a name, where it stands for the first time.
    pub(crate) fn of_word(sql: &str, name: &str) -> Option<Place> {
        let is_word = |char: char| char.is_alphanumeric() || char == '_';
        let stands = |(at, _): &(usize, &str)| {
            !sql[..*at].ends_with(is_word) && !sql[at + name.len()..].starts_with(is_word)
        };
        sql.match_indices(name).find(stands).map(|(at, _)| Place::of(sql, at))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a query has no answer. Nothing was changed, so a retry is safe; whether it helps is said.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The text is no query that can be answered.
    #[error("{}{what}", at(*.place))]
    Wrong {
        /// What is wrong, and what to do.
        what: String,
        /// Where.
        place: Option<Place>,
    },
    /// It does what no query may.
    #[error("{0}")]
    Denied(String),
    /// It took too long.
    #[error(
        "the query took more than {} ms and was ended; ask for less (conditions on pid, name, uid, dc \
         and host make it cheaper), or allow it more time", .0.as_millis()
    )]
    Time(Duration),
    /// Nobody waits for it any more.
    #[error("the query was ended, as nobody waits for it")]
    Stopped,
    /// It takes too much memory.
    #[error("the query takes more memory than there is for one; ask for fewer columns or rows")]
    Memory,
    /// Its answer is too large.
    #[error("the answer has more than {max} {what}; ask for less, with conditions or LIMIT")]
    TooLarge {
        /// The most.
        max: usize,
        /// Of what.
        what: &'static str,
    },
    /// A table could not be read.
    #[error("cannot read the table `{table}`")]
    Table {
        /// Which.
        table: &'static str,
        /// What whoever reads it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A bug of ours, or of SQLite's.
    #[error("SQLite failed: {0}")]
    Failed(String),
}

fn at(place: Option<Place>) -> String {
    place.map(|place| format!("{place}: ")).unwrap_or_default()
}

impl SqlError {
    /// Whether the query is wrong, rather than the host.
    pub fn is_usage(&self) -> bool {
        matches!(self, SqlError::Wrong { .. } | SqlError::Denied(_) | SqlError::TooLarge { .. })
    }
}

/// What SQLite says of a query, for people.
pub(crate) fn explain(said: &str, sql: &str, tables: &[Table]) -> String {
    let hint = |near: Option<&str>| {
        near.map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default()
    };
    if let Some(name) = said.strip_prefix("no such table: ") {
        let near = closest(name, tables.iter().map(|table| table.name));
        return format!("there is no table `{name}`{}; `kumo sql --tables` lists them", hint(near));
    }
    if let Some(name) = said.strip_prefix("no such column: ") {
        let bare = name.rsplit('.').next().unwrap_or(name);
        let words: Vec<&str> =
            sql.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        let is_named =
            |table: &&Table| words.iter().any(|word| word.eq_ignore_ascii_case(table.name));
        let named: Vec<&Table> = tables.iter().filter(is_named).collect();
        let columns = named.iter().flat_map(|table| table.columns).map(|column| column.name);
        let near = closest(bare, columns);
        let schema = match named.as_slice() {
            [] => String::new(),
            [table, ..] => format!("; `kumo sql --schema {}` lists those there are", table.name),
        };
        return format!("there is no column `{name}`{}{schema}", hint(near));
    }
    // Of a virtual table SQLite knows it before it asks what may be done.
    if said.ends_with(" may not be modified") {
        return SELECT_ONLY.to_owned();
    }
    if let Some(name) = said.strip_prefix("no such function: ") {
        return format!("there is no function `{name}`");
    }
    said.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Column, Kind, Role};

    static TABLES: &[Table] = &[Table {
        name: "processes",
        about: "",
        columns: &[Column {
            name: "resident_size",
            kind: Kind::BigInt,
            role: Role::Plain,
            is_hidden: false,
            about: "",
        }],
        rows_about: 1,
        keyed_reads_max: 1,
    }];

    #[test]
    fn places() {
        let sql = "SELECT é,\n  pidd\nFROM x";
        let cases = [(0, "line 1, column 1"), (12, "line 2, column 2"), (13, "line 2, column 3")];
        for (offset, want) in cases {
            assert_eq!(Place::of(sql, offset).to_string(), want, "for {offset}");
        }
        // In the middle of a character, and behind the end.
        assert_eq!(Place::of(sql, 8).to_string(), "line 1, column 8");
        let word = |name| Place::of_word("SELECT xy, x", name).map(|place| place.column);
        assert_eq!((word("x"), word("xy"), word("y")), (Some(12), Some(8), None));
        assert_eq!(Place::of(sql, 999).to_string(), "line 3, column 7");
    }

    #[test]
    fn what_sqlite_says_becomes_advice() {
        let cases = [
            ("no such table: proceses", "did you mean `processes`?"),
            ("no such table: zzz", "there is no table `zzz`; `kumo sql --tables`"),
            (
                "no such column: p.resident_siz",
                "(did you mean `resident_size`?); `kumo sql --schema",
            ),
            ("no such column: zzz", "there is no column `zzz`; `kumo sql --schema processes`"),
            ("table processes may not be modified", "there is SELECT and nothing else"),
            ("no such function: f", "there is no function `f`"),
            ("near \"FORM\": syntax error", "near \"FORM\": syntax error"),
        ];
        for (said, want) in cases {
            let text = explain(said, "select 1 from PROCESSES p", TABLES);
            assert!(text.contains(want), "{text:?} does not say {want:?}");
        }
    }
}
