//! The lower way: who holds what, from `/proc`; what sockets are, from the kernel in each network
//! namespace. Works without BPF, with the reader's rights.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::fds::{Descriptors, namespace_inode, socket_inode};
use super::socket::Socket;
use super::{Held, Holder, Unseen, diag};
use crate::collect::ProcFs;
use crate::table::Parts;

/// Most network namespaces that are looked into; a host of so many containers has other worries.
const NAMESPACES_MAX: usize = 4_096;

/// A descriptor of a process that leads to a socket.
struct Found {
    pid: i32,
    fd: u32,
    inode: u64,
}

/// Reads what `pids` hold, which are ascending.
pub(super) fn read(proc: &ProcFs, pids: &[i32]) -> io::Result<(Vec<Holder>, Vec<Held>, Unseen)> {
    let mut unseen = Unseen::default();
    let mut holders = Vec::new();
    let mut found = Vec::new();
    let mut namespaces: BTreeMap<u32, PathBuf> = mounted_namespaces();
    for pid in pids {
        let pid = *pid;
        let Some((row, directory)) = proc.with_directory(pid, Parts::IDENTITY) else { continue };
        let mut holder = Holder { id: row.id(), comm: row.comm, files: None };
        match Descriptors::of(&directory) {
            Ok(descriptors) => {
                holder.files = Some(descriptors.numbers().len() as u32);
                for fd in descriptors.numbers() {
                    let target = descriptors.target(*fd);
                    if let Some(inode) = target.and_then(|target| socket_inode(&target)) {
                        found.push(Found { pid, fd: *fd, inode });
                    }
                }
            }
            // A kernel thread has none, and a zombie none any more.
            Err(rustix::io::Errno::ACCESS) if !row.is_kernel() => unseen.processes += 1,
            Err(_) => {}
        }
        if let Some(inode) = namespace_inode(&directory, c"ns/net") {
            namespaces.entry(inode).or_insert_with(|| format!("/proc/{pid}/ns/net").into());
        }
        holders.push(holder);
    }
    let known = if found.is_empty() { HashMap::new() } else { look_into(namespaces, &mut unseen)? };
    let mut names = Names::default();
    let held = found.into_iter().filter_map(|Found { pid, fd, inode }| {
        let socket = match known.get(&inode) {
            Some(socket) => socket.clone(),
            None => names.of(proc, pid, fd, inode)?,
        };
        Some(Held { pid, fd, socket })
    });
    let held: Vec<_> = held.collect();
    unseen.sockets = held.iter().filter(|held| held.socket.state.is_none()).count();
    Ok((holders, held, unseen))
}

/// The kernel's names of what it did not tell more of; the process that was asked last stays open.
#[derive(Default)]
struct Names {
    last: Option<(i32, OwnedFd, Descriptors)>,
}

impl Names {
    /// `None` when it was closed meanwhile.
    fn of(&mut self, proc: &ProcFs, pid: i32, fd: u32, inode: u64) -> Option<Socket> {
        if self.last.as_ref().is_none_or(|(last, ..)| *last != pid) {
            let (_, directory) = proc.with_directory(pid, Parts::IDENTITY)?;
            let descriptors = Descriptors::of(&directory).ok()?;
            self.last = Some((pid, directory, descriptors));
        }
        let (_, directory, descriptors) = self.last.as_ref()?;
        let is_there = || descriptors.target(fd).and_then(|target| socket_inode(&target));
        let name = Descriptors::protocol_name(directory, fd);
        (is_there() == Some(inode)).then(|| Socket::named(inode, name.as_deref().unwrap_or("")))
    }
}

/// Network namespaces that are mounted, as `ip netns` does it: no process need be in them.
fn mounted_namespaces() -> BTreeMap<u32, PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(mounted_namespace).collect()
}

fn mounted_namespace(line: &str) -> Option<(u32, PathBuf)> {
    let (fields, kind) = line.split_once(" - ")?;
    if !kind.starts_with("nsfs ") {
        return None;
    }
    let mut fields = fields.split(' ').skip(3);
    let inode = fields.next()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
    // A path with a blank in it is escaped, and nobody mounts it there.
    let path = fields.next().filter(|path| !path.contains('\\'))?;
    Some((inode, path.into()))
}

/// Asks the kernel for all sockets of these namespaces. A thread of its own goes into one after the other
/// and ends in the last: no other thread's sockets are ever made in a foreign one.
fn look_into(
    namespaces: BTreeMap<u32, PathBuf>,
    unseen: &mut Unseen,
) -> io::Result<HashMap<u64, Socket>> {
    let own = File::open("/proc/thread-self/ns/net").ok();
    let own = own.and_then(|file| inode_of(&file));
    let mut sockets = HashMap::new();
    diag::read(own, &mut sockets)?;
    let mut others = namespaces;
    others.retain(|inode, _| Some(*inode) != own);
    unseen.namespaces = others.len().saturating_sub(NAMESPACES_MAX);
    if others.is_empty() {
        return Ok(sockets);
    }
    let work = move || {
        let mut found = HashMap::new();
        let mut failed = 0;
        for (inode, path) in others.into_iter().take(NAMESPACES_MAX) {
            failed += usize::from(
                enter(inode, &path).is_none_or(|()| diag::read(Some(inode), &mut found).is_err()),
            );
        }
        (found, failed)
    };
    let thread = std::thread::Builder::new().name("namespaces".to_owned()).spawn(work)?;
    let (found, failed) =
        thread.join().map_err(|_| io::Error::other("the thread that reads panicked"))?;
    sockets.extend(found);
    unseen.namespaces += failed;
    Ok(sockets)
}

/// Moves this thread into the namespace `inode`; `None` when that is not to be had, or not there any more.
fn enter(inode: u32, path: &Path) -> Option<()> {
    let file = File::open(path).ok()?;
    // Whose file it was may have gone elsewhere.
    if inode_of(&file) != Some(inode) {
        return None;
    }
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).ok()
}

fn inode_of(file: &File) -> Option<u32> {
    u32::try_from(rustix::fs::fstat(file).ok()?.st_ino).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_namespaces_are_found() {
        let cases = [
            (
                "623 28 0:4 net:[4026532281] /run/netns/blue rw shared:9 - nsfs nsfs rw",
                Some((4_026_532_281, PathBuf::from("/run/netns/blue"))),
            ),
            ("623 28 0:4 mnt:[4026532281] /run/mnt rw - nsfs nsfs rw", None),
            ("623 28 0:4 / /sys rw - sysfs net:[7] rw", None),
            ("623 28 0:4 net:[7] /run/a\\040b rw - nsfs nsfs rw", None),
            ("", None),
        ];
        for (line, want) in cases {
            assert_eq!(mounted_namespace(line), want, "for {line:?}");
        }
    }
}
