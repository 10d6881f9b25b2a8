//! The side of the gateways: who is let in, and who gets a new certificate.
//!
//! [`judge`] is the rule, of plain values. What is granted is remembered on the disk before it is told,
//! so no token lets in more than it may at one gateway. Two gateways that cannot reach each other may
//! each grant a token's last use; the uses add up when they meet.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use data_encoding::BASE64;
use kumo_abi::cluster::Role;
use kumo_abi::{ClusterName, HostId};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::registry;
use super::{
    BoxedStream, EXCHANGE_TIME_MAX, FrameError, Grant, Hello, JoinDesk, JoinRequest,
    REQUEST_BYTES_MAX, Refusal, RefusalCode, RenewRequest, Reply, Request, Serving, VERSION,
    read_message, skew_in_words, wall_ms, write_message,
};
use crate::clock::AHEAD_MS_MAX;
use crate::identity::{Gateway, Identity, IdentityError, save_certificate};
use crate::pki::{self, Authority, AuthorityError, KeyId, Peer};
use crate::store::{Store, StoreError};
use crate::token::{TokenRecord, uses_prefix};

/// Most conversations at once with those who have no certificate. Each costs a few KiB, and a good one
/// is over in milliseconds.
const STRANGERS_MAX: usize = 192;

/// Most conversations at once with hosts that have one: strangers, however many, keep no host from
/// renewing.
const HOSTS_MAX: usize = 64;

/// Most conversations of either kind at once with one address, so that one machine that keeps them open
/// keeps nobody else out.
const OF_ADDRESS_MAX: usize = 32;

/// So long the other side may take to hear that there is no place for it.
const BUSY_TIME_MAX: Duration = Duration::from_secs(1);

/// What is known of a name that somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NameState {
    /// Nobody has it.
    Free,
    /// A host has it that is not alive.
    Known,
    /// A host has it that is alive.
    Alive,
}

/// What a request is judged by.
#[derive(Debug)]
struct Known<'a> {
    cluster: &'a ClusterName,
    here: &'a HostId,
    /// Of the token that the request names, if there is one here.
    token: Option<&'a TokenRecord>,
    /// How often that was used.
    uses: usize,
    /// Of the name that the request wants.
    name: NameState,
    /// Whether the key of the request was certified before.
    certified: bool,
    now_ms: u64,
}

/// Whether a host is let in. Who does not have the secret learns nothing but that.
fn judge(request: &JoinRequest, known: &Known<'_>) -> Result<(), Refusal> {
    use RefusalCode as Code;
    let refuse = |code, words: &dyn fmt::Display| Err(Refusal::new(code, words));
    let (host, here, cluster) = (&request.host, known.here, known.cluster);
    if request.cluster != *cluster {
        let words =
            format!("the token is for the cluster `{}`, and this is `{cluster}`", request.cluster);
        return refuse(Code::WrongCluster, &words);
    }
    let Some(token) = known.token.filter(|token| token.knows(&request.secret)) else {
        let words = format!(
            "{here} does not know this token; if it was made a moment ago at another gateway try again, else \
             make a new one with `kumo token`"
        );
        return refuse(Code::UnknownToken, &words);
    };
    let ahead_ms = request.now_ms.wrapping_sub(known.now_ms).cast_signed();
    if ahead_ms.unsigned_abs() > AHEAD_MS_MAX {
        return refuse(Code::Clock, &clock_words(ahead_ms, here));
    }
    if known.now_ms > token.expires_ms {
        let minutes = (known.now_ms - token.expires_ms) / 60_000;
        let words =
            format!("the token expired {minutes} minutes ago; make a new one with `kumo token`");
        return refuse(Code::Expired, &words);
    }
    if known.certified {
        let words = "this very request was granted before; a host that joins again makes a new one \
                     (`kumo join` does)";
        return refuse(Code::Replayed, &words);
    }
    if token.uses == 0 {
        let words = "the token was taken back when a host that had it was evicted; make a new one with \
                     `kumo token`";
        return refuse(Code::UsedUp, &words);
    }
    if known.uses >= token.uses as usize {
        let words = format!(
            "the token has let in {} of {} hosts; make a new one with `kumo token`, with --uses for many",
            known.uses, token.uses
        );
        return refuse(Code::UsedUp, &words);
    }
    if request.role == Role::Gateway && token.role != Role::Gateway {
        let words = "the token is for members; make one for gateways with `kumo token --gateway`";
        return refuse(Code::Role, &words);
    }
    if let Some(dc) = token.dc.as_ref().filter(|dc| **dc != host.dc) {
        let words = format!("the token is for the data centre `{dc}`, not for `{}`", host.dc);
        return refuse(Code::Dc, &words);
    }
    match known.name {
        NameState::Free => Ok(()),
        NameState::Known if request.replace => Ok(()),
        NameState::Known => {
            let words = format!(
                "{host} is known already, though not alive; --replace takes its place, or take another name"
            );
            refuse(Code::NameKnown, &words)
        }
        NameState::Alive => {
            let words = format!(
                "{host} is alive; take another name, or stop that host (or `kumo evict {host}`) first"
            );
            refuse(Code::NameAlive, &words)
        }
    }
}

