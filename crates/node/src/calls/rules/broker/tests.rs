use super::*;
use kumo_abi::call::{CREDIT_MAX, Hop, InstanceId, MethodPattern, Reentrancy, SLOTS_MAX};
use kumo_abi::cluster::HostState;
use kumo_abi::control::{Carrier, Open, SERVED_MAX, Serve, Serving};

use crate::calls::rules::acl::Rule;
use crate::calls::rules::directory::Entry;
use crate::calls::rules::grants::Step;
use crate::calls::rules::limits::{
    CONNECTIONS_OF_PROGRAM_MAX, NAMES_OF_USER_MAX, PROGRAMS_OF_USER_MAX,
};

const GRANTS_MAX: usize = 2_000;

/// The user that the node runs as.
const OWNER: u32 = 7;

/// A broker of `tokyo/a`, a clock and numbers that count up.
struct World {
    broker: Broker,
    now: Moment,
    next: u64,
}

fn name(text: &str) -> ServiceName {
    text.parse().expect("a name")
}

fn host(text: &str) -> HostId {
    text.parse().expect("a host")
}

fn info(name: &str, state: HostState) -> HostInfo {
    HostInfo { id: host(name), state, state_ms: 0, incarnation: Some(1), card: None }
}

fn open(request: Request, service: &str) -> Open {
    Open {
        request,
        service: name(service),
        budget_ms: 1_000,
        chain: vec![],
        from: None,
        ring: true,
        wait: false,
    }
}

fn server(request: Request, service: &str) -> Serve {
    Serve {
        request,
        service: name(service),
        resumes: None,
        slots: 4,
        credit: 8,
        concurrent: 1,
        reentrancy: Reentrancy::Reject,
        ring: true,
    }
}

/// A host that serves `kv`.
fn serves(ready: u32, asleep: u32) -> Serves {
    let entry = Entry { ready, asleep, load_percent: 0 };
    Serves { incarnation: 1, services: [(name("kv"), entry)].into() }
}

/// What was done, in a few letters: `1:granted#0`, `2:incoming#0`, `1:refused BUSY`, `notice 1#0 DIED`.
fn letters(effects: &[Effect]) -> Vec<String> {
    let tell = |program: &Program, told: &FromNode| match told {
        FromNode::Serving { .. } => format!("{program}:serving"),
        FromNode::Refused { cause, .. } => format!("{program}:refused {cause}"),
        FromNode::Service { state, .. } => {
            format!("{program}:service {} {} {}", state.ready, state.asleep, state.silent_hosts)
        }
        other => format!("{program}:{other:?}"),
    };
    let text = |effect: &Effect| match effect {
        Effect::Tell(program, told) => tell(program, told),
        Effect::Connect { granted, incoming } => format!(
            "{}#{}->{}#{}",
            granted.0, granted.1.connection, incoming.0, incoming.1.connection
        ),
        Effect::Keep { end, .. } => format!("keep {end:?}"),
        Effect::End(Step::Notice { program, connection, cause, taken }) => {
            let taken = if taken.is_some() { " taken" } else { "" };
            format!("notice {program}#{connection} {cause}{taken}")
        }
        Effect::End(Step::Obituary { host, cause, receipts, .. }) => {
            format!("obituary {host} {cause} {receipts:?}")
        }
        Effect::End(Step::Shut(_)) => "shut".to_owned(),
        Effect::Certify { program, who, .. } => format!("certify {program} {who:?}"),
        Effect::AskOthers(Order { hosts, .. }) => {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            format!("ask {}", hosts.join(" "))
        }
        Effect::Publish { service, ready, load_percent } => {
            format!("publish {service} {ready} {load_percent}%")
        }
        Effect::Audit(_) => "audit".to_owned(),
    };
    effects.iter().map(text).collect()
}

impl World {
    fn new() -> World {
        let broker = Broker::new(host("tokyo/a"), None, OWNER, GRANTS_MAX);
        World { broker, now: Moment { ms: 0, wall_s: 1_000 }, next: 100 }
    }

    /// One with these programs, all of user 7.
    fn with(programs: &[Program]) -> World {
        let mut world = World::new();
        for program in programs {
            world.connect(*program, 7);
        }
        world
    }

