//! Asks many hosts, by the rules of [`crate::gather`].
//!
//! Zenoh ends a query silently when an answerer dies, when a gateway dies, when a route is lost. So
//! nothing is concluded from a query's end: each host that has not answered is looked up among the
//! members, asked once more if that does no harm, and named with what is known of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::cluster::{HostOutcome, HostState, Outcome};
use kumo_abi::{DcName, HostId};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use zenoh::bytes::ZBytes;
use zenoh::query::{ConsolidationMode, QueryTarget, Reply};
use zenoh::sample::Locality;

use crate::ask::{Ask, Part};
use crate::gather::{self, Relayed, Standing, Waiting};
use crate::net::answer::{RelayHead, decode_part, list_hosts};
use crate::shared::{HostEvent, Shared};

/// Parts that wait for their reader. A reader that is slower slows the question down, to its deadline.
const PARTS_MAX: usize = 64;

/// So many hosts of a data centre are asked one by one; more by one question to all of them.
const SINGLES_MAX: usize = 8;

/// A gateway that hears a question says so; one that has not after so long hangs, and another way is
/// taken.
const HEARD_TIME_MAX: Duration = Duration::from_millis(400);

/// What a gateway knows when its time is up must still reach us.
const RELAY_MARGIN: Duration = Duration::from_millis(40);

/// So many gateways are tried; then whoever is left is asked directly.
const GATEWAYS_TRIED_MAX: usize = 2;

/// When a query has ended without an answer of all, the reasons become known after at most so long.
const VERDICT_TIME_MAX: Duration = Duration::from_millis(350);

/// A payload as bytes; without a copy where it is in one piece.
pub(crate) fn bytes_of(payload: &ZBytes) -> Bytes {
    Bytes::from(payload.to_bytes().into_owned())
}

/// Asks; parts come as they are known. Dropping the receiver ends it.
pub(crate) fn gather(shared: &Arc<Shared>, ask: Ask) -> mpsc::Receiver<Part> {
    let (parts, receiver) = mpsc::channel(PARTS_MAX);
    let shared = Arc::clone(shared);
    let handle = shared.handle.clone();
    handle.spawn(async move {
        let reader_gone = parts.clone();
        tokio::select! {
            () = run(shared, ask, parts) => (),
            () = reader_gone.closed() => (),
        }
    });
    receiver
}

async fn run(shared: Arc<Shared>, ask: Ask, parts: mpsc::Sender<Part>) {
    let began = Instant::now();
    let events = shared.events.subscribe();
    let plan = gather::plan(
        &ask.hosts,
        &shared.me,
        |host| shared.standing(host),
        |dc| if ask.merge { shared.merger(dc, None) } else { None },
    );
    let question = Arc::new(Question { shared, ask, parts, began });
    if !plan.settled.is_empty() {
        question.tell(None, plan.settled).await;
    }
    let mut ways = JoinSet::new();
    if plan.own {
        ways.spawn(own(Arc::clone(&question)));
    }
    for (dc, hosts) in plan.direct {
        ways.spawn(direct(Arc::clone(&question), dc, hosts, events.resubscribe()));
    }
    for relayed in plan.relayed {
        ways.spawn(relay(Arc::clone(&question), relayed, events.resubscribe()));
    }
    while ways.join_next().await.is_some() {}
}

/// What all ways of one question share.
struct Question {
    shared: Arc<Shared>,
    ask: Ask,
    parts: mpsc::Sender<Part>,
    began: Instant,
}