/// What is said about a clock that is `ahead_ms` ahead of that of `other`.
pub(super) fn clock_words(ahead_ms: i64, other: &HostId) -> String {
    format!(
        "this host's clock is {} that of {other}, and {} minutes is the most; set both by NTP",
        skew_in_words(ahead_ms),
        AHEAD_MS_MAX / 60_000
    )
}

/// Says whether a host is alive now.
pub type IsAlive = Box<dyn Fn(&HostId) -> bool + Send + Sync>;

/// Who answers those that want to join this gateway's cluster.
pub struct Desk {
    room: Arc<Room>,
    strangers: Arc<Mutex<Talking>>,
    hosts: Arc<Mutex<Talking>>,
}

/// What blocks: it is used on threads that may.
struct Room {
    dir: PathBuf,
    identity: Arc<ArcSwap<Identity>>,
    store: Arc<Store>,
    authority: Option<Authority>,
    is_alive: IsAlive,
    /// Held from the look at the uses of a token until its next use is written.
    granting: Mutex<()>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("dir", &self.room.dir).finish_non_exhaustive()
    }
}

/// Why a gateway cannot renew its own certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// It has no key of the authority; another gateway can.
    #[error("this gateway has no key of the authority; `kumo ca import` brings it")]
    NoAuthority,
    /// A certificate could not be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It could not be remembered.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl Desk {
    /// The desk of the gateway whose files are in `dir`. Without an authority it refuses everybody, in
    /// words. What this gateway was certified with is remembered, so that it can be evicted.
    ///
    /// # Errors
    /// The desired state does not take it.
    pub fn new(
        dir: PathBuf,
        identity: Arc<ArcSwap<Identity>>,
        store: Arc<Store>,
        authority: Option<Authority>,
        is_alive: IsAlive,
    ) -> Result<Desk, StoreError> {
        record_own(&store, &identity.load())?;
        registry::sweep(&store, wall_ms())?;
        let granting = Mutex::new(());
        let room = Room { dir, identity, store, authority, is_alive, granting };
        let strangers = Arc::new(Mutex::new(Talking::up_to(STRANGERS_MAX)));
        let hosts = Arc::new(Mutex::new(Talking::up_to(HOSTS_MAX)));
        Ok(Desk { room: Arc::new(room), strangers, hosts })
    }

    /// Forgets what ended long ago. Blocks for the disk.
    ///
    /// # Errors
    /// As [`Store::remove`]; the rest is forgotten the next time.
    pub fn sweep(&self) -> Result<(), StoreError> {
        registry::sweep(&self.room.store, wall_ms())
    }

    /// Gives this gateway itself a new certificate, in its files and in what it shows from now on.
    /// Blocks for the disk.
    ///
    /// # Errors
    /// See [`RenewError`]; the old one stays then.
    pub fn renew_own(&self) -> Result<Arc<Identity>, RenewError> {
        let room = &self.room;
        let authority = room.authority.as_ref().ok_or(RenewError::NoAuthority)?;
        let old = room.identity.load_full();
        let new = Identity::issue(authority, &old.host, old.role, wall_ms())?;
        // Ours can be read: they were loaded, or issued by us.
        if let (Ok(old), Ok(new)) = (old.peer(), new.peer()) {
            registry::record_joined(&room.store, &new, registry::joined_ms(&room.store, &old))?;
        }
        save_certificate(&room.dir, &new.certificate, &new.key)?;
        // Gateways may have become known meanwhile: only these two change.
        room.identity.rcu(|now| Identity {
            certificate: new.certificate.clone(),
            key: new.key.clone_key(),
            ..Identity::clone(now)
        });
        Ok(room.identity.load_full())
    }
}

