//! The host itself: kernel, CPUs, memory, load, pressure, uptime.
//!
//! The rules that turn a file's text into values are plain functions; [`HostReport::read`] is the
//! one reader of files. Each file is a moment of its own, so that sums over several of them may be
//! off by what happened in between. In a container most of them describe the whole host.

use std::fs;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::collect::Rung;
use crate::engine::{AskError, Engine};
use crate::events::EventsReport;
use crate::row::rfc3339;
use crate::table::Parts;

/// What a host says about itself. Memory in bytes, times in seconds, shares in percent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostReport {
    /// The data centre of the host.
    pub dc: String,
    /// Its name.
    pub host: String,
    /// When this was read, RFC 3339, UTC.
    pub as_of: String,
    /// Its kernel.
    pub kernel: Kernel,
    /// Its present boot.
    pub boot: Boot,
    /// Its CPUs.
    pub cpu: Cpu,
    /// Its memory.
    pub memory: Memory,
    /// How many tasks wanted to run.
    pub load: Load,
    /// How long tasks waited for what they lacked.
    pub pressure: Pressure,
    /// How many tasks there are.
    pub tasks: Tasks,
    /// The collector that reads the process table: `iter.s`, `iter` or `proc`.
    pub collector: String,
    /// What became of each rung of the collector ladder, from the top, and why.
    pub ladder: Vec<Rung>,
    /// What there is to say about processes that begin and end.
    #[serde(default)]
    pub events: EventsReport,
}

/// The kernel of a host, as `uname` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Kernel {
    /// `Linux`.
    pub name: String,
    /// Such as `6.1.0-18-amd64`.
    pub release: String,
    /// Build number and date.
    pub version: String,
    /// Such as `x86_64`.
    pub architecture: String,
}

/// The present boot of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Boot {
    /// A process identity holds within one boot.
    pub boot_id: String,
    /// When it began, RFC 3339, UTC, to the second.
    pub boot_time: String,
    /// Seconds since then, sleep included.
    pub uptime_seconds: f64,
}

/// The CPUs of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Cpu {
    /// How many are online.
    pub online: u32,
    /// The name of the first; null where the kernel does not say (some arm64 kernels).
    pub model: Option<String>,
    /// Time spent since boot, all CPUs together.
    pub seconds: CpuSeconds,
    /// The same for each CPU that is online.
    pub each: Vec<OneCpu>,
}

/// One CPU and its time since boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OneCpu {
    /// Its number; there are gaps where CPUs are offline.
    pub cpu: u32,
    /// Where its time went.
    #[serde(flatten)]
    pub seconds: CpuSeconds,
}

/// Where CPU time went, in seconds since boot. A client that reads twice knows the share between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CpuSeconds {
    /// Programs, niced ones aside; guests of virtual machines included.
    pub user: f64,
    /// Programs with a nice value above 0.
    pub nice: f64,
    /// The kernel.
    pub system: f64,
    /// Nothing to do.
    pub idle: f64,
    /// Nothing to do while a task waited for I/O.
    pub iowait: f64,
    /// Hardware interrupts.
    pub irq: f64,
    /// Software interrupts.
    pub softirq: f64,
    /// Taken by the hypervisor for others.
    pub steal: f64,
}

impl CpuSeconds {
    /// Time with something to do. Stolen time counts: there was work for it.
    pub fn busy(&self) -> f64 {
        self.user + self.nice + self.system + self.irq + self.softirq + self.steal
    }

    /// All time.
    pub fn total(&self) -> f64 {
        self.busy() + self.idle + self.iowait
    }

    /// The busy share of the time between an `earlier` reading and this one, 0 to 100; `None` when
    /// no time has passed between them.
    pub fn busy_percent_since(&self, earlier: &CpuSeconds) -> Option<f64> {
        let total = self.total() - earlier.total();
        // The kernel lets idle and iowait run backwards now and then.
        let share = 100.0 * (self.busy() - earlier.busy()) / total;
        (total > 0.0).then(|| share.clamp(0.0, 100.0))
    }
}

