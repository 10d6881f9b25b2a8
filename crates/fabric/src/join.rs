//! How a host comes into a cluster, and how a node's certificate is renewed.
//!
//! A conversation over TLS: the gateway says who it is ([`Hello`]), the other asks for one thing
//! ([`Request`]), the gateway grants or refuses it ([`Reply`]). Each message is JSON after its length
//! in four bytes, the most significant first. Only when the certificate of the authority has the hash
//! that the token pins, and has signed what the gateway showed in TLS, does a joining host send the
//! token's secret.
//!
//! [`desk`] is the side of the gateways, [`client`] that of the others, [`registry`] what the cluster
//! remembers of certificates.

pub mod client;
pub mod desk;
pub mod registry;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use kumo_abi::cluster::Role;
use kumo_abi::{ClusterName, HostId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub use self::client::{JoinAsk, JoinError, Joined, join, renew};
pub use self::desk::Desk;
use crate::identity::Gateway;
use crate::pki::Peer;
use crate::token::{Secret, TokenId};
use kumo_sys::wall_ms;

/// The ALPN protocol name of these conversations.
pub const ALPN_JOIN: &[u8] = b"kumo-join/1";

/// How long a conversation may last: three messages, and a few writes to a disk that may be slow.
pub const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(10);

/// Longest request: a token, a name and a key have 2 KiB.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// Longest hello or reply: as many gateways as a host keeps, with the longest addresses.
pub const REPLY_BYTES_MAX: usize = 4 << 20;

/// Longest explanation of a refusal that is shown.
const WORDS_CHARS_MAX: usize = 1024;

/// Version of the messages.
const VERSION: u32 = 1;

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
    fn serve(&self, stream: BoxedStream, peer: Option<Peer>, from: SocketAddr) -> Serving<'_>;
}

/// What a gateway says first. Who cannot check it needs not believe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Version of what follows.
    pub version: u32,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Itself.
    pub host: HostId,
    /// The certificate of its authority: DER in base64.
    pub ca: String,
    /// Its clock: milliseconds since the Unix epoch.
    pub now_ms: u64,
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// A place in the cluster.
    Join(JoinRequest),
    /// A new certificate for the one that was shown in TLS.
    Renew(RenewRequest),
}

/// What a host says that wants to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The cluster it means.
    pub cluster: ClusterName,
    /// The token.
    pub token: TokenId,
    /// Its secret.
    pub secret: Secret,
    /// The name it wants.
    pub host: HostId,
    /// What it wants to be.
    pub role: Role,
    /// Whether it takes the place of a host of that name which is known and not alive.
    pub replace: bool,
    /// The request for a certificate: PKCS #10 DER in base64.
    pub csr: String,
    /// Its clock: milliseconds since the Unix epoch.
    pub now_ms: u64,
}

/// What a node says that wants a new certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// The request for a certificate, for a new key: PKCS #10 DER in base64.
    pub csr: String,
}

/// What a gateway answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Here it is.
    Granted(Grant),
    /// No, and nothing was changed.
    Refused(Refusal),
}

/// What was asked for.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The certificate: DER in base64.
    pub certificate: String,
    /// The private key of the authority, for new gateways: PKCS #8 DER in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority_key: Option<String>,
    /// Gateways to begin with.
    pub gateways: Vec<Gateway>,
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key, which belongs in no log.
        f.debug_struct("Grant").field("gateways", &self.gateways).finish_non_exhaustive()
    }
}

/// A refusal: for programs, and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// Why.
    pub code: RefusalCode,
    /// Why, and what to do.
    pub words: String,
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// The request is none of ours.
    Malformed,
    /// Too many ask at once.
    Busy,
    /// This gateway has no key to sign with.
    NoAuthority,
    /// It is of another cluster.
    WrongCluster,
    /// No such token here, or not with that secret.
    UnknownToken,
    /// The token's time is over.
    Expired,
    /// The token has let in as many as it may.
    UsedUp,
    /// The clocks are too far apart.
    Clock,
    /// The key was certified before: the request was recorded and sent again.
    Replayed,
    /// The token does not make gateways.
    Role,
    /// The token is for another data centre.
    Dc,
    /// A host of that name is alive.
    NameAlive,
    /// A host of that name is known.
    NameKnown,
    /// The certificate to be renewed was evicted.
    Evicted,
    /// A renewal without a certificate.
    NoCertificate,
    /// A renewal long before the certificate ends.
    NotYet,
    /// The gateway cannot, for a reason of its own.
    Internal,
    /// One that this version does not know.
    #[serde(other)]
    Other,
}

impl RefusalCode {
    /// Whether another gateway may see it differently: it may know a token that this one has not heard
    /// of, or have more time.
    pub fn is_of_this_gateway(self) -> bool {
        matches!(
            self,
            RefusalCode::Busy
                | RefusalCode::NoAuthority
                | RefusalCode::UnknownToken
                | RefusalCode::Internal
        )
    }
}

impl Refusal {
    fn new(code: RefusalCode, words: impl fmt::Display) -> Refusal {
        // Some of it is text of the other side.
        Refusal { code, words: words.to_string().chars().take(WORDS_CHARS_MAX).collect() }
    }
}

/// How far a clock is ahead of another, in words for those whose clock is wrong.
fn skew_in_words(ahead_ms: i64) -> String {
    let (seconds, way) =
        (ahead_ms.unsigned_abs() / 1000, if ahead_ms > 0 { "ahead of" } else { "behind" });
    match seconds {
        0..120 => format!("{seconds} seconds {way}"),
        120..7200 => format!("{} minutes {way}", seconds / 60),
        7200..172_800 => format!("{} hours {way}", seconds / 3600),
        _ => format!("{} days {way}", seconds / 86_400),
    }
}

/// A message that is none.
#[derive(Debug, thiserror::Error)]
enum FrameError {
    #[error("the message has {0} bytes, which is too many")]
    Long(usize),
    #[error("the message is not understood: {0}")]
    Form(serde_json::Error),
    #[error("the connection broke")]
    Io(#[from] io::Error),
}

async fn read_message<T: DeserializeOwned>(
    stream: &mut BoxedStream,
    bytes_max: usize,
) -> Result<T, FrameError> {
    let len = stream.read_u32().await? as usize;
    if len > bytes_max {
        return Err(FrameError::Long(len));
    }
    // Grows as bytes come: a length alone reserves nothing.
    let mut bytes = Vec::new();
    (&mut *stream).take(len as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < len {
        return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&bytes).map_err(FrameError::Form)
}

async fn write_message<T: Serialize>(stream: &mut BoxedStream, message: &T) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let len = u32::try_from(json.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(&json);
    stream.write_all(&bytes).await?;
    stream.flush().await
}
