//! Rows that each host has sorted.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashSet};

use memchr::memmem;
use serde::de::IgnoredAny;

use super::part::{self, Part, ReadAll, Spoiled, lines};
use super::row::{self, Wanted};
use super::{Answered, Plan, names_of_hosts};
use crate::value::Value;

/// Which key is compared, and whether from high to low.
type KeyOrder = (usize, bool);

/// The next row of one run.
struct Head<'a> {
    /// Data centre and host, then the other sort keys.
    keys: Vec<Value<'static>>,
    order: &'a [KeyOrder],
    row: &'a [u8],
    run: usize,
}

impl Ord for Head<'_> {
    /// The greatest is the one that comes first: a heap gives that.
    fn cmp(&self, other: &Self) -> Ordering {
        let orders = self.order.iter().map(|(key, descending)| {
            let order = self.keys[*key].order(&other.keys[*key]);
            if *descending { order } else { order.reverse() }
        });
        // Equal ones are of one host, hence of one run, and stay as they are.
        orders.into_iter().find(|o| o.is_ne()).unwrap_or_else(|| other.run.cmp(&self.run))
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head<'_> {}

/// Merges runs into one, up to the limit.
pub(super) fn merge<'a>(plan: &Plan, mut read: ReadAll<'a, Answered>) -> Part<'a, Answered> {
    let mut keys = names_of_hosts(plan.schema);
    let mut order: Vec<KeyOrder> = Vec::new();
    for key in &plan.query.sort {
        let place = keys.iter().position(|select| *select == key.select).unwrap_or(keys.len());
        if place == keys.len() {
            keys.push(key.select);
        }
        order.push((place, key.descending));
    }
    order.extend([(0, false), (1, false)]);
    let wanted: Vec<Wanted> = keys.into_iter().map(|key| Wanted::of(key, plan.schema)).collect();
    let limit = plan.query.limit.map_or(usize::MAX, |limit| limit as usize);
    loop {
        match try_merge(&read.parts, &wanted, &order, limit) {
            Ok(rows) => {
                let hosts = part::hosts_of(&read.parts);
                return Part { hosts, rows: vec![rows.into()], mixed: true, spoiled: read.spoiled };
            }
            // Begun again without the broken one: some of its rows may be among the others by now.
            Err((run, why)) => {
                let broken = read.parts.swap_remove(run);
                read.spoiled.extend(broken.hosts.iter().map(|host| Spoiled::host(host, &why)));
            }
        }
    }
}

fn try_merge(
    parts: &[Part<'_, Answered>],
    wanted: &[Wanted],
    order: &[KeyOrder],
    limit: usize,
) -> Result<Vec<u8>, (usize, String)> {
    let speakers: Vec<HashSet<(&[u8], &[u8])>> = parts
        .iter()
        .map(|part| {
            let names =
                part.hosts.iter().map(|h| (h.dc.as_str().as_bytes(), h.host.as_str().as_bytes()));
            names.collect()
        })
        .collect();
    let mut runs: Vec<_> =
        parts.iter().map(|part| lines(part.rows.first().map_or(&[], AsRef::as_ref))).collect();
    let head = |run: usize, row: &'_ [u8]| -> Result<Vec<Value<'static>>, (usize, String)> {
        let keys = row::cells(row, wanted)
            .map_err(|error| (run, format!("a row of its answer is broken: {error}")))?;
        match keys.as_slice() {
            [Value::Text(dc), Value::Text(host), ..]
                if speakers[run].contains(&(dc.as_ref(), host.as_ref())) =>
            {
                Ok(keys)
            }
            _ => Err((run, "its answer has a row of another host".to_owned())),
        }
    };
    let mut heap = BinaryHeap::with_capacity(runs.len());
    for (run, rows) in runs.iter_mut().enumerate() {
        if let Some(row) = rows.next() {
            heap.push(Head { keys: head(run, row)?, order, row, run });
        }
    }
    let mut out = Vec::new();
    let mut count = 0;
    while count < limit
        && let Some(mut first) = heap.peek_mut()
    {
        out.extend_from_slice(first.row);
        out.push(b'\n');
        count += 1;
        let run = first.run;
        if let Some(row) = runs[run].next() {
            let keys = head(run, row)?;
            *first = Head { keys, order, row, run };
        } else {
            std::collections::binary_heap::PeekMut::pop(first);
        }
    }
    Ok(out)
}

/// Rows without the column `first_extra` and what stands behind it.
///
/// Rows are flat objects, and a quote within a text has a backslash before it: `,"name":` stands
/// nowhere but before that column's value. A row that is not flat stays as it is.
pub(super) fn without_extras(rows: &[u8], first_extra: &str) -> Vec<u8> {
    let mark = format!(",\"{first_extra}\":");
    let mark = memmem::Finder::new(&mark);
    let mut out = Vec::with_capacity(rows.len());
    for row in lines(rows) {
        let start = out.len();
        if let Some(at) = mark.find(row) {
            out.extend_from_slice(&row[..at]);
            out.push(b'}');
        }
        if serde_json::from_slice::<IgnoredAny>(&out[start..]).is_err() {
            out.truncate(start);
            out.extend_from_slice(row);
        }
        out.push(b'\n');
    }
    out
}