    fn connect(&mut self, program: Program, uid: u32) {
        self.broker.connect(program, uid, program as u32 + 1_000, self.now).expect("room");
    }

    fn say(&mut self, program: Program, message: ToNode) -> Vec<Effect> {
        let next = &mut self.next;
        self.broker.hear(program, message, self.now, &mut || {
            *next += 1;
            *next
        })
    }

    fn hear(&mut self, program: Program, message: ToNode) -> Vec<String> {
        letters(&self.say(program, message))
    }

    fn gone(&mut self, program: Program, cause: Cause) -> Vec<String> {
        letters(&self.broker.gone(program, cause, self.now, &mut || 1))
    }

    fn serve(&mut self, program: Program, service: &str) -> Serving {
        match &self.say(program, ToNode::Serve(server(1, service)))[..] {
            [Effect::Tell(_, FromNode::Serving { serving, .. }), ..] => *serving,
            other => panic!("{:?}", letters(other)),
        }
    }

    fn grant(&mut self, program: Program, service: &str) -> GrantId {
        match &self.say(program, ToNode::Open(open(1, service)))[..] {
            [Effect::Connect { granted, .. }, ..] => granted.1.grant,
            other => panic!("{:?}", letters(other)),
        }
    }

    fn tick(&mut self, ms: u64) -> Vec<String> {
        self.now.ms += ms;
        letters(&self.broker.tick(self.now, &mut || 1))
    }

    /// Nothing is left of connections, of programs, of users.
    fn assert_empty(&self) {
        let Broker { programs, users, registry, grants, parked, watchers, awaited, .. } =
            &self.broker;
        assert!(programs.is_empty() && grants.is_empty() && parked.is_empty());
        assert!(watchers.is_empty() && awaited.is_empty());
        assert_eq!(registry.iter().count(), 0);
        assert!(
            users.values().all(|user| user.programs == 0 && user.connections == 0),
            "{users:?}"
        );
    }
}

#[test]
fn a_server_is_found_and_its_death_is_told_in_order() {
    let mut world = World::with(&[1, 2, 3]);
    assert_eq!(world.hear(1, ToNode::Open(open(1, "kv"))), ["1:refused NO_SUCH"]);
    let said = world.hear(2, ToNode::Serve(server(1, "kv")));
    assert_eq!(said, ["2:serving", "publish kv 1 0%"]);
    assert_eq!(world.hear(1, ToNode::Open(open(2, "kv"))), ["1#0->2#0", "audit"]);
    assert_eq!(world.hear(3, ToNode::Open(open(1, "kv"))), ["3#0->2#1", "audit"]);
    assert_eq!(
        world.gone(2, Cause::Died),
        ["notice 1#0 DIED", "shut", "notice 3#0 DIED", "shut", "publish kv 0 0%"]
    );
    // The index is theirs until they have closed it.
    world.serve(3, "kv");
    assert_eq!(world.hear(1, ToNode::Open(open(3, "kv"))), ["1#1->3#1", "audit"]);
    assert!(world.hear(1, ToNode::Closed { connection: 0 }).is_empty());
    assert_eq!(world.hear(1, ToNode::Open(open(4, "kv"))), ["1#0->3#2", "audit"]);
    // A caller that ends is told to its callee, and one that closes too.
    assert_eq!(world.hear(1, ToNode::Closed { connection: 0 }), ["notice 3#2 CANCELLED", "shut"]);
    assert_eq!(world.gone(1, Cause::Died), ["notice 3#1 DIED", "shut"]);
    assert_eq!(world.gone(3, Cause::Lost), ["publish kv 0 0%"]);
    world.assert_empty();
}

#[test]
fn who_closes_its_connection_with_the_node_is_lost_as_a_callee_and_cancels_as_a_caller() {
    let mut world = World::with(&[1, 2]);
    world.serve(1, "a");
    world.serve(2, "b");
    world.grant(1, "b");
    world.grant(2, "a");
    world.grant(1, "a"); // With itself.
    let told = world.gone(1, Cause::Lost);
    // It may still run: as a callee it is told itself, before anybody else, and takes no call from then on.
    let want = [
        ["notice 2#0 CANCELLED", "shut"].as_slice(),
        &["notice 1#1 LOST", "notice 2#1 LOST", "shut"],
        &["notice 1#3 LOST", "shut"],
        &["publish a 0 0%"],
    ];
    assert_eq!(told, want.concat());
    world.gone(2, Cause::Died);
    world.assert_empty();
}

