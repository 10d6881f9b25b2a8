//! The upper rungs: the kernel's own task iterator, by BPF.
//!
//! `bpf/task.bpf.c` holds two programs: `numbers` works wherever BPF iterators do (Linux 5.8),
//! `numbers_and_lines` also reads command lines in the same pass (it sleeps: 5.18). A pass of numbers
//! tells which command lines may have changed; those few are read one by one, and many of them by a
//! second kind of pass.
//!
//! A pass of numbers never waits. One with lines may: it reads the memory of other processes, and a
//! process can have that memory come from a file system of its own making, which answers when it
//! likes. So such a pass runs on a thread of its own, and is waited for no longer than [`LINES_WAIT`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::{Iter, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};
use kumo_abi::ProcessId;

use super::proc::ProcFs;
use super::records::{self, Aside, GroupsKey, Line, LineKey, Records, is_exiting};
use super::{CollectorKind, Scan};
use crate::table::{CommandLine, Parts, Process};

/// The compiled programs. `bpf/build` makes it and, with `--check`, compares it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/task.bpf.o");

/// One in so many command lines may be read from `/proc` before a pass over all of them is cheaper:
/// 6 µs for one line there, 2 µs here.
const LINES_APART_SHARE: usize = 3;

/// How often it is checked that the iterator shows what `/proc` shows, 1 ms for 3,000 processes, and
/// the texts of control groups are read again, 10 µs each.
const CHECK_AGAIN: Duration = Duration::from_secs(30);

/// A kernel that hides more processes than this from its iterator is better read by `/proc`.
const HIDDEN_MAX: usize = 16;

/// How many processes whose threads changed during a pass are read again: 10 µs each, so a host full
/// of short-lived threads makes no scan longer than by a millisecond.
const TORN_MAX: usize = 100;

/// How long a pass with lines may take. Ten thousand lines take about 50 ms; who waits longer waits for
/// the memory of one process, and everybody who asks for the table waits with him.
const LINES_WAIT: Duration = Duration::from_secs(3);

/// The kernel hands out at most 32 KiB at a read.
const READ_BYTES: usize = 32 * 1024;

/// So many passes in a row must leave three quarters of the buffer unused before half of it is given
/// back: about a minute of readings that nobody asked for.
const OVERSIZED_PASSES: u32 = 16;

/// The loaded programs, and what is remembered between passes.
#[derive(Debug)]
pub(crate) struct BpfCollector {
    /// None after a pass with lines failed, until the next pass loads the numbers anew.
    ebpf: Option<Ebpf>,
    /// Whether passes with lines are made; once one of them failed, never again.
    sleepable: bool,
    page_bytes: u64,
    /// Ascending by pid.
    lines: Vec<KnownLine>,
    /// How many processes had a line in the last pass.
    lines_last: usize,
    cgroups: HashMap<GroupsKey, Groups>,
    /// What the last pass wrote, and room for the next.
    stream: Vec<u8>,
    /// How many passes in a row used less than a quarter of it.
    oversized: u32,
    /// Whether passes bring [`Parts::MORE`]; a copy of what the programs see.
    more: bool,
    /// Processes that `/proc` shows and the iterator does not: hardened kernels hide some.
    hidden: Vec<i32>,
    checked: Instant,
}

/// The text of `/proc/<pid>/cgroup` for all processes with one key.
#[derive(Debug)]
struct Groups {
    text: Arc<[u8]>,
    /// The key was taken before the text was read, and the process may have been moved in between:
    /// only when it is found with the same key a second time, the text is known to belong to it.
    unconfirmed: Option<ProcessId>,
}

/// A command line that was read, and by what to know that it is still the same.
#[derive(Debug)]
struct KnownLine {
    pid: i32,
    key: LineKey,
    /// Another of its threads may have written it after it was read and before its time was.
    doubtful: bool,
    line: Option<CommandLine>,
    long: bool,
}

impl KnownLine {
    /// Whether it is the line of this row now.
    fn is_of(&self, row: &Process, aside: &Aside) -> bool {
        self.pid == row.pid && self.key == aside.line_key && !self.doubtful
    }
}

