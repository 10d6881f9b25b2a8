//! What simulated hosts need of a node: its answers and its questions, without its sockets.
//!
//! Hundreds of them fit into one process: the testbed measures the fabric with them.

use std::sync::Arc;

use axum::Router;
use bytes::Bytes;
use k2i::Engine;
use k2i::http::openapi::own_text;
use k2i::http::{Api, router_with};
use kumo_abi::HostId;
use kumo_abi::rights::{Asker, Rights};
use kumo_fabric::Answerer;

use crate::answer::{HostAnswerer, Question};

/// Answers for `me` from `engine`, by the routes of a process table. Routes about the node are missing.
pub fn answerer(me: HostId, engine: Arc<Engine>) -> Arc<dyn Answerer> {
    let answerer = HostAnswerer::new(me);
    answerer.open(router_with(Api::new(engine), Router::new(), own_text()));
    answerer
}

/// What a node asks hosts for rows; `target` is `/v2/proc` with its parameters.
pub fn rows_question(target: String) -> Bytes {
    let asker = Asker { rights: Rights::ADMIN, ..Asker::default() };
    Question { rows: true, ..Question::get(target, asker) }.encode()
}
