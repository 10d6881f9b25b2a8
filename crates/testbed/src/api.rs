//! A client of a node's socket: one request, one answer, no runtime.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest answer that is read: many times that of the largest world.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// What a node answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status of HTTP.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Asks a node on its socket. `wait` limits each silence, not the whole.
///
/// # Errors
/// When no node is there, it breaks off, is silent for too long, or answers no HTTP.
pub fn request(
    socket: &Path,
    method: &str,
    target: &str,
    body: &str,
    wait: Duration,
) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    // In HTTP/1.0 the body is what comes until the end, without chunks.
    let head = format!("{method} {target} HTTP/1.0\r\nhost: localhost\r\n");
    let length = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    let length = if body.is_empty() { "" } else { &length };
    stream.write_all(format!("{head}{length}\r\n{body}").as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "what answers there speaks no HTTP")
    })
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = str::from_utf8(&bytes[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let lengths = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let body = &bytes[end + 4..];
    if let Some((_, length)) = lengths.next() {
        // Shorter than it said: the node died in the middle of it.
        if length.trim().parse::<usize>().ok()? != body.len() {
            return None;
        }
    }
    Some(Answer { status, body: body.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let cases: [(&str, Option<(u16, &str)>); 6] = [
            ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nab", Some((200, "ab"))),
            ("HTTP/1.1 404 Not Found\r\n\r\n", Some((404, ""))),
            ("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nab", None),
            ("HTTP/1.0 200 OK\r\n", None),
            ("", None),
            ("SSH-2.0-x\r\n\r\n", None),
        ];
        for (text, want) in cases {
            let want = want.map(|(status, body)| Answer { status, body: body.as_bytes().to_vec() });
            assert_eq!(parse(text.as_bytes()), want, "for {text:?}");
        }
    }
}
