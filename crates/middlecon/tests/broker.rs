//! The broker of the tests' node: a test that it lies to proves nothing.
#![allow(clippy::unwrap_used)]

#[path = "support/broker.rs"]
#[allow(dead_code, unreachable_pub)]
mod broker;

use broker::{At, Broker, ProgramId};
use kumo_abi::call::{Cause, GrantId, InstanceId, MethodPattern, Peer, Who};
use kumo_abi::call::{Hop, Reentrancy};
use kumo_abi::control::{Carrier, Connection, End, Open, Resume, Serve, Serving};
use kumo_abi::page::notice::CONNECTIONS_MAX;
use proptest::prelude::*;

fn broker() -> Broker {
    let mut broker = Broker::new("tokyo/web-1".parse().expect("a host"));
    for program in 1..=3 {
        broker.hello(program, program as u32, Who::User(program as u32));
    }
    broker
}

fn serve(service: &str) -> Serve {
    Serve {
        request: 1,
        service: service.parse().expect("a name"),
        resumes: None,
        slots: 4,
        credit: 4,
        concurrent: 1,
        reentrancy: Reentrancy::Reject,
        ring: true,
    }
}

fn open(service: &str) -> Open {
    Open {
        request: 1,
        service: service.parse().expect("a name"),
        budget_ms: 1_000,
        chain: vec![],
        from: None,
        ring: true,
        wait: false,
    }
}

fn any() -> Vec<MethodPattern> {
    vec![MethodPattern::any()]
}

#[test]
fn a_caller_gets_the_instance_with_the_fewest_connections_and_none_it_came_through() {
    let mut broker = broker();
    let nobody = broker.open(3, &open("kv"), GrantId(1), any());
    assert_eq!(nobody.expect_err("nobody serves").cause, Cause::NoSuch);
    let first = broker.serve(1, &serve("kv"), InstanceId(11)).expect("room");
    let second = broker.serve(2, &serve("kv"), InstanceId(12)).expect("room");
    assert_eq!((first.incarnation, second.incarnation), (1, 2));
    let callees: Vec<ProgramId> = (1..=4)
        .map(|n| broker.open(3, &open("kv"), GrantId(n), any()).expect("granted").callee)
        .collect();
    assert_eq!(callees.iter().filter(|callee| **callee == 1).count(), 2);
    let hop = Hop { instance: InstanceId(11), service: "kv".parse().expect("a name") };
    for n in 5..10 {
        let nested = Open { chain: vec![hop.clone()], ..open("kv") };
        assert_eq!(broker.open(3, &nested, GrantId(n), any()).expect("granted").callee, 2);
    }
    broker.drain(3, InstanceId(12));
    broker.drain(1, InstanceId(11));
    let pair = broker.open(3, &open("kv"), GrantId(20), any()).expect("granted");
    assert_eq!(pair.callee, 2, "the one drains; the other's drain was not its own");
    assert_eq!(pair.incoming.peer.who, Who::User(3));
}

#[test]
fn a_program_asks_as_itself_only() {
    let mut broker = broker();
    broker.serve(1, &serve("kv"), InstanceId(11)).expect("room");
    broker.serve(2, &serve("web"), InstanceId(12)).expect("room");
    let as_other = Open { from: Some(InstanceId(11)), ..open("kv") };
    let refused = broker.open(2, &as_other, GrantId(1), any()).expect_err("not its own");
    assert_eq!(refused.cause, Cause::Denied);
    let as_itself = Open { from: Some(InstanceId(12)), ..open("kv") };
    let pair = broker.open(2, &as_itself, GrantId(1), any()).expect("granted");
    assert_eq!(pair.incoming.peer.who, Who::Service("web".parse().expect("a name")));
}

