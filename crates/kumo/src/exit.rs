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
    /// The callee said no: it ran.
    CalleeFailed,
    /// A call was not executed, and will not be: trying again is safe.
    NotExecuted,
    /// A call may have been executed.
    Unknown,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Partial => 3,
            // Apart from the others, so that a script tells them from a mistake of its own.
            Exit::CalleeFailed => 10,
            Exit::NotExecuted => 11,
            Exit::Unknown => 12,
        })
    }
}
