//! Answers of many hosts as one.
//!
//! A query to many hosts becomes a [`Plan`]: what each host is asked, how answers are merged on the
//! way, and how the last one is finished. What travels is a *part*: one line of JSON that says which
//! hosts speak, then their rows as the hosts wrote them, one a line. Merging is associative, so that a
//! gateway may merge what its data centre says, and the asker what the gateways say.
//!
//! Rows are not parsed but for what merging needs: none of plain rows, the sort keys of the next row of
//! each host of sorted ones, all of groups. What cannot be read spoils its own host only: the part says
//! which and why, and the others stay.
//!
//! Rows that sort as equal stand in the order of data centre and host, and within one host as that host
//! has them. Hosts compare texts as bytes; where those are no UTF-8, or longer than a host keeps for
//! sorting, rows of one host may stand a little out of the order of the others.

mod groups;
mod part;
mod row;
mod runs;

use serde::{Deserialize, Serialize};

use crate::names::{DcName, HostName};
use crate::query::{Query, QueryError, QueryText, Select};
use crate::relation::{PROCESSES, Relation};
use crate::schema::Schema;
pub use part::{PART_VERSION, Spoiled};
use part::{Part, Speaker};

/// Most hosts that one part may speak for. The largest cluster we test has a fiftieth of it; a header
/// of so many takes about 16 MiB.
pub const PART_HOSTS_MAX: usize = 50_000;

/// A host that answered a query of rows, and what its answer says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// Its data centre.
    pub dc: DcName,
    /// Its name there.
    pub host: HostName,
    /// Its boot: a process identity holds within one boot.
    pub boot_id: String,
    /// The collector that read the table.
    pub collector: String,
    /// The generation of the table.
    pub generation: u64,
    /// When its scan began, RFC 3339 with microseconds, UTC, by its own clock.
    pub as_of: String,
    /// Processes in its table.
    pub processes: u64,
    /// Those that the filter let through.
    pub matched: u64,
    /// How many rows are missing at least; see [`Meta`](crate::Meta).
    #[serde(default, skip_serializing_if = "crate::answer::is_zero")]
    pub lost: u64,
    /// What it could not see; see [`Meta`](crate::Meta).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<String>,
}

impl Speaker for Answered {
    fn names(&self) -> (&DcName, &HostName) {
        (&self.dc, &self.host)
    }
}

/// A host that answered anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// Its data centre.
    pub dc: DcName,
    /// Its name there.
    pub host: HostName,
}

impl Speaker for Listed {
    fn names(&self) -> (&DcName, &HostName) {
        (&self.dc, &self.host)
    }
}

/// The answer of some hosts, ready to be shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished<H> {
    /// Who speaks, in order.
    pub hosts: Vec<H>,
    /// One JSON object a row and line.
    pub rows: Vec<u8>,
    /// Who could not be understood.
    pub spoiled: Vec<Spoiled>,
}

/// What is done with rows of several hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// They stand in one block a host.
    Blocks,
    /// They are sorted.
    Runs,
    /// They are groups.
    Groups,
}

/// A query of one table of many hosts.
#[derive(Debug)]
pub struct Plan {
    schema: &'static Schema,
    query: Query,
    for_hosts: QueryText,
    /// The columns that hosts send.
    sent: Vec<Select>,
    /// How many of them, from the front, are in the answer; the others are needed on the way only.
    kept: usize,
}

impl Plan {
    /// Plans a query of the process table; see [`Plan::of`].
    ///
    /// # Errors
    /// What is wrong with the query; see [`QueryError`].
    pub fn new(text: &QueryText) -> Result<Plan, QueryError> {
        Plan::of(&PROCESSES, text)
    }

    /// Plans a query. A plan of what hosts are asked merges as the plan it came from: a gateway needs
    /// no more than the host's question.
    ///
    /// # Errors
    /// What is wrong with the query; see [`QueryError`].
    pub fn of(relation: &Relation, text: &QueryText) -> Result<Plan, QueryError> {
        let query = relation.parse(text)?;
        let schema = relation.schema;
        let mut sent: Vec<Select> = Vec::new();
        let mut needed: Vec<Select> = Vec::new();
        if query.is_grouped() {
            sent.extend(&query.columns);
            needed.extend(query.group.iter().map(|index| Select::Column(*index)));
        } else {
            let names = names_of_hosts(schema);
            sent.extend(&names);
            sent.extend(query.columns.iter().filter(|select| !names.contains(select)));
            needed.extend(query.sort.iter().map(|key| key.select));
        }
        let kept = sent.len();
        for select in needed {
            if !sent.contains(&select) {
                sent.push(select);
            }
        }
        let names = |selects: &[Select]| {
            let names: Vec<_> = selects.iter().map(|select| select.name(schema)).collect();
            names.join(",")
        };
        let group: Vec<_> = query.group.iter().map(|index| Select::Column(*index)).collect();
        // The order and the limit of groups are decided when all of them are known.
        let plain = |text: &Option<String>| text.clone().filter(|_| !query.is_grouped());
        let for_hosts = QueryText {
            columns: Some(names(&sent)),
            filter: text.filter.clone(),
            sort: plain(&text.sort),
            limit: plain(&text.limit),
            group: (!group.is_empty()).then(|| names(&group)),
            ended: text.ended,
            at: text.at.clone(),
        };
        Ok(Plan { schema, query, for_hosts, sent, kept })
    }

