//! What the kernel tells of sockets over netlink, `sock_diag(7)`: works without BPF, and in one network
//! namespace at a time.
//!
//! It tells of sockets by their inode, and of no process; who holds them is read from `/proc`. Sockets of
//! the internet and of Unix are told of; of others, and of TCP sockets that are neither bound nor
//! connected, nothing is.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::records::address;
use super::socket::{AF_INET, AF_INET6, Socket};

/// `linux/sock_diag.h`, `linux/netlink.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;

/// Sizes of `struct nlmsghdr`, `inet_diag_msg`, `unix_diag_msg`, `rtattr`.
const HEAD_BYTES: usize = 16;
const INET_BYTES: usize = 72;
const UNIX_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;

/// `linux/unix_diag.h`: what to show, and what attributes say.
const UDIAG_SHOW: u32 = 0x1 | 0x4 | 0x10 | 0x40; // name, peer, queue lengths, user
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_RQLEN: u16 = 4;
const UNIX_DIAG_UID: u16 = 7;

const AF_UNIX: u8 = 1;

/// `SOCK_*` of the protocols that are asked for.
const STREAM: u16 = 1;
const DGRAM: u16 = 2;
const RAW: u16 = 3;

/// Families, protocols and types that are asked for. SCTP and others would make the kernel load modules
/// for the asking.
const INTERNET: [(u16, u16, u16); 6] = [
    (AF_INET, 6, STREAM),
    (AF_INET6, 6, STREAM),
    (AF_INET, 17, DGRAM),
    (AF_INET6, 17, DGRAM),
    (AF_INET, 255, RAW),
    (AF_INET6, 255, RAW),
];

/// The kernel fills as much of it as there is at each read.
const READ_BYTES: usize = 64 * 1024;

/// Adds all sockets of the network namespace of this thread to `sockets`, by their inodes.
///
/// # Errors
/// The kernel has no such interface, or breaks it off.
pub(super) fn read(netns: Option<u32>, sockets: &mut HashMap<u64, Socket>) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(SOCK_DIAG))?;
    for (family, protocol, kind) in INTERNET {
        dump(&socket, &inet_request(family, protocol), &mut |message| {
            if let Some(found) = parse_inet(message, protocol, kind, netns) {
                sockets.insert(found.inode, found);
            }
        })?;
    }
    dump(&socket, &unix_request(), &mut |message| {
        if let Some(found) = parse_unix(message, netns) {
            sockets.insert(found.inode, found);
        }
    })
}

/// Asks and gives each message to `take`. A kernel that was built without one kind of sockets says so, and
/// of that kind there is nothing to hear.
fn dump(socket: &OwnedFd, request: &[u8], take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    send(socket, request, SendFlags::empty())?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let len = match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((len, _)) => len,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut rest = &buffer[..len];
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while let Some((kind, message, behind)) = next_message(rest) {
            rest = behind;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = message.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    let error = Errno::from_raw_os_error(-code);
                    return match error {
                        Errno::NOENT | Errno::OPNOTSUPP | Errno::INVAL => Ok(()),
                        error => Err(error.into()),
                    };
                }
                SOCK_DIAG_BY_FAMILY => take(message),
                _ => {}
            }
        }
    }
}

