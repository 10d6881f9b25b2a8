//! What a statement may do: read tables, and call functions that cost no more than their arguments.
//! Pure.
//!
//! Everything is refused but what stands here, so that a new version of SQLite allows nothing new.

use rusqlite::hooks::AuthAction;

/// Functions that may be called. Each takes a time that grows with its arguments, and what it makes is
/// bounded by the length of a value. Left out are those that make much of nothing (`zeroblob`), that
/// take the product of their arguments (`json_patch`), and that reach out (`load_extension`).
const FUNCTIONS: &[&str] = &[
    // Of values.
    "abs char coalesce concat concat_ws format glob hex if ifnull iif instr length like likelihood",
    "likely lower ltrim max min nullif octet_length printf quote random replace round rtrim sign",
    "soundex sqlite_version substr substring trim typeof unhex unicode unlikely upper",
    // Of rows.
    "avg count group_concat string_agg sum total row_number rank dense_rank percent_rank cume_dist",
    "ntile lag lead first_value last_value nth_value",
    // Of times.
    "current_date current_time current_timestamp date datetime julianday strftime time timediff",
    "unixepoch",
    // Of JSON.
    "-> ->> json json_array json_array_length json_extract json_group_array json_group_object",
    "json_object json_quote json_type json_valid",
    // Ours, as osquery has them.
    "in_cidr_block inet_aton regex_match regex_split regexp split version_compare",
];

/// Tables of SQLite that may be read beside ours: they turn a text into rows.
const TABLES: &[&str] = &["json_each", "json_tree"];

/// What is said to who wants more.
pub(crate) const SELECT_ONLY: &str = "tables are read only; there is SELECT and nothing else";

/// Whether a statement may do this.
///
/// # Errors
/// What it may not do, in words.
pub(crate) fn check(action: AuthAction<'_>, is_ours: impl Fn(&str) -> bool) -> Result<(), String> {
    match action {
        // Without a column it is a part of the statement itself, or only its rows count.
        AuthAction::Select | AuthAction::Recursive | AuthAction::Read { column_name: "", .. } => {
            Ok(())
        }
        AuthAction::Read { table_name, .. } => {
            if is_ours(table_name) || TABLES.contains(&table_name) {
                Ok(())
            } else {
                Err(format!("`{table_name}` is not for queries"))
            }
        }
        AuthAction::Function { function_name } => {
            let name = function_name.to_ascii_lowercase();
            if FUNCTIONS.iter().any(|line| line.split(' ').any(|known| known == name)) {
                Ok(())
            } else {
                Err(format!("the function `{name}` is not for queries"))
            }
        }
        AuthAction::Pragma { .. } => Err("PRAGMA is not for queries".to_owned()),
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => {
            Err("other databases are not for queries".to_owned())
        }
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => {
            Err("there is nothing to write, hence no transaction".to_owned())
        }
        _ => Err(SELECT_ONLY.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reading_is_allowed() {
        let function = |function_name| AuthAction::Function { function_name };
        let read = |table_name, column_name| AuthAction::Read { table_name, column_name };
        let cases = [
            (AuthAction::Select, None),
            (AuthAction::Recursive, None),
            (read("processes", "pid"), None),
            (read("json_each", "value"), None),
            (read("x", ""), None),
            (read("sqlite_master", "sql"), Some("`sqlite_master` is not")),
            (function("COUNT"), None),
            (function("load_extension"), Some("`load_extension` is not")),
            (function("zeroblob"), Some("`zeroblob` is not")),
            (AuthAction::Attach { filename: "/etc/passwd" }, Some("other databases")),
            (AuthAction::Pragma { pragma_name: "x", pragma_value: None }, Some("PRAGMA")),
            (AuthAction::Insert { table_name: "processes" }, Some("read only")),
            (AuthAction::Delete { table_name: "processes" }, Some("read only")),
            (AuthAction::CreateTempTable { table_name: "x" }, Some("read only")),
            (AuthAction::DropTable { table_name: "x" }, Some("read only")),
        ];
        for (action, want) in cases {
            let refused = check(action, |name| name == "processes").err();
            let is_right = match (&refused, want) {
                (None, None) => true,
                (Some(said), Some(want)) => said.contains(want),
                _ => false,
            };
            assert!(is_right, "for {action:?}: {refused:?}");
        }
    }
}
