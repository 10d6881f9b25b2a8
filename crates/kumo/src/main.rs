//! `kumo`: the one command of Kumonosu. `kumo up` is the node; the others ask one, or this host.
//!
//! Each subcommand is a file: its arguments, then `run`. Here they are put together, and here alone
//! errors are printed and become exit codes.

// `pub` in a command means: for the other files. Flags are what a command line is made of.
#![allow(unreachable_pub, clippy::struct_excessive_bools)]

use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{ColorChoice, Output};
use crate::scope::Scope;
use crate::source::{NodeArgs, Reading, Source, SourceArgs};

mod acl;
mod answer;
mod blocked;
mod ca;
mod call;
mod callee;
mod cel;
mod completions;
mod doctor;
mod error;
mod evict;
mod exit;
mod forest;
mod gather;
mod grid;
mod host;
mod hosts;
mod init;
mod join;
mod json;
mod kill;
mod leave;
mod listing;
mod lsof;
mod many;
mod map;
mod membership;
mod oci_hook;
mod orphans;
mod outcome;
mod output;
mod pgrep;
mod ping;
mod ps;
mod pulse;
mod react;
mod rights;
mod scope;
mod serve;
mod services;
mod shown;
mod sockets;
mod source;
mod sql;
mod stop;
mod sysctl;
mod table;
mod testbed;
mod text;
mod token;
mod top;
mod trace;
mod units;
mod up;
mod watch;
mod when;
mod why;

/// Kumonosu: a thin operating-system layer over many small data centres
///
/// `kumo up` starts the node of this host; every other subcommand asks it. Where no node runs they
/// read this host directly, so `kumo ps` works at once and without rights.
#[derive(clap::Parser)]
#[command(name = "kumo", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = EXAMPLES)]
struct Cli {
    /// When to use colour: auto (on a terminal, unless `NO_COLOR` is set), always or never
    #[arg(long, global = true, value_name = "WHEN", default_value_t, value_enum)]
    #[arg(hide_default_value = true, hide_possible_values = true, help_heading = EVERYWHERE)]
    color: ColorChoice,
    /// Say where answers come from
    #[arg(short, long, global = true, help_heading = EVERYWHERE)]
    verbose: bool,
    /// Which node, for the subcommands that ask one; what stands behind the subcommand goes first.
    #[command(flatten)]
    at: NodeArgs,
    #[command(subcommand)]
    command: Command,
}

/// Heading of the options that every subcommand has.
const EVERYWHERE: &str = "Everywhere";

const EXAMPLES: &str = "\
Examples:
  kumo ps --sort -cpu -n 10     the ten busiest processes
  kumo top                      the same, live
  kumo watch                    processes that begin and end, as it happens
  kumo sockets --listen         who listens where; kumo lsof 4711: its open files
  kumo doctor                   what this kernel offers
  kumo up                       start the node: the same over HTTP, and faster
  kumo hosts                    the hosts of the cluster; kumo map shows their links
  kumo ps --all --sort -cpu     the processes of all of them
  kumo call greeter hello       call a service; kumo serve makes one of any command

Every subcommand has examples: kumo ps --help";

