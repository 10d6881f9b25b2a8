//! History over HTTP, through the deaths of its server.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use kumo_testbed::Zoo;
use serde_json::Value;
use support::{K2i, refusal};

/// What any one step of a test may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn k2i(dir: &Path) -> K2i {
    let dir = dir.to_str().expect("plain text");
    K2i::with(&["--listen", "127.0.0.1:0", "--history-dir", dir, "--history-period", "1s"])
}

/// Waits until so many records are there.
fn records(k2i: &K2i, least: u64) -> Value {
    let began = Instant::now();
    loop {
        let report = k2i.json("/v2/history");
        if report["records"].as_u64().expect("a number") >= least {
            return report;
        }
        assert!(began.elapsed() < PATIENCE, "{report}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn who_was_there_before_a_kill_is_told_after_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sleeper = Zoo::sleeper(&[b"of the past"]);
    let first = k2i(dir.path());
    let before = records(&first, 2);
    assert_eq!(before["state"], "recording", "{before}");
    assert_eq!(before.get("moments"), None, "they are many, and were not asked for");
    let each = first.json("/v2/history?moments=1");
    let moments = each["moments"].as_array().expect("a list");
    assert!(
        moments.len() >= 2 && moments.len() as u64 == each["records"].as_u64().expect("a number"),
        "{each}"
    );
    // Each shows another scan. Of when that was is steered with the clock, by microseconds.
    let scan_of = |nth: usize| {
        let target = format!("/v2/proc?limit=1&at={}", moments[nth]);
        first.json(&target)["generation"].as_u64().expect("a number")
    };
    assert!(scan_of(0) < scan_of(1), "{each}");
    let at = before["to"].as_str().expect("a time").to_owned();
    drop(first); // By SIGKILL.
    sleeper.kill();
    let pid = sleeper.pid();

    let second = k2i(dir.path());
    let after = records(&second, before["records"].as_u64().expect("a number") + 1);
    // Moments are kept by the clock of the boot, and the wall's is steered meanwhile.
    let second_of =
        |report: &serde_json::Value| report["from"].as_str().map(|at| at[..19].to_owned());
    assert_eq!(second_of(&after), second_of(&before), "{after}");
    let then = second.json(&format!("/v2/proc/{pid}?at={at}&columns=pid,cmdline,cpu"));
    assert_eq!((&then["pid"], &then["cmdline"]), (&pid.into(), &"of the past".into()));
    let rows = second.json(&format!("/v2/proc?at={at}&columns=pid&filter=pid%3D%3D{pid}"));
    assert_eq!(rows["rows"], serde_json::json!([{ "pid": pid }]));
    assert!(rows["as_of"].as_str().expect("a time") <= at.as_str(), "{rows}");
    second.get(&format!("/v2/proc/{pid}?at=now")).expect(404);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let k2i = k2i(dir.path());
    records(&k2i, 1);
    let cases = [
        ("/v2/proc?at=12:30", 400, "needs a time zone"),
        ("/v2/proc?at=soon", 400, "is no time"),
        ("/v2/proc?at=now&ended=1", 400, "ask for one of both"),
        ("/v2/proc?at=now&since=0", 400, "a moment does not change"),
        ("/v2/proc/stream?at=now", 400, "a moment does not change"),
        ("/v2/proc/1/tree?at=now", 400, "a tree is of now"),
        ("/v2/proc?at=-1h", 404, "history begins at"),
        ("/v2/proc?at=2099-01-01T00:00:00Z", 404, "in the future"),
        ("/v2/history?x=1", 400, "unknown parameter"),
    ];
    for (target, status, want) in cases {
        let problem = k2i.get(target).expect(status).json();
        let detail = problem["detail"].as_str().expect("a reason");
        assert!(detail.contains(want), "{target}: {detail:?} does not say {want:?}");
    }
    let without = K2i::spawn();
    assert_eq!(without.json("/v2/history")["state"], "off");
    let problem = without.get("/v2/proc?at=-1s").expect(501).json();
    assert!(problem["detail"].as_str().is_some_and(|why| why.contains("keeps no history")));
    for (option, value) in [("--history-period", "0s"), ("--history-size", "1K")] {
        let said = refusal(&["--listen", "127.0.0.1:0", option, value]);
        assert!(said.contains(option), "{said}");
    }
}
