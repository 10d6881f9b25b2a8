//! The smallest honest node: it grants pairs, watches processes, writes notices, shuts what must end.
//!
//! What it decides is in [`broker`]; here are the sockets and pages. And
//! [`Program`], a real process of a role: this test binary itself, run again with an argument.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

mod broker;
pub mod secure;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use broker::{At, Broker, Ending, ProgramId};
use kumo_abi::call::{Cause, GrantId, InstanceId, MethodPattern, Who};
use kumo_abi::control::{
    self, Carrier, Certificate, End, FromNode, PACKET_BYTES_MAX, PACKET_FDS_MAX, ServiceState,
    ToNode,
};
use kumo_abi::page::program::{IN_FLIGHT_MAX, in_flight_at};
use kumo_abi::page::{InFlight, Notice, RECEIPTS_BYTES, WORD_BYTES, notice, program};
use kumo_sys::packet::{self, Wait};
use kumo_sys::{OwnPage, PeerPage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};

/// A call in flight for longer is looked after: does its callee stand still?
const SUSPENDED_AFTER: Duration = Duration::from_millis(100);

struct Known {
    socket: OwnedFd,
    process: kumo_sys::Peer,
    page: Option<PeerPage>,
    notices: OwnPage,
}

/// A node in a thread of the test. It ends, and its directory goes, when it is dropped.
pub struct TestNode {
    dir: tempfile::TempDir,
    over: Arc<AtomicBool>,
    grants: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl TestNode {
    pub fn start() -> TestNode {
        TestNode::start_in(tempfile::tempdir().unwrap(), None)
    }

    /// One that gives all pairs this carrier, as if they were on different hosts; it knows what a callee
    /// had taken, as the nodes of both hosts would.
    pub fn start_with(carrier: Carrier) -> TestNode {
        TestNode::start_in(tempfile::tempdir().unwrap(), Some(carrier))
    }

    /// Ends, and begins anew in the same place, knowing nothing.
    pub fn restart(mut self) -> TestNode {
        self.end();
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        std::fs::remove_file(dir.path().join(control::SOCKET_NAME)).unwrap();
        TestNode::start_in(dir, None)
    }

    fn start_in(dir: tempfile::TempDir, carrier: Option<Carrier>) -> TestNode {
        let listening = packet::listen_at(&dir.path().join(control::SOCKET_NAME)).unwrap();
        let (over, grants) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let shell = Shell {
            listening,
            broker: Broker::new("dc/host".parse().unwrap()),
            known: HashMap::new(),
            sockets: HashMap::new(),
            programs: 0,
            carrier,
            over: over.clone(),
            grants: grants.clone(),
        };
        let thread = Some(std::thread::spawn(move || shell.run()));
        TestNode { dir, over, grants, thread }
    }

    pub fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    /// How many grants are open.
    pub fn grants(&self) -> usize {
        self.grants.load(Ordering::SeqCst)
    }

    fn end(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the test's node panicked");
        }
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.end();
    }
}

struct Shell {
    listening: OwnedFd,
    broker: Broker,
    known: HashMap<ProgramId, Known>,
    sockets: HashMap<GrantId, OwnedFd>,
    programs: ProgramId,
    carrier: Option<Carrier>,
    over: Arc<AtomicBool>,
    grants: Arc<AtomicUsize>,
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    u64::from_le_bytes(bytes).max(1)
}

