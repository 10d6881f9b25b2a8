//! Events by the kernel's proc connector: a netlink socket that tells numbers, and the rest is read from
//! `/proc` while it is there.
//!
//! It works where BPF does not, as root of the first PID and network namespaces. What it cannot know is
//! left open: of a process that lived for a millisecond often all but its number, its parent and how it
//! ended. It does not count what it loses; after an overrun the table is looked at anew.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{CONNECTOR, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
    sockopt,
};

use super::life::{Life, Used};
use super::records::{Key, Record, Told};
use crate::collect::ProcFs;
use crate::engine::boot_ns;
use crate::table::{End, Parts, Process};

/// Room in the socket: some ten thousand events, which need 300 bytes each there.
const SOCKET_BYTES: usize = 4 << 20;

/// The kernel says at once whether it will tell.
const ACK_WAIT_MAX: Duration = Duration::from_secs(1);

/// Processes whose first thread has ended and others have not: few programs do that.
const HEADLESS_MAX: usize = 1_024;

/// `linux/connector.h` and `linux/cn_proc.h`.
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
const PROC_EVENT_NONE: u32 = 0;
const PROC_EVENT_FORK: u32 = 1;
const PROC_EVENT_EXEC: u32 = 2;
const PROC_EVENT_EXIT: u32 = 0x8000_0000;

/// `NLMSG_DONE` of `linux/netlink.h`.
const NLMSG_DONE: u16 = 3;

/// The heads in front of an event: `struct nlmsghdr`, `struct cn_msg`.
const HEADS_BYTES: usize = 16 + 20;

/// What is read of a process while it is there.
const READ: Parts = Parts::STAT;

/// The socket.
pub(super) struct Connector {
    socket: OwnedFd,
    proc: ProcFs,
    /// Processes whose first thread has ended before others, with its status.
    headless: HashMap<i32, u32>,
    pub(super) overruns: u64,
}

/// All messages have been taken.
pub(super) struct Quiet;

/// What one message tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Ack { errno: u32 },
    Fork { tgid: i32 },
    Exec { tgid: i32 },
    Exit { pid: i32, tgid: i32, status: u32, ppid: i32 },
}

impl Connector {
    /// Opens the socket and asks the kernel to tell.
    ///
    /// # Errors
    /// Why this does not work here and what would help, for people.
    pub(super) fn open() -> Result<Connector, String> {
        let failed = |what: &'static str| {
            move |error: Errno| {
                let hint =
                    if error == Errno::PERM { "; run as root or with CAP_NET_ADMIN" } else { "" };
                format!("{what}: {error}{hint}")
            }
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(CONNECTOR))
            .map_err(failed("no netlink socket of the connector"))?;
        bind(&socket, &SocketAddrNetlink::new(0, CN_IDX_PROC))
            .map_err(failed("the kernel does not let us listen to its processes"))?;
        // Without the right to more, what the system allows has to do.
        sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BYTES))
            .map_err(failed("no room in the socket"))?;
        send(&socket, &listen_message(), SendFlags::empty())
            .map_err(failed("the kernel has no proc connector"))?;
        let proc = ProcFs::open().map_err(|error| format!("no /proc: {error}"))?;
        let connector = Connector { socket, proc, headless: HashMap::new(), overruns: 0 };
        connector.await_ack()?;
        Ok(connector)
    }

    fn await_ack(&self) -> Result<(), String> {
        let until = Instant::now() + ACK_WAIT_MAX;
        let mut buffer = [0; 1_024];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|error| error.to_string())?;
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left)) {
                Ok(0) => {
                    return Err(
                        "the kernel does not answer: its proc connector tells only who is \
                        in the first PID and network namespaces, if it has one"
                            .to_owned(),
                    );
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.to_string()),
            }
            let Ok((len, _)) = recv(&self.socket, &mut buffer, RecvFlags::empty()) else {
                continue;
            };
            match parse(&buffer[..len]) {
                Some(Message::Ack { errno: 0 }) => return Ok(()),
                Some(Message::Ack { errno }) => {
                    return Err(format!(
                        "the kernel refuses: {}",
                        Errno::from_raw_os_error(errno as i32)
                    ));
                }
                _ => {}
            }
        }
    }

    /// Readable when there are messages.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes the next message: the record that it makes, if it makes one.
    ///
    /// # Errors
    /// There is no message.
    pub(super) fn next(&mut self) -> Result<Option<Record>, Quiet> {
        let mut buffer = [0; 1_024];
        match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
            Ok((len, _)) => Ok(parse(&buffer[..len]).and_then(|message| self.record(message))),
            Err(Errno::NOBUFS) => {
                self.overruns += 1;
                self.headless.clear();
                Ok(None)
            }
            Err(Errno::INTR) => Ok(None),
            Err(_) => Err(Quiet),
        }
    }

    fn record(&mut self, message: Message) -> Option<Record> {
        let at_ns = boot_ns();
        // A start that is not known is 0.
        let key = |tgid: i32, row: Option<&Process>| Key {
            tgid,
            start_ns: row.map_or(0, |row| row.start_ns),
        };
        match message {
            Message::Ack { .. } => None,
            Message::Fork { tgid } => {
                Some(Record { key: key(tgid, None), at_ns, told: Told::Fork })
            }
            Message::Exec { tgid } => {
                let row = self.proc.one(tgid, READ | Parts::IDS | Parts::CMDLINE | Parts::CGROUP);
                // It may have ended, or be another process by now: the messages behind this one tell.
                let row = row.filter(|row| row.state != b'Z');
                let life = row.as_ref().map_or_else(|| unknown(tgid), Life::of_row);
                Some(Record { key: key(tgid, row.as_ref()), at_ns, told: Told::Exec(life) })
            }
            Message::Exit { pid, tgid, status, ppid } => {
                let row = self.proc.one(tgid, READ | Parts::IDS | Parts::CGROUP);
                let is_first = pid == tgid;
                let status = if is_first { status } else { self.headless.remove(&tgid)? };
                if row.as_ref().is_some_and(|row| row.state == b'Z' && row.threads > 1) {
                    // The first thread has ended, others have not.
                    if self.headless.len() < HEADLESS_MAX {
                        self.headless.insert(tgid, status);
                    }
                    return None;
                }
                // Only a zombie is certainly the one that ended.
                let row = row.filter(|row| row.state == b'Z');
                let life = row.as_ref().map_or_else(|| unknown(tgid), Life::of_row);
                let used = row.as_ref().map(|row| Used {
                    utime_ns: row.utime_ns,
                    stime_ns: row.stime_ns,
                    min_flt: row.min_flt,
                    maj_flt: row.maj_flt,
                    io: None,
                });
                let end = Some(End { at_ns, status, max_rss: None });
                let life = Life { ppid, end, used, line: None, ..life };
                Some(Record { key: key(tgid, row.as_ref()), at_ns, told: Told::Exit(life) })
            }
        }
    }
}

