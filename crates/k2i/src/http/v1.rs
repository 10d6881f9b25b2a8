//! `/v1`: the routes of the original k2i (0.2.3 of 2018), for its clients.
//!
//! A row has the original's 84 keys, in its order and units, which are those of `proc_t` of procps.
//! Keys that it left at zero have real values here where they come with the others for free; the
//! rest stay as they were: faults since the last update, signal sets, supplementary groups and the
//! environment, which may hold secrets. Addresses inside the process, which the original gave, are
//! zero as well: they tell an attacker where to aim. Names are the original's too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Json, Router};
use kumo_abi::rights::Lines;
use kumo_abi::{TICK_NS, text_list_items};
use serde_json::json;
use utoipa::OpenApi;

use super::body::{Pieces, begin};
use super::guard::{Shown, Via};
use super::{Api, Refused, Turn};
use crate::collect::CollectorKind;
use crate::encode::write_text;
use crate::engine::Engine;
use crate::table::{Parts, Process, Table};

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/", get(root))
        .route("/v1", get(root))
        .route("/v1/hello", get(hello))
        .route("/v1/config", get(config))
        .route("/v1/proc", get(all))
        .route("/v1/proc/pid/{pid}", get(by_pid))
        .route("/v1/proc/{pid}", get(by_pid))
        .route("/v1/proc/cmd/{text}", get(by_cmd))
        .route("/v1/proc/self", get(own))
        .route("/v1/k2i", get(own))
}

#[derive(OpenApi)]
#[openapi(paths(root, hello, config, all, by_pid, own, by_cmd))]
pub(super) struct Paths;

type Reply = Result<Response, Refused>;

/// That there is such an API
#[utoipa::path(get, path = "/v1/", responses((status = 200, body = String, content_type = "text/plain")))]
async fn root() -> &'static str {
    "root response!"
}

/// That the server answers
#[utoipa::path(get, path = "/v1/hello", responses((status = 200, body = String, content_type = "text/plain")))]
async fn hello() -> &'static str {
    "hello!"
}

/// Where the server listens
#[utoipa::path(get, path = "/v1/config", responses((status = 200, body = Object)))]
async fn config(via: Option<Extension<Via>>) -> Json<serde_json::Value> {
    let (hostname, port) = match via {
        Some(Extension(Via::Tcp { local, .. })) => (local.ip().to_string(), local.port()),
        Some(Extension(Via::Unix | Via::Fabric)) | None => ("localhost".to_owned(), 0),
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Json(json!({ "hostname": hostname, "port": port, "threads": threads }))
}

/// The process table with the keys of the original k2i
#[utoipa::path(get, path = "/v1/proc", responses((status = 200, body = Vec<Object>)))]
async fn all(State(api): State<Arc<Api>>, Shown(lines): Shown) -> Reply {
    api.answer(move |engine, turn| {
        let table = read(engine, &turn)?;
        let every = (0..table.rows.len()).collect();
        Ok(respond(engine, turn, table, every, lines))
    })
    .await
}

/// One process with the keys of the original k2i
#[utoipa::path(
    get, path = "/v1/proc/{pid}",
    params(("pid" = i32, Path, description = "Process number", minimum = 1)),
    responses((status = 200, body = Vec<Object>)),
)]
async fn by_pid(
    State(api): State<Arc<Api>>,
    Shown(lines): Shown,
    pid: Result<Path<String>, PathRejection>,
) -> Reply {
    one(&api, super::parse_pid(pid)?, lines).await
}

/// The server itself, as a process
#[utoipa::path(get, path = "/v1/proc/self", responses((status = 200, body = Vec<Object>)))]
async fn own(State(api): State<Arc<Api>>, Shown(lines): Shown) -> Reply {
    one(&api, std::process::id() as i32, lines).await
}

async fn one(api: &Api, pid: i32, lines: Lines) -> Reply {
    api.answer(move |engine, turn| {
        let table = read(engine, &turn)?;
        let found = table.rows.binary_search_by_key(&pid, |row| row.pid);
        let index = found.map_err(|_| Refused::no_process(pid))?;
        Ok(respond(engine, turn, table, vec![index], lines))
    })
    .await
}

