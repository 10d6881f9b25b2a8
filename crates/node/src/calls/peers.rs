//! Connections with programs of other hosts: what nodes ask and tell each other about them.
//!
//! The caller's node asks the nearest host that serves; the callee's node checks its own lists, and gives a
//! ticket. The caller's node dials with it, and each node hands its program the socket: they speak TLS with
//! each other, and no node is between them. When one of them is no more, its node tells the other's.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kumo_abi::HostId;
use kumo_abi::call::{Cause, GrantId, Hop, Peer, ServiceName, Who};
use kumo_abi::cluster::HostState;
use kumo_abi::control::{Carrier, Certificate, End, FromNode, Request};
use kumo_fabric::peer::{
    Expected, HostLife, HostWatch, PeerAnswerer, PeerLinks, RequestError, Ticket,
};
use kumo_fabric::{Answering, Fabric};
use kumo_pki::{Program as Named, ProgramIssuer, ProgramKey, ProgramPeer};
use kumo_sys::wall_ms;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::line::{NotTold, no_descriptors};
use super::rules::{Admitted, Asked, Order, Program, Refusal};
use super::state::random;
use super::{Shared, now};
use crate::web::Web;

/// The version of what nodes say to each other; the first byte of each message.
const VERSION: u8 = 1;

/// How long one host is waited for: several times around the world, and no more, for there may be others.
const ASK_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long telling a node may take.
const TELL_WAIT_MAX: Duration = Duration::from_secs(5);

/// A host on which nobody waits any more is watched for so long: the next call may come soon.
const WATCH_LINGER: Duration = Duration::from_secs(2);

/// A node asks for a connection for one of its programs.
#[derive(Debug, Serialize, Deserialize)]
struct OpenThere {
    service: ServiceName,
    /// The caller. That it is on the host which asks, is known.
    pid: u32,
    who: Who,
    chain: Vec<Hop>,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
enum Opened {
    Admitted {
        admitted: Admitted,
        /// Whoever shows it gets the connection.
        ticket: [u8; 32],
    },
    Refused(Refusal),
}

/// A connection is no more.
#[derive(Debug, Serialize, Deserialize)]
struct Obituary {
    grant: GrantId,
    cause: Cause,
    /// The ids of the calls that the callee had taken, where its node knows them.
    taken: Option<Vec<u64>>,
}

fn encode(message: &impl Serialize) -> Bytes {
    // Plain values without lengths of their own: there is nothing that could not be written.
    postcard::to_extend(message, vec![VERSION]).unwrap_or_default().into()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => postcard::from_bytes(rest)
            .map_err(|error| format!("the message makes no sense: {error}")),
        Some((version, _)) => Err(format!(
            "the message has version {version}, and this node speaks version {VERSION}"
        )),
        None => Err("the message is empty".to_owned()),
    }
}

/// The links of a node in a cluster.
pub(super) fn links(web: &Web) -> Option<&Arc<PeerLinks>> {
    match web {
        Web::Lone(_) => None,
        Web::Many(fabric) => fabric.peers(),
    }
}

/// From now on this node answers others about its programs.
pub(super) fn answer(shared: &Arc<Shared>) {
    if let Some(links) = links(&shared.web) {
        links.answer_by(Arc::new(Answerer { shared: Arc::downgrade(shared) }));
    }
}

struct Answerer {
    /// The links are a part of what the node shares, and it must end.
    shared: std::sync::Weak<Shared>,
}

impl PeerAnswerer for Answerer {
    fn answer(&self, from: HostId, request: Bytes) -> Answering {
        let shared = self.shared.upgrade();
        Box::pin(async move {
            let shared = shared.ok_or("its node is stopping")?;
            let open: OpenThere = decode(&request)?;
            Ok(encode(&admit(&shared, from, open)))
        })
    }

    fn note(&self, from: HostId, note: Bytes) {
        let Some(shared) = self.shared.upgrade() else { return };
        match decode::<Obituary>(&note) {
            Ok(Obituary { grant, cause, taken }) => shared
                .act(|broker, now, fresh| broker.obituary(&from, grant, cause, taken, now, fresh)),
            Err(error) => tracing::warn!("{from} told what is not understood: {error}"),
        }
    }
}

