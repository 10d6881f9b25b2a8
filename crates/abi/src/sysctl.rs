//! Kernel parameters, as nodes and clients speak of them: names, patterns, values, changes.
//!
//! A name is written as `sysctl(8)` does, `net.ipv4.ip_forward`. A dot that belongs to a piece of it,
//! as in the name of an interface, is written as a slash: `net.ipv4.conf.eth0/100.rp_filter` is the
//! file `net/ipv4/conf/eth0.100/rp_filter`. That form is understood, too.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::parse_limit;

/// Longest name. Those of today's kernels have about 60 bytes, two of which may be interfaces.
pub const PARAMETER_NAME_BYTES_MAX: usize = 512;

/// Longest value that is written: the kernel takes a page, with the zero at its end.
pub const VALUE_WRITE_BYTES_MAX: usize = 4095;

/// Longest value that is read. Lists of ports are the longest there are, with some KiB.
pub const VALUE_READ_BYTES_MAX: usize = 64 * 1024;

/// Longest pattern.
pub const PATTERN_BYTES_MAX: usize = 512;

/// Most patterns of a list.
pub const PATTERNS_MAX: usize = 256;

/// Most changes of one host that wait to be confirmed.
pub const PENDING_MAX: usize = 256;

/// Shortest and longest time in which a change may be confirmed. Below a second nobody can; what
/// nobody has looked at within a day was forgotten.
pub const CONFIRM_WITHIN: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);

/// The name of a kernel parameter: 1 to [`PARAMETER_NAME_BYTES_MAX`] bytes, no piece of which is
/// empty, `.` or `..`. So it stays below `/proc/sys`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ParameterName {
    /// Its path below `/proc/sys`.
    path: String,
}

/// Why a text is no name of a parameter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterNameError {
    /// Nothing.
    #[error("a parameter has a name, such as vm.swappiness")]
    Empty,
    /// Above [`PARAMETER_NAME_BYTES_MAX`].
    #[error(
        "the name of a parameter has at most {PARAMETER_NAME_BYTES_MAX} bytes, and this has {0}"
    )]
    Long(usize),
    /// Nothing between two dots, or something that leads out of the tree.
    #[error("`{}` is no name of a parameter: no piece of it is empty, `.` or `..`", .0.escape_debug())]
    Piece(String),
}

impl ParameterName {
    /// The name of the file at `path` below `/proc/sys`.
    ///
    /// # Errors
    /// See [`ParameterNameError`].
    pub fn from_path(path: &str) -> Result<ParameterName, ParameterNameError> {
        if path.is_empty() {
            return Err(ParameterNameError::Empty);
        }
        if path.len() > PARAMETER_NAME_BYTES_MAX {
            return Err(ParameterNameError::Long(path.len()));
        }
        let is_bad = |piece: &str| matches!(piece, "" | "." | "..");
        if path.contains('\0') || path.split('/').any(is_bad) {
            return Err(ParameterNameError::Piece(swapped(path)));
        }
        Ok(ParameterName { path: path.to_owned() })
    }

    /// Its path below `/proc/sys`.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// Dots for slashes and slashes for dots.
fn swapped(text: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    text.chars().map(swap).collect()
}

/// What people write, with slashes between the pieces: the first of the two says which it is.
fn slashed(text: &str) -> String {
    match text.find(['.', '/']) {
        Some(first) if text[first..].starts_with('.') => swapped(text),
        _ => text.to_owned(),
    }
}

impl FromStr for ParameterName {
    type Err = ParameterNameError;
    fn from_str(text: &str) -> Result<ParameterName, ParameterNameError> {
        ParameterName::from_path(&slashed(text))
    }
}

impl TryFrom<String> for ParameterName {
    type Error = ParameterNameError;
    fn try_from(text: String) -> Result<ParameterName, ParameterNameError> {
        text.parse()
    }
}

impl From<ParameterName> for String {
    fn from(name: ParameterName) -> String {
        name.to_string()
    }
}

impl fmt::Display for ParameterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&swapped(&self.path))
    }
}

