//! What a record of the process table costs and takes, and how soon a moment of the past is shown.

use std::fmt::Write as _;
use std::io::{self, Error};
use std::path::Path;
use std::time::{Duration, Instant};

use kumo_testbed::Crowd;
use kumo_testbed::bench::stats::{Times, significant};
use serde_json::Value;

use crate::cases::{Case, FULL_PATH, Holds};
use crate::http::{self, Request};
use crate::report::timed_table;
use crate::server::Server;

/// As long as a node waits between two records when nobody says otherwise.
const PERIOD: Duration = Duration::from_secs(5);

/// A new file is begun, with a whole table, when the one before it spans a twelfth of an hour.
const WHOLE_EACH: Duration = Duration::from_secs(300);

/// Longest wait for a record beside the time between two.
const RECORD_WAIT_MAX: Duration = Duration::from_secs(30);

/// Between two looks whether there is a new record; they cost no scan.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

pub(crate) fn measure(
    programs: &Path,
    crowd: &Crowd,
    rounds: usize,
    wall: Duration,
) -> io::Result<String> {
    let dir = tempfile::Builder::new().prefix("kumo-bench-").tempdir()?;
    let period = format!("{}s", PERIOD.as_secs());
    let folder = dir.path().join("history");
    let options = ["--history-period".as_ref(), period.as_ref(), "--history-dir".as_ref()];
    let options = [&options[..], &[folder.as_os_str()]].concat();
    let server = Server::k2i_with(&programs.join("k2i"), &options)?;
    // The first record is a whole table, and what follows is what has changed: three are the least.
    let changes = (wall.as_secs() / PERIOD.as_secs()).max(2);
    let first = after(&server, 0)?;
    let mut cpu = vec![first.cpu];
    let mut last = first;
    while last.records < first.records + changes {
        last = after(&server, last.records)?;
        cpu.push(last.cpu);
    }
    let whole_bytes = first.bytes as f64 / first.records as f64;
    let changed_bytes = (last.bytes - first.bytes) as f64 / (last.records - first.records) as f64;
    let in_hour = |each: Duration| Duration::from_secs(3_600).as_secs_f64() / each.as_secs_f64();
    let (records, wholes) = (in_hour(PERIOD), in_hour(WHOLE_EACH));
    let hour_bytes = wholes * whole_bytes + (records - wholes) * changed_bytes;
    let median = |times: &[Duration]| Times(times.to_vec()).median().unwrap_or_default();
    let ms = |time: Duration| significant(time.as_secs_f64() * 1e3);
    let mut text = "| a record | CPU ms, median | KiB |\n|---|---:|---:|\n".to_owned();
    let mut row = |name: &str, times: &[Duration], bytes: f64| {
        let _ =
            writeln!(text, "| {name} | {} | {} |", ms(median(times)), significant(bytes / 1024.0));
    };
    row("the first: a whole table, all new", &cpu[..1], whole_bytes);
    row(&format!("what has changed after {period}"), &cpu[1..], changed_bytes);
    let share = 100.0 * median(&cpu[1..]).as_secs_f64() / PERIOD.as_secs_f64();
    let _ = writeln!(
        text,
        "\nAn hour of records every {period}, {wholes} of the {records} whole: {} MiB; recording takes {} % \
         of one CPU. {} records were looked at.\n",
        significant(hour_bytes / f64::from(1 << 20)),
        significant(share),
        cpu.len(),
    );
    let reach_s = PERIOD.as_secs() * (changes - 1);
    text += &moments(&server, crowd, rounds, reach_s)?;
    Ok(text)
}

/// The table of then: of two moments in turn, so that none is remembered, and of one again and again.
fn moments(server: &Server, crowd: &Crowd, rounds: usize, reach_s: u64) -> io::Result<String> {
    let request = |at: &str| Request::get(format!("{FULL_PATH}{at}"));
    let now =
        Case::asks("the table of now, a new scan", server, request("&max_age_ms=0"), Holds::Rows);
    let early = Case::asks("", server, request(&format!("&at=-{reach_s}s")), Holds::Rows);
    let late = Case::asks("", server, request("&at=now"), Holds::Rows);
    let again = Case::asks("", server, request("&at=now"), Holds::Rows).asks_again();
    for case in [&now, &early, &late] {
        case.check(crowd, None)?;
    }
    let mut timed = [
        now.empty(),
        early.empty().named(format!("the table of {reach_s} s ago, after one of another moment")),
        late.empty().named("the table of the last record, likewise".to_owned()),
        again.empty().named("the table of the last record, again".to_owned()),
    ];
    for _ in 0..rounds {
        // In this order, so that each but the last asks for another moment than the one before.
        for (case, timed) in [&now, &early, &late, &again].into_iter().zip(&mut timed) {
            let (time, bytes) = case.time()?;
            timed.times.0.push(time);
            timed.bytes = bytes;
        }
    }
    Ok(timed_table(&timed, "the table of now"))
}

/// What there is after a record.
#[derive(Clone, Copy, Debug)]
struct Recorded {
    records: u64,
    bytes: u64,
    cpu: Duration,
}

/// Waits until there are more than `records`.
fn after(server: &Server, records: u64) -> io::Result<Recorded> {
    let until = Instant::now() + PERIOD + RECORD_WAIT_MAX;
    loop {
        let report: Value = serde_json::from_slice(&http::fetch(server.address, "/v2/history")?)?;
        let number = |name: &str| report[name].as_u64().unwrap_or(0);
        if number("records") > records {
            return Ok(Recorded {
                records: number("records"),
                bytes: number("bytes"),
                cpu: Duration::from_micros(number("record_cpu_us")),
            });
        }
        if Instant::now() > until {
            return Err(Error::other(format!("nothing is recorded: {report}")));
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}
