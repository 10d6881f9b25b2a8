//! Events of real processes, by every source that works here.
//!
//! Without the right to load BPF programs these tests say so and return.

use std::collections::{HashMap, HashSet};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k2i::{
    CollectorChoice, EVENTS_AHEAD_MAX, Engine, EngineConfig, EventChoice, EventSource, Format,
    LIFE_LINE_BYTES_MAX, News, Question,
};
use kumo_abi::events::EventKind;
use kumo_abi::proc::{COLUMNS_DEFAULT, PROC};
use kumo_abi::rights::Lines;
use kumo_abi::{Query, QueryText, Row, Rows};
use kumo_testbed::Zoo;
use serde_json::Value;
use tokio::sync::broadcast::error::TryRecvError;

/// What any one step of a test may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine that takes events from `source`; `None` where that does not work here.
fn engine(source: EventSource) -> Option<Arc<Engine>> {
    let config = EngineConfig {
        collector: CollectorChoice::Auto,
        dc: "dc".to_owned(),
        host: "host".to_owned(),
    };
    let engine = Arc::new(Engine::open(config).expect("/proc is there"));
    engine.take_events(EventChoice::Only(source));
    let report = engine.events_report();
    if report.source.is_none() {
        assert!(!rustix::process::geteuid().is_root(), "as root: {report:?}");
        eprintln!("skipped without the right to take events: {report:?}");
        return None;
    }
    Some(engine)
}

fn ended(engine: &Engine, columns: &str, filter: &str) -> Rows {
    ended_to(engine, columns, filter, Lines::Whole)
}

/// What is shown to who sees command lines so.
fn ended_to(engine: &Engine, columns: &str, filter: &str, lines: Lines) -> Rows {
    let text = QueryText {
        columns: Some(columns.to_owned()),
        filter: Some(filter.to_owned()),
        ended: true,
        at: None,
        ..QueryText::default()
    };
    let query = Query::parse(&text, &PROC, COLUMNS_DEFAULT).expect("a good query");
    let question = Question { query, pids: None, max_age: Duration::ZERO, lines };
    let answer = engine.ask(question).expect("an answer").into_bytes(Format::Json);
    serde_json::from_slice(&answer).expect("what clients read")
}

