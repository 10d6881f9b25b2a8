//! Answers of many hosts: rows and documents, who is missing from them and why.
//!
//! A short answer is never taken for a whole one: who did not answer is named on standard error and
//! in the exit status, and an answer without its end is an error.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use kumo_abi::cluster::{HostInfo, HostOutcome, HostState, Outcome, Unreached};
use kumo_abi::relation::PROCESSES;
use kumo_abi::{HostId, QueryText, Relation, Row};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cel;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::Output;
use crate::scope::Scope;
use crate::source::{self, Ask, Sink, Source, SourceError};
use crate::text;

/// Most missing hosts that are named one by one; the rest is counted.
const NAMED_MAX: usize = 10;

/// What is waited for longer than this is said on a terminal.
const PROGRESS_AFTER: Duration = Duration::from_millis(300);

/// Most hosts that a line of progress names.
const PROGRESS_NAMED_MAX: usize = 3;

/// A line of progress where the terminal does not tell its width.
const PROGRESS_WIDTH: usize = 78;

/// Who was asked and who answered.
#[expect(clippy::struct_field_names, reason = "these are the names of the answer")]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Hosts that were asked.
    pub asked: u64,
    /// Those whose answer is in.
    pub answered: u64,
    /// The others, and why.
    #[serde(default)]
    pub missing: Vec<HostOutcome>,
    /// What is known of those that did, as it was said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answered_by: Vec<Value>,
}

impl Asked {
    /// Of when the answers are, from the earliest to the latest.
    pub fn as_of(&self) -> Option<(&str, &str)> {
        let times = self.answered_by.iter().filter_map(|host| host.get("as_of")?.as_str());
        // All of these times are of one form.
        Some((times.clone().min()?, times.max()?))
    }

    /// How many rows are missing from the answers, of processes that ended.
    pub fn lost(&self) -> u64 {
        let lost = |host: &Value| host.get("lost").and_then(Value::as_u64);
        self.answered_by.iter().filter_map(lost).sum()
    }
}

/// Rows of many hosts.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct AllRows {
    /// When the first of them was read.
    #[serde(default)]
    pub as_of: String,
    /// Who is in it.
    pub hosts: Asked,
    /// Processes of all hosts that answered.
    #[serde(default)]
    pub processes: u64,
    /// Those that the filter let through.
    #[serde(default)]
    pub matched: u64,
    /// The rows.
    pub rows: Vec<Row>,
}

/// One document from each of many hosts.
#[derive(Debug, Serialize, Deserialize)]
pub struct AllAnswers {
    /// Who is in it.
    pub hosts: Asked,
    /// The documents.
    pub answers: Vec<OneAnswer>,
}

/// What one host answered.
#[derive(Debug, Serialize, Deserialize)]
pub struct OneAnswer {
    /// The host.
    #[serde(flatten)]
    pub id: HostId,
    /// Status of its answer.
    pub status: u16,
    /// The answer.
    pub body: Value,
}

/// The hosts of a cluster as `/v2/hosts` lists them.
#[expect(clippy::struct_field_names, reason = "these are the names of the answer")]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name; a node without a cluster has none.
    #[serde(default)]
    pub cluster: Option<String>,
    /// The host whose node was asked.
    #[serde(flatten)]
    pub asked: HostId,
    /// All of them.
    pub hosts: Vec<HostInfo>,
    /// Gateways that the node could not connect to when it last tried.
    #[serde(default)]
    pub unreached: Vec<Unreached>,
}

impl Cluster {
    /// Says why gateways that are not alive could not be reached: an evicted host learns it here.
    pub fn tell_unreached(&self, out: &mut Output) {
        let is_alive = |id: &HostId| {
            self.hosts.iter().any(|host| host.id == *id && host.state == HostState::Alive)
        };
        for Unreached { id, why } in self.unreached.iter().filter(|one| !is_alive(&one.id)) {
            out.warn(format_args!("{} cannot reach the gateway {id}: {why}", self.asked));
        }
    }

    /// Asks a node.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn ask(source: &Source) -> Result<Cluster, SourceError> {
        source.json(&Ask::get("/v2/hosts".to_owned()))
    }
}

