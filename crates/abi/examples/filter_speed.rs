//! How long 10,000 rows take to filter: ours beside the `cel` crate's own interpreter.
//!
//! Decision 0002 quotes it. Run it with `cargo run --release -p kumo-abi --example filter_speed`.
//! Both sides see the same rows; the interpreter gets only the variables that a condition names,
//! with borrowed texts, and its answers are compared with ours.

use std::borrow::Cow;
use std::hint::black_box;
use std::time::{Duration, Instant};

use cel::common::types::CelString;
use kumo_abi::proc::{Column, PROC};
use kumo_abi::{ColumnIndex, Filter, Value};

const ROWS: usize = 10_000;
const ROUNDS: usize = 9;

const CONDITIONS: [&str; 5] = [
    "pid == 4711",
    "cpu > 50.0 && user == 'www-data'",
    "cmdline.contains('postgres') || comm == 'nginx'",
    "cmdline.matches('java.*-Xmx[0-9]+g')",
    "rss > 536870912 && user in ['root', 'app', 'www-data'] && !cmdline.startsWith('/usr/sbin')",
];

struct Row {
    pid: i64,
    cpu: f64,
    rss: i64,
    user: &'static str,
    comm: String,
    cmdline: String,
}

impl Row {
    fn new(number: usize) -> Row {
        let users = ["root", "www-data", "app", "nobody"];
        let comms = ["nginx", "postgres", "java", "worker"];
        let comm = comms[number / 3 % comms.len()].to_owned();
        let options = "--config=/etc/app/config.toml --listen=127.0.0.1:8080 -Xmx4g";
        Row {
            pid: number as i64,
            cpu: (number % 1_000) as f64 / 10.0,
            rss: (number * 100_003) as i64,
            user: users[number % users.len()],
            cmdline: format!("/usr/bin/{comm} {options} --worker={number}"),
            comm,
        }
    }

    fn value(&self, index: ColumnIndex) -> Value<'_> {
        match Column::at(index) {
            Column::Pid => Value::Int(self.pid),
            Column::Cpu => Value::Float(self.cpu),
            Column::Rss => Value::Int(self.rss),
            Column::User => Value::text(self.user),
            Column::Comm => Value::text(&self.comm),
            Column::Cmdline => Value::text(&self.cmdline),
            _ => Value::Null,
        }
    }
}

fn ours(rows: &[Row], filter: &Filter) -> usize {
    rows.iter().filter(|row| filter.matches(&|index| row.value(index))).count()
}

fn theirs(rows: &[Row], program: &cel::Program, filter: &Filter) -> usize {
    let root = cel::Context::default();
    let fulfils = |row: &&Row| {
        let mut context = root.new_inner_scope();
        for index in filter.columns() {
            let name = PROC.columns[*index].name;
            match row.value(*index) {
                Value::Int(number) => context.add_variable_from_value(name, number),
                Value::Float(number) => context.add_variable_from_value(name, number),
                Value::Text(Cow::Borrowed(text)) => {
                    let text = CelString::from(str::from_utf8(text).expect("these rows are UTF-8"));
                    context.add_variable_as_val(name, Box::new(text));
                }
                _ => context.add_variable_from_value(name, cel::Value::Null),
            }
        }
        program.execute(&context) == Ok(cel::Value::Bool(true))
    };
    rows.iter().filter(fulfils).count()
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = black_box(work());
    (result, begin.elapsed())
}

fn main() {
    let rows: Vec<Row> = (0..ROWS).map(Row::new).collect();
    println!("| condition, {ROWS} rows | rows that match | ours | cel interpreter | ratio |");
    println!("|---|---|---|---|---|");
    for condition in CONDITIONS {
        let filter = Filter::compile(condition, &PROC).expect(condition);
        let program = cel::Program::compile(condition).expect(condition);
        let mut best = [Duration::MAX; 2];
        let mut matched = 0;
        for _ in 0..ROUNDS {
            let (count, time) = timed(|| ours(&rows, &filter));
            let (their_count, their_time) = timed(|| theirs(&rows, &program, &filter));
            assert_eq!(count, their_count, "{condition}");
            matched = count;
            best = [best[0].min(time), best[1].min(their_time)];
        }
        let [ours, theirs] = best.map(|time| time.as_secs_f64() * 1e3);
        let ratio = theirs / ours;
        println!("| `{condition}` | {matched} | {ours:.2} ms | {theirs:.2} ms | {ratio:.0} |");
    }
    let (_, first) = timed(|| Filter::compile(CONDITIONS[4], &PROC).is_ok());
    println!("\ncompiling the last one: {:.0} µs", first.as_secs_f64() * 1e6);
}
