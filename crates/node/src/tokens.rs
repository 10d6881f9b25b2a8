//! The tokens of a node: in the desired state of its cluster, so that one made anywhere is good, and one
//! taken back is none, on all hosts; in a file where there is no cluster. With them the certificates that were
//! taken back: one by one, or those of a host that was evicted.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use k2i::token::{
    Certificate, Kept, KeyHash, Revoked, TOKENS_MAX, TokenFile, TokenFileError, Tokens,
};
use kumo_abi::TokenName;
use kumo_fabric::join::registry;
use kumo_fabric::pki::{KeyId, Peer};
use kumo_fabric::store::{REVOKED as REVOKED_PREFIX, Store, StoreError};
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;

/// Where they are in the desired state.
const PREFIX: &str = "right/token/";

/// The file of a node without a cluster, below its state directory.
const FILE: &str = "tokens.json";

/// Who keeps them.
pub(crate) struct NodeTokens {
    /// Once the node is part of a cluster.
    store: OnceLock<Arc<Store>>,
    file: TokenFile,
}

impl std::fmt::Debug for NodeTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of_cluster = self.store.get().is_some();
        f.debug_struct("NodeTokens").field("of_cluster", &of_cluster).finish_non_exhaustive()
    }
}

/// They cannot be read or written. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokensError {
    #[error(transparent)]
    File(#[from] TokenFileError),
    #[error("cannot write the desired state")]
    Store(#[from] StoreError),
    #[error("there are {TOKENS_MAX} tokens, and that is the most; remove some first")]
    Full,
    #[error("there are {TOKENS_MAX} certificates that were taken back, and that is the most")]
    FullOfRevoked,
}

fn key(name: &TokenName) -> String {
    format!("{PREFIX}{name}")
}

fn revoked_key(key: &KeyHash) -> String {
    format!("{REVOKED_PREFIX}{key}")
}

/// What is kept under a prefix, as far as this version reads it.
fn readable<K: FromStr + Ord, V: DeserializeOwned>(store: &Store, prefix: &str) -> BTreeMap<K, V> {
    let read = |(key, text): (String, Vec<u8>)| {
        let key = key.strip_prefix(prefix)?.parse().ok()?;
        Some((key, serde_json::from_slice(&text).ok()?))
    };
    store.with_prefix(prefix).into_iter().filter_map(read).collect()
}

impl NodeTokens {
    /// Those of the node with this state directory.
    pub(crate) fn in_file(state_dir: &Path) -> NodeTokens {
        NodeTokens { store: OnceLock::new(), file: TokenFile::at(state_dir.join(FILE)) }
    }

    /// From now on they are those of the cluster. What was made before it was one stays in the file, and
    /// is not taken any more: its other hosts do not know of it.
    pub(crate) fn of_cluster(&self, store: Arc<Store>) {
        let _ = self.store.set(store);
    }

    /// All there are. What cannot be read, as another version may write it, lets nobody in.
    pub(crate) fn all(&self) -> Result<BTreeMap<TokenName, Kept>, TokensError> {
        let Some(store) = self.store.get() else { return Ok(self.file.read()?) };
        Ok(readable(store, PREFIX))
    }

    /// Keeps one, in place of one that has its name.
    pub(crate) fn put(&self, name: TokenName, kept: Kept) -> Result<(), TokensError> {
        let Some(store) = self.store.get() else { return Ok(self.file.put(name, kept)?) };
        let key = key(&name);
        if store.value(&key).is_none() && store.with_prefix(PREFIX).len() >= TOKENS_MAX {
            return Err(TokensError::Full);
        }
        store.put(&key, serde_json::to_vec(&kept).unwrap_or_default())?;
        Ok(())
    }

    /// Takes one back; whether it was there.
    pub(crate) fn remove(&self, name: &TokenName) -> Result<bool, TokensError> {
        let Some(store) = self.store.get() else { return Ok(self.file.remove(name)?) };
        let key = key(name);
        let was = store.value(&key).is_some();
        if was {
            store.remove(&key)?;
        }
        Ok(was)
    }

    /// The certificates that were taken back one by one.
    pub(crate) fn revoked(&self) -> Result<BTreeMap<KeyHash, Revoked>, TokensError> {
        let Some(store) = self.store.get() else { return Ok(self.file.revoked()?) };
        Ok(readable(store, REVOKED_PREFIX))
    }

    /// Takes one back, for ever; the first who did is remembered.
    pub(crate) fn revoke(&self, key: KeyHash, revoked: Revoked) -> Result<(), TokensError> {
        let Some(store) = self.store.get() else { return Ok(self.file.revoke(key, revoked)?) };
        let place = revoked_key(&key);
        if store.value(&place).is_some() {
            return Ok(());
        }
        if store.with_prefix(REVOKED_PREFIX).len() >= TOKENS_MAX {
            return Err(TokensError::FullOfRevoked);
        }
        store.put(&place, serde_json::to_vec(&revoked).unwrap_or_default())?;
        Ok(())
    }
}

impl Tokens for NodeTokens {
    fn kept(&self, name: &TokenName) -> Option<Kept> {
        match self.store.get() {
            Some(store) => serde_json::from_slice(&store.value(&key(name))?).ok(),
            None => self.file.kept(name),
        }
    }

    fn is_revoked(&self, certificate: &Certificate) -> bool {
        let Some(store) = self.store.get() else { return self.file.is_revoked(certificate) };
        let evicted = || {
            // That of a host may be one of which nobody has told: then its name and its time tell.
            let peer = Peer::of(&CertificateDer::from(certificate.der.as_slice()));
            registry::is_evicted(store, &KeyId::from_bytes(certificate.key.to_bytes()))
                || peer.is_ok_and(|peer| registry::is_peer_evicted(store, &peer))
        };
        store.value(&revoked_key(&certificate.key)).is_some() || evicted()
    }
}

#[cfg(test)]
mod tests {
    use kumo_fabric::identity::Identity;
    use kumo_fabric::pki::Authority;

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    #[test]
    fn a_certificate_is_good_until_it_or_its_host_is_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let tokens = NodeTokens::in_file(dir.path());
        let store = Arc::new(Store::in_memory("tokyo/a".parse().expect("a host")));
        let authority = Authority::create(&"acme".parse().expect("a name"), NOW_MS).expect("one");
        let of_host = |name: &str| {
            let host = name.parse().expect("a host");
            let role = kumo_abi::cluster::Role::Member;
            let identity = Identity::issue(&authority, &host, role, NOW_MS).expect("an identity");
            let peer = Peer::of(&identity.certificate).expect("a host's");
            let key: KeyHash = peer.key_id.to_string().parse().expect("as k2i names it");
            (Certificate { key, der: identity.certificate.to_vec() }, peer)
        };
        let ((told, peer), (untold, untold_peer), (good, _)) =
            (of_host("tokyo/b"), of_host("tokyo/c"), of_host("tokyo/d"));
        let (key, other) = (KeyHash::of(b"alice"), KeyHash::of(b"bob"));
        let alice = |key| Certificate { key, der: Vec::new() };
        let by_hand = || Revoked { name: "alice".into(), at_ms: NOW_MS, by: "me".into() };
        tokens.revoke(key, by_hand()).expect("into the file");
        assert!(tokens.is_revoked(&alice(key)) && !tokens.is_revoked(&told));

        tokens.of_cluster(Arc::clone(&store));
        registry::record(&store, &peer).expect("kept");
        assert!(!tokens.is_revoked(&told) && !tokens.is_revoked(&untold));
        // Later than they were issued: a certificate is backdated, its host's name is free at once.
        for peer in [&peer, &untold_peer] {
            registry::evict(&store, &peer.host, NOW_MS + 1).expect("evicted");
        }
        assert!(tokens.is_revoked(&told), "its key is known");
        assert!(tokens.is_revoked(&untold), "its name and its time tell");
        assert!(!tokens.is_revoked(&good));

        assert!(!tokens.is_revoked(&alice(other)));
        tokens.revoke(other, by_hand()).expect("kept");
        assert!(tokens.is_revoked(&alice(other)));
        assert_eq!(tokens.revoked().expect("read"), [(other, by_hand())].into());
    }
}
