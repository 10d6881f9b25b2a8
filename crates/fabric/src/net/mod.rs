//! The thin shell around Zenoh: its configuration and the keys that we use.
//!
//! Zenoh sees Unix sockets only; [`crate::link`] joins them to those of other hosts. A gateway is a
//! `router`, so that data centres route for each other; a member is a `client` of one gateway at a
//! time. Nothing is scouted: who is connected to whom is what identities and cards say.

pub(crate) mod answer;
pub(crate) mod audit;
pub(crate) mod question;
pub(crate) mod sync;
pub(crate) mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kumo_abi::cluster::Role;
use kumo_abi::{ClusterName, HostId};
use tokio::task::spawn_blocking;
use zenoh::{Config, Wait as _};
use zenoh_runtime::ZRuntime;

/// A connection on which nothing came for so long is dead. Frozen hosts are seen as dead by it, and
/// cut links as cut: with the grace of a token within 1.5 s.
pub const LEASE_DEFAULT: Duration = Duration::from_millis(1_150);

/// So many signs of life are sent a lease, where nothing else is: one every 380 ms. Two may be late
/// by 380 ms each before a live host is taken for dead, and an idle link carries about 0.8 KB a second,
/// headers and both directions included.
const SIGNS_OF_LIFE: u64 = 3;

/// Between two attempts to connect: at first, and at most. A healed link is used within a second.
const RETRY_MS: (u64, u64) = (20, 400);

/// Opening a connection takes a few round trips around the world at most.
const OPEN_MS_MAX: u64 = 4_000;

/// A member's attempts to open its session take so long, the first and the later ones, where no gateway can
/// be reached: a node that is told to stop meanwhile waits for it. They grow, for a gateway that is only
/// slow, with hundreds of members that come at once, must get done with each.
const CLIENT_OPEN_MS: (u64, u64) = (1_500, 6_000);

/// How long a member's attempt number `attempt`, from 0, takes.
fn client_open_ms(attempt: u32) -> u64 {
    CLIENT_OPEN_MS.0.saturating_mul(1 << attempt.min(8)).min(CLIENT_OPEN_MS.1)
}

/// Batches of 64 KiB that wait to be sent on a connection, each some 600 tokens and made when it is needed. Zenoh's 2
/// are full when hundreds of hosts come at once; then it waits with all that it does, for 5 s at most, and ends the
/// connection. 16 is its limit.
const TOKEN_BATCHES_MAX: u64 = 16;

/// Connections of a gateway; that of each member of its data centre, and of each other gateway.
pub(crate) const SESSIONS_MAX: u64 = 4_000;

/// Largest message that is put together: an answer of a whole data centre with long command lines.
const MESSAGE_BYTES_MAX: u64 = 256 << 20;

/// What Zenoh is told.
///
/// # Errors
/// Zenoh's words, if it does not know one of the settings.
fn config(
    role: Role,
    listen: Option<&Path>,
    connect: &[PathBuf],
    attempt: u32,
    lease: Duration,
) -> zenoh::Result<Config> {
    let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    let endpoint = |path: &PathBuf| format!("unixsock-stream/{}", path.display());
    let connect: Vec<String> = connect.iter().map(endpoint).collect();
    let listen: Vec<String> = listen.map(|path| endpoint(&path.to_owned())).into_iter().collect();
    let mode = match role {
        Role::Gateway => "router",
        Role::Member => "client",
    };
    let settings = [
        ("mode", serde_json::json!(mode)),
        ("listen/endpoints", serde_json::json!(listen)),
        ("connect/endpoints", serde_json::json!(connect)),
        // A gateway dials in the background, for ever. A member's session opens when it is connected; that
        // blocks a thread, so it is given up and tried again.
        (
            "connect/timeout_ms",
            serde_json::json!({"router": -1, "client": client_open_ms(attempt)}),
        ),
        ("connect/exit_on_failure", serde_json::json!({"router": false, "client": true})),
        (
            "connect/retry",
            serde_json::json!({
                "period_init_ms": RETRY_MS.0, "period_max_ms": RETRY_MS.1, "period_increase_factor": 2.0,
            }),
        ),
        // Whoever is reached later is as welcome; nobody is waited for.
        ("open/return_conditions/connect_scouted", serde_json::json!(false)),
        ("open/return_conditions/declares", serde_json::json!(false)),
        ("scouting/delay", serde_json::json!(0)),
        ("scouting/multicast/enabled", serde_json::json!(false)),
        ("scouting/gossip/enabled", serde_json::json!(false)),
        ("adminspace/enabled", serde_json::json!(false)),
        // Our own clock stamps what needs a stamp.
        ("timestamping/enabled", serde_json::json!(false)),
        ("transport/unicast/max_sessions", serde_json::json!(SESSIONS_MAX)),
        ("transport/unicast/accept_pending", serde_json::json!(SESSIONS_MAX)),
        ("transport/unicast/open_timeout", serde_json::json!(OPEN_MS_MAX)),
        ("transport/unicast/accept_timeout", serde_json::json!(OPEN_MS_MAX)),
        ("transport/link/tx/lease", serde_json::json!(lease_ms)),
        ("transport/link/tx/keep_alive", serde_json::json!(SIGNS_OF_LIFE)),
        ("transport/link/tx/queue/size/control", serde_json::json!(TOKEN_BATCHES_MAX)),
        ("transport/link/rx/max_message_size", serde_json::json!(MESSAGE_BYTES_MAX)),
    ];
    let mut config = Config::default();
    for (name, value) in settings {
        config.insert_json5(name, &value.to_string())?;
    }
    Ok(config)
}

