//! Who a server lets in, and as whom.
//!
//! On a Unix socket the kernel says which user asks: root and the user of the server may do all, others
//! what they were given, or look. A token says who asks wherever it is shown. On TCP who shows nothing may
//! look where only this machine's users come, and is asked for a token elsewhere. So `curl localhost` is
//! of use, and a port that is opened by mistake tells nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use kumo_abi::rights::{Asker, Lines, Rights, Who};

use super::Refused;
use super::audit::Audit;
use super::certificate::Presented;
use super::guard::{Via, asker};
use super::pace::{Pace, Paces};
use crate::token::{self, NoTokens, Token, Tokens};

/// How often one address may show a token that is none. Guessing is hopeless anyhow; this keeps the log
/// readable. A good token is taken whatever others show from the same address.
const FAILURES: Pace = Pace { at_once: 20, every: Duration::from_secs(3) };

/// How often one address of another machine may ask. A page that shows a fleet asks a few times a second;
/// this machine's own users are bounded by the places for answers alone.
const REQUESTS: Pace = Pace { at_once: 400, every: Duration::from_millis(10) };

/// Between two looks whether somebody who listens, and is told nothing meanwhile, still may.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How an asker says that he wants less of command lines than he might see: `secrets` or `strip`.
pub const REDACT: HeaderName = HeaderName::from_static("kumo-redact");

/// Where who shows nothing may look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Anonymous {
    /// Nowhere
    Never,
    /// On loopback
    #[default]
    Loopback,
    /// Wherever the server listens
    Always,
}

/// Who a connection comes from, as the kernel and TLS say; [`super::serve`] attaches it to each request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its address, on TCP.
    pub address: Option<SocketAddr>,
    /// Its user, on a Unix socket.
    pub user: Option<u32>,
    /// What it has shown in TLS.
    pub certificate: Option<Presented>,
}

/// How an [`super::Api`] decides who may do what.
#[derive(Debug)]
pub struct Access {
    /// The user that may do all beside root.
    owner: u32,
    /// What other users of this host may do on its Unix socket.
    users: BTreeMap<u32, Rights>,
    tokens: Arc<dyn Tokens>,
    anonymous: Anonymous,
    /// How command lines are shown to who has no right to see them whole.
    lines: Lines,
    pub(crate) audit: Audit,
    failures: Mutex<Paces>,
    requests: Mutex<Paces>,
}

impl Default for Access {
    /// No tokens, no other users, who shows nothing may look on loopback, secrets are left out.
    fn default() -> Access {
        Access {
            owner: rustix::process::geteuid().as_raw(),
            users: BTreeMap::new(),
            tokens: Arc::new(NoTokens),
            anonymous: Anonymous::default(),
            lines: Lines::Redacted,
            audit: Audit::default(),
            failures: Mutex::new(Paces::new(FAILURES)),
            requests: Mutex::new(Paces::new(REQUESTS)),
        }
    }
}

impl Access {
    /// The same with tokens.
    #[must_use]
    pub fn with_tokens(self, tokens: Arc<dyn Tokens>) -> Access {
        Access { tokens, ..self }
    }

    /// The same with what other users may do on the Unix socket.
    #[must_use]
    pub fn with_users(self, users: BTreeMap<u32, Rights>) -> Access {
        Access { users, ..self }
    }

    /// The same where who shows nothing may look there.
    #[must_use]
    pub fn with_anonymous(self, anonymous: Anonymous) -> Access {
        Access { anonymous, ..self }
    }

    /// The same where command lines are shown so to who may not see them whole.
    #[must_use]
    pub fn with_lines(self, lines: Lines) -> Access {
        Access { lines, ..self }
    }

    /// The same with a file of who changed what.
    #[must_use]
    pub fn with_audit(self, path: &Path) -> Access {
        Access { audit: Audit::to(path), ..self }
    }

    /// How command lines are shown to `asker`.
    pub fn lines(&self, asker: &Asker) -> Lines {
        asker.lines(self.lines)
    }

    /// Whether who was let in would still be: his token or certificate may be over, or taken back.
    fn still(&self, asker: &Asker, presented: Option<&Presented>) -> bool {
        match &asker.who {
            Who::Token(name) => {
                let kept = name.parse().ok().and_then(|name| self.tokens.kept(&name));
                kept.is_some_and(|kept| {
                    !kept.is_over(now_ms()) && kept.rights.include(asker.rights)
                })
            }
            Who::Certificate(_) => presented.is_none_or(|shown| self.is_good(shown)),
            _ => true,
        }
    }

    fn is_good(&self, presented: &Presented) -> bool {
        presented.is_good(&*self.tokens, now_ms())
    }

