//! Queries over tables that are made up: what they give, what they read for it, and what ends them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kumo_sql::{
    Cell, Column, Kind, Limits, Role, Rows, Scan, ScanError, Shown, Source, SqlError, Stop, Table,
    run,
};

const fn column(name: &'static str, kind: Kind, role: Role) -> Column {
    Column { name, kind, role, is_hidden: false, about: "" }
}

static TABLES: [Table; 5] = [
    Table {
        name: "processes",
        about: "",
        columns: &[
            column("pid", Kind::BigInt, Role::Key),
            column("name", Kind::Text, Role::Group),
            column("uid", Kind::BigInt, Role::Group),
            column("load", Kind::Double, Role::Plain),
            Column { is_hidden: true, ..column("host", Kind::Text, Role::Plain) },
        ],
        rows_about: 1_000,
        keyed_reads_max: 2,
    },
    Table {
        name: "ports",
        about: "",
        columns: &[
            column("pid", Kind::BigInt, Role::Key),
            column("port", Kind::Integer, Role::Identity),
        ],
        rows_about: 100,
        keyed_reads_max: 2,
    },
    Table {
        name: "broken",
        about: "",
        columns: &[column("n", Kind::Integer, Role::Plain)],
        rows_about: 1,
        keyed_reads_max: 1,
    },
    Table {
        name: "panics",
        about: "",
        columns: &[column("n", Kind::Integer, Role::Plain)],
        rows_about: 1,
        keyed_reads_max: 1,
    },
    Table {
        name: "endless",
        about: "",
        columns: &[
            column("n", Kind::Integer, Role::Plain),
            column("text", Kind::Text, Role::Plain),
        ],
        rows_about: 1,
        keyed_reads_max: 1,
    },
];

/// Remembers what was read, as `table[columns] conditions limit`.
#[derive(Default)]
struct World {
    reads: Mutex<Vec<String>>,
}

impl Source for World {
    fn tables(&self) -> &'static [Table] {
        &TABLES
    }

    fn scan(&self, scan: &Scan<'_>, rows: &mut Rows<'_>) -> Result<(), ScanError> {
        let name = |place: &usize| scan.table.columns[*place].name;
        let columns: Vec<&str> = scan.columns.iter().map(name).collect();
        let wanted: Vec<String> = scan
            .wanted
            .iter()
            .map(|wanted| match &wanted.value {
                Cell::Int(number) => format!(" {}={number}", name(&wanted.column)),
                Cell::Text(text) => format!(" {}={text}", name(&wanted.column)),
                other => panic!("a condition with {other:?}"),
            })
            .collect();
        let limit = scan.limit.map(|limit| format!(" limit {limit}")).unwrap_or_default();
        let read = format!("{}[{}]{}{limit}", scan.table.name, columns.join(","), wanted.concat());
        self.reads.lock().expect("no reader panics here").push(read);
        let all: Vec<Vec<Cell>> = match scan.table.name {
            "processes" => (1..=100)
                .map(|pid: i64| {
                    let name = if pid % 2 == 0 { "even" } else { "odd" };
                    let load = if pid == 3 { Cell::Null } else { Cell::Real(pid as f64 / 2.0) };
                    vec![pid.into(), name.into(), (pid % 10).into(), load, "here".into()]
                })
                .collect(),
            "ports" => (1..=20).map(|n: i64| vec![(n * 2).into(), (8_000 + n).into()]).collect(),
            "broken" => return Err(ScanError::failed("the disk is on fire")),
            "panics" => panic!("a bug"),
            _ => loop {
                rows.push([Cell::Int(1), "x".repeat(1_000).into()])?;
            },
        };
        for row in all {
            let cell = |place: &usize| row[*place].clone();
            rows.push(scan.columns.iter().map(cell))?;
        }
        Ok(())
    }
}

const LIMITS: Limits = Limits { time: Duration::from_secs(60), read_bytes: 16 << 20, rows: 10_000 };

