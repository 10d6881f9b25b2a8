//! Tokens: texts by which those who hold them are known.
//!
//! A token is `kumo_NAME_SECRET`. Its secret has 256 random bits, so that nobody guesses it, and of it is
//! kept a plain SHA-256: salts and slow hashes make guesses of what people choose costly, and here there
//! is nothing to guess. Who reads what is kept cannot ask with it. A token is found by its name, which is
//! no secret, and then the hashes are compared in a time that says nothing of where they differ; one
//! whose name is unknown is compared as well.
//!
//! Certificates that were taken back are kept beside them, by the hash of their key.
//!
//! Values only, but for the random bits and [`TokenFile`], the list of a server without a node.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use kumo_abi::TokenName;
use kumo_abi::rights::Rights;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

/// What every token begins with.
const PREFIX: &str = "kumo_";

const SECRET_BYTES: usize = 32;

/// Longest token: the longest name, and the secret in Base64.
pub const TOKEN_BYTES_MAX: usize = 5 + kumo_abi::NAME_BYTES_MAX + 1 + 43;

/// Most tokens of a cluster, or of a file. Each is looked at when they are listed.
pub const TOKENS_MAX: usize = 1_000;

/// How long a token is good where nobody says.
pub const TTL_DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Longest life that can be asked for; without an end is another matter.
pub const TTL_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Largest file of tokens: [`TOKENS_MAX`] of them take a third of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A token as it is carried. Not shown in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    name: TokenName,
    secret: [u8; SECRET_BYTES],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// The system has no random bits.
    pub fn new(name: TokenName) -> io::Result<Token> {
        let mut secret = [0; SECRET_BYTES];
        let filled = SystemRandom::new().fill(&mut secret);
        filled.map_err(|_| io::Error::other("the system gives no random bits"))?;
        Ok(Token { name, secret })
    }

    /// Reads one; nothing if it is none.
    pub fn parse(text: &str) -> Option<Token> {
        if text.len() > TOKEN_BYTES_MAX {
            return None;
        }
        // No name has a `_` in it.
        let (name, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let secret = BASE64URL_NOPAD.decode(secret.as_bytes()).ok()?;
        Some(Token { name: name.parse().ok()?, secret: secret.try_into().ok()? })
    }

    /// The text to carry, secret included.
    pub fn text(&self) -> String {
        format!("{PREFIX}{}_{}", self.name, BASE64URL_NOPAD.encode(&self.secret))
    }

    /// Its name.
    pub fn name(&self) -> &TokenName {
        &self.name
    }

    fn hash(&self) -> Hash {
        Hash(sha256(&self.secret))
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// What is kept of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Hash([u8; 32]);

impl TryFrom<String> for Hash {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Hash, &'static str> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Hash).ok_or("it is no hash of a token")
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> String {
        HEXLOWER.encode(&hash.0)
    }
}

/// What is kept of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    hash: Hash,
    /// What who holds it may do.
    pub rights: Rights,
    /// When it was made, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// By whom.
    #[serde(default)]
    pub by: String,
    /// Until when it is good; without an end if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

impl Kept {
    /// What is kept of `token`, which is made now by somebody, for some time.
    pub fn of(
        token: &Token,
        rights: Rights,
        ttl: Option<Duration>,
        now_ms: u64,
        by: String,
    ) -> Kept {
        let ttl_ms = |ttl: Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let expires_ms = ttl.map(|ttl| now_ms.saturating_add(ttl_ms(ttl)));
        Kept { hash: token.hash(), rights, created_ms: now_ms, by, expires_ms }
    }

    /// Whether it is over at this time.
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms)
    }
}

/// The rights of who shows `token`, if it is the one that is `kept`, and good now.
pub fn rights(token: &Token, kept: Option<&Kept>, now_ms: u64) -> Option<Rights> {
    // Who guesses a name learns nothing by how long it takes.
    let hash = kept.map_or([0; 32], |kept| kept.hash.0);
    let same = bool::from(token.hash().0.ct_eq(&hash));
    kept.filter(|kept| same && !kept.is_over(now_ms)).map(|kept| kept.rights)
}

/// By what a certificate is known: the SHA-256 of its public key, as `SubjectPublicKeyInfo` in DER. Who has a
/// key certified anew is known by it still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Of a public key as `SubjectPublicKeyInfo` in DER.
    pub fn of(public_key: &[u8]) -> KeyHash {
        KeyHash(sha256(public_key))
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl FromStr for KeyHash {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<KeyHash, &'static str> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(KeyHash).ok_or("a key is named by the 64 hexadecimal digits of its SHA-256")
    }
}

impl TryFrom<String> for KeyHash {
    type Error = &'static str;
    fn try_from(text: String) -> Result<KeyHash, &'static str> {
        text.parse()
    }
}

