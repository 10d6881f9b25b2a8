//! The server as its clients see it: the built binary on a free port.

#![expect(clippy::unwrap_used, clippy::type_complexity, reason = "a test may fail where it likes")]

mod streams;
mod support;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use kumo_testbed::Zoo;
use serde_json::{Value, json};
use support::{Address, K2i, Reply, ask, block_on, certificate, refusal};

/// The keys of the original, in its order.
const V1_KEYS: &str = "tid ppid maj_delta min_delta pcpu state pad_1 pad_2 pad_3 utime stime cutime \
    cstime start_time signal blocked sigignore sigcatch _sigpnd start_code end_code start_stack \
    kstk_esp kstk_eip wchan priority nice rss alarm size resident share trs lrs drs dt vm_size \
    vm_lock vm_rss vm_data vm_stack vm_swap vm_exe vm_lib rtprio sched vsize rss_rlim flags \
    min_flt maj_flt cmin_flt cmaj_flt environ cmdline cgroup supgid supgrp euser ruser suser \
    fuser rgroup egroup sgroup fgroup cmd pgrp session nlwp tgid tty euid egid ruid rgid suid \
    sgid fuid fgid tpgid exit_signal processor ns";

#[test]
fn v1_answers_as_the_original() {
    let k2i = K2i::spawn();
    let sleeper = Zoo::sleeper(&[b"one", b"", b"two words"]);
    let keys: Vec<_> = V1_KEYS.split_whitespace().collect();
    let all = k2i.json("/v1/proc");
    for row in all.as_array().unwrap() {
        assert_eq!(row.as_object().unwrap().keys().collect::<Vec<_>>(), keys);
    }
    let of = |target: &str| k2i.json(target).as_array().unwrap().clone();
    for target in [format!("/v1/proc/{}", sleeper.pid()), format!("/v1/proc/pid/{}", sleeper.pid())]
    {
        let rows = of(&target);
        assert_eq!(rows.len(), 1, "for {target}");
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", sleeper.pid())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let field = |index: usize| fields[index - 3].parse::<i64>().unwrap();
        let row = &rows[0];
        let want = json!({
            "tid": sleeper.pid(), "tgid": sleeper.pid(), "ppid": field(4), "pgrp": field(5),
            "session": field(6), "state": 83, "start_time": field(22), "nice": field(19),
            "nlwp": field(20), "vsize": field(23), "exit_signal": field(38),
            "cmdline": command_line(sleeper.pid()),
        });
        for (key, want) in want.as_object().unwrap() {
            assert_eq!(&row[key], want, "for {key}");
        }
    }
    for target in ["/v1/proc/self", "/v1/k2i"] {
        let rows = of(target);
        assert_eq!((rows.len(), &rows[0]["tid"]), (1, &json!(k2i.pid())), "for {target}");
        assert_eq!(rows[0]["cmd"], "k2i");
    }
    assert!(of("/v1/proc/cmd/2").iter().any(|row| row["tid"] == k2i.pid()));
    assert!(of("/v1/proc/cmd/k2i").iter().all(|row| row["cmd"].as_str().unwrap().contains("k2i")));
    assert_eq!(of("/v1/proc/cmd/%22%3E%3Cscript"), Vec::<Value>::new());
    assert_eq!(k2i.get("/v1/").expect(200).body, "root response!");
    assert_eq!(k2i.get("/v1/hello").expect(200).body, "hello!");
    let config = k2i.json("/v1/config");
    assert_eq!((&config["hostname"], &config["port"]), (&json!("127.0.0.1"), &json!(k2i.port())));
}

fn command_line(pid: i32) -> Vec<String> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let texts = text.strip_suffix(b"\0").unwrap().split(|byte| *byte == 0);
    texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

