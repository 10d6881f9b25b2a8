//! Where the built `kumo` is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The crates that `kumo` is made of, beside this one.
const CRATES: [&str; 8] = ["abi", "sys", "k2i", "pki", "middlecon", "fabric", "node", "kumo"];

/// The `kumo` that tests run: that in the environment variable `KUMO`, else the one beside the test,
/// built if it is not there or older than its sources.
///
/// # Panics
/// When it cannot be built: a test without it tells nothing.
pub fn kumo_for_tests() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(path) = std::env::var_os("KUMO") {
            return path.into();
        }
        let folder = crate::helper::folder();
        let kumo = folder.join("kumo");
        if is_stale(&kumo) {
            crate::helper::build(&folder, "kumo", "kumo");
            // Cargo leaves a program alone that would come out the same; it is not stale either.
            if let Ok(file) = fs::File::options().append(true).open(&kumo) {
                let _ = file.set_modified(SystemTime::now());
            }
        }
        kumo
    })
}

/// The `kumo` beside the running program, else the one in the path.
pub fn kumo_beside() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|path| path.with_file_name("kumo"));
    beside.filter(|path| path.exists()).unwrap_or_else(|| "kumo".into())
}

fn is_stale(kumo: &Path) -> bool {
    let Ok(built) = kumo.metadata().and_then(|data| data.modified()) else { return true };
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    CRATES.iter().any(|name| is_newer(&crates.join(name), built))
}

/// Whether a file in `folder`, or below, was changed after `than`. Tests and examples do not count.
fn is_newer(folder: &Path, than: SystemTime) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        match entry.metadata() {
            Ok(data) if data.is_dir() => {
                !["tests", "examples", "benches"].iter().any(|skipped| name == *skipped)
                    && is_newer(&entry.path(), than)
            }
            Ok(data) => data.modified().is_ok_and(|changed| changed > than),
            Err(_) => false,
        }
    })
}

/// Runs `program --version`, to say early and clearly that it is not there.
///
/// # Errors
/// In words for people.
pub fn check(program: &Path) -> Result<(), String> {
    match Command::new(program).arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{} --version failed: {}", program.display(), output.status)),
        Err(error) => Err(format!(
            "cannot run {}: {error}; build it with `cargo build --release -p kumo`, or name one \
             with --kumo",
            program.display()
        )),
    }
}
