//! Reads what the BPF iterators write, as rules on bytes.
//!
//! The structures mirror `bpf/task.h` field by field. The kernel's sums and names are made here: CPU
//! time over all threads, scaled as `/proc/<pid>/stat` scales it, and the letter of a state.

use bytemuck::{Pod, Zeroable};

use crate::table::{Capabilities, Comm, Ids, Memory, Namespaces, Parts, Process};

const RECORD_PROCESS: u16 = 1;
const RECORD_THREAD: u16 = 2;

const TAIL_LINE: u16 = 1 << 0;
const TAIL_NAME: u16 = 1 << 1;
const LINE_ELSEWHERE: u16 = 1 << 2;
const HAS_MM: u16 = 1 << 3;
const RSS_EXACT: u16 = 1 << 4;
const HAS_MORE: u16 = 1 << 5;

const MORE_IO: u32 = 1 << 0;
const MORE_DELAY: u32 = 1 << 1;

/// What every record begins with.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Head {
    len: u32,
    kind: u16,
    flags: u16,
}

/// What is summed over the threads of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
struct Sums {
    utime_ns: u64,
    stime_ns: u64,
    exec_ns: u64,
    min_flt: u64,
    maj_flt: u64,
}

/// The same, for what few questions ask.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
struct MoreSums {
    vcsw: u64,
    ivcsw: u64,
    run_delay_ns: u64,
    rchar: u64,
    wchar: u64,
    read_bytes: u64,
    write_bytes: u64,
    cancelled_write_bytes: u64,
}

/// Followed by [`MoreSums`] if `HAS_MORE`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ThreadRecord {
    head: Head,
    pid: i32,
    tid: i32,
    sums: Sums,
}

/// Follows a [`ProcessRecord`] if `HAS_MORE`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProcessMore {
    caps: [u64; 5],
    sums: MoreSums,
    cgroup_set: u64,
    cgroup_ids: u64,
    ns: [u32; 8],
    nspid: i32,
    seccomp: u32,
    no_new_privs: u32,
    loginuid: u32,
    oom_score_adj: i32,
    has: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProcessRecord {
    head: Head,
    pid: i32,
    ppid: i32,
    pgrp: i32,
    session: i32,
    tpgid: i32,
    tty_nr: u32,
    task_flags: u32,
    state: u32,
    exit_state: u32,
    threads: u32,
    prio: i32,
    static_prio: i32,
    rtprio: u32,
    policy: u32,
    cpu: u32,
    exit_signal: i32,
    uid: [u32; 4],
    gid: [u32; 4],
    start_ns: u64,
    exec_id: u64,
    sums: Sums,
    prev_utime_ns: u64,
    prev_stime_ns: u64,
    cutime_ns: u64,
    cstime_ns: u64,
    cmin_flt: u64,
    cmaj_flt: u64,
    rss_limit: u64,
    total_vm: u64,
    locked_vm: u64,
    data_vm: u64,
    stack_vm: u64,
    start_code: u64,
    end_code: u64,
    arg_start: u64,
    arg_end: u64,
    rss: [i64; 4],
    comm: [u8; 16],
}

/// Where the command line of a process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Line {
    /// It has none: a kernel thread or a zombie.
    #[default]
    None,
    /// In the stream: `start..end`.
    At(usize, usize),
    /// Not read in this pass, or to be read from `/proc`: too long, or a title that runs over.
    Elsewhere,
}

/// By what it is known that a command line has not changed. A process changes its own, and to do so
/// it must run: while its CPU time stands still, so does its command line. The time is taken before
/// the line is read; what changes after moves it on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LineKey {
    pub(crate) start_ns: u64,
    exec_id: u64,
    arg_start: u64,
    arg_end: u64,
    exec_ns: u64,
}

/// Tasks with equal keys show the same control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GroupsKey {
    /// The kernel's address of the set of groups.
    pub(crate) set: u64,
    /// The ids of the groups that `bpf/task.bpf.c` knows of.
    pub(crate) ids: u64,
    /// A task that ends stays in its groups, but those of version 1 are not shown any more.
    pub(crate) exiting: bool,
}

/// What is known of a process beside its row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Aside {
    pub(crate) line: Line,
    pub(crate) line_key: LineKey,
    pub(crate) cgroup_key: Option<GroupsKey>,
    /// Threads began or ended between the visit of the process and the visit of each. What a thread
    /// that ended had used is in no record: the times of this row are too small.
    pub(crate) torn: bool,
    /// Records of threads, but for the first.
    threads_seen: u32,
    prev_utime_ns: u64,
    prev_stime_ns: u64,
}