impl BpfCollector {
    /// Loads the programs and makes one pass of each kind that will be made.
    ///
    /// # Errors
    /// Why this rung does not work here and what would help, for people.
    pub(crate) fn open(kind: CollectorKind, proc: &ProcFs) -> Result<BpfCollector, String> {
        let sleepable = kind == CollectorKind::IterSleepable;
        let mut collector = BpfCollector {
            ebpf: Some(load(sleepable)?),
            sleepable,
            page_bytes: rustix::param::page_size() as u64,
            lines: Vec::new(),
            lines_last: 0,
            cgroups: HashMap::new(),
            stream: Vec::new(),
            oversized: 0,
            more: false,
            hidden: Vec::new(),
            checked: Instant::now(),
        };
        // A kernel may load what it then refuses to run, or to show.
        if sleepable {
            let mut records = collector.pass_with_lines(false).map_err(|error| explain(&error))?;
            collector.put_lines(proc, &mut records);
        }
        collector.find_hidden(proc).map_err(|error| explain(&error))?;
        if collector.hidden.len() > HIDDEN_MAX {
            let hidden = collector.hidden.len();
            return Err(format!("it does not show {hidden} processes that /proc shows"));
        }
        kumo_sys::memory::trim(); // The kernel's type information was 60 MB of small pieces.
        Ok(collector)
    }

    /// Whether it reads command lines in its own passes, and has always done so well.
    pub(crate) fn reads_lines(&self) -> bool {
        self.sleepable
    }

    /// Compares a pass with `/proc`. What started or ended meanwhile is in one of its two listings only.
    fn find_hidden(&mut self, proc: &ProcFs) -> io::Result<()> {
        let before = proc.pids()?;
        let records = self.pass_of_numbers(self.more)?;
        let after = proc.pids()?;
        let seen = |pid: &i32| records.rows.binary_search_by_key(pid, |row| row.pid).is_ok();
        let stayed = before.into_iter().filter(|pid| after.binary_search(pid).is_ok());
        self.hidden = stayed.filter(|pid| !seen(pid)).collect();
        self.checked = Instant::now();
        Ok(())
    }

    /// Reads the whole table with at least `parts`.
    pub(crate) fn scan(&mut self, proc: &ProcFs, parts: Parts) -> io::Result<Scan> {
        if self.checked.elapsed() > CHECK_AGAIN {
            self.find_hidden(proc)?;
            self.cgroups.clear();
        }
        let more = parts.intersects(Parts::MORE | Parts::CGROUP);
        let lines = parts.contains(Parts::CMDLINE);
        // After a start, or a long while without such a question, most lines are unknown.
        let mostly_unknown = self.lines.len() <= self.lines_last / 2;
        let mut records = self.pass(lines && mostly_unknown, more)?;
        if lines {
            let stale = self.stale_lines(&records);
            if self.sleepable && stale > records.rows.len() / LINES_APART_SHARE {
                records = self.pass(true, more)?;
            }
            self.put_lines(proc, &mut records);
        }
        self.lines_last = records.asides.iter().filter(|aside| aside.line != Line::None).count();
        mend_torn(proc, &mut records);
        let mut rows = records.rows;
        let mut have = if more { Parts::BASE | Parts::MORE } else { Parts::BASE };
        if !records.rss_exact && !parts.contains(Parts::MEMORY) {
            have = have.without(Parts::MEMORY);
        }
        if !records.rss_exact && parts.contains(Parts::MEMORY) {
            proc.complete_all(&mut rows, Parts::MEMORY);
        }
        if lines {
            have |= Parts::CMDLINE;
        }
        if parts.contains(Parts::CGROUP) {
            self.put_cgroups(proc, &mut rows, &records.asides);
            have |= Parts::CGROUP;
        }
        for pid in &self.hidden {
            if let Some(row) = proc.one(*pid, have)
                && let Err(at) = rows.binary_search_by_key(pid, |row| row.pid)
            {
                rows.insert(at, row);
            }
        }
        Ok(Scan { rows, parts: have })
    }

