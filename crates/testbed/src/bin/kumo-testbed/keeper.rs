//! `kumo-testbed up`: the owner of a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kumo_abi::HostId;
use kumo_testbed::cluster::{Cluster, Options};
use kumo_testbed::net::Plan;
use kumo_testbed::{chain, check_program, kumo_beside};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{interval, timeout};

use crate::faults::{CableChange, Fault};
use crate::world::{Ask, At, Dir, HostStatus, LINE_BYTES_MAX, NodeStatus, Reply, World};
use crate::{say, say_error, user};

/// Longest wait for what who asks has to say: it is one line.
const ASK_WAIT_MAX: Duration = Duration::from_secs(5);

/// Time between two looks whether nodes ended by themselves.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Start a cluster and keep it until Ctrl-C
#[derive(Debug, clap::Args)]
// So that `make demo` has options that people can override.
#[command(args_override_self = true)]
pub(crate) struct Up {
    /// Data centres
    #[arg(long, value_name = "N", default_value_t = 2)]
    dcs: usize,
    /// Hosts of each
    #[arg(long, value_name = "N", default_value_t = 3)]
    hosts: usize,
    /// How many of them are gateways
    #[arg(long, value_name = "N", default_value_t = 1)]
    gateways: usize,
    /// Processes on each host beside its node
    #[arg(long, value_name = "N", default_value_t = 20)]
    procs: usize,
    /// Delay each packet between data centres this long on each end of a cable: two data centres are
    /// four times that apart, there and back
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay: u64,
    /// Return when it is up, and keep it in the background until `kumo testbed down`
    #[arg(long, short)]
    detach: bool,
    /// The kumo to run on the hosts [default: the one beside this program, else that on the PATH]
    #[arg(long, value_name = "FILE")]
    kumo: Option<PathBuf>,
    /// What nodes log, as kumo up --log takes it
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    /// We are the one in the background.
    #[arg(long, hide = true, conflicts_with = "detach")]
    background: bool,
}

/// Keeps a cluster until it is told to end.
pub(crate) fn run(at: &At, up: &Up) -> Result<(), String> {
    let delay = Duration::from_millis(up.delay);
    let plan = Plan::even(up.dcs, up.hosts, up.gateways, delay).map_err(|error| chain(&error))?;
    let dir = at.dir()?;
    let kumo = up.kumo.clone().unwrap_or_else(kumo_beside);
    check_program(&kumo)?;
    if up.detach {
        return detach(&dir);
    }
    if up.background {
        // The terminal may go away; its Ctrl-C is not for us.
        rustix::process::setsid().map_err(|error| format!("cannot leave the terminal: {error}"))?;
    }
    let lock = dir.lock()?;
    let in_user_namespace = user::enter()?;
    clear(&dir)?;
    let began = Instant::now();
    let options =
        Options { kumo: kumo.clone(), dir: dir.hosts(), processes: up.procs, log: up.log.clone() };
    let progress = &mut |done: &str| say(&format!("  {done}"));
    let cluster = Cluster::start(plan, options, progress).map_err(|error| chain(&error))?;
    let listener = std::os::unix::net::UnixListener::bind(dir.socket());
    let listener = listener.map_err(|error| format!("cannot listen: {error}"))?;
    let frozen = BTreeSet::new();
    let cables = BTreeMap::new();
    let mut keeper = Keeper { cluster, kumo, in_user_namespace, frozen, cables };
    say(&format!("up after {:.1} s", began.elapsed().as_secs_f64()));
    say(&keeper.how_to(&dir));
    if up.background {
        leave_output(&dir)?;
    } else {
        say("Ctrl-C ends it.");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let kept = runtime.block_on(keep(&mut keeper, listener));
    drop(keeper);
    clear(&dir)?;
    dir.leave(lock);
    say("down");
    kept.map_err(|error| format!("cannot go on: {error}"))
}

/// Starts ourselves again in the background, and shows what it says until the cluster is up.
fn detach(dir: &Dir) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot start in the background: {error}");
    // One that is up already would answer in place of the new one.
    drop(dir.lock()?);
    let log = File::create(dir.log()).map_err(failed)?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    let options = std::env::args_os().skip(1).filter(|option| option != "--detach");
    // `-d` takes no value, so nobody writes it together with another letter.
    command.args(options.filter(|option| option != "-d")).arg("--background");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(failed)?;
    let mut said = child.stdout.take().ok_or("it has no output")?;
    let mut bytes = [0; 4096];
    // It closes its output when the cluster is up, and when it ends.
    while let Ok(count @ 1..) = said.read(&mut bytes) {
        let mut out = io::stdout();
        let _ = out.write_all(&bytes[..count]).and_then(|()| out.flush());
    }
    if dir.ask(&Ask::Status).is_ok() {
        return Ok(());
    }
    let status = child.wait().map_err(failed)?;
    let log = fs::read_to_string(dir.log()).unwrap_or_default();
    Err(format!("the cluster did not start ({status}):\n{log}"))
}

/// From now on what we say goes to our log: nobody listens any more.
fn leave_output(dir: &Dir) -> Result<(), String> {
    let log = File::options().append(true).open(dir.log());
    let log = log.map_err(|error| format!("cannot open a log: {error}"))?;
    rustix::stdio::dup2_stdout(&log).map_err(|error| format!("cannot leave the output: {error}"))
}

