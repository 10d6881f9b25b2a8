//! The world, the story that happens to it, and what is left of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kumo_abi::HostId;
use kumo_abi::call::Status;
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

use super::check::{LateCall, Verdict, check};
use super::client::Left;
use super::faults::{self, Counts, Deed, Fault, Target};
use super::ledger::{self, Entry};
use super::{BoxError, client, reach, server};
use crate::cluster::{Cluster, Options as ClusterOptions};
use crate::net::{DcPlan, Plan, Way};
use crate::sim::Dice;

/// Programs of each kind on each host.
const PROGRAMS: usize = 2;

/// Callers in each client.
const THREADS: usize = 2;
const TASKS: usize = 6;

/// Calls without faults before anything is measured: connections between nodes are made, memory is touched.
const WARM: Duration = Duration::from_secs(2);

/// A node may end with a link more to each of the two other hosts than it began with. In one of nine stories two
/// gateways had one socket more each, presumably the ends of one connection; a longer story added none.
const LINKS_MORE_MAX: usize = 2;

/// How a node is called here.
const NODE: &str = "the node of";

/// How late a call may be, beyond what the machine kept its thread waiting.
pub const LATE_MAX: Duration = Duration::from_millis(10);

/// Late calls that are shown one by one, those first that the machine explains least.
const LATE_SHOWN: usize = 10;

/// Longest budget of a call in this world, and some more, within which clients must have ended.
const CLIENT_END_MAX: Duration = Duration::from_secs(20);

/// Time between two looks.
const LOOK_PERIOD: Duration = Duration::from_millis(5);

/// What shall be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// The story.
    pub seed: u64,
    /// It goes on until so many calls have had a reply,
    pub replies: u64,
    /// and for so long.
    pub lasts: Duration,
    /// The `kumo` to run.
    pub kumo: PathBuf,
    /// The program whose roles are the programs: `chaos-middlecon`.
    pub program: PathBuf,
    /// Holds everything that is written; empty, and with a short name.
    pub dir: PathBuf,
}

/// Descriptors and memory of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Use {
    /// Open descriptors.
    pub fds: usize,
    /// Resident memory that is its own, in KiB.
    pub kib: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// The story.
    pub seed: u64,
    /// How long it was.
    pub took: Duration,
    /// What was done to whom, how often.
    pub faults: BTreeMap<(&'static str, &'static str), u64>,
    /// What became of all calls.
    pub verdict: Verdict,
    /// Late calls of clients that were not frozen themselves, with what those were told.
    pub late: Vec<LateCall>,
    /// How many more were late because their client was frozen.
    pub late_frozen: usize,
    /// Each process that is left: when all was well before the story, and after it.
    pub uses: Vec<(String, Use, Use)>,
    /// Clients that ended by themselves: descriptors before their first call and after their last.
    pub left: Vec<(usize, usize)>,
    /// How long the slowest client needed to end.
    pub ended_after: Duration,
    /// How long after the last fault all called all again.
    pub well_after: Duration,
}

impl Report {
    /// What was promised and not kept, in words.
    pub fn broken(&self) -> Vec<String> {
        let mut broken: Vec<String> = self.verdict.broken.iter().map(ToString::to_string).collect();
        let leaks = |what: &str, was: usize, is: usize| {
            (is > was).then(|| format!("{what} had {was} descriptors and has {is}"))
        };
        broken.extend(self.uses.iter().filter_map(|(who, was, is)| {
            let more = if who.starts_with(NODE) { LINKS_MORE_MAX } else { 0 };
            leaks(who, was.fds + more, is.fds)
        }));
        broken.extend(self.left.iter().filter_map(|(was, is)| leaks("a client", *was, *is)));
        broken
    }