    /// One walk of the kernel over all its tasks, with command lines if they are wanted and if that
    /// has always gone well.
    fn pass(&mut self, lines: bool, more: bool) -> io::Result<Records> {
        if lines && self.sleepable {
            match self.pass_with_lines(more) {
                Ok(records) => return Ok(records),
                Err(error) => self.give_up_lines(&error),
            }
        }
        self.pass_of_numbers(more)
    }

    /// From now on command lines come from `/proc`. The pass that failed may still be under way
    /// somewhere in the kernel, and would write into the programs' variables while the next pass does:
    /// so the next pass gets programs with variables of their own.
    fn give_up_lines(&mut self, error: &io::Error) {
        tracing::warn!("command lines are read from /proc from now on: {}", explain(error));
        self.sleepable = false;
        self.ebpf = None;
    }

    fn pass_of_numbers(&mut self, more: bool) -> io::Result<Records> {
        let mut file = self.start("numbers", more)?;
        let mut stream = std::mem::take(&mut self.stream);
        let read = read_whole(&mut file, &mut stream);
        self.stream = stream;
        self.records(read?)
    }

    /// The same, and the lines. Waits no longer than [`LINES_WAIT`].
    ///
    /// # Errors
    /// After one, [`BpfCollector::give_up_lines`] must follow.
    fn pass_with_lines(&mut self, more: bool) -> io::Result<Records> {
        let mut file = self.start("numbers_and_lines", more)?;
        let mut stream = std::mem::take(&mut self.stream);
        let (stream, read) = within(LINES_WAIT, move || {
            let read = read_whole(&mut file, &mut stream);
            (stream, read)
        })?;
        self.stream = stream;
        self.records(read?)
    }

    /// Begins a pass; it goes on as its file is read. `more` is whether to bring [`Parts::MORE`].
    fn start(&mut self, program: &str, more: bool) -> io::Result<File> {
        if self.ebpf.is_none() {
            self.ebpf = Some(load(self.sleepable).map_err(io::Error::other)?);
            self.more = false; // As a new map is.
            kumo_sys::memory::trim();
        }
        let missing = || io::Error::other(format!("the object lacks `{program}` or its control"));
        let ebpf = self.ebpf.as_mut().ok_or_else(missing)?;
        if self.more != more {
            let map = ebpf.map_mut("control").ok_or_else(missing)?;
            let mut control =
                aya::maps::Array::<_, u32>::try_from(map).map_err(io::Error::other)?;
            control.set(0, u32::from(more), 0).map_err(io::Error::other)?;
            self.more = more;
        }
        let program: &mut Iter = ebpf
            .program_mut(program)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(missing)?;
        let link = program.attach().map_err(io::Error::other)?;
        let link = program.take_link(link).map_err(io::Error::other)?;
        link.into_file().map_err(io::Error::other)
    }

    fn records(&mut self, len: usize) -> io::Result<Records> {
        shrink(&mut self.stream, len, &mut self.oversized);
        records::read(&self.stream[..len], self.page_bytes).map_err(|malformed| {
            io::Error::other(format!("malformed record at byte {}", malformed.offset))
        })
    }

    /// How many lines must be read anew.
    fn stale_lines(&self, records: &Records) -> usize {
        let mut known = self.lines.iter().peekable();
        let stale = |(row, aside): &(&Process, &Aside)| {
            while known.next_if(|line| line.pid < row.pid).is_some() {}
            let same = known.peek().is_some_and(|line| line.is_of(row, aside));
            aside.line == Line::Elsewhere && !same
        };
        records.rows.iter().zip(&records.asides).filter(stale).count()
    }

