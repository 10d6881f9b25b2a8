//! What the kernel's TCP knows of a connection.
#![allow(unsafe_code)]

use std::io;
use std::mem::{offset_of, size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::from_mut;

/// Where the smoothed round trip stands in `struct tcp_info`, in words of 32 bits.
const RTT_WORD: usize = offset_of!(libc::tcp_info, tcpi_rtt) / size_of::<u32>();

/// Smoothed round trip of a TCP connection, in microseconds; 0 before the kernel has measured one.
///
/// # Errors
/// `ENOPROTOOPT` or `EOPNOTSUPP` for what is no TCP socket, `EBADF` never: the descriptor is borrowed.
pub fn tcp_rtt_us(socket: impl AsFd) -> io::Result<u32> {
    let mut info = [0_u32; RTT_WORD + 1];
    let mut len_bytes = size_of_val(&info) as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: `info` and `len_bytes` are ours alone and outlive the call. The kernel writes at most
    // `len_bytes` bytes to `info`, its size, and the length of what it wrote to `len_bytes`; every
    // pattern of bits is a `u32`. It cuts `struct tcp_info` to that length and keeps no pointer.
    let result = unsafe {
        libc::getsockopt(fd, level, name, from_mut(&mut info).cast(), from_mut(&mut len_bytes))
    };
    if result == 0 { Ok(info[RTT_WORD]) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_connection_that_was_used_has_a_round_trip() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut near =
            TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (mut far, _) = listener.accept().expect("somebody dialed");
        near.write_all(b"ping").expect("it is open");
        far.read_exact(&mut [0; 4]).expect("four bytes");
        far.write_all(b"pong").expect("it is open");
        near.read_exact(&mut [0; 4]).expect("four bytes");
        let rtt_us = tcp_rtt_us(&near).expect("it is TCP");
        assert!(rtt_us > 0, "the kernel measured the handshake");
    }

    #[test]
    fn what_is_no_tcp_socket_is_refused() {
        let (near, _far) = UnixStream::pair().expect("a pair");
        assert!(tcp_rtt_us(&near).is_err());
    }
}