/// The rows of one pass, ascending by pid, and what goes with each.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) rows: Vec<Process>,
    pub(crate) asides: Vec<Aside>,
    /// Whether resident memory is exact in all rows.
    pub(crate) rss_exact: bool,
}

/// The stream is not what `task.bpf.c` writes: a bug of ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// Where in the stream.
    pub(crate) offset: usize,
}

/// Reads a whole stream.
pub(crate) fn read(stream: &[u8], page_bytes: u64) -> Result<Records, Malformed> {
    // No fewer bytes than this make a process: rows are never moved while they are made.
    let rows_max = stream.len() / size_of::<ProcessRecord>();
    let mut records = Records {
        rows: Vec::with_capacity(rows_max),
        asides: Vec::with_capacity(rows_max),
        rss_exact: true,
    };
    let mut threads: Vec<(i32, Sums, MoreSums)> = Vec::new();
    let mut offset = 0;
    while offset < stream.len() {
        let malformed = Malformed { offset };
        let rest = &stream[offset..];
        let head: Head = read_pod(rest).ok_or(malformed)?;
        let len = head.len as usize;
        let record = rest.get(..len).filter(|_| len >= size_of::<Head>());
        let record = record.ok_or(Malformed { offset })?;
        match head.kind {
            RECORD_PROCESS => {
                let fixed: ProcessRecord = read_pod(record).ok_or(Malformed { offset })?;
                let rest = &record[size_of::<ProcessRecord>()..];
                let has_more = head.flags & HAS_MORE != 0;
                let more: Option<ProcessMore> =
                    if has_more { Some(read_pod(rest).ok_or(Malformed { offset })?) } else { None };
                let tail = &rest[if has_more { size_of::<ProcessMore>() } else { 0 }..];
                records.rss_exact &= fixed.head.flags & (RSS_EXACT | HAS_MM) != HAS_MM;
                let tail_at = (offset + len - tail.len(), offset + len);
                records.asides.push(aside(&fixed, more.as_ref(), tail_at));
                let mut row = row(&fixed, tail, page_bytes);
                if let Some(more) = &more {
                    add_more(&mut row, more);
                }
                records.rows.push(row);
            }
            RECORD_THREAD => {
                let thread: ThreadRecord = read_pod(record).ok_or(Malformed { offset })?;
                let more = &record[size_of::<ThreadRecord>()..];
                threads.push((thread.pid, thread.sums, read_pod(more).unwrap_or_default()));
            }
            _ => return Err(Malformed { offset }),
        }
        offset += len;
    }
    order(&mut records);
    add_threads(&mut records, &threads);
    for (row, aside) in records.rows.iter_mut().zip(&mut records.asides) {
        let (utime_ns, stime_ns) = scale(
            (row.utime_ns, row.stime_ns),
            aside.line_key.exec_ns,
            (aside.prev_utime_ns, aside.prev_stime_ns),
        );
        (row.utime_ns, row.stime_ns) = (utime_ns, stime_ns);
        aside.torn = aside.threads_seen != row.threads.saturating_sub(1);
    }
    Ok(records)
}

fn read_pod<T: Pod>(bytes: &[u8]) -> Option<T> {
    bytes.get(..size_of::<T>()).map(bytemuck::pod_read_unaligned)
}

/// The kernel walks its tasks by ascending number, so this is a check as a rule. A process that
/// executes from another than its first thread takes over that number, and may be seen twice.
fn order(records: &mut Records) {
    if records.rows.windows(2).all(|pair| pair[0].pid < pair[1].pid) {
        return;
    }
    let mut both: Vec<_> = records.rows.drain(..).zip(records.asides.drain(..)).collect();
    both.sort_by_key(|(row, _)| row.pid);
    both.dedup_by_key(|(row, _)| row.pid);
    (records.rows, records.asides) = both.into_iter().unzip();
}

fn add_threads(records: &mut Records, threads: &[(i32, Sums, MoreSums)]) {
    let mut index = 0;
    for (pid, sums, more) in threads {
        // Threads of one process come together as a rule.
        if records.rows.get(index).is_none_or(|row| row.pid != *pid) {
            match records.rows.binary_search_by_key(pid, |row| row.pid) {
                Ok(found) => index = found,
                Err(_) => continue, // Its process came after the pass, or is gone.
            }
        }
        let (row, aside) = (&mut records.rows[index], &mut records.asides[index]);
        aside.threads_seen += 1;
        row.utime_ns += sums.utime_ns;
        row.stime_ns += sums.stime_ns;
        aside.line_key.exec_ns += sums.exec_ns;
        row.min_flt += sums.min_flt;
        row.maj_flt += sums.maj_flt;
        add_sums(row, more);
    }
}

