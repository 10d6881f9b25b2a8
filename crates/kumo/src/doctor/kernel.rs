//! The rules: what was read of the kernel, and what it means.

use std::io;

use k2i::Rung;

use super::probe::Kernel;
use super::{Check, State};

const TABLE: &str = "Process table";
const ISOLATION: &str = "Isolation";
const MACHINES: &str = "Machines and speed";

/// Inode of the first PID namespace (`PROC_PID_INIT_INO`): who is in it sees all processes.
const PID_NAMESPACE_FIRST: &str = "pid:[4026531836]";

/// Bits of the capabilities that BPF iterators need.
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;
/// Lets one see the details of others' processes.
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// What is found, how it stands and how to get the rest.
struct Finding {
    state: State,
    found: String,
    fix: Option<String>,
}

fn ok(found: impl Into<String>) -> Finding {
    Finding { state: State::Ok, found: found.into(), fix: None }
}

fn limited(found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { state: State::Limited, found: found.into(), fix: Some(fix.into()) }
}

fn missing(found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { state: State::Missing, found: found.into(), fix: Some(fix.into()) }
}

/// All checks of the kernel, in the order of the report.
pub(super) fn checks(kernel: &Kernel) -> Vec<Check> {
    let check = |area, name, why, finding: Finding| {
        let Finding { state, found, fix } = finding;
        Check { area, name, state, found, why, fix }
    };
    let flag = |there: bool, found: &str, or_else: Finding| {
        if there { ok(found) } else { or_else }
    };
    let trim = |text: &Option<String>| text.as_deref().map(|text| text.trim().to_owned());
    vec![
        check(
            TABLE,
            "collector",
            "the speed of the process table: a BPF iterator reads it in one pass",
            collector(kernel),
        ),
        check(
            TABLE,
            "events",
            "processes that begin and end, as it happens: kumo watch, kumo ps --ended",
            events(&kernel.events),
        ),
        check(
            TABLE,
            "rights",
            "BPF iterators and the details of other users' processes",
            rights(kernel.status.as_deref()),
        ),
        check(
            TABLE,
            "BTF",
            "BPF programs that fit every kernel",
            flag(
                kernel.btf,
                "/sys/kernel/btf/vmlinux",
                missing(
                    "no /sys/kernel/btf/vmlinux",
                    "a kernel with CONFIG_DEBUG_INFO_BTF=y (Debian 11, Ubuntu 20.10, RHEL 8.2 or newer)",
                ),
            ),
        ),
        check(
            TABLE,
            "lockdown",
            "BPF programs may not read kernel memory under confidentiality",
            lockdown(kernel.lockdown.as_deref()),
        ),
        check(
            TABLE,
            "PID namespace",
            "seeing all processes of the host",
            pid_namespace(kernel.pid_namespace.as_deref()),
        ),
        check(TABLE, "/proc", "seeing other users' processes", hidepid(kernel.mounts.as_deref())),
        check(
            TABLE,
            "kernel symbols",
            "the column wchan: what a process sleeps in",
            match trim(&kernel.kptr_restrict).as_deref() {
                Some("2") => {
                    limited("hidden from all (kptr_restrict 2)", "sysctl kernel.kptr_restrict=1")
                }
                Some("1") => ok("for root (kptr_restrict 1)"),
                _ => ok("shown"),
            },
        ),
        check(
            TABLE,
            "pressure (PSI)",
            "how long tasks wait for CPU, memory and storage",
            flag(
                kernel.pressure.is_some(),
                "/proc/pressure",
                missing(
                    "no /proc/pressure, or it is switched off",
                    "a kernel with CONFIG_PSI=y, booted with psi=1",
                ),
            ),
        ),
        check(
            TABLE,
            "scheduling delay",
            "the column run_delay: how long a process waits for a CPU",
            flag(
                kernel.schedstat,
                "/proc/PID/schedstat",
                missing("no /proc/PID/schedstat", "a kernel with CONFIG_SCHED_INFO=y"),
            ),
        ),
        check(
            TABLE,
            "delay accounting",
            "how long a process waits for storage and swapped pages",
            match trim(&kernel.delay_accounting).as_deref() {
                Some("0") => limited(
                    "built in, switched off",
                    "sysctl kernel.task_delayacct=1, or boot with `delayacct`",
                ),
                Some(_) => ok("on"),
                None => missing("not built in", "a kernel with CONFIG_TASK_DELAY_ACCT=y"),
            },
        ),
        check(
            TABLE,
            "pidfd",
            "signals that never reach the wrong process",
            match &kernel.pidfd {
                Ok(()) => ok("works"),
                Err(error) => missing(error.to_string(), "Linux 5.3 or newer, unfiltered"),
            },
        ),
        check(
            ISOLATION,
            "cgroups",
            "limits, freezing of idle instances, and telling containers apart",
            cgroups(kernel.mounts.as_deref(), kernel.controllers.as_deref()),
        ),
        check(ISOLATION, "namespaces", "containers", namespaces(&kernel.namespaces)),
        check(
            ISOLATION,
            "user namespaces",
            "containers that an ordinary user starts",
            user_namespaces(kernel),
        ),
        check(
            ISOLATION,
            "seccomp",
            "filters of system calls for what is contained",
            match trim(&kernel.seccomp_actions) {
                Some(actions) if actions.split(' ').any(|action| action == "user_notif") => {
                    ok("filters, with user notification")
                }
                Some(_) => limited("filters, without user notification", "Linux 5.0 or newer"),
                None => missing("no filters", "a kernel with CONFIG_SECCOMP_FILTER=y"),
            },
        ),
        check(
            ISOLATION,
            "overlayfs",
            "containers that share the layers of their images",
            filesystem(kernel.filesystems.as_deref(), "overlay"),
        ),
        check(
            MACHINES,
            "KVM",
            "microVMs: Firecracker, Kata, QEMU at full speed",
            device(
                &kernel.kvm,
                "a virtual machine can be made",
                "virtualisation in the firmware, nested virtualisation on a virtual machine, and the module kvm_intel or kvm_amd",
                "usermod -aG kvm $USER, then log in again",
            ),
        ),
        check(
            MACHINES,
            "vhost-vsock",
            "talking to microVMs without a network",
            device(
                &kernel.vsock,
                "/dev/vhost-vsock opens",
                "modprobe vhost_vsock",
                "usermod -aG kvm $USER, then log in again",
            ),
        ),
        check(
            MACHINES,
            "io_uring",
            "fewer system calls for each message",
            match &kernel.io_uring {
                Ok(()) => ok("works"),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => missing(
                    "switched off or filtered",
                    "sysctl kernel.io_uring_disabled=0; in a container, a seccomp profile that allows it",
                ),
                Err(error) => missing(error.to_string(), "Linux 5.1 or newer"),
            },
        ),
        check(
            MACHINES,
            "kernel TLS",
            "encryption between hosts without copies through user space",
            match trim(&kernel.protocols) {
                Some(protocols) if protocols.split(' ').any(|name| name == "tls") => ok("loaded"),
                _ if kernel.tls_module => {
                    limited("the module is there, not loaded", "modprobe tls")
                }
                _ => missing("no module tls", "a kernel with CONFIG_TLS=m or y"),
            },
        ),
    ]
}

