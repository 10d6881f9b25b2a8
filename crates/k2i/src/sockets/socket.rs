//! What a socket is, and how that is called. Plain values and rules.

use std::borrow::Cow;
use std::net::IpAddr;

/// States of `include/net/tcp_states.h` that rules ask for.
const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// Numbers of the kernel's user interface: families, types, protocols.
const AF_UNIX: u16 = 1;
pub(super) const AF_INET: u16 = 2;
pub(super) const AF_INET6: u16 = 10;
const SOCK_STREAM: u16 = 1;
const SOCK_DGRAM: u16 = 2;
const SOCK_RAW: u16 = 3;
const IPPROTO_ICMP: u16 = 1;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u16 = 17;
const IPPROTO_ICMPV6: u16 = 58;
const IPPROTO_SCTP: u16 = 132;
const IPPROTO_UDPLITE: u16 = 136;
const IPPROTO_MPTCP: u16 = 262;

/// A socket. What nobody told is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// Its inode: one socket, one number, in however many processes.
    pub inode: u64,
    /// Address family, `AF_*`.
    pub family: Option<u16>,
    /// `SOCK_*`.
    pub kind: Option<u16>,
    /// Protocol within the family, `IPPROTO_*` for those of the internet.
    pub protocol: Option<u16>,
    /// How the kernel calls its protocol, where it told no more than that.
    pub kernel_name: Option<Box<str>>,
    /// `TCP_*` states, which all families use.
    pub state: Option<u8>,
    /// Address and port that it is bound to. Absent where it is not bound, and outside of the internet.
    pub local: Option<(IpAddr, u16)>,
    /// Address and port of the other end.
    pub remote: Option<(IpAddr, u16)>,
    /// Name of a Unix socket; it begins with NUL where it is an abstract one.
    pub path: Option<Box<[u8]>>,
    /// Inode of the other end of a Unix socket.
    pub peer_inode: Option<u64>,
    /// Network namespace that it is in.
    pub netns: Option<u32>,
    /// User that owns it.
    pub uid: Option<u32>,
    /// Bytes to be read, or connections to be accepted.
    pub recv_queue: Option<u64>,
    /// Bytes to be sent or acknowledged, or how many connections may wait.
    pub send_queue: Option<u64>,
}

impl Socket {
    /// Keeps addresses as they are shown: what is bound to nothing has none.
    pub(super) fn set_addresses(&mut self, local: (IpAddr, u16), remote: (IpAddr, u16)) {
        // The kernel keeps the protocol of a raw socket where others have their port.
        let is_raw = self.kind == Some(SOCK_RAW);
        let port = |port: u16| if is_raw { 0 } else { port };
        let shown = |(address, number): (IpAddr, u16)| {
            let is_nothing = port(number) == 0 && address.is_unspecified();
            (!is_nothing).then_some((address, port(number)))
        };
        self.remote = shown(remote);
        self.local = shown(local);
        if self.local.is_none() && is_raw {
            self.local = Some((local.0, 0)); // It gets what comes to any address.
        }
    }

    /// Keeps a name of the Unix family, as `sun_path` has it.
    pub(super) fn set_path(&mut self, path: &[u8]) {
        // The kernel counts the NUL behind a path; within an abstract name it is as good as any byte.
        let path = match path {
            [0, ..] => path,
            _ => path.split(|byte| *byte == 0).next().unwrap_or_default(),
        };
        self.path = (!path.is_empty()).then(|| path.into());
    }

