//! The columns of the process table.
//!
//! Where a fact comes from is said as the file of `/proc/<pid>` that shows it too; the BPF collectors
//! read the same kernel fields at their source.

use crate::schema::{ColumnIndex, ColumnSpec, Kind, Schema, Unit};

macro_rules! columns {
    ($( $variant:ident $name:literal [$($alias:literal),*] $kind:ident $unit:ident $heading:literal $about:literal; )*) => {
        /// A column of the process table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Column {
            $( #[doc = $about] $variant, )*
        }

        impl Column {
            /// Every column, in the order of the schema.
            pub const ALL: &'static [Column] = &[ $( Column::$variant, )* ];
        }

        /// The process table.
        pub static PROC: Schema = Schema {
            name: "proc",
            columns: &[ $( ColumnSpec {
                name: $name,
                aliases: &[$($alias),*],
                kind: Kind::$kind,
                unit: Unit::$unit,
                heading: $heading,
                about: $about,
            }, )* ],
        };
    };
}

columns! {
    Dc "dc" [] Text None "DC" "Data centre of the host";
    Host "host" [] Text None "HOST" "Host that the process runs on";
    Id "id" ["upid"] Text None "ID" "Identity that is never reused: PID@START, start in ns of boot time";
    Pid "pid" ["tgid"] Int None "PID" "Process number, in the PID namespace of the node";
    Ppid "ppid" ["parent"] Int None "PPID" "Parent's process number; 0 when the node cannot see it";
    Pgrp "pgrp" ["pgid"] Int None "PGRP" "Process group";
    Session "session" ["sid", "sess"] Int None "SID" "Session";
    Nspid "nspid" [] Int None "NSPID" "Process number in its own, innermost PID namespace";
    Tty "tty" ["tt", "tname"] Text None "TTY" "Controlling terminal, such as pts/3; null without one";
    Tpgid "tpgid" [] Int None "TPGID" "Foreground process group of the terminal; -1 without one";
    User "user" ["euser"] Text None "USER" "Name of the effective user; the number where it has no name";
    Ruser "ruser" [] Text None "RUSER" "Name of the real user";
    Uid "uid" ["ruid"] Int None "UID" "Real user id";
    Euid "euid" [] Int None "EUID" "Effective user id";
    Suid "suid" [] Int None "SUID" "Saved user id";
    Fsuid "fsuid" ["fuid"] Int None "FSUID" "User id for file access";
    Group "group" ["egroup"] Text None "GROUP" "Name of the effective group";
    Rgroup "rgroup" [] Text None "RGROUP" "Name of the real group";
    Gid "gid" ["rgid"] Int None "GID" "Real group id";
    Egid "egid" [] Int None "EGID" "Effective group id";
    Sgid "sgid" [] Int None "SGID" "Saved group id";
    Fsgid "fsgid" ["fgid"] Int None "FSGID" "Group id for file access";
    Loginuid "loginuid" ["luid"] Int None "LUID" "User id that logged in (audit); null when unset";
    State "state" ["s"] Text None "S" "State: R running, S sleeping, D in I/O, T stopped, t traced, Z zombie, X dead, I idle, P parked";
    Stat "stat" [] Text None "STAT" "State and flags as ps shows them: < high priority, N nice, L locked pages, s session leader, l threads, + foreground";
    Kernel "kernel" ["kthread"] Bool None "KERNEL" "Whether it is a kernel thread";
    Threads "threads" ["nlwp", "thcount"] Int None "THR" "Number of threads";
    Nice "nice" ["ni"] Int None "NI" "Nice value, -20 to 19";
    Priority "priority" ["pri"] Int None "PRI" "Kernel priority as in stat: 20 is nice 0, below 0 is real time";
    Rtprio "rtprio" [] Int None "RTPRIO" "Real-time priority, 0 for none";
    Policy "policy" ["cls", "sched"] Text None "POLICY" "Scheduling policy: other, fifo, rr, batch, idle, deadline, ext";
    Processor "processor" ["psr", "cpuid"] Int None "CPU#" "CPU that it last ran on";
    Flags "flags" ["f"] Int None "FLAGS" "Kernel flags of the task (PF_*)";
    Start "start" ["started", "lstart", "stime_at"] Text None "START" "Start, RFC 3339 with microseconds, UTC";
    Elapsed "elapsed" ["etimes", "etime"] Float Seconds "ELAPSED" "Time since it started";
    Cpu "cpu" ["%cpu"] Float Percent "%CPU" "CPU use since an earlier reading, at most some seconds ago; 100 is one whole CPU";
    Pcpu "pcpu" ["c"] Float Percent "%LIFE" "CPU use over its whole life, as ps shows it";
    Time "time" ["cputime", "times"] Float Seconds "TIME" "CPU time, user and system, all threads";
    Utime "utime" [] Float Seconds "UTIME" "CPU time in user mode";
    Stime "stime" [] Float Seconds "STIME" "CPU time in the kernel";
    Cutime "cutime" [] Float Seconds "CUTIME" "User CPU time of its ended and waited-for children";
    Cstime "cstime" [] Float Seconds "CSTIME" "System CPU time of its ended and waited-for children";
    RunDelay "run_delay" [] Float Seconds "DELAY" "Time it was ready and waited for a CPU, live threads (schedstat)";
    Minflt "minflt" ["min_flt"] Int None "MINFLT" "Page faults without I/O";
    Majflt "majflt" ["maj_flt"] Int None "MAJFLT" "Page faults with I/O";
    Cminflt "cminflt" ["cmin_flt"] Int None "CMINFLT" "Page faults without I/O of its ended children";
    Cmajflt "cmajflt" ["cmaj_flt"] Int None "CMAJFLT" "Page faults with I/O of its ended children";
    Vcsw "vcsw" ["nvcsw"] Int None "VCSW" "Voluntary context switches, live threads";
    Ivcsw "ivcsw" ["nivcsw"] Int None "IVCSW" "Involuntary context switches, live threads";
    Vsize "vsize" ["vsz", "virt", "total_size"] Int Bytes "VSZ" "Virtual memory";
    Rss "rss" ["rssize", "res", "resident_size"] Int Bytes "RSS" "Resident memory, exact (the per-CPU parts are summed)";
    Anon "anon" ["rss_anon"] Int Bytes "ANON" "Resident memory of its own: anonymous pages";
    Shared "shared" ["shr"] Int Bytes "SHR" "Resident memory that may be shared: files and shared memory";
    Swap "swap" ["vm_swap"] Int Bytes "SWAP" "Memory swapped out";
    Mem "mem" ["%mem", "pmem"] Float Percent "%MEM" "Resident memory, of all memory";
    Locked "locked" ["vm_lock"] Int Bytes "LOCKED" "Locked memory";
    Data "data" ["drs", "vm_data"] Int Bytes "DATA" "Private writable mappings and stack";
    Stack "stack" ["vm_stack"] Int Bytes "STACK" "Stack mappings";
    Text "text" ["trs", "vm_exe"] Int Bytes "TEXT" "Executable mappings";
    ReadBytes "read_bytes" [] Int Bytes "READ" "Bytes fetched from storage";
    WriteBytes "write_bytes" [] Int Bytes "WRITE" "Bytes sent to storage, less those cancelled before they got there";
    Rchar "rchar" [] Int Bytes "RCHAR" "Bytes that read calls returned, from anywhere";
    Wchar "wchar" [] Int Bytes "WCHAR" "Bytes that write calls took";
    Comm "comm" ["ucmd", "ucomm", "name"] Text None "COMMAND" "Name of the executable or thread, at most 15 bytes for user processes";
    Cmdline "cmdline" ["args", "cmd", "command"] Text None "COMMAND" "Command line, arguments joined by blanks; the name in brackets for kernel threads and zombies";
    Argv "argv" [] TextList None "ARGV" "Argument vector, as a list";
    Exe "exe" ["path"] Text None "EXE" "Executable file; ' (deleted)' behind it when it is gone";
    Cwd "cwd" [] Text None "CWD" "Working directory";
    Root "root" [] Text None "ROOT" "Root directory";
    Cgroup "cgroup" [] Text None "CGROUP" "Path of its control group; the unified hierarchy's, else the deepest";
    Container "container" [] Text None "CONTAINER" "Container as runtime:id with 12 digits; null outside of one";
    ContainerRuntime "container_runtime" ["runtime"] Text None "RUNTIME" "docker, containerd, cri-o, podman, lxc, nspawn, or cri for an unnamed CRI";
    ContainerId "container_id" ["cid"] Text None "CONTAINER ID" "Whole container id";
    Pod "pod" [] Text None "POD" "UID of its Kubernetes pod";
    Unit "unit" [] Text None "UNIT" "systemd unit (service or scope), the innermost";
    Slice "slice" [] Text None "SLICE" "systemd slice, the innermost";
    NsMnt "ns_mnt" ["mntns"] Int None "MNTNS" "Mount namespace (inode)";
    NsPid "ns_pid" ["pidns"] Int None "PIDNS" "PID namespace (inode)";
    NsNet "ns_net" ["netns"] Int None "NETNS" "Network namespace (inode)";
    NsUts "ns_uts" ["utsns"] Int None "UTSNS" "Host name namespace (inode)";
    NsIpc "ns_ipc" ["ipcns"] Int None "IPCNS" "IPC namespace (inode)";
    NsUser "ns_user" ["userns"] Int None "USERNS" "User namespace (inode)";
    NsCgroup "ns_cgroup" ["cgroupns"] Int None "CGROUPNS" "Control group namespace (inode)";
    NsTime "ns_time" ["timens"] Int None "TIMENS" "Time namespace (inode)";
    CapEff "cap_eff" [] Text None "CAPEFF" "Effective capabilities, 16 hexadecimal digits";
    CapPrm "cap_prm" [] Text None "CAPPRM" "Permitted capabilities";
    CapInh "cap_inh" [] Text None "CAPINH" "Inheritable capabilities";
    CapBnd "cap_bnd" [] Text None "CAPBND" "Capability bounding set";
    CapAmb "cap_amb" [] Text None "CAPAMB" "Ambient capabilities";
    Seccomp "seccomp" [] Text None "SECCOMP" "System call filter: disabled, strict or filter";
    NoNewPrivs "no_new_privs" ["nnp"] Bool None "NNP" "Whether it can gain no privileges by exec";
    OomAdj "oom_adj" ["oom_score_adj"] Int None "OOMADJ" "Adjustment of the OOM killer, -1000 to 1000";
    OomScore "oom_score" ["oom"] Int None "OOM" "Score of the OOM killer, 0 to 2000; the highest dies first";
    BlockedOn "blocked_on" ["blocked"] Text None "BLOCKED ON" "Call whose reply it waits for longest, as SERVICE/METHOD on DC/HOST, and how many more; null for none";
    Wchan "wchan" [] Text None "WCHAN" "Kernel function that it sleeps in; null when running or not readable";
    EndedAt "ended_at" ["ended"] Text None "ENDED" "When its last thread ended, RFC 3339 with microseconds, UTC; null while it lives";
    Lifetime "lifetime" ["life"] Float Seconds "LIFETIME" "Time from its start to its end; null while it lives";
    ExitCode "exit_code" ["exit"] Int None "EXIT" "What it returned at its end, 0 to 255; null while it lives, and when a signal ended it";
    ExitSignal "exit_signal" ["signal"] Text None "SIGNAL" "Signal that ended it, such as KILL; null while it lives, and when it ended by itself";
    MaxRss "max_rss" ["maxrss"] Int Bytes "MAXRSS" "Most resident memory it had, as wait4 tells it, the time before its exec included; known of ended processes";
    Listen "listen" ["listening", "ports"] Text None "LISTEN" "Ports it listens on, as tcp:22,tcp6:22,udp:53: what others reach without being asked; null for none. Asked for only, as it costs a look at all open files";
    OpenFiles "open_files" ["nfiles", "fds"] Int None "FILES" "Descriptors it has open; null where they cannot be seen. Asked for only, likewise";
    CmdlineCut "cmdline_cut" [] Bool None "CUT" "Whether the command line is only its beginning: of an ended process at most 512 bytes are kept";
}

impl Column {
    /// Columns that are only there for who names them: each costs a look at the open files of all.
    pub const COSTLY: [Column; 2] = [Column::Listen, Column::OpenFiles];

    /// Its index in [`PROC`].
    pub fn index(self) -> ColumnIndex {
        self as usize
    }

    /// The column at this index of [`PROC`].
    pub fn at(index: ColumnIndex) -> Column {
        Column::ALL[index]
    }

    /// Its description.
    pub fn spec(self) -> &'static ColumnSpec {
        &PROC.columns[self.index()]
    }
}

/// The columns of an answer when a query names none: those of `ps auwx`, and identity.
pub const COLUMNS_DEFAULT: &str =
    "pid,ppid,user,cpu,mem,vsize,rss,tty,stat,start,time,comm,cmdline";

/// The same for processes that have ended.
pub const COLUMNS_ENDED_DEFAULT: &str =
    "pid,ppid,user,exit_code,exit_signal,lifetime,time,max_rss,ended_at,comm,cmdline";
