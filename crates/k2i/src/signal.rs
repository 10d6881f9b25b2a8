//! Signals to processes that are named by their full identity: never to the wrong one.
//!
//! [`Target`] first opens a descriptor of whatever has the process number now, then reads the start
//! time behind that number and compares. A process that ends in between and has its number given
//! again is caught either by the comparison or by the descriptor, which still means the old one.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use kumo_abi::{ProcessId, TICK_NS};
use kumo_sys::{Ended, PidFd};
use rustix::io::Errno;
use rustix::process::Signal as Known;

/// A signal, by its number on this machine: 1 to 31, or a real-time one from [`RT_MIN`] to
/// [`RT_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signal(i32);

/// The first real-time signal that programs may use: the C library keeps 32 and 33 for itself.
pub const RT_MIN: i32 = 34;
/// The last real-time signal.
pub const RT_MAX: i32 = 64;

/// The signals with names of their own, ascending, with what they are for.
const NAMED: &[(i32, &str, &str)] = &[
    (
        Known::HUP.as_raw(),
        "HUP",
        "the terminal is gone; many services read their configuration again",
    ),
    (Known::INT.as_raw(), "INT", "interrupt from the keyboard (Ctrl-C)"),
    (Known::QUIT.as_raw(), "QUIT", "quit from the keyboard (Ctrl-\\), with a core dump"),
    (Known::ILL.as_raw(), "ILL", "illegal instruction"),
    (Known::TRAP.as_raw(), "TRAP", "breakpoint of a debugger"),
    (Known::ABORT.as_raw(), "ABRT", "the program gave itself up"),
    (Known::BUS.as_raw(), "BUS", "access to memory that has nothing behind it"),
    (Known::FPE.as_raw(), "FPE", "arithmetic error"),
    (Known::KILL.as_raw(), "KILL", "end at once; it cannot be caught"),
    (Known::USR1.as_raw(), "USR1", "for the program to define"),
    (Known::SEGV.as_raw(), "SEGV", "access to memory that is not its own"),
    (Known::USR2.as_raw(), "USR2", "for the program to define"),
    (Known::PIPE.as_raw(), "PIPE", "write to a pipe that nobody reads"),
    (Known::ALARM.as_raw(), "ALRM", "an alarm clock rang"),
    (Known::TERM.as_raw(), "TERM", "please end; what `kumo kill` sends when none is named"),
    (Known::STKFLT.as_raw(), "STKFLT", "unused"),
    (Known::CHILD.as_raw(), "CHLD", "a child ended or stopped"),
    (Known::CONT.as_raw(), "CONT", "go on after a stop"),
    (Known::STOP.as_raw(), "STOP", "stop until CONT; it cannot be caught"),
    (Known::TSTP.as_raw(), "TSTP", "stop from the keyboard (Ctrl-Z)"),
    (Known::TTIN.as_raw(), "TTIN", "read from the terminal in the background"),
    (Known::TTOU.as_raw(), "TTOU", "write to the terminal in the background"),
    (Known::URG.as_raw(), "URG", "urgent data on a socket"),
    (Known::XCPU.as_raw(), "XCPU", "CPU time limit reached"),
    (Known::XFSZ.as_raw(), "XFSZ", "file size limit reached"),
    (Known::VTALARM.as_raw(), "VTALRM", "a timer of its own CPU time rang"),
    (Known::PROF.as_raw(), "PROF", "a profiling timer rang"),
    (Known::WINCH.as_raw(), "WINCH", "the size of the terminal changed"),
    (Known::IO.as_raw(), "IO", "input or output is possible"),
    (Known::POWER.as_raw(), "PWR", "the power is failing"),
    (Known::SYS.as_raw(), "SYS", "forbidden system call"),
];

/// Other names of the same signals.
const ALIASES: &[(&str, i32)] = &[
    ("IOT", Known::ABORT.as_raw()),
    ("CLD", Known::CHILD.as_raw()),
    ("POLL", Known::IO.as_raw()),
    ("RTMIN", RT_MIN),
    ("RTMAX", RT_MAX),
];

impl Signal {
    /// Asks a process to end.
    pub const TERM: Signal = Signal(Known::TERM.as_raw());
    /// Ends a process.
    pub const KILL: Signal = Signal(Known::KILL.as_raw());

    /// The signal with this number, if there is one that may be sent.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Signal> {
        let named = NAMED.iter().any(|(known, ..)| *known == number);
        (named || (RT_MIN..=RT_MAX).contains(&number)).then_some(Signal(number))
    }

    /// All signals, ascending.
    pub fn all() -> impl Iterator<Item = Signal> {
        (1..=RT_MAX).filter_map(Signal::from_number)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }

    /// What it is for, in a few words.
    #[must_use]
    pub fn about(self) -> &'static str {
        let named = NAMED.iter().find(|(number, ..)| *number == self.0);
        named.map_or("real-time, queued; for the program to define", |(.., about)| about)
    }
}

