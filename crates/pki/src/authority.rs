//! The cluster's own authority, and the certificates of hosts that it issues.
//!
//! A node's certificate names one host of one cluster (`spiffe://acme/dc/tokyo/host/web-1`) and its
//! role. The names come from whoever grants the certificate, never from the request: of that only the
//! public key is used, and the proof that the asker has its private half.

use std::fmt;

use kumo_abi::cluster::Role;
use kumo_abi::{ClusterName, HostId, NameError};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType,
    SubjectPublicKeyInfo,
};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, DnsName, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::key::{KeyId, sha256};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// How long an authority lasts. There is no rotation of it yet, so: longer than the machines.
pub const AUTHORITY_MS: u64 = 10 * 365 * DAY_MS;

/// How long a node's certificate lasts. A host that was off for longer must join again; a certificate
/// that leaked is good for no longer.
pub const NODE_MS: u64 = 30 * DAY_MS;

/// A certificate is renewed when this much of its time is left: a third, so that ten days without a
/// gateway cost nobody the cluster.
pub const RENEW_LEFT_MS: u64 = NODE_MS / 3;

/// Certificates are valid from so long before they are made, for hosts whose clocks are behind.
pub const BACKDATED_MS: u64 = DAY_MS;

/// Who a certificate says its holder is. That it is true, its signature must tell first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The cluster.
    pub cluster: ClusterName,
    /// The host.
    pub host: HostId,
    /// What it is to the others.
    pub role: Role,
    /// Its public key.
    pub key_id: KeyId,
    /// Valid from then: milliseconds since the Unix epoch.
    pub not_before_ms: u64,
    /// Valid until then.
    pub not_after_ms: u64,
}

/// Why a certificate is not that of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No X.509.
    #[error("it is no certificate in DER")]
    Form,
    /// It may sign others.
    #[error("it is that of an authority, not of a node")]
    Authority,
    /// Not exactly one name of a node.
    #[error("it names {0} nodes by spiffe://CLUSTER/dc/DC/host/HOST, and one is right")]
    Names(usize),
    /// A URI of another kind.
    #[error("it names `{}`, which is not of the form spiffe://CLUSTER/dc/DC/host/HOST", .0.escape_default())]
    Uri(String),
    /// A name that is none.
    #[error("it names a node with a name that is none")]
    Name(#[from] NameError),
    /// The unit is neither gateway nor member.
    #[error("it says neither `gateway` nor `member` about its node")]
    Role,
}

impl Peer {
    /// Reads the names in a certificate.
    ///
    /// # Errors
    /// It is none of a node: see [`PeerError`].
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Peer, PeerError> {
        let parsed = parse(certificate).ok_or(PeerError::Form)?;
        if parsed.is_ca() {
            return Err(PeerError::Authority);
        }
        let uris = uris(&parsed);
        let [uri] = uris[..] else { return Err(PeerError::Names(uris.len())) };
        let (cluster, host) = node_of_uri(uri)?;
        let mut units = parsed.subject().iter_organizational_unit();
        let role = match (units.next().and_then(|unit| unit.as_str().ok()), units.next()) {
            (Some("gateway"), None) => Role::Gateway,
            (Some("member"), None) => Role::Member,
            _ => return Err(PeerError::Role),
        };
        Ok(Peer {
            cluster,
            host,
            role,
            key_id: KeyId::of_public_key(parsed.public_key().raw),
            not_before_ms: ms_of(parsed.validity().not_before.timestamp()),
            not_after_ms: ms_of(parsed.validity().not_after.timestamp()),
        })
    }

    /// When it was issued, to the second: milliseconds since the Unix epoch.
    pub fn issued_ms(&self) -> u64 {
        self.not_before_ms.saturating_add(BACKDATED_MS)
    }

    /// Whether it is time for a new certificate.
    pub fn wants_renewal(&self, now_ms: u64) -> bool {
        now_ms.saturating_add(RENEW_LEFT_MS) >= self.not_after_ms
    }
}

/// The name of a node as its certificate has it.
pub fn node_uri(cluster: &ClusterName, host: &HostId) -> String {
    format!("spiffe://{cluster}/dc/{}/host/{}", host.dc, host.host)
}

