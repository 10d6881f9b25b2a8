//! Networks to test in: namespaces joined by cables that can be cut.
//!
//! A [`Net`] is made of network namespaces of its own, with names that say whose they are; the
//! machine's own network is neither used nor changed, so many can exist at once. It is gone when it is
//! dropped, and [`remove_stale`] removes those of processes that were killed.
//!
//! It needs `ip` of iproute2 and the right to make network namespaces: root's, or that of a user in a
//! user namespace of their own. Faults need `tc`, which comes with `ip`.

mod owner;
mod plan;

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use kumo_abi::{DcName, HostId};
use nix::sched::{CloneFlags, setns};

use owner::Owner;
#[cfg(test)]
pub(crate) use owner::is_alive;
pub use plan::{Cable, DCS_MAX, DcPlan, HOSTS_MAX, Place, Plan, PlanError, Way};

/// Where this is in the environment, tests that need networks fail instead of being skipped.
pub const REQUIRE_VARIABLE: &str = "KUMO_REQUIRE_NETNS";

/// Where `ip` keeps the names of network namespaces.
const NAMES_DIR: &str = "/run/netns";

/// Why there is no network, or a fault could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// It cannot be made at all.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A program that we use is not there.
    #[error("cannot run `{0}`; it comes with iproute2 (Debian: apt-get install iproute2)")]
    Missing(&'static str, #[source] io::Error),
    /// It is there and says no.
    #[error("`{command}` failed: {said}")]
    Tool {
        /// With its arguments.
        command: String,
        /// On standard error.
        said: String,
    },
    /// The system says no.
    #[error("cannot {what}")]
    System {
        /// What we wanted.
        what: String,
        /// What it said.
        source: io::Error,
    },
    /// There is no such host or data centre.
    #[error("there is no `{0}` in this world")]
    Unknown(String),
}

impl NetError {
    /// Whether the kernel was built without what was wanted of `tc`, or there is no `tc`.
    fn is_lacking(&self) -> bool {
        match self {
            NetError::Tool { said, .. } => said.contains("kind is unknown"),
            NetError::Missing(program, _) => *program == "tc",
            _ => false,
        }
    }
}

/// Data centres and hosts joined by cables; gone when it is dropped.
#[derive(Debug)]
pub struct Net {
    plan: Plan,
    names: Names,
    /// Whether the delays that the plan asks for are there.
    delays: bool,
}

/// The namespaces that were made; removed when this is dropped.
#[derive(Debug)]
struct Names {
    owner: Owner,
    made: Vec<String>,
}

impl Net {
    /// Makes the network, and removes what killed processes left of theirs.
    ///
    /// A kernel without `netem` delays no packets: then [`Net::delays`] is false, and all else works.
    ///
    /// # Errors
    /// See [`NetError`]; what was made until then is removed.
    pub fn new(plan: Plan) -> Result<Net, NetError> {
        plan.check()?;
        remove_stale()?;
        let mut names = Names { owner: Owner::next(), made: Vec::new() };
        for place in plan.places() {
            let name = names.owner.namespace(&place);
            run("ip", &["netns", "add", &name])?;
            names.made.push(name);
        }
        for dc in &plan.dcs {
            let router = names.owner.namespace(&Place::Dc(dc.name.clone()));
            forward_packets(&router)?;
        }
        let namespace = |place: &Place| names.owner.namespace(place);
        for (place, command) in plan.commands(&namespace) {
            let words: Vec<&str> = command.split(' ').collect();
            run("ip", &[&["-n", &namespace(&place)], words.as_slice()].concat())?;
        }
        let mut net = Net { plan, names, delays: false };
        net.delays = net.delay()?;
        Ok(net)
    }

    /// A network with one host, and the cable of that.
    fn probe() -> Result<(Net, Cable), NetError> {
        let net = Net::new(Plan::even(1, 1, 1, Duration::ZERO)?)?;
        let cable = net.plan.hosts().find_map(|(id, _)| net.plan.cable(&id));
        Ok((net, cable.expect("a plan has a host, and that a cable")))
    }

