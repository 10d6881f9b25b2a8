//! Secrets that what stands around them tells: in SQL, in XML, in lists of names and values, before a pipe
//! into what reads a password.

use std::sync::LazyLock;

use regex::bytes::Regex;

use super::names::is_scheme;
use super::{MASK, is_reference, is_trivial};

/// Each has a group `s`: the secret. `(?i)` stands before all of them.
const PATTERNS: &[&str] = &[
    // SQL.
    r#"\bidentified\s+(?:with\s+\S+\s+)?(?:by|as)\s+(?:password\s+)?['"](?P<s>(?:[^'"]|'')+)"#,
    r#"\bpassword(?:\s+|\s*\(\s*)['"](?P<s>(?:[^'"]|'')+)['"]"#,
    r#"\bset\s+password\b[^=;]*=\s*['"](?P<s>(?:[^'"]|'')+)"#,
    // XML, and lists of names and values.
    r"<(?:[\w-]+:)?[\w-]*(?:password|passwd|passphrase|secret|token|api-?key)[\w-]*(?:\s[^>]*)?>(?P<s>[^<]+)<",
    r#"\b(?:key|name)\s*=\s*"[^"]*(?:pass|pwd|secret|token|api_?key|credential)[^"]*"\s+value\s*=\s*"(?P<s>[^"]+)"#,
    r#""(?:name|key)"\s*:\s*"[^"]*(?:pass|pwd|secret|token|api_?key|credential)[^"]*"\s*,\s*"value"\s*:\s*"(?P<s>[^"]+)"#,
    r"\b(?:name|parameterkey|key)=[^,=\s]*(?:pass|secret|token|key)[^,=\s]*,\s*(?:parameter)?value=(?P<s>[^,\s]+)",
    r#""auth"\s*:\s*"(?P<s>[A-Za-z0-9+/=_-]{8,})""#,
    // Headers in places where they have another name before them, and settings of npm.
    r#"\b(?:proxy-)?authorization\s*:\s*(?:(?:bearer|basic|token|digest|apikey|negotiate)\s+)?(?P<s>[^\s"'$][^"'\n]*)"#,
    r#":_(?:authtoken|password|auth)\s*=\s*(?P<s>[^\s"']+)"#,
    // Addresses that are secrets themselves, or hold them in their own ways.
    r"hooks\.slack\.com/(?:services|workflows|triggers)/(?P<s>[\w/-]+)",
    r"discord(?:app)?\.com/api/(?:v\d+/)?webhooks/(?P<s>[\w/-]+)",
    r"/(?:webhook|webhookb2|incomingwebhook)/(?P<s>[\w/@-]{16,})",
    r"chat\.googleapis\.com/v1/spaces/[^?\s]+\?(?P<s>\S+)",
    r"jdbc:oracle:\w+:[^/\s:@]+/(?P<s>[^@\s]+)@",
    r"\bss://(?P<s>[A-Za-z0-9+/=_-]{16,})",
    // Into what reads a password.
    r#"\b(?:echo|printf)\s+(?:-\w+\s+|["']?%s(?:\\n)?["']?\s+)*(?P<s>"[^"]*"|'[^']*'|[^\s|"'$][^|]*?)\s*\|\s*[^|]*(?:-stdin\b|\bsudo\s+(?:-\w+\s+)*-\w*S|\bcryptsetup\b|\bchpasswd\b|\bkinit\b|\bsmbpasswd\b|\bpasswd\b|--with-token\b|\bopenssl\s+passwd\b|passphrase-fd\s+0|\bvault\s+login\b|\bmkpasswd\b|\bhtpasswd\s+-\w*i|pw-file=-)"#,
    r#"(?:password-stdin|--stdin|sudo\s+-S)\b[^|;&]*<<<\s*["']?(?P<s>[^\s"']+)"#,
    // `Bearer TOKEN` without a header around it, and keys in PuTTY's own form.
    r"\bbearer\s+(?P<s>[A-Za-z0-9._~+/=:-]{16,})",
    r"private-lines:\s*\d+\s+(?P<s>[A-Za-z0-9+/=\s]+)",
];

/// One of these words stands in every text that a pattern fits: most texts have none, and are not looked
/// at again.
const HINTS: &[&[u8]] = &[
    b"identified",
    b"pass",
    b"pwd",
    b"secret",
    b"token",
    b"key",
    b"credential",
    b"auth",
    b"hook",
    b"chat.",
    b"jdbc:oracle",
    b"ss://",
    b"echo",
    b"printf",
    b"stdin",
    b"sudo",
    b"bearer",
    b"private-lines",
    b"sid",
];

static COMPILED: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    // One that does not compile is a bug of ours that the test below finds.
    PATTERNS.iter().filter_map(|pattern| Regex::new(&format!("(?i){pattern}")).ok()).collect()
});

/// The text with all that is found replaced; nothing if nothing is.
pub(super) fn redact(text: &[u8]) -> Option<Vec<u8>> {
    if text.len() < 8 {
        return None;
    }
    let lower = text.to_ascii_lowercase();
    if !HINTS.iter().any(|hint| memchr::memmem::find(&lower, hint).is_some()) {
        return None;
    }
    let mut clean: Option<Vec<u8>> = None;
    if let Some(decoded) = percent_decoded(&lower, text) {
        clean = super::text(&decoded, super::DEPTH_MAX);
    }
    for pattern in COMPILED.iter() {
        let now = clean.as_deref().unwrap_or(text);
        let mut out = Vec::new();
        let mut kept = 0;
        for found in pattern.captures_iter(now) {
            let Some(secret) = found.name("s") else { continue };
            let bytes = secret.as_bytes();
            let inner = super::unquoted(bytes);
            let scheme = inner.iter().position(|byte| *byte == b' ').unwrap_or(0);
            let inner =
                if is_scheme(&inner[..scheme]) { inner[scheme..].trim_ascii() } else { inner };
            if is_reference(inner) || is_trivial(inner) || inner.starts_with(b"$") || inner == MASK
            {
                continue;
            }
            out.extend_from_slice(&now[kept..secret.start()]);
            out.extend_from_slice(MASK);
            kept = secret.end();
        }
        if kept > 0 {
            out.extend_from_slice(&now[kept..]);
            clean = Some(out);
        }
    }
    clean
}

/// A document that was written into an address, `%7B%22…`; nothing if it is none.
fn percent_decoded(lower: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    memchr::memmem::find(lower, b"%22")?;
    let hex = |byte: u8| char::from(byte).to_digit(16);
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let pair =
            text.get(at + 1).copied().and_then(hex).zip(text.get(at + 2).copied().and_then(hex));
        match pair {
            Some((high, low)) if *byte == b'%' => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_patterns_are_good() {
        assert_eq!(COMPILED.len(), PATTERNS.len());
        assert!(
            COMPILED.iter().all(|pattern| pattern.capture_names().any(|name| name == Some("s")))
        );
    }
}
