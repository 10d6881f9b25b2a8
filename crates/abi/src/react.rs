//! Reactions: when something happens, call a service.
//!
//! A [`Reaction`] is a part of the desired state, so nodes of all versions must agree on its form. It
//! is checked as a whole when it is [compiled](Reaction::compile): its condition against the columns
//! of what it watches, its data for being JSON whatever the values are. What is compiled cannot fail
//! on an event.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::call::{Method, ServiceName};
use crate::events::{EVENTS, EventColumn};
use crate::filter::{Filter, FilterError};
use crate::hosts::HOSTS;
use crate::names::NAME_BYTES_MAX;
use crate::schema::{ColumnIndex, ColumnSpec, Kind, Schema, Unit};
use crate::value::{Value, text_list_items};

/// Most reactions of a cluster. Each of those that watch processes is asked for every program that
/// begins or ends on every host.
pub const REACTIONS_MAX: usize = 256;

/// Longest text of what is sent. With the largest values of an event in it, it stays far below what
/// a call carries.
pub const DATA_BYTES_MAX: usize = 16 * 1024;

/// Budget of a call where none is named.
pub const BUDGET_MS_DEFAULT: u64 = 5_000;

/// Largest budget: a call holds a place of its reaction for so long.
pub const BUDGET_MS_MAX: u64 = 5 * 60 * 1000;

/// Calls a second where nothing is said.
pub const CALLS_PER_S_DEFAULT: u32 = 5;

/// Most calls a second of one reaction on one host.
pub const CALLS_PER_S_MAX: u32 = 100;

/// How often in a row its own calls may have led to it, where nothing is said.
pub const DEPTH_DEFAULT: u8 = 16;

/// What the routes of the API are called beside reactions.
const RESERVED: [&str; 2] = ["journal", "test"];

/// The name of a reaction: 1 to 63 of `a-z`, `0-9` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReactionName(String);

impl ReactionName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ReactionName {
    type Err = ReactionError;
    fn from_str(text: &str) -> Result<ReactionName, ReactionError> {
        let is_good = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if !(1..=NAME_BYTES_MAX).contains(&text.len()) || !text.bytes().all(is_good) {
            return Err(ReactionError::Name);
        }
        if RESERVED.contains(&text) {
            return Err(ReactionError::Reserved(text.to_owned()));
        }
        Ok(ReactionName(text.to_owned()))
    }
}

impl TryFrom<String> for ReactionName {
    type Error = ReactionError;
    fn try_from(text: String) -> Result<ReactionName, ReactionError> {
        text.parse()
    }
}

impl From<ReactionName> for String {
    fn from(name: ReactionName) -> String {
        name.0
    }
}

impl fmt::Display for ReactionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a reaction watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Watched {
    /// Programs that begin and processes that end: each host its own.
    #[default]
    Process,
    /// Hosts that come, go, and are cut off: one host for all.
    Host,
    /// How many instances of a service are ready, and how busy they are: one host for all.
    Service,
}

impl Watched {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Watched::Process => "process",
            Watched::Host => "host",
            Watched::Service => "service",
        }
    }

    /// The columns that conditions and data may read.
    pub fn schema(self) -> &'static Schema {
        match self {
            Watched::Process => &EVENTS,
            Watched::Host => &HOSTS,
            Watched::Service => &SERVICES,
        }
    }

    /// The columns by which people know an event, and what is sent where nothing is said.
    fn summary(self) -> &'static [&'static str] {
        match self {
            Watched::Process => &[
                "event",
                "at",
                "dc",
                "host",
                "pid",
                "user",
                "comm",
                "exit_code",
                "exit_signal",
                "lifetime",
            ],
            Watched::Host => &["dc", "host", "role", "state"],
            Watched::Service => {
                &["service", "ready", "ready_before", "asleep", "hosts", "load_percent"]
            }
        }
    }
}

impl FromStr for Watched {
    type Err = ReactionError;
    fn from_str(text: &str) -> Result<Watched, ReactionError> {
        let all = [Watched::Process, Watched::Host, Watched::Service];
        let found = all.into_iter().find(|watched| watched.name() == text);
        found.ok_or_else(|| ReactionError::Watched(text.to_owned()))
    }
}