    /// What it was made from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether the delays that the plan asks for are there; true when it asks for none.
    pub fn delays(&self) -> bool {
        self.delays
    }

    /// The address of a host.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn address(&self, id: &HostId) -> Result<Ipv4Addr, NetError> {
        self.plan.address(id).ok_or_else(|| NetError::Unknown(id.to_string()))
    }

    /// Takes the direct way to another host from a host, as a firewall between them would. Others still reach both.
    ///
    /// # Errors
    /// `Unknown`, and what `ip` says.
    pub fn part(&self, from: &HostId, to: &HostId) -> Result<(), NetError> {
        let address = self.address(to)?.to_string();
        let namespace = self.namespace(&Place::Host(from.clone()));
        run("ip", &["-n", &namespace, "route", "add", "unreachable", &address])
    }

    /// The name of a namespace, for `ip netns exec`.
    pub fn namespace(&self, place: &Place) -> String {
        self.names.owner.namespace(place)
    }

    /// The cable of a host.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn host_cable(&self, id: &HostId) -> Result<Cable, NetError> {
        self.plan.cable(id).ok_or_else(|| NetError::Unknown(id.to_string()))
    }

    /// The cable of a data centre to the backbone.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn dc_cable(&self, dc: &DcName) -> Result<Cable, NetError> {
        self.plan.dc_cable(dc).ok_or_else(|| NetError::Unknown(dc.to_string()))
    }

    /// Pulls the plug: nothing passes, and both ends see that they have no carrier.
    ///
    /// # Errors
    /// `Missing` or `Tool`.
    pub fn unplug(&self, cable: &Cable) -> Result<(), NetError> {
        run("ip", &["-n", &self.namespace(&cable.at), "link", "set", &cable.interface, "down"])
    }

    /// Loses this share of packets, in percent, by chance and unseen; 100 is a black hole.
    ///
    /// # Errors
    /// `Missing` or `Tool`.
    pub fn lose(&self, cable: &Cable, way: Way, percent: u8) -> Result<(), NetError> {
        let (name, port) = (self.namespace(&cable.at), cable.interface.as_str());
        run("tc", &["-n", &name, "qdisc", "replace", "dev", port, "clsact"])?;
        let program = plan::lossy(percent);
        let filter = ["-n", &name, "filter", "replace", "dev", port, way.hook(), "prio", "1"];
        let action = ["handle", "1", "bpf", "direct-action", "bytecode", &program];
        run("tc", &[filter.as_slice(), &action].concat())
    }

    /// Makes a cable whole again: plugged in, and losing nothing.
    ///
    /// # Errors
    /// `Missing` or `Tool`.
    pub fn heal(&self, cable: &Cable) -> Result<(), NetError> {
        let (name, port) = (self.namespace(&cable.at), cable.interface.as_str());
        // Replaced first: it is an error to delete what is not there.
        match run("tc", &["-n", &name, "qdisc", "replace", "dev", port, "clsact"]) {
            // Then it loses nothing.
            Err(error) if error.is_lacking() => {}
            replaced => {
                replaced?;
                run("tc", &["-n", &name, "qdisc", "delete", "dev", port, "clsact"])?;
            }
        }
        run("ip", &["-n", &name, "link", "set", port, "up"])
    }

    /// Delays packets at both ends of every data centre's cable; whether the kernel can.
    fn delay(&self) -> Result<bool, NetError> {
        for dc in self.plan.dcs.iter().filter(|dc| !dc.delay.is_zero()) {
            let cable = self.dc_cable(&dc.name)?;
            let router = self.namespace(&Place::Dc(dc.name.clone()));
            let ends = [(router, "wan"), (self.namespace(&cable.at), cable.interface.as_str())];
            for (name, port) in ends {
                let delay = microseconds(dc.delay);
                let netem = ["root", "netem", "delay", &delay];
                let command = ["-n", &name, "qdisc", "replace", "dev", port];
                match run("tc", &[command.as_slice(), &netem].concat()) {
                    Err(error) if error.is_lacking() => return Ok(false),
                    done => done?,
                }
            }
        }
        Ok(true)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        for name in &self.made {
            if let Err(error) = run("ip", &["netns", "delete", name]) {
                // The next world removes it; whoever reads this may do so now.
                eprintln!("testbed: a network namespace stays: {error}");
            }
        }
    }
}