/// The keys of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn new(cluster: &ClusterName) -> Keys {
        Keys { prefix: format!("kumo/{cluster}") }
    }

    /// The liveliness token of a start of a node.
    pub(crate) fn alive(&self, host: &HostId, role: Role, incarnation: u64) -> String {
        format!("{}/alive/{host}/{}/{incarnation:x}", self.prefix, role.name())
    }

    /// The tokens of all starts of a host's node.
    pub(crate) fn alive_of(&self, host: &HostId) -> String {
        format!("{}/alive/{host}/*/*", self.prefix)
    }

    /// All tokens.
    pub(crate) fn all_alive(&self) -> String {
        format!("{}/alive/**", self.prefix)
    }

    /// Where a host answers questions.
    pub(crate) fn ask(&self, host: &HostId) -> String {
        format!("{}/ask/{host}", self.prefix)
    }

    /// Where all hosts of a data centre do.
    pub(crate) fn ask_all(&self, dc: &kumo_abi::DcName) -> String {
        format!("{}/ask/{dc}/*", self.prefix)
    }

    /// Where a host says that it is there.
    pub(crate) fn here(&self, host: &HostId) -> String {
        format!("{}/here/{host}", self.prefix)
    }

    /// Where a gateway asks for others.
    pub(crate) fn relay(&self, gateway: &HostId) -> String {
        format!("{}/relay/{gateway}", self.prefix)
    }

    /// Where a start of a node says good-bye.
    pub(crate) fn bye(&self, host: &HostId, incarnation: u64) -> String {
        format!("{}/bye/{host}/{incarnation:x}", self.prefix)
    }

    /// Where gateways say whose connection was ended by its kernel.
    pub(crate) fn ended(&self, host: &HostId, incarnation: u64) -> String {
        format!("{}/ended/{host}/{incarnation:x}", self.prefix)
    }

    /// All good-byes, or all obituaries.
    pub(crate) fn all(&self, kind: &str) -> String {
        format!("{}/{kind}/**", self.prefix)
    }

    /// Where a gateway says with whom it has links.
    pub(crate) fn audit(&self, gateway: &HostId) -> String {
        format!("{}/audit/{gateway}", self.prefix)
    }

    /// Where changes of the desired state are told.
    pub(crate) fn put(&self) -> String {
        format!("{}/store/put", self.prefix)
    }

    /// Where a gateway compares its copy of the desired state with another.
    pub(crate) fn sync(&self, gateway: &HostId) -> String {
        format!("{}/store/sync/{gateway}", self.prefix)
    }

    /// What follows the prefix and the kind in a key of this cluster.
    fn rest<'k>(&self, key: &'k str, kind: &str) -> Option<std::str::Split<'k, char>> {
        let rest = key.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        Some(rest.strip_prefix(kind)?.strip_prefix('/')?.split('/'))
    }

    /// Whose token a key is.
    pub(crate) fn parse_alive(&self, key: &str) -> Option<(HostId, Role, u64)> {
        let mut parts = self.rest(key, "alive")?;
        let host = HostId { dc: parts.next()?.parse().ok()?, host: parts.next()?.parse().ok()? };
        let role = match parts.next()? {
            "gateway" => Role::Gateway,
            "member" => Role::Member,
            _ => return None,
        };
        let incarnation = u64::from_str_radix(parts.next()?, 16).ok()?;
        parts.next().is_none().then_some((host, role, incarnation))
    }

    /// Of which start of which node a good-bye or an obituary is.
    pub(crate) fn parse_start(&self, key: &str, kind: &str) -> Option<(HostId, u64)> {
        let mut parts = self.rest(key, kind)?;
        let host = HostId { dc: parts.next()?.parse().ok()?, host: parts.next()?.parse().ok()? };
        let incarnation = u64::from_str_radix(parts.next()?, 16).ok()?;
        parts.next().is_none().then_some((host, incarnation))
    }

    /// Whose answer a key is.
    pub(crate) fn parse_ask(&self, key: &str) -> Option<HostId> {
        let mut parts = self.rest(key, "ask")?;
        let host = HostId { dc: parts.next()?.parse().ok()?, host: parts.next()?.parse().ok()? };
        parts.next().is_none().then_some(host)
    }
}

