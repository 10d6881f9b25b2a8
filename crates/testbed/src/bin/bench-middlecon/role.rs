//! The processes that this program starts of itself: a callee, a caller, a callee that will be killed.
//!
//! They speak in lines. A callee says `ready` and where it is; a caller is given jobs and says what came of
//! them. Both end when their standard input does, so nothing outlives a killed benchmark.

use std::io::{self, BufRead as _, Write as _};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use kumo_sys::cpu;

use crate::clock::{Job, NOTHING_IN_TIME, Question, Round, Stopwatch};
use crate::ways::{self, Ask, AskTask, Callers, Connect, Place};

/// Where a process of the benchmark is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Where {
    /// The contender
    pub(crate) id: String,
    /// A directory of both ends
    pub(crate) dir: PathBuf,
    /// The run directory of the node
    pub(crate) run_dir: PathBuf,
    /// The address to listen at
    pub(crate) ip: std::net::IpAddr,
    /// The core to run on
    pub(crate) cpu: usize,
    /// The cores of both ends
    #[arg(value_delimiter = ',')]
    pub(crate) cpus: Vec<usize>,
    /// What the callee said
    #[arg(long, default_value = "")]
    pub(crate) said: String,
}

impl Where {
    fn place(&self) -> Place {
        let Where { id, dir, run_dir, ip, cpu, cpus, said } = self.clone();
        Place { id, dir, run_dir, ip, said, cpus, cpu }
    }
}

type AtEnd = Box<dyn FnOnce() + Send>;

static AT_END: Mutex<Vec<AtEnd>> = Mutex::new(Vec::new());

/// Does something when this process is told to end.
#[cfg_attr(not(feature = "peers"), allow(dead_code))]
pub(crate) fn at_end(act: impl FnOnce() + Send + 'static) {
    AT_END.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(act));
}

fn end() -> ! {
    AT_END.lock().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(|act| act());
    std::process::exit(0)
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    // Who started us has gone: then our input ends, too.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Answers until the input ends.
pub(crate) fn callee(at: &Where) -> io::Result<()> {
    // Before there is any other thread: all of them stay there.
    cpu::keep_to(&[at.cpu])?;
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        end()
    });
    ways::answer(&at.place(), &|said| say(&format!("ready {said}")))
}

/// Hangs until it is killed.
pub(crate) fn victim(at: &Where) -> io::Result<()> {
    cpu::keep_to(&[at.cpu])?;
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        end()
    });
    crate::deaths::victim(at, say)
}

/// Calls who will be killed, until the input ends.
pub(crate) fn mourner(at: &Where) -> io::Result<()> {
    cpu::keep_to(&[at.cpu])?;
    crate::deaths::mourner(at, say)
}

/// Asks as it is told, until the input ends.
pub(crate) fn caller(at: &Where) -> io::Result<()> {
    cpu::keep_to(&[at.cpu])?;
    // A panic in a system of others must not let the rest wait for its thread for ever.
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        std::process::exit(101);
    }));
    let callers = ways::callers(&at.place())?;
    let mut crew = Crew::default();
    say("ready");
    for line in io::stdin().lock().lines() {
        let job: Job = line?.parse()?;
        let took_ns = match &callers {
            Callers::Threads(connect) => crew.work(job, connect),
            Callers::Tasks(runtime, ask) => runtime.block_on(tasks(job, ask)),
        };
        match took_ns.map(|took_ns| Round::of(took_ns, &job)) {
            Ok(Some(round)) => say(&round.to_string()),
            Ok(None) => say(NOTHING_IN_TIME),
            Err(error) => say(&kumo_testbed::chain(&error)),
        }
    }
    Ok(())
}

fn differs() -> io::Error {
    io::Error::other("the answer is not what was asked")
}

/// One caller after the other, in threads that stay: each keeps its connection.
#[derive(Default)]
struct Crew {
    workers: Vec<Sender<Shift>>,
}

/// What one thread of the crew is given to do.
struct Shift {
    job: Job,
    /// All have a connection.
    all: Arc<Barrier>,
    start: Arc<OnceLock<Instant>>,
    took_ns: Sender<io::Result<Vec<u32>>>,
}

impl Crew {
    fn work(&mut self, job: Job, connect: &Arc<Connect>) -> io::Result<Vec<u32>> {
        while self.workers.len() < job.callers {
            let (send, shifts) = channel();
            let connect = connect.clone();
            std::thread::spawn(move || worker(&*connect, &shifts));
            self.workers.push(send);
        }
        let (all, start) = (Arc::new(Barrier::new(job.callers)), Arc::default());
        let (send, took_ns) = channel();
        for worker in &self.workers[..job.callers] {
            let (all, start) = (Arc::clone(&all), Arc::clone(&start));
            let shift = Shift { job, all, start, took_ns: send.clone() };
            worker.send(shift).map_err(|_| io::Error::other("a caller panicked"))?;
        }
        drop(send);
        let mut all_ns = Vec::new();
        let mut failed = None;
        for took_ns in took_ns {
            match took_ns {
                Ok(took_ns) => all_ns.extend(took_ns),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(all_ns), Err)
    }
}

fn worker(connect: &Connect, shifts: &Receiver<Shift>) {
    let mut kept: Option<Box<dyn Ask>> = None;
    for Shift { job, all, start, took_ns } in shifts {
        let connected = kept.take().map_or_else(connect, Ok);
        all.wait();
        let worked = connected.and_then(|mut ask| {
            let took_ns = one_after_the_other(&job, &start, &mut *ask)?;
            if ask.is_kept() {
                kept = Some(ask);
            }
            Ok(took_ns)
        });
        // Whoever waits for it is there until all have answered.
        let _ = took_ns.send(worked);
    }
}

fn one_after_the_other(
    job: &Job,
    start: &OnceLock<Instant>,
    ask: &mut dyn Ask,
) -> io::Result<Vec<u32>> {
    let mut question = Question::new(job.size_bytes);
    let mut watch = Stopwatch::start(job, *start.get_or_init(Instant::now));
    for count in 0.. {
        question.turn(count);
        if !ask.ask(&question)? {
            return Err(differs());
        }
        if !watch.lap() {
            break;
        }
        if let Some(pause) = watch.pause() {
            std::thread::sleep(pause);
            watch.go_on();
        }
    }
    Ok(watch.took_ns())
}

async fn tasks(job: Job, ask: &Rc<dyn AskTask>) -> io::Result<Vec<u32>> {
    let local = tokio::task::LocalSet::new();
    let start = Instant::now();
    let callers: Vec<_> = (0..job.callers)
        .map(|_| {
            let ask = ask.clone();
            local.spawn_local(async move {
                let mut question = Question::new(job.size_bytes);
                let mut watch = Stopwatch::start(&job, start);
                for count in 0.. {
                    question.turn(count);
                    let body = Bytes::copy_from_slice(question.body());
                    if ask.ask(body).await? != question.body() {
                        return Err(differs());
                    }
                    if !watch.lap() {
                        break;
                    }
                    if let Some(pause) = watch.pause() {
                        tokio::time::sleep(pause).await;
                        watch.go_on();
                    }
                }
                Ok(watch.took_ns())
            })
        })
        .collect();
    local.await;
    let mut all_ns = Vec::new();
    for caller in callers {
        all_ns.extend(caller.await.map_err(io::Error::other)??);
    }
    Ok(all_ns)
}
