//! What is timed: ourselves, `ps auwx`, and the peers that are installed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Error};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kumo_testbed::bench::stats::Times;
use kumo_testbed::{Crowd, crowd_arguments};
use serde_json::Value;

use crate::http::{self, Request};
use crate::report::Timed;
use crate::server::{Server, free_port};
use crate::sockets::Sockets;

/// Our collectors, the best first.
pub(crate) const COLLECTORS: [&str; 3] = ["iter.s", "iter", "proc"];

/// What `ps auwx` shows: its %CPU is that of the whole life.
const PS_COLUMNS: &str = "user,pid,pcpu,mem,vsize,rss,tty,stat,start,time,cmdline";

/// The same of all processes over HTTP.
pub(crate) const FULL_PATH: &str =
    "/v2/proc?columns=user,pid,pcpu,mem,vsize,rss,tty,stat,start,time,cmdline";

/// The 20 that use the CPU most, as `top` shows them.
pub(crate) const TOP_PATH: &str =
    "/v2/proc?columns=pid,user,cpu,mem,rss,state,time,cmdline&sort=-cpu&limit=20";

/// What `ss -anp` shows of every socket.
const SOCKETS_PATH: &str = "/v2/sockets?columns=protocol,state,recv_queue,send_queue,local_address,\
    local_port,remote_address,remote_port,pid,fd,comm";

/// Programs that list sockets and who holds them; `-nP`, because names of hosts and ports are looked up
/// elsewhere.
const SOCKET_LISTERS: [&str; 2] = ["ss -anp", "lsof -nP -i"];

/// Processes in an answer to [`TOP_PATH`].
const TOP_ROWS: usize = 20;

/// One thing to time.
pub(crate) struct Case {
    pub(crate) name: String,
    work: Work,
    holds: Holds,
}

enum Work {
    /// Run to its end, its output thrown away.
    Command(Vec<String>),
    /// Ask, perhaps once more than is timed.
    Http { server: SocketAddr, request: Request, asks_before: bool },
}

/// What an answer must hold.
#[derive(Clone, Copy)]
pub(crate) enum Holds {
    /// The command line of every process of the crowd, as text.
    Lines,
    /// A row with the right number and command line for every process of the crowd.
    Rows,
    /// This many rows.
    Count(usize),
    /// An array with at least as many processes as the crowd.
    Array,
    /// Every port of ours.
    Ports,
    /// At least as many rows as the crowd has processes.
    Crowd,
    /// Metrics whose groups have at least as many processes as the crowd.
    Metrics,
}

impl Case {
    /// Asks a server, and is answered with what it holds.
    pub(crate) fn asks(name: &str, server: &Server, request: Request, holds: Holds) -> Case {
        let work = Work::Http { server: server.address, request, asks_before: false };
        Case { name: name.to_owned(), work, holds }
    }

    /// The same, timed right after another that was not.
    pub(crate) fn asks_again(self) -> Case {
        let work = match self.work {
            Work::Http { server, request, .. } => Work::Http { server, request, asks_before: true },
            command @ Work::Command(_) => command,
        };
        Case { work, ..self }
    }

    /// Runs a command line.
    fn runs(line: &str, holds: Holds) -> Case {
        let words = line.split(' ').map(str::to_owned).collect();
        Case { name: format!("`{line}`"), work: Work::Command(words), holds }
    }

    /// A result without times.
    pub(crate) fn empty(&self) -> Timed {
        Timed { name: self.name.clone(), times: Times::default(), bytes: 0 }
    }

    /// Does it once: how long it took and how large the answer was.
    pub(crate) fn time(&self) -> io::Result<(Duration, usize)> {
        match &self.work {
            Work::Command(words) => {
                let began = Instant::now();
                let status = command(words).stdout(Stdio::null()).status()?;
                let took = began.elapsed();
                if status.success() { Ok((took, 0)) } else { Err(Error::other(status.to_string())) }
            }
            Work::Http { server, request, asks_before } => {
                if *asks_before {
                    http::ask(*server, request)?;
                }
                let began = Instant::now();
                let answer = http::ask(*server, request)?;
                Ok((began.elapsed(), answer.len()))
            }
        }
    }

