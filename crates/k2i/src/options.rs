//! The options that the servers of this API share: `k2i` and `kumo up`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kumo_abi::rights::{Lines, Rights, RightsError, Role, Scope};

use crate::collect::CollectorChoice;
use crate::engine::EngineConfig;
use crate::events::EventChoice;
use crate::history::options::HistoryOptions;
use crate::host::host_name;
use crate::http::Anonymous;
use crate::http::serve::SocketMode;
use crate::http::tls::TlsFiles;
use crate::metrics::{GroupBy, Grouping, TOP_DEFAULT, TOP_MAX};

/// The name of a data centre that nobody named.
pub const DC_DEFAULT: &str = "local";

/// Longest name of a host or data centre, as for a label of a domain name.
pub const NAME_BYTES_MAX: usize = 63;

/// What a server is told beside its address.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeOptions {
    /// How to read the process table: auto, iter.s, iter or proc
    #[arg(long, value_name = "NAME", default_value = "auto")]
    collector: CollectorChoice,
    /// Where to learn of processes that begin and end: auto, tracepoints, connector or off
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub events: EventChoice,
    /// How history is kept.
    #[command(flatten)]
    pub history: HistoryOptions,
    /// Name of this data centre in answers; `local` by default
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub dc: Option<String>,
    /// Name of this host in answers; the kernel's by default
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub host: Option<String>,
    /// Serve HTTPS with this certificate chain (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Take certificates of these authorities (PEM) for who asks: OU is a role or a scope, CN is who
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_clients: Option<PathBuf>,
    /// Let other machines ask without TLS
    #[arg(long)]
    pub insecure: bool,
    /// Where who shows no token and no certificate may look: loopback, always or never. On a Unix socket
    /// the kernel says who asks
    #[arg(long, value_name = "WHERE", default_value = "loopback")]
    pub anonymous: Anonymous,
    /// What who has no right to see command lines whole sees of them: all but secrets, the program alone
    /// (strip), or nonetheless all (off)
    #[arg(long, value_name = "HOW", default_value = "secrets")]
    pub redact: ShownLines,
    /// Who may open the Unix socket: 0600 its owner, 0660 its group too, 0666 all users of this host. They may
    /// look, or what --user says
    #[arg(long, value_name = "MODE", default_value_t)]
    pub socket_mode: SocketMode,
    /// Let a user of this host do what a role may, on the Unix socket that --socket-mode lets him open:
    /// `alice=operate`, `www=view+command-line`; may be repeated
    #[arg(long = "user", value_name = "USER=ROLE", value_parser = parse_user)]
    users: Vec<(u32, Rights)>,
    /// What makes a group of processes in /metrics: comm, user, container, pod, unit, slice, cgroup, or up
    /// to three of them
    #[arg(long, value_name = "COLUMNS", default_value = "comm")]
    metrics_group_by: GroupBy,
    /// How many groups /metrics shows for their CPU time, and again for their memory; the others are one
    #[arg(long, value_name = "COUNT", default_value_t = TOP_DEFAULT, value_parser = parse_top)]
    metrics_top: usize,
}

/// What who has no right to see command lines whole sees of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ShownLines {
    /// All but secrets
    #[default]
    Secrets,
    /// The program alone
    Strip,
    /// All
    Off,
}

impl ShownLines {
    /// The same as it is shown.
    pub fn lines(self) -> Lines {
        match self {
            ShownLines::Secrets => Lines::Redacted,
            ShownLines::Strip => Lines::Stripped,
            ShownLines::Off => Lines::Whole,
        }
    }
}

impl ServeOptions {
    /// Where certificate and key are, if HTTPS is wanted.
    pub fn tls(&self) -> Option<TlsFiles> {
        let files = self.tls_cert.clone().zip(self.tls_key.clone());
        files.map(|(cert, key)| TlsFiles { cert, key, clients: self.tls_clients.clone() })
    }

    /// What users of this host may do on the Unix socket.
    pub fn users(&self) -> BTreeMap<u32, Rights> {
        self.users.iter().copied().collect()
    }

    /// Which groups `/metrics` tells of.
    pub fn grouping(&self) -> Grouping {
        Grouping { by: self.metrics_group_by.clone(), top: self.metrics_top }
    }

    /// How to open the engine.
    pub fn engine(&self) -> EngineConfig {
        EngineConfig {
            collector: self.collector,
            dc: self.dc.clone().unwrap_or_else(|| DC_DEFAULT.to_owned()),
            host: self.host.clone().unwrap_or_else(host_name),
        }
    }
}

/// A user of this host, by name or number, and what he may do: a role, and scopes behind `+`.
fn parse_user(text: &str) -> Result<(u32, Rights), String> {
    let (user, rights) = text.split_once('=').ok_or("it is written USER=ROLE, as in alice=view")?;
    let uid = match user.parse() {
        Ok(uid) => uid,
        Err(_) => nix::unistd::User::from_name(user)
            .map_err(|error| format!("cannot look up user `{}`: {error}", user.escape_debug()))?
            .map(|user| user.uid.as_raw())
            .ok_or_else(|| format!("there is no user `{}` on this host", user.escape_debug()))?,
    };
    let mut parts = rights.split('+');
    let role: Role = parts.next().unwrap_or_default().parse().map_err(said)?;
    let rights = parts.try_fold(Rights::of(role), |rights, scope| {
        scope.parse::<Scope>().map(|scope| rights.with(scope)).map_err(said)
    });
    Ok((uid, rights?))
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` gives it")]
fn said(error: RightsError) -> String {
    error.to_string()
}

fn parse_top(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|top| *top <= TOP_MAX);
    number.ok_or_else(|| format!("it is a number from 0 to {TOP_MAX}"))
}

/// A name of a host or data centre: 1 to [`NAME_BYTES_MAX`] of letters, digits, `-`, `_` and `.`.
fn parse_name(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match text {
        "" => Err("a name needs at least one character".to_owned()),
        text if text.len() > NAME_BYTES_MAX => {
            Err(format!("a name has at most {NAME_BYTES_MAX} characters"))
        }
        text if !text.bytes().all(good) => {
            Err("a name is made of letters, digits, `-`, `_` and `.`".to_owned())
        }
        text => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        let operate = Rights::of(Role::Operate);
        let cases = [
            ("1000=operate", Ok((1000, operate))),
            ("root=view+command-line", Ok((0, Rights::VIEW.with(Scope::CommandLine)))),
            ("1000", Err("USER=ROLE")),
            ("1000=king", Err("`king` is no role; there are view, operate, admin")),
            ("1000=view+fly", Err("`fly` is no scope")),
            ("no such user=view", Err("there is no user `no such user`")),
        ];
        for (text, want) in cases {
            match (parse_user(text), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "for {text:?}"),
                (Err(said), Err(want)) => assert!(said.contains(want), "{said:?} for {text:?}"),
                (got, want) => panic!("{got:?}, not {want:?}, for {text:?}"),
            }
        }
    }

    #[test]
    fn names() {
        let long = "a".repeat(64);
        let cases = [
            ("tokyo", true),
            ("web-1.example_A", true),
            ("", false),
            ("a/b", false),
            ("a b", false),
            ("é", false),
            ("\x1b", false),
            (&long[..63], true),
            (&long, false),
        ];
        for (name, want) in cases {
            assert_eq!(parse_name(name).is_ok(), want, "for {name:?}");
        }
    }
}
