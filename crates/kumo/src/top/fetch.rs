//! Asks the source what a [`Request`] needs. It blocks, so the full screen runs it on a thread of its
//! own; what is not wanted is not asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k2i::host::HostReport;
use kumo_abi::{HostId, Meta, QueryText, Row, Rows};
use serde::Deserialize as _;

use super::changes::{Held, Told};
use super::data::{
    Detail, Extra, Fleet, Host, Key, Place, Places, Proc, Request, Side, Snapshot, Tasks, UserSum,
    only,
};
use crate::error::CommandError;
use crate::many::{self, Progress};
use crate::scope::Scope;
use crate::source::{self, Ask, Source};
use crate::units::{self, SizeStyle};

/// The questions of one reading may be answered from the scan that the first of them made.
const SAME_READING: Duration = Duration::from_millis(500);

/// Asks again and again, and remembers what the CPUs had done at the reading before.
#[derive(Debug)]
pub(super) struct Fetcher {
    source: Source,
    /// Which hosts, where many are looked at.
    scope: Option<Scope>,
    /// The moment that is asked about; now without one.
    at: Option<String>,
    /// Of one host.
    earlier: Option<HostReport>,
    /// Of each of many.
    earlier_each: BTreeMap<HostId, HostReport>,
    places: Arc<Places>,
    /// The last table of one host.
    held: Held,
}

/// The rows of a table and what is said of them.
struct Table {
    meta: Meta,
    rows: Vec<Proc>,
    fleet: Option<Fleet>,
}

impl Fetcher {
    /// Nothing is asked yet. Without a `scope` it asks the one host of the source.
    pub(super) fn new(source: Source, scope: Option<Scope>) -> Fetcher {
        let (earlier, earlier_each, places) = (None, BTreeMap::new(), Arc::default());
        Fetcher { source, scope, at: None, earlier, earlier_each, places, held: Held::default() }
    }

    /// Reads what the CPUs have done, so that the next reading knows their use since now.
    ///
    /// # Errors
    /// What the source says.
    pub(super) fn begin(&mut self) -> Result<(), CommandError> {
        match &self.scope {
            None => self.earlier = Some(self.source.host()?),
            Some(scope) => self.earlier_each = self.reports(scope)?,
        }
        Ok(())
    }

    /// Answers `request`; `at` is the time that the answer is of.
    ///
    /// # Errors
    /// What the source says. A host that does not tell about itself is no error: its lines are missing.
    pub(super) fn fetch(
        &mut self,
        request: &Request,
        at: Duration,
    ) -> Result<Snapshot, CommandError> {
        self.at.clone_from(&request.table.at);
        let Table { meta, rows, fleet } = match self.scope.clone() {
            None => self.table(&request.table)?,
            Some(scope) => self.table_of_many(&request.table, &scope)?,
        };
        let tasks = Tasks::from_rows(&self.rows(&Tasks::query())?);
        let watched_lives = match request.watched {
            None => None,
            Some(id) if rows.iter().any(|proc| proc.id.same(&id)) => Some(true),
            Some(id) => self.lives(id)?,
        };
        let extra = match request.side {
            Side::Nothing => Extra::Nothing,
            Side::Users => Extra::Users(UserSum::from_rows(&self.rows(&UserSum::query())?)),
            Side::Detail(id) => {
                let everybody = self.procs(id.place, &Detail::relatives_query())?;
                let own = self.procs(id.place, &Detail::query(id))?;
                Extra::Detail(Box::new(Detail::new(id, own, &everybody)))
            }
        };
        // Of hosts nothing was recorded but their processes.
        let is_now = self.at.is_none();
        let host = if self.scope.is_none() && is_now { self.host() } else { None };
        let (request, places) = (request.clone(), Arc::clone(&self.places));
        let snapshot =
            Snapshot { request, meta, rows, tasks, host, fleet, places, watched_lives, extra, at };
        Ok(snapshot)
    }

    fn table(&mut self, text: &QueryText) -> Result<Table, CommandError> {
        let Rows { meta, rows } = if self.source.is_node() && text.at.is_none() {
            self.changed(text)?
        } else {
            self.source.proc(text)?
        };
        let rows = rows.into_iter().filter_map(Proc::new).collect();
        Ok(Table { meta, rows, fleet: None })
    }

    /// Asks a node what has changed since the last answer to the same question.
    fn changed(&mut self, text: &QueryText) -> Result<Rows, CommandError> {
        let told: Told = self.source.json(&since(text, self.held.since(text)))?;
        if let Some(rows) = self.held.take(text, told) {
            return Ok(rows.clone());
        }
        // It does not fit, and nothing is held any more: the next reading begins anew.
        Ok(self.source.proc(text)?)
    }

