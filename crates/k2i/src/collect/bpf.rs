//! The upper rungs: the kernel's own task iterator, by BPF.
//!
//! `bpf/task.bpf.c` holds two programs: `numbers` works wherever BPF iterators do (Linux 5.8),
//! `numbers_and_lines` also reads command lines in the same pass (it sleeps: 5.18). A pass of numbers
//! tells which command lines may have changed; those few are read one by one, and many of them by a
//! second kind of pass.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::programs::{Iter, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};

use super::proc::ProcFs;
use super::records::{self, Aside, Line, LineKey, Records};
use super::{CollectorKind, Scan};
use crate::table::{CommandLine, Parts, Process};

/// The compiled programs. `bpf/build` makes it and, with `--check`, compares it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/task.bpf.o");

/// One in so many command lines may be read from `/proc` before a pass over all of them is cheaper:
/// 6 µs for one line there, 2 µs here.
const LINES_APART_SHARE: usize = 3;

/// How often it is checked that the iterator shows what `/proc` shows; 1 ms for 3,000 processes.
const HIDDEN_CHECK: Duration = Duration::from_secs(30);

/// A kernel that hides more processes than this from its iterator is better read by `/proc`.
const HIDDEN_MAX: usize = 16;

/// The kernel hands out at most 32 KiB at a read.
const READ_BYTES: usize = 32 * 1024;

/// The loaded programs, and what is remembered between passes.
#[derive(Debug)]
pub(crate) struct BpfCollector {
    ebpf: Ebpf,
    sleepable: bool,
    page_bytes: u64,
    /// Ascending by pid.
    lines: Vec<KnownLine>,
    /// How many processes had a line in the last pass.
    lines_last: usize,
    cgroups: HashMap<(u64, u64), Arc<[u8]>>,
    /// What the last pass wrote, and room for the next.
    stream: Vec<u8>,
    /// Whether passes bring [`Parts::MORE`]; a copy of what the programs see.
    more: bool,
    /// Processes that `/proc` shows and the iterator does not: hardened kernels hide some.
    hidden: Vec<i32>,
    hidden_checked: Instant,
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
    /// Loads the programs and makes one pass.
    ///
    /// # Errors
    /// Why this rung does not work here and what would help, for people.
    pub(crate) fn open(kind: CollectorKind, proc: &ProcFs) -> Result<BpfCollector, String> {
        let btf = Btf::from_sys_fs().map_err(|error| {
            format!("no type information: {error}; it wants a kernel with CONFIG_DEBUG_INFO_BTF")
        })?;
        let cpus = aya::util::nr_cpus().map_or(u32::MAX, |cpus| cpus as u32);
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("cpus", &cpus, true)
            .load(OBJECT)
            .map_err(|error| explain(&error))?;
        load(&mut ebpf, "numbers", &btf)?;
        let sleepable = kind == CollectorKind::IterSleepable;
        if sleepable {
            load(&mut ebpf, "numbers_and_lines", &btf)?;
        }
        drop(btf);
        let mut collector = BpfCollector {
            ebpf,
            sleepable,
            page_bytes: rustix::param::page_size() as u64,
            lines: Vec::new(),
            lines_last: 0,
            cgroups: HashMap::new(),
            stream: Vec::new(),
            more: true,
            hidden: Vec::new(),
            hidden_checked: Instant::now(),
        };
        collector.set_more(false).map_err(|error| explain(&error))?;
        // A kernel may load what it then refuses to run, or to show.
        collector.find_hidden(proc).map_err(|error| explain(&error))?;
        if collector.hidden.len() > HIDDEN_MAX {
            let hidden = collector.hidden.len();
            return Err(format!("it does not show {hidden} processes that /proc shows"));
        }
        kumo_sys::memory::trim(); // The kernel's type information was 60 MB of small pieces.
        Ok(collector)
    }

    /// Compares a pass with `/proc`. What started or ended meanwhile is in one of its two listings only.
    fn find_hidden(&mut self, proc: &ProcFs) -> io::Result<()> {
        let before = proc.pids()?;
        let records = self.pass(false)?;
        let after = proc.pids()?;
        let seen = |pid: &i32| records.rows.binary_search_by_key(pid, |row| row.pid).is_ok();
        let stayed = before.into_iter().filter(|pid| after.binary_search(pid).is_ok());
        self.hidden = stayed.filter(|pid| !seen(pid)).collect();
        self.hidden_checked = Instant::now();
        Ok(())
    }

