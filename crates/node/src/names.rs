//! What a node is called.

use k2i::host::host_name;
use k2i::options::DC_DEFAULT;
use kumo_abi::HostId;

/// The node cannot be called so.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is no name.
    #[error("`{}` cannot be the name of a {what}", name.escape_debug())]
    Form {
        /// What it would be the name of.
        what: &'static str,
        /// The text.
        name: String,
        /// What is wrong.
        source: kumo_abi::NameError,
    },
    /// Its certificate says otherwise.
    #[error(
        "--{what} `{}` is not what the certificate of this host says: it is {certified}; leave the \
         option out, or leave the cluster with `kumo leave`", name.escape_debug()
    )]
    Certified {
        /// The option.
        what: &'static str,
        /// The text.
        name: String,
        /// What the certificate says.
        certified: HostId,
    },
}

/// The names of a node that has a certificate: what that says.
///
/// # Errors
/// When other names were given.
pub(crate) fn certified(
    certified: &HostId,
    dc: Option<&str>,
    host: Option<&str>,
) -> Result<HostId, NameError> {
    let check = |what, given: Option<&str>, is: &str| match given {
        Some(name) if name != is => {
            Err(NameError::Certified { what, name: name.to_owned(), certified: certified.clone() })
        }
        _ => Ok(()),
    };
    check("dc", dc, certified.dc.as_str())?;
    check("host", host, certified.host.as_str())?;
    Ok(certified.clone())
}

/// The names of a node that has no certificate: those that were given, else [`DC_DEFAULT`] and the
/// kernel's.
///
/// # Errors
/// When a name that was given is none that others could write.
pub fn host_id(dc: Option<&str>, host: Option<&str>) -> Result<HostId, NameError> {
    let failed = |what, name: &str| {
        let name = name.to_owned();
        move |source| NameError::Form { what, name, source }
    };
    let dc = dc.unwrap_or(DC_DEFAULT);
    let host = host.map_or_else(|| plain(&host_name()), str::to_owned);
    Ok(HostId {
        dc: dc.parse().map_err(failed("data centre", dc))?,
        host: host.parse().map_err(failed("host", &host))?,
    })
}

/// The kernel's name as a name of ours: others would have to write it.
fn plain(name: &str) -> String {
    let plain = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | '.' | '-') => c,
        _ => '-',
    };
    let name: String = name.chars().map(plain).take(kumo_abi::NAME_BYTES_MAX).collect();
    match name.trim_matches(['-', '.']) {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let cases = [
            ("web-1", "web-1"),
            ("Web_1.Example", "web-1.example"),
            ("-é-", "localhost"),
            ("(none)", "none"),
        ];
        for (name, want) in cases {
            assert_eq!(plain(name), want, "for {name:?}");
            assert!(plain(name).parse::<kumo_abi::HostName>().is_ok());
        }
        assert!(plain(&"a-".repeat(40)).parse::<kumo_abi::HostName>().is_ok());
        let id = host_id(Some("tokyo"), Some("a")).expect("good names");
        assert_eq!(id.to_string(), "tokyo/a");
        assert!(host_id(None, None).is_ok(), "without any there still is one");
        let error = host_id(Some("Tokyo"), None).expect_err("a capital").to_string();
        assert!(error.contains("`Tokyo` cannot be the name of a data centre"), "{error}");
        assert_eq!(certified(&id, None, Some("a")).as_ref(), Ok(&id));
        for (dc, host) in [(Some("osaka"), None), (None, Some("A"))] {
            let error = certified(&id, dc, host).expect_err("the certificate decides").to_string();
            assert!(error.contains("it is tokyo/a"), "{error}");
        }
    }
}
