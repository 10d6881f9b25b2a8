//! `kumo rights`: who one is for a node, and tokens by which others are known.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::Method as Http;
use k2i::http::known_by;
use k2i::token::{Kept, KeyHash, Revoked, TTL_MAX, Token, TokenFile};
use kumo_abi::TokenName;
use kumo_abi::rights::{Rights as Held, Role, Scope};
use serde_json::{Value, json};

use crate::error::CommandError;
use crate::exit::Exit;
use crate::json;
use crate::membership::span;
use crate::output::Output;
use crate::source::{Ask, NodeArgs, Source};
use crate::text::visible;

/// Most of a certificate's file that is read: what a request may hold.
const PEM_BYTES_MAX: u64 = 48 * 1024;

/// Show who you are for the node and what you may, and make tokens for others
///
/// On the node's socket the kernel says who asks: root and the user of the node may do all. Elsewhere one
/// shows a token. A token has a role (view, operate or admin) and can have single scopes beside it. It is
/// printed once; the cluster keeps a hash of it, and it is good on all hosts.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Rights {
    #[command(subcommand)]
    what: Option<What>,
    /// Print the answer as one JSON document
    #[arg(long)]
    json: bool,
    /// Which node.
    #[command(flatten)]
    at: NodeArgs,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Make, list and take back tokens
    #[command(subcommand, after_help = EXAMPLES)]
    Token(TokenCommand),
    /// Take back certificates by which people and programs ask over HTTPS, and list those
    #[command(subcommand, after_help = EXAMPLES)]
    Certificate(CertificateCommand),
}

#[derive(Clone, Debug, clap::Subcommand)]
enum CertificateCommand {
    /// Take a certificate back, for ever: it and others of its key open nothing more
    Revoke(Revoke),
    /// List the certificates that were taken back
    List(List),
}

#[derive(Clone, Debug, clap::Args)]
struct Revoke {
    /// Which: a file with it in PEM, or the SHA-256 of its key in 64 hexadecimal digits
    #[arg(value_name = "FILE|KEY")]
    which: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum TokenCommand {
    /// Make a token, and print it: nobody can show it again
    #[command(after_help = EXAMPLES)]
    Add(Add),
    /// List the tokens there are
    List(List),
    /// Take a token back: it is not taken from now on
    Remove(Remove),
}

#[derive(Clone, Debug, clap::Args)]
struct Add {
    /// Whom it is for: 1 to 63 of a-z, 0-9, `-` and `.`
    #[arg(value_name = "NAME")]
    name: TokenName,
    /// What it is for: view looks, operate sends signals, sets kernel parameters and calls, admin does all
    #[arg(long, value_name = "ROLE", default_value = "view")]
    role: Role,
    /// One thing more that it may do: command-line, environment, signal, sysctl-write, call, manage; may be
    /// repeated
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// How long it is good: 30m, 12h, 90d, or never for without an end
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = ttl)]
    ttl: Ttl,
    /// Replace the token that has this name
    #[arg(long)]
    replace: bool,
    /// Print it with what is known of it, as one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Debug, clap::Args)]
