//! Answers that do not end: lines or server-sent events, for as long as the client stays.
//!
//! A stream holds a place among [`STREAMS_MAX`], a task and a few pieces. It ends when its client goes
//! or takes nothing for [`super::serve::WRITE_STALL_MAX`], when he may listen no more, and when the server
//! stops.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Extensions, HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::access::Listener;
use super::body::of_channel;
use super::guard::Via;
use super::{Api, Refused, accept};

/// Most streams of one [`Api`] at once: people look at a few, programs at one each.
pub const STREAMS_MAX: usize = 64;

/// Pieces that wait for their client: more would be memory, and would be old when it gets them.
const PIECES_AHEAD: usize = 2;

/// When nothing happens, the client is told so after this while: it can tell a quiet server from a dead
/// one, and the server learns that it is gone.
pub const STREAM_QUIET_MAX: Duration = Duration::from_secs(10);

/// The form of server-sent events.
pub(super) const SSE: &str = "text/event-stream";

/// Says when the server stops; [`super::serve`] attaches it to each request.
#[derive(Clone, Debug)]
pub(super) struct Stopping(pub(super) watch::Receiver<bool>);

/// Marks an answer that does not end. It is not compressed, as a compressor waits for more, and it may
/// take any time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endless;

/// How what is told is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Lines,
    Sse,
}

impl Form {
    /// What the client wants; lines where it does not care.
    pub(super) fn choose(headers: &HeaderMap) -> Result<Form, Refused> {
        let form = accept::choose(headers, &[super::v2::NDJSON, SSE])?;
        Ok(if form == SSE { Form::Sse } else { Form::Lines })
    }

    /// Appends one thing that is told: its name and its document, which has no line end.
    pub(super) fn write(self, out: &mut Vec<u8>, name: &str, document: &[u8]) {
        if self == Form::Sse {
            out.extend_from_slice(b"event: ");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\ndata: ");
        }
        out.extend_from_slice(document);
        out.extend_from_slice(if self == Form::Sse { b"\n\n" } else { b"\n" });
    }

    /// That the stream is alive: readers of either form pass over it.
    fn nothing(self) -> Bytes {
        Bytes::from_static(if self == Form::Sse { b":\n\n" } else { b"\n" })
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(if self == Form::Sse { SSE } else { super::v2::NDJSON })
    }
}

/// A stream that begins: what is told goes in here.
pub(super) struct Teller {
    form: Form,
    pieces: mpsc::Sender<Bytes>,
    stopping: Option<watch::Receiver<bool>>,
    listener: Listener,
    _place: OwnedSemaphorePermit,
}

/// Nobody listens any more, or the server stops.
pub(super) struct Over;

impl Teller {
    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Waits until the client has room.
    pub(super) async fn tell(&mut self, piece: Vec<u8>) -> Result<(), Over> {
        // A token that was taken back is none, also for who has begun to listen.
        if !self.listener.may_still() {
            return Err(Over);
        }
        let sent = self.pieces.send(piece.into());
        tokio::select! {
            sent = sent => sent.map_err(|_| Over),
            () = self.listener.dismissed() => Err(Over),
            () = stopped(&mut self.stopping) => Err(Over),
        }
    }

    /// Waits for what is to be told next, and meanwhile tells that nothing happens.
    pub(super) async fn next<T>(&mut self, what: impl Future<Output = T>) -> Result<T, Over> {
        let mut what = std::pin::pin!(what);
        let mut dismissed = std::pin::pin!(self.listener.dismissed());
        loop {
            tokio::select! {
                done = &mut what => return Ok(done),
                // Nor is he told by silence that all is well.
                () = &mut dismissed => return Err(Over),
                () = self.pieces.closed() => return Err(Over),
                () = stopped(&mut self.stopping) => return Err(Over),
                () = tokio::time::sleep(STREAM_QUIET_MAX) => {
                    // One that has no room is not waiting for this.
                    let _ = self.pieces.try_send(self.form.nothing());
                }
            }
        }
    }
}

async fn stopped(stopping: &mut Option<watch::Receiver<bool>>) {
    match stopping {
        // Who would have told is gone: that is the end as well.
        Some(stopping) => drop(stopping.wait_for(|stop| *stop).await),
        None => std::future::pending().await,
    }
}

/// Begins a stream in `form`: the answer to the request, and the one who tells.
///
/// # Errors
/// 400 for who asks in the name of another node: the fabric gathers answers that end. 503 when there
/// are too many streams.
pub(super) fn begin(
    api: &Api,
    request: &Extensions,
    form: Form,
) -> Result<(Response, Teller), Refused> {
    check(request)?;
    let place = Arc::clone(&api.streams).try_acquire_owned().map_err(|_| Refused::busy())?;
    let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
    // At once: the client knows that it misses nothing from now on.
    let _ = pieces.try_send(form.nothing());
    let mut response = Response::new(of_channel(receiver));
    response.headers_mut().insert(header::CONTENT_TYPE, form.content_type());
    response.extensions_mut().insert(Endless);
    let stopping = request.get::<Stopping>().map(|Stopping(stopping)| stopping.clone());
    let listener = Listener::of(&api.access, request);
    Ok((response, Teller { form, pieces, stopping, listener, _place: place }))
}

/// Refuses who cannot be told without an end.
pub(super) fn check(request: &Extensions) -> Result<(), Refused> {
    if request.get::<Via>() != Some(&Via::Fabric) {
        return Ok(());
    }
    let detail = "streams are told by the node of their own host; of many hosts `kumo ps --all --ended`, \
        or /v2/all/proc?ended=1, tells what has ended";
    Err(Refused::bad_request(detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_in_both_forms() {
        let written = |form: Form| {
            let mut out = Vec::new();
            form.write(&mut out, "exec", b"{\"pid\":1}");
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(written(Form::Lines), "{\"pid\":1}\n");
        assert_eq!(written(Form::Sse), "event: exec\ndata: {\"pid\":1}\n\n");
    }

    #[test]
    fn nobody_gathers_what_does_not_end() {
        let of = |via: Via| {
            let mut extensions = Extensions::new();
            extensions.insert(via);
            check(&extensions).is_ok()
        };
        assert!(of(Via::Unix) && !of(Via::Fabric));
    }
}
