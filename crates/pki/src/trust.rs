//! Whom to believe: what must hold of a certificate before its names count.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use kumo_abi::cluster::Role;
use kumo_abi::{ClusterName, HostId};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, RootCertStore};

use crate::authority::{AuthorityError, Peer, PeerError, cluster_of};
use crate::key::KeyId;

/// The keys of hosts that are refused. Whoever learns of an eviction stores the new set in it; the next
/// decision sees it.
pub type Evicted = Arc<ArcSwap<BTreeSet<KeyId>>>;

/// Which end of a connection shows a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that dialed.
    Client,
    /// The one that was dialed.
    Server,
}

/// Which host is wanted at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Any of the cluster.
    Anyone,
    /// This one.
    Host(HostId),
    /// This one, as a gateway.
    Gateway(HostId),
}

/// What a host or a program believes: one cluster's authority, less who was evicted.
pub struct Trust {
    cluster: ClusterName,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
    evicted: Evicted,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Trust {
    /// Believes the cluster whose authority has this certificate.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`].
    pub fn new(ca: &CertificateDer<'_>, evicted: Evicted) -> Result<Trust, AuthorityError> {
        let cluster = cluster_of(ca)?;
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned()).map_err(|_| AuthorityError::Certificate)?;
        let roots = Arc::new(roots);
        let (anchors, algorithms) = (Arc::clone(&roots), Arc::clone(&provider));
        let clients = WebPkiClientVerifier::builder_with_provider(anchors, algorithms);
        let clients = clients.build().map_err(|_| AuthorityError::Certificate)?;
        Ok(Trust { cluster, roots, clients, provider, evicted })
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The keys that are refused; to be changed by who learns of evictions.
    pub fn evicted(&self) -> &Evicted {
        &self.evicted
    }

    /// What it computes with.
    pub fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    /// Decides about the certificate of a host, as `end` showed it, at the time `now`.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn host(
        &self,
        end: End,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        wanted: &Wanted,
        now: UnixTime,
    ) -> Result<Peer, Refusal> {
        let peer = Peer::of(certificate).map_err(Refusal::NoNode)?;
        let chain = match end {
            End::Client => {
                self.clients.verify_client_cert(certificate, intermediates, now).map(|_| ())
            }
            End::Server => self.signed(certificate, &self.roots, intermediates, now),
        };
        let now_ms = now.as_secs().saturating_mul(1000);
        judge(&peer, chain, &self.cluster, &self.evicted.load(), wanted, now_ms)?;
        Ok(peer)
    }

    /// Whether a chain of signatures leads from a certificate to one of `roots`, and all are valid at
    /// `now`, for servers.
    pub(crate) fn signed(
        &self,
        certificate: &CertificateDer<'_>,
        roots: &RootCertStore,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
    }
}

/// Why the holder of a certificate is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
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
    /// What the other side's TLS is told.
    pub fn to_tls(&self) -> rustls::Error {
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
/// `now_ms` is the wall clock, milliseconds since the Unix epoch.
fn judge(
    peer: &Peer,
    chain: Result<(), rustls::Error>,
    ours: &ClusterName,
    evicted: &BTreeSet<KeyId>,
    wanted: &Wanted,
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
    match wanted {
        Wanted::Host(wanted) | Wanted::Gateway(wanted) if peer.host != *wanted => {
            Err(Refusal::Host { found: host(), wanted: wanted.clone() })
        }
        Wanted::Gateway(_) if peer.role != Role::Gateway => {
            Err(Refusal::NoGateway { host: host() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;

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
        let any = Wanted::Anyone;
        let gw = Wanted::Gateway(host("tokyo/gw"));
        let (other, itself) = (Wanted::Gateway(host("tokyo/b")), Wanted::Host(host("tokyo/gw")));
        let unknown = CertificateError::UnknownIssuer;
        #[rustfmt::skip]
        let cases = [
            (&peer, Ok(()), &none, &any, 15_000, None),
            (&peer, Ok(()), &none, &gw, 15_000, None),
            (&member, Ok(()), &none, &any, 15_000, None),
            (&member, Ok(()), &none, &itself, 15_000, None),
            (&theirs, wrong(unknown.clone()), &none, &any, 15_000, Some(("cluster `beta`", AlertDescription::UnknownCA))),
            (&theirs, Ok(()), &none, &any, 15_000, Some(("cluster `beta`", AlertDescription::UnknownCA))),
            (&peer, wrong(unknown), &evicted, &gw, 15_000, Some(("not issued by its authority", AlertDescription::UnknownCA))),
            (&peer, wrong(CertificateError::Expired), &none, &any, 25_000, Some(("expired 5 s ago", AlertDescription::CertificateExpired))),
            (&peer, wrong(CertificateError::NotValidYet), &none, &any, 3_000, Some(("begins in 7 s", AlertDescription::CertificateExpired))),
            (&peer, Ok(()), &evicted, &other, 15_000, Some(("`tokyo/gw` was evicted", AlertDescription::CertificateRevoked))),
            (&peer, Ok(()), &none, &other, 15_000, Some(("that of `tokyo/gw`, and `tokyo/b`", AlertDescription::AccessDenied))),
            (&member, Ok(()), &none, &gw, 15_000, Some(("no gateway", AlertDescription::AccessDenied))),
            (&peer, wrong(CertificateError::InvalidPurpose), &none, &any, 15_000, Some(("cannot be used", AlertDescription::UnsupportedCertificate))),
        ];
        for (peer, chain, evicted, wanted, now_ms, want) in cases {
            let context = format!("{peer:?}, {chain:?}, {wanted:?}");
            let refusal = judge(peer, chain, &ours, evicted, wanted, now_ms).err();
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