    /// What each host is asked: its data centre and its name first where rows are plain, and what
    /// sorting or grouping needs behind what was asked for.
    pub fn for_hosts(&self) -> &QueryText {
        &self.for_hosts
    }

    /// The names of the columns of the finished answer.
    pub fn columns(&self) -> Vec<String> {
        self.sent[..self.kept].iter().map(|select| select.name(self.schema)).collect()
    }

    /// Whether rows may be shown as they come: there is no order, no limit and no group to wait for.
    pub fn streams(&self) -> bool {
        self.mode() == Mode::Blocks && self.query.limit.is_none()
    }

    /// Whether the answer is made of groups; their texts are written anew.
    pub fn is_grouped(&self) -> bool {
        self.mode() == Mode::Groups
    }

    /// The answer of one host: `rows` are JSON objects, one a line, as [`Plan::for_hosts`] asks.
    pub fn part(&self, host: Answered, rows: &[u8]) -> Vec<u8> {
        Part::of_one(host, rows).write()
    }

    /// Merges parts of different hosts. It does not fail: what cannot be read is left out and named.
    pub fn merge<P: AsRef<[u8]>>(&self, parts: &[P]) -> Vec<u8> {
        self.merge_read(part::read_all(parts, self.mode() == Mode::Blocks)).write()
    }

    fn merge_read<'a>(&self, read: part::ReadAll<'a, Answered>) -> Part<'a, Answered> {
        match self.mode() {
            Mode::Blocks => part::merge_blocks(read, self.query.limit),
            Mode::Runs => runs::merge(self, read),
            Mode::Groups => groups::merge(self, read),
        }
    }

    /// Merges the last parts, and makes of them what was asked for. Rows that are no JSON are left
    /// out together with what else their host says.
    pub fn finish<P: AsRef<[u8]>>(&self, parts: &[P]) -> Finished<Answered> {
        let mut read = part::read_all(parts, self.mode() == Mode::Blocks);
        if self.mode() == Mode::Blocks {
            read.leave_out_broken_rows();
        }
        let merged = self.merge_read(read);
        match self.mode() {
            Mode::Blocks => merged.finish(),
            Mode::Runs => {
                let mut finished = merged.finish();
                if self.kept < self.sent.len() {
                    let first_extra = self.sent[self.kept].name(self.schema);
                    finished.rows = runs::without_extras(&finished.rows, &first_extra);
                }
                finished
            }
            Mode::Groups => groups::finish(self, &merged),
        }
    }

    fn mode(&self) -> Mode {
        if self.query.is_grouped() {
            Mode::Groups
        } else if self.query.sort.is_empty() {
            Mode::Blocks
        } else {
            Mode::Runs
        }
    }
}

/// The columns that say whose a row is.
fn names_of_hosts(schema: &Schema) -> Vec<Select> {
    ["dc", "host"].into_iter().filter_map(|name| schema.find(name)).map(Select::Column).collect()
}

/// The answer of one host to anything but a query of rows: its status and its body, which is JSON.
///
/// # Errors
/// When the body is no JSON.
pub fn list_part(host: Listed, status: u16, body: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    // Parsing drops blanks and line ends: a row is one line.
    let body: serde_json::Value = serde_json::from_slice(body)?;
    let row = serde_json::json!({
        "dc": host.dc.as_str(), "host": host.host.as_str(), "status": status, "body": body,
    });
    Ok(Part::of_one(host, format!("{row}\n").as_bytes()).write())
}

/// Merges answers that are lists. It does not fail: what cannot be read is left out and named.
pub fn merge_lists<P: AsRef<[u8]>>(parts: &[P]) -> Vec<u8> {
    part::merge_blocks(part::read_all::<Listed, P>(parts, true), None).write()
}

/// Merges the last lists.
pub fn finish_lists<P: AsRef<[u8]>>(parts: &[P]) -> Finished<Listed> {
    let mut read = part::read_all(parts, true);
    read.leave_out_broken_rows();
    part::merge_blocks(read, None).finish()
}

#[cfg(test)]
mod tests;
