//! The carriers as tasks use them: many calls on one connection, nothing blocks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kumo_abi::control::Carrier;
use kumo_abi::frame::Header;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::remote::{Facts, Part, Remote, parts};
use super::{Frame, Link, Stop, Writer, local, remote};
use crate::secure::Tls;
use crate::time::now_ns;

/// A socket as tokio watches it. It is a packet socket: nothing is read or written through this type.
fn watch(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = StdStream::from(socket);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// The receiving half of a connection, for one task.
pub(crate) struct Inbox {
    /// A duplicate: the link owns the socket itself.
    socket: UnixStream,
    from: From,
}

enum From {
    Local { reader: local::Reader, ring: bool },
    Remote(Arc<Remote>),
}

impl Inbox {
    fn new(link: &Link, from: From) -> Result<Inbox, Stop> {
        Ok(Inbox { socket: watch(link.as_fd().try_clone_to_owned()?)?, from })
    }

    /// The next frame. What is dropped while waiting has taken nothing.
    pub(crate) async fn next(&mut self) -> Result<Frame, Stop> {
        let socket = &self.socket;
        match &mut self.from {
            From::Local { reader, ring } => next_local(socket, reader, *ring).await,
            From::Remote(remote) => next_remote(socket, remote).await,
        }
    }
}

async fn next_local(
    socket: &UnixStream,
    reader: &mut local::Reader,
    ring: bool,
) -> Result<Frame, Stop> {
    loop {
        reader.tell_room();
        if let Some(frame) = reader.try_next()? {
            return Ok(frame);
        }
        if !reader.asleep() {
            continue;
        }
        socket.readable().await?;
        let mut read = Ok(None);
        // Read to the end within, so that what comes after that is not forgotten.
        let _ = socket.try_io(Interest::READABLE, || {
            read = if ring { reader.awake().map(|()| None) } else { reader.try_next() };
            match read {
                Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        });
        if let Some(frame) = read? {
            return Ok(frame);
        }
    }
}

async fn next_remote(socket: &UnixStream, remote: &Remote) -> Result<Frame, Stop> {
    loop {
        let mut read = Ok(None);
        let _ = socket.try_io(Interest::READABLE, || {
            read = remote.try_next();
            match read {
                Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        });
        if let Some(frame) = read? {
            return Ok(frame);
        }
        // Bytes that came together with others are not announced by the socket.
        if let Some(frame) = remote.try_next()? {
            return Ok(frame);
        }
        // Others may leave bytes behind that the socket did not take; they are sent here.
        // An end is told after what had arrived, by reading.
        let mut all = remote.flush().unwrap_or(true);
        if !all {
            // Once more within, so that room that comes after it is not forgotten.
            let _ = socket.try_io(Interest::WRITABLE, || {
                all = remote.flush().unwrap_or(true);
                if all { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
            });
        }
        tokio::select! {
            ready = socket.readable() => ready?,
            ready = socket.writable(), if !all => ready?,
            () = remote.behind.notified() => {}
        }
    }
}

/// As [`super::join`], without blocking.
pub(crate) async fn join(
    socket: OwnedFd,
    carrier: Carrier,
    tls: Option<Tls>,
    facts: Facts,
    deadline_ns: u64,
) -> Result<(Arc<Link>, Writer, Inbox), Stop> {
    let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns()));
    tokio::time::timeout(left, join_in_time(socket, carrier, tls, facts))
        .await
        .unwrap_or(Err(Stop::Deadline))
}

async fn join_in_time(
    socket: OwnedFd,
    carrier: Carrier,
    tls: Option<Tls>,
    facts: Facts,
) -> Result<(Arc<Link>, Writer, Inbox), Stop> {
    if let Carrier::Local { ring } = carrier {
        let own = local::Link::offer(&socket, ring)?;
        let socket = watch(socket)?;
        socket.readable().await?;
        let link = local::Link::accept(socket.into_std()?.into(), own, ring)?;
        let (link, writer, reader) = link.split();
        let link = Arc::new(Link::Local(link));
        let inbox = Inbox::new(&link, From::Local { reader, ring })?;
        return Ok((link, Writer::Local(writer), inbox));
    }
    let remote = remote(socket, carrier, tls, facts)?;
    let link = Arc::new(Link::Remote(remote.clone()));
    let inbox = Inbox::new(&link, From::Remote(remote.clone()))?;
    let (mut done, mut full) = remote.handshake()?;
    while !done {
        if full {
            inbox.socket.writable().await?;
            (done, full) = remote.handshake()?;
            continue;
        }
        inbox.socket.readable().await?;
        let mut step = Ok((false, false));
        let _ = inbox.socket.try_io(Interest::READABLE, || {
            step = remote.handshake();
            match step {
                Ok((false, false)) => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        });
        (done, full) = step?;
    }
    Ok((link, Writer::Remote(remote), inbox))
}

/// Sends a frame, waiting for room until the deadline. Dropped, it has sent all of it or nothing; of a
/// large body perhaps the beginning, which its receiver then never takes for a whole.
pub(crate) async fn send(
    writer: &Mutex<Writer>,
    header: Header,
    ext: &[u8],
    body: &[u8],
    deadline_ns: u64,
) -> Result<(), Stop> {
    send_noting(writer, header, ext, body, deadline_ns, &mut false).await
}

/// As [`send`]. While `has_begun` is false, also when this was dropped, nothing has left, nor will it.
pub(crate) async fn send_noting(
    writer: &Mutex<Writer>,
    header: Header,
    ext: &[u8],
    body: &[u8],
    deadline_ns: u64,
    has_begun: &mut bool,
) -> Result<(), Stop> {
    let is_remote =
        matches!(*writer.lock().unwrap_or_else(PoisonError::into_inner), Writer::Remote(_));
    if !is_remote {
        let part = Part { header, ext, body: body.into() };
        return send_part(writer, part, deadline_ns, has_begun).await;
    }
    for part in parts(header, ext, body) {
        send_part(writer, part, deadline_ns, has_begun).await?;
    }
    Ok(())
}

async fn send_part(
    writer: &Mutex<Writer>,
    part: Part<'_>,
    deadline_ns: u64,
    has_begun: &mut bool,
) -> Result<(), Stop> {
    let mut try_send = || {
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = writer.try_send(part.header, part.ext, &part.body);
        // Of an error nobody knows how far it came.
        *has_begun |= !matches!(sent, Ok(false));
        sent
    };
    loop {
        if try_send()? {
            return Ok(());
        }
        if now_ns() >= deadline_ns {
            return Err(Stop::Deadline);
        }
        // A peer that does not keep up: not the fast path. Who waits for room in a ring is told by the task
        // that receives; for other carriers, and for a peer that does not tell, we look again.
        let link = match &*writer.lock().unwrap_or_else(PoisonError::into_inner) {
            Writer::Local(local) => Some(local.link().clone()),
            Writer::Remote(_) => None,
        };
        let again = tokio::time::sleep(Duration::from_millis(1));
        let Some(link) = link else {
            again.await;
            continue;
        };
        let mut told = std::pin::pin!(link.room.notified());
        told.as_mut().enable();
        link.want_room();
        if try_send()? {
            return Ok(());
        }
        tokio::select! {
            () = told => {}
            () = again => {}
        }
    }
}
