//! Questions to all hosts of a world: who answers when, and what it costs.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Error};
use std::time::{Duration, Instant};

use kumo_abi::HostId;
use kumo_abi::cluster::{HostState, Outcome, Role};
use kumo_abi::merge::Answered;
use kumo_testbed::bench::stats::{Times, ms, significant};
use kumo_testbed::swarm::World;
use serde::Deserialize;
use serde_json::Value;

use crate::ask::{self, Gathered};
use crate::{DCS, Effort, NAME, direct};

/// Of a hundred hosts so many are missing in the second half; every other of them hangs.
const MISSING_PERCENT: usize = 5;

/// The whole table is large: it is asked for so often at most.
const FULL_ROUNDS_MAX: usize = 5;

/// Where all are alive, they are waited for as long as one may: nobody is missing on a busy machine.
const ALL_WAIT_MS: u64 = 60_000;

/// Longest wait for the dead to be known as such.
const DEATH_WAIT_MAX: Duration = Duration::from_secs(30);

/// The times of one case.
#[derive(Default)]
struct Case {
    /// Of each live host in each round.
    live: Times,
    /// Of each round.
    whole: Times,
    parts: usize,
    answer_bytes: usize,
    /// Between the data centres of the asker and of others, in each round.
    wide_bytes: Vec<u64>,
}

impl Case {
    fn add(&mut self, gathered: &Gathered) {
        self.live.0.extend(&gathered.live);
        self.whole.0.push(gathered.whole);
        self.parts = gathered.parts;
        self.answer_bytes = gathered.bytes;
    }

    fn row(&self, name: &str) -> String {
        let percentile = |percent| self.live.percentile(percent).map_or_else(String::new, ms);
        let wide = median_of(&self.wide_bytes)
            .map_or_else(String::new, |bytes| (bytes / 1024).to_string());
        let [p50, p95, p99] = [50, 95, 99].map(percentile);
        let last = self.whole.median().map_or_else(String::new, ms);
        let (parts, kib) = (self.parts, self.answer_bytes / 1024);
        format!("| {name} | {p50} | {p95} | {p99} | {last} | {parts} | {kib} | {wide} |\n")
    }
}

fn median_of(numbers: &[u64]) -> Option<u64> {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied()
}

