//! The Python package: installed by pip into an environment of its own, and used through a real node.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::path::PathBuf;
use std::process::Command;

use support::{Host, Running, has, library, root, run};

/// A Python with the package, if this machine can make one.
fn installed(host: &Host) -> Option<PathBuf> {
    if !has("python3") {
        eprintln!("skipped: python3 is not installed; get it with apt: python3 python3-venv");
        return None;
    }
    let venv = host.path("venv");
    let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).output().unwrap();
    if !made.status.success() {
        eprintln!("skipped: python3 makes no virtual environment; get it with apt: python3-venv");
        return None;
    }
    let python = venv.join("bin/python");
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check"]);
    run(pip.arg(root().join("python")).env("MIDDLECON_LIBRARY", library()));
    Some(python)
}

#[test]
fn the_python_package_calls_and_serves_and_is_told_the_truth() {
    let host = Host::start();
    let Some(python) = installed(&host) else { return };
    let check = root().join("python/tests/check.py");
    run(Command::new(&python).arg(check).arg(host.run_dir()).env_remove("MIDDLECON_LIBRARY"));
    let example = root().join("examples/python/greeter.py");
    let (mut example, line) =
        Running::start(Command::new(&python).arg(example).arg(host.run_dir()));
    assert_eq!(line, "hello world\n");
    assert_eq!(host.call("greeter/greet", "you"), "hello you");
    let pid = rustix::process::Pid::from_child(&example.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(example.child.wait().unwrap().success(), "it drains and ends");
}
