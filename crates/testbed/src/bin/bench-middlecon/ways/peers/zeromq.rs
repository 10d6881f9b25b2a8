//! ZeroMQ: a REQ socket for each caller, and a ROUTER that answers all of them.

use std::io;

use super::super::{Ask, Callers, Place};
use crate::clock::Question;

fn endpoint(place: &Place) -> String {
    format!("ipc://{}", place.socket().display())
}

pub(super) fn answer(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    let context = zmq::Context::new();
    let socket = context.socket(zmq::ROUTER)?;
    socket.bind(&endpoint(place))?;
    ready("");
    loop {
        // Who asks, an empty part, the question: sent back as they came, without a copy.
        let mut more = true;
        while more {
            let part = socket.recv_msg(0)?;
            more = part.get_more();
            socket.send(part, if more { zmq::SNDMORE } else { 0 })?;
        }
    }
}

struct Req(zmq::Socket);

impl Ask for Req {
    fn ask(&mut self, question: &Question) -> io::Result<bool> {
        self.0.send(question.body(), 0)?;
        Ok(*self.0.recv_msg(0)? == *question.body())
    }
}

pub(super) fn callers(place: &Place) -> Callers {
    let (context, endpoint) = (zmq::Context::new(), endpoint(place));
    Callers::Threads(std::sync::Arc::new(move || {
        let socket = context.socket(zmq::REQ)?;
        socket.connect(&endpoint)?;
        Ok(Box::new(Req(socket)))
    }))
}
