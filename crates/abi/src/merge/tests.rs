use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::proc::{COLUMNS_DEFAULT, PROC};
use crate::query::Aggregate;
use crate::relation::OPEN_SOCKETS;
use crate::value::Value;

/// A process of the model. What a query of these tests can read.
#[derive(Clone, Debug)]
struct Process {
    dc: &'static str,
    host: String,
    pid: i64,
    user: Option<&'static str>,
    cpu: Option<f64>,
    rss: Option<i64>,
}

impl Process {
    fn value(&self, index: usize) -> Value<'_> {
        match PROC.columns[index].name {
            "dc" => Value::text(self.dc),
            "host" => Value::text(&self.host),
            "pid" => Value::Int(self.pid),
            "user" => self.user.map_or(Value::Null, Value::text),
            "cpu" => self.cpu.map_or(Value::Null, Value::Float),
            "rss" => self.rss.map_or(Value::Null, Value::Int),
            name => panic!("the model has no {name}"),
        }
    }
}

fn row_of(names: &[String], values: &[Value<'_>]) -> Vec<u8> {
    let mut out = vec![b'{'];
    for (index, (name, value)) in names.iter().zip(values).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        row::write(&mut out, &Value::text(name));
        out.push(b':');
        row::write(&mut out, value);
    }
    out.extend_from_slice(b"}\n");
    out
}

/// The query over `processes`, in the plainest way: what one host answers, and what all would if they
/// were one. Groups stand in the order of their keys.
fn evaluate(text: &QueryText, processes: &[Process]) -> Vec<u8> {
    let query = Query::parse(text, &PROC, COLUMNS_DEFAULT).expect("a good query");
    let names: Vec<String> = query.columns.iter().map(|select| select.name(&PROC)).collect();
    let limit = query.limit.map_or(usize::MAX, |limit| limit as usize);
    let mut sorted: Vec<&Process> = processes.iter().collect();
    sorted.sort_by_key(|p| (p.dc, p.host.clone(), p.pid));
    if !query.is_grouped() {
        sorted.sort_by(|a, b| {
            let orders = query.sort.iter().map(|key| {
                let Select::Column(index) = key.select else { panic!("a plain query") };
                let order = a.value(index).order(&b.value(index));
                if key.descending { order.reverse() } else { order }
            });
            orders.into_iter().find(|o| o.is_ne()).unwrap_or(std::cmp::Ordering::Equal)
        });
        let row = |p: &&Process| {
            let value = |select: &Select| match select {
                Select::Column(index) => p.value(*index),
                Select::Aggregate(_) => panic!("a plain query"),
            };
            row_of(&names, &query.columns.iter().map(value).collect::<Vec<_>>())
        };
        return sorted.iter().take(limit).flat_map(row).collect();
    }
    let mut groups: BTreeMap<Vec<String>, Vec<&Process>> = BTreeMap::new();
    if query.group.is_empty() {
        groups.insert(Vec::new(), Vec::new());
    }
    for process in sorted {
        // A blank sorts null before any text of these tests.
        let key = |index: &usize| match process.value(*index) {
            Value::Null => String::new(),
            Value::Text(text) => String::from_utf8_lossy(&text).into_owned(),
            other => panic!("no key of these tests: {other:?}"),
        };
        groups.entry(query.group.iter().map(key).collect()).or_default().push(process);
    }
    let mut rows: Vec<Vec<Value<'_>>> = Vec::new();
    for members in groups.values() {
        let cell = |select: &Select| match select {
            Select::Column(index) => members[0].value(*index),
            Select::Aggregate(Aggregate::Count) => Value::Int(members.len() as i64),
            Select::Aggregate(Aggregate::Sum(index)) if PROC.columns[*index].name == "cpu" => {
                Value::Float(members.iter().filter_map(|p| p.cpu).sum::<f64>() + 0.0)
            }
            Select::Aggregate(Aggregate::Sum(_)) => {
                Value::Int(members.iter().filter_map(|p| p.rss).sum())
            }
            Select::Aggregate(Aggregate::Max(index)) => {
                let values = members.iter().map(|p| p.value(*index));
                values.max_by(Value::order).unwrap_or(Value::Null)
            }
        };
        rows.push(query.columns.iter().map(cell).collect());
    }
    rows.sort_by(|a, b| {
        let orders = query.sort.iter().map(|key| {
            let place = query.columns.iter().position(|s| *s == key.select).expect("selected");
            let order = a[place].order(&b[place]);
            if key.descending { order.reverse() } else { order }
        });
        orders.into_iter().find(|o| o.is_ne()).unwrap_or(std::cmp::Ordering::Equal)
    });
    rows.iter().take(limit).flat_map(|row| row_of(&names, row)).collect()
}

