//! From sockets and open files to the values of their columns. Pure, once all is read.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kumo_abi::files::{FILES, FileColumn};
use kumo_abi::proc::Column;
use kumo_abi::sockets::{SOCKETS, SocketColumn};
use kumo_abi::{ColumnIndex, ProcessId, Schema, Value};

use super::{OpenFiles, Snapshot};
use crate::row::{self, Context, Names, count, int, name};
use crate::tabular::Tabular;

/// Processes that rows belong to, where their columns are asked for. What a row of the table lacks, such as
/// a command line that is too long for it, is null here.
#[derive(Debug)]
pub(crate) struct Joined(pub(crate) Context);

impl Joined {
    fn value(&self, column: Column, id: ProcessId) -> Value<'_> {
        let table = &self.0.table;
        let at = table.position(id.pid).filter(|at| table.rows[*at].id().same(&id));
        at.map_or(Value::Null, |at| row::value(column, &table.rows[at], at, &self.0))
    }
}

/// The value of a column of the process that a row itself tells; `None` for others.
fn own<'a>(
    column: Column,
    id: ProcessId,
    comm: &'a crate::table::Comm,
    joined: &'a Joined,
) -> Option<Value<'a>> {
    Some(match column {
        Column::Dc => Value::text(&*joined.0.dc),
        Column::Host => Value::text(&*joined.0.host),
        Column::Id => Value::owned_text(id.to_string()),
        Column::Pid => int(id.pid),
        Column::Comm => Value::text(comm.as_bytes()),
        _ => return None,
    })
}

/// Open sockets as rows.
#[derive(Debug)]
pub(crate) struct SocketRows {
    pub(crate) snapshot: Arc<Snapshot>,
    /// Names of the users that own sockets.
    pub(crate) users: Arc<Names>,
    pub(crate) joined: Joined,
}

impl Tabular for SocketRows {
    fn schema(&self) -> &'static Schema {
        &SOCKETS
    }

    fn len(&self) -> usize {
        self.snapshot.sockets.len()
    }

    fn value(&self, column: ColumnIndex, index: usize) -> Value<'_> {
        use SocketColumn as C;
        let held = &self.snapshot.sockets[index];
        let socket = &held.socket;
        let number = |number: Option<u64>| number.map_or(Value::Null, count);
        let small = |number: Option<u32>| number.map_or(Value::Null, int);
        match SocketColumn::at(column) {
            C::Of(column) => {
                let Some(holder) = self.snapshot.holder(held.pid) else { return Value::Null };
                own(column, holder.id, &holder.comm, &self.joined)
                    .unwrap_or_else(|| self.joined.value(column, holder.id))
            }
            C::Fd => int(held.fd),
            C::Protocol => socket.protocol_name().map_or(Value::Null, shared),
            C::Family => socket.family_name().map_or(Value::Null, shared),
            C::Type => socket.kind_name().map_or(Value::Null, Value::text),
            C::State => socket.state_name().map_or(Value::Null, Value::text),
            C::Listening if socket.state.is_none() => Value::Null,
            C::Listening => Value::Bool(socket.is_listening()),
            C::LocalAddress => address(socket.local),
            C::LocalPort => port(socket.local),
            C::RemoteAddress => address(socket.remote),
            C::RemotePort => port(socket.remote),
            C::Path => socket.path_shown().map_or(Value::Null, Value::Text),
            C::PeerInode => number(socket.peer_inode),
            C::Netns => small(socket.netns),
            C::Inode => count(socket.inode),
            C::Uid => small(socket.uid),
            C::User => socket.uid.map_or(Value::Null, |uid| name(uid, &self.users)),
            C::RecvQueue => number(socket.recv_queue),
            C::SendQueue => number(socket.send_queue),
        }
    }
}

fn shared(text: std::borrow::Cow<'_, str>) -> Value<'static> {
    Value::owned_text(text.into_owned())
}

fn address(end: Option<(std::net::IpAddr, u16)>) -> Value<'static> {
    end.map_or(Value::Null, |(address, _)| Value::owned_text(address.to_string()))
}

fn port(end: Option<(std::net::IpAddr, u16)>) -> Value<'static> {
    end.filter(|(_, port)| *port != 0).map_or(Value::Null, |(_, port)| int(port))
}

/// Open files as rows.
#[derive(Debug)]
pub(crate) struct FileRows {
    pub(crate) files: OpenFiles,
    /// What sockets are, by their inodes, where that is asked for.
    pub(crate) sockets: HashMap<u64, Vec<u8>>,
    pub(crate) joined: Joined,
}

/// What the sockets among `files` are, by their inodes.
pub(crate) fn socket_lines(files: &OpenFiles, snapshot: &Snapshot) -> HashMap<u64, Vec<u8>> {
    let target = |file: &super::OpenFile| super::fds::socket_inode(file.target.as_deref()?);
    let wanted: HashSet<u64> = files.files.iter().filter_map(target).collect();
    let found = snapshot.sockets.iter().filter(|held| wanted.contains(&held.socket.inode));
    found.map(|held| (held.socket.inode, held.socket.line())).collect()
}

impl Tabular for FileRows {
    fn schema(&self) -> &'static Schema {
        &FILES
    }

    fn len(&self) -> usize {
        self.files.files.len()
    }

    fn value(&self, column: ColumnIndex, index: usize) -> Value<'_> {
        use FileColumn as C;
        let file = &self.files.files[index];
        let number = |number: Option<u64>| number.map_or(Value::Null, count);
        match FileColumn::at(column) {
            C::Of(column) => {
                let (id, comm) = self.files.holder(file);
                own(column, *id, comm, &self.joined)
                    .unwrap_or_else(|| self.joined.value(column, *id))
            }
            C::Fd => int(file.fd),
            C::Type => file.kind().map_or(Value::Null, Value::text),
            C::Mode => file.mode().map_or(Value::Null, Value::text),
            C::Flags => {
                let flags = file.info.map(|info| format!("0{:o}", info.flags));
                flags.map_or(Value::Null, Value::owned_text)
            }
            C::Offset => number(file.offset()),
            C::Size => number(file.size()),
            C::Links => file.stat.map_or(Value::Null, |stat| int(stat.links)),
            C::Inode => number(file.stat.map(|stat| stat.inode)),
            C::Device => {
                let stat = file.stat.filter(|_| matches!(file.kind(), Some("file" | "dir")));
                let device = stat.map(|stat| format!("{}:{}", stat.device.0, stat.device.1));
                device.map_or(Value::Null, Value::owned_text)
            }
            C::Target => file.target.as_deref().map_or(Value::Null, Value::text),
            C::Socket => {
                let inode = file.target.as_deref().and_then(super::fds::socket_inode);
                let line = inode.and_then(|inode| self.sockets.get(&inode));
                line.map_or(Value::Null, Value::text)
            }
        }
    }
}
