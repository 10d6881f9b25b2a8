//! Who may be at the other end of a link: TLS 1.3 with certificates of the cluster's authority on both
//! sides, and names of hosts instead of names of the DNS.
//!
//! Nothing is resumed and nothing is sent early: every link proves itself anew, so an evicted key is
//! seen at every handshake.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use kumo_pki::trust::{End, Evicted, Refusal, Trust, Wanted};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig,
    SignatureScheme,
};

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

/// The verifier of both sides.
#[derive(Debug)]
struct Verifier {
    trust: Arc<Trust>,
    /// Clients without a certificate are let in, and served as such.
    strangers: bool,
    /// Who is wanted at the other end.
    wanted: Wanted,
}

impl Verifier {
    fn decide(
        &self,
        end: End,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let judged = self.trust.host(end, certificate, intermediates, &self.wanted, now);
        judged.map(|_| ()).map_err(|refusal| {
            let error = refusal.to_tls();
            // Without a handshake of ours around it nobody wants to know.
            let _ = REFUSED.try_with(|refused| refused.replace(Some(refusal)));
            error
        })
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.trust.provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }
}

/// TLS 1.2 is not offered, so nobody can sign for it.
fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _address: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.decide(End::Server, certificate, intermediates, now)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.strangers
    }

    /// None: whoever connects shows its certificate, and we can say what is wrong with it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.decide(End::Client, certificate, intermediates, now)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.provider().signature_verification_algorithms.supported_schemes()
    }
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
        let verifier = Verifier { trust, strangers: false, wanted };
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
    let verifier = Verifier { trust: Arc::clone(trust), strangers, wanted: Wanted::Anyone };
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
