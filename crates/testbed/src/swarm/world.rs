//! A cluster of real gateways and a swarm, and what can be seen and done there.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Error, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use kumo_abi::cluster::{HostState, Role};
use kumo_abi::{DcName, HostId};
use kumo_fabric::identity::{Gateway, Identity};
use kumo_fabric::pki::Authority;
use kumo_fabric::wall_ms;
use serde::Deserialize;
use tokio::runtime::Runtime;
use tokio::sync::broadcast::error::RecvError;

use super::host::{Common, SwarmHost};
use super::node::Node;
use super::record::record;
use super::worker::{Done, Order, Start};
use crate::crowd::Mix;
use crate::zoo::Zoo;

/// The name of every cluster here.
pub const CLUSTER_NAME: &str = "swarm";

/// Longest wait until all see all. A thousand hosts on two cores take a minute.
const SETTLE_MAX: Duration = Duration::from_secs(300);

/// Between two looks at whether they do.
const LOOK_PERIOD: Duration = Duration::from_millis(5);

/// And it takes so many times as long as a look.
const LOOK_SHARE: u32 = 3;

/// A data centre to be.
#[derive(Clone, Debug)]
pub struct DcPlan {
    /// Its name.
    pub name: DcName,
    /// Real gateways.
    pub gateways: usize,
    /// Simulated hosts, beside one in this process that looks on.
    pub hosts: usize,
}

/// A change of a host's state, as somebody saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Who saw it.
    pub by: HostId,
    /// When this process heard of it.
    pub at: Instant,
    /// Whose state it is.
    pub id: HostId,
    /// What is known now.
    pub state: HostState,
}

/// What went over the links of all simulated hosts since they began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes that came in, as TLS carried them.
    pub received_bytes: u64,
    /// Bytes that went out.
    pub sent_bytes: u64,
}

/// A cluster; gone when it is dropped.
pub struct World {
    /// Who looks on: a member in this process for each data centre.
    pub watchers: BTreeMap<DcName, SwarmHost>,
    /// The gateways.
    pub gateways: Vec<Node>,
    /// Real members.
    pub members: Vec<Node>,
    workers: Vec<Worker>,
    /// Where each simulated host serves HTTP, if that was wanted.
    pub ports: Vec<u16>,
    authority: Arc<Authority>,
    known: Vec<Gateway>,
    seen: Receiver<Seen>,
    tell: Sender<Seen>,
    kumo: std::path::PathBuf,
    lease: Option<Duration>,
    /// Of the watchers; after them.
    pub runtime: Runtime,
    dir: tempfile::TempDir,
}

/// A process that holds the hosts of a data centre. It ends when its input does.
struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    hosts: Vec<HostId>,
}

fn id(dc: &DcName, name: &str) -> io::Result<HostId> {
    Ok(HostId { dc: dc.clone(), host: name.parse().map_err(Error::other)? })
}

impl World {
    /// Starts a world of `plan`; each host has a table of `processes`. `worker` is how this program is
    /// started to call [`super::worker::run`]. Returns when all see all. With a `lease`, silent connections
    /// live longer than others do: where hundreds of hosts share a core, they come late with signs of life.
    ///
    /// # Errors
    /// Something does not start; nothing is left running.
    pub fn start(
        plan: &[DcPlan],
        processes: usize,
        http: bool,
        lease: Option<Duration>,
        kumo: &Path,
        worker: &dyn Fn() -> Command,
    ) -> io::Result<World> {
        let runtime = Runtime::new()?;
        // Not where TMPDIR says: names of sockets have 108 bytes.
        let dir = tempfile::Builder::new().prefix("kumo-").tempdir_in("/tmp")?;
        let cluster = CLUSTER_NAME.parse().map_err(Error::other)?;
        let authority = Arc::new(Authority::create(&cluster, wall_ms()).map_err(Error::other)?);
        let mut known = Vec::new();
        for dc in plan {
            for number in 1..=dc.gateways {
                // The kernel finds a free port; it is ours until the gateway listens there.
                let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
                let addresses = vec![format!("127.0.0.1:{port}")];
                known.push(Gateway { host: id(&dc.name, &format!("gw-{number}"))?, addresses });
            }
        }
        let (tell, seen) = channel();
        let mut world = World {
            watchers: BTreeMap::new(),
            gateways: Vec::new(),
            members: Vec::new(),
            workers: Vec::new(),
            ports: Vec::new(),
            authority,
            known,
            seen,
            tell,
            kumo: kumo.to_owned(),
            lease,
            runtime,
            dir,
        };
        for gateway in world.known.clone() {
            let node = world.identify(&gateway.host, Role::Gateway)?;
            world.gateways.push(node);
        }
        for gateway in &mut world.gateways {
            gateway.up()?;
        }
        world.swarm(plan, processes, http, worker)?;
        for index in 0..world.gateways.len() {
            world.listen_to(&world.gateways[index])?;
        }
        world.settle()?;
        Ok(world)
    }

