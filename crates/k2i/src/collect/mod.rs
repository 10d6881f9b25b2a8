//! The collector ladder: `iter.s`, `iter`, `proc`.

/// Which collector to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CollectorChoice {
    /// The first rung of the ladder that works.
    #[default]
    Auto,
    /// This one or none.
    Only(CollectorKind),
}

/// A rung of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectorKind {
    /// Sleepable BPF task iterator: numbers and command lines in one pass.
    IterSleepable,
    /// BPF task iterator: numbers; command lines from `/proc`.
    Iter,
    /// A reader of `/proc`: works everywhere, with the reader's rights.
    Proc,
}

impl CollectorKind {
    /// The ladder from the top.
    pub const LADDER: [CollectorKind; 3] =
        [CollectorKind::IterSleepable, CollectorKind::Iter, CollectorKind::Proc];

    /// Its name in answers and options.
    pub fn name(self) -> &'static str {
        match self {
            CollectorKind::IterSleepable => "iter.s",
            CollectorKind::Iter => "iter",
            CollectorKind::Proc => "proc",
        }
    }
}

impl std::str::FromStr for CollectorChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<CollectorChoice, String> {
        if text == "auto" {
            return Ok(CollectorChoice::Auto);
        }
        let kind = CollectorKind::LADDER.into_iter().find(|kind| kind.name() == text);
        kind.map(CollectorChoice::Only).ok_or_else(|| {
            format!("`{text}` is no collector; there are auto, iter.s, iter and proc")
        })
    }
}

/// What became of one rung when the ladder was tried.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rung {
    /// `iter.s`, `iter` or `proc`.
    pub collector: String,
    /// Whether this one runs.
    pub chosen: bool,
    /// Why it was chosen, passed over or not tried, and what would help.
    pub why: String,
}