#[test]
fn an_instance_drains_and_ends() {
    let mut world = World::with(&[1, 2]);
    let serving = world.serve(2, "kv");
    world.grant(1, "kv");
    let instance = serving.instance;
    // What is not its own, it cannot end.
    assert!(world.hear(1, ToNode::Drain { instance }).is_empty());
    assert!(world.hear(1, ToNode::Ended { instance }).is_empty());
    assert_eq!(world.hear(2, ToNode::Drain { instance }), ["publish kv 0 25%"]);
    assert_eq!(world.hear(1, ToNode::Open(open(2, "kv"))), ["1:refused DRAINING"]);
    assert_eq!(world.hear(2, ToNode::Ended { instance }), ["publish kv 0 0%"]);
    assert_eq!(world.hear(1, ToNode::Open(open(3, "kv"))), ["1:refused NO_SUCH"]);
    let newer = world.serve(2, "kv");
    assert!(newer.incarnation > serving.incarnation && newer.instance != serving.instance);
}

#[test]
fn names_are_served_by_root_by_their_holder_and_by_who_is_listed() {
    let mut world = World::new();
    for (program, uid) in [(1, OWNER), (2, 8), (3, 0), (4, OWNER)] {
        world.connect(program, uid);
    }
    // Of names that nobody holds, others than the node's user have those that say whose they are.
    for (service, want) in [
        ("kv", "2:refused DENIED"),
        ("user-8", "2:refused DENIED"),
        ("user-88-kv", "2:refused DENIED"),
        ("user-08-kv", "2:refused DENIED"),
        ("user-8-kv", "2:serving"),
    ] {
        let said = world.hear(2, ToNode::Serve(server(1, service)));
        assert_eq!(said[0], want, "for {service}");
    }
    let serve = |world: &mut World, program| {
        world.hear(program, ToNode::Serve(server(1, "kv"))).swap_remove(0)
    };
    assert_eq!(serve(&mut world, 1), "1:serving");
    assert_eq!(serve(&mut world, 2), "2:refused DENIED");
    assert_eq!(serve(&mut world, 3), "3:serving");
    assert_eq!(serve(&mut world, 4), "4:serving");
    let callers = "spiffe://*/dc/*/host/*/user/8".parse().expect("a pattern");
    let acl = Acl { call: None, serve: Some(vec![callers]) };
    world.broker.note_acl(&name("kv"), Some(acl), world.now, &mut || 1);
    assert_eq!(serve(&mut world, 2), "2:serving");
    assert_eq!(serve(&mut world, 3), "3:refused DENIED");
    for bad in [
        Serve { slots: 0, ..server(1, "x") },
        Serve { slots: SLOTS_MAX + 1, ..server(1, "x") },
        Serve { credit: CREDIT_MAX + 1, ..server(1, "x") },
        Serve { concurrent: 0, ..server(1, "x") },
        Serve { concurrent: 65, ..server(1, "x") },
    ] {
        assert_eq!(world.hear(1, ToNode::Serve(bad)), ["1:refused MALFORMED"]);
    }
}

#[test]
fn a_list_is_asked_and_a_new_one_ends_what_it_does_not_allow() {
    let mut world = World::with(&[1, 2]);
    let web = world.serve(1, "web");
    world.serve(2, "kv");
    let from = vec!["spiffe://*/dc/*/host/*/service/web".parse().expect("a pattern")];
    let methods = vec!["read*".parse().expect("a pattern")];
    let acl = Acl { call: Some(vec![Rule { from, methods: methods.clone() }]), serve: None };
    let before = world.grant(1, "kv");
    let ended = world.broker.note_acl(&name("kv"), Some(acl.clone()), world.now, &mut || 1);
    assert_eq!(letters(&ended), ["notice 2#0 DENIED", "notice 1#0 DENIED", "shut"]);
    assert!(!world.broker.grants().contains_key(&before));
    assert_eq!(world.hear(1, ToNode::Open(open(2, "kv"))), ["1:refused DENIED"]);
    let as_web = Open { from: Some(web.instance), ..open(3, "kv") };
    match &world.say(1, ToNode::Open(as_web.clone()))[..] {
        [Effect::Connect { granted, incoming }, Effect::Audit(_)] => {
            assert_eq!((&granted.1.methods, &incoming.1.methods), (&methods, &methods));
            assert_eq!(incoming.1.peer.who, Who::Service(name("web")));
            assert_eq!((incoming.1.peer.pid, granted.1.peer.pid), (1_001, 1_002));
        }
        other => panic!("{:?}", letters(other)),
    }
    // Nobody else's name.
    assert_eq!(world.hear(2, ToNode::Open(as_web)), ["2:refused DENIED"]);
    // The same list again changes nothing; no list allows all.
    assert!(world.broker.note_acl(&name("kv"), Some(acl), world.now, &mut || 1).is_empty());
    let ended = world.broker.note_acl(&name("kv"), None, world.now, &mut || 1);
    assert_eq!(letters(&ended).len(), 3, "what it was told is no longer so");
    assert_eq!(world.hear(1, ToNode::Open(open(4, "kv"))).len(), 2);
}

