//! The same without a screen: one reading after the other, as text or as JSON, for pipes and logs.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::data::{CpuShare, Snapshot};
use super::fetch::Fetcher;
use super::header;
use super::state::State;
use super::view;
use crate::chain;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::json;
use crate::output::Output;

/// The shortest time over which the use of CPUs means something: twenty ticks of the kernel's clock.
const CPU_TIME_MIN: Duration = Duration::from_millis(200);

/// A header for people is not stretched over what a pipe takes.
const HEADER_WIDTH_MAX: u16 = 100;

/// How many readings, and how they are written.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    /// Ends after so many; goes on for ever without.
    pub(super) readings: Option<u64>,
    /// The most rows of each.
    pub(super) rows_max: Option<u32>,
    /// One JSON object a reading and line.
    pub(super) json: bool,
    /// Of a replay: the moments that are read.
    pub(super) moments: Vec<i64>,
}

/// Writes readings of the table that `state` stands for.
///
/// # Errors
/// The source fails at the first reading, or nobody reads the answer any more.
pub(super) fn run(
    batch: Batch,
    mut state: State,
    mut fetcher: Fetcher,
    out: &mut Output,
) -> Result<Exit, CommandError> {
    let started = Instant::now();
    if state.replay.is_none() {
        fetcher.begin()?;
        thread::sleep(CPU_TIME_MIN);
    }
    // What was is read record by record; nobody watches, so there is nothing to wait for.
    let mut moments = batch.moments.into_iter();
    if let (Some(replay), Some(first)) = (&mut state.replay, moments.next()) {
        replay.at_ms = first;
    }
    let mut reading = 0;
    let mut exit;
    loop {
        let began = Instant::now();
        let mut request = state.request();
        request.table.limit = batch.rows_max.map(|rows| rows.to_string());
        let snapshot = match fetcher.fetch(&request, started.elapsed()) {
            Ok(snapshot) => snapshot,
            Err(error) if reading == 0 => return Err(error),
            // The next one may succeed: a node restarts. A log goes on then.
            Err(error) => {
                out.warn(chain(&error));
                if let Some(replay) = &mut state.replay {
                    let Some(next) = moments.next() else { return Ok(Exit::Partial) };
                    replay.at_ms = next;
                    continue;
                }
                thread::sleep(state.delay.saturating_sub(began.elapsed()));
                continue;
            }
        };
        state.now = started.elapsed();
        state.snapshot = Some(Box::new(snapshot));
        state.arrange();
        if batch.json {
            json_line(&state, out)?;
        } else {
            text(&mut state, reading > 0, out)?;
        }
        let asked = state.snapshot.as_ref().and_then(|snapshot| snapshot.fleet.as_ref());
        exit = asked.map_or(Exit::Done, |fleet| fleet.asked.tell(Exit::Done, out));
        out.flush()?;
        reading += 1;
        if batch.readings.is_some_and(|max| reading >= max) {
            return Ok(exit);
        }
        if let Some(replay) = &mut state.replay {
            let Some(next) = moments.next() else { return Ok(exit) };
            replay.at_ms = next;
            continue;
        }
        thread::sleep(state.delay.saturating_sub(began.elapsed()));
    }
}

fn text(state: &mut State, is_next: bool, out: &mut Output) -> io::Result<()> {
    if is_next {
        out.line("")?;
    }
    let width = state.size.0;
    state.size.0 = width.min(HEADER_WIDTH_MAX);
    let header = header::lines(state);
    state.size.0 = width;
    for line in header.iter().map(ToString::to_string) {
        out.line(line.trim_end())?;
    }
    out.line("")?;
    for line in view::lines(state) {
        out.line(line.to_string().trim_end())?;
    }
    Ok(())
}

fn json_line(state: &State, out: &mut Output) -> Result<(), CommandError> {
    let Some(snapshot) = &state.snapshot else { return Ok(()) };
    out.line(json::line(&json_of(snapshot))?)?;
    Ok(())
}

/// A reading as one object: what an answer of the API says of itself, then counts, host and rows.
fn json_of(snapshot: &Snapshot) -> Value {
    let mut object = match serde_json::to_value(&snapshot.meta) {
        Ok(Value::Object(meta)) => meta,
        _ => Map::new(),
    };
    if let Some(fleet) = &snapshot.fleet {
        // These are of one host.
        for name in ["dc", "host", "boot_id", "collector", "generation", "scan_us", "columns"] {
            object.shift_remove(name);
        }
        object.insert("hosts".to_owned(), json!(fleet.asked));
    }
    let share = |share: &CpuShare| {
        let CpuShare { user, system, iowait, steal } = share;
        json!({ "busy": share.busy(), "user": user, "system": system, "iowait": iowait,
                "steal": steal })
    };
    let tasks = &snapshot.tasks;
    object.insert(
        "tasks".to_owned(),
        json!({ "processes": tasks.total(), "threads": tasks.threads,
                "by_state": tasks.by_state }),
    );
    let each = |(cpu, one): &(u32, CpuShare)| {
        let mut object = share(one);
        object["cpu"] = json!(cpu);
        object
    };
    let host = snapshot.host.as_ref().map(|host| {
        json!({
            "cpu_percent": host.cpu_total.as_ref().map(share),
            "cpu_percent_each": host.cpu_each.iter().map(each).collect::<Vec<_>>(),
            "report": host.report,
        })
    });
    if let Some(fleet) = &snapshot.fleet {
        let all = json!({
            "cpu_percent": fleet.cpu.as_ref().map(share),
            "cpus": fleet.cpus,
            "load1": fleet.load,
            "memory": fleet.memory,
        });
        object.insert("hosts_now".to_owned(), all);
    } else {
        object.insert("host_now".to_owned(), json!(host));
    }
    let rows = snapshot.rows.iter().map(|proc| Value::Object(proc.row().clone())).collect();
    object.insert("rows".to_owned(), Value::Array(rows));
    Value::Object(object)
}
