//! Connections that this node granted: who is at their two ends, and what follows when one is no more.

use std::collections::HashMap;

use kumo_abi::HostId;
use kumo_abi::call::{Cause, GrantId, InstanceId, MethodPattern, Peer, ServiceName};
use kumo_abi::control::{Carrier, Connection, End};

use super::Program;

/// Who is at an end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    /// A program of this host.
    Here {
        /// Which.
        program: Program,
        /// Its index there.
        connection: Connection,
        /// Whether it was told of it: else the index is free as soon as the connection is no more.
        told: bool,
    },
    /// A program of another host, whose node tells it.
    There(HostId),
    /// A program of this host that has not yet said, since the node started anew, that this is its.
    Unheard,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Which.
    pub(crate) id: GrantId,
    /// The service at its end.
    pub(crate) service: ServiceName,
    /// And the instance.
    pub(crate) instance: InstanceId,
    /// From where calls come.
    pub(crate) caller: Party,
    /// Where they go.
    pub(crate) callee: Party,
    /// The caller, as the callee is told.
    pub(crate) from: Peer,
    /// The callee, as the caller is told.
    pub(crate) to: Peer,
    /// How frames travel.
    pub(crate) carrier: Carrier,
    /// Which methods may be called.
    pub(crate) methods: Vec<MethodPattern>,
    /// With a caller on another host: where receipts stand in the callee's program page.
    pub(crate) receipts: Option<u16>,
    /// Since when, milliseconds of the node's clock.
    pub(crate) since_ms: u64,
}

impl Grant {
    /// Who is at that end.
    pub(crate) fn party(&self, end: End) -> &Party {
        match end {
            End::Caller => &self.caller,
            End::Callee => &self.callee,
        }
    }

    /// Who is at that end, to be changed.
    pub(crate) fn party_mut(&mut self, end: End) -> &mut Party {
        match end {
            End::Caller => &mut self.caller,
            End::Callee => &mut self.callee,
        }
    }

    /// Whether that end is this program's.
    pub(crate) fn is_of(&self, end: End, of: Program) -> bool {
        matches!(self.party(end), Party::Here { program, .. } if *program == of)
    }

    /// Whether the program at one of its ends is on this host.
    pub(crate) fn is_with(&self, host: &HostId) -> bool {
        [&self.caller, &self.callee]
            .iter()
            .any(|party| matches!(party, Party::There(at) if at == host))
    }
}

/// All connections of this host's programs.
pub(crate) type Grants = HashMap<GrantId, Grant>;

/// What is done when a connection is no more, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is written into the program's notice page why. From then on the program takes no call on it.
    Notice {
        /// Whose page.
        program: Program,
        /// Its index there.
        connection: Connection,
        /// Why.
        cause: Cause,
        /// The calls that the callee had taken, where the caller cannot read that itself.
        taken: Option<Vec<u64>>,
    },
    /// The node of the program at the other end is told, with the calls that this host's callee had
    /// taken: they are read after its notice was written.
    Obituary {
        /// Of which host.
        host: HostId,
        /// Of which connection.
        grant: GrantId,
        /// Why.
        cause: Cause,
        /// In whose page, and where, the receipts are.
        receipts: Option<(Program, u16)>,
    },
    /// Both ends are shut, whoever else holds descriptors, and our duplicates are closed.
    Shut(GrantId),
}

