//! Why a subcommand gave up. `main` prints the chain of sources once.

use std::io;

use k2i::signal::SignalError;
use k2i::token::TokenFileError;
use kumo_abi::QueryError;
use kumo_abi::call::ServiceName;
use middlecon::NodeError;

use crate::exit::Exit;
use crate::membership::MembershipError;
use crate::source::SourceError;
use crate::up::UpError;

/// Why a subcommand gave up.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The question is wrong; nothing was asked.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// No answer, or a refusal.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A process could not be reached.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// The node.
    #[error(transparent)]
    Up(#[from] UpError),
    /// Which cluster this host is in.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// A file of tokens.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    /// Arguments that do not go together.
    #[error("{0}")]
    Usage(String),
    /// The hosts that were meant are none.
    #[error("there is no host to ask ({0}); `kumo hosts` lists them")]
    Nobody(String),
    /// Another program.
    #[error("cannot run {0}")]
    Program(String, #[source] io::Error),
    /// What was to be read.
    #[error("cannot read {0}")]
    Input(String, #[source] io::Error),
    /// The node does not let this program serve.
    #[error("cannot serve `{0}`")]
    Serve(ServiceName, #[source] NodeError),
    /// Standard output or input.
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
}

impl CommandError {
    /// The code to end with.
    pub fn exit(&self) -> Exit {
        match self {
            CommandError::Query(_) | CommandError::Usage(_) => Exit::Usage,
            CommandError::Source(error) if error.is_usage() => Exit::Usage,
            CommandError::Membership(error) if error.is_usage() => Exit::Usage,
            CommandError::Source(_)
            | CommandError::Membership(_)
            | CommandError::Signal(_)
            | CommandError::Up(_)
            | CommandError::Nobody(_)
            | CommandError::Program(..)
            | CommandError::Input(..)
            | CommandError::Serve(..)
            | CommandError::Tokens(_)
            | CommandError::Output(_) => Exit::Failed,
        }
    }

    /// Whether nobody reads the answer any more, as behind `| head`: no failure, and nothing to say.
    pub fn is_broken_pipe(&self) -> bool {
        let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        match self {
            CommandError::Output(error) | CommandError::Source(SourceError::Output(error)) => {
                broken(error)
            }
            _ => false,
        }
    }
}
