//! A look at the text of a condition before the parser sees it.
//!
//! The parser recurses, and what it makes of broken text is hard to foresee; it may be called on the
//! stack of a network thread with text from anywhere. So this scan splits the text into the tokens of
//! CEL, refuses what is none, and bounds how deep the parser can get: every bracket, every operator
//! that nests its operands, and every `?:` counts. Long chains of `&&` and `||` and long lists are
//! flat for the parser, and free.

use super::FilterError;
use crate::limits::FILTER_DEPTH_MAX;

/// Checks `text`; what it lets through nests at most [`FILTER_DEPTH_MAX`] levels.
pub(super) fn check(text: &str) -> Result<(), FilterError> {
    let mut depth = Depth::default();
    let mut rest = Rest { text, at_byte: 0 };
    while let Some(first) = rest.peek(0) {
        let start = rest.at_byte;
        match first {
            b'=' | b'!' | b'<' | b'>' if rest.peek(1) == Some(b'=') => {
                depth.step().ok_or_else(|| too_deep(&rest))?;
                rest.skip(2);
            }
            b' ' | b'\t' | b'\r' | b'\n' | 0x0c | b'!' | b':' => rest.skip(1),
            b'/' if rest.peek(1) == Some(b'/') => rest.skip_while(|byte| byte != b'\n'),
            b'"' | b'\'' => rest.skip_string(false)?,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                if let Some((len, raw)) = rest.string_prefix() {
                    rest.skip(len);
                    rest.skip_string(raw)?;
                } else {
                    rest.skip_while(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                    word(&text[start..rest.at_byte], &rest, start, &mut depth)?;
                }
            }
            b'0'..=b'9' => {
                rest.skip_while(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                number(&text[start..rest.at_byte], &rest, start)?;
            }
            b'.' if rest.peek(1).is_some_and(|byte| byte.is_ascii_digit()) => rest.skip(1),
            b'(' | b'[' | b'{' => {
                depth.open().ok_or_else(|| too_deep(&rest))?;
                rest.skip(1);
            }
            b')' | b']' | b'}' => {
                depth.close();
                rest.skip(1);
            }
            b',' => {
                depth.end_operand(true);
                rest.skip(1);
            }
            b'&' | b'|' if rest.peek(1) == Some(first) => {
                depth.end_operand(false);
                rest.skip(2);
            }
            b'&' => return Err(rest.error("write `&&` for `and`")),
            b'|' => return Err(rest.error("write `||` for `or`")),
            b'=' if rest.peek(1) == Some(b'~') => {
                return Err(rest.error("write `text.matches(\"pattern\")` for `=~`"));
            }
            b'=' => return Err(rest.error("write `==` to compare")),
            b'<' if rest.peek(1) == Some(b'>') => return Err(rest.error("write `!=` for `<>`")),
            b'<' | b'>' | b'+' | b'-' | b'*' | b'/' | b'%' | b'.' | b'?' => {
                depth.step().ok_or_else(|| too_deep(&rest))?;
                if first == b'?' {
                    depth.hold();
                }
                rest.skip(1);
            }
            _ => {
                let stray = text[start..].chars().next().unwrap_or_default();
                let message = match stray {
                    '“' | '”' | '‘' | '’' => {
                        "write a text in plain quotes, \"like this\"".to_owned()
                    }
                    _ => format!("{stray:?} has no meaning here; texts stand in quotes"),
                };
                return Err(FilterError::Syntax { at: char_at(text, start), message });
            }
        }
    }
    Ok(())
}

/// The character number, from 1, of the byte at `index` of `text`.
pub(super) fn char_at(text: &str, index: usize) -> usize {
    let before = text.as_bytes().get(..index).unwrap_or(text.as_bytes());
    // Bytes that continue a character begin with the bits 10.
    before.iter().filter(|byte| (**byte as i8) >= -0x40).count() + 1
}

fn too_deep(rest: &Rest<'_>) -> FilterError {
    FilterError::TooDeep { at: char_at(rest.text, rest.at_byte) }
}

fn word(name: &str, rest: &Rest<'_>, start: usize, depth: &mut Depth) -> Result<(), FilterError> {
    let other = match name.to_ascii_lowercase().as_str() {
        "in" if name == "in" => return depth.step().ok_or_else(|| too_deep(rest)),
        "and" => "&&",
        "or" => "||",
        "not" => "!",
        "like" => ".contains(\"…\")",
        _ => return Ok(()),
    };
    let message = format!("write `{other}` for `{name}`");
    Err(FilterError::Syntax { at: char_at(rest.text, start), message })
}

/// Refuses letters right behind a number: the parser would begin a new word there, and `1in` nests.
fn number(digits: &str, rest: &Rest<'_>, start: usize) -> Result<(), FilterError> {
    let message = match digits.trim_start_matches(|c: char| c.is_ascii_digit()) {
        "" | "u" | "U" => return Ok(()),
        tail => match tail.split_at(1) {
            ("e" | "E", tail) if tail.bytes().all(|byte| byte.is_ascii_digit()) => return Ok(()),
            ("x", tail)
                if tail.trim_end_matches(['u', 'U']).bytes().all(|b| b.is_ascii_hexdigit()) =>
            {
                return Ok(());
            }
            _ if matches!(tail, "KiB" | "MiB" | "GiB" | "TiB") => {
                let count = &digits[..digits.len() - tail.len()];
                format!("write `{count} * {tail}` for `{digits}`")
            }
            _ => format!("`{digits}` is no number"),
        },
    };
    Err(FilterError::Syntax { at: char_at(rest.text, start), message })
}

/// How deep the parser is at most.
///
/// Each bracket is a frame. Within it, operators that nest (`a + b + c` is a tree of two levels) add
/// up until `&&`, `||` or `,` begins a new operand; `?` adds up until `,`, since its branches nest.
#[derive(Default)]
struct Depth {
    total: usize,
    now: Frame,
    outer: Vec<Frame>,
}

#[derive(Default)]
struct Frame {
    steps: usize,
    held: usize,
}

impl Depth {
    #[must_use]
    fn step(&mut self) -> Option<()> {
        self.total += 1;
        self.now.steps += 1;
        (self.total <= FILTER_DEPTH_MAX).then_some(())
    }

    /// Keeps the last step beyond the end of this operand.
    fn hold(&mut self) {
        self.now.steps -= 1;
        self.now.held += 1;
    }

    #[must_use]
    fn open(&mut self) -> Option<()> {
        // The bracket is a step of its own frame too: it may be an index or a call, which nest.
        self.step()?;
        self.outer.push(std::mem::take(&mut self.now));
        Some(())
    }

    fn close(&mut self) {
        self.total -= self.now.steps + self.now.held;
        // Brackets that do not pair are for the parser to refuse.
        self.now = self.outer.pop().unwrap_or_default();
    }

    fn end_operand(&mut self, whole: bool) {
        self.total -= self.now.steps;
        self.now.steps = 0;
        if whole {
            self.total -= self.now.held;
            self.now.held = 0;
        }
    }
}

/// What is left of the text.
struct Rest<'a> {
    text: &'a str,
    at_byte: usize,
}

