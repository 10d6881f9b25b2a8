//! Functions: those that osquery adds, and those of SQLite whose time is not bounded by their arguments.
//!
//! `replace`, `instr` and `trim` of SQLite take the product of their arguments' lengths, and nothing
//! interrupts a function. Ours give the same results in a time that is bounded by the sum.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use memchr::memmem;
use regex::{Regex, RegexBuilder};
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, Error, Result};

use crate::rows::CELL_BYTES_MAX;

/// Largest compiled regular expression.
const REGEX_BYTES_MAX: usize = 256 * 1024;

/// Most characters that `trim(text, characters)` looks for.
const TRIMMED_CHARS_MAX: usize = 64;

type Out = ToSqlOutput<'static>;

/// A text without some characters at an end of it.
type Trim = fn(&str, &[char]) -> String;

fn null() -> Out {
    ToSqlOutput::Owned(Value::Null)
}

fn text(text: impl Into<String>) -> Out {
    ToSqlOutput::Owned(Value::Text(text.into()))
}

fn number(number: impl Into<i64>) -> Out {
    ToSqlOutput::Owned(Value::Integer(number.into()))
}

fn wrong(what: String) -> Error {
    Error::UserFunctionError(what.into())
}

/// An argument as a text; `None` for null.
fn argument<'a>(context: &'a Context<'_>, index: usize) -> Option<Cow<'a, str>> {
    match context.get_raw(index) {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string().into()),
        ValueRef::Real(number) => Some(format!("{number:?}").into()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes)),
    }
}

fn index(context: &Context<'_>, at: usize) -> Option<usize> {
    match context.get_raw(at) {
        ValueRef::Integer(number) => usize::try_from(number).ok(),
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).ok()?.trim().parse().ok(),
        _ => None,
    }
}

/// Adds them to a connection.
pub(crate) fn add(connection: &Connection) -> Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_INNOCUOUS;
    let add = |name: &str, count, function: fn(&Context<'_>) -> Result<Out>| {
        connection.create_scalar_function(name, count, flags, function)
    };
    add("split", 3, |context| {
        let (Some(of), Some(by)) = (argument(context, 0), argument(context, 1)) else {
            return Ok(null());
        };
        let part = index(context, 2).and_then(|index| split(&of, &by, index));
        Ok(part.map_or_else(null, text))
    })?;
    add("regex_match", 3, |context| {
        let (Some(of), Some(regex)) = (argument(context, 0), regex(context, 1)?) else {
            return Ok(null());
        };
        let group = index(context, 2);
        let found = regex.captures(&of).and_then(|found| found.get(group?));
        Ok(found.map_or_else(null, |found| text(found.as_str())))
    })?;
    add("regex_split", 3, |context| {
        let (Some(of), Some(regex)) = (argument(context, 0), regex(context, 1)?) else {
            return Ok(null());
        };
        let part = index(context, 2).and_then(|index| regex.split(&of).nth(index));
        Ok(part.map_or_else(null, text))
    })?;
    // `X REGEXP Y` is `regexp(Y, X)`.
    add("regexp", 2, |context| {
        let (Some(of), Some(regex)) = (argument(context, 1), regex(context, 0)?) else {
            return Ok(null());
        };
        Ok(number(regex.is_match(&of)))
    })?;
    add("inet_aton", 1, |context| {
        let address = argument(context, 0).and_then(|text| text.parse::<Ipv4Addr>().ok());
        Ok(address.map_or_else(null, |address| number(u32::from(address))))
    })?;
    add("in_cidr_block", 2, |context| {
        let (Some(block), Some(address)) = (argument(context, 0), argument(context, 1)) else {
            return Ok(null());
        };
        Ok(in_block(&block, &address).map_or_else(null, number))
    })?;
    add("version_compare", 2, |context| {
        let (Some(a), Some(b)) = (argument(context, 0), argument(context, 1)) else {
            return Ok(null());
        };
        Ok(number(compare_versions(&a, &b) as i64))
    })?;
    add("instr", 2, |context| {
        let (Some(of), Some(part)) = (argument(context, 0), argument(context, 1)) else {
            return Ok(null());
        };
        let at = memmem::find(of.as_bytes(), part.as_bytes());
        Ok(number(at.map_or(0, |at| of[..at].chars().count() as i64 + 1)))
    })?;
    add("replace", 3, |context| {
        let (Some(of), Some(part), Some(by)) =
            (argument(context, 0), argument(context, 1), argument(context, 2))
        else {
            return Ok(null());
        };
        replaced(&of, &part, &by).map(text)
    })?;
    let trims: [(&str, Trim); 3] = [
        ("trim", |of, chars| of.trim_matches(chars).to_owned()),
        ("ltrim", |of, chars| of.trim_start_matches(chars).to_owned()),
        ("rtrim", |of, chars| of.trim_end_matches(chars).to_owned()),
    ];
    for (name, trim) in trims {
        connection.create_scalar_function(name, 2, flags, move |context: &Context<'_>| {
            let (Some(of), Some(chars)) = (argument(context, 0), argument(context, 1)) else {
                return Ok(null());
            };
            let chars: Vec<char> = chars.chars().take(TRIMMED_CHARS_MAX + 1).collect();
            if chars.len() > TRIMMED_CHARS_MAX {
                let most = TRIMMED_CHARS_MAX;
                return Err(wrong(format!("{name}() takes at most {most} characters to look for")));
            }
            Ok(text(trim(&of, &chars)))
        })?;
    }
    Ok(())
}

