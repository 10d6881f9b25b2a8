//! Takes secrets out of command lines, for those who may see a process but not what it was told.
//!
//! A secret is found by its name (`--password=…`, `TOKEN=…`, `Authorization: …`, [`names`]), by the
//! program that takes it (`mysql -p…`, [`programs`]), by where it stands (`scheme://user:secret@host`),
//! or by its shape (keys of well-known providers, tokens, private keys, random texts, [`shapes`]). What
//! is found is replaced by [`MASK`], whatever its length; the rest stays as it is, so that a line still
//! says what runs. Rules like these miss secrets that look like words: who must be sure shows no
//! arguments at all ([`strip`]).
//!
//! Pure functions of bytes. Nothing here decides who may see what.

mod context;
mod names;
mod programs;
mod script;
mod shapes;

use std::borrow::Cow;

use self::names::{Name, assignment_name, is_header_line, is_header_secret, is_scheme, is_strong};
use self::programs::{Takes, takes};

/// What stands where a secret was.
pub const MASK: &[u8] = b"*****";

/// Longest argument that is looked into. A longer one is a document (a script, a certificate, JSON) in
/// which anything may stand, and is left out as a whole.
pub const ARGUMENT_BYTES_MAX: usize = 16 * 1024;

/// Quotes, brackets and the like: how texts within an argument are nested.
const DEPTH_MAX: usize = 3;

/// The arguments without secrets; borrowed if there are none. `argv` is as the kernel has it: each
/// argument ended by NUL. A title that a program wrote over it, without NUL, is read as a shell would.
pub fn redact(argv: &[u8]) -> Cow<'_, [u8]> {
    let is_title = !argv[..argv.len().saturating_sub(1)].contains(&0) && argv.contains(&b' ');
    if is_title {
        let (title, end) = argv.split_at(argv.len() - usize::from(argv.ends_with(b"\0")));
        return match text(title, 0) {
            Some(clean) => Cow::Owned([&clean, end].concat()),
            None => Cow::Borrowed(argv),
        };
    }
    let arguments: Vec<&[u8]> = argv.split(|byte| *byte == 0).collect();
    let clean = redact_arguments(&arguments, 0);
    if clean.iter().zip(&arguments).all(|(clean, argument)| clean == argument) {
        return Cow::Borrowed(argv);
    }
    Cow::Owned(clean.join(&0))
}

/// The same of the beginning of arguments: what may be a part of an argument is left out, as nobody knows
/// what it was a part of.
pub fn beginning(argv: &[u8]) -> Cow<'_, [u8]> {
    if argv.is_empty() || argv.ends_with(b"\0") {
        return redact(argv);
    }
    let by = if argv.contains(&0) { 0 } else { b' ' };
    let end = argv.iter().rposition(|byte| *byte == by).map_or(0, |at| at + 1);
    Cow::Owned([&redact(&argv[..end]), MASK].concat())
}

/// The program alone, and [`MASK`] if there were arguments.
pub fn strip(argv: &[u8]) -> Vec<u8> {
    let end = argv.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(argv.len());
    let mut stripped = argv[..end].to_vec();
    if argv[end..].iter().any(|byte| !matches!(byte, 0 | b' ')) {
        stripped.push(0);
        stripped.extend(MASK);
    }
    stripped.push(0);
    stripped
}

/// What the next argument is, by the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing is known of it.
    Any,
    /// A secret, as a whole.
    Secret,
    /// A secret, unless it looks like an option.
    Value,
    /// A secret if it looks like one.
    Weak,
    /// A user and a secret behind this character.
    Pair(u8),
    /// The text of a header.
    Header,
    /// Commands for a shell.
    Script,
    /// `name=value`, with a secret whatever its name.
    Literal,
}

fn redact_arguments<'a>(arguments: &[&'a [u8]], depth: usize) -> Vec<Cow<'a, [u8]>> {
    let mut clean = Vec::with_capacity(arguments.len());
    let mut next = Next::Any;
    let mut program = programs::Program::default();
    for argument in arguments {
        let now = std::mem::replace(&mut next, Next::Any);
        let (text, follows) = one(argument, now, &mut program, depth);
        next = follows;
        clean.push(text);
    }
    clean
}

