//! A real node: the built `kumo up` in directories of its own, owned by a guard.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Error, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kumo_abi::HostId;
use kumo_abi::cluster::{HostInfo, LinkReport};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::api;

/// Longest wait until a node answers, or for an answer.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);

/// Between two attempts to reach a node that starts.
const LOOK_PERIOD: Duration = Duration::from_millis(5);

/// A node. It is killed and reaped when it is dropped.
#[derive(Debug)]
pub struct Node {
    /// Who it is.
    pub id: HostId,
    kumo: PathBuf,
    dir: PathBuf,
    lease: Option<Duration>,
    child: Option<Child>,
}

impl Node {
    /// One that does not run yet; `dir` gets its `state`, its `run` and its `log`.
    pub(super) fn new(
        kumo: &Path,
        dir: &Path,
        id: HostId,
        lease: Option<Duration>,
    ) -> io::Result<Node> {
        let dir = dir.join(format!("{}-{}", id.dc, id.host));
        for part in ["state", "run"] {
            let part = dir.join(part);
            fs::create_dir_all(&part)?;
            fs::set_permissions(&part, fs::Permissions::from_mode(0o700))?;
        }
        Ok(Node { id, kumo: kumo.to_owned(), dir, lease, child: None })
    }

    /// Where its identity is.
    pub fn fabric_dir(&self) -> PathBuf {
        self.dir.join("state/fabric")
    }

    /// The socket that it serves for commands.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/api.sock")
    }

    /// The options that name its directories.
    pub fn options(&self) -> [String; 4] {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let [state, run] = ["state", "run"].map(|part| text(self.dir.join(part)));
        ["--state-dir".to_owned(), state, "--run-dir".to_owned(), run]
    }

    /// Starts it, and returns when it answers.
    ///
    /// # Errors
    /// It cannot be started, ends, or does not answer.
    pub fn up(&mut self) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.join("log"))?;
        let mut command = Command::new(&self.kumo);
        command.args(["up", "--listen", "127.0.0.1:0", "--log", "warn"]).args(self.options());
        // They share one machine, and nobody calls anybody here.
        command.args(["--call-listen", "none"]);
        if let Some(lease) = self.lease {
            command.args(["--lease-ms", &lease.as_millis().to_string()]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn()?;
        let began = Instant::now();
        loop {
            if self.hosts().is_ok() {
                self.child = Some(child);
                return Ok(());
            }
            if let Some(status) = child.try_wait()? {
                let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                return Err(Error::other(format!("{}: {status}\n{log}", self.id)));
            }
            if began.elapsed() > ANSWER_WAIT_MAX {
                child.kill()?;
                child.wait()?;
                return Err(Error::other(format!("{} does not answer", self.id)));
            }
            std::thread::sleep(LOOK_PERIOD);
        }
    }

    /// Its process; 0 while it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Sends a signal; returns the moment before.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> io::Result<Instant> {
        let pid = Pid::from_raw(self.pid() as i32);
        let pid = pid.ok_or_else(|| Error::other(format!("{} does not run", self.id)))?;
        let at = Instant::now();
        kill_process(pid, signal)?;
        Ok(at)
    }

    /// Kills it by SIGKILL; returns the moment before. It is reaped when this returns.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> io::Result<Instant> {
        let at = self.signal(Signal::KILL)?;
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(at)
    }

    /// Asks it.
    ///
    /// # Errors
    /// It does not answer with status 200 and such JSON.
    pub fn get<T: DeserializeOwned>(&self, target: &str) -> io::Result<T> {
        let answer = api::request(&self.socket(), "GET", target, "", ANSWER_WAIT_MAX)?;
        if answer.status != 200 {
            let said = String::from_utf8_lossy(&answer.body).into_owned();
            return Err(Error::other(format!("{target}: status {}: {said}", answer.status)));
        }
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// The hosts that it knows.
    ///
    /// # Errors
    /// It does not answer.
    pub fn hosts(&self) -> io::Result<Vec<HostInfo>> {
        #[derive(Deserialize)]
        struct View {
            hosts: Vec<HostInfo>,
        }
        Ok(self.get::<View>("/v2/hosts")?.hosts)
    }

    /// How many hosts it sees alive with their cards, and the others.
    ///
    /// # Errors
    /// It does not answer.
    pub fn alive(&self) -> io::Result<(usize, Vec<HostInfo>)> {
        Ok(super::host::alive(self.hosts()?))
    }

    /// Its links.
    ///
    /// # Errors
    /// It does not answer.
    pub fn links(&self) -> io::Result<Vec<LinkReport>> {
        #[derive(Deserialize)]
        struct View {
            links: Vec<LinkReport>,
        }
        Ok(self.get::<View>("/v2/links")?.links)
    }

    /// Gives each line of its stream of events to `take`, with the moment it came, on a thread that
    /// ends with the node. Returns when no event is missed any more.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) fn events(
        &self,
        mut take: impl FnMut(&str, Instant) + Send + 'static,
    ) -> io::Result<()> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.write_all(b"GET /v2/hosts/events HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        // The end of the head, and the empty line that says that it listens.
        for _ in 0..2 {
            loop {
                line.clear();
                if lines.read_line(&mut line)? == 0 {
                    return Err(Error::other(format!("{} tells no events", self.id)));
                }
                if line.trim().is_empty() {
                    break;
                }
            }
        }
        std::thread::spawn(move || {
            loop {
                line.clear();
                match lines.read_line(&mut line) {
                    Ok(1..) => take(line.trim(), Instant::now()),
                    _ => return,
                }
            }
        });
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already; then there is only the reaping left.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
