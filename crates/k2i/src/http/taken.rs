//! Who holds a TCP port that we wanted.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;

/// The process that listens on the port of `wanted`, as `comm (pid)`; `None` if it cannot be seen:
/// other users' descriptors are hidden from us.
pub(crate) fn holder(wanted: SocketAddr) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let inodes: Vec<u64> = tables
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| listening_inodes(&text, wanted.port()))
        .collect();
    let targets: Vec<_> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let holds = |pid: &str| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok()).any(|link| {
            targets.iter().any(|target| target.as_bytes() == link.as_os_str().as_bytes())
        })
    };
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.bytes().all(|byte| byte.is_ascii_digit()).then_some(name)
    });
    let pid = pids.into_iter().find(|pid| holds(pid))?;
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("{} (pid {pid})", comm.trim_ascii_end().escape_ascii()))
}

/// The sockets of a `/proc/net/tcp` table that listen on `port`.
fn listening_inodes(text: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let row = |line: &str| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let local = fields.get(1)?.rsplit_once(':')?.1;
        let listens = *fields.get(3)? == LISTEN && u16::from_str_radix(local, 16) == Ok(port);
        listens.then(|| fields.get(9)?.parse().ok())?
    };
    text.lines().skip(1).filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
            1: 0100007F:1F40 0100007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n\
            2: 00000000000000000000000001000000:1F41 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 4713 1\n\
            broken\n";
        let cases = [(8000, vec![4711]), (8001, vec![4713]), (8002, vec![])];
        for (port, want) in cases {
            assert_eq!(listening_inodes(text, port), want, "for {port}");
        }
    }

    #[test]
    fn our_own_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let holder = holder(address).expect("our own descriptors are visible");
        assert!(holder.ends_with(&format!("(pid {})", std::process::id())), "{holder}");
    }
}