    /// Who makes a request.
    ///
    /// # Errors
    /// 401 if he shows something that is not good, or nothing where that does not do; 429 if he shows
    /// such too often.
    pub(crate) fn asker(
        &self,
        extensions: &Extensions,
        headers: &HeaderMap,
    ) -> Result<Asker, Refused> {
        let asker = self.shown(extensions, headers)?;
        let wants = match headers.get(REDACT).map(|value| value.to_str().map(str::parse::<Lines>)) {
            None => Lines::Whole,
            Some(Ok(Ok(lines))) => lines,
            Some(_) => {
                return Err(Refused::bad_request("kumo-redact is `secrets`, `strip` or `whole`"));
            }
        };
        Ok(Asker { wants: asker.wants.max(wants), ..asker })
    }

    fn shown(&self, extensions: &Extensions, headers: &HeaderMap) -> Result<Asker, Refused> {
        let via = extensions.get::<Via>().copied();
        if via == Some(Via::Fabric) {
            // Who asked the other node, as that says; one that says nothing may look.
            return Ok(extensions.get::<Asker>().cloned().unwrap_or_default());
        }
        let peer = extensions.get::<Peer>().cloned().unwrap_or_default();
        if let Some(shown) = headers.get(header::AUTHORIZATION) {
            let good = self.token(shown, now_ms());
            return good.filter(|_| one(headers)).ok_or_else(|| self.failed(&peer));
        }
        if let Some(presented) = peer.certificate {
            return if self.is_good(&presented) { Ok(presented.asker) } else { Err(over()) };
        }
        let nobody = |rights| Asker { who: Who::Nobody, rights, wants: Lines::Whole };
        match (via, peer.user) {
            (Some(Via::Unix), Some(user)) => {
                let rights = if user == 0 || user == self.owner {
                    Rights::ADMIN
                } else {
                    self.users.get(&user).copied().unwrap_or(Rights::VIEW)
                };
                Ok(Asker { who: Who::User(user), rights, wants: Lines::Whole })
            }
            // Whoever brought it in vouches for him.
            (Some(Via::Unix), None) => Ok(nobody(Rights::ADMIN)),
            (Some(Via::Tcp { local, .. }), _) => {
                let may_look = match self.anonymous {
                    Anonymous::Never => false,
                    Anonymous::Loopback => local.ip().to_canonical().is_loopback(),
                    Anonymous::Always => true,
                };
                if may_look { Ok(nobody(Rights::VIEW)) } else { Err(unknown()) }
            }
            (Some(Via::Fabric) | None, _) => Ok(nobody(Rights::VIEW)),
        }
    }

    fn token(&self, shown: &HeaderValue, now_ms: u64) -> Option<Asker> {
        let (scheme, text) = shown.to_str().ok()?.split_once(' ')?;
        let token =
            Token::parse(text.trim_start()).filter(|_| scheme.eq_ignore_ascii_case("bearer"))?;
        let kept = self.tokens.kept(token.name());
        let rights = token::rights(&token, kept.as_ref(), now_ms)?;
        let who = Who::Token(token.name().to_string());
        Some(Asker { who, rights, wants: Lines::Whole })
    }

    fn failed(&self, peer: &Peer) -> Refused {
        let from = peer.address.map_or_else(|| "a socket".to_owned(), |from| from.to_string());
        let allowed = peer.address.map_or(Ok(()), |from| {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.take(from.ip(), Instant::now())
        });
        if let Err(wait) = allowed {
            return too_often("bad tokens came from your address too often", wait);
        }
        tracing::warn!(target: "audit", "a token that is not good was shown from {from}");
        let detail = "the token is unknown, over, or taken back (or it is no `Bearer` token); `kumo \
            rights token list` on a node shows those there are";
        let title = "The token is not good";
        Refused::new(StatusCode::UNAUTHORIZED, "bad-token", title, detail)
            .with(header::WWW_AUTHENTICATE, INVALID)
    }

    /// Refuses who asks too often from another machine.
    ///
    /// # Errors
    /// 429.
    pub(crate) fn pace(&self, extensions: &Extensions) -> Result<(), Refused> {
        let address = extensions.get::<Peer>().and_then(|peer| peer.address);
        let Some(ip) = address.map(|peer| peer.ip().to_canonical()).filter(|ip| !ip.is_loopback())
        else {
            return Ok(());
        };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = requests.take(ip, Instant::now());
        taken.map_err(|wait| too_often("too many requests come from your address", wait))
    }
}

/// Somebody who was let in and listens: what he may can end before he goes.
#[derive(Clone, Debug)]
pub struct Listener {
    access: Arc<Access>,
    asker: Asker,
    presented: Option<Presented>,
}

