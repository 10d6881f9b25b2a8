//! Bytes in both directions between the link to another host and the local socket of the control plane.
//!
//! An idle splice has no buffers: what is read goes through a scratch of the thread, and only what the
//! other side does not take at once is kept, at most [`SPLICE_BYTES_MAX`] for each direction.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};

/// What is read at once, and so the most that one direction keeps: a batch of the control plane.
pub(super) const SPLICE_BYTES_MAX: usize = 64 * 1024;

/// When one side has ended, what the other still sends is passed on for so long.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// While the other host takes nothing, it is looked so often whether the local side still waits: what
/// the control plane gave up must not stay until TCP gives up too.
const STALL_LOOK: Duration = Duration::from_millis(250);

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SPLICE_BYTES_MAX].into_boxed_slice());
}

/// What went over a link.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Bytes from the other host that were passed on.
    pub(super) received_bytes: AtomicU64,
    /// Bytes to the other host that were passed on.
    pub(super) sent_bytes: AtomicU64,
}

/// Which side of a splice ended first, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The local socket.
    Local,
    /// The other host said good-bye, as TLS does it.
    Remote,
    /// The other host's connection went without a good-bye: its process died, or reset it.
    RemoteAbrupt,
    /// The other host's TCP does not answer any more.
    RemoteLost,
}

/// A link and a local socket whose bytes go to each other.
pub(super) struct Splice<'a, R, L> {
    remote: R,
    local: L,
    traffic: &'a Traffic,
    inward: Direction,
    outward: Direction,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<'a, R, L> Splice<'a, R, L>
where
    R: AsyncRead + AsyncWrite + Unpin,
    L: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn new(remote: R, local: L, traffic: &'a Traffic) -> Splice<'a, R, L> {
        let (inward, outward) = (Direction::default(), Direction::default());
        Splice { remote, local, traffic, inward, outward, stalled: None }
    }

    /// Passes bytes until one side ends. Nothing is lost when this is dropped and called again.
    ///
    /// `is_gone` says whether the local side was closed, without reading from it.
    pub(super) async fn until_one_ends(&mut self, is_gone: impl Fn(&L) -> bool) -> Ended {
        let Splice { remote, local, traffic, inward, outward, stalled } = self;
        poll_fn(|cx| {
            // Inward first: a good-bye that has arrived counts more than that writing now fails.
            let end = inward.poll(cx, remote, local, &traffic.received_bytes);
            if let Poll::Ready(end) = end {
                return Poll::Ready(match end {
                    End::Source(None) => Ended::Remote,
                    End::Source(Some(error)) => remote_error(&error),
                    End::Sink(_) => Ended::Local,
                });
            }
            match outward.poll(cx, local, remote, &traffic.sent_bytes) {
                Poll::Ready(End::Source(_)) => return Poll::Ready(Ended::Local),
                Poll::Ready(End::Sink(error)) => return Poll::Ready(remote_error(&error)),
                Poll::Pending => {}
            }
            if outward.left.is_empty() {
                *stalled = None;
                return Poll::Pending;
            }
            let look = stalled.get_or_insert_with(|| Box::pin(sleep(STALL_LOOK)));
            while look.as_mut().poll(cx).is_ready() {
                if is_gone(local) {
                    return Poll::Ready(Ended::Local);
                }
                look.set(sleep(STALL_LOOK));
            }
            Poll::Pending
        })
        .await
    }

    /// Ends the other side too: it hears of the end, and has [`LINGER`] to send what it still has.
    pub(super) async fn finish(mut self, ended: Ended) {
        let Splice { remote, local, traffic, inward, outward, .. } = &mut self;
        let rest = async {
            match ended {
                Ended::Remote => {
                    shut(local).await?;
                    poll_fn(|cx| outward.poll(cx, local, remote, &traffic.sent_bytes)).await;
                    shut(remote).await
                }
                Ended::Local => {
                    shut(remote).await?;
                    poll_fn(|cx| inward.poll(cx, remote, local, &traffic.received_bytes)).await;
                    shut(local).await
                }
                Ended::RemoteAbrupt | Ended::RemoteLost => Ok(()),
            }
        };
        // Whether it could be told changes nothing: both sides are closed now.
        let _ = timeout(LINGER, rest).await;
    }
}

async fn shut(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await
}

fn remote_error(error: &io::Error) -> Ended {
    use io::ErrorKind::{HostUnreachable, InvalidData, NetworkDown, NetworkUnreachable, TimedOut};
    match error.kind() {
        TimedOut | HostUnreachable | NetworkUnreachable | NetworkDown => Ended::RemoteLost,
        InvalidData => Ended::Remote, // An alert of TLS: it closed the link, and says why.
        _ => Ended::RemoteAbrupt,
    }
}

/// How a direction ended.
enum End {
    /// Its source, with an error or by its own will. All that came from it was passed on.
    Source(Option<io::Error>),
    /// Its sink takes no more.
    Sink(io::Error),
}

