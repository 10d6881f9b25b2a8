//! What the subcommands share that change which cluster this host is in.
//!
//! They write the files of the node, whether it runs or not; one that runs is told to start anew.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use kumo_abi::{HostId, HostName, NameError};
use kumo_fabric::identity::{
    FABRIC_PORT_DEFAULT, GATEWAY_ADDRESSES_MAX, Identity, IdentityError, check_address, label,
};
use kumo_fabric::join::JoinError;
use kumo_fabric::peer::CALL_PORT_DEFAULT;
use kumo_fabric::pki::AuthorityError;
use kumo_fabric::sealed::SealedError;
use kumo_fabric::token::ADDRESSES_MAX;
use kumo_node::{CallPort, Dirs, default_dirs, socket_path};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;
use serde_json::json;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::many::Cluster;
use crate::output::Output;
use crate::source::{Ask, NodeAddress, Source, SourceError, Trust};
use crate::text;

/// Why this host's membership was not changed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// Its files.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It was not let in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The authority.
    #[error("cannot make an authority")]
    Authority(#[from] AuthorityError),
    /// An exported authority.
    #[error("{}: {source}", path.display())]
    Sealed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SealedError,
    },
    /// A file that was named.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something that is so.
    #[error("{0}")]
    Refused(String),
    /// The terminal, or the system's interfaces.
    #[error("cannot {what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl MembershipError {
    /// Whether the arguments were wrong, rather than the world.
    pub fn is_usage(&self) -> bool {
        matches!(self, MembershipError::Join(error) if error.is_usage())
    }
}

/// Which node's files.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Which node")]
pub struct Place {
    /// The state directory of the node, as `kumo up` was or will be given it
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The run directory of the node, as `kumo up` was or will be given it
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
}

impl Place {
    /// Both directories.
    pub fn dirs(&self) -> Dirs {
        let default = default_dirs();
        Dirs {
            state: self.state_dir.clone().unwrap_or(default.state),
            run: self.run_dir.clone().unwrap_or(default.run),
        }
    }

    /// Where the identity is.
    pub fn fabric_dir(&self) -> PathBuf {
        self.dirs().state.join("fabric")
    }

    /// The options that lead back here.
    pub fn options(&self) -> String {
        let option = |name: &str, dir: &Option<PathBuf>| {
            let dir = dir.as_ref().map(|dir| dir.to_string_lossy().into_owned());
            dir.map(|dir| format!(" {name} {}", text::visible(&dir))).unwrap_or_default()
        };
        option("--state-dir", &self.state_dir) + &option("--run-dir", &self.run_dir)
    }

    /// The option that commands need to find the node.
    pub fn run_option(&self) -> String {
        Place { state_dir: None, run_dir: self.run_dir.clone() }.options()
    }

    /// The node of these directories, to ask; it may not run.
    ///
    /// # Errors
    /// The system has no resources left.
    pub fn node(&self) -> Result<Source, SourceError> {
        let trust = if self.run_dir.is_some() { Trust::Named } else { Trust::Found };
        Source::node(NodeAddress::Unix(socket_path(&self.dirs().run)), trust)
    }