/// Remembers the certificate of `identity` where it is not known yet.
///
/// # Errors
/// As [`Store::put`].
pub fn record_own(store: &Store, identity: &Identity) -> Result<(), StoreError> {
    match identity.peer() {
        Ok(peer) if !registry::is_issued(store, &peer.key_id) => registry::record(store, &peer),
        // One that is not of a node was refused when the files were read.
        _ => Ok(()),
    }
}

impl JoinDesk for Desk {
    fn serve(&self, mut stream: BoxedStream, peer: Option<Peer>, from: SocketAddr) -> Serving<'_> {
        Box::pin(async move {
            let is_good = |peer: &Peer| !registry::is_peer_evicted(&self.room.store, peer);
            let is_host = peer.as_ref().is_some_and(is_good);
            let places = if is_host { &self.hosts } else { &self.strangers };
            let Some(_place) = Place::take(places, from.ip()) else {
                tracing::debug!("{from} asked to join and was told to wait");
                // In any case it is turned away.
                let _ = timeout(BUSY_TIME_MAX, turn_away(&self.room, &mut stream)).await;
                return;
            };
            match timeout(EXCHANGE_TIME_MAX, talk(&self.room, &mut stream, peer, from)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("{from} asked to join and broke off: {error}"),
                Err(_) => tracing::debug!("{from} asked to join and fell silent"),
            }
        })
    }
}

/// Tells one for whom there is no place to come again.
async fn turn_away(room: &Room, stream: &mut BoxedStream) -> io::Result<()> {
    let hello = room.hello();
    write_message(stream, &hello).await?;
    let words = format!("{} is talking with too many hosts; try again in a moment", hello.host);
    let busy = Refusal::new(RefusalCode::Busy, words);
    write_message(stream, &Reply::Refused(busy)).await?;
    // Until the other side hangs up: what it says to a closed connection breaks that before it has heard.
    tokio::io::copy(&mut stream.take(REQUEST_BYTES_MAX as u64), &mut tokio::io::sink()).await?;
    Ok(())
}

async fn talk(
    room: &Arc<Room>,
    stream: &mut BoxedStream,
    peer: Option<Peer>,
    from: SocketAddr,
) -> Result<(), FrameError> {
    write_message(stream, &room.hello()).await?;
    let result = match read_message::<Request>(stream, REQUEST_BYTES_MAX).await {
        Ok(request) => {
            let room = Arc::clone(room);
            // A panic in there is a bug of ours, and no reason to leave the other without an answer.
            let answering = tokio::task::spawn_blocking(move || room.answer(&request, peer, from));
            answering.await.unwrap_or_else(|error| Err(internal(&error)))
        }
        Err(FrameError::Io(error)) => return Err(error.into()),
        Err(error) => Err(Refusal::new(RefusalCode::Malformed, error)),
    };
    let reply = match result {
        Ok(grant) => Reply::Granted(grant),
        Err(refusal) => {
            tracing::warn!("{from} was refused: {}", refusal.words.escape_default());
            Reply::Refused(refusal)
        }
    };
    Ok(write_message(stream, &reply).await?)
}

fn internal(error: &dyn fmt::Display) -> Refusal {
    Refusal::new(RefusalCode::Internal, format_args!("the gateway cannot do it now: {error}"))
}

fn malformed(words: &str) -> Refusal {
    Refusal::new(RefusalCode::Malformed, words)
}

impl Room {
    fn hello(&self) -> Hello {
        let identity = self.identity.load();
        Hello {
            version: VERSION,
            cluster: identity.cluster.clone(),
            host: identity.host.clone(),
            ca: BASE64.encode(&identity.ca),
            now_ms: wall_ms(),
        }
    }

    fn answer(
        &self,
        request: &Request,
        peer: Option<Peer>,
        from: SocketAddr,
    ) -> Result<Grant, Refusal> {
        let identity = self.identity.load_full();
        let Some(authority) = &self.authority else {
            let words = format!("{} has no key to sign with; ask another gateway", identity.host);
            return Err(Refusal::new(RefusalCode::NoAuthority, words));
        };
        match request {
            Request::Join(request) => self.join(request, &identity, authority, from),
            Request::Renew(request) => self.renew(request, peer, &identity, authority),
        }
    }

