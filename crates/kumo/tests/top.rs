//! `kumo top` as people use it: on a terminal, with keys; and as text or JSON into a pipe.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use kumo_testbed::Zoo;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;
use unicode_width::UnicodeWidthChar as _;

/// How long anything may take. Generous: other tests run beside this one.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What a terminal shows, as far as `kumo top` uses one.
struct Screen {
    cells: Vec<Vec<String>>,
    cursor: (usize, usize),
    /// Bytes that may be the beginning of something longer.
    rest: Vec<u8>,
    /// Modes that are on, by their numbers: 1049 is the other screen, 25 the cursor.
    modes: std::collections::BTreeSet<u16>,
    /// Control characters that came outside of escape sequences, and sequences unknown here.
    strange: Vec<String>,
}

impl Screen {
    fn new(columns: usize, rows: usize) -> Screen {
        Screen {
            cells: vec![vec![" ".to_owned(); columns]; rows],
            cursor: (0, 0),
            rest: Vec::new(),
            modes: [25].into(),
            strange: Vec::new(),
        }
    }

    fn lines(&self) -> Vec<String> {
        self.cells.iter().map(|line| line.concat().trim_end().to_owned()).collect()
    }

    fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.rest);
        let (text, cut) = match std::str::from_utf8(&bytes) {
            Ok(text) => (text, &[][..]),
            Err(error) if error.error_len().is_none() => {
                let (whole, cut) = bytes.split_at(error.valid_up_to());
                (std::str::from_utf8(whole).expect("it is valid up to there"), cut)
            }
            Err(error) => panic!("the terminal got invalid UTF-8: {error}"),
        };
        let mut left = text;
        while let Some(c) = left.chars().next() {
            let taken = if c == '\x1b' { self.sequence(left) } else { Some(c.len_utf8()) };
            let Some(taken) = taken else { break };
            if c != '\x1b' {
                self.character(c);
            }
            left = &left[taken..];
        }
        self.rest = [left.as_bytes(), cut].concat();
    }

    /// Obeys the escape sequence that `text` begins with; `None` while its end is not there.
    fn sequence(&mut self, text: &str) -> Option<usize> {
        if text.len() < 2 {
            return None;
        }
        let Some(body) = text.strip_prefix("\x1b[") else {
            self.strange.push(text.chars().take(8).collect());
            return Some(1);
        };
        let end = body.find(|c: char| ('@'..='~').contains(&c))?;
        let (parameters, last) = (&body[..end], body.as_bytes()[end]);
        let number = |at: usize| -> usize {
            let part = parameters.trim_start_matches('?').split(';').nth(at);
            part.and_then(|part| part.parse().ok()).unwrap_or(1)
        };
        match last {
            b'H' => self.cursor = (number(0) - 1, number(1) - 1),
            b'J' => self.cells.iter_mut().flatten().for_each(|cell| " ".clone_into(cell)),
            b'h' => drop(self.modes.insert(number(0) as u16)),
            b'l' => {
                self.modes.remove(&(number(0) as u16));
                if number(0) == 1049 {
                    // What is said after the end stands on the screen of the shell.
                    *self = Screen {
                        modes: std::mem::take(&mut self.modes),
                        strange: std::mem::take(&mut self.strange),
                        ..Screen::new(self.cells[0].len(), self.cells.len())
                    };
                }
            }
            b'm' => {}
            _ => self.strange.push(text[..end + 3].to_owned()),
        }
        Some(end + 3)
    }

    fn character(&mut self, c: char) {
        let (row, column) = self.cursor;
        match c.width() {
            None => self.strange.push(c.escape_default().to_string()),
            Some(width) => {
                if let Some(cell) = self.cells.get_mut(row).and_then(|line| line.get_mut(column)) {
                    *cell = c.to_string();
                }
                self.cursor.1 += width;
            }
        }
    }
}

/// `kumo top` on a terminal of its own. Dropping it kills and reaps it.
struct Top {
    child: Child,
    master: File,
    slave: OwnedFd,
    output: Receiver<Vec<u8>>,
    screen: Screen,
}

impl Top {
    /// Reading this host itself, by the collector that works everywhere.
    fn start(columns: u16, rows: u16, arguments: &[&str]) -> Top {
        Top::start_with(columns, rows, &[&["--collector", "proc"], arguments].concat())
    }

