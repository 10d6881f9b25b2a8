//! What the benchmarks share: times, the machine, and the document they write to.

pub mod document;
pub mod machine;
pub mod stats;

/// The line over a benchmark's results: how it was called, when, of what commit, on what machine.
pub fn heading(benchmark: &str) -> String {
    let command: Vec<String> = std::env::args().skip(1).collect();
    let arguments = match command.join(" ") {
        none if none.is_empty() => String::new(),
        some => format!(" ARGS='{some}'"),
    };
    let date = machine::output_of("date", &["-u", "+%F"]).unwrap_or_default();
    let commit =
        machine::output_of("git", &["describe", "--always", "--dirty"]).unwrap_or_default();
    let machine = machine::describe();
    format!("`make {benchmark}{arguments}`, {date}, commit {commit}.\n\nMachine: {machine}.\n")
}
