//! Calls to many at once, with one outcome for each.

use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{Cause, Method};
use kumo_abi::frame::Group;
use tokio::task::JoinSet;

use super::tasks::AsyncService;
use crate::context::{Context, random};
use crate::error::CallError;
use crate::time::now_ns;

/// Most members of a group.
pub const GROUP_MAX: usize = 1_024;

/// When a group has heard enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enough {
    /// All have an outcome.
    All,
    /// So many have replied, or so many can no longer do.
    Quorum(usize),
    /// One has replied, or none will.
    First,
}

impl Enough {
    /// Whether to stop, with so many members, replies and failures.
    fn is_reached(self, members: usize, replies: usize, failures: usize) -> bool {
        let wanted = match self {
            Enough::All => return replies + failures >= members,
            Enough::Quorum(wanted) => wanted.min(members),
            Enough::First => 1.min(members),
        };
        replies >= wanted || members - failures.min(members) < wanted
    }
}

/// One call of a group.
#[derive(Clone, Debug)]
pub struct Member {
    /// Whom to call.
    pub service: AsyncService,
    /// Which method.
    pub method: Method,
    /// What to send.
    pub body: Bytes,
}

/// Calls all members at once, within one budget, and waits until it is enough. Each has an outcome, in the
/// order of the members; those that were still at work then are cancelled, and unknown.
///
/// # Errors
/// More than [`GROUP_MAX`] members: none is called.
pub async fn gather(
    members: Vec<Member>,
    budget: Option<Duration>,
    enough: Enough,
) -> Result<Vec<Result<Bytes, CallError>>, CallError> {
    let size = members.len();
    if size > GROUP_MAX {
        let message = format!("a group has at most {GROUP_MAX} members, and this has {size}");
        return Err(CallError::not_executed(Cause::TooLarge, message));
    }
    let context = Context::current_or_root(budget, now_ns());
    let id = random();
    let mut calls = JoinSet::new();
    for (at, Member { service, method, body }) in members.into_iter().enumerate() {
        let group = Group { id, member: at as u16, size: size as u16 };
        calls.spawn(context.run(async move {
            let mut request = service.request(&method).in_group(group);
            if let Some(budget) = budget {
                request = request.budget(budget);
            }
            (at, request.call(&body).await)
        }));
    }
    let cancelled =
        || CallError::Unknown { cause: Cause::Cancelled, message: "others were enough".to_owned() };
    let mut outcomes: Vec<_> = (0..size).map(|_| Err(cancelled())).collect();
    let (mut replies, mut failures) = (0, 0);
    while !enough.is_reached(size, replies, failures) {
        // A task of ours does not panic, and nobody else aborts it; if one did, its outcome stays unknown.
        match calls.join_next().await {
            Some(Ok((at, outcome))) => {
                if outcome.is_ok() {
                    replies += 1;
                } else {
                    failures += 1;
                }
                outcomes[at] = outcome;
            }
            Some(Err(_)) => failures += 1,
            None => break,
        }
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_it_is_enough() {
        let cases = [
            (Enough::All, 3, 2, 0, false),
            (Enough::All, 3, 2, 1, true),
            (Enough::First, 3, 0, 2, false),
            (Enough::First, 3, 1, 0, true),
            (Enough::First, 3, 0, 3, true),
            (Enough::First, 0, 0, 0, true),
            (Enough::Quorum(2), 3, 1, 1, false),
            (Enough::Quorum(2), 3, 2, 0, true),
            (Enough::Quorum(2), 3, 1, 2, true),
            (Enough::Quorum(9), 3, 2, 0, false),
            (Enough::Quorum(9), 3, 2, 1, true),
        ];
        for (enough, members, replies, failures, want) in cases {
            let is = enough.is_reached(members, replies, failures);
            assert_eq!(is, want, "{enough:?} {members} {replies} {failures}");
        }
    }
}
