//! The one frame of all carriers: a header of 64 bytes, extensions, a body.
//!
//! Pure functions over bytes. A peer may be hostile: every length is checked before it is used, and
//! what is not known (a version, a type, a flag, an extension) is refused by name, never skipped. How
//! many bytes arrive at once, and from where, is the business of a carrier.
//!
//! ```text
//!  0 len u32      ext and body      16 method u32 (or status)   48 parent u64
//!  4 ver u8                         20 prio u8                  56 incarnation u32
//!  5 type u8                        21 hop u8                   60 crc32c u32
//!  6 flags u16                      22 ext_len u16
//!  8 call_id u64                    24 budget_ns u64            64 ext_len bytes: extensions
//!                                   32 root_id [16]             .. body
//! ```

use crate::call::{
    BUDGET_NS_MAX, HOPS_MAX, Hop, InstanceId, MESSAGE_BYTES_MAX, RootId, ServiceName, method_number,
};

/// Bytes of a header: one cache line.
pub const HEADER_BYTES: usize = 64;

/// The version that this code speaks.
pub const VERSION: u8 = 1;

/// Most bytes of extensions: a full chain (16 names), a user, baggage, and room for a method.
pub const EXT_BYTES_MAX: usize = 4 * 1024;

/// Largest body of one frame. What is larger is lent as memory or cut into chunks, so that it never
/// holds up the frames of other calls, and a ring needs room for a few frames only.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Largest frame.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + EXT_BYTES_MAX + BODY_BYTES_MAX;

/// Chunks of a stream that its callee may send before its caller has taken any, and at most ahead of it
/// later: half a megabyte of memory for each stream that is read slowly.
pub const STREAM_CREDIT: u32 = 8;

/// Longest text that says on whose behalf a call is made.
pub const ON_BEHALF_BYTES_MAX: usize = 255;

/// Most baggage (W3C) that travels with a call.
pub const BAGGAGE_BYTES_MAX: usize = 1024;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The first of each side: what it is able to take.
    Hello = 1,
    /// A call.
    Call = 2,
    /// The handler takes the call: from here on its outcome may be unknown.
    Received = 3,
    /// The handler's reply.
    Reply = 4,
    /// No reply: the callee's error, or why it did not run.
    Error = 5,
    /// The caller no longer wants it.
    Cancel = 6,
    /// A message without a reply that never blocks; a later one of the same method replaces it.
    Pulse = 7,
    /// A word of the handler about how far it is.
    Progress = 8,
    /// A piece of a large body or of a stream.
    Chunk = 9,
    /// So many more chunks may be sent.
    Credit = 10,
    /// Are you there?
    Ping = 11,
    /// I am.
    Pong = 12,
    /// No new calls on this connection; those in flight are finished.
    Goaway = 13,
}

/// Every kind, by number.
pub const KINDS: [Kind; 13] = [
    Kind::Hello,
    Kind::Call,
    Kind::Received,
    Kind::Reply,
    Kind::Error,
    Kind::Cancel,
    Kind::Pulse,
    Kind::Progress,
    Kind::Chunk,
    Kind::Credit,
    Kind::Ping,
    Kind::Pong,
    Kind::Goaway,
];

impl Kind {
    fn from_number(number: u8) -> Option<Kind> {
        KINDS.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Which flags a frame of this kind may carry.
    pub fn flags(self) -> u16 {
        match self {
            Kind::Call | Kind::Reply => flags::LENT | flags::PARTS | flags::STREAM | flags::POOLED,
            Kind::Chunk => flags::LAST,
            _ => 0,
        }
    }
}

/// What may be said of a frame.
pub mod flags {
    /// The body is in sealed memory that is passed beside the frame; what stands in the frame is its
    /// length, a u64.
    pub const LENT: u16 = 1;
    /// The body follows in chunks; what stands in the frame is its length, a u64.
    pub const PARTS: u16 = 2;
    /// CALL: the caller takes a stream. REPLY: a stream follows in chunks.
    pub const STREAM: u16 = 4;
    /// The last chunk.
    pub const LAST: u16 = 8;
    /// The body is in a slot of the sender's pool; what stands in the frame is a [`super::Pooled`].
    pub const POOLED: u16 = 16;
}

/// Slots of each side of a connection on one host, for large bodies: memory that is passed once and used
/// again.
pub const POOL_SLOTS: usize = 4;

/// Largest body that goes through a slot, and largest slot: a connection keeps 16 MiB a direction at most.
/// What is larger, or finds no slot, is sealed in memory of its own.
pub const POOL_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of a [`Pooled`].
pub const POOLED_BYTES: usize = 32;

/// Where the body of a frame stands in the sender's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooled {
    /// Bytes of the body.
    pub len_bytes: u64,
    /// Which slot, below [`POOL_SLOTS`].
    pub slot: u64,
    /// The how-manieth use of this slot it is, what who has copied the body writes into its page.
    pub turn: u64,
    /// Bytes of the slot where its memory comes beside this frame; 0 where it came before.
    pub slot_bytes: u64,
}

