//! What one helper process shall be: plain values, and their text in an environment variable.
//!
//! The role travels in the environment because the command line belongs to the test: it is what the
//! process table shall show.

use std::fmt;
use std::str::FromStr;

/// The environment variable that holds a [`Role`].
pub const ROLE_VARIABLE: &str = "KUMO_ZOO";

/// What a helper process is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Be the process that the test looks at.
    Subject(Subject),
    /// Take an argument vector of at least this many bytes, then be a plain subject.
    LongCommandLine {
        /// Bytes, terminators included.
        len_bytes: usize,
    },
    /// Keep a subject that is stopped by `SIGSTOP`.
    KeepStopped,
    /// Keep a child that ended and is not waited for.
    KeepZombie,
    /// Keep a subject in a PID namespace of its own.
    KeepInPidNamespace,
    /// Start and reap children that end at once, one after the other.
    Churn,
    /// Start and reap so many children that end at once, every second of them with status 1, then say
    /// what they have used.
    Burst {
        /// How many.
        count: usize,
        /// How many a second; 0 for as many as can be.
        per_second: usize,
    },
    /// Keep this many subjects.
    Crowd {
        /// How many.
        count: usize,
        /// Every how manyth has four threads; 0 for none.
        threaded_each: usize,
        /// Every how manyth is busy for a hundredth of the time; 0 for none.
        busy_each: usize,
    },
    /// Be process 1 of a host of a world: give it `/proc` and `/run` of its own, reap what is left to
    /// it, and end the host with its owner.
    Host {
        /// Becomes `/run/kumo` there.
        run_dir: Vec<u8>,
    },
}

/// What the process that a test looks at shall look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its name, set by `PR_SET_NAME`; the kernel keeps 15 bytes.
    pub comm: Option<Vec<u8>>,
    /// A title written over its argument vector.
    pub title: Option<Vec<u8>>,
    /// A title that is written, in place of the one before, once its owner asks for it.
    pub title_later: Option<Vec<u8>>,
    /// Threads beside the first.
    pub threads_more: u32,
    /// Spin this share of the time; 100 is one whole CPU.
    pub busy_percent: u32,
    /// Anonymous memory to touch, bytes.
    pub anon_bytes: u64,
    /// Touch every page of [`FILE_BYTES`] of the helper's own file.
    pub file_pages: bool,
    /// Become this user and group.
    pub user: Option<u32>,
    /// Die when the thread that started it dies, even while stopped.
    pub die_with_parent: bool,
    /// End at once instead of waiting.
    pub exit: bool,
}

/// File-backed memory that `file_pages` makes resident, bytes.
pub const FILE_BYTES: usize = 4 << 20;

/// Why a text is no role: only a bug of the testbed makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleError(String);

impl fmt::Display for RoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ROLE_VARIABLE} has no valid word `{}`", self.0)
    }
}

impl std::error::Error for RoleError {}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Subject(subject) => write!(f, "subject {subject}"),
            Role::LongCommandLine { len_bytes } => write!(f, "long len={len_bytes}"),
            Role::KeepStopped => f.write_str("stopped"),
            Role::KeepZombie => f.write_str("zombie"),
            Role::KeepInPidNamespace => f.write_str("pidns"),
            Role::Churn => f.write_str("churn"),
            Role::Burst { count, per_second } => {
                write!(f, "burst count={count} per_second={per_second}")
            }
            Role::Crowd { count, threaded_each, busy_each } => {
                write!(f, "crowd count={count} threaded={threaded_each} busy={busy_each}")
            }
            Role::Host { run_dir } => write!(f, "host run={}", hex(run_dir)),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(comm) = &self.comm {
            write!(f, "comm={} ", hex(comm))?;
        }
        if let Some(title) = &self.title {
            write!(f, "title={} ", hex(title))?;
        }
        if let Some(title) = &self.title_later {
            write!(f, "later={} ", hex(title))?;
        }
        if let Some(user) = self.user {
            write!(f, "user={user} ")?;
        }
        write!(
            f,
            "threads={} busy={} anon={} file={} with_parent={} exit={}",
            self.threads_more,
            self.busy_percent,
            self.anon_bytes,
            u8::from(self.file_pages),
            u8::from(self.die_with_parent),
            u8::from(self.exit),
        )
    }
}

