//! The benchmark of the fabric does what it says, with a handful of hosts. Its times are not looked at.

use std::process::Command;

/// The benchmark gives up where somebody does not see a death in time, as on a machine that does ten other
/// things. So often it is begun.
const TRIES_MAX: usize = 3;

fn measure() -> Result<(String, String), String> {
    let output = Command::new(env!("CARGO_BIN_EXE_bench-fabric"))
        .args(["--quick", "--hosts", "6", "--idle-hosts", "3", "--processes", "40"])
        .args(["--rounds", "1", "--idle-s", "1", "--wait-ms", "4000"])
        .arg("--kumo")
        .arg(kumo_testbed::kumo_for_tests())
        .output()
        .expect("it was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, error) = (text(&output.stdout), text(&output.stderr));
    if output.status.success() { Ok((said, error)) } else { Err(format!("{said}\n{error}")) }
}

#[test]
fn a_small_world_is_measured() {
    let mut failures = Vec::new();
    let measured = (0..TRIES_MAX).find_map(|_| match measure() {
        Ok(measured) => Some(measured),
        Err(failure) => {
            println!("{failure}");
            failures.push(failure);
            None
        }
    });
    let (said, error) = measured.unwrap_or_else(|| panic!("{}", failures.join("\n")));
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
