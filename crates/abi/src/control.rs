//! What a program and its node say to each other.
//!
//! One message a packet (`SOCK_SEQPACKET`), in postcard, at most [`PACKET_BYTES_MAX`]; descriptors travel
//! beside it, and each message says which. The node is asked for connections and then steps aside: no
//! call passes here. A message that cannot be read ends the connection with the program, not the node.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::call::{
    Cause, GrantId, Hop, InstanceId, MethodPattern, Peer, Reentrancy, ServiceName, Who,
};
use crate::names::{ClusterName, HostId};

/// The version of these messages.
pub const VERSION: u16 = 1;

/// Name of the node's socket in its run directory.
pub const SOCKET_NAME: &str = "middlecon.sock";

/// Largest packet: certificates of a program are the largest, with about 4 KiB.
pub const PACKET_BYTES_MAX: usize = 32 * 1024;

/// Most descriptors beside a packet.
pub const PACKET_FDS_MAX: usize = 4;

/// Most questions of a program (open, certificate) that the node has not answered.
pub const REQUESTS_MAX: usize = 1024;

/// Most services that one program serves.
pub const SERVED_MAX: usize = 64;

/// Most services that one program watches.
pub const WATCHED_MAX: usize = 64;

/// Why a packet is no message.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Above [`PACKET_BYTES_MAX`].
    #[error("a packet has at most {PACKET_BYTES_MAX} bytes, and this has {0}")]
    Long(usize),
    /// No message of this version.
    #[error("the packet is no message that this version knows")]
    Malformed(#[source] postcard::Error),
    /// Bytes after the message.
    #[error("{0} bytes follow the message in its packet")]
    Rest(usize),
}

/// The bytes of a message.
///
/// # Errors
/// It is longer than a packet.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ControlError> {
    let bytes = postcard::to_stdvec(message).map_err(ControlError::Malformed)?;
    if bytes.len() > PACKET_BYTES_MAX { Err(ControlError::Long(bytes.len())) } else { Ok(bytes) }
}

/// Reads a message, all of it.
///
/// # Errors
/// The packet is longer than one, is no message, or holds more than one.
pub fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, ControlError> {
    if packet.len() > PACKET_BYTES_MAX {
        return Err(ControlError::Long(packet.len()));
    }
    let (message, rest) = postcard::take_from_bytes(packet).map_err(ControlError::Malformed)?;
    if rest.is_empty() { Ok(message) } else { Err(ControlError::Rest(rest.len())) }
}

/// A program's question, by a number of its own; answers carry it.
pub type Request = u64;

/// A connection of a program: its index in the notice page. Its node gives it, and gives it again only
/// after [`ToNode::Closed`].
pub type Connection = u32;

/// What a program says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToNode {
    /// The first message. Descriptor: the program page.
    Hello {
        /// [`VERSION`].
        version: u16,
    },
    /// Wants a connection to a service.
    Open(Open),
    /// Is ready to serve.
    Serve(Serve),
    /// Takes no new connections for this instance; those that are stay.
    Drain {
        /// Which.
        instance: InstanceId,
    },
    /// Has ended to serve this instance.
    Ended {
        /// Which.
        instance: InstanceId,
    },
    /// Wants a certificate for TLS with programs of other hosts.
    Certificate {
        /// Its number.
        request: Request,
        /// The instance it is for; nothing for one in the name of its user.
        instance: Option<InstanceId>,
    },
    /// Wants to know of changes to a service, until it says [`ToNode::Unwatch`].
    Watch {
        /// Its number; every [`FromNode::Service`] carries it.
        request: Request,
        /// Which.
        service: ServiceName,
    },
    /// Wants to know no more.
    Unwatch {
        /// The number of the watch.
        request: Request,
    },
    /// No longer has this connection, so its index is free.
    Closed {
        /// Which.
        connection: Connection,
    },
    /// Has had this connection since before the node started. Descriptor: a duplicate of it. The node
    /// takes the index as it is, and finds the other end by the grant.
    Resume(Resume),
}

