//! What of a table was read for one query, found again by values.
//!
//! The first conditions on a table are passed on to who reads it: `pid = 7` need not read all. When
//! others follow, it is a join or a list: then the table is read once as a whole, or as far as its
//! conditions were always the same, and rows are found in what is kept. So the number of reads hangs on
//! the query's text, never on the number of rows.

use std::collections::HashMap;
use std::sync::Arc;

use crate::rows::{Batch, Cell};
use crate::table::{Table, Wanted};

/// Part of a value that rows are found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Int(i64),
    Text(Box<str>),
}

fn key(cell: &Cell) -> Option<Key> {
    match cell {
        Cell::Int(number) => Some(Key::Int(*number)),
        Cell::Text(text) => Some(Key::Text(text.clone())),
        // Nothing is equal to null, and no condition on such numbers is used.
        Cell::Null | Cell::Real(_) => None,
    }
}

/// Rows by the values of some columns.
#[derive(Debug)]
struct Index {
    columns: Vec<usize>,
    rows: HashMap<Vec<Key>, Arc<[u32]>>,
}

impl Index {
    fn new(batch: &Batch, columns: Vec<usize>) -> Index {
        let mut rows: HashMap<Vec<Key>, Vec<u32>> = HashMap::new();
        for row in 0..batch.len() {
            let keys = columns.iter().map(|column| batch.cell(row, *column).and_then(key));
            if let Some(keys) = keys.collect::<Option<Vec<Key>>>() {
                rows.entry(keys).or_default().push(row as u32);
            }
        }
        let rows = rows.into_iter().map(|(keys, rows)| (keys, rows.into())).collect();
        Index { columns, rows }
    }
}

/// The rows of one read.
#[derive(Debug)]
struct Kept {
    wanted: Vec<Wanted>,
    limit: Option<u64>,
    batch: Arc<Batch>,
    indexes: Vec<Index>,
}

/// Which rows of a batch.
#[derive(Clone, Debug)]
pub(crate) enum Picked {
    /// All of them.
    All,
    /// These.
    Some(Arc<[u32]>),
}

/// What to do for a look at the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// The rows are here.
    Kept(usize),
    /// They must be read, with these conditions.
    Read { wanted: Vec<Wanted>, limit: Option<u64> },
}

/// A table in one query.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    kept: Vec<Kept>,
}

impl Cache {
    /// What to do for a look at rows with `wanted`, of which `limit` are enough; by single keys the table
    /// is read at most `keyed_reads_max` times.
    pub(crate) fn decide(
        &self,
        table: &Table,
        wanted: &[Wanted],
        limit: Option<u64>,
        keyed_reads_max: u32,
    ) -> Decision {
        let serves = |kept: &Kept| match kept.limit {
            None => kept.wanted.iter().all(|one| wanted.contains(one)),
            Some(_) => kept.limit == limit && kept.wanted == wanted,
        };
        if let Some(found) = self.kept.iter().position(serves) {
            return Decision::Kept(found);
        }
        let is_pushed = |one: &&Wanted| table.columns[one.column].role.is_pushed();
        let pushed: Vec<Wanted> = wanted.iter().filter(is_pushed).cloned().collect();
        // A limit counts rows that fulfil all conditions; rows that lack one are dropped as they come.
        if pushed.is_empty() {
            return Decision::Read { wanted: wanted_with(limit, wanted), limit };
        }
        let keyed = self.kept.iter().filter(|kept| !kept.wanted.is_empty());
        if (keyed.clone().count() as u32) < keyed_reads_max {
            let wanted = if limit.is_some() { wanted.to_vec() } else { pushed };
            return Decision::Read { wanted, limit };
        }
        let is_steady = |one: &&Wanted| keyed.clone().all(|kept| kept.wanted.contains(one));
        let steady: Vec<Wanted> = pushed.iter().filter(is_steady).cloned().collect();
        Decision::Read { wanted: steady, limit: None }
    }

    /// Keeps what was read.
    pub(crate) fn keep(&mut self, wanted: Vec<Wanted>, limit: Option<u64>, batch: Batch) -> usize {
        self.kept.push(Kept { wanted, limit, batch: Arc::new(batch), indexes: Vec::new() });
        self.kept.len() - 1
    }

    /// The rows of a read that fulfil `wanted`.
    pub(crate) fn find(&mut self, kept: usize, wanted: &[Wanted]) -> (Arc<Batch>, Picked) {
        let kept = &mut self.kept[kept];
        let rest: Vec<&Wanted> = wanted.iter().filter(|one| !kept.wanted.contains(one)).collect();
        let batch = Arc::clone(&kept.batch);
        let columns: Vec<usize> = rest.iter().map(|one| one.column).collect();
        if columns.is_empty() {
            return (batch, Picked::All);
        }
        let keys: Option<Vec<Key>> = rest.iter().map(|one| key(&one.value)).collect();
        let Some(keys) = keys else { return (batch, Picked::Some(Arc::default())) };
        let place = kept.indexes.iter().position(|index| index.columns == columns);
        let place = place.unwrap_or_else(|| {
            kept.indexes.push(Index::new(&batch, columns));
            kept.indexes.len() - 1
        });
        let rows = kept.indexes[place].rows.get(&keys).cloned().unwrap_or_default();
        (batch, Picked::Some(rows))
    }
}