    /// Calls that were late by more than [`LATE_MAX`], without and with what the machine kept them waiting.
    pub fn too_late(&self) -> (usize, usize) {
        let too_late = |by_us: u32| u128::from(by_us) > LATE_MAX.as_micros();
        let own = self.late.iter().filter(|(late, ..)| too_late(late.own_us()));
        (own.count(), self.late.iter().filter(|(late, ..)| too_late(late.by_us)).count())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = self.verdict.calls();
        let rate = calls as f64 / self.took.as_secs_f64();
        writeln!(f, "seed {}: {calls} calls in {:.1?}, {rate:.0} a second", self.seed, self.took)?;
        for (told, count) in &self.verdict.told {
            writeln!(f, "  {count:>9} {told}")?;
        }
        let Verdict { began, untold, unknown_and_ran, .. } = &self.verdict;
        writeln!(f, "  handlers that began: {began}; {untold} for callers that were killed")?;
        writeln!(f, "  of the calls with an unknown outcome {unknown_and_ran} had run")?;
        writeln!(f, "faults: {}", self.faults.values().sum::<u64>())?;
        for ((whom, deed), count) in &self.faults {
            writeln!(f, "  {count:>9} {deed} {whom}")?;
        }
        let (own, all) = self.too_late();
        let latest = self.late.iter().max_by_key(|(late, ..)| late.by_us);
        let (by, waited) = latest.map_or((0, 0), |(late, ..)| (late.by_us, late.waited_us));
        writeln!(
            f,
            "calls that ended {} ms or more after their deadline: {all}; without the time for which the machine kept \
             their thread waiting: {own}",
            LATE_MAX.as_millis()
        )?;
        writeln!(
            f,
            "  the latest by {:.1} ms, of which it waited {:.1} ms for a processor; {} more of clients that were frozen",
            f64::from(by) / 1e3,
            f64::from(waited) / 1e3,
            self.late_frozen
        )?;
        let mut latest: Vec<_> = self.late.iter().collect();
        latest.sort_by_key(|(late, ..)| Reverse(late.own_us()));
        for (late, status, way) in latest.iter().take(LATE_SHOWN) {
            let (own, who) =
                (f64::from(late.own_us()) / 1e3, if way.by_task { "task" } else { "thread" });
            let (key, service) = (late.key, way.service);
            writeln!(
                f,
                "  {own:.1} ms without: {key:x?}, a {who} that called service {service}: {status}"
            )?;
        }
        writeln!(f, "all called all again {:.1?} after the last fault", self.well_after)?;
        writeln!(f, "the last client ended after {:.1?}", self.ended_after)?;
        writeln!(f, "descriptors and memory, before and after:")?;
        for (who, was, is) in &self.uses {
            writeln!(f, "  {who}: {} and {}; {} KiB and {} KiB", was.fds, is.fds, was.kib, is.kib)?;
        }
        let clients: Vec<String> =
            self.left.iter().map(|(was, is)| format!("{was} and {is}")).collect();
        writeln!(f, "  clients: {}", clients.join(", "))?;
        let broken = self.broken();
        broken.iter().take(20).try_for_each(|broken| writeln!(f, "BROKEN: {broken}"))?;
        write!(f, "{} promises broken", broken.len())
    }
}

/// A program of the world. Killed and reaped when it is dropped.
struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    is_frozen: bool,
}

