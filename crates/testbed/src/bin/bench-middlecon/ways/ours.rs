//! middlecon, as its users have it: by threads and by tasks, with a ring or without, on one host or across.

use std::io;
use std::rc::Rc;

use bytes::Bytes;
use kumo_abi::call::Method;
use middlecon::{AsyncService, Node, Service};

use super::{Answer, Ask, AskTask, Callers, Place, for_ever, runtime};
use crate::clock::Question;

/// Calls at once, and as many that wait: more than there are callers here.
const SLOTS: u16 = 128;

/// As a program of the cluster: it believes what its node says of others.
pub(crate) fn connect(run_dir: &std::path::Path) -> io::Result<Node> {
    let node = Node::connect(run_dir).map_err(io::Error::other)?;
    node.secure_with(std::sync::Arc::new(middlecon::OfCluster));
    Ok(node)
}

pub(super) fn method() -> io::Result<Method> {
    "echo".parse().map_err(io::Error::other)
}

fn ring(place: &Place) -> bool {
    !place.id.starts_with("packets")
}

pub(super) fn answer_by_threads(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    let node = connect(&place.run_dir)?;
    let server = node.serve(&place.service()?).slots(SLOTS).credit(SLOTS).ring(ring(place));
    let server = server.method(&method()?, |call| Ok(std::mem::take(&mut call.body)));
    let _server = server.start().map_err(io::Error::other)?;
    ready("");
    for_ever()
}

pub(super) fn answer_by_tasks(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    let node = connect(&place.run_dir)?;
    runtime()?.block_on(async {
        let server = node.serve_async(&place.service()?).slots(SLOTS).credit(SLOTS);
        let server =
            server.ring(ring(place)).method(&method()?, |call| async move { Ok(call.body) });
        let _server = server.start().await.map_err(io::Error::other)?;
        ready("");
        std::future::pending().await
    })
}

struct ByThread {
    service: Service,
    method: Method,
}

impl Ask for ByThread {
    fn ask(&mut self, question: &Question) -> io::Result<bool> {
        let answer = self.service.call(&self.method, question.body()).map_err(io::Error::other)?;
        Ok(answer == question.body())
    }
}

pub(super) fn by_threads(place: &Place) -> io::Result<Callers> {
    let node = connect(&place.run_dir)?;
    let (service, method) = (node.service(&place.service()?), method()?);
    Ok(Callers::Threads(std::sync::Arc::new(move || {
        Ok(Box::new(ByThread { service: service.clone(), method: method.clone() }))
    })))
}

struct ByTask {
    service: AsyncService,
    method: Method,
}

impl AskTask for ByTask {
    fn ask(&self, question: Bytes) -> Answer<'_> {
        Box::pin(async move {
            self.service.call(&self.method, &question).await.map_err(io::Error::other)
        })
    }
}

pub(super) fn by_tasks(place: &Place) -> io::Result<Callers> {
    let node = connect(&place.run_dir)?;
    let service = node.service_async(&place.service()?);
    Ok(Callers::Tasks(runtime()?, Rc::new(ByTask { service, method: method()? })))
}
