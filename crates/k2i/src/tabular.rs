//! Queries over tables that are whole in memory: filter, sort, limit, group, and the answer in pieces.
//!
//! The process table has more to it, as it fetches what rows lack; see `select`. What is the same for both
//! stands there and in `pieces`.

use std::fmt;

use kumo_abi::{ColumnIndex, Meta, Query, Schema, Select, Value};

use crate::encode::write_value;
use crate::engine::Format;
use crate::pieces::RowWriter;
use crate::select::{Selected, group_rows, sort_rows};

/// A table whose values are at hand.
pub(crate) trait Tabular: Send + Sync + fmt::Debug + 'static {
    /// Its columns.
    fn schema(&self) -> &'static Schema;
    /// How many rows it has.
    fn len(&self) -> usize;
    /// The value of a column in a row.
    fn value(&self, column: ColumnIndex, row: usize) -> Value<'_>;
}

/// An answer from such a table, written bit by bit.
#[derive(Debug)]
pub struct TableAnswer {
    /// What it says about itself.
    pub meta: Meta,
    table: Box<dyn Tabular>,
    columns: Vec<Select>,
    selected: Selected,
    writer: RowWriter,
}

impl TableAnswer {
    /// Evaluates `query`. Of `meta`, the columns and what matched are filled in.
    pub(crate) fn new(table: Box<dyn Tabular>, query: &Query, mut meta: Meta) -> TableAnswer {
        let is_wanted = |row: &usize| {
            let filter = query.filter.as_ref();
            filter.is_none_or(|filter| filter.matches(&|column| table.value(column, *row)))
        };
        let mut rows: Vec<usize> = (0..table.len()).filter(is_wanted).collect();
        let schema = table.schema();
        meta.matched = rows.len() as u64;
        meta.columns = query.columns.iter().map(|select| select.name(schema)).collect();
        let selected = if query.is_grouped() {
            let groups = group_rows(query, schema, &rows, |row, take| {
                take(&|column| table.value(column, row));
            });
            Selected::Groups(groups)
        } else {
            sort_rows(query, &mut rows, |column, row| table.value(column, row));
            Selected::Rows(rows)
        };
        let writer = RowWriter::new(&meta);
        TableAnswer { meta, columns: query.columns.clone(), table, selected, writer }
    }

    /// How many rows it has.
    pub fn len(&self) -> usize {
        self.selected.len()
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the next piece (tens of KiB) to `out`; `false` when that was the last one.
    pub fn write_next(&mut self, format: Format, out: &mut Vec<u8>) -> bool {
        let TableAnswer { table, columns, selected, writer, .. } = self;
        writer.write_next(format, selected.len(), out, |position, keys, out| match &*selected {
            Selected::Groups(groups) => {
                for (key, value) in keys.iter().zip(&groups[position]) {
                    out.extend_from_slice(key);
                    write_value(out, value);
                }
            }
            Selected::Rows(rows) => {
                for (key, select) in keys.iter().zip(columns.iter()) {
                    let Select::Column(column) = select else { continue };
                    out.extend_from_slice(key);
                    write_value(out, &table.value(*column, rows[position]));
                }
            }
        })
    }

    /// The whole answer at once, for a reader in this process.
    pub fn into_bytes(mut self, format: Format) -> Vec<u8> {
        let mut out = Vec::new();
        while self.write_next(format, &mut out) {}
        out
    }
}
