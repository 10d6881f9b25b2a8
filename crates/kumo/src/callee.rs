//! Whom a command calls, through which node, with what: the arguments that calling commands share.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use kumo_abi::call::{BODY_BYTES_MAX, BUDGET_NS_MAX, CallNameError, Cause, Method, ServiceName};
use kumo_abi::parse_limit;
use middlecon::{CallError, Context, Node, NodeError, OfCluster};

use crate::error::CommandError;

/// The method that is called where none is named.
pub const METHOD_DEFAULT: &str = "call";

/// The environment variable by which a command that `kumo serve` runs hands its call to what it calls
/// itself: trace, budget and way.
pub const CONTEXT_VARIABLE: &str = "KUMO_CONTEXT";

/// Which node connects, as the command line says it. Only one on this host can.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ThroughArgs {
    /// Go through the node that was started with this run directory. Without it: the node of this host
    #[arg(long, value_name = "DIR", help_heading = "Where answers come from")]
    pub run_dir: Option<PathBuf>,
}

impl ThroughArgs {
    /// Connects to the node: that of the directory that was named, else our own, else root's.
    ///
    /// # Errors
    /// None answers.
    pub fn connect(&self) -> Result<Node, NodeError> {
        let node = self.find()?;
        node.secure_with(Arc::new(OfCluster));
        Ok(node)
    }

    fn find(&self) -> Result<Node, NodeError> {
        if let Some(dir) = &self.run_dir {
            return Node::connect(dir);
        }
        let own = kumo_node::default_dirs().run;
        let system = Path::new(kumo_node::SYSTEM_RUN_DIR);
        if own != system && is_trusted(&own) {
            match Node::connect(&own) {
                Err(NodeError::Away { .. }) => {}
                result => return result,
            }
        }
        Node::connect(system)
    }
}

/// Whether only root or we ourselves can have put a socket into this directory: where all may write,
/// anybody could put one of a node that lies.
fn is_trusted(dir: &Path) -> bool {
    let us = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(dir).is_ok_and(|found| {
        found.is_dir() && [0, us].contains(&found.uid()) && found.mode() & 0o022 == 0
    })
}

/// What a call that found no node is: not executed.
pub fn without_node(error: &NodeError) -> CallError {
    let cause = match error {
        NodeError::Away { .. } | NodeError::Strange(_) => Cause::NoNode,
        NodeError::Exhausted(_) => Cause::Exhausted,
        NodeError::Refused { cause, .. } => *cause,
    };
    let message = crate::chain(error);
    CallError::NotExecuted { cause, message, path: Vec::new(), retry_after_ms: None }
}

/// A method of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callee {
    /// The service.
    pub service: ServiceName,
    /// Its method.
    pub method: Method,
}

impl FromStr for Callee {
    type Err = CallNameError;
    fn from_str(text: &str) -> Result<Callee, CallNameError> {
        let (service, method) = text.split_once('/').unwrap_or((text, METHOD_DEFAULT));
        Ok(Callee { service: service.parse()?, method: method.parse()? })
    }
}

impl std::fmt::Display for Callee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.service, self.method)
    }
}

/// A span of time as people write budgets: `250ms`, `2s`, `5m`, `1h`.
///
/// # Errors
/// In words.
pub fn budget(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and one of ms, s, m and h, up to 24h: 250ms, 2s, 5m".to_owned();
    let is_good =
        |budget: &Duration| !budget.is_zero() && *budget <= Duration::from_nanos(BUDGET_NS_MAX);
    parse_limit(text).filter(is_good).ok_or_else(wrong)
}

/// The context that a call begins in: that of the call which the program that runs us answers, if
/// `kumo serve` left one, else a new one.
///
/// # Errors
/// What was left is no context.
pub fn context(budget: Duration) -> Result<Context, CommandError> {
    let Some(left) = std::env::var_os(CONTEXT_VARIABLE) else { return Ok(Context::root(budget)) };
    left.to_str().and_then(Context::import).ok_or_else(|| {
        let what = format!(
            "the environment variable {CONTEXT_VARIABLE} holds no context of a call; it is for programs \
             that `kumo serve` runs, so unset it elsewhere"
        );
        CommandError::Usage(what)
    })
}

/// What to send: nothing, the argument, or with `-` all of standard input.
///
/// # Errors
/// It cannot be read, or is longer than a body may be; nothing has been sent then.
pub fn body(data: Option<&OsStr>) -> Result<Vec<u8>, CommandError> {
    let data = match data {
        None => return Ok(Vec::new()),
        Some(data) if data != "-" => return Ok(data.as_bytes().to_vec()),
        Some(_) => io::stdin().lock(),
    };
    let mut body = Vec::new();
    let what = || "standard input to its end".to_owned();
    let reading = data.take(BODY_BYTES_MAX + 1).read_to_end(&mut body);
    reading.map_err(|error| CommandError::Input(what(), error))?;
    if body.len() as u64 > BODY_BYTES_MAX {
        let what =
            format!("a call carries at most {BODY_BYTES_MAX} bytes, and standard input has more");
        return Err(CommandError::Usage(what));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callees() {
        let cases = [
            ("greeter", Ok(("greeter", "call"))),
            ("greeter/greet", Ok(("greeter", "greet"))),
            ("kv/read.all_of-it", Ok(("kv", "read.all_of-it"))),
            ("", Err(CallNameError::Empty)),
            ("a/", Err(CallNameError::Empty)),
            ("/b", Err(CallNameError::Empty)),
            ("a/b/c", Err(CallNameError::Char('/'))),
            ("a b", Err(CallNameError::Char(' '))),
            ("a/\x1b[31m", Err(CallNameError::Char('\x1b'))),
            ("Web", Err(CallNameError::Char('W'))),
        ];
        for (text, want) in cases {
            let parsed = text.parse::<Callee>();
            let parsed = parsed.as_ref().map(|it| (it.service.as_str(), it.method.as_str()));
            assert_eq!(parsed, want.as_ref().map(|it| *it), "for {text:?}");
        }
    }

    #[test]
    fn budgets() {
        let cases = [
            ("1ms", Some(1)),
            ("250ms", Some(250)),
            ("2s", Some(2_000)),
            ("5m", Some(300_000)),
            ("24h", Some(86_400_000)),
        ];
        for (text, want_ms) in cases {
            assert_eq!(budget(text).ok(), want_ms.map(Duration::from_millis), "for {text:?}");
        }
        for bad in ["", "2", "s", "-1s", "1.5s", "0s", "25h", "1d", "99999999999999999999s", "1 s"]
        {
            assert!(budget(bad).is_err(), "for {bad:?}");
        }
    }
}
