//! What does not end: events, and changes of the table.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::support::{K2i, escaped};
use kumo_testbed::Zoo;
use serde_json::Value;

/// What any one step of a test may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer that goes on, read line by line.
struct Lines {
    head: Vec<String>,
    reader: BufReader<TcpStream>,
}

impl Lines {
    fn open(k2i: &K2i, target: &str, accept: &str) -> Lines {
        let mut stream = TcpStream::connect(("127.0.0.1", k2i.port())).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        // In this version a body is not cut into chunks: it ends with the connection.
        let request =
            format!("GET {target} HTTP/1.0\r\nAccept: {accept}\r\nAccept-Encoding: gzip\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut lines = Lines { head: Vec::new(), reader: BufReader::new(stream) };
        loop {
            match lines.line().expect("a head").as_str() {
                "" => return lines,
                line => lines.head.push(line.to_ascii_lowercase()),
            }
        }
    }

    /// The next line; `None` when the answer has ended.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).expect("it goes on in time");
        (read > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The next document that is `wanted`.
    fn find(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.line().expect("it goes on");
            if let Ok(document) = serde_json::from_str(&line)
                && wanted(&document)
            {
                return document;
            }
        }
    }
}

/// Whether the server takes events; without the right to it, it does not.
fn takes_events(k2i: &K2i) -> bool {
    let report = &k2i.json("/v2/host")["events"];
    let takes = !report["source"].is_null();
    assert!(takes || !rustix::process::geteuid().is_root(), "as root: {report}");
    takes
}

#[test]
fn events_are_told_in_lines_and_as_server_sent_events() {
    let k2i = K2i::spawn();
    if !takes_events(&k2i) {
        return eprintln!("skipped without the right to take events");
    }
    let filter =
        escaped("argv.exists(word, word == 'kumo-told') && (event == 'exec' || exit_code == 4)");
    let columns = "columns=pid,exit_code,cmdline";
    let target = format!("/v2/events?{columns}&filter={filter}");
    let mut lines = Lines::open(&k2i, &target, "*/*");
    let mut sse = Lines::open(&k2i, &target, "text/event-stream");
    // The first line says that nothing is missed from now on.
    assert_eq!((lines.line().as_deref(), sse.line().as_deref()), (Some(""), Some(":")));
    assert!(
        lines.head.contains(&"content-type: application/x-ndjson".to_owned()),
        "{:?}",
        lines.head
    );
    assert!(sse.head.contains(&"content-type: text/event-stream".to_owned()), "{:?}", sse.head);
    let mut child =
        Command::new("sh").args(["-c", "exit 4", "kumo-told"]).spawn().expect("a shell");
    child.wait().expect("our own child");
    Command::new("true").status().expect("one that nobody is told of");
    let exec = lines.find(|_| true);
    let keys: Vec<_> = exec.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["event", "pid", "exit_code", "cmdline"]);
    assert_eq!((&exec["event"], &exec["pid"]), (&"exec".into(), &child.id().into()));
    assert_eq!(
        (&exec["exit_code"], &exec["cmdline"]),
        (&Value::Null, &"sh -c exit 4 kumo-told".into())
    );
    let exit = lines.find(|_| true);
    assert_eq!((&exit["event"], &exit["exit_code"]), (&"exit".into(), &4.into()));
    let told: Vec<_> = (0..6).map(|_| sse.line().expect("it goes on")).collect();
    assert_eq!(
        (told[0].as_str(), told[1].as_str(), told[4].as_str()),
        ("", "event: exec", "event: exit")
    );
    let data = told[5].strip_prefix("data: ").expect("data");
    assert_eq!(serde_json::from_str::<Value>(data).expect("a document"), exit);
}

#[test]
fn a_stream_of_events_ends_with_the_server_and_bad_ones_do_not_begin() {
    let k2i = K2i::spawn();
    for bad in ["filter=cpu%20%3E%201.0", "columns=count()", "limit=3"] {
        k2i.get(&format!("/v2/events?{bad}")).expect(400);
    }
    k2i.get_with("/v2/events", &[("accept", "text/html")]).expect(406);
    for bad in ["interval_ms=99", "interval_ms=x", "columns=count()", "since=1"] {
        k2i.get(&format!("/v2/proc/stream?{bad}")).expect(400);
    }
    for bad in ["since=-1", "since=0&group=user", "ended=2"] {
        k2i.get(&format!("/v2/proc?{bad}")).expect(400);
    }
    let mut lines = Lines::open(&k2i, "/v2/proc/stream?columns=pid", "*/*");
    lines.find(|document| document["full"] == true);
    assert!(k2i.terminate().success(), "it does not wait for who listens for ever");
    while lines.line().is_some() {}
}

