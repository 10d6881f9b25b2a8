//! Where answers come from: the node of this host, a node that was named, or this host directly.
//!
//! A node has a warm table and may have more rights than we; without one the same engine runs in
//! this process, so the answers are the same. When the user named a node, nothing else will do. Each
//! request is a connection of its own, so that a node may restart between two of them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use k2i::history::HistoryReport;
use k2i::host::{HostError, HostReport};
use k2i::http::REDACT;
use k2i::sql::SqlError;
use k2i::{
    AskError, CollectorChoice, CollectorKind, Engine, EngineConfig, Format, OpenError, Question,
};
use kumo_abi::proc::{COLUMNS_DEFAULT, PROC};
use kumo_abi::rights::Lines;
use kumo_abi::{Problem, Query, QueryError, QueryText, Row, Rows};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

/// A node on this host answers at once, one across the world within a few round trips.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// A scan of a hundred thousand processes by the slowest collector fits; a node that hangs does not.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(30);

/// Largest answer that is held in memory; ten thousand processes with long command lines are a tenth
/// of it. What is only passed on has no limit.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// The boot of this machine, which no other has.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Largest error document that is read.
const PROBLEM_BYTES_MAX: usize = 64 * 1024;

/// How long nothing comes before a [`Sink`] is told so: a person sees ten steps a second as motion.
pub const IDLE_TIME: Duration = Duration::from_millis(100);

/// Requests that are on their way to a node at once: enough to hide the way to far data centres, and
/// fewer than a node serves.
const ASKED_AT_ONCE_MAX: usize = 16;

/// A node's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeAddress {
    /// Its socket on this host.
    Unix(PathBuf),
    /// `host:port`, reached by HTTP.
    Http(String),
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            NodeAddress::Http(authority) => write!(f, "http://{authority}"),
        }
    }
}

/// The text is no address of a node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither form.
    #[error("`{0}` is no node; write unix:PATH or http://HOST:PORT")]
    Form(String),
    /// Not spoken yet.
    #[error(
        "kumo does not speak HTTPS to a node yet; on its own host ask its socket, unix:PATH; from \
         elsewhere run `ssh -L 7080:/run/kumo/api.sock HOST` and ask http://127.0.0.1:7080"
    )]
    Https,
}

impl FromStr for NodeAddress {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<NodeAddress, AddressError> {
        let wrong = || AddressError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(wrong()) } else { Ok(NodeAddress::Unix(path.into())) };
        }
        if text.starts_with("https://") {
            return Err(AddressError::Https);
        }
        let authority = text.strip_prefix("http://").ok_or_else(wrong)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let parsed: Authority = authority.parse().map_err(|_| wrong())?;
        let port = authority.strip_prefix(parsed.host()).ok_or_else(wrong)?;
        match (parsed.host(), port, parsed.port_u16()) {
            ("", ..) => Err(wrong()),
            // Without a port it is that of HTTP.
            (host, "", None) => Ok(NodeAddress::Http(format!("{host}:80"))),
            (_, _, Some(_)) => Ok(NodeAddress::Http(authority.to_owned())),
            _ => Err(wrong()),
        }
    }
}

