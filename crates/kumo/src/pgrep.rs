//! `kumo pgrep`: the numbers of the processes that look like this.

use kumo_abi::proc::{COLUMNS_DEFAULT, PROC};
use kumo_abi::{Query, QueryText, Row};
use serde_json::Value;

use crate::cel;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::json;
use crate::many::{self, Asked, Progress};
use crate::output::Output;
use crate::scope::Scope;
use crate::source::{Source, SourceArgs};
use crate::text;
use crate::when::Moment;

/// Bytes of the name of a user process that the kernel keeps.
const NAME_BYTES_MAX: usize = 15;

/// Find processes by name, user or any condition
#[derive(Clone, Debug, clap::Args)]
pub struct Pgrep {
    /// A regular expression that the name contains; any name without one
    #[arg(value_name = "PATTERN")]
    pattern: Option<String>,
    /// Look for the pattern in the whole command line, not in the name (15 bytes of it are kept)
    #[arg(short, long)]
    full: bool,
    /// The pattern must match the whole name, or with -f the whole command line
    #[arg(short = 'x', long)]
    exact: bool,
    /// Upper and lower case are the same
    #[arg(short, long)]
    ignore_case: bool,
    /// Only of these effective users, by name or number
    #[arg(short, long = "euid", value_name = "USER", value_delimiter = ',')]
    user: Vec<String>,
    /// Only children of these processes
    #[arg(short = 'P', long = "parent", value_name = "PID", value_delimiter = ',')]
    parents: Vec<i32>,
    /// Only processes that fulfil this condition (CEL)
    #[arg(long, value_name = "CEL")]
    filter: Option<String>,
    /// Among the processes of an earlier moment, as `kumo ps --at` shows them: '10 min ago', 12:30
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<Moment>,
    /// Only the newest of them
    #[arg(short = 'n', long, conflicts_with = "oldest")]
    newest: bool,
    /// Only the oldest of them
    #[arg(short = 'o', long)]
    oldest: bool,
    /// Print how many there are
    #[arg(short, long)]
    count: bool,
    /// Print the name too
    #[arg(short, long)]
    list_name: bool,
    /// Print the command line too
    #[arg(short = 'a', long)]
    list_full: bool,
    /// Print identities, PID@START, as `kumo kill` takes them
    #[arg(long)]
    id: bool,
    /// What to print between two of them
    #[arg(short, long, value_name = "TEXT", default_value = "\n", hide_default_value = true)]
    delimiter: String,
    /// Print the whole answer as one JSON object
    #[arg(long, conflicts_with_all = ["count", "list_name", "list_full", "id"])]
    json: bool,
    /// Which hosts.
    #[command(flatten)]
    pub scope: Scope,
    /// Where to ask.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo pgrep sshd                      numbers of all with `sshd` in their name
  kumo pgrep -a -f 'python.*manage'    search command lines, print them
  kumo pgrep -u www-data -c            how many www-data has
  kumo pgrep -n -x bash                the newest that is named exactly bash
  kumo pgrep --filter 'cpu > 90.0 && threads > 8'
  kumo kill $(kumo pgrep --id -x myapp)
  kumo pgrep --at '10 min ago' -a nginx    as it was then
  kumo pgrep --all -a nginx            on all hosts: tokyo/a/4711 nginx: master process
  kumo kill $(kumo pgrep --dc osaka --id -x myapp)

It never lists itself. Exit status: 0 found, 1 none found or failed, 2 wrong usage, 3 some hosts are
missing from the answer.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Pgrep, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    // What is wrong with it is told in the same words as by `kumo ps`, and before anybody is asked.
    Query::parse(&args.question(None)?, &PROC, COLUMNS_DEFAULT)?;
    let text = args.question(args.not_itself(source)?)?;
    if args.scope.is_many() {
        return run_many(args, source, &text, out);
    }
    let rows = source.proc(&text)?;
    if args.at.is_some() {
        out.warn(format_args!("as of {}", rows.meta.as_of));
    }
    if args.json {
        // The rows are small; asking a second time could give others.
        out.line(json::line(&rows)?)?;
        return Ok(found(&rows.rows));
    }
    args.show(&rows.rows, out)
}