impl Listener {
    /// Who makes a request that was let in.
    pub(super) fn of(access: &Arc<Access>, request: &Extensions) -> Listener {
        let presented = request.get::<Peer>().and_then(|peer| peer.certificate.clone());
        Listener { access: Arc::clone(access), asker: asker(request), presented }
    }

    /// Whether he would be let in now.
    pub fn may_still(&self) -> bool {
        self.access.still(&self.asker, self.presented.as_ref())
    }

    /// How command lines, and what may hold pieces of them, are shown to him.
    pub fn lines(&self) -> Lines {
        self.access.lines(&self.asker)
    }

    /// Waits until he would not be.
    pub async fn dismissed(&self) {
        while self.may_still() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// Whether one says once who he is: of two, each reader takes another.
fn one(headers: &HeaderMap) -> bool {
    headers.get_all(header::AUTHORIZATION).iter().count() == 1
}

/// How one says who he is; in RFC 6750 the second says that what was said is not good.
pub(super) const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"kumo\"");
const INVALID: HeaderValue =
    HeaderValue::from_static("Bearer realm=\"kumo\", error=\"invalid_token\"");

fn unknown() -> Refused {
    let detail = "on this address one says who one is: send `Authorization: Bearer TOKEN` with a token \
        that `kumo rights token add NAME` makes, or show a certificate";
    let title = "Who asks has to say who he is";
    Refused::new(StatusCode::UNAUTHORIZED, "unauthorized", title, detail)
        .with(header::WWW_AUTHENTICATE, CHALLENGE)
}

fn over() -> Refused {
    let detail = "the certificate that was shown, or one above it, is over or was taken back; ask who signed \
        it for another";
    let title = "The certificate is good no more";
    Refused::new(StatusCode::UNAUTHORIZED, "bad-certificate", title, detail)
        .with(header::WWW_AUTHENTICATE, CHALLENGE)
}

fn too_often(what: &str, wait: Duration) -> Refused {
    let seconds = wait.as_secs() + 1;
    let detail = format!("{what}; try again in {seconds} s");
    let retry = HeaderValue::from(seconds);
    Refused::new(StatusCode::TOO_MANY_REQUESTS, "too-often", "That is too often", detail)
        .with(header::RETRY_AFTER, retry)
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;
    use kumo_abi::TokenName;
    use kumo_abi::rights::{Role, Scope};

    use super::*;
    use crate::token::Kept;

    /// Knows one token.
    #[derive(Debug)]
    struct One(TokenName, Kept);

    impl Tokens for One {
        fn kept(&self, name: &TokenName) -> Option<Kept> {
            (*name == self.0).then(|| self.1.clone())
        }

        fn is_revoked(&self, _: &crate::token::Certificate) -> bool {
            false
        }
    }

    fn tcp(local: &str) -> Via {
        Via::Tcp { local: local.parse().expect("an address"), tls: false }
    }

    fn ask(
        access: &Access,
        via: Via,
        peer: &Peer,
        headers: &[(HeaderName, &str)],
    ) -> Result<Asker, u16> {
        let mut extensions = Extensions::new();
        extensions.insert(via);
        extensions.insert(peer.clone());
        let value = |text: &str| HeaderValue::from_str(text).expect("a header");
        let mut map = HeaderMap::new();
        for (name, text) in headers {
            map.append(name.clone(), value(text));
        }
        let asker = access.asker(&extensions, &map);
        asker.map_err(|refused| refused.into_response().status().as_u16())
    }

    #[test]
    fn who_shows_nothing() {
        let users = [(1000, Rights::of(Role::Operate))].into();
        let access = Access { owner: 7, ..Access::default() }.with_users(users);
        let unix = |user| {
            let peer = Peer { user: Some(user), ..Peer::default() };
            ask(&access, Via::Unix, &peer, &[]).expect("let in").rights
        };
        let cases = [
            (0, Rights::ADMIN),
            (7, Rights::ADMIN),
            (1000, Rights::of(Role::Operate)),
            (8, Rights::VIEW),
        ];
        for (user, want) in cases {
            assert_eq!(unix(user), want, "for user {user}");
        }
        let view = Ok(Rights::VIEW);
        let cases = [
            (Anonymous::Loopback, "127.0.0.1:80", view),
            (Anonymous::Loopback, "[::ffff:127.0.0.1]:80", view),
            (Anonymous::Loopback, "10.0.0.1:80", Err(401)),
            (Anonymous::Always, "10.0.0.1:80", view),
            (Anonymous::Never, "127.0.0.1:80", Err(401)),
        ];
        for (anonymous, local, want) in cases {
            let access = Access::default().with_anonymous(anonymous);
            let asker = ask(&access, tcp(local), &Peer::default(), &[]);
            assert_eq!(asker.map(|asker| asker.rights), want, "{anonymous:?} on {local}");
        }
        let fabric = ask(&access, Via::Fabric, &Peer::default(), &[]);
        assert_eq!(fabric, Ok(Asker::default()), "another node that says nothing");
    }

    #[test]
    fn who_shows_a_token() {
        let token = Token::new("ci".parse().expect("a name")).expect("random bits");
        let rights = Rights::VIEW.with(Scope::Signal);
        let kept = Kept::of(&token, rights, Some(Duration::from_secs(60)), now_ms(), String::new());
        let mut over = kept.clone();
        over.expires_ms = Some(1);
        let access = |kept: Kept| {
            Access::default().with_tokens(Arc::new(One("ci".parse().expect("ok"), kept)))
        };
        let other = Token::new("ci".parse().expect("a name")).expect("random bits").text();
        let unknown = Token::new("cx".parse().expect("a name")).expect("random bits").text();
        let bearer = |text: &str| format!("Bearer {text}");
        let cases = [
            (kept.clone(), bearer(&token.text()), Ok(rights)),
            (kept.clone(), format!("bearer  {}", token.text()), Ok(rights)),
            (kept.clone(), format!("Basic {}", token.text()), Err(401)),
            (kept.clone(), token.text(), Err(401)),
            (kept.clone(), bearer(&other), Err(401)),
            (kept.clone(), bearer(&unknown), Err(401)),
            (kept.clone(), bearer("x"), Err(401)),
            (over, bearer(&token.text()), Err(401)),
        ];
        for (kept, shown, want) in cases {
            // Also who would be let in without it: what he shows must be good.
            for via in [tcp("127.0.0.1:80"), tcp("10.0.0.1:80"), Via::Unix] {
                let peer = Peer { user: Some(0), ..Peer::default() };
                let headers = [(header::AUTHORIZATION, shown.as_str())];
                let asker = ask(&access(kept.clone()), via, &peer, &headers);
                assert_eq!(asker.map(|asker| asker.rights), want, "for {shown:?}");
            }
        }
        let good = bearer(&token.text());
        let twice =
            [(header::AUTHORIZATION, good.as_str()), (header::AUTHORIZATION, good.as_str())];
        assert_eq!(ask(&access(kept), tcp("127.0.0.1:80"), &Peer::default(), &twice), Err(401));
    }

    #[test]
    fn bad_tokens_are_shown_some_times_and_good_ones_always() {
        let token = Token::new("ci".parse().expect("a name")).expect("random bits");
        let kept = Kept::of(&token, Rights::VIEW, None, 0, String::new());
        let access = Access::default().with_tokens(Arc::new(One("ci".parse().expect("ok"), kept)));
        let peer = Peer { address: Some(([192, 0, 2, 1], 9).into()), ..Peer::default() };
        let show = |text: &str| {
            let text = format!("Bearer {text}");
            ask(&access, tcp("10.0.0.1:80"), &peer, &[(header::AUTHORIZATION, text.as_str())])
        };
        let refusals: Vec<_> = (0..FAILURES.at_once + 5).map(|_| show("kumo_ci_x")).collect();
        assert_eq!(refusals[0], Err(401));
        assert_eq!(refusals.last(), Some(&Err(429)));
        assert!(show(&token.text()).is_ok(), "whatever others do there");
    }

    #[test]
    fn who_wants_less_gets_less() {
        let access = Access::default();
        let root = Peer { user: Some(0), ..Peer::default() };
        let cases = [
            (None, Ok(Lines::Whole)),
            (Some("secrets"), Ok(Lines::Redacted)),
            (Some("strip"), Ok(Lines::Stripped)),
            (Some("x"), Err(400)),
        ];
        for (text, want) in cases {
            let headers: Vec<_> = text.map(|text| (REDACT, text)).into_iter().collect();
            let asker = ask(&access, Via::Unix, &root, &headers);
            assert_eq!(asker.map(|asker| access.lines(&asker)), want, "for {text:?}");
        }
        let headers = [(REDACT, "whole")];
        let asker = ask(&access, tcp("127.0.0.1:80"), &Peer::default(), &headers).expect("let in");
        assert_eq!(access.lines(&asker), Lines::Redacted, "who may not see more does not");
    }

    #[test]
    fn other_machines_ask_at_a_pace() {
        let access = Access::default();
        let paced = |address: &str| {
            let mut extensions = Extensions::new();
            let address = Some(address.parse().expect("an address"));
            extensions.insert(Peer { address, ..Peer::default() });
            (0..REQUESTS.at_once * 2).filter(|_| access.pace(&extensions).is_ok()).count() as u32
        };
        assert!((REQUESTS.at_once..REQUESTS.at_once * 2).contains(&paced("192.0.2.1:5")));
        assert_eq!(paced("127.0.0.1:5"), REQUESTS.at_once * 2, "this machine's own may");
    }
}