#[test]
fn who_waits_for_a_place_gets_the_next_one_and_others_are_told_busy() {
    let mut world = World::with(&[1, 2, 3, 4]);
    world.serve(2, "kv");
    for _ in 0..CONNECTIONS_OF_PROGRAM_MAX {
        // As they come over a while.
        world.now.ms += 10;
        world.grant(1, "kv");
    }
    // Its own limit is not the callee's.
    assert_eq!(world.hear(1, ToNode::Open(open(2, "kv"))), ["1:refused EXHAUSTED"]);
    assert_eq!(world.hear(3, ToNode::Open(open(2, "kv"))), ["3:refused BUSY"]);
    let wait = |request| ToNode::Open(Open { wait: true, ..open(request, "kv") });
    assert!(world.hear(3, wait(2)).is_empty());
    assert_eq!(world.hear(3, wait(2)), ["3:refused MALFORMED"], "its number is taken");
    assert!(world.hear(4, wait(5)).is_empty());
    assert!(world.broker.is_waiting());
    assert!(world.tick(999).is_empty());
    let told = world.hear(2, ToNode::Closed { connection: 17 });
    assert_eq!(told, ["notice 1#17 LOST", "shut", "3#0->2#17", "audit"]);
    assert_eq!(world.tick(1), ["4:refused DEADLINE"]);
    assert!(!world.broker.is_waiting());
    // One that waits until a new list does not name it is told so, and it is remembered who was.
    assert!(world.hear(4, wait(6)).is_empty());
    let acl = Acl { call: Some(vec![]), serve: None };
    world.broker.note_acl(&name("kv"), Some(acl), world.now, &mut || 1);
    assert_eq!(world.hear(2, ToNode::Closed { connection: 18 }), ["4:refused DENIED"]);
    let last = world.broker.refusals().iter().last().expect("remembered");
    assert_eq!((last.pid, last.cause), (1_004, Cause::Denied));
    world.broker.note_acl(&name("kv"), None, world.now, &mut || 1);
    while world.broker.choose(&name("kv"), &[]).is_ok() {
        world.now.ms += 10;
        world.grant(3, "kv");
    }
    // One that waits and ends is forgotten.
    assert!(world.hear(4, wait(6)).is_empty());
    world.gone(4, Cause::Died);
    assert!(!world.broker.is_waiting());
}