/// One argument, and what it says of the next.
fn one<'a>(
    argument: &'a [u8],
    now: Next,
    program: &mut programs::Program<'a>,
    depth: usize,
) -> (Cow<'a, [u8]>, Next) {
    if argument.is_empty() {
        return (argument.into(), Next::Any);
    }
    if argument.len() > ARGUMENT_BYTES_MAX {
        return (MASK.into(), Next::Any);
    }
    let any = |argument: &'a [u8]| text(argument, depth).map_or(argument.into(), Cow::Owned);
    match now {
        Next::Secret => return (value(argument), Next::Any),
        Next::Value if !argument.starts_with(b"-") => return (value(argument), Next::Any),
        Next::Weak if looks_secret(argument) => return (MASK.into(), Next::Any),
        Next::Pair(by) if !argument.starts_with(b"-") => {
            return (pair(argument, by, depth), Next::Any);
        }
        Next::Header => return (header(argument, depth), Next::Any),
        Next::Script => return (any(argument), Next::Any),
        Next::Literal => {
            let at = argument.iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1);
            return (masked_from(argument, at), Next::Any);
        }
        Next::Value | Next::Weak | Next::Pair(_) | Next::Any => {}
    }
    match takes(program, argument) {
        Takes::Nothing => {}
        Takes::Here(at) => return (masked_from(argument, at), Next::Any),
        Takes::PairHere(at, by) => {
            let clean = [&argument[..at], &pair(&argument[at..], by, depth)].concat();
            return (clean.into(), Next::Any);
        }
        Takes::HeaderHere(at) => {
            return ([&argument[..at], &header(&argument[at..], depth)].concat().into(), Next::Any);
        }
        Takes::Next => return (argument.into(), Next::Secret),
        Takes::NextPair(by) => return (argument.into(), Next::Pair(by)),
        Takes::NextHeader => return (argument.into(), Next::Header),
        Takes::NextText => return (argument.into(), Next::Any),
        Takes::NextValue => return (argument.into(), Next::Value),
    }
    if is_shell_option(argument) {
        return (argument.into(), Next::Script);
    }
    if let Some(clean) = assigned(argument, depth) {
        return (clean.into(), Next::Any);
    }
    if argument.starts_with(b"-")
        && let Some(name) = option_name(argument)
    {
        return match Name::of(name) {
            Name::Secret => (argument.into(), Next::Value),
            Name::Pair => (argument.into(), Next::Pair(b':')),
            Name::Header => (argument.into(), Next::Header),
            Name::Literal => (argument.into(), Next::Literal),
            Name::Weak => (argument.into(), Next::Weak),
            Name::Harmless => (argument.into(), Next::Any),
        };
    }
    (any(argument), Next::Any)
}

/// `-c`, `-lc`, `-xec`: what follows is for a shell, and may assign before it runs.
fn is_shell_option(argument: &[u8]) -> bool {
    argument.len() <= 5
        && argument.starts_with(b"-")
        && argument.ends_with(b"c")
        && argument[1..].iter().all(u8::is_ascii_lowercase)
}

