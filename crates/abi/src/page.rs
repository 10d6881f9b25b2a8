//! The layouts of the pages that programs and nodes read of each other.
//!
//! Each page is sealed memory that one side writes and others map read-only (decision 0005). Everything
//! in it is a little-endian u64 at an offset that is a multiple of 8, read and written as one atomic
//! word; here are the offsets and how words become values. A reader believes nothing: what it reads may
//! be torn by a writer at work, and is then refused or simply old, or lies, and then harms who lied.
//!
//! Ids are never used again, so "the id at the beginning and at the end are the same" means that nothing
//! between was changed meanwhile ([`InFlight`], [`Span`]).

use crate::call::{CALL_NAME_BYTES_MAX, CALLS_IN_FLIGHT_MAX, Cause, RootId};

/// Bytes of a word.
pub const WORD_BYTES: usize = 8;

/// Bytes that a CPU moves at once. What two sides write stands in different lines.
const LINE_BYTES: usize = 64;

/// Bytes of the receipts, or revocations, of one connection.
pub const RECEIPTS_BYTES: usize = CALLS_IN_FLIGHT_MAX * WORD_BYTES;

/// Where in receipts, revocations or taken ids the call `id` stands, in bytes.
pub const fn receipt_at(id: u64) -> usize {
    (id % CALLS_IN_FLIGHT_MAX as u64) as usize * WORD_BYTES
}

/// The page that each side of a connection on one host writes and the other reads. Either passes it as
/// the first packet on the connection, beside a HELLO.
pub mod connection {
    use super::{LINE_BYTES, RECEIPTS_BYTES};

    /// Says what the page is, and which version of it.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"KUMOCON2");
    /// Where [`MAGIC`] stands.
    pub const MAGIC_AT: usize = 0;
    /// Bytes that this side has ever written to its ring. Each frame begins at a multiple of 8.
    pub const WRITTEN_AT: usize = LINE_BYTES;
    /// Bytes that this side has ever read of the peer's ring.
    pub const READ_AT: usize = 2 * LINE_BYTES;
    /// Not 0 while this side sleeps on the socket, so that it wants a doorbell.
    pub const SLEEPING_AT: usize = 3 * LINE_BYTES;
    /// The CPU that this side was last seen on, plus 1; 0 if it does not say.
    pub const CPU_AT: usize = SLEEPING_AT + 8;
    /// How this side waits for room in its ring, if it does: [`WAITS_ASLEEP`], [`WAITS_FOR_BELL`], or 0. Who reads
    /// the ring looks here when no more than [`RING_HALF_BYTES`] are left in it, and were before.
    pub const WAITS_AT: usize = SLEEPING_AT + 16;
    /// It sleeps on the futex of the peer's [`READ_AT`].
    pub const WAITS_ASLEEP: u64 = 1;
    /// It wants a doorbell: a task, which cannot sleep on a futex.
    pub const WAITS_FOR_BELL: u64 = 2;
    /// The ids of calls that this side took, each stored before its handler runs.
    pub const RECEIPTS_AT: usize = 4 * LINE_BYTES;
    /// The ids of calls that this side took back.
    pub const REVOCATIONS_AT: usize = RECEIPTS_AT + RECEIPTS_BYTES;
    /// For each slot of the peer's pool, the turn whose body this side has copied out ([`crate::frame::Pooled`]).
    pub const RETURNED_AT: usize = REVOCATIONS_AT + RECEIPTS_BYTES;
    /// Bytes before the ring: the whole page of a connection without one.
    pub const HEAD_BYTES: usize = 4096;
    /// Where the ring begins.
    pub const RING_AT: usize = HEAD_BYTES;
    /// Bytes of a ring, a power of two: room for three of the largest frames.
    pub const RING_BYTES: usize = 256 * 1024;

    /// With so much of it used any frame has room, so nobody waits.
    pub const RING_HALF_BYTES: usize = RING_BYTES / 2;

    /// Bytes of the page.
    pub const fn len_bytes(ring: bool) -> usize {
        if ring { HEAD_BYTES + RING_BYTES } else { HEAD_BYTES }
    }
}

/// The page that a program writes and its node reads.
pub mod program {
    use super::{IN_FLIGHT_BYTES, NAME_BYTES, RECEIPTS_BYTES, SPAN_BYTES};

