//! What two Kumonosu processes must agree on: identities, columns, queries, answers, calls and limits.
//!
//! Plain values and rules only: no I/O, no clocks, no threads. What a column costs to fetch and how
//! it is fetched is the business of `k2i`; how it is shown, of `kumo`.

mod answer;
pub mod call;
pub mod cluster;
pub mod control;
pub mod events;
pub mod filter;
pub mod frame;
pub mod hosts;
mod identity;
pub mod limits;
pub mod merge;
mod names;
pub mod page;
mod problem;
pub mod proc;
mod query;
pub mod react;
mod schema;
mod value;

pub use answer::{Meta, Row, Rows};
pub use filter::{Filter, FilterError};
pub use identity::{IdentityError, ProcessId, TICK_NS};
pub use names::{ClusterName, DcName, HostId, HostName, NAME_BYTES_MAX, NameError, ServiceName};
pub use problem::Problem;
pub use query::{Aggregate, Query, QueryError, QueryText, Select, SortKey};
pub use schema::{ColumnIndex, ColumnSpec, Kind, Schema, Unit};
pub use value::{Value, text_list_items};
