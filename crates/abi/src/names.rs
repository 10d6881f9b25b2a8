//! Names of clusters, data centres and hosts. Those of services and methods are in [`crate::call`]: they are no
//! labels of host names, so they have other rules.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name: what one label of a host name may have (RFC 1123).
pub const NAME_BYTES_MAX: usize = 63;

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing.
    #[error("a name has at least one character")]
    Empty,
    /// Above [`NAME_BYTES_MAX`].
    #[error("a name has at most {NAME_BYTES_MAX} characters, and this has {0}")]
    Long(usize),
    /// A character that does not belong.
    #[error("a name is made of a-z, 0-9, `-` and `.`; `{}` is none of them", .0.escape_default())]
    Char(char),
    /// A first or last character that is neither letter nor digit.
    #[error("a name begins and ends with a letter or digit")]
    Edge,
    /// No single `/` between a data centre and a host.
    #[error("a host is written DC/HOST, as in tokyo/web-1")]
    Form,
}

fn check(text: &str) -> Result<(), NameError> {
    let inside = |c: &char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.');
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    match text.chars().find(|c| !inside(c)) {
        _ if text.is_empty() => Err(NameError::Empty),
        Some(bad) => Err(NameError::Char(bad)),
        None if text.len() > NAME_BYTES_MAX => Err(NameError::Long(text.len())),
        None if !text.starts_with(edge) || !text.ends_with(edge) => Err(NameError::Edge),
        None => Ok(()),
    }
}

macro_rules! name {
    ($name:ident, $about:literal) => {
        #[doc = $about]
        ///
        /// 1 to 63 of `a-z`, `0-9`, `-` and `.`, with a letter or digit at both ends.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<$name, NameError> {
                check(text)?;
                Ok($name(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<$name, NameError> {
                check(&text)?;
                Ok($name(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(ClusterName, "The name of a cluster: the data centres that are one system.");
name!(DcName, "The name of a data centre.");
name!(HostName, "The name of a host within its data centre.");
name!(TokenName, "The name of a token, which says whom it was made for.");

/// A host of a cluster. Written `tokyo/web-1`.
///
/// In JSON it is an object with the two names, so that whatever holds one has columns `dc` and `host`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostId {
    /// Its data centre.
    pub dc: DcName,
    /// Its name there.
    pub host: HostName,
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.dc, self.host)
    }
}

impl FromStr for HostId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<HostId, NameError> {
        let (dc, host) = text.split_once('/').ok_or(NameError::Form)?;
        Ok(HostId { dc: dc.parse()?, host: host.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let cases = [
            ("tokyo", None),
            ("web-1.rack2", None),
            ("9", None),
            ("", Some(NameError::Empty)),
            ("Tokyo", Some(NameError::Char('T'))),
            ("a_b", Some(NameError::Char('_'))),
            ("a/b", Some(NameError::Char('/'))),
            ("*", Some(NameError::Char('*'))),
            ("-a", Some(NameError::Edge)),
            ("a.", Some(NameError::Edge)),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<DcName>().err(), want, "for {text:?}");
        }
        assert_eq!("a".repeat(64).parse::<HostName>(), Err(NameError::Long(64)));
    }

    #[test]
    fn hosts() {
        let id: HostId = "tokyo/web-1".parse().expect("a host");
        assert_eq!((id.dc.as_str(), id.host.as_str()), ("tokyo", "web-1"));
        assert_eq!(id.to_string(), "tokyo/web-1");
        assert_eq!("tokyo".parse::<HostId>(), Err(NameError::Form));
        assert_eq!("a/b/c".parse::<HostId>(), Err(NameError::Char('/')));
        let json = serde_json::to_string(&id).expect("JSON");
        assert_eq!(json, r#"{"dc":"tokyo","host":"web-1"}"#);
        assert!(serde_json::from_str::<HostId>(r#"{"dc":"tokyo","host":""}"#).is_err());
    }
}
