//! The process that tests look at: what it shall be stands in `KUMO_ZOO`; see `kumo_testbed::role`.
//!
//! It writes one line when it is ready, `ready PID ...` or `fail WHY`, and ends when its standard
//! input does: that is the pipe whose other end its owner holds, so nothing outlives a killed test.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Error, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use kumo_testbed::crowd_arguments;
use kumo_testbed::role::{FILE_BYTES, ROLE_VARIABLE, Role, Subject};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, WaitOptions, getrlimit, kill_process,
    set_parent_process_death_signal, setrlimit, waitid, waitpid,
};

/// Pages of this program's own file, for tests of file-backed memory.
static FILE_PAGES: [u8; FILE_BYTES] = [1; FILE_BYTES];

/// The smallest page of any machine we run on; touching more often than needed does no harm.
const PAGE_BYTES: usize = 4096;

/// The kernel takes no single argument above 128 KiB.
const ARGUMENT_BYTES_MAX: usize = 64 * 1024;

/// A busy process looks at its standard input once in this while.
const BUSY_PERIOD: Duration = Duration::from_millis(100);

/// A busy process has used this much CPU time before it is ready: some ticks of the kernel's clock.
const BUSY_BEFORE_READY: Duration = Duration::from_millis(50);

/// Process 1 of a host reaps orphans this often.
const REAP_PERIOD: Duration = Duration::from_secs(1);

/// Threads of the crowd's threaded processes beside the first.
const CROWD_THREADS_MORE: u32 = 3;