/// The regular expression in an argument; compiled once where it is the same for all rows.
fn regex(context: &Context<'_>, at: i32) -> Result<Option<Arc<Regex>>> {
    if context.get_raw(at as usize) == ValueRef::Null {
        return Ok(None);
    }
    let compile = |value: ValueRef<'_>| -> std::result::Result<Regex, String> {
        let text = match value {
            ValueRef::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => return Err("a regular expression is a text".to_owned()),
        };
        let regex = RegexBuilder::new(&text).size_limit(REGEX_BYTES_MAX).build();
        regex.map_err(|error| format!("no regular expression: {error}"))
    };
    context.get_or_create_aux(at, compile).map(Some)
}

/// The part at `index` between any of the characters `by`; empty parts do not count, and blanks around
/// them are left out.
fn split<'a>(of: &'a str, by: &str, index: usize) -> Option<&'a str> {
    let by: Vec<char> = by.chars().take(TRIMMED_CHARS_MAX).collect();
    let parts = of.split(&by[..]).map(str::trim);
    parts.filter(|part| !part.is_empty()).nth(index)
}

fn replaced(of: &str, part: &str, by: &str) -> Result<String> {
    if part.is_empty() {
        return Ok(of.to_owned());
    }
    let finder = memmem::Finder::new(part);
    let count = finder.find_iter(of.as_bytes()).count();
    // Counted before it is made: a short text can become a very long one.
    let len_bytes = of.len() - count * part.len() + count.saturating_mul(by.len());
    if len_bytes > CELL_BYTES_MAX {
        return Err(wrong(format!("replace() makes a text of more than {CELL_BYTES_MAX} bytes")));
    }
    let mut out = String::with_capacity(len_bytes);
    let mut begin = 0;
    for at in finder.find_iter(of.as_bytes()) {
        out.push_str(&of[begin..at]);
        out.push_str(by);
        begin = at + part.len();
    }
    out.push_str(&of[begin..]);
    Ok(out)
}

