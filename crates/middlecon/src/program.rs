//! The page on which this program shows its node what it does: calls in flight, finished calls, receipts.
//!
//! Showing costs a few stores and no system call, so it is always on; and it can still be read after
//! the program was killed.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use kumo_abi::call::{Method, ServiceName};
use kumo_abi::page::program::{
    IN_FLIGHT_MAX, LEN_BYTES, MAGIC, MAGIC_AT, NAMES_MAX, NAMES_WRITTEN_AT, PLACES_GIVEN_AT,
    SPANS_WRITTEN_AT, in_flight_at, name_at, receipts_at, span_at,
};
use kumo_abi::page::{InFlight, Span, WORD_BYTES, name_bytes, receipt_at};
use kumo_sys::OwnPage;

#[derive(Debug)]
pub(crate) struct Program {
    page: OwnPage,
    names: Mutex<HashMap<(ServiceName, Method), u16>>,
    places: Mutex<Places>,
}

/// Methods of a service whose numbers are found without a lock. Others take a few hundred nanoseconds more.
const NAMES_KNOWN: usize = 16;

/// The numbers of one service's methods, as calls look for them: each call shows its name.
#[derive(Debug)]
pub(crate) struct Names {
    service: ServiceName,
    known: [OnceLock<(Method, u16)>; NAMES_KNOWN],
}

impl Names {
    pub(crate) fn new(service: &ServiceName) -> Names {
        Names { service: service.clone(), known: [const { OnceLock::new() }; NAMES_KNOWN] }
    }

    pub(crate) fn service(&self) -> &ServiceName {
        &self.service
    }

    fn find(&self, method: &str) -> Option<u16> {
        let mut known = self.known.iter().map_while(OnceLock::get);
        known.find(|(known, _)| known.as_str() == method).map(|(_, number)| *number)
    }

    /// As [`Program::name`].
    #[inline]
    pub(crate) fn number(&self, program: &Program, method: &Method) -> u16 {
        self.find(method.as_str()).unwrap_or_else(|| self.learn(program, method))
    }

    /// As [`Names::number`], of a method that a peer named; nothing if it is no name.
    #[inline]
    pub(crate) fn number_of(&self, program: &Program, method: &str) -> Option<u16> {
        self.find(method).or_else(|| Some(self.learn(program, &method.parse().ok()?)))
    }

    #[cold]
    fn learn(&self, program: &Program, method: &Method) -> u16 {
        let number = program.name(&self.service, method);
        // One that another thread takes meanwhile is left to it; this name takes the next, if there is one.
        let mut new = (method.clone(), number);
        for place in &self.known {
            match place.set(new) {
                Ok(()) => break,
                Err(back) => new = back,
            }
        }
        number
    }
}

/// Places among the calls in flight: never given ones, and those given back.
#[derive(Debug, Default)]
struct Places {
    next: u32,
    back: Vec<u32>,
}

impl Program {
    pub(crate) fn new() -> io::Result<Program> {
        let page = OwnPage::new("middlecon program", LEN_BYTES)?;
        page.store(MAGIC_AT, MAGIC, Ordering::Release);
        Ok(Program { page, names: Mutex::default(), places: Mutex::default() })
    }

    /// The number of a name; 0 once the page has room for no more.
    pub(crate) fn name(&self, service: &ServiceName, method: &Method) -> u16 {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = names.get(&(service.clone(), method.clone())) {
            return *number;
        }
        let number = names.len() as u16 + 1;
        if usize::from(number) >= NAMES_MAX {
            return 0;
        }
        self.page.copy_in(name_at(number), &name_bytes(service.as_str(), method.as_str()));
        self.page.store(NAMES_WRITTEN_AT, number.into(), Ordering::Release);
        names.insert((service.clone(), method.clone()), number);
        number
    }