    fn swarm(
        &mut self,
        plan: &[DcPlan],
        processes: usize,
        http: bool,
        worker: &dyn Fn() -> Command,
    ) -> io::Result<()> {
        let crowd = Zoo::crowd(processes, Mix::default());
        for dc in plan {
            let hosts: Vec<HostId> = (1..=dc.hosts)
                .map(|n| id(&dc.name, &format!("h-{n}")))
                .collect::<io::Result<_>>()?;
            let start = Start {
                hosts: hosts.clone(),
                authority: self.gateways[0].fabric_dir(),
                gateways: self.known.clone(),
                dir: self.dir.path().join("s"),
                keeper: crowd.keeper_pid(),
                processes,
                http,
                lease: self.lease,
            };
            // One data centre after the other: what the coming of each host makes all others do is what a thousand
            // need most of their time for, and they share these cores.
            let mut worker = Worker::spawn(&mut worker(), hosts)?;
            worker.tell(&Order::Start(start))?;
            self.ports.extend(worker.hear()?.ports);
            self.workers.push(worker);
        }
        let common = Common {
            authority: Arc::clone(&self.authority),
            gateways: self.known.clone(),
            dir: self.dir.path().join("s"),
            rows: record(crowd.keeper_pid(), processes)?,
            lease: self.lease,
        };
        for dc in plan {
            let id = id(&dc.name, "watcher")?;
            let host = self.runtime.block_on(SwarmHost::open(common.clone(), id.clone()))?;
            let (mut events, tell) = (host.fabric.events(), self.tell.clone());
            self.runtime.spawn(async move {
                loop {
                    match events.recv().await {
                        Ok(event) => {
                            let (by, at) = (id.clone(), Instant::now());
                            // Nobody listens when the world ends.
                            let _ = tell.send(Seen { by, at, id: event.id, state: event.state });
                        }
                        Err(RecvError::Lagged(_)) => (),
                        Err(RecvError::Closed) => return,
                    }
                }
            });
            self.watchers.insert(dc.name.clone(), host);
        }
        Ok(())
    }

    /// A real node with an identity of this cluster that does not run yet.
    fn identify(&self, id: &HostId, role: Role) -> io::Result<Node> {
        let node = Node::new(&self.kumo, self.dir.path(), id.clone(), self.lease)?;
        let identity = Identity::issue(&self.authority, id, role, wall_ms());
        let mut identity = identity.map_err(Error::other)?;
        let own = self.known.iter().find(|gateway| gateway.host == *id);
        if let Some(address) = own.and_then(|gateway| gateway.addresses.first()) {
            identity.listen = Some(address.parse().map_err(Error::other)?);
            identity.advertise = vec![address.clone()];
        }
        identity.gateways.clone_from(&self.known);
        identity.gateways.retain(|gateway| gateway.host != *id);
        let authority = (role == Role::Gateway).then_some(&*self.authority);
        identity.save(&node.fabric_dir(), authority).map_err(Error::other)?;
        Ok(node)
    }

    /// Starts a real member, and returns when all see it.
    ///
    /// # Errors
    /// It does not start, or is not seen.
    pub fn add_member(&mut self, id: &HostId) -> io::Result<()> {
        let mut node = self.identify(id, Role::Member)?;
        node.up()?;
        self.members.push(node);
        self.settle()
    }

    /// A real node without an identity, for `kumo join`.
    ///
    /// # Errors
    /// Its directories cannot be made.
    pub fn blank(&self, id: HostId) -> io::Result<Node> {
        Node::new(&self.kumo, self.dir.path(), id, self.lease)
    }

    /// Hears of changes by a node that has started (again).
    ///
    /// # Errors
    /// It does not answer.
    pub fn listen_to(&self, node: &Node) -> io::Result<()> {
        #[derive(Deserialize)]
        struct Event {
            #[serde(flatten)]
            id: HostId,
            state: HostState,
        }
        let (by, tell) = (node.id.clone(), self.tell.clone());
        node.events(move |line, at| {
            if let Ok(Event { id, state }) = serde_json::from_str(line) {
                // Nobody listens when the world ends.
                let _ = tell.send(Seen { by: by.clone(), at, id, state });
            }
        })
    }

    /// The simulated hosts, but for those that look on.
    pub fn hosts(&self) -> impl Iterator<Item = &HostId> {
        self.workers.iter().flat_map(|worker| &worker.hosts)
    }

