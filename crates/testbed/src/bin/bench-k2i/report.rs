//! The results as Markdown.

use std::fmt::Write;
use std::time::Duration;

use kumo_testbed::bench::stats::{Times, ms, significant};

/// One timed case.
#[derive(Debug)]
pub(crate) struct Timed {
    pub(crate) name: String,
    pub(crate) times: Times,
    /// Bytes of one answer.
    pub(crate) bytes: usize,
}

impl Timed {
    /// The same under another name.
    pub(crate) fn named(self, name: String) -> Timed {
        Timed { name, ..self }
    }
}

/// One watched program.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) name: String,
    /// CPU time it used while it was watched.
    pub(crate) cpu: Duration,
    /// How long that was.
    pub(crate) wall: Duration,
    /// Resident memory at the end and at the most, KiB.
    pub(crate) resident_kib: (u64, u64),
}

/// All results for one number of processes. The first timed case is the baseline.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) processes: usize,
    pub(crate) timed: Vec<Timed>,
    pub(crate) watched: Vec<Watched>,
}

/// A case for who may see command lines whole, and for who may not.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) name: &'static str,
    pub(crate) whole: Times,
    pub(crate) redacted: Times,
}

/// A table of pairs and their ratios.
pub(crate) fn pairs(pairs: &[Pair]) -> String {
    let mut text = "| one answer | all shown, median ms | without secrets, median ms | takes |\n\
                    |---|---:|---:|---:|\n"
        .to_owned();
    for Pair { name, whole, redacted } in pairs {
        let (Some(whole), Some(redacted)) = (whole.median(), redacted.median()) else { continue };
        let ratio = significant(redacted.as_secs_f64() / whole.as_secs_f64());
        let _ = writeln!(text, "| {name} | {} | {} | {ratio} × |", ms(whole), ms(redacted));
    }
    text
}

/// A table of cases; the first is the `baseline`.
pub(crate) fn timed_table(all: &[Timed], baseline: &str) -> String {
    let first = all.first().and_then(|timed| timed.times.median());
    let mut text = format!(
        "| one answer | median ms | min – max | {baseline} takes | KiB |\n|---|---:|---:|---:|---:|\n"
    );
    for timed in all {
        let (Some(median), Some((min, max))) = (timed.times.median(), timed.times.range()) else {
            continue;
        };
        let ratio = first.map_or(0.0, |first| first.as_secs_f64() / median.as_secs_f64());
        let _ = writeln!(
            text,
            "| {} | {} | {} – {} | {} × | {} |",
            timed.name,
            ms(median),
            ms(min),
            ms(max),
            significant(ratio),
            timed.bytes / 1024,
        );
    }
    text
}

/// The tables of one number of processes.
pub(crate) fn tables(round: &Round) -> String {
    let table = timed_table(&round.timed, "`ps auwx`");
    let mut text = format!("### {} processes\n\n{table}", round.processes);
    if !round.watched.is_empty() {
        text += "\n| watched once a second | CPU, % of one | RSS MiB | most MiB |\n\
                 |---|---:|---:|---:|\n";
    }
    for watched in &round.watched {
        let (now, most) = watched.resident_kib;
        let _ = writeln!(
            text,
            "| {} | {:.2} | {:.1} | {:.1} |",
            watched.name,
            100.0 * watched.cpu.as_secs_f64() / watched.wall.as_secs_f64(),
            now as f64 / 1024.0,
            most as f64 / 1024.0,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_compared_with_itself() {
        let times = |ms: u64| Times(vec![Duration::from_millis(ms)]);
        let pair = Pair { name: "a", whole: times(10), redacted: times(12) };
        assert!(pairs(&[pair]).contains("| a | 10.0 | 12.0 | 1.20 × |"));
    }

    #[test]
    fn ratios_are_to_the_first_case() {
        let case = |name: &str, ms: u64| Timed {
            name: name.to_owned(),
            times: Times(vec![Duration::from_millis(ms)]),
            bytes: 2048,
        };
        let round =
            Round { processes: 3, timed: vec![case("a", 100), case("b", 5)], watched: vec![] };
        let text = tables(&round);
        assert!(text.contains("| a | 100 | 100 – 100 | 1.00 × | 2 |"), "{text}");
        assert!(text.contains("| b | 5.00 | 5.00 – 5.00 | 20.0 × | 2 |"), "{text}");
        assert!(!text.contains("watched"), "{text}");
    }
}
