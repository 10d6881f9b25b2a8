//! The carrier of two programs on one host: a packet socket, and a ring each way for pairs that use them.
//!
//! Each side writes one page (`abi::page::connection`) and maps the other's read-only. With rings,
//! frames travel there and the socket carries doorbells (one byte), memory that is lent (8 bytes and a
//! descriptor) and, by its end, the news of a death. Without, each frame is a packet. Receipts and
//! revocations are in the pages in both cases.
//!
//! **No wake-up is lost**: who is about to sleep stores `SLEEPING`, fences, and looks at the ring; who
//! writes stores `WRITTEN`, fences, and looks at `SLEEPING`. One of them sees the other. The same holds
//! for [`take`](Link::take) and [`take_back`](Link::take_back) of a call.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use bytes::{Buf, Bytes};
use kumo_abi::frame::{
    BODY_BYTES_MAX, FRAME_BYTES_MAX, FrameError, HEADER_BYTES, Header, Kind, flags,
};
use kumo_abi::page::connection::{
    CPU_AT, MAGIC, MAGIC_AT, READ_AT, RECEIPTS_AT, REVOCATIONS_AT, RING_AT, RING_BYTES,
    SLEEPING_AT, WRITTEN_AT, len_bytes,
};
use kumo_abi::page::{WORD_BYTES, receipt_at};
use kumo_sys::packet::{self, Wait};
use kumo_sys::{OwnPage, PeerPage, Sealed, cpu, seal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{Shutdown, shutdown, sockopt};

use super::{Frame, Stop};
use crate::rules::spin::Spin;
use crate::rules::truth::Taken;
use crate::time::{NEVER_NS, left, now_ns};

/// In `SLEEPING`: wants a doorbell for frames.
const WANTS_FRAMES: u64 = 1;

/// Lent memory whose frame has not been read. A peer that lends more breaks the protocol.
const LENT_MAX: usize = 64;

/// Below this time the socket's own timeout, which counts in ticks of the kernel, is too coarse.
const FINE_NS: u64 = 20_000_000;

/// How often one looks at the ring between two looks at the clock.
const LOOKS: u32 = 32;

/// A connection on one host, for both of its halves and for who only wants to end it.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    own: OwnPage,
    peer: PeerPage,
    ring: bool,
}

impl Link {
    /// Passes our page, and maps the peer's.
    pub(crate) fn join(socket: OwnedFd, ring: bool, deadline_ns: u64) -> Result<Link, Stop> {
        let own = Link::offer(&socket, ring)?;
        wait(&socket, PollFlags::IN, None, deadline_ns)?;
        Link::accept(socket, own, ring)
    }

    /// The first half of [`Link::join`]: makes our page and passes it.
    pub(crate) fn offer(socket: &OwnedFd, ring: bool) -> Result<OwnPage, Stop> {
        let own = OwnPage::new("middlecon", len_bytes(ring))?;
        own.store(MAGIC_AT, MAGIC, Ordering::Release);
        let hello = Header::new(Kind::Hello, 0).encode();
        let sent = packet::send(socket, &[IoSlice::new(&hello)], &[own.as_fd()], Wait::No);
        sent.map_err(|error| ended_or(error, Stop::Io))?;
        Ok(own)
    }

    /// The second half: the peer's first packet is there, or its end.
    pub(crate) fn accept(socket: OwnedFd, own: OwnPage, ring: bool) -> Result<Link, Stop> {
        let mut hello = [0; HEADER_BYTES];
        let received = packet::receive(&socket, &mut hello, 1, Wait::No);
        let (len_bytes_hello, mut fds) = received.map_err(|error| ended_or(error, Stop::Io))?;
        if len_bytes_hello == 0 {
            return Err(Stop::Ended);
        }
        if len_bytes_hello != HEADER_BYTES || Header::decode(&hello)?.kind != Kind::Hello {
            return Err(Stop::Passed("its first packet is no HELLO"));
        }
        let memory = fds.pop().ok_or(Stop::Passed("no page"))?;
        let page = PeerPage::new(&memory, len_bytes(ring));
        let peer = page.map_err(|_| Stop::Passed("a page without seals or of another size"))?;
        if peer.load(MAGIC_AT, Ordering::Acquire) != MAGIC {
            return Err(Stop::Passed("a page of another kind"));
        }
        Ok(Link { socket, own, peer, ring })
    }

