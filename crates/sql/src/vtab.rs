//! Tables as SQLite's virtual tables: the glue, and nothing else.
//!
//! SQLite calls these functions from C, so none of them may panic: what decides and what reads runs behind
//! [`Aux::guarded`], and the rest has nothing that could.

use std::ffi::c_int;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::vtab::{
    Context, DistinctMode, Filters, IndexConstraintOp, IndexInfo, VTab, VTabConfig, VTabConnection,
    VTabCursor, eponymous_only_module, sqlite3_vtab, sqlite3_vtab_cursor,
};
use rusqlite::{Connection, Error, Result};

use crate::cache::{Cache, Decision, Picked};
use crate::plan::{Method, Offered, Op, plan};
use crate::rows::{Batch, Cell, Ended, Rows, Stop};
use crate::table::{COLUMNS_MAX, Role, Scan, ScanError, Source, Table, Wanted};

/// One query.
#[derive(Debug)]
pub(crate) struct Session {
    source: Arc<dyn Source>,
    pub(crate) stop: Arc<Stop>,
    hashes: RandomState,
    tables: Vec<Mutex<State>>,
    failed: Mutex<Option<(&'static str, ScanError)>>,
}

/// A table in this query.
#[derive(Debug, Default)]
struct State {
    /// The columns that any part of the query reads: a bit for each.
    used: u64,
    cache: Cache,
    /// The last look for rows by some keys of several, and whether there was another before.
    narrow: Option<Vec<Wanted>>,
    is_loose: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What panicked fails its query, and nobody looks there again.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    pub(crate) fn new(source: Arc<dyn Source>, stop: Arc<Stop>) -> Arc<Session> {
        let tables = source.tables().iter().map(|_| Mutex::default()).collect();
        let (hashes, failed) = (RandomState::new(), Mutex::default());
        Arc::new(Session { source, stop, hashes, tables, failed })
    }

    /// The tables.
    pub(crate) fn tables(&self) -> &'static [Table] {
        self.source.tables()
    }

    /// Tables whose rows were looked for by some of their keys only, more than once.
    pub(crate) fn loose(&self) -> Vec<&'static str> {
        let tables = self.source.tables().iter().zip(&self.tables);
        tables.filter(|(_, state)| lock(state).is_loose).map(|(table, _)| table.name).collect()
    }

    /// What went wrong with which table, if that is why the query failed.
    pub(crate) fn failure(&self) -> Option<(&'static str, ScanError)> {
        lock(&self.failed).take()
    }

    /// Makes all tables of the source those of a connection.
    pub(crate) fn attach(self: &Arc<Session>, connection: &Connection) -> Result<()> {
        for (place, table) in self.source.tables().iter().enumerate() {
            let aux = Aux { session: Arc::clone(self), table, place };
            connection.create_module(table.name, eponymous_only_module::<View>(), Some(aux))?;
        }
        Ok(())
    }

    fn find(
        &self,
        aux: &Aux,
        wanted: &[Wanted],
        limit: Option<u64>,
    ) -> Result<(Arc<Batch>, Picked)> {
        let mut state = lock(&self.tables[aux.place]);
        if is_narrow(aux.table, wanted) {
            let before = state.narrow.replace(wanted.to_vec());
            state.is_loose |= before.is_some_and(|before| before != wanted);
        }
        let reads_max = self.source.keyed_reads_max(aux.table);
        let kept = match state.cache.decide(aux.table, wanted, limit, reads_max) {
            Decision::Kept(kept) => kept,
            Decision::Read { wanted, limit } => {
                let batch = self.read(aux.table, state.used, &wanted, limit);
                let batch = batch.map_err(|error| self.fail(aux.table.name, error))?;
                state.cache.keep(wanted, limit, batch)
            }
        };
        Ok(state.cache.find(kept, wanted))
    }

    fn read(
        &self,
        table: &'static Table,
        used: u64,
        wanted: &[Wanted],
        limit: Option<u64>,
    ) -> std::result::Result<Batch, ScanError> {
        let is_read = |place: &usize| {
            used & (1 << place) != 0
                || table.columns[*place].role.tells_apart()
                || wanted.iter().any(|one| one.column == *place)
        };
        let columns: Vec<usize> = (0..table.columns.len()).filter(is_read).collect();
        let scan = Scan { table, columns: &columns, wanted, limit };
        let mut rows = Rows::of(&scan, &self.stop);
        match self.source.scan(&scan, &mut rows) {
            Ok(()) | Err(ScanError::Ended(Ended::Enough)) => {}
            Err(error) => return Err(error),
        }
        Ok(rows.into_batch(columns))
    }

    /// Keeps why the query fails: SQLite passes on no more than a text.
    fn fail(&self, table: &'static str, error: ScanError) -> Error {
        *lock(&self.failed) = Some((table, error));
        Error::ModuleError(format!("cannot read table {table}"))
    }
}

