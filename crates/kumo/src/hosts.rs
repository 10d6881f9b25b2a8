//! `kumo hosts`: every host of the cluster and what is known of its life.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use kumo_abi::HostId;
use kumo_abi::cluster::{HostInfo, HostState, Role};
use serde::Deserialize;
use serde_json::Value;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::grid::{self, Cell};
use crate::json;
use crate::many::Cluster;
use crate::output::{Look, Output};
use crate::scope::{HostChoice, HostRule};
use crate::source::{Ask, NodeArgs, Sink, Source, SourceError};
use crate::text;
use crate::units::{self, SizeStyle};

/// Times are shown in seconds, so the screen is written again after one.
const REDRAW_TIME: Duration = Duration::from_secs(1);

/// After the stream of events has broken, it is asked for again after so long: a node restarts in
/// less, and one that is gone is not pressed.
const RETRY_TIME: Duration = Duration::from_secs(1);

/// Longest line of the stream of events; real ones have some hundred bytes.
const EVENT_BYTES_MAX: usize = 64 * 1024;

/// Events that wait for the screen. Who sends more waits, and none is lost.
const EVENTS_MAX: usize = 256;

/// So many hosts are named in a warning; a page of names helps nobody.
const NAMED_MAX: usize = 5;

/// List the hosts of the cluster: who lives, since when, and what each is
#[derive(Clone, Debug, clap::Args)]
pub struct Hosts {
    /// Print it as one JSON object; with --watch each change as one on a line of its own
    #[arg(long)]
    json: bool,
    /// Show every change as it happens: on a terminal in place, into a pipe a line for each
    #[arg(short, long)]
    watch: bool,
    /// End with status 3 if any of them is not alive
    #[arg(long, conflicts_with = "watch")]
    check: bool,
    /// Print no line of headings
    #[arg(long)]
    no_header: bool,
    /// Which hosts.
    #[command(flatten)]
    choice: HostChoice,
    /// Which node.
    #[command(flatten)]
    pub at: NodeArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo hosts
  kumo hosts --dc osaka
  kumo hosts --where 'state != \"alive\"'
  kumo hosts --where '\"rack=3\" in labels && cpus >= 8' --json | jq -r '.hosts[].host'
  kumo hosts --watch                       every change as it happens
  kumo hosts --check || echo somebody is missing

A host is alive, dead (its data centre can be reached, and it cannot), cut-off (nothing can be known of
it, as its data centre cannot be reached) or left (its node said that it stops). Exit status: 0 listed,
1 failed or none listed, 2 wrong usage, 3 with --check: some are not alive.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Hosts, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let rule = args.choice.rule()?;
    if args.watch {
        return watch(args, source, out);
    }
    let mut cluster = Cluster::ask(source)?;
    let undecided: Vec<String> = cluster
        .hosts
        .iter()
        .filter(|host| rule.decide(host).is_none())
        .map(|host| host.id.to_string())
        .collect();
    cluster.hosts.retain(|host| rule.means(host));
    if args.json {
        out.line(json::pretty(&cluster)?)?;
    } else {
        for line in lines(&cluster.hosts, !args.no_header, out) {
            out.line(line)?;
        }
    }
    cluster.tell_unreached(out);
    if !undecided.is_empty() {
        let (count, named) =
            (undecided.len(), undecided[..undecided.len().min(NAMED_MAX)].join(", "));
        let more = if count > NAMED_MAX { ", …" } else { "" };
        out.warn(format_args!(
            "of {count} more the card is not known (yet), so the condition cannot be decided: {named}{more}"
        ));
    }
    let is_alive = |host: &HostInfo| host.state == HostState::Alive;
    Ok(match undecided.is_empty() && cluster.hosts.iter().all(is_alive) {
        _ if cluster.hosts.is_empty() => {
            out.warn(format_args!("there is no such host ({})", args.choice.title()));
            Exit::Failed
        }
        false if args.check => Exit::Partial,
        _ => Exit::Done,
    })
}

/// How a state looks.
pub fn look(state: HostState) -> Look {
    match state {
        HostState::Alive => Look::Good,
        HostState::Dead => Look::Bad,
        HostState::CutOff => Look::Warn,
        HostState::Left => Look::Dim,
    }
}

