//! The benchmark of calls does what it says, without the systems of others. Its times are not looked at.

use std::process::Command;

#[test]
fn calls_are_measured_and_every_answer_compared() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench-middlecon"))
        .args(["--quick", "--rounds", "1", "--ms", "60", "--kills", "3", "--places", "one,two"])
        .arg("--kumo")
        .arg(kumo_testbed::kumo_for_tests())
        .output()
        .expect("it was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}\n{error}");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut wanted = vec![
        "| goal | measured | wanted | |",
        "### One core",
        "| middlecon, ring, threads |",
        "| middlecon, packets, tasks |",
        "| shared memory and futex |",
        "| TCP and rustls |",
        "| kill -9 of the callee on one host | 3 |",
    ];
    if cores > 1 {
        wanted.extend(["| ring, two cores, p50 |", "| middlecon, over HTTP through the node |"]);
    }
    for line in wanted {
        assert!(said.contains(line), "no {line:?} in\n{said}\n{error}");
    }
    // A slow machine may end no call of 64 in time; no answer may be a wrong one, and nobody may not begin.
    let not_measured = said.split("Not measured:").nth(1).unwrap_or_default();
    for line in not_measured.lines().filter(|line| line.starts_with("- ")) {
        assert!(line.ends_with("no call was over in time"), "{line}\n{error}");
    }
}

#[test]
fn whom_it_does_not_know_it_names() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench-middlecon"))
        .args(["--only", "pigeon", "--kumo"])
        .arg(kumo_testbed::kumo_for_tests())
        .output()
        .expect("it was built");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("there is no contender `pigeon`; there are ring, "), "{error}");
}