/// Why there is no answer. Nothing that asks changes anything, so a retry is safe.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No connection.
    #[error("cannot reach the node at `{node}`; {}", how_to_reach(source))]
    Unreachable {
        /// The node.
        node: NodeAddress,
        /// What the system said.
        source: io::Error,
    },
    /// It accepted, then said nothing for too long.
    #[error(
        "the node at `{node}` was silent for {} s; its log may say why{}",
        .after.as_secs(), without_it(node)
    )]
    Silent {
        /// The node.
        node: NodeAddress,
        /// How long it was waited for.
        after: Duration,
    },
    /// The conversation broke.
    #[error("the node at `{node}` broke off its answer; try again")]
    Broken {
        /// The node.
        node: NodeAddress,
        /// Where.
        source: hyper::Error,
    },
    /// It said what is wrong.
    #[error("{}{}", .0.detail, as_whom(.0))]
    Refused(Problem),
    /// What was asked takes a node, and none runs here.
    #[error(
        "this takes a node, and none runs on this host ({0}); start it with `kumo up`, or name one with \
         --node or --run-dir"
    )]
    NoNode(String),
    /// Whatever listens there, it is no node of ours.
    #[error("what answers at `{node}` is no Kumonosu node (or one of another version): {what}")]
    Foreign {
        /// The node.
        node: NodeAddress,
        /// What it did.
        what: String,
    },
    /// The question is wrong.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// This host cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// This host cannot be read.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// This host cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A query in SQL.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// Our own answer does not read back: a bug of ours.
    #[error("the answer cannot be read back; please report this")]
    Parse(#[source] serde_json::Error),
    /// Who asks cannot be said.
    #[error("cannot read the token in {}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No runtime to talk to a node with.
    #[error("cannot begin to talk to a node")]
    Runtime(#[source] io::Error),
    /// What was answered could not be passed on.
    #[error("cannot write the answer")]
    Output(#[source] io::Error),
}

/// How this command says who asks, for a node that wants to know.
fn as_whom(problem: &Problem) -> &'static str {
    match problem.status {
        401 => "; here with --token-file FILE or in KUMO_TOKEN",
        _ => "",
    }
}

/// What to do about a node that cannot be reached. Whether it runs is not known where its socket is closed
/// to who asks.
fn how_to_reach(why: &io::Error) -> &'static str {
    if is_closed_to_us(why) {
        "you may not open its socket: ask as root or as the user who runs it, or let its `kumo up` have \
         --socket-mode 0666"
    } else {
        "is it running there? `kumo up` starts one"
    }
}

/// Whether the system did not let us through, rather than there being nobody.
fn is_closed_to_us(why: &io::Error) -> bool {
    why.raw_os_error().is_some_and(|code| {
        [Errno::ACCESS.raw_os_error(), Errno::PERM.raw_os_error()].contains(&code)
    })
}

/// How to do without a node that hangs; nothing when only it can tell.
fn without_it(node: &NodeAddress) -> &'static str {
    match node {
        NodeAddress::Unix(_) => "; `--collector proc` reads this host without it",
        NodeAddress::Http(_) => "",
    }
}

impl SourceError {
    /// Whether the question was wrong, rather than the source.
    pub fn is_usage(&self) -> bool {
        match self {
            SourceError::Query(_) => true,
            SourceError::Sql(error) => error.is_usage(),
            SourceError::Refused(problem) => problem.status == 400,
            _ => false,
        }
    }
}

/// Which node to ask, as the command line says it.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Where answers come from")]
pub struct NodeArgs {
    /// Ask this node and nothing else: unix:PATH or http://HOST:PORT. Without it: the node of this
    /// host
    #[arg(long, value_name = "ADDRESS")]
    pub node: Option<NodeAddress>,
    /// Ask the node that was started with this run directory and nothing else
    #[arg(long, value_name = "DIR", conflicts_with = "node")]
    pub run_dir: Option<PathBuf>,
    /// Say who asks by the token in this file; without it http://… is asked with that in `KUMO_TOKEN`, if
    /// it is set
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Leave secrets out of command lines, or all arguments (strip), though you may see them
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "secrets")]
    pub redact: Option<Redact>,
}

/// What of command lines is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Redact {
    /// Secrets
    Secrets,
    /// All arguments
    Strip,
}

/// How a node is asked: by whom, and with how much of command lines.
#[derive(Clone, Default)]
pub struct Manner {
    token: Option<String>,
    lines: Lines,
}

impl fmt::Debug for Manner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manner").field("lines", &self.lines).finish_non_exhaustive()
    }
}

/// Largest file with a token that is read: a token has some hundred bytes.
const TOKEN_FILE_BYTES_MAX: u64 = 4_096;

/// Where to look for answers, as the command line says it.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Where answers come from")]
pub struct SourceArgs {
    /// Which node.
    #[command(flatten)]
    pub at: NodeArgs,
    /// Read this host directly with this collector, as without a node: auto, iter.s, iter or proc
    #[arg(long, value_name = "NAME", conflicts_with_all = ["node", "run_dir"])]
    pub collector: Option<CollectorChoice>,
}