impl Pooled {
    /// Its bytes.
    pub fn encode(&self) -> [u8; POOLED_BYTES] {
        let mut bytes = [0; POOLED_BYTES];
        let words = [self.len_bytes, self.slot, self.turn, self.slot_bytes];
        for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *chunk = word.to_le_bytes();
        }
        bytes
    }

    /// Reads one; its numbers are within the limits.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Pooled, FrameError> {
        let bytes: &[u8; POOLED_BYTES] =
            bytes.try_into().map_err(|_| FrameError::Short("place of a body"))?;
        let [len_bytes, slot, turn, slot_bytes] =
            std::array::from_fn(|at| u64::from_le_bytes(bytes.as_chunks::<8>().0[at]));
        let max = POOL_BODY_BYTES_MAX as u64;
        for (what, value, max) in [
            ("body in a slot", len_bytes, max),
            ("slot", slot, POOL_SLOTS as u64 - 1),
            ("size of a slot", slot_bytes, max),
        ] {
            if value > max {
                return Err(FrameError::Range { what, value, max });
            }
        }
        Ok(Pooled { len_bytes, slot, turn, slot_bytes })
    }
}

/// Why bytes are no frame. The connection cannot be used any more: where the next begins is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A version that this code does not speak.
    #[error("the frame has version {0}, and this program speaks version {VERSION}")]
    Version(u8),
    /// A type that no version we speak has.
    #[error("there is no frame of type {0}")]
    Kind(u8),
    /// A flag that this kind does not have.
    #[error("a frame of type {kind:?} has no flags {flags:#06x}")]
    Flags {
        /// Its kind.
        kind: Kind,
        /// Those that it may not have.
        flags: u16,
    },
    /// A length above what is allowed.
    #[error("a frame's {what} has at most {max} bytes, and this says {len_bytes}")]
    Long {
        /// Of what.
        what: &'static str,
        /// What it says.
        len_bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// Lengths that contradict each other, or less bytes than a length says.
    #[error("the frame's {0} ends before its length says")]
    Short(&'static str),
    /// A checksum that does not fit.
    #[error("the header's checksum does not fit: somebody wrote over the ring")]
    Sum,
    /// A number out of its range.
    #[error("the frame's {what} is {value}, and at most {max} is allowed")]
    Range {
        /// Of what.
        what: &'static str,
        /// What it says.
        value: u64,
        /// What is allowed.
        max: u64,
    },
    /// A call without an id.
    #[error("a frame of type {0:?} needs a call id, and this has none")]
    NoCall(Kind),
    /// An extension that no version we speak has.
    #[error("there is no extension of type {0}")]
    Extension(u8),
    /// An extension that is there twice.
    #[error("the extension {0} is there twice")]
    Twice(&'static str),
    /// An extension that is not what it says.
    #[error("the extension {0} is malformed")]
    Malformed(&'static str),
}

/// The header of a frame, in plain values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes after the header: extensions and body.
    pub len_bytes: u32,
    /// What it is.
    pub kind: Kind,
    /// Of [`flags`].
    pub flags: u16,
    /// The call it belongs to; 0 for none. Never used again by its caller.
    pub call: u64,
    /// CALL and PULSE: the number of the method. REPLY and ERROR: a [`crate::call::Status`]. CREDIT: how many.
    pub code: u32,
    /// 0 is the least urgent.
    pub priority: u8,
    /// How many calls led here: 1 for a call at the root.
    pub hop: u8,
    /// How many of the bytes are extensions.
    pub ext_len_bytes: u16,
    /// Time that is left, in nanoseconds: relative, for clocks of hosts differ.
    pub budget_ns: u64,
    /// The trace.
    pub root: RootId,
    /// The call that this one is part of; 0 at the root.
    pub parent: u64,
    /// The incarnation that the caller means.
    pub incarnation: u32,
}

impl Header {
    /// A header of this kind for this call, with nothing else.
    pub fn new(kind: Kind, call: u64) -> Header {
        Header {
            len_bytes: 0,
            kind,
            flags: 0,
            call,
            code: 0,
            priority: 0,
            hop: 0,
            ext_len_bytes: 0,
            budget_ns: 0,
            root: RootId::default(),
            parent: 0,
            incarnation: 0,
        }
    }

    /// How many bytes are the body.
    pub fn body_len_bytes(&self) -> usize {
        self.len_bytes as usize - usize::from(self.ext_len_bytes)
    }

    /// How many bytes the whole frame has.
    pub fn frame_len_bytes(&self) -> usize {
        HEADER_BYTES + self.len_bytes as usize
    }

    /// The bytes of a header that travels through a kernel or TLS, which keep them whole: no checksum.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.len_bytes.to_le_bytes());
        bytes[4] = VERSION;
        bytes[5] = self.kind as u8;
        bytes[6..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.call.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.code.to_le_bytes());
        bytes[20] = self.priority;
        bytes[21] = self.hop;
        bytes[22..24].copy_from_slice(&self.ext_len_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.budget_ns.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.root.0);
        bytes[48..56].copy_from_slice(&self.parent.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes
    }

    /// The bytes of a header that travels through a ring, with a checksum of the first 60.
    pub fn encode_summed(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = self.encode();
        let sum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a header. All of its lengths are within the limits and fit each other.
    ///
    /// # Errors
    /// What is wrong with it. Nothing after it can be read: its length is not to be believed.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        let kind = Kind::from_number(bytes[5]);
        let header = Header {
            len_bytes: u32::from_le_bytes(part(bytes, 0)),
            kind: kind.unwrap_or(Kind::Hello),
            flags: u16::from_le_bytes(part(bytes, 6)),
            call: u64::from_le_bytes(part(bytes, 8)),
            code: u32::from_le_bytes(part(bytes, 16)),
            priority: bytes[20],
            hop: bytes[21],
            ext_len_bytes: u16::from_le_bytes(part(bytes, 22)),
            budget_ns: u64::from_le_bytes(part(bytes, 24)),
            root: RootId(part(bytes, 32)),
            parent: u64::from_le_bytes(part(bytes, 48)),
            incarnation: u32::from_le_bytes(part(bytes, 56)),
        };
        let (len_bytes, ext_len_bytes) =
            (header.len_bytes as usize, usize::from(header.ext_len_bytes));
        let unknown_flags = header.flags & !header.kind.flags();
        let long = |what, len_bytes, max| Err(FrameError::Long { what, len_bytes, max });
        let range = |what, value, max| Err(FrameError::Range { what, value, max });
        match kind {
            _ if bytes[4] != VERSION => Err(FrameError::Version(bytes[4])),
            None => Err(FrameError::Kind(bytes[5])),
            Some(kind) if unknown_flags != 0 => {
                Err(FrameError::Flags { kind, flags: unknown_flags })
            }
            _ if ext_len_bytes > EXT_BYTES_MAX => long("extension", ext_len_bytes, EXT_BYTES_MAX),
            _ if ext_len_bytes > len_bytes => Err(FrameError::Short("extension")),
            _ if len_bytes - ext_len_bytes > BODY_BYTES_MAX => {
                long("body", len_bytes - ext_len_bytes, BODY_BYTES_MAX)
            }
            _ if header.hop > HOPS_MAX => range("hop", header.hop.into(), HOPS_MAX.into()),
            _ if header.budget_ns > BUDGET_NS_MAX => {
                range("budget in ns", header.budget_ns, BUDGET_NS_MAX)
            }
            Some(kind) if header.call == 0 && needs_call(kind) => Err(FrameError::NoCall(kind)),
            Some(_) => Ok(header),
        }
    }

    /// As [`Header::decode`], for a header from a ring: its checksum must fit.
    ///
    /// # Errors
    /// [`FrameError::Sum`], before anything else is looked at.
    pub fn decode_summed(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        if crc32c::crc32c(&bytes[..60]) != u32::from_le_bytes(part(bytes, 60)) {
            return Err(FrameError::Sum);
        }
        Header::decode(bytes)
    }
}

fn needs_call(kind: Kind) -> bool {
    !matches!(kind, Kind::Hello | Kind::Pulse | Kind::Ping | Kind::Pong | Kind::Goaway)
}

/// `N` bytes from `at`; both are constants of the layout, within the header.
fn part<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

/// The types of extensions. On the wire: type u8, 0 u8, length u16, value.
mod ext {
    pub(super) const CHAIN: u8 = 1;
    pub(super) const ON_BEHALF: u8 = 2;
    pub(super) const GROUP: u8 = 3;
    pub(super) const BAGGAGE: u8 = 4;
    pub(super) const RETRY_AFTER: u8 = 5;
    pub(super) const METHOD: u8 = 6;
    pub(super) const NAMES: [&str; 7] =
        ["", "CHAIN", "ON_BEHALF", "GROUP", "BAGGAGE", "RETRY_AFTER", "METHOD"];
}

/// A call that is one of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Which group: random.
    pub id: u64,
    /// Which member, from 0.
    pub member: u16,
    /// Of how many.
    pub size: u16,
}

/// The instances a call came through, in the bytes they arrived in: the first is the root's callee.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain<'a> {
    bytes: &'a [u8],
}

