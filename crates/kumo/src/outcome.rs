//! How a call ended, in words for people, as a document, and as an exit code.

use std::time::Duration;

use kumo_abi::call::{Cause, RootId};
use middlecon::{Answerer, CallError};
use serde::Serialize;

use crate::answer::peer_text;
use crate::callee::Callee;
use crate::exit::Exit;

/// How a command ends whose call ended so.
pub fn exit(result: &Result<impl AsRef<[u8]>, CallError>) -> Exit {
    match result {
        Ok(_) => Exit::Done,
        Err(CallError::Failed { .. }) => Exit::CalleeFailed,
        Err(CallError::NotExecuted { .. }) => Exit::NotExecuted,
        Err(CallError::Unknown { .. }) => Exit::Unknown,
    }
}

/// What a cause means, for who reads no code.
pub fn meaning(cause: Cause) -> &'static str {
    match cause {
        Cause::Busy => "all places of the callee are taken",
        Cause::NoSuch => "nobody serves that name",
        Cause::Stale => "the instance that was meant has been followed by another",
        Cause::Denied => "the caller may not; `kumo why` looks further",
        Cause::Deadline => "the budget was spent",
        Cause::Cancelled => "the caller gave up",
        Cause::Died => "the callee's process ended",
        Cause::HostLost => "the callee's host fell silent",
        Cause::Suspended => "the callee's process stands still: it is stopped or frozen",
        Cause::Partition => "the way between the two hosts is cut",
        Cause::Cycle => "the call would wait for itself",
        Cause::Depth => "the chain of calls is too long",
        Cause::Panic => "the callee's handler crashed",
        Cause::TooLarge => "something is larger than it may be",
        Cause::Malformed => "what was sent breaks the protocol; are both of one version?",
        Cause::NoNode => "no node runs on this host",
        Cause::Draining => "the callee is about to end and takes no new calls",
        Cause::Exhausted => "this program, its node or its host is at a limit of its own",
        Cause::Lost => "the connection ended and nobody said why",
    }
}

/// What happened and whether trying again is safe, in one line.
pub fn words(callee: &Callee, error: &CallError) -> String {
    match error {
        CallError::Failed { code, message } if message.is_empty() => {
            format!("{callee} ran and failed with code {code}")
        }
        CallError::Failed { code, message } => {
            format!("{callee} ran and failed with code {code}: {message}")
        }
        CallError::NotExecuted { cause, message, path, retry_after_ms } => {
            let mut line = format!("{callee} was not executed: {}", because(*cause, message));
            if !path.is_empty() {
                let services: Vec<&str> = path.iter().map(|hop| hop.service.as_str()).collect();
                line.extend(["; its way is ", &services.join(" -> ")]);
            }
            match (retry_after_ms, is_worth_a_try(*cause)) {
                (Some(ms), _) => {
                    line.extend(["; trying again is safe, in ", &ms.to_string(), " ms"]);
                }
                (None, true) => line += "; trying again is safe",
                (None, false) => {}
            }
            line
        }
        CallError::Unknown { cause, message } => format!(
            "nobody knows whether {callee} was executed: {}; look at what it changes before you call again",
            because(*cause, message)
        ),
    }
}

/// Why there is no reply, with the word for it.
pub fn because(cause: Cause, message: &str) -> String {
    if message.is_empty() {
        format!("{} ({cause})", meaning(cause))
    } else {
        format!("{message} ({cause})")
    }
}

/// Whether the same call may succeed a little later. What was not executed may always be tried again,
/// but that is no help where the call itself is wrong.
fn is_worth_a_try(cause: Cause) -> bool {
    !matches!(
        cause,
        Cause::NoSuch
            | Cause::Denied
            | Cause::Cycle
            | Cause::Depth
            | Cause::TooLarge
            | Cause::Malformed
            | Cause::NoNode
            | Cause::Cancelled
    )
}

/// The end of a call as a document.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    service: &'a str,
    method: &'a str,
    /// `done`, `failed` (it ran, and the callee said no), `not-executed` or `unknown`, as in traces.
    outcome: &'static str,
    /// Whether it certainly was not executed, so that trying again does nothing twice.
    safe_to_retry: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    path: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<&'a str>,
    /// Instead of it, where the reply is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_base64: Option<String>,
    /// Who answered, as the nodes say; only where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    trace: String,
    took_ms: f64,
}