impl Program {
    fn start(cluster: &Cluster, at: &HostId, mut command: Command) -> Result<Program, BoxError> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = cluster.spawn(at, command)?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("it has no standard output")?;
        Ok(Program { child, stdin, stdout: BufReader::new(stdout), is_frozen: false })
    }

    fn line(&mut self) -> Result<String, BoxError> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.is_empty() { Err("a program ended before its time".into()) } else { Ok(line) }
    }

    fn signal(&mut self, signal: Signal) {
        // It is not reaped before it is dropped, so its number is not given out again.
        let _ = kill_process(Pid::from_child(&self.child), signal);
        self.is_frozen = signal == Signal::STOP;
    }

    /// Asks it to end, and waits for that.
    fn end(&mut self, longest: Duration) -> Result<(), BoxError> {
        drop(self.stdin.take());
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > longest {
                return Err(format!("a program does not end within {longest:?}").into());
            }
            std::thread::sleep(LOOK_PERIOD);
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is mended, and when. The earliest comes first.
type Mending = BinaryHeap<Reverse<(Instant, Target, Deed)>>;

struct World {
    options: Options,
    programs: [Vec<Option<Program>>; 2],
    cluster: Cluster,
    hosts: Vec<HostId>,
    /// Ledgers, and clients by their number: nobody has one of another.
    count: u32,
    mending: Mending,
    faults: BTreeMap<(&'static str, &'static str), u64>,
    /// From when to when a client was frozen, by its number.
    frozen: Vec<(u32, u64, u64)>,
    /// The number of each client that runs.
    numbers: Vec<u32>,
    /// How far each ledger was read, and how many replies were in that.
    read_until: HashMap<PathBuf, u64>,
    replies: u64,
}

const SERVERS: usize = 0;
const CLIENTS: usize = 1;

/// Runs a story; `progress` hears what happens.
///
/// # Errors
/// The world could not be made, or its programs do not do what they are told; not that a promise was broken.
pub fn run(options: Options, progress: &mut dyn FnMut(&str)) -> Result<Report, BoxError> {
    let can_lose = crate::net::no_loss().is_none();
    let mut world = World::new(options, progress)?;
    let counts = Counts {
        servers: world.programs[SERVERS].len(),
        clients: world.programs[CLIENTS].len(),
        hosts: world.hosts.len(),
        dcs: 2,
        can_lose,
    };
    // What all have once they have spoken to each other, and nothing is to be done.
    world.start_clients()?;
    world.until_well()?;
    std::thread::sleep(WARM);
    world.end_clients()?;
    let before = world.settled(None)?;
    world.start_clients()?;
    world.until_well()?;
    progress("all is well; the story begins");

    let began = Instant::now();
    let mut dice = Dice::new(world.options.seed);
    let mut told = Instant::now();
    loop {
        let fault = faults::next(&mut dice, &counts);
        world.begin(fault)?;
        world.mend_until(Instant::now() + Duration::from_millis(fault.pause_ms))?;
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            let (replies, faults) = (world.replies()?, world.faults.values().sum::<u64>());
            progress(&format!("{:.0?}: {replies} replies, {faults} faults", began.elapsed()));
            if replies >= world.options.replies && began.elapsed() >= world.options.lasts {
                break;
            }
        } else if world.options.replies == 0 && began.elapsed() >= world.options.lasts {
            break;
        }
    }
    world.mend_all()?;
    let mended = Instant::now();
    world.until_well()?;
    let (well_after, took) = (mended.elapsed(), began.elapsed());
    progress("the story is over, and all is well again");
    let ending = Instant::now();
    let left = world.end_clients()?;
    let ended_after = ending.elapsed();
    let after = world.settled(Some(&before))?;
    for server in world.programs[SERVERS].iter_mut().flatten() {
        server.end(CLIENT_END_MAX)?;
    }
    let verdict = world.verdict()?;
    let is_frozen = |(late, ..): &&LateCall| {
        let from_ns = late.at_ns.saturating_sub(u64::from(late.by_us) * 1_000);
        world.frozen.iter().any(|(client, from, to)| {
            *client == late.key.client() && *from <= late.at_ns && from_ns <= *to
        })
    };
    let (frozen, late): (Vec<LateCall>, Vec<LateCall>) = verdict.late.iter().partition(is_frozen);
    let uses = before.into_iter().zip(after);
    Ok(Report {
        seed: world.options.seed,
        took,
        faults: std::mem::take(&mut world.faults),
        late,
        late_frozen: frozen.len(),
        verdict,
        uses: uses.map(|((who, was), (_, is))| (who, was, is)).collect(),
        left,
        ended_after,
        well_after,
    })
}

impl World {
    fn new(options: Options, progress: &mut dyn FnMut(&str)) -> Result<World, BoxError> {
        let dc = |name: &str, hosts: &[&str]| -> Result<DcPlan, BoxError> {
            let hosts = hosts.iter().map(|host| host.parse()).collect::<Result<_, _>>()?;
            Ok(DcPlan { name: name.parse()?, hosts, gateways: 1, delay: Duration::ZERO })
        };
        let plan = Plan { dcs: vec![dc("tokyo", &["a", "b"])?, dc("osaka", &["a"])?] };
        let nodes = options.dir.join("hosts");
        fs::create_dir(&nodes)?;
        fs::create_dir(options.dir.join("ledgers"))?;
        let cluster = ClusterOptions {
            kumo: options.kumo.clone(),
            dir: nodes,
            processes: 0,
            log: "warn".to_owned(),
        };
        let cluster = Cluster::start(plan, cluster, progress)?;
        let hosts: Vec<HostId> = cluster.ids().cloned().collect();
        let mut world = World {
            options,
            programs: [Vec::new(), Vec::new()],
            cluster,
            count: 0,
            mending: Mending::new(),
            faults: BTreeMap::new(),
            frozen: Vec::new(),
            numbers: vec![0; hosts.len() * PROGRAMS],
            read_until: HashMap::new(),
            replies: 0,
            hosts,
        };
        for n in 0..world.hosts.len() * PROGRAMS {
            let server = world.start_server(n)?;
            world.programs[SERVERS].push(Some(server));
            world.programs[CLIENTS].push(None);
        }
        world.all_ready(SERVERS)?;
        Ok(world)
    }