/// The memory of a host in bytes; 0 where the kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// What the kernel manages.
    pub total: u64,
    /// What programs could get without swapping, as the kernel estimates it.
    pub available: u64,
    /// What nothing uses.
    pub free: u64,
    /// Block device cache.
    pub buffers: u64,
    /// File cache, shared memory included.
    pub cached: u64,
    /// Kernel caches that can be given up.
    pub reclaimable: u64,
    /// Shared memory and tmpfs.
    pub shared: u64,
    /// File data that is yet to be written.
    pub dirty: u64,
    /// Swap space.
    pub swap_total: u64,
    /// Swap space that is not in use.
    pub swap_free: u64,
}

/// Load averages: tasks that ran, wanted to run or waited for storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Load {
    /// Over one minute.
    pub avg1: f64,
    /// Over five minutes.
    pub avg5: f64,
    /// Over fifteen minutes.
    pub avg15: f64,
}

/// Pressure stall information; null where the kernel has none or it is switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Pressure {
    /// Waits for a CPU.
    pub cpu: Option<Stall>,
    /// Waits for memory.
    pub memory: Option<Stall>,
    /// Waits for storage.
    pub io: Option<Stall>,
}

/// Waits for one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Stall {
    /// At least one task waited.
    pub some: Option<StallShare>,
    /// All tasks that were not idle waited. Older kernels do not say it of CPUs.
    pub full: Option<StallShare>,
}

/// The share of time that was lost waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StallShare {
    /// Percent of the last ten seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
    /// Seconds since boot.
    pub total_seconds: f64,
}

/// How many tasks a host has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tasks {
    /// Processes, kernel threads included.
    pub processes: u64,
    /// Threads of all processes.
    pub threads: u64,
    /// Threads that run or are ready to.
    pub running: u64,
    /// Threads that wait for storage.
    pub blocked: u64,
    /// Processes and threads started since boot.
    pub forks: u64,
}

