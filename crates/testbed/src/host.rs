//! A host of a world: a place with network, processes, mounts and a name of its own.
//!
//! [`Host`] is a thread that entered the namespaces; what it starts lives there. The first process
//! is the helper `kumo-zoo` in the role of a host's process 1: when that ends, the kernel ends all
//! others, so nothing outlives a killed test.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;

use kumo_abi::HostId;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::system::sethostname;

use crate::helper;
use crate::net::{NetError, namespace_file, system};
use crate::role::Role;
use crate::zoo::Animal;

/// Longest name that the kernel keeps of a host.
const HOST_NAME_BYTES_MAX: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// A host. Whatever was started here must be waited for by its owner before this is dropped: the
/// kernel keeps process 1 until then.
#[derive(Debug)]
pub(crate) struct Host {
    /// `None` once it is gone.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    init: Option<Animal>,
}

impl Host {
    /// Makes a host in a network namespace. `run_dir` becomes its `/run/kumo`.
    ///
    /// # Errors
    /// When the system does not let us make one; nothing is left behind.
    pub(crate) fn new(id: &HostId, namespace: &str, run_dir: &Path) -> Result<Host, NetError> {
        // Found before the thread enters: there, /proc is another.
        helper::path();
        let (jobs, todo) = channel::<Job>();
        let (say, said) = sync_channel(1);
        let mut name = format!("{}-{}", id.dc, id.host).into_bytes();
        name.truncate(HOST_NAME_BYTES_MAX);
        let network = namespace_file(namespace);
        let role = Role::Host { run_dir: run_dir.as_os_str().as_bytes().to_vec() };
        let thread = std::thread::Builder::new().name(format!("host {id}")).spawn(move || {
            let entered = enter(&network, &name).map_err(|error| error.to_string());
            let init = entered.and_then(|()| Animal::try_spawn(&role, &[b"init"]));
            // Nobody who asks for a host goes away before its answer.
            let _ = say.send(init.map(|(init, _)| init));
            work(&todo);
        });
        let what = || format!("make host {id}");
        let thread = thread.map_err(|source| system(what(), source))?;
        let mut host = Host { jobs: Some(jobs), thread: Some(thread), init: None };
        let init = said.recv().map_err(|_| "it ended".to_owned()).and_then(|init| init);
        host.init = Some(init.map_err(|said| system(what(), io::Error::other(said)))?);
        Ok(host)
    }

    /// Process number of its process 1, seen from here.
    pub(crate) fn init_pid(&self) -> i32 {
        self.init.as_ref().map_or(0, Animal::keeper_pid)
    }

    /// Starts a program here.
    pub(crate) fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.run(move || command.spawn())
    }

    /// Lets the thread of the host do something, and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (give, take) = sync_channel(1);
        let job: Job = Box::new(move || {
            // Taken below, always.
            let _ = give.send(job());
        });
        let jobs = self.jobs.as_ref().expect("a host has its thread until it is dropped");
        jobs.send(job).expect("the thread of a host lives as long as the host");
        take.recv().expect("what a host's thread is asked to do does not panic")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.init.take());
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // It has panicked before, and said so.
            let _ = thread.join();
        }
    }
}

fn work(todo: &Receiver<Job>) {
    while let Ok(job) = todo.recv() {
        job();
    }
}

/// Makes this thread, and what it starts, live in namespaces of a host. PIDs of a new namespace go to
/// children alone, so the thread itself stays where it is.
fn enter(network: &Path, name: &[u8]) -> io::Result<()> {
    setns(File::open(network)?, CloneFlags::CLONE_NEWNET)?;
    let own = CloneFlags::CLONE_FS
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS;
    unshare(own)?;
    // What is mounted in a host is not seen outside.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    sethostname(name)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Net, Place, Plan, is_there_for_tests};
    use std::fs;
    use std::process::Stdio;
    use std::time::Duration;

    #[test]
    fn a_host_has_what_is_its_own_and_ends_as_one() {
        if !is_there_for_tests() {
            return;
        }
        let net = Net::new(Plan::even(1, 1, 1, Duration::ZERO).expect("a plan")).expect("a net");
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("mark"), "").expect("a file");
        let id: HostId = "tokyo/a".parse().expect("a host");
        let namespace = net.namespace(&Place::Host(id.clone()));
        let host = Host::new(&id, &namespace, dir.path()).expect("a host");
        let script = "cat /proc/sys/kernel/hostname; ls -d /proc/[0-9]*; ls /run /run/kumo; \
            cat /proc/net/dev; exec cat";
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = host.spawn(command).expect("it starts");
        let outer = child.id();
        assert!(crate::net::is_alive(outer), "its number here is that of this machine");
        drop(child.stdin.take());
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8(output.stdout).expect("text");
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words.first(), Some(&"tokyo-a"), "{said}");
        for wanted in ["/proc/1", "kumo", "mark", "eth0:"] {
            assert!(words.contains(&wanted), "no {wanted} in {said}");
        }
        assert!(words.iter().filter(|word| word.starts_with("/proc/")).count() <= 4, "{said}");

        let mut command = Command::new("sleep");
        command.arg("1000");
        let mut left = host.spawn(command).expect("it starts");
        let init = host.init_pid();
        // As the kernel does when the owner dies: the lifeline closes, and process 1 takes all along.
        let reaped = std::thread::spawn(move || left.wait());
        drop(host);
        let status = reaped.join().expect("no panic").expect("it ended");
        assert!(!status.success(), "{status}");
        assert!(!crate::net::is_alive(init as u32));
    }
}
