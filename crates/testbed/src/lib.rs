//! Worlds to test in: real processes, owned by guards.
//!
//! [`Zoo`] starts processes of every awkward kind; an [`Animal`] or a [`Crowd`] kills and reaps what
//! it owns when it is dropped. The processes are roles of the helper binary `kumo-zoo`; [`role`] is
//! what the guards and the helper agree on.
//!
//! [`cluster`] starts real clusters: hosts are network namespaces, which [`net`] joins by cables that
//! can be cut, and nodes are the built `kumo`. The program `kumo-testbed` does it for people.
//!
//! Development only: nothing of it is installed.

mod api;
pub mod bench;
pub mod chaos;
pub mod cluster;
mod crowd;
mod helper;
mod host;
pub mod net;
mod pace;
mod program;
pub mod role;
pub mod sim;
pub mod swarm;
mod zoo;

pub use api::{Answer, request};
pub use crowd::{Crowd, Mix, crowd_arguments};
pub use kumo_abi::chain;
pub use pace::{LATE_MAX, Pace};
pub use program::{check as check_program, kumo_beside, kumo_for_tests};
pub use zoo::{Animal, Burst, Zoo};