    /// Says what the page is, and which version of it.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"KUMOPRO1");
    /// Where [`MAGIC`] stands.
    pub const MAGIC_AT: usize = 0;
    /// How many spans were ever written.
    pub const SPANS_WRITTEN_AT: usize = 64;
    /// How many names were ever written.
    pub const NAMES_WRITTEN_AT: usize = 128;
    /// How many calls found no room among those in flight.
    pub const UNLISTED_AT: usize = 136;

    /// How many places for calls in flight were ever given out, lowest first: behind them all are empty,
    /// and nobody needs to look there.
    pub const PLACES_GIVEN_AT: usize = 144;

    /// Most names of service and method. Later ones are name 0, which is empty.
    pub const NAMES_MAX: usize = 512;
    /// Where names stand. Each is written once, before its number is used.
    pub const NAMES_AT: usize = 4096;
    /// Most calls that a program has in flight and shows.
    pub const IN_FLIGHT_MAX: usize = 4096;
    /// Where calls in flight stand.
    pub const IN_FLIGHT_AT: usize = NAMES_AT + NAMES_MAX * NAME_BYTES;
    /// Finished calls that are kept: at 100,000 calls a second, those of the last 80 ms.
    pub const SPANS_MAX: usize = 8192;
    /// Where finished calls stand; number `n` at `n % SPANS_MAX`.
    pub const SPANS_AT: usize = IN_FLIGHT_AT + IN_FLIGHT_MAX * IN_FLIGHT_BYTES;
    /// Most connections from other hosts, each with a set of receipts.
    pub const REMOTE_MAX: usize = 512;
    /// Where receipts of calls from other hosts stand.
    pub const REMOTE_AT: usize = SPANS_AT + SPANS_MAX * SPAN_BYTES;
    /// Bytes of the page. What is never written takes no memory.
    pub const LEN_BYTES: usize = REMOTE_AT + REMOTE_MAX * RECEIPTS_BYTES;

    /// Where the call in flight number `index` stands; below [`IN_FLIGHT_MAX`].
    pub const fn in_flight_at(index: usize) -> usize {
        IN_FLIGHT_AT + index * IN_FLIGHT_BYTES
    }

    /// Where the finished call with this number, from 0, stands.
    pub const fn span_at(number: u64) -> usize {
        SPANS_AT + (number % SPANS_MAX as u64) as usize * SPAN_BYTES
    }

    /// Where the name with this number, from 1 and below [`NAMES_MAX`], stands.
    pub const fn name_at(number: u16) -> usize {
        NAMES_AT + number as usize * NAME_BYTES
    }

    /// Where the receipts of the connection with this index stand; below [`REMOTE_MAX`].
    pub const fn receipts_at(index: u16) -> usize {
        REMOTE_AT + index as usize * RECEIPTS_BYTES
    }
}

/// The page that a node writes for a program.
pub mod notice {
    use super::RECEIPTS_BYTES;

    /// Says what the page is, and which version of it.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"KUMONOT1");
    /// Where [`MAGIC`] stands.
    pub const MAGIC_AT: usize = 0;
    /// Most connections of a program, both ways: as many as it has descriptors by default.
    pub const CONNECTIONS_MAX: usize = 1024;
    /// Bytes for each connection: the state in a line of its own, then taken ids.
    pub const ENTRY_BYTES: usize = 64 + RECEIPTS_BYTES;
    /// Where connections stand.
    pub const ENTRIES_AT: usize = 4096;
    /// Bytes of the page. What is never written takes no memory.
    pub const LEN_BYTES: usize = ENTRIES_AT + CONNECTIONS_MAX * ENTRY_BYTES;

    /// Where the state of this connection stands: a [`super::Notice`], 0 while it is open. The node
    /// writes it last, fences, and only then reads receipts of the program behind it or shuts the socket.
    pub const fn state_at(connection: u32) -> usize {
        ENTRIES_AT + connection as usize * ENTRY_BYTES
    }

    /// Where the ids of its calls that the callee had taken stand, as receipts stand.
    pub const fn taken_at(connection: u32) -> usize {
        state_at(connection) + 64
    }
}

/// Bytes of a call in flight.
pub const IN_FLIGHT_BYTES: usize = 64;
/// Bytes of a finished call.
pub const SPAN_BYTES: usize = 64;
/// Bytes of a name: service and method, each a length and up to 63 bytes.
pub const NAME_BYTES: usize = 2 * (CALL_NAME_BYTES_MAX + 1);

/// Why a connection ended, as its node says in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Why.
    pub cause: Cause,
    /// Whether the ids of the calls that had been taken stand beside it. Without them, nobody knows.
    pub taken_known: bool,
}

