//! Conditions on rows, in CEL (the Common Expression Language), checked when they are compiled.
//!
//! The parser is the `cel` crate's; types, compilation and evaluation are ours, over columns that are
//! read only when a row's verdict needs them, without copying what a dropped row holds (decision
//! 0002 has the numbers).
//!
//! What CEL leaves open for a table: null is "not known". `x == null` and `has(x)` test for it; in
//! anything else it decides nothing, and a row whose condition stays open does not match. So do an
//! integer overflow, a division by zero, and an index beyond the end. Integers and floats mix as
//! numbers. Texts are bytes: invalid UTF-8 compares and matches like any other.

mod compile;
mod error;
mod expr;
mod scan;

pub use error::FilterError;

use crate::schema::{ColumnIndex, Schema};
use crate::value::Value;
use expr::{Row, Test};

/// A compiled condition: at most [`QUERY_TEXT_BYTES_MAX`](crate::limits::QUERY_TEXT_BYTES_MAX) bytes
/// of text, nested at most [`FILTER_DEPTH_MAX`](crate::limits::FILTER_DEPTH_MAX) deep.
#[derive(Debug)]
pub struct Filter {
    test: Test,
    columns: Vec<ColumnIndex>,
}

impl Filter {
    /// Compiles `text` against `schema`.
    ///
    /// # Errors
    /// What is wrong, where, and what to write instead; see [`FilterError`]. A filter that compiles
    /// cannot fail on a row.
    pub fn compile(text: &str, schema: &'static Schema) -> Result<Filter, FilterError> {
        let (test, columns) = compile::compile(text, schema)?;
        Ok(Filter { test, columns })
    }

    /// The columns it may read, each once.
    pub fn columns(&self) -> &[ColumnIndex] {
        &self.columns
    }

