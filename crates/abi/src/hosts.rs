//! The table of hosts, as conditions on hosts read it.

use crate::cluster::{Card, HostInfo};
use crate::filter::Filter;
use crate::schema::{ColumnIndex, ColumnSpec, Kind, Schema, Unit};
use crate::value::Value;

const fn column(name: &'static str, kind: Kind, unit: Unit, about: &'static str) -> ColumnSpec {
    ColumnSpec { name, aliases: &[], kind, unit, heading: "", about }
}

const HOST_COLUMNS: [ColumnSpec; 10] = [
    column("dc", Kind::Text, Unit::None, "Its data centre"),
    column("host", Kind::Text, Unit::None, "Its name there"),
    column("role", Kind::Text, Unit::None, "gateway or member"),
    column("state", Kind::Text, Unit::None, "alive, dead, cut-off or left"),
    column("version", Kind::Text, Unit::None, "Version of its node"),
    column("kernel", Kind::Text, Unit::None, "Release of its kernel"),
    column("architecture", Kind::Text, Unit::None, "Its machine architecture"),
    column("cpus", Kind::Int, Unit::None, "CPUs online"),
    column("memory", Kind::Int, Unit::Bytes, "Memory"),
    column("labels", Kind::TextList, Unit::None, "What its owner says of it, as NAME=VALUE"),
];

/// The hosts of a cluster. What stands on a card is null while the card is not known.
pub static HOSTS: Schema = Schema { name: "hosts", columns: &HOST_COLUMNS };

const HEALTH_ONLY: [ColumnSpec; 14] = [
    column("load1", Kind::Float, Unit::None, "Load average over one minute"),
    column("load5", Kind::Float, Unit::None, "The same over five minutes"),
    column("load15", Kind::Float, Unit::None, "The same over fifteen minutes"),
    column("memory_available", Kind::Int, Unit::Bytes, "What programs could get without swapping"),
    column("memory_available_percent", Kind::Float, Unit::Percent, "The same as a share of all"),
    column("swap_free", Kind::Int, Unit::Bytes, "Swap space that is not in use"),
    column("pressure_cpu", Kind::Float, Unit::Percent, "Waits for a CPU, in the last 10 s"),
    column("pressure_memory", Kind::Float, Unit::Percent, "Waits for memory, in the last 10 s"),
    column("pressure_io", Kind::Float, Unit::Percent, "Waits for storage, in the last 10 s"),
    column("processes", Kind::Int, Unit::None, "How many there are"),
    column("threads", Kind::Int, Unit::None, "How many there are"),
    column("running", Kind::Int, Unit::None, "Threads that run or are ready to"),
    column("uptime", Kind::Float, Unit::Seconds, "Since the boot"),
    column("value", Kind::Text, Unit::None, "The kernel parameter that is being changed"),
];

const HEALTH_COLUMNS: [ColumnSpec; HOST_COLUMNS.len() + HEALTH_ONLY.len()] = {
    let mut all = [HOST_COLUMNS[0]; HOST_COLUMNS.len() + HEALTH_ONLY.len()];
    let mut at = 0;
    while at < all.len() {
        let first = HOST_COLUMNS.len();
        all[at] = if at < first { HOST_COLUMNS[at] } else { HEALTH_ONLY[at - first] };
        at += 1;
    }
    all
};

/// Hosts and how they are now: what a check of a change reads.
pub static HEALTH: Schema = Schema { name: "health", columns: &HEALTH_COLUMNS };

/// How a host is now. What is not known is null.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// Load averages over one, five and fifteen minutes.
    pub load: Option<[f64; 3]>,
    /// Memory in bytes: what there is, what could be had, free swap.
    pub memory: Option<[u64; 3]>,
    /// Percent of the last ten seconds in which something waited for a CPU, memory, storage.
    pub pressure: [Option<f64>; 3],
    /// Processes, threads, threads that run.
    pub tasks: Option<[u64; 3]>,
    /// Seconds since the boot.
    pub uptime: Option<f64>,
    /// The parameter that is being changed.
    pub value: Option<String>,
}

/// What `host` has in a column of [`HEALTH`].
pub fn health_value<'a>(host: &'a HostInfo, now: &'a Health, column: ColumnIndex) -> Value<'a> {
    let int = |number: Option<u64>| {
        number.map_or(Value::Null, |number| Value::Int(i64::try_from(number).unwrap_or(i64::MAX)))
    };
    let float = |number: Option<f64>| number.map_or(Value::Null, Value::Float);
    let percent = |[total, available, _]: [u64; 3]| {
        (total > 0).then(|| 100.0 * available as f64 / total as f64)
    };
    match HEALTH.columns[column].name {
        "load1" => float(now.load.map(|load| load[0])),
        "load5" => float(now.load.map(|load| load[1])),
        "load15" => float(now.load.map(|load| load[2])),
        "memory_available" => int(now.memory.map(|memory| memory[1])),
        "memory_available_percent" => float(now.memory.and_then(percent)),
        "swap_free" => int(now.memory.map(|memory| memory[2])),
        "pressure_cpu" => float(now.pressure[0]),
        "pressure_memory" => float(now.pressure[1]),
        "pressure_io" => float(now.pressure[2]),
        "processes" => int(now.tasks.map(|tasks| tasks[0])),
        "threads" => int(now.tasks.map(|tasks| tasks[1])),
        "running" => int(now.tasks.map(|tasks| tasks[2])),
        "uptime" => float(now.uptime),
        "value" => now.value.as_deref().map_or(Value::Null, Value::text),
        _ => value(host, column),
    }
}