struct List {
    /// Print them as one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Debug, clap::Args)]
struct Remove {
    /// Whose
    #[arg(value_name = "NAME")]
    name: TokenName,
    #[command(flatten)]
    place: Place,
}

/// Where tokens are kept.
#[derive(Clone, Debug, clap::Args)]
struct Place {
    /// Keep them in this file, for a `k2i --tokens FILE` without a node
    #[arg(long, value_name = "FILE", conflicts_with_all = ["node", "run_dir"])]
    file: Option<PathBuf>,
    /// Which node.
    #[command(flatten)]
    at: NodeArgs,
}

/// How long a token is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ttl(Option<Duration>);

fn ttl(text: &str) -> Result<Ttl, String> {
    if text == "never" {
        return Ok(Ttl(None));
    }
    let ttl = span(text).map_err(|error| format!("{error}; or never"))?;
    match ttl {
        ttl if ttl.is_zero() => Err("such a token would be over at once".to_owned()),
        ttl if ttl > TTL_MAX => {
            Err(format!("{} days are the most; or never", TTL_MAX.as_secs() / 86_400))
        }
        ttl => Ok(Ttl(Some(ttl))),
    }
}

/// Examples at the end of the help.
pub const EXAMPLES: &str = "\
Examples:
  kumo rights                                              who am I
  kumo rights token add grafana                            it may look, for 30 days
  kumo rights token add ci --role operate --ttl 90d
  kumo rights token add audit --scope command-line         it may look, and sees command lines whole
  kumo rights token list
  kumo rights token remove ci                              on all hosts, at once
  kumo rights certificate revoke alice.pem                 it opens nothing more
  kumo rights token add probe --file /etc/k2i/tokens.json  for a k2i that runs without a node

Use it as `curl -H @FILE`, where FILE holds `Authorization: Bearer TOKEN`, or with kumo as --token-file FILE:
what stands in a command line is seen by every user of the host. Exit status: 0 done, 1 failed or there
is no such token, 2 wrong usage.";

impl Rights {
    /// Which node is asked.
    pub fn at(&mut self) -> &mut NodeArgs {
        match &mut self.what {
            None => &mut self.at,
            Some(
                What::Token(
                    TokenCommand::Add(Add { place, .. })
                    | TokenCommand::List(List { place, .. })
                    | TokenCommand::Remove(Remove { place, .. }),
                )
                | What::Certificate(
                    CertificateCommand::Revoke(Revoke { place, .. })
                    | CertificateCommand::List(List { place, .. }),
                ),
            ) => &mut place.at,
        }
    }
}

/// Runs it; a node is opened where one is asked.
///
/// # Errors
/// See [`CommandError`].
pub fn run(
    args: &Rights,
    open: &dyn Fn(&mut Output) -> Result<Source, CommandError>,
    out: &mut Output,
) -> Result<Exit, CommandError> {
    match &args.what {
        None => {
            let node = open(out)?;
            who(args.json, &node, out)
        }
        Some(What::Token(TokenCommand::Add(add))) => {
            if let Some(path) = &add.place.file {
                add_to_file(add, &TokenFile::at(path), out)
            } else {
                let node = open(out)?;
                let ask = json!({
                    "name": add.name, "role": add.role, "scopes": add.scopes,
                    "ttl_s": add.ttl.0.map(|ttl| ttl.as_secs()), "replace": add.replace,
                });
                let made = node.json(&Ask::post("/v2/rights/tokens".to_owned(), &ask))?;
                print_made(add, &made, out)
            }
        }
        Some(What::Token(TokenCommand::List(list))) => {
            let tokens = if let Some(path) = &list.place.file {
                of_file(&TokenFile::at(path))?
            } else {
                let node = open(out)?;
                node.json(&Ask::get("/v2/rights/tokens".to_owned()))?
            };
            print_list(list.json, &tokens, out)
        }
        Some(What::Certificate(CertificateCommand::Revoke(revoke))) => {
            let key = if let Some(path) = &revoke.place.file {
                let (key, name) = match certificate(&revoke.which)? {
                    Named::Pem(pem) => {
                        known_by(pem.as_bytes()).ok_or_else(|| no_certificate(&revoke.which))?
                    }
                    Named::Key(key) => (key, String::new()),
                };
                let by = format!("user {}", rustix::process::geteuid().as_raw());
                TokenFile::at(path).revoke(key, Revoked { name, at_ms: now_ms(), by })?;
                key.to_string()
            } else {
                let asked = match certificate(&revoke.which)? {
                    Named::Pem(pem) => json!({ "certificate": pem }),
                    Named::Key(key) => json!({ "key": key }),
                };
                let node = open(out)?;
                let path = "/v2/rights/certificates".to_owned();
                text(&node.json(&Ask::post(path, &asked))?, "key").to_owned()
            };
            out.line(format_args!(
                "kumo: the certificate with key {} is taken back",
                visible(&key)
            ))?;
            Ok(Exit::Done)
        }
        Some(What::Certificate(CertificateCommand::List(list))) => {
            let all = if let Some(path) = &list.place.file {
                let shown = |(key, one): (KeyHash, Revoked)| {
                    json!({
                        "key": key, "name": one.name, "revoked": time(one.at_ms), "by": one.by,
                    })
                };
                let all = TokenFile::at(path).revoked()?;
                json!({ "certificates": all.into_iter().map(shown).collect::<Vec<_>>() })
            } else {
                let node = open(out)?;
                node.json(&Ask::get("/v2/rights/certificates".to_owned()))?
            };
            print_revoked(list.json, &all, out)
        }
        Some(What::Token(TokenCommand::Remove(remove))) => {
            let was = if let Some(path) = &remove.place.file {
                TokenFile::at(path).remove(&remove.name)?
            } else {
                let node = open(out)?;
                let path = format!("/v2/rights/tokens/{}", remove.name);
                let ask = Ask { method: Http::DELETE, ..Ask::get(path) };
                let answer: Value = node.json(&ask)?;
                answer.get("removed").and_then(Value::as_bool) == Some(true)
            };
            if was {
                out.line(format_args!("kumo: token {} is taken back", remove.name))?;
                Ok(Exit::Done)
            } else {
                let lists = match &remove.place.file {
                    Some(path) => format!("list --file {}", path.display()),
                    None => "list".to_owned(),
                };
                out.warn(format_args!(
                    "there is no token {}; `kumo rights token {lists}` shows those there are",
                    remove.name
                ));
                Ok(Exit::Failed)
            }
        }
    }
}

/// How somebody says which certificate he means.
enum Named {
    Pem(String),
    Key(KeyHash),
}

fn certificate(which: &str) -> Result<Named, CommandError> {
    if let Ok(key) = which.parse() {
        return Ok(Named::Key(key));
    }
    let failed = |error| CommandError::Input(format!("certificate {which}"), error);
    let mut pem = String::new();
    let file = File::open(which).map_err(failed)?;
    file.take(PEM_BYTES_MAX).read_to_string(&mut pem).map_err(failed)?;
    Ok(Named::Pem(pem))
}

fn no_certificate(which: &str) -> CommandError {
    CommandError::Usage(format!("{} is no certificate in PEM", visible(which)))
}

fn print_revoked(as_json: bool, all: &Value, out: &mut Output) -> Result<Exit, CommandError> {
    if as_json {
        out.line(json::pretty(all)?)?;
        return Ok(Exit::Done);
    }
    let all = all.get("certificates").and_then(Value::as_array).map(Vec::as_slice);
    for one in all.unwrap_or_default() {
        let [key, revoked, by] = ["key", "revoked", "by"].map(|name| text(one, name));
        let line = format!("{key}  {}  {}, by {by}", day(revoked), text(one, "name"));
        out.line(visible(&line))?;
    }
    Ok(Exit::Done)
}

fn text<'a>(document: &'a Value, name: &str) -> &'a str {
    document.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn list_of(document: &Value, name: &str) -> String {
    let all = document.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

fn who(as_json: bool, node: &Source, out: &mut Output) -> Result<Exit, CommandError> {
    let answer: Value = node.json(&Ask::get("/v2/rights".to_owned()))?;
    if as_json {
        out.line(json::pretty(&answer)?)?;
        return Ok(Exit::Done);
    }
    let lines = match text(&answer, "command_lines") {
        "whole" => "whole",
        "strip" => "the program alone",
        _ => "without secrets",
    };
    let rows = [
        ("who", text(&answer, "in_words").to_owned()),
        ("role", text(&answer, "role").to_owned()),
        ("may", list_of(&answer, "scopes")),
        ("command lines", lines.to_owned()),
    ];
    for (name, value) in rows {
        out.line(format_args!("{name:<14} {}", visible(&value)))?;
    }
    Ok(Exit::Done)
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn time(ms: u64) -> String {
    k2i::rfc3339(i128::from(ms) * 1_000_000)
}

fn add_to_file(add: &Add, file: &TokenFile, out: &mut Output) -> Result<Exit, CommandError> {
    if !add.replace && file.read()?.contains_key(&add.name) {
        let path = file.path().display();
        let what = format!("{path} has a token `{}`; remove it first, or say --replace", add.name);
        return Err(CommandError::Usage(what));
    }
    let random = |error| CommandError::Input("the system's random bits".to_owned(), error);
    let token = Token::new(add.name.clone()).map_err(random)?;
    let rights = add.scopes.iter().fold(Held::of(add.role), |held, scope| held.with(*scope));
    let by = format!("user {}", rustix::process::geteuid().as_raw());
    let kept = Kept::of(&token, rights, add.ttl.0, now_ms(), by);
    let expires = kept.expires_ms.map(time);
    file.put(add.name.clone(), kept)?;
    let made = json!({
        "name": add.name, "token": token.text(), "role": add.role,
        "scopes": rights.beyond_role().collect::<Vec<_>>(), "expires": expires,
    });
    print_made(add, &made, out)
}

fn of_file(file: &TokenFile) -> Result<Value, CommandError> {
    let now_ms = now_ms();
    let shown = |(name, kept): (TokenName, Kept)| {
        json!({
            "name": name, "role": kept.rights.role(),
            "scopes": kept.rights.beyond_role().collect::<Vec<_>>(), "created": time(kept.created_ms),
            "by": kept.by, "expires": kept.expires_ms.map(time), "over": kept.is_over(now_ms),
        })
    };
    Ok(json!({ "tokens": file.read()?.into_iter().map(shown).collect::<Vec<_>>() }))
}

/// The token alone on standard output, so that it can be piped to where it is needed.
fn print_made(add: &Add, made: &Value, out: &mut Output) -> Result<Exit, CommandError> {
    if add.json {
        out.line(json::pretty(made)?)?;
        return Ok(Exit::Done);
    }
    out.line(visible(text(made, "token")))?;
    if out.is_terminal() && io::stderr().is_terminal() {
        let until = made.get("expires").and_then(Value::as_str);
        let until = until.map_or("without an end".to_owned(), |until| format!("until {until}"));
        out.warn(format_args!("good {until}; keep it, it cannot be shown again"));
    }
    Ok(Exit::Done)
}

fn print_list(as_json: bool, tokens: &Value, out: &mut Output) -> Result<Exit, CommandError> {
    if as_json {
        out.line(json::pretty(tokens)?)?;
        return Ok(Exit::Done);
    }
    let all = tokens.get("tokens").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        out.warn("there are no tokens; `kumo rights token add NAME` makes one");
        return Ok(Exit::Done);
    }
    let row = |token: &Value| {
        let scopes = list_of(token, "scopes");
        let rights = text(token, "role").to_owned();
        let rights = if scopes.is_empty() { rights } else { format!("{rights} + {scopes}") };
        let expires = match token.get("expires").and_then(Value::as_str) {
            None => "never".to_owned(),
            Some(at) if token.get("over").and_then(Value::as_bool) == Some(true) => {
                format!("over since {}", day(at))
            }
            Some(at) => day(at).to_owned(),
        };
        [text(token, "name").to_owned(), rights, expires, text(token, "by").to_owned()]
    };
    let head = ["NAME", "RIGHTS", "EXPIRES", "MADE BY"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(all.iter().map(row)).collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2].map(width);
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        line += &row[3];
        out.line(visible(line.trim_end()))?;
    }
    Ok(Exit::Done)
}

