//! Real processes, real files: what was recorded is told as it was, whatever happens to the files.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use kumo_abi::proc::{COLUMNS_DEFAULT, PROC};
use kumo_abi::rights::Lines;
use kumo_abi::{Query, QueryText, Rows};
use kumo_testbed::{Mix, Zoo};

use super::*;
use crate::collect::CollectorChoice;
use crate::engine::{AskError, EngineConfig, Question};

const LIMITS: Limits = Limits { size_bytes: 64 << 20, age: Duration::from_secs(3_600) };

fn engine() -> Engine {
    let collector = CollectorChoice::Only(CollectorKind::Proc);
    let (dc, host) = ("dc".to_owned(), "host".to_owned());
    Engine::open(EngineConfig { collector, dc, host }).expect("/proc is there")
}

fn recorder(dir: &Path, limits: Limits, engine: &Engine) -> Recorder {
    let config = HistoryConfig { dir: dir.to_owned(), period: Duration::from_secs(1), limits };
    let (kept, played) = (Mutex::default(), Mutex::default());
    let shared = Arc::new(Shared { config, kept, played });
    Recorder::new(shared, engine.boot_id().to_owned())
}

/// Records the table as it is at this moment.
fn turn(recorder: &mut Recorder, engine: &Engine) {
    engine.table(Duration::ZERO, Parts::STAT | Parts::CMDLINE).expect("/proc is there");
    recorder.turn(engine);
}

fn recording(recorder: &Recorder) -> bool {
    recorder.shared.kept().state == HistoryState::Recording
}

/// The rows of each record, by pid.
fn all(shared: &Shared) -> Vec<BTreeMap<i32, Process>> {
    let segments = shared.kept().segments.clone();
    let mut tables = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        for record in 0..segment.marks.len() {
            let found = Found { segment: at, record, unix_ns: 1 };
            let recalled = shared.play(&found, segment).expect("it is whole");
            let rows = recalled.table.rows.iter().map(|row| (row.pid, row.clone())).collect();
            tables.push(rows);
        }
    }
    tables
}

#[test]
fn what_was_is_told_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = engine();
    let mut recorder = recorder(dir.path(), LIMITS, &engine);
    turn(&mut recorder, &engine);
    let mut sleeper = Zoo::sleeper(&[b"remember me", b"--secret"]);
    let pid = sleeper.pid();
    turn(&mut recorder, &engine);
    turn(&mut recorder, &engine);
    sleeper.kill();
    turn(&mut recorder, &engine);

    let tables = all(&recorder.shared);
    let there: Vec<bool> = tables.iter().map(|rows| rows.contains_key(&pid)).collect();
    assert_eq!(there, [false, true, true, false]);
    let row = &tables[1][&pid];
    let line = row.cmdline.as_ref().expect("a command line");
    assert_eq!(line.argv(), b"remember me\0--secret\0");
    let exe = row.late.as_ref().and_then(|late| late.exe.as_deref()).expect("our own process");
    assert!(exe.ends_with(b"kumo-zoo"), "{}", String::from_utf8_lossy(exe));
    assert!(row.have.contains(Parts::CGROUP | Parts::MEMORY | Parts::OWNER) && row.rss() > 0);
    // Us, in all of them, with CPU time that goes up.
    let own = std::process::id() as i32;
    let times: Vec<u64> = tables.iter().map(|rows| rows[&own].cpu_ns()).collect();
    assert!(times.is_sorted() && times[0] > 0, "{times:?}");
}

