//! Tokens: the right to join a cluster, for some hosts, for some time.
//!
//! A token is a text that a person carries from one host to another. It holds a secret, of which the
//! cluster keeps only a hash, so reading the desired state lets nobody join. It pins the cluster's
//! authority by the hash of its certificate: a host that joins talks to no other.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use kumo_abi::cluster::Role;
use kumo_abi::{ClusterName, DcName, HostId};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::identity::{AddressError, Gateway, Identity, check_address};
use crate::pki::{hash_of_hex, sha256};
use crate::store::{Store, StoreError};

/// What every token begins with; the digit is the version of what follows.
const PREFIX: &str = "kumo1.";

/// Longest token: [`ADDRESSES_MAX`] long addresses fit.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Most addresses in a token. One that answers is enough; more than a few only make it long.
pub const ADDRESSES_MAX: usize = 8;

/// Longest life of a token. Who needs a longer one makes a new one: a text that lies around lets
/// anybody in.
pub const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Most hosts that one token lets in.
pub const USES_MAX: u32 = 10_000;

const SECRET_BYTES: usize = 32;
const ID_BYTES: usize = 8;

/// The name of a token, which is no secret: 16 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenId(String);

impl TryFrom<String> for TokenId {
    type Error = TokenError;
    fn try_from(text: String) -> Result<TokenId, TokenError> {
        let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 2 * ID_BYTES && text.bytes().all(hex) {
            Ok(TokenId(text))
        } else {
            Err(TokenError::Content("its name is none".to_owned()))
        }
    }
}

impl From<TokenId> for String {
    fn from(id: TokenId) -> String {
        id.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What only those know who were given the token. Not shown in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// What the cluster keeps of it. It is random and long, so a plain hash gives nothing away.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl TryFrom<String> for Secret {
    type Error = TokenError;
    fn try_from(text: String) -> Result<Secret, TokenError> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok();
        let secret = bytes.and_then(|bytes| bytes.try_into().ok()).map(Secret);
        secret.ok_or_else(|| TokenError::Content("its secret is none".to_owned()))
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> String {
        BASE64URL_NOPAD.encode(&secret.0)
    }
}

/// A token. Its `Display` is the text to carry, secret included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The cluster that it lets into.
    pub cluster: ClusterName,
    /// Its name.
    pub id: TokenId,
    /// Its secret.
    pub secret: Secret,
    /// SHA-256 of the certificate of the cluster's authority.
    pub ca: [u8; 32],
    /// Where to ask, in this order; at least one.
    pub addresses: Vec<String>,
    /// What hosts may become: a token for gateways is one for members too.
    pub role: Role,
    /// The only data centre that it lets into; `None` for any.
    pub dc: Option<DcName>,
    /// Until when: milliseconds since the Unix epoch.
    pub expires_ms: u64,
}

/// What is in the text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    cluster: ClusterName,
    id: TokenId,
    secret: Secret,
    ca: String,
    addresses: Vec<String>,
    role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dc: Option<DcName>,
    expires_ms: u64,
}

/// Why a text is no token, or no token can be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Something else.
    #[error("it is no token: one begins with `{PREFIX}`, as `kumo token` prints it")]
    Prefix,
    /// Cut off, or with something in between.
    #[error("it is damaged; copy all of it, in one line ({0})")]
    Content(String),
    /// Too long to be one.
    #[error("it is too long to be a token")]
    Long,
    /// An address that is none.
    #[error("it is damaged; copy all of it, in one line")]
    Address(#[from] AddressError),
    /// Too short or too long a life.
    #[error("a token lives from a second to {} days", TTL_MAX.as_secs() / 86_400)]
    Ttl,
    /// None, or too many.
    #[error("a token lets in from 1 to {USES_MAX} hosts")]
    Uses,
    /// Nowhere to ask.
    #[error("no gateway of this cluster says where it listens; `kumo init --advertise` does")]
    NoAddress,
    /// No randomness.
    #[error("the system has no randomness for a secret")]
    Random,
    /// The desired state.
    #[error("the token cannot be kept")]
    Store(#[from] StoreError),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = Content {
            cluster: self.cluster.clone(),
            id: self.id.clone(),
            secret: self.secret.clone(),
            ca: HEXLOWER.encode(&self.ca),
            addresses: self.addresses.clone(),
            role: self.role,
            dc: self.dc.clone(),
            expires_ms: self.expires_ms,
        };
        let json = serde_json::to_vec(&content).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&json))
    }
}

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Token, TokenError> {
        let content = |what: &dyn fmt::Display| TokenError::Content(what.to_string());
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Long);
        }
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let json = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|error| content(&error))?;
        let read: Content = serde_json::from_slice(&json).map_err(|error| content(&error))?;
        for address in &read.addresses {
            check_address(address)?;
        }
        if read.addresses.is_empty() || read.addresses.len() > ADDRESSES_MAX {
            return Err(content(&"its addresses are too few or too many"));
        }
        Ok(Token {
            cluster: read.cluster,
            id: read.id,
            secret: read.secret,
            ca: hash_of_hex(&read.ca).ok_or_else(|| content(&"its hash is none"))?,
            addresses: read.addresses,
            role: read.role,
            dc: read.dc,
            expires_ms: read.expires_ms,
        })
    }
}

