//! Moments of the past as people and programs write them: `10 min ago`, `-600s`, `12:30`, RFC 3339,
//! milliseconds since 1970.
//!
//! Reading needs no clock and no time zone: a [`When`] says what was written. What travels to hosts is
//! an [`At`], which means the same everywhere; a time of day becomes one where its zone is known.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Longest text that is looked at.
pub const WHEN_BYTES_MAX: usize = 64;

/// Farthest into the past that makes sense: ten years.
pub const AGO_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

/// A whole number below this is no time in milliseconds: it would be before 1973, and is most likely
/// seconds.
const UNIX_MS_MIN: i64 = 100_000_000_000;

/// The year 9999 ends before this.
const UNIX_MS_MAX: i64 = 253_402_300_800_000;

/// A moment that means the same on every host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// So long before the question came, by the host's own clock.
    Ago(Duration),
    /// Milliseconds since 1970.
    UnixMs(i64),
}

/// A moment as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// It needs nothing more.
    At(At),
    /// It needs a time zone.
    Local(LocalMoment),
}

/// A time on the clocks of some zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalMoment {
    /// Year, month and day; without one the last such time of day is meant.
    pub date: Option<(i32, u8, u8)>,
    /// Seconds since midnight.
    pub second_of_day: u32,
}

/// The text is no moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhenError {
    /// None of the forms.
    #[error(
        "`{0}` is no time; write `10 min ago`, -600s, 12:30, 2026-11-28T12:30:00Z, or milliseconds \
         since 1970"
    )]
    Form(String),
    /// Its parts are no date or no time of day, or lie too far away.
    #[error("`{0}` is a time that there is not")]
    Range(String),
    /// Seconds where milliseconds are meant.
    #[error("`{0}` is too small for milliseconds since 1970; write @{0} for seconds")]
    Seconds(String),
    /// It needs a zone.
    #[error("`{0}` needs a time zone here; write it as 2026-11-28T12:30:00+09:00")]
    Zone(String),
}

impl At {
    /// The moment, in nanoseconds since 1970, when it is `now_unix_ns`.
    pub fn unix_ns(self, now_unix_ns: i128) -> i128 {
        match self {
            At::Ago(ago) => now_unix_ns - ago.as_nanos() as i128,
            At::UnixMs(ms) => i128::from(ms) * 1_000_000,
        }
    }
}

/// As [`At::from_str`] reads it.
impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Ago(ago) if ago.subsec_millis() == 0 => write!(f, "-{}s", ago.as_secs()),
            At::Ago(ago) => write!(f, "-{}ms", ago.as_millis()),
            At::UnixMs(ms) => write!(f, "{ms}"),
        }
    }
}

impl FromStr for At {
    type Err = WhenError;
    fn from_str(text: &str) -> Result<At, WhenError> {
        match text.parse()? {
            When::At(at) => Ok(at),
            When::Local(_) => Err(WhenError::Zone(text.trim().to_owned())),
        }
    }
}

impl FromStr for When {
    type Err = WhenError;
    fn from_str(text: &str) -> Result<When, WhenError> {
        let text = text.trim();
        let form = || WhenError::Form(text.chars().take(WHEN_BYTES_MAX).collect());
        if text.is_empty() || text.len() > WHEN_BYTES_MAX || !text.is_ascii() {
            return Err(form());
        }
        let lower = text.to_ascii_lowercase();
        if lower == "now" {
            return Ok(When::At(At::Ago(Duration::ZERO)));
        }
        let span = lower.strip_suffix("ago").or_else(|| lower.strip_prefix('-'));
        if let Some(span) = span {
            let ago = span_of(span).ok_or_else(form)?;
            let ago = ago.filter(|ago| *ago <= AGO_MAX);
            return ago.map(|ago| When::At(At::Ago(ago))).ok_or(WhenError::Range(text.to_owned()));
        }
        let range = || WhenError::Range(text.to_owned());
        if let Some(seconds) = text.strip_prefix('@') {
            let seconds: i64 = seconds.parse().map_err(|_| form())?;
            return unix_ms(seconds.checked_mul(1_000)).ok_or_else(range);
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let ms = text.parse().map_err(|_| range())?;
            if ms < UNIX_MS_MIN {
                return Err(WhenError::Seconds(text.to_owned()));
            }
            return unix_ms(Some(ms)).ok_or_else(range);
        }
        parse_clock(&lower).ok_or_else(form)?.ok_or_else(range)
    }
}

fn unix_ms(ms: Option<i64>) -> Option<When> {
    let ms = ms.filter(|ms| (0..UNIX_MS_MAX).contains(ms));
    ms.map(|ms| When::At(At::UnixMs(ms)))
}

