//! Errors over HTTP, as RFC 9457 problem details.

use serde::{Deserialize, Serialize};

/// An `application/problem+json` document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable name of this kind of problem, such as `urn:kumo:problem:bad-query`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in a few words; the same for every occurrence.
    pub title: String,
    /// The HTTP status, repeated.
    pub status: u16,
    /// What happened here and what to do.
    pub detail: String,
}

impl Problem {
    /// A problem of the kind `name` (lower case, dashes).
    pub fn new(status: u16, name: &str, title: &str, detail: impl Into<String>) -> Problem {
        Problem {
            kind: format!("urn:kumo:problem:{name}"),
            title: title.to_owned(),
            status,
            detail: detail.into(),
        }
    }
}
