//! Reads what the BPF tracepoints write, as rules on bytes.
//!
//! The structures mirror `bpf/events.h` field by field.

use bytemuck::{Pod, Zeroable};

use kumo_abi::{ProcessId, TICK_NS};

use super::life::{Identity, Life, Line, Used};
use crate::collect::records::scale;
use crate::table::{Comm, End, Ids, Io, PF_KTHREAD};

const EVENT_EXEC: u16 = 1;
const EVENT_EXIT: u16 = 2;
const EVENT_REAP: u16 = 3;

const LINE_UNREAD: u16 = 1 << 0;
const HAS_IO: u16 = 1 << 1;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Head {
    len: u32,
    kind: u16,
    flags: u16,
    tgid: i32,
    pid: i32,
    start_ns: u64,
    at_ns: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Who {
    ppid: i32,
    task_flags: u32,
    uid: [u32; 4],
    gid: [u32; 4],
    cgroup_id: u64,
    comm: [u8; 16],
}

/// The line follows.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ExecEvent {
    head: Head,
    who: Who,
    line_len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ExitEvent {
    head: Head,
    who: Who,
    status: u32,
    unused: u32,
    maxrss_pages: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ReapEvent {
    head: Head,
    utime_ns: u64,
    stime_ns: u64,
    exec_ns: u64,
    prev_utime_ns: u64,
    prev_stime_ns: u64,
    min_flt: u64,
    maj_flt: u64,
    rchar: u64,
    wchar: u64,
    read_bytes: u64,
    write_bytes: u64,
    cancelled_write_bytes: u64,
}

/// By what records of one life are known to belong together. Two lives never share both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The process number in the first PID namespace of the machine.
    pub(crate) tgid: i32,
    /// 0 from a source that did not get to know it.
    pub(crate) start_ns: u64,
}

impl Key {
    /// The same as an identity.
    pub(crate) fn id(self) -> ProcessId {
        ProcessId { pid: self.tgid, start_ns: self.start_ns }
    }

    /// Whether it may be of this process, where either start may be from `/proc`, in whole ticks, or
    /// not known.
    pub(crate) fn is_of(self, id: ProcessId) -> bool {
        let rounded = |start_ns: u64| start_ns.is_multiple_of(TICK_NS);
        let unknown = self.start_ns == 0 || id.start_ns == 0;
        let same = (rounded(id.start_ns) || rounded(self.start_ns)) && self.id().same(&id);
        self.id() == id || (self.tgid == id.pid && (unknown || same))
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) key: Key,
    /// When it was written, nanoseconds of boot time.
    pub(crate) at_ns: u64,
    pub(crate) told: Told,
}

/// What a record tells.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// A program begins; the life has its line.
    Exec(Life),
    /// The last thread has ended; the life has its end, and no line.
    Exit(Life),
    /// It is gone.
    Reap(Used),
    /// A process begins under this number; whoever had it is gone.
    Fork,
}

/// Not what `events.bpf.c` writes: a bug of ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads one record. `cgroup` knows the text of a control group by its id.
pub(crate) fn read(
    bytes: &[u8],
    page_bytes: u64,
    cgroup: &mut dyn FnMut(u64) -> Option<std::sync::Arc<[u8]>>,
) -> Result<Record, Malformed> {
    let head: Head = pod(bytes)?;
    // The ring pads records to eight bytes.
    let bytes = bytes.get(..head.len as usize).ok_or(Malformed)?;
    let told = match head.kind {
        EVENT_EXEC => {
            let event: ExecEvent = pod(bytes)?;
            let mut life = life(&head, &event.who, cgroup);
            if head.flags & LINE_UNREAD == 0 {
                life.line = Some(Line::new(&bytes[size_of::<ExecEvent>()..], event.line_len));
            }
            Told::Exec(life)
        }
        EVENT_EXIT => {
            let event: ExitEvent = pod(bytes)?;
            let mut life = life(&head, &event.who, cgroup);
            let max_rss = Some(event.maxrss_pages.saturating_mul(page_bytes));
            life.end = Some(End { at_ns: head.at_ns, status: event.status, max_rss });
            Told::Exit(life)
        }
        EVENT_REAP => Told::Reap(used(&pod(bytes)?)),
        _ => return Err(Malformed),
    };
    let key = Key { tgid: head.tgid, start_ns: head.start_ns };
    Ok(Record { key, at_ns: head.at_ns, told })
}

fn pod<T: Pod>(bytes: &[u8]) -> Result<T, Malformed> {
    bytes.get(..size_of::<T>()).map(bytemuck::pod_read_unaligned).ok_or(Malformed)
}

fn life(
    head: &Head,
    who: &Who,
    cgroup: &mut dyn FnMut(u64) -> Option<std::sync::Arc<[u8]>>,
) -> Life {
    let ids = |ids: [u32; 4]| Ids { real: ids[0], effective: ids[1], saved: ids[2], fs: ids[3] };
    let name_len = memchr::memchr(0, &who.comm).unwrap_or(who.comm.len());
    Life {
        pid: head.pid,
        ppid: who.ppid,
        identity: Some(Identity {
            start_ns: head.start_ns,
            comm: Comm::new(&who.comm[..name_len]),
            is_kernel: who.task_flags & PF_KTHREAD != 0,
        }),
        ids: Some((ids(who.uid), ids(who.gid))),
        cgroup: cgroup(who.cgroup_id),
        ..Life::default()
    }
}

