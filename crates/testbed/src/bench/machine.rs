//! What the numbers were taken on, and what the kernel says of a process.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The machine in one line of text.
pub fn describe() -> String {
    let cpu = first_line_of("/proc/cpuinfo", "model name");
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let memory_kib: u64 = first_line_of("/proc/meminfo", "MemTotal")
        .and_then(|text| text.trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let system = first_line_of("/etc/os-release", "PRETTY_NAME").unwrap_or_default();
    format!(
        "{}, {cpus} CPUs, {} GiB of memory, Linux {}, {}",
        cpu.as_deref().unwrap_or("unknown CPU"),
        memory_kib.div_ceil(1 << 20),
        release.trim(),
        system.trim_matches('"'),
    )
}

/// The value behind `key`, `:` or `=`, in a file of such lines.
fn first_line_of(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_once([':', '=']).map(|(_, value)| value.trim().to_owned())
}

/// What a command prints; nothing if it is not there or fails.
pub fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// The last CPU that this process may run on: interrupts and others like the first.
///
/// # Errors
/// What the kernel says.
pub fn last_cpu() -> rustix::io::Result<usize> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).rev().find(|cpu| set.is_set(*cpu)).unwrap_or(0))
}

/// Keeps this thread, and every process it starts from now on, on one CPU.
///
/// # Errors
/// What the kernel says.
pub fn pin(cpu: usize) -> rustix::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
}

/// CPU time that a process has used, to a tick of 10 ms; `None` when it is gone.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    // Fields 14 and 15 of the file, the first here being the third.
    let utime: u64 = fields.nth(11)?.parse().ok()?;
    let stime: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((utime + stime) * 10))
}

/// Resident memory of a process now and at its most, in KiB; `None` when it is gone.
pub fn resident_kib(pid: u32) -> Option<(u64, u64)> {
    let path = format!("/proc/{pid}/status");
    let value = |key: &str| first_line_of(&path, key)?.trim_end_matches(" kB").parse().ok();
    Some((value("VmRSS")?, value("VmHWM")?))
}
