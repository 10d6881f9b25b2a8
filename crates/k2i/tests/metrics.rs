//! `/metrics` as a scraper sees it: the built binary on a free port.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kumo_testbed::Zoo;
use support::K2i;

const OPEN_METRICS: (&str, &str) =
    ("accept", "application/openmetrics-text;version=1.0.0,*/*;q=0.1");

/// What any one step may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn scrape(k2i: &K2i) -> String {
    let reply = k2i.get_with("/metrics", &[OPEN_METRICS]).expect(200);
    String::from_utf8(reply.body.to_vec()).unwrap()
}

/// The value of the only sample that begins like this.
#[track_caller]
fn value(text: &str, begin: &str) -> f64 {
    find(text, begin).unwrap_or_else(|| panic!("no {begin} in {text}"))
}

fn find(text: &str, begin: &str) -> Option<f64> {
    let is_it = |line: &&str| {
        let rest = line.strip_prefix(begin);
        rest.is_some_and(|rest| rest.starts_with([' ', '{', ',', '}']))
    };
    let mut lines = text.lines().filter(is_it);
    let line = lines.next()?;
    assert_eq!(lines.next(), None, "{begin} stands once");
    Some(line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

/// Scrapes until there is such a sample: a table may be a second old.
#[track_caller]
fn until(k2i: &K2i, begin: &str) -> String {
    let begun = Instant::now();
    loop {
        let text = scrape(k2i);
        if find(&text, begin).is_some() {
            return text;
        }
        assert!(begun.elapsed() < PATIENCE, "{begin} never came: {text}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_scrape_tells_of_the_host_its_groups_and_the_server() {
    let k2i = K2i::with(&["--listen", "127.0.0.1:0", "--metrics-top", "200", "--dc", "tokyo"]);
    let hostile = Zoo::named(b"a\"b\\c\nd\x1b\xff");
    // As it is shown: with escapes, and without what a terminal obeys.
    let name = "kumo_group_processes{comm=\"a\\\"b\\\\c\u{fffd}d\u{fffd}\u{fffd}\"";
    let text = until(&k2i, name);
    assert!((value(&text, name) - 1.0).abs() < 0.1, "pid {}", hostile.pid());
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    let host = k2i.json("/v2/host");
    let total = host["memory"]["total"].as_f64().unwrap();
    assert!((value(&text, "kumo_host_memory_size_bytes") - total).abs() < 1.0);
    assert!(value(&text, "kumo_host_cpu_seconds_total{mode=\"idle\"") > 0.0);
    let uptime = value(&text, "kumo_host_uptime_seconds");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let boot = value(&text, "kumo_host_boot_time_seconds");
    assert!((boot + uptime - now.as_secs_f64()).abs() < 30.0, "{boot} + {uptime}");
    assert!(text.contains("kumo_host_info{dc=\"tokyo\","), "{text}");
    assert!(value(&text, "process_resident_memory_bytes") > 1e6);
    assert!(value(&text, "process_open_fds") > 3.0);
    assert!(value(&text, "kumo_agent_connections") >= 1.0);
    assert!(value(&text, "kumo_agent_scan_seconds_count") >= 1.0);
    assert!(value(&text, "kumo_agent_requests_total") >= 1.0);

    k2i.get("/nothing").expect(404);
    let later = scrape(&k2i);
    assert!(value(&later, "kumo_agent_responses_total{status=\"4xx\"") >= 1.0);
    assert!(value(&later, "kumo_agent_responses_total{status=\"2xx\"") >= 2.0);

    // The same at both addresses, and in both forms.
    let classic = k2i.get("/v2/metrics").expect(200);
    assert_eq!(classic.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(!String::from_utf8_lossy(&classic.body).contains("# EOF"));
    let form = k2i.get_with("/metrics", &[OPEN_METRICS]).expect(200);
    let want = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(form.header("content-type"), want);
    k2i.get_with("/metrics", &[("accept", "application/json")]).expect(406);
    k2i.get("/metrics?x=1").expect(400);
    k2i.ask("POST", "/metrics", &[]).expect(405);
}

#[test]
fn no_series_stands_twice_and_families_are_whole() {
    // Without events: a process that ends during the scan is in the table, and no more in its group.
    let off = ["--listen", "127.0.0.1:0", "--events", "off", "--metrics-group-by", "user,comm"];
    let k2i = K2i::with(&off);
    // They look the same once what a terminal obeys is gone.
    let _twins = [Zoo::named(b"twin\x01"), Zoo::named(b"twin\x02"), Zoo::named(b"")];
    let text = scrape(&k2i);
    let mut series = HashSet::new();
    let (mut families, mut family) = (HashSet::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap().to_owned();
            assert!(families.insert(family.clone()), "{family} is declared twice");
        } else if !line.starts_with('#') {
            let (name, _) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(&family), "{name} is not of {family}");
            assert!(series.insert(name.to_owned()), "{name} stands twice");
        }
    }
    let groups = series.iter().filter(|name| name.starts_with("kumo_group_processes{")).count();
    assert!((2..=41).contains(&groups), "{groups} groups");
    let of = |begin: &str| {
        let lines = text.lines().filter(|line| line.starts_with(begin));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum::<f64>()
    };
    // All processes are in one group, whichever: the rest is one of them.
    let (in_groups, by_state) = (of("kumo_group_processes{"), of("kumo_host_processes{"));
    assert!((in_groups - by_state).abs() < 0.1, "{in_groups} and {by_state}");
    assert!(text.contains("kumo_group_processes{user=\"other\",comm=\"other\",rest=\"true\"} "));
}

/// Runs a program of this name that uses some tenths of a second of a CPU, and waits for its end.
fn burn(dir: &Path, name: &str) {
    let program = dir.join(name);
    std::fs::copy("/bin/sh", &program).unwrap();
    let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    let status = Command::new(&program).args(["-c", script]).status().unwrap();
    assert!(status.success());
}

#[test]
fn who_lived_between_two_scrapes_is_counted() {
    let k2i = K2i::with(&["--listen", "127.0.0.1:0", "--metrics-top", "200"]);
    let source = k2i.json("/v2/host")["events"]["source"].clone();
    if source != "tracepoints" {
        eprintln!("skipped: events come from {source}, which tells no CPU time of all that end");
        return;
    }
    scrape(&k2i);
    let dir = tempfile::tempdir().unwrap();
    let series = "kumo_group_cpu_seconds_total{comm=\"kumo-burner\"";
    let started = Instant::now();
    let mut last = 0.0;
    let mut grew = 0;
    // A kernel may lose a reap now and then: that one is not counted, and the next one is.
    while grew < 2 {
        assert!(started.elapsed() < PATIENCE, "not counted: {}", k2i.json("/v2/host")["events"]);
        burn(dir.path(), "kumo-burner");
        let next_table = Instant::now();
        while next_table.elapsed() < Duration::from_millis(1_500) {
            let text = scrape(&k2i);
            let used = find(&text, series).unwrap_or(0.0);
            assert!(used >= last, "{used} after {last}");
            // Whoever looks for lost events reads the table: it may show the burner while it lived.
            let living = find(&text, "kumo_group_processes{comm=\"kumo-burner\"").unwrap_or(0.0);
            if used > last && living < 0.1 {
                grew += 1;
                assert!(used - last > 0.01, "{used} after {last}");
                last = used;
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    assert!(last < started.elapsed().as_secs_f64(), "{last} s of one CPU");
    assert!(value(&scrape(&k2i), "kumo_agent_events_total{kind=\"reap\"") >= 2.0);
}

#[test]
fn scrapes_at_the_same_time_share_a_scan() {
    let k2i = K2i::spawn();
    let generation = |text: &str| value(text, "kumo_agent_generation");
    let first = generation(&scrape(&k2i));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| scrape(&k2i));
        }
    });
    let last = generation(&scrape(&k2i));
    // One for each second that has begun, and none for each scrape.
    let most = begun.elapsed().as_secs_f64().ceil() + 1.0;
    assert!(last - first <= most, "{} scans in {:?}", last - first, begun.elapsed());
}

#[test]
fn a_grouping_that_makes_no_sense_is_refused() {
    for (columns, want) in [("pid", "not grouped by `pid`"), ("comm,comm", "stands twice")] {
        let refusal = support::refusal(&["--metrics-group-by", columns]);
        assert!(refusal.contains(want), "{refusal}");
    }
    let refusal = support::refusal(&["--metrics-top", "201"]);
    assert!(refusal.contains("from 0 to 200"), "{refusal}");
}