fn used(event: &ReapEvent) -> Used {
    let (utime_ns, stime_ns) = scale(
        (event.utime_ns, event.stime_ns),
        event.exec_ns,
        (event.prev_utime_ns, event.prev_stime_ns),
    );
    let io = Io {
        rchar: event.rchar,
        wchar: event.wchar,
        read_bytes: event.read_bytes,
        write_bytes: event.write_bytes,
        cancelled_write_bytes: event.cancelled_write_bytes,
    };
    Used {
        utime_ns,
        stime_ns,
        min_flt: event.min_flt,
        maj_flt: event.maj_flt,
        io: (event.head.flags & HAS_IO != 0).then_some(io),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::life::LIFE_LINE_BYTES_MAX;

    const PAGE: u64 = 4096;

    fn head(kind: u16, flags: u16, len: usize) -> Head {
        Head { len: len as u32, kind, flags, tgid: 70, pid: 7, start_ns: 100, at_ns: 250 }
    }

    fn who() -> Who {
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"true");
        let (uid, gid) = ([1, 2, 3, 4], [5, 6, 7, 8]);
        Who { ppid: 3, task_flags: PF_KTHREAD, uid, gid, cgroup_id: 9, comm }
    }

    fn parse(bytes: &[u8]) -> Result<Record, Malformed> {
        let mut text = |id: u64| (id == 9).then(|| b"0::/nine\n"[..].into());
        read(bytes, PAGE, &mut text)
    }

    fn exec(line: &[u8], line_len: u64, flags: u16) -> Vec<u8> {
        let head = head(EVENT_EXEC, flags, size_of::<ExecEvent>() + line.len());
        let fixed = ExecEvent { head, who: who(), line_len };
        let mut bytes = [bytemuck::bytes_of(&fixed), line].concat();
        bytes.resize(bytes.len().next_multiple_of(8), 0xff);
        bytes
    }

    #[test]
    fn an_exec() {
        let record = parse(&exec(b"true\0-x\0", 8, 0)).expect("a good record");
        assert_eq!((record.key, record.at_ns), (Key { tgid: 70, start_ns: 100 }, 250));
        let Told::Exec(life) = record.told else { panic!("{record:?}") };
        assert_eq!((life.pid, life.ppid, life.end), (7, 3, None));
        let identity = life.identity.expect("it is told");
        assert_eq!((identity.start_ns, identity.comm.as_bytes()), (100, &b"true"[..]));
        assert!(identity.is_kernel);
        let ids = life.ids.expect("they are told");
        assert_eq!((ids.0.effective, ids.1.fs), (2, 8));
        assert_eq!(life.cgroup.as_deref(), Some(&b"0::/nine\n"[..]));
        let line = life.line.expect("it is told");
        assert_eq!((line.text.joined(), line.cut), (&b"true -x"[..], false));
    }

    #[test]
    fn a_line_that_is_cut_or_unread_says_so() {
        let long = vec![b'a'; LIFE_LINE_BYTES_MAX];
        let cases = [
            (exec(&long, long.len() as u64, 0), Some(false)),
            (exec(&long, long.len() as u64 + 1, 0), Some(true)),
            (exec(b"", 0, 0), Some(false)),
            (exec(b"", 40, LINE_UNREAD), None),
        ];
        for (bytes, want) in cases {
            let Told::Exec(life) = parse(&bytes).expect("a good record").told else { panic!() };
            assert_eq!(life.line.map(|line| line.cut), want);
        }
    }

    #[test]
    fn an_end_and_its_times() {
        let head = |kind, flags, len| head(kind, flags, len);
        let exit = ExitEvent {
            head: head(EVENT_EXIT, 0, size_of::<ExitEvent>()),
            who: who(),
            status: 3 << 8,
            unused: 0,
            maxrss_pages: 2,
        };
        let Told::Exit(life) = parse(bytemuck::bytes_of(&exit)).expect("good").told else {
            panic!("an exit")
        };
        let end = life.end.expect("it ended");
        assert_eq!((end.code(), end.signal(), end.max_rss), (Some(3), None, Some(2 * PAGE)));
        assert_eq!(end.at_ns, 250);
        let reap = ReapEvent {
            head: head(EVENT_REAP, HAS_IO, size_of::<ReapEvent>()),
            utime_ns: 1,
            stime_ns: 3,
            exec_ns: 400,
            min_flt: 5,
            wchar: 6,
            ..ReapEvent::zeroed()
        };
        let Told::Reap(used) = parse(bytemuck::bytes_of(&reap)).expect("good").told else {
            panic!("a reap")
        };
        assert_eq!((used.utime_ns, used.stime_ns, used.min_flt), (100, 300, 5), "scaled");
        assert_eq!(used.io.map(|io| io.wchar), Some(6));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let good = exec(b"x\0", 2, 0);
        for len in 0..size_of::<ExecEvent>() {
            assert_eq!(parse(&good[..len]), Err(Malformed), "for {len} bytes");
        }
        let mut strange = good;
        strange[4] = 99;
        assert_eq!(parse(&strange), Err(Malformed));
    }
}
