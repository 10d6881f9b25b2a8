//! Which segment a record goes to, what is deleted for it, and which record shows a moment.
//!
//! Time is boot time wherever it can be: it never jumps. The wall clock is a label. What it showed when
//! a record of this boot was made does not matter; what it says now about that moment does, so that a
//! clock that was put right puts its past right too. Of an earlier boot the last label is believed.

use std::time::Duration;

use super::segment::Mark;

/// A segment takes at most this part of all bytes, so that to delete one loses little.
const SEGMENTS_MIN: u64 = 8;

/// And this part of the time.
const SEGMENT_AGE_PARTS: u32 = 12;

/// And so many records: whoever wants the last of them has to unpack all in front of it.
const RECORDS_MAX: usize = 120;

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes on the disk.
    pub size_bytes: u64,
    /// How far back it reaches.
    pub age: Duration,
}

/// A segment as far as it is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Its number; the newest has the greatest.
    pub(super) number: u64,
    pub(super) boot_id: String,
    pub(super) marks: Vec<Mark>,
    /// What it takes on the disk.
    pub(super) len_bytes: u64,
}

/// What the clocks of this host show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Now {
    pub(super) boot_id: String,
    pub(super) boot_ns: u64,
    pub(super) unix_ns: u64,
}

/// A record, and the moment that it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Index of its segment.
    pub(super) segment: usize,
    /// Index of its mark there.
    pub(super) record: usize,
    pub(super) unix_ns: i128,
}

/// Whether a record that takes `more_bytes` begins a new segment.
pub(super) fn begins_anew(
    current: &Segment,
    more_bytes: u64,
    now_boot_ns: u64,
    limits: &Limits,
) -> bool {
    let Some(first) = current.marks.first() else { return false };
    let age = Duration::from_nanos(now_boot_ns.saturating_sub(first.boot_ns));
    current.marks.len() >= RECORDS_MAX
        || age >= limits.age / SEGMENT_AGE_PARTS
        || current.len_bytes + more_bytes > limits.size_bytes / SEGMENTS_MIN
}

/// How many of the oldest segments are deleted, so that `more_bytes` find room and none is too old. The
/// one that is being written, the last where `writing`, stays.
pub(super) fn surplus(
    segments: &[Segment],
    writing: bool,
    more_bytes: u64,
    now: &Now,
    limits: &Limits,
) -> usize {
    let deletable = if writing { segments.len().saturating_sub(1) } else { segments.len() };
    let oldest_ns = i128::from(now.unix_ns) - limits.age.as_nanos() as i128;
    let offsets = offsets(segments, now);
    let is_old = |at: &usize| match segments[*at].marks.last() {
        Some(last) => i128::from(last.boot_ns) + offsets[*at] < oldest_ns,
        None => true,
    };
    // What is older than an old one is old, whatever its clock showed.
    let old = (0..deletable).rev().find(is_old).map_or(0, |last| last + 1);
    let mut total: u64 = segments.iter().skip(old).map(|segment| segment.len_bytes).sum();
    let mut count = old;
    while total + more_bytes > limits.size_bytes && count < deletable {
        total -= segments[count].len_bytes;
        count += 1;
    }
    count
}

/// For each segment what is added to boot time to get the time since 1970.
fn offsets(segments: &[Segment], now: &Now) -> Vec<i128> {
    let mut boot = (now.boot_id.as_str(), i128::from(now.unix_ns) - i128::from(now.boot_ns));
    let mut offsets = Vec::with_capacity(segments.len());
    for segment in segments.iter().rev() {
        if segment.boot_id != boot.0
            && let Some(last) = segment.marks.last()
        {
            boot = (segment.boot_id.as_str(), i128::from(last.unix_ns) - i128::from(last.boot_ns));
        }
        offsets.push(boot.1);
    }
    offsets.reverse();
    offsets
}

/// The last record that is not younger than `at_unix_ns`.
pub(super) fn find(segments: &[Segment], now: &Now, at_unix_ns: i128) -> Option<Found> {
    let offsets = offsets(segments, now);
    (0..segments.len()).rev().find_map(|segment| {
        let unix_ns = |mark: &Mark| i128::from(mark.boot_ns) + offsets[segment];
        let marks = &segments[segment].marks;
        // Within a boot they only go up.
        let record = marks.partition_point(|mark| unix_ns(mark) <= at_unix_ns).checked_sub(1)?;
        Some(Found { segment, record, unix_ns: unix_ns(&marks[record]) })
    })
}

