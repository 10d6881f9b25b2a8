//! The carrier of two programs on one host: a packet socket, and a ring each way for pairs that use them.
//!
//! Each side writes one page (`abi::page::connection`) and maps the other's read-only. With rings,
//! frames travel there and the socket carries doorbells (one byte), memory that is lent (8 bytes and a
//! descriptor) and, by its end, the news of a death. Without, each frame is a packet. Receipts and
//! revocations are in the pages in both cases.
//!
//! **No wake-up is lost**: who is about to sleep stores `SLEEPING` and then looks at the ring; who writes
//! stores `WRITTEN` and then looks at `SLEEPING`. All four are sequentially consistent, so one of them sees
//! the other. The same holds for who waits for room (`WAITS`) and who reads (`READ`), and for
//! [`take`](Link::take) and [`take_back`](Link::take_back) of a call.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes};
use kumo_abi::frame::{
    BODY_BYTES_MAX, FRAME_BYTES_MAX, FrameError, HEADER_BYTES, Header, Kind, Pooled, flags,
};
use kumo_abi::page::connection::{
    CPU_AT, MAGIC, MAGIC_AT, READ_AT, RECEIPTS_AT, REVOCATIONS_AT, RING_AT, RING_BYTES,
    RING_HALF_BYTES, SLEEPING_AT, WAITS_ASLEEP, WAITS_AT, WAITS_FOR_BELL, WRITTEN_AT, len_bytes,
};
use kumo_abi::page::{WORD_BYTES, receipt_at};
use kumo_sys::packet::{self, Wait};
use kumo_sys::{OwnPage, PeerPage, Sealed, cpu, seal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{Shutdown, shutdown, sockopt};

use super::pool::{Borrowing, Lending};
use super::{Frame, Stop};
use crate::rules::bell::Bell;
use crate::rules::spin::Spin;
use crate::rules::truth::Taken;
use crate::time::{NEVER_NS, left, now_ns};

/// In `SLEEPING`: wants a doorbell for frames.
const WANTS_FRAMES: u64 = 1;

/// Lent memory whose frame has not been read. A peer that lends more breaks the protocol.
const LENT_MAX: usize = 64;

/// Below this time the socket's own timeout, which counts in ticks of the kernel, is too coarse.
const FINE_NS: u64 = 20_000_000;

/// How often one looks at the ring between two looks at the clock: about a microsecond.
const LOOKS: u32 = 48;

/// Who waits for room is woken; a peer that does not do that, or has ended, is looked after so often.
const ROOM_PERIOD: Duration = Duration::from_millis(2);

/// A connection on one host, for both of its halves and for who only wants to end it.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    own: OwnPage,
    peer: PeerPage,
    ring: bool,
    /// For tasks that wait for room: told by the task that receives.
    pub(super) room: tokio::sync::Notify,
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
        Ok(Link { socket, own, peer, ring, room: tokio::sync::Notify::new() })
    }

    /// The two halves. To be called once: positions in the rings begin at 0.
    pub(crate) fn split(self) -> (Arc<Link>, Writer, Reader) {
        let link = Arc::new(self);
        let writer = Writer {
            link: link.clone(),
            written: 0,
            read: 0,
            bell: Bell::default(),
            lending: Lending::default(),
        };
        let reader = Reader {
            link: link.clone(),
            read: 0,
            lent: VecDeque::new(),
            borrowing: Borrowing::default(),
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
        self.own.store(RECEIPTS_AT + receipt_at(id), id, Ordering::SeqCst);
        self.peer.load(REVOCATIONS_AT + receipt_at(id), Ordering::SeqCst) != id
    }

    /// The caller takes a call back, and learns whether it had been taken.
    pub(crate) fn take_back(&self, id: u64) -> Taken {
        self.own.store(REVOCATIONS_AT + receipt_at(id), id, Ordering::SeqCst);
        match self.peer.load(RECEIPTS_AT + receipt_at(id), Ordering::SeqCst) {
            receipt if receipt == id => Taken::Yes,
            _ => Taken::No,
        }
    }

    /// Ends the connection for both sides, whoever else holds its descriptors.
    pub(crate) fn end(&self) {
        // It fails only if it has ended already.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// A task wants room. It is told once there may be some; whoever says so tries again first.
    pub(super) fn want_room(&self) {
        self.own.store(WAITS_AT, WAITS_FOR_BELL, Ordering::SeqCst);
    }

    /// Passes on to tasks that there may be room: by the task that receives, each time it runs.
    pub(super) fn tell_room(&self) {
        if self.own.load(WAITS_AT, Ordering::Relaxed) == WAITS_FOR_BELL {
            self.own.store(WAITS_AT, 0, Ordering::Relaxed);
            self.room.notify_waiters();
        }
    }

    /// Sends a packet; false if there is no room.
    fn packet(&self, parts: &[IoSlice<'_>], fd: Option<BorrowedFd<'_>>) -> Result<bool, Stop> {
        match packet::send(&self.socket, parts, fd.as_slice(), Wait::No) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(ended_or(error, Stop::Io)),
        }
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
    /// How far the peer had read when we looked last, which was when there seemed to be no room.
    read: u64,
    bell: Bell,
    lending: Lending,
}

impl Writer {
    /// The connection it is of.
    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

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
        if body.len() <= BODY_BYTES_MAX {
            return self.put_frame(header, ext, body, None);
        }
        // Before so much is copied.
        if self.link.ring && self.room(FRAME_BYTES_MAX)?.is_none() {
            return Ok(false);
        }
        let Some(pooled) = self.lending.put(body, &self.link.peer)? else {
            let lent = seal("middlecon body", body)?;
            header.flags |= flags::LENT;
            let length = (body.len() as u64).to_le_bytes();
            return self.put_frame(header, ext, &length, Some(lent.as_fd()));
        };
        header.flags |= flags::POOLED;
        let memory = self.lending.memory(&pooled)?;
        let memory = memory.as_ref().map(AsFd::as_fd);
        let sent = self.put_frame(header, ext, &pooled.encode(), memory)?;
        if sent {
            self.lending.sent(&pooled);
        }
        Ok(sent)
    }

    /// Sends a frame, and memory beside it, if there is room for both.
    fn put_frame(
        &mut self,
        mut header: Header,
        ext: &[u8],
        body: &[u8],
        memory: Option<BorrowedFd<'_>>,
    ) -> Result<bool, Stop> {
        header.ext_len_bytes = ext.len() as u16;
        header.len_bytes = (ext.len() + body.len()) as u32;
        if !self.link.ring {
            let head = header.encode();
            let parts = [IoSlice::new(&head), IoSlice::new(ext), IoSlice::new(body)];
            return self.link.packet(&parts, memory);
        }
        let Some(at) = self.room(header.frame_len_bytes())? else { return Ok(false) };
        if memory.is_some() {
            // First, so that it is there when its frame is read.
            let id = header.call.to_le_bytes();
            if !self.link.packet(&[IoSlice::new(&id)], memory)? {
                return Ok(false);
            }
        }
        let mut at = self.put(at, &header.encode_summed());
        let (words, rest) = ext.split_at(ext.len() - ext.len() % WORD_BYTES);
        at = self.put(at, words);
        // Where the parts do not meet at a word, that word is of both.
        let (mut both, fill) = ([0; WORD_BYTES], body.len().min(WORD_BYTES - rest.len()));
        both[..rest.len()].copy_from_slice(rest);
        both[rest.len()..rest.len() + fill].copy_from_slice(&body[..fill]);
        at = self.put(at, &both[..rest.len() + fill]);
        self.put(at, &body[fill..]);
        self.written += header.frame_len_bytes().next_multiple_of(WORD_BYTES) as u64;
        self.link.own.store(WRITTEN_AT, self.written, Ordering::SeqCst);
        if self.link.peer.load(SLEEPING_AT, Ordering::SeqCst) & WANTS_FRAMES != 0 {
            self.ring_bell()?;
        }
        Ok(true)
    }

    /// Where a frame of this length goes, if there is room.
    fn room(&mut self, frame_len_bytes: usize) -> Result<Option<u64>, Stop> {
        let wanted = frame_len_bytes.next_multiple_of(WORD_BYTES) as u64;
        let fits = |used: u64| wanted <= RING_BYTES as u64 - used;
        // The peer writes where it has read after each frame: we do not look while we need not.
        if !fits(self.written - self.read) {
            let read = self.link.peer.load(READ_AT, Ordering::SeqCst);
            let used = self.written.wrapping_sub(read);
            if used > RING_BYTES as u64 {
                return Err(Stop::Passed("it says that it read what was never written"));
            }
            self.read = read;
            if !fits(used) {
                return Ok(None);
            }
        }
        Ok(Some(self.written))
    }

    /// Copies bytes to the ring at a position, around its end if need be; the position after them.
    fn put(&self, position: u64, bytes: &[u8]) -> u64 {
        if bytes.is_empty() {
            return position;
        }
        let at = (position % RING_BYTES as u64) as usize;
        let (first, rest) = bytes.split_at(bytes.len().min(RING_BYTES - at));
        self.link.own.copy_in(RING_AT + at, first);
        self.link.own.copy_in(RING_AT, rest);
        position + bytes.len() as u64
    }

    fn ring_bell(&mut self) -> Result<(), Stop> {
        if !self.bell.must_ring(self.link.peer.load(READ_AT, Ordering::Acquire)) {
            return Ok(());
        }
        // Without room in the socket's queue there are doorbells enough in it.
        self.link.packet(&[IoSlice::new(&[0])], None)?;
        self.bell.rung(self.written);
        Ok(())
    }

    /// Waits until the peer has read something.
    fn wait_for_room(&mut self, deadline_ns: u64) -> Result<(), Stop> {
        if deadline_ns != NEVER_NS && now_ns() >= deadline_ns {
            return Err(Stop::Deadline);
        }
        if !self.link.ring {
            return wait(&self.link.socket, PollFlags::OUT, None, deadline_ns);
        }
        // The socket belongs to our reader half, which may be another thread, so a doorbell would not
        // come to us: we sleep on the word that says how far the peer has read.
        self.link.own.store(WAITS_AT, WAITS_ASLEEP, Ordering::SeqCst);
        let has_read = || self.link.peer.load(READ_AT, Ordering::SeqCst) != self.read;
        let slept = if has_read() {
            Ok(())
        } else {
            let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns()));
            self.link.peer.sleep(READ_AT, self.read as u32, left.min(ROOM_PERIOD))
        };
        self.link.own.store(WAITS_AT, 0, Ordering::Relaxed);
        slept?;
        if !has_read() && is_ended(&self.link.socket) {
            return Err(Stop::Ended);
        }
        Ok(())
    }
}

