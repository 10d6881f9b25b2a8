//! The TCP connection of a link, shared: TLS reads and writes it, the list of links asks it for its
//! round trip and cuts it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// An idle connection is probed after so long. The control plane itself says something every 300 ms;
/// this is for connections that it does not use yet.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);

/// And then every so long.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// So many probes without an answer end it.
const KEEPALIVE_PROBES: u32 = 3;

/// Bytes that are not acknowledged for so long end it. The control plane closes its side after 1.2 s;
/// the kernel would go on for 15 minutes with what was not sent.
const UNACKNOWLEDGED_MS_MAX: u32 = 10_000;

/// So long a connection that was refused is read from before it is closed: closed with bytes unread, it
/// would be reset, and the reason that was just sent be lost.
const REFUSED_READ_MAX: Duration = Duration::from_millis(500);

/// And so many bytes.
const REFUSED_READ_BYTES_MAX: u64 = 64 * 1024;

/// A TCP connection that several hold.
#[derive(Clone, Debug)]
pub(crate) struct Tcp(Arc<TcpStream>);

/// Sets what every connection to another host needs: no delay, probes, and an end when nothing is
/// acknowledged.
///
/// # Errors
/// What the kernel says.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_tcp_nodelay(stream, true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS_MAX)?;
    Ok(())
}

impl Tcp {
    /// Sets what every link needs: no delay, probes, and an end when nothing is acknowledged.
    ///
    /// # Errors
    /// What the kernel says; the connection is closed.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Tcp> {
        prepare(&stream)?;
        Ok(Tcp(Arc::new(stream)))
    }

    /// The same connection, for who does not read from it.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(crate) fn held(&self) -> io::Result<Held> {
        Ok(Held(self.0.as_fd().try_clone_to_owned()?))
    }

    /// The same connection, served by the runtime that this is called in.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(crate) fn rehomed(&self) -> io::Result<Tcp> {
        let descriptor = self.0.as_fd().try_clone_to_owned()?;
        Ok(Tcp(Arc::new(TcpStream::from_std(descriptor.into())?)))
    }

    /// Nothing passes any more, in either direction, from now on.
    pub(crate) fn cut(&self) {
        let _ = shutdown(&*self.0, Shutdown::Both); // Else it is closed already.
    }

    /// Smoothed round trip in microseconds; 0 when the kernel does not know.
    pub(crate) fn rtt_us(&self) -> u32 {
        kumo_sys::tcp_rtt_us(&*self.0).unwrap_or(0)
    }

    /// Closes a connection that was refused, so that the reason arrives.
    pub(crate) async fn close_refused(mut self) {
        let _ = shutdown(&*self.0, Shutdown::Write);
        let mut rest = (&mut self).take(REFUSED_READ_BYTES_MAX);
        let mut nowhere = tokio::io::sink();
        let read = tokio::io::copy(&mut rest, &mut nowhere);
        let _ = timeout(REFUSED_READ_MAX, read).await; // Whatever comes, it is closed.
    }
}

/// A TCP connection that others serve: no runtime is woken for this descriptor of it.
#[derive(Debug)]
pub(crate) struct Held(OwnedFd);

impl Held {
    /// As [`Tcp::cut`].
    pub(crate) fn cut(&self) {
        let _ = shutdown(&self.0, Shutdown::Both); // Else it is closed already.
    }

    /// As [`Tcp::rtt_us`].
    pub(crate) fn rtt_us(&self) -> u32 {
        kumo_sys::tcp_rtt_us(&self.0).unwrap_or(0)
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        read: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(read.initialize_unfilled()) {
                Ok(len) => {
                    read.advance(len);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// TLS hands over its records as slices. After a refusal it writes only once: all of them must go
    /// then, or the alert is lost.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&*self.0, Shutdown::Write).map_err(io::Error::from))
    }
}
