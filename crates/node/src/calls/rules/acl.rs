//! Who may call a service, which of its methods, and who may serve it.
//!
//! A service without a list may be called by everybody in the cluster. Whether a program may serve a
//! name is asked of its list first; without one, a name may be served by root and by the user that holds
//! it on this host (see [`super::registry`]).

use std::fmt;
use std::str::FromStr;

use kumo_abi::call::{MethodPattern, PATTERNS_MAX, Peer, ServiceName, Who};
use kumo_abi::{ClusterName, DcName, HostName};
use serde::{Deserialize, Serialize};

/// Most rules of one list.
pub(crate) const RULES_MAX: usize = 64;

/// Most patterns of callers in one rule, and of servers in one list.
pub(crate) const CALLERS_MAX: usize = 64;

/// A name, or any.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wild<T> {
    Any,
    Only(T),
}

impl<T: FromStr + PartialEq> Wild<T> {
    fn parse(text: &str) -> Option<Wild<T>> {
        if text == "*" { Some(Wild::Any) } else { text.parse().ok().map(Wild::Only) }
    }

    fn is(&self, name: &T) -> bool {
        match self {
            Wild::Any => true,
            Wild::Only(only) => only == name,
        }
    }
}

impl<T: fmt::Display> fmt::Display for Wild<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wild::Any => f.write_str("*"),
            Wild::Only(only) => only.fmt(f),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Program {
    /// Whatever runs there.
    Any,
    Service(Wild<ServiceName>),
    User(Wild<u32>),
}

/// Which programs: a SPIFFE id in which `*` stands for any one name, as
/// `spiffe://acme/dc/*/host/*/service/web`; without the program, whatever runs on these hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Callers {
    cluster: Wild<ClusterName>,
    dc: Wild<DcName>,
    host: Wild<HostName>,
    program: Program,
}

/// A text that means no programs.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` names no programs; write spiffe://CLUSTER/dc/DC/host/HOST, or that with /service/NAME or /user/NUMBER \
     behind it, and `*` for any name", .0.escape_default()
)]
pub(crate) struct CallersError(String);

impl Callers {
    /// Whether this program of this cluster is meant. A host without a cluster has no name for it, and
    /// is meant where that is `*`.
    pub(crate) fn mean(&self, cluster: Option<&ClusterName>, peer: &Peer) -> bool {
        let cluster_is = match cluster {
            Some(cluster) => self.cluster.is(cluster),
            None => self.cluster == Wild::Any,
        };
        cluster_is
            && self.dc.is(&peer.host.dc)
            && self.host.is(&peer.host.host)
            && match (&self.program, &peer.who) {
                (Program::Any, _) => true,
                (Program::Service(wanted), Who::Service(service)) => wanted.is(service),
                (Program::User(wanted), Who::User(uid)) => wanted.is(uid),
                (Program::Service(_), Who::User(_)) | (Program::User(_), Who::Service(_)) => false,
            }
    }
}

impl FromStr for Callers {
    type Err = CallersError;
    fn from_str(text: &str) -> Result<Callers, CallersError> {
        parse(text).ok_or_else(|| CallersError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Callers> {
    let parts: Vec<&str> = text.strip_prefix("spiffe://")?.split('/').collect();
    let (&[cluster, "dc", dc, "host", host], program) = parts.split_first_chunk()? else {
        return None;
    };
    let program = match *program {
        [] => Program::Any,
        ["service", service] => Program::Service(Wild::parse(service)?),
        // One user has one name: not `+7`, not `007`.
        ["user", uid] => Program::User(Wild::parse(uid).filter(|user| user.to_string() == uid)?),
        _ => return None,
    };
    let (cluster, dc, host) = (Wild::parse(cluster)?, Wild::parse(dc)?, Wild::parse(host)?);
    Some(Callers { cluster, dc, host, program })
}

impl TryFrom<String> for Callers {
    type Error = CallersError;
    fn try_from(text: String) -> Result<Callers, CallersError> {
        text.parse()
    }
}

impl From<Callers> for String {
    fn from(callers: Callers) -> String {
        callers.to_string()
    }
}

impl fmt::Display for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Callers { cluster, dc, host, program } = self;
        write!(f, "spiffe://{cluster}/dc/{dc}/host/{host}")?;
        match program {
            Program::Any => Ok(()),
            Program::Service(service) => write!(f, "/service/{service}"),
            Program::User(uid) => write!(f, "/user/{uid}"),
        }
    }
}

/// Who may call which methods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// These callers,
    pub(crate) from: Vec<Callers>,
    /// may call these methods; all where none are named.
    #[serde(default = "every_method")]
    pub(crate) methods: Vec<MethodPattern>,
}

