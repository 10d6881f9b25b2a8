//! The benchmark of the fabric does what it says, with a handful of hosts. Its times are not looked at.

use std::process::Command;

#[test]
fn a_small_world_is_measured() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench-fabric"))
        .args(["--quick", "--hosts", "6", "--idle-hosts", "3", "--processes", "40"])
        // Patient: this machine may do ten other things.
        .args(["--rounds", "1", "--idle-s", "1", "--wait-ms", "4000"])
        .arg("--kumo")
        .arg(kumo_testbed::kumo_for_tests())
        .output()
        .expect("it was built");
    let (said, error) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{said}\n{error}");
    for line in [
        "### Questions to 6 hosts with 40 processes each",
        "| merged, 1 dead and 1 hung |",
        "Plain HTTP to each host takes",
        "All rows: ",
        "| simulated host |",
        "| a host is killed (2 times) |",
        "| a host and its gateway are killed (1 times) |",
        "Other hosts that anybody saw dead or cut off in 1 deaths of a gateway: ",
        "| `kumo join`, from its start to its end |",
    ] {
        assert!(said.contains(line), "no {line:?} in\n{said}\n{error}");
    }
}
