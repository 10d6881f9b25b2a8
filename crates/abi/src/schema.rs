//! A table's columns, described once: names, kinds, units and headings.

/// Index of a column in its [`Schema`].
pub type ColumnIndex = usize;

/// What a column's values are. Any value may also be null: not there, or not readable by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A signed 64-bit integer. JSON carries it as a number; no column of this kind passes 2^53.
    Int,
    /// A 64-bit floating point number; never NaN or infinite.
    Float,
    /// Bytes that are UTF-8 as a rule. JSON carries invalid sequences as U+FFFD.
    Text,
    /// A list of texts, such as an argument vector. Empty elements count.
    TextList,
}

impl Kind {
    /// The kind as the schema document and error messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bool => "bool",
            Kind::Int => "int",
            Kind::Float => "float",
            Kind::Text => "text",
            Kind::TextList => "list of text",
        }
    }

    /// Whether values add up: what `sum()` and `max()` accept.
    pub fn is_number(self) -> bool {
        matches!(self, Kind::Int | Kind::Float)
    }
}

/// The unit of a column. Base units only, as in `OpenMetrics`: bytes and seconds, never KiB or ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A plain number, name or flag.
    None,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Hundredths; 100 is one whole CPU, or all memory.
    Percent,
}

impl Unit {
    /// The unit as the schema document names it; empty for none.
    pub fn name(self) -> &'static str {
        match self {
            Unit::None => "",
            Unit::Bytes => "bytes",
            Unit::Seconds => "seconds",
            Unit::Percent => "percent",
        }
    }
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct ColumnSpec {
    /// Its name in queries, filters and JSON.
    pub name: &'static str,
    /// Other names it answers to, such as those of `ps -o`.
    pub aliases: &'static [&'static str],
    /// What its values are.
    pub kind: Kind,
    /// Their unit.
    pub unit: Unit,
    /// Its heading in a terminal table.
    pub heading: &'static str,
    /// One line for people, with the source where it is not plain.
    pub about: &'static str,
}

/// The columns of one table.
#[derive(Debug)]
pub struct Schema {
    /// The table's name.
    pub name: &'static str,
    /// Its columns; [`ColumnIndex`] points into them.
    pub columns: &'static [ColumnSpec],
}

impl Schema {
    /// The column with this name or alias; ASCII case does not matter.
    pub fn find(&self, name: &str) -> Option<ColumnIndex> {
        let exact = |spec: &ColumnSpec| spec.name.eq_ignore_ascii_case(name);
        let alias = |spec: &ColumnSpec| spec.aliases.iter().any(|a| a.eq_ignore_ascii_case(name));
        let columns = self.columns;
        columns.iter().position(exact).or_else(|| columns.iter().position(alias))
    }

    /// The column name that is most like `name`, for an error message; `None` if nothing is close.
    pub fn closest(&self, name: &str) -> Option<&'static str> {
        closest(name, self.columns.iter().map(|spec| spec.name))
    }
}

/// The name that is most like `name`, for an error message; `None` if nothing is close. ASCII case does not
/// matter.
pub fn closest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = name.to_ascii_lowercase();
    let near = names.map(|known| (edit_distance(&wanted, known), known));
    let (distance, best) = near.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + best.len() / 4).then_some(best)
}

/// The Levenshtein distance of two short names, in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::closest;
    use crate::proc::PROC;

    #[test]
    fn names_are_found() {
        let cases = [
            ("pid", Some("pid")),
            ("PID", Some("pid")),
            ("%cpu", Some("cpu")),
            ("vsz", Some("vsize")),
            ("args", Some("cmdline")),
            ("nonsense", None),
        ];
        for (name, want) in cases {
            assert_eq!(PROC.find(name).map(|i| PROC.columns[i].name), want, "for {name:?}");
        }
    }

    #[test]
    fn no_name_or_alias_is_used_twice() {
        let mut seen = std::collections::BTreeSet::new();
        for spec in PROC.columns {
            for name in std::iter::once(&spec.name).chain(spec.aliases) {
                assert!(seen.insert(name.to_ascii_lowercase()), "`{name}` stands twice");
            }
        }
    }

    #[test]
    fn a_typing_mistake_finds_its_column() {
        let cases = [("cmdlin", Some("cmdline")), ("uesr", Some("user")), ("zzzzzz", None)];
        for (name, want) in cases {
            assert_eq!(PROC.closest(name), want, "for {name:?}");
        }
    }

    #[test]
    fn near_names_are_found() {
        let names = ["processes", "process_envs", "listening_ports", "users"];
        let cases = [
            ("process", Some("processes")),
            ("proceses", Some("processes")),
            ("PROCESSES", Some("processes")),
            ("listening_port", Some("listening_ports")),
            ("user", Some("users")),
            ("zzz", None),
        ];
        for (name, want) in cases {
            assert_eq!(closest(name, names.into_iter()), want, "for {name}");
        }
    }
}