/// The hosts as lines that fit the terminal.
fn lines(hosts: &[HostInfo], has_headings: bool, out: &Output) -> Vec<String> {
    const HEADINGS: [&str; 10] =
        ["DC", "HOST", "ROLE", "STATE", "FOR", "VERSION", "KERNEL", "CPUS", "MEM", "LABELS"];
    let mut rows = Vec::with_capacity(hosts.len() + 1);
    if has_headings {
        rows.push(grid::headings(&HEADINGS));
    }
    rows.extend(hosts.iter().map(cells));
    grid::lines(rows, out.size().map(|(columns, _)| columns), out)
}

fn cells(host: &HostInfo) -> Vec<Cell> {
    let mut cells = vec![Cell::new(host.id.dc.as_str()), Cell::new(host.id.host.as_str())];
    let card = host.card.as_ref();
    cells.push(match card.map(|card| card.role) {
        Some(role @ Role::Gateway) => Cell::new(role.name()),
        Some(role @ Role::Member) => Cell::new(role.name()).look(Look::Dim),
        None => Cell::unknown(),
    });
    cells.push(Cell::new(host.state.name()).look(look(host.state)));
    cells.push(Cell::new(units::span(host.state_ms as f64 / 1e3)).right());
    let Some(card) = card else {
        cells.extend([Cell::unknown(), Cell::unknown(), Cell::unknown().right()]);
        cells.extend([Cell::unknown().right(), Cell::unknown()]);
        return cells;
    };
    cells.push(Cell::new(&card.version));
    cells.push(Cell::new(&card.kernel));
    cells.push(Cell::new(card.cpus.to_string()).right());
    cells.push(Cell::new(units::size(card.memory, SizeStyle::Human)).right());
    let labels: Vec<String> =
        card.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    cells.push(Cell::new(labels.join(",")));
    cells
}

/// What the thread that reads events says.
enum News {
    /// A change, as the node wrote it.
    Event(Vec<u8>),
    /// The stream is there, or there again: what was missed is not told.
    Open,
    /// It is not there.
    Lost(SourceError),
}

/// Shows the hosts until the user ends it.
fn watch(args: &Hosts, source: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let rule = args.choice.rule()?;
    let (send, news) = sync_channel(EVENTS_MAX);
    // A wrong node is told before anything is shown.
    let mut cluster = Cluster::ask(source)?;
    let another = source.another()?.ok_or_else(|| source.foreign("it has no other hosts"))?;
    thread::Builder::new()
        .name("hosts-events".to_owned())
        .spawn(move || follow(&another, &send))?;
    let mut trouble: Option<String> = None;
    loop {
        if let Some((width, height)) = out.size().filter(|_| !args.json) {
            match Cluster::ask(source) {
                Ok(now) => cluster = now,
                Err(error) => trouble = Some(crate::chain(&error)),
            }
            let shown: Vec<HostInfo> =
                cluster.hosts.iter().filter(|host| rule.means(host)).cloned().collect();
            let title = title(&cluster, trouble.as_deref(), width, out);
            let mut frame = vec![title];
            frame.extend(lines(&shown, !args.no_header, out));
            draw(&frame, height, out)?;
        }
        let first = match news.recv_timeout(REDRAW_TIME) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                let what = "the thread that reads events has ended";
                return Err(CommandError::Output(io::Error::other(what)));
            }
        };
        let news: Vec<News> = first.into_iter().chain(news.try_iter().take(EVENTS_MAX)).collect();
        let has_event = news.iter().any(|one| matches!(one, News::Event(_)));
        if has_event && args.choice.condition.is_some() && (args.json || !out.is_terminal()) {
            // An event tells no card. Without an answer the last one must do.
            cluster = Cluster::ask(source).unwrap_or(cluster);
        }
        for one in news {
            match one {
                News::Open => trouble = None,
                News::Lost(error) => {
                    let said = crate::chain(&error);
                    if !out.is_terminal() || args.json {
                        out.warn(&said);
                    }
                    trouble = Some(said);
                }
                News::Event(_) if out.is_terminal() && !args.json => {}
                News::Event(event) => event_line(args, &rule, &cluster, &event, out)?,
            }
        }
        out.flush()?;
    }
}

