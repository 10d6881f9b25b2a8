//! Reactions: when something happens, the node calls a service (docs/REACTIONS.md, decision 0007).
//!
//! Reactions are part of the desired state, so all hosts of a cluster have the same ones. Each host
//! watches its own processes; what is about hosts and services is acted upon by the one that rendezvous
//! hashing names among those that are alive, as this one sees them. Whether a reaction may call is
//! decided in [`rules`], what came of it stands in the [`journal`], and here are the channels, the
//! clock and the calls.
//!
//! An event is acted upon at most once: it is heard once, and a call is made again only if it was
//! certainly not executed, once. What a node that is down, or slower than its events, did not hear is
//! not made up for.

pub(crate) mod journal;
pub(crate) mod rules;
pub(crate) mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k2i::{Engine, News};
use kumo_abi::call::{Cause, ServiceName, Status};
use kumo_abi::cluster::{HostInfo, HostState};
use kumo_abi::react::{Compiled, REACTIONS_MAX, Reaction, ReactionName, Watched};
use kumo_abi::{ColumnIndex, Value};
use kumo_fabric::{Fabric, HostEvent, rendezvous};
use middlecon::{CallError, Context};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::journal::{Entry, Journal, MESSAGE_CHARS_MAX};
use self::rules::{Gate, Held, Hosts, Load, Services, Verdict};
use crate::calls::shown::outcome;
use crate::calls::{Shared as Calls, random};
use crate::web::Web;

/// What keys of reactions begin with: `react/NAME`.
pub(crate) const PREFIX: &str = "react/";

/// Services are looked at so often, while a reaction watches them.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A call that was certainly not executed is made once more, after this or what the callee says: a
/// service that is being replaced is back by then.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The key of a reaction.
pub(crate) fn key(name: &ReactionName) -> String {
    format!("{PREFIX}{name}")
}

/// How often a reaction did what, on this host since it was set or the node began.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Counts {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) not_executed: u64,
    pub(crate) unknown: u64,
    /// Events that fulfilled the condition and were not acted upon: rate, places, loop guard.
    pub(crate) dropped: u64,
}

/// A reaction, as this host works with it.
#[derive(Debug)]
struct Kept {
    name: ReactionName,
    /// As it stands in the desired state: whether it has changed is told by this.
    text: Vec<u8>,
    /// What is wrong with it, where something is: a later version may have written it.
    reaction: Result<(Reaction, Compiled), String>,
    gate: Mutex<Gate>,
    held: Mutex<Held>,
    counts: Mutex<Counts>,
}

impl Kept {
    fn read(name: ReactionName, text: Vec<u8>) -> Kept {
        let reaction = serde_json::from_slice::<Reaction>(&text)
            .map_err(|error| error.to_string())
            .and_then(|reaction| {
                let compiled = reaction.compile().map_err(|error| error.to_string())?;
                Ok((reaction, compiled))
            });
        if let Err(error) = &reaction {
            tracing::error!(
                "the reaction `{name}` makes no sense here, so it does nothing: {error}"
            );
        }
        // One that cannot be read never asks its gate.
        let (calls_per_s, depth_max) =
            reaction.as_ref().map_or((0, 0), |(it, _)| (it.calls_per_s, it.depth_max));
        let gate = Mutex::new(Gate::new(calls_per_s, depth_max, boot_ns()));
        let (held, counts) = (Mutex::default(), Mutex::default());
        Kept { name, text, reaction, gate, held, counts }
    }

    /// What it is, if it works and watches this.
    fn on(&self, watched: Watched) -> Option<(&Reaction, &Compiled)> {
        let (reaction, compiled) = self.reaction.as_ref().ok()?;
        (reaction.enabled && reaction.on == watched).then_some((reaction, compiled))
    }
}

