//! Deaths and how soon they are seen, joining, and what an idle host costs.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Error};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kumo_abi::HostId;
use kumo_abi::cluster::HostState;
use kumo_testbed::bench::machine;
use kumo_testbed::bench::stats::{Times, ms};
use kumo_testbed::swarm::World;
use kumo_testbed::swarm::node::Node;
use rustix::process::Signal;

use crate::{Effort, NAME};

/// Longest wait for a death to be seen.
const SEEN_MAX: Duration = Duration::from_secs(20);

/// After a gateway's death it is looked for so long whether anybody is shown dead with it.
const AFTERMATH: Duration = Duration::from_secs(3);

/// After a start so much is left to be exchanged that an idle cluster is looked at later.
const CALM: Duration = Duration::from_secs(5);

fn id(name: &str) -> io::Result<HostId> {
    name.parse().map_err(Error::other)
}

/// Everything about lives in one world.
pub(crate) fn measure(world: &mut World, effort: Effort, kumo: &Path) -> io::Result<String> {
    world.add_member(&id("osaka/victim")?)?;
    world.add_member(&id("tokyo/victim")?)?;
    let mut text = idle(world, effort)?;
    text += "\n### How soon a death is seen, with all of these hosts\n\n\
             | what happens | at a gateway of its site ms | at other gateways ms | at members ms | by all: median ms | by all: max ms |\n\
             |---|---:|---:|---:|---:|---:|\n";
    let mut deaths = Deaths::of("a host is killed");
    for _ in 0..effort.deaths {
        deaths.add(world, &|world| {
            let victim = &mut world.members[0];
            Ok((victim.id.clone(), victim.kill()?))
        })?;
        world.members[0].up()?;
        world.settle()?;
    }
    text += &deaths.row();
    let mut deaths = Deaths::of("a host is frozen");
    for _ in 0..effort.deaths {
        deaths.add(world, &|world| {
            let victim = &world.members[0];
            Ok((victim.id.clone(), victim.signal(Signal::STOP)?))
        })?;
        world.members[0].signal(Signal::CONT)?;
        world.settle()?;
    }
    text += &deaths.row();
    let mut deaths = Deaths::of("a host and its gateway are killed");
    for _ in 0..effort.few {
        let via = world.members[1].links()?.first().map(|link| link.peer.clone());
        let gateway = world.gateways.iter().position(|gateway| Some(&gateway.id) == via.as_ref());
        let gateway = gateway.ok_or_else(|| Error::other("it has no gateway"))?;
        deaths.add(world, &|world| {
            world.gateways[gateway].kill()?;
            let victim = &mut world.members[1];
            Ok((victim.id.clone(), victim.kill()?))
        })?;
        up_again(world, gateway)?;
        world.members[1].up()?;
        world.settle()?;
    }
    text += &deaths.row();
    let mut deaths = Deaths::of("one of two gateways is killed");
    let mut wrong = 0;
    for round in 0..effort.few {
        let gateway = round % 2;
        deaths.add(world, &|world| {
            let gateway = &mut world.gateways[gateway];
            Ok((gateway.id.clone(), gateway.kill()?))
        })?;
        let until = Instant::now() + AFTERMATH;
        while let Some(seen) = world.next_seen(until) {
            wrong += usize::from(seen.id != world.gateways[gateway].id && is_gone(seen.state));
        }
        up_again(world, gateway)?;
        world.settle()?;
    }
    text += &deaths.row();
    wrong += deaths.others;
    let _ = writeln!(
        text,
        "\nOther hosts that anybody saw dead or cut off in {} deaths of a gateway: {wrong}.",
        effort.few
    );
    text += &joins(world, effort, kumo)?;
    Ok(text)
}

fn is_gone(state: HostState) -> bool {
    matches!(state, HostState::Dead | HostState::CutOff)
}

fn up_again(world: &mut World, gateway: usize) -> io::Result<()> {
    world.gateways[gateway].up()?;
    world.listen_to(&world.gateways[gateway])
}

/// When one kind of death was seen.
#[derive(Default)]
struct Deaths {
    what: &'static str,
    near: Times,
    far: Times,
    members: Times,
    all: Times,
    /// Others that somebody saw dead meanwhile.
    others: usize,
}

impl Deaths {
    fn of(what: &'static str) -> Deaths {
        eprintln!("{NAME}: {what}, again and again");
        Deaths { what, ..Deaths::default() }
    }

    /// Does it, and waits until everybody has seen it.
    fn add(
        &mut self,
        world: &mut World,
        happens: &dyn Fn(&mut World) -> io::Result<(HostId, Instant)>,
    ) -> io::Result<()> {
        let (id, at) = happens(world)?;
        let running = world.gateways.iter().filter(|gateway| gateway.pid() != 0);
        let mut waiting: std::collections::BTreeSet<HostId> =
            running.map(|gateway| gateway.id.clone()).collect();
        waiting.extend(world.watchers.values().map(|host| host.fabric.identity().host.clone()));
        let deadline = Instant::now() + SEEN_MAX;
        let mut last = Duration::ZERO;
        while !waiting.is_empty() {
            let Some(seen) = world.next_seen(deadline) else {
                return Err(Error::other(format!("{waiting:?} did not see the death of {id}")));
            };
            if !is_gone(seen.state) {
                continue;
            }
            if seen.id != id {
                let is_own = world.gateways.iter().any(|g| g.id == seen.id && g.pid() == 0);
                self.others += usize::from(!is_own);
                continue;
            }
            if !waiting.remove(&seen.by) {
                continue;
            }
            let took = seen.at.saturating_duration_since(at);
            let times = match (seen.by.host.as_str() == "watcher", seen.by.dc == id.dc) {
                (true, _) => &mut self.members,
                (false, true) => &mut self.near,
                (false, false) => &mut self.far,
            };
            times.0.push(took);
            last = last.max(took);
        }
        self.all.0.push(last);
        Ok(())
    }

