//! Where the helper binary is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The sources that the helper is made of, beside this file's folder.
const SOURCES: [&str; 5] = ["bin/kumo-zoo.rs", "lib.rs", "role.rs", "crowd.rs", "zoo.rs"];

/// The helper beside the running test, built if it is not there or older than its sources.
///
/// `cargo test --workspace` builds it along; `cargo test -p` of another crate does not, because
/// cargo builds no binaries of a dependency.
pub(crate) fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let test = std::env::current_exe().expect("the path of this program");
        let mut folder = test.parent().expect("a program lies in a folder");
        if folder.ends_with("deps") || folder.ends_with("examples") {
            folder = folder.parent().expect("deps lies in the folder of its profile");
        }
        let helper = folder.join("kumo-zoo");
        if is_stale(&helper) {
            build(folder);
        }
        helper
    })
}

fn is_stale(helper: &Path) -> bool {
    let Some(built) = modified(helper) else { return true };
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    // Sources that are not there cannot be newer: an installed benchmark has none.
    SOURCES.iter().filter_map(|file| modified(&sources.join(file))).any(|changed| changed > built)
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|data| data.modified()).ok()
}

fn build(folder: &Path) {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package=kumo-testbed", "--bin=kumo-zoo"])
        .arg(format!("--profile={profile}"))
        .arg(format!("--manifest-path={}/Cargo.toml", env!("CARGO_MANIFEST_DIR")))
        .arg("--target-dir")
        .arg(folder.parent().expect("a profile's folder lies in the target folder"))
        .status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "tests look at processes of the helper kumo-zoo, and it cannot be built ({status:?}); \
         see what `cargo build -p kumo-testbed` says"
    );
}
