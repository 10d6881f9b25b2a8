//! Tables about the host itself. The rules that turn a file's text into values are plain functions.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use kumo_sql::{Cell, Rows, Scan, ScanError};

use super::{HostTables, push};
use crate::host;

/// Largest file of `/proc` and `/sys` that is read here; that of a host with hundreds of CPUs is some
/// hundred KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;

fn read(path: impl AsRef<Path>) -> Option<String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn line(path: &str) -> Cell {
    Cell::text_or_null(read(path).map(|text| text.trim().to_owned()))
}

fn dmi(name: &str) -> Cell {
    line(&format!("/sys/class/dmi/id/{name}"))
}

pub(super) fn system_info(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let name = host::host_name();
    let cpus = cpus(&read("/proc/cpuinfo").unwrap_or_default());
    let memory = host::read_memory().map_err(ScanError::failed)?;
    let uname = rustix::system::uname();
    let short = name.split('.').next().unwrap_or_default().to_owned();
    push(
        host,
        scan,
        rows,
        vec![
            name.clone().into(),
            dmi("product_uuid"),
            Cell::text(uname.machine().to_bytes()),
            cpus.model,
            cpus.brand,
            cpus.cores,
            cpus.logical,
            cpus.sockets,
            cpus.microcode,
            Cell::count(memory.total),
            dmi("sys_vendor"),
            dmi("product_name"),
            dmi("product_version"),
            dmi("product_serial"),
            dmi("board_vendor"),
            dmi("board_name"),
            dmi("board_version"),
            dmi("board_serial"),
            name.into(),
            short.into(),
        ],
    )
}

/// What `/proc/cpuinfo` tells.
#[derive(Debug, Default, PartialEq)]
struct Cpus {
    brand: Cell,
    model: Cell,
    microcode: Cell,
    cores: Cell,
    logical: Cell,
    sockets: Cell,
}

fn cpus(text: &str) -> Cpus {
    let mut cpus = Cpus::default();
    let (mut logical, mut sockets, mut cores) = (0_u32, BTreeSet::new(), BTreeSet::new());
    let mut socket = "";
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let first = |cell: &mut Cell| {
            if *cell == Cell::Null {
                *cell = value.into();
            }
        };
        match key.trim() {
            "processor" => logical += 1,
            "model name" => first(&mut cpus.brand),
            "model" => first(&mut cpus.model),
            "microcode" => first(&mut cpus.microcode),
            "physical id" => {
                socket = value;
                sockets.insert(value);
            }
            "core id" => {
                cores.insert((socket, value));
            }
            _ => {}
        }
    }
    // Some kernels do not say it.
    let known = |count: usize| if count == 0 { Cell::Null } else { Cell::count(count as u64) };
    cpus.logical = known(logical as usize);
    (cpus.cores, cpus.sockets) = (known(cores.len()), known(sockets.len()));
    cpus
}

pub(super) fn kernel_info(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let [path, device, arguments] = arguments(&read("/proc/cmdline").unwrap_or_default());
    let uname = rustix::system::uname();
    let version = Cell::text(uname.release().to_bytes());
    push(host, scan, rows, vec![version, arguments.into(), path.into(), device.into()])
}

/// Image, root and the other arguments of a kernel's command line.
fn arguments(text: &str) -> [String; 3] {
    let [mut path, mut device, mut others] = [const { String::new() }; 3];
    for word in text.split_ascii_whitespace() {
        if let Some(image) = word.strip_prefix("BOOT_IMAGE=") {
            image.clone_into(&mut path);
        } else if let Some(root) = word.strip_prefix("root=") {
            root.clone_into(&mut device);
        } else {
            others.push_str(if others.is_empty() { "" } else { " " });
            others.push_str(word);
        }
    }
    [path, device, others]
}