impl FromStr for Role {
    type Err = RoleError;
    fn from_str(text: &str) -> Result<Role, RoleError> {
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        let words = Words(rest);
        match kind {
            "subject" => Ok(Role::Subject(Subject {
                comm: words.bytes("comm")?,
                title: words.bytes("title")?,
                title_later: words.bytes("later")?,
                user: words.number("user")?,
                threads_more: words.number("threads")?.unwrap_or(0),
                busy_percent: words.number("busy")?.unwrap_or(0),
                anon_bytes: words.number("anon")?.unwrap_or(0),
                file_pages: words.number::<u8>("file")? == Some(1),
                die_with_parent: words.number::<u8>("with_parent")? == Some(1),
                exit: words.number::<u8>("exit")? == Some(1),
            })),
            "long" => Ok(Role::LongCommandLine { len_bytes: words.number("len")?.unwrap_or(0) }),
            "stopped" => Ok(Role::KeepStopped),
            "zombie" => Ok(Role::KeepZombie),
            "pidns" => Ok(Role::KeepInPidNamespace),
            "churn" => Ok(Role::Churn),
            "burst" => Ok(Role::Burst {
                count: words.number("count")?.unwrap_or(0),
                per_second: words.number("per_second")?.unwrap_or(0),
            }),
            "crowd" => Ok(Role::Crowd {
                count: words.number("count")?.unwrap_or(0),
                threaded_each: words.number("threaded")?.unwrap_or(0),
                busy_each: words.number("busy")?.unwrap_or(0),
            }),
            "host" => Ok(Role::Host { run_dir: words.bytes("run")?.unwrap_or_default() }),
            other => Err(RoleError(other.to_owned())),
        }
    }
}

/// `key=value` words, separated by blanks.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    fn value(&self, key: &str) -> Option<&'a str> {
        let mut words = self.0.split(' ').filter_map(|word| word.split_once('='));
        words.find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    fn number<T: FromStr>(&self, key: &str) -> Result<Option<T>, RoleError> {
        let parse = |value: &str| value.parse().map_err(|_| RoleError(format!("{key}={value}")));
        self.value(key).map(parse).transpose()
    }

    fn bytes(&self, key: &str) -> Result<Option<Vec<u8>>, RoleError> {
        let parse = |value: &str| unhex(value).ok_or_else(|| RoleError(format!("{key}={value}")));
        self.value(key).map(parse).transpose()
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).expect("four bits are one digit");
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    let whole = text.len().is_multiple_of(2);
    whole.then(|| text.as_bytes().chunks(2).map(pair).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_survives_the_environment() {
        let roles = [
            Role::Subject(Subject::default()),
            Role::Subject(Subject {
                comm: Some(b"a b\n\xff=".to_vec()),
                title: Some(Vec::new()),
                title_later: Some(b"later".to_vec()),
                threads_more: 3,
                busy_percent: 100,
                anon_bytes: 1 << 33,
                file_pages: true,
                user: Some(65_534),
                die_with_parent: true,
                exit: true,
            }),
            Role::LongCommandLine { len_bytes: 2 << 20 },
            Role::KeepStopped,
            Role::KeepZombie,
            Role::KeepInPidNamespace,
            Role::Churn,
            Role::Burst { count: 10_000, per_second: 7 },
            Role::Crowd { count: 3_000, threaded_each: 20, busy_each: 300 },
            Role::Host { run_dir: b"/tmp/a b/run".to_vec() },
        ];
        for role in roles {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
    }

    #[test]
    fn a_bad_word_is_named() {
        for (text, want) in
            [("", ""), ("lion", "lion"), ("long len=x", "len=x"), ("subject comm=f", "comm=f")]
        {
            assert_eq!(text.parse::<Role>(), Err(RoleError(want.to_owned())), "for {text:?}");
        }
    }
}