/// Why no network can be made here, for people; `None` when it can. It makes one, and plugs a cable of
/// it out and in.
pub fn unavailable() -> Option<String> {
    let tried = Net::probe().and_then(|(net, cable)| {
        net.unplug(&cable)?;
        net.heal(&cable)
    });
    tried.err().map(|error| crate::chain(&error))
}

/// Why no packets can be lost in a network that can be made, for people; `None` when they can.
pub fn no_loss() -> Option<String> {
    let tried = Net::probe().and_then(|(net, cable)| net.lose(&cable, Way::In, 1));
    tried.err().map(|error| crate::chain(&error))
}

/// Whether a test has networks; it prints why not.
///
/// # Panics
/// When it has none though [`REQUIRE_VARIABLE`] is in the environment.
pub fn is_there_for_tests() -> bool {
    static WHY_NOT: OnceLock<Option<String>> = OnceLock::new();
    let Some(why) = WHY_NOT.get_or_init(unavailable) else { return true };
    let required = std::env::var_os(REQUIRE_VARIABLE).is_some();
    assert!(!required, "no network can be made here, and {REQUIRE_VARIABLE} is set: {why}");
    eprintln!("skipped: no network can be made here: {why}");
    false
}

/// Whether a test can have packets lost; it prints why not. Kernels are built without it, so that is
/// never an error.
pub fn has_loss_for_tests() -> bool {
    static WHY_NOT: OnceLock<Option<String>> = OnceLock::new();
    let Some(why) = WHY_NOT.get_or_init(no_loss) else { return true };
    eprintln!("skipped: no packets can be lost here: {why}");
    false
}

/// Removes the namespaces of processes that are gone; how many there were.
///
/// # Errors
/// When they cannot be listed; one that cannot be removed is left to the next who tries.
pub fn remove_stale() -> Result<usize, NetError> {
    let entries = match fs::read_dir(NAMES_DIR) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(|source| system(format!("list {NAMES_DIR}"), source))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let stale = names.filter(|name| Owner::of(name).is_some_and(|owner| !owner.is_alive()));
    // Of two who sweep at once, one finds nothing.
    Ok(stale.filter(|name| run("ip", &["netns", "delete", name]).is_ok()).count())
}

/// The file that holds a namespace open.
pub(crate) fn namespace_file(name: &str) -> PathBuf {
    Path::new(NAMES_DIR).join(name)
}

/// Lets a namespace route. The kernel shows its own switch to whoever opens the file from within.
fn forward_packets(name: &str) -> Result<(), NetError> {
    let file = namespace_file(name);
    let within = || -> io::Result<()> {
        setns(File::open(&file)?, CloneFlags::CLONE_NEWNET)?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")
    };
    // A thread enters alone, and ends there.
    let done = std::thread::scope(|scope| scope.spawn(within).join());
    done.expect("entering a namespace does not panic")
        .map_err(|source| system(format!("let `{name}` route packets"), source))
}

/// As `tc` reads a time.
fn microseconds(time: Duration) -> String {
    format!("{}us", time.as_micros())
}

pub(crate) fn system(what: impl Into<String>, source: io::Error) -> NetError {
    NetError::System { what: what.into(), source }
}

/// Runs `ip` or `tc`.
fn run(program: &'static str, arguments: &[&str]) -> Result<(), NetError> {
    let mut command = Command::new(program);
    // What it says is compared.
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().or_else(|error| {
        // Users have no sbin in their path, and `tc` is there on some systems.
        let sbin = Path::new("/usr/sbin").join(program);
        if error.kind() != io::ErrorKind::NotFound || !sbin.exists() {
            return Err(error);
        }
        Command::new(sbin).args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output()
    });
    let output = output.map_err(|source| NetError::Missing(program, source))?;
    if output.status.success() {
        return Ok(());
    }
    let command = format!("{program} {}", arguments.join(" "));
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(NetError::Tool { command, said })
}
