//! What `kumo sockets` and `kumo lsof` have in common: a table of a host, or of many, by the one query
//! language.

use std::time::Duration;

use kumo_abi::{Filter, HostId, Problem, ProcessId, QueryText, Relation, Row, Rows, Schema};

use crate::cel;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::json;
use crate::many::{self, Asked, Progress};
use crate::output::{Look, Output};
use crate::ps;
use crate::scope::Scope;
use crate::source::{self, Ask, Source, SourceArgs, SourceError};
use crate::table::{self, Column, Style};
use crate::text;
use crate::units::SizeStyle;

/// Options of such a table.
#[derive(Clone, Debug, clap::Args)]
pub struct Listing {
    /// Columns to show, in order; a first `+` adds to the usual ones: +container,netns
    #[arg(short = 'o', long = "format", value_name = "COLUMNS")]
    columns: Option<String>,
    /// Only rows that fulfil this condition (CEL)
    #[arg(short, long, value_name = "CEL")]
    filter: Option<String>,
    /// Sort by these columns; `-` in front for high to low
    #[arg(short, long, value_name = "COLUMNS", allow_hyphen_values = true)]
    sort: Option<String>,
    /// Show at most this many rows
    #[arg(short = 'n', long, value_name = "ROWS")]
    limit: Option<String>,
    /// One row for each value of these columns, with their number and what -o asks for
    #[arg(short, long, value_name = "COLUMNS")]
    group: Option<String>,
    /// Print the whole answer as one JSON object
    #[arg(long)]
    json: bool,
    /// List every column with its kind, its unit and its meaning
    #[arg(long = "columns")]
    pub list_columns: bool,
    /// Print no line of headings
    #[arg(long)]
    no_header: bool,
    /// Cut no line to the width of the terminal
    #[arg(long, short = 'W')]
    wide: bool,
    /// Which hosts.
    #[command(flatten)]
    pub scope: Scope,
    /// Where to ask.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// Of whom a table is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// All processes of the hosts of the scope.
    All,
    /// One process, of a host that was named or of the one that is asked.
    Process(Option<HostId>, ProcessOf),
}

/// A process of a host, as the user names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessOf {
    /// By its number: whoever has it now.
    Number(i32),
    /// By its identity.
    Id(ProcessId),
}

/// What is asked, and how it is shown.
pub struct Plan {
    relation: &'static Relation,
    text: QueryText,
    columns: Vec<Column>,
    /// The columns of the table are its usual ones, so that cells may be put together.
    pub is_usual: bool,
    /// The first column is the host.
    host_first: bool,
}

impl Plan {
    /// What is asked.
    #[cfg(test)]
    pub fn question(&self) -> &QueryText {
        &self.text
    }
}

/// What a table shows when no columns are named: what is asked for, and of that the columns that stand in it.
#[derive(Clone, Copy, Debug)]
pub struct Usual {
    /// Asked for.
    pub asked: &'static str,
    /// Shown.
    pub shown: &'static str,
}

impl Listing {
    /// Puts the question together. All `conditions` must hold beside the one that was typed.
    ///
    /// # Errors
    /// What was typed is wrong.
    pub fn plan(
        &self,
        relation: &'static Relation,
        usual: Usual,
        mut conditions: Vec<String>,
        host_first: bool,
    ) -> Result<Plan, CommandError> {
        let schema = relation.schema;
        if let Some(filter) = &self.filter {
            Filter::compile(filter, schema).map_err(kumo_abi::QueryError::from)?;
            conditions.push(cel::enclosed(filter));
        }
        let is_plain = self.columns.is_none() && self.group.is_none();
        let is_usual = is_plain && !self.json;
        let columns = match self.columns.as_deref().map(str::trim) {
            Some(given) if !self.json => match given.strip_prefix('+') {
                Some(added) => Some(format!("{},{added}", usual.shown)),
                None => Some(given.to_owned()),
            },
            Some(given) => Some(given.to_owned()),
            None if is_usual => Some(usual.asked.to_owned()),
            None => None,
        };
        let text = QueryText {
            columns,
            filter: (!conditions.is_empty()).then(|| cel::all_of(&conditions)).transpose()?,
            sort: self.sort.clone(),
            limit: self.limit.clone(),
            group: self.group.clone(),
            ended: false,
            at: None,
        };
        let query = relation.parse(&text)?;
        let host_first = host_first && !query.is_grouped();
        let mut columns = if is_usual {
            let shown = QueryText { columns: Some(usual.shown.to_owned()), ..QueryText::default() };
            Column::of_table(&relation.parse(&shown)?, schema)
        } else {
            Column::of_table(&query, schema)
        };
        if host_first {
            columns.insert(0, Column::host());
        }
        Ok(Plan { relation, text, columns, is_usual, host_first })
    }