/// An argument that assigns a secret as a whole: `--password=correct horse`, `/password:x`, `PASS=a b`.
/// Nothing if it is none.
fn assigned(argument: &[u8], depth: usize) -> Option<Vec<u8>> {
    let dashes = argument.iter().take_while(|byte| **byte == b'-').count();
    let is_option = dashes > 0 || argument.starts_with(b"/");
    let begin = if argument.starts_with(b"/") { 1 } else { dashes };
    let len =
        argument[begin..].iter().take_while(|byte| is_name_byte(**byte) && **byte != b':').count();
    let name = &argument[begin..begin + len];
    let by = *argument.get(begin + len)?;
    if len == 0 || !(by == b'=' || by == b':' && is_option) {
        return None;
    }
    let at = begin + len + 1;
    let secret = &argument[at..];
    match Name::of(name) {
        Name::Secret => {
            // `-storepass:env NAME` says where it is.
            let is_kind = by == b':' && matches!(secret, b"env" | b"file");
            if is_reference(secret) || is_trivial(secret) || is_kind {
                return None;
            }
            let end = at + assigned_len(secret);
            // A word that is parted by what a shell parts is for others to read.
            let has_more = !is_option && secret.iter().any(|byte| matches!(byte, b';' | b'|'));
            (!has_more).then(|| {
                let rest = &argument[end..];
                let rest = text(rest, depth + 1).unwrap_or_else(|| rest.to_vec());
                [&argument[..at], MASK, &rest].concat()
            })
        }
        Name::Weak if looks_secret(secret) => Some([&argument[..at], MASK].concat()),
        Name::Literal => {
            let equals = secret.iter().position(|byte| *byte == b'=')?;
            Some(masked_from(argument, at + equals + 1).into_owned())
        }
        Name::Pair if is_option => Some([&argument[..at], &pair(secret, b':', depth)].concat()),
        Name::Header if is_option => Some([&argument[..at], &header(secret, depth)].concat()),
        _ => None,
    }
}

/// How long an assigned value is: to the end, or to where another assignment begins.
fn assigned_len(value: &[u8]) -> usize {
    let begins_another = |at: &usize| {
        let parts = matches!(value[*at], b',' | b';' | b'&' | b' ');
        let rest = &value[at + 1..];
        let blank = rest.iter().take(8).take_while(|byte| **byte == b' ').count();
        let rest = &rest[blank..];
        let name = rest.iter().take_while(|byte| is_name_byte(**byte) && **byte != b':').count();
        parts && name > 0 && rest.get(name) == Some(&b'=') && rest.get(name + 1) != Some(&b'=')
    };
    (0..value.len()).find(begins_another).unwrap_or(value.len())
}

/// The name of an option, without its dashes: `--api-key` and `-storepass`, not `-p`.
fn option_name(argument: &[u8]) -> Option<&[u8]> {
    let name = argument.strip_prefix(b"--").or_else(|| argument.strip_prefix(b"-"))?;
    let name = name.strip_prefix(b"//").unwrap_or(name);
    (name.len() > 1 && name.iter().all(|byte| is_name_byte(*byte))).then_some(name)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':') || byte >= 0x80
}

fn masked_from(argument: &[u8], at: usize) -> Cow<'_, [u8]> {
    let secret = unquoted(&argument[at.min(argument.len())..]);
    if secret.is_empty() || is_reference(secret) || is_trivial(secret) {
        return argument.into();
    }
    [&argument[..at], MASK].concat().into()
}

/// Without quotes at both ends.
fn unquoted(text: &[u8]) -> &[u8] {
    match text {
        [first @ (b'"' | b'\''), inner @ .., last] if first == last => inner,
        _ => text,
    }
}

/// The value of something that is named as a secret: all of it, unless it says where the secret is.
fn value(text: &[u8]) -> Cow<'_, [u8]> {
    if is_reference(unquoted(text)) || is_trivial(text) { text.into() } else { MASK.into() }
}

/// `user:secret`, by whatever character; without one it is a user. `1000:1000` and `node:node` are users
/// and groups, `C:\x` and `./x:y` are files.
fn pair(text: &[u8], by: u8, depth: usize) -> Cow<'_, [u8]> {
    let Some(at) = text.iter().position(|byte| *byte == by) else {
        return shapes::redact(text).map_or(text.into(), Cow::Owned);
    };
    // `scheme://user:secret@host` is a URL wherever it stands.
    if by != b',' && text[at..].starts_with(b"://") {
        return self::text(text, depth + 1).map_or(text.into(), Cow::Owned);
    }
    let (user, secret) = (&text[..at], &text[at + 1..]);
    let is_number = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
    if user == secret || is_number(user) && is_number(secret) && !user.is_empty() {
        return text.into();
    }
    // `user:secret@host` keeps its host.
    let host = secret.iter().rposition(|byte| *byte == b'@').filter(|at| *at > 0 && by != b'%');
    let (secret, host) = host.map_or((secret, &b""[..]), |at| secret.split_at(at));
    if secret.is_empty() || is_reference(unquoted(secret)) {
        return text.into();
    }
    [&text[..=at], MASK, host].concat().into()
}

