//! Awkward processes as clients of the built server see them, by every collector.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::time::{Duration, Instant};

use kumo_testbed::{Animal, Zoo};
use serde_json::{Value, json};
use support::{K2i, escaped};

/// Longest wait for something that other processes on a loaded machine may delay.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Scans while processes come and go: some hundred of them end during these.
const CHURN_SCANS: usize = 25;

/// Runs `check` against a server of each collector. Who is not root may not load BPF programs; root
/// may, and has to see them work.
fn by_every_collector(check: impl Fn(&Asked)) {
    let may_bpf = rustix::process::geteuid().is_root();
    for collector in ["iter.s", "iter", "proc"] {
        if may_bpf || collector == "proc" {
            // Whole command lines are what is looked at here.
            let options = ["--listen", "127.0.0.1:0", "--redact", "off", "--collector", collector];
            let k2i = K2i::with(&options);
            check(&Asked { k2i, collector });
        }
    }
}

/// A server, and by which collector it reads.
struct Asked {
    k2i: K2i,
    collector: &'static str,
}

impl Asked {
    /// Rows of the processes that fulfil a condition, as two clients read them: one by object, one
    /// by line.
    #[track_caller]
    fn rows(&self, columns: &str, filter: &str) -> Vec<Value> {
        let target = format!("/v2/proc?columns={}&filter={}", escaped(columns), escaped(filter));
        let answer = self.k2i.json(&target);
        assert_eq!(answer["collector"], self.collector);
        let rows = answer["rows"].as_array().unwrap().clone();
        assert_eq!(answer["matched"], rows.len(), "by {}", self.collector);
        let names: Vec<_> = columns.split(',').collect();
        for row in &rows {
            assert_eq!(row.as_object().unwrap().keys().collect::<Vec<_>>(), names);
        }
        rows
    }

    /// The one row of a process.
    #[track_caller]
    fn row(&self, pid: i32, columns: &str) -> Value {
        let rows = self.rows(columns, &format!("pid == {pid}"));
        assert_eq!(rows.len(), 1, "{pid} by {}: {rows:?}", self.collector);
        rows.into_iter().next().unwrap()
    }

    /// Asserts that the row of a process and its own page say this, and its page is whole.
    #[track_caller]
    fn shows(&self, pid: i32, want: &Value) {
        let want = want.as_object().unwrap();
        let names = want.keys().map(String::as_str).collect::<Vec<_>>().join(",");
        let page = self.k2i.json(&format!("/v2/proc/{pid}"));
        assert_eq!(page["pid"], pid);
        for (shown, from) in [(self.row(pid, &names), "row"), (page, "page")] {
            for (name, want) in want {
                assert_eq!(&shown[name], want, "{name} of {from} by {}: {shown}", self.collector);
            }
        }
    }

    /// Asks for a value until `is_so`; fails with the last one.
    #[track_caller]
    fn until(&self, pid: i32, column: &str, is_so: impl Fn(&Value) -> bool) {
        let began = Instant::now();
        loop {
            let value = self.row(pid, column)[column].clone();
            if is_so(&value) {
                return;
            }
            let late = began.elapsed() > WAIT_MAX;
            assert!(!late, "{column} of {pid} stays {value} by {}", self.collector);
        }
    }
}

fn proc_file(pid: i32, file: &str) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/{file}")).unwrap()
}

/// STAT of a process with our own niceness: its state, then its flags.
fn stat(state: &str, flags: &str) -> String {
    let nice = rustix::process::getpriority_process(None).unwrap();
    let nice = match nice.cmp(&0) {
        std::cmp::Ordering::Less => "<",
        std::cmp::Ordering::Equal => "",
        std::cmp::Ordering::Greater => "N",
    };
    format!("{state}{nice}{flags}")
}

#[test]
fn states_and_threads() {
    let (zombie, stopped, threaded) = (Zoo::zombie(), Zoo::stopped(), Zoo::threaded(7));
    let of_keeper = |animal: &Animal| json!(animal.keeper_pid());
    by_every_collector(|asked| {
        asked.shows(
            zombie.pid(),
            &json!({
                "pid": zombie.pid(), "ppid": of_keeper(&zombie), "state": "Z", "stat": stat("Z", ""),
                "comm": "kumo-zoo", "argv": [], "exe": null, "rss": 0, "threads": 1, "kernel": false,
            }),
        );
        let line = asked.row(zombie.pid(), "cmdline")["cmdline"].clone();
        assert!(line.as_str().is_some_and(|line| line.starts_with("[kumo-zoo]")), "{line}");
        asked.shows(
            stopped.pid(),
            &json!({
                "ppid": of_keeper(&stopped), "state": "T", "argv": ["stopped"],
                "cmdline": "stopped",
            }),
        );
        asked.shows(threaded.pid(), &json!({ "threads": 7, "state": "S", "stat": stat("S", "l") }));
        let zombies = asked.rows("pid,state", "state == 'Z'");
        assert!(zombies.iter().any(|row| row["pid"] == zombie.pid()), "{zombies:?}");
    });
}