    fn put_lines(&mut self, proc: &ProcFs, records: &mut Records) {
        let mut known = std::mem::take(&mut self.lines).into_iter().peekable();
        self.lines.reserve(records.rows.len());
        for (row, aside) in records.rows.iter_mut().zip(&records.asides) {
            while known.next_if(|line| line.pid < row.pid).is_some() {}
            let mut before = known.next_if(|line| line.pid == row.pid);
            let line = match aside.line {
                Line::None => {
                    row.have |= Parts::CMDLINE;
                    continue;
                }
                Line::At(start, end) => {
                    // The same text as before keeps its memory: most tables share most lines.
                    let text = &self.stream[start..end];
                    let before = before.and_then(|known| known.line);
                    let before = before.filter(|line| line.argv() == text);
                    let line = before.unwrap_or_else(|| CommandLine::new(text));
                    KnownLine {
                        pid: row.pid,
                        key: aside.line_key,
                        doubtful: row.threads > 1,
                        line: Some(line),
                        long: false,
                    }
                }
                Line::Elsewhere => {
                    if let Some(line) = before.take_if(|line| line.is_of(row, aside)) {
                        line
                    } else {
                        proc.complete(row, Parts::CMDLINE);
                        if !row.have.contains(Parts::CMDLINE) && !row.cmdline_long {
                            continue; // It ended meanwhile.
                        }
                        // Whoever has run since is here, and few of them have changed their line: what
                        // was made of it need not be made again.
                        let before = before.and_then(|known| known.line);
                        let same = before.filter(|line| row.cmdline.as_ref() == Some(line));
                        KnownLine {
                            pid: row.pid,
                            key: aside.line_key,
                            doubtful: false,
                            line: same.or_else(|| row.cmdline.take()),
                            long: row.cmdline_long,
                        }
                    }
                }
            };
            row.cmdline.clone_from(&line.line);
            row.cmdline_long = line.long;
            if !line.long {
                row.have |= Parts::CMDLINE;
            }
            self.lines.push(line);
        }
    }

    /// Processes in the same control groups share one text, read once.
    fn put_cgroups(&mut self, proc: &ProcFs, rows: &mut [Process], asides: &[Aside]) {
        self.cgroups.retain(|key, groups| confirm(*key, groups, rows, asides));
        let mut seen = HashMap::<_, Groups>::with_capacity(self.cgroups.len());
        for (row, aside) in rows.iter_mut().zip(asides) {
            let Some(key) = aside.cgroup_key else {
                proc.complete(row, Parts::CGROUP);
                continue;
            };
            if let Some(groups) = self.cgroups.remove(&key) {
                seen.insert(key, groups);
            }
            if let Some(groups) = seen.get(&key) {
                row.cgroup = Some(groups.text.clone());
                row.have |= Parts::CGROUP;
                continue;
            }
            proc.complete(row, Parts::CGROUP);
            // What it shows at its end must not speak for the living; whether it is ending is asked
            // last, for there is no way back.
            let now = proc.one(row.pid, Parts::STAT).filter(|now| now.id().same(&row.id()));
            let as_was = now.is_some_and(|now| is_exiting(now.flags) == is_exiting(row.flags));
            if let Some(text) = row.cgroup.clone().filter(|_| as_was) {
                seen.insert(key, Groups { text, unconfirmed: Some(row.id()) });
            }
        }
        self.cgroups = seen;
    }
}

/// Whether the text may be used on: the process that it was read from, if it is still to be looked
/// at, has the key that it had.
fn confirm(key: GroupsKey, groups: &mut Groups, rows: &[Process], asides: &[Aside]) -> bool {
    let Some(from) = groups.unconfirmed.take() else { return true };
    let at = rows.binary_search_by_key(&from.pid, |row| row.pid);
    at.is_ok_and(|at| rows[at].id() == from && asides[at].cgroup_key == Some(key))
}

