//! Events by the kernel's tracepoints: programs that write records into a ring, and the ring's reader.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};

use super::records::{self, Malformed, Record};
use crate::collect::bpf::{explain, explain_load};

/// The compiled programs. `bpf/build` makes it and, with `--check`, compares it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/events.bpf.o");

/// Inode of the first PID namespace; `PROC_PID_INIT_INO` of the kernel.
const FIRST_PID_NS: u32 = 0xEFFF_FFFC;

/// Most control groups whose texts are kept; beyond it they are looked up anew.
const CGROUPS_KEPT_MAX: usize = 4_096;

/// Programs that are attached, for as long as this lives.
pub(super) struct Tracepoints {
    /// Without it the programs are detached.
    _ebpf: Ebpf,
    ring: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
    page_bytes: u64,
    cgroups: Cgroups,
    /// Whether the numbers of processes are those of the machine.
    pub(super) sees_machine: bool,
}

impl Tracepoints {
    /// Loads the programs and attaches them.
    ///
    /// # Errors
    /// Why this does not work here and what would help, for people.
    pub(super) fn open() -> Result<Tracepoints, String> {
        let namespace = std::fs::metadata("/proc/self/ns/pid");
        let namespace =
            namespace.map_err(|error| format!("no PID namespace: {error}"))?.ino() as u32;
        let mut loader = EbpfLoader::new();
        loader.btf(None); // As of the iterators: one copy of the type information at a time.
        let btf = Btf::from_sys_fs().map_err(|error| {
            format!("no type information: {error}; it wants a kernel with CONFIG_DEBUG_INFO_BTF")
        })?;
        let loader = loader.btf(Some(&btf)).override_global("reader_ns", &namespace, true);
        let mut ebpf = loader.load(OBJECT).map_err(|error| explain(&error))?;
        // In this order nothing is taken for lost that was not there to be seen: what is freed without
        // an end, or ends without an exec, was there before us.
        attach(&mut ebpf, &btf, "freed", "sched_process_free")?;
        attach(&mut ebpf, &btf, "exited", "sched_process_exit")
            .or_else(|_| attach(&mut ebpf, &btf, "exited_by_count", "sched_process_exit"))?;
        attach(&mut ebpf, &btf, "executed", "sched_process_exec")?;
        let mut map = |name: &str| ebpf.take_map(name).ok_or_else(|| format!("no map `{name}`"));
        let ring = RingBuf::try_from(map("ring")?).map_err(|error| explain(&error))?;
        let lost = PerCpuArray::try_from(map("lost")?).map_err(|error| explain(&error))?;
        kumo_sys::memory::trim();
        Ok(Tracepoints {
            _ebpf: ebpf,
            ring,
            lost,
            page_bytes: rustix::param::page_size() as u64,
            cgroups: Cgroups::find(),
            sees_machine: namespace == FIRST_PID_NS,
        })
    }

    /// Readable when there are records.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Takes the next record, if there is one.
    pub(super) fn next(&mut self) -> Option<Result<Record, Malformed>> {
        let bytes = self.ring.next()?;
        let cgroups = &mut self.cgroups;
        Some(records::read(&bytes, self.page_bytes, &mut |id| cgroups.text(id)))
    }

    /// How many records of execs and of exits found no room, ever.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn lost(&self) -> io::Result<(u64, u64)> {
        let count = |index: u32| -> io::Result<u64> {
            let counts = self.lost.get(&index, 0).map_err(io::Error::other)?;
            Ok(counts.iter().sum())
        };
        Ok((count(0)?, count(1)?))
    }
}

fn attach(ebpf: &mut Ebpf, btf: &Btf, name: &str, tracepoint: &str) -> Result<(), String> {
    let program = ebpf.program_mut(name).ok_or_else(|| format!("no program `{name}`"))?;
    let program: &mut BtfTracePoint =
        program.try_into().map_err(|error: ProgramError| explain(&error))?;
    program.load(tracepoint, btf).map_err(|error| explain_load(name, &error))?;
    program.attach().map_err(|error| format!("`{name}` is not attached: {}", explain(&error)))?;
    Ok(())
}

/// The paths of control groups by their ids, which are never given twice. Of the unified hierarchy
/// alone: on a host with the old ones, what only those know stays unknown.
struct Cgroups {
    /// Where the hierarchy is mounted, and the directory.
    mount: Option<(PathBuf, File)>,
    texts: HashMap<u64, Arc<[u8]>>,
}

impl Cgroups {
    fn find() -> Cgroups {
        let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mount =
            unified_mount(&mounts).and_then(|path| Some((path.clone(), File::open(path).ok()?)));
        Cgroups { mount, texts: HashMap::new() }
    }

    /// What `/proc/<pid>/cgroup` would show of a process in there.
    fn text(&mut self, id: u64) -> Option<Arc<[u8]>> {
        if let Some(text) = self.texts.get(&id) {
            return Some(Arc::clone(text));
        }
        let (mount, directory) = self.mount.as_ref()?;
        let opened = kumo_sys::kernfs::open_by_id(directory.as_fd(), id).ok()?;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).ok()?;
        let below = link.strip_prefix(mount).ok()?;
        let text = [b"0::/", below.as_os_str().as_bytes(), b"\n"].concat();
        if self.texts.len() >= CGROUPS_KEPT_MAX {
            self.texts.clear();
        }
        let text: Arc<[u8]> = text.into();
        self.texts.insert(id, Arc::clone(&text));
        Some(text)
    }
}

/// Where `/proc/self/mountinfo` says that the unified hierarchy is mounted, whole.
fn unified_mount(mounts: &[u8]) -> Option<PathBuf> {
    let mut lines = mounts.split(|byte| *byte == b'\n');
    let point = |line: &[u8]| {
        let text = std::str::from_utf8(line).ok()?;
        let (fields, kind) = text.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // A path with a blank in it is escaped, and nobody mounts it there.
        let fits = root == "/" && kind.starts_with("cgroup2 ") && !point.contains('\\');
        fits.then(|| Path::new(point).to_owned())
    };
    lines.find_map(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found() {
        let unified = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        let part = "35 24 0:30 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let old = "36 24 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let cases = [
            (format!("{old}{unified}"), Some("/sys/fs/cgroup")),
            (format!("{part}{old}"), None),
            ("nonsense\n - cgroup2 \n".to_owned(), None),
        ];
        for (mounts, want) in cases {
            assert_eq!(unified_mount(mounts.as_bytes()), want.map(PathBuf::from), "for {mounts}");
        }
    }

    #[test]
    fn our_own_group_is_known_by_its_id() {
        let mut cgroups = Cgroups::find();
        let Some((mount, _)) = &cgroups.mount else {
            return eprintln!("skipped: the unified hierarchy is not mounted");
        };
        let own = std::fs::read_to_string("/proc/self/cgroup").expect("our groups");
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a unified one");
        let id = std::fs::metadata(mount.join(own)).expect("its directory").ino();
        let text = cgroups.text(id);
        if text.is_none() && !rustix::process::geteuid().is_root() {
            return eprintln!("skipped without the right to open by handle");
        }
        assert_eq!(text.as_deref(), Some(format!("0::/{own}\n").as_bytes()));
        assert_eq!(cgroups.text(id), text, "and it is remembered");
        assert_eq!(cgroups.text(u64::MAX), None);
    }
}
