//! JSON that the command writes itself, rather than passes on.

use std::io;

/// A document on one line; it holds nothing that a terminal obeys.
///
/// # Errors
/// It cannot be written as JSON: a bug of ours.
pub fn line(document: &impl serde::Serialize) -> io::Result<String> {
    Ok(k2i::escaped_json(&serde_json::to_string(document)?))
}

/// The same on many lines, for people.
///
/// # Errors
/// As [`line()`].
pub fn pretty(document: &impl serde::Serialize) -> io::Result<String> {
    Ok(k2i::escaped_json(&serde_json::to_string_pretty(document)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_it_reaches_a_terminal() {
        let text = "a\x1b[31m\x7f\u{9b}31m\u{202e}b\u{2066}\u{200f}\u{2028}é";
        let document = serde_json::json!({ "text": text, text: [1, 2] });
        for written in [line(&document), pretty(&document)] {
            let written = written.expect("a document");
            let bad = |c: &char| *c != '\n' && (c.is_control() || crate::text::is_hostile(*c));
            assert_eq!(written.chars().find(bad), None, "in {written:?}");
            let back: serde_json::Value = serde_json::from_str(&written).expect("JSON");
            assert_eq!(back, document);
        }
    }
}
