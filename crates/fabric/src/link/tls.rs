//! Who may be at the other end of a link: TLS 1.3 with certificates of the cluster's authority on both
//! sides, and names of hosts instead of names of the DNS.
//!
//! Nothing is resumed and nothing is sent early: every link proves itself anew, so an evicted key is
//! seen at every handshake.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use kumo_pki::Verifier;
use kumo_pki::trust::{End, Evicted, Refusal, Trust, Wanted};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{AlertDescription, ClientConfig, ServerConfig};

use crate::identity::Identity;
use crate::join::ALPN_JOIN;
use crate::pki::Peer;

/// The protocol of links between nodes.
pub(crate) const ALPN_FABRIC: &[u8] = b"kumo-fabric/1";

/// The protocol of links between nodes on the call port.
pub(crate) const ALPN_PEER: &[u8] = b"kumo-peer/1";

tokio::task_local! {
    /// Why the verifier refused within this handshake. TLS carries only the kind of it.
    static REFUSED: RefCell<Option<Refusal>>;
}

/// Why a handshake came to nothing. Follows the name of the other end: "10.0.0.3 was refused: …".
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// We refused.
    #[error("was refused: {0}")]
    Refused(Refusal),
    /// They refused.
    #[error("refused this host: {0}")]
    Told(&'static str),
    /// No TLS, or another protocol in it.
    #[error("was refused: it does not speak the protocol of this port ({0})")]
    Protocol(String),
    /// The connection.
    #[error("broke the connection during the handshake: {0}")]
    Broken(io::Error),
    /// Nothing came.
    #[error("did not finish its handshake within {} s", .0.as_secs())]
    Slow(Duration),
}

/// Runs a handshake. The stream comes back from a failure, if it came back from the handshake.
pub(crate) async fn explained<T, S>(
    handshake: impl Future<Output = Result<T, (io::Error, S)>>,
) -> Result<T, (HandshakeError, S)> {
    let explain = async {
        let (error, stream) = match handshake.await {
            Ok(done) => return Ok(done),
            Err(failed) => failed,
        };
        let refused = REFUSED.with(|refused| refused.borrow_mut().take());
        Err((refused.map_or_else(|| why(error), HandshakeError::Refused), stream))
    };
    REFUSED.scope(RefCell::new(None), explain).await
}

/// What an error of a TLS stream means.
pub(crate) fn why(error: io::Error) -> HandshakeError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) => HandshakeError::Told(told(*alert)),
        Some(other) => HandshakeError::Protocol(other.to_string()),
        None => HandshakeError::Broken(error),
    }
}

/// What the other side says by an alert. The counterpart of [`Refusal::to_tls`].
fn told(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnknownCA => {
            "this host's certificate is not of its cluster, or it looked for another cluster here"
        }
        AlertDescription::CertificateExpired => {
            "this host's certificate is not valid at the time that its clock shows; compare the clocks, then join again"
        }
        AlertDescription::CertificateRevoked => "this host was evicted from the cluster",
        AlertDescription::AccessDenied => "it looked for another host, or for a gateway, here",
        AlertDescription::BadCertificate => "this host's certificate is of no node",
        AlertDescription::CertificateRequired => "it wants a certificate of the cluster",
        AlertDescription::NoApplicationProtocol => {
            "it does not speak this protocol; is it of another version?"
        }
        AlertDescription::ProtocolVersion => "it wants TLS 1.3",
        _ => "its TLS ended the handshake",
    }
}

/// What is wanted of the other end, judged, and kept for who explains the handshake.
fn decide(
    trust: &Trust,
    wanted: &Wanted,
    end: End,
    certificate: &CertificateDer<'_>,
    more: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), rustls::Error> {
    trust.host(end, certificate, more, wanted, now).map(drop).map_err(|refusal| {
        let error = refusal.to_tls();
        // Without a handshake of ours around it nobody wants to know.
        let _ = REFUSED.try_with(|refused| refused.replace(Some(refusal)));
        error
    })
}

/// The identity of this host, and what TLS makes of it.
pub(crate) struct Setup {
    pub(crate) identity: Arc<Identity>,
    trust: Arc<Trust>,
    fabric: Arc<ServerConfig>,
    join: Arc<ServerConfig>,
    /// For links of the call port.
    pub(crate) peer: Arc<ServerConfig>,
}

impl Setup {
    /// # Errors
    /// The certificates or the key of the identity cannot be used.
    pub(crate) fn new(identity: Arc<Identity>, evicted: Evicted) -> Result<Setup, rustls::Error> {
        let trust = Trust::new(&identity.ca, evicted);
        let trust = Arc::new(trust.map_err(|error| rustls::Error::General(error.to_string()))?);
        let server = |alpn, strangers| server(&identity, &trust, alpn, strangers);
        let (fabric, join) = (server(ALPN_FABRIC, false)?, server(ALPN_JOIN, true)?);
        let peer = server(ALPN_PEER, false)?;
        Ok(Setup { identity, trust, fabric, join, peer })
    }

    /// The configuration for who offers these protocols. Who offers none that we know gets the strict
    /// one, and from it an alert.
    pub(crate) fn server(&self, offered: &[&[u8]]) -> Arc<ServerConfig> {
        let joins = offered.contains(&ALPN_JOIN) && !offered.contains(&ALPN_FABRIC);
        Arc::clone(if joins { &self.join } else { &self.fabric })
    }

    /// The configuration to dial who is wanted with.
    ///
    /// # Errors
    /// The certificate or the key of the identity cannot be used.
    pub(crate) fn client(
        &self,
        wanted: Wanted,
        alpn: &[u8],
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let (trust, identity) = (Arc::clone(&self.trust), &self.identity);
        let provider = Arc::clone(trust.provider());
        let verifier =
            Verifier::new(Arc::clone(&provider), move |end, certificate: &_, more: &_, now| {
                decide(&trust, &wanted, end, certificate, more, now)
            });
        let chain = vec![identity.certificate.clone()];
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous() // It replaces the check of DNS names: ours are names of hosts.
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain, identity.key.clone_key())?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false; // Who listens on the way need not read who is dialed.
        Ok(Arc::new(config))
    }
}

/// The configuration for who dials this host and speaks `alpn`.
fn server(
    identity: &Identity,
    trust: &Arc<Trust>,
    alpn: &[u8],
    strangers: bool,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let judges = Arc::clone(trust);
    let verifier =
        Verifier::new(Arc::clone(trust.provider()), move |end, certificate: &_, more: &_, now| {
            decide(&judges, &Wanted::Anyone, end, certificate, more, now)
        });
    let verifier = if strangers { verifier.with_strangers() } else { verifier };
    let config = ServerConfig::builder_with_provider(Arc::clone(trust.provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier));
    let chain = vec![identity.certificate.clone()];
    let mut config = config.with_single_cert(chain, identity.key.clone_key())?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// Who is at the other end of a connection that has passed the verifier; `None` for a stranger.
pub(crate) fn peer_of(certificates: Option<&[CertificateDer<'_>]>) -> Option<Peer> {
    certificates?.first().and_then(|certificate| Peer::of(certificate).ok())
}