#[derive(clap::Subcommand)]
enum Command {
    #[command(after_help = up::EXAMPLES)]
    Up(Box<up::Up>),
    #[command(after_help = ps::EXAMPLES)]
    Ps(Box<ps::Ps>),
    #[command(after_help = top::EXAMPLES)]
    Top(Box<top::Top>),
    #[command(after_help = watch::EXAMPLES)]
    Watch(watch::Watch),
    #[command(after_help = pgrep::EXAMPLES)]
    Pgrep(Box<pgrep::Pgrep>),
    #[command(after_help = sockets::EXAMPLES)]
    Sockets(Box<sockets::Sockets>),
    #[command(after_help = lsof::EXAMPLES)]
    Lsof(Box<lsof::Lsof>),
    #[command(after_help = kill::EXAMPLES)]
    Kill(kill::Kill),
    #[command(after_help = sql::EXAMPLES)]
    Sql(Box<sql::Sql>),
    #[command(after_help = host::EXAMPLES)]
    Host(host::Host),
    #[command(after_help = hosts::EXAMPLES)]
    Hosts(hosts::Hosts),
    #[command(after_help = map::EXAMPLES)]
    Map(map::Map),
    #[command(after_help = call::EXAMPLES)]
    Call(Box<call::Call>),
    #[command(after_help = serve::EXAMPLES)]
    Serve(Box<serve::Serve>),
    #[command(after_help = gather::EXAMPLES)]
    Gather(Box<gather::Gather>),
    #[command(after_help = pulse::EXAMPLES)]
    Pulse(Box<pulse::Pulse>),
    #[command(after_help = ping::EXAMPLES)]
    Ping(ping::Ping),
    #[command(after_help = why::EXAMPLES)]
    Why(why::Why),
    #[command(after_help = services::EXAMPLES)]
    Services(services::Services),
    #[command(after_help = blocked::EXAMPLES)]
    Blocked(blocked::Blocked),
    #[command(after_help = trace::EXAMPLES)]
    Trace(trace::Trace),
    #[command(after_help = acl::EXAMPLES)]
    Acl(Box<acl::Acl>),
    #[command(after_help = react::EXAMPLES)]
    React(Box<react::React>),
    #[command(after_help = sysctl::EXAMPLES)]
    Sysctl(Box<sysctl::Sysctl>),
    #[command(after_help = rights::EXAMPLES)]
    Rights(Box<rights::Rights>),
    #[command(after_help = oci_hook::EXAMPLES)]
    OciHook(Box<oci_hook::OciHook>),
    /// End what a killed `kumo serve` left running; it starts this itself
    #[command(name = orphans::SUBCOMMAND, hide = true)]
    EndOrphans,
    #[command(after_help = init::EXAMPLES)]
    Init(Box<init::Init>),
    #[command(after_help = token::EXAMPLES)]
    Token(token::Token),
    #[command(after_help = join::EXAMPLES)]
    Join(Box<join::Join>),
    #[command(after_help = leave::EXAMPLES)]
    Leave(leave::Leave),
    #[command(after_help = evict::EXAMPLES)]
    Evict(evict::Evict),
    #[command(after_help = ca::EXAMPLES)]
    Ca(ca::Ca),
    #[command(after_help = testbed::EXAMPLES)]
    Testbed(testbed::Testbed),
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::Doctor),
    #[command(after_help = completions::EXAMPLES)]
    Completions(completions::Completions),
}

impl Cli {
    /// Which node is asked, wherever the command line says it: `kumo --token-file FILE ps` is what
    /// `kumo ps --token-file FILE` is. From here on both places say it.
    fn settle(&mut self) -> Result<(), CommandError> {
        let Some(at) = self.command.at() else {
            if self.at.is_empty() {
                return Ok(());
            }
            let what = "--node, --run-dir, --token-file and --redact in front of the subcommand are for those \
                        that ask a node by its address; see whether this one has such an option behind it";
            return Err(CommandError::Usage(what.to_owned()));
        };
        at.add(&self.at);
        self.at.clone_from(at);
        Ok(())
    }
}

impl Command {
    /// Which node is asked, where one is asked by its address.
    fn at(&mut self) -> Option<&mut NodeArgs> {
        Some(match self {
            Command::Ps(args) => &mut args.source.at,
            Command::Top(args) => &mut args.source.at,
            Command::Watch(args) => &mut args.at,
            Command::Pgrep(args) => &mut args.source.at,
            Command::Sockets(args) => &mut args.listing.source.at,
            Command::Lsof(args) => &mut args.listing.source.at,
            Command::Kill(args) => &mut args.at,
            Command::Sql(args) => &mut args.source.at,
            Command::Host(args) => &mut args.source.at,
            Command::Hosts(args) => &mut args.at,
            Command::Map(args) => &mut args.at,
            Command::Services(args) => &mut args.at,
            Command::Blocked(args) => &mut args.at,
            Command::Trace(args) => &mut args.at,
            Command::Acl(args) => &mut args.at,
            Command::React(args) => args.at(),
            Command::Sysctl(args) => args.at(),
            Command::Rights(args) => args.at(),
            Command::Token(args) => &mut args.at,
            Command::Evict(args) => &mut args.at,
            // Of this host alone, by its directories.
            Command::Up(_)
            | Command::Call(_)
            | Command::Serve(_)
            | Command::Gather(_)
            | Command::Pulse(_)
            | Command::Ping(_)
            | Command::Why(_)
            | Command::OciHook(_)
            | Command::EndOrphans
            | Command::Init(_)
            | Command::Join(_)
            | Command::Leave(_)
            | Command::Ca(_)
            | Command::Testbed(_)
            | Command::Doctor(_)
            | Command::Completions(_) => return None,
        })
    }
}

