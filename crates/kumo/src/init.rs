//! `kumo init`: a new cluster, and this host as its first gateway.

use kumo_abi::cluster::Role;
use kumo_abi::{ClusterName, DcName, HostId, HostName};
use kumo_fabric::identity::Identity;
use kumo_fabric::pki::Authority;
use kumo_fabric::wall_ms;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::membership::{
    About, MembershipError, Place, Reopened, check_listen, host_name, next_steps,
};
use crate::output::Output;

/// What `kumo init --help` ends with.
pub const EXAMPLES: &str = "\
Examples:
  kumo init --cluster acme --dc tokyo               this host is its first gateway
  kumo init --cluster acme --dc tokyo --host gw-1 --advertise gw.example:7081 --label rack=3

Then `kumo up`, and `kumo token` for every further host. Keep what `kumo ca export` writes in a safe.";

/// Make a new cluster, and this host its first gateway
///
/// The cluster gets an authority of its own, whose key stays on gateways. Every link between hosts is
/// TLS 1.3 with certificates of it on both sides.
#[derive(Debug, clap::Args)]
pub struct Init {
    /// The name of the cluster
    #[arg(long, value_name = "NAME")]
    cluster: ClusterName,
    /// The data centre that this host is in
    #[arg(long, value_name = "NAME")]
    dc: DcName,
    /// The name of this host there; by default the kernel's
    #[arg(long, value_name = "NAME")]
    host: Option<HostName>,
    #[command(flatten)]
    about: About,
    #[command(flatten)]
    place: Place,
}

/// Makes it.
///
/// # Errors
/// This host is in a cluster already, or its files cannot be written; then nothing is made.
pub fn run(args: &Init, out: &mut Output) -> Result<Exit, CommandError> {
    let authority =
        Authority::create(&args.cluster, wall_ms()).map_err(MembershipError::Authority)?;
    let identity = found(&authority, &args.dc, args.host.as_ref(), &args.about, &args.place)?;
    let HostId { dc, host } = &identity.host;
    out.line(format_args!(
        "kumo: made the cluster `{}`; this host is its gateway {dc}/{host}",
        args.cluster
    ))?;
    say_where(&identity, &args.place, out)?;
    let reopened = args.place.reopen(Some(&identity), out)?;
    let up = (reopened == Reopened::NoNode).then(|| format!("kumo up{}", args.place.options()));
    let token = format!("kumo token{}", args.place.run_option());
    next_steps(out, &up.into_iter().chain([token]).collect::<Vec<_>>())?;
    Ok(reopened.exit())
}

/// Makes this host a gateway of `authority`, and writes its files.
///
/// # Errors
/// As of [`run`].
pub fn found(
    authority: &Authority,
    dc: &DcName,
    host: Option<&HostName>,
    about: &About,
    place: &Place,
) -> Result<Identity, CommandError> {
    let dir = place.fabric_dir();
    // Before anything is asked of the system: this is what people get wrong.
    if let Some(Identity { host, cluster, .. }) =
        Identity::load(&dir).map_err(MembershipError::from)?
    {
        let error = kumo_fabric::identity::IdentityError::Member { host, cluster };
        return Err(MembershipError::from(error).into());
    }
    let host = HostId { dc: dc.clone(), host: host_name(host)? };
    let (listen, advertise) = about.addresses()?;
    check_listen(listen)?;
    let calls = about.calls.port();
    let made = Identity::issue(authority, &host, Role::Gateway, wall_ms());
    let identity = Identity {
        listen: Some(listen),
        advertise,
        call_listen: calls.listen,
        call_advertise: calls.advertise,
        labels: about.labels()?,
        ..made.map_err(MembershipError::Authority)?
    };
    identity.save(&dir, Some(authority)).map_err(MembershipError::from)?;
    Ok(identity)
}

/// Says where a host listens and where its files are.
///
/// # Errors
/// As [`Output::line`].
pub fn say_where(identity: &Identity, place: &Place, out: &mut Output) -> Result<(), CommandError> {
    if let Some(listen) = identity.listen {
        let reached = identity.advertise.join(", ");
        out.line(format_args!("  listens for other hosts on {listen}, reached at {reached}"))?;
    }
    if let Some(listen) = identity.call_listen {
        let reached = identity.call_advertise.join(", ");
        let reached = if reached.is_empty() {
            "through gateways".to_owned()
        } else {
            format!("at {reached}")
        };
        out.line(format_args!("  listens for calls on {listen}, reached {reached}"))?;
    }
    let dir = place.fabric_dir();
    let dir = crate::text::visible(&dir.to_string_lossy()).into_owned();
    out.line(format_args!("  its certificates and keys are in {dir}"))?;
    Ok(())
}