fn ask_within(
    sql: &str,
    limits: &Limits,
    stop: &Arc<Stop>,
) -> (Result<Vec<String>, SqlError>, Vec<String>) {
    let world = Arc::new(World::default());
    let source: Arc<dyn Source> = world.clone();
    let mut rows = Vec::new();
    let mut take = |_: &[String], row: &[Shown<'_>]| {
        let cell = |shown: &Shown<'_>| match shown {
            Shown::Null => "-".to_owned(),
            Shown::Int(number) => number.to_string(),
            Shown::Real(number) => format!("{number:?}"),
            Shown::Text(text) => String::from_utf8_lossy(text).into_owned(),
            Shown::Blob(bytes) => format!("{bytes:?}"),
        };
        rows.push(row.iter().map(cell).collect::<Vec<_>>().join("|"));
        Ok(())
    };
    let answer = run(&source, sql, limits, stop, &mut take);
    let reads = world.reads.lock().expect("no reader panics here").clone();
    (answer.map(|_| rows), reads)
}

fn ask(sql: &str) -> (Result<Vec<String>, SqlError>, Vec<String>) {
    ask_within(sql, &LIMITS, &LIMITS.begin())
}

/// The rows, and what was read for them.
fn rows(sql: &str) -> (String, String) {
    let (rows, reads) = ask(sql);
    (rows.unwrap_or_else(|error| panic!("{sql}: {error}")).join(" "), reads.join("; "))
}

#[test]
fn conditions_reach_who_reads() {
    let cases = [
        ("SELECT name FROM processes WHERE pid = 7", "odd", "processes[pid,name] pid=7"),
        ("SELECT name FROM processes WHERE pid = '7'", "odd", "processes[pid,name] pid=7"),
        ("SELECT name FROM processes WHERE pid = 7.0", "odd", "processes[pid,name]"),
        ("SELECT name FROM processes WHERE pid = ' 7'", "odd", "processes[pid,name]"),
        ("SELECT pid FROM processes WHERE pid = NULL", "", ""),
        (
            "SELECT pid FROM processes WHERE name = 'odd' AND pid < 4",
            "1 3",
            "processes[pid,name] name=odd",
        ),
        (
            "SELECT pid FROM processes WHERE name = 'ODD' COLLATE NOCASE AND pid < 4",
            "1 3",
            "processes[pid,name]",
        ),
        (
            "SELECT pid FROM processes WHERE uid = 9 AND name = 'odd' AND pid < 10",
            "9",
            "processes[pid,name,uid] uid=9 name=odd",
        ),
        ("SELECT pid FROM processes LIMIT 2", "1 2", "processes[pid] limit 2"),
        ("SELECT pid FROM processes LIMIT 2 OFFSET 1", "2 3", "processes[pid]"),
        (
            "SELECT pid FROM processes WHERE name = 'even' LIMIT 2",
            "2 4",
            "processes[pid,name] name=even limit 2",
        ),
        ("SELECT pid FROM processes WHERE load > 49 LIMIT 1", "99", "processes[pid,load]"),
        ("SELECT pid FROM processes WHERE name LIKE 'EV%' LIMIT 1", "2", "processes[pid,name]"),
        ("SELECT pid FROM processes ORDER BY pid DESC LIMIT 1", "100", "processes[pid]"),
        ("SELECT DISTINCT name FROM processes LIMIT 2", "odd even", "processes[pid,name]"),
        ("SELECT count(*) FROM processes", "100", "processes[pid]"),
        ("SELECT host FROM processes WHERE pid=1", "here", "processes[pid,host] pid=1"),
        ("SELECT * FROM processes WHERE pid=3", "3|odd|3|-", "processes[pid,name,uid,load] pid=3"),
        ("SELECT pid FROM processes WHERE load IS NULL", "3", "processes[pid,load]"),
    ];
    for (sql, want, want_reads) in cases {
        assert_eq!(rows(sql), (want.to_owned(), want_reads.to_owned()), "for {sql}");
    }
}