fn run_many(
    args: &Pgrep,
    source: &Source,
    text: &QueryText,
    out: &mut Output,
) -> Result<Exit, CommandError> {
    let progress = Progress::new(source, &args.scope, false, out);
    if args.json {
        let (asked, rows) = many::rows_to(source, text, &args.scope, progress, out.writer())?;
        out.line("")?;
        return Ok(asked.tell(found(&rows), out));
    }
    let mut rows: Vec<Row> = Vec::new();
    let mut take = |line: &[u8]| {
        rows.push(serde_json::from_slice(line)?);
        Ok(())
    };
    let asked: Asked = many::each_row(source, text, &args.scope, progress, &mut take)?;
    rows.sort_by_cached_key(many::host_of);
    if let (Some(_), Some((first, last))) = (args.at, asked.as_of()) {
        out.warn(format_args!("as of {first} to {last}, each host by its own records"));
    }
    let exit = args.show(&rows, out)?;
    Ok(asked.tell(exit, out))
}

fn found(rows: &[Row]) -> Exit {
    if rows.is_empty() { Exit::Failed } else { Exit::Done }
}

impl Pgrep {
    /// Prints what was found.
    fn show(&self, rows: &[Row], out: &mut Output) -> Result<Exit, CommandError> {
        let found = found(rows);
        if self.count {
            out.line(rows.len())?;
            return Ok(found);
        }
        for (index, row) in rows.iter().enumerate() {
            if index > 0 {
                out.raw(&self.delimiter)?;
            }
            out.raw(&self.entry(row))?;
        }
        if found == Exit::Done {
            out.line("")?;
        } else if let Some(hint) = self.hint() {
            out.warn(hint);
        }
        Ok(found)
    }

    /// The condition that this command is not what it finds; nothing where it runs elsewhere.
    fn not_itself(&self, source: &Source) -> Result<Option<String>, CommandError> {
        if self.scope.is_many() && self.at.is_none() {
            return Ok(many::not_itself(source)?);
        }
        if self.at.is_some() {
            // It was not there then, but maybe another with its number.
            return Ok(None);
        }
        Ok(source.is_this_kernel().then(|| format!("pid != {}", std::process::id())))
    }

    fn question(&self, not_itself: Option<String>) -> Result<QueryText, CommandError> {
        let mut conditions = Vec::new();
        if let Some(pattern) = &self.pattern {
            let column = if self.full { "cmdline" } else { "comm" };
            let case = if self.ignore_case { "(?i)" } else { "" };
            let pattern = if self.exact {
                format!("{case}^(?:{pattern})$")
            } else {
                format!("{case}{pattern}")
            };
            conditions.push(format!("{column}.matches({})", cel::literal(&pattern)));
        }
        if !self.user.is_empty() {
            let each = self.user.iter().map(|user| match user.parse::<u32>() {
                Ok(uid) => format!("euid == {uid}"),
                Err(_) => format!("user == {}", cel::literal(user)),
            });
            conditions.push(format!("({})", each.collect::<Vec<_>>().join(" || ")));
        }
        if !self.parents.is_empty() {
            let parents = self.parents.iter().map(ToString::to_string).collect::<Vec<_>>();
            conditions.push(format!("ppid in [{}]", parents.join(", ")));
        }
        if let Some(filter) = &self.filter {
            conditions.push(cel::typed(filter)?);
        }
        if conditions.is_empty() {
            let what = "name a PATTERN, a user (-u), a parent (-P) or a condition (--filter); \
                        `kumo ps` lists all processes";
            return Err(CommandError::Usage(what.to_owned()));
        }
        conditions.extend(not_itself);
        let sort = match (self.newest, self.oldest) {
            (true, _) => Some("-start,-pid".to_owned()),
            (_, true) => Some("start,pid".to_owned()),
            _ => None,
        };
        let mut columns = vec!["pid"];
        columns.extend((self.id || self.json).then_some("id"));
        columns.extend((self.list_name || self.json).then_some("comm"));
        columns.extend((self.list_full || self.json).then_some("cmdline"));
        Ok(QueryText {
            columns: Some(columns.join(",")),
            filter: Some(cel::all_of(&conditions)?),
            limit: sort.is_some().then(|| "1".to_owned()),
            sort,
            group: None,
            ended: false,
            at: self.at.map(|Moment(at)| at.to_string()),
        })
    }