#[test]
fn who_floods_harms_itself() {
    let mut world = World::with(&[1, 2, 3]);
    world.serve(2, "kv");
    let mut refused = None;
    for request in 0..10_000 {
        let said = world.say(1, ToNode::Open(open(request, "nobody")));
        match &said[..] {
            [Effect::Tell(1, FromNode::Refused { cause: Cause::NoSuch, .. })] => {}
            [
                Effect::Tell(1, FromNode::Refused { cause: Cause::Exhausted, retry_after_ms, .. }),
            ] => {
                refused = Some((request, *retry_after_ms));
                break;
            }
            other => panic!("{:?}", letters(other)),
        }
    }
    assert_eq!(refused, Some((u64::from(OPENS_OF_PROGRAM.burst), Some(2))));
    // Another program of the same user goes on, and so does it, when it waits.
    world.grant(3, "kv");
    world.now.ms += 2;
    world.grant(1, "kv");
    // A user who starts many is stopped, and no other.
    for program in 0..PROGRAMS_OF_USER_MAX {
        world.connect(100 + u64::from(program), 9);
    }
    let more = world.broker.connect(5_000, 9, 1, world.now).expect_err("too many");
    assert_eq!(more.cause, Cause::Exhausted);
    world.connect(5_000, 10);
    // Names are limited too.
    for request in 0..SERVED_MAX as u64 - 1 {
        let serve = server(request, &format!("s{request}"));
        assert_eq!(world.hear(2, ToNode::Serve(serve))[0], "2:serving");
    }
    assert_eq!(world.hear(2, ToNode::Serve(server(1, "z"))), ["2:refused EXHAUSTED"]);
    // Those of one user together, too; of a name that is there, another instance may come.
    world.connect(6_000, 7);
    for request in SERVED_MAX as u64..NAMES_OF_USER_MAX as u64 {
        let serve = server(request, &format!("s{request}"));
        assert_eq!(world.hear(6_000, ToNode::Serve(serve))[0], "6000:serving");
    }
    assert_eq!(world.hear(6_000, ToNode::Serve(server(1, "z"))), ["6000:refused EXHAUSTED"]);
    assert_eq!(world.hear(6_000, ToNode::Serve(server(1, "kv")))[0], "6000:serving");
    let watched = ToNode::Watch { request: 0, service: name("s0") };
    assert_eq!(world.hear(3, watched), ["3:service 1 0 0"]);
    for request in 1..WATCHED_MAX as u64 {
        let said = world.hear(3, ToNode::Watch { request, service: name("kv") });
        assert_eq!(said, ["3:service 2 0 0"]);
    }
    let more = ToNode::Watch { request: 1_000, service: name("kv") };
    assert_eq!(world.hear(3, more), ["3:refused EXHAUSTED"]);
}

#[test]
fn a_node_grants_no_more_connections_than_it_has_descriptors_for() {
    let mut world = World::with(&[1, 2]);
    world.broker.grants_max = 1;
    world.serve(2, "kv");
    world.grant(1, "kv");
    assert_eq!(world.hear(1, ToNode::Open(open(2, "kv"))), ["1:refused EXHAUSTED"]);
    assert_eq!(world.hear(1, ToNode::Closed { connection: 0 }), ["notice 2#0 CANCELLED", "shut"]);
    world.grant(1, "kv");
}

#[test]
fn watchers_hear_of_changes_until_they_hear_no_more() {
    let mut world = World::with(&[1, 2]);
    let watch = ToNode::Watch { request: 5, service: name("kv") };
    assert_eq!(world.hear(1, watch.clone()), ["1:service 0 0 0"]);
    assert_eq!(world.hear(1, watch), ["1:refused MALFORMED"]);
    let said = world.hear(2, ToNode::Serve(server(1, "kv")));
    assert_eq!(said, ["2:serving", "1:service 1 0 0", "publish kv 1 0%"]);
    world.broker.note_hosts(&[info("tokyo/b", HostState::Alive)]);
    world.broker.note_serves(&host("tokyo/b"), Some(serves(2, 1)));
    assert_eq!(world.tick(0), ["1:service 3 1 0", "publish kv 1 0%"]);
    // Who is there is looked at anew now and then: no news is not told.
    world.broker.note_hosts(&[info("tokyo/b", HostState::Alive)]);
    assert_eq!(world.tick(0), ["publish kv 1 0%"]);
    world.broker.note_hosts(&[info("tokyo/b", HostState::CutOff)]);
    assert_eq!(world.tick(0), ["1:service 1 0 1", "publish kv 1 0%"]);
    assert!(world.hear(1, ToNode::Unwatch { request: 5 }).is_empty());
    assert_eq!(world.gone(2, Cause::Died), ["publish kv 0 0%"]);
    world.gone(1, Cause::Died);
    world.assert_empty();
}

