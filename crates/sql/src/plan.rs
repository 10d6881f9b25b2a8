//! How a table is read for a part of a query: which conditions are used, and what that costs. Pure.
//!
//! A condition `column = value` is worth using whatever the column is: the rows are kept, and are found
//! again by their values ([`crate::cache`]). So a join never reads a table again for each row of another.

use crate::table::{Role, Table};

/// What the planner of SQLite offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// The column is equal to a value.
    Equal,
    /// So many rows are enough.
    Limit,
    /// Anything else.
    Other,
}

/// A condition that is offered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offered {
    /// The place of the column; `None` for the row's number.
    pub(crate) column: Option<usize>,
    pub(crate) op: Op,
    /// Whether its value will be known.
    pub(crate) is_usable: bool,
    /// Whether texts are compared as bytes.
    pub(crate) is_binary: bool,
}

/// How to read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// The offers that are used, in the order of their values.
    pub(crate) used: Vec<usize>,
    pub(crate) method: Method,
    pub(crate) cost: f64,
    pub(crate) rows: i64,
}

/// What the values of a plan are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Method {
    /// Columns that are equal to the first values.
    pub(crate) columns: Vec<usize>,
    /// Whether the last value is a limit.
    pub(crate) has_limit: bool,
}

impl Method {
    /// As SQLite keeps it.
    pub(crate) fn to_text(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(ToString::to_string).collect();
        let limit = if self.has_limit { "l" } else { "" };
        columns.join(",") + limit
    }

    /// What [`Method::to_text`] wrote.
    pub(crate) fn of_text(text: &str) -> Method {
        let columns = text.strip_suffix('l');
        let has_limit = columns.is_some();
        let columns = columns.unwrap_or(text).split(',').filter_map(|place| place.parse().ok());
        Method { columns: columns.collect(), has_limit }
    }
}

/// What it costs to begin with rows that are kept.
const COST_OF_LOOK: f64 = 2.0;

/// Of rows with the same value of a column that does not tell them apart, about so many.
const SHARE_OF_GROUP: u32 = 20;

/// Chooses what is used of `offered`. Without an order to be kept, a limit is used where nothing else
/// decides which rows are meant.
pub(crate) fn plan(table: &Table, offered: &[Offered], is_ordered: bool) -> Plan {
    let mut method = Method::default();
    let mut used = Vec::new();
    for (index, offer) in offered.iter().enumerate() {
        let equal = offer.op == Op::Equal && offer.is_usable && offer.is_binary;
        if let Some(column) = offer.column.filter(|_| equal)
            && table.columns.get(column).is_some_and(|column| column.kind.is_integer()
                || column.kind == crate::table::Kind::Text)
            // Of two values for one column SQLite checks the other.
            && !method.columns.contains(&column)
        {
            method.columns.push(column);
            used.push(index);
        }
    }
    let limit = offered.iter().position(|offer| offer.op == Op::Limit && offer.is_usable);
    let all_used = offered
        .iter()
        .enumerate()
        .all(|(index, offer)| offer.op == Op::Limit || used.contains(&index));
    if let Some(limit) = limit.filter(|_| all_used && !is_ordered) {
        method.has_limit = true;
        used.push(limit);
    }
    let all = f64::from(table.rows_about.max(1));
    let role = |column: &usize| table.columns[*column].role;
    let rows = if method.columns.is_empty() {
        table.rows_about
    } else if method.columns.iter().any(|column| role(column) == Role::Key) {
        1.max(table.rows_about / 500)
    } else {
        (table.rows_about / SHARE_OF_GROUP).max(1)
    };
    let cost = if method.columns.is_empty() { all } else { 0.0 };
    Plan { used, method, cost: COST_OF_LOOK + cost + f64::from(rows), rows: rows.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Column, Kind};

    const fn column(name: &'static str, kind: Kind, role: Role) -> Column {
        Column { name, kind, role, is_hidden: false, about: "" }
    }

    static TABLE: Table = Table {
        name: "t",
        about: "",
        columns: &[
            column("pid", Kind::BigInt, Role::Key),
            column("name", Kind::Text, Role::Group),
            column("load", Kind::Double, Role::Plain),
        ],
        rows_about: 1_000,
        keyed_reads_max: 1,
    };

    fn offer(column: Option<usize>, op: Op) -> Offered {
        Offered { column, op, is_usable: true, is_binary: true }
    }

    #[test]
    fn conditions_are_used_where_they_can_be() {
        let unusable = |offer: Offered| Offered { is_usable: false, ..offer };
        let nocase = |offer: Offered| Offered { is_binary: false, ..offer };
        let (pid, name) = (offer(Some(0), Op::Equal), offer(Some(1), Op::Equal));
        let (load, like) = (offer(Some(2), Op::Equal), offer(Some(1), Op::Other));
        let (rowid, limit) = (offer(None, Op::Equal), offer(None, Op::Limit));
        let cases: [(&[Offered], bool, &str); 12] = [
            (&[], false, ""),
            (&[pid], false, "0"),
            (&[name, pid], false, "1,0"),
            (&[pid, pid], false, "0"),
            (&[unusable(pid), name], false, "1"),
            (&[nocase(name)], false, ""),
            (&[load, rowid, like], false, ""),
            (&[limit], false, "l"),
            (&[limit], true, ""),
            (&[pid, limit], false, "0l"),
            (&[pid, like, limit], false, "0"),
            (&[pid, unusable(limit)], false, "0"),
        ];
        for (offered, is_ordered, want) in cases {
            let plan = plan(&TABLE, offered, is_ordered);
            assert_eq!(plan.method.to_text(), want, "for {offered:?}");
            assert_eq!(Method::of_text(want), plan.method);
            assert_eq!(
                plan.used.len(),
                plan.method.columns.len() + usize::from(plan.method.has_limit)
            );
        }
    }

    #[test]
    fn what_tells_more_costs_less() {
        let cost = |columns: &[usize]| {
            let offered: Vec<_> = columns.iter().map(|c| offer(Some(*c), Op::Equal)).collect();
            plan(&TABLE, &offered, false).cost
        };
        assert!(cost(&[0]) < cost(&[1]) && cost(&[1]) < cost(&[]));
    }
}