/// Why a host is missing, in words.
pub fn why(outcome: &Outcome) -> String {
    let seconds = |ms: u64| crate::units::span(ms as f64 / 1e3);
    match outcome {
        Outcome::Answered => "answered".to_owned(),
        Outcome::Dead { for_ms } => format!("dead for {}", seconds(*for_ms)),
        Outcome::CutOff { for_ms } => format!("cut off for {}", seconds(*for_ms)),
        Outcome::Silent { after_ms } => format!("silent for {:.1} s", *after_ms as f64 / 1e3),
        Outcome::Refused { why } => format!("refused: {why}"),
    }
}

impl Asked {
    /// Hosts that could not see all that was asked for, and what they say of it.
    pub fn unseen(&self) -> Vec<(String, String)> {
        let unseen = |host: &Value| {
            let text = |name| host.get(name).and_then(Value::as_str);
            let who = format!("{}/{}", text("dc")?, text("host")?);
            Some((who, text("unseen")?.to_owned()))
        };
        self.answered_by.iter().filter_map(unseen).collect()
    }

    /// The missing hosts in lines: the first by name, the rest as a count.
    pub fn lines(&self) -> Vec<String> {
        let line = |one: &HostOutcome| format!("{} is missing: {}", one.id, why(&one.outcome));
        let mut lines: Vec<String> = self.missing.iter().take(NAMED_MAX).map(line).collect();
        match self.missing.len().saturating_sub(NAMED_MAX) {
            0 => {}
            1 => lines.push("1 more host is missing; `kumo hosts` lists them".to_owned()),
            more => lines.push(format!("{more} more hosts are missing; `kumo hosts` lists them")),
        }
        lines
    }

    /// Says who is missing, and how the command ends that would end with `exit` otherwise.
    pub fn tell(&self, exit: Exit, out: &mut Output) -> Exit {
        for line in self.lines() {
            out.warn(line);
        }
        if self.missing.is_empty() { exit } else { Exit::Partial }
    }

    /// The same in one line that counts: `197 of 200 hosts`.
    pub fn count(&self) -> String {
        let s = if self.asked == 1 { "" } else { "s" };
        format!("{} of {} host{s}", self.answered, self.asked)
    }

    /// That nobody was asked is no answer.
    fn check(self, scope: &Scope) -> Result<Asked, CommandError> {
        if self.asked > 0 {
            return Ok(self);
        }
        let title = scope.hosts.title();
        Err(CommandError::Nobody(title))
    }
}

/// The path and parameters of a question for many.
fn path(about: &str, mut parameters: String, scope: &Scope) -> String {
    scope.push(&mut parameters);
    format!("/v2/all/{about}?{parameters}")
}

/// Asks the hosts of `scope` for rows, as one document.
///
/// # Errors
/// No answer, or nobody is meant.
pub fn rows(
    source: &Source,
    text: &QueryText,
    age_max: Duration,
    scope: &Scope,
) -> Result<AllRows, CommandError> {
    let path = path("proc", source::proc_parameters(text, age_max), scope);
    let answer: AllRows = source.json(&Ask::get(path).that_waits(scope.wait()))?;
    Ok(AllRows { hosts: answer.hosts.check(scope)?, ..answer })
}

/// Asks the hosts of `scope` for rows and passes the whole document on; says who is in it.
///
/// # Errors
/// As [`rows`], or it cannot be written.
pub fn rows_to(
    source: &Source,
    text: &QueryText,
    scope: &Scope,
    progress: Progress,
    out: &mut dyn io::Write,
) -> Result<(Asked, Vec<Row>), CommandError> {
    table_to(source, &PROCESSES, text, scope, progress, out)
}

/// The same of any table.
///
/// # Errors
/// As [`rows_to`].
pub fn table_to(
    source: &Source,
    relation: &Relation,
    text: &QueryText,
    scope: &Scope,
    mut progress: Progress,
    out: &mut dyn io::Write,
) -> Result<(Asked, Vec<Row>), CommandError> {
    /// The rows are passed on as they are.
    #[derive(Deserialize)]
    struct Seen {
        hosts: Asked,
        rows: Vec<Row>,
    }
    let path = path(relation.path, source::proc_parameters(text, Duration::ZERO), scope);
    let ask = Ask::get(path).that_waits(scope.wait());
    let mut whole = Whole { document: Vec::new(), progress: &mut progress };
    let fetched = source.fetch(&ask, &mut whole);
    let document = whole.document;
    progress.clear();
    fetched?;
    let seen: Seen = serde_json::from_slice(&document).map_err(|error| source.unreadable(error))?;
    let hosts = seen.hosts.check(scope)?;
    out.write_all(&document).map_err(SourceError::Output)?;
    Ok((hosts, seen.rows))
}

