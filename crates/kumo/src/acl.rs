//! `kumo acl`: who may call a service, and who may serve it.

use hyper::Method as Http;
use kumo_abi::call::{MethodPattern, ServiceName};
use serde_json::{Map, Value, json};

use crate::error::CommandError;
use crate::exit::Exit;
use crate::json;
use crate::output::Output;
use crate::source::{Ask, NodeArgs, Source, SourceError};

/// Show or set who may call a service, and who may serve it
///
/// A service without a list may be called by everybody in the cluster, and served by root and by the
/// user that holds its name. The list is known on all hosts, and asked whenever a connection is granted.
#[derive(Clone, Debug, clap::Args)]
pub struct Acl {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: ServiceName,
    /// Let these call it, and no others; may be repeated
    #[arg(long, value_name = "PATTERN")]
    allow: Vec<String>,
    /// They may call these methods only: a name, or a beginning with * behind it; may be repeated
    #[arg(long = "method", value_name = "METHOD", requires = "allow")]
    methods: Vec<MethodPattern>,
    /// Let these serve it, and no others; may be repeated
    #[arg(long, value_name = "PATTERN")]
    serve: Vec<String>,
    /// Add to the list that is there, instead of writing it anew
    #[arg(long)]
    add: bool,
    /// Let nobody call it
    #[arg(long, conflicts_with_all = ["allow", "add"])]
    deny_all: bool,
    /// Remove the list
    #[arg(long, conflicts_with_all = ["allow", "serve", "deny_all", "add"])]
    remove: bool,
    /// Print the list as one JSON document
    #[arg(long)]
    json: bool,
    /// Which node.
    #[command(flatten)]
    pub at: NodeArgs,
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo acl kv                                        show it
  kumo acl kv --allow 'spiffe://acme/dc/*/host/*/service/web'
  kumo acl kv --add --allow 'spiffe://acme/dc/tokyo/host/*/user/1000' --method read --method 'list-*'
  kumo acl kv --serve 'spiffe://acme/dc/*/host/*/user/0'
  kumo acl kv --remove                               everybody may call it again

A PATTERN is spiffe://CLUSTER/dc/DC/host/HOST, with /service/NAME or /user/NUMBER behind it, and `*` for any
one name. Connections that are open stay as they were granted. Exit status: 0 shown or set, 1 failed or
there is no list, 2 wrong usage.";

/// Runs it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &Acl, node: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let path = format!("/v2/calls/acl/{}", args.service);
    if args.remove {
        let ask = Ask { method: Http::DELETE, ..Ask::get(path) };
        let answer: Value = node.json(&ask)?;
        let was = answer.get("removed").and_then(Value::as_bool) == Some(true);
        out.line(if was {
            format!("kumo: the list of {} is removed; everybody may call it", args.service)
        } else {
            format!("kumo: {} had no list", args.service)
        })?;
        return Ok(Exit::Done);
    }
    let changes = !args.allow.is_empty() || !args.serve.is_empty() || args.deny_all;
    if args.add && !changes {
        let what = "--add adds what --allow and --serve say; name one of them";
        return Err(CommandError::Usage(what.to_owned()));
    }
    let known = if changes && !args.add { None } else { ask(node, &path)? };
    if !changes {
        return show(args, known.as_ref(), out);
    }
    let ask = Ask { method: Http::PUT, ..Ask::post(path, &changed(args, known)) };
    let answer: Value = node.json(&ask)?;
    show(args, answer.get("acl"), out)
}

