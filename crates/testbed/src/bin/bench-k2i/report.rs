//! The results as Markdown, and their place in the document.

use std::fmt::Write;
use std::time::Duration;

use crate::stats::{Times, ms, significant};

/// Between these two lines of the document the benchmark writes; the rest is people's.
const BEGIN: &str = "<!-- bench-k2i: begin -->";
const END: &str = "<!-- bench-k2i: end -->";

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

/// `document` with `text` between the markers; at its end if it has none.
pub(crate) fn place(document: &str, text: &str) -> String {
    let block = format!("{BEGIN}\n{}\n{END}\n", text.trim_end());
    match (document.find(BEGIN), document.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            let rest = document[end + END.len()..].trim_start_matches('\n');
            let gap = if rest.is_empty() { "" } else { "\n" };
            format!("{}{block}{gap}{rest}", &document[..begin])
        }
        _ => format!("{}\n\n{block}", document.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_replaced_and_the_rest_kept() {
        let first = place("# Title\n", "one");
        assert_eq!(first, format!("# Title\n\n{BEGIN}\none\n{END}\n"));
        let second = place(&format!("{first}\nAfter.\n"), "two\n");
        assert_eq!(second, format!("# Title\n\n{BEGIN}\ntwo\n{END}\n\nAfter.\n"));
        assert_eq!(place(&second, "two"), second);
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