/// Asks the hosts of `scope` for rows and gives each to `take` as it comes, as the line it was.
///
/// # Errors
/// As [`rows`], or what `take` says. A part may have been given.
pub fn each_row(
    source: &Source,
    text: &QueryText,
    scope: &Scope,
    progress: Progress,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<Asked, CommandError> {
    let path = path("proc", source::proc_parameters(text, Duration::ZERO), scope);
    let accept = "application/x-ndjson";
    let ask = Ask { accept, ..Ask::get(path).that_waits(scope.wait()) };
    let mut lines = Lines { rest: Vec::new(), end: None, progress, take };
    let fetched = source.fetch(&ask, &mut lines);
    lines.progress.clear();
    fetched?;
    let end = lines.end.ok_or_else(|| source.foreign("its answer has no end"))?;
    end.check(scope)
}

/// Asks the hosts of `scope` for the document at `about`, such as `host` or `react/journal?limit=5`.
///
/// # Errors
/// As [`rows`].
pub fn answers(
    source: &Source,
    about: &str,
    scope: &Scope,
    mut progress: Progress,
) -> Result<AllAnswers, CommandError> {
    let (about, parameters) = about.split_once('?').unwrap_or((about, ""));
    let ask = Ask::get(path(about, parameters.to_owned(), scope)).that_waits(scope.wait());
    let mut whole = Whole { document: Vec::new(), progress: &mut progress };
    let fetched = source.fetch(&ask, &mut whole);
    let document = whole.document;
    progress.clear();
    fetched?;
    let answers: AllAnswers =
        serde_json::from_slice(&document).map_err(|error| source.unreadable(error))?;
    Ok(AllAnswers { hosts: answers.hosts.check(scope)?, ..answers })
}

/// Keeps a document, and says that it is waited for.
struct Whole<'a> {
    document: Vec<u8>,
    progress: &'a mut Progress,
}

impl Sink for Whole<'_> {
    fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        source::bounded(self.document.len() + piece.len())?;
        self.document.extend_from_slice(piece);
        Ok(())
    }

    fn idle(&mut self, _waited: Duration) -> io::Result<()> {
        self.progress.show();
        Ok(())
    }
}

/// Cuts an answer into its lines: rows, and at the end who is in it.
struct Lines<'a> {
    rest: Vec<u8>,
    end: Option<Asked>,
    progress: Progress,
    take: &'a mut dyn FnMut(&[u8]) -> io::Result<()>,
}

/// The last line. No column is called so.
#[derive(Deserialize)]
struct End {
    hosts: Asked,
}

impl Lines<'_> {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if line.starts_with(b"{\"hosts\":") {
            self.end = Some(serde_json::from_slice::<End>(line)?.hosts);
            return Ok(());
        }
        self.progress.see(line);
        (self.take)(line)
    }
}

impl Sink for Lines<'_> {
    fn take(&mut self, mut piece: &[u8]) -> io::Result<()> {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = piece.split_at(end);
            piece = &rest[1..];
            if self.rest.is_empty() {
                self.line(line)?;
            } else {
                let mut whole = std::mem::take(&mut self.rest);
                whole.extend_from_slice(line);
                self.line(&whole)?;
                whole.clear();
                self.rest = whole;
            }
        }
        source::bounded(self.rest.len() + piece.len())?;
        self.rest.extend_from_slice(piece);
        Ok(())
    }

    fn idle(&mut self, _waited: Duration) -> io::Result<()> {
        self.progress.show();
        Ok(())
    }
}

/// One line on standard error, where a person reads that, that says who is waited for.
pub struct Progress {
    /// Nothing is said without.
    told: Option<Told>,
}

