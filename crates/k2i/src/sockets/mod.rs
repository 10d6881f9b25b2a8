//! Sockets and open files of this host's processes.
//!
//! [`Snapshot`] is a plain value that never changes: who holds how many descriptors, and every socket
//! among them. There are two ways to it: the kernel's iterator over open files by BPF ([`bpf`]), one pass
//! for all; or `/proc` and `sock_diag` ([`holders`], [`diag`]), with the reader's rights. Each says its name,
//! and what it could not see. Who asks while another waits shares his snapshot, as with the process table.
//!
//! A socket that nobody holds by a descriptor has no row: those of connections in `TIME_WAIT`, those of the
//! kernel, those on their way in a message, and those that only an `io_uring` has registered.

mod bpf;
mod diag;
mod fds;
mod files;
mod holders;
mod records;
mod rows;
mod socket;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use kumo_abi::ProcessId;

use crate::collect::{CollectorChoice, CollectorKind, ProcFs};
use crate::engine::Clock;
use crate::table::Comm;
use bpf::FilesProgram;
pub use files::{FileParts, OpenFile, OpenFiles};
pub(crate) use rows::{FileRows, Joined, SocketRows, socket_lines};
pub use socket::Socket;

/// How sockets are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketsBy {
    /// The kernel's iterator over open files.
    Iterator,
    /// `/proc` and `sock_diag`.
    Diag,
    /// Not at all: the host is a simulated one.
    Nothing,
}

impl SocketsBy {
    /// Its name in answers.
    pub fn name(self) -> &'static str {
        match self {
            SocketsBy::Iterator => "iter/task_file",
            SocketsBy::Diag => "sock_diag",
            SocketsBy::Nothing => "recorded",
        }
    }
}

/// Who holds open files.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// The process.
    pub id: ProcessId,
    /// Its name.
    pub comm: Comm,
    /// How many descriptors it has; `None` where we may not see them.
    pub files: Option<u32>,
}

/// A socket in the hands of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The process.
    pub pid: i32,
    /// Its descriptor.
    pub fd: u32,
    /// The socket; another holder's has the same inode.
    pub socket: Socket,
}

/// How much could not be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// Processes whose descriptors are not ours to see.
    pub processes: usize,
    /// Network namespaces that could not be entered.
    pub namespaces: usize,
    /// Sockets of which no more is known than that they are there, and maybe their protocol.
    pub sockets: usize,
    /// Whether nothing is known, of anybody.
    pub all: bool,
}

impl Unseen {
    /// In words, and what would help; `None` where nothing is missing.
    pub fn in_words(self) -> Option<String> {
        if self.all {
            return Some("this host is simulated, and nobody recorded its open files".to_owned());
        }
        let s = |count: usize| if count == 1 { "" } else { "s" };
        let mut parts = Vec::new();
        if self.processes > 0 {
            let count = self.processes;
            let of = if count == 1 { "" } else { "es" };
            parts.push(format!("the open files of {count} process{of} of others"));
        }
        if self.namespaces > 0 {
            let count = self.namespaces;
            parts.push(format!("the sockets of {count} network namespace{}", s(count)));
        }
        if self.sockets > 0 {
            let count = self.sockets;
            parts.push(format!(
                "addresses and state of {count} socket{}, of which sock_diag does not tell",
                s(count)
            ));
        }
        let needs_rights = self.processes > 0 || self.namespaces > 0;
        let hint =
            if needs_rights { " (root sees more, and a node of root with BPF all)" } else { "" };
        (!parts.is_empty()).then(|| format!("{}{hint}", parts.join("; ")))
    }
}

