//! Who may see and do what, asked of the built server in every way it answers.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use k2i::http::Audited;
use k2i::token::{Kept, Revoked, Token, TokenFile};
use kumo_abi::rights::{Rights, Role, Scope};
use kumo_testbed::Zoo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use support::{Address, K2i, escaped};

/// What nobody must see who has no right to.
const SECRET: &str = "hunter2-4711";

fn add(file: &TokenFile, name: &str, rights: Rights) -> String {
    let token = Token::new(name.parse().expect("a name")).expect("random bits");
    let kept = Kept::of(&token, rights, None, 0, "the test".to_owned());
    file.put(token.name().clone(), kept).expect("a file");
    format!("Bearer {}", token.text())
}

/// A server with tokens for everybody.
struct Served {
    dir: tempfile::TempDir,
    file: TokenFile,
    k2i: K2i,
}

impl Served {
    fn with(more: &[&str]) -> Served {
        let dir = tempfile::tempdir().expect("a directory");
        let file = TokenFile::at(dir.path().join("tokens.json"));
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (tokens, audit) = (path("tokens.json"), path("audit.ndjson"));
        let listen = ["--listen", "127.0.0.1:0", "--collector", "proc"];
        let files = ["--tokens", &tokens, "--audit", &audit];
        let k2i = K2i::with(&[&listen[..], &files, more].concat());
        Served { dir, file, k2i }
    }

    fn get(&self, target: &str, token: Option<&str>) -> Value {
        let headers: Vec<_> = token.map(|token| ("authorization", token)).into_iter().collect();
        self.k2i.get_with(target, &headers).expect(200).json()
    }

    fn status(&self, target: &str, token: Option<&str>) -> u16 {
        let headers: Vec<_> = token.map(|token| ("authorization", token)).into_iter().collect();
        self.k2i.get_with(target, &headers).status.as_u16()
    }

