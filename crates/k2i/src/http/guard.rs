//! Who may ask at all: checks before any route, and headers on every answer.
//!
//! A page from elsewhere in the user's browser can reach a server on this machine. It cannot read the
//! answer, unless its name is made to resolve to 127.0.0.1 (DNS rebinding): then the browser takes
//! both for one site, but still sends the page's name as `Host`. So on loopback only this machine's
//! own names are served.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header,
};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use kumo_abi::rights::{Asker, Lines, Rights, Role, Scope, Who};

use super::Api;
use super::access::{CHALLENGE, Listener, Peer};
use super::audit::{self, Did};
use super::problem::Refused;

/// How a request came in; [`super::serve`] attaches it to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// TCP, with TLS or without.
    Tcp {
        /// Our end of the connection.
        local: SocketAddr,
        /// Whether it is encrypted.
        tls: bool,
    },
    /// A Unix socket: no browser can reach it, and its file's mode says who may.
    Unix,
    /// From another node of the cluster, which has shown its certificate and says for whom it asks.
    Fabric,
}

/// Who asks, as far as that is known: what [`guard`] or whoever brought the request in has attached to it,
/// else what the way says by itself.
pub fn asker(request: &Extensions) -> Asker {
    if let Some(asker) = request.get::<Asker>() {
        return asker.clone();
    }
    let rights = match request.get::<Via>() {
        Some(Via::Unix) => Rights::ADMIN,
        Some(Via::Fabric | Via::Tcp { .. }) | None => Rights::VIEW,
    };
    Asker { who: Who::Nobody, rights, wants: Lines::Whole }
}

/// Refuses a request whose asker does not hold `scope`.
///
/// # Errors
/// 401 if nobody has said who he is, 403 if who he is does not suffice, with what to do instead.
pub fn allow(request: &Extensions, scope: Scope) -> Result<(), Refused> {
    let Asker { who, rights, .. } = asker(request);
    if rights.holds(scope) {
        return Ok(());
    }
    let least = Role::ALL.iter().find(|role| Rights::of(**role).holds(scope));
    let least = least.map_or(Role::Admin.name(), |role| role.name());
    if who == Who::Nobody {
        let detail = format!(
            "this takes the right `{scope}`, and nobody has said who asks; ask on the node's Unix \
             socket, as `kumo` does, or send `Authorization: Bearer TOKEN` with a token that `kumo \
             rights token add NAME --role {least}` makes"
        );
        let title = "Who asks has to say who he is";
        return Err(Refused::new(StatusCode::UNAUTHORIZED, "unauthorized", title, detail)
            .with(header::WWW_AUTHENTICATE, CHALLENGE));
    }
    let detail = format!(
        "this takes the right `{scope}`, and {who} has `{rights}`; an admin gives it with `kumo \
         rights token add NAME --role {least}`, or `--scope {scope}`"
    );
    let title = "Who asks may not do this";
    Err(Refused::new(StatusCode::FORBIDDEN, "forbidden", title, detail))
}

/// How command lines are shown to who asks; for handlers.
pub(crate) struct Shown(pub(crate) Lines);

impl FromRequestParts<Arc<Api>> for Shown {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Shown, Infallible> {
        Ok(Shown(api.access.lines(&asker(&parts.extensions))))
    }
}

/// Longest path and query together. Five query parts of 8 KiB fit, unless all of them are written as
/// `%XX`.
pub const TARGET_BYTES_MAX: usize = 48 * 1024;

