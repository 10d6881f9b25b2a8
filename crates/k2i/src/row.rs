//! From a process to the values of its columns.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use kumo_abi::Value;
use kumo_abi::proc::Column;
use kumo_abi::rights::Lines;

use crate::cgroup::{self, Placement};
use crate::engine::BlockedOn;
use crate::signal::Signal;
use crate::sockets::Snapshot;
use crate::table::{End, Parts, Process, Table};

/// Names of ids.
pub(crate) type Names = HashMap<u32, Arc<str>>;

/// What a row's values depend on beside the row.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) table: Arc<Table>,
    pub(crate) dc: Arc<str>,
    pub(crate) host: Arc<str>,
    pub(crate) users: Arc<Names>,
    pub(crate) groups: Arc<Names>,
    /// Open files and sockets, where they were asked for.
    pub(crate) open: Option<Arc<Snapshot>>,
    /// What processes wait for, as the node says.
    pub(crate) blocked_on: Arc<BlockedOn>,
    /// All memory of the host, bytes.
    pub(crate) memory_bytes: u64,
    /// How command lines are shown: whatever reads a value, be it a filter, an order or a group, reads what
    /// is shown. Else one could ask for secrets letter by letter.
    pub(crate) lines: Lines,
}

/// The parts that a column's value is made from.
pub(crate) fn parts(column: Column) -> Parts {
    use Column as C;
    match column {
        C::Dc | C::Host | C::Pid | C::Ppid | C::BlockedOn => Parts::NONE,
        C::Listen | C::OpenFiles | C::Id | C::Start | C::Comm | C::Kernel => Parts::IDENTITY,
        C::Time | C::Utime | C::Stime | C::Minflt | C::Majflt => Parts::TIMES,
        C::Pgrp
        | C::Session
        | C::Tty
        | C::Tpgid
        | C::State
        | C::Threads
        | C::Nice
        | C::Priority
        | C::Rtprio
        | C::Policy
        | C::Processor
        | C::Flags
        | C::Elapsed
        | C::Cpu
        | C::Pcpu
        | C::Cutime
        | C::Cstime
        | C::Cminflt
        | C::Cmajflt
        | C::Vsize => Parts::STAT,
        C::User | C::Euid | C::Group | C::Egid => Parts::OWNER,
        C::Stat => Parts::STAT | Parts::LOCKED,
        C::Ruser | C::Uid | C::Suid | C::Fsuid | C::Rgroup | C::Gid | C::Sgid | C::Fsgid => {
            Parts::IDS
        }
        C::Swap | C::Locked | C::Stack => Parts::STATUS,
        C::Nspid
        | C::CapEff
        | C::CapPrm
        | C::CapInh
        | C::CapBnd
        | C::CapAmb
        | C::Seccomp
        | C::NoNewPrivs => Parts::SECURITY,
        C::Rss | C::Anon | C::Shared | C::Mem | C::Data | C::Text => Parts::MEMORY,
        C::ReadBytes | C::WriteBytes | C::Rchar | C::Wchar => Parts::IO,
        C::RunDelay | C::Vcsw | C::Ivcsw => Parts::THREADS,
        C::Cmdline | C::Argv | C::CmdlineCut => Parts::CMDLINE,
        C::Cgroup
        | C::Container
        | C::ContainerRuntime
        | C::ContainerId
        | C::Pod
        | C::Unit
        | C::Slice => Parts::CGROUP,
        C::NsMnt
        | C::NsPid
        | C::NsNet
        | C::NsUts
        | C::NsIpc
        | C::NsUser
        | C::NsCgroup
        | C::NsTime => Parts::NAMESPACES,
        C::Loginuid | C::OomAdj => Parts::AUDIT,
        C::Exe => Parts::EXE,
        C::Cwd => Parts::CWD,
        C::Root => Parts::ROOT,
        C::OomScore => Parts::OOM_SCORE,
        C::Wchan => Parts::WCHAN,
        C::EndedAt | C::ExitCode | C::ExitSignal | C::MaxRss => Parts::END,
        C::Lifetime => Parts::END | Parts::IDENTITY,
    }
}