    fn start_with(columns: u16, rows: u16, arguments: &[&str]) -> Top {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).expect("it is ours");
        unlockpt(&master).expect("it is ours");
        let name = ptsname(&master, Vec::new()).expect("it has a name");
        let name = name.to_str().expect("the kernel's names are ASCII");
        let slave = File::options().read(true).write(true).open(name).expect("its other end");
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&slave, size).expect("a terminal has a size");
        let end = || Stdio::from(slave.try_clone().expect("one more descriptor"));
        // With a session of its own the terminal is its controlling one, as in real life.
        let child = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_kumo"), "top"])
            .args(arguments)
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("setsid and kumo start");
        let master = File::from(master);
        let mut reader = master.try_clone().expect("one more descriptor");
        let (send, output) = channel();
        std::thread::spawn(move || {
            let mut piece = vec![0; 64 * 1024];
            // It ends with an error when the last process has closed the other end.
            while let Ok(len) = reader.read(&mut piece) {
                if len == 0 || send.send(piece[..len].to_vec()).is_err() {
                    return;
                }
            }
        });
        let screen = Screen::new(columns.into(), rows.into());
        Top { child, master, slave: slave.into(), output, screen }
    }

    /// Waits until processes are shown: headings alone stand there before the first answer.
    fn until_ready(&mut self) {
        self.until("processes", |screen| {
            let lines = screen.lines();
            let headings = lines.iter().position(|line| line.ends_with("COMMAND"));
            headings.is_some_and(|at| lines.get(at + 1).is_some_and(|line| !line.is_empty()))
        });
    }

    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Waits until what is shown satisfies `wanted`.
    fn until(&mut self, what: &str, wanted: impl Fn(&Screen) -> bool) {
        let limit = Instant::now() + WAIT_MAX;
        while !wanted(&self.screen) {
            match self.output.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.screen.take(&bytes),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let lines = self.screen.lines().join("\n");
                    panic!("waited in vain for {what}; the screen is\n{lines}");
                }
            }
        }
    }

    fn until_shown(&mut self, text: &str) {
        self.until(text, |screen| screen.lines().iter().any(|line| line.contains(text)));
    }

    /// Waits for its end and for the last of what it wrote; it must not have failed.
    fn end(&mut self) {
        let pid = Pid::from_child(&self.child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("it is our child");
        let wait = rustix::event::Timespec { tv_sec: WAIT_MAX.as_secs() as i64, tv_nsec: 0 };
        let mut polled = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let ended = rustix::event::poll(&mut polled, Some(&wait)).expect("poll works");
        assert!(ended > 0, "it did not end; the screen is\n{}", self.screen.lines().join("\n"));
        let status = self.child.wait().expect("it is our child");
        self.until("the terminal given back", |screen| !screen.modes.contains(&1049));
        if !status.success() {
            // What it said stands behind the last escape sequence.
            self.until("its last words", |screen| screen.lines().concat().contains("kumo:"));
            panic!("{status}\n{}", self.screen.lines().join("\n"));
        }
    }

    /// Whether lines are edited and echoed, as a shell wants it.
    fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.slave).expect("a terminal has attributes").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn assert_given_back(&mut self) {
        assert!(self.is_cooked(), "the terminal is still raw");
        assert!(!self.screen.modes.contains(&1049), "the other screen is still shown");
        assert!(!self.screen.modes.contains(&2004), "pastes are still bracketed");
        assert!(self.screen.modes.contains(&25), "the cursor is still hidden");
        assert_eq!(self.screen.strange, Vec::<String>::new());
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        // It may have ended already; then there is only the reaping left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn once(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kumo"));
    let output = command.args(["top", "--collector", "proc"]).args(arguments).output();
    let output = output.expect("kumo starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).expect("what it prints is UTF-8")
}

#[test]
fn keys_open_and_close_pages_and_q_gives_the_terminal_back() {
    // A process that lives as long as the test: the busiest may end before its page is open.
    let filter = format!("pid == {}", std::process::id());
    let mut top = Top::start(100, 30, &["--filter", &filter]);
    assert!(top.is_cooked());
    top.until_ready();
    assert!(!top.is_cooked(), "keys come one by one");
    assert!(top.screen.modes.contains(&1049), "the screen of the shell is kept");
    top.press("h");
    top.until_shown("kumo top: keys");
    top.press("\x0c");
    top.press(" ");
    top.until_ready();
    top.press("\x1b[B\r");
    top.until_shown("Identity");
    top.press("\x1b[F");
    top.until_shown("Children:");
    top.press("q");
    top.until_ready();
    top.press("q");
    top.end();
    top.assert_given_back();
}

#[test]
fn signals_that_end_it_give_the_terminal_back() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut top = Top::start(80, 24, &[]);
        top.until_ready();
        kill_process(Pid::from_child(&top.child), signal).expect("it is our child");
        top.end();
        top.assert_given_back();
    }
}

