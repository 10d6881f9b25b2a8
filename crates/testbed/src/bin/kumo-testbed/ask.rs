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
            let lock = loop {
                if let Ok(lock) = dir.lock() {
                    break lock;
                }
                if began.elapsed() > END_WAIT_MAX {
                    return Err("the cluster's owner does not end; look at its log".to_owned());
                }
                sleep(LOOK_PERIOD);
            };
            dir.leave(lock);
            say("the cluster is down");
            Ok(())
        }
        Err(error) => {
            // It may have been killed, or be in the middle of its start.
            let lock = dir.lock().map_err(|_| error)?;
            let stale = kumo_testbed::net::remove_stale().map_err(|e| kumo_testbed::chain(&e))?;
            let hosts = dir.hosts();
            let had_files = hosts.exists();
            if had_files {
                let removed = fs::remove_dir_all(&hosts);
                removed.map_err(|error| format!("cannot remove {}: {error}", hosts.display()))?;
            }
            dir.leave(lock);
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
    let heading = ["HOST", "ROLE", "NODE", "ADDRESS", "CABLE", "RUN DIRECTORY"].map(str::to_owned);
    let rows = world.hosts.iter().map(|host| {
        let id = host.id.to_string();
        let cable = world.cables.get(&id).map_or("-", String::as_str).to_owned();
        let role = if host.gateway { "gateway" } else { "member" }.to_owned();
        let (node, address) = (host.node.name().to_owned(), host.address.to_string());
        [id, role, node, address, cable, host.run_dir.display().to_string()]
    });
    for line in table(&[heading].into_iter().chain(rows).collect::<Vec<_>>()) {
        say(&line);
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

/// Rows as lines whose columns begin below each other.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let line = |row: &[String; COLUMNS]| {
        let cells = row.iter().enumerate();
        let cells: Vec<_> = cells.map(|(i, cell)| format!("{cell:<w$}", w = width(i))).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_begin_below_each_other() {
        let rows = [["a", "bb", "c"], ["aaa", "b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), ["a    bb  c", "aaa  b"]);
    }
}
