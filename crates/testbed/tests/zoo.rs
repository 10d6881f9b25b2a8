//! Every animal is what it says, and is gone when its guard is dropped.

use std::fs;
use std::path::Path;

use kumo_testbed::role::FILE_BYTES;
use kumo_testbed::{Mix, Zoo, crowd_arguments};

fn read(pid: i32, file: &str) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/{file}")).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The value of one line of `/proc/<pid>/status`.
fn status(pid: i32, key: &str) -> String {
    let text = String::from_utf8_lossy(&read(pid, "status")).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("status has no {key}")).trim().to_owned()
}

fn kib(pid: i32, key: &str) -> u64 {
    let text = status(pid, key);
    text.trim_end_matches(" kB").parse().unwrap_or_else(|_| panic!("{key}: {text}"))
}

fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn arguments_are_kept_byte_for_byte() {
    let cases: [(&[&[u8]], &[u8]); 4] = [
        (&[b"plain", b"--x"], b"plain\0--x\0"),
        (
            &[b"\"><script>alert(1)</script>", b"a\nb\x1b[31m"],
            b"\"><script>alert(1)</script>\0a\nb\x1b[31m\0",
        ),
        (&[b"not \xff\xc3( utf-8"], b"not \xff\xc3( utf-8\0"),
        (&[b"", b"", b"x", b""], b"\0\0x\0\0"),
    ];
    for (argv, want) in cases {
        let sleeper = Zoo::sleeper(argv);
        assert_eq!(read(sleeper.pid(), "cmdline"), want);
    }
}

#[test]
fn names_and_titles_are_set() {
    let named = Zoo::named(b"\"><script>\n\xff");
    assert_eq!(read(named.pid(), "comm"), b"\"><script>\n\xff\n");
    let short = Zoo::retitled(&[b"a-long-enough-name", b"argument"], b"short");
    let cmdline = read(short.pid(), "cmdline");
    assert!(cmdline.starts_with(b"short\0"), "{cmdline:?}");
    // A title longer than the argument vector runs on into the environment.
    let retitled = Zoo::retitled(&[b"tiny"], b"a title longer than the arguments");
    assert_eq!(read(retitled.pid(), "cmdline"), b"a title longer than the arguments\0");
    let mut retitling = Zoo::retitling(&[b"before"], b"after!");
    assert_eq!(read(retitling.pid(), "cmdline"), b"before\0");
    retitling.retitle();
    assert_eq!(read(retitling.pid(), "cmdline"), b"after!\0");
}

#[test]
fn a_command_line_of_two_mebibytes() {
    let animal = Zoo::long_command_line(2 << 20);
    assert!(read(animal.pid(), "cmdline").len() >= 2 << 20);
}

#[test]
fn states() {
    assert!(status(Zoo::zombie().pid(), "State").starts_with('Z'));
    assert!(status(Zoo::stopped().pid(), "State").starts_with('T'));
    let sleeper = Zoo::sleeper(&[b"sleeper"]);
    assert_eq!(status(sleeper.pid(), "Threads"), "1");
    assert_eq!(status(Zoo::threaded(7).pid(), "Threads"), "7");
}

#[test]
fn a_busy_process_has_used_cpu_time() {
    let busy = Zoo::busy();
    let ran = String::from_utf8_lossy(&read(busy.pid(), "schedstat")).into_owned();
    let ran_ns: u64 = ran.split(' ').next().and_then(|text| text.parse().ok()).expect("schedstat");
    assert!(ran_ns > 0);
    assert!(status(busy.pid(), "State").starts_with('R'));
}

#[test]
fn memory_is_resident() {
    let (plain, anon, file) = (Zoo::sleeper(&[b"s"]), Zoo::resident(32 << 20), Zoo::file_mapped());
    assert!(kib(anon.pid(), "RssAnon") >= 32 << 10);
    let more_kib = kib(file.pid(), "RssFile") - kib(plain.pid(), "RssFile");
    assert!(more_kib >= (FILE_BYTES as u64 >> 10) / 2, "{more_kib} KiB");
}

#[test]
fn users_and_namespaces() {
    match Zoo::of_user(65_534) {
        Some(other) => assert!(status(other.pid(), "Uid").starts_with("65534\t65534")),
        None => assert!(!rustix::process::geteuid().is_root()),
    }
    if let Some(inner) = Zoo::in_pid_namespace() {
        assert!(status(inner.pid(), "NSpid").ends_with("\t1"));
    }
}

#[test]
fn all_are_gone_when_the_guard_is() {
    let mut killed = Zoo::sleeper(&[b"sleeper"]);
    killed.kill();
    killed.kill();
    assert!(!exists(killed.pid()));
    let animals = [Zoo::sleeper(&[b"x"]), Zoo::stopped(), Zoo::zombie(), Zoo::busy(), Zoo::churn()];
    let pids = animals.each_ref().map(kumo_testbed::Animal::pid);
    assert!(pids.iter().all(|pid| exists(*pid)));
    drop(animals);
    assert!(!pids.iter().any(|pid| exists(*pid)), "{pids:?}");
}

#[test]
fn a_crowd_has_its_command_lines_and_ends_together() {
    let crowd = Zoo::crowd(300, Mix { threaded_each: 10, busy_each: 100 });
    for (i, pid) in crowd.pids().iter().enumerate() {
        let want = crowd_arguments(i).join("\0") + "\0";
        assert_eq!(String::from_utf8_lossy(&read(*pid, "cmdline")), want);
        assert_eq!(status(*pid, "Threads"), if i % 10 == 9 { "4" } else { "1" });
    }
    let (keeper, pids) = (crowd.keeper_pid(), crowd.pids().to_vec());
    drop(crowd);
    assert!(!exists(keeper) && !pids.iter().any(|pid| exists(*pid)));
}
