//! Shared memory and nothing else: the least that two processes can do. Both ends sleep on a futex, or look
//! until something is there.
//!
//! Each end writes a page of its own and reads the other's, as middlecon's ends do: a number that counts
//! up, a length, the bytes.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use kumo_sys::packet::{self, Wait};
use kumo_sys::{OwnPage, PeerPage};

use super::{Ask, Callers, Place};
use crate::clock::Question;
use crate::plan::SIZES_BYTES;

/// Where the number stands that counts messages.
const COUNT_AT: usize = 0;

/// Where their length stands.
const LENGTH_AT: usize = 8;

/// Where their bytes begin: on a line of their own.
const BYTES_AT: usize = 64;

const PAGE_BYTES: usize = SIZES_BYTES[2] + 4096;

/// A sleeper looks whether its peer is still there after so long.
const SLEEP: Duration = Duration::from_secs(1);

/// One end.
struct End {
    /// Its end is the peer's.
    socket: OwnedFd,
    own: OwnPage,
    peer: PeerPage,
    sent: u64,
    heard: u64,
    sleeps: bool,
}

impl End {
    fn new(socket: OwnedFd, sleeps: bool) -> io::Result<End> {
        let own = OwnPage::new("bench", PAGE_BYTES)?;
        packet::send(&socket, &[IoSlice::new(b"page")], &[own.as_fd()], Wait::Yes)?;
        let (_, mut fds) = packet::receive(&socket, &mut [0; 4], 1, Wait::Yes)?;
        let memory = fds.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
        let peer = PeerPage::new(&memory, PAGE_BYTES)?;
        Ok(End { socket, own, peer, sent: 0, heard: 0, sleeps })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.own.copy_in(BYTES_AT, bytes);
        self.own.store(LENGTH_AT, bytes.len() as u64, Ordering::Relaxed);
        self.sent += 1;
        self.own.store(COUNT_AT, self.sent, Ordering::SeqCst);
        if self.sleeps { self.own.wake(COUNT_AT) } else { Ok(()) }
    }

    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        let next = self.heard + 1;
        while self.peer.load(COUNT_AT, Ordering::Acquire) < next {
            if !self.sleeps {
                std::hint::spin_loop();
                continue;
            }
            self.peer.sleep(COUNT_AT, self.heard as u32, SLEEP)?;
            if self.is_alone()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.heard = next;
        let length = self.peer.load(LENGTH_AT, Ordering::Relaxed) as usize;
        buffer.resize(length.min(PAGE_BYTES - BYTES_AT), 0);
        self.peer.copy_out(BYTES_AT, buffer);
        Ok(())
    }

    /// Whether the peer has gone, looked at only when nothing came.
    fn is_alone(&self) -> io::Result<bool> {
        if self.peer.load(COUNT_AT, Ordering::Acquire) > self.heard {
            return Ok(false);
        }
        match packet::receive(&self.socket, &mut [0; 4], 0, Wait::No) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn answer(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    let listening = packet::listen_at(&place.socket())?;
    ready("");
    let sleeps = place.id == "futex";
    loop {
        let socket = packet::accept(&listening)?;
        std::thread::spawn(move || -> io::Result<()> {
            let mut end = End::new(socket, sleeps)?;
            let mut buffer = Vec::new();
            loop {
                end.receive(&mut buffer)?;
                end.send(&buffer)?;
            }
        });
    }
}

struct Memory {
    end: End,
    buffer: Vec<u8>,
}

impl Ask for Memory {
    fn ask(&mut self, question: &Question) -> io::Result<bool> {
        self.end.send(question.body())?;
        self.end.receive(&mut self.buffer)?;
        Ok(self.buffer == question.body())
    }
}

pub(super) fn callers(place: &Place) -> Callers {
    let (path, sleeps) = (place.socket(), place.id == "futex");
    Callers::Threads(std::sync::Arc::new(move || {
        let end = End::new(packet::connect_to(&path)?, sleeps)?;
        Ok(Box::new(Memory { end, buffer: Vec::new() }))
    }))
}
