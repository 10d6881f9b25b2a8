//! Which outcome a call has: the first that is certain, and never a better one than is known.
//!
//! [`Flight`] takes what happens to a call in the order in which it is seen and says once how it
//! ended. Whether a call had been taken is read from receipts by the carriers; here is what follows.

use kumo_abi::call::{Cause, Status};

/// What is known about whether a handler has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It has not, and will not: the receipt is not there, and the call has been taken back.
    No,
    /// It has.
    Yes,
    /// Nobody can say.
    NotKnown,
}

/// What happens to a call that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The callee said that its handler begins.
    Received,
    /// The callee said how it ended.
    Answer(Status),
    /// Nobody waits for it any more, for this cause: a deadline, a cancel, or the connection's end.
    Stop(Cause, Taken),
}

/// A call that was sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flight {
    received: bool,
    over: Option<Status>,
}

impl Flight {
    /// Takes the next event; the outcome, if this event decides it. Later events change nothing.
    pub fn step(&mut self, event: Event) -> Option<Status> {
        if self.over.is_some() {
            return None;
        }
        self.over = match event {
            Event::Received => {
                self.received = true;
                None
            }
            // A callee that said it began and then that it did not contradicts itself: what it says is
            // worth nothing.
            Event::Answer(Status::NotExecuted(_)) if self.received => {
                Some(Status::Unknown(Cause::Malformed))
            }
            Event::Answer(status) => Some(status),
            Event::Stop(cause, Taken::No) if !self.received => Some(Status::NotExecuted(cause)),
            Event::Stop(cause, _) => Some(Status::Unknown(cause)),
        };
        self.over
    }
}

/// Whether an attempt that failed may be made again without asking the caller, on another connection.
///
/// Only what was not executed, and only where the connection itself was the fault: an old one from the
/// pool, whose callee has gone since. That nobody was waiting there any more is no news to a caller.
pub fn may_retry(status: Status, connection_was_used_before: bool) -> bool {
    let gone = [
        Cause::Died,
        Cause::Draining,
        Cause::HostLost,
        Cause::Lost,
        Cause::Partition,
        Cause::Stale,
        Cause::Suspended,
    ];
    matches!(status, Status::NotExecuted(cause) if connection_was_used_before && gone.contains(&cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn outcomes() {
        let died = |taken| Event::Stop(Cause::Died, taken);
        let refused = Event::Answer(Status::NotExecuted(Cause::Busy));
        let cases: [(&[Event], Status); 9] = [
            (&[died(Taken::No)], Status::NotExecuted(Cause::Died)),
            (&[died(Taken::Yes)], Status::Unknown(Cause::Died)),
            (&[died(Taken::NotKnown)], Status::Unknown(Cause::Died)),
            (&[Event::Received, died(Taken::No)], Status::Unknown(Cause::Died)),
            (&[Event::Answer(Status::Done), died(Taken::Yes)], Status::Done),
            (&[Event::Received, Event::Answer(Status::Failed(7))], Status::Failed(7)),
            (&[refused, Event::Answer(Status::Done)], Status::NotExecuted(Cause::Busy)),
            (&[Event::Received, refused], Status::Unknown(Cause::Malformed)),
            (
                &[Event::Stop(Cause::Deadline, Taken::No), Event::Answer(Status::Done)],
                Status::NotExecuted(Cause::Deadline),
            ),
        ];
        for (events, want) in cases {
            let mut flight = Flight::default();
            let said: Vec<Status> = events.iter().filter_map(|e| flight.step(*e)).collect();
            assert_eq!(said, [want], "for {events:?}");
        }
    }

    #[test]
    fn only_what_was_not_executed_is_tried_again_and_only_where_the_connection_was_old() {
        for used in [false, true] {
            assert_eq!(may_retry(Status::NotExecuted(Cause::Died), used), used);
            assert!(!may_retry(Status::Unknown(Cause::Died), used));
            assert!(!may_retry(Status::NotExecuted(Cause::Busy), used));
            assert!(!may_retry(Status::NotExecuted(Cause::Deadline), used));
            assert!(!may_retry(Status::Done, used));
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        let status = prop_oneof![
            Just(Status::Done),
            Just(Status::Failed(1)),
            Just(Status::NotExecuted(Cause::Busy)),
            Just(Status::Unknown(Cause::Died)),
        ];
        let taken = prop_oneof![Just(Taken::No), Just(Taken::Yes), Just(Taken::NotKnown)];
        prop_oneof![
            Just(Event::Received),
            status.prop_map(Event::Answer),
            taken.prop_map(|taken| Event::Stop(Cause::Deadline, taken)),
        ]
    }

    proptest! {
        #[test]
        fn one_outcome_and_not_executed_only_with_proof(events in prop::collection::vec(event(), 0..8)) {
            let mut flight = Flight::default();
            let said: Vec<Status> = events.iter().filter_map(|e| flight.step(*e)).collect();
            prop_assert!(said.len() <= 1);
            if let [Status::NotExecuted(_)] = said[..] {
                let decided = events.iter().position(|e| *e != Event::Received).expect("a final event");
                prop_assert_eq!(decided, 0, "nothing was received before");
                let proof = matches!(
                    events[0],
                    Event::Answer(Status::NotExecuted(_)) | Event::Stop(_, Taken::No)
                );
                prop_assert!(proof);
            }
        }
    }
}