    /// Reads the whole table with at least `parts`.
    pub(crate) fn scan(&mut self, proc: &ProcFs, parts: Parts) -> io::Result<Scan> {
        if self.hidden_checked.elapsed() > HIDDEN_CHECK {
            self.find_hidden(proc)?;
        }
        let more = parts.intersects(Parts::MORE | Parts::CGROUP);
        self.set_more(more).map_err(io::Error::other)?;
        let lines = parts.contains(Parts::CMDLINE);
        // After a start, or a long while without such a question, most lines are unknown.
        let mostly_unknown = self.lines.len() <= self.lines_last / 2;
        let mut records = self.pass(lines && self.sleepable && mostly_unknown)?;
        if lines {
            let stale = self.stale_lines(&records);
            if self.sleepable && stale > records.rows.len() / LINES_APART_SHARE {
                records = self.pass(true)?;
            }
            self.put_lines(proc, &mut records);
        }
        self.lines_last = records.asides.iter().filter(|aside| aside.line != Line::None).count();
        let mut rows = records.rows;
        let mut have = if more { Parts::BASE | Parts::MORE } else { Parts::BASE };
        if !records.rss_exact && !parts.contains(Parts::MEMORY) {
            have = have.without(Parts::MEMORY);
        }
        if !records.rss_exact && parts.contains(Parts::MEMORY) {
            for row in &mut rows {
                proc.complete(row, Parts::MEMORY);
            }
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

    /// Tells the programs whether to bring [`Parts::MORE`].
    fn set_more(&mut self, more: bool) -> Result<(), aya::maps::MapError> {
        if self.more != more {
            let map = self
                .ebpf
                .map_mut("control")
                .ok_or(aya::maps::MapError::InvalidName { name: "control".to_owned() })?;
            aya::maps::Array::<_, u32>::try_from(map)?.set(0, u32::from(more), 0)?;
            self.more = more;
        }
        Ok(())
    }

    /// One walk of the kernel over all its tasks.
    fn pass(&mut self, lines: bool) -> io::Result<Records> {
        let name = if lines { "numbers_and_lines" } else { "numbers" };
        let program: &mut Iter = self
            .ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| io::Error::other(format!("the object has no iterator `{name}`")))?;
        let link = program.attach().map_err(io::Error::other)?;
        let link = program.take_link(link).map_err(io::Error::other)?;
        let mut file = link.into_file().map_err(io::Error::other)?;
        let mut len = 0;
        loop {
            if self.stream.len() < len + READ_BYTES {
                self.stream.resize((len + READ_BYTES).max(self.stream.len() * 2), 0);
            }
            match file.read(&mut self.stream[len..]) {
                Ok(0) => break,
                Ok(read) => len += read,
                // Nothing of this read was ready within the kernel's bound; it goes on from there.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
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
            let before = known.next_if(|line| line.pid == row.pid);
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
                    if let Some(line) = before.filter(|line| line.is_of(row, aside)) {
                        line
                    } else {
                        proc.complete(row, Parts::CMDLINE);
                        if !row.have.contains(Parts::CMDLINE) && !row.cmdline_long {
                            continue; // It ended meanwhile.
                        }
                        KnownLine {
                            pid: row.pid,
                            key: aside.line_key,
                            doubtful: false,
                            line: row.cmdline.clone(),
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
        let mut seen = HashMap::with_capacity(self.cgroups.len());
        for (row, aside) in rows.iter_mut().zip(asides) {
            let known = |groups: &HashMap<_, Arc<[u8]>>| groups.get(&aside.cgroup_key?).cloned();
            if let Some(text) = known(&seen).or_else(|| known(&self.cgroups)) {
                row.cgroup = Some(text);
                row.have |= Parts::CGROUP;
            } else {
                proc.complete(row, Parts::CGROUP);
            }
            // A zombie has left its groups; what it shows must not speak for the living.
            let living = row.cgroup.clone().filter(|_| row.state != b'Z');
            if let Some((key, text)) = aside.cgroup_key.zip(living) {
                seen.insert(key, text);
            }
        }
        self.cgroups = seen;
    }
}

fn load(ebpf: &mut Ebpf, name: &str, btf: &Btf) -> Result<(), String> {
    let program = ebpf.program_mut(name).ok_or_else(|| format!("no program `{name}`"))?;
    let program: &mut Iter = program.try_into().map_err(|error| explain(&error))?;
    program.load("task", btf).map_err(|error| match &error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let last =
                log.lines().rev().find(|line| !line.is_empty() && !line.starts_with("processed"));
            let last = last.map(|line| format!(" ({})", line.trim())).unwrap_or_default();
            format!("the kernel does not load `{name}`: {io_error}{last}{}", hint(io_error))
        }
        other => explain(other),
    })
}

/// An error with its causes on one line, and what would help.
fn explain(error: &(dyn std::error::Error + 'static)) -> String {
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