impl Rest<'_> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.at_byte + ahead).copied()
    }

    fn skip(&mut self, bytes: usize) {
        self.at_byte += bytes;
    }

    fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) {
        while self.peek(0).is_some_and(&wanted) {
            self.skip(1);
        }
    }

    fn error(&self, message: &str) -> FilterError {
        let at = char_at(self.text, self.at_byte);
        FilterError::Syntax { at, message: message.to_owned() }
    }

    /// The length of a prefix such as `r`, `b` or `br` before a quote, and whether it says raw.
    fn string_prefix(&self) -> Option<(usize, bool)> {
        let quote = |ahead| matches!(self.peek(ahead), Some(b'"' | b'\''));
        let raw = |ahead| matches!(self.peek(ahead), Some(b'r' | b'R'));
        match self.peek(0)? {
            b'r' | b'R' if quote(1) => Some((1, true)),
            b'b' | b'B' if quote(1) => Some((1, false)),
            b'b' | b'B' if raw(1) && quote(2) => Some((2, true)),
            _ => None,
        }
    }

    /// Skips a string in quotes. Only escapes that the parser knows pass: at another it would give up
    /// on the string and read its inside as operators, past the count of this scan.
    fn skip_string(&mut self, raw: bool) -> Result<(), FilterError> {
        let open = self.error("this text has no closing quote");
        let quote = self.peek(0);
        if self.peek(1) == quote && self.peek(2) == quote {
            return Err(self.error("write a text in single or double quotes, not in three"));
        }
        self.skip(1);
        loop {
            match self.peek(0) {
                None | Some(b'\n' | b'\r') => return Err(open),
                byte if byte == quote => break,
                Some(b'\\') if !raw => self.skip_escape()?,
                Some(_) => self.skip(1),
            }
        }
        self.skip(1);
        Ok(())
    }

    fn skip_escape(&mut self) -> Result<(), FilterError> {
        let digits = |from: usize, count: usize, digit: fn(&u8) -> bool| {
            (from..from + count).all(|ahead| self.peek(ahead).is_some_and(|byte| digit(&byte)))
        };
        let len = match self.peek(1) {
            Some(
                b'a' | b'b' | b'f' | b'n' | b'r' | b't' | b'v' | b'"' | b'\'' | b'\\' | b'?' | b'`',
            ) => 2,
            Some(b'x' | b'X') if digits(2, 2, u8::is_ascii_hexdigit) => 4,
            Some(b'u') if digits(2, 4, u8::is_ascii_hexdigit) => 6,
            Some(b'U') if digits(2, 8, u8::is_ascii_hexdigit) => 10,
            Some(b'0'..=b'3') if digits(2, 2, |byte| matches!(byte, b'0'..=b'7')) => 4,
            _ => {
                return Err(self.error(
                    "this escape has no meaning; write `\\\\` for a backslash, or r\"…\" around the whole",
                ));
            }
        };
        self.skip(len);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let cases = [
            ("cpu > 50.0 && user == \"www-data\"", None),
            ("a.matches(r'\\d+\\') // comment with ( and \"", None),
            ("b'\\xff' == br\"\\\" && x == '\\u00e9'", None),
            ("\"it's\" == 'say \"hi\"'", None),
            ("user = 'x'", Some((6, "write `==`"))),
            ("é == 1", Some((1, "'é' has no meaning"))),
            ("user == 'é' & x", Some((13, "write `&&`"))),
            ("a AND b", Some((3, "write `&&` for `AND`"))),
            ("user == 'x", Some((9, "no closing quote"))),
            ("user == 'a\nb'", Some((9, "no closing quote"))),
            ("user == 'a\\qb'", Some((11, "escape"))),
            ("user == '\\u12'", Some((10, "escape"))),
            ("user == '''a'''", Some((9, "not in three"))),
            ("user == “x”", Some((9, "plain quotes"))),
            ("x == 0x1fu || x == 1.5e-3 || x == .5 || x == 12u", None),
            ("rss > 512MiB", Some((7, "write `512 * MiB`"))),
            ("1in [2]", Some((1, "`1in` is no number"))),
            ("user =~ 'x'", Some((6, "matches"))),
            ("a <> b", Some((3, "`!=`"))),
            ("`a` == 1", Some((1, "no meaning"))),
        ];
        for (text, want) in cases {
            match (check(text), want) {
                (Ok(()), None) => {}
                (Err(FilterError::Syntax { at, message }), Some((want_at, want))) => {
                    assert_eq!(at, want_at, "for {text:?}");
                    assert!(message.contains(want), "{message:?} does not say {want:?}");
                }
                (got, _) => panic!("{got:?} for {text:?}"),
            }
        }
    }

    #[test]
    fn depth() {
        let many = FILTER_DEPTH_MAX;
        let flat = ["pid == 1".to_owned(), "(pid == 1)".to_owned(), "a ? b".to_owned()];
        for part in &flat[..2] {
            check(&vec![part.as_str(); 500].join(" || ")).expect(part);
        }
        check(&format!("pid in [{}]", vec!["(1 + 2)"; 500].join(","))).expect("a flat list");
        check(&"!".repeat(500)).expect("flat for the parser");
        let deep = [
            "(".repeat(10_000),
            "[".repeat(many + 1),
            "f(".repeat(many + 1),
            "1 + ".repeat(many + 1),
            "1-".repeat(many + 1),
            "a[0]".repeat(many + 1),
            ".a".repeat(many + 1),
            "a in ".repeat(many + 1),
            "a ? b : ".repeat(many + 1),
            "a && b ? c || d : ".repeat(many + 1),
            "a < (".repeat(many / 2 + 1),
        ];
        for text in deep {
            assert!(matches!(check(&text), Err(FilterError::TooDeep { .. })), "{text:.20}");
        }
        check(&")".repeat(1_000)).expect("the parser refuses it");
    }
}