impl<'a> Document<'a> {
    /// Of one call.
    pub fn new(
        callee: &'a Callee,
        result: &'a Result<impl AsRef<[u8]>, CallError>,
        trace: RootId,
        took: Duration,
    ) -> Document<'a> {
        let mut document = Document {
            service: callee.service.as_str(),
            method: callee.method.as_str(),
            outcome: "done",
            safe_to_retry: false,
            cause: None,
            code: None,
            message: None,
            path: Vec::new(),
            retry_after_ms: None,
            reply: None,
            reply_base64: None,
            peer: None,
            instance: None,
            trace: trace.to_string(),
            // To the microsecond.
            took_ms: took.as_micros() as f64 / 1e3,
        };
        match result {
            Ok(reply) => {
                let reply = reply.as_ref();
                document.reply = std::str::from_utf8(reply).ok();
                if document.reply.is_none() {
                    document.reply_base64 = Some(data_encoding::BASE64.encode(reply));
                }
            }
            Err(CallError::Failed { code, message }) => {
                (document.outcome, document.code) = ("failed", Some(*code));
                document.message = Some(message.as_str());
            }
            Err(CallError::NotExecuted { cause, message, path, retry_after_ms }) => {
                (document.outcome, document.safe_to_retry) = ("not-executed", true);
                (document.cause, document.message) = (Some(cause.name()), Some(message.as_str()));
                document.path = path.iter().map(|hop| hop.service.as_str()).collect();
                document.retry_after_ms = *retry_after_ms;
            }
            Err(CallError::Unknown { cause, message }) => {
                document.outcome = "unknown";
                (document.cause, document.message) = (Some(cause.name()), Some(message.as_str()));
            }
        }
        document
    }

    /// The same with who answered.
    #[must_use]
    pub fn by(self, answerer: Option<&Answerer>) -> Document<'a> {
        let peer = answerer.map(|answerer| peer_text(&answerer.peer));
        let instance = answerer.map(|answerer| answerer.instance.to_string());
        Document { peer, instance, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumo_abi::call::{CAUSES, Hop, InstanceId};
    use serde_json::json;

    fn callee() -> Callee {
        "kv/read".parse().expect("a callee")
    }

    fn not_executed(cause: Cause, message: &str) -> CallError {
        let message = message.to_owned();
        CallError::NotExecuted { cause, message, path: Vec::new(), retry_after_ms: None }
    }

    #[test]
    fn words_say_whether_it_ran() {
        let hop =
            |name: &str| Hop { instance: InstanceId(1), service: name.parse().expect("a name") };
        let cases = [
            (
                CallError::Failed { code: 3, message: "no row".to_owned() },
                "kv/read ran and failed with code 3: no row",
            ),
            (
                CallError::Failed { code: 1, message: String::new() },
                "kv/read ran and failed with code 1",
            ),
            (
                not_executed(Cause::Died, ""),
                "kv/read was not executed: the callee's process ended (DIED); trying again is safe",
            ),
            (
                not_executed(Cause::NoSuch, "nobody serves kv"),
                "kv/read was not executed: nobody serves kv (NO_SUCH)",
            ),
            (
                CallError::NotExecuted {
                    cause: Cause::Busy,
                    message: String::new(),
                    path: Vec::new(),
                    retry_after_ms: Some(10),
                },
                "kv/read was not executed: all places of the callee are taken (BUSY); trying again is \
                 safe, in 10 ms",
            ),
            (
                CallError::NotExecuted {
                    cause: Cause::Cycle,
                    message: String::new(),
                    path: vec![hop("a"), hop("b"), hop("a")],
                    retry_after_ms: None,
                },
                "kv/read was not executed: the call would wait for itself (CYCLE); its way is a -> b -> a",
            ),
            (
                CallError::Unknown { cause: Cause::Deadline, message: String::new() },
                "nobody knows whether kv/read was executed: the budget was spent (DEADLINE); look at \
                 what it changes before you call again",
            ),
        ];
        for (error, want) in cases {
            assert_eq!(words(&callee(), &error), want);
        }
        for cause in CAUSES {
            assert!(!meaning(cause).is_empty() && !meaning(cause).ends_with('.'), "{cause}");
        }
    }

    #[test]
    fn documents_and_exit_codes() {
        let of = |result: Result<&'static [u8], CallError>| {
            let callee = callee();
            let document =
                Document::new(&callee, &result, RootId([0xab; 16]), Duration::from_micros(1_234));
            let mut document = serde_json::to_value(document).expect("JSON");
            let object = document.as_object_mut().expect("an object");
            assert_eq!(object.remove("trace"), Some(json!("ab".repeat(16))));
            assert_eq!(object.remove("took_ms"), Some(json!(1.234)));
            object.remove("service");
            object.remove("method");
            (exit(&result), document)
        };
        let cases = [
            (
                Ok(&b"hello"[..]),
                Exit::Done,
                json!({"outcome": "done", "safe_to_retry": false, "reply": "hello"}),
            ),
            (
                Ok(&[0xff, 0][..]),
                Exit::Done,
                json!({"outcome": "done", "safe_to_retry": false, "reply_base64": "/wA="}),
            ),
            (
                Err(CallError::Failed { code: 7, message: "no".to_owned() }),
                Exit::CalleeFailed,
                json!({"outcome": "failed", "safe_to_retry": false, "code": 7, "message": "no"}),
            ),
            (
                Err(not_executed(Cause::NoNode, "none")),
                Exit::NotExecuted,
                json!({"outcome": "not-executed", "safe_to_retry": true, "cause": "NO_NODE",
                       "message": "none"}),
            ),
            (
                Err(CallError::Unknown { cause: Cause::HostLost, message: String::new() }),
                Exit::Unknown,
                json!({"outcome": "unknown", "safe_to_retry": false, "cause": "HOST_LOST",
                       "message": ""}),
            ),
        ];
        for (result, want_exit, want) in cases {
            assert_eq!(of(result), (want_exit, want));
        }
    }
}
