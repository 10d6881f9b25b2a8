//! Streams without any protocol but a length: what the kernel, and rustls, cost by themselves.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

use super::{Ask, Callers, Place};
use crate::clock::{LENGTH_BYTES, Question};

/// Room for a question and its length to arrive at once.
const BUFFER_BYTES: usize = 1 << 16;

/// The name that the callee's certificate is for.
const NAME: &str = "bench";

/// Answers on one connection until it ends: one thread each.
fn echo(mut stream: impl Read + Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let whole = read_framed(&mut stream, &mut buffer)?;
        stream.write_all(&buffer[..whole])?;
        stream.flush()?;
    }
}

/// Reads a length and what it is the length of; how many bytes both are. One read, if it is small.
fn read_framed(stream: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut has = 0;
    loop {
        let read = stream.read(&mut buffer[has..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        has += read;
        let Some(length) = buffer[..has].first_chunk::<LENGTH_BYTES>() else { continue };
        let whole = LENGTH_BYTES + u64::from_le_bytes(*length) as usize;
        if buffer.len() < whole {
            buffer.resize(whole, 0);
        }
        if has >= whole {
            return Ok(whole);
        }
    }
}

struct Bare<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: Read + Write> Ask for Bare<S> {
    fn ask(&mut self, question: &Question) -> io::Result<bool> {
        self.stream.write_all(question.framed())?;
        self.stream.flush()?;
        let whole = read_framed(&mut self.stream, &mut self.buffer)?;
        Ok(self.buffer[..whole] == *question.framed())
    }
}

fn asks<S: Read + Write + 'static>(stream: S) -> Box<dyn Ask> {
    Box::new(Bare { stream, buffer: vec![0; BUFFER_BYTES] })
}

/// A stream socket is what a `socketpair` is made of, too; and it can be had many times.
pub(super) fn answer_unix(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    let listener = UnixListener::bind(place.socket())?;
    ready("");
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || echo(stream));
    }
    Ok(())
}

pub(super) fn unix(place: &Place) -> Callers {
    let path = place.socket();
    Callers::Threads(std::sync::Arc::new(move || Ok(asks(UnixStream::connect(&path)?))))
}

fn listen(place: &Place) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((place.ip, 0))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

pub(super) fn answer_tcp(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    let (listener, address) = listen(place)?;
    ready(&address.to_string());
    for stream in listener.incoming() {
        let stream = stream?;
        stream.set_nodelay(true)?;
        std::thread::spawn(move || echo(stream));
    }
    Ok(())
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn address(said: &str) -> io::Result<SocketAddr> {
    said.parse().map_err(io::Error::other)
}

pub(super) fn tcp(place: &Place) -> io::Result<Callers> {
    let address = address(&place.said)?;
    Ok(Callers::Threads(std::sync::Arc::new(move || Ok(asks(connect(address)?)))))
}

/// The same TLS as middlecon's: 1.3 only, ring.
fn versions()
-> (Arc<rustls::crypto::CryptoProvider>, [&'static rustls::SupportedProtocolVersion; 1]) {
    (Arc::new(rustls::crypto::ring::default_provider()), [&rustls::version::TLS13])
}

pub(super) fn answer_tls(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let params = CertificateParams::new([NAME.to_owned()]).map_err(io::Error::other)?;
    let certificate = params.self_signed(&key).map_err(io::Error::other)?.der().clone();
    let (provider, versions) = versions();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .map_err(io::Error::other)?;
    let config = Arc::new(config);
    std::fs::write(certificate_file(place), &certificate)?;
    let (listener, address) = listen(place)?;
    ready(&address.to_string());
    for stream in listener.incoming() {
        let stream = stream?;
        stream.set_nodelay(true)?;
        let tls = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
        std::thread::spawn(move || echo(StreamOwned::new(tls, stream)));
    }
    Ok(())
}

fn certificate_file(place: &Place) -> std::path::PathBuf {
    place.dir().join("tls.der")
}

pub(super) fn tls(place: &Place) -> io::Result<Callers> {
    let address = address(&place.said)?;
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from(std::fs::read(certificate_file(place))?);
    roots.add(certificate).map_err(io::Error::other)?;
    let (provider, versions) = versions();
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
    Ok(Callers::Threads(std::sync::Arc::new(move || {
        let tls = ClientConnection::new(config.clone(), name.clone()).map_err(io::Error::other)?;
        Ok(asks(StreamOwned::new(tls, connect(address)?)))
    })))
}