fn collector(kernel: &Kernel) -> Finding {
    let ladder = match &kernel.ladder {
        Ok(ladder) => ladder,
        Err(why) => return missing(why.clone(), "mount /proc"),
    };
    let Some(chosen) = ladder.iter().find(|rung| rung.chosen) else {
        return missing("none works", "mount /proc");
    };
    let above: Vec<String> = ladder
        .iter()
        .take_while(|rung| !rung.chosen)
        .map(|rung| format!("{}: {}", rung.collector, rung.why))
        .collect();
    let found = format!("{} ({})", chosen.collector, chosen.why);
    if above.is_empty() { ok(found) } else { limited(found, above.join("; ")) }
}

fn events(ladder: &[Rung]) -> Finding {
    let why = || ladder.iter().map(|rung| format!("{}: {}", rung.collector, rung.why));
    match ladder.iter().position(|rung| rung.chosen) {
        Some(0) => ok(format!("{} ({})", ladder[0].collector, ladder[0].why)),
        Some(at) => {
            limited(ladder[at].collector.clone(), why().take(at).collect::<Vec<_>>().join("; "))
        }
        None => missing("none works", why().collect::<Vec<_>>().join("; ")),
    }
}

fn rights(status: Option<&str>) -> Finding {
    let effective = status.and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    let Some(effective) = effective else {
        return limited("not known", "mount /proc");
    };
    let has = |capability: u64| effective & capability == capability;
    let bpf = has(CAP_SYS_ADMIN) || has(CAP_BPF | CAP_PERFMON);
    match (bpf, has(CAP_SYS_PTRACE)) {
        (true, true) => ok("BPF, and details of all processes"),
        (true, false) => limited("BPF, but not the details of others", "add CAP_SYS_PTRACE"),
        (false, true) => {
            limited("details of all processes, but no BPF", "add CAP_BPF and CAP_PERFMON")
        }
        (false, false) => limited(
            "those of an ordinary user: /proc only, details of own processes only",
            "run the node as root (`sudo kumo up`), or give it CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE",
        ),
    }
}

