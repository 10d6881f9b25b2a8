//! The table of hosts, as conditions on hosts read it.

use crate::cluster::{Card, HostInfo};
use crate::filter::Filter;
use crate::schema::{ColumnIndex, ColumnSpec, Kind, Schema, Unit};
use crate::value::Value;

const fn column(name: &'static str, kind: Kind, unit: Unit, about: &'static str) -> ColumnSpec {
    ColumnSpec { name, aliases: &[], kind, unit, heading: "", about }
}

/// The hosts of a cluster. What stands on a card is null while the card is not known.
pub static HOSTS: Schema = Schema {
    name: "hosts",
    columns: &[
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
    ],
};

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
}