impl NodeArgs {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        let NodeArgs { node, run_dir, token_file, redact } = self;
        node.is_none() && run_dir.is_none() && token_file.is_none() && redact.is_none()
    }

    /// Takes from `more` what it does not say itself.
    pub fn add(&mut self, more: &NodeArgs) {
        if self.node.is_none() && self.run_dir.is_none() {
            (self.node, self.run_dir) = (more.node.clone(), more.run_dir.clone());
        }
        self.token_file = self.token_file.take().or_else(|| more.token_file.clone());
        self.redact = self.redact.or(more.redact);
    }

    /// How the node is asked that is found.
    fn manner(&self, address: Option<&NodeAddress>) -> Result<Manner, SourceError> {
        let lines = match self.redact {
            None => Lines::Whole,
            Some(Redact::Secrets) => Lines::Redacted,
            Some(Redact::Strip) => Lines::Stripped,
        };
        let token = match &self.token_file {
            Some(path) => Some(read_token(path)?),
            // On a socket of this host the kernel says who asks.
            None if matches!(address, Some(NodeAddress::Http(_))) => {
                std::env::var("KUMO_TOKEN").ok().filter(|token| !token.is_empty())
            }
            None => None,
        };
        Ok(Manner { token, lines })
    }

    fn named(&self) -> Option<NodeAddress> {
        let of_dir = |dir: &PathBuf| NodeAddress::Unix(kumo_node::socket_path(dir));
        self.node.clone().or_else(|| self.run_dir.as_ref().map(of_dir))
    }
}

fn read_token(path: &Path) -> Result<String, SourceError> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        File::open(path)?.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text)?;
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it holds no token"));
        }
        Ok(token.to_owned())
    };
    read().map_err(|source| SourceError::Token { path: path.to_owned(), source })
}

/// How often an answer is wanted, which decides how this host is read where no node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Once: by `/proc`. The kernel takes a third of a second to check and load the BPF programs,
    /// and in that time `/proc` is read several times over.
    Once,
    /// Again and again: by the best collector, which is soon worth its start.
    Again,
}

impl Reading {
    fn collector(self) -> CollectorChoice {
        match self {
            Reading::Once => CollectorChoice::Only(CollectorKind::Proc),
            Reading::Again => CollectorChoice::Auto,
        }
    }
}

/// Whom to believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Whoever listens at an address that the user named.
    Named,
    /// Root and ourselves, at a socket that was found: where all may write, anybody could put one
    /// that lies.
    Found,
}

impl Trust {
    /// Looks at who listens at the other end, on each connection anew: a look at the path would be
    /// one at another moment.
    fn check(self, stream: &UnixStream) -> io::Result<()> {
        let is_trusted = |user: u32| user == 0 || user == rustix::process::geteuid().as_raw();
        if self == Trust::Named || is_trusted(stream.peer_cred()?.uid()) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "who listens there is another user"))
    }
}

/// Where answers come from. One call at a time is best: each blocks until its answer is there.
#[derive(Debug)]
pub enum Source {
    /// A node.
    Node {
        /// Its address.
        address: NodeAddress,
        /// Whether the user trusts it.
        trust: Trust,
        /// By whom it is asked.
        manner: Manner,
        /// Drives one request at a time.
        runtime: Runtime,
    },
    /// This host, read in this process, and how command lines are shown.
    Direct(Arc<Engine>, Lines),
}

impl Source {
    /// Finds the source: what was named, else the node of this host if one answers, else this host
    /// itself. The text says what was found when it was not named, for those who want to know.
    ///
    /// # Errors
    /// What was named does not answer, or this host cannot be read.
    pub fn open(options: &SourceArgs, reading: Reading) -> Result<(Source, String), SourceError> {
        let lines = options.at.manner(None)?.lines;
        if let Some(choice) = options.collector {
            return Ok((Source::direct(choice, lines)?, "reading this host directly".to_owned()));
        }
        match Source::find_node(&options.at)? {
            Ok(found) => Ok(found),
            Err(passed_over) => {
                let passed_over = in_words(&passed_over);
                let said = format!("no node ({passed_over}); reading this host directly");
                Ok((Source::direct(reading.collector(), lines)?, said))
            }
        }
    }

