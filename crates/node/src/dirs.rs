//! Where a node keeps its state and its socket.

use std::env;
use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// State of the node that root runs.
pub const SYSTEM_STATE_DIR: &str = "/var/lib/kumo";

/// Run directory of the node that root runs.
pub const SYSTEM_RUN_DIR: &str = "/run/kumo";

/// The directories of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// What must survive a restart.
    pub state: PathBuf,
    /// What must not: the socket.
    pub run: PathBuf,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// It cannot be made or looked at.
    #[error("cannot make directory {}; name another with --state-dir or --run-dir", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is something else.
    #[error("{} is no directory; name another with --state-dir or --run-dir", .0.display())]
    NotDir(PathBuf),
    /// Others could put their files in our place.
    #[error(
        "{} belongs to user {owner} or others may write to it (mode {mode:o}); it must be ours alone: \
         fix that, or name another with --state-dir or --run-dir", path.display()
    )]
    NotPrivate {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
}

/// Where the node of the present user keeps its things: root's under `/var/lib` and `/run`, others'
/// where the XDG variables say, else under the home directory and `/tmp`.
pub fn default_dirs() -> Dirs {
    let absolute =
        |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    dirs_of(geteuid().as_raw(), &absolute)
}

/// The socket that a node with this run directory serves for commands.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("api.sock")
}

fn dirs_of(uid: u32, variable: &dyn Fn(&str) -> Option<PathBuf>) -> Dirs {
    if uid == 0 {
        return Dirs { state: SYSTEM_STATE_DIR.into(), run: SYSTEM_RUN_DIR.into() };
    }
    let run = match variable("XDG_RUNTIME_DIR") {
        Some(runtime) => runtime.join("kumo"),
        None => PathBuf::from(format!("/tmp/kumo-{uid}")),
    };
    let state = variable("XDG_STATE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        .map_or_else(|| run.join("state"), |state| state.join("kumo"));
    Dirs { state, run }
}

/// Makes a directory that is ours alone, and what is missing above it.
///
/// # Errors
/// See [`DirError`]; also for a directory that was there and is not ours alone.
pub(crate) fn create_private(path: &Path) -> Result<(), DirError> {
    let failed = |source| DirError::Make { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    // Not through a link: in /tmp somebody else could have put it there.
    let found = fs::symlink_metadata(path).map_err(failed)?;
    check(path, &found, geteuid().as_raw())
}

/// Lets others reach what they know the name of, and may open: they neither list the directory nor change it.
///
/// # Errors
/// See [`DirError`].
pub(crate) fn let_through(path: &Path) -> Result<(), DirError> {
    let failed = |source| DirError::Make { path: path.to_owned(), source };
    let mode = fs::symlink_metadata(path).map_err(failed)?.mode() & 0o7777;
    fs::set_permissions(path, Permissions::from_mode(mode | 0o011)).map_err(failed)
}

fn check(path: &Path, found: &Metadata, uid: u32) -> Result<(), DirError> {
    let path = path.to_owned();
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    if !found.is_dir() {
        Err(DirError::NotDir(path))
    } else if owner != uid || mode & 0o022 != 0 {
        Err(DirError::NotPrivate { path, owner, mode })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    type Variables = &'static [(&'static str, &'static str)];

    #[test]
    fn defaults() {
        let cases: [(u32, Variables, &str, &str); 5] = [
            (0, &[("HOME", "/root"), ("XDG_RUNTIME_DIR", "/x")], "/var/lib/kumo", "/run/kumo"),
            (7, &[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r")], "/h/.local/state/kumo", "/r/kumo"),
            (7, &[("HOME", "/h"), ("XDG_STATE_HOME", "/s")], "/s/kumo", "/tmp/kumo-7"),
            (7, &[("XDG_RUNTIME_DIR", "/r")], "/r/kumo/state", "/r/kumo"),
            (7, &[], "/tmp/kumo-7/state", "/tmp/kumo-7"),
        ];
        for (uid, variables, state, run) in cases {
            let variable = |name: &str| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
            };
            let want = Dirs { state: state.into(), run: run.into() };
            assert_eq!(dirs_of(uid, &variable), want, "for {uid} with {variables:?}");
        }
    }

    #[test]
    fn only_our_own_directories_will_do() {
        let world = tempfile::tempdir().expect("a directory");
        let at = |name: &str| world.path().join(name);
        create_private(&at("new/run")).expect("made with its parent");
        let mode = fs::metadata(at("new/run")).expect("it is there").mode() & 0o7777;
        assert_eq!(mode, 0o700);
        create_private(&at("new/run")).expect("the second time it is there");

        fs::create_dir(at("open")).expect("a directory");
        fs::set_permissions(at("open"), Permissions::from_mode(0o777)).expect("its mode");
        assert!(matches!(create_private(&at("open")), Err(DirError::NotPrivate { .. })));
        fs::write(at("file"), "").expect("a file");
        assert!(matches!(create_private(&at("file")), Err(DirError::NotDir(_))));
        symlink(at("new/run"), at("link")).expect("a link");
        assert!(matches!(create_private(&at("link")), Err(DirError::NotDir(_))));
        let found = fs::metadata(at("new/run")).expect("it is there");
        let other = found.uid() + 1;
        assert!(matches!(check(&at("new/run"), &found, other), Err(DirError::NotPrivate { .. })));
    }
}
