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

mod names;
mod programs;
mod shapes;

use std::borrow::Cow;

use self::names::{Name, assignment_name, is_header_secret};
use self::programs::{Takes, takes};

/// What stands where a secret was.
pub const MASK: &[u8] = b"*****";

/// Longest argument that is looked into. A longer one is a document (a script, a certificate, JSON) in
/// which anything may stand, and is left out as a whole.
pub const ARGUMENT_BYTES_MAX: usize = 16 * 1024;

/// Quotes, brackets and the like: how texts within an argument are nested.
const DEPTH_MAX: usize = 3;

/// The arguments without secrets; borrowed if there are none. `argv` is as the kernel has it: each
/// argument ended by NUL. A title that a program wrote over it, without NUL, is taken apart at blanks.
pub fn redact(argv: &[u8]) -> Cow<'_, [u8]> {
    let is_title = !argv[..argv.len().saturating_sub(1)].contains(&0) && argv.contains(&b' ');
    let separator = if is_title { b' ' } else { 0 };
    let arguments: Vec<&[u8]> = argv.split(|byte| *byte == separator).collect();
    let clean = redact_arguments(&arguments);
    if clean.iter().zip(&arguments).all(|(clean, argument)| clean == argument) {
        return Cow::Borrowed(argv);
    }
    Cow::Owned(clean.join(&separator))
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
    /// A user and a secret behind this character.
    Pair(u8),
    /// The text of a header.
    Header,
    /// `name=value` or `name: value` behind an option that takes such: looked into as any.
    Text,
}

fn redact_arguments<'a>(arguments: &[&'a [u8]]) -> Vec<Cow<'a, [u8]>> {
    let mut clean = Vec::with_capacity(arguments.len());
    let mut next = Next::Any;
    let mut program = programs::Program::default();
    for argument in arguments {
        let now = std::mem::replace(&mut next, Next::Any);
        let (text, follows) = one(argument, now, &mut program);
        next = follows;
        clean.push(text);
    }
    clean
}

/// One argument, and what it says of the next.
fn one<'a>(
    argument: &'a [u8],
    now: Next,
    program: &mut programs::Program,
) -> (Cow<'a, [u8]>, Next) {
    if argument.is_empty() {
        return (argument.into(), Next::Any);
    }
    if argument.len() > ARGUMENT_BYTES_MAX {
        return (MASK.into(), Next::Any);
    }
    match now {
        Next::Secret => return (MASK.into(), Next::Any),
        Next::Value if !argument.starts_with(b"-") => return (value(argument), Next::Any),
        Next::Pair(by) => return (pair(argument, by), Next::Any),
        Next::Header => return (header(argument), Next::Any),
        Next::Value | Next::Any | Next::Text => {}
    }
    match takes(program, argument) {
        Takes::Nothing => {}
        Takes::Here(at) => return (masked_from(argument, at), Next::Any),
        Takes::PairHere(at, by) => {
            let mut text = argument[..at].to_vec();
            text.extend(pair(&argument[at..], by).iter());
            return (text.into(), Next::Any);
        }
        Takes::HeaderHere(at) => {
            return ([&argument[..at], &header(&argument[at..])].concat().into(), Next::Any);
        }
        Takes::Next => return (argument.into(), Next::Secret),
        Takes::NextPair(by) => return (argument.into(), Next::Pair(by)),
        Takes::NextHeader => return (argument.into(), Next::Header),
        Takes::NextText => return (argument.into(), Next::Text),
    }
    if argument.starts_with(b"-")
        && let Some(name) = option_name(argument)
        && !argument.contains(&b'=')
    {
        return match Name::of(name) {
            Name::Secret => (argument.into(), Next::Value),
            Name::Pair => (argument.into(), Next::Pair(b':')),
            Name::Header => (argument.into(), Next::Header),
            Name::Harmless => (argument.into(), Next::Any),
        };
    }
    (text(argument, 0).map_or(Cow::Borrowed(argument), Cow::Owned), Next::Any)
}

/// The name of an option, without its dashes: `--api-key` and `-storepass`, not `-p`.
fn option_name(argument: &[u8]) -> Option<&[u8]> {
    let name = argument.strip_prefix(b"--").or_else(|| argument.strip_prefix(b"-"))?;
    (name.len() > 1 && name.iter().all(|byte| is_name_byte(*byte))).then_some(name)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':')
}

fn masked_from(argument: &[u8], at: usize) -> Cow<'_, [u8]> {
    if at >= argument.len() { argument.into() } else { [&argument[..at], MASK].concat().into() }
}

/// The value of something that is named as a secret: all of it, unless it says where the secret is.
fn value(text: &[u8]) -> Cow<'_, [u8]> {
    if is_reference(text) || is_trivial(text) { text.into() } else { MASK.into() }
}

/// `user:secret`, by whatever character; without one it is a user.
fn pair(text: &[u8], by: u8) -> Cow<'_, [u8]> {
    match text.iter().position(|byte| *byte == by) {
        Some(at) => masked_from(text, at + 1),
        None => shapes::redact(text).map_or(text.into(), Cow::Owned),
    }
}

