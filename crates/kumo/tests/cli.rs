//! The built command against real processes of this host.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use kumo_testbed::{Animal, Zoo};
use serde_json::Value;

/// The command with nothing of the caller's surroundings that would change its answers, reading this
/// host itself even where a node runs.
fn kumo(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kumo"));
    command.args(args).env_remove("NO_COLOR").env("TERM", "xterm").stdin(Stdio::null());
    command
}

/// What it printed and how it ended.
struct Said {
    status: ExitStatus,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        let text = |bytes| String::from_utf8(bytes).expect("the command prints UTF-8");
        Said { status: output.status, out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Said {
    /// Fails unless it ended with this code; shows what was said.
    #[track_caller]
    fn with_code(self, code: i32) -> Said {
        let Said { status, out, err } = &self;
        assert_eq!(status.code(), Some(code), "stdout: {out}\nstderr: {err}");
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).expect("one JSON document")
    }
}

fn run(args: &[&str]) -> Said {
    kumo(args).output().expect("the command starts").into()
}

/// As [`run`], reading this host itself even where a node runs.
fn run_here(args: &[&str]) -> Said {
    run(&[args, &["--collector", "proc"]].concat())
}

fn sleeper(name: &str) -> Animal {
    Zoo::sleeper(&[name.as_bytes()])
}

fn lives(pid: i32) -> bool {
    // A zombie is in /proc until it is reaped, but it does not live.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}

fn id_of(pid: i32) -> String {
    let said = run_here(&["ps", &pid.to_string(), "-o", "id", "--no-header"]).with_code(0);
    said.out.trim().to_owned()
}

#[test]
fn json_agrees_with_proc_by_every_collector() {
    let animal = Zoo::sleeper(&[b"kumo-agrees", b"", b"two words"]);
    let pid = animal.pid().to_string();
    let columns = "pid,ppid,uid,threads,argv,exe,id,comm";
    let link = fs::read_link(format!("/proc/{pid}/exe")).expect("it is ours");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let stat: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let start_ticks: u64 = stat[19].parse().expect("field 22");
    let mut read_by = Vec::new();
    for collector in ["iter.s", "iter", "proc"] {
        let said = run(&["ps", &pid, "--json", "-o", columns, "--collector", collector]);
        if said.status.code() == Some(1) && said.err.contains("does not work here") {
            continue;
        }
        let answer = said.with_code(0).json();
        read_by.push(answer["collector"].as_str().map(str::to_owned));
        assert_eq!(answer["rows"].as_array().map(Vec::len), Some(1), "{answer}");
        let row = &answer["rows"][0];
        assert_eq!(row["pid"], animal.pid());
        assert_eq!(row["ppid"].to_string(), stat[1]);
        assert_eq!(row["threads"].to_string(), stat[17]);
        assert_eq!(row["argv"], serde_json::json!(["kumo-agrees", "", "two words"]));
        assert_eq!(row["exe"], link.to_str().expect("a plain path"));
        let id = row["id"].as_str().expect("a text");
        let start_ns: u64 = id.split_once('@').expect("PID@START").1.parse().expect("a number");
        assert_eq!(start_ns / 10_000_000, start_ticks, "by {collector}");
    }
    assert!(read_by.contains(&Some("proc".to_owned())), "/proc is always there");
}

#[test]
fn the_default_looks_like_ps() {
    let animal = sleeper("kumo-looks-like-ps");
    let said = run_here(&["ps", &animal.pid().to_string()]).with_code(0);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines.len(), 2, "{}", said.out);
    let heading: Vec<&str> = lines[0].split_whitespace().collect();
    let want = "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND";
    assert_eq!(heading.join(" "), want);
    assert!(lines[1].ends_with("kumo-looks-like-ps"), "{}", lines[1]);
    assert!(!said.out.contains('\x1b'), "a pipe gets no colour");
    let fields: Vec<&str> = lines[1].split_whitespace().collect();
    let rss_kib: u64 = fields[5].parse().expect("a pipe gets KiB, as from ps");
    let statm = fs::read_to_string(format!("/proc/{}/statm", animal.pid())).expect("it lives");
    let pages: u64 = statm.split(' ').nth(1).expect("the second").parse().expect("a number");
    // Not all kernels count to the page in `statm`; bytes or pages would be far off.
    let statm_kib = pages * rustix::param::page_size() as u64 / 1024;
    assert!((statm_kib / 2..=statm_kib * 2).contains(&rss_kib), "{rss_kib} against {statm_kib}");
}

#[test]
fn a_child_stands_below_its_parent_in_the_tree() {
    let animal = sleeper("kumo-in-a-tree");
    let (parent, child) = (std::process::id(), animal.pid());
    let filter = format!("pid == {parent} || pid == {child}");
    let args = ["ps", "--tree", "--ascii", "-o", "pid,cmdline", "--no-header", "--filter", &filter];
    let said = run_here(&args).with_code(0);
    let lines: Vec<&str> = said.out.lines().map(str::trim_start).collect();
    assert_eq!(lines.len(), 2, "{}", said.out);
    assert!(lines[0].starts_with(&parent.to_string()));
    assert_eq!(lines[1], format!("{child} `- kumo-in-a-tree"));
}

#[test]
fn hostile_command_lines_reach_no_terminal() {
    let hostile: [&[u8]; 5] =
        [b"a\nb", b"\x1b[31mred\x1b]0;title\x07", b"\xff\xfe", "\u{202e}txt.exe".as_bytes(), b"\r"];
    let animal = Zoo::sleeper(&hostile);
    let pid = animal.pid().to_string();
    for extra in [&["-o", "cmdline"][..], &["-o", "argv,pid"], &["--tree"], &["--color", "always"]]
    {
        let said = run_here(&[&["ps", &pid], extra].concat()).with_code(0);
        assert_eq!(said.out.lines().count(), 2, "{}", said.out);
        let colored = extra.contains(&"always");
        let mut plain = said.out.clone();
        for look in ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[33m"] {
            plain = if colored { plain.replace(look, "") } else { plain };
        }
        let bad = plain.chars().find(|c| c.is_control() && *c != '\n' || *c == '\u{202e}');
        assert_eq!(bad, None, "in {:?}", said.out);
        let shown = "a\\nb \\x1b[31mred\\x1b]0;title\\x07 \u{fffd}\u{fffd} \\u{202e}txt.exe \\r";
        assert!(extra[1..].contains(&"argv,pid") || plain.contains(shown), "{plain}");
    }
    let row = run_here(&["ps", &pid, "--ndjson", "-o", "argv"]).with_code(0);
    assert_eq!(row.out.lines().count(), 1);
    let want = hostile.map(|text| String::from_utf8_lossy(text).into_owned());
    assert_eq!(row.json()["argv"], serde_json::json!(want), "JSON has the text itself");
}

#[test]
fn exit_codes() {
    let animal = sleeper("kumo-exit-codes");
    let pid = animal.pid().to_string();
    // Above the largest number that a kernel gives.
    let nobody = "2147483646";
    let many: Vec<String> = (1_000_000..1_002_000).map(|pid| pid.to_string()).collect();
    let many: Vec<&str> = ["ps"].into_iter().chain(many.iter().map(String::as_str)).collect();
    let cases: [(&[&str], i32); 25] = [
        (&["ps", &pid], 0),
        (&["ps", &pid, nobody], 3),
        (&["ps", nobody], 1),
        (&["ps", &pid, "--json"], 0),
        (&["ps", &pid, nobody, "--json"], 3),
        (&["ps", nobody, "--json"], 1),
        (&["ps", &pid, nobody, "--json", "-o", "comm"], 3),
        (&["ps", &pid, nobody, "--ndjson"], 3),
        (&["ps", nobody, "--ndjson", "-o", "comm"], 1),
        (&["ps", &pid, nobody, "--json", "-o", "count()"], 0),
        (&["ps", &pid, "--filter", "true // a remark"], 0),
        (&["ps", &pid, "--filter", "pid == 1) || (true"], 2),
        (&["pgrep", "--filter", "pid == 1) || (true"], 2),
        (&many, 2),
        (&["ps", "--filter", "nope == 1"], 2),
        (&["ps", "-o", "nope"], 2),
        (&["ps", "--sort", "nope"], 2),
        (&["ps", "--limit", "0"], 2),
        (&["ps", "sshd"], 2),
        (&["ps", "--tree", "-o", "count()"], 2),
        (&["ps", "--watch=-1"], 2),
        (&["pgrep", "-x", "kumo-no-such-name"], 1),
        (&["pgrep"], 2),
        (&["pgrep", "("], 2),
        (&["host", "--json"], 0),
    ];
    for (args, code) in cases {
        let said = run_here(args);
        let (out, err) = (&said.out, &said.err);
        assert_eq!(said.status.code(), Some(code), "{args:?}\nstdout: {out}\nstderr: {err}");
        assert!(code == 0 || !err.is_empty() || args.contains(&"-x"), "{args:?} says why");
    }
}

#[test]
fn json_with_missing_processes_is_whole() {
    let animal = sleeper("kumo-json-missing");
    let pid = animal.pid().to_string();
    let said = run_here(&["ps", &pid, "2147483646", "--json", "-o", "pid,cmdline"]).with_code(3);
    let want = serde_json::json!([{ "pid": animal.pid(), "cmdline": "kumo-json-missing" }]);
    assert_eq!(said.json()["rows"], want);
    assert!(said.err.contains("there is no process 2147483646"), "{}", said.err);
    let said = run_here(&["ps", &pid, "2147483646", "--ndjson", "-o", "comm"]).with_code(3);
    assert_eq!(said.json()["comm"], "kumo-zoo");
    assert!(said.err.contains("1 of these 2 processes"), "{}", said.err);
}

#[test]
fn a_wrong_condition_is_told_by_its_own_characters() {
    for command in [&["ps", "1"][..], &["pgrep", "x"], &["kill", "--yes"]] {
        let wrong = [command, &["--filter", "pid == nonsense"]].concat();
        let said = run(&wrong).with_code(2);
        assert!(said.err.contains("character 8"), "{wrong:?}: {}", said.err);
        // Outside of its brackets it would choose everybody.
        let outside = [command, &["--filter", "pid == 1) || (true"]].concat();
        run(&outside).with_code(2);
    }
}

#[test]
fn no_process_puts_a_control_character_on_a_terminal() {
    let hostile = "\"><script>\n\x1b[31m\x7f\u{9b}31m\u{202e}".as_bytes();
    let animals = [
        Zoo::named(b"\x1b[31m\n\xff\xc2\x9b"),
        Zoo::sleeper(&[hostile, b"\xff\xfe", b"\r"]),
        Zoo::retitled(&[b"before"], hostile),
        Zoo::zombie(),
        Zoo::stopped(),
        Zoo::threaded(3),
    ];
    let is_bad = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    let bad = |text: &str| text.chars().find(|c| is_bad(*c));
    let columns = "pid,id,user,comm,stat,argv,exe,cwd,cgroup,wchan,cmdline";
    for args in [&["ps"][..], &["ps", "-o", columns], &["ps", "--tree", "-o", columns]] {
        let said = run_here(args).with_code(0);
        assert_eq!(bad(&said.out), None, "{args:?}");
        for animal in &animals {
            let pid = animal.pid().to_string();
            let of_it = |line: &&str| line.split_whitespace().take(2).any(|word| word == pid);
            assert_eq!(
                said.out.lines().filter(of_it).count(),
                1,
                "{pid} by {args:?}: {}",
                said.out
            );
        }
    }
    // JSON has the very texts, and still nothing that a terminal obeys.
    let pids = animals.each_ref().map(|animal| animal.pid().to_string());
    let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
    for args in [
        &[&["ps", "--json", "-o", columns], &pids[..]].concat()[..],
        &["pgrep", "--json", "-f", "script"],
        &["top", "-b", "--json", "-n", "1"],
    ] {
        let said = run_here(args).with_code(0);
        assert_eq!(bad(&said.out), None, "{args:?}");
        assert!(said.out.contains("<script>\\n\\u001b[31m\\u007f\\u009b31m\\u202e"), "{args:?}");
        said.json();
    }
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    for args in [&["ps", "--collector", "proc"][..], &["ps", "--json", "--collector", "proc"]] {
        let mut command = kumo(args);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        drop(child.stdout.take());
        let said = Said::from(child.wait_with_output().expect("it ends"));
        assert_eq!((said.with_code(0).err.as_str(), args), ("", args));
    }
}

#[test]
fn columns_are_chosen_added_and_listed() {
    let animal = sleeper("kumo-columns");
    let pid = animal.pid().to_string();
    let heading = |args: &[&str]| {
        let said = run_here(&[&["ps", &pid], args].concat()).with_code(0);
        let heading = said.out.lines().next().unwrap_or_default();
        heading.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(heading(&["-o", "pid,comm"]), "PID COMMAND");
    assert_eq!(heading(&["-o", "pid,%cpu", "+nice"]), "PID %CPU NI");
    let added = heading(&["+nice", "+rss"]);
    assert!(added.ends_with("TIME NI COMMAND"), "{added}");
    let said = run(&["ps", "--columns"]).with_code(0);
    for name in ["pid", "cmdline", "cgroup", "run_delay"] {
        assert!(said.out.lines().any(|line| line.starts_with(name)), "{name} is not listed");
    }
}

#[test]
fn groups_are_counted() {
    let _animals = [sleeper("kumo-in-a-group"), sleeper("kumo-in-a-group")];
    let filter = "cmdline == 'kumo-in-a-group'";
    let args = ["ps", "--group", "cmdline", "-o", "count(),cmdline", "--filter", filter];
    let said = run_here(&args).with_code(0);
    assert_eq!(said.out, "COUNT COMMAND\n    2 kumo-in-a-group\n");
}

#[test]
fn a_terminal_gets_lines_that_fit_and_colour() {
    let animal = sleeper(&format!("kumo-{}", "w".repeat(200)));
    let command = format!(
        "stty cols 60 rows 20; {} ps {} --collector proc",
        env!("CARGO_BIN_EXE_kumo"),
        animal.pid()
    );
    let on_terminal = |variable: &str| {
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::null());
        script.env("TERM", "xterm").env_remove("NO_COLOR").env(variable, "1");
        Said::from(script.output().expect("script of util-linux")).with_code(0).out
    };
    let plain = on_terminal("NO_COLOR");
    assert!(!plain.contains('\x1b'), "{plain}");
    let lines: Vec<&str> = plain.lines().map(|line| line.trim_end_matches('\r')).collect();
    assert_eq!(lines.len(), 2, "{plain}");
    assert!(lines.iter().all(|line| line.chars().count() <= 60), "{plain}");
    assert!(lines[1].ends_with('…'), "{plain}");
    assert!(on_terminal("KUMO_TEST").contains("\x1b[1m"), "headings are bold");
}

#[test]
fn pgrep_finds_and_never_finds_itself() {
    let animal = Zoo::named(b"kumo-findme");
    let pid = animal.pid().to_string();
    let found = |args: &[&str]| run_here(&[&["pgrep"], args].concat()).with_code(0).out;
    assert_eq!(found(&["kumo-find"]), format!("{pid}\n"));
    assert_eq!(found(&["-x", "kumo-findme"]), format!("{pid}\n"));
    assert_eq!(found(&["-c", "-i", "KUMO-FINDME"]), "1\n");
    assert_eq!(found(&["-l", "kumo-findme"]), format!("{pid} kumo-findme\n"));
    assert_eq!(found(&["--id", "kumo-findme"]).trim(), id_of(animal.pid()));
    run_here(&["pgrep", "-x", "kumo-find"]).with_code(1);
    // The marker stands in the command line of the one that searches, and nowhere else.
    let marker = format!("kumo-marker-{}", std::process::id());
    let said = run_here(&["pgrep", "-f", &marker]).with_code(1);
    assert_eq!(said.out, "");
}

#[test]
fn pgrep_takes_the_newest_and_the_oldest() {
    let first = Zoo::named(b"kumo-ages");
    let second = Zoo::named(b"kumo-ages");
    let (first, second) = (first.pid(), second.pid());
    assert_eq!(run_here(&["pgrep", "-o", "kumo-ages"]).out, format!("{first}\n"));
    assert_eq!(run_here(&["pgrep", "-n", "kumo-ages"]).out, format!("{second}\n"));
}

#[test]
fn a_wrong_start_is_refused_and_the_process_lives() {
    let animal = sleeper("kumo-wrong-start");
    let (pid, start) = (animal.pid(), id_of(animal.pid()));
    let start_ns: u64 = start.split_once('@').expect("PID@START").1.parse().expect("a number");
    for wrong in [start_ns - 10_000_000, start_ns + 10_000_000, 0] {
        let said = run(&["kill", "-9", &format!("{pid}@{wrong}")]).with_code(1);
        assert!(said.err.contains("belongs to another process now"), "{}", said.err);
    }
    assert!(lives(pid));
    run(&["kill", "-KILL", "--wait", &format!("{pid}@{start_ns}")]).with_code(0);
    assert!(!lives(pid));
}

#[test]
fn some_hit_and_some_not_is_partial() {
    let animal = sleeper("kumo-partial");
    let said = run(&["kill", "--wait", &animal.pid().to_string(), "2147483646"]).with_code(3);
    assert!(said.err.contains("2147483646 is gone"), "{}", said.err);
    assert!(!lives(animal.pid()));
}

#[test]
fn kill_spares_what_nobody_means() {
    let animal = sleeper("kumo-spared");
    let pid = animal.pid().to_string();
    let cases: [&[&str]; 7] = [
        &["kill", &pid, "0"],
        &["kill", &pid, "--", "-1"],
        &["kill", &pid, "1"],
        &["kill", &pid, "--run-dir", "/nowhere"],
        &["kill", "-s", "NOPE", &pid],
        &["kill", "-99", &pid],
        &["kill"],
    ];
    for args in cases {
        let said = run(args).with_code(2);
        assert!(!said.err.is_empty(), "{args:?} says why");
    }
    run(&["kill", "--dry-run", &pid]).with_code(0);
    assert!(lives(animal.pid()), "nothing is sent when a part of it is refused");
}

#[test]
fn kill_by_condition_asks_and_hits_exactly_those() {
    let meant = Zoo::named(b"kumo-meant");
    let spared = Zoo::named(b"kumo-not-meant");
    let filter = "comm == 'kumo-meant'";
    let said = run(&["kill", "--filter", filter]).with_code(2);
    assert!(said.out.contains(&id_of(meant.pid())), "it shows who is meant: {}", said.out);
    assert!(said.err.contains("--yes"), "{}", said.err);
    assert!(lives(meant.pid()));
    run(&["kill", "--filter", filter, "--yes", "--wait", "-9"]).with_code(0);
    assert!(!lives(meant.pid()) && lives(spared.pid()));
}

#[test]
fn waiting_ends_when_the_time_is_over() {
    let animal = Zoo::stopped();
    // A stopped process takes TERM only when it goes on.
    let pid = animal.pid().to_string();
    let said = run(&["kill", "--wait", "--timeout", "0", &pid]).with_code(1);
    assert!(said.err.contains("still runs"), "{}", said.err);
    run(&["kill", "-CONT", "--wait", &pid]).with_code(0);
    assert!(!lives(animal.pid()));
}

#[test]
fn signals_are_listed() {
    let said = run(&["kill", "--list"]).with_code(0);
    assert!(said.out.starts_with(" 1 HUP"), "{}", said.out);
    assert_eq!(said.out.lines().count(), 62);
}

#[test]
fn completions_parse_in_their_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).with_code(0).out;
        for word in ["ps", "pgrep", "kill", "doctor", "columns"] {
            assert!(script.contains(word), "{shell} knows {word}");
        }
        let mut parser = Command::new(shell);
        let started = parser.arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        // A shell that is not installed cannot be asked.
        let Ok(mut parser) = started else { continue };
        let mut input = parser.stdin.take().expect("it was piped");
        input.write_all(script.as_bytes()).expect("the shell reads");
        drop(input);
        let said = Said::from(parser.wait_with_output().expect("it ends"));
        assert_eq!(said.with_code(0).err, "", "{shell} has something to say");
    }
}

