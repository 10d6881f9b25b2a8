//! A table of which only the changes are asked for: what is held, and what it is after an answer to `since=`.

use std::collections::HashMap;

use kumo_abi::{ProcessId, QueryText, Row, Rows};
use serde::Deserialize;

/// What a node says where it is asked what has changed.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Told {
    /// Everything: it does not know any more what we have.
    Whole(Box<Rows>),
    /// What is other than in the answer that we have.
    Changes(Box<Changes>),
}

/// What of an answer has changed, as k2i says it.
#[derive(Debug, Deserialize)]
pub(super) struct Changes {
    generation: u64,
    as_of: String,
    scan_us: u64,
    processes: u64,
    matched: u64,
    /// Who is not in it any more.
    gone: Vec<String>,
    /// All that are in it, where their order is not what it was.
    order: Option<Vec<String>>,
    /// Those that are new, whole; of others the cells that changed.
    rows: Vec<Row>,
}

/// The last answer, and the question that it is to.
#[derive(Debug, Default)]
pub(super) struct Held(Option<(QueryText, Rows)>);

impl Held {
    /// Which answer to a question is there: its generation; 0 for none.
    pub(super) fn since(&self, text: &QueryText) -> u64 {
        let same = self.0.as_ref().filter(|(asked, _)| asked == text);
        same.map_or(0, |(_, rows)| rows.meta.generation)
    }

    /// The whole answer, after what was told; nothing where that does not fit to what is there, and then
    /// nothing is there any more.
    pub(super) fn take(&mut self, text: &QueryText, told: Told) -> Option<&Rows> {
        let rows = match (told, self.0.take()) {
            (Told::Whole(rows), _) => *rows,
            (Told::Changes(changes), Some((asked, rows))) if asked == *text => {
                after(rows, *changes, text.sort.is_some())?
            }
            (Told::Changes(_), _) => return None,
        };
        let (_, rows) = self.0.insert((text.clone(), rows));
        Some(rows)
    }
}

/// A table after changes.
fn after(before: Rows, changes: Changes, is_sorted: bool) -> Option<Rows> {
    let mut ids = Vec::with_capacity(before.rows.len());
    let mut known = HashMap::with_capacity(before.rows.len());
    for row in before.rows {
        let id = id(&row)?;
        ids.push(id);
        known.insert(id, row);
    }
    for gone in &changes.gone {
        known.remove(&gone.parse().ok()?)?;
    }
    for mut row in changes.rows {
        let id = id(&row)?;
        if let Some(known) = known.get_mut(&id) {
            known.append(&mut row);
        } else {
            ids.push(id);
            known.insert(id, row);
        }
    }
    if let Some(order) = &changes.order {
        ids = order.iter().map(|id| id.parse().ok()).collect::<Option<_>>()?;
    } else if !is_sorted {
        // So rows stand that nobody sorts.
        ids.sort_unstable_by_key(|id: &ProcessId| (id.pid, id.start_ns));
    }
    let rows: Vec<Row> = ids.iter().filter_map(|id| known.remove(id)).collect();
    let mut meta = before.meta;
    meta.generation = changes.generation;
    meta.as_of = changes.as_of;
    meta.scan_us = changes.scan_us;
    meta.processes = changes.processes;
    meta.matched = changes.matched;
    known.is_empty().then_some(Rows { meta, rows })
}

fn id(row: &Row) -> Option<ProcessId> {
    row.get("id")?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn told(value: Value) -> Told {
        serde_json::from_value(value).expect("as k2i says it")
    }

    fn whole(generation: u64, rows: &Value) -> Told {
        told(json!({
            "dc": "t", "host": "a", "boot_id": "b", "collector": "proc", "generation": generation, "as_of": "1",
            "scan_us": 1, "processes": 3, "matched": 3, "columns": ["id", "rss"], "full": true, "rows": rows,
        }))
    }

    fn changes(generation: u64, more: &Value) -> Told {
        let mut value = json!({
            "generation": generation, "as_of": "2", "scan_us": 2, "processes": 4, "matched": 4, "full": false,
            "gone": [], "rows": [],
        });
        for (name, part) in more.as_object().expect("an object") {
            value[name] = part.clone();
        }
        told(value)
    }

    fn question(sort: Option<&str>) -> QueryText {
        QueryText { sort: sort.map(str::to_owned), ..QueryText::default() }
    }

    fn shown(rows: Option<&Rows>) -> String {
        let cell = |row: &Row| format!("{}={}", row["id"].as_str().unwrap_or("?"), row["rss"]);
        rows.map_or("none".to_owned(), |rows| {
            rows.rows.iter().map(cell).collect::<Vec<_>>().join(" ")
        })
    }

    #[test]
    fn a_table_is_what_its_changes_make() {
        let first =
            json!([{"id": "3@5", "rss": 9}, {"id": "1@5", "rss": 8}, {"id": "2@5", "rss": 7}]);
        let sorted = question(Some("-rss"));
        let mut held = Held::default();
        assert_eq!(held.since(&sorted), 0);
        assert_eq!(shown(held.take(&sorted, whole(7, &first))), "3@5=9 1@5=8 2@5=7");
        assert_eq!((held.since(&sorted), held.since(&question(None))), (7, 0));
        let told = changes(
            9,
            &json!({"rows": [{"id": "1@5", "rss": 10}], "order": ["1@5", "3@5", "2@5"]}),
        );
        assert_eq!(shown(held.take(&sorted, told)), "1@5=10 3@5=9 2@5=7");
        assert_eq!(held.since(&sorted), 9);
        assert_eq!(shown(held.take(&sorted, changes(10, &json!({})))), "1@5=10 3@5=9 2@5=7");
        // The number is used again, by another process.
        let told = changes(
            11,
            &json!({
                "gone": ["3@5"], "rows": [{"id": "3@8", "rss": 1}], "order": ["1@5", "2@5", "3@8"],
            }),
        );
        assert_eq!(shown(held.take(&sorted, told)), "1@5=10 2@5=7 3@8=1");

        let plain = question(None);
        held.take(&plain, whole(12, &json!([{"id": "1@5", "rss": 9}, {"id": "3@5", "rss": 8}])));
        let told = changes(13, &json!({"rows": [{"id": "2@5", "rss": 1}]}));
        let rows = held.take(&plain, told);
        assert_eq!(rows.map(|rows| (rows.meta.matched, rows.meta.host.as_str())), Some((4, "a")));
        assert_eq!(shown(rows), "1@5=9 2@5=1 3@5=8");
    }

    #[test]
    fn what_does_not_fit_leaves_nothing() {
        let sorted = question(Some("-rss"));
        for wrong in [
            json!({"gone": ["9@5"]}),
            json!({"gone": ["x"]}),
            json!({"rows": [{"rss": 1}]}),
            json!({"rows": [{"id": "2@5", "rss": 1}], "order": ["1@5"]}),
        ] {
            let mut held = Held::default();
            held.take(&sorted, whole(7, &json!([{"id": "1@5", "rss": 9}])));
            assert_eq!(shown(held.take(&sorted, changes(8, &wrong))), "none", "for {wrong}");
            assert_eq!(held.since(&sorted), 0);
        }
        let mut held = Held::default();
        assert_eq!(shown(held.take(&sorted, changes(8, &json!({})))), "none");
    }
}
