//! The process table as it was at one moment.
//!
//! [`Table`] is a plain value and never changes once made: readers share it. A process that starts
//! or ends while it is taken may be in it or not, but it never holds half a process: a row that could
//! not be read whole says which parts it has.

use std::borrow::Cow;
use std::ops::{BitAnd, BitOr, BitOrAssign};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use kumo_abi::ProcessId;
use kumo_abi::rights::Lines;

use crate::collect::CollectorKind;
use crate::redact;

/// Which parts of a process are known. Each part costs about one file of `/proc/<pid>`; the BPF
/// collectors bring all numbers in one pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts(u32);

impl Parts {
    /// Nothing.
    pub const NONE: Parts = Parts(0);
    /// `stat`: numbers, state, times, faults. Every row of a process that lives has it.
    pub const STAT: Parts = Parts(1 | Self::IDENTITY.0 | Self::TIMES.0);
    /// `statm` and its like: exact resident memory and its kinds.
    pub const MEMORY: Parts = Parts(1 << 1);
    /// `status`, first part: user and group ids, swap, locked memory, stack.
    pub const STATUS: Parts = Parts(1 << 2 | Self::IDS.0);
    /// `io`. Needs the right to trace the process.
    pub const IO: Parts = Parts(1 << 3);
    /// Summed over `task/*`: the run-queue delay of `schedstat`, the context switches of `status`.
    pub const THREADS: Parts = Parts(1 << 4);
    /// `ns/*`. Needs the right to trace the process.
    pub const NAMESPACES: Parts = Parts(1 << 5);
    /// `loginuid` and `oom_score_adj`.
    pub const AUDIT: Parts = Parts(1 << 6);
    /// `cmdline`.
    pub const CMDLINE: Parts = Parts(1 << 7);
    /// `cgroup`.
    pub const CGROUP: Parts = Parts(1 << 8);
    /// `exe`. Needs the right to trace the process.
    pub const EXE: Parts = Parts(1 << 9);
    /// `cwd`. Needs the right to trace the process.
    pub const CWD: Parts = Parts(1 << 10);
    /// `root`. Needs the right to trace the process.
    pub const ROOT: Parts = Parts(1 << 11);
    /// `oom_score`.
    pub const OOM_SCORE: Parts = Parts(1 << 12);
    /// `wchan`.
    pub const WCHAN: Parts = Parts(1 << 13);
    /// `status`, second part: capabilities, seccomp, number in the innermost PID namespace.
    pub const SECURITY: Parts = Parts(1 << 14);
    /// Effective user and group: the owner of `/proc/<pid>`, which is cheaper than `status`.
    pub const OWNER: Parts = Parts(1 << 15);
    /// Locked memory. On `/proc` it may be ten seconds old, for it is not read of every process.
    pub const LOCKED: Parts = Parts(1 << 16);
    /// CPU use since an earlier reading; of a table, not of a row.
    pub const CPU: Parts = Parts(1 << 17);
    /// Of `stat`: start, name, whether it is a kernel thread.
    pub const IDENTITY: Parts = Parts(1 << 18);
    /// Of `stat`: CPU times and faults.
    pub const TIMES: Parts = Parts(1 << 19);
    /// Of `status`: user and group ids.
    pub const IDS: Parts = Parts(1 << 20);
    /// How it ended. No process that lives has it.
    pub const END: Parts = Parts(1 << 21);
    /// Everything.
    pub const ALL: Parts = Parts(u32::MAX);
    /// All that a scan can bring for every row.
    pub const EVERY_ROW: Parts = Parts(
        ((Self::CGROUP.0 << 1) - 1)
            | Self::STAT.0
            | Self::STATUS.0
            | Self::SECURITY.0
            | Self::OWNER.0
            | Self::LOCKED.0,
    );
    /// What the BPF collectors bring with every scan.
    pub const BASE: Parts =
        Parts(Self::STAT.0 | Self::MEMORY.0 | Self::STATUS.0 | Self::OWNER.0 | Self::LOCKED.0);
    /// What they bring with a scan that asks for any of it.
    pub const MORE: Parts =
        Parts(Self::SECURITY.0 | Self::IO.0 | Self::THREADS.0 | Self::NAMESPACES.0 | Self::AUDIT.0);
    /// What is fetched for the rows that leave only, one by one, whatever the collector.
    pub const LATE: Parts =
        Parts(Self::EXE.0 | Self::CWD.0 | Self::ROOT.0 | Self::OOM_SCORE.0 | Self::WCHAN.0);