/// The value of `column` in `row`, the row at `index` of the context's table (or a completed copy of
/// it). Null when the row lacks the part that it is made from.
pub(crate) fn value<'a>(
    column: Column,
    row: &'a Process,
    index: usize,
    context: &'a Context,
) -> Value<'a> {
    use Column as C;
    if !row.have.contains(parts(column)) {
        return Value::Null;
    }
    match column {
        C::Dc => Value::text(&*context.dc),
        C::Host => Value::text(&*context.host),
        C::Id => Value::owned_text(row.id().to_string()),
        C::Pid => int(row.pid),
        C::Ppid => int(row.ppid),
        C::Pgrp => int(row.pgrp),
        C::Session => int(row.session),
        C::Nspid => int(row.nspid),
        C::Tty => tty_name(row.tty_nr).map_or(Value::Null, Value::owned_text),
        C::Tpgid => int(row.tpgid),
        C::User => name(row.uid.effective, &context.users),
        C::Ruser => name(row.uid.real, &context.users),
        C::Uid => int(row.uid.real),
        C::Euid => int(row.uid.effective),
        C::Suid => int(row.uid.saved),
        C::Fsuid => int(row.uid.fs),
        C::Group => name(row.gid.effective, &context.groups),
        C::Rgroup => name(row.gid.real, &context.groups),
        C::Gid => int(row.gid.real),
        C::Egid => int(row.gid.effective),
        C::Sgid => int(row.gid.saved),
        C::Fsgid => int(row.gid.fs),
        C::Loginuid if row.loginuid == u32::MAX => Value::Null,
        C::Loginuid => int(row.loginuid),
        C::State => Value::Text(Cow::Borrowed(std::slice::from_ref(&row.state))),
        C::Stat => Value::owned_text(stat_letters(row)),
        C::Kernel => Value::Bool(row.is_kernel()),
        C::Threads => int(row.threads),
        C::Nice => int(row.nice),
        C::Priority => int(row.priority),
        C::Rtprio => int(row.rtprio),
        C::Policy => Value::text(policy_name(row.policy)),
        C::Processor => int(row.processor),
        C::Flags => int(row.flags),
        C::Start => moment(row.start_ns, &context.table),
        C::Elapsed => seconds(context.table.began_boot_ns.saturating_sub(row.start_ns)),
        C::Cpu => match context.table.cpu_percent.as_ref().map(|percents| percents[index]) {
            Some(percent) if !percent.is_nan() => Value::Float(two_places(percent)),
            _ => Value::Null,
        },
        C::Pcpu => {
            let life_ns = context.table.began_boot_ns.saturating_sub(row.start_ns).max(1);
            Value::Float(two_places((row.cpu_ns() as f64 * 100.0 / life_ns as f64) as f32))
        }
        C::Time => seconds(row.cpu_ns()),
        C::Utime => seconds(row.utime_ns),
        C::Stime => seconds(row.stime_ns),
        C::Cutime => seconds(row.cutime_ns),
        C::Cstime => seconds(row.cstime_ns),
        C::RunDelay => seconds(row.run_delay_ns),
        C::Minflt => count(row.min_flt),
        C::Majflt => count(row.maj_flt),
        C::Cminflt => count(row.cmin_flt),
        C::Cmajflt => count(row.cmaj_flt),
        C::Vcsw => count(row.vcsw),
        C::Ivcsw => count(row.ivcsw),
        C::Vsize => count(row.vsize),
        C::Rss => count(row.rss()),
        C::Anon => count(row.memory.anon),
        C::Shared => count(row.memory.shared),
        C::Swap => count(row.swap),
        C::Mem => {
            let all = context.memory_bytes.max(1);
            Value::Float(two_places((row.rss() as f64 * 100.0 / all as f64) as f32))
        }
        C::Locked => count(row.locked),
        C::Data => count(row.memory.data),
        C::Stack => count(row.stack),
        C::Text => count(row.memory.text),
        C::ReadBytes => count(row.io.read_bytes),
        C::WriteBytes => count(row.io.write_bytes.saturating_sub(row.io.cancelled_write_bytes)),
        C::Rchar => count(row.io.rchar),
        C::Wchar => count(row.io.wchar),
        C::Comm => Value::text(row.comm.as_bytes()),
        C::Cmdline => command_line(row, context.lines),
        C::Argv => match &row.cmdline {
            Some(line) => Value::TextList(Cow::Borrowed(line.shown(context.lines).argv())),
            None => Value::TextList(Cow::Borrowed(b"")),
        },
        C::Exe => late(row, |late| late.exe.as_deref()),
        C::Cwd => late(row, |late| late.cwd.as_deref()),
        C::Root => late(row, |late| late.root.as_deref()),
        C::BlockedOn => {
            let on = u32::try_from(row.pid).ok().and_then(|pid| context.blocked_on.get(&pid));
            on.map_or(Value::Null, |on| Value::text(on.as_str()))
        }
        C::Wchan => late(row, |late| late.wchan.as_deref()),
        C::OomScore => {
            let score = row.late.as_ref().and_then(|late| late.oom_score);
            score.map_or(Value::Null, int)
        }
        // A host without control groups has none to show.
        C::Cgroup if row.cgroup.is_none() => Value::Null,
        C::Cgroup => Value::text(placement(row).path),
        C::Container => placement(row).container().map_or(Value::Null, Value::owned_text),
        C::ContainerRuntime => {
            placement(row).runtime.map_or(Value::Null, |runtime| Value::text(runtime.name()))
        }
        C::ContainerId => placement(row).container_id.map_or(Value::Null, Value::Text),
        C::Pod => placement(row).pod.map_or(Value::Null, Value::owned_text),
        C::Unit => placement(row).unit.map_or(Value::Null, Value::text),
        C::Slice => placement(row).slice.map_or(Value::Null, Value::text),
        C::NsMnt => inode(row.ns.mnt),
        C::NsPid => inode(row.ns.pid),
        C::NsNet => inode(row.ns.net),
        C::NsUts => inode(row.ns.uts),
        C::NsIpc => inode(row.ns.ipc),
        C::NsUser => inode(row.ns.user),
        C::NsCgroup => inode(row.ns.cgroup),
        C::NsTime => inode(row.ns.time),
        C::CapEff => hex(row.caps.effective),
        C::CapPrm => hex(row.caps.permitted),
        C::CapInh => hex(row.caps.inheritable),
        C::CapBnd => hex(row.caps.bounding),
        C::CapAmb => hex(row.caps.ambient),
        C::Seccomp => Value::text(match row.seccomp {
            0 => "disabled",
            1 => "strict",
            _ => "filter",
        }),
        C::NoNewPrivs => Value::Bool(row.no_new_privs),
        C::OomAdj => int(row.oom_score_adj),
        C::EndedAt | C::Lifetime | C::ExitCode | C::ExitSignal | C::MaxRss => {
            row.end.as_deref().map_or(Value::Null, |end| ending(column, row, end, &context.table))
        }
        C::Listen => {
            let ports = context.open.as_ref().and_then(|open| open.listening(row.id()));
            ports.map_or(Value::Null, Value::owned_text)
        }
        C::OpenFiles => {
            let files = context.open.as_ref().and_then(|open| open.open_files(row.id()));
            files.map_or(Value::Null, int)
        }
        C::CmdlineCut => Value::Bool(row.cmdline_cut),
    }
}

