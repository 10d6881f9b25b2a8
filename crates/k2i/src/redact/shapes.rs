//! What looks like a secret wherever it stands: keys of well-known providers, tokens, private keys, and
//! long texts that look random.

use super::MASK;

/// Shortest text that is taken for a secret because it looks random. Shorter ones are too often names.
const RANDOM_BYTES_MIN: usize = 24;

/// Most places within a run of such characters at which a secret is looked for.
const BEGINNINGS_MAX: usize = 64;

/// A key of a provider: how it begins, and how many characters of its alphabet follow at least.
const KEYS: &[(&str, usize)] = &[
    // AWS
    ("AKIA", 16),
    ("ASIA", 16),
    ("ABIA", 16),
    ("ACCA", 16),
    // GitHub, GitLab, Bitbucket, Gitea
    ("ghp_", 20),
    ("gho_", 20),
    ("ghu_", 20),
    ("ghs_", 20),
    ("ghr_", 20),
    ("github_pat_", 22),
    ("glpat-", 16),
    ("gldt-", 16),
    ("glrt-", 16),
    ("glptt-", 16),
    ("glcbt-", 16),
    ("GR1348941", 16),
    ("ATBB", 24),
    ("ATCTT3", 24),
    ("ATATT3", 24),
    // Chat
    ("xoxb-", 16),
    ("xoxp-", 16),
    ("xoxa-", 16),
    ("xoxr-", 16),
    ("xoxs-", 16),
    ("xoxe-", 16),
    ("xoxe.", 16),
    ("xapp-", 16),
    // Payment
    ("sk_live_", 16),
    ("sk_test_", 16),
    ("rk_live_", 16),
    ("rk_test_", 16),
    ("whsec_", 16),
    ("sq0atp-", 16),
    ("sq0csp-", 16),
    ("EAAA", 40),
    ("access_token$production$", 16),
    // Google
    ("AIza", 30),
    ("ya29.", 16),
    ("GOCSPX-", 20),
    ("1//0", 30),
    // Models
    ("sk-ant-", 16),
    ("sk-proj-", 16),
    ("sk-svcacct-", 16),
    ("sk-or-", 16),
    ("sk-", 20),
    ("hf_", 20),
    ("r8_", 20),
    ("gsk_", 20),
    ("pplx-", 20),
    ("xai-", 20),
    // Packages
    ("npm_", 20),
    ("pypi-", 20),
    ("rubygems_", 20),
    ("dckr_pat_", 16),
    ("dckr_oat_", 16),
    ("cio", 40),
    ("oy2", 40),
    // Mail and messages
    ("SG.", 20),
    ("key-", 32),
    ("xkeysib-", 20),
    ("re_", 20),
    ("mlsn.", 20),
    // Clouds and platforms
    ("dop_v1_", 20),
    ("doo_v1_", 20),
    ("dor_v1_", 20),
    ("hvs.", 20),
    ("hvb.", 20),
    ("hvr.", 20),
    ("dapi", 32),
    ("dp.pt.", 20),
    ("dp.st.", 20),
    ("lin_api_", 20),
    ("glsa_", 20),
    ("glc_", 20),
    ("NRAK-", 20),
    ("NRAL-", 20),
    ("shpat_", 20),
    ("shpss_", 20),
    ("shpca_", 20),
    ("shppa_", 20),
    ("PMAK-", 20),
    ("figd_", 20),
    ("sntrys_", 20),
    ("sntryu_", 20),
    ("phc_", 20),
    ("phx_", 20),
    ("tfp_", 20),
    ("fo1_", 20),
    ("FlyV1", 20),
    ("vercel_", 20),
    ("sbp_", 20),
    ("secret_", 32),
    ("ntn_", 20),
    ("pat-na1-", 20),
    ("pat-eu1-", 20),
    ("CLOJARS_", 20),
    ("AGE-SECRET-KEY-1", 30),
    ("tskey-", 16),
    ("ops_ey", 20),
    ("nfp_", 20),
    ("pul-", 30),
    ("EZAK", 30),
    ("EAAC", 30),
    ("AQVN", 30),
    ("LTAI", 16),
    ("AKID", 30),
    ("sqp_", 30),
    ("squ_", 30),
    ("sqa_", 30),
    ("kumo1.", 30),
    ("glffct-", 16),
    ("glimt-", 16),
    ("glsoat-", 16),
    ("gloas-", 16),
    ("rnd_", 20),
    ("railway_", 20),
    ("sk_", 32),
    ("pk_live_", 20),
    ("ghv1.", 30),
    ("v1.", 40),
    ("sl.", 60),
    ("tvly-", 20),
    ("fw_", 20),
    ("nvapi-", 20),
    ("jina_", 30),
    ("cfut_", 20),
    ("pscale_tkn_", 20),
    ("pscale_pw_", 20),
    ("SWMTKN-1-", 20),
    ("K10", 40),
    ("v1.0-", 60),
];

fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// A byte of Base64, either alphabet.
fn is_base64_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-' | b'_')
}

/// A byte of what a secret may be a part of.
fn is_run_byte(byte: u8) -> bool {
    is_base64_byte(byte) || matches!(byte, b'.' | b':' | b'@' | b'~')
}

/// The text with all that looks like a secret replaced; nothing if there is none.
pub(super) fn redact(text: &[u8]) -> Option<Vec<u8>> {
    if let Some(clean) = private_key(text) {
        return Some(clean);
    }
    let mut out = Vec::new();
    let (mut kept, mut at) = (0, 0);
    let mut begun = 0;
    while at < text.len() {
        if !is_run_byte(text[at]) {
            begun = 0;
        }
        // A word begins where none of its characters stands before.
        let before = at.checked_sub(1).map(|before| text[before]);
        if before.is_some_and(|byte| byte.is_ascii_alphanumeric()) {
            at += 1;
            continue;
        }
        // The digest of a file in the form that browsers and package managers have.
        if [&b"sha256-"[..], b"sha384-", b"sha512-"]
            .iter()
            .any(|begin| text[at..].starts_with(begin))
        {
            at += text[at..].iter().take_while(|byte| is_base64_byte(**byte)).count();
            continue;
        }
        // Each beginning is looked at to the end of its run: a run of dashes must not cost its square.
        begun += 1;
        if begun > BEGINNINGS_MAX {
            at += 1;
            continue;
        }
        match secret_len(&text[at..]) {
            Some(len) => {
                out.extend_from_slice(&text[kept..at]);
                out.extend_from_slice(MASK);
                at += len;
                kept = at;
            }
            None => at += 1,
        }
    }
    if kept == 0 {
        return None;
    }
    out.extend_from_slice(&text[kept..]);
    Some(out)
}

/// How long the secret is that begins here.
fn secret_len(text: &[u8]) -> Option<usize> {
    provider_len(text)
        .or_else(|| jwt_len(text))
        .or_else(|| telegram_len(text))
        .or_else(|| own_token_len(text))
        .or_else(|| hexadecimal_len(text))
        .or_else(|| random_len(text))
}

fn provider_len(text: &[u8]) -> Option<usize> {
    KEYS.iter().find_map(|(begin, least)| {
        let rest = text.strip_prefix(begin.as_bytes())?;
        let len = rest.iter().take_while(|byte| is_key_byte(**byte)).count();
        let body = &rest[..len];
        let digits = body.iter().filter(|byte| byte.is_ascii_digit()).count();
        // Names that begin so (`key-value-store-…`) have words, not digits.
        let is_upper = body.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
        let is_key = digits >= 2 || is_upper || looks_random(body);
        (len >= *least && is_key).then_some(begin.len() + len)
    })
}

/// `eyJ….eyJ….…`: a JSON web token; its parts begin with `{"` in Base64.
fn jwt_len(text: &[u8]) -> Option<usize> {
    if !text.starts_with(b"eyJ") {
        return None;
    }
    let len = text.iter().take_while(|byte| is_base64_byte(**byte) || **byte == b'.').count();
    let dots = memchr::memchr_iter(b'.', &text[..len]).count();
    (dots >= 1 && len >= 32).then_some(len)
}

/// `kumo_NAME_SECRET`: one of ours.
fn own_token_len(text: &[u8]) -> Option<usize> {
    let rest = text.strip_prefix(b"kumo_")?;
    let name =
        rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    let name = name.count();
    let secret = rest[name..].strip_prefix(b"_")?;
    let len =
        secret.iter().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')).count();
    (name > 0 && len >= 32).then_some(5 + name + 1 + len)
}

/// Keys of hexadecimal digits that say themselves what they are: Twilio's `SK…` and `AC…:…`, Mailchimp's
/// `…-us12`.
fn hexadecimal_len(text: &[u8]) -> Option<usize> {
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let ends = |at: usize| !text.get(at).is_some_and(u8::is_ascii_alphanumeric);
    if text.starts_with(b"SK") && digits(&text[2..]) == 32 && ends(34) {
        return Some(34);
    }
    let is_pair =
        text.starts_with(b"AC") && digits(&text[2..]) == 32 && text.get(34) == Some(&b':');
    if is_pair && digits(&text[35..]) == 32 {
        return Some(67);
    }
    let rest = text.get(32..).filter(|_| digits(text) == 32)?.strip_prefix(b"-us")?;
    let number = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    ((1..=2).contains(&number)).then_some(35 + number)
}

