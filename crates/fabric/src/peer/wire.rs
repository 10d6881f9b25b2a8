//! What nodes say to each other over a peer link. Plain values.
//!
//! A frame is its length in four bytes, little-endian, then [`Frame`] as postcard writes it. Every question
//! has exactly one answer, or its link ends.

use kumo_abi::HostId;
use serde::{Deserialize, Serialize};

use super::tickets::Ticket;

/// Largest frame, without its length: what nodes tell each other of a call is far smaller.
pub(super) const FRAME_BYTES_MAX: usize = 1 << 20;

/// Largest payload: what is left in a frame beside names.
pub const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;

/// Gateways that a question passes at most: one of either data centre, and another of the second where the
/// first has no link with the host that is meant.
pub(super) const HOPS_MAX: u8 = 3;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Frame {
    /// A question.
    Ask {
        /// Of this link and direction; not used again.
        id: u64,
        /// How long its answer is waited for.
        budget_ms: u32,
        /// Between whom.
        way: Way,
        /// What is asked.
        what: What,
    },
    /// The answer to a question.
    Answer {
        /// To which.
        id: u64,
        /// What came of it.
        answer: Result<Vec<u8>, Failure>,
    },
    /// Something that wants no answer.
    Note {
        /// Between whom.
        way: Way,
        /// What is said.
        note: Vec<u8>,
    },
}

/// Between whom something is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Way {
    /// The two ends of the link.
    Here,
    /// To be passed on, by a gateway.
    On {
        /// To whom.
        to: HostId,
        /// From whom, where that is not the other end of the link. Believed of gateways only.
        from: Option<HostId>,
        /// How many gateways it may still pass.
        hops: u8,
    },
    /// Passed on by the gateway at the other end; this host is meant.
    For {
        /// From whom.
        from: HostId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum What {
    /// Whatever the nodes want; answered by who was given for that.
    Bytes(Vec<u8>),
    /// Whether it is there.
    Beat,
    /// A way for bytes to who waits for this ticket. The answer is a ticket of the gateway that is asked.
    Splice(Ticket),
    /// To dial the gateway that asks with the ticket `back`, for who waits for `ticket`.
    CallBack {
        /// Of the host that is asked.
        ticket: Ticket,
        /// Of the gateway that asks.
        back: Ticket,
    },
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Failure {
    /// There is no way from here; it was not passed on.
    NoRoute(String),
    /// It was passed on, and the link ended before the answer came.
    Lost,
    /// It was passed on, and no answer came in time.
    Late,
    /// The host that was meant does not answer this.
    Refused(String),
}

/// The frame with its length; `None` where it is too large.
pub(super) fn encode(frame: &Frame) -> Option<Vec<u8>> {
    let bytes = postcard::to_extend(frame, vec![0; 4]).ok()?;
    let len_bytes = bytes.len() - 4;
    if len_bytes > FRAME_BYTES_MAX {
        return None;
    }
    let mut bytes = bytes;
    bytes[..4].copy_from_slice(&u32::try_from(len_bytes).ok()?.to_le_bytes());
    Some(bytes)
}

/// The frame that these bytes are, without the length; `None` if they are none, or more than one.
pub(super) fn decode(bytes: &[u8]) -> Option<Frame> {
    let (frame, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> HostId {
        text.parse().expect("a host")
    }

    fn frames() -> Vec<Frame> {
        let on = Way::On { to: host("osaka/b"), from: Some(host("tokyo/a")), hops: HOPS_MAX };
        let ticket = Ticket::from_bytes([7; 32]);
        vec![
            Frame::Ask { id: u64::MAX, budget_ms: 5, way: Way::Here, what: What::Beat },
            Frame::Ask { id: 1, budget_ms: 0, way: on.clone(), what: What::Splice(ticket) },
            Frame::Ask {
                id: 2,
                budget_ms: u32::MAX,
                way: Way::For { from: host("tokyo/a") },
                what: What::CallBack { ticket, back: Ticket::from_bytes([8; 32]) },
            },
            Frame::Answer { id: 3, answer: Ok(vec![1, 2, 3]) },
            Frame::Answer { id: 4, answer: Err(Failure::NoRoute("none".to_owned())) },
            Frame::Note { way: on, note: vec![0; 300] },
        ]
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        for frame in frames() {
            let bytes = encode(&frame).expect("it is small");
            let len_bytes = u32::from_le_bytes(bytes[..4].try_into().expect("four"));
            assert_eq!(len_bytes as usize, bytes.len() - 4);
            assert_eq!(decode(&bytes[4..]).as_ref(), Some(&frame));
        }
    }

    #[test]
    fn what_is_cut_off_longer_or_nonsense_is_no_frame() {
        for frame in frames() {
            let bytes = encode(&frame).expect("it is small");
            for len_bytes in 4..bytes.len() {
                assert_eq!(decode(&bytes[4..len_bytes]), None, "{len_bytes} bytes of {frame:?}");
            }
            assert_eq!(decode(&[&bytes[4..], &[0]].concat()), None);
        }
        let named = Frame::Note { way: Way::For { from: host("tokyo/a") }, note: Vec::new() };
        let mut bytes = encode(&named).expect("it is small");
        let name_at = bytes.iter().position(|byte| *byte == b't').expect("a name");
        bytes[name_at] = b'T';
        assert_eq!(decode(&bytes[4..]), None, "a name that is none");
    }

    #[test]
    fn frames_have_a_limit() {
        let note = |len| Frame::Note { way: Way::Here, note: vec![0; len] };
        assert!(encode(&note(PAYLOAD_BYTES_MAX)).is_some());
        assert_eq!(encode(&note(FRAME_BYTES_MAX)), None);
    }
}