fn node_of_uri(uri: &str) -> Result<(ClusterName, HostId), PeerError> {
    let wrong = || PeerError::Uri(uri.to_owned());
    let rest = uri.strip_prefix("spiffe://").ok_or_else(wrong)?;
    let parts: Vec<&str> = rest.split('/').collect();
    let [cluster, "dc", dc, "host", host] = parts[..] else { return Err(wrong()) };
    Ok((cluster.parse()?, HostId { dc: dc.parse()?, host: host.parse()? }))
}

/// Whether `certificate` was signed by the key of `authority`. Nothing else is looked at: whether it is
/// valid today, and for what, is the business of TLS.
pub fn is_signed_by(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> bool {
    let (Some(certificate), Some(authority)) = (parse(certificate), parse(authority)) else {
        return false;
    };
    certificate.verify_signature(Some(authority.public_key())).is_ok()
}

pub(crate) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    rest.is_empty().then_some(parsed)
}

pub(crate) fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let uri = |name: &'a GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    };
    names.iter().filter_map(uri).collect()
}

/// Why an authority cannot be used, or does not issue.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Its certificate.
    #[error("it is no certificate of a cluster's authority")]
    Certificate,
    /// Its key.
    #[error("it is no private key of the kind we use: ECDSA P-256 in PKCS #8")]
    Key,
    /// Both, but not of each other.
    #[error("the private key is not that of the certificate")]
    Pair,
    /// A request that is none, or not signed by its own key.
    #[error("it is no request for a certificate for an ECDSA P-256 key, signed by that key")]
    Request,
    /// A bug of ours, or a clock beyond all years.
    #[error("a certificate cannot be made")]
    Make(#[source] rcgen::Error),
    /// The same.
    #[error("the clock shows no time that a certificate can hold")]
    Time,
}

/// The cluster's own authority: its certificate and its private key. Only gateways have it.
pub struct Authority {
    cluster: ClusterName,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    not_after_ms: u64,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority for a new cluster.
    ///
    /// # Errors
    /// No randomness, or a clock that shows no time; nothing is made.
    pub fn create(cluster: &ClusterName, now_ms: u64) -> Result<Authority, AuthorityError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, cluster.as_str());
        params.distinguished_name.push(DnType::CommonName, "Kumonosu authority");
        params.subject_alt_names = vec![SanType::URI(ia5(format!("spiffe://{cluster}"))?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = time_at(now_ms.saturating_sub(BACKDATED_MS))?;
        params.not_after = time_at(now_ms.saturating_add(AUTHORITY_MS))?;
        let certificate = params.self_signed(&key).map_err(AuthorityError::Make)?;
        Authority::new(certificate.der().clone(), key)
    }

    /// An authority from its certificate and its key.
    ///
    /// # Errors
    /// They are not those of one authority: see [`AuthorityError`].
    pub fn load(
        certificate: CertificateDer<'static>,
        key: &PrivateKeyDer<'_>,
    ) -> Result<Authority, AuthorityError> {
        Authority::new(certificate, key_pair(key).ok_or(AuthorityError::Key)?)
    }

    fn new(
        certificate: CertificateDer<'static>,
        key: KeyPair,
    ) -> Result<Authority, AuthorityError> {
        let cluster = cluster_of(&certificate)?;
        let parsed = parse(&certificate).ok_or(AuthorityError::Certificate)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(AuthorityError::Pair);
        }
        let not_after_ms = ms_of(parsed.validity().not_after.timestamp());
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(AuthorityError::Make)?;
        Ok(Authority { cluster, certificate, issuer, not_after_ms })
    }

    /// The cluster that it speaks for.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of its certificate in DER: what a token pins it by.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.certificate)
    }

    /// Its private key, as PKCS #8. Whoever has it can make nodes of this cluster.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        private_key(self.issuer.key())
    }

    /// The public key that a request asks a certificate for, once it has proven that the asker has the
    /// private one.
    ///
    /// # Errors
    /// [`AuthorityError::Request`].
    pub fn key_of_request(csr_der: &[u8]) -> Result<KeyId, AuthorityError> {
        Ok(KeyId::of_public_key(&public_key(csr_der)?.subject_public_key_info()))
    }

    /// Issues a certificate for the key of a request, with the names that are passed; those in the
    /// request are not looked at.
    ///
    /// # Errors
    /// A request that is none, or one not signed by its own key.
    pub fn issue(
        &self,
        csr_der: &[u8],
        host: &HostId,
        role: Role,
        now_ms: u64,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let public_key = public_key(csr_der)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, self.cluster.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, role.name());
        params.distinguished_name.push(DnType::CommonName, host.to_string());
        params.subject_alt_names = vec![SanType::URI(ia5(node_uri(&self.cluster, host))?)];
        // Of our names a few are none of the DNS (`a..b`); nothing of ours goes by this one.
        let dns = format!("{}.{}.{}.kumo", host.host, host.dc, self.cluster);
        if DnsName::try_from(dns.as_str()).is_ok() {
            params.subject_alt_names.push(SanType::DnsName(ia5(dns)?));
        }
        params.is_ca = IsCa::NoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = time_at(now_ms.saturating_sub(BACKDATED_MS))?;
        // What outlives its authority is not accepted anyway.
        params.not_after = time_at(now_ms.saturating_add(NODE_MS).min(self.not_after_ms))?;
        let certificate = params.signed_by(&public_key, &self.issuer);
        Ok(certificate.map_err(AuthorityError::Make)?.der().clone())
    }
}

