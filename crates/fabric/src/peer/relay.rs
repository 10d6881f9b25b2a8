//! The way to a host: straight, or through gateways. And what a gateway does for others.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::link::{Link, Saying, take_note};
use super::tickets::Ticket;
use super::wire::{Failure, HOPS_MAX, Way, What};
use super::{Expected, Shared};
use crate::link::lock;
use crate::pki::KeyId;

/// When a host that is dialed has not answered for so long, gateways are tried; the dial goes on.
const STRAIGHT_MAX: Duration = Duration::from_millis(300);

/// Gateways of one data centre that are tried: the two that its members keep links to, and two more for
/// who sees other gateways than they do.
const HELPERS_MAX: usize = 4;

/// How long a gateway waits for the two ends of a splice.
const SPLICE_WAIT: Duration = Duration::from_secs(5);

/// Data connections that a gateway passes at once; two descriptors each.
const SPLICES_MAX: usize = 4_096;

/// Of these, by one host.
const SPLICES_PER_HOST_MAX: usize = 1_024;

impl Shared {
    /// Asks or tells `to` for `from`, `None` for this host itself: over its link, or through at most `hops` gateways,
    /// but not `except`. Whoever may have been asked is not asked again.
    pub(super) async fn reach(
        self: &Arc<Self>,
        from: Option<&HostId>,
        to: &HostId,
        hops: u8,
        saying: Saying,
        wait: Duration,
        except: Option<&HostId>,
    ) -> Result<Vec<u8>, Failure> {
        let until = Instant::now() + wait;
        let left = || until.saturating_duration_since(Instant::now());
        let mut why = match self.straight(to, from.is_none(), left()).await {
            Ok(link) => {
                let way = from.cloned().map_or(Way::Here, |from| Way::For { from });
                match link.say(way, saying.clone(), left()).await {
                    Err(Failure::NoRoute(why)) => why,
                    done => return done,
                }
            }
            Err(why) => why,
        };
        for gateway in self.helpers(from, to, hops, except) {
            let failure = match self.linked(&gateway, left()).await {
                Ok(link) => match link.say(self.on(from, to, hops), saying.clone(), left()).await {
                    Err(Failure::NoRoute(why)) => why,
                    done => return done,
                },
                Err(why) => why,
            };
            why = format!("{why}; by {gateway}: {failure}");
        }
        Err(Failure::NoRoute(shortened(why)))
    }

    /// What a gateway is asked to do. One of the other data centre may pass it on to others of its own, and
    /// these to nobody: so many gateways as there are, few are asked.
    fn on(&self, from: Option<&HostId>, to: &HostId, hops: u8) -> Way {
        let hops = if self.role == Role::Gateway && self.me.dc == to.dc { 1 } else { hops };
        Way::On { to: to.clone(), from: from.cloned(), hops: hops.saturating_sub(1) }
    }

    /// The link with the host that is meant.
    async fn straight(
        self: &Arc<Self>,
        to: &HostId,
        is_ours: bool,
        wait: Duration,
    ) -> Result<Arc<Link>, String> {
        let others = self.helpers((!is_ours).then_some(&self.me), to, HOPS_MAX, None);
        let wait = if others.is_empty() { wait } else { wait.min(STRAIGHT_MAX) };
        self.linked(to, wait).await
    }

    /// The gateways that may know a way: those of the other data centre, which its members keep links to,
    /// and for what begins here our own too.
    fn helpers(
        &self,
        from: Option<&HostId>,
        to: &HostId,
        hops: u8,
        except: Option<&HostId>,
    ) -> Vec<HostId> {
        if hops == 0 {
            return Vec::new();
        }
        let mut helpers = self.gateways_for(to);
        helpers.truncate(HELPERS_MAX);
        if from.is_none() && to.dc != self.me.dc {
            helpers.extend(self.gateways_for(&self.me).into_iter().take(HELPERS_MAX));
        }
        helpers.retain(|gateway| gateway != to && Some(gateway) != except && Some(gateway) != from);
        helpers
    }
}