/// What the parts share.
pub(crate) struct Shared {
    web: Web,
    engine: Arc<Engine>,
    calls: Arc<Calls>,
    run_dir: Arc<Path>,
    began: Instant,
    kept: Mutex<Vec<Arc<Kept>>>,
    journal: Mutex<Journal>,
    /// Entries of calls that are under way.
    running: Mutex<BTreeSet<String>>,
    /// Events that were not heard: they came too fast.
    missed: Mutex<u64>,
    client: tokio::sync::Mutex<Option<middlecon::Node>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What panicked under it is a bug of ours; what it left is no worse than a crash.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        web: Web,
        engine: Arc<Engine>,
        calls: Arc<Calls>,
        run_dir: Arc<Path>,
        state_dir: &Path,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            web,
            engine,
            calls,
            run_dir,
            began: Instant::now(),
            kept: Mutex::default(),
            journal: Mutex::new(Journal::of(state_dir)),
            running: Mutex::default(),
            missed: Mutex::default(),
            client: tokio::sync::Mutex::default(),
        })
    }

    /// One that does nothing.
    #[cfg(test)]
    pub(crate) fn idle(web: Web, calls: Arc<Calls>) -> Arc<Shared> {
        let config = k2i::EngineConfig {
            collector: k2i::CollectorChoice::Only(k2i::CollectorKind::Proc),
            dc: "tokyo".to_owned(),
            host: "a".to_owned(),
        };
        let engine = Arc::new(Engine::open(config).expect("/proc is there"));
        Shared::new(web, engine, calls, Path::new("/").into(), Path::new("/"))
    }

    /// Those that there are now, in the order of their names.
    fn kept(&self) -> Vec<Arc<Kept>> {
        lock(&self.kept).clone()
    }

    fn watches(&self, watched: Watched) -> bool {
        lock(&self.kept).iter().any(|kept| kept.on(watched).is_some())
    }

    /// Takes in what stands in the desired state. What has not changed goes on as it is.
    fn read_all(&self, fabric: &Fabric) {
        let mut kept = lock(&self.kept);
        let mut before: BTreeMap<ReactionName, Arc<Kept>> =
            kept.drain(..).map(|kept| (kept.name.clone(), kept)).collect();
        let all = fabric.store().with_prefix(PREFIX).into_iter().filter_map(|(key, text)| {
            Some((key.strip_prefix(PREFIX)?.parse::<ReactionName>().ok()?, text))
        });
        // Beyond the most, which only hosts that were cut off from each other can write together, all
        // hosts leave out the same ones.
        for (name, text) in all.take(REACTIONS_MAX) {
            let known = before.remove(&name).filter(|known| known.text == text);
            kept.push(known.unwrap_or_else(|| Arc::new(Kept::read(name, text))));
        }
    }

    /// Whether this host acts for all, where one does.
    fn is_responsible(&self, name: &ReactionName) -> bool {
        let hosts = self.web.states();
        let alive = hosts.iter().filter(|host| host.state == HostState::Alive).map(|host| &host.id);
        rendezvous::first(&key(name), alive) == Some(&self.web.me())
    }

    /// Appends to the journal; when this returns, it is there or counted as missing.
    async fn write(self: &Arc<Self>, entry: Entry) {
        let shared = Arc::clone(self);
        // A panic in there is a bug, logged by the runtime; the entry is missing then.
        let _ = spawn_blocking(move || lock(&shared.journal).write(&entry)).await;
    }

    /// The node as a program of its own: made at the first call.
    async fn client(&self) -> Result<middlecon::Node, CallError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let run_dir = Arc::clone(&self.run_dir);
        let made = spawn_blocking(move || middlecon::Node::connect(&run_dir)).await;
        let why = match made {
            Ok(Ok(made)) => {
                made.secure_with(Arc::new(middlecon::OfCluster));
                return Ok(client.insert(made).clone());
            }
            Ok(Err(error)) => k2i::chain(&error),
            Err(error) => error.to_string(),
        };
        let (cause, path) = (Cause::NoNode, Vec::new());
        Err(CallError::NotExecuted { cause, message: why, path, retry_after_ms: None })
    }

    /// An event fulfils a condition: calls, or says why not.
    fn act(
        self: &Arc<Self>,
        kept: &Arc<Kept>,
        (reaction, compiled): (&Reaction, &Compiled),
        at_ns: u64,
        value: &dyn Fn(ColumnIndex) -> Value<'static>,
    ) {
        let mut entry = Entry {
            id: format!("{:016x}", random()),
            at: k2i::host::now(),
            reaction: kept.name.clone(),
            outcome: "began".to_owned(),
            cause: None,
            code: None,
            message: None,
            call: format!("{}/{}", reaction.service, reaction.method),
            trace: None,
            event: compiled.summary(value),
            depth: 0,
            attempts: None,
            took_ms: None,
            dropped: 0,
        };
        let verdict = lock(&kept.gate).ask(boot_ns(), at_ns);
        match verdict {
            Verdict::Call { number, depth, dropped } => {
                (entry.depth, entry.dropped) = (depth, dropped);
                let body = compiled.data(value).into_bytes();
                let (shared, kept) = (Arc::clone(self), Arc::clone(kept));
                let reaction = reaction.clone();
                tokio::spawn(async move {
                    let ended = Ended { kept: &kept, number };
                    shared.call(&kept, &reaction, &body, entry).await;
                    drop(ended);
                });
            }
            Verdict::Drop { why, first } => {
                lock(&kept.counts).dropped += 1;
                if first {
                    "dropped".clone_into(&mut entry.outcome);
                    entry.cause = Some(why.name().to_owned());
                    let shared = Arc::clone(self);
                    tokio::spawn(async move { shared.write(entry).await });
                }
            }
        }
    }

    /// Calls, and writes what came of it.
    async fn call(
        self: &Arc<Self>,
        kept: &Kept,
        reaction: &Reaction,
        body: &[u8],
        mut entry: Entry,
    ) {
        let context = Context::root(Duration::from_millis(reaction.budget_ms));
        entry.trace = Some(context.trace().to_string());
        let _running = Running::new(self, &entry.id);
        self.write(entry.clone()).await;
        let began = Instant::now();
        let mut attempts = 1;
        let result = loop {
            let result = self.try_once(&context, reaction, body).await;
            match again_after(&result) {
                Some(pause) if attempts == 1 && pause < context.left() => sleep(pause).await,
                _ => break result,
            }
            attempts += 1;
        };
        let status = result.as_ref().err().map_or(Status::Done, CallError::status);
        let (said, cause, code) = outcome(status.number());
        said.clone_into(&mut entry.outcome);
        (entry.cause, entry.code) = (cause.map(str::to_owned), code);
        entry.message = match &result {
            Ok(()) => None,
            Err(
                CallError::Failed { message, .. }
                | CallError::NotExecuted { message, .. }
                | CallError::Unknown { message, .. },
            ) => Some(message.chars().take(MESSAGE_CHARS_MAX).collect()),
        };
        (entry.attempts, entry.took_ms) =
            (Some(attempts), Some(began.elapsed().as_secs_f64() * 1e3));
        {
            let mut counts = lock(&kept.counts);
            *match status {
                Status::Done => &mut counts.done,
                Status::Failed(_) => &mut counts.failed,
                Status::NotExecuted(_) => &mut counts.not_executed,
                Status::Unknown(_) => &mut counts.unknown,
            } += 1;
        }
        self.write(entry).await;
    }

    async fn try_once(
        &self,
        context: &Context,
        reaction: &Reaction,
        body: &[u8],
    ) -> Result<(), CallError> {
        let client = self.client().await?;
        let service = client.service_async(&reaction.service);
        let (method, body) = (reaction.method.clone(), body.to_vec());
        let call = context.run(async move { service.call(&method, &body).await });
        call.await.map(drop)
    }

    /// A process has begun or ended on this host.
    fn hear_process(self: &Arc<Self>, event: &k2i::Event) {
        let is_reap = event.kind == kumo_abi::events::EventKind::Reap;
        for kept in self.kept() {
            let Some((reaction, compiled)) = kept.on(Watched::Process) else { continue };
            if is_reap && !compiled.hears_reaps() {
                continue;
            }
            self.engine.read_event(event, compiled.columns(), |value| {
                if compiled.matches(value) {
                    self.act(&kept, (reaction, compiled), event.at_ns, value);
                }
            });
        }
    }

    /// The state of a host has changed.
    fn hear_host(self: &Arc<Self>, host: &HostInfo) {
        for kept in self.kept() {
            let Some((reaction, compiled)) = kept.on(Watched::Host) else { continue };
            let value = |column| kumo_abi::hosts::value(host, column).into_owned();
            if compiled.matches(&value) && self.is_responsible(&kept.name) {
                self.act(&kept, (reaction, compiled), boot_ns(), &value);
            }
        }
    }

    /// Services were looked at.
    fn hear_services(self: &Arc<Self>, services: &BTreeMap<ServiceName, Load>) {
        for kept in self.kept() {
            let Some((reaction, compiled)) = kept.on(Watched::Service) else { continue };
            let holds = services.iter().map(|(service, load)| {
                (service, compiled.matches(&|column| service_value(service, *load, column)))
            });
            // All hosts look, so that whoever is responsible next knows what was before.
            let begin = lock(&kept.held).look(holds);
            if begin.is_empty() || !self.is_responsible(&kept.name) {
                continue;
            }
            for service in begin {
                let load = services.get(&service).copied().unwrap_or_default();
                let value = |column| service_value(&service, load, column);
                self.act(&kept, (reaction, compiled), boot_ns(), &value);
            }
        }
    }

    /// Events of processes came faster than they were looked at.
    async fn miss(self: &Arc<Self>, count: u64) {
        *lock(&self.missed) += count;
        tracing::warn!("{count} events of processes came too fast for the reactions");
        for kept in self.kept() {
            let Some((reaction, _)) = kept.on(Watched::Process) else { continue };
            let entry = Entry {
                id: format!("{:016x}", random()),
                at: k2i::host::now(),
                reaction: kept.name.clone(),
                outcome: "missed".to_owned(),
                cause: None,
                code: None,
                message: Some(format!("{count} events came too fast and were not looked at")),
                call: format!("{}/{}", reaction.service, reaction.method),
                trace: None,
                event: serde_json::Value::Null,
                depth: 0,
                attempts: None,
                took_ms: None,
                dropped: count,
            };
            self.write(entry).await;
        }
    }
}