#[test]
fn every_subcommand_has_help_with_examples() {
    let subcommands =
        ["up", "ps", "top", "pgrep", "kill", "host", "hosts", "map", "doctor", "completions"]
            .map(Some);
    for subcommand in subcommands.into_iter().chain([None]) {
        let args: Vec<&str> = subcommand.into_iter().chain(["--help"]).collect();
        let said = run(&args).with_code(0);
        assert!(said.out.contains("Examples:\n  kumo "), "{args:?}: {}", said.out);
        assert!(said.out.contains("Usage: kumo"), "{args:?}");
    }
    let said = run(&["--version"]).with_code(0);
    assert_eq!(said.out, format!("kumo {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_doctor_reports_whatever_it_finds() {
    let said = run(&["doctor", "--json"]).with_code(0);
    let report = said.json();
    let checks = report["checks"].as_array().expect("a list");
    let find = |name: &str| checks.iter().find(|check| check["name"] == name);
    for name in ["collector", "BTF", "cgroups", "user namespaces", "KVM", "runc", "kernel TLS"] {
        let check = find(name).unwrap_or_else(|| panic!("no check of {name}"));
        let fixed = check["state"] == "ok";
        assert_eq!(check["fix"].is_null(), fixed, "what is missing can be got: {check}");
    }
    assert_eq!(find("pidfd").map(|check| check["state"] == "ok"), Some(true));
    let text = run(&["doctor"]).with_code(0).out;
    assert!(text.starts_with("Process table\n"), "{text}");
}

#[test]
fn the_doctor_is_not_held_up_by_a_program_that_hangs() {
    let world = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = world.path().join(name);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    };
    // The helper outlives its parent and holds the pipe open.
    file("runc", "#!/bin/sh\necho runc version 7.7.7\nsleep 5 &\n");
    file("crun", "#!/bin/sh\nprintf 'crun 1\\033[31m'\n");
    file("youki", "#!/bin/sh\nexec sleep 60\n");
    let path = format!("{}:/usr/bin:/bin", world.path().display());
    let said = Said::from(kumo(&["doctor"]).env("PATH", path).output().expect("it starts"));
    let out = said.with_code(0).out;
    assert!(out.contains("runc version 7.7.7"), "{out}");
    assert!(out.contains("crun 1\\x1b[31m"), "{out}");
    assert!(out.contains("youki does not tell its version"), "{out}");
}

/// A node with directories of its own; killed and reaped on drop.
struct Node {
    child: Child,
    url: String,
    dirs: tempfile::TempDir,
}

impl Node {
    fn start() -> Node {
        let dirs = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dirs.path().join(name).display().to_string();
        let (state, run) = (at("state"), at("run"));
        let args = ["up", "--listen", "127.0.0.1:0", "--state-dir", &state, "--run-dir", &run];
        Node::of(&mut kumo(&args), dirs)
    }

    /// Starts a node and waits until it serves.
    fn of(command: &mut Command, dirs: tempfile::TempDir) -> Node {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the node starts");
        let mut first = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("it was piped"));
        output.read_line(&mut first).expect("its first line");
        let words = first.split_whitespace();
        let url = words.filter(|word| word.starts_with("http://")).map(str::to_owned).next();
        // What it prints later is read and dropped, so that it never waits for us.
        std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
        Node { child, url: url.expect("the line says where it listens"), dirs }
    }

    fn run_dir(&self) -> PathBuf {
        self.dirs.path().join("run")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_node_gives_the_same_answers() {
    let node = Node::start();
    let animal = sleeper("kumo-through-a-node");
    let pid = animal.pid().to_string();
    let run_dir = node.run_dir().display().to_string();
    let socket = format!("unix:{run_dir}/api.sock");
    let columns = "pid,ppid,user,cmdline,threads";
    let here = run_here(&["ps", &pid, "-o", columns, "--json"]).with_code(0).json();
    for from in [["--run-dir", &run_dir], ["--node", &socket], ["--node", &node.url]] {
        let ask = |args: &[&str]| run(&[args, &from[..]].concat());
        let answer = ask(&["ps", &pid, "-o", columns, "--json"]).with_code(0).json();
        assert_eq!(answer["rows"], here["rows"], "from {from:?}");
        let found = ask(&["pgrep", "-f", "^kumo-through-a-node$"]).with_code(0);
        assert_eq!(found.out, format!("{pid}\n"));
        let host = ask(&["host", "--json"]).with_code(0).json();
        assert_eq!(host["boot"]["boot_id"], answer["boot_id"]);
        let said = ask(&["ps", &pid, "-v"]).with_code(0);
        assert!(said.err.contains("asking the node at"), "{}", said.err);
        ask(&["ps", "--filter", "cpu > 'x'"]).with_code(2);
    }
}

#[test]
fn a_node_without_a_cluster_is_a_cluster_of_one_host() {
    let node = Node::start();
    let animal = sleeper("kumo-of-many");
    let pid = animal.pid().to_string();
    let run_dir = node.run_dir().display().to_string();
    let ask = |args: &[&str]| run(&[args, &["--run-dir", &run_dir]].concat());
    let hosts = ask(&["hosts", "--json", "--check"]).with_code(0).json();
    let (dc, host) = (&hosts["hosts"][0]["dc"], &hosts["hosts"][0]["host"]);
    let host = format!("{}/{}", dc.as_str().expect("a name"), host.as_str().expect("a name"));
    let found = ask(&["ps", "--all", &pid, "-o", "pid,cmdline", "--no-header"]).with_code(0);
    assert_eq!(found.out, format!("{host} {pid} kumo-of-many\n"));
    let answer = ask(&["ps", "--all", &pid, "--json", "-o", "pid"]).with_code(0).json();
    assert_eq!(answer["hosts"]["answered"], 1);
    assert_eq!(answer["rows"][0]["pid"], animal.pid());
    ask(&["ps", "--all", &pid, "2147483646"]).with_code(3);
    let row = ask(&["ps", "--all", &pid, "--ndjson", "-o", "pid"]).with_code(0);
    assert_eq!(row.out.lines().count(), 1, "every line is a row: {}", row.out);
    let said = ask(&["pgrep", "--all", "-f", "^kumo-of-many$"]).with_code(0);
    assert_eq!(said.out, format!("{host}/{pid}\n"));
    let marker = format!("kumo-nobody-{pid}");
    assert_eq!(ask(&["pgrep", "--all", "-f", &marker]).with_code(1).out, "", "never itself");
    // Nor where the same node is asked by its address.
    let served = node.url.as_str();
    for scope in [&[][..], &["--all"]] {
        let by_http = [&["pgrep", "--node", served, "-f", &marker][..], scope].concat();
        assert_eq!(run(&by_http).with_code(1).out, "", "{by_http:?}");
    }
    // There nobody has said who asks; how one does is told.
    let refused = run(&["rights", "token", "list", "--node", served]).with_code(1).err;
    assert!(refused.contains("--token-file FILE or in KUMO_TOKEN"), "{refused}");
    let report = ask(&["host", &host, "--json"]).with_code(0).json();
    assert_eq!(report["host"], hosts["hosts"][0]["host"]);
    for args in [&["host", "--all"][..], &["map"], &["top", "--all", "--once", "-l", "3"]] {
        let said = ask(args).with_code(0);
        let name = host.rsplit('/').next().expect("a name");
        assert!(said.out.contains(name), "{args:?}: {}", said.out);
    }
    ask(&["ps", "--dc", "nowhere"]).with_code(1);
    let said = ask(&["ps", "--where", "nope == 1"]).with_code(2);
    assert!(said.err.contains("no column `nope`"), "{}", said.err);
    let process = format!("{host}/{}", id_of(animal.pid()));
    let said = ask(&["kill", "--all", "--filter", &format!("pid == {pid}")]).with_code(2);
    assert!(said.out.contains(&host) && said.err.contains("--yes"), "{}", said.err);
    assert!(lives(animal.pid()));
    let said = ask(&["kill", "--dry-run", &process]).with_code(0);
    // The node may know the start to the nanosecond.
    assert!(said.out.contains(&format!("would send TERM to {host}/{pid}@")), "{}", said.out);
    assert!(lives(animal.pid()), "nothing was sent");
    ask(&["kill", "--wait", "-9", &process]).with_code(0);
    assert!(!lives(animal.pid()));
    // Dropping it reaps it; until then its number is its own.
    drop(animal);
    ask(&["kill", &process]).with_code(1);
}

#[test]
fn many_hosts_need_a_node() {
    let nowhere = tempfile::tempdir().expect("a directory");
    let run_dir = nowhere.path().display().to_string();
    for args in [&["ps", "--all"][..], &["hosts"], &["map"], &["host", "tokyo/a"]] {
        let said = run(&[args, &["--run-dir", &run_dir]].concat()).with_code(1);
        assert!(said.err.contains("kumo up"), "{args:?}: {}", said.err);
    }
    let said = run_here(&["ps", "--all"]).with_code(2);
    assert!(said.err.contains("--collector"), "{}", said.err);
    let said = run(&["kill", "--all", "4711"]).with_code(2);
    assert!(said.err.contains("--filter"), "{}", said.err);
}

#[test]
fn a_node_that_was_named_is_never_replaced_by_another_source() {
    let nowhere = tempfile::tempdir().expect("a directory");
    let run_dir = nowhere.path().display().to_string();
    let socket = format!("unix:{run_dir}/api.sock");
    // A listener that takes connections and never answers is no node either, but that takes long;
    // one that says something else is found out at once.
    let liar = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}", liar.local_addr().expect("its address"));
    let lie = std::thread::spawn(move || {
        let (mut stream, _) = liar.accept().expect("a connection");
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").ok();
    });
    for (from, want) in [
        (["--run-dir", &run_dir], "cannot reach the node"),
        (["--node", &socket], "cannot reach the node"),
        (["--node", &address], "node"),
        (["--node", "tcp:1"], "unix:PATH or http://HOST:PORT"),
        (["--node", "https://web-1:7080"], "ssh -L"),
    ] {
        let said = run(&["ps", from[0], from[1]]);
        assert!(matches!(said.status.code(), Some(1 | 2)), "from {from:?}: {}", said.out);
        assert!(said.err.contains(want), "from {from:?}: {}", said.err);
        assert_eq!(said.out, "", "from {from:?}");
    }
    lie.join().expect("it was asked");
}

#[test]
fn a_socket_that_may_not_be_opened_is_passed_over() {
    use std::os::unix::process::CommandExt as _;
    // Only root can become somebody else.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = tempfile::tempdir().expect("a directory");
    let set_mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
    };
    set_mode(world.path(), 0o755);
    // The build directory may be root's alone; nobody else could start the command there.
    let command = world.path().join("kumo-copy");
    fs::copy(env!("CARGO_BIN_EXE_kumo"), &command).expect("a copy");
    fs::create_dir(world.path().join("kumo")).expect("a directory");
    let socket = world.path().join("kumo/api.sock");
    let _trap = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    set_mode(&socket, 0o600);
    let mut command = Command::new(command);
    command.args(["ps", "1", "-o", "pid", "-v"]).env("XDG_RUNTIME_DIR", world.path());
    let output = command.uid(65_534).gid(65_534).output().expect("it starts");
    let said = Said::from(output).with_code(0);
    assert!(said.err.contains("Permission denied"), "{}", said.err);
    assert!(said.err.contains("reading this host directly"), "{}", said.err);
}