#[test]
fn v2_answers_a_query() {
    let k2i = K2i::spawn();
    let sleeper = Zoo::sleeper(&[b"a needle", b"\"><script>\xff\n"]);
    let pid = sleeper.pid();

    let answer = k2i.json(&format!("/v2/proc?columns=pid,argv&filter=pid%3D%3D{pid}"));
    assert_eq!(answer["columns"], json!(["pid", "argv"]));
    assert_eq!(answer["rows"], json!([{ "pid": pid, "argv": command_line(pid) }]));
    assert_eq!(answer["matched"], 1);

    let answer = k2i.json("/v2/proc?columns=pid,rss&sort=-rss&limit=5");
    let sizes: Vec<_> =
        answer["rows"].as_array().unwrap().iter().map(|r| r["rss"].as_u64()).collect();
    assert!(sizes.len() == 5 && sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");

    let answer = k2i.json("/v2/proc?group=user&columns=user,count(),sum(rss)&max_age_ms=60000");
    let counts: u64 =
        answer["rows"].as_array().unwrap().iter().map(|r| r["count()"].as_u64().unwrap()).sum();
    assert_eq!(answer["processes"], counts);

    let answer = k2i.json("/v2/proc?columns=+exe&limit=1");
    assert!(answer["columns"].as_array().unwrap().contains(&json!("exe")));
}

#[test]
fn answers_hold_nothing_that_a_terminal_obeys() {
    let k2i = K2i::spawn();
    let argument = "\u{9b}2J\x7f\u{202e}\x1b[31m\u{2028}";
    let sleeper = Zoo::sleeper(&[argument.as_bytes()]);
    let pid = sleeper.pid();
    let filter = format!("pid%3D%3D{pid}");
    for target in
        [format!("/v2/proc?columns=cmdline,argv&filter={filter}"), format!("/v1/proc/{pid}")]
    {
        let reply = k2i.get(&target).expect(200);
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        let obeyed = |char: char| char.is_control() || ('\u{2028}'..='\u{202e}').contains(&char);
        assert!(!text.contains(obeyed), "{text:?}");
        assert!(text.contains("\\u009b2J\\u007f\\u202e\\u001b[31m\\u2028"), "{text:?}");
    }
}

#[test]
fn v2_answers_in_lines() {
    let k2i = K2i::spawn();
    let lines = [("accept", "application/x-ndjson")];
    let reply = k2i.get_with("/v2/proc?columns=pid,comm&sort=pid", &lines).expect(200);
    assert_eq!(reply.header("content-type"), "application/x-ndjson");
    let text = String::from_utf8(reply.body.to_vec()).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reply.header("kumo-matched"), rows.len().to_string());
    assert!(rows.iter().any(|row| row["pid"] == k2i.pid() && row["comm"] == "k2i"));

    let answer = k2i.get("/v2/proc?limit=1&max_age_ms=60000").expect(200);
    let body = answer.json();
    for (header, key) in [
        ("kumo-dc", "dc"),
        ("kumo-host", "host"),
        ("kumo-boot-id", "boot_id"),
        ("kumo-collector", "collector"),
        ("kumo-as-of", "as_of"),
    ] {
        assert_eq!(answer.header(header), body[key], "for {header}");
    }
    assert_eq!(answer.header("kumo-generation"), body["generation"].to_string());
}

#[test]
fn a_table_is_shared_as_long_as_a_request_allows() {
    let k2i = K2i::spawn();
    let generation = |age_ms: u32| {
        let answer = k2i.json(&format!("/v2/proc?columns=pid&limit=1&max_age_ms={age_ms}"));
        answer["generation"].as_u64().unwrap()
    };
    let first = generation(0);
    assert_eq!(generation(60_000), first, "an old table would have done");
    assert!(generation(0) > first, "only a new one would have done");
}

