//! Values as JSON, written straight into the answer's buffer.
//!
//! Bytes that are not UTF-8 become U+FFFD as `String::from_utf8_lossy` would have it, so that the
//! output is always UTF-8 and always JSON. `<`, `>` and `&` stay as they are: whoever puts an answer
//! into a page has to escape it for that page. People do read answers on terminals, so nothing that
//! a terminal obeys stays as it is: control characters, also those above ASCII, and those that turn
//! the direction of writing are `\uXXXX`, which any reader of JSON turns back.

use kumo_abi::{Value, text_list_items};
use serde::Serialize;

/// Appends `value` to `out`.
pub(crate) fn write_value(out: &mut Vec<u8>, value: &Value<'_>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(number) => {
            out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes());
        }
        // JSON has no word for these; columns never hold them.
        Value::Float(number) if !number.is_finite() => out.extend_from_slice(b"null"),
        Value::Float(number) => {
            out.extend_from_slice(zmij::Buffer::new().format_finite(*number).as_bytes());
        }
        Value::Text(text) => write_text(out, text),
        Value::TextList(list) => {
            out.push(b'[');
            for (index, text) in text_list_items(list).enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_text(out, text);
            }
            out.push(b']');
        }
    }
}

/// Appends `text` to `out` as a JSON string, quotes included.
pub(crate) fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut rest = text;
    loop {
        let (plain, tail) = rest.split_at(plain_len(rest));
        out.extend_from_slice(plain);
        let Some(first) = tail.first() else { break };
        rest = if first.is_ascii() {
            write_escape(out, *first);
            &tail[1..]
        } else {
            // An ASCII byte ends any sequence, whole or broken, so runs can be decoded one by one.
            let run = tail.iter().position(u8::is_ascii).unwrap_or(tail.len());
            write_non_ascii(out, &tail[..run]);
            &tail[run..]
        };
    }
    out.push(b'"');
}

/// How many leading bytes of `text` stand for themselves in a JSON string and are ASCII.
///
/// It looks at eight bytes at a time: nearly all bytes of a process table are plain.
fn plain_len(text: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let mut len = 0;
    while let Some(eight) = text[len..].first_chunk::<8>() {
        let bytes = u64::from_le_bytes(*eight);
        // A zero byte has its high bit set by `(x - 1) & !x`; a byte below 0x20 likewise. A borrow
        // can only mark bytes above one that is truly marked, so the lowest mark is exact.
        let quote = bytes ^ (ONES * u64::from(b'"'));
        let backslash = bytes ^ (ONES * u64::from(b'\\'));
        // One more than DEL has its high bit set, and only a byte that is not ASCII carries over.
        let marks = (bytes.wrapping_sub(ONES * 0x20) & !bytes)
            | bytes.wrapping_add(ONES)
            | (quote.wrapping_sub(ONES) & !quote)
            | (backslash.wrapping_sub(ONES) & !backslash)
            | bytes;
        if marks & HIGH != 0 {
            return len + ((marks & HIGH).trailing_zeros() / 8) as usize;
        }
        len += 8;
    }
    let special = |byte: &u8| matches!(byte, 0..0x20 | b'"' | b'\\' | 0x7f..);
    len + text[len..].iter().position(special).unwrap_or(text.len() - len)
}

fn write_escape(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        b'\n' => b'n',
        b'\t' => b't',
        b'\r' => b'r',
        _ => return write_u(out, char::from(byte)),
    };
    out.extend([b'\\', short]);
}

/// Appends `\uXXXX`; `char` is within the first 65,536.
fn write_u(out: &mut Vec<u8>, char: char) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\u");
    let code = u32::from(char);
    out.extend([12, 8, 4, 0].map(|shift| HEX[(code >> shift & 15) as usize]));
}

