//! `kumo testbed`: a cluster to try things on, made by a program of its own.
//!
//! It is no part of what is installed on servers, so it is looked for when it is called, as git does
//! with commands that it does not have itself.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, access};

use crate::error::CommandError;
use crate::exit::Exit;

/// The program.
const PROGRAM: &str = "kumo-testbed";

/// Try a whole cluster on this machine: hosts as network namespaces, and faults
#[derive(Clone, Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Testbed {
    /// What kumo-testbed takes; `kumo testbed --help` asks it
    #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo testbed up --dcs 2 --hosts 3       a cluster of two data centres with three hosts each
  kumo testbed --help                     all that it can do";

/// Becomes the program.
///
/// # Errors
/// It is not there, or cannot be run.
pub fn run(args: &Testbed) -> Result<Exit, CommandError> {
    let beside = env::current_exe().ok();
    let beside = beside.as_deref().and_then(Path::parent);
    let path = env::var_os("PATH").unwrap_or_default();
    let Some(program) = find(beside, env::split_paths(&path)) else {
        return Err(CommandError::Usage(format!(
            "`kumo testbed` runs {PROGRAM}, which is neither beside kumo nor on PATH; in a checkout \
             `cargo build -p kumo-testbed` makes it"
        )));
    };
    // It returns only when that fails.
    let error = Command::new(&program).args(&args.arguments).exec();
    Err(CommandError::Program(program.display().to_string(), error))
}

/// The first place with the program: beside this one, else on the path.
fn find(beside: Option<&Path>, path: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let is_program = |file: &PathBuf| file.is_file() && access(file, Access::EXEC_OK).is_ok();
    // An empty entry of the path means the directory that we happen to stand in; nobody wants that.
    let path = path.filter(|dir| dir.is_absolute());
    let mut places = beside.map(Path::to_owned).into_iter().chain(path);
    places.find_map(|dir| Some(dir.join(PROGRAM)).filter(is_program))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_program_is_found_beside_us_first() {
        let world = tempfile::tempdir().expect("a directory");
        let dir = |name: &str| {
            let dir = world.path().join(name);
            fs::create_dir(&dir).expect("a directory");
            dir
        };
        let (beside, other, text) = (dir("beside"), dir("other"), dir("text"));
        let put = |dir: &Path, mode: u32| {
            let file = dir.join(PROGRAM);
            fs::write(&file, "#!/bin/sh\n").expect("a file");
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("its mode");
            file
        };
        put(&text, 0o644);
        let path = || [text.clone(), PathBuf::new(), other.clone()].into_iter();
        // Root may run whatever has one bit; a file without any is no program for anybody.
        assert_eq!(find(Some(&beside), path()), None);
        let on_path = put(&other, 0o755);
        assert_eq!(find(Some(&beside), path()), Some(on_path));
        let here = put(&beside, 0o755);
        assert_eq!(find(Some(&beside), path()), Some(here));
    }
}
