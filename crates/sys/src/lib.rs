//! The door to the kernel: process descriptors, local time and probes; all `unsafe` code of the project.
//!
//! What `rustix` offers safely is used directly where it is needed; here is only what it lacks, and
//! what wants one careful wrapper. Every function blocks at most as long as it says.

pub mod kernfs;
mod local_time;
pub mod memory;
mod pidfd;
pub mod probe;
mod tcp_info;

pub use local_time::LocalTime;
pub use pidfd::{Ended, PidFd};
pub use tcp_info::tcp_rtt_us;
