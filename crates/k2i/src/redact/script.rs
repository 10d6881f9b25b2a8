//! Commands within a text, as a shell reads them: `sh -c 'mysql -pSECRET'`, `ssh host …`, titles.
//!
//! Words and where they stand are all that is read of a shell's language; what is between them stays as it
//! is. A text that is no command has words too, and loses nothing by being read as one.

use super::{Next, one, programs};

/// The commands without secrets; nothing if there are none, or if it is a single word.
pub(super) fn redact(text: &[u8], depth: usize) -> Option<Vec<u8>> {
    if !text.iter().any(|byte| matches!(byte, b' ' | b'\t' | b'\n')) {
        return None;
    }
    let mut out = Vec::with_capacity(text.len());
    let (mut changed, mut kept) = (false, 0);
    let mut next = Next::Any;
    let mut program = programs::Program::default();
    for token in (Tokens { text, at: 0 }) {
        let (begin, end) = match token {
            Token::Word(begin, end) => (begin, end),
            // `$(which mysql) -pSECRET`: what is in brackets may say which program it is.
            Token::Close => continue,
            Token::End => {
                program = programs::Program::default();
                next = Next::Any;
                continue;
            }
        };
        let raw = &text[begin..end];
        let quoted = raw.len() >= 2
            && matches!(raw[0], b'"' | b'\'')
            && raw[raw.len() - 1] == raw[0]
            && !raw[1..raw.len() - 1].contains(&raw[0]);
        let word = if quoted { &raw[1..raw.len() - 1] } else { raw };
        let now = std::mem::replace(&mut next, Next::Any);
        let (clean, follows) = one(word, now, &mut program, depth);
        next = follows;
        if *clean == *word {
            continue;
        }
        changed = true;
        let inner = usize::from(quoted);
        out.extend_from_slice(&text[kept..begin + inner]);
        out.extend_from_slice(&clean);
        kept = end - inner;
    }
    out.extend_from_slice(&text[kept..]);
    changed.then_some(out)
}

enum Token {
    /// From where to where, quotes included.
    Word(usize, usize),
    /// What parts commands.
    End,
    /// A bracket that closes.
    Close,
}

struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let text = self.text;
        while matches!(text.get(self.at), Some(b' ' | b'\t')) {
            self.at += 1;
        }
        let begin = self.at;
        let ends = |byte: u8| matches!(byte, b';' | b'|' | b'&' | b'\n' | b'`' | b'(' | b')');
        if ends(*text.get(begin)?) {
            self.at += 1;
            return Some(if text[begin] == b')' { Token::Close } else { Token::End });
        }
        let mut quote = None;
        while let Some(byte) = text.get(self.at).copied() {
            match quote {
                Some(b'"') | None if byte == b'\\' => self.at += 1,
                Some(open) if byte == open => quote = None,
                None if matches!(byte, b'"' | b'\'') => quote = self.closed(byte),
                None if matches!(byte, b' ' | b'\t' | b'\n') => break,
                // `a&b` in an address is no end of a command, and `f(x)` is no call of one.
                None if ends(byte) && self.parts(begin) => break,
                _ => {}
            }
            self.at += 1;
        }
        self.at = self.at.min(text.len());
        Some(Token::Word(begin, self.at))
    }
}

impl Tokens<'_> {
    /// A quote that closes again; one that does not is a character like others, as in `it's`.
    fn closed(&self, quote: u8) -> Option<u8> {
        self.text[self.at + 1..].contains(&quote).then_some(quote)
    }

    /// Whether what stands here parts commands although no blank is before it.
    fn parts(&self, begin: usize) -> bool {
        match self.text[self.at] {
            b'\n' | b'`' | b')' => true,
            b'(' => self.text[begin..self.at].ends_with(b"$"),
            _ => {
                matches!(self.text.get(self.at + 1), None | Some(b' ' | b';' | b'&' | b'|' | b'\n'))
            }
        }
    }
}
