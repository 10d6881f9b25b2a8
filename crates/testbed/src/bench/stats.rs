//! Medians and how they are written.

use std::time::Duration;

/// The times of one case, in the order they were taken.
#[derive(Clone, Debug, Default)]
pub struct Times(pub Vec<Duration>);

impl Times {
    /// The middle one, or the mean of the two in the middle; `None` without any.
    pub fn median(&self) -> Option<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let half = sorted.len() / 2;
        let upper = *sorted.get(half)?;
        if sorted.len() % 2 == 1 { Some(upper) } else { Some((sorted[half - 1] + upper) / 2) }
    }

    /// The time that so many percent do not exceed; `None` without any.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }

    /// The greatest; `None` without any.
    pub fn max(&self) -> Option<Duration> {
        self.0.iter().max().copied()
    }

    /// The least and the greatest; `None` without any.
    pub fn range(&self) -> Option<(Duration, Duration)> {
        Some((*self.0.iter().min()?, *self.0.iter().max()?))
    }
}

/// Milliseconds with three digits that count.
pub fn ms(time: Duration) -> String {
    significant(time.as_secs_f64() * 1e3)
}

/// A number with three digits that count, and no more than two after the point.
pub fn significant(number: f64) -> String {
    let digits = match number.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{number:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let cases: [(&[u64], Option<u64>); 4] =
            [(&[], None), (&[5], Some(5)), (&[9, 1, 2], Some(2)), (&[4, 1, 9, 2], Some(3))];
        for (times, want) in cases {
            let times = Times(times.iter().copied().map(Duration::from_nanos).collect());
            assert_eq!(times.median(), want.map(Duration::from_nanos));
        }
    }

    #[test]
    fn percentiles_are_times_that_were_taken() {
        let times = Times((1..=200).rev().map(Duration::from_millis).collect());
        let cases = [(0, 1), (1, 2), (50, 100), (95, 190), (99, 198), (100, 200)];
        for (percent, want) in cases {
            let want = Some(Duration::from_millis(want));
            assert_eq!(times.percentile(percent), want, "for {percent} %");
        }
        assert_eq!(times.max(), Some(Duration::from_millis(200)));
        assert_eq!(Times::default().percentile(50), None);
    }

    #[test]
    fn digits() {
        let cases = [(1234.5, "1234"), (99.96, "100.0"), (12.34, "12.3"), (0.123, "0.12")];
        for (number, want) in cases {
            assert_eq!(significant(number), want);
        }
    }
}