    /// The node that was named, else the one of this host; what only nodes know is asked of it.
    ///
    /// # Errors
    /// None was named and none runs here, or the system has no resources left.
    pub fn open_node(options: &NodeArgs) -> Result<(Source, String), SourceError> {
        Source::find_node(options)?.map_err(|passed_over| {
            // One that is there and closed to us is the one that was meant.
            let closed = passed_over.iter().position(|(_, why)| is_closed_to_us(why));
            let mut passed_over = passed_over;
            match closed.map(|index| passed_over.swap_remove(index)) {
                Some((node, source)) => SourceError::Unreachable { node, source },
                None => SourceError::NoNode(in_words(&passed_over)),
            }
        })
    }

    /// The node that was named or that runs here; else where it was looked for.
    fn find_node(
        options: &NodeArgs,
    ) -> Result<Result<(Source, String), Vec<PassedOver>>, SourceError> {
        if let Some(address) = options.named() {
            let said = format!("asking the node at {address}");
            let manner = options.manner(Some(&address))?;
            return Ok(Ok((Source::node_as(address, Trust::Named, manner)?, said)));
        }
        let mut passed_over = Vec::new();
        for path in usual_sockets() {
            let address = NodeAddress::Unix(path);
            let manner = options.manner(Some(&address))?;
            let source = Source::node_as(address.clone(), Trust::Found, manner)?;
            match source.reach() {
                Ok(()) => return Ok(Ok((source, format!("asking the node at {address}")))),
                Err(SourceError::Unreachable { source, .. }) => {
                    passed_over.push((address, source));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Err(passed_over))
    }

    /// This host, read in this process.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn direct(collector: CollectorChoice, lines: Lines) -> Result<Source, SourceError> {
        let host = k2i::host::host_name();
        let config = EngineConfig { collector, dc: kumo_node::DC_DEFAULT.to_owned(), host };
        Ok(Source::Direct(Arc::new(Engine::open(config)?), lines))
    }

    /// The node at `address`; it is not asked anything yet.
    ///
    /// # Errors
    /// The system has no resources left.
    pub fn node(address: NodeAddress, trust: Trust) -> Result<Source, SourceError> {
        Source::node_as(address, trust, Manner::default())
    }

    fn node_as(address: NodeAddress, trust: Trust, manner: Manner) -> Result<Source, SourceError> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = runtime.map_err(SourceError::Runtime)?;
        Ok(Source::Node { address, trust, manner, runtime })
    }

    /// Another way to the same node, for another thread; nothing where this host is read directly.
    ///
    /// # Errors
    /// The system has no resources left.
    pub fn another(&self) -> Result<Option<Source>, SourceError> {
        match self {
            Source::Node { address, trust, manner, .. } => {
                Ok(Some(Source::node_as(address.clone(), *trust, manner.clone())?))
            }
            Source::Direct(..) => Ok(None),
        }
    }

    /// Whether the kernel that it tells of is the one that runs us, also where it is reached by HTTP.
    pub fn is_this_kernel(&self) -> bool {
        let there = || self.host().ok().map(|host| host.boot.boot_id);
        let here = || std::fs::read_to_string(BOOT_ID).ok();
        self.is_this_host()
            || here().zip(there()).is_some_and(|(here, there)| here.trim() == there.trim())
    }

    /// Whether the processes it tells of are those of this host, so that they can be signalled.
    pub fn is_this_host(&self) -> bool {
        !matches!(self, Source::Node { address: NodeAddress::Http(_), .. })
    }