fn lockdown(text: Option<&str>) -> Finding {
    let Some(text) = text else { return ok("none: not built in, or not mounted") };
    let chosen = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some("confidentiality") => limited(
            "confidentiality: no BPF program may read kernel memory",
            "boot with lockdown=integrity; without, /proc is read",
        ),
        Some(mode) => ok(mode),
        None => ok("none"),
    }
}

fn pid_namespace(link: Option<&str>) -> Finding {
    match link {
        Some(PID_NAMESPACE_FIRST) => ok("the host's own"),
        Some(_) => limited(
            "one of its own: only processes of this container are seen",
            "start it in the host's PID namespace (docker run --pid=host)",
        ),
        None => limited("not known", "mount /proc"),
    }
}

/// The options of the mount at `/proc`, and those of its file system.
fn hidepid(mounts: Option<&str>) -> Finding {
    let Some(mounts) = mounts else { return limited("not known", "mount /proc") };
    let options = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let dash = fields.iter().position(|field| *field == "-")?;
        let is_proc = fields.get(4) == Some(&"/proc") && fields.get(dash + 1) == Some(&"proc");
        let options = [fields.get(5), fields.get(dash + 3)];
        is_proc.then(|| options.into_iter().flatten().copied().collect::<Vec<_>>().join(","))
    });
    let options = options.unwrap_or_default();
    match options.split(',').find_map(|option| option.strip_prefix("hidepid=")) {
        None | Some("0" | "off") => ok("shows all processes"),
        Some(mode) => limited(
            format!("hides other users' processes (hidepid={mode})"),
            "run as root, or mount -o remount,hidepid=0 /proc",
        ),
    }
}

fn cgroups(mounts: Option<&str>, controllers: Option<&str>) -> Finding {
    let kinds: Vec<(&str, &str)> = mounts
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            Some((before.split(' ').nth(4)?, after.split(' ').next()?))
        })
        .collect();
    let has = |kind: &str| kinds.iter().any(|(_, found)| *found == kind);
    let unified = has("cgroup2");
    let v1 = has("cgroup");
    let fix = "boot with systemd.unified_cgroup_hierarchy=1 (the default since Debian 11)";
    let controllers = controllers.unwrap_or_default().trim();
    match (unified, v1) {
        (true, false) if controllers.is_empty() => {
            limited("v2, without controllers", "delegate controllers to this group")
        }
        (true, false) => ok(format!("v2: {controllers}")),
        (true, true) => limited("v1, with v2 beside it", fix),
        (false, true) => limited("v1", fix),
        (false, false) => missing("not mounted", "mount -t cgroup2 none /sys/fs/cgroup"),
    }
}

fn namespaces(names: &[String]) -> Finding {
    const WANTED: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    let (there, absent): (Vec<&str>, Vec<&str>) = WANTED.into_iter().partition(|name| has(name));
    if there.is_empty() {
        missing("none", "a kernel with CONFIG_NAMESPACES=y, and /proc")
    } else if absent.is_empty() {
        ok(there.join(" "))
    } else {
        limited(
            format!("{}; not {}", there.join(" "), absent.join(" ")),
            "a newer kernel (time: 5.6, cgroup: 4.6) with all kinds of namespaces built in",
        )
    }
}

fn user_namespaces(kernel: &Kernel) -> Finding {
    let number =
        |text: &Option<String>| text.as_deref().and_then(|text| text.trim().parse::<u64>().ok());
    match number(&kernel.max_user_namespaces) {
        None => return missing("not built in", "a kernel with CONFIG_USER_NS=y"),
        Some(0) => return missing("none allowed", "sysctl user.max_user_namespaces=15000"),
        Some(_) => {}
    }
    if number(&kernel.userns_clone) == Some(0) {
        return limited("for root only", "sysctl kernel.unprivileged_userns_clone=1");
    }
    if number(&kernel.userns_apparmor).is_some_and(|mode| mode > 0) {
        let fix = "an AppArmor profile, or sysctl kernel.apparmor_restrict_unprivileged_userns=0";
        return limited("for root and for programs that AppArmor allows", fix);
    }
    ok("for every user")
}

