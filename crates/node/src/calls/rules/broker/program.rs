//! What a program and a user have.

use std::collections::{BTreeMap, BTreeSet};

use kumo_abi::call::{GrantId, InstanceId, ServiceName};
use kumo_abi::control::{Connection, Request};
use kumo_abi::page::program as page;

use crate::calls::rules::limits::{Bucket, CONNECTIONS_OF_PROGRAM_MAX};

/// A program.
#[derive(Clone, Debug)]
pub(crate) struct ProgramState {
    /// As whom it runs.
    pub(crate) uid: u32,
    /// Its process.
    pub(crate) pid: u32,
    /// What it serves.
    pub(crate) served: Vec<InstanceId>,
    /// By index; one is free when the program has closed it, not when the connection has ended.
    pub(super) connections: Vec<Option<GrantId>>,
    pub(super) open: u32,
    /// Places of receipts, each of a connection. One that has ended keeps its place until the program has closed
    /// it: until then the program may still take a call there.
    pub(super) receipts: BTreeMap<u16, Connection>,
    pub(super) watches: BTreeMap<Request, ServiceName>,
    /// Questions without an answer yet.
    pub(super) asking: BTreeSet<Request>,
    pub(super) opens: Bucket,
}

impl ProgramState {
    /// The connection at this index: also one that has ended and was not closed yet.
    pub(crate) fn connection(&self, connection: Connection) -> Option<GrantId> {
        self.connections.get(connection as usize).copied().flatten()
    }

    /// Its connections.
    pub(crate) fn connections(&self) -> impl Iterator<Item = GrantId> + '_ {
        self.connections.iter().flatten().copied()
    }

    pub(super) fn take_connection(&mut self, grant: GrantId) -> Option<Connection> {
        let free = self.connections.iter().position(Option::is_none);
        let index = free.unwrap_or(self.connections.len());
        if index >= CONNECTIONS_OF_PROGRAM_MAX as usize {
            return None;
        }
        if index == self.connections.len() {
            self.connections.push(None);
        }
        self.connections[index] = Some(grant);
        self.open += 1;
        Some(index as Connection)
    }

    pub(super) fn free_connection(&mut self, connection: Connection) {
        if let Some(slot) = self.connections.get_mut(connection as usize)
            && slot.take().is_some()
        {
            self.open -= 1;
            self.receipts.retain(|_, of| *of != connection);
        }
    }

    pub(super) fn take_receipts(&mut self, connection: Connection) -> Option<u16> {
        let free = (0..page::REMOTE_MAX as u16).find(|at| !self.receipts.contains_key(at))?;
        self.receipts.insert(free, connection);
        Some(free)
    }

    pub(super) fn has_room(&self) -> bool {
        self.open < CONNECTIONS_OF_PROGRAM_MAX
    }
}

#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) programs: u32,
    pub(super) connections: u32,
    pub(super) opens: Bucket,
}