const fn column(name: &'static str, kind: Kind, unit: Unit, about: &'static str) -> ColumnSpec {
    ColumnSpec { name, aliases: &[], kind, unit, heading: "", about }
}

/// Services of the cluster, as one host sees them.
pub static SERVICES: Schema = Schema {
    name: "services",
    columns: &[
        column("service", Kind::Text, Unit::None, "Its name"),
        column("ready", Kind::Int, Unit::None, "Instances that answer"),
        column("ready_before", Kind::Int, Unit::None, "The same, a second ago"),
        column("asleep", Kind::Int, Unit::None, "Instances that would after a wake-up"),
        column("hosts", Kind::Int, Unit::None, "Hosts with an instance that answers"),
        column(
            "load_percent",
            Kind::Int,
            Unit::Percent,
            "Connections for each 100 slots, on the host where that is most",
        ),
    ],
};

/// A reaction, as it is kept and as people write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reaction {
    /// What it watches.
    #[serde(default)]
    pub on: Watched,
    /// Its condition, in CEL over the columns of that.
    pub when: String,
    /// The service that is called.
    pub service: ServiceName,
    /// Its method.
    pub method: Method,
    /// What is sent: JSON, in which `${column}` stands for a value. Without it a summary of the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// How long a call may take, a second attempt included.
    #[serde(default = "budget_ms_default")]
    pub budget_ms: u64,
    /// Most calls a second, on each host.
    #[serde(default = "calls_per_s_default")]
    pub calls_per_s: u32,
    /// How often in a row its own calls may have led to it, before it rests; see the loop guard.
    #[serde(default = "depth_default")]
    pub depth_max: u8,
    /// Whether it reacts.
    #[serde(default = "enabled_default")]
    pub enabled: bool,
}

fn budget_ms_default() -> u64 {
    BUDGET_MS_DEFAULT
}

fn calls_per_s_default() -> u32 {
    CALLS_PER_S_DEFAULT
}

fn depth_default() -> u8 {
    DEPTH_DEFAULT
}

fn enabled_default() -> bool {
    true
}

/// Why a reaction is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReactionError {
    /// No name.
    #[error("the name of a reaction has 1 to {NAME_BYTES_MAX} of a-z, 0-9 and `-`")]
    Name,
    /// A name that is taken.
    #[error("`{0}` is no name for a reaction: the API has a path of that name")]
    Reserved(String),
    /// Something that is not watched.
    #[error("`{}` is not watched; there are process, host and service", .0.escape_debug())]
    Watched(String),
    /// The condition.
    #[error("the condition: {0}")]
    When(FilterError),
    /// A budget of nothing, or above the largest.
    #[error("the budget is 1 ms to {BUDGET_MS_MAX} ms")]
    Budget,
    /// Too many calls, or none.
    #[error("there are 1 to {CALLS_PER_S_MAX} calls a second")]
    Rate,
    /// Above [`DATA_BYTES_MAX`].
    #[error("the data have at most {DATA_BYTES_MAX} bytes, and these have {0}")]
    DataLong(usize),
    /// A `${` without an end.
    #[error("the data: `${{` at byte {0} has no `}}`")]
    DataOpen(usize),
    /// A column that is not there.
    #[error("the data: there is no column `{}`{}", .name.escape_debug(), did_you_mean(*.closest))]
    DataColumn {
        /// What was named.
        name: String,
        /// What was probably meant.
        closest: Option<&'static str>,
    },
    /// A value within quotes.
    #[error(
        "the data: ${{{0}}} stands within a text, where its value could break out; values bring their \
         own quotes, so write {{\"name\": ${{{0}}}}}"
    )]
    DataQuoted(String),
    /// No JSON.
    #[error("the data are no JSON once values stand in them: {0}")]
    DataJson(String),
    /// An event of the wrong form.
    #[error("the event: {0}")]
    Event(String),
}

fn did_you_mean(closest: Option<&str>) -> String {
    closest.map_or_else(String::new, |closest| format!("; did you mean `{closest}`?"))
}