    /// Rows of the process table. Blocks for one scan.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn proc(&self, text: &QueryText) -> Result<Rows, SourceError> {
        self.proc_within(text, Duration::ZERO)
    }

    /// As [`Source::proc`], from a scan that began at most `age_max` ago, so that several questions
    /// about one moment cost one scan.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn proc_within(&self, text: &QueryText, age_max: Duration) -> Result<Rows, SourceError> {
        let mut answer = Bounded { bytes: Vec::new() };
        self.write_proc(text, Format::Json, age_max, &mut answer)?;
        serde_json::from_slice(&answer.bytes).map_err(|error| self.unreadable(error))
    }

    /// Writes the same as JSON once all of it is there, and returns the rows that it holds.
    ///
    /// # Errors
    /// See [`SourceError`]. Nothing has been written then, but when writing itself failed.
    pub fn proc_to_and_rows(
        &self,
        text: &QueryText,
        format: Format,
        out: &mut dyn Write,
    ) -> Result<Vec<Row>, SourceError> {
        let mut answer = Bounded { bytes: Vec::new() };
        self.write_proc(text, format, Duration::ZERO, &mut answer)?;
        let rows = match format {
            Format::Json => serde_json::from_slice(&answer.bytes).map(|answer: Rows| answer.rows),
            Format::NdJson => {
                serde_json::Deserializer::from_slice(&answer.bytes).into_iter().collect()
            }
        };
        let rows = rows.map_err(|error| self.unreadable(error))?;
        out.write_all(&answer.bytes).map_err(SourceError::Output)?;
        Ok(rows)
    }

    /// Writes the same as JSON, as it arrives.
    ///
    /// # Errors
    /// See [`SourceError`]. A part may have been written.
    pub fn proc_to(
        &self,
        text: &QueryText,
        format: Format,
        out: &mut dyn Write,
    ) -> Result<(), SourceError> {
        self.write_proc(text, format, Duration::ZERO, out)
    }

    fn write_proc(
        &self,
        text: &QueryText,
        format: Format,
        age_max: Duration,
        out: &mut dyn Write,
    ) -> Result<(), SourceError> {
        match self {
            Source::Node { .. } => {
                let accept = match format {
                    Format::Json => "application/json",
                    Format::NdJson => "application/x-ndjson",
                };
                let path = format!("/v2/proc?{}", proc_parameters(text, age_max));
                self.fetch(&Ask { accept, ..Ask::get(path) }, &mut { out })
            }
            Source::Direct(engine, lines) => {
                let query = Query::parse(text, &PROC, COLUMNS_DEFAULT)?;
                let question = Question { query, pids: None, max_age: age_max, lines: *lines };
                let mut answer = engine.ask(question)?;
                let mut piece = Vec::new();
                loop {
                    piece.clear();
                    let more = answer.write_next(format, &mut piece);
                    out.write_all(&piece).map_err(SourceError::Output)?;
                    if !more {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whether a node is asked; this host is read directly otherwise.
    pub fn is_node(&self) -> bool {
        matches!(self, Source::Node { .. })
    }

    /// What the host says about itself.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn host(&self) -> Result<HostReport, SourceError> {
        match self {
            Source::Node { .. } => self.json(&Ask::get("/v2/host".to_owned())),
            Source::Direct(engine, _) => Ok(HostReport::read(engine)?),
        }
    }

    /// The answer of a node to `ask`, as it is.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn bytes(&self, ask: &Ask) -> Result<Vec<u8>, SourceError> {
        let mut answer = Bounded { bytes: Vec::new() };
        self.fetch(ask, &mut answer)?;
        Ok(answer.bytes)
    }

    /// How far back the history of a host reaches, and of when each record is.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn history(&self) -> Result<HistoryReport, SourceError> {
        match self {
            Source::Node { .. } => self.json(&Ask::get("/v2/history?moments=1".to_owned())),
            Source::Direct(engine, _) => Ok(engine.history_of_all()),
        }
    }

    /// The answer of a node to `ask`, read as JSON.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn json<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, SourceError> {
        serde_json::from_slice(&self.bytes(ask)?).map_err(|error| self.unreadable(error))
    }

    /// Gives the answer of a node to `ask` to `sink` as it comes.
    ///
    /// # Errors
    /// See [`SourceError`]. A part may have been given.
    pub fn fetch(&self, ask: &Ask, sink: &mut dyn Sink) -> Result<(), SourceError> {
        match self {
            Source::Node { address, trust, manner, runtime } => {
                runtime.block_on(fetch(address, *trust, manner, ask, sink))
            }
            Source::Direct(..) => Err(SourceError::NoNode("it is read directly".to_owned())),
        }
    }

    /// Asks a node many things, some at once, and says of each what became of it as soon as that is
    /// known, by its index.
    pub fn each(&self, asks: Vec<Ask>, mut done: impl FnMut(usize, Result<Vec<u8>, SourceError>)) {
        let Source::Node { address, trust, manner, runtime } = self else {
            for index in 0..asks.len() {
                done(index, Err(SourceError::NoNode("it is read directly".to_owned())));
            }
            return;
        };
        let (node, trust, manner) = (address.clone(), *trust, manner.clone());
        LocalSet::new().block_on(runtime, async {
            let mut asks = asks.into_iter().enumerate();
            let mut running = JoinSet::new();
            loop {
                while running.len() < ASKED_AT_ONCE_MAX {
                    let Some((index, ask)) = asks.next() else { break };
                    let (node, manner) = (node.clone(), manner.clone());
                    running.spawn_local(async move {
                        let mut answer = Bounded { bytes: Vec::new() };
                        let result = fetch(&node, trust, &manner, &ask, &mut answer).await;
                        (index, result.map(|()| answer.bytes))
                    });
                }
                match running.join_next().await {
                    None => return,
                    Some(Ok((index, result))) => done(index, result),
                    Some(Err(error)) => {
                        if error.is_panic() {
                            std::panic::resume_unwind(error.into_panic());
                        }
                    }
                }
            }
        });
    }

    /// Connects and hangs up.
    fn reach(&self) -> Result<(), SourceError> {
        match self {
            Source::Node { address, trust, runtime, .. } => {
                runtime.block_on(connect(address, *trust)).map(drop)
            }
            Source::Direct(..) => Ok(()),
        }
    }

    /// The error of an answer that cannot be read.
    pub fn unreadable(&self, error: serde_json::Error) -> SourceError {
        match self {
            Source::Node { .. } => self.foreign(&error.to_string()),
            Source::Direct(..) => SourceError::Parse(error),
        }
    }

    /// The error of a node that answers as ours do not.
    pub fn foreign(&self, what: &str) -> SourceError {
        let what = what.to_owned();
        match self {
            Source::Node { address, .. } => SourceError::Foreign { node: address.clone(), what },
            Source::Direct(..) => SourceError::NoNode("it is read directly".to_owned()),
        }
    }
}