    /// Whether all of `other` are in here.
    pub fn contains(self, other: Parts) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is in here.
    pub fn intersects(self, other: Parts) -> bool {
        self.0 & other.0 != 0
    }

    /// These without `other`.
    #[must_use]
    pub fn without(self, other: Parts) -> Parts {
        Parts(self.0 & !other.0)
    }

    /// As a number, for the disk.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    /// From such a number.
    pub(crate) fn from_bits(bits: u32) -> Parts {
        Parts(bits)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitAnd for Parts {
    type Output = Parts;
    fn bitand(self, other: Parts) -> Parts {
        Parts(self.0 & other.0)
    }
}

impl BitOr for Parts {
    type Output = Parts;
    fn bitor(self, other: Parts) -> Parts {
        Parts(self.0 | other.0)
    }
}

impl BitOrAssign for Parts {
    fn bitor_assign(&mut self, other: Parts) {
        self.0 |= other.0;
    }
}

/// Four ids, as the kernel keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Real.
    pub real: u32,
    /// Effective.
    pub effective: u32,
    /// Saved.
    pub saved: u32,
    /// For file access.
    pub fs: u32,
}

/// Storage and call traffic, all threads that live and have ended. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// Returned by read calls.
    pub rchar: u64,
    /// Taken by write calls.
    pub wchar: u64,
    /// Fetched from storage.
    pub read_bytes: u64,
    /// Sent to storage, including what was cancelled later.
    pub write_bytes: u64,
    /// Written, then truncated before it reached storage.
    pub cancelled_write_bytes: u64,
}

/// Inode numbers of the namespaces of a process; 0 where the kernel has no such namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Mount namespace.
    pub mnt: u32,
    /// PID namespace.
    pub pid: u32,
    /// Network namespace.
    pub net: u32,
    /// Host name namespace.
    pub uts: u32,
    /// IPC namespace.
    pub ipc: u32,
    /// User namespace.
    pub user: u32,
    /// Control group namespace.
    pub cgroup: u32,
    /// Time namespace.
    pub time: u32,
}

/// Capability sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Inheritable.
    pub inheritable: u64,
    /// Permitted.
    pub permitted: u64,
    /// Effective.
    pub effective: u64,
    /// Bounding set.
    pub bounding: u64,
    /// Ambient.
    pub ambient: u64,
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident, anonymous.
    pub anon: u64,
    /// Resident, backed by files or shared.
    pub shared: u64,
    /// Executable mappings.
    pub text: u64,
    /// Private writable mappings and stack.
    pub data: u64,
}