fn answered(dc: &str, host: &str, processes: u64) -> Answered {
    Answered {
        dc: dc.parse().expect("a name"),
        host: host.parse().expect("a name"),
        boot_id: "boot".to_owned(),
        collector: "proc".to_owned(),
        generation: 1,
        as_of: "2026-01-01T00:00:00.000000Z".to_owned(),
        processes,
        matched: processes,
        lost: 0,
        unseen: None,
    }
}

fn parts(plan: &Plan, processes: &[Process]) -> Vec<Vec<u8>> {
    let mut hosts: BTreeMap<(&str, &str), Vec<Process>> = BTreeMap::new();
    for process in processes {
        hosts.entry((process.dc, &process.host)).or_default().push(process.clone());
    }
    let part = |((dc, host), own): ((&str, &str), Vec<Process>)| {
        let rows = evaluate(plan.for_hosts(), &own);
        plan.part(answered(dc, host, own.len() as u64), &rows)
    };
    hosts.into_iter().map(part).collect()
}

/// Merges parts in some tree: picks decide what is merged with what, and when.
fn in_some_order(plan: &Plan, mut parts: Vec<Vec<u8>>, picks: &[(Index, usize)]) -> Vec<Vec<u8>> {
    // Gateways know what hosts are asked, not what the asker was.
    let gateway = Plan::new(plan.for_hosts()).expect("a plan of a plan");
    for (pick, count) in picks {
        if parts.is_empty() {
            break;
        }
        let some: Vec<_> = (0..*count.min(&parts.len())).map(|_| pick.index(parts.len())).collect();
        let mut merged = Vec::new();
        for at in some {
            if at < parts.len() {
                merged.push(parts.swap_remove(at));
            }
        }
        parts.push(gateway.merge(&merged));
    }
    parts
}

fn text(columns: &str, sort: &str, limit: &str, group: &str) -> QueryText {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    QueryText {
        columns: some(columns),
        filter: None,
        sort: some(sort),
        limit: some(limit),
        group: some(group),
        ended: false,
        at: None,
    }
}

fn shown(rows: &[u8]) -> String {
    String::from_utf8(rows.to_vec()).expect("UTF-8")
}