/// A time to the minute.
fn day(at: &str) -> &str {
    at.get(..16).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use k2i::token::TTL_DEFAULT;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        rights: Rights,
    }

    fn parse(line: &str) -> Result<Rights, String> {
        let words = std::iter::once("kumo").chain(line.split(' ').filter(|word| !word.is_empty()));
        Cli::try_parse_from(words).map(|cli| cli.rights).map_err(|error| error.to_string())
    }

    #[test]
    fn what_can_be_asked() {
        for good in [
            "",
            "--json",
            "token list",
            "token add ci",
            "token add ci --role admin --ttl never --replace",
            "token add ci --scope signal --scope command-line --ttl 90d",
            "token remove ci --file /x",
            "certificate revoke alice.pem",
            "certificate list --file /x --json",
        ] {
            assert!(parse(good).is_ok(), "for {good:?}: {:?}", parse(good).err());
        }
        for (bad, want) in [
            ("token add", "NAME"),
            ("token add ci_2", "made of a-z"),
            ("token add ci --role king", "there are view, operate, admin"),
            ("token add ci --scope fly", "is no scope"),
            ("token add ci --ttl 0s", "over at once"),
            ("token add ci --ttl 99999d", "days are the most"),
            ("token add ci --file /x --run-dir /y", "cannot be used with"),
        ] {
            let said = parse(bad).expect_err(bad);
            assert!(said.contains(want), "{said:?} does not say {want:?}");
        }
        let usual = parse("token add ci").expect("good");
        let Some(What::Token(TokenCommand::Add(add))) = usual.what else { panic!("it adds") };
        assert_eq!((add.role, add.ttl), (Role::View, Ttl(Some(TTL_DEFAULT))));
    }
}
