//! How fast a call on one host is, beside a bare socket pair: `cargo run --release -p middlecon --example ratios`.
//!
//! Both ends are pinned, on two cores and on one. Rounds of all contestants take turns, so that what
//! disturbs the machine disturbs them alike; shown is the median over all, in microseconds.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use bytes::Bytes;
use kumo_abi::call::{Method, ServiceName};
use kumo_sys::cpu;
use middlecon::{Node, Server, Service};
use support::TestNode;

const ROUNDS: usize = 30;
const CALLS: usize = 2_000;

/// Bytes of a call and of a reply, headers included for the bare ones.
const BODY: [u8; 8] = [7; 8];

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

/// Makes calls and notes what each took.
type Round = Box<dyn FnMut(&mut Vec<u64>)>;

struct Contestant {
    name: &'static str,
    round: Round,
    samples_ns: Vec<u64>,
    _server: Option<Server>,
}

fn timed(samples_ns: &mut Vec<u64>, mut once: impl FnMut()) {
    for _ in 0..CALLS {
        let began = Instant::now();
        once();
        samples_ns.push(began.elapsed().as_nanos() as u64);
    }
}

fn calls(node: &TestNode, name: &'static str, ring: bool, callee_cpu: usize) -> Contestant {
    let here = Node::connect(node.run_dir()).unwrap();
    let service: ServiceName = name.replace([' ', ','], "-").parse().unwrap();
    let server = here
        .serve(&service)
        .ring(ring)
        .method(&method("pin"), move |_| {
            cpu::keep_to(&[callee_cpu]).unwrap();
            Ok(Bytes::new())
        })
        .method(&method("echo"), |call| Ok(call.body.clone()))
        .start()
        .unwrap();
    let calls: Service = here.service(&service);
    calls.call(&method("pin"), b"").unwrap();
    let echo = method("echo");
    let round = move |samples_ns: &mut Vec<u64>| {
        timed(samples_ns, || assert_eq!(calls.call(&echo, &BODY).unwrap(), &BODY[..]));
    };
    Contestant { name, round: Box::new(round), samples_ns: Vec::new(), _server: Some(server) }
}

fn bare(name: &'static str, callee_cpu: usize) -> Contestant {
    let (mut near, mut far) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        cpu::keep_to(&[callee_cpu]).unwrap();
        let mut buffer = [0; 72];
        while far.read_exact(&mut buffer).is_ok() {
            far.write_all(&buffer).unwrap();
        }
    });
    let round = move |samples_ns: &mut Vec<u64>| {
        let mut buffer = [7; 72];
        timed(samples_ns, || {
            near.write_all(&buffer).unwrap();
            near.read_exact(&mut buffer).unwrap();
        });
    };
    Contestant { name, round: Box::new(round), samples_ns: Vec::new(), _server: None }
}

fn main() {
    let cpus = cpu::allowed().unwrap();
    let (own, other) = (cpus[0], cpus[cpus.len() - 1]);
    cpu::keep_to(&[own]).unwrap();
    let node = TestNode::start();
    let mut all = [
        bare("bare pair, one core", own),
        calls(&node, "ring, one core", true, own),
        calls(&node, "packets, one core", false, own),
        bare("bare pair, two cores", other),
        calls(&node, "ring, two cores", true, other),
        calls(&node, "packets, two cores", false, other),
    ];
    for _ in 0..ROUNDS {
        for contestant in &mut all {
            (contestant.round)(&mut contestant.samples_ns);
        }
    }
    println!("{} cpus, {} calls each", cpus.len(), ROUNDS * CALLS);
    println!("{:<22} {:>8} {:>8} {:>8} {:>6}", "", "p50 µs", "p90 µs", "p99 µs", "ratio");
    let mut base = 1.0;
    for contestant in &mut all {
        contestant.samples_ns.sort_unstable();
        let at = |share: usize| {
            contestant.samples_ns[contestant.samples_ns.len() * share / 100] as f64 / 1e3
        };
        if contestant.name.starts_with("bare") {
            base = at(50);
        }
        let name = contestant.name;
        println!(
            "{name:<22} {:>8.2} {:>8.2} {:>8.2} {:>6.2}",
            at(50),
            at(90),
            at(99),
            at(50) / base
        );
    }
}
