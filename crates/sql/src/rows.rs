//! Rows as they are read, with a bound on their bytes.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use crate::table::Scan;

/// Longest text of one cell, and longest value that SQLite makes of others. A command line may have six
/// times as much; what is cut is counted, and the answer says it.
pub const CELL_BYTES_MAX: usize = 1 << 20;

/// A value.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Cell {
    /// Not there, or not readable.
    #[default]
    Null,
    /// A whole number.
    Int(i64),
    /// A finite number.
    Real(f64),
    /// A text.
    Text(Box<str>),
}

impl Cell {
    /// A text from bytes; what is no UTF-8 becomes U+FFFD.
    pub fn text(bytes: impl AsRef<[u8]>) -> Cell {
        Cell::Text(String::from_utf8_lossy(bytes.as_ref()).into())
    }

    /// A text that may be missing.
    pub fn text_or_null(bytes: Option<impl AsRef<[u8]>>) -> Cell {
        bytes.map_or(Cell::Null, Cell::text)
    }

    /// A number; one that is too large for SQL is the largest.
    pub fn count(number: u64) -> Cell {
        Cell::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }

    /// About how much memory it takes.
    fn len_bytes(&self) -> usize {
        let text = if let Cell::Text(text) = self { text.len() } else { 0 };
        size_of::<Cell>() + text
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Cell {
        Cell::Int(number)
    }
}

impl From<i32> for Cell {
    fn from(number: i32) -> Cell {
        Cell::Int(number.into())
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Cell {
        Cell::Int(number.into())
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.into())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::Text(text.into())
    }
}

/// Why reading ends before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its time is over.
    Time,
    /// Nobody waits for it any more.
    Stopped,
    /// Its rows take more memory than there is for one query.
    Memory,
    /// More rows are not wanted: that is no failure.
    Enough,
}

/// What ends a query before it is done. Shared by who runs it and who may end it.
#[derive(Debug)]
pub struct Stop {
    deadline: Instant,
    is_stopped: AtomicBool,
    bytes_left: AtomicUsize,
    /// Cells that were cut.
    cut: AtomicU64,
}

impl Stop {
    pub(crate) fn new(deadline: Instant, bytes_max: usize) -> Stop {
        let (is_stopped, bytes_left) = (AtomicBool::new(false), AtomicUsize::new(bytes_max));
        Stop { deadline, is_stopped, bytes_left, cut: AtomicU64::new(0) }
    }

    /// Ends it soon, from any thread.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// When it ends at the latest.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Says whether to go on.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), Ended> {
        if self.is_stopped.load(Ordering::Relaxed) {
            Err(Ended::Stopped)
        } else if Instant::now() >= self.deadline {
            Err(Ended::Time)
        } else {
            Ok(())
        }
    }

    pub(crate) fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    fn take_bytes(&self, bytes: usize) -> Result<(), Ended> {
        let take = |left: usize| left.checked_sub(bytes);
        let taken = self.bytes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|_| Ended::Memory)
    }
}

/// After so many rows it is looked at the clock.
const ROWS_BETWEEN_LOOKS: usize = 64;

/// Takes the rows that are read.
#[derive(Debug)]
pub struct Rows<'a> {
    cells: Vec<Cell>,
    width: usize,
    count: usize,
    /// Rows that have another value in these places are dropped.
    wanted: Vec<(usize, Cell)>,
    limit: usize,
    stop: &'a Stop,
}

impl<'a> Rows<'a> {
    /// For the rows of a scan: what it does not want is dropped here, so that who reads need not.
    pub fn of(scan: &Scan<'_>, stop: &'a Stop) -> Rows<'a> {
        let wanted = scan.wanted.iter().filter_map(|wanted| {
            let place = scan.columns.binary_search(&wanted.column).ok()?;
            Some((place, wanted.value.clone()))
        });
        Rows {
            cells: Vec::new(),
            width: scan.columns.len(),
            count: 0,
            wanted: wanted.collect(),
            limit: scan.limit.map_or(usize::MAX, |limit| limit as usize),
            stop,
        }
    }

    /// What may end it: who waits for something else while reading looks there.
    pub fn stop(&self) -> &'a Stop {
        self.stop
    }

    /// How many there are so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Takes one: its columns in the order of the scan, as many as it has. What lacks is null.
    ///
    /// # Errors
    /// When it is time to end; pass it on.
    pub fn push(&mut self, row: impl IntoIterator<Item = Cell>) -> Result<(), Ended> {
        if self.count >= self.limit {
            return Err(Ended::Enough);
        }
        if self.count.is_multiple_of(ROWS_BETWEEN_LOOKS) {
            self.stop.check()?;
        }
        let begin = self.cells.len();
        self.cells.extend(row.into_iter().take(self.width));
        self.cells.resize(begin + self.width, Cell::Null);
        if self.wanted.iter().any(|(place, value)| self.cells[begin + place] != *value) {
            self.cells.truncate(begin);
            return Ok(());
        }
        let mut len_bytes = 0;
        for cell in &mut self.cells[begin..] {
            if let Cell::Text(text) = cell
                && text.len() > CELL_BYTES_MAX
            {
                let is_boundary = |at: &usize| text.is_char_boundary(*at);
                let end = (0..=CELL_BYTES_MAX).rev().find(is_boundary).unwrap_or(0);
                *text = text[..end].into();
                self.stop.cut.fetch_add(1, Ordering::Relaxed);
            }
            len_bytes += cell.len_bytes();
        }
        self.stop.take_bytes(len_bytes)?;
        self.count += 1;
        // The next one would say it, but it may be long in coming.
        if self.count >= self.limit { Err(Ended::Enough) } else { Ok(()) }
    }

    pub(crate) fn into_batch(self, columns: Vec<usize>) -> Batch {
        Batch { columns, cells: self.cells, count: self.count }
    }

    /// The rows, each as long as the scan has columns.
    pub fn iter(&self) -> impl Iterator<Item = &[Cell]> {
        (0..self.count).map(|row| &self.cells[row * self.width..][..self.width])
    }
}