/// Reads a pass to its end. Returns how many bytes of `stream`, which only grows, it has written.
fn read_whole(file: &mut File, stream: &mut Vec<u8>) -> io::Result<usize> {
    let mut len = 0;
    loop {
        if stream.len() < len + READ_BYTES {
            stream.resize((len + READ_BYTES).max(stream.len() * 2), 0);
        }
        match file.read(&mut stream[len..]) {
            Ok(0) => return Ok(len),
            Ok(read) => len += read,
            // Nothing of this read was ready within the kernel's bound; it goes on from there.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads the sums of processes again whose threads changed during the pass: an ended thread's share
/// was in neither its own record nor that of its process.
fn mend_torn(proc: &ProcFs, records: &mut Records) {
    let rows = records.rows.iter_mut().zip(&records.asides);
    let torn = rows.filter_map(|(row, aside)| aside.torn.then_some(row));
    for row in torn.take(TORN_MAX) {
        if let Some(now) = proc.one(row.pid, Parts::STAT).filter(|now| now.id().same(&row.id())) {
            take_larger(row, &now);
        }
    }
}

/// Takes the sums of `now`, a later look at the same process in whole ticks, where they are larger.
fn take_larger(row: &mut Process, now: &Process) {
    // The two times together: each alone may be rounded down.
    if now.cpu_ns() > row.cpu_ns() {
        (row.utime_ns, row.stime_ns) = (now.utime_ns, now.stime_ns);
    }
    row.min_flt = row.min_flt.max(now.min_flt);
    row.maj_flt = row.maj_flt.max(now.maj_flt);
}

/// Gives half of `stream` back if it has been too large for long; its first `used` bytes stay.
fn shrink(stream: &mut Vec<u8>, used: usize, oversized: &mut u32) {
    *oversized = if used < stream.len() / 4 { *oversized + 1 } else { 0 };
    if *oversized == OVERSIZED_PASSES {
        *oversized = 0;
        stream.truncate(stream.len() / 2);
        stream.shrink_to_fit();
    }
}

/// Does `work` on a thread of its own and waits for it, but no longer than `wait`.
///
/// # Errors
/// `TimedOut` after that: the thread is left alone with what it holds until the kernel lets it go.
fn within<T: Send + 'static>(
    wait: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = mpsc::channel();
    let work = move || {
        // Nobody may be waiting any more.
        let _ = sender.send(work());
    };
    thread::Builder::new().name("lines".to_owned()).spawn(work)?;
    receiver.recv_timeout(wait).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => {
            let text = format!("the memory of some process did not come within {wait:?}");
            io::Error::new(io::ErrorKind::TimedOut, text)
        }
        mpsc::RecvTimeoutError::Disconnected => io::Error::other("the thread that reads panicked"),
    })
}

/// Loads the programs, with that of the lines if `sleepable`.
fn load(sleepable: bool) -> Result<Ebpf, String> {
    // A new loader has read the kernel's type information for itself. It is dropped before we read
    // it for both of us: two of them at once would be the peak of our memory.
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    let btf = Btf::from_sys_fs().map_err(|error| {
        format!("no type information: {error}; it wants a kernel with CONFIG_DEBUG_INFO_BTF")
    })?;
    let cpus = aya::util::nr_cpus().map_or(u32::MAX, |cpus| cpus as u32);
    let mut ebpf = loader
        .btf(Some(&btf))
        .override_global("cpus", &cpus, true)
        .load(OBJECT)
        .map_err(|error| explain(&error))?;
    load_program(&mut ebpf, "numbers", &btf)?;
    if sleepable {
        load_program(&mut ebpf, "numbers_and_lines", &btf)?;
    }
    Ok(ebpf)
}

fn load_program(ebpf: &mut Ebpf, name: &str, btf: &Btf) -> Result<(), String> {
    let program = ebpf.program_mut(name).ok_or_else(|| format!("no program `{name}`"))?;
    let program: &mut Iter = program.try_into().map_err(|error| explain(&error))?;
    program.load("task", btf).map_err(|error| explain_load(name, &error))
}

/// Why the kernel does not load a program: of what it says, the last line.
pub(crate) fn explain_load(name: &str, error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let last =
                log.lines().rev().find(|line| !line.is_empty() && !line.starts_with("processed"));
            let last = last.map(|line| format!(" ({})", line.trim())).unwrap_or_default();
            format!("the kernel does not load `{name}`: {io_error}{last}{}", hint(io_error))
        }
        other => explain(other),
    }
}

