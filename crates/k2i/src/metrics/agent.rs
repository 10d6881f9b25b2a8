//! What is told of this server itself.
//!
//! What every Prometheus client tells of its process has the names that dashboards know, `process_…`.

use std::fs;
use std::sync::atomic::Ordering;

use rustix::process::{Resource, getrlimit};

use super::text::{Kind, Text};
use crate::engine::Engine;
use crate::host::HostReport;
use crate::http::serve::connections;
use crate::table::Table;

pub(super) fn write(text: &mut Text, engine: &Engine, report: &HostReport, table: &Table) {
    let metrics = engine.metrics();
    let events = &report.events;
    let labels = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("collector", &*report.collector),
        ("events", events.source.as_deref().unwrap_or("none")),
    ];
    let help = "This server: its version, how it reads the process table, where events come from";
    text.family(Kind::Info, "kumo_agent", "", help).sample(&labels, 1.0);

    let (below, count, sum) = metrics.scans.told();
    let help = "Scans of the process table, and how long they took";
    let mut family = text.family(Kind::Histogram, "kumo_agent_scan_seconds", "seconds", help);
    family.histogram(&below, count, sum);
    let failed = metrics.scans_failed.load(Ordering::Relaxed);
    let help = "Scans of the process table that failed";
    text.single(Kind::Counter, "kumo_agent_scan_failures", "", help, failed as f64);
    let help = "Number of the newest table; it grows by one with each scan that answers somebody";
    text.single(Kind::Gauge, "kumo_agent_generation", "", help, table.generation as f64);

    let requests = metrics.requests.load(Ordering::Relaxed);
    let help = "Requests that came in, from whomever";
    text.single(Kind::Counter, "kumo_agent_requests", "", help, requests as f64);
    let help = "Answers that began, by status; those of 4 were refused, those of 5 failed or were too many";
    let mut family = text.family(Kind::Counter, "kumo_agent_responses", "", help);
    for (status, count) in ["2xx", "3xx", "4xx", "5xx"].iter().zip(&metrics.responses[2..]) {
        family.sample(&[("status", status)], count.load(Ordering::Relaxed) as f64);
    }
    let help = "Connections that are open, of all listeners";
    text.single(Kind::Gauge, "kumo_agent_connections", "", help, connections() as f64);

    if events.source.is_some() {
        let help = "Events of processes that were taken";
        let mut family = text.family(Kind::Counter, "kumo_agent_events", "", help);
        let counts = [("exec", &metrics.execs), ("exit", &metrics.exits), ("reap", &metrics.reaps)];
        for (kind, count) in counts {
            family.sample(&[("kind", kind)], count.load(Ordering::Relaxed) as f64);
        }
        let lost = &events.lost;
        let help = "Events that were lost; of an overrun nobody knows how many it has cost";
        let mut family = text.family(Kind::Counter, "kumo_agent_events_lost", "", help);
        let counts = [("exec", lost.execs), ("exit", lost.exits), ("overrun", lost.overruns)];
        for (kind, count) in counts {
            family.sample(&[("kind", kind)], count as f64);
        }
        // One that comes late is not lost any more, so that the number may become smaller.
        let help = "Ended processes whose CPU time was never told";
        text.single(Kind::Gauge, "kumo_agent_reaps_lost", "", help, lost.reaps as f64);
        let help = "Ended processes that are remembered";
        text.single(Kind::Gauge, "kumo_agent_ended_remembered", "", help, events.remembered as f64);
    }
    write_process(text, table);
}

fn write_process(text: &mut Text, table: &Table) {
    // Where a table is played back, we are not in it.
    if let Some(row) = table.position(std::process::id() as i32).map(|at| &table.rows[at]) {
        let began_unix_ns =
            table.began_unix_ns.saturating_sub(table.began_boot_ns.saturating_sub(row.start_ns));
        let help = "CPU time of this server";
        let cpu_s = row.cpu_ns() as f64 / 1e9;
        text.single(Kind::Counter, "process_cpu_seconds", "seconds", help, cpu_s);
        let help = "When this server was started, since the Unix epoch";
        let began_unix_s = began_unix_ns as f64 / 1e9;
        // The clocks are read one after the other: what is below a tick is noise.
        let began_unix_s = (began_unix_s * 100.0).round() / 100.0;
        text.single(Kind::Gauge, "process_start_time_seconds", "seconds", help, began_unix_s);
        let help = "Resident memory of this server";
        text.single(Kind::Gauge, "process_resident_memory_bytes", "bytes", help, row.rss() as f64);
        let help = "Virtual memory of this server";
        text.single(Kind::Gauge, "process_virtual_memory_bytes", "bytes", help, row.vsize as f64);
        let help = "Threads of this server";
        text.single(Kind::Gauge, "process_threads", "", help, f64::from(row.threads));
    }
    if let Some(open) = open_descriptors() {
        let help = "Descriptors that this server has open";
        text.single(Kind::Gauge, "process_open_fds", "", help, open as f64);
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        let help = "Descriptors that this server may have open";
        text.single(Kind::Gauge, "process_max_fds", "", help, most as f64);
    }
}

/// Since Linux 6.2 the directory says as its size how many there are; before, they are counted.
fn open_descriptors() -> Option<u64> {
    let path = "/proc/self/fd";
    match fs::metadata(path).ok()?.len() {
        // Our own look at the directory is one of them.
        0 => Some((fs::read_dir(path).ok()?.count() as u64).saturating_sub(1)),
        open => Some(open),
    }
}
