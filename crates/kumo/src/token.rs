//! `kumo token`: a text that lets other hosts into the cluster.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use kumo_abi::DcName;
use serde::Deserialize;
use serde_json::json;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::membership::span;
use crate::output::Output;
use crate::source::{Ask, Source};

/// What `kumo token --help` ends with.
pub const EXAMPLES: &str = "\
Examples:
  kumo token                            for one host, within an hour
  kumo token --dc osaka --uses 20       for twenty hosts of osaka
  kumo token --gateway --ttl 10m        for a gateway, which gets the key of the authority
  kumo token | ssh web-2 kumo join -    it need not be seen by anybody

Who has the token can join: keep it as short as it may be.";

/// Print a token that lets hosts join the cluster
#[derive(Debug, clap::Args)]
pub struct Token {
    /// For hosts of this data centre only
    #[arg(long, value_name = "NAME")]
    dc: Option<DcName>,
    /// How long it is good: 90s, 30m, 1h, 7d; at most 30 days
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = span)]
    ttl: Duration,
    /// How many hosts it lets in
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
    /// Let in gateways too: they get the key of the cluster's authority
    #[arg(long)]
    gateway: bool,
    #[command(flatten)]
    pub at: crate::source::NodeArgs,
}

/// What the node answers.
#[derive(Deserialize)]
struct Made {
    token: String,
}

/// Has the node make one, and prints it alone on standard output.
///
/// # Errors
/// No node runs, or it refuses.
pub fn run(args: &Token, node: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let ask = json!({
        "dc": args.dc, "ttl_s": args.ttl.as_secs(), "uses": args.uses, "gateway": args.gateway,
    });
    let made: Made = node.json(&Ask::post("/v2/cluster/tokens".to_owned(), &ask))?;
    out.line(crate::text::visible(&made.token))?;
    if out.is_terminal() && io::stderr().is_terminal() {
        let dc = if args.dc.is_none() { " --dc DC" } else { "" };
        let gateway = if args.gateway { " [--gateway]" } else { "" };
        // As an argument every user of that host could read it in the process table.
        out.warn(format_args!(
            "on the other host: kumo join -{dc}{gateway}   (it asks for the token)"
        ));
    }
    Ok(Exit::Done)
}
