//! What the body of a request says.

use axum::body::{Bytes, HttpBody as _, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;

use super::Refused;

/// Largest body of a request that says what shall be done: a few names and numbers.
pub const REQUEST_BODY_BYTES_MAX: usize = 64 * 1024;

/// The body of a request, which has at most `bytes_max`. One that says that it has more is not read.
///
/// # Errors
/// 413 for a longer one, 400 where it ends before its end.
pub async fn bytes_of(request: Request, bytes_max: usize) -> Result<Bytes, Refused> {
    let too_large = || {
        let detail = format!("a body has at most {bytes_max} bytes here");
        let title = "The request body is too large";
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", title, detail)
    };
    let body = request.into_body();
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large());
    }
    match to_bytes(body, bytes_max).await {
        Ok(bytes) => Ok(bytes),
        Err(error) if is_limit(&error) => Err(too_large()),
        Err(error) => Err(Refused::bad_request(format!("the body broke off: {error}"))),
    }
}

fn is_limit(error: &axum::Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(<dyn std::error::Error>::is::<LengthLimitError>)
}

/// The value that the body of a request is, as JSON; `form` says what it should have been.
///
/// # Errors
/// As [`bytes_of`], and 400 where it is something else.
pub async fn json_of<T: DeserializeOwned>(request: Request, form: &str) -> Result<T, Refused> {
    let body = bytes_of(request, REQUEST_BODY_BYTES_MAX).await?;
    serde_json::from_slice(&body)
        .map_err(|error| Refused::bad_request(format!("the body is not {form}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::response::IntoResponse as _;
    use http_body_util::{BodyExt as _, Full};

    async fn status(body: Body) -> Result<usize, u16> {
        let read = bytes_of(Request::new(body), 10).await;
        read.map(|bytes| bytes.len()).map_err(|no| no.into_response().status().as_u16())
    }

    #[tokio::test]
    async fn sizes() {
        for (len, want) in [(0, Ok(0)), (10, Ok(10)), (11, Err(413)), (1_000, Err(413))] {
            assert_eq!(status(Body::from(vec![7; len])).await, want, "for {len}");
            // Its length is not told before.
            let unsized_body = Full::new(Bytes::from(vec![7; len])).map_frame(|frame| frame);
            assert_eq!(status(Body::new(unsized_body)).await, want, "for {len} without a length");
        }
    }

    #[tokio::test]
    async fn values() {
        let read = json_of::<u8>(Request::new(Body::from("7")), "a number").await;
        assert_eq!(read.ok(), Some(7));
        let no = json_of::<u8>(Request::new(Body::from("x")), "a number").await.err();
        assert_eq!(no.map(|no| no.into_response().status().as_u16()), Some(400));
    }
}