#[test]
fn a_node_that_starts_anew_is_told_everything_again() {
    let resume = |connection, grant, end, peer_host: &str| {
        ToNode::Resume(Resume {
            connection,
            grant: GrantId(grant),
            end,
            service: name("kv"),
            instance: InstanceId(50),
            peer: Peer { host: host(peer_host), pid: 9, who: Who::User(7) },
            carrier: Carrier::Tls,
            receipts: (end == End::Callee).then_some(connection as u16),
        })
    };
    let mut world = World::with(&[1, 2, 3]);
    let was = Serving { instance: InstanceId(50), incarnation: 5_000 };
    let again = |world: &mut World, program| {
        let serve = Serve { resumes: Some(was), ..server(1, "kv") };
        match &world.say(program, ToNode::Serve(serve))[..] {
            [Effect::Tell(_, FromNode::Serving { serving, .. }), ..] => *serving,
            other => panic!("{:?}", letters(other)),
        }
    };
    assert_eq!(world.hear(1, resume(4, 70, End::Caller, "tokyo/a")), ["keep Caller"]);
    assert_eq!(again(&mut world, 2), was);
    assert_eq!(world.hear(2, resume(2, 70, End::Callee, "tokyo/a")), ["keep Callee"]);
    // Somebody else is not it, and does not have what it says to have.
    let liar = again(&mut world, 3);
    assert!(liar.instance != was.instance && liar.incarnation > was.incarnation);
    assert!(world.hear(3, resume(0, 70, End::Callee, "tokyo/a")).is_empty());
    assert!(world.hear(1, resume(4, 71, End::Caller, "tokyo/a")).is_empty(), "the index is taken");
    assert!(world.hear(1, resume(90_000, 72, End::Caller, "tokyo/a")).is_empty());
    // With another host; and one whose other end does not come.
    assert_eq!(world.hear(2, resume(3, 73, End::Callee, "osaka/b")), ["keep Callee"]);
    assert_eq!(world.hear(1, resume(5, 74, End::Caller, "tokyo/a")), ["keep Caller"]);
    assert!(world.tick(RESUME_WAIT_MS - 1).is_empty());
    assert_eq!(world.tick(1), ["notice 1#5 LOST", "shut"]);
    assert_eq!(
        world.gone(2, Cause::Died),
        [
            "notice 1#4 DIED",
            "shut",
            "obituary osaka/b DIED Some((2, 3))",
            "shut",
            "publish kv 1 0%"
        ]
    );
    world.gone(1, Cause::Died);
    world.gone(3, Cause::Died);
    world.assert_empty();
}