#[test]
fn hostile_names_and_command_lines() {
    let named = Zoo::named(b"\"><script>\n\xff");
    let argv: [&[u8]; 6] = [
        b"\"><script>alert(1)</script>",
        b"a\nb\r\x1b[31m\x7f",
        b"not \xff\xc3( utf-8",
        "\u{9b}31m\u{202e}txt.exe\u{2028}".as_bytes(),
        b"",
        b"last",
    ];
    let sleeper = Zoo::sleeper(&argv);
    let texts = argv.map(|text| String::from_utf8_lossy(text).into_owned());
    by_every_collector(|asked| {
        asked.shows(named.pid(), &json!({ "comm": "\"><script>\n\u{fffd}", "argv": ["named"] }));
        asked.shows(sleeper.pid(), &json!({ "argv": texts, "cmdline": texts.join(" ") }));
        let found = asked.rows("pid", "argv[2].contains(b'\\xff') && argv[4] == ''");
        assert!(found.contains(&json!({ "pid": sleeper.pid() })), "{found:?}");
        // The addresses of the original, too, are valid JSON with the same texts.
        let old = asked.k2i.json(&format!("/v1/proc/{}", sleeper.pid()));
        assert_eq!(old[0]["cmdline"], json!(texts));
        let tree = asked.k2i.json(&format!("/v2/proc/{}/tree", sleeper.pid()));
        assert_eq!(tree["cmdline"], texts.join(" "));
    });
}

#[test]
fn a_command_line_of_two_mebibytes_is_whole() {
    let animal = Zoo::long_command_line(2 << 20);
    let bytes = proc_file(animal.pid(), "cmdline");
    assert!(bytes.len() >= 2 << 20);
    let line = String::from_utf8(bytes).unwrap();
    let argv: Vec<_> = line.trim_end_matches('\0').split('\0').collect();
    let want = json!({ "argv": argv, "cmdline": argv.join(" ") });
    let is_whole = |shown: &Value, by: &str| {
        for name in ["argv", "cmdline"] {
            // Two million letters help nobody in a message.
            assert!(shown[name] == want[name], "{name} is not whole {by}");
        }
    };
    by_every_collector(|asked| {
        let pid = animal.pid();
        is_whole(&asked.row(pid, "pid,cmdline,argv"), asked.collector);
        is_whole(&asked.k2i.json(&format!("/v2/proc/{pid}")), asked.collector);
        // The condition holds only for the end of the line, and for its whole length.
        let filter = format!(
            "argv.exists(text, text.startsWith('z')) && cmdline.size() == {}",
            argv.join(" ").len()
        );
        let rows = asked.rows("pid,cmdline,argv", &filter);
        // Another run of this test may have one like it.
        let found = rows.iter().find(|row| row["pid"] == pid);
        is_whole(found.expect("the condition holds for it"), asked.collector);
    });
}

#[test]
fn a_title_that_changes_is_seen_by_the_next_scan() {
    by_every_collector(|asked| {
        // One title fits where the old stood, the other runs on into the environment.
        for title in ["another", "a title longer than the arguments"] {
            let mut animal = Zoo::retitling(&[b"--first"], title.as_bytes());
            // The second answer is of lines that were kept.
            for _ in 0..2 {
                asked.shows(animal.pid(), &json!({ "cmdline": "--first", "argv": ["--first"] }));
            }
            animal.retitle();
            asked.shows(animal.pid(), &json!({ "cmdline": title, "argv": [title] }));
            let found = asked.rows("pid", &format!("cmdline == '{title}'"));
            assert!(found.contains(&json!({ "pid": animal.pid() })), "{found:?}");
        }
    });
}

#[test]
fn other_users() {
    let Some(animal) = Zoo::of_user(65_534) else { return };
    by_every_collector(|asked| {
        asked.shows(
            animal.pid(),
            &json!({
                "uid": 65_534, "euid": 65_534, "suid": 65_534, "fsuid": 65_534, "gid": 65_534,
                "egid": 65_534, "argv": ["of-user"],
            }),
        );
        // The system's data base of users may be slow; until it has answered there is the number.
        let user = nix::unistd::User::from_uid(65_534.into()).unwrap();
        let name = user.map_or_else(|| "65534".to_owned(), |user| user.name);
        let shown = asked.row(animal.pid(), "user")["user"].clone();
        assert!(shown == name.as_str() || shown == "65534", "{shown} by {}", asked.collector);
        let found = asked.rows("pid,euid", "euid == 65534");
        assert!(found.contains(&json!({ "pid": animal.pid(), "euid": 65_534 })), "{found:?}");
    });
}

#[test]
fn namespaces() {
    let Some(animal) = Zoo::in_pid_namespace() else { return };
    let outside = Zoo::sleeper(&[b"outside"]);
    let space = |pid: i32| {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
        let link = link.into_os_string().into_string().unwrap();
        let number = link.strip_prefix("pid:[").and_then(|link| link.strip_suffix(']'));
        number.unwrap().parse::<u64>().unwrap()
    };
    assert_ne!(space(animal.pid()), space(outside.pid()));
    by_every_collector(|asked| {
        let pid = animal.pid();
        asked.shows(
            pid,
            &json!({
                "pid": pid, "nspid": 1, "ppid": animal.keeper_pid(), "ns_pid": space(pid),
                "cmdline": "in-namespace",
            }),
        );
        asked.shows(outside.pid(), &json!({ "ns_pid": space(outside.pid()) }));
    });
}