impl<'a> Chain<'a> {
    /// Reads a chain.
    ///
    /// # Errors
    /// More than [`HOPS_MAX`] entries, a bad name, bytes left over.
    pub fn decode(bytes: &'a [u8]) -> Result<Chain<'a>, FrameError> {
        let malformed = || FrameError::Malformed(ext::NAMES[usize::from(ext::CHAIN)]);
        let (mut rest, mut hops) = (bytes, 0_u8);
        while !rest.is_empty() {
            let (_, name, after) = hop(rest).ok_or_else(malformed)?;
            let good = name.len() <= crate::call::CALL_NAME_BYTES_MAX
                && name.first().is_some_and(u8::is_ascii_lowercase)
                && name.iter().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-'));
            hops += 1;
            if !good || hops > HOPS_MAX {
                return Err(malformed());
            }
            rest = after;
        }
        Ok(Chain { bytes })
    }

    /// Its bytes, to be sent on.
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Whether a call came through this instance. This is all that a callee needs of a chain.
    pub fn contains(self, instance: InstanceId) -> bool {
        let mut rest = self.bytes;
        while let Some((id, _, after)) = hop(rest) {
            if id == instance {
                return true;
            }
            rest = after;
        }
        false
    }

    /// The hops, in their order.
    pub fn hops(self) -> Vec<Hop> {
        let (mut rest, mut hops) = (self.bytes, Vec::new());
        while let Some((instance, name, after)) = hop(rest) {
            let name = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
            hops.extend(name.map(|service: ServiceName| Hop { instance, service }));
            rest = after;
        }
        hops
    }

    /// Adds a hop to the bytes of a chain.
    pub fn push(chain: &mut Vec<u8>, instance: InstanceId, service: &ServiceName) {
        chain.extend_from_slice(&instance.0.to_le_bytes());
        chain.push(service.as_str().len() as u8);
        chain.extend_from_slice(service.as_str().as_bytes());
    }
}

/// One entry of a chain: id u64, length u8, name; and what follows it.
fn hop(bytes: &[u8]) -> Option<(InstanceId, &[u8], &[u8])> {
    let (id, rest) = bytes.split_first_chunk::<8>()?;
    let (len_bytes, rest) = rest.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*len_bytes))?;
    Some((InstanceId(u64::from_le_bytes(*id)), name, rest))
}