/// A span as people write it: `1h 30min`, `90 s`, `1.5h`.
pub fn parse_span(text: &str) -> Option<Duration> {
    let is_short = text.len() <= WHEN_BYTES_MAX && text.is_ascii();
    span_of(&text.to_ascii_lowercase()).flatten().filter(|_| is_short)
}

/// A span that a program or a change has at most, in the one form that is read there: a whole number and one of `ms`,
/// `s`, `m` and `h`, such as `250ms` or `5m`.
pub fn parse_limit(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms).map(Duration::from_millis)
}

/// A span as [`parse_span`] reads it, of lower letters. The outer `None` is no span, the inner one is too long for a number.
#[expect(clippy::option_option, reason = "both are said where they are read")]
fn span_of(text: &str) -> Option<Option<Duration>> {
    let mut rest = text.trim();
    let mut total_s = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let (number, after) = match number {
            // `an hour ago`
            "" => (1.0, after.strip_prefix("an ").or_else(|| after.strip_prefix("a "))?),
            number => (number.parse::<f64>().ok()?, after),
        };
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        total_s += number * unit_s(unit)?;
        rest = after.trim_start();
    }
    Some(Duration::try_from_secs_f64(total_s).ok())
}

fn unit_s(unit: &str) -> Option<f64> {
    Some(match unit {
        "ms" => 0.001,
        "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600.0,
        "d" | "day" | "days" => 86_400.0,
        _ => return None,
    })
}

/// `12:30`, `12:30:15`, `2026-11-28 12:30`, `2026-11-28T12:30:00.5Z`, `…+09:00`. The outer `None` is
/// another form, the inner one has numbers that no clock shows.
#[expect(clippy::option_option, reason = "as the one above")]
fn parse_clock(text: &str) -> Option<Option<When>> {
    let (date, clock) = match text.find(['t', ' ']) {
        Some(at) if at == 10 => (Some(parse_date(&text[..at])?), &text[at + 1..]),
        _ => (None, text),
    };
    let (clock, zone_s) = split_zone(clock)?;
    if date.is_none() && zone_s.is_some() {
        return None; // Of which day?
    }
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) || fraction.len() > 9 {
        return None;
    }
    let mut parts = clock.split(':');
    let hour = two_digits(parts.next()?)?;
    let minute = two_digits(parts.next()?)?;
    let second = parts.next().map_or(Some(0), two_digits)?;
    if parts.next().is_some() {
        return None;
    }
    let is_date = |(year, month, day): (i32, u8, u8)| {
        (1970..=9999).contains(&year) && (1..=12).contains(&month) && day >= 1 && {
            day <= days_in_month(year, month)
        }
    };
    // A leap second is the one before it.
    if hour > 23 || minute > 59 || second > 60 || date.is_some_and(|date| !is_date(date)) {
        return Some(None);
    }
    let second_of_day = hour * 3_600 + minute * 60 + second.min(59);
    let Some(zone_s) = zone_s else {
        return Some(Some(When::Local(LocalMoment { date, second_of_day })));
    };
    let ms = format!("{fraction:0<3}")[..3].parse::<i64>().ok()?;
    let local_s = days_since_1970(date?) * 86_400 + i64::from(second_of_day);
    Some(unix_ms(Some((local_s - zone_s) * 1_000 + ms)))
}

/// Cuts a zone off, as seconds east of Greenwich.
fn split_zone(clock: &str) -> Option<(&str, Option<i64>)> {
    if let Some(clock) = clock.strip_suffix('z') {
        return Some((clock, Some(0)));
    }
    // A `+` in an address is read as a blank.
    let Some(at) = clock.rfind(['+', '-', ' ']) else { return Some((clock, None)) };
    let (hours, minutes) = clock[at + 1..].split_once(':')?;
    let east = i64::from(two_digits(hours)? * 3_600 + two_digits(minutes)? * 60);
    (east < 86_400).then_some(())?;
    Some((&clock[..at], Some(if clock[at..].starts_with('-') { -east } else { east })))
}

fn parse_date(text: &str) -> Option<(i32, u8, u8)> {
    let mut parts = text.split('-');
    let year = parts.next().filter(|year| year.len() == 4)?.parse().ok()?;
    let month = two_digits(parts.next()?)? as u8;
    let day = two_digits(parts.next()?)? as u8;
    parts.next().is_none().then_some((year, month, day))
}

