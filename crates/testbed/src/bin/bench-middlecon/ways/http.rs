//! A call as who has no SDK makes it: HTTP on the node's socket, one connection a caller, kept open.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Ask, Callers, Place};
use crate::clock::Question;

/// Bytes of an answer's head. Ours have a few hundred.
const HEAD_BYTES_MAX: usize = 4 << 10;

struct Http {
    stream: UnixStream,
    path: String,
    buffer: Vec<u8>,
}

impl Http {
    fn new(socket: &Path, path: String) -> io::Result<Http> {
        Ok(Http { stream: UnixStream::connect(socket)?, path, buffer: Vec::new() })
    }

    /// Reads until something holds of what was read.
    fn read_until<T>(&mut self, mut found: impl FnMut(&[u8]) -> Option<T>) -> io::Result<T> {
        loop {
            if let Some(value) = found(&self.buffer) {
                return Ok(value);
            }
            let had = self.buffer.len();
            self.buffer.resize(had + HEAD_BYTES_MAX.max(had), 0);
            let read = self.stream.read(&mut self.buffer[had..])?;
            self.buffer.truncate(had + read);
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl Ask for Http {
    fn ask(&mut self, question: &Question) -> io::Result<bool> {
        let body = question.body();
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
            self.path,
            body.len(),
        );
        let mut sent =
            self.stream.write_vectored(&[IoSlice::new(head.as_bytes()), IoSlice::new(body)])?;
        if sent < head.len() {
            self.stream.write_all(&head.as_bytes()[sent..])?;
            sent = head.len();
        }
        self.stream.write_all(&body[sent - head.len()..])?;
        self.buffer.clear();
        let head_len = self.read_until(|bytes| {
            bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
        })?;
        let head = String::from_utf8_lossy(&self.buffer[..head_len]).into_owned();
        let length =
            head.lines().filter_map(|line| line.split_once(": ")).find_map(|(name, value)| {
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
        let (true, Some(length)) = (head.starts_with("HTTP/1.1 200 "), length) else {
            return Err(io::Error::other(format!("the node answered {head}")));
        };
        self.read_until(|bytes| (bytes.len() >= head_len + length).then_some(()))?;
        Ok(self.buffer[head_len..] == *body)
    }
}

pub(super) fn callers(place: &Place) -> Callers {
    let socket = place.run_dir.join("api.sock");
    let path = format!("/v2/call/bench-{}/echo", place.id);
    Callers::Threads(std::sync::Arc::new(move || Ok(Box::new(Http::new(&socket, path.clone())?))))
}