/// Everything about questions in one world.
pub(crate) fn measure(world: &mut World, hosts: usize, effort: Effort) -> io::Result<String> {
    let all: Vec<HostId> = world.hosts().cloned().collect();
    let mut text = format!(
        "### Questions to {hosts} hosts with {} processes each\n\n\
         | top 20, asked by a member | p50 ms | p95 ms | p99 ms | last ms | parts | KiB | KiB between sites |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|\n",
        effort.processes
    );
    let (mut merged, mut single) = (Case::default(), Case::default());
    let (mut http, mut baseline) = (Times::default(), Times::default());
    let (mut first, mut full) = (Times::default(), Times::default());
    let (mut full_rows, mut full_bytes) = (0, 0);
    // What the first question of all costs is not what the next ones cost.
    gather(world, &all, true, ALL_WAIT_MS)?;
    fetch_top(world, ALL_WAIT_MS, &BTreeSet::new())?;
    for round in 0..effort.rounds {
        eprint!("\r{NAME}: round {} of {} ", round + 1, effort.rounds);
        for (case, merge) in [(&mut merged, true), (&mut single, false)] {
            let before = wide_bytes(world)?;
            let gathered = gather(world, &all, merge, ALL_WAIT_MS)?;
            no_one_missing(&gathered)?;
            case.wide_bytes.push(wide_bytes(world)? - before);
            case.add(&gathered);
        }
        http.0.push(fetch_top(world, ALL_WAIT_MS, &BTreeSet::new())?);
        if !world.ports.is_empty() {
            baseline.0.push(direct::top(&world.runtime, &world.ports)?);
        }
        if round < FULL_ROUNDS_MAX {
            let fetched = fetch_full(world)?;
            first.0.push(fetched.0);
            full.0.push(fetched.1);
            (full_rows, full_bytes) = (fetched.2, fetched.3);
        }
    }
    eprintln!();
    text += &merged.row("merged by gateways");
    text += &single.row("not merged");
    let (lost, mut case, mut http_lost) = (lose(world, &all)?, Case::default(), Times::default());
    for _ in 0..effort.rounds.div_ceil(2) {
        let gathered = gather(world, &all, true, effort.wait_ms)?;
        check_missing(&gathered, &lost)?;
        case.add(&gathered);
        http_lost.0.push(fetch_top(world, effort.wait_ms, &lost.all())?);
    }
    let (dead, hung) = (lost.dead.len(), lost.hung.len());
    text += &case.row(&format!("merged, {dead} dead and {hung} hung"));
    text += "\n| whole answer over HTTP from a gateway | median ms | p95 ms |\n|---|---:|---:|\n";
    let mut line = |name: &str, times: &Times| {
        if let (Some(median), Some(p95)) = (times.median(), times.percentile(95)) {
            let _ = writeln!(text, "| {name} | {} | {} |", ms(median), ms(p95));
        }
    };
    line("top 20", &http);
    line("plain HTTP to each host at once, no TLS, merged by a script", &baseline);
    line(&format!("top 20 with missing ones, waits {} ms for them", effort.wait_ms), &http_lost);
    line("all rows: first", &first);
    line("all rows: last", &full);
    if let (Some(ours), Some(theirs)) = (http.median(), baseline.median()) {
        let ratio = significant(theirs.as_secs_f64() / ours.as_secs_f64());
        let _ = writeln!(text, "\nPlain HTTP to each host takes {ratio} × the time of our top 20.");
    }
    if let Some(whole) = full.median() {
        let speed = full_rows as f64 / whole.as_secs_f64();
        let mib = full_bytes >> 20;
        let _ =
            writeln!(text, "\nAll rows: {full_rows} rows, {mib} MiB, {speed:.0} rows a second.");
    }
    Ok(text)
}

fn gather(world: &World, hosts: &[HostId], merge: bool, wait_ms: u64) -> io::Result<Gathered> {
    let fabric =
        world.watchers.values().find(|host| host.fabric.identity().host.dc.as_str() == DCS[0]);
    let fabric = &fabric.ok_or_else(|| Error::other("nobody asks"))?.fabric;
    ask::gather(&world.runtime, fabric, hosts.to_vec(), merge, wait_ms)
}

fn no_one_missing(gathered: &Gathered) -> io::Result<()> {
    match gathered.missing.iter().next() {
        None => Ok(()),
        Some((id, outcome)) => Err(Error::other(format!("{id}: {outcome:?}, and all are alive"))),
    }
}

/// Bytes over the links of the asker's gateway with other data centres, both ways.
fn wide_bytes(world: &World) -> io::Result<u64> {
    let links = world.gateways[0].links()?;
    let wide =
        links.iter().filter(|link| link.role == Role::Gateway && link.peer.dc.as_str() != DCS[0]);
    Ok(wide.map(|link| link.received_bytes + link.sent_bytes).sum())
}

#[derive(Deserialize)]
struct Who {
    asked: usize,
    answered: usize,
    missing: Vec<HostId>,
    answered_by: Vec<Answered>,
}

/// Asks a gateway for the top of all; `lost` must be those who are missing.
fn fetch_top(world: &World, wait_ms: u64, lost: &BTreeSet<HostId>) -> io::Result<Duration> {
    #[derive(Deserialize)]
    struct Document {
        hosts: Who,
        rows: Vec<Value>,
    }
    let target = format!("{}&wait_ms={wait_ms}", ask::target("/v2/all/proc", &ask::top()));
    let fetched = ask::fetch(&world.gateways[0].socket(), &target, "application/json")?;
    let document: Document = serde_json::from_slice(&fetched.body)?;
    ask::check_top(&document.rows)?;
    check_who(world, &document.hosts, lost)?;
    Ok(fetched.whole)
}

