//! A descriptor that means one process for ever.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process, held by a descriptor: what is sent through it never reaches another process, even
/// when the kernel gives the process number again.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
}

/// What became of a process that was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It has ended; it may still be a zombie until its parent has read its exit code.
    Yes,
    /// It still runs, and the time is over.
    NotYet,
}

impl PidFd {
    /// Opens the process that has the number `pid` now. The caller must still check that it is the
    /// one that was meant: the number may have been given again since it was seen.
    ///
    /// # Errors
    /// `ESRCH` if there is none, `EINVAL` or `ENOENT` if `pid` is not above 0 or names a thread that
    /// does not lead its process, `ENOSYS` before Linux 5.3, `EMFILE` when descriptors run out.
    pub fn open(pid: i32) -> io::Result<PidFd> {
        let pid = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Ok(PidFd { fd: pidfd_open(pid, PidfdFlags::empty())? })
    }

    /// Takes a process descriptor that the kernel or another process gave.
    pub fn from_fd(fd: OwnedFd) -> PidFd {
        PidFd { fd }
    }

    /// Sends the signal with this number, 1 to 64. A real-time signal is queued.
    ///
    /// # Errors
    /// `ESRCH` if the process has ended and was reaped, `EPERM` without the right to, `EINVAL` for
    /// no signal number. Nothing was sent then.
    pub fn send_signal(&self, number: i32) -> io::Result<()> {
        let no_info: *const libc::siginfo_t = std::ptr::null();
        let (fd, no_flags) = (self.fd.as_raw_fd(), 0_u32);
        // SAFETY: the descriptor is open as long as `self` lives. A null `siginfo_t` makes the kernel
        // fill in its own, so no memory of ours is read or written.
        let result =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, number, no_info, no_flags) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits until the process has ended, at most `time_max`; without one, as long as it takes.
    /// Asking does not reap it: that stays with its parent.
    ///
    /// # Errors
    /// What `poll` says; the process is as it was.
    pub fn wait(&self, time_max: Option<Duration>) -> io::Result<Ended> {
        let began = Instant::now();
        loop {
            let left = time_max.map(|max| max.saturating_sub(began.elapsed()));
            // A time beyond what the kernel takes is as good as for ever.
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Ok(0) => return Ok(Ended::NotYet),
                Ok(_) => return Ok(Ended::Yes),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for PidFd {
    /// Readable once the process has ended, for who waits for many things at once.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// A process of ours that ends when its standard input closes; killed and reaped on drop.
    struct Cat(Child);

    impl Cat {
        fn spawn() -> Cat {
            let mut cat = Command::new("cat");
            let child = cat.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
            Cat(child.expect("cat starts"))
        }
    }

    impl Drop for Cat {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    #[test]
    fn a_signal_ends_it_and_waiting_sees_that() {
        let mut cat = Cat::spawn();
        let pidfd = PidFd::open(cat.0.id() as i32).expect("it lives");
        assert_eq!(pidfd.wait(Some(Duration::ZERO)).expect("poll works"), Ended::NotYet);
        pidfd.send_signal(libc::SIGKILL).expect("it is ours");
        assert_eq!(pidfd.wait(None).expect("poll works"), Ended::Yes);
        cat.0.wait().expect("it is our child");
        let gone = pidfd.send_signal(libc::SIGKILL).expect_err("it is gone");
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn what_is_no_process_is_refused() {
        for pid in [0, -1, i32::MIN] {
            let error = PidFd::open(pid).expect_err("no process has this number");
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "for {pid}");
        }
        let cat = Cat::spawn();
        let pidfd = PidFd::open(cat.0.id() as i32).expect("it lives");
        let error = pidfd.send_signal(1_000).expect_err("there is no such signal");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
