//! What two Kumonosu processes must agree on: identities, columns, queries, answers, calls and limits.
//!
//! Plain values and rules only: no I/O, no clocks, no threads. What a column costs to fetch and how
//! it is fetched is the business of `k2i`; how it is shown, of `kumo`.

mod answer;
pub mod call;
mod chain;
pub mod cluster;
pub mod control;
pub mod events;
pub mod files;
pub mod filter;
pub mod frame;
pub mod hosts;
mod identity;
pub mod limits;
pub mod merge;
mod names;
mod of_process;
pub mod page;
mod problem;
pub mod proc;
mod query;
pub mod react;
pub mod relation;
pub mod rights;
mod schema;
pub mod sockets;
pub mod sysctl;
mod value;
mod when;

pub use answer::{Meta, Row, Rows};
pub use chain::chain;
pub use filter::{Filter, FilterError};
pub use identity::{IdentityError, ProcessId, TICK_NS};
pub use names::{ClusterName, DcName, HostId, HostName, NAME_BYTES_MAX, NameError, TokenName};
pub use problem::Problem;
pub use query::{Aggregate, Query, QueryError, QueryText, Select, SortKey};
pub use relation::Relation;
pub use schema::{ColumnIndex, ColumnSpec, Kind, Schema, Unit, closest};
pub use value::{Value, text_list_items};
pub use when::{
    AGO_MAX, At, LocalMoment, WHEN_BYTES_MAX, When, WhenError, days_since_1970, parse_limit,
    parse_span,
};
