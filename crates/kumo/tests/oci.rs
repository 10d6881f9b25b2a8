//! Containers of a runtime that knows nothing of us tell a service of their lives: real containers, by runc.
//!
//! Needs root and `runc`; where no container can be started at all, says so and returns.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod host;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use host::{Host, Running, Said};
use serde_json::{Value, json};

/// A bundle whose root holds this host's programs, read-only; its program looks into `/seen`.
fn bundle(dir: &Path, hooks: &Value) {
    fs::create_dir_all(dir.join("rootfs")).unwrap();
    // `runc spec` writes over nothing; in the first round there is none.
    fs::remove_file(dir.join("config.json")).ok();
    let spec = Command::new("runc").arg("spec").current_dir(dir).output().unwrap();
    assert!(spec.status.success(), "{}", String::from_utf8_lossy(&spec.stderr));
    let mut config: Value =
        serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = json!(["/bin/sh", "-c", "echo inside; cat /seen/created"]);
    config["annotations"] = json!({ "rack": "3" });
    let mounts = config["mounts"].as_array_mut().unwrap();
    for place in ["/bin", "/lib", "/lib64", "/usr"].into_iter().filter(|at| Path::new(at).exists())
    {
        mounts.push(json!({"destination": place, "source": place, "type": "bind", "options": ["rbind", "ro"]}));
    }
    let seen = dir.join("seen");
    fs::create_dir_all(&seen).unwrap();
    mounts.push(
        json!({"destination": "/seen", "source": seen, "type": "bind", "options": ["bind", "ro"]}),
    );
    if let Some(hooks) = hooks.get("hooks") {
        config["hooks"] = hooks.clone();
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// Runs a container; removed with all it left, however that went.
fn runc(dir: &Path, id: &str) -> Said {
    let runc = |args: &[&str]| -> Output {
        let mut command = Command::new("runc");
        command.arg("--root").arg(dir.join("runc")).args(args).current_dir(dir);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let said = runc(&["run", id]);
    runc(&["delete", "--force", id]);
    said.into()
}

/// Whether containers can be started here at all.
fn can_run(dir: &Path) -> bool {
    if !rustix::process::geteuid().is_root() || Command::new("runc").arg("-v").output().is_err() {
        eprintln!("skipped: containers need root and runc");
        return false;
    }
    bundle(dir, &json!({}));
    fs::write(dir.join("seen/created"), "").unwrap();
    let said = runc(dir, &format!("kumo-{}-can", std::process::id()));
    if said.code != Some(0) {
        eprintln!("skipped: runc cannot start a container here: {}", said.err);
    }
    said.code == Some(0)
}

/// The hooks with these options.
fn hooks(host: &Host, options: &[&str]) -> Value {
    host.run(&[&["oci-hook", "--print-config"], options].concat()).with_code(0).json()
}

/// A service that writes each event into `seen/EVENT`, and says no to what it is told to.
fn observer(host: &Host, says_no_to: &str) -> Running {
    let seen = host.path("bundle/seen");
    let script = format!(
        "cat > {}/$KUMO_METHOD; [ $KUMO_METHOD != '{says_no_to}' ] || {{ echo not here >&2; exit 4; }}",
        seen.display()
    );
    host.serve(&["oci", "--", "sh", "-c", &script])
}

fn event(dir: &Path, name: &str) -> Value {
    let path = dir.join("seen").join(name);
    serde_json::from_slice(&fs::read(&path).unwrap()).unwrap()
}

#[test]
fn containers_tell_of_their_lives_before_they_go_on() {
    let host = Host::start();
    let dir = host.path("bundle");
    if !can_run(&dir) {
        return;
    }
    let id = format!("kumo-{}-life", std::process::id());
    let observer = observer(&host, "nothing");
    bundle(&dir, &hooks(&host, &["--required", "--budget", "20s"]));
    let said = runc(&dir, &id).with_code(0);
    // What its program read: the service knew of it before it began.
    let (inside, created) = said.text().split_once('\n').unwrap();
    assert_eq!(inside, "inside");
    let created: Value = serde_json::from_str(created).unwrap();
    assert_eq!(created["event"], "created");
    for (event, name) in [(created.clone(), "created"), (event(&dir, "started"), "started")] {
        assert_eq!((&event["event"], &event["id"]), (&name.into(), &id.as_str().into()));
        assert!(event["pid"].as_u64().unwrap() > 0, "{event}");
        assert_eq!(event["annotations"]["rack"], "3");
        assert_eq!(event["bundle"].as_str().map(Path::new), Some(dir.as_path()));
    }
    assert_eq!(event(&dir, "started")["pid"], created["pid"]);
    assert_eq!(
        (&event(&dir, "stopped")["event"], &event(&dir, "stopped")["pid"]),
        (&"stopped".into(), &Value::Null)
    );
    drop(observer);

    // Nobody is there to be told: required, it does not start; else it does, and that is a warning.
    let said = runc(&dir, &id);
    assert!(said.code != Some(0) && !said.text().contains("inside"), "{said:?}");
    assert!(said.err.contains("oci/created was not executed"), "{}", said.err);
    bundle(&dir, &hooks(&host, &["--budget", "20s"]));
    runc(&dir, &id).with_code(0);

    // Who is there may say no.
    let _observer = self::observer(&host, "created");
    bundle(&dir, &hooks(&host, &["--required", "--budget", "20s"]));
    let said = runc(&dir, &id);
    assert!(said.code != Some(0) && !said.text().contains("inside"), "{said:?}");
    assert!(said.err.contains("not here"), "{}", said.err);
}

#[test]
fn a_hook_without_a_state_fails_only_where_it_is_required() {
    let host = Host::start();
    for state in [&b""[..], b"{}", b"\xff\0", &vec![b' '; 2_000_000]] {
        host.run_with(&["oci-hook"], state).with_code(0).says("nobody was told");
        host.run_with(&["oci-hook", "--required"], state).with_code(2).says("OCI");
    }
    let state = br#"{"ociVersion":"1.1.0","id":"a","status":"paused","bundle":"/b"}"#;
    host.run_with(&["oci-hook", "--required"], state).with_code(2).says("--stage");
    host.run_with(&["oci-hook", "--required", "--stage", "poststart"], state)
        .with_code(11)
        .says("(NO_SUCH)");
}
