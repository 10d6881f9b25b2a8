//! The rules of the desired state: a map in which the last writer wins.
//!
//! Every node holds all of it. Two copies that have exchanged their entries are equal, in whatever
//! order and however often the entries came. A removal is an entry too (a tombstone), so that an older
//! write does not come back; it is forgotten after [`TOMBSTONE_MS`], and a node that was away for
//! longer starts over from a copy of others ([`must_start_over`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Stamp;

/// How long a removal is remembered: longer than any host is expected to be cut off.
pub const TOMBSTONE_MS: u64 = 7 * 24 * 3600 * 1000;

/// Longest value. A service spec has a few KiB.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// Longest key.
pub const KEY_BYTES_MAX: usize = 256;

/// What an entry takes beside its key and its value: a stamp with the names of its writer, and the
/// memory that holds it together.
const ENTRY_BYTES: usize = 200;

/// In so many parts a digest is made: a difference costs the exchange of one part.
pub const BUCKETS: usize = 64;

/// What a key holds, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The value; `None` when it was removed.
    pub value: Option<Vec<u8>>,
    /// When and by whom it was written.
    pub stamp: Stamp,
}

/// One digest a bucket; equal digests mean equal entries. The default differs from every map's in
/// every bucket: who sends it asks for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest(Vec<u64>);

impl Digest {
    /// All of it in one number.
    pub fn root(&self) -> u64 {
        let mix = |root, bucket: &u64| hash(root, &bucket.to_le_bytes());
        self.0.iter().fold(0, mix)
    }
}

/// A copy of the desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    entries: BTreeMap<String, Entry>,
    /// Kept up to date with `entries`, for it is asked for every second.
    digest: Digest,
    size_bytes: usize,
}

impl Default for Map {
    fn default() -> Map {
        Map { entries: BTreeMap::new(), digest: Digest(vec![0; BUCKETS]), size_bytes: 0 }
    }
}

impl Map {
    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<&[u8]> {
        self.entries.get(key)?.value.as_deref()
    }

    /// The entry of `key`, a tombstone included.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Keys that begin with `prefix`, with their values, in order.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let from = self
            .entries
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        from.take_while(move |(key, _)| key.starts_with(prefix))
            .filter_map(|(key, entry)| Some((key.as_str(), entry.value.as_deref()?)))
    }

    /// All entries, tombstones included, in order of their keys.
    pub fn entries(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.entries.iter()
    }

    /// The greatest stamp in it.
    pub fn last_stamp(&self) -> Option<&Stamp> {
        self.entries.values().map(|entry| &entry.stamp).max()
    }

    /// Takes in an entry from wherever; whether it was newer than what was here.
    pub fn merge(&mut self, key: &str, entry: Entry) -> bool {
        if self.entries.get(key).is_some_and(|known| known.stamp >= entry.stamp) {
            return false;
        }
        self.forget(key);
        self.account(key, &entry);
        self.size_bytes += size_bytes(key, &entry);
        self.entries.insert(key.to_owned(), entry);
        true
    }

    /// Drops what is known of `key` without a trace: another copy may bring it back.
    pub fn forget(&mut self, key: &str) {
        if let Some(entry) = self.entries.remove(key) {
            self.account(key, &entry);
            self.size_bytes -= size_bytes(key, &entry);
        }
    }

    /// Adds an entry to the digest, or takes it out again: with exclusive or that is the same, and the
    /// order does not matter.
    fn account(&mut self, key: &str, entry: &Entry) {
        if let Some(bucket) = self.digest.0.get_mut(bucket(key)) {
            *bucket ^= entry_hash(key, &entry.stamp);
        }
    }

    /// What all entries take together: keys, values and what is kept with each.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Forgets removals that are [`too_old`]; returns their keys.
    pub fn forget_tombstones(&mut self, now_ms: u64) -> Vec<String> {
        let old = self.entries.iter().filter(|(_, entry)| too_old(entry, now_ms));
        let keys: Vec<String> = old.map(|(key, _)| key.clone()).collect();
        for key in &keys {
            self.forget(key);
        }
        keys
    }

    /// A digest of all entries.
    pub fn digest(&self) -> Digest {
        self.digest.clone()
    }

    /// The entries of all buckets in which `theirs` differs from ours.
    pub fn differing(&self, theirs: &Digest) -> Vec<(String, Entry)> {
        let differs = |key: &str| theirs.0.get(bucket(key)) != self.digest.0.get(bucket(key));
        let entries = self.entries.iter().filter(|(key, _)| differs(key));
        entries.map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }
}

/// What an entry takes, roughly: [`ENTRY_BYTES`] are added to its key and value.
pub fn size_bytes(key: &str, entry: &Entry) -> usize {
    key.len() + entry.value.as_ref().map_or(0, Vec::len) + ENTRY_BYTES
}

/// Whether this is a removal that is forgotten by now. Such a one is not taken in either: hosts do not
/// forget in the same moment, and would hand it to each other for ever.
pub fn too_old(entry: &Entry, now_ms: u64) -> bool {
    entry.value.is_none() && entry.stamp.ms.saturating_add(TOMBSTONE_MS) < now_ms
}

/// Whether a node that last heard of others at `heard_ms` may hold what others have removed and
/// forgotten. Then its copy must not be offered to anyone: it is dropped, and fetched anew.
pub fn must_start_over(heard_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(heard_ms) >= TOMBSTONE_MS
}

fn bucket(key: &str) -> usize {
    (hash(0, key.as_bytes()) % BUCKETS as u64) as usize
}