/// A reaction that is ready to be asked.
#[derive(Debug)]
pub struct Compiled {
    on: Watched,
    filter: Filter,
    data: Vec<Piece>,
    summary: Vec<Piece>,
    columns: Vec<ColumnIndex>,
    /// Whether the condition says itself which kind of event it means.
    names_event: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Column(ColumnIndex),
}

impl Reaction {
    /// Checks all of it and makes it ready.
    ///
    /// # Errors
    /// The first thing that is wrong, and what to do about it.
    pub fn compile(&self) -> Result<Compiled, ReactionError> {
        if !(1..=BUDGET_MS_MAX).contains(&self.budget_ms) {
            return Err(ReactionError::Budget);
        }
        if !(1..=CALLS_PER_S_MAX).contains(&self.calls_per_s) {
            return Err(ReactionError::Rate);
        }
        let schema = self.on.schema();
        let filter = Filter::compile(&self.when, schema).map_err(ReactionError::When)?;
        let summary = pieces(&object_of(self.on.summary()), schema)?;
        let data = self.data.clone().unwrap_or_else(|| object_of(self.on.summary()));
        let data = pieces(&data, schema)?;
        let read = filter.columns().iter().copied();
        let written = data.iter().chain(&summary).filter_map(|piece| match piece {
            Piece::Column(column) => Some(*column),
            Piece::Text(_) => None,
        });
        let mut columns: Vec<ColumnIndex> = read.chain(written).collect();
        columns.sort_unstable();
        columns.dedup();
        let is_event = |column: &ColumnIndex| EventColumn::at(*column) == EventColumn::Event;
        let names_event = self.on == Watched::Process && filter.columns().iter().any(is_event);
        Ok(Compiled { on: self.on, filter, data, summary, columns, names_event })
    }
}

impl Compiled {
    /// The columns that it may read, each once.
    pub fn columns(&self) -> &[ColumnIndex] {
        &self.columns
    }

    /// Whether it hears that a process was waited for. The end was told before, so that is for those
    /// who ask for it by name: else each end would be two events.
    pub fn hears_reaps(&self) -> bool {
        self.names_event
    }

    /// Whether an event fulfils the condition.
    pub fn matches<'r>(&self, value: &dyn Fn(ColumnIndex) -> Value<'r>) -> bool {
        self.filter.matches(value)
    }

    /// What is sent for an event. It is JSON, whatever the values are.
    pub fn data<'r>(&self, value: &dyn Fn(ColumnIndex) -> Value<'r>) -> String {
        written(&self.data, value)
    }

    /// The event in short, as journals keep it.
    pub fn summary<'r>(&self, value: &dyn Fn(ColumnIndex) -> Value<'r>) -> Json {
        serde_json::from_str(&written(&self.summary, value)).unwrap_or_default()
    }

    /// An event that somebody wrote down: an object of columns. Those it lacks are null.
    ///
    /// # Errors
    /// A column that is not there, or a value of another kind.
    pub fn given(&self, event: &Map<String, Json>) -> Result<Vec<Value<'static>>, ReactionError> {
        let schema = self.on.schema();
        let mut values = vec![Value::Null; schema.columns.len()];
        for (name, given) in event {
            let Some(column) = schema.find(name) else {
                let hint = did_you_mean(schema.closest(name));
                let name = name.escape_debug();
                return Err(ReactionError::Event(format!("there is no column `{name}`{hint}")));
            };
            let kind = schema.columns[column].kind;
            values[column] = value_of(given, kind).ok_or_else(|| {
                ReactionError::Event(format!("`{}` is a value of kind {}", name, kind.name()))
            })?;
        }
        Ok(values)
    }
}