fn main() -> ExitCode {
    match be() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever started us may be gone; then nobody wants to know.
            let _ = writeln!(io::stdout(), "fail {}", error.to_string().replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn be() -> io::Result<()> {
    let text = std::env::var(ROLE_VARIABLE).map_err(|_| {
        Error::other(format!("{ROLE_VARIABLE} is not set; tests start this program, not people"))
    })?;
    match text.parse().map_err(Error::other)? {
        Role::Subject(subject) => be_subject(&subject),
        Role::LongCommandLine { len_bytes } => take_long_command_line(len_bytes),
        Role::KeepStopped => keep_stopped(),
        Role::KeepZombie => keep_zombie(),
        Role::KeepInPidNamespace => keep_in_pid_namespace(),
        Role::Churn => churn(),
        Role::Burst { count, per_second } => burst(count, per_second),
        Role::Crowd { count, threaded_each, busy_each } => {
            keep_crowd(count, threaded_each, busy_each)
        }
        Role::Host { run_dir } => be_host(&run_dir),
    }
}

fn be_subject(subject: &Subject) -> io::Result<()> {
    if subject.exit {
        return Ok(());
    }
    if let Some(user) = subject.user {
        become_user(user)?;
    }
    if subject.die_with_parent {
        set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    let memory = touched(subject.anon_bytes);
    if subject.file_pages {
        let sum: usize = FILE_PAGES.iter().step_by(PAGE_BYTES).map(|byte| usize::from(*byte)).sum();
        std::hint::black_box(sum);
    }
    for _ in 0..subject.threads_more {
        let park = || loop {
            std::thread::park();
        };
        std::thread::Builder::new().stack_size(64 * 1024).spawn(park)?;
    }
    if let Some(title) = &subject.title {
        write_title(title)?;
    }
    if let Some(comm) = &subject.comm {
        rustix::thread::set_name(&CString::new(comm.as_slice())?)?;
    }
    if subject.busy_percent == 0 {
        say_ready(&[std::process::id()])?;
        if let Some(title) = &subject.title_later {
            // One byte asks for it; without any the owner is gone.
            if io::stdin().read(&mut [0])? > 0 {
                write_title(title)?;
                say_ready(&[std::process::id()])?;
            }
        }
        wait_for_end()?;
    } else {
        be_busy(subject.busy_percent.min(100))?;
    }
    drop(memory);
    Ok(())
}

fn become_user(user: u32) -> io::Result<()> {
    let (uid, gid) = (nix::unistd::Uid::from_raw(user), nix::unistd::Gid::from_raw(user));
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    Ok(())
}

/// Anonymous memory, every page of it resident.
fn touched(len_bytes: u64) -> Vec<u8> {
    let mut memory = vec![0_u8; len_bytes as usize];
    memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    std::hint::black_box(memory)
}

/// Writes `title` over the argument vector, as programs that rename themselves do. A longer title
/// runs on into the environment: the kernel shows that too.
fn write_title(title: &[u8]) -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses may hold anything, so fields count from its end; man 5 proc_pid_stat
    // numbers them from 1, and the one after the name is the third.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let field = |number: usize| -> io::Result<u64> {
        let text = fields.split_whitespace().nth(number - 3);
        text.and_then(|text| text.parse().ok()).ok_or_else(|| Error::other("no such field in stat"))
    };
    let (arg_start, arg_end) = (field(48)?, field(49)?);
    let mut bytes = title.to_vec();
    bytes.push(0);
    bytes.resize(bytes.len().max((arg_end - arg_start) as usize), 0);
    OpenOptions::new().write(true).open("/proc/self/mem")?.write_all_at(&bytes, arg_start)
}

fn be_busy(percent: u32) -> io::Result<()> {
    let busy = BUSY_PERIOD * percent / 100;
    let idle = Timespec::try_from(BUSY_PERIOD.saturating_sub(busy)).map_err(Error::other)?;
    if percent == 100 {
        spin(BUSY_BEFORE_READY);
    }
    say_ready(&[std::process::id()])?;
    let stdin = io::stdin();
    loop {
        spin(busy);
        match rustix::event::poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&idle)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn spin(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn take_long_command_line(len_bytes: usize) -> io::Result<()> {
    // Arguments may take a quarter of the stack; the pointers to them count as well.
    let stack = 4 * (len_bytes as u64 + (1 << 20));
    let limit = getrlimit(Resource::Stack);
    if limit.current.is_some_and(|current| current < stack) {
        setrlimit(Resource::Stack, Rlimit { current: Some(stack), ..limit })?;
    }
    let mut command = helper(&Subject::default())?;
    command.arg0("long").stdin(Stdio::inherit()).stdout(Stdio::inherit());
    for i in 0..len_bytes.div_ceil(ARGUMENT_BYTES_MAX) {
        let letter = char::from(b'a' + (i % 26) as u8);
        command.arg(letter.to_string().repeat(ARGUMENT_BYTES_MAX - 1));
    }
    Err(command.exec())
}

fn keep_stopped() -> io::Result<()> {
    let subject = Subject { die_with_parent: true, ..Subject::default() };
    let child = Kept::spawn(&subject, "stopped")?;
    let pid = Pid::from_child(&child.0);
    kill_process(pid, Signal::STOP)?;
    waitpid(Some(pid), WaitOptions::UNTRACED)?;
    say_ready(&[child.0.id()])?;
    wait_for_end()
}

fn keep_zombie() -> io::Result<()> {
    let child = helper(&Subject { exit: true, ..Subject::default() })?.arg0("zombie").spawn()?;
    let child = Kept(child);
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(Pid::from_child(&child.0)), ended)?;
    say_ready(&[child.0.id()])?;
    wait_for_end()
}

fn keep_in_pid_namespace() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWPID)
        .or_else(|_| unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID))
        .map_err(|error| Error::other(format!("unshare: {error}")))?;
    let child = Kept::spawn(&Subject::default(), "in-namespace")?;
    say_ready(&[child.0.id()])?;
    wait_for_end()
}

fn churn() -> io::Result<()> {
    let child = || helper(&Subject { exit: true, ..Subject::default() })?.arg0("short").status();
    child()?;
    say_ready(&[std::process::id()])?;
    let stdin = io::stdin();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    while rustix::event::poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&now))? == 0 {
        child()?;
    }
    Ok(())
}

/// Several threads start them: one alone would wait for each exec.
fn burst(count: usize, per_second: usize) -> io::Result<()> {
    let threads = std::thread::available_parallelism()?.get();
    let began = Instant::now();
    let start = |first: usize| -> io::Result<()> {
        for index in (first..count).step_by(threads) {
            if let Some(at) = (index * 1_000_000).checked_div(per_second) {
                let at = Duration::from_micros(at as u64);
                std::thread::sleep(at.saturating_sub(began.elapsed()));
            }
            let program = if index % 2 == 0 { "/bin/true" } else { "/bin/false" };
            Command::new(program).arg(index.to_string()).env_clear().status()?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let start = &start;
        let all: Vec<_> = (0..threads).map(|first| scope.spawn(move || start(first))).collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| Error::other("a panic"))?)
    })?;
    let used = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = used.user_time() + used.system_time();
    let cpu_us = cpu.num_microseconds();
    let numbers = [cpu_us, used.max_rss(), used.minor_page_faults()];
    let pids = numbers.map(|number| u32::try_from(number).unwrap_or(u32::MAX));
    say_ready(&[&[std::process::id()], pids.as_slice()].concat())?;
    wait_for_end()
}