fn add_sums(row: &mut Process, more: &MoreSums) {
    row.vcsw += more.vcsw;
    row.ivcsw += more.ivcsw;
    row.run_delay_ns += more.run_delay_ns;
    row.io.rchar += more.rchar;
    row.io.wchar += more.wchar;
    row.io.read_bytes += more.read_bytes;
    row.io.write_bytes += more.write_bytes;
    row.io.cancelled_write_bytes += more.cancelled_write_bytes;
}

fn add_more(row: &mut Process, more: &ProcessMore) {
    let [inheritable, permitted, effective, bounding, ambient] = more.caps;
    let [mnt, pid, net, uts, ipc, user, cgroup, time] = more.ns;
    // What the kernel does not count is not zero, it is not known.
    let uncounted = |flag, parts| if more.has & flag == 0 { parts } else { Parts::NONE };
    let unknown = uncounted(MORE_IO, Parts::IO) | uncounted(MORE_DELAY, Parts::THREADS);
    row.have |= Parts::MORE.without(unknown);
    row.caps = Capabilities { inheritable, permitted, effective, bounding, ambient };
    row.ns = Namespaces { mnt, pid, net, uts, ipc, user, cgroup, time };
    row.nspid = more.nspid;
    row.seccomp = more.seccomp as u8;
    row.no_new_privs = more.no_new_privs != 0;
    row.loginuid = more.loginuid;
    row.oom_score_adj = more.oom_score_adj as i16;
    add_sums(row, &more.sums);
}

/// Scales sampled user and system time to the exact run time, as `cputime_adjust()` of
/// kernel/sched/cputime.c does: ticks say how it divides, the scheduler how much it is. What was once
/// shown (`prev`) never shrinks.
pub(crate) fn scale((utime, stime): (u64, u64), exec: u64, prev: (u64, u64)) -> (u64, u64) {
    let (prev_utime, prev_stime) = prev;
    if prev_utime + prev_stime >= exec {
        return prev;
    }
    let mut system = if stime == 0 {
        0
    } else if utime == 0 {
        exec
    } else {
        let scaled = u128::from(stime) * u128::from(exec) / u128::from(utime + stime);
        (scaled as u64).min(exec)
    };
    system = system.max(prev_stime);
    let mut user = exec - system.min(exec);
    if user < prev_utime {
        user = prev_utime;
        system = exec.saturating_sub(user);
    }
    (user, system)
}

/// Whether a task with these `PF_*` flags is on its way out, or a zombie. It never comes back.
pub(crate) fn is_exiting(flags: u32) -> bool {
    const PF_EXITING: u32 = 0x4;
    flags & PF_EXITING != 0
}

fn aside(record: &ProcessRecord, more: Option<&ProcessMore>, tail: (usize, usize)) -> Aside {
    let flags = record.head.flags;
    let line = if flags & TAIL_LINE != 0 {
        Line::At(tail.0, tail.1)
    } else if flags & LINE_ELSEWHERE != 0 || record.arg_end > record.arg_start {
        Line::Elsewhere
    } else {
        Line::None
    };
    Aside {
        line,
        line_key: LineKey {
            start_ns: record.start_ns,
            exec_id: record.exec_id,
            arg_start: record.arg_start,
            arg_end: record.arg_end,
            exec_ns: record.sums.exec_ns,
        },
        cgroup_key: more.map(|more| GroupsKey {
            set: more.cgroup_set,
            ids: more.cgroup_ids,
            exiting: is_exiting(record.task_flags),
        }),
        torn: false,
        threads_seen: 0,
        prev_utime_ns: record.prev_utime_ns,
        prev_stime_ns: record.prev_stime_ns,
    }
}