/// A JSON object with these columns.
fn object_of(columns: &[&str]) -> String {
    let pairs: Vec<String> =
        columns.iter().map(|name| format!("\"{name}\": ${{{name}}}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

/// Takes a text with `${column}` in it apart.
fn pieces(text: &str, schema: &'static Schema) -> Result<Vec<Piece>, ReactionError> {
    if text.len() > DATA_BYTES_MAX {
        return Err(ReactionError::DataLong(text.len()));
    }
    let mut pieces = Vec::new();
    let (mut rest, mut in_text) = (text, false);
    while let Some(at) = rest.find("${") {
        let open = text.len() - rest.len() + at;
        in_text = ends_in_text(&rest[..at], in_text);
        pieces.push(Piece::Text(rest[..at].to_owned()));
        let (name, behind) = rest[at + 2..].split_once('}').ok_or(ReactionError::DataOpen(open))?;
        let column = schema.find(name).ok_or_else(|| ReactionError::DataColumn {
            name: name.to_owned(),
            closest: schema.closest(name),
        })?;
        if in_text {
            return Err(ReactionError::DataQuoted(schema.columns[column].name.to_owned()));
        }
        pieces.push(Piece::Column(column));
        rest = behind;
    }
    pieces.push(Piece::Text(rest.to_owned()));
    // A value is one token of JSON where it stands, whichever it is: if one fits, all do. A blank on
    // both sides keeps it from growing together with its neighbours.
    let tried: String = written(&pieces, &|_| Value::Null);
    serde_json::from_str::<serde::de::IgnoredAny>(&tried)
        .map_err(|error| ReactionError::DataJson(error.to_string()))?;
    Ok(pieces)
}

/// Whether JSON that began within a text or outside of one ends within one.
fn ends_in_text(json: &str, mut in_text: bool) -> bool {
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_text = !in_text,
            b'\\' if in_text => drop(bytes.next()),
            _ => {}
        }
    }
    in_text
}

fn written<'r>(pieces: &[Piece], value: &dyn Fn(ColumnIndex) -> Value<'r>) -> String {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(piece) => text.push_str(piece),
            Piece::Column(column) => {
                text.push(' ');
                text.push_str(&json_of(&value(*column)).to_string());
                text.push(' ');
            }
        }
    }
    text
}

