//! Where a replay is: which moment of the past the next reading shows.

use std::time::Duration;

use k2i::history::SLACK;

/// A way through the past. Moments are milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Replay {
    /// The moment that is shown.
    pub(super) at_ms: i64,
    /// It does not go beyond these.
    pub(super) from_ms: i64,
    pub(super) to_ms: i64,
    /// How much faster than it was.
    pub(super) speed: f64,
    /// When it last moved, by the clock of the events.
    moved: Duration,
}

impl Replay {
    /// A replay of all between two moments.
    pub(super) fn new(from_ms: i64, to_ms: i64, speed: f64) -> Replay {
        let from_ms = from_ms.min(to_ms);
        Replay { at_ms: from_ms, from_ms, to_ms, speed, moved: Duration::ZERO }
    }

    /// Whether it is where it ends.
    pub(super) fn is_over(&self) -> bool {
        self.at_ms >= self.to_ms
    }

    /// Time has passed: once in each `delay` it moves on, while it is not `paused`. Where time was not
    /// told of for long it does not leap.
    pub(super) fn tick(&mut self, now: Duration, delay: Duration, paused: bool) {
        if paused {
            self.moved = now;
        } else if now.saturating_sub(self.moved) >= delay {
            self.moved = now;
            self.step(1, delay);
        }
    }

    /// Moves by so many readings.
    pub(super) fn step(&mut self, readings: i64, delay: Duration) {
        let one_ms = (delay.as_secs_f64() * 1_000.0 * self.speed).round().max(1.0) as i64;
        self.shift(readings.saturating_mul(one_ms));
    }

    /// Moves by a time.
    pub(super) fn shift(&mut self, by_ms: i64) {
        self.at_ms = self.at_ms.saturating_add(by_ms).clamp(self.from_ms, self.to_ms);
    }

    /// How it stands in the header: `REPLAY ×10`.
    pub(super) fn title(&self) -> String {
        let end = if self.is_over() { ", at its end" } else { "" };
        format!("REPLAY x{}{end}", self.speed)
    }
}

/// The moments at which hosts are asked, so that each of their records between two moments is shown and none
/// is passed over: of one host that is each record once, and of several as few readings as do. What was
/// recorded last before `from_ms` is what was then. `hosts` are the moments of their records, in order.
pub(super) fn readings(hosts: &[Vec<i64>], from_ms: i64, to_ms: i64) -> Vec<i64> {
    let slack_ms = SLACK.as_millis() as i64;
    let shown = |records: &[i64], at_ms: i64| {
        records.partition_point(|record_ms| *record_ms <= at_ms.saturating_add(slack_ms))
    };
    let mut next: Vec<usize> = hosts.iter().map(|records| shown(records, from_ms)).collect();
    let mut readings = Vec::new();
    if next.iter().any(|next| *next > 0) {
        readings.push(from_ms);
    }
    loop {
        // Of all hosts the record that is next, and the one behind it, which is not to be reached yet.
        let record = |behind: usize| {
            hosts.iter().zip(&next).filter_map(move |(records, next)| records.get(next + behind))
        };
        let Some(first_next_ms) = record(0).min() else { return readings };
        let before_second_ms = record(1).min().map_or(i64::MAX, |ms| ms - slack_ms - 1);
        let together = record(0).filter(|ms| **ms <= before_second_ms).max();
        let at_ms = *together.unwrap_or(first_next_ms);
        if at_ms > to_ms {
            return readings;
        }
        readings.push(at_ms);
        for (records, next) in hosts.iter().zip(&mut next) {
            *next = shown(records, at_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_is_read_and_of_one_host_each_once() {
        type Case = (&'static str, &'static [&'static [i64]], &'static [i64]);
        let cases: [Case; 7] = [
            ("nothing", &[], &[]),
            ("no record", &[&[]], &[]),
            ("one host", &[&[10_000, 15_000, 20_000]], &[10_000, 15_000, 20_000]),
            ("what was before", &[&[2_000, 7_000, 12_000]], &[10_000, 12_000]),
            ("not beyond the end", &[&[10_000, 99_000, 101_000]], &[10_000, 99_000]),
            (
                "two that go together",
                &[&[10_000, 15_000], &[12_000, 17_000]],
                &[10_000, 15_000, 17_000],
            ),
            (
                "one twice as fast",
                &[&[11_000, 16_000], &[11_000, 13_500, 16_000]],
                &[11_000, 13_500, 16_000],
            ),
        ];
        for (case, hosts, want) in cases {
            let hosts: Vec<_> = hosts.iter().map(|records| records.to_vec()).collect();
            assert_eq!(readings(&hosts, 10_000, 100_000), want, "{case}");
        }
    }

    #[test]
    fn no_record_of_any_host_is_passed_over() {
        // Hosts with periods that have nothing to do with each other.
        let periods_ms = [1_000_i64, 1_370, 5_000, 7_919];
        let every =
            |&period: &i64| (0..).map(move |nth| 500 + nth * period).take_while(|ms| *ms < 60_000);
        let hosts: Vec<Vec<i64>> =
            periods_ms.iter().map(|period| every(period).collect()).collect();
        let readings = readings(&hosts, 0, 60_000);
        assert!(readings.is_sorted_by(|a, b| a < b));
        for records in &hosts {
            let slack_ms = SLACK.as_millis() as i64;
            let mut shown: Vec<_> = readings
                .iter()
                .filter_map(|at_ms| records.iter().rfind(|ms| **ms <= at_ms + slack_ms))
                .collect();
            shown.dedup();
            assert!(shown.into_iter().eq(records));
        }
        // As many as the fastest has, and few more.
        assert!(readings.len() < 80, "{}", readings.len());
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_moves_once_in_each_delay() {
        let mut replay = Replay::new(10_000, 60_000, 10.0);
        for (ms, want) in
            [(0, 10_000), (999, 10_000), (1_000, 20_000), (1_500, 20_000), (2_000, 30_000)]
        {
            replay.tick(Duration::from_millis(ms), SECOND, false);
            assert_eq!(replay.at_ms, want, "after {ms} ms");
        }
        // A pause is not made up for, and neither is a time in which nothing was told.
        replay.tick(9 * SECOND, SECOND, true);
        replay.tick(9 * SECOND + SECOND / 2, SECOND, false);
        assert_eq!(replay.at_ms, 30_000);
        replay.tick(90 * SECOND, SECOND, false);
        assert_eq!(replay.at_ms, 40_000);
    }

    #[test]
    fn it_stays_between_its_ends() {
        let mut replay = Replay::new(10_000, 30_000, 10.0);
        replay.step(-1, SECOND);
        assert_eq!(replay.at_ms, 10_000);
        replay.step(1, SECOND);
        assert!(replay.at_ms == 20_000 && !replay.is_over());
        replay.shift(i64::MAX);
        assert!(replay.at_ms == 30_000 && replay.is_over());
        replay.shift(-60_000);
        assert_eq!(replay.at_ms, 10_000);
        let slow = &mut Replay::new(0, 30_000, 0.0001);
        slow.step(1, SECOND);
        assert_eq!(slow.at_ms, 1, "it always moves");
        assert_eq!(Replay::new(5, 3, 1.0).at_ms, 3, "from is not behind the end");
    }
}