fn processes() -> impl Strategy<Value = Vec<Process>> {
    let process = (
        select(vec!["osaka", "tokyo"]),
        select(vec!["a", "b", "c", "web-1.rack2"]),
        prop::option::of(select(vec!["root", "www", "é\"\\,\"cpu\":1", "\u{1}"])),
        // Quarters, so that sums are exact in any order.
        prop::option::of((0..9_i32).prop_map(|quarters| f64::from(quarters) / 4.0)),
        prop::option::of(-3..3_i64),
    );
    prop::collection::vec(process, 0..40).prop_map(|all| {
        all.into_iter()
            .enumerate()
            .map(|(pid, (dc, host, user, cpu, rss))| Process {
                dc,
                host: host.to_owned(),
                pid: pid as i64 + 1,
                user,
                cpu,
                rss,
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn any_split_gives_the_answer_of_the_union(
        processes in processes(),
        query in select(vec![
            ("dc,host,pid,user", "", ""),
            ("dc,host,pid,user", "-cpu", ""),
            ("dc,host,user", "user,-rss,cpu", ""),
            ("dc,host,cpu,pid", "-cpu,pid", ""),
            ("dc,host,pid", "host,-dc", ""),
            ("count(),sum(rss),max(rss)", "", ""),
            ("user,count(),sum(cpu),max(cpu)", "-count()", "user"),
            ("count(),sum(cpu)", "-sum(cpu)", "user,dc"),
            ("", "", "dc"),
            ("", "-count(),user", "user,host"),
        ]),
        limit in select(vec!["", "1", "3", "20"]),
        picks in prop::collection::vec((any::<Index>(), 0..5_usize), 0..8),
    ) {
        let (columns, sort, group) = query;
        let text = text(columns, sort, limit, group);
        let plan = Plan::new(&text).expect("a good query");
        let whole = parts(&plan, &processes);
        let hosts = whole.len();
        let finished = plan.finish(&in_some_order(&plan, whole, &picks));
        prop_assert_eq!(finished.spoiled, []);
        prop_assert_eq!(finished.hosts.len(), hosts);
        prop_assert!(finished.hosts.is_sorted_by_key(|h| (h.dc.clone(), h.host.clone())));
        let counted: u64 = finished.hosts.iter().map(|host| host.processes).sum();
        prop_assert_eq!(counted, processes.len() as u64);
        // Of no host at all there is no group either, and of one host without processes there is.
        if hosts > 0 {
            prop_assert_eq!(shown(&finished.rows), shown(&evaluate(&text, &processes)));
        }
    }

    #[test]
    fn no_part_makes_it_panic(
        cut in any::<Index>(),
        byte in any::<Index>(),
        new: u8,
        query in select(vec![
            ("pid,user", "", ""), ("pid", "-user,cpu", ""), ("", "", "user,host"),
        ]),
    ) {
        let (columns, sort, group) = query;
        let plan = Plan::new(&text(columns, sort, "", group)).expect("a good query");
        let process = |host: &str, pid| Process {
            dc: "tokyo", host: host.to_owned(), pid, user: Some("www"), cpu: Some(0.5), rss: None,
        };
        let all = [process("a", 1), process("b", 2), process("b", 3)];
        let good = parts(&plan, &all);
        let mut cut_short = good[1].clone();
        cut_short.truncate(cut.index(cut_short.len()));
        let mut changed = good[1].clone();
        let at = byte.index(changed.len());
        changed[at] = new;
        let only_a = plan.finish(&good[..1]);
        for bad in [cut_short, changed] {
            let finished = plan.finish(&[good[0].clone(), bad.clone()]);
            let whole = finished.hosts.len() == 2;
            prop_assert!(whole || !finished.spoiled.is_empty());
            if whole {
                for line in part::lines(&finished.rows) {
                    serde_json::from_slice::<serde_json::Value>(line)?;
                }
            } else {
                prop_assert_eq!(finished.hosts, only_a.hosts.clone());
                prop_assert_eq!(finished.rows, only_a.rows.clone());
            }
        }
    }
}

#[test]
fn what_hosts_are_asked() {
    let cases = [
        (text("pid,host,cpu", "-rss,pid", "5", ""), "dc,host,pid,cpu,rss", Some("-rss,pid")),
        (text("dc,host", "", "5", ""), "dc,host", None),
        (text("count()", "-count()", "5", "user,dc"), "count(),user,dc", None),
        (text("sum(rss)", "", "", ""), "sum(rss)", None),
    ];
    for (text, columns, sort) in cases {
        let plan = Plan::new(&text).expect("a good query");
        let asked = plan.for_hosts().clone();
        assert_eq!(asked.columns.as_deref(), Some(columns));
        assert_eq!(asked.sort.as_deref(), sort, "for {text:?}");
        let limit = text.limit.filter(|_| !plan.is_grouped());
        assert_eq!(asked.limit, limit, "a limit of groups is for the asker");
        let again = Plan::new(&asked).expect("a plan of a plan");
        assert_eq!(*again.for_hosts(), asked, "gateways merge what hosts were asked");
    }
    let plan = Plan::new(&text("+exe", "-rss", "", "")).expect("a good query");
    assert_eq!(plan.columns().join(","), format!("dc,host,{COLUMNS_DEFAULT},exe"));
    assert!(!plan.streams() && Plan::new(&QueryText::default()).expect("all").streams());
}

#[test]
fn a_bad_part_is_named_and_costs_nobody_else() {
    let plan = Plan::new(&text("pid", "", "", "")).expect("a good query");
    let rows = |host: &str| format!("{{\"dc\":\"tokyo\",\"host\":\"{host}\",\"pid\":1}}\n");
    let part = |host: &str, rows: &str| plan.part(answered("tokyo", host, 1), rows.as_bytes());
    let good = part("a", &rows("a"));
    let newer = shown(&part("b", &rows("b"))).replace("\"version\":1", "\"version\":2");
    let stranger = shown(&part("b", &rows("b"))).replace("\"matched\":1", "\"matched\":1,\"x\":1");
    let cases = [
        (newer.into_bytes(), "form 2, and this node reads form 1"),
        (stranger.into_bytes(), "unknown field `x`"),
        (part("b", &rows("a")), "do not begin with its names"),
        (part("b", "{\"dc\":\"tokyo\",\"host\":\"b\",\"pid\":1}"), "cut"),
        (part("b", "{\"dc\":\"tokyo\",\"host\":\"b\",\"pid\":}\n"), "no JSON"),
        (part("b", &rows("b"))[..200].to_vec(), ""),
    ];
    for (bad, want) in cases {
        let finished = plan.finish(&[bad, good.clone()]);
        assert_eq!(shown(&finished.rows), rows("a"), "{want}");
        let [spoiled] = finished.spoiled.as_slice() else { panic!("{:?}", finished.spoiled) };
        assert!(spoiled.why.contains(want), "{spoiled:?} does not say {want:?}");
        let named = spoiled.host.as_ref().map(HostName::as_str);
        assert_eq!(named, (!want.is_empty()).then_some("b"));
    }
    let twice = plan.finish(&[good.clone(), good.clone()]);
    assert_eq!((shown(&twice.rows), twice.spoiled.len()), (rows("a"), 1));
    // What a gateway left out, the asker is told.
    let merged = plan.merge(&[part("b", "x\n"), good]);
    assert_eq!(plan.finish(&[merged]).spoiled.len(), 1);
}

#[test]
fn a_row_of_another_host_spoils_its_part_when_sorted_too() {
    let plan = Plan::new(&text("pid", "-pid", "2", "")).expect("a good query");
    let row =
        |host: &str, pid: i32| format!("{{\"dc\":\"tokyo\",\"host\":\"{host}\",\"pid\":{pid}}}\n");
    let part = |host: &str, rows: String| plan.part(answered("tokyo", host, 1), rows.as_bytes());
    let bad = part("b", row("b", 9) + &row("a", 8));
    let finished = plan.finish(&[part("a", row("a", 5) + &row("a", 4)), bad]);
    assert_eq!(shown(&finished.rows), row("a", 5) + &row("a", 4), "also the rows taken before");
    assert_eq!(finished.spoiled.len(), 1);
}

#[test]
fn lists() {
    let host = |name: &str| Listed {
        dc: "tokyo".parse().expect("a name"),
        host: name.parse().expect("a name"),
    };
    let parts = ["b", "a"]
        .map(|name| list_part(host(name), 200, b"{\"x\":\n [1, \"y\"]}").expect("it is JSON"));
    let finished = finish_lists(&[merge_lists(&parts)]);
    let row = |name: &str| {
        format!(
            "{{\"dc\":\"tokyo\",\"host\":\"{name}\",\"status\":200,\"body\":{{\"x\":[1,\"y\"]}}}}\n"
        )
    };
    assert_eq!(shown(&finished.rows), row("a") + &row("b"));
    assert_eq!(finished.hosts, [host("a"), host("b")]);
    assert!(list_part(host("a"), 200, b"hello!").is_err());
}

#[test]
fn sockets_of_many_hosts_merge_as_processes_do() {
    let query = |columns: &str, sort: &str, group: &str| {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let text = QueryText {
            columns: some(columns),
            sort: some(sort),
            group: some(group),
            ..QueryText::default()
        };
        Plan::of(&OPEN_SOCKETS, &text).expect("a good query")
    };
    let sorted = query("protocol,local_port", "local_port", "");
    assert_eq!(sorted.for_hosts().columns.as_deref(), Some("dc,host,protocol,local_port"));
    let row = |host: &str, port: u16| {
        format!("{{\"dc\":\"t\",\"host\":\"{host}\",\"protocol\":\"tcp\",\"local_port\":{port}}}\n")
    };
    let parts = [
        sorted.part(answered("t", "a", 1), [row("a", 22), row("a", 80)].concat().as_bytes()),
        sorted.part(answered("t", "b", 1), row("b", 53).as_bytes()),
    ];
    let finished = sorted.finish(&parts);
    assert_eq!(finished.spoiled, []);
    let want = [row("a", 22), row("b", 53), row("a", 80)].concat();
    assert_eq!(String::from_utf8_lossy(&finished.rows), want);

    let grouped = query("", "", "protocol");
    let rows = |count: u64| format!("{{\"protocol\":\"tcp\",\"count()\":{count}}}\n");
    let parts = [("a", 2), ("b", 3)]
        .map(|(host, count)| grouped.part(answered("t", host, 1), rows(count).as_bytes()));
    assert_eq!(String::from_utf8_lossy(&grouped.finish(&parts).rows), rows(5));

    let ended = QueryText { ended: true, ..QueryText::default() };
    assert!(Plan::of(&OPEN_SOCKETS, &ended).is_err());
}
