//! The bytes of a segment: a head, then records, each with its length and a sum.
//!
//! ```text
//! head    "kumohis1"  len u32  crc32c u32  postcard of Head
//! record  len u32  raw_len u32  boot_ns u64  unix_ns u64  crc32c u32  frame
//! ```
//!
//! All numbers are little-endian; a sum is over everything else of its part. A kill or a full disk may
//! cut a file at any byte: what is whole in front of it counts, the rest is nothing.

use serde::{Deserialize, Serialize};

/// What a segment begins with; the last byte is the form.
const MAGIC: &[u8; 8] = b"kumohis1";

/// Length of the part of a record in front of its frame.
pub(super) const RECORD_HEAD_BYTES: usize = 28;

/// Largest head: it holds a boot id.
const HEAD_BYTES_MAX: usize = 1024;

/// What holds for all records of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// A process identity holds within one boot.
    pub(super) boot_id: String,
}

/// A record: where it is and when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Where its frame begins.
    pub(super) offset: u64,
    /// How long that is.
    pub(super) len: u32,
    /// And when it is unpacked.
    pub(super) raw_len: u32,
    /// Boot time.
    pub(super) boot_ns: u64,
    /// What the wall clock showed then.
    pub(super) unix_ns: u64,
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    pub(super) head: Head,
    pub(super) marks: Vec<Mark>,
    /// Where the last whole record ends.
    pub(super) whole_bytes: u64,
}

/// The bytes of a head.
pub(super) fn write_head(head: &Head) -> Vec<u8> {
    let body = postcard::to_stdvec(head).unwrap_or_default();
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    out.extend_from_slice(&body);
    out
}

/// The bytes of a record that shall begin at `offset`, and its mark. `None` where it is longer than
/// its numbers can say.
pub(super) fn write_record(
    offset: u64,
    (boot_ns, unix_ns): (u64, u64),
    frame: &[u8],
    raw_len: usize,
) -> Option<(Vec<u8>, Mark)> {
    let (len, raw_len) = (u32::try_from(frame.len()).ok()?, u32::try_from(raw_len).ok()?);
    let mut out = Vec::with_capacity(RECORD_HEAD_BYTES + frame.len());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&raw_len.to_le_bytes());
    out.extend_from_slice(&boot_ns.to_le_bytes());
    out.extend_from_slice(&unix_ns.to_le_bytes());
    out.extend_from_slice(&sum(&out, frame).to_le_bytes());
    out.extend_from_slice(frame);
    let offset = offset + RECORD_HEAD_BYTES as u64;
    Some((out, Mark { offset, len, raw_len, boot_ns, unix_ns }))
}

fn sum(head: &[u8], frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), frame)
}

/// What of these bytes is whole; `None` where not even the head is.
pub(super) fn scan(bytes: &[u8]) -> Option<Scanned> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (len, rest) = number::<4>(rest)?;
    let (crc, rest) = number::<4>(rest)?;
    let len = u32::from_le_bytes(len) as usize;
    let body = rest.get(..len).filter(|body| body.len() <= HEAD_BYTES_MAX)?;
    if crc32c::crc32c(body) != u32::from_le_bytes(crc) {
        return None;
    }
    let head = postcard::from_bytes(body).ok()?;
    let mut at = MAGIC.len() + 8 + len;
    let mut marks = Vec::new();
    while let Some((mark, end)) = record(bytes, at) {
        marks.push(mark);
        at = end;
    }
    Some(Scanned { head, marks, whole_bytes: at as u64 })
}

/// The record that begins at `at`, and where it ends; `None` where none is whole.
fn record(bytes: &[u8], at: usize) -> Option<(Mark, usize)> {
    let head = bytes.get(at..)?.get(..RECORD_HEAD_BYTES)?;
    let (len, rest) = number::<4>(head)?;
    let (raw_len, rest) = number::<4>(rest)?;
    let (boot_ns, rest) = number::<8>(rest)?;
    let (unix_ns, rest) = number::<8>(rest)?;
    let (crc, _) = number::<4>(rest)?;
    let len = u32::from_le_bytes(len);
    let start = at + RECORD_HEAD_BYTES;
    let frame = bytes.get(start..)?.get(..len as usize)?;
    if sum(&head[..RECORD_HEAD_BYTES - 4], frame) != u32::from_le_bytes(crc) {
        return None;
    }
    let mark = Mark {
        offset: start as u64,
        len,
        raw_len: u32::from_le_bytes(raw_len),
        boot_ns: u64::from_le_bytes(boot_ns),
        unix_ns: u64::from_le_bytes(unix_ns),
    };
    Some((mark, start + len as usize))
}

fn number<const LEN: usize>(bytes: &[u8]) -> Option<([u8; LEN], &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<LEN>()?;
    Some((*number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(frames: &[&[u8]]) -> (Vec<u8>, Vec<Mark>) {
        let mut bytes = write_head(&Head { boot_id: "b0".to_owned() });
        let mut marks = Vec::new();
        for (at, frame) in frames.iter().enumerate() {
            let times = (at as u64, 1_000 + at as u64);
            let record = write_record(bytes.len() as u64, times, frame, 9).expect("a small one");
            bytes.extend(record.0);
            marks.push(record.1);
        }
        (bytes, marks)
    }

    #[test]
    fn cut_at_any_byte_it_loses_what_was_cut() {
        let (bytes, marks) = segment(&[b"first", b"", b"third frame"]);
        let head_bytes = write_head(&Head { boot_id: "b0".to_owned() }).len();
        for len in 0..=bytes.len() {
            let scanned = scan(&bytes[..len]);
            if len < head_bytes {
                assert_eq!(scanned, None, "cut at {len}");
                continue;
            }
            let scanned = scanned.expect("the head is whole");
            let ends = |mark: &&Mark| mark.offset + u64::from(mark.len) <= len as u64;
            let whole: Vec<Mark> = marks.iter().take_while(ends).copied().collect();
            assert_eq!(scanned.marks, whole, "cut at {len}");
            let end =
                whole.last().map_or(head_bytes as u64, |last| last.offset + u64::from(last.len));
            assert_eq!(scanned.whole_bytes, end, "cut at {len}");
        }
    }

    #[test]
    fn a_changed_bit_ends_what_counts() {
        let (bytes, marks) = segment(&[b"first", b"second"]);
        let begin = marks[1].offset as usize - RECORD_HEAD_BYTES;
        for at in begin..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                let scanned = scan(&bytes).expect("the head is whole");
                assert_eq!(scanned.marks, marks[..1], "bit {bit} of byte {at}");
            }
        }
        for at in 0..write_head(&Head { boot_id: "b0".to_owned() }).len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert_eq!(scan(&bytes), None, "byte {at} of the head");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            good in 0_usize..3,
        ) {
            let frames: [&[u8]; 2] = [b"a", b"b"];
            let mut all = segment(&frames[..good]).0;
            all.extend(bytes);
            let _ = scan(&all);
        }
    }
}