/// The value of a column about the end of a process.
fn ending<'a>(column: Column, row: &Process, end: &End, table: &Table) -> Value<'a> {
    match column {
        Column::EndedAt => moment(end.at_ns, table),
        Column::Lifetime => seconds(end.at_ns.saturating_sub(row.start_ns)),
        Column::ExitCode => end.code().map_or(Value::Null, int),
        Column::ExitSignal => end.signal().map_or(Value::Null, |number| {
            let name = Signal::from_number(number).map(|signal| signal.to_string());
            Value::owned_text(name.unwrap_or_else(|| number.to_string()))
        }),
        Column::MaxRss => end.max_rss.map_or(Value::Null, count),
        _ => Value::Null,
    }
}

/// A moment of boot time on the wall clock, as it was when the table was made.
pub(crate) fn moment<'a>(boot_ns: u64, table: &Table) -> Value<'a> {
    let age_ns = i128::from(table.began_boot_ns) - i128::from(boot_ns);
    Value::owned_text(rfc3339(i128::from(table.began_unix_ns) - age_ns))
}

pub(crate) fn int<'a>(number: impl Into<i64>) -> Value<'a> {
    Value::Int(number.into())
}

pub(crate) fn count<'a>(number: u64) -> Value<'a> {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn seconds<'a>(ns: u64) -> Value<'a> {
    // Microseconds are what is true of it; more digits would only be noise.
    Value::Float((ns / 1_000) as f64 / 1e6)
}

fn two_places(number: f32) -> f64 {
    (f64::from(number) * 100.0).round() / 100.0
}

fn inode<'a>(number: u32) -> Value<'a> {
    if number == 0 { Value::Null } else { int(number) }
}

fn hex<'a>(bits: u64) -> Value<'a> {
    Value::owned_text(format!("{bits:016x}"))
}

pub(crate) fn name(id: u32, names: &Names) -> Value<'_> {
    names.get(&id).map_or_else(|| Value::owned_text(id.to_string()), |name| Value::text(&**name))
}

