//! A program that calls, by threads and by tasks, and writes down what it was told.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kumo_abi::call::Status;
use middlecon::{AsyncService, CallError, OfCluster, Service};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::ledger::{Entry, Key, Late, Ledger, Way};
use super::question::Question;
use super::{BoxError, method, service};
use crate::sim::Dice;

/// How long it looks for its node again.
const PAUSE: Duration = Duration::from_millis(20);

/// Who was told that nothing was executed tries something else a moment later, and does not ask all the
/// time.
const AFTER_NO: Duration = Duration::from_millis(5);

/// How long descriptors may need to be closed when all is over: other threads close them.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// What a client is told in its arguments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) run_dir: PathBuf,
    pub(super) ledger: PathBuf,
    pub(super) client: u32,
    pub(super) seed: u64,
    /// Whom it calls.
    pub(super) services: Vec<String>,
    pub(super) threads: usize,
    pub(super) tasks: usize,
}

/// What a client says before it ends by itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Left {
    /// Descriptors before its first call, and after its last.
    pub(super) fds: (usize, usize),
}

struct Caller {
    ledger: Ledger,
    client: u32,
    count: AtomicU32,
    over: AtomicBool,
}

/// One call, and when it must be over.
struct Made {
    way: Way,
    question: Question,
    body: Vec<u8>,
    budget: Duration,
    began: Instant,
    waited: Duration,
}

impl Caller {
    fn make(&self, dice: &mut Dice, queue: &Queue, services: usize, by_task: bool) -> Made {
        let service = dice.within(0..=services as u64 - 1) as u16;
        let key = Key::new(self.client, self.count.fetch_add(1, Ordering::Relaxed));
        let question = Question::roll(key, dice);
        let budget_ms = match dice.within(0..=99) {
            0..=9 => dice.within(1..=50),
            10..=29 => dice.within(50..=300),
            _ => dice.within(300..=2_000),
        };
        let (budget, waited) = (Duration::from_millis(budget_ms), queue.waited());
        let way = Way { service, by_task };
        Made { way, question, body: question.encode(), budget, began: Instant::now(), waited }
    }

    /// Writes down what came of a call; whether it was certainly not executed.
    fn told(&self, made: &Made, told: &Result<Bytes, CallError>, queue: &Queue) -> bool {
        let over = made.began.elapsed();
        let status = super::status(told);
        // A reply that is not what was sent is none.
        let wrong = matches!(told, Ok(reply) if *reply != made.body);
        let mut entries = vec![Entry::Told(made.question.key, status, made.way)];
        if wrong {
            eprintln!("call {:x?}: the reply is of another call", made.question.key);
            // Told twice: the checker finds it.
            entries.push(entries[0]);
        }
        if let Some(by) = over.checked_sub(made.budget) {
            let us = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
            let now = clock_gettime(ClockId::Monotonic);
            entries.push(Entry::Late(Late {
                key: made.question.key,
                by_us: us(by),
                waited_us: us(queue.waited().saturating_sub(made.waited)),
                at_ns: now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64,
            }));
        }
        for entry in entries {
            if let Err(error) = self.ledger.add(entry) {
                eprintln!("the ledger: {error}");
                std::process::abort();
            }
        }
        matches!(status, Status::NotExecuted(_))
    }
}

/// For how long this thread wanted to run and did not, as the kernel says.
struct Queue(Option<File>);

impl Queue {
    fn of_this_thread() -> Queue {
        Queue(File::open("/proc/thread-self/schedstat").ok())
    }

    fn waited(&self) -> Duration {
        let mut text = [0; 64];
        let read = self.0.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        let second = text[..read].split(|byte| *byte == b' ').nth(1);
        let ns = second.and_then(|word| std::str::from_utf8(word).ok()?.trim().parse().ok());
        Duration::from_nanos(ns.unwrap_or(0))
    }
}

/// Calls until standard input ends.
pub(super) fn run(orders: &Orders) -> Result<(), BoxError> {
    let ledger = Ledger::create(&orders.ledger)?;
    let node = super::connect(&orders.run_dir, PAUSE);
    node.secure_with(Arc::new(OfCluster));
    let caller = Caller {
        ledger,
        client: orders.client,
        count: AtomicU32::new(0),
        over: AtomicBool::new(false),
    };
    let names: Vec<_> = orders.services.iter().map(|name| service(name)).collect();
    // Tokio keeps descriptors of its own from the first runtime on.
    drop(tokio::runtime::Builder::new_current_thread().enable_all().build()?);
    let before = descriptors();
    println!("ready");
    std::thread::scope(|scope| {
        let callees: Vec<Service> = names.iter().map(|name| node.service(name)).collect();
        for thread in 0..orders.threads {
            let (callees, caller) = (callees.clone(), &caller);
            let mut dice = Dice::new(orders.seed ^ (thread as u64) << 32);
            scope.spawn(move || by_thread(caller, &callees, &mut dice));
        }
        let callees: Vec<AsyncService> =
            names.iter().map(|name| node.service_async(name)).collect();
        let caller = &caller;
        scope.spawn(move || by_tasks(caller, &callees, orders));
        let heard = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        caller.over.store(true, Ordering::Relaxed);
        heard.map(drop)
    })?;
    let began = Instant::now();
    while descriptors() > before && began.elapsed() < SETTLE_MAX {
        std::thread::sleep(PAUSE);
    }
    println!("{}", serde_json::to_string(&Left { fds: (before, descriptors()) })?);
    Ok(())
}

fn by_thread(caller: &Caller, callees: &[Service], dice: &mut Dice) {
    let (queue, work) = (Queue::of_this_thread(), method("work"));
    while !caller.over.load(Ordering::Relaxed) {
        let made = caller.make(dice, &queue, callees.len(), false);
        let callee = &callees[usize::from(made.way.service)];
        let told = callee.request(&work).budget(made.budget).call(&made.body);
        if caller.told(&made, &told, &queue) {
            std::thread::sleep(AFTER_NO);
        }
    }
}

/// All on one thread, so that the kernel can say for how long they had to wait for it.
fn by_tasks(caller: &Caller, callees: &[AsyncService], orders: &Orders) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    let (queue, work) = (Queue::of_this_thread(), method("work"));
    let one = async |task: usize| {
        let mut dice = Dice::new(orders.seed ^ (task as u64) << 40);
        while !caller.over.load(Ordering::Relaxed) {
            let made = caller.make(&mut dice, &queue, callees.len(), true);
            let callee = &callees[usize::from(made.way.service)];
            let told = callee.request(&work).budget(made.budget).call(&made.body).await;
            if caller.told(&made, &told, &queue) {
                tokio::time::sleep(AFTER_NO).await;
            }
        }
    };
    let mut tasks: Vec<_> = (1..=orders.tasks).map(|task| Box::pin(one(task))).collect();
    runtime.block_on(std::future::poll_fn(|cx| {
        tasks.retain_mut(|task| task.as_mut().poll(cx).is_pending());
        if tasks.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    }));
}

/// How many descriptors this process has.
pub(super) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}