/// `123456789:AA…`: a bot's token.
fn telegram_len(text: &[u8]) -> Option<usize> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(8..=10).contains(&digits) || text.get(digits) != Some(&b':') {
        return None;
    }
    let len = text[digits + 1..]
        .iter()
        .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        .count();
    (len >= 35).then_some(digits + 1 + len)
}

fn random_len(text: &[u8]) -> Option<usize> {
    // A path or a name with its version goes on behind what it begins with, so all of it is looked at.
    let len = text.iter().take_while(|byte| is_run_byte(**byte)).count();
    let word = &text[..len];
    let core = word.iter().take_while(|byte| is_base64_byte(**byte)).count();
    is_random(&word[..core]).then_some(core)
}

/// Whether a text is long and looks random, as keys and encoded bytes do. Hexadecimal texts are not
/// taken for secrets: commits, digests, containers and identities are what command lines are full of.
pub(super) fn is_random(text: &[u8]) -> bool {
    if text.len() < RANDOM_BYTES_MIN || !text.iter().all(|byte| is_base64_byte(*byte)) {
        return false;
    }
    // Of a path each part is looked at; Base64 has a slash every 64 characters, a path every few.
    let longest = text.split(|byte| *byte == b'/').max_by_key(|part| part.len()).unwrap_or(text);
    let slashes = memchr::memchr_iter(b'/', text).count();
    if slashes > 0 && text.len() / (slashes + 1) < 12 {
        return false;
    }
    let first = text.split(|byte| *byte == b'/').next().unwrap_or_default();
    if slashes > 0 && first.len() >= 3 && first.iter().all(u8::is_ascii_lowercase) {
        return false;
    }
    looks_random(if slashes > 0 && longest.len() >= RANDOM_BYTES_MIN { longest } else { text })
}

fn looks_random(text: &[u8]) -> bool {
    let count = |is: fn(&u8) -> bool| text.iter().filter(|byte| is(byte)).count();
    let (upper, lower, digits) =
        (count(u8::is_ascii_uppercase), count(u8::is_ascii_lowercase), count(u8::is_ascii_digit));
    if upper < 2 || lower < 2 || digits < 2 {
        return false;
    }
    // Words of a name are written alike; in a random text the kind of letter changes at every third one or so.
    let kind = |byte: &u8| match byte {
        b'A'..=b'Z' => Some(0),
        b'a'..=b'z' => Some(1),
        b'0'..=b'9' => Some(2),
        _ => None,
    };
    let differ =
        |two: &&[u8]| matches!((kind(&two[0]), kind(&two[1])), (Some(a), Some(b)) if a != b);
    let changes = text.windows(2).filter(differ).count();
    changes * 10 >= text.len() * 3 && entropy(text) >= 3.5
}

/// Bits a character, by how often each occurs.
fn entropy(text: &[u8]) -> f64 {
    let mut counts = [0_usize; 256];
    for byte in text {
        counts[usize::from(*byte)] += 1;
    }
    let total = text.len() as f64;
    let bits = |count: &usize| {
        let share = *count as f64 / total;
        -share * share.log2()
    };
    counts.iter().filter(|count| **count > 0).map(bits).sum()
}

/// A private key in PEM, from its first line on.
fn private_key(text: &[u8]) -> Option<Vec<u8>> {
    let begin = find(text, b"-----BEGIN ")?;
    let rest = &text[begin..];
    let line =
        rest.iter().skip(11).position(|byte| *byte == b'-').map(|len| &rest[11..11 + len])?;
    find(line, b"PRIVATE KEY")?;
    let ends = find(rest, b"-----END ")
        .and_then(|end| Some(end + 9 + find(&rest[end + 9..], b"-----")? + 5));
    let mut out = text[..begin].to_vec();
    out.extend(MASK);
    out.extend_from_slice(&rest[ends.unwrap_or(rest.len())..]);
    Some(out)
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_texts_and_names() {
        let random = [
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY1",
            "dGhpcyBpcyBhIHRlc3Qgb2YgQmFzZTY0IDEyMw==",
            "Zx8Kq2Lw9Pv4Rt6Ys1Bn3Mc5Hd7",
            "kJ8s-2Lw9_Pv4Rt6Ys1Bn3Mc5Hd7",
        ];
        for text in random {
            assert!(is_random(text.as_bytes()), "{text}");
        }
        let names = [
            "org/apache/hadoop/hdfs/server/NameNode2",
            "0123456789abcdef0123456789abcdef01234567",
            "GlobalAutoscalerConfigurationManagerFactory2024",
            "/usr/lib/x86_64-linux-gnu/libexec/Foo9",
            "kube-controller-manager-Leader-Election-V2",
            "2024-01-01T00-00-00Z-Backup-Of-Everything",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "short1A",
        ];
        for text in names {
            assert!(!is_random(text.as_bytes()), "{text}");
        }
    }
}