#[test]
fn it_stops_and_goes_on_as_a_shell_wants_it() {
    let mut top = Top::start(80, 24, &[]);
    top.until_ready();
    top.press("\x1a");
    top.until("the terminal given back", |screen| !screen.modes.contains(&1049));
    let pid = Pid::from_child(&top.child);
    let stopped = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::UNTRACED);
    let (_, status) = stopped.expect("it is our child").expect("it was waited for");
    assert!(status.stopped(), "{status:?}");
    assert!(top.is_cooked());
    kill_process(pid, Signal::CONT).expect("it is our child");
    top.until("the screen taken again", |screen| screen.modes.contains(&1049));
    top.until_ready();
    top.press("q");
    top.end();
    top.assert_given_back();
}

#[test]
fn a_signal_is_asked_for_and_reaches_the_selected_process() {
    let marker = format!("to-be-killed-{}", std::process::id());
    let animal = Zoo::sleeper(&[marker.as_bytes()]);
    let pidfd = Pid::from_raw(animal.pid()).expect("a process number is not 0");
    let pidfd = pidfd_open(pidfd, PidfdFlags::empty()).expect("it lives");
    let mut top =
        Top::start(100, 30, &["-d", "0.2", "--filter", &format!("pid == {}", animal.pid())]);
    top.until_shown(&marker);
    top.press("\x1b[B");
    top.press("k");
    top.until_shown("Signal to");
    top.press("9\r");
    top.until_shown(&format!("Send SIGKILL to process {}", animal.pid()));
    top.until_shown("identity");
    top.press("y");
    let wait = rustix::event::Timespec { tv_sec: WAIT_MAX.as_secs() as i64, tv_nsec: 0 };
    let mut polled = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    assert!(rustix::event::poll(&mut polled, Some(&wait)).expect("poll works") > 0, "it lives on");
    top.until_shown("sent KILL to process");
    top.press("q");
    top.end();
}

#[test]
fn a_selected_process_that_ends_is_said_to_have() {
    let marker = format!("to-be-missed-{}", std::process::id());
    let mut animal = Zoo::sleeper(&[marker.as_bytes()]);
    let filter = format!("cmdline.contains(\"{marker}\") && state != \"Z\"");
    // The filter stands in the command line of `kumo top` itself, so that two processes have it.
    let mut top = Top::start(100, 30, &["-d", "0.2", "--sort", "+elapsed", "--filter", &filter]);
    // Its row: the filter, which stands above, has the marker before there are any.
    let row = format!("{} ", animal.pid());
    let is_row = |line: &String| line.trim_start().starts_with(&row);
    top.until("its row", |screen| screen.lines().iter().any(is_row));
    top.press("/");
    top.press(&format!("{}\r", animal.pid()));
    top.press("\r");
    top.until_shown("Identity");
    top.press("q");
    top.until_ready();
    animal.kill();
    top.until_shown(&format!("process {} {marker} has ended", animal.pid()));
    top.press("q");
    top.end();
}

#[test]
fn hostile_names_are_escaped_everywhere() {
    let name: &[u8] = b"evil\x1b[2J\x07\nline \xff\xe2\x80\xae\"><script>";
    let animal = Zoo::sleeper(&[name]);
    let filter = format!("pid == {}", animal.pid());
    let escaped = r"evil\x1b[2J\x07\nline ";
    let text = once(&["--once", "--filter", &filter]);
    assert!(text.contains(escaped), "{text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'), "{text:?}");
    let mut top = Top::start(160, 30, &["--filter", &filter]);
    top.until_shown(escaped);
    top.press("\x1b[B\r");
    top.until_shown("Identity");
    top.until_shown(escaped);
    top.press("qq");
    top.end();
    top.assert_given_back();
}

#[test]
fn a_resized_terminal_is_filled_anew() {
    let mut top = Top::start(120, 40, &["-d", "0.2"]);
    top.until_shown("F10 Quit");
    let size = Winsize { ws_col: 60, ws_row: 12, ws_xpixel: 0, ws_ypixel: 0 };
    // The kernel sends SIGWINCH to the foreground group of the terminal, which is `kumo top`.
    tcsetwinsize(&top.slave, size).expect("a terminal has a size");
    top.until("keys in the twelfth line", |screen| screen.lines()[11].contains("F10 Quit"));
    top.press("q");
    top.end();
}

#[test]
fn keys_work_while_a_node_is_silent() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("silent.sock");
    // The kernel accepts connections for it; nobody ever answers.
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let address = format!("unix:{}", socket.display());
    let mut top = Top::start_with(80, 24, &["--node", &address]);
    top.until_shown("reading");
    top.press("h");
    top.until_shown("kumo top: keys");
    top.press(" q");
    top.end();
    top.assert_given_back();
}