/// What one direction still has to pass on.
#[derive(Default)]
struct Direction {
    left: Vec<u8>,
    passed: usize,
    flush: bool,
}

impl Direction {
    /// Passes on what can be passed on now. Ready when the direction has ended.
    fn poll<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut D,
        count: &AtomicU64,
    ) -> Poll<End>
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        if let Err(error) = ready!(self.poll_left(cx, sink, count)) {
            return Poll::Ready(End::Sink(error));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            // Sockets give the thread back after some rounds, by the budget of the runtime.
            loop {
                let mut read = ReadBuf::new(scratch);
                match Pin::new(&mut *source).poll_read(cx, &mut read) {
                    Poll::Ready(Err(error)) => return Poll::Ready(End::Source(Some(error))),
                    Poll::Ready(Ok(())) if read.filled().is_empty() => {
                        return Poll::Ready(End::Source(None));
                    }
                    Poll::Ready(Ok(())) => {}
                    Poll::Pending => {
                        if self.flush {
                            match ready!(Pin::new(&mut *sink).poll_flush(cx)) {
                                Ok(()) => self.flush = false,
                                Err(error) => return Poll::Ready(End::Sink(error)),
                            }
                        }
                        return Poll::Pending;
                    }
                }
                let mut bytes = read.filled();
                self.flush = true;
                while !bytes.is_empty() {
                    match Pin::new(&mut *sink).poll_write(cx, bytes) {
                        Poll::Ready(Ok(len)) if len > 0 => {
                            count.fetch_add(len as u64, Ordering::Relaxed);
                            bytes = &bytes[len..];
                        }
                        Poll::Ready(Ok(_)) => {
                            return Poll::Ready(End::Sink(io::ErrorKind::WriteZero.into()));
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(End::Sink(error)),
                        Poll::Pending => {
                            self.left.extend_from_slice(bytes);
                            return Poll::Pending;
                        }
                    }
                }
            }
        })
    }

    /// Passes on what was kept; then nothing is.
    fn poll_left<D>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut D,
        count: &AtomicU64,
    ) -> Poll<io::Result<()>>
    where
        D: AsyncWrite + Unpin,
    {
        while self.passed < self.left.len() {
            let len = ready!(Pin::new(&mut *sink).poll_write(cx, &self.left[self.passed..]))?;
            if len == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            count.fetch_add(len as u64, Ordering::Relaxed);
            self.passed += len;
        }
        (self.left, self.passed) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn a_half_closed_side_still_gets_its_answer() {
        let traffic = Traffic::default();
        // Narrow pipes: every write is cut in pieces, and what is left is kept.
        let ((remote, mut peer), (local, mut ours)) = (duplex(7), duplex(5));
        let splice = async {
            let mut splice = Splice::new(remote, local, &traffic);
            let ended = splice.until_one_ends(|_| false).await;
            splice.finish(ended).await;
            ended
        };
        let asks = async {
            ours.write_all(b"a question of 25 bytes...").await.expect("it is open");
            ours.shutdown().await.expect("it is open");
            let mut answer = String::new();
            ours.read_to_string(&mut answer).await.expect("it is open");
            answer
        };
        let answers = async {
            let mut question = String::new();
            peer.read_to_string(&mut question).await.expect("it is open");
            peer.write_all(b"an answer of 20 byte").await.expect("it is open");
            drop(peer);
            question
        };
        let (ended, answer, question) = tokio::join!(splice, asks, answers);
        assert_eq!(ended, Ended::Local);
        assert_eq!(question, "a question of 25 bytes...");
        assert_eq!(answer, "an answer of 20 byte");
        assert_eq!(traffic.sent_bytes.into_inner(), 25);
        assert_eq!(traffic.received_bytes.into_inner(), 20);
    }

    #[tokio::test]
    async fn a_local_side_that_gave_up_is_seen_while_the_other_host_takes_nothing() {
        let traffic = Traffic::default();
        let ((remote, _frozen), (local, mut ours)) = (duplex(4), duplex(64));
        ours.write_all(b"more than the other host takes").await.expect("it is open");
        let mut splice = Splice::new(remote, local, &traffic);
        let ended = timeout(Duration::from_secs(10), splice.until_one_ends(|_| true)).await;
        assert_eq!(ended, Ok(Ended::Local));
        assert_eq!(traffic.sent_bytes.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn errors_of_the_link_tell_death_from_silence() {
        use io::ErrorKind;
        let cases = [
            (ErrorKind::UnexpectedEof, Ended::RemoteAbrupt),
            (ErrorKind::ConnectionReset, Ended::RemoteAbrupt),
            (ErrorKind::TimedOut, Ended::RemoteLost),
            (ErrorKind::HostUnreachable, Ended::RemoteLost),
            (ErrorKind::InvalidData, Ended::Remote),
        ];
        for (kind, want) in cases {
            assert_eq!(remote_error(&kind.into()), want, "for {kind:?}");
        }
    }
}