/// What is told of many gateways must fit into an answer.
fn shortened(why: String) -> String {
    const CHARS_MAX: usize = 1_000;
    if why.chars().count() <= CHARS_MAX { why } else { why.chars().take(CHARS_MAX).collect() }
}

/// Who says something that is to be passed on; `None` where this host does not do so.
fn sender(shared: &Shared, link: &Link, from: Option<HostId>) -> Option<HostId> {
    let is_gateway = link.peer.role == Role::Gateway;
    let from = from.filter(|_| is_gateway).unwrap_or_else(|| link.peer.host.clone());
    (shared.role == Role::Gateway).then_some(from)
}

/// Does what the other end of `link` asks for.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    link: &Arc<Link>,
    way: Way,
    what: What,
    wait: Duration,
) -> Result<Vec<u8>, Failure> {
    let refused = |why: &str| Err(Failure::Refused(why.to_owned()));
    let is_gateway = link.peer.role == Role::Gateway;
    match (way, what) {
        (Way::Here, What::CallBack { ticket, back }) if is_gateway => {
            call_back(shared, &link.peer.host, ticket, back).await
        }
        (_, What::CallBack { .. }) => refused("only gateways are called back"),
        (Way::On { to, from, hops }, what) => {
            let Some(from) = sender(shared, link, from) else {
                return refused("this host is no gateway");
            };
            let hops = hops.min(HOPS_MAX);
            if to == shared.me {
                return shared.answer(from, what, wait).await;
            }
            match what {
                What::Splice(ticket) => splice(shared, link, from, &to, ticket, hops).await,
                what => {
                    let except = Some(&link.peer.host);
                    let saying = Saying::Ask(what);
                    shared.reach(Some(&from), &to, hops, saying, wait, except).await
                }
            }
        }
        (_, What::Splice(_)) => refused("there is nothing to splice here"),
        (Way::Here, what) => shared.answer(link.peer.host.clone(), what, wait).await,
        (Way::For { from }, what) if is_gateway => shared.answer(from, what, wait).await,
        (Way::For { .. }, _) => refused("only gateways speak for others"),
    }
}

/// Passes a note on. Whether it arrives is not known to who sent it.
pub(super) async fn pass_note(
    shared: &Arc<Shared>,
    link: &Link,
    to: HostId,
    from: Option<HostId>,
    hops: u8,
    note: Vec<u8>,
) {
    let Some(from) = sender(shared, link, from) else { return };
    if to == shared.me {
        return take_note(shared, from, note);
    }
    let hops = hops.min(HOPS_MAX);
    let except = Some(&link.peer.host);
    let saying = Saying::Note(note);
    let told = shared.reach(Some(&from), &to, hops, saying, SPLICE_WAIT, except).await;
    if let Err(failure) = told {
        tracing::debug!("a note of {from} to {to} was not passed on: {failure:?}");
    }
}

/// Opens a data connection for a program of this host.
///
/// # Errors
/// [`Failure::NoRoute`] where there is no way.
pub(super) async fn dial_data(
    shared: &Arc<Shared>,
    host: &HostId,
    ticket: Ticket,
    wait: Duration,
) -> Result<TcpStream, Failure> {
    let until = Instant::now() + wait;
    if let Some(stream) = own(shared, host, ticket) {
        return stream.await.map_err(|error| Failure::NoRoute(error.to_string()));
    }
    far(shared, None, host, ticket, HOPS_MAX, until, None).await
}

