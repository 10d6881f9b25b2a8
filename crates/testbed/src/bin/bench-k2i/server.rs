//! A server under test, owned: killed and reaped when it is dropped.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Error};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::http;

/// Longest wait for a peer's first answer: Glances loads many modules.
const START_WAIT_MAX: Duration = Duration::from_secs(30);

/// Pause between two looks at whether a peer answers; it is not timed.
const START_POLL: Duration = Duration::from_millis(20);

/// A running process.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts `k2i` with one collector, on a free port that it names itself.
    pub(crate) fn k2i(program: &Path, collector: &str) -> io::Result<Server> {
        Server::k2i_with(program, &["--collector", collector])
    }

    /// Starts `k2i` with these options, on a free port that it names itself.
    pub(crate) fn k2i_with<S: AsRef<OsStr>>(program: &Path, options: &[S]) -> io::Result<Server> {
        let mut command = Command::new(program);
        command.args(["--listen", "127.0.0.1:0"]).args(options);
        Server::ours(&mut command)
    }

    /// Starts a node that keeps what it has in `dir`, with its API on a free port.
    pub(crate) fn node(program: &Path, dir: &Path) -> io::Result<Server> {
        let mut command = Command::new(program);
        command.args(["up", "--listen", "127.0.0.1:0", "--view", "never", "--state-dir"]);
        command.arg(dir.join("state")).arg("--run-dir").arg(dir.join("run"));
        Server::ours(&mut command)
    }

    /// Starts a server of ours, which says where it listens.
    fn ours(command: &mut Command) -> io::Result<Server> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut server = Server { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut said = String::new();
            stdout.map(|stdout| BufReader::new(stdout).read_line(&mut said));
            // Nobody listens any more when this took too long.
            let _ = sender.send(said);
        });
        let said = receiver.recv_timeout(START_WAIT_MAX).map_err(Error::other)?;
        match (address_in(&said), stderr) {
            (Some(address), Some(mut stderr)) => {
                server.address = address;
                // A full pipe would stop the server.
                std::thread::spawn(move || io::copy(&mut stderr, &mut io::sink()));
                Ok(server)
            }
            (_, stderr) => {
                drop(server);
                let why = stderr.map(io::read_to_string).transpose()?.unwrap_or_default();
                Err(Error::other(format!("{said}{why}").trim().to_owned()))
            }
        }
    }

    /// Starts a peer and waits until it answers `path`.
    pub(crate) fn peer(command: &mut Command, port: u16, path: &str) -> io::Result<Server> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut server = Server { child: child.spawn()?, address };
        let until = Instant::now() + START_WAIT_MAX;
        loop {
            match http::fetch(address, path) {
                Ok(_) => return Ok(server),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = server.child.try_wait()? {
                return Err(Error::other(format!("it ended: {status}")));
            }
            std::thread::sleep(START_POLL);
        }
    }

    /// Starts a program that has no address and works by itself.
    pub(crate) fn plain(command: &mut Command) -> io::Result<Server> {
        // netdata's plugin ends when its standard input does.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Server { child: child.spawn()?, address: SocketAddr::from(([127, 0, 0, 1], 0)) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; then there is only the reaping left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address behind `http://` in a line.
fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("http://")?;
    let end = rest.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c))).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// A port that is free now.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let want = Some(SocketAddr::from(([127, 0, 0, 1], 8000)));
        let cases = [
            ("k2i serves http://127.0.0.1:8000/ with iter.s\n", want),
            ("http://127.0.0.1:8000", want),
            ("https://127.0.0.1:8000", None),
            ("", None),
        ];
        for (line, want) in cases {
            assert_eq!(address_in(line), want, "for {line:?}");
        }
    }
}
