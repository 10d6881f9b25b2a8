//! How long something took, in buckets that are counted without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds: a small table takes some hundreds of them, one of
/// thirty thousand processes read from `/proc` a second.
const BOUNDS_US: [u64; 12] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000,
];

/// Durations that were met.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// The last one counts what is above all bounds.
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub(crate) fn note(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < took_us);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took_us, Ordering::Relaxed);
    }

    /// For each bound, in seconds, how many were not above it; how many there were; their sum in seconds.
    pub(crate) fn told(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut count = 0;
        let mut below = Vec::with_capacity(BOUNDS_US.len());
        for (index, bucket) in self.counts.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            below.extend(BOUNDS_US.get(index).map(|bound_us| (*bound_us as f64 / 1e6, count)));
        }
        (below, count, self.sum_us.load(Ordering::Relaxed) as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::default();
        for took_us in [0, 500, 501, 1_000, 2_500_000, 2_500_001] {
            histogram.note(Duration::from_micros(took_us));
        }
        let (below, count, sum) = histogram.told();
        assert_eq!((below[0], below[1], below[2]), ((0.0005, 2), (0.001, 4), (0.0025, 4)));
        assert_eq!((below[11], count), ((2.5, 5), 6));
        assert!((sum - 5.002_002).abs() < 1e-9, "{sum}");
    }
}
