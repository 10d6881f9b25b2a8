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
    /// Names of secrets with their values: `NAME=VALUE`, each a secret.
    Literal,
    /// Something that is a secret if it looks like one: `--key=/etc/x.pem` is none.
    Weak,
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
    "salt",
    "pepper",
    "hmac",
    "mnemonic",
    "passwords",
    "pswd",
    "contrasena",
    "contraseña",
    "kennwort",
    "senha",
    "certificatekey",
    "setcookie",
    "macopt",
    "masterauth",
    "userpasswd",
    "secretaccesskey",
    "accountpass",
    "adminpass",
];

/// The same as single words only: within a name they say something else.
const SECRET_ALONE: &[&str] = &["pat", "pw", "motdepasse", "upw", "opw", "xp", "ap", "apikeys"];

/// Words at the end of a name whose value is a secret if it looks like one.
const WEAK: &[&str] = &["key", "auth", "login", "seed", "license", "licence", "data", "code"];

/// Words before `key` that say that it is none of secrets.
const OTHER_KEYS: &[&str] = &[
    "public",
    "cache",
    "sort",
    "partition",
    "primary",
    "foreign",
    "host",
    "group",
    "route",
    "routing",
    "hot",
    "index",
    "shard",
    "row",
    "map",
    "order",
    "config",
    "label",
    "sorting",
    "query",
    "object",
    "unique",
    "hash",
    "range",
    "dedup",
    "idempotency",
    "lookup",
    "data",
    "registry",
    "s3",
    "pub",
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
    ("unlock", "code"),
    ("recovery", "code"),
    ("security", "code"),
    ("seed", "phrase"),
    ("totp", "seed"),
    ("recovery", "phrase"),
    ("mac", "key"),
    ("certificate", "key"),
    ("subscription", "key"),
    ("key", "data"),
    ("de", "passe"),
    ("sas", "url"),
    ("hook", "url"),
    ("key", "base"),
    ("secret", "id"),
    ("registration", "key"),
    ("activation", "key"),
    ("agent", "key"),
    ("write", "key"),
    ("read", "key"),
    ("ingest", "key"),
    ("integration", "key"),
    ("consumer", "key"),
    ("function", "key"),
    ("instrumentation", "key"),
    ("gpg", "key"),
    ("hex", "key"),
    ("cipher", "key"),
    ("crypt", "key"),
    ("wrapping", "key"),
    ("recovery", "key"),
    ("preshared", "key"),
    ("auth", "string"),
    ("conn", "string"),
    ("connection", "str"),
    ("connect", "string"),
    ("basic", "token"),
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
    let mut words: Vec<Vec<u8>> = vec![Vec::new()];
    let mut before = b'-';
    for (index, byte) in name.iter().enumerate() {
        let follows = name.get(index + 1).copied().unwrap_or(b'-');
        let parts = byte.is_ascii() && !byte.is_ascii_alphanumeric();
        // `dbPassword`, `APIKey`.
        let rises = byte.is_ascii_uppercase()
            && (before.is_ascii_lowercase()
                || before.is_ascii_uppercase() && follows.is_ascii_lowercase());
        if (parts || rises) && words.last().is_some_and(|word| !word.is_empty()) {
            words.push(Vec::new());
        }
        if !parts && let Some(word) = words.last_mut() {
            word.push(byte.to_ascii_lowercase());
        }
        before = *byte;
    }
    words.retain(|word| !word.is_empty());
    let skipped = words.len().saturating_sub(WORDS_MAX);
    words[skipped..].iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect()
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
            ["header" | "proxyheader" | "headers"]
            | ["proxy" | "http", "header"]
            | [.., "extraheader" | "httpheader"] => {
                return Name::Header;
            }
            ["user" | "userpwd" | "login" | "auth" | "basicauth"]
            | ["proxy", "user"]
            | [.., "basic" | "http" | "proxy", "auth"] => return Name::Pair,
            ["from", "literal"] => return Name::Literal,
            [one] if SECRET_ALONE.contains(&one) => return Name::Secret,
            ["mot", "de", "passe"] => return Name::Secret,
            // It keeps two clusters apart, and everybody sees it.
            [.., "cluster", "token"] => return Name::Harmless,
            _ => {}
        }
        if words.contains(&"existing")
            || matches!(words[..], [.., "key", "id"] | [.., "secret", "id", "accessor"])
        {
            return Name::Harmless;
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
        let glued = [
            "password",
            "passwd",
            "secret",
            "apikey",
            "passphrase",
            "storepass",
            "keypass",
            "passwort",
            "authtoken",
            "accesstoken",
            "secretkey",
            "authkey",
        ]
        .iter()
        .any(|end| trimmed.len() > end.len() && trimmed.ends_with(end));
        let glued = glued || is_glued_short(trimmed);
        if words.iter().any(named) && is_value_word(last) || is_pair(&words) || glued {
            return Name::Secret;
        }
        let other = matches!(words[..], [.., before, "key"] if OTHER_KEYS.contains(&before));
        if WEAK.contains(last) && !other { Name::Weak } else { Name::Harmless }
    }
}

