//! One question to many, timed and checked.

use std::collections::BTreeMap;
use std::io::{self, Error, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kumo_abi::cluster::{HostOutcome, Outcome};
use kumo_abi::merge::Plan;
use kumo_abi::{HostId, QueryText};
use kumo_fabric::{Ask, Fabric};
use serde_json::Value;
use tokio::runtime::Runtime;

/// A node that is silent for so long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// What `kumo top` asks for.
pub(crate) const TOP_COLUMNS: &str =
    "id,ppid,pid,user,priority,nice,vsize,rss,shared,state,threads,cpu,mem,time,cmdline";

/// The rows of it.
pub(crate) const TOP_ROWS: usize = 20;

/// The query behind it.
pub(crate) fn top() -> QueryText {
    QueryText {
        columns: Some(TOP_COLUMNS.to_owned()),
        sort: Some("-cpu".to_owned()),
        limit: Some(TOP_ROWS.to_string()),
        ..QueryText::default()
    }
}

/// The address of a query; none of its values needs to be encoded.
pub(crate) fn target(path: &str, query: &QueryText) -> String {
    let parts = [("columns", &query.columns), ("sort", &query.sort), ("limit", &query.limit)];
    let parts =
        parts.iter().filter_map(|(name, value)| Some(format!("{name}={}", (*value).as_ref()?)));
    format!("{path}?{}", parts.collect::<Vec<_>>().join("&"))
}

/// What came of a question over the fabric.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// When the outcome of each host came that answered.
    pub(crate) live: Vec<Duration>,
    /// When the last part came.
    pub(crate) whole: Duration,
    pub(crate) parts: usize,
    pub(crate) bytes: usize,
    pub(crate) missing: BTreeMap<HostId, Outcome>,
}

/// Asks `hosts` by `fabric`, as a node asks them for the top, and checks the rows.
pub(crate) fn gather(
    runtime: &Runtime,
    fabric: &Fabric,
    hosts: Vec<HostId>,
    merge: bool,
    wait_ms: u64,
) -> io::Result<Gathered> {
    let plan = Plan::new(&top()).map_err(Error::other)?;
    let request = kumo_node::simulated::rows_question(target("/v2/proc", plan.for_hosts()));
    let asked = hosts.len();
    let deadline = Duration::from_millis(wait_ms);
    let ask = Ask { request, hosts, deadline, merge, idempotent: true };
    let mut gathered = Gathered::default();
    let answers: Vec<Bytes> = runtime.block_on(async {
        let began = Instant::now();
        let mut answers = Vec::new();
        let mut parts = fabric.gather(ask);
        while let Some(part) = parts.recv().await {
            let at = began.elapsed();
            gathered.parts += 1;
            for HostOutcome { id, outcome } in part.outcomes {
                if outcome == Outcome::Answered {
                    gathered.live.push(at);
                } else {
                    gathered.missing.insert(id, outcome);
                }
            }
            answers.extend(part.answer);
        }
        gathered.whole = began.elapsed();
        answers
    });
    gathered.bytes = answers.iter().map(Bytes::len).sum();
    let heard = gathered.live.len();
    if heard + gathered.missing.len() != asked {
        let missing = gathered.missing.len();
        return Err(Error::other(format!(
            "{heard} and {missing} of {asked} hosts have an outcome"
        )));
    }
    let finished = plan.finish(&answers);
    if finished.hosts.len() != heard || !finished.spoiled.is_empty() {
        let hosts = finished.hosts.len();
        return Err(Error::other(format!("the answers speak for {hosts} hosts of {heard}")));
    }
    let rows = finished.rows.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let rows = rows.map(serde_json::from_slice).collect::<Result<Vec<Value>, _>>()?;
    check_top(&rows)?;
    Ok(gathered)
}

/// Checks that these are the first rows by CPU use, and say whose they are.
pub(crate) fn check_top(rows: &[Value]) -> io::Result<()> {
    let cpu = |row: &Value| row["cpu"].as_f64().unwrap_or(f64::NEG_INFINITY);
    let falls = rows.windows(2).all(|pair| cpu(&pair[0]) >= cpu(&pair[1]));
    let named = rows.iter().all(|row| row["dc"].is_string() && row["host"].is_string());
    if rows.len() == TOP_ROWS && falls && named && cpu(&rows[0]) > 0.0 {
        return Ok(());
    }
    Err(Error::other(format!("these are no {TOP_ROWS} rows by CPU use: {rows:?}")))
}

/// What came of a question over HTTP.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// When the first line of the body was whole.
    pub(crate) first: Duration,
    pub(crate) whole: Duration,
    pub(crate) body: Vec<u8>,
}

/// Asks a node on its socket.
pub(crate) fn fetch(socket: &Path, target: &str, accept: &str) -> io::Result<Fetched> {
    let began = Instant::now();
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let head = format!("GET {target} HTTP/1.0\r\nhost: localhost\r\naccept: {accept}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut bytes = Vec::with_capacity(1 << 20);
    let mut piece = vec![0; 256 << 10];
    let (mut body_at, mut first) = (None, None);
    loop {
        let len = stream.read(&mut piece)?;
        let searched = bytes.len();
        bytes.extend_from_slice(&piece[..len]);
        if body_at.is_none() {
            body_at = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        }
        if let (Some(at), None) = (body_at, first)
            && bytes[at.max(searched)..].contains(&b'\n')
        {
            first = Some(began.elapsed());
        }
        if len == 0 {
            break;
        }
    }
    let whole = began.elapsed();
    let at = body_at.ok_or_else(|| Error::other("this is no HTTP answer"))?;
    let body = bytes.split_off(at);
    if !bytes.starts_with(b"HTTP/1.0 200") && !bytes.starts_with(b"HTTP/1.1 200") {
        let said = String::from_utf8_lossy(&body[..body.len().min(400)]).into_owned();
        return Err(Error::other(format!("{target}: {said}")));
    }
    Ok(Fetched { first: first.unwrap_or(whole), whole, body })
}
