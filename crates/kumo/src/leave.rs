//! `kumo leave`: this host is its own again.

use kumo_abi::cluster::Role;
use kumo_fabric::identity::{self, Identity};
use kumo_node::{Lock, LockError};

use crate::error::CommandError;
use crate::exit::Exit;
use crate::membership::{MembershipError, Place, Running};
use crate::output::Output;
use crate::text;

/// What `kumo leave --help` ends with.
pub const EXAMPLES: &str = "\
Examples:
  kumo leave                      on the host that leaves
  kumo evict tokyo/web-2          then, elsewhere: its certificate is good no more, its name is free";

/// Take this host out of its cluster
///
/// Nothing is deleted: its certificates and keys, and what it knew of the cluster, are moved aside.
#[derive(Debug, clap::Args)]
pub struct Leave {
    #[command(flatten)]
    place: Place,
}

/// Moves the files aside and tells the node.
///
/// # Errors
/// This host is in no cluster, its node cannot be told, or the files cannot be moved; then nothing is
/// changed.
pub fn run(args: &Leave, out: &mut Output) -> Result<Exit, CommandError> {
    let dir = args.place.fabric_dir();
    // Damaged files are no reason to stay: then only less can be said.
    let identity = Identity::load(&dir).ok().flatten();
    let had_key = dir.join("ca.key").exists();
    let held = hold(&args.place, identity.as_ref())?;
    let aside = identity::leave(&dir).map_err(MembershipError::from)?;
    let aside = text::visible(&aside.to_string_lossy()).into_owned();
    match &identity {
        Some(Identity { host, cluster, .. }) => {
            out.line(format_args!("kumo: {host} has left the cluster `{cluster}`"))?;
        }
        None => out.line("kumo: this host has left its cluster")?,
    }
    out.line(format_args!("  what it had there is in {aside}"))?;
    if had_key {
        out.line(
            "  with a key of the cluster's authority: keep it, or delete it, but do not forget it",
        )?;
    }
    if let Some(Identity { host, role, .. }) = &identity {
        let what = if *role == Role::Gateway { "gateway" } else { "host" };
        out.line(format_args!(
            "On another host of the cluster: kumo evict {host}   (this {what} is good no more)"
        ))?;
    }
    drop(held);
    Ok(args.place.reopen(None, out)?.exit())
}

/// Keeps nodes off the files while they are moved. One that runs on them must be within reach, to be
/// told: else it would go on as what it is no more.
fn hold(place: &Place, identity: Option<&Identity>) -> Result<Option<Lock>, CommandError> {
    let dirs = place.dirs();
    let pid = match Lock::of_state(&dirs.state) {
        Ok(lock) => return Ok(Some(lock)),
        Err(LockError::Held { pid, .. }) => pid,
        // There is nothing to leave, or it cannot be written: that is told next.
        Err(LockError::File { .. }) => return Ok(None),
    };
    let told = place.running()?;
    // One without a cluster may be on its way into it, or could not take part.
    let is_it = |running: &Running| running.is(None) || identity.is_none() || running.is(identity);
    if told.as_ref().is_some_and(is_it) {
        return Ok(None);
    }
    let state = text::visible(&dirs.state.to_string_lossy()).into_owned();
    let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let said = match told {
        None => "it is not where this command looks for it".to_owned(),
        Some(other) => format!("what runs where this command looks for it is {other}"),
    };
    let said = format!(
        "a node runs on {state}{pid} and would not hear of it: {said}; give its --run-dir, or stop it"
    );
    Err(MembershipError::Refused(said).into())
}
