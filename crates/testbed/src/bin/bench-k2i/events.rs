//! What a node uses while many processes begin and end, and whether it misses any.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Error};
use std::path::Path;
use std::time::{Duration, Instant};

use aya::sys::{Stats, enable_stats};
use kumo_testbed::Zoo;
use kumo_testbed::bench::machine;
use kumo_testbed::bench::stats::significant;
use serde_json::Value;

use crate::cases::rows;
use crate::http;
use crate::server::Server;

/// Programs started in a second.
const RATE: usize = 1_000;

/// Processes that are started as fast as can be.
const BURST: usize = 10_000;

/// Longest wait until the last of them is a row or a loss.
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// Between two looks; each makes a table of all that ended.
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

/// The node has read what was there before it by then.
const START_PAUSE: Duration = Duration::from_secs(3);

pub(crate) fn measure(programs: &Path, wall: Duration) -> io::Result<String> {
    // Not where TMPDIR says: names of sockets have 108 bytes.
    let dir = tempfile::Builder::new().prefix("kumo-bench-").tempdir_in("/tmp")?;
    let node = Server::node(&programs.join("kumo"), dir.path())?;
    let report = events_of(&node)?;
    let source = report["source"].as_str().unwrap_or("none").to_owned();
    if source != "tracepoints" {
        eprintln!("bench-k2i: events come from `{source}`: {report}");
    }
    // The kernel counts the time of programs while this is open. Without the right it tells nothing.
    let counted = enable_stats(Stats::RunTime).ok();
    std::thread::sleep(START_PAUSE);
    let idle = used(&node, || std::thread::sleep(wall))?;
    let count = RATE * wall.as_secs().max(1) as usize;
    let busy = used(&node, || {
        Zoo::burst(count, RATE);
    })?;
    let mut text =
        "| the node | CPU, % of one | BPF programs, % of one |\n|---|---:|---:|\n".to_owned();
    let mut row = |name: &str, used: &Used| {
        let percent =
            |cpu: Duration| significant(100.0 * cpu.as_secs_f64() / used.wall.as_secs_f64());
        let bpf = counted.as_ref().and(used.bpf).map(percent).unwrap_or_default();
        let _ = writeln!(text, "| {name} | {} | {bpf} |", percent(used.cpu));
    };
    row("nothing happens", &idle);
    let rate = count as f64 / busy.wall.as_secs_f64();
    row(&format!("{rate:.0} programs a second begin and end"), &busy);
    drop(counted);

    let before = events_of(&node)?;
    let began = Instant::now();
    let burst = Zoo::burst(BURST, 0);
    let took = began.elapsed();
    let told = settled(&node, burst.pid, &before)?;
    let lifetime = 1e3 * told.lifetime.as_secs_f64();
    let _ = writeln!(
        text,
        "\nAs fast as this machine can: {BURST} processes in {} s, which live {} ms (median). {} rows and {} \
         counted as lost are {BURST}; {} rows lack their command line and {} their CPU time, and not more are counted as lost execs ({}) and \
         lost reaps ({}). Events come from {source}.",
        significant(took.as_secs_f64()),
        significant(lifetime),
        told.rows,
        told.lost,
        told.without_line,
        told.without_time,
        told.lost_execs,
        told.lost_reaps,
    );
    Ok(text)
}

/// What something has used.
struct Used {
    wall: Duration,
    /// By the node.
    cpu: Duration,
    /// By its programs at tracepoints, in whoever passed there; `None` where the kernel does not tell.
    bpf: Option<Duration>,
}

fn used(node: &Server, work: impl FnOnce()) -> io::Result<Used> {
    let gone = || Error::other("the node ended while it was watched");
    let cpu = || machine::cpu_time(node.pid()).ok_or_else(gone);
    let (began, cpu_before, bpf_before) = (Instant::now(), cpu()?, program_time(node.pid()));
    work();
    let wall = began.elapsed();
    let bpf = bpf_before.zip(program_time(node.pid())).map(|(from, to)| to.saturating_sub(from));
    Ok(Used { wall, cpu: cpu()?.saturating_sub(cpu_before), bpf })
}