/// What follows when `grant` is no more because of `cause`. `gone` is the end that needs not be told: its
/// process has ended, it closed it itself, or its node told us, with the calls that were `taken`.
///
/// The callee's notice comes first, so that nothing runs any more of which the caller hears that it did
/// not; the sockets come last, so that whoever wakes up finds the reason.
pub(crate) fn steps(
    grant: &Grant,
    cause: Cause,
    gone: Option<End>,
    taken: Option<Vec<u64>>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut taken = taken;
    for end in [End::Callee, End::Caller] {
        if gone == Some(end) {
            continue;
        }
        match grant.party(end) {
            Party::Here { told: false, .. } | Party::Unheard => {}
            Party::Here { program, connection, told: true } => {
                let taken = if end == End::Caller { taken.take() } else { None };
                let (program, connection) = (*program, *connection);
                steps.push(Step::Notice { program, connection, cause, taken });
            }
            Party::There(host) => {
                let receipts = match (&grant.callee, grant.receipts) {
                    (Party::Here { program, .. }, Some(at)) => Some((*program, at)),
                    _ => None,
                };
                steps.push(Step::Obituary { host: host.clone(), grant: grant.id, cause, receipts });
            }
        }
    }
    steps.push(Step::Shut(grant.id));
    steps
}

/// What the other end is told of a connection that a program closed, of which this was `end`: of a
/// callee's nobody knows more than that it is lost; a caller's calls are cancelled.
pub(crate) fn closed_by(end: End) -> Cause {
    match end {
        End::Caller => Cause::Cancelled,
        End::Callee => Cause::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumo_abi::call::Who;

    fn here(program: Program) -> Party {
        Party::Here { program, connection: program as u32 * 10, told: true }
    }

    fn grant(caller: Party, callee: Party, receipts: Option<u16>) -> Grant {
        let peer = Peer { host: "tokyo/a".parse().expect("a host"), pid: 1, who: Who::User(0) };
        Grant {
            id: GrantId(5),
            service: "kv".parse().expect("a name"),
            instance: InstanceId(1),
            caller,
            callee,
            from: peer.clone(),
            to: peer,
            carrier: Carrier::Tls,
            methods: vec![],
            receipts,
            since_ms: 0,
        }
    }

    /// Steps in a few letters: `n1!` is the notice of program 1 with calls taken, `o` an obituary, with
    /// receipts `o2@7`, `s` the end.
    fn letters(steps: &[Step]) -> String {
        let text = |step: &Step| match step {
            Step::Notice { program, taken, .. } => {
                format!("n{program}{}", if taken.is_some() { "!" } else { "" })
            }
            Step::Obituary { receipts: Some((program, at)), .. } => format!("o{program}@{at}"),
            Step::Obituary { .. } => "o".to_owned(),
            Step::Shut(_) => "s".to_owned(),
        };
        steps.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn who_is_told_and_in_which_order() {
        let there = || Party::There("osaka/b".parse().expect("a host"));
        let untold = Party::Here { program: 2, connection: 0, told: false };
        let taken = || Some(vec![1, 2, 3]);
        let (caller, callee) = (Some(End::Caller), Some(End::Callee));
        let cases = [
            // Both here: who is left is told, the callee first, then the sockets are shut.
            (grant(here(1), here(2), None), callee, None, "n1 s"),
            (grant(here(1), here(2), None), caller, None, "n2 s"),
            (grant(here(1), here(2), None), None, None, "n2 n1 s"),
            (grant(here(1), untold, None), None, None, "n1 s"),
            (grant(here(1), Party::Unheard, None), None, None, "n1 s"),
            // The callee is here: its notice is written before its receipts are read and sent.
            (grant(there(), here(2), Some(7)), None, None, "n2 o2@7 s"),
            (grant(there(), here(2), Some(7)), callee, None, "o2@7 s"),
            (grant(there(), here(2), Some(7)), caller, None, "n2 s"),
            // The caller is here: what was taken is for it alone.
            (grant(here(1), there(), None), callee, taken(), "n1! s"),
            (grant(here(1), there(), None), callee, None, "n1 s"),
            (grant(here(1), there(), None), caller, None, "o s"),
            (grant(here(1), there(), None), None, None, "o n1 s"),
        ];
        for (nth, (grant, gone, taken, want)) in cases.into_iter().enumerate() {
            let steps = steps(&grant, Cause::Died, gone, taken);
            assert_eq!(letters(&steps), want, "case {nth}");
        }
    }
}
