//! `kumo rights`, through a real node and without one.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod host;

use std::process::{Command, Stdio};

use host::{Host, Said};
use serde_json::json;

/// `kumo` with these words, and the node at the end.
fn kumo(host: &Host, line: &str) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kumo"));
    command.args(line.split(' ')).arg("--run-dir").arg(host.run_dir());
    command.env_remove("KUMO_TOKEN").stdin(Stdio::null());
    command.output().unwrap().into()
}

#[test]
fn tokens_are_made_shown_and_taken_back() {
    let host = Host::start();
    let who = kumo(&host, "rights").with_code(0);
    assert!(who.text().contains("admin") && who.text().contains("whole"), "{}", who.text());
    kumo(&host, "rights token list").with_code(0).says("there are no tokens");
    let made = kumo(&host, "rights token add ci --role operate --scope command-line").with_code(0);
    let token = made.text().trim().to_owned();
    assert!(token.starts_with("kumo_ci_") && made.text().lines().count() == 1, "{token}");
    kumo(&host, "rights token add ci").with_code(1).says("--replace");
    let list = kumo(&host, "rights token list").with_code(0);
    assert!(list.text().contains("operate + command-line"), "{}", list.text());
    assert!(!list.text().contains(&token[8..]), "it is not shown again");

    std::fs::write(host.path("token"), format!("{token}\n")).unwrap();
    let with_token = |line: &str| {
        let file = host.path("token");
        kumo(&host, &format!("{line} --token-file {}", file.display()))
    };
    let own = with_token("rights --json").with_code(0).json();
    assert_eq!((&own["in_words"], &own["role"]), (&json!("token `ci`"), &json!("operate")));
    with_token("rights token list").with_code(1).says("takes the right `manage`");
    kumo(&host, "rights token remove ci").with_code(0);
    with_token("rights").with_code(1).says("the token is unknown");
    kumo(&host, "rights token remove ci")
        .with_code(1)
        .says("there is no token ci; `kumo rights token list`");
    kumo(&host, "rights --token-file /nowhere").with_code(1).says("cannot read the token");
}

#[test]
fn secrets_are_left_out_where_one_wants_it() {
    let host = Host::start();
    let mut waits = Command::new("sh");
    waits.args(["-c", "read line", "app", "--password=hunter2-4713"]).stdin(Stdio::piped());
    let mut child = waits.spawn().unwrap();
    let show = |more: &str| {
        let line = format!("ps {} -o pid,cmdline {more}", child.id());
        let nodes = kumo(&host, line.trim_end()).with_code(0).text().to_owned();
        // The same without a node.
        let direct = format!("{} --collector proc", line.trim_end());
        let direct = Said::from(
            Command::new(env!("CARGO_BIN_EXE_kumo")).args(direct.split(' ')).output().unwrap(),
        );
        assert_eq!(direct.with_code(0).text(), nodes, "for {more:?}");
        nodes
    };
    host::until("the shell runs", || show("").contains("read line"));
    assert!(show("").contains("hunter2-4713"));
    let redacted = show("--redact");
    assert!(redacted.contains("--password=*****") && !redacted.contains("hunter2"), "{redacted}");
    let stripped = show("--redact=strip");
    assert!(stripped.contains("sh *****") && !stripped.contains("read line"), "{stripped}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn tokens_in_a_file_need_no_node() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens.json");
    let run = |line: &str| -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kumo"));
        command.args(line.split(' ')).arg("--file").arg(&file);
        command.output().unwrap().into()
    };
    let made = run("rights token add probe --ttl never").with_code(0);
    assert!(made.text().starts_with("kumo_probe_"));
    run("rights token add probe").with_code(2).says("--replace");
    let list = run("rights token list --json").with_code(0).json();
    assert_eq!(list["tokens"][0]["name"], "probe");
    assert!(list["tokens"][0]["expires"].is_null());
    run("rights token remove probe").with_code(0);
    assert_eq!(run("rights token list --json").json()["tokens"], json!([]));
}

/// `kumo` with these words as a user of this host, of whom the node's run directory knows nothing.
fn kumo_as(host: &Host, uid: u32, words: &[&str]) -> Said {
    use std::os::unix::process::CommandExt as _;
    // The build directory may be root's alone; nobody else could start the command there.
    let copy = host.path("kumo-copy");
    if !copy.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_kumo"), &copy).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(host.dir.path(), open).unwrap();
    }
    let mut command = Command::new(copy);
    command.args(words).arg("--run-dir").arg(host.run_dir()).env_remove("KUMO_TOKEN");
    command.stdin(Stdio::null()).uid(uid).gid(uid).output().unwrap().into()
}

#[test]
fn users_of_this_host_are_let_in_by_the_mode_of_the_socket() {
    // Only root can become somebody else.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (named, stranger) = (65_533, 65_534);
    let rights = ["rights", "--json"];
    let users = ["--user", "65533=operate"];
    let closed = Host::start_by(&[], &users);
    for words in [&rights[..], &["ps"]] {
        kumo_as(&closed, named, words).with_code(1).says("you may not open its socket");
    }
    drop(closed);
    let open = Host::start_by(&[], &[&users[..], &["--socket-mode", "0666"]].concat());
    for (uid, role) in [(named, "operate"), (stranger, "view")] {
        let own = kumo_as(&open, uid, &rights).with_code(0).json();
        assert_eq!((&own["role"], &own["who"]), (&json!(role), &json!({ "user": uid })), "{own}");
    }
    drop(open);
    // A group that is not that of the node stays outside.
    let group = Host::start_by(&[], &["--socket-mode", "660"]);
    kumo_as(&group, stranger, &rights).with_code(1).says("--socket-mode 0666");
}

#[test]
fn a_mode_that_says_more_than_who_may_open_the_socket_is_refused() {
    for mode in ["0777", "4666", "0000", "0644", "rw", "-1", ""] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kumo"));
        let said =
            Said::from(command.args(["up", &format!("--socket-mode={mode}")]).output().unwrap());
        said.with_code(2).says("0660 (its group too)");
    }
}
