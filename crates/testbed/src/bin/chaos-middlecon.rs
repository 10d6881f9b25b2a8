//! `chaos-middlecon`: calls under fire, and whether what their callers were told is true. See
//! [`kumo_testbed::chaos`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use kumo_testbed::chaos::{self, world};
use kumo_testbed::{check_program, kumo_beside, net};

/// Call while clients, servers and nodes are killed, frozen and cut off; compare with the servers' ledgers
#[derive(Parser)]
struct Args {
    /// Go on until so many calls have had a reply
    #[arg(long, default_value_t = 1_000_000)]
    replies: u64,
    /// And for so many seconds
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// Which story [default: another each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Keep what was written, in this empty directory with a short name
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The `kumo` to run; by default the one beside this program
    #[arg(long)]
    kumo: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// Serve or call, as it is told; this program starts itself so
    #[command(hide = true)]
    Play { role: String, orders: String },
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Role::Play { role, orders }) = &args.role {
        return match chaos::play(role, orders) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string()),
        };
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&kumo_testbed::chain(&*error)),
    }
}

fn fail(error: &str) -> ExitCode {
    eprintln!("chaos-middlecon: {error}");
    ExitCode::from(2)
}

/// Whether all promises were kept.
fn run(args: &Args) -> Result<bool, Box<dyn std::error::Error>> {
    if let Some(why) = net::unavailable() {
        return Err(format!("no network can be made here: {why}").into());
    }
    let kumo = args.kumo.clone().unwrap_or_else(kumo_beside);
    check_program(&kumo)?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = args.seed.unwrap_or(since.as_millis() as u64);
    // Not where TMPDIR says: names of sockets have 108 bytes.
    let own = tempfile::Builder::new().prefix("kumo-").tempdir_in("/tmp")?;
    let options = world::Options {
        seed,
        replies: args.replies,
        lasts: Duration::from_secs(args.seconds),
        kumo,
        program: std::env::current_exe()?,
        dir: args.dir.clone().unwrap_or_else(|| own.path().to_owned()),
    };
    println!("seed {seed}");
    let report = world::run(options, &mut |line| println!("{line}"))?;
    println!("{report}");
    Ok(report.broken().is_empty())
}
