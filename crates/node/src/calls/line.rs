//! The line to one program: its control connection, and what waits until it reads on.
//!
//! Nobody ever waits for a program. What it does not read yet waits here, up to a limit; meanwhile
//! nothing more is read from it, so that its answers stay few.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kumo_abi::call::Cause;
use kumo_abi::control::{
    self, ControlError, FromNode, PACKET_BYTES_MAX, REQUESTS_MAX, Request, ToNode,
};
use kumo_sys::packet::{self, Wait};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::readiness;
use super::rules::Refusal;

/// Callers that wait until a server reads on. More would not be served sooner.
pub(super) const INCOMING_AHEAD_MAX: usize = 256;

/// Messages that wait. With an answer to each question that it may have open and the callers above,
/// there are never more for a program that plays by the rules.
const WAITING_MAX: usize = 2 * REQUESTS_MAX;

/// Messages of a program that are read in a row; then others have a turn.
const IN_A_ROW_MAX: usize = 16;

/// Most descriptors that a program passes with a message.
const FDS_MAX: usize = 1;

/// Why something was not told.
#[derive(Debug)]
pub(super) enum NotTold {
    /// The program does not read, and as much waits as may.
    Full,
    /// The kernel does not pass the descriptor.
    NotPassed(io::Error),
}

impl NotTold {
    /// As who wanted the connection is told.
    pub(super) fn refusal(self) -> Refusal {
        match self {
            NotTold::Full => {
                let message = "the program does not take connections as fast as they come";
                Refusal::new(Cause::Busy, message)
            }
            NotTold::NotPassed(error) => no_descriptors(&error),
        }
    }
}

/// What who wanted a connection is told where the kernel gives none.
pub(super) fn no_descriptors(error: &io::Error) -> Refusal {
    tracing::warn!("a connection could not be made: {error}");
    Refusal::new(Cause::Exhausted, "the node has no descriptors for another connection")
}

/// Why a program is not heard any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unheard {
    /// It has closed its end, or its process has ended.
    #[error("the program closed its connection")]
    Closed,
    /// It sent what is no message.
    #[error("the program sent what is no message")]
    Malformed(#[from] ControlError),
    /// It passed more descriptors than a message may have, or a packet that is too long.
    #[error("the program sent a packet that is too long, or with too many descriptors")]
    Packet(#[source] io::Error),
}

/// A message that waits.
struct Waiting {
    bytes: Vec<u8>,
    fd: Option<Arc<OwnedFd>>,
    /// Of a watch: a later one takes its place.
    watch: Option<Request>,
}

/// A control connection.
pub(super) struct Line {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<VecDeque<Waiting>>,
    /// Something waits that did not before.
    more: Notify,
    /// More had to wait than may: the program is let go.
    given_up: Notify,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

impl Line {
    /// A line over a connected socket. Call it within the runtime that will wait for it.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Line> {
        let socket = readiness(socket, Interest::READABLE | Interest::WRITABLE)?;
        let waiting = Mutex::default();
        Ok(Line { socket, waiting, more: Notify::new(), given_up: Notify::new() })
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the program something, now or as soon as it reads on.
    ///
    /// # Errors
    /// See [`NotTold`]; it will not be told.
    pub(super) fn tell(
        &self,
        message: &FromNode,
        fd: Option<&Arc<OwnedFd>>,
    ) -> Result<(), NotTold> {
        let bytes = match control::encode(message) {
            Ok(bytes) => bytes,
            Err(error) => {
                // All that a node says is within the limits: a bug of ours.
                tracing::error!("a program could not be told something: {error}");
                return Err(NotTold::Full);
            }
        };
        let watch = match message {
            FromNode::Service { request, .. } => Some(*request),
            _ => None,
        };
        let mut waiting = self.waiting();
        if waiting.is_empty() {
            match self.send(&bytes, fd) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if fd.is_some() && !is_gone(&error) => {
                    return Err(NotTold::NotPassed(error));
                }
                // A program that is gone is noticed where it is heard.
                Ok(()) | Err(_) => return Ok(()),
            }
        }
        if watch.is_some() {
            waiting.retain(|one| one.watch != watch);
        }
        let is_caller = matches!(message, FromNode::Incoming(_));
        if is_caller && waiting.len() >= INCOMING_AHEAD_MAX {
            return Err(NotTold::Full);
        }
        if waiting.len() >= WAITING_MAX {
            self.given_up.notify_one();
            return Err(NotTold::Full);
        }
        waiting.push_back(Waiting { bytes, fd: fd.cloned(), watch });
        self.more.notify_one();
        Ok(())
    }

    fn send(&self, bytes: &[u8], fd: Option<&Arc<OwnedFd>>) -> io::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = fd.iter().map(|fd| fd.as_fd()).collect();
        packet::send(self.socket.get_ref(), &[IoSlice::new(bytes)], &fds, Wait::No)
    }

    /// Sends what waits, as the program reads it. Returns when nothing waits.
    pub(super) async fn flush(&self) {
        loop {
            if self.waiting().is_empty() {
                return;
            }
            // An error is that the runtime stops, and everything with it.
            let Ok(mut ready) = self.socket.writable().await else { return };
            let mut waiting = self.waiting();
            while let Some(first) = waiting.front() {
                match self.send(&first.bytes, first.fd.as_ref()) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        break;
                    }
                    // What cannot be told any more is dropped: of a connection whose descriptor does not
                    // get through, the peer hears nothing until its budget is over.
                    Ok(()) | Err(_) => drop(waiting.pop_front()),
                }
            }
        }
    }

    /// Until something waits that did not before.
    pub(super) async fn more(&self) {
        self.more.notified().await;
    }

    /// Until the program has been given up.
    pub(super) async fn given_up(&self) {
        self.given_up.notified().await;
    }

    /// Whether nothing waits for the program.
    pub(super) fn is_read(&self) -> bool {
        self.waiting().is_empty()
    }

    /// The next messages of the program, at least one.
    pub(super) async fn hear(
        &self,
        messages: &mut Vec<(ToNode, Option<OwnedFd>)>,
    ) -> Result<(), Unheard> {
        let mut packet = vec![0; PACKET_BYTES_MAX];
        loop {
            let mut ready = self.socket.readable().await.map_err(|_| Unheard::Closed)?;
            while messages.len() < IN_A_ROW_MAX {
                match packet::receive(self.socket.get_ref(), &mut packet, FDS_MAX, Wait::No) {
                    Ok((0, _)) if messages.is_empty() => return Err(Unheard::Closed),
                    Ok((0, _)) => return Ok(()),
                    Ok((len_bytes, mut fds)) => match control::decode(&packet[..len_bytes]) {
                        Ok(message) => messages.push((message, fds.pop())),
                        // What came before it counts.
                        Err(_) if !messages.is_empty() => return Ok(()),
                        Err(error) => return Err(error.into()),
                    },
                    Err(error) => match error.kind() {
                        io::ErrorKind::WouldBlock => {
                            ready.clear_ready();
                            break;
                        }
                        io::ErrorKind::Interrupted => {}
                        _ if !messages.is_empty() => return Ok(()),
                        io::ErrorKind::InvalidData => return Err(Unheard::Packet(error)),
                        _ => return Err(Unheard::Closed),
                    },
                }
            }
            if !messages.is_empty() {
                return Ok(());
            }
        }
    }
}

/// Whether an error says that the peer is gone.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