/// Rows that were read, and which columns of their table they have.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Ascending.
    columns: Vec<usize>,
    cells: Vec<Cell>,
    count: usize,
}

impl Batch {
    /// How many rows.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The cell of a column of the table; `None` where there is no such row, or it lacks the column.
    pub(crate) fn cell(&self, row: usize, column: usize) -> Option<&Cell> {
        let place = self.columns.binary_search(&column).ok()?;
        self.cells.get(row * self.columns.len() + place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Column, Kind, Role, Table, Wanted};
    use std::time::Duration;

    const fn column(name: &'static str, kind: Kind) -> Column {
        Column { name, kind, role: Role::Plain, is_hidden: false, about: "" }
    }

    static TABLE: Table = Table {
        name: "t",
        about: "",
        columns: &[column("n", Kind::Integer), column("text", Kind::Text)],
        rows_about: 1,
        keyed_reads_max: 1,
    };

    fn scan<'a>(columns: &'a [usize], wanted: &'a [Wanted], limit: Option<u64>) -> Scan<'a> {
        Scan { table: &TABLE, columns, wanted, limit }
    }

    fn stop(bytes_max: usize) -> Stop {
        Stop::new(Instant::now() + Duration::from_secs(60), bytes_max)
    }

    #[test]
    fn rows_keep_their_columns() {
        let stop = stop(1 << 20);
        let mut rows = Rows::of(&scan(&[0, 1], &[], None), &stop);
        rows.push([Cell::Int(1), "a".into()]).expect("room");
        rows.push([Cell::Int(2)]).expect("room");
        rows.push([Cell::Int(3), "c".into(), "too many".into()]).expect("room");
        let batch = rows.into_batch(vec![0, 4]);
        let text = |row| batch.cell(row, 4).cloned();
        assert_eq!(batch.len(), 3);
        assert_eq!(text(0), Some("a".into()));
        assert_eq!(text(1), Some(Cell::Null));
        assert_eq!(text(2), Some("c".into()));
        assert_eq!(batch.cell(2, 0), Some(&Cell::Int(3)));
        assert_eq!((batch.cell(3, 0), batch.cell(0, 1)), (None, None));
    }

    #[test]
    fn rows_that_are_not_wanted_are_dropped_and_enough_is_enough() {
        let stop = stop(1 << 20);
        let wanted = [Wanted { column: 0, value: Cell::Int(1) }];
        let mut rows = Rows::of(&scan(&[0, 1], &wanted, Some(2)), &stop);
        assert_eq!(rows.push([Cell::Int(2), "a".into()]), Ok(()));
        assert_eq!(rows.push([Cell::Int(1), "b".into()]), Ok(()));
        assert_eq!(rows.push([Cell::Null, "c".into()]), Ok(()));
        assert_eq!(rows.push([Cell::Int(1), "d".into()]), Err(Ended::Enough));
        assert_eq!(rows.push([Cell::Int(1), "e".into()]), Err(Ended::Enough));
        let texts: Vec<&Cell> = rows.iter().map(|row| &row[1]).collect();
        assert_eq!(texts, [&Cell::from("b"), &Cell::from("d")]);
    }

    #[test]
    fn what_is_too_much_ends_it() {
        let small = stop(200);
        let mut rows = Rows::of(&scan(&[1], &[], None), &small);
        let push = |rows: &mut Rows<'_>| rows.push(["x".repeat(60).into()]);
        assert_eq!((push(&mut rows), push(&mut rows)), (Ok(()), Ok(())));
        assert_eq!(push(&mut rows), Err(Ended::Memory));
        let stopped = stop(1 << 20);
        stopped.stop();
        assert_eq!(Rows::of(&scan(&[], &[], None), &stopped).push([]), Err(Ended::Stopped));
        let late = Stop::new(Instant::now(), 1 << 20);
        assert_eq!(Rows::of(&scan(&[], &[], None), &late).push([]), Err(Ended::Time));
    }

    #[test]
    fn long_texts_are_cut_between_characters_and_counted() {
        let stop = stop(8 << 20);
        let mut rows = Rows::of(&scan(&[1], &[], None), &stop);
        rows.push([("é".repeat(CELL_BYTES_MAX) + "x").into()]).expect("room");
        rows.push([("x".to_owned() + &"é".repeat(CELL_BYTES_MAX)).into()]).expect("room");
        let lens: Vec<usize> = rows
            .iter()
            .map(|row| if let Cell::Text(text) = &row[0] { text.len() } else { 0 })
            .collect();
        assert_eq!(lens, [CELL_BYTES_MAX, CELL_BYTES_MAX - 1]);
        assert_eq!(stop.cut(), 2);
    }
}
