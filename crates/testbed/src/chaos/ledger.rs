//! Files in which servers and clients write what they did, as they do it: a `kill -9` takes nothing back.
//!
//! Each process has a file of its own and adds entries of one size, each with one `write`. The kernel has what
//! was written, whatever becomes of the process.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use kumo_abi::call::Status;

/// Bytes of an entry.
const ENTRY_BYTES: usize = 32;

/// A call: which client, and which of its calls. Nobody uses a key twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

impl Key {
    /// The call with this number of that client.
    pub fn new(client: u32, number: u32) -> Key {
        Key(u64::from(client) << 32 | u64::from(number))
    }

    /// Which client made it.
    pub fn client(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What somebody wrote down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A handler begins.
    Began(Key),
    /// It has done its work, and will reply.
    Did(Key),
    /// A caller was told how its call ended.
    Told(Key, Status, Way),
    /// A caller was told later than its deadline.
    Late(Late),
}

/// How a call was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The place of the service among those that the client was told.
    pub service: u16,
    /// Whether a task called, not a thread.
    pub by_task: bool,
}

/// A call that ended after its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// Which it is.
    pub key: Key,
    /// By how much, in microseconds.
    pub by_us: u32,
    /// For how much of the call its thread wanted to run and did not, in microseconds: the machine's part.
    pub waited_us: u32,
    /// When it ended, by the monotonic clock.
    pub at_ns: u64,
}

impl Late {
    /// By how much without the machine's part, in microseconds.
    pub fn own_us(&self) -> u32 {
        self.by_us.saturating_sub(self.waited_us)
    }
}

impl Entry {
    fn encode(self) -> [u8; ENTRY_BYTES] {
        let (kind, key, at_ns, first, second) = match self {
            Entry::Began(key) => (1_u32, key, 0, 0, 0),
            Entry::Did(key) => (2, key, 0, 0, 0),
            Entry::Told(key, status, Way { service, by_task }) => {
                (3, key, 0, status.number(), u32::from(service) << 1 | u32::from(by_task))
            }
            Entry::Late(Late { key, by_us, waited_us, at_ns }) => (4, key, at_ns, by_us, waited_us),
        };
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&key.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&at_ns.to_le_bytes());
        bytes[16..20].copy_from_slice(&first.to_le_bytes());
        bytes[20..24].copy_from_slice(&second.to_le_bytes());
        bytes[24..28].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Entry> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let (key, first, second) = (Key(long(0)), word(16), word(20));
        Some(match word(24) {
            1 => Entry::Began(key),
            2 => Entry::Did(key),
            3 => Entry::Told(
                key,
                Status::from_number(first)?,
                Way { service: (second >> 1) as u16, by_task: second & 1 != 0 },
            ),
            4 => Entry::Late(Late { key, by_us: first, waited_us: second, at_ns: long(8) }),
            _ => return None,
        })
    }
}

/// A file that one process writes, from any of its threads.
#[derive(Debug)]
pub struct Ledger(File);

impl Ledger {
    /// Begins a new file.
    ///
    /// # Errors
    /// It is there already, or cannot be made.
    pub fn create(path: &Path) -> io::Result<Ledger> {
        Ok(Ledger(File::options().append(true).create_new(true).open(path)?))
    }

    /// Adds an entry. It is in the file when this returns.
    ///
    /// # Errors
    /// The disk is full, or the like: what is not written down must not be done.
    pub fn add(&self, entry: Entry) -> io::Result<()> {
        let written = (&self.0).write(&entry.encode())?;
        if written == ENTRY_BYTES { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

/// What a process wrote after the first `seen_bytes`, which move on. What it is writing in this moment is
/// left for the next time.
///
/// # Errors
/// It cannot be read, or holds what is no entry.
pub fn read_from(path: &Path, seen_bytes: &mut u64) -> io::Result<Vec<Entry>> {
    let mut bytes = Vec::new();
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(*seen_bytes))?;
    file.read_to_end(&mut bytes)?;
    let (entries, rest) = bytes.as_chunks::<ENTRY_BYTES>();
    *seen_bytes += (bytes.len() - rest.len()) as u64;
    let bad =
        || io::Error::new(io::ErrorKind::InvalidData, format!("{} is broken", path.display()));
    entries.iter().map(|entry| Entry::decode(entry).ok_or_else(bad)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumo_abi::call::Cause;

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger");
        let ledger = Ledger::create(&path).expect("a file");
        let key = Key::new(7, 9);
        let late = Late { key, by_us: 3, waited_us: 2, at_ns: u64::MAX - 1 };
        let entries = [
            Entry::Began(key),
            Entry::Did(Key(u64::MAX)),
            Entry::Told(key, Status::NotExecuted(Cause::Died), Way { service: 6, by_task: true }),
            Entry::Told(key, Status::Failed(7), Way::default()),
            Entry::Late(late),
        ];
        for entry in entries {
            ledger.add(entry).expect("room");
        }
        let mut seen_bytes = 0;
        assert_eq!(read_from(&path, &mut seen_bytes).expect("a ledger"), entries);
        ledger.add(entries[0]).expect("room");
        assert_eq!(read_from(&path, &mut seen_bytes).expect("more"), [entries[0]]);
        assert!(Ledger::create(&path).is_err(), "it is never begun anew");
        std::fs::write(&path, [0; ENTRY_BYTES + 1]).expect("a file");
        assert!(read_from(&path, &mut 0).is_err());
    }
}