/// Its name without `SIG`, such as `TERM` or `RTMIN+3`.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = NAMED.iter().find(|(number, ..)| *number == self.0);
        match (named, self.0) {
            (Some((_, name, _)), _) => f.pad(name),
            (None, RT_MIN) => f.pad("RTMIN"),
            (None, RT_MAX) => f.pad("RTMAX"),
            (None, number) => f.pad(&format!("RTMIN+{}", number - RT_MIN)),
        }
    }
}

/// The text is no signal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no signal; `kumo kill --list` lists them, such as TERM, KILL, 15 and RTMIN+3")]
pub struct SignalNameError(pub String);

impl FromStr for Signal {
    type Err = SignalNameError;
    /// A number, or a name with or without `SIG`, in either case.
    fn from_str(text: &str) -> Result<Signal, SignalNameError> {
        let wrong = || SignalNameError(text.to_owned());
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().ok().and_then(Signal::from_number).ok_or_else(wrong);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let named = NAMED.iter().map(|(number, known, _)| (*known, *number));
        if let Some((_, number)) = named.chain(ALIASES.iter().copied()).find(|(n, _)| *n == name) {
            return Ok(Signal(number));
        }
        let offset = |digits: &str| digits.parse::<u8>().ok().map(i32::from);
        let number = if let Some(digits) = name.strip_prefix("RTMIN+") {
            offset(digits).map(|offset| RT_MIN + offset)
        } else if let Some(digits) = name.strip_prefix("RTMAX-") {
            offset(digits).map(|offset| RT_MAX - offset)
        } else {
            None
        };
        let real_time = number.filter(|number| (RT_MIN..=RT_MAX).contains(number));
        real_time.map(Signal).ok_or_else(wrong)
    }
}

/// Why a process could not be reached. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// It has ended, so a retry is of no use.
    #[error("process {0} is gone: it has ended")]
    Gone(Pid),
    /// Its number belongs to another process now: the one that was meant has ended.
    #[error(
        "process {wanted} is gone: number {} belongs to another process now, {now}; look at it with `kumo ps {}`", .wanted.pid, .wanted.pid
    )]
    Other {
        /// Who was meant.
        wanted: ProcessId,
        /// Who has the number.
        now: ProcessId,
    },
    /// We may not.
    #[error(
        "may not signal process {0}: it belongs to another user; ask as that user or as root (`sudo`)"
    )]
    Denied(ProcessId),
    /// The number is that of a thread.
    #[error("{0} is a thread, not a process; signal its process: `kumo ps` lists them")]
    Thread(i32),
    /// The kernel is too old.
    #[error("this kernel has no process descriptors; Linux 5.3 or newer has")]
    NoPidFd,
    /// Something else.
    #[error("cannot reach process {pid}")]
    Kernel {
        /// The process number.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A process as it was asked for: with its start when that was given, else by its number alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pid {
    /// The number alone.
    Number(i32),
    /// The whole identity.
    Id(ProcessId),
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pid::Number(pid) => write!(f, "{pid}"),
            Pid::Id(id) => write!(f, "{id}"),
        }
    }
}

/// A process, held so that what is sent reaches it or nobody.
#[derive(Debug)]
pub struct Target {
    id: ProcessId,
    pidfd: PidFd,
}

impl Target {
    /// Takes hold of the process with exactly this identity.
    ///
    /// # Errors
    /// See [`SignalError`].
    pub fn open(id: ProcessId) -> Result<Target, SignalError> {
        let target = Target::hold(id.pid, Pid::Id(id))?;
        let same = target.id.same(&id);
        // The exact start that the caller knows is kept: `/proc` rounds it down.
        if same { Ok(Target { id, ..target }) } else { Err(other(id, target.id)) }
    }

    /// Takes hold of whatever process has this number now.
    ///
    /// # Errors
    /// See [`SignalError`].
    pub fn find(pid: i32) -> Result<Target, SignalError> {
        Target::hold(pid, Pid::Number(pid))
    }

    fn hold(pid: i32, asked: Pid) -> Result<Target, SignalError> {
        let pidfd = PidFd::open(pid).map_err(|source| match Errno::from_io_error(&source) {
            Some(Errno::SRCH) => SignalError::Gone(asked),
            Some(Errno::NOSYS) => SignalError::NoPidFd,
            Some(Errno::INVAL | Errno::NOENT) if pid > 0 => SignalError::Thread(pid),
            _ => SignalError::Kernel { pid, source },
        })?;
        let stat = std::fs::read(format!("/proc/{pid}/stat")).map_err(|source| {
            let gone = source.kind() == io::ErrorKind::NotFound
                || Errno::from_io_error(&source) == Some(Errno::SRCH);
            if gone { SignalError::Gone(asked) } else { SignalError::Kernel { pid, source } }
        })?;
        let start_ns = start_ns(&stat).ok_or_else(|| {
            let what = format!("/proc/{pid}/stat has no start time where the kernel puts it");
            SignalError::Kernel { pid, source: io::Error::new(io::ErrorKind::InvalidData, what) }
        })?;
        Ok(Target { id: ProcessId { pid, start_ns }, pidfd })
    }

