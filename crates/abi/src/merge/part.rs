//! What travels: a header line, then rows, one a line.

use std::borrow::Cow;
use std::collections::HashSet;

use memchr::memchr_iter;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::{Finished, PART_HOSTS_MAX};
use crate::names::{DcName, HostName};

/// The form of a part. A node that reads another form refuses it with both numbers.
pub const PART_VERSION: u32 = 1;

/// Longest description of what was wrong: parsers quote what they read.
const WHY_CHARS_MAX: usize = 200;

/// A host whose answer could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spoiled {
    /// Its data centre; `None` where not even that could be read.
    pub dc: Option<DcName>,
    /// Its name there.
    pub host: Option<HostName>,
    /// What was wrong.
    pub why: String,
}

/// Who says something in a part.
pub(super) trait Speaker: Clone + Serialize + DeserializeOwned {
    fn names(&self) -> (&DcName, &HostName);
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<H> {
    version: u32,
    hosts: Vec<H>,
    /// Bytes of each host's rows; empty where rows of several hosts are mixed.
    blocks: Vec<usize>,
    /// Bytes of all rows: a part that was cut is known by it.
    bytes: usize,
    spoiled: Vec<Spoiled>,
}

#[derive(Deserialize)]
struct Form {
    version: u32,
}

/// A part that has been read, or is about to be written.
pub(super) struct Part<'a, H> {
    pub(super) hosts: Vec<H>,
    /// The rows of each host; one piece for all of them where they are mixed.
    pub(super) rows: Vec<Cow<'a, [u8]>>,
    pub(super) mixed: bool,
    pub(super) spoiled: Vec<Spoiled>,
}

/// Parts that have been read.
pub(super) struct ReadAll<'a, H> {
    pub(super) parts: Vec<Part<'a, H>>,
    pub(super) spoiled: Vec<Spoiled>,
}

