//! What the cluster remembers of certificates: whom they were issued to, and which are good no more.
//!
//! It stands in the desired state, so every gateway knows it, and hears of news in milliseconds.

use std::collections::BTreeSet;

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

fn issued_key(key: &KeyId) -> String {
    format!("issued/{key}")
}

fn evicted_key(key: &KeyId) -> String {
    format!("evicted/{key}")
}

/// Where the card of a host is.
pub fn card_key(host: &HostId) -> String {
    format!("host/{host}")
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
    let keys = store.with_prefix("evicted/").into_iter();
    keys.filter_map(|(key, _)| key.strip_prefix("evicted/")?.parse().ok()).collect()
}

/// Whether a certificate is good no more.
pub fn is_evicted(store: &Store, key: &KeyId) -> bool {
    store.value(&evicted_key(key)).is_some()
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
    store.value(&card_key(host)).is_some() || records(store, "issued/").iter().any(good)
}

/// Remembers a certificate. It is on the disk when this returns.
///
/// # Errors
/// As [`Store::put`].
pub fn record(store: &Store, peer: &Peer) -> Result<(), StoreError> {
    let issued =
        Issued { host: peer.host.clone(), role: peer.role, not_after_ms: peer.not_after_ms };
    store.put(&issued_key(&peer.key_id), json(&issued))
}

/// Evicts a host: none of its certificates is good any more, and its name is free. Returns how many
/// certificates that were. Its links are cut where the state arrives.
///
/// # Errors
/// As [`Store::put`]; some may be evicted then, and it is safe to try again.
pub fn evict(store: &Store, host: &HostId, now_ms: u64) -> Result<usize, StoreError> {
    let mut keys = 0;
    for (key, issued) in records::<Issued>(store, "issued/") {
        let Ok(key) = key.parse::<KeyId>() else { continue };
        if issued.host != *host || issued.not_after_ms <= now_ms || is_evicted(store, &key) {
            continue;
        }
        let evicted =
            Evicted { host: issued.host, at_ms: now_ms, not_after_ms: issued.not_after_ms };
        store.put(&evicted_key(&key), json(&evicted))?;
        keys += 1;
    }
    // Last: while it is there, the name is not free.
    store.remove(&card_key(host))?;
    Ok(keys)
}

/// Forgets what ended long ago: certificates, evictions of them, tokens and their uses.
///
/// # Errors
/// As [`Store::remove`]; the rest is forgotten the next time.
pub fn sweep(store: &Store, now_ms: u64) -> Result<(), StoreError> {
    let is_over = |end_ms: u64| end_ms.saturating_add(KEEP_MS) < now_ms;
    for (key, evicted) in records::<Evicted>(store, "evicted/") {
        if is_over(evicted.not_after_ms) {
            store.remove(&format!("evicted/{key}"))?;
        }
    }
    for (key, issued) in records::<Issued>(store, "issued/") {
        if is_over(issued.not_after_ms) {
            store.remove(&format!("issued/{key}"))?;
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

    const NOW_MS: u64 = 1_800_000_000_000;

    fn peer(host: &str, number: u8) -> Peer {
        Peer {
            cluster: "acme".parse().expect("a name"),
            host: host.parse().expect("a host"),
            role: Role::Member,
            key_id: KeyId::of_public_key(&[number]),
            not_before_ms: NOW_MS,
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
        assert_eq!(keys(&store), 4, "not yet");
        sweep(&store, end_ms + 1).expect("swept");
        assert_eq!(keys(&store), 0, "{:?}", store.with_prefix(""));
    }
}
