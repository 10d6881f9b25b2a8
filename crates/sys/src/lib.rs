//! The door to the kernel: process descriptors, shared pages, packets, local time and probes; all `unsafe` code of the project,
//! but for `ffi`'s, which is about what C passes.
//!
//! What `rustix` offers safely is used directly where it is needed; here is only what it lacks, and
//! what wants one careful wrapper. Every function blocks at most as long as it says.

pub mod cpu;
pub mod kernfs;
mod local_time;
pub mod memory;
pub mod packet;
mod page;
mod peer;
mod pidfd;
pub mod probe;
mod sealed;
mod tcp_info;
mod wall;

pub use local_time::LocalTime;
pub use page::{OwnPage, PeerPage};
pub use peer::{Peer, peer};
pub use pidfd::{Ended, PidFd};
pub use sealed::{Sealed, seal};
pub use tcp_info::tcp_rtt_us;
pub use wall::wall_ms;
