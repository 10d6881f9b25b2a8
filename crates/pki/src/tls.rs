//! TLS 1.3 between two programs, with their own certificates on both sides.
//!
//! Nothing is resumed and nothing is sent early: every connection proves itself anew. A configuration is
//! made for each connection, which is cheap, and knows who is wanted at its other end; after a failed
//! handshake it knows why this side refused, for TLS carries only the kind of it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};

use crate::program::{ProgramError, ProgramPeer, ProgramRefusal, WantedProgram};
use crate::trust::{End, Trust};
use crate::verifier::Verifier;

/// The protocol between programs.
pub const ALPN_CALL: &[u8] = b"kumo-call/1";

/// A name for the argument that TLS wants; it is neither sent nor compared with anything.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into())
}

/// A program's side of TLS: what it shows, and whom it believes. To be made anew when its certificate was
/// renewed; connections that are open keep theirs.
pub struct ProgramTls {
    trust: Arc<Trust>,
    own: Arc<SingleCertAndKey>,
    peer: ProgramPeer,
}

impl fmt::Debug for ProgramTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramTls").field("id", &self.peer.id).finish_non_exhaustive()
    }
}

/// Why a program's own certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramTlsError {
    /// The certificate.
    #[error("the certificate of this program cannot be used")]
    Program(#[from] ProgramError),
    /// The key, or both together.
    #[error("TLS cannot use the certificate and the key of this program")]
    Tls(#[from] rustls::Error),
}

/// A configuration for one connection.
#[derive(Debug)]
pub struct Setup<Config> {
    /// For rustls.
    pub config: Arc<Config>,
    refused: Arc<OnceLock<ProgramRefusal>>,
}

impl<Config> Setup<Config> {
    /// Why this side refused the other; `None` if it did not.
    pub fn refused(&self) -> Option<&ProgramRefusal> {
        self.refused.get()
    }
}

impl ProgramTls {
    /// Shows `certificate` and that of its host.
    ///
    /// # Errors
    /// It is none of a program, or the key is not its.
    pub fn new(
        trust: Arc<Trust>,
        certificate: CertificateDer<'static>,
        host_certificate: CertificateDer<'static>,
        key: &PrivateKeyDer<'_>,
    ) -> Result<ProgramTls, ProgramTlsError> {
        let peer = ProgramPeer::of(&certificate)?;
        let key = trust.provider().key_provider.load_private_key(key.clone_key())?;
        let own = CertifiedKey::new(vec![certificate, host_certificate], key);
        own.keys_match()?;
        Ok(ProgramTls { trust, own: Arc::new(SingleCertAndKey::from(own)), peer })
    }

    /// Who this program is, and until when.
    pub fn own(&self) -> &ProgramPeer {
        &self.peer
    }

    /// To dial with.
    ///
    /// # Errors
    /// A bug of ours.
    pub fn client(&self, wanted: WantedProgram) -> Result<Setup<ClientConfig>, rustls::Error> {
        let (verifier, refused) = self.verifier(wanted);
        let provider = Arc::clone(self.trust.provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous() // It replaces the check of DNS names: ours are names of programs.
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::clone(&self.own) as _);
        config.alpn_protocols = vec![ALPN_CALL.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        Ok(Setup { config: Arc::new(config), refused })
    }

    /// To be dialed with.
    ///
    /// # Errors
    /// A bug of ours.
    pub fn server(&self, wanted: WantedProgram) -> Result<Setup<ServerConfig>, rustls::Error> {
        let (verifier, refused) = self.verifier(wanted);
        let provider = Arc::clone(self.trust.provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&self.own) as _);
        config.alpn_protocols = vec![ALPN_CALL.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(Setup { config: Arc::new(config), refused })
    }

    fn verifier(&self, wanted: WantedProgram) -> (Arc<Judge>, Arc<OnceLock<ProgramRefusal>>) {
        let refused = Arc::<OnceLock<ProgramRefusal>>::default();
        let (trust, keeps) = (Arc::clone(&self.trust), Arc::clone(&refused));
        let decide: Decide = Box::new(move |_, certificate, more, now| {
            let chain: Vec<_> = std::iter::once(certificate).chain(more).cloned().collect();
            trust.program(&chain, &wanted, now).map(drop).map_err(|refusal| {
                let error = refusal.to_tls();
                // A configuration is for one connection; of more, the first refusal is kept.
                let _ = keeps.set(refusal);
                error
            })
        });
        (Arc::new(Verifier::new(Arc::clone(self.trust.provider()), decide)), refused)
    }
}

type Decide = Box<
    dyn Fn(End, &CertificateDer<'_>, &[CertificateDer<'_>], UnixTime) -> Result<(), rustls::Error>
        + Send
        + Sync,
>;
type Judge = Verifier<Decide>;

/// Who is at the other end of a connection whose handshake is done; `None` before.
pub fn peer_of(certificates: Option<&[CertificateDer<'_>]>) -> Option<ProgramPeer> {
    certificates?.first().and_then(|certificate| ProgramPeer::of(certificate).ok())
}
