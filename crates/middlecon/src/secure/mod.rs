//! TLS between programs of different hosts: what it is set to, and where certificates come from.
//!
//! The node issues certificates; who is believed is decided by a [`Secure`] that the program brings along:
//! [`OfCluster`], or, where the feature `cluster` is off, one of its own. Whatever is wrong with a certificate
//! is told to who calls, in words.

#[cfg(feature = "cluster")]
mod cluster;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kumo_abi::call::{Cause, InstanceId, Peer, ServiceName};
use kumo_abi::control::{Carrier, Certificate, FromNode, Request, ToNode};
use kumo_sys::wall_ms;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

#[cfg(feature = "cluster")]
pub use self::cluster::OfCluster;
use crate::error::CallError;
use crate::node::{Answer, Node, Shared, Welcome};
use crate::time::now_ns;

/// Makes TLS configurations. TLS 1.3 only, and no early data: a call must not be replayed.
pub trait Secure: Send + Sync {
    /// To call an instance of this service, which must prove to be the peer that the node named.
    ///
    /// # Errors
    /// The certificate cannot be used.
    fn client(
        &self,
        certificate: &Certificate,
        service: &ServiceName,
        peer: &Peer,
    ) -> Result<(Setup<ClientConfig>, ServerName<'static>), rustls::Error>;

    /// To be called by this peer, which must prove to be who the node named.
    ///
    /// # Errors
    /// The certificate cannot be used.
    fn server(
        &self,
        certificate: &Certificate,
        peer: &Peer,
    ) -> Result<Setup<ServerConfig>, rustls::Error>;
}

/// A configuration for one connection.
pub struct Setup<Config> {
    /// For rustls.
    pub config: Arc<Config>,
    /// Asked after a handshake that failed: why this side refused the other, if it did and knows more than
    /// TLS does.
    pub refused: Refused,
}

/// Says why we refused a peer.
pub type Refused = Box<dyn Fn() -> Option<String> + Send + Sync>;

impl<Config> Setup<Config> {
    /// One that knows no more than TLS does.
    pub fn plain(config: Config) -> Setup<Config> {
        Setup { config: Arc::new(config), refused: Box::new(|| None) }
    }
}

/// Our side of TLS on one connection.
pub(crate) struct Tls {
    pub(crate) connection: rustls::Connection,
    pub(crate) refused: Refused,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// A certificate that is asked for when it is needed, and anew when half of its time is over.
#[derive(Default)]
pub(crate) struct Certificates {
    kept: Mutex<Vec<(Option<InstanceId>, Kept)>>,
}

#[derive(Clone)]
struct Kept {
    certificate: Arc<Certificate>,
    asked_ms: u64,
}

/// Certificates that are kept: one for each instance, and one for calls in the user's name.
const KEPT_MAX: usize = 65;

impl Certificates {
    /// The one that is kept, if half of its time is left.
    pub(crate) fn kept(&self, instance: Option<InstanceId>) -> Option<Arc<Certificate>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, kept) = kept.iter().find(|(of, _)| *of == instance)?;
        let half_ms = kept.certificate.not_after_ms.saturating_sub(kept.asked_ms) / 2;
        (wall_ms() < kept.asked_ms + half_ms).then(|| kept.certificate.clone())
    }

    fn keep(&self, instance: Option<InstanceId>, certificate: Certificate) -> Arc<Certificate> {
        let certificate = Arc::new(certificate);
        let new = Kept { certificate: certificate.clone(), asked_ms: wall_ms() };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(of, _)| *of != instance);
        if kept.len() >= KEPT_MAX {
            kept.remove(0);
        }
        kept.push((instance, new));
        certificate
    }

    /// Hosts are believed no longer: what is kept says so from now on.
    pub(crate) fn evicted(&self, serials: &[Vec<u8>]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, kept) in kept.iter_mut() {
            let mut certificate = Certificate::clone(&kept.certificate);
            certificate.evicted = serials.to_vec();
            kept.certificate = Arc::new(certificate);
        }
    }
}

/// Where a certificate comes from.
enum Source {
    /// It was asked for before.
    Kept(Arc<Certificate>),
    /// The node, which is asked this.
    Node(Request, ToNode),
}

/// Nothing was sent that could be executed.
fn denied(message: impl Into<String>) -> CallError {
    CallError::not_executed(Cause::Denied, message)
}

fn unusable(error: &rustls::Error) -> CallError {
    denied(match error {
        // In our own words, without a prefix of rustls.
        rustls::Error::General(words) => words.clone(),
        other => format!("TLS cannot use the certificate of this program: {other}"),
    })
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy)]
pub(crate) enum Other<'a> {
    /// An instance of this service, which we call.
    Callee(&'a ServiceName, &'a Peer),
    /// Who calls us.
    Caller(&'a Peer),
}

