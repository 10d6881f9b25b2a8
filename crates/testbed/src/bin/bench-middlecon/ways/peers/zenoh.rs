//! Zenoh: a querier for each caller, a queryable, and no router between them.

use std::io;

use zenoh::query::{ConsolidationMode, QueryTarget};
use zenoh::{Config, Session, Wait as _};

use super::super::{Ask, Callers, Place, for_ever};
use crate::clock::Question;

const KEY: &str = "bench/echo";

fn open(place: &Place, mode: &str, side: &str) -> io::Result<Session> {
    let endpoints = serde_json::json!([format!("unixsock-stream/{}", place.socket().display())]);
    let settings = [
        ("mode", serde_json::json!(mode)),
        (side, endpoints),
        ("scouting/multicast/enabled", serde_json::json!(false)),
        ("scouting/gossip/enabled", serde_json::json!(false)),
    ];
    let mut config = Config::default();
    for (name, value) in settings {
        config.insert_json5(name, &value.to_string()).map_err(io::Error::other)?;
    }
    zenoh::open(config).wait().map_err(io::Error::other)
}

pub(super) fn answer(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    let session = open(place, "peer", "listen/endpoints")?;
    let answer = |query: zenoh::query::Query| {
        let payload = query.payload().cloned().unwrap_or_default();
        // It fails when who asked has gone.
        let _ = query.reply(KEY, payload).wait();
    };
    let queryable = session.declare_queryable(KEY).callback(answer);
    let _queryable = queryable.wait().map_err(io::Error::other)?;
    ready("");
    for_ever()
}

struct Querier(zenoh::query::Querier<'static>);

impl Ask for Querier {
    fn ask(&mut self, question: &Question) -> io::Result<bool> {
        let asked = self.0.get().payload(question.body()).wait();
        let answers = asked.map_err(io::Error::other)?;
        let answer = answers.recv().map_err(io::Error::other)?;
        let sample = answer.result().map_err(|error| io::Error::other(error.to_string()))?;
        Ok(*sample.payload().to_bytes() == *question.body())
    }
}

pub(super) fn callers(place: &Place) -> io::Result<Callers> {
    let session = open(place, "client", "connect/endpoints")?;
    Ok(Callers::Threads(std::sync::Arc::new(move || {
        let querier = session.declare_querier(KEY).target(QueryTarget::BestMatching);
        let querier = querier.consolidation(ConsolidationMode::None).wait();
        Ok(Box::new(Querier(querier.map_err(io::Error::other)?)))
    })))
}
