//! Who is at the other end of a Unix socket.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::from_mut;

use rustix::net::sockopt::socket_peercred;

use crate::PidFd;

/// `SO_PEERPIDFD` of the generic ABI, which x86-64 and aarch64 share; not in every libc's headers.
const SO_PEERPIDFD: libc::c_int = 77;

/// The process that connected a Unix socket, or made the pair.
#[derive(Debug)]
pub struct Peer {
    /// Means this process for ever.
    pub process: PidFd,
    /// Its number, in our PID namespace; 0 if it is in none that we see.
    pub pid: u32,
    /// Its user when it connected.
    pub uid: u32,
}

/// Asks the kernel who is at the other end.
///
/// Since Linux 6.5 the descriptor is that of the very process which connected. Before, it is opened by
/// number: a process that has ended meanwhile, and whose number was given again, would be mistaken.
///
/// # Errors
/// `ESRCH` or `ENODATA` if it has ended and was reaped, `EMFILE`, `EOPNOTSUPP` for what is no Unix socket.
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let who = socket_peercred(&socket)?;
    let pid = who.pid.as_raw_pid();
    let process = match peer_pidfd(&socket) {
        Ok(fd) => PidFd::from_fd(fd),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => PidFd::open(pid)?,
        Err(error) => return Err(error),
    };
    Ok(Peer { process, pid: pid.unsigned_abs(), uid: who.uid.as_raw() })
}

fn peer_pidfd(socket: &impl AsFd) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut len_bytes = size_of::<libc::c_int>() as libc::socklen_t;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: `fd` and `len_bytes` are ours alone and outlive the call; the kernel writes at most
    // `len_bytes` bytes, the size of `fd`, and every pattern of bits is a `c_int`.
    let result = unsafe {
        let (fd, len_bytes) = (from_mut(&mut fd).cast(), from_mut(&mut len_bytes));
        libc::getsockopt(socket, libc::SOL_SOCKET, SO_PEERPIDFD, fd, len_bytes)
    };
    if result != 0 || fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ended;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn the_other_end_of_our_own_pair_is_us() {
        let (near, _far) = UnixStream::pair().expect("a pair");
        let peer = peer(&near).expect("we live");
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
        let ended = peer.process.wait(Some(Duration::ZERO)).expect("poll works");
        assert_eq!(ended, Ended::NotYet);
    }

    #[test]
    fn what_is_no_unix_socket_is_refused() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
        assert!(peer(&socket).is_err());
    }
}
