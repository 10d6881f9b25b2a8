//! Whether a process stands still: stopped, traced, or in a control group that is frozen.

use std::fs;
use std::path::PathBuf;

/// The bit in a task's flags that says it is on its way out (`PF_EXITING`).
const PF_EXITING: u64 = 0x4;

/// Where control groups can be asked whether they are frozen.
#[derive(Clone, Debug, Default)]
pub(super) struct Freezers {
    /// Of the unified hierarchy.
    unified: Option<PathBuf>,
    /// Of the freezer of version 1.
    freezer: Option<PathBuf>,
}

impl Freezers {
    /// Those that are mounted.
    pub(super) fn mounted() -> Freezers {
        parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// Whether the process with this number stands still. One that is gone does not.
    pub(super) fn stands_still(&self, pid: u32) -> bool {
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        match parse_stat(&stat) {
            Some((b'T' | b't', _)) => true,
            Some(_) => self.is_frozen(pid),
            None => false,
        }
    }

    fn is_frozen(&self, pid: u32) -> bool {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let (unified, freezer) = parse_groups(&groups);
        let says = |mount: &Option<PathBuf>, path: Option<&str>, file: &str, text: &str| {
            let (Some(mount), Some(path)) = (mount, path) else { return false };
            let file = mount.join(path.trim_start_matches('/')).join(file);
            fs::read_to_string(file).is_ok_and(|all| all.lines().any(|line| line == text))
        };
        says(&self.unified, unified, "cgroup.events", "frozen 1")
            || says(&self.freezer, freezer, "freezer.state", "FROZEN")
    }
}

/// Whether a process is on its way out, so that its end will be told by its descriptor in a moment.
pub(super) fn is_exiting(pid: u32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    match parse_stat(&stat) {
        Some((state, flags)) => matches!(state, b'Z' | b'X') || flags & PF_EXITING != 0,
        // Gone, or never seen by us.
        None => true,
    }
}

/// State and flags from `/proc/PID/stat`. The name before them may hold anything, also `)`.
fn parse_stat(stat: &[u8]) -> Option<(u8, u64)> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(5)?.parse().ok()?))
}

fn parse_mounts(mounts: &str) -> Freezers {
    let mut found = Freezers::default();
    for line in mounts.lines() {
        // `36 35 98:0 / /mount options … - type source super-options`
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut after = after.split(' ');
        let (kind, options) = (after.next(), after.nth(1).unwrap_or_default());
        let Some(mount) = before.split(' ').nth(4) else { continue };
        if kind == Some("cgroup2") {
            found.unified.get_or_insert_with(|| mount.into());
        } else if kind == Some("cgroup") && options.split(',').any(|one| one == "freezer") {
            found.freezer.get_or_insert_with(|| mount.into());
        }
    }
    found
}

/// The paths of a process in the unified hierarchy and in that of the freezer.
fn parse_groups(groups: &str) -> (Option<&str>, Option<&str>) {
    let (mut unified, mut freezer) = (None, None);
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next(), parts.next(), parts.next());
        if number == Some("0") && controllers == Some("") {
            unified = path;
        } else if controllers.is_some_and(|all| all.split(',').any(|one| one == "freezer")) {
            freezer = path;
        }
    }
    (unified, freezer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands there, and what it says.
    type Case<'a> = (&'a [u8], Option<(u8, u64)>);

    #[test]
    fn states_and_flags() {
        let cases: [Case<'_>; 5] = [
            (b"7 (a) S 1 7 7 0 -1 4194560 0", Some((b'S', 4_194_560))),
            (b"7 (a) R) (x) T 1 7 7 0 -1 4 0", Some((b'T', 4))),
            (b"7 (\xff) Z 1 7 7 0 -1 4 0", Some((b'Z', 4))),
            (b"7 (a) S 1", None),
            (b"", None),
        ];
        for (stat, want) in cases {
            assert_eq!(parse_stat(stat), want);
        }
        let me = std::process::id();
        assert!(!is_exiting(me) && !Freezers::mounted().stands_still(me));
    }

    #[test]
    fn mounts_and_groups() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
            35 30 0:31 / /sys/fs/cgroup/freezer rw shared:9 - cgroup cgroup rw,freezer\n\
            36 30 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\nnonsense";
        let found = parse_mounts(mounts);
        assert_eq!(found.unified, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(found.freezer, Some("/sys/fs/cgroup/freezer".into()));
        let cases = [
            ("0::/a:b\n", (Some("/a:b"), None)),
            ("6:freezer:/x\n1:cpu,cpuacct:/y\n0::/\n", (Some("/"), Some("/x"))),
            ("5:memory,freezer:/x\n", (None, Some("/x"))),
            ("", (None, None)),
        ];
        for (groups, want) in cases {
            assert_eq!(parse_groups(groups), want, "for {groups:?}");
        }
    }
}
