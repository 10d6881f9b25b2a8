//! Lines of cells that stand below each other, for what is no table of processes.

use crate::output::{Look, Output};
use crate::text;

/// Narrowest that the last column is cut to; below that the terminal cuts.
const LAST_WIDTH_MIN: usize = 8;

/// A cell, made visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    look: Look,
    is_right: bool,
}

impl Cell {
    /// A text; it may be hostile.
    pub fn new(text: impl AsRef<str>) -> Cell {
        Cell { text: text::visible(text.as_ref()).into_owned(), look: Look::Plain, is_right: false }
    }

    /// The same with a look.
    #[must_use]
    pub fn look(self, look: Look) -> Cell {
        Cell { look, ..self }
    }

    /// The same at the right edge of its column, as numbers stand.
    #[must_use]
    pub fn right(self) -> Cell {
        Cell { is_right: true, ..self }
    }

    /// What is not known.
    pub fn unknown() -> Cell {
        Cell::new("-").look(Look::Dim)
    }
}

/// A line of headings.
pub fn headings(names: &[&str]) -> Vec<Cell> {
    names.iter().map(|name| Cell::new(name).look(Look::Heading)).collect()
}

/// The rows as lines; a row may have fewer cells than others. The last cell of each is cut to the
/// width, if there is one. A heading stands as the cells below it do.
pub fn lines(mut rows: Vec<Vec<Cell>>, width_max: Option<usize>, out: &Output) -> Vec<String> {
    if let [heading, first, ..] = rows.as_mut_slice() {
        for (heading, below) in heading.iter_mut().zip(first) {
            heading.is_right |= below.is_right;
        }
    }
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width_of = |place: usize| {
        // What nothing follows needs no room.
        let inner = rows.iter().filter(|row| {
            place + 1 < row.len() || row[..].get(place).is_some_and(|cell| cell.is_right)
        });
        inner.filter_map(|row| row.get(place)).map(|cell| text::columns(&cell.text)).max()
    };
    let widths: Vec<usize> = (0..count).map(|place| width_of(place).unwrap_or(0)).collect();
    let line = |row: Vec<Cell>| {
        let last = row.len().saturating_sub(1);
        let mut line = String::new();
        let mut at = 0;
        for (place, cell) in row.into_iter().enumerate() {
            let mut text = cell.text;
            if place == last
                && let Some(max) = width_max
            {
                text = text::visible_within(&text, max.saturating_sub(at).max(LAST_WIDTH_MIN));
            }
            let columns = text::columns(&text);
            let blanks = " ".repeat(widths[place].saturating_sub(columns));
            let styled = out.styled(cell.look, &text);
            match (cell.is_right, place == last) {
                (true, _) => line.extend([blanks.as_str(), &styled]),
                (false, true) => line.push_str(&styled),
                (false, false) => line.extend([styled.as_str(), &blanks]),
            }
            at += columns.max(widths[place]) + 2;
            if place != last {
                line.push_str("  ");
            }
        }
        line.truncate(line.trim_end_matches(' ').len());
        line
    };
    rows.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ColorChoice;

    #[test]
    fn cells_line_up_and_the_last_is_cut() {
        let out = Output::stdout(ColorChoice::Never);
        let rows = || {
            vec![
                headings(&["HOST", "CPUS", "LABELS"]),
                vec![Cell::new("a"), Cell::new("8").right(), Cell::new("rack=3 \x1b[31m")],
                vec![Cell::new("日本"), Cell::new("128").right(), Cell::unknown()],
                vec![Cell::new("nothing more follows")],
            ]
        };
        let want = [
            "HOST  CPUS  LABELS",
            "a        8  rack=3 \\x1b[31m",
            "日本   128  -",
            "nothing more follows",
        ];
        assert_eq!(lines(rows(), None, &out), want);
        assert_eq!(lines(rows(), Some(21), &out)[1], "a        8  rack=3 \\…");
        let color = Output::stdout(ColorChoice::Always);
        let plain = lines(rows(), Some(21), &color).join("\n");
        assert!(plain.contains("\x1b[1mHOST\x1b[0m  "), "{plain:?}");
    }
}
