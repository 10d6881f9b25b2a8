//! `kumo evict`: a host is one of the cluster no more.

use kumo_abi::HostId;
use serde::Deserialize;
use serde_json::json;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::membership::MembershipError;
use crate::output::Output;
use crate::source::{Ask, NodeArgs, Source};

/// What `kumo evict --help` ends with.
pub const EXAMPLES: &str = "\
Examples:
  kumo evict tokyo/web-2          its links are cut, and nobody lets it in again

It can come back with `kumo leave` and a new token.";

/// Throw a host out of the cluster, at once
///
/// All certificates of it are good no more, its links are cut wherever that is heard, and its name is
/// free. A gateway that was thrown out still has the key of the authority: whoever holds it can make
/// new certificates. There is no remedy for that but a new cluster.
#[derive(Debug, clap::Args)]
pub struct Evict {
    /// The host, as `kumo hosts` names it
    #[arg(value_name = "DC/HOST")]
    host: HostId,
    #[command(flatten)]
    pub at: NodeArgs,
}

/// What the node answers.
#[derive(Deserialize)]
struct Evicted {
    keys: usize,
}

/// Has the node do it.
///
/// # Errors
/// No node runs, it refuses, or no such host has a certificate.
pub fn run(args: &Evict, node: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let HostId { dc, host } = &args.host;
    let ask = Ask::post("/v2/cluster/evictions".to_owned(), &json!({ "dc": dc, "host": host }));
    let Evicted { keys } = node.json(&ask)?;
    if keys == 0 {
        let said = format!(
            "no certificate of {dc}/{host} is known that is still good; `kumo hosts` lists the hosts"
        );
        return Err(MembershipError::Refused(said).into());
    }
    let certificates = if keys == 1 { "certificate is" } else { "certificates are" };
    out.line(format_args!("kumo: {dc}/{host} is evicted; {keys} {certificates} good no more"))?;
    Ok(Exit::Done)
}
