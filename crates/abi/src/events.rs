//! The columns of events: what `/v2/events` and `kumo watch` filter and show.
//!
//! Beside when it was and what happened, an event has columns of the process table, by the same names:
//! those that can be known at that moment. What an event does not know is null.

use crate::proc::{Column, PROC};
use crate::schema::{ColumnIndex, ColumnSpec, Kind, Schema, Unit};

/// A column of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventColumn {
    /// What happened; see [`EventKind`].
    Event,
    /// When.
    At,
    /// A column of the process that it happened to.
    Of(Column),
}

/// What can happen to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It executed a program.
    Exec,
    /// Its last thread ended.
    Exit,
    /// It was waited for and is gone; its CPU time is final.
    Reap,
}

impl EventKind {
    /// Its name in answers.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Exec => "exec",
            EventKind::Exit => "exit",
            EventKind::Reap => "reap",
        }
    }
}

const fn own(name: &'static str, heading: &'static str, about: &'static str) -> ColumnSpec {
    ColumnSpec { name, aliases: &[], kind: Kind::Text, unit: Unit::None, heading, about }
}

macro_rules! events {
    ($($column:ident)*) => {
        /// Every column, in the order of the schema and of answers.
        const COLUMNS: &[EventColumn] =
            &[EventColumn::Event, EventColumn::At, $(EventColumn::Of(Column::$column)),*];

        /// Events.
        pub static EVENTS: Schema = Schema {
            name: "events",
            columns: &[
                own("event", "EVENT", "What happened: exec, exit, or reap: waited for and gone"),
                own("at", "AT", "When, RFC 3339 with microseconds, UTC"),
                $(PROC.columns[Column::$column as usize],)*
            ],
        };
    };
}

events! {
    Dc Host Id Pid Ppid User Ruser Uid Euid Suid Fsuid Group Rgroup Gid Egid Sgid Fsgid Kernel Start
    Comm Cmdline Argv CmdlineCut Cgroup Container ContainerRuntime ContainerId Pod Unit Slice
    ExitCode ExitSignal EndedAt Lifetime MaxRss
    Time Utime Stime Minflt Majflt Rchar Wchar ReadBytes WriteBytes
}

impl EventColumn {
    /// The column at this index of [`EVENTS`].
    pub fn at(index: ColumnIndex) -> EventColumn {
        COLUMNS[index]
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            EventColumn::Event => "event",
            EventColumn::At => "at",
            EventColumn::Of(column) => column.spec().name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_process_keep_their_names() {
        assert_eq!(COLUMNS.len(), EVENTS.columns.len());
        for (index, spec) in EVENTS.columns.iter().enumerate() {
            match EventColumn::at(index) {
                EventColumn::Of(column) => assert_eq!(column.spec().name, spec.name),
                EventColumn::Event => assert_eq!(spec.name, "event"),
                EventColumn::At => assert_eq!(spec.name, "at"),
            }
            assert_eq!(EVENTS.find(spec.name), Some(index), "for {}", spec.name);
        }
    }
}