/// To this host itself: over its own port, where it has one.
fn own(
    shared: &Arc<Shared>,
    host: &HostId,
    ticket: Ticket,
) -> Option<impl Future<Output = std::io::Result<TcpStream>>> {
    if *host != shared.me {
        return None;
    }
    let address = *shared.local_addr.borrow();
    Some(async move {
        let mut address = address.ok_or(std::io::ErrorKind::AddrNotAvailable)?;
        if address.ip().is_unspecified() {
            let loopback = match address {
                std::net::SocketAddr::V4(_) => std::net::IpAddr::from([127, 0, 0, 1]),
                std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            address.set_ip(loopback);
        }
        let stream = TcpStream::connect(address).await?;
        present(stream, ticket).await
    })
}

async fn present(mut stream: TcpStream, ticket: Ticket) -> std::io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.write_all(&ticket.preface()).await?;
    Ok(stream)
}

/// A connection to who waits for `ticket` on `to`: straight, or by the host dialing back, or through
/// another gateway.
async fn far(
    shared: &Arc<Shared>,
    from: Option<&HostId>,
    to: &HostId,
    ticket: Ticket,
    hops: u8,
    until: Instant,
    except: Option<&HostId>,
) -> Result<TcpStream, Failure> {
    let left = || until.saturating_duration_since(Instant::now());
    let helpers = shared.helpers(from, to, hops, except);
    let is_last = helpers.is_empty() && shared.link(to).is_none();
    let wait = if is_last { left() } else { left().min(STRAIGHT_MAX) };
    let mut why = match shared.connect(to, wait).await {
        Ok(stream) => match present(stream, ticket).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error.to_string(),
        },
        Err(why) => why,
    };
    if shared.role == Role::Gateway
        && let Some(link) = shared.link(to)
    {
        match called_back(shared, &link, ticket, left()).await {
            Ok(stream) => return Ok(stream),
            Err(failure) => why = format!("{why}; called back: {failure}"),
        }
    }
    for gateway in helpers {
        let failure = match by_gateway(shared, from, to, ticket, hops, &gateway, left()).await {
            Ok(stream) => return Ok(stream),
            Err(failure) => failure,
        };
        why = format!("{why}; by {gateway}: {failure}");
    }
    Err(Failure::NoRoute(shortened(why)))
}

async fn by_gateway(
    shared: &Arc<Shared>,
    from: Option<&HostId>,
    to: &HostId,
    ticket: Ticket,
    hops: u8,
    gateway: &HostId,
    wait: Duration,
) -> Result<TcpStream, String> {
    let link = shared.linked(gateway, wait).await?;
    let asked = link.ask(shared.on(from, to, hops), What::Splice(ticket), wait).await;
    let given = asked.map_err(|failure| words(&failure))?;
    let given: [u8; 32] = given.try_into().map_err(|_| "it gave no ticket".to_owned())?;
    let stream = shared.connect(gateway, wait).await?;
    present(stream, Ticket::from_bytes(given)).await.map_err(|error| error.to_string())
}

fn words(failure: &Failure) -> String {
    match failure {
        Failure::NoRoute(why) | Failure::Refused(why) => why.clone(),
        Failure::Lost => "its link was lost".to_owned(),
        Failure::Late => "it did not answer in time".to_owned(),
    }
}

/// Lets the host at the other end of `link` dial this gateway.
async fn called_back(
    shared: &Arc<Shared>,
    link: &Link,
    ticket: Ticket,
    wait: Duration,
) -> Result<TcpStream, String> {
    let expected = shared.expect().ok_or("the gateway has too many tickets out")?;
    let what = What::CallBack { ticket, back: expected.ticket() };
    link.ask(Way::Here, what, wait).await.map_err(|failure| words(&failure))?;
    let come = timeout(wait, expected.stream()).await;
    come.map_err(|_| "it did not dial back")?.map_err(|error| error.to_string())
}

/// Dials a gateway for who waits for `ticket` here.
async fn call_back(
    shared: &Arc<Shared>,
    gateway: &HostId,
    ticket: Ticket,
    back: Ticket,
) -> Result<Vec<u8>, Failure> {
    let waiter = lock(&shared.tickets).take(ticket, shared.now_ms());
    let waiter =
        waiter.ok_or_else(|| Failure::Refused("nobody waits for this ticket".to_owned()))?;
    let dialed = async {
        let stream = shared.connect(gateway, SPLICE_WAIT).await?;
        present(stream, back).await.map_err(|error| error.to_string())
    };
    let stream = dialed.await.map_err(Failure::NoRoute)?;
    // Who waited may have given up; then the connection ends.
    let _ = waiter.send(stream);
    Ok(Vec::new())
}