/// Whether an address is in a block such as `10.0.0.0/8`; `None` where either is none.
fn in_block(block: &str, address: &str) -> Option<bool> {
    let (network, bits) = block.split_once('/')?;
    let bits: u32 = bits.parse().ok()?;
    let is_same = |a: u128, b: u128, width: u32| {
        (bits <= width).then(|| bits == 0 || (a ^ b) >> (width - bits) == 0)
    };
    match (network.parse().ok()?, address.parse::<IpAddr>().ok()?.to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => is_same(u32::from(a).into(), u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => is_same(a.into(), b.into(), 128),
        _ => Some(false),
    }
}

/// The order of two versions: numbers as numbers, what is between them as text.
fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    let parts = |text: &str| -> Vec<String> {
        let mut parts: Vec<String> = vec![String::new()];
        let mut was_digit = true;
        for char in text.chars() {
            let is_digit = char.is_ascii_digit();
            let is_part = char.is_alphanumeric();
            if is_part && is_digit == was_digit {
                parts.last_mut().into_iter().for_each(|part| part.push(char));
            } else {
                parts.push(if is_part { char.to_string() } else { String::new() });
            }
            was_digit = !is_part || is_digit;
        }
        parts.retain(|part| !part.is_empty());
        parts
    };
    let (a, b) = (parts(a), parts(b));
    for (a, b) in a.iter().zip(&b) {
        let order = match (a.parse::<u128>(), b.parse::<u128>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            _ => a.cmp(b),
        };
        if order.is_ne() {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(sql: &str) -> Result<Value> {
        let connection = Connection::open_in_memory()?;
        add(&connection)?;
        connection.query_row(&format!("SELECT {sql}"), [], |row| row.get(0))
    }

    #[test]
    fn what_they_give() {
        let text = |text: &str| Value::Text(text.to_owned());
        let cases = [
            ("split('/usr/bin/x', '/', 1)", text("bin")),
            ("split('a=1; b', '=;', 2)", text("b")),
            ("split('a', '/', 5)", Value::Null),
            ("split('a', '/', -1)", Value::Null),
            ("split(NULL, '/', 0)", Value::Null),
            ("regex_match('sshd: root@pts/3', '(\\w+)@(\\S+)', 2)", text("pts/3")),
            ("regex_match('sshd', 'x', 0)", Value::Null),
            ("regex_match('sshd', 's(x)?', 1)", Value::Null),
            ("regex_split('a1b22c', '[0-9]+', 2)", text("c")),
            ("'sshd' REGEXP '^s'", Value::Integer(1)),
            ("'sshd' REGEXP '^x'", Value::Integer(0)),
            ("inet_aton('1.2.3.4')", Value::Integer(16_909_060)),
            ("inet_aton('x')", Value::Null),
            ("in_cidr_block('10.0.0.0/8', '10.255.0.1')", Value::Integer(1)),
            ("in_cidr_block('10.0.0.0/8', '::ffff:10.1.1.1')", Value::Integer(1)),
            ("in_cidr_block('0.0.0.0/0', '1.1.1.1')", Value::Integer(1)),
            ("in_cidr_block('fd00::/8', 'fe00::1')", Value::Integer(0)),
            ("in_cidr_block('10.0.0.0/33', '10.0.0.1')", Value::Null),
            ("version_compare('1.10.0', '1.9')", Value::Integer(1)),
            ("version_compare('1.0-rc1', '1.0-rc1')", Value::Integer(0)),
            ("version_compare('6.1', '6.1.1')", Value::Integer(-1)),
        ];
        for (sql, want) in cases {
            assert_eq!(ask(sql).expect(sql), want, "for {sql}");
        }
        for (sql, want) in [
            ("regex_match('a', '(', 0)", "no regular expression"),
            ("regex_match('a', '(a{1000}){1000}', 0)", "no regular expression"),
            (
                "trim('a', replace(hex('0123456789012345678901234567890123'), '3', 'é'))",
                "at most 64",
            ),
            (
                "replace('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'a', printf('%100000s', 'x'))",
                "1048576 bytes",
            ),
        ] {
            let error = ask(sql).expect_err(sql).to_string();
            assert!(error.contains(want), "{error:?} does not say {want:?}");
        }
    }

    #[test]
    fn those_that_replace_sqlites_own_give_the_same() {
        let plain = Connection::open_in_memory().expect("memory");
        let texts = ["", "a", "aa", "xaax", "éaé", "aéa", " a ", "7"];
        for of in texts {
            for with in texts {
                for sql in [
                    "instr(?1, ?2)",
                    "replace(?1, ?2, 'zz')",
                    "trim(?1, ?2)",
                    "ltrim(?1, ?2)",
                    "rtrim(?1, ?2)",
                ] {
                    let sql = format!("SELECT {sql}");
                    let ours = Connection::open_in_memory().expect("memory");
                    add(&ours).expect("functions");
                    let ask = |connection: &Connection| -> Value {
                        connection.query_row(&sql, [of, with], |row| row.get(0)).expect("a value")
                    };
                    assert_eq!(ask(&ours), ask(&plain), "for {sql} of {of:?} and {with:?}");
                }
            }
        }
    }
}
