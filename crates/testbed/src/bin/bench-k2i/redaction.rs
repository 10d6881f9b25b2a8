//! What it costs to leave secrets out of command lines: the same table for who may see all and for who may not.

use std::io::{self, Error};
use std::path::Path;
use std::time::Instant;

use kumo_testbed::bench::stats::Times;
use kumo_testbed::{Crowd, Zoo};

use crate::cases::{Case, FULL_PATH, Holds};
use crate::http::{self, Request};
use crate::report::{Pair, pairs};
use crate::server::Server;

/// Most answers of servers that were just started: each takes a start.
const FIRST_ROUNDS_MAX: usize = 5;

/// What a command line must not show, and must where all is shown.
const SECRET: &str = "hunter2";

/// How a server is told to show lines: whole, and without secrets.
const WAYS: [&str; 2] = ["off", "secrets"];

pub(crate) fn measure(programs: &Path, crowd: &Crowd, rounds: usize) -> io::Result<String> {
    let program = programs.join("k2i");
    let start = |way: &str| Server::k2i_with(&program, &["--redact", way]);
    let argument = format!("--password={SECRET}");
    let _secretive = Zoo::sleeper(&[b"app", argument.as_bytes()]);
    let servers = WAYS.map(start).into_iter().collect::<io::Result<Vec<_>>>()?;
    for (way, server) in WAYS.iter().zip(&servers) {
        let answer = http::fetch(server.address, &format!("{FULL_PATH}&max_age_ms=0"))?;
        if String::from_utf8_lossy(&answer).contains(SECRET) != (*way == "off") {
            return Err(Error::other(format!("`--redact {way}` shows other than it says")));
        }
    }
    let mut cases = Vec::new();
    for age_ms in [0, 1_000] {
        for server in &servers {
            let request = Request::get(format!("{FULL_PATH}&max_age_ms={age_ms}"));
            let case = Case::asks("full table", server, request, Holds::Rows);
            cases.push(if age_ms > 0 { case.asks_again() } else { case });
        }
    }
    for case in &cases {
        case.check(crowd, None)?;
    }
    let timed = crate::time_all(&cases, rounds)?;
    drop(servers);

    let mut first = [Times::default(), Times::default()];
    for round in 0..rounds.min(FIRST_ROUNDS_MAX) {
        for index in crate::shuffled(WAYS.len(), round as u64) {
            let server = start(WAYS[index])?;
            let began = Instant::now();
            http::fetch(server.address, &format!("{FULL_PATH}&max_age_ms=0"))?;
            first[index].0.push(began.elapsed());
        }
    }
    let [whole, redacted] = first;
    let mut all = vec![Pair { name: "full table, the first of a server", whole, redacted }];
    let names = ["full table, a new scan", "full table, shared scan"];
    for (name, pair) in names.into_iter().zip(timed.chunks_exact(2)) {
        let [whole, redacted] = [&pair[0], &pair[1]].map(|timed| timed.times.clone());
        all.push(Pair { name, whole, redacted });
    }
    Ok(pairs(&all))
}