fn entry_hash(key: &str, stamp: &Stamp) -> u64 {
    let seed = hash(stamp.ms, key.as_bytes());
    hash(seed ^ u64::from(stamp.count), stamp.writer.to_string().as_bytes())
}

/// FNV-1a with a last mixing step. All nodes must agree on it, so it is not the standard library's,
/// which may change.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = bytes.iter().fold(start, step);
    (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(ms: u64, writer: &str, value: Option<&str>) -> Entry {
        let writer = format!("dc/{writer}").parse().expect("a host");
        Entry {
            value: value.map(|value| value.as_bytes().to_vec()),
            stamp: Stamp { ms, count: 0, writer },
        }
    }

    #[test]
    fn the_last_writer_wins() {
        let mut map = Map::default();
        assert!(map.merge("k", entry(5, "a", Some("new"))));
        assert!(!map.merge("k", entry(4, "b", Some("old"))));
        assert!(map.merge("k", entry(5, "b", Some("same time, other writer"))));
        assert_eq!(map.value("k"), Some(&b"same time, other writer"[..]));
        assert!(map.merge("k", entry(6, "a", None)));
        assert!(!map.merge("k", entry(5, "c", Some("late"))), "a removal holds");
        assert_eq!(map.value("k"), None);
    }

    #[test]
    fn removals_are_forgotten_in_time() {
        let mut map = Map::default();
        map.merge("gone", entry(1_000, "a", None));
        map.merge("kept", entry(1_000, "a", Some("v")));
        assert!(map.forget_tombstones(1_000 + TOMBSTONE_MS).is_empty());
        assert_eq!(map.forget_tombstones(1_001 + TOMBSTONE_MS), ["gone"]);
        assert!(map.entry("gone").is_none() && map.value("kept").is_some());
        assert!(!must_start_over(5_000, 5_000 + TOMBSTONE_MS - 1));
        assert!(must_start_over(5_000, 5_000 + TOMBSTONE_MS));
    }

    #[test]
    fn prefixes() {
        let mut map = Map::default();
        for key in ["spec/a", "spec/b", "specs", "token/x"] {
            map.merge(key, entry(1, "a", Some(key)));
        }
        map.merge("spec/b", entry(2, "a", None));
        let keys: Vec<_> = map.with_prefix("spec/").map(|(key, _)| key).collect();
        assert_eq!(keys, ["spec/a"]);
    }

    #[test]
    fn what_is_forgotten_is_in_no_digest_and_takes_no_room() {
        let mut map = Map::default();
        assert_ne!(map.digest(), Digest::default(), "the default asks for everything");
        map.merge("kept", entry(1, "a", Some("v")));
        let (before, root, size_bytes) = (map.clone(), map.digest().root(), map.size_bytes());
        map.merge("k", entry(1, "a", Some("long")));
        map.merge("k", entry(2, "a", None));
        assert_ne!(map.digest().root(), root);
        assert!(map.size_bytes() > size_bytes);
        map.forget("k");
        assert_eq!(map, before);
        assert_eq!(map.differing(&Digest::default()).len(), 1);
    }

    fn writes() -> impl Strategy<Value = Vec<(String, Entry)>> {
        let write = (0..12u8, 0..20u64, 0..3u8, proptest::option::of(0..5u8));
        let entry = |(key, ms, writer, value): (u8, u64, u8, Option<u8>)| {
            // One writer never makes one stamp twice: its stamps carry the key here.
            let ms = ms * 100 + u64::from(key);
            let value = value.map(|_| format!("{key} {ms} {writer}"));
            (format!("k{key}"), super::tests::entry(ms, &format!("w{writer}"), value.as_deref()))
        };
        proptest::collection::vec(write.prop_map(entry), 0..60)
    }

    /// A stamp stands for one write, so what one stamp says is the same wherever it came from.
    fn consistent(writes: Vec<(String, Entry)>) -> Vec<(String, Entry)> {
        let mut seen: BTreeMap<(String, Stamp), Entry> = BTreeMap::new();
        let first = |(key, entry): (String, Entry)| {
            let known = seen.entry((key.clone(), entry.stamp.clone())).or_insert(entry);
            (key, known.clone())
        };
        writes.into_iter().map(first).collect()
    }

    proptest! {
        #[test]
        fn copies_converge_in_any_order(writes in writes(), seed in any::<u64>()) {
            let writes = consistent(writes);
            let mut shuffled = writes.clone();
            shuffled.sort_by_key(|(key, entry)| hash(seed ^ entry.stamp.ms, key.as_bytes()));
            shuffled.extend(writes.clone()); // Everything a second time.
            let (mut a, mut b) = (Map::default(), Map::default());
            for (key, entry) in writes { a.merge(&key, entry); }
            for (key, entry) in shuffled { b.merge(&key, entry); }
            prop_assert_eq!(&a, &b);
            prop_assert_eq!(a.digest(), b.digest());
        }

        #[test]
        fn one_exchange_of_differences_makes_copies_equal(left in writes(), right in writes()) {
            let both = consistent([left.clone(), right].concat());
            let (left, right) = both.split_at(left.len());
            let (mut a, mut b) = (Map::default(), Map::default());
            for (key, entry) in left { a.merge(key, entry.clone()); }
            for (key, entry) in right { b.merge(key, entry.clone()); }
            let to_b = a.differing(&b.digest());
            let to_a = b.differing(&a.digest());
            for (key, entry) in to_b { b.merge(&key, entry); }
            for (key, entry) in to_a { a.merge(&key, entry); }
            prop_assert_eq!(&a, &b);
            prop_assert!(a.differing(&b.digest()).is_empty());
            prop_assert_eq!(a.digest().root(), b.digest().root());
        }
    }
}