    fn table_of_many(&mut self, text: &QueryText, scope: &Scope) -> Result<Table, CommandError> {
        let answer = many::rows(&self.source, text, Duration::ZERO, scope)?;
        // Who does not tell of itself is missing from the sums alone.
        let is_now = self.at.is_none();
        let reports =
            if is_now { self.reports(scope).unwrap_or_default() } else { BTreeMap::new() };
        let fleet = Fleet::new(answer.hosts, &reports, &self.earlier_each);
        let places = &mut self.places;
        let about = |id: &HostId| reports.get(id).map_or_else(String::new, about);
        let rows = answer.rows.into_iter();
        let rows = if text.group.is_some() {
            rows.filter_map(|row| Proc::of_host(row, places, about)).collect()
        } else {
            rows.filter_map(|row| Proc::of_many(row, places)).collect()
        };
        // Virtual machines that were kept from running may have counted no time since.
        let is_comparable = |(id, report): (&HostId, &HostReport)| {
            let earlier = self.earlier_each.get(id);
            earlier.is_some_and(|earlier| earlier.boot.boot_id == report.boot.boot_id)
        };
        if !reports.is_empty() && (fleet.cpu.is_some() || !reports.iter().any(is_comparable)) {
            self.earlier_each = reports;
        }
        let meta = Meta {
            dc: String::new(),
            host: scope.hosts.title(),
            boot_id: String::new(),
            collector: String::new(),
            generation: 0,
            as_of: answer.as_of,
            scan_us: 0,
            processes: answer.processes,
            matched: answer.matched,
            columns: Vec::new(),
            lost: 0,
            unseen: None,
        };
        Ok(Table { meta, rows, fleet: Some(fleet) })
    }

    fn host(&mut self) -> Option<Host> {
        let report = self.source.host().ok();
        let host = report.clone().map(|report| Host::new(report, self.earlier.as_ref()));
        let counted = host.as_ref().is_some_and(|host| host.cpu_total.is_some());
        self.earlier = match (report, self.earlier.take()) {
            // A virtual machine that was kept from running may have counted no time since: the next
            // reading then compares with the same one as this.
            (Some(now), Some(old)) if !counted && now.boot.boot_id == old.boot.boot_id => Some(old),
            (now, old) => now.or(old),
        };
        host
    }

    /// What each of many hosts says about itself.
    fn reports(&self, scope: &Scope) -> Result<BTreeMap<HostId, HostReport>, CommandError> {
        let answers = many::answers(&self.source, "host", scope, Progress::silent())?;
        let read =
            |answer: many::OneAnswer| Some((answer.id, HostReport::deserialize(answer.body).ok()?));
        Ok(answers.answers.into_iter().filter_map(read).collect())
    }

    /// Whether a process lives; `None` where its host does not say.
    fn lives(&self, id: Key) -> Result<Option<bool>, CommandError> {
        let found = self.procs(id.place, &only(id.pid));
        match found {
            Ok(found) => Ok(Some(found.iter().any(|proc| proc.id.same(&id)))),
            Err(_) if self.scope.is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn rows(&self, text: &QueryText) -> Result<Vec<Row>, CommandError> {
        let text = &self.then(text);
        Ok(match &self.scope {
            None => self.source.proc_within(text, SAME_READING)?.rows,
            Some(scope) => many::rows(&self.source, text, SAME_READING, scope)?.rows,
        })
    }

    /// The same question about the moment that is shown.
    fn then(&self, text: &QueryText) -> QueryText {
        QueryText { at: self.at.clone(), ..text.clone() }
    }

    /// Processes of one host.
    fn procs(&self, place: Place, text: &QueryText) -> Result<Vec<Proc>, CommandError> {
        let text = &self.then(text);
        let rows = match (&self.scope, self.places.host(place)) {
            (Some(scope), Some(HostId { dc, host })) => {
                let mut parameters = source::proc_parameters(text, SAME_READING);
                if let Some(wait) = scope.wait {
                    source::push_parameter(&mut parameters, "wait_ms", &wait.to_string());
                }
                let path = format!("/v2/hosts/{dc}/{host}/proc?{parameters}");
                self.source.json::<Rows>(&Ask::get(path).that_waits(scope.wait()))?.rows
            }
            _ => self.source.proc_within(text, SAME_READING)?.rows,
        };
        Ok(rows.into_iter().filter_map(|row| Proc::at(place, row)).collect())
    }
}

/// The question what has changed since a generation; since 0 it is everything.
fn since(text: &QueryText, generation: u64) -> Ask {
    let parameters = source::proc_parameters(text, Duration::ZERO);
    Ask::get(format!("/v2/proc?{parameters}&since={generation}"))
}

/// A host beside the sums over its processes.
fn about(report: &HostReport) -> String {
    let HostReport { load, cpu, memory, .. } = report;
    let size = |bytes| units::size(bytes, SizeStyle::Human);
    let used = memory.total.saturating_sub(memory.available);
    format!(
        "load {:.2} {:.2} {:.2} on {} CPUs, memory {}/{}",
        load.avg1,
        load.avg5,
        load.avg15,
        cpu.online,
        size(used),
        size(memory.total)
    )
}
