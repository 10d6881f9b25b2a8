//! `kumo sysctl`: kernel parameters of one host or of many.

mod end;
mod get;
mod log;
mod set;

use kumo_abi::HostId;
use kumo_abi::sysctl::{Change, ChangeState, Pattern};
use serde::{Deserialize, Serialize};

use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{Look, Output};
use crate::scope::Scope;
use crate::source::{NodeArgs, Source, SourceArgs};

/// Read and change kernel parameters, so that a mistake does not last
///
/// A change can be tried (--dry-run), made only where the value is the expected one (--if), and made for a
/// time: with --confirm-within the host takes it back by itself unless somebody confirms it, also when
/// whoever made it is dead, and when the node is killed and started again. All changes are in a journal.
#[derive(Clone, Debug, clap::Args)]
pub struct Sysctl {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Show parameters; of many hosts, where they differ
    #[command(after_help = GET_EXAMPLES)]
    Get(Box<Get>),
    /// Change a parameter of one host, or of many in waves: all or none
    #[command(after_help = SET_EXAMPLES)]
    Set(Box<Set>),
    /// Keep a value that waits to be confirmed
    Confirm(Box<End>),
    /// Take a change back: one that waits to be confirmed, or, by its id, one that was made before
    Rollback(Box<End>),
    /// Show the journal: who changed what, and what became of it
    Log(Box<Log>),
}