fn late<'a>(
    row: &'a Process,
    text: impl FnOnce(&'a crate::table::Late) -> Option<&'a [u8]>,
) -> Value<'a> {
    row.late.as_deref().and_then(text).map_or(Value::Null, Value::text)
}

fn placement(row: &Process) -> Placement<'_> {
    cgroup::placement(row.cgroup.as_deref().unwrap_or_default())
}

/// The command line. Kernel threads and zombies have none: their name in brackets stands for it, as in
/// ps.
fn command_line(row: &Process, lines: Lines) -> Value<'_> {
    let Some(line) = row.cmdline.as_ref().map(|line| line.shown(lines)) else {
        let defunct: &[u8] = if row.state == b'Z' { b" <defunct>" } else { b"" };
        return Value::owned_text([b"[", row.comm.as_bytes(), b"]", defunct].concat());
    };
    if row.cmdline_cut {
        return Value::owned_text([line.joined(), "…".as_bytes()].concat());
    }
    Value::text(line.joined())
}

/// State and flags as ps(1) writes them under STAT.
fn stat_letters(row: &Process) -> String {
    let mut letters = String::with_capacity(6);
    letters.push(char::from(row.state));
    if row.nice < 0 {
        letters.push('<');
    } else if row.nice > 0 {
        letters.push('N');
    }
    if row.locked > 0 {
        letters.push('L');
    }
    if row.session == row.pid {
        letters.push('s');
    }
    if row.threads > 1 {
        letters.push('l');
    }
    if row.tpgid == row.pgrp && row.pgrp > 0 {
        letters.push('+');
    }
    letters
}

/// `SCHED_*` of `include/uapi/linux/sched.h`.
fn policy_name(policy: u32) -> &'static str {
    match policy {
        0 => "other",
        1 => "fifo",
        2 => "rr",
        3 => "batch",
        5 => "idle",
        6 => "deadline",
        7 => "ext",
        _ => "unknown",
    }
}

