//! `kumo serve`: each call of a service runs a command.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::num::NonZero;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kumo_abi::call::{CREDIT_MAX, Method, SLOTS_MAX, ServiceName};
use middlecon::{Builder, Call, Failure, Node, NodeError, Server};

use crate::answer::{Answerer, Ended, Ran};
use crate::callee::{self, ThroughArgs};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::orphans::Keeper;
use crate::output::Output;
use crate::{stop, text};

/// After calls at work were given up, their commands have as long as this to be gone.
const GONE_TIME_MAX: Duration = Duration::from_secs(5);

/// Serve calls, each by running a command
///
/// The command gets the payload of the call on standard input; what it writes to standard output is the
/// reply. Ends it with a status that is not 0, the caller is told so with the last line of standard
/// error. Nothing that a command has started in its process group is left when its call is over.
#[derive(Clone, Debug, clap::Args)]
pub struct Serve {
    /// The name of the service
    #[arg(value_name = "NAME")]
    service: ServiceName,
    /// Serve this method and no others; may be repeated. Without: every method
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<Method>,
    /// Run as many at once; as many as this host has processors without
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(SLOTS_MAX)))]
    slots: Option<u16>,
    /// Let as many callers wait for their turn; more are told BUSY
    #[arg(long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=i64::from(CREDIT_MAX)))]
    credit: u16,
    /// End a command that runs longer, even if its caller would wait: 250ms, 2s, 5m
    #[arg(long, value_name = "TIME", value_parser = callee::budget)]
    timeout: Option<Duration>,
    /// When told to stop, let calls at work go on for so long
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = callee::budget)]
    drain: Duration,
    /// Print no line for each call, also on a terminal
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    through: ThroughArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo serve upper -- tr a-z A-Z           then: kumo call upper hello
  kumo serve greeter --method greet -- sh -c 'echo \"hello $(cat)\"'
  kumo serve convert --slots 2 --timeout 1m -- ffmpeg -i - -f mp3 -

The command finds in its environment: KUMO_METHOD; KUMO_PEER, who calls (tokyo/a/user/1000 or
tokyo/a/service/web, as the nodes say, not as it says); KUMO_TRACE; KUMO_BUDGET_MS, the time it has; and
KUMO_CONTEXT, by which a `kumo call` that it runs is part of the same chain: with its trace, within its
budget, and told of a circle instead of hanging in one.
A caller that gives up, dies or has spent its budget ends the command: TERM to its process group, KILL
after a second. A reply has at most 64 MiB. TERM or Ctrl-C drains: no new calls, those at work are
finished; a second one ends at once. Exit status: 0 drained, 1 it could not serve, 2 wrong usage, 3 calls
were cut off when the time to drain was over.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Serve, out: &mut Output) -> Result<Exit, CommandError> {
    let (stop, stopped) = channel::<()>();
    stop::on_first(move || drop(stop))?;
    let failed = |error| CommandError::Serve(args.service.clone(), error);
    let node = args.through.connect().map_err(failed)?;
    let running = Arc::new(Running::default());
    let keeper = Arc::new(Keeper::start().map_err(|error| failed(NodeError::Exhausted(error)))?);
    let server = builder(args, &node, &running, keeper).start().map_err(failed)?;
    let host = node.welcome().map_or_else(String::new, |welcome| format!(" on {}", welcome.host));
    out.line(format_args!("kumo: serves {}{host}; Ctrl-C drains and ends", args.service))?;
    out.flush()?;
    // Nothing is ever sent: it ends when the one who could is gone.
    stopped.recv().ok();
    let is_drained = drain(args, &server, &running, out);
    Ok(if is_drained { Exit::Done } else { Exit::Partial })
}

fn drain(args: &Serve, server: &Server, running: &Running, out: &mut Output) -> bool {
    let now = running.count();
    if now > 0 {
        let s = if now == 1 { "" } else { "s" };
        out.warn(format_args!("draining: {now} call{s} at work; Ctrl-C again ends at once"));
    }
    let is_drained = server.drain(args.drain);
    // Whose caller was cut off sees that by itself, and ends its command.
    let left = running.wait_for_none(GONE_TIME_MAX);
    if !is_drained {
        out.warn("calls were still at work and are cut off; their callers are told so");
    }
    is_drained && left == 0
}

fn builder(args: &Serve, node: &Node, running: &Arc<Running>, keeper: Arc<Keeper>) -> Builder {
    let cpus = || available_parallelism().map_or(1, NonZero::get);
    let slots = args.slots.unwrap_or_else(|| u16::try_from(cpus()).unwrap_or(SLOTS_MAX));
    let (command, time_max) = (args.command.clone(), args.timeout);
    let answerer = Answerer { command, time_max, keeper: Some(keeper) };
    let tells = !args.quiet && io::stderr().is_terminal();
    let running = running.clone();
    let handler = move |call: &mut Call<'_>| -> Result<Bytes, Failure> {
        let _one = running.one();
        let began = Instant::now();
        let ran = answerer.answer(call.method, &call.body, call.peer, call.context);
        if tells {
            let line = line(call, &ran, began.elapsed());
            writeln!(io::stderr(), "{}", text::visible(&line)).ok();
        }
        ran.result
    };
    let builder = node.serve(&args.service).slots(slots).credit(args.credit);
    if args.methods.is_empty() {
        return builder.any(handler);
    }
    let handler = Arc::new(handler);
    args.methods.iter().fold(builder, |builder, method| {
        let handler = handler.clone();
        builder.method(method, move |call| handler(call))
    })
}

/// A call in one line, for a person who watches.
fn line(call: &Call<'_>, ran: &Ran, took: Duration) -> String {
    let end = match (&ran.result, ran.ended) {
        (_, Some(Ended::NotWanted)) => "given up by its caller".to_owned(),
        (Ok(reply), _) => format!("{} bytes back", reply.len()),
        (Err(failure), _) => format!("failed with code {}: {}", failure.code, failure.message),
    };
    let now = crate::ps::local_now();
    let clock = format!("{:02}:{:02}:{:02}", now.hour, now.minute, now.second);
    let took_ms = took.as_micros() as f64 / 1e3;
    let bytes = call.body.len();
    format!("{clock} {} by {}, {bytes} bytes: {end}, {took_ms:.1} ms", call.method, call.peer)
}

/// How many commands run.
#[derive(Debug, Default)]
struct Running {
    count: Mutex<usize>,
    changed: Condvar,
}

/// One of them, until it is dropped.
struct One<'a>(&'a Running);

impl Running {
    fn one(&self) -> One<'_> {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        One(self)
    }

    fn count(&self) -> usize {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until none runs; how many still do when the time is over.
    fn wait_for_none(&self, time_max: Duration) -> usize {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(count, time_max, |count| *count > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.changed.notify_all();
    }
}