    fn at(&self, program: usize) -> &HostId {
        &self.hosts[program / PROGRAMS]
    }

    fn ledger(&mut self) -> (u32, PathBuf) {
        self.count += 1;
        (self.count, self.options.dir.join("ledgers").join(self.count.to_string()))
    }

    fn role(&self, role: &str, orders: &impl serde::Serialize) -> Result<Command, BoxError> {
        let mut command = Command::new(&self.options.program);
        command.args(["play", role, &serde_json::to_string(orders)?]);
        Ok(command)
    }

    fn start_server(&mut self, n: usize) -> Result<Program, BoxError> {
        let (client, ledger) = self.ledger();
        let beside = &self.hosts[(n / PROGRAMS + 1) % self.hosts.len()];
        let orders = server::Orders {
            run_dir: self.cluster.dir(self.at(n))?.join("run"),
            ledger,
            host: name(self.at(n)),
            client,
            beside: name(beside),
        };
        Program::start(&self.cluster, self.at(n), self.role("server", &orders)?)
    }

    fn start_client(&mut self, n: usize) -> Result<Program, BoxError> {
        let (client, ledger) = self.ledger();
        let of_hosts = self
            .hosts
            .iter()
            .flat_map(|host| [format!("threads-{}", name(host)), format!("tasks-{}", name(host))]);
        let orders = client::Orders {
            run_dir: self.cluster.dir(self.at(n))?.join("run"),
            ledger,
            client,
            seed: self.options.seed ^ u64::from(client),
            services: of_hosts.chain(["anywhere".to_owned()]).collect(),
            threads: THREADS,
            tasks: TASKS,
        };
        self.numbers[n] = client;
        Program::start(&self.cluster, self.at(n), self.role("client", &orders)?)
    }

    fn start_clients(&mut self) -> Result<(), BoxError> {
        for n in 0..self.programs[CLIENTS].len() {
            self.programs[CLIENTS][n] = Some(self.start_client(n)?);
        }
        self.all_ready(CLIENTS)
    }

    /// Waits until those that were started together have said that they are ready.
    fn all_ready(&mut self, kind: usize) -> Result<(), BoxError> {
        self.programs[kind].iter_mut().flatten().try_for_each(|program| program.line().map(drop))
    }

    fn end_clients(&mut self) -> Result<Vec<(usize, usize)>, BoxError> {
        let mut clients: Vec<Program> =
            self.programs[CLIENTS].iter_mut().filter_map(Option::take).collect();
        for client in &mut clients {
            drop(client.stdin.take());
        }
        let mut left = Vec::new();
        for client in &mut clients {
            client.end(CLIENT_END_MAX)?;
            // One that was started anew has its word of that before.
            let said = client.line()?;
            let said = if said.trim() == "ready" { client.line()? } else { said };
            left.push(serde_json::from_str::<Left>(&said)?.fds);
        }
        Ok(left)
    }

    /// Waits until every node sees every other, and every service is reached from every host: all is well.
    fn until_well(&mut self) -> Result<(), BoxError> {
        let ids: Vec<HostId> = self.hosts.clone();
        self.cluster.wait("every node sees every other alive", |cluster| {
            ids.iter().all(|at| cluster.sees_all_alive(at))
        })?;
        let services: Vec<String> = ids
            .iter()
            .flat_map(|host| ["threads", "tasks"].map(|kind| format!("{kind}-{}", name(host))))
            .collect();
        let mut reaching = Vec::new();
        for at in &ids {
            let run_dir = self.cluster.dir(at)?.join("run");
            let orders = reach::Orders { run_dir, services: services.clone() };
            reaching.push(Program::start(&self.cluster, at, self.role("reach", &orders)?)?);
        }
        for program in &mut reaching {
            program.line()?;
            program.end(CLIENT_END_MAX)?;
        }
        Ok(())
    }

