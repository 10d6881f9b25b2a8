//! Calls under fire: whether middlecon tells the truth while everything around it is killed, frozen and cut
//! off.
//!
//! A world of three hosts in two data centres, with a network that can be cut. On each host two programs
//! serve and two call. Servers write down each call before and after they do it, callers what they were
//! told, all in files that outlive a `kill -9`. Meanwhile a story that a seed tells kills, drains, freezes
//! and cuts off. At the end [`check`](check::check) compares: what was told as executed ran exactly once, what
//! was told as not executed never ran, and nothing ran twice.
//!
//! [`ledger`] is what is written, [`check`] judges it, [`faults`] is the story (all three pure, but for
//! files); `server`, `client` and `reach` are the programs, roles of the binary `chaos-middlecon`; [`world`] runs it
//! all.

pub mod check;
mod client;
pub mod faults;
pub mod ledger;
mod question;
mod reach;
mod server;
pub mod world;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{Method, ServiceName, Status};
use middlecon::{CallError, Node};

type BoxError = Box<dyn std::error::Error>;

/// Plays the role that `orders`, JSON of [`world`], is for, until standard input ends.
///
/// # Errors
/// In words for people.
pub fn play(role: &str, orders: &str) -> Result<(), Box<dyn std::error::Error>> {
    match role {
        "server" => server::run(&serde_json::from_str(orders)?),
        "client" => client::run(&serde_json::from_str(orders)?),
        "reach" => reach::run(&serde_json::from_str(orders)?),
        other => Err(format!("there is no role {other}").into()),
    }
}

/// Connects to the node of this host, which may be away for now.
fn connect(run_dir: &Path, pause: Duration) -> Node {
    loop {
        match Node::connect(run_dir) {
            Ok(node) => return node,
            Err(_) => std::thread::sleep(pause),
        }
    }
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap_or_else(|error| panic!("{name} is no service: {error}"))
}

fn method(name: &str) -> Method {
    name.parse().unwrap_or_else(|error| panic!("{name} is no method: {error}"))
}

fn status(told: &Result<Bytes, CallError>) -> Status {
    told.as_ref().map_or_else(CallError::status, |_| Status::Done)
}
