//! What the parts of a running fabric share.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use kumo_abi::cluster::{Card, HostInfo, HostState, Role};
use kumo_abi::{DcName, HostId};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast};
use zenoh::Session;

use crate::ask::Answerer;
use crate::gather::Standing;
use crate::join::registry::{CARDS, card_key};
use crate::members::{Change, Member, Members, SILENT_GRACE_MS};
use crate::net::Keys;
use crate::net::answer::{ANSWERS_MAX, RELAYS_MAX};
use crate::store::Store;
use kumo_sys::wall_ms;

/// Events that a slow reader may be behind before it misses some.
const EVENTS_MAX: usize = 4_096;

/// A host's state has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostEvent {
    /// Which host.
    #[serde(flatten)]
    pub id: HostId,
    /// What it is.
    pub role: Role,
    /// What is known now.
    pub state: HostState,
}

/// The key under which a host that said good-bye says when, in milliseconds since the Unix epoch: nodes
/// that start later must not take it for dead.
pub(crate) fn left_key(host: &HostId) -> String {
    format!("left/{host}")
}

/// Whose card a key is.
fn host_of_card(key: &str) -> Option<HostId> {
    key.strip_prefix(CARDS)?.parse().ok()
}

/// One of a newer version may not be understood; its host is there all the same.
fn read_card(card: &[u8]) -> Option<Card> {
    serde_json::from_slice(card).ok()
}

fn seen(host: &HostId, member: &Member, card: Option<Card>, now_ms: u64) -> HostInfo {
    HostInfo {
        id: host.clone(),
        state: member.state,
        state_ms: now_ms.saturating_sub(member.since_ms),
        incarnation: Some(member.incarnation),
        card,
    }
}

/// A running fabric, without its tasks.
pub(crate) struct Shared {
    pub(crate) me: HostId,
    pub(crate) role: Role,
    /// Which start of this node it is.
    pub(crate) incarnation: u64,
    pub(crate) keys: Keys,
    pub(crate) handle: Handle,
    pub(crate) store: Arc<Store>,
    pub(crate) answerer: Arc<dyn Answerer>,
    pub(crate) answers: Semaphore,
    pub(crate) relays: Semaphore,
    pub(crate) events: broadcast::Sender<HostEvent>,
    session: ArcSwapOption<Session>,
    members: Mutex<Members>,
    began: Instant,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(
        me: HostId,
        role: Role,
        incarnation: u64,
        keys: Keys,
        store: Arc<Store>,
        answerer: Arc<dyn Answerer>,
    ) -> Shared {
        Shared {
            me,
            role,
            incarnation,
            keys,
            handle: Handle::current(),
            store,
            answerer,
            answers: Semaphore::new(ANSWERS_MAX),
            relays: Semaphore::new(RELAYS_MAX),
            events: broadcast::Sender::new(EVENTS_MAX),
            session: ArcSwapOption::empty(),
            members: Mutex::default(),
            began: Instant::now(),
        }
    }

