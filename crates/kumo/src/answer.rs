//! A call answered by one run of a command: the payload on its standard input, the reply on its output.
//!
//! The command is the first process of a group of its own. When the call is over, however it ends,
//! nothing of that group is left: it is asked to end (TERM), and killed where it does not. What leaves
//! the group (`setsid`) is on its own.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kumo_abi::call::{MESSAGE_BYTES_MAX, Peer, Who};
use kumo_sys::PidFd;
use middlecon::{Context, Failure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::callee::CONTEXT_VARIABLE;
use crate::orphans::{Keeper, Watched};

/// Largest reply. It is held in memory, for each slot; what is larger wants a file or a stream.
pub const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long a command that is no longer wanted may take to end by itself.
const TERM_TIME_MAX: Duration = Duration::from_secs(1);

/// How long a caller whose budget is spent may take to hang up: far more than it needs.
const HANG_UP_TIME_MAX: Duration = Duration::from_secs(1);

/// Bytes that are moved at once: what a pipe holds.
const PIECE_BYTES: usize = 64 * 1024;

/// What the largest pipe holds that Linux gives to an ordinary user.
const PIPE_BYTES_MAX: usize = 1024 * 1024;

/// What is said, if anybody still hears it, of a command that was ended with its call.
const NOT_WANTED: &str = "the command was ended: its caller gave up, or its server had to end";

/// The codes of failures that are not exit statuses, as `timeout` and shells have them.
const CODE_TIME: u32 = 124;
const CODE_OWN: u32 = 125;
const CODE_NOT_RUNNABLE: u32 = 126;
const CODE_NOT_FOUND: u32 = 127;
const CODE_SIGNAL: u32 = 128;

/// What answers calls.
#[derive(Clone, Debug)]
pub struct Answerer {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// It may run for so long; as long as its caller waits without.
    pub time_max: Option<Duration>,
    /// Ends what runs if we are killed.
    pub keeper: Option<Arc<Keeper>>,
}

/// What a call was, for who writes it down.
#[derive(Debug)]
pub struct Ran {
    /// The reply, or what the caller is told.
    pub result: Result<Bytes, Failure>,
    /// Why it was ended before its time.
    pub ended: Option<Ended>,
}

/// Why a command was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nobody waits for the reply any more: the caller gave up, died, or its budget was spent.
    NotWanted,
    /// It ran longer than it may.
    TooLong,
    /// It wrote more than it may.
    TooMuch,
}

/// How a peer is written for programs: the end of its SPIFFE id.
pub fn peer_text(peer: &Peer) -> String {
    match &peer.who {
        Who::Service(service) => format!("{}/service/{service}", peer.host),
        Who::User(uid) => format!("{}/user/{uid}", peer.host),
    }
}

impl Answerer {
    /// Runs the command for one call. Blocks until it has ended or nobody waits any more.
    pub fn answer(&self, method: &str, body: &[u8], peer: &Peer, context: &Context) -> Ran {
        let failed = |code, message| Ran { result: Err(Failure::new(code, message)), ended: None };
        let Some((program, arguments)) = self.command.split_first() else {
            return failed(CODE_OWN, "there is no command".to_owned());
        };
        let mut command = Command::new(program);
        command.args(arguments).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("KUMO_METHOD", method).env("KUMO_PEER", peer_text(peer));
        command.env("KUMO_TRACE", context.trace().to_string());
        command.env("KUMO_BUDGET_MS", context.left().as_millis().to_string());
        command.env(CONTEXT_VARIABLE, context.export());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let code = match error.kind() {
                    ErrorKind::NotFound => CODE_NOT_FOUND,
                    ErrorKind::PermissionDenied => CODE_NOT_RUNNABLE,
                    _ => CODE_OWN,
                };
                return failed(code, format!("cannot run {}: {error}", program.display()));
            }
        };
        self.hear(child, body, context).unwrap_or_else(|error| {
            failed(CODE_OWN, format!("cannot talk to {}: {error}", program.display()))
        })
    }
}

