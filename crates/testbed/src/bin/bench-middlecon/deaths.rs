//! From `kill -9` of a callee until its caller knows what became of its call.
//!
//! The callee and the caller are processes of their own, and who kills is a third one. Times are those of the
//! clock that all of this machine share.

use std::io::{self, BufRead as _};
use std::path::Path;
use std::time::Duration;

use kumo_abi::call::{Cause, ServiceName};
use middlecon::CallError;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

use crate::plan::Contender;
use crate::role::Where;
use crate::ways::ours;
use crate::world::{Cpus, World};

/// Longest wait for a call to reach its handler, and for what became of it.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// A call that was not executed is made again so much later.
const AGAIN: Duration = Duration::from_millis(1);

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Milliseconds of each death, from the moment before the signal. Each must be told as unknown, because the
/// callee died: its handler runs.
pub(crate) fn measure(
    world: &World<'_>,
    contender: &Contender,
    dir: &Path,
    cpus: Cpus,
    times: usize,
) -> io::Result<Vec<f64>> {
    let mut took_ms = Vec::with_capacity(times);
    let mut mourner = None;
    for _ in 0..times {
        let (callee, at) = world.callee("victim", contender, dir, cpus)?;
        if mourner.is_none() {
            mourner = Some(world.caller("mourner", contender, &at)?);
        }
        let Some(caller) = &mut mourner else { continue };
        caller.tell("call")?;
        let taken = callee.line(WAIT_MAX)?;
        if taken != "taken" {
            return Err(io::Error::other(taken));
        }
        let began_ns = now_ns();
        callee.signal(Signal::KILL)?;
        let told = caller.line(WAIT_MAX)?;
        let ended_ns = told.strip_prefix("died ").and_then(|ns| ns.parse::<u64>().ok());
        let ended_ns =
            ended_ns.ok_or_else(|| io::Error::other(format!("it was told as: {told}")))?;
        took_ms.push(ended_ns.saturating_sub(began_ns) as f64 / 1e6);
    }
    Ok(took_ms)
}

fn service(at: &Where) -> io::Result<ServiceName> {
    format!("bench-{}-victim", at.id).parse().map_err(io::Error::other)
}

/// A callee that says when it is asked, and then never answers.
pub(crate) fn victim(at: &Where, say: fn(&str)) -> io::Result<()> {
    let node = ours::connect(&at.run_dir)?;
    let method = "hang".parse().map_err(io::Error::other)?;
    let server = node.serve(&service(at)?).method(&method, move |_| {
        say("taken");
        loop {
            std::thread::park();
        }
    });
    let _server = server.start().map_err(io::Error::other)?;
    say("ready");
    loop {
        std::thread::park();
    }
}

/// A caller that says what became of its calls, and when it knew.
pub(crate) fn mourner(at: &Where, say: fn(&str)) -> io::Result<()> {
    let node = ours::connect(&at.run_dir)?;
    let (service, method) =
        (node.service(&service(at)?), "hang".parse().map_err(io::Error::other)?);
    say("ready");
    for line in io::stdin().lock().lines() {
        line?;
        let until_ns = now_ns() + WAIT_MAX.as_nanos() as u64;
        loop {
            let result = service.request(&method).wait_for_place().call(b"");
            let ended_ns = now_ns();
            match result {
                Err(CallError::Unknown { cause: Cause::Died, .. }) => {
                    say(&format!("died {ended_ns}"));
                }
                // The directory may still show the one that died last, or not yet its follower.
                Err(CallError::NotExecuted { .. }) if ended_ns < until_ns => {
                    std::thread::sleep(AGAIN);
                    continue;
                }
                other => say(&format!("{other:?}")),
            }
            break;
        }
    }
    Ok(())
}