/// A process of which nothing could be read any more.
fn unknown(pid: i32) -> Life {
    Life { pid, ..Life::default() }
}

/// Asks the kernel to tell: `struct nlmsghdr`, `struct cn_msg`, and the wish.
fn listen_message() -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADS_BYTES + 4);
    let len = (HEADS_BYTES + 4) as u32;
    message.extend(len.to_ne_bytes());
    message.extend(NLMSG_DONE.to_ne_bytes());
    message.extend([0; 10]); // Flags, number, and us.
    message.extend(CN_IDX_PROC.to_ne_bytes());
    message.extend(CN_VAL_PROC.to_ne_bytes());
    message.extend([0; 8]); // Number and answer.
    message.extend(4_u16.to_ne_bytes());
    message.extend([0; 2]); // Flags.
    message.extend(PROC_CN_MCAST_LISTEN.to_ne_bytes());
    message
}

/// Reads one message; `None` for what is of no interest, or no message.
fn parse(bytes: &[u8]) -> Option<Message> {
    let event = bytes.get(HEADS_BYTES..)?;
    let number = |at: usize| Some(u32::from_ne_bytes(event.get(at..at + 4)?.try_into().ok()?));
    // What, CPU and time; the rest is of the kind.
    let field = |index: usize| number(16 + 4 * index);
    Some(match number(0)? {
        PROC_EVENT_NONE => Message::Ack { errno: field(0)? },
        // A new thread is no new process.
        PROC_EVENT_FORK if field(2)? == field(3)? => Message::Fork { tgid: field(3)? as i32 },
        PROC_EVENT_EXEC => Message::Exec { tgid: field(1)? as i32 },
        PROC_EVENT_EXIT => Message::Exit {
            pid: field(0)? as i32,
            tgid: field(1)? as i32,
            status: field(2)?,
            ppid: field(5).unwrap_or(0) as i32,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let message = |what: u32, fields: &[u32]| {
            let mut bytes = vec![0; HEADS_BYTES];
            bytes.extend(what.to_ne_bytes());
            bytes.extend([0; 12]);
            for field in fields {
                bytes.extend(field.to_ne_bytes());
            }
            bytes
        };
        let exit = Message::Exit { pid: 8, tgid: 7, status: 9, ppid: 3 };
        let cases = [
            (message(PROC_EVENT_NONE, &[1]), Some(Message::Ack { errno: 1 })),
            (message(PROC_EVENT_FORK, &[1, 1, 7, 7]), Some(Message::Fork { tgid: 7 })),
            (message(PROC_EVENT_FORK, &[1, 1, 8, 7]), None),
            (message(PROC_EVENT_EXEC, &[8, 7]), Some(Message::Exec { tgid: 7 })),
            (message(PROC_EVENT_EXIT, &[8, 7, 9, 17, 3, 3]), Some(exit)),
            (message(PROC_EVENT_EXIT, &[8, 7]), None),
            (message(0x200, &[1, 2]), None),
            (vec![0; HEADS_BYTES], None),
            (Vec::new(), None),
        ];
        for (bytes, want) in cases {
            assert_eq!(parse(&bytes), want);
        }
        assert_eq!(listen_message().len(), HEADS_BYTES + 4);
    }
}