/// Runs the checks, then the route, then adds the headers.
pub(crate) async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    api.requests.fetch_add(1, Ordering::Relaxed);
    api.engine.metrics().note_request();
    let (parts, body) = request.into_parts();
    let let_in = check(&parts)
        .and_then(|()| api.access.asker(&parts.extensions, &parts.headers))
        .and_then(|asker| api.access.pace(&parts.extensions).map(|()| asker));
    let asker = match &let_in {
        Ok(asker) => asker.clone(),
        Err(_) => Asker::default(),
    };
    let reads = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let changes = !reads && !super::sql::PATHS.contains(&parts.uri.path());
    let asked = changes.then(|| {
        let address = parts.extensions.get::<Peer>().and_then(|peer| peer.address);
        let via = audit::in_words(parts.extensions.get::<Via>().copied(), address);
        let what = format!("{} {}", parts.method, parts.uri.path());
        audit::Asked { asker: asker.clone(), via, what }
    });
    let lines = api.access.lines(&asker);
    let mut request = Request::from_parts(parts, body);
    request.extensions_mut().insert(asker);
    let listener = Listener::of(&api.access, request.extensions());
    request.extensions_mut().insert(listener);
    let mut response = match let_in {
        Ok(_) => next.run(request).await,
        Err(refused) => refused.into_response(),
    };
    if let Some(asked) = asked {
        let did = response.extensions().get::<Did>();
        api.access.audit.write(&asked, did, response.status().as_u16());
    }
    api.engine.metrics().note_response(response.status().as_u16());
    let headers = response.headers_mut();
    if lines != Lines::Whole && !headers.contains_key(REDACTED) {
        headers.insert(REDACTED, HeaderValue::from_static(lines.name()));
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What of command lines an answer leaves out.
const REDACTED: HeaderName = HeaderName::from_static("kumo-redacted");

fn check(request: &Parts) -> Result<(), Refused> {
    let target = request.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > TARGET_BYTES_MAX {
        let detail = format!("path and query have {target} bytes; {TARGET_BYTES_MAX} is the most");
        let title = "The address is too long";
        return Err(Refused::new(StatusCode::URI_TOO_LONG, "uri-too-long", title, detail));
    }
    let via = request.extensions.get::<Via>().copied();
    let Some(Via::Tcp { local, .. }) = via else {
        return Ok(());
    };
    let named = request.uri.authority().cloned().map(Ok).or_else(|| host(&request.headers));
    let named = match named {
        Some(Ok(named)) => Some(named),
        // Only HTTP/1.0 may leave it out, and no browser speaks that.
        None if request.version < Version::HTTP_11 => None,
        Some(Err(())) | None => {
            return Err(Refused::bad_request("the request needs one well-formed Host header"));
        }
    };
    if let Some(named) = &named {
        check_host(named, local.ip())?;
    }
    check_origin(&request.headers, named.as_ref())
}

/// The `Host` header; an error if it is no authority or stands twice.
fn host(headers: &HeaderMap) -> Option<Result<Authority, ()>> {
    let mut all = headers.get_all(header::HOST).iter();
    let first = all.next()?;
    if all.next().is_some() {
        return Some(Err(()));
    }
    Some(Authority::try_from(first.as_bytes()).map_err(|_| ()))
}

/// On loopback only the machine's own names are served, with any port: it may be forwarded.
fn check_host(named: &Authority, local: IpAddr) -> Result<(), Refused> {
    let local = local.to_canonical();
    if !local.is_loopback() {
        return Ok(());
    }
    let name = named.host().trim_start_matches('[').trim_end_matches(']');
    let ours = name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| {
            let ip = ip.to_canonical();
            ip == local || ip == IpAddr::from([127, 0, 0, 1]) || ip.is_ipv6() && ip.is_loopback()
        });
    if ours {
        return Ok(());
    }
    let detail = format!(
        "this server listens on {local} and is not `{}`; ask for localhost or {local}",
        named.host()
    );
    let title = "The request is meant for another host";
    Err(Refused::new(StatusCode::FORBIDDEN, "foreign-host", title, detail))
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Pages from elsewhere are refused. A person who follows a link from there is not.
fn check_origin(headers: &HeaderMap, named: Option<&Authority>) -> Result<(), Refused> {
    let is = |name: &HeaderName, want: &str| headers.get(name).is_some_and(|value| value == want);
    let foreign = match headers.get(header::ORIGIN) {
        Some(origin) => {
            let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            let same = |(_, authority): (&str, &str)| {
                named.is_some_and(|named| named.as_str().eq_ignore_ascii_case(authority))
            };
            !origin.is_some_and(same)
        }
        None => {
            (is(&SEC_FETCH_SITE, "cross-site") || is(&SEC_FETCH_SITE, "same-site"))
                && !is(&SEC_FETCH_MODE, "navigate")
        }
    };
    if !foreign {
        return Ok(());
    }
    let detail = "a page from another site asked; only pages of this server may";
    let title = "The request comes from another site";
    Err(Refused::new(StatusCode::FORBIDDEN, "foreign-origin", title, detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn status(via: Via, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().uri("/v2/proc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::empty()).expect("a plain request");
        request.extensions_mut().insert(via);
        match check(&request.into_parts().0) {
            Ok(()) => 200,
            Err(refused) => refused.into_response().status().as_u16(),
        }
    }

    fn tcp(local: &str) -> Via {
        Via::Tcp { local: local.parse().expect("an address"), tls: false }
    }

    #[test]
    fn hosts() {
        let cases = [
            ("127.0.0.1:8000", "localhost", 200),
            ("127.0.0.1:8000", "LOCALHOST:9999", 200),
            ("127.0.0.1:8000", "127.0.0.1:8000", 200),
            ("127.0.0.1:8000", "[::1]:8000", 200),
            ("127.0.0.1:8000", "evil.example", 403),
            ("127.0.0.1:8000", "evil.example:8000", 403),
            ("127.0.0.1:8000", "localhost.evil.example", 403),
            ("127.0.0.1:8000", "127.0.0.2", 403),
            ("127.0.0.1:8000", "10.0.0.1", 403),
            ("127.0.0.1:8000", "a b", 400),
            ("127.0.0.1:8000", "", 400),
            ("127.0.0.2:8000", "127.0.0.2:8000", 200),
            ("[::1]:8000", "[::1]:8000", 200),
            ("[::1]:8000", "evil.example", 403),
            ("[::ffff:127.0.0.1]:8000", "127.0.0.1:8000", 200),
            ("[::ffff:127.0.0.1]:8000", "evil.example", 403),
            ("10.0.0.1:8000", "web-1.example:8000", 200),
        ];
        for (local, host, want) in cases {
            assert_eq!(status(tcp(local), &[("host", host)]), want, "{host:?} on {local}");
        }
        assert_eq!(status(tcp("127.0.0.1:1"), &[]), 400, "no Host at all");
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(status(tcp("127.0.0.1:1"), &twice), 400, "two Hosts");
        assert_eq!(status(Via::Unix, &[("host", "whatever")]), 200, "nobody rebinds a file");
    }

    #[test]
    fn origins() {
        let cases: [(&[(&str, &str)], u16); 7] = [
            (&[("origin", "http://localhost:8000")], 200),
            (&[("origin", "http://localhost:3000")], 403),
            (&[("origin", "https://evil.example")], 403),
            (&[("origin", "null")], 403),
            (&[("sec-fetch-site", "cross-site")], 403),
            (&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], 200),
            (&[("sec-fetch-site", "same-origin")], 200),
        ];
        for (headers, want) in cases {
            let headers = [&[("host", "localhost:8000")], headers].concat();
            assert_eq!(status(tcp("127.0.0.1:8000"), &headers), want, "for {headers:?}");
        }
    }
}
