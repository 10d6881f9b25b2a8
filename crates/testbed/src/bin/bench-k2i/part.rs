//! What is measured, and where it stands in the document.

/// A part of the benchmark; each has a block of the document of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// The process table beside `ps` and others, for each number of processes
    Table,
    /// What it costs to leave secrets out of command lines
    Redaction,
    /// All sockets beside `ss` and `lsof`
    Sockets,
    /// The same rows in SQL and by `/v2/proc`
    Sql,
    /// What is recorded, and what it takes to see it again
    History,
    /// The bytes of a view of the busiest
    Stream,
    /// Processes that begin and end, many in a second
    Events,
}

impl Part {
    /// All of them, in the order in which they are measured.
    pub(crate) const ALL: [Part; 7] = [
        Part::Table,
        Part::Redaction,
        Part::Sockets,
        Part::Sql,
        Part::History,
        Part::Stream,
        Part::Events,
    ];

    /// The name of its block.
    pub(crate) fn block(self) -> &'static str {
        match self {
            Part::Table => "bench-k2i",
            Part::Redaction => "bench-k2i redaction",
            Part::Sockets => "bench-k2i sockets",
            Part::Sql => "bench-k2i sql",
            Part::History => "bench-k2i history",
            Part::Stream => "bench-k2i stream",
            Part::Events => "bench-k2i events",
        }
    }

    /// Whether it is measured over the crowd that the smaller parts share.
    pub(crate) fn is_crowded(self) -> bool {
        !matches!(self, Part::Table | Part::Events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn every_part_has_a_block_of_its_own() {
        assert_eq!(Part::value_variants(), Part::ALL);
        let mut blocks = Part::ALL.map(Part::block).to_vec();
        blocks.sort_unstable();
        blocks.dedup();
        assert_eq!(blocks.len(), Part::ALL.len());
    }
}
