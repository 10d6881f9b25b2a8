//! `kumo leave`: this host is its own again.

use kumo_abi::cluster::Role;
use kumo_fabric::identity::{self, Identity};

use crate::error::CommandError;
use crate::exit::Exit;
use crate::membership::{MembershipError, Place};
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
/// This host is in no cluster, or the files cannot be moved.
pub fn run(args: &Leave, out: &mut Output) -> Result<Exit, CommandError> {
    let dir = args.place.fabric_dir();
    // Damaged files are no reason to stay: then only less can be said.
    let identity = Identity::load(&dir).ok().flatten();
    let had_key = dir.join("ca.key").exists();
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
    args.place.reopen(out)?;
    Ok(Exit::Done)
}