impl Question {
    fn deadline(&self) -> Instant {
        self.began + self.ask.deadline
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn tell(&self, answer: Option<Bytes>, outcomes: Vec<HostOutcome>) {
        // It fails when nobody reads any more; then all of this is dropped.
        let _ = self.parts.send(Part { answer, outcomes }).await;
    }

    async fn tell_one(&self, id: HostId, said: Result<Bytes, String>) {
        let (answer, outcome) = match said {
            Ok(answer) => (Some(answer), Outcome::Answered),
            Err(why) => (None, Outcome::Refused { why }),
        };
        self.tell(answer, vec![HostOutcome { id, outcome }]).await;
    }

    async fn tell_silent(&self, waiting: &mut Waiting) {
        let silent = waiting.silent(self.elapsed_ms());
        if !silent.is_empty() {
            self.tell(None, silent).await;
        }
    }

    /// Tells what has become of those who went since they were asked.
    async fn tell_gone(&self, waiting: &mut Waiting) {
        let gone: Vec<HostOutcome> = waiting
            .hosts()
            .filter_map(|host| match self.shared.standing(host) {
                Standing::Gone(state, for_ms) => {
                    Some(HostOutcome { id: host.clone(), outcome: gather::gone(state, for_ms) })
                }
                Standing::Present | Standing::Unknown => None,
            })
            .collect();
        for one in &gone {
            waiting.settle(&one.id);
        }
        if !gone.is_empty() {
            self.tell(None, gone).await;
        }
    }

    /// Waits for the next change of a host; a lagging reader looks at all.
    async fn changed(events: &mut broadcast::Receiver<HostEvent>) {
        loop {
            match events.recv().await {
                Ok(event) if event.state == HostState::Alive => (),
                Ok(_) | Err(RecvError::Lagged(_)) => return,
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

async fn own(question: Arc<Question>) {
    let shared = &question.shared;
    let answering = shared.answerer.answer(question.ask.request.clone());
    let me = shared.me.clone();
    match timeout_at(question.deadline(), answering).await {
        Ok(said) => question.tell_one(me, said).await,
        Err(_) => question.tell_silent(&mut Waiting::new([me])).await,
    }
}

/// Asks hosts of one data centre without a gateway that merges.
async fn direct(
    question: Arc<Question>,
    dc: DcName,
    hosts: Vec<HostId>,
    mut events: broadcast::Receiver<HostEvent>,
) {
    let mut waiting = Waiting::new(hosts);
    let mut round = 0;
    loop {
        let Some(mut replies) = send(&question, &dc, &waiting).await else { break };
        ask_until_end(&question, &mut waiting, &mut replies, &mut events).await;
        let is_late = Instant::now() >= question.deadline();
        if waiting.is_over() || is_late {
            break;
        }
        // The query has ended, and these did not answer it: why is known soon.
        let verdict = question.deadline().min(Instant::now() + VERDICT_TIME_MAX);
        loop {
            question.tell_gone(&mut waiting).await;
            let changed = Question::changed(&mut events);
            if waiting.is_over() || timeout_at(verdict, changed).await.is_err() {
                break;
            }
        }
        round += 1;
        if waiting.is_over() || round > 1 || !question.ask.idempotent {
            break;
        }
    }
    question.tell_gone(&mut waiting).await;
    question.tell_silent(&mut waiting).await;
}

/// Takes in replies and changes until all have an outcome, the query has ended, or time is up.
async fn ask_until_end(
    question: &Question,
    waiting: &mut Waiting,
    replies: &mut mpsc::UnboundedReceiver<Reply>,
    events: &mut broadcast::Receiver<HostEvent>,
) {
    let keys = &question.shared.keys;
    // What happened before `events` began.
    question.tell_gone(waiting).await;
    while !waiting.is_over() {
        tokio::select! {
            biased;
            reply = replies.recv() => {
                let Some(reply) = reply else { return };
                match reply.result() {
                    Ok(sample) => {
                        let host = keys.parse_ask(sample.key_expr().as_str());
                        if let Some(host) = host.filter(|host| waiting.settle(host)) {
                            question.tell_one(host, Ok(bytes_of(sample.payload()))).await;
                        }
                    }
                    Err(error) => refused(question, waiting, error.payload()).await,
                }
            }
            () = Question::changed(events) => question.tell_gone(waiting).await,
            () = sleep_until(question.deadline()) => return,
        }
    }
}

/// A refusal names its host in its first line; Zenoh's own errors do not, and say nothing of a host.
async fn refused(question: &Question, waiting: &mut Waiting, payload: &ZBytes) {
    let bytes = payload.to_bytes();
    let text = String::from_utf8_lossy(&bytes);
    let Some((host, why)) = text.split_once('\n') else {
        tracing::debug!("a query failed: {text}");
        return;
    };
    if let Ok(host) = host.parse::<HostId>()
        && waiting.settle(&host)
    {
        question.tell_one(host, Err(why.to_owned())).await;
    }
}

/// Sends the question to all who are waited for; `None` when there is no session.
async fn send(
    question: &Question,
    dc: &DcName,
    waiting: &Waiting,
) -> Option<mpsc::UnboundedReceiver<Reply>> {
    let shared = &question.shared;
    let session = shared.session()?;
    let (replies, receiver) = mpsc::unbounded_channel();
    let few = waiting.hosts().take(SINGLES_MAX + 1).count() <= SINGLES_MAX;
    let targets: Vec<(String, Option<Vec<u8>>)> = if few {
        waiting.hosts().map(|host| (shared.keys.ask(host), None)).collect()
    } else {
        vec![(shared.keys.ask_all(dc), Some(list_hosts(waiting.hosts())))]
    };
    for (key, listed) in targets {
        let replies = replies.clone();
        let time = question.deadline().saturating_duration_since(Instant::now());
        let get = session
            .get(key)
            .target(QueryTarget::All)
            .consolidation(ConsolidationMode::None)
            .allowed_destination(Locality::Remote)
            .timeout(time.max(Duration::from_millis(1)))
            .express(true)
            .payload(question.ask.request.as_ref())
            .attachment(listed)
            .callback(move |reply| {
                let _ = replies.send(reply);
            });
        if let Err(error) = get.await {
            tracing::debug!("a query could not be sent: {error}");
        }
    }
    Some(receiver)
}

/// Asks hosts by a gateway of their data centre that merges their answers. When that one is lost,
/// another does, or they are asked directly, if that does no harm.
async fn relay(
    question: Arc<Question>,
    relayed: Relayed,
    mut events: broadcast::Receiver<HostEvent>,
) {
    let Relayed { gateway, hosts } = relayed;
    let dc = gateway.dc.clone();
    let mut waiting = Waiting::new(hosts);
    let mut next = Some(gateway);
    for _ in 0..GATEWAYS_TRIED_MAX {
        let Some(gateway) = next else { break };
        by_gateway(&question, &gateway, &mut waiting).await;
        question.tell_gone(&mut waiting).await;
        if waiting.is_over() || !question.ask.idempotent || Instant::now() >= question.deadline() {
            break;
        }
        tracing::debug!("gateway {gateway} has not told of all; another way is taken");
        next = question.shared.merger(&dc, Some(&gateway));
    }
    if question.ask.idempotent && !waiting.is_over() && Instant::now() < question.deadline() {
        let hosts = waiting.hosts().cloned().collect();
        return direct(question, dc, hosts, events).await;
    }
    loop {
        let changed = Question::changed(&mut events);
        if waiting.is_over() || timeout_at(question.deadline(), changed).await.is_err() {
            break;
        }
        question.tell_gone(&mut waiting).await;
    }
    question.tell_gone(&mut waiting).await;
    question.tell_silent(&mut waiting).await;
}

/// One question to one gateway; returns when it has told of all, has ended, hangs, or time is up.
async fn by_gateway(question: &Question, gateway: &HostId, waiting: &mut Waiting) {
    let shared = &question.shared;
    let Some(session) = shared.session() else { return };
    let left = question.deadline().saturating_duration_since(Instant::now());
    // Little time is left when another gateway was asked before: half of it is for the way.
    let margin = RELAY_MARGIN.min(left / 2);
    let head = RelayHead {
        hosts: waiting.hosts().map(|id| id.host.clone()).collect(),
        deadline_ms: u64::try_from(left.saturating_sub(margin).as_millis()).unwrap_or(u64::MAX),
        idempotent: question.ask.idempotent,
    };
    let Ok(head) = serde_json::to_vec(&head) else { return };
    let (replies, mut receiver) = mpsc::unbounded_channel();
    let get = session
        .get(shared.keys.relay(gateway))
        .consolidation(ConsolidationMode::None)
        .timeout(left.max(Duration::from_millis(1)))
        .express(true)
        .payload(question.ask.request.as_ref())
        .attachment(head)
        .callback(move |reply: Reply| {
            let _ = replies.send(reply);
        });
    if let Err(error) = get.await {
        tracing::debug!("a query could not be sent: {error}");
        return;
    }
    let mut patience = question.deadline();
    if question.ask.idempotent {
        patience = patience.min(Instant::now() + HEARD_TIME_MAX);
    }
    while !waiting.is_over() {
        let Ok(Some(reply)) = timeout_at(patience, receiver.recv()).await else { return };
        patience = question.deadline();
        let part = match reply.result() {
            Ok(sample) => decode_part(&bytes_of(sample.payload())),
            Err(error) => {
                let why = String::from_utf8_lossy(&error.payload().to_bytes()).into_owned();
                tracing::debug!("gateway {gateway} refused: {why}");
                return;
            }
        };
        let Some(Part { answer, outcomes }) = part else {
            tracing::warn!("gateway {gateway} sent what is no part of an answer");
            return;
        };
        // All or none: an answer that is merged cannot be taken apart.
        if !waiting.may_settle(outcomes.iter().map(|one| &one.id)) {
            tracing::warn!("gateway {gateway} told of hosts that it was not asked about");
            return;
        }
        for one in &outcomes {
            waiting.settle(&one.id);
        }
        if !outcomes.is_empty() {
            question.tell(answer, outcomes).await;
        }
    }
}
