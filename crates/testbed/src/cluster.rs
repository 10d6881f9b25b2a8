//! A real cluster: a node of the built `kumo` on every host of a network, and what can happen to it.
//!
//! [`Cluster::start`] does what a person would: `kumo init` on the first host, `kumo token`, `kumo
//! join` on the others, `kumo up` on all. Each host has a network, processes and a name of its own, so
//! its table shows what runs there. When it is dropped nothing is left: no process, no namespace.
//!
//! The directory holds for each host, at `DC/HOST`, its `state`, its `run` with the socket, and what
//! its node and commands wrote, in `log`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kumo_abi::cluster::{HostInfo, HostState};
use kumo_abi::{DcName, HostId};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::api::{self, Answer};
use crate::crowd::{Crowd, Mix};
use crate::host::Host;
use crate::net::{Cable, Net, NetError, Place, Plan, Way};
use crate::zoo::Zoo;

/// The name of every cluster here.
pub const CLUSTER_NAME: &str = "acme";

/// Where gateways listen for other nodes.
const FABRIC_PORT: u16 = 7081;

/// Where nodes serve their API, each in a network of its own.
const API_ADDRESS: &str = "127.0.0.1:7080";

/// Longest wait for anything that shall happen: many times what it takes on a busy machine.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// Longest wait for an answer of a node that is there.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// Time between two looks: short against the times that are measured, long against one look.
const LOOK_PERIOD: Duration = Duration::from_millis(5);

/// Commands that run at once while a cluster starts. Each is short; a laptop has a few cores.
const COMMANDS_AT_ONCE_MAX: usize = 4;

/// Lines of each log that a failure shows.
const LOG_LINES_SHOWN: usize = 30;

/// Why a cluster did not start, or something could not be done to it.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The system says no.
    #[error("cannot {what}")]
    System {
        /// What we wanted.
        what: String,
        /// What it said.
        source: io::Error,
    },
    /// A command ended with an error, or never.
    #[error("on {host}: `kumo {command}` {how}:\n{said}")]
    Command {
        /// Where.
        host: HostId,
        /// The subcommand.
        command: String,
        /// How it ended.
        how: String,
        /// What it wrote.
        said: String,
    },
    /// What was waited for did not come.
    #[error("{what}: not within {} s", after.as_secs())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// It did not start; with the last lines of all logs.
    #[error("the cluster did not start: {source}\n{logs}")]
    Start {
        /// Why.
        source: Box<ClusterError>,
        /// What the nodes wrote.
        logs: String,
    },
    /// The host's node runs, or does not, and the other was wanted.
    #[error("the node of {0} {1}")]
    State(HostId, &'static str),
}

/// How to start a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `kumo` to run.
    pub kumo: PathBuf,
    /// Holds what the hosts write; must be there, be empty, and have a short name: sockets lie in it.
    pub dir: PathBuf,
    /// Processes on each host beside its node.
    pub processes: usize,
    /// What nodes log, as `kumo up --log` takes it.
    pub log: String,
}

/// Data centres, hosts and their nodes; gone when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// Before the network: processes in a namespace keep it.
    nodes: BTreeMap<HostId, Node>,
    net: Net,
    options: Options,
    /// Deleted last.
    dir: Option<tempfile::TempDir>,
}

/// One host and its node.
#[derive(Debug)]
struct Node {
    is_gateway: bool,
    dir: PathBuf,
    /// The running node. Reaped before `host` goes, and `crowd` ends before it.
    child: Option<Child>,
    _crowd: Option<Mutex<Crowd>>,
    host: Host,
}

/// What `/v2/hosts` answers.
#[derive(Clone, Debug, Deserialize)]
pub struct View {
    /// The cluster; `None` of a node without one.
    pub cluster: Option<String>,
    /// All hosts that the node knows, in order.
    pub hosts: Vec<HostInfo>,
}

impl View {
    /// What is known of the life of a host; `None` when it is not known at all.
    pub fn state(&self, id: &HostId) -> Option<HostState> {
        self.hosts.iter().find(|host| host.id == *id).map(|host| host.state)
    }
}