/// The cluster whose authority a certificate says it is.
///
/// # Errors
/// [`AuthorityError::Certificate`].
pub fn cluster_of(authority: &CertificateDer<'_>) -> Result<ClusterName, AuthorityError> {
    let parsed = parse(authority).ok_or(AuthorityError::Certificate)?;
    let uris = uris(&parsed);
    let cluster = match uris[..] {
        [uri] if parsed.is_ca() => uri.strip_prefix("spiffe://"),
        _ => None,
    };
    cluster.and_then(|name| name.parse().ok()).ok_or(AuthorityError::Certificate)
}

/// A new private key, and a request for a certificate for it, both in DER.
///
/// # Errors
/// The system has no randomness.
pub fn new_request() -> Result<(PrivateKeyDer<'static>, Vec<u8>), AuthorityError> {
    let key = new_key()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(AuthorityError::Make)?;
    Ok((private_key(&key), request.der().to_vec()))
}

/// Whether `key` is the private half of the key in `certificate`.
pub fn is_pair(certificate: &CertificateDer<'_>, key: &PrivateKeyDer<'_>) -> bool {
    let (Some(parsed), Some(key)) = (parse(certificate), key_pair(key)) else { return false };
    parsed.public_key().raw == key.subject_public_key_info()
}

pub(crate) fn new_key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Make)
}