/// The extensions of a frame, borrowed from its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions<'a> {
    /// The name of the method; its number stands in the header.
    pub method: Option<&'a str>,
    /// The instances that the call came through.
    pub chain: Chain<'a>,
    /// On whose behalf the call is made, as its caller says; nobody has checked it.
    pub on_behalf: Option<&'a str>,
    /// The group it is one of.
    pub group: Option<Group>,
    /// W3C baggage.
    pub baggage: Option<&'a [u8]>,
    /// When trying again is worth it.
    pub retry_after_ms: Option<u32>,
}

impl<'a> Extensions<'a> {
    /// Reads the extensions of a frame.
    ///
    /// # Errors
    /// An extension that is not known, is there twice, is too long or is not what it says.
    pub fn decode(mut bytes: &'a [u8]) -> Result<Extensions<'a>, FrameError> {
        let mut extensions = Extensions::default();
        let mut seen = 0_u8;
        while !bytes.is_empty() {
            let (&[kind, zero, low, high], rest) =
                bytes.split_first_chunk::<4>().ok_or(FrameError::Short("extension"))?;
            let name = *ext::NAMES.get(usize::from(kind)).ok_or(FrameError::Extension(kind))?;
            if kind == 0 {
                return Err(FrameError::Extension(kind));
            }
            if seen & (1 << kind) != 0 {
                return Err(FrameError::Twice(name));
            }
            seen |= 1 << kind;
            let len_bytes = usize::from(u16::from_le_bytes([low, high]));
            let (value, rest) =
                rest.split_at_checked(len_bytes).ok_or(FrameError::Short("extension"))?;
            let malformed = || FrameError::Malformed(name);
            if zero != 0 {
                return Err(malformed());
            }
            match kind {
                ext::CHAIN => extensions.chain = Chain::decode(value)?,
                ext::ON_BEHALF => {
                    within(name, value, ON_BEHALF_BYTES_MAX)?;
                    let text = std::str::from_utf8(value).map_err(|_| malformed())?;
                    extensions.on_behalf = Some(text);
                }
                ext::GROUP => {
                    let (id, rest) = value.split_first_chunk().ok_or_else(malformed)?;
                    let &[m0, m1, s0, s1] = rest else { return Err(malformed()) };
                    extensions.group = Some(Group {
                        id: u64::from_le_bytes(*id),
                        member: u16::from_le_bytes([m0, m1]),
                        size: u16::from_le_bytes([s0, s1]),
                    });
                }
                ext::BAGGAGE => {
                    within(name, value, BAGGAGE_BYTES_MAX)?;
                    extensions.baggage = Some(value);
                }
                ext::RETRY_AFTER => {
                    let value = value.try_into().map_err(|_| malformed())?;
                    extensions.retry_after_ms = Some(u32::from_le_bytes(value));
                }
                _ => {
                    within(name, value, crate::call::CALL_NAME_BYTES_MAX)?;
                    let belongs =
                        |c: &u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
                    let good = value.first().is_some_and(u8::is_ascii_lowercase)
                        && value.iter().all(belongs);
                    let text = std::str::from_utf8(value).map_err(|_| malformed())?;
                    extensions.method = Some(text).filter(|_| good);
                    extensions.method.ok_or_else(malformed)?;
                }
            }
            bytes = rest;
        }
        Ok(extensions)
    }

    /// Adds the bytes of the extensions to `out`.
    ///
    /// # Errors
    /// What is above a limit; `out` may hold a part then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let start = out.len();
        let mut put = |kind: u8, value: &[u8], max: usize| {
            within(ext::NAMES[usize::from(kind)], value, max)?;
            let len_bytes = (value.len() as u16).to_le_bytes();
            out.extend_from_slice(&[kind, 0, len_bytes[0], len_bytes[1]]);
            out.extend_from_slice(value);
            Ok(())
        };
        if let Some(method) = self.method {
            put(ext::METHOD, method.as_bytes(), crate::call::CALL_NAME_BYTES_MAX)?;
        }
        if !self.chain.bytes.is_empty() {
            put(ext::CHAIN, self.chain.bytes, EXT_BYTES_MAX)?;
        }
        if let Some(text) = self.on_behalf {
            put(ext::ON_BEHALF, text.as_bytes(), ON_BEHALF_BYTES_MAX)?;
        }
        if let Some(group) = self.group {
            let mut value = [0; 12];
            value[..8].copy_from_slice(&group.id.to_le_bytes());
            value[8..10].copy_from_slice(&group.member.to_le_bytes());
            value[10..].copy_from_slice(&group.size.to_le_bytes());
            put(ext::GROUP, &value, value.len())?;
        }
        if let Some(baggage) = self.baggage {
            put(ext::BAGGAGE, baggage, BAGGAGE_BYTES_MAX)?;
        }
        if let Some(ms) = self.retry_after_ms {
            put(ext::RETRY_AFTER, &ms.to_le_bytes(), 4)?;
        }
        within("extension", &out[start..], EXT_BYTES_MAX)
    }
}