    /// What the node that runs here says it is; `None` where none runs.
    ///
    /// # Errors
    /// One is there and does not answer, or the system has no resources left.
    pub fn running(&self) -> Result<Option<Running>, SourceError> {
        // The node at the usual socket is one of another state directory.
        if self.state_dir.is_some() && self.run_dir.is_none() {
            return Ok(None);
        }
        match Cluster::ask(&self.node()?) {
            Ok(cluster) => Ok(Some(Running::of(cluster))),
            Err(SourceError::Unreachable { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tells the node that its files have changed, if one runs, and waits until it is what they say:
    /// `identity`, or a node without a cluster.
    ///
    /// # Errors
    /// The system has no resources left. What the node says is told to the user: the files are good.
    pub fn reopen(
        &self,
        identity: Option<&Identity>,
        out: &mut Output,
    ) -> Result<Reopened, CommandError> {
        if self.state_dir.is_some() && self.run_dir.is_none() {
            return Ok(Reopened::NoNode);
        }
        let node = self.node()?;
        let before = Cluster::ask(&node).ok().map(Running::of);
        let ask = Ask::post("/v2/cluster/reopen".to_owned(), &json!({}));
        match node.fetch(&ask, &mut io::sink()) {
            Ok(()) => {}
            Err(SourceError::Unreachable { .. }) => return Ok(Reopened::NoNode),
            Err(SourceError::Refused(problem)) if problem.status == 404 => {
                out.warn("the node that runs here is older than this command; restart it");
                return Ok(Reopened::Failed);
            }
            Err(error) => {
                let error = crate::chain(&error);
                out.warn(format_args!(
                    "restart the node, it does not start anew by itself: {error}"
                ));
                return Ok(Reopened::Failed);
            }
        }
        let began = Instant::now();
        let mut progress = Progress::new();
        let mut said = "it has not even stopped".to_owned();
        while began.elapsed() < REOPEN_TIME_MAX {
            progress.say("the node starts anew …");
            match Cluster::ask(&node).map(Running::of) {
                Ok(now) if before.as_ref().is_some_and(|before| now.is_start_of(before)) => {}
                Ok(now) if now.is(identity) => return Ok(Reopened::Yes),
                Ok(now) => {
                    said = format!("it serves as {now}");
                    break;
                }
                Err(error) => said = crate::chain(&error),
            }
            thread::sleep(REOPEN_PAUSE);
        }
        drop(progress);
        out.warn(format_args!(
            "the files are written, and the node did not start anew with them; its log says why ({said})"
        ));
        Ok(Reopened::Failed)
    }
}

/// Longest wait for a node that starts anew: it lets connections finish for five seconds, and waits for
/// what the one before it held.
const REOPEN_TIME_MAX: Duration = Duration::from_secs(20);

/// Between two looks.
const REOPEN_PAUSE: Duration = Duration::from_millis(50);

/// What became of a node that was to start anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reopened {
    /// It serves as what its files say.
    Yes,
    /// None runs: `kumo up` is next.
    NoNode,
    /// It does not; the user has been told.
    Failed,
}

impl Reopened {
    /// How the command ends.
    pub fn exit(self) -> Exit {
        if self == Reopened::Failed { Exit::Failed } else { Exit::Done }
    }
}

/// A node as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    cluster: Option<String>,
    host: HostId,
    /// Which of its starts it is in.
    start: Option<u64>,
}

impl Running {
    fn of(cluster: Cluster) -> Running {
        let Cluster { cluster, asked, hosts, .. } = cluster;
        let own = hosts.iter().find(|host| host.id == asked);
        let start = own.and_then(|host| host.incarnation);
        Running { cluster, host: asked, start }
    }

    /// Whether it has not started anew since it was `before`.
    fn is_start_of(&self, before: &Running) -> bool {
        self.start.is_some() && (self.start, &self.host) == (before.start, &before.host)
    }

    /// Whether it is what `identity` says; without one, a node without a cluster.
    pub fn is(&self, identity: Option<&Identity>) -> bool {
        match identity {
            None => self.cluster.is_none(),
            Some(Identity { cluster, host, .. }) => {
                self.cluster.as_deref() == Some(cluster.as_str()) && self.host == *host
            }
        }
    }
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Running { cluster, host, .. } = self;
        match cluster {
            Some(cluster) => write!(f, "{host} of the cluster `{}`", text::visible(cluster)),
            None => write!(f, "{host} without a cluster"),
        }
    }
}

/// Refuses a port for other hosts that this one cannot have, before anything is written.
///
/// # Errors
/// What the system says of it.
pub fn check_listen(listen: SocketAddr) -> Result<(), MembershipError> {
    kumo_node::check_free(listen).map_err(|error| {
        MembershipError::Refused(format!(
            "cannot listen for other hosts on {listen} ({error}); choose another address with --listen"
        ))
    })
}

/// Where a gateway listens, and what is said about a host.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct About {
    /// Where this gateway listens for other hosts [default: 0.0.0.0:7081]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where others reach this gateway, the best address first; by default the addresses of this
    /// host's interfaces
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    pub advertise: Vec<String>,
    #[command(flatten)]
    pub calls: Calls,
    /// Say something about this host, to choose hosts by: rack=3
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub label: Vec<(String, String)>,
}

fn address(text: &str) -> Result<String, kumo_fabric::identity::AddressError> {
    check_address(text).map(|()| text.to_owned())
}

