//! The carrier of two programs on different hosts: TLS 1.3 over a passed connection, or, where nodes
//! splice, the bare stream that they keep others out of.
//!
//! Nothing here blocks: bytes go in and out as the socket takes them; threads wait with `poll`, tasks with
//! tokio. A body above 64 KiB travels in chunks between which frames of other calls find their way.
//!
//! No page is shared with the peer. Receipts stand in the program page, for our node to read; where there
//! is no node that could, RECEIVED is sent before the handler runs. What a caller knows of a call whose
//! connection ended comes from its own node, in the notice page. Without a word from there nobody knows:
//! that no RECEIVED came proves nothing, for it may have been lost on its way.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use kumo_abi::frame::{
    BODY_BYTES_MAX, FRAME_BYTES_MAX, FrameError, HEADER_BYTES, Header, Kind, flags,
};
use rustix::event::PollFlags;
use rustix::net::{Shutdown, shutdown};
use rustls::AlertDescription;
use tokio::sync::Notify;

use super::local::wait;
use super::{Frame, Stop};
use crate::node::Shared;
use crate::notices::ConnectionId;
use crate::rules::truth::Taken;
use crate::secure::Tls;

/// Bytes that wait to be sent before no more are taken: a few chunks.
const BACKLOG_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;

/// All bodies of one connection that have begun to arrive. A peer that begins more breaks the protocol.
const ARRIVING_BYTES_MAX: u64 = kumo_abi::call::BODY_BYTES_MAX;

/// What is known of a connection beside its bytes.
#[derive(Clone)]
pub(crate) struct Facts {
    pub(crate) node: Arc<Shared>,
    pub(crate) connection: ConnectionId,
    /// Where in the program page receipts go; nothing at a caller, or where no node reads them.
    pub(crate) receipts: Option<u16>,
    /// Whether the peer is told RECEIVED before a handler runs.
    pub(crate) says_received: bool,
}

/// A connection to a program on another host.
pub(crate) struct Remote {
    /// A duplicate of the pipe's: to be waited for, and shut, without its lock.
    socket: OwnedFd,
    pipe: Mutex<Pipe>,
    facts: Facts,
    /// Somebody left bytes behind that the socket did not take: the task that receives sends them.
    pub(crate) behind: Notify,
}

struct Pipe {
    socket: TcpStream,
    tls: Option<Tls>,
    /// Whether a frame, or a part of one, ever arrived.
    heard: bool,
    /// Whether one side did not believe the other's certificate.
    denied: bool,
    /// Bytes to the socket, when there is no TLS to keep them.
    out: BytesMut,
    /// Bytes that arrived and are no whole frame yet.
    arrived: BytesMut,
    arriving: HashMap<u64, Arriving>,
    ended: bool,
}

/// A body that comes in chunks.
struct Arriving {
    header: Header,
    ext: Bytes,
    body: BytesMut,
    len_bytes: u64,
}

impl Remote {
    pub(crate) fn new(socket: OwnedFd, mut tls: Option<Tls>, facts: Facts) -> Result<Remote, Stop> {
        if let Some(tls) = &mut tls {
            // A frame is given to it whole, and the next only when that has left: this is the limit.
            tls.connection.set_buffer_limit(None);
        }
        let duplicate = socket.try_clone()?;
        let socket = TcpStream::from(socket);
        socket.set_nonblocking(true)?;
        // It fails on what is no TCP; then there is no delay to be taken off.
        let _ = socket.set_nodelay(true);
        let pipe = Pipe {
            socket,
            tls,
            heard: false,
            denied: false,
            out: BytesMut::new(),
            arrived: BytesMut::new(),
            arriving: HashMap::new(),
            ended: false,
        };
        Ok(Remote { socket: duplicate, pipe: Mutex::new(pipe), facts, behind: Notify::new() })
    }

    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handshake, as far as it goes without waiting; whether it is done, and whether to wait until the socket takes bytes.
    pub(crate) fn handshake(&self) -> Result<(bool, bool), Stop> {
        let mut pipe = self.pipe();
        // Of an end, reading says more: perhaps why the other does not believe us.
        let flush = |pipe: &mut Pipe| match pipe.flush() {
            Err(Stop::Ended) => Ok(true),
            flushed => flushed,
        };
        let mut flushed = flush(&mut pipe)?;
        while pipe.is_handshaking() {
            if pipe.ended {
                return Err(Stop::Ended);
            }
            let came = pipe.fill()?;
            flushed = flush(&mut pipe)?;
            if !came {
                break;
            }
        }
        Ok((!pipe.is_handshaking(), !flushed))
    }

