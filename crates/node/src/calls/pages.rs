//! What programs show on their pages, as plain values.
//!
//! A program may write whatever it likes there, at any time. What is torn or makes no sense is left out;
//! names are parsed before anybody sees them.

use std::sync::atomic::{Ordering, fence};

use kumo_abi::call::{CALLS_IN_FLIGHT_MAX, Method, RootId, ServiceName};
use kumo_abi::page::program::{
    IN_FLIGHT_MAX, NAMES_MAX, PLACES_GIVEN_AT, REMOTE_MAX, SPANS_MAX, SPANS_WRITTEN_AT,
    UNLISTED_AT, in_flight_at, name_at, receipts_at, span_at,
};
use kumo_abi::page::{InFlight, NAME_BYTES, Span, WORD_BYTES, name_from_bytes};
use kumo_sys::PeerPage;

/// An entry of eight words whose first is written last and cleared first: nothing if it is empty, or if
/// it was changed while it was read.
fn entry(page: &PeerPage, at_bytes: usize) -> Option<[u64; 8]> {
    let first = page.load(at_bytes, Ordering::Acquire);
    if first == 0 {
        return None;
    }
    let mut words = [first; 8];
    for (nth, word) in words.iter_mut().enumerate().skip(1) {
        *word = page.load(at_bytes + nth * WORD_BYTES, Ordering::Relaxed);
    }
    fence(Ordering::Acquire);
    (page.load(at_bytes, Ordering::Relaxed) == first).then_some(words)
}

/// Calls that wait for their reply.
pub(super) fn in_flight(page: &PeerPage) -> impl Iterator<Item = InFlight> + '_ {
    let given = page.load(PLACES_GIVEN_AT, Ordering::Acquire).min(IN_FLIGHT_MAX as u64) as usize;
    (0..given).filter_map(|index| InFlight::from_words(entry(page, in_flight_at(index))?))
}

/// Calls that found no room among those.
pub(super) fn unlisted(page: &PeerPage) -> u64 {
    page.load(UNLISTED_AT, Ordering::Relaxed)
}

/// Finished calls of a trace that are still there, oldest first.
pub(super) fn spans(page: &PeerPage, root: RootId) -> impl Iterator<Item = Span> + '_ {
    let written = page.load(SPANS_WRITTEN_AT, Ordering::Acquire);
    let kept = written.min(SPANS_MAX as u64);
    (0..kept).filter_map(move |nth| {
        let number = written - kept + nth;
        let span = Span::from_words(entry(page, span_at(number))?)?;
        // Another number there is a later one, which has its own turn or came meanwhile.
        (span.number == number && span.root == root).then_some(span)
    })
}

/// The service and method of a call.
pub(super) fn name(page: &PeerPage, number: u16) -> Option<(ServiceName, Method)> {
    if number == 0 || usize::from(number) >= NAMES_MAX {
        return None;
    }
    let mut bytes = [0; NAME_BYTES];
    page.copy_out(name_at(number), &mut bytes);
    let (service, method) = name_from_bytes(&bytes)?;
    Some((service.parse().ok()?, method.parse().ok()?))
}

/// The ids of calls from another host that a callee has taken, as they stand.
pub(super) fn receipts(page: &PeerPage, index: u16) -> Option<Vec<u64>> {
    if usize::from(index) >= REMOTE_MAX {
        return None;
    }
    let word = |nth| page.load(receipts_at(index) + nth * WORD_BYTES, Ordering::Acquire);
    // What was never used is zero, which is no call's id and has a word of its own: that of another call.
    Some((0..CALLS_IN_FLIGHT_MAX).map(word).filter(|id| *id != 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumo_abi::page::{Side, name_bytes, program::LEN_BYTES};
    use kumo_sys::OwnPage;
    use std::os::fd::AsFd;

    fn pages() -> (OwnPage, PeerPage) {
        let own = OwnPage::new("test", LEN_BYTES).expect("a page");
        let fd = own.as_fd().try_clone_to_owned().expect("a descriptor");
        let peer = PeerPage::new(&fd, LEN_BYTES).expect("sealed");
        (own, peer)
    }

    fn write(page: &OwnPage, at_bytes: usize, words: [u64; 8]) {
        for (nth, word) in words.into_iter().enumerate() {
            page.store(at_bytes + nth * WORD_BYTES, word, Ordering::Relaxed);
        }
    }

    #[test]
    fn calls_are_read_as_far_as_places_were_given() {
        let (own, peer) = pages();
        let call = InFlight {
            call: 9,
            root: RootId([1; 16]),
            parent: 0,
            since_ns: 7,
            budget_ns: 6,
            connection: 5,
            name: 1,
            hop: 1,
            thread: 4,
        };
        write(&own, in_flight_at(2), call.words());
        assert_eq!(in_flight(&peer).count(), 0, "no place was given");
        own.store(PLACES_GIVEN_AT, 3, Ordering::Release);
        assert_eq!(in_flight(&peer).collect::<Vec<_>>(), [call]);
        own.store(PLACES_GIVEN_AT, u64::MAX, Ordering::Release);
        assert_eq!(in_flight(&peer).count(), 1, "a lie reaches nothing outside");
    }

    #[test]
    fn spans_of_one_trace_are_found_in_the_ring() {
        let (own, peer) = pages();
        let root = RootId([2; 16]);
        let span = |number: u64| Span {
            number,
            root: if number.is_multiple_of(2) { root } else { RootId([3; 16]) },
            call: number,
            parent: 0,
            start_ns: 1,
            took_ns: 2,
            status: 0,
            name: 1,
            hop: 1,
            side: Side::Callee,
        };
        let written = SPANS_MAX as u64 + 10;
        for number in 0..written {
            write(&own, span_at(number), span(number).words());
        }
        own.store(SPANS_WRITTEN_AT, written, Ordering::Release);
        let found: Vec<u64> = spans(&peer, root).map(|span| span.number).collect();
        assert_eq!(found.len(), SPANS_MAX / 2);
        assert_eq!((found.first(), found.last()), (Some(&10), Some(&(written - 2))));
        own.store(SPANS_WRITTEN_AT, u64::MAX, Ordering::Release);
        assert_eq!(spans(&peer, root).count(), 0, "numbers that are not there");
    }

    #[test]
    fn names_are_parsed_and_others_are_none() {
        let (own, peer) = pages();
        own.copy_in(name_at(1), &name_bytes("kv", "read"));
        own.copy_in(name_at(2), &name_bytes("kv", "\u{1b}[2J"));
        let found = name(&peer, 1).map(|(service, method)| format!("{service}/{method}"));
        assert_eq!(found.as_deref(), Some("kv/read"));
        for bad in [0, 2, 3, NAMES_MAX as u16, u16::MAX] {
            assert_eq!(name(&peer, bad), None, "for {bad}");
        }
        assert_eq!(receipts(&peer, REMOTE_MAX as u16), None);
        own.store(receipts_at(1) + 8, 65, Ordering::Release);
        assert_eq!(receipts(&peer, 1), Some(vec![65]), "not the words that were never used");
    }
}
