//! `kumo sockets`: who holds which socket, as `ss` shows it, in all network namespaces and on all hosts.

use kumo_abi::relation::OPEN_SOCKETS;
use kumo_abi::sockets::SOCKETS;
use kumo_abi::{QueryText, Row};
use serde_json::Value;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::listing::{self, Listing, Usual, Whose};
use crate::output::Output;
use crate::source::Source;

/// The usual table: the cells of an end are put together from what is asked for.
const USUAL: Usual = Usual {
    asked: "protocol,state,recv_queue,send_queue,local_address,local_port,remote_address,remote_port,\
        family,path,peer_inode,user,pid,fd,comm",
    shown: "protocol,state,recv_queue,send_queue,local_address,remote_address,user,pid,fd,comm",
};

/// List sockets and who holds them, as `ss` does, in all network namespaces
#[derive(Clone, Debug, clap::Args)]
pub struct Sockets {
    /// Only sockets of these processes
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pids: Vec<i32>,
    /// Only what others reach without being asked: TCP and Unix that listen, UDP that is bound
    #[arg(short, long)]
    listen: bool,
    /// Only TCP
    #[arg(short, long)]
    tcp: bool,
    /// Only UDP
    #[arg(short, long)]
    udp: bool,
    /// Only Unix sockets
    #[arg(short = 'x', long)]
    unix: bool,
    /// Only sockets with this port, at either end
    #[arg(short, long, value_name = "PORT")]
    port: Option<u16>,
    /// What to show of them, and where to ask.
    #[command(flatten)]
    pub listing: Listing,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo sockets                                   every socket that a process holds
  kumo sockets -l -t                             who listens on which TCP port
  kumo sockets --port 5432                       who talks to the database
  kumo sockets 4711                              those of one process
  kumo sockets -o +netns,container --filter 'container != \"\"'
  kumo sockets --filter 'recv_queue > 0 && state == \"ESTABLISHED\"' --sort -recv_queue
  kumo sockets -t --group comm,state             how many of what
  kumo sockets --all -l --port 22                every host that listens there
  kumo sockets --dc tokyo --json | jq '.rows[].remote_address'
  kumo ps -o +listen,open_files                  ports and open files as columns of processes

A row is a descriptor: a socket that two processes hold stands there twice, with one inode. What no
process holds, such as connections in TIME_WAIT, has no row. Exit status: 0 done, 1 failed or none of the
processes found, 2 wrong usage, 3 some of them not found, or some hosts are missing from the answer.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Sockets, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let listing = &args.listing;
    let host_first = listing.scope.is_many();
    let plan = listing.plan(&OPEN_SOCKETS, USUAL, args.conditions(), host_first)?;
    let (mut rows, asked) = listing.ask(&plan, &Whose::All, source, out)?;
    if plan.is_usual {
        rows.iter_mut().for_each(join_ends);
    }
    let exit = args.tell_missing(source, out)?;
    if exit != Exit::Failed {
        listing.print(&plan, &rows, out)?;
    }
    Ok(asked.map_or(exit, |asked| asked.tell(exit, out)))
}

/// Lists every column.
///
/// # Errors
/// Standard output.
pub fn list_columns(out: &mut Output) -> Result<Exit, CommandError> {
    listing::list_columns(&SOCKETS, out)
}

impl Sockets {
    /// Says of each process that was named that it is not there, as `kumo lsof` does: no row may also mean
    /// that it has no socket. Of many hosts a number is that of any of them.
    fn tell_missing(&self, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
        let Some(meant) = self.meant().filter(|_| !self.listing.scope.is_many()) else {
            return Ok(Exit::Done);
        };
        let text = QueryText {
            columns: Some("pid".to_owned()),
            filter: Some(meant),
            ..QueryText::default()
        };
        let there = source.proc(&text)?.rows;
        let is_there = |pid: &&i32| there.iter().any(|row| row["pid"] == **pid);
        let missing: Vec<i32> = self.pids.iter().filter(|pid| !is_there(pid)).copied().collect();
        for pid in &missing {
            out.warn(format_args!("{pid}: no process {pid} on this host"));
        }
        Ok(match missing.len() {
            0 => Exit::Done,
            all if all == self.pids.len() => Exit::Failed,
            _ => Exit::Partial,
        })
    }

    /// The condition that a process is one of those that were named; none without.
    fn meant(&self) -> Option<String> {
        let pids: Vec<String> = self.pids.iter().map(ToString::to_string).collect();
        (!pids.is_empty()).then(|| format!("pid in [{}]", pids.join(",")))
    }

