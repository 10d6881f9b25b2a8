//! `kumo completions`: what the shell needs to complete commands, options and values.

use clap::Command;
use clap_complete::Shell;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::Output;

/// Print the completions of a shell
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo completions bash > /etc/bash_completion.d/kumo
  kumo completions zsh > \"${fpath[1]}/_kumo\"
  kumo completions fish > ~/.config/fish/completions/kumo.fish";

/// Runs it; `command` is the whole command line of `kumo`.
///
/// # Errors
/// Standard output.
pub fn run(
    args: Completions,
    command: &mut Command,
    out: &mut Output,
) -> Result<Exit, CommandError> {
    // The generator does not take a failing writer well, so it writes into memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "kumo", &mut script);
    out.writer().write_all(&script)?;
    Ok(Exit::Done)
}
