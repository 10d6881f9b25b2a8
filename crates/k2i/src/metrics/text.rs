//! The text that a scrape answers with: `OpenMetrics` 1.0, or the older form of Prometheus.
//!
//! Pure. Whoever tells a family says what it is and how it is measured; names, suffixes and escapes
//! are decided here. Label values are hostile text: see [`push_label_text`].

use std::fmt::Write as _;

use crate::encode::is_escaped;

/// Longest value of a label, in bytes. The longest path of a pod's control group has about 200; every
/// byte of it is kept by a Prometheus for each series.
pub const LABEL_BYTES_MAX: usize = 256;

/// What stands where the rest of a value was cut off.
const CUT: char = '…';

/// How a scrape is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4.
    Classic,
}

impl Form {
    /// Its media type, without parameters: what an `Accept` header is compared with.
    pub const fn media_type(self) -> &'static str {
        match self {
            Form::OpenMetrics => "application/openmetrics-text",
            Form::Classic => "text/plain",
        }
    }

    /// Its whole content type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Form::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// What the values of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A value of now.
    Gauge,
    /// A sum that only grows while its teller lives. Samples end in `_total`.
    Counter,
    /// Texts about something, as labels of a 1. Samples end in `_info`.
    Info,
    /// How often which values were met.
    Histogram,
}

impl Kind {
    fn name(self, form: Form) -> &'static str {
        match (self, form) {
            (Kind::Gauge, _) | (Kind::Info, Form::Classic) => "gauge",
            (Kind::Counter, _) => "counter",
            (Kind::Info, Form::OpenMetrics) => "info",
            (Kind::Histogram, _) => "histogram",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Kind::Gauge | Kind::Histogram => "",
            Kind::Counter => "_total",
            Kind::Info => "_info",
        }
    }
}

/// A scrape that is being written.
#[derive(Debug)]
pub struct Text {
    form: Form,
    out: String,
}

impl Text {
    /// An empty one.
    pub fn new(form: Form) -> Text {
        // About what a host with twenty groups tells.
        Text { form, out: String::with_capacity(32 * 1024) }
    }

    /// Begins a family; once for each name. `name` has no suffix of its kind, and ends in the `unit`,
    /// where it has one: `kumo_host_cpu_seconds` of [`Kind::Counter`] in `seconds`.
    pub fn family(&mut self, kind: Kind, name: &'static str, unit: &str, help: &str) -> Family<'_> {
        debug_assert!(is_name(name) && (unit.is_empty() || name.ends_with(unit)), "{name}");
        let suffix = kind.suffix();
        debug_assert!(suffix.is_empty() || !name.ends_with(suffix), "{name}");
        // The older form knows no families: what is declared is what the samples are called.
        let declared_suffix = if self.form == Form::Classic { suffix } else { "" };
        let kind_name = kind.name(self.form);
        let _ = writeln!(self.out, "# TYPE {name}{declared_suffix} {kind_name}");
        if self.form == Form::OpenMetrics && !unit.is_empty() {
            let _ = writeln!(self.out, "# UNIT {name} {unit}");
        }
        let _ = write!(self.out, "# HELP {name}{declared_suffix} ");
        push_escaped(&mut self.out, help, self.form == Form::OpenMetrics);
        self.out.push('\n');
        Family { text: self, name, suffix }
    }

    /// A family with one sample without labels.
    pub fn single(&mut self, kind: Kind, name: &'static str, unit: &str, help: &str, value: f64) {
        self.family(kind, name, unit, help).sample(&[], value);
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        if self.form == Form::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

/// A family whose samples are being written.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut Text,
    name: &'static str,
    suffix: &'static str,
}

impl Family<'_> {
    /// A sample. No other one of this family has the same labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.line(self.suffix, labels, None, value);
    }

    /// The samples of a [`Kind::Histogram`]: for each upper bound how many values were not above it.
    pub(crate) fn histogram(&mut self, below: &[(f64, u64)], count: u64, sum: f64) {
        for (bound, count) in below {
            self.line("_bucket", &[], Some(*bound), *count as f64);
        }
        self.line("_bucket", &[], Some(f64::INFINITY), count as f64);
        self.line("_count", &[], None, count as f64);
        self.line("_sum", &[], None, sum);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], bound: Option<f64>, value: f64) {
        let out = &mut self.text.out;
        out.push_str(self.name);
        out.push_str(suffix);
        let mut between = '{';
        for (name, value) in labels {
            debug_assert!(is_name(name) && *name != "le", "{name}");
            let _ = write!(out, "{between}{name}=\"");
            push_escaped(out, value, true);
            out.push('"');
            between = ',';
        }
        if let Some(bound) = bound {
            let _ = write!(out, "{between}le=\"");
            push_bound(out, bound);
            out.push('"');
            between = ',';
        }
        if between == ',' {
            out.push('}');
        }
        out.push(' ');
        push_number(out, value);
        out.push('\n');
    }
}

fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.bytes().all(good) && name.starts_with(|first: char| first.is_ascii_lowercase())
}

fn push_escaped(out: &mut String, text: &str, quotes: bool) {
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            char => out.push(char),
        }
    }
}

fn push_number(out: &mut String, value: f64) {
    let written = match value {
        value if value.is_nan() => write!(out, "NaN"),
        value if value.is_infinite() => write!(out, "{}Inf", if value > 0.0 { '+' } else { '-' }),
        // Never in exponents: there are as many digits as it needs.
        value => write!(out, "{value}"),
    };
    debug_assert!(written.is_ok(), "a string has room");
}