impl Node {
    /// For how long this program's certificate for calls to other hosts is good, for who looks why they do not
    /// come through. It is renewed long before.
    ///
    /// # Errors
    /// The node gives none within this time, or what it gives cannot be used.
    pub fn certificate_good_for(&self, within: Duration) -> Result<Duration, CallError> {
        let within_ns = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
        let certificate = self.shared.certificate(None, now_ns().saturating_add(within_ns))?;
        // Its authority and its key are looked at as for a call to a service of this very host.
        let welcome = self.welcome();
        let itself = welcome.map(|Welcome { host, who, .. }| Peer { host, pid: 0, who });
        if let Some(itself) = itself {
            self.shared.tls_server(&certificate, &itself)?;
        }
        Ok(Duration::from_millis(certificate.not_after_ms.saturating_sub(wall_ms())))
    }
}

impl Shared {
    fn certificate_source(&self, instance: Option<InstanceId>) -> Source {
        let kept = self.certificates.kept(instance);
        kept.map_or_else(
            || {
                let request = self.request();
                Source::Node(request, ToNode::Certificate { request, instance })
            },
            Source::Kept,
        )
    }

    fn certified(
        &self,
        instance: Option<InstanceId>,
        answer: Answer,
    ) -> Result<Arc<Certificate>, CallError> {
        match answer.message {
            FromNode::Certificate { certificate, .. } => {
                Ok(self.certificates.keep(instance, certificate))
            }
            FromNode::Refused { cause, message, .. } => {
                let message = format!("no certificate from the node of this host: {message}");
                Err(CallError::not_executed(cause, message))
            }
            _ => Err(CallError::not_executed(Cause::Malformed, "the node answered something else")),
        }
    }

    /// Our side of TLS, for threads; nothing where the carrier needs none. `instance` is who we are.
    pub(crate) fn tls(
        &self,
        carrier: Carrier,
        instance: Option<InstanceId>,
        other: Other<'_>,
        deadline_ns: u64,
    ) -> Result<Option<Tls>, CallError> {
        if carrier != Carrier::Tls {
            return Ok(None);
        }
        let certificate = self.certificate(instance, deadline_ns)?;
        self.tls_with(&certificate, other).map(Some)
    }

    fn certificate(
        &self,
        instance: Option<InstanceId>,
        deadline_ns: u64,
    ) -> Result<Arc<Certificate>, CallError> {
        match self.certificate_source(instance) {
            Source::Kept(kept) => Ok(kept),
            Source::Node(request, message) => {
                let answer = self.ask_and_wait(request, &message, None, deadline_ns)?;
                self.certified(instance, answer)
            }
        }
    }

    /// As [`Shared::tls`], for tasks.
    pub(crate) async fn tls_async(
        self: &Arc<Shared>,
        carrier: Carrier,
        instance: Option<InstanceId>,
        other: Other<'_>,
        deadline_ns: u64,
    ) -> Result<Option<Tls>, CallError> {
        if carrier != Carrier::Tls {
            return Ok(None);
        }
        let certificate = match self.certificate_source(instance) {
            Source::Kept(kept) => kept,
            Source::Node(request, message) => {
                let answer = self.ask_and_await(request, &message, deadline_ns).await?;
                self.certified(instance, answer)?
            }
        };
        self.tls_with(&certificate, other).map(Some)
    }

    fn tls_with(&self, certificate: &Certificate, other: Other<'_>) -> Result<Tls, CallError> {
        match other {
            Other::Callee(service, peer) => self.tls_client(certificate, service, peer),
            Other::Caller(peer) => self.tls_server(certificate, peer),
        }
    }

    fn tls_client(
        &self,
        certificate: &Certificate,
        service: &ServiceName,
        peer: &Peer,
    ) -> Result<Tls, CallError> {
        let secure = self.brought()?;
        let made = secure.0.client(certificate, service, peer);
        let (Setup { config, refused }, name) = made.map_err(|error| unusable(&error))?;
        let connection = rustls::ClientConnection::new(config, name);
        let connection = connection.map_err(|error| unusable(&error))?.into();
        Ok(Tls { connection, refused })
    }

    fn tls_server(&self, certificate: &Certificate, peer: &Peer) -> Result<Tls, CallError> {
        let secure = self.brought()?;
        let made = secure.0.server(certificate, peer);
        let Setup { config, refused } = made.map_err(|error| unusable(&error))?;
        let connection = rustls::ServerConnection::new(config);
        let connection = connection.map_err(|error| unusable(&error))?.into();
        Ok(Tls { connection, refused })
    }

    fn brought(&self) -> Result<Arc<Brought>, CallError> {
        let none = || {
            denied(
                "this program says of nobody on other hosts that it believes them; give its node connection a \
                 `Secure`, such as `OfCluster`",
            )
        };
        self.secure.load_full().ok_or_else(none)
    }
}

/// A box of one size, for a pointer that is swapped.
pub(crate) struct Brought(pub(crate) Arc<dyn Secure>);