#[test]
fn one_process_and_its_tree() {
    let k2i = K2i::spawn();
    let me = std::process::id();
    let row = k2i.json(&format!("/v2/proc/{me}"));
    let columns = k2i.json("/v2/columns");
    // Those that cost more than a row are shown to who names them.
    let is_costly = |name: &Value| name == "listen" || name == "open_files";
    let names = columns["columns"].as_array().unwrap().iter().map(|c| &c["name"]);
    let names: Vec<_> = names.filter(|name| !is_costly(name)).collect();
    assert_eq!(row.as_object().unwrap().keys().collect::<Vec<_>>(), names);
    assert_eq!(row["pid"], me);
    assert_eq!(row["argv"], json!(command_line(me as i32)));
    let exe = std::fs::read_link("/proc/self/exe").unwrap();
    assert_eq!(row["exe"], exe.to_str().unwrap());

    let tree = k2i.json(&format!("/v2/proc/{me}/tree?columns=comm"));
    assert_eq!(tree["pid"], me);
    let children = tree["children"].as_array().unwrap();
    let server = children.iter().find(|child| child["pid"] == k2i.pid()).expect("our own child");
    assert_eq!((&server["ppid"], &server["comm"]), (&json!(me), &json!("k2i")));
    assert_eq!(server["children"], json!([]));
}

#[test]
fn the_host_tells_of_itself() {
    let k2i = K2i::with(&["--listen", "127.0.0.1:0", "--dc", "tokyo", "--host", "web-1"]);
    let host = k2i.json("/v2/host");
    assert_eq!((&host["dc"], &host["host"]), (&json!("tokyo"), &json!("web-1")));
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(host["boot"]["boot_id"], boot.trim());
    let (as_of, began) =
        (host["as_of"].as_str().unwrap(), host["boot"]["boot_time"].as_str().unwrap());
    assert_eq!((as_of.len(), began.len()), (27, 20), "{as_of} {began}");
    assert!(began < as_of, "{as_of} {began}");
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = memory.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024;
    assert_eq!(host["memory"]["total"], total);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(host["kernel"]["release"], release.trim());
    assert_eq!(
        host["pressure"]["memory"].is_null(),
        !std::path::Path::new("/proc/pressure/memory").exists()
    );
    let chosen = host["ladder"].as_array().unwrap().iter().find(|rung| rung["chosen"] == true);
    assert_eq!(chosen.unwrap()["collector"], host["collector"]);
}

#[test]
fn answers_are_compressed_for_those_who_ask() {
    let k2i = K2i::spawn();
    let _crowd = Zoo::crowd(200, kumo_testbed::Mix::default());
    let target = "/v2/proc?columns=pid,comm,argv&sort=pid&max_age_ms=60000";
    let plain = k2i.get(target).expect(200);
    assert_eq!(plain.header("content-encoding"), "");
    let decode = |reply: &Reply| match reply.header("content-encoding") {
        "zstd" => zstd::decode_all(&*reply.body).unwrap(),
        "gzip" => {
            let mut text = Vec::new();
            flate2::read::GzDecoder::new(&*reply.body).read_to_end(&mut text).unwrap();
            text
        }
        other => panic!("encoding {other:?}"),
    };
    for encoding in ["zstd", "gzip"] {
        let reply = k2i.get_with(target, &[("accept-encoding", encoding)]).expect(200);
        assert_eq!(reply.header("content-encoding"), encoding);
        assert!(reply.body.len() < plain.body.len() / 2, "{} bytes", reply.body.len());
        assert_eq!(decode(&reply), plain.body, "for {encoding}");
    }
    let both = k2i.get_with(target, &[("accept-encoding", "gzip, deflate, br, zstd")]).expect(200);
    assert_eq!(decode(&both), plain.body);
    let tiny = k2i.get_with("/v1/hello", &[("accept-encoding", "gzip")]).expect(200);
    assert_eq!(tiny.header("content-encoding"), "");
}

