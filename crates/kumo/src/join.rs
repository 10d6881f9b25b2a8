//! `kumo join`: this host becomes one of a cluster.

use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _};

use kumo_abi::cluster::Role;
use kumo_abi::{DcName, HostName};
use kumo_fabric::join::{JoinAsk, Joined, client::join_and_tell};
use kumo_fabric::token::{TOKEN_BYTES_MAX, Token};
use tokio::runtime::Builder;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::init::say_where;
use crate::membership::{
    About, MembershipError, Place, Progress, Reopened, check_listen, host_name, next_steps,
};
use crate::output::Output;

/// What `kumo join --help` ends with.
pub const EXAMPLES: &str = "\
Examples:
  kumo join - < token                             as the kernel calls this host
  kumo join - --dc osaka --host web-2 --label rack=3 < token
  kumo join - --gateway --advertise gw2.example:7081 < token
  kumo join kumo1.eyJjbHVzdGVyIjoi…               other users may see it in the process table

`kumo token` on a host of the cluster prints the token.";

/// Make this host one of a cluster
///
/// The gateways that the token names are asked one after the other. They are believed only if they have
/// the authority that the token was made for.
#[derive(Debug, clap::Args)]
pub struct Join {
    /// What `kumo token` printed; - reads it from the first line of standard input
    #[arg(value_name = "TOKEN")]
    token: String,
    /// The name of this host; by default the kernel's
    #[arg(long, value_name = "NAME")]
    host: Option<HostName>,
    /// The data centre that this host is in; by default that of the token
    #[arg(long, value_name = "NAME")]
    dc: Option<DcName>,
    /// Take the place of a host of this name that is known and not alive
    #[arg(long)]
    replace: bool,
    /// Be a gateway: listen for other hosts, and keep the key of the authority
    #[arg(long)]
    gateway: bool,
    #[command(flatten)]
    about: About,
    #[command(flatten)]
    place: Place,
}

/// Joins, and says what to do next.
///
/// # Errors
/// The token is none, nobody lets this host in, or its files cannot be written.
pub fn run(args: &Join, out: &mut Output) -> Result<Exit, CommandError> {
    if !args.gateway && (args.about.listen.is_some() || !args.about.advertise.is_empty()) {
        let said = "only gateways listen for others: --listen and --advertise go with --gateway";
        return Err(CommandError::Usage(said.to_owned()));
    }
    let usage = |error| CommandError::Usage(format!("this token cannot be used: {error}"));
    let token: Token = token_text(&args.token)?.trim().parse().map_err(usage)?;
    let (role, listen, advertise) = if args.gateway {
        let (listen, advertise) = args.about.addresses()?;
        check_listen(listen)?;
        (Role::Gateway, Some(listen), advertise)
    } else {
        (Role::Member, None, Vec::new())
    };
    let calls = args.about.calls.port();
    let ask = JoinAsk {
        dc: args.dc.clone(),
        host: host_name(args.host.as_ref())?,
        role,
        labels: args.about.labels()?,
        replace: args.replace,
        listen,
        advertise,
        call_listen: calls.listen,
        call_advertise: calls.advertise,
    };
    let joined = join(&token, ask, args)?;
    for tried in &joined.tried {
        out.warn(tried);
    }
    let identity = &joined.identity;
    let role = role.name();
    out.line(format_args!(
        "kumo: this host is {} of the cluster `{}` now, a {role}; {} let it in",
        identity.host, identity.cluster, joined.by
    ))?;
    say_where(identity, &args.place, out)?;
    let hosts = format!("kumo hosts{}", args.place.run_option());
    let reopened = args.place.reopen(Some(identity), out)?;
    let up = (reopened == Reopened::NoNode).then(|| format!("kumo up{}", args.place.options()));
    next_steps(out, &up.into_iter().chain([hosts]).collect::<Vec<_>>())?;
    Ok(reopened.exit())
}

fn join(token: &Token, ask: JoinAsk, args: &Join) -> Result<Joined, MembershipError> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build();
    let no_runtime =
        |source| MembershipError::System { what: "begin to talk to a gateway", source };
    let runtime = runtime.map_err(no_runtime)?;
    let dir = args.place.fabric_dir();
    let mut progress = Progress::new();
    let mut tell = |address: &str| progress.say(&format!("asking {address} …"));
    Ok(runtime.block_on(join_and_tell(token, ask, &dir, &mut tell))?)
}

/// The token itself, from where the argument says.
fn token_text(argument: &str) -> Result<String, CommandError> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut text = String::new();
    let failed =
        |source| MembershipError::System { what: "read the token from standard input", source };
    if io::stdin().is_terminal() {
        eprint!("Token: ");
    }
    let bytes_max = TOKEN_BYTES_MAX as u64 + 1;
    BufReader::new(io::stdin().take(bytes_max)).read_line(&mut text).map_err(failed)?;
    Ok(text)
}