impl Notice {
    /// As a word; never 0.
    pub fn word(self) -> u64 {
        u64::from(self.cause as u8) | u64::from(self.taken_known) << 8
    }

    /// What a word says; nothing while the connection is open, or if no node wrote this.
    pub fn from_word(word: u64) -> Option<Notice> {
        let cause = Cause::from_number((word & 0xff) as u32)?;
        (word >> 9 == 0).then_some(Notice { cause, taken_known: word >> 8 == 1 })
    }
}

/// A call that waits for its reply, as its caller shows it. Its id is written last and cleared first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Its id; 0 is no call.
    pub call: u64,
    /// Its trace.
    pub root: RootId,
    /// The call it is part of; 0 at the root.
    pub parent: u64,
    /// When it was sent, in nanoseconds of `CLOCK_MONOTONIC`.
    pub since_ns: u64,
    /// How long it may take from then.
    pub budget_ns: u64,
    /// The connection it went out on.
    pub connection: u32,
    /// The name of service and method, by number in this page.
    pub name: u16,
    /// Its hop.
    pub hop: u8,
    /// The thread that waits for it; 0 if a task does.
    pub thread: u32,
}

impl InFlight {
    /// As words; the first is the id.
    pub fn words(&self) -> [u64; IN_FLIGHT_BYTES / WORD_BYTES] {
        let [low, high] = root_words(self.root);
        let name = u64::from(self.name) << 32 | u64::from(self.hop) << 48;
        let where_to = u64::from(self.connection) | name;
        let thread = u64::from(self.thread);
        [self.call, low, high, self.parent, self.since_ns, self.budget_ns, where_to, thread]
    }

    /// What words say, if they are those of a call.
    pub fn from_words(words: [u64; IN_FLIGHT_BYTES / WORD_BYTES]) -> Option<InFlight> {
        let [call, low, high, parent, since_ns, budget_ns, where_to, thread] = words;
        (call != 0).then_some(InFlight {
            call,
            root: root_from_words([low, high]),
            parent,
            since_ns,
            budget_ns,
            connection: where_to as u32,
            name: (where_to >> 32) as u16,
            hop: (where_to >> 48) as u8,
            thread: thread as u32,
        })
    }
}

/// On which side of a call a span was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Its caller's: the time between sending and hearing.
    Caller,
    /// Its callee's: the time that the handler took.
    Callee,
}

/// A finished call. Its number is written last, plus 1; while it is written, 0 stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its number among the spans of this program, from 0.
    pub number: u64,
    /// Its trace.
    pub root: RootId,
    /// Its id.
    pub call: u64,
    /// The call it is part of; 0 at the root.
    pub parent: u64,
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// How long it took, in nanoseconds; at most 2^40, 18 minutes, which stands for all that is longer.
    pub took_ns: u64,
    /// How it ended, as [`crate::call::Status::number`].
    pub status: u32,
    /// The name of service and method, by number in this page.
    pub name: u16,
    /// Its hop.
    pub hop: u8,
    /// Who saw it.
    pub side: Side,
}

/// Longest time that a span shows.
pub const SPAN_TOOK_NS_MAX: u64 = (1 << 40) - 1;

impl Span {
    /// As words; the first is the number plus 1.
    pub fn words(&self) -> [u64; SPAN_BYTES / WORD_BYTES] {
        let [low, high] = root_words(self.root);
        let callee = u64::from(self.side == Side::Callee);
        let took = self.took_ns.min(SPAN_TOOK_NS_MAX) | u64::from(self.hop) << 40 | callee << 48;
        let end = u64::from(self.status) | u64::from(self.name) << 32;
        [self.number + 1, low, high, self.call, self.parent, self.start_ns, took, end]
    }

    /// What words say, if they are those of a finished call.
    pub fn from_words(words: [u64; SPAN_BYTES / WORD_BYTES]) -> Option<Span> {
        let [number, low, high, call, parent, start_ns, took, end] = words;
        Some(Span {
            number: number.checked_sub(1)?,
            root: root_from_words([low, high]),
            call,
            parent,
            start_ns,
            took_ns: took & SPAN_TOOK_NS_MAX,
            status: end as u32,
            name: (end >> 32) as u16,
            hop: (took >> 40) as u8,
            side: if took >> 48 & 1 == 1 { Side::Callee } else { Side::Caller },
        })
    }
}

fn root_words(root: RootId) -> [u64; 2] {
    let number = u128::from_le_bytes(root.0);
    [number as u64, (number >> 64) as u64]
}