/// A question for a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Its number.
    pub request: Request,
    /// Which service.
    pub service: ServiceName,
    /// How long the answer is waited for.
    pub budget_ms: u64,
    /// The instances that the call which wants this came through: none of them is woken for it in vain.
    pub chain: Vec<Hop>,
    /// The instance that asks; nothing for a program that asks as its user.
    pub from: Option<InstanceId>,
    /// Whether it can map a ring.
    pub ring: bool,
    /// Whether it waits for a place, within its budget, where all are taken. Else that is BUSY.
    pub wait: bool,
}

/// A server that is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {
    /// Its number.
    pub request: Request,
    /// Which service.
    pub service: ServiceName,
    /// The instance that it was before its node started anew.
    pub resumes: Option<Serving>,
    /// Handlers that run at once, beside those that are reserved for each hop.
    pub slots: u16,
    /// Calls that may wait for a slot.
    pub credit: u16,
    /// Calls that one connection may carry at once: 1 where a thread serves each connection, at most
    /// [`crate::call::CALLS_IN_FLIGHT_MAX`]. Its callers are told.
    pub concurrent: u16,
    /// What it does with a call that came through it.
    pub reentrancy: Reentrancy,
    /// Whether it can map rings.
    pub ring: bool,
}

/// Who a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// Which instance.
    pub instance: InstanceId,
    /// Its incarnation among those of its service on this host; calls to an older one are STALE.
    pub incarnation: u32,
}

/// A connection that outlived a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Its index.
    pub connection: Connection,
    /// Its id, the same at both ends.
    pub grant: GrantId,
    /// Which end this is.
    pub end: End,
    /// The service and the callee at its end.
    pub service: ServiceName,
    /// The callee's instance.
    pub instance: InstanceId,
    /// Who is at the other end.
    pub peer: Peer,
    /// How it is carried.
    pub carrier: Carrier,
    /// A callee with a caller on another host: where receipts stand in the program page.
    pub receipts: Option<u16>,
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Calls go out here.
    Caller,
    /// Calls come in here.
    Callee,
}

/// What carries frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carrier {
    /// A `SOCK_SEQPACKET` pair on this host; each side first passes its connection page. With a ring
    /// the frames travel there and the socket is their doorbell; else each frame is a packet.
    Local {
        /// Whether there is one.
        ring: bool,
    },
    /// A byte stream to the other program, on which both speak TLS 1.3.
    Tls,
    /// A byte stream through nodes, which keep others out: frames go as they are.
    Spliced,
}

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNode {
    /// The answer to a hello. Descriptor: the notice page.
    Welcome {
        /// The cluster; nothing on a host that is in none.
        cluster: Option<ClusterName>,
        /// This host.
        host: HostId,
        /// As whom the program calls where it does not serve.
        who: Who,
    },
    /// A server is in the directory.
    Serving {
        /// Of which question.
        request: Request,
        /// Who it is now.
        serving: Serving,
    },
    /// A connection. Descriptor: its socket.
    Granted(Granted),
    /// A caller's connection, to a server. Descriptor: its socket.
    Incoming(Incoming),
    /// No.
    Refused {
        /// Of which question.
        request: Request,
        /// Why. For an open: the call was not executed.
        cause: Cause,
        /// What happened and what to do, for people.
        message: String,
        /// When trying again is worth it.
        retry_after_ms: Option<u32>,
        /// For [`Cause::Cycle`]: the path.
        path: Vec<Hop>,
    },
    /// A certificate for TLS with programs of other hosts.
    Certificate {
        /// Of which question.
        request: Request,
        /// What it is.
        certificate: Certificate,
    },
    /// Hosts that are no longer believed, for those that have a certificate; complete each time.
    Evicted {
        /// Their public keys: of each the SHA-256 of its `SubjectPublicKeyInfo`.
        serials: Vec<Vec<u8>>,
    },
    /// How a watched service is now.
    Service {
        /// Of which watch.
        request: Request,
        /// How it is.
        state: ServiceState,
    },
    /// The node ends on purpose; the program connects again when the next one is there.
    Leaving,
}