impl About {
    /// The labels, each key once.
    ///
    /// # Errors
    /// Too many.
    pub fn labels(&self) -> Result<BTreeMap<String, String>, CommandError> {
        const MAX: usize = kumo_fabric::identity::LABELS_MAX;
        let labels: BTreeMap<_, _> = self.label.iter().cloned().collect();
        if labels.len() > MAX {
            return Err(CommandError::Usage(format!("a host has at most {MAX} labels")));
        }
        Ok(labels)
    }

    /// Where the gateway listens, and where others reach it.
    ///
    /// # Errors
    /// No address was given and none is found, or a port that others could not know.
    pub fn addresses(&self) -> Result<(SocketAddr, Vec<String>), CommandError> {
        let anywhere = SocketAddr::from(([0, 0, 0, 0], FABRIC_PORT_DEFAULT));
        let listen = self.listen.unwrap_or(anywhere);
        if listen.port() == 0 {
            let said = "others must know the port of a gateway; give --listen one that is not 0";
            return Err(CommandError::Usage(said.to_owned()));
        }
        let mut advertise = self.advertise.clone();
        if advertise.is_empty() {
            advertise = reached_at(listen, &interface_addresses()?);
        }
        if advertise.is_empty() {
            let said =
                "this host has no address that others could reach; give one with --advertise";
            return Err(CommandError::Usage(said.to_owned()));
        }
        advertise.truncate(ADDRESSES_MAX);
        Ok((listen, advertise))
    }
}

/// Where a host listens for calls.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Calls {
    /// Where this host listens for calls of programs on other hosts, or none: then they come through
    /// gateways [default: 0.0.0.0:7082]
    #[arg(long, value_name = "IP:PORT|none")]
    call_listen: Option<CallListen>,
    /// Where others reach this host for calls, the best address first; by default the addresses of its
    /// interfaces
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    call_advertise: Vec<String>,
}

/// Where to listen for calls, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CallListen(Option<SocketAddr>);

impl FromStr for CallListen {
    type Err = String;
    fn from_str(text: &str) -> Result<CallListen, String> {
        if text == "none" {
            return Ok(CallListen(None));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => {
                Err("others must know the port; give one that is not 0".to_owned())
            }
            Ok(address) => Ok(CallListen(Some(address))),
            Err(_) => Err("write an address and a port, as in 192.0.2.7:7082, or none".to_owned()),
        }
    }
}

impl Calls {
    /// Where the host listens for calls, and where others reach it. That they cannot stops nobody: calls
    /// come through gateways then.
    pub fn port(&self) -> CallPort {
        let anywhere = SocketAddr::from(([0, 0, 0, 0], CALL_PORT_DEFAULT));
        let Some(listen) = self.call_listen.unwrap_or(CallListen(Some(anywhere))).0 else {
            return CallPort { listen: None, advertise: Vec::new() };
        };
        let mut advertise = self.call_advertise.clone();
        if advertise.is_empty() {
            advertise = reached_at(listen, &interface_addresses().unwrap_or_default());
        }
        advertise.truncate(GATEWAY_ADDRESSES_MAX);
        CallPort { listen: Some(listen), advertise }
    }

    /// The same, if anything was said about it.
    pub fn given(&self) -> Option<CallPort> {
        (self.call_listen.is_some() || !self.call_advertise.is_empty()).then(|| self.port())
    }
}

/// Where others reach who listens at `listen`, on a host with these addresses.
fn reached_at(listen: SocketAddr, addresses: &[IpAddr]) -> Vec<String> {
    if !listen.ip().is_unspecified() {
        return vec![listen.to_string()];
    }
    let global = |ip: &&IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        // `::` takes both kinds.
        IpAddr::V6(ip) => listen.is_ipv6() && !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    let at = |ip: &IpAddr| SocketAddr::new(*ip, listen.port()).to_string();
    addresses.iter().filter(global).map(at).collect()
}

