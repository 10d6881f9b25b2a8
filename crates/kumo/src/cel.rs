//! Conditions that are put together: some parts are ours, others were typed by people.

use std::fmt::Write as _;

use kumo_abi::limits::QUERY_TEXT_BYTES_MAX;
use kumo_abi::proc::PROC;
use kumo_abi::{Filter, QueryError};

use crate::error::CommandError;

/// A text as a CEL string.
pub fn literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    literal.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => literal.extend(['\\', c]),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            c if c.is_control() => {
                // A string takes whatever is written to it.
                write!(literal, "\\u{:04x}", u32::from(c)).ok();
            }
            c => literal.push(c),
        }
    }
    literal.push('"');
    literal
}

/// What a person typed, as a part of a larger condition. It must stand on its own, so that it means
/// here what it means alone, and what is wrong with it is told by its own characters.
///
/// # Errors
/// It is no condition.
pub fn typed(text: &str) -> Result<String, QueryError> {
    Filter::compile(text, &PROC)?;
    Ok(enclosed(text))
}

/// As [`typed`], of what has been checked.
pub fn enclosed(text: &str) -> String {
    // On a line of its own a comment in it ends where it should.
    format!("(\n{text}\n)")
}

/// All of these conditions as one.
///
/// # Errors
/// It is longer than a question may be.
pub fn all_of(conditions: &[String]) -> Result<String, CommandError> {
    let all = conditions.join(" && ");
    if all.len() > QUERY_TEXT_BYTES_MAX {
        return Err(CommandError::Usage(format!(
            "that makes a condition of {} bytes, and {QUERY_TEXT_BYTES_MAX} is the most: name fewer \
             at once (some 1,000 process numbers fit), or say what they have in common with --filter",
            all.len()
        )));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_is_a_literal() {
        let everything: String = ('\0'..='\u{7ff}').collect();
        for text in ["", "a\"b\\", "two\nlines\r\t", "\x1b\u{9b}", &everything] {
            let condition = format!("user == {}", literal(text));
            Filter::compile(&condition, &PROC).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        }
    }

    #[test]
    fn what_is_typed_stands_on_its_own() {
        assert_eq!(typed("pid == 1 // the first").as_deref(), Ok("(\npid == 1 // the first\n)"));
        for wrong in ["pid == 1) || (pid == 2", "", "true //\n)", "pid"] {
            assert!(typed(wrong).is_err(), "{wrong:?}");
        }
        let error = typed("pid == nonsense").expect_err("no such column").to_string();
        assert!(error.contains("character 8"), "as typed: {error}");
    }

    #[test]
    fn what_is_too_long_says_so() {
        let fits = vec!["true".to_owned(); 3];
        assert_eq!(all_of(&fits).ok().as_deref(), Some("true && true && true"));
        let long = vec!["true".to_owned(); 2_000];
        let error = all_of(&long).expect_err("over 8 KiB").to_string();
        assert!(error.contains("name fewer"), "{error}");
    }
}
