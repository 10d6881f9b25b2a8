//! TLS with a certificate and key that the operator gives.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};

/// Longest certificate or key file. A chain of a dozen certificates is still well below it.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Where a certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and the chain above it, PEM.
    pub cert: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
    /// The authorities whose certificates say who asks, PEM; nobody shows one where there is none.
    pub clients: Option<PathBuf>,
}

/// Why a certificate cannot be used. Nothing was served with it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// `certificate` or `key`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file has something else in it.
    #[error(
        "{} holds no {what} in PEM form; it needs a line `-----BEGIN {begin}-----`", path.display()
    )]
    Missing {
        /// `certificate` or `key`.
        what: &'static str,
        /// What its first line says.
        begin: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// The file is damaged.
    #[error("cannot make sense of {what} {}", path.display())]
    Form {
        /// `certificate` or `key`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// They are of different pairs.
    #[error("key {} is not that of certificate {}; give the two that belong together", .0.key.display(), .0.cert.display())]
    Mismatch(Box<TlsFiles>),
    /// An authority whose certificates nobody can check.
    #[error("the certificates in {} are of no authority", path.display())]
    Clients {
        /// Where.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// TLS does not take them.
    #[error("certificate {} and key {} cannot be used", .files.cert.display(), .files.key.display())]
    Refused {
        /// The files.
        files: Box<TlsFiles>,
        /// Why.
        source: rustls::Error,
    },
}

/// Reads the files and checks that they belong together.
///
/// # Errors
/// See [`TlsError`].
pub fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let text = read("certificate", &files.cert)?;
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certs = certs.map_err(|error| form("certificate", &files.cert, error))?;
    if certs.is_empty() {
        return Err(form("certificate", &files.cert, pem::Error::NoItemsFound));
    }
    let text = read("key", &files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&text);
    let key = key.map_err(|error| form("key", &files.key, error))?;

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let refused = |source: rustls::Error| match source {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::Mismatch(Box::new(files.clone()))
        }
        source => TlsError::Refused { files: Box::new(files.clone()), source },
    };
    let clients = match &files.clients {
        Some(path) => Some(verifier(path, Arc::clone(&provider))?),
        None => None,
    };
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(refused)?;
    let config = match clients {
        Some(verifier) => config.with_client_cert_verifier(verifier),
        None => config.with_no_client_auth(),
    };
    let mut config = config.with_single_cert(certs, key).map_err(refused)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Believes certificates of the authorities in a file. Who shows none may come in all the same: he may
/// have a token.
fn verifier(
    path: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let text = read("certificate", path)?;
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certs = certs.map_err(|error| form("certificate", path, error))?;
    if certs.is_empty() {
        return Err(form("certificate", path, pem::Error::NoItemsFound));
    }
    let unusable = |source: rustls::Error| TlsError::Clients { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for cert in certs {
        roots.add(cert).map_err(unusable)?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = builder.allow_unauthenticated().build();
    verifier.map_err(|error| unusable(rustls::Error::General(error.to_string())))
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { what, path: path.to_owned(), source };
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(PEM_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > PEM_BYTES_MAX {
        let message = format!("it is larger than {PEM_BYTES_MAX} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, message)));
    }
    Ok(text)
}

fn form(what: &'static str, path: &Path, source: pem::Error) -> TlsError {
    let path = path.to_owned();
    match source {
        pem::Error::NoItemsFound => {
            let begin = if what == "key" { "PRIVATE KEY" } else { "CERTIFICATE" };
            TlsError::Missing { what, begin, path }
        }
        source => TlsError::Form { what, path, source },
    }
}
