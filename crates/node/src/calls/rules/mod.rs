//! What a node decides about calls, as plain values: no I/O, and times and random numbers come as
//! arguments.
//!
//! A [`Broker`] hears what programs say and what became of them, and answers with [`Effect`]s, which the
//! shell in [`super`] carries out in their order.

pub(crate) mod acl;
mod broker;
pub(crate) mod directory;
pub(crate) mod grants;
pub(crate) mod limits;
pub(crate) mod publish;
pub(crate) mod refusals;
pub(crate) mod registry;

pub(crate) use self::broker::{Admitted, Asked, Broker, Effect, Moment, Order, Refusal};

/// A program, by the number of its connection with this node: never used again while the node runs.
pub(crate) type Program = u64;