    /// The two halves. To be called once: positions in the rings begin at 0.
    pub(crate) fn split(self) -> (Arc<Link>, Writer, Reader) {
        let link = Arc::new(self);
        let writer = Writer { link: link.clone(), written: 0, rung_at: None };
        let reader = Reader {
            link: link.clone(),
            read: 0,
            lent: VecDeque::new(),
            packet: if link.ring { vec![0; 16] } else { vec![0; FRAME_BYTES_MAX] },
            timeout_ns: NEVER_NS,
            spin: Spin::default(),
            cpu: usize::MAX,
            ended: false,
        };
        (link, writer, reader)
    }

    /// The callee takes a call: from here on its outcome is unknown to who only sees our end. False if
    /// the caller has taken it back; then it must not run.
    pub(crate) fn take(&self, id: u64) -> bool {
        self.own.store(RECEIPTS_AT + receipt_at(id), id, Ordering::Release);
        fence(Ordering::SeqCst);
        self.peer.load(REVOCATIONS_AT + receipt_at(id), Ordering::Acquire) != id
    }

    /// The caller takes a call back, and learns whether it had been taken.
    pub(crate) fn take_back(&self, id: u64) -> Taken {
        self.own.store(REVOCATIONS_AT + receipt_at(id), id, Ordering::Release);
        fence(Ordering::SeqCst);
        match self.peer.load(RECEIPTS_AT + receipt_at(id), Ordering::Acquire) {
            receipt if receipt == id => Taken::Yes,
            _ => Taken::No,
        }
    }

