//! Asks the source what a [`Request`] needs. It blocks, so the full screen runs it on a thread of its
//! own; what is not wanted is not asked.

use std::time::Duration;

use k2i::host::HostReport;
use kumo_abi::{QueryText, Row};

use super::data::{Detail, Extra, Host, Proc, Request, Side, Snapshot, Tasks, UserSum, only};
use crate::source::{Source, SourceError};

/// The questions of one reading may be answered from the scan that the first of them made.
const SAME_READING: Duration = Duration::from_millis(500);

/// Asks again and again, and remembers what the CPUs had done at the reading before.
#[derive(Debug)]
pub(super) struct Fetcher {
    source: Source,
    earlier: Option<HostReport>,
}

impl Fetcher {
    /// Nothing is asked yet.
    pub(super) fn new(source: Source) -> Fetcher {
        Fetcher { source, earlier: None }
    }

    /// Reads what the CPUs have done, so that the next reading knows their use since now.
    ///
    /// # Errors
    /// What the source says.
    pub(super) fn begin(&mut self) -> Result<(), SourceError> {
        self.earlier = Some(self.source.host()?);
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
    ) -> Result<Snapshot, SourceError> {
        let table = self.source.proc(&request.table)?;
        let rows: Vec<Proc> = table.rows.into_iter().filter_map(Proc::new).collect();
        let tasks = Tasks::from_rows(&self.rows(&Tasks::query())?);
        let watched_lives = match request.watched {
            None => None,
            Some(id) if rows.iter().any(|proc| proc.id.same(&id)) => Some(true),
            Some(id) => Some(self.procs(&only(id.pid))?.iter().any(|proc| proc.id.same(&id))),
        };
        let extra = match request.side {
            Side::Nothing => Extra::Nothing,
            Side::Users => Extra::Users(UserSum::from_rows(&self.rows(&UserSum::query())?)),
            Side::Detail(id) => {
                let everybody = self.procs(&Detail::relatives_query())?;
                let own = self.procs(&Detail::query(id))?;
                Extra::Detail(Box::new(Detail::new(id, own, &everybody)))
            }
        };
        let report = self.source.host().ok();
        let host = report.clone().map(|report| Host::new(report, self.earlier.as_ref()));
        let counted = host.as_ref().is_some_and(|host| host.cpu_total.is_some());
        self.earlier = match (report, self.earlier.take()) {
            // A virtual machine that was kept from running may have counted no time since: the next
            // reading then compares with the same one as this.
            (Some(now), Some(old)) if !counted && now.boot.boot_id == old.boot.boot_id => Some(old),
            (now, old) => now.or(old),
        };
        let request = request.clone();
        Ok(Snapshot { request, meta: table.meta, rows, tasks, host, watched_lives, extra, at })
    }

    fn rows(&self, text: &QueryText) -> Result<Vec<Row>, SourceError> {
        Ok(self.source.proc_within(text, SAME_READING)?.rows)
    }

    fn procs(&self, text: &QueryText) -> Result<Vec<Proc>, SourceError> {
        Ok(self.rows(text)?.into_iter().filter_map(Proc::new).collect())
    }
}
