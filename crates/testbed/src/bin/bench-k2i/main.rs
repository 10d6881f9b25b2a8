//! `bench-k2i`: our process table beside those of others, on one machine, in one run.
//!
//! For each number of processes a crowd is started once; then every case runs once a round, in a new
//! order each round, so that whatever disturbs the machine disturbs all. Everything that is timed,
//! servers, clients and peers, runs on one and the same CPU: a server beside its client gets no more
//! of the machine than `ps` does. The crowd sleeps on all CPUs. Every answer is checked before it is
//! timed. Times are reported, never asserted. What a part finds is written when it is found, so that one that
//! fails costs the others nothing.

mod cases;
mod events;
mod history;
mod http;
mod part;
mod redaction;
mod report;
mod server;
mod sockets;
mod sql;
mod stream;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use kumo_testbed::bench::{self, document, machine};
use kumo_testbed::{Crowd, Mix, Zoo};

use cases::Case;
use part::Part;
use report::{Round, Timed, Watched};
use server::Server;
use sockets::Sockets;

/// Compare our process table with ps and, where they are installed, with others
#[derive(Parser)]
struct Args {
    /// Measure these parts only
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    parts: Vec<Part>,
    /// Numbers of processes, one table each
    #[arg(long, value_delimiter = ',', default_values_t = [300, 3_000, 10_000])]
    processes: Vec<usize>,
    /// Processes beside which the other parts are measured
    #[arg(long, default_value_t = 3_000)]
    crowd: usize,
    /// Rounds of each case [default: 11]
    #[arg(long)]
    rounds: Option<usize>,
    /// Watch for this many seconds; 0 leaves it out of the tables [default: 30]
    #[arg(long)]
    watch_s: Option<u64>,
    /// A first impression: 3 rounds and 5 seconds by default, nothing written
    #[arg(long)]
    quick: bool,
    /// Measure ps and ourselves only
    #[arg(long)]
    no_peers: bool,
    /// The document to write the tables into; - writes none
    #[arg(long, default_value = "docs/BENCHMARKS.md")]
    document: PathBuf,
    /// The folder of the binaries; by default that of this program
    #[arg(long)]
    programs: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-k2i: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: Args) -> io::Result<()> {
    if args.quick {
        args.rounds.get_or_insert(3);
        args.watch_s.get_or_insert(5);
        args.document = PathBuf::from("-");
    }
    let rounds = args.rounds.unwrap_or(11);
    let watch = Duration::from_secs(args.watch_s.unwrap_or(30));
    let programs = match &args.programs {
        Some(folder) => folder.clone(),
        None => std::env::current_exe()?.parent().unwrap_or(Path::new(".")).to_owned(),
    };
    // Before anything is pinned: it says how many CPUs there are.
    let heading = bench::heading("bench-k2i");
    let write = |part: Part, results: &str| {
        let text = format!("{heading}\n{results}");
        println!("{text}");
        if args.document == Path::new("-") {
            return Ok(());
        }
        let document = fs::read_to_string(&args.document).unwrap_or_default();
        fs::write(&args.document, document::place(&document, part.block(), &text))?;
        eprintln!("bench-k2i: wrote {}", args.document.display());
        Ok::<(), io::Error>(())
    };
    let is_wanted = |part: Part| args.parts.contains(&part);
    if is_wanted(Part::Table) {
        let mut tables = Vec::new();
        for processes in &args.processes {
            let round = measure(*processes, &programs, rounds, watch, !args.no_peers)?;
            tables.push(report::tables(&round));
        }
        write(Part::Table, &format!("{rounds} rounds each.\n\n{}", tables.join("\n")))?;
    }
    let crowded = || Part::ALL.into_iter().filter(|part| part.is_crowded() && is_wanted(*part));
    if crowded().next().is_some() {
        with_crowd(args.crowd, |crowd| {
            for part in crowded() {
                let text = beside(part, crowd, &programs, rounds, watch);
                write(part, &text.map_err(|error| named(part.block(), &error))?)?;
            }
            Ok(())
        })?;
    }
    if is_wanted(Part::Events) {
        eprintln!("bench-k2i: events");
        let text = events::measure(&programs, watch.max(Duration::from_secs(1)));
        write(Part::Events, &text.map_err(|error| named("events", &error))?)?;
    }
    Ok(())
}

/// One of the parts that are measured beside a crowd, on the CPU of this thread.
fn beside(
    part: Part,
    crowd: &Crowd,
    programs: &Path,
    rounds: usize,
    watch: Duration,
) -> io::Result<String> {
    let name = part.block();
    eprintln!("{name}: beside {} processes", crowd.pids().len());
    let text = match part {
        Part::Redaction => redaction::measure(programs, crowd, rounds)?,
        Part::Sockets => {
            let sockets = Sockets::open()?;
            let (cases, _servers) = cases::socket_listers(programs);
            for case in &cases {
                case.check(crowd, Some(&sockets)).map_err(|error| named(&case.name, &error))?;
            }
            let baseline = cases.first().map_or("the first", |case| case.name.as_str());
            report::timed_table(&time_all(&cases, rounds)?, baseline)
        }
        Part::Sql => sql::measure(programs, crowd, rounds)?,
        Part::History => history::measure(programs, crowd, rounds, watch)?,
        Part::Stream => stream::measure(programs, watch.max(Duration::from_secs(2)))?,
        Part::Table | Part::Events => {
            return Err(io::Error::other("it is measured without a crowd"));
        }
    };
    Ok(format!("Beside {} processes, {rounds} rounds each.\n\n{text}", crowd.pids().len()))
}