#[test]
fn refusals_are_problem_documents() {
    let k2i = K2i::spawn();
    let long = format!("/v2/proc?filter={}", "a".repeat(50_000));
    let cases: [(&str, &str, &[(&str, &str)], u16, &str); 25] = [
        ("GET", "/nope", &[], 404, "not-found"),
        ("GET", "/v2/proc/", &[], 404, "not-found"),
        ("POST", "/v2/proc", &[], 405, "method-not-allowed"),
        ("GET", "/v2/proc?colums=pid", &[], 400, "bad-request"),
        ("GET", "/v2/proc?columns=pid&columns=pid", &[], 400, "bad-request"),
        ("GET", "/v2/proc?columns=cmdlin", &[], 400, "bad-query"),
        ("GET", "/v2/proc?filter=cpu%20%3E", &[], 400, "bad-query"),
        ("GET", "/v2/proc?limit=0", &[], 400, "bad-query"),
        ("GET", "/v2/proc?max_age_ms=x", &[], 400, "bad-request"),
        ("GET", "/v2/proc", &[("accept", "text/html")], 406, "not-acceptable"),
        ("GET", "/v2/proc/1", &[("accept", "application/x-ndjson")], 406, "not-acceptable"),
        ("GET", "/v2/proc/abc", &[], 400, "bad-request"),
        ("GET", "/v2/proc/0", &[], 400, "bad-request"),
        ("GET", "/v2/proc/%ff", &[], 400, "bad-request"),
        ("GET", "/v2/proc/99999999999", &[], 400, "bad-request"),
        ("GET", "/v2/proc/2147483647", &[], 404, "no-such-process"),
        ("GET", "/v2/proc/2147483647/tree", &[], 404, "no-such-process"),
        ("GET", "/v2/proc/1?columns=count()", &[], 400, "bad-request"),
        ("GET", "/v2/host?x=1", &[], 400, "bad-request"),
        ("GET", "/v1/proc/pid/abc", &[], 400, "bad-request"),
        ("GET", "/v1/proc/2147483647", &[], 404, "no-such-process"),
        ("GET", "/v1/proc/cmd/%ff", &[], 400, "bad-request"),
        ("GET", &long, &[], 414, "uri-too-long"),
        ("GET", "/v2/proc", &[("host", "evil.example")], 403, "foreign-host"),
        ("GET", "/v2/proc", &[("origin", "http://evil.example")], 403, "foreign-origin"),
    ];
    for (method, target, headers, status, kind) in cases {
        let reply = k2i.ask(method, target, headers);
        let shown = &target[..target.len().min(60)];
        assert_eq!(reply.status, status, "for {method} {shown} {headers:?}");
        assert_eq!(reply.header("content-type"), "application/problem+json", "for {shown}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "for {shown}");
        let problem: kumo_abi::Problem = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(problem.kind, format!("urn:kumo:problem:{kind}"), "for {shown}");
        assert_eq!(problem.status, status, "for {shown}");
    }
    let named = k2i.get("/v2/proc?colums=pid").json();
    assert!(named["detail"].as_str().unwrap().contains("`colums`"), "{named}");
    assert_eq!(k2i.ask("DELETE", "/v2/host", &[]).header("allow"), "GET,HEAD");
    let head = k2i.ask("HEAD", "/v2/proc", &[]).expect(200);
    assert!(head.body.is_empty() && head.header("cache-control") == "no-store");
}

#[test]
fn tls_with_a_given_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key, der) = certificate(dir.path(), "one");
    let (other_cert, other_key, _) = certificate(dir.path(), "other");
    let text = |path: &std::path::PathBuf| path.to_str().unwrap().to_owned();
    let options = |cert: &str, key: &str| {
        ["--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key].map(str::to_owned)
    };
    let good = options(&text(&cert), &text(&key));
    let k2i = K2i::with(&good.each_ref().map(String::as_str)).trusting(der);
    assert_eq!(k2i.json("/v2/proc?limit=1")["rows"].as_array().unwrap().len(), 1);
    assert_eq!(k2i.get_with("/", &[("host", "evil.example")]).status, 403);

    // A client that speaks no TLS, or trusts another, gets nothing; the server goes on.
    let plain = Address::Tcp(format!("127.0.0.1:{}", k2i.port()));
    assert!(block_on(ask(&plain, "GET", "/", &[])).is_err());
    assert_eq!(k2i.get("/").status, 200);

    let missing = text(&dir.path().join("missing.pem"));
    let cases = [
        (text(&other_cert), text(&key), "is not that of certificate"),
        (text(&cert), text(&other_key), "is not that of certificate"),
        (missing.clone(), text(&key), "cannot read certificate"),
        (text(&cert), missing, "cannot read key"),
        (text(&key), text(&key), "holds no certificate"),
        (text(&cert), text(&cert), "holds no key"),
    ];
    for (cert, key, want) in cases {
        let said = refusal(&options(&cert, &key).each_ref().map(String::as_str));
        assert!(said.contains(want), "{said:?} does not say {want:?}");
    }
}