fn row(record: &ProcessRecord, tail: &[u8], page_bytes: u64) -> Process {
    let ids = |ids: [u32; 4]| Ids { real: ids[0], effective: ids[1], saved: ids[2], fs: ids[3] };
    // Numbers of another's making: too large is shown as that, it is no reason to panic.
    let bytes = |pages: u64| pages.saturating_mul(page_bytes);
    let rss = record.rss.map(|pages| bytes(pages.max(0) as u64));
    let [file, anon, swap, shmem] = rss;
    let name = if record.head.flags & TAIL_NAME != 0 { tail } else { &record.comm };
    let name = &name[..memchr::memchr(0, name).unwrap_or(name.len())];
    // Sizes leave this file, addresses do not: the kernel hides those of a process from everybody who
    // may not trace it.
    let code_pages =
        record.end_code.div_ceil(page_bytes).saturating_sub(record.start_code / page_bytes);
    let inexact = record.head.flags & (HAS_MM | RSS_EXACT) == HAS_MM;
    let have = if inexact { Parts::BASE.without(Parts::MEMORY) } else { Parts::BASE };
    Process {
        have,
        pid: record.pid,
        ppid: record.ppid,
        pgrp: record.pgrp,
        session: record.session,
        tty_nr: record.tty_nr,
        tpgid: record.tpgid,
        flags: record.task_flags,
        state: state_letter(record.state, record.exit_state),
        threads: record.threads,
        nice: record.static_prio - 120,
        priority: record.prio - 100,
        rtprio: record.rtprio,
        policy: record.policy,
        processor: record.cpu as i32,
        exit_signal: record.exit_signal,
        start_ns: record.start_ns,
        utime_ns: record.sums.utime_ns,
        stime_ns: record.sums.stime_ns,
        cutime_ns: record.cutime_ns,
        cstime_ns: record.cstime_ns,
        min_flt: record.sums.min_flt,
        maj_flt: record.sums.maj_flt,
        cmin_flt: record.cmin_flt,
        cmaj_flt: record.cmaj_flt,
        vsize: bytes(record.total_vm),
        rss_limit: record.rss_limit,
        comm: Comm::new(name),
        memory: Memory {
            anon,
            shared: file.saturating_add(shmem),
            text: bytes(code_pages),
            data: bytes(record.data_vm.saturating_add(record.stack_vm)),
        },
        uid: ids(record.uid),
        gid: ids(record.gid),
        swap,
        locked: bytes(record.locked_vm),
        stack: bytes(record.stack_vm),
        ..Process::default()
    }
}

