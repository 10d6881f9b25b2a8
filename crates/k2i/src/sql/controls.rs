//! `system_controls`: the kernel's parameters, and what the files of the system say they shall be.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use kumo_abi::rights::Scope;
use kumo_abi::sysctl::ParameterName;
use kumo_sql::{Cell, Rows, Scan, ScanError};

use super::{HostTables, push};
use crate::sysctl;

/// Where the files are; one in a later directory stands for one of the same name in those before.
const DIRECTORIES: [&str; 3] = ["/usr/lib/sysctl.d", "/run/sysctl.d", "/etc/sysctl.d"];

/// Read last.
const LAST_FILE: &str = "/etc/sysctl.conf";

pub(super) fn scan(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let is_configured = scan.reads("config_value");
    let configured = if is_configured { configured() } else { BTreeMap::new() };
    let mut give = |name: &str, value: Option<String>| {
        let subsystem = name.split('.').next().unwrap_or_default();
        let config = configured.get(name).map_or("", String::as_str);
        let value = Cell::text_or_null(value);
        let row =
            vec![name.into(), "".into(), subsystem.into(), value, config.into(), "string".into()];
        push(host, scan, rows, row)
    };
    let with_private = host.sight.rights.holds(Scope::SysctlWrite);
    if let Some(name) = scan.text("name") {
        let Ok(name) = name.parse::<ParameterName>() else { return Ok(()) };
        return match sysctl::read(&name) {
            Ok(value) if value.private && !with_private => give(&name.to_string(), None),
            Ok(value) => give(&name.to_string(), Some(value.text)),
            Err(sysctl::SysctlError::NoSuch(_)) => Ok(()),
            Err(_) => give(&name.to_string(), None),
        };
    }
    for parameter in sysctl::list(None, with_private).map_err(ScanError::failed)? {
        give(&parameter.name, parameter.value)?;
    }
    Ok(())
}

/// What the files say of each parameter.
fn configured() -> BTreeMap<String, String> {
    let mut files: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
    for directory in DIRECTORIES {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "conf") {
                files.insert(entry.file_name(), entry.path());
            }
        }
    }
    let mut configured = BTreeMap::new();
    for file in files.into_values().chain([LAST_FILE.into()]) {
        let text = fs::read(file).unwrap_or_default();
        configured.extend(settings(&String::from_utf8_lossy(&text)));
    }
    configured
}

/// Names and values of such a file; patterns of names are passed over.
fn settings(text: &str) -> Vec<(String, String)> {
    let setting = |line: &str| {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            return None;
        }
        let (name, value) = line.split_once('=')?;
        let name = name.trim().trim_start_matches('-').parse::<ParameterName>().ok()?;
        Some((name.to_string(), value.trim().to_owned()))
    };
    text.lines().filter_map(setting).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_files() {
        let text = "# a\n; b\nvm.swappiness = 10\n-net/ipv4/ip_forward=1\nnonsense\n = 3\n";
        let want = [("vm.swappiness", "10"), ("net.ipv4.ip_forward", "1")];
        let want = want.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(settings(text), want);
    }
}
