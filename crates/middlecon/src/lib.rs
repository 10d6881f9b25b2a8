//! Synchronous calls by name, between processes of one host or across the world, that tell the truth.
//!
//! A call is bytes, a time budget and one reply. What is promised, and kept by `docs/decisions/0005`:
//! a call that has no reply is *not executed* (trying again is safe) or its outcome is *unknown*, never
//! wrongly the former; its budget, its trace and a cancel reach every call that is made for it; a call
//! that would wait for itself is an error with its path; exhausted pools do not wait for each other.
//!
//! ```no_run
//! use middlecon::Node;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::connect("/run/kumo".as_ref())?;
//! let server = node
//!     .serve(&"greeter".parse()?)
//!     .method(&"greet".parse()?, |call| Ok([b"hello ", &call.body[..]].concat().into()))
//!     .start()?;
//! let reply = node.service(&"greeter".parse()?).call(&"greet".parse()?, b"world")?;
//! assert_eq!(&reply[..], b"hello world");
//! # Ok(())
//! # }
//! ```
//!
//! A reply may come in pieces while its handler runs; the handler waits where its reader is slow:
//!
//! ```no_run
//! # use middlecon::Node;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let node = Node::connect("/run/kumo".as_ref())?;
//! let server = node
//!     .serve(&"numbers".parse()?)
//!     .stream(&"count".parse()?, |_, out| {
//!         (0..1_000).try_for_each(|n: u32| out.send(n.to_string().as_bytes()))
//!     })
//!     .start()?;
//! for piece in node.service(&"numbers".parse()?).stream(&"count".parse()?, b"")? {
//!     println!("{}", String::from_utf8_lossy(&piece?));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | module | one idea |
//! |---|---|
//! | `rules/` | outcomes, slots, spinning, pulses, credit: pure |
//! | `carrier/` | frames between two programs |
//! | `node` | the connection to the node, kept by one thread |
//! | `client`, `server` | by threads that block, the fast path; and by tasks |
//! | `watch` | how many of a service answer |
//! | `context` | what nested calls inherit |
//! | `secure` | TLS with programs of other hosts |
//! | `program` | what this program shows its node |
//! | `values` | values in the place of bytes, with the features `json` and `postcard` |

mod carrier;
mod client;
mod context;
mod error;
mod gate;
mod node;
mod notices;
mod program;
pub mod rules;
mod secure;
mod server;
mod time;
#[cfg(any(feature = "json", feature = "postcard"))]
mod values;
mod watch;

pub use client::gather::{Enough, GROUP_MAX, Member, gather};
pub use client::stream::Chunks;
pub use client::tasks::{AsyncRequest, AsyncService, PULSE_BYTES_MAX};
pub use client::threads::ping::{Answerer, Pong};
pub use client::threads::stream::Pieces;
pub use client::threads::{Request, Service};
pub use context::Context;
pub use error::{
    CODE_NESTED, CODE_QUESTION_UNREADABLE, CODE_REPLY_UNREADABLE, CODE_REPLY_UNWRITABLE,
    CODE_STREAMS, CallError, Failure,
};
pub use node::{Node, NodeError, Welcome};
#[cfg(feature = "cluster")]
pub use secure::OfCluster;
pub use secure::{Refused, Secure, Setup};
pub use server::stream::Outlet;
pub use server::tasks::{AsyncBuilder, AsyncCall};
pub use server::threads::stream::PieceSender;
pub use server::threads::{Builder, Call};
pub use server::{CONNECTIONS_MAX, Server};
pub use watch::Watch;