fn check_who(world: &World, who: &Who, lost: &BTreeSet<HostId>) -> io::Result<()> {
    let missing: BTreeSet<HostId> = who.missing.iter().cloned().collect();
    let answered = who.answered_by.len();
    if missing == *lost && answered == who.answered && who.asked - lost.len() == answered {
        return Ok(());
    }
    let size = world.size();
    Err(Error::other(format!(
        "{answered} of {size} hosts answered, {missing:?} did not, and {lost:?} could not"
    )))
}

/// All rows of all: time to the first and to the last, their number, and bytes.
fn fetch_full(world: &World) -> io::Result<(Duration, Duration, usize, usize)> {
    #[derive(Deserialize)]
    struct Last {
        hosts: Who,
    }
    let socket = world.gateways[0].socket();
    let fetched = ask::fetch(&socket, "/v2/all/proc?wait_ms=60000", "application/x-ndjson")?;
    let mut lines = fetched.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let last: Last = serde_json::from_slice(lines.next_back().unwrap_or_default())?;
    check_who(world, &last.hosts, &BTreeSet::new())?;
    let rows = lines.count();
    let told: u64 = last.hosts.answered_by.iter().map(|host| host.processes).sum();
    if rows as u64 != told {
        return Err(Error::other(format!("{rows} rows came, and the hosts have {told}")));
    }
    Ok((fetched.first, fetched.whole, rows, fetched.body.len()))
}

/// Who is missing.
struct Lost {
    dead: Vec<HostId>,
    hung: Vec<HostId>,
}

impl Lost {
    fn all(&self) -> BTreeSet<HostId> {
        self.dead.iter().chain(&self.hung).cloned().collect()
    }
}

/// Lets some die and some hang, of every data centre; returns when all know of the dead. What each host does
/// then, each does on its own machine elsewhere; here a thousand do it on the cores that answer the question.
fn lose(world: &mut World, all: &[HostId]) -> io::Result<Lost> {
    let count = (all.len() * MISSING_PERCENT / 100).max(2);
    let chosen: Vec<&HostId> = (0..count).map(|n| &all[n * all.len() / count]).collect();
    let pick = |odd: usize| -> Vec<HostId> {
        chosen.iter().skip(odd).step_by(2).map(|id| (*id).clone()).collect()
    };
    let lost = Lost { dead: pick(1), hung: pick(0) };
    world.hang_hosts(&lost.hung)?;
    world.drop_hosts(&lost.dead)?;
    world.settle()?;
    let began = Instant::now();
    let known = |hosts: Vec<kumo_abi::cluster::HostInfo>| {
        let dead = hosts.iter().filter(|host| host.state == HostState::Dead).count();
        dead >= lost.dead.len()
    };
    loop {
        let here = world.watchers.values().all(|host| known(host.fabric.hosts()));
        if here && known(world.gateways[0].hosts()?) {
            return Ok(lost);
        }
        if began.elapsed() > DEATH_WAIT_MAX {
            return Err(Error::other("the dead are not known as such"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Each missing host is named with its own reason, and nobody else is.
fn check_missing(gathered: &Gathered, lost: &Lost) -> io::Result<()> {
    let right = |id: &HostId, outcome: &Outcome| match outcome {
        Outcome::Dead { .. } => lost.dead.contains(id),
        Outcome::Silent { .. } => lost.hung.contains(id),
        _ => false,
    };
    let all_right = gathered.missing.iter().all(|(id, outcome)| right(id, outcome));
    if all_right && gathered.missing.len() == lost.all().len() {
        return Ok(());
    }
    Err(Error::other(format!("missing are {:?}", gathered.missing)))
}