/// `OpenMetrics` wants a bound to look like a float, so that it is the same text from everybody.
fn push_bound(out: &mut String, bound: f64) {
    if bound.is_finite() && bound.fract() == 0.0 {
        let _ = write!(out, "{bound:.1}");
    } else {
        push_number(out, bound);
    }
}

/// Appends hostile bytes as text for a label: at most [`LABEL_BYTES_MAX`] bytes, UTF-8, and without
/// what a terminal obeys. Texts that become the same are the same: make groups of what comes out, or
/// one scrape has a series twice.
pub(crate) fn push_label_text(out: &mut String, bytes: &[u8]) {
    let begin = out.len();
    // Of more than this no byte could be shown; a whole character more tells that it was cut.
    let shown = &bytes[..bytes.len().min(LABEL_BYTES_MAX + 4)];
    for char in String::from_utf8_lossy(shown).chars() {
        let char = if is_obeyed(char) { char::REPLACEMENT_CHARACTER } else { char };
        if out.len() - begin + char.len_utf8() > LABEL_BYTES_MAX {
            while out.len() - begin + CUT.len_utf8() > LABEL_BYTES_MAX {
                out.pop();
            }
            out.push(CUT);
            return;
        }
        out.push(char);
    }
}

/// Whether a terminal does something at this character other than show it.
fn is_obeyed(char: char) -> bool {
    char.is_ascii_control() || is_escaped(char)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn told(form: Form) -> String {
        let mut text = Text::new(form);
        let help = "Time, by \"mode\"\nof a \\ CPU";
        let mut family = text.family(Kind::Counter, "kumo_cpu_seconds", "seconds", help);
        family.sample(&[("mode", "user"), ("comm", "a\"b\\c\nd")], 1.25);
        family.sample(&[], 1e18);
        text.family(Kind::Info, "kumo_host", "", "The host").sample(&[("dc", "tokyo")], 1.0);
        text.single(Kind::Gauge, "kumo_load1", "", "Load", 0.0);
        let mut family = text.family(Kind::Histogram, "kumo_scan_seconds", "seconds", "Scans");
        family.histogram(&[(0.001, 1), (1.0, 3)], 4, 2.5);
        text.finish()
    }

    #[test]
    fn open_metrics() {
        let want = r#"# TYPE kumo_cpu_seconds counter
# UNIT kumo_cpu_seconds seconds
# HELP kumo_cpu_seconds Time, by \"mode\"\nof a \\ CPU
kumo_cpu_seconds_total{mode="user",comm="a\"b\\c\nd"} 1.25
kumo_cpu_seconds_total 1000000000000000000
# TYPE kumo_host info
# HELP kumo_host The host
kumo_host_info{dc="tokyo"} 1
# TYPE kumo_load1 gauge
# HELP kumo_load1 Load
kumo_load1 0
# TYPE kumo_scan_seconds histogram
# UNIT kumo_scan_seconds seconds
# HELP kumo_scan_seconds Scans
kumo_scan_seconds_bucket{le="0.001"} 1
kumo_scan_seconds_bucket{le="1.0"} 3
kumo_scan_seconds_bucket{le="+Inf"} 4
kumo_scan_seconds_count 4
kumo_scan_seconds_sum 2.5
# EOF
"#;
        assert_eq!(told(Form::OpenMetrics), want);
    }

    #[test]
    fn the_older_form() {
        let text = told(Form::Classic);
        let begin = r#"# TYPE kumo_cpu_seconds_total counter
# HELP kumo_cpu_seconds_total Time, by "mode"\nof a \\ CPU
kumo_cpu_seconds_total{mode="user",comm="a\"b\\c\nd"} 1.25
kumo_cpu_seconds_total 1000000000000000000
# TYPE kumo_host_info gauge
"#;
        assert!(text.starts_with(begin), "{text}");
        assert!(!text.contains("UNIT") && !text.contains("EOF"), "{text}");
    }

    #[test]
    fn numbers() {
        let cases = [
            (0.1, "0.1"),
            (-3.0, "-3"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (1e-7, "0.0000001"),
        ];
        for (value, want) in cases {
            let mut out = String::new();
            push_number(&mut out, value);
            assert_eq!(out, want);
        }
    }

    fn label(bytes: &[u8]) -> String {
        let mut out = "before".to_owned();
        push_label_text(&mut out, bytes);
        out.split_off("before".len())
    }

    #[test]
    fn hostile_names_become_labels() {
        let long = "é".repeat(LABEL_BYTES_MAX);
        let whole = "x".repeat(LABEL_BYTES_MAX);
        let cases: [(&[u8], &str); 5] = [
            (b"nginx", "nginx"),
            (b"\"><script>\xff", "\"><script>\u{fffd}"),
            (b"a\x1b[31m\0\n\x7f", "a\u{fffd}[31m\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{202e}exe".as_bytes(), "\u{fffd}exe"),
            (whole.as_bytes(), &whole),
        ];
        for (bytes, want) in cases {
            assert_eq!(label(bytes), want, "for {bytes:?}");
        }
        let cut = label(long.as_bytes());
        assert!(cut.len() <= LABEL_BYTES_MAX && cut.ends_with("é…"), "{cut}");
        assert_eq!(label(format!("{whole}x").as_bytes()).len(), LABEL_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_fit_into_a_label(bytes: Vec<u8>) {
            let label = label(&bytes);
            prop_assert!(label.len() <= LABEL_BYTES_MAX);
            prop_assert!(!label.chars().any(is_obeyed));
        }
    }
}
