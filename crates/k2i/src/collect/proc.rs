//! The lowest rung: `/proc`, read as fast as files allow. Works everywhere, with the reader's rights.
//!
//! Only the files that a question needs are opened. All files of one process are opened relative to
//! one descriptor of its directory, so a number that is reused in between cannot mix two processes:
//! the descriptor of a process that ended answers `ESRCH`, and the row is dropped.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kumo_abi::limits::CMDLINE_BYTES_MAX;
use kumo_abi::{ProcessId, TICK_NS};
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw};
use rustix::io::Errno;

use crate::table::{
    CMDLINE_KEPT_BYTES_MAX, Comm, CommandLine, Ids, Io, Memory, Namespaces, Parts, Process,
};

/// Processes that one thread reads before a second one is worth its start (about 50 µs).
const PIDS_PER_THREAD_MIN: usize = 256;

/// Threads at most: the kernel's locks on `/proc` do not scale further.
const THREADS_MAX: usize = 8;

/// A process that locks its memory has its L this much later at most. Some hosts have an init whose
/// locked memory changes all the time.
const CENSUS_AGE_MIN: Duration = Duration::from_secs(10);

/// Most directories of processes that are kept open between scans; each costs the kernel about 300
/// bytes, and saves an eighth of the time of its row.
const DIRECTORIES_MAX: usize = 65_536;

/// An open `/proc`.
#[derive(Debug)]
pub(crate) struct ProcFs {
    root: OwnedFd,
    page_bytes: u64,
    threads: usize,
    /// Kept from the last scan, ascending by pid.
    kept: Mutex<Vec<Slot>>,
    census: Mutex<Option<Arc<Census>>>,
}

/// How much memory each process has locked. Reading it of everyone costs a third of a scan, and it
/// hardly ever changes. It is counted again when the kernel's sum over all processes has changed, but
/// not more often than each [`CENSUS_AGE_MIN`]; processes that are not in it are read.
#[derive(Debug)]
struct Census {
    /// `Mlocked` of `/proc/meminfo`, KiB. The kernel brings it up to date once a second.
    sum_kib: u64,
    taken: Instant,
    /// Bytes by identity.
    locked: HashMap<ProcessId, u64>,
}

/// A process to be read, and its directory if it is open. The descriptor of a process that ended
/// opens nothing any more, whoever has its number now.
#[derive(Debug)]
struct Slot {
    pid: i32,
    directory: Option<OwnedFd>,
    /// Whether the directory may stay open after the process was read.
    keeps: bool,
}

