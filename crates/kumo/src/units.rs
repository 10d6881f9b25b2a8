//! Sizes, times and shares, written for people.

use kumo_sys::LocalTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How sizes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SizeStyle {
    /// Scaled by 1024: 512, 9.8K, 12.3M, 1.0G
    #[default]
    Human,
    /// KiB, rounded down, as `ps` writes them
    Kib,
    /// Exact bytes
    Bytes,
}

/// A size. Human sizes take at most 5 columns below 1000 PiB.
pub fn size(bytes: u64, style: SizeStyle) -> String {
    match style {
        SizeStyle::Human => human(bytes),
        SizeStyle::Kib => (bytes / 1024).to_string(),
        SizeStyle::Bytes => bytes.to_string(),
    }
}

fn human(bytes: u64) -> String {
    if bytes < 1024 {
        return bytes.to_string();
    }
    let units = ["K", "M", "G", "T", "P", "E"];
    let mut scaled = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 999.5 would be rounded up to 1000, one column too wide.
    while scaled >= 999.5 && unit + 1 < units.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    // 99.95 would be rounded up to 100.0.
    let digits = usize::from(scaled < 99.95);
    format!("{scaled:.digits$}{}", units[unit])
}

/// CPU time as `ps` writes it: minutes and seconds, `123:04`.
pub fn cpu_time(seconds: f64) -> String {
    let whole = whole(seconds);
    format!("{}:{:02}", whole / 60, whole % 60)
}

/// CPU time as `top` writes it: minutes, seconds and hundredths, `123:04.56`.
pub fn cpu_time_exact(seconds: f64) -> String {
    let hundredths = whole(seconds * 100.0);
    format!("{}:{:02}.{:02}", hundredths / 6_000, hundredths / 100 % 60, hundredths % 100)
}

/// A span of time as `ps -o etime` writes it: `[[days-]hours:]minutes:seconds`.
pub fn elapsed(seconds: f64) -> String {
    let whole = whole(seconds);
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    let rest = format!("{minutes:02}:{:02}", whole % 60);
    match (days, hours) {
        (0, 0) => rest,
        (0, _) => format!("{hours:02}:{rest}"),
        _ => format!("{days}-{hours:02}:{rest}"),
    }
}

/// A span of time in its two largest units: `3 days 4 h`, `12 min 3 s`, `5 s`.
pub fn span(seconds: f64) -> String {
    let whole = whole(seconds);
    let (days, hours) = (whole / 86_400, whole / 3_600 % 24);
    let (minutes, seconds) = (whole / 60 % 60, whole % 60);
    let s = if days == 1 { "" } else { "s" };
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {seconds} s"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} day{s} {hours} h"),
    }
}

/// A share in percent with one digit behind the point.
pub fn percent(percent: f64) -> String {
    format!("{percent:.1}")
}

fn whole(number: f64) -> u64 {
    // The conversion keeps to the bounds of the type; not a number becomes 0.
    number.max(0.0) as u64
}

/// When something started, as `ps` writes it: `14:05` today, `Jan31` this year, else `2023`.
pub fn start(at: LocalTime, now: LocalTime) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    if (at.year, at.month, at.day) == (now.year, now.month, now.day) {
        return format!("{:02}:{:02}", at.hour, at.minute);
    }
    let month = MONTHS.get(usize::from(at.month.saturating_sub(1)));
    match month {
        Some(month) if at.year == now.year => format!("{month}{:02}", at.day),
        _ => at.year.to_string(),
    }
}

/// The seconds since 1970 of a moment in RFC 3339.
pub fn unix_seconds(rfc3339: &str) -> Option<i64> {
    OffsetDateTime::parse(rfc3339, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            (0, "0"),
            (1, "1"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1536, "1.5K"),
            (99 * 1024, "99.0K"),
            (102_348, "99.9K"),
            (102_350, "100K"),
            (999 * 1024, "999K"),
            (1_023 * 1024, "1.0M"),
            (12_900_000, "12.3M"),
            (1 << 30, "1.0G"),
            (3 << 40, "3.0T"),
            (u64::MAX, "16.0E"),
        ];
        for (bytes, want) in cases {
            assert_eq!(size(bytes, SizeStyle::Human), want, "for {bytes}");
            assert!(want.len() <= 5);
        }
        assert_eq!(size(2047, SizeStyle::Kib), "1");
        assert_eq!(size(2047, SizeStyle::Bytes), "2047");
    }

    #[test]
    fn times() {
        let cases = [
            (0.0, "0:00", "0:00.00", "00:00", "0 s"),
            (0.999, "0:00", "0:00.99", "00:00", "0 s"),
            (59.5, "0:59", "0:59.50", "00:59", "59 s"),
            (60.0, "1:00", "1:00.00", "01:00", "1 min 0 s"),
            (3_600.0, "60:00", "60:00.00", "01:00:00", "1 h 0 min"),
            (86_400.0, "1440:00", "1440:00.00", "1-00:00:00", "1 day 0 h"),
            (180_122.0, "3002:02", "3002:02.00", "2-02:02:02", "2 days 2 h"),
            (-5.0, "0:00", "0:00.00", "00:00", "0 s"),
            (f64::NAN, "0:00", "0:00.00", "00:00", "0 s"),
        ];
        for (seconds, ps, top, etime, words) in cases {
            assert_eq!(cpu_time(seconds), ps, "for {seconds}");
            assert_eq!(cpu_time_exact(seconds), top, "for {seconds}");
            assert_eq!(elapsed(seconds), etime, "for {seconds}");
            assert_eq!(span(seconds), words, "for {seconds}");
        }
    }

    #[test]
    fn starts() {
        let now = LocalTime { year: 2025, month: 3, day: 9, hour: 12, minute: 30, second: 1 };
        let cases = [
            (LocalTime { hour: 0, minute: 5, ..now }, "00:05"),
            (LocalTime { day: 8, hour: 23, ..now }, "Mar08"),
            (LocalTime { month: 1, day: 31, ..now }, "Jan31"),
            (LocalTime { year: 2024, month: 12, day: 31, ..now }, "2024"),
            (LocalTime { year: 2026, ..now }, "2026"),
        ];
        for (at, want) in cases {
            assert_eq!(start(at, now), want, "for {at:?}");
        }
    }

    #[test]
    fn moments() {
        assert_eq!(unix_seconds("2001-01-01T12:00:00.123456Z"), Some(978_350_400));
        assert_eq!(unix_seconds("yesterday"), None);
    }
}