/// Where a node was looked for, and what the system said.
type PassedOver = (NodeAddress, io::Error);

fn in_words(passed_over: &[PassedOver]) -> String {
    let each: Vec<_> = passed_over.iter().map(|(node, why)| format!("{node}: {why}")).collect();
    each.join(", ")
}

/// Where a node of this host listens when nobody said where: our own, then the system's.
fn usual_sockets() -> Vec<PathBuf> {
    let own = kumo_node::default_dirs().run;
    let system = PathBuf::from(kumo_node::SYSTEM_RUN_DIR);
    let mut dirs = vec![own];
    if !dirs.contains(&system) {
        dirs.push(system);
    }
    dirs.iter().map(|dir| kumo_node::socket_path(dir)).collect()
}

/// The parameters of a question. Most answers are to be of now: a scan takes milliseconds, and
/// whoever started something wants to see it.
pub fn proc_parameters(text: &QueryText, age_max: Duration) -> String {
    let mut parameters = format!("max_age_ms={}", age_max.as_millis());
    let parts = [
        ("columns", &text.columns),
        ("filter", &text.filter),
        ("sort", &text.sort),
        ("limit", &text.limit),
        ("group", &text.group),
        ("at", &text.at),
    ];
    for (name, value) in parts {
        if let Some(value) = value {
            push_parameter(&mut parameters, name, value);
        }
    }
    if text.ended {
        push_parameter(&mut parameters, "ended", "1");
    }
    parameters
}

/// Adds a parameter to others.
pub fn push_parameter(parameters: &mut String, name: &str, value: &str) {
    if !parameters.is_empty() {
        parameters.push('&');
    }
    parameters.push_str(name);
    parameters.push('=');
    push_escaped(parameters, value);
}