    /// The process of each worker.
    pub fn worker_pids(&self) -> impl Iterator<Item = u32> {
        self.workers.iter().map(|worker| worker.child.id())
    }

    /// How many hosts there are, of all kinds.
    pub fn size(&self) -> usize {
        let running = |node: &&Node| node.pid() != 0;
        let real = self.gateways.iter().chain(&self.members).filter(running).count();
        self.hosts().count() + self.watchers.len() + real
    }

    /// Waits until everybody sees everybody alive, and forgets what was seen until then.
    ///
    /// # Errors
    /// It does not happen.
    pub fn settle(&mut self) -> io::Result<()> {
        let size = self.size();
        self.settle_gateways(size)?;
        for worker in &mut self.workers {
            worker.tell(&Order::Settle(size))?;
        }
        for worker in &mut self.workers {
            worker.hear()?;
        }
        while self.seen.try_recv().is_ok() {}
        Ok(())
    }

    /// Waits until gateways and those that look on see so many alive; returns when they did.
    ///
    /// # Errors
    /// It does not happen.
    pub fn settle_gateways(&self, size: usize) -> io::Result<Instant> {
        let began = Instant::now();
        loop {
            let looked = Instant::now();
            let mut far = None;
            for gateway in self.gateways.iter().filter(|gateway| gateway.pid() != 0) {
                let (alive, others) = gateway.alive()?;
                if alive != size {
                    far = Some((gateway.id.clone(), alive, others));
                }
            }
            for host in self.watchers.values() {
                let (alive, others) = host.alive();
                if alive != size {
                    far = Some((host.fabric.identity().host.clone(), alive, others));
                }
            }
            let now = Instant::now();
            // A look at a thousand hosts costs their gateways something: they shall have time for more.
            let pause = LOOK_PERIOD.max(LOOK_SHARE * (now - looked));
            match far {
                None => return Ok(now),
                Some((id, alive, others)) if now - began > SETTLE_MAX => {
                    let others = others.iter().map(|host| {
                        let card = if host.card.is_some() { "" } else { " without a card" };
                        format!("{} {}{card} for {} ms", host.id, host.state.name(), host.state_ms)
                    });
                    let others = others.collect::<Vec<_>>().join(", ");
                    let said = format!("{id} sees {alive} of {size} hosts alive; others: {others}");
                    return Err(Error::other(said));
                }
                Some(_) => std::thread::sleep(pause),
            }
        }
    }

    /// The next change that somebody sees, until `deadline`.
    pub fn next_seen(&self, deadline: Instant) -> Option<Seen> {
        self.seen.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }

    /// Lets simulated hosts die without a word.
    ///
    /// # Errors
    /// A worker does not obey.
    pub fn drop_hosts(&mut self, gone: &[HostId]) -> io::Result<()> {
        for worker in &mut self.workers {
            worker.tell(&Order::Drop(gone.to_vec()))?;
            worker.hear()?;
            worker.hosts.retain(|host| !gone.contains(host));
        }
        Ok(())
    }

    /// Lets simulated hosts live, but never answer again.
    ///
    /// # Errors
    /// A worker does not obey.
    pub fn hang_hosts(&mut self, silent: &[HostId]) -> io::Result<()> {
        for worker in &mut self.workers {
            worker.tell(&Order::Hang(silent.to_vec()))?;
            worker.hear()?;
        }
        Ok(())
    }

    /// What went over the links of the simulated hosts in the workers.
    ///
    /// # Errors
    /// A worker does not obey.
    pub fn totals(&mut self) -> io::Result<Totals> {
        let mut totals = Totals::default();
        for worker in &mut self.workers {
            worker.tell(&Order::Totals)?;
            let Done { received_bytes, sent_bytes, .. } = worker.hear()?;
            totals.received_bytes += received_bytes;
            totals.sent_bytes += sent_bytes;
        }
        Ok(totals)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _within = self.runtime.enter();
        self.watchers.clear();
    }
}

impl Worker {
    fn spawn(command: &mut Command, hosts: Vec<HostId>) -> io::Result<Worker> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or_else(|| Error::other("no output"))?;
        Ok(Worker { child, input, output: BufReader::new(output), hosts })
    }

    fn tell(&mut self, order: &Order) -> io::Result<()> {
        let input = self.input.as_mut().ok_or_else(|| Error::other("no input"))?;
        writeln!(input, "{}", serde_json::to_string(order)?)?;
        input.flush()
    }

    fn hear(&mut self) -> io::Result<Done> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(Error::other("a worker of the swarm has ended"));
        }
        let done: Done = serde_json::from_str(&line)?;
        match done.error {
            Some(error) => Err(Error::other(error)),
            None => Ok(done),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Its input closes, and it ends; killed because it has nothing to save.
        self.input.take();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