/// Why a host could not report. A retry is safe.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file that every Linux has.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file that is not as documented.
    #[error("cannot make sense of {0}")]
    Form(&'static str),
    /// The process table.
    #[error("cannot count the processes")]
    Table(#[source] AskError),
}

/// A process count this old is still good.
const COUNT_AGE_MAX: Duration = Duration::from_secs(2);

impl HostReport {
    /// Reads what this host says about itself. Blocks for some small files of `/proc`, and for a
    /// scan of the process table where no recent one exists.
    ///
    /// # Errors
    /// See [`HostError`]. Pressure and the CPU's name may be absent; that is no error.
    pub fn read(engine: &Engine) -> Result<HostReport, HostError> {
        let config = engine.config();
        let table = engine.table(COUNT_AGE_MAX, Parts::STAT).map_err(HostError::Table)?;
        let stat = read_stat()?;
        let (load, threads) =
            parse_loadavg(&read("/proc/loadavg")?).ok_or(HostError::Form("/proc/loadavg"))?;
        let ladder = engine.rungs();
        Ok(HostReport {
            dc: config.dc.clone(),
            host: config.host.clone(),
            as_of: now(),
            kernel: kernel(),
            boot: boot(stat.boot_unix_seconds)?,
            cpu: Cpu {
                online: stat.each.len() as u32,
                model: cpu_model(),
                seconds: stat.all,
                each: stat.each,
            },
            memory: read_memory()?,
            load,
            pressure: Pressure {
                cpu: read_stall("/proc/pressure/cpu"),
                memory: read_stall("/proc/pressure/memory"),
                io: read_stall("/proc/pressure/io"),
            },
            tasks: Tasks {
                processes: table.rows.len() as u64,
                threads,
                running: stat.running,
                blocked: stat.blocked,
                forks: stat.forks,
            },
            collector: ladder
                .iter()
                .find(|rung| rung.chosen)
                .map(|rung| rung.collector.clone())
                .unwrap_or_default(),
            ladder,
            events: engine.events_report(),
        })
    }
}

/// The name of this host, as `uname` tells it.
pub fn host_name() -> String {
    match rustix::system::uname().nodename().to_string_lossy() {
        name if name.is_empty() => "localhost".to_owned(),
        name => name.into_owned(),
    }
}

/// Where CPU time went since boot, all CPUs together.
///
/// # Errors
/// When `/proc/stat` cannot be read.
pub fn cpu_seconds() -> Result<CpuSeconds, HostError> {
    Ok(read_stat()?.all)
}

/// The load averages.
///
/// # Errors
/// When `/proc/loadavg` cannot be read.
pub fn load() -> Result<Load, HostError> {
    let parsed = parse_loadavg(&read("/proc/loadavg")?);
    parsed.map(|(load, _)| load).ok_or(HostError::Form("/proc/loadavg"))
}

/// The memory of this host.
///
/// # Errors
/// When `/proc/meminfo` cannot be read.
pub fn read_memory() -> Result<Memory, HostError> {
    parse_meminfo(&read("/proc/meminfo")?).ok_or(HostError::Form("/proc/meminfo"))
}

fn read(path: &'static str) -> Result<String, HostError> {
    let bytes = fs::read(path).map_err(|source| HostError::File { path, source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn read_stat() -> Result<Stat, HostError> {
    parse_stat(&read("/proc/stat")?).ok_or(HostError::Form("/proc/stat"))
}

fn read_stall(path: &'static str) -> Option<Stall> {
    read(path).ok().and_then(|text| parse_stall(&text))
}

fn kernel() -> Kernel {
    let uname = rustix::system::uname();
    Kernel {
        name: uname.sysname().to_string_lossy().into_owned(),
        release: uname.release().to_string_lossy().into_owned(),
        version: uname.version().to_string_lossy().into_owned(),
        architecture: uname.machine().to_string_lossy().into_owned(),
    }
}

fn boot(boot_unix_seconds: i64) -> Result<Boot, HostError> {
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Ok(Boot {
        boot_id: read("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        // The kernel knows it to the second, so that there are no parts of one to show.
        boot_time: rfc3339(i128::from(boot_unix_seconds) * 1_000_000_000).replace(".000000Z", "Z"),
        uptime_seconds: uptime.tv_sec as f64 + f64::from((uptime.tv_nsec / 1_000_000) as u32) / 1e3,
    })
}

/// The CPU's name does not change while we run, and a host with hundreds of CPUs takes milliseconds
/// to print them all: it is read once.
fn cpu_model() -> Option<String> {
    static MODEL: OnceLock<Option<String>> = OnceLock::new();
    let read = || read("/proc/cpuinfo").ok().and_then(|text| parse_cpu_model(&text));
    MODEL.get_or_init(read).clone()
}

/// This moment, as answers carry it: RFC 3339, UTC.
pub fn now() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    rfc3339(i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec))
}

/// What we take from `/proc/stat`.
#[derive(Debug, Default, PartialEq)]
struct Stat {
    all: CpuSeconds,
    each: Vec<OneCpu>,
    boot_unix_seconds: i64,
    running: u64,
    blocked: u64,
    forks: u64,
}

fn parse_stat(text: &str) -> Option<Stat> {
    let mut stat = Stat::default();
    let mut complete = (false, false);
    for line in text.lines() {
        let (key, rest) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "cpu" => {
                stat.all = parse_cpu_seconds(rest)?;
                complete.0 = true;
            }
            "btime" => {
                stat.boot_unix_seconds = rest.trim().parse().ok()?;
                complete.1 = true;
            }
            "processes" => stat.forks = rest.trim().parse().ok()?,
            "procs_running" => stat.running = rest.trim().parse().ok()?,
            "procs_blocked" => stat.blocked = rest.trim().parse().ok()?,
            _ => {
                if let Some(cpu) = key.strip_prefix("cpu").and_then(|number| number.parse().ok()) {
                    stat.each.push(OneCpu { cpu, seconds: parse_cpu_seconds(rest)? });
                }
            }
        }
    }
    (complete == (true, true)).then_some(stat)
}

/// The numbers behind `cpu` in `/proc/stat`, in ticks of 10 ms. Guest time follows them, but the
/// kernel counts it as user time too.
fn parse_cpu_seconds(numbers: &str) -> Option<CpuSeconds> {
    let mut ticks = [0_u64; 8];
    let mut fields = numbers.split_ascii_whitespace();
    for (index, tick) in ticks.iter_mut().enumerate() {
        match fields.next() {
            Some(field) => *tick = field.parse().ok()?,
            None if index >= 4 => break,
            None => return None,
        }
    }
    let [user, nice, system, idle, iowait, irq, softirq, steal] = ticks.map(|t| t as f64 / 100.0);
    Some(CpuSeconds { user, nice, system, idle, iowait, irq, softirq, steal })
}

/// The load, and the number of threads.
fn parse_loadavg(text: &str) -> Option<(Load, u64)> {
    let mut fields = text.split_ascii_whitespace();
    let mut average = || fields.next()?.parse::<f64>().ok();
    let load = Load { avg1: average()?, avg5: average()?, avg15: average()? };
    let (_running, threads) = fields.next()?.split_once('/')?;
    Some((load, threads.parse().ok()?))
}

fn parse_meminfo(text: &str) -> Option<Memory> {
    let mut memory = Memory::default();
    let mut available = None;
    for line in text.lines() {
        let Some((key, rest)) = line.split_once(':') else { continue };
        let field = match key {
            "MemTotal" => &mut memory.total,
            "MemAvailable" => available.insert(0),
            "MemFree" => &mut memory.free,
            "Buffers" => &mut memory.buffers,
            "Cached" => &mut memory.cached,
            "SReclaimable" => &mut memory.reclaimable,
            "Shmem" => &mut memory.shared,
            "Dirty" => &mut memory.dirty,
            "SwapTotal" => &mut memory.swap_total,
            "SwapFree" => &mut memory.swap_free,
            _ => continue,
        };
        let kib = rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
        *field = kib.saturating_mul(1024);
    }
    // Kernels before 3.14, and some containers' view of them, leave the estimate to us.
    let guess = memory.free + memory.buffers + memory.cached.saturating_sub(memory.shared);
    memory.available = available.unwrap_or(guess);
    (memory.total > 0).then_some(memory)
}

fn parse_stall(text: &str) -> Option<Stall> {
    let mut stall = Stall::default();
    for line in text.lines() {
        let (kind, rest) = line.split_once(' ')?;
        let mut share = StallShare::default();
        for field in rest.split_ascii_whitespace() {
            let (key, number) = field.split_once('=')?;
            match key {
                "avg10" => share.avg10 = number.parse().ok()?,
                "avg60" => share.avg60 = number.parse().ok()?,
                "avg300" => share.avg300 = number.parse().ok()?,
                "total" => share.total_seconds = number.parse::<u64>().ok()? as f64 / 1e6,
                _ => {}
            }
        }
        match kind {
            "some" => stall.some = Some(share),
            "full" => stall.full = Some(share),
            _ => {}
        }
    }
    (stall != Stall::default()).then_some(stall)
}

/// The first name that the kernel gives a CPU; what the line is called depends on the architecture.
fn parse_cpu_model(text: &str) -> Option<String> {
    const KEYS: [&str; 5] = ["model name", "Model Name", "cpu model", "cpu", "Model"];
    KEYS.iter().find_map(|wanted| {
        let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
        let (_, name) = pairs.find(|(key, _)| key.trim() == *wanted)?;
        Some(name.split_whitespace().collect::<Vec<_>>().join(" ")).filter(|name| !name.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let text = "cpu  28590 1 6494 439516 1392 2 107 762 50 0\n\
                    cpu0 13582 1 3021 221199 221 1 13 367 50 0\n\
                    cpu3 15008 0 3472 218316 1170 1 93 395 0 0\n\
                    intr 349955 0 0\nctxt 557100\nbtime 1795373059\nprocesses 11174\n\
                    procs_running 2\nprocs_blocked 1\nsoftirq 247424 0\n";
        let stat = parse_stat(text).expect("a whole file");
        assert!((stat.all.user - 285.9).abs() < 1e-9 && (stat.all.steal - 7.62).abs() < 1e-9);
        assert_eq!(stat.each.iter().map(|one| one.cpu).collect::<Vec<_>>(), [0, 3]);
        let counts = (stat.boot_unix_seconds, stat.running, stat.blocked, stat.forks);
        assert_eq!(counts, (1_795_373_059, 2, 1, 11_174));

        let old = "cpu 1 2 3 4\nbtime 5\n";
        assert!((parse_stat(old).expect("four numbers will do").all.total() - 0.1).abs() < 1e-9);
        for bad in ["", "cpu 1 2 3\nbtime 5", "cpu 1 2 3 x\nbtime 5", "cpu 1 2 3 4", "btime 5"] {
            assert_eq!(parse_stat(bad), None, "for {bad:?}");
        }
    }

    #[test]
    fn busy_share() {
        let at = |user, idle| CpuSeconds { user, idle, ..CpuSeconds::default() };
        let cases = [
            (at(10.0, 90.0), at(11.0, 93.0), Some(25.0)),
            (at(10.0, 90.0), at(10.0, 90.0), None),
            (at(10.0, 90.0), at(12.0, 89.0), Some(100.0)),
        ];
        for (earlier, later, want) in cases {
            assert_eq!(later.busy_percent_since(&earlier), want, "from {earlier:?} to {later:?}");
        }
    }

    #[test]
    fn load_averages() {
        let want = (Load { avg1: 0.02, avg5: 0.09, avg15: 0.14 }, 87);
        assert_eq!(parse_loadavg("0.02 0.09 0.14 1/87 11170\n"), Some(want));
        for bad in ["", "0.02 0.09", "0.02 0.09 0.14", "0.02 0.09 0.14 1/x 3", "a b c 1/2 3"] {
            assert_eq!(parse_loadavg(bad), None, "for {bad:?}");
        }
    }

    #[test]
    fn memory_is_in_bytes() {
        let text = "MemTotal:       1000 kB\nMemFree: 100 kB\nMemAvailable:   300 kB\n\
                    Cached: 50 kB\nShmem: 20 kB\nHugePages_Total:       0\nSwapFree: 7 kB\n";
        let memory = parse_meminfo(text).expect("a whole file");
        let want = Memory {
            total: 1_024_000,
            free: 102_400,
            available: 307_200,
            cached: 51_200,
            shared: 20_480,
            swap_free: 7_168,
            ..Memory::default()
        };
        assert_eq!(memory, want);
        let old = parse_meminfo("MemTotal: 10 kB\nMemFree: 3 kB\nBuffers: 2 kB\n");
        assert_eq!(old.map(|memory| memory.available), Some(5 * 1024));
        for bad in ["", "MemFree: 1 kB", "MemTotal: 1000", "MemTotal: x kB"] {
            assert_eq!(parse_meminfo(bad), None, "for {bad:?}");
        }
    }

    #[test]
    fn stalls() {
        let some = "some avg10=1.50 avg60=0.04 avg300=0.12 total=10886237\n";
        let share = StallShare { avg10: 1.5, avg60: 0.04, avg300: 0.12, total_seconds: 10.886_237 };
        assert_eq!(parse_stall(some), Some(Stall { some: Some(share), full: None }));
        let both = format!("{some}full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
        let want = Stall { some: Some(share), full: Some(StallShare::default()) };
        assert_eq!(parse_stall(&both), Some(want));
        for bad in ["", "some", "some avg10", "some avg10=x", "some total=-1"] {
            assert_eq!(parse_stall(bad), None, "for {bad:?}");
        }
    }

    #[test]
    fn cpu_models() {
        let cases = [
            (
                "processor\t: 0\nmodel\t\t: 207\nmodel name\t: Some  CPU @ 2GHz\n",
                Some("Some CPU @ 2GHz"),
            ),
            ("processor : 0\ncpu : POWER9, altivec supported\n", Some("POWER9, altivec supported")),
            ("processor\t: 0\nCPU implementer\t: 0x41\n", None),
            ("model name\t:\n", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_cpu_model(text).as_deref(), want, "for {text:?}");
        }
    }
}
