//! One life: what events tell of a process, from its exec to its end.

use std::sync::Arc;

use kumo_abi::ProcessId;

use crate::table::{Comm, CommandLine, End, Ids, Io, PF_KTHREAD, Parts, Process};

/// Longest beginning of a command line that is kept of a process that ends: thousands of them are
/// remembered. `bpf/events.h` has the same number.
pub const LIFE_LINE_BYTES_MAX: usize = 512;

/// A process as its events tell of it. What they did not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Life {
    /// Its number in the PID namespace of the node.
    pub pid: i32,
    /// Its parent's, at the last event; 0 when that is not visible from here.
    pub ppid: i32,
    /// Who it is.
    pub identity: Option<Identity>,
    /// Its user and group ids, at the last event.
    pub ids: Option<(Ids, Ids)>,
    /// The command line of its last exec.
    pub line: Option<Line>,
    /// The text of its control group, as `/proc/<pid>/cgroup` would show it.
    pub cgroup: Option<Arc<[u8]>>,
    /// When it last executed a program, nanoseconds of boot time; `None` where no event told it.
    pub exec_ns: Option<u64>,
    /// How it ended; `None` while it lives.
    pub end: Option<End>,
    /// What it has used; known when it was waited for.
    pub used: Option<Used>,
}

/// What a process is from its first moment, but for the name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity {
    /// Start, nanoseconds of boot time.
    pub start_ns: u64,
    /// Its name.
    pub comm: Comm,
    /// Whether it is a kernel thread.
    pub is_kernel: bool,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Identity) -> bool {
        let names = self.comm.as_bytes() == other.comm.as_bytes();
        names && (self.start_ns, self.is_kernel) == (other.start_ns, other.is_kernel)
    }
}

/// A command line, or its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// At most [`LIFE_LINE_BYTES_MAX`] of it.
    pub text: CommandLine,
    /// Whether there was more.
    pub cut: bool,
}

impl Line {
    /// Keeps the beginning of an argument vector; `len_bytes` is the length of all of it.
    pub fn new(argv: &[u8], len_bytes: u64) -> Line {
        let kept = &argv[..argv.len().min(LIFE_LINE_BYTES_MAX)];
        let cut = (kept.len() as u64) < len_bytes;
        Line { text: if cut { CommandLine::beginning(kept) } else { CommandLine::new(kept) }, cut }
    }
}

/// What a process had used when it was waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// User CPU time, nanoseconds.
    pub utime_ns: u64,
    /// System CPU time, nanoseconds.
    pub stime_ns: u64,
    /// Minor faults.
    pub min_flt: u64,
    /// Major faults.
    pub maj_flt: u64,
    /// Where this kernel counts it.
    pub io: Option<Io>,
}

impl Life {
    /// Its identity within this boot, where its start is known.
    pub fn id(&self) -> Option<ProcessId> {
        self.identity.map(|identity| ProcessId { pid: self.pid, start_ns: identity.start_ns })
    }

    /// What a table knows of a process that began before events were taken.
    pub(crate) fn of_row(row: &Process) -> Life {
        let line =
            row.cmdline.as_ref().map(|line| Line::new(line.argv(), line.argv().len() as u64));
        Life {
            pid: row.pid,
            ppid: row.ppid,
            identity: Some(Identity {
                start_ns: row.start_ns,
                comm: row.comm,
                is_kernel: row.is_kernel(),
            }),
            ids: row.have.contains(Parts::IDS).then_some((row.uid, row.gid)),
            line,
            cgroup: row.cgroup.clone(),
            exec_ns: None,
            end: None,
            used: None,
        }
    }

    /// The same as a row of the process table: from there on it is asked as any other.
    pub(crate) fn row(&self) -> Process {
        let mut row = Process { pid: self.pid, ppid: self.ppid, ..Process::default() };
        if let Some(identity) = self.identity {
            row.start_ns = identity.start_ns;
            row.comm = identity.comm;
            row.flags = if identity.is_kernel { PF_KTHREAD } else { 0 };
            row.have |= Parts::IDENTITY;
        }
        if let Some((uid, gid)) = self.ids {
            (row.uid, row.gid) = (uid, gid);
            row.have |= Parts::IDS | Parts::OWNER;
        }
        if let Some(line) = &self.line {
            row.cmdline = Some(line.text.clone());
            row.cmdline_cut = line.cut;
            row.have |= Parts::CMDLINE;
        }
        if let Some(cgroup) = &self.cgroup {
            row.cgroup = Some(Arc::clone(cgroup));
            row.have |= Parts::CGROUP;
        }
        if let Some(end) = self.end {
            row.end = Some(Box::new(end));
            row.have |= Parts::END;
        }
        if let Some(used) = self.used {
            (row.utime_ns, row.stime_ns) = (used.utime_ns, used.stime_ns);
            (row.min_flt, row.maj_flt) = (used.min_flt, used.maj_flt);
            row.have |= Parts::TIMES;
            if let Some(io) = used.io {
                row.io = io;
                row.have |= Parts::IO;
            }
        }
        row
    }

    /// About how much memory it takes; what is shared is not counted.
    pub(crate) fn len_bytes(&self) -> usize {
        // Both forms of a line are kept.
        let line = self.line.as_ref().map_or(0, |line| 2 * line.text.argv().len());
        size_of::<Life>() + line
    }
}