fn filesystem(filesystems: Option<&str>, name: &str) -> Finding {
    let known = filesystems
        .unwrap_or_default()
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some(name));
    if known {
        ok("built in or loaded")
    } else {
        limited(format!("{name} is not loaded"), format!("modprobe {name}; many runtimes do it"))
    }
}

fn device(
    result: &io::Result<()>,
    found: &str,
    how: &'static str,
    how_allowed: &'static str,
) -> Finding {
    match result {
        Ok(()) => ok(found),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            limited("there, but not for this user", how_allowed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => missing("no such device", how),
        Err(error) => missing(error.to_string(), how),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_by_capabilities() {
        let cases = [
            (Some("Name:\tx\nCapEff:\t000001ffffffffff\n"), State::Ok),
            (Some("CapEff:\t0000000000000000\n"), State::Limited),
            (Some("CapEff:\t000000c000080000\n"), State::Ok),
            (Some("CapEff:\t000000c000000000\n"), State::Limited),
            (Some("CapEff:\tnonsense\n"), State::Limited),
            (None, State::Limited),
        ];
        for (status, want) in cases {
            assert_eq!(rights(status).state, want, "for {status:?}");
        }
    }

    #[test]
    fn lockdown_modes() {
        let cases = [
            (None, State::Ok),
            (Some("[none] integrity confidentiality\n"), State::Ok),
            (Some("none [integrity] confidentiality\n"), State::Ok),
            (Some("none integrity [confidentiality]\n"), State::Limited),
            (Some(""), State::Ok),
        ];
        for (text, want) in cases {
            assert_eq!(lockdown(text).state, want, "for {text:?}");
        }
    }

    #[test]
    fn hidden_processes() {
        let line = |options: &str, of_fs: &str| {
            format!("22 1 0:20 / /proc {options} shared:5 - proc proc {of_fs}\n")
        };
        let cases = [
            (line("rw,nosuid", "rw"), State::Ok),
            (line("rw", "rw,hidepid=0"), State::Ok),
            (line("rw", "rw,hidepid=invisible"), State::Limited),
            (line("rw,hidepid=2", "rw"), State::Limited),
            ("22 1 0:20 / /tmp rw - tmpfs none rw,hidepid=2\n".to_owned(), State::Ok),
            (String::new(), State::Ok),
        ];
        for (mounts, want) in cases {
            assert_eq!(hidepid(Some(&mounts)).state, want, "for {mounts:?}");
        }
    }

    #[test]
    fn hierarchies() {
        let v1 = "30 1 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let v2 = "31 1 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let cases = [
            (v2.to_owned(), Some("cpu memory\n"), State::Ok, "v2: cpu memory"),
            (v2.to_owned(), Some("\n"), State::Limited, "v2, without controllers"),
            (v1.to_owned(), None, State::Limited, "v1"),
            (format!("{v1}{v2}"), Some(""), State::Limited, "v1, with v2 beside it"),
            (String::new(), None, State::Missing, "not mounted"),
        ];
        for (mounts, controllers, state, found) in cases {
            let finding = cgroups(Some(&mounts), controllers);
            assert_eq!((finding.state, finding.found.as_str()), (state, found));
        }
    }

    #[test]
    fn kinds_of_namespaces() {
        let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let all = "cgroup ipc mnt net pid pid_for_children time user uts";
        assert_eq!(namespaces(&names(all)).state, State::Ok);
        let old = namespaces(&names("ipc mnt net pid user uts"));
        assert_eq!(old.found, "ipc mnt net pid user uts; not cgroup time");
        assert_eq!(namespaces(&[]).state, State::Missing);
    }

    #[test]
    fn devices() {
        let failed = |kind: io::ErrorKind| Err(io::Error::from(kind));
        let cases = [
            (Ok(()), State::Ok),
            (failed(io::ErrorKind::PermissionDenied), State::Limited),
            (failed(io::ErrorKind::NotFound), State::Missing),
            (failed(io::ErrorKind::Other), State::Missing),
        ];
        for (result, want) in cases {
            assert_eq!(device(&result, "", "", "").state, want, "for {result:?}");
        }
    }
}