/// A value as JSON; bytes that are no UTF-8 as U+FFFD.
fn json_of(value: &Value<'_>) -> Json {
    let text = |text: &[u8]| Json::String(String::from_utf8_lossy(text).into_owned());
    match value {
        Value::Null => Json::Null,
        Value::Bool(flag) => (*flag).into(),
        Value::Int(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::Text(bytes) => text(bytes),
        Value::TextList(list) => text_list_items(list).map(text).collect(),
    }
}

/// A value of this kind from JSON.
fn value_of(json: &Json, kind: Kind) -> Option<Value<'static>> {
    Some(match (json, kind) {
        (Json::Null, _) => Value::Null,
        (Json::Bool(flag), Kind::Bool) => Value::Bool(*flag),
        (Json::Number(number), Kind::Int) => Value::Int(number.as_i64()?),
        (Json::Number(number), Kind::Float) => Value::Float(number.as_f64()?),
        (Json::String(text), Kind::Text) => Value::owned_text(text.as_str()),
        (Json::Array(texts), Kind::TextList) => {
            let mut list = String::new();
            for text in texts {
                list.push_str(text.as_str().filter(|text| !text.contains('\0'))?);
                list.push('\0');
            }
            Value::TextList(list.into_bytes().into())
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn reaction(when: &str, data: Option<&str>) -> Reaction {
        let of = json!({"when": when, "service": "kv", "method": "call", "data": data});
        serde_json::from_value(of).expect("a reaction")
    }

    fn compiled(when: &str, data: Option<&str>) -> Compiled {
        reaction(when, data).compile().expect("a good reaction")
    }

    fn said(when: &str, data: &str) -> String {
        reaction(when, Some(data)).compile().expect_err("bad").to_string()
    }

    #[test]
    fn names() {
        let long = "a".repeat(63);
        for good in ["a", "0-9", "restart-web", &long] {
            assert_eq!(good.parse::<ReactionName>().expect(good).as_str(), good);
        }
        for bad in ["", "A", "a.b", "a/b", "a_b", "é", "journal", "test", &"a".repeat(64)] {
            assert!(bad.parse::<ReactionName>().is_err(), "for {bad:?}");
        }
    }

    #[test]
    fn what_is_not_said_has_a_default_and_what_is_unknown_is_refused() {
        let known = reaction("true", None);
        assert_eq!((known.on, known.budget_ms, known.calls_per_s), (Watched::Process, 5_000, 5));
        assert!(known.enabled);
        let of = json!({"when": "true", "service": "kv", "method": "x", "budget": 5});
        let error = serde_json::from_value::<Reaction>(of).expect_err("no such field");
        assert!(error.to_string().contains("`budget`"), "{error}");
        let bounds = [(0, 5, 0), (BUDGET_MS_MAX + 1, 5, 0), (1, 0, 0), (1, CALLS_PER_S_MAX + 1, 0)];
        for (budget_ms, calls_per_s, depth_max) in bounds {
            let bad = Reaction { budget_ms, calls_per_s, depth_max, ..known.clone() };
            assert!(bad.compile().is_err(), "for {bad:?}");
        }
    }

    #[test]
    fn conditions_are_of_what_is_watched() {
        let when = |on: Watched, when: &str| Reaction { on, ..reaction(when, None) }.compile();
        assert!(when(Watched::Process, "event == 'exit' && exit_code != 0").is_ok());
        assert!(when(Watched::Host, "state == 'dead' && dc == 'tokyo'").is_ok());
        assert!(when(Watched::Service, "service == 'kv' && ready == 0").is_ok());
        let error = when(Watched::Service, "redy == 0").expect_err("no column").to_string();
        assert!(error.contains("did you mean `ready`?"), "{error}");
        assert!(when(Watched::Host, "pid == 1").is_err());
    }

    #[test]
    fn only_who_asks_for_reaps_hears_them() {
        assert!(!compiled("comm == 'a'", None).hears_reaps());
        assert!(compiled("comm == 'a' && event != 'exec'", None).hears_reaps());
    }

    #[test]
    fn data_are_json_with_values_in_them() {
        let compiled =
            compiled("true", Some(r#"{"a": ${pid}, "b": [${comm},${ARGV}], "$": "\"$"}"#));
        let values = compiled.given(
            json!({"pid": 7, "comm": "\"x\u{1b}", "argv": ["a", ""]}).as_object().expect("object"),
        );
        let values = values.expect("an event");
        let data: Json =
            serde_json::from_str(&compiled.data(&|at| values[at].clone())).expect("JSON");
        assert_eq!(data, json!({"a": 7, "b": ["\"x\u{1b}", ["a", ""]], "$": "\"$"}));
        let summary = compiled.summary(&|at| values[at].clone());
        assert_eq!((&summary["pid"], &summary["exit_code"]), (&json!(7), &Json::Null));
    }

    #[test]
    fn data_that_could_break_are_refused() {
        assert!(said("true", "${pidd}").contains("did you mean `pid`?"));
        assert!(said("true", r#"{"a": "x ${comm}"}"#).contains("write {\"name\": ${comm}}"));
        assert!(said("true", r#"{"a": "\\\" ${comm}"}"#).contains("within a text"));
        assert!(said("true", "{\"a\": ${pid").contains("at byte 6"));
        for bad in ["", "{", "a ${pid}", "${pid}${pid}", "1${pid}", "{${pid}: 1}"] {
            assert!(said("true", bad).contains("no JSON"), "for {bad:?}");
        }
        let long = "1".repeat(DATA_BYTES_MAX + 1);
        assert!(said("true", &long).contains("16384"));
    }

    #[test]
    fn events_that_somebody_wrote_are_checked() {
        let compiled = compiled("true", None);
        let given = |event: Json| compiled.given(event.as_object().expect("an object"));
        assert!(given(json!({"pid": 7, "lifetime": 1, "comm": null})).is_ok());
        for bad in
            [json!({"pidd": 7}), json!({"pid": "7"}), json!({"comm": 7}), json!({"pid": 1.5})]
        {
            assert!(given(bad.clone()).is_err(), "for {bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_process_is_called_the_data_stay_json(
            comm in prop::collection::vec(any::<u8>(), 0..40),
            template in r#"[\[\]{}":, $a\\0-9]{0,12}(\$\{comm\})?[\[\]{}":, a\\0-9]{0,6}"#,
        ) {
            if let Ok(compiled) = reaction("true", Some(&template)).compile() {
                let data = compiled.data(&|_| Value::owned_text(comm.clone()));
                prop_assert!(serde_json::from_str::<Json>(&data).is_ok(), "{template}: {data}");
            }
        }
    }
}