/// Removes what an earlier cluster left.
fn clear(dir: &Dir) -> Result<(), String> {
    for path in [dir.hosts(), dir.socket()] {
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("cannot remove {}: {error}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Answers who asks until the end is wanted.
async fn keep(keeper: &mut Keeper, listener: std::os::unix::net::UnixListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let mut ends: Vec<Signal> =
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .into_iter()
            .map(signal)
            .collect::<io::Result<_>>()?;
    let [interrupt, terminate, hangup] = ends.as_mut_slice() else { return Ok(()) };
    let mut look = interval(LOOK_PERIOD);
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = look.tick() => keeper.look(),
            accepted = listener.accept() => {
                // One at a time: faults happen in the order in which they were asked for.
                if answer(keeper, accepted?.0).await {
                    return Ok(());
                }
            }
        }
    }
}

/// Answers one; whether the end is wanted.
async fn answer(keeper: &mut Keeper, mut stream: UnixStream) -> bool {
    let mut line = String::new();
    let mut reader = BufReader::new((&mut stream).take(LINE_BYTES_MAX));
    let Ok(Ok(_)) = timeout(ASK_WAIT_MAX, reader.read_line(&mut line)).await else { return false };
    let ask: Result<Ask, String> = serde_json::from_str(&line).map_err(|error| error.to_string());
    let ends = ask == Ok(Ask::Down);
    let reply = ask.and_then(|ask| keeper.answer(ask));
    if let Ok(mut reply) = serde_json::to_string(&reply) {
        reply.push('\n');
        // Who asked may have gone away; it is done all the same.
        let _ = timeout(ASK_WAIT_MAX, stream.write_all(reply.as_bytes())).await;
    }
    ends
}

struct Keeper {
    cluster: Cluster,
    kumo: PathBuf,
    in_user_namespace: bool,
    frozen: BTreeSet<HostId>,
    cables: BTreeMap<String, String>,
}

impl Keeper {
    fn answer(&mut self, ask: Ask) -> Result<Reply, String> {
        match ask {
            Ask::Status => Ok(Reply::Status(self.world()?)),
            Ask::Down => Ok(Reply::Done("going down".to_owned())),
            Ask::Fault(fault) => {
                self.look();
                fault.happen(&mut self.cluster).map_err(|error| chain(&error))?;
                self.note(&fault);
                let said = fault.to_string();
                say(&said);
                Ok(Reply::Done(said))
            }
        }
    }

    fn note(&mut self, fault: &Fault) {
        match fault {
            Fault::Stop { host } => {
                self.frozen.insert(host.clone());
            }
            Fault::Cont { host } | Fault::Kill { host } => {
                self.frozen.remove(host);
            }
            _ => {}
        }
        match fault.cable() {
            Some(CableChange::Broken(target, how)) => {
                self.cables.insert(target.to_string(), how);
            }
            Some(CableChange::Whole(Some(target))) => {
                self.cables.remove(&target.to_string());
            }
            Some(CableChange::Whole(None)) => self.cables.clear(),
            None => {}
        }
    }

    /// Says of nodes that ended by themselves.
    fn look(&mut self) {
        for (id, status) in self.cluster.ended() {
            self.frozen.remove(&id);
            let dir = self.cluster.dir(&id).map(|dir| dir.join("log").display().to_string());
            let log = dir.unwrap_or_default();
            say_error(&format!("the node of {id} ended ({status}); its log is {log}"));
        }
    }

    fn world(&mut self) -> Result<World, String> {
        self.look();
        let hosts = self.ids().iter().map(|id| self.host(id)).collect::<Result<_, _>>();
        Ok(World {
            owner_pid: std::process::id(),
            in_user_namespace: self.in_user_namespace,
            kumo: self.kumo.clone(),
            hosts: hosts.map_err(|error| chain(&error))?,
            cables: self.cables.clone(),
        })
    }

    /// All hosts, as people count them: the first is that of `kumo init`.
    fn ids(&self) -> Vec<HostId> {
        self.cluster.net().plan().hosts().map(|(id, _)| id).collect()
    }

    fn host(&self, id: &HostId) -> Result<HostStatus, kumo_testbed::cluster::ClusterError> {
        let node = match self.cluster.is_up(id) {
            false => NodeStatus::Down,
            true if self.frozen.contains(id) => NodeStatus::Frozen,
            true => NodeStatus::Up,
        };
        Ok(HostStatus {
            id: id.clone(),
            gateway: self.cluster.is_gateway(id),
            address: self.cluster.net().address(id)?,
            init_pid: self.cluster.init_pid(id)?,
            node,
            run_dir: self.cluster.dir(id)?.join("run"),
        })
    }

    /// How to use it, for people.
    fn how_to(&self, dir: &Dir) -> String {
        let ids = self.ids();
        let (Some(first), Some(last)) = (ids.first(), ids.last()) else { return String::new() };
        let run = dir.hosts().join(first.dc.as_str()).join(first.host.as_str()).join("run");
        let (run, at) = (run.display(), dir.option());
        format!(
            "
From this machine:
  kumo hosts --run-dir {run}
  kumo ps --all --run-dir {run}
  kumo top --all --run-dir {run}
On a host:
  kumo testbed exec{at} {first} -- kumo map
  kumo testbed exec{at} {last}
Let something happen:
  kumo testbed fault{at} kill {last}
  kumo testbed fault{at} cut {}
  kumo testbed fault{at} heal
  kumo testbed status{at}
",
            last.dc
        )
    }
}
