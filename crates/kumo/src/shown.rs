//! What nodes show of calls: the documents of `/v2/calls/…`, of one host or of many.

use std::fmt;

use kumo_abi::HostId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::CommandError;
use crate::exit::Exit;
use crate::many::{self, Asked, Progress};
use crate::output::Output;
use crate::scope::Scope;
use crate::source::{Ask, Source};

/// The servers of one host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Services {
    /// The host.
    #[serde(flatten)]
    pub at: HostId,
    /// Those that run there.
    pub instances: Vec<Instance>,
    /// What it knows of other hosts.
    #[serde(default)]
    pub elsewhere: Vec<Elsewhere>,
    /// Of each service the connection that it refused last to a program of its own.
    #[serde(default)]
    pub refused: Vec<Refused>,
}

/// A connection that a node refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// With whom.
    pub service: String,
    /// To which process.
    pub pid: u32,
    /// Of which user.
    pub uid: u32,
    /// Why.
    pub cause: String,
    /// In words.
    pub message: String,
    /// How long ago.
    pub ago_ms: u64,
}

/// A server.
#[expect(clippy::struct_field_names, reason = "these are the names of the answer")]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Instance {
    /// What it serves.
    pub service: String,
    /// 16 hexadecimal digits.
    pub instance: String,
    /// `ready`, `draining` or `suspended`.
    pub state: String,
    /// Its process.
    pub pid: u32,
    /// The user it runs as.
    pub uid: u32,
    /// Handlers that run at once.
    pub slots: u16,
    /// Calls that may wait for one.
    pub credit: u16,
    /// Connections of callers.
    pub connections: u32,
    /// Calls that callers on its host wait for.
    pub in_flight: u32,
    /// How long it has served.
    pub serves_ms: u64,
}

/// What a host knows of another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Elsewhere {
    /// The other host.
    #[serde(flatten)]
    pub at: HostId,
    /// What it serves.
    pub service: String,
    /// Instances that answer.
    pub ready: u32,
    /// Instances that would after a wake-up.
    pub asleep: u32,
    /// Connections for each 100 slots.
    pub load_percent: u32,
    /// Whether it is believed.
    pub current: bool,
}

/// Who waits for whom on one host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Blocked {
    /// The host.
    #[serde(flatten)]
    pub at: HostId,
    /// Calls that wait, the longest first.
    pub edges: Vec<Edge>,
    /// Calls that are not shown, as there was no room for them.
    #[serde(default)]
    pub unlisted: u64,
}

/// A call that waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Edge {
    /// Who waits.
    pub caller: Party,
    /// For whom.
    pub callee: Party,
    /// For which method, where that is known.
    pub method: Option<String>,
    /// Its trace.
    pub root: String,
    /// Which.
    pub call: String,
    /// The call that it is part of.
    pub parent: Option<String>,
    /// 1 for a call at the root.
    pub hop: u8,
    /// How long it has waited.
    pub waits_ms: u64,
    /// What is left of its budget.
    pub left_ms: u64,
    /// `ring`, `socket`, `tls` or `spliced`.
    pub carrier: String,
}

/// One end of a call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Party {
    /// Its host.
    #[serde(flatten)]
    pub at: HostId,
    /// 0 where nobody knows it.
    pub pid: u32,
    /// As which service.
    pub service: Option<String>,
    /// Else as which user.
    pub uid: Option<u32>,
    /// Which instance, for a callee.
    pub instance: Option<String>,
    /// Whether it stands still.
    #[serde(default)]
    pub suspended: bool,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.service, self.uid) {
            (Some(service), _) => f.write_str(service)?,
            (None, Some(uid)) => write!(f, "user {uid}")?,
            (None, None) => f.write_str("?")?,
        }
        write!(f, " on {}", self.at)?;
        if self.pid == 0 { Ok(()) } else { write!(f, "/{}", self.pid) }
    }
}

/// What one host saw of a trace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trace {
    /// The host.
    #[serde(flatten)]
    pub at: HostId,
    /// By start; a call between two programs is seen twice.
    pub spans: Vec<Span>,
    /// Whether there were more.
    #[serde(default)]
    pub cut: bool,
}