/// Which parameters are meant: a name, the beginning of one up to a dot, or one with `*` for any
/// text: `vm.swappiness`, `net.ipv4`, `net.ipv4.conf.*.rp_filter`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing.
    #[error("a pattern is a name or a beginning of one, as net.ipv4, or has * for any text")]
    Empty,
    /// Above [`PATTERN_BYTES_MAX`].
    #[error("a pattern has at most {PATTERN_BYTES_MAX} bytes, and this has {0}")]
    Long(usize),
    /// More than [`PATTERNS_MAX`].
    #[error("there are at most {PATTERNS_MAX} patterns, and these are {0}")]
    Many(usize),
    /// It allows what is never written.
    #[error("`{}` is never written, whatever a list says: who may write it runs programs as root", .0.escape_debug())]
    Never(String),
}

impl FromStr for Pattern {
    type Err = PatternError;
    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        match text.len() {
            0 => Err(PatternError::Empty),
            len if len > PATTERN_BYTES_MAX => Err(PatternError::Long(len)),
            _ => Ok(Pattern(swapped(&slashed(text)))),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;
    fn try_from(text: String) -> Result<Pattern, PatternError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    /// Whether this parameter is meant.
    pub fn matches(&self, name: &ParameterName) -> bool {
        let name = name.to_string();
        let is_below = || globs(format!("{}.*", self.0).as_bytes(), name.as_bytes());
        globs(self.0.as_bytes(), name.as_bytes()) || is_below()
    }

    /// Whether a parameter below this directory may be meant, so that it is worth reading.
    pub fn may_match_below(&self, directory: &ParameterName) -> bool {
        let literal = self.0.split('*').next().unwrap_or_default();
        let directory = format!("{directory}.");
        literal.starts_with(&directory) || directory.starts_with(literal)
    }
}

/// Whether `text` is `pattern` with each `*` in it replaced by something. It takes at most the product
/// of both lengths.
fn globs(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    // Where the last star was, and how much of the text it stands for.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at, seen));
            at += 1;
        } else if pattern.get(at) == Some(&text[seen]) {
            at += 1;
            seen += 1;
        } else if let Some((starred, end)) = star {
            star = Some((starred, end + 1));
            at = starred + 1;
            seen = end + 1;
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// What is never written, whatever a list says: who may write these runs programs as root.
const NEVER: &[&str] = &[
    "fs.binfmt_misc",
    "kernel.core_pattern",
    "kernel.hotplug",
    "kernel.modprobe",
    "kernel.poweroff_cmd",
    "kernel.usermodehelper",
];

/// What is written where nobody says otherwise: what tunes a host. Left out is what weakens its
/// protection, stops it, holds secrets, or cannot be taken back.
const ALLOWED_DEFAULT: &str = "fs,net,vm,kernel.msg*,kernel.numa_balancing*,kernel.pid_max,\
    kernel.printk,kernel.printk_ratelimit*,kernel.sched_*,kernel.sem,kernel.shm*,kernel.threads-max,\
    !fs.protected_*,!fs.suid_dumpable,!fs.verity,!fs.xfs.panic_mask,!net.core.bpf_jit_*,\
    !net.ipv4.tcp_fastopen_key,!vm.legacy_va_layout,\
    !net.ipv6.conf.*.stable_secret,!vm.memory_failure_*,!vm.mmap_min_addr,!vm.mmap_rnd_*,\
    !vm.panic_on_oom,!vm.unprivileged_userfaultfd";

/// Which parameters may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowList {
    allowed: Vec<Pattern>,
    refused: Vec<Pattern>,
}

/// Why a parameter may not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// Whatever the list says.
    #[error(
        "`{}` is never written by a node: who may write it runs programs as root", .0.to_string().escape_debug()
    )]
    Never(ParameterName),
    /// The list does not have it.
    #[error(
        "`{}` is not among the parameters that this node may write; its operator names them with \
         `kumo up --sysctl-allow`, and `kumo sysctl log --allowed` lists them", .0.to_string().escape_debug()
    )]
    NotListed(ParameterName),
    /// The list takes it out.
    #[error(
        "`{}` is left out of the parameters that this node may write, by `!{by}`; its operator names \
         them with `kumo up --sysctl-allow`", .name.to_string().escape_debug()
    )]
    LeftOut {
        /// Which.
        name: ParameterName,
        /// By which pattern.
        by: Pattern,
    },
}