/// Lets a caller of another host in, if it may.
fn admit(shared: &Arc<Shared>, from: HostId, open: OpenThere) -> Opened {
    let OpenThere { service, pid, who, chain } = open;
    let expected = links(&shared.web).and_then(|links| links.expect_data());
    let Some(expected) = expected else {
        let message = "the node waits for as many connections as it may";
        return Opened::Refused(Refusal::new(Cause::Exhausted, message));
    };
    let asked = Asked {
        service: &service,
        from: Peer { host: from, pid, who },
        chain: &chain,
        carrier: Carrier::Tls,
    };
    let admitted = {
        let (mut state, now) = (shared.state(), now());
        state.broker.admit(asked, now, &mut random)
    };
    match admitted {
        Ok(admitted) => {
            let (grant, ticket) = (admitted.grant, expected.ticket().to_bytes());
            shared.elsewhere.spawn(arrive(Arc::clone(shared), grant, expected));
            Opened::Admitted { admitted, ticket }
        }
        Err(refusal) => Opened::Refused(refusal),
    }
}

/// Waits for the socket of a caller from another host, and hands it over. One that does not come in its
/// time is forgotten by the rules.
async fn arrive(shared: Arc<Shared>, grant: GrantId, expected: Expected) {
    let Ok(stream) = expected.stream().await else { return };
    let handed = plain(stream).map_err(|error| no_descriptors(&error)).and_then(|socket| {
        let mut state = shared.state();
        let Some((program, incoming)) = state.broker.arrived(grant) else { return Ok(()) };
        let connection = incoming.connection;
        let message = FromNode::Incoming(incoming);
        let told = state.hand_over(program, &message, connection, grant, End::Callee, socket);
        told.map_err(NotTold::refusal)
    });
    if let Err(refusal) = handed {
        not_handed(&shared, grant, End::Callee, refusal.cause);
    }
}

/// A socket as programs get it: it blocks.
fn plain(stream: TcpStream) -> std::io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

fn not_handed(shared: &Arc<Shared>, grant: GrantId, end: End, cause: Cause) {
    shared.act(|broker, now, fresh| broker.not_handed(grant, end, cause, now, fresh));
}

/// Asks the hosts of an order, one after the other, until one has what is wanted.
pub(super) async fn ask(shared: Arc<Shared>, order: Order) {
    let began = Instant::now();
    let mut why = None;
    for host in &order.hosts {
        let budget = Duration::from_millis(order.open.budget_ms);
        let left = budget.saturating_sub(began.elapsed());
        if left.is_zero() {
            why = Some(Refusal::new(Cause::Deadline, "no host answered within the budget"));
            break;
        }
        match ask_one(&shared, &order, host, left.min(ASK_WAIT_MAX)).await {
            Ok(()) => return,
            Err(refusal) => why = Some(better(why, refusal)),
        }
    }
    shared.act(|broker, now, fresh| broker.nowhere(order, why, now, fresh));
}

/// Which of two refusals tells more: one of a host that answered, and of these not that it has nothing.
fn better(before: Option<Refusal>, refusal: Refusal) -> Refusal {
    let says_much = |refusal: &Refusal| match refusal.cause {
        Cause::Partition | Cause::HostLost => 0,
        Cause::NoSuch => 1,
        _ => 2,
    };
    match before {
        Some(before) if says_much(&before) >= says_much(&refusal) => before,
        _ => refusal,
    }
}

