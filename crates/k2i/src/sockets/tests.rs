//! Real sockets of all kinds, by both ways.

use std::fs::File;
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with, socketpair};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::*;

/// A child that does nothing; `Drop` kills and reaps it.
struct Idle(Child);

impl Idle {
    /// In a network namespace of its own, if that is permitted.
    fn in_own_network() -> Option<Idle> {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo in; exec sleep 1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut said = [0; 3];
        let stdout = child.stdout.as_mut().expect("it is piped");
        let moved = io::Read::read_exact(stdout, &mut said).is_ok();
        let idle = Idle(child);
        moved.then_some(idle)
    }

    /// Holding this as its standard input, and nothing else of ours.
    fn holding(socket: OwnedFd) -> Idle {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::from(socket)).stdout(Stdio::null()).stderr(Stdio::null());
        Idle(command.spawn().expect("sleep is there"))
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn own_pid() -> i32 {
    std::process::id() as i32
}

fn inode(socket: &impl AsFd) -> u64 {
    rustix::fs::fstat(socket).expect("it is open").st_ino
}

/// Snapshots of now by each way that works here; as root that must be both.
fn both() -> Vec<Arc<Snapshot>> {
    let proc = ProcFs::open().expect("/proc");
    let ways = [CollectorKind::Proc, CollectorKind::IterSleepable];
    let made = ways.into_iter().filter_map(|kind| {
        let sockets = Sockets::new(CollectorChoice::Only(kind));
        match sockets.snapshot(&proc, Duration::ZERO) {
            Ok(snapshot) => Some(snapshot),
            Err(error) => {
                assert!(!rustix::process::geteuid().is_root(), "as root: {error:?}");
                eprintln!("skipped without the right to load BPF programs: {error:?}");
                None
            }
        }
    });
    made.collect()
}

fn find(snapshot: &Snapshot, pid: i32, inode: u64) -> Option<&Socket> {
    let held = snapshot.sockets_of(pid).iter().find(|held| held.socket.inode == inode);
    held.map(|held| &held.socket)
}

/// Checks what `look` says of a socket of ours in every snapshot.
fn each(snapshots: &[Arc<Snapshot>], socket: &impl AsFd, look: impl Fn(&Socket)) {
    for snapshot in snapshots {
        let found = find(snapshot, own_pid(), inode(socket));
        look(found.unwrap_or_else(|| panic!("{:?} lacks {}", snapshot.by, inode(socket))));
    }
}

#[test]
fn internet_sockets() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("it is bound");
    let client = TcpStream::connect(at).expect("it listens");
    let waiting = TcpStream::connect(at).expect("it listens");
    let (server, from) = listener.accept().expect("a connection");
    io::Write::write_all(&mut &server, b"12345").expect("room");
    let bound = UdpSocket::bind("0.0.0.0:0").expect("a port");
    let connected = UdpSocket::bind("127.0.0.1:0").expect("a port");
    connected.connect(at).expect("an address");
    // It has arrived when it can be read.
    let mut peeked = [0; 5];
    while client.peek(&mut peeked).expect("bytes") < 5 {}
    let snapshots = both();
    each(&snapshots, &listener, |socket| {
        assert_eq!(socket.line(), format!("tcp {at} LISTEN").into_bytes());
        assert_eq!((socket.recv_queue, socket.listening_port()), (Some(1), Some(at.port())));
        assert_eq!(socket.uid, Some(rustix::process::geteuid().as_raw()));
    });
    each(&snapshots, &client, |socket| {
        assert_eq!(socket.line(), format!("tcp {from} -> {at} ESTABLISHED").into_bytes());
        assert_eq!((socket.recv_queue, socket.is_listening()), (Some(5), false));
    });
    each(&snapshots, &server, |socket| {
        assert_eq!(socket.line(), format!("tcp {at} -> {from} ESTABLISHED").into_bytes());
    });
    each(&snapshots, &bound, |socket| {
        let port = bound.local_addr().expect("bound").port();
        assert_eq!(socket.line(), format!("udp 0.0.0.0:{port} UNCONNECTED").into_bytes());
        assert_eq!(socket.listening_port(), Some(port));
    });
    each(&snapshots, &connected, |socket| {
        assert_eq!((socket.remote, socket.is_listening()), (Some((at.ip(), at.port())), false));
    });
    drop(waiting);
    if let Ok(six) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        let port = six.local_addr().expect("bound").port();
        each(&both(), &six, |socket| {
            assert_eq!(socket.line(), format!("tcp6 [::1]:{port} LISTEN").into_bytes());
        });
    }
}

