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
        let folder = folder();
        let helper = folder.join("kumo-zoo");
        // A program of ours was built together with its helper, and may run where no cargo is.
        if !helper.exists() || (is_test() && is_stale(&helper)) {
            build(&folder, "kumo-testbed", "kumo-zoo");
        }
        helper
    })
}

/// The folder of programs beside the running test or program.
pub(crate) fn folder() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this program");
    let folder = test.parent().expect("a program lies in a folder");
    if folder.ends_with("deps") || folder.ends_with("examples") {
        return folder.parent().expect("deps lies in the folder of its profile").to_owned();
    }
    folder.to_owned()
}

/// Whether a test runs: cargo puts those, and only those, into a folder of their own.
fn is_test() -> bool {
    let program = std::env::current_exe().expect("the path of this program");
    program.parent().is_some_and(|folder| folder.ends_with("deps"))
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

/// Builds a program of the workspace into `folder`, which is that of a profile.
pub(crate) fn build(folder: &Path, package: &str, program: &str) {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", package, "--bin", program])
        .arg(format!("--profile={profile}"))
        .arg(format!("--manifest-path={}/Cargo.toml", env!("CARGO_MANIFEST_DIR")))
        .arg("--target-dir")
        .arg(folder.parent().expect("a profile's folder lies in the target folder"))
        .status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "tests run `{program}`, and it cannot be built ({status:?}); see what `cargo build -p \
         {package}` says"
    );
}
