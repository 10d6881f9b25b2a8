//! What is told of the host. Pure: a report and a table in, families out.

use super::text::{Kind, Text};
use crate::host::{CpuSeconds, HostReport, StallShare};
use crate::table::Table;

/// States of processes by the kernel's letters, in words.
const STATES: [(u8, &str); 9] = [
    (b'R', "running"),
    (b'S', "sleeping"),
    (b'D', "waiting"),
    (b'T', "stopped"),
    (b't', "traced"),
    (b'Z', "zombie"),
    (b'X', "dead"),
    (b'I', "idle"),
    (b'P', "parked"),
];

pub(super) fn write(text: &mut Text, report: &HostReport, cpu: &CpuSeconds, table: &Table) {
    let labels = [
        ("dc", &*report.dc),
        ("host", &*report.host),
        ("kernel", &*report.kernel.release),
        ("architecture", &*report.kernel.architecture),
    ];
    text.family(Kind::Info, "kumo_host", "", "The host").sample(&labels, 1.0);
    let mut gauge = |name: &'static str, unit: &str, help: &str, value: f64| {
        text.single(Kind::Gauge, name, unit, help, value);
    };
    let began_unix_s = (table.began_unix_ns as f64 - table.began_boot_ns as f64) / 1e9;
    let help = "When the host was booted, since the Unix epoch, by its present clock";
    // The two clocks are read one after the other: what is below a second is noise.
    gauge("kumo_host_boot_time_seconds", "seconds", help, began_unix_s.round());
    let help = "Time since the host was booted, sleep included";
    gauge("kumo_host_uptime_seconds", "seconds", help, report.boot.uptime_seconds);
    gauge("kumo_host_cpus", "", "CPUs that are online", f64::from(report.cpu.online));
    let load = &report.load;
    let help = "Tasks that ran, wanted to run or waited for storage, over a minute";
    gauge("kumo_host_load1", "", help, load.avg1);
    gauge("kumo_host_load5", "", "The same over five minutes", load.avg5);
    gauge("kumo_host_load15", "", "The same over fifteen minutes", load.avg15);
    let memory = &report.memory;
    for (name, help, bytes) in [
        ("kumo_host_memory_size_bytes", "Memory that the kernel manages", memory.total),
        (
            "kumo_host_memory_available_bytes",
            "What programs could get without swapping, as the kernel estimates it",
            memory.available,
        ),
        ("kumo_host_memory_free_bytes", "Memory that nothing uses", memory.free),
        ("kumo_host_memory_buffers_bytes", "Block device cache", memory.buffers),
        ("kumo_host_memory_cached_bytes", "File cache, shared memory included", memory.cached),
        (
            "kumo_host_memory_reclaimable_bytes",
            "Kernel caches that can be given up",
            memory.reclaimable,
        ),
        ("kumo_host_memory_shared_bytes", "Shared memory and tmpfs", memory.shared),
        ("kumo_host_memory_dirty_bytes", "File data that is yet to be written", memory.dirty),
        ("kumo_host_swap_size_bytes", "Swap space", memory.swap_total),
        ("kumo_host_swap_free_bytes", "Swap space that is not in use", memory.swap_free),
    ] {
        gauge(name, "bytes", help, bytes as f64);
    }
    let tasks = &report.tasks;
    gauge("kumo_host_threads", "", "Threads of all processes", tasks.threads as f64);
    let help = "Threads that run or are ready to";
    gauge("kumo_host_runnable_threads", "", help, tasks.running as f64);
    let help = "Threads that wait for storage";
    gauge("kumo_host_blocked_threads", "", help, tasks.blocked as f64);
    let help = "Processes and threads that were started since the boot";
    text.single(Kind::Counter, "kumo_host_forks", "", help, tasks.forks as f64);

    let mut family = text.family(Kind::Gauge, "kumo_host_processes", "", "Processes by state");
    for (letter, state) in STATES {
        let count = table.rows.iter().filter(|row| row.state == letter).count();
        family.sample(&[("state", state)], count as f64);
    }

    let help = "Time of all CPUs since the boot, by what it went to";
    let mut family = text.family(Kind::Counter, "kumo_host_cpu_seconds", "seconds", help);
    for (mode, seconds) in [
        ("user", cpu.user),
        ("nice", cpu.nice),
        ("system", cpu.system),
        ("idle", cpu.idle),
        ("iowait", cpu.iowait),
        ("irq", cpu.irq),
        ("softirq", cpu.softirq),
        ("steal", cpu.steal),
    ] {
        family.sample(&[("mode", mode)], seconds);
    }
    write_pressure(text, report);
}

/// Nothing is told where the kernel says nothing.
fn write_pressure(text: &mut Text, report: &HostReport) {
    let pressure = &report.pressure;
    let stalls = [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)];
    let stalls: Vec<_> =
        stalls.into_iter().filter_map(|(name, stall)| Some((name, stall?))).collect();
    let mut family = |name: &'static str, help: &str, shares: &[(&str, StallShare)]| {
        if !shares.is_empty() {
            let mut family = text.family(Kind::Counter, name, "seconds", help);
            for (resource, share) in shares {
                family.sample(&[("resource", resource)], share.total_seconds);
            }
        }
    };
    let some: Vec<_> =
        stalls.iter().filter_map(|(name, stall)| Some((*name, stall.some?))).collect();
    let help = "Time in which at least one task waited for a resource";
    family("kumo_host_pressure_waiting_seconds", help, &some);
    let full: Vec<_> =
        stalls.iter().filter_map(|(name, stall)| Some((*name, stall.full?))).collect();
    let help = "Time in which all tasks that were not idle waited for a resource";
    family("kumo_host_pressure_stalled_seconds", help, &full);
}