    fn conditions(&self) -> Vec<String> {
        let mut conditions: Vec<String> = self.meant().into_iter().collect();
        if self.listen {
            conditions.push("listening".to_owned());
        }
        let kinds = [
            (self.tcp, r#"protocol in ["tcp", "tcp6", "mptcp", "mptcp6"]"#),
            (self.udp, r#"protocol in ["udp", "udp6", "udplite", "udplite6"]"#),
            (self.unix, r#"protocol == "unix""#),
        ];
        let kinds: Vec<&str> = kinds
            .into_iter()
            .filter_map(|(wanted, condition)| wanted.then_some(condition))
            .collect();
        if !kinds.is_empty() {
            conditions.push(format!("({})", kinds.join(" || ")));
        }
        if let Some(port) = self.port {
            conditions.push(format!("(local_port == {port} || remote_port == {port})"));
        }
        conditions
    }
}

/// Writes both ends of a socket as one cell each, as `ss` does.
fn join_ends(row: &mut Row) {
    let is_unix = row.get("family").and_then(Value::as_str) == Some("unix");
    let end = |address: &str, port: &str| {
        let port = row.get(port).and_then(Value::as_u64);
        let address = row.get(address).and_then(Value::as_str)?;
        let is_any = matches!(address, "0.0.0.0" | "::");
        let address = if is_any { "*" } else { address };
        Some(match port {
            Some(port) if address.contains(':') => format!("[{address}]:{port}"),
            Some(port) => format!("{address}:{port}"),
            None => address.to_owned(),
        })
    };
    let (local, remote) = if is_unix {
        let peer = row.get("peer_inode").and_then(Value::as_u64).map(|inode| format!("* {inode}"));
        (row.get("path").and_then(Value::as_str).map(str::to_owned), peer)
    } else {
        (end("local_address", "local_port"), end("remote_address", "remote_port"))
    };
    let cell = |end: Option<String>| end.map_or(Value::Null, Value::String);
    row.insert("local_address".to_owned(), cell(local));
    row.insert("remote_address".to_owned(), cell(remote));
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use serde_json::json;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        sockets: Sockets,
    }

    #[test]
    fn options_are_conditions() {
        let cases = [
            ("", None),
            ("7 8", Some("pid in [7,8]")),
            ("-l --port 22", Some("listening && (local_port == 22 || remote_port == 22)")),
            (
                "-u -x",
                Some(
                    r#"(protocol in ["udp", "udp6", "udplite", "udplite6"] || protocol == "unix")"#,
                ),
            ),
            ("-l --filter uid==0", Some("listening && (\nuid==0\n)")),
        ];
        for (line, want) in cases {
            let words = std::iter::once("sockets").chain(line.split(' ').filter(|w| !w.is_empty()));
            let args = Cli::try_parse_from(words).expect("good usage").sockets;
            let plan = args.listing.plan(&OPEN_SOCKETS, USUAL, args.conditions(), false);
            assert_eq!(plan.expect("a plan").question().filter.as_deref(), want, "for {line:?}");
        }
        for (line, why) in [("-o rss", "no column `rss`"), ("--filter rss>1", "rss")] {
            let words = std::iter::once("sockets").chain(line.split(' '));
            let args = Cli::try_parse_from(words).expect("good usage").sockets;
            let refused = args.listing.plan(&OPEN_SOCKETS, USUAL, Vec::new(), false).err();
            let refused = refused.expect(why).to_string();
            assert!(refused.contains(why), "{refused:?} does not say {why:?}");
        }
    }

    #[test]
    fn ends_are_written_as_one() {
        let ends = |row: Value| {
            let mut row = row.as_object().expect("an object").clone();
            join_ends(&mut row);
            format!("{} {}", row["local_address"], row["remote_address"])
        };
        let inet = |local: &str, port: Value, remote: Value, remote_port: Value| {
            ends(json!({"family": "inet", "local_address": local, "local_port": port,
                "remote_address": remote, "remote_port": remote_port}))
        };
        let null = Value::Null;
        assert_eq!(inet("0.0.0.0", json!(22), null.clone(), null.clone()), r#""*:22" null"#);
        let both = inet("::1", json!(22), json!("::2"), json!(9));
        assert_eq!(both, r#""[::1]:22" "[::2]:9""#);
        assert_eq!(inet("10.0.0.1", null.clone(), null.clone(), null), r#""10.0.0.1" null"#);
        let unix = json!({"family": "unix", "path": "@a", "peer_inode": 7});
        assert_eq!(ends(unix), r#""@a" "* 7""#);
    }
}
