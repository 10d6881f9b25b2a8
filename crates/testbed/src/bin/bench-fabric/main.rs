//! `bench-fabric`: questions to hundreds of hosts, how soon a death is seen, and what an idle host costs.
//!
//! Gateways are the built `kumo up`; most hosts are simulated, in one process a data centre (see
//! [`kumo_testbed::swarm`]). Everything shares the cores of this machine, the asker included, so times
//! are above those of as many machines. Every answer is checked; times are reported, never asserted.

mod ask;
mod direct;
mod lives;
mod questions;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Parser, Subcommand};
use kumo_testbed::bench::{self, document};
use kumo_testbed::swarm::{DcPlan, World, worker};

/// The name of this program, its target and its markers.
const NAME: &str = "bench-fabric";

/// Above so many hosts, all on this machine, silent connections live for [`CROWD_LEASE`]: each host that
/// comes is told to all, and a few cores are too slow for the square of a thousand within a usual lease.
/// Who dies in such a world is seen by its kernel.
const PROMPT_HOSTS_MAX: usize = 400;

/// See [`PROMPT_HOSTS_MAX`].
const CROWD_LEASE: Duration = Duration::from_secs(20);

/// The data centres of every world here.
const DCS: [&str; 3] = ["tokyo", "osaka", "nagoya"];

/// Ask hundreds of simulated hosts, and see them die
#[derive(Parser)]
struct Args {
    /// Numbers of hosts that are asked, one cluster each [default: 200,1000]
    #[arg(long, value_delimiter = ',')]
    hosts: Option<Vec<usize>>,
    /// Hosts of the cluster in which hosts are killed, join and idle [default: 100]
    #[arg(long)]
    idle_hosts: Option<usize>,
    /// Processes on each host
    #[arg(long, default_value_t = 300)]
    processes: usize,
    /// How often each question is asked [default: 20]
    #[arg(long)]
    rounds: Option<usize>,
    /// Look at an idle cluster for this many seconds [default: 30]
    #[arg(long)]
    idle_s: Option<u64>,
    /// Wait so long for hosts where some are missing, in milliseconds; `kumo top` waits 2000
    #[arg(long, default_value_t = 2_000)]
    wait_ms: u64,
    /// A first impression: 20 hosts, few rounds, nothing written
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

#[derive(Clone, Copy, Subcommand)]
enum Role {
    /// Hold hosts, as the standard input says; this program starts itself so
    #[command(hide = true)]
    Swarm,
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
struct Effort {
    processes: usize,
    /// Of each question.
    rounds: usize,
    /// Of each kind of death.
    deaths: usize,
    /// Of joining, and of deaths that need more than one node anew.
    few: usize,
    idle_s: u64,
    /// How long hosts are waited for where some are missing.
    wait_ms: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = if let Some(Role::Swarm) = args.role { worker::run() } else { run(&args) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {}", kumo_testbed::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<()> {
    let quick = args.quick;
    let effort = Effort {
        processes: args.processes,
        rounds: args.rounds.unwrap_or(if quick { 3 } else { 20 }),
        deaths: if quick { 2 } else { 20 },
        few: if quick { 1 } else { 10 },
        idle_s: args.idle_s.unwrap_or(if quick { 2 } else { 30 }),
        wait_ms: args.wait_ms,
    };
    let kumo = args.kumo.clone().unwrap_or_else(kumo_testbed::kumo_beside);
    kumo_testbed::check_program(&kumo).map_err(io::Error::other)?;
    let asked = args.hosts.clone().unwrap_or(if quick { vec![20] } else { vec![200, 1_000] });
    let idle_hosts = args.idle_hosts.unwrap_or(if quick { 10 } else { 100 });
    let mut text = bench::heading(NAME);
    println!("{text}");
    let mut tell = |part: String| {
        println!("{part}");
        text += "\n";
        text += &part;
    };
    for hosts in asked {
        // The baseline asks each host over HTTP: a listener each, which is simple for a few hundred.
        let mut world = start(hosts, [1, 1, 1], hosts <= 200, effort, &kumo)?;
        tell(questions::measure(&mut world, hosts, effort)?);
    }
    let mut world = start(idle_hosts, [2, 1, 1], false, effort, &kumo)?;
    tell(lives::measure(&mut world, effort, &kumo)?);
    if !quick && args.document != Path::new("-") {
        let before = fs::read_to_string(&args.document).unwrap_or_default();
        fs::write(&args.document, document::place(&before, NAME, &text))?;
        eprintln!("{NAME}: wrote {}", args.document.display());
    }
    Ok(())
}

/// A world of `hosts` simulated hosts, as even as it goes.
fn start(
    hosts: usize,
    gateways: [usize; 3],
    http: bool,
    effort: Effort,
    kumo: &Path,
) -> io::Result<World> {
    eprintln!("{NAME}: starting {hosts} hosts");
    let plan = (0..DCS.len()).map(|index| {
        Ok(DcPlan {
            name: DCS[index].parse().map_err(io::Error::other)?,
            gateways: gateways[index],
            hosts: (hosts + index) / DCS.len(),
        })
    });
    let plan: Vec<DcPlan> = plan.collect::<io::Result<_>>()?;
    let myself = std::env::current_exe()?;
    let worker = || {
        let mut command = Command::new(&myself);
        command.arg("swarm");
        command
    };
    let lease = (hosts > PROMPT_HOSTS_MAX).then_some(CROWD_LEASE);
    let began = std::time::Instant::now();
    let world = World::start(&plan, effort.processes, http, lease, kumo, &worker)?;
    let took = began.elapsed().as_secs_f64();
    eprintln!("{NAME}: {} hosts see each other, {took:.1} s later", world.size());
    Ok(world)
}