impl Cluster {
    /// Starts a cluster for a test, in a temporary directory: `dcs` data centres of `hosts` hosts each,
    /// of which `gateways` are gateways. Returns when every node sees every other.
    ///
    /// # Errors
    /// See [`ClusterError`]; nothing is left running.
    pub fn for_test(dcs: usize, hosts: usize, gateways: usize) -> Result<Cluster, ClusterError> {
        let plan = Plan::even(dcs, hosts, gateways, Duration::ZERO).map_err(NetError::from)?;
        // Not where TMPDIR says: names of sockets have 108 bytes.
        let dir = tempfile::Builder::new().prefix("kumo-").tempdir_in("/tmp");
        let dir = dir.map_err(|source| system("make a directory in /tmp", source))?;
        let options = Options {
            kumo: crate::kumo_for_tests().to_owned(),
            dir: dir.path().to_owned(),
            processes: 0,
            log: "info".to_owned(),
        };
        let mut cluster = Cluster::start(plan, options, &mut |_| {})?;
        cluster.dir = Some(dir);
        Ok(cluster)
    }

    /// Starts a cluster. `progress` hears what was done. Returns when every node sees every other.
    ///
    /// # Errors
    /// See [`ClusterError`]; nothing is left running.
    pub fn start(
        plan: Plan,
        options: Options,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Cluster, ClusterError> {
        let net = Net::new(plan)?;
        progress(&format!("network: {}", counted(net.plan().dcs.len(), "data centre")));
        if !net.delays() {
            progress("network: no delays: this kernel has no netem (module sch_netem)");
        }
        let mut cluster = Cluster { nodes: BTreeMap::new(), net, options, dir: None };
        match cluster.begin(progress) {
            Ok(()) => Ok(cluster),
            Err(source) => {
                let logs = cluster.logs();
                Err(ClusterError::Start { source: Box::new(source), logs })
            }
        }
    }

    fn begin(&mut self, progress: &mut dyn FnMut(&str)) -> Result<(), ClusterError> {
        for (id, is_gateway) in self.net.plan().hosts().collect::<Vec<_>>() {
            let node = self.make_host(&id, is_gateway)?;
            self.nodes.insert(id, node);
        }
        progress(&format!("hosts: {}", counted(self.nodes.len(), "host")));
        self.found(progress)?;
        let took = self.wait("every node sees every other alive", |cluster| {
            cluster.ids().all(|at| cluster.sees_all_alive(at))
        })?;
        let count = counted(self.nodes.len(), "node");
        progress(&format!("cluster: {count} alive everywhere, {} ms later", took.as_millis()));
        Ok(())
    }

    fn make_host(&self, id: &HostId, is_gateway: bool) -> Result<Node, ClusterError> {
        let dir = self.options.dir.join(id.dc.as_str()).join(id.host.as_str());
        for part in ["state", "run"] {
            let dir = dir.join(part);
            // A node wants its directories for itself.
            fs::create_dir_all(&dir)
                .and_then(|()| fs::set_permissions(&dir, private()))
                .map_err(|source| system(format!("make {}", dir.display()), source))?;
        }
        let namespace = self.net.namespace(&Place::Host(id.clone()));
        let host = Host::new(id, &namespace, &dir.join("run"))?;
        let count = self.options.processes;
        let crowd =
            (count > 0).then(|| Mutex::new(host.run(move || Zoo::crowd(count, Mix::default()))));
        Ok(Node { is_gateway, dir, child: None, _crowd: crowd, host })
    }

    /// `kumo init`, `kumo token`, `kumo join`, `kumo up`.
    fn found(&mut self, progress: &mut dyn FnMut(&str)) -> Result<(), ClusterError> {
        // In the order of the plan: the first is a gateway.
        let ids: Vec<(HostId, bool)> = self.net.plan().hosts().collect();
        let Some(((first, _), others)) = ids.split_first() else { return Ok(()) };
        let mut init = words(&["init", "--cluster", CLUSTER_NAME]);
        init.extend(self.names(first)?);
        init.extend(self.listens(first)?);
        self.kumo(first, &init)?;
        self.up(first)?;
        self.wait_for_answer(first)?;
        progress(&format!("{first}: kumo init, kumo up"));
        for is_gateway in [true, false] {
            let joining: Vec<HostId> = others
                .iter()
                .filter(|(_, is)| *is == is_gateway)
                .map(|(id, _)| id.clone())
                .collect();
            if joining.is_empty() {
                continue;
            }
            let uses = joining.len().to_string();
            let mut token = words(&["token", "--ttl", "1h", "--uses", &uses]);
            token.extend(is_gateway.then(|| "--gateway".to_owned()));
            let said = self.kumo(first, &token)?;
            let token = said.split_whitespace().find(|word| word.starts_with("kumo1."));
            let token = token.ok_or_else(|| ClusterError::Command {
                host: first.clone(),
                command: "token".to_owned(),
                how: "printed no token".to_owned(),
                said: said.clone(),
            })?;
            for some in joining.chunks(COMMANDS_AT_ONCE_MAX) {
                let began = Instant::now();
                let mut started = Vec::new();
                for id in some {
                    let mut join = words(&["join", token]);
                    join.extend(self.names(id)?);
                    if is_gateway {
                        join.push("--gateway".to_owned());
                        join.extend(self.listens(id)?);
                    }
                    started.push((id, Running::start(self, id, &join)?));
                }
                for (id, running) in started {
                    running.finish()?;
                    let took = began.elapsed().as_millis();
                    progress(&format!("{id}: kumo join ({took} ms), kumo up"));
                }
                for id in some {
                    self.up(id)?;
                }
            }
        }
        Ok(())
    }

    fn names(&self, id: &HostId) -> Result<Vec<String>, ClusterError> {
        let node = self.node(id)?;
        let dirs = [("--state-dir", "state"), ("--run-dir", "run")];
        let dirs = dirs.map(|(option, name)| [option.to_owned(), text(&node.dir.join(name))]);
        let names = words(&["--dc", id.dc.as_str(), "--host", id.host.as_str()]);
        Ok(names.into_iter().chain(dirs.into_iter().flatten()).collect())
    }

    fn listens(&self, id: &HostId) -> Result<Vec<String>, ClusterError> {
        let address = format!("{}:{FABRIC_PORT}", self.net.address(id)?);
        Ok(words(&["--listen", &address, "--advertise", &address]))
    }

    fn node(&self, id: &HostId) -> Result<&Node, ClusterError> {
        Ok(self.nodes.get(id).ok_or_else(|| NetError::Unknown(id.to_string()))?)
    }

    fn node_mut(&mut self, id: &HostId) -> Result<&mut Node, ClusterError> {
        Ok(self.nodes.get_mut(id).ok_or_else(|| NetError::Unknown(id.to_string()))?)
    }

    /// The network.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// All hosts, in order.
    pub fn ids(&self) -> impl Iterator<Item = &HostId> {
        self.nodes.keys()
    }

    /// Whether a host is a gateway.
    pub fn is_gateway(&self, id: &HostId) -> bool {
        self.nodes.get(id).is_some_and(|node| node.is_gateway)
    }

    /// Whether the node of a host runs, as far as the cluster's owner let it.
    pub fn is_up(&self, id: &HostId) -> bool {
        self.nodes.get(id).is_some_and(|node| node.child.is_some())
    }

    /// The directory of a host: `state`, `run` and `log` are there.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn dir(&self, id: &HostId) -> Result<&Path, ClusterError> {
        Ok(&self.node(id)?.dir)
    }