/// Opens a session.
///
/// Zenoh's `open` is a future in name only: it blocks until a member is connected. So it runs where
/// blocking is fine.
///
/// # Errors
/// Zenoh's words; on a member also when no gateway was reached within [`client_open_ms`].
pub(crate) async fn open(
    role: Role,
    listen: Option<&Path>,
    connect: &[PathBuf],
    attempt: u32,
    lease: Duration,
) -> zenoh::Result<zenoh::Session> {
    let config = config(role, listen, connect, attempt, lease)?;
    spawn_blocking(move || {
        start_runtimes();
        zenoh::open(config).wait()
    })
    .await?
}

/// Starts all of Zenoh's runtimes: it would start each when it is first needed, which may be hours later, and
/// panic there if there is no descriptor or thread left then. And what a node holds is known from its beginning.
fn start_runtimes() {
    for runtime in ZRuntime::iter() {
        let _: &tokio::runtime::Handle = &runtime;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zenoh_knows_every_setting() {
        for role in [Role::Gateway, Role::Member] {
            let sockets = ["/run/kumo/fabric/a".into(), "/run/kumo/fabric/b".into()];
            config(role, Some(Path::new("/run/kumo/fabric/in")), &sockets, 0, LEASE_DEFAULT)
                .expect("a configuration");
        }
    }

    #[test]
    fn attempts_grow_to_a_bound() {
        let ms = [0, 1, 2, 3, u32::MAX].map(client_open_ms);
        assert_eq!(ms, [1_500, 3_000, 6_000, 6_000, 6_000]);
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        let keys = Keys::new(&"acme".parse().expect("a name"));
        let host: HostId = "tokyo/web-1".parse().expect("a host");
        let alive = keys.alive(&host, Role::Gateway, 0xfe);
        assert_eq!(alive, "kumo/acme/alive/tokyo/web-1/gateway/fe");
        assert_eq!(keys.parse_alive(&alive), Some((host.clone(), Role::Gateway, 0xfe)));
        assert_eq!(keys.parse_start(&keys.bye(&host, 7), "bye"), Some((host.clone(), 7)));
        assert_eq!(keys.parse_start(&keys.ended(&host, 7), "bye"), None);
        assert_eq!(keys.parse_ask(&keys.ask(&host)), Some(host));
        let foreign = [
            "kumo/acme/alive/tokyo/web-1/gateway",
            "kumo/acme/alive/tokyo/web-1/gateway/fe/x",
            "kumo/acme2/alive/tokyo/web-1/gateway/fe",
            "kumo/acme/alive/Tokyo/web-1/gateway/fe",
            "kumo/acme/alive/tokyo/web-1/king/fe",
            "kumo/acme/alive/tokyo/web-1/member/g",
        ];
        for key in foreign {
            assert_eq!(keys.parse_alive(key), None, "{key}");
        }
    }
}
