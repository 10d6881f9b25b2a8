//! The tables of docs/SQL.md are those of the code. After a change: `KUMO_WRITE_DOCS=1 cargo test -p k2i
//! --test sql_docs`.

use std::fmt::Write as _;
use std::path::Path;

use k2i::sql::TABLES;

const BEGIN: &str =
    "<!-- What follows is made from the code; see crates/k2i/tests/sql_docs.rs -->\n";

fn tables() -> String {
    let mut text = String::new();
    for table in TABLES {
        let (name, about) = (table.name, table.about);
        write!(
            text,
            "\n### `{name}`\n\n{about}.\n\n| column | type | what it is |\n|---|---|---|\n"
        )
        .expect("a string takes all");
        for column in table.columns {
            let name = if column.is_hidden {
                format!("*`{}`*", column.name)
            } else {
                format!("`{}`", column.name)
            };
            let kind = column.kind.name().to_lowercase();
            writeln!(text, "| {name} | {kind} | {} |", column.about.replace('|', "\\|"))
                .expect("a string takes all");
        }
    }
    text
}

#[test]
fn the_tables_of_the_manual_are_those_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/SQL.md");
    let manual = std::fs::read_to_string(&path).expect("the manual");
    let (head, listed) = manual.split_once(BEGIN).expect("the mark in the manual");
    let want = tables();
    if std::env::var_os("KUMO_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{want}")).expect("it is ours");
        return;
    }
    assert!(listed == want, "docs/SQL.md is old; KUMO_WRITE_DOCS=1 makes it anew");
}
