//! How the command ends.

use std::process::ExitCode;

/// How a subcommand ended, and the code that the shell sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything was done.
    Done,
    /// Something could not be done, or nothing was found; it was said which.
    Failed,
    /// Wrong usage: a query, a name or an option.
    Usage,
    /// Some of what was asked for is missing from the answer; it was said what.
    Partial,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Partial => 3,
        })
    }
}