/// One process. Fields outside of [`Parts::STAT`] hold zeros until `have` says otherwise.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Which parts are known.
    pub have: Parts,
    /// Process number (thread group id) in the node's PID namespace.
    pub pid: i32,
    /// Parent; 0 when it is not visible from here.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Controlling terminal as a `dev_t` in the encoding of `/proc/<pid>/stat`; 0 for none.
    pub tty_nr: u32,
    /// Foreground process group of the terminal; -1 without one.
    pub tpgid: i32,
    /// `PF_*`.
    pub flags: u32,
    /// One of `RSDTtXZPI`.
    pub state: u8,
    /// Live threads.
    pub threads: u32,
    /// Nice value.
    pub nice: i32,
    /// Priority as in `stat`.
    pub priority: i32,
    /// Real-time priority.
    pub rtprio: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// CPU it last ran on.
    pub processor: i32,
    /// Signal sent to the parent at exit.
    pub exit_signal: i32,
    /// Start, nanoseconds of boot time.
    pub start_ns: u64,
    /// User CPU time, nanoseconds.
    pub utime_ns: u64,
    /// System CPU time, nanoseconds.
    pub stime_ns: u64,
    /// User CPU time of waited-for children, nanoseconds.
    pub cutime_ns: u64,
    /// System CPU time of waited-for children, nanoseconds.
    pub cstime_ns: u64,
    /// Minor faults.
    pub min_flt: u64,
    /// Major faults.
    pub maj_flt: u64,
    /// Minor faults of waited-for children.
    pub cmin_flt: u64,
    /// Major faults of waited-for children.
    pub cmaj_flt: u64,
    /// Virtual memory, bytes.
    pub vsize: u64,
    /// Resident set limit, bytes.
    pub rss_limit: u64,
    /// Name, without a terminator; at most 15 bytes for user processes.
    pub comm: Comm,
    /// [`Parts::MEMORY`].
    pub memory: Memory,
    /// [`Parts::STATUS`]: user ids; the effective one is [`Parts::OWNER`].
    pub uid: Ids,
    /// [`Parts::STATUS`]: group ids; the effective one is [`Parts::OWNER`].
    pub gid: Ids,
    /// [`Parts::SECURITY`]: process number in its innermost PID namespace.
    pub nspid: i32,
    /// [`Parts::STATUS`]: swap, bytes.
    pub swap: u64,
    /// [`Parts::LOCKED`]: locked memory, bytes.
    pub locked: u64,
    /// [`Parts::STATUS`]: stack, bytes.
    pub stack: u64,
    /// [`Parts::THREADS`]: voluntary context switches.
    pub vcsw: u64,
    /// [`Parts::THREADS`]: involuntary context switches.
    pub ivcsw: u64,
    /// [`Parts::SECURITY`]: capabilities.
    pub caps: Capabilities,
    /// [`Parts::SECURITY`]: 0 disabled, 1 strict, 2 filter.
    pub seccomp: u8,
    /// [`Parts::SECURITY`]: no new privileges.
    pub no_new_privs: bool,
    /// [`Parts::IO`].
    pub io: Io,
    /// [`Parts::THREADS`]: nanoseconds ready but not running.
    pub run_delay_ns: u64,
    /// [`Parts::NAMESPACES`].
    pub ns: Namespaces,
    /// [`Parts::AUDIT`]: `u32::MAX` when unset.
    pub loginuid: u32,
    /// [`Parts::AUDIT`].
    pub oom_score_adj: i16,
    /// [`Parts::CMDLINE`]; `None` for kernel threads and zombies.
    pub cmdline: Option<CommandLine>,
    /// The command line is there but longer than [`CMDLINE_KEPT_BYTES_MAX`]: a fetch brings it.
    pub cmdline_long: bool,
    /// The command line is the beginning of a longer one, which nobody has any more.
    pub cmdline_cut: bool,
    /// [`Parts::CGROUP`]: the text of `/proc/<pid>/cgroup`, shared by all in the same groups.
    pub cgroup: Option<Arc<[u8]>>,
    /// [`Parts::END`].
    pub end: Option<Box<End>>,
    /// [`Parts::EXE`] and what else is fetched for single rows; shared, as rows are copied.
    pub late: Option<Arc<Late>>,
}

/// Parts that are fetched for the rows that leave, one by one.
#[derive(Clone, Debug, Default)]
pub struct Late {
    /// [`Parts::EXE`]; `None` for kernel threads or without the right to see it.
    pub exe: Option<Box<[u8]>>,
    /// [`Parts::CWD`].
    pub cwd: Option<Box<[u8]>>,
    /// [`Parts::ROOT`].
    pub root: Option<Box<[u8]>>,
    /// [`Parts::OOM_SCORE`].
    pub oom_score: Option<i32>,
    /// [`Parts::WCHAN`].
    pub wchan: Option<Box<[u8]>>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// When its last thread ended, nanoseconds of boot time.
    pub at_ns: u64,
    /// As `wait(2)` gives it.
    pub status: u32,
    /// Most resident memory, bytes, as `wait4(2)` gives it: what it had before its exec counts too.
    /// `None` where nobody told.
    pub max_rss: Option<u64>,
}

