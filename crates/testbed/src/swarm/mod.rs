//! Hundreds of hosts on one machine: real members of the fabric in a few processes, each of which plays
//! the same recorded process table back.
//!
//! A [`World`] has gateways that are the built `kumo up`, and for each data centre one worker process
//! that holds its hosts. The program that makes a world is started again as its worker, and calls
//! [`worker::run`] then. Links, certificates, questions and answers are those of real nodes; what is
//! missing of one is its own process, its sockets for people, and its disk.

mod host;
pub mod node;
mod record;
pub mod worker;
mod world;

pub use host::SwarmHost;
pub use world::{CLUSTER_NAME, DcPlan, Seen, Totals, World};
