//! The tables that hosts answer rows of, by one path for one host and for many.
//!
//! What is asked of one of them is a [`Query`] over its columns at `/v2/PATH`; of many hosts
//! the same at `/v2/all/PATH`, merged as [`merge`](crate::merge) does it. A table that stands here is
//! answered for all hosts by that alone.

use crate::files::{FILES, FILES_DEFAULT};
use crate::proc::{COLUMNS_DEFAULT, PROC};
use crate::query::{Query, QueryError, QueryText};
use crate::schema::Schema;
use crate::sockets::{SOCKETS, SOCKETS_DEFAULT};

/// A table that can be asked for.
#[derive(Debug)]
pub struct Relation {
    /// Where, behind `/v2/` and `/v2/all/`.
    pub path: &'static str,
    /// Its columns. Two of them are `dc` and `host`.
    pub schema: &'static Schema,
    /// The columns of an answer when a query names none.
    pub columns_default: &'static str,
    /// Whether it can be asked for processes that have ended.
    pub has_ended: bool,
}

/// Processes.
pub static PROCESSES: Relation =
    Relation { path: "proc", schema: &PROC, columns_default: COLUMNS_DEFAULT, has_ended: true };

/// Sockets that processes hold.
pub static OPEN_SOCKETS: Relation = Relation {
    path: "sockets",
    schema: &SOCKETS,
    columns_default: SOCKETS_DEFAULT,
    has_ended: false,
};

/// Files that processes hold open.
pub static OPEN_FILES: Relation =
    Relation { path: "files", schema: &FILES, columns_default: FILES_DEFAULT, has_ended: false };

/// All of them.
pub static RELATIONS: [&Relation; 3] = [&PROCESSES, &OPEN_SOCKETS, &OPEN_FILES];

impl Relation {
    /// The one that is asked for at this path, such as `/v2/sockets`.
    pub fn at(path: &str) -> Option<&'static Relation> {
        let path = path.strip_prefix("/v2/")?;
        RELATIONS.into_iter().find(|relation| relation.path == path)
    }

    /// Checks a query against its columns.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn parse(&self, text: &QueryText) -> Result<Query, QueryError> {
        if text.ended && !self.has_ended {
            return Err(QueryError::Ended(self.schema.name));
        }
        Query::parse(text, self.schema, self.columns_default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_relation_has_its_defaults_and_its_hosts() {
        for relation in RELATIONS {
            let query = relation.parse(&QueryText::default()).expect("defaults are columns");
            let names: Vec<_> = query.columns.iter().map(|c| c.name(relation.schema)).collect();
            assert_eq!(names.join(","), relation.columns_default);
            assert!(relation.schema.find("dc").is_some() && relation.schema.find("host").is_some());
            let path = format!("/v2/{}", relation.path);
            assert!(Relation::at(&path).is_some_and(|found| std::ptr::eq(found, relation)));
            let mut seen = std::collections::BTreeSet::new();
            for spec in relation.schema.columns {
                for name in std::iter::once(&spec.name).chain(spec.aliases) {
                    assert!(seen.insert(name.to_ascii_lowercase()), "`{name}` twice in {path}");
                }
            }
        }
        assert!(Relation::at("/v2/host").is_none() && Relation::at("sockets").is_none());
    }

    #[test]
    fn what_has_ended_has_no_sockets() {
        let text = QueryText { ended: true, ..QueryText::default() };
        assert!(PROCESSES.parse(&text).is_ok());
        assert_eq!(OPEN_SOCKETS.parse(&text).err(), Some(QueryError::Ended("sockets")));
    }
}
