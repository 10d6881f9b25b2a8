//! What is said to the rules of calls and by them.

use kumo_abi::HostId;
use kumo_abi::call::{Cause, GrantId, Hop, MethodPattern, Peer, Reentrancy, ServiceName, Who};
use kumo_abi::control::{Carrier, End, FromNode, Granted, Incoming, Open, Request, Serving};
use serde::{Deserialize, Serialize};

use crate::calls::rules::Program;
use crate::calls::rules::grants::Step;

/// When it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Milliseconds of a clock that never goes back.
    pub(crate) ms: u64,
    /// Seconds since 1970.
    pub(crate) wall_s: u32,
}

/// No.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// Why.
    pub(crate) cause: Cause,
    /// What happened and what to do.
    pub(crate) message: String,
    /// When trying again is worth it.
    pub(crate) retry_after_ms: Option<u32>,
    /// For a cycle: the path.
    pub(crate) path: Vec<Hop>,
}

impl Refusal {
    pub(crate) fn new(cause: Cause, message: impl Into<String>) -> Refusal {
        Refusal { cause, message: message.into(), retry_after_ms: None, path: Vec::new() }
    }

    pub(super) fn later(cause: Cause, message: impl Into<String>, retry_after_ms: u32) -> Refusal {
        Refusal { retry_after_ms: Some(retry_after_ms), ..Refusal::new(cause, message) }
    }

    /// As a program is told.
    pub(crate) fn to_program(&self, request: Request) -> FromNode {
        let Refusal { cause, message, retry_after_ms, path } = self.clone();
        FromNode::Refused { request, cause, message, retry_after_ms, path }
    }
}

/// What the shell does, in the order in which it is returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// A program is told something.
    Tell(Program, FromNode),
    /// A socket pair is made, each program gets its end, and duplicates are kept under the grant. Where
    /// that fails, [`super::Broker::undo`].
    Connect {
        /// The caller and what it is told.
        granted: (Program, Granted),
        /// The callee and what it is told.
        incoming: (Program, Incoming),
    },
    /// The descriptor that came with the message is kept under the grant.
    Keep {
        /// Of which connection.
        grant: GrantId,
        /// Which end it is.
        end: End,
    },
    /// A connection is no more.
    End(Step),
    /// A certificate is made for this program.
    Certify {
        /// For whom.
        program: Program,
        /// Of which question.
        request: Request,
        /// In whose name.
        who: Who,
    },
    /// Other hosts are asked, one after the other, until one has it; then [`super::Broker::granted`], else
    /// [`super::Broker::nowhere`].
    AskOthers(Order),
    /// What others know of a service on this host has changed.
    Publish {
        /// Which.
        service: ServiceName,
        /// Instances that take callers.
        ready: u32,
        /// Connections for each 100 slots.
        load_percent: u32,
    },
    /// Somebody got a connection, for the audit log.
    Audit(GrantId),
}

/// A question of a program that other hosts are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// Whose it is.
    pub(crate) program: Program,
    /// What it wants.
    pub(crate) open: Open,
    /// As whom.
    pub(crate) from: Peer,
    /// Whom to ask, in this order.
    pub(crate) hosts: Vec<HostId>,
    /// What it is told where none of them has it.
    pub(crate) otherwise: Refusal,
    /// When it was asked, milliseconds of the node's clock.
    pub(crate) since_ms: u64,
}

/// A question from another host.
#[derive(Clone, Debug)]
pub(crate) struct Asked<'a> {
    /// For which service.
    pub(crate) service: &'a ServiceName,
    /// Who wants it, as its node says.
    pub(crate) from: Peer,
    /// The instances that the call came through.
    pub(crate) chain: &'a [Hop],
    /// How it would be carried.
    pub(crate) carrier: Carrier,
}

/// A caller from another host that is let in: its socket arrives by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Admitted {
    /// The connection.
    pub(crate) grant: GrantId,
    /// Who answers.
    pub(crate) serving: Serving,
    /// As whom.
    pub(crate) to: Peer,
    /// Which methods may be called.
    pub(crate) methods: Vec<MethodPattern>,
    /// What it does with calls that came through it.
    pub(crate) reentrancy: Reentrancy,
    /// Calls that may be in flight on it at once.
    pub(crate) concurrent: u16,
}
