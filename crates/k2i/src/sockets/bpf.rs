//! The upper way: the kernel's own iterator over open files, by BPF (Linux 5.11).

use std::fs::File;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use aya::programs::Iter;
use aya::{Btf, Ebpf, EbpfLoader};

use super::fds::Descriptors;
use super::records::Assembly;
use super::{Held, Holder, Unseen, holders};
use crate::collect::ProcFs;
use crate::collect::bpf::{explain, explain_load};
use crate::table::Parts;

/// The compiled program. `bpf/build` makes it and, with `--check`, compares it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/files.bpf.o");

/// The kernel hands out at most 32 KiB at a read.
const READ_BYTES: usize = 32 * 1024;

/// How often it is looked for processes that the iterator does not show.
const CHECK_AGAIN: Duration = Duration::from_secs(30);

/// A kernel that hides more processes than this from its iterator is better read by `/proc`.
const HIDDEN_MAX: usize = 16;

/// The loaded program.
#[derive(Debug)]
pub(super) struct FilesProgram {
    ebpf: Ebpf,
    /// Processes whose files `/proc` shows and the iterator does not: hardened kernels hide some.
    hidden: Vec<i32>,
    checked: Instant,
}

impl FilesProgram {
    /// Loads the program and makes a pass.
    ///
    /// # Errors
    /// Why this does not work here and what would help, for people.
    pub(super) fn open(proc: &ProcFs) -> Result<FilesProgram, String> {
        let mut loader = EbpfLoader::new();
        loader.btf(None); // As of the other iterators: one copy of the type information at a time.
        let btf = Btf::from_sys_fs().map_err(|error| {
            format!("no type information: {error}; it wants a kernel with CONFIG_DEBUG_INFO_BTF")
        })?;
        let mut ebpf = loader.btf(Some(&btf)).load(OBJECT).map_err(|error| explain(&error))?;
        let program = ebpf.program_mut("files").ok_or("no program `files`")?;
        let program: &mut Iter = program.try_into().map_err(|error| explain(&error))?;
        program.load("task_file", &btf).map_err(|error| explain_load("files", &error))?;
        drop(btf);
        let mut opened = FilesProgram { ebpf, hidden: Vec::new(), checked: Instant::now() };
        // A kernel may load what it then refuses to run, or to show.
        opened.find_hidden(proc).map_err(|error| explain(&error))?;
        kumo_sys::memory::trim();
        let hidden = opened.hidden.len();
        if hidden > HIDDEN_MAX {
            return Err(format!(
                "it does not show the files of {hidden} processes, and /proc does"
            ));
        }
        Ok(opened)
    }

    /// Compares a pass with `/proc`. What began meanwhile is not in the listing before it, and what ended
    /// has no files behind it.
    fn find_hidden(&mut self, proc: &ProcFs) -> io::Result<()> {
        let before = proc.pids()?;
        let (holders, _) = self.pass()?;
        let is_seen = |pid: i32| holders.binary_search_by_key(&pid, |one| one.id.pid).is_ok();
        let has_files = |pid: i32| {
            let process = proc.with_directory(pid, Parts::IDENTITY);
            let found = process.and_then(|(_, directory)| Descriptors::of(&directory).ok());
            found.is_some_and(|found| !found.numbers().is_empty())
        };
        self.hidden = before.into_iter().filter(|pid| !is_seen(*pid) && has_files(*pid)).collect();
        self.checked = Instant::now();
        Ok(())
    }

    /// Reads everything; what the iterator does not show, as far as `/proc` and `sock_diag` do.
    pub(super) fn read(&mut self, proc: &ProcFs) -> io::Result<(Vec<Holder>, Vec<Held>, Unseen)> {
        if self.checked.elapsed() > CHECK_AGAIN {
            self.find_hidden(proc)?;
        }
        let (mut holders, mut sockets) = self.pass()?;
        let is_seen = |pid: &i32| holders.binary_search_by_key(pid, |one| one.id.pid).is_ok();
        let missing: Vec<i32> = self.hidden.iter().copied().filter(|pid| !is_seen(pid)).collect();
        if missing.is_empty() {
            return Ok((holders, sockets, Unseen::default()));
        }
        let (more_holders, more_sockets, unseen) = holders::read(proc, &missing)?;
        holders.extend(more_holders);
        holders.sort_by_key(|holder| holder.id.pid);
        sockets.extend(more_sockets);
        sockets.sort_by_key(|held| (held.pid, held.fd));
        Ok((holders, sockets, unseen))
    }

    /// One walk of the kernel over all tables of files.
    fn pass(&mut self) -> io::Result<(Vec<Holder>, Vec<Held>)> {
        let malformed = |_| io::Error::other("malformed record of an open file");
        let mut file = self.start()?;
        let mut assembly = Assembly::default();
        let mut piece = vec![0; READ_BYTES];
        loop {
            match file.read(&mut piece) {
                Ok(0) => return assembly.finish().map_err(malformed),
                Ok(read) => assembly.take(&piece[..read]).map_err(malformed)?,
                // Nothing of this read was ready within the kernel's bound; it goes on from there.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn start(&mut self) -> io::Result<File> {
        let program: &mut Iter = self
            .ebpf
            .program_mut("files")
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| io::Error::other("the object lacks `files`"))?;
        let link = program.attach().map_err(io::Error::other)?;
        let link = program.take_link(link).map_err(io::Error::other)?;
        link.into_file().map_err(io::Error::other)
    }
}
