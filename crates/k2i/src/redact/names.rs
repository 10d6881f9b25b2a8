//! What the name of an option, a variable or a header says about its value.
//!
//! A name is taken apart into words (`dbPassword`, `DB_PASSWORD`, `db-password` are two), and words
//! decide: some name secrets, some say that the value is no secret itself but about one (`password-file`,
//! `token-ttl`).

/// What a value is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// A secret.
    Secret,
    /// A user and a secret, parted by `:`.
    Pair,
    /// The text of a header.
    Header,
    /// Nothing that the name tells.
    Harmless,
}

/// Words that name a secret by themselves.
const SECRET: &[&str] = &[
    "password",
    "passwd",
    "passwort",
    "pass",
    "pwd",
    "passphrase",
    "passcode",
    "passwords",
    "pw",
    "pswd",
    "secret",
    "secrets",
    "token",
    "apikey",
    "apitoken",
    "authtoken",
    "accesstoken",
    "secretkey",
    "accesskey",
    "privatekey",
    "credential",
    "credentials",
    "creds",
    "cred",
    "authorization",
    "bearer",
    "jwt",
    "psk",
    "otp",
    "totp",
    "pin",
    "cookie",
    "cookies",
    "sessionid",
    "session",
    "storepass",
    "keypass",
    "passin",
    "passout",
    "userpass",
    "rootpw",
    "adminpw",
    "bindpw",
    "mypass",
    "dbpass",
    "masterkey",
    "webhook",
    "requirepass",
    "accountkey",
    "sharedkey",
    "sas",
    "sig",
    "signature",
];

/// Pairs of words that name one together.
const SECRET_PAIRS: &[(&str, &str)] = &[
    ("api", "key"),
    ("access", "key"),
    ("secret", "key"),
    ("private", "key"),
    ("encryption", "key"),
    ("signing", "key"),
    ("shared", "key"),
    ("master", "key"),
    ("account", "key"),
    ("auth", "key"),
    ("app", "key"),
    ("deploy", "key"),
    ("session", "key"),
    ("license", "key"),
    ("client", "key"),
    ("service", "key"),
    ("admin", "key"),
    ("storage", "key"),
    ("root", "key"),
    ("join", "key"),
    ("unseal", "key"),
    ("encrypt", "key"),
    ("hmac", "key"),
    ("webhook", "url"),
    ("connection", "string"),
    ("auth", "code"),
];

/// Last words that say: the value is about a secret, or says where one is.
const ABOUT: &[&str] = &[
    "file",
    "files",
    "path",
    "paths",
    "dir",
    "directory",
    "url",
    "uri",
    "endpoint",
    "host",
    "port",
    "name",
    "names",
    "type",
    "length",
    "len",
    "size",
    "policy",
    "expiry",
    "expiration",
    "expires",
    "ttl",
    "timeout",
    "lifetime",
    "duration",
    "algorithm",
    "algo",
    "format",
    "mode",
    "method",
    "prompt",
    "stdin",
    "env",
    "command",
    "cmd",
    "provider",
    "helper",
    "backend",
    "manager",
    "store",
    "source",
    "ref",
    "id",
    "ids",
    "arn",
    "version",
    "count",
    "limit",
    "max",
    "min",
    "enabled",
    "disabled",
    "required",
    "rotation",
    "encoder",
    "hasher",
    "authentication",
    "auth",
    "through",
    "field",
    "column",
    "header",
    "domain",
    "scope",
    "issuer",
    "audience",
    "engine",
    "class",
    "plugin",
    "fd",
    "budget",
    "window",
    "location",
    "mount",
];

/// First words that make a switch of a name.
const SWITCH: &[&str] = &[
    "no", "ask", "use", "with", "without", "require", "enable", "disable", "allow", "skip", "show",
    "hide", "by", "max",
];

/// The words of a name, in lower case: at most as many as a name may sensibly have.
fn words(name: &[u8]) -> Vec<String> {
    const WORDS_MAX: usize = 16;
    let mut words: Vec<String> = vec![String::new()];
    let mut before = b'-';
    for (index, byte) in name.iter().enumerate() {
        let follows = name.get(index + 1).copied().unwrap_or(b'-');
        let parts = !byte.is_ascii_alphanumeric();
        // `dbPassword`, `APIKey`.
        let rises = byte.is_ascii_uppercase()
            && (before.is_ascii_lowercase()
                || before.is_ascii_uppercase() && follows.is_ascii_lowercase());
        if (parts || rises) && words.last().is_some_and(|word| !word.is_empty()) {
            words.push(String::new());
        }
        if !parts && let Some(word) = words.last_mut() {
            word.push(byte.to_ascii_lowercase() as char);
        }
        before = *byte;
    }
    words.retain(|word| !word.is_empty());
    let skipped = words.len().saturating_sub(WORDS_MAX);
    words.split_off(skipped)
}

