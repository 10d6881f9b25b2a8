//! TLS between the programs of a test.

use std::sync::Arc;

use kumo_abi::call::{Peer, ServiceName};
use kumo_abi::control::Certificate;
use middlecon::{Node, Secure, Setup};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::TestNode;

/// Believes one certificate, which all programs of a test have.
pub struct One {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl One {
    pub fn new() -> One {
        let made = rcgen::generate_simple_self_signed(vec!["program".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        One { certificate: made.cert.der().clone(), key }
    }

    pub fn read(dir: &std::path::Path) -> One {
        let certificate = std::fs::read(dir.join("certificate")).unwrap().into();
        One { certificate, key: std::fs::read(dir.join("key")).unwrap().into() }
    }

    pub fn write(&self, dir: &std::path::Path) {
        std::fs::write(dir.join("certificate"), &self.certificate).unwrap();
        std::fs::write(dir.join("key"), self.key.secret_pkcs8_der()).unwrap();
    }

    pub fn pair(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.certificate.clone()], PrivateKeyDer::from(self.key.clone_key()))
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        Arc::new(roots)
    }
}

impl Secure for One {
    fn client(
        &self,
        _: &Certificate,
        _: &ServiceName,
        _: &Peer,
    ) -> Result<(Setup<ClientConfig>, ServerName<'static>), rustls::Error> {
        let (chain, key) = self.pair();
        let config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(self.roots())
            .with_client_auth_cert(chain, key)?;
        Ok((Setup::plain(config), ServerName::try_from("program").unwrap()))
    }

    fn server(&self, _: &Certificate, _: &Peer) -> Result<Setup<ServerConfig>, rustls::Error> {
        let (chain, key) = self.pair();
        let callers = rustls::server::WebPkiClientVerifier::builder(self.roots()).build().unwrap();
        let config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_client_cert_verifier(callers)
            .with_single_cert(chain, key)?;
        Ok(Setup::plain(config))
    }
}

pub fn connect(node: &TestNode, secure: &Arc<One>) -> Node {
    let connected = Node::connect(node.run_dir()).unwrap();
    connected.secure_with(secure.clone());
    connected
}