pub(super) fn os_version(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let text = read("/etc/os-release").or_else(|| read("/usr/lib/os-release"));
    let release = release(&text.unwrap_or_default());
    let get = |name: &str| release.get(name).cloned();
    let cell = |name: &str| Cell::text_or_null(get(name));
    let id = get("VERSION_ID").unwrap_or_default();
    let mut numbers = id.split('.').map(|part| part.parse::<i64>().ok());
    let mut number = || numbers.next().flatten().map_or(Cell::Null, Cell::Int);
    let (major, minor, patch) = (number(), number(), number());
    let arch = Cell::text(rustix::system::uname().machine().to_bytes());
    push(
        host,
        scan,
        rows,
        vec![
            cell("NAME"),
            cell("VERSION"),
            major,
            minor,
            patch,
            cell("BUILD_ID"),
            cell("ID"),
            cell("ID_LIKE"),
            cell("VERSION_CODENAME"),
            arch,
        ],
    )
}

/// Names and values of an `os-release` file.
fn release(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.trim().split_once('='));
    let value = |text: &str| {
        let bare = text.strip_prefix(['"', '\'']).and_then(|text| text.strip_suffix(['"', '\'']));
        bare.unwrap_or(text).replace("\\\"", "\"").replace("\\$", "$").replace("\\\\", "\\")
    };
    lines.map(|(name, text)| (name.to_owned(), value(text))).collect()
}

pub(super) fn uptime(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let seconds = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec;
    let parts = [seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60, seconds];
    push(host, scan, rows, parts.map(Cell::Int).to_vec())
}

pub(super) fn load_average(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let load = host::load().map_err(ScanError::failed)?;
    for (period, average) in [("1m", load.avg1), ("5m", load.avg5), ("15m", load.avg15)] {
        push(host, scan, rows, vec![period.into(), format!("{average:.6}").into()])?;
    }
    Ok(())
}

pub(super) fn memory_info(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let text = read("/proc/meminfo").unwrap_or_default();
    push(host, scan, rows, MEMORY.map(|name| memory(&text, name)).to_vec())
}

/// Lines of `/proc/meminfo`, in the order of the columns.
const MEMORY: [&str; 10] = [
    "MemTotal",
    "MemFree",
    "MemAvailable",
    "Buffers",
    "Cached",
    "SwapCached",
    "Active",
    "Inactive",
    "SwapTotal",
    "SwapFree",
];

fn memory(text: &str, name: &str) -> Cell {
    let of = |line: &str| -> Option<u64> {
        let (key, rest) = line.split_once(':')?;
        (key == name).then(|| rest.trim().strip_suffix(" kB")?.trim().parse().ok()).flatten()
    };
    text.lines().find_map(of).map_or(Cell::Null, |kib: u64| Cell::count(kib.saturating_mul(1024)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted() {
        let text = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Xeon X\nphysical id\t: 0\ncore id\t\t: 0\n\
            microcode\t: 0x1\n\nprocessor\t: 1\nmodel name\t: Xeon Y\nphysical id\t: 0\ncore id\t\t: 0\n\n\
            processor\t: 2\nphysical id\t: 1\ncore id\t\t: 0\n";
        let want = Cpus {
            brand: "Xeon X".into(),
            model: "85".into(),
            microcode: "0x1".into(),
            cores: Cell::Int(2),
            logical: Cell::Int(3),
            sockets: Cell::Int(2),
        };
        assert_eq!(cpus(text), want);
        assert_eq!(cpus(""), Cpus::default());
    }

    #[test]
    fn texts_of_files() {
        let line = "BOOT_IMAGE=/vmlinuz-6 root=/dev/sda1 ro quiet\n";
        assert_eq!(arguments(line), ["/vmlinuz-6", "/dev/sda1", "ro quiet"]);
        let release = release("NAME=\"Debian \\\"x\\\"\"\nID=debian\n# no\nVERSION_ID='12.5'\n");
        assert_eq!(release["NAME"], "Debian \"x\"");
        assert_eq!((release["ID"].as_str(), release["VERSION_ID"].as_str()), ("debian", "12.5"));
        let meminfo =
            "MemTotal:       2 kB\nActive:  3 kB\nActive(anon): 9 kB\nHugePages_Total: 0\n";
        assert_eq!(memory(meminfo, "MemTotal"), Cell::Int(2_048));
        assert_eq!(memory(meminfo, "Active"), Cell::Int(3_072));
        assert_eq!(memory(meminfo, "HugePages_Total"), Cell::Null);
    }
}
