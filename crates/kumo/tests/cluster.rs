//! How a host comes into a cluster and out of it, with the built binary: its files, and what it refuses.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use kumo_abi::cluster::Role;
use kumo_fabric::identity::{Identity, load_authority};
use kumo_fabric::join::Desk;
use kumo_fabric::link::Links;
use kumo_fabric::store::Store;
use kumo_fabric::token::{self, Token, TokenAsk};

const PASSPHRASE: &str = "eight legs and a web\n";

/// How a command ended, and all it said.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn says(&self, want: &str) -> &Ran {
        assert!(self.out.contains(want) || self.err.contains(want), "{self:?} lacks {want:?}");
        self
    }

    fn ends(&self, code: i32) -> &Ran {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

/// Hosts as directories.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        World { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn files(&self, host: &str) -> PathBuf {
        self.path(host).join("state/fabric")
    }

    fn identity(&self, host: &str) -> Option<Identity> {
        Identity::load(&self.files(host)).unwrap()
    }

    /// Runs `kumo` with the words of `line` on `host`.
    fn kumo(&self, host: &str, line: &str) -> Ran {
        self.kumo_with(host, line, "")
    }

    fn kumo_with(&self, host: &str, line: &str, input: &str) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kumo"));
        command.current_dir(self.dir.path()).args(line.split_whitespace());
        command.arg("--run-dir").arg(self.path(host).join("run"));
        if !["token", "evict"].contains(&line.split_whitespace().next().unwrap()) {
            command.arg("--state-dir").arg(self.path(host).join("state"));
        }
        fs::write(self.path("input"), input).unwrap();
        command.stdin(Stdio::from(fs::File::open(self.path("input")).unwrap()));
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn init(&self, host: &str) -> Ran {
        let line = "init --cluster acme --dc tokyo --listen 127.0.0.1:7081 --label rack=3 --host";
        self.kumo(host, &format!("{line} {host}"))
    }

    fn passphrase(&self, text: &str) {
        fs::write(self.path("passphrase"), text).unwrap();
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_cluster_is_made_once() {
    let world = World::new();
    let made = world.init("a");
    made.ends(0).says("`acme`").says("tokyo/a").says("127.0.0.1:7081");
    let run_dir = world.path("a/run").display().to_string();
    made.says(&format!("kumo up --state-dir {}", world.path("a/state").display()));
    made.says(&format!("kumo token --run-dir {run_dir}"));
    let identity = world.identity("a").unwrap();
    assert_eq!((identity.host.to_string().as_str(), identity.role), ("tokyo/a", Role::Gateway));
    assert_eq!(identity.advertise, ["127.0.0.1:7081"]);
    assert_eq!(identity.labels["rack"], "3");
    assert!(load_authority(&world.files("a")).unwrap().is_some());
    assert_eq!(mode(&world.path("a/state")), 0o700);
    for file in ["node.json", "node.pem", "ca.crt", "ca.key"] {
        assert_eq!(mode(&world.files("a").join(file)), 0o600, "of {file}");
    }
    world.init("a").ends(1).says("tokyo/a of the cluster `acme`").says("kumo leave");
    assert_eq!(world.identity("a").unwrap().certificate, identity.certificate);
}

#[test]
fn wrong_options_are_explained() {
    let world = World::new();
    let cases = [
        ("init --dc tokyo", "--cluster"),
        ("init --cluster Acme --dc tokyo", "`A` is none of them"),
        ("init --cluster acme --dc to/kyo", "`/` is none of them"),
        ("init --cluster acme --dc tokyo --host a/b", "`/` is none of them"),
        ("init --cluster acme --dc tokyo --host a --listen 7081", "--listen"),
        ("init --cluster acme --dc tokyo --host a --listen 127.0.0.1:0", "not 0"),
        ("init --cluster acme --dc tokyo --host a --advertise a", "HOST:PORT"),
        ("init --cluster acme --dc tokyo --host a --label rack", "KEY=VALUE"),
        ("join kumo2.xyz --host b", "begins with `kumo1.`"),
        ("join kumo1.xyz --host b", "damaged"),
        ("join kumo1.xyz --host b --advertise b:1", "--gateway"),
        ("token --ttl 1w", "30m, 1h, 7d"),
        ("evict a", "DC/HOST"),
        ("ca import x", "--dc"),
        ("ca import x --host b", "--dc"),
    ];
    for (line, want) in cases {
        world.kumo("b", line).ends(2).says(want);
    }
    assert!(world.identity("b").is_none());
    world.kumo("b", "leave").ends(1).says("no cluster");
    world.kumo("b", "ca export x").ends(1).says("no cluster");
    world.kumo("b", "token").ends(1).says("kumo up");
    world.kumo("b", "evict tokyo/a").ends(1).says("kumo up");
}

#[test]
fn who_leaves_keeps_the_files() {
    let world = World::new();
    world.init("a").ends(0);
    let left = world.kumo("a", "leave");
    left.ends(0).says("tokyo/a has left the cluster `acme`").says("kumo evict tokyo/a");
    left.says("authority").says("fabric.left-1");
    assert!(world.identity("a").is_none());
    assert!(load_authority(&world.path("a/state/fabric.left-1")).unwrap().is_some());
    world.init("a").ends(0);
    world.kumo("a", "leave").ends(0).says("fabric.left-2");
    // Damaged files keep nobody in.
    world.init("a").ends(0);
    fs::write(world.files("a").join("node.pem"), "").unwrap();
    world.kumo("a", "leave").ends(0).says("fabric.left-3");
}

#[test]
fn the_authority_goes_to_a_safe_and_back() {
    let world = World::new();
    world.init("a").ends(0);
    let export = "ca export safe --passphrase-file passphrase";
    world.kumo("a", export).ends(1).says("cannot read passphrase");
    world.passphrase("short\n");
    world.kumo("a", export).ends(1).says("too short");
    assert!(!world.path("safe").exists());
    world.passphrase(PASSPHRASE);
    world.kumo("a", export).ends(0).says("the authority of `acme` is in safe");
    assert_eq!(mode(&world.path("safe")), 0o600);
    let sealed = fs::read_to_string(world.path("safe")).unwrap();
    world.kumo("a", export).ends(1).says("--force");
    assert_eq!(fs::read_to_string(world.path("safe")).unwrap(), sealed, "not written over");
    world.kumo("a", &format!("{export} --force")).ends(0);
    assert_ne!(fs::read_to_string(world.path("safe")).unwrap(), sealed, "sealed anew");

    // Back to a gateway that lost its key.
    let import = "ca import safe --passphrase-file passphrase";
    world.kumo("a", import).ends(1).says("already").says("--force");
    let key = world.files("a").join("ca.key");
    let before = fs::read_to_string(&key).unwrap();
    fs::remove_file(&key).unwrap();
    world.kumo("a", export).ends(1).says("without the authority's key");
    world.passphrase("nine legs and no web\n");
    world.kumo("a", import).ends(1).says("the passphrase is wrong");
    assert!(!key.exists());
    world.passphrase(PASSPHRASE);
    world.kumo("a", import).ends(0).says("tokyo/a can issue");
    assert_eq!((fs::read_to_string(&key).unwrap(), mode(&key)), (before, 0o600));

    // To a host of nothing, when all gateways are lost.
    let anew = format!("{import} --dc osaka --host c --listen 127.0.0.1:7082");
    world.kumo("c", &anew).ends(0).says("osaka/c of the cluster `acme`");
    let identity = world.identity("c").unwrap();
    assert_eq!(identity.ca, world.identity("a").unwrap().ca);
    assert!(load_authority(&world.files("c")).unwrap().is_some());
    world.kumo("c", &anew).ends(1).says("osaka/c of the cluster `acme` already");

    // Not to one of another cluster.
    let other = "init --cluster acme --dc tokyo --host d --listen 127.0.0.1:7083";
    world.kumo("d", other).ends(0);
    fs::remove_file(world.files("d").join("ca.key")).unwrap();
    world.kumo("d", import).ends(1).says("another authority");

    for bad in [&sealed[..sealed.len() / 2], "", "{}", &"x".repeat(100_000)] {
        fs::write(world.path("safe"), bad).unwrap();
        world.kumo("d", import).ends(1).says("safe: it is no exported authority");
    }
    world.kumo("d", "ca import gone --passphrase-file passphrase").ends(1).says("cannot read gone");
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// The gateway that `kumo init` made on host `a`, with its port open, in this process.
struct Open {
    runtime: tokio::runtime::Runtime,
    links: Option<Links>,
    store: Arc<Store>,
    identity: Identity,
}

impl Open {
    fn new(world: &World) -> Open {
        world.init("a").ends(0);
        let files = world.files("a");
        let mut identity = world.identity("a").unwrap();
        identity.listen = Some("127.0.0.1:0".parse().unwrap());
        let store = Arc::new(Store::in_memory(identity.host.clone()));
        let shared = Arc::new(ArcSwap::from_pointee(identity.clone()));
        let authority = load_authority(&files).unwrap();
        let desk = Desk::new(files, shared, Arc::clone(&store), authority, Box::new(|_| false));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (at, desk) = (world.path("sockets"), Arc::new(desk.unwrap()));
        let open = Links::open(Arc::new(identity.clone()), &at, Some(desk));
        let links = runtime.block_on(open).unwrap();
        identity.advertise = vec![links.local_addr().unwrap().to_string()];
        Open { runtime, links: Some(links), store, identity }
    }

    fn token(&self, change: impl FnOnce(&mut TokenAsk)) -> Token {
        let ttl = Duration::from_secs(3600);
        let dc = Some("osaka".parse().unwrap());
        let mut ask = TokenAsk { dc, ttl, uses: 1, role: Role::Member };
        change(&mut ask);
        token::create(&self.store, &self.identity, &ask, now_ms()).unwrap()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(links) = self.links.take() {
            self.runtime.block_on(links.close());
        }
    }
}

#[test]
fn hosts_join_by_the_gateways_port() {
    let world = World::new();
    let open = Open::new(&world);
    let token = open.token(|ask| ask.uses = 2);
    let joined = world.kumo("b", &format!("join {token} --host b --label rack=4"));
    joined.ends(0).says("osaka/b of the cluster `acme` now, a member; tokyo/a let it in");
    joined.says("kumo up --state-dir");
    let identity = world.identity("b").unwrap();
    assert_eq!((identity.role, identity.labels["rack"].as_str()), (Role::Member, "4"));
    assert!(load_authority(&world.files("b")).unwrap().is_none());
    world.kumo("b", &format!("join {token} --host b")).ends(1).says("kumo leave");
    world.kumo("b", "ca export x").ends(1).says("without the authority's key");
    world.kumo("b", "ca import x --passphrase-file y").ends(1).says("only gateways");

    world.kumo("c", &format!("join {token} --host b")).ends(1).says("--replace");
    world.kumo("c", &format!("join {token} --host c --dc tokyo")).ends(2).says("`osaka`");
    world.kumo("c", &format!("join {token} --host c --gateway")).ends(2).says("--gateway");
    assert!(world.identity("c").is_none());
    // Its text comes from a file, so that nobody sees it in the process table.
    world.kumo_with("c", "join - --host c", &format!("{token}\n")).ends(0).says("osaka/c");
    let used = world.kumo("d", &format!("join {token} --host d"));
    used.ends(1).says("tokyo/a refused").says("2 of 2 hosts").says("kumo token");

    let token = open.token(|ask| (ask.role, ask.dc) = (Role::Gateway, None));
    world.kumo("e", &format!("join {token} --host e")).ends(2).says("--dc");
    let gateway = format!("join {token} --host e --dc kyoto --gateway --listen 127.0.0.1:7099");
    world.kumo("e", &gateway).ends(0).says("kyoto/e").says("a gateway").says("127.0.0.1:7099");
    assert!(load_authority(&world.files("e")).unwrap().is_some());
}

#[test]
fn every_address_is_tried_and_named() {
    let world = World::new();
    let open = Open::new(&world);
    let good = open.token(|_| ());
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = gone.local_addr().unwrap().to_string();
    drop(gone);
    let token = Token { addresses: vec![nowhere.clone()], ..good.clone() };
    let refused = world.kumo("b", &format!("join {token} --host b"));
    refused.ends(1).says("no gateway of `acme`").says(&nowhere).says("refused");
    assert!(world.identity("b").is_none());
    let addresses = vec![nowhere.clone(), good.addresses[0].clone()];
    let token = Token { addresses, ..good };
    let joined = world.kumo("b", &format!("join {token} --host b"));
    joined.ends(0).says(&nowhere).says("osaka/b");
}