    /// Does it once, untimed, and looks whether the answer is right.
    pub(crate) fn check(&self, crowd: &Crowd, sockets: Option<&Sockets>) -> io::Result<()> {
        let answer = match &self.work {
            Work::Command(words) => command(words).output()?.stdout,
            Work::Http { server, request, .. } => http::ask(*server, request)?,
        };
        let missing = match self.holds {
            Holds::Lines => lines_missing(&String::from_utf8_lossy(&answer), crowd),
            Holds::Rows => rows_missing(&serde_json::from_slice(&answer)?, crowd),
            Holds::Count(want) => want - rows(&serde_json::from_slice(&answer)?).len().min(want),
            Holds::Array => {
                let answer: Value = serde_json::from_slice(&answer)?;
                let count = answer.as_array().map_or(0, Vec::len);
                crowd.pids().len().saturating_sub(count)
            }
            Holds::Ports => sockets.map_or(0, |all| all.missing(&String::from_utf8_lossy(&answer))),
            Holds::Crowd => {
                let count = rows(&serde_json::from_slice(&answer)?).len();
                crowd.pids().len().saturating_sub(count)
            }
            Holds::Metrics => {
                let count = metrics_sum(&String::from_utf8_lossy(&answer));
                crowd.pids().len().saturating_sub(count as usize)
            }
        };
        if missing == 0 {
            Ok(())
        } else {
            Err(Error::other(format!("its answer lacks {missing} of the processes or sockets")))
        }
    }
}

/// `ps auwx`, the baseline, and every collector of ours that works here, with their servers.
pub(crate) fn ours(programs: &Path) -> (Vec<Case>, Vec<Server>) {
    let mut cases = vec![Case::runs("ps auwx", Holds::Lines)];
    let kumo = programs.join("kumo");
    for collector in COLLECTORS {
        let line = format!("{} ps -o {PS_COLUMNS} --collector {collector}", kumo.display());
        let name = format!("`kumo ps` without a node, `{collector}`");
        let case = Case { name, ..Case::runs(&line, Holds::Lines) };
        // A collector that does not work here is told of below.
        if case.time().is_ok() {
            cases.push(case);
        }
    }
    let mut servers = Vec::new();
    for (collector, server) in collectors(programs) {
        let mut add = |what: &str, path: &str, age_ms: u64, holds: Holds| {
            let name = format!("k2i `{collector}`, {what}");
            let request = Request::get(format!("{path}&max_age_ms={age_ms}"));
            let case = Case::asks(&name, &server, request, holds);
            // A shared answer is one that finds a generation fresh enough.
            cases.push(if age_ms > 0 { case.asks_again() } else { case });
        };
        add("full table, a new scan", FULL_PATH, 0, Holds::Rows);
        add("full table, shared scan", FULL_PATH, 1_000, Holds::Rows);
        add("top 20, a new scan", TOP_PATH, 0, Holds::Count(TOP_ROWS));
        servers.push(server);
    }
    (cases, servers)
}

/// A server for each collector that works here.
fn collectors(programs: &Path) -> Vec<(&'static str, Server)> {
    let start = |collector| match Server::k2i(&programs.join("k2i"), collector) {
        Ok(server) => Some((collector, server)),
        Err(error) => {
            eprintln!("bench-k2i: collector {collector} left out: {error}");
            None
        }
    };
    COLLECTORS.into_iter().filter_map(start).collect()
}

/// Who lists all sockets: programs that do, the baseline being the first, and every collector of ours.
pub(crate) fn socket_listers(programs: &Path) -> (Vec<Case>, Vec<Server>) {
    let mut cases = Vec::new();
    for line in SOCKET_LISTERS {
        let case = Case::runs(line, Holds::Ports);
        match case.time() {
            Ok(_) => cases.push(case),
            Err(error) => eprintln!("bench-k2i: {line} left out: {error}"),
        }
    }
    let mut servers = Vec::new();
    for (collector, server) in collectors(programs) {
        let request = Request::get(format!("{SOCKETS_PATH}&max_age_ms=0"));
        let name = format!("k2i `{collector}`, a new look");
        cases.push(Case::asks(&name, &server, request, Holds::Ports));
        servers.push(server);
    }
    (cases, servers)
}

