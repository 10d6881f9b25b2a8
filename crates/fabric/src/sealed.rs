//! The key of a cluster's authority in a file for the safe, sealed by a passphrase.
//!
//! Who has this file and its passphrase can make nodes of the cluster; who has lost all gateways and
//! has neither must begin a new cluster. The key is derived by PBKDF2-HMAC-SHA256, for which no more
//! than what TLS brings is needed, and the content sealed by ChaCha20-Poly1305, which also covers
//! everything else in the file.

use std::fmt;
use std::num::NonZeroU32;

use data_encoding::{BASE64, HEXLOWER};
use kumo_abi::ClusterName;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2::{PBKDF2_HMAC_SHA256, derive};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::pki::{Authority, AuthorityError};

/// Rounds of the derivation: what OWASP advises for PBKDF2-HMAC-SHA256 since 2023. A third of a second.
pub const ROUNDS: u32 = 600_000;

/// Most rounds that a file may ask for: seconds, not days.
const ROUNDS_MAX: u32 = 20_000_000;

/// Shortest passphrase. The file may lie around for ten years, and be tried against for as long.
pub const PASSPHRASE_CHARS_MIN: usize = 12;

/// Longest file that is read; one has 2 KiB.
pub const SEALED_BYTES_MAX: usize = 64 * 1024;

const FORMAT: &str = "kumo-authority";
const VERSION: u32 = 1;
const KDF: &str = "pbkdf2-hmac-sha256";
const CIPHER: &str = "chacha20-poly1305";
const SALT_BYTES: usize = 16;

/// Why there is no sealed file, or none that opens.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// Too short.
    #[error(
        "the passphrase is too short; it guards the whole cluster, take {PASSPHRASE_CHARS_MIN} characters or more"
    )]
    Short,
    /// No randomness.
    #[error("the system has no randomness")]
    Random,
    /// Something else, or changed.
    #[error("it is no exported authority, or damaged: {0}")]
    Form(String),
    /// Of a later kumo.
    #[error("it has version {0}, and this kumo reads {VERSION}")]
    Version(u32),
    /// Which of the two cannot be told: that is what the seal is for.
    #[error("the passphrase is wrong, or the file is damaged")]
    Closed,
    /// What was sealed is no authority.
    #[error("it was sealed whole, and holds no authority")]
    Authority(#[from] AuthorityError),
}

/// What is in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    version: u32,
    cluster: ClusterName,
    kdf: String,
    rounds: u32,
    salt: String,
    cipher: String,
    nonce: String,
    sealed: String,
}

/// What is in the seal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    certificate: String,
    key: String,
}

impl File {
    /// What stands open in the file, so that no byte of it can be changed either.
    fn open_part(&self) -> String {
        let File { format, version, cluster, kdf, rounds, salt, cipher, nonce, sealed: _ } = self;
        [
            format,
            &version.to_string(),
            cluster.as_str(),
            kdf,
            &rounds.to_string(),
            salt,
            cipher,
            nonce,
        ]
        .join("\n")
    }
}

/// The text of a file that only `passphrase` opens.
///
/// # Errors
/// A passphrase that is too short, or no randomness.
pub fn seal(authority: &Authority, passphrase: &str) -> Result<String, SealedError> {
    if passphrase.chars().count() < PASSPHRASE_CHARS_MIN {
        return Err(SealedError::Short);
    }
    let (mut salt, mut nonce) = ([0; SALT_BYTES], [0; NONCE_LEN]);
    let random = SystemRandom::new();
    random.fill(&mut salt).map_err(|_| SealedError::Random)?;
    random.fill(&mut nonce).map_err(|_| SealedError::Random)?;
    let mut file = File {
        format: FORMAT.to_owned(),
        version: VERSION,
        cluster: authority.cluster().clone(),
        kdf: KDF.to_owned(),
        rounds: ROUNDS,
        salt: HEXLOWER.encode(&salt),
        cipher: CIPHER.to_owned(),
        nonce: HEXLOWER.encode(&nonce),
        sealed: String::new(),
    };
    let content = Content {
        certificate: BASE64.encode(authority.certificate()),
        key: BASE64.encode(authority.key().secret_der()),
    };
    let mut bytes = serde_json::to_vec(&content).expect("two texts are JSON");
    let aad = Aad::from(file.open_part());
    // The key is new with each salt, so no nonce is used with it twice.
    key(passphrase, &salt, ROUNDS)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut bytes)
        .expect("a few KiB can be sealed");
    file.sealed = BASE64.encode(&bytes);
    Ok(serde_json::to_string_pretty(&file).expect("texts and numbers are JSON") + "\n")
}