    /// A place for calls in flight; nothing if all are taken.
    pub(crate) fn place(&self) -> Option<u32> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.back.pop() {
            return Some(place);
        }
        let place = places.next;
        if place as usize >= IN_FLIGHT_MAX {
            return None;
        }
        places.next += 1;
        self.page.store(PLACES_GIVEN_AT, places.next.into(), Ordering::Release);
        Some(place)
    }

    /// Gives a place back.
    pub(crate) fn leave(&self, place: u32) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).back.push(place);
    }

    /// Shows a call in flight.
    #[inline]
    pub(crate) fn show(&self, place: u32, call: &InFlight) {
        self.write(in_flight_at(place as usize), &call.words());
    }

    /// Shows it no more.
    #[inline]
    pub(crate) fn clear(&self, place: u32) {
        self.page.store(in_flight_at(place as usize), 0, Ordering::Release);
    }

    /// Shows a finished call; its number is given here.
    #[inline]
    pub(crate) fn span(&self, mut span: Span) {
        span.number = self.page.add(SPANS_WRITTEN_AT, 1);
        self.write(span_at(span.number), &span.words());
    }

    /// A reader that finds the same first word before and after has read one whole entry.
    #[inline]
    fn write(&self, at_bytes: usize, words: &[u64; 8]) {
        self.page.store(at_bytes, 0, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in words.iter().enumerate().skip(1) {
            self.page.store(at_bytes + word * WORD_BYTES, *value, Ordering::Relaxed);
        }
        self.page.store(at_bytes, words[0], Ordering::Release);
    }

    /// Notes that a call from another host is taken.
    pub(crate) fn receipt(&self, index: u16, id: u64) {
        self.page.store(receipts_at(index) + receipt_at(id), id, Ordering::Release);
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.page.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumo_abi::call::RootId;
    use kumo_abi::page::{NAME_BYTES, Side, name_from_bytes};
    use kumo_sys::PeerPage;

    fn entry(page: &PeerPage, at_bytes: usize) -> [u64; 8] {
        std::array::from_fn(|word| page.load(at_bytes + word * WORD_BYTES, Ordering::Acquire))
    }

    #[test]
    fn a_reader_sees_calls_names_and_spans() {
        let program = Program::new().expect("a page");
        let fd = program.as_fd().try_clone_to_owned().expect("a descriptor");
        let page = PeerPage::new(&fd, LEN_BYTES).expect("sealed");
        let (service, method) = ("kv".parse().expect("a name"), "read".parse().expect("a name"));
        let name = program.name(&service, &method);
        assert_eq!((name, program.name(&service, &method)), (1, 1));
        let names = Names::new(&service);
        for _ in 0..2 {
            assert_eq!(names.number(&program, &method), 1);
            assert_eq!(names.number_of(&program, "write"), Some(2));
            assert_eq!(names.number_of(&program, "no name"), None);
        }
        let many = (0..2 * NAMES_KNOWN).map(|n| format!("m{n}"));
        let numbers: Vec<_> = many.map(|name| names.number_of(&program, &name)).collect();
        assert_eq!(numbers[2 * NAMES_KNOWN - 1], Some(2 * NAMES_KNOWN as u16 + 2));
        assert_eq!(names.number_of(&program, "m20"), numbers[20]);
        let mut bytes = [0; NAME_BYTES];
        page.copy_out(name_at(name), &mut bytes);
        assert_eq!(name_from_bytes(&bytes), Some(("kv", "read")));

        let place = program.place().expect("room");
        let call = InFlight {
            call: 9,
            root: RootId([1; 16]),
            parent: 8,
            since_ns: 7,
            budget_ns: 6,
            connection: 5,
            name,
            hop: 1,
            thread: 4,
        };
        program.show(place, &call);
        let at_bytes = in_flight_at(place as usize);
        assert_eq!(InFlight::from_words(entry(&page, at_bytes)), Some(call));
        program.clear(place);
        assert_eq!(InFlight::from_words(entry(&page, at_bytes)), None);

        for call in 1..=2 {
            program.span(Span {
                number: 0,
                root: RootId([1; 16]),
                call,
                parent: 0,
                start_ns: 1,
                took_ns: 2,
                status: 0,
                name,
                hop: 1,
                side: Side::Caller,
            });
        }
        assert_eq!(page.load(SPANS_WRITTEN_AT, Ordering::Acquire), 2);
        let span = Span::from_words(entry(&page, span_at(1))).expect("a span");
        assert_eq!((span.number, span.call), (1, 2));
    }

    #[test]
    fn places_are_given_once_and_names_without_room_have_none() {
        let program = Program::new().expect("a page");
        let places: Vec<u32> = std::iter::from_fn(|| program.place()).collect();
        assert_eq!(places.len(), IN_FLIGHT_MAX);
        let given = program.page.load(PLACES_GIVEN_AT, Ordering::Acquire);
        assert_eq!(given, IN_FLIGHT_MAX as u64, "its node looks no further");
        program.leave(7);
        assert_eq!((program.place(), program.place()), (Some(7), None));
        let service: ServiceName = "s".parse().expect("a name");
        let last = (1..=NAMES_MAX)
            .map(|n| program.name(&service, &format!("m{n}").parse().expect("a name")));
        assert_eq!(last.last(), Some(0));
    }
}