/// A connection to a callee.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Of which question.
    pub request: Request,
    /// Its index in the notice page.
    pub connection: Connection,
    /// Its id, the same at both ends.
    pub grant: GrantId,
    /// Who answers there.
    pub serving: Serving,
    /// As whom.
    pub peer: Peer,
    /// How it is carried.
    pub carrier: Carrier,
    /// Which methods may be called.
    pub methods: Vec<MethodPattern>,
    /// What the callee does with calls that came through it.
    pub reentrancy: Reentrancy,
    /// Calls that may be in flight on this connection at once, as the callee said.
    pub concurrent: u16,
}

/// A connection from a caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// Its index in the notice page.
    pub connection: Connection,
    /// Its id, the same at both ends.
    pub grant: GrantId,
    /// Which of the program's instances is called.
    pub instance: InstanceId,
    /// Who calls.
    pub peer: Peer,
    /// How it is carried.
    pub carrier: Carrier,
    /// Which methods may be called.
    pub methods: Vec<MethodPattern>,
    /// With a caller on another host: where in the program page its receipts go.
    pub receipts: Option<u16>,
}

/// What a program needs for TLS with programs of other hosts.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Its own certificate, then its host's, in DER.
    pub chain: Vec<Vec<u8>>,
    /// Its key (PKCS #8), in DER.
    pub key: Vec<u8>,
    /// The certificate of the cluster's authority, in DER.
    pub authority: Vec<u8>,
    /// Until when it is good, in milliseconds since 1970. Ask again at half of the time.
    pub not_after_ms: u64,
    /// The public keys of hosts that are not believed, as [`FromNode::Evicted`] has them.
    pub evicted: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Certificate {
    /// All but the key: what is printed ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("not_after_ms", &self.not_after_ms)
            .finish_non_exhaustive()
    }
}

/// How a service is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// Instances that answer, on all hosts that are known.
    pub ready: u32,
    /// Instances that would answer after a wake-up.
    pub asleep: u32,
    /// Hosts that could not be asked; the numbers above are without them.
    pub silent_hosts: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_travel_and_cut_or_longer_ones_are_refused() {
        let open = ToNode::Open(Open {
            request: 7,
            service: "kv".parse().expect("a name"),
            budget_ms: 1_000,
            chain: vec![Hop { instance: InstanceId(1), service: "a".parse().expect("a name") }],
            from: None,
            ring: true,
            wait: false,
        });
        let mut bytes = encode(&open).expect("short");
        assert_eq!(decode::<ToNode>(&bytes).expect("whole"), open);
        for cut in 0..bytes.len() {
            assert!(matches!(decode::<ToNode>(&bytes[..cut]), Err(ControlError::Malformed(_))));
        }
        bytes.push(0);
        assert!(matches!(decode::<ToNode>(&bytes), Err(ControlError::Rest(1))));
        let long = vec![0; PACKET_BYTES_MAX + 1];
        assert!(matches!(decode::<ToNode>(&long), Err(ControlError::Long(_))));
    }

    #[test]
    fn a_name_that_is_none_does_not_get_in() {
        let good = ToNode::Watch { request: 1, service: "kv".parse().expect("a name") };
        let mut bytes = encode(&good).expect("short");
        *bytes.last_mut().expect("a name") = b'/';
        assert!(matches!(decode::<ToNode>(&bytes), Err(ControlError::Malformed(_))));
    }

    #[test]
    fn a_key_is_not_printed() {
        let certificate = Certificate {
            chain: vec![],
            key: b"secret".to_vec(),
            authority: vec![],
            not_after_ms: 1,
            evicted: vec![],
        };
        assert_eq!(format!("{certificate:?}"), "Certificate { not_after_ms: 1, .. }");
    }

    proptest! {
        #[test]
        fn arbitrary_packets_never_panic(packet: Vec<u8>) {
            let _ = decode::<ToNode>(&packet);
            let _ = decode::<FromNode>(&packet);
        }
    }
}