    /// Descriptors and memory of all nodes and servers, once nothing is to be done; not above `before`, or as
    /// they are in the end.
    fn settled(
        &mut self,
        before: Option<&Vec<(String, Use)>>,
    ) -> Result<Vec<(String, Use)>, BoxError> {
        for server in self.programs[SERVERS].iter_mut().flatten() {
            let stdin = server.stdin.as_mut().ok_or("a server was asked to end")?;
            stdin.write_all(b"rest\n")?;
        }
        let began = Instant::now();
        loop {
            let mut uses = Vec::new();
            for at in &self.hosts {
                uses.push((format!("{NODE} {at}"), Use::of(self.cluster.node_pid(at)?)));
            }
            for (n, server) in self.programs[SERVERS].iter().enumerate() {
                let pid = server.as_ref().ok_or("a server is missing")?.child.id();
                uses.push((format!("server {n} of {}", self.at(n)), Use::of(pid)));
            }
            let is_less = |before: &Vec<(String, Use)>| {
                before.iter().zip(&uses).all(|((_, was), (_, is))| is.fds <= was.fds)
            };
            let is_settled = match before {
                Some(before) => is_less(before),
                // Connections are closed some time after their last call.
                None => began.elapsed() > WARM,
            };
            if is_settled || began.elapsed() > CLIENT_END_MAX {
                return Ok(uses);
            }
            std::thread::sleep(LOOK_PERIOD);
        }
    }

    // What happens.

    fn is_hit(&self, target: Target) -> bool {
        let hit = self.mending.iter().any(|Reverse((_, other, _))| *other == target);
        // A host whose data centre is cut off, and the other way around, is hit once.
        let other_cable = match target {
            Target::Dc(_) => {
                self.mending.iter().any(|Reverse((_, other, _))| matches!(other, Target::Host(_)))
            }
            Target::Host(_) => {
                self.mending.iter().any(|Reverse((_, other, _))| matches!(other, Target::Dc(_)))
            }
            _ => false,
        };
        hit || other_cable
    }

    fn begin(&mut self, fault: Fault) -> Result<(), BoxError> {
        let Fault { target, deed, lasts_ms, .. } = fault;
        if self.is_hit(target) {
            return Ok(());
        }
        match (target, deed) {
            (Target::Server(n), Deed::Drain) => {
                if let Some(server) = &mut self.programs[SERVERS][n] {
                    drop(server.stdin.take());
                }
            }
            (Target::Server(n), deed) => self.hit_program(SERVERS, n, deed),
            (Target::Client(n), deed) => {
                if deed == Deed::Freeze {
                    self.frozen.push((self.numbers[n], now_ns(), u64::MAX));
                }
                self.hit_program(CLIENTS, n, deed);
            }
            (Target::Node(n), Deed::Freeze) => self.cluster.freeze(&self.hosts[n])?,
            (Target::Node(n), _) => self.cluster.kill(&self.hosts[n].clone())?,
            (Target::Host(n), Deed::Swallow) => {
                self.cluster.lose(&self.hosts[n], Way::In, 100)?;
                self.cluster.lose(&self.hosts[n], Way::Out, 100)?;
            }
            (Target::Host(n), _) => self.cluster.cut(&self.hosts[n])?,
            (Target::Dc(n), _) => self.cluster.cut_dc(&self.dc(n))?,
        }
        *self.faults.entry((target.kind(), deed.name())).or_default() += 1;
        let until = Instant::now() + Duration::from_millis(lasts_ms);
        self.mending.push(Reverse((until, target, deed)));
        Ok(())
    }

    fn dc(&self, n: usize) -> kumo_abi::DcName {
        self.cluster.net().plan().dcs[n].name.clone()
    }