    /// Asks, and gives the rows; in JSON it prints the document as it is and gives them too.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn ask(
        &self,
        plan: &Plan,
        whose: &Whose,
        source: &Source,
        out: &mut Output,
    ) -> Result<(Vec<Row>, Option<Asked>), CommandError> {
        if *whose == Whose::All && self.scope.is_many() {
            let progress = Progress::new(source, &self.scope, false, out);
            let mut document = Vec::new();
            let (relation, scope) = (plan.relation, &self.scope);
            let (asked, mut rows) =
                many::table_to(source, relation, &plan.text, scope, progress, &mut document)?;
            if self.json {
                out.writer().write_all(&document)?;
                out.line("")?;
            }
            for (host, unseen) in asked.unseen() {
                out.warn(format_args!("{host} could not see {unseen}"));
            }
            if plan.text.sort.is_none() {
                rows.sort_by_cached_key(many::host_of);
            }
            if plan.host_first {
                for row in &mut rows {
                    if let Some(host) = many::host_of(row) {
                        row.insert("host".to_owned(), host.into());
                    }
                }
            }
            return Ok((rows, Some(asked)));
        }
        let answer = self.rows_of_one(plan, whose, source)?;
        if self.json {
            out.line(json::line(&answer)?)?;
        }
        if let Some(unseen) = &answer.meta.unseen {
            out.warn(format_args!("not seen: {unseen}"));
        }
        let mut rows = answer.rows;
        if plan.host_first {
            let host = format!("{}/{}", answer.meta.dc, answer.meta.host);
            for row in &mut rows {
                row.insert("host".to_owned(), host.clone().into());
            }
        }
        Ok((rows, None))
    }

    fn rows_of_one(
        &self,
        plan: &Plan,
        whose: &Whose,
        source: &Source,
    ) -> Result<Rows, CommandError> {
        if let (Source::Direct(engine, lines), Whose::All | Whose::Process(None, _)) =
            (source, whose)
        {
            let pids = match whose {
                Whose::Process(_, process) => Some(vec![find(engine, *process)?]),
                Whose::All => None,
            };
            let query = plan.relation.parse(&plan.text)?;
            let question = k2i::Question { query, pids, max_age: Duration::ZERO, lines: *lines };
            let answer = engine.ask_open(plan.relation, &question).map_err(SourceError::from)?;
            let bytes = answer.into_bytes(k2i::Format::Json);
            return Ok(serde_json::from_slice(&bytes).map_err(|error| source.unreadable(error))?);
        }
        let path = plan.relation.path;
        let mut parameters = source::proc_parameters(&plan.text, Duration::ZERO);
        let ask = match whose {
            Whose::All => Ask::get(format!("/v2/{path}?{parameters}")),
            Whose::Process(None, process) => {
                Ask::get(format!("/v2/proc/{process}/{path}?{parameters}"))
            }
            Whose::Process(Some(HostId { dc, host }), process) => {
                let wait = self.scope.wait();
                source::push_parameter(&mut parameters, "wait_ms", &wait.as_millis().to_string());
                let path = format!("/v2/hosts/{dc}/{host}/proc/{process}/{path}?{parameters}");
                Ask::get(path).that_waits(wait)
            }
        };
        Ok(source.json(&ask)?)
    }

    /// Prints rows as a table; nothing in JSON, which is printed by then.
    ///
    /// # Errors
    /// Standard output.
    pub fn print(&self, plan: &Plan, rows: &[Row], out: &mut Output) -> Result<(), CommandError> {
        if self.json {
            return Ok(());
        }
        let width = out.size().map(|(columns, _)| columns);
        let sizes = if out.is_terminal() { SizeStyle::Human } else { SizeStyle::Bytes };
        let style = Style {
            sizes,
            now: ps::local_now(),
            width_max: width.filter(|_| !self.wide),
            header: !self.no_header,
        };
        for line in table::lines(&plan.columns, rows.iter(), None, &style, out) {
            out.line(line)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for ProcessOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ProcessOf::Number(pid) => write!(f, "{pid}"),
            ProcessOf::Id(id) => write!(f, "{id}"),
        }
    }
}

/// Looks whether this process of this host is there, as its node would.
fn find(engine: &k2i::Engine, process: ProcessOf) -> Result<i32, SourceError> {
    let (pid, meant) = match process {
        ProcessOf::Number(pid) => (pid, None),
        ProcessOf::Id(id) => (id.pid, Some(id)),
    };
    let refused = |status: u16, name: &str, detail: String| {
        SourceError::Refused(Problem::new(status, name, "There is no such process", detail))
    };
    let now = engine
        .identity_of(pid)?
        .ok_or_else(|| refused(404, "no-such-process", format!("no process {pid} on this host")))?;
    if meant.is_some_and(|id| !id.same(&now)) {
        let detail = format!("{pid} is the number of {now} now; who you mean has ended");
        return Err(refused(409, "other-process", detail));
    }
    Ok(pid)
}

/// Lists every column of a table.
///
/// # Errors
/// Standard output.
pub fn list_columns(schema: &Schema, out: &mut Output) -> Result<Exit, CommandError> {
    let width_max = out.size().map_or(usize::MAX, |(columns, _)| columns);
    let heading = format!("{:<18}{:<14}{:<9}{}", "COLUMN", "KIND", "UNIT", "MEANING");
    let heading = out.styled(Look::Heading, &heading);
    out.line(heading)?;
    for spec in schema.columns {
        let aliases = match spec.aliases {
            [] => String::new(),
            aliases => format!(" (also {})", aliases.join(", ")),
        };
        let facts = format!("{:<18}{:<14}{:<9}", spec.name, spec.kind.name(), spec.unit.name());
        let line = format!("{facts}{}{aliases}", spec.about);
        out.line(text::visible_within(&line, width_max))?;
    }
    out.line("\nAggregates: count(), sum(COLUMN), max(COLUMN)")?;
    Ok(Exit::Done)
}
