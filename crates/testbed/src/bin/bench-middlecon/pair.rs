//! A callee and its caller, two processes that are owned: told what to do, and ended with this value.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::clock::{Job, Round};
use crate::plan::Contender;

/// Longest wait for a process to be ready: Zenoh and NATS connect, TLS makes keys.
const READY_WAIT_MAX: Duration = Duration::from_secs(20);

/// Longest wait for a round beyond its own time: 64 callers with 1 MiB each may be slow.
const ROUND_WAIT_MAX: Duration = Duration::from_secs(20);

/// How long a process may take to end by itself.
const END_WAIT_MAX: Duration = Duration::from_secs(2);

/// How often an ending process is looked at.
const END_PERIOD: Duration = Duration::from_millis(5);

/// One process of this program.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Process {
    /// Starts it, as `spawn` does it, and waits until it is ready; what it said then.
    pub(crate) fn start(
        mut command: Command,
        spawn: impl FnOnce(Command) -> io::Result<Child>,
    ) -> io::Result<(Process, String)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn(command)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            let lines = output.into_iter().flat_map(|output| BufReader::new(output).lines());
            // It fails when nobody listens any more.
            lines.map_while(Result::ok).try_for_each(|line| send.send(line))
        });
        let process = Process { child, input, lines };
        let said = process.line(READY_WAIT_MAX)?;
        match said.strip_prefix("ready") {
            Some(said) => Ok((process, said.trim().to_owned())),
            None => Err(io::Error::other(said)),
        }
    }

    /// The next line it says.
    pub(crate) fn line(&self, longest: Duration) -> io::Result<String> {
        self.lines.recv_timeout(longest).map_err(|error| {
            io::Error::other(match error {
                RecvTimeoutError::Timeout => "it said nothing in time",
                RecvTimeoutError::Disconnected => "it ended",
            })
        })
    }

    /// Gives it a line.
    pub(crate) fn tell(&mut self, line: &str) -> io::Result<()> {
        let input = self.input.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(input, "{line}").and_then(|()| input.flush())
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        // It is not reaped before it is dropped, so its number is not given out again.
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Who was stopped does not see its input end.
        let _ = self.signal(Signal::CONT);
        drop(self.input.take());
        let until = Instant::now() + END_WAIT_MAX;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(END_PERIOD);
        }
        // It may have ended already; then there is only the reaping left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A contender at work. The caller ends first.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) contender: Contender,
    caller: Process,
    callee: Process,
}

impl Pair {
    /// At rest if it is restless.
    pub(crate) fn new(contender: Contender, callee: Process, caller: Process) -> io::Result<Pair> {
        let pair = Pair { contender, caller, callee };
        pair.rest()?;
        Ok(pair)
    }

    pub(crate) fn round(&mut self, job: Job) -> io::Result<Round> {
        if self.contender.is_restless {
            self.callee.signal(Signal::CONT)?;
        }
        self.caller.tell(&job.to_string())?;
        let round = self.caller.line(ROUND_WAIT_MAX + Duration::from_millis(job.ms));
        self.rest()?;
        round?.parse()
    }

    fn rest(&self) -> io::Result<()> {
        if self.contender.is_restless { self.callee.signal(Signal::STOP) } else { Ok(()) }
    }
}
