//! `kumo up`: the node of this host, in the foreground.

use std::io;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use k2i::http::serve::Listen;
use k2i::options::ServeOptions;
use k2i::{AskError, Parts, Table, host};
use kumo_abi::sysctl::AllowList;
use kumo_node::{
    AccessConfig, Dirs, HISTORY_DIR, LISTEN_DEFAULT, Node, NodeConfig, Programs, Signals,
    StartError, Waited, default_dirs,
};
use tracing_subscriber::EnvFilter;

use crate::exit::Exit;
use crate::membership::Calls;
use crate::output::Output;
use crate::text;
use crate::units;

/// What `kumo up --help` ends with.
pub const EXAMPLES: &str = "\
Examples:
  kumo up                                      serve this machine on 127.0.0.1:7080
  kumo up --listen 127.0.0.1:0                 on a free port; the first line says which
  kumo up --listen 0.0.0.0:7443 --tls-cert cert.pem --tls-key key.pem
                                               serve other machines too, over HTTPS
  kumo up --state-dir /tmp/a --run-dir /tmp/a  beside another node; then: kumo ps --run-dir /tmp/a

Ctrl-C or SIGTERM stops it.";

/// Start the node of this host: its process table over HTTP, and for the other subcommands
///
/// One node runs on a state directory at a time. Whatever ends it, the next one starts.
///
/// On 127.0.0.1 every user of this machine can look, at all hosts of the cluster too, and sees command lines
/// without secrets: a node that root runs tells him executables, directories, namespaces, capabilities and
/// I/O of all processes, which the kernel shows only to those who may trace them. --anonymous never wants a
/// token of everybody, as is so on addresses that other machines reach; see `kumo rights`.
#[derive(Debug, clap::Args)]
pub struct Up {
    /// Where to listen: IP:PORT, or unix:PATH; port 0 takes a free one. On an address that other
    /// machines reach one asks with a token
    #[arg(long, value_name = "ADDRESS", default_value = LISTEN_DEFAULT)]
    listen: Listen,
    /// What must survive a restart; by default /var/lib/kumo, or ~/.local/state/kumo for users
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The socket for the other subcommands; by default /run/kumo, or `$XDG_RUNTIME_DIR/kumo` for users
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    #[command(flatten)]
    calls: Calls,
    /// Whose programs may call and serve through this node: of all users of this host, as root's node has it
    /// without this, or of its own user and root
    #[arg(long, value_name = "WHOSE", value_enum)]
    programs: Option<WhosePrograms>,
    /// How long a silent connection to another host lives, for machines that are too busy to be heard
    #[arg(long, value_name = "MS", hide = true, value_parser = clap::value_parser!(u64).range(1_000..=60_000))]
    lease_ms: Option<u64>,
    /// Kernel parameters that may be written, instead of the default list: patterns between commas, with
    /// `!` in front of what is left out (`vm.*,net,!net.core`), or none
    #[arg(long, value_name = "PATTERNS")]
    sysctl_allow: Option<AllowList>,
    #[command(flatten)]
    serve: ServeOptions,
    /// What to log on standard error: error, warn, info, debug, or a filter such as k2i=debug; warn
    /// under the live view, else info
    #[arg(long, value_name = "FILTER", value_parser = EnvFilter::from_str)]
    log: Option<EnvFilter>,
    /// Show two lines about the node and the host, each second: auto is on a terminal
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    view: ViewChoice,
}

/// When to show the live view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ViewChoice {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// Why the node does not run.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The terminal, or the signals.
    #[error("the node stops: standard output or the signals fail")]
    Io(#[from] io::Error),
}

/// Time between two states of the view.
const VIEW_PERIOD: Duration = Duration::from_secs(1);

/// How old the view's count of processes may be: it costs a scan, and a glance needs no more.
const VIEW_COUNT_AGE_MAX: Duration = Duration::from_secs(5);

/// How long a node that was told to start anew waits for what the one before it held.
const ANEW_TIME_MAX: Duration = Duration::from_secs(3);

/// Between two attempts of these.
const ANEW_PAUSE: Duration = Duration::from_millis(100);

/// How long a node that is alone stays so at least, at first and at most: each attempt to be one of its
/// cluster again ends it for a moment.
const ALONE_TIME_MIN: Duration = Duration::from_secs(2);
const ALONE_TIME_MAX: Duration = Duration::from_secs(300);

/// Between two looks whether an attempt may succeed, which cost nothing.
const TRY_TIME: Duration = Duration::from_secs(2);

/// How long to wait for the end where there is no view; then to wait again.
const WAIT: Duration = Duration::from_secs(3600);

