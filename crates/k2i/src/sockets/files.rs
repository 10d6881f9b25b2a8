//! Open files one by one, from `/proc/<pid>/fd` and `fdinfo`.

use kumo_abi::files::FileColumn;
use kumo_abi::{ColumnIndex, ProcessId};
use rustix::io::Errno;

use super::Unseen;
use super::fds::{Descriptors, Info, Stat};
use crate::collect::ProcFs;
use crate::table::{Comm, Parts};

/// What is read of each open file beside its number. Each costs a call or three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileParts {
    /// Where it leads.
    pub target: bool,
    /// Flags and position.
    pub info: bool,
    /// Type, size, links, inode and device of what is behind it.
    pub stat: bool,
}

impl FileParts {
    /// All of them.
    pub const ALL: FileParts = FileParts { target: true, info: true, stat: true };
}

/// One descriptor of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Its process, as a place in [`OpenFiles::holders`].
    pub(super) holder: usize,
    /// Its number.
    pub fd: u32,
    /// Where it leads, as the kernel writes it: a path, or `pipe:[4711]` and its like. Hostile bytes.
    pub target: Option<Box<[u8]>>,
    pub(super) info: Option<Info>,
    pub(super) stat: Option<Stat>,
}

impl FileParts {
    /// What these columns of [`FILES`](kumo_abi::files::FILES) are made from.
    pub(crate) fn of(columns: &[ColumnIndex]) -> FileParts {
        use FileColumn as C;
        let mut parts = FileParts::default();
        for column in columns {
            match FileColumn::at(*column) {
                C::Target | C::Socket => parts.target = true,
                C::Mode | C::Flags => parts.info = true,
                C::Links | C::Inode => parts.stat = true,
                // What has no file behind it is told from one by its target.
                C::Type | C::Size | C::Device => (parts.stat, parts.target) = (true, true),
                C::Offset => parts = FileParts::ALL,
                C::Of(_) | C::Fd => {}
            }
        }
        parts
    }
}

impl OpenFile {
    /// `r`, `w` or `rw`; `-` for one that is neither.
    pub fn mode(&self) -> Option<&'static str> {
        self.info.map(Info::mode)
    }

    /// What there is to read or write it by: `file`, `dir`, `char`, `block`, `fifo`, `socket`, `link` or `anon`.
    pub fn kind(&self) -> Option<&'static str> {
        let is_anonymous = self.target.as_deref().is_some_and(|it| it.starts_with(b"anon_inode:"));
        Some(match self.stat?.mode & 0o170_000 {
            0o010_000 => "fifo",
            0o020_000 => "char",
            0o040_000 => "dir",
            0o060_000 => "block",
            0o120_000 => "link",
            0o140_000 => "socket",
            0o100_000 if !is_anonymous => "file",
            _ => "anon",
        })
    }

    /// The size of a file, bytes.
    pub fn size(&self) -> Option<u64> {
        let is_file = matches!(self.kind()?, "file");
        self.stat.filter(|_| is_file).map(|stat| stat.size)
    }

    /// Where the next read or write is.
    pub fn offset(&self) -> Option<u64> {
        let has_places = self.kind().is_none_or(|kind| matches!(kind, "file" | "dir" | "block"));
        self.info.filter(|_| has_places).map(|info| info.offset)
    }
}

/// Open files of some processes at one moment.
#[derive(Debug, Default)]
pub struct OpenFiles {
    /// The processes that were looked at and are there, ascending by pid.
    pub holders: Vec<(ProcessId, Comm)>,
    /// Ascending by pid and number.
    pub files: Vec<OpenFile>,
    /// How much is missing.
    pub unseen: Unseen,
}

impl OpenFiles {
    /// Of a host that is simulated.
    pub(crate) fn of_nobody() -> OpenFiles {
        OpenFiles { unseen: Unseen { all: true, ..Unseen::default() }, ..OpenFiles::default() }
    }

    /// Reads those of `pids`. What ends meanwhile is not in it, and disturbs nobody else.
    pub(crate) fn read(proc: &ProcFs, pids: &[i32], parts: FileParts) -> OpenFiles {
        let mut found = OpenFiles::default();
        for pid in pids {
            let Some((row, directory)) = proc.with_directory(*pid, Parts::IDENTITY) else {
                continue;
            };
            let holder = found.holders.len();
            found.holders.push((row.id(), row.comm));
            let descriptors = match Descriptors::of(&directory) {
                Ok(descriptors) => descriptors,
                Err(error) => {
                    let is_denied = error == Errno::ACCESS && !row.is_kernel();
                    found.unseen.processes += usize::from(is_denied);
                    continue;
                }
            };
            for fd in descriptors.numbers() {
                let target = if parts.target {
                    let Some(target) = descriptors.target(*fd) else { continue }; // It was closed.
                    Some(target.into())
                } else {
                    None
                };
                let info = parts.info.then(|| Descriptors::info(&directory, *fd)).flatten();
                let stat = parts.stat.then(|| descriptors.stat(*fd)).flatten();
                found.files.push(OpenFile { holder, fd: *fd, target, info, stat });
            }
        }
        found
    }

    /// The process of one of the files.
    pub fn holder(&self, file: &OpenFile) -> &(ProcessId, Comm) {
        &self.holders[file.holder]
    }
}
