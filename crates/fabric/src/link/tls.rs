//! Who may be at the other end of a link: TLS 1.3 with certificates of the cluster's authority on both
//! sides, and names of hosts instead of names of the DNS.
//!
//! Nothing is resumed and nothing is sent early: every link proves itself anew, so an evicted key is
//! seen at every handshake.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kumo_abi::cluster::Role;
use kumo_abi::{ClusterName, HostId};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    RootCertStore, ServerConfig, SignatureScheme,
};

use crate::identity::Identity;
use crate::join::ALPN_JOIN;
use crate::pki::{KeyId, Peer, PeerError};

/// The protocol of links between nodes.
pub(super) const ALPN_FABRIC: &[u8] = b"kumo-fabric/1";

/// The keys that are refused, as the newest call said.
pub(super) type Evicted = Arc<ArcSwap<BTreeSet<KeyId>>>;

/// Why the holder of a certificate is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Refusal {
    /// Not the certificate of a node.
    #[error("its certificate is of no node: {0}")]
    NoNode(PeerError),
    /// Of another cluster, by its own words.
    #[error("its certificate is of cluster `{theirs}`, and this is `{ours}`")]
    Cluster {
        /// What it says.
        theirs: ClusterName,
        /// What this host is in.
        ours: ClusterName,
    },
    /// Of a cluster with the same name, or forged.
    #[error("its certificate names cluster `{ours}`, but was not issued by its authority")]
    Authority {
        /// What this host is in.
        ours: ClusterName,
    },
    /// Its time is over.
    #[error(
        "the certificate of `{host}` expired {ago_s} s ago by this host's clock; it must join again, unless one of the two clocks is wrong"
    )]
    Expired {
        /// Whose it is.
        host: HostId,
        /// For how long.
        ago_s: u64,
    },
    /// Its time has not come.
    #[error(
        "the certificate of `{host}` begins in {in_s} s by this host's clock; one of the two clocks is wrong"
    )]
    NotYet {
        /// Whose it is.
        host: HostId,
        /// In how long.
        in_s: u64,
    },
    /// Evicted.
    #[error("`{host}` was evicted from the cluster with this key")]
    Evicted {
        /// Who was.
        host: HostId,
    },
    /// Somebody else of the cluster answers there.
    #[error("its certificate is that of `{found}`, and `{wanted}` was dialed")]
    Host {
        /// Who answers.
        found: HostId,
        /// Who was dialed.
        wanted: HostId,
    },
    /// A member answers where a gateway is dialed.
    #[error("`{host}` is no gateway by its certificate")]
    NoGateway {
        /// Who answers.
        host: HostId,
    },
    /// Something else is wrong with it.
    #[error("its certificate cannot be used: {0}")]
    Unusable(rustls::Error),
}

impl Refusal {
    /// What the other side's TLS is told. [`told`] reads it there.
    fn to_tls(&self) -> rustls::Error {
        rustls::Error::InvalidCertificate(match self {
            Refusal::NoNode(_) => CertificateError::BadEncoding,
            Refusal::Cluster { .. } | Refusal::Authority { .. } => CertificateError::UnknownIssuer,
            Refusal::Expired { .. } | Refusal::NotYet { .. } => CertificateError::Expired,
            Refusal::Evicted { .. } => CertificateError::Revoked,
            Refusal::Host { .. } | Refusal::NoGateway { .. } => {
                CertificateError::ApplicationVerificationFailure
            }
            Refusal::Unusable(error) => return error.clone(),
        })
    }
}

/// Decides about a certificate. `chain` is whether its signature and its time are good.
///
/// `now_ms` is the wall clock, milliseconds since the Unix epoch. `dialed` is the gateway that is
/// wanted at the other end, if this host dialed.
fn judge(
    peer: &Peer,
    chain: Result<(), rustls::Error>,
    ours: &ClusterName,
    evicted: &BTreeSet<KeyId>,
    dialed: Option<&HostId>,
    now_ms: u64,
) -> Result<(), Refusal> {
    use CertificateError as Wrong;
    let host = || peer.host.clone();
    if peer.cluster != *ours {
        // Said first: it is the reason behind a signature that does not fit.
        return Err(Refusal::Cluster { theirs: peer.cluster.clone(), ours: ours.clone() });
    }
    match chain {
        Ok(()) => {}
        Err(rustls::Error::InvalidCertificate(Wrong::Expired | Wrong::ExpiredContext { .. })) => {
            let ago_s = now_ms.saturating_sub(peer.not_after_ms) / 1000;
            return Err(Refusal::Expired { host: host(), ago_s });
        }
        Err(rustls::Error::InvalidCertificate(
            Wrong::NotValidYet | Wrong::NotValidYetContext { .. },
        )) => {
            let in_s = peer.not_before_ms.saturating_sub(now_ms) / 1000;
            return Err(Refusal::NotYet { host: host(), in_s });
        }
        Err(rustls::Error::InvalidCertificate(Wrong::UnknownIssuer | Wrong::BadSignature)) => {
            return Err(Refusal::Authority { ours: ours.clone() });
        }
        Err(other) => return Err(Refusal::Unusable(other)),
    }
    if evicted.contains(&peer.key_id) {
        return Err(Refusal::Evicted { host: host() });
    }
    match dialed {
        Some(wanted) if peer.host != *wanted => {
            Err(Refusal::Host { found: host(), wanted: wanted.clone() })
        }
        Some(_) if peer.role != Role::Gateway => Err(Refusal::NoGateway { host: host() }),
        _ => Ok(()),
    }
}