fn within(what: &'static str, value: &[u8], max: usize) -> Result<(), FrameError> {
    match value.len() {
        len_bytes if len_bytes > max => Err(FrameError::Long { what, len_bytes, max }),
        _ => Ok(()),
    }
}

/// Checks that the name of a method in the extensions fits the number in the header.
///
/// # Errors
/// There is no name, or its number is another.
pub fn check_method<'a>(
    header: &Header,
    extensions: &Extensions<'a>,
) -> Result<&'a str, FrameError> {
    let name = ext::NAMES[usize::from(ext::METHOD)];
    extensions
        .method
        .filter(|method| method_number(method) == header.code)
        .ok_or(FrameError::Malformed(name))
}

/// The longest beginning of a message that an error carries, cut between characters.
pub fn message_within(text: &str) -> &str {
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call() -> Header {
        Header { hop: 1, budget_ns: 1_000, root: RootId([7; 16]), ..Header::new(Kind::Call, 42) }
    }

    #[test]
    fn a_header_stands_where_the_design_says() {
        let header = Header {
            len_bytes: 0x0102,
            flags: flags::STREAM,
            code: 0x1122_3344,
            priority: 5,
            ext_len_bytes: 0x0102,
            parent: 9,
            incarnation: 3,
            ..call()
        };
        let bytes = header.encode();
        assert_eq!(&bytes[..8], &[2, 1, 0, 0, 1, 2, 4, 0]);
        assert_eq!((bytes[8], bytes[16], bytes[20], bytes[21]), (42, 0x44, 5, 1));
        assert_eq!((bytes[22], bytes[23], bytes[24], bytes[25]), (2, 1, 0xe8, 3));
        assert_eq!((bytes[32], bytes[47], bytes[48], bytes[56]), (7, 7, 9, 3));
        assert_eq!(&bytes[60..], &[0; 4]);
        assert_eq!(Header::decode(&bytes), Ok(header));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let good = call().encode();
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            bytes
        };
        let mut no_call = good;
        no_call[8] = 0;
        let long_body = Header { len_bytes: BODY_BYTES_MAX as u32 + 1, ..call() }.encode();
        let long_ext = Header { len_bytes: 9_000, ext_len_bytes: 4_097, ..call() }.encode();
        let cases = [
            (with(4, 0), FrameError::Version(0)),
            (with(4, 2), FrameError::Version(2)),
            (with(5, 0), FrameError::Kind(0)),
            (with(5, 14), FrameError::Kind(14)),
            (with(6, 8), FrameError::Flags { kind: Kind::Call, flags: 8 }),
            (with(7, 1), FrameError::Flags { kind: Kind::Call, flags: 256 }),
            (with(21, 17), FrameError::Range { what: "hop", value: 17, max: 16 }),
            (with(22, 1), FrameError::Short("extension")),
            (no_call, FrameError::NoCall(Kind::Call)),
            (long_body, FrameError::Long { what: "body", len_bytes: 65_537, max: 65_536 }),
            (long_ext, FrameError::Long { what: "extension", len_bytes: 4_097, max: 4_096 }),
        ];
        for (bytes, want) in cases {
            assert_eq!(Header::decode(&bytes), Err(want));
        }
        let slow = Header { budget_ns: BUDGET_NS_MAX + 1, ..call() }.encode();
        assert!(matches!(Header::decode(&slow), Err(FrameError::Range { .. })));
    }

    #[test]
    fn a_changed_bit_breaks_the_sum() {
        let good = call().encode_summed();
        assert_eq!(Header::decode_summed(&good), Ok(call()));
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode_summed(&bytes), Err(FrameError::Sum), "bit {bit}");
        }
    }

    #[test]
    fn extensions_travel_and_bad_ones_are_refused() {
        let mut chain = Vec::new();
        for n in 1..=16 {
            Chain::push(&mut chain, InstanceId(n), &format!("s{n}").parse().expect("a name"));
        }
        let full = Extensions {
            method: Some("kv.read"),
            chain: Chain::decode(&chain).expect("16 hops"),
            on_behalf: Some("user"),
            group: Some(Group { id: 1, member: 2, size: 3 }),
            baggage: Some(b"a=b"),
            retry_after_ms: Some(250),
        };
        let mut bytes = Vec::new();
        full.encode(&mut bytes).expect("within the limits");
        assert_eq!(Extensions::decode(&bytes), Ok(full));
        assert!(full.chain.contains(InstanceId(16)) && !full.chain.contains(InstanceId(17)));
        assert_eq!(full.chain.hops()[1].service.as_str(), "s2");
        for cut in 1..bytes.len() {
            // At the end of an extension the rest is simply not there.
            if let Ok(part) = Extensions::decode(&bytes[..cut]) {
                assert_ne!(part, full);
            }
        }
        Chain::push(&mut chain, InstanceId(17), &"s".parse().expect("a name"));
        assert_eq!(Chain::decode(&chain), Err(FrameError::Malformed("CHAIN")));
        let cases: [(&[u8], FrameError); 8] = [
            (&[0, 0, 0, 0], FrameError::Extension(0)),
            (&[7, 0, 0, 0], FrameError::Extension(7)),
            (&[4, 0, 1, 0], FrameError::Short("extension")),
            (&[4, 0], FrameError::Short("extension")),
            (&[4, 1, 0, 0], FrameError::Malformed("BAGGAGE")),
            (&[4, 0, 0, 0, 4, 0, 0, 0], FrameError::Twice("BAGGAGE")),
            (&[2, 0, 1, 0, 0xff], FrameError::Malformed("ON_BEHALF")),
            (&[6, 0, 1, 0, b'A'], FrameError::Malformed("METHOD")),
        ];
        for (bytes, want) in cases {
            assert_eq!(Extensions::decode(bytes), Err(want), "for {bytes:?}");
        }
    }

    #[test]
    fn a_method_is_its_name_and_its_number() {
        let extensions = Extensions { method: Some("read"), ..Extensions::default() };
        let mut header = Header { code: method_number("read"), ..call() };
        assert_eq!(check_method(&header, &extensions), Ok("read"));
        header.code += 1;
        assert_eq!(check_method(&header, &extensions), Err(FrameError::Malformed("METHOD")));
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let text = "巣".repeat(MESSAGE_BYTES_MAX);
        let cut = message_within(&text);
        assert!(cut.len() <= MESSAGE_BYTES_MAX && cut.len() > MESSAGE_BYTES_MAX - 3);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: [u8; HEADER_BYTES], ext: Vec<u8>) {
            let _ = Header::decode_summed(&bytes);
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(header.frame_len_bytes() <= FRAME_BYTES_MAX);
                prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
            }
            if let Ok(extensions) = Extensions::decode(&ext) {
                prop_assert!(extensions.chain.hops().len() <= usize::from(HOPS_MAX));
            }
        }

        #[test]
        fn bytes_close_to_a_header_never_panic(at in 0..HEADER_BYTES, value: u8) {
            let mut bytes = call().encode();
            bytes[at] = value;
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(usize::from(header.ext_len_bytes) <= header.len_bytes as usize);
            }
        }

        #[test]
        fn every_header_within_the_limits_travels(
            kind in 0..KINDS.len(), call in 1_u64.., code: u32, priority: u8, hop in 0..=HOPS_MAX,
            ext in 0..=EXT_BYTES_MAX, body in 0..=BODY_BYTES_MAX, budget_ns in 0..=BUDGET_NS_MAX,
            root: [u8; 16], parent: u64, incarnation: u32,
        ) {
            let kind = KINDS[kind];
            let header = Header {
                len_bytes: (ext + body) as u32, kind, flags: kind.flags(), call, code, priority, hop,
                ext_len_bytes: ext as u16, budget_ns, root: RootId(root), parent, incarnation,
            };
            prop_assert_eq!(Header::decode_summed(&header.encode_summed()), Ok(header));
            prop_assert_eq!(header.body_len_bytes(), body);
        }
    }
}
