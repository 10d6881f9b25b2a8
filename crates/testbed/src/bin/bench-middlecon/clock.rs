//! Taking the times of calls, and what is kept of them.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How much longer a round takes than what is counted: caches, connections and whoever spins get warm.
const WARM: Duration = Duration::from_millis(20);

/// What a caller says of a round in which no call ended.
pub(crate) const NOTHING_IN_TIME: &str = "no call was over in time";

/// What a caller is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) size_bytes: usize,
    pub(crate) callers: usize,
    pub(crate) pause_us: u64,
    pub(crate) ms: u64,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.size_bytes, self.callers, self.pause_us, self.ms)
    }
}

impl FromStr for Job {
    type Err = io::Error;
    fn from_str(text: &str) -> io::Result<Job> {
        let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[size_bytes, callers, pause_us, ms]) => {
                let (size_bytes, callers) = (size_bytes as usize, callers as usize);
                Ok(Job { size_bytes, callers, pause_us, ms })
            }
            _ => Err(io::Error::other(format!("`{text}` is no job"))),
        }
    }
}

/// A question: its length in eight bytes, as bare carriers need it, then the question itself.
#[derive(Clone, Debug)]
pub(crate) struct Question(Vec<u8>);

/// Bytes of the length before a question.
pub(crate) const LENGTH_BYTES: usize = 8;

impl Question {
    pub(crate) fn new(size_bytes: usize) -> Question {
        let mut bytes = (size_bytes as u64).to_le_bytes().to_vec();
        bytes.extend((0..size_bytes).map(|at| (at * 31 % 251) as u8));
        Question(bytes)
    }

    /// Makes it another one, so that an old answer does not answer it.
    pub(crate) fn turn(&mut self, count: u64) {
        self.0[LENGTH_BYTES..2 * LENGTH_BYTES].copy_from_slice(&count.to_le_bytes());
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.0[LENGTH_BYTES..]
    }

    /// With its length.
    pub(crate) fn framed(&self) -> &[u8] {
        &self.0
    }
}

/// The calls of one caller in a round.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    pause: Duration,
    counts_from: Instant,
    until: Instant,
    began: Instant,
    took_ns: Vec<u32>,
}

impl Stopwatch {
    /// All callers of a round count from the same moment.
    pub(crate) fn start(job: &Job, start: Instant) -> Stopwatch {
        let began = Instant::now();
        let counts_from = start + WARM;
        let until = counts_from + Duration::from_millis(job.ms);
        let pause = Duration::from_micros(job.pause_us);
        Stopwatch { pause, counts_from, until, began, took_ns: Vec::with_capacity(1 << 12) }
    }

    /// Notes that the call that began when the last one was over, or after the pause, is over. Whether there
    /// shall be another. One look at the clock a call, for calls take less than a microsecond.
    #[inline]
    pub(crate) fn lap(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.counts_from && now < self.until {
            let took_ns = now.duration_since(self.began).as_nanos();
            self.took_ns.push(u32::try_from(took_ns).unwrap_or(u32::MAX));
        }
        self.began = now;
        now < self.until
    }

    /// The pause before the next call, if there is one.
    pub(crate) fn pause(&self) -> Option<Duration> {
        (!self.pause.is_zero()).then_some(self.pause)
    }

    /// The pause is over.
    pub(crate) fn go_on(&mut self) {
        self.began = Instant::now();
    }

    pub(crate) fn took_ns(self) -> Vec<u32> {
        self.took_ns
    }
}

/// What is kept of a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Round {
    pub(crate) calls: usize,
    pub(crate) calls_per_s: f64,
    pub(crate) p50_ns: u32,
    pub(crate) p99_ns: u32,
    pub(crate) max_ns: u32,
}

impl Round {
    /// Of all callers together: the calls that were over in the counted time.
    pub(crate) fn of(mut took_ns: Vec<u32>, job: &Job) -> Option<Round> {
        let calls = took_ns.len();
        let mut at = |percent: usize| {
            let rank = (calls * percent).div_ceil(100).clamp(1, calls) - 1;
            *took_ns.select_nth_unstable(rank).1
        };
        (calls > 0).then(|| Round {
            calls,
            calls_per_s: calls as f64 * 1e3 / job.ms as f64,
            p50_ns: at(50),
            p99_ns: at(99),
            max_ns: at(100),
        })
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Round { calls, calls_per_s, p50_ns, p99_ns, max_ns } = self;
        write!(f, "round {calls} {calls_per_s} {p50_ns} {p99_ns} {max_ns}")
    }
}

impl FromStr for Round {
    type Err = io::Error;
    fn from_str(text: &str) -> io::Result<Round> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let parsed = || {
            let &["round", calls, calls_per_s, p50_ns, p99_ns, max_ns] = words.as_slice() else {
                return None;
            };
            Some(Round {
                calls: calls.parse().ok()?,
                calls_per_s: calls_per_s.parse().ok()?,
                p50_ns: p50_ns.parse().ok()?,
                p99_ns: p99_ns.parse().ok()?,
                max_ns: max_ns.parse().ok()?,
            })
        };
        parsed().ok_or_else(|| io::Error::other(text.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_and_rounds_survive_a_line() {
        let job = Job { size_bytes: 64, callers: 2, pause_us: 3, ms: 4 };
        assert_eq!(job.to_string().parse::<Job>().expect("a job"), job);
        assert!("64 2 3".parse::<Job>().is_err());
        let round = Round::of((1..=200).map(|us| us * 1_000).collect(), &job).expect("calls");
        assert_eq!((round.calls, round.p50_ns, round.p99_ns), (200, 100_000, 198_000));
        assert_eq!(round.max_ns, 200_000);
        assert!((round.calls_per_s - 50_000.0).abs() < 1.0, "{round}");
        assert_eq!(round.to_string().parse::<Round>().expect("a round"), round);
        assert_eq!(Round::of(Vec::new(), &job), None);
        let said = "no such service".parse::<Round>().expect_err("no round");
        assert_eq!(said.to_string(), "no such service");
    }

    #[test]
    fn a_question_is_its_length_and_never_twice_the_same() {
        let mut question = Question::new(64);
        let first = question.body().to_vec();
        question.turn(7);
        assert_ne!(question.body(), first);
        assert_eq!(question.framed().len(), 72);
        assert_eq!(question.framed()[..8], 64_u64.to_le_bytes());
    }
}