#[test]
fn an_end_is_told_to_the_other_end_once() {
    let mut broker = broker();
    broker.serve(1, &serve("kv"), InstanceId(11)).expect("room");
    let pair = broker.open(2, &open("kv"), GrantId(1), any()).expect("granted");
    broker.open(3, &open("kv"), GrantId(2), any()).expect("granted");
    let caller = At { program: 2, connection: pair.granted.connection };
    let callee = At { program: 1, connection: pair.incoming.connection };
    assert_eq!(broker.other_end(caller), Some(callee));
    assert_eq!(broker.of_callee(1, Cause::Suspended).len(), 2);
    let ending = broker.closed(caller).expect("the callee is there");
    assert_eq!(ending.ends, [(End::Callee, callee)]);
    assert_eq!(broker.closed(callee), None);
    let endings = broker.gone(1, Cause::Died);
    assert_eq!(endings.len(), 1);
    assert_eq!((endings[0].grant, endings[0].cause), (GrantId(2), Cause::Died));
    let (end, at) = endings[0].ends[0];
    assert_eq!((end, at.program), (End::Caller, 3));
    assert_eq!(broker.closed(at), None);
    assert_eq!((broker.grants(), broker.gone(1, Cause::Died).len()), (0, 0));
    assert_eq!(broker.services().count(), 0);
}

#[test]
fn a_node_that_began_anew_learns_all_from_its_programs() {
    let mut broker = broker();
    let resumed = Serving { instance: InstanceId(11), incarnation: 7 };
    let again = Serve { resumes: Some(resumed), ..serve("kv") };
    assert_eq!(broker.serve(1, &again, InstanceId(99)).expect("room"), resumed);
    let resume = |connection, end| Resume {
        connection,
        grant: GrantId(5),
        end,
        service: "kv".parse().expect("a name"),
        instance: InstanceId(11),
        peer: Peer { host: "a/b".parse().expect("a host"), pid: 1, who: Who::User(1) },
        carrier: Carrier::Local { ring: true },
        receipts: None,
    };
    broker.resume(1, &resume(3, End::Callee)).expect("free");
    broker.resume(2, &resume(0, End::Caller)).expect("free");
    assert!(broker.resume(2, &resume(0, End::Caller)).is_err(), "it is taken");
    assert!(broker.resume(2, &resume(1_024, End::Caller)).is_err(), "there is no such index");
    let other = broker.other_end(At { program: 2, connection: 0 });
    assert_eq!(other, Some(At { program: 1, connection: 3 }));
    let fresh = broker.serve(2, &serve("kv"), InstanceId(12)).expect("room");
    assert_eq!(fresh.incarnation, 8, "above all that were given");
    let indexes: Vec<Connection> = (0..5)
        .map(|n| broker.grant_one(1, GrantId(10 + n), InstanceId(11), End::Callee).expect("free"))
        .map(|at| at.connection)
        .collect();
    let mut sorted = indexes.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [0, 1, 2, 4, 5], "3 was taken");
}

#[test]
fn limits() {
    let mut broker = broker();
    for slots in [Serve { slots: 5_000, ..serve("a") }, Serve { concurrent: 0, ..serve("a") }] {
        let refused = broker.serve(1, &slots, InstanceId(1)).expect_err("out of range");
        assert_eq!(refused.cause, Cause::TooLarge);
    }
    broker.serve(1, &serve("kv"), InstanceId(11)).expect("room");
    for n in 0..CONNECTIONS_MAX as u64 {
        broker.open(2, &open("kv"), GrantId(n), any()).expect("room");
    }
    let refused = broker.open(3, &open("kv"), GrantId(9_999), any()).expect_err("full");
    assert_eq!((refused.cause, broker.grants()), (Cause::Exhausted, CONNECTIONS_MAX));
    broker.closed(At { program: 1, connection: 17 }).expect("the caller is there");
    let pair = broker.open(3, &open("kv"), GrantId(10_000), any()).expect("room again");
    assert_eq!(pair.incoming.connection, 17);
}

proptest! {
    /// Whatever is opened, closed and killed: in the end nothing is left.
    #[test]
    fn nothing_is_left_behind(steps in prop::collection::vec((0_u8..4, 1_u64..4, 0_u32..8), 0..200)) {
        let mut broker = broker();
        for program in 1..=3 {
            broker.serve(program, &serve("kv"), InstanceId(program)).expect("room");
        }
        for (at, (what, program, connection)) in steps.into_iter().enumerate() {
            match what {
                0 | 1 => {
                    let _ = broker.open(program, &open("kv"), GrantId(at as u64 + 1), any());
                }
                2 => {
                    broker.closed(At { program, connection });
                }
                _ if connection == 0 => {
                    broker.gone(program, Cause::Died);
                }
                _ => {}
            }
        }
        for program in 1..=3 {
            broker.gone(program, Cause::Died);
        }
        prop_assert_eq!(broker.grants(), 0);
        prop_assert_eq!(broker.services().count(), 0);
    }
}
