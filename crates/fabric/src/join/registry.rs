//! What the cluster remembers of certificates: whom they were issued to, and which are good no more.
//!
//! It stands in the desired state, so every gateway knows it, and hears of news in milliseconds.
//!
//! A host is evicted by one entry that says when. All its certificates are good no more that go back
//! to a join before that, the ones too that a gateway which has not heard of it issues later: a renewal
//! keeps the time of its join. Who joins again is somebody else.

use std::collections::{BTreeMap, BTreeSet};

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pki::{KeyId, NODE_MS, Peer};
use crate::store::{Store, StoreError};
use crate::token::{TokenRecord, token_key};

/// So long after its end a certificate is remembered, and a token: a request that was recorded is
/// known to be one, and clocks may differ.
const KEEP_MS: u64 = NODE_MS;

/// A certificate that was issued, under `issued/<key>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// To whom.
    pub host: HostId,
    /// As what.
    pub role: Role,
    /// Its end: milliseconds since the Unix epoch.
    pub not_after_ms: u64,
    /// When its host joined: the time of the first certificate that this one renews.
    #[serde(default)]
    pub joined_ms: u64,
}

/// A host that was evicted, under `evicted-host/<dc>/<host>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictedHost {
    /// When: milliseconds since the Unix epoch. Who joined before is good no more.
    pub at_ms: u64,
}

/// A certificate that is good no more, under `evicted/<key>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// Whose it was.
    pub host: HostId,
    /// Since when: milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Its own end, after which this can be forgotten.
    pub not_after_ms: u64,
}

const ISSUED: &str = "issued/";
/// The prefix of the keys of all cards.
pub(crate) const CARDS: &str = "host/";
const EVICTED: &str = "evicted/";
const EVICTED_HOST: &str = "evicted-host/";

fn issued_key(key: &KeyId) -> String {
    format!("{ISSUED}{key}")
}

fn evicted_key(key: &KeyId) -> String {
    format!("{EVICTED}{key}")
}

fn evicted_host_key(host: &HostId) -> String {
    format!("{EVICTED_HOST}{host}")
}

/// Where the card of a host is.
pub fn card_key(host: &HostId) -> String {
    format!("{CARDS}{host}")
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("a record is JSON")
}

/// All records under a prefix, with what follows it in their keys. One that cannot be read is of a
/// newer version, and passed over.
fn records<T: DeserializeOwned>(store: &Store, prefix: &str) -> Vec<(String, T)> {
    let read = |(key, value): (String, Vec<u8>)| {
        let name = key.strip_prefix(prefix)?.to_owned();
        Some((name, serde_json::from_slice(&value).ok()?))
    };
    store.with_prefix(prefix).into_iter().filter_map(read).collect()
}

/// The certificates that are good no more. Links look at it at every handshake.
pub fn evicted(store: &Store) -> BTreeSet<KeyId> {
    let keys = store.with_prefix(EVICTED).into_iter();
    let mut evicted: BTreeSet<KeyId> =
        keys.filter_map(|(key, _)| key.strip_prefix(EVICTED)?.parse().ok()).collect();
    let hosts: BTreeMap<String, EvictedHost> = records(store, EVICTED_HOST).into_iter().collect();
    if !hosts.is_empty() {
        let of_hosts = records::<Issued>(store, ISSUED).into_iter().filter(|(_, issued)| {
            hosts.get(&issued.host.to_string()).is_some_and(|host| issued.joined_ms < host.at_ms)
        });
        evicted.extend(of_hosts.filter_map(|(key, _)| key.parse::<KeyId>().ok()));
    }
    evicted
}

/// The host whose eviction stands under `key`, if that is such a key.
pub fn evicted_host(key: &str) -> Option<HostId> {
    key.strip_prefix(EVICTED_HOST)?.parse().ok()
}

