//! Groups that each host has made of its own rows.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::part::{self, Part, ReadAll, Spoiled, lines};
use super::row;
use super::{Answered, Finished, Plan};
use crate::query::{Aggregate, Select};
use crate::value::Value;

type Group = Vec<Value<'static>>;

/// Merges groups: counts and sums add up, of maxima the greatest stays. In the order of their keys.
pub(super) fn merge<'a>(plan: &Plan, mut read: ReadAll<'a, Answered>) -> Part<'a, Answered> {
    let mut groups: Vec<Group> = Vec::new();
    let mut index_of: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut good = Vec::with_capacity(read.parts.len());
    for part in read.parts {
        // All of a part before any of it: a broken one must leave nothing behind.
        match parse(plan, &part) {
            Ok(parsed) => {
                for group in parsed {
                    add_group(plan, &mut groups, &mut index_of, group);
                }
                good.push(part);
            }
            Err(error) => {
                let why = format!("a row of its answer is broken: {error}");
                read.spoiled.extend(part.hosts.iter().map(|host| Spoiled::host(host, &why)));
            }
        }
    }
    let keys = key_places(plan);
    groups.sort_by(|a, b| compare_keys(&keys, a, b));
    let mut rows = Vec::new();
    for group in &groups {
        write(&mut rows, plan, group, plan.sent.len());
    }
    let hosts = part::hosts_of(&good);
    Part { hosts, rows: vec![rows.into()], mixed: true, spoiled: read.spoiled }
}

/// Sorts the groups as they were asked for, keeps the first ones, and drops the columns that only
/// merging needed. Equal ones stand in the order of their keys.
pub(super) fn finish(plan: &Plan, merged: &Part<'_, Answered>) -> Finished<Answered> {
    // What `merge` has written can be read.
    let mut groups = parse(plan, merged).unwrap_or_default();
    let query = &plan.query;
    let place = |select: &Select| plan.sent.iter().position(|sent| sent == select);
    let sort: Vec<(usize, bool)> = query
        .sort
        .iter()
        .filter_map(|key| place(&key.select).map(|place| (place, key.descending)))
        .collect();
    let keys = key_places(plan);
    groups.sort_by(|a, b| {
        let orders = sort.iter().map(|(place, descending)| {
            let order = a[*place].order(&b[*place]);
            if *descending { order.reverse() } else { order }
        });
        orders.into_iter().find(|o| o.is_ne()).unwrap_or_else(|| compare_keys(&keys, a, b))
    });
    groups.truncate(query.limit.map_or(usize::MAX, |limit| limit as usize));
    let mut rows = Vec::new();
    for group in &groups {
        write(&mut rows, plan, group, plan.kept);
    }
    Finished { hosts: merged.hosts.clone(), rows, spoiled: merged.spoiled.clone() }
}

fn parse(plan: &Plan, part: &Part<'_, Answered>) -> Result<Vec<Group>, serde_json::Error> {
    let wanted: Vec<_> =
        plan.sent.iter().map(|select| row::Wanted::of(*select, plan.schema)).collect();
    part.rows.iter().flat_map(|rows| lines(rows)).map(|row| row::cells(row, &wanted)).collect()
}

fn add_group(
    plan: &Plan,
    groups: &mut Vec<Group>,
    index_of: &mut HashMap<Vec<u8>, usize>,
    group: Group,
) {
    let mut key = Vec::new();
    for place in key_places(plan) {
        row::write(&mut key, &group[place]);
        key.push(0);
    }
    let index = *index_of.entry(key).or_insert(groups.len());
    let Some(sum) = groups.get_mut(index) else {
        groups.push(group);
        return;
    };
    for ((cell, more), select) in sum.iter_mut().zip(group).zip(&plan.sent) {
        match select {
            Select::Column(_) => {}
            Select::Aggregate(Aggregate::Count | Aggregate::Sum(_)) => add(cell, &more),
            Select::Aggregate(Aggregate::Max(_)) => {
                if more.order(cell) == Ordering::Greater {
                    *cell = more;
                }
            }
        }
    }
}

fn add(sum: &mut Value<'static>, more: &Value<'_>) {
    match (sum, more) {
        (Value::Int(sum), Value::Int(more)) => *sum = sum.saturating_add(*more),
        // A sum of rounded values has no more than their places.
        (Value::Float(sum), Value::Float(more)) => *sum = ((*sum + more) * 1e6).round() / 1e6,
        _ => {} // Null counts as nothing.
    }
}

/// Where the columns that are grouped by stand in what hosts send.
fn key_places(plan: &Plan) -> Vec<usize> {
    let place = |index: &usize| plan.sent.iter().position(|sent| *sent == Select::Column(*index));
    plan.query.group.iter().filter_map(place).collect()
}

fn compare_keys(keys: &[usize], a: &Group, b: &Group) -> Ordering {
    let orders = keys.iter().map(|place| a[*place].order(&b[*place]));
    orders.into_iter().find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

fn write(out: &mut Vec<u8>, plan: &Plan, group: &Group, columns: usize) {
    out.push(b'{');
    for (index, (value, select)) in group.iter().zip(&plan.sent).take(columns).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        row::write(out, &Value::owned_text(select.name(plan.schema)));
        out.push(b':');
        row::write(out, value);
    }
    out.extend_from_slice(b"}\n");
}
