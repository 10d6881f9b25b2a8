//! Where a cluster is on this machine, and what its owner says about it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use kumo_abi::HostId;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::faults::Fault;

/// Longest wait for the owner: starting a node again, or taking a large cluster away.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(120);

/// Longest line between the owner and who asks: a status of thousands of hosts.
pub(crate) const LINE_BYTES_MAX: u64 = 4 << 20;

/// Which cluster.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct At {
    /// Where it keeps its things; another directory is another cluster [default:
    /// /tmp/kumo-testbed-UID]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// The directory of a cluster, ours alone.
#[derive(Clone, Debug)]
pub(crate) struct Dir {
    path: PathBuf,
    /// It was named, and is to be named again.
    is_named: bool,
}

impl At {
    /// The directory, made where it is missing.
    pub(crate) fn dir(&self) -> Result<Dir, String> {
        // Before a user namespace is made: in there everybody is root.
        let uid = rustix::process::getuid().as_raw();
        // Not where TMPDIR or XDG_RUNTIME_DIR say: names of sockets have 108 bytes, and /run is
        // another one in a user namespace of ours.
        let usual = || PathBuf::from(format!("/tmp/kumo-testbed-{uid}"));
        let path = self.dir.clone().unwrap_or_else(usual);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(format!("cannot make {}: {error}", path.display()));
            }
            _ => {}
        }
        // Not through a link: in /tmp somebody else could have put it there.
        let found = fs::symlink_metadata(&path);
        let found = found.map_err(|error| format!("cannot look at {}: {error}", path.display()))?;
        if !found.is_dir() || found.uid() != uid || found.mode() & 0o077 != 0 {
            return Err(format!(
                "{} must be a directory of yours that others can not look into; fix that, or name \
                 another with --dir",
                path.display()
            ));
        }
        let path = fs::canonicalize(&path).map_err(|error| error.to_string())?;
        Ok(Dir { path, is_named: self.dir.is_some() })
    }
}

impl Dir {
    /// What the hosts write.
    pub(crate) fn hosts(&self) -> PathBuf {
        self.path.join("hosts")
    }

    /// Where the owner listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// What an owner in the background writes.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// How it is named behind `kumo testbed`, with a blank in front; nothing where it is the usual one.
    pub(crate) fn option(&self) -> String {
        if self.is_named { format!(" --dir {}", self.path.display()) } else { String::new() }
    }

    /// The lock of the owner. The kernel takes it back when the owner dies.
    pub(crate) fn lock(&self) -> Result<File, String> {
        let path = self.lock_file();
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(|error| format!("cannot open {}: {error}", path.display()))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(format!(
                        "a cluster is up already in {}; end it with `kumo testbed down{}`, or start another \
                         with --dir",
                        self.path.display(),
                        self.option()
                    ));
                }
                Err(error) => return Err(format!("cannot lock {}: {error}", path.display())),
            }
            // Whoever ended before us may have removed the file that we opened: then ours locks nothing.
            let own = file.metadata().map_err(|error| error.to_string())?;
            if fs::metadata(&path).is_ok_and(|there| there.ino() == own.ino()) {
                return Ok(file);
            }
        }
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// Removes the log and the lock, for who holds it: all else is gone.
    pub(crate) fn leave(&self, lock: File) {
        for path in [self.log(), self.lock_file()] {
            // What stays is in nobody's way.
            let _ = fs::remove_file(path);
        }
        drop(lock);
    }

    /// Asks the owner.
    pub(crate) fn ask(&self, ask: &Ask) -> Result<Reply, String> {
        let mut stream =
            UnixStream::connect(self.socket()).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
                    "no cluster is up in {}; start one with `kumo testbed up{}`",
                    self.path.display(),
                    self.option()
                ),
                _ => format!("cannot reach the owner of {}: {error}", self.path.display()),
            })?;
        let broken = |error: io::Error| format!("the cluster's owner does not answer: {error}");
        stream.set_read_timeout(Some(ANSWER_WAIT_MAX)).map_err(broken)?;
        let mut line = serde_json::to_string(ask).map_err(|error| error.to_string())?;
        line.push('\n');
        stream.write_all(line.as_bytes()).map_err(broken)?;
        let mut answer = String::new();
        BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut answer).map_err(broken)?;
        let reply: Result<Reply, String> = serde_json::from_str(&answer)
            .map_err(|_| "the cluster's owner broke off".to_owned())?;
        reply
    }
}

/// What the owner is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Ask {
    /// How things are.
    Status,
    /// Take all away.
    Down,
    /// Let something happen.
    Fault(Fault),
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// It is done; in words for people.
    Done(String),
    /// How things are.
    Status(World),
}

/// How things are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct World {
    /// The owner.
    pub(crate) owner_pid: u32,
    /// Whether the hosts are in a user namespace of the owner's.
    pub(crate) in_user_namespace: bool,
    /// The `kumo` that runs on them.
    pub(crate) kumo: PathBuf,
    /// The first is that of `kumo init`.
    pub(crate) hosts: Vec<HostStatus>,
    /// What is wrong with cables, by host or data centre.
    pub(crate) cables: BTreeMap<String, String>,
}

/// How a host is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostStatus {
    /// Its name.
    #[serde(flatten)]
    pub(crate) id: HostId,
    /// Whether it is a gateway.
    pub(crate) gateway: bool,
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// Process 1 of it.
    pub(crate) init_pid: i32,
    /// Whether its node runs, as far as the owner had to do with it.
    pub(crate) node: NodeStatus,
    /// What the node was started with.
    pub(crate) run_dir: PathBuf,
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NodeStatus {
    /// It runs.
    Up,
    /// It was stopped by SIGSTOP.
    Frozen,
    /// It was killed, or ended.
    Down,
}

impl NodeStatus {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            NodeStatus::Up => "up",
            NodeStatus::Frozen => "frozen",
            NodeStatus::Down => "down",
        }
    }
}
