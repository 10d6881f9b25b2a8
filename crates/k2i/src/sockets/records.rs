//! Reads what the iterator over open files writes, as rules on bytes.
//!
//! The structures mirror `bpf/files.h` field by field.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};
use kumo_abi::ProcessId;

use super::socket::{AF_INET, AF_INET6, Socket};
use super::{Held, Holder};
use crate::table::Comm;

const RECORD_HOLDER: u16 = 1;
const RECORD_FILE: u16 = 2;
const RECORD_SOCKET: u16 = 3;

const HAS_ADDRESSES: u16 = 1 << 0;
const HAS_RECV_QUEUE: u16 = 1 << 1;
const HAS_SEND_QUEUE: u16 = 1 << 2;

const AF_UNIX: u16 = 1;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Head {
    len: u16,
    kind: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct HolderRecord {
    head: Head,
    pid: i32,
    tid: i32,
    zero: u32,
    table: u64,
    start_ns: u64,
    comm: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FileRecord {
    head: Head,
    fd: u32,
}

/// The path follows.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SocketRecord {
    file: FileRecord,
    inode: u64,
    peer_inode: u64,
    recv_queue: u64,
    send_queue: u64,
    netns: u32,
    uid: u32,
    family: u16,
    kind: u16,
    protocol: u16,
    state: u16,
    local_port: u16,
    remote_port: u16,
    flags: u16,
    path_len: u16,
    local: [u8; 16],
    remote: [u8; 16],
}

/// A record that is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Puts records together, in whatever pieces they come.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    /// The beginning of a record whose end has not come yet.
    rest: Vec<u8>,
    holders: Vec<Holder>,
    sockets: Vec<Held>,
    /// Tables of threads that are not the first of their process: where that first one has ended, the
    /// kernel shows the table that the others share once for each of them.
    tables: HashSet<(i32, u64)>,
    /// Whether the files that come are of a table that was seen before, or of nobody.
    is_skipped: bool,
}

impl Default for Holder {
    fn default() -> Holder {
        let id = ProcessId { pid: 0, start_ns: 0 };
        Holder { id, comm: Comm::default(), files: None }
    }
}

impl Assembly {
    /// Takes the next piece of the stream.
    pub(super) fn take(&mut self, piece: &[u8]) -> Result<(), Malformed> {
        let whole;
        let mut bytes = piece;
        if !self.rest.is_empty() {
            let mut joined = std::mem::take(&mut self.rest);
            joined.extend_from_slice(piece);
            whole = joined;
            bytes = &whole;
        }
        while let Some(head) = front::<Head>(bytes) {
            let len = usize::from(head.len);
            if len < size_of::<FileRecord>() {
                return Err(Malformed);
            }
            let Some((record, rest)) = bytes.split_at_checked(len) else { break };
            self.record(head.kind, record)?;
            bytes = rest;
        }
        self.rest = bytes.to_vec();
        Ok(())
    }

    fn record(&mut self, kind: u16, bytes: &[u8]) -> Result<(), Malformed> {
        match kind {
            RECORD_HOLDER => self.holder(&front(bytes).ok_or(Malformed)?),
            RECORD_FILE => self.file(),
            RECORD_SOCKET => {
                let record: SocketRecord = front(bytes).ok_or(Malformed)?;
                let path = &bytes[size_of::<SocketRecord>()..];
                let path = path.get(..usize::from(record.path_len)).ok_or(Malformed)?;
                self.file();
                if let Some(holder) = self.holders.last().filter(|_| !self.is_skipped) {
                    let (pid, fd) = (holder.id.pid, record.file.fd);
                    self.sockets.push(Held { pid, fd, socket: socket(&record, path) });
                }
            }
            _ => return Err(Malformed),
        }
        Ok(())
    }

    fn holder(&mut self, record: &HolderRecord) {
        let is_first = record.pid == record.tid;
        let is_new = is_first || self.tables.insert((record.pid, record.table));
        // One that was reaped while the kernel looked has no number.
        self.is_skipped = record.pid <= 0 || !is_new;
        if self.is_skipped {
            return;
        }
        let name = record.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        let id = ProcessId { pid: record.pid, start_ns: record.start_ns };
        self.holders.push(Holder { id, comm: Comm::new(name), files: Some(0) });
    }

    fn file(&mut self) {
        let holder = self.holders.last_mut().filter(|_| !self.is_skipped);
        if let Some(files) = holder.and_then(|holder| holder.files.as_mut()) {
            *files += 1;
        }
    }

    /// Holders, each once and ascending by pid, and sockets ascending by pid and descriptor.
    pub(super) fn finish(mut self) -> Result<(Vec<Holder>, Vec<Held>), Malformed> {
        if !self.rest.is_empty() {
            return Err(Malformed);
        }
        self.holders.sort_by_key(|holder| holder.id.pid);
        // Threads with tables of their own add theirs to those of their process.
        self.holders.dedup_by(|other, first| {
            let same = other.id.pid == first.id.pid;
            if same {
                first.files = first.files.zip(other.files).map(|(a, b)| a.saturating_add(b));
            }
            same
        });
        self.sockets.sort_by_key(|held| (held.pid, held.fd));
        Ok((self.holders, self.sockets))
    }
}

fn front<T: Pod>(bytes: &[u8]) -> Option<T> {
    bytes.get(..size_of::<T>()).map(bytemuck::pod_read_unaligned)
}

