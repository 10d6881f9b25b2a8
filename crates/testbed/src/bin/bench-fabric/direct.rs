//! The baseline: one plain HTTP request to each host at once, and the answers merged here. No TLS, no
//! names, no gateways: what a script could do if each host had a port open for it.

use std::io::{self, Error};
use std::time::{Duration, Instant};

use kumo_abi::merge::Plan;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::ask;

/// Asks all for the top; how long until the merged rows are there.
pub(crate) fn top(runtime: &Runtime, ports: &[u16]) -> io::Result<Duration> {
    let plan = Plan::new(&ask::top()).map_err(Error::other)?;
    let target = ask::target("/v2/proc", plan.for_hosts());
    let began = Instant::now();
    let mut rows: Vec<Value> = runtime.block_on(async {
        let mut asking = JoinSet::new();
        for port in ports.iter().copied() {
            let head = format!("GET {target} HTTP/1.0\r\nhost: localhost\r\n\r\n");
            asking.spawn(async move {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
                stream.write_all(head.as_bytes()).await?;
                let mut bytes = Vec::with_capacity(16 << 10);
                stream.read_to_end(&mut bytes).await?;
                let at = bytes.windows(4).position(|four| four == b"\r\n\r\n");
                let at = at.ok_or_else(|| Error::other("this is no HTTP answer"))? + 4;
                Ok::<Value, Error>(serde_json::from_slice(&bytes[at..])?)
            });
        }
        let mut rows = Vec::new();
        while let Some(answer) = asking.join_next().await {
            let mut answer = answer.map_err(Error::other)??;
            if let Value::Array(some) = answer["rows"].take() {
                rows.extend(some);
            }
        }
        Ok::<_, Error>(rows)
    })?;
    if rows.len() != ports.len() * ask::TOP_ROWS {
        return Err(Error::other(format!("{} rows of {} hosts", rows.len(), ports.len())));
    }
    let cpu = |row: &Value| row["cpu"].as_f64().unwrap_or(f64::NEG_INFINITY);
    rows.sort_by(|a, b| cpu(b).total_cmp(&cpu(a)));
    rows.truncate(ask::TOP_ROWS);
    let took = began.elapsed();
    ask::check_top(&rows)?;
    Ok(took)
}
