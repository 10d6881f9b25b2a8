//! What was measured, and how it is told: tables, ratios, and whether the goals are met.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kumo_testbed::bench::stats::significant;

use crate::clock::Round;
use crate::plan::{CALLERS, CONTENDERS, Cell, Contender, Layout, PAUSE_US, SIZES_BYTES};

/// All rounds of all cells.
#[derive(Debug, Default)]
pub(crate) struct Results {
    rounds: BTreeMap<(Layout, Cell, &'static str), Vec<Round>>,
    /// Who was not measured, and why.
    pub(crate) missing: Vec<String>,
}

/// The medians of a cell's rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) calls_per_s: f64,
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    let half = numbers.len() / 2;
    if numbers.len() % 2 == 1 {
        numbers[half]
    } else {
        f64::midpoint(numbers[half - 1], numbers[half])
    }
}

impl Results {
    pub(crate) fn add(&mut self, layout: Layout, cell: Cell, id: &'static str, round: Round) {
        self.rounds.entry((layout, cell, id)).or_default().push(round);
    }

    pub(crate) fn miss(&mut self, layout: Layout, contender: &Contender, why: &str) {
        let line = format!("{} ({}): {why}", contender.name, layout.title().to_lowercase());
        if !self.missing.contains(&line) {
            self.missing.push(line);
        }
    }

    pub(crate) fn of(&self, layout: Layout, cell: Cell, id: &str) -> Option<Measured> {
        let contender = crate::plan::find(id)?;
        let rounds = self.rounds.get(&(layout, cell, contender.id))?;
        let of = |part: fn(&Round) -> f64| median(rounds.iter().map(part).collect());
        Some(Measured {
            p50_us: of(|round| f64::from(round.p50_ns) / 1e3),
            p99_us: of(|round| f64::from(round.p99_ns) / 1e3),
            calls_per_s: of(|round| round.calls_per_s),
        })
    }

    /// The least calls of any cell and contender: what the percentiles stand on.
    pub(crate) fn fewest_calls(&self) -> usize {
        let sums = self.rounds.values().map(|rounds| rounds.iter().map(|round| round.calls).sum());
        sums.min().unwrap_or(0)
    }

    /// The tables of a layout.
    pub(crate) fn tables(&self, layout: Layout, sizes_bytes: &[usize]) -> String {
        let base = if layout == Layout::Apart { "across" } else { "ring" };
        let mut text = format!("### {}\n\n", layout.title());
        text += &self.latencies(layout, sizes_bytes, base);
        text += "\n";
        text += &self.throughputs(layout, sizes_bytes);
        text += "\n";
        text += &self.woken(layout, base);
        text
    }

    fn latencies(&self, layout: Layout, sizes_bytes: &[usize], base: &str) -> String {
        let mut text = "| one caller, µs |".to_owned();
        for size_bytes in sizes_bytes {
            let _ = write!(text, " {} p50 | p99 | × |", bytes(*size_bytes));
        }
        text += "\n|---|";
        text += &"---:|".repeat(3 * sizes_bytes.len());
        text += "\n";
        for contender in here(layout) {
            let cells = sizes_bytes.iter().map(|&size_bytes| {
                let cell = Cell { size_bytes, callers: CALLERS[0], pause_us: 0 };
                let measured = self.of(layout, cell, contender.id)?;
                let base = self.of(layout, cell, base);
                let ratio = base.map(|base| measured.p50_us / base.p50_us);
                Some(format!(
                    " {} | {} | {} |",
                    significant(measured.p50_us),
                    significant(measured.p99_us),
                    ratio.map_or_else(String::new, significant),
                ))
            });
            row(&mut text, contender, cells, " | | |");
        }
        text
    }