fn main() -> ExitCode {
    kumo_sys::memory::share_areas();
    let mut cli = Cli::parse_from(kill::rewrite(std::env::args_os()));
    let mut out = Output::stdout(cli.color);
    let result = cli.settle().and_then(|()| run(&cli, &mut out)).and_then(|exit| {
        out.flush()?;
        Ok(exit)
    });
    match result {
        Ok(exit) => exit.into(),
        Err(error) if error.is_broken_pipe() => Exit::Done.into(),
        Err(error) => {
            // What was written before belongs in front of it; that it may fail too adds nothing.
            out.flush().ok();
            print(&error);
            error.exit().into()
        }
    }
}

fn run(cli: &Cli, out: &mut Output) -> Result<Exit, CommandError> {
    match &cli.command {
        Command::Ps(args) if ps::lists_columns(args) => ps::list_columns(out),
        Command::Ps(args) => {
            let source = open(cli, &args.scope, &args.source, ps::reading(args), out)?;
            ps::run(args, &source, out)
        }
        Command::Top(args) => {
            let source = open(cli, &args.scope, &args.source, Reading::Again, out)?;
            top::run(args, source, out)
        }
        Command::Pgrep(args) => {
            let source = open(cli, &args.scope, &args.source, Reading::Once, out)?;
            pgrep::run(args, &source, out)
        }
        Command::Sql(args) if sql::lists_tables(args) => sql::list_tables(args, out),
        Command::Sql(args) => {
            let source = open(cli, &args.scope, &args.source, Reading::Once, out)?;
            sql::run(args, &source, out)
        }
        Command::Sockets(args) if args.listing.list_columns => sockets::list_columns(out),
        Command::Sockets(args) => {
            let listing = &args.listing;
            let source = open(cli, &listing.scope, &listing.source, Reading::Once, out)?;
            sockets::run(args, &source, out)
        }
        Command::Lsof(args) if args.listing.list_columns => lsof::list_columns(out),
        Command::Lsof(args) if !lsof::is_here(args) => {
            lsof::run(args, &open_node(cli, &args.listing.source.at, out)?, out)
        }
        Command::Lsof(args) => {
            let listing = &args.listing;
            let source = open(cli, &listing.scope, &listing.source, Reading::Once, out)?;
            lsof::run(args, &source, out)
        }
        Command::Watch(args) => watch::run(args, &open_node(cli, &args.at, out)?, out),
        Command::Kill(args) => kill::run(args, out),
        Command::Host(args) if args.which.is_some() => {
            host::run(args, &open_node(cli, &args.source.at, out)?, out)
        }
        // It tells which collector a node would take.
        Command::Host(args) => {
            let source = open(cli, &args.scope, &args.source, Reading::Again, out)?;
            host::run(args, &source, out)
        }
        Command::Hosts(args) => hosts::run(args, &open_node(cli, &args.at, out)?, out),
        Command::Map(args) => map::run(args, &open_node(cli, &args.at, out)?, out),
        Command::Call(args) => call::run(args, out),
        Command::Serve(args) => serve::run(args, out),
        Command::EndOrphans => Ok(orphans::run()),
        Command::Gather(args) => gather::run(args, out),
        Command::Pulse(args) => pulse::run(args, out),
        Command::Ping(args) => ping::run(args, out),
        Command::Why(args) => why::run(args, out),
        Command::Services(args) => services::run(args, &open_node(cli, &args.at, out)?, out),
        Command::Blocked(args) => blocked::run(args, &open_node(cli, &args.at, out)?, out),
        Command::Trace(args) => trace::run(args, &open_node(cli, &args.at, out)?, out),
        Command::Acl(args) => acl::run(args, &open_node(cli, &args.at, out)?, out),
        Command::React(args) => react::run(args, &open_node(cli, &cli.at, out)?, out),
        Command::Sysctl(args) => {
            let source = match args.reads() {
                Some((scope, source)) => open(cli, scope, source, Reading::Once, out)?,
                None => open_node(cli, &cli.at, out)?,
            };
            sysctl::run(args, &source, out)
        }
        Command::Rights(args) => rights::run(args, &|out| open_node(cli, &cli.at, out), out),
        Command::OciHook(args) => oci_hook::run(args, out),
        Command::Init(args) => init::run(args, out),
        Command::Token(args) => token::run(args, &open_node(cli, &args.at, out)?, out),
        Command::Join(args) => join::run(args, out),
        Command::Leave(args) => leave::run(args, out),
        Command::Evict(args) => evict::run(args, &open_node(cli, &args.at, out)?, out),
        Command::Ca(args) => ca::run(args, out),
        Command::Testbed(args) => testbed::run(args),
        Command::Up(args) => Ok(up::run(args, out)?),
        Command::Doctor(args) => doctor::run(args, out),
        Command::Completions(args) => completions::run(*args, &mut Cli::command(), out),
    }
}