struct Told {
    began: Instant,
    width: usize,
    /// Those that live; nothing where rows do not tell who has answered.
    expected: BTreeSet<HostId>,
    seen: BTreeSet<HostId>,
    is_shown: bool,
}

impl Progress {
    /// No line.
    pub fn silent() -> Progress {
        Progress { told: None }
    }

    /// A line about the hosts of `scope`, if standard error is a terminal. With `each` every host
    /// that answers shows by its rows.
    pub fn new(source: &Source, scope: &Scope, each: bool, out: &Output) -> Progress {
        if !io::stderr().is_terminal() {
            return Progress::silent();
        }
        let asked = if each { Cluster::ask(source).ok() } else { None };
        let hosts = asked.into_iter().flat_map(|cluster| cluster.hosts);
        let alive = hosts.filter(|host| host.state == HostState::Alive);
        let expected = match scope.hosts.rule() {
            Ok(rule) => alive.filter(|host| rule.means(host)).map(|host| host.id).collect(),
            Err(_) => BTreeSet::new(),
        };
        let width = out.size().map_or(PROGRESS_WIDTH, |(columns, _)| columns.saturating_sub(1));
        let (began, seen) = (Instant::now(), BTreeSet::new());
        Progress { told: Some(Told { began, width, expected, seen, is_shown: false }) }
    }

    /// A row has come.
    fn see(&mut self, row: &[u8]) {
        let Some(told) = self.told.as_mut().filter(|told| !told.expected.is_empty()) else {
            return;
        };
        // The other columns are passed over.
        if let Ok(id) = serde_json::from_slice::<HostId>(row) {
            told.seen.insert(id);
        }
    }

    /// Shows the line when it is time for it.
    fn show(&mut self) {
        let Some(told) = &mut self.told else { return };
        let waited = told.began.elapsed();
        if waited < PROGRESS_AFTER {
            return;
        }
        let line = progress_line(&told.expected, &told.seen, waited);
        let line = text::visible_within(&line, told.width);
        told.is_shown = true;
        // That standard error fails is told to nobody.
        write!(io::stderr(), "\r\x1b[K{line}").ok();
    }