#[test]
fn a_socket_of_another_user_is_not_believed() {
    use std::os::unix::process::CommandExt as _;
    // Only root can become two others.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = tempfile::tempdir().expect("a directory");
    let set_mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
    };
    set_mode(world.path(), 0o755);
    let copy = world.path().join("kumo-copy");
    fs::copy(env!("CARGO_BIN_EXE_kumo"), &copy).expect("a copy");
    let theirs = world.path().join("theirs");
    fs::create_dir(&theirs).expect("a directory");
    std::os::unix::fs::chown(&theirs, Some(65_533), Some(65_533)).expect("it is given away");
    let run_dir = theirs.join("kumo");
    let mut command = Command::new(&copy);
    command.args(["up", "--listen", "127.0.0.1:0", "--collector", "proc", "--state-dir"]);
    command.arg(theirs.join("state")).arg("--run-dir").arg(&run_dir);
    let node = Node::of(command.uid(65_533).gid(65_533), tempfile::tempdir().expect("a directory"));
    // Everybody may open it, and its path leads through directories that are not ours.
    set_mode(&theirs, 0o755);
    set_mode(&run_dir, 0o755);
    let socket = run_dir.join("api.sock");
    set_mode(&socket, 0o666);
    let ask = |args: &[&str]| -> Said {
        let mut command = Command::new(&copy);
        command.args(["ps", "1", "-o", "pid", "-v"]).args(args).env("XDG_RUNTIME_DIR", &theirs);
        command.uid(65_534).gid(65_534).output().expect("it starts").into()
    };
    let said = ask(&[]).with_code(0);
    assert!(said.err.contains("who listens there is another user"), "{}", said.err);
    assert!(said.err.contains("reading this host directly"), "{}", said.err);
    // Whoever names it believes it.
    let said = ask(&["--node", &format!("unix:{}", socket.display())]).with_code(0);
    assert!(said.err.contains("asking the node at"), "{}", said.err);
    drop(node);
}