impl<'a, H: Speaker> Part<'a, H> {
    pub(super) fn of_one(host: H, rows: &'a [u8]) -> Part<'a, H> {
        let rows = vec![Cow::Borrowed(rows)];
        Part { hosts: vec![host], rows, mixed: false, spoiled: Vec::new() }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let sizes: Vec<usize> = self.rows.iter().map(|rows| rows.len()).collect();
        let bytes = sizes.iter().sum();
        let header = Header {
            version: PART_VERSION,
            hosts: self.hosts.clone(),
            blocks: if self.mixed { Vec::new() } else { sizes },
            bytes,
            spoiled: self.spoiled.clone(),
        };
        // Names and numbers always are JSON.
        let mut out = serde_json::to_vec(&header).unwrap_or_default();
        out.reserve_exact(bytes + 1);
        out.push(b'\n');
        self.rows.iter().for_each(|rows| out.extend_from_slice(rows));
        out
    }

    /// Reads a part. With `blocks`, its rows stand in one block a host, and each begins with the names
    /// of its host: nobody speaks for another.
    fn read(bytes: &'a [u8], blocks: bool) -> Result<Part<'a, H>, Vec<Spoiled>> {
        let line = memchr::memchr(b'\n', bytes).map(|end| bytes.split_at(end));
        let Some((line, rows)) = line else {
            return Err(vec![Spoiled::nobody("the answer has no header")]);
        };
        let rows = &rows[1..];
        let refuse = |why: &str| spoil_all(line, why);
        match serde_json::from_slice::<Form>(line) {
            Ok(Form { version: PART_VERSION }) => {}
            Ok(Form { version }) => {
                return Err(refuse(&format!(
                    "its answer is of form {version}, and this node reads form {PART_VERSION}"
                )));
            }
            Err(error) => return Err(refuse(&format!("its answer has a broken header: {error}"))),
        }
        let header: Header<H> = serde_json::from_slice(line)
            .map_err(|error| refuse(&format!("its answer has a broken header: {error}")))?;
        if header.hosts.len() > PART_HOSTS_MAX {
            return Err(vec![Spoiled::nobody("an answer speaks for too many hosts")]);
        }
        if rows.len() != header.bytes {
            return Err(refuse("its answer was cut"));
        }
        if rows.last().is_some_and(|last| *last != b'\n') {
            return Err(refuse("the last row of its answer is cut"));
        }
        if std::str::from_utf8(rows).is_err() {
            return Err(refuse("its answer is no UTF-8"));
        }
        let mut part = Part {
            hosts: header.hosts,
            rows: vec![Cow::Borrowed(rows)],
            mixed: true,
            spoiled: header.spoiled,
        };
        if blocks {
            part.split(rows, &header.blocks).map_err(refuse)?;
        }
        Ok(part)
    }

    fn split(&mut self, mut rows: &'a [u8], sizes: &[usize]) -> Result<(), &'static str> {
        if sizes.len() != self.hosts.len() {
            return Err("its answer does not say which rows are whose");
        }
        let mut pieces = Vec::with_capacity(sizes.len());
        for (host, size) in self.hosts.iter().zip(sizes) {
            let (block, rest) =
                rows.split_at_checked(*size).ok_or("its answer says more rows than it has")?;
            let (dc, name) = host.names();
            let begin = format!(r#"{{"dc":"{dc}","host":"{name}""#);
            let good = |line: &[u8]| {
                line.strip_prefix(begin.as_bytes())
                    .is_some_and(|rest| matches!(rest.first(), Some(b',' | b'}')))
            };
            if !lines(block).all(good) {
                return Err("its rows do not begin with its names");
            }
            pieces.push(Cow::Borrowed(block));
            rows = rest;
        }
        if !rows.is_empty() {
            return Err("its answer has rows of nobody");
        }
        (self.rows, self.mixed) = (pieces, false);
        Ok(())
    }

    pub(super) fn finish(self) -> Finished<H> {
        let mut rows = Vec::with_capacity(self.rows.iter().map(|rows| rows.len()).sum());
        self.rows.iter().for_each(|block| rows.extend_from_slice(block));
        Finished { hosts: self.hosts, rows, spoiled: self.spoiled }
    }
}

impl<H: Speaker> ReadAll<'_, H> {
    /// Looks into every row, which no other step does for plain ones: what is shown is JSON.
    pub(super) fn leave_out_broken_rows(&mut self) {
        for part in &mut self.parts {
            let bad: Vec<Option<String>> = part.rows.iter().map(|rows| broken(rows)).collect();
            if bad.iter().all(Option::is_none) {
                continue;
            }
            let (hosts, rows) = (std::mem::take(&mut part.hosts), std::mem::take(&mut part.rows));
            for ((host, rows), bad) in hosts.into_iter().zip(rows).zip(bad) {
                if let Some(why) = bad {
                    self.spoiled.push(Spoiled::host(&host, &why));
                } else {
                    part.hosts.push(host);
                    part.rows.push(rows);
                }
            }
        }
    }
}

/// What is wrong with the first row that is no JSON object.
fn broken(rows: &[u8]) -> Option<String> {
    lines(rows).find_map(|line| {
        let error = serde_json::from_slice::<IgnoredAny>(line).err()?;
        Some(format!("a row of its answer is no JSON: {error}"))
    })
}

impl Spoiled {
    pub(super) fn nobody(why: &str) -> Spoiled {
        Spoiled { dc: None, host: None, why: why.to_owned() }
    }

    pub(super) fn host<H: Speaker>(host: &H, why: &str) -> Spoiled {
        let (dc, name) = host.names();
        let why = why.chars().take(WHY_CHARS_MAX).collect();
        Spoiled { dc: Some(dc.clone()), host: Some(name.clone()), why }
    }
}

/// Everybody that a header names, if it can be read that far.
fn spoil_all(header: &[u8], why: &str) -> Vec<Spoiled> {
    #[derive(Deserialize)]
    struct Names {
        dc: DcName,
        host: HostName,
    }
    #[derive(Deserialize)]
    struct Hosts {
        hosts: Vec<Names>,
    }
    let why: String = why.chars().take(WHY_CHARS_MAX).collect();
    match serde_json::from_slice::<Hosts>(header) {
        Ok(Hosts { hosts }) if !hosts.is_empty() => hosts
            .into_iter()
            .take(PART_HOSTS_MAX)
            .map(|Names { dc, host }| Spoiled { dc: Some(dc), host: Some(host), why: why.clone() })
            .collect(),
        _ => vec![Spoiled { dc: None, host: None, why }],
    }
}

/// Reads parts. A host that is in two of them keeps the first.
pub(super) fn read_all<H: Speaker, P: AsRef<[u8]>>(parts: &[P], blocks: bool) -> ReadAll<'_, H> {
    let mut all = ReadAll { parts: Vec::with_capacity(parts.len()), spoiled: Vec::new() };
    let mut seen = HashSet::new();
    for bytes in parts {
        match Part::<H>::read(bytes.as_ref(), blocks) {
            Ok(mut part) => {
                all.spoiled.append(&mut part.spoiled);
                let names = |host: &H| {
                    let (dc, host) = host.names();
                    (dc.clone(), host.clone())
                };
                let news: HashSet<_> = part.hosts.iter().map(names).collect();
                if news.len() < part.hosts.len() || !seen.is_disjoint(&news) {
                    let why = "it answered twice";
                    all.spoiled.extend(part.hosts.iter().map(|host| Spoiled::host(host, why)));
                } else {
                    seen.extend(news);
                    all.parts.push(part);
                }
            }
            Err(mut spoiled) => all.spoiled.append(&mut spoiled),
        }
    }
    all
}

/// Puts the blocks of all hosts into the order of their names, and keeps the first `limit` rows.
pub(super) fn merge_blocks<H: Speaker>(read: ReadAll<'_, H>, limit: Option<u32>) -> Part<'_, H> {
    let mut blocks: Vec<(H, Cow<'_, [u8]>)> =
        read.parts.into_iter().flat_map(|part| part.hosts.into_iter().zip(part.rows)).collect();
    blocks.sort_unstable_by(|(a, _), (b, _)| a.names().cmp(&b.names()));
    if let Some(limit) = limit {
        let mut left = limit as usize;
        for (_, rows) in &mut blocks {
            let mut count = 0;
            let end = memchr_iter(b'\n', rows).inspect(|_| count += 1).nth(left.max(1) - 1);
            let keep = match end {
                _ if left == 0 => 0,
                Some(end) => end + 1,
                None => rows.len(),
            };
            left -= left.min(count);
            if keep < rows.len() {
                match rows {
                    Cow::Borrowed(all) => *all = &all[..keep],
                    Cow::Owned(all) => all.truncate(keep),
                }
            }
        }
    }
    let (hosts, rows) = blocks.into_iter().unzip();
    Part { hosts, rows, mixed: false, spoiled: read.spoiled }
}

/// All hosts of `parts`, in the order of their names.
pub(super) fn hosts_of<H: Speaker>(parts: &[Part<'_, H>]) -> Vec<H> {
    let mut hosts: Vec<H> = parts.iter().flat_map(|part| part.hosts.iter().cloned()).collect();
    hosts.sort_unstable_by(|a, b| a.names().cmp(&b.names()));
    hosts
}

/// The rows of a block, without their line ends.
pub(super) fn lines(rows: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    memchr_iter(b'\n', rows).map(move |end| &rows[std::mem::replace(&mut start, end + 1)..end])
}