impl ProcFs {
    /// Opens `/proc`.
    pub(crate) fn open() -> io::Result<ProcFs> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, c"/proc", flags, Mode::empty())?;
        // A directory that is no procfs would give an empty table, and that would be a lie.
        openat(&root, c"self/stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let page_bytes = rustix::param::page_size() as u64;
        Ok(ProcFs {
            root,
            page_bytes,
            threads: cpus.min(THREADS_MAX),
            kept: Mutex::default(),
            census: Mutex::default(),
        })
    }

    /// Reads all processes, ascending by pid. Large tables are read by several threads.
    pub(crate) fn scan(&self, parts: Parts) -> io::Result<Vec<Process>> {
        let mut slots = self.slots()?;
        let counted = parts.contains(Parts::LOCKED).then(|| self.counted()).flatten();
        let threads = (slots.len() / PIDS_PER_THREAD_MIN).clamp(1, self.threads);
        // Neighbours by number are alike (a crowd of one program), so equal shares take equal times.
        let share = slots.len().div_ceil(threads).max(1);
        let shares: Vec<_> = slots.chunks_mut(share).map(|share| Mutex::new(Some(share))).collect();
        let read = |share: &Mutex<Option<&mut [Slot]>>| -> Result<Vec<Process>, Errno> {
            let slots = share.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut reader = Reader { census: counted.as_deref(), ..Reader::new(self) };
            let slots = slots.into_iter().flatten();
            slots.filter_map(|slot| reader.read(slot, parts).transpose()).collect()
        };
        let mut rows = Vec::new();
        std::thread::scope(|scope| {
            let others = shares.iter().skip(1).map(|share| {
                // A host that cannot start a thread is one that people look at: we go on alone.
                let started = std::thread::Builder::new().spawn_scoped(scope, || read(share));
                (share, started.ok())
            });
            let others: Vec<_> = others.collect();
            rows = shares.first().map_or(Ok(Vec::new()), &read)?;
            for (share, other) in others {
                rows.extend(match other {
                    Some(other) => other.join().expect("a reader thread does not panic")?,
                    None => read(share)?,
                });
            }
            Ok::<(), Errno>(())
        })?;
        drop(shares);
        self.keep(slots);
        if parts.contains(Parts::LOCKED) {
            self.count(counted.as_deref(), &rows);
        }
        Ok(rows)
    }

    /// All processes of now, with the directories that are still open from the last scan.
    fn slots(&self) -> io::Result<Vec<Slot>> {
        let pids = self.pids()?;
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        let mut kept = kept.into_iter().peekable();
        let slot = |pid: i32| {
            while kept.next_if(|slot| slot.pid < pid).is_some() {}
            let slot = kept.next_if(|slot| slot.pid == pid);
            slot.unwrap_or(Slot { pid, directory: None, keeps: false })
        };
        let mut slots: Vec<Slot> = pids.into_iter().map(slot).collect();
        let most = directories_max();
        for (index, slot) in slots.iter_mut().enumerate() {
            slot.keeps = index < most;
            slot.directory = slot.directory.take().filter(|_| slot.keeps);
        }
        Ok(slots)
    }

    fn keep(&self, mut slots: Vec<Slot>) {
        slots.retain(|slot| slot.directory.is_some());
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = slots;
    }

    /// The census, if it is still good.
    fn counted(&self) -> Option<Arc<Census>> {
        let census = self.census.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let young = census.taken.elapsed() < CENSUS_AGE_MIN;
        (young || Some(census.sum_kib) == self.locked_kib()).then_some(census)
    }

    /// Takes the census of `rows`, or adds those that are missing in the one that was used.
    fn count(&self, used: Option<&Census>, rows: &[Process]) {
        let (sum_kib, taken) = match used {
            Some(used) if rows.iter().all(|row| used.locked.contains_key(&row.id())) => return,
            Some(used) => (Some(used.sum_kib), used.taken),
            None => (self.locked_kib(), Instant::now()),
        };
        let Some(sum_kib) = sum_kib else { return };
        let locked = rows.iter().map(|row| (row.id(), row.locked)).collect();
        let census = Census { sum_kib, taken, locked };
        *self.census.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(census));
    }

    /// Locked memory of all processes together, KiB.
    fn locked_kib(&self) -> Option<u64> {
        let mut reader = Reader::new(self);
        let text = reader.slurp(self.root.as_fd(), c"meminfo").ok()?;
        let at = memchr::memmem::find(text, b"\nMlocked:")?;
        Digits(&text[at..]).next()
    }

    /// Reads one process; `None` if it is gone.
    pub(crate) fn one(&self, pid: i32, parts: Parts) -> Option<Process> {
        let mut slot = Slot { pid, directory: None, keeps: false };
        Reader::new(self).read(&mut slot, parts).ok().flatten()
    }

    /// The same, with its directory: what is opened below that is of the same process, or cannot be.
    pub(crate) fn with_directory(&self, pid: i32, parts: Parts) -> Option<(Process, OwnedFd)> {
        let mut slot = Slot { pid, directory: None, keeps: true };
        let row = Reader::new(self).read(&mut slot, parts).ok().flatten()?;
        Some((row, slot.directory?))
    }

    /// Fetches `parts` that `row` lacks. If the number belongs to another process by now, or to
    /// none, `row` stays as it is.
    pub(crate) fn complete(&self, row: &mut Process, parts: Parts) {
        let missing = parts.without(row.have);
        if !missing.is_empty() {
            Reader::new(self).complete(row, missing);
        }
    }

    /// The same for many rows, by several threads.
    pub(crate) fn complete_all(&self, rows: &mut [Process], parts: Parts) {
        let shares = Mutex::new(rows.chunks_mut(PIDS_PER_THREAD_MIN));
        let next = || shares.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            let mut reader = Reader::new(self);
            while let Some(share) = next() {
                for row in share {
                    let missing = parts.without(row.have);
                    if !missing.is_empty() {
                        reader.complete(row, missing);
                    }
                }
            }
        };
        let threads = shares.lock().unwrap_or_else(PoisonError::into_inner).len().min(self.threads);
        std::thread::scope(|scope| {
            for _other in 1..threads {
                // Without it the others do its share.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
    }

    /// The numbers of all processes, ascending.
    pub(crate) fn pids(&self) -> io::Result<Vec<i32>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // A descriptor of its own: two scans must not share one read position.
        let dir = openat(&self.root, c".", flags, Mode::empty())?;
        let mut buffer = Vec::with_capacity(64 * 1024);
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        let mut pids = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let mut digits = Digits(entry.file_name().to_bytes());
            if let Some(pid) = digits.whole() {
                pids.push(pid as i32);
            }
        }
        pids.sort_unstable();
        Ok(pids)
    }
}