/// Runs the node until SIGINT or SIGTERM.
///
/// # Errors
/// See [`UpError`].
pub fn run(args: &Up, out: &mut Output) -> Result<Exit, UpError> {
    let view = match args.view {
        ViewChoice::Auto => out.is_terminal(),
        ViewChoice::Always => true,
        ViewChoice::Never => false,
    };
    // Zenoh warns of every attempt that fails; our links say once a minute why.
    let level = if view { "warn" } else { "info" };
    let default_log = || EnvFilter::new(format!("{level},zenoh=off"));
    tracing_subscriber::fmt()
        .with_env_filter(args.log.clone().unwrap_or_else(default_log))
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .init();
    let signals = Signals::listen()?;
    let mut config = config(args);
    let mut started = Started { node: Node::start(&config)?, alone: None };
    let mut pause = ALONE_TIME_MIN;
    loop {
        if let (Listen::Tcp(asked), Some(address)) = (&mut config.listen, started.node.address()) {
            *asked = address; // The next one is found where this one was, also on a port that was free.
        }
        let was_alone = started.alone.is_some();
        if !was_alone {
            pause = ALONE_TIME_MIN;
        }
        if once(args, &config, started, pause, view, &signals, out)? == Waited::Stop {
            break;
        }
        if was_alone {
            pause = (pause * 2).min(ALONE_TIME_MAX);
        }
        out.line("kumo: starts anew")?;
        match anew(&config, &signals)? {
            Some(next) => started = next,
            None => break,
        }
    }
    out.line("kumo: stopped")?;
    Ok(Exit::Done)
}

/// A node that runs.
struct Started {
    node: Node,
    /// Why it takes no part in its cluster, though it should.
    alone: Option<StartError>,
}

/// Starts a node in place of one that has stopped; `None` when a signal came. Whatever is wrong with the
/// way to the others, the process table of this host stays.
fn anew(config: &NodeConfig, signals: &Signals) -> Result<Option<Started>, UpError> {
    let began = Instant::now();
    loop {
        if signals.has_come() {
            return Ok(None);
        }
        match Node::start(config) {
            Ok(node) => return Ok(Some(Started { node, alone: None })),
            Err(error) if error.may_pass() && began.elapsed() < ANEW_TIME_MAX => {
                tracing::debug!("not yet: {}", crate::chain(&error));
                thread::sleep(ANEW_PAUSE);
            }
            Err(error) => {
                let node = Node::start_alone(config)?;
                return Ok(Some(Started { node, alone: Some(error) }));
            }
        }
    }
}

/// Runs one node until it is told to stop or to reopen. One that is alone and should not be is ended to
/// be opened again after `pause`, when that may help.
fn once(
    args: &Up,
    config: &NodeConfig,
    Started { node, alone }: Started,
    pause: Duration,
    view: bool,
    signals: &Signals,
    out: &mut Output,
) -> Result<Waited, UpError> {
    node.stop_on(signals);
    let collector = collector(&node);
    let hosts = match node.cluster() {
        Some(cluster) => match node.hosts().len() {
            1 => format!("; cluster {cluster}, 1 host known"),
            hosts => format!("; cluster {cluster}, {hosts} hosts known"),
        },
        None => String::new(),
    };
    // Whoever started us with port 0 waits for this line.
    let (id, url) = (node.id(), node.url());
    out.line(format_args!("kumo: {id} serves {url} (collector {collector}{hosts})"))?;
    if let Some(error) = &alone {
        let error = crate::chain(error);
        tracing::error!("this host takes no part in its cluster: {error}");
        out.line(text::visible(&format!(
            "kumo: alone, not in its cluster, until this is over: {error}"
        )))?;
    }
    for line in first_steps(args, &node) {
        out.line(line)?;
    }
    out.flush()?;
    let began = Instant::now();
    let mut tried = began;
    let mut is_over = || {
        let is_due = alone.is_some() && began.elapsed() >= pause && tried.elapsed() >= TRY_TIME;
        if is_due {
            tried = Instant::now();
        }
        is_due && Node::may_take_part(config)
    };
    let ended = if view {
        let mut view = View { seen: host::cpu_seconds().unwrap_or_default(), shown: false };
        let ended = loop {
            match node.wait(VIEW_PERIOD) {
                Waited::Longest if is_over() => break Waited::Reopen,
                Waited::Longest => view.show(out, &node)?,
                ended => break ended,
            }
        };
        out.line("")?;
        ended
    } else {
        tracing::info!("serving {} and {}", node.url(), node.socket().display());
        let wait = if alone.is_some() { TRY_TIME } else { WAIT };
        loop {
            match node.wait(wait) {
                Waited::Longest if is_over() => break Waited::Reopen,
                Waited::Longest => {}
                ended => break ended,
            }
        }
    };
    node.stop();
    Ok(ended)
}