    fn throughputs(&self, layout: Layout, sizes_bytes: &[usize]) -> String {
        let callers = CALLERS[1];
        let mut text = format!("| {callers} callers, calls a second |");
        for size_bytes in sizes_bytes {
            let _ = write!(text, " {} | p99 µs | × |", bytes(*size_bytes));
        }
        text += "\n|---|";
        text += &"---:|".repeat(3 * sizes_bytes.len());
        text += "\n";
        for contender in here(layout) {
            let cells = sizes_bytes.iter().map(|&size_bytes| {
                let cell = Cell { size_bytes, callers, pause_us: 0 };
                let measured = self.of(layout, cell, contender.id)?;
                let best = self.best_of_ours(layout, cell)?;
                Some(format!(
                    " {:.0} | {} | {} |",
                    measured.calls_per_s,
                    significant(measured.p99_us),
                    significant(measured.calls_per_s / best.calls_per_s),
                ))
            });
            row(&mut text, contender, cells, " | | |");
        }
        text
    }

    fn woken(&self, layout: Layout, base: &str) -> String {
        let mut text = "| one caller, both ends asleep, µs | 64 B p50 | p99 | × |\n".to_owned();
        text += "|---|---:|---:|---:|\n";
        let cell = woken_cell();
        let base = self.of(layout, cell, base);
        for contender in here(layout) {
            let measured = self.of(layout, cell, contender.id).map(|measured| {
                let ratio = base.map(|base| measured.p50_us / base.p50_us);
                format!(
                    " {} | {} | {} |",
                    significant(measured.p50_us),
                    significant(measured.p99_us),
                    ratio.map_or_else(String::new, significant),
                )
            });
            row(&mut text, contender, std::iter::once(measured), " | | |");
        }
        text
    }

    fn best_of_ours(&self, layout: Layout, cell: Cell) -> Option<Measured> {
        let ours = here(layout).filter(|contender| contender.is_ours && !is_a_detour(contender));
        let measured = ours.filter_map(|contender| self.of(layout, cell, contender.id));
        measured.max_by(|a, b| a.calls_per_s.total_cmp(&b.calls_per_s))
    }

    /// What was promised, and what came of it.
    pub(crate) fn goals(&self, deaths: &[(&str, Vec<f64>)]) -> String {
        let one = |size_bytes| Cell { size_bytes, callers: CALLERS[0], pause_us: 0 };
        let p50 = |layout, id| Some(self.of(layout, one(SIZES_BYTES[0]), id)?.p50_us);
        let mut goals: Vec<(String, String, Option<f64>, f64, bool)> = Vec::new();
        let mut at_most = |what: &str, unit: &str, value, limit| {
            goals.push((what.to_owned(), unit.to_owned(), value, limit, true));
        };
        at_most("ring, two cores, p50", " µs", p50(Layout::Two, "ring"), 1.0);
        let blocked = p50(Layout::One, "ring").zip(p50(Layout::One, "unix"));
        let blocked = blocked.map(|(ring, unix)| ring / unix);
        at_most("ring on one core, beside a bare socket", " ×", blocked, 1.3);
        let tls = p50(Layout::Apart, "across").zip(p50(Layout::Apart, "tls"));
        at_most("TLS across, beside bare TCP and rustls", " ×", tls.map(|(a, b)| a / b), 1.15);
        for (name, took_ms) in deaths {
            let value = percentile(took_ms, 99);
            at_most(&format!("{name}, p99"), " ms", value, 5.0);
        }
        let mut at_least = |what: String, value, limit| {
            goals.push((what, " ×".to_owned(), value, limit, false));
        };
        for (ids, name, limit) in [
            (&["grpc-unix", "grpc-tcp"][..], "tonic", 3.0),
            (&["zenoh"], "Zenoh", 2.0),
            (&["nats"], "NATS", 2.0),
            (&["zeromq"], "ZeroMQ", 2.0),
        ] {
            for layout in [Layout::One, Layout::Two] {
                let theirs = ids.iter().filter_map(|id| p50(layout, id)).min_by(f64::total_cmp);
                let value = theirs.zip(p50(layout, "ring")).map(|(theirs, ring)| theirs / ring);
                let what = format!("{name}, {}, 64 B: time beside the ring's", lower(layout));
                at_least(what, value, limit);
            }
        }
        for layout in [Layout::One, Layout::Two] {
            for size_bytes in SIZES_BYTES {
                let cell = Cell { size_bytes, callers: CALLERS[1], pause_us: 0 };
                let peers = here(layout).filter(|contender| !contender.is_built_in);
                let best = peers
                    .filter_map(|peer| Some((peer.name, self.of(layout, cell, peer.id)?)))
                    .max_by(|a, b| a.1.calls_per_s.total_cmp(&b.1.calls_per_s));
                let ours = self.best_of_ours(layout, cell);
                let value =
                    ours.zip(best).map(|(ours, best)| ours.calls_per_s / best.1.calls_per_s);
                let who = best.map_or("the best peer", |(name, _)| name);
                let what = format!(
                    "64 callers, {}, {}: calls a second beside {who}",
                    lower(layout),
                    bytes(size_bytes),
                );
                at_least(what, value, 1.0);
            }
        }
        let mut text = "| goal | measured | wanted | |\n|---|---:|---:|---|\n".to_owned();
        for (what, unit, value, limit, is_limit) in goals {
            let Some(value) = value else { continue };
            let met = if is_limit { value <= limit } else { value >= limit };
            let sign = if is_limit { "≤" } else { "≥" };
            let met = if met { "met" } else { "**missed**" };
            let _ = writeln!(
                text,
                "| {what} | {}{unit} | {sign} {limit}{unit} | {met} |",
                significant(value)
            );
        }
        text
    }
}