    /// What a signal comes to.
    fn signal(&self, pid: i32, token: Option<&str>) -> u16 {
        let Address::Tcp(address) = self.k2i.address() else { panic!("it listens on TCP") };
        let mut stream = TcpStream::connect(address).expect("it listens");
        let body = r#"{"signal":"KILL"}"#;
        let token = token.map(|token| format!("authorization: {token}\r\n")).unwrap_or_default();
        let head = format!(
            "POST /v2/proc/{pid}/signal HTTP/1.0\r\nhost: localhost\r\ncontent-length: {}\r\n{token}\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.split(' ').nth(1).expect("a status").parse().expect("a number")
    }

    fn audited(&self) -> Vec<Audited> {
        let text = std::fs::read_to_string(self.dir.path().join("audit.ndjson")).expect("a file");
        text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect()
    }
}

fn sleeper() -> kumo_testbed::Animal {
    let password = format!("--password={SECRET}");
    Zoo::sleeper(&[b"app", password.as_bytes(), b"-v", b"--user=bob"])
}

/// Every address at which the command line of a process can be read.
fn ways(pid: i32) -> Vec<String> {
    vec![
        format!("/v2/proc?columns=pid,cmdline,argv&filter=pid%3D%3D{pid}"),
        format!("/v2/proc?columns=pid,cmdline&sort=cmdline&filter=pid%3D%3D{pid}"),
        format!("/v2/proc?columns=cmdline,count()&group=cmdline&filter=pid%3D%3D{pid}"),
        format!("/v2/proc?columns=pid,cmdline,argv&filter=pid%3D%3D{pid}&since=0"),
        format!("/v2/proc/{pid}"),
        format!("/v2/proc/{pid}/tree?columns=cmdline,argv"),
        format!("/v1/proc/{pid}"),
        format!("/v1/proc/pid/{pid}"),
    ]
}

#[test]
fn secrets_leave_with_the_right_to_them_only() {
    let served = Served::with(&[]);
    let view = add(&served.file, "view", Rights::VIEW);
    let operate = add(&served.file, "operate", Rights::of(Role::Operate));
    let lines = add(&served.file, "lines", Rights::VIEW.with(Scope::CommandLine));
    let admin = add(&served.file, "admin", Rights::ADMIN);
    let animal = sleeper();
    for target in ways(animal.pid()) {
        for token in [None, Some(&view), Some(&operate)] {
            let answer = served.get(&target, token.map(String::as_str)).to_string();
            assert!(!answer.contains(SECRET), "for {target}: {answer}");
            assert!(answer.contains("--password=*****"), "for {target}: {answer}");
        }
        for token in [&lines, &admin] {
            let answer = served.get(&target, Some(token)).to_string();
            assert!(answer.contains(SECRET), "for {target}: {answer}");
        }
    }
    let headers = [("authorization", admin.as_str()), ("kumo-redact", "strip")];
    let target = format!("/v2/proc?columns=cmdline&filter=pid%3D%3D{}", animal.pid());
    let reply = served.k2i.get_with(&target, &headers).expect(200);
    assert_eq!(reply.json()["rows"], json!([{ "cmdline": "app *****" }]), "as he wants it");
    assert_eq!(reply.header("kumo-redacted"), "strip");
    assert_eq!(served.k2i.get(&target).header("kumo-redacted"), "secrets");
    let reply = served.k2i.get_with(&target, &headers[..1]).expect(200);
    assert_eq!(reply.header("kumo-redacted"), "");
}

#[test]
fn a_secret_cannot_be_guessed_by_what_is_found() {
    let served = Served::with(&[]);
    let admin = add(&served.file, "admin", Rights::ADMIN);
    let animal = sleeper();
    let guess = |condition: &str, token| {
        let condition = escaped(&format!("pid=={}&&{condition}", animal.pid()));
        let target = format!("/v2/proc?columns=pid&filter={condition}");
        served.get(&target, token)["matched"].clone()
    };
    for condition in [
        format!("cmdline.contains('{SECRET}')"),
        "cmdline.contains('=h')".to_owned(),
        "cmdline.matches('password=[a-z]')".to_owned(),
        format!("'--password={SECRET}' in argv"),
        format!("argv.exists(a, a.startsWith('--password={}'))", &SECRET[..3]),
        "cmdline.size() > 40".to_owned(),
    ] {
        assert_eq!(guess(&condition, Some(&admin)), 1, "for {condition}");
        assert_eq!(guess(&condition, None), 0, "for {condition}");
    }
    assert_eq!(guess("cmdline.contains('--password=*****')", None), 1);

    // What changes for who sees more is not told to who sees less: they have answers of their own.
    let target = format!("/v2/proc?columns=pid,cmdline&filter=pid%3D%3D{}", animal.pid());
    let full = served.get(&format!("{target}&since=0"), Some(&admin));
    let generation = full["generation"].as_u64().expect("a generation");
    let other = served.get(&format!("{target}&since={generation}"), None);
    assert_eq!(other["full"], true, "{other}");
    assert!(!other.to_string().contains(SECRET));
}

#[test]
fn who_may_change_what() {
    let served = Served::with(&[]);
    let view = add(&served.file, "view", Rights::VIEW);
    let operate = add(&served.file, "operate", Rights::of(Role::Operate));
    let signal = add(&served.file, "signal", Rights::VIEW.with(Scope::Signal));
    let bad = format!("{}x", &view[..view.len() - 1]);
    let animal = sleeper();
    let pid = animal.pid();
    let cases = [(None, 401), (Some(&bad), 401), (Some(&view), 403)];
    for (token, want) in cases {
        assert_eq!(served.signal(pid, token.map(String::as_str)), want, "for {token:?}");
    }
    let is_there = |pid: i32| Path::new(&format!("/proc/{pid}")).exists();
    assert!(is_there(pid), "nobody hit it");
    assert_eq!(served.signal(pid, Some(&operate)), 200);
    let another = sleeper();
    assert_eq!(served.signal(another.pid(), Some(&signal)), 200);

    let lines = served.audited();
    let told: Vec<_> = lines.iter().map(|line| (line.who.as_str(), line.status)).collect();
    let want = [
        ("nobody in particular", 401),
        ("nobody in particular", 401),
        ("token `view`", 403),
        ("token `operate`", 200),
        ("token `signal`", 200),
    ];
    assert_eq!(told, want);
    assert!(lines.iter().all(|line| line.via.starts_with("tcp 127.0.0.1:")), "{lines:?}");
    assert_eq!(lines[3].what, format!("POST /v2/proc/{pid}/signal"));
    let did = lines[3].did.as_deref().expect("what was done");
    assert!(did.starts_with(&format!("sent KILL to process {pid}@")), "{did}");
    let text = std::fs::read_to_string(served.dir.path().join("audit.ndjson")).expect("a file");
    assert!(!text.contains("kumo_view"), "no token is written down");
    let mode = std::fs::metadata(served.dir.path().join("audit.ndjson")).expect("there").mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn tokens_are_good_until_they_are_taken_back() {
    let served = Served::with(&["--anonymous", "never"]);
    let view = add(&served.file, "view", Rights::VIEW);
    for target in ["/", "/v1/proc", "/v2/proc", "/v2/host", "/v2/events", "/nothing"] {
        let reply = served.k2i.get(target).expect(401);
        assert_eq!(reply.header("www-authenticate"), "Bearer realm=\"kumo\"");
        assert!(reply.json()["detail"].as_str().expect("why").contains("Authorization: Bearer"));
    }
    let own = served.get("/v2/rights", Some(&view));
    assert_eq!(own["in_words"], "token `view`");
    assert_eq!((&own["role"], &own["scopes"]), (&json!("view"), &json!(["read"])));
    assert_eq!(own["command_lines"], "secrets");
    served.file.remove(&"view".parse().expect("a name")).expect("a file");
    assert_eq!(served.status("/v2/rights", Some(&view)), 401);
    let reply = served.k2i.get_with("/v2/rights", &[("authorization", &view)]);
    assert!(reply.header("www-authenticate").contains("invalid_token"));
    // Who guesses on is told to wait, and who has a good one is not.
    let again = add(&served.file, "again", Rights::VIEW);
    let refused: Vec<u16> = (0..40).map(|_| served.status("/v2/rights", Some(&view))).collect();
    assert_eq!((refused[0], refused[39]), (401, 429), "{refused:?}");
    assert_eq!(served.status("/v2/rights", Some(&again)), 200);
}

#[test]
fn a_stream_shows_what_its_listener_may_see_as_long_as_he_may() {
    let served = Served::with(&[]);
    let lines = add(&served.file, "lines", Rights::VIEW.with(Scope::CommandLine));
    let animal = sleeper();
    let Address::Tcp(address) = served.k2i.address() else { panic!("it listens on TCP") };
    let listen = |token: Option<&str>| {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a limit");
        let token = token.map(|token| format!("authorization: {token}\r\n")).unwrap_or_default();
        let target = format!(
            "/v2/proc/stream?interval_ms=100&columns=pid,utime,cmdline&filter=pid%3D%3D{}",
            animal.pid()
        );
        let head = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{token}\r\n");
        stream.write_all(head.as_bytes()).expect("it reads");
        stream
    };
    let told = read_until(&mut listen(None), "--password=");
    assert!(!told.contains(SECRET), "{told}");
    let mut stream = listen(Some(&lines));
    read_until(&mut stream, SECRET);
    served.file.remove(&"lines".parse().expect("a name")).expect("a file");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("it ends, as the token was taken back");
}

#[test]
fn a_host_may_show_the_program_alone() {
    let served = Served::with(&["--redact", "strip"]);
    let lines = add(&served.file, "lines", Rights::VIEW.with(Scope::CommandLine));
    let animal = sleeper();
    let target = format!("/v2/proc?columns=cmdline&filter=pid%3D%3D{}", animal.pid());
    assert_eq!(served.get(&target, None)["rows"][0]["cmdline"], "app *****");
    let whole = served.get(&target, Some(&lines))["rows"][0]["cmdline"].clone();
    assert_eq!(whole, format!("app --password={SECRET} -v --user=bob"));
}

/// A server that believes an authority, and whom that signs for.
struct Certified {
    dir: tempfile::TempDir,
    ca: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
    k2i: K2i,
}

/// A certificate and its key.
type Pair = (rcgen::Certificate, KeyPair);

fn authority() -> (rcgen::Certificate, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    (certificate, Issuer::new(params, key))
}

fn issue(issuer: &Issuer<'_, KeyPair>, names: Vec<String>, unit: Option<&str>) -> Pair {
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, "alice");
    if let Some(unit) = unit {
        params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
    }
    let key = KeyPair::generate().expect("a key");
    (params.signed_by(&key, issuer).expect("a certificate"), key)
}

impl Certified {
    fn new() -> Certified {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (ca, issuer) = authority();
        let (cert, key) = issue(&issuer, vec!["localhost".to_owned()], None);
        std::fs::write(path("ca.pem"), ca.pem()).expect("a file");
        std::fs::write(path("cert.pem"), cert.pem()).expect("a file");
        std::fs::write(path("key.pem"), key.serialize_pem()).expect("a file");
        let files = (path("cert.pem"), path("key.pem"), path("ca.pem"), path("tokens.json"));
        let tls = ["--tls-cert", &files.0, "--tls-key", &files.1, "--tls-clients", &files.2];
        let listen = ["--listen", "127.0.0.1:0", "--anonymous", "never", "--collector", "proc"];
        let k2i = K2i::with(&[&listen[..], &tls, &["--tokens", &files.3]].concat());
        Certified { dir, ca, issuer, k2i }
    }