async fn ask_one(
    shared: &Arc<Shared>,
    order: &Order,
    host: &HostId,
    wait: Duration,
) -> Result<(), Refusal> {
    let no_links = || Refusal::new(Cause::Partition, "this node has no links for calls");
    let links = links(&shared.web).ok_or_else(no_links)?;
    let ask = OpenThere {
        service: order.open.service.clone(),
        pid: order.from.pid,
        who: order.from.who.clone(),
        chain: order.open.chain.clone(),
    };
    let answer =
        links.request(host, encode(&ask), wait).await.map_err(|error| no_answer(&error))?;
    let malformed = |why: String| Refusal::new(Cause::Malformed, format!("{host} answered: {why}"));
    let (admitted, ticket) = match decode::<Opened>(&answer).map_err(malformed)? {
        Opened::Admitted { admitted, ticket } => (admitted, ticket),
        Opened::Refused(refusal) => return Err(refusal),
    };
    let grant = admitted.grant;
    let dialed = links.dial_data(host, Ticket::from_bytes(ticket), wait).await;
    let dialed = dialed
        .map_err(|error| no_answer(&error))
        .and_then(|stream| plain(stream).map_err(|error| no_descriptors(&error)));
    let handed = dialed
        .map_err(|refusal| (refusal, false))
        .and_then(|socket| hand_over(shared, order, host, admitted, socket));
    handed.map_err(|(refusal, was_granted)| {
        // The callee's node need not wait for it.
        if was_granted {
            not_handed(shared, grant, End::Caller, refusal.cause);
        } else {
            tell(shared, host.clone(), &Obituary { grant, cause: Cause::Cancelled, taken: None });
        }
        refusal
    })
}

/// Gives a caller of this host its connection.
///
/// # Errors
/// Why not, and whether the rules hold it as granted.
fn hand_over(
    shared: &Arc<Shared>,
    order: &Order,
    host: &HostId,
    admitted: Admitted,
    socket: OwnedFd,
) -> Result<(), (Refusal, bool)> {
    let grant = admitted.grant;
    // Under one lock: nobody hears that it has ended before the program has it.
    let mut state = shared.state();
    let granted = state.broker.granted(order, host, admitted, Carrier::Tls, now());
    let granted = granted.map_err(|refusal| (refusal, false))?;
    let connection = granted.connection;
    let message = FromNode::Granted(granted);
    let told = state.hand_over(order.program, &message, connection, grant, End::Caller, socket);
    told.map_err(|not| (not.refusal(), true))
}

fn no_answer(error: &RequestError) -> Refusal {
    let cause = match error {
        RequestError::NoRoute { .. } => Cause::Partition,
        RequestError::Lost { .. } | RequestError::Late { .. } => Cause::HostLost,
        RequestError::Refused { .. } => Cause::NoSuch,
        RequestError::TooLarge(_) => Cause::TooLarge,
    };
    Refusal::new(cause, error.to_string())
}

fn tell(shared: &Arc<Shared>, host: HostId, obituary: &Obituary) {
    let Some(links) = links(&shared.web).cloned() else { return };
    let (note, grant) = (encode(obituary), obituary.grant);
    shared.elsewhere.spawn(async move {
        // A host that is lost hears of it no more, and its programs' connections end by themselves.
        if let Err(error) = links.notify(&host, note, TELL_WAIT_MAX).await {
            tracing::debug!("{host} was not told that connection {grant} is no more: {error}");
        }
    });
}

/// Tells the node at the other end that a connection is no more.
pub(super) fn tell_end(
    shared: &Arc<Shared>,
    host: HostId,
    grant: GrantId,
    cause: Cause,
    taken: Option<Vec<u64>>,
) {
    tell(shared, host, &Obituary { grant, cause, taken });
}

/// Makes a certificate for a program of this host.
pub(super) fn certify(shared: &Arc<Shared>, program: Program, request: Request, who: Who) {
    let message = match &shared.web {
        Web::Lone(_) => Err(Refusal::new(
            Cause::NoSuch,
            "this host is in no cluster, so it has no certificates; `kumo init` makes one",
        )),
        Web::Many(fabric) => certificate(fabric, who)
            .map(|certificate| FromNode::Certificate { request, certificate })
            .map_err(|error| {
                tracing::error!("a program got no certificate: {}", k2i::http::chain(&*error));
                Refusal::new(Cause::Exhausted, format!("no certificate could be made: {error}"))
            }),
    };
    let mut state = shared.state();
    if message.is_ok() {
        state.certified.insert(program);
    }
    state.tell(program, &message.unwrap_or_else(|refusal| refusal.to_program(request)));
}