#[test]
fn a_unix_socket_is_for_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k2i.sock");
    let listen = format!("unix:{}", path.display());
    let k2i = K2i::with(&["--listen", &listen]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Whatever a client calls it: no browser gets here.
    assert_eq!(k2i.get_with("/v1/hello", &[("host", "anything")]).expect(200).body, "hello!");
    assert!(refusal(&["--listen", &listen]).contains("another server listens"));

    // A killed server leaves its socket behind; the next one takes it over.
    drop(k2i);
    assert!(path.exists(), "it had no time to clean up");
    let k2i = K2i::with(&["--listen", &listen]);
    assert_eq!(k2i.get("/v1/hello").status, 200);
    assert_eq!(k2i.terminate().code(), Some(0));
    assert!(!path.exists(), "it cleans up when it is asked to stop");

    let open = K2i::with(&["--listen", &listen, "--socket-mode", "0666"]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    assert_eq!(open.terminate().code(), Some(0));
    assert!(refusal(&["--listen", &listen, "--socket-mode", "0777"]).contains("0666 (all users"));

    std::fs::write(&path, "precious").unwrap();
    assert!(refusal(&["--listen", &listen]).contains("is no socket"));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn what_cannot_be_served_is_refused() {
    let k2i = K2i::spawn();
    let taken = format!("127.0.0.1:{}", k2i.port());
    let said = refusal(&["--listen", &taken]);
    assert!(said.contains(&format!("taken by k2i (pid {})", k2i.pid())), "{said}");
    let said = refusal(&["--listen", "0.0.0.0:0"]);
    assert!(said.contains("--insecure") && said.contains("--tls-cert"), "{said}");
    let long = format!("unix:/tmp/{}", "x".repeat(103));
    assert!(refusal(&["--listen", &long]).contains("107 bytes are the most"));
    assert!(refusal(&["--host", "a b"]).contains("letters, digits"));
    let open = K2i::with(&["--listen", "0.0.0.0:0", "--insecure"]);
    let near = Address::Tcp(format!("127.0.0.1:{}", open.port()));
    let reply = block_on(ask(&near, "GET", "/", &[("host", "evil.example")])).unwrap();
    assert_eq!(reply.status, 403, "it came over loopback");
}

/// What the server may hold while a thousand clients wait: connections, 32 answers, and its code.
const RSS_BYTES_MAX: u64 = 160 * 1024 * 1024;

#[test]
fn a_thousand_requests_at_once() {
    const CLIENTS: usize = 1_000;
    let wanted = rustix::process::Rlimit { current: Some(CLIENTS as u64 + 200), maximum: None };
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { maximum: limit.maximum, ..wanted };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("room for them");

    let _crowd = Zoo::crowd(300, kumo_testbed::Mix::default());
    let k2i = K2i::spawn();
    let target = "/v2/proc?columns=+cgroup,argv&limit=250";
    let lines = [("accept", "application/x-ndjson")];
    let replies = block_on(async {
        let one = |_| {
            let address = k2i.address().clone();
            tokio::spawn(async move { ask(&address, "GET", target, &lines).await })
        };
        let mut replies = Vec::new();
        for task in (0..CLIENTS).map(one).collect::<Vec<_>>() {
            replies.push(task.await.unwrap().map(|reply| {
                let rows = reply.body.split(|byte| *byte == b'\n').count() - 1;
                (reply.status.as_u16(), rows)
            }));
        }
        replies
    });
    for reply in replies {
        assert_eq!(reply.unwrap(), (200, 250));
    }
    assert!(k2i.peak_rss() < RSS_BYTES_MAX, "{} bytes", k2i.peak_rss());
}
