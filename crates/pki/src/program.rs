//! The certificates of programs: issued by the host that they run on, with its own key.
//!
//! A program is named below its host: `spiffe://acme/dc/tokyo/host/web-1/service/db`, or `…/user/1000` for
//! one that is no service and runs as that user. Whoever checks it sees two certificates, the program's and
//! its host's, and believes the first only for names below those of the second. The private key never
//! leaves the program: it asks with its public key, over the local socket by which its node knows it.

use std::fmt;
use std::str::FromStr;

use kumo_abi::call::{CallNameError, ServiceName};
use kumo_abi::{ClusterName, HostId, NameError};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::{CertificateError, RootCertStore};

use crate::authority::{
    AuthorityError, Peer, PeerError, ia5, is_pair, key_pair, ms_of, new_key, node_uri, parse,
    private_key, time_at, uris,
};
use crate::key::KeyId;
use crate::trust::{End, Refusal, Trust, Wanted};

const MINUTE_MS: u64 = 60 * 1000;

/// How long a program's certificate lasts. Whoever copied its key can use it for no longer.
pub const PROGRAM_MS: u64 = 60 * MINUTE_MS;

/// It is renewed when this much of its time is left: a half, so that a node may be away for as long.
pub const PROGRAM_RENEW_LEFT_MS: u64 = PROGRAM_MS / 2;

/// Certificates are valid from so long before they are made. With the half hour that is always left, two
/// hosts' clocks may differ by half an hour either way.
pub const PROGRAM_BACKDATED_MS: u64 = PROGRAM_MS / 2;

/// What runs on a host, as far as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// A service.
    Service(ServiceName),
    /// Something that this user runs, by number.
    User(u32),
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Program::Service(name) => write!(f, "service/{name}"),
            Program::User(uid) => write!(f, "user/{uid}"),
        }
    }
}

/// A program of a host of a cluster. Written `spiffe://acme/dc/tokyo/host/web-1/service/db`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgramId {
    /// The cluster.
    pub cluster: ClusterName,
    /// The host that it runs on.
    pub host: HostId,
    /// What it is there.
    pub program: Program,
}

impl fmt::Display for ProgramId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", node_uri(&self.cluster, &self.host), self.program)
    }
}

/// Why a text names no program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramIdError {
    /// Of another form.
    #[error(
        "`{}` is not of the form spiffe://CLUSTER/dc/DC/host/HOST/service/NAME or …/user/UID",
        .0.escape_default()
    )]
    Form(String),
    /// A name in it is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The name of the service is none.
    #[error(transparent)]
    Service(#[from] CallNameError),
}

impl FromStr for ProgramId {
    type Err = ProgramIdError;
    fn from_str(text: &str) -> Result<ProgramId, ProgramIdError> {
        let form = || ProgramIdError::Form(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(form)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [cluster, "dc", dc, "host", host, kind, name] = parts[..] else { return Err(form()) };
        let program = match kind {
            "service" => Program::Service(name.parse()?),
            "user" => {
                let uid: u32 = name.parse().map_err(|_| form())?;
                // One user has one name: not `+7`, not `007`.
                if uid.to_string() != name {
                    return Err(form());
                }
                Program::User(uid)
            }
            _ => return Err(form()),
        };
        let host = HostId { dc: dc.parse()?, host: host.parse()? };
        Ok(ProgramId { cluster: cluster.parse()?, host, program })
    }
}

/// A private key of a program, and its public half as a node wants it.
pub struct ProgramKey {
    /// The private key.
    pub private: PrivateKeyDer<'static>,
    /// The public one: `SubjectPublicKeyInfo` in DER.
    pub public_der: Vec<u8>,
}

impl fmt::Debug for ProgramKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramKey").finish_non_exhaustive()
    }
}

impl ProgramKey {
    /// A new one.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn create() -> Result<ProgramKey, AuthorityError> {
        let key = new_key()?;
        Ok(ProgramKey { private: private_key(&key), public_der: key.subject_public_key_info() })
    }
}

/// Issues the certificates of a host's programs.
pub struct ProgramIssuer {
    peer: Peer,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for ProgramIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramIssuer").field("host", &self.peer.host).finish_non_exhaustive()
    }
}

