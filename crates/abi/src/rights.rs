//! Who may do what: roles, scopes, and the rights of who asks.
//!
//! A role says what somebody is for; a scope is one thing that may be done. Each role holds some, and
//! single scopes can be added to it: a `view` that may send signals. Rights travel between hosts with
//! the question they are for, so they only ever shrink on the way: a scope that the reader does not
//! know is left out, a role that he does not know is the least.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What somebody is for. The order is that of what they may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Sees everything but secrets.
    #[default]
    View,
    /// Runs the machines: signals, kernel parameters, calls.
    Operate,
    /// Everything, also who may do what.
    Admin,
}

/// One thing that may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Reading what is no secret.
    Read,
    /// Command lines as they are; without it secrets in them are left out.
    CommandLine,
    /// Environments of processes; without it they do not leave the host.
    Environment,
    /// Signals to processes, and their nice values.
    Signal,
    /// Kernel parameters, within the list of those that may be written.
    SysctlWrite,
    /// Calls of services over HTTP.
    Call,
    /// What the cluster is and who may do what in it: hosts, tokens, access lists, reactions.
    Manage,
}

/// Texts for each, as they are written in settings and on the wire.
macro_rules! named {
    ($kind:ident, $error:literal, $($variant:ident = $name:literal),+) => {
        impl $kind {
            /// All there are, from the least on.
            pub const ALL: &[$kind] = &[$($kind::$variant),+];

            /// As it is written.
            pub fn name(self) -> &'static str {
                match self {
                    $($kind::$variant => $name),+
                }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $kind {
            type Err = RightsError;
            fn from_str(text: &str) -> Result<$kind, RightsError> {
                let found = $kind::ALL.iter().find(|one| one.name() == text);
                found.copied().ok_or_else(|| RightsError {
                    what: $error,
                    given: text.chars().take(GIVEN_SHOWN_CHARS_MAX).collect(),
                    known: $kind::ALL.iter().map(|one| one.name()).collect(),
                })
            }
        }

        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    };
}

named!(Role, "role", View = "view", Operate = "operate", Admin = "admin");
named!(
    Scope,
    "scope",
    Read = "read",
    CommandLine = "command-line",
    Environment = "environment",
    Signal = "signal",
    SysctlWrite = "sysctl-write",
    Call = "call",
    Manage = "manage"
);

/// So much of a text that is no role and no scope is repeated in the error about it.
const GIVEN_SHOWN_CHARS_MAX: usize = 40;

/// A text that names no role, or no scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no {what}; there are {}", given.escape_debug(), known.join(", "))]
pub struct RightsError {
    what: &'static str,
    given: String,
    known: Vec<&'static str>,
}

impl Role {
    /// The scopes that it holds.
    fn scopes(self) -> Scopes {
        let held: &[Scope] = match self {
            Role::View => &[Scope::Read],
            Role::Operate => &[Scope::Read, Scope::Signal, Scope::SysctlWrite, Scope::Call],
            Role::Admin => Scope::ALL,
        };
        held.iter().fold(Scopes(0), |all, scope| all.with(*scope))
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Scopes(u16);

impl Scopes {
    fn with(self, scope: Scope) -> Scopes {
        Scopes(self.0 | 1 << scope as u16)
    }

    fn holds(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u16) != 0
    }
}

/// A role, and the scopes it was given beyond its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rights {
    role: Role,
    more: Scopes,
}

impl Rights {
    /// Everything.
    pub const ADMIN: Rights = Rights { role: Role::Admin, more: Scopes(0) };

    /// What everybody has that is let in at all.
    pub const VIEW: Rights = Rights { role: Role::View, more: Scopes(0) };

    /// Those of a role.
    pub fn of(role: Role) -> Rights {
        Rights { role, more: Scopes(0) }
    }

    /// These and a scope.
    #[must_use]
    pub fn with(self, scope: Scope) -> Rights {
        if self.holds(scope) { self } else { Rights { more: self.more.with(scope), ..self } }
    }

    /// The role.
    pub fn role(self) -> Role {
        self.role
    }

    /// Whether it may be done.
    pub fn holds(self, scope: Scope) -> bool {
        self.role.scopes().holds(scope) || self.more.holds(scope)
    }

    /// All scopes that it holds, from the least on.
    pub fn scopes(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.iter().copied().filter(move |scope| self.holds(*scope))
    }

    /// The scopes beyond those of the role.
    pub fn beyond_role(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.iter().copied().filter(move |scope| self.more.holds(*scope))
    }

    /// Whether these include all of `other`: who makes a token gives no more than he has.
    pub fn include(self, other: Rights) -> bool {
        other.scopes().all(|scope| self.holds(scope))
    }
}

impl fmt::Display for Rights {
    /// `view`, or `view + signal, command-line`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.role.name())?;
        for (index, scope) in self.beyond_role().enumerate() {
            f.write_str(if index == 0 { " + " } else { ", " })?;
            f.write_str(scope.name())?;
        }
        Ok(())
    }
}

/// As they are written down: names that another version does not know are left out.
#[derive(Serialize, Deserialize)]
struct Written<R, S> {
    #[serde(default)]
    role: R,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    scopes: Vec<S>,
}