impl From<KeyHash> for String {
    fn from(key: KeyHash) -> String {
        key.to_string()
    }
}

/// A certificate that somebody shows, or one of those above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// By what it is known.
    pub key: KeyHash,
    /// All of it, in DER.
    pub der: Vec<u8>,
}

/// What is kept of a certificate that was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Whose it was, as it says.
    #[serde(default)]
    pub name: String,
    /// When it was taken back, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// By whom.
    #[serde(default)]
    pub by: String,
}

/// Who keeps tokens, and which certificates were taken back.
pub trait Tokens: fmt::Debug + Send + Sync {
    /// What is kept of the token of this name, as it is now: one that was taken back is not there.
    fn kept(&self, name: &TokenName) -> Option<Kept>;

    /// Whether this certificate was taken back, as far as that is known now. Where it cannot be known, it was.
    fn is_revoked(&self, certificate: &Certificate) -> bool;
}

/// No tokens at all.
#[derive(Debug)]
pub struct NoTokens;

impl Tokens for NoTokens {
    fn kept(&self, _name: &TokenName) -> Option<Kept> {
        None
    }

    fn is_revoked(&self, _certificate: &Certificate) -> bool {
        false
    }
}

/// Tokens in a file. Each request that shows one looks whether the file is the one that was read, and reads
/// it only if not: what is taken out of it is taken back at once.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
    last: Arc<Mutex<Option<LastRead>>>,
}

/// What is in it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(default)]
    tokens: BTreeMap<TokenName, Kept>,
    /// Certificates that are good no more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    revoked: BTreeMap<KeyHash, Revoked>,
}

/// A file that was read.
#[derive(Debug)]
struct LastRead {
    mark: Mark,
    content: Arc<Content>,
}

/// By what a file is known to be the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    len_bytes: u64,
    /// The last change of it, or of what is known of it: nobody can set this back.
    changed_ns: i128,
}

/// A file that was changed this short a time before it was read may be changed again without another mark:
/// some kernels and file systems tell times to some milliseconds, or to a second or two.
const MARK_AGE_MIN: Duration = Duration::from_secs(3);

impl Mark {
    fn of(metadata: &Metadata) -> Mark {
        let changed_ns =
            i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        let (device, inode) = (metadata.dev(), metadata.ino());
        Mark { device, inode, len_bytes: metadata.len(), changed_ns }
    }

    /// Whether it tells the file that was read at this time from any that is written later. One that seems to
    /// be of the future does not: some clock is wrong.
    fn is_telling(&self, read_ns: i128) -> bool {
        read_ns - self.changed_ns >= MARK_AGE_MIN.as_nanos() as i128
    }
}