impl Shell {
    fn run(mut self) {
        let mut looked = Instant::now();
        while !self.over.load(Ordering::SeqCst) {
            let mut ids: Vec<ProgramId> = self.known.keys().copied().collect();
            ids.sort_unstable();
            let mut fds = vec![PollFd::new(&self.listening, PollFlags::IN)];
            for id in &ids {
                fds.push(PollFd::new(&self.known[id].socket, PollFlags::IN));
                fds.push(PollFd::from_borrowed_fd(
                    self.known[id].process.process.as_fd(),
                    PollFlags::IN,
                ));
            }
            let tick = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            poll(&mut fds, Some(&tick)).ok();
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                self.welcome();
            }
            for (at, id) in ids.into_iter().enumerate() {
                // A death first: whatever it still said is of no use to it.
                if ready[2 + 2 * at] {
                    self.gone(id, Cause::Died);
                } else if ready[1 + 2 * at] {
                    self.hear(id);
                }
            }
            if looked.elapsed() > SUSPENDED_AFTER / 2 {
                self.look_for_suspended();
                looked = Instant::now();
            }
            self.grants.store(self.broker.grants(), Ordering::SeqCst);
        }
    }

    fn welcome(&mut self) {
        let socket = packet::accept(&self.listening).unwrap();
        // One that has ended by now is nobody.
        let Ok(process) = kumo_sys::peer(&socket) else { return };
        let notices = OwnPage::new("notices", notice::LEN_BYTES).unwrap();
        notices.store(notice::MAGIC_AT, notice::MAGIC, Ordering::Release);
        self.programs += 1;
        self.broker.hello(self.programs, process.pid, Who::User(process.uid));
        self.known.insert(self.programs, Known { socket, process, page: None, notices });
    }

    fn send(&self, to: ProgramId, message: &FromNode, fd: Option<&OwnedFd>) {
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        let bytes = control::encode(message).unwrap();
        packet::send(&self.known[&to].socket, &[IoSlice::new(&bytes)], &fds, Wait::No).ok();
    }

    fn hear(&mut self, from: ProgramId) {
        let mut packet = vec![0; PACKET_BYTES_MAX];
        let known = &self.known[&from];
        let received = packet::receive(&known.socket, &mut packet, PACKET_FDS_MAX, Wait::No);
        let (len_bytes, mut fds) = match received {
            Ok((0, _)) | Err(_) => {
                // The kernel closes the sockets of a process that ends before its descriptor says so.
                let ended = known.process.process.wait(Some(Duration::from_millis(50))).unwrap();
                let died = ended == kumo_sys::Ended::Yes;
                return self.gone(from, if died { Cause::Died } else { Cause::Lost });
            }
            Ok(received) => received,
        };
        let Ok(message) = control::decode(&packet[..len_bytes]) else {
            return self.gone(from, Cause::Malformed);
        };
        match message {
            ToNode::Hello { .. } => {
                let page = PeerPage::new(&fds.pop().unwrap(), program::LEN_BYTES).unwrap();
                self.known.get_mut(&from).unwrap().page = Some(page);
                let welcome = FromNode::Welcome {
                    cluster: None,
                    host: "dc/host".parse().unwrap(),
                    who: Who::User(0),
                };
                let page = self.known[&from].notices.as_fd().try_clone_to_owned().unwrap();
                self.send(from, &welcome, Some(&page));
            }
            ToNode::Open(open) => {
                let grant = GrantId(random());
                match self.broker.open(from, &open, grant, vec![MethodPattern::any()]) {
                    Ok(mut pair) => {
                        let (caller, callee) = match self.carrier {
                            None => packet::pair().unwrap(),
                            Some(carrier) => {
                                pair.granted.carrier = carrier;
                                pair.incoming.carrier = carrier;
                                if carrier == Carrier::Tls {
                                    let index = pair.incoming.connection as u16;
                                    pair.incoming.receipts = Some(index);
                                    // Of an older connection with this index.
                                    assert!(index < program::REMOTE_MAX as u16);
                                }
                                tcp_pair()
                            }
                        };
                        self.open(At { program: from, connection: pair.granted.connection });
                        self.open(At {
                            program: pair.callee,
                            connection: pair.incoming.connection,
                        });
                        self.send(pair.callee, &FromNode::Incoming(pair.incoming), Some(&callee));
                        self.send(from, &FromNode::Granted(pair.granted), Some(&caller));
                        self.sockets.insert(grant, caller);
                    }
                    Err(refusal) => self.refuse(from, open.request, refusal),
                }
            }
            ToNode::Serve(serve) => match self.broker.serve(from, &serve, InstanceId(random())) {
                Ok(serving) => {
                    self.send(from, &FromNode::Serving { request: serve.request, serving }, None);
                }
                Err(refusal) => self.refuse(from, serve.request, refusal),
            },
            ToNode::Drain { instance } => self.broker.drain(from, instance),
            ToNode::Ended { instance } => self.broker.ended(from, instance),
            ToNode::Closed { connection } => {
                let ending = self.broker.closed(At { program: from, connection });
                if let Some(ending) = ending {
                    self.end(&ending);
                }
            }
            ToNode::Resume(resume) => {
                self.broker.resume(from, &resume).unwrap();
                self.sockets.insert(resume.grant, fds.pop().unwrap());
            }
            ToNode::Certificate { request, .. } => {
                // What the tests bring to decide whom to believe does not look at it.
                let certificate = Certificate {
                    chain: vec![],
                    key: vec![],
                    authority: vec![],
                    not_after_ms: u64::MAX,
                    evicted: vec![],
                };
                self.send(from, &FromNode::Certificate { request, certificate }, None);
            }
            ToNode::Watch { request, service } => {
                let ready = self.broker.services().find(|(name, _)| **name == service);
                let ready = ready.map_or(0, |(_, ready)| ready as u32);
                let state = ServiceState { ready, asleep: 0, silent_hosts: 0 };
                self.send(from, &FromNode::Service { request, state }, None);
            }
            ToNode::Unwatch { .. } => {}
        }
    }

    fn refuse(&self, to: ProgramId, request: u64, refusal: broker::Refusal) {
        let message = FromNode::Refused {
            request,
            cause: refusal.cause,
            message: refusal.message,
            retry_after_ms: refusal.retry_after_ms,
            path: vec![],
        };
        self.send(to, &message, None);
    }

    fn open(&self, at: At) {
        let page = &self.known[&at.program].notices;
        page.store(notice::state_at(at.connection), 0, Ordering::Release);
    }

    fn gone(&mut self, program: ProgramId, cause: Cause) {
        let others: HashMap<At, u32> = (0..notice::CONNECTIONS_MAX as u32)
            .filter_map(|connection| {
                let other = self.broker.other_end(At { program, connection })?;
                Some((other, connection))
            })
            .collect();
        let endings = self.broker.gone(program, cause);
        let Some(dead) = self.known.remove(&program) else { return };
        for ending in &endings {
            if self.carrier == Some(Carrier::Tls)
                && let [(End::Caller, at)] = ending.ends[..]
                && let Some(page) = &dead.page
            {
                // The callee is dead, its page is not.
                let (own, index) = (&self.known[&at.program].notices, others[&at] as u16);
                for place in (0..RECEIPTS_BYTES).step_by(WORD_BYTES) {
                    let id = page.load(program::receipts_at(index) + place, Ordering::Acquire);
                    own.store(notice::taken_at(at.connection) + place, id, Ordering::Release);
                }
                let word = Notice { cause, taken_known: true }.word();
                own.store(notice::state_at(at.connection), word, Ordering::Release);
                if let Some(socket) = self.sockets.remove(&ending.grant) {
                    shutdown(&socket, Shutdown::Both).ok();
                }
            } else {
                self.end(ending);
            }
        }
    }

    fn end(&mut self, ending: &Ending) {
        for (_, at) in &ending.ends {
            let word = Notice { cause: ending.cause, taken_known: false }.word();
            let page = &self.known[&at.program].notices;
            page.store(notice::state_at(at.connection), word, Ordering::Release);
        }
        fence(Ordering::SeqCst);
        if let Some(socket) = self.sockets.remove(&ending.grant) {
            shutdown(&socket, Shutdown::Both).ok();
        }
    }

    fn look_for_suspended(&mut self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        let mut still = Vec::new();
        for (id, known) in &self.known {
            let Some(page) = &known.page else { continue };
            for index in 0..IN_FLIGHT_MAX {
                let at_bytes = in_flight_at(index);
                if page.load(at_bytes, Ordering::Acquire) == 0 {
                    continue;
                }
                let words = std::array::from_fn(|word| {
                    page.load(at_bytes + word * WORD_BYTES, Ordering::Acquire)
                });
                let Some(call) = InFlight::from_words(words) else { continue };
                let waits_ns = now_ns.saturating_sub(call.since_ns);
                if waits_ns < SUSPENDED_AFTER.as_nanos() as u64 {
                    continue;
                }
                let at = At { program: *id, connection: call.connection };
                still.extend(self.broker.other_end(at).map(|callee| callee.program));
            }
        }
        still.sort_unstable();
        still.dedup();
        for callee in still {
            let Some(known) = self.known.get(&callee) else { continue };
            if state(known.process.pid) == Some('T') {
                let endings = self.broker.of_callee(callee, Cause::Suspended);
                for ending in &endings {
                    self.end(ending);
                }
            }
        }
    }
}

