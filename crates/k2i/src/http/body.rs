//! Bodies that are written bit by bit, so that a large answer needs no large buffer.
//!
//! A piece is made where blocking is fine, and only one piece ahead of the client: one that does not
//! read holds two pieces, a place and the table that it is told of, never a thread, and that until
//! [`super::serve`] cuts it.

use std::convert::Infallible;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

/// The least that a piece holds, unless it is the last. A piece costs two switches between threads
/// (some tens of microseconds), and encoding this much some hundreds.
const PIECE_BYTES_MIN: usize = 64 * 1024;

/// Something that is written bit by bit.
pub(crate) trait Pieces: Send + 'static {
    /// Appends the next bit to `out`; `false` when that was the last one.
    fn write_next(&mut self, out: &mut Vec<u8>) -> bool;
}

/// Writes the first piece and returns the whole as a body. Blocks for that piece only. `place` is
/// held until the last piece is made.
pub(crate) fn begin(pieces: impl Pieces, place: OwnedSemaphorePermit) -> Body {
    let made = Work { pieces: Box::new(pieces), _place: place }.make();
    match made.rest {
        // A whole body has a known length, and needs no chunks.
        None => Body::from(made.piece),
        Some(rest) => Body::new(PieceBody { state: State::Made(made.piece, Some(rest)) }),
    }
}

/// Pieces that others make, as they come.
pub fn of_channel(pieces: mpsc::Receiver<Bytes>) -> Body {
    Body::new(Channel(pieces))
}

struct Channel(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Channel {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

struct Work {
    pieces: Box<dyn Pieces>,
    /// Returned when the work is done or given up, also when that is while a piece is being made.
    _place: OwnedSemaphorePermit,
}

struct Made {
    piece: Bytes,
    rest: Option<Work>,
}

impl Work {
    fn make(mut self) -> Made {
        let mut out = Vec::with_capacity(PIECE_BYTES_MIN + PIECE_BYTES_MIN / 4);
        let mut more = true;
        while more && out.len() < PIECE_BYTES_MIN {
            more = self.pieces.write_next(&mut out);
        }
        if !more {
            // Many small answers at once should not hold a large buffer each.
            out.shrink_to_fit();
        }
        Made { piece: out.into(), rest: more.then_some(self) }
    }
}

struct PieceBody {
    state: State,
}

enum State {
    Made(Bytes, Option<Work>),
    Making(JoinHandle<Made>),
    Done,
}

impl hyper::body::Body for PieceBody {
    type Data = Bytes;
    type Error = JoinError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, JoinError>>> {
        let (piece, rest) = match mem::replace(&mut self.state, State::Done) {
            State::Done => return Poll::Ready(None),
            State::Made(piece, rest) => (piece, rest),
            State::Making(mut task) => match Pin::new(&mut task).poll(context) {
                Poll::Pending => {
                    self.state = State::Making(task);
                    return Poll::Pending;
                }
                // Ending the body with an error cuts the connection, so that the client knows.
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Ok(made)) => (made.piece, made.rest),
            },
        };
        if let Some(rest) = rest {
            self.state = State::Making(spawn_blocking(move || rest.make()));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Done)
    }
}

/// A body in one piece.
pub(crate) struct Whole(pub(crate) Vec<u8>);

impl Pieces for Whole {
    fn write_next(&mut self, out: &mut Vec<u8>) -> bool {
        out.append(&mut self.0);
        false
    }
}
