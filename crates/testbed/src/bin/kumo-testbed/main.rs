//! `kumo-testbed`: a whole cluster on one machine, for people; `kumo testbed` runs it.
//!
//! `up` owns the cluster: a process that makes the hosts, runs their nodes, and takes all away when it
//! ends. The other subcommands ask it on its socket. As an ordinary user it makes a user namespace
//! first, in which it may make networks; the machine's own are not touched either way.

mod ask;
mod exec;
mod faults;
mod keeper;
mod user;
mod world;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A cluster of several data centres on this machine: hosts are network namespaces, nodes are real
#[derive(Debug, Parser)]
#[command(name = "kumo-testbed", bin_name = "kumo testbed", version, after_help = EXAMPLES)]
struct Args {
    #[command(flatten)]
    at: world::At,
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    Up(keeper::Up),
    /// End the cluster and take everything away
    Down,
    /// Show the hosts, their nodes and the faults
    Status(ask::Status),
    Exec(exec::Exec),
    /// Let something happen to a host or a data centre
    #[command(subcommand)]
    Fault(faults::Fault),
}

const EXAMPLES: &str = "\
Examples:
  kumo testbed up                             two data centres with three hosts each, until Ctrl-C
  kumo testbed up --dcs 3 --hosts 4 --gateways 2 --procs 100 -d
                                              a larger one, in the background
  kumo testbed exec tokyo/a -- kumo ps --all  run a command on a host
  kumo testbed exec osaka/b                   a shell there
  kumo testbed fault kill osaka/b             kill -9 its node; `fault start osaka/b` starts it again
  kumo testbed fault cut osaka                pull the plug of a data centre
  kumo testbed fault heal                     make all cables whole
  kumo testbed down                           end it";

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.command {
        Subcommands::Up(up) => keeper::run(&args.at, &up),
        Subcommands::Down => ask::down(&args.at),
        Subcommands::Status(status) => ask::status(&args.at, &status),
        Subcommands::Exec(exec) => exec::run(&args.at, &exec),
        Subcommands::Fault(fault) => ask::fault(&args.at, fault),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Writes a line to standard output. Whoever reads may have gone away, as `head` does.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn say_error(error: &str) {
    let _ = writeln!(io::stderr(), "kumo-testbed: {error}");
}