/// One thread's buffer and way into `/proc`.
struct Reader<'p> {
    proc: &'p ProcFs,
    buffer: Vec<u8>,
    /// Who has locked memory, if that is known.
    census: Option<&'p Census>,
}

impl<'p> Reader<'p> {
    fn new(proc: &'p ProcFs) -> Reader<'p> {
        Reader { proc, buffer: vec![0; 16 * 1024], census: None }
    }

    fn directory(&self, pid: i32) -> Result<OwnedFd, Errno> {
        let mut path = [0u8; 12];
        let path = write_pid(&mut path, pid);
        openat(
            &self.proc.root,
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }

    /// Reads one process; `None` if it is gone, or hidden from us.
    ///
    /// # Errors
    /// What is not the process's fault, such as no descriptor left: then the table would lack
    /// processes that are there, and there must be none.
    fn read(&mut self, slot: &mut Slot, parts: Parts) -> Result<Option<Process>, Errno> {
        if let Some(directory) = slot.directory.take()
            && let Some(row) = gone(self.read_in(directory.as_fd(), slot.pid, parts))?
        {
            slot.directory = Some(directory);
            return Ok(Some(row));
        }
        // The first time, or another process under the same number.
        let Some(directory) = gone(self.directory(slot.pid))? else { return Ok(None) };
        let row = gone(self.read_in(directory.as_fd(), slot.pid, parts))?;
        slot.directory = Some(directory).filter(|_| slot.keeps && row.is_some());
        Ok(row)
    }

    fn read_in(&mut self, dir: BorrowedFd<'_>, pid: i32, parts: Parts) -> Result<Process, Errno> {
        let mut row = Process { pid, ..Process::default() };
        if parts.contains(Parts::OWNER) && !parts.intersects(Parts::STATUS | Parts::SECURITY) {
            // Before `stat`: the directory of a process that is gone belongs to root, and then `stat`
            // cannot be read. The kernel gives this directory, and no other, always the effective
            // ids (task_dump_owner() in fs/proc/base.c).
            let owner = rustix::fs::fstat(dir)?;
            (row.uid.effective, row.gid.effective) = (owner.st_uid, owner.st_gid);
            row.have |= Parts::OWNER;
        }
        parse_stat(self.slurp(dir, c"stat")?, &mut row).ok_or(Errno::SRCH)?;
        self.fill(dir, &mut row, parts)?;
        Ok(row)
    }

    fn complete(&mut self, row: &mut Process, parts: Parts) {
        let Ok(dir) = self.directory(row.pid) else { return };
        let mut now = Process::default();
        let owner = rustix::fs::fstat(&dir);
        let Ok(stat) = self.slurp(dir.as_fd(), c"stat") else { return };
        if parse_stat(stat, &mut now).is_none() || now.start_ns / TICK_NS != row.start_ns / TICK_NS
        {
            return;
        }
        if let Some(owner) = owner.ok().filter(|_| parts.contains(Parts::OWNER)) {
            (row.uid.effective, row.gid.effective) = (owner.st_uid, owner.st_gid);
            row.have |= Parts::OWNER;
        }
        // An error means that it ended on the way; what was read before is true all the same.
        let _ = self.fill(dir.as_fd(), row, parts);
    }

    /// Reads `parts` into `row`.
    ///
    /// # Errors
    /// `SRCH` when the process ended meanwhile. What the reader may not see stays absent.
    fn fill(&mut self, dir: BorrowedFd<'_>, row: &mut Process, parts: Parts) -> Result<(), Errno> {
        let page = self.proc.page_bytes;
        let missing = parts.without(row.have);
        let wants = |part| missing.contains(part);
        if wants(Parts::MEMORY) {
            let parsed = self.part(dir, c"statm")?.map(|text| parse_statm(text, page));
            row.memory = parsed.unwrap_or_default();
            row.have |= if parsed.is_some() { Parts::MEMORY } else { Parts::NONE };
        }
        let counted = self.census.and_then(|census| census.locked.get(&row.id()).copied());
        if let Some(locked) = counted.filter(|_| wants(Parts::LOCKED)) {
            row.locked = locked;
            row.have |= Parts::LOCKED;
        }
        let uncounted = wants(Parts::LOCKED) && counted.is_none();
        if (missing.intersects(Parts::STATUS | Parts::SECURITY) || uncounted)
            && let Some(text) = self.part(dir, c"status")?
        {
            parse_status(text, row);
            row.have |= Parts::STATUS | Parts::SECURITY | Parts::OWNER | Parts::LOCKED;
        }
        if wants(Parts::IO)
            && let Some(text) = self.part(dir, c"io")?
        {
            row.io = parse_io(text);
            row.have |= Parts::IO;
        }
        if wants(Parts::THREADS) {
            self.threads(dir, row)?;
        }
        if wants(Parts::NAMESPACES) {
            self.namespaces(dir, row);
        }
        if wants(Parts::AUDIT) {
            // A kernel without audit has no loginuid; that is the same as unset.
            let loginuid = self.part(dir, c"loginuid")?.and_then(|text| Digits(text).next());
            row.loginuid = loginuid.map_or(u32::MAX, |id| id as u32);
            if let Some(text) = self.part(dir, c"oom_score_adj")? {
                row.oom_score_adj = Digits(text).next_signed().unwrap_or(0) as i16;
                row.have |= Parts::AUDIT;
            }
        }
        if wants(Parts::CMDLINE)
            && let Some(text) = self.part(dir, c"cmdline")?
        {
            // A second look at a long one is for a row that leaves.
            let long = text.len() > CMDLINE_KEPT_BYTES_MAX && !row.cmdline_long;
            row.cmdline = (!text.is_empty() && !long).then(|| CommandLine::new(text));
            row.have |= if long { Parts::NONE } else { Parts::CMDLINE };
            row.cmdline_long = long;
        }
        if wants(Parts::CGROUP)
            && let Some(text) = self.part(dir, c"cgroup")?
        {
            row.cgroup = Some(Arc::from(text));
            row.have |= Parts::CGROUP;
        }
        if missing.intersects(Parts::LATE) {
            self.late(dir, row, missing)?;
        }
        Ok(())
    }

    fn late(
        &mut self,
        dir: BorrowedFd<'_>,
        row: &mut Process,
        missing: Parts,
    ) -> Result<(), Errno> {
        let mut late = row.late.take().map(Arc::unwrap_or_clone).unwrap_or_default();
        let links = [Parts::EXE, Parts::CWD, Parts::ROOT].into_iter().zip([
            (c"exe", &mut late.exe),
            (c"cwd", &mut late.cwd),
            (c"root", &mut late.root),
        ]);
        for (part, (name, target)) in links {
            if missing.contains(part) {
                match self.link(dir, name) {
                    Ok(path) => *target = Some(path.into()),
                    // Kernel threads have none.
                    Err(Errno::NOENT) => *target = None,
                    Err(_) => continue,
                }
                row.have |= part;
            }
        }
        if missing.contains(Parts::OOM_SCORE)
            && let Some(text) = self.part(dir, c"oom_score")?
        {
            late.oom_score = Digits(text).next().map(|score| score as i32);
            row.have |= Parts::OOM_SCORE;
        }
        if missing.contains(Parts::WCHAN)
            && let Some(text) = self.part(dir, c"wchan")?
        {
            late.wchan = (!matches!(text, b"0" | b"")).then(|| text.into());
            row.have |= Parts::WCHAN;
        }
        row.late = Some(Arc::new(late));
        Ok(())
    }

    /// Sums what the kernel shows per thread only.
    fn threads(&mut self, dir: BorrowedFd<'_>, row: &mut Process) -> Result<(), Errno> {
        if row.threads <= 1 {
            // The files of the process are those of its only thread, two opens cheaper.
            let Some(text) = self.part(dir, c"schedstat")? else { return Ok(()) };
            row.run_delay_ns = parse_schedstat(text);
            let Some(text) = self.part(dir, c"status")? else { return Ok(()) };
            (row.vcsw, row.ivcsw) = parse_switches(text);
            row.have |= Parts::THREADS;
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(tasks) = openat(dir, c"task", flags, Mode::empty()) else { return Ok(()) };
        let mut buffer = Vec::with_capacity(8 * 1024);
        let mut entries = RawDir::new(&tasks, buffer.spare_capacity_mut());
        let (mut delay_ns, mut vcsw, mut ivcsw) = (0, 0, 0);
        while let Some(Ok(entry)) = entries.next() {
            if Digits(entry.file_name().to_bytes()).whole().is_none() {
                continue;
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let Ok(thread) = openat(&tasks, entry.file_name(), flags, Mode::empty()) else {
                continue;
            };
            // A thread that ends on the way takes its share with it; the process goes on.
            if let Ok(text) = self.slurp(thread.as_fd(), c"schedstat") {
                delay_ns += parse_schedstat(text);
            }
            if let Ok(text) = self.slurp(thread.as_fd(), c"status") {
                let (voluntary, involuntary) = parse_switches(text);
                (vcsw, ivcsw) = (vcsw + voluntary, ivcsw + involuntary);
            }
        }
        (row.run_delay_ns, row.vcsw, row.ivcsw) = (delay_ns, vcsw, ivcsw);
        row.have |= Parts::THREADS;
        Ok(())
    }

    fn namespaces(&mut self, dir: BorrowedFd<'_>, row: &mut Process) {
        let mut ns = Namespaces::default();
        let links: [(&CStr, &mut u32); 8] = [
            (c"ns/mnt", &mut ns.mnt),
            (c"ns/pid", &mut ns.pid),
            (c"ns/net", &mut ns.net),
            (c"ns/uts", &mut ns.uts),
            (c"ns/ipc", &mut ns.ipc),
            (c"ns/user", &mut ns.user),
            (c"ns/cgroup", &mut ns.cgroup),
            (c"ns/time", &mut ns.time),
        ];
        for (name, target) in links {
            match self.link(dir, name) {
                Ok(link) => *target = Digits(link).next().unwrap_or(0) as u32,
                // A zombie has left most of its namespaces; an old kernel lacks some.
                Err(Errno::NOENT) => {}
                Err(_) => return,
            }
        }
        row.ns = ns;
        row.have |= Parts::NAMESPACES;
    }

    /// A file that may be hidden from us, or unknown to this kernel: `Ok(None)`.
    ///
    /// # Errors
    /// `SRCH` if the process is gone; what [`is_ours`] says.
    fn part(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<&[u8]>, Errno> {
        match self.slurp(dir, name).map(<[u8]>::len) {
            Ok(len) => Ok(Some(&self.buffer[..len])),
            Err(error) if error == Errno::SRCH || is_ours(error) => Err(error),
            // Every process has a `stat`: without it, it is the process that is not there.
            Err(Errno::NOENT) if self.slurp(dir, c"stat").is_err() => Err(Errno::SRCH),
            Err(_) => Ok(None),
        }
    }

    fn slurp(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<&[u8], Errno> {
        let file = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut len = 0;
        loop {
            let room = self.buffer.len() - len;
            let read = rustix::io::read(&file, &mut self.buffer[len..])?;
            len += read;
            // These files are made whole by one read; a full buffer is the sign that there is more.
            if read == 0 || (read < room && len < 4096) {
                break;
            }
            if len == self.buffer.len() {
                if len >= CMDLINE_BYTES_MAX {
                    break;
                }
                self.buffer.resize(len * 2, 0);
            }
        }
        Ok(&self.buffer[..len])
    }

    fn link(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<&[u8], Errno> {
        let len = readlinkat_raw(dir, name, &mut self.buffer[..])?;
        Ok(&self.buffer[..len])
    }
}

/// Most directories of processes that may stay open: a quarter of the descriptors that we may have.
/// The others are for clients and files.
pub(crate) fn directories_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(DIRECTORIES_MAX, |limit| limit as usize / 4).min(DIRECTORIES_MAX)
}

/// Whether an error is for want of our own means rather than of the process.
fn is_ours(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOMEM)
}

/// `None` for a process that is gone or hidden.
fn gone<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_ours(error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Writes a pid as a C string.
fn write_pid(buffer: &mut [u8; 12], pid: i32) -> &CStr {
    let mut digits = itoa::Buffer::new();
    let text = digits.format(pid).as_bytes();
    buffer[..text.len()].copy_from_slice(text);
    buffer[text.len()] = 0;
    CStr::from_bytes_with_nul(&buffer[..=text.len()]).expect("digits and one terminator")
}

/// The numbers in a text, in order, whatever stands between them.
struct Digits<'t>(&'t [u8]);

impl Digits<'_> {
    /// The text as one number, if it is nothing else.
    fn whole(&mut self) -> Option<u64> {
        let all = !self.0.is_empty() && self.0.iter().all(u8::is_ascii_digit);
        all.then(|| self.next()).flatten()
    }

    /// The next number. Saturates, as `RLIM_INFINITY` is printed in full.
    fn next(&mut self) -> Option<u64> {
        let start = self.0.iter().position(u8::is_ascii_digit)?;
        let mut value = 0u64;
        let mut end = start;
        while let Some(digit) = self.0.get(end).filter(|byte| byte.is_ascii_digit()) {
            value = value.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
            end += 1;
        }
        self.0 = &self.0[end..];
        Some(value)
    }

    /// The next number with its sign.
    fn next_signed(&mut self) -> Option<i64> {
        let start = self.0.iter().position(u8::is_ascii_digit)?;
        let negative = start > 0 && self.0[start - 1] == b'-';
        let value = self.next()?.min(i64::MAX as u64) as i64;
        Some(if negative { -value } else { value })
    }
}

/// Parses `/proc/<pid>/stat` (`proc_pid_stat(5)`). `None` if it is not of that form.
pub(crate) fn parse_stat(text: &[u8], row: &mut Process) -> Option<()> {
    // The name may hold anything, parentheses and blanks included: it ends at the last `)`.
    let open = memchr::memchr(b'(', text)?;
    let close = memchr::memrchr(b')', text)?;
    row.comm = Comm::new(text.get(open + 1..close)?);
    row.pid = Digits(&text[..open]).next()? as i32;
    let rest = text.get(close + 2..)?;
    row.state = *rest.first()?;
    let mut field = Digits(&rest[1..]);
    row.ppid = field.next_signed()? as i32;
    row.pgrp = field.next_signed()? as i32;
    row.session = field.next_signed()? as i32;
    row.tty_nr = field.next_signed()? as u32;
    row.tpgid = field.next_signed()? as i32;
    row.flags = field.next()? as u32;
    row.min_flt = field.next()?;
    row.cmin_flt = field.next()?;
    row.maj_flt = field.next()?;
    row.cmaj_flt = field.next()?;
    row.utime_ns = field.next()?.saturating_mul(TICK_NS);
    row.stime_ns = field.next()?.saturating_mul(TICK_NS);
    row.cutime_ns = field.next()?.saturating_mul(TICK_NS);
    row.cstime_ns = field.next()?.saturating_mul(TICK_NS);
    row.priority = field.next_signed()? as i32;
    row.nice = field.next_signed()? as i32;
    row.threads = field.next()? as u32;
    field.next()?; // itrealvalue, always 0
    row.start_ns = field.next()?.saturating_mul(TICK_NS);
    row.vsize = field.next()?;
    field.next()?; // rss: inexact since Linux 6.2; `statm` is exact
    row.rss_limit = field.next()?;
    for _unused in 26..=37 {
        field.next()?; // startcode to cnswap; addresses tell an attacker where to aim
    }
    row.exit_signal = field.next_signed()? as i32;
    row.processor = field.next()? as i32;
    row.rtprio = field.next()? as u32;
    row.policy = field.next()? as u32;
    row.have |= Parts::STAT;
    Some(())
}

fn parse_statm(text: &[u8], page_bytes: u64) -> Memory {
    let mut field = Digits(text);
    let mut bytes = || field.next().unwrap_or(0) * page_bytes;
    let (_size, resident, shared, code, _lib, data) =
        (bytes(), bytes(), bytes(), bytes(), bytes(), bytes());
    Memory { anon: resident.saturating_sub(shared), shared, text: code, data }
}

fn parse_status(text: &[u8], row: &mut Process) {
    let ids = |value: &[u8]| {
        let mut field = Digits(value);
        let mut id = || field.next().unwrap_or(0) as u32;
        Ids { real: id(), effective: id(), saved: id(), fs: id() }
    };
    let kib = |value: &[u8]| Digits(value).next().unwrap_or(0) * 1024;
    let hex = |value: &[u8]| {
        let text = std::str::from_utf8(value).unwrap_or("0");
        u64::from_str_radix(text.trim(), 16).unwrap_or(0)
    };
    for line in text.split(|byte| *byte == b'\n') {
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let value = &line[colon + 1..];
        match &line[..colon] {
            b"Uid" => row.uid = ids(value),
            b"Gid" => row.gid = ids(value),
            b"NSpid" => {
                let mut numbers = Digits(value);
                while let Some(number) = numbers.next() {
                    row.nspid = number as i32;
                }
            }
            b"VmLck" => row.locked = kib(value),
            b"VmStk" => row.stack = kib(value),
            b"VmSwap" => row.swap = kib(value),
            b"CapInh" => row.caps.inheritable = hex(value),
            b"CapPrm" => row.caps.permitted = hex(value),
            b"CapEff" => row.caps.effective = hex(value),
            b"CapBnd" => row.caps.bounding = hex(value),
            b"CapAmb" => row.caps.ambient = hex(value),
            b"NoNewPrivs" => row.no_new_privs = Digits(value).next() == Some(1),
            b"Seccomp" => row.seccomp = Digits(value).next().unwrap_or(0) as u8,
            _ => {}
        }
    }
    if row.nspid == 0 {
        row.nspid = row.pid; // Linux before 4.1, or one without PID namespaces.
    }
}

fn parse_switches(text: &[u8]) -> (u64, u64) {
    let find = |key: &[u8]| {
        let at = memchr::memmem::rfind(text, key)?;
        Digits(&text[at + key.len()..]).next()
    };
    (
        find(b"\nvoluntary_ctxt_switches:").unwrap_or(0),
        find(b"\nnonvoluntary_ctxt_switches:").unwrap_or(0),
    )
}

fn parse_schedstat(text: &[u8]) -> u64 {
    let mut field = Digits(text);
    field.next();
    field.next().unwrap_or(0)
}

fn parse_io(text: &[u8]) -> Io {
    let mut field = Digits(text);
    let mut number = || field.next().unwrap_or(0);
    let (rchar, wchar, _syscr, _syscw) = (number(), number(), number(), number());
    let (read_bytes, write_bytes, cancelled_write_bytes) = (number(), number(), number());
    Io { rchar, wchar, read_bytes, write_bytes, cancelled_write_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Capabilities;

    const STAT: &str = "1026 (a) b (c) S 1 1026 1000 34816 2000 4194560 98 7 3 1 250 50 4 2 20 -5 3 0 \
        193556 3133440 394 18446744073709551615 10 20 30 0 0 0 0 0 0 0 0 0 17 1 40 2 0 0 0 0 0 0 0";

    #[test]
    fn a_name_with_parentheses_ends_at_the_last_one() {
        let mut row = Process::default();
        parse_stat(STAT.as_bytes(), &mut row).expect("a line of stat");
        assert_eq!(row.comm.as_bytes(), b"a) b (c");
        assert_eq!((row.pid, row.state, row.ppid, row.session), (1026, b'S', 1, 1000));
        assert_eq!((row.tty_nr, row.tpgid, row.nice, row.threads), (34816, 2000, -5, 3));
        assert_eq!((row.utime_ns, row.stime_ns), (2_500_000_000, 500_000_000));
        assert_eq!((row.start_ns, row.vsize), (1_935_560_000_000, 3_133_440));
        assert_eq!((row.rss_limit, row.processor, row.exit_signal), (u64::MAX, 1, 17));
        assert_eq!((row.rtprio, row.policy), (40, 2));
    }

    #[test]
    fn what_is_no_stat_is_refused() {
        for bad in ["", "1", "1 (", "1 (a", "1 (a)", "1 (a) S", "x (a) S 1 2", ") ("] {
            let refused = parse_stat(bad.as_bytes(), &mut Process::default()).is_none();
            assert!(refused, "for {bad:?}");
        }
        for end in 0..STAT.len() - 16 {
            // Every truncation: refused or parsed, never a panic.
            let _ = parse_stat(&STAT.as_bytes()[..end], &mut Process::default());
        }
    }

    #[test]
    fn status_io_and_switches() {
        let text =
            b"Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nNSpid:\t900\t12\nVmLck:\t 4 kB\n\
            VmSwap:\t 12 kB\nCapEff:\t000001ffffffffff\nNoNewPrivs:\t1\nSeccomp:\t2\n\
            voluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n";
        let mut row = Process::default();
        parse_status(text, &mut row);
        assert_eq!(row.uid, Ids { real: 1, effective: 2, saved: 3, fs: 4 });
        assert_eq!((row.nspid, row.locked, row.swap), (12, 4096, 12288));
        assert_eq!(row.caps, Capabilities { effective: 0x1ff_ffff_ffff, ..Default::default() });
        assert_eq!((row.no_new_privs, row.seccomp), (true, 2));
        assert_eq!(parse_switches(text), (150, 545));
        assert_eq!(parse_schedstat(b"1054470 77 1\n"), 77);
        let io = parse_io(b"rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\ncancelled_write_bytes: 7\n");
        let want =
            Io { rchar: 1, wchar: 2, read_bytes: 5, write_bytes: 6, cancelled_write_bytes: 7 };
        assert_eq!(io, want);
    }

    #[test]
    fn many_rows_are_completed_by_several_threads() {
        let proc = ProcFs::open().expect("/proc");
        let own = proc.one(std::process::id() as i32, Parts::STAT);
        let mut rows = vec![own.expect("our own row"); 3 * PIDS_PER_THREAD_MIN + 1];
        proc.complete_all(&mut rows, Parts::MEMORY);
        assert!(rows.iter().all(|row| row.have.contains(Parts::MEMORY) && row.rss() > 0));
    }

    #[test]
    fn our_own_row_agrees_with_what_the_kernel_tells_us() {
        let proc = ProcFs::open().expect("/proc");
        let rows = proc.scan(Parts::MEMORY | Parts::STATUS | Parts::CMDLINE).expect("a scan");
        let own = std::process::id() as i32;
        let row = rows.iter().find(|row| row.pid == own).expect("our own row");
        assert_eq!(row.ppid as u32, std::os::unix::process::parent_id());
        assert_eq!(row.uid.effective, rustix::process::geteuid().as_raw());
        let argv = row.cmdline.as_ref().expect("we have arguments").argv();
        let first = std::env::args_os().next().expect("a name");
        assert!(argv.starts_with(first.as_encoded_bytes()));
        assert!(rows.windows(2).all(|pair| pair[0].pid < pair[1].pid), "ascending, no pid twice");
    }
}