/// `Name: value`.
fn header(line: &[u8], depth: usize) -> Cow<'_, [u8]> {
    let plain = |line| text(line, depth + 1).map_or(Cow::Borrowed(line), Cow::Owned);
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return plain(line) };
    let name = line[..colon].trim_ascii();
    let name = name.strip_prefix(b"\"").or(name.strip_prefix(b"'")).unwrap_or(name);
    if !is_header_line(name) && !is_header_secret(name) {
        return plain(line);
    }
    let blank = line[colon + 1..].iter().take_while(|byte| **byte == b' ').count();
    let begin = colon + 1 + blank;
    let word = line[begin..].iter().position(|byte| *byte == b' ').unwrap_or(0);
    // `Bearer`, `Basic`, `token` say how, and are no secret.
    let at = if is_scheme(&line[begin..begin + word]) { begin + word + 1 } else { begin };
    let secret = &line[at..];
    // A quote that opened before the name.
    let end = secret.iter().rposition(|b| !matches!(b, b'"' | b'\'')).map_or(0, |last| last + 1);
    let (secret, quote) = secret.split_at(end);
    if secret.is_empty() || is_reference(secret) {
        return line.into();
    }
    [&line[..at], MASK, quote].concat().into()
}

/// Whether a value only says where the secret is: a file, a variable, a store.
fn is_reference(value: &[u8]) -> bool {
    let begins = [
        &b"/"[..],
        b"./",
        b"../",
        b"~/",
        b"@/",
        b"file:",
        b"env:",
        b"fd:",
        b"stdin",
        b"${",
        b"$(",
        b"%{",
        b"{{",
        b"<(",
        b"`",
        b"id=",
        b"vault:",
        b"secretsmanager:",
        b"arn:aws:secretsmanager:",
        b"arn:aws:ssm:",
        b"op://",
        b"keyring:",
        b"prompt",
    ];
    let value = value.strip_prefix(b"\"").unwrap_or(value);
    let variable = value.strip_prefix(b"$").map(|name| name.strip_suffix(b"\"").unwrap_or(name));
    // What begins like a path may be Base64: then it has few slashes and looks random.
    begins.iter().any(|begin| value.starts_with(begin)) && !shapes::is_random(value)
        || variable.is_some_and(|name| name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_'))
        || value == b"-"
}

/// Whether a value is a switch or an emptiness, and no secret.
fn is_trivial(value: &[u8]) -> bool {
    const WORDS: [&[u8]; 16] = [
        b"",
        b"true",
        b"false",
        b"yes",
        b"no",
        b"on",
        b"off",
        b"none",
        b"null",
        b"auto",
        b"required",
        b"optional",
        b"nil",
        b"''",
        b"\"\"",
        b"default",
    ];
    let lower = value.to_ascii_lowercase();
    // `<pad>`, `[UNK]`: as texts are taken apart for models.
    let is_mark = matches!(value, [b'<', .., b'>'] | [b'[', .., b']']);
    WORDS.contains(&lower.as_slice()) || value == MASK || is_mark
}

/// Whether the value of a name like `key` is one: long, of letters and digits, and no name or path.
fn looks_secret(value: &[u8]) -> bool {
    const BYTES_MIN: usize = 16;
    let count = |is: fn(&u8) -> bool| value.iter().filter(|byte| is(byte)).count();
    let (letters, digits) = (count(u8::is_ascii_alphabetic), count(u8::is_ascii_digit));
    let core = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'=' | b'_' | b'-');
    let dashes = count(|byte| matches!(byte, b'-' | b'_'));
    value.len() >= BYTES_MIN
        && value.iter().all(core)
        && letters >= 4
        && digits >= 2
        && dashes * 8 < value.len()
}