#[test]
fn a_question_about_a_moment_is_as_any_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(engine());
    let ask = |text: QueryText| {
        let query = Query::parse(&text, &PROC, COLUMNS_DEFAULT).expect("a good query");
        let question = Question { query, pids: None, max_age: Duration::ZERO, lines: Lines::Whole };
        engine.ask(question).map(|answer| {
            let body = answer.into_bytes(crate::Format::Json);
            serde_json::from_slice::<Rows>(&body).expect("our own answer")
        })
    };
    let text = |text: &str| Some(text.to_owned());
    let own = std::process::id();
    let about = |at: &str| QueryText {
        columns: text("pid,comm,blocked_on,cwd,elapsed"),
        filter: Some(format!("pid == {own}")),
        at: text(at),
        ..QueryText::default()
    };
    let none = ask(about("now")).expect_err("nothing is kept");
    assert!(matches!(none, AskError::History(HistoryError::None(_))), "{none}");

    let (dir, period) = (dir.path().join("new/history"), Duration::from_secs(1));
    engine.keep_history(HistoryConfig { dir: dir.clone(), period, limits: LIMITS });
    let began = Instant::now();
    while engine.history_report().records < 2 {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", engine.history_report());
        std::thread::sleep(Duration::from_millis(5));
    }
    let report = engine.history_report();
    let then = ask(about(report.from.as_deref().expect("the first"))).expect("it was recorded");
    assert_eq!((then.meta.boot_id.as_str(), then.rows.len()), (engine.boot_id(), 1));
    assert!(then.meta.collector == "proc" && then.meta.matched == 1 && then.meta.processes > 1);
    assert!(then.rows[0]["blocked_on"].is_null() && then.rows[0]["cwd"].is_null());
    assert!(then.rows[0]["elapsed"].as_f64().expect("seconds") >= 0.0);
    // Asked for by the moment that an answer names, it is that answer again.
    let again = ask(about(&then.meta.as_of)).expect("it was recorded");
    assert_eq!((again.rows, again.meta.generation), (then.rows, then.meta.generation));
    let grouped = QueryText { columns: text("count()"), at: text("now"), ..QueryText::default() };
    let grouped = ask(grouped).expect("it was recorded");
    assert!(grouped.rows[0]["count()"].as_u64() == Some(grouped.meta.processes));
    for (at, want) in [("-1h", "history begins at 2"), ("2099-01-01T00:00:00Z", "future")] {
        let error = ask(about(at)).expect_err("nothing is of then").to_string();
        assert!(error.contains(want), "{error:?} does not say {want:?}");
    }
    // Others may not read it.
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    let files: Vec<_> = fs::read_dir(&dir).expect("it is there").flatten().collect();
    assert_eq!(mode(&dir), 0o700);
    assert!(!files.is_empty() && files.iter().all(|file| mode(&file.path()) == 0o600));
}

#[test]
fn a_file_that_ends_at_any_byte_loses_its_last_record_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = engine();
    let mut recorder = recorder(dir.path(), LIMITS, &engine);
    for _ in 0..3 {
        turn(&mut recorder, &engine);
    }
    assert!(recording(&recorder));
    let whole = all(&recorder.shared);
    let segment = recorder.shared.kept().segments[0].clone();
    let path = recorder.shared.path(segment.number);
    let bytes = fs::read(&path).expect("the segment");
    drop(recorder);
    let begin = segment.marks[2].offset as usize - segment::RECORD_HEAD_BYTES;
    for len in begin..bytes.len() {
        fs::write(&path, &bytes[..len]).expect("the segment");
        let found = read_segments(dir.path()).expect("a directory");
        assert_eq!(found[0].marks, segment.marks[..2], "cut at {len}");
    }
    // Who comes then goes on in a segment of his own, and the others can be read.
    let mut recorder = self::recorder(dir.path(), LIMITS, &engine);
    turn(&mut recorder, &engine);
    let after = all(&recorder.shared);
    assert_eq!(after.len(), 3);
    for (before, after) in whole.iter().zip(&after).take(2) {
        assert!(before.keys().eq(after.keys()));
    }
    let numbers: Vec<u64> =
        recorder.shared.kept().segments.iter().map(|segment| segment.number).collect();
    assert_eq!(numbers, [0, 1]);
}