/// Processes whose name contains a text
#[utoipa::path(
    get, path = "/v1/proc/cmd/{text}",
    params(("text" = String, Path, description = "Part of a name")),
    responses((status = 200, body = Vec<Object>)),
)]
async fn by_cmd(
    State(api): State<Arc<Api>>,
    Shown(lines): Shown,
    text: Result<Path<String>, PathRejection>,
) -> Reply {
    let Path(text) = text.map_err(|error| Refused::bad_request(error.body_text()))?;
    api.answer(move |engine, turn| {
        let table = read(engine, &turn)?;
        let finder = memchr::memmem::Finder::new(text.as_bytes());
        let fits = |index: &usize| finder.find(table.rows[*index].comm.as_bytes()).is_some();
        let fitting = (0..table.rows.len()).filter(fits).collect();
        Ok(respond(engine, turn, table, fitting, lines))
    })
    .await
}

/// The table with what a row needs, and what comes for free with it.
fn read(engine: &Engine, turn: &Turn) -> Result<Arc<Table>, Refused> {
    let mut parts = Parts::STAT | Parts::MEMORY | Parts::STATUS | Parts::CMDLINE | Parts::CGROUP;
    let costly = engine
        .rungs()
        .iter()
        .any(|rung| rung.chosen && rung.collector == CollectorKind::Proc.name());
    if !costly {
        parts |= Parts::NAMESPACES;
    }
    Ok(engine.table(turn.age_max(Duration::ZERO), parts)?)
}