pub(crate) fn private_key(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

pub(crate) fn key_pair(key: &PrivateKeyDer<'_>) -> Option<KeyPair> {
    let PrivateKeyDer::Pkcs8(key) = key else { return None };
    KeyPair::from_pkcs8_der_and_sign_algo(key, &PKCS_ECDSA_P256_SHA256).ok()
}

fn public_key(csr_der: &[u8]) -> Result<SubjectPublicKeyInfo, AuthorityError> {
    let csr = CertificateSigningRequestDer::from(csr_der);
    let parsed = X509CertificationRequest::from_der(&csr).ok();
    let Some((&[], request)) = parsed else { return Err(AuthorityError::Request) };
    request.verify_signature().map_err(|_| AuthorityError::Request)?;
    let raw = request.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(raw).map_err(|_| AuthorityError::Request)?;
    // One key has one encoding, so that one key has one name.
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.subject_public_key_info() != raw {
        return Err(AuthorityError::Request);
    }
    Ok(key)
}

pub(crate) fn ia5(text: String) -> Result<Ia5String, AuthorityError> {
    text.try_into().map_err(AuthorityError::Make)
}

/// Milliseconds since the Unix epoch of a time in a certificate.
pub(crate) fn ms_of(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}

pub(crate) fn time_at(ms: u64) -> Result<OffsetDateTime, AuthorityError> {
    let seconds = i64::try_from(ms / 1000).map_err(|_| AuthorityError::Time)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| AuthorityError::Time)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn authority() -> Authority {
        Authority::create(&"acme".parse().expect("a name"), NOW_MS).expect("an authority")
    }

    fn host(text: &str) -> HostId {
        text.parse().expect("a host")
    }

    #[test]
    fn what_is_issued_says_who_it_is_for() {
        let authority = authority();
        let long = format!("{}/{}", "d".repeat(63), "h".repeat(63));
        for (name, role) in
            [("tokyo/web-1", Role::Member), (&long, Role::Gateway), ("a..b/c", Role::Member)]
        {
            let (key, csr) = new_request().expect("a request");
            let certificate = authority.issue(&csr, &host(name), role, NOW_MS).expect("issued");
            let peer = Peer::of(&certificate).expect("a node");
            assert_eq!((peer.cluster.as_str(), peer.host, peer.role), ("acme", host(name), role));
            assert_eq!(peer.not_before_ms, NOW_MS - BACKDATED_MS);
            assert_eq!(peer.not_after_ms, NOW_MS + NODE_MS);
            assert_eq!(peer.key_id, Authority::key_of_request(&csr).expect("a key"));
            assert_eq!(peer.key_id.to_string().parse(), Ok(peer.key_id));
            assert!(is_pair(&certificate, &key));
            assert!(is_signed_by(&certificate, authority.certificate()));
            assert!(!is_signed_by(&certificate, self::authority().certificate()));
        }
    }

    #[test]
    fn names_in_a_request_count_for_nothing() {
        let key = new_key().expect("a key");
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).expect("names");
        params.distinguished_name.push(DnType::OrganizationalUnitName, "gateway");
        let evil = ia5("spiffe://acme/dc/tokyo/host/gw-1".to_owned()).expect("a name");
        params.subject_alt_names.push(SanType::URI(evil));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = params.serialize_request(&key).expect("a request").der().to_vec();
        let issued =
            authority().issue(&csr, &host("osaka/a"), Role::Member, NOW_MS).expect("issued");
        let peer = Peer::of(&issued).expect("a node");
        assert_eq!((peer.host, peer.role), (host("osaka/a"), Role::Member));
        let found = String::from_utf8_lossy(&issued).contains("evil.example");
        assert!(!found);
    }

    #[test]
    fn a_request_must_be_signed_by_its_own_key() {
        let (_, csr) = new_request().expect("a request");
        let mut forged = csr.clone();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
        let other = CertificateParams::default().serialize_request(&p384).expect("a request");
        let longer = [&csr[..], &[0]].concat();
        for bad in [&forged[..], &csr[..csr.len() / 2], b"", &longer, other.der()] {
            let result = authority().issue(bad, &host("a/b"), Role::Member, NOW_MS);
            assert!(matches!(result, Err(AuthorityError::Request)), "{result:?}");
        }
    }

    #[test]
    fn an_authority_is_read_back_and_names_its_cluster() {
        let made = authority();
        let read = Authority::load(made.certificate().clone(), &made.key()).expect("read back");
        assert_eq!((read.cluster().as_str(), read.hash()), ("acme", made.hash()));
        let (_, csr) = new_request().expect("a request");
        let issued = read.issue(&csr, &host("a/b"), Role::Member, NOW_MS).expect("issued");
        assert!(is_signed_by(&issued, made.certificate()));

        let other = authority();
        let mixed = Authority::load(made.certificate().clone(), &other.key());
        assert!(matches!(mixed, Err(AuthorityError::Pair)), "{mixed:?}");
        let node = Authority::load(issued, &made.key());
        assert!(matches!(node, Err(AuthorityError::Certificate)), "{node:?}");
        assert_eq!(Peer::of(made.certificate()), Err(PeerError::Authority));
    }

    #[test]
    fn no_certificate_outlives_its_authority() {
        let authority = authority();
        let late_ms = NOW_MS + AUTHORITY_MS - DAY_MS;
        let (_, csr) = new_request().expect("a request");
        let issued = authority.issue(&csr, &host("a/b"), Role::Member, late_ms).expect("issued");
        let peer = Peer::of(&issued).expect("a node");
        assert_eq!(peer.not_after_ms, NOW_MS + AUTHORITY_MS);
        assert!(peer.wants_renewal(late_ms));
    }

    #[test]
    fn names_of_nodes() {
        let good = "spiffe://acme/dc/tokyo/host/web-1";
        assert!(node_of_uri(good).is_ok());
        for bad in [
            "spiffe://acme/dc/tokyo/host",
            "spiffe://acme/dc/tokyo/host/a/b",
            "spiffe://acme/dc/tokyo/host/",
            "spiffe:///dc/tokyo/host/a",
            "https://acme/dc/tokyo/host/a",
            "spiffe://acme/service/a/host/b",
            "spiffe://acme/dc/Tokyo/host/a",
        ] {
            assert!(node_of_uri(bad).is_err(), "for {bad}");
        }
    }
}