impl Default for AllowList {
    fn default() -> AllowList {
        // It is a constant of ours, and a test parses it; if it could not be read, nothing is allowed.
        ALLOWED_DEFAULT.parse().unwrap_or(AllowList { allowed: Vec::new(), refused: Vec::new() })
    }
}

impl FromStr for AllowList {
    type Err = PatternError;

    /// Patterns between commas, those in front of which a `!` stands are left out; `none` for nothing
    /// at all. One that means a parameter of [`NEVER`] and nothing else is refused: it would promise what
    /// it cannot keep.
    fn from_str(text: &str) -> Result<AllowList, PatternError> {
        let mut list = AllowList { allowed: Vec::new(), refused: Vec::new() };
        if text.trim() == "none" {
            return Ok(list);
        }
        let count = text.split(',').count();
        if count > PATTERNS_MAX {
            return Err(PatternError::Many(count));
        }
        for piece in text.split(',').map(str::trim) {
            match piece.strip_prefix('!') {
                Some(refused) => list.refused.push(refused.parse()?),
                None if is_never(piece) => return Err(PatternError::Never(piece.to_owned())),
                None => list.allowed.push(piece.parse()?),
            }
        }
        Ok(list)
    }
}

impl fmt::Display for AllowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.allowed.is_empty() && self.refused.is_empty() {
            return f.write_str("none");
        }
        let allowed = self.allowed.iter().map(ToString::to_string);
        let refused = self.refused.iter().map(|pattern| format!("!{pattern}"));
        f.write_str(&allowed.chain(refused).collect::<Vec<_>>().join(","))
    }
}

/// Whether this parameter is never written.
fn never(name: &ParameterName) -> bool {
    NEVER.iter().any(|never| Pattern((*never).to_owned()).matches(name))
}

/// Whether a pattern is the name of such a parameter, or of what is below it.
fn is_never(pattern: &str) -> bool {
    pattern.parse().is_ok_and(|name| never(&name))
}

impl AllowList {
    /// Whether this parameter may be written.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn check(&self, name: &ParameterName) -> Result<(), NotAllowed> {
        if never(name) {
            return Err(NotAllowed::Never(name.clone()));
        }
        if let Some(by) = self.refused.iter().find(|pattern| pattern.matches(name)) {
            return Err(NotAllowed::LeftOut { name: name.clone(), by: by.clone() });
        }
        if self.allowed.iter().any(|pattern| pattern.matches(name)) {
            return Ok(());
        }
        Err(NotAllowed::NotListed(name.clone()))
    }
}

/// Why a text is no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Above [`VALUE_WRITE_BYTES_MAX`].
    #[error("a value has at most {VALUE_WRITE_BYTES_MAX} bytes, and this has {0}")]
    Long(usize),
    /// Lines, or what is no text: the kernel would stop reading there, or take the rest for more.
    #[error("a value is one line of text, and this has the character {}", .0.escape_debug())]
    Char(char),
}

/// Whether a text can be written as a value.
///
/// # Errors
/// See [`ValueError`].
pub fn check_value(text: &str) -> Result<(), ValueError> {
    if text.len() > VALUE_WRITE_BYTES_MAX {
        return Err(ValueError::Long(text.len()));
    }
    match text.chars().find(|c| c.is_control() && *c != '\t') {
        Some(bad) => Err(ValueError::Char(bad)),
        None => Ok(()),
    }
}

/// Whether two texts are one value, as people write it and as the kernel does: blanks and tabs between
/// numbers are one, and so are 16, 0x10 and 020.
pub fn same_value(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split_whitespace(), b.split_whitespace());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) if number(a).is_some() && number(a) == number(b) => {}
            _ => return false,
        }
    }
}

/// A number as the kernel reads it: 0x for hexadecimal, 0 for octal.
fn number(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        None => (digits, 10),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let number = i128::from_str_radix(digits, radix).ok()?;
    Some(if negative { -number } else { number })
}

