//! The worlds that calls are measured in: a node on this machine, and hosts in network namespaces.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kumo_abi::HostId;
use kumo_testbed::cluster::{Cluster, Options};
use kumo_testbed::net::Plan;

use crate::pair::{Pair, Process};
use crate::plan::{Contender, Layout};
use crate::role::Where;

/// Longest wait for a node.
const START_WAIT_MAX: Duration = Duration::from_secs(20);

/// Pause between two looks at whether it is there; it is not timed.
const START_POLL: Duration = Duration::from_millis(20);

/// The two cores that all is measured on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    pub(crate) caller: usize,
    pub(crate) callee: usize,
}

/// A node without a cluster.
pub(crate) struct Alone {
    node: Child,
    dir: PathBuf,
}

impl Alone {
    pub(crate) fn start(kumo: &Path, dir: &Path) -> io::Result<Alone> {
        let (state, run) = (dir.join("state"), dir.join("run"));
        let mut command = Command::new(kumo);
        command.args(["up", "--listen", "127.0.0.1:0", "--state-dir"]).arg(&state);
        command.arg("--run-dir").arg(&run);
        let log = std::fs::File::create(dir.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut alone = Alone { node: command.spawn()?, dir: dir.to_owned() };
        let until = Instant::now() + START_WAIT_MAX;
        while std::os::unix::net::UnixStream::connect(run.join("api.sock")).is_err() {
            if alone.node.try_wait()?.is_some() || Instant::now() > until {
                let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("the node did not start: {log}")));
            }
            std::thread::sleep(START_POLL);
        }
        Ok(alone)
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // It may have ended already; then there is only the reaping left.
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

/// Hosts of two data centres: a caller's, a callee's that it dials, and one that it reaches through a gateway.
pub(crate) struct Apart {
    cluster: Cluster,
    caller: HostId,
    near: HostId,
    behind: HostId,
}

impl Apart {
    pub(crate) fn start(kumo: &Path, dir: &Path) -> io::Result<Apart> {
        let plan = Plan::even(2, 2, 1, Duration::ZERO).map_err(io::Error::other)?;
        let options = Options {
            kumo: kumo.to_owned(),
            dir: dir.to_owned(),
            processes: 0,
            log: "warn".to_owned(),
        };
        let hosts: Vec<(HostId, bool)> = plan.hosts().collect();
        let [_, (caller, false), (near, true), (behind, false)] = hosts.as_slice() else {
            return Err(io::Error::other("the plan is not two gateways and two members"));
        };
        let (caller, near, behind) = (caller.clone(), near.clone(), behind.clone());
        let cluster = Cluster::start(plan, options, &mut |_| {}).map_err(io::Error::other)?;
        cluster.net().part(&caller, &behind).map_err(io::Error::other)?;
        Ok(Apart { cluster, caller, near, behind })
    }

    /// Where a contender's callee is.
    fn callee(&self, contender: &Contender) -> &HostId {
        if contender.id == "relayed" { &self.behind } else { &self.near }
    }

    fn run_dir(&self, id: &HostId) -> io::Result<PathBuf> {
        Ok(self.cluster.dir(id).map_err(io::Error::other)?.join("run"))
    }
}

/// Both kinds.
pub(crate) enum World<'a> {
    Alone(&'a Alone),
    Apart(&'a Apart),
}

impl World<'_> {
    /// Starts a process of this program at the callee's or at the caller's end.
    fn start(
        &self,
        role: &str,
        at: &Where,
        host: Option<&HostId>,
    ) -> io::Result<(Process, String)> {
        let mut command = Command::new(std::env::current_exe()?);
        let cpus: Vec<String> = at.cpus.iter().map(ToString::to_string).collect();
        command.arg(role).arg(&at.id).args([&at.dir, &at.run_dir]);
        command.args([at.ip.to_string(), at.cpu.to_string(), cpus.join(",")]);
        command.arg(format!("--said={}", at.said));
        Process::start(command, |mut command| match (self, host) {
            (World::Apart(apart), Some(host)) => {
                apart.cluster.spawn(host, command).map_err(io::Error::other)
            }
            _ => command.spawn(),
        })
    }

    fn ends(&self, contender: &Contender) -> io::Result<[(PathBuf, Option<&HostId>, IpAddr); 2]> {
        match self {
            World::Alone(alone) => {
                let end = (alone.run_dir(), None, Ipv4Addr::LOCALHOST.into());
                Ok([end.clone(), end])
            }
            World::Apart(apart) => {
                let callee = apart.callee(contender);
                let address = apart.cluster.net().address(callee).map_err(io::Error::other)?;
                Ok([
                    (apart.run_dir(callee)?, Some(callee), address.into()),
                    (apart.run_dir(&apart.caller)?, Some(&apart.caller), address.into()),
                ])
            }
        }
    }

    /// A callee, pinned.
    pub(crate) fn callee(
        &self,
        role: &str,
        contender: &Contender,
        dir: &Path,
        cpus: Cpus,
    ) -> io::Result<(Process, Where)> {
        let [(run_dir, host, ip), (caller_run_dir, ..)] = self.ends(contender)?;
        let mut both = vec![cpus.caller, cpus.callee];
        both.dedup();
        let (id, dir) = (contender.id.to_owned(), dir.to_owned());
        let said = String::new();
        let mut at = Where { id, dir, run_dir, ip, cpu: cpus.callee, cpus: both, said };
        let (callee, said) = self.start(role, &at, host)?;
        (at.said, at.run_dir, at.cpu) = (said, caller_run_dir, cpus.caller);
        Ok((callee, at))
    }

    /// A caller of what [`World::callee`] started.
    pub(crate) fn caller(
        &self,
        role: &str,
        contender: &Contender,
        at: &Where,
    ) -> io::Result<Process> {
        let [_, (_, host, _)] = self.ends(contender)?;
        Ok(self.start(role, at, host)?.0)
    }

    /// Both ends of a contender, pinned and connected.
    pub(crate) fn pair(
        &self,
        contender: &Contender,
        layout: Layout,
        dir: &Path,
        cpus: Cpus,
    ) -> io::Result<Pair> {
        let cpus = match layout {
            Layout::One => Cpus { caller: cpus.callee, ..cpus },
            Layout::Two | Layout::Apart => cpus,
        };
        let (callee, at) = self.callee("callee", contender, dir, cpus)?;
        let caller = self.caller("caller", contender, &at)?;
        Pair::new(*contender, callee, caller)
    }
}
