//! The columns of open sockets: what `/v2/sockets` and `kumo sockets` filter and show.
//!
//! A row is a descriptor: a socket that two processes hold has two rows, with the same `inode`. Sockets
//! that no process holds, such as those of connections in `TIME_WAIT`, have none.

use crate::of_process::of_process;

of_process! {
    /// Open sockets.
    SocketColumn, SOCKETS "sockets";
    first { Dc Host Id Pid Comm }
    own {
        Fd "fd" [] Int None "FD" "Number of the descriptor";
        Protocol "protocol" ["proto", "netid"] Text None "PROTO" "tcp, tcp6, udp, udp6, unix, raw, raw6, icmp, icmp6, sctp, mptcp, netlink, packet, vsock and their like";
        Family "family" [] Text None "FAMILY" "Address family: inet, inet6, unix, netlink, packet, vsock; its number where it has no name here";
        Type "type" ["socktype"] Text None "TYPE" "stream, dgram, raw, seqpacket, rdm";
        State "state" ["st"] Text None "STATE" "LISTEN, ESTABLISHED and the others by the kernel's names; UNCONNECTED for what is not TCP and has no other end";
        Listening "listening" ["listen"] Bool None "LISTEN" "Whether others can reach it without being asked: TCP, SCTP and Unix that listen, UDP that is bound and not connected";
        LocalAddress "local_address" ["laddr", "local"] Text None "LOCAL ADDRESS" "Address that it is bound to; 0.0.0.0 and :: are all of the host's";
        LocalPort "local_port" ["lport", "port", "sport"] Int None "LPORT" "Port that it is bound to; null where it has none";
        RemoteAddress "remote_address" ["raddr", "remote", "peer"] Text None "PEER ADDRESS" "Address of the other end; null without one";
        RemotePort "remote_port" ["rport", "dport"] Int None "RPORT" "Port of the other end; null without one";
        Path "path" [] Text None "PATH" "Name of a Unix socket; abstract ones begin with @";
        PeerInode "peer_inode" [] Int None "PEER" "Inode of the socket at the other end of a Unix socket; null without one";
        Netns "netns" ["net_namespace", "ns_net"] Int None "NETNS" "Network namespace that it is in (inode), which need not be that of the process";
        Inode "inode" ["socket", "ino"] Int None "INODE" "Number of the socket; the same in all processes that hold it";
        Uid "uid" [] Int None "UID" "User id that owns the socket";
        User "user" [] Text None "USER" "Name of that user; the number where it has no name";
        RecvQueue "recv_queue" ["recvq", "recv_q"] Int None "RECV-Q" "Bytes that wait to be read; of a listening socket, connections that wait to be accepted";
        SendQueue "send_queue" ["sendq", "send_q"] Int None "SEND-Q" "Bytes that are not acknowledged, or not yet sent; of a listening socket, how many connections may wait";
    }
    more {
        Ppid Cmdline Cgroup Container ContainerRuntime ContainerId Pod Unit Slice
    }
}

/// The columns of an answer when a query names none.
pub const SOCKETS_DEFAULT: &str = "protocol,state,recv_queue,send_queue,local_address,local_port,\
    remote_address,remote_port,path,user,pid,fd,comm,netns,inode";
