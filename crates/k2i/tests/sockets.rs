//! Sockets and open files as clients of the server see them.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;

use serde_json::{Value, json};
use support::K2i;

fn rows(answer: &Value) -> &Vec<Value> {
    answer["rows"].as_array().unwrap_or_else(|| panic!("no rows in {answer}"))
}

#[test]
fn sockets_take_the_query_language() {
    for collector in ["proc", "auto"] {
        let k2i = K2i::with(&["--listen", "127.0.0.1:0", "--collector", collector]);
        let (pid, port) = (k2i.pid(), k2i.port());
        let mine = format!("pid%3D%3D{pid}%26%26local_port%3D%3D{port}");
        let columns =
            "id,pid,comm,protocol,state,listening,local_address,local_port,remote_address";
        let answer =
            k2i.json(&format!("/v2/sockets?filter={mine}%26%26listening&columns={columns}"));
        let row = &rows(&answer)[0];
        assert_eq!((rows(&answer).len(), &answer["matched"]), (1, &json!(1)), "{answer}");
        assert!(row["id"].as_str().unwrap().starts_with(&format!("{pid}@")));
        let want = json!({
            "id": row["id"], "pid": pid, "comm": "k2i", "protocol": "tcp", "state": "LISTEN",
            "listening": true, "local_address": "127.0.0.1", "local_port": port, "remote_address": null,
        });
        assert_eq!(*row, want);
        let by = answer["collector"].as_str().unwrap();
        assert!(collector == "auto" || by == "sock_diag", "{by}");

        let grouped =
            k2i.json(&format!("/v2/sockets?filter={mine}&group=protocol,state&sort=state"));
        let states: Vec<_> = rows(&grouped).iter().map(|row| row["state"].clone()).collect();
        assert!(states.contains(&json!("LISTEN")), "{grouped}");
        assert!(rows(&grouped).iter().all(|row| row["count()"].as_u64() > Some(0)));

        let lines = k2i.get_with(
            &format!("/v2/sockets?filter={mine}&columns=pid,cmdline&limit=1"),
            &[("accept", "application/x-ndjson")],
        );
        let lines = lines.expect(200).body;
        let line: Value = serde_json::from_slice(&lines).unwrap();
        assert!(
            line["cmdline"].as_str().unwrap().contains("--collector"),
            "columns of the process"
        );

        let one = k2i.json(&format!("/v2/proc/{pid}?columns=listen,open_files"));
        assert!(
            one["listen"].as_str().unwrap().split(',').any(|p| p == format!("tcp:{port}")),
            "{one}"
        );
        assert!(one["open_files"].as_u64() > Some(3), "{one}");
        let of_one = k2i.json(&format!("/v2/proc/{pid}/sockets?columns=pid"));
        assert!(rows(&of_one).iter().all(|row| row["pid"] == pid) && !rows(&of_one).is_empty());
    }
}

#[test]
fn files_of_a_process() {
    let k2i = K2i::with(&["--listen", "127.0.0.1:0", "--collector", "proc"]);
    let directory = tempfile::tempdir().unwrap();
    let hostile = std::ffi::OsStr::from_bytes(b"a\n\x1b[31m\xff\"><script>");
    let path = directory.path().join(hostile);
    let mut file = File::create(&path).unwrap();
    file.write_all(b"0123456789").unwrap();
    file.seek(SeekFrom::Start(4)).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let pid = std::process::id();
    let of = |query: &str| k2i.json(&format!("/v2/proc/{pid}/files{query}"));
    let answer = of("");
    let shown = String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
    let row = rows(&answer).iter().find(|row| row["target"] == json!(shown)).unwrap();
    assert_eq!((&row["type"], &row["mode"]), (&json!("file"), &json!("w")), "{row}");
    assert_eq!((&row["size"], &row["offset"], &row["links"]), (&json!(10), &json!(4), &json!(1)));
    let socket = json!(format!("tcp 127.0.0.1:{port} LISTEN"));
    let row = rows(&answer).iter().find(|row| row["socket"] == socket).expect("our socket");
    assert_eq!(
        (&row["type"], &row["size"], &row["offset"]),
        (&json!("socket"), &Value::Null, &Value::Null)
    );

    std::fs::remove_file(&path).unwrap();
    let gone = of("?columns=target,links&filter=links%3D%3D0&sort=-target");
    let is_gone = |row: &&Value| row["target"] == json!(format!("{shown} (deleted)"));
    assert!(rows(&gone).iter().any(|row| is_gone(&row)), "{gone}");
    drop(file);
    let gone = of("?columns=target,links");
    assert!(!rows(&gone).iter().any(|row| is_gone(&row)), "it was closed");

    let all = k2i.json("/v2/files?group=pid&sort=-count()");
    assert!(rows(&all).iter().any(|row| row["pid"] == json!(pid)), "{all}");
    let count = of("?columns=count()");
    let counted = k2i.json(&format!("/v2/proc/{pid}?columns=open_files"));
    let (listed, counted) = (rows(&count)[0]["count()"].as_i64(), counted["open_files"].as_i64());
    // Another test of this program may open or close something in between.
    assert!(listed.unwrap().abs_diff(counted.unwrap()) < 16, "{listed:?} {counted:?}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let k2i = K2i::with(&["--listen", "127.0.0.1:0", "--collector", "proc"]);
    let cases = [
        ("/v2/sockets?columns=rss", 400, "no column `rss`"),
        ("/v2/sockets?ended=1", 400, "unknown parameter `ended`"),
        ("/v2/sockets?filter=local_port", 400, "filter"),
        ("/v2/files?columns=sum(target)", 400, "holds text"),
        ("/v2/proc/2147483647/files", 404, "no process 2147483647"),
        ("/v2/proc/0/files", 400, "is no process number"),
        ("/v2/proc/1@5/files", 409, "who you mean has ended"),
        ("/v2/proc/1@x/sockets", 400, "identity"),
        ("/v2/columns/nothing", 404, "there are proc, sockets, files"),
    ];
    for (target, status, want) in cases {
        let problem = k2i.get(target).expect(status).json();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(want), "{detail:?} does not say {want:?} for {target}");
    }
    let columns = k2i.json("/v2/columns/sockets");
    assert_eq!(columns["table"], "sockets");
    assert!(columns["default"].as_array().unwrap().contains(&json!("local_port")));
}