    /// The session, once there is one.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.session.load_full().filter(|session| !session.is_closed())
    }

    pub(crate) fn set_session(&self, session: Option<Session>) {
        self.session.store(session.map(Arc::new));
    }

    /// Milliseconds since this fabric began: the clock of the members.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The members. The rules do not panic; if they did, what they hold is still plain values.
    pub(crate) fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all who listen.
    pub(crate) fn announce(&self, changes: Vec<Change>) {
        for Change { host, role, state } in changes {
            match state {
                HostState::Alive | HostState::Left => tracing::info!("{host} is {}", state.name()),
                HostState::Dead | HostState::CutOff => tracing::warn!("{host} is {}", state.name()),
            }
            // It fails when nobody listens.
            let _ = self.events.send(HostEvent { id: host, role, state });
        }
    }

    /// What is known of a host.
    pub(crate) fn standing(&self, host: &HostId) -> Standing {
        let now_ms = self.now_ms();
        let members = self.members();
        match members.find(host) {
            Some(member) if member.state == HostState::Alive => Standing::Present,
            Some(member) => Standing::Gone(member.state, now_ms.saturating_sub(member.since_ms)),
            None if self.store.value(&card_key(host)).is_some() => {
                let (state, for_ms) = self.unseen(&members, host, now_ms);
                Standing::Gone(state, for_ms)
            }
            None => Standing::Unknown,
        }
    }

    /// A gateway of another data centre, or of ours where we are none, that merges answers; not
    /// `lost`. Which one is chosen by our name, so that many who ask use all of them.
    pub(crate) fn merger(&self, dc: &DcName, lost: Option<&HostId>) -> Option<HostId> {
        if self.role == Role::Gateway && self.me.dc == *dc {
            return None;
        }
        let members = self.members();
        let gateways: Vec<&HostId> =
            members.gateways(dc).filter(|gateway| Some(*gateway) != lost).collect();
        let spread: usize = self.me.host.as_str().bytes().map(usize::from).sum();
        gateways.get(spread % gateways.len().max(1)).map(|gateway| (*gateway).clone())
    }

    /// Whether a host is gone, and so is its card: it was evicted. One whose card has not arrived yet is
    /// not meant.
    fn is_forgotten(&self, info: &HostInfo) -> bool {
        let is_removed = || {
            let entry = self.store.entry(&card_key(&info.id));
            entry.is_some_and(|entry| entry.value.is_none())
        };
        info.state != HostState::Alive && is_removed()
    }

    /// All hosts: those that were seen, and those that only have a card.
    pub(crate) fn hosts(&self) -> Vec<HostInfo> {
        let card = |(key, card): (String, Vec<u8>)| Some((host_of_card(&key)?, read_card(&card)));
        self.list(self.store.with_prefix(CARDS).into_iter().filter_map(card).collect())
    }

    /// The same without their cards: reading these takes longer than all else.
    pub(crate) fn states(&self) -> Vec<HostInfo> {
        let keys = self.store.keys_with_prefix(CARDS);
        self.list(keys.iter().filter_map(|key| Some((host_of_card(key)?, None))).collect())
    }

    /// One host, as [`Shared::hosts`] lists it.
    pub(crate) fn host(&self, host: &HostId) -> Option<HostInfo> {
        let card = self.store.value(&card_key(host)).map(|card| read_card(&card));
        let now_ms = self.now_ms();
        let members = self.members();
        let info = match members.find(host) {
            Some(member) => seen(host, member, card.flatten(), now_ms),
            None => self.only_a_card(&members, host.clone(), card?, now_ms),
        };
        Some(info).filter(|info| !self.is_forgotten(info))
    }

    fn list(&self, mut cards: BTreeMap<HostId, Option<Card>>) -> Vec<HostInfo> {
        let now_ms = self.now_ms();
        let members = self.members();
        let mut hosts: Vec<HostInfo> = members
            .iter()
            .map(|(id, member)| seen(id, member, cards.remove(id).flatten(), now_ms))
            .filter(|info| !self.is_forgotten(info))
            .collect();
        let unseen = cards.into_iter();
        hosts.extend(unseen.map(|(id, card)| self.only_a_card(&members, id, card, now_ms)));
        hosts.sort_by(|a, b| a.id.cmp(&b.id));
        hosts
    }

    fn only_a_card(
        &self,
        members: &Members,
        id: HostId,
        card: Option<Card>,
        now_ms: u64,
    ) -> HostInfo {
        let (state, state_ms) = self.unseen(members, &id, now_ms);
        let incarnation = (id == self.me).then_some(self.incarnation);
        HostInfo { state, state_ms, incarnation, id, card }
    }

    /// What a host is that has a card and whose token this node has not seen, and for how long at least.
    /// Right after a data centre was reached its hosts' tokens may still be on their way.
    fn unseen(&self, members: &Members, host: &HostId, now_ms: u64) -> (HostState, u64) {
        if *host == self.me {
            return (HostState::Alive, now_ms);
        }
        if let Some(left) = self.store.value(&left_key(host)) {
            let at_ms = std::str::from_utf8(&left).ok().and_then(|text| text.parse().ok());
            return (HostState::Left, wall_ms().saturating_sub(at_ms.unwrap_or(u64::MAX)));
        }
        match members.reachable_since_ms(&host.dc) {
            Some(since_ms) if since_ms + SILENT_GRACE_MS <= now_ms => (HostState::Dead, now_ms),
            _ => (HostState::CutOff, now_ms),
        }
    }
}