/// Does `work` on the last CPU, beside a crowd that may use all.
fn with_crowd<T: Send>(
    processes: usize,
    work: impl FnOnce(&Crowd) -> io::Result<T> + Send,
) -> io::Result<T> {
    eprintln!("bench-k2i: starting {processes} processes");
    let crowd = Zoo::crowd(processes, Mix::default());
    let cpu = machine::last_cpu()?;
    let pinned = || {
        machine::pin(cpu)?;
        work(&crowd)
    };
    // On a thread of its own, because the next crowd shall not inherit our CPU.
    std::thread::scope(|scope| scope.spawn(pinned).join())
        .map_err(|_| io::Error::other("the measuring thread panicked"))?
}

/// Everything for one number of processes.
fn measure(
    processes: usize,
    programs: &Path,
    rounds: usize,
    watch: Duration,
    with_peers: bool,
) -> io::Result<Round> {
    with_crowd(processes, |crowd| {
        let (mut all, servers) = cases::ours(programs);
        let peers = if with_peers { cases::peers(&mut all) } else { Vec::new() };
        for case in &all {
            case.check(crowd, None).map_err(|error| named(&case.name, &error))?;
        }
        let timed = time_all(&all, rounds)?;
        drop(peers);
        let watched = watch_all(programs, watch)?;
        drop(servers);
        Ok(Round { processes, timed, watched })
    })
}

fn named(name: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("{name}: {error}"))
}

/// One time of every case a round, each round in an order of its own.
fn time_all(cases: &[Case], rounds: usize) -> io::Result<Vec<Timed>> {
    let mut timed: Vec<Timed> = cases.iter().map(Case::empty).collect();
    for round in 0..rounds {
        eprint!("\rbench-k2i: round {} of {rounds} ", round + 1);
        for index in shuffled(cases.len(), round as u64) {
            let (time, bytes) =
                cases[index].time().map_err(|error| named(&cases[index].name, &error))?;
            timed[index].times.0.push(time);
            timed[index].bytes = bytes;
        }
    }
    eprintln!();
    Ok(timed)
}

/// The numbers below `len` in an order that depends on `seed` alone: a case must not always follow
/// the same other one, whose leavings in the CPU's caches it would pay for.
fn shuffled(len: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    let mut state = seed;
    for last in (1..len).rev() {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        order.swap(last, ((mixed ^ (mixed >> 31)) % (last as u64 + 1)) as usize);
    }
    order
}

/// Watches each of our collectors with each kind of question at once, and `top` beside them.
fn watch_all(programs: &Path, wall_min: Duration) -> io::Result<Vec<Watched>> {
    if wall_min.is_zero() {
        return Ok(Vec::new());
    }
    eprintln!("bench-k2i: watching for {} s", wall_min.as_secs());
    let mut watched: Vec<(String, Server, Option<String>)> = Vec::new();
    for collector in cases::COLLECTORS {
        for (what, path) in [("top 20", cases::TOP_PATH), ("full table", cases::FULL_PATH)] {
            if let Ok(server) = Server::k2i(&programs.join("k2i"), collector) {
                let path = format!("{path}&max_age_ms=500");
                watched.push((format!("k2i `{collector}`, {what}"), server, Some(path)));
            }
        }
    }
    for (name, mut command) in cases::watchers() {
        watched.push((name, Server::plain(&mut command)?, None));
    }
    let gone = |name: &str| io::Error::other(format!("{name} ended while it was watched"));
    let ask_all = |watched: &[(String, Server, Option<String>)]| -> io::Result<()> {
        for (name, server, path) in watched {
            if let Some(path) = path {
                http::fetch(server.address, path).map_err(|error| named(name, &error))?;
            }
        }
        Ok(())
    };
    // What a start costs is not what a watch costs.
    ask_all(&watched)?;
    std::thread::sleep(Duration::from_secs(2));
    let began = Instant::now();
    let before: Vec<Duration> = watched
        .iter()
        .map(|(name, server, _)| machine::cpu_time(server.pid()).ok_or_else(|| gone(name)))
        .collect::<io::Result<_>>()?;
    let mut next = began;
    while began.elapsed() < wall_min {
        ask_all(&watched)?;
        next += Duration::from_secs(1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let wall = began.elapsed();
    let finish = |((name, server, _), before): ((String, Server, Option<String>), Duration)| {
        let cpu = machine::cpu_time(server.pid()).ok_or_else(|| gone(&name))?;
        let cpu = cpu.saturating_sub(before);
        let resident_kib = machine::resident_kib(server.pid()).ok_or_else(|| gone(&name))?;
        Ok(Watched { name, cpu, wall, resident_kib })
    };
    watched.into_iter().zip(before).map(finish).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_hold_every_case_once_and_differ() {
        let orders: Vec<Vec<usize>> = (0..20).map(|seed| shuffled(15, seed)).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..15).collect::<Vec<_>>());
            assert_eq!(orders.iter().filter(|other| *other == order).count(), 1, "{order:?}");
        }
        assert_eq!((shuffled(0, 1), shuffled(1, 1)), (vec![], vec![0]));
    }
}