impl Answerer {
    fn hear(&self, mut child: Child, body: &[u8], context: &Context) -> io::Result<Ran> {
        let began = Instant::now();
        let pipes = Pipes::new(&mut child, body);
        let process = match PidFd::open(child.id() as i32) {
            Ok(process) => process,
            Err(error) => {
                kill_process_group(Pid::from_child(&child), Signal::KILL).ok();
                child.wait()?;
                return Err(error);
            }
        };
        let watched = self.keeper.as_ref().map(|keeper| keeper.watch(child.id()));
        let mut group = Group { watched, child, process, is_reaped: false };
        let mut heard = Heard::default();
        let wanted_until = began + context.left();
        let own_until = self.time_max.map(|max| began + max);
        let ended = group.talk(pipes?, context.caller(), wanted_until, own_until, &mut heard)?;
        let status = group.end(ended.is_some());
        if let Some(caller) = context.caller().filter(|_| ended == Some(Ended::NotWanted)) {
            // The caller's own clock is about to say, or has said, that the time is over. An answer in that
            // very moment would tell one of them so and another something else.
            let mut fds = [PollFd::from_borrowed_fd(caller, PollFlags::RDHUP)];
            poll(&mut fds, Timespec::try_from(HANG_UP_TIME_MAX).ok().as_ref()).ok();
        }
        Ok(Ran { result: heard.result(status, ended, self.time_max), ended })
    }
}

/// What a command said.
#[derive(Debug, Default)]
struct Heard {
    reply: Vec<u8>,
    /// The last of what it wrote to standard error.
    complaint: Vec<u8>,
}

impl Heard {
    fn result(
        self,
        status: Option<ExitStatus>,
        ended: Option<Ended>,
        time_max: Option<Duration>,
    ) -> Result<Bytes, Failure> {
        let (code, said) = match (ended, status) {
            (Some(Ended::NotWanted), _) => (CODE_OWN, NOT_WANTED.to_owned()),
            (Some(Ended::TooLong), _) => {
                let time_max = time_max.unwrap_or_default();
                (CODE_TIME, format!("the command ran for {time_max:?} and was ended"))
            }
            (Some(Ended::TooMuch), _) => {
                let max = REPLY_BYTES_MAX >> 20;
                (CODE_OWN, format!("the command wrote more than {max} MiB and was ended"))
            }
            (None, Some(status)) if status.success() => return Ok(self.reply.into()),
            (None, Some(status)) => match (status.code(), status.signal()) {
                (Some(code), _) => (code as u32, format!("the command ended with status {code}")),
                (None, signal) => {
                    let signal = signal.unwrap_or_default();
                    (CODE_SIGNAL + signal as u32, format!("signal {signal} ended the command"))
                }
            },
            (None, None) => (CODE_OWN, "it is not known how the command ended".to_owned()),
        };
        let complaint = last_line(&self.complaint);
        Err(Failure::new(code, if complaint.is_empty() { said } else { complaint }))
    }
}

/// The last line that holds something.
fn last_line(text: &[u8]) -> String {
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    String::from_utf8_lossy(lines.rev().find(|line| !line.is_empty()).unwrap_or_default()).into()
}

/// Keeps the end of what is written.
fn keep_end(kept: &mut Vec<u8>, piece: &[u8]) {
    kept.extend_from_slice(piece);
    let above = kept.len().saturating_sub(MESSAGE_BYTES_MAX);
    kept.drain(..above);
}

/// Reads once from a pipe that does not block; nothing where nothing is there, an empty piece at its end.
fn read<'a>(pipe: &mut impl Read, piece: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    match pipe.read(piece) {
        Ok(len_bytes) => Ok(Some(&piece[..len_bytes])),
        Err(error) if is_later(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// A command that runs, with all of its group. Dropped, it is killed.
struct Group<'a> {
    /// Until it is reaped.
    watched: Option<Watched<'a>>,
    child: Child,
    process: PidFd,
    is_reaped: bool,
}

/// The ends of a command's pipes that are still open.
struct Pipes<'a> {
    input: Option<ChildStdin>,
    rest: &'a [u8],
    output: Option<ChildStdout>,
    complaint: Option<ChildStderr>,
    piece: Vec<u8>,
}