/// An error with its causes on one line, and what would help.
pub(crate) fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut hinted = "";
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io_error) = error.downcast_ref::<io::Error>() {
            hinted = hint(io_error);
        }
        let own = error.to_string();
        if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        cause = error.source();
    }
    text + hinted
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run as root or with CAP_BPF and CAP_PERFMON, and without kernel lockdown"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_blocks_is_waited_for_no_longer_than_that() {
        let (release, held) = mpsc::channel::<()>();
        let blocked = within(Duration::from_millis(1), move || held.recv());
        let error = blocked.expect_err("nothing has released it");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(release);
    }

    #[test]
    fn a_text_of_groups_is_confirmed_by_who_it_was_read_from() {
        let key = |ids| GroupsKey { set: 1, ids, exiting: false };
        let row = |pid, start_ns| Process { pid, start_ns, ..Process::default() };
        let aside = |ids| {
            let mut aside = Aside::default();
            aside.cgroup_key = Some(key(ids));
            aside
        };
        let (rows, asides) = ([row(5, 50), row(9, 90)], [aside(7), aside(8)]);
        let cases = [
            (None, 7, true), // Confirmed before.
            (Some((5, 50)), 7, true),
            (Some((5, 50)), 8, false), // It was moved.
            (Some((5, 51)), 7, false), // Another process has its number.
            (Some((6, 50)), 7, false), // It ended.
        ];
        for (from, ids, want) in cases {
            let unconfirmed = from.map(|(pid, start_ns)| ProcessId { pid, start_ns });
            let mut groups = Groups { text: Arc::default(), unconfirmed };
            assert_eq!(confirm(key(ids), &mut groups, &rows, &asides), want, "for {from:?} {ids}");
            assert!(groups.unconfirmed.is_none());
        }
    }

    #[test]
    fn a_buffer_that_was_too_large_for_long_is_given_back() {
        let (mut stream, mut oversized) = (vec![1; 1000], 0);
        for pass in 1..2 * OVERSIZED_PASSES {
            // One large pass in between, and the count begins again.
            let used = if pass == OVERSIZED_PASSES - 1 { 250 } else { 249 };
            shrink(&mut stream, used, &mut oversized);
            assert_eq!(stream.len(), if pass < 2 * OVERSIZED_PASSES - 1 { 1000 } else { 500 });
        }
    }

    #[test]
    fn a_torn_row_only_grows() {
        let row = |utime_ns, stime_ns, min_flt| Process {
            utime_ns,
            stime_ns,
            min_flt,
            ..Process::default()
        };
        let cases =
            [(row(5, 7, 3), row(10, 0, 4), (5, 7, 4)), (row(5, 7, 3), row(20, 0, 2), (20, 0, 3))];
        for (mut torn, now, want) in cases {
            take_larger(&mut torn, &now);
            assert_eq!((torn.utime_ns, torn.stime_ns, torn.min_flt), want);
        }
    }

    #[test]
    fn work_that_is_done_is_handed_back() {
        assert_eq!(within(Duration::MAX, || 7).expect("it does not block"), 7);
        let panics = || assert!(std::hint::black_box(false), "this panic is part of the test");
        let error = within(Duration::MAX, panics).expect_err("it panicked");
        assert_eq!(error.kind(), io::ErrorKind::Other);
    }

    #[test]
    fn after_a_failed_pass_lines_come_from_proc() {
        let proc = ProcFs::open().expect("/proc");
        let opened = BpfCollector::open(CollectorKind::IterSleepable, &proc);
        let mut collector = match opened {
            Ok(collector) => collector,
            Err(why) => {
                assert!(!rustix::process::geteuid().is_root(), "as root: {why}");
                return eprintln!("skipped without the right to load BPF programs: {why}");
            }
        };
        collector.give_up_lines(&io::ErrorKind::TimedOut.into());
        collector.lines.clear();
        for more in [Parts::NONE, Parts::MORE] {
            let parts = Parts::CMDLINE | more;
            let scan = collector.scan(&proc, parts).expect("a scan");
            assert!(scan.parts.contains(parts));
            let own = scan.rows.iter().find(|row| row.pid == std::process::id() as i32);
            let own = own.expect("our own row");
            assert!(own.cmdline.is_some() && own.have.contains(parts), "{own:?}");
        }
        assert!(!collector.sleepable);
    }
}