/// Opens what [`seal`] made. Takes as long as the derivation.
///
/// # Errors
/// See [`SealedError`].
pub fn open(text: &str, passphrase: &str) -> Result<Authority, SealedError> {
    let form = |what: &dyn fmt::Display| SealedError::Form(what.to_string());
    if text.len() > SEALED_BYTES_MAX {
        return Err(form(&"it is too big"));
    }
    // Of a later version the fields may differ.
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| form(&error))?;
    match (value["format"].as_str(), value["version"].as_u64()) {
        (Some(FORMAT), Some(version)) if version == u64::from(VERSION) => {}
        (Some(FORMAT), Some(version)) => {
            return Err(SealedError::Version(u32::try_from(version).unwrap_or(u32::MAX)));
        }
        _ => return Err(form(&"it does not say that it is one")),
    }
    let file: File = serde_json::from_value(value).map_err(|error| form(&error))?;
    if (file.kdf.as_str(), file.cipher.as_str()) != (KDF, CIPHER)
        || !(ROUNDS..=ROUNDS_MAX).contains(&file.rounds)
    {
        return Err(form(&"it is not sealed as we do it"));
    }
    let hex = |text: &str| HEXLOWER.decode(text.as_bytes()).ok();
    let salt = hex(&file.salt).filter(|salt| salt.len() == SALT_BYTES);
    let nonce = hex(&file.nonce).and_then(|nonce| nonce.try_into().ok());
    let (Some(salt), Some(nonce)) = (salt, nonce) else { return Err(form(&"its seal is none")) };
    let mut bytes = BASE64.decode(file.sealed.as_bytes()).map_err(|error| form(&error))?;
    let aad = Aad::from(file.open_part());
    let opened = key(passphrase, &salt, file.rounds)
        .open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut bytes)
        .map_err(|_| SealedError::Closed)?;
    let content: Content = serde_json::from_slice(opened).map_err(|error| form(&error))?;
    let der = |text: &str| BASE64.decode(text.as_bytes()).map_err(|error| form(&error));
    let certificate = CertificateDer::from(der(&content.certificate)?);
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der(&content.key)?));
    Ok(Authority::load(certificate, &key)?)
}

fn key(passphrase: &str, salt: &[u8], rounds: u32) -> LessSafeKey {
    let mut bytes = [0; 32];
    let rounds = NonZeroU32::new(rounds).unwrap_or(NonZeroU32::MIN);
    derive(PBKDF2_HMAC_SHA256, rounds, salt, passphrase.as_bytes(), &mut bytes);
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &bytes).expect("32 bytes are a key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSPHRASE: &str = "eight legs and a web";

    #[test]
    fn only_the_whole_file_opens_and_only_by_its_passphrase() {
        let cluster = "acme".parse().expect("a name");
        let authority = Authority::create(&cluster, 1_800_000_000_000).expect("an authority");
        let text = seal(&authority, PASSPHRASE).expect("sealed");
        let opened = open(&text, PASSPHRASE).expect("opened");
        assert_eq!((opened.hash(), opened.key()), (authority.hash(), authority.key()));
        assert!(!text.contains(&BASE64.encode(authority.key().secret_der())));

        let closed = |text: &str, passphrase: &str| match open(text, passphrase) {
            Err(SealedError::Closed) => {}
            other => panic!("{other:?}"),
        };
        closed(&text, "eight legs and a wep");
        closed(&text.replace("acme", "beta"), PASSPHRASE);
        closed(&text.replace("600000", "600001"), PASSPHRASE);
        let sealed = text.find("\"sealed\": \"").expect("a field") + 20;
        let other = if &text[sealed..=sealed] == "A" { "B" } else { "A" };
        closed(&format!("{}{other}{}", &text[..sealed], &text[sealed + 1..]), PASSPHRASE);
    }

    #[test]
    fn what_is_no_such_file_costs_no_time() {
        let file = |version: u32, rounds: u32| {
            format!(
                r#"{{"format":"{FORMAT}","version":{version},"cluster":"acme","kdf":"{KDF}","rounds":{rounds},
                "salt":"{}","cipher":"{CIPHER}","nonce":"{}","sealed":"AAAA"}}"#,
                "0".repeat(2 * SALT_BYTES),
                "0".repeat(2 * NONCE_LEN)
            )
        };
        let cases = [
            (String::new(), "damaged"),
            ("{}".to_owned(), "does not say"),
            (file(1, ROUNDS)[..100].to_owned(), "damaged"),
            (" ".repeat(SEALED_BYTES_MAX + 1), "too big"),
            (file(2, ROUNDS), "version 2"),
            (file(1, 1), "not sealed as we do it"),
            (file(1, u32::MAX), "not sealed as we do it"),
            (file(1, ROUNDS).replace("nonce\":\"00", "nonce\":\""), "seal is none"),
            (file(1, ROUNDS).replace("AAAA", "*"), "damaged"),
            (file(1, ROUNDS).replace("{\"format", "{\"more\":1,\"format"), "unknown field `more`"),
        ];
        for (text, want) in cases {
            let said = open(&text, PASSPHRASE).expect_err(&text).to_string();
            assert!(said.contains(want), "{said:?} does not say {want:?}");
        }
        let cluster = "acme".parse().expect("a name");
        let authority = Authority::create(&cluster, 1_800_000_000_000).expect("an authority");
        assert!(matches!(seal(&authority, "11 letters."), Err(SealedError::Short)));
    }
}
