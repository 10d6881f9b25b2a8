//! The rules of the fabric in a thousand worlds, and in a few large ones.
//!
//! `KUMO_SIM_SEED=n cargo test -p kumo-testbed --test sim -- --nocapture` runs that one with a trace.

use kumo_testbed::sim::{Dice, Plan, Report, run};

/// Worlds of a normal run.
const SEEDS: u64 = 1_000;

fn one_seed() -> Option<u64> {
    std::env::var("KUMO_SIM_SEED").ok().map(|seed| seed.parse().expect("a number"))
}

fn small(seed: u64, trace: bool) -> Report {
    let plan = Plan::small(&mut Dice::new(!seed));
    run(seed, &plan, trace).unwrap_or_else(|failure| panic!("{failure}\nof {plan:?}"))
}

#[test]
fn promises_hold_in_a_thousand_worlds() {
    if let Some(seed) = one_seed() {
        println!("{:?}", small(seed, true));
        return;
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let work = |first: u64| {
            move || {
                (first..SEEDS).step_by(threads as usize).map(|seed| small(seed, false)).collect()
            }
        };
        let running: Vec<_> = (0..threads).map(|first| scope.spawn(work(first))).collect();
        running
            .into_iter()
            .flat_map(|thread| -> Vec<Report> { thread.join().expect("all hold") })
            .collect()
    });
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let (events, changes) = (sum(|r| r.events), sum(|r| r.changes));
    println!("{} worlds, {events} events, {changes} changes seen", reports.len());
    assert!(sum(|r| r.changes) > 100 * SEEDS, "something happened in them");
    assert!(sum(|r| r.keys as u64) > 5 * SEEDS && sum(|r| r.refused) > 0);
}

#[test]
fn a_seed_gives_the_same_world_every_time() {
    let (first, again) = (small(7, false), small(7, false));
    assert_eq!((first.events, first.changes), (again.events, again.changes));
    let others: Vec<u64> = (8..16).map(|seed| small(seed, false).events).collect();
    assert!(others.iter().any(|events| *events != first.events));
}

#[test]
fn promises_hold_for_thousands_of_hosts() {
    if one_seed().is_some() {
        return;
    }
    for (seed, members) in [(0, 500), (1, 250)] {
        let plan = Plan { dcs: 4, gateways: 3, members, observers: 8, faults: 6, writes: 10 };
        let report = run(seed, &plan, false).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(report.hosts, 4 * (members + 3));
        println!("{report:?}");
    }
}