fn keep_crowd(count: usize, threaded_each: usize, busy_each: usize) -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    let is_each = |i: usize, each: usize| each != 0 && i % each == each - 1;
    let mut crowd = Vec::with_capacity(count);
    for i in 0..count {
        let arguments = crowd_arguments(i);
        let comm = arguments[0].rsplit('/').next().unwrap_or_default().trim_end_matches(':');
        let subject = Subject {
            comm: Some(comm.as_bytes().to_vec()),
            threads_more: if is_each(i, threaded_each) { CROWD_THREADS_MORE } else { 0 },
            busy_percent: u32::from(is_each(i, busy_each)),
            ..Subject::default()
        };
        let mut command = helper(&subject)?;
        command.arg0(&arguments[0]).args(&arguments[1..]);
        command.stdin(Stdio::inherit()).stdout(writer.as_fd().try_clone_to_owned()?);
        crowd.push(Kept(command.spawn()?));
    }
    drop(writer);
    let mut ready = 0;
    for line in BufReader::new(reader).lines().take(count) {
        let line = line?;
        if !line.starts_with("ready ") {
            return Err(Error::other(format!("one of the crowd says: {line}")));
        }
        ready += 1;
    }
    if ready < count {
        return Err(Error::other(format!("{} of the crowd ended", count - ready)));
    }
    let pids: Vec<u32> = crowd.iter().map(|child| child.0.id()).collect();
    say_ready(&pids)?;
    wait_for_end()?;
    // All are told to end before the first is waited for.
    for child in &mut crowd {
        child.0.kill()?;
    }
    Ok(())
}

/// Process 1 of a host: whatever lives there ends with it.
fn be_host(run_dir: &[u8]) -> io::Result<()> {
    let said = |what: &str, error: Errno| Error::other(format!("cannot mount {what}: {error}"));
    // The directory is opened first: it may lie in what the new /run covers.
    let run_dir = open(run_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Of this /proc, tools of the host see the host's processes alone.
    mount("proc", "/proc", "proc", MountFlags::empty(), None).map_err(|e| said("/proc", e))?;
    mount("run", "/run", "tmpfs", MountFlags::empty(), None).map_err(|e| said("/run", e))?;
    fs::create_dir("/run/kumo")?;
    let source = format!("/proc/self/fd/{}", run_dir.as_raw_fd());
    mount_bind(source, "/run/kumo").map_err(|e| said("/run/kumo", e))?;
    drop(run_dir);
    say_ready(&[std::process::id()])?;
    let stdin = io::stdin();
    let period = Timespec::try_from(REAP_PERIOD).map_err(Error::other)?;
    loop {
        match rustix::event::poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&period)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        // Orphans become children of process 1.
        while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
    }
}

/// A child that is killed and reaped when this is dropped.
struct Kept(Child);

impl Kept {
    /// Starts a subject on our own lifeline and waits until it is ready.
    fn spawn(subject: &Subject, name: &str) -> io::Result<Kept> {
        let mut command = helper(subject)?;
        command.arg0(name).stdin(Stdio::inherit()).stdout(Stdio::piped());
        let mut child = Kept(command.spawn()?);
        let mut line = String::new();
        if let Some(stdout) = child.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.starts_with("ready ") { Ok(child) } else { Err(Error::other(line)) }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // It may have ended already; then there is only the reaping left.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program again, in the role of `subject`.
fn helper(subject: &Subject) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env_clear().env(ROLE_VARIABLE, Role::Subject(subject.clone()).to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

fn say_ready(pids: &[u32]) -> io::Result<()> {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    io::stdout().write_all(format!("ready {}\n", pids.join(" ")).as_bytes())
}

/// Blocks until the owner lets go. It never writes, so anything but the end is ignored.
fn wait_for_end() -> io::Result<()> {
    io::copy(&mut io::stdin().lock().by_ref(), &mut io::sink()).map(drop)
}