/// Open files of all processes at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Grows by one with each snapshot of an engine.
    pub generation: u64,
    /// How it was made.
    pub by: SocketsBy,
    /// When that began.
    pub began: Instant,
    /// The same on the wall clock: nanoseconds since the Unix epoch.
    pub began_unix_ns: u64,
    /// The same in nanoseconds of boot time.
    pub began_boot_ns: u64,
    /// How long it took, microseconds.
    pub scan_us: u64,
    /// Each process that has open files, and with [`SocketsBy::Diag`] each other too; ascending by pid.
    pub holders: Vec<Holder>,
    /// Every descriptor that leads to a socket, ascending by pid and descriptor.
    pub sockets: Vec<Held>,
    /// How much is missing.
    pub unseen: Unseen,
}

impl Snapshot {
    /// The sockets of a process, ascending by descriptor.
    pub fn sockets_of(&self, pid: i32) -> &[Held] {
        let from = self.sockets.partition_point(|held| held.pid < pid);
        let until = self.sockets.partition_point(|held| held.pid <= pid);
        &self.sockets[from..until]
    }

    /// The part of it that is about `pids`.
    pub(crate) fn of(&self, pids: &[i32]) -> Snapshot {
        let is_meant = |pid: i32| pids.contains(&pid);
        let holders = self.holders.iter().filter(|holder| is_meant(holder.id.pid));
        let sockets = self.sockets.iter().filter(|held| is_meant(held.pid));
        Snapshot {
            holders: holders.cloned().collect(),
            sockets: sockets.cloned().collect(),
            ..*self
        }
    }

    /// Who has this number, if it is known to hold files.
    pub fn holder(&self, pid: i32) -> Option<&Holder> {
        let at = self.holders.binary_search_by_key(&pid, |holder| holder.id.pid).ok()?;
        Some(&self.holders[at])
    }

    /// How many descriptors a process has; `None` where that is not known.
    pub fn open_files(&self, id: ProcessId) -> Option<u32> {
        match self.holder(id.pid) {
            Some(holder) => holder.files.filter(|_| holder.id.same(&id)),
            // The iterator passes over who has none; who came later is not known.
            None => {
                (self.by == SocketsBy::Iterator && id.start_ns < self.began_boot_ns).then_some(0)
            }
        }
    }

    /// The ports that a process listens on, as `tcp:22,tcp6:22,udp:53`; `None` for none.
    pub fn listening(&self, id: ProcessId) -> Option<String> {
        self.holder(id.pid).filter(|holder| holder.id.same(&id))?;
        let port = |held: &Held| {
            let port = held.socket.listening_port()?;
            Some((held.socket.protocol_name()?.into_owned(), port))
        };
        let mut ports: Vec<(String, u16)> =
            self.sockets_of(id.pid).iter().filter_map(port).collect();
        ports.sort_unstable();
        ports.dedup();
        let texts: Vec<_> =
            ports.into_iter().map(|(name, port)| format!("{name}:{port}")).collect();
        (!texts.is_empty()).then(|| texts.join(","))
    }
}

/// What makes snapshots, and the newest of them. Shared by reference; it blocks while it reads.
#[derive(Debug)]
pub(crate) struct Sockets {
    choice: Choice,
    reader: Mutex<Reader>,
    current: ArcSwapOption<Snapshot>,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Best,
    Only(SocketsBy),
}

#[derive(Debug, Default)]
struct Reader {
    /// Opened by the first who asks: the kernel takes a third of a second to check the program.
    way: Option<Way>,
    generation: u64,
}

#[derive(Debug)]
enum Way {
    Iterator(Box<FilesProgram>),
    Diag,
}

impl Sockets {
    /// As the collector of processes was chosen: who reads those by `/proc` reads sockets without BPF.
    pub(crate) fn new(choice: CollectorChoice) -> Sockets {
        Sockets::with(match choice {
            CollectorChoice::Auto => Choice::Best,
            CollectorChoice::Only(CollectorKind::Iter | CollectorKind::IterSleepable) => {
                Choice::Only(SocketsBy::Iterator)
            }
            CollectorChoice::Only(_) => Choice::Only(SocketsBy::Diag),
        })
    }