fn root_from_words([low, high]: [u64; 2]) -> RootId {
    RootId((u128::from(low) | u128::from(high) << 64).to_le_bytes())
}

/// The bytes of a name. What is longer than a name may be is cut: names are checked before.
pub fn name_bytes(service: &str, method: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    let half = NAME_BYTES / 2;
    for (at, text) in [(0, service), (half, method)] {
        let len_bytes = text.len().min(CALL_NAME_BYTES_MAX);
        bytes[at] = len_bytes as u8;
        bytes[at + 1..=at + len_bytes].copy_from_slice(&text.as_bytes()[..len_bytes]);
    }
    bytes
}

/// Service and method of a name, if the bytes are one.
pub fn name_from_bytes(bytes: &[u8; NAME_BYTES]) -> Option<(&str, &str)> {
    let (service, method) = bytes.split_at(NAME_BYTES / 2);
    Some((text_with_length(service)?, text_with_length(method)?))
}

fn text_with_length(bytes: &[u8]) -> Option<&str> {
    let (len_bytes, rest) = bytes.split_first()?;
    std::str::from_utf8(rest.get(..usize::from(*len_bytes))?).ok()
}

// What the layouts promise to each other; a change that breaks one does not compile.
const _: () = {
    assert!(
        connection::RETURNED_AT + crate::frame::POOL_SLOTS * WORD_BYTES <= connection::HEAD_BYTES
    );
    assert!(connection::RING_BYTES.is_power_of_two());
    assert!(connection::RING_BYTES >= 3 * crate::frame::FRAME_BYTES_MAX);
    assert!(connection::RING_HALF_BYTES >= crate::frame::FRAME_BYTES_MAX);
    assert!(program::IN_FLIGHT_AT.is_multiple_of(LINE_BYTES));
    assert!(program::SPANS_AT.is_multiple_of(LINE_BYTES));
    assert!(program::REMOTE_AT.is_multiple_of(LINE_BYTES));
    assert!(notice::ENTRY_BYTES.is_multiple_of(LINE_BYTES));
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::CAUSES;

    #[test]
    fn notices_are_words_and_other_words_are_none() {
        for cause in CAUSES {
            for taken_known in [false, true] {
                let notice = Notice { cause, taken_known };
                assert_eq!(Notice::from_word(notice.word()), Some(notice));
            }
        }
        for word in [0, 0xff, 0x100, 0x201, u64::MAX] {
            assert_eq!(Notice::from_word(word), None, "for {word:#x}");
        }
    }

    #[test]
    fn calls_are_words() {
        let call = InFlight {
            call: u64::MAX,
            root: RootId([9; 16]),
            parent: 3,
            since_ns: 4,
            budget_ns: 5,
            connection: 1023,
            name: 511,
            hop: 16,
            thread: 77,
        };
        assert_eq!(InFlight::from_words(call.words()), Some(call));
        assert_eq!(InFlight::from_words([0; 8]), None);
        let span = Span {
            number: 0,
            root: RootId([8; 16]),
            call: 1,
            parent: 2,
            start_ns: 3,
            took_ns: SPAN_TOOK_NS_MAX,
            status: u32::MAX,
            name: u16::MAX,
            hop: 16,
            side: Side::Callee,
        };
        assert_eq!(Span::from_words(span.words()), Some(span));
        let slow = Span { took_ns: u64::MAX, side: Side::Caller, ..span };
        let shown = Span::from_words(slow.words()).expect("a span");
        assert_eq!((shown.took_ns, shown.side), (SPAN_TOOK_NS_MAX, Side::Caller));
        assert_eq!(Span::from_words([0; 8]), None);
    }

    #[test]
    fn names_are_bytes_and_other_bytes_are_none() {
        let long = "a".repeat(CALL_NAME_BYTES_MAX);
        for (service, method) in [("kv", "read"), (long.as_str(), long.as_str()), ("", "")] {
            let bytes = name_bytes(service, method);
            assert_eq!(name_from_bytes(&bytes), Some((service, method)));
        }
        assert_eq!(name_from_bytes(&[0xff; NAME_BYTES]), None);
    }

    #[test]
    fn ids_that_are_in_flight_together_have_places_of_their_own() {
        let mut places: Vec<usize> = (1_000..1_064).map(receipt_at).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), CALLS_IN_FLIGHT_MAX);
        assert_eq!(places.last(), Some(&(RECEIPTS_BYTES - WORD_BYTES)));
    }
}
