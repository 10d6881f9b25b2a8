//! Hostile text, made fit for a terminal.
//!
//! Names and command lines of processes are chosen by whoever starts them. What could move the
//! cursor, forge a line, reorder what is read or hide is shown as an escape: `\n`, `\x1b`,
//! `\u{202e}`. Backslashes stay single, so the text is for people; JSON output is exact.

use std::borrow::Cow;
use std::fmt::Write as _;

use unicode_width::UnicodeWidthChar;

/// Most marks that may stand on one character: more are drawn over the lines around it.
const MARKS_MAX: usize = 4;

/// The sign that something was cut off.
pub const CUT: char = '…';

/// `text` with everything escaped that a terminal would obey or hide.
pub fn visible(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for piece in Pieces::of(text) {
        shown.push_str(piece.text.as_str());
    }
    Cow::Owned(shown)
}

/// As [`visible`], in at most `columns_max` columns of a terminal: what does not fit is replaced by
/// [`CUT`]. It reads no more of a long text than it shows.
pub fn visible_within(text: &str, columns_max: usize) -> String {
    let mut shown = String::new();
    let mut columns = 0;
    // The length at which the sign still fits behind what stands there.
    let mut cut_at = 0;
    for piece in Pieces::of(text) {
        if columns + piece.columns > columns_max {
            shown.truncate(cut_at);
            if columns_max > 0 {
                shown.push(CUT);
            }
            return shown;
        }
        shown.push_str(piece.text.as_str());
        columns += piece.columns;
        if columns < columns_max {
            cut_at = shown.len();
        }
    }
    shown
}

/// How many columns of a terminal `text` takes, which [`visible`] has been over.
pub fn columns(text: &str) -> usize {
    if text.is_ascii() {
        return text.len();
    }
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// Breaks a text into lines of at most `columns_max` columns, at blanks; a longer word stays whole.
/// There is at least one line.
pub fn wrap(text: &str, columns_max: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let needs = columns(word);
        if used > 0 && used + 1 + needs > columns_max {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
            used += needs;
        }
    }
    lines
}

/// One character, or the escape that stands for it.
struct Piece {
    text: Short,
    columns: usize,
}

/// The pieces of a text, in order.
struct Pieces<'a> {
    chars: std::str::Chars<'a>,
    marks: usize,
}

impl Pieces<'_> {
    fn of(text: &str) -> Pieces<'_> {
        // A mark at the beginning has no character of its own and would climb on a neighbour.
        Pieces { chars: text.chars(), marks: MARKS_MAX }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;
    fn next(&mut self) -> Option<Piece> {
        let c = self.chars.next()?;
        let width = c.width().unwrap_or(0);
        let is_mark = width == 0 && !is_hostile(c);
        self.marks = if is_mark { self.marks + 1 } else { 0 };
        let plain = !is_hostile(c) && self.marks <= MARKS_MAX;
        let text = if plain { Short::plain(c) } else { Short::escape(c) };
        let columns = if plain { width } else { text.as_str().len() };
        Some(Piece { text, columns })
    }
}

/// Whether a terminal would obey `c`, or a reader would not see it or be misled about the order.
pub fn is_hostile(c: char) -> bool {
    if matches!(c, ' '..='~') {
        return false;
    }
    matches!(
        c,
        '\u{0}'..='\u{9f}'
            | '\u{ad}'
            | '\u{61c}'
            | '\u{115f}'
            | '\u{1160}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// A piece of text without an allocation: an escape has at most ten bytes, `\u{10ffff}`.
struct Short {
    bytes: [u8; 10],
    len: usize,
}

impl Short {
    fn plain(c: char) -> Short {
        let mut bytes = [0; 10];
        let len = c.encode_utf8(&mut bytes).len();
        Short { bytes, len }
    }

    fn escape(c: char) -> Short {
        let mut short = Short { bytes: [0; 10], len: 0 };
        let fits = match c {
            '\n' => short.write_str("\\n"),
            '\r' => short.write_str("\\r"),
            '\t' => short.write_str("\\t"),
            '\0'..='\u{7f}' => write!(short, "\\x{:02x}", u32::from(c)),
            _ => write!(short, "\\u{{{:x}}}", u32::from(c)),
        };
        debug_assert!(fits.is_ok(), "an escape is at most ten bytes");
        short
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl std::fmt::Write for Short {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        let room = self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        let cases = [
            ("", ""),
            ("plain text", "plain text"),
            ("a\\b", "a\\b"),
            ("two\nlines\r\tand a tab", "two\\nlines\\r\\tand a tab"),
            ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
            ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
            ("c1 \u{9b}31m", "c1 \\u{9b}31m"),
            ("\x7f\0", "\\x7f\\x00"),
            ("exe\u{202e}gpj.sh", "exe\\u{202e}gpj.sh"),
            ("a\u{200b}b\u{feff}c\u{2066}d", "a\\u{200b}b\\u{feff}c\\u{2066}d"),
            ("\u{2028}\u{e0041}", "\\u{2028}\\u{e0041}"),
            ("日本語 é ü", "日本語 é ü"),
            ("e\u{301}", "e\u{301}"),
            ("\u{301}", "\\u{301}"),
            ("\u{fffd}", "\u{fffd}"),
            ("<b>&amp;\"'", "<b>&amp;\"'"),
        ];
        for (text, want) in cases {
            assert_eq!(visible(text), want, "for {text:?}");
            assert_eq!(visible_within(text, 200), want, "for {text:?}");
        }
    }

    #[test]
    fn a_tower_of_marks_is_cut_down() {
        let tower = format!("a{}", "\u{301}".repeat(6));
        assert_eq!(visible(&tower), format!("a{}\\u{{301}}\\u{{301}}", "\u{301}".repeat(4)));
    }

    #[test]
    fn nothing_that_is_shown_is_a_control_character() {
        let everything: String = ('\0'..=char::MAX).collect();
        let shown = visible(&everything);
        assert!(!shown.chars().any(|c| c.is_control() || is_hostile(c)));
    }

    #[test]
    fn text_is_broken_at_blanks() {
        let cases = [
            ("", 5, vec![""]),
            ("one two  three", 7, vec!["one two", "three"]),
            ("one two three", 13, vec!["one two three"]),
            ("a longlongword b", 4, vec!["a", "longlongword", "b"]),
            ("a b", 0, vec!["a", "b"]),
        ];
        for (text, columns_max, want) in cases {
            assert_eq!(wrap(text, columns_max), want, "for {text:?} in {columns_max}");
        }
    }

    #[test]
    fn text_is_cut_to_columns() {
        let cases = [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("abcd", 1, "…"),
            ("abcd", 0, ""),
            ("", 0, ""),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
            ("日本語", 2, "…"),
            ("日本語", 1, "…"),
            ("ab\ncd", 4, "ab…"),
            ("ab\n", 4, "ab\\n"),
            ("abe\u{301}f", 4, "abe\u{301}f"),
            ("abe\u{301}fg", 4, "abe\u{301}…"),
        ];
        for (text, columns_max, want) in cases {
            let shown = visible_within(text, columns_max);
            assert_eq!(shown, want, "for {text:?} in {columns_max}");
            assert!(columns(&shown) <= columns_max, "{text:?} in {columns_max}");
        }
    }
}