/// Whether a change of what the store holds under `key` may change what [`evicted`] says. Certificates
/// are issued by the thousand, so for most this costs a look at two entries.
pub fn changes_evicted(store: &Store, key: &str) -> bool {
    match key.strip_prefix(ISSUED) {
        Some(issued) => issued.parse().is_ok_and(|key| is_evicted(store, &key)),
        None => key.starts_with(EVICTED) || key.starts_with(EVICTED_HOST),
    }
}

/// Whether a certificate is good no more.
pub fn is_evicted(store: &Store, key: &KeyId) -> bool {
    store.value(&evicted_key(key)).is_some()
        || issued(store, key).is_some_and(|issued| {
            evicted_ms(store, &issued.host).is_some_and(|at_ms| issued.joined_ms < at_ms)
        })
}

/// Whether the certificate that a host shows is good no more, also where nobody has told of it.
pub fn is_peer_evicted(store: &Store, peer: &Peer) -> bool {
    is_evicted(store, &peer.key_id)
        || evicted_ms(store, &peer.host).is_some_and(|at_ms| joined_ms(store, peer) < at_ms)
}

/// When a host was evicted last: milliseconds since the Unix epoch.
pub fn evicted_ms(store: &Store, host: &HostId) -> Option<u64> {
    let value = store.value(&evicted_host_key(host))?;
    serde_json::from_slice(&value).ok().map(|EvictedHost { at_ms }| at_ms)
}

/// When the host of a certificate joined. Of one that nobody has told of, the time of its issue: that
/// may be later, never earlier.
pub fn joined_ms(store: &Store, peer: &Peer) -> u64 {
    issued(store, &peer.key_id).map_or(peer.issued_ms(), |issued| issued.joined_ms)
}

fn issued(store: &Store, key: &KeyId) -> Option<Issued> {
    serde_json::from_slice(&store.value(&issued_key(key))?).ok()
}

/// Whether a key was certified before.
pub fn is_issued(store: &Store, key: &KeyId) -> bool {
    store.value(&issued_key(key)).is_some()
}

/// Whether a host of that name has joined: it has a card, or a certificate that is still good.
pub fn is_known(store: &Store, host: &HostId, now_ms: u64) -> bool {
    let good = |(key, issued): &(String, Issued)| {
        let evicted = key.parse().is_ok_and(|key| is_evicted(store, &key));
        issued.host == *host && issued.not_after_ms > now_ms && !evicted
    };
    store.value(&card_key(host)).is_some() || records(store, ISSUED).iter().any(good)
}

/// Remembers the certificate of a host that joined when it was issued. It is on the disk when this
/// returns.
///
/// # Errors
/// As [`Store::put`].
pub fn record(store: &Store, peer: &Peer) -> Result<(), StoreError> {
    record_joined(store, peer, peer.issued_ms())
}

/// Remembers the certificate of a host that joined then. It is on the disk when this returns.
///
/// # Errors
/// As [`Store::put`].
pub fn record_joined(store: &Store, peer: &Peer, joined_ms: u64) -> Result<(), StoreError> {
    let Peer { host, role, not_after_ms, .. } = peer.clone();
    let issued = Issued { host, role, not_after_ms, joined_ms };
    store.put(&issued_key(&peer.key_id), json(&issued))
}

/// Evicts a host: none of its certificates is good any more, nor any token that it came in by or that
/// was made there, and its name is free. Returns how many certificates that were. Its links are cut
/// where the state arrives.
///
/// # Errors
/// As [`Store::put`]; some may be evicted then, and it is safe to try again.
pub fn evict(store: &Store, host: &HostId, now_ms: u64) -> Result<usize, StoreError> {
    // Before: a token that is good when the time of the eviction has passed lets it in again.
    take_back_tokens(store, host)?;
    retire(store, host, now_ms)
}

