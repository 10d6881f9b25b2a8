//! Errors in one line.

use std::error::Error;
use std::fmt::Write as _;

/// What an error says and what each of its sources says, in one line, but for what was just said.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        // Some errors paste their source into their own text.
        if !text.ends_with(&more) {
            let _ = write!(text, ": {more}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    #[derive(Debug)]
    struct Said(&'static str, Option<Box<Said>>);

    impl fmt::Display for Said {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Said {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|below| below as _)
        }
    }

    #[test]
    fn all_is_said_once() {
        let below = |text, of| Said(text, Some(Box::new(of)));
        let cases = [
            (Said("a", None), "a"),
            (below("a", below("b", Said("c", None))), "a: b: c"),
            (below("a: b", below("b", Said("c", None))), "a: b: c"),
        ];
        for (error, want) in cases {
            assert_eq!(chain(&error), want);
        }
    }
}
