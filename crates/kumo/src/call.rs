//! `kumo call`: one call from the shell, whose end is told as truthfully as to a program.

use std::ffi::OsString;
use std::io::pipe;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kumo_abi::call::BUDGET_MS_DEFAULT;
use middlecon::{Answerer, CallError};

use crate::callee::{self, Callee, ThroughArgs};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::outcome::{self, Document};
use crate::output::Output;
use crate::{json, stop};

/// Call a service and print its reply
///
/// The reply goes to standard output as it is. What went wrong goes to standard error, in words that
/// say whether trying again is safe, and the exit status says it to scripts.
#[derive(Clone, Debug, clap::Args)]
pub struct Call {
    /// The service, and its method (`call` where none is named)
    #[arg(value_name = "SERVICE[/METHOD]")]
    callee: Callee,
    /// What to send, or - for all of standard input; nothing without
    #[arg(value_name = "DATA")]
    data: Option<OsString>,
    /// It may take this long, waits included: 250ms, 2s, 5m, up to 24h
    #[arg(long, value_name = "TIME", value_parser = callee::budget)]
    budget: Option<Duration>,
    /// Where all places are taken, wait for one within the budget instead of being told BUSY
    #[arg(long)]
    wait: bool,
    /// How urgent it is where it must wait for a place; 0 is the least
    #[arg(long, value_name = "0-255")]
    priority: Option<u8>,
    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    through: ThroughArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo call greeter/greet world
  tar c . | kumo call backup/store - --budget 5m
  kumo call report/make --wait --json | jq -r .outcome
  kumo call bank/pay '{\"to\": \"bob\"}'; [ $? = 11 ] && echo 'not executed: try again'

Exit status: 0 executed, 10 executed and the callee said no, 11 not executed (trying again is safe),
12 nobody knows whether it was executed (look before you call again), 1 failed, 2 wrong usage.
Ctrl-C cancels the call, and what became of it is told as of any other. Without --budget it may take
30 s; where `kumo serve` runs this command, it never takes longer than the call that is answered.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`]; nothing was sent then.
pub fn run(args: &Call, out: &mut Output) -> Result<Exit, CommandError> {
    let body = callee::body(args.data.as_deref())?;
    let budget = args.budget.unwrap_or(Duration::from_millis(BUDGET_MS_DEFAULT));
    let context = callee::context(budget)?;
    // Whoever waits at the reader learns by the writer's end that nobody wants the reply any more.
    let (reader, writer) = pipe()?;
    stop::on_first(move || drop(writer))?;
    let context = context.given_up_with(reader.into());
    let began = Instant::now();
    let mut answerer = None;
    let result = context.enter(|| call(args, budget, &body, &mut answerer));
    let took = began.elapsed();
    if args.json {
        let document = Document::new(&args.callee, &result, context.trace(), took);
        let document = document.by(answerer.as_ref());
        out.line(json::pretty(&document)?)?;
    } else {
        match &result {
            Ok(reply) => out.writer().write_all(reply)?,
            Err(error) => out.warn(outcome::words(&args.callee, error)),
        }
    }
    Ok(outcome::exit(&result))
}

fn call(
    args: &Call,
    budget: Duration,
    body: &[u8],
    answerer: &mut Option<Answerer>,
) -> Result<Bytes, CallError> {
    let node = args.through.connect().map_err(|error| callee::without_node(&error))?;
    let service = node.service(&args.callee.service);
    let mut request = service.request(&args.callee.method).budget(budget);
    if let Some(priority) = args.priority {
        request = request.priority(priority);
    }
    if args.wait {
        request = request.wait_for_place();
    }
    let result = request.call(body);
    *answerer = service.answerer();
    result
}
