//! One HTTP request on a connection of its own, and all of its answer.
//!
//! No HTTP library: its start-up and buffers would be timed along with the server.

use std::io::{self, Error, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A request that takes longer has failed.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    /// JSON that is posted; without it the path is got.
    pub(crate) body: Option<String>,
}

impl Request {
    pub(crate) fn get(path: impl Into<String>) -> Request {
        Request { path: path.into(), body: None }
    }

    fn text(&self, server: SocketAddr) -> String {
        let Request { path, body } = self;
        let method = if body.is_some() { "POST" } else { "GET" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {server}\r\n\
             Accept: application/json, text/plain, */*\r\nConnection: close\r\n"
        );
        let body = body.as_deref().unwrap_or_default();
        match body.len() {
            0 => format!("{head}\r\n"),
            len => format!(
                "{head}Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
            ),
        }
    }
}

/// Connects and asks; the answer is still to be read.
pub(crate) fn begin(server: SocketAddr, request: &Request) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, WAIT_MAX)?;
    stream.set_read_timeout(Some(WAIT_MAX))?;
    stream.set_nodelay(true)?;
    stream.write_all(request.text(server).as_bytes())?;
    Ok(stream)
}

/// Connects, gets `path` and reads the whole body.
pub(crate) fn fetch(server: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    ask(server, &Request::get(path))
}

/// Connects, asks and reads the whole body.
pub(crate) fn ask(server: SocketAddr, request: &Request) -> io::Result<Vec<u8>> {
    let mut stream = begin(server, request)?;
    let path = &request.path;
    let mut answer = Vec::with_capacity(1 << 20);
    stream.read_to_end(&mut answer)?;
    body(&answer).ok_or_else(|| Error::other("this is no whole HTTP answer")).and_then(|answer| {
        let Answer { status, body } = answer;
        let excerpt = || String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        if status == 200 {
            Ok(body)
        } else {
            Err(Error::other(format!("{path} gave status {status}: {}", excerpt())))
        }
    })
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

fn body(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = str::from_utf8(&answer[..end]).ok()?.to_ascii_lowercase();
    let rest = &answer[end + 4..];
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim().to_owned())
    };
    if header("transfer-encoding").as_deref() == Some("chunked") {
        return Some(Answer { status, body: join_chunks(rest)? });
    }
    let len = header("content-length").map_or(Some(rest.len()), |len| len.parse().ok())?;
    (rest.len() == len).then(|| Answer { status, body: rest.to_vec() })
}

/// `None` when the last chunk is not there.
fn join_chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::with_capacity(rest.len());
    loop {
        let end = rest.windows(2).position(|bytes| bytes == b"\r\n")?;
        let len = usize::from_str_radix(str::from_utf8(&rest[..end]).ok()?.trim(), 16).ok()?;
        rest = &rest[end + 2..];
        if len == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..len)?);
        rest = rest.get(len + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        let cases: [(&str, Option<(u16, &str)>); 6] = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", Some((200, "ab"))),
            ("HTTP/1.0 404 No\r\n\r\nab", Some((404, "ab"))),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
                Some((200, "abc")),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", None),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", None),
            ("HTTP/1.1 200 OK\r\n", None),
        ];
        for (text, want) in cases {
            let got = body(text.as_bytes()).map(|answer| (answer.status, answer.body));
            let want = want.map(|(status, body)| (status, body.as_bytes().to_vec()));
            assert_eq!(got, want, "for {text:?}");
        }
    }
}