impl Serialize for Rights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Written { role: self.role, scopes: self.beyond_role().collect() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Rights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rights, D::Error> {
        let written = Written::<String, String>::deserialize(deserializer)?;
        let rights = Rights::of(written.role.parse().unwrap_or_default());
        let scopes = written.scopes.iter().filter_map(|scope| scope.parse().ok());
        Ok(scopes.fold(rights, Rights::with))
    }
}

/// How command lines are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lines {
    /// As they are.
    #[default]
    Whole,
    /// Without secrets, as far as rules find them.
    Redacted,
    /// The program alone, without its arguments.
    Stripped,
}

named!(
    Lines,
    "way to show command lines",
    Whole = "whole",
    Redacted = "secrets",
    Stripped = "strip"
);

/// Who somebody is, by what he has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// Somebody who has shown nothing.
    #[default]
    Nobody,
    /// A user of the host, as the kernel says on a Unix socket.
    User(u32),
    /// Who holds the token of this name.
    Token(String),
    /// Who holds the key of a certificate.
    Certificate(String),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Nobody => f.write_str("nobody in particular"),
            Who::User(uid) => write!(f, "user {uid}"),
            Who::Token(name) => write!(f, "token `{}`", name.escape_debug()),
            Who::Certificate(name) => write!(f, "certificate `{}`", name.escape_debug()),
        }
    }
}

/// Who asks, and what he may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// Who.
    #[serde(default)]
    pub who: Who,
    /// What.
    #[serde(default)]
    pub rights: Rights,
    /// How he wants command lines, who might see more of them.
    #[serde(default, with = "lines_written", skip_serializing_if = "Lines::is_whole")]
    pub wants: Lines,
}

impl Asker {
    /// How command lines are shown to him on a host that shows them as `host` says to who has no right to
    /// more.
    pub fn lines(&self, host: Lines) -> Lines {
        let most = if self.rights.holds(Scope::CommandLine) { Lines::Whole } else { host };
        most.max(self.wants)
    }
}

impl Lines {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    fn is_whole(&self) -> bool {
        *self == Lines::Whole
    }
}

/// Who wants less than we know of gets the least.
mod lines_written {
    use super::{Deserialize, Deserializer, Lines, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    pub(super) fn serialize<S: Serializer>(
        lines: &Lines,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        lines.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Lines, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(text.parse().unwrap_or(Lines::Stripped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_roles_hold() {
        let held =
            |role: Role| Rights::of(role).scopes().map(Scope::name).collect::<Vec<_>>().join(" ");
        assert_eq!(held(Role::View), "read");
        assert_eq!(held(Role::Operate), "read signal sysctl-write call");
        assert_eq!(
            held(Role::Admin),
            "read command-line environment signal sysctl-write call manage"
        );
        assert!(Rights::ADMIN.include(Rights::of(Role::Operate)));
        assert!(!Rights::of(Role::Operate).include(Rights::VIEW.with(Scope::CommandLine)));
    }

    #[test]
    fn rights_are_written_and_read() {
        let cases = [
            (Rights::VIEW, r#"{"role":"view"}"#, "view"),
            (Rights::VIEW.with(Scope::Read), r#"{"role":"view"}"#, "view"),
            (
                Rights::of(Role::Operate).with(Scope::Environment).with(Scope::CommandLine),
                r#"{"role":"operate","scopes":["command-line","environment"]}"#,
                "operate + command-line, environment",
            ),
            (Rights::ADMIN.with(Scope::Signal), r#"{"role":"admin"}"#, "admin"),
        ];
        for (rights, json, text) in cases {
            assert_eq!(serde_json::to_string(&rights).expect("JSON"), json);
            assert_eq!(serde_json::from_str::<Rights>(json).expect("rights"), rights);
            assert_eq!(rights.to_string(), text);
        }
    }

    #[test]
    fn what_is_not_known_gives_nothing() {
        let cases = [
            (r#"{"role":"emperor","scopes":["fly","signal"]}"#, Rights::VIEW.with(Scope::Signal)),
            ("{}", Rights::VIEW),
            (r#"{"scopes":["read"],"more":1}"#, Rights::VIEW),
        ];
        for (json, want) in cases {
            assert_eq!(serde_json::from_str::<Rights>(json).expect("rights"), want, "{json}");
        }
        assert_eq!(serde_json::from_str::<Asker>("{}").expect("an asker"), Asker::default());
        let asker = |json: &str| serde_json::from_str::<Asker>(json).expect("an asker");
        let host = Lines::Redacted;
        let cases = [
            ("{}", Lines::Redacted),
            (r#"{"rights":{"role":"admin"}}"#, Lines::Whole),
            (r#"{"rights":{"role":"admin"},"wants":"secrets"}"#, Lines::Redacted),
            (r#"{"rights":{"role":"operate"},"wants":"whole"}"#, Lines::Redacted),
            (r#"{"rights":{"scopes":["command-line"]},"wants":"blur"}"#, Lines::Stripped),
        ];
        for (json, want) in cases {
            assert_eq!(asker(json).lines(host), want, "{json}");
        }
        let error = "roots".parse::<Role>().expect_err("no role").to_string();
        assert_eq!(error, "`roots` is no role; there are view, operate, admin");
    }
}