#[test]
fn unix_sockets_with_hostile_names() {
    let directory = tempfile::tempdir().expect("a directory");
    let hostile: &[u8] = b"a\n\x1b[31m\xff\"><script>.sock";
    let path = directory.path().join(std::ffi::OsStr::from_bytes(hostile));
    let listener = UnixListener::bind(&path).expect("a path");
    let client = UnixStream::connect(&path).expect("it listens");
    let (server, _) = listener.accept().expect("a connection");
    let name = format!("kumo\0{}\n\x1b]0;", std::process::id());
    let name = SocketAddr::from_abstract_name(&name).expect("a name");
    let hidden = UnixDatagram::bind_addr(&name).expect("a name of our own");
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let (one, other) = socketpair(family, SocketType::SEQPACKET, flags, None).expect("a pair");
    let snapshots = both();
    each(&snapshots, &listener, |socket| {
        assert_eq!(socket.path.as_deref(), Some(path.as_os_str().as_bytes()));
        assert_eq!((socket.state_name(), socket.kind_name()), (Some("LISTEN"), Some("stream")));
        assert!(socket.is_listening() && socket.listening_port().is_none());
    });
    each(&snapshots, &client, |socket| {
        assert_eq!((socket.peer_inode, socket.path.as_ref()), (Some(inode(&server)), None));
    });
    each(&snapshots, &server, |socket| {
        assert_eq!(socket.path.as_deref(), Some(path.as_os_str().as_bytes()));
        assert_eq!(socket.state_name(), Some("ESTABLISHED"));
    });
    each(&snapshots, &hidden, |socket| {
        let want = format!("@kumo\0{}\n\x1b]0;", std::process::id());
        assert_eq!(socket.path_shown().as_deref(), Some(want.as_bytes()));
        assert_eq!(socket.kind_name(), Some("dgram"));
    });
    each(&snapshots, &one, |socket| {
        assert_eq!(
            (socket.peer_inode, socket.kind_name()),
            (Some(inode(&other)), Some("seqpacket"))
        );
    });
}

#[test]
fn sockets_of_other_families_have_their_name() {
    let make = |family, kind, protocol| socket_with(family, kind, SocketFlags::CLOEXEC, protocol);
    let netlink = make(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::SOCK_DIAG));
    let netlink = netlink.expect("a netlink socket");
    let unbound = make(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    let snapshots = both();
    each(&snapshots, &netlink, |socket| {
        assert_eq!(socket.protocol_name().as_deref(), Some("netlink"));
        assert_eq!((socket.local, socket.is_listening()), (None, false));
    });
    // Neither bound nor connected: sock_diag does not tell of it, but /proc shows that it is there.
    each(&snapshots, &unbound, |socket| {
        assert_eq!(socket.protocol_name().as_deref(), Some("tcp"));
        assert_eq!((socket.local, socket.remote), (None, None));
    });
    let tells_all = |snapshot: &Arc<Snapshot>| snapshot.unseen.sockets == 0;
    for snapshot in &snapshots {
        assert_eq!(tells_all(snapshot), snapshot.by == SocketsBy::Iterator, "it says so");
    }
    let protocol = rustix::net::ipproto::ICMP;
    let raw = make(AddressFamily::INET, SocketType::RAW, Some(protocol));
    let Ok(raw) = raw else { return eprintln!("skipped: raw sockets are for root") };
    each(&both(), &raw, |socket| {
        assert_eq!(socket.protocol_name().as_deref(), Some("raw"));
        assert_eq!(socket.listening_port(), None);
    });
}

#[test]
fn sockets_in_other_network_namespaces_are_seen() {
    let Some(idle) = Idle::in_own_network() else {
        return eprintln!("skipped without the right to make network namespaces");
    };
    let namespace = File::open(format!("/proc/{}/ns/net", idle.pid())).expect("it is ours");
    let netns = rustix::fs::fstat(&namespace).expect("it is open").st_ino as u32;
    // A thread of its own: this one stays where it is.
    let there = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        TcpListener::bind("0.0.0.0:80").map_err(|_| rustix::io::Errno::ADDRINUSE)
    });
    let Ok(there) = there.join().expect("it does not panic") else {
        return eprintln!("skipped without the right to enter network namespaces");
    };
    let snapshots = both();
    each(&snapshots, &there, |socket| {
        assert_eq!(socket.line(), b"tcp 0.0.0.0:80 LISTEN");
        assert_eq!(socket.netns, Some(netns));
    });
    // With nobody in it, and mounted nowhere, sock_diag cannot be asked there any more.
    drop(idle);
    for snapshot in both() {
        let found = find(&snapshot, own_pid(), inode(&there)).expect("it is still held");
        assert_eq!(found.protocol_name().as_deref(), Some("tcp"));
        let knows = snapshot.by == SocketsBy::Iterator;
        assert_eq!(found.netns.is_some(), knows, "{:?}", snapshot.by);
    }
}