/// Tells the gate that a call has ended, however it did.
struct Ended<'a> {
    kept: &'a Kept,
    number: u64,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        lock(&self.kept.gate).ended(self.number, boot_ns());
    }
}

/// Marks an entry as one of a call that is under way, however that ends.
struct Running<'a> {
    shared: &'a Shared,
    id: String,
}

impl Running<'_> {
    fn new<'a>(shared: &'a Shared, id: &str) -> Running<'a> {
        lock(&shared.running).insert(id.to_owned());
        Running { shared, id: id.to_owned() }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        lock(&self.shared.running).remove(&self.id);
    }
}

/// Whether a call is worth a second attempt, and after which pause: only if it was certainly not
/// executed, and for a cause that may pass.
fn again_after(result: &Result<(), CallError>) -> Option<Duration> {
    let Err(CallError::NotExecuted { cause, retry_after_ms, .. }) = result else { return None };
    let stays = matches!(
        cause,
        Cause::Denied
            | Cause::Deadline
            | Cause::Cancelled
            | Cause::Cycle
            | Cause::Depth
            | Cause::TooLarge
            | Cause::Malformed
    );
    let said = retry_after_ms.map(|ms| Duration::from_millis(ms.into()));
    (!stays).then(|| said.map_or(AGAIN_AFTER, |said| said.max(AGAIN_AFTER)))
}