/// The type and the body of the first message, and what follows it.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    let message = bytes.get(HEAD_BYTES..len)?;
    Some((kind, message, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

fn request(body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEAD_BYTES + body.len());
    message.extend(((HEAD_BYTES + body.len()) as u32).to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// `struct inet_diag_req_v2`: all states, any address.
fn inet_request(family: u16, protocol: u16) -> Vec<u8> {
    let mut body = vec![family as u8, protocol as u8, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend([0; 48]);
    request(&body)
}

/// `struct unix_diag_req`.
fn unix_request() -> Vec<u8> {
    let mut body = vec![AF_UNIX, 0, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(0u32.to_ne_bytes());
    body.extend(UDIAG_SHOW.to_ne_bytes());
    body.extend([0; 8]);
    request(&body)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// `struct inet_diag_msg`. What has no inode is held by nobody.
fn parse_inet(bytes: &[u8], protocol: u16, kind: u16, netns: Option<u32>) -> Option<Socket> {
    if bytes.len() < INET_BYTES {
        return None;
    }
    let family = u16::from(bytes[0]);
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let end = |at: usize| -> Option<IpAddr> { address(family, bytes.get(at..)?.first_chunk()?) };
    let inode = u64::from(number(bytes, 68)?);
    let mut socket = Socket {
        inode,
        family: Some(family),
        kind: Some(kind),
        // Each raw socket has a protocol of its own, which nobody tells.
        protocol: Some(protocol).filter(|_| kind != RAW),
        state: Some(bytes[1]),
        netns,
        recv_queue: number(bytes, 56).map(u64::from),
        send_queue: number(bytes, 60).map(u64::from),
        uid: number(bytes, 64),
        ..Socket::default()
    };
    socket.set_addresses((end(8)?, port(4)), (end(24)?, port(6)));
    (inode != 0).then_some(socket)
}

/// `struct unix_diag_msg` and its attributes.
fn parse_unix(bytes: &[u8], netns: Option<u32>) -> Option<Socket> {
    let (head, mut rest) = bytes.split_at_checked(UNIX_BYTES)?;
    let mut socket = Socket {
        inode: u64::from(number(head, 4)?),
        family: Some(u16::from(head[0])),
        kind: Some(u16::from(head[1])),
        protocol: Some(0),
        state: Some(head[2]),
        netns,
        ..Socket::default()
    };
    while rest.len() >= ATTRIBUTE_BYTES {
        let len = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let kind = u16::from_ne_bytes([rest[2], rest[3]]);
        let value = rest.get(ATTRIBUTE_BYTES..len)?;
        match kind {
            UNIX_DIAG_NAME => socket.set_path(value),
            UNIX_DIAG_PEER => {
                socket.peer_inode = number(value, 0).map(u64::from).filter(|inode| *inode != 0);
            }
            UNIX_DIAG_RQLEN => {
                socket.recv_queue = number(value, 0).map(u64::from);
                socket.send_queue = number(value, 4).map(u64::from);
            }
            UNIX_DIAG_UID => socket.uid = number(value, 0),
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    (socket.inode != 0).then_some(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;
    use proptest::prelude::*;

    fn inode(socket: &impl AsFd) -> u64 {
        rustix::fs::fstat(socket).expect("it is open").st_ino
    }

    #[test]
    fn the_kernel_tells_of_our_own_sockets() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let udp = UdpSocket::bind("[::1]:0").or_else(|_| UdpSocket::bind("127.0.0.1:0"));
        let udp = udp.expect("a port");
        let (one, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let mut sockets = HashMap::new();
        read(Some(7), &mut sockets).expect("sock_diag");
        let local = |socket: &Socket| socket.local.expect("it is bound");
        let found = &sockets[&inode(&tcp)];
        assert_eq!(
            local(found),
            (tcp.local_addr().expect("bound").ip(), tcp.local_addr().expect("bound").port())
        );
        assert_eq!((found.state_name(), found.netns), (Some("LISTEN"), Some(7)));
        let found = &sockets[&inode(&udp)];
        assert_eq!(local(found).1, udp.local_addr().expect("bound").port());
        assert_eq!(found.state_name(), Some("UNCONNECTED"));
        let found = &sockets[&inode(&one)];
        assert_eq!((found.peer_inode, found.path.as_deref()), (Some(inode(&other)), None));
        assert_eq!(found.state_name(), Some("ESTABLISHED"));
    }

    #[test]
    fn messages_that_lie_about_their_length_end_it() {
        let mut message = request(&[1, 2, 3, 4]);
        assert_eq!(next_message(&message), Some((20, &[1, 2, 3, 4][..], &[][..])));
        for len in [0u32, 15, 21, u32::MAX] {
            message[..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(next_message(&message), None, "for {len}");
        }
    }

    proptest! {
        #[test]
        fn any_message_is_read_or_refused(bytes: Vec<u8>) {
            let _ = next_message(&bytes);
            let _ = parse_inet(&bytes, 6, STREAM, None);
            let _ = parse_unix(&bytes, None);
        }
    }
}
