//! What was, by the commands that show what is: `kumo ps --at` and `kumo top --replay`.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kumo_testbed::Zoo;
use serde_json::Value;

/// What any one step of a test may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node in directories of its own that records each second; `Drop` kills and reaps it.
struct Up(Child);

impl Up {
    fn spawn(dir: &Path) -> Up {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kumo"));
        command.args(["up", "--listen", "127.0.0.1:0", "--collector", "proc", "--events", "off"]);
        command.args(["--history-period", "1s", "--state-dir"]).arg(dir.join("state"));
        command.arg("--run-dir").arg(dir.join("run"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.next().expect("the node says where it serves").unwrap();
        // It goes on to say things: whoever closes the pipe would end it.
        std::thread::spawn(move || lines.for_each(drop));
        Up(child)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn kumo(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kumo"));
    command.args(arguments).arg("--run-dir").arg(dir.join("run"));
    command.env("TZ", "UTC").output().unwrap()
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// Waits until the node's own records show a process, or none; the moment of that record.
fn until(dir: &Path, pid: i32, there: bool) -> String {
    let began = Instant::now();
    loop {
        let arguments = ["ps", "--at", "now", "--json", "-o", "pid"];
        let output = kumo(dir, &arguments);
        if let Ok(answer) = serde_json::from_slice::<Value>(&output.stdout)
            && answer["rows"].as_array().unwrap().iter().any(|row| row["pid"] == pid) == there
        {
            return answer["as_of"].as_str().unwrap().to_owned();
        }
        assert!(began.elapsed() < PATIENCE, "not in time: {}", text(&output));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_past_is_shown_as_the_present_is() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let _up = Up::spawn(dir);
    let mut sleeper = Zoo::sleeper(&[b"of the past"]);
    let pid = sleeper.pid();
    let then = until(dir, pid, true);
    sleeper.kill();
    let later = until(dir, pid, false);
    assert!(then < later);

    // A table says of when it is; so does one of all hosts.
    for scope in [&[][..], &["--all"]] {
        let number = pid.to_string();
        let arguments = [&["ps", "--at", &then, "-o", "cmdline", &number][..], scope].concat();
        let output = kumo(dir, &arguments);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
        assert!(said.contains("of the past") && said.contains("as of 2"), "{arguments:?}: {said}");
    }
    let found = kumo(dir, &["pgrep", "--at", &then, "--filter", &format!("pid == {pid}")]);
    let said = text(&found);
    assert!(found.status.success() && said.starts_with(&format!("{pid}\n")), "{said}");
    assert!(said.contains("as of 2"), "{said}");
    // In the zone of the user, and what nobody recorded.
    let local = then.get(..19).unwrap().replace('T', " ");
    let output = kumo(dir, &["ps", "--at", &local, "1"]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output));
    let output = kumo(dir, &["ps", "--at", "50 min ago"]);
    assert!(text(&output).contains("history begins at"), "{}", text(&output));
    assert_eq!(output.status.code(), Some(1));
    let output = kumo(dir, &["ps", "--at", "50 min ago", "--all"]);
    assert!(text(&output).contains("history begins at"), "{}", text(&output));
    let output = kumo(dir, &["ps", "--at", "soon"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));

    // A replay without a terminal is one reading after the other, up to now.
    let filter = format!("pid == {pid}");
    for scope in [&[][..], &["--all"]] {
        let replay = ["top", "--replay", "--from", &then, "--speed", "1", "--json", "-f", &filter];
        let output = kumo(dir, &[&replay[..], scope].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let lines: Vec<Value> = output
            .stdout
            .lines()
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
            .collect();
        let counts: Vec<usize> =
            lines.iter().map(|line| line["rows"].as_array().unwrap().len()).collect();
        assert!(counts.len() >= 2 && counts[0] == 1, "{counts:?}");
        assert_eq!(counts.last(), Some(&0), "{counts:?}");
        let times: Vec<&str> = lines.iter().map(|line| line["as_of"].as_str().unwrap()).collect();
        assert!(times.is_sorted() && times[0] >= then.as_str().get(..19).unwrap(), "{times:?}");
    }
    // Every record once, whatever the speed; from where history begins, if that is later than was asked.
    for scope in [&[][..], &["--all"]] {
        let replays = ["0.1", "1000"].map(|speed| {
            let replay = ["top", "--replay", "--from", "50 min ago", "--speed", speed, "--json"];
            let output = kumo(dir, &[&replay[..], &["-l", "1"], scope].concat());
            assert_eq!(output.status.code(), Some(0), "{}", text(&output));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("the replay begins there"), "{said}");
            let line = |line: std::io::Result<String>| {
                let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
                // Clocks are steered meanwhile; which scan was recorded stays. Of many hosts none is said.
                let scan = line.get("generation").and_then(Value::as_u64);
                (line["as_of"].as_str().unwrap().to_owned(), scan)
            };
            output.stdout.lines().map(line).collect::<Vec<_>>()
        });
        for lines in &replays {
            assert!(lines.len() >= 3 && lines.is_sorted_by(|a, b| a.0 < b.0), "{lines:?}");
        }
        let [slow, fast] = replays.map(|lines| lines.into_iter().map(|line| line.1));
        // Meanwhile more was recorded.
        assert!(fast.take(slow.len()).eq(slow));
    }
    // As text, from where history begins.
    let output = kumo(dir, &["top", "--replay", "--once"]);
    let said = text(&output);
    assert!(output.status.success() && said.contains("REPLAY x10, as of"), "{said}");
}