/// `Name: value`.
fn header(line: &[u8]) -> Cow<'_, [u8]> {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return text(line, 0).map_or(line.into(), Cow::Owned);
    };
    if !is_header_secret(&line[..colon]) {
        return text(line, 0).map_or(line.into(), Cow::Owned);
    }
    let blank = line[colon + 1..].iter().take_while(|byte| **byte == b' ').count();
    let begin = colon + 1 + blank;
    // `Bearer`, `Basic`, `token` say how, and are no secret.
    let scheme = line[begin..].iter().position(|byte| *byte == b' ').map_or(0, |at| at + 1);
    masked_from(line, begin + scheme)
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
        b"vault:",
        b"secretsmanager:",
        b"arn:aws:secretsmanager:",
        b"arn:aws:ssm:",
        b"op://",
        b"keyring:",
        b"prompt",
    ];
    // What begins like a path may be Base64: then it has few slashes and looks random.
    begins.iter().any(|begin| value.starts_with(begin)) && !shapes::is_random(value)
        || value.starts_with(b"$")
            && value[1..].iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
}

/// Whether a value is a switch or an emptiness, and no secret.
fn is_trivial(value: &[u8]) -> bool {
    const WORDS: [&[u8]; 12] = [
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
    ];
    let lower = value.to_ascii_lowercase();
    WORDS.contains(&lower.as_slice()) || value == MASK
}

/// Any text: assignments, URLs and shapes in it. Nothing if it holds no secret.
fn text(text: &[u8], depth: usize) -> Option<Vec<u8>> {
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
    let shaped = shapes::redact(if changed { &out } else { text });
    match (changed, shaped) {
        (_, Some(shaped)) => Some(shaped),
        (true, None) => Some(out),
        (false, None) => None,
    }
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
        )
    };
    text[at..].iter().position(parts).map_or(text.len(), |len| at + len)
}

/// A piece that is an assignment or a URL with a secret; then `at` is set behind what was read.
fn piece_text(text: &[u8], begin: usize, at: &mut usize, depth: usize) -> Option<Vec<u8>> {
    let end = *at;
    let piece = &text[begin..end];
    if let Some(clean) = url(piece) {
        return Some(clean);
    }
    let (name, value_at) = assignment_name(text, begin, end)?;
    match Name::of(name) {
        Name::Secret => {}
        Name::Header => {
            let line_end =
                text[begin..].iter().position(|b| *b == b'\n').map_or(text.len(), |n| begin + n);
            let line = header(&text[begin..line_end]);
            *at = line_end;
            return Some(line.into_owned());
        }
        Name::Pair => {
            let value_end = value_end(text, value_at);
            *at = value_end;
            let clean = pair(&text[value_at..value_end], b':');
            return Some([&text[begin..value_at], &clean].concat());
        }
        Name::Harmless => {
            // `--set=db.password=x`, `-e 'a="b=c"'`: an assignment in the value.
            if depth >= DEPTH_MAX || value_at >= end {
                return None;
            }
            let inner = self::text(&text[value_at..end], depth + 1)?;
            return Some([&text[begin..value_at], &inner].concat());
        }
    }
    let value_end = value_end(text, value_at);
    let secret = &text[value_at..value_end];
    if is_reference(secret) || is_trivial(secret) || secret.is_empty() {
        return None;
    }
    *at = value_end;
    Some([&text[begin..value_at], MASK].concat())
}

/// Where a value ends that begins at `at`: at its closing quote, else where words part.
fn value_end(text: &[u8], at: usize) -> usize {
    let quote = at.checked_sub(1).map(|before| text[before]).filter(|b| matches!(b, b'"' | b'\''));
    let parts = |byte: &u8| match quote {
        Some(quote) => *byte == quote,
        None => matches!(byte, b' ' | b'\t' | b'\n' | b'&' | b';' | b',' | b'}' | b'"' | b'\''),
    };
    text[at..].iter().position(parts).map_or(text.len(), |len| at + len)
}

/// A URL, or a DSN like `user:secret@tcp(host)/db`, with a secret before its `@`.
fn url(piece: &[u8]) -> Option<Vec<u8>> {
    let at_sign = piece.iter().rposition(|byte| *byte == b'@')?;
    let scheme_end = piece.windows(3).position(|three| three == b"://").map(|at| at + 3);
    let begin = match scheme_end {
        Some(begin) if begin <= at_sign => {
            // An `@` in a path or a query is none of a user.
            let host = piece[begin..].iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
            if host.is_some_and(|len| begin + len < at_sign) {
                return None;
            }
            begin
        }
        // Without a scheme only `user:secret@tcp`, as Go writes it.
        None if piece[at_sign + 1..].starts_with(b"tcp")
            || piece[at_sign + 1..].starts_with(b"unix") =>
        {
            0
        }
        _ => return None,
    };
    let user = &piece[begin..at_sign];
    let secret_at = match user.iter().position(|byte| *byte == b':') {
        Some(colon) => begin + colon + 1,
        // `https://TOKEN@host`: a user that looks like a key.
        None if shapes::redact(user).is_some() || shapes::is_random(user) => begin,
        None => return None,
    };
    if secret_at == at_sign {
        return None;
    }
    Some([&piece[..secret_at], MASK, &piece[at_sign..]].concat())
}

#[cfg(test)]
mod tests;
