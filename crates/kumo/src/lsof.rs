//! `kumo lsof`: the open files of processes, of this host and of others.

use kumo_abi::Row;
use kumo_abi::files::FILES;
use kumo_abi::relation::OPEN_FILES;
use serde_json::Value;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::kill::{Named, Which};
use crate::listing::{self, Listing, ProcessOf, Usual, Whose};
use crate::output::Output;
use crate::source::{Source, SourceError};

/// The usual table: what a socket is stands where others have their path.
const USUAL: Usual = Usual {
    asked: "comm,pid,fd,type,mode,offset,size,links,target,socket",
    shown: "comm,pid,fd,type,mode,offset,size,target",
};

/// List the open files of processes
#[derive(Clone, Debug, clap::Args)]
pub struct Lsof {
    /// Processes, by number (4711) or by identity (4711@8172391234); those of another host with it in
    /// front (tokyo/a/4711). All processes without
    #[arg(value_name = "[DC/HOST/]PID[@START]", conflicts_with_all = ["all", "dcs", "condition"])]
    targets: Vec<Named>,
    /// What to show of them, and where to ask.
    #[command(flatten)]
    pub listing: Listing,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo lsof 4711                                 what it has open
  kumo lsof tokyo/web-1/4711                     a process of another host
  kumo lsof --filter 'target.startsWith(\"/var/log/\")'      who has these files open
  kumo lsof --filter 'type == \"file\" && links == 0' --sort -size    deleted, and still there
  kumo lsof --group comm -o 'comm,count()' --sort '-count()' -n 10
  kumo lsof --all --filter 'target == \"/etc/shadow\"'       on all hosts

Exit status: 0 done, 1 failed or none of the processes found, 2 wrong usage, 3 some of them not found, or
some hosts are missing from the answer. `kumo ps -o +open_files` counts.";

/// Whether every target is of this host, and the question needs no node.
pub fn is_here(args: &Lsof) -> bool {
    args.targets.iter().all(|named| named.host.is_none())
}

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Lsof, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let listing = &args.listing;
    let host_first = listing.scope.is_many() || !is_here(args);
    let plan = listing.plan(&OPEN_FILES, USUAL, Vec::new(), host_first)?;
    let whose: Vec<Whose> = match args.targets.as_slice() {
        [] => vec![Whose::All],
        targets => targets.iter().map(whose).collect(),
    };
    let (mut rows, mut missed, mut asked) = (Vec::new(), 0, None);
    for (index, whose) in whose.iter().enumerate() {
        match listing.ask(&plan, whose, source, out) {
            Ok((more, of_many)) => {
                rows.extend(more);
                asked = of_many;
            }
            // The others are shown all the same.
            Err(CommandError::Source(SourceError::Refused(problem)))
                if matches!(problem.status, 404 | 409 | 502 | 503 | 504) =>
            {
                missed += 1;
                match args.targets.get(index) {
                    Some(named) => out.warn(format_args!("{named}: {}", problem.detail)),
                    None => out.warn(problem.detail),
                }
            }
            Err(error) => return Err(error),
        }
    }
    if plan.is_usual {
        rows.iter_mut().for_each(name_socket);
    }
    if missed < whose.len() {
        listing.print(&plan, &rows, out)?;
    }
    let exit = match missed {
        0 => Exit::Done,
        all if all == whose.len() => Exit::Failed,
        _ => Exit::Partial,
    };
    Ok(asked.map_or(exit, |asked| asked.tell(exit, out)))
}

fn whose(named: &Named) -> Whose {
    let process = match named.which {
        Which::Number(pid) => ProcessOf::Number(pid),
        Which::Id(id) => ProcessOf::Id(id),
    };
    Whose::Process(named.host.clone(), process)
}

/// Lists every column.
///
/// # Errors
/// Standard output.
pub fn list_columns(out: &mut Output) -> Result<Exit, CommandError> {
    listing::list_columns(&FILES, out)
}

/// Writes what a socket is in the place of its path, which says no more than its number.
fn name_socket(row: &mut Row) {
    if let Some(Value::String(socket)) = row.get("socket").cloned() {
        row.insert("target".to_owned(), socket.into());
    }
}