#[test]
fn resident_memory() {
    const ANON_BYTES: u64 = 32 << 20;
    let animal = Zoo::resident(ANON_BYTES);
    let page = rustix::param::page_size() as u64;
    // Each CPU may keep so much of each of three counters to itself before `statm` shows it.
    let cpus = std::fs::read_to_string("/proc/stat").unwrap().matches("\ncpu").count() as u64;
    let unseen = 3 * cpus * (2 * cpus).max(32) * page;
    let statm = || {
        let text = String::from_utf8(proc_file(animal.pid(), "statm")).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * page
    };
    by_every_collector(|asked| {
        let before = statm();
        let row = asked.row(animal.pid(), "rss,anon,shared,vsize");
        let after = statm();
        let size = |name: &str| row[name].as_u64().unwrap();
        // At rest both are the same, but the kernel may swap, or join pages to large ones.
        let low = before.min(after).saturating_sub(unseen);
        assert!((low..=before.max(after) + unseen).contains(&size("rss")), "{row}, {before}");
        assert_eq!(size("rss"), size("anon") + size("shared"), "by {}", asked.collector);
        assert!(size("vsize") >= ANON_BYTES && size("vsize") >= size("rss"), "{row}");
    });
}

#[test]
fn cpu_time_grows() {
    let animal = Zoo::busy();
    by_every_collector(|asked| {
        let pid = animal.pid();
        let first = asked.row(pid, "time")["time"].as_f64().unwrap();
        assert!(first > 0.0, "it has run before");
        asked.until(pid, "time", |time| time.as_f64().is_some_and(|time| time > first));
        asked.until(pid, "cpu", |cpu| cpu.as_f64().is_some_and(|cpu| cpu > 0.0));
        asked.until(pid, "pcpu", |cpu| cpu.as_f64().is_some_and(|cpu| cpu > 0.0));
    });
}

#[test]
fn kernel_threads() {
    // Within a container or a namespace there may be none.
    let is_kernel = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let flags: u32 = stat.rsplit_once(") ")?.1.split(' ').nth(6)?.parse().ok()?;
        (flags & 0x0020_0000 != 0).then_some(pid)
    };
    let Some(pid) = is_kernel(2) else { return };
    let name = String::from_utf8(proc_file(pid, "comm")).unwrap();
    let name = name.trim_end();
    by_every_collector(|asked| {
        asked.shows(
            pid,
            &json!({
                "pid": pid, "ppid": 0, "kernel": true, "comm": name, "cmdline": format!("[{name}]"),
                "argv": [], "exe": null, "rss": 0, "anon": 0, "vsize": 0, "threads": 1,
            }),
        );
        let found = asked.rows("pid", "kernel && rss == 0");
        assert!(found.contains(&json!({ "pid": pid })), "{found:?}");
    });
}

#[test]
fn processes_that_end_while_they_are_read() {
    let animal = Zoo::churn();
    let parent = animal.pid();
    // Texts, numbers, links and files: what is read of a process at different times.
    let columns = "pid,ppid,id,user,state,comm,cmdline,argv,exe,rss,threads,time,cgroup,nspid";
    by_every_collector(|asked| {
        for _ in 0..CHURN_SCANS {
            let rows = asked.rows(columns, "true");
            let pids: Vec<_> = rows.iter().map(|row| row["pid"].as_i64().unwrap()).collect();
            assert!(pids.is_sorted_by(|a, b| a < b), "by {}: {pids:?}", asked.collector);
            assert!(pids.contains(&parent.into()), "it lives");
            for row in &rows {
                let text = |name: &str| row[name].as_str().unwrap_or_else(|| panic!("{row}"));
                let pid = row["pid"].as_i64().unwrap();
                let start = text("id").strip_prefix(&format!("{pid}@"));
                assert!(start.is_some_and(|start| start.parse::<u64>().is_ok()), "{row}");
                assert!("RSDTtZXIP".contains(text("state")) && text("state").len() == 1, "{row}");
                assert!(row["ppid"].is_i64() && row["time"].is_f64(), "{row}");
                // One that is just being taken away has no thread left.
                assert!(row["threads"].is_u64(), "{row}");
                if row["ppid"] == parent {
                    assert_eq!(text("comm"), "kumo-zoo", "{row}");
                    // Before its exec it is what its parent is, then itself, at the end a name; it
                    // may be gone when its line is read.
                    let line = row["cmdline"].as_str().unwrap_or_default();
                    let is_name = line.starts_with("[kumo-zoo]");
                    assert!(is_name || ["churn", "short", ""].contains(&line), "{row}");
                }
            }
            let tree = asked.k2i.json(&format!("/v2/proc/{parent}/tree"));
            assert_eq!(tree["pid"], parent);
        }
    });
}
