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

/// The tables of one number of processes.
pub(crate) fn tables(round: &Round) -> String {
    let baseline = round.timed.first().and_then(|timed| timed.times.median());
    let mut text = format!(
        "### {} processes\n\n| one answer | median ms | min – max | `ps auwx` takes | KiB |\n\
         |---|---:|---:|---:|---:|\n",
        round.processes
    );
    for timed in &round.timed {
        let (Some(median), Some((min, max))) = (timed.times.median(), timed.times.range()) else {
            continue;
        };
        let ratio = baseline.map_or(0.0, |base| base.as_secs_f64() / median.as_secs_f64());
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
