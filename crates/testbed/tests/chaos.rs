//! A short story of calls under fire. The long one is `make chaos-middlecon`.

use std::process::Command;

use kumo_testbed::net::is_there_for_tests;

/// Two stories that found what was wrong: receipts that two connections shared after a restart of a node, and a
/// callee that stood still while its node was killed.
const SEEDS: [&str; 2] = ["1", "2"];

#[test]
fn callers_are_told_the_truth_while_everything_is_killed_frozen_and_cut_off_and_nothing_is_left_of_it()
 {
    if !is_there_for_tests() {
        return;
    }
    for seed in SEEDS {
        let output = Command::new(env!("CARGO_BIN_EXE_chaos-middlecon"))
            .args(["--replies", "0", "--seconds", "5", "--seed", seed, "--kumo"])
            .arg(kumo_testbed::kumo_for_tests())
            .output()
            .expect("it was built");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (said, error) = (text(&output.stdout), text(&output.stderr));
        println!("{said}");
        assert!(said.contains(" done\n") && said.contains("kill -9 a server"), "{said}\n{error}");
        // Each promise that was not kept is a line of its own.
        assert!(output.status.success(), "{said}\n{error}");
    }
}