/// What `host` has in a column of [`HOSTS`].
pub fn value(host: &HostInfo, column: ColumnIndex) -> Value<'_> {
    let card = host.card.as_ref();
    let text = |of: fn(&Card) -> &str| card.map_or(Value::Null, |card| Value::text(of(card)));
    let number = |number: Option<u64>| {
        number.map_or(Value::Null, |number| Value::Int(i64::try_from(number).unwrap_or(i64::MAX)))
    };
    match HOSTS.columns[column].name {
        "dc" => Value::text(host.id.dc.as_str()),
        "host" => Value::text(host.id.host.as_str()),
        "state" => Value::text(host.state.name()),
        "role" => text(|card| card.role.name()),
        "version" => text(|card| &card.version),
        "kernel" => text(|card| &card.kernel),
        "architecture" => text(|card| &card.architecture),
        "cpus" => number(card.map(|card| card.cpus.into())),
        "memory" => number(card.map(|card| card.memory)),
        _ => card.map_or(Value::Null, |card| {
            let labels = card.labels.iter().map(|(name, value)| format!("{name}={value}\0"));
            Value::TextList(labels.collect::<String>().into_bytes().into())
        }),
    }
}

/// Whether `host` fulfils a condition on [`HOSTS`]; `None` when that hangs on its card, which is not
/// known.
pub fn fulfils(host: &HostInfo, condition: &Filter) -> Option<bool> {
    let is_on_card =
        |column: &ColumnIndex| !matches!(HOSTS.columns[*column].name, "dc" | "host" | "state");
    if host.card.is_none() && condition.columns().iter().any(is_on_card) {
        return None;
    }
    Some(condition.matches(&|column| value(host, column)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{HostState, Role};

    #[test]
    fn conditions_on_hosts() {
        let card = Card {
            role: Role::Gateway,
            version: "0.1.0".to_owned(),
            kernel: "6.8.0".to_owned(),
            architecture: "x86_64".to_owned(),
            cpus: 16,
            memory: 64 << 30,
            addresses: Vec::new(),
            call_addresses: Vec::new(),
            labels: [("rack", "3"), ("disk", "")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        };
        let host = |card| HostInfo {
            id: "tokyo/web-1".parse().expect("a host"),
            state: HostState::CutOff,
            state_ms: 5,
            incarnation: None,
            card,
        };
        let (known, unknown) = (host(Some(card)), host(None));
        let cases = [
            ("dc == 'tokyo' && host.startsWith('web-')", true, true),
            ("state == 'cut-off'", true, true),
            ("role == 'gateway' && cpus > 8 && memory >= 64 * GiB", true, false),
            ("'rack=3' in labels && 'disk=' in labels && !('rack=4' in labels)", true, false),
            ("labels.exists(l, l.startsWith('rack='))", true, false),
            ("architecture == 'x86_64' && kernel.matches('^6[.]') && version != ''", true, false),
            ("cpus == null", false, true),
        ];
        for (text, want_known, want_unknown) in cases {
            let filter = Filter::compile(text, &HOSTS).expect(text);
            let matches = |host: &HostInfo| filter.matches(&|column| value(host, column));
            assert_eq!((matches(&known), matches(&unknown)), (want_known, want_unknown), "{text}");
            let is_on_card = !["dc ==", "state =="].iter().any(|of| text.starts_with(of));
            assert_eq!(fulfils(&known, &filter), Some(want_known), "{text}");
            assert_eq!(fulfils(&unknown, &filter), (!is_on_card).then_some(want_unknown), "{text}");
        }
        for (index, column) in HOSTS.columns.iter().enumerate() {
            assert_ne!(value(&known, index), Value::Null, "{} is never read", column.name);
        }
        let error = Filter::compile("hots == 'a'", &HOSTS).expect_err("no such column");
        assert!(error.to_string().contains("did you mean `host`?"), "{error}");
    }

    #[test]
    fn checks_of_hosts() {
        let host = HostInfo {
            id: "tokyo/web-1".parse().expect("a host"),
            state: HostState::Alive,
            state_ms: 5,
            incarnation: None,
            card: None,
        };
        let now = Health {
            load: Some([0.5, 1.0, 2.0]),
            memory: Some([1000, 250, 7]),
            pressure: [Some(1.5), Some(0.0), None],
            tasks: Some([100, 300, 2]),
            uptime: Some(60.0),
            value: Some("10".to_owned()),
        };
        let cases = [
            ("load1 < 1.0 && load5 == 1 && load15 > load1", true),
            ("memory_available_percent >= 25 && memory_available < KiB && swap_free == 7", true),
            ("pressure_cpu < 2 && pressure_memory == 0", true),
            // What is not known fulfils nothing.
            ("pressure_io < 50", false),
            ("cpus > 0", false),
            ("dc == 'tokyo' && host == 'web-1' && value == '10' && uptime >= 60", true),
            ("processes == 100 && threads == 300 && running <= 2", true),
        ];
        for (text, want) in cases {
            let filter = Filter::compile(text, &HEALTH).expect(text);
            let holds = filter.matches(&|column| health_value(&host, &now, column));
            assert_eq!(holds, want, "{text}");
        }
        for (index, column) in HEALTH.columns.iter().enumerate().skip(HOSTS.columns.len()) {
            let is_null = health_value(&host, &now, index) == Value::Null;
            assert_eq!(is_null, column.name == "pressure_io", "{} is never read", column.name);
        }
    }
}