impl Name {
    /// What the value of `name` is.
    pub(super) fn of(name: &[u8]) -> Name {
        let words = words(name);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (Some(first), Some(last)) = (words.first(), words.last()) else {
            return Name::Harmless;
        };
        match words[..] {
            ["header" | "proxyheader" | "headers"] | ["proxy" | "http", "header"] => {
                return Name::Header;
            }
            ["user" | "userpwd"] | ["proxy", "user"] | ["basic" | "http", "auth"] => {
                return Name::Pair;
            }
            _ => {}
        }
        if SWITCH.contains(first) && words.len() > 1 || ABOUT.contains(last) && !is_pair(&words) {
            return Name::Harmless;
        }
        // `monkey`, `turkey` are words of their own; numbers at the end count on: `password2`.
        let trimmed = last.trim_end_matches(|c: char| c.is_ascii_digit());
        let named = |word: &&str| {
            SECRET.contains(word)
                || SECRET.contains(&word.trim_end_matches(|c: char| c.is_ascii_digit()))
        };
        let glued = ["password", "passwd", "secret", "apikey", "passphrase"]
            .iter()
            .any(|end| trimmed.len() > end.len() && trimmed.ends_with(end));
        if words.iter().any(named) && is_value_word(last) || is_pair(&words) || glued {
            return Name::Secret;
        }
        Name::Harmless
    }
}

/// Whether the last two words name a secret together.
fn is_pair(words: &[&str]) -> bool {
    matches!(words, [.., a, b] if SECRET_PAIRS.contains(&(*a, *b)))
        || matches!(words, [.., a, b, number] if SECRET_PAIRS.contains(&(*a, *b)) && number.bytes().all(|c| c.is_ascii_digit()))
}

/// Whether a name with a secret's word in it may end so: `password`, `db-password-prod`, `secret-key`;
/// not `password-reset`, where the word is an adjective.
fn is_value_word(last: &str) -> bool {
    const ALSO: &[&str] = &[
        "key",
        "value",
        "val",
        "text",
        "plain",
        "plaintext",
        "string",
        "prod",
        "production",
        "dev",
        "staging",
        "test",
        "new",
        "old",
        "data",
        "base64",
    ];
    let trimmed = last.trim_end_matches(|c: char| c.is_ascii_digit());
    [last, trimmed].iter().any(|word| SECRET.contains(word) || ALSO.contains(word))
}

/// Whether a header's value is a secret.
pub(super) fn is_header_secret(name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    let name = String::from_utf8_lossy(&name);
    let name = name.trim().trim_start_matches(['"', '\'']);
    matches!(
        name,
        "authorization"
            | "proxy-authorization"
            | "cookie"
            | "set-cookie"
            | "x-api-key"
            | "api-key"
            | "apikey"
            | "x-auth-token"
            | "x-access-token"
            | "x-vault-token"
            | "private-token"
            | "job-token"
            | "x-token"
            | "x-amz-security-token"
            | "x-goog-api-key"
            | "x-csrf-token"
            | "x-auth-key"
            | "ocp-apim-subscription-key"
    ) || Name::of(name.as_bytes()) == Name::Secret
}

/// The name that an assignment between `begin` and `end` has, and where its value begins: after `=`, after
/// `: `, after `":`. Quotes around the name are none of it.
pub(super) fn assignment_name(text: &[u8], begin: usize, end: usize) -> Option<(&[u8], usize)> {
    let piece = &text[begin..end];
    let start =
        piece.iter().take_while(|byte| matches!(byte, b'"' | b'\'' | b'-' | b'/' | b'@')).count();
    let len = piece[start..]
        .iter()
        .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        .count();
    if len == 0 || !piece[start..start + len].iter().any(u8::is_ascii_alphabetic) {
        return None;
    }
    let name = &piece[start..start + len];
    let mut at = begin + start + len;
    let quoted = matches!(text.get(at), Some(b'"' | b'\''));
    at += usize::from(quoted);
    match text.get(at)? {
        b'=' => at += 1,
        // In JSON, YAML and headers; `host:port` and `image:tag` are no assignments.
        b':' if quoted || text.get(at + 1) == Some(&b' ') || is_header_secret(name) => at += 1,
        _ => return None,
    }
    while text.get(at) == Some(&b' ') {
        at += 1;
    }
    // `password:='x'`, `password="x"`.
    while matches!(text.get(at), Some(b'"' | b'\'')) {
        at += 1;
    }
    Some((name, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_names() {
        let cases: [(&str, &[&str]); 7] = [
            ("dbPassword", &["db", "password"]),
            ("DB_PASSWORD", &["db", "password"]),
            ("APIKey", &["api", "key"]),
            ("spring.datasource.password", &["spring", "datasource", "password"]),
            (
                "javax.net.ssl.keyStorePassword",
                &["javax", "net", "ssl", "key", "store", "password"],
            ),
            ("--", &[]),
            ("x", &["x"]),
        ];
        for (name, want) in cases {
            assert_eq!(words(name.as_bytes()), want, "for {name:?}");
        }
        assert_eq!(words("a-".repeat(1_000).as_bytes()).len(), 16);
    }

    #[test]
    fn what_names_say() {
        let secret = [
            "password",
            "db-password",
            "DB_PASS",
            "apiKey",
            "api_key_2",
            "client-secret",
            "GITHUB_TOKEN",
            "password2",
            "mysecret",
            "secret-key",
            "keyStorePassword",
            "SECRET_KEY_BASE64",
        ];
        for name in secret {
            assert_eq!(Name::of(name.as_bytes()), Name::Secret, "for {name:?}");
        }
        let harmless = [
            "password-file",
            "token-ttl",
            "no-password",
            "max-tokens",
            "bypass",
            "monkey",
            "key",
            "passthrough",
            "secret-name",
            "access-key-id",
            "compass",
            "tokenizer",
            "password-reset",
            "pass-through",
            "author",
            "keyboard",
        ];
        for name in harmless {
            assert_eq!(Name::of(name.as_bytes()), Name::Harmless, "for {name:?}");
        }
    }
}