/// Two ends of a TCP connection.
fn tcp_pair() -> (OwnedFd, OwnedFd) {
    let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let near = std::net::TcpStream::connect(listening.local_addr().unwrap()).unwrap();
    let (far, from) = listening.accept().unwrap();
    assert_eq!(from, near.local_addr().unwrap());
    (near.into(), far.into())
}

/// The state of a process, as the kernel writes it.
pub fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// A process that plays a role; killed and reaped on drop.
pub struct Program {
    child: Child,
    pub stdin: Option<ChildStdin>,
    pub stdout: BufReader<ChildStdout>,
}

impl Program {
    /// This binary again, with the role in its environment. It is ready when it has written a line.
    pub fn spawn(role: &str, node: &TestNode) -> Program {
        let mut program = Program::spawn_with(role, node.run_dir().to_owned(), &[]);
        assert_eq!(program.line(), "ready", "the role {role} begins");
        program
    }

    pub fn spawn_with(role: &str, run_dir: PathBuf, more: &[(&str, &str)]) -> Program {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "role", "--nocapture", "--quiet"])
            .env("MIDDLECON_ROLE", role)
            .env("MIDDLECON_DIR", run_dir)
            .envs(more.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Program { child, stdin, stdout }
    }

    /// The next line that it writes, without what the test harness writes.
    pub fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "the program has ended");
            if let Some((_, line)) = line.split_once("> ") {
                return line.trim_end().to_owned();
            }
        }
    }

    pub fn say(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, number: i32) {
        kumo_sys::PidFd::open(self.pid() as i32).unwrap().send_signal(number).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it has ended by itself, successfully.
    pub fn wait(mut self) -> bool {
        drop(self.stdin.take());
        self.child.wait().unwrap().success()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Writes a line that [`Program::line`] reads.
pub fn tell(line: &str) {
    println!("> {line}");
    std::io::stdout().flush().unwrap();
}

/// Waits until something is so; fails after 10 s.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < Duration::from_secs(10), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
