//! Bodies of answers that are made of pieces.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::Frame;

pub(super) use k2i::http::of_channel;

/// Pieces that are there, one after the other. `held` is dropped when all are sent, or nobody reads.
pub(super) fn of_pieces(pieces: Vec<Bytes>, held: impl Send + Unpin + 'static) -> Body {
    Body::new(Pieces { pieces: pieces.into(), _held: held })
}

struct Pieces<T> {
    pieces: VecDeque<Bytes>,
    _held: T,
}

impl<T: Unpin> hyper::body::Body for Pieces<T> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.pieces.pop_front().map(|piece| Ok(Frame::data(piece))))
    }
}