#[test]
fn what_is_kept_is_bounded_also_with_many_processes_and_through_restarts() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = engine();
    let size_bytes = 200_000;
    let limits = Limits { size_bytes, ..LIMITS };
    let on_disk = || -> u64 {
        let files = fs::read_dir(dir.path()).expect("a directory").flatten();
        files.map(|file| file.metadata().expect("it is there").len()).sum()
    };
    let crowd = Zoo::crowd(300, Mix::default());
    let mut numbers = 0;
    for _ in 0..3 {
        let mut recorder = recorder(dir.path(), limits, &engine);
        for _ in 0..12 {
            // Each begins anew, as after a failure: a whole table each time.
            recorder.writer = None;
            turn(&mut recorder, &engine);
            assert!(recording(&recorder), "{:?}", recorder.shared.report(engine.boot_id()));
            assert!(on_disk() <= size_bytes, "{} bytes", on_disk());
        }
        let report = recorder.shared.report(engine.boot_id());
        assert_eq!(report.bytes, on_disk(), "{report:?}");
        numbers = recorder.next_number;
    }
    assert_eq!(numbers, 36, "numbers go on");
    let kept = read_segments(dir.path()).expect("a directory").len();
    assert!((2..36).contains(&kept), "{kept} segments");
    drop(crowd);

    // One record that is larger than all that may be kept is said to be.
    let limits = Limits { size_bytes: 1_000, ..LIMITS };
    let mut recorder = recorder(dir.path(), limits, &engine);
    turn(&mut recorder, &engine);
    let report = recorder.shared.report(engine.boot_id());
    assert!(report.state == HistoryState::Stopped, "{report:?}");
    assert!(report.why.as_deref().is_some_and(|why| why.contains("--history-size")), "{report:?}");
}

#[test]
fn a_directory_that_is_none_is_said_and_tried_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("history");
    fs::write(&path, "in the way").expect("a file");
    let engine = engine();
    let mut recorder = recorder(&path, LIMITS, &engine);
    turn(&mut recorder, &engine);
    turn(&mut recorder, &engine);
    let report = recorder.shared.report(engine.boot_id());
    assert!(report.state == HistoryState::Stopped && report.missed == 2, "{report:?}");
    assert!(report.why.is_some() && report.from.is_none());
    fs::remove_file(&path).expect("ours");
    turn(&mut recorder, &engine);
    assert!(recording(&recorder));
    // A second one on the same ring would delete what the first needs.
    let mut other = self::recorder(&path, LIMITS, &engine);
    turn(&mut other, &engine);
    let why = other.shared.report(engine.boot_id()).why.expect("it is in use");
    assert!(why.contains("another k2i records there"), "{why}");
    assert!(recording(&recorder));
}

/// Room that a file's last page may have on x86-64 and on most ARM machines.
const PAGE_BYTES: usize = 4_096;

/// A small file system that is unmounted on drop.
struct Small(tempfile::TempDir);

impl Small {
    /// `None` where we may not mount.
    fn mount(kib: u32) -> Option<Small> {
        let dir = tempfile::tempdir().expect("a directory");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "kumo-test"])
            .arg(dir.path())
            .status();
        status.is_ok_and(|status| status.success()).then_some(Small(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_stops_records_until_there_is_room() {
    let Some(disk) = Small::mount(512) else {
        eprintln!("skipped without the right to mount");
        return;
    };
    let engine = engine();
    let dir = disk.0.path().join("history");
    let mut recorder = recorder(&dir, LIMITS, &engine);
    turn(&mut recorder, &engine);
    assert!(recording(&recorder), "{:?}", recorder.shared.report(engine.boot_id()));
    // Somebody else fills it to the last byte.
    let filler = disk.0.path().join("filler");
    let mut file = File::create(&filler).expect("a file");
    for len in [4_096, 1] {
        while file.write_all(&vec![0; len]).is_ok() {}
    }
    // A page of the file may still have room; a record has at least a byte, so that ends.
    for _ in 0..PAGE_BYTES {
        if !recording(&recorder) {
            break;
        }
        turn(&mut recorder, &engine);
    }
    let report = recorder.shared.report(engine.boot_id());
    assert_eq!(report.state, HistoryState::Stopped, "{report:?}");
    assert!(report.missed >= 1);
    assert!(report.why.as_deref().is_some_and(|why| why.contains("space")), "{report:?}");
    let before = all(&recorder.shared).len();
    assert!(before >= 1, "what is there stays readable");
    drop(file);
    fs::remove_file(&filler).expect("ours");
    turn(&mut recorder, &engine);
    turn(&mut recorder, &engine);
    assert!(recording(&recorder));
    assert_eq!(all(&recorder.shared).len(), before + 2);
    let read = read_segments(&dir).expect("a directory");
    let marks = |segments: &[Segment]| segments.iter().map(|s| s.marks.len()).collect::<Vec<_>>();
    assert_eq!(marks(&read), marks(&recorder.shared.kept().segments));
}