/// As the command line says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum WhosePrograms {
    All,
    Own,
}

impl WhosePrograms {
    fn of(self) -> Programs {
        match self {
            WhosePrograms::All => Programs::All,
            WhosePrograms::Own => Programs::Own,
        }
    }
}

fn config(args: &Up) -> NodeConfig {
    let default = default_dirs();
    let dirs = Dirs {
        state: args.state_dir.clone().unwrap_or(default.state),
        run: args.run_dir.clone().unwrap_or(default.run),
    };
    let history_dir = dirs.state.join(HISTORY_DIR);
    NodeConfig {
        dirs,
        listen: args.listen.clone(),
        tls: args.serve.tls(),
        insecure: args.serve.insecure,
        collector: args.serve.engine().collector,
        events: args.serve.events,
        history: args.serve.history.config(Some(history_dir)),
        dc: args.serve.dc.clone(),
        host: args.serve.host.clone(),
        calls: args.calls.given(),
        access: AccessConfig {
            anonymous: args.serve.anonymous,
            lines: args.serve.redact,
            users: args.serve.users(),
            socket_mode: args.serve.socket_mode,
        },
        programs: args.programs.map(WhosePrograms::of),
        lease: args.lease_ms.map(Duration::from_millis),
        sysctl: args.sysctl_allow.clone().unwrap_or_default(),
        metrics: args.serve.grouping(),
    }
}

fn collector(node: &Node) -> String {
    let chosen = node.engine().rungs().into_iter().find(|rung| rung.chosen);
    chosen.map_or_else(|| "none".to_owned(), |rung| rung.collector.clone())
}

/// What to type first.
fn first_steps(args: &Up, node: &Node) -> Vec<String> {
    let place = match &args.run_dir {
        Some(dir) => format!(" --run-dir {}", text::visible(&dir.to_string_lossy())),
        None => String::new(),
    };
    let mut lines = vec![
        "Try in another terminal:".to_owned(),
        format!("  kumo ps{place}"),
        format!("  kumo top{place}"),
    ];
    if matches!(args.listen, Listen::Tcp(_)) {
        lines.push(format!("  curl '{}/v2/proc?sort=-cpu&limit=5'", node.url()));
    }
    lines
}

/// The live view.
struct View {
    /// CPU times at its last state.
    seen: host::CpuSeconds,
    /// Whether its two lines are on the terminal.
    shown: bool,
}

impl View {
    /// Writes the two lines, over those of a second ago.
    fn show(&mut self, out: &mut Output, node: &Node) -> io::Result<()> {
        let counts = counts(node.engine().table(VIEW_COUNT_AGE_MAX, Parts::STAT));
        let now = host::cpu_seconds().unwrap_or(self.seen);
        let busy = now.busy_percent_since(&self.seen).map(|percent| format!("{percent:.0} %"));
        self.seen = now;
        let load = host::load().unwrap_or_default();
        let memory = host::read_memory().unwrap_or_default();
        let size = |bytes| units::size(bytes, units::SizeStyle::Human);
        let lines = [
            format!(
                "{counts} | CPU {} | load {:.2} {:.2} {:.2} | memory {} of {} available",
                busy.unwrap_or_else(|| "-".to_owned()),
                load.avg1,
                load.avg5,
                load.avg15,
                size(memory.available),
                size(memory.total),
            ),
            format!(
                "{} | {} requests | up {} | Ctrl-C stops",
                node.url(),
                node.requests(),
                units::span(node.uptime().as_secs_f64()),
            ),
        ];
        let width = out.size().map_or(usize::MAX, |(columns, _)| columns.saturating_sub(1));
        let [first, second] = lines.map(|line| text::visible_within(&line, width));
        // The cursor rests at the end of the second line: clear that, go up, clear that.
        let over = if self.shown { "\r\x1b[K\x1b[1A\x1b[K" } else { "" };
        self.shown = true;
        out.raw(&format!("{over}{first}\n{second}"))?;
        out.flush()
    }
}

/// How many there are. That one scan failed is no reason to end: the next may do better.
fn counts(table: Result<Arc<Table>, AskError>) -> String {
    match table {
        Ok(table) => {
            let threads: u64 = table.rows.iter().map(|row| u64::from(row.threads)).sum();
            format!("{} processes, {threads} threads", table.rows.len())
        }
        Err(error) => crate::chain(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_that_fails_shows_and_ends_nothing() {
        let source = io::Error::from(io::ErrorKind::OutOfMemory);
        let said = counts(Err(AskError::Scan { collector: "iter", source }));
        assert!(said.starts_with("cannot read the process table"), "{said}");
        assert!(said.ends_with("(out of memory)"), "{said}");
    }
}
