//! The desired state on a real disk: killed writers, damaged files, two processes, many threads.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kumo_abi::HostId;
use kumo_fabric::clock::Stamp;
use kumo_fabric::store::{Change, Entry, Store, StoreError};

/// Tells the helper process where its store is; see [`writer_process`].
const STORE_AT: &str = "KUMO_TEST_STORE";

fn host(name: &str) -> HostId {
    format!("tokyo/{name}").parse().expect("a host")
}

fn open(path: &Path) -> Store {
    Store::open(path, host("a")).expect("a store")
}

fn now_ms() -> u64 {
    std::time::UNIX_EPOCH.elapsed().expect("a time").as_millis() as u64
}

fn from_b(number: u64) -> (String, Entry) {
    let stamp = Stamp { ms: now_ms(), count: number as u32, writer: host("b") };
    (format!("theirs/{number:08}"), Entry { value: Some(vec![b'b'; 300]), stamp })
}

/// Numbers under `prefix`, in order.
fn numbers(store: &Store, prefix: &str) -> Vec<u64> {
    let number = |(key, _): (String, Vec<u8>)| key[prefix.len()..].parse().expect("a number");
    store.with_prefix(prefix).into_iter().map(number).collect()
}

/// What is in a store's directory beside it.
fn beside(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path.parent().expect("a directory")).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|found| found != path).collect()
}

/// Not a test by itself: the process that the test below kills. It puts and removes numbered keys for
/// ever, and says of each when it is acknowledged.
#[test]
#[ignore = "a helper of `nothing_acknowledged_is_lost_when_a_writer_is_killed`"]
fn writer_process() {
    let path = PathBuf::from(std::env::var_os(STORE_AT).expect("the path of a store"));
    let store = open(&path);
    let first = numbers(&store, "own/").last().map_or(0, |last| last + 1);
    for number in first..first + 1_000_000 {
        store.put(&format!("own/{number:08}"), number.to_le_bytes().repeat(40)).expect("a put");
        say(&format!("put {number}"));
        store.put("last", number.to_string().into_bytes()).expect("a put");
        say(&format!("last {number}"));
        if number % 3 == 0 {
            store.put(&format!("gone/{number:08}"), vec![1]).expect("a put");
            store.remove(&format!("gone/{number:08}")).expect("a removal");
            say(&format!("gone {number}"));
        }
        store.take_in(vec![from_b(number)]);
        if number % 5 == 0 {
            store.flush().expect("a flush");
            say(&format!("flushed {number}"));
        }
    }
}

/// A line in one write, so that a kill cuts none in two unseen.
fn say(what: &str) {
    std::io::stdout().write_all(format!("\nack {what}\n").as_bytes()).expect("a reader");
}

/// Kills and reaps what it holds.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Numbers without pattern, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What writers acknowledged before they were killed.
#[derive(Default)]
struct Acknowledged {
    put: Vec<u64>,
    gone: Vec<u64>,
    flushed: Option<u64>,
    last: Option<u64>,
}

impl Acknowledged {
    /// Whether `line` was an acknowledgement.
    fn hear(&mut self, line: &str) -> bool {
        let Some(ack) = line.strip_prefix("ack ").and_then(|rest| rest.strip_suffix('\n')) else {
            return false;
        };
        let (what, number) = ack.split_once(' ').expect("two words");
        let number: u64 = number.parse().expect("a number");
        match what {
            "put" => self.put.push(number),
            "gone" => self.gone.push(number),
            "flushed" => self.flushed = Some(number),
            "last" => self.last = Some(number),
            other => panic!("it said {other}"),
        }
        true
    }