    fn config(&self, shown: Option<&Pair>) -> Arc<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der().clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_root_certificates(roots);
        Arc::new(match shown {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
                config.with_client_auth_cert(vec![cert.der().clone()], key.into()).expect("a pair")
            }
        })
    }

    /// A connection that is kept, with TLS.
    fn connect(&self, shown: &Pair) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
        let name = "localhost".try_into().expect("a name");
        let tls = rustls::ClientConnection::new(self.config(Some(shown)), name).expect("a client");
        let stream = TcpStream::connect(("127.0.0.1", self.k2i.port())).expect("it listens");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a limit");
        rustls::StreamOwned::new(tls, stream)
    }
}

fn read_until(stream: &mut impl std::io::Read, what: &str) -> String {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(what) {
        let mut piece = [0; 4096];
        let len = stream.read(&mut piece).expect("it tells");
        assert!(len > 0, "it ended: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..len]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
fn a_certificate_that_was_taken_back_opens_nothing_and_closes_what_it_opened() {
    let served = Certified::new();
    let alice = issue(&served.issuer, Vec::new(), Some("admin"));
    let bob = issue(&served.issuer, Vec::new(), Some("admin"));
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let mut kept = served.connect(&alice);
    kept.write_all(get("/v2/rights").as_bytes()).expect("it reads");
    read_until(&mut kept, "\"role\":\"admin\"");
    let listen = |shown: &Pair| {
        let mut stream = served.connect(shown);
        // Nothing comes that could tell him: none of these is ever busy enough.
        let target = "/v2/proc/stream?interval_ms=60000&columns=pid&filter=pid%3D%3D1";
        stream.write_all(get(target).as_bytes()).expect("it reads");
        read_until(&mut stream, "\"full\":true");
        stream
    };
    let (mut of_alice, mut of_bob) = (listen(&alice), listen(&bob));

    let (key, name) = k2i::http::known_by(alice.0.pem().as_bytes()).expect("a certificate");
    let file = TokenFile::at(served.dir.path().join("tokens.json"));
    file.revoke(key, Revoked { name, at_ms: 1, by: "the test".to_owned() }).expect("a file");

    kept.write_all(get("/v2/rights").as_bytes()).expect("it reads");
    let refused = read_until(&mut kept, "urn:kumo:problem:bad-certificate");
    assert!(refused.contains(" 401 "), "on the connection that it had opened: {refused}");
    let ask = |shown: &Pair| {
        let address =
            Address::Tls(format!("127.0.0.1:{}", served.k2i.port()), served.config(Some(shown)));
        support::block_on(support::ask(&address, "GET", "/v2/rights", &[])).expect("an answer")
    };
    assert_eq!(ask(&alice).status, 401, "on a new one");
    assert_eq!(ask(&bob).status, 200, "another of the same name");
    // It ends, though nothing was to be told for a minute: we are not that patient.
    of_alice.sock.set_read_timeout(Some(std::time::Duration::from_secs(30))).expect("a limit");
    read_until(&mut of_alice, "0\r\n\r\n");
    let mut rest = Vec::new();
    of_bob.sock.set_read_timeout(Some(std::time::Duration::from_millis(100))).expect("a limit");
    let still = of_bob.read_to_end(&mut rest).expect_err("it does not end");
    assert_eq!(still.kind(), std::io::ErrorKind::WouldBlock, "{still}");
}

#[test]
fn a_certificate_says_who_asks() {
    let served = Certified::new();
    let (_, stranger) = authority();
    let ask = |shown: Option<Pair>| {
        let config = served.config(shown.as_ref());
        let address = Address::Tls(format!("127.0.0.1:{}", served.k2i.port()), config);
        support::block_on(support::ask(&address, "GET", "/v2/rights", &[]))
    };
    let issuer = &served.issuer;
    let none = Vec::new;
    assert_eq!(ask(None).expect("an answer").status, 401);
    let plain = ask(Some(issue(issuer, none(), None))).expect("an answer").expect(200).json();
    assert_eq!(
        (&plain["in_words"], &plain["role"]),
        (&json!("certificate `alice`"), &json!("view"))
    );
    let operate = ask(Some(issue(issuer, none(), Some("operate"))));
    assert_eq!(operate.expect("an answer").expect(200).json()["role"], "operate");
    assert!(ask(Some(issue(&stranger, none(), Some("admin")))).is_err(), "of another authority");
}
