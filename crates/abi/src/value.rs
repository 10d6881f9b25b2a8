//! One cell of a table, borrowed from its row where it can be.

use std::borrow::Cow;
use std::cmp::Ordering;

/// The value of one column in one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Not there (a kernel thread's command line), or not readable with our rights.
    Null,
    /// A flag.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A finite number.
    Float(f64),
    /// Bytes, UTF-8 as a rule. They are hostile: never print them as they are.
    Text(Cow<'a, [u8]>),
    /// Texts, each ended by a NUL byte, as the kernel lays out an argument vector.
    TextList(Cow<'a, [u8]>),
}

impl<'a> Value<'a> {
    /// A text that is borrowed from its row.
    pub fn text(text: &'a (impl AsRef<[u8]> + ?Sized)) -> Value<'a> {
        Value::Text(Cow::Borrowed(text.as_ref()))
    }

    /// A text that was made for this value.
    pub fn owned_text(text: impl Into<Vec<u8>>) -> Value<'a> {
        Value::Text(Cow::Owned(text.into()))
    }

    /// The same value, borrowing nothing.
    pub fn into_owned(self) -> Value<'static> {
        match self {
            Value::Null => Value::Null,
            Value::Bool(flag) => Value::Bool(flag),
            Value::Int(number) => Value::Int(number),
            Value::Float(number) => Value::Float(number),
            Value::Text(text) => Value::Text(Cow::Owned(text.into_owned())),
            Value::TextList(texts) => Value::TextList(Cow::Owned(texts.into_owned())),
        }
    }

    /// The total order that sorting uses: null first, then by value. Numbers of both kinds compare
    /// as numbers; a column holds one kind, so the order between other kinds never shows.
    pub fn order(&self, other: &Value<'_>) -> Ordering {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Float(a), Value::Float(b)) => a.total_cmp(b),
            (Value::Int(a), Value::Float(b)) => (*a as f64).total_cmp(b),
            (Value::Float(a), Value::Int(b)) => a.total_cmp(&(*b as f64)),
            (Value::Text(a), Value::Text(b)) | (Value::TextList(a), Value::TextList(b)) => a.cmp(b),
            (a, b) => a.rank().cmp(&b.rank()),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Value::Null => 0,
            Value::Bool(_) => 1,
            Value::Int(_) | Value::Float(_) => 2,
            Value::Text(_) => 3,
            Value::TextList(_) => 4,
        }
    }
}

/// The elements of a [`Value::TextList`]: empty ones count, the last terminator ends the list.
pub fn text_list_items(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let body = list.strip_suffix(b"\0").unwrap_or(list);
    let empty = list.is_empty();
    body.split(|byte| *byte == 0).filter(move |_| !empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argument_vectors_keep_their_empty_elements() {
        let cases: [(&[u8], &[&[u8]]); 5] = [
            (b"", &[]),
            (b"\0", &[b""]),
            (b"sh\0-c\0", &[b"sh", b"-c"]),
            (b"a\0\0b\0", &[b"a", b"", b"b"]),
            (b"not ended", &[b"not ended"]),
        ];
        for (list, want) in cases {
            assert_eq!(text_list_items(list).collect::<Vec<_>>(), want, "for {list:?}");
        }
    }

    #[test]
    fn null_sorts_first_and_numbers_mix() {
        assert_eq!(Value::Null.order(&Value::Int(-5)), Ordering::Less);
        assert_eq!(Value::Int(2).order(&Value::Float(1.5)), Ordering::Greater);
        assert_eq!(Value::text("a").order(&Value::text("b")), Ordering::Less);
    }
}
