//! `kumo oci-hook`: a container of any OCI runtime tells a service of its life, synchronously.
//!
//! The runtime waits for its hooks, so the service is told before the container begins and may refuse it.
//! A service that is not there must not keep a whole host's containers from starting: unless the hook is
//! required, what goes wrong is a warning.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::time::Duration;

use kumo_abi::call::{Method, ServiceName};
use middlecon::{CallError, Context};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::callee::{self, Callee, ThroughArgs};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::outcome;
use crate::output::Output;
use crate::{json, stop};

/// Largest state of a container that is read. Annotations are all in it that may be long.
const STATE_BYTES_MAX: u64 = 1024 * 1024;

/// What a runtime gives a hook beyond the budget of its call: to start, to connect, to say what happened.
const TIMEOUT_MORE_S: u64 = 2;

/// Tell a service of a container's life, as a hook of any OCI runtime
///
/// Reads the state of the container from standard input, as runtimes give it to their hooks, and calls a
/// method of the service: `created` (createRuntime), `started` (poststart) or `stopped` (poststop).
#[derive(Clone, Debug, clap::Args)]
pub struct OciHook {
    /// The service to call
    #[arg(long, value_name = "NAME", default_value = "oci")]
    service: ServiceName,
    /// Which hook this is; without it by the status in the state, which some runtimes set one step late
    #[arg(long, value_name = "STAGE")]
    stage: Option<Stage>,
    /// The container waits at most so long for the reply: 250ms, 1s
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = callee::budget)]
    budget: Duration,
    /// Fail where the service says no or cannot be asked; then the runtime does not start the container.
    /// Without, that is a warning
    #[arg(long)]
    required: bool,
    /// Print the `hooks` of a bundle's config.json that run this command with these options
    #[arg(long, conflicts_with = "stage")]
    print_config: bool,
    #[command(flatten)]
    through: ThroughArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo oci-hook --print-config                     what goes into config.json
  kumo oci-hook --print-config --required > hooks.json
  jq -s '.[0] * .[1]' config.json hooks.json       the two put together
  kumo serve oci -- sh -c 'cat >> /var/log/containers.json'   a service that writes them down

The payload is a JSON object: event, id, status, pid, bundle, annotations. Exit status: 0 told, or not
told and not required; else as of `kumo call`: 10 the service says no, 11 it was not asked, 12 nobody
knows; and 2 for a state that is none.";

/// Which hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Stage {
    /// The container is made, its program does not run yet
    #[value(name = "createRuntime")]
    CreateRuntime,
    /// Its program runs
    #[value(name = "poststart")]
    Poststart,
    /// It is gone
    #[value(name = "poststop")]
    Poststop,
}

const STAGES: [Stage; 3] = [Stage::CreateRuntime, Stage::Poststart, Stage::Poststop];

impl Stage {
    /// As config.json names it.
    fn name(self) -> &'static str {
        match self {
            Stage::CreateRuntime => "createRuntime",
            Stage::Poststart => "poststart",
            Stage::Poststop => "poststop",
        }
    }

    /// The method that is called.
    fn event(self) -> &'static str {
        match self {
            Stage::CreateRuntime => "created",
            Stage::Poststart => "started",
            Stage::Poststop => "stopped",
        }
    }

    fn of_status(status: &str) -> Option<Stage> {
        match status {
            "creating" | "created" => Some(Stage::CreateRuntime),
            "running" => Some(Stage::Poststart),
            "stopped" => Some(Stage::Poststop),
            _ => None,
        }
    }
}

/// The state of a container (OCI runtime specification); what else a runtime says in it is passed over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    oci_version: String,
    id: String,
    status: String,
    /// None where it has ended.
    #[serde(default)]
    pid: Option<u32>,
    bundle: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What the service is told.
#[derive(Debug, Serialize)]
struct Payload<'a> {
    event: &'static str,
    id: &'a str,
    status: &'a str,
    pid: Option<u32>,
    bundle: &'a str,
    annotations: &'a BTreeMap<String, String>,
    oci_version: &'a str,
}

/// Runs it.
///
/// # Errors
/// See [`CommandError`]; only where the hook is required.
pub fn run(args: &OciHook, out: &mut Output) -> Result<Exit, CommandError> {
    if args.print_config {
        out.line(json::pretty(&config(args)?)?)?;
        return Ok(Exit::Done);
    }
    let told = read_state().and_then(|state| tell(args, &state));
    match told {
        Ok(()) => Ok(Exit::Done),
        Err(NotTold::Call { callee, error }) => {
            let line = outcome::words(&callee, &error);
            let goes_on = if args.required { "" } else { "; the container goes on without" };
            out.warn(format_args!("{line}{goes_on}"));
            Ok(if args.required { outcome::exit(&Err::<Vec<u8>, _>(error)) } else { Exit::Done })
        }
        Err(NotTold::Command(error)) if args.required => Err(error),
        Err(NotTold::Command(error)) => {
            let line = crate::chain(&error);
            out.warn(format_args!("{line}; the container goes on, and nobody was told of it"));
            Ok(Exit::Done)
        }
    }
}

/// Why the service may not know.
enum NotTold {
    Call { callee: Callee, error: CallError },
    Command(CommandError),
}

