//! Queries as the packs of osquery have them run as they are, over the tables that we have.

use std::sync::Arc;
use std::time::Duration;

use k2i::sql::{Sight, document, limits};
use k2i::{CollectorChoice, CollectorKind, Engine, EngineConfig, EventChoice};
use kumo_abi::rights::{Lines, Rights, Scope};
use kumo_testbed::Zoo;
use serde_json::Value;

/// Names and queries in the manner of the packs incident-response, it-compliance, osquery-monitoring,
/// ossec-rootkit, vuln-management and hardware-monitoring, and of what is asked by hand.
const QUERIES: &[(&str, &str)] = &[
    // incident-response
    ("process_env", "select * from process_envs;"),
    (
        "process_memory",
        "select pid, name, resident_size, total_size from processes order by resident_size desc limit 10;",
    ),
    ("logged_users", "select * from users;"),
    (
        "ip_forwarding_enabled",
        "select * from system_controls where oid='4.30' union select * from system_controls where name='net.ipv4.ip_forward' union select * from system_controls where oid='4.12';",
    ),
    (
        "ramdisk",
        "select pid, name, path from processes where path like '/dev/shm/%' or path like '/run/shm/%';",
    ),
    ("processes_not_on_disk", "SELECT * FROM processes WHERE on_disk = 0;"),
    (
        "processes_running_from_tmp",
        "SELECT pid, name, path, cmdline FROM processes WHERE path LIKE '/tmp/%' OR path LIKE '/var/tmp/%';",
    ),
    (
        "high_load_average",
        "SELECT period, average, '70%' AS 'threshold' FROM load_average WHERE period = '15m' AND average > '0.7';",
    ),
    (
        "low_free_memory",
        "SELECT memory_total, memory_free, CAST(memory_free AS real) / memory_total AS memory_free_perc, '10%' AS threshold FROM memory_info WHERE memory_free_perc < 0.1;",
    ),
    (
        "shells_of_daemons",
        "SELECT p.pid, p.name, p.cmdline, u.username FROM processes p JOIN users u USING (uid) WHERE p.name IN ('sh', 'bash', 'dash', 'zsh') AND u.uid < 1000;",
    ),
    (
        "processes_cwd_tmp",
        "SELECT pid, name, cwd FROM processes WHERE cwd LIKE '/tmp%' AND cwd != '';",
    ),
    (
        "suspicious_names",
        "select pid, name, path from processes where name like '[%' and path != '';",
    ),
    (
        "ld_preload",
        "SELECT process_envs.pid as source_process_id, process_envs.key as environment_variable_key, process_envs.value as environment_variable_value, processes.name as source_process, processes.path as file_path, processes.cmdline as source_process_commandline, processes.cwd as current_working_directory, 'T1055' as event_attack_id, 'Process Injection' as event_attack_description FROM process_envs join processes USING (pid) WHERE key = 'LD_PRELOAD';",
    ),
    (
        "parents",
        "SELECT c.pid, c.name, c.parent, p.name AS parent_name FROM processes c LEFT JOIN processes p ON c.parent = p.pid;",
    ),
    (
        "orphans",
        "SELECT pid, name FROM processes WHERE parent NOT IN (SELECT pid FROM processes) AND parent != 0;",
    ),
    (
        "root_owned",
        "SELECT p.pid, p.name, p.path FROM processes AS p WHERE p.uid = 0 AND p.euid = 0 AND p.path NOT LIKE '/usr/%';",
    ),
    ("setuid_running", "SELECT pid, name, uid, euid FROM processes WHERE uid <> euid;"),
    (
        "open_sockets",
        "select distinct pid, family, protocol, local_address, local_port, remote_address, remote_port, path from process_open_sockets where path <> '' or remote_address <> '';",
    ),
    ("listening_ports", "select * from listening_ports;"),
    (
        "open_files",
        "select distinct pid, path from process_open_files where path not like '/private/var/folders%' and path not like '/System/Library/%' and path not in ('/dev/null', '/dev/urandom', '/dev/random');",
    ),
    (
        "listening_processes",
        "SELECT DISTINCT processes.name, listening_ports.port, processes.pid FROM listening_ports JOIN processes USING (pid) WHERE listening_ports.address = '0.0.0.0';",
    ),
    (
        "outbound",
        "SELECT s.pid, p.name, local_address, remote_address, family, protocol, local_port, remote_port FROM process_open_sockets s JOIN processes p ON s.pid = p.pid WHERE remote_port NOT IN (80, 443) AND family = 2 AND remote_port != 0;",
    ),
    (
        "reverse_shells",
        "SELECT DISTINCT(processes.pid), processes.parent, processes.name, processes.path, processes.cmdline, processes.cwd, processes.root, processes.uid, processes.gid, processes.start_time, process_open_sockets.remote_address, process_open_sockets.remote_port FROM processes JOIN process_open_sockets USING (pid) LEFT OUTER JOIN process_open_files ON processes.pid = process_open_files.pid WHERE (name = 'sh' OR name = 'bash') AND remote_address NOT IN ('0.0.0.0', '::', '');",
    ),
    // it-compliance
    ("os_version", "select * from os_version;"),
    ("kernel_info", "select * from kernel_info;"),
    ("system_info", "select * from system_info;"),
    ("kernel_info_join", "SELECT * FROM system_info, os_version, kernel_info;"),
    (
        "hostname",
        "SELECT hostname, cpu_brand, physical_memory / (1024 * 1024) AS memory_mib FROM system_info;",
    ),
    (
        "local_accounts",
        "SELECT uid, gid, username, directory, shell FROM users WHERE shell NOT LIKE '%nologin' AND shell NOT LIKE '%/false';",
    ),
    ("uid_zero", "SELECT username FROM users WHERE uid = 0;"),
    (
        "duplicate_uids",
        "SELECT uid, count(*) AS n, group_concat(username, ', ') AS names FROM users GROUP BY uid HAVING n > 1;",
    ),
    // osquery-monitoring
    (
        "runtime_perf",
        "SELECT pid, user_time, system_time, resident_size FROM processes WHERE name = 'osqueryd';",
    ),
    ("uptime", "select days, hours, minutes, seconds, total_seconds from uptime;"),
    (
        "system_perf",
        "SELECT ov.version AS os_version, ov.platform AS os_platform, ov.codename AS os_codename, i.*, p.resident_size, p.user_time, p.system_time, time.total_seconds AS counter FROM system_info i, os_version ov, processes p, uptime time WHERE p.pid = 1;",
    ),
    (
        "cpu_hogs",
        "SELECT pid, uid, name, ROUND(((user_time + system_time) / (cpu_time.tsb - cpu_time.itsb)) * 100, 2) AS percentage FROM processes, (SELECT (total_seconds * 1000.0) AS tsb, 0 AS itsb FROM uptime) AS cpu_time ORDER BY user_time + system_time DESC LIMIT 5;",
    ),
    // ossec-rootkit
    (
        "hidden_names",
        "select pid, name from processes where name in ('xchk', 'xsf', 'ttyload', 'bnclp');",
    ),
    (
        "deleted_and_listening",
        "select pid, path from processes where on_disk = 0 and (path like '/tmp/%' or cmdline like '%(deleted)%');",
    ),
    // vuln-management
    ("kernel_version", "select version from kernel_info;"),
    (
        "platform",
        "select platform, major, minor from os_version where platform_like like '%debian%' or platform = 'debian';",
    ),
    (
        "aslr",
        "select name, current_value from system_controls where name = 'kernel.randomize_va_space';",
    ),
    // hardware-monitoring and hardening
    ("hardware", "select hardware_vendor, hardware_model, cpu_logical_cores from system_info;"),
    (
        "sysctl_ipv4",
        "SELECT name, current_value, config_value FROM system_controls WHERE name LIKE 'net.ipv4.conf.%.rp_filter';",
    ),
    (
        "sysctl_differs",
        "SELECT name, config_value, current_value FROM system_controls WHERE config_value != '' AND config_value != current_value;",
    ),
    (
        "sysctl_subsystem",
        "select subsystem, count(1) from system_controls group by subsystem order by 2 desc;",
    ),
    (
        "sysctl_tree",
        "select * from system_controls where subsystem = 'kernel' and name like 'kernel.%restrict%';",
    ),
    // By hand
    (
        "by_user",
        "SELECT u.username, count(*) AS processes, sum(p.resident_size) AS memory FROM processes p LEFT JOIN users u ON u.uid = p.uid GROUP BY u.username ORDER BY memory DESC;",
    ),
    ("threads", "SELECT sum(threads), max(threads), avg(nice) FROM processes;"),
    ("states", "SELECT state, count(*) FROM processes GROUP BY state;"),
    (
        "old",
        "SELECT pid, name, datetime(start_time, 'unixepoch') AS started FROM processes ORDER BY start_time LIMIT 3;",
    ),
    (
        "namespaces",
        "SELECT net_namespace, count(*) AS n FROM process_namespaces GROUP BY net_namespace HAVING n > 0;",
    ),
    (
        "containers",
        "SELECT p.pid, p.name, n.pid_namespace FROM processes p JOIN process_namespaces n ON n.pid = p.pid WHERE n.pid_namespace != (SELECT pid_namespace FROM process_namespaces WHERE pid = 1);",
    ),
    (
        "names_of_paths",
        "SELECT split(path, '/', 0) AS top, regex_match(path, '([^/]+)$', 1) AS base FROM processes WHERE path != '';",
    ),
    (
        "tree",
        "WITH RECURSIVE up(pid, parent, depth) AS (SELECT pid, parent, 0 FROM processes WHERE pid = 1 UNION ALL SELECT p.pid, p.parent, depth + 1 FROM processes p JOIN up ON p.parent = up.pid WHERE depth < 50) SELECT max(depth), count(*) FROM up;",
    ),
];

