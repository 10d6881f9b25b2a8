//! What the doctor looks at: files, a few system calls, and programs that tell their version.

use std::env;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use k2i::{CollectorChoice, Engine, EngineConfig, Rung};
use kumo_sys::{Ended, PidFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::runtimes::{PROGRAMS, Program};

/// A program tells its version at once; one that waits for something does not hold up the report.
const VERSION_TIME_MAX: Duration = Duration::from_secs(3);

/// What a version has to say stands in its first lines.
const VERSION_BYTES_MAX: u64 = 4096;

/// Where programs of the system may be that an ordinary user has not in `PATH`.
const MORE_DIRS: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin"];

/// What was read of the kernel; `None` where a file is not there or not readable.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The collector ladder, or why no engine opens.
    pub(super) ladder: Result<Vec<Rung>, String>,
    /// What became of each source of events.
    pub(super) events: Vec<Rung>,
    pub(super) btf: bool,
    pub(super) lockdown: Option<String>,
    /// `/proc/self/status`.
    pub(super) status: Option<String>,
    /// `/proc/self/mountinfo`.
    pub(super) mounts: Option<String>,
    /// What `/proc/self/ns/pid` points to.
    pub(super) pid_namespace: Option<String>,
    /// Names in `/proc/self/ns`.
    pub(super) namespaces: Vec<String>,
    pub(super) kptr_restrict: Option<String>,
    pub(super) pressure: Option<String>,
    pub(super) schedstat: bool,
    pub(super) delay_accounting: Option<String>,
    pub(super) pidfd: io::Result<()>,
    /// `cgroup.controllers` of the unified hierarchy.
    pub(super) controllers: Option<String>,
    pub(super) max_user_namespaces: Option<String>,
    /// Debian's switch.
    pub(super) userns_clone: Option<String>,
    /// Ubuntu's switch.
    pub(super) userns_apparmor: Option<String>,
    pub(super) filesystems: Option<String>,
    pub(super) seccomp_actions: Option<String>,
    pub(super) kvm: io::Result<()>,
    pub(super) vsock: io::Result<()>,
    pub(super) io_uring: io::Result<()>,
    /// `tcp_available_ulp`.
    pub(super) protocols: Option<String>,
    /// Whether the module `tls` could be loaded.
    pub(super) tls_module: bool,
}

/// What is known of a runtime.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) program: &'static Program,
    /// Where it is; `None` if nowhere.
    pub(super) path: Option<PathBuf>,
    /// What it says of its version.
    pub(super) version: Option<String>,
}

/// Reads what there is to read of the kernel.
pub(super) fn kernel() -> Kernel {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let modules = Path::new("/lib/modules").join(&release);
    let has_tls = |suffix: &str| modules.join(format!("kernel/net/tls/tls.ko{suffix}")).exists();
    let config = EngineConfig {
        collector: CollectorChoice::Auto,
        dc: kumo_node::DC_DEFAULT.to_owned(),
        host: k2i::host::host_name(),
    };
    let device = |path: &str| fs::OpenOptions::new().read(true).write(true).open(path).map(drop);
    Kernel {
        ladder: match Engine::open(config) {
            Ok(engine) => Ok(engine.rungs()),
            Err(error) => Err(crate::chain(&error)),
        },
        events: k2i::event_ladder(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        lockdown: read("/sys/kernel/security/lockdown"),
        status: read("/proc/self/status"),
        mounts: read("/proc/self/mountinfo"),
        pid_namespace: fs::read_link("/proc/self/ns/pid")
            .ok()
            .map(|link| link.to_string_lossy().into_owned()),
        namespaces: names("/proc/self/ns"),
        kptr_restrict: read("/proc/sys/kernel/kptr_restrict"),
        pressure: read("/proc/pressure/cpu"),
        schedstat: Path::new("/proc/self/schedstat").exists(),
        delay_accounting: read("/proc/sys/kernel/task_delayacct"),
        pidfd: PidFd::open(std::process::id() as i32).map(drop),
        controllers: read("/sys/fs/cgroup/cgroup.controllers")
            .or_else(|| read("/sys/fs/cgroup/unified/cgroup.controllers")),
        max_user_namespaces: read("/proc/sys/user/max_user_namespaces"),
        userns_clone: read("/proc/sys/kernel/unprivileged_userns_clone"),
        userns_apparmor: read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        filesystems: read("/proc/filesystems"),
        seccomp_actions: read("/proc/sys/kernel/seccomp/actions_avail"),
        kvm: kumo_sys::probe::kvm(),
        vsock: device("/dev/vhost-vsock"),
        io_uring: kumo_sys::probe::io_uring(),
        protocols: read("/proc/sys/net/ipv4/tcp_available_ulp"),
        tls_module: ["", ".xz", ".zst", ".gz"].into_iter().any(has_tls),
    }
}

/// Looks for every runtime and asks those that are there for their version, all at once.
pub(super) fn runtimes() -> Vec<Found> {
    std::thread::scope(|scope| {
        let search = |program: &'static Program| {
            scope.spawn(move || {
                let path = program.names.iter().find_map(|name| in_path(name));
                let version = path.as_deref().and_then(version);
                Found { program, path, version }
            })
        };
        let searches: Vec<_> = PROGRAMS.iter().map(search).collect();
        searches.into_iter().filter_map(|search| search.join().ok()).collect()
    })
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// The program `name`, as a shell would find it. Relative directories of `PATH` are passed over:
/// what lies in the present directory is not to be run by a report.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(MORE_DIRS.iter().map(PathBuf::from));
    dirs.filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|file| {
        let executable = |data: &fs::Metadata| data.permissions().mode() & 0o111 != 0;
        fs::metadata(file).is_ok_and(|data| data.is_file() && executable(&data))
    })
}

/// A program that was started; killed if need be and reaped on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already as a rule, and is only reaped.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What a program prints first when it is asked for its version.
fn version(program: &Path) -> Option<String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = Running(command.spawn().ok()?);
    let output = running.0.stdout.take()?;
    // A helper that it left behind may hold the pipe open: what is there by then is enough.
    fcntl_setfl(&output, fcntl_getfl(&output).ok()? | OFlags::NONBLOCK).ok()?;
    let ended = PidFd::open(running.0.id() as i32).ok()?.wait(Some(VERSION_TIME_MAX)).ok()?;
    if ended == Ended::NotYet {
        return None;
    }
    let mut bytes = Vec::new();
    // The error of a pipe that is still open ends the reading and loses nothing.
    output.take(VERSION_BYTES_MAX).read_to_end(&mut bytes).ok();
    let text = String::from_utf8_lossy(&bytes);
    let with_number = |line: &&str| line.bytes().any(|byte| byte.is_ascii_digit());
    text.lines().map(str::trim).find(with_number).map(str::to_owned)
}
