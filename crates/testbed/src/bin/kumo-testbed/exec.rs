//! `kumo-testbed exec`: a command or a shell on a host.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use kumo_abi::HostId;

use crate::ask;
use crate::world::At;

/// Run a command on a host, or a shell
///
/// There it has the host's network, processes and name; kumo finds the host's node.
#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    /// As DC/HOST
    host: HostId,
    /// With its arguments; without it: your shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Becomes the command; returns only when that fails.
pub(crate) fn run(at: &At, exec: &Exec) -> Result<(), String> {
    let world = ask::world(at)?;
    let host = world.hosts.iter().find(|host| host.id == exec.host);
    let host = host.ok_or_else(|| format!("there is no host {} in this cluster", exec.host))?;
    let shell = env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let shell = [shell];
    let command = if exec.command.is_empty() { &shell } else { exec.command.as_slice() };

    let mut nsenter = Command::new("nsenter");
    nsenter.arg("--target").arg(host.init_pid.to_string());
    if world.in_user_namespace {
        nsenter.args(["--user", "--preserve-credentials"]);
    }
    nsenter.args(["--mount", "--uts", "--net", "--pid"]);
    if let Ok(dir) = env::current_dir() {
        let mut option = OsString::from("--wd=");
        option.push(dir);
        nsenter.arg(option);
    }
    nsenter.arg("--").args(command);
    // So that `kumo` is this cluster's.
    if let Some(folder) = world.kumo.parent().filter(|folder| folder.is_absolute()) {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = [PathBuf::from(folder)].into_iter().chain(env::split_paths(&path));
        if let Ok(path) = env::join_paths(folders) {
            nsenter.env("PATH", path);
        }
    }
    // Its directories are those of root there.
    nsenter.env_remove("XDG_RUNTIME_DIR");
    let error = nsenter.exec();
    Err(format!("cannot run nsenter: {error}; it comes with util-linux"))
}