#[test]
fn a_join_reads_each_table_a_few_times() {
    let joins = [
        "SELECT count(*) FROM ports JOIN processes USING (pid) WHERE name = 'even'",
        "SELECT count(*) FROM processes p, ports l WHERE p.pid = l.pid",
        "SELECT count(*) FROM processes p LEFT JOIN ports l ON p.pid = l.pid WHERE l.port > 0",
        "SELECT count(*) FROM ports WHERE pid IN (SELECT pid FROM processes)",
        "SELECT count(*) FROM ports l WHERE EXISTS (SELECT 1 FROM processes p WHERE p.pid = l.pid)",
    ];
    for sql in joins {
        let (answer, reads) = rows(sql);
        assert_eq!(answer, "20", "for {sql}");
        let of = |table: &str| reads.split("; ").filter(|read| read.starts_with(table)).count();
        assert!(of("processes") <= 3 && of("ports") <= 3, "{sql} reads {reads}");
    }
    // All parts of a query see the same rows, with the columns of all of them.
    let (answer, reads) = rows(
        "SELECT count(*) FROM processes a JOIN processes b ON a.uid = b.uid AND a.name = b.name",
    );
    assert_eq!(answer, "1000");
    assert_eq!(reads.split("; ").filter(|read| !read.contains('=')).count(), 1, "{reads}");
}

#[test]
fn a_row_that_two_conditions_find_is_there_once() {
    let (answer, _) =
        rows("SELECT pid FROM processes WHERE pid = 2 OR (name = 'even' AND uid = 2)");
    let mut pids: Vec<&str> = answer.split(' ').collect();
    pids.sort_unstable();
    assert_eq!(pids, ["12", "2", "22", "32", "42", "52", "62", "72", "82", "92"]);
    assert_eq!(rows("SELECT count(*) FROM processes WHERE pid IN (1, 2, 3, 4, 2)").0, "4");
}

#[test]
fn what_sql_can_do_it_can_do_here() {
    let cases = [
        (
            "SELECT name, count(*) AS n, max(load) FROM processes GROUP BY name ORDER BY name",
            "even|50|50.0 odd|50|49.5",
        ),
        ("SELECT \"x\" || 'y'", "xy"),
        ("WITH a AS (SELECT pid FROM ports) SELECT count(*) FROM a", "20"),
        (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT sum(i) FROM n",
            "15",
        ),
        ("SELECT value FROM json_each('[1,2]')", "1 2"),
        ("SELECT pid FROM ports EXCEPT SELECT pid FROM processes", ""),
        ("SELECT row_number() OVER (ORDER BY port DESC) FROM ports LIMIT 2", "1 2"),
        (
            "SELECT typeof(load), typeof(pid), typeof(name) FROM processes LIMIT 1",
            "real|integer|text",
        ),
        ("-- only\nSELECT 1; -- one", "1"),
        (
            "SELECT split(name, 'd', 0), regex_match(name, '(o)(.)', 2) FROM processes LIMIT 1",
            "o|d",
        ),
    ];
    for (sql, want) in cases {
        assert_eq!(rows(sql).0, want, "for {sql}");
    }
    let plan = rows("EXPLAIN QUERY PLAN SELECT * FROM ports JOIN processes USING (pid)").0;
    assert!(plan.contains("VIRTUAL TABLE INDEX"), "{plan}");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let long = format!("SELECT '{}'", "x".repeat(kumo_sql::SQL_BYTES_MAX));
    let deep = format!("SELECT {}1{}", "(1+".repeat(200), ")".repeat(200));
    let many = "SELECT 1;".repeat(3_000);
    let cases: [(&str, &str); 18] = [
        ("", "there is no query"),
        (" -- nothing", "there is no query"),
        ("SELECT 1; SELECT 2", "more than one statement"),
        (&many, "more than one statement"),
        (
            "SELECT\n  pidd FROM processes",
            "line 2, column 3: there is no column `pidd` (did you mean `pid`?)",
        ),
        (
            "SELECT * FROM proceses",
            "line 1, column 15: there is no table `proceses` (did you mean `processes`?)",
        ),
        ("SELECT * FORM ports", "line 1, column 10: near \"FORM\": syntax error"),
        ("SELECT pid FROM ports, processes", "ambiguous column name: pid"),
        ("SELECT nonsense(1)", "there is no function `nonsense`"),
        ("SELECT ?", "has a parameter"),
        ("SELECT\0 1", "line 1, column 7: a query has no NUL bytes"),
        ("DELETE FROM processes", "SELECT and nothing else"),
        ("CREATE TABLE x (y)", "read only"),
        ("ATTACH '/tmp/x' AS y", "other databases are not for queries"),
        ("PRAGMA user_version", "PRAGMA is not for queries"),
        ("BEGIN", "no transaction"),
        (&long, "is the most"),
        (&deep, "Expression tree is too large"),
    ];
    for (sql, want) in cases {
        let error = ask(sql).0.expect_err(want);
        let said = error.to_string();
        assert!(said.contains(want), "{said:?} does not say {want:?}");
        assert!(error.is_usage(), "{said}");
    }
    for sql in [
        "SELECT load_extension('/tmp/x')",
        "SELECT * FROM sqlite_master",
        "SELECT * FROM pragma_database_list",
        "SELECT zeroblob(1000)",
        "SELECT * FROM dbstat",
        "VACUUM",
        "REINDEX",
        "ANALYZE",
        "SAVEPOINT x",
        "CREATE TEMP VIEW x AS SELECT 1",
        "CREATE VIRTUAL TABLE x USING fts5(y)",
        "INSERT INTO ports VALUES (1, 2)",
        "DROP TABLE ports",
        "DETACH main",
    ] {
        assert!(ask(sql).0.is_err(), "{sql} was done");
    }
}