/// Adds a text to a path, or to a parameter, as it stands there.
pub fn push_escaped(path: &mut String, value: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~,".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push('%');
            path.push(char::from(HEX[usize::from(byte >> 4)]));
            path.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// Refuses an answer of so many bytes if that is more than is held in memory.
///
/// # Errors
/// It is.
pub fn bounded(len_bytes: usize) -> io::Result<()> {
    if len_bytes > ANSWER_BYTES_MAX {
        let what = format!("the answer is over {ANSWER_BYTES_MAX} bytes; ask for fewer rows");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(())
}

/// Memory up to [`ANSWER_BYTES_MAX`].
struct Bounded {
    bytes: Vec<u8>,
}

impl Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        bounded(self.bytes.len() + piece.len())?;
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a node is asked.
#[derive(Clone, Debug)]
pub struct Ask {
    /// How.
    pub method: Method,
    /// Path and parameters.
    pub path: String,
    /// The form of the answer.
    pub accept: &'static str,
    /// A document in JSON that goes with it.
    pub body: Vec<u8>,
    /// The node is given up when it says nothing for so long; never without.
    pub silence_max: Option<Duration>,
}

impl Ask {
    /// A question that changes nothing.
    pub fn get(path: String) -> Ask {
        let silence_max = Some(SILENCE_TIME_MAX);
        Ask { method: Method::GET, path, accept: "application/json", body: Vec::new(), silence_max }
    }

    /// A request that changes something, with `document` as its body.
    pub fn post(path: String, document: &serde_json::Value) -> Ask {
        let body = document.to_string().into_bytes();
        Ask { method: Method::POST, body, ..Ask::get(path) }
    }

    /// The same of a node that may itself wait so long for others.
    #[must_use]
    pub fn that_waits(self, wait: Duration) -> Ask {
        Ask { silence_max: Some(wait + SILENCE_TIME_MAX), ..self }
    }
}

/// Takes an answer as it comes.
pub trait Sink {
    /// The next piece.
    ///
    /// # Errors
    /// It cannot be taken; the rest is not asked for.
    fn take(&mut self, piece: &[u8]) -> io::Result<()>;

    /// Nothing has come since the last piece, or since the question, for `waited`. Called about every
    /// [`IDLE_TIME`].
    ///
    /// # Errors
    /// As [`Sink::take`].
    fn idle(&mut self, _waited: Duration) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Sink for W {
    fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        self.write_all(piece)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn connect(node: &NodeAddress, trust: Trust) -> Result<Box<dyn Stream>, SourceError> {
    let connecting = async {
        Ok(match node {
            NodeAddress::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                trust.check(&stream)?;
                Box::new(stream) as Box<dyn Stream>
            }
            NodeAddress::Http(authority) => Box::new(TcpStream::connect(authority).await?),
        })
    };
    let result: io::Result<_> = match timeout(CONNECT_TIME_MAX, connecting).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    result.map_err(|source| SourceError::Unreachable { node: node.clone(), source })
}

async fn fetch(
    node: &NodeAddress,
    trust: Trust,
    manner: &Manner,
    ask: &Ask,
    sink: &mut dyn Sink,
) -> Result<(), SourceError> {
    let broken = |source| SourceError::Broken { node: node.clone(), source };
    let silent = |_| SourceError::Silent { node: node.clone(), after: SILENCE_TIME_MAX };
    let stream = TokioIo::new(connect(node, trust).await?);
    let shaking = timeout(SILENCE_TIME_MAX, hyper::client::conn::http1::handshake(stream)).await;
    let (mut sender, connection) = shaking.map_err(silent)?.map_err(broken)?;
    // What breaks it is told to whoever waits for the answer.
    tokio::spawn(async move { drop(connection.await) });
    let host = match node {
        NodeAddress::Unix(_) => "localhost",
        NodeAddress::Http(authority) => authority,
    };
    let mut request = Request::builder().method(&ask.method).uri(&ask.path);
    request = request.header(HOST, host).header(ACCEPT, ask.accept);
    if let Some(token) = &manner.token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    if manner.lines != Lines::Whole {
        request = request.header(REDACT, manner.lines.name());
    }
    if !ask.body.is_empty() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let body = Full::new(Bytes::from(ask.body.clone()));
    let request = request.body(body).map_err(|error| SourceError::Foreign {
        node: node.clone(),
        what: format!("it cannot be asked for {}: {error}", ask.path),
    })?;
    let mut sending = std::pin::pin!(sender.send_request(request));
    let mut response = patiently(node, ask, sink, sending.as_mut()).await?.map_err(broken)?;
    if !response.status().is_success() {
        return Err(refusal(node, response).await);
    }
    loop {
        let frame = patiently(node, ask, sink, std::pin::pin!(response.body_mut().frame())).await?;
        let Some(frame) = frame else { return Ok(()) };
        if let Some(piece) = frame.map_err(broken)?.data_ref() {
            sink.take(piece).map_err(SourceError::Output)?;
        }
    }
}

/// Waits for `what` as long as the question allows, and tells `sink` while nothing comes.
async fn patiently<T>(
    node: &NodeAddress,
    ask: &Ask,
    sink: &mut dyn Sink,
    mut what: std::pin::Pin<&mut impl Future<Output = T>>,
) -> Result<T, SourceError> {
    let began = Instant::now();
    loop {
        if let Ok(done) = timeout(IDLE_TIME, what.as_mut()).await {
            return Ok(done);
        }
        let waited = began.elapsed();
        if let Some(after) = ask.silence_max.filter(|max| waited >= *max) {
            return Err(SourceError::Silent { node: node.clone(), after });
        }
        sink.idle(waited).map_err(SourceError::Output)?;
    }
}

/// What a node says when it does not answer with 200.
async fn refusal(node: &NodeAddress, mut response: Response<Incoming>) -> SourceError {
    let mut body = Vec::new();
    while let Ok(Some(Ok(frame))) = timeout(CONNECT_TIME_MAX, response.body_mut().frame()).await {
        body.extend_from_slice(frame.data_ref().map_or(&[][..], |piece| piece));
        if body.len() > PROBLEM_BYTES_MAX {
            break;
        }
    }
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => SourceError::Refused(problem),
        Err(_) => SourceError::Foreign {
            node: node.clone(),
            what: format!("it answers with status {}", response.status()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let unix = |path: &str| Ok(NodeAddress::Unix(path.into()));
        let http = |authority: &str| Ok(NodeAddress::Http(authority.to_owned()));
        let form = |text: &str| Err(AddressError::Form(text.to_owned()));
        let cases = [
            ("unix:/run/kumo/api.sock", unix("/run/kumo/api.sock")),
            ("unix:///run/kumo/api.sock", unix("/run/kumo/api.sock")),
            ("http://127.0.0.1:7080", http("127.0.0.1:7080")),
            ("http://[::1]:7080/", http("[::1]:7080")),
            ("http://web-1", http("web-1:80")),
            ("https://web-1:7080", Err(AddressError::Https)),
            ("unix:", form("unix:")),
            ("http://", form("http://")),
            ("http://:80", form("http://:80")),
            ("http://a:99999", form("http://a:99999")),
            ("http://a:80/v2", form("http://a:80/v2")),
            ("http://me@a:80", form("http://me@a:80")),
            ("web-1:80", form("web-1:80")),
            ("", form("")),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse(), want, "for {text:?}");
        }
    }

    #[test]
    fn a_hanging_node_of_this_host_can_be_done_without() {
        let said =
            |node: NodeAddress| SourceError::Silent { node, after: SILENCE_TIME_MAX }.to_string();
        let here = said(NodeAddress::Unix("/run/kumo/api.sock".into()));
        assert!(here.contains("silent for 30 s") && here.contains("--collector proc"), "{here}");
        let there = said(NodeAddress::Http("web-1:7080".to_owned()));
        assert!(!there.contains("--collector"), "{there}");
    }

    #[test]
    fn questions_are_escaped() {
        let text = QueryText {
            columns: Some("+exe,sum(rss)".to_owned()),
            filter: Some("cpu > 5.0 && user == \"é\"".to_owned()),
            sort: None,
            limit: Some("3".to_owned()),
            group: None,
            ended: true,
            at: None,
        };
        let want = "max_age_ms=0&columns=%2Bexe,sum%28rss%29\
                    &filter=cpu%20%3E%205.0%20%26%26%20user%20%3D%3D%20%22%C3%A9%22&limit=3&ended=1";
        assert_eq!(proc_parameters(&text, Duration::ZERO), want);
    }
}