tokio::task_local! {
    /// Why the verifier refused within this handshake. TLS carries only the kind of it.
    static REFUSED: RefCell<Option<Refusal>>;
}

/// Why a handshake came to nothing. Follows the name of the other end: "10.0.0.3 was refused: …".
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
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
pub(super) async fn explained<T, S>(
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
pub(super) fn why(error: io::Error) -> HandshakeError {
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
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    clients: Arc<dyn ClientCertVerifier>,
    cluster: ClusterName,
    evicted: Evicted,
    /// Clients without a certificate are let in, and served as such.
    strangers: bool,
    /// Who is dialed.
    dialed: Option<HostId>,
}

impl Verifier {
    fn decide(
        &self,
        certificate: &CertificateDer<'_>,
        chain: Result<(), rustls::Error>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let decide = || {
            let peer = Peer::of(certificate).map_err(Refusal::NoNode)?;
            let now_ms = now.as_secs().saturating_mul(1000);
            let (evicted, dialed) = (self.evicted.load(), self.dialed.as_ref());
            judge(&peer, chain, &self.cluster, &evicted, dialed, now_ms)
        };
        decide().map_err(|refusal: Refusal| {
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
        let algorithms = &self.provider.signature_verification_algorithms;
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
        let algorithms = self.provider.signature_verification_algorithms.all;
        let chain = ParsedCertificate::try_from(certificate).and_then(|parsed| {
            let roots = &self.roots;
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                roots,
                intermediates,
                now,
                algorithms,
            )
        });
        self.decide(certificate, chain, now).map(|()| ServerCertVerified::assertion())
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
        self.provider.signature_verification_algorithms.supported_schemes()
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
        let chain = self.clients.verify_client_cert(certificate, intermediates, now).map(|_| ());
        self.decide(certificate, chain, now).map(|()| ClientCertVerified::assertion())
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
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The identity of this host, and what TLS makes of it.
pub(super) struct Setup {
    pub(super) identity: Arc<Identity>,
    evicted: Evicted,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    fabric: Arc<ServerConfig>,
    join: Arc<ServerConfig>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

impl Setup {
    /// # Errors
    /// The certificates or the key of the identity cannot be used.
    pub(super) fn new(identity: Arc<Identity>, evicted: Evicted) -> Result<Setup, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(identity.ca.clone())?;
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider());
        let clients = clients.build().map_err(|e| rustls::Error::General(e.to_string()))?;
        let server = |alpn: &[u8], strangers| {
            let verifier = Verifier {
                roots: Arc::clone(&roots),
                provider: provider(),
                clients: Arc::clone(&clients),
                cluster: identity.cluster.clone(),
                evicted: Arc::clone(&evicted),
                strangers,
                dialed: None,
            };
            let config = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(Arc::new(verifier));
            let chain = vec![identity.certificate.clone()];
            let mut config = config.with_single_cert(chain, identity.key.clone_key())?;
            config.alpn_protocols = vec![alpn.to_vec()];
            config.send_tls13_tickets = 0;
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.max_early_data_size = 0;
            Ok::<_, rustls::Error>(Arc::new(config))
        };
        let (fabric, join) = (server(ALPN_FABRIC, false)?, server(ALPN_JOIN, true)?);
        Ok(Setup { identity, evicted, roots, clients, fabric, join })
    }

    /// The configuration for who offers these protocols. Who offers none that we know gets the strict
    /// one, and from it an alert.
    pub(super) fn server(&self, offered: &[&[u8]]) -> Arc<ServerConfig> {
        let joins = offered.contains(&ALPN_JOIN) && !offered.contains(&ALPN_FABRIC);
        Arc::clone(if joins { &self.join } else { &self.fabric })
    }

    /// The configuration to dial `gateway` with.
    ///
    /// # Errors
    /// The certificate or the key of the identity cannot be used.
    pub(super) fn client(&self, gateway: &HostId) -> Result<Arc<ClientConfig>, rustls::Error> {
        let verifier = Verifier {
            roots: Arc::clone(&self.roots),
            provider: provider(),
            clients: Arc::clone(&self.clients),
            cluster: self.identity.cluster.clone(),
            evicted: Arc::clone(&self.evicted),
            strangers: false,
            dialed: Some(gateway.clone()),
        };
        let chain = vec![self.identity.certificate.clone()];
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous() // It replaces the check of DNS names: ours are names of hosts.
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain, self.identity.key.clone_key())?;
        config.alpn_protocols = vec![ALPN_FABRIC.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false; // Who listens on the way need not read who is dialed.
        Ok(Arc::new(config))
    }
}

/// Who is at the other end of a connection that has passed the verifier; `None` for a stranger.
pub(super) fn peer_of(certificates: Option<&[CertificateDer<'_>]>) -> Option<Peer> {
    certificates?.first().and_then(|certificate| Peer::of(certificate).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_judged_by_name_then_proof_then_eviction_then_use() {
        let host = |name: &str| -> HostId { name.parse().expect("a host") };
        let ours: ClusterName = "acme".parse().expect("a name");
        let peer = Peer {
            cluster: ours.clone(),
            host: host("tokyo/gw"),
            role: Role::Gateway,
            key_id: KeyId::of_public_key(b"a key"),
            not_before_ms: 10_000,
            not_after_ms: 20_000,
        };
        let theirs = Peer { cluster: "beta".parse().expect("a name"), ..peer.clone() };
        let member = Peer { role: Role::Member, ..peer.clone() };
        let wrong = |error| Err(rustls::Error::InvalidCertificate(error));
        let (none, evicted) = (BTreeSet::new(), BTreeSet::from([peer.key_id]));
        let (gw, other) = (Some(host("tokyo/gw")), Some(host("tokyo/b")));
        let unknown = CertificateError::UnknownIssuer;
        #[rustfmt::skip]
        let cases = [
            (&peer, Ok(()), &none, &None, 15_000, None),
            (&peer, Ok(()), &none, &gw, 15_000, None),
            (&member, Ok(()), &none, &None, 15_000, None),
            (&theirs, wrong(unknown.clone()), &none, &None, 15_000, Some(("cluster `beta`", AlertDescription::UnknownCA))),
            (&theirs, Ok(()), &none, &None, 15_000, Some(("cluster `beta`", AlertDescription::UnknownCA))),
            (&peer, wrong(unknown), &evicted, &gw, 15_000, Some(("not issued by its authority", AlertDescription::UnknownCA))),
            (&peer, wrong(CertificateError::Expired), &none, &None, 25_000, Some(("expired 5 s ago", AlertDescription::CertificateExpired))),
            (&peer, wrong(CertificateError::NotValidYet), &none, &None, 3_000, Some(("begins in 7 s", AlertDescription::CertificateExpired))),
            (&peer, Ok(()), &evicted, &other, 15_000, Some(("`tokyo/gw` was evicted", AlertDescription::CertificateRevoked))),
            (&peer, Ok(()), &none, &other, 15_000, Some(("that of `tokyo/gw`, and `tokyo/b`", AlertDescription::AccessDenied))),
            (&member, Ok(()), &none, &gw, 15_000, Some(("no gateway", AlertDescription::AccessDenied))),
            (&peer, wrong(CertificateError::InvalidPurpose), &none, &None, 15_000, Some(("cannot be used", AlertDescription::UnsupportedCertificate))),
        ];
        for (peer, chain, evicted, dialed, now_ms, want) in cases {
            let context = format!("{peer:?}, {chain:?}, {dialed:?}");
            let refusal = judge(peer, chain, &ours, evicted, dialed.as_ref(), now_ms).err();
            let Some((words, alert)) = want else {
                assert_eq!(refusal, None, "for {context}");
                continue;
            };
            let refusal = refusal.unwrap_or_else(|| panic!("let in: {context}"));
            assert!(refusal.to_string().contains(words), "`{refusal}` for {context}");
            let rustls::Error::InvalidCertificate(error) = refusal.to_tls() else {
                panic!("no alert for {context}")
            };
            assert_eq!(AlertDescription::from(error), alert, "for {context}");
        }
    }
}
