//! Hosts and data centres joined into one system.

#![allow(dead_code)] // Its parts are built one after the other; goes with the last.

pub mod ask;
pub mod clock;
pub mod identity;
pub mod join;
pub mod link;
pub mod members;
pub mod pki;
pub mod rendezvous;
pub mod store;
pub mod token;
