//! `process_envs`: environments of processes. They hold secrets, so who asks needs the right to them.

use std::fs;
use std::io::Read as _;

use kumo_sql::{Cell, Rows, Scan, ScanError};

use super::{HostTables, push};
use crate::table::Parts;

/// Longest environment that is read; the kernel allows 6 MiB, and a usual one has a few KiB. Variables
/// behind that are left out.
const ENVIRONMENT_BYTES_MAX: u64 = 1 << 20;

pub(super) fn scan(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let pids = if let Some(pid) = scan.integer("pid") {
        i32::try_from(pid).into_iter().collect()
    } else {
        let table = host.engine.table(host.age_max(), Parts::STAT).map_err(ScanError::failed)?;
        table.rows.iter().filter(|row| !row.is_kernel()).map(|row| row.pid).collect::<Vec<_>>()
    };
    for pid in pids {
        rows.stop().check()?;
        let mut bytes = Vec::new();
        // It may be gone, or not ours to read: then nothing is known of it.
        let Ok(file) = fs::File::open(format!("/proc/{pid}/environ")) else { continue };
        if file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut bytes).is_err() {
            continue;
        }
        for (key, value) in variables(&bytes) {
            push(host, scan, rows, vec![pid.into(), Cell::text(key), Cell::text(value)])?;
        }
    }
    Ok(())
}

/// Names and values of an environment. What has no `=` is no variable: programs overwrite theirs.
fn variables(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    bytes.split(|byte| *byte == 0).filter_map(|variable| {
        let at = variable.iter().position(|byte| *byte == b'=')?;
        (at > 0).then(|| (&variable[..at], &variable[at + 1..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_an_environment() {
        let found: Vec<_> = variables(b"A=1\0B=x=y\0\0junk\0=z\0C=\0").collect();
        let want: [(&[u8], &[u8]); 3] = [(b"A", b"1"), (b"B", b"x=y"), (b"C", b"")];
        assert_eq!(found, want);
    }
}