    /// The identity: as it was asked for, else with a start rounded down to a clock tick.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Sends `signal` to this process, or to nobody.
    ///
    /// # Errors
    /// `Gone`, `Denied` or `Kernel`; nothing was sent then.
    pub fn send(&self, signal: Signal) -> Result<(), SignalError> {
        self.pidfd.send_signal(signal.0).map_err(|source| match Errno::from_io_error(&source) {
            Some(Errno::SRCH) => SignalError::Gone(Pid::Id(self.id)),
            Some(Errno::PERM) => SignalError::Denied(self.id),
            _ => SignalError::Kernel { pid: self.id.pid, source },
        })
    }

    /// Waits until it has ended, at most `time_max`; without one, as long as it takes.
    ///
    /// # Errors
    /// What `poll` says.
    pub fn wait(&self, time_max: Option<Duration>) -> Result<Ended, SignalError> {
        let failed = |source| SignalError::Kernel { pid: self.id.pid, source };
        self.pidfd.wait(time_max).map_err(failed)
    }
}

/// Sends `signal` to the process with exactly this identity, or to nobody.
///
/// # Errors
/// See [`SignalError`].
pub fn send(id: ProcessId, signal: Signal) -> Result<(), SignalError> {
    Target::open(id)?.send(signal)
}

fn other(wanted: ProcessId, now: ProcessId) -> SignalError {
    SignalError::Other { wanted, now }
}

/// The start of a process in nanoseconds of boot time, rounded down to a tick, from the text of its
/// `/proc/<pid>/stat`. The name before it may hold blanks and parentheses.
fn start_ns(stat: &[u8]) -> Option<u64> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&stat[after_name + 1..]).ok()?;
    // Field 3 (state) is the first here; the start is field 22.
    let ticks: u64 = fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()?;
    ticks.checked_mul(TICK_NS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumo_testbed::Zoo;

    #[test]
    fn signal_names() {
        let cases = [
            ("TERM", Some(15)),
            ("sigterm", Some(15)),
            ("SIGKILL", Some(9)),
            ("9", Some(9)),
            ("64", Some(64)),
            ("RTMIN", Some(34)),
            ("rtmin+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("CLD", Some(17)),
            ("", None),
            ("0", None),
            ("32", None),
            ("65", None),
            ("99999999999", None),
            ("RTMIN+31", None),
            ("RTMIN-1", None),
            ("RTMAX+1", None),
            ("SIG", None),
            ("SIGSIGTERM", None),
            ("-9", None),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse().ok().map(Signal::number), want, "for {text:?}");
        }
        for signal in Signal::all() {
            assert_eq!(signal.to_string().parse(), Ok(signal));
        }
        assert_eq!(Signal::all().count(), 31 + 31);
    }

    #[test]
    fn starts() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        let cases = [
            (format!("7 (cat) {tail}"), Some(4711 * TICK_NS)),
            (format!("7 (a) b) 1 (\n) {tail}"), Some(4711 * TICK_NS)),
            ("7 (cat) S 1 2".to_owned(), None),
            ("7 cat S".to_owned(), None),
            (String::new(), None),
        ];
        for (stat, want) in cases {
            assert_eq!(start_ns(stat.as_bytes()), want, "for {stat:?}");
        }
    }

    #[test]
    fn another_start_is_another_process() {
        let sleeper = Zoo::sleeper(&[b"sleeper"]);
        let found = Target::find(sleeper.pid()).expect("it lives").id();
        for wrong in [found.start_ns - TICK_NS, found.start_ns + TICK_NS, 0] {
            let id = ProcessId { start_ns: wrong, ..found };
            let refused = send(id, Signal::KILL);
            assert!(matches!(refused, Err(SignalError::Other { now, .. }) if now == found));
        }
        let target = Target::open(found).expect("it is the right one");
        assert_eq!(target.wait(Some(Duration::ZERO)).expect("poll works"), Ended::NotYet);
    }

    #[test]
    fn an_exact_start_is_the_same_process_and_is_hit() {
        let mut sleeper = Zoo::sleeper(&[b"sleeper"]);
        let found = Target::find(sleeper.pid()).expect("it lives").id();
        let exact = ProcessId { start_ns: found.start_ns + 1, ..found };
        let target = Target::open(exact).expect("it is the right one");
        assert_eq!(target.id(), exact);
        target.send(Signal::TERM).expect("it is ours");
        assert_eq!(target.wait(None).expect("poll works"), Ended::Yes);
        sleeper.kill(); // Only the reaping is left.
        assert!(matches!(target.send(Signal::TERM), Err(SignalError::Gone(_))));
        assert!(matches!(
            Target::open(exact),
            Err(SignalError::Gone(_) | SignalError::Other { .. })
        ));
    }

    #[test]
    fn a_thread_is_no_process() {
        let (tell, told) = std::sync::mpsc::channel();
        let (done, finish) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).ok();
            finish.recv().ok();
        });
        let tid = told.recv().expect("the thread tells its number");
        assert!(matches!(Target::find(tid), Err(SignalError::Thread(_))), "{tid} is a thread");
        drop(done);
        thread.join().expect("it ends");
    }
}