/// Why a host cannot issue.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// Its certificate is none of a host.
    #[error("the certificate of this host cannot be used")]
    Host(#[from] PeerError),
    /// Its key, or that of a program.
    #[error(transparent)]
    Make(#[from] AuthorityError),
    /// Not P-256 in DER.
    #[error("it is no public key of the kind we use: ECDSA P-256 as SubjectPublicKeyInfo in DER")]
    PublicKey,
    /// Nobody would accept it.
    #[error("the certificate of this host has expired, so it can issue none")]
    Expired,
}

impl ProgramIssuer {
    /// With a host's certificate and its private key. To be made anew when those are renewed.
    ///
    /// # Errors
    /// They are not those of one host.
    pub fn new(
        certificate: CertificateDer<'static>,
        key: &PrivateKeyDer<'_>,
    ) -> Result<ProgramIssuer, IssuerError> {
        let peer = Peer::of(&certificate)?;
        if !is_pair(&certificate, key) {
            return Err(AuthorityError::Pair.into());
        }
        let key = key_pair(key).ok_or(AuthorityError::Key)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(AuthorityError::Make)?;
        Ok(ProgramIssuer { peer, certificate, issuer })
    }

    /// The certificate of the host: the second of the two that its programs show.
    pub fn host_certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What this host calls a program of its own.
    pub fn id(&self, program: Program) -> ProgramId {
        let Peer { cluster, host, .. } = &self.peer;
        ProgramId { cluster: cluster.clone(), host: host.clone(), program }
    }

    /// Issues a certificate for the key of a program, valid for [`PROGRAM_MS`] and not beyond the host's
    /// own.
    ///
    /// # Errors
    /// The key is none of ours, or the host's own time is over.
    pub fn issue(
        &self,
        public_der: &[u8],
        program: Program,
        now_ms: u64,
    ) -> Result<CertificateDer<'static>, IssuerError> {
        let key = SubjectPublicKeyInfo::from_der(public_der).map_err(|_| IssuerError::PublicKey)?;
        // One key has one encoding, so that one key has one name.
        let is_ours = key.algorithm() == &PKCS_ECDSA_P256_SHA256;
        if !is_ours || key.subject_public_key_info() != public_der {
            return Err(IssuerError::PublicKey);
        }
        let not_after_ms = now_ms.saturating_add(PROGRAM_MS).min(self.peer.not_after_ms);
        if not_after_ms <= now_ms {
            return Err(IssuerError::Expired);
        }
        let id = self.id(program);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, id.cluster.as_str());
        params.distinguished_name.push(DnType::CommonName, id.program.to_string());
        params.subject_alt_names = vec![SanType::URI(ia5(id.to_string())?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = time_at(now_ms.saturating_sub(PROGRAM_BACKDATED_MS))?;
        params.not_after = time_at(not_after_ms)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(AuthorityError::Make)?;
        Ok(certificate.der().clone())
    }
}

/// Who a program's certificate says it is. That it is true, [`Trust::program`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramPeer {
    /// Its name.
    pub id: ProgramId,
    /// Its public key.
    pub key_id: KeyId,
    /// Valid from then: milliseconds since the Unix epoch.
    pub not_before_ms: u64,
    /// Valid until then.
    pub not_after_ms: u64,
}

/// Why a certificate is not that of a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// No X.509.
    #[error("it is no certificate in DER")]
    Form,
    /// It may sign others.
    #[error("it is that of an authority, not of a program")]
    Authority,
    /// Not exactly one name.
    #[error("it names {0} programs, and one is right")]
    Names(usize),
    /// It names something else.
    #[error("it names no program: {0}")]
    Name(#[from] ProgramIdError),
}

impl ProgramPeer {
    /// Reads the names in a certificate.
    ///
    /// # Errors
    /// It is none of a program: see [`ProgramError`].
    pub fn of(certificate: &CertificateDer<'_>) -> Result<ProgramPeer, ProgramError> {
        let parsed = parse(certificate).ok_or(ProgramError::Form)?;
        if parsed.is_ca() {
            return Err(ProgramError::Authority);
        }
        let uris = uris(&parsed);
        let [uri] = uris[..] else { return Err(ProgramError::Names(uris.len())) };
        Ok(ProgramPeer {
            id: uri.parse()?,
            key_id: KeyId::of_public_key(parsed.public_key().raw),
            not_before_ms: ms_of(parsed.validity().not_before.timestamp()),
            not_after_ms: ms_of(parsed.validity().not_after.timestamp()),
        })
    }

    /// Whether it is time for a new certificate.
    pub fn wants_renewal(&self, now_ms: u64) -> bool {
        now_ms.saturating_add(PROGRAM_RENEW_LEFT_MS) >= self.not_after_ms
    }
}

/// Which program is wanted at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WantedProgram {
    /// Any of the cluster.
    Anyone,
    /// Any of this host.
    OfHost(HostId),
    /// This one.
    Exactly(ProgramId),
}