/// All conditions where a limit counts by them; else none.
fn wanted_with(limit: Option<u64>, wanted: &[Wanted]) -> Vec<Wanted> {
    if limit.is_some() { wanted.to_vec() } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{Rows, Stop};
    use crate::table::{Column, Kind, Role, Scan};
    use std::time::{Duration, Instant};

    const fn column(name: &'static str, role: Role) -> Column {
        Column { name, kind: Kind::BigInt, role, is_hidden: false, about: "" }
    }

    static TABLE: Table = Table {
        name: "t",
        about: "",
        columns: &[column("pid", Role::Key), column("dc", Role::Group), column("n", Role::Plain)],
        rows_about: 1_000,
        keyed_reads_max: 2,
    };

    fn is(column: usize, value: i64) -> Wanted {
        Wanted { column, value: Cell::Int(value) }
    }

    fn batch() -> Batch {
        let stop = Stop::new(Instant::now() + Duration::from_secs(60), 1 << 20);
        let columns = [0, 1, 2];
        let scan = Scan { table: &TABLE, columns: &columns, wanted: &[], limit: None };
        let mut rows = Rows::of(&scan, &stop);
        for (pid, dc, n) in [(1, 1, 5), (2, 1, 5), (1, 2, 6)] {
            rows.push([pid, dc, n].map(Cell::Int)).expect("room");
        }
        rows.push([Cell::Null, Cell::Int(1), Cell::Int(5)]).expect("room");
        rows.into_batch(columns.to_vec())
    }

    /// Conditions and a limit.
    type Look<'a> = (&'a [Wanted], Option<u64>);

    /// What is read for looks one after the other.
    fn reads(looks: &[Look<'_>]) -> Vec<(Vec<Wanted>, Option<u64>)> {
        let mut cache = Cache::default();
        let mut reads = Vec::new();
        for (wanted, limit) in looks {
            if let Decision::Read { wanted, limit } = cache.decide(&TABLE, wanted, *limit, 2) {
                reads.push((wanted.clone(), limit));
                cache.keep(wanted, limit, batch());
            }
        }
        reads
    }

    #[test]
    fn a_join_reads_a_few_times_however_many_rows_it_has() {
        let pids: Vec<[Wanted; 1]> = (0..100).map(|pid| [is(0, pid)]).collect();
        let looks: Vec<(&[Wanted], _)> = pids.iter().map(|one| (&one[..], None)).collect();
        let want = [(vec![is(0, 0)], None), (vec![is(0, 1)], None), (vec![], None)];
        assert_eq!(reads(&looks), want);
        // What is always the same stays a condition.
        let pids: Vec<[Wanted; 2]> = (0..100).map(|pid| [is(0, pid), is(1, 7)]).collect();
        let looks: Vec<(&[Wanted], _)> = pids.iter().map(|one| (&one[..], None)).collect();
        assert_eq!(reads(&looks)[2..], [(vec![is(1, 7)], None)]);
        // Until it is not.
        let pids: Vec<[Wanted; 2]> = (0..100).map(|n| [is(0, n), is(1, n / 50)]).collect();
        let looks: Vec<(&[Wanted], _)> = pids.iter().map(|one| (&one[..], None)).collect();
        assert_eq!(reads(&looks)[2..], [(vec![is(1, 0)], None), (vec![], None)]);
    }

    #[test]
    fn what_was_read_serves_what_asks_for_less() {
        let cases: [(&[Look<'_>], usize); 7] = [
            (&[(&[], None), (&[is(0, 1)], None), (&[is(2, 1)], None)], 1),
            (&[(&[is(2, 1)], None), (&[is(2, 2)], None), (&[], None)], 1),
            (&[(&[is(0, 1)], None), (&[is(0, 1), is(2, 5)], None)], 1),
            (&[(&[is(0, 1)], None), (&[], None)], 2),
            (&[(&[], Some(5)), (&[], Some(5)), (&[], None)], 2),
            (&[(&[], None), (&[], Some(5))], 1),
            (&[(&[is(2, 5)], Some(1)), (&[is(2, 6)], Some(1))], 2),
        ];
        for (looks, want) in cases {
            assert_eq!(reads(looks).len(), want, "for {looks:?}");
        }
    }

    #[test]
    fn rows_are_found_by_their_values() {
        let mut cache = Cache::default();
        let kept = cache.keep(vec![], None, batch());
        let cases: [(&[Wanted], &[u32]); 6] = [
            (&[is(0, 1)], &[0, 2]),
            (&[is(0, 1), is(1, 2)], &[2]),
            (&[is(1, 1)], &[0, 1, 3]),
            (&[is(0, 9)], &[]),
            (&[Wanted { column: 0, value: Cell::Null }], &[]),
            (&[Wanted { column: 0, value: "1".into() }], &[]),
        ];
        for (wanted, want) in cases {
            let (_, picked) = cache.find(kept, wanted);
            let Picked::Some(rows) = picked else { panic!("{wanted:?} picks all") };
            assert_eq!(&rows[..], want, "for {wanted:?}");
        }
        assert!(matches!(cache.find(kept, &[]).1, Picked::All));
    }
}
