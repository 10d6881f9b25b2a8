//! TLS between programs of different hosts: what it is set to, and where certificates come from.
//!
//! The node issues certificates; who is believed is decided by a [`Secure`] that the program brings along
//! (`kumo-pki` has one), because this crate knows nothing of authorities.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use kumo_abi::call::{InstanceId, Peer, ServiceName};
use kumo_abi::control::{Certificate, FromNode, ToNode};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

use crate::node::{Answer, Shared};

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
    ) -> Result<(Arc<ClientConfig>, ServerName<'static>), rustls::Error>;

    /// To be called by this peer, which must prove to be who the node named.
    ///
    /// # Errors
    /// The certificate cannot be used.
    fn server(
        &self,
        certificate: &Certificate,
        peer: &Peer,
    ) -> Result<Arc<ServerConfig>, rustls::Error>;
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

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

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

impl Shared {
    pub(crate) fn certificate_question(&self, instance: Option<InstanceId>) -> (u64, ToNode) {
        let request = self.request();
        (request, ToNode::Certificate { request, instance })
    }

    pub(crate) fn certificate_answer(
        &self,
        instance: Option<InstanceId>,
        answer: Answer,
    ) -> Option<Arc<Certificate>> {
        match answer.message {
            FromNode::Certificate { certificate, .. } => {
                Some(self.certificates.keep(instance, certificate))
            }
            _ => None,
        }
    }

    /// A certificate, for threads.
    pub(crate) fn certificate(
        &self,
        instance: Option<InstanceId>,
        deadline_ns: u64,
    ) -> Option<Arc<Certificate>> {
        if let Some(kept) = self.certificates.kept(instance) {
            return Some(kept);
        }
        let (request, message) = self.certificate_question(instance);
        let answer = self.ask_and_wait(request, &message, None, deadline_ns).ok()?;
        self.certificate_answer(instance, answer)
    }

    /// A certificate, for tasks.
    pub(crate) async fn certificate_async(
        &self,
        instance: Option<InstanceId>,
    ) -> Option<Arc<Certificate>> {
        if let Some(kept) = self.certificates.kept(instance) {
            return Some(kept);
        }
        let (request, message) = self.certificate_question(instance);
        let (send, answer) = tokio::sync::oneshot::channel();
        self.ask(
            request,
            &message,
            Box::new(move |answer| {
                let _ = send.send(answer);
            }),
        );
        self.certificate_answer(instance, answer.await.ok()?)
    }

    /// Our side of TLS with a callee.
    pub(crate) fn tls_client(
        &self,
        certificate: Option<Arc<Certificate>>,
        service: &ServiceName,
        peer: &Peer,
    ) -> Option<rustls::Connection> {
        let secure = self.secure.load();
        let (secure, certificate) = (secure.as_ref()?, certificate?);
        let (config, name) = secure.0.client(&certificate, service, peer).ok()?;
        rustls::ClientConnection::new(config, name).ok().map(Into::into)
    }

    /// Our side of TLS with a caller.
    pub(crate) fn tls_server(
        &self,
        certificate: Option<Arc<Certificate>>,
        peer: &Peer,
    ) -> Option<rustls::Connection> {
        let secure = self.secure.load();
        let (secure, certificate) = (secure.as_ref()?, certificate?);
        let config = secure.0.server(&certificate, peer).ok()?;
        rustls::ServerConnection::new(config).ok().map(Into::into)
    }
}

/// A box of one size, for a pointer that is swapped.
pub(crate) struct Brought(pub(crate) Arc<dyn Secure>);
