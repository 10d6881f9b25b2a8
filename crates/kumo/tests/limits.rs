//! What the command does when it is short of means of its own: all or an error, never a part.

use std::collections::BTreeSet;
use std::process::Command;

/// The numbers of all processes that `/proc` lists.
fn pids() -> BTreeSet<i64> {
    let entries = std::fs::read_dir("/proc").expect("/proc");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

#[test]
fn a_table_is_whole_or_an_error_whatever_the_descriptors_allow() {
    for descriptors in [3, 4, 5, 6, 8, 10, 16, 32, 64] {
        let before = pids();
        let script =
            format!("ulimit -n {descriptors}; exec \"$0\" ps --collector proc -o pid --json");
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_kumo")])
            .output()
            .expect("a shell");
        let after = pids();
        let errors = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            // With three descriptors not even its libraries can be loaded.
            assert!(!errors.is_empty(), "it failed with {descriptors} and did not say why");
            continue;
        }
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let rows = answer["rows"].as_array().expect("rows");
        let seen: BTreeSet<i64> = rows.iter().filter_map(|row| row["pid"].as_i64()).collect();
        let missing: Vec<_> = before.intersection(&after).filter(|p| !seen.contains(p)).collect();
        assert!(missing.is_empty(), "with {descriptors} descriptors {missing:?} are missing");
    }
}