    /// Its protocol as people call it.
    pub fn protocol_name(&self) -> Option<Cow<'_, str>> {
        let Some(family) = self.family else {
            return self.kernel_name.as_deref().map(|name| name.to_lowercase().into());
        };
        let version = match family {
            AF_INET => "",
            AF_INET6 => "6",
            _ => return Some(family_name(family)),
        };
        let name = match (self.kind, self.protocol) {
            (Some(SOCK_RAW), _) => "raw",
            (_, Some(IPPROTO_TCP)) => "tcp",
            (_, Some(IPPROTO_UDP)) => "udp",
            (_, Some(IPPROTO_UDPLITE)) => "udplite",
            (_, Some(IPPROTO_SCTP)) => "sctp",
            (_, Some(IPPROTO_MPTCP)) => "mptcp",
            (_, Some(IPPROTO_ICMP | IPPROTO_ICMPV6)) => "icmp",
            (_, Some(other)) => return Some(format!("ip{version}-{other}").into()),
            (_, None) => return self.kernel_name.as_deref().map(|name| name.to_lowercase().into()),
        };
        Some(format!("{name}{version}").into())
    }

    /// Its family as people call it.
    pub fn family_name(&self) -> Option<Cow<'static, str>> {
        self.family.map(family_name)
    }

    /// Its type as people call it.
    pub fn kind_name(&self) -> Option<&'static str> {
        Some(match self.kind? {
            SOCK_STREAM => "stream",
            SOCK_DGRAM => "dgram",
            SOCK_RAW => "raw",
            4 => "rdm",
            5 => "seqpacket",
            6 => "dccp",
            10 => "packet",
            _ => return None,
        })
    }

    /// Its state. What TCP calls closed is what others are when they are connected to nobody.
    pub fn state_name(&self) -> Option<&'static str> {
        let is_tcp =
            matches!(self.protocol, Some(IPPROTO_TCP | IPPROTO_MPTCP)) && self.is_internet();
        Some(match self.state? {
            ESTABLISHED => "ESTABLISHED",
            2 => "SYN_SENT",
            3 => "SYN_RECV",
            4 => "FIN_WAIT1",
            5 => "FIN_WAIT2",
            6 => "TIME_WAIT",
            CLOSE if is_tcp => "CLOSE",
            CLOSE => "UNCONNECTED",
            8 => "CLOSE_WAIT",
            9 => "LAST_ACK",
            LISTEN => "LISTEN",
            11 => "CLOSING",
            12 => "NEW_SYN_RECV",
            13 => "CLOSE", // Bound and not listening, as sock_diag has it.
            _ => return None,
        })
    }

    /// Whether others can reach it without being asked.
    pub fn is_listening(&self) -> bool {
        let is_udp = matches!(self.protocol, Some(IPPROTO_UDP | IPPROTO_UDPLITE))
            && self.is_internet()
            && self.kind != Some(SOCK_RAW);
        let is_bound = self.local.is_some_and(|(_, port)| port != 0);
        match self.state {
            Some(LISTEN) => true,
            Some(state) => is_udp && is_bound && state != ESTABLISHED,
            None => false,
        }
    }

    /// The port that it listens on; Unix sockets have none.
    pub fn listening_port(&self) -> Option<u16> {
        let port = self.local.map(|(_, port)| port).filter(|port| *port != 0);
        port.filter(|_| self.is_listening())
    }

    /// Its path as it is shown: abstract names begin with `@`, as everywhere.
    pub fn path_shown(&self) -> Option<Cow<'_, [u8]>> {
        Some(match self.path.as_deref()? {
            [0, name @ ..] => [b"@", name].concat().into(),
            path => path.into(),
        })
    }

    /// The whole of it in one line: `tcp 10.0.0.1:22 -> 10.0.0.9:50122 ESTABLISHED`.
    pub fn line(&self) -> Vec<u8> {
        let mut line = self.protocol_name().unwrap_or("socket".into()).into_owned().into_bytes();
        if self.family == Some(AF_UNIX)
            && let Some(kind) = self.kind_name()
        {
            line.push(b' ');
            line.extend_from_slice(kind.as_bytes());
        }
        let end = |(address, port): (IpAddr, u16)| match (address, port) {
            (IpAddr::V6(address), port) if port != 0 => format!("[{address}]:{port}"),
            (address, 0) => address.to_string(),
            (address, port) => format!("{address}:{port}"),
        };
        if let Some(local) = self.local {
            line.extend_from_slice(format!(" {}", end(local)).as_bytes());
        }
        if let Some(remote) = self.remote {
            line.extend_from_slice(format!(" -> {}", end(remote)).as_bytes());
        }
        if let Some(path) = self.path_shown() {
            line.push(b' ');
            line.extend_from_slice(&path);
        }
        if let Some(state) = self.state_name() {
            line.extend_from_slice(format!(" {state}").as_bytes());
        }
        line
    }

    fn is_internet(&self) -> bool {
        matches!(self.family, Some(AF_INET | AF_INET6))
    }

    /// A socket of which only the kernel's name of its protocol is known.
    pub(super) fn named(inode: u64, name: &str) -> Socket {
        let (base, family) = match name.strip_suffix("v6") {
            Some(base) => (base, Some(AF_INET6)),
            None => (name, Some(AF_INET)),
        };
        let (family, kind, protocol) = match base {
            "TCP" => (family, Some(SOCK_STREAM), Some(IPPROTO_TCP)),
            "UDP" => (family, Some(SOCK_DGRAM), Some(IPPROTO_UDP)),
            "UDP-Lite" | "UDPLITE" => (family, Some(SOCK_DGRAM), Some(IPPROTO_UDPLITE)),
            "MPTCP" => (family, Some(SOCK_STREAM), Some(IPPROTO_MPTCP)),
            "SCTP" => (family, None, Some(IPPROTO_SCTP)),
            "RAW" => (family, Some(SOCK_RAW), None),
            "PING" if family == Some(AF_INET6) => (family, Some(SOCK_DGRAM), Some(IPPROTO_ICMPV6)),
            "PING" => (family, Some(SOCK_DGRAM), Some(IPPROTO_ICMP)),
            "UNIX-STREAM" => (Some(AF_UNIX), Some(SOCK_STREAM), Some(0)),
            "UNIX" => (Some(AF_UNIX), None, Some(0)),
            "NETLINK" => (Some(16), None, None),
            "PACKET" => (Some(17), None, None),
            "AF_VSOCK" | "VSOCK" => (Some(40), None, None),
            "XDP" => (Some(44), None, None),
            "ALG" => (Some(38), None, None),
            _ => (None, None, None),
        };
        Socket {
            inode,
            family,
            kind,
            protocol,
            kernel_name: Some(name.into()),
            ..Socket::default()
        }
    }
}