/// Why a program is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProgramRefusal {
    /// Not two certificates.
    #[error("it showed {0} certificates, and a program shows two: its own and its host's")]
    Chain(usize),
    /// The second is no good.
    #[error("the certificate of its host is refused: {0}")]
    Host(#[source] Refusal),
    /// The first is none of a program.
    #[error("its certificate is of no program: {0}")]
    NoProgram(#[source] ProgramError),
    /// It is named below another host than the one that vouches for it.
    #[error("`{program}` is not below `{host}`, which vouches for it")]
    NotBelow {
        /// What it calls itself.
        program: Box<ProgramId>,
        /// Whose certificate came with it.
        host: HostId,
    },
    /// That host did not sign it.
    #[error("`{program}` was not certified by `{host}`")]
    Forged {
        /// What it calls itself.
        program: Box<ProgramId>,
        /// Whose certificate came with it.
        host: HostId,
    },
    /// Its time is over.
    #[error(
        "the certificate of `{program}` expired {ago_s} s ago by this host's clock; its node did not renew it, or one of the two clocks is wrong"
    )]
    Expired {
        /// Whose it is.
        program: Box<ProgramId>,
        /// For how long.
        ago_s: u64,
    },
    /// Its time has not come.
    #[error(
        "the certificate of `{program}` begins in {in_s} s by this host's clock; one of the two clocks is wrong"
    )]
    NotYet {
        /// Whose it is.
        program: Box<ProgramId>,
        /// In how long.
        in_s: u64,
    },
    /// Another program of the cluster.
    #[error("it is `{found}`, and `{wanted}` was expected")]
    Program {
        /// Who it is.
        found: Box<ProgramId>,
        /// Who was expected.
        wanted: Box<ProgramId>,
    },
    /// A program of another host.
    #[error("it is `{found}`, and a program of `{wanted}` was expected")]
    OfHost {
        /// Who it is.
        found: Box<ProgramId>,
        /// Where it was expected.
        wanted: HostId,
    },
    /// Something else is wrong with its certificate.
    #[error("its certificate cannot be used: {0}")]
    Unusable(rustls::Error),
}

impl ProgramRefusal {
    /// What the other side's TLS is told.
    pub fn to_tls(&self) -> rustls::Error {
        rustls::Error::InvalidCertificate(match self {
            ProgramRefusal::Chain(_) | ProgramRefusal::NoProgram(_) => {
                CertificateError::BadEncoding
            }
            ProgramRefusal::Host(refusal) => return refusal.to_tls(),
            ProgramRefusal::NotBelow { .. } | ProgramRefusal::Forged { .. } => {
                CertificateError::UnknownIssuer
            }
            ProgramRefusal::Expired { .. } | ProgramRefusal::NotYet { .. } => {
                CertificateError::Expired
            }
            ProgramRefusal::Program { .. } | ProgramRefusal::OfHost { .. } => {
                CertificateError::ApplicationVerificationFailure
            }
            ProgramRefusal::Unusable(error) => return error.clone(),
        })
    }
}

impl Trust {
    /// Decides about what a program showed, its own certificate and then its host's, at the time `now`.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn program(
        &self,
        chain: &[CertificateDer<'_>],
        wanted: &WantedProgram,
        now: UnixTime,
    ) -> Result<ProgramPeer, ProgramRefusal> {
        use CertificateError as Wrong;
        let [certificate, host_certificate] = chain else {
            return Err(ProgramRefusal::Chain(chain.len()));
        };
        let host = self.host(End::Server, host_certificate, &[], &Wanted::Anyone, now);
        let host = host.map_err(ProgramRefusal::Host)?;
        let peer = ProgramPeer::of(certificate).map_err(ProgramRefusal::NoProgram)?;
        let (program, by) = (|| Box::new(peer.id.clone()), || host.host.clone());
        if (&peer.id.cluster, &peer.id.host) != (&host.cluster, &host.host) {
            return Err(ProgramRefusal::NotBelow { program: program(), host: by() });
        }
        // The host may sign nothing by X.509's rules; by ours it may, for names below its own. So it is the
        // root of this one step, and all else about the certificate is checked as always.
        let mut roots = RootCertStore::empty();
        roots
            .add(host_certificate.clone().into_owned())
            .map_err(|error| ProgramRefusal::Host(Refusal::Unusable(error)))?;
        let now_ms = now.as_secs().saturating_mul(1000);
        match self.signed(certificate, &roots, &[], now) {
            Ok(()) => {}
            Err(rustls::Error::InvalidCertificate(
                Wrong::Expired | Wrong::ExpiredContext { .. },
            )) => {
                let ago_s = now_ms.saturating_sub(peer.not_after_ms) / 1000;
                return Err(ProgramRefusal::Expired { program: program(), ago_s });
            }
            Err(rustls::Error::InvalidCertificate(
                Wrong::NotValidYet | Wrong::NotValidYetContext { .. },
            )) => {
                let in_s = peer.not_before_ms.saturating_sub(now_ms) / 1000;
                return Err(ProgramRefusal::NotYet { program: program(), in_s });
            }
            Err(rustls::Error::InvalidCertificate(Wrong::UnknownIssuer | Wrong::BadSignature)) => {
                return Err(ProgramRefusal::Forged { program: program(), host: by() });
            }
            Err(other) => return Err(ProgramRefusal::Unusable(other)),
        }
        match wanted {
            WantedProgram::OfHost(wanted) if peer.id.host != *wanted => {
                Err(ProgramRefusal::OfHost { found: program(), wanted: wanted.clone() })
            }
            WantedProgram::Exactly(wanted) if peer.id != *wanted => {
                Err(ProgramRefusal::Program { found: program(), wanted: Box::new(wanted.clone()) })
            }
            _ => Ok(peer),
        }
    }
}