/// One way to find secrets in a text. Nothing if it holds none.
type Pass<'a> = &'a dyn Fn(&[u8]) -> Option<Vec<u8>>;

/// Any text: commands, assignments, URLs, what stands beside it, and shapes. Nothing if it holds no
/// secret.
fn text(text: &[u8], depth: usize) -> Option<Vec<u8>> {
    // What is nested deeper is nobody's command line, and would cost its length at every level.
    if depth > DEPTH_MAX {
        return shapes::redact(text);
    }
    let mut clean: Option<Vec<u8>> = None;
    let passes: [Pass<'_>; 4] = [
        &|text| if depth < DEPTH_MAX { script::redact(text, depth + 1) } else { None },
        &|text| pieces(text, depth),
        &|text| context::redact(text),
        &|text| shapes::redact(text),
    ];
    for pass in passes {
        let cleaner = pass(clean.as_deref().unwrap_or(text));
        clean = cleaner.or(clean);
    }
    clean
}

/// Assignments and URLs in a text.
fn pieces(text: &[u8], depth: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut changed = false;
    let mut at = 0;
    while at < text.len() {
        let end = piece_end(text, at);
        let (begin, piece) = (at, &text[at..end]);
        at = end;
        if let Some(clean) = piece_text(text, begin, &mut at, depth) {
            out.extend(clean);
            changed = true;
            continue;
        }
        out.extend_from_slice(piece);
        if at < text.len() && at == end {
            out.push(text[at]);
            at += 1;
        }
    }
    changed.then_some(out)
}

/// Where what begins at `at` ends: pieces are parted by what parts assignments and words.
fn piece_end(text: &[u8], at: usize) -> usize {
    let parts = |byte: &u8| {
        matches!(
            byte,
            b' ' | b'\t'
                | b'\n'
                | b'&'
                | b';'
                | b','
                | b'?'
                | b'{'
                | b'}'
                | b'['
                | b']'
                | b'('
                | b')'
                | b'#'
        )
    };
    text[at..].iter().position(parts).map_or(text.len(), |len| at + len)
}

/// A piece that is an assignment or a URL with a secret; then `at` is set behind what was read.
fn piece_text(text: &[u8], begin: usize, at: &mut usize, depth: usize) -> Option<Vec<u8>> {
    // In a URL `?`, `#` and the like may stand in the secret, so it is looked at beyond the piece.
    if let Some((clean, len)) = url(&text[begin..], *at - begin) {
        *at = begin + len;
        return Some(clean);
    }
    let end = *at;
    let (name, value_at, how) = assignment_name(text, begin, end)?;
    let line_end = || {
        let len = text[begin..].iter().position(|b| matches!(b, b'\n'));
        len.map_or(text.len(), |len| begin + len)
    };
    if how.is_colon && is_header_line(name) {
        let is_quote = |byte: &u8| matches!(byte, b'"' | b'\'');
        let before = begin.checked_sub(1).map(|before| text[before]).filter(is_quote);
        let quote = before.or_else(|| text.get(begin).copied().filter(is_quote));
        let close = quote.and_then(|quote| text[value_at..].iter().position(|b| *b == quote));
        let end = close.map_or_else(line_end, |len| value_at + len);
        let clean = header(&text[begin..end], depth).into_owned();
        return (clean != text[begin..end]).then(|| {
            *at = end;
            clean
        });
    }
    match Name::of(name) {
        Name::Secret => {}
        Name::Header => {
            let line_end = line_end();
            let line = header(&text[value_at..line_end], depth);
            if *line == text[value_at..line_end] {
                return None;
            }
            *at = line_end;
            return Some([&text[begin..value_at], &line].concat());
        }
        Name::Pair if !how.is_colon => {
            let value_end = value_end(text, value_at);
            let clean = pair(&text[value_at..value_end], b':', depth);
            if *clean == text[value_at..value_end] {
                return None;
            }
            *at = value_end;
            return Some([&text[begin..value_at], &clean].concat());
        }
        Name::Weak => {
            let value_end = value_end(text, value_at);
            if !looks_secret(&text[value_at..value_end]) {
                return None;
            }
            *at = value_end;
            return Some([&text[begin..value_at], MASK].concat());
        }
        Name::Literal | Name::Pair | Name::Harmless => {
            // `--set=db.password=x`, `-e 'a="b=c"'`: an assignment in the value.
            if depth >= DEPTH_MAX || value_at >= end {
                return None;
            }
            let inner = pieces(&text[value_at..end], depth + 1)?;
            return Some([&text[begin..value_at], &inner].concat());
        }
    }
    let value_end = value_end(text, value_at);
    let secret = &text[value_at..value_end];
    if is_reference(secret) || is_trivial(secret) || secret.is_empty() {
        return None;
    }
    // `token: fix refresh` is a sentence; `image:v1` and `session:6379` are no secrets.
    if how.is_colon
        && !how.is_quoted
        && !(is_strong(name) && is_colon_secret(text, value_at, value_end))
    {
        // `Credentials:key=x`: an assignment in the value.
        let value = text.get(value_at..end).filter(|_| depth < DEPTH_MAX)?;
        return Some([&text[begin..value_at], &pieces(value, depth + 1)?].concat());
    }
    *at = value_end;
    Some([&text[begin..value_at], MASK].concat())
}

