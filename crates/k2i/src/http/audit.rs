//! Who changed what: a line for each request that may change something, refused ones included.
//!
//! Each goes to the log, target `audit`, and, where the server has a file for it, there as JSON. A line
//! is written by one system call when the outcome is known, so a killed server leaves whole lines, or a
//! torn last one; it may lack what it did last.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use kumo_abi::rights::Asker;
use serde::{Deserialize, Serialize};

use super::guard::Via;
use crate::encode::document;
use crate::row::rfc3339;

/// A file that is longer is put aside, and replaces the one that was put aside before: some 30,000 lines
/// are kept at least.
pub const AUDIT_BYTES_MAX: u64 = 8 << 20;

/// Most of a path that is written down, and of what a route says.
const TEXT_CHARS_MAX: usize = 1_000;

/// What a route says it did, for the line about it: put it among the extensions of the answer.
#[derive(Clone, Debug)]
pub struct Did(pub String);

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audited {
    /// When, RFC 3339, UTC.
    pub at: String,
    /// Who, in words.
    pub who: String,
    /// His rights.
    pub rights: String,
    /// How he came: `unix`, `tcp ADDRESS`, `tls ADDRESS` or `fabric`.
    pub via: String,
    /// What he asked for: method and path.
    pub what: String,
    /// What was done, where the route says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub did: Option<String>,
    /// The HTTP status of the answer.
    pub status: u16,
}

/// Where they go.
#[derive(Debug, Default)]
pub struct Audit {
    file: Option<Mutex<AuditFile>>,
}

#[derive(Debug)]
struct AuditFile {
    path: PathBuf,
    open: Option<(File, u64)>,
    bytes_max: u64,
}

impl Audit {
    /// To the log, and to this file.
    pub fn to(path: &Path) -> Audit {
        Audit::bounded(path, AUDIT_BYTES_MAX)
    }

    fn bounded(path: &Path, bytes_max: u64) -> Audit {
        let file = AuditFile { path: path.to_owned(), open: None, bytes_max };
        Audit { file: Some(Mutex::new(file)) }
    }

    /// Writes down what came of a request.
    pub(crate) fn write(&self, asked: &Asked, did: Option<&Did>, status: u16) {
        let short = |text: &str| text.chars().take(TEXT_CHARS_MAX).collect::<String>();
        let did = did.map(|Did(did)| short(did));
        let Asked { asker, via, what } = asked;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = Audited {
            at: rfc3339(now.as_nanos() as i128),
            who: asker.who.to_string(),
            rights: asker.rights.to_string(),
            via: via.clone(),
            what: short(what),
            did,
            status,
        };
        let Audited { who, via, what, did, .. } = &line;
        // Paths and names come from outside, and logs are read on terminals.
        let (what, did) = (what.escape_debug(), did.as_deref().unwrap_or_default().escape_debug());
        tracing::info!(target: "audit", "{who} via {via}: {what} {did}: {status}");
        if let Some(file) = &self.file
            && let Err(error) = file.lock().unwrap_or_else(PoisonError::into_inner).append(&line)
        {
            tracing::error!(target: "audit", "the audit log cannot be written: {error}");
        }
    }
}

impl AuditFile {
    fn append(&mut self, line: &Audited) -> io::Result<()> {
        let mut text = document(line);
        text.push(b'\n');
        let written = self.try_append(&text);
        if written.is_err() {
            self.open = None;
        }
        written
    }

    fn try_append(&mut self, text: &[u8]) -> io::Result<()> {
        let len_bytes = text.len() as u64;
        if self.open.as_ref().is_some_and(|(_, at)| at + len_bytes > self.bytes_max) {
            self.open = None;
            let mut aside = self.path.as_os_str().to_owned();
            aside.push(".1");
            fs::rename(&self.path, aside)?;
        }
        if self.open.is_none() {
            let mut open = OpenOptions::new();
            open.read(true).append(true).create(true).mode(0o600);
            let mut file = open.open(&self.path)?;
            let at = file.metadata()?.len();
            let mut last = [b'\n'];
            if at > 0 {
                file.seek(SeekFrom::End(-1))?;
                file.read_exact(&mut last)?;
            }
            if last != *b"\n" {
                // A torn line: it must not take the next one with it.
                file.write_all(b"\n")?;
            }
            self.open = Some((file, at));
        }
        if let Some((file, at)) = &mut self.open {
            file.write_all(text)?;
            *at += len_bytes;
        }
        Ok(())
    }
}

/// A request that may change something, as it is written down.
pub(crate) struct Asked {
    pub(crate) asker: Asker,
    pub(crate) via: String,
    pub(crate) what: String,
}

/// How a request came, in words.
pub(crate) fn in_words(via: Option<Via>, peer: Option<std::net::SocketAddr>) -> String {
    let address = peer.map_or_else(String::new, |peer| format!(" {peer}"));
    match via {
        Some(Via::Unix) => "unix".to_owned(),
        Some(Via::Tcp { tls: false, .. }) => format!("tcp{address}"),
        Some(Via::Tcp { tls: true, .. }) => format!("tls{address}"),
        Some(Via::Fabric) => "fabric".to_owned(),
        None => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_within_bounds() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit.ndjson");
        let audit = Audit::bounded(&path, 2_000);
        let asked = |number: u32| Asked {
            asker: Asker::default(),
            via: "unix".to_owned(),
            what: format!("PUT /v2/x/{number}\x1b\n"),
        };
        for number in 0..100 {
            audit.write(&asked(number), Some(&Did("\x1b[2J".to_owned())), 200);
        }
        let read = |path: &Path| -> Vec<Audited> {
            let text = fs::read_to_string(path).expect("a file");
            assert!(text.len() <= 2_000 && !text.contains('\x1b'));
            text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect()
        };
        let (aside, current) = (read(&dir.path().join("audit.ndjson.1")), read(&path));
        let last = current.last().expect("the last one");
        assert_eq!(last.what, "PUT /v2/x/99\x1b\n");
        assert_eq!((last.status, last.who.as_str()), (200, "nobody in particular"));
        let all: Vec<_> = aside.iter().chain(&current).map(|line| &line.what).collect();
        assert!(all.len() > 8 && all.windows(2).all(|two| two[0] != two[1]), "{}", all.len());
        // A server that comes after it writes on.
        Audit::bounded(&path, 2_000_000).write(&asked(7), None, 403);
        assert_eq!(read(&path).len(), current.len() + 1);
    }
}