#[test]
fn a_server_without_events_says_why() {
    let k2i = K2i::with(&["--listen", "127.0.0.1:0", "--events", "off"]);
    for target in ["/v2/events", "/v2/proc?ended=1"] {
        let problem = k2i.get(target).expect(501).json();
        let detail = problem["detail"].as_str().expect("a text");
        assert!(detail.contains("events are switched off"), "{detail}");
    }
    assert_eq!(k2i.json("/v2/host")["events"]["source"], Value::Null);
}

#[test]
fn a_stream_of_the_table_tells_what_changes() {
    let k2i = K2i::spawn();
    let filter = escaped("cmdline == 'kumo-changes'");
    let target = format!("/v2/proc/stream?interval_ms=100&columns=pid,state,time&filter={filter}");
    let mut lines = Lines::open(&k2i, &target, "*/*");
    let full = lines.find(|_| true);
    assert_eq!((&full["full"], &full["rows"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(full["columns"], serde_json::json!(["id", "pid", "state", "time"]));
    let mut animal = Zoo::sleeper(&[b"kumo-changes"]);
    let new = lines.find(|delta| delta["rows"] != serde_json::json!([]));
    assert_eq!((&new["full"], &new["gone"]), (&false.into(), &serde_json::json!([])));
    let row = new["rows"][0].as_object().expect("a row");
    assert_eq!(row["pid"], animal.pid());
    assert_eq!(
        row.keys().collect::<Vec<_>>(),
        ["id", "pid", "state", "time"],
        "a new one is whole"
    );
    let id = row["id"].clone();
    let pid = rustix::process::Pid::from_raw(animal.pid()).expect("a number");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("it lives");
    let stopped = lines.find(|delta| delta["rows"][0]["state"] == "T");
    let keys = stopped["rows"][0].as_object().expect("a row");
    assert!(keys.contains_key("id") && !keys.contains_key("pid"), "only what changed: {stopped}");
    animal.kill();
    let gone = lines.find(|delta| delta["gone"] != serde_json::json!([]));
    assert_eq!((&gone["gone"], &gone["rows"]), (&serde_json::json!([id]), &serde_json::json!([])));
}

#[test]
fn since_a_generation_only_what_changed_is_answered() {
    let k2i = K2i::spawn();
    let filter = escaped("cmdline.startsWith('kumo-since')");
    let ask = |since: u64| {
        k2i.json(&format!("/v2/proc?since={since}&columns=pid,cmdline&sort=-pid&filter={filter}"))
    };
    let one = Zoo::sleeper(&[b"kumo-since-1"]);
    let first = ask(0);
    assert_eq!((&first["full"], first["rows"].as_array().map(Vec::len)), (&true.into(), Some(1)));
    let generation = |answer: &Value| answer["generation"].as_u64().expect("a number");
    let two = Zoo::sleeper(&[b"kumo-since-2"]);
    let second = ask(generation(&first));
    assert_eq!(second["full"], false);
    let rows = second["rows"].as_array().expect("rows");
    assert_eq!((rows.len(), &rows[0]["pid"]), (1, &two.pid().into()), "{second}");
    assert_eq!(second["order"].as_array().map(Vec::len), Some(2), "it is sorted, and that changed");
    let id = first["rows"][0]["id"].clone();
    drop(one);
    let third = ask(generation(&second));
    assert_eq!(
        (&third["gone"], &third["rows"]),
        (&serde_json::json!([id]), &serde_json::json!([]))
    );
    // From an older one, both changes at once.
    let again = ask(generation(&first));
    assert_eq!((&again["full"], &again["gone"]), (&false.into(), &serde_json::json!([id])));
    assert_eq!(again["rows"][0]["cmdline"], "kumo-since-2");
    let unknown = ask(1_000_000);
    assert_eq!(unknown["full"], true, "nobody had that");
}
