//! The options that the servers of this API share: `k2i` and `kumo up`.

use std::path::PathBuf;

use crate::collect::CollectorChoice;
use crate::engine::EngineConfig;
use crate::events::EventChoice;
use crate::host::host_name;
use crate::http::tls::TlsFiles;

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
    /// Let other machines ask without TLS
    #[arg(long)]
    pub insecure: bool,
}

impl ServeOptions {
    /// Where certificate and key are, if HTTPS is wanted.
    pub fn tls(&self) -> Option<TlsFiles> {
        let files = self.tls_cert.clone().zip(self.tls_key.clone());
        files.map(|(cert, key)| TlsFiles { cert, key })
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
