//! The answer to a query as a client reads it.

use serde::{Deserialize, Serialize};

/// One row as a client reads it: column name to JSON value, in the order asked for.
pub type Row = serde_json::Map<String, serde_json::Value>;

/// What an answer says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// The data centre of the host that answered.
    pub dc: String,
    /// The host that answered.
    pub host: String,
    /// Its boot: a process identity holds within one boot.
    pub boot_id: String,
    /// The collector that read the table: `iter.s`, `iter` or `proc`.
    pub collector: String,
    /// The generation of the table; it grows by one with each scan, and a server that is started later has
    /// larger ones.
    pub generation: u64,
    /// When the scan began, RFC 3339 with microseconds, UTC.
    pub as_of: String,
    /// How long the scan took, in microseconds.
    pub scan_us: u64,
    /// Processes in the table.
    pub processes: u64,
    /// Processes that the filter let through, before the limit.
    pub matched: u64,
    /// The names of the columns, in order.
    pub columns: Vec<String>,
    /// How many rows are missing at least, of processes that ended: their events were lost.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// What could not be seen, in words, where some rows or cells may be missing for it: files of other
    /// users, other network namespaces. Null where all was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    /// What it says about itself.
    #[serde(flatten)]
    pub meta: Meta,
    /// The rows.
    pub rows: Vec<Row>,
}
