//! Guards that own real processes of every awkward kind.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::crowd::{Crowd, Mix};
use crate::helper;
use crate::role::{ROLE_VARIABLE, Role, Subject};

/// Longest wait for a helper that was told to end; a crowd of 10,000 ends within a second.
const END_WAIT_MAX: Duration = Duration::from_secs(30);

/// The process numbers that a test looks at; `fail` and a reason when the helper could not.
type Ready = Result<Vec<i32>, String>;

/// Starts processes to look at. Each function returns once its process is as it shall be.
///
/// They panic when the helper cannot be started: a test without its process tells nothing.
#[derive(Debug)]
pub struct Zoo;

impl Zoo {
    /// A sleeping process with these arguments, byte for byte.
    pub fn sleeper(argv: &[&[u8]]) -> Animal {
        Zoo::subject(Subject::default(), argv)
    }

    /// A sleeping process made to measure.
    pub fn subject(subject: Subject, argv: &[&[u8]]) -> Animal {
        Animal::spawn(&Role::Subject(subject), argv)
    }

    /// A sleeping process with this name, as `PR_SET_NAME` sets it: at most 15 bytes stay.
    pub fn named(comm: &[u8]) -> Animal {
        let subject = Subject { comm: Some(comm.to_vec()), ..Subject::default() };
        Zoo::subject(subject, &[b"named"])
    }

    /// A process that wrote `title` over its argument vector, which was `argv`.
    pub fn retitled(argv: &[&[u8]], title: &[u8]) -> Animal {
        Zoo::subject(Subject { title: Some(title.to_vec()), ..Subject::default() }, argv)
    }

    /// A process that writes `title` over its argument vector when [`Animal::retitle`] says so.
    pub fn retitling(argv: &[&[u8]], title: &[u8]) -> Animal {
        let title_later = Some(title.to_vec());
        Zoo::subject(Subject { title_later, ..Subject::default() }, argv)
    }

    /// A process whose argument vector takes at least `len_bytes`, in many arguments.
    pub fn long_command_line(len_bytes: usize) -> Animal {
        Animal::spawn(&Role::LongCommandLine { len_bytes }, &[b"long"])
    }

    /// A process with `threads` threads, the first included.
    pub fn threaded(threads: u32) -> Animal {
        let threads_more = threads.saturating_sub(1);
        Zoo::subject(Subject { threads_more, ..Subject::default() }, &[b"threaded"])
    }

    /// A process that takes all it gets of one CPU, and has had some.
    pub fn busy() -> Animal {
        Zoo::subject(Subject { busy_percent: 100, ..Subject::default() }, &[b"busy"])
    }

    /// A process with at least `anon_bytes` of anonymous memory resident.
    pub fn resident(anon_bytes: u64) -> Animal {
        Zoo::subject(Subject { anon_bytes, ..Subject::default() }, &[b"resident"])
    }

    /// A process with at least [`FILE_BYTES`](crate::role::FILE_BYTES) of a file resident.
    pub fn file_mapped() -> Animal {
        Zoo::subject(Subject { file_pages: true, ..Subject::default() }, &[b"file-mapped"])
    }

    /// A process of another user and group. `None` without the right to become one.
    pub fn of_user(user: u32) -> Option<Animal> {
        let subject = Subject { user: Some(user), ..Subject::default() };
        rustix::process::geteuid().is_root().then(|| Zoo::subject(subject, &[b"of-user"]))
    }

    /// A process that ended and is not waited for.
    pub fn zombie() -> Animal {
        Animal::spawn(&Role::KeepZombie, &[b"zombie-keeper"])
    }

    /// A process stopped by `SIGSTOP`.
    pub fn stopped() -> Animal {
        Animal::spawn(&Role::KeepStopped, &[b"stopped-keeper"])
    }

    /// Process 1 of a PID namespace of its own. `None` where we may not make one.
    pub fn in_pid_namespace() -> Option<Animal> {
        match Animal::try_spawn(&Role::KeepInPidNamespace, &[b"namespace-keeper"]) {
            Ok((animal, _)) => Some(animal),
            Err(why) if why.contains("unshare") => None,
            Err(why) => panic!("cannot start a process in a namespace: {why}"),
        }
    }

    /// A process that starts and reaps children that end at once, one after the other. The guard's
    /// process is the parent.
    pub fn churn() -> Animal {
        Animal::spawn(&Role::Churn, &[b"churn"])
    }

    /// Starts `count` short processes, `per_second` or, for 0, as many as can be, and returns when all
    /// have been reaped.
    pub fn burst(count: usize, per_second: usize) -> Burst {
        let role = Role::Burst { count, per_second };
        let (animal, said) = Animal::spawn_many(&role, &[b"burst"]);
        let said = |index: usize| said.get(index).copied().expect("it says four numbers") as u64;
        Burst {
            pid: animal.keeper_pid(),
            cpu: Duration::from_micros(said(1)),
            max_rss: said(2) * 1024,
            min_flt: said(3),
        }
    }