    /// Ends the connection for both sides, whoever else holds its descriptors.
    pub(crate) fn end(&self) {
        // It fails only if it has ended already.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Where the peer was seen last.
    fn peer_cpu(&self) -> Option<usize> {
        (self.peer.load(CPU_AT, Ordering::Relaxed) as usize).checked_sub(1)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.end();
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The half that sends.
#[derive(Debug)]
pub(crate) struct Writer {
    link: Arc<Link>,
    written: u64,
    /// How far the peer had read when we rang last: it will look at all that was written since.
    rung_at: Option<u64>,
}

impl Writer {
    /// Sends a frame, waiting for room until the deadline. `header` has its lengths filled in here.
    pub(crate) fn send(
        &mut self,
        header: Header,
        ext: &[u8],
        body: &[u8],
        deadline_ns: u64,
    ) -> Result<(), Stop> {
        while !self.try_send(header, ext, body)? {
            self.wait_for_room(deadline_ns)?;
        }
        Ok(())
    }

    /// Sends a frame if there is room for it now.
    pub(crate) fn try_send(
        &mut self,
        mut header: Header,
        ext: &[u8],
        body: &[u8],
    ) -> Result<bool, Stop> {
        let (lent, length);
        let (body, memory) = if body.len() > BODY_BYTES_MAX {
            lent = seal("middlecon body", body)?;
            length = (body.len() as u64).to_le_bytes();
            header.flags |= flags::LENT;
            (length.as_slice(), Some(lent.as_fd()))
        } else {
            (body, None)
        };
        header.ext_len_bytes = ext.len() as u16;
        header.len_bytes = (ext.len() + body.len()) as u32;
        if !self.link.ring {
            let head = header.encode();
            let parts = [IoSlice::new(&head), IoSlice::new(ext), IoSlice::new(body)];
            return self.packet(&parts, memory);
        }
        let Some(at) = self.room(header.frame_len_bytes())? else { return Ok(false) };
        if memory.is_some() {
            // First, so that it is there when its frame is read.
            let id = header.call.to_le_bytes();
            if !self.packet(&[IoSlice::new(&id)], memory)? {
                return Ok(false);
            }
        }
        let head = header.encode_summed();
        let mut at = self.put(at, &head);
        if ext.len().is_multiple_of(WORD_BYTES) || body.is_empty() {
            at = self.put(at, ext);
            self.put(at, body);
        } else {
            // The parts do not meet at a word: put together first. Extensions are short.
            let whole = ext.len().next_multiple_of(WORD_BYTES).min(ext.len() + body.len());
            let (first, rest) = body.split_at(whole - ext.len());
            let joined = [ext, first].concat();
            at = self.put(at, &joined);
            self.put(at, rest);
        }
        self.written += header.frame_len_bytes().next_multiple_of(WORD_BYTES) as u64;
        self.link.own.store(WRITTEN_AT, self.written, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.link.peer.load(SLEEPING_AT, Ordering::Relaxed) & WANTS_FRAMES != 0 {
            self.ring_bell()?;
        }
        Ok(true)
    }

    /// Where a frame of this length goes, if there is room.
    fn room(&self, frame_len_bytes: usize) -> Result<Option<u64>, Stop> {
        let read = self.link.peer.load(READ_AT, Ordering::Acquire);
        let used = self.written.wrapping_sub(read);
        if used > RING_BYTES as u64 {
            return Err(Stop::Passed("it says that it read what was never written"));
        }
        let fits = frame_len_bytes.next_multiple_of(WORD_BYTES) as u64 <= RING_BYTES as u64 - used;
        Ok(fits.then_some(self.written))
    }

    /// Copies bytes to the ring at a position, around its end if need be; the position after them.
    fn put(&self, position: u64, bytes: &[u8]) -> u64 {
        let at = (position % RING_BYTES as u64) as usize;
        let (first, rest) = bytes.split_at(bytes.len().min(RING_BYTES - at));
        self.link.own.copy_in(RING_AT + at, first);
        self.link.own.copy_in(RING_AT, rest);
        position + bytes.len() as u64
    }

    fn ring_bell(&mut self) -> Result<(), Stop> {
        let read = self.link.peer.load(READ_AT, Ordering::Relaxed);
        if self.rung_at == Some(read) {
            return Ok(());
        }
        // Without room in the socket's queue there are doorbells enough in it.
        self.packet(&[IoSlice::new(&[0])], None)?;
        self.rung_at = Some(read);
        Ok(())
    }

    /// Sends a packet; false if there is no room.
    fn packet(&self, parts: &[IoSlice<'_>], fd: Option<BorrowedFd<'_>>) -> Result<bool, Stop> {
        match packet::send(&self.link.socket, parts, fd.as_slice(), Wait::No) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(ended_or(error, Stop::Io)),
        }
    }

    /// Waits until the peer has read something.
    fn wait_for_room(&mut self, deadline_ns: u64) -> Result<(), Stop> {
        if deadline_ns != NEVER_NS && now_ns() >= deadline_ns {
            return Err(Stop::Deadline);
        }
        // The socket belongs to our reader half, which may be another thread, so no doorbell could tell
        // us. We look again after a moment: this is the path of a peer that does not keep up.
        let moment = Duration::from_millis(1);
        if self.link.ring {
            std::thread::sleep(moment);
            if is_ended(&self.link.socket) {
                return Err(Stop::Ended);
            }
            Ok(())
        } else {
            wait(&self.link.socket, PollFlags::OUT, None, deadline_ns)
        }
    }
}

/// The half that receives.
#[derive(Debug)]
pub(crate) struct Reader {
    link: Arc<Link>,
    read: u64,
    lent: VecDeque<(u64, OwnedFd)>,
    packet: Vec<u8>,
    /// The receive timeout that the socket has now.
    timeout_ns: u64,
    spin: Spin,
    /// The CPU that our page says.
    cpu: usize,
    ended: bool,
}

impl Reader {
    /// The next frame; waits for it until the deadline, and while `upstream` has not ended.
    pub(crate) fn next(
        &mut self,
        upstream: Option<BorrowedFd<'_>>,
        deadline_ns: u64,
    ) -> Result<Frame, Stop> {
        if self.link.ring {
            self.next_in_ring(upstream, deadline_ns)
        } else {
            self.next_packet(upstream, deadline_ns)
        }
    }

    /// The next frame, if it is there; nothing if not.
    pub(crate) fn try_next(&mut self) -> Result<Option<Frame>, Stop> {
        if !self.link.ring {
            if self.ended {
                return Err(Stop::Ended);
            }
            return match self.receive(Wait::No) {
                Ok(frame) => Ok(frame),
                Err(Stop::Deadline) => Ok(None),
                Err(stop) => Err(stop),
            };
        }
        if let Some(frame) = self.take_from_ring()? {
            return Ok(Some(frame));
        }
        if self.ended {
            return Err(Stop::Ended);
        }
        Ok(None)
    }

    /// Says that a doorbell is wanted, unless there is something already. For who then waits until the
    /// socket is readable and calls [`Reader::awake`].
    pub(crate) fn asleep(&mut self) -> bool {
        if !self.link.ring {
            return true;
        }
        self.link.own.store(SLEEPING_AT, WANTS_FRAMES, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.available() > 0 {
            self.link.own.store(SLEEPING_AT, 0, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Wants no doorbell any more, and takes from the socket what is there.
    pub(crate) fn awake(&mut self) -> Result<(), Stop> {
        if !self.link.ring {
            return Ok(());
        }
        self.link.own.store(SLEEPING_AT, 0, Ordering::Relaxed);
        while !self.ended {
            match self.receive(Wait::No) {
                Ok(_) => {}
                Err(Stop::Deadline) => break,
                Err(stop) => return Err(stop),
            }
        }
        Ok(())
    }

    fn next_packet(
        &mut self,
        upstream: Option<BorrowedFd<'_>>,
        deadline_ns: u64,
    ) -> Result<Frame, Stop> {
        loop {
            if self.ended {
                return Err(Stop::Ended);
            }
            let wait = self.before_sleep(upstream, deadline_ns)?;
            match self.receive(wait) {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) | Err(Stop::Deadline) => {}
                Err(stop) => return Err(stop),
            }
        }
    }

    fn next_in_ring(
        &mut self,
        upstream: Option<BorrowedFd<'_>>,
        deadline_ns: u64,
    ) -> Result<Frame, Stop> {
        loop {
            if let Some(frame) = self.take_from_ring()? {
                return Ok(frame);
            }
            if self.ended {
                return Err(Stop::Ended);
            }
            if self.look(deadline_ns) || !self.asleep() {
                continue;
            }
            let woken = match self.before_sleep(upstream, deadline_ns) {
                Ok(wait) => self.receive(wait).map(|_| ()),
                Err(stop) => Err(stop),
            };
            self.link.own.store(SLEEPING_AT, 0, Ordering::Relaxed);
            match woken {
                Ok(()) => {}
                Err(Stop::Deadline) if now_ns() < deadline_ns => {}
                // What came in the last moment counts.
                Err(stop) => match self.take_from_ring()? {
                    Some(frame) => return Ok(frame),
                    None => return Err(stop),
                },
            }
        }
    }

    /// Looks at the ring for a while, where that has paid. Whether something came.
    fn look(&mut self, deadline_ns: u64) -> bool {
        let cpu = cpu::current();
        if cpu != self.cpu {
            self.cpu = cpu;
            self.link.own.store(CPU_AT, cpu as u64 + 1, Ordering::Relaxed);
        }
        let limit_ns = self.spin.limit_ns(cpu, self.link.peer_cpu());
        if limit_ns == 0 {
            return false;
        }
        let began = now_ns();
        let until = began.saturating_add(limit_ns.into()).min(deadline_ns);
        loop {
            for _ in 0..LOOKS {
                if self.available() > 0 {
                    self.spin.learn(limit_ns, Some(now_ns() - began));
                    return true;
                }
                std::hint::spin_loop();
            }
            // A peer that has come to this CPU cannot run while we look.
            if now_ns() >= until || self.link.peer_cpu() == Some(cpu::current()) {
                self.spin.learn(limit_ns, None);
                return false;
            }
        }
    }

    /// Prepares for a sleep in `receive`, or sleeps in `poll` where more than one thing or a short time
    /// is waited for.
    fn before_sleep(
        &mut self,
        upstream: Option<BorrowedFd<'_>>,
        deadline_ns: u64,
    ) -> Result<Wait, Stop> {
        let left_ns = match deadline_ns {
            NEVER_NS => NEVER_NS,
            deadline_ns => match deadline_ns.saturating_sub(now_ns()) {
                0 => return Err(Stop::Deadline),
                left_ns => left_ns,
            },
        };
        if upstream.is_some() || left_ns < FINE_NS {
            wait(&self.link.socket, PollFlags::IN, upstream, deadline_ns)?;
            return Ok(Wait::No);
        }
        // The socket's timeout costs a system call to change. So it is a power of two below what is
        // left: calls with like budgets find it as they need it, and who wakes early looks again.
        let fits = self.timeout_ns <= left_ns && self.timeout_ns >= left_ns / 4;
        if !fits && self.timeout_ns != left_ns {
            let timeout_ns = if left_ns == NEVER_NS { NEVER_NS } else { 1 << left_ns.ilog2() };
            let timeout = (timeout_ns != NEVER_NS).then(|| Duration::from_nanos(timeout_ns));
            let kind = sockopt::Timeout::Recv;
            sockopt::set_socket_timeout(&self.link.socket, kind, timeout)
                .map_err(io::Error::from)?;
            self.timeout_ns = timeout_ns;
        }
        Ok(Wait::Yes)
    }

    /// Takes one packet from the socket: a frame if there is no ring. [`Stop::Deadline`] if there is none.
    fn receive(&mut self, wait: Wait) -> Result<Option<Frame>, Stop> {
        let (len_bytes, mut fds) =
            match packet::receive(&self.link.socket, &mut self.packet, 1, wait) {
                Ok(received) => received,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Err(Stop::Deadline),
                    // A reset is said once, before what had arrived.
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset => {
                        return Ok(None);
                    }
                    io::ErrorKind::InvalidData => return Err(Stop::Passed("a packet too long")),
                    _ => return Err(Stop::Io(error)),
                },
            };
        let bytes = &self.packet[..len_bytes];
        match (len_bytes, fds.pop(), self.link.ring) {
            (0, _, _) => {
                self.ended = true;
                Ok(None)
            }
            (1, None, true) => Ok(None),
            (8, Some(memory), true) if self.lent.len() < LENT_MAX => {
                let mut id = [0; 8];
                id.copy_from_slice(bytes);
                self.lent.push_back((u64::from_le_bytes(id), memory));
                Ok(None)
            }
            (HEADER_BYTES.., memory, false) => {
                let (head, rest) = bytes.split_first_chunk().ok_or(FrameError::Short("header"))?;
                let header = Header::decode(head)?;
                if rest.len() != header.len_bytes as usize {
                    return Err(FrameError::Short("body").into());
                }
                frame(header, Bytes::copy_from_slice(rest), memory).map(Some)
            }
            _ => Err(Stop::Passed("a packet that is no doorbell, no frame and lends nothing")),
        }
    }

    /// How many bytes the ring holds; above its size if the peer lies.
    #[inline]
    fn available(&self) -> u64 {
        self.link.peer.load(WRITTEN_AT, Ordering::Acquire).wrapping_sub(self.read)
    }

    fn take_from_ring(&mut self) -> Result<Option<Frame>, Stop> {
        let available = self.available();
        if available == 0 {
            return Ok(None);
        }
        if available > RING_BYTES as u64 || available < HEADER_BYTES as u64 {
            return Err(Stop::Passed("it says that it wrote more than the ring holds"));
        }
        let mut head = [0; HEADER_BYTES];
        self.copy(self.read, &mut head);
        let header = Header::decode_summed(&head)?;
        let whole = header.frame_len_bytes().next_multiple_of(WORD_BYTES) as u64;
        if whole > available {
            return Err(FrameError::Short("body").into());
        }
        let mut bytes = vec![0; header.len_bytes as usize];
        self.copy(self.read + HEADER_BYTES as u64, &mut bytes);
        self.read += whole;
        self.link.own.store(READ_AT, self.read, Ordering::Release);
        let memory =
            if header.flags & flags::LENT == 0 { None } else { self.lent_for(header.call)? };
        frame(header, bytes.into(), memory).map(Some)
    }

    fn copy(&self, position: u64, out: &mut [u8]) {
        let at = (position % RING_BYTES as u64) as usize;
        let middle = out.len().min(RING_BYTES - at);
        let (first, rest) = out.split_at_mut(middle);
        self.link.peer.copy_out(RING_AT + at, first);
        self.link.peer.copy_out(RING_AT, rest);
    }

    /// The memory that came before the frame of this call.
    fn lent_for(&mut self, call: u64) -> Result<Option<OwnedFd>, Stop> {
        loop {
            if let Some(at) = self.lent.iter().position(|(id, _)| *id == call) {
                return Ok(self.lent.remove(at).map(|(_, memory)| memory));
            }
            if self.ended {
                return Ok(None);
            }
            match self.receive(Wait::No) {
                Ok(_) => {}
                Err(Stop::Deadline) => return Ok(None),
                Err(stop) => return Err(stop),
            }
        }
    }
}

/// Puts a frame together: its body may be in memory that was passed.
fn frame(header: Header, mut bytes: Bytes, memory: Option<OwnedFd>) -> Result<Frame, Stop> {
    let ext = bytes.split_to(header.ext_len_bytes.into());
    match (header.flags & flags::LENT != 0, memory) {
        (false, None) => Ok(Frame { header, ext, body: bytes }),
        (false, Some(_)) => Err(Stop::Passed("memory that no frame speaks of")),
        (true, None) => Err(Stop::Passed("no memory, though its frame says so")),
        (true, Some(memory)) => {
            let len_bytes = bytes.try_get_u64_le().map_err(|_| FrameError::Short("body"))?;
            let max = kumo_abi::call::BODY_BYTES_MAX;
            if !bytes.is_empty() || len_bytes > max {
                let (len_bytes, max) = (len_bytes as usize, max as usize);
                return Err(FrameError::Long { what: "lent body", len_bytes, max }.into());
            }
            let sealed = Sealed::new(memory, len_bytes as usize);
            let sealed = sealed.map_err(|_| Stop::Passed("memory that could change"))?;
            Ok(Frame { header, ext, body: Bytes::from_owner(sealed) })
        }
    }
}

/// Waits for the socket, while `upstream` has not ended, until the deadline.
pub(crate) fn wait(
    socket: impl AsFd,
    events: PollFlags,
    upstream: Option<BorrowedFd<'_>>,
    deadline_ns: u64,
) -> Result<(), Stop> {
    let socket = socket.as_fd();
    loop {
        let other = upstream.unwrap_or(socket);
        let mut fds = [
            PollFd::from_borrowed_fd(socket, events),
            PollFd::from_borrowed_fd(other, PollFlags::RDHUP),
        ];
        let count = if upstream.is_some() { 2 } else { 1 };
        match poll(&mut fds[..count], left(deadline_ns).as_ref()) {
            Ok(0) => return Err(Stop::Deadline),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(()),
            Ok(_) => return Err(Stop::Cancelled),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Stop::Io(errno.into())),
        }
    }
}

/// Whether a connection has ended, for who does not want to read from it.
pub(crate) fn is_ended(socket: impl AsFd) -> bool {
    let socket = socket.as_fd();
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(1..))
}

fn ended_or(error: io::Error, other: fn(io::Error) -> Stop) -> Stop {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Stop::Ended,
        _ => other(error),
    }
}
