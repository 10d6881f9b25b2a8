//! `users`: those of `/etc/passwd`; one that is named by number or name is asked of the name service.

use std::fs;

use kumo_sql::{Cell, Rows, Scan, ScanError};
use nix::unistd::{Uid, User};

use super::{HostTables, push};

pub(super) fn scan(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let named = match (scan.integer("uid"), scan.text("username")) {
        (Some(uid), _) => match u32::try_from(uid) {
            Ok(uid) => Some(User::from_uid(Uid::from_raw(uid)).ok().flatten()),
            Err(_) => Some(None),
        },
        (None, Some(name)) => Some(User::from_name(name).ok().flatten()),
        (None, None) => None,
    };
    let Some(named) = named else {
        let text = fs::read("/etc/passwd").map_err(ScanError::failed)?;
        for line in text.split(|byte| *byte == b'\n') {
            if let Some(row) = parse(&String::from_utf8_lossy(line)) {
                push(host, scan, rows, row)?;
            }
        }
        return Ok(());
    };
    let Some(user) = named else { return Ok(()) };
    let texts = [
        Cell::text(user.name),
        Cell::text(user.gecos.as_bytes()),
        Cell::text(user.dir.as_os_str().as_encoded_bytes()),
        Cell::text(user.shell.as_os_str().as_encoded_bytes()),
    ];
    push(host, scan, rows, row(user.uid.as_raw(), user.gid.as_raw(), texts))
}

fn row(uid: u32, gid: u32, [name, about, home, shell]: [Cell; 4]) -> Vec<Cell> {
    let signed = |id: u32| Cell::from(id.cast_signed());
    vec![uid.into(), gid.into(), signed(uid), signed(gid), name, about, home, shell, Cell::Null]
}

/// A line of `/etc/passwd`.
fn parse(line: &str) -> Option<Vec<Cell>> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, about, home, shell] = fields.as_slice() else { return None };
    let texts = [*name, *about, *home, *shell].map(Cell::from);
    Some(row(uid.parse().ok()?, gid.parse().ok()?, texts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_passwd() {
        let row =
            parse("nobody:x:65534:4294967294:no body:/nonexistent:/bin/false").expect("a user");
        assert_eq!(row[..4], [65_534_i64, 4_294_967_294, 65_534, -2].map(Cell::Int));
        assert_eq!((&row[4], &row[7]), (&"nobody".into(), &"/bin/false".into()));
        for bad in ["", "# no", "a:x:b:1:::", "a:x:1:1", "+@netgroup", "a:x:1:1::::"] {
            assert!(parse(bad).is_none(), "for {bad:?}");
        }
    }
}