    /// `count` sleeping processes with realistic command lines.
    pub fn crowd(count: usize, mix: Mix) -> Crowd {
        Crowd::spawn(count, mix)
    }
}

/// What the parent of many short processes was told of them by `getrusage`.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    /// The parent, which has ended.
    pub pid: i32,
    /// CPU time of all of them.
    pub cpu: Duration,
    /// Most resident memory of any of them, bytes.
    pub max_rss: u64,
    /// Page faults without I/O of all of them.
    pub min_flt: u64,
}

/// One process, killed and reaped when this is dropped. It ends, too, when the test is killed.
#[derive(Debug)]
pub struct Animal {
    helper: Child,
    /// The helper and all it keeps end when this closes.
    lifeline: Option<ChildStdin>,
    /// What it says. `None` until it can be read.
    said: Option<BufReader<ChildStdout>>,
    pid: i32,
}

impl Animal {
    /// The process to look at.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The process that the guard started itself: the process to look at, or the one that keeps it.
    pub fn keeper_pid(&self) -> i32 {
        self.helper.id() as i32
    }

    /// Lets a process of [`Zoo::retitling`] write its title, and returns once it has.
    pub fn retitle(&mut self) {
        let lifeline = self.lifeline.as_mut().expect("it lives");
        lifeline.write_all(b"\n").expect("it reads what its owner says");
        let ready = read_ready(self.said.as_mut().expect("it was ready before"));
        ready.unwrap_or_else(|why| panic!("it did not write its title: {why}"));
    }

    /// Kills the process and waits until it is reaped. Nothing happens the second time.
    pub fn kill(&mut self) {
        let Some(lifeline) = self.lifeline.take() else { return };
        let is_keeper = self.keeper_pid() != self.pid;
        if is_keeper {
            drop(lifeline);
            if !self.ends_by_itself() {
                // It may have ended by now; then there is only the reaping left.
                let _ = self.helper.kill();
            }
        } else {
            // While the lifeline holds: else it might end by itself first, and not of the signal.
            let _ = self.helper.kill();
            drop(lifeline);
        }
        let reaped = self.helper.wait();
        assert!(reaped.is_ok() || std::thread::panicking(), "cannot reap: {reaped:?}");
    }

    /// Waits for a keeper, which kills and reaps what it keeps; false if it takes too long.
    fn ends_by_itself(&self) -> bool {
        let pid = Pid::from_child(&self.helper);
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
        let until = Instant::now() + END_WAIT_MAX;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).expect("half a minute is no large time");
            match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn spawn(role: &Role, argv: &[&[u8]]) -> Animal {
        Animal::spawn_many(role, argv).0
    }

    pub(crate) fn spawn_many(role: &Role, argv: &[&[u8]]) -> (Animal, Vec<i32>) {
        Animal::try_spawn(role, argv).unwrap_or_else(|why| panic!("cannot start `{role}`: {why}"))
    }

    pub(crate) fn try_spawn(role: &Role, argv: &[&[u8]]) -> Result<(Animal, Vec<i32>), String> {
        let (name, arguments) = argv.split_first().expect("an argument vector has a first element");
        let mut command = Command::new(helper::path());
        command.arg0(OsStr::from_bytes(name));
        command.args(arguments.iter().map(|argument| OsStr::from_bytes(argument)));
        command.env_clear().env(ROLE_VARIABLE, role.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut helper = command.spawn().map_err(|error| error.to_string())?;
        let lifeline = helper.stdin.take();
        let mut said = BufReader::new(helper.stdout.take().expect("its output is a pipe"));
        let mut animal = Animal { helper, lifeline, said: None, pid: 0 };
        let pids = read_ready(&mut said)?;
        animal.said = Some(said);
        animal.pid = pids.first().copied().unwrap_or(animal.keeper_pid());
        Ok((animal, pids))
    }
}

impl Drop for Animal {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads the one line that a helper writes: it writes one or dies, so this needs no time limit.
fn read_ready(said: &mut BufReader<ChildStdout>) -> Ready {
    let mut line = Vec::new();
    let read = said.read_until(b'\n', &mut line);
    read.map_err(|error| error.to_string())?;
    let line = String::from_utf8_lossy(&line);
    match line.trim_end_matches('\n').split_once(' ') {
        Some(("ready", pids)) => pids
            .split(' ')
            .filter(|pid| !pid.is_empty())
            .map(|pid| pid.parse().map_err(|_| format!("`{pid}` is no process number")))
            .collect(),
        Some(("fail", why)) => Err(why.to_owned()),
        _ => Err(format!("it ended without a word: `{line}`")),
    }
}
