//! The options that say how history is kept.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use kumo_abi::parse_span;

use super::{HistoryConfig, Limits};

/// How history is kept.
#[derive(Clone, Debug, clap::Args)]
pub struct HistoryOptions {
    /// Where to record what the process table was; `kumo up` does it in its state directory, k2i
    /// only where this says
    #[arg(long, value_name = "DIR")]
    pub history_dir: Option<PathBuf>,
    /// Record no history
    #[arg(long, conflicts_with = "history_dir")]
    pub no_history: bool,
    /// Time between two records, 1s to 1h
    #[arg(long, value_name = "SPAN", default_value = "5s")]
    history_period: Period,
    /// How far back history reaches, 1min to 366d
    #[arg(long, value_name = "SPAN", default_value = "1h")]
    history_age: Age,
    /// How much room it takes at most, 1M to 1024G
    #[arg(long, value_name = "BYTES", default_value = "64M")]
    history_size: Size,
}

/// Time between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Period(Duration);

/// How old records become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Age(Duration);

/// How many bytes they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(u64);

impl HistoryOptions {
    /// How to keep history, in `usual` where nobody says where; `None` where none is kept.
    pub fn config(&self, usual: Option<PathBuf>) -> Option<HistoryConfig> {
        let dir = self.history_dir.clone().or(usual).filter(|_| !self.no_history)?;
        let limits = Limits { size_bytes: self.history_size.0, age: self.history_age.0 };
        Some(HistoryConfig { dir, period: self.history_period.0, limits })
    }
}

fn span(text: &str, least_s: u64, most_s: u64, form: &str) -> Result<Duration, String> {
    let (least, most) = (Duration::from_secs(least_s), Duration::from_secs(most_s));
    let span = parse_span(text).filter(|span| (least..=most).contains(span));
    span.ok_or_else(|| format!("write {form}"))
}

impl FromStr for Period {
    type Err = String;
    fn from_str(text: &str) -> Result<Period, String> {
        span(text, 1, 3_600, "a span from 1s to 1h").map(Period)
    }
}

impl FromStr for Age {
    type Err = String;
    fn from_str(text: &str) -> Result<Age, String> {
        span(text, 60, 366 * 86_400, "a span from 1min to 366d, such as 12h").map(Age)
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Size, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit {
            "" => Some(0),
            "K" | "KiB" => Some(10),
            "M" | "MiB" => Some(20),
            "G" | "GiB" => Some(30),
            _ => None,
        };
        let number = number.parse::<u64>().ok();
        let bytes = number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
        let bytes = bytes.filter(|bytes| (1 << 20..=1 << 40).contains(bytes));
        bytes.map(Size).ok_or_else(|| "write a size from 1M to 1024G, such as 64M".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans() {
        let cases = [
            ("64M", Some(64 << 20)),
            ("1048576", Some(1 << 20)),
            ("2GiB", Some(2 << 30)),
            ("1024G", Some(1 << 40)),
            ("1K", None),
            ("1025G", None),
            ("64 M", None),
            ("M", None),
            ("99999999999999999999G", None),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<Size>().ok(), want.map(Size), "for {text:?}");
        }
        let cases = [("5s", Some(5)), ("1h", Some(3_600)), ("0s", None), ("2h", None), ("5", None)];
        for (text, want) in cases {
            let want = want.map(|s| Period(Duration::from_secs(s)));
            assert_eq!(text.parse::<Period>().ok(), want, "for {text:?}");
        }
        assert_eq!("1h30m".parse(), Ok(Age(Duration::from_secs(5_400))));
        assert!("30s".parse::<Age>().is_err());
    }
}