fn respond(
    engine: &Arc<Engine>,
    turn: Turn,
    table: Arc<Table>,
    picked: Vec<usize>,
    lines: Lines,
) -> Response {
    let names = Names { engine: Arc::clone(engine), users: HashMap::new(), groups: HashMap::new() };
    let page_bytes = rustix::param::page_size() as u64;
    let style = Style { page_bytes, lines };
    let rows = Rows { table, picked: picked.into_iter(), names, style, begun: false };
    let mut response = Response::new(begin(rows, turn.place));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// The picked rows of a table, written some at a time.
struct Rows {
    table: Arc<Table>,
    picked: std::vec::IntoIter<usize>,
    names: Names,
    style: Style,
    begun: bool,
}

/// What is the same for all rows of an answer.
#[derive(Clone, Copy)]
struct Style {
    page_bytes: u64,
    lines: Lines,
}

/// Rows in one piece: some tens of KiB.
const PIECE_ROWS: usize = 32;

impl Pieces for Rows {
    fn write_next(&mut self, out: &mut Vec<u8>) -> bool {
        for _ in 0..PIECE_ROWS {
            let Some(index) = self.picked.next() else {
                out.extend_from_slice(if self.begun { b"]" } else { b"[]" });
                return false;
            };
            out.push(if self.begun { b',' } else { b'[' });
            self.begun = true;
            let row = &self.table.rows[index];
            let percent = self.table.cpu_percent.as_ref().map_or(0.0, |percents| percents[index]);
            if row.cmdline_long {
                let mut whole = row.clone();
                self.names.engine.complete(&mut whole, Parts::CMDLINE);
                write_row(out, &whole, percent, self.style, &mut self.names);
            } else {
                write_row(out, row, percent, self.style, &mut self.names);
            }
        }
        true
    }
}

/// Names of users and groups, each looked up once an answer.
struct Names {
    engine: Arc<Engine>,
    users: HashMap<u32, Arc<str>>,
    groups: HashMap<u32, Arc<str>>,
}

/// Who knows the names of ids.
trait NameOf {
    fn user(&mut self, uid: u32) -> Arc<str>;
    fn group(&mut self, gid: u32) -> Arc<str>;
}

impl NameOf for Names {
    fn user(&mut self, uid: u32) -> Arc<str> {
        self.users.entry(uid).or_insert_with(|| self.engine.user_name(uid)).clone()
    }

    fn group(&mut self, gid: u32) -> Arc<str> {
        self.groups.entry(gid).or_insert_with(|| self.engine.group_name(gid)).clone()
    }
}

/// Bytes in a set of signals: 64 signals in 16 hexadecimal digits, and procps' room behind them.
const SIGNAL_SET_BYTES: usize = 18;

/// One row with the original's keys.
fn write_row(
    out: &mut Vec<u8>,
    row: &Process,
    cpu_percent: f32,
    style: Style,
    names: &mut impl NameOf,
) {
    let Style { page_bytes, lines } = style;
    let pages = |bytes: u64| bytes / page_bytes;
    let kib = |bytes: u64| bytes / 1024;
    let ticks = |ns: u64| ns / TICK_NS;
    let known = row.have.contains(Parts::STATUS);
    let mut keys = Keys { out, first: true };
    keys.int("tid", row.pid);
    keys.int("ppid", row.ppid);
    keys.int("maj_delta", 0);
    keys.int("min_delta", 0);
    keys.int("pcpu", cpu_percent.round() as u32);
    keys.int("state", row.state);
    keys.int("pad_1", 0);
    keys.int("pad_2", 0);
    keys.int("pad_3", 0);
    keys.int("utime", ticks(row.utime_ns));
    keys.int("stime", ticks(row.stime_ns));
    keys.int("cutime", ticks(row.cutime_ns));
    keys.int("cstime", ticks(row.cstime_ns));
    keys.int("start_time", ticks(row.start_ns));
    for set in ["signal", "blocked", "sigignore", "sigcatch", "_sigpnd"] {
        keys.ints(set, [0; SIGNAL_SET_BYTES]);
    }
    for address in ["start_code", "end_code", "start_stack", "kstk_esp", "kstk_eip"] {
        keys.int(address, 0);
    }
    keys.int("wchan", 0);
    keys.int("priority", row.priority);
    keys.int("nice", row.nice);
    keys.int("rss", pages(row.rss()));
    keys.int("alarm", 0);
    keys.int("size", pages(row.vsize));
    keys.int("resident", pages(row.rss()));
    keys.int("share", pages(row.memory.shared));
    keys.int("trs", pages(row.memory.text));
    keys.int("lrs", 0);
    keys.int("drs", pages(row.memory.data));
    keys.int("dt", 0);
    keys.int("vm_size", kib(row.vsize));
    keys.int("vm_lock", kib(row.locked));
    keys.int("vm_rss", kib(row.rss()));
    keys.int("vm_data", kib(row.memory.data.saturating_sub(row.stack)));
    keys.int("vm_stack", kib(row.stack));
    keys.int("vm_swap", kib(row.swap));
    keys.int("vm_exe", kib(row.memory.text));
    keys.int("vm_lib", 0);
    keys.int("rtprio", row.rtprio);
    keys.int("sched", row.policy);
    keys.int("vsize", row.vsize);
    keys.int("rss_rlim", row.rss_limit);
    keys.int("flags", row.flags);
    keys.int("min_flt", row.min_flt);
    keys.int("maj_flt", row.maj_flt);
    keys.int("cmin_flt", row.cmin_flt);
    keys.int("cmaj_flt", row.cmaj_flt);
    keys.text("environ", b"");
    keys.texts(
        "cmdline",
        row.cmdline.iter().flat_map(|line| text_list_items(line.shown(lines).argv())),
    );
    keys.texts("cgroup", row.cgroup.iter().flat_map(|text| cgroup_lines(text)));
    keys.text("supgid", b"");
    keys.text("supgrp", b"");
    let mut user = |id: u32| if known { names.user(id) } else { Arc::from("") };
    let users = [row.uid.effective, row.uid.real, row.uid.saved, row.uid.fs].map(&mut user);
    for (key, name) in ["euser", "ruser", "suser", "fuser"].into_iter().zip(users) {
        keys.text(key, name.as_bytes());
    }
    let mut group = |id: u32| if known { names.group(id) } else { Arc::from("") };
    let groups = [row.gid.real, row.gid.effective, row.gid.saved, row.gid.fs].map(&mut group);
    for (key, name) in ["rgroup", "egroup", "sgroup", "fgroup"].into_iter().zip(groups) {
        keys.text(key, name.as_bytes());
    }
    keys.text("cmd", row.comm.as_bytes());
    keys.int("pgrp", row.pgrp);
    keys.int("session", row.session);
    keys.int("nlwp", row.threads);
    keys.int("tgid", row.pid);
    keys.int("tty", row.tty_nr);
    keys.int("euid", row.uid.effective);
    keys.int("egid", row.gid.effective);
    keys.int("ruid", row.uid.real);
    keys.int("rgid", row.gid.real);
    keys.int("suid", row.uid.saved);
    keys.int("sgid", row.gid.saved);
    keys.int("fuid", row.uid.fs);
    keys.int("fgid", row.gid.fs);
    keys.int("tpgid", row.tpgid);
    keys.int("exit_signal", row.exit_signal);
    keys.int("processor", row.processor);
    let ns = &row.ns;
    keys.ints("ns", [ns.ipc, ns.mnt, ns.net, ns.pid, ns.user, ns.uts]);
    out.push(b'}');
}

/// The lines of `/proc/<pid>/cgroup`.
fn cgroup_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// An object under construction. Keys need no escapes.
struct Keys<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl Keys<'_> {
    fn key(&mut self, key: &str) {
        self.out.extend_from_slice(if self.first { b"{\"" } else { b",\"" });
        self.first = false;
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn int(&mut self, key: &str, number: impl itoa::Integer) {
        self.key(key);
        self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    fn ints<const N: usize>(&mut self, key: &str, numbers: [u32; N]) {
        self.key(key);
        for (index, number) in numbers.into_iter().enumerate() {
            self.out.push(if index == 0 { b'[' } else { b',' });
            self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        }
        self.out.push(b']');
    }

    fn text(&mut self, key: &str, text: &[u8]) {
        self.key(key);
        write_text(self.out, text);
    }

    fn texts<'t>(&mut self, key: &str, texts: impl Iterator<Item = &'t [u8]>) {
        self.key(key);
        self.out.push(b'[');
        for (index, text) in texts.enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            write_text(self.out, text);
        }
        self.out.push(b']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Comm, Ids, Memory, Namespaces};

    /// The keys of the original, in its order.
    const KEYS: &str = "tid ppid maj_delta min_delta pcpu state pad_1 pad_2 pad_3 utime stime cutime \
        cstime start_time signal blocked sigignore sigcatch _sigpnd start_code end_code start_stack \
        kstk_esp kstk_eip wchan priority nice rss alarm size resident share trs lrs drs dt vm_size \
        vm_lock vm_rss vm_data vm_stack vm_swap vm_exe vm_lib rtprio sched vsize rss_rlim flags \
        min_flt maj_flt cmin_flt cmaj_flt environ cmdline cgroup supgid supgrp euser ruser suser \
        fuser rgroup egroup sgroup fgroup cmd pgrp session nlwp tgid tty euid egid ruid rgid suid \
        sgid fuid fgid tpgid exit_signal processor ns";

    struct Numbers;
    impl NameOf for Numbers {
        fn user(&mut self, uid: u32) -> Arc<str> {
            format!("user{uid}").into()
        }
        fn group(&mut self, gid: u32) -> Arc<str> {
            format!("group{gid}").into()
        }
    }

    fn row(process: &Process) -> serde_json::Map<String, serde_json::Value> {
        let mut out = Vec::new();
        write_row(
            &mut out,
            process,
            12.6,
            Style { page_bytes: 4096, lines: Lines::Whole },
            &mut Numbers,
        );
        serde_json::from_slice(&out).expect("a JSON object")
    }

    #[test]
    fn the_keys_are_the_originals() {
        let row = row(&Process::default());
        let want: Vec<_> = KEYS.split_whitespace().collect();
        assert_eq!(want.len(), 84);
        assert_eq!(row.keys().map(String::as_str).collect::<Vec<_>>(), want);
        for set in ["signal", "blocked", "sigignore", "sigcatch", "_sigpnd"] {
            assert_eq!(row[set].as_array().map(Vec::len), Some(18), "for {set}");
        }
        assert_eq!(row["euser"], "", "ids that are not known have no name");
    }

    #[test]
    fn units_are_the_originals() {
        let process = Process {
            have: Parts::STAT | Parts::MEMORY | Parts::STATUS,
            pid: 7,
            state: b'S',
            utime_ns: 1_239_999_999,
            start_ns: 55_000_000_000,
            vsize: 8_192_000,
            rss_limit: u64::MAX,
            memory: Memory { anon: 8192, shared: 4096, text: 12_288, data: 40_960 },
            stack: 8192,
            uid: Ids { real: 1, effective: 2, saved: 3, fs: 4 },
            gid: Ids { real: 5, effective: 6, saved: 7, fs: 8 },
            ns: Namespaces {
                ipc: 1,
                mnt: 2,
                net: 3,
                pid: 4,
                user: 5,
                uts: 6,
                ..Default::default()
            },
            comm: Comm::new(b"\"><script>\xff"),
            cmdline: Some(crate::table::CommandLine::new(b"sh\0\0-c\0")),
            cgroup: Some(Arc::from(&b"1:name=systemd:/a\n0::/b\n"[..])),
            ..Process::default()
        };
        let row = row(&process);
        let want = serde_json::json!({
            "tid": 7, "tgid": 7, "pcpu": 13, "state": 83, "utime": 123, "start_time": 5500,
            "rss": 3, "size": 2000, "share": 1, "trs": 3, "drs": 10, "vm_size": 8000, "vm_rss": 12,
            "vm_data": 32, "vm_stack": 8, "rss_rlim": u64::MAX, "euser": "user2", "ruser": "user1",
            "rgroup": "group5", "egroup": "group6", "ruid": 1, "euid": 2, "fgid": 8,
            "ns": [1, 2, 3, 4, 5, 6], "cmd": "\"><script>\u{fffd}", "cmdline": ["sh", "", "-c"],
            "cgroup": ["1:name=systemd:/a", "0::/b"],
        });
        for (key, want) in want.as_object().expect("an object") {
            assert_eq!(&row[key], want, "for {key}");
        }
    }
}