    /// That all of it is in `store`, after `rounds` kills.
    fn check(&self, store: &Store, rounds: usize) {
        let there = numbers(store, "own/");
        assert!(there.iter().copied().eq(0..there.len() as u64), "one is missing in {there:?}");
        assert!(
            self.put.last() <= there.last(),
            "{:?} was acknowledged: {there:?}",
            self.put.last()
        );
        assert!(there.len() <= self.put.len() + rounds, "at most one a round was not said");
        let stamp = |number: &u64| store.entry(&format!("own/{number:08}")).expect("it").stamp;
        let stamps: Vec<Stamp> = there.iter().map(stamp).collect();
        assert!(stamps.windows(2).all(|pair| pair[0] < pair[1]), "{stamps:?}");
        for number in there {
            let value = store.value(&format!("own/{number:08}"));
            assert_eq!(value, Some(number.to_le_bytes().repeat(40)), "it is whole");
        }
        for number in &self.gone {
            let entry = store.entry(&format!("gone/{number:08}"));
            assert!(entry.is_some_and(|entry| entry.value.is_none()), "{number} was removed");
        }
        let last = store.value("last").map(|text| String::from_utf8(text).expect("digits"));
        let last = last.map(|text| text.parse::<u64>().expect("a number"));
        assert!(last >= self.last, "{last:?}, and {:?} was acknowledged", self.last);
        let theirs = numbers(store, "theirs/");
        assert!(self.flushed.is_none_or(|number| theirs.contains(&number)), "{theirs:?}");
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_a_writer_is_killed() {
    const ROUNDS: usize = 40;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    let mut dice = Dice(0x9e37_79b9);
    let mut acknowledged = Acknowledged::default();
    for round in 0..ROUNDS {
        let exe = std::env::current_exe().expect("this program");
        let mut command = Command::new(exe);
        command.args(["--exact", "writer_process", "--ignored", "--nocapture"]);
        command.env(STORE_AT, &path).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut writer = Killed(command.spawn().expect("a process"));
        let mut lines = BufReader::new(writer.0.stdout.take().expect("a pipe"));
        // Some are killed while they open the file, the others after some acknowledgements, anywhere in
        // a later transaction. The moment is meant to be random: nothing is waited for.
        let acks_min = if round % 4 == 0 { 0 } else { 1 + dice.below(30) };
        let pause = Duration::from_micros(dice.below(if acks_min == 0 { 30_000 } else { 5_000 }));
        let (mut acks, mut killed, mut line) = (0, false, String::new());
        loop {
            if !killed && acks >= acks_min {
                std::thread::sleep(pause);
                writer.0.kill().expect("a kill");
                killed = true;
            }
            line.clear();
            if lines.read_line(&mut line).expect("lines") == 0 {
                break;
            }
            acks += u64::from(acknowledged.hear(&line));
        }
        assert!(killed, "round {round}: the writer ended by itself after {acks} acknowledgements");
        assert!(!writer.0.wait().expect("a status").success(), "it was killed");
        let store = open(&path);
        assert!(beside(&path).is_empty(), "round {round}: damaged: {:?}", beside(&path));
        acknowledged.check(&store, round + 1);
    }
    let Acknowledged { put, gone, flushed, .. } = acknowledged;
    assert!(put.len() > 100 && flushed.is_some() && !gone.is_empty(), "{} puts", put.len());
}

#[test]
fn what_came_from_others_is_there_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    let store = open(&path);
    assert_eq!(store.take_in((0..100).map(from_b).collect()).newer, 100);
    let again = store.differing(&kumo_fabric::store::Digest::default());
    assert_eq!(store.take_in(again).known, 100);
    let (digest, root) = (store.digest(), store.root());
    drop(store); // It writes what is left.
    let store = open(&path);
    assert_eq!((store.digest(), store.root()), (digest, root));
    assert_eq!(numbers(&store, "theirs/").len(), 100);
    let mode = fs::metadata(&path).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_damaged_file_is_moved_aside_and_the_state_comes_back_from_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let other = Store::in_memory(host("b"));
    let path = directory.path().join("store.redb");
    let store = open(&path);
    for number in 0..100 {
        store.put(&format!("own/{number:08}"), vec![7; 500]).expect("a put");
    }
    other.take_in(store.differing(&other.digest()));
    drop(store);
    let whole = fs::read(&path).expect("a file");
    let damages: [fn(Vec<u8>) -> Vec<u8>; 5] = [
        |_| b"not a database".to_vec(),
        |bytes| bytes[..bytes.len() / 2].to_vec(),
        |bytes| vec![0; bytes.len()],
        |mut bytes| {
            bytes[..64].fill(0xff); // The header.
            bytes
        },
        |mut bytes| {
            // Values of all pages, old ones too, so that only the checksums tell.
            bytes.iter_mut().filter(|byte| **byte == 7).for_each(|byte| *byte = 8);
            bytes
        },
    ];
    for (nth, damage) in damages.into_iter().enumerate() {
        for old in beside(&path) {
            fs::remove_file(old).expect("a file");
        }
        let damaged = damage(whole.clone());
        fs::write(&path, &damaged).expect("a file");
        let store = open(&path);
        let aside = beside(&path);
        assert_eq!(aside.len(), 1, "damage {nth}: {aside:?}");
        assert!(aside[0].display().to_string().contains("store.redb.damaged-"), "{aside:?}");
        assert_eq!(store.with_prefix("").len(), 0, "damage {nth}: no half state");
        let taken = store.take_in(other.differing(&store.digest()));
        assert_eq!((taken.newer, store.root()), (100, other.root()), "damage {nth}");
        store.put("setting/x", b"1".to_vec()).expect("it works");
        drop(store);
        assert_eq!(open(&path).with_prefix("").len(), 101);
    }
}

#[test]
fn a_second_process_is_told_and_nothing_is_moved() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    let store = open(&path);
    let second = Store::open(&path, host("a")).err();
    assert!(matches!(second, Some(StoreError::InUse { .. })), "{second:?}");
    let nowhere = Store::open(&directory.path().join("no/such/store.redb"), host("a")).err();
    assert!(matches!(nowhere, Some(StoreError::Open { .. })), "{nowhere:?}");
    assert!(beside(&path).is_empty());
    store.put("k", b"v".to_vec()).expect("the first goes on");
}

#[test]
fn threads_agree_on_one_order_and_listeners_hear_all_of_it() {
    const THREADS: u64 = 4;
    const PUTS: u64 = 30;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    let store = Arc::new(open(&path));
    let mut changes = store.changes();
    let work = |thread: u64| {
        let store = store.clone();
        move || {
            for number in 0..PUTS {
                let value = format!("{thread} {number}").into_bytes();
                store.put("shared", value).expect("a put");
                store.take_in(vec![from_b(thread * PUTS + number)]);
                store.flush().expect("a flush");
            }
        }
    };
    let threads: Vec<_> = (0..THREADS).map(|thread| std::thread::spawn(work(thread))).collect();
    for thread in threads {
        thread.join().expect("a thread");
    }
    let mut heard: Vec<Change> = Vec::new();
    while let Ok(change) = changes.try_recv() {
        heard.push(change);
    }
    let own: Vec<&Change> = heard.iter().filter(|change| change.own).collect();
    assert_eq!((own.len() as u64, heard.len() as u64), (THREADS * PUTS, 2 * THREADS * PUTS));
    assert!(own.windows(2).all(|pair| pair[0].entry.stamp < pair[1].entry.stamp));
    let last = own.last().map(|change| change.entry.clone());
    assert_eq!(store.entry("shared"), last);
    let root = store.root();
    drop(store);
    let store = open(&path);
    assert_eq!((store.entry("shared"), store.root()), (last, root));
}