#[test]
fn who_cannot_read_a_table_says_why() {
    let (answer, _) = ask("SELECT * FROM broken");
    let error = answer.expect_err("it is broken");
    assert!(!error.is_usage());
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert_eq!(
        (error.to_string().as_str(), source.as_deref()),
        ("cannot read the table `broken`", Some("the disk is on fire"))
    );
    // A bug of who reads fails the query, not the process.
    assert!(matches!(ask("SELECT * FROM panics").0, Err(SqlError::Table { table: "panics", .. })));
}

#[test]
fn nothing_goes_on_for_ever() {
    let short = Limits { time: Duration::from_millis(50), ..LIMITS };
    for sql in [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "SELECT count(*) FROM processes a, processes b, processes c, processes d, processes e",
        "SELECT * FROM endless",
    ] {
        let limits = Limits { read_bytes: usize::MAX, ..short };
        let (answer, _) = ask_within(sql, &limits, &limits.begin());
        assert!(matches!(answer, Err(SqlError::Time(_))), "{sql}: {answer:?}");
    }
    assert!(matches!(ask("SELECT * FROM endless").0, Err(SqlError::Memory)));
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
    assert!(matches!(ask(rows).0, Err(SqlError::TooLarge { max: 10_000, what: "rows" })));
    let doubled =
        "WITH RECURSIVE n(x) AS (SELECT 'x' UNION ALL SELECT x || x FROM n) SELECT max(x) FROM n";
    assert!(matches!(ask(doubled).0, Err(SqlError::TooLarge { what: "bytes in one value", .. })));
    // It is ended from elsewhere.
    let stop = LIMITS.begin();
    std::thread::scope(|scope| {
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        let asked = scope.spawn(|| ask_within(sql, &LIMITS, &stop).0);
        stop.stop();
        assert!(matches!(asked.join(), Ok(Err(SqlError::Stopped))));
    });
}

#[test]
fn sqlite_takes_no_more_memory_than_it_may() {
    // A set of a million texts of a kilobyte: four times what there is.
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000) \
        SELECT count(DISTINCT printf('%01000d', i)) FROM n";
    assert!(matches!(ask(sql).0, Err(SqlError::Memory)));
    assert_eq!(rows("SELECT 1").0, "1", "and others go on");
}