/// The data connections that this gateway passes.
pub(super) struct Splices {
    places: Arc<Semaphore>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    all: HashMap<u64, One>,
}

struct One {
    from: HostId,
    keys: Vec<KeyId>,
    task: Option<AbortHandle>,
}

impl Splices {
    pub(super) fn new() -> Arc<Splices> {
        Arc::new(Splices { places: Arc::new(Semaphore::new(SPLICES_MAX)), open: Mutex::default() })
    }

    /// Ends those of hosts with these keys.
    pub(super) fn cut(&self, evicted: &BTreeSet<KeyId>) {
        for one in lock(&self.open).all.values() {
            if one.keys.iter().any(|key| evicted.contains(key)) {
                one.task.iter().for_each(AbortHandle::abort);
            }
        }
    }

    /// Ends all.
    pub(super) fn cut_all(&self) {
        lock(&self.open).all.values().for_each(|one| one.task.iter().for_each(AbortHandle::abort));
    }

    /// A place for one of `from`, where there is one.
    fn begin(self: &Arc<Self>, from: &HostId, keys: Vec<KeyId>) -> Option<Spliced> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let mut open = lock(&self.open);
        if open.all.values().filter(|one| one.from == *from).count() >= SPLICES_PER_HOST_MAX {
            return None;
        }
        let number = open.next;
        open.next += 1;
        open.all.insert(number, One { from: from.clone(), keys, task: None });
        Some(Spliced { splices: Arc::clone(self), number, _place: place })
    }
}

/// One of them, until this is dropped.
struct Spliced {
    splices: Arc<Splices>,
    number: u64,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for Spliced {
    fn drop(&mut self) {
        lock(&self.splices.open).all.remove(&self.number);
    }
}

/// Makes a way to who waits for `ticket` on `to`, and gives a ticket of this gateway for its near end.
async fn splice(
    shared: &Arc<Shared>,
    link: &Link,
    from: HostId,
    to: &HostId,
    ticket: Ticket,
    hops: u8,
) -> Result<Vec<u8>, Failure> {
    let keys = [Some(link.peer.key_id), shared.link(to).map(|link| link.peer.key_id)];
    let spliced = shared.splices.begin(&from, keys.into_iter().flatten().collect());
    let spliced = spliced
        .ok_or_else(|| Failure::NoRoute("the gateway passes too many already".to_owned()))?;
    let expected = shared.expect();
    let expected = expected
        .ok_or_else(|| Failure::NoRoute("the gateway has too many tickets out".to_owned()))?;
    // The far end first: who is told of a ticket is told that there is a way.
    let until = Instant::now() + SPLICE_WAIT;
    let except = Some(&link.peer.host);
    let far = far(shared, Some(&from), to, ticket, hops, until, except).await?;
    let given = expected.ticket().to_bytes().to_vec();
    let number = spliced.number;
    let task = shared.spawn(pass(expected, far, spliced));
    if let Some(one) = lock(&shared.splices.open).all.get_mut(&number) {
        one.task = task;
    }
    // Who was evicted meanwhile was not on the list with its task yet.
    shared.splices.cut(&shared.evicted.load());
    Ok(given)
}

/// Passes bytes both ways until one side ends.
async fn pass(expected: Expected, mut far: TcpStream, spliced: Spliced) {
    let Ok(mut near) = expected.stream().await else { return };
    let passed = copy_bidirectional(&mut near, &mut far).await;
    if let Err(error) = passed {
        tracing::debug!("a data connection of {}: {error}", spliced.number);
    }
}
