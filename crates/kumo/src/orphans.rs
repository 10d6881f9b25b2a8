//! What a `kumo serve` that is itself killed leaves running, ended by a process that outlives it.
//!
//! A death signal (`PR_SET_PDEATHSIG`) would reach the first process of each command only, and not what that has
//! started. So a second process, in a group of its own, is told which groups run; its standard input ends
//! when the server does, however that ends, and then it kills what is left.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::exit::Exit;

/// The hidden subcommand of the second process.
pub const SUBCOMMAND: &str = "end-orphans";

/// The second process, told of groups as they begin and end.
#[derive(Debug)]
pub struct Keeper {
    tell: Mutex<ChildStdin>,
    /// It ends by itself, after us.
    _child: Child,
}

impl Keeper {
    /// Starts it.
    ///
    /// # Errors
    /// The system cannot.
    pub fn start() -> io::Result<Keeper> {
        // Not by our path, which may lead to another program by now.
        let mut command = Command::new("/proc/self/exe");
        command.arg(SUBCOMMAND).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        let tell = stdin.ok_or_else(|| io::Error::other("it has no standard input"))?;
        Ok(Keeper { tell: Mutex::new(tell), _child: child })
    }

    /// A group runs, whose first process has this number, until what is returned is dropped.
    pub fn watch(&self, group: u32) -> Watched<'_> {
        self.say('+', group);
        Watched { keeper: self, group }
    }

    fn say(&self, what: char, group: u32) {
        let mut tell = self.tell.lock().unwrap_or_else(PoisonError::into_inner);
        // Where somebody has killed it, we do without.
        let _ = tell.write_all(format!("{what}{group}\n").as_bytes());
    }
}

/// A group that is ended if we are killed. To be dropped before its first process is reaped: then its number may
/// be given to others.
#[derive(Debug)]
pub struct Watched<'a> {
    keeper: &'a Keeper,
    group: u32,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.keeper.say('-', self.group);
    }
}

/// The life of the second process.
pub fn run() -> Exit {
    for group in left_running(io::stdin().lock()) {
        let group = i32::try_from(group).ok().and_then(Pid::from_raw);
        // It may have ended in this moment.
        group.map(|group| kill_process_group(group, Signal::KILL));
    }
    Exit::Done
}

/// The groups that were begun and not ended, once nobody says more.
fn left_running(told: impl BufRead) -> BTreeSet<u32> {
    let mut groups = BTreeSet::new();
    for line in told.lines().map_while(Result::ok) {
        // 0 and 1 would be ourselves, and all.
        let parsed = line.split_at_checked(1);
        let Some((what, Ok(group @ 2..))) = parsed.map(|(what, rest)| (what, rest.parse())) else {
            continue;
        };
        match what {
            "+" => groups.insert(group),
            _ => groups.remove(&group),
        };
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_begun_and_not_ended_is_left() {
        let cases: [(&str, &[u32]); 6] = [
            ("", &[]),
            ("+7\n", &[7]),
            ("+7\n+9\n-7\n", &[9]),
            ("+7\n-7\n+7\n", &[7]),
            ("+0\n+1\n+-1\n+x\n\n+", &[]),
            ("+70\n+8", &[8, 70]),
        ];
        for (told, want) in cases {
            assert!(left_running(told.as_bytes()).iter().eq(want), "for {told:?}");
        }
    }
}