/// Whether a change is of a host that is meant, or may be: who watches would rather see one too many.
fn is_shown(rule: &HostRule<'_>, hosts: &[HostInfo], event: &Value) -> bool {
    #[derive(Deserialize)]
    struct Change {
        #[serde(flatten)]
        id: HostId,
        state: HostState,
    }
    let Ok(Change { id, state }) = serde_json::from_value(event.clone()) else { return true };
    // As it was when it changed.
    let known = hosts.iter().find(|host| host.id == id);
    let (state_ms, incarnation) = (0, known.and_then(|host| host.incarnation));
    let card = known.and_then(|host| host.card.clone());
    rule.decide(&HostInfo { id, state, state_ms, incarnation, card }) != Some(false)
}

/// Writes a change as one line.
fn event_line(
    args: &Hosts,
    rule: &HostRule<'_>,
    cluster: &Cluster,
    event: &[u8],
    out: &mut Output,
) -> Result<(), CommandError> {
    let Ok(event) = serde_json::from_slice::<Value>(event) else {
        out.warn("an event of the node cannot be read; is it of another version?");
        return Ok(());
    };
    let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or("?");
    if !is_shown(rule, &cluster.hosts, &event) {
        return Ok(());
    }
    if args.json {
        return Ok(out.line(json::line(&event)?)?);
    }
    let now = crate::ps::local_now();
    let clock = format!("{:02}:{:02}:{:02}", now.hour, now.minute, now.second);
    let (dc, host, state, role) = (text("dc"), text("host"), text("state"), text("role"));
    let line = format!("{clock} {dc}/{host} {state} {role}");
    Ok(out.line(text::visible(line.trim_end_matches(" ?")))?)
}

/// Reads events for ever, one after the other.
fn follow(source: &Source, send: &SyncSender<News>) {
    let ask = Ask {
        accept: "application/x-ndjson",
        // For hours nothing may happen.
        silence_max: None,
        ..Ask::get("/v2/hosts/events".to_owned())
    };
    loop {
        if send.send(News::Open).is_err() {
            return;
        }
        let mut events = Events { rest: Vec::new(), send };
        let lost = match source.fetch(&ask, &mut events) {
            Ok(()) => source.foreign("its events have ended"),
            Err(error) => error,
        };
        if send.send(News::Lost(lost)).is_err() {
            return;
        }
        thread::sleep(RETRY_TIME);
    }
}

/// Cuts the stream into events.
struct Events<'a> {
    rest: Vec<u8>,
    send: &'a SyncSender<News>,
}

impl Sink for Events<'_> {
    fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.rest.extend_from_slice(piece);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            if !line.trim_ascii().is_empty() {
                self.send.send(News::Event(line)).map_err(gone)?;
            }
        }
        if self.rest.len() > EVENT_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an event without an end"));
        }
        Ok(())
    }
}

fn title(cluster: &Cluster, trouble: Option<&str>, width: usize, out: &Output) -> String {
    let alive = cluster.hosts.iter().filter(|host| host.state == HostState::Alive).count();
    let now = crate::ps::local_now();
    let clock = format!("{:02}:{:02}:{:02}", now.hour, now.minute, now.second);
    let name = cluster.cluster.as_deref().unwrap_or("no cluster");
    let all = cluster.hosts.len();
    let (line, look) = match trouble {
        None => (format!("{clock}  {name}  {alive} of {all} alive  Ctrl-C ends"), Look::Dim),
        Some(trouble) => (format!("{clock}  {name}  no news: {trouble}"), Look::Bad),
    };
    out.styled(look, &text::visible_within(&line, width))
}