fn every_method() -> Vec<MethodPattern> {
    vec![MethodPattern::any()]
}

/// The list of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Acl {
    /// Who may call it. Without this, everybody in the cluster; empty, nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) call: Option<Vec<Rule>>,
    /// Who may serve it, by the user that it runs as. Without this, root and the user that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) serve: Option<Vec<Callers>>,
}

/// A list that is too long.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a list has at most {max} {what}, and this has {count}")]
pub(crate) struct AclTooLong {
    what: &'static str,
    max: usize,
    count: usize,
}

impl Acl {
    /// Refuses a list that is too long.
    ///
    /// # Errors
    /// What there is too much of.
    pub(crate) fn check(&self) -> Result<(), AclTooLong> {
        let at_most = |what, count, max| {
            if count > max { Err(AclTooLong { what, max, count }) } else { Ok(()) }
        };
        let rules = self.call.as_deref().unwrap_or_default();
        at_most("rules", rules.len(), RULES_MAX)?;
        at_most("servers", self.serve.as_ref().map_or(0, Vec::len), CALLERS_MAX)?;
        for rule in rules {
            at_most("callers in a rule", rule.from.len(), CALLERS_MAX)?;
            at_most("methods in a rule", rule.methods.len(), PATTERNS_MAX)?;
        }
        Ok(())
    }

    /// The methods that `peer` may call; none is no. What several rules allow adds up.
    pub(crate) fn methods(
        &self,
        cluster: Option<&ClusterName>,
        peer: &Peer,
    ) -> Option<Vec<MethodPattern>> {
        let Some(rules) = &self.call else { return Some(every_method()) };
        let mut methods: Vec<MethodPattern> = Vec::new();
        let meant = |rule: &&Rule| rule.from.iter().any(|callers| callers.mean(cluster, peer));
        for pattern in rules.iter().filter(meant).flat_map(|rule| &rule.methods) {
            if !methods.contains(pattern) && methods.len() < PATTERNS_MAX {
                methods.push(pattern.clone());
            }
        }
        if methods.is_empty() { None } else { Some(methods) }
    }

