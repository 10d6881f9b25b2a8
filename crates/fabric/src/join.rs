//! How a host comes into a cluster, and how its certificate is renewed.

use std::net::SocketAddr;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::pki::Peer;

/// What bytes go over: TLS between hosts, or memory in a test.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One whose kind nobody needs to know.
pub type BoxedStream = Box<dyn Stream>;

/// A conversation that a desk holds.
pub type Serving<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Who answers those that want to join, or want a new certificate.
pub trait JoinDesk: Send + Sync {
    /// Holds one conversation over `stream`, with a host at address `from` that has shown the
    /// certificate of `peer`, or none. Ends within [`EXCHANGE_TIME_MAX`], whatever the other does.
    fn serve<'a>(
        &'a self,
        stream: BoxedStream,
        peer: Option<Peer>,
        from: SocketAddr,
    ) -> Serving<'a>;
}

/// The ALPN protocol name of these conversations.
pub const ALPN_JOIN: &[u8] = b"kumo-join/1";

/// How long a conversation may last: two messages of a few KiB each.
pub const EXCHANGE_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(10);