/// Whether a word is a short one for passwords behind another: `dbpass`, `smtppw`. Words of the language
/// end so too.
fn is_glued_short(word: &str) -> bool {
    const WHOSE: &[&str] = &[
        "db",
        "root",
        "smtp",
        "imap",
        "pop",
        "ftp",
        "admin",
        "user",
        "my",
        "sql",
        "mysql",
        "pg",
        "ldap",
        "bind",
        "http",
        "proxy",
        "mail",
        "sudo",
        "su",
        "ssh",
        "vnc",
        "rdp",
        "smb",
        "wifi",
        "key",
        "cert",
        "store",
        "keystore",
        "truststore",
        "ks",
        "enc",
        "sasl",
        "redis",
        "mongo",
        "rpc",
        "web",
        "app",
        "api",
        "repo",
        "ansible",
        "become",
        "vault",
        "svn",
        "site",
        "account",
        "jmx",
        "master",
        "rabbitmq",
        "login",
        "src",
        "dest",
        "pfx",
        "pkcs12",
        "p12",
        "zip",
    ];
    ["pass", "pw", "pwd", "token"]
        .iter()
        .any(|end| word.strip_suffix(end).is_some_and(|whose| WHOSE.contains(&whose)))
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
        "base",
        "hex",
        "hash",
        "primary",
        "secondary",
        "current",
        "master",
        "slave",
        "app",
        "default",
        "raw",
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
    ) || matches!(Name::of(name.as_bytes()), Name::Secret)
        || name.ends_with("-key") && name.starts_with("x-")
}

/// How a header says what kind of secret follows: that is none itself.
pub(super) fn is_scheme(word: &[u8]) -> bool {
    const SCHEMES: &[&str] = &[
        "bearer",
        "basic",
        "digest",
        "token",
        "apikey",
        "api-key",
        "negotiate",
        "ntlm",
        "key",
        "bot",
        "hawk",
        "hmac",
        "splunk",
        "ssws",
        "geniekey",
        "oauth",
        "sso-key",
        "signature",
        "mac",
        "aws4-hmac-sha256",
        "bearertoken",
        "apitoken",
    ];
    SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme.as_bytes()))
}

/// Whether a name is that of a header whose whole line is the secret.
pub(super) fn is_header_line(name: &[u8]) -> bool {
    const LINES: &[&str] =
        &["authorization", "proxy-authorization", "cookie", "set-cookie", "x-authorization"];
    LINES.iter().any(|line| name.eq_ignore_ascii_case(line.as_bytes()))
}

/// How a name and its value are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Joined {
    /// By `:` rather than `=`.
    pub(super) is_colon: bool,
    /// The name stands in quotes.
    pub(super) is_quoted: bool,
}

/// The name that an assignment between `begin` and `end` has, where its value begins (after `=`, `=>`, `:`),
/// and how they are joined. Quotes around the name are none of it.
pub(super) fn assignment_name(
    text: &[u8],
    begin: usize,
    end: usize,
) -> Option<(&[u8], usize, Joined)> {
    let piece = &text[begin..end];
    let starts =
        |byte: &u8| matches!(byte, b'"' | b'\'' | b'-' | b'/' | b'@' | b'$' | b'\\' | b'`' | b'<');
    let start = piece.iter().take_while(|byte| starts(byte)).count();
    let len = piece[start..]
        .iter()
        .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.') || **b >= 0x80)
        .count();
    if len == 0 || !piece[start..start + len].iter().any(u8::is_ascii_alphabetic) {
        return None;
    }
    let name = &piece[start..start + len];
    let mut at = begin + start + len;
    // `\"password\":`, as in a document within a document.
    at += usize::from(text.get(at) == Some(&b'\\'));
    let is_quoted = matches!(text.get(at), Some(b'"' | b'\''));
    at += usize::from(is_quoted);
    // `os.environ['X'] = `
    at += usize::from(is_quoted && text.get(at) == Some(&b']'));
    let blanks = text[at..].iter().take_while(|byte| **byte == b' ').count();
    if matches!(text.get(at + blanks), Some(b'='))
        || is_quoted && text.get(at + blanks) == Some(&b':')
    {
        at += blanks;
    }
    let is_colon = match text.get(at)? {
        b'=' if text.get(at + 1) == Some(&b'=') => return None,
        b'=' => {
            at += 1 + usize::from(text.get(at + 1) == Some(&b'>'));
            false
        }
        b':' if text.get(at + 1) == Some(&b'=') => {
            at += 2;
            false
        }
        // `://` follows a scheme, `::` a module.
        b':' if !matches!(text.get(at + 1), Some(b'/' | b':') | None) => {
            at += 1;
            true
        }
        _ => return None,
    };
    while text.get(at) == Some(&b' ') {
        at += 1;
    }
    // `password:='x'`, `password="x"`, `\"x\"`.
    at += usize::from(text.get(at) == Some(&b'\\') && text.get(at + 1) == Some(&b'"'));
    while matches!(text.get(at), Some(b'"' | b'\'')) {
        at += 1;
    }
    Some((name, at, Joined { is_colon, is_quoted }))
}

/// Whether a name says that its value is a secret so clearly that a colon without quotes is enough:
/// `password: x`, not `sshd-session: root@pts/3`.
pub(super) fn is_strong(name: &[u8]) -> bool {
    const STRONG: &[&str] =
        &["password", "passwd", "secret", "token", "passphrase", "pwd", "apikey", "key"];
    let words = words(name);
    words.last().is_some_and(|last| STRONG.iter().any(|strong| last.ends_with(strong)))
}

/// Whether a word, or the last part of a path of words, names a secret: `password`, `/db/password`.
pub(super) fn is_secret_word(word: &[u8]) -> bool {
    let last = word.rsplit(|byte| matches!(byte, b'/' | b':')).next().unwrap_or(word);
    let is_word = last.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    is_word && last.len() <= 64 && Name::of(last) == Name::Secret
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
        for name in ["key", "ssh-key", "seed"] {
            assert_eq!(Name::of(name.as_bytes()), Name::Weak, "for {name:?}");
        }
    }
}
