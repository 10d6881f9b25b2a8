//! Moments on command lines: those of [`kumo_abi::When`], a time of day being that of the user's zone.

use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use kumo_abi::{At, LocalMoment, When, days_since_1970};
use kumo_sys::LocalTime;

/// A moment of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(pub At);

impl FromStr for Moment {
    type Err = String;
    fn from_str(text: &str) -> Result<Moment, String> {
        match text.parse::<When>().map_err(|error| error.to_string())? {
            When::At(at) => Ok(Moment(at)),
            When::Local(local) => {
                let unix_s = unix_s(local, now_ms() / 1_000, LocalTime::at);
                let at = unix_s.map(|unix_s| Moment(At::UnixMs(unix_s * 1_000)));
                at.ok_or_else(|| format!("`{text}` is a time that there is not"))
            }
        }
    }
}

/// Milliseconds since 1970, now.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

/// When the clocks of a zone, which `local` knows, show this time; without a date the last time they
/// did. Where a clock was put back they showed it twice, and one of both is meant; where it was put
/// forward they never did, and a time beside the gap is.
fn unix_s(
    wanted: LocalMoment,
    now_s: i64,
    local: impl Fn(i64) -> Option<LocalTime>,
) -> Option<i64> {
    let of_local = |time: &LocalTime| {
        let days = days_since_1970((time.year, time.month, time.day));
        days * 86_400
            + i64::from(time.hour) * 3_600
            + i64::from(time.minute) * 60
            + i64::from(time.second)
    };
    let find = |days: i64| {
        let as_utc_s = days * 86_400 + i64::from(wanted.second_of_day);
        // How far the zone is from Greenwich is asked about where it is, after the first guess.
        let mut guess_s = as_utc_s;
        for _ in 0..3 {
            let east_s = of_local(&local(guess_s)?) - guess_s;
            guess_s = as_utc_s - east_s;
        }
        Some(guess_s)
    };
    if let Some(date) = wanted.date {
        return find(days_since_1970(date));
    }
    let today = local(now_s)?;
    let today = days_since_1970((today.year, today.month, today.day));
    find(today).filter(|at_s| *at_s <= now_s).or_else(|| find(today - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A zone so many hours east, and an hour more from a moment on.
    fn zone(hours: i64, summer_from_s: i64) -> impl Fn(i64) -> Option<LocalTime> {
        move |unix_s| {
            let hours = if unix_s >= summer_from_s { hours + 1 } else { hours };
            let local_s = unix_s + hours * 3_600;
            let days = local_s.div_euclid(86_400);
            let second = local_s.rem_euclid(86_400);
            let date = (1970..2100)
                .flat_map(|year| (1..=12).map(move |month| (year, month)))
                .flat_map(|(year, month)| (1..=31).map(move |day| (year, month, day)))
                .find(|date| days_since_1970(*date) == days)?;
            Some(LocalTime {
                year: date.0,
                month: date.1,
                day: date.2,
                hour: (second / 3_600) as u8,
                minute: (second / 60 % 60) as u8,
                second: (second % 60) as u8,
            })
        }
    }

    #[test]
    fn times_of_day_are_of_the_zone() {
        let at = |date, h: u32, m: u32| LocalMoment { date, second_of_day: h * 3_600 + m * 60 };
        // 2025-11-28T12:30:00Z
        let now_s = 1_764_333_000;
        let never = i64::MAX;
        let cases = [
            (at(None, 12, 0), 0, now_s - 1_800),
            (at(None, 12, 30), 0, now_s),
            (at(None, 12, 31), 0, now_s - 86_400 + 60),
            (at(None, 21, 0), 9, now_s - 1_800),
            (at(None, 8, 30), -4, now_s),
            (at(Some((2025, 11, 27)), 21, 30), 9, now_s - 86_400),
            (at(Some((2025, 11, 29)), 0, 0), 9, now_s + 9_000),
        ];
        for (wanted, hours, want) in cases {
            assert_eq!(unix_s(wanted, now_s, zone(hours, never)), Some(want), "{wanted:?} {hours}");
        }
    }

    #[test]
    fn times_where_a_clock_is_put_forward() {
        // At 01:00 UTC of 2025-03-30 the clocks of a zone an hour east go from 02:00 to 03:00.
        let forward_s = 1_743_296_400;
        let at = |h: u32, m: u32| LocalMoment {
            date: Some((2025, 3, 30)),
            second_of_day: h * 3_600 + m * 60,
        };
        let find = |wanted| unix_s(wanted, forward_s, zone(1, forward_s));
        assert_eq!(find(at(1, 59)), Some(forward_s - 60));
        assert_eq!(find(at(3, 0)), Some(forward_s));
        let gap_s = find(at(2, 30)).expect("a time beside the gap");
        assert!((forward_s - 3_600..=forward_s + 3_600).contains(&gap_s));
    }

    #[test]
    fn what_needs_no_zone_stays_as_it_is() {
        let Moment(at) = "10 min ago".parse().expect("a moment");
        assert_eq!(at.to_string(), "-600s");
        assert!("soon".parse::<Moment>().is_err());
    }
}