/// What a token is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenAsk {
    /// The only data centre that it lets into; `None` for any.
    pub dc: Option<DcName>,
    /// How long it lives: at least a second, at most [`TTL_MAX`].
    pub ttl: Duration,
    /// How many hosts it lets in: 1 to [`USES_MAX`].
    pub uses: u32,
    /// What they may become.
    pub role: Role,
}

/// What the cluster keeps of a token, in its desired state under `token/<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// SHA-256 of its secret, in hexadecimal digits.
    pub secret_hash: String,
    /// The only data centre that it lets into.
    pub dc: Option<DcName>,
    /// What hosts may become.
    pub role: Role,
    /// Until when: milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// How many hosts it lets in.
    pub uses: u32,
    /// Where it was made.
    pub by: HostId,
}

impl TokenRecord {
    /// Whether `secret` is that of the token.
    pub fn knows(&self, secret: &Secret) -> bool {
        // Compared as hashes of a long random secret: the time it takes tells nothing of use.
        hash_of_hex(&self.secret_hash) == Some(secret.hash())
    }
}

/// Where the record of a token is.
pub fn token_key(id: &TokenId) -> String {
    format!("token/{id}")
}

/// Under what the uses of a token are.
pub fn uses_prefix(id: &TokenId) -> String {
    format!("token-use/{id}/")
}

/// Makes a token for the cluster of `identity` and keeps its record in `store`. Other gateways know it
/// as soon as the state has reached them.
///
/// # Errors
/// See [`TokenError`]; then there is no token.
pub fn create(
    store: &Store,
    identity: &Identity,
    ask: &TokenAsk,
    now_ms: u64,
) -> Result<Token, TokenError> {
    let (token, record) = make(identity, ask, now_ms)?;
    let value = serde_json::to_vec(&record).expect("a record is JSON");
    store.put(&token_key(&token.id), value)?;
    Ok(token)
}

fn make(
    identity: &Identity,
    ask: &TokenAsk,
    now_ms: u64,
) -> Result<(Token, TokenRecord), TokenError> {
    if ask.ttl < Duration::from_secs(1) || ask.ttl > TTL_MAX {
        return Err(TokenError::Ttl);
    }
    if !(1..=USES_MAX).contains(&ask.uses) {
        return Err(TokenError::Uses);
    }
    let addresses = addresses(identity);
    if addresses.is_empty() {
        return Err(TokenError::NoAddress);
    }
    let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
    let random = SystemRandom::new();
    random.fill(&mut id).map_err(|_| TokenError::Random)?;
    random.fill(&mut secret).map_err(|_| TokenError::Random)?;
    let token = Token {
        cluster: identity.cluster.clone(),
        id: TokenId(HEXLOWER.encode(&id)),
        secret: Secret(secret),
        ca: sha256(&identity.ca),
        addresses,
        role: ask.role,
        dc: ask.dc.clone(),
        expires_ms: now_ms.saturating_add(ask.ttl.as_millis() as u64),
    };
    let record = TokenRecord {
        secret_hash: HEXLOWER.encode(&token.secret.hash()),
        dc: token.dc.clone(),
        role: token.role,
        expires_ms: token.expires_ms,
        uses: ask.uses,
        by: identity.host.clone(),
    };
    Ok((token, record))
}