/// The moments of the first and the last record, nanoseconds since 1970.
pub(super) fn reach(segments: &[Segment], now: &Now) -> Option<(i128, i128)> {
    let offsets = offsets(segments, now);
    let mut moments = segments.iter().zip(&offsets).filter_map(|(segment, offset)| {
        let ends = segment.marks.first().zip(segment.marks.last());
        ends.map(|(a, b)| [a, b].map(|mark| i128::from(mark.boot_ns) + offset))
    });
    let [from, to] = moments.next()?;
    Some((from, moments.next_back().map_or(to, |[_, to]| to)))
}

/// The moments of all records in their order, nanoseconds since 1970.
pub(super) fn moments(segments: &[Segment], now: &Now) -> Vec<i128> {
    let each = segments.iter().zip(offsets(segments, now));
    each.flat_map(|(segment, offset)| {
        segment.marks.iter().map(move |mark| i128::from(mark.boot_ns) + offset)
    })
    .collect()
}

/// How long to wait after a record: at least `period`, and a hundred times what the record cost, so
/// that all of it stays below one percent of a CPU.
pub(super) fn pause(period: Duration, cost: Duration) -> Duration {
    period.max(cost.saturating_mul(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const LIMITS: Limits = Limits { size_bytes: 8_000, age: Duration::from_secs(3_600) };

    /// A segment of one boot: records at these seconds of boot time, written when the wall clock was
    /// `ahead_s` ahead of it.
    fn segment(number: u64, boot_id: &str, ahead_s: u64, at_s: &[u64], len_bytes: u64) -> Segment {
        let mark = |at: &u64| Mark {
            offset: 0,
            len: 1,
            raw_len: 1,
            boot_ns: at * S,
            unix_ns: (at + ahead_s) * S,
        };
        let marks = at_s.iter().map(mark).collect();
        Segment { number, boot_id: boot_id.to_owned(), marks, len_bytes }
    }

    fn now(boot_s: u64, unix_s: u64) -> Now {
        Now { boot_id: "b".to_owned(), boot_ns: boot_s * S, unix_ns: unix_s * S }
    }

    /// The number of the segment and the second of the record that shows this second.
    fn found(segments: &[Segment], now: &Now, at_s: u64) -> Option<(u64, u64, i128)> {
        let found = find(segments, now, i128::from(at_s * S))?;
        let segment = &segments[found.segment];
        let at_s = segment.marks[found.record].boot_ns / S;
        Some((segment.number, at_s, found.unix_ns / i128::from(S)))
    }

    #[test]
    fn the_last_record_before_a_moment_shows_it() {
        let segments =
            [segment(1, "b", 1_000, &[10, 15, 20], 1), segment(2, "b", 1_000, &[25, 30], 1)];
        let now = now(33, 1_033);
        let moments: Vec<_> =
            moments(&segments, &now).iter().map(|ns| ns / i128::from(S)).collect();
        assert_eq!(moments, [1_010, 1_015, 1_020, 1_025, 1_030]);
        let cases = [
            (1_009, None),
            (1_010, Some((1, 10, 1_010))),
            (1_014, Some((1, 10, 1_010))),
            (1_024, Some((1, 20, 1_020))),
            (1_025, Some((2, 25, 1_025))),
            (9_999, Some((2, 30, 1_030))),
        ];
        for (at_s, want) in cases {
            assert_eq!(found(&segments, &now, at_s), want, "at {at_s}");
        }
        let s = |ns: i128| ns / i128::from(S);
        assert_eq!(reach(&segments, &now).map(|(a, b)| (s(a), s(b))), Some((1_010, 1_030)));
        assert_eq!(reach(&[], &now), None);
    }

    #[test]
    fn a_clock_that_jumps_moves_its_past_with_it() {
        // Written while the clock was a day slow, and since it was put right.
        let segments =
            [segment(1, "b", 1_000, &[10, 15], 1), segment(2, "b", 1_000 + 86_400, &[20], 1)];
        let right = now(25, 87_425);
        assert_eq!(found(&segments, &right, 87_416), Some((1, 15, 87_415)));
        assert_eq!(found(&segments, &right, 1_015), None, "nothing is of a day ago");
        // And an hour back, in the middle of it.
        let back = now(25, 87_425 - 3_600);
        assert_eq!(found(&segments, &back, 87_425 - 3_600), Some((2, 20, 83_820)));
        assert_eq!(found(&segments, &back, 83_811), Some((1, 10, 83_810)));
    }

    #[test]
    fn an_earlier_boot_is_believed_its_last_label() {
        let segments = [
            segment(1, "a", 500, &[700, 800], 1),
            segment(2, "a", 510, &[805], 1),
            segment(3, "b", 2_000, &[10], 1),
        ];
        let now = now(12, 2_012);
        assert_eq!(found(&segments, &now, 1_311), Some((1, 800, 1_310)));
        assert_eq!(found(&segments, &now, 1_999), Some((2, 805, 1_315)), "the node was down");
        assert_eq!(found(&segments, &now, 2_011), Some((3, 10, 2_010)));
    }

    #[test]
    fn what_is_deleted() {
        let three = [
            segment(1, "b", 1_000, &[10, 15], 3_000),
            segment(2, "b", 1_000, &[20, 25], 3_000),
            segment(3, "b", 1_000, &[30], 1_500),
        ];
        let cases = [
            // Segments, being written, more bytes, now, deleted.
            (&three[..], true, 100, now(31, 1_031), 0),
            (&three[..], true, 600, now(31, 1_031), 1),
            (&three[..], true, 4_000, now(31, 1_031), 2),
            (&three[..], true, 9_000, now(31, 1_031), 2),
            (&three[..], false, 9_000, now(31, 1_031), 3),
            (&three[..], true, 100, now(3_617, 4_617), 1),
            (&three[..], true, 100, now(9_999, 10_999), 2),
            (&three[..], false, 100, now(9_999, 10_999), 3),
        ];
        for (at, (segments, writing, more, now, want)) in cases.into_iter().enumerate() {
            assert_eq!(surplus(segments, writing, more, &now, &LIMITS), want, "case {at}");
        }
        // An earlier boot whose clock was far ahead goes with what is younger and old.
        let ahead = [segment(1, "a", 99_999, &[10], 1), segment(2, "b", 1_000, &[10], 1)];
        assert_eq!(surplus(&ahead, false, 0, &now(9_999, 10_999), &LIMITS), 2);
    }

    #[test]
    fn when_a_segment_ends() {
        let small = |at_s: &[u64]| segment(1, "b", 0, at_s, 500);
        let many: Vec<u64> = (0..RECORDS_MAX as u64).collect();
        let cases = [
            (small(&[]), 9_000, 5, false),
            (small(&[10]), 100, 15, false),
            (small(&[10]), 600, 15, true),
            (small(&[10]), 100, 310, true),
            (small(&many), 1, 130, true),
        ];
        for (at, (segment, more, now_s, want)) in cases.into_iter().enumerate() {
            assert_eq!(begins_anew(&segment, more, now_s * S, &LIMITS), want, "case {at}");
        }
    }

    #[test]
    fn what_is_kept_stays_within_bounds_for_ever() {
        let mut segments: Vec<Segment> = Vec::new();
        for second in (0..40_000).step_by(5) {
            let now = now(second, 1_000 + second);
            let more = 50 + second % 700;
            let anew = segments.last().is_none_or(|s| begins_anew(s, more, now.boot_ns, &LIMITS));
            let count = surplus(&segments, !anew, more, &now, &LIMITS);
            segments.drain(..count);
            if anew {
                segments.push(segment(second, "b", 1_000, &[], 0));
            }
            let last = segments.last_mut().expect("one is being written");
            last.len_bytes += more;
            last.marks.extend(segment(0, "b", 1_000, &[second], 0).marks);
            assert!(segments.iter().map(|s| s.len_bytes).sum::<u64>() <= LIMITS.size_bytes);
            let (from, to) = reach(&segments, &now).expect("records");
            // The oldest segment may reach further back than its end.
            assert!(to - from <= i128::from(3_900 * S));
        }
        assert!(segments.len() >= 4);
    }

    #[test]
    fn what_costs_more_is_done_less_often() {
        let ms = Duration::from_millis;
        assert_eq!(pause(ms(5_000), ms(2)), ms(5_000));
        assert_eq!(pause(ms(5_000), ms(120)), ms(12_000));
    }
}