impl<'a> Pipes<'a> {
    fn new(child: &mut Child, body: &'a [u8]) -> io::Result<Pipes<'a>> {
        let (input, output, complaint) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let ends = [
            input.as_ref().map(AsFd::as_fd),
            output.as_ref().map(AsFd::as_fd),
            complaint.as_ref().map(AsFd::as_fd),
        ];
        for end in ends.into_iter().flatten() {
            rustix::io::ioctl_fionbio(end, true)?;
        }
        // An empty payload ends at once.
        let input = input.filter(|_| !body.is_empty());
        Ok(Pipes { input, rest: body, output, complaint, piece: vec![0; PIECE_BYTES] })
    }

    /// Gives the command more of the payload. What it does not want is no failure.
    fn write(&mut self) {
        let Some(input) = &mut self.input else { return };
        match input.write(&self.rest[..self.rest.len().min(PIECE_BYTES)]) {
            Ok(len_bytes) => self.rest = &self.rest[len_bytes..],
            Err(error) if is_later(&error) => {}
            Err(_) => self.rest = &[],
        }
        if self.rest.is_empty() {
            self.input = None;
        }
    }

    /// Takes what it has written; whether there was something, or an end.
    fn read(&mut self, heard: &mut Heard) -> io::Result<bool> {
        let mut moved = false;
        if let Some(output) = &mut self.output
            && let Some(piece) = read(output, &mut self.piece)?
        {
            moved = true;
            heard.reply.extend_from_slice(piece);
            if piece.is_empty() {
                self.output = None;
            }
        }
        if let Some(complaint) = &mut self.complaint
            && let Some(piece) = read(complaint, &mut self.piece)?
        {
            moved = true;
            // Who keeps the log of the server wants to find it there, too.
            io::stderr().write_all(piece).ok();
            keep_end(&mut heard.complaint, piece);
            if piece.is_empty() {
                self.complaint = None;
            }
        }
        Ok(moved)
    }
}

impl Group<'_> {
    /// Moves bytes until the command has ended, or must.
    fn talk(
        &self,
        mut pipes: Pipes<'_>,
        caller: Option<BorrowedFd<'_>>,
        wanted_until: Instant,
        own_until: Option<Instant>,
        heard: &mut Heard,
    ) -> io::Result<Option<Ended>> {
        loop {
            let until = own_until.map_or(wanted_until, |own| own.min(wanted_until));
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let is_own = own_until.is_some_and(|own| own < wanted_until);
                return Ok(Some(if is_own { Ended::TooLong } else { Ended::NotWanted }));
            }
            let watched = [
                (Some(self.process.as_fd()), PollFlags::IN),
                (caller, PollFlags::RDHUP),
                (pipes.input.as_ref().map(AsFd::as_fd), PollFlags::OUT),
                (pipes.output.as_ref().map(AsFd::as_fd), PollFlags::IN),
                (pipes.complaint.as_ref().map(AsFd::as_fd), PollFlags::IN),
            ];
            let mut fds = watched.map(|(fd, events)| match fd {
                Some(fd) => PollFd::from_borrowed_fd(fd, events),
                // Of nothing, nothing is to be told.
                None => PollFd::from_borrowed_fd(self.process.as_fd(), PollFlags::empty()),
            });
            match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let [has_ended, is_alone, ..] = fds.map(|fd| !fd.revents().is_empty());
            pipes.write();
            pipes.read(heard)?;
            if has_ended {
                // All that it wrote is in the pipes now. What others of its group still write is not
                // waited for.
                let mut left = PIPE_BYTES_MAX / PIECE_BYTES;
                while left > 0 && heard.reply.len() <= REPLY_BYTES_MAX && pipes.read(heard)? {
                    left -= 1;
                }
            }
            if heard.reply.len() > REPLY_BYTES_MAX {
                return Ok(Some(Ended::TooMuch));
            }
            if has_ended {
                return Ok(None);
            }
            if is_alone {
                return Ok(Some(Ended::NotWanted));
            }
        }
    }

    /// Ends what is left of the group, and reaps its first process.
    fn end(&mut self, is_unwanted: bool) -> Option<ExitStatus> {
        if is_unwanted {
            self.signal(Signal::TERM);
            self.process.wait(Some(TERM_TIME_MAX)).ok();
        }
        // Until its first process is reaped the number of the group is given to no other.
        self.signal(Signal::KILL);
        self.watched = None;
        self.is_reaped = true;
        self.child.wait().ok()
    }

    fn signal(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.child), signal).ok();
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if !self.is_reaped {
            self.end(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answerer(script: &str) -> Answerer {
        let command = ["sh", "-c", script].map(OsString::from).to_vec();
        Answerer { command, time_max: None, keeper: None }
    }

    fn ran(answerer: &Answerer, body: &[u8], context: &Context) -> Ran {
        let who = Who::Service("web".parse().expect("a name"));
        let peer = Peer { host: "tokyo/a".parse().expect("a host"), pid: 1, who };
        answerer.answer("greet", body, &peer, context)
    }

    fn minute() -> Context {
        Context::root(Duration::from_secs(60))
    }

    #[test]
    fn payloads_of_any_kind_come_back_whole() {
        let large: Vec<u8> = (0..3 << 20).map(|at: u32| (at >> 8 ^ at) as u8).collect();
        for body in [&b""[..], b"\0\xff\x1b[31m\n", &large] {
            let ran = ran(&answerer("cat"), body, &minute());
            assert!(ran.result.expect("a reply") == body, "{} bytes", body.len());
        }
    }

    #[test]
    fn how_a_command_ends_is_what_its_caller_is_told() {
        let context = minute();
        let trace = context.trace();
        let env = "echo $KUMO_METHOD $KUMO_PEER $KUMO_TRACE; [ $KUMO_BUDGET_MS -le 60000 ]";
        let want_env = format!("greet tokyo/a/service/web {trace}\n");
        let cases = [
            (env, Ok(want_env.as_str())),
            // It needs neither read its payload nor keep its pipes open.
            ("exec <&- >&- 2>&-", Ok("")),
            ("echo half; exit 3", Err((3, "the command ended with status 3"))),
            ("echo first >&2; echo ' last ' >&2; echo >&2; exit 1", Err((1, "last"))),
            ("printf '\\377' >&2; exit 1", Err((1, "\u{fffd}"))),
            ("kill -9 $$", Err((137, "signal 9 ended the command"))),
        ];
        for (script, want) in cases {
            let ran = ran(&answerer(script), &vec![0; 200_000], &context);
            let got = ran.result.as_ref().map(|reply| String::from_utf8_lossy(reply).into_owned());
            let want = want.map(str::to_owned);
            let want = want.map_err(|(code, message)| Failure::new(code, message));
            assert_eq!(got, want.as_ref().cloned(), "for {script:?}");
        }
    }

    #[test]
    fn a_command_that_is_none_is_said() {
        let none =
            Answerer { command: vec!["/no/such/command".into()], time_max: None, keeper: None };
        let failure = ran(&none, b"", &minute()).result.expect_err("nothing to run");
        assert_eq!(failure.code, CODE_NOT_FOUND);
        assert!(failure.message.contains("/no/such/command"), "{failure:?}");
    }

    /// Waits until nobody is left of the group of a command that wrote its number into a file. What was
    /// killed may still be a zombie for a moment: its parent has ended, and another must reap it.
    fn until_gone(file: &std::path::Path) {
        let pid = std::fs::read_to_string(file).expect("it began");
        let pid = Pid::from_raw(pid.trim().parse().expect("a pid")).expect("a pid");
        let began = Instant::now();
        while rustix::process::test_kill_process_group(pid) != Err(Errno::SRCH) {
            assert!(began.elapsed() < Duration::from_secs(10), "the group {pid:?} is still there");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn nothing_of_its_group_is_left_however_it_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("pid");
        let begin = format!("echo $$ > {}; ", file.display());
        // A child that ignores TERM and holds the pipes; the command itself ends, fails, or stays.
        let child = "(trap '' TERM; sleep 1000) & ";
        let slow = Some(Duration::from_millis(300));
        let cases = [
            ("true", None, None),
            ("exit 1", None, None),
            ("wait", slow, Some(Ended::TooLong)),
            ("trap '' TERM; while :; do sleep 1000; done", slow, Some(Ended::TooLong)),
            ("cat /dev/zero", None, Some(Ended::TooMuch)),
        ];
        for (rest, time_max, want) in cases {
            let answerer = Answerer { time_max, ..answerer(&format!("{begin}{child}{rest}")) };
            let ran = ran(&answerer, b"", &minute());
            assert_eq!(ran.ended, want, "for {rest:?}");
            until_gone(&file);
        }
        let context = Context::root(Duration::from_millis(300));
        let ran = ran(&answerer(&format!("{begin}{child}wait")), b"", &context);
        assert_eq!(ran.ended, Some(Ended::NotWanted));
        until_gone(&file);
    }
}
