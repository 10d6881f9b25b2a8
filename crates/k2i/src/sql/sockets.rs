//! `process_open_sockets`, `listening_ports` and `process_open_files`: what processes hold open.

use std::net::IpAddr;

use kumo_sql::{Cell, Rows, Scan, ScanError};

use super::{HostTables, push};
use crate::sockets::{FileParts, Held, Socket};

/// `IPPROTO_TCP`; states are those of TCP only.
const TCP: u16 = 6;

pub(super) fn open_sockets(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    each(host, scan, |held| {
        let Held { pid, fd, socket } = held;
        let ((local, local_port), (remote, remote_port)) =
            (address(socket, socket.local), address(socket, socket.remote));
        let state = if socket.protocol == Some(TCP) { socket.state_name() } else { None };
        push(
            host,
            scan,
            rows,
            vec![
                (*pid).into(),
                (*fd).into(),
                Cell::count(socket.inode),
                number(socket.family),
                number(socket.protocol),
                local,
                remote,
                local_port,
                remote_port,
                path(socket),
                state.unwrap_or_default().into(),
                namespace(socket),
            ],
        )
    })
}

pub(super) fn listening_ports(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    each(host, scan, |held| {
        let Held { pid, fd, socket } = held;
        if !socket.is_listening() {
            return Ok(());
        }
        let (local, port) = address(socket, socket.local);
        push(
            host,
            scan,
            rows,
            vec![
                (*pid).into(),
                port,
                number(socket.protocol),
                number(socket.family),
                local,
                (*fd).into(),
                Cell::count(socket.inode),
                path(socket),
                namespace(socket),
            ],
        )
    })
}

fn each(
    host: &HostTables,
    scan: &Scan<'_>,
    give: impl FnMut(&Held) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    let snapshot = host.engine.sockets(host.age_max()).map_err(ScanError::failed)?;
    host.note(snapshot.unseen.in_words());
    match scan.integer("pid") {
        Some(pid) => {
            let Ok(pid) = i32::try_from(pid) else { return Ok(()) };
            snapshot.sockets_of(pid).iter().try_for_each(give)
        }
        None => snapshot.sockets.iter().try_for_each(give),
    }
}

pub(super) fn open_files(
    host: &HostTables,
    scan: &Scan<'_>,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let pids = scan.integer("pid").map(|pid| i32::try_from(pid).into_iter().collect::<Vec<_>>());
    let parts = FileParts { target: true, info: false, stat: false };
    let files = host.engine.files(pids.as_deref(), parts).map_err(ScanError::failed)?;
    host.note(files.unseen.in_words());
    for file in &files.files {
        // Sockets, pipes and their like have no path.
        let Some(target) = file.target.as_ref().filter(|target| target.starts_with(b"/")) else {
            continue;
        };
        let (id, _) = files.holder(file);
        push(host, scan, rows, vec![id.pid.into(), file.fd.into(), Cell::text(target)])?;
    }
    Ok(())
}

fn number(number: Option<u16>) -> Cell {
    number.map_or(Cell::Null, |number| Cell::Int(number.into()))
}

/// What osquery shows of an end of a socket: nothing is all addresses and port 0.
fn address(socket: &Socket, end: Option<(IpAddr, u16)>) -> (Cell, Cell) {
    match (end, socket.family) {
        (Some((address, port)), _) => (address.to_string().into(), Cell::Int(port.into())),
        (None, Some(2)) => ("0.0.0.0".into(), Cell::Int(0)),
        (None, Some(10)) => ("::".into(), Cell::Int(0)),
        (None, _) => ("".into(), Cell::Int(0)),
    }
}

fn path(socket: &Socket) -> Cell {
    socket.path_shown().map_or_else(|| "".into(), Cell::text)
}

fn namespace(socket: &Socket) -> Cell {
    socket.netns.map_or(Cell::Null, |inode| inode.to_string().into())
}