    /// Of a host that is simulated.
    pub(crate) fn nothing() -> Sockets {
        Sockets::with(Choice::Only(SocketsBy::Nothing))
    }

    fn with(choice: Choice) -> Sockets {
        Sockets { choice, reader: Mutex::default(), current: ArcSwapOption::empty() }
    }

    /// Whether there is nothing to read.
    pub(crate) fn is_nothing(&self) -> bool {
        self.choice == Choice::Only(SocketsBy::Nothing)
    }

    /// A snapshot that began at most `max_age` before now.
    ///
    /// # Errors
    /// What the kernel says, and the name of what was tried.
    pub(crate) fn snapshot(
        &self,
        proc: &ProcFs,
        max_age: Duration,
    ) -> Result<Arc<Snapshot>, (&'static str, io::Error)> {
        let asked = Instant::now();
        let is_fresh = |snapshot: &Arc<Snapshot>| snapshot.began + max_age >= asked;
        if let Some(snapshot) = self.current.load_full().filter(is_fresh) {
            return Ok(snapshot);
        }
        // A reading that panicked left nothing half done: `current` is set last.
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = self.current.load_full().filter(is_fresh) {
            return Ok(snapshot); // Made while we waited.
        }
        let snapshot = Arc::new(reader.read(self.choice, proc)?);
        self.current.store(Some(Arc::clone(&snapshot)));
        Ok(snapshot)
    }
}

impl Reader {
    fn read(
        &mut self,
        choice: Choice,
        proc: &ProcFs,
    ) -> Result<Snapshot, (&'static str, io::Error)> {
        let mut clock = Clock::now();
        if choice == Choice::Only(SocketsBy::Nothing) {
            let unseen = Unseen { all: true, ..Unseen::default() };
            return Ok(self.made(&clock, SocketsBy::Nothing, Vec::new(), Vec::new(), unseen));
        }
        let way = if let Some(way) = self.way.take() {
            way
        } else {
            let way = open(choice, proc)
                .map_err(|why| (SocketsBy::Iterator.name(), io::Error::other(why)))?;
            clock = Clock::now(); // That took a while.
            way
        };
        if let Way::Iterator(mut program) = way {
            match program.read(proc) {
                Ok((holders, sockets, unseen)) => {
                    self.way = Some(Way::Iterator(program));
                    return Ok(self.made(&clock, SocketsBy::Iterator, holders, sockets, unseen));
                }
                Err(error) if choice == Choice::Best => {
                    tracing::warn!("sockets are read by sock_diag from now on: {error}");
                }
                Err(error) => return Err((SocketsBy::Iterator.name(), error)),
            }
        }
        self.way = Some(Way::Diag);
        let by = SocketsBy::Diag;
        let read = proc.pids().and_then(|pids| holders::read(proc, &pids));
        let (holders, sockets, unseen) = read.map_err(|error| (by.name(), error))?;
        Ok(self.made(&clock, by, holders, sockets, unseen))
    }

    fn made(
        &mut self,
        clock: &Clock,
        by: SocketsBy,
        holders: Vec<Holder>,
        sockets: Vec<Held>,
        unseen: Unseen,
    ) -> Snapshot {
        self.generation += 1;
        Snapshot {
            generation: self.generation,
            by,
            began: clock.began,
            began_unix_ns: clock.unix_ns,
            began_boot_ns: clock.boot_ns,
            scan_us: clock.began.elapsed().as_micros() as u64,
            holders,
            sockets,
            unseen,
        }
    }
}

fn open(choice: Choice, proc: &ProcFs) -> Result<Way, String> {
    if choice == Choice::Only(SocketsBy::Diag) {
        return Ok(Way::Diag);
    }
    match FilesProgram::open(proc) {
        Ok(program) => Ok(Way::Iterator(Box::new(program))),
        Err(why) if choice == Choice::Best => {
            tracing::info!("sockets are read by sock_diag: {why}");
            Ok(Way::Diag)
        }
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests;
