//! Which hosts a question is for: this one, or many.

use std::time::Duration;

use kumo_abi::cluster::HostInfo;
use kumo_abi::hosts::{self, HOSTS};
use kumo_abi::{DcName, Filter};

use crate::error::CommandError;
use crate::source::{self, Reading, Source, SourceArgs};

/// How long hosts are waited for when nobody says: far longer than any that lives takes, and short
/// enough to sit through.
const WAIT_MS: u64 = 2_000;

/// Which hosts, as the command line says it. Without any of these: the one host that is asked.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Which hosts")]
pub struct HostChoice {
    /// All hosts of the cluster
    #[arg(long)]
    pub all: bool,
    /// Only hosts of these data centres: tokyo,osaka
    #[arg(long = "dc", value_name = "DC", value_delimiter = ',')]
    pub dcs: Vec<DcName>,
    /// Only hosts that fulfil this condition (CEL): 'cpus >= 8 && "rack=3" in labels'
    #[arg(long = "where", value_name = "CEL")]
    pub condition: Option<String>,
}

/// Which hosts, and how long to wait for them.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Which hosts")]
pub struct Scope {
    /// Which hosts.
    #[command(flatten)]
    pub hosts: HostChoice,
    /// Wait this long for them, in milliseconds; who has not answered then is named. Without it at
    /// most 2000, and less for the last few when nine of ten have answered
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub wait: Option<u64>,
}

impl HostChoice {
    /// Whether they are asked as many, even if there is but one.
    pub fn is_many(&self) -> bool {
        self.all || !self.dcs.is_empty() || self.condition.is_some()
    }

    /// How they are called in a title: `all hosts`, `tokyo,osaka`.
    pub fn title(&self) -> String {
        let dcs: Vec<&str> = self.dcs.iter().map(DcName::as_str).collect();
        match (dcs.is_empty(), &self.condition) {
            (true, None) => "all hosts".to_owned(),
            (false, None) => dcs.join(","),
            (true, Some(condition)) => format!("hosts where {condition}"),
            (false, Some(condition)) => format!("{} where {condition}", dcs.join(",")),
        }
    }

    /// The same as a rule.
    ///
    /// # Errors
    /// The condition is wrong.
    pub fn rule(&self) -> Result<HostRule<'_>, CommandError> {
        let compile = |text: &String| {
            let wrong = |error| CommandError::Usage(format!("--where: {error}"));
            Filter::compile(text, &HOSTS).map_err(wrong)
        };
        let filter = self.condition.as_ref().map(compile).transpose()?;
        Ok(HostRule { dcs: &self.dcs, filter })
    }

    /// Adds the parameters that say it to a node.
    pub fn push(&self, parameters: &mut String) {
        if !self.dcs.is_empty() {
            let dcs: Vec<&str> = self.dcs.iter().map(DcName::as_str).collect();
            source::push_parameter(parameters, "dc", &dcs.join(","));
        }
        if let Some(condition) = &self.condition {
            source::push_parameter(parameters, "where", condition);
        }
    }
}

/// Tells whom a person means.
#[derive(Debug)]
pub struct HostRule<'a> {
    dcs: &'a [DcName],
    filter: Option<Filter>,
}

impl HostRule<'_> {
    /// Whether this host is meant; `None` when that hangs on its card, which is not known.
    pub fn decide(&self, host: &HostInfo) -> Option<bool> {
        if !self.dcs.is_empty() && !self.dcs.contains(&host.id.dc) {
            return Some(false);
        }
        self.filter.as_ref().map_or(Some(true), |filter| hosts::fulfils(host, filter))
    }

    /// Whether this host certainly is meant.
    pub fn means(&self, host: &HostInfo) -> bool {
        self.decide(host) == Some(true)
    }
}

impl Scope {
    /// See [`HostChoice::is_many`].
    pub fn is_many(&self) -> bool {
        self.hosts.is_many()
    }

    /// How long hosts are waited for.
    pub fn wait(&self) -> Duration {
        Duration::from_millis(self.wait.unwrap_or(WAIT_MS))
    }

    /// Adds the parameters that say it to a node.
    pub fn push(&self, parameters: &mut String) {
        self.hosts.push(parameters);
        if let Some(wait) = self.wait {
            source::push_parameter(parameters, "wait_ms", &wait.to_string());
        }
    }

    /// Where answers come from: for many hosts, a node.
    ///
    /// # Errors
    /// As [`Source::open`]; without a node, that many need one.
    pub fn open(
        &self,
        args: &SourceArgs,
        reading: Reading,
    ) -> Result<(Source, String), CommandError> {
        if !self.is_many() {
            return Ok(Source::open(args, reading)?);
        }
        // What is wrong with it is told before anybody is asked.
        self.hosts.rule()?;
        if args.collector.is_some() {
            let what = "--collector reads this host alone; --all, --dc and --where ask a node";
            return Err(CommandError::Usage(what.to_owned()));
        }
        Ok(Source::open_node(&args.at)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        scope: Scope,
    }

    #[test]
    fn scopes() {
        let cases = [
            ("", false, "all hosts", ""),
            ("--all", true, "all hosts", ""),
            ("--dc tokyo,osaka --wait 50", true, "tokyo,osaka", "dc=tokyo,osaka&wait_ms=50"),
            ("--dc tokyo --dc osaka", true, "tokyo,osaka", "dc=tokyo,osaka"),
            ("--where cpus>8", true, "hosts where cpus>8", "where=cpus%3E8"),
            ("--dc a --where b==1", true, "a where b==1", "dc=a&where=b%3D%3D1"),
        ];
        for (line, is_many, title, want) in cases {
            let words = std::iter::once("kumo").chain(line.split(' ').filter(|w| !w.is_empty()));
            let scope = Cli::try_parse_from(words).expect("good usage").scope;
            let mut parameters = String::new();
            scope.push(&mut parameters);
            assert_eq!((scope.is_many(), parameters.as_str()), (is_many, want), "for {line:?}");
            assert_eq!(scope.hosts.title(), title, "for {line:?}");
        }
        for wrong in ["--dc Tokyo", "--dc a,,b", "--wait 5", "--wait 60001", "--wait x"] {
            let words = std::iter::once("kumo").chain(wrong.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "for {wrong:?}");
        }
    }
}
