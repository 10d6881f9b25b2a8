//! The same rows in SQL and by `/v2/proc`, each from a new scan.

use std::io;
use std::path::Path;

use kumo_testbed::Crowd;
use serde_json::{Value, json};

use crate::cases::{Case, Holds, rows};
use crate::http::{self, Request};
use crate::report::timed_table;
use crate::server::Server;

/// What is asked: its name, the address, the query, and how many rows come; all of the crowd for none.
const QUESTIONS: [(&str, &str, &str, Option<usize>); 3] = [
    (
        "all rows, ten columns",
        "/v2/proc?columns=pid,comm,cmdline,state,uid,rss,vsize,threads,nice,ppid",
        "SELECT pid, name, cmdline, state, uid, resident_size, total_size, threads, nice, parent \
         FROM processes",
        None,
    ),
    (
        "the 20 with the most memory",
        "/v2/proc?columns=pid,comm,cmdline,rss&sort=-rss&limit=20",
        "SELECT pid, name, cmdline, resident_size FROM processes ORDER BY resident_size DESC LIMIT 20",
        Some(20),
    ),
    (
        "number and memory by user",
        "/v2/proc?columns=user,count(),sum(rss)&group=user",
        "SELECT user, count(*), sum(resident_size) FROM processes GROUP BY user",
        Some(1),
    ),
];

pub(crate) fn measure(programs: &Path, crowd: &Crowd, rounds: usize) -> io::Result<String> {
    let server = Server::k2i(&programs.join("k2i"), "auto")?;
    let mut text = String::new();
    for (name, path, query, count) in QUESTIONS {
        let holds = count.map_or(Holds::Crowd, Holds::Count);
        let get = Request::get(format!("{path}&max_age_ms=0"));
        let body = json!({ "query": query }).to_string();
        let post = Request { path: "/v2/sql".to_owned(), body: Some(body) };
        same_rows(&server, &get, &post, crowd)?;
        let cases = [
            Case::asks(&format!("`/v2/proc`, {name}"), &server, get, holds),
            Case::asks(&format!("`/v2/sql`, {name}"), &server, post, holds),
        ];
        for case in &cases {
            case.check(crowd, None)?;
        }
        let table = timed_table(&crate::time_all(&cases, rounds)?, "`/v2/proc`");
        // One table: each question's baseline is the first of its two rows.
        let lines = if text.is_empty() { 0 } else { 2 };
        text.extend(table.split_inclusive('\n').skip(lines));
    }
    Ok(text)
}

/// Looks whether both ways tell the same of the crowd, as far as rows have a number of a process.
fn same_rows(server: &Server, get: &Request, post: &Request, crowd: &Crowd) -> io::Result<()> {
    let told = |request: &Request| -> io::Result<Vec<(i64, String)>> {
        let answer: Value = serde_json::from_slice(&http::ask(server.address, request)?)?;
        let of = |row: &Value| Some((row["pid"].as_i64()?, row["cmdline"].as_str()?.to_owned()));
        let is_ours = |pid: i64| crowd.pids().iter().any(|ours| i64::from(*ours) == pid);
        Ok(rows(&answer).iter().filter_map(of).filter(|(pid, _)| is_ours(*pid)).collect())
    };
    let (mut by_get, mut by_sql) = (told(get)?, told(post)?);
    by_get.sort_unstable();
    by_sql.sort_unstable();
    // Of the largest another one may be among them a moment later.
    if by_get.len() == crowd.pids().len() && by_get != by_sql {
        return Err(io::Error::other("/v2/sql tells of other processes than /v2/proc"));
    }
    Ok(())
}