#[derive(Clone, Debug, clap::Args)]
struct Get {
    /// Names, beginnings of names, or names with * for any text: vm.swappiness, net.ipv4, `*.rp_filter`;
    /// all parameters without
    #[arg(value_name = "PATTERN")]
    patterns: Vec<Pattern>,
    /// Print values alone
    #[arg(short = 'n', long, conflicts_with = "json")]
    values: bool,
    /// Print them as one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    source: SourceArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct Set {
    /// What it is to be: vm.swappiness=10, or the name alone and then the value
    #[arg(value_name = "NAME=VALUE")]
    what: String,
    /// The value, where it does not stand behind the name
    #[arg(allow_hyphen_values = true)]
    value: Option<String>,
    /// The value of `NAME = VALUE`, as the files of sysctl(8) have it
    #[arg(allow_hyphen_values = true, hide = true)]
    behind: Option<String>,
    /// Only where this is the value now
    #[arg(long = "if", value_name = "OLD", allow_hyphen_values = true)]
    if_match: Option<String>,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take it back after this time unless it is confirmed: 30s, 5m, up to 24h. Of many hosts all are
    /// confirmed when all have it; without it that is a minute
    #[arg(long, value_name = "TIME", value_parser = kumo_abi::sysctl::parse_within)]
    confirm_within: Option<std::time::Duration>,
    /// With --confirm-within: wait until it is confirmed (Enter does it, on a terminal) or taken back
    #[arg(long, requires = "confirm_within", conflicts_with_all = ["all", "dcs", "condition"])]
    wait_for_end: bool,
    /// Change these first: a share such as 10%, a number of hosts, or several that grow (1,10%,50%)
    #[arg(long, value_name = "SHARE", help_heading = "Many hosts")]
    canary: Option<String>,
    /// Go on only while this holds on each host that has the change (CEL): the columns of --where, and
    /// load1, `memory_available_percent`, `pressure_cpu`, `pressure_io`, processes and more
    #[arg(long, value_name = "CEL", help_heading = "Many hosts")]
    check: Option<String>,
    /// Watch each wave for so long before the next: 0, 5s, 1m; 2s where there is a check
    #[arg(long, value_name = "TIME", help_heading = "Many hosts")]
    watch: Option<String>,
    /// Print it as one JSON document; of many hosts, one for each thing that happens, a line each
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    at: NodeArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct End {
    /// Which change: its id, or the name of the parameter; the one that waits, where there is but one
    #[arg(value_name = "ID|NAME")]
    which: Option<String>,
    /// Print it as one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    at: NodeArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct Log {
    /// Of these parameters only: a name, or a pattern
    #[arg(value_name = "PATTERN")]
    pattern: Option<Pattern>,
    /// The last so many changes of each host
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    /// Show which parameters the node may write instead
    #[arg(long)]
    allowed: bool,
    /// Print them as one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    at: NodeArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo sysctl get net.ipv4.tcp_rmem 'net.core.*mem*'
  kumo sysctl set vm.swappiness=10 --dry-run
  kumo sysctl set vm.swappiness=10 --confirm-within 30s
  kumo sysctl confirm
  kumo sysctl set net.core.somaxconn=8192 --all --canary 10% --check 'load1 < 8.0'
  kumo sysctl log --all

Exit status: 0 done, 1 failed, taken back or none found, 2 wrong usage, 3 some hosts are missing or
have another outcome than the others.";

const GET_EXAMPLES: &str = "\
Examples:
  kumo sysctl get vm.swappiness                 one
  kumo sysctl get net.ipv4.conf.eth0/100        all of an interface whose name is eth0.100
  kumo sysctl get -n kernel.pid_max             its value alone
  kumo sysctl get 'vm.dirty_*' --all            of all hosts: who has which value
  kumo sysctl get --json > before.json          all of this host

Those below `net` are of the node's own network namespace. Values that the kernel shows to root alone are
shown only to who may change them. Exit status: 0 shown, 1 none found, 2 wrong usage, 3 hosts are missing.";

const SET_EXAMPLES: &str = "\
Examples:
  kumo sysctl set vm.swappiness=10
  kumo sysctl set vm.swappiness 10 --if 60      only where it is 60 now
  kumo sysctl set net.ipv4.tcp_rmem='4096 131072 8388608' --dry-run
  kumo sysctl set net.ipv4.ip_forward=0 --confirm-within 30s && ping -c1 gateway && kumo sysctl confirm
  kumo sysctl set vm.swappiness=10 --where '\"rack=3\" in labels' --canary 10% \\
      --check 'pressure_memory < 5.0 && load1 < 16.0' --watch 10s --confirm-within 2m

Of many hosts all get it or none: it is tried on all first, then made in waves, and confirmed on all when
all have it and the check holds. If it fails anywhere, or this command or the node that leads it is killed,
every host takes it back. Exit status: 0 made, 1 refused or taken back, 2 wrong usage, 3 hosts differ.";

impl Sysctl {
    /// Which node is asked.
    pub fn at(&mut self) -> &mut NodeArgs {
        match &mut self.what {
            What::Get(args) => &mut args.source.at,
            What::Set(args) => &mut args.at,
            What::Confirm(args) | What::Rollback(args) => &mut args.at,
            What::Log(args) => &mut args.at,
        }
    }

    /// Where what is only read comes from, maybe without a node.
    pub fn reads(&self) -> Option<(&Scope, &SourceArgs)> {
        match &self.what {
            What::Get(args) => Some((&args.scope, &args.source)),
            _ => None,
        }
    }
}

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Sysctl, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    match &args.what {
        What::Get(args) => get::run(args, source, out),
        What::Set(args) => set::run(args, source, out),
        What::Confirm(args) => end::run(args, end::How::Confirm, source, out),
        What::Rollback(args) => end::run(args, end::How::Rollback, source, out),
        What::Log(args) => log::run(args, source, out),
    }
}

/// The journal of one host.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Journal {
    #[serde(flatten)]
    at: HostId,
    allowed: String,
    entries: Vec<Change>,
    unreadable: u64,
    unwritten: u64,
}

/// How a state looks.
fn look(state: ChangeState) -> Look {
    match state {
        ChangeState::Made | ChangeState::Confirmed => Look::Good,
        ChangeState::Pending | ChangeState::Intended | ChangeState::RolledBack => Look::Warn,
        ChangeState::Unknown | ChangeState::Overtaken => Look::Bad,
        ChangeState::NotMade | ChangeState::Gone => Look::Dim,
    }
}

/// A value for people: what is not shown is named, what is empty is seen.
fn value(value: Option<&str>) -> String {
    match value {
        None => "(not shown)".to_owned(),
        Some("") => "\"\"".to_owned(),
        Some(text) => crate::text::visible(&text.replace('\t', " ")).into_owned(),
    }
}