    fn join(
        &self,
        request: &JoinRequest,
        identity: &Identity,
        authority: &Authority,
        from: SocketAddr,
    ) -> Result<Grant, Refusal> {
        let (csr, key) = csr(&request.csr)?;
        let _granting = self.granting.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = wall_ms();
        let store = &self.store;
        let token = registry::token(store, &request.token);
        let host = &request.host;
        let known = Known {
            cluster: &identity.cluster,
            here: &identity.host,
            token: token.as_ref(),
            uses: store.with_prefix(&uses_prefix(&request.token)).len(),
            name: if *host == identity.host || (self.is_alive)(host) {
                NameState::Alive
            } else if registry::is_known(store, host, now_ms) {
                NameState::Known
            } else {
                NameState::Free
            },
            certified: registry::is_issued(store, &key),
            now_ms,
        };
        judge(request, &known)?;
        let certificate = authority.issue(&csr, host, request.role, now_ms);
        let certificate = certificate.map_err(|error| internal(&error))?;
        let peer = Peer::of(&certificate).map_err(|error| internal(&error))?;
        let kept = || -> Result<(), StoreError> {
            // The use first: whatever fails after it, the token lets in one host less, never one more.
            store.put(&format!("{}{key}", uses_prefix(&request.token)), host.to_string().into())?;
            if known.name == NameState::Known {
                // Who was there before, and comes back, is somebody else now.
                registry::retire(store, host, now_ms)?;
            }
            // The clock that an eviction went by may be ahead of ours.
            let joined_ms = registry::evicted_ms(store, host).unwrap_or(0).max(now_ms);
            registry::record_joined(store, &peer, joined_ms)
        };
        kept().map_err(|error| internal(&error))?;
        let role = request.role.name();
        tracing::info!("{host} joined as {role} from {from}, by token {}", request.token);
        let is_gateway = request.role == Role::Gateway;
        Ok(Grant {
            certificate: BASE64.encode(&certificate),
            authority_key: is_gateway.then(|| BASE64.encode(authority.key().secret_der())),
            gateways: gateways(identity),
        })
    }

    fn renew(
        &self,
        request: &RenewRequest,
        peer: Option<Peer>,
        identity: &Identity,
        authority: &Authority,
    ) -> Result<Grant, Refusal> {
        let Some(peer) = peer else {
            let words = "a renewal needs the certificate that is to be renewed";
            return Err(Refusal::new(RefusalCode::NoCertificate, words));
        };
        if peer.cluster != identity.cluster {
            let (theirs, ours) = (&peer.cluster, &identity.cluster);
            let words =
                format!("the certificate is of the cluster `{theirs}`, and this is `{ours}`");
            return Err(Refusal::new(RefusalCode::WrongCluster, words));
        }
        let (csr, key) = csr(&request.csr)?;
        let _granting = self.granting.lock().unwrap_or_else(PoisonError::into_inner);
        if registry::is_peer_evicted(&self.store, &peer) {
            let words = format!(
                "{} was evicted; to come back it must `kumo leave`, and join with a new token",
                peer.host
            );
            return Err(Refusal::new(RefusalCode::Evicted, words));
        }
        if registry::is_issued(&self.store, &key) {
            let words = "this key was certified before; a renewal takes a new one";
            return Err(Refusal::new(RefusalCode::Replayed, words));
        }
        let now_ms = wall_ms();
        // The clock that it was asked by may be ahead of ours.
        if !peer.wants_renewal(now_ms.saturating_add(AHEAD_MS_MAX)) {
            let words =
                "the certificate is good for long yet; it is renewed in the last third of its time";
            return Err(Refusal::new(RefusalCode::NotYet, words));
        }
        let certificate = authority.issue(&csr, &peer.host, peer.role, now_ms);
        let certificate = certificate.map_err(|error| internal(&error))?;
        let renewed = Peer::of(&certificate).map_err(|error| internal(&error))?;
        // It is that of the host that joined then, so that an eviction of which nobody here has heard yet
        // is one of this too.
        let joined_ms = registry::joined_ms(&self.store, &peer);
        let recorded = registry::record_joined(&self.store, &renewed, joined_ms);
        recorded.map_err(|error| internal(&error))?;
        tracing::info!("the certificate of {} is renewed", peer.host);
        Ok(Grant {
            certificate: BASE64.encode(&certificate),
            authority_key: None,
            gateways: gateways(identity),
        })
    }
}