/// The half that receives.
#[derive(Debug)]
pub(crate) struct Reader {
    link: Arc<Link>,
    read: u64,
    lent: VecDeque<(u64, OwnedFd)>,
    borrowing: Borrowing,
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

    /// See [`Link::tell_room`].
    pub(super) fn tell_room(&self) {
        self.link.tell_room();
    }

    /// Says that a doorbell is wanted, unless there is something already. For who then waits until the
    /// socket is readable and calls [`Reader::awake`].
    pub(crate) fn asleep(&mut self) -> bool {
        if !self.link.ring {
            return true;
        }
        self.link.own.store(SLEEPING_AT, WANTS_FRAMES, Ordering::SeqCst);
        if self.link.peer.load(WRITTEN_AT, Ordering::SeqCst) != self.read {
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
        if self.spin.is_hot() {
            if self.glance() {
                return true;
            }
            self.spin.was_quick(false);
        }
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
        let mut quick = true;
        loop {
            if self.glance() {
                self.spin.learn(limit_ns, Some(now_ns() - began));
                self.spin.was_quick(quick);
                return true;
            }
            quick = false;
            // A peer that has come to this CPU cannot run while we look.
            if now_ns() >= until || self.link.peer_cpu() == Some(cpu::current()) {
                self.spin.learn(limit_ns, None);
                return false;
            }
        }
    }

    /// A few looks. Whether something came.
    fn glance(&self) -> bool {
        for _ in 0..LOOKS {
            if self.available() > 0 {
                return true;
            }
            std::hint::spin_loop();
        }
        false
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
                let bytes = Bytes::copy_from_slice(rest);
                self.frame(header, bytes, memory).map(Some)
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
        let half = RING_HALF_BYTES as u64;
        if available > half && available - whole <= half {
            self.make_room()?;
        } else {
            self.link.own.store(READ_AT, self.read, Ordering::Release);
        }
        let body = &bytes[usize::from(header.ext_len_bytes)..];
        let memory =
            if comes_with_memory(&header, body)? { self.lent_for(header.call)? } else { None };
        self.frame(header, bytes.into(), memory).map(Some)
    }

    /// Says how far we have read, and wakes a peer that waits for room. Not said for each frame: nobody
    /// waits while half of the ring is free.
    fn make_room(&self) -> Result<(), Stop> {
        self.link.own.store(READ_AT, self.read, Ordering::SeqCst);
        match self.link.peer.load(WAITS_AT, Ordering::SeqCst) {
            WAITS_ASLEEP => self.link.own.wake(READ_AT)?,
            // Without room in the socket's queue there are doorbells enough in it.
            WAITS_FOR_BELL => drop(self.link.packet(&[IoSlice::new(&[0])], None)?),
            _ => {}
        }
        Ok(())
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

    /// Puts a frame together: its body may be in memory that was passed.
    fn frame(
        &mut self,
        header: Header,
        mut bytes: Bytes,
        memory: Option<OwnedFd>,
    ) -> Result<Frame, Stop> {
        let ext = bytes.split_to(header.ext_len_bytes.into());
        let body = match (header.flags & (flags::LENT | flags::POOLED), memory) {
            (0, None) => bytes,
            (0, Some(_)) => return Err(Stop::Passed("memory that no frame speaks of")),
            (flags::POOLED, memory) => {
                self.borrowing.take(&Pooled::decode(&bytes)?, memory, &self.link.own)?
            }
            (flags::LENT, Some(memory)) => sealed_body(bytes, memory)?,
            (flags::LENT, None) => {
                return Err(Stop::Passed("no memory, though its frame says so"));
            }
            _ => return Err(Stop::Passed("a body in two places")),
        };
        Ok(Frame { header, ext, body })
    }
}

/// Whether memory was sent before a frame that is read from the ring.
fn comes_with_memory(header: &Header, body: &[u8]) -> Result<bool, Stop> {
    match header.flags & (flags::LENT | flags::POOLED) {
        0 => Ok(false),
        flags::POOLED => Ok(Pooled::decode(body)?.slot_bytes != 0),
        _ => Ok(true),
    }
}

/// The body that is sealed in memory; in its frame stands its length.
fn sealed_body(mut length: Bytes, memory: OwnedFd) -> Result<Bytes, Stop> {
    let len_bytes = length.try_get_u64_le().map_err(|_| FrameError::Short("body"))?;
    let max = kumo_abi::call::BODY_BYTES_MAX;
    if !length.is_empty() || len_bytes > max {
        let (len_bytes, max) = (len_bytes as usize, max as usize);
        return Err(FrameError::Long { what: "lent body", len_bytes, max }.into());
    }
    let sealed = Sealed::new(memory, len_bytes as usize);
    let sealed = sealed.map_err(|_| Stop::Passed("memory that could change"))?;
    Ok(Bytes::from_owner(sealed))
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
