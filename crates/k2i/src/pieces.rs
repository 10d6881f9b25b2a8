//! How rows are written into an answer, in pieces, whatever they are rows of.

use kumo_abi::Meta;

use crate::encode::{document, write_value};
use crate::engine::Format;

/// Size of the pieces in which an answer is written. Larger ones save nothing and cost memory for
/// each of a thousand readers.
const PIECE_BYTES: usize = 128 * 1024;

/// Where the writing of an answer is.
#[derive(Debug)]
pub(crate) struct RowWriter {
    head: Vec<u8>,
    /// `{"pid":`, `,"user":` and so on.
    keys: Vec<Vec<u8>>,
    next: usize,
    begun: bool,
}

impl RowWriter {
    pub(crate) fn new(meta: &Meta) -> RowWriter {
        let mut head = document(meta);
        head.pop(); // The closing brace: the rows come before it.
        head.extend_from_slice(br#","rows":["#);
        let key = |(index, name): (usize, &String)| {
            let mut key = vec![if index == 0 { b'{' } else { b',' }];
            write_value(&mut key, &kumo_abi::Value::text(name));
            key.push(b':');
            key
        };
        let keys = meta.columns.iter().enumerate().map(key).collect();
        RowWriter { head, keys, next: 0, begun: false }
    }

    /// What stands in front of each value of a row.
    pub(crate) fn keys(&self) -> &[Vec<u8>] {
        &self.keys
    }

    /// Appends the next piece of an answer of `len` rows to `out`; `false` when that was the last one.
    /// `row` appends one of them, but for its last brace: each key, and its value.
    pub(crate) fn write_next(
        &mut self,
        format: Format,
        len: usize,
        out: &mut Vec<u8>,
        row: impl Fn(usize, &[Vec<u8>], &mut Vec<u8>),
    ) -> bool {
        let end = out.len() + PIECE_BYTES;
        if format == Format::Json && !self.begun {
            out.append(&mut self.head);
        }
        self.begun = true;
        while self.next < len {
            if out.len() >= end {
                return true;
            }
            if format == Format::Json && self.next > 0 {
                out.push(b',');
            }
            row(self.next, &self.keys, out);
            out.push(b'}');
            if format == Format::NdJson {
                out.push(b'\n');
            }
            self.next += 1;
        }
        if format == Format::Json {
            out.extend_from_slice(b"]}");
        }
        false
    }
}