fn engine() -> Arc<Engine> {
    let config = EngineConfig {
        collector: CollectorChoice::Only(CollectorKind::Proc),
        dc: "tokyo".to_owned(),
        host: "a".to_owned(),
    };
    Arc::new(Engine::open(config).expect("/proc is there"))
}

fn ask_as(engine: &Arc<Engine>, sight: Sight, query: &str) -> Result<Value, String> {
    let limits = limits(Duration::from_secs(60));
    let answer = document(Arc::clone(engine), sight, query, &limits, &limits.begin());
    let answer = answer.map_err(|error| k2i::http::chain(&error))?;
    Ok(serde_json::from_slice(&answer).expect("JSON"))
}

fn ask(engine: &Arc<Engine>, query: &str) -> Value {
    ask_as(engine, Sight::ALL, query).unwrap_or_else(|error| panic!("{query}: {error}"))
}

/// The rows of an answer, each as its values.
fn rows(answer: &Value) -> Vec<Vec<Value>> {
    let rows = answer["rows"].as_array().expect("rows");
    let columns: Vec<&str> =
        answer["columns"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
    rows.iter().map(|row| columns.iter().map(|name| row[*name].clone()).collect()).collect()
}

#[test]
fn queries_of_packs_run_as_they_are() {
    let engine = engine();
    assert!(QUERIES.len() >= 40);
    for (name, query) in QUERIES {
        let answer = ask(&engine, query);
        assert!(answer["columns"].as_array().is_some_and(|columns| !columns.is_empty()), "{name}");
        let never_empty =
            ["system_info", "uptime", "kernel_version", "parents", "states", "uid_zero", "aslr"];
        if never_empty.contains(name) {
            assert!(!rows(&answer).is_empty(), "{name} has no rows");
        }
    }
}

#[test]
fn processes_are_as_the_kernel_has_them() {
    let engine = engine();
    let sleeper = Zoo::sleeper(&[b"it's", b"\xff", b"a b"]);
    let zombie = Zoo::zombie();
    let pid = sleeper.pid();
    let own = ask(
        &engine,
        &format!(
            "SELECT pid, parent, state, cmdline, on_disk, threads, wired_size, uid = euid, \
             abs(start_time - unixepoch()) < 3600, dc, host FROM processes WHERE pid = {pid}"
        ),
    );
    let row = &rows(&own)[0];
    assert_eq!(row[0], pid);
    assert_eq!(row[1], std::process::id());
    assert_eq!((&row[2], &row[4], &row[5]), (&"S".into(), &1.into(), &1.into()));
    let line = row[3].as_str().expect("a text");
    assert!(line.ends_with("it's \u{fffd} a b"), "{line}");
    assert_eq!(row[6..], [0.into(), 1.into(), 1.into(), "tokyo".into(), Value::from("a")]);
    let zombie = ask(
        &engine,
        &format!(
            "SELECT state, cmdline, path, on_disk FROM processes WHERE pid = {}",
            zombie.pid()
        ),
    );
    assert_eq!(rows(&zombie), [["Z".into(), "".into(), "".into(), Value::from(-1)]]);
    // A second look by another key finds the same.
    let found = ask(
        &engine,
        &format!(
            "SELECT count(*) FROM processes WHERE name = (SELECT name FROM processes WHERE pid = {pid}) AND pid = {pid}"
        ),
    );
    assert_eq!(rows(&found), [[1]]);
}

#[test]
fn environments_and_command_lines_are_for_those_who_may() {
    let engine = engine();
    let sleeper = Zoo::sleeper(&[b"--password=hunter2"]);
    let line = format!("SELECT cmdline FROM processes WHERE pid = {}", sleeper.pid());
    let text = |lines| {
        let sight = Sight { lines, ..Sight::ALL };
        rows(&ask_as(&engine, sight, &line).expect("an answer"))[0][0].to_string()
    };
    assert!(text(Lines::Whole).contains("hunter2"));
    assert!(!text(Lines::Redacted).contains("hunter2"), "{}", text(Lines::Redacted));

    let path = format!(
        "SELECT value FROM process_envs WHERE key = 'PATH' AND pid = {}",
        std::process::id()
    );
    let view = Sight { rights: Rights::VIEW, ..Sight::ALL };
    let with = Sight { rights: Rights::VIEW.with(Scope::Environment), ..Sight::ALL };
    let refused = ask_as(&engine, view, &path).expect_err("no right to it");
    assert!(refused.contains("environments hold secrets"), "{refused}");
    let given = ask_as(&engine, with, &path).expect("an answer");
    let path = std::env::var("PATH").expect("cargo has one");
    assert_eq!(rows(&given), [[path]]);
}

#[test]
fn programs_that_were_executed_are_told_by_a_server() {
    let engine = engine();
    let query = "SELECT count(*) FROM process_events";
    let refused = ask_as(&engine, Sight::ALL, query).expect_err("nobody takes events");
    assert!(refused.contains("`kumo up` starts one"), "{refused}");
    engine.take_events(EventChoice::Auto);
    if engine.events_report().source.is_none() {
        return; // Not here, or not as this user.
    }
    let sleeper = Zoo::sleeper(&[b"told"]);
    let query = format!(
        "SELECT cmdline, parent, ended_at IS NULL, abs(time - unixepoch()) < 60 FROM process_events \
         WHERE pid = {}",
        sleeper.pid()
    );
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let found = rows(&ask(&engine, &query));
        if let [row] = found.as_slice() {
            assert!(row[0].as_str().is_some_and(|line| line.ends_with("told")), "{row:?}");
            assert_eq!(row[1..], [std::process::id().into(), 1.into(), Value::from(1)]);
            return;
        }
        assert!(std::time::Instant::now() < deadline, "its exec is never told: {found:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