#[test]
fn a_socket_that_two_hold_has_two_rows() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let copy: OwnedFd = listener.try_clone().expect("a descriptor").into();
    let idle = Idle::holding(copy);
    let start = |pid: i32| {
        let proc = ProcFs::open().expect("/proc");
        proc.one(pid, crate::table::Parts::IDENTITY).expect("it lives").id()
    };
    for snapshot in both() {
        let ours = find(&snapshot, own_pid(), inode(&listener));
        let held = snapshot.sockets_of(idle.pid());
        assert_eq!(held.len(), 1, "{:?}: {held:?}", snapshot.by);
        assert_eq!((held[0].fd, Some(&held[0].socket)), (0, ours));
        let id = start(idle.pid());
        assert_eq!(snapshot.listening(id).as_deref(), Some(&*format!("tcp:{port}")));
        let files = std::fs::read_dir(format!("/proc/{}/fd", idle.pid())).expect("it lives");
        assert_eq!(snapshot.open_files(id), Some(files.count() as u32), "{:?}", snapshot.by);
        let older = ProcessId { start_ns: id.start_ns - 2 * kumo_abi::TICK_NS, ..id };
        assert_eq!((snapshot.listening(older), snapshot.open_files(older)), (None, None));
        let only = snapshot.of(&[idle.pid()]);
        assert_eq!((only.holders.len(), only.sockets.len()), (1, 1));
    }
}

#[test]
fn both_ways_tell_the_same() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let idle = Idle::holding(listener.into());
    let snapshots = both();
    let [diag, iterator] = snapshots.as_slice() else { return };
    let by_diag = &find(diag, idle.pid(), diag.sockets_of(idle.pid())[0].socket.inode);
    assert_eq!(&iterator.sockets_of(idle.pid()).first().map(|held| &held.socket), by_diag);
    // Everybody's, where both know them; what began, ended or changed in between is in one of them only.
    let (mut compared, mut same) = (0, 0);
    for held in &diag.sockets {
        let other = find(iterator, held.pid, held.socket.inode);
        let (Some(other), true) = (other, held.socket.state.is_some()) else { continue };
        let facts = |socket: &Socket| Socket {
            recv_queue: None,
            send_queue: None,
            protocol: socket.protocol.filter(|_| socket.kind != Some(3)),
            ..socket.clone()
        };
        compared += 1;
        same += usize::from(facts(other) == facts(&held.socket));
    }
    assert!(compared > 0 && same * 10 >= compared * 9, "{same} of {compared} are the same");
}

#[test]
fn who_asks_at_the_same_time_shares_a_snapshot() {
    let proc = ProcFs::open().expect("/proc");
    let sockets = Sockets::new(CollectorChoice::Only(CollectorKind::Proc));
    let ask = |max_age| sockets.snapshot(&proc, max_age).expect("a snapshot").generation;
    assert_eq!((ask(Duration::ZERO), ask(Duration::from_secs(60))), (1, 1));
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| ask(Duration::ZERO));
        }
    });
    assert!(ask(Duration::from_secs(60)) < 32);
    let nothing = Sockets::nothing().snapshot(&proc, Duration::ZERO).expect("an empty one");
    assert_eq!((nothing.by, nothing.sockets.len()), (SocketsBy::Nothing, 0));
    assert!(nothing.unseen.in_words().is_some_and(|words| words.contains("simulated")));
}

#[test]
fn what_is_not_seen_is_said() {
    let unseen =
        |processes, namespaces, sockets| Unseen { processes, namespaces, sockets, all: false };
    assert_eq!(unseen(0, 0, 0).in_words(), None);
    let words = unseen(1, 2, 0).in_words().expect("words");
    assert!(words.starts_with(
        "the open files of 1 process of others; the sockets of 2 network namespaces ("
    ));
    assert!(unseen(0, 0, 1).in_words().is_some_and(|words| words.ends_with("does not tell")));
}