#[test]
fn callers_of_other_hosts_are_let_in_and_told() {
    let mut world = World::with(&[2]);
    let there = host("osaka/b");
    let kv = name("kv");
    let from = Peer { host: there.clone(), pid: 5, who: Who::Service(name("web")) };
    let admit = |world: &mut World, chain: &[Hop]| {
        let (service, from) = (&kv, from.clone());
        let asked = Asked { service, from, chain, carrier: Carrier::Tls };
        let next = &mut world.next;
        world.broker.admit(asked, world.now, &mut || {
            *next += 1;
            *next
        })
    };
    assert_eq!(admit(&mut world, &[]).expect_err("nobody").cause, Cause::NoSuch);
    let serving = world.serve(2, "kv");
    let chain = [Hop { instance: serving.instance, service: kv.clone() }];
    assert_eq!(admit(&mut world, &chain).expect_err("itself").cause, Cause::Cycle);
    let [first, second, late, ended] = [(); 4].map(|()| admit(&mut world, &[]).expect("room"));
    assert_eq!(first.serving, serving);
    let (program, incoming) = world.broker.arrived(first.grant).expect("in time");
    assert_eq!((program, incoming.connection, incoming.receipts), (2, 0, Some(0)));
    assert!(world.broker.arrived(first.grant).is_none(), "once");
    let (_, incoming) = world.broker.arrived(second.grant).expect("in time");
    assert_eq!((incoming.connection, incoming.receipts), (1, Some(1)));
    // One that its own node takes back before it was there is told to nobody.
    let obituary = |world: &mut World, host: &HostId, grant| {
        letters(&world.broker.obituary(host, grant, Cause::Died, None, world.now, &mut || 1))
    };
    assert_eq!(obituary(&mut world, &there, ended.grant), ["shut"]);
    assert!(obituary(&mut world, &host("osaka/x"), first.grant).is_empty(), "not its own");
    assert_eq!(obituary(&mut world, &there, first.grant), ["notice 2#0 DIED", "shut"]);
    // Nor is one whose socket does not come: its node hears.
    assert_eq!(world.tick(ARRIVE_WAIT_MS), ["obituary osaka/b LOST Some((2, 2))", "shut"]);
    assert!(world.broker.arrived(late.grant).is_none());
    // Indices of which nobody was told are used again, and so are their places of receipts. Those of a connection
    // that has ended are not, before its callee has closed it: it may still take a call there.
    let again = admit(&mut world, &[]).expect("room");
    let (_, incoming) = world.broker.arrived(again.grant).expect("in time");
    assert_eq!((incoming.connection, incoming.receipts), (2, Some(2)));
    assert!(world.hear(2, ToNode::Closed { connection: 0 }).is_empty());
    let closed = admit(&mut world, &[]).expect("room");
    let (_, incoming) = world.broker.arrived(closed.grant).expect("in time");
    assert_eq!((incoming.connection, incoming.receipts), (0, Some(0)));
    // Nor is one that its callee could not be given: nothing of it is left, and its node hears.
    let unread = admit(&mut world, &[]).expect("room");
    let (_, incoming) = world.broker.arrived(unread.grant).expect("in time");
    assert_eq!((incoming.connection, incoming.receipts), (3, Some(3)));
    let not = world.broker.not_handed(unread.grant, End::Callee, Cause::Busy, world.now, &mut || 1);
    assert_eq!(letters(&not), ["obituary osaka/b BUSY Some((2, 3))", "shut"]);
    let again = admit(&mut world, &[]).expect("room");
    let (_, incoming) = world.broker.arrived(again.grant).expect("in time");
    assert_eq!((incoming.connection, incoming.receipts), (3, Some(3)));
    assert_eq!(obituary(&mut world, &there, again.grant), ["notice 2#3 DIED", "shut"]);
    // A lost host is told to those who had to do with it.
    let lost = world.broker.host_lost(&there, Cause::HostLost, world.now, &mut || 1);
    let mut lost = letters(&lost);
    lost.sort_unstable();
    let notices = [0, 1, 2].map(|at| format!("notice 2#{at} HOST_LOST"));
    assert_eq!(
        (&lost[..3], &lost[3..]),
        (&notices[..], &["shut".to_owned(), "shut".to_owned(), "shut".to_owned()][..])
    );
    world.gone(2, Cause::Died);
    world.assert_empty();
}

#[test]
fn a_service_that_is_elsewhere_is_asked_for_there() {
    let mut world = World::with(&[1]);
    let there = host("osaka/b");
    world.broker.note_serves(&there, Some(serves(1, 0)));
    world.broker.note_serves(&host("lima/c"), Some(serves(1, 0)));
    let hosts = [info("osaka/b", HostState::Alive), info("lima/c", HostState::Alive)];
    world.broker.note_hosts(&hosts);
    let far = |dc: &str, us: u32| (dc.parse().expect("a name"), us);
    world.broker.note_far([far("osaka", 9_000), far("lima", 90_000)].into());
    let order = |world: &mut World, open: Open| {
        let effects = world.say(1, ToNode::Open(open));
        let order = effects.iter().find_map(|effect| match effect {
            Effect::AskOthers(order) => Some(order.clone()),
            _ => None,
        });
        order.unwrap_or_else(|| panic!("{:?}", letters(&effects)))
    };
    let first = order(&mut world, open(1, "kv"));
    assert_eq!(first.hosts, [there.clone(), host("lima/c")]);
    assert_eq!(world.hear(1, ToNode::Open(open(1, "kv"))), ["1:refused MALFORMED"]);
    let admitted = |grant| Admitted {
        grant: GrantId(grant),
        serving: Serving { instance: InstanceId(3), incarnation: 4 },
        to: Peer { host: there.clone(), pid: 6, who: Who::Service(name("kv")) },
        methods: vec![MethodPattern::any()],
        reentrancy: Reentrancy::Reject,
        concurrent: 1,
    };
    let now = world.now;
    let granted = world.broker.granted(&first, &there, admitted(7), Carrier::Tls, now);
    assert_eq!(granted.expect("room").connection, 0);
    // One that could not be handed over leaves nothing, and the other node hears.
    let unread = order(&mut world, open(9, "kv"));
    let granted = world.broker.granted(&unread, &there, admitted(6), Carrier::Tls, now);
    assert_eq!(granted.expect("room").connection, 1);
    let exhausted = Cause::Exhausted;
    let not = world.broker.not_handed(GrantId(6), End::Caller, exhausted, now, &mut || 1);
    assert_eq!(letters(&not), ["obituary osaka/b EXHAUSTED None", "shut"]);
    assert_eq!(world.broker.program(1).expect("it is there").open, 1);
    // A node that gives what is there already is not believed.
    let second = order(&mut world, open(1, "kv"));
    let twice = world.broker.granted(&second, &there, admitted(7), Carrier::Tls, now);
    assert_eq!(twice.expect_err("twice").cause, Cause::Malformed);
    // The callee dies there: what it had taken is told.
    let taken = Some(vec![1, 2]);
    let told = world.broker.obituary(&there, GrantId(7), Cause::Died, taken, now, &mut || 1);
    assert_eq!(letters(&told), ["notice 1#0 DIED taken", "shut"]);
    // Nobody has it; one that is busy is waited for, and asked again, not all the time.
    let third = order(&mut world, open(2, "kv"));
    let no = world.broker.nowhere(third, None, now, &mut || 1);
    assert_eq!(letters(&no), ["1:refused NO_SUCH"]);
    let patient = order(&mut world, Open { wait: true, ..open(3, "kv") });
    let busy = Refusal::new(Cause::Busy, "all taken");
    assert!(world.broker.nowhere(patient, Some(busy), now, &mut || 1).is_empty());
    assert!(world.tick(u64::from(RETRY_BUSY_MS) - 1).is_empty());
    assert_eq!(world.tick(1), ["ask osaka/b lima/c"]);
    // A caller that dies is told to the node of its callee.
    let fourth = order(&mut world, open(4, "kv"));
    let now = world.now;
    world.broker.granted(&fourth, &there, admitted(8), Carrier::Tls, now).expect("room");
    assert_eq!(world.gone(1, Cause::Died), ["obituary osaka/b DIED None", "shut"]);
    world.assert_empty();
}