/// How long the programs have run that a process has attached somewhere: those are at tracepoints. What is
/// not attached are iterators, whose time is that of who reads them.
fn program_time(pid: u32) -> Option<Duration> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?.flatten();
    // A descriptor may be closed by now.
    let all: Vec<String> =
        entries.filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect();
    let is_attached = |id: u64| {
        let mut links = all.iter().filter(|text| text.contains("link_type:"));
        links.any(|text| field(text, "prog_id") == Some(id))
    };
    let time_ns = |text: &String| {
        let time_ns = field(text, "run_time_ns")?;
        field(text, "prog_id").filter(|id| is_attached(*id)).map(|_| time_ns)
    };
    let times: Vec<u64> = all.iter().filter_map(time_ns).collect();
    (!times.is_empty()).then(|| Duration::from_nanos(times.iter().sum()))
}

/// A number of a file of `name:\tnumber` lines.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

fn events_of(node: &Server) -> io::Result<Value> {
    let host: Value = serde_json::from_slice(&http::fetch(node.address, "/v2/host")?)?;
    Ok(host["events"].clone())
}

/// What is known of processes that ended.
struct Told {
    rows: u64,
    lost: u64,
    without_line: u64,
    without_time: u64,
    lost_execs: u64,
    lost_reaps: u64,
    /// Median.
    lifetime: Duration,
}

/// Waits until each child of `parent` is a row or a loss.
fn settled(node: &Server, parent: i32, before: &Value) -> io::Result<Told> {
    let path = format!(
        "/v2/proc?ended=1&columns=pid,cmdline,time,lifetime&filter=ppid%20%3D%3D%20{parent}&max_age_ms=0"
    );
    let lost = |name: &str, report: &Value| {
        let count = |report: &Value| report["lost"][name].as_u64().unwrap_or(0);
        count(report).saturating_sub(count(before))
    };
    let until = Instant::now() + SETTLE_MAX;
    loop {
        let answer: Value = serde_json::from_slice(&http::fetch(node.address, &path)?)?;
        let report = events_of(node)?;
        let rows = rows(&answer);
        let without = |name: &str| rows.iter().filter(|row| row[name].is_null()).count() as u64;
        let (without_line, without_time) = (without("cmdline"), without("time"));
        let (count, lost_exits) = (rows.len() as u64, lost("exits", &report));
        let (lost_execs, lost_reaps) = (lost("execs", &report), lost("reaps", &report));
        let are_all = count + lost_exits == BURST as u64;
        if are_all && without_time <= lost_reaps && without_line <= lost_execs {
            let mut lifetimes: Vec<f64> =
                rows.iter().filter_map(|row| row["lifetime"].as_f64()).collect();
            lifetimes.sort_unstable_by(f64::total_cmp);
            let median = lifetimes.get(lifetimes.len() / 2).copied().unwrap_or_default();
            let lifetime = Duration::try_from_secs_f64(median).unwrap_or_default();
            return Ok(Told {
                rows: count,
                lost: lost_exits,
                without_line,
                without_time,
                lost_execs,
                lost_reaps,
                lifetime,
            });
        }
        if Instant::now() > until {
            let what = "rows and losses are not what was started";
            return Err(Error::other(format!("{count} {what}, {BURST}: {report}")));
        }
        std::thread::sleep(SETTLE_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_descriptor() {
        let text = "pos:\t0\nprog_type:\t17\nrun_time_ns:\t1234\nrun_cnt:\t5\n";
        assert_eq!(field(text, "prog_type"), Some(17));
        assert_eq!(field(text, "run_time_ns"), Some(1_234));
        assert_eq!(field(text, "run_time"), None);
    }
}