    /// The handshake, for threads.
    pub(crate) fn shake(&self, deadline_ns: u64) -> Result<(), Stop> {
        loop {
            let (done, full) = self.handshake()?;
            if done {
                return Ok(());
            }
            let wanted = if full { PollFlags::OUT } else { PollFlags::IN };
            wait(&self.socket, wanted, None, deadline_ns)?;
        }
    }

    /// See [`super::Link::take`].
    pub(crate) fn take(&self, id: u64) -> bool {
        if let Some(index) = self.facts.receipts {
            self.facts.node.program.receipt(index, id);
            fence(Ordering::SeqCst);
        }
        if self.facts.says_received {
            // Whether it arrives before our death does is not in our hands, so its absence proves nothing:
            // see `take_back`.
            let mut pipe = self.pipe();
            let said = pipe.put(&Header::new(Kind::Received, id), &[], &[]);
            let flushed = pipe.flush();
            drop(pipe);
            if !matches!(flushed, Ok(true)) {
                self.behind.notify_one();
            }
            return said.is_ok() && flushed.is_ok();
        }
        true
    }

    /// See [`super::Link::take_back`]. Only our node can know, but for this: who does not believe us reads
    /// no frame of ours.
    pub(crate) fn take_back(&self, id: u64) -> Taken {
        if self.pipe().denied {
            return Taken::No;
        }
        let Facts { node, connection, .. } = &self.facts;
        match node.notices.notice(*connection) {
            Some(notice) if notice.taken_known && node.notices.taken(*connection, id) => Taken::Yes,
            Some(notice) if notice.taken_known => Taken::No,
            _ => Taken::NotKnown,
        }
    }

    /// Ends the connection.
    pub(crate) fn end(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Sends a frame if there is room for it; a part of a large body, in place of it, begins.
    pub(crate) fn try_send(&self, header: Header, ext: &[u8], body: &[u8]) -> Result<bool, Stop> {
        let mut pipe = self.pipe();
        // Where a large body fills it, who gives that up says so: once for each call, so that it stays small.
        if !pipe.has_room()? && header.kind != Kind::Cancel {
            return Ok(false);
        }
        if body.len() > BODY_BYTES_MAX {
            // Chunks need waiting in between: see `send_parts`.
            return Err(Stop::Passed("a large body in a frame"));
        }
        pipe.put(&header, ext, body)?;
        if !pipe.flush()? {
            self.behind.notify_one();
        }
        Ok(true)
    }

    /// Sends a frame and waits for room until the deadline, for threads.
    pub(crate) fn send(
        &self,
        header: Header,
        ext: &[u8],
        body: &[u8],
        deadline_ns: u64,
    ) -> Result<(), Stop> {
        for part in parts(header, ext, body) {
            while !self.try_send(part.header, part.ext, &part.body)? {
                wait(&self.socket, PollFlags::OUT, None, deadline_ns)?;
            }
        }
        while !self.flush()? {
            wait(&self.socket, PollFlags::OUT, None, deadline_ns)?;
        }
        Ok(())
    }

    /// Sends what waits; whether all was.
    pub(crate) fn flush(&self) -> Result<bool, Stop> {
        self.pipe().flush()
    }

    /// The next frame, if it is there.
    pub(crate) fn try_next(&self) -> Result<Option<Frame>, Stop> {
        let mut pipe = self.pipe();
        loop {
            if let Some(frame) = pipe.frame()? {
                return Ok(Some(frame));
            }
            if pipe.ended {
                return Err(Stop::Ended);
            }
            if !pipe.fill()? && !pipe.ended {
                return Ok(None);
            }
        }
    }

    /// The next frame, for threads.
    pub(crate) fn next(
        &self,
        upstream: Option<BorrowedFd<'_>>,
        deadline_ns: u64,
    ) -> Result<Frame, Stop> {
        loop {
            if let Some(frame) = self.try_next()? {
                return Ok(frame);
            }
            wait(&self.socket, PollFlags::IN, upstream, deadline_ns)?;
        }
    }
}

impl AsFd for Remote {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.end();
    }
}

/// One of the frames that carry a call or a reply.
pub(crate) struct Part<'a> {
    pub(crate) header: Header,
    pub(crate) ext: &'a [u8],
    pub(crate) body: std::borrow::Cow<'a, [u8]>,
}

