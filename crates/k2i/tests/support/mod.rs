//! The built server, owned by a guard, and a small HTTP client.

#![allow(dead_code, reason = "no test uses all of it")]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// What any one step of a test may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `k2i` on a free port; `Drop` kills and reaps it.
pub(crate) struct K2i {
    child: Child,
    address: Address,
}

#[derive(Clone)]
pub(crate) enum Address {
    Tcp(String),
    Tls(String, Arc<rustls::ClientConfig>),
    Unix(PathBuf),
}

impl K2i {
    pub(crate) fn spawn() -> K2i {
        K2i::with(&["--listen", "127.0.0.1:0"])
    }

    /// Starts it and waits for the line with its address.
    pub(crate) fn with(arguments: &[&str]) -> K2i {
        let mut child = Command::new(env!("CARGO_BIN_EXE_k2i"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the built binary starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the server says where it listens");
        let url =
            line.split_whitespace().nth(3).unwrap_or_else(|| panic!("no address in {line:?}"));
        let address = match url.split_once(':').expect("a scheme") {
            ("unix", path) => Address::Unix(path.into()),
            ("http", rest) => Address::Tcp(rest.trim_start_matches('/').to_owned()),
            (_, rest) => {
                let roots = rustls::RootCertStore::empty();
                let config = client_config(roots);
                Address::Tls(rest.trim_start_matches('/').to_owned(), config)
            }
        };
        K2i { child, address }
    }

    /// The same server, whose certificate is trusted.
    pub(crate) fn trusting(mut self, certificate: CertificateDer<'static>) -> K2i {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).expect("a good certificate");
        if let Address::Tls(_, config) = &mut self.address {
            *config = client_config(roots);
        }
        self
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn port(&self) -> u16 {
        match &self.address {
            Address::Tcp(address) | Address::Tls(address, _) => {
                let port = address.rsplit_once(':').expect("a port").1;
                port.parse().expect("a number")
            }
            Address::Unix(_) => panic!("a socket has no port"),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) fn get(&self, target: &str) -> Reply {
        self.get_with(target, &[])
    }

    pub(crate) fn get_with(&self, target: &str, headers: &[(&str, &str)]) -> Reply {
        self.ask("GET", target, headers)
    }

    pub(crate) fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Reply {
        block_on(ask(&self.address, method, target, headers)).expect("an answer")
    }

    /// The JSON of a successful answer.
    pub(crate) fn json(&self, target: &str) -> serde_json::Value {
        self.get(target).expect(200).json()
    }

    /// Asks it to stop and waits until it has.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it lives");
        wait(&mut self.child)
    }

    /// The most resident memory that it ever had, bytes.
    pub(crate) fn peak_rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("a size in KiB");
        kib.parse::<u64>().expect("a number") * 1024
    }
}

impl Drop for K2i {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `k2i` until it ends by itself, as it does when it refuses to start.
pub(crate) fn refusal(arguments: &[&str]) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_k2i"))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the built binary starts");
    let status = wait(&mut child);
    let mut said = String::new();
    let mut stderr = child.stderr.take().expect("it is piped");
    std::io::Read::read_to_string(&mut stderr, &mut said).expect("text");
    assert!(!status.success(), "{arguments:?} was not refused: {said}");
    said
}

/// Waits for the end of a process; kills it and fails when that does not come.
fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server did not end in time");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let patient = async { tokio::time::timeout(PATIENCE, future).await };
    runtime.block_on(patient).expect("an answer in time")
}

/// An answer, its body as it came over the wire.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    /// The answer itself, if its status is this one.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Reply {
        assert_eq!(self.status, status, "{:?}", String::from_utf8_lossy(&self.body));
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("plain text"))
    }
}

/// One request on a connection of its own.
pub(crate) async fn ask(
    address: &Address,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
    let mut request = Request::builder().method(method).uri(target);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", "localhost");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new())?;
    match address {
        Address::Tcp(address) => send(TcpStream::connect(address).await?, request).await,
        Address::Unix(path) => send(UnixStream::connect(path).await?, request).await,
        Address::Tls(address, config) => {
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
            let name = ServerName::try_from("localhost")?;
            let stream = TcpStream::connect(address).await?;
            send(connector.connect(name, stream).await?, request).await
        }
    }
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    drop(sender);
    connection.abort();
    Ok(Reply { status: head.status, headers: head.headers, body })
}

fn client_config(roots: rustls::RootCertStore) -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// A certificate for `localhost` and its key, as files in `dir`.
pub(crate) fn certificate(dir: &Path, name: &str) -> (PathBuf, PathBuf, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    std::fs::write(&cert, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    (cert, key, made.cert.der().clone())
}

/// `text` as a part of an address.
pub(crate) fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat()
}
