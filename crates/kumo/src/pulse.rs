//! `kumo pulse`: a message without a reply.

use std::ffi::OsString;

use middlecon::PULSE_BYTES_MAX;
use tokio::runtime::Builder;

use crate::callee::{self, Callee, ThroughArgs};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::outcome;
use crate::output::Output;

/// Send a message that nobody answers
///
/// For news that is replaced by the next: a state, a heartbeat. It leaves at once or not at all, and
/// nobody says whether it arrived. What must be done is a call.
#[derive(Clone, Debug, clap::Args)]
pub struct Pulse {
    /// The service, and its method (`call` where none is named)
    #[arg(value_name = "SERVICE[/METHOD]")]
    callee: Callee,
    /// What to send, or - for all of standard input; nothing without
    #[arg(value_name = "DATA")]
    data: Option<OsString>,
    #[command(flatten)]
    through: ThroughArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo pulse dashboard/load \"$(cut -d' ' -f1 /proc/loadavg)\"

At most 64 KiB. Exit status: 0 it has left, 11 it has not (nobody serves that, or it was not let in),
1 failed, 2 wrong usage.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`]; nothing was sent then.
pub fn run(args: &Pulse, out: &mut Output) -> Result<Exit, CommandError> {
    let body = callee::body(args.data.as_deref())?;
    if body.len() > PULSE_BYTES_MAX {
        let len_bytes = body.len();
        let what = format!(
            "a pulse has at most {PULSE_BYTES_MAX} bytes, and this has {len_bytes}; send it with `kumo call`"
        );
        return Err(CommandError::Usage(what));
    }
    let node = match args.through.connect() {
        Ok(node) => node,
        Err(error) => {
            out.warn(outcome::words(&args.callee, &callee::without_node(&error)));
            return Ok(Exit::NotExecuted);
        }
    };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let not_sent = runtime.block_on(async {
        let service = node.service_async(&args.callee.service);
        service.pulse(&args.callee.method, body.into());
        service.pulses_sent().await
    });
    Ok(match not_sent {
        None => Exit::Done,
        Some(error) => {
            out.warn(outcome::words(&args.callee, &error));
            Exit::NotExecuted
        }
    })
}