    fn entry(&self, row: &Row) -> String {
        let cell = |name: &str| match row.get(name) {
            Some(Value::String(text)) => text::visible(text).into_owned(),
            Some(Value::Null) | None => "-".to_owned(),
            Some(other) => other.to_string(),
        };
        let mut entry = cell(if self.id { "id" } else { "pid" });
        if let Some(host) = many::host_of(row) {
            entry = format!("{}/{entry}", text::visible(&host));
        }
        if self.list_full || self.list_name {
            entry.push(' ');
            entry.push_str(&cell(if self.list_full { "cmdline" } else { "comm" }));
        }
        entry
    }

    /// Why a pattern may have found nothing.
    fn hint(&self) -> Option<&'static str> {
        let plain = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        let long = |pattern: &String| pattern.len() > NAME_BYTES_MAX && pattern.chars().all(plain);
        let too_long = !self.full && self.pattern.as_ref().is_some_and(long);
        too_long.then_some("names are kept to 15 bytes, and the pattern is longer; try -f")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        pgrep: Pgrep,
    }

    fn question(line: &str) -> QueryText {
        let words = std::iter::once("pgrep").chain(line.split(' ').filter(|word| !word.is_empty()));
        let cli = Cli::try_parse_from(words).expect("good usage");
        cli.pgrep.question(Some("pid != 7".to_owned())).expect("a condition")
    }

    #[test]
    fn questions() {
        let cases = [
            ("sshd", r#"comm.matches("sshd") && pid != 7"#),
            ("-f a\"b\\.c", r#"cmdline.matches("a\"b\\.c") && pid != 7"#),
            ("-x -i sh|bash", r#"comm.matches("(?i)^(?:sh|bash)$") && pid != 7"#),
            ("-u root,33", r#"(user == "root" || euid == 33) && pid != 7"#),
            ("-P 1,2 x", r#"comm.matches("x") && ppid in [1, 2] && pid != 7"#),
            ("--filter cpu>1.0", "(\ncpu>1.0\n) && pid != 7"),
        ];
        for (line, want) in cases {
            assert_eq!(question(line).filter.as_deref(), Some(want), "for {line:?}");
        }
        let newest = question("-n sh");
        assert_eq!(newest.sort.as_deref(), Some("-start,-pid"));
        assert_eq!(newest.limit.as_deref(), Some("1"));
    }

    #[test]
    fn processes_of_many_hosts_are_named_by_their_host() {
        let row =
            serde_json::json!({"dc": "tokyo", "host": "a", "pid": 7, "id": "7@9", "comm": "x"});
        let row = row.as_object().expect("an object");
        for (line, want) in [("x", "tokyo/a/7"), ("--id x", "tokyo/a/7@9"), ("-l x", "tokyo/a/7 x")]
        {
            let words = std::iter::once("pgrep").chain(line.split(' '));
            let cli = Cli::try_parse_from(words).expect("good usage");
            assert_eq!(cli.pgrep.entry(row), want, "for {line:?}");
        }
    }

    #[test]
    fn nothing_to_look_for_is_refused() {
        let cli = Cli::try_parse_from(["pgrep", "-l"]).expect("good usage");
        assert!(matches!(cli.pgrep.question(None), Err(CommandError::Usage(_))));
    }
}