/// Ends the certificates of a host whose name another takes, and frees the name. Returns how many those
/// were. The one who comes may have the token of the one who was.
///
/// # Errors
/// As [`Store::put`]; some may be good no more then, and it is safe to try again.
pub fn retire(store: &Store, host: &HostId, now_ms: u64) -> Result<usize, StoreError> {
    let is_good = |key: &KeyId, issued: &Issued| {
        issued.host == *host && issued.not_after_ms > now_ms && !is_evicted(store, key)
    };
    let records = records::<Issued>(store, ISSUED).into_iter();
    let all = records.filter_map(|(key, issued)| Some((key.parse::<KeyId>().ok()?, issued)));
    let good: Vec<(KeyId, Issued)> = all.filter(|(key, issued)| is_good(key, issued)).collect();
    // First: from here on no renewal helps, wherever it is asked for.
    let at_ms = evicted_ms(store, host).map_or(now_ms, |before_ms| before_ms.max(now_ms));
    store.put(&evicted_host_key(host), json(&EvictedHost { at_ms }))?;
    // By name too, for those whose clock or version does not see it from that.
    for (key, issued) in &good {
        let (host, not_after_ms) = (host.clone(), issued.not_after_ms);
        store.put(&evicted_key(key), json(&Evicted { host, at_ms: now_ms, not_after_ms }))?;
    }
    // Last: while it is there, the name is not free.
    store.remove(&card_key(host))?;
    Ok(good.len())
}

/// Takes back the tokens that a host came in by or that were made there: it has their secrets, and would
/// be back with the next join. They stay as tokens for nobody, so that who has one hears why.
fn take_back_tokens(store: &Store, host: &HostId) -> Result<(), StoreError> {
    let name = host.to_string();
    for (id, token) in records::<TokenRecord>(store, "token/") {
        let uses = || store.with_prefix(&format!("token-use/{id}/"));
        let is_known_there =
            token.by == *host || uses().iter().any(|(_, user)| *user == name.as_bytes());
        if token.uses > 0 && is_known_there {
            store.put(&format!("token/{id}"), json(&TokenRecord { uses: 0, ..token }))?;
        }
    }
    Ok(())
}

/// Forgets what ended long ago: certificates, evictions of them, tokens and their uses.
///
/// # Errors
/// As [`Store::remove`]; the rest is forgotten the next time.
pub fn sweep(store: &Store, now_ms: u64) -> Result<(), StoreError> {
    let is_over = |end_ms: u64| end_ms.saturating_add(KEEP_MS) < now_ms;
    for (key, evicted) in records::<Evicted>(store, EVICTED) {
        if is_over(evicted.not_after_ms) {
            store.remove(&format!("{EVICTED}{key}"))?;
        }
    }
    for (host, evicted) in records::<EvictedHost>(store, EVICTED_HOST) {
        // The last certificate of before has ended then.
        if is_over(evicted.at_ms.saturating_add(NODE_MS)) {
            store.remove(&format!("{EVICTED_HOST}{host}"))?;
        }
    }
    for (key, issued) in records::<Issued>(store, ISSUED) {
        if is_over(issued.not_after_ms) {
            store.remove(&format!("{ISSUED}{key}"))?;
        }
    }
    for (id, token) in records::<TokenRecord>(store, "token/") {
        if is_over(token.expires_ms) {
            for (key, _) in store.with_prefix(&format!("token-use/{id}/")) {
                store.remove(&key)?;
            }
            store.remove(&format!("token/{id}"))?;
        }
    }
    Ok(())
}