/// Whether what stands behind a name and a colon, neither in quotes, is a secret.
fn is_colon_secret(text: &[u8], begin: usize, end: usize) -> bool {
    let secret = &text[begin..end];
    let line =
        text[end..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |len| end + len);
    let is_alone =
        text[end..line].iter().all(|byte| matches!(byte, b' ' | b'\r' | b'"' | b'\'' | b'}'));
    let has = |is: fn(&u8) -> bool| secret.iter().any(is);
    let is_mixed = has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic);
    let is_spaced =
        begin.checked_sub(1).is_some_and(|before| matches!(text[before], b' ' | b'"' | b'\''));
    if is_spaced { is_alone || is_mixed } else { is_mixed && secret.len() >= 6 }
}

/// Where a value ends that begins at `at`: at its closing quote, else where words part.
fn value_end(text: &[u8], at: usize) -> usize {
    let quote = at.checked_sub(1).map(|before| text[before]).filter(|b| matches!(b, b'"' | b'\''));
    let Some(quote) = quote else {
        let parts = |byte: &u8| {
            matches!(byte, b' ' | b'\t' | b'\n' | b'&' | b';' | b',' | b'}' | b'"' | b'\'')
        };
        return text[at..].iter().position(parts).map_or(text.len(), |len| at + len);
    };
    // `it''s` and `a\"b` go on behind the quote.
    let mut end = at;
    while end < text.len() {
        match text[end] {
            b'\\' => end += 2,
            byte if byte == quote && text.get(end + 1) == Some(&quote) && quote == b'\'' => {
                end += 2;
            }
            byte if byte == quote => return end,
            _ => end += 1,
        }
    }
    text.len()
}

/// Whether `user:secret@host` is what it looks like: `npm:react@latest`, `a:5000/x@sha256:…` are not.
fn is_userinfo(piece: &[u8], colon: usize, at_sign: usize) -> bool {
    let (user, secret, host) = (&piece[..colon], &piece[colon + 1..at_sign], &piece[at_sign + 1..]);
    let is_host = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let name = host.iter().take_while(|byte| is_host(byte)).count();
    let port = host[name..].strip_prefix(b":");
    let has_port = port.is_some_and(|port| !port.is_empty() && port.iter().all(u8::is_ascii_digit));
    let has = |is: fn(&u8) -> bool| secret.iter().any(is);
    let is_mixed = has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic);
    user.iter().all(is_host)
        && name > 0
        && (host.len() == name || has_port)
        && host.iter().any(u8::is_ascii_alphabetic)
        && !secret.contains(&b'/')
        && *secret != *MASK
        && (is_mixed || has_port)
}