/// The list that is there; nothing where there is none.
fn ask(node: &Source, path: &str) -> Result<Option<Value>, CommandError> {
    match node.json::<Value>(&Ask::get(path.to_owned())) {
        Ok(answer) => Ok(answer.get("acl").cloned()),
        Err(SourceError::Refused(problem)) if problem.status == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The list as it is to be.
fn changed(args: &Acl, known: Option<Value>) -> Value {
    let mut list = match known {
        Some(Value::Object(list)) => list,
        _ => Map::new(),
    };
    if args.deny_all {
        list.insert("call".to_owned(), json!([]));
    }
    let mut push = |name: &str, more: Vec<Value>| {
        if more.is_empty() {
            return;
        }
        match list.get_mut(name).and_then(Value::as_array_mut) {
            Some(known) => known.extend(more),
            None => {
                list.insert(name.to_owned(), Value::Array(more));
            }
        }
    };
    let mut rule = json!({ "from": args.allow });
    if !args.methods.is_empty() {
        rule["methods"] = json!(args.methods);
    }
    push("call", if args.allow.is_empty() { Vec::new() } else { vec![rule] });
    push("serve", args.serve.iter().map(|pattern| json!(pattern)).collect());
    Value::Object(list)
}

fn show(args: &Acl, list: Option<&Value>, out: &mut Output) -> Result<Exit, CommandError> {
    if args.json {
        out.line(json::pretty(&json!({ "service": args.service, "acl": list }))?)?;
    } else if let Some(list) = list {
        for line in lines(list) {
            out.line(crate::text::visible(&line))?;
        }
    } else {
        out.warn(format_args!(
            "{} has no list: everybody in the cluster may call it, and root or the user that holds the \
             name may serve it",
            args.service
        ));
    }
    Ok(if list.is_some() { Exit::Done } else { Exit::Failed })
}

/// A list in words, a rule a line.
pub fn lines(list: &Value) -> Vec<String> {
    let texts = |value: Option<&Value>| -> Vec<String> {
        let all = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        all.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut lines = Vec::new();
    match list.get("call").and_then(Value::as_array).map(Vec::as_slice) {
        None => lines.push("call   everybody".to_owned()),
        Some([]) => lines.push("call   nobody".to_owned()),
        Some(rules) => {
            for rule in rules {
                let methods = texts(rule.get("methods"));
                let methods = if methods.is_empty() { "*".to_owned() } else { methods.join(" ") };
                let from = texts(rule.get("from"));
                lines.extend(from.iter().map(|from| format!("call   {from}  {methods}")));
            }
        }
    }
    match list.get("serve") {
        None => lines.push("serve  root, and the user that holds the name".to_owned()),
        Some(serve) => {
            let serve = texts(Some(serve));
            if serve.is_empty() {
                lines.push("serve  nobody".to_owned());
            }
            lines.extend(serve.iter().map(|pattern| format!("serve  {pattern}")));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        acl: Acl,
    }

    #[test]
    fn lists_are_written_anew_or_added_to() {
        let of = |line: &str, known: Option<Value>| {
            let words = ["kumo", "kv"].into_iter().chain(line.split(' '));
            changed(&Cli::try_parse_from(words).expect("good usage").acl, known)
        };
        let known = || Some(json!({"call": [{"from": ["a"], "methods": ["*"]}]}));
        let cases = [
            (of("--allow b", None), json!({"call": [{"from": ["b"]}]})),
            (
                of("--add --allow b --allow c --method read", known()),
                json!({"call": [{"from": ["a"], "methods": ["*"]},
                                {"from": ["b", "c"], "methods": ["read"]}]}),
            ),
            (
                of("--add --serve s", known()),
                json!({"call": [{"from": ["a"], "methods": ["*"]}], "serve": ["s"]}),
            ),
            (of("--deny-all", None), json!({"call": []})),
        ];
        for (got, want) in cases {
            assert_eq!(got, want);
        }
        for bad in [
            "--method read",
            "--remove --allow b",
            "--deny-all --allow b",
            "--allow b --method a*b",
        ] {
            let words = ["kumo", "kv"].into_iter().chain(bad.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "for {bad:?}");
        }
    }

    #[test]
    fn lists_in_words() {
        let list =
            json!({"call": [{"from": ["a", "b"], "methods": ["read", "x*"]}], "serve": ["c"]});
        assert_eq!(lines(&list), ["call   a  read x*", "call   b  read x*", "serve  c"]);
        assert_eq!(
            lines(&json!({"call": []})),
            ["call   nobody", "serve  root, and the user that holds the name"]
        );
    }
}