/// The name of a terminal from its device number (Documentation/admin-guide/devices.txt).
pub(crate) fn tty_name(device: u32) -> Option<String> {
    if device == 0 {
        return None;
    }
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    Some(match (major, minor) {
        (4, 0..64) => format!("tty{minor}"),
        (4, _) => format!("ttyS{}", minor - 64),
        (5, 0) => "tty".to_owned(),
        (5, 1) => "console".to_owned(),
        (136..144, _) => format!("pts/{}", minor + (major - 136) * 256),
        (188, _) => format!("ttyUSB{minor}"),
        (166, _) => format!("ttyACM{minor}"),
        (204, 64..) => format!("ttyAMA{}", minor - 64),
        (229, _) => format!("hvc{minor}"),
        _ => format!("{major}:{minor}"),
    })
}

/// A time in nanoseconds since the Unix epoch as `2026-11-22T18:54:09.123456Z`.
///
/// Written by hand because the table formats one for every row: this costs 60 ns.
pub fn rfc3339(unix_ns: i128) -> String {
    let micros = unix_ns.div_euclid(1_000);
    let (seconds, micro) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days as i64);
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    let mut put = |at: usize, width: usize, mut number: i64| {
        for place in (at..at + width).rev() {
            text[place] = b'0' + number.rem_euclid(10) as u8;
            number /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second as i64 / 3600);
    put(14, 2, second as i64 / 60 % 60);
    put(17, 2, second as i64 % 60);
    put(20, 6, micro as i64);
    String::from_utf8_lossy(&text).into_owned()
}

/// Year, month and day of a day number since 1970-01-01 in the Gregorian calendar; years are counted
/// from March so that the leap day comes last.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::CommandLine;

    #[test]
    fn times() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_827_696_123_456_789, "2000-02-29T12:34:56.123456Z"),
            (1_795_374_000_000_000_000, "2026-11-22T19:00:00.000000Z"),
            (4_102_444_799_999_999_999, "2099-12-31T23:59:59.999999Z"),
        ];
        for (ns, want) in cases {
            assert_eq!(rfc3339(ns), want);
        }
    }

    #[test]
    fn terminals() {
        let cases = [
            (0, None),
            (0x0401, Some("tty1")),
            (0x0440, Some("ttyS0")),
            (0x0501, Some("console")),
            (34816, Some("pts/0")),
            (34819, Some("pts/3")),
            ((136 << 8) | 0x2c | (1 << 20), Some("pts/300")),
            (0xff01, Some("255:1")),
        ];
        for (device, want) in cases {
            assert_eq!(tty_name(device).as_deref(), want, "for {device:#x}");
        }
    }

    #[test]
    fn stat_letters_are_those_of_ps() {
        let base =
            Process { pid: 10, session: 1, pgrp: 10, tpgid: -1, threads: 1, ..process(b'S') };
        let cases = [
            (base.clone(), "S"),
            (Process { nice: 5, threads: 2, ..base.clone() }, "SNl"),
            (Process { nice: -5, locked: 1, session: 10, ..base.clone() }, "S<Ls"),
            (Process { tpgid: 10, state: b'R', ..base }, "R+"),
        ];
        for (row, want) in cases {
            assert_eq!(stat_letters(&row), want);
        }
    }

    #[test]
    fn command_lines() {
        let line = |argv: Option<&[u8]>, state| {
            let row = Process { cmdline: argv.map(CommandLine::new), ..process(state) };
            match command_line(&row, Lines::Whole) {
                Value::Text(text) => String::from_utf8_lossy(&text).into_owned(),
                other => panic!("{other:?} is no text"),
            }
        };
        assert_eq!(line(Some(b"sh\0-c\0a b\0"), b'S'), "sh -c a b");
        assert_eq!(line(Some(b"nginx: master\0\0\0\0"), b'S'), "nginx: master");
        assert_eq!(line(Some(b"\0\0"), b'S'), "");
        assert_eq!(line(None, b'I'), "[demo]");
        assert_eq!(line(None, b'Z'), "[demo] <defunct>");
    }

    fn process(state: u8) -> Process {
        Process { state, comm: crate::table::Comm::new(b"demo"), ..Process::default() }
    }
}