    /// Takes the line away.
    fn clear(&mut self) {
        if let Some(told) = self.told.as_mut().filter(|told| told.is_shown) {
            told.is_shown = false;
            write!(io::stderr(), "\r\x1b[K").ok();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn progress_line(expected: &BTreeSet<HostId>, seen: &BTreeSet<HostId>, waited: Duration) -> String {
    let seconds = waited.as_secs_f64();
    if expected.is_empty() {
        return format!("waiting for hosts, {seconds:.1} s …");
    }
    let mut left = expected.difference(seen);
    let named: Vec<String> =
        left.by_ref().take(PROGRESS_NAMED_MAX).map(ToString::to_string).collect();
    let more = left.count();
    let answered = expected.len() - named.len() - more;
    let mut line = format!("{answered} of {} hosts, {seconds:.1} s", expected.len());
    if !named.is_empty() {
        write!(line, "; waiting for {}", named.join(", ")).ok();
    }
    if more > 0 {
        write!(line, " and {more} more").ok();
    }
    line + " …"
}

/// The condition that a process is not this command itself; nothing where the node is another host's.
///
/// # Errors
/// See [`SourceError`].
pub fn not_itself(source: &Source) -> Result<Option<String>, SourceError> {
    if !source.is_this_kernel() {
        return Ok(None);
    }
    let (own, here) = (std::process::id(), Cluster::ask(source)?.asked);
    let (dc, host) = (cel::literal(here.dc.as_str()), cel::literal(here.host.as_str()));
    Ok(Some(format!("!(pid == {own} && dc == {dc} && host == {host})")))
}

/// A row's host as it is written, `tokyo/a`; nothing where the row does not say it.
pub fn host_of(row: &Row) -> Option<String> {
    let name = |column| row.get(column).and_then(Value::as_str);
    Some(format!("{}/{}", name("dc")?, name("host")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ids(names: &[&str]) -> BTreeSet<HostId> {
        names.iter().map(|name| name.parse().expect("a host")).collect()
    }

    fn asked(missing: usize) -> Asked {
        let one = |index: usize| HostOutcome {
            id: format!("tokyo/h{index}").parse().expect("a host"),
            outcome: Outcome::Silent { after_ms: 2_000 },
        };
        let missing: Vec<HostOutcome> = (0..missing).map(one).collect();
        let answered = 200 - missing.len() as u64;
        Asked { asked: 200, answered, missing, answered_by: Vec::new() }
    }

    #[test]
    fn who_is_missing_is_read_as_nodes_write_it() {
        let text = json!({"asked": 5, "answered": 1, "answered_by": [{"dc": "t", "host": "x"}],
            "missing": [
            {"dc": "t", "host": "a", "outcome": "dead", "for_ms": 12_000},
            {"dc": "t", "host": "b", "outcome": "cut-off", "for_ms": 61_000},
            {"dc": "o", "host": "c", "outcome": "silent", "after_ms": 1_500},
            {"dc": "o", "host": "d", "outcome": "refused", "why": "too \x1b[31mold"},
        ]});
        let asked: Asked = serde_json::from_value(text).expect("it is read");
        let want = [
            "t/a is missing: dead for 12 s",
            "t/b is missing: cut off for 1 min 1 s",
            "o/c is missing: silent for 1.5 s",
            "o/d is missing: refused: too \x1b[31mold",
        ];
        assert_eq!(asked.lines(), want);
        assert_eq!(asked.count(), "1 of 5 hosts");
    }

    #[test]
    fn many_missing_hosts_are_counted() {
        for (missing, lines, last) in [
            (0, 0, None),
            (10, 10, None),
            (11, 11, Some("1 more host is missing; `kumo hosts` lists them")),
            (25, 11, Some("15 more hosts are missing; `kumo hosts` lists them")),
        ] {
            let said = asked(missing).lines();
            assert_eq!(said.len(), lines, "for {missing}");
            let last = last.or(said.last().map(String::as_str));
            assert_eq!(said.last().map(String::as_str), last, "for {missing}");
        }
    }

    #[test]
    fn progress_says_who_is_waited_for() {
        let all = ids(&["t/a", "t/b", "t/c", "t/d", "t/e"]);
        let at = Duration::from_millis(1_200);
        let cases: [(&[&str], &str); 3] = [
            (&[], "0 of 5 hosts, 1.2 s; waiting for t/a, t/b, t/c and 2 more …"),
            (&["t/a", "t/b", "t/c", "t/e"], "4 of 5 hosts, 1.2 s; waiting for t/d …"),
            (&["t/a", "t/b", "t/c", "t/d", "t/e"], "5 of 5 hosts, 1.2 s …"),
        ];
        for (seen, want) in cases {
            assert_eq!(progress_line(&all, &ids(seen), at), want, "for {seen:?}");
        }
        assert_eq!(progress_line(&ids(&[]), &ids(&[]), at), "waiting for hosts, 1.2 s …");
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let text = "{\"dc\":\"t\",\"host\":\"a\",\"pid\":1}\n{\"dc\":\"t\",\"host\":\"b\",\"pid\":2}\n\
                    {\"hosts\":{\"asked\":2,\"answered\":2,\"missing\":[]}}\n";
        for size in 1..text.len() {
            let mut rows = Vec::new();
            let mut take = |line: &[u8]| {
                rows.push(serde_json::from_slice::<Row>(line)?["pid"].clone());
                Ok(())
            };
            let expected = ids(&["t/a", "t/b", "t/c"]);
            let (began, seen) = (Instant::now(), BTreeSet::new());
            let told = Told { began, width: 80, expected, seen, is_shown: false };
            let progress = Progress { told: Some(told) };
            let mut lines = Lines { rest: Vec::new(), end: None, progress, take: &mut take };
            for piece in text.as_bytes().chunks(size) {
                lines.take(piece).expect("good lines");
            }
            assert_eq!(lines.end.as_ref().map(|end| end.asked), Some(2), "in pieces of {size}");
            let seen = lines.progress.told.as_ref().map(|told| told.seen.clone());
            assert_eq!(seen, Some(ids(&["t/a", "t/b"])));
            assert_eq!(rows, [json!(1), json!(2)]);
        }
    }
}
