//! A compiled condition and its evaluation.
//!
//! Null is "not known": an operator or function that meets it gives null, except that `&&` and `||`
//! decide where the other side alone decides, and that `== null` tests for it. What has no value
//! (an overflow, a division by zero, an index beyond the end) is null as well, so evaluation cannot
//! fail. Types are the compiler's business: a value of another kind than it foresaw is null too.

use std::borrow::Cow;
use std::cmp::Ordering;

use memchr::memmem;
use regex::bytes::Regex;

use crate::schema::ColumnIndex;
use crate::value::{Value, text_list_items};

/// An expression of any type.
#[derive(Debug)]
pub(super) enum Expr {
    Constant(Value<'static>),
    Column(ColumnIndex),
    /// The element that a quantifier is at.
    Item,
    Test(Box<Test>),
    If(Box<(Test, Expr, Expr)>),
    Arithmetic(Arithmetic, Box<(Expr, Expr)>),
    Negate(Box<Expr>),
    /// An integer as a float.
    Float(Box<Expr>),
    /// Characters of a text, elements of a list.
    Size(Box<Expr>),
    AsciiCase {
        text: Box<Expr>,
        upper: bool,
    },
    /// An element of a list of texts.
    Element(Box<(Expr, Expr)>),
}

/// An expression that is true or false; its evaluation gives `None` for null.
#[derive(Debug)]
pub(super) enum Test {
    /// A column, item or constant of type bool.
    Value(Expr),
    Not(Box<Test>),
    And(Box<(Test, Test)>),
    Or(Box<(Test, Test)>),
    IsNull(Expr),
    Compare(Comparison, Expr, Expr),
    /// Whether a value is among constants of one type, which are sorted by [`order`].
    Among(Expr, Box<[Value<'static>]>),
    /// Whether a value equals one of these; null ones decide nothing.
    AmongComputed(Expr, Box<[Expr]>),
    /// Whether a text is an element of a list.
    Element {
        text: Expr,
        list: Expr,
    },
    Contains(Expr, Needle),
    StartsWith(Expr, Expr),
    EndsWith(Expr, Expr),
    Matches(Expr, Regex),
    Quantified {
        all: bool,
        over: Items,
        test: Box<Test>,
    },
}

/// What a quantifier runs over.
#[derive(Debug)]
pub(super) enum Items {
    /// The elements of a list of texts.
    List(Expr),
    /// The elements of a literal list.
    Each(Box<[Expr]>),
}

/// What to look for.
#[derive(Debug)]
pub(super) enum Needle {
    /// Prepared once.
    Constant(Box<memmem::Finder<'static>>),
    Computed(Expr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// A row, and the element that a quantifier is at.
#[derive(Clone, Copy)]
pub(super) struct Row<'v, 'r> {
    pub(super) column: &'v dyn Fn(ColumnIndex) -> Value<'r>,
    pub(super) item: Option<&'v Value<'v>>,
}

impl Expr {
    pub(super) fn value<'v, 'r: 'v>(&'v self, row: Row<'v, 'r>) -> Value<'v> {
        match self {
            Expr::Constant(value) => borrowed(value),
            Expr::Column(index) => (row.column)(*index),
            Expr::Item => row.item.map_or(Value::Null, borrowed),
            Expr::Test(test) => test.holds(row).map_or(Value::Null, Value::Bool),
            Expr::If(parts) => match parts.0.holds(row) {
                Some(true) => parts.1.value(row),
                Some(false) => parts.2.value(row),
                None => Value::Null,
            },
            Expr::Arithmetic(operator, sides) => {
                operator.apply(sides.0.value(row), sides.1.value(row))
            }
            Expr::Negate(of) => negated(&of.value(row)),
            Expr::Float(of) => match of.value(row) {
                Value::Int(number) => Value::Float(number as f64),
                _ => Value::Null,
            },
            Expr::Size(of) => match of.value(row) {
                Value::Text(text) => Value::Int(char_count(&text) as i64),
                Value::TextList(list) => Value::Int(text_list_items(&list).count() as i64),
                _ => Value::Null,
            },
            Expr::AsciiCase { text, upper } => match text.value(row) {
                Value::Text(text) => Value::Text(ascii_case(text, *upper)),
                _ => Value::Null,
            },
            Expr::Element(parts) => match (parts.0.value(row), parts.1.value(row)) {
                (Value::TextList(list), Value::Int(index)) => element(list, index),
                _ => Value::Null,
            },
        }
    }
}

impl Test {
    pub(super) fn holds(&self, row: Row<'_, '_>) -> Option<bool> {
        match self {
            Test::Value(of) => match of.value(row) {
                Value::Bool(flag) => Some(flag),
                _ => None,
            },
            Test::Not(of) => of.holds(row).map(|flag| !flag),
            Test::And(sides) => match sides.0.holds(row) {
                Some(false) => Some(false),
                Some(true) => sides.1.holds(row),
                None => sides.1.holds(row).filter(|flag| !flag),
            },
            Test::Or(sides) => match sides.0.holds(row) {
                Some(true) => Some(true),
                Some(false) => sides.1.holds(row),
                None => sides.1.holds(row).filter(|flag| *flag),
            },
            Test::IsNull(of) => Some(of.value(row) == Value::Null),
            Test::Compare(comparison, a, b) => {
                order(&a.value(row), &b.value(row)).map(|order| comparison.accepts(order))
            }
            Test::Among(of, constants) => {
                let value = of.value(row);
                // Constants are comparable with each other and, by type, with any value but null.
                if value == Value::Null {
                    return None;
                }
                let search = |constant: &Value<'_>| order(constant, &value);
                let found = constants.binary_search_by(|c| search(c).unwrap_or(Ordering::Less));
                Some(found.is_ok())
            }
            Test::AmongComputed(of, items) => {
                let value = of.value(row);
                any(items.iter().map(|item| {
                    order(&value, &item.value(row)).map(|order| order == Ordering::Equal)
                }))
            }
            Test::Element { text, list } => match (text.value(row), list.value(row)) {
                (Value::Text(text), Value::TextList(list)) => {
                    Some(text_list_items(&list).any(|item| item == &text[..]))
                }
                _ => None,
            },
            Test::Contains(text, needle) => {
                let Value::Text(text) = text.value(row) else { return None };
                match needle {
                    Needle::Constant(finder) => Some(finder.find(&text).is_some()),
                    Needle::Computed(needle) => match needle.value(row) {
                        Value::Text(needle) => Some(memmem::find(&text, &needle).is_some()),
                        _ => None,
                    },
                }
            }
            Test::StartsWith(text, part) => match (text.value(row), part.value(row)) {
                (Value::Text(text), Value::Text(part)) => Some(text.starts_with(&part)),
                _ => None,
            },
            Test::EndsWith(text, part) => match (text.value(row), part.value(row)) {
                (Value::Text(text), Value::Text(part)) => Some(text.ends_with(&part)),
                _ => None,
            },
            Test::Matches(text, pattern) => match text.value(row) {
                Value::Text(text) => Some(pattern.is_match(&text)),
                _ => None,
            },
            Test::Quantified { all, over, test } => {
                let holds = |item: &Value<'_>| {
                    let row = Row { column: row.column, item: Some(item) };
                    // "All fulfil it" is "none fails it".
                    test.holds(row).map(|flag| flag != *all)
                };
                let found = match over {
                    Items::Each(items) => any(items.iter().map(|item| holds(&item.value(row)))),
                    Items::List(list) => match list.value(row) {
                        Value::TextList(list) => {
                            any(text_list_items(&list).map(|item| holds(&Value::text(item))))
                        }
                        _ => None,
                    },
                };
                found.map(|found| found != *all)
            }
        }
    }
}

impl Comparison {
    fn accepts(self, order: Ordering) -> bool {
        match self {
            Comparison::Equal => order.is_eq(),
            Comparison::NotEqual => order.is_ne(),
            Comparison::Less => order.is_lt(),
            Comparison::LessOrEqual => order.is_le(),
            Comparison::Greater => order.is_gt(),
            Comparison::GreaterOrEqual => order.is_ge(),
        }
    }
}

impl Arithmetic {
    /// The result, null where there is none. Two integers give an integer, division included; two
    /// texts can be added. Anything else that has no finite result is null.
    pub(super) fn apply<'v>(self, a: Value<'v>, b: Value<'v>) -> Value<'v> {
        let (a, b) = match (a, b) {
            (Value::Int(a), Value::Int(b)) => {
                let result = match self {
                    Arithmetic::Add => a.checked_add(b),
                    Arithmetic::Subtract => a.checked_sub(b),
                    Arithmetic::Multiply => a.checked_mul(b),
                    Arithmetic::Divide => a.checked_div(b),
                    Arithmetic::Remainder => a.checked_rem(b),
                };
                return result.map_or(Value::Null, Value::Int);
            }
            (Value::Text(a), Value::Text(b)) if self == Arithmetic::Add => {
                return Value::owned_text([a, b].concat());
            }
            (Value::Int(a), Value::Float(b)) => (a as f64, b),
            (Value::Float(a), Value::Int(b)) => (a, b as f64),
            (Value::Float(a), Value::Float(b)) => (a, b),
            _ => return Value::Null,
        };
        let result = match self {
            Arithmetic::Add => a + b,
            Arithmetic::Subtract => a - b,
            Arithmetic::Multiply => a * b,
            Arithmetic::Divide => a / b,
            Arithmetic::Remainder => return Value::Null,
        };
        if result.is_finite() { Value::Float(result) } else { Value::Null }
    }
}

/// The negative of a number.
pub(super) fn negated(value: &Value<'_>) -> Value<'static> {
    match value {
        Value::Int(number) => number.checked_neg().map_or(Value::Null, Value::Int),
        Value::Float(number) => Value::Float(-number),
        _ => Value::Null,
    }
}

/// How two values of one type compare; `None` with null. Numbers of both kinds compare exactly, so
/// that this is a total order of the values of one type.
pub(super) fn order(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Float(b)) => order_mixed(*a, *b),
        (Value::Float(a), Value::Int(b)) => order_mixed(*b, *a).map(Ordering::reverse),
        (Value::Text(a), Value::Text(b)) | (Value::TextList(a), Value::TextList(b)) => {
            Some(a.cmp(b))
        }
        _ => None,
    }
}

fn order_mixed(int: i64, float: f64) -> Option<Ordering> {
    // 2^63: the first number above every `i64`. Both it and its negative are exact floats.
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    if float.is_nan() {
        None
    } else if float >= BEYOND {
        Some(Ordering::Less)
    } else if float < -BEYOND {
        Some(Ordering::Greater)
    } else {
        let whole = float.trunc();
        let fraction = float - whole;
        // Between equal whole parts the fraction decides: 2 is less than 2.5, -2 is more than -2.5.
        Some(int.cmp(&(whole as i64)).then_with(|| 0.0_f64.total_cmp(&(fraction + 0.0))))
    }
}

/// Whether one of the tests holds: yes if one does, no if none can, else not known.
fn any(tests: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut known = Some(false);
    for test in tests {
        match test {
            Some(true) => return Some(true),
            Some(false) => {}
            None => known = None,
        }
    }
    known
}

fn borrowed<'v>(value: &'v Value<'_>) -> Value<'v> {
    match value {
        Value::Null => Value::Null,
        Value::Bool(flag) => Value::Bool(*flag),
        Value::Int(number) => Value::Int(*number),
        Value::Float(number) => Value::Float(*number),
        Value::Text(text) => Value::Text(Cow::Borrowed(text)),
        Value::TextList(list) => Value::TextList(Cow::Borrowed(list)),
    }
}

/// Characters, where each broken sequence counts as the one U+FFFD that it is shown as.
fn char_count(text: &[u8]) -> usize {
    let chunk_len = |chunk: std::str::Utf8Chunk<'_>| {
        chunk.valid().chars().count() + usize::from(!chunk.invalid().is_empty())
    };
    text.utf8_chunks().map(chunk_len).sum()
}

fn ascii_case(text: Cow<'_, [u8]>, upper: bool) -> Cow<'_, [u8]> {
    let changes =
        |byte: &u8| if upper { byte.is_ascii_lowercase() } else { byte.is_ascii_uppercase() };
    if !text.iter().any(changes) {
        return text;
    }
    let mut text = text.into_owned();
    if upper {
        text.make_ascii_uppercase();
    } else {
        text.make_ascii_lowercase();
    }
    Cow::Owned(text)
}

fn element(list: Cow<'_, [u8]>, index: i64) -> Value<'_> {
    let Ok(index) = usize::try_from(index) else { return Value::Null };
    match list {
        Cow::Borrowed(list) => text_list_items(list).nth(index).map_or(Value::Null, Value::text),
        Cow::Owned(list) => {
            text_list_items(&list).nth(index).map_or(Value::Null, Value::owned_text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_and_floats_compare_exactly() {
        let big = 9_007_199_254_740_993; // 2^53 + 1 has no float of its own.
        let cases = [
            (2, 2.5, Ordering::Less),
            (-2, -2.5, Ordering::Greater),
            (0, -0.5, Ordering::Greater),
            (0, -0.0, Ordering::Equal),
            (0, 0.0, Ordering::Equal),
            (3, 3.0, Ordering::Equal),
            (big, 9_007_199_254_740_992.0, Ordering::Greater),
            (i64::MAX, 9_223_372_036_854_775_808.0, Ordering::Less),
            (i64::MIN, -9_223_372_036_854_775_808.0, Ordering::Equal),
            (i64::MIN, -1e300, Ordering::Greater),
        ];
        for (int, float, want) in cases {
            assert_eq!(order_mixed(int, float), Some(want), "{int} and {float}");
        }
        assert_eq!(order_mixed(1, f64::NAN), None);
    }

    #[test]
    fn broken_sequences_count_as_they_are_shown() {
        for text in [&b"abc"[..], b"\xff\xfe", b"a\xe2\x80b", "日本".as_bytes(), b""] {
            let shown = String::from_utf8_lossy(text).chars().count();
            assert_eq!(char_count(text), shown, "for {text:?}");
        }
    }
}
