//! Refusals, as RFC 9457 problem documents.

use std::fmt;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kumo_abi::{Problem, QueryError, chain};

use crate::encode::document;
use crate::engine::AskError;
use crate::history::HistoryError;
use crate::host::HostError;

/// The content type of a refusal.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Seconds after which a client may try again when the server was busy.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// A request that is not answered, and why.
#[derive(Clone, Debug)]
pub struct Refused {
    problem: Box<Problem>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Refused {
    /// A refusal; `name` and `title` are the same for every one of its kind, `detail` says what
    /// happened here and what to do.
    pub fn new(status: StatusCode, name: &str, title: &str, detail: impl Into<String>) -> Refused {
        let problem = Problem::new(status.as_u16(), name, title, detail);
        Refused { problem: Box::new(problem), header: None }
    }

    /// The same with a header, such as `Allow`.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Refused {
        self.header = Some((name, value));
        self
    }

    /// 400: a parameter, or a piece of the path, that makes no sense.
    pub fn bad_request(detail: impl Into<String>) -> Refused {
        Refused::new(StatusCode::BAD_REQUEST, "bad-request", "The request makes no sense", detail)
    }

    /// 404: no process of this number.
    pub fn no_process(pid: i32) -> Refused {
        let detail = format!(
            "no process {pid} on this host; it may have ended, and `kumo ps` lists those there are"
        );
        Refused::new(StatusCode::NOT_FOUND, "no-such-process", "There is no such process", detail)
    }

    /// 503: too many answers at once.
    pub fn busy() -> Refused {
        Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "The server is busy",
            "too many answers are under way; try again in a second",
        )
        .with(header::RETRY_AFTER, RETRY_AFTER)
    }

    /// 500: a bug of ours.
    pub fn bug() -> Refused {
        Refused::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "The server failed",
            "a bug in the server; its log says more",
        )
    }
}

impl fmt::Display for Refused {
    /// What happened here and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.detail)
    }
}

impl From<QueryError> for Refused {
    fn from(error: QueryError) -> Refused {
        let title = "The query makes no sense";
        Refused::new(StatusCode::BAD_REQUEST, "bad-query", title, chain(&error))
    }
}

impl From<AskError> for Refused {
    fn from(error: AskError) -> Refused {
        if matches!(error, AskError::NoEvents(_)) {
            // No retry helps.
            let title = "Events are not taken here";
            return Refused::new(StatusCode::NOT_IMPLEMENTED, "no-events", title, chain(&error));
        }
        if let AskError::History(error @ (HistoryError::None(_) | HistoryError::NotThere { .. })) =
            &error
        {
            let (status, name, title) = match error {
                HistoryError::None(_) => {
                    (StatusCode::NOT_IMPLEMENTED, "no-history", "No history is kept here")
                }
                _ => (StatusCode::NOT_FOUND, "not-recorded", "Nothing was recorded then"),
            };
            return Refused::new(status, name, title, chain(error));
        }
        let title = "The process table could not be read";
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, "scan-failed", title, chain(&error))
            .with(header::RETRY_AFTER, RETRY_AFTER)
    }
}

impl From<HostError> for Refused {
    fn from(error: HostError) -> Refused {
        let title = "The host could not be read";
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, "host-failed", title, chain(&error))
            .with(header::RETRY_AFTER, RETRY_AFTER)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or_default();
        let body = document(&self.problem);
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
