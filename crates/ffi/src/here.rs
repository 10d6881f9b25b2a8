//! Which node is ours, where nobody names one: our own user's, else root's. As `kumo` looks for it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use middlecon::{Node, NodeError};

/// Run directory of the node that root runs.
const SYSTEM_RUN_DIR: &str = "/run/kumo";

/// Connects to it.
pub(crate) fn connect() -> Result<Node, NodeError> {
    let uid = rustix::process::geteuid().as_raw();
    if uid != 0 {
        let own = own_run_dir(uid, std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
        if is_trusted(&own, uid) {
            match Node::connect(&own) {
                Err(NodeError::Away { .. }) => {}
                result => return result,
            }
        }
    }
    Node::connect(Path::new(SYSTEM_RUN_DIR))
}

fn own_run_dir(uid: u32, runtime: Option<PathBuf>) -> PathBuf {
    let runtime = runtime.filter(|dir| dir.is_absolute());
    runtime.map_or_else(|| format!("/tmp/kumo-{uid}").into(), |dir| dir.join("kumo"))
}

/// Whether only root or we ourselves can have put a socket into this directory: where all may write,
/// anybody could put one of a node that lies.
fn is_trusted(dir: &Path, uid: u32) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|found| {
        found.is_dir() && [0, uid].contains(&found.uid()) && found.mode() & 0o022 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_directory_of_a_user() {
        let cases = [
            (Some("/run/user/7"), "/run/user/7/kumo"),
            (Some("relative"), "/tmp/kumo-7"),
            (None, "/tmp/kumo-7"),
        ];
        for (runtime, want) in cases {
            let found = own_run_dir(7, runtime.map(PathBuf::from));
            assert_eq!(found, Path::new(want), "for {runtime:?}");
        }
    }
}