impl End {
    /// What it returned; `None` when a signal ended it.
    pub fn code(&self) -> Option<u8> {
        self.signal().is_none().then_some((self.status >> 8) as u8)
    }

    /// The signal that ended it; `None` when it ended by itself.
    pub fn signal(&self) -> Option<i32> {
        Some((self.status & 0x7f) as i32).filter(|signal| *signal != 0)
    }
}

/// Longest command line that a table keeps for each row. Longer ones, which are few, are fetched
/// for the rows that leave: a hundred processes of 2 MB of arguments must not fill our memory.
pub(crate) const CMDLINE_KEPT_BYTES_MAX: usize = 32 * 1024;

/// `PF_KTHREAD` of `include/linux/sched.h`.
pub(crate) const PF_KTHREAD: u32 = 0x0020_0000;

impl Process {
    /// Its identity within this boot.
    pub fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid, start_ns: self.start_ns }
    }

    /// Whether it is a kernel thread.
    pub fn is_kernel(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// User and system CPU time, nanoseconds.
    pub fn cpu_ns(&self) -> u64 {
        self.utime_ns + self.stime_ns
    }

    /// Resident memory, bytes.
    pub fn rss(&self) -> u64 {
        self.memory.anon + self.memory.shared
    }
}

/// Longest name of a task that is kept: kernel threads have names beyond the 15 bytes of `comm`.
pub(crate) const COMM_BYTES_MAX: usize = 63;

/// The name of a task, kept in its row: no allocation for a field that every row has.
#[derive(Clone, Copy)]
pub struct Comm {
    len: u8,
    bytes: [u8; COMM_BYTES_MAX],
}

impl Default for Comm {
    fn default() -> Comm {
        Comm { len: 0, bytes: [0; COMM_BYTES_MAX] }
    }
}

impl Comm {
    /// Keeps at most [`COMM_BYTES_MAX`] bytes of `name`.
    pub fn new(name: &[u8]) -> Comm {
        let len = name.len().min(COMM_BYTES_MAX);
        let mut comm = Comm { len: len as u8, ..Comm::default() };
        comm.bytes[..len].copy_from_slice(&name[..len]);
        comm
    }

    /// The name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl PartialEq for Comm {
    fn eq(&self, other: &Comm) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Comm {}

impl std::fmt::Debug for Comm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// A command line in both its forms, shared by all tables that have it: reading one copies nothing.
///
/// With it goes what others may see of it, made when somebody first asks for that: a line that does not
/// change is looked through once, however often it is scanned and asked for.
#[derive(Clone)]
pub struct CommandLine(Arc<Line>);

struct Line {
    /// The joined form, then the arguments.
    bytes: Box<[u8]>,
    joined_len: u32,
    /// Whether it is the beginning of a longer one.
    cut: bool,
    /// Without secrets; `None` where there are none.
    clean: OnceLock<Option<CommandLine>>,
    /// Without arguments.
    bare: OnceLock<CommandLine>,
}

impl CommandLine {
    /// Keeps arguments, each ended by NUL as the kernel has them.
    pub fn new(argv: &[u8]) -> CommandLine {
        CommandLine::keep(argv, false)
    }

    /// Keeps the beginning of arguments; the last one may be a part of what it was.
    pub fn beginning(argv: &[u8]) -> CommandLine {
        CommandLine::keep(argv, true)
    }

    fn keep(argv: &[u8], cut: bool) -> CommandLine {
        // A rewritten title is padded with NUL bytes to the length of the old arguments.
        let end = argv.iter().rposition(|byte| !matches!(byte, 0 | b' ')).map_or(0, |at| at + 1);
        let joined = argv[..end].iter().map(|byte| if *byte == 0 { b' ' } else { *byte });
        let bytes: Box<[u8]> = joined.chain(argv.iter().copied()).collect();
        let (clean, bare) = (OnceLock::new(), OnceLock::new());
        CommandLine(Arc::new(Line { joined_len: end as u32, bytes, cut, clean, bare }))
    }