fn certificate(
    fabric: &Fabric,
    who: Who,
) -> Result<Certificate, Box<dyn std::error::Error + Send + Sync>> {
    let identity = fabric.identity();
    let named = match who {
        Who::Service(service) => Named::Service(service),
        Who::User(uid) => Named::User(uid),
    };
    let issuer = ProgramIssuer::new(identity.certificate.clone(), &identity.key)?;
    let key = ProgramKey::create()?;
    let own = issuer.issue(&key.public_der, named, wall_ms())?;
    let not_after_ms = ProgramPeer::of(&own)?.not_after_ms;
    Ok(Certificate {
        chain: vec![own.to_vec(), issuer.host_certificate().to_vec()],
        key: key.private.secret_der().to_vec(),
        authority: identity.ca.to_vec(),
        not_after_ms,
        evicted: evicted(fabric),
    })
}

/// The keys that are not believed any more, as programs are told.
pub(super) fn evicted(fabric: &Fabric) -> Vec<Vec<u8>> {
    fabric.evicted().into_iter().map(|key| key.to_bytes().to_vec()).collect()
}

/// Hosts for whose programs somebody here waits, each watched as long as that is so.
#[derive(Debug, Default)]
pub(super) struct Watches {
    of: BTreeMap<HostId, (HostWatch, Instant)>,
}

impl Watches {
    /// Watches these, and those that were waited for a moment ago; tells who had to do with those that
    /// are lost.
    pub(super) fn watch(&mut self, shared: &Arc<Shared>, waited_for: BTreeSet<HostId>) {
        let Some(links) = links(&shared.web) else { return };
        let now = Instant::now();
        for host in waited_for {
            match self.of.get_mut(&host) {
                Some((_, last)) => *last = now,
                None => drop(self.of.insert(host.clone(), (links.watch_host(&host), now))),
            }
        }
        self.of.retain(|_, (_, last)| last.elapsed() < WATCH_LINGER);
        for (host, (watch, _)) in &self.of {
            if watch.life() == HostLife::Lost {
                lost(shared, host);
            }
        }
    }
}

/// A host answers no more: those who are connected with its programs are told.
fn lost(shared: &Arc<Shared>, host: &HostId) {
    let state = shared.web.host(host).map(|known| known.state);
    let cause = if state == Some(HostState::CutOff) { Cause::Partition } else { Cause::HostLost };
    shared.act(|broker, now, fresh| broker.host_lost(host, cause, now, fresh));
}

/// The others say that a host is gone. That may be their view, and the way to it may be another: it is
/// asked first.
pub(super) async fn doubt(shared: Arc<Shared>, host: HostId) {
    let connected = shared.state().broker.grants().values().any(|grant| grant.is_with(&host));
    if !connected {
        return;
    }
    let Some(links) = links(&shared.web) else { return };
    let mut watch = links.watch_host(&host);
    let wait = async {
        while watch.life() != HostLife::Lost {
            watch.changed().await;
        }
    };
    if tokio::time::timeout(TELL_WAIT_MAX, wait).await.is_ok() {
        lost(&shared, &host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_travel_and_others_are_refused() {
        let open = OpenThere {
            service: "kv".parse().expect("a name"),
            pid: 7,
            who: Who::User(0),
            chain: vec![],
        };
        let bytes = encode(&open);
        let back: OpenThere = decode(&bytes).expect("whole");
        assert_eq!((back.service, back.pid), (open.service, 7));
        for bad in [&[][..], &[VERSION + 1, 0], &bytes[..bytes.len() - 1]] {
            assert!(decode::<OpenThere>(bad).is_err(), "for {bad:?}");
        }
    }

    #[test]
    fn the_refusal_that_tells_most_is_told() {
        let refusal = |cause| Refusal::new(cause, "");
        let cases: [(&[Cause], Cause); 4] = [
            (&[Cause::HostLost, Cause::NoSuch, Cause::Busy], Cause::Busy),
            (&[Cause::Busy, Cause::NoSuch, Cause::Partition], Cause::Busy),
            (&[Cause::Denied, Cause::Busy], Cause::Denied),
            (&[Cause::Partition, Cause::NoSuch], Cause::NoSuch),
        ];
        for (causes, want) in cases {
            let step = |before, cause: &Cause| Some(better(before, refusal(*cause)));
            let told: Option<Refusal> = causes.iter().fold(None, step);
            assert_eq!(told.map(|told| told.cause), Some(want), "of {causes:?}");
        }
    }
}
