//! The systems that people use for calls today, each as its own documentation shows it.
//!
//! Zenoh is named here, beside `kumo-fabric`: as a peer, not as a part of the product.

mod grpc;
mod iceoryx;
mod nats;
mod zenoh;
mod zeromq;

use std::io;

use super::{Callers, Place};

pub(super) fn answer(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    match place.id.as_str() {
        "grpc-unix" | "grpc-tcp" => grpc::answer(place, ready),
        "zenoh" => zenoh::answer(place, ready),
        "nats" => nats::answer(place, ready),
        "zeromq" => zeromq::answer(place, ready),
        "iceoryx2" | "iceoryx2-events" => iceoryx::answer(place, ready),
        other => Err(nobody(other)),
    }
}

pub(super) fn callers(place: &Place) -> io::Result<Callers> {
    match place.id.as_str() {
        "grpc-unix" | "grpc-tcp" => grpc::callers(place),
        "zenoh" => zenoh::callers(place),
        "nats" => nats::callers(place),
        "zeromq" => Ok(zeromq::callers(place)),
        "iceoryx2" | "iceoryx2-events" => iceoryx::callers(place),
        other => Err(nobody(other)),
    }
}

fn nobody(id: &str) -> io::Error {
    io::Error::other(format!("there is no contender `{id}`"))
}