/// A URL with a secret before its `@`, or a DSN like `user:secret@tcp(host)/db`, at the beginning of
/// `text`, whose first piece has this length: what it becomes, and how long it was.
fn url(text: &[u8], piece_len: usize) -> Option<(Vec<u8>, usize)> {
    let parts =
        |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'"' | b'\'' | b'<' | b'>' | b'|');
    // Nothing that parts pieces stands in a scheme; behind one a secret may hold all of it.
    let first = &text[..piece_len.min(text.len())];
    let scheme_end = memchr::memmem::find(first, b"://").map(|at| at + 3);
    let text = if scheme_end.is_some() { text } else { first };
    let piece = &text[..text.iter().position(parts).unwrap_or(text.len())];
    let scheme_end = scheme_end.filter(|end| *end <= piece.len());
    let Some(begin) = scheme_end else {
        // Without a scheme only `user:secret@tcp`, as Go writes it, and `user:secret@host` with a port.
        let at_sign = piece.iter().rposition(|byte| *byte == b'@')?;
        let colon = piece.iter().position(|byte| *byte == b':')?;
        let rest = &piece[at_sign + 1..];
        let is_dsn = rest.starts_with(b"tcp(") || rest.starts_with(b"unix(");
        if colon == 0 || colon + 1 >= at_sign || !(is_dsn || is_userinfo(piece, colon, at_sign)) {
            return None;
        }
        return Some(([&piece[..=colon], MASK, &piece[at_sign..]].concat(), piece.len()));
    };
    // A scheme is a word, or the end of one: `--url=https`, `jdbc:mysql`.
    let before = &piece[..begin - 3];
    if !before.last().is_some_and(u8::is_ascii_alphanumeric) {
        return None;
    }
    // The host begins behind the last `@` before a path; an `@` in a path or a query is none of a user.
    let authority = piece[begin..].iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
    let authority = authority.map_or(piece.len(), |len| begin + len);
    let within = piece[begin..authority].iter().rposition(|byte| *byte == b'@');
    let at_sign = if let Some(len) = within {
        begin + len
    } else {
        // `user:pa/ss@host`: a secret with what parts paths; then the host has a dot or the user a colon.
        let at_sign = piece.iter().rposition(|byte| *byte == b'@').filter(|at| *at > begin)?;
        let colon = piece[begin..authority].iter().position(|byte| *byte == b':')?;
        let is_port = piece[begin + colon + 1..authority].iter().all(u8::is_ascii_digit);
        if is_port {
            return None;
        }
        at_sign
    };
    let user = &piece[begin..at_sign];
    let secret_at = match user.iter().position(|byte| *byte == b':') {
        // `https://TOKEN:x-oauth-basic@host`: the user is the key.
        Some(colon) if shapes::redact(&user[..colon]).is_some() || looks_secret(&user[..colon]) => {
            begin
        }
        Some(colon) => begin + colon + 1,
        // `https://TOKEN@host`: a user that looks like a key.
        None if shapes::redact(user).is_some() || shapes::is_random(user) || looks_secret(user) => {
            begin
        }
        None => return None,
    };
    if secret_at == at_sign
        || is_reference(&piece[secret_at..at_sign])
        || piece[secret_at..at_sign] == *MASK
    {
        return None;
    }
    // What is behind the host may hold more.
    Some((
        [&piece[..secret_at], MASK, &piece[at_sign..authority.max(at_sign)]].concat(),
        authority.max(at_sign),
    ))
}

/// A text that is no command line, such as what a program says of what it did, without what looks like a secret.
pub fn prose(text: &str) -> Cow<'_, str> {
    // As an argument of a program of which nothing is known.
    const BEFORE: &[u8] = b"text\0";
    let argv = [BEFORE, text.as_bytes(), b"\0"].concat();
    match redact(&argv) {
        Cow::Borrowed(_) => Cow::Borrowed(text),
        Cow::Owned(clean) => {
            let clean = clean.strip_prefix(BEFORE).unwrap_or(b"*****");
            let clean = clean.strip_suffix(b"\0").unwrap_or(clean);
            Cow::Owned(String::from_utf8_lossy(clean).into_owned())
        }
    }
}

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod tests;