/// Whether the last key of several is known, and one before it is not: of many hosts, a process number
/// without its host.
fn is_narrow(table: &Table, wanted: &[Wanted]) -> bool {
    let is_key = |place: &usize| table.columns[*place].role == Role::Key;
    let keys: Vec<usize> = (0..table.columns.len()).filter(is_key).collect();
    let is_known = |key: &usize| wanted.iter().any(|one| one.column == *key);
    keys.split_last().is_some_and(|(last, others)| is_known(last) && !others.iter().all(is_known))
}

/// What a table of a connection is made from.
#[derive(Clone, Debug)]
pub(crate) struct Aux {
    session: Arc<Session>,
    table: &'static Table,
    place: usize,
}

impl Aux {
    /// Runs what could panic if it had a bug.
    fn guarded<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        // What it leaves behind is used by nobody: the query fails with it.
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            let bug = ScanError::failed("a bug of whoever reads it; the log says more");
            Err(self.session.fail(self.table.name, bug))
        })
    }
}

/// A table of a connection.
#[repr(C)]
struct View {
    /// SQLite's own; it must be first.
    base: sqlite3_vtab,
    aux: Aux,
}

// SAFETY: `View` is `repr(C)` and begins with SQLite's base, as the trait wants; so a pointer to one is a
// pointer to the other. Nothing of ours reads or writes the base.
#[expect(unsafe_code, reason = "SQLite's tables are C structures that begin with its own fields")]
unsafe impl VTab<'_> for View {
    type Aux = Aux;
    type Cursor = Cursor;

    fn connect(
        db: &mut VTabConnection,
        aux: Option<&Aux>,
        _args: &[&[u8]],
    ) -> Result<(String, View)> {
        db.config(VTabConfig::Innocuous)?;
        let aux = aux.ok_or_else(|| Error::ModuleError("a table without a source".to_owned()))?;
        let declaration = aux.table.declaration();
        Ok((declaration, View { base: sqlite3_vtab::default(), aux: aux.clone() }))
    }

    fn best_index(&self, info: &mut IndexInfo) -> Result<()> {
        self.aux.guarded(|| {
            let mut offered = Vec::new();
            for (index, constraint) in info.constraints().enumerate() {
                let op = match constraint.operator() {
                    IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ => Op::Equal,
                    IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_LIMIT => Op::Limit,
                    _ => Op::Other,
                };
                let is_binary = op == Op::Equal && info.collation(index)? == "BINARY";
                let column = usize::try_from(constraint.column()).ok().filter(|_| op == Op::Equal);
                offered.push(Offered { column, op, is_usable: constraint.is_usable(), is_binary });
            }
            let is_ordered = info.num_of_order_by() > 0 || info.distinct() != DistinctMode::Ordered;
            let plan = plan(self.aux.table, &offered, is_ordered);
            for (place, index) in plan.used.iter().enumerate() {
                // SQLite checks each once more: it knows its own rules for values of other kinds.
                info.constraint_usage(*index).set_argv_index(place as c_int + 1);
            }
            info.set_idx_str(&plan.method.to_text());
            info.set_estimated_cost(plan.cost);
            info.set_estimated_rows(plan.rows);
            lock(&self.aux.session.tables[self.aux.place]).used |= info.col_used();
            Ok(())
        })
    }

    fn open(&mut self) -> Result<Cursor> {
        let (base, aux) = (sqlite3_vtab_cursor::default(), self.aux.clone());
        Ok(Cursor { base, aux, batch: None, picked: Picked::All, at: 0 })
    }
}

/// Where a part of a query is in a table.
#[repr(C)]
struct Cursor {
    /// SQLite's own; it must be first.
    base: sqlite3_vtab_cursor,
    aux: Aux,
    batch: Option<Arc<Batch>>,
    picked: Picked,
    at: usize,
}

impl Cursor {
    /// The number of the row that it is at, among those of the batch; `None` behind the last.
    fn row(&self) -> Option<usize> {
        match &self.picked {
            Picked::All => {
                let len = self.batch.as_ref().map_or(0, |batch| batch.len());
                (self.at < len).then_some(self.at)
            }
            Picked::Some(rows) => rows.get(self.at).map(|row| *row as usize),
        }
    }