fn two_digits(text: &str) -> Option<u32> {
    let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

fn days_in_month(year: i32, month: u8) -> u8 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a day of the Gregorian calendar; years are counted from March, so that the
/// leap day comes last.
pub fn days_since_1970((year, month, day): (i32, u8, u8)) -> i64 {
    let (year, month, day) = (i64::from(year), i64::from(month), i64::from(day));
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ago(seconds: f64) -> When {
        When::At(At::Ago(Duration::from_secs_f64(seconds)))
    }

    fn ms(ms: i64) -> When {
        When::At(At::UnixMs(ms))
    }

    fn local(date: Option<(i32, u8, u8)>, second_of_day: u32) -> When {
        When::Local(LocalMoment { date, second_of_day })
    }

    #[test]
    fn moments() {
        let cases = [
            ("now", ago(0.0)),
            ("10 min ago", ago(600.0)),
            ("10min ago", ago(600.0)),
            (" 10 Minutes Ago ", ago(600.0)),
            ("an hour ago", ago(3_600.0)),
            ("a minute ago", ago(60.0)),
            ("1 h 30 min ago", ago(5_400.0)),
            ("1h30m ago", ago(5_400.0)),
            ("-10m", ago(600.0)),
            ("-600s", ago(600.0)),
            ("-1.5h", ago(5_400.0)),
            ("-250ms", ago(0.25)),
            ("2 days ago", ago(172_800.0)),
            ("@1764333000", ms(1_764_333_000_000)),
            ("1764333000123", ms(1_764_333_000_123)),
            ("2025-11-28T12:30:00Z", ms(1_764_333_000_000)),
            ("2025-11-28t12:30:00.25z", ms(1_764_333_000_250)),
            ("2025-11-28T21:30:00+09:00", ms(1_764_333_000_000)),
            ("2025-11-28T21:30:00 09:00", ms(1_764_333_000_000)),
            ("2025-11-28T08:30:00.123456-04:00", ms(1_764_333_000_123)),
            ("2025-11-28 12:30Z", ms(1_764_333_000_000)),
            ("2024-02-29T00:00:00Z", ms(1_709_164_800_000)),
            ("12:30", local(None, 45_000)),
            ("12:30:15", local(None, 45_015)),
            ("2025-11-28 12:30", local(Some((2025, 11, 28)), 45_000)),
            ("2025-11-28T12:30:15", local(Some((2025, 11, 28)), 45_015)),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse(), Ok(want), "for {text:?}");
        }
    }

    #[test]
    fn what_is_no_moment() {
        type Case = (&'static str, fn(String) -> WhenError);
        let form: fn(String) -> WhenError = WhenError::Form;
        let cases: [Case; 24] = [
            ("", form),
            ("yesterday", form),
            ("10", WhenError::Seconds),
            ("1764333000", WhenError::Seconds),
            ("10 min", form),
            ("ago", form),
            ("-", form),
            ("-10", form),
            ("-10x", form),
            ("--10m", form),
            ("1.2.3 min ago", form),
            ("-11y", form),
            ("-99999999d", WhenError::Range),
            ("-1000000000000000000000000000000000000000000h", WhenError::Range),
            ("12:3", form),
            ("12:30+09:00", form),
            ("25:00", WhenError::Range),
            ("12:61", WhenError::Range),
            ("2025-02-29T00:00:00Z", WhenError::Range),
            ("2025-13-01T00:00:00Z", WhenError::Range),
            ("2025-1-1T00:00:00Z", form),
            ("1969-12-31T23:59:59Z", WhenError::Range),
            ("99999999999999999999", WhenError::Range),
            ("１２:30", form),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<When>(), Err(want(text.trim().to_owned())), "for {text:?}");
        }
        assert_eq!("12:30".parse::<At>(), Err(WhenError::Zone("12:30".to_owned())));
        let long = "1".repeat(WHEN_BYTES_MAX + 1);
        assert!(matches!(long.parse::<When>(), Err(WhenError::Form(_))));
    }

    #[test]
    fn what_travels_reads_back() {
        for at in [At::Ago(Duration::from_secs(600)), At::Ago(Duration::from_millis(250))] {
            assert_eq!(at.to_string().parse(), Ok(at));
        }
        let at = At::UnixMs(1_764_333_000_123);
        assert_eq!(at.to_string().parse(), Ok(at));
        assert_eq!(At::Ago(Duration::from_secs(2)).unix_ns(5_000_000_000), 3_000_000_000);
        assert_eq!(At::UnixMs(7).unix_ns(0), 7_000_000);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-0-9a-z:+. @TZ]{0,30}") {
            let _ = text.parse::<When>();
        }

        #[test]
        fn days_go_up_by_one(day in 0_i64..2_900_000) {
            // Every date of 1970 to 9999, found by counting.
            let year = (1970 + day / 366) as i32;
            let first = days_since_1970((year, 1, 1));
            let next = days_since_1970((year + 1, 1, 1));
            let leap = days_in_month(year, 2) == 29;
            proptest::prop_assert_eq!(next - first, if leap { 366 } else { 365 });
        }
    }
}