/// Writes over what stands on the terminal: home, then each line and the end of it, so that nothing
/// flickers.
fn draw(lines: &[String], height: usize, out: &mut Output) -> io::Result<()> {
    out.raw("\x1b[H")?;
    for line in lines.iter().take(height.saturating_sub(1)) {
        out.raw(line)?;
        out.raw("\x1b[K\n")?;
    }
    out.raw("\x1b[J")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ColorChoice;
    use serde_json::json;

    #[test]
    fn hosts_line_up_and_hostile_cards_reach_no_terminal() {
        let hosts: Vec<HostInfo> = serde_json::from_value(json!([
            {"dc": "osaka", "host": "x", "state": "cut-off", "state_ms": 3_500, "incarnation": 1,
             "card": {"role": "gateway", "version": "0.1.0", "kernel": "6.1.0\u{1b}[31m",
                      "architecture": "x86_64", "cpus": 64, "memory": 68_719_476_736_u64,
                      "addresses": ["10.0.0.1:7081"], "labels": {"rack": "3", "disk": "\n"}}},
            {"dc": "tokyo", "host": "web-1", "state": "dead", "state_ms": 7_200_000,
             "incarnation": null, "card": null},
        ]))
        .expect("hosts");
        let out = Output::stdout(ColorChoice::Never);
        let want = [
            "DC     HOST   ROLE     STATE          FOR  VERSION  KERNEL            CPUS    MEM  LABELS",
            "osaka  x      gateway  cut-off        3 s  0.1.0    6.1.0\\x1b[31m    64  64.0G  disk=\\n,rack=3",
            "tokyo  web-1  -        dead     2 h 0 min  -        -                    -      -  -",
        ];
        let got = lines(&hosts, true, &out);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        for (got, want) in got.iter().zip(want) {
            assert_eq!(words(got), words(want));
        }
        let starts: Vec<Option<usize>> = got
            .iter()
            .map(|line| line.find("STATE").or(line.find("cut-off")).or(line.find("dead")))
            .collect();
        assert!(starts.iter().all(|start| *start == starts[0]), "{got:#?}");
    }

    #[test]
    fn changes_of_hosts_that_are_meant_are_shown() {
        let card = |cpus: u32| {
            json!({"role": "member", "version": "", "kernel": "", "architecture": "", "cpus": cpus,
                   "memory": 1, "addresses": [], "labels": {}})
        };
        let host = |name: &str, card: Value| {
            json!({"dc": "tokyo", "host": name, "state": "alive", "state_ms": 0,
                   "incarnation": null, "card": card})
        };
        let hosts =
            json!([host("big", card(64)), host("small", card(2)), host("new", Value::Null)]);
        let hosts: Vec<HostInfo> = serde_json::from_value(hosts).expect("hosts");
        let choice = |dcs: &[&str], condition: Option<&str>| HostChoice {
            all: false,
            dcs: dcs.iter().map(|dc| dc.parse().expect("a name")).collect(),
            condition: condition.map(str::to_owned),
        };
        let cases = [
            (choice(&[], None), "big small new gone"),
            (choice(&["osaka"], None), ""),
            (choice(&[], Some("cpus > 8")), "big new gone"),
            (choice(&["osaka"], Some("cpus > 8")), ""),
            (choice(&[], Some("host == 'small' && state == 'dead'")), "small"),
            (choice(&[], Some("state == 'alive'")), ""),
        ];
        for (choice, want) in cases {
            let rule = choice.rule().expect("a good condition");
            let dead = |name: &&str| {
                let event = json!({"dc": "tokyo", "host": name, "state": "dead", "role": "member"});
                is_shown(&rule, &hosts, &event)
            };
            let shown: Vec<&str> =
                ["big", "small", "new", "gone"].into_iter().filter(dead).collect();
            assert_eq!(shown.join(" "), want, "for {choice:?}");
        }
    }

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let text = b"{\"dc\":\"t\"}\n\n{\"dc\":\"o\"}\n";
        for size in 1..text.len() {
            let (send, news) = sync_channel(16);
            let mut events = Events { rest: Vec::new(), send: &send };
            for piece in text.chunks(size) {
                events.take(piece).expect("there is room");
            }
            drop(events);
            drop(send);
            let seen: Vec<String> = news
                .iter()
                .map(|one| match one {
                    News::Event(event) => String::from_utf8_lossy(&event).into_owned(),
                    News::Open | News::Lost(_) => "?".to_owned(),
                })
                .collect();
            assert_eq!(seen, ["{\"dc\":\"t\"}\n", "{\"dc\":\"o\"}\n"], "in pieces of {size}");
        }
        let (send, _news) = sync_channel(16);
        let mut events = Events { rest: Vec::new(), send: &send };
        assert!(events.take(&vec![b'x'; EVENT_BYTES_MAX + 1]).is_err(), "a line without an end");
    }
}