    fn row(&self) -> String {
        let what = self.what;
        let median = |times: &Times| times.median().map_or_else(String::new, ms);
        format!(
            "| {what} ({} times) | {} | {} | {} | {} | {} |\n",
            self.all.0.len(),
            median(&self.near),
            median(&self.far),
            median(&self.members),
            median(&self.all),
            self.all.max().map_or_else(String::new, ms)
        )
    }
}

/// `kumo join`, and `kumo up` of what it made.
fn joins(world: &mut World, effort: Effort, kumo: &Path) -> io::Result<String> {
    let said = Command::new(kumo)
        .args(["token", "--uses", &effort.few.to_string()])
        .args(&world.gateways[0].options()[2..])
        .stderr(Stdio::inherit())
        .output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let token = said.split_whitespace().find(|word| word.starts_with("kumo1."));
    let token = token.ok_or_else(|| Error::other(format!("no token: {said}")))?;
    let (mut joined, mut shown) = (Times::default(), Times::default());
    for number in 0..effort.few {
        let mut node = world.blank(id(&format!("osaka/new-{number}"))?)?;
        let (dc, host) = (node.id.dc.as_str(), node.id.host.as_str());
        let began = Instant::now();
        let output = Command::new(kumo)
            .args(["join", token, "--dc", dc, "--host", host])
            .args(node.options())
            .output()?;
        joined.0.push(began.elapsed());
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Error::other(format!("kumo join: {said}")));
        }
        let size = world.size() + 1;
        let began = Instant::now();
        node.up()?;
        shown.0.push(world.settle_gateways(size)?.saturating_duration_since(began));
        world.members.push(node);
    }
    let line = |what: &str, times: &Times| {
        let of = |time: Option<Duration>| time.map_or_else(String::new, ms);
        format!("| {what} | {} | {} |\n", of(times.median()), of(times.max()))
    };
    let mut text =
        format!("\n| {} hosts join | median ms | max ms |\n|---|---:|---:|\n", effort.few);
    text += &line("`kumo join`, from its start to its end", &joined);
    text += &line("`kumo up`, until all gateways and members see it with its card", &shown);
    Ok(text)
}

/// Bytes that the loopback interface has carried, headers included.
fn loopback_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/net/dev").ok()?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What nothing costs.
fn idle(world: &mut World, effort: Effort) -> io::Result<String> {
    eprintln!("{NAME}: idle for {} s", effort.idle_s);
    std::thread::sleep(CALM);
    let gone = || Error::other("a process has ended");
    let workers: Vec<u32> = world.worker_pids().collect();
    let gateways: Vec<u32> = world.gateways.iter().map(Node::pid).collect();
    let members: Vec<u32> = world.members.iter().map(Node::pid).collect();
    let cpu = |pids: &[u32]| -> io::Result<Duration> {
        pids.iter().map(|pid| machine::cpu_time(*pid).ok_or_else(gone)).sum()
    };
    let groups = [&workers, &gateways, &members];
    let simulated = world.hosts().count();
    let before = (world.totals()?, loopback_bytes());
    let cpu_before = groups.iter().map(|pids| cpu(pids)).collect::<io::Result<Vec<_>>>()?;
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(effort.idle_s));
    let cpu_after = groups.iter().map(|pids| cpu(pids)).collect::<io::Result<Vec<_>>>()?;
    let seconds = began.elapsed().as_secs_f64();
    let after = (world.totals()?, loopback_bytes());
    let received = after.0.received_bytes - before.0.received_bytes;
    let sent = after.0.sent_bytes - before.0.sent_bytes;
    let a_host = |bytes: u64| bytes as f64 / seconds / simulated as f64;
    let mut text = format!(
        "### Nothing to do, {simulated} simulated hosts, 4 gateways, {} real members, {seconds:.0} s\n\n\
         | of each | CPU, % of one | RSS MiB | bytes/s in | bytes/s out |\n|---|---:|---:|---:|---:|\n",
        members.len()
    );
    let names = ["simulated host", "gateway (`kumo up`)", "member (`kumo up`)"];
    for (index, name) in names.into_iter().enumerate() {
        let pids = groups[index];
        let count = if index == 0 { simulated } else { pids.len() };
        let used = cpu_after[index].saturating_sub(cpu_before[index]).as_secs_f64();
        let kib: u64 =
            pids.iter().filter_map(|pid| machine::resident_kib(*pid)).map(|(now, _)| now).sum();
        let percent = 100.0 * used / seconds / count as f64;
        let mib = kib as f64 / 1024.0 / count as f64;
        let bytes = if index == 0 {
            format!("{:.0} | {:.0}", a_host(received), a_host(sent))
        } else {
            "|".to_owned()
        };
        let _ = writeln!(text, "| {name} | {percent:.2} | {mib:.1} | {bytes} |");
    }
    text += "\nBytes are those of TLS; headers of TCP and IP are not in them.";
    if let (Some(before), Some(after)) = (before.1, after.1) {
        let hosts = world.size() as f64;
        let all = (after - before) as f64 / seconds / hosts;
        let _ = write!(
            text,
            " Everything that the loopback interface carried, headers of 66 bytes a packet and whatever \
             else this machine did included: {all:.0} bytes a second for each of all {hosts} hosts."
        );
    }
    text += "\n";
    Ok(text)
}
