//! Who somebody is by a certificate that he has shown, and what it lets him do.
//!
//! TLS has checked that it comes from the authority that the server was told of. Its subject says the
//! rest, as whoever signs it decides: `OU` is a role or a scope, one or several; `CN`, or a URI among the
//! alternative names, is who. Without a role he may look. It is good until its end, or until it or one above it
//! is taken back: that is looked at for each request, and from time to time for those that listen.

use std::sync::Arc;

use kumo_abi::rights::{Asker, Lines, Rights, Role, Scope, Who};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::token::{Certificate, KeyHash, Tokens};

/// Most of a name that is kept for the audit log.
const NAME_CHARS_MAX: usize = 200;

/// What somebody has shown in TLS, for as long as his connection lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// Who he is by it.
    pub asker: Asker,
    /// His certificate, and those he has shown above it.
    chain: Arc<[Certificate]>,
    /// When the first of them ends, milliseconds since the Unix epoch.
    until_ms: u64,
}

impl Presented {
    /// Nothing if one of them cannot be read.
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> Option<Presented> {
        let parsed: Option<Vec<_>> =
            chain.iter().map(|der| Some(X509Certificate::from_der(der).ok()?.1)).collect();
        let parsed = parsed?;
        let until_s = parsed.iter().map(|one| one.validity().not_after.timestamp()).min()?;
        let certificate = |(one, der): (&X509Certificate<'_>, &CertificateDer<'_>)| Certificate {
            key: KeyHash::of(one.public_key().raw),
            der: der.to_vec(),
        };
        Some(Presented {
            asker: asker(parsed.first()?),
            chain: parsed.iter().zip(chain).map(certificate).collect(),
            until_ms: u64::try_from(until_s).unwrap_or(0).saturating_mul(1_000),
        })
    }

    /// Whether it is still good: TLS looks at ends only when a connection begins.
    pub(super) fn is_good(&self, tokens: &dyn Tokens, now_ms: u64) -> bool {
        now_ms < self.until_ms && !self.chain.iter().any(|one| tokens.is_revoked(one))
    }
}

/// By what a certificate in PEM is known, and whose it says to be; nothing if it is none.
pub fn known_by(pem: &[u8]) -> Option<(KeyHash, String)> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let presented = Presented::of(&[der])?;
    let Who::Certificate(name) = presented.asker.who else { return None };
    Some((presented.chain.first()?.key, name))
}

/// Who shows this certificate.
fn asker(certificate: &X509Certificate<'_>) -> Asker {
    let subject = certificate.subject();
    let units: Vec<&str> =
        subject.iter_organizational_unit().filter_map(|unit| unit.as_str().ok()).collect();
    let role = units.iter().filter_map(|unit| unit.parse::<Role>().ok()).max().unwrap_or_default();
    let scopes = units.iter().filter_map(|unit| unit.parse::<Scope>().ok());
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let uri = alternative.as_ref().and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
    });
    let common = subject.iter_common_name().find_map(|name| name.as_str().ok());
    let name = uri.or(common).unwrap_or("unnamed").chars().take(NAME_CHARS_MAX).collect();
    let rights = scopes.fold(Rights::of(role), Rights::with);
    Asker { who: Who::Certificate(name), rights, wants: Lines::Whole }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn shown(units: &[&str], name: &str, uri: Option<&str>) -> Asker {
        let mut params = CertificateParams::default();
        for unit in units {
            params.distinguished_name.push(DnType::OrganizationalUnitName, *unit);
        }
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(uri) = uri {
            params.subject_alt_names.push(SanType::URI(uri.try_into().expect("ASCII")));
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        presented(&[certificate.der()]).expect("it can be read").asker
    }

    fn presented(chain: &[&CertificateDer<'_>]) -> Option<Presented> {
        Presented::of(&chain.iter().map(|der| (*der).clone()).collect::<Vec<_>>())
    }

    /// Has taken one back.
    #[derive(Debug)]
    struct Without(KeyHash);

    impl Tokens for Without {
        fn kept(&self, _: &kumo_abi::TokenName) -> Option<crate::token::Kept> {
            None
        }

        fn is_revoked(&self, certificate: &Certificate) -> bool {
            certificate.key == self.0
        }
    }

    #[test]
    fn good_until_its_end_or_that_of_one_above_or_until_one_is_taken_back() {
        let signed = |year: i32| {
            let mut params = CertificateParams::default();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = KeyPair::generate().expect("a key");
            let certificate = params.self_signed(&key).expect("a certificate");
            (known_by(certificate.pem().as_bytes()).expect("it can be read").0, certificate)
        };
        let ((own, leaf), (above, issuer)) = (signed(2031), signed(2030));
        let shown = presented(&[leaf.der(), issuer.der()]).expect("they can be read");
        let other = KeyHash::of(b"another");
        // 2030-01-01T00:00:00Z.
        let end_ms = 1_893_456_000_000;
        let cases =
            [(other, end_ms - 1, true), (other, end_ms, false), (own, 0, false), (above, 0, false)];
        for (revoked, now_ms, want) in cases {
            assert_eq!(shown.is_good(&Without(revoked), now_ms), want, "{revoked} at {now_ms}");
        }
    }

    #[test]
    fn what_certificates_say() {
        let alice = Who::Certificate("alice".to_owned());
        let host = "spiffe://acme/dc/tokyo/host/a";
        let cases = [
            (shown(&[], "alice", None), alice.clone(), Rights::VIEW),
            (shown(&["operate"], "alice", None), alice.clone(), Rights::of(Role::Operate)),
            (shown(&["signal"], "alice", None), alice.clone(), Rights::VIEW.with(Scope::Signal)),
            (shown(&["Sales"], "alice", None), alice.clone(), Rights::VIEW),
            (shown(&[], "alice", Some(host)), Who::Certificate(host.to_owned()), Rights::VIEW),
        ];
        for (asker, who, rights) in cases {
            assert_eq!((asker.who, asker.rights), (who, rights));
        }
        assert_eq!(presented(&[&CertificateDer::from(b"nonsense".to_vec())]), None);
        assert_eq!(presented(&[]), None);
        assert_eq!(known_by(b"nonsense"), None);
    }
}
