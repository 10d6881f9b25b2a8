//! Packets between two processes of one host, with descriptors beside them (`SOCK_SEQPACKET`).
//!
//! A packet arrives whole or not at all. Descriptors that arrive are closed on `exec`, are at most
//! [`FDS_MAX`], and are closed at once when they are more than the receiver asked for.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, fchmod};
use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    bind, connect, listen, recvmsg, sendmsg, socket_with, socketpair,
};

/// Most descriptors beside one packet. The kernel allows 253; we never need more than this.
pub const FDS_MAX: usize = 4;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Whether a call may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until it can be done; a receive timeout of the socket counts.
    Yes,
    /// `WouldBlock` at once, whatever the socket is set to.
    No,
}

/// A connected pair. Both ends close on `exec`.
///
/// # Errors
/// `EMFILE` when descriptors run out.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Listens at a path that must not exist yet, for its owner alone: its mode is 0600 from the moment that it
/// is there, for it is the one that the socket had before it was bound.
///
/// # Errors
/// `AddrInUse` if something is there, and what `bind` says.
pub fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    fchmod(&socket, Mode::from_raw_mode(0o600))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Accepts a connection.
///
/// # Errors
/// What `accept` says; `WouldBlock` only if the listening socket was set not to block.
pub fn accept(listening: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listening, SocketFlags::CLOEXEC)?)
}

/// Connects to who listens at a path.
///
/// # Errors
/// `NotFound` if there is nothing, `ConnectionRefused` if nobody listens any more.
pub fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends a packet made of `parts`, with descriptors. No signal comes of a peer that is gone.
///
/// # Errors
/// `BrokenPipe` or `ConnectionReset` from a peer that is gone, `WouldBlock` if its queue is full and we do
/// not wait, `InvalidInput` for more than [`FDS_MAX`] descriptors, `EMSGSIZE` for a packet above the
/// socket's buffer. Nothing was sent.
pub fn send(
    socket: impl AsFd,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
    wait: Wait,
) -> io::Result<()> {
    if fds.len() > FDS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::DONTWAIT, wait == Wait::No);
    if let ([part], []) = (parts, fds) {
        // The kernel has less to do for it; doorbells are sent so.
        return Ok(retry_on_intr(|| rustix::net::send(&socket, part, flags)).map(drop)?);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        match sendmsg(&socket, parts, &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives a packet into `buffer`: its length and its descriptors. 0 bytes are the end: nobody here
/// sends an empty packet.
///
/// # Errors
/// `WouldBlock` if there is none and we do not wait (or the socket's timeout is over), `Interrupted` by
/// a signal, `InvalidData` for a packet above `buffer` or with more than `fds_max` descriptors (at most
/// [`FDS_MAX`]); it is gone then, and its descriptors are closed.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    fds_max: usize,
    wait: Wait,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    // One more than is allowed, so that one too many is seen rather than cut off in silence.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    flags.set(RecvFlags::DONTWAIT, wait == Wait::No);
    let received = recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    let cut = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    if cut || fds.len() > fds_max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((received.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn text(socket: &OwnedFd, fds_max: usize) -> io::Result<(String, Vec<OwnedFd>)> {
        let mut buffer = [0; 16];
        let (len_bytes, fds) = receive(socket, &mut buffer, fds_max, Wait::No)?;
        Ok((String::from_utf8_lossy(&buffer[..len_bytes]).into_owned(), fds))
    }

    #[test]
    fn packets_stay_apart_and_bring_their_descriptors() {
        let (near, far) = pair().expect("a pair");
        let parts = [IoSlice::new(b"on"), IoSlice::new(b"e")];
        send(&near, &parts, &[near.as_fd(), far.as_fd()], Wait::No).expect("room");
        send(&near, &[IoSlice::new(b"two")], &[], Wait::No).expect("room");
        let (one, fds) = text(&far, 2).expect("a packet");
        assert_eq!((one.as_str(), fds.len()), ("one", 2));
        for fd in &fds {
            let flags = rustix::io::fcntl_getfd(fd).expect("it is open");
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        drop(fds);
        let (two, fds) = text(&far, 0).expect("a packet");
        assert_eq!((two.as_str(), fds.len()), ("two", 0));
        assert_eq!(text(&far, 0).expect_err("none").kind(), io::ErrorKind::WouldBlock);
        drop(near);
        assert!(text(&far, 0).is_ok_and(|(end, _)| end.is_empty()));
    }

    #[test]
    fn more_descriptors_or_bytes_than_wanted_are_refused_and_closed() {
        let (near, far) = pair().expect("a pair");
        let (kept, passed) = pair().expect("a pair");
        let fds = [passed.as_fd(); FDS_MAX];
        for wanted in [0, FDS_MAX - 1] {
            send(&near, &[IoSlice::new(b"x")], &fds, Wait::No).expect("room");
            assert_eq!(
                text(&far, wanted).expect_err("too many").kind(),
                io::ErrorKind::InvalidData
            );
        }
        drop(passed);
        // No copy was left: the other end is at its end.
        assert!(text(&kept, 0).is_ok_and(|(end, _)| end.is_empty()));
        send(&near, &[IoSlice::new(&[b'x'; 17])], &[], Wait::No).expect("room");
        assert_eq!(text(&far, 0).expect_err("too long").kind(), io::ErrorKind::InvalidData);
        let many = [near.as_fd(); FDS_MAX + 1];
        let error = send(&near, &[IoSlice::new(b"x")], &many, Wait::No).expect_err("too many");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_path_is_listened_at_and_connected_to() {
        let path = std::env::temp_dir().join(format!("kumo-packet-{}", std::process::id()));
        assert_eq!(connect_to(&path).expect_err("nobody").kind(), io::ErrorKind::NotFound);
        let listening = listen_at(&path).expect("a free path");
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let near = connect_to(&path);
        std::fs::remove_file(&path).expect("it is ours");
        let far = accept(&listening).expect("somebody is there");
        send(near.expect("it listens"), &[IoSlice::new(b"hi")], &[], Wait::No).expect("room");
        assert_eq!(text(&far, 0).expect("a packet").0, "hi");
    }
}
