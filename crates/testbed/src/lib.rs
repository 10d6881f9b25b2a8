//! Worlds to test in: real processes, owned by guards.
//!
//! [`Zoo`] starts processes of every awkward kind; an [`Animal`] or a [`Crowd`] kills and reaps what
//! it owns when it is dropped. The processes are roles of the helper binary `kumo-zoo`; [`role`] is
//! what the guards and the helper agree on. Development only: nothing of it is installed.

mod crowd;
mod helper;
pub mod role;
mod zoo;

pub use crowd::{Crowd, Mix, crowd_arguments};
pub use zoo::{Animal, Zoo};