    fn cell(&self, column: usize) -> Option<&Cell> {
        self.batch.as_ref()?.cell(self.row()?, column)
    }
}

// SAFETY: `Cursor` is `repr(C)` and begins with SQLite's base, as the trait wants; so a pointer to one is
// a pointer to the other. Nothing of ours reads or writes the base.
#[expect(unsafe_code, reason = "SQLite's cursors are C structures that begin with its own fields")]
unsafe impl VTabCursor for Cursor {
    fn filter(&mut self, _number: c_int, text: Option<&str>, values: &Filters<'_>) -> Result<()> {
        let aux = self.aux.clone();
        aux.guarded(|| {
            let method = Method::of_text(text.unwrap_or_default());
            let mut values = values.iter();
            let (mut wanted, mut is_exact) = (Vec::new(), true);
            for column in method.columns {
                let value = values.next().unwrap_or(ValueRef::Null);
                match comparable(self.aux.table.columns[column].kind.is_integer(), value) {
                    Comparable::As(value) => wanted.push(Wanted { column, value }),
                    Comparable::Never => {
                        (self.batch, self.picked, self.at) = (None, Picked::All, 0);
                        return Ok(());
                    }
                    Comparable::BySqlite => is_exact = false,
                }
            }
            let limit = match values.next() {
                Some(ValueRef::Integer(limit)) if method.has_limit && is_exact => {
                    u64::try_from(limit).ok()
                }
                _ => None,
            };
            let (batch, picked) = self.aux.session.find(&self.aux, &wanted, limit)?;
            (self.batch, self.picked, self.at) = (Some(batch), picked, 0);
            Ok(())
        })
    }

    fn next(&mut self) -> Result<()> {
        self.at += 1;
        Ok(())
    }

    fn eof(&self) -> bool {
        self.row().is_none()
    }

    fn column(&self, context: &mut Context, column: c_int) -> Result<()> {
        let cell = usize::try_from(column).ok().and_then(|column| self.cell(column));
        let value = match cell {
            None | Some(Cell::Null) => ValueRef::Null,
            Some(Cell::Int(number)) => ValueRef::Integer(*number),
            Some(Cell::Real(number)) => ValueRef::Real(*number),
            Some(Cell::Text(text)) => ValueRef::Text(text.as_bytes()),
        };
        context.set_result(&ToSqlOutput::Borrowed(value))
    }

    /// The same for the same row, however it was found: SQLite looks for `a OR b` twice, and drops by this
    /// what it has seen. So it is made of what tells rows apart.
    fn rowid(&self) -> Result<i64> {
        let mut hasher = self.aux.session.hashes.build_hasher();
        for (place, column) in self.aux.table.columns.iter().enumerate() {
            if column.role.tells_apart() {
                match self.cell(place) {
                    None | Some(Cell::Null) => 0_u8.hash(&mut hasher),
                    Some(Cell::Int(number)) => number.hash(&mut hasher),
                    Some(Cell::Real(number)) => number.to_bits().hash(&mut hasher),
                    Some(Cell::Text(text)) => text.hash(&mut hasher),
                }
            }
        }
        Ok(hasher.finish().cast_signed())
    }
}

/// How a value is compared with those of a column.
enum Comparable {
    /// As this value of the column's kind.
    As(Cell),
    /// It is equal to none.
    Never,
    /// By rules that only SQLite knows, such as those for `pid = ' 7'`.
    BySqlite,
}

fn comparable(is_integer: bool, value: ValueRef<'_>) -> Comparable {
    match value {
        ValueRef::Null => Comparable::Never,
        ValueRef::Integer(number) if is_integer => Comparable::As(Cell::Int(number)),
        ValueRef::Text(text) if !is_integer => match std::str::from_utf8(text) {
            Ok(text) => Comparable::As(Cell::Text(text.into())),
            Err(_) => Comparable::BySqlite,
        },
        // People write numbers in quotes; what is not plainly one is not for us.
        ValueRef::Text(text) => {
            let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
            let is_plain = |number: &i64| number.to_string().as_bytes() == text;
            match number.filter(is_plain) {
                Some(number) => Comparable::As(Cell::Int(number)),
                None => Comparable::BySqlite,
            }
        }
        ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => Comparable::BySqlite,
    }
}

/// Whether SQLite can tell which columns of a table are read.
pub(crate) fn fits(table: &Table) -> bool {
    table.columns.len() <= COLUMNS_MAX
}