/// The letter of a state, as `task_state_index()` of include/linux/sched.h numbers it.
fn state_letter(state: u32, exit_state: u32) -> u8 {
    const REPORT: u32 = 0x7f;
    const IDLE: u32 = 0x402; // TASK_NOLOAD | TASK_UNINTERRUPTIBLE
    const RTLOCK_WAIT: u32 = 0x1000;
    const FROZEN: u32 = 0x8000;
    if state & IDLE == IDLE {
        return b'I';
    }
    let shown = if state & (RTLOCK_WAIT | FROZEN) != 0 {
        2 // D: it waits and cannot be woken by a signal.
    } else {
        (state | exit_state) & REPORT
    };
    b"RSDTtXZP"[(u32::BITS - shown.leading_zeros()) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_scaled_as_the_kernel_does() {
        let cases = [
            // (sampled user and system), exact, shown before: user and system
            ((0, 0), 100, (0, 0), (100, 0)),
            ((30, 10), 100, (0, 0), (75, 25)),
            ((0, 10), 100, (0, 0), (0, 100)),
            ((30, 10), 100, (80, 10), (80, 20)),
            ((30, 10), 100, (10, 60), (40, 60)),
            ((30, 10), 100, (90, 40), (90, 40)),
            ((u64::MAX / 2, u64::MAX / 2), u64::MAX / 2, (0, 0), (u64::MAX / 4 + 1, u64::MAX / 4)),
        ];
        for (sampled, exec, prev, want) in cases {
            assert_eq!(scale(sampled, exec, prev), want, "for {sampled:?} {exec} {prev:?}");
        }
    }

    #[test]
    fn states() {
        let cases = [
            (0, 0, b'R'),
            (1, 0, b'S'),
            (2, 0, b'D'),
            (4, 0, b'T'),
            (8, 0, b't'),
            (0, 0x10, b'X'),
            (0, 0x20, b'Z'),
            (0x40, 0, b'P'),
            (0x402, 0, b'I'),
            (0x1000, 0, b'D'),
            (0x8000, 0, b'D'),
        ];
        for (state, exit_state, want) in cases {
            let got = state_letter(state, exit_state);
            assert_eq!(char::from(got), char::from(want), "for {state:#x} {exit_state:#x}");
        }
    }

    fn process(pid: i32, tail: &[u8], flags: u16) -> Vec<u8> {
        let mut record = ProcessRecord::zeroed();
        let len = (size_of::<ProcessRecord>() + tail.len()) as u32;
        record.head = Head { len, kind: RECORD_PROCESS, flags };
        (record.pid, record.sums.exec_ns, record.sums.utime_ns) = (pid, 50, 50);
        record.threads = 2;
        record.comm[..4].copy_from_slice(b"comm");
        [bytemuck::bytes_of(&record), tail].concat()
    }

    fn thread(pid: i32) -> Vec<u8> {
        let mut record = ThreadRecord::zeroed();
        record.head = Head { len: size_of::<ThreadRecord>() as u32, kind: RECORD_THREAD, flags: 0 };
        (record.pid, record.sums.exec_ns, record.sums.utime_ns) = (pid, 7, 7);
        bytemuck::bytes_of(&record).to_vec()
    }

    #[test]
    fn threads_are_added_to_their_process() {
        let stream = [
            thread(9), // Its number wrapped: it comes before its process.
            process(5, b"a\0b\0", TAIL_LINE),
            thread(5),
            process(9, b"long name\0", TAIL_NAME),
            thread(5),
            thread(77),
        ];
        let stream = stream.concat();
        let records = read(&stream, 4096).expect("a good stream");
        let seen: Vec<_> = records.rows.iter().map(|row| (row.pid, row.utime_ns)).collect();
        assert_eq!(seen, [(5, 64), (9, 57)]);
        let Line::At(start, end) = records.asides[0].line else { panic!("it has a line") };
        assert_eq!(&stream[start..end], b"a\0b\0");
        assert_eq!(records.rows[0].comm.as_bytes(), b"comm");
        assert_eq!(records.rows[1].comm.as_bytes(), b"long name");
    }

    #[test]
    fn a_process_whose_threads_come_or_go_is_torn() {
        for (threads, torn) in [(0, true), (1, false), (2, true)] {
            let stream = [process(5, b"", 0), thread(5).repeat(threads), thread(6)].concat();
            let records = read(&stream, 4096).expect("a good stream");
            assert_eq!(records.asides[0].torn, torn, "for {threads} of 1 thread beside the first");
        }
    }

    #[test]
    fn what_the_kernel_does_not_count_is_not_known() {
        let cases = [
            (MORE_IO | MORE_DELAY, Parts::NONE),
            (MORE_IO, Parts::THREADS),
            (MORE_DELAY, Parts::IO),
            (0, Parts::IO | Parts::THREADS),
        ];
        for (has, unknown) in cases {
            let mut row = Process::default();
            add_more(&mut row, &ProcessMore { has, ..ProcessMore::zeroed() });
            assert_eq!(row.have, Parts::MORE.without(unknown), "for {has:#b}");
        }
    }

    #[test]
    fn numbers_out_of_range_do_no_harm() {
        let record = ProcessRecord {
            start_code: u64::MAX,
            total_vm: u64::MAX,
            data_vm: u64::MAX,
            stack_vm: 1,
            rss: [i64::MAX, i64::MIN, -1, i64::MAX],
            ..ProcessRecord::zeroed()
        };
        let row = row(&record, b"", 4096);
        assert_eq!((row.vsize, row.memory.text, row.memory.anon), (u64::MAX, 0, 0));
        assert_eq!((row.memory.data, row.memory.shared), (u64::MAX, u64::MAX));
    }

    #[test]
    fn a_process_seen_twice_is_one_row() {
        let stream = [process(5, b"", 0), process(9, b"", 0), process(5, b"", 0)].concat();
        let records = read(&stream, 4096).expect("a good stream");
        assert_eq!(records.rows.iter().map(|row| row.pid).collect::<Vec<_>>(), [5, 9]);
        assert_eq!(records.asides.len(), 2);
    }

    #[test]
    fn a_cut_stream_is_refused() {
        let stream = [process(5, b"a\0", TAIL_LINE), thread(5)].concat();
        for end in 1..stream.len() {
            let whole_first = end == process(5, b"a\0", TAIL_LINE).len();
            assert_eq!(read(&stream[..end], 4096).is_ok(), whole_first, "cut at {end}");
        }
        let mut endless = stream;
        endless[..4].fill(0);
        assert_eq!(read(&endless, 4096).map(|_| ()), Err(Malformed { offset: 0 }));
    }
}