    /// Whether `peer` may serve; nothing where the list does not say.
    pub(crate) fn may_serve(&self, cluster: Option<&ClusterName>, peer: &Peer) -> Option<bool> {
        let serve = self.serve.as_ref()?;
        Some(serve.iter().any(|callers| callers.mean(cluster, peer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(host: &str, who: Who) -> Peer {
        Peer { host: host.parse().expect("a host"), pid: 1, who }
    }

    fn service(name: &str) -> Who {
        Who::Service(name.parse().expect("a name"))
    }

    #[test]
    fn patterns_mean_programs() {
        let acme: ClusterName = "acme".parse().expect("a name");
        let web = peer("tokyo/a", service("web"));
        let root = peer("osaka/b", Who::User(0));
        let cases = [
            ("spiffe://acme/dc/*/host/*/service/web", true, false),
            ("spiffe://acme/dc/*/host/*/service/*", true, false),
            ("spiffe://acme/dc/*/host/*/user/0", false, true),
            ("spiffe://acme/dc/*/host/*/user/*", false, true),
            ("spiffe://acme/dc/*/host/*/user/7", false, false),
            ("spiffe://*/dc/tokyo/host/*", true, false),
            ("spiffe://acme/dc/*/host/b", false, true),
            ("spiffe://other/dc/*/host/*", false, false),
        ];
        for (text, web_want, root_want) in cases {
            let callers: Callers = text.parse().expect(text);
            assert_eq!(callers.mean(Some(&acme), &web), web_want, "{text} and web");
            assert_eq!(callers.mean(Some(&acme), &root), root_want, "{text} and root");
            assert_eq!(callers.to_string(), text);
        }
        let own: Callers = "spiffe://acme/dc/*/host/*".parse().expect("a pattern");
        assert!(!own.mean(None, &web), "a host without a cluster is not in that one");
        let any: Callers = "spiffe://*/dc/*/host/*".parse().expect("a pattern");
        assert!(any.mean(None, &web));
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in [
            "",
            "*",
            "http://acme/dc/a/host/b",
            "spiffe://acme/dc/a",
            "spiffe://acme/dc/a/host/b/",
            "spiffe://acme/dc/a/host/b/service",
            "spiffe://acme/dc/a/host/b/service/web/x",
            "spiffe://acme/dc/a/host/b/user/007",
            "spiffe://acme/dc/a/host/b/user/-1",
            "spiffe://acme/dc/A/host/b",
            "spiffe://acme/dc/a*/host/b",
            "spiffe://acme/host/b/dc/a",
        ] {
            assert_eq!(bad.parse::<Callers>(), Err(CallersError(bad.to_owned())), "for {bad:?}");
        }
    }

    #[test]
    fn rules_add_up_and_no_list_means_everybody() {
        let acl: Acl = serde_json::from_str(
            r#"{"call":[
                {"from":["spiffe://*/dc/*/host/*/service/web"],"methods":["read*"]},
                {"from":["spiffe://*/dc/tokyo/host/*"],"methods":["read*","list"]},
                {"from":["spiffe://*/dc/*/host/*/user/0"]}]}"#,
        )
        .expect("a list");
        let methods = |who: &Peer| {
            let methods = acl.methods(None, who)?;
            Some(methods.iter().map(MethodPattern::as_str).collect::<Vec<_>>().join(" "))
        };
        let cases = [
            (peer("tokyo/a", service("web")), Some("read* list")),
            (peer("osaka/a", service("web")), Some("read*")),
            (peer("osaka/a", service("mail")), None),
            (peer("osaka/a", Who::User(0)), Some("*")),
            (peer("osaka/a", Who::User(1)), None),
        ];
        for (who, want) in cases {
            assert_eq!(methods(&who).as_deref(), want, "for {who}");
        }
        let anybody = peer("osaka/a", Who::User(1));
        assert_eq!(Acl::default().methods(None, &anybody), Some(every_method()));
        assert_eq!(Acl { call: Some(vec![]), serve: None }.methods(None, &anybody), None);
    }

    #[test]
    fn servers_are_named_or_left_to_the_default() {
        let root = peer("tokyo/a", Who::User(0));
        assert_eq!(Acl::default().may_serve(None, &root), None);
        let acl: Acl =
            serde_json::from_str(r#"{"serve":["spiffe://*/dc/*/host/*/user/7"]}"#).expect("a list");
        assert_eq!(acl.may_serve(None, &root), Some(false));
        assert_eq!(acl.may_serve(None, &peer("tokyo/a", Who::User(7))), Some(true));
    }

    #[test]
    fn what_is_too_long_or_unknown_is_refused() {
        let callers: Callers = "spiffe://*/dc/*/host/*".parse().expect("a pattern");
        let rule = Rule { from: vec![callers.clone()], methods: every_method() };
        let long = [
            Acl { call: Some(vec![rule.clone(); RULES_MAX + 1]), serve: None },
            Acl { call: None, serve: Some(vec![callers.clone(); CALLERS_MAX + 1]) },
            Acl {
                call: Some(vec![Rule { from: vec![callers; CALLERS_MAX + 1], ..rule.clone() }]),
                serve: None,
            },
            Acl {
                call: Some(vec![Rule {
                    methods: vec![MethodPattern::any(); PATTERNS_MAX + 1],
                    ..rule.clone()
                }]),
                serve: None,
            },
        ];
        for acl in long {
            assert!(acl.check().is_err());
        }
        assert_eq!(Acl { call: Some(vec![rule]), serve: None }.check(), Ok(()));
        for bad in [r#"{"calls":[]}"#, r#"{"call":[{"from":["x"]}]}"#, r#"{"call":[{}]}"#] {
            assert!(serde_json::from_str::<Acl>(bad).is_err(), "for {bad}");
        }
    }
}