    /// The socket of a host's node, which can be reached from everywhere on this machine.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn socket(&self, id: &HostId) -> Result<PathBuf, ClusterError> {
        Ok(self.dir(id)?.join("run/api.sock"))
    }

    /// Process number of process 1 of a host, seen from here: `nsenter` takes it.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn init_pid(&self, id: &HostId) -> Result<i32, ClusterError> {
        Ok(self.node(id)?.host.init_pid())
    }

    /// Runs a subcommand of `kumo` on a host and returns what it wrote on standard output. Options
    /// `--state-dir` and `--run-dir` are not added, except that the commands which speak to a node
    /// find it: a host has its run directory at `/run/kumo`.
    ///
    /// # Errors
    /// `Command` when it ends with another status than 0, or not within [`WAIT_MAX`].
    pub fn kumo(&self, id: &HostId, arguments: &[String]) -> Result<String, ClusterError> {
        Running::start(self, id, arguments)?.finish()
    }

    /// As [`Cluster::kumo`], with any status: that, standard output and standard error.
    ///
    /// # Errors
    /// `Command` when it does not end within [`WAIT_MAX`].
    pub fn kumo_status(
        &self,
        id: &HostId,
        arguments: &[String],
    ) -> Result<(ExitStatus, String, String), ClusterError> {
        Running::start(self, id, arguments)?.end()
    }

    /// Starts a program on a host. Its process number is that of this machine.
    ///
    /// # Errors
    /// There is no such host, or the program does not start.
    pub fn spawn(&self, id: &HostId, command: Command) -> Result<Child, ClusterError> {
        let child = self.node(id)?.host.spawn(command);
        child.map_err(|source| system(format!("start a program on {id}"), source))
    }

    /// Process number of the node of a host, seen from here.
    ///
    /// # Errors
    /// `State` when it does not run.
    pub fn node_pid(&self, id: &HostId) -> Result<u32, ClusterError> {
        let child = self.node(id)?.child.as_ref();
        Ok(child.ok_or_else(|| ClusterError::State(id.clone(), "does not run"))?.id())
    }

    // What can be asked.

    /// Asks the node of a host.
    ///
    /// # Errors
    /// When it does not answer; the kind of the error says more.
    pub fn get(&self, at: &HostId, target: &str) -> io::Result<Answer> {
        let socket = self.socket(at).map_err(io::Error::other)?;
        api::request(&socket, "GET", target, "", ANSWER_WAIT_MAX)
    }

    /// As [`Cluster::get`], of a JSON body with status 200.
    ///
    /// # Errors
    /// When it does not answer, or not that.
    pub fn get_json<T: DeserializeOwned>(&self, at: &HostId, target: &str) -> io::Result<T> {
        let Answer { status, body } = self.get(at, target)?;
        if status != 200 {
            let said = String::from_utf8_lossy(&body);
            return Err(io::Error::other(format!("{target}: status {status}: {said}")));
        }
        Ok(serde_json::from_slice(&body)?)
    }

    /// What the node of a host knows of all hosts.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn view(&self, at: &HostId) -> io::Result<View> {
        self.get_json(at, "/v2/hosts")
    }

    /// What the node of `at` knows of the life of `of`; `None` when it does not answer or knows
    /// nothing.
    pub fn state(&self, at: &HostId, of: &HostId) -> Option<HostState> {
        self.view(at).ok()?.state(of)
    }

    /// Whether the node of a host sees every host alive.
    pub fn sees_all_alive(&self, at: &HostId) -> bool {
        self.view(at)
            .is_ok_and(|view| self.ids().all(|id| view.state(id) == Some(HostState::Alive)))
    }

    /// Waits until `condition` holds; how long that took.
    ///
    /// # Errors
    /// `Late` after [`WAIT_MAX`], with what the nodes see.
    pub fn wait(
        &self,
        what: &str,
        mut condition: impl FnMut(&Cluster) -> bool,
    ) -> Result<Duration, ClusterError> {
        let began = Instant::now();
        while !condition(self) {
            if began.elapsed() > WAIT_MAX {
                let what = format!("{what}; now they see:\n{}", self.views());
                return Err(ClusterError::Late { what, after: WAIT_MAX });
            }
            std::thread::sleep(LOOK_PERIOD);
        }
        Ok(began.elapsed())
    }

    /// As [`Cluster::wait`], for tests.
    ///
    /// # Panics
    /// After [`WAIT_MAX`]; the logs of all nodes are shown then.
    pub fn until(&self, what: &str, condition: impl FnMut(&Cluster) -> bool) -> Duration {
        self.wait(what, condition).unwrap_or_else(|error| panic!("{error}"))
    }

    fn wait_for_answer(&self, at: &HostId) -> Result<Duration, ClusterError> {
        self.wait(&format!("the node of {at} answers"), |cluster| {
            cluster.view(at).is_ok_and(|view| view.cluster.is_some())
        })
    }

    /// What every node sees, one line each, for people.
    pub fn views(&self) -> String {
        let mut text = String::new();
        for at in self.ids() {
            let seen = match self.view(at) {
                Ok(view) => view
                    .hosts
                    .iter()
                    .map(|host| format!("{} {}", host.id, host.state.name()))
                    .collect::<Vec<_>>()
                    .join(", "),
                Err(error) => format!("no answer: {error}"),
            };
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {at}: {seen}");
        }
        text
    }

    /// The last lines of every host's log, for people.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for (id, node) in &self.nodes {
            let log = fs::read(node.dir.join("log")).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            let _ = writeln!(text, "--- log of {id}:\n{}", shown.join("\n"));
        }
        text
    }

    // What can happen.

    /// Starts the node of a host, and returns at once.
    ///
    /// # Errors
    /// `State` when it runs.
    pub fn up(&mut self, id: &HostId) -> Result<(), ClusterError> {
        let log = self.options.log.clone();
        let kumo = self.options.kumo.clone();
        let node = self.node_mut(id)?;
        if node.child.is_some() {
            return Err(ClusterError::State(id.clone(), "runs already"));
        }
        let mut command = Command::new(kumo);
        command.args(["up", "--listen", API_ADDRESS, "--view", "never", "--log", &log]);
        command.arg("--state-dir").arg(node.dir.join("state"));
        command.arg("--run-dir").arg(node.dir.join("run"));
        let out = open_log(&node.dir)?;
        let errors = out.try_clone().map_err(|source| system("open a log", source))?;
        command.stdin(Stdio::null()).stdout(out).stderr(errors);
        // Ctrl-C on the terminal of the owner is the owner's.
        command.process_group(0);
        let child = node.host.spawn(command);
        let child = child.map_err(|source| system(format!("start the node of {id}"), source))?;
        node.child = Some(child);
        Ok(())
    }

    /// Kills the node of a host, as `kill -9` does, and reaps it.
    ///
    /// # Errors
    /// `State` when it does not run.
    pub fn kill(&mut self, id: &HostId) -> Result<(), ClusterError> {
        let child = self.node_mut(id)?.child.take();
        let mut child = child.ok_or_else(|| ClusterError::State(id.clone(), "does not run"))?;
        let killed = child.kill().and_then(|()| child.wait());
        killed.map(drop).map_err(|source| system(format!("kill the node of {id}"), source))
    }

    /// Nodes that ended though nobody killed them, and how; each is named once.
    pub fn ended(&mut self) -> Vec<(HostId, ExitStatus)> {
        let nodes = self.nodes.iter_mut();
        let ended = nodes.filter_map(|(id, node)| {
            let status = node.child.as_mut()?.try_wait().ok()??;
            node.child = None;
            Some((id.clone(), status))
        });
        ended.collect()
    }

    /// Stops the node of a host in the regular way, with SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// `State` when it does not run; `Late` when it does not end, and then it is killed.
    pub fn stop(&mut self, id: &HostId) -> Result<ExitStatus, ClusterError> {
        self.signal(id, Signal::TERM)?;
        let mut child = self.node_mut(id)?.child.take().expect("it was there a moment ago");
        let ended = wait_for(&mut child, WAIT_MAX);
        let ended = ended.map_err(|source| system(format!("wait for the node of {id}"), source))?;
        let what = || format!("the node of {id} ends after SIGTERM");
        ended.ok_or_else(|| ClusterError::Late { what: what(), after: WAIT_MAX })
    }

    /// Freezes the node of a host, as SIGSTOP does.
    ///
    /// # Errors
    /// `State` when it does not run.
    pub fn freeze(&self, id: &HostId) -> Result<(), ClusterError> {
        self.signal(id, Signal::STOP)
    }

    /// Lets a frozen node go on.
    ///
    /// # Errors
    /// `State` when it does not run.
    pub fn thaw(&self, id: &HostId) -> Result<(), ClusterError> {
        self.signal(id, Signal::CONT)
    }

    fn signal(&self, id: &HostId, signal: Signal) -> Result<(), ClusterError> {
        let child = self.node(id)?.child.as_ref();
        let child = child.ok_or_else(|| ClusterError::State(id.clone(), "does not run"))?;
        // It is not reaped before we say so, so its number is not given out again.
        let sent = kill_process(Pid::from_child(child), signal);
        sent.map_err(|errno| system(format!("signal the node of {id}"), errno.into()))
    }

    /// Pulls the plug of a host.
    ///
    /// # Errors
    /// When there is no such host, or the system says no.
    pub fn cut(&self, id: &HostId) -> Result<(), ClusterError> {
        Ok(self.net.unplug(&self.net.host_cable(id)?)?)
    }

    /// Pulls the plug of a data centre: its hosts reach each other, and nobody else.
    ///
    /// # Errors
    /// When there is no such data centre, or the system says no.
    pub fn cut_dc(&self, dc: &DcName) -> Result<(), ClusterError> {
        Ok(self.net.unplug(&self.net.dc_cable(dc)?)?)
    }

    /// Loses this share of what a host is sent or sends, in percent; 100 is a black hole.
    ///
    /// # Errors
    /// When there is no such host, or the system says no.
    pub fn lose(&self, id: &HostId, way: Way, percent: u8) -> Result<(), ClusterError> {
        Ok(self.net.lose(&self.net.host_cable(id)?, way, percent)?)
    }

    /// As [`Cluster::lose`], of a data centre's cable.
    ///
    /// # Errors
    /// When there is no such data centre, or the system says no.
    pub fn lose_dc(&self, dc: &DcName, way: Way, percent: u8) -> Result<(), ClusterError> {
        Ok(self.net.lose(&self.net.dc_cable(dc)?, way, percent)?)
    }

    /// Makes the cable of a host whole.
    ///
    /// # Errors
    /// When there is no such host, or the system says no.
    pub fn heal(&self, id: &HostId) -> Result<(), ClusterError> {
        Ok(self.net.heal(&self.net.host_cable(id)?)?)
    }

    /// Makes the cable of a data centre whole.
    ///
    /// # Errors
    /// When there is no such data centre, or the system says no.
    pub fn heal_dc(&self, dc: &DcName) -> Result<(), ClusterError> {
        Ok(self.net.heal(&self.net.dc_cable(dc)?)?)
    }

    /// Makes all cables whole.
    ///
    /// # Errors
    /// When the system says no.
    pub fn heal_all(&self) -> Result<(), ClusterError> {
        let plan = self.net.plan();
        let cables = plan.dcs.iter().filter_map(|dc| plan.dc_cable(&dc.name));
        let cables = cables.chain(plan.hosts().filter_map(|(id, _)| plan.cable(&id)));
        Ok(cables.collect::<Vec<Cable>>().iter().try_for_each(|cable| self.net.heal(cable))?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for node in self.nodes.values_mut() {
            if let Some(mut child) = node.child.take() {
                // It may have ended by itself; then there is only the reaping left.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// A command that runs on a host. Killed when it is dropped before its end.
struct Running {
    host: HostId,
    name: String,
    child: Child,
    out: File,
    errors: File,
}

impl Running {
    fn start(
        cluster: &Cluster,
        id: &HostId,
        arguments: &[String],
    ) -> Result<Running, ClusterError> {
        let host = &cluster.node(id)?.host;
        let file = || tempfile::tempfile().map_err(|source| system("make a file", source));
        let (out, errors) = (file()?, file()?);
        let clone = |file: &File| file.try_clone().map_err(|source| system("open a file", source));
        let mut command = Command::new(&cluster.options.kumo);
        command.args(arguments).stdin(Stdio::null()).stdout(clone(&out)?).stderr(clone(&errors)?);
        command.process_group(0);
        let child = host.spawn(command);
        let child = child.map_err(|source| {
            system(format!("run {} on {id}", cluster.options.kumo.display()), source)
        })?;
        let name = arguments.first().cloned().unwrap_or_default();
        Ok(Running { host: id.clone(), name, child, out, errors })
    }

    fn finish(self) -> Result<String, ClusterError> {
        let (host, command) = (self.host.clone(), self.name.clone());
        let (status, out, errors) = self.end()?;
        if status.success() {
            return Ok(out);
        }
        let said = format!("{out}{errors}");
        Err(ClusterError::Command { host, command, how: format!("failed ({status})"), said })
    }

    fn end(mut self) -> Result<(ExitStatus, String, String), ClusterError> {
        let ended = wait_for(&mut self.child, WAIT_MAX);
        let ended = ended.map_err(|source| system("wait for a command", source))?;
        let (out, errors) = (read(&self.out)?, read(&self.errors)?);
        match ended {
            Some(status) => Ok((status, out, errors)),
            None => Err(ClusterError::Command {
                host: self.host.clone(),
                command: self.name.clone(),
                how: format!("did not end within {} s", WAIT_MAX.as_secs()),
                said: format!("{out}{errors}"),
            }),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing after its end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of a child; `None`, and it is killed, when it does not come.
fn wait_for(child: &mut Child, longest: Duration) -> io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if began.elapsed() > longest {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK_PERIOD);
    }
}

/// The whole of a file that another process wrote through the same descriptor.
fn read(file: &File) -> Result<String, ClusterError> {
    use std::os::unix::fs::FileExt as _;
    let length = file.metadata().map_err(|source| system("read a file", source))?.len();
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|source| system("read a file", source))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn open_log(dir: &Path) -> Result<File, ClusterError> {
    let path = dir.join("log");
    let opened = File::options().create(true).append(true).open(&path);
    opened.map_err(|source| system(format!("open {}", path.display()), source))
}

fn private() -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt as _;
    fs::Permissions::from_mode(0o700)
}

fn system(what: impl Into<String>, source: io::Error) -> ClusterError {
    ClusterError::System { what: what.into(), source }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// `1 host`, `3 hosts`.
fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
