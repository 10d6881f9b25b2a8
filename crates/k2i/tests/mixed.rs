//! Many questions at once that differ in what they read of each process.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use kumo_testbed::{Mix, Zoo};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{K2i, ask, block_on};

const CLIENTS: usize = 1_000;

/// Processes that are asked for, whatever else runs.
const ROWS: usize = 30;

#[test]
fn a_thousand_questions_of_different_parts() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: Some(CLIENTS as u64 + 200), ..limit };
    setrlimit(Resource::Nofile, raised).expect("room for them");
    // Each needs what the one before did not: a table of one cannot answer the next.
    let columns =
        ["pid,comm", "pid,argv,cgroup", "pid,user,rss", "pid,uid,swap,cap_eff", "pid,cpu"];
    let crowd = Zoo::crowd(ROWS, Mix { threaded_each: 10, busy_each: 0 });
    let pids: Vec<_> = crowd.pids().iter().map(ToString::to_string).collect();
    let filter = format!("pid%20in%20[{}]", pids.join(","));
    for collector in ["proc", "auto"] {
        let k2i = K2i::with(&["--listen", "127.0.0.1:0", "--collector", collector]);
        let replies = block_on(async {
            let one = |client: usize| {
                let address = k2i.address().clone();
                let columns = columns[client % columns.len()];
                let target = format!("/v2/proc?columns={columns}&filter={filter}&max_age_ms=0");
                tokio::spawn(async move { (columns, ask(&address, "GET", &target, &[]).await) })
            };
            let mut replies = Vec::new();
            for task in (0..CLIENTS).map(one).collect::<Vec<_>>() {
                replies.push(task.await.unwrap());
            }
            replies
        });
        for (columns, reply) in replies {
            let answer = reply.unwrap().expect(200).json();
            let rows = answer["rows"].as_array().unwrap();
            assert_eq!(rows.len(), ROWS, "{columns} by {collector}");
            let names: Vec<_> = columns.split(',').collect();
            for row in rows {
                assert_eq!(row.as_object().unwrap().keys().collect::<Vec<_>>(), names);
            }
        }
    }
}
