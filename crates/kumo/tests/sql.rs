//! `kumo sql` with the built binary: this host without a node, a host, and hosts of a cluster.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod host;

use std::process::Command;

use host::{Host, until};
use kumo_testbed::Zoo;
use rustix::process::Signal;

/// Without a node: code, output and complaints.
fn kumo(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kumo"));
    let said = command.args(["sql", "--collector", "proc"]).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (said.status.code(), text(said.stdout), text(said.stderr))
}

#[test]
fn this_host_answers_without_a_node() {
    let sleeper = Zoo::sleeper(&[b"a,b", b"\x1b[2J"]);
    let pid = sleeper.pid();
    let query = format!("SELECT pid, threads AS n, NULL AS x FROM processes WHERE pid = {pid}");
    let rows = format!(r#""columns":["pid","n","x"],"rows":[{{"pid":{pid},"n":1,"x":null}}]}}"#);
    for (form, want) in [("--csv", format!("pid,n,x\n{pid},1,\n")), ("--json", rows)] {
        let (code, out, err) = kumo(&[query.as_str(), form]);
        assert_eq!(code, Some(0), "{err}");
        assert!(out.contains(&want), "{out:?} lacks {want:?}");
    }
    let (_, out, _) = kumo(&[query.as_str()]);
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["pid", "n", "x", &pid.to_string(), "1", "-"]);
    // No text of a process reaches a terminal as it is.
    let line = format!("SELECT cmdline FROM processes WHERE pid = {pid}");
    let (_, out, _) = kumo(&[line.as_str()]);
    assert!(out.contains("a,b \\x1b[2J") && !out.contains('\x1b'), "{out:?}");
}

#[test]
fn what_is_wrong_is_said() {
    let cases: [(&[&str], i32, &str); 10] = [
        (
            &["SELECT pidd FROM processes"],
            2,
            "line 1, column 8: there is no column `pidd` (did you mean `pid`?)",
        ),
        (&["SELECT * FROM proceses"], 2, "did you mean `processes`?"),
        (&["DELETE FROM processes"], 2, "there is SELECT and nothing else"),
        (&["ATTACH '/etc/passwd' AS x"], 2, "other databases are not for queries"),
        (&["SELECT 1; SELECT 2"], 2, "more than one statement"),
        (&["--time", "50", "SELECT 1"], 2, "ms, s, m and h"),
        (&["--time", "61s", "SELECT 1"], 2, "60s is the most"),
        (&["--schema", "proces"], 2, "did you mean `processes`?"),
        (&["-f", "/nowhere/at/all"], 1, "cannot read /nowhere/at/all"),
        (
            &[
                "--time",
                "50ms",
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
            ],
            1,
            "more than 50 ms",
        ),
    ];
    for (args, code, want) in cases {
        let (ended, out, err) = kumo(args);
        assert_eq!(ended, Some(code), "for {args:?}: {out}{err}");
        assert!(err.contains(want), "{err:?} lacks {want:?}");
    }
    let (code, out, _) = kumo(&["--tables"]);
    assert!(code == Some(0) && out.contains("process_envs"), "{out}");
    // What `SELECT *` leaves out is marked.
    let (code, out, _) = kumo(&["--schema", "processes"]);
    let line = |column: &str| out.lines().find(|line| line.contains(column)).unwrap_or_default();
    assert!(code == Some(0) && line(" elapsed_time ").contains(" yes "), "{out}");
    assert!(!line(" resident_size ").contains(" yes "), "{out}");
    let (code, out, _) = kumo(&["--schema", "USERS"]);
    assert!(code == Some(0) && out.contains("username") && !out.contains("resident_size"), "{out}");
}

#[test]
fn a_node_answers_from_a_file_and_from_standard_input() {
    let host = Host::start();
    let file = host.path("query.sql");
    std::fs::write(&file, "SELECT host, count(*) > 3 AS many FROM processes;\n").unwrap();
    let said = host.run(&["sql", "--csv", "-f", file.to_str().unwrap()]).with_code(0);
    assert!(said.text().ends_with(",1\n"), "{}", said.text());
    let said = host.run_with(&["sql", "--csv"], b"SELECT 1 AS one").with_code(0);
    assert_eq!(said.text(), "one\n1\n");
    host.run(&["sql", "SELECT nonsense FROM users"])
        .with_code(2)
        .says("there is no column `nonsense`");
    let said = host.run(&["sql", "--json", "SELECT count(*) AS n FROM process_envs"]).with_code(0);
    assert!(said.json()["rows"][0]["n"].as_u64() > Some(0));
}

#[test]
fn many_hosts_answer_as_one_and_who_does_not_is_named() {
    let first = Host::start_cluster();
    let second = first.start_joined("osaka");
    until("both are there", || {
        let said = first.run(&["sql", "--all", "--csv", "SELECT dc, host FROM uptime"]);
        String::from_utf8_lossy(&said.out).lines().count() == 3
    });
    let ask = |query: &str| first.run(&["sql", "--all", "--json", query]).with_code(0).json();
    let pid = std::process::id();

    // The same machine is there twice, once for each of its nodes.
    let own = ask(&format!("SELECT dc, pid, parent FROM processes WHERE pid = {pid} ORDER BY dc"));
    let dcs: Vec<_> = own["rows"].as_array().unwrap().iter().map(|row| &row["dc"]).collect();
    assert_eq!(dcs.len(), 2, "{own}");
    assert!(dcs.contains(&&"osaka".into()), "{own}");
    assert_eq!((&own["hosts"]["asked"], &own["hosts"]["answered"]), (&2.into(), &2.into()));
    assert!(own["as_of"].is_string() && own["notes"].is_null(), "{own}");

    // Conditions on hosts choose whom to ask.
    let one =
        ask(&format!("SELECT count(*) AS n FROM processes WHERE dc = 'osaka' AND pid = {pid}"));
    assert_eq!((&one["rows"][0]["n"], &one["hosts"]["asked"]), (&1.into(), &1.into()));

    // A join by host and process counts each once; one by process alone says what it does.
    let by = |using: &str| {
        ask(&format!(
            "SELECT count(*) AS n FROM process_namespaces n JOIN processes p USING ({using}) \
             WHERE p.pid IN ({pid}, 1)"
        ))
    };
    let joined = by("dc, host, pid");
    assert_eq!(joined["rows"][0]["n"], 4, "{joined}");
    let loose = by("pid");
    assert_eq!(loose["rows"][0]["n"], 8, "{loose}");
    assert!(loose["notes"][0].as_str().unwrap().contains("join by dc and host"), "{loose}");

    first
        .run(&["sql", "--dc", "nowhere", "SELECT 1 AS one"])
        .with_code(1)
        .says("there is no host to ask");
    first.run(&["sql", "--all", "SELECT x FROM users"]).with_code(2).says("there is no column `x`");

    // One that stands still is waited for, and named.
    second.node.signal(Signal::STOP);
    let said = first
        .run(&["sql", "--all", "--wait", "300", "--csv", "SELECT dc FROM uptime"])
        .with_code(3)
        .says("osaka/b is missing");
    let text = String::from_utf8_lossy(&said.out);
    assert_eq!(text.lines().count(), 2, "{text}");
    second.node.signal(Signal::CONT);
}