#[test]
fn what_a_node_said_stays_when_it_is_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let run_dir = folder.path().join("run").display().to_string();
    let state_dir = folder.path().join("state").display().to_string();
    let node = Command::new(env!("CARGO_BIN_EXE_kumo"))
        .args(["up", "--collector", "proc", "--listen", "127.0.0.1:0"])
        .args(["--run-dir", &run_dir, "--state-dir", &state_dir])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut node = Killed(node.expect("kumo starts"));
    // Until the node is there the view says that it cannot reach it, and asks again.
    let mut top = Top::start_with(100, 30, &["-d", "0.1", "--run-dir", &run_dir]);
    top.until_ready();
    let processes = |screen: &Screen| screen.lines().iter().any(|line| line.starts_with("Tasks "));
    assert!(processes(&top.screen));
    node.0.kill().expect("it is our child");
    top.until_shown("no news for");
    top.until_ready();
    assert!(processes(&top.screen), "{}", top.screen.lines().join("\n"));
    top.press("q");
    top.end();
}

/// A child that is killed and reaped in the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already; then there is only the reaping left.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn text_has_as_many_rows_as_asked_for() {
    let text = once(&["--once", "-l", "5"]);
    let (header, table) = text.split_once("\n\n").expect("a blank line below the header");
    assert!(header.contains("Tasks ") && header.contains("Mem ["), "{header}");
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 6, "{table}");
    assert!(lines[0].ends_with("COMMAND"), "{table}");
    // Into a pipe it prints once even when nobody says so.
    assert_eq!(once(&["-l", "1"]).lines().filter(|line| line.ends_with("COMMAND")).count(), 1);
    let twice = once(&["-b", "-n", "2", "-d", "0.1", "-l", "1"]);
    assert_eq!(twice.lines().filter(|line| line.ends_with("COMMAND")).count(), 2);
}

#[test]
fn json_has_one_reading_a_line() {
    let animal = Zoo::sleeper(&[b"json \x1b \xff"]);
    let filter = format!("pid == {}", animal.pid());
    let text = once(&["--json", "-n", "2", "-d", "0.1", "--filter", &filter]);
    let readings: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    assert_eq!(readings.len(), 2);
    for reading in &readings {
        assert_eq!(reading["collector"], "proc");
        assert_eq!(reading["rows"].as_array().expect("rows").len(), 1);
        assert_eq!(reading["rows"][0]["pid"], animal.pid());
        assert_eq!(reading["rows"][0]["cmdline"], "json \u{1b} \u{fffd}");
        assert!(reading["tasks"]["processes"].as_u64() > Some(1), "{reading}");
        // Null when the kernel has counted no time between two readings, as it may on a virtual
        // machine that was kept from running.
        let share = &reading["host_now"]["cpu_percent"];
        assert!(share["busy"].is_number() || share.is_null(), "{reading}");
    }
    let generations = [0, 1].map(|index| readings[index]["generation"].as_u64());
    assert!(generations[0] < generations[1], "{generations:?}");
}

#[test]
fn wrong_arguments_are_refused() {
    let cases: [(&[&str], &str); 4] = [
        (&["--once", "--sort", "cpi"], "did you mean `cpu`?"),
        (&["--once", "--filter", "cpu >"], "filter"),
        (&["--once", "-d", "0"], "write seconds from 0.1"),
        (&["--once", "-n", "3"], "cannot be used with"),
    ];
    for (arguments, want) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_kumo")).arg("top").args(arguments).output();
        let output = output.expect("kumo starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(want), "{arguments:?}: {errors}");
    }
}