/// `AF_*` of `include/linux/socket.h`.
fn family_name(family: u16) -> Cow<'static, str> {
    let name = match family {
        AF_UNIX => "unix",
        AF_INET => "inet",
        AF_INET6 => "inet6",
        15 => "key",
        16 => "netlink",
        17 => "packet",
        21 => "rds",
        24 => "pppox",
        29 => "can",
        30 => "tipc",
        31 => "bluetooth",
        38 => "alg",
        40 => "vsock",
        41 => "kcm",
        42 => "qipcrtr",
        43 => "smc",
        44 => "xdp",
        45 => "mctp",
        other => return other.to_string().into(),
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(family: u16, kind: u16, protocol: u16, state: u8) -> Socket {
        Socket {
            family: Some(family),
            kind: Some(kind),
            protocol: Some(protocol),
            state: Some(state),
            ..Socket::default()
        }
    }

    #[test]
    fn names_of_sockets() {
        let cases = [
            (socket(2, 1, 6, 10), "tcp stream LISTEN"),
            (socket(10, 1, 6, 7), "tcp6 stream CLOSE"),
            (socket(2, 2, 17, 7), "udp dgram UNCONNECTED"),
            (socket(10, 2, 17, 1), "udp6 dgram ESTABLISHED"),
            (socket(10, 3, 58, 7), "raw6 raw UNCONNECTED"),
            (socket(2, 2, 1, 7), "icmp dgram UNCONNECTED"),
            (socket(2, 1, 262, 10), "mptcp stream LISTEN"),
            (socket(2, 2, 250, 7), "ip-250 dgram UNCONNECTED"),
            (socket(1, 5, 0, 1), "unix seqpacket ESTABLISHED"),
            (socket(16, 3, 15, 7), "netlink raw UNCONNECTED"),
            (socket(99, 3, 0, 1), "99 raw ESTABLISHED"),
        ];
        for (socket, want) in cases {
            let name = socket.protocol_name().expect("a name");
            let kind = socket.kind_name().expect("a type");
            let state = socket.state_name().expect("a state");
            assert_eq!(format!("{name} {kind} {state}"), want);
        }
        let named = |name: &str| Socket::named(7, name).protocol_name().map(Cow::into_owned);
        let cases = [
            ("TCP", Some("tcp")),
            ("TCPv6", Some("tcp6")),
            ("RAWv6", Some("raw6")),
            ("UNIX-STREAM", Some("unix")),
            ("PINGv6", Some("icmp6")),
            ("NETLINK", Some("netlink")),
            ("Bluetooth", Some("bluetooth")),
        ];
        for (name, want) in cases {
            assert_eq!(named(name).as_deref(), want, "for {name}");
        }
    }

    #[test]
    fn who_listens() {
        let any: IpAddr = [0, 0, 0, 0].into();
        let there: IpAddr = [10, 0, 0, 9].into();
        let cases = [
            (socket(2, 1, 6, 10), (any, 22), (any, 0), true, Some(22)),
            (socket(2, 1, 6, 1), (there, 22), (there, 5), false, None),
            (socket(2, 2, 17, 7), (any, 53), (any, 0), true, Some(53)),
            (socket(2, 2, 17, 7), (any, 0), (any, 0), false, None),
            (socket(2, 2, 17, 1), (there, 53), (there, 5), false, None),
            (socket(2, 3, 17, 7), (any, 17), (any, 0), false, None),
        ];
        for (mut socket, local, remote, is_listening, port) in cases {
            socket.set_addresses(local, remote);
            assert_eq!(socket.is_listening(), is_listening, "for {socket:?}");
            assert_eq!(socket.listening_port(), port, "for {socket:?}");
        }
    }

    #[test]
    fn addresses_that_are_none_are_absent() {
        let any: IpAddr = [0; 16].into();
        let here: IpAddr = [127, 0, 0, 1].into();
        let mut tcp = socket(10, 1, 6, 7);
        tcp.set_addresses((any, 0), (any, 0));
        assert_eq!((tcp.local, tcp.remote), (None, None));
        tcp.set_addresses((any, 80), (any, 0));
        assert_eq!((tcp.local, tcp.remote), (Some((any, 80)), None));
        let mut raw = socket(2, 3, 1, 7);
        raw.set_addresses((here, 1), ([0; 4].into(), 0));
        assert_eq!((raw.local, raw.remote), (Some((here, 0)), None));
    }

    #[test]
    fn paths_are_bytes() {
        let shown = |path: &[u8]| {
            let mut socket = socket(1, 1, 0, 10);
            socket.set_path(path);
            socket.path_shown().map(Cow::into_owned)
        };
        let cases: [(&[u8], Option<&[u8]>); 5] = [
            (b"/run/x.sock\0", Some(b"/run/x.sock")),
            (b"\0abstract\0with nul", Some(b"@abstract\0with nul")),
            (b"\0", Some(b"@")),
            (b"\xff\n\x1b[31m\0", Some(b"\xff\n\x1b[31m")),
            (b"", None),
        ];
        for (path, want) in cases {
            assert_eq!(shown(path).as_deref(), want, "for {path:?}");
        }
    }

    #[test]
    fn lines() {
        let mut tcp = socket(10, 1, 6, 1);
        let end = |last: u8| {
            let mut address = [0; 16];
            address[15] = last;
            IpAddr::from(address)
        };
        tcp.set_addresses((end(1), 22), (end(2), 50_122));
        assert_eq!(tcp.line(), b"tcp6 [::1]:22 -> [::2]:50122 ESTABLISHED");
        let mut unix = socket(1, 2, 0, 7);
        unix.set_path(b"\0a\nb");
        assert_eq!(unix.line(), b"unix dgram @a\nb UNCONNECTED");
        assert_eq!(Socket::default().line(), b"socket");
    }
}
