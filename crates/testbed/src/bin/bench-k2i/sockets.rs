//! Sockets for a host to have while it is measured: what `ss` and `lsof` look for.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Listening TCP sockets, connections (two ends each) and UDP sockets: 4,000 in all. They are held by this
/// process; nobody waits for anything on them.
const LISTENERS: usize = 500;
const CONNECTIONS: usize = 1_500;
const DATAGRAMS: usize = 500;

/// Held open for as long as this lives.
pub(crate) struct Sockets {
    listeners: Vec<TcpListener>,
    _connections: Vec<(TcpStream, TcpStream)>,
    datagrams: Vec<UdpSocket>,
}

impl Sockets {
    /// Opens them all.
    ///
    /// # Errors
    /// The system has no room for so many.
    pub(crate) fn open() -> io::Result<Sockets> {
        // The usual limit is 1,024, and what is allowed far more.
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
        let any_port = (Ipv4Addr::LOCALHOST, 0);
        let listeners: io::Result<Vec<_>> =
            (0..LISTENERS).map(|_| TcpListener::bind(any_port)).collect();
        let listeners = listeners?;
        let connect = |index: usize| {
            let listener = &listeners[index % LISTENERS];
            let client = TcpStream::connect(listener.local_addr()?)?;
            Ok((client, listener.accept()?.0))
        };
        let connections: io::Result<Vec<_>> = (0..CONNECTIONS).map(connect).collect();
        let datagrams: io::Result<Vec<_>> =
            (0..DATAGRAMS).map(|_| UdpSocket::bind(any_port)).collect();
        Ok(Sockets { _connections: connections?, datagrams: datagrams?, listeners })
    }

    /// How many of those that listen are not in `text`, as a number behind a colon: `127.0.0.1:80`,
    /// `"local_port":80`.
    pub(crate) fn missing(&self, text: &str) -> usize {
        let number = |piece: &str| {
            let digits = piece.find(|c: char| !c.is_ascii_digit()).unwrap_or(piece.len());
            piece[..digits].parse::<u16>().ok()
        };
        let found: BTreeSet<u16> = text.split(':').skip(1).filter_map(number).collect();
        let tcp = self.listeners.iter().filter_map(|socket| socket.local_addr().ok());
        let udp = self.datagrams.iter().filter_map(|socket| socket.local_addr().ok());
        tcp.chain(udp).filter(|at| !found.contains(&at.port())).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_whole() {
        let any_port = (Ipv4Addr::LOCALHOST, 0);
        let listeners = vec![TcpListener::bind(any_port).expect("a port")];
        let port = listeners[0].local_addr().expect("bound").port();
        let sockets = Sockets { listeners, _connections: Vec::new(), datagrams: Vec::new() };
        let cases = [
            (format!("tcp LISTEN 127.0.0.1:{port} 0.0.0.0:*"), 0),
            (format!("{{\"local_port\":{port},"), 0),
            (format!("127.0.0.1:{port}0 {port}"), 1),
            (String::new(), 1),
        ];
        for (text, missing) in cases {
            assert_eq!(sockets.missing(&text), missing, "for {text:?}");
        }
    }
}