/// Waits until `enough` of what is asked again and again.
fn until<T>(
    what: &str,
    mut ask: impl FnMut() -> T,
    enough: impl Fn(&T) -> bool,
    about: impl Fn(&T) -> String,
) -> T {
    let began = Instant::now();
    loop {
        let answer = ask();
        if enough(&answer) {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}; {}", about(&answer));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The row of a process that has ended.
fn row_of(engine: &Engine, pid: u32) -> Row {
    let columns = "pid,ppid,uid,user,kernel,comm,cmdline,cmdline_cut,argv,exit_code,exit_signal,\
                   lifetime,time,utime,stime,max_rss,start,ended_at,minflt,rchar,cgroup,state,cpu";
    let filter = format!("pid == {pid}");
    let rows = until(
        "its row",
        || ended(engine, columns, &filter).rows,
        |rows| rows.len() == 1,
        |rows| format!("{rows:?}"),
    );
    rows.into_iter().next().expect("one row")
}

#[test]
fn secrets_of_those_that_ended_are_left_out_and_not_found() {
    let Some(engine) = engine(EventSource::Tracepoints) else { return };
    let long = "x".repeat(600);
    let cases: [(&[&str], &str); 2] = [
        (&["--password=hunter2", "-v"], "sh -c exit app --password=***** -v"),
        // Of a long line the beginning is kept, and the argument in which it ends is not shown.
        (&["-v", &long], "sh -c exit app -v *****…"),
    ];
    for (more, want) in cases {
        let mut command = Command::new("sh");
        let mut child = command.args(["-c", "exit", "app"]).args(more).spawn().expect("a shell");
        let pid = child.id();
        child.wait().expect("our own child");
        row_of(&engine, pid);
        let find = |condition: &str, lines| {
            let filter = format!("pid == {pid} && {condition}");
            ended_to(&engine, "cmdline", &filter, lines).rows
        };
        let shown = find("true", Lines::Redacted);
        assert_eq!(shown[0]["cmdline"], want);
        for guess in ["hunter2", "xxxx"].iter().filter(|guess| more.concat().contains(**guess)) {
            let condition = format!("cmdline.contains('{guess}')");
            assert_eq!(find(&condition, Lines::Whole).len(), 1, "for {guess}");
            assert_eq!(find(&condition, Lines::Redacted).len(), 0, "for {guess}");
        }
        assert_eq!(
            find("true", Lines::Stripped)[0]["cmdline"],
            if more[0] == "-v" { "sh *****…" } else { "sh *****" }
        );
    }
}

#[test]
fn every_end_is_told_as_it_was() {
    let Some(engine) = engine(EventSource::Tracepoints) else { return };
    let shell = |script: &str| Command::new("sh").args(["-c", script]).spawn().expect("a shell");
    let cases = [
        ("exit 0", Some(0), None),
        ("exit 7", Some(7), None),
        ("kill -TERM $$", None, Some("TERM")),
        ("kill -KILL $$", None, Some("KILL")),
        ("kill -40 $$", None, Some("RTMIN+6")),
    ];
    for (script, code, signal) in cases {
        let mut child = shell(script);
        let pid = child.id();
        child.wait().expect("our own child");
        let row = row_of(&engine, pid);
        assert_eq!(row["exit_code"].as_u64(), code, "for {script}: {row:?}");
        assert_eq!(row["exit_signal"].as_str(), signal, "for {script}");
        assert_eq!(row["cmdline"], format!("sh -c {script}"));
        assert_eq!(row["argv"], serde_json::json!(["sh", "-c", script]));
        assert_eq!(row["ppid"], std::process::id());
        assert_eq!(row["uid"], rustix::process::getuid().as_raw());
        assert_eq!((&row["comm"], &row["kernel"]), (&"sh".into(), &false.into()));
        assert_eq!(row["cmdline_cut"], false);
        assert!(row["start"].as_str() < row["ended_at"].as_str(), "{row:?}");
        // What only the living have is not made up.
        assert!(row["state"].is_null() && row["cpu"].is_null(), "{row:?}");
    }
}

/// Ten thousand processes of about a millisecond, as fast as this machine can start them.
#[test]
fn of_ten_thousand_short_lives_none_is_missing_but_those_that_are_counted() {
    const COUNT: usize = 10_000;
    let Some(engine) = engine(EventSource::Tracepoints) else { return };
    let burst = Zoo::burst(COUNT, 0);
    let columns = "pid,cmdline,exit_code,time,max_rss,minflt,lifetime";
    let filter = format!("ppid == {}", burst.pid);
    let settled = |rows: &Rows| {
        let lost = engine.events_report().lost;
        let timed = rows.rows.iter().filter(|row| !row["time"].is_null()).count() as u64;
        timed + lost.reaps >= rows.rows.len() as u64
            && rows.rows.len() as u64 + lost.exits >= COUNT as u64
    };
    let untimed = |rows: &Rows| rows.rows.iter().filter(|row| row["time"].is_null()).count();
    let about = |rows: &Rows| {
        let (all, untimed) = (rows.rows.len(), untimed(rows));
        format!("{all} rows, {untimed} without times, {:?}", engine.events_report())
    };
    let answer = until("all to be reaped", || ended(&engine, columns, &filter), settled, about);
    let lost = engine.events_report().lost;
    let rows = answer.rows;
    assert_eq!(rows.len() as u64 + lost.exits, COUNT as u64, "{lost:?}");
    assert_eq!(answer.meta.lost, lost.exits, "it is said");
    let without = |column: &str| rows.iter().filter(|row| row[column].is_null()).count() as u64;
    // Other processes of this machine may be among those that are counted.
    assert!(without("time") <= lost.reaps && without("cmdline") <= lost.execs, "{lost:?}");
    assert_eq!(without("exit_code"), 0);
    for row in rows.iter().filter(|row| !row["cmdline"].is_null()) {
        let program = if row["exit_code"] == 0 { "/bin/true" } else { "/bin/false" };
        assert!(row["cmdline"].as_str().is_some_and(|line| line.starts_with(program)), "{row:?}");
    }
    if (lost.execs, lost.exits) != (0, 0) {
        return eprintln!("not all can be compared: {lost:?}");
    }
    // Every one of them, once.
    let lines: HashSet<&str> = rows.iter().filter_map(|row| row["cmdline"].as_str()).collect();
    assert_eq!(lines.len(), COUNT);
    let sum = |column: &str| rows.iter().filter_map(|row| row[column].as_f64()).sum::<f64>();
    let most = rows.iter().filter_map(|row| row["max_rss"].as_u64()).max();
    assert_eq!(most, Some(burst.max_rss));
    if lost.reaps != 0 {
        return eprintln!("sums cannot be compared: {lost:?}");
    }
    assert_eq!(sum("minflt") as u64, burst.min_flt);
    // Their parent was told the times of before their last moments. We round each down to 1 us.
    let rounded = COUNT as f64 * 2e-6;
    assert!(sum("time") >= burst.cpu.as_secs_f64() - rounded, "{} {burst:?}", sum("time"));
    assert!(sum("time") <= sum("lifetime") + rounded, "one thread, one CPU");
}

/// The fallback: what it knows is true, and what it cannot know is null.
#[test]
fn the_connector_tells_how_processes_end() {
    let Some(engine) = engine(EventSource::Connector) else { return };
    let mut animal = Zoo::sleeper(&[b"by", b"connector"]);
    let pid = animal.pid() as u32;
    let lives = format!("pid == {pid}");
    assert_eq!(ended(&engine, "pid", &lives).rows.len(), 0);
    animal.kill();
    let row = row_of(&engine, pid);
    assert_eq!((&row["exit_signal"], &row["ppid"]), (&"KILL".into(), &std::process::id().into()));
    assert!(row["cmdline"] == "by connector" || row["cmdline"].is_null(), "{row:?}");
    let mut threaded = Zoo::threaded(8);
    let pid = threaded.pid() as u32;
    threaded.kill();
    assert_eq!(row_of(&engine, pid)["exit_signal"], "KILL");
    // Who is not waited for can still be read.
    let mut child = Command::new("sh").args(["-c", "exit 9"]).spawn().expect("a shell");
    let row = row_of(&engine, child.id());
    assert_eq!((&row["exit_code"], &row["comm"]), (&9.into(), &"sh".into()));
    assert!(row["time"].is_number() && row["start"].is_string() && row["max_rss"].is_null());
    child.wait().expect("our own child");
    // As many as were started, or it is said that some may be missing.
    let burst = Zoo::burst(500, 0);
    let filter = format!("ppid == {}", burst.pid);
    let rows = until(
        "all of them",
        || ended(&engine, "exit_code", &filter),
        |rows| rows.rows.len() == 500 || rows.meta.lost > 0,
        |rows| format!("{} rows", rows.rows.len()),
    );
    assert!(rows.rows.iter().all(|row| row["exit_code"].is_number()));
}

#[test]
fn a_process_of_many_threads_ends_once() {
    let Some(engine) = engine(EventSource::Tracepoints) else { return };
    let mut animal = Zoo::threaded(8);
    let pid = animal.pid();
    animal.kill();
    let row = row_of(&engine, pid as u32);
    assert_eq!((&row["exit_signal"], &row["cmdline"]), (&"KILL".into(), &"threaded".into()));
    assert_eq!(ended(&engine, "pid", &format!("pid == {pid}")).rows.len(), 1);
}

#[test]
fn the_last_program_and_the_beginning_of_a_long_line_are_kept() {
    let Some(engine) = engine(EventSource::Tracepoints) else { return };
    let long = "x".repeat(2 * LIFE_LINE_BYTES_MAX);
    let mut child =
        Command::new("sh").args(["-c", "exec true \"$0\"", &long]).spawn().expect("a shell");
    let pid = child.id();
    child.wait().expect("our own child");
    let row = row_of(&engine, pid);
    let line = row["cmdline"].as_str().expect("a line");
    assert!(line.starts_with("true xxx") && line.ends_with("x…"), "{line}");
    assert_eq!(line.len(), LIFE_LINE_BYTES_MAX + "…".len());
    assert_eq!((&row["cmdline_cut"], &row["comm"]), (&true.into(), &"true".into()));
}

#[test]
fn who_was_there_before_has_its_line_too() {
    let mut animal = Zoo::sleeper(&[b"before", b"us"]);
    let Some(engine) = engine(EventSource::Tracepoints) else { return };
    let pid = animal.pid();
    animal.kill();
    assert_eq!(row_of(&engine, pid as u32)["cmdline"], "before us");
}

#[test]
fn a_zombie_has_ended_and_its_times_are_not_known_before_it_is_gone() {
    let Some(engine) = engine(EventSource::Tracepoints) else { return };
    let mut child = Command::new("true").spawn().expect("a child");
    let filter = format!("pid == {}", child.id());
    let ask = || ended(&engine, "pid,exit_code,time,cmdline", &filter).rows;
    let rows = until("an end", ask, |rows| !rows.is_empty(), |_| String::new());
    assert_eq!((&rows[0]["exit_code"], &rows[0]["time"]), (&0.into(), &Value::Null));
    child.wait().expect("our own child");
    let settled =
        |rows: &Vec<Row>| !rows[0]["time"].is_null() || engine.events_report().lost.reaps > 0;
    until("its times", ask, settled, |rows| format!("{rows:?}"));
}

#[test]
fn listeners_are_told_in_order_and_how_much_they_missed() {
    let Some(engine) = engine(EventSource::Tracepoints) else { return };
    let mut listener = engine.events().expect("events are taken");
    // Some kernels run no programs while certain processes are interrupted, and then tell no reap: of
    // five, one at least is told whole.
    let pids: Vec<i32> = (0..5)
        .map(|_| {
            let mut child = Command::new("true").spawn().expect("a child");
            child.wait().expect("our own child");
            child.id() as i32
        })
        .collect();
    let mut told: HashMap<i32, Vec<_>> = HashMap::new();
    until(
        "all of one life",
        || {
            while let Ok(news) = listener.try_recv() {
                if let News::Event(event) = news
                    && pids.contains(&event.life.pid)
                {
                    let what = (event.kind, event.life.end.is_some(), event.life.used.is_some());
                    told.entry(event.life.pid).or_default().push(what);
                }
            }
            told.clone()
        },
        |told| told.len() == pids.len() && told.values().any(|told| told.len() == 3),
        |told| format!("{told:?}"),
    );
    let want = [
        (EventKind::Exec, false, false),
        (EventKind::Exit, true, false),
        (EventKind::Reap, true, true),
    ];
    for told in told.values() {
        assert_eq!(told.as_slice(), &want[..told.len()]);
    }
    // Nobody reads for a while: the oldest are lost to this listener, and counted.
    let before = engine.events_report();
    let started = EVENTS_AHEAD_MAX / 3 + 200;
    let burst = Zoo::burst(started, 0);
    let missed = until(
        "more than it may be behind",
        || listener.len(),
        |len| *len > EVENTS_AHEAD_MAX,
        |len| format!("{len} only"),
    );
    // That is lost to nobody else: all are rows, but those that the kernel could not tell.
    let filter = format!("ppid == {}", burst.pid);
    let rows_and_losses = || {
        let lost = engine.events_report().lost.exits - before.lost.exits;
        ended(&engine, "pid", &filter).rows.len() as u64 + lost
    };
    let all = |count: &u64| *count >= started as u64;
    until("a row for each", rows_and_losses, all, |count| format!("{count} of {started}"));
    match listener.try_recv() {
        Err(TryRecvError::Lagged(count)) => assert!(count >= (missed - EVENTS_AHEAD_MAX) as u64),
        other => panic!("{other:?} after {missed} events"),
    }
}
