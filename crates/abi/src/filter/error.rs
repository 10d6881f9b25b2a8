//! Why a condition was refused.

use crate::limits::{
    FILTER_DEPTH_MAX, FILTER_REGEX_BYTES_MAX, FILTER_REGEXES_MAX, QUERY_TEXT_BYTES_MAX,
};

/// Why a condition was refused. Nothing was read; a retry of the same text fails the same way.
///
/// `at` is the place in the text, in characters, starting at 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Longer than any condition that a person writes.
    #[error("the condition has {0} bytes, and {QUERY_TEXT_BYTES_MAX} is the most")]
    TooLong(usize),
    /// Nested too deeply for the stack of parser and evaluator.
    #[error(
        "the condition is nested too deeply at character {at}: {FILTER_DEPTH_MAX} levels of brackets, operators in a row and `?:` are the most; `&&`, `||` and lists may be as long as you like"
    )]
    TooDeep {
        /// Where the limit was passed.
        at: usize,
    },
    /// Not CEL.
    #[error("at character {at}: {message}")]
    Syntax {
        /// Where.
        at: usize,
        /// What was expected, and what to write.
        message: String,
    },
    /// No such column.
    #[error("there is no column `{name}` (character {at}){}", did_you_mean(*.closest))]
    Column {
        /// Where.
        at: usize,
        /// What was written.
        name: String,
        /// A column that is spelt nearly so.
        closest: Option<&'static str>,
    },
    /// No such function, or not with this number of arguments.
    #[error("there is no function `{name}` (character {at}); {hint}")]
    Function {
        /// Where.
        at: usize,
        /// How it was called.
        name: String,
        /// What there is.
        hint: &'static str,
    },
    /// An operator or function that does not fit its operands, or what conditions do not offer.
    #[error("at character {at}: {message}")]
    Type {
        /// Where.
        at: usize,
        /// What does not fit, and what to write.
        message: String,
    },
    /// The whole is no condition.
    #[error("the condition is {kind}, not true or false; compare it with something")]
    NotBool {
        /// What it is.
        kind: &'static str,
    },
    /// A regular expression that does not compile.
    #[error("the regular expression at character {at} is refused: {message}")]
    Regex {
        /// Where.
        at: usize,
        /// What the compiler said.
        message: String,
    },
    /// A regular expression that would need too much memory.
    #[error(
        "the regular expression at character {at} needs more than {FILTER_REGEX_BYTES_MAX} bytes once compiled; use smaller repeats"
    )]
    RegexTooLarge {
        /// Where.
        at: usize,
    },
    /// Too many regular expressions.
    #[error(
        "the condition has more than {FILTER_REGEXES_MAX} regular expressions; join some with `|`"
    )]
    RegexCount,
}

fn did_you_mean(closest: Option<&'static str>) -> String {
    match closest {
        Some(name) => format!("; did you mean `{name}`?"),
        None => "; texts stand in quotes, and `kumo ps --columns` lists the columns".to_owned(),
    }
}