/// One caller that pauses.
pub(crate) fn woken_cell() -> Cell {
    Cell { size_bytes: SIZES_BYTES[0], callers: CALLERS[0], pause_us: PAUSE_US }
}

/// Of the time that so many percent do not exceed.
pub(crate) fn percentile(numbers: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied()
}

/// Ours, but not the way that programs take.
fn is_a_detour(contender: &Contender) -> bool {
    matches!(contender.id, "http" | "relayed" | "ring-again")
}

fn lower(layout: Layout) -> String {
    layout.title().to_lowercase()
}

fn row(
    text: &mut String,
    contender: &Contender,
    cells: impl Iterator<Item = Option<String>>,
    empty: &str,
) {
    let cells: Vec<Option<String>> = cells.collect();
    if cells.iter().all(Option::is_none) {
        return;
    }
    let _ = write!(text, "| {} |", contender.name);
    for cell in cells {
        text.push_str(cell.as_deref().unwrap_or(empty));
    }
    text.push('\n');
}

fn bytes(count: usize) -> String {
    match count {
        1_048_576.. => format!("{} MiB", count >> 20),
        1_024.. => format!("{} KiB", count >> 10),
        _ => format!("{count} B"),
    }
}

/// The contenders of a layout.
fn here(layout: Layout) -> impl Iterator<Item = &'static Contender> {
    CONTENDERS.iter().filter(move |contender| contender.layouts.contains(&layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(p50_ns: u32) -> Round {
        let calls_per_s = 1e9 / f64::from(p50_ns);
        Round { calls: 100, calls_per_s, p50_ns, p99_ns: 2 * p50_ns, max_ns: 9 * p50_ns }
    }

    #[test]
    fn medians_ratios_and_goals() {
        let mut results = Results::default();
        let cell = Cell { size_bytes: 64, callers: 1, pause_us: 0 };
        for ns in [5_000, 900, 800] {
            results.add(Layout::Two, cell, "ring", round(ns));
        }
        results.add(Layout::Two, cell, "zenoh", round(1_700));
        let tables = results.tables(Layout::Two, &[64]);
        assert!(tables.contains("| middlecon, ring, threads | 0.90 | 1.80 | 1.00 |"), "{tables}");
        assert!(tables.contains("| Zenoh query, Unix socket | 1.70 | 3.40 | 1.89 |"), "{tables}");
        let goals = results.goals(&[("killed", vec![1.0, 2.0])]);
        assert!(goals.contains("| ring, two cores, p50 | 0.90 µs | ≤ 1 µs | met |"), "{goals}");
        assert!(goals.contains("| 1.89 × | ≥ 2 × | **missed** |"), "{goals}");
        assert!(goals.contains("| killed, p99 | 2.00 ms | ≤ 5 ms | met |"), "{goals}");
        assert_eq!(results.fewest_calls(), 100);
    }
}