/// Where answers come from that only a node has.
fn open_node(cli: &Cli, args: &NodeArgs, out: &mut Output) -> Result<Source, CommandError> {
    let (source, said) = Source::open_node(args)?;
    if cli.verbose {
        out.warn(said);
    }
    Ok(source)
}

/// Where answers come from, of this host or of many.
fn open(
    cli: &Cli,
    scope: &Scope,
    args: &SourceArgs,
    reading: Reading,
    out: &mut Output,
) -> Result<Source, CommandError> {
    let (source, said) = scope.open(args, reading)?;
    if cli.verbose {
        out.warn(said);
    }
    Ok(source)
}

/// Prints an error, and below it what caused it. That standard error fails is told to nobody.
fn print(error: &CommandError) {
    let mut lines = causes(error).into_iter();
    let first = lines.next().unwrap_or_default();
    let mut stderr = io::stderr().lock();
    writeln!(stderr, "kumo: {}", text::visible(&first)).ok();
    for line in lines {
        writeln!(stderr, "  because: {}", text::visible(&line)).ok();
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn Error) -> String {
    let causes = causes(error);
    match causes.split_first() {
        Some((said, [])) => said.clone(),
        Some((said, causes)) => format!("{said} ({})", causes.join(": ")),
        None => String::new(),
    }
}

/// What an error and each of its sources say, but for what was said before.
fn causes(error: &dyn Error) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        // Some of the libraries' own errors repeat their source.
        if !causes.iter().any(|before| before.contains(&said)) {
            causes.push(said);
        }
        source = cause.source();
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn which_node_is_said_in_front_of_the_subcommand_or_behind_it() {
        let settled = |line: &str| {
            let mut cli = Cli::parse_from(line.split(' '));
            cli.settle()?;
            Ok::<_, CommandError>(cli.command.at().cloned().unwrap_or_default())
        };
        let shown = |line: &str| settled(line).map(|at| format!("{at:?}")).map_err(|_| ());
        let cases = [
            ("kumo --node http://a:1 ps", "kumo ps --node http://a:1"),
            (
                "kumo --run-dir /a --redact rights token list",
                "kumo rights token list --run-dir /a --redact",
            ),
            ("kumo --token-file t react list", "kumo react list --token-file t"),
            (
                "kumo --token-file t sysctl log --run-dir /a",
                "kumo sysctl log --run-dir /a --token-file t",
            ),
            // What is nearer to the subcommand is meant.
            ("kumo --node http://a:1 kill 1 --run-dir /b", "kumo kill 1 --run-dir /b"),
            ("kumo --token-file t rights --token-file u", "kumo rights --token-file u"),
        ];
        for (front, behind) in cases {
            assert_eq!(shown(front), shown(behind), "for {front:?}");
            assert!(shown(front).is_ok(), "for {front:?}");
        }
        for line in ["kumo --node http://a:1 up", "kumo --token-file t doctor"] {
            let error = settled(line).expect_err("nobody is asked");
            assert_eq!(error.exit(), Exit::Usage, "for {line:?}");
        }
    }

    #[test]
    fn causes_are_told_once() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let node = source::NodeAddress::Http("a:1".to_owned());
        let error = source::SourceError::Unreachable { node, source: refused };
        let error = CommandError::from(error);
        let causes = causes(&error);
        assert_eq!(causes.len(), 2, "{causes:?}");
        assert!(causes[0].contains("http://a:1"));
        assert_eq!(causes[1], "connection refused");
        assert!(chain(&error).ends_with(" (connection refused)"));
    }
}