/// What is known of a token.
pub fn token(store: &Store, id: &crate::token::TokenId) -> Option<TokenRecord> {
    serde_json::from_slice(&store.value(&token_key(id))?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::BACKDATED_MS;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn peer(host: &str, number: u8) -> Peer {
        Peer {
            cluster: "acme".parse().expect("a name"),
            host: host.parse().expect("a host"),
            role: Role::Member,
            key_id: KeyId::of_public_key(&[number]),
            not_before_ms: NOW_MS - BACKDATED_MS,
            not_after_ms: NOW_MS + NODE_MS,
        }
    }

    #[test]
    fn an_evicted_host_has_no_good_certificate_and_its_name_is_free() {
        let store = Store::in_memory("tokyo/a".parse().expect("a host"));
        let (b, c) = (peer("tokyo/b", 1), peer("tokyo/c", 3));
        for peer in [&b, &peer("tokyo/b", 2), &c] {
            record(&store, peer).expect("kept");
        }
        store.put(&card_key(&b.host), b"{}".to_vec()).expect("kept");
        assert!(is_known(&store, &b.host, NOW_MS));
        assert_eq!(evict(&store, &b.host, NOW_MS).expect("evicted"), 2);
        assert_eq!(evict(&store, &b.host, NOW_MS).expect("again"), 0);
        assert!(is_evicted(&store, &b.key_id) && !is_evicted(&store, &c.key_id));
        assert_eq!(evicted(&store).len(), 2);
        assert!(!is_known(&store, &b.host, NOW_MS) && is_known(&store, &c.host, NOW_MS));
        assert!(is_issued(&store, &b.key_id), "its key is never certified again");
    }

    #[test]
    fn what_is_recorded_after_an_eviction_is_evicted_if_its_host_joined_before() {
        let store = Store::in_memory("tokyo/a".parse().expect("a host"));
        let first = peer("tokyo/b", 1);
        record(&store, &first).expect("kept");
        let at_ms = NOW_MS + 10;
        assert_eq!(evict(&store, &first.host, at_ms).expect("evicted"), 1);
        // A gateway that had not heard of it has renewed: the news of that come late.
        let (late, never_told, again) =
            (peer("tokyo/b", 2), peer("tokyo/b", 3), peer("tokyo/b", 4));
        record_joined(&store, &late, joined_ms(&store, &first)).expect("kept");
        record_joined(&store, &again, at_ms).expect("kept");
        let other = peer("tokyo/c", 5);
        record(&store, &other).expect("kept");
        assert_eq!(evicted(&store), BTreeSet::from([first.key_id, late.key_id]));
        assert!(is_peer_evicted(&store, &never_told), "its time tells");
        assert!(!is_peer_evicted(&store, &again) && !is_peer_evicted(&store, &other));
        let told = [(&first, true), (&late, true), (&again, false), (&other, false)];
        for (peer, want) in told {
            assert_eq!(changes_evicted(&store, &issued_key(&peer.key_id)), want, "{peer:?}");
        }
        assert!(changes_evicted(&store, &evicted_host_key(&first.host)));
        // An eviction by a clock that is behind takes nothing of it back.
        assert_eq!(evict(&store, &first.host, NOW_MS).expect("evicted"), 1);
        assert_eq!(evicted_ms(&store, &first.host), Some(at_ms));
    }

    #[test]
    fn what_ended_long_ago_is_forgotten() {
        let store = Store::in_memory("tokyo/a".parse().expect("a host"));
        let b = peer("tokyo/b", 1);
        record(&store, &b).expect("kept");
        evict(&store, &b.host, NOW_MS).expect("evicted");
        let token = TokenRecord {
            secret_hash: String::new(),
            dc: None,
            role: Role::Member,
            expires_ms: NOW_MS + NODE_MS,
            uses: 1,
            by: b.host.clone(),
        };
        store.put("token/0123456789abcdef", json(&token)).expect("kept");
        store.put("token-use/0123456789abcdef/00", b"{}".to_vec()).expect("kept");
        let keys = |store: &Store| store.with_prefix("").len();
        let end_ms = NOW_MS + NODE_MS + KEEP_MS;
        sweep(&store, end_ms).expect("swept");
        assert_eq!(keys(&store), 5, "not yet");
        sweep(&store, end_ms + 1).expect("swept");
        assert_eq!(keys(&store), 0, "{:?}", store.with_prefix(""));
    }
}