/// Adds the peers that are installed to `cases`; their servers live as long as what is returned.
pub(crate) fn peers(cases: &mut Vec<Case>) -> Vec<Server> {
    let mut servers = Vec::new();
    let mut add = |name: &str, path: &str, holds: Holds, start: &dyn Fn(u16) -> Command| {
        let server = free_port().and_then(|port| Server::peer(&mut start(port), port, path));
        match server {
            Ok(server) => {
                cases.push(Case::asks(name, &server, Request::get(path), holds));
                servers.push(server);
            }
            Err(error) => eprintln!("bench-k2i: {name} left out: {error}"),
        }
    };
    // Only its process list, and no cache of any plugin: the least it can do for one reading.
    add("Glances, its API", "/api/3/processlist", Holds::Array, &|port| {
        let mut command = Command::new("glances");
        command.args(["--webserver", "--disable-webui", "--bind", "127.0.0.1", "--port"]);
        command.arg(port.to_string()).args(["--time", "0.01", "--cached-time", "0"]);
        command.args(["--disable-autodiscover", "--disable-check-update"]);
        command.args(["--disable-plugin", "all", "--enable-plugin", "processlist,processcount"]);
        command
    });
    let config = std::env::temp_dir().join(format!("bench-k2i-{}.yml", std::process::id()));
    let groups = "process_names:\n  - name: \"{{.Comm}}\"\n    cmdline: [\".+\"]\n";
    if let Err(error) = fs::write(&config, groups) {
        eprintln!("bench-k2i: process-exporter left out: {error}");
        return servers;
    }
    // Neither smaps nor threads: the least it can do for one scrape.
    add("process-exporter, a scrape", "/metrics", Holds::Metrics, &|port| {
        let mut command = Command::new("prometheus-process-exporter");
        command.arg("-config.path").arg(&config);
        command.args(["-gather-smaps=false", "-threads=false", "-web.listen-address"]);
        command.arg(format!("127.0.0.1:{port}"));
        command
    });
    // It read its file before it answered.
    let _ = fs::remove_file(&config);
    servers
}

/// Programs that look at all processes once a second by themselves.
pub(crate) fn watchers() -> Vec<(String, Command)> {
    let mut watchers = Vec::new();
    let mut top = Command::new("top");
    top.args(["-b", "-d", "1"]).env("TERM", "dumb");
    watchers.push(("`top -b -d 1`".to_owned(), top));
    let apps = ["/usr/libexec/netdata/plugins.d", "/usr/lib/netdata/plugins.d"];
    let apps = apps.map(|folder| Path::new(folder).join("apps.plugin"));
    if let Some(apps) = apps.iter().find(|path| path.exists()) {
        let mut command = Command::new(apps);
        command.arg("1");
        watchers.push(("netdata `apps.plugin 1`".to_owned(), command));
    }
    watchers
}

fn command(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    // A terminal's width must not cut what is thrown away.
    command.args(&words[1..]).stdin(Stdio::null()).stderr(Stdio::null()).env_remove("COLUMNS");
    command
}

fn lines_missing(text: &str, crowd: &Crowd) -> usize {
    let found: BTreeSet<&str> = text.lines().filter_map(|line| after_fields(line, 10)).collect();
    let lines = (0..crowd.pids().len()).map(|i| crowd_arguments(i).join(" "));
    lines.filter(|line| !found.contains(line.as_str())).count()
}

/// What stands behind the first `count` fields of a line, such as the command line of `ps auwx`.
fn after_fields(line: &str, count: usize) -> Option<&str> {
    let next = |rest: &'_ str| rest.find(char::is_whitespace).map(|end| end..rest.len());
    let skip = |rest| Some(str::trim_start(&rest[next(rest)?]));
    (0..count).try_fold(line.trim_start(), |rest, _| skip(rest)).map(str::trim_end)
}

pub(crate) fn rows(answer: &Value) -> &[Value] {
    answer["rows"].as_array().map_or(&[], Vec::as_slice)
}

fn rows_missing(answer: &Value, crowd: &Crowd) -> usize {
    let key = |row: &Value| (row["pid"].as_i64(), row["cmdline"].as_str().map(str::to_owned));
    let found: BTreeSet<_> = rows(answer).iter().map(key).collect();
    let wanted = crowd.pids().iter().enumerate();
    let wanted = wanted.map(|(i, pid)| (Some(i64::from(*pid)), Some(crowd_arguments(i).join(" "))));
    wanted.filter(|want| !found.contains(want)).count()
}

/// The processes of all groups of a process-exporter's answer.
fn metrics_sum(text: &str) -> f64 {
    let lines = text.lines().filter(|line| line.starts_with("namedprocess_namegroup_num_procs{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_follows_the_fields() {
        let line = "root   1  0.0 /sbin/init  splash  ";
        let cases = [(3, Some("/sbin/init  splash")), (5, Some("")), (9, None)];
        for (count, want) in cases {
            assert_eq!(after_fields(line, count), want, "for {count}");
        }
    }

    #[test]
    fn groups_of_metrics_add_up() {
        let text = "# HELP x\nnamedprocess_namegroup_num_procs{groupname=\"a b\"} 3\n\
                    namedprocess_namegroup_num_procs{groupname=\"c\"} 4\nother 5\n";
        assert!((metrics_sum(text) - 7.0).abs() < 1e-9);
    }
}