fn socket(record: &SocketRecord, path: &[u8]) -> Socket {
    let has = |flag: u16| record.flags & flag != 0;
    let mut socket = Socket {
        inode: record.inode,
        family: Some(record.family),
        kind: Some(record.kind),
        protocol: Some(record.protocol),
        state: Some(record.state as u8),
        netns: Some(record.netns).filter(|inode| *inode != 0),
        uid: Some(record.uid),
        recv_queue: has(HAS_RECV_QUEUE).then_some(record.recv_queue),
        send_queue: has(HAS_SEND_QUEUE).then_some(record.send_queue),
        ..Socket::default()
    };
    if has(HAS_ADDRESSES) {
        let (local, remote) = (record.local, record.remote);
        let addresses = (address(record.family, &local), address(record.family, &remote));
        if let (Some(local), Some(remote)) = addresses {
            socket.set_addresses((local, record.local_port), (remote, record.remote_port));
        }
    }
    if record.family == AF_UNIX {
        socket.peer_inode = Some(record.peer_inode).filter(|inode| *inode != 0);
        socket.set_path(path);
    }
    socket
}

/// An address in the order of the network; IPv4 has the first four bytes.
pub(super) fn address(family: u16, bytes: &[u8; 16]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
        AF_INET6 => Some(Ipv6Addr::from(*bytes).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holder(pid: i32, tid: i32, table: u64) -> Vec<u8> {
        let head = Head { len: size_of::<HolderRecord>() as u16, kind: RECORD_HOLDER };
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"demo");
        let start_ns = 1_000 + pid as u64;
        let record = HolderRecord { head, pid, tid, zero: 0, table, start_ns, comm };
        bytemuck::bytes_of(&record).to_vec()
    }

    fn file(fd: u32) -> Vec<u8> {
        let head = Head { len: size_of::<FileRecord>() as u16, kind: RECORD_FILE };
        bytemuck::bytes_of(&FileRecord { head, fd }).to_vec()
    }

    fn unix(fd: u32, path: &[u8]) -> Vec<u8> {
        let len = (size_of::<SocketRecord>() + path.len()) as u16;
        let head = Head { len, kind: RECORD_SOCKET };
        let record = SocketRecord {
            file: FileRecord { head, fd },
            inode: 77,
            family: AF_UNIX,
            kind: 1,
            state: 10,
            netns: 4,
            flags: HAS_SEND_QUEUE,
            send_queue: 9,
            path_len: path.len() as u16,
            ..SocketRecord::zeroed()
        };
        [bytemuck::bytes_of(&record), path].concat()
    }

    fn read(stream: &[u8], piece: usize) -> Result<(Vec<Holder>, Vec<Held>), Malformed> {
        let mut assembly = Assembly::default();
        for piece in stream.chunks(piece) {
            assembly.take(piece)?;
        }
        assembly.finish()
    }

    #[test]
    fn records_have_the_sizes_of_their_header() {
        // Of bpf/files.h, where `path` begins at 96.
        let sizes = [size_of::<HolderRecord>(), size_of::<FileRecord>(), size_of::<SocketRecord>()];
        assert_eq!(sizes, [48, 8, 96]);
    }

    #[test]
    fn records_make_holders_in_whatever_pieces_they_come() {
        let stream = [
            holder(9, 9, 1),
            file(0),
            unix(3, b"\0name"),
            file(4),
            holder(5, 5, 2),
            file(1),
            holder(9, 12, 3), // A thread with a table of its own,
            unix(1, b"/a\0"),
            holder(9, 13, 3), // and another that shares that.
            unix(1, b"/a\0"),
            holder(0, 0, 7), // It was reaped meanwhile.
            file(1),
        ]
        .concat();
        let whole = read(&stream, stream.len()).expect("good records");
        for piece in 1..stream.len() {
            assert_eq!(read(&stream, piece).expect("good records"), whole, "in pieces of {piece}");
        }
        let (holders, sockets) = whole;
        let counts: Vec<_> = holders.iter().map(|h| (h.id.pid, h.id.start_ns, h.files)).collect();
        assert_eq!(counts, [(5, 1_005, Some(1)), (9, 1_009, Some(4))]);
        assert_eq!(holders[0].comm.as_bytes(), b"demo");
        let held: Vec<_> = sockets.iter().map(|held| (held.pid, held.fd)).collect();
        assert_eq!(held, [(9, 1), (9, 3)]);
        let socket = &sockets[1].socket;
        assert_eq!(socket.path.as_deref(), Some(&b"\0name"[..]));
        assert_eq!((socket.recv_queue, socket.send_queue), (None, Some(9)));
        assert_eq!((socket.peer_inode, socket.netns), (None, Some(4)));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let mut short = file(1);
        short[0] = 3;
        let mut unknown = file(1);
        unknown[2] = 9;
        let mut lying = unix(1, b"/a");
        let at = size_of::<SocketRecord>() - 34;
        lying[at..at + 2].copy_from_slice(&50u16.to_le_bytes());
        let mut small = file(1);
        small[2] = RECORD_SOCKET as u8;
        let cut = holder(1, 1, 1)[..40].to_vec();
        for bad in [short, unknown, lying, small, cut] {
            assert_eq!(read(&bad, bad.len()), Err(Malformed), "for {bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, piece in 1_usize..64) {
            let _ = read(&bytes, piece);
        }
    }
}
