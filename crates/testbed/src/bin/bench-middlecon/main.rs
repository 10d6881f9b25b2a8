//! `bench-middlecon`: calls of ours beside bare ones and those of other systems, on one machine, in one run.
//!
//! Caller and callee are two processes, each on a core of its own or both on one. Rounds of all contenders
//! take turns, so that what disturbs the machine disturbs all. Every answer is compared with its question;
//! times are reported, never asserted. The other systems are in a build with the feature `peers`.

mod clock;
mod deaths;
mod pair;
mod plan;
mod results;
mod role;
mod ways;
mod world;

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kumo_testbed::bench::stats::significant;
use kumo_testbed::bench::{self, document};

use clock::Job;
use plan::{CONTENDERS, Cell, Contender, Layout, SIZES_BYTES};
use results::{Results, percentile};
use world::{Alone, Apart, Cpus, World};

/// The name of this program, its target and its markers.
const NAME: &str = "bench-middlecon";

/// Compare our calls with bare ones and with other systems
#[derive(Parser)]
#[command(subcommand_precedence_over_arg = true)]
struct Args {
    /// Rounds of each contender in each cell [default: 4]
    #[arg(long)]
    rounds: Option<usize>,
    /// Measure for so long in a round, in milliseconds [default: 120]
    #[arg(long)]
    ms: Option<u64>,
    /// Only these contenders
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<String>>,
    /// Only these sizes, in bytes: 64, 4096, 1048576
    #[arg(long, value_delimiter = ',')]
    sizes: Option<Vec<usize>>,
    /// Only these places: one, two, apart
    #[arg(long, value_delimiter = ',')]
    places: Option<Vec<String>>,
    /// Callees to kill on one host, and on another a third of that [default: 300]
    #[arg(long)]
    kills: Option<usize>,
    /// A first impression: two short rounds, few kills, nothing written
    #[arg(long)]
    quick: bool,
    /// The document to write the tables into; - writes none
    #[arg(long, default_value = "docs/BENCHMARKS.md")]
    document: PathBuf,
    /// The `kumo` to run; by default the one beside this program
    #[arg(long)]
    kumo: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// This program starts itself so.
#[derive(Subcommand)]
enum Role {
    /// Answer
    #[command(hide = true)]
    Callee(role::Where),
    /// Ask, as the standard input says
    #[command(hide = true)]
    Caller(role::Where),
    /// Be killed
    #[command(hide = true)]
    Victim(role::Where),
    /// Call who will be killed
    #[command(hide = true)]
    Mourner(role::Where),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.role {
        Some(Role::Callee(at)) => role::callee(at),
        Some(Role::Caller(at)) => role::caller(at),
        Some(Role::Victim(at)) => role::victim(at),
        Some(Role::Mourner(at)) => role::mourner(at),
        None => run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {}", kumo_testbed::chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// How much is done, and where.
struct Effort {
    rounds: usize,
    ms: u64,
    sizes_bytes: Vec<usize>,
    kills: usize,
    cpus: Cpus,
}

fn run(args: &Args) -> io::Result<()> {
    let quick = args.quick;
    let kumo = args.kumo.clone().unwrap_or_else(kumo_testbed::kumo_beside);
    kumo_testbed::check_program(&kumo).map_err(io::Error::other)?;
    let allowed = kumo_sys::cpu::allowed()?;
    let (Some(&callee), Some(&caller)) = (allowed.last(), allowed.first()) else {
        return Err(io::Error::other("this process may run on no core"));
    };
    let effort = Effort {
        rounds: args.rounds.unwrap_or(if quick { 2 } else { 4 }),
        ms: args.ms.unwrap_or(if quick { 50 } else { 120 }),
        sizes_bytes: args.sizes.clone().unwrap_or(SIZES_BYTES.to_vec()),
        kills: args.kills.unwrap_or(if quick { 10 } else { 300 }),
        cpus: Cpus { caller, callee },
    };
    let wanted = chosen(args)?;
    // Not where TMPDIR says: names of sockets have 108 bytes.
    let dir = tempfile::Builder::new().prefix("kumo-bench-").tempdir_in("/tmp")?;
    let mut text = bench::heading(NAME);
    println!("{text}");
    let mut tell = |part: &str| {
        println!("{part}");
        text += "\n";
        text += part;
    };
    let mut results = Results::default();
    let mut deaths = Vec::new();
    let is_wanted = |place: &str| {
        args.places.as_ref().is_none_or(|places| places.iter().any(|wanted| wanted == place))
    };

    let alone_dir = dir.path().join("alone");
    fs::create_dir(&alone_dir)?;
    let alone = Alone::start(&kumo, &alone_dir)?;
    let here = World::Alone(&alone);
    for (layout, name) in [(Layout::One, "one"), (Layout::Two, "two")] {
        if is_wanted(name) && (layout == Layout::One || callee != caller) {
            measure(&here, layout, &wanted, &effort, &dir.path().join(name), &mut results)?;
        }
    }
    if effort.kills > 0
        && let Some(ring) = wanted.iter().find(|contender| contender.id == "ring")
    {
        let name = "kill -9 of the callee on one host";
        let took_ms = deaths::measure(&here, ring, dir.path(), effort.cpus, effort.kills);
        mourn(name, took_ms, &mut deaths, &mut results);
    }
    drop(alone);
    if is_wanted("apart") {
        let apart_dir = dir.path().join("hosts");
        fs::create_dir(&apart_dir)?;
        match Apart::start(&kumo, &apart_dir) {
            Ok(apart) => {
                let there = World::Apart(&apart);
                let layout = Layout::Apart;
                measure(&there, layout, &wanted, &effort, &dir.path().join("apart"), &mut results)?;
                let across = wanted.iter().find(|contender| contender.id == "across");
                if effort.kills >= 3
                    && let Some(across) = across
                {
                    let name = "kill -9 of the callee on another host";
                    let times = effort.kills / 3;
                    let took_ms = deaths::measure(&there, across, dir.path(), effort.cpus, times);
                    mourn(name, took_ms, &mut deaths, &mut results);
                }
            }
            Err(error) => results
                .missing
                .push(format!("everything across hosts: {}", kumo_testbed::chain(&error))),
        }
    }

    tell(&format!(
        "{} rounds of {} ms each; medians over rounds. The fewest calls behind a row are {}.\n",
        effort.rounds,
        effort.ms,
        results.fewest_calls(),
    ));
    tell(&results.goals(&deaths));
    for (layout, name) in [(Layout::One, "one"), (Layout::Two, "two"), (Layout::Apart, "apart")] {
        if is_wanted(name) {
            tell(&results.tables(layout, &effort.sizes_bytes));
        }
    }
    tell(&told_deaths(&deaths));
    if !results.missing.is_empty() {
        let lines: Vec<String> = results.missing.iter().map(|line| format!("- {line}\n")).collect();
        tell(&format!("Not measured:\n\n{}", lines.concat()));
    }
    if !quick && args.document != Path::new("-") {
        let before = fs::read_to_string(&args.document).unwrap_or_default();
        fs::write(&args.document, document::place(&before, NAME, &text))?;
        eprintln!("{NAME}: wrote {}", args.document.display());
    }
    Ok(())
}

/// Whom we measure.
fn chosen(args: &Args) -> io::Result<Vec<&'static Contender>> {
    let Some(only) = &args.only else {
        let built = |contender: &&Contender| contender.is_built_in || cfg!(feature = "peers");
        return Ok(CONTENDERS.iter().filter(built).collect());
    };
    let find = |id: &String| {
        plan::find(id).ok_or_else(|| {
            let ids: Vec<&str> = CONTENDERS.iter().map(|contender| contender.id).collect();
            io::Error::other(format!("there is no contender `{id}`; there are {}", ids.join(", ")))
        })
    };
    only.iter().map(find).collect()
}

/// All cells of a layout, round by round.
fn measure(
    world: &World<'_>,
    layout: Layout,
    wanted: &[&'static Contender],
    effort: &Effort,
    dir: &Path,
    results: &mut Results,
) -> io::Result<()> {
    fs::create_dir(dir)?;
    let mut pairs = Vec::new();
    for contender in wanted.iter().filter(|contender| contender.layouts.contains(&layout)) {
        match world.pair(contender, layout, dir, effort.cpus) {
            Ok(pair) => pairs.push(Some(pair)),
            Err(error) => {
                eprintln!("{NAME}: {}: {error}", contender.name);
                results.miss(layout, contender, &kumo_testbed::chain(&error));
            }
        }
    }
    let cells: Vec<Cell> = plan::cells(&effort.sizes_bytes);
    for nth in 0..effort.rounds {
        for &cell in &cells {
            let Cell { size_bytes, callers, pause_us } = cell;
            // Many with much share two cores: a call of one takes longer than a round of others.
            let longer = if size_bytes * callers > 1 << 20 { 4 } else { 1 };
            let job = Job { size_bytes, callers, pause_us, ms: effort.ms * longer };
            // The other way round every second time, so that nobody always comes after the same one.
            let order: Vec<usize> = if nth % 2 == 0 {
                (0..pairs.len()).collect()
            } else {
                (0..pairs.len()).rev().collect()
            };
            for at in order {
                let Some(pair) = &mut pairs[at] else { continue };
                let contender = pair.contender;
                if !contender.takes(layout, cell) {
                    continue;
                }
                let error = match pair.round(job) {
                    Ok(round) => {
                        results.add(layout, cell, contender.id, round);
                        continue;
                    }
                    Err(error) => error,
                };
                let why = format!("{size_bytes} bytes, {callers} callers: {error}");
                eprintln!("{NAME}: {}: {why}", contender.name);
                results.miss(layout, &contender, &why);
                // Who was only too slow goes on; who is broken would cost the others their time.
                if error.to_string() != clock::NOTHING_IN_TIME {
                    pairs[at] = None;
                }
            }
        }
        eprintln!("{NAME}: {}: round {} of {}", layout.title(), nth + 1, effort.rounds);
    }
    Ok(())
}

/// What is measured of a kind of death, and of how many milliseconds.
type Deaths = Vec<(&'static str, Vec<f64>)>;

/// Keeps what was measured, or why it was not: the tables before it are of use without it.
fn mourn(
    name: &'static str,
    took_ms: io::Result<Vec<f64>>,
    deaths: &mut Deaths,
    results: &mut Results,
) {
    match took_ms {
        Ok(took_ms) => deaths.push((name, took_ms)),
        Err(error) => results.missing.push(format!("{name}: {}", kumo_testbed::chain(&error))),
    }
}

fn told_deaths(deaths: &Deaths) -> String {
    let mut text =
        "| from the signal to the caller's outcome, ms | times | p50 | p99 | max |\n".to_owned();
    text += "|---|---:|---:|---:|---:|\n";
    for (name, took_ms) in deaths {
        let at = |percent| percentile(took_ms, percent).map_or_else(String::new, significant);
        let [half, most, last] = [50, 99, 100].map(at);
        let _ = writeln!(text, "| {name} | {} | {half} | {most} | {last} |", took_ms.len());
    }
    text
}
