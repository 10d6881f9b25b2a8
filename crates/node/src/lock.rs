//! The lock on a directory: one node at a time.
//!
//! The kernel gives it back when its holder dies, in whatever way. The file stays and says who holds
//! it; removing it would let two nodes lock two files of one name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// Why a directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another node has it.
    #[error(
        "a node already runs on {}{}; stop it first, or give this one its own --state-dir and --run-dir",
        dir.display(), of(*.pid)
    )]
    Held {
        /// The directory.
        dir: PathBuf,
        /// The other node's process; unknown while it is only just starting.
        pid: Option<u32>,
    },
    /// The file cannot be made or locked.
    #[error("cannot lock {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn of(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// A lock that is held until it is dropped, or its process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock of a state directory, as a node does for as long as it runs on it.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn of_state(dir: &Path) -> Result<Lock, LockError> {
        Lock::take(&dir.join("lock"), dir)
    }

    /// Takes the lock of `dir`, which is the file `path`.
    ///
    /// # Errors
    /// See [`LockError`].
    pub(crate) fn take(path: &Path, dir: &Path) -> Result<Lock, LockError> {
        let failed = |source| LockError::File { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(LockError::Held { dir: dir.to_owned(), pid: holder(&mut file) });
            }
            Err(error) => return Err(failed(error.into())),
        }
        let mut say = || {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())
        };
        say().map_err(failed)?;
        Ok(Lock { file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // An empty file names nobody. If it stays, the next holder writes over it.
        let _ = self.file.set_len(0);
    }
}

fn holder(file: &mut File) -> Option<u32> {
    /// A process number has at most ten digits.
    const PID_BYTES_MAX: u64 = 16;
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(PID_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let first = Lock::take(&path, dir.path()).expect("nobody has it");
        let second = Lock::take(&path, dir.path()).expect_err("the first has it");
        let message = second.to_string();
        assert!(message.contains(&format!("(pid {})", std::process::id())), "{message}");
        drop(first);
        let _third = Lock::take(&path, dir.path()).expect("the first gave it back");
    }

    #[test]
    fn what_a_dead_node_wrote_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        std::fs::write(&path, "4194304999\nmore than a number\n").expect("a stale file");
        let _lock = Lock::take(&path, dir.path()).expect("nobody has it");
        let text = std::fs::read_to_string(&path).expect("the file");
        assert_eq!(text, format!("{}\n", std::process::id()));
    }
}