    fn hit_program(&mut self, kind: usize, n: usize, deed: Deed) {
        match deed {
            // Dropped: killed, and reaped.
            Deed::Kill => self.programs[kind][n] = None,
            _ => {
                if let Some(program) = &mut self.programs[kind][n] {
                    program.signal(Signal::STOP);
                }
            }
        }
    }

    fn mend(&mut self, target: Target, deed: Deed) -> Result<(), BoxError> {
        match (target, deed) {
            (Target::Server(n), Deed::Freeze) => self.go_on(SERVERS, n),
            (Target::Client(n), Deed::Freeze) => {
                self.go_on(CLIENTS, n);
                let client = self.numbers[n];
                if let Some((_, _, to)) = self.frozen.iter_mut().rfind(|(of, ..)| *of == client) {
                    *to = now_ns();
                }
            }
            (Target::Server(n), _) => {
                self.programs[SERVERS][n] = None;
                self.programs[SERVERS][n] = Some(self.start_server(n)?);
            }
            (Target::Client(n), _) => self.programs[CLIENTS][n] = Some(self.start_client(n)?),
            (Target::Node(n), Deed::Freeze) => self.cluster.thaw(&self.hosts[n])?,
            (Target::Node(n), _) => self.cluster.up(&self.hosts[n].clone())?,
            (Target::Host(n), _) => self.cluster.heal(&self.hosts[n])?,
            (Target::Dc(n), _) => self.cluster.heal_dc(&self.dc(n))?,
        }
        Ok(())
    }

    fn go_on(&mut self, kind: usize, n: usize) {
        if let Some(program) = &mut self.programs[kind][n] {
            program.signal(Signal::CONT);
        }
    }

    /// Mends what is due until then.
    fn mend_until(&mut self, until: Instant) -> Result<(), BoxError> {
        loop {
            let now = Instant::now();
            let due = self.mending.peek().is_some_and(|Reverse((at, ..))| *at <= now);
            if due && let Some(Reverse((_, target, deed))) = self.mending.pop() {
                self.mend(target, deed)?;
                continue;
            }
            if now >= until {
                return Ok(());
            }
            std::thread::sleep(LOOK_PERIOD.min(until - now));
        }
    }

    fn mend_all(&mut self) -> Result<(), BoxError> {
        while let Some(Reverse((_, target, deed))) = self.mending.pop() {
            self.mend(target, deed)?;
        }
        if let Some((id, how)) = self.cluster.ended().into_iter().next() {
            return Err(format!("the node of {id} ended by itself: {how}").into());
        }
        // Each that was started anew serves.
        for n in 0..self.programs[SERVERS].len() {
            let server = self.programs[SERVERS][n].as_mut().ok_or("a server is missing")?;
            if server.child.try_wait()?.is_some() {
                return Err(format!("server {n} ended by itself").into());
            }
        }
        Ok(())
    }

    // What was written.

    fn ledgers(&self) -> impl Iterator<Item = PathBuf> + use<> {
        let dir = self.options.dir.join("ledgers");
        (1..=self.count).map(move |n| dir.join(n.to_string())).filter(|path| path.exists())
    }

    /// How many calls have had a reply: those that were refused at once are no work.
    fn replies(&mut self) -> Result<u64, BoxError> {
        for path in self.ledgers() {
            let seen = self.read_until.entry(path.clone()).or_default();
            let entries = ledger::read_from(&path, seen)?;
            let is_reply = |entry: &&Entry| matches!(entry, Entry::Told(_, Status::Done, _));
            self.replies += entries.iter().filter(is_reply).count() as u64;
        }
        Ok(self.replies)
    }

    fn verdict(&self) -> Result<Verdict, BoxError> {
        let mut entries = Vec::new();
        for path in self.ledgers() {
            entries.extend(ledger::read_from(&path, &mut 0)?);
        }
        Ok(check(entries))
    }
}

impl Use {
    fn of(pid: u32) -> Use {
        let dir = Path::new("/proc").join(pid.to_string());
        let fds = fs::read_dir(dir.join("fd")).map_or(0, Iterator::count);
        let status = fs::read_to_string(dir.join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        Use { fds, kib: kib.unwrap_or(0) }
    }
}

/// A host's name, as part of that of a service.
fn name(host: &HostId) -> String {
    format!("{}-{}", host.dc, host.host)
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