/// The file cannot be used. Nothing of it was changed.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// Reading or writing.
    #[error("cannot read or write the tokens in {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It has something else in it.
    #[error("{} holds no tokens; `kumo rights token add` makes such files", path.display())]
    Form {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// There are too many.
    #[error("{} has {TOKENS_MAX} {}, and that is the most; remove some first", .0.display(), .1)]
    Full(PathBuf, &'static str),
}

impl TokenFile {
    /// That at `path`; it need not be there yet.
    pub fn at(path: impl Into<PathBuf>) -> TokenFile {
        TokenFile { path: path.into(), last: Arc::default() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tokens in it; none where there is no file.
    ///
    /// # Errors
    /// See [`TokenFileError`].
    pub fn read(&self) -> Result<BTreeMap<TokenName, Kept>, TokenFileError> {
        Ok(self.content()?.tokens)
    }

    /// The certificates that were taken back; none where there is no file.
    ///
    /// # Errors
    /// See [`TokenFileError`].
    pub fn revoked(&self) -> Result<BTreeMap<KeyHash, Revoked>, TokenFileError> {
        Ok(self.content()?.revoked)
    }

    fn content(&self) -> Result<Content, TokenFileError> {
        Ok(self.open()?.map_or_else(Content::default, |(content, _)| content))
    }

    /// What is in it, and by what the file is known; nothing where there is none.
    fn open(&self) -> Result<Option<(Content, Mark)>, TokenFileError> {
        let io = |source| TokenFileError::Io { path: self.path.clone(), source };
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io)?,
        };
        // Before its text: what is written meanwhile has another mark.
        let mark = Mark::of(&file.metadata().map_err(io)?);
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(io)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(io(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        let content: Result<Content, _> = serde_json::from_slice(&text);
        let form = |source| TokenFileError::Form { path: self.path.clone(), source };
        content.map(|content| Some((content, mark))).map_err(form)
    }

    /// What is in it now, from memory if it is the file that was read last.
    fn now(&self) -> Result<Arc<Content>, TokenFileError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(LastRead { mark, content }) = &*last
            && fs::metadata(&self.path).is_ok_and(|now| Mark::of(&now) == *mark)
        {
            return Ok(Arc::clone(content));
        }
        *last = None;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Some((content, mark)) = self.open()? else { return Ok(Arc::default()) };
        let content = Arc::new(content);
        if mark.is_telling(since_epoch.as_nanos() as i128) {
            *last = Some(LastRead { mark, content: Arc::clone(&content) });
        }
        Ok(content)
    }

    /// Adds a token, in place of one that has its name.
    ///
    /// # Errors
    /// See [`TokenFileError`].
    pub fn put(&self, name: TokenName, kept: Kept) -> Result<(), TokenFileError> {
        let mut content = self.content()?;
        content.tokens.insert(name, kept);
        if content.tokens.len() > TOKENS_MAX {
            return Err(TokenFileError::Full(self.path.clone(), "tokens"));
        }
        self.write(&content)
    }

    /// Takes back a certificate: it is good no more, whatever its end says.
    ///
    /// # Errors
    /// See [`TokenFileError`].
    pub fn revoke(&self, key: KeyHash, revoked: Revoked) -> Result<(), TokenFileError> {
        let mut content = self.content()?;
        content.revoked.entry(key).or_insert(revoked);
        if content.revoked.len() > TOKENS_MAX {
            return Err(TokenFileError::Full(self.path.clone(), "certificates"));
        }
        self.write(&content)
    }

    /// Takes a token back; whether it was there.
    ///
    /// # Errors
    /// See [`TokenFileError`].
    pub fn remove(&self, name: &TokenName) -> Result<bool, TokenFileError> {
        let mut content = self.content()?;
        let was = content.tokens.remove(name).is_some();
        if was {
            self.write(&content)?;
        }
        Ok(was)
    }

    /// Writes all of them: under another name, then renamed, so that a kill leaves the old or the new.
    fn write(&self, content: &Content) -> Result<(), TokenFileError> {
        let write = || -> io::Result<()> {
            let mut fresh = self.path.as_os_str().to_owned();
            fresh.push(".new");
            let fresh = PathBuf::from(fresh);
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut open = OpenOptions::new();
            let mut file = open.write(true).create_new(true).mode(0o600).open(&fresh)?;
            let mut text = serde_json::to_vec_pretty(content)?;
            text.push(b'\n');
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&fresh, &self.path)
        };
        write().map_err(|source| TokenFileError::Io { path: self.path.clone(), source })
    }
}

impl Tokens for TokenFile {
    fn kept(&self, name: &TokenName) -> Option<Kept> {
        match self.now() {
            Ok(content) => content.tokens.get(name).cloned(),
            Err(error) => {
                // Nobody is let in then, and who looks why finds this.
                tracing::error!("{}", crate::chain(&error));
                None
            }
        }
    }

    fn is_revoked(&self, certificate: &Certificate) -> bool {
        match self.now() {
            Ok(content) => content.revoked.contains_key(&certificate.key),
            Err(error) => {
                tracing::error!("{}", crate::chain(&error));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumo_abi::rights::{Role, Scope};

    fn name(text: &str) -> TokenName {
        text.parse().expect("a name")
    }

    #[test]
    fn tokens_are_carried_as_text() {
        let token = Token::new(name("ci-deploy.1")).expect("random bits");
        let text = token.text();
        assert!(text.starts_with("kumo_ci-deploy.1_") && text.len() <= TOKEN_BYTES_MAX, "{text}");
        assert_eq!(Token::parse(&text), Some(token.clone()));
        assert_ne!(Token::new(name("ci-deploy.1")).expect("random bits"), token);
        assert!(!format!("{token:?}").contains(&text[20..]), "logs do not have it");
        let long = format!("{text}{}", "A".repeat(TOKEN_BYTES_MAX));
        for bad in
            ["", "kumo_", "kumo_a_", "kumo_a_AAAA", &text[1..], &text[..text.len() - 1], &long]
        {
            assert_eq!(Token::parse(bad), None, "for {bad:?}");
        }
    }

    #[test]
    fn only_the_token_itself_is_good_and_only_in_time() {
        let token = Token::new(name("a")).expect("random bits");
        let other = Token::new(name("a")).expect("random bits");
        let operate = Rights::of(Role::Operate).with(Scope::CommandLine);
        let kept = Kept::of(&token, operate, Some(Duration::from_secs(1)), 5_000, "me".to_owned());
        let json = serde_json::to_string(&kept).expect("JSON");
        let hash = json.split('"').nth(3).expect("the hash");
        assert!(hash.len() == 64 && !json.contains(&token.text()[7..]), "{json}");
        let kept = serde_json::from_str(&json).expect("what was written");
        let cases = [
            (&token, Some(&kept), 5_999, Some(operate)),
            (&token, Some(&kept), 6_000, None),
            (&other, Some(&kept), 5_999, None),
            (&token, None, 5_999, None),
        ];
        for (token, kept, now_ms, want) in cases {
            assert_eq!(rights(token, kept, now_ms), want, "at {now_ms}");
        }
        let endless = Kept::of(&token, operate, None, 5_000, String::new());
        assert_eq!(rights(&token, Some(&endless), u64::MAX), Some(operate));
        // Of no secret there is such a hash, but nothing must hang on that.
        assert_eq!(rights(&Token { name: name("a"), secret: [0; 32] }, None, 0), None);
    }

    #[test]
    fn what_was_read_is_kept_only_if_any_other_would_be_seen() {
        let second = 1_000_000_000_i128;
        let mark = Mark { device: 1, inode: 2, len_bytes: 3, changed_ns: 100 * second };
        for (read_s, want) in [(100, false), (102, false), (103, true), (200, true), (50, false)] {
            assert_eq!(mark.is_telling(read_s * second), want, "read at {read_s} s");
        }
    }

    #[test]
    fn what_is_kept_of_a_file_is_given_up_when_that_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = TokenFile::at(dir.path().join("tokens.json"));
        let token = Token::new(name("a")).expect("random bits");
        let kept = Kept::of(&token, Rights::VIEW, None, 1, "me".to_owned());
        file.put(name("a"), kept.clone()).expect("written");
        assert_eq!(file.kept(&name("a")), Some(kept.clone()));
        assert!(
            file.last.lock().expect("no panic").is_none(),
            "it may be written in the same moment"
        );
        // As it is when it was written a while ago: its mark tells it from others.
        let keep = |tokens: &str| {
            let mark = Mark::of(&fs::metadata(file.path()).expect("there"));
            let content = serde_json::from_str(tokens).expect("tokens");
            *file.last.lock().expect("no panic") =
                Some(LastRead { mark, content: Arc::new(content) });
        };
        keep(r#"{"tokens":{}}"#);
        assert_eq!(file.kept(&name("a")), None, "it is not read again");
        let text = fs::read(file.path()).expect("there");
        let changes: [&dyn Fn(); 3] = [
            &|| {
                let mark = || Mark::of(&fs::metadata(file.path()).expect("there"));
                let before = mark();
                // Some kernels tell times to some milliseconds.
                while mark() == before {
                    fs::write(file.path(), &text).expect("as long as before, in place");
                }
            },
            &|| file.put(name("b"), kept.clone()).expect("another file"),
            &|| fs::remove_file(file.path()).expect("it was there"),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            keep(r#"{"tokens":{}}"#);
            change();
            let want = if index == 2 { None } else { Some(kept.clone()) };
            assert_eq!(file.kept(&name("a")), want, "after change {index}");
        }
    }

    #[test]
    fn a_file_of_tokens() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = TokenFile::at(dir.path().join("tokens.json"));
        assert!(file.read().expect("none yet").is_empty());
        let token = Token::new(name("a")).expect("random bits");
        let kept = Kept::of(&token, Rights::VIEW, None, 1, "me".to_owned());
        file.put(name("a"), kept.clone()).expect("written");
        file.put(name("b"), kept.clone()).expect("written");
        assert_eq!(file.kept(&name("a")), Some(kept.clone()));
        assert!(file.remove(&name("a")).expect("written"));
        assert!(!file.remove(&name("a")).expect("nothing to do"));
        assert_eq!(file.kept(&name("a")), None, "taken back at once");
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(file.path()).expect("there"));
        assert_eq!(mode & 0o777, 0o600);

        let key = KeyHash::of(b"a key");
        let certificate = Certificate { key, der: Vec::new() };
        assert!(!file.is_revoked(&certificate));
        let revoked = Revoked { name: "alice".to_owned(), at_ms: 5, by: "me".to_owned() };
        file.revoke(key, revoked.clone()).expect("written");
        assert!(file.is_revoked(&certificate), "at once");
        assert_eq!(file.kept(&name("b")), Some(kept.clone()), "tokens stay");
        file.revoke(key, Revoked { at_ms: 9, ..revoked.clone() }).expect("written");
        assert_eq!(file.revoked().expect("read"), [(key, revoked)].into(), "the first counts");
        assert_eq!(key.to_string().parse(), Ok(key));

        fs::write(file.path(), b"{\"tokens\":{\"b\":{\"hash\":\"00\"}}}").expect("written");
        let error = file.put(name("c"), kept).expect_err("damaged").to_string();
        assert!(error.contains("holds no tokens"), "{error}");
        assert_eq!(file.kept(&name("b")), None);
        assert!(file.is_revoked(&certificate), "where it cannot be known");
        assert_eq!(fs::read(file.path()).expect("there").len(), 30, "and it was not written over");
    }
}