/// Where to ask: this gateway first, which knows the token already, then one address of each other,
/// then the rest.
fn addresses(identity: &Identity) -> Vec<String> {
    let gateways: Vec<Gateway> =
        identity.as_gateway().into_iter().chain(identity.gateways.iter().cloned()).collect();
    let own = gateways.first().filter(|gateway| gateway.host == identity.host);
    let own = own.map(|gateway| gateway.addresses.clone()).unwrap_or_default();
    let firsts = gateways.iter().filter_map(|gateway| gateway.addresses.first().cloned());
    let all = gateways.iter().flat_map(|gateway| gateway.addresses.clone());
    let mut seen = BTreeSet::new();
    let in_order = own.into_iter().chain(firsts).chain(all);
    in_order.filter(|address| seen.insert(address.clone())).take(ADDRESSES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Authority;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn identity() -> Identity {
        let authority = Authority::create(&"acme".parse().expect("a name"), NOW_MS);
        let host = "tokyo/a".parse().expect("a host");
        let made = Identity::issue(&authority.expect("made"), &host, Role::Gateway, NOW_MS);
        Identity { advertise: vec!["192.0.2.1:7081".to_owned()], ..made.expect("issued") }
    }

    fn ask() -> TokenAsk {
        let dc = Some("osaka".parse().expect("a name"));
        TokenAsk { dc, ttl: Duration::from_secs(3600), uses: 3, role: Role::Member }
    }

    #[test]
    fn it_is_read_back_and_its_record_knows_its_secret_only() {
        let identity = identity();
        let store = Store::in_memory(identity.host.clone());
        let token = create(&store, &identity, &ask(), NOW_MS).expect("a token");
        let text = token.to_string();
        assert_eq!(text.parse::<Token>().expect("the same"), token);
        assert_eq!(format!(" {text}\n").parse::<Token>().expect("with blanks"), token);
        assert_eq!((token.ca, token.expires_ms), (sha256(&identity.ca), NOW_MS + 3_600_000));
        let record = store.value(&token_key(&token.id)).expect("kept");
        let secret = String::from(token.secret.clone());
        assert!(!String::from_utf8_lossy(&record).contains(&secret), "the secret is not kept");
        let record: TokenRecord = serde_json::from_slice(&record).expect("JSON");
        let other = create(&store, &identity, &ask(), NOW_MS).expect("a token");
        assert!(record.knows(&token.secret) && !record.knows(&other.secret));
        assert!(!format!("{token:?}").contains(&secret));
    }

    #[test]
    fn texts_that_are_no_tokens() {
        let (token, _) = make(&identity(), &ask(), NOW_MS).expect("a token");
        let text = token.to_string();
        let with = |change: &dyn Fn(&mut serde_json::Value)| {
            let json = BASE64URL_NOPAD.decode(&text.as_bytes()[PREFIX.len()..]).expect("base64");
            let mut value = serde_json::from_slice(&json).expect("JSON");
            change(&mut value);
            format!("{PREFIX}{}", BASE64URL_NOPAD.encode(value.to_string().as_bytes()))
        };
        assert_eq!(with(&|_| {}).parse::<Token>().expect("unchanged"), token);
        let cases = [
            (String::new(), "begins with `kumo1.`"),
            ("kumo2.abc".to_owned(), "begins with `kumo1.`"),
            (text[..text.len() - 5].to_owned(), "damaged"),
            (text.replace('.', ". "), "damaged"),
            ("kumo1.".to_owned() + &"A".repeat(TOKEN_BYTES_MAX), "too long"),
            (with(&|value| value["more"] = 1.into()), "unknown field `more`"),
            (with(&|value| value["cluster"] = "a/b".into()), "`/` is none of them"),
            (with(&|value| value["secret"] = "AA".into()), "secret"),
            (with(&|value| value["ca"] = "00".into()), "hash"),
            (with(&|value| value["addresses"] = serde_json::json!([])), "too few"),
            (with(&|value| value["addresses"] = serde_json::json!(["x"])), "damaged"),
            (with(&|value| value["id"] = "../../evicted/00".into()), "name"),
        ];
        for (text, want) in cases {
            let said = text.parse::<Token>().expect_err(&text).to_string();
            assert!(said.contains(want), "{said:?} does not say {want:?}");
        }
    }

    #[test]
    fn limits() {
        let identity = identity();
        let made = |change: &dyn Fn(&mut TokenAsk)| {
            let mut ask = ask();
            change(&mut ask);
            make(&identity, &ask, NOW_MS).map(drop)
        };
        assert!(made(&|ask| ask.ttl = TTL_MAX).is_ok());
        assert!(matches!(made(&|ask| ask.ttl = TTL_MAX * 2), Err(TokenError::Ttl)));
        assert!(matches!(made(&|ask| ask.ttl = Duration::ZERO), Err(TokenError::Ttl)));
        assert!(matches!(made(&|ask| ask.uses = 0), Err(TokenError::Uses)));
        assert!(matches!(made(&|ask| ask.uses = USES_MAX + 1), Err(TokenError::Uses)));
        let nowhere = Identity { advertise: Vec::new(), ..identity.clone() };
        assert!(matches!(make(&nowhere, &ask(), NOW_MS), Err(TokenError::NoAddress)));
    }

    #[test]
    fn every_gateway_is_named_before_any_is_named_twice() {
        let gateway = |name: &str, addresses: &[&str]| Gateway {
            host: name.parse().expect("a host"),
            addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
        };
        let mut identity = identity();
        identity.advertise = vec!["a1:1".to_owned(), "a2:1".to_owned()];
        identity.gateways = vec![
            gateway("osaka/b", &["b1:1", "b2:1"]),
            gateway("osaka/c", &[]),
            gateway("osaka/d", &["d1:1", "a1:1"]),
        ];
        assert_eq!(addresses(&identity), ["a1:1", "a2:1", "b1:1", "d1:1", "b2:1"]);
        identity.role = Role::Member;
        assert_eq!(addresses(&identity), ["b1:1", "d1:1", "b2:1", "a1:1"]);
        let many: Vec<Gateway> = (0..100).map(|n| gateway("x/y", &[&format!("h{n}:1")])).collect();
        identity.gateways = many;
        assert_eq!(addresses(&identity).len(), ADDRESSES_MAX);
        let (token, _) = make(&identity, &ask(), NOW_MS).expect("a token");
        assert!(token.to_string().len() < TOKEN_BYTES_MAX);
    }
}