/// A call, as one of its sides saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Span {
    /// `caller` or `callee`.
    pub side: String,
    /// The process that saw it.
    pub pid: u32,
    /// What was called, where that is known.
    pub service: Option<String>,
    /// Its method.
    pub method: Option<String>,
    /// Which call.
    pub call: String,
    /// The call that it is part of.
    pub parent: Option<String>,
    /// 1 for a call at the root.
    pub hop: u8,
    /// RFC 3339 in UTC with six digits of a second, by that host's clock.
    pub start: String,
    /// How long it took, or has taken so far.
    pub took_ns: u64,
    /// `done`, `failed`, `not-executed`, `unknown` or `running`.
    pub outcome: String,
    /// Why, for the third and the fourth.
    pub cause: Option<String>,
    /// The callee's code, for the second.
    pub code: Option<u32>,
}

/// Documents of the hosts that were asked.
#[derive(Debug)]
pub struct Shown<T> {
    /// One of each host that answered.
    pub of_hosts: Vec<T>,
    /// Who was asked, where it was many.
    pub asked: Option<Asked>,
    strange: Vec<HostId>,
}

impl<T> Shown<T> {
    /// What this host said where no node was asked.
    pub fn of_one(one: T) -> Shown<T> {
        Shown { of_hosts: vec![one], asked: None, strange: Vec::new() }
    }
}

impl<T: DeserializeOwned> Shown<T> {
    /// Asks the node, or through it the hosts of `scope`, for `/v2/{about}`.
    ///
    /// # Errors
    /// No node answers, or nobody.
    pub fn ask(
        source: &Source,
        about: &str,
        scope: &Scope,
        out: &Output,
    ) -> Result<Shown<T>, CommandError> {
        if !scope.is_many() {
            let one = source.json(&Ask::get(format!("/v2/{about}")))?;
            return Ok(Shown { of_hosts: vec![one], asked: None, strange: Vec::new() });
        }
        let progress = Progress::new(source, scope, false, out);
        let answers = many::answers(source, about, scope, progress)?;
        let (mut of_hosts, mut strange) = (Vec::new(), Vec::new());
        for answer in answers.answers {
            match serde_json::from_value(answer.body) {
                Ok(body) if answer.status == 200 => of_hosts.push(body),
                _ => strange.push(answer.id),
            }
        }
        Ok(Shown { of_hosts, asked: Some(answers.hosts), strange })
    }

    /// Says who is missing; how the command ends that would end with `exit` otherwise.
    pub fn tell(&self, exit: Exit, out: &mut Output) -> Exit {
        for id in &self.strange {
            out.warn(format_args!("{id} does not tell its calls; is it of another version?"));
        }
        let exit = if self.strange.is_empty() { exit } else { Exit::Partial };
        self.asked.as_ref().map_or(exit, |asked| asked.tell(exit, out))
    }

    /// The document for `--json`: what one host answered, or all of them with who is missing.
    pub fn document(&self) -> serde_json::Value
    where
        T: Serialize,
    {
        match (&self.asked, self.of_hosts.as_slice()) {
            (None, [one]) => serde_json::json!(one),
            (asked, all) => serde_json::json!({ "hosts": asked, "answers": all }),
        }
    }
}

/// Milliseconds for people: `1.24 ms`, `740 ms`, `1.50 s`, `3 min 2 s`.
pub fn millis(ms: f64) -> String {
    match ms {
        _ if ms < 100.0 => format!("{ms:.2} ms"),
        _ if ms < 1_000.0 => format!("{ms:.0} ms"),
        _ if ms < 60_000.0 => format!("{:.2} s", ms / 1e3),
        _ => crate::units::span(ms / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_for_people() {
        let cases = [
            (0.012, "0.01 ms"),
            (1.236, "1.24 ms"),
            (740.2, "740 ms"),
            (1_504.0, "1.50 s"),
            (182_000.0, "3 min 2 s"),
        ];
        for (ms, want) in cases {
            assert_eq!(millis(ms), want);
        }
    }
}