/// Cuts what is too large for one frame.
pub(crate) fn parts<'a>(
    mut header: Header,
    ext: &'a [u8],
    body: &'a [u8],
) -> impl Iterator<Item = Part<'a>> {
    let cut = body.len() > BODY_BYTES_MAX;
    let first: std::borrow::Cow<'a, [u8]> = if cut {
        header.flags |= flags::PARTS;
        (body.len() as u64).to_le_bytes().to_vec().into()
    } else {
        body.into()
    };
    let call = header.call;
    let rest = if cut { body } else { &[] };
    let chunks = rest.chunks(BODY_BYTES_MAX).enumerate().map(move |(at, chunk)| {
        let last = (at + 1) * BODY_BYTES_MAX >= rest.len();
        let flags = if last { flags::LAST } else { 0 };
        Part {
            header: Header { flags, ..Header::new(Kind::Chunk, call) },
            ext: &[],
            body: chunk.into(),
        }
    });
    std::iter::once(Part { header, ext, body: first }).chain(chunks)
}

impl Pipe {
    fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.connection.is_handshaking())
    }

    /// Takes the bytes of a frame.
    fn put(&mut self, header: &Header, ext: &[u8], body: &[u8]) -> Result<(), Stop> {
        let mut header = *header;
        header.ext_len_bytes = ext.len() as u16;
        header.len_bytes = (ext.len() + body.len()) as u32;
        match &mut self.tls {
            None => {
                let head = header.encode();
                for part in [&head, ext, body] {
                    self.out.extend_from_slice(part);
                }
            }
            Some(Tls { connection: tls, .. }) => {
                // As one piece, so that it becomes as few records as it can.
                let whole = [&header.encode(), ext, body].concat();
                tls.writer().write_all(&whole).map_err(Stop::Io)?;
            }
        }
        Ok(())
    }

    fn has_room(&mut self) -> Result<bool, Stop> {
        if self.tls.is_some() {
            // TLS has a limit of its own; a frame is given to it only when the last is gone.
            return self.flush();
        }
        Ok(self.out.len() < BACKLOG_BYTES_MAX || self.flush()?)
    }

    fn flush(&mut self) -> Result<bool, Stop> {
        if let Some(Tls { connection: tls, .. }) = &mut self.tls {
            while tls.wants_write() {
                match tls.write_tls(&mut self.socket) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) => return Err(ended_or(error)),
                }
            }
            return Ok(true);
        }
        while !self.out.is_empty() {
            match self.socket.write(&self.out) {
                Ok(written) => drop(self.out.split_to(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(ended_or(error)),
            }
        }
        Ok(true)
    }

    /// Reads what the socket has, once; whether something came.
    fn fill(&mut self) -> Result<bool, Stop> {
        let Some(Tls { connection: tls, .. }) = &mut self.tls else {
            let mut piece = [0; 16 * 1024];
            return match self.socket.read(&mut piece) {
                Ok(0) => {
                    self.ended = true;
                    Ok(false)
                }
                Ok(read) => {
                    self.arrived.extend_from_slice(&piece[..read]);
                    Ok(true)
                }
                Err(error) => self.nothing(error),
            };
        };
        match tls.read_tls(&mut self.socket) {
            Ok(0) => {
                self.ended = true;
                Ok(false)
            }
            Ok(_) => {
                let state = match tls.process_new_packets() {
                    Ok(state) => state,
                    Err(error) => {
                        // What we have to say to a bad peer is said as well as it can be.
                        let _ = self.flush();
                        return Err(self.refusal(&error));
                    }
                };
                let before = self.arrived.len();
                self.arrived.resize(before + state.plaintext_bytes_to_read(), 0);
                let read = tls.reader().read_exact(&mut self.arrived[before..]);
                read.map_err(Stop::Io)?;
                self.heard |= self.arrived.len() > before;
                // That nobody reads any more is told after what had arrived, by reading on.
                let _ = self.flush();
                Ok(true)
            }
            Err(error) => self.nothing(error),
        }
    }

    /// What an error of TLS means.
    fn refusal(&mut self, error: &rustls::Error) -> Stop {
        let Some(tls) = &self.tls else { return Stop::Passed("TLS without TLS") };
        let ours = (tls.refused)();
        let said = match (ours, error) {
            (Some(why), _) => format!("this program does not believe the other: {why}"),
            (None, rustls::Error::InvalidCertificate(why)) => {
                format!("this program does not believe the other's certificate: {why}")
            }
            (None, rustls::Error::AlertReceived(alert)) => match disbelief(*alert) {
                // A certificate is judged before the first frame is read, so who has sent one believed us.
                Some(why) if !self.heard => {
                    format!("the other does not believe this program: {why}")
                }
                _ => return Stop::Passed("its TLS ended with an alert"),
            },
            (None, error) => {
                tracing::debug!(%error, "a peer's TLS is refused");
                return Stop::Passed("its TLS is refused");
            }
        };
        self.denied = true;
        Stop::Refused(said)
    }

    fn nothing(&mut self, error: io::Error) -> Result<bool, Stop> {
        match error.kind() {
            io::ErrorKind::WouldBlock => Ok(false),
            io::ErrorKind::Interrupted => Ok(true),
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::TimedOut => {
                self.ended = true;
                Ok(false)
            }
            _ => Err(Stop::Io(error)),
        }
    }

    /// A whole frame from what has arrived; large bodies are put together.
    fn frame(&mut self) -> Result<Option<Frame>, Stop> {
        loop {
            let Some(head) = self.arrived.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
            let header = Header::decode(head)?;
            if self.arrived.len() < header.frame_len_bytes() {
                return Ok(None);
            }
            let mut whole = self.arrived.split_to(header.frame_len_bytes()).freeze();
            let mut rest = whole.split_off(HEADER_BYTES);
            let ext = rest.split_to(header.ext_len_bytes.into());
            if header.flags & (flags::LENT | flags::POOLED) != 0 {
                return Err(Stop::Passed("memory across hosts"));
            }
            if header.flags & flags::PARTS != 0 {
                self.begin(header, ext, &rest)?;
            } else if header.kind == Kind::Chunk && self.arriving.contains_key(&header.call) {
                if let Some(frame) = self.chunk(&header, &rest)? {
                    return Ok(Some(frame));
                }
            } else {
                if header.kind == Kind::Cancel {
                    // Of its body no more will come.
                    self.arriving.remove(&header.call);
                }
                return Ok(Some(Frame { header, ext, body: rest }));
            }
        }
    }

    fn begin(&mut self, header: Header, ext: Bytes, rest: &[u8]) -> Result<(), Stop> {
        let length = rest.try_into().map_err(|_| FrameError::Short("body"))?;
        let len_bytes = u64::from_le_bytes(length);
        let arriving: u64 = self.arriving.values().map(|other| other.len_bytes).sum();
        if len_bytes > ARRIVING_BYTES_MAX - arriving.min(ARRIVING_BYTES_MAX) {
            let (len_bytes, max) = (len_bytes as usize, ARRIVING_BYTES_MAX as usize);
            return Err(FrameError::Long { what: "body in parts", len_bytes, max }.into());
        }
        let body = BytesMut::new();
        let former = self.arriving.insert(header.call, Arriving { header, ext, body, len_bytes });
        former.map_or(Ok(()), |_| Err(Stop::Passed("two bodies of one call")))
    }

    fn chunk(&mut self, header: &Header, bytes: &[u8]) -> Result<Option<Frame>, Stop> {
        let Some(arriving) = self.arriving.get_mut(&header.call) else { return Ok(None) };
        arriving.body.extend_from_slice(bytes);
        let (has, wants) = (arriving.body.len() as u64, arriving.len_bytes);
        let last = header.flags & flags::LAST != 0;
        if has > wants || last != (has == wants) {
            return Err(FrameError::Short("body in parts").into());
        }
        if !last {
            return Ok(None);
        }
        let whole = self.arriving.remove(&header.call);
        Ok(whole.map(|Arriving { header, ext, body, .. }| Frame {
            header,
            ext,
            body: body.freeze(),
        }))
    }
}

/// What an alert says of our certificate; nothing if it is about something else.
fn disbelief(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::UnknownCA => "its certificate is not of this cluster, or of another host",
        AlertDescription::CertificateExpired => {
            "its certificate is not valid at the time that the clock there shows; compare the clocks"
        }
        AlertDescription::CertificateRevoked => "its host was evicted from the cluster",
        AlertDescription::AccessDenied => "it is not who the nodes named",
        // Of a signature in a handshake: records that cannot be read have another alert.
        AlertDescription::DecryptError
        | AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => "its certificate is of no program",
        AlertDescription::CertificateRequired => "it showed no certificate",
        _ => return None,
    })
}

fn ended_or(error: io::Error) -> Stop {
    match error.kind() {
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::TimedOut
        | io::ErrorKind::WriteZero => Stop::Ended,
        _ => Stop::Io(error),
    }
}
