//! A program that serves, and writes down what its handlers do before and after they do it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{Method, ServiceName};
use middlecon::{
    AsyncCall, AsyncService, Call, CallError, Failure, Node, NodeError, OfCluster, Server, Service,
};
use serde::{Deserialize, Serialize};

use super::ledger::{Entry, Key, Ledger, Way};
use super::question::{Question, Work};
use super::{BoxError, method, service};

/// The code with which a handler says no.
const CODE_NO: u32 = 7;

/// How long it looks for its node again.
const PAUSE: Duration = Duration::from_millis(20);

/// How long its calls may take when it is asked to end.
const DRAIN_MAX: Duration = Duration::from_millis(500);

/// Handlers that run at once, and callers that wait, of each of its services.
const SLOTS: u16 = 8;

/// In the place of a service: the one that a handler calls.
const NESTED: u16 = u16::MAX;

/// What a server is told in its arguments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) run_dir: PathBuf,
    pub(super) ledger: PathBuf,
    /// Its host, as names of services say it.
    pub(super) host: String,
    /// As whom its own calls are written down.
    pub(super) client: u32,
    /// Whom its handlers call.
    pub(super) beside: String,
}

/// What both kinds of handlers have.
struct Shop {
    ledger: Ledger,
    client: u32,
    count: AtomicU32,
    work: Method,
    node: Node,
    /// Whom handlers call, by threads and by tasks; with the connections to them.
    callees: Mutex<(Service, AsyncService)>,
    names: (ServiceName, ServiceName),
}

impl Shop {
    /// What cannot be written down must not be done: then the process ends, as if it were killed.
    fn add(&self, entry: Entry) {
        if let Err(error) = self.ledger.add(entry) {
            eprintln!("the ledger: {error}");
            std::process::abort();
        }
    }

    fn callees(&self) -> (Service, AsyncService) {
        self.callees.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes connections that nobody uses.
    fn rest(&self) {
        let (threads, tasks) =
            (self.node.service(&self.names.0), self.node.service_async(&self.names.1));
        *self.callees.lock().unwrap_or_else(PoisonError::into_inner) = (threads, tasks);
    }

    fn nested(&self) -> Question {
        let key = Key::new(self.client, self.count.fetch_add(1, Ordering::Relaxed));
        Question { key, work: Work::Now, len_bytes: 0 }
    }

    fn told(&self, key: Key, told: &Result<Bytes, CallError>, by_task: bool) {
        self.add(Entry::Told(key, super::status(told), Way { service: NESTED, by_task }));
    }

    fn over(&self, question: &Question, body: &Bytes) -> Result<Bytes, Failure> {
        self.add(Entry::Did(question.key));
        match question.work {
            Work::No => Err(Failure::new(CODE_NO, "as it was asked to")),
            _ => Ok(body.clone()),
        }
    }
}

/// Serves until standard input ends; a line there has it close its connections to others.
pub(super) fn run(orders: &Orders) -> Result<(), BoxError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ledger = Ledger::create(&orders.ledger)?;
    let node = super::connect(&orders.run_dir, PAUSE);
    node.secure_with(Arc::new(OfCluster));
    let beside = &orders.beside;
    let names = (service(&format!("tasks-{beside}")), service(&format!("threads-{beside}")));
    let callees = (node.service(&names.0), node.service_async(&names.1));
    let shop = Arc::new(Shop {
        ledger,
        client: orders.client,
        count: AtomicU32::new(0),
        work: method("work"),
        node,
        callees: Mutex::new(callees),
        names,
    });
    let servers = loop {
        // A node that is killed in this moment has not heard of us.
        match runtime.block_on(serve(&orders.host, &shop)) {
            Ok(servers) => break servers,
            Err(_) => std::thread::sleep(PAUSE),
        }
    };
    println!("ready");
    for line in std::io::stdin().lines() {
        line?;
        shop.rest();
    }
    for server in servers {
        server.drain(DRAIN_MAX);
    }
    Ok(())
}

async fn serve(host: &str, shop: &Arc<Shop>) -> Result<Vec<Server>, NodeError> {
    let own = shop.clone();
    let threads = shop
        .node
        .serve(&service(&format!("threads-{host}")))
        .slots(SLOTS)
        .credit(SLOTS)
        .method(&shop.work, move |call| by_thread(&own, call))
        .start()?;
    let mut servers = vec![threads];
    for name in [format!("tasks-{host}"), "anywhere".to_owned()] {
        let own = shop.clone();
        let tasks = shop
            .node
            .serve_async(&service(&name))
            .slots(SLOTS)
            .credit(SLOTS)
            .method(&shop.work, move |call| by_task(own.clone(), call))
            .start()
            .await?;
        servers.push(tasks);
    }
    Ok(servers)
}

fn by_thread(shop: &Shop, call: &mut Call<'_>) -> Result<Bytes, Failure> {
    let question = Question::decode(&call.body)?;
    shop.add(Entry::Began(question.key));
    match question.work {
        Work::Slow(ms) => std::thread::sleep(Duration::from_millis(ms.into())),
        Work::Nest => {
            let nested = shop.nested();
            let told = shop.callees().0.call(&shop.work, &nested.encode());
            shop.told(nested.key, &told, false);
            shop.over(&question, &call.body)?;
            return told.map(|_| call.body.clone()).map_err(Failure::from);
        }
        Work::Now | Work::No => {}
    }
    shop.over(&question, &call.body)
}

async fn by_task(shop: Arc<Shop>, call: AsyncCall) -> Result<Bytes, Failure> {
    let question = Question::decode(&call.body)?;
    shop.add(Entry::Began(question.key));
    match question.work {
        Work::Slow(ms) => tokio::time::sleep(Duration::from_millis(ms.into())).await,
        Work::Nest => {
            let nested = shop.nested();
            let told = shop.callees().1.call(&shop.work, &nested.encode()).await;
            shop.told(nested.key, &told, true);
            shop.over(&question, &call.body)?;
            return told.map(|_| call.body).map_err(Failure::from);
        }
        Work::Now | Work::No => {}
    }
    shop.over(&question, &call.body)
}
