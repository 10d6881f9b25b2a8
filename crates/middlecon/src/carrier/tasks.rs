//! The carriers as tasks use them: many calls on one connection, nothing blocks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kumo_abi::frame::Header;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::local::{Link, Reader, Writer};
use super::{Frame, Stop};
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
    reader: Reader,
    ring: bool,
}

impl Inbox {
    pub(crate) fn new(link: &Arc<Link>, reader: Reader, ring: bool) -> Result<Inbox, Stop> {
        Ok(Inbox { socket: watch(link.as_fd().try_clone_to_owned()?)?, reader, ring })
    }

    /// The next frame. What is dropped while waiting has taken nothing.
    pub(crate) async fn next(&mut self) -> Result<Frame, Stop> {
        loop {
            if let Some(frame) = self.reader.try_next()? {
                return Ok(frame);
            }
            if !self.reader.asleep() {
                continue;
            }
            self.socket.readable().await?;
            let (reader, ring) = (&mut self.reader, self.ring);
            let mut read = Ok(None);
            // Read to the end within, so that what comes after that is not forgotten.
            let _ = self.socket.try_io(Interest::READABLE, || {
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
}

/// As [`Link::join`], without blocking.
pub(crate) async fn join(socket: OwnedFd, ring: bool, deadline_ns: u64) -> Result<Link, Stop> {
    let own = Link::offer(&socket, ring)?;
    let socket = watch(socket)?;
    let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns()));
    match tokio::time::timeout(left, socket.readable()).await {
        Err(_) => return Err(Stop::Deadline),
        Ok(ready) => ready?,
    }
    Link::accept(socket.into_std()?.into(), own, ring)
}

/// Sends a frame, waiting for room until the deadline. Dropped, it has sent all of it or nothing.
pub(crate) async fn send(
    writer: &Mutex<Writer>,
    header: Header,
    ext: &[u8],
    body: &[u8],
    deadline_ns: u64,
) -> Result<(), Stop> {
    loop {
        let sent =
            writer.lock().unwrap_or_else(PoisonError::into_inner).try_send(header, ext, body)?;
        if sent {
            return Ok(());
        }
        if now_ns() >= deadline_ns {
            return Err(Stop::Deadline);
        }
        // A peer that does not keep up: not the fast path, and no doorbell would come to us here.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