/// Within which time a change is confirmed: `30s`, `5m`, up to `24h`.
///
/// # Errors
/// In words.
pub fn parse_within(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("`{}` is no time from 1s to 24h, such as 30s or 5m", text.escape_debug());
    parse_limit(text).filter(|within| CONFIRM_WITHIN.contains(within)).ok_or_else(wrong)
}

/// Which change: 16 hexadecimal digits. A change of many hosts has the same on all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChangeId(String);

impl ChangeId {
    /// One of a number that nobody else has.
    pub fn new(random: u64) -> ChangeId {
        ChangeId(format!("{random:016x}"))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no [`ChangeId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a change is named by 16 hexadecimal digits; `kumo sysctl log` shows them")]
pub struct ChangeIdError;

impl FromStr for ChangeId {
    type Err = ChangeIdError;
    fn from_str(text: &str) -> Result<ChangeId, ChangeIdError> {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_good = text.len() == 16 && text.bytes().all(is_hex);
        is_good.then(|| ChangeId(text.to_owned())).ok_or(ChangeIdError)
    }
}

impl TryFrom<String> for ChangeId {
    type Error = ChangeIdError;
    fn try_from(text: String) -> Result<ChangeId, ChangeIdError> {
        text.parse()
    }
}

impl From<ChangeId> for String {
    fn from(id: ChangeId) -> String {
        id.0
    }
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeState {
    /// It is on the disk that it shall be made; maybe it has been.
    Intended,
    /// It is made, and taken back by the host itself unless it is confirmed in time.
    Pending,
    /// It is made, for good.
    Made,
    /// It was made, and somebody said that it is to stay.
    Confirmed,
    /// The old value is back.
    RolledBack,
    /// The old value was never replaced.
    NotMade,
    /// It was to be taken back, but somebody else had changed the value; that was left alone.
    Overtaken,
    /// The value is gone with the kernel, the network namespace or the interface it was of.
    Gone,
    /// Nobody can tell whether it was made.
    Unknown,
}

impl ChangeState {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            ChangeState::Intended => "intended",
            ChangeState::Pending => "pending",
            ChangeState::Made => "made",
            ChangeState::Confirmed => "confirmed",
            ChangeState::RolledBack => "rolled-back",
            ChangeState::NotMade => "not-made",
            ChangeState::Overtaken => "overtaken",
            ChangeState::Gone => "gone",
            ChangeState::Unknown => "unknown",
        }
    }

    /// Whether nothing more comes of it by itself.
    pub fn is_end(self) -> bool {
        !matches!(self, ChangeState::Intended | ChangeState::Pending)
    }
}

/// A change of a parameter on one host, as its journal has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which.
    pub id: ChangeId,
    /// What.
    pub name: ParameterName,
    /// When it was asked for, RFC 3339, UTC.
    pub at: String,
    /// Who asked, as far as the node knows, and from where.
    pub who: String,
    /// The value before; null for who may not see it.
    pub old: Option<String>,
    /// What was asked for.
    pub wanted: Option<String>,
    /// What the kernel made of it; null as long as it was not written.
    pub became: Option<String>,
    /// What became of it.
    pub state: ChangeState,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// In which time it must be confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_within_ms: Option<u64>,
    /// What is left of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// Who ended it; the host itself where nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<String>,
    /// Whether its values are for those only who may write them: the kernel does not show them to all.
    #[serde(default)]
    pub private: bool,
}

impl Change {
    /// The same for who may not see private values.
    #[must_use]
    pub fn without_secrets(self) -> Change {
        if self.private { Change { old: None, wanted: None, became: None, ..self } } else { self }
    }
}

/// What a host answers to a request for a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAnswer {
    /// The parameter.
    pub name: ParameterName,
    /// The value before; null for who may not see it.
    pub old: Option<String>,
    /// The value now, or the one that was asked for in a dry run.
    pub new: Option<String>,
    /// `dry-run`, `unchanged`, `pending` or `made`.
    pub result: SetResult,
    /// The change, where one was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// Whether its values are for those only who may write them.
    #[serde(default)]
    pub private: bool,
}

impl SetAnswer {
    /// The same for who may not see private values.
    #[must_use]
    pub fn without_secrets(self) -> SetAnswer {
        if !self.private {
            return self;
        }
        let change = self.change.map(Change::without_secrets);
        SetAnswer { old: None, new: None, change, ..self }
    }
}

/// What came of a request for a change that was not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetResult {
    /// Nothing was written: that was asked for.
    DryRun,
    /// Nothing was written: it has this value.
    Unchanged,
    /// It is written, and must be confirmed.
    Pending,
    /// It is written.
    Made,
}

/// One parameter, as it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// Its name. One whose file has a name that is no UTF-8 cannot be named.
    pub name: String,
    /// Its value without the line end; null where it is not shown.
    pub value: Option<String>,
    /// Whether the kernel lets its owner write it.
    pub writable: bool,
    /// Why there is no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ParameterName {
        text.parse().expect(text)
    }

    #[test]
    fn names_are_written_as_sysctl_does() {
        let cases = [
            ("vm.swappiness", "vm/swappiness", "vm.swappiness"),
            ("vm/swappiness", "vm/swappiness", "vm.swappiness"),
            (
                "net.ipv4.conf.eth0/100.rp_filter",
                "net/ipv4/conf/eth0.100/rp_filter",
                "net.ipv4.conf.eth0/100.rp_filter",
            ),
            (
                "net/ipv4/conf/eth0.100/rp_filter",
                "net/ipv4/conf/eth0.100/rp_filter",
                "net.ipv4.conf.eth0/100.rp_filter",
            ),
            ("vm", "vm", "vm"),
            ("a.\u{1b}[31m", "a/\u{1b}[31m", "a.\u{1b}[31m"),
        ];
        for (text, path, written) in cases {
            let parsed = name(text);
            assert_eq!((parsed.path(), parsed.to_string().as_str()), (path, written), "{text:?}");
            assert_eq!(name(&parsed.to_string()), parsed, "{text:?}");
        }
        let long = "a".repeat(513);
        for bad in [
            "", ".", "..", "a..b", ".a", "a.", "/a", "a//b", "a/../b", "a./.b", "a.//.b", "a\0",
            &long,
        ] {
            assert!(bad.parse::<ParameterName>().is_err(), "{bad:?}");
        }
        assert!("net/../../../etc/passwd".parse::<ParameterName>().is_err());
        assert!("net.//.//.etc.passwd".parse::<ParameterName>().is_err());
    }

    #[test]
    fn patterns() {
        let cases = [
            ("vm.swappiness", "vm.swappiness", true),
            ("vm.swap", "vm.swappiness", false),
            ("vm", "vm.swappiness", true),
            ("v", "vm.swappiness", false),
            ("vm.*", "vm.swappiness", true),
            ("net/ipv4/*", "net.ipv4.ip_forward", true),
            ("net.ipv4.conf.*.rp_filter", "net.ipv4.conf.eth0/100.rp_filter", true),
            ("net.ipv4.conf.*.rp_filter", "net.ipv4.conf.eth0.rp_filters", false),
            ("*.rp_filter", "net.ipv4.conf.all.rp_filter", true),
            ("*_max", "kernel.pid_max", true),
            ("*", "a", true),
            ("**a**", "a", true),
            ("a*b*c", "a.b.b.c", true),
            ("a*b*c", "a.b.b.d", false),
            ("*.conf", "net.ipv4.conf.all.forwarding", true),
        ];
        for (pattern, text, want) in cases {
            let pattern: Pattern = pattern.parse().expect(pattern);
            assert_eq!(pattern.matches(&name(text)), want, "{pattern} on {text}");
        }
        let below = [
            ("net.ipv4.*", "net", true),
            ("net.ipv4.*", "net.ipv4.conf", true),
            ("net.ipv4.*", "vm", false),
            ("net.ipv4", "net.ipv4.conf", true),
            ("net.ipv4", "net.ipv6", false),
            ("*x", "vm", true),
        ];
        for (pattern, directory, want) in below {
            let pattern: Pattern = pattern.parse().expect(pattern);
            assert_eq!(pattern.may_match_below(&name(directory)), want, "{pattern}, {directory}");
        }
        // As many steps as letters, squared; not more.
        let slow: Pattern = "*a".repeat(250).parse().expect("a pattern");
        assert!(!slow.matches(&name(&"a".repeat(249))));
    }

    #[test]
    fn what_may_be_written() {
        let default = AllowList::default();
        let cases = [
            ("vm.swappiness", true),
            ("net.ipv4.ip_forward", true),
            ("fs.file-max", true),
            ("kernel.pid_max", true),
            ("kernel.core_pattern", false),
            ("kernel.sysrq", false),
            ("kernel.panic", false),
            ("kernel.modules_disabled", false),
            ("fs.binfmt_misc.register", false),
            ("fs.suid_dumpable", false),
            ("net.ipv6.conf.eth0.stable_secret", false),
            ("vm.panic_on_oom", false),
            ("dev.cdrom.debug", false),
        ];
        for (text, want) in cases {
            assert_eq!(default.check(&name(text)).is_ok(), want, "{text}");
        }
        let all: AllowList = "*".parse().expect("a list");
        assert!(all.check(&name("kernel.sysrq")).is_ok(), "the operator said so");
        for never in ["kernel.core_pattern", "kernel.modprobe", "kernel.usermodehelper.bset"] {
            assert_eq!(all.check(&name(never)), Err(NotAllowed::Never(name(never))));
        }
        let none: AllowList = "none".parse().expect("a list");
        assert!(none.check(&name("vm.swappiness")).is_err());
        assert_eq!(none.to_string(), "none");
        let some: AllowList = "vm.*, !vm.dirty_*".parse().expect("a list");
        assert_eq!(some.to_string(), "vm.*,!vm.dirty_*");
        let refused = some.check(&name("vm.dirty_ratio")).expect_err("left out").to_string();
        assert!(refused.contains("!vm.dirty_*") && refused.contains("--sysctl-allow"), "{refused}");
        // A list that says what is never done is a mistake; to leave it out is none.
        for never in ["kernel.core_pattern", "vm.*,kernel/modprobe", "fs.binfmt_misc.register"] {
            let refused = never.parse::<AllowList>();
            assert!(matches!(refused, Err(PatternError::Never(_))), "{never}: {refused:?}");
        }
        assert!("kernel,kernel.core_p*,!kernel.core_pattern".parse::<AllowList>().is_ok());
        for bad in ["", "vm,,fs", "!"] {
            assert!(bad.parse::<AllowList>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn values() {
        let same = [
            ("16", "0x10", true),
            ("16", "020", true),
            ("4096 131072\t6291456", "4096\t131072\t6291456", true),
            ("1", "1 ", true),
            ("-1", "-1", true),
            ("", "", true),
            ("1", "1 1", false),
            ("cubic", "reno", false),
            ("0", "00", true),
            ("08", "8", false),
            ("0x-1", "-1", false),
            ("1", "", false),
        ];
        for (a, b, want) in same {
            assert_eq!(same_value(a, b), want, "{a:?} and {b:?}");
            assert_eq!(same_value(b, a), want, "{b:?} and {a:?}");
        }
        let long = "1".repeat(VALUE_WRITE_BYTES_MAX + 1);
        for bad in ["1\n2", "1\r", "\0", "\x1b[0m", &long] {
            assert!(check_value(bad).is_err(), "{bad:?}");
        }
        for good in ["", "1", "4096\t8192", "a b", &long[1..]] {
            assert_eq!(check_value(good), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn times_to_confirm() {
        let cases = [
            ("30s", Some(30)),
            ("1000ms", Some(1)),
            ("5m", Some(300)),
            ("24h", Some(86_400)),
            ("999ms", None),
            ("25h", None),
            ("0s", None),
            ("30", None),
            ("", None),
            ("-1s", None),
            ("99999999999999999999s", None),
        ];
        for (text, want) in cases {
            let got = parse_within(text).ok();
            assert_eq!(got, want.map(Duration::from_secs), "{text:?}");
        }
    }

    #[test]
    fn changes_are_named_by_what_they_print() {
        let id = ChangeId::new(0xab);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "00000000000000A0", "00000000000000", "../../../../etc/x"] {
            assert_eq!(bad.parse::<ChangeId>(), Err(ChangeIdError), "{bad:?}");
        }
    }
}