impl From<CommandError> for NotTold {
    fn from(error: CommandError) -> NotTold {
        NotTold::Command(error)
    }
}

fn read_state() -> Result<State, NotTold> {
    let mut text = Vec::new();
    let what = || "the state of the container from standard input".to_owned();
    let reading = io::stdin().lock().take(STATE_BYTES_MAX + 1).read_to_end(&mut text);
    reading.map_err(|error| CommandError::Input(what(), error))?;
    Ok(parse(&text)?)
}

fn parse(text: &[u8]) -> Result<State, CommandError> {
    if text.len() as u64 > STATE_BYTES_MAX {
        let what = format!(
            "the state of an OCI container has at most {STATE_BYTES_MAX} bytes, and this has more"
        );
        return Err(CommandError::Usage(what));
    }
    serde_json::from_slice(text).map_err(|error| {
        let what = format!(
            "standard input holds no state of a container ({error}); this command is for the hooks of OCI \
             runtimes, see --print-config"
        );
        CommandError::Usage(what)
    })
}

fn tell(args: &OciHook, state: &State) -> Result<(), NotTold> {
    let stage = args.stage.or_else(|| Stage::of_status(&state.status)).ok_or_else(|| {
        let status = state.status.escape_debug();
        CommandError::Usage(format!("the status `{status}` belongs to no hook; say --stage"))
    })?;
    let method: Method = stage
        .event()
        .parse()
        .map_err(|error| CommandError::Usage(format!("{} is no method: {error}", stage.event())))?;
    let callee = Callee { service: args.service.clone(), method };
    let payload = Payload {
        event: stage.event(),
        id: &state.id,
        status: &state.status,
        pid: state.pid.filter(|pid| *pid != 0),
        bundle: &state.bundle,
        annotations: &state.annotations,
        oci_version: &state.oci_version,
    };
    let payload =
        serde_json::to_vec(&payload).map_err(|error| CommandError::Output(error.into()))?;
    // A runtime that gives up ends us by a signal; then nobody wants the reply.
    let (reader, writer) = io::pipe().map_err(CommandError::Output)?;
    stop::on_first(move || drop(writer)).map_err(CommandError::Output)?;
    let context = Context::root(args.budget).given_up_with(reader.into());
    let called = context.enter(|| {
        let node = args.through.connect().map_err(|error| callee::without_node(&error))?;
        node.service(&callee.service).call(&callee.method, &payload)
    });
    match called {
        Ok(_) => Ok(()),
        Err(error) => Err(NotTold::Call { callee, error }),
    }
}

/// What goes into a bundle's config.json.
fn config(args: &OciHook) -> Result<Value, CommandError> {
    // Runtimes want an absolute path, and know nothing of ours.
    let program = std::env::current_exe()
        .map_err(|error| CommandError::Input("where this program is".to_owned(), error))?;
    let timeout_s = args.budget.as_secs() + TIMEOUT_MORE_S;
    let budget_ms = format!("{}ms", args.budget.as_millis());
    let hook = |stage: Stage| {
        let mut words = vec!["kumo", "oci-hook", "--stage", stage.name()];
        words.extend(["--service", args.service.as_str(), "--budget", &budget_ms]);
        // Of what has ended already nothing can be kept from ending.
        if args.required && stage != Stage::Poststop {
            words.push("--required");
        }
        let run_dir = args.through.run_dir.as_ref().map(|dir| dir.display().to_string());
        let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        words.extend(run_dir.into_iter().flat_map(|dir| ["--run-dir".to_owned(), dir]));
        json!([{ "path": program, "args": words, "timeout": timeout_s }])
    };
    let hooks = STAGES.map(|stage| (stage.name().to_owned(), hook(stage)));
    Ok(json!({ "hooks": serde_json::Map::from_iter(hooks) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_runtimes_are_read_and_others_are_refused() {
        // As runc 1.1, crun 1.8 and youki 0.5 write them.
        let runc =
            br#"{"ociVersion":"1.0.2-dev","id":"a","status":"creating","pid":7,"bundle":"/b"}"#;
        let crun = br#"{"ociVersion":"1.0","id":"a","pid":0,"root":"/b/rootfs","bundle":"/b",
                        "status":"stopped","annotations":{"k":"v"}}"#;
        let youki =
            br#"{"ociVersion":"v1.0.2","id":"a","status":"stopped","pid":null,"bundle":"/b",
                         "annotations":{},"created":null,"creator":0,"useSystemd":false}"#;
        let cases: [(&[u8], Option<Stage>); 3] = [
            (runc, Some(Stage::CreateRuntime)),
            (crun, Some(Stage::Poststop)),
            (youki, Some(Stage::Poststop)),
        ];
        for (text, want) in cases {
            let state = parse(text).expect("a state");
            assert_eq!((state.id.as_str(), state.bundle.as_str()), ("a", "/b"));
            assert_eq!(Stage::of_status(&state.status), want);
        }
        let long = vec![b' '; STATE_BYTES_MAX as usize + 1];
        let bad: [&[u8]; 5] = [b"", b"{}", b"null", b"\xff", &long];
        for text in bad {
            let error = parse(text).expect_err("no state");
            assert_eq!(error.exit(), Exit::Usage);
        }
        assert_eq!(Stage::of_status("paused"), None);
    }
}
