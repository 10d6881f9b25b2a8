//! Descriptors of a process as `/proc/<pid>/fd` shows them.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, StatxFlags, openat, readlinkat_raw, statx};
use rustix::io::Errno;

/// Longest target of a link: the kernel shows paths of a page at most.
const LINK_BYTES_MAX: usize = 4096;

/// The first lines of `fdinfo` are enough: flags and position stand there.
const INFO_BYTES: usize = 256;

/// `O_PATH` of `open(2)`: a mere place.
const O_PATH: u32 = 0o10_000_000;

/// An open `fd` directory, and what it lists.
#[derive(Debug)]
pub(super) struct Descriptors {
    directory: OwnedFd,
    numbers: Vec<u32>,
}

/// What `fdinfo` says of a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) flags: u32,
    pub(super) offset: u64,
}

/// What is known of a file without asking anybody but this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) links: u32,
    pub(super) inode: u64,
    pub(super) device: (u32, u32),
}

impl Descriptors {
    /// Lists those of a process now, by its directory in `/proc`.
    ///
    /// # Errors
    /// `ACCES` where it is not ours to look into, `NOENT` or `SRCH` when it has ended.
    pub(super) fn of(process: &OwnedFd) -> Result<Descriptors, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(process, c"fd", flags, Mode::empty())?;
        let mut numbers = Vec::new();
        let mut buffer = Vec::with_capacity(8 * 1024);
        let mut entries = RawDir::new(directory.as_fd(), buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            numbers.extend(number(entry?.file_name().to_bytes()));
        }
        numbers.sort_unstable();
        Ok(Descriptors { directory, numbers })
    }

    pub(super) fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    /// Where a descriptor leads; `None` when it was closed meanwhile.
    pub(super) fn target(&self, fd: u32) -> Option<Vec<u8>> {
        let mut buffer = Vec::with_capacity(LINK_BYTES_MAX);
        let mut text = itoa::Buffer::new();
        let spare = rustix::buffer::spare_capacity(&mut buffer);
        readlinkat_raw(&self.directory, text.format(fd), spare).ok()?;
        Some(buffer)
    }

    /// What is behind a descriptor, as far as it is known here: a server far away that does not answer
    /// must not stop us.
    pub(super) fn stat(&self, fd: u32) -> Option<Stat> {
        let mut text = itoa::Buffer::new();
        let flags = AtFlags::STATX_DONT_SYNC;
        let asked = StatxFlags::BASIC_STATS;
        let stat = statx(&self.directory, text.format(fd), flags, asked).ok()?;
        Some(Stat {
            mode: u32::from(stat.stx_mode),
            size: stat.stx_size,
            links: stat.stx_nlink,
            inode: stat.stx_ino,
            device: (stat.stx_dev_major, stat.stx_dev_minor),
        })
    }

    /// The kernel's name of the protocol of a socket.
    pub(super) fn protocol_name(process: &OwnedFd, fd: u32) -> Option<String> {
        use std::os::fd::AsRawFd as _;
        // There is no getxattrat(2) before Linux 6.13; our own directory of descriptors is a way.
        let path = format!("/proc/self/fd/{}/fd/{fd}", process.as_raw_fd());
        let mut name = [0; 64];
        let len = rustix::fs::getxattr(path, c"system.sockprotoname", &mut name[..]).ok()?;
        let name = name[..len].split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8(name.to_vec()).ok().filter(|name| !name.is_empty())
    }

    /// Flags and position of a descriptor.
    pub(super) fn info(process: &OwnedFd, fd: u32) -> Option<Info> {
        let path = format!("fdinfo/{fd}");
        let file = openat(process, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut text = [0; INFO_BYTES];
        let len = rustix::io::read(&file, &mut text[..]).ok()?;
        parse_info(&text[..len])
    }
}

fn number(name: &[u8]) -> Option<u32> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

fn parse_info(text: &[u8]) -> Option<Info> {
    let mut info = Info::default();
    let mut has_flags = false;
    for line in text.split(|byte| *byte == b'\n') {
        let line = std::str::from_utf8(line).ok()?;
        match line.split_once(':') {
            Some(("pos", number)) => info.offset = number.trim().parse().ok()?,
            Some(("flags", number)) => {
                info.flags = u32::from_str_radix(number.trim(), 8).ok()?;
                has_flags = true;
                break;
            }
            _ => {}
        }
    }
    has_flags.then_some(info)
}

impl Info {
    /// Whether it may be read and written.
    pub(super) fn mode(self) -> &'static str {
        match (self.flags & O_PATH, self.flags & 3) {
            (0, 0) => "r",
            (0, 1) => "w",
            (0, 2) => "rw",
            _ => "-",
        }
    }
}

/// The number of a socket from the target of its link: `socket:[4711]`.
pub(super) fn socket_inode(target: &[u8]) -> Option<u64> {
    let number = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// The inode of a namespace from the target of its link: `net:[4026531840]`.
pub(super) fn namespace_inode(process: &OwnedFd, link: &CStr) -> Option<u32> {
    let mut buffer = Vec::with_capacity(64);
    readlinkat_raw(process, link, rustix::buffer::spare_capacity(&mut buffer)).ok()?;
    let text = String::from_utf8(buffer).ok()?;
    let (_, number) = text.split_once(":[")?;
    number.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_tell_sockets() {
        let cases: [(&[u8], Option<u64>); 5] = [
            (b"socket:[4711]", Some(4711)),
            (b"socket:[4711] (deleted)", None),
            (b"/tmp/socket:[7]", None),
            (b"pipe:[7]", None),
            (b"socket:[]", None),
        ];
        for (target, want) in cases {
            assert_eq!(socket_inode(target), want);
        }
    }

    #[test]
    fn infos() {
        type Case = (&'static [u8], Option<(&'static str, u64)>);
        let cases: [Case; 6] = [
            (b"pos:\t42\nflags:\t0100002\nmnt_id:\t1\n", Some(("rw", 42))),
            (b"pos:\t0\nflags:\t02100000\n", Some(("r", 0))),
            (b"pos:\t7\nflags:\t0101001\n", Some(("w", 7))),
            (b"pos:\t0\nflags:\t012000000\n", Some(("-", 0))),
            (b"pos:\t0\n", None),
            (b"flags:\t9\n", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_info(text).map(|info| (info.mode(), info.offset)), want);
        }
    }
}
