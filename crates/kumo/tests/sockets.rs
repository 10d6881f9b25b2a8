//! `kumo sockets`, `kumo lsof` and the columns of `kumo ps` about open files: the built binary, with a
//! node, with two, and without.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod host;

use std::net::TcpListener;
use std::process::Command;

use host::{Host, Said};
use serde_json::{Value, json};

/// The command without a node.
fn alone(args: &[&str]) -> Said {
    let mut kumo = Command::new(env!("CARGO_BIN_EXE_kumo"));
    kumo.args(&args[..1]).args(["--collector", "proc"]).args(&args[1..]);
    kumo.output().unwrap().into()
}

fn own_pid() -> String {
    std::process::id().to_string()
}

#[test]
fn who_listens_is_shown_as_ss_shows_it() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = Host::start();
    let port_text = port.to_string();
    for said in [
        alone(&["sockets", "-l", "-t", "--port", &port_text, &own_pid()]),
        host.run(&["sockets", "-l", "-t", "--port", &port_text, &own_pid()]),
    ] {
        let said = said.with_code(0);
        let lines: Vec<Vec<&str>> =
            said.text().lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 2, "{:?}", said.text());
        assert_eq!(lines[0][..4], ["PROTO", "STATE", "RECV-Q", "SEND-Q"]);
        assert_eq!(
            (lines[1][0], lines[1][1], lines[1][4]),
            ("tcp", "LISTEN", &*format!("*:{port}"))
        );
        assert_eq!(lines[1][7], own_pid());
    }
    // Who is not there is told, as `kumo lsof` does; who has no socket is no failure.
    let nobody = "2147483646";
    for command in ["sockets", "lsof"] {
        for said in [alone(&[command, nobody]), host.run(&[command, nobody])] {
            let said = said.with_code(1).says("no process 2147483646 on this host");
            assert_eq!(said.text(), "");
        }
        host.run(&[command, nobody, &own_pid()]).with_code(3).says("no process 2147483646");
    }
    // A node's own sockets have the names under which they are opened.
    let own = host.run(&["sockets", "-x", "-l", &host.node.child.id().to_string()]).with_code(0);
    for name in ["/run/api.sock ", "/run/middlecon.sock "] {
        assert!(own.text().contains(name), "{name:?} is not in {}", own.text());
    }
    let ps = host.run(&["ps", "-o", "pid,listen,open_files", "--json", &own_pid()]).with_code(0);
    let row = &ps.json()["rows"][0];
    let ports = row["listen"].as_str().unwrap();
    assert!(ports.split(',').any(|one| one == format!("tcp:{port}")), "{row}");
    assert!(row["open_files"].as_i64() > Some(3), "{row}");
    let usual = host.run(&["ps", "--json", "-n", "1"]).with_code(0).json();
    assert!(usual["rows"][0].get("listen").is_none(), "what costs is not asked for by itself");
    let columns = alone(&["sockets", "--columns"]).with_code(0);
    assert!(columns.text().contains("local_port") && columns.text().contains("recv_queue"));
    alone(&["sockets", "-o", "rss"]).with_code(2).says("no column `rss`");
}

#[test]
fn open_files_of_this_host() {
    let host = Host::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a\x1b[31m\nb");
    let _file = std::fs::File::create(&path).unwrap();
    for said in [alone(&["lsof", &own_pid()]), host.run(&["lsof", &own_pid()])] {
        let text = said.with_code(0).text().to_owned();
        assert!(text.starts_with("COMMAND"), "{text}");
        assert!(text.contains(r"/a\x1b[31m\nb"), "hostile names are made visible: {text}");
    }
    let answer = host.run(&["lsof", &own_pid(), "--json", "--filter", "type == 'file'"]);
    let answer = answer.with_code(0).json();
    let row = answer["rows"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["target"].as_str().is_some_and(|target| target.contains('\x1b')));
    assert_eq!(row.unwrap()["mode"], "w");
    alone(&["lsof", "2147483647"]).with_code(1).says("no process 2147483647");
    host.run(&["lsof", "2147483647"]).with_code(1).says("no process 2147483647");
    host.run(&["lsof", "2147483647", &own_pid()]).with_code(3).says("2147483647: no process");
    let other = format!("{}@5", own_pid());
    host.run(&["lsof", &other]).with_code(1).says("who you mean has ended");
    alone(&["lsof", &other]).with_code(1).says("who you mean has ended");
}

#[test]
fn sockets_and_files_of_other_hosts() {
    let first = Host::start_cluster();
    let second = first.start_joined("osaka");
    host::until("both are alive", || {
        let hosts = first.run(&["hosts", "--json"]);
        hosts.code == Some(0)
            && hosts.json()["hosts"].as_array().is_some_and(|hosts| {
                hosts.len() == 2 && hosts.iter().all(|host| host["state"] == "alive")
            })
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Both hosts are this machine: each sees the same socket.
    let args = ["sockets", "--all", "--json", "-l", "--port", &port.to_string(), &own_pid()];
    let answer = first.run(&args).with_code(0).json();
    let rows = answer["rows"].as_array().unwrap();
    let hosts: Vec<_> = rows.iter().map(|row| format!("{}{}", row["dc"], row["host"])).collect();
    assert_eq!(hosts, [r#""osaka""b""#, r#""tokyo""a""#], "{answer}");
    assert!(rows.iter().all(|row| row["local_port"] == json!(port)));
    let table = first.run(&["sockets", "--dc", "osaka", "-l", "--port", &port.to_string()]);
    assert!(table.with_code(0).text().contains("osaka/b tcp"), "the host stands in front");
    let group = ["sockets", "--all", "--json", "--group", "protocol", "--filter"];
    let mine = format!("pid == {} && listening && local_port == {port}", own_pid());
    let counted = first.run(&[&group[..], &[&mine]].concat()).with_code(0).json();
    assert_eq!(counted["rows"], json!([{ "protocol": "tcp", "count()": 2 }]));

    let target = format!("osaka/b/{}", own_pid());
    let files = first.run(&["lsof", &target, "--json"]).with_code(0).json();
    assert_eq!(files["host"], "b", "{files}");
    let line = json!(format!("tcp 127.0.0.1:{port} LISTEN"));
    let is_it = |row: &Value| row["socket"] == line;
    assert!(files["rows"].as_array().unwrap().iter().any(is_it), "{files}");
    let text = first.run(&["lsof", &target]).with_code(0).text().to_owned();
    assert!(text.lines().skip(1).all(|line| line.starts_with("osaka/b ")), "{text}");
    first.run(&["lsof", "osaka/b/2147483647"]).with_code(1).says("no process 2147483647");
    first.run(&["lsof", "osaka/nobody/1"]).with_code(1).says("there is no host osaka/nobody");
    let many = ["lsof", "--all", "--json", "--filter", &format!("pid == {}", own_pid())];
    let many = first.run(&many).with_code(0).json();
    assert_eq!(many["hosts"]["answered"], 2);
    drop(second);
}