/// Whether a character that is not ASCII is escaped: C1 controls, which terminals obey like those of
/// ASCII; what turns the direction of writing, so that a line shows what it is not; and the line
/// separators, which a reader of NDJSON might take for the end of a line.
pub(crate) fn is_escaped(char: char) -> bool {
    matches!(
        char,
        '\u{80}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}

/// Appends text without controls of ASCII, escaping what [`is_escaped`] names.
fn write_readable(out: &mut Vec<u8>, mut text: &str) {
    while let Some(at) = text.find(is_escaped) {
        let (plain, tail) = text.split_at(at);
        out.extend_from_slice(plain.as_bytes());
        let mut chars = tail.chars();
        chars.next().into_iter().for_each(|char| write_u(out, char));
        text = chars.as_str();
    }
    out.extend_from_slice(text.as_bytes());
}

/// Appends a run without ASCII bytes.
fn write_non_ascii(out: &mut Vec<u8>, run: &[u8]) {
    for chunk in run.utf8_chunks() {
        write_readable(out, chunk.valid());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

/// A document as JSON, with the same escapes. Empty where it is not one: a bug of ours.
pub(crate) fn document(value: &impl Serialize) -> Vec<u8> {
    escaped_json(&serde_json::to_string(value).unwrap_or_default()).into_bytes()
}

/// JSON that serde wrote, with the same escapes. It reads back as the same.
pub fn escaped_json(plain: &str) -> String {
    let mut out = Vec::with_capacity(plain.len());
    // Such characters stand in strings only, and serde escapes the controls of ASCII but for DEL.
    for (index, between) in plain.split('\x7f').enumerate() {
        if index > 0 {
            write_u(&mut out, '\x7f');
        }
        write_readable(&mut out, between);
    }
    String::from_utf8(out).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(value: &Value<'_>) -> String {
        let mut out = Vec::new();
        write_value(&mut out, value);
        String::from_utf8(out).expect("an answer is UTF-8")
    }

    #[test]
    fn values() {
        let list = |bytes: &'static [u8]| Value::TextList(bytes.into());
        let cases = [
            (Value::Null, "null"),
            (Value::Bool(true), "true"),
            (Value::Bool(false), "false"),
            (Value::Int(i64::MIN), "-9223372036854775808"),
            (Value::Float(12.0), "12.0"),
            (Value::Float(-0.25), "-0.25"),
            (Value::Float(f64::NAN), "null"),
            (Value::Float(f64::NEG_INFINITY), "null"),
            (Value::text(""), r#""""#),
            (Value::text("\"><script>&amp;"), r#""\"><script>&amp;""#),
            (
                Value::text("a\\b\n\t\r\0\x1b[31m\x7f"),
                "\"a\\\\b\\n\\t\\r\\u0000\\u001b[31m\\u007f\"",
            ),
            (
                Value::text("12345678\x7f\u{9b}2J\u{9f}\u{a0}"),
                "\"12345678\\u007f\\u009b2J\\u009f\u{a0}\"",
            ),
            (
                Value::text("\u{202e}a\u{2069}\u{200f}\u{200d}"),
                "\"\\u202ea\\u2069\\u200f\u{200d}\"",
            ),
            (Value::text("蜘蛛の巣"), "\"蜘蛛の巣\""),
            (Value::text("a\u{2028}b\u{2029}"), r#""a\u2028b\u2029""#),
            (Value::text(b"\xff\xfeok\xe2\x80"), "\"\u{fffd}\u{fffd}ok\u{fffd}\""),
            (Value::text(b"12345678\xe2\x80\""), "\"12345678\u{fffd}\\\"\""),
            (list(b""), "[]"),
            (list(b"\0"), r#"[""]"#),
            (list(b"sh\0-c\0a \"b\"\0"), r#"["sh","-c","a \"b\""]"#),
        ];
        for (value, want) in cases {
            assert_eq!(json(&value), want, "for {value:?}");
        }
    }

    #[test]
    fn every_byte_at_every_offset() {
        for byte in 0..=u8::MAX {
            for offset in 0..17 {
                let mut text = vec![b'a'; 20];
                text[offset] = byte;
                let back: String = serde_json::from_str(&json(&Value::text(&text)))
                    .unwrap_or_else(|error| panic!("{byte:#x} at {offset}: {error}"));
                assert_eq!(back, String::from_utf8_lossy(&text), "{byte:#x} at {offset}");
            }
        }
    }

    #[test]
    fn no_character_that_a_terminal_obeys_stays_as_it_is() {
        let all: String = (char::MIN..=char::MAX).collect();
        let lists = [json(&Value::text(&all)), json(&Value::TextList(all.into_bytes().into()))];
        let document = String::from_utf8(document(&serde_json::json!({ "a\x7f\u{9b}": "\u{9d}" })));
        for text in lists.into_iter().chain([document.expect("UTF-8")]) {
            assert!(!text.contains(|char: char| char.is_control() || is_escaped(char)));
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
        }
    }

    proptest! {
        #[test]
        fn any_text_reads_back_as_its_lossy_string(text: Vec<u8>) {
            let back: String = serde_json::from_str(&json(&Value::text(&text)))?;
            prop_assert_eq!(back, String::from_utf8_lossy(&text));
        }

        #[test]
        fn any_list_reads_back(texts in prop::collection::vec("[^\0]{0,12}", 0..8)) {
            let list: Vec<u8> = texts.iter().flat_map(|t| t.bytes().chain([0])).collect();
            let back: Vec<String> = serde_json::from_str(&json(&Value::TextList(list.into())))?;
            prop_assert_eq!(back, texts);
        }

        #[test]
        fn any_number_reads_back(int: i64, float in any::<f64>().prop_filter("finite", |f| f.is_finite())) {
            prop_assert_eq!(serde_json::from_str::<i64>(&json(&Value::Int(int)))?, int);
            let back: f64 = json(&Value::Float(float)).parse()?;
            prop_assert_eq!(back.to_bits(), float.to_bits());
            serde_json::from_str::<f64>(&json(&Value::Float(float)))?;
        }
    }
}
