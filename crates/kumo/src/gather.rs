//! `kumo gather`: calls to several services at once, with an outcome for each.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kumo_abi::call::{BUDGET_MS_DEFAULT, Cause};
use middlecon::{CallError, Enough, GROUP_MAX, Member, gather};
use serde_json::json;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use crate::callee::{self, Callee, ThroughArgs};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::grid::{self, Cell};
use crate::outcome::{self, Document};
use crate::output::{Look, Output};
use crate::{json, stop};

type Outcome = Result<Bytes, CallError>;

/// Call several services at once, and tell the outcome of each
#[derive(Clone, Debug, clap::Args)]
pub struct Gather {
    /// Services, each with its method (`call` where none is named); one that stands twice is called twice
    #[arg(value_name = "SERVICE[/METHOD]", required = true)]
    callees: Vec<Callee>,
    /// What to send to each, or - for all of standard input; nothing without
    #[arg(short, long, value_name = "DATA")]
    data: Option<OsString>,
    /// Wait for all of them; so it is without one of these
    #[arg(long, conflicts_with_all = ["quorum", "first"])]
    all: bool,
    /// So many replies are enough; the others are cancelled then
    #[arg(long, value_name = "N", conflicts_with = "first")]
    quorum: Option<usize>,
    /// The first reply is enough; the others are cancelled then
    #[arg(long)]
    first: bool,
    /// All of it may take this long
    #[arg(long, value_name = "TIME", value_parser = callee::budget)]
    budget: Option<Duration>,
    /// Print the outcomes as one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    through: ThroughArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo gather kv-a/read kv-b/read kv-c/read --data key
  kumo gather kv-a/write kv-b/write kv-c/write --quorum 2 --data 'key=1'
  kumo gather mirror-1/get mirror-2/get --first --data path --json

Those that are cancelled because others were enough are unknown: they may have run. Exit status: 0 as many
replied as was said (all of them without), else that of the worst: 12 nobody knows of one, 10 one said
no, 11 none of the missing was executed; 1 failed, 2 wrong usage.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`]; nothing was sent then.
pub fn run(args: &Gather, out: &mut Output) -> Result<Exit, CommandError> {
    let size = args.callees.len();
    let wanted = match (args.first, args.quorum) {
        (true, _) => 1,
        (false, Some(quorum)) => quorum,
        (false, None) => size,
    };
    if size > GROUP_MAX || wanted == 0 || wanted > size {
        let what = if size > GROUP_MAX {
            format!("at most {GROUP_MAX} are called at once, and these are {size}")
        } else {
            format!("--quorum is from 1 to {size} here, as many as are called")
        };
        return Err(CommandError::Usage(what));
    }
    let enough = match (args.first, args.quorum) {
        (true, _) => Enough::First,
        (false, Some(quorum)) => Enough::Quorum(quorum),
        (false, None) => Enough::All,
    };
    let body: Bytes = callee::body(args.data.as_deref())?.into();
    let budget = args.budget.unwrap_or(Duration::from_millis(BUDGET_MS_DEFAULT));
    let context = callee::context(budget)?;
    let (stop, stopped) = oneshot::channel::<()>();
    stop::on_first(move || drop(stop))?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let began = Instant::now();
    let outcomes = runtime.block_on(context.run(calls(args, body, budget, enough, stopped)));
    let took = began.elapsed();
    if args.json {
        let members: Vec<Document<'_>> = args
            .callees
            .iter()
            .zip(&outcomes)
            .map(|(callee, outcome)| Document::new(callee, outcome, context.trace(), took))
            .collect();
        let exit = exit(&outcomes, wanted);
        let document = json!({
            "enough": exit == Exit::Done, "trace": context.trace().to_string(), "members": members,
        });
        out.line(json::pretty(&document)?)?;
    } else {
        let rows = args.callees.iter().zip(&outcomes).map(|(callee, outcome)| row(callee, outcome));
        let rows: Vec<Vec<Cell>> =
            std::iter::once(grid::headings(&["CALLEE", "OUTCOME", "REPLY"])).chain(rows).collect();
        for line in grid::lines(rows, out.size().map(|(columns, _)| columns), out) {
            out.line(line)?;
        }
    }
    Ok(exit(&outcomes, wanted))
}

async fn calls(
    args: &Gather,
    body: Bytes,
    budget: Duration,
    enough: Enough,
    stopped: oneshot::Receiver<()>,
) -> Vec<Outcome> {
    let all = |error: &CallError| args.callees.iter().map(|_| Err(error.clone())).collect();
    let node = match args.through.connect() {
        Ok(node) => node,
        Err(error) => return all(&callee::without_node(&error)),
    };
    let member = |callee: &Callee| Member {
        service: node.service_async(&callee.service),
        method: callee.method.clone(),
        body: body.clone(),
    };
    let members = args.callees.iter().map(member).collect();
    tokio::select! {
        outcomes = gather(members, Some(budget), enough) => match outcomes {
            Ok(outcomes) => outcomes,
            Err(error) => all(&error),
        },
        // Those that had an outcome by now are not known here any more either.
        _ = stopped => all(&CallError::Unknown { cause: Cause::Cancelled, message: String::new() }),
    }
}

/// The worst decides, where there are not enough replies.
fn exit(outcomes: &[Outcome], wanted: usize) -> Exit {
    if outcomes.iter().filter(|outcome| outcome.is_ok()).count() >= wanted {
        return Exit::Done;
    }
    let has = |exit: Exit| outcomes.iter().any(|outcome| outcome::exit(outcome) == exit);
    [Exit::Unknown, Exit::CalleeFailed]
        .into_iter()
        .find(|exit| has(*exit))
        .unwrap_or(Exit::NotExecuted)
}

fn row(callee: &Callee, outcome: &Outcome) -> Vec<Cell> {
    let name = Cell::new(callee.to_string());
    match outcome {
        Ok(reply) => {
            let text = String::from_utf8_lossy(reply);
            vec![name, Cell::new("done").look(Look::Good), Cell::new(text.trim_end())]
        }
        Err(error) => {
            let (text, look) = match error {
                CallError::Failed { code, .. } => (format!("failed {code}"), Look::Bad),
                CallError::NotExecuted { cause, .. } => {
                    (format!("not-executed {cause}"), Look::Warn)
                }
                CallError::Unknown { cause, .. } => (format!("unknown {cause}"), Look::Bad),
            };
            vec![name, Cell::new(text).look(look), Cell::new(error.to_string()).look(Look::Dim)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_replies_end_with_the_worst() {
        let done = || Ok(Bytes::new());
        let not_executed = || -> Outcome {
            let message = String::new();
            Err(CallError::NotExecuted {
                cause: Cause::Busy,
                message,
                path: vec![],
                retry_after_ms: None,
            })
        };
        let failed = || Err(CallError::Failed { code: 1, message: String::new() });
        let unknown = || Err(CallError::Unknown { cause: Cause::Died, message: String::new() });
        let cases: [(Vec<Outcome>, usize, Exit); 5] = [
            (vec![done(), unknown()], 1, Exit::Done),
            (vec![done(), unknown(), failed()], 2, Exit::Unknown),
            (vec![done(), failed(), not_executed()], 2, Exit::CalleeFailed),
            (vec![done(), not_executed()], 2, Exit::NotExecuted),
            (vec![done(), done()], 2, Exit::Done),
        ];
        for (outcomes, wanted, want) in cases {
            assert_eq!(exit(&outcomes, wanted), want, "for {outcomes:?}");
        }
    }
}