fn csr(text: &str) -> Result<(Vec<u8>, KeyId), Refusal> {
    let csr = BASE64.decode(text.as_bytes());
    let csr = csr.map_err(|_| malformed("the request for a certificate is no base64"))?;
    let key =
        pki::Authority::key_of_request(&csr).map_err(|error| malformed(&error.to_string()))?;
    Ok((csr, key))
}

/// The gateways that a new host begins with: this one first, it answers.
fn gateways(identity: &Identity) -> Vec<Gateway> {
    identity.as_gateway().into_iter().chain(identity.gateways.iter().cloned()).collect()
}

/// Conversations by address.
#[derive(Debug)]
struct Talking {
    all: usize,
    all_max: usize,
    of: HashMap<IpAddr, usize>,
}

impl Talking {
    fn up_to(all_max: usize) -> Talking {
        Talking { all: 0, all_max, of: HashMap::new() }
    }
}

/// What counts as one address: of IPv6 a network of 64 bits, for that is what one machine has.
fn counted(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// A place among the conversations, given back when dropped.
struct Place {
    talking: Arc<Mutex<Talking>>,
    address: IpAddr,
}

impl Place {
    fn take(talking: &Arc<Mutex<Talking>>, address: IpAddr) -> Option<Place> {
        let address = counted(address);
        let mut now = talking.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = now.of.get(&address).copied().unwrap_or(0);
        if now.all >= now.all_max || of_address >= OF_ADDRESS_MAX {
            return None;
        }
        now.all += 1;
        now.of.insert(address, of_address + 1);
        Some(Place { talking: Arc::clone(talking), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut now = self.talking.lock().unwrap_or_else(PoisonError::into_inner);
        now.all -= 1;
        match now.of.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(now.of.remove(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{Token, TokenAsk, create, token_key};

    const NOW_MS: u64 = 1_800_000_000_000;
    const HOUR_MS: u64 = 3_600_000;

    fn host(name: &str) -> HostId {
        name.parse().expect("a host")
    }

    fn token(ask: &TokenAsk) -> (Token, TokenRecord) {
        let authority = Authority::create(&"acme".parse().expect("a name"), NOW_MS);
        let made =
            Identity::issue(&authority.expect("made"), &host("tokyo/a"), Role::Gateway, NOW_MS);
        let identity =
            Identity { advertise: vec!["a:7081".to_owned()], ..made.expect("an identity") };
        let store = Store::in_memory(host("tokyo/a"));
        let token = create(&store, &identity, ask, NOW_MS).expect("a token");
        let record = store.value(&token_key(&token.id)).expect("kept");
        (token, serde_json::from_slice(&record).expect("JSON"))
    }

    /// A request and what is known, each changed by a case, and what becomes of it.
    #[test]
    fn who_is_let_in() {
        use RefusalCode as Code;
        type Change = fn(&mut JoinRequest, &mut Known<'_>);
        type Case = (&'static str, Change, Option<(Code, &'static str)>);
        let ask = TokenAsk {
            dc: Some("osaka".parse().expect("a name")),
            ttl: Duration::from_millis(HOUR_MS),
            uses: 3,
            role: Role::Member,
        };
        let (token, record) = token(&ask);
        let (other, _) = self::token(&ask);
        let cluster = token.cluster.clone();
        let cases: [Case; 19] = [
            ("as it should be", |_, _| (), None),
            ("the last use", |_, known| known.uses = 2, None),
            (
                "the last moment",
                |request, known| {
                    known.now_ms = NOW_MS + HOUR_MS;
                    request.now_ms = known.now_ms;
                },
                None,
            ),
            ("used up", |_, known| known.uses = 3, Some((Code::UsedUp, "3 of 3"))),
            ("more than used up", |_, known| known.uses = 4, Some((Code::UsedUp, "4 of 3"))),
            (
                "expired",
                |request, known| {
                    known.now_ms = NOW_MS + 2 * HOUR_MS;
                    request.now_ms = known.now_ms;
                },
                Some((Code::Expired, "60 minutes ago")),
            ),
            ("unknown", |_, known| known.token = None, Some((Code::UnknownToken, "kumo token"))),
            (
                "of another cluster",
                |request, _| {
                    request.cluster = "beta".parse().expect("a name");
                },
                Some((Code::WrongCluster, "`beta`, and this is `acme`")),
            ),
            (
                "an hour ahead",
                |request, _| request.now_ms += HOUR_MS,
                Some((Code::Clock, "60 minutes ahead of")),
            ),
            (
                "an hour behind",
                |request, _| request.now_ms -= HOUR_MS,
                Some((Code::Clock, "60 minutes behind")),
            ),
            ("at the epoch", |request, _| request.now_ms = 0, Some((Code::Clock, "days behind"))),
            (
                "at the end of time",
                |request, _| request.now_ms = u64::MAX,
                Some((Code::Clock, "days")),
            ),
            ("five minutes off", |request, _| request.now_ms -= AHEAD_MS_MAX, None),
            (
                "sent again",
                |_, known| known.certified = true,
                Some((Code::Replayed, "granted before")),
            ),
            (
                "as a gateway",
                |request, _| request.role = Role::Gateway,
                Some((Code::Role, "--gateway")),
            ),
            (
                "elsewhere",
                |request, _| request.host.dc = "tokyo".parse().expect("a name"),
                Some((Code::Dc, "`osaka`")),
            ),
            (
                "a name of the dead",
                |_, known| known.name = NameState::Known,
                Some((Code::NameKnown, "--replace")),
            ),
            (
                "in place of the dead",
                |request, known| {
                    known.name = NameState::Known;
                    request.replace = true;
                },
                None,
            ),
            (
                "in place of the living",
                |request, known| {
                    known.name = NameState::Alive;
                    request.replace = true;
                },
                Some((Code::NameAlive, "kumo evict osaka/b")),
            ),
        ];
        let here = host("tokyo/a");
        for (name, change, want) in cases {
            let mut request = JoinRequest {
                cluster: cluster.clone(),
                token: token.id.clone(),
                secret: token.secret.clone(),
                host: host("osaka/b"),
                role: Role::Member,
                replace: false,
                csr: String::new(),
                now_ms: NOW_MS,
            };
            let mut known = Known {
                cluster: &cluster,
                here: &here,
                token: Some(&record),
                uses: 0,
                name: NameState::Free,
                certified: false,
                now_ms: NOW_MS,
            };
            change(&mut request, &mut known);
            let got = judge(&request, &known).err();
            assert_eq!(got.as_ref().map(|refusal| refusal.code), want.map(|want| want.0), "{name}");
            if let (Some(refusal), Some((_, words))) = (got, want) {
                assert!(refusal.words.contains(words), "{name}: {:?}", refusal.words);
            }
            request.secret = other.secret.clone();
            let guessed = judge(&request, &known).expect_err("a wrong secret");
            let first = [Code::UnknownToken, Code::WrongCluster];
            assert!(first.contains(&guessed.code), "{name}: a wrong secret learned {guessed:?}");
        }
    }

    #[test]
    fn one_address_keeps_nobody_else_out() {
        let talking = Arc::new(Mutex::new(Talking::up_to(STRANGERS_MAX)));
        let [loud, other]: [IpAddr; 2] = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        let mut places: Vec<Place> = Vec::new();
        while let Some(place) = Place::take(&talking, loud) {
            places.push(place);
        }
        assert_eq!(places.len(), OF_ADDRESS_MAX);
        assert!(Place::take(&talking, other).is_some());
        places.pop();
        assert!(Place::take(&talking, loud).is_some(), "given back");
        drop(places);
        {
            let now = talking.lock().expect("no panic");
            assert_eq!((now.all, now.of.len()), (0, 0));
        }
        let of_network = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 7, 0, 0, 0, last]);
        let one_network = (0..).map_while(|last| Place::take(&talking, of_network(last)));
        assert_eq!(one_network.collect::<Vec<Place>>().len(), OF_ADDRESS_MAX);
        let all = (0..=u8::MAX).map(|last| [198, 51, 100, last].into());
        let places: Vec<Place> = all.map_while(|from| Place::take(&talking, from)).collect();
        assert_eq!(places.len(), STRANGERS_MAX);
    }
}
