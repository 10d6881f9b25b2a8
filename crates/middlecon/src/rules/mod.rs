//! What is decided, in plain values: no sockets, no clocks, no threads.

pub mod bell;
pub mod pulse;
pub mod slots;
pub mod spin;
pub mod stream;
pub mod truth;