fn service_value(service: &ServiceName, load: Load, column: ColumnIndex) -> Value<'static> {
    match kumo_abi::react::SERVICES.columns[column].name {
        "service" => Value::owned_text(service.as_str()),
        "ready" => Value::Int(load.ready.into()),
        "ready_before" => Value::Int(load.ready_before.into()),
        "asleep" => Value::Int(load.asleep.into()),
        "hosts" => Value::Int(load.hosts.into()),
        _ => Value::Int(load.load_percent.into()),
    }
}

/// Nanoseconds of boot time, as events have them.
fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Reacts until the node stops. A host without a cluster has no desired state, hence no reactions.
pub(crate) async fn keep(shared: Arc<Shared>, mut stopping: watch::Receiver<bool>) {
    let Web::Many(fabric) = shared.web.clone() else { return };
    tokio::select! {
        () = follow(&shared, &fabric) => {}
        // An error means that the node is gone.
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}

async fn follow(shared: &Arc<Shared>, fabric: &Fabric) {
    // Before all is read: what changes meanwhile is heard of.
    let (mut changes, mut host_events) = (fabric.store().changes(), fabric.events());
    shared.read_all(fabric);
    let mut hosts = Hosts::default();
    hosts.start(fabric.states().into_iter().map(|host| (host.id, host.state)));
    let mut services = Services::default();
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut news: Option<Receiver<News>> = None;
    loop {
        // Events that nobody watches cost nothing.
        if !shared.watches(Watched::Process) {
            news = None;
        } else if news.is_none() {
            news = shared.engine.events().ok();
        }
        tokio::select! {
            change = changes.recv() => match change {
                Ok(change) if !change.key.starts_with(PREFIX) => {}
                Ok(_) | Err(RecvError::Lagged(_)) => shared.read_all(fabric),
                Err(RecvError::Closed) => return,
            },
            event = host_events.recv() => match event {
                Ok(event) => hear_host_event(shared, fabric, &mut hosts, &event),
                Err(RecvError::Lagged(_)) => {
                    for host in fabric.hosts() {
                        let age_ns = shared.began.elapsed().as_nanos() as u64;
                        if hosts.changes(&host.id, host.state, age_ns) {
                            shared.hear_host(&host);
                        }
                    }
                }
                Err(RecvError::Closed) => return,
            },
            one = next(&mut news) => match one {
                Ok(News::Event(event)) => shared.hear_process(&event),
                // What the kernel lost is counted by the process table, and shown there.
                Ok(News::Lost(_)) => {}
                Err(RecvError::Lagged(count)) => shared.miss(count).await,
                Err(RecvError::Closed) => news = None,
            },
            _ = looks.tick(), if shared.watches(Watched::Service) => {
                shared.hear_services(services.look(&shared.calls.loads()));
            }
        }
    }
}

fn hear_host_event(shared: &Arc<Shared>, fabric: &Fabric, hosts: &mut Hosts, event: &HostEvent) {
    let age_ns = shared.began.elapsed().as_nanos() as u64;
    if !hosts.changes(&event.id, event.state, age_ns) {
        return;
    }
    // By now it may be known to be otherwise; that is an event of its own.
    let known = fabric.host(&event.id);
    let host = HostInfo {
        id: event.id.clone(),
        state: event.state,
        state_ms: 0,
        incarnation: known.as_ref().and_then(|known| known.incarnation),
        card: known.and_then(|known| known.card),
    };
    shared.hear_host(&host);
}

/// The next event of a process; never, where nobody watches them.
async fn next(news: &mut Option<Receiver<News>>) -> Result<News, RecvError> {
    match news {
        Some(news) => news.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_executed_and_may_pass_is_tried_again() {
        let not = |cause, retry_after_ms| {
            let (message, path) = (String::new(), Vec::new());
            Err(CallError::NotExecuted { cause, message, path, retry_after_ms })
        };
        let cases = [
            (Ok(()), None),
            (not(Cause::NoSuch, None), Some(200)),
            (not(Cause::Busy, Some(700)), Some(700)),
            (not(Cause::Busy, Some(1)), Some(200)),
            (not(Cause::Denied, None), None),
            (not(Cause::Deadline, None), None),
            (Err(CallError::Unknown { cause: Cause::Died, message: String::new() }), None),
            (Err(CallError::Failed { code: 1, message: String::new() }), None),
        ];
        for (result, want_ms) in cases {
            assert_eq!(again_after(&result), want_ms.map(Duration::from_millis), "for {result:?}");
        }
    }
}