    /// Whether a row, given by a function from column to value, fulfils the condition. The function is
    /// called only for columns that the verdict needs, maybe more than once.
    pub fn matches<'r>(&self, value: &dyn Fn(ColumnIndex) -> Value<'r>) -> bool {
        self.test.holds(Row { column: value, item: None }) == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{FILTER_DEPTH_MAX, FILTER_REGEXES_MAX, QUERY_TEXT_BYTES_MAX};
    use crate::proc::PROC;
    use crate::schema::{ColumnSpec, Kind, Unit};
    use proptest::prelude::*;
    use std::cell::RefCell;

    const fn column(name: &'static str, kind: Kind) -> ColumnSpec {
        ColumnSpec { name, aliases: &[], kind, unit: Unit::None, heading: "", about: "" }
    }

    static SCHEMA: Schema = Schema {
        name: "test",
        columns: &[
            column("flag", Kind::Bool),
            column("pid", Kind::Int),
            column("cpu", Kind::Float),
            column("user", Kind::Text),
            column("broken", Kind::Text),
            column("argv", Kind::TextList),
            column("tty", Kind::Text),
            column("rss", Kind::Int),
            column("least", Kind::Int),
            column("none", Kind::TextList),
        ],
    };

    /// The one row of most tests. `tty`, `rss` and `none` are null.
    fn row(index: ColumnIndex) -> Value<'static> {
        match SCHEMA.columns[index].name {
            "flag" => Value::Bool(true),
            "pid" => Value::Int(4711),
            "cpu" => Value::Float(12.5),
            "user" => Value::text("www-data"),
            "broken" => Value::text(b"a\xff\xfez"),
            "argv" => Value::TextList((&b"nginx\0-g\0daemon off;\0\0"[..]).into()),
            "least" => Value::Int(i64::MIN),
            _ => Value::Null,
        }
    }

    fn verdict(text: &str) -> bool {
        let filter = Filter::compile(text, &SCHEMA);
        filter.unwrap_or_else(|error| panic!("{text}: {error}")).matches(&row)
    }

    const WHAT_HOLDS: &[&str] = &[
        "true",
        "flag",
        "flag == true && flag != false && false < flag",
        "pid == 4711 && pid >= 4711u && pid <= 0x1267 && pid != 1",
        "cpu > 12 && cpu < 12.6 && cpu == 12.5 && 12 < cpu",
        "PID == 4711",
        "user == \"www-data\" && user != 'root' && user > \"www\"",
        "user.contains(\"w-d\") && user.startsWith('www') && user.endsWith('data')",
        "user.contains(user) && user.startsWith(user) && user.endsWith(user)",
        "user.matches(r'^www-\\w+$') && user.matches('(?i)DATA') && !user.matches('^data')",
        "'ROOT'.lowerAscii() == 'root' && user.upperAscii() == 'WWW-DATA'",
        "'É'.lowerAscii() == 'É'",
        "size(user) == 8 && user.size() == 8 && 'é日'.size() == 2 && argv.size() == 4",
        "broken.size() == 4 && broken == b'a\\xff\\xfez' && broken.matches('^a.*|z$')",
        "broken.startsWith('a') && broken.endsWith('z') && broken.contains(b'\\xff')",
        "pid in [1, 2, 4711] && !(pid in [1, 2]) && pid in [4711.0] && cpu in [12.5, 13]",
        "user in ['a', 'www-data'] && !(user in ['a', 'b']) && user in [user, 'x']",
        "'-g' in argv && '' in argv && !('x' in argv) && user in ['a', tty, user]",
        "!(pid in [])",
        "argv[0] == 'nginx' && argv[1 + 1].contains('off') && argv[3] == ''",
        "argv[4] == null && argv[-1] == null && argv[least] == null",
        "argv == ['nginx', '-g', 'daemon off;', ''] && argv != ['nginx']",
        "argv.exists(a, a.startsWith('-')) && !argv.exists(a, a == 'x')",
        "argv.all(a, a.size() < 20) && !argv.all(a, a.size() > 0)",
        "['x', 'nginx'].exists(name, name in argv) && [1, 4711].exists(n, n == pid)",
        "[].all(x, x == 1) && ![].exists(x, x == 1)",
        "argv.exists(pid, pid == '-g') && pid == 4711",
        "512 * MiB == 536870912 && GiB / MiB == KiB && TiB > GiB",
        "pid + 1 == 4712 && pid - 1 == 4710 && pid / 2 == 2355 && pid % 10 == 1 && -pid < 0",
        "cpu * 2 == 25 && cpu + 1 == 13.5 && cpu / 2 == 6.25 && pid / 2.0 == 2355.5",
        "double(pid) / 2.0 == 2355.5 && -cpu == -12.5 && --pid == 4711",
        "user + '!' == 'www-data!'",
        "flag ? pid == 4711 : false",
        "(pid == 1 ? 'a' : 'b') == 'b'",
        "(flag ? 3 : 0.5) / 2 == 1.5",
        "tty == null && null == tty && user != null && !has(tty) && has(user) && has(argv[0])",
        "null == null && !(null != null)",
        "flag || tty == 'x' || rss > 3",
        "tty == 'x' || flag",
        "!(tty == 'x' && !flag)",
        "(tty == 'x') == null && (rss + 1) == null && (rss > 0 ? 1 : 2) == null",
        "(tty == null ? 'none' : tty) == 'none'",
        "pid == 4711 // && pid == 1",
        "  pid\n==\n4711 ",
    ];

    #[test]
    fn what_holds() {
        for text in WHAT_HOLDS {
            assert!(verdict(text), "{text}");
        }
    }

    #[test]
    fn what_does_not_hold_or_is_not_known() {
        let cases = [
            "false",
            "tty == 'x'",
            "tty != 'x'",
            "!(tty == 'x')",
            "tty == tty",
            "rss > 0",
            "rss <= 0",
            "rss == 0 || rss != 0",
            "rss in [1, 2]",
            "!(rss in [1, 2])",
            "!(pid in [rss, 1])",
            "tty.contains('')",
            "!tty.matches('x')",
            "tty.size() >= 0",
            "'x' in none",
            "!('x' in none)",
            "none.all(x, true)",
            "none.exists(x, true)",
            "none[0] == ''",
            "argv.all(x, x == tty)",
            "(tty == 'x') && flag",
            "tty == 'x' ? true : true",
            "argv[9] == ''",
            "pid / (pid - 4711) == 0 || pid / (pid - 4711) != 0",
            "pid % (pid - 4711) == 0",
            "cpu / (cpu - 12.5) > 0.0",
            "pid + 9223372036854775807 > 0",
            "pid * 9223372036854775807 < 0",
            "-least < 0 || -least > 0",
            "least / (pid - 4712) != 0",
            "least % (pid - 4712) == 0",
            "-9223372036854775808 - pid < 0",
        ];
        for text in cases {
            assert!(!verdict(text), "{text}");
        }
    }

    #[test]
    fn what_is_refused_is_explained() {
        let cases = [
            ("cmdlin.contains('x')", "no column `cmdlin` (character 1); did you mean `cmdline`?"),
            ("rss > 5 * MB", "did you mean `MiB`?"),
            ("user == root_x", "character 9); texts stand in quotes"),
            ("user == 'é' && nonsense", "character 16"),
            ("cpu > \"x\"", "at character 5: this compares a number with a text"),
            ("pid == '1'", "without quotes"),
            ("argv == 'x'", "write `text in list`"),
            ("tty > null", "null has no order"),
            ("argv < argv", "a list of texts has no order"),
            ("pid", "the condition is an integer, not true or false"),
            ("'x'", "the condition is a text"),
            ("null", "the condition is null"),
            ("pid && flag", "at character 1: `&&` wants true or false, and this is an integer"),
            ("!user", "`!` wants true or false"),
            ("pid ? true : false", "`?` wants true or false"),
            ("(flag ? 1 : 'a') == 1", "one branch of `?:` is an integer, the other a text"),
            ("user - user == ''", "no arithmetic of a text with a text"),
            ("user + 1 == ''", "no arithmetic of a text with an integer"),
            ("pid + null == 1", "no arithmetic of an integer with null"),
            ("cpu % 2 == 0", "`%` is for integers"),
            ("-user == ''", "`-` wants a number"),
            ("9223372036854775807 + 1 == 0", "no result"),
            ("1 / 0 == 0", "no result"),
            ("-(-9223372036854775808) == 0", "no result"),
            ("18446744073709551615u == 1", "above the greatest integer"),
            ("99999999999999999999 == 1", "invalid int literal"),
            ("pid.contains('1')", "contains() is for texts, and this is an integer"),
            ("argv.contains('x')", "write `\"…\" in list`"),
            ("user.contains(1)", "contains() is for texts"),
            ("contains(user, 'x')", "no function `contains`"),
            ("lowerAscii(user) == 'x'", "text.function(…)"),
            ("user.lower() == 'x'", "no function `lower` (character 11); there are"),
            ("frobnicate()", "no function `frobnicate`"),
            ("user.substring(1, 2) == 'x'", "no function `substring`"),
            ("user.name == 'x'", "columns have no parts"),
            ("size(pid) == 1", "size() is for texts and lists"),
            ("user in user", "text.contains(part)"),
            ("pid in argv", "a list of texts does not hold an integer"),
            ("pid in pid", "an integer does not hold an integer"),
            ("pid in ['a']", "looks for an integer in a list of a text"),
            ("pid in [1, 'a']", "this list holds an integer and a text"),
            ("tty in [null]", "null is in no list"),
            ("null in [1]", "looks for null"),
            ("[1] == [1]", "plain texts only"),
            ("argv['a'] == 'x'", "as in argv[0]"),
            ("user[0] == 'x'", "as in argv[0]"),
            ("{'a': 1} == 1", "no maps"),
            ("a.b{c: 1} == 1", "no maps"),
            ("user.matches('(')", "regular expression at character 14 is refused: unclosed group"),
            ("user.matches(user)", "a text in quotes"),
            ("user.matches('\\\\w{9999}')", "needs more than"),
            ("user.exists(x, true)", "exists() is for lists"),
            ("argv.exists(x)", "write list.exists(x, condition on x)"),
            ("argv.exists(1, true)", "first names the element"),
            ("argv.exists(x, x)", "`exists()` wants true or false"),
            ("argv.exists(x, argv.all(y, true))", "cannot stand inside"),
            ("argv.exists(x, true) && x == ''", "no column `x`"),
            ("argv.map(x, x) == argv", "no function `map`"),
            ("pid >", "the condition ends too early"),
            ("", "the condition ends too early"),
            ("(pid == 1", "the condition ends too early"),
            ("pid == 1)", "at character 9: extraneous input ')'"),
            ("pid == 1 pid", "at character 10: extraneous input 'pid'"),
            ("pid = 1", "at character 5: write `==`"),
            ("if == 1", "reserved identifier: if"),
            ("user.?name == 'x'", "unsupported syntax"),
        ];
        for (text, want) in cases {
            let schema = if text.starts_with("cmdlin") { &PROC } else { &SCHEMA };
            let message = Filter::compile(text, schema).map(|_| ()).expect_err(text).to_string();
            assert!(message.contains(want), "{text}: {message:?} does not say {want:?}");
        }
    }

    #[test]
    fn limits() {
        let long = format!("pid == 1{}", " ".repeat(QUERY_TEXT_BYTES_MAX));
        assert_eq!(Filter::compile(&long, &SCHEMA).err(), Some(FilterError::TooLong(long.len())));
        let regexes = vec!["user.matches('a')"; FILTER_REGEXES_MAX + 1].join("||");
        assert_eq!(Filter::compile(&regexes, &SCHEMA).err(), Some(FilterError::RegexCount));
        for open in ["(", "[", "!(", "size(", "-(", "a[", "a.b("] {
            let deep = open.repeat(QUERY_TEXT_BYTES_MAX / open.len());
            let error = Filter::compile(&deep, &SCHEMA).err();
            assert!(matches!(error, Some(FilterError::TooDeep { .. })), "{open}: {error:?}");
        }
    }

    /// The deepest texts of every shape that the scan lets through stay well within the 2 MiB stack of
    /// a test's or a runtime's thread: half of it has to do.
    #[test]
    fn the_deepest_conditions_fit_the_stack() {
        let nest = |open: &str, middle: &str, close: &str, per_level: usize| {
            let levels = FILTER_DEPTH_MAX / per_level - 1;
            format!("{}{middle}{}", open.repeat(levels), close.repeat(levels))
        };
        let texts = [
            nest("(", "flag", ")", 1),
            nest("!(", "flag", ")", 1),
            nest("(flag && ", "flag", ")", 1),
            nest("(flag ? flag : ", "flag", ")", 2),
            nest("flag ? flag : ", "flag", "", 1),
            nest("1 + ", "pid == 1", "", 1),
            nest("(1 + ", "pid", ")", 2) + " == 1",
            nest("-(", "pid", ")", 2) + " == 1",
            nest("flag == (", "flag", ")", 2),
            vec!["flag"; 1_000].join(" && "),
        ];
        let check = move || {
            for text in texts {
                let filter = Filter::compile(&text, &SCHEMA);
                filter.unwrap_or_else(|error| panic!("{text}: {error}")).matches(&row);
            }
        };
        let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(check);
        thread.expect("a thread").join().expect("no overflow");
    }

    #[test]
    fn only_columns_that_decide_are_read() {
        let cases: [(&str, &[&str]); 5] = [
            ("pid == 1 && user == 'x'", &["pid"]),
            ("pid == 4711 || user == 'x'", &["pid"]),
            ("pid == 1 ? user == 'x' : cpu > 1", &["pid", "cpu"]),
            ("argv.exists(a, a == 'nginx') || pid == 1", &["argv"]),
            ("tty == 'x' && pid == 1", &["tty", "pid"]),
        ];
        for (text, want) in cases {
            let filter = Filter::compile(text, &SCHEMA).expect(text);
            let read = RefCell::new(Vec::new());
            filter.matches(&|index| {
                read.borrow_mut().push(SCHEMA.columns[index].name);
                row(index)
            });
            assert_eq!(*read.borrow(), want, "for {text}");
        }
        let filter = Filter::compile("pid == 1 || user == 'x' || pid == 2", &SCHEMA);
        assert_eq!(filter.expect("a filter").columns(), [1, 3]);
    }

    /// Conditions of the part of CEL that its own interpreter and this one share: integers stay
    /// integers, floats are not divided, nothing is null.
    fn common_condition() -> impl Strategy<Value = String> {
        let int = prop_oneof![
            Just("i".to_owned()),
            Just("j".to_owned()),
            any::<i64>().prop_map(|n| format!("({n})")),
            (-3..4i64).prop_map(|n| format!("({n})")),
        ];
        let plain = int.clone();
        let int = int.prop_recursive(3, 12, 2, |inner| {
            prop_oneof![
                (inner.clone(), "[-+*/%]", inner.clone())
                    .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
                inner.prop_map(|a| format!("-({a})")),
            ]
        });
        let float = prop_oneof![
            Just("x".to_owned()),
            (-4..5i32).prop_map(|n| format!("({:?})", f64::from(n) / 2.0)),
        ];
        let float = float.prop_recursive(2, 6, 2, |inner| {
            (inner.clone(), "[-+*]", inner).prop_map(|(a, op, b)| format!("({a} {op} {b})"))
        });
        let text = prop_oneof![
            Just("s".to_owned()),
            Just("t".to_owned()),
            "[ab]{0,3}".prop_map(|text| format!("'{text}'")),
            Just("'é'".to_owned()),
        ];
        let text = text.prop_recursive(2, 6, 2, |inner| {
            (inner.clone(), inner).prop_map(|(a, b)| format!("({a} + {b})"))
        });
        let number = prop_oneof![int.clone(), float];
        let compare =
            prop_oneof![Just("=="), Just("!="), Just("<"), Just("<="), Just(">"), Just(">="),];
        let test = prop_oneof![
            Just("b".to_owned()),
            Just("true".to_owned()),
            (number.clone(), compare.clone(), number)
                .prop_map(|(a, op, b)| format!("{a} {op} {b}")),
            (text.clone(), compare, text.clone()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
            (
                text.clone(),
                prop_oneof![Just("contains"), Just("startsWith"), Just("endsWith")],
                text.clone()
            )
                .prop_map(|(a, function, b)| format!("{a}.{function}({b})")),
            (text.clone(), "[ab.*?]{0,2}")
                .prop_map(|(a, pattern)| format!("{a}.matches('a{pattern}')")),
            (int.clone(), prop::collection::vec(plain, 0..4))
                .prop_map(|(a, list)| format!("{a} in [{}]", list.join(", "))),
            text.clone().prop_map(|a| format!("{a} in l")),
            (text.clone(), int).prop_map(|(a, n)| format!("{a}.size() < {n}")),
            (text.clone(), any::<bool>()).prop_map(|(a, all)| {
                format!("l.{}(e, e.startsWith({a}))", if all { "all" } else { "exists" })
            }),
            (0..4usize, text).prop_map(|(n, a)| format!("l[{n}] == {a}")),
        ];
        test.prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
                inner.clone().prop_map(|a| format!("!({a})")),
                (inner.clone(), inner.clone(), inner)
                    .prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            ]
        })
    }

    fn any_token() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            ",",
            ".",
            "?",
            ":",
            "!",
            "-",
            "+",
            "*",
            "/",
            "%",
            "&&",
            "||",
            "==",
            "!=",
            "<",
            "<=",
            ">",
            ">=",
            "in",
            "null",
            "true",
            "1",
            "0",
            "2u",
            "1.5",
            "'a'",
            "b'\\xff'",
            "r'\\d'",
            "pid",
            "cpu",
            "user",
            "argv",
            "tty",
            "flag",
            "rss",
            "least",
            "none",
            "x",
            "size",
            ".exists(",
            ".all(",
            ".matches(",
            ".contains(",
            "has(",
            "KiB",
            "9223372036854775807",
            "argv[",
            "double(",
            ".size()",
            "//",
            "\n",
            "if",
            "broken",
        ])
    }

    static COMMON: Schema = Schema {
        name: "common",
        columns: &[
            column("b", Kind::Bool),
            column("i", Kind::Int),
            column("j", Kind::Int),
            column("x", Kind::Float),
            column("s", Kind::Text),
            column("t", Kind::Text),
            column("l", Kind::TextList),
        ],
    };

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

        #[test]
        fn cels_own_interpreter_agrees(
            text in common_condition(),
            (b, i, j) in (any::<bool>(), any::<i64>(), -3..4i64),
            x in -8..9i32,
            (s, t) in ("[ab]{0,3}", "[abé]{0,2}"),
            l in prop::collection::vec("[ab]{0,2}", 0..4),
        ) {
            let filter = match Filter::compile(&text, &COMMON) {
                Ok(filter) => filter,
                // Ours refuses what has no value before it looks at a row.
                Err(FilterError::Type { message, .. }) if message.contains("no result") => return Ok(()),
                Err(FilterError::TooDeep { .. } | FilterError::RegexCount) => return Ok(()),
                Err(error) => return Err(TestCaseError::fail(format!("{text}: {error}"))),
            };
            let x = f64::from(x) / 2.0;
            let list: Vec<u8> = l.iter().flat_map(|text| text.bytes().chain([0])).collect();
            let ours = filter.matches(&|index| match COMMON.columns[index].name {
                "b" => Value::Bool(b),
                "i" => Value::Int(i),
                "j" => Value::Int(j),
                "x" => Value::Float(x),
                "s" => Value::text(&s),
                "t" => Value::text(&t),
                _ => Value::TextList(list.as_slice().into()),
            });
            let program = cel::Program::compile(&text)?;
            let mut context = cel::Context::default();
            context.add_variable_from_value("b", b);
            context.add_variable_from_value("i", i);
            context.add_variable_from_value("j", j);
            context.add_variable_from_value("x", x);
            context.add_variable_from_value("s", s.clone());
            context.add_variable_from_value("t", t.clone());
            context.add_variable_from_value("l", l);
            // Its errors (overflow, division by zero, index) are our "not known".
            let theirs = program.execute(&context).is_ok_and(|value| value == cel::Value::Bool(true));
            prop_assert_eq!(ours, theirs, "{}", text);
        }

        #[test]
        fn any_text_is_compiled_or_refused(text in "\\PC{0,60}") {
            if let Ok(filter) = Filter::compile(&text, &SCHEMA) {
                filter.matches(&row);
            }
        }

        #[test]
        fn any_slip_in_a_condition_is_compiled_or_refused(
            text in prop::sample::select(WHAT_HOLDS),
            slips in prop::collection::vec((any::<prop::sample::Index>(), any_token(), 0..3u8), 1..4),
        ) {
            let mut tokens: Vec<&str> = text.split_inclusive(|c: char| !c.is_alphanumeric()).collect();
            for (at, token, change) in slips {
                let at = at.index(tokens.len());
                match change {
                    0 => tokens.insert(at, token),
                    1 => tokens[at] = token,
                    _ => tokens[at] = "",
                }
            }
            if let Ok(filter) = Filter::compile(&tokens.concat(), &SCHEMA) {
                filter.matches(&row);
            }
        }

        #[test]
        fn any_tokens_are_compiled_or_refused(tokens in prop::collection::vec(any_token(), 0..24)) {
            let text = tokens.join(" ");
            if let Ok(filter) = Filter::compile(&text, &SCHEMA) {
                filter.matches(&row);
            }
        }
    }
}