/// The addresses of the interfaces that are up, in the kernel's order.
fn interface_addresses() -> Result<Vec<IpAddr>, MembershipError> {
    let failed = |errno: nix::errno::Errno| MembershipError::System {
        what: "read the addresses of this host; give one with --advertise",
        source: errno.into(),
    };
    let running = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
    let up = |flags: InterfaceFlags| {
        flags.contains(running) && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
    };
    let ip = |address: SockaddrStorage| match (address.as_sockaddr_in(), address.as_sockaddr_in6())
    {
        (Some(address), _) => Some(IpAddr::V4(address.ip())),
        (_, Some(address)) => Some(IpAddr::V6(address.ip())),
        _ => None,
    };
    let found = getifaddrs().map_err(failed)?.filter(|interface| up(interface.flags));
    Ok(found.filter_map(|interface| ip(interface.address?)).collect())
}

/// The name of this host: what was given, else the kernel's if it is one.
///
/// # Errors
/// It is none.
pub fn host_name(given: Option<&HostName>) -> Result<HostName, CommandError> {
    if let Some(name) = given {
        return Ok(name.clone());
    }
    let kernel = k2i::host::host_name();
    let usage = |error: NameError| {
        let kernel = text::visible(&kernel);
        CommandError::Usage(format!(
            "this host calls itself `{kernel}`, which cannot be its name here ({error}); give one with --host"
        ))
    };
    kernel.parse().map_err(usage)
}

/// Reads a span of time: `90s`, `30m`, `1h`, `7d`.
///
/// # Errors
/// In words.
pub fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and one of s, m, h and d: 30m, 1h, 7d".to_owned();
    let unit_s = match text.chars().next_back() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(unit_s).map(Duration::from_secs).ok_or_else(wrong)
}

/// What to type next.
///
/// # Errors
/// As [`Output::line`].
pub fn next_steps(out: &mut Output, steps: &[String]) -> io::Result<()> {
    out.line("Next:")?;
    steps.iter().try_for_each(|step| out.line(format_args!("  {step}")))
}

/// One line on the terminal that says what is waited for, and goes again.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
}

impl Progress {
    /// One that shows itself on a terminal only.
    pub fn new() -> Progress {
        Progress { shown: false }
    }

    /// Shows `what`, in place of what was shown before.
    pub fn say(&mut self, what: &str) {
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K{}", text::visible_within(what, 79));
            self.shown = true;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        let cases = [("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604_800)];
        for (text, seconds) in cases {
            assert_eq!(span(text), Ok(Duration::from_secs(seconds)), "for {text}");
        }
        for text in
            ["", "h", "1", "1w", "-1h", "1.5h", "é", "99999999999999999999d", "9999999999999999d"]
        {
            assert!(span(text).is_err(), "for {text}");
        }
    }

    #[test]
    fn where_a_host_listens_for_calls() {
        let at = |text: &str| text.parse().map(|CallListen(listen)| listen);
        assert_eq!(at("none"), Ok(None));
        assert_eq!(at("192.0.2.7:7082"), Ok(Some(([192, 0, 2, 7], 7082).into())));
        for bad in ["", "7082", "192.0.2.7", "192.0.2.7:0", "None", "web-1:7082"] {
            assert!(at(bad).is_err(), "for {bad}");
        }
        let calls =
            Calls { call_listen: at("127.0.0.1:5").ok().map(CallListen), ..Calls::default() };
        let port = calls.given().expect("something was said");
        assert_eq!(port.advertise, ["127.0.0.1:5"], "as it was told");
        let none = Calls { call_listen: Some(CallListen(None)), ..Calls::default() };
        assert_eq!(none.port(), CallPort { listen: None, advertise: Vec::new() });
        assert_eq!(Calls::default().given(), None);
        let anywhere = Calls::default().port().listen;
        assert_eq!(anywhere, Some(([0, 0, 0, 0], CALL_PORT_DEFAULT).into()));
    }

    #[test]
    fn where_others_reach_a_gateway() {
        let ips = ["127.0.0.1", "192.0.2.7", "169.254.1.1", "::1", "fe80::1", "2001:db8::7"];
        let ips = ips.map(|ip| ip.parse().expect("an address"));
        let reached = |listen: &str| reached_at(listen.parse().expect("an address"), &ips);
        assert_eq!(reached("0.0.0.0:7081"), ["192.0.2.7:7081"]);
        assert_eq!(reached("[::]:1"), ["192.0.2.7:1", "[2001:db8::7]:1"]);
        assert_eq!(reached("127.0.0.1:2"), ["127.0.0.1:2"], "as it was told");
        assert!(reached_at(([0, 0, 0, 0], 7081).into(), &ips[..1]).is_empty());
    }
}