    /// The arguments joined by blanks, without blanks at the end, as people know it.
    pub fn joined(&self) -> &[u8] {
        &self.0.bytes[..self.0.joined_len as usize]
    }

    /// The arguments, each ended by NUL; a title that was written over them as it is.
    pub fn argv(&self) -> &[u8] {
        &self.0.bytes[self.0.joined_len as usize..]
    }

    /// What is shown of it.
    pub fn shown(&self, lines: Lines) -> &CommandLine {
        let clean = || {
            let argv = self.argv();
            let clean = if self.0.cut { redact::beginning(argv) } else { redact::redact(argv) };
            match clean {
                Cow::Borrowed(_) => None,
                Cow::Owned(clean) => Some(CommandLine::new(&clean)),
            }
        };
        match lines {
            Lines::Whole => self,
            Lines::Redacted => self.0.clean.get_or_init(clean).as_ref().unwrap_or(self),
            Lines::Stripped => {
                self.0.bare.get_or_init(|| CommandLine::new(&redact::strip(self.argv())))
            }
        }
    }
}

impl PartialEq for CommandLine {
    fn eq(&self, other: &CommandLine) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.0.bytes == other.0.bytes && self.0.joined_len == other.0.joined_len)
    }
}

impl Eq for CommandLine {}

impl std::fmt::Debug for CommandLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CommandLine").field(&String::from_utf8_lossy(self.argv())).finish()
    }
}

/// All processes of a host at one moment.
#[derive(Debug)]
pub struct Table {
    /// Grows by one with each scan of an engine.
    pub generation: u64,
    /// Which collector made it.
    pub collector: CollectorKind,
    /// When the scan began.
    pub began: Instant,
    /// The same on the wall clock: nanoseconds since the Unix epoch.
    pub began_unix_ns: u64,
    /// The same in nanoseconds of boot time.
    pub began_boot_ns: u64,
    /// How long it took, microseconds.
    pub scan_us: u64,
    /// What every row has, if it could be read at all.
    pub parts: Parts,
    /// Ascending by pid.
    pub rows: Vec<Process>,
    /// For each row its CPU use since an earlier reading, percent of one CPU, NaN where that did not
    /// have it; `None` until there is an earlier one.
    pub cpu_percent: Option<Vec<f32>>,
}

impl Table {
    /// The index of the row of `pid`.
    pub fn position(&self, pid: i32) -> Option<usize> {
        self.rows.binary_search_by_key(&pid, |row| row.pid).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_line_is_made_once() {
        let line = CommandLine::new(b"app\0--password=hunter2\0-v\0");
        assert_eq!(line.shown(Lines::Whole).joined(), b"app --password=hunter2 -v");
        assert_eq!(line.shown(Lines::Redacted).joined(), b"app --password=***** -v");
        assert_eq!(line.shown(Lines::Redacted).argv(), b"app\0--password=*****\0-v\0");
        assert_eq!(line.shown(Lines::Stripped).joined(), b"app *****");
        let copy = line.clone();
        assert!(std::ptr::eq(line.shown(Lines::Redacted), copy.shown(Lines::Redacted)));
        let plain = CommandLine::new(b"sleep\x005\0");
        assert!(std::ptr::eq(plain.shown(Lines::Redacted), &raw const plain), "nothing is copied");
    }

    #[test]
    fn a_cut_argument_is_not_shown() {
        let whole = "app\0-v\0ghp_16C7e42F292c6912E7710c838347Ae178B4a";
        for end in 8..whole.len() {
            let shown = CommandLine::beginning(&whole.as_bytes()[..end]);
            assert_eq!(shown.shown(Lines::Redacted).joined(), b"app -v *****", "{end}");
        }
        let shown = CommandLine::beginning(b"app\0-v\0").shown(Lines::Redacted).clone();
        assert_eq!(shown.joined(), b"app -v", "cut between two arguments");
    }
}