#[test]
fn who_stands_still_gets_no_callers_and_those_who_wait_are_told() {
    let mut world = World::with(&[1, 2]);
    world.serve(2, "kv");
    let grant = world.grant(1, "kv");
    world.broker.stands_still(2, true);
    let told = world.broker.end_all(&[grant, GrantId(1)], Cause::Suspended, world.now, &mut || 1);
    assert_eq!(letters(&told), ["notice 2#0 SUSPENDED", "notice 1#0 SUSPENDED", "shut"]);
    assert_eq!(world.hear(1, ToNode::Open(open(2, "kv"))), ["1:refused SUSPENDED"]);
    world.broker.stands_still(2, false);
    world.grant(1, "kv");
}

#[test]
fn a_connection_that_could_not_be_made_leaves_nothing() {
    let mut world = World::with(&[1, 2]);
    world.serve(2, "kv");
    let grant = world.grant(1, "kv");
    let refusal = Refusal::new(Cause::Exhausted, "no descriptors");
    let undone = world.broker.undo(grant, false, (1, 9), &refusal, world.now, &mut || 1);
    assert_eq!(letters(&undone), ["shut", "1:refused EXHAUSTED"]);
    // Both indices are free again; not that of a callee which has heard of it.
    let grant = world.grant(1, "kv");
    let undone = world.broker.undo(grant, true, (1, 9), &refusal, world.now, &mut || 1);
    assert_eq!(letters(&undone), ["notice 2#0 EXHAUSTED", "shut", "1:refused EXHAUSTED"]);
    assert_eq!(world.hear(1, ToNode::Open(open(2, "kv"))), ["1#0->2#1", "audit"]);
    world.gone(1, Cause::Died);
    world.gone(2, Cause::Died);
    world.assert_empty();
}

#[test]
fn certificates_are_for_what_a_program_is() {
    let mut world = World::with(&[1, 2]);
    let serving = world.serve(2, "kv");
    let ask = |instance| ToNode::Certificate { request: 1, instance };
    assert_eq!(world.hear(1, ask(None)), ["certify 1 User(7)"]);
    let as_kv = Some(serving.instance);
    assert_eq!(world.hear(2, ask(as_kv)), [r#"certify 2 Service(ServiceName("kv"))"#]);
    assert_eq!(world.hear(1, ask(as_kv)), ["1:refused DENIED"]);
}
