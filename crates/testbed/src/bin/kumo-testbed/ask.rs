//! Subcommands that ask the owner of a cluster.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::faults::Fault;
use crate::say;
use crate::world::{Ask, At, Reply, World};

/// Longest wait for an owner that said it would end.
const END_WAIT_MAX: Duration = Duration::from_secs(60);

/// Time between two looks whether it has.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Ends the cluster, and removes what a killed owner left behind.
pub(crate) fn down(at: &At) -> Result<(), String> {
    let dir = at.dir()?;
    match dir.ask(&Ask::Down) {
        Ok(_) => {
            // The owner's lock is free when all is gone.
            let began = Instant::now();
            while dir.lock().is_err() {
                if began.elapsed() > END_WAIT_MAX {
                    return Err("the cluster's owner does not end; look at its log".to_owned());
                }
                sleep(LOOK_PERIOD);
            }
            say("the cluster is down");
            Ok(())
        }
        Err(error) => {
            // It may have been killed, or be in the middle of its start.
            let _lock = dir.lock().map_err(|_| error)?;
            let stale = kumo_testbed::net::remove_stale().map_err(|e| kumo_testbed::chain(&e))?;
            let hosts = dir.hosts();
            let had_files = hosts.exists();
            if had_files {
                let removed = fs::remove_dir_all(&hosts);
                removed.map_err(|error| format!("cannot remove {}: {error}", hosts.display()))?;
            }
            if stale > 0 || had_files {
                say("no cluster was up; what a killed one had left is removed");
            } else {
                say("no cluster was up");
            }
            Ok(())
        }
    }
}

/// Shows how things are.
pub(crate) fn status(at: &At, status: &Status) -> Result<(), String> {
    let world = world(at)?;
    if status.json {
        say(&serde_json::to_string(&world).map_err(|error| error.to_string())?);
        return Ok(());
    }
    say(&format!(
        "{:<16} {:<8} {:<6} {:<12} {:<14} RUN DIRECTORY",
        "HOST", "ROLE", "NODE", "ADDRESS", "CABLE"
    ));
    for host in &world.hosts {
        let id = host.id.to_string();
        let cable = world.cables.get(&id).map_or("-", String::as_str);
        let role = if host.gateway { "gateway" } else { "member" };
        let address = host.address.to_string();
        let (node, run_dir) = (host.node.name(), host.run_dir.display());
        say(&format!("{id:<16} {role:<8} {node:<6} {address:<12} {cable:<14} {run_dir}"));
    }
    for (target, how) in world.cables.iter().filter(|(target, _)| !target.contains('/')) {
        say(&format!("data centre {target}: {how}"));
    }
    Ok(())
}

/// Lets something happen.
pub(crate) fn fault(at: &At, fault: Fault) -> Result<(), String> {
    match at.dir()?.ask(&Ask::Fault(fault))? {
        Reply::Done(said) => say(&said),
        Reply::Status(_) => return Err("the cluster's owner is of another version".to_owned()),
    }
    Ok(())
}

pub(crate) fn world(at: &At) -> Result<World, String> {
    match at.dir()?.ask(&Ask::Status)? {
        Reply::Status(world) => Ok(world),
        Reply::Done(_) => Err("the cluster's owner is of another version".to_owned()),
    }
}
